"""Where things stand, how wide and how long they are: read from notebooks and modules."""
import ast
import json
import re
import subprocess
import symtable
import sys
from functools import cache
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS, LIB = ROOT / "nbs", ROOT / "ddpm_nb"
COLUMNS = 100         # of a line of code, anywhere
LINES = 40            # of an exported cell, blank lines and directives not counted
MEDIAN = 15           # of the lines of all exported cells: below this
PUBLIC = 72           # names in the modules' `__all__`, all together: at most
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted(p for p in LIB.rglob("*.py") if p.name != "_modidx.py")   # nbdev's own index
SCRIPTS = sorted(p for folder in ("tests", "tools", "bench") for p in (ROOT / folder).glob("*.py"))


def path_id(path): return path.relative_to(ROOT).as_posix()


def cells(path):
    "The sources of a notebook's code cells."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == "code"]


def exported(path):
    return [c for c in cells(path) if re.search(r"^#\s*\|\s*export[is]?\b", c, flags=re.M)]


def code_lines(cell):
    return [line for line in cell.split("\n") if line.strip() and not re.match(r"\s*#\s*\|", line)]


# --- width and length ----------------------------------------------------------------------------

@pytest.mark.parametrize("path", NOTEBOOKS, ids=path_id)
def test_no_line_of_code_in_a_notebook_is_wider_than_the_page(path):
    wide = [line for cell in cells(path) for line in cell.split("\n") if len(line) > COLUMNS]
    assert not wide, f"{len(wide)} lines over {COLUMNS} columns:\n" + "\n".join(wide[:5])


def names_line(path):
    "The lines of `__all__` in an exported module: nbdev breaks them where it likes."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = (n for n in tree.body if isinstance(n, ast.Assign))
    found = (n for n in assigned if ast.unparse(n.targets[0]) == "__all__")
    return {i for n in found for i in range(n.lineno, n.end_lineno + 1)}


EVERYTHING = [*MODULES, *SCRIPTS, ROOT / "setup.py", NBS / "conf.py"]


@pytest.mark.parametrize("path", EVERYTHING, ids=path_id)
def test_no_line_of_a_module_a_test_or_a_tool_is_wider_than_the_page(path):
    free = names_line(path) if path in MODULES and path.name != "__init__.py" else set()
    lines = enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
    wide = [f"{i}: {line}" for i, line in lines if len(line) > COLUMNS and i not in free]
    assert not wide, f"{len(wide)} lines over {COLUMNS} columns:\n" + "\n".join(wide[:5])


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if exported(p)], ids=path_id)
def test_an_exported_cell_is_one_step(path):
    long = [c for c in exported(path) if len(code_lines(c)) > LINES]
    said = "\n".join(f"{len(code_lines(c))} lines: {code_lines(c)[0]} ..." for c in long)
    assert not long, f"{len(long)} cells of more than {LINES} lines:\n{said}"


def test_most_exported_cells_are_short():
    lengths = [len(code_lines(c)) for p in NOTEBOOKS for c in exported(p)]
    assert median(lengths) < MEDIAN


# --- colours and words keep their promise --------------------------------------------------------

RESERVED = ("#8c8c8c", "#0072b2", "#e07000", "#1a1a1a")     # written by their names only
NAMED = r"\b(?:NOISE|DATA|MODEL|TRUTH)\b"
METHODS = r"DDIM|DPM|UniPC|Adams|L_simple|fixed_|algorithm 2"


def broken_promises(cell):
    """Lines of code that use one of the four colours for what it does not stand for: x_t as noise,
    a sampler or a variance as model or data; or that write one as a number."""
    for line in cell.split("\n"):
        noisy = re.search(r"\bNOISE\b.*x_t|x_t.*\bNOISE\b|row_labels=\[[^]]*.noise.", line)
        method = re.search(rf"{NAMED}, label=[^,]*(?:{METHODS})|(?:{METHODS})[^,]*{NAMED}", line)
        number = any(o in line.lower() for o in RESERVED)
        if line.startswith(("from ", "import ")): continue
        if noisy or method or number: yield line


@pytest.mark.parametrize("line, broken", {
    'ax.plot(t, y, color=NOISE, label="$x_t$")': True, 'row_labels=["noise", "model"] * 3,': True,
    'colors={"DDIM": DATA, "UniPC": CYCLE[0]}': True, 'color=MODEL, label="L_simple")': True,
    'ax.plot(t, y, color="#0072B2")': True,
    'ax.plot(t, y, color=NOISE, label="noise")': False, 'show({"noise": x, "model": y})': False,
    'row_labels=["$x_t$", "model"] * 3,': False, 'colors={"DDIM": CYCLE[0]}': False,
    "from ddpm_nb.plotting import DATA, MODEL": False,
}.items())
def test_a_broken_promise_is_told_from_a_kept_one(line, broken):
    assert bool(list(broken_promises(line))) is broken


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem != "plotting"], ids=path_id)
def test_the_four_colours_stand_for_what_they_say(path):
    found = [line for cell in cells(path) for line in broken_promises(cell)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=path_id)
def test_chapters_are_named_by_their_number_and_not_by_their_file(path):
    "Chapter 3, which its file calls 03; in prose, and in what a cell prints."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not re.findall(r"\b[Cc]hapters? 0\d", json.dumps([c["source"] for c in found]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=path_id)
def test_there_is_one_letter_for_noise_and_one_divergence(path):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in found if c["cell_type"] == "markdown")
    others = r"\\varepsilon|\\(?:bm|mathbf)\s*\{?\\epsilon|\\boldsymbol\s*\{\\epsilon"
    kl = r"(?<!D_)\\(?:mathrm|text|operatorname)\{KL\}|D_\{?(?:KL|\\text|\\operatorname)"
    assert not re.findall(rf"{others}|{kl}", prose)


@pytest.mark.parametrize("page, what, found_by", [
    ("04_objective", "signal-to-noise", "Kingma"), ("05_sampling", "probability-flow", "Song"),
    ("05_sampling", "Heun", "Karras"), ("10_compression", "random coding", "Havasi"),
    ("10_compression", "attain the bound", "bits-back"), ("05_sampling", "tilde.beta", "LSUN")])
def test_whoever_found_it_is_named_where_it_is_explained(page, what, found_by):
    "In one paragraph; and which data the paper's code samples with which variance."
    prose = "\n\n".join(source for source, _ in markdown(NBS / f"{page}.ipynb"))
    assert any(re.search(what, p, flags=re.I) and found_by in p for p in prose.split("\n\n"))


def test_plumbing_is_folded_and_every_fold_of_the_book_has_a_title():
    """Imports and checks are folded by the build; other folds say what is in them, but for an
    exercise's answer, whose question stands above it."""
    for path in NOTEBOOKS:
        for cell in cells(path):
            if "code-fold: true" not in cell or "code-summary:" in cell: continue
            before = json.loads(path.read_text(encoding="utf-8"))["cells"]
            sources = ["".join(c["source"]) for c in before]
            above = "\n".join(sources[:sources.index(cell)])
            assert re.search(r"^#+ (?:Exercises|Warm-ups|Further)", above, flags=re.M), cell[:200]


def markdown(path):
    "A notebook's Markdown cells, each with the type of the cell after it."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    after = [c["cell_type"] for c in found[1:]] + [""]
    return [("".join(c["source"]), then) for c, then in zip(found, after)
            if c["cell_type"] == "markdown"]


BOX = "```{admonition} What goes wrong\n"


def test_no_page_keeps_what_a_library_said_of_this_machine():
    "matplotlib, where its list of fonts lacks its own; pip; PyTorch, where there is no CUDA."
    said = re.compile(r"^(findfont:|Matplotlib is building|\[notice\]|.*No CUDA runtime)", re.M)
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            texts = ["".join(o.get("text", "")) for o in cell.get("outputs", [])]
            assert not any(map(said.search, texts)), f"{path_id(path)}, {cell['id']}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=path_id)
def test_what_goes_wrong_is_a_box_and_no_heading_and_no_bold_paragraph(path):
    "One look everywhere; and the cell that shows the mistake failing follows its box."
    for source, then in markdown(path):
        other = re.findall(r"^(?:#+ .*|.*\*\*)What goes wrong.*", source, flags=re.M | re.I)
        assert not other, other
        if BOX in source and path.stem != "mistakes":
            assert then == "code" and source.rstrip().endswith("```"), source[:100]


def test_every_chapter_shows_something_going_wrong():
    boxes = {p.stem: sum(s.count(BOX) for s, _ in markdown(p)) for p in NOTEBOOKS}
    assert sum(boxes.values()) >= 40
    assert not [p for p, n in boxes.items() if p[:1] in "01" and not n]


class Scoped(ast.NodeTransformer):
    "Comprehensions become generators: the others' names are the cell's to symtable, from 3.12 on."
    def one(self, node):
        self.generic_visit(node)
        of = [node.elt] if hasattr(node, "elt") else [node.key, node.value]
        return ast.GeneratorExp(ast.Tuple(of, ast.Load()), node.generators)

    visit_ListComp = visit_SetComp = visit_DictComp = one


def shown_and_hidden(sources):
    "The symbols of a page's code cells: of those that its reader sees, and of the others."
    tables = [], []
    for cell in sources:
        unseen = re.search(r"^#\s*\|\s*(?:hide\b|echo: *false)", cell, flags=re.M)
        python = re.sub(r"^[%!].*", "", cell, flags=re.M)
        python = ast.unparse(Scoped().visit(ast.parse(python)))
        tables[bool(unseen)].append(symtable.symtable(python, "cell", "exec"))
    return tables


def bound(table):
    "The names that a cell gives a meaning to, at its top level."
    return {o.get_name() for o in table.get_symbols() if o.is_assigned() or o.is_imported()}


def used(table, top=True):
    "The names of a page that a cell looks up, within its functions too."
    own = {o.get_name() for o in table.get_symbols()
           if o.is_referenced() and (top or o.is_global())}
    return own.union(*(used(child, False) for child in table.get_children()))


def out_of_nowhere(sources):
    "Names that a visible cell uses, and that only a hidden one defines: copied, it does not run."
    shown, hidden = shown_and_hidden(sources)
    secret = set().union(*map(bound, hidden)) - set().union(*map(bound, shown))
    return sorted(secret & set().union(*map(used, shown)))


def test_a_name_out_of_nowhere_is_told_from_one_that_is_shown():
    use = "io.StringIO()"
    assert out_of_nowhere(["#| hide\nimport io", use]) == ["io"]
    assert out_of_nowhere(["#| echo: false\nimport numpy.linalg as io", use]) == ["io"]
    assert out_of_nowhere(["#| hide\ndef io(): pass", "def f(): return io()"]) == ["io"]
    fold = "#| code-fold: true\n#| code-summary: Set-up\nimport io"
    assert not out_of_nowhere([fold, use]) and not out_of_nowhere(["#| hide\nimport io", fold, use])
    assert not out_of_nowhere(["#| hide\nimport io", "%pip list", "print([io for io in 'ab'])"])
    for hidden in ("[io for io in 'ab']", "{io for io in 'ab'}", "{io: 1 for io in 'ab'}"):
        assert not out_of_nowhere([f"#| hide\n{hidden}", use]), hidden


@pytest.mark.parametrize("path", NOTEBOOKS, ids=path_id)
def test_what_a_visible_cell_uses_is_defined_where_the_reader_sees_it(path):
    found = out_of_nowhere(cells(path))
    assert not found, f"defined in hidden cells only: {', '.join(found)}"


# --- who imports whom ----------------------------------------------------------------------------

def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PACKAGES = {module_name(p) for p in MODULES if p.name == "__init__.py"}
NAMES = {module_name(p): p for p in MODULES}


@cache
def tree_of(module): return ast.parse(NAMES[module].read_text(encoding="utf-8"))


def targets(module, node):
    "What an import statement names, absolute: `from ..data import digits` -> ddpm_nb.data.digits."
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    base = module.split(".") if module in PACKAGES else module.split(".")[:-1]
    base = base[:len(base) + 1 - node.level] if node.level else []
    start = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{start}.{a.name}" for a in node.names]


def spelled(node):
    "The module that `import_module(\"...\")` names, if that is what a node is."
    called = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1]
    if called not in ("import_module", "__import__") or not node.args: return []
    first = node.args[0]
    return [first.value] if isinstance(first, ast.Constant) else []


def of_package(name):
    "The module of the package that a dotted name is in, or is."
    while name and name not in NAMES: name = name.rpartition(".")[0]
    return name


@cache
def imports(module):
    "The modules of the package that a module imports, anywhere: at its top or within a function."
    named = []
    for n in ast.walk(tree_of(module)):
        is_import = isinstance(n, ast.Import | ast.ImportFrom)
        named += targets(module, n) if is_import else spelled(n)
    return {of_package(name) for name in named} - {"", module}


def chapters():
    "Module -> the number of the chapter that exports it."
    out = {}
    for path in (p for p in NOTEBOOKS if re.match(r"\d\d_", p.name) and p.parent == NBS):
        for cell in cells(path):
            m = re.search(r"^#\s*\|\s*default_exp\s+(\S+)", cell, flags=re.M)
            if m: out["ddpm_nb." + m[1]] = int(path.name[:2])
    return out


CHAPTERS = chapters()
CODE = [m for m in NAMES if m not in PACKAGES]    # the packages' `__init__` only lead to the others
ASIDE = {"ddpm_nb.plotting", "ddpm_nb.__main__"}    # on neither shelf
PAPER = [m for m in CODE if not m.startswith("ddpm_nb.engine.") and m not in ASIDE]


def test_the_reader_of_imports_sees_them_all():
    "In every form, so that the tests below cannot be passed by the way an import is written."
    forms = {"from .images import cifar10": "ddpm_nb.engine.images.cifar10",
             "from ..data import digits": "ddpm_nb.data.digits",
             "from .. import data": "ddpm_nb.data",
             "from ddpm_nb.unet import UNet as U": "ddpm_nb.unet.UNet",
             "import ddpm_nb.unet": "ddpm_nb.unet"}
    for text, name in forms.items():
        assert targets("ddpm_nb.engine.runs", ast.parse(text).body[0]) == [name]
    call = ast.parse('importlib.import_module("ddpm_nb.unet")').body[0].value
    assert spelled(call) == ["ddpm_nb.unet"]
    assert of_package("ddpm_nb.engine.images.cifar10") == "ddpm_nb.engine.images"
    assert "ddpm_nb.diffusion" in imports("ddpm_nb.bound")


def test_every_module_of_the_papers_shelf_is_a_chapters():
    assert set(PAPER) == set(CHAPTERS)


@pytest.mark.parametrize("module", PAPER)
def test_the_paper_never_imports_the_engine(module):
    assert not [m for m in imports(module) if m.startswith("ddpm_nb.engine")]


@pytest.mark.parametrize("module", PAPER)
def test_a_chapter_imports_only_chapters_before_it(module):
    "Pictures may be drawn anywhere: `plotting` is no chapter."
    others = imports(module) - {"ddpm_nb.plotting"}
    later = [m for m in others if CHAPTERS.get(m, 99) >= CHAPTERS[module]]
    assert not later, f"chapter {CHAPTERS[module]}, {module}, imports {', '.join(later)}"


@pytest.mark.parametrize("module", CODE)
def test_a_module_asks_the_package_itself_for_nothing_but_what_it_is(module):
    "`__version__` and the like; `from ddpm_nb import UNet` would lead round through `__init__`."
    asked = [name for n in ast.walk(tree_of(module)) if isinstance(n, ast.ImportFrom)
             for name in targets(module, n) if of_package(name) in PACKAGES]
    asked += [ast.unparse(n) for n in ast.walk(tree_of(module)) if isinstance(n, ast.Attribute)
              and ast.unparse(n.value) == "ddpm_nb"]
    assert not [name for name in asked if not name.rpartition(".")[2].startswith("__")]


def cycle(graph):
    "A closed way through a graph {node: its targets}, or None."
    done, way = set(), []

    def walk(node):
        if node in way: return [*way[way.index(node):], node]
        if node in done: return None
        way.append(node)
        found = next(filter(None, map(walk, sorted(graph.get(node, ())))), None)
        way.pop()
        done.add(node)
        return found
    return next(filter(None, map(walk, sorted(graph))), None)


def test_no_module_imports_itself_by_a_detour():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) is None
    found = cycle({m: imports(m) & set(CODE) for m in CODE})
    assert not found, " -> ".join(found)


# --- one way to write a file ---------------------------------------------------------------------

MOVES = {"replace", "rename", "renames", "move"}


def renames(source):
    """Calls that move a file: `os.replace` and its like, a method `rename`, and `replace` with one
    argument, which only a path's takes: a string's takes two, a dataclass's names its own."""
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.ImportFrom) and n.module in ("os", "shutil"):
            if MOVES & {a.name for a in n.names}: yield n
        if not (isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)): continue
        name, owner, named = n.func.attr, ast.unparse(n.func.value), {k.arg for k in n.keywords}
        to_a_path = len(n.args) == 1 and not named or named == {"target"}
        if owner in ("os", "shutil"): moves = name in MOVES
        else: moves = name == "rename" or (name == "replace" and to_a_path)
        if moves and owner != "dataclasses": yield n


@pytest.mark.parametrize("code, moves", {
    "os.replace(part, path)": True, "os.rename(a, b)": True, "shutil.move(a, b)": True,
    "from os import replace": True, "part.replace(path)": True, "part.rename(path)": True,
    "Path(a).replace(target=b)": True, "name.replace('a', 'b')": False,
    "recipe.replace(steps=1)": False, "config.replace(**changes)": False,
    "dataclasses.replace(config)": False, "replace(config, steps=1)": False,
}.items())
def test_a_move_is_told_from_a_replacement_of_text(code, moves):
    assert bool(list(renames(code))) is moves


@pytest.mark.parametrize("module", [m for m in CODE if m != "ddpm_nb.engine.files"])
def test_only_engine_files_writes_and_renames(module):
    found = [ast.unparse(n) for n in renames(NAMES[module].read_text(encoding="utf-8"))]
    assert not found, f"use ddpm_nb.engine.files in place of {'; '.join(found)}"


# --- names ---------------------------------------------------------------------------------------

def public(module):
    "The names in a module's `__all__`."
    for n in tree_of(module).body:
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__":
            return ast.literal_eval(n.value)
    return []


def test_the_public_names_are_few():
    names = [name for m in CODE for name in public(m)]
    said = "\n".join(f"{m}: {len(public(m))}" for m in CODE)
    assert len(names) <= PUBLIC, f"{len(names)} public names, more than {PUBLIC}:\n{said}"


def test_the_packages_names_are_public_names_of_its_modules():
    names = public("ddpm_nb")
    homes = {name: [m for m in CODE if name in public(m)] for name in names}
    assert names and len(names) == len(set(names))
    assert not [name for name in names if name.startswith("_") or not homes[name]]


def test_each_of_the_packages_names_is_the_modules_own():
    import importlib

    import ddpm_nb
    for name in ddpm_nb.__all__:
        homes = [importlib.import_module(m) for m in CODE if name in public(m)]
        assert any(getattr(ddpm_nb, name) is getattr(home, name) for home in homes), name


TOOLS = [p for p in SCRIPTS if p.parent.name == "tools" and "add_argument" in p.read_text("utf-8")]


@pytest.mark.parametrize("path", TOOLS, ids=lambda p: p.stem)
def test_a_tool_explains_itself_and_does_nothing_else_then(path, tmp_path):
    pytest.importorskip("nbdev")
    command = [sys.executable, path, "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode and done.stdout.startswith("usage"), done.stderr
    assert not [*tmp_path.iterdir()]


def test_a_tool_reads_no_argument_past_argparse():
    "One that took whatever came for a path made a folder called --help."
    tools = [p for p in SCRIPTS if p.parent.name == "tools"]
    assert len(TOOLS) >= 9
    assert not [p.stem for p in tools if "sys.argv" in p.read_text("utf-8")]
