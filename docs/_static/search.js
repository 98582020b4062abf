// The book's search: names of the package first, then sections, then pages; each hit with a line of
// what stands there. SEARCH_INDEX (search-index.js) is [kind, url, title, page, text] a place.
const SYNONYMS = {
  "elbo": ["variational bound", "bound"], "evidence lower bound": ["variational bound"],
  "vlb": ["variational bound"], "lower bound": ["variational bound"],
  "alpha-bar": ["alpha_bars"], "alphabar": ["alpha_bars"], "alpha bar": ["alpha_bars"],
  "score function": ["score"], "u-net": ["unet", "network"], "unet": ["unet", "network"],
  "nll": ["bits/dim", "likelihood"], "bpd": ["bits/dim"], "snr": ["signal-to-noise"],
  "moving average": ["ema", "average"], "fid": ["fid", "fréchet"], "is": ["inception score"],
  "mixed precision": ["precision", "bfloat16"], "kl": ["divergence"], "cfg": ["guidance"],
};
// Small letters without accents, in British spelling; no comma in a number.
const fold = s => s.toLowerCase().normalize("NFD").replace(/[\u0300-\u036f]/g, "")
  .replace(/iz(?=ation|e|ing)/g, "is").replace(/(\d),(?=\d{3})/g, "$1");
const LITTLE = new Set(("a an and are as at by did do does for from how in is it of on or the to " +
  "was were what when where which who why with").split(" "));   // a question's words, not its answer's
const tokens = s => fold(s).split(/[^\p{L}\p{N}_+.]+/u).map(o => o.replace(/^\.+|\.+$/g, ""))
  .filter(Boolean);
const sought = s => {       // the words that say something; where there are only little ones, these
  const all = tokens(s), asked = all.filter(o => !LITTLE.has(o));
  return asked.length ? asked : all;
};

// What is looked for: the words themselves, or in their place what the book calls it.
function queries(text) {
  const plain = fold(text).trim();
  return [plain, ...(Object.hasOwn(SYNONYMS, plain) ? SYNONYMS[plain] : [])];
}

// How well one place answers one query; 0: it does not hold all of the words.
function score([kind, url, title, page, text], query) {
  const words = sought(query), name = fold(title), body = fold(text);
  if (!words.length) return 0;
  let sum = 0;
  for (const word of words) {
    const inTitle = tokens(title).some(o => o === word) ? 12 : name.includes(word) ? 6 : 0;
    const pieces = body.split(word), letter = /[\p{L}\p{N}_]/u;    // part of a word counts less
    const times = pieces.slice(1).reduce((n, piece, i) =>
      n + (letter.test(pieces[i].slice(-1)) || letter.test(piece.slice(0, 1)) ? 0.2 : 1), 0);
    if (!inTitle && !times) return 0;
    // a word among few says more; but a long section is about no less than a middling one
    sum += inTitle + Math.min(times, 8) / (4 + Math.min(body.length, 4500) / 2000);
  }
  sum /= words.length;
  if (name === fold(query) || name.replaceAll("_", "") === fold(query).replaceAll(/[_ -]/g, ""))
    sum += kind === "name" ? 100 : 40;
  else if (name.startsWith(fold(query))) sum += 4;
  else if (words.length > 1 && body.includes(fold(query))) sum += 4;
  const later = url.startsWith("appendix/") ? 1 : 0;      // chapters before lists
  return sum + { name: 3, section: 1, page: 2 }[kind] - 3 * later;
}

// Few places have all of the words: then those that have the most of them, and the rarest, after.
function partly(text) {
  const stem = word => word.length > 5 ? word.replace(/(ing|ed|e?s)$/, "") : word;
  const found = new Map();
  for (const word of new Set(sought(text).map(stem))) {
    const hits = SEARCH_INDEX.map(o => [o, score(o, word)]).filter(o => o[1]);
    const rare = Math.log(SEARCH_INDEX.length / hits.length);
    for (const [entry, value] of hits)
      found.set(entry, (found.get(entry) || 0) + rare * (10 + Math.min(value, 15)));
  }
  return [...found].map(([entry, value]) => [entry, { entry, value: value / 1e4, query: text }]);
}

function search(text, most = 30) {
  const found = new Map();
  queries(text).forEach((query, i) => {
    for (const entry of SEARCH_INDEX) {
      const points = score(entry, query);
      if (!points) continue;
      const value = (points > 0 ? points : Math.exp(points) / 2) * (i ? 0.9 : 1);   // last, but there
      if (value > (found.get(entry)?.value || 0)) found.set(entry, { entry, value, query });
    }
  });
  if (found.size < 3)
    for (const [entry, hit] of partly(text)) if (!found.has(entry)) found.set(entry, hit);
  return [...found.values()].sort((a, b) => b.value - a.value).slice(0, most);
}

// Some words around the first hit, the hits marked.
function excerpt(text, query, most = 180) {
  const words = sought(query), span = document.createElement("p");
  const from = Math.max(0, text.search(spelt(words)) - 60);      // -1, if only the title has them
  const piece = text.slice(from, from + most), more = text.length > from + most;
  mark(span, (from ? "… " : "") + piece + (more ? " …" : ""), words);
  return span;
}

// The words as a page may spell them: with accents, American, with commas in numbers.
function spelt(words) {
  const each = words.map(w => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
    .replace(/is(?=ation|e|ing)/g, "i[sz]").replace(/e/g, "[eéèê]").replace(/o/g, "[oöô]")
    .replace(/\d(?=(\d{3})+(?!\d))/g, "$&,?").replace(/\[[^\]]*\]|\p{L}/gu, "$&[\u0300-\u036f]*"));
  return new RegExp(`(${each.join("|")})`, "giu");
}

function mark(into, text, words) {
  text.split(spelt(words)).forEach((part, i) => {
    const node = document.createElement(i % 2 ? "mark" : "span");
    node.textContent = part;
    into.append(node);
  });
}

document.addEventListener("DOMContentLoaded", () => {
  const place = document.getElementById("search-results");
  const asked = new URLSearchParams(location.search).get("q");
  if (!place || !asked) return;
  for (const input of document.querySelectorAll("form.bd-search input")) input.value = asked;
  const hits = search(asked), heading = document.createElement("p");
  heading.setAttribute("role", "status");
  heading.textContent = hits.length ? `${hits.length} places for “${asked}”` :
    `Nothing is called or says “${asked}”.`;
  const list = document.createElement("ol");
  list.className = "search";
  for (const { entry: [kind, url, title, page, text], query } of hits) {
    const item = document.createElement("li"), link = document.createElement("a");
    const [path, anchor] = url.split("#"), said = excerpt(text, query);
    // what the page is to mark is what is marked here, unless that is a letter or two
    const marked = [...said.querySelectorAll("mark")].map(o => o.textContent.toLowerCase());
    const marks = [...new Set(marked.filter(o => o.length > 2))].join(" ");
    link.href = path + (marks && `?highlight=${encodeURIComponent(marks)}`) +
                (anchor ? "#" + anchor : "");
    link.textContent = title;
    if (kind === "name") link.className = "name";
    const where = document.createElement("span");
    where.textContent = kind === "page" ? "" : ` ${page}`;
    item.append(link, where, said);
    list.append(item);
  }
  place.replaceChildren(heading, list);
});
