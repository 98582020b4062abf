// A copy button on every block of code, and folded parts that open when a link leads into them.
document.addEventListener("DOMContentLoaded", () => {
  const blocks = [".cell_input", "article > section div.highlight-python", "div.highlight-bash"];
  for (const block of document.querySelectorAll(blocks.map(b => b + " div.highlight").join(", "))) {
    if (block.querySelector("button.copy")) continue;
    const button = document.createElement("button");
    Object.assign(button, { className: "copy", type: "button", textContent: "copy" });
    button.setAttribute("aria-label", "Copy this code");
    button.onclick = async () => {
      const text = block.querySelector("pre").innerText;
      let done = true;
      try { await navigator.clipboard.writeText(text); }
      catch {  // a page opened from disk may lack the clipboard interface
        const area = Object.assign(document.createElement("textarea"), { value: text });
        document.body.append(area); area.select();
        done = document.execCommand("copy");
        area.remove(); button.focus();
      }
      const say = (shown, said) => {
        button.textContent = shown;
        button.setAttribute("aria-label", said);
      };
      say(...Array(2).fill(done ? "copied" : "not copied"));
      setTimeout(() => say("copy", "Copy this code"), 1500);
    };
    block.append(button);
  }
  for (const cell of document.querySelectorAll(".cell.tag_exported .cell_input"))
    cell.title = "this cell is part of the package ddpm_nb";
  // the title of a fold is its name for a screen reader too, and so is what a button says
  for (const part of document.querySelectorAll("details.hide > summary, .search-button-field"))
    part.removeAttribute("aria-label");
  // what scrolls sideways can be reached, and scrolled, from the keyboard
  const room = part => {            // of the block around it: what is bold has no width of its own
    let up = part.parentElement;
    while (!up.clientWidth && up.parentElement) up = up.parentElement;
    return up.clientWidth;
  };
  const reach = () => {
    const wide = "div.math, span.math, mjx-container, div.cell_output, div.cell_output > .output, " +
      "div.highlight pre, pre.columns, .api table, .pst-scrollable-table-container";
    const lines = [...document.querySelectorAll("span.math")];      // most fit their line
    const comma = part => part.parentElement.matches(".together") ? 16 : 0;     // as in book.css
    const fit = lines.map(part =>
      !!part.closest("a") || part.offsetWidth < room(part) - comma(part) - 1);
    lines.forEach((part, i) => part.classList.toggle("fits", fit[i]));    // measured all at once
    for (const part of document.querySelectorAll(wide)) {
      const scrolls = part.scrollWidth > part.clientWidth + 1 && !part.closest("a") &&
        getComputedStyle(part).overflowX !== "visible";
      if (scrolls) part.tabIndex = 0;
      else part.removeAttribute("tabindex");
      fade(part);
    }
  };
  // ... and is seen to go on: it fades at the right, but for code, whose lines say so themselves
  const fade = part => part.classList.toggle("more", part.tabIndex === 0 &&
    !part.matches("pre:not(.columns)") &&
    part.scrollLeft + part.clientWidth < part.scrollWidth - 4);
  addEventListener("scroll", e => { if (e.target.tabIndex === 0) fade(e.target); }, true);
  // a result in columns keeps them, where other results break their lines
  for (const part of document.querySelectorAll(".cell_output pre")) {
    const lines = part.textContent.trim().split("\n");
    const aligned = lines.filter(o => /\S {2,}\S/.test(o));
    const table = aligned.length > 2 && 2 * aligned.length > lines.length;
    if (table && lines.every(o => o.length <= 100)) part.classList.add("columns");
  }
  // on a telephone a figure is drawn small: a tap shows it in its own size, to be scrolled, or back
  const figures = [...document.querySelectorAll(".bd-article .cell_output > img")];
  const shrunk = () => {
    for (const image of figures)
      image.classList.toggle("smaller", image.naturalWidth > 1.25 * image.parentElement.clientWidth);
  };
  for (const image of figures) image.addEventListener("click", () => {
    if (innerWidth > 600 || !image.matches(".smaller")) return;
    image.classList.toggle("whole");
    reach();
  });
  addEventListener("resize", shrunk);
  addEventListener("load", shrunk);
  addEventListener("resize", reach);
  window.MathJax?.startup?.promise?.then(reach);
  addEventListener("load", () => setTimeout(reach, 500));
  // folds are closed on the screen; on paper they are open, and then as they were
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => { for (const fold of opened) fold.open = false; });
  const unfold = () => {
    let part = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!part) return;
    for (let up = part; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
    part.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  addEventListener("click", e => {        // the address stays as it is, if a link is followed twice
    const link = e.target.closest?.('a[href*="#"]');
    if (link?.href === location.href && !e.defaultPrevented) unfold();
  });
  unfold();
});
