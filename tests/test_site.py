"""The site as committed: links lead somewhere, and a browser that opens it complains of nothing."""
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

import plain
import pytest
from browser import EXECUTABLE, LIGHT, browser

pytest.importorskip("nbdev", reason="the build of the site needs nbdev: pip install .[dev]")
ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.html")
               if "_static" not in p.parts)
OTHER = ("search.html",)
BOOK = [p for p in PAGES if not p.startswith("source/") and p not in OTHER]
PLOTTING = "appendix/plotting.html"
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
        source = a.get("src") if tag in ("script", "img", "iframe", "source", "video") else None
        if source: self.loaded.append(source)
        if tag == "link" and a.get("rel") not in ("canonical", "author"):
            self.loaded.append(a["href"])
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
            lost = parts.fragment and name in READ and unquote(parts.fragment) not in READ[name].ids
            if name is None or lost: dead.append(f"{page}: {link}")
    assert not dead, "\n".join(dead)


def test_a_download_leads_to_places_of_the_site_that_are_there():
    address, dead, total = "https://book.example.org", [], 0
    link = re.compile(rf'(?:\]\(|href="){address}/([\w/.-]+?)(?:#([\w.-]+))?[)"]')
    for _, page, nb in plain.notebooks():
        made = plain.plain(nb, page, site=address)
        found = link.findall(json.dumps(made, ensure_ascii=False).replace('\\"', '"'))
        total += len(found)
        dead += [f"{page}: {to}#{anchor}" for to, anchor in found
                 if to not in READ or anchor and anchor not in READ[to].ids]
    assert not dead, "\n".join(dead)
    assert total > 100


EXERCISES = sorted(DOCS.rglob("student/**/*.ipynb"))


def test_there_are_notebooks_of_exercises():
    "Else the test below would be none."
    assert len(EXERCISES) > 5


@pytest.mark.parametrize("path", EXERCISES, ids=lambda p: p.stem)
def test_a_notebook_of_exercises_leads_to_places_that_are_there(path):
    "Other notebooks beside it or among the whole ones; labels in itself or in those."
    said = lambda p: "\n".join(plain.prose(json.loads(p.read_text(encoding="utf-8"))))
    links = re.findall(r"\]\((?:([\w./-]+\.ipynb))?(?:#([\w-]+))?\)", said(path))
    dead = []
    for to, label in links:
        there = path.parent / to if to else path
        lost = re.match("(eq|sec|alg|word)-", label) and f'<a id="{label}">' not in said(there)
        if not there.is_file() or lost: dead.append(f"{to}#{label}")
    assert not dead


@pytest.mark.parametrize("name", ["index.html", "01_schedules.html", "engine/runs.html"])
def test_a_page_has_a_theme_and_no_dead_form_where_no_script_runs(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    assert re.search(r'<html[^>]* data-theme="light"', text)
    assert "<noscript><style>form.warm-up { display: none; }" in text


def test_pages_and_styles_load_nothing_from_elsewhere():
    outside = lambda s: urlsplit(s).scheme not in ("", "data") or s.startswith("//")
    loaded = [f"{p}: {s}" for p, read in READ.items() for s in read.loaded if outside(s)]
    address = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)")
    for css in DOCS.rglob("*.css"):
        found = address.findall(css.read_text(encoding="utf-8"))
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
    assert seen.keys() == {str(n) for n in range(1, 27)}


def test_no_reference_was_left_unresolved():
    unresolved = re.compile(r'<code class="xref (?:eq|std|myst)[^>]*>.*?</code>(?!</a>)')
    found = {p: unresolved.findall((DOCS / p).read_text(encoding="utf-8")) for p in BOOK}
    assert not {p: o for p, o in found.items() if o}


def test_every_notebook_has_its_page_and_its_download():
    names = {p.relative_to(ROOT / "nbs").with_suffix("").as_posix()
             for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    folder = DOCS / "notebooks"
    given = {p.relative_to(folder).with_suffix("").as_posix(): p for p in folder.rglob("*.ipynb")}
    assert set(given) == names == {p.removesuffix(".html") for p in BOOK} - {"reference"}
    for p in given.values():       # what was computed is in it, and what it needs comes first
        code = [c for c in json.loads(p.read_text(encoding="utf-8"))["cells"]
                if c["cell_type"] == "code"]
        assert "find_spec(\"ddpm_nb\") is None" in "".join(code[0]["source"])
        assert len(code) < 3 or any(c["outputs"] for c in code), p


def test_every_module_has_a_page_with_its_source_that_leads_back_to_the_page_that_explains_it():
    modules = {p.relative_to(ROOT / "ddpm_nb").with_suffix("").as_posix()
               for p in (ROOT / "ddpm_nb").rglob("*.py") if not p.name.startswith("_")}
    shown = {p for p in PAGES if p.startswith("source/")}
    assert shown == {f"source/{m}.html" for m in modules}
    said = re.compile(r'it is <a href="([^"]+)"><code>ddpm_nb\.([\w.]+)</code>')
    explained = set()
    for page in BOOK:
        for link, name in said.findall((DOCS / page).read_text(encoding="utf-8")):
            source = f"source/{name.replace('.', '/')}.html"
            assert (DOCS / page).parent.joinpath(link).resolve() == DOCS / source
            targets = {(DOCS / source).parent.joinpath(o).resolve() for o in READ[source].links}
            assert DOCS / page in targets
            explained.add(name)
    assert explained >= {m.replace("/", ".") for m in modules}


def test_no_two_of_our_own_equations_have_one_number():
    seen = {}
    shown = re.compile(r'id="equation-(eq-(?!ddpm-)[\w-]+)">\s*<span class="eqno">\(([\w-]+)\)')
    for page in BOOK:
        for label, number in shown.findall((DOCS / page).read_text(encoding="utf-8")):
            assert number not in seen, f"({number}) is {label} in {page} and {seen[number]}"
            seen[number] = f"{label} in {page}"
    assert seen


# --- what writes it -------------------------------------------------------------------------------

def loaded(name, path):
    "A script as a module: `site` is the name of one of Python's own."
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD, CONF = (loaded(n, ROOT / p) for n, p in (("book_site", "tools/site.py"),
                                                ("book_conf", "nbs/conf.py")))
NOTEBOOK = {
    "directives": """#| default_exp engine.parts""",
    "folded": """#| code-fold: true\n#| code-summary: The pictures' helpers\nimport math""",
    "imports": """#| export\nimport math\nfrom typing import TYPE_CHECKING
if TYPE_CHECKING: from torch import Tensor""",
    "open": """#| code-fold: false\nimport sys""",
    "untitled": """#| code-fold: true\n1 + 1""",
    "checks": """#| export
def _check(size: int) -> None:
    if size < 1: raise ValueError(f"size must be above 0, got {size}")""",
    "refused": """#| exporti
def _same_size(a: int, b: int) -> None:
    "Refuse a size that is another."
    if a != b: raise ValueError(f"the size must be {a}, got {b}")""",
    "base": """#| export
class _Start:
    "A step of the definition."
    def __init__(self, size: int): # in pixels
        self.size = size

    def begin(self) -> int:        # where it begins
        "The first thing it does."
        return 0""",
    "heir": """#| export
class Whole(_Start):
    "All of it."
    def end(self, at: int = 3) -> int: # where it ends
        "The last thing it does."
        return at""",
}


@pytest.fixture
def built(tmp_path, monkeypatch):
    "A notebook of the engine made ready: its cells, by what is in them."
    import nbformat
    path = tmp_path / "nbs" / "engine" / "parts.ipynb"
    path.parent.mkdir(parents=True)
    code = [nbformat.v4.new_code_cell(o) for o in NOTEBOOK.values()]
    cells = [nbformat.v4.new_markdown_cell("# Parts\n\n> What they are"), *code]
    cells[5].outputs = [nbformat.v4.new_output("stream", text="2")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    monkeypatch.setattr(BUILD, "NBS", tmp_path / "nbs")
    return BUILD.process(path)


def test_a_fold_has_the_title_that_the_notebook_gives_it_and_imports_and_checks_are_folded(built):
    folds = [c for c in built.notebook.cells if "mystnb" in c.metadata]
    assert [c.source.split("\n")[0] for c in folds] == [
        "import math", "import math", "1 + 1", "def _check(size: int) -> None:",
        "def _same_size(a: int, b: int) -> None:"]
    assert [tuple(c.metadata["mystnb"].values()) for c in folds] == [
        ("The pictures' helpers",) * 2, ("Imports",) * 2,
        ("Show the code and its result", "Hide the code and its result"),
        *[("What is refused, and in which words",) * 2] * 2]


def test_an_exported_cell_tagged_as_plumbing_is_folded_and_another_is_not():
    "A fold's directives would be copied into the module."
    import nbformat
    def shown(tags):
        cell = nbformat.v4.new_code_cell("#| export\nclass _Store:\n    'Keeps.'")
        cell.metadata["tags"] = tags
        return BUILD.code_cell(cell).metadata
    assert "mystnb" not in shown([]) and shown([])["tags"] == ["exported"]
    assert shown(["plumbing"]) == {
        "tags": ["hide-cell", "exported"],
        "mystnb": {"code_prompt_show": "Plumbing: Store", "code_prompt_hide": "Plumbing: Store"}}


def test_the_documentation_of_a_class_has_the_steps_of_its_definition(built):
    assert built.module == "engine.parts" and [s.name for s in built.symbols] == ["Whole"]
    (card,) = (c.source for c in built.notebook.cells if 'id="api-' in c.source)
    for part in ("Whole(size)", 'id="api-Whole.begin"', 'id="api-Whole.end"', "in pixels",
                 'href="../source/engine/parts.html#Whole"'):
        assert part in card, part


@pytest.mark.parametrize("label, page, count, number", [
    ("eq-ddpm-14", "04_objective", 0, "14"), ("eq-training-ema", "08_training", 0, "8a"),
    ("eq-runs-x", "engine/runs", 1, "runs-b"),
    ("eq-roll", "experiments/swiss_roll", 26, "swiss-roll-aa"),
])
def test_equations_are_numbered_by_the_paper_or_by_the_page(label, page, count, number):
    assert CONF.shown_number(label, page, count) == number


@pytest.mark.parametrize("text, found", {
    "Trainer": ("engine/runs", "#api-Trainer"),
    "Trainer.fit(steps)": ("engine/runs", "#api-Trainer"),
    "ddpm_nb.engine.runs.Trainer": ("engine/runs", "#api-Trainer"),
    "ddpm_nb.engine.runs": ("engine/runs", ""), "runs": None,
    "train(net)": ("08_training", "#api-train"), "lines": None, "unknown(1)": None,
}.items())
def test_a_name_in_the_prose_leads_to_its_documentation(text, found):
    links = {"modules": {"engine.runs": "engine/runs"}, "parts": {"ddpm_nb", "engine", "runs"},
             "symbols": {"Trainer": ["engine/runs"], "lines": ["appendix/plotting"],
                         "train": ["08_training", "engine/cli"]}}
    assert CONF.documented_at(text, "index", links) == found
    if text == "train(net)":
        assert CONF.documented_at(text, "engine/cli", links) == ("engine/cli", "#api-train")


def test_words_of_code_are_wrapped_only_where_that_colours_them(tmp_path):
    "What is left out has the colour of the text around it in both themes; no word is lost."
    (tmp_path / "_static").mkdir()
    rule = 'html[data-theme="{}"] .highlight {}color: {} }}\n'
    themes = {"light": {"{ background: #fefefe; ": "#080808", ".n { ": "#080808",
                        ".k { ": "#6730C5", ".w { ": "#080808"},
              "dark": {"{ background: #2b2b2b; ": "#F8F8F2", ".n { ": "#F8F8F2",
                       ".k { ": "#DCC6E0", ".w { ": "#FFD900"}}
    css = "".join(rule.format(o, *part) for o in themes for part in themes[o].items())
    (tmp_path / "_static" / "pygments.css").write_text(css)
    assert BUILD.uncoloured(css) == {"n"}
    code = ('<span class="n">f</span><span class="w"> </span><span class="k">if</span>'
            '<span class="n">a &lt; b</span>')
    text = f'<p>{code}</p><pre><span></span>{code}</pre><pre>{code}</pre>'
    (tmp_path / "page.html").write_text(text)
    BUILD.keep_spans(tmp_path)
    left = 'f<span class="w"> </span><span class="k">if</span>a &lt; b'
    expected = f'<p>{code}</p><pre><span></span>{left}</pre><pre>{code}</pre>'
    assert (tmp_path / "page.html").read_text() == expected
    names = BUILD.uncoloured((DOCS / "_static" / "pygments.css").read_text(encoding="utf-8"))
    assert {"n", "p", "w"} <= names and not names & {"k", "o", "s2", "c1", "mi", "nf", "nb"}
    wrapped = re.compile(rf'<span class="(?:{"|".join(names)})">')
    assert not [p for p in BOOK if wrapped.search((DOCS / p).read_text(encoding="utf-8"))]


def test_the_search_knows_every_word_of_a_section_however_long(tmp_path):
    import search
    long, page = "word " * 8000, tmp_path / "page.html"
    page.write_text(
        f"<article class='bd-article'><section id='top'><h1>Page</h1><p>{long} first</p>"
        f"<section id='inner'><h2>Inner</h2><p>{long} second</p></section></section></article>")
    top, inner = search.entries(page, "page.html")
    assert (top.url, inner.url) == ("page.html", "page.html#inner")
    assert top.text.endswith(" first") and inner.text.endswith(" second")


@pytest.mark.parametrize("tex, typed", [
    (r"\(\mathbf x_0\)", "x_0"), (r"\(\beta_t\)", "β_t"), (r"\(L_{t-1}\)", "L_t-1"),
    (r"\(\bar\alpha_t\)", "ᾱ_t".replace("ᾱ", "α\u0304")), (r"\([-1,1]\)", "[-1,1]"),
    (r"\(\hat{\mathbf x}_0\)", "x\u0302_0"), (r"\(\log\bar\alpha_T\approx-10\)",
                                              "logα\u0304_T≈-10"),
    (r"\(q(\mathbf x_{t-1}\mid\mathbf x_t)\)", "q( x_t-1| x_t)"),
    (r"\(L_\text{simple}\)", "L_simple"),
    (r"\(D(q\|p)=\mathbb E_q[\log\frac qp]\)", "D(q‖p)=E_q[logq/p]"),
    (r"\(\tfrac12\lVert x-y\rVert^2\)", "1/2‖x-y‖^2"),
    (r"\(\frac{1-\bar\alpha_{t-1}}{\sqrt{2\beta_t}}\)", "(1-α\u0304_t-1)/√2β_t")])
def test_a_formula_is_found_as_one_would_type_it(tex, typed):
    import search
    assert search._plain(tex).replace(" ", "") == typed.replace(" ", "")


def test_what_the_search_shows_holds_no_formulas_source():
    "But what code holds: the notebook of symbols writes them so."
    index = json.loads((DOCS / "search-index.js").read_text(encoding="utf-8").removeprefix(
        "const SEARCH_INDEX = ").rstrip(";\n"))
    raw = [url for _, url, *said in index if re.search(r"\\[(\[]", " ".join(said))]
    titles = [title for _, _, title, where, _ in index if "\\" in title + where]
    prose = [(url, said) for _, url, *_, said in index if not url.startswith("appendix/notation")]
    left = [url for url, said in prose if re.search(r"[dt]frac|\\?frac[\d({\\]|[lr]Vert", said)]
    assert raw == titles == left == []
    typed = "x_0", "β_t", "α\u0304_t", "x\u0302_0"
    assert all(any(sign in text for *_, text in index) for sign in typed)


@pytest.mark.parametrize("name", ["experiments/cifar10.html", "experiments/ablations.html"])
def test_in_a_table_a_number_and_its_error_stay_together(name):
    cells = re.findall(r"<td.*?</td>", (DOCS / name).read_text(encoding="utf-8"), flags=re.S)
    assert sum("\u00a0±\u00a0" in c for c in cells) > 5
    assert not [c for c in cells if re.search(r"\d ± \d", c)]


# --- in a browser --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def page():
    with browser() as p: yield p


def url(name): return (DOCS / name).as_uri()


CONTRAST = "(() => {" + LIGHT + """
  const out = [], parts = ['h1', 'p', 'li', 'td', '.math', 'pre span', 'a'];
  for (const e of document.querySelectorAll(parts.map(o => 'article ' + o).join(', '))) {
    const said = (e.innerText || '').trim();
    if (!said || !e.checkVisibility() || e.matches('.headerlink')) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    out.push([(a + .05) / (b + .05), `${e.tagName} ${e.className}: ${said.slice(0, 40)}`]);
  }
  return out.sort((x, y) => x[0] - y[0]).slice(0, 3);
})()"""


@WITHOUT_BROWSER
@pytest.mark.parametrize("name", PAGES)
def test_a_page_from_disk_asks_no_network_and_sets_its_formulas_and_fits_a_telephone(page, name):
    "And complains of nothing."
    page.appearance("light")
    page.open(url(name))
    asked = [r for r in page.requests if not r.startswith(("file:", "data:", "about:", "blob:"))]
    assert not asked and not page.complaints
    raw = "[...document.querySelectorAll('.math')].filter(o => !o.querySelector('mjx-container'))"
    assert page.js(raw + ".map(o => o.textContent)") == []
    wrong = "[...document.querySelectorAll('[data-mjx-error]')]"
    assert page.js(wrong + ".map(e => e.outerHTML.slice(0, 300))") == []
    empty = "[...document.images].filter(i => i.complete && !i.naturalWidth)"
    assert page.js(empty + ".map(i => i.src)") == []
    page.resize(390, 800)
    assert page.js("document.documentElement.scrollWidth") <= 391


SCROLLING = """(() => {
  for (const part of document.querySelectorAll('details')) part.open = true;
  const cells = [...document.querySelectorAll('.cell_input pre')];
  const widest = e => e.innerText.split('\\n').sort((a, b) => b.length - a.length)[0];
  return [cells.length, cells.filter(e => e.scrollWidth > e.clientWidth).map(widest)];
})()"""


@WITHOUT_BROWSER
@pytest.mark.parametrize("name", BOOK)
def test_no_code_cell_scrolls_sideways_on_a_laptop(page, name):
    "At 1366 pixels, of which a window's scrollbar takes 15; folded cells are opened."
    page.appearance("light")
    page.open(url(name))
    page.resize(1366 - 15, 768)
    _, widest = page.js(SCROLLING)
    said = "\n".join(f"{len(line)} columns: {line}" for line in widest)
    assert not widest, f"{len(widest)} code cells scroll sideways\n{said}"


@WITHOUT_BROWSER
def test_a_line_of_100_characters_fits_where_one_of_120_does_not(page):
    "Whatever the cell is in: plain, exported, folded."
    page.appearance("light")
    page.open(url(PLOTTING))
    page.resize(1366 - 15, 768)
    fill = "document.querySelectorAll('.cell_input pre').forEach(e => e.textContent = '{}')"
    for columns, fits in ((100, True), (120, False)):
        page.js(fill.format("x" * columns))
        cells, wide = page.js(SCROLLING)
        assert cells and len(wide) == (0 if fits else cells)


@WITHOUT_BROWSER
@pytest.mark.parametrize("name", BOOK)
def test_text_stands_out_from_its_ground_in_light_and_in_dark(page, name):
    page.appearance("light")
    page.open(url(name))
    for scheme in ("light", "dark"):       # the page follows the system's
        page.appearance(scheme)
        page.call("Emulation.setEmulatedMedia", **page.media)
        page.wait(f"document.documentElement.dataset.theme === '{scheme}'", 5)
        worst = page.js(CONTRAST)
        assert worst[0][0] >= 4.5, (scheme, worst)


@WITHOUT_BROWSER
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_figure_keeps_its_own_colours_in_light_and_in_dark(page, scheme):
    page.appearance(scheme)
    page.open(url(PLOTTING))
    figure = "getComputedStyle(document.querySelector('.cell_output img'))"
    assert page.js(figure + ".backgroundColor") == "rgb(255, 255, 255)"
    assert page.js(figure + ".filter") == "none"


SEARCHES = {   # what people type -> where the first hit leads, with the anchor of a name
    "ELBO": "03_bound.html", "evidence lower bound": "03_bound.html",
    "discretized decoder": "03_bound.html", "alpha-bar": "appendix/notation.html",
    "cosine schedule": "01_schedules.html", "score": "04_objective.html",
    "L_simple": "04_objective.html", "DDIM": "05_sampling.html",
    "interpolation": "05_sampling.html", "U-Net": "06_unet.html",
    "learning rate": "08_training.html", "rate distortion": "10_compression.html",
    "resume": "engine/runs.html", "onnx": "engine/pretrained.html",
    "EMA": "08_training.html#api-EMA", "Trainer": "engine/runs.html#api-Trainer",
    "NoiseSchedule": "01_schedules.html#api-NoiseSchedule", "UNet": "06_unet.html#api-UNet",
    "load_pretrained": "engine/pretrained.html#api-load_pretrained",
    "GaussianDiffusion": "05_sampling.html#api-GaussianDiffusion",
    "moving average": "08_training.html#api-EMA",
    "frechet_distance": "09_evaluation.html#api-frechet_distance",
    # questions, of which no place has all of the words
    "why is weight normalization replaced": "06_unet.html",
    "how long does sampling a batch of 256 images take": "08_training.html",
    "what are the dangers, the broader impact": "appendix/paper_map.html",
    "autoregressive bit ordering of Gaussian diffusion": "10_compression.html"}


@WITHOUT_BROWSER
def test_the_icons_of_the_page_are_there_and_few_others_are_loaded(page):
    assert (DOCS / "_static/scripts/fontawesome.js").stat().st_size < 200_000
    page.appearance("light")
    page.open(url("01_schedules.html"))
    page.wait("document.querySelector('svg.fa-magnifying-glass path')")
    icons = "[...document.querySelectorAll('svg.svg-inline--fa')]"
    # one that is not there is drawn as a question mark, of several parts
    assert page.js(f"{icons}.every(o => o.querySelector(':scope > path'))")
    assert not page.js("document.querySelector('i.fa-solid, i.fas') !== null")


@WITHOUT_BROWSER
def test_what_people_look_for_is_the_first_thing_that_the_search_finds(page):
    page.appearance("light")
    page.open(url("search.html") + "?q=EMA")
    page.wait("document.querySelector('ol.search li a')")
    found = {q: page.js(f"search({json.dumps(q)}, 1)[0]?.entry[1]") for q in SEARCHES}
    where = lambda q: found[q] and (found[q] if "#" in SEARCHES[q] else found[q].split("#")[0])
    assert {q: where(q) for q in SEARCHES} == SEARCHES
    assert page.js("search('zygote').length") == 0
    assert not page.complaints


@WITHOUT_BROWSER
def test_a_question_marks_the_words_that_say_something_as_the_page_spells_them(page):
    "Here and on the page that a hit leads to: no \"a\", no \"is\"."
    def marked(question):
        page.open(url("search.html") + "?" + urlencode({"q": question}))
        page.wait("document.querySelector('ol.search li a')")
        asked = page.js("[...document.querySelectorAll('ol.search a')].map("
                        "a => new URL(a.href).searchParams.get('highlight') ?? '')")
        here = page.js("[...document.querySelectorAll('ol.search mark')].map("
                       "o => o.textContent.toLowerCase())")
        return set(here), {word for words in asked for word in words.split()}
    for found in marked("how is a digit drawn"): assert found == {"digit", "drawn"}
    here, there = marked("frechet")
    assert {"fréchet"} <= here == there
    assert all({"discretized"} <= found for found in marked("discretised"))
    assert all("1,797" in found for found in marked("1797"))
    assert marked("1,797") == marked("1797")


@WITHOUT_BROWSER
def test_no_word_breaks_the_search_and_a_full_stop_hides_nothing(page):
    page.open(url("search.html") + "?q=constructor")
    page.wait("document.querySelector('#search-results [role=status]')")
    first = lambda q: page.js(f"search({json.dumps(q)}, 1)[0]?.entry[1]")
    assert first("__proto__") is None
    for word in ("DDIM", "EMA"): assert first(f"{word}.") == first(word) is not None
    for code in ("loss.backward", "torch.no_grad()", "x.shape"): assert first(code), code
    places = page.js("search('jensen', 100).map(o => o.entry[1])")       # lists come last, but come
    assert any(o.endswith("#sec-refresher-kl") for o in places[1:])
    assert not page.complaints


@WITHOUT_BROWSER
def test_a_hit_shows_what_stands_there_and_leads_to_it_with_the_word_marked(page):
    page.appearance("light")
    page.open(url("search.html") + "?q=Langevin")
    page.wait("document.querySelector('ol.search li a')")
    assert "langevin" in page.js("document.querySelector('ol.search mark').textContent").lower()
    page.js("document.querySelector('ol.search li a').click()")
    page.wait("location.pathname.endsWith('04_objective.html')")
    page.wait("document.querySelector('span.highlighted') && scrollY > 0")
    assert not page.complaints


@WITHOUT_BROWSER
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [f"{name}.html" for name in (
    "04_objective", "engine/cli", "appendix/paper_map")])
def test_on_paper_nothing_is_cut_and_everything_is_black_on_white_from_either_theme(
        page, name, scheme):
    page.appearance(scheme)
    page.open(url(name))
    page.resize(760, 1000)      # A4
    page.call("Emulation.setEmulatedMedia", media="print", **page.media)
    page.js("dispatchEvent(new Event('beforeprint'))")
    parts = "pre, div.math, div:has(> table)"
    cut = f"""[...document.querySelector('.bd-article').querySelectorAll('{parts}')].filter(o =>
        o.offsetParent && !o.matches('.math') && o.scrollWidth > o.clientWidth + 1
        || getComputedStyle(o).overflowX !== 'visible').length"""
    assert page.js(cut) == 0
    style = "getComputedStyle(document.querySelector('{}'))"
    for part in ("body", "main"):
        color = page.js(style.format(part) + ".backgroundColor")
        assert color in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)"), part
    assert page.js(style.format(".bd-article p") + ".color") == "rgb(0, 0, 0)"
    assert page.js(style.format(".cell_input pre span") + ".color") == "rgb(0, 0, 0)"
    assert page.js("[...document.querySelectorAll('.bd-article details')].every(d => d.open)")
    dark = """[...document.querySelectorAll('.bd-article *')].filter(o => {
      const [r, g, b, a = 1] = getComputedStyle(o).backgroundColor.match(/[\\d.]+/g).map(Number);
      return o.offsetParent && a && Math.min(r, g, b) < 200 && o.innerText?.trim();
    }).map(o => o.tagName + '.' + o.className)"""
    assert not page.js(dark)      # with "background graphics" on


@WITHOUT_BROWSER
def test_on_a_phone_a_tap_on_a_figure_shows_it_in_its_own_size_and_another_fits_it_again(page):
    page.appearance("light")
    page.open(url("03_bound.html"))
    page.resize(390, 800)
    page.wait("document.querySelector('.cell_output > img.smaller')")
    figure = "document.querySelector('.cell_output > img.smaller')"
    size = f"[{figure}.clientWidth, {figure}.naturalWidth, {figure}.parentElement.scrollWidth]"
    shown, own, room = page.js(size)
    assert shown <= room <= 390 < own
    page.js(f"{figure}.click()")
    assert page.js(size) == [own, own, own]
    assert page.js("document.documentElement.scrollWidth") <= 390
    page.js(f"{figure}.click()")
    assert page.js(size) == [shown, own, room]
    page.resize(1366, 800)
    page.js("document.querySelector('.cell_output > img').click()")
    assert not page.js("document.querySelectorAll('img.whole').length")


@WITHOUT_BROWSER
def test_a_link_followed_twice_opens_again_what_the_reader_has_closed(page):
    page.appearance("light")
    page.open(url("01_schedules.html"))
    fold = "document.getElementById('api-NoiseSchedule')"
    page.js("""document.querySelector('article').insertAdjacentHTML("afterbegin",
      '<a id="again" href="#api-NoiseSchedule">again</a>')""")
    for _ in range(2):
        page.js("document.getElementById('again').click()")
        page.wait(f"{fold}.open")
        page.js(f"{fold}.open = false")


@WITHOUT_BROWSER
@pytest.mark.parametrize("name", ["01_schedules.html", "04_objective.html"])
def test_on_a_phone_what_scrolls_can_be_reached_from_the_keyboard(page, name):
    page.appearance("light")
    page.open(url(name))
    page.resize(390, 800)
    page.js("dispatchEvent(new Event('resize'))")
    parts = "div.math, span.math, mjx-container, pre, .cell_output"
    lost = f"""[...document.querySelector('.bd-article').querySelectorAll('{parts}')].filter(o =>
        o.offsetParent && o.scrollWidth > o.clientWidth + 1
        && getComputedStyle(o).overflowX !== 'visible' && o.tabIndex < 0).length"""
    page.wait(f"({lost}) === 0", 5)
    assert page.js("document.documentElement.scrollWidth") <= 390


@WITHOUT_BROWSER
def test_on_a_phone_the_map_of_the_paper_scrolls_and_breaks_no_word(page):
    page.appearance("light")
    page.open(url("appendix/paper_map.html"))
    page.resize(390, 800)
    page.js("dispatchEvent(new Event('resize'))")
    tables = "[...document.querySelectorAll('.cell_output > .output:has(table)')]"
    page.wait(f"{tables}.length === 4 && {tables}.every(o => o.tabIndex === 0)", 5)
    broken = """(() => {
      const out = [], range = document.createRange();
      for (const cell of document.querySelectorAll('.cell_output td')) {
        const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
        for (let node; (node = walk.nextNode());)
          for (const word of node.data.matchAll(/[\\p{L}\\p{N}_.]+/gu)) {
            range.setStart(node, word.index);
            range.setEnd(node, word.index + word[0].length);
            if (new Set([...range.getClientRects()].map(o => o.top)).size > 1) out.push(word[0]);
          }
      }
      return out;
    })()"""
    assert page.js(broken) == []


@WITHOUT_BROWSER
def test_on_a_phone_what_goes_on_fades_and_a_table_keeps_its_columns(page):
    page.appearance("dark")
    page.open(url("03_bound.html"))
    page.resize(390, 800)
    page.js("dispatchEvent(new Event('resize'))")
    page.wait("document.querySelector('mjx-container.more')", 5)
    faded = "[...document.querySelectorAll('mjx-container.more')]"
    assert page.js(f"{faded}.every(o => o.scrollWidth > o.clientWidth)")
    page.js(f"(e => {{ e.id = 'end'; e.scrollLeft = 1e4; }})({faded}[0])")
    page.wait("!document.querySelector('#end.more')", 5)          # at its end nothing goes on
    assert page.js("[...document.querySelectorAll('pre.columns')].length") > 2
    assert page.js("getComputedStyle(document.querySelector('pre.columns')).whiteSpace") == "pre"
    picture = page.js("Math.max(...[...document.querySelectorAll('.cell_output img')]"
                      ".map(o => o.getBoundingClientRect().width))")
    assert 360 <= picture <= 390                                  # all of the width


@WITHOUT_BROWSER
@pytest.mark.parametrize("name", ["01_schedules.html", "03_bound.html", "05_sampling.html"])
def test_on_a_wide_screen_no_formula_in_a_line_fades(page, name):
    page.appearance("light")
    page.open(url(name))
    page.resize(1366, 900)
    page.js("dispatchEvent(new Event('resize'))")
    page.js("new Promise(done => setTimeout(done, 300))")
    assert page.js("document.querySelectorAll('span.math.fits').length") > 20
    assert page.js("[...document.querySelectorAll('span.math.fits')].filter(o => "
                   "o.matches('.more') || getComputedStyle(o).overflowX != 'visible').length") == 0


@WITHOUT_BROWSER
@pytest.mark.parametrize("width", [390, 1300])
def test_no_line_begins_with_the_comma_after_a_formula(page, width):
    page.appearance("light")
    page.open(url("04_objective.html"))
    page.resize(width, 800)
    lost = r"""[...document.querySelectorAll('article span.math > mjx-container')].filter(o => {
      const next = o.parentElement.nextSibling;
      if (next?.nodeType !== Node.TEXT_NODE || !/^[.,;:)]/.test(next.data)) return false;
      const range = document.createRange();
      range.setStart(next, 0);
      range.setEnd(next, 1);
      const {top, height} = range.getBoundingClientRect();
      return height && top > o.getBoundingClientRect().bottom - 2;
    }).length"""
    assert page.js("document.querySelectorAll('.together').length") > 50
    assert page.js(lost) == 0


@pytest.mark.parametrize("name", [name for name in BOOK if name[:2].isdigit()])
def test_no_drawing_of_a_chapter_is_hidden_in_a_fold_but_those_of_answers(name):
    "A fold hides what its cell has shown, too."
    text = (DOCS / name).read_text(encoding="utf-8")
    folds = re.findall(r'<details class="admonition hide[^>]*>(.*?)</details>', text, flags=re.S)
    titles = [o[:o.index("</summary>")] for o in folds if "<img" in o]
    assert folds and all("and its result" in o for o in titles), titles


@WITHOUT_BROWSER
def test_a_link_into_folded_documentation_opens_it(page):
    page.appearance("light")
    page.open(url(PLOTTING))
    assert not page.js("document.getElementById('api-Picture').open")
    page.open(url(PLOTTING) + "#api-Picture.save")
    page.wait("document.getElementById('api-Picture').open", 5)


@WITHOUT_BROWSER
def test_code_can_be_copied(page):
    page.appearance("light")
    page.open(url(PLOTTING))
    blocks = ("div.highlight", "button.copy")
    count = lambda o: page.js(f"document.querySelectorAll('.cell_input {o}').length")
    cells, buttons = map(count, blocks)
    assert cells == buttons > 0
    shown = "[...document.querySelectorAll('button.copy')].find(o => !o.closest('details'))"
    page.call("Browser.grantPermissions", permissions=["clipboardSanitizedWrite"])
    x, y = page.js(f"""(button => {{
      button.scrollIntoView({{block: "center", behavior: "instant"}});
      const r = button.getBoundingClientRect();
      return [r.x + r.width / 2, r.y + r.height / 2];
    }})({shown})""")
    for kind in ("mousePressed", "mouseReleased"):      # a hand's press: a script's may not copy
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    page.wait(f"{shown}.textContent == 'copied'", 5)
    assert page.js(f"{shown}.getAttribute('aria-label')") == "copied"
