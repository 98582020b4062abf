// A link to an equation, a symbol, a word or a name shows what it leads to, in place; and a warm-up
// says whether the reader's number is right. What is shown is in hints.js, read when first needed.
document.addEventListener("DOMContentLoaded", () => {
  const root = new URL(document.documentElement.dataset.content_root || "./", location.href);
  const links = ["#equation-", "#sym-", "#word-", "#api-"].map(o => `article a[href*="${o}"]`);
  const tip = Object.assign(document.createElement("div"), { id: "hint", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  let shown = null, wanted = null, waiting = 0, read = null, finger = false;

  const nothing = { equations: {}, words: {} };
  const hints = () => read ??= new Promise(done => {
    const script = document.createElement("script");
    const onerror = () => { read = null; script.remove(); done(nothing); };   // it may come later
    Object.assign(script, { src: new URL("_static/hints.js", root), onerror,
                            onload: () => done(window.bookHints) });
    document.head.append(script);
  });
  const hide = () => {
    clearTimeout(waiting);
    wanted = null;
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  };
  const place = link => {   // below the link, or above where there is no room; within the window
    const at = link.getClientRects()[0], width = document.documentElement.clientWidth;
    const own = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, width - own.width - 8));
    const below = at.bottom + own.height + 6 < innerHeight || at.top < own.height + 6;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${scrollY + (below ? at.bottom + 2 : at.top - own.height - 2)}px`;
  };
  const show = async link => {
    const key = decodeURIComponent(link.href).slice(decodeURIComponent(root.href).length);
    if (shown === link) return true;
    hide();
    wanted = link;
    const { equations, words } = await hints();
    if (!(key in equations || key in words)) return false;
    if (wanted !== link) return true;                // the reader has gone on
    if (finger) tip.setAttribute("aria-live", "polite"); else tip.removeAttribute("aria-live");
    if (key in equations) tip.textContent = `\\[${equations[key]}\\]`; else tip.innerHTML = words[key];
    tip.className = "tex2jax_process" + (key in equations ? " equation" : "");
    shown = link;
    tip.hidden = false;
    link.setAttribute("aria-describedby", "hint");
    if (window.MathJax?.typesetPromise) {
      MathJax.typesetClear([tip]);
      await MathJax.typesetPromise([tip]);
    }
    if (shown === link) place(link);
    return true;
  };
  const later = (what, ms) => { clearTimeout(waiting); waiting = setTimeout(what, ms); };
  for (const link of document.querySelectorAll(links.join(", "))) {
    if (link.matches(".headerlink")) continue;
    link.addEventListener("pointerenter", e => {
      if (e.pointerType === "mouse") later(() => show(link), 150);
    });
    link.addEventListener("pointerleave", e => {
      if (e.pointerType === "mouse") later(hide, 250);               // time to move onto the hint
    });
    link.addEventListener("click", async e => {      // a finger's first tap shows, the second goes
      if (!finger || shown === link) return;
      e.preventDefault();
      if (!await show(link)) location.assign(link.href);
    });
    link.addEventListener("focus", () => { if (link.matches(":focus-visible")) show(link); });
    link.addEventListener("blur", hide);
  }
  tip.addEventListener("pointerenter", () => clearTimeout(waiting));
  tip.addEventListener("pointerleave", e => { if (e.pointerType === "mouse") later(hide, 250); });
  addEventListener("pointerdown", e => {
    finger = e.pointerType === "touch";
    if (!tip.contains(e.target) && !shown?.contains(e.target)) hide();
  }, true);
  addEventListener("keydown", e => { if (e.key === "Escape") hide(); });
  addEventListener("resize", hide);

  // What may be meant by "1.5e-3", "3/4", "1,5" (a decimal comma), "1,024" (or thousands), "60 %"
  // (or 0.6): numbers, or none.
  const readings = text => {
    const plain = text.trim().replaceAll("\u2212", "-"), bare = plain.replace(/\s*%$/, "");
    const value = text => {
      const parts = text.split("/");
      if (parts.length > 2 || parts.some(o => !o.trim())) return NaN;
      return parts.map(Number).reduce((a, b) => a / b);
    };
    const found = [bare, bare.replace(/,(?=\d{3}(?!\d))/g, "")]
      .map(o => value(o.replaceAll(",", ".")));
    if (bare !== plain) found.push(...found.map(o => o / 100));
    return found.filter(o => !Number.isNaN(o));
  };
  for (const form of document.querySelectorAll("form.warm-up")) {
    const [input, said] = [form.querySelector("input"), form.querySelector("output")];
    form.addEventListener("submit", e => {
      e.preventDefault();
      const values = readings(input.value), low = +form.dataset.low, high = +form.dataset.high;
      const right = values.some(o => low <= o && o <= high);
      form.dataset.is = !values.length ? "" : right ? "right" : "wrong";
      said.textContent = !values.length ? "That is no number: 0.25, 1/4 and 2.5e-1 are."
        : right ? "Right." : "Not yet. The answer is folded below.";
    });
  }
});
