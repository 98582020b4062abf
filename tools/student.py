"""Student notebooks: a chapter with blanks where its formulas were, and the answers apart.

    python tools/student.py nbs/03_bound.ipynb    say what would be blank (the build writes it)

What is blank: the bodies of the exported functions that a reader can write (public, at most 15
lines, no plumbing; a module's `forward` too, which its class explains; and all of a cell that is
tagged "blank", since the formula stands above it), and the answers of the exercises and warm-ups.
What stays: signatures, docstrings, the checks of arguments, and the checks of the book. They are
the marker: run the notebook from the top, and it stops at what is still to do. (Of an answer the
checks stay that stand at its top level.)
"""
import argparse, ast, base64, json, re
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

LINES = 15                                # of a body that may be asked for
READS_FILES = {"open", "files", "Path", "fromfile", "read_bytes"}
GIVEN = re.compile(r"^_|^check$|_dict$")  # names of functions that are plumbing
GIVEN_TAGS = {"plumbing", "given"}        # of cells with nothing to learn by writing them
CHECK = re.compile(r"(test|check)_")      # fastcore's test_close and its like


class Blank(NamedTuple):
    "One thing to do."
    title: str      # of the function, or of the exercise
    cells: list     # of the chapter, that hold the answer


class Student(NamedTuple):
    "What a chapter becomes."
    notebook: dict
    answers: dict
    blanks: list


# --- the bodies of functions ---------------------------------------------------------------------

def is_check(node):
    "Is a statement an argument's check, `if ...: raise ...` or `_check_...()`, or the docstring?"
    if isinstance(node, ast.Expr):
        called = isinstance(node.value, ast.Call) and ast.unparse(node.value.func)
        return isinstance(node.value, ast.Constant) or bool(called and called.startswith("_check_"))
    return isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise) and not node.orelse


def to_write(name, node, tagged=False):
    "The statements of a function, known by that name, that a reader is to write, or none."
    body = list(dropwhile(is_check, node.body))
    names = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node)}
    given = names & READS_FILES or GIVEN.search(node.name) and not tagged or any(
        o in ast.unparse(d) for d in node.decorator_list for o in ("property", "method"))
    explained = tagged or ast.get_docstring(node) or re.fullmatch(r"[^_]\w*\.forward", name)
    if given or not explained or not body: return []
    raises = any(isinstance(n, ast.If) and is_check(n) for n in body)     # a check amid the work
    return [] if raises or node.end_lineno - body[0].lineno + 1 > LINES else body


def functions(source):
    "The functions and methods that a cell defines, with the names by which they are known."
    for n in ast.parse(source).body:
        if isinstance(n, ast.FunctionDef): yield n.name, n
        if isinstance(n, ast.ClassDef):
            yield from ((f"{n.name}.{m.name}", m) for m in n.body if isinstance(m, ast.FunctionDef))


def emptied(source, tagged=False):
    "A cell without the bodies that are to be written, and the names of the functions."
    lines, names = source.split("\n"), []
    for name, node in reversed(list(functions(source))):
        if not (body := to_write(name, node, tagged)): continue
        start, stop, column = body[0].lineno - 1, node.end_lineno, body[0].col_offset
        head = lines[start][:column].rstrip()         # `def ...:`, where all is on one line
        indent = " " * (node.col_offset + 4)
        todo = f'{indent}raise NotImplementedError("{name}: yours to write")'
        lines[start:stop] = [*([head] if head else []), todo]
        names.insert(0, name)
    return "\n".join(lines), names


# --- the answers of exercises --------------------------------------------------------------------

def asserts(source):
    "The book's own checks in an answer, and the names that they need from it."
    tree = ast.parse(source)
    is_test = lambda n: isinstance(n, ast.Assert) or isinstance(n, ast.Expr) and isinstance(
        n.value, ast.Call) and CHECK.match(ast.unparse(n.value.func))
    checks = [n for n in tree.body if is_test(n)]
    names = lambda nodes, kind: {n.id for o in nodes for n in ast.walk(o)
                                 if isinstance(n, ast.Name) and isinstance(n.ctx, kind)}
    made = names(tree.body, ast.Store) | {n.name for n in tree.body
                                          if isinstance(n, ast.FunctionDef)}
    lines = source.split("\n")
    kept = "\n".join("\n".join(lines[n.lineno - 1:n.end_lineno]) for n in checks)
    return kept, sorted(names(checks, ast.Load) & made)


def warm_up(source, printed):
    "What a warm-up's cell says: (low, high), the interval in which an answer is right; or None."
    m = re.search(r"^#\s*\|\s*warm-up:\s*([\d.e-]+)\s*(%?)\s*$", source, flags=re.M)
    if not m: return None
    number = re.search(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?", printed)
    if not number:
        raise ValueError(f"a warm-up prints its answer first, this one printed {printed!r}: has "
                         f"its notebook been run?\n{source}")
    answer, by = float(number[0].replace(",", "")), float(m[1])
    off = abs(answer) * by / 100 if m[2] else by
    return answer - off, answer + off


def asked(source, printed):
    "An exercise's cell without its answer."
    if interval := warm_up(source, printed):
        coded = base64.b64encode(json.dumps(interval).encode()).decode()
        return ("import base64, json\nanswer = ...    # your number\n"
                "assert answer is not ..., 'yours to compute'\n"
                f"low, high = json.loads(base64.b64decode('{coded}'))    # what is right, in code\n"
                "assert low <= answer <= high, 'not yet'")
    checks, needed = asserts(source)
    if not checks: return "# yours to write"
    what = f", which needs: {', '.join(needed)}" if needed else ""
    return f"# yours to write, above the book's own check{what}\n\n{checks}"


DROPDOWN = re.compile(r"\n*^(`{3,}|:{3,})\{dropdown\} Answer.*?^\1\s*?$|\n*<details.*?</details>",
                      flags=re.M | re.S)
FOLDED = "; in a notebook the answer is folded below"         # not in this one


# --- a notebook ----------------------------------------------------------------------------------

def text_of(cell): return "".join(cell["source"])


def title_of(nb): return re.search(r"^# +(.+?)\s*$", text_of(nb["cells"][0]), flags=re.M)[1]


def printed_by(cell):
    "What a cell has printed."
    return "".join("".join(o.get("text", "")) for o in cell.get("outputs", []))


def with_source(cell, source):
    return {**cell, "source": source.splitlines(keepends=True)}


def markdown(source, name):
    return {"cell_type": "markdown", "id": name, "metadata": {},
            "source": source.splitlines(keepends=True)}


def is_exercises(source, before):
    "Whether what follows a Markdown cell belongs to the exercises; `before`, whether it does."
    for depth, title in re.findall(r"^(#+) +(.+?)\s*$", source, flags=re.M):
        before = title == "Exercises" or before and len(depth) > 2
    return before


def first_words(source):
    "What an exercise's cell is called: its text up to the first sign that ends a sentence."
    bold = re.search(r"\*\*(.+?)\*\*", source)
    short = bold and re.fullmatch(r"(\d+|[A-Z])\.", bold[1])
    if short: return f"{'Exercise' if short[1].isdigit() else 'Warm-up'} {short[1]}"
    return bold[1].strip(". ") if bold else source.strip().split("\n")[0][:60]


def student(chapter, name):
    "A chapter (as a dict, with its outputs) as a `Student`; `name` is the file's, for links."
    cells, blanks, in_exercises = [], [], False
    for cell in chapter["cells"]:
        source, before = text_of(cell), cells[-1] if cells else None
        if cell["cell_type"] == "markdown":
            in_exercises = is_exercises(source, in_exercises)
            source = DROPDOWN.sub("", source).replace(FOLDED, "").rstrip()
            cells.append(with_source(cell, source))
            question = cell
            continue
        if cell["cell_type"] != "code": continue
        tags = cell["metadata"].get("tags", [])
        new = {**cell, "outputs": [], "execution_count": None}
        if in_exercises:
            title = first_words(text_of(before)) if before else ""
            blanks.append(Blank(title, [question, cell]))
            source = asked(source, printed_by(cell))
        elif re.search(r"^#\s*\|\s*export", source, flags=re.M) and not GIVEN_TAGS & {*tags}:
            source, names = emptied(source, "blank" in tags)
            if names: blanks.append(Blank(", ".join(f"`{o}`" for o in names), [cell]))
        cells.append(with_source(new, source))
    said = (f"**A notebook to work in.** {len(blanks)} blanks stand where the chapter's code and "
            "answers were. Write one, run the cells below it: the book's own checks say whether it "
            "is right. Whatever comes later needs what comes before. The "
            f"[answers]({'../' * name.count('/')}answers/{name}.ipynb) are a notebook apart.")
    cells.insert(1, markdown(said, "how-to-work"))
    return Student({**chapter, "cells": cells}, answers(chapter, blanks), blanks)


def answers(chapter, blanks):
    "The notebook of answers: each blank with the chapter's own code."
    cells = [markdown(f"# Answers: {title_of(chapter)}", "title")]
    for i, blank in enumerate(blanks, 1):
        cells.append(markdown(f"## {i}. {blank.title}", f"blank-{i}"))
        for k, cell in enumerate(blank.cells):
            bare = {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
            cells.append({**cell, **bare, "id": f"blank-{i}-{k}"})
    return {**chapter, "cells": cells}


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("notebooks", nargs="+", type=Path, help="their paths")
    for path in parser.parse_args().notebooks:
        made = student(json.loads(path.read_text(encoding="utf-8")), path.stem)
        print(f"{path}: {len(made.blanks)} blanks")
        for blank in made.blanks: print("   ", blank.title)
