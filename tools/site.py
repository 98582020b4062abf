"""The book's site and README, from the notebooks.

    python tools/site.py            write README.md and docs/
    python tools/site.py --draft    the same, but warnings (a link to a chapter that is not there yet) are only shown
    python tools/site.py --check    write nothing: say what is behind the notebooks, exit 1 if anything is

nbdev reads the notebooks and their directives; this script turns them into what myst-nb expects, and Sphinx
renders that with nbs/conf.py.
"""
import argparse, ast, filecmp, hashlib, html, importlib.metadata, io, json, re, shutil, sys, tempfile, tokenize
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from fastcore.basics import AttrDict
from markdown_it import MarkdownIt
from nbdev.process import extract_directives

ROOT = Path(__file__).resolve().parent.parent
NBS, DOCS, LIB = ROOT / "nbs", ROOT / "docs", ROOT / "ddpm_nb"
EXPERIMENTS = ["swiss_roll", "digits", "cifar10", "figures", "ablations"]
APPENDICES = ["paper_map", "plotting"]
TOOLS = ["sphinx", "myst-nb", "myst-parser", "docutils", "pygments", "sphinx-book-theme", "pydata-sphinx-theme",
         "sphinx-design"]


# --- which pages there are, in order ---------------------------------------------------------------------------------

def in_order(paths, first):
    "Sort paths: the names in `first` in that order, then the others by name."
    return sorted(paths, key=lambda p: (first.index(p.stem) if p.stem in first else len(first), p.stem))


def pages():
    "The notebooks as the book orders them: index, chapters, experiments, appendices."
    top = {p for p in NBS.glob("*.ipynb")}
    chapters = {p for p in top if re.match(r"\d\d_", p.name)}
    appendices = top - chapters - {NBS / "index.ipynb"}
    experiments = (NBS / "experiments").glob("*.ipynb")
    return {"Chapters": in_order(chapters, []), "Experiments": in_order(experiments, EXPERIMENTS),
            "Appendices": in_order(appendices, APPENDICES)}


def docname(path): return path.relative_to(NBS).with_suffix("").as_posix()


def title_of(path):
    "A notebook's title and subtitle, `# Title` and `> subtitle`, and what else its first cell says."
    first = next((c.source for c in read_nb(path).cells if c.cell_type == "markdown"), "")
    if not (m := re.match(r"# +(.+)\n+> +(.+)", first.strip())):
        raise SystemExit(f"{path.relative_to(ROOT)}: the first cell must be '# Title', an empty line, '> subtitle'")
    return m[1].strip(), m[2].strip(), first.strip()[m.end():].strip()


def contents():
    "The list of chapters that stands where the index says `<!-- chapters -->`."
    out = []
    for caption, paths in pages().items():
        if not paths: continue
        out.append(f"**{caption}**\n")
        for p in paths:
            (title, subtitle, _), number = title_of(p), f"{int(p.stem[:2])}. " if re.match(r"\d\d_", p.stem) else ""
            link = f"[{number}{title}]({p.relative_to(NBS).as_posix()})"
            out.append(f"- {link}: {subtitle[:1].lower() + subtitle[1:]}")
        out.append("")
    return "\n".join(out)


CONTENTS = re.compile(r"<!-- chapters\b.*?-->")


# --- the documentation of what a cell exports ------------------------------------------------------------------------

def comments(source):
    "Line number -> comment."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def parameters(node, said):
    "Rows (name, type, default, meaning) of a function's parameters, or of a dataclass's fields."
    text = lambda o: "" if o is None else ast.unparse(o)
    if isinstance(node, ast.ClassDef):
        return [(f.target.id, text(f.annotation), text(f.value), said.get(f.end_lineno, "")) for f in node.body
                if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    rows = [(o, o.arg, d) for o, d in zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults)]
    if a.vararg: rows.append((a.vararg, "*" + a.vararg.arg, None))
    rows += [(o, o.arg, d) for o, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: rows.append((a.kwarg, "**" + a.kwarg.arg, None))
    out = []
    for o, name, default in rows:
        if name in ("self", "cls"): continue
        out.append((name, text(o.annotation), text(default), said.get((default or o).end_lineno, "")))
    if node.returns is not None and text(node.returns) != "None":
        out.append(("returns", text(node.returns), "", said.get(node.returns.end_lineno, "")))
    return out


def signature(node, rows):
    given = [n + (f"={d}" if d else "") for n, _, d, _ in rows if n != "returns"]
    back = next((f" → {t}" for n, t, _, _ in rows if n == "returns"), "")
    return f"{node.name}({', '.join(given)}){back}"


def described(node, rows):
    "Docstring and table of parameters, as HTML."
    md = MarkdownIt()
    out = md.render(ast.get_docstring(node) or "")
    if rows:
        heads = "".join(f"<th>{o}</th>" for o in ("name", "type", "default", "meaning"))
        out += f'<table class="table"><thead><tr>{heads}</tr></thead><tbody>'
        for name, kind, default, meaning in rows:
            code = "".join(f"<td>{f'<code>{html.escape(o)}</code>' if o else ''}</td>" for o in (kind, default))
            name = "<em>returns</em>" if name == "returns" else f"<code>{html.escape(name)}</code>"
            out += f"<tr><td>{name}</td>{code}<td>{md.renderInline(meaning)}</td></tr>"
        out += "</tbody></table>"
    return out


def api_card(node, said, module, up):
    "The folded documentation of one exported function or class, as HTML."
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)] if kind == "class" else []
    rows = parameters(next((n for n in methods if n.name == "__init__"), node), said)
    source = f'<a href="{up}source/{module}.html#{node.name}">source: ddpm_nb/{module}.py</a>'
    out = [f'<details class="api" id="api-{node.name}">',
           f'<summary><span>{kind}</span> <code>{html.escape(signature(node, rows))}</code></summary>',
           f'<p class="api-source">{source}</p>', described(node, rows)]
    for m in methods:
        if m.name.startswith("_"): continue
        rows = parameters(m, said)
        call = signature(m, rows) if not any(getattr(d, "id", "") == "property" for d in m.decorator_list) else m.name
        out.append(f'<div class="api-method" id="api-{node.name}.{m.name}"><p><code>{html.escape(call)}</code></p>')
        out.append(described(m, rows) + "</div>")
    return "".join(out) + "</details>"


def exported(source):
    "The public functions and classes that a cell defines."
    defined = (n for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)))
    return [n for n in defined if not n.name.startswith("_")]


# --- a notebook as myst-nb wants it ----------------------------------------------------------------------------------

def markdown(source): return AttrDict(cell_type="markdown", metadata={}, source=source)


def identified(cells):
    "Number the cells: nbformat wants an id for each, and the same input must give the same bytes."
    for i, cell in enumerate(cells): cell["id"] = f"cell-{i}"
    return cells


def site_links(text):
    "Links to notebooks in a cell's HTML become links to pages; the class names the anchor (tools/paper_map.py)."
    return re.sub(r'<a href="([\w/.-]+)\.ipynb(?:#[^"]*)?" class="at-([^"]*)">',
                  lambda m: f'<a href="{m[1]}.html{"#" + m[2] if m[2] else ""}">', text)


def raw_html(text): return markdown("```{raw} html\n" + text.replace("\n\n", "\n") + "\n```")


def process(path, symbols):
    "One notebook: directives become tags, the title gets its subtitle, exported cells their documentation."
    nb, name, cells, module = read_nb(path), docname(path), [], None
    up = "../" * name.count("/")
    title, subtitle, more = title_of(path)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            if cells: cells.append(markdown(CONTENTS.sub(lambda _: contents(), cell.source)))
            else: cells = [markdown(f"# {title}\n\n```{{div}} subtitle\n{subtitle}\n```"), None]   # None: line of links
            if len(cells) == 2 and more: cells, more = [*cells, markdown(more)], ""
            continue
        if cell.cell_type != "code": continue
        d = extract_directives(cell, remove=False)
        if "default_exp" in d: module = d["default_exp"][0]
        flag = lambda key, value: d.get(key + ":", d.get(key, [""]))[:1] == [value]
        if d.keys() & {"hide", "default_exp"} or flag("include", "false"): continue
        lines = [o for o in cell.source.split("\n") if not re.search(r"#\|\s*hide_line\s*$", o)]
        while lines and (re.match(r"\s*#\s*\|", lines[0]) or not lines[0].strip()): lines.pop(0)
        cell.source = "\n".join(lines)
        tags = [t for t, on in (("remove-input", flag("echo", "false")), ("hide-cell", flag("code-fold", "true")),
                                ("remove-output", flag("output", "false")),
                                ("exported", d.keys() & {"export", "exports"})) if on]
        cell.metadata = {"tags": tags} if tags else {}
        cell.outputs = [o for o in cell.outputs if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]
        for o in cell.outputs:
            if "text/html" in o.get("data", {}): o["data"]["text/html"] = site_links("".join(o["data"]["text/html"]))
        if "exported" in tags: cell.outputs = []
        cells.append(cell)
        if "exported" in tags:
            said = comments(cell.source)
            nodes = exported(cell.source)
            for n in nodes:
                summary = (ast.get_docstring(n) or "").split("\n\n")[0]
                symbols[n.name] = (name, f"api-{n.name}", MarkdownIt().renderInline(summary))
            if nodes: cells.append(raw_html("\n".join(api_card(n, said, module, up) for n in nodes)))
    links = f'<p class="page-links"><a href="{up}notebooks/{name}.ipynb" download>Download this notebook</a>'
    if module: links += f' · it is <a href="{up}source/{module}.html"><code>ddpm_nb.{module}</code></a>'
    links = [raw_html(links + "</p>")] if name != "index" else []
    nb.cells = identified([o for c in cells for o in (links if c is None else [c])])
    nb.metadata.pop("widgets", None)
    return nb


def bare(path):
    "The notebook to download: as it is, without its outputs."
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if cell["cell_type"] == "code": cell["outputs"], cell["execution_count"] = [], None
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def source_page(path):
    "A module's source, chunk by chunk, with an anchor at each name."
    out = [f"---\norphan: true\n---\n\n# ddpm_nb.{path.stem}\n\nWritten by nbdev from the book's notebook."]
    for chunk in re.split(r"^# %% .*\n", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
        anchors = "".join(f'<span id="{n.name}"></span>' for n in exported(chunk))
        if anchors: out.append(raw_html(anchors).source)
        out.append(f"````````python\n{chunk.strip()}\n````````")
    return "\n\n".join(out) + "\n"


def reference(symbols, titles):
    "The page that lists every public name."
    out = ["# All names, by chapter\n\n```{div} subtitle\n"
           "Every public function and class of the package, and where it is derived\n```"]
    for page, title in titles.items():
        rows = [f'<li><a href="{page}.html#{anchor}"><code>{name}</code></a> {summary}</li>'
                for name, (where, anchor, summary) in symbols.items() if where == page]
        if rows: out.append(f"## {title}\n\n" + raw_html('<ul class="names">' + "\n".join(rows) + "</ul>").source)
    return "\n\n".join(out) + "\n"


def prepare(work):
    "Write the Sphinx source tree."
    symbols, titles, toc = {}, {}, []
    everything = [NBS / "index.ipynb", *sum(pages().values(), [])]
    for path in everything:
        nb = process(path, symbols)
        titles[docname(path)] = title_of(path)[0]
        target = work / path.relative_to(NBS)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.stem == "index" and path.parent == NBS: index, index_target = nb, target
        else: write_nb(nb, target)
        download = work.parent / "extra" / "notebooks" / path.relative_to(NBS)
        download.parent.mkdir(parents=True, exist_ok=True)
        download.write_text(bare(path), encoding="utf-8")
    number = lambda p: f"{int(p.stem[:2])} · " if re.match(r"\d\d_", p.stem) else ""
    entry = lambda p: f"{number(p)}{titles[docname(p)]} <{docname(p)}>"
    for caption, paths in pages().items():
        entries = [entry(p) for p in paths] + (["reference"] if caption == "Appendices" else [])
        if entries: toc.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(entries) + "\n```")
    index.cells = identified([*index.cells, markdown("\n\n".join(toc))])
    write_nb(index, index_target)
    (work / "source").mkdir()
    for path in sorted(LIB.glob("*.py")):
        if path.name.startswith("_"): continue
        (work / "source" / f"{path.stem}.md").write_text(source_page(path), encoding="utf-8")
    (work / "reference.md").write_text(reference(symbols, titles), encoding="utf-8")
    (work / "symbols.json").write_text(json.dumps(symbols, indent=1), encoding="utf-8")


def fingerprint(work):
    "What the pages are made of: the prepared sources, Sphinx's configuration, and the versions of the tools."
    digest = hashlib.sha256()
    static = [NBS / "conf.py", *(NBS / "_static").rglob("*")]
    for base, files in ((work, work.rglob("*")), (NBS, static)):
        for f in sorted(f for f in files if f.is_file()):
            digest.update(f.relative_to(base).as_posix().encode() + b"\0" + f.read_bytes())
    return {"inputs": digest.hexdigest(), "tools": {t: importlib.metadata.version(t) for t in TOOLS}}


def build(work, out, strict=True):
    "Run Sphinx, and leave out what no page uses. Exits with Sphinx's status if that is not 0."
    from sphinx.cmd.build import main as sphinx
    mark = fingerprint(work)
    status = sphinx(["-q", "-b", "html", "-c", str(NBS), "-d", str(work.parent / "doctrees"),
                     *(["-W", "--keep-going"] if strict else []), str(work), str(out)])
    if status: sys.exit(status)
    shutil.copytree(work.parent / "extra", out, dirs_exist_ok=True)
    useless = [*out.rglob("*.map"), *(out / "_static").glob("*macros.html"), out / ".buildinfo", out / "objects.inv"]
    for file in useless: file.unlink(missing_ok=True)
    for folder in (".doctrees", "jupyter_execute", "_sources"): shutil.rmtree(out / folder, ignore_errors=True)
    (out / ".nojekyll").touch()
    (out / "build.json").write_text(json.dumps(mark, indent=1) + "\n")


# --- README ----------------------------------------------------------------------------------------------------------

def readme():
    "README.md from nbs/index.ipynb: links lead into nbs/, pictures are those of the site."
    out = ["<!-- Written by `make docs` from nbs/index.ipynb: edit that. -->"]
    for cell in read_nb(NBS / "index.ipynb").cells:
        d = extract_directives(cell, remove=True) if cell.cell_type == "code" else {}
        if "hide" in d: continue
        if cell.cell_type == "markdown":
            text = CONTENTS.sub(lambda _: contents(), cell.source)
            out.append(re.sub(r"\]\((?!\w+:|#|/|\.\./)([^)\s]+)\)", r"](nbs/\1)", text).replace("](../", "]("))
        elif cell.cell_type == "code":
            code = "\n".join(o for o in cell.source.split("\n") if not re.match(r"\s*#\s*\|", o)).strip()
            if d.get("echo:", [""])[0] != "false": out.append(f"```python\n{code}\n```")
            for o in cell.outputs: out += shown(o)
    return "\n\n".join(out) + "\n"


def shown(output):
    "One output as Markdown: a picture where there is one, else text."
    import base64
    for mime, ext in (("image/png", "png"), ("image/gif", "gif")):
        if mime in output.get("data", {}):
            data = base64.b64decode("".join(output["data"][mime]))
            alt = output["metadata"].get(mime, {}).get("alt", "")
            return [f"![{alt}](docs/_images/{hashlib.sha256(data).hexdigest()}.{ext})"]
    text = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    if not text.strip() or output.get("name") == "stderr": return []
    return ["\n".join("    " + line for line in text.rstrip().split("\n"))]


# --- the command -----------------------------------------------------------------------------------------------------

def behind(work, out):
    "What differs between the site as committed and as the notebooks make it."
    mark = fingerprint(work)
    kept = json.loads((DOCS / "build.json").read_text()) if (DOCS / "build.json").exists() else {}
    if kept.get("inputs") != mark["inputs"]: return ["docs/ was rendered from other notebooks than these"]
    if kept["tools"] != mark["tools"]:
        print("docs/ was rendered with other versions of Sphinx and its themes: compared by its sources only")
        return []
    names = lambda base: {f.relative_to(base).as_posix() for f in base.rglob("*") if f.is_file()}
    new, old = names(out), names(DOCS)
    differ = [f for f in sorted(new & old) if not filecmp.cmp(out / f, DOCS / f, shallow=False)]
    groups = {"is missing": sorted(new - old), "is not rendered by anything": sorted(old - new), "differs": differ}
    return [f"docs/{f} {why}" for why, files in groups.items() for f in files]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is behind")
    parser.add_argument("--draft", action="store_true", help="show warnings, but do not stop at them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        work, out = Path(tmp) / "source", Path(tmp) / "docs"
        work.mkdir()
        prepare(work)
        build(work, out, strict=not args.draft)
        text = readme()
        if args.check:
            said = behind(work, out)
            kept = (ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else ""
            if kept != text: said.append("README.md differs from nbs/index.ipynb")
            if said: sys.exit("\n".join(said[:20] + ["Run `make docs` and commit what it writes."]))
            return print("README.md and docs/ are in step with the notebooks")
        (ROOT / "README.md").write_text(text, encoding="utf-8")
        shutil.rmtree(DOCS, ignore_errors=True)
        shutil.move(out, DOCS)
    size = sum(f.stat().st_size for f in DOCS.rglob("*") if f.is_file())
    count = len(list(DOCS.rglob("*.html")))
    print(f"README.md and docs/ are written: {count} pages, {size / 2**20:.1f} MiB; open docs/index.html")


if __name__ == "__main__": main()
