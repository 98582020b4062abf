"""The book's symbols: one list, for appendix/notation and for what the site shows in place.

    python tools/notation.py        say what is wrong: a symbol without a place; exit 1 if any is

The list is the text SYMBOLS in nbs/appendix/notation.ipynb, a line each (an indented line goes on):
  name | TeX | in code | shape | what it means | label of the equation or section that brings it in
A word is explained there too, in a paragraph of its own below a target `(word-nats)=`.
"""
import html, re, sys
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent))
import paper_map  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PAGE = "appendix/notation.ipynb"


class Symbol(NamedTuple):
    "One line of the list."
    name: str      # "alpha-bar": its anchor is sym-alpha-bar
    tex: str
    code: str      # an expression, or ""
    shape: str
    meaning: str   # Markdown, with formulas in dollars
    label: str     # where it is brought in


def parse(text):
    "Symbols from the lines of the list."
    out = []
    for line in re.sub(r"\n +", " ", text.strip()).splitlines():    # indented: goes on
        parts = [part.strip() for part in re.split(r" \|(?= )", line)]
        if len(parts) != len(Symbol._fields):
            raise ValueError(f"a symbol has {len(Symbol._fields)} parts between ' | ', "
                             f"got {line!r}")
        out.append(Symbol(*parts))
    return out


def symbols(root=ROOT):
    "The list, from the notebook; nothing where there is none."
    path = root / "nbs" / PAGE
    for _, source in paper_map.cells(path) if path.exists() else ():
        m = re.search(r'^SYMBOLS = r"""(.*?)"""', source, flags=re.M | re.S)
        if m: return parse(m[1])
    return []


def labels(root=ROOT):
    "Label -> the place that it names, in all notebooks."
    out, label = {}, re.compile(r"\s*:label:\s*(eq-[\w-]+)\s*$|\(((?:sec|alg|word)-[\w-]+)\)=\s*$")
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        page, last = path.relative_to(root / "nbs").as_posix(), None
        for kind, source in paper_map.cells(path):
            for now, line in paper_map.sections(source, last) if kind == "markdown" else ():
                last = now
                if not (m := label.match(line)): continue
                anchor = f"equation-{m[1]}" if m[1] else m[2]
                place = paper_map.Place(page, paper_map.fragment(now), anchor, now.text)
                out[m[1] or m[2]] = place
    return out


def formula(tex):
    r"A formula in HTML, as JupyterLab and the site's MathJax both read it."
    return f'<span class="math notranslate nohighlight">\\({html.escape(tex)}\\)</span>'


def prose(text):
    "Words with `code` and $formulas$, as HTML."
    parts = re.split(r"(\$[^$]+\$|`[^`]+`)", text)
    as_html = {"$": lambda o: formula(o[1:-1]),
               "`": lambda o: f"<code>{html.escape(o[1:-1])}</code>"}
    return "".join(as_html.get(o[:1], html.escape)(o) for o in parts)


def said(symbol):
    "A symbol's meaning, its shape and its name in code, in a line of HTML."
    code = f" In code: <code>{html.escape(symbol.code)}</code>" if symbol.code else ""
    shape = f", {html.escape(symbol.shape)}." if code and symbol.shape else "." if code else ""
    return f"{formula(symbol.tex)}: {prose(symbol.meaning)}.{code}{shape}"


def on(source, listed):
    "The symbols that occur in a page's text, of those that cannot be mistaken for a letter."
    return [s for s in listed if "\\" in s.tex and re.search(re.escape(s.tex) + r"(?![a-zA-Z_])",
                                                             source)]


HEADS = {"symbol": 18, "what it means": 31, "in code": 21, "shape": 11, "brought in by": 19}


def called(place, label):
    "What to call the place where a symbol is brought in."
    number = re.fullmatch(r"eq-ddpm-(\d+)", label)
    return f"eq. {number[1]}, {paper_map.chapter(place)}" if number else (
        f"{paper_map.chapter(place)}: {place.text}")


def row(symbol, places):
    "A symbol's row, as HTML."
    where, code = places.get(symbol.label), html.escape(symbol.code)
    to = "missing"
    if where: to = paper_map.link(where, paper_map.typeset(called(where, symbol.label)))
    cells = [f'<span id="sym-{symbol.name}">{formula(symbol.tex)}</span>',
             prose(symbol.meaning), f"<code>{paper_map.broken(code)}</code>" if code else "",
             html.escape(symbol.shape), to]
    return f"<tr>{''.join(f'<td>{o}</td>' for o in cells)}</tr>"


def table(listed, places):
    "The list as HTML."
    columns = "".join(f'<col style="width:{w}%">' for w in HEADS.values())
    head = "".join(f"<th>{o}</th>" for o in HEADS)
    return (f'<table class="table" style="{paper_map.STYLE}"><colgroup>{columns}</colgroup>'
            f"<thead><tr>{head}</tr></thead><tbody>"
            + "\n".join(row(s, places) for s in listed) + "</tbody></table>")


def problems(listed, places):
    "Symbols without a place, and names that two of them share."
    names = [s.name for s in listed]
    return [f"{s.name}: there is no {s.label}" for s in listed if s.label not in places] + [
        f"two symbols are called {name}" for name in sorted(set(names)) if names.count(name) > 1]


if __name__ == "__main__":
    found = problems(symbols(), labels())
    print("\n".join(found) or f"all {len(symbols())} symbols have their place")
    sys.exit(bool(found))
