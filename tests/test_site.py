"""The site as committed: every link leads somewhere, and a browser that opens it from disk complains of nothing."""
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import EXECUTABLE, browser

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.html") if "_static" not in p.parts)
BOOK = [p for p in PAGES if not p.startswith("source/") and p not in ("genindex.html", "search.html")]
WITHOUT_BROWSER = pytest.mark.skipif(not EXECUTABLE, reason="no Chromium or Chrome here")


class Reader(HTMLParser):
    "Links, anchors, resources and pictures of a page."
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded, self.images = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and "href" in a: self.links.append(a["href"])
        if tag in ("script", "img", "iframe", "source", "video") and a.get("src"): self.loaded.append(a["src"])
        if tag == "link" and a.get("rel") not in ("canonical", "author"): self.loaded.append(a["href"])
        if tag == "img": self.images.append((a.get("src", ""), a.get("alt", "")))


READ = {p: Reader(DOCS / p) for p in PAGES}


def test_the_site_is_there_and_within_its_limit():
    assert "index.html" in PAGES and "search.html" in PAGES
    assert sum(p.stat().st_size for p in DOCS.rglob("*") if p.is_file()) < 25 * 2**20
    assert not [p for p in DOCS.rglob("*") if p.suffix in (".map", ".pickle", ".doctree")]


def test_every_internal_link_leads_to_a_page_and_a_place_in_it():
    dead = []
    for page, read in READ.items():
        for link in read.links + read.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc: continue
            target = (DOCS / page).parent / unquote(parts.path) if parts.path else DOCS / page
            name = target.resolve().relative_to(DOCS).as_posix() if target.exists() else None
            anchors = READ[name].ids if name in READ else set()
            if name is None or (parts.fragment and name in READ and unquote(parts.fragment) not in anchors):
                dead.append(f"{page}: {link}")
    assert not dead, "\n".join(dead)


def test_pages_and_styles_load_nothing_from_elsewhere():
    outside = lambda s: urlsplit(s).scheme not in ("", "data") or s.startswith("//")
    loaded = [f"{p}: {s}" for p, read in READ.items() for s in read.loaded if outside(s)]
    for css in DOCS.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)", css.read_text(encoding="utf-8"))
        loaded += [f"{css.name}: {u}" for u in found]
    assert not loaded, "\n".join(loaded)


@pytest.mark.parametrize("page", BOOK)
def test_every_picture_is_described(page):
    bare = [src for src, alt in READ[page].images if not alt.strip() or "_images/" in alt]
    assert not bare


def test_the_papers_equations_show_the_papers_numbers():
    seen = {}
    shown = re.compile(r'id="equation-eq-ddpm-(\d+)">\s*<span class="eqno">\((\w+)\)')
    for page in BOOK:
        for label, number in shown.findall((DOCS / page).read_text(encoding="utf-8")):
            assert label not in seen, f"eq-ddpm-{label} is defined in {seen[label]} and in {page}"
            seen[label] = page
            assert label == number, page


def test_no_reference_was_left_unresolved():
    unresolved = re.compile(r'<code class="xref (?:eq|std|myst)[^>]*>.*?</code>(?!</a>)')
    left = {p: found for p in BOOK if (found := unresolved.findall((DOCS / p).read_text(encoding="utf-8")))}
    assert not left


def test_downloads_are_the_notebooks_without_outputs():
    import json
    notebooks = list((DOCS / "notebooks").rglob("*.ipynb"))
    assert {p.stem for p in notebooks} >= {Path(p).stem for p in BOOK if re.match(r"\d\d_", p)}
    for p in notebooks: assert not any(c.get("outputs") for c in json.loads(p.read_text(encoding="utf-8"))["cells"])


# --- in a browser -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def page():
    with browser() as p: yield p


def url(name): return (DOCS / name).as_uri()


CONTRAST = """(() => {
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(c)) return c;
    }
    return 'rgb(255, 255, 255)';
  };
  const out = [], parts = ['h1', 'p', 'li', 'td', '.math', 'pre span', 'a'].map(o => 'article ' + o).join(', ');
  for (const e of document.querySelectorAll(parts)) {
    if (!e.innerText || !e.innerText.trim() || !e.checkVisibility() || e.matches('.headerlink')) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    out.push([(a + .05) / (b + .05), e.tagName + ' ' + e.className + ': ' + e.innerText.slice(0, 40)]);
  }
  return out.sort((x, y) => x[0] - y[0]).slice(0, 3);
})()"""


@WITHOUT_BROWSER
@pytest.mark.parametrize("name", BOOK)
def test_a_page_from_disk_asks_no_network_complains_of_nothing_sets_its_formulas_and_fits_a_telephone(page, name):
    page.appearance("light")
    page.open(url(name))
    asked = [r for r in page.requests if not r.startswith(("file:", "data:", "about:", "blob:"))]
    assert not asked and not page.complaints
    assert page.js("document.querySelectorAll('.math').length <= document.querySelectorAll('mjx-container').length")
    assert page.js("[...document.querySelectorAll('[data-mjx-error]')].map(e => e.outerHTML.slice(0, 300))") == []
    assert page.js("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)") == []
    page.resize(390, 800)
    assert page.js("document.documentElement.scrollWidth") <= 391


@WITHOUT_BROWSER
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_light_and_in_dark(page, scheme):
    page.appearance(scheme)
    for name in ("plotting.html", next(p for p in BOOK if p.startswith("0"))):
        page.open(url(name))
        assert page.js("document.documentElement.dataset.theme") == scheme
        worst = page.js(CONTRAST)
        assert worst[0][0] >= 4.0, (name, worst)
    page.open(url("plotting.html"))
    figure = "getComputedStyle(document.querySelector('.cell_output img'))"
    assert page.js(figure + ".backgroundColor") == "rgb(255, 255, 255)" and page.js(figure + ".filter") == "none"


@WITHOUT_BROWSER
def test_the_search_finds_a_word_in_the_page_that_says_it(page):
    page.appearance("light")
    page.open(url("search.html") + "?q=palette")
    found = "[...document.querySelectorAll('#search-results li a')].map(a => a.href)"
    page.wait(found + ".length")
    assert any("plotting.html" in h for h in page.js(found))
    assert not page.complaints


@WITHOUT_BROWSER
def test_a_link_into_folded_documentation_opens_it(page):
    page.appearance("light")
    page.open(url("plotting.html"))
    assert not page.js("document.getElementById('api-Picture').open")
    page.open(url("plotting.html") + "#api-Picture.save")
    page.wait("document.getElementById('api-Picture').open", 5)


@WITHOUT_BROWSER
def test_code_can_be_copied(page):
    page.appearance("light")
    page.open(url("plotting.html"))
    blocks = ("div.highlight", "button.copy")
    cells, buttons = (page.js(f"document.querySelectorAll('.cell_input {o}').length") for o in blocks)
    assert cells == buttons > 0
    page.js("document.querySelector('button.copy').click()")
    page.wait("document.querySelector('button.copy').textContent == 'copied'", 5)
