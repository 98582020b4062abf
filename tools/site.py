"""The book's site and README, from the notebooks.

    python tools/site.py            write README.md and docs/
    python tools/site.py --draft    the same, but warnings (a link to a page that is not there yet)
                                    are only shown
    python tools/site.py --check    write nothing: say what is behind the notebooks, exit 1 if
                                    anything is

nbdev reads the notebooks and their directives; this script turns them into what myst-nb expects,
and Sphinx renders that with nbs/conf.py.
"""
import argparse, ast, base64, filecmp, hashlib, html, importlib.metadata, io, json, re, shutil, sys
import tempfile, tokenize
from pathlib import Path
from typing import NamedTuple

from execnb.nbio import read_nb, write_nb
from fastcore.basics import AttrDict
from markdown_it import MarkdownIt
from nbdev.config import get_config
from nbdev.process import extract_directives

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))   # the modules beside this script, wherever it is loaded from
import folds, live, notation, reading, student  # noqa: E402
from addresses import documentation  # noqa: E402
from equations import LINKED  # noqa: E402
from plain import FRONT, complete, is_view, plain  # noqa: E402
from search import write_index  # noqa: E402

NBS, DOCS, LIB = ROOT / "nbs", ROOT / "docs", ROOT / "ddpm_nb"
TOOLS = ["sphinx", "myst-nb", "myst-parser", "docutils", "pygments", "sphinx-book-theme",
         "pydata-sphinx-theme", "sphinx-design", "pillow"]

# The parts of the book: caption -> the folder of nbs/ whose notebooks they are, and the notebooks
# that come first, in this order. Others, and those listed here once they exist, follow by name.
SECTIONS = {
    "Chapters": ("", ["00_prestudy", "argument"]),
    "Experiments": ("experiments", ["swiss_roll", "digits", "cifar10", "figures", "ablations"]),
    "The engine": ("engine", ["runs", "files", "recipes", "images", "pretrained", "metrics",
                              "faster", "many", "cli"]),
    "Appendix": ("appendix", ["paper_map", "notation", "refresher", "mistakes", "teaching",
                              "plotting"]),
}


# --- which pages there are, in order -------------------------------------------------------------

def pages():
    "Caption -> the notebooks of that part, as the book orders them."
    def in_order(folder, first):
        place = lambda p: (first.index(p.stem) if p.stem in first else len(first), p.stem)
        paths = (NBS / folder).glob("[!.]*.ipynb")
        return sorted((p for p in paths if p != NBS / "index.ipynb"), key=place)
    return {caption: in_order(*part) for caption, part in SECTIONS.items()}


def docname(path): return path.relative_to(NBS).with_suffix("").as_posix()


def numbered(path, after):
    "A chapter's number with what separates it from the title; nothing for other pages."
    return f"{int(path.stem[:2])}{after}" if re.match(r"\d\d_", path.stem) else ""


def title_of(path):
    "Title and subtitle of a notebook, `# Title` and `> subtitle`, and the rest of its first cell."
    first = next((c.source for c in read_nb(path).cells if c.cell_type == "markdown"), "")
    first = first.removeprefix(FRONT).strip()
    if not (m := re.match(r"# +(.+)\n+> +(.+)", first)):
        raise SystemExit(f"{path.relative_to(ROOT)}: the first cell must be '# Title', an empty "
                         "line, '> subtitle'")
    return m[1].strip(), m[2].strip(), first[m.end():].strip()


def contents():
    "The list of pages that stands where the index says `<!-- chapters -->`."
    def entry(path):
        title, subtitle, _ = title_of(path)
        link = f"[{numbered(path, '. ')}{title}]({path.relative_to(NBS).as_posix()})"
        name = subtitle[1:2].isupper()      # FID stays FID
        return f"- {link}: {subtitle if name else subtitle[:1].lower() + subtitle[1:]}"
    return "\n\n".join("\n".join([f"**{caption}**\n", *map(entry, paths)])
                       for caption, paths in pages().items() if paths)


CONTENTS = re.compile(r"<!-- chapters\b.*?-->")


# --- what answers the reader: symbols explained in place, warm-ups, notebooks with blanks ---------

def is_chapter(name): return bool(re.match(r"\d\d_", name))


def symbols_on(nb, name, up):
    "The line of a chapter's symbols, each a link that shows its meaning where one points at it."
    text = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    found = notation.on(text, notation.symbols()) if is_chapter(name) else []
    links = " ".join(f'<a href="{up}appendix/notation.html#sym-{s.name}" aria-label="{s.name}">'
                     f"{notation.formula(s.tex)}</a>" for s in found)
    return [raw_html(f'<p class="page-symbols">Symbols: {links}</p>')] if found else []


def warm_up(cell, directives, number):
    "The form before a warm-up's folded answer, with which the page marks the reader's."
    if "warm-up:" not in directives: return []
    unit = " ".join(directives.get("unit:", []))
    said = f"#| warm-up: {' '.join(directives['warm-up:'])}"
    low, high = student.warm_up(said, student.printed_by(cell))
    return [raw_html(
        f'<form class="warm-up" data-low="{low!r}" data-high="{high!r}" autocomplete="off">'
        f'<label for="warm-up-{number}">Your answer</label> '
        f'<input id="warm-up-{number}" inputmode="decimal" size="10" aria-describedby='
        f'"said-{number}"> <span>{html.escape(unit)}</span> <button type="submit">Check</button> '
        f'<output id="said-{number}" for="warm-up-{number}"></output></form>')]


def address():
    "Where the site is, or will be; empty where no setting says."
    return documentation(*(get_config().d.get(o, "") for o in ("git_url", "doc_host")))


def requirement():
    "What a downloaded notebook installs: the name, once it is ours; else the repository, if any."
    config = get_config()
    if config.d.get("on_index") == "yes": return config.d["lib_name"]
    return f"git+{url}" if (url := config.d.get("git_url")) else ""


def as_plain(nb, name):
    "A notebook to download: no extension and no development package is needed for it."
    out = plain(nb, name, requirement(), get_config().d.get("git_url", ""), address())
    return json.dumps(out, indent=1, ensure_ascii=False) + "\n"


def write_student(extra, name, text):
    "The notebook with blanks, and the one with their answers."
    made = student.student(json.loads(text), name)
    for folder, nb in (("student", made.notebook), ("student/answers", made.answers)):
        nb = complete(json.loads(as_plain(nb, name)), name, folder, address())
        write(extra / folder / f"{name}.ipynb", json.dumps(nb, indent=1, ensure_ascii=False) + "\n")


def write_answers(extra, paths, made):
    "The chapters' notebooks with blanks, and what links show in place."
    for name in filter(is_chapter, paths):
        write_student(extra, name, paths[name].read_text(encoding="utf-8"))
    write(extra / "_static" / "hints.js", hints(made))


WORD = re.compile(r"^\((word-[\w-]+)\)=\n(.+?)(?:\n\n|\Z)", flags=re.M | re.S)
EQUATION = re.compile(r"^```\{math\}\n(?:^:\w+:.*\n)*?:label: (eq-[\w-]+)\n(.*?)^```",
                      flags=re.M | re.S)


def hints(made):
    """What a link shows in place, by the end of its address: equations as TeX, the rest as HTML.

    `made` is docname -> Page."""
    equations, words = {}, {}
    for name, page in made.items():
        for cell in page.notebook.cells:
            if cell.cell_type != "markdown": continue
            for label, tex in EQUATION.findall(cell.source):
                tex = re.sub(r"^:\w+:.*\n", "", tex, flags=re.M)
                equations[f"{name}.html#equation-{label}"] = tex.strip()
            for word, text in WORD.findall(cell.source):
                text = re.sub(r"\{\w+\}`([^`<]+?)(?: <[^>]+>)?`", r"\1", text)   # no links in it
                plain = re.sub(r"\[([^\]]+)\]\([^)]+\)|\*\*(.+?)\*\*", r"\1\2", text)
                words[f"{name}.html#{word}"] = notation.prose(plain)
        for s in page.symbols: words[f"{s.page}.html#api-{s.name}"] = s.summary
    for s in notation.symbols():
        words[f"{notation.PAGE[:-6]}.html#sym-{s.name}"] = notation.said(s)
    return f"window.bookHints = {json.dumps(dict(equations=equations, words=words))};\n"


# --- the documentation of what a cell exports ----------------------------------------------------

class Defined(NamedTuple):
    "A function or class of an exported cell."
    node: ast.FunctionDef | ast.ClassDef
    said: dict   # line -> comment, of that cell


class Symbol(NamedTuple):
    "A public name, and where it is documented."
    name: str
    page: str      # docname
    summary: str   # HTML


def definitions(source):
    "The functions and classes that a cell defines."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [Defined(n, said) for n in ast.parse(source).body if isinstance(n, kinds)]


def public(name): return not name.startswith("_")


def written(node): return "" if node is None else ast.unparse(node)


def parameters(node, said):
    "Rows (name, type, default, meaning) of a function's parameters, and what it returns."
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    rows = list(zip(plain, [""] * len(plain), [None] * (len(plain) - len(a.defaults)) + a.defaults))
    if a.vararg: rows.append((a.vararg, "*", None))
    rows += zip(a.kwonlyargs, [""] * len(a.kwonlyargs), a.kw_defaults)
    if a.kwarg: rows.append((a.kwarg, "**", None))
    out = [(stars + o.arg, written(o.annotation), written(d), said.get((d or o).end_lineno, ""))
           for o, stars, d in rows if o.arg not in ("self", "cls")]
    if written(node.returns) not in ("", "None"):
        meaning = said.get(node.returns.end_lineno, "")
        out.append(("returns", written(node.returns), "", meaning))
    return out


def fields(node, said):
    "The same rows for the fields of a dataclass."
    return [(f.target.id, written(f.annotation), written(f.value), said.get(f.end_lineno, ""))
            for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]


def methods(defined):
    "Name -> method, as a `Defined`."
    found = (n for n in defined.node.body if isinstance(n, ast.FunctionDef))
    return {n.name: Defined(n, defined.said) for n in found}


def family(defined, bases):
    "A class after those of its bases that are private: they are steps of its definition."
    above = [o for b in defined.node.bases if written(b) in bases
             for o in family(bases[written(b)], bases)]
    return [*above, defined]


def signature(name, rows):
    given = [n + (f"={d}" if d else "") for n, _, d, _ in rows if n != "returns"]
    back = next((f" → {t}" for n, t, _, _ in rows if n == "returns"), "")
    return f"{name}({', '.join(given)}){back}"


def described(node, rows):
    "Docstring and table of parameters, as HTML."
    md = MarkdownIt()
    out = md.render(ast.get_docstring(node) or "")
    if not rows: return out
    heads = "".join(f"<th>{o}</th>" for o in ("name", "type", "default", "meaning"))
    out += f'<table class="table"><thead><tr>{heads}</tr></thead><tbody>'
    for name, kind, default, meaning in rows:
        code = [f"<code>{html.escape(o)}</code>" if o else "" for o in (name, kind, default)]
        if name == "returns": code[0] = "<em>returns</em>"
        cells = "".join(f"<td>{o}</td>" for o in (*code, md.renderInline(meaning)))
        out += f"<tr>{cells}</tr>"
    return out + "</tbody></table>"


def method_card(owner, name, method):
    "The documentation of one method, as HTML."
    rows = parameters(*method)
    is_property = any("property" in written(d) for d in method.node.decorator_list)
    call = html.escape(name if is_property else signature(name, rows))
    return (f'<div class="api-method" id="api-{owner}.{name}"><p><code>{call}</code></p>'
            f"{described(method.node, rows)}</div>")


def api_card(defined, bases, module, up):
    "The folded documentation of one exported function or class, as HTML."
    node, name, own = defined.node, defined.node.name, {}
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    if kind == "class":
        line = family(defined, bases)
        own = {called: m for part in line for called, m in methods(part).items()}
    if "__init__" in own: rows = parameters(*own["__init__"])
    elif kind == "class": rows = sum((fields(*part) for part in line), [])
    else: rows = parameters(*defined)
    file, call = module.replace(".", "/"), html.escape(signature(name, rows))
    source = f'<a href="{up}source/{file}.html#{name}">source: ddpm_nb/{file}.py</a>'
    parts = [f'<details class="api" id="api-{name}">',
             f"<summary><span>{kind}</span> <code>{call}</code></summary>",
             f'<p class="api-source">{source}</p>', described(node, rows)]
    parts += [method_card(name, called, m) for called, m in own.items() if public(called)]
    return "".join(parts) + "</details>"


# --- a notebook as myst-nb wants it --------------------------------------------------------------

class Page(NamedTuple):
    "A notebook made ready."
    notebook: AttrDict
    module: str | None   # "engine.runs", if it exports one
    symbols: list        # of Symbol


def markdown(source):
    "A cell of prose, in Sphinx's words: it numbers equations itself, and knows all labels."
    source = re.sub(r"^:enumerator:.*\n", "", source, flags=re.M)
    return AttrDict(cell_type="markdown", metadata={}, source=LINKED.sub(r"{eq}`\1`", source))


def raw_html(text): return markdown("```{raw} html\n" + text.replace("\n\n", "\n") + "\n```")


def identified(cells):
    "Number the cells: nbformat wants an id for each, and the same input must give the same bytes."
    for i, cell in enumerate(cells): cell["id"] = f"cell-{i}"
    return cells


def site_links(text):
    "Links to notebooks in HTML become links to pages; the class names the anchor (paper_map.link)."
    return re.sub(r'<a href="([\w/.-]+)\.ipynb(?:#[^"]*)?" class="at-([^"]*)">',
                  lambda m: f'<a href="{m[1]}.html{"#" + m[2] if m[2] else ""}">', text)


def code_cell(cell):
    "Make a code cell what the site shows; None if it shows nothing of it."
    tags = folds.tags_of(cell)
    if tags is None: return None
    title = folds.title_of(cell) if "hide-cell" in tags else None
    cell.metadata = {"tags": tags} if tags else {}
    if title: cell.metadata["mystnb"] = dict(zip(("code_prompt_show", "code_prompt_hide"), title))
    cell.source = folds.visible_lines(cell.source)
    cell.outputs = [o for o in cell.outputs if not is_view(o)]
    if "exported" in tags: cell.outputs = []
    for data in (o.get("data", {}) for o in cell.outputs):
        if "text/html" in data: data["text/html"] = site_links("".join(data["text/html"]))
    return cell


def first_cells(path):
    "The page's head: title, subtitle, what else the first cell says; `None` where the links go."
    title, subtitle, more = title_of(path)
    head = markdown(f"# {title}\n\n```{{div}} subtitle\n{subtitle}\n```")
    return [head, None, *([markdown(more)] if more else [])]


def page_links(name, module, up, takes):
    "The line under the title: minutes to read, the notebook to download or work in, the module."
    chapter = f"Chapter {int(name[:2])} · " if is_chapter(name) else ""
    links = (f'{chapter}{takes} minutes to read · '
             f'<a href="{up}notebooks/{name}.ipynb" download>Download this notebook</a>')
    if is_chapter(name):
        links += (f' · <a href="{up}student/{name}.ipynb" download>work it: a notebook with blanks'
                  f'</a> (<a href="{up}student/answers/{name}.ipynb" download>answers</a>)')
    if module:
        href = f"{up}source/{module.replace('.', '/')}.html"
        links += f' · it is <a href="{href}"><code>ddpm_nb.{module}</code></a>'
    return raw_html(f'<p class="page-links">{links}</p>')


def filmed(cell, up, folder):
    "Make a cell's GIFs films that can be stopped, their pictures in `folder`."
    for o in cell.outputs:
        if "image/gif" not in o.get("data", {}): continue
        gif = base64.b64decode("".join(o["data"].pop("image/gif")))
        alt = o["metadata"].pop("image/gif", {}).get("alt", "")
        o["data"] = {"text/html": live.film(gif, alt, folder, f"{up}_static/films")}


def process(path, films=None):
    "One notebook: directives become tags, exported cells get their documentation."
    nb, name, cells, module, symbols, private = read_nb(path), docname(path), [], None, [], {}
    up, takes = "../" * name.count("/"), reading.minutes(reading.counted(nb))
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            text = live.listed(CONTENTS.sub(lambda _: contents(), cell.source))
            cells += [markdown(text)] if cells else first_cells(path)
        if cell.cell_type != "code": continue
        directives = extract_directives(cell, remove=False)
        if "default_exp" in directives: module = directives["default_exp"][0]
        if not code_cell(cell): continue
        if films and name != "index": filmed(cell, up, films)   # README shows the index's GIFs
        cells += [*warm_up(cell, directives, len(cells)), cell]
        if "exported" not in cell.metadata.get("tags", []): continue
        defined = definitions(cell.source)
        private |= {o.node.name: o for o in defined if not public(o.node.name)}
        named = [o for o in defined if public(o.node.name)]
        for o in named:
            summary = (ast.get_docstring(o.node) or "").split("\n\n")[0]
            symbols.append(Symbol(o.node.name, name, MarkdownIt().renderInline(summary)))
        if named: cells.append(raw_html("\n".join(api_card(o, private, module, up) for o in named)))
    links = [page_links(name, module, up, takes), *symbols_on(nb, name, up)]
    if name == "index": links = []
    nb.cells = identified([o for c in cells for o in (links if c is None else [c])])
    nb.metadata.pop("widgets", None)
    return Page(nb, module, symbols)


def source_page(path, module, page):
    "A module's source, chunk by chunk, with an anchor at each name."
    back = "../" * (module.count(".") + 1)
    by = f"nbdev from [the page that explains it]({back}{page}.ipynb)" if page else "hand"
    out = [f"---\norphan: true\n---\n\n# ddpm_nb.{module}\n\nWritten by {by}."]
    text = path.read_text(encoding="utf-8")
    for chunk in re.split(r"^# %% .*\n", text, flags=re.M)[1:] or [text]:
        names = (o.node.name for o in definitions(chunk) if public(o.node.name))
        anchors = "".join(f'<span id="{name}"></span>' for name in names)
        if anchors: out.append(raw_html(anchors).source)
        out.append(f"````````python\n{chunk.strip()}\n````````")
    return "\n\n".join(out) + "\n"


def reference(made, titles):
    "The page that lists every public name; `made` is docname -> Page."
    out = ["# All names, by page\n\n```{div} subtitle\nEvery public function and class of the "
           "package, and where it is derived\n```"]
    for name, page in made.items():
        rows = [f'<li><a href="{name}.html#api-{s.name}"><code>{s.name}</code></a> {s.summary}</li>'
                for s in page.symbols]
        if not rows: continue
        listed = raw_html('<ul class="names">' + "\n".join(rows) + "</ul>").source
        out.append(f"## {titles[name]}\n\n`ddpm_nb.{page.module}`\n\n{listed}")
    return "\n\n".join(out) + "\n"


def toctrees(titles):
    "The sidebar: one list a part of the book."
    def entry(path): return f"{numbered(path, ' · ')}{titles[docname(path)]} <{docname(path)}>"
    out = []
    for caption, paths in pages().items():
        entries = [entry(p) for p in paths] + (["reference"] if caption == "Appendix" else [])
        lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```"]
        if entries: out.append("\n".join(lines))
    return "\n\n".join(out)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def prepare(work):
    "Write the Sphinx source tree, and beside it, in extra/, what is published as it is."
    paths = {docname(p): p for p in [NBS / "index.ipynb", *sum(pages().values(), [])]}
    titles = {name: title_of(p)[0] for name, p in paths.items()}
    films = work.parent / "extra" / "_static" / "films"
    made = {name: process(p, films) for name, p in paths.items()}
    live.write(work / "static")    # conf.py tells Sphinx
    index = made["index"].notebook
    index.cells = identified([*index.cells, markdown(toctrees(titles))])
    for name, page in made.items():
        target = work / f"{name}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_nb(page.notebook, target)
        nb = json.loads(paths[name].read_text(encoding="utf-8"))
        write(work.parent / "extra" / "notebooks" / f"{name}.ipynb", as_plain(nb, name))
    homes = {page.module: name for name, page in made.items() if page.module}
    for path in sorted(LIB.rglob("*.py")):
        if path.name.startswith("_"): continue
        file = path.relative_to(LIB).with_suffix("")
        module = ".".join(file.parts)
        text = source_page(path, module, homes.get(module))
        write(work / "source" / file.with_suffix(".md"), text)
    write_answers(work.parent / "extra", paths, made)
    write(work / "reference.md", reference(made, titles))
    links = {"modules": homes, "symbols": {}}    # name -> the pages that document one of that name
    for page in made.values():
        for s in page.symbols: links["symbols"].setdefault(s.name, []).append(s.page)
    write(work / "symbols.json", json.dumps(links, indent=1))


def fingerprint(work):
    """What the pages are made of: the prepared sources, Sphinx's configuration, what is done after
    it, the tools' versions. (Films are left out: Pillow's versions pack them each in its way.)"""
    digest, extra = hashlib.sha256(), work.parent / "extra"
    static = [NBS / "conf.py", *(NBS / "_static").rglob("*")]
    text = (f for f in extra.rglob("*") if f.suffix in (".ipynb", ".js", ".html"))
    after = [Path(__file__), Path(__file__).with_name("search.py")]
    for base, files in ((work, work.rglob("*")), (NBS, static), (extra, text), (ROOT, after)):
        for f in sorted(f for f in files if f.is_file()):
            digest.update(f.relative_to(base).as_posix().encode() + b"\0" + f.read_bytes())
    versions = {t: importlib.metadata.version(t) for t in TOOLS}
    return {"inputs": digest.hexdigest(), "tools": versions}


ICON = re.compile(r'(?:"([a-z\d-]+)"|([a-z\d]+)):\[\d+,\d+,\[[^]]*\],"[0-9a-f]+",'
                  r'(?:"[^"]*"|\[[^]]*\])\],?')


def keep_icons(out):
    "Of the theme's two thousand icons, 1.5 MB that every page loads, those that the pages show."
    pages = (p.read_text(encoding="utf-8") for p in out.rglob("*.html"))
    shown = {name for text in pages for name in re.findall(r"\bfa-([a-z\d-]+)", text)}
    script = out / "_static/scripts/fontawesome.js"
    text = script.read_text(encoding="utf-8")
    script.write_text(ICON.sub(lambda m: m[0] if (m[1] or m[2]) in shown else "", text),
                      encoding="utf-8")


COLOR = re.compile(r"^(html\S+) \.highlight ?(?:\.(\w+))? \{ (?:background: \S+; )?color: (\S+) \}",
                   flags=re.M)


def uncoloured(css):
    "The classes of code that have the colour of the text around them, in light and in dark."
    colours = {}                     # class -> {theme: colour}; "" is the text itself
    for theme, name, colour in COLOR.findall(css): colours.setdefault(name, {})[theme] = colour
    return {name for name, found in colours.items() if name and found == colours[""]}


def keep_spans(out):
    "Of the spans around the words of code, a third of all pages, those that give them a colour."
    names = uncoloured((out / "_static/pygments.css").read_text(encoding="utf-8"))
    span = re.compile(rf'<span class="(?:{"|".join(sorted(names))})">([^<]*)</span>')
    block = re.compile(r'(?<=<pre>)<span></span>.*?(?=</pre>)', flags=re.S)
    for page in out.rglob("*.html"):
        text = block.sub(lambda m: span.sub(r"\1", m[0]), page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")


def keep_together(out):
    "In tables, a number and its error."
    entry = re.compile(r"<td.*?</td>", flags=re.S)
    together = lambda m: re.sub(r"(?<=[\d%]) ± (?=\d)", "\u00a0±\u00a0", m[0])
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(entry.sub(together, text), encoding="utf-8")


def without_scripts(out):
    "Where no script runs the pages have the light theme, and no form that would not answer."
    hidden = "<noscript><style>form.warm-up { display: none; }</style></noscript>"
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        text = text.replace('data-theme="auto"', 'data-theme="light"', 1)
        page.write_text(text.replace("</head>", f"  {hidden}\n</head>", 1), encoding="utf-8")


def build(work, out, strict=True):
    "Run Sphinx, and leave out what no page uses. Exits with Sphinx's status if that is not 0."
    from sphinx.cmd.build import main as sphinx
    mark = fingerprint(work)
    options = ["-W", "--keep-going"] if strict else []
    status = sphinx(["-q", "-b", "html", "-c", str(NBS), "-d", str(work.parent / "doctrees"),
                     *options, str(work), str(out)])
    if status: sys.exit(status)
    shutil.copytree(work.parent / "extra", out, dirs_exist_ok=True)
    keep_icons(out)
    keep_spans(out)
    keep_together(out)
    without_scripts(out)
    write_index(out)
    useless = [*out.rglob("*.map"), *(out / "_static").glob("*macros.html"), out / ".buildinfo",
               out / "objects.inv", *out.rglob("fa-brands-*.woff2")]
    for file in useless: file.unlink(missing_ok=True)
    for folder in (".doctrees", "jupyter_execute", "_sources", "_static/locales"):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / ".nojekyll").touch()
    (out / "build.json").write_text(json.dumps(mark, indent=1) + "\n")


# --- README --------------------------------------------------------------------------------------

def readme():
    "README.md from nbs/index.ipynb: links and pictures are those of the site."
    site = address() or "docs"
    out = ["<!-- Written by `make docs` from nbs/index.ipynb: edit that. -->"]
    for cell in read_nb(NBS / "index.ipynb").cells:
        d = extract_directives(cell, remove=False) if cell.cell_type == "code" else {}
        if "hide" in d: continue
        if cell.cell_type == "markdown":
            text = CONTENTS.sub(lambda _: contents(), cell.source)
            page = r"\]\((?!\w+:|#|/|\.\./)([^)\s#]+)\.ipynb(#[^)\s]+)?\)"
            text = re.sub(page, rf"]({site}/\1.html\2)", text)
            out.append(text.replace("](../", "]("))
        elif cell.cell_type == "code":
            code = folds.visible_lines(cell.source).strip()
            if d.get("echo:", [""])[0] != "false": out.append(f"```python\n{code}\n```")
            for o in cell.outputs: out += shown(o)
    return "\n\n".join(out) + "\n"


def shown(output):
    "One output as Markdown: a picture where there is one, else text."
    for mime, ext in (("image/png", "png"), ("image/gif", "gif")):
        if mime not in output.get("data", {}): continue
        data = base64.b64decode("".join(output["data"][mime]))
        alt = output["metadata"].get(mime, {}).get("alt", "")
        return [f"![{alt}](docs/_images/{hashlib.sha256(data).hexdigest()}.{ext})"]
    text = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    if not text.strip() or output.get("name") == "stderr": return []
    return ["\n".join("    " + line for line in text.rstrip().split("\n"))]


# --- the command ---------------------------------------------------------------------------------

def behind(work, out):
    "What differs between the site as committed and as the notebooks make it."
    mark = fingerprint(work)
    kept = json.loads((DOCS / "build.json").read_text()) if (DOCS / "build.json").exists() else {}
    if kept.get("inputs") != mark["inputs"]:
        return ["docs/ was rendered from other notebooks than these"]
    if kept["tools"] != mark["tools"]:
        print("docs/ was rendered with other versions of Sphinx and its themes: compared by its "
              "sources only")
        return []
    names = lambda base: {f.relative_to(base).as_posix() for f in base.rglob("*") if f.is_file()}
    new, old = names(out), names(DOCS)
    same = lambda f: filecmp.cmp(out / f, DOCS / f, shallow=False)
    groups = {"is missing": sorted(new - old), "is not rendered by anything": sorted(old - new),
              "differs": [f for f in sorted(new & old) if not same(f)]}
    return [f"docs/{f} {why}" for why, files in groups.items() for f in files]


def check(work, out, text):
    "Say what is behind the notebooks; exits with it if anything is."
    said, kept = behind(work, out), ROOT / "README.md"
    if not kept.exists() or kept.read_text(encoding="utf-8") != text:
        said.append("README.md differs from nbs/index.ipynb")
    if said: sys.exit("\n".join(said[:20] + ["Run `make docs` and commit what it writes."]))
    print("README.md and docs/ are in step with the notebooks")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is behind")
    parser.add_argument("--draft", action="store_true", help="show warnings, do not stop at them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        work, out = Path(tmp) / "source", Path(tmp) / "docs"
        work.mkdir()
        prepare(work)
        build(work, out, strict=not args.draft)
        if args.check: return check(work, out, readme())
        write(ROOT / "README.md", readme())
        shutil.rmtree(DOCS, ignore_errors=True)
        shutil.move(out, DOCS)
    size = sum(f.stat().st_size for f in DOCS.rglob("*") if f.is_file()) / 2**20
    count = len(list(DOCS.rglob("*.html")))
    print(f"README.md and docs/ are written: {count} pages, {size:.1f} MiB; open docs/index.html")


if __name__ == "__main__": main()
