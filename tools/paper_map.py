"""Where in the book is what of the paper: collected from labels, docstrings and comments.

    python tools/paper_map.py        say what is missing; exit 1 if anything is

No place is typed twice: notebooks and tests say it in passing.
  `:label: eq-ddpm-4`          here equation 4 is derived; likewise `(alg-ddpm-1)=`,
                               `(tab-ddpm-4)=`, `(fig-ddpm-5)=`
  "(eq. 4)" in a docstring     of an exported name: it computes this; likewise "algorithm 1",
                               "figure 5", "eq. 6 and 7", "eq. 17 to 22"
  `(fig-ddpm-6-digits)=`       here it is shown again, on other data
  `# checks eq. 4`             in a cell or a test, or the same words in a test's docstring:
                               it checks this, if it holds something that can fail
A label is no check: each equation and algorithm needs words of the last kind of its own, in a cell
or a test with an assertion. The numbers of a table are checked only where a comment says so; a test
that mentions one does not. (That an assertion would notice a slip in *its* line is shown for
equations 17 to 26 by tests/test_paper_map.py, which makes the slips.)
Two lists are written by hand, in nbs/appendix/paper_map.ipynb: the paper's items, the text PAPER,
and of what the figures and tables of a page are made, the text PAGES.
"""
import ast, html, io, json, posixpath, re, sys, textwrap, tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = "appendix/paper_map.ipynb"    # the notebook that shows the table, relative to nbs/
KINDS = {"eq": "Equation", "alg": "Algorithm", "tab": "Table", "fig": "Figure"}
COMPUTED = ("eq", "alg")            # these need a symbol and a test; a table or a figure, a place


class Item(NamedTuple):
    "One numbered thing of the paper."
    kind: str     # a key of KINDS
    number: int
    says: str     # what it is, in words
    step_of: str  # "eq 5" for a line of its derivation, which may share its symbol; or ""
    images: str   # what the paper's are made of, if it is a picture or a measurement; or ""


class Place(NamedTuple):
    "A link into the book."
    page: str     # notebook, relative to nbs/: "03_bound.ipynb", "engine/runs.ipynb"
    heading: str  # of the section, as JupyterLab makes it a fragment
    anchor: str   # id on the site
    text: str     # what to call it


class Map(NamedTuple):
    "What the scan found, for each (kind, number)."
    places: dict    # -> [Place]: more than one is a mistake
    again: dict     # -> [Place]: shown once more, on other data
    symbols: dict   # -> [Place]
    cells: dict     # -> [Place]: checks in notebooks
    tests: dict     # -> ["tests/test_x.py::test_y"]


# --- the paper's items ---------------------------------------------------------------------------

def parse(text):
    "Items from lines `eq 5 | what it says | step of: eq 3 | images: ...`, the end free."
    items = []
    for line in text.strip().splitlines():
        if not line.strip(): continue
        name, says, *more = (part.strip() for part in line.split("|"))
        kind, number = name.split()
        if kind not in KINDS:
            raise ValueError(f"an item begins with {', '.join(KINDS)}, got {line!r}")
        more = dict(part.split(": ", 1) for part in more)
        if more.keys() - {"step of", "images"}:
            raise ValueError(f"after what it says come `step of:` and `images:`, got {line!r}")
        extra = (more.get(word, "") for word in ("step of", "images"))
        items.append(Item(kind, int(number), says, *extra))
    return items


def parse_pages(text):
    "Page -> what its figures and tables are made of, from lines `page, page | what`."
    out = {}
    for line in filter(None, map(str.strip, text.strip().splitlines())):
        pages, what = (part.strip() for part in line.split("|"))
        out |= {f"{page.strip()}.ipynb": what for page in pages.split(",")}
    return out


def listed(name, root=ROOT):
    "One of the texts of the notebook."
    for _, source in cells(root / "nbs" / PAGE):
        m = re.search(rf'^{name} = """(.*?)"""', source, flags=re.M | re.S)
        if m: return m[1]
    raise ValueError(f"nbs/{PAGE} has no cell with the text {name}")


def items(root=ROOT): return parse(listed("PAPER", root))


def made_of(root=ROOT): return parse_pages(listed("PAGES", root))


# --- reading -------------------------------------------------------------------------------------

def cells(path):
    "Kind and source of each cell of a notebook."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        yield cell["cell_type"], "".join(cell["source"])


WORDS = {"eq": r"eqs?\.|equations?", "alg": r"algorithms?", "tab": r"tables?",
         "fig": r"figures?|figs?\."}
ANY_WORD = "|".join(WORDS.values())
SEVERAL = r"(\d+(?:\s*(?:, and|,|and|to|-|–)\s*\d+)*)(?![\w.]*\d)"    # "3", "6 and 7", "17 to 22"


def mentions(text):
    "The items that a text names: 'eq. 6 and 7, algorithm 2' -> {('eq', 6), ('eq', 7), ('alg', 2)}."
    found = set()
    # "eq. 23 to eq. 26" is a range
    text = re.sub(rf"\bto (?:{ANY_WORD})\s*(?=\d)", "to ", text, flags=re.I)
    for kind, word in WORDS.items():
        for m in re.finditer(rf"(?<!\w)(?:{word})\s*{SEVERAL}", text, flags=re.I):
            for part in re.split(r",? and|,", m[1]):
                ends = [int(o) for o in re.findall(r"\d+", part)]
                if ends: found |= {(kind, n) for n in range(ends[0], ends[-1] + 1)}
    return found


def comments(source):
    "The comments of a piece of Python."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    try: return [t.string for t in tokens if t.type == tokenize.COMMENT]
    except (tokenize.TokenError, IndentationError, SyntaxError): return re.findall(r"#.*", source)


def can_fail(source):
    "Does a piece of Python hold an assertion: `assert`, `test_close(...)`, `pytest.raises(...)`?"
    try: nodes = list(ast.walk(ast.parse(textwrap.dedent(source))))
    except SyntaxError: return False
    called = (ast.unparse(n.func) for n in nodes if isinstance(n, ast.Call))
    return any(isinstance(n, ast.Assert) for n in nodes) or any(
        re.match(r"(test|check|assert)_|.*\braises$|.*\.assert_\w+$", name) for name in called)


def claimed(source):
    "The items that the comments `# checks ...` name."
    said = [m[1] for c in comments(source) if (m := re.match(r"#\s*checks?\b(.*)", c))]
    return set().union(*map(mentions, said)) if said else set()


def checked(source): return claimed(source) if can_fail(source) else set()


def heirs(sources):
    """Private class -> the public class that it is a base of: a class defined step by step.

    Its methods are known by the public name, here and on the site."""
    found = (n for source in sources for n in ast.parse(source).body if isinstance(n, ast.ClassDef))
    below = {ast.unparse(b): n.name for n in found for b in n.bases}

    def last(name): return last(below[name]) if name.startswith("_") and name in below else name
    return {name: last(name) for name in below if name.startswith("_")}


def documented(source, known_as=()):
    "(name, items) of each public function, class and method whose docstring names any."
    public = dict(known_as)

    def walk(nodes, prefix=""):
        for n in nodes:
            if not isinstance(n, (ast.FunctionDef, ast.ClassDef)): continue
            name = public.get(n.name, n.name)
            if name.startswith("_"): continue
            if said := mentions(ast.get_docstring(n) or ""): yield prefix + name, said
            if isinstance(n, ast.ClassDef): yield from walk(n.body, f"{prefix}{name}.")
    yield from walk(ast.parse(source).body)


class Section(NamedTuple):
    text: str     # the heading
    target: str   # explicit target before it, or the id that Sphinx makes of it


def slug(heading):
    "The id of a section, as docutils makes it."
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def sections(source, now):
    "Walk through a markdown cell: yields (section, line), the section the line belongs to."
    fence, targets, waiting = None, [], []
    for line in source.split("\n"):
        bare = line.strip()
        if fence: fence = None if bare.startswith(fence) and not bare.strip(fence[0]) else fence
        elif m := re.match(r"\s*(`{3,}|~{3,}|:{3,})", line): fence = m[1]
        elif m := re.match(r"\(([\w-]+)\)=\s*$", line):
            targets.append(m[1]); waiting.append(line)
            continue
        elif m := re.match(r"#{1,6} +(.+?)\s*$", line):
            now = Section(m[1].replace("`", ""), targets[0] if targets else slug(m[1]))
        if bare:
            yield from ((now, o) for o in waiting)      # a target belongs to what follows it
            targets, waiting = [], []
        yield now, line
    yield from ((now, o) for o in waiting)


LABEL = re.compile(r"\s*:label:\s*(eq)-ddpm-(\d+)()\s*$|"
                   r"\((alg|tab|fig)-ddpm-(\d+)(-[a-z]+)?\)=\s*$")


def label(line):
    "The item that a line of Markdown labels and what follows its number, or None."
    if not (m := LABEL.match(line)): return None
    kind, number, more = (a or b for a, b in zip(m.groups()[:3], m.groups()[3:]))
    return (kind, int(number)), more or ""


def is_exported(source): return bool(re.search(r"^#\s*\|\s*export[is]?\b", source, flags=re.M))


def scan_notebook(path, page, found):
    "Add what a notebook says to a `Map`."
    now, known_as = None, heirs(o for kind, o in cells(path) if kind == "code" and is_exported(o))
    for kind, source in cells(path):
        if kind == "markdown":
            for section, line in sections(source, now):
                now = section
                if not (m := label(line)): continue
                (key, more), equation = m, "equation-" if m[0][0] == "eq" else ""
                anchor = f"{equation}{key[0]}-ddpm-{key[1]}{more}"
                kept = found.again if more else found.places
                kept[key].append(Place(page, fragment(now), anchor, now.text))
        if kind != "code": continue
        for name, said in documented(source, known_as) if is_exported(source) else ():
            place = Place(page, fragment(now), f"api-{name}", name)
            for key in said:
                if place not in found.symbols[key]: found.symbols[key].append(place)
        for key in checked(source):
            place = Place(page, fragment(now), now.target if now else "", now.text if now else page)
            if place not in found.cells[key]: found.cells[key].append(place)


def scan_tests(path, found):
    "Add what a file of tests says to a `Map`."
    source = path.read_text(encoding="utf-8")
    for n in ast.walk(ast.parse(source)):
        if not (isinstance(n, ast.FunctionDef) and n.name.startswith("test_")): continue
        body = "\n".join(source.split("\n")[n.lineno - 1:n.end_lineno])
        if not can_fail(body): continue
        said = {key for key in mentions(ast.get_docstring(n) or "") if key[0] != "tab"}
        for key in said | checked(body):
            found.tests[key].append(f"tests/{path.name}::{n.name}")


def scan(root=ROOT):
    "Read all notebooks and tests."
    found, nbs = Map(*(defaultdict(list) for _ in Map._fields)), root / "nbs"
    for path in sorted(p for p in nbs.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        scan_notebook(path, path.relative_to(nbs).as_posix(), found)
    for path in sorted((root / "tests").glob("test_*.py")): scan_tests(path, found)
    return found


def fragment(section): return section.text.replace(" ", "-") if section else ""


# --- judging -------------------------------------------------------------------------------------

def name(key): return f"{KINDS[key[0]].lower()} {key[1]}"


def parent_of(item):
    "The equation of whose derivation an item is a step."
    kind, number = item.step_of.split()
    return kind, int(number)


def lacks(item, found):
    "What an item lacks, in words; nothing if it is complete."
    key, out = (item.kind, item.number), []
    keys = [key, parent_of(item)] if item.step_of else [key]
    if key not in found.places: return ["a label"]
    pages = [p.page for p in found.places[key]]
    if len(pages) > 1: out.append("just one label: it is in " + ", ".join(pages))
    if item.kind in COMPUTED:
        if not any(k in found.symbols for k in keys): out.append("a symbol")
        if key not in found.cells and key not in found.tests: out.append("a test")
    return out


def problems(items, found):
    "All that is wrong: what items lack, and labels of things that the paper does not have."
    out = [f"{name((i.kind, i.number))} lacks {what}" for i in items for what in lacks(i, found)]
    known = {(i.kind, i.number) for i in items}
    labels = [*found.places.items(), *found.again.items()]
    return out + [f"{p.page} labels {name(key)}, which the paper does not have"
                  for key, ps in labels if key not in known for p in ps]


def places(items, found):
    "Every place that the table links to."
    for i in items:
        for part in row(i, found)[:3]: yield from part
        yield from found.again.get((i.kind, i.number), [])


@cache
def ids(path):
    "The ids and names that a page of the site has."
    return set(re.findall(r'\b(?:id|name)="([^"]+)"', path.read_text(encoding="utf-8")))


def dead(items, found, docs=ROOT / "docs", nbs=ROOT / "nbs"):
    "Links of the table that lead nowhere: in the notebooks, and on the site if it is there."
    out = []
    for p in sorted(set(places(items, found))):
        if not (nbs / p.page).exists(): out.append(f"there is no nbs/{p.page}")
        page = (docs / p.page).with_suffix(".html")
        if docs.exists() and not page.exists(): out.append(f"the site has no {page.name}")
        elif docs.exists() and p.anchor and p.anchor not in ids(page):
            out.append(f"docs/{page.relative_to(docs)} has no #{p.anchor}")
    return out


# --- the table -----------------------------------------------------------------------------------

def row(item, found):
    """Places, symbols, checking cells and tests of an item; where it has no symbol of its own, that
    of the equation that it is a step of."""
    key = (item.kind, item.number)
    parent = parent_of(item) if item.step_of else None
    own, symbols = found.places.get(key, []), found.symbols.get(key) or found.symbols.get(parent)
    beside = lambda p: (p.page != own[0].page, p.heading != own[0].heading) if own else ()
    near = lambda ps: sorted(ps, key=beside)     # those beside the derivation first
    return own, near(symbols or []), near(found.cells.get(key, [])), found.tests.get(key, [])


def link(place, text=None):
    """In JupyterLab a link to the notebook's section; tools/site.py makes it one to the page's
    anchor, which the class names."""
    page = posixpath.relpath(place.page, posixpath.dirname(PAGE))
    to = html.escape(page + (f"#{place.heading}" if place.heading else ""), quote=True)
    return f'<a href="{to}" class="at-{place.anchor}">{text or typeset(place.text)}</a>'


def typeset(text):
    "Words as HTML, with a symbol and its foot, such as $x_0$ or L_{t-1}, as they stand on paper."
    foot = lambda m: f"<i>{m[1]}</i><sub>{m[2] or m[3]}</sub>".replace("-", "−")
    return re.sub(r"\b([A-Za-z])_(?:{([^}]*)}|(\w+))", foot, html.escape(text.replace("$", "")))


def broken(name): return re.sub(r"([._:]+)", r"\1<wbr>", name)     # may end a line after a dot


def chapter(place):
    "What to call a notebook: its chapter's number, or its part of the book and its name."
    page = Path(place.page)
    if page.stem[:2].isdigit(): return f"chapter {int(page.stem[:2])}"
    part = page.parent.name.removesuffix("s")      # experiment, engine, appendix
    return f"{part} {page.stem}".strip().replace("_", " ")


def few(entries, limit=3):
    more = [f"and {len(entries) - limit} more"] if len(entries) > limit else []
    return "<br>".join(entries[:limit] + more)


HEADS = {"no.": 7, "what it says": 24, "derived or shown": 23, "computed by": 23, "checked by": 23}
# on a telephone it scrolls in its cell's output, and words stay whole
STYLE = "table-layout:fixed;width:100%;min-width:46rem;font-size:85%;overflow-wrap:break-word"


def titled(place): return link(place, typeset(f"{chapter(place)}: {place.text}"))


def is_here(item, place, made_of):
    """What an item is where a label shows it, in words.

    `made_of` says so of pages (see `parse_pages`); a page it does not know shows what is no
    picture and no measurement."""
    what = made_of.get(place.page, "")
    if not item.images or not what: return "the paper's"
    if what == "quoted": return what
    data, _, by = what.partition(": ")
    by = f" ({by})" if by else ""
    if data in item.images.split(" and ") or item.images == "any": ours = f"ours on {data}{by}"
    else: ours = f"the same code on {data}{by}: the paper's images are not here"
    return ours if item.kind == "fig" else f"quoted, and {ours}"


def nearest(item, found, made_of):
    "What an item is where the book comes nearest to the paper's; None if it is nowhere."
    key = item.kind, item.number
    places = [*found.places.get(key, []), *found.again.get(key, [])]
    said = [is_here(item, p, made_of) for p in places]
    order = "ours on", "the same code", "quoted"                # none of them: the thing itself
    rank = lambda o: next((i for i, word in enumerate(order) if word in o), -1)
    return min(said, key=rank, default=None)


def entries(item, found, made_of):
    "The cells of an item's row, as HTML."
    own, symbols, cells, tests = row(item, found)
    shown = [*own, *found.again.get((item.kind, item.number), [])]
    said = lambda p: f"<br><em>{html.escape(is_here(item, p, made_of))}</em>" if item.images else ""
    where = "<br>".join(titled(p) + said(p) for p in shown)
    if not own: where = f"<strong>missing</strong>{'<br>' if where else ''}{where}"
    names = few([f"<code>{link(p, broken(p.text))}</code>" for p in symbols])
    if symbols and (item.kind, item.number) not in found.symbols:
        names = f"<em>with {name(parent_of(item))}:</em><br>{names}"
    tested = [f"<code>{broken(html.escape(t.removeprefix('tests/')))}</code>" for t in tests]
    checks = few([*map(titled, cells), *tested])
    if shown and not checks:
        quoted = all(is_here(item, p, made_of) == "quoted" for p in shown)
        checks = f"<em>only {'quoted' if quoted else 'shown'}</em>"
    return [str(item.number), typeset(item.says), where, names, checks]


def table(items, found, kind, made_of):
    "The rows of one kind as HTML."
    columns = "".join(f'<col style="width:{w}%">' for w in HEADS.values())
    head = "".join(f"<th>{o}</th>" for o in HEADS)
    out = [f'<table class="table" style="{STYLE}"><colgroup>{columns}</colgroup>'
           f"<thead><tr>{head}</tr></thead><tbody>"]
    for i in (i for i in items if i.kind == kind):
        out.append(f"<tr>{''.join(f'<td>{o}</td>' for o in entries(i, found, made_of))}</tr>")
    return "\n".join(out) + "</tbody></table>"


if __name__ == "__main__":
    paper, found = items(), scan()
    said = problems(paper, found) + dead(paper, found)
    print("\n".join(said) or f"all {len(paper)} items of the paper have what they need")
    sys.exit(bool(said))
