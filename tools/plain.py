"""A notebook to download: no extension, no checkout and no development package is needed to read
or to run it.

In nbs/ the prose is MyST: equations in `{math}` fences, folds and boxes as directives, references
by label. Colab, VS Code, GitHub, Notebook 7 and nbconvert know none of it. `plain` says the same in
what all of them show: `$$ ... \\tag{4} $$`, "(4)", `<details>`, a bold line; and puts a cell in
front that installs the package where it is missing. Links between pages lead to the site, if it has
an address, since a notebook that was downloaded alone has no others beside it.
"""
import base64, html, importlib.util, io, json, posixpath, re
from functools import cache
from pathlib import Path

import live
from addresses import github

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"

INSTALL = """\
# This notebook uses ddpm_nb; the next lines install it where it is missing.
import importlib.util
if importlib.util.find_spec("ddpm_nb") is None:
    %pip install --quiet {requirement}"""

MISSING = """\
# This notebook uses ddpm_nb.
import importlib.util
if importlib.util.find_spec("ddpm_nb") is None:
    raise ModuleNotFoundError("ddpm_nb is not here: `pip install .` in a checkout of it first")"""

# What the checks of the book use of fastcore, for those who do not have it.
CHECKS = {
    "test_eq": '''\
def test_eq(a, b):
    "Are the two equal? AssertionError if not."
    def same(a, b):
        if hasattr(a, "shape") or hasattr(b, "shape"):
            return np.array_equal(np.asarray(a), np.asarray(b))
        if not isinstance(a, (list, tuple)) or not isinstance(b, (list, tuple)): return a == b
        return len(a) == len(b) and all(map(same, a, b))
    assert same(a, b), f"{a!r} is not {b!r}"''',
    "test_close": '''\
def test_close(a, b, eps=1e-5):
    "Are the two equal to within `eps`? AssertionError if not."
    def number(v):
        if isinstance(v, (list, tuple)): return np.array([*map(float, v)])
        return np.asarray(v.detach() if hasattr(v, "detach") else v)
    a, b = number(a), number(b)
    assert np.abs(a - b).max() <= eps, f"{a} is not within {eps} of {b}"''',
    "test_fail": '''\
def test_fail(f, msg="", contains="", args=None, kwargs=None):
    "Does f fail, in words that hold `contains`? AssertionError if not."
    try: f(*(args or ()), **(kwargs or {}))
    except Exception as e: assert contains in str(e), f"{e} does not say {contains!r}"
    else: raise AssertionError(f"it did not fail {msg}")'''}


# --- equations -----------------------------------------------------------------------------------

# JupyterLab is told in a page's first lines to number no equation on its own account.
FRONT = "---\nnumbering:\n  equation: false\n---\n"
MATH = re.compile(r"^```\{math\}\n(?P<options>(?::\w+:[^\n]*\n)*)(?P<body>.*?)\n?```$", re.M | re.S)


@cache
def _shown_number():
    "How the site numbers equations: nbs/conf.py says it, once for all."
    spec = importlib.util.spec_from_file_location("conf", NBS / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    return conf.shown_number


def prose(nb): return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown"]


def labels(nb):
    "The labels of a notebook's equations, in order."
    options = (m["options"] for text in prose(nb) for m in MATH.finditer(text))
    return [m[1] for o in options for m in [re.search(r"^:label: *(\S+)", o, re.M)] if m]


def numbers(nb, page):
    "Label -> number, of a notebook's equations; `page` is its path in nbs/, without suffix."
    out, own = {}, 0
    for label in labels(nb):
        out[label] = _shown_number()(label, page, own)
        own += not label.startswith("eq-ddpm-")
    return out


def notebooks():
    "Path, page and content of each notebook of the book; a page is the path in nbs/, bare."
    for path in sorted(NBS.rglob("[!.]*.ipynb")):
        if ".ipynb_checkpoints" in path.parts: continue
        page = path.relative_to(NBS).with_suffix("").as_posix()
        yield path, page, json.loads(path.read_text(encoding="utf-8"))


@cache
def equations():
    "Label -> (page, number), of all equations of the book."
    return {label: (page, number) for _, page, nb in notebooks()
            for label, number in numbers(nb, page).items()}


@cache
def targets():
    "Label -> page, of all places that a `{ref}` may lead to."
    target = re.compile(r"^\(([\w-]+)\)=$", re.M)
    return {label: page for _, page, nb in notebooks() for text in prose(nb)
            for label in target.findall(text)}


def _display(match):
    "A fence as `$$ ... $$`, with its number."
    label = re.search(r"^:label: *(\S+)", match["options"], re.M)
    if not label: return f"$$\n{match['body'].strip()}\n$$"
    number = equations()[label[1]][1]
    return f'<a id="{label[1]}"></a>\n\n$$\n{match["body"].strip()} \\tag{{{number}}}\n$$'


# --- boxes, folds, labels ------------------------------------------------------------------------

def _is_open(line): return re.match(r"^(`{3,}|:{3,})\{([\w-]+)\} *(.*)$", line)


def _block(kind, title, inner):
    "What stands for a directive."
    if kind == "dropdown":
        return ["<details>", f"<summary>{title}</summary>", "", *inner, "", "</details>", ""]
    if kind == "div": return [f"*{' '.join(inner).strip()}*"]
    name = title or kind.capitalize()
    return [f"> **{name}**", ">", *(f"> {line}".rstrip() for line in inner)]


def _unfolded(lines):
    "Directives, from the inside out, as Markdown and HTML that every reader shows."
    out = []
    while lines:
        line = lines.pop(0)
        if not (m := _is_open(line)):
            out.append(line)
            continue
        fence, inner = m[1], []
        while lines and lines[0].rstrip() != fence: inner.append(lines.pop(0))
        if lines: lines.pop(0)
        while inner and re.match(r"^:\w[\w-]*:", inner[0]): inner.pop(0)
        out += _block(m[2], m[3].strip(), _unfolded(inner))
    return out


def link(page, to):
    "The path from one page of the book to another, both without suffix."
    up = "../" * page.count("/")
    return f"{up}{to}.ipynb"


def plain_text(text, page):
    "Prose in MyST as Markdown that needs no extension."
    text = MATH.sub(_display, text.removeprefix(FRONT))
    text = re.sub(r"^\((?P<label>[\w-]+)\)=$", r'<a id="\g<label>"></a>\n', text, flags=re.M)
    text = "\n".join(_unfolded(text.split("\n")))

    def place(to, label): return f"{'' if to == page else link(page, to)}#{label}"

    def reference(m):
        to, number = equations()[m[1]]
        return f"[({number})]({place(to, m[1])})"

    text = re.sub(r"\{eq\}`([\w-]+)`", reference, text)
    text = re.sub(r"\{ref\}`([^`<]*?) *<([\w-]+)>`",
                  lambda m: f"[{m[1]}]({place(targets()[m[2]], m[2])})", text)
    return live.listed(re.sub(r"\{(?:math|code|doc)\}`([^`]*)`", r"`\1`", text))


# --- links to other pages ------------------------------------------------------------------------

@cache
def pages(): return {page for _, page, _ in notebooks()}


def on_site(site, page, to, anchor):
    "Where that stands on the site to which a notebook's link leads; both paths without suffix."
    there = posixpath.normpath(posixpath.join(posixpath.dirname(page), to))
    if there not in pages(): return f"{site}/student/{there}.ipynb"     # a notebook of answers
    if anchor.startswith("eq-"): anchor = f"equation-{anchor}"
    return f"{site}/{there}.html{anchor and '#' + anchor}"


def linked_text(text, page, site):
    "Prose whose links to other notebooks lead to the site."
    return re.sub(r"\]\(([\w./-]+)\.ipynb(?:#([\w-]+))?\)",
                  lambda m: f"]({on_site(site, page, m[1], m[2] or '')})", text)


def linked_output(output, page, site):
    "An output whose links do; the class of a link names the anchor (paper_map.link)."
    data = output.get("data", {})
    if "text/html" not in data: return output
    to_site = lambda m: f'<a href="{on_site(site, page, m[1], html.unescape(m[2]))}">'
    text = re.sub(r'<a href="([\w./-]+)\.ipynb(?:#[^"]*)?" class="at-([^"]*)">', to_site,
                  "".join(data["text/html"]))
    return {**output, "data": {**data, "text/html": text.splitlines(keepends=True)}}


def complete(nb, page, folder, site):
    """A notebook of a chapter's exercises, its links made for `folder`, below docs/: what does not
    lie there, and what the notebook itself lacks, is in the whole notebooks."""
    text = "\n".join(prose(nb))
    own, home = set(re.findall(r'<a id="([\w-]+)">', text)), "../" * (folder.count("/") + 1)

    def to(m):
        other, label = m[1] or page, m[2] or ""
        beside = folder == "student" and re.fullmatch(r"(answers/)?\d\d_\w+", other)
        here = label in own or not re.match("(eq|sec|alg|word)-", label)
        if beside if m[1] else here: return m[0]
        if site: return f"]({on_site(site, page, other, label)})"
        return f"]({home}notebooks/{other}.ipynb{label and '#' + label})"

    for cell in nb["cells"]:
        if cell["cell_type"] != "markdown": continue
        text = re.sub(r"\]\((?:([\w./-]+)\.ipynb)?(?:#([\w-]+))?\)", to, "".join(cell["source"]))
        cell["source"] = text.splitlines(keepends=True)
    return nb


# --- code ----------------------------------------------------------------------------------------

IMPORT = re.compile(r"^from fastcore\.test import (.+)$", re.M)


def _own_checks(match):
    "The checks of fastcore that a cell imports, written out."
    names = [o.strip() for o in match[1].split(",")]
    return "import numpy as np\n\n\n" + "\n\n\n".join(CHECKS[o] for o in names) + "\n"


def plain_code(source):
    "Code without nbdev's directives, and without what only developers have."
    lines = [o for o in source.split("\n") if not re.match(r"#\s*\|", o)]
    source = "\n".join(re.sub(r"\s*#\|\s*hide_line\s*$", "", o) for o in lines).strip("\n")
    return IMPORT.sub(_own_checks, source)


def is_view(output):
    "Whether an output is a widget: without its kernel it is an error, or a line such as VBox(...)."
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def still(output):
    "An output with the last picture of an animation in its place: it moves when the cell is run."
    from PIL import Image
    data = output.get("data", {})
    if "image/gif" not in data: return output
    film = Image.open(io.BytesIO(base64.b64decode("".join(data.pop("image/gif")))))
    film.seek(film.n_frames - 1)
    film.copy().save(kept := io.BytesIO(), "PNG", optimize=True)
    data["image/png"] = base64.b64encode(kept.getvalue()).decode()
    output["metadata"] = {"image/png": output.get("metadata", {}).get("image/gif", {})}
    return output


def colab(address, page):
    "The badge that opens a page in Colab; nothing where the project has no address on GitHub."
    if not (where := github(address)): return ""
    url = f"https://colab.research.google.com/github/{where}/blob/main/docs/notebooks/{page}.ipynb"
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"\n\n[![Open in Colab]({badge})]({url})"


def plain(nb, page, requirement="", address="", site=""):
    """The notebook to download: the same prose, code and outputs; `nb` itself stays as it is.

    `requirement` is what to install, if that can be said; `address` the project's on GitHub, for
    Colab; `site` the book's, for links to its pages.
    """
    nb, cells = json.loads(json.dumps(nb)), []
    for cell in nb["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = plain_text(text, page)
            if site: text = linked_text(text, page, site)
        else: text = plain_code(text)
        if not text.strip(): continue
        cell["source"] = text.splitlines(keepends=True)
        cell["metadata"] = {}
        if "outputs" in cell:
            cell["outputs"] = [still(o) for o in cell["outputs"] if not is_view(o)]
        if site and "outputs" in cell:
            cell["outputs"] = [linked_output(o, page, site) for o in cell["outputs"]]
        cells.append(cell)
    first = cells[0]
    first["source"] = "".join(first["source"]).rstrip() + colab(address, page)
    first["source"] = first["source"].splitlines(keepends=True)
    install = INSTALL.format(requirement=requirement) if requirement else MISSING
    install = install.splitlines(keepends=True)
    cells.insert(1, dict(cell_type="code", id="install", metadata={}, source=install, outputs=[],
                         execution_count=None))
    nb["cells"] = cells
    nb["metadata"] = {"kernelspec": dict(display_name="Python 3", language="python",
                                         name="python3"),
                      "language_info": {"name": "python"}}
    return nb
