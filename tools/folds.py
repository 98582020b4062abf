"""What the site shows of a cell of code: one rule, for the build and for the minutes of reading.

What a notebook says of a cell (`#| hide`, `#| echo: false`, `#| code-fold: true`, the tag plumbing)
comes first; what it says nothing of is folded if it does nothing but import, or check arguments.
"""
import ast, re

from fastcore.basics import AttrDict
from nbdev.process import extract_directives

import student


def only_imports(source):
    "Whether a cell does nothing but import, for its code or for its annotations."
    try: body = ast.parse(source).body
    except SyntaxError: return False     # a line such as `!ls`
    imports = lambda n: isinstance(n, (ast.Import, ast.ImportFrom)) or (
        isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    return bool(body) and all(map(imports, body))


def only_checks(source):
    "Whether a cell does nothing but define how arguments are checked."
    try: body = ast.parse(source).body
    except SyntaxError: return False
    doc = lambda n: ast.get_docstring(n) or ""
    said = lambda n: n.name.startswith("_check") or doc(n).startswith("Refuse")
    refuses = lambda n: isinstance(n, ast.FunctionDef) and (n.name.startswith("_") or said(n)) and (
        any(isinstance(o, ast.Raise) for o in ast.walk(n)))
    return all(map(refuses, body)) and any(map(said, body))


def is_plumbing(cell):
    """Whether an exported cell is tagged as what a reader may pass over.

    A tag, since a fold's directives would be copied into the module.
    """
    return "plumbing" in cell["metadata"].get("tags", [])


def title_of(cell):
    "What the fold around a cell is called: `#| code-summary: ...`, else what is in it."
    source = student.text_of(cell)
    lines = re.findall(r"^#\s*\|\s*code-summary:\s*(.+?)\s*$", source, flags=re.M)
    if lines: return (re.sub(r"""^(["'])(.*)\1$""", r"\2", lines[0]),) * 2
    if only_imports(source): return "Imports", "Imports"
    if is_plumbing(cell):
        first = next(o for o in ast.parse(source).body if hasattr(o, "body"))
        return (f"Plumbing: {first.name.strip('_')}",) * 2
    if only_checks(source): return ("What is refused, and in which words",) * 2
    what = "the code and its result" if cell["outputs"] else "the code"
    return f"Show {what}", f"Hide {what}"


def visible_lines(source):
    "The lines of a cell without its directives, and without those marked `#| hide_line`."
    lines = [o for o in source.split("\n") if not re.search(r"#\|\s*hide_line\s*$", o)]
    while lines and (re.match(r"\s*#\s*\|", lines[0]) or not lines[0].strip()): lines.pop(0)
    return "\n".join(lines)


def tags_of(cell):
    "What hides parts of a cell, as tags that myst-nb reads; None if nothing of it is shown."
    source = student.text_of(cell)
    directives = extract_directives(AttrDict(source=source), remove=False)
    flag = lambda key, value: directives.get(key + ":", directives.get(key, [""]))[:1] == [value]
    if directives.keys() & {"hide", "default_exp"} or flag("include", "false"): return None
    fold = flag("code-fold", "true") or not flag("code-fold", "false") and (
        only_imports(source) or only_checks(source) or is_plumbing(cell))
    tags = {"remove-input": flag("echo", "false"), "hide-cell": fold,
            "remove-output": flag("output", "false"),
            "exported": bool(directives.keys() & {"export", "exporti", "exports"})}
    return [tag for tag, on in tags.items() if on]
