// What the reader's hand is on: plain HTML controls, each with a label that is read aloud.

export function element(name, properties = {}, ...children) {
  const { attributes = {}, ...others } = properties;
  const made = Object.assign(document.createElement(name), others);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export const button = (text, onclick) => element("button", { type: "button", onclick }, text);

// A slider with its value beside it; `show` says the value in words, on screen and aloud.
export function slider(label, { min, max, step = 1, value, show = String }, oninput = () => {}) {
  const input = element("input", { type: "range" });
  const shown = element("output", { attributes: { "aria-live": "off" } });   // the slider says it
  Object.assign(input, { min, max, step, value });   // in this order: a value is held to its range
  const control = element("label", { className: "live-slider" }, `${label} `, input, shown);
  control.say = () => {
    shown.textContent = show(+input.value);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  control.set = (value, max = input.max) => {
    Object.assign(input, { max, value });
    control.say();
  };
  input.oninput = () => { control.say(); oninput(+input.value); };
  control.input = input;
  control.say();
  return control;
}

export function number(label, { min, max, value }, onchange = () => {}) {
  const input = element("input", { type: "number", min, max, value });
  input.onchange = () => onchange(+input.value);
  return Object.assign(element("label", {}, `${label} `, input), { input });
}

export function choice(label, names, onchange = () => {}) {
  const options = names.map(name => element("option", { value: name }, name));
  const input = element("select", {}, ...options);
  input.onchange = () => onchange(input.value);
  return Object.assign(element("label", {}, `${label} `, input), { input });
}

export const row = (...children) => element("div", { className: "live-row" }, ...children);

// A picture with a line under it; the line is also what is read aloud in its place.
export function picture(width, height, words) {
  const canvas = element("canvas", { width, height, attributes: { role: "img" } });
  const caption = element("figcaption");
  const figure = element("figure", {}, canvas, caption);
  figure.say = words => {
    caption.textContent = words;
    canvas.setAttribute("aria-label", words);
  };
  figure.say(words);
  return Object.assign(figure, { canvas });
}

export const pictures = (...children) =>
  element("div", { className: "live-row live-pictures" }, ...children);

// Put a live part where the page says what it would be.
export function replace(place, label, ...children) {
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", label);
  place.replaceChildren(...children);
}

// Until the next time that the screen is drawn: the page stays in the reader's hand. A hidden page
// is not drawn, so that a clock has to do.
export const nextFrame = () => new Promise(done => {
  if (document.hidden) { setTimeout(done); return; }
  const go = () => {                // drawn, or hidden meanwhile
    cancelAnimationFrame(frame);
    document.removeEventListener("visibilitychange", go);
    setTimeout(done);
  };
  const frame = requestAnimationFrame(go);
  document.addEventListener("visibilitychange", go);
});

export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
