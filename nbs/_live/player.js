// A film: frames side by side in one picture, of which the page shows one at a time.
import { button, row, slider, still } from "./controls.js";

export function player(place) {
  const { frames, columns, duration, hold } = place.dataset, count = +frames;
  const rows = Math.ceil(count / columns), image = place.querySelector("img");
  let playing = null;

  function show(k) {
    const x = k % columns, y = Math.floor(k / columns);
    image.style.transform = `translate(${-100 * x / columns}%, ${-100 * y / rows}%)`;
  }

  function play(on) {
    clearTimeout(playing);
    playing = on ? setTimeout(step, way.input.value == count - 1 ? +hold : +duration) : null;
    pause.textContent = on ? "Pause" : "Play";
  }

  function step() {
    way.set((+way.input.value + 1) % count);
    show(+way.input.value);
    play(true);
  }

  const pause = button("Play", () => play(!playing));
  const way = slider("frame", { min: 0, max: count - 1, value: 0,
    show: k => `${k + 1} of ${count}` }, k => { play(false); show(k); });
  place.append(row(pause, way));
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", "Animation");
  new IntersectionObserver(seen => {          // it moves only while it is seen
    if (!seen.at(-1).isIntersecting) play(false);
    else if (!still() && !place.dataset.stopped) play(true);
  }).observe(place);
  pause.addEventListener("click", () => { place.dataset.stopped = playing ? "" : "yes"; });
  way.input.addEventListener("input", () => { place.dataset.stopped = "yes"; });
}
