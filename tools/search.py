"""The book's search: what can be found, written from the rendered pages for nbs/_static/search.js.

An entry is a place that a reader can be sent to: a name of the package (its documentation), a
section, a page. The page that searches reads them from one script, so it works from disk.
"""
import json, re, unicodedata
from pathlib import Path
from typing import NamedTuple

from bs4 import BeautifulSoup


class Entry(NamedTuple):
    "A place to be found."
    kind: str     # "name", "section" or "page"
    url: str      # relative to the site, with its anchor
    title: str    # a name, or a heading
    where: str    # the page's title
    text: str     # what stands there


_SIGNS = {"mid": "|", "sim": "~", "cdot": "·", "times": "×", "le": "≤", "ge": "≥", "to": "→",
          "infty": "∞", "sqrt": "√", "sum": "Σ", "prod": "Π", "int": "∫", "epsilon": "ε",
          "lambda": "λ", "ldots": "…", "dots": "…", "approx": "≈", "in": "∈", "nabla": "∇",
          "lceil": "⌈", "rceil": "⌉"}
_ACCENTS = {"bar": "\u0304", "hat": "\u0302", "tilde": "\u0303"}
_ARGUMENT = r"(\{[^{}]*\}|\\[a-zA-Z]+|[^\s{}\\])"
_LOOKS = r"\\(?:mathbf|boldsymbol|mathrm|mathbb|mathcal|operatorname|text|left|right|[bB]igl?r?)\b"


def _sign(m):
    "A TeX command as a letter or a sign, if it is one; else its name: log, exp, max."
    try: return _SIGNS.get(m[1]) or unicodedata.lookup(f"GREEK SMALL LETTER {m[1].upper()}")
    except KeyError: return m[1] + " "


def _held(text):
    "What stands in braces, in parentheses where it is a sum or the like."
    text = text.strip("{}").strip()
    return f"({text})" if re.search(r"[-+/ ,]", text) else text


def _unbraced(tex):
    "Without braces, from the inside out: a_b of a_{b}, (a + b)/c of \\frac{a + b}{c}."
    fraction = re.compile(rf"\\[dt]?frac\s*{_ARGUMENT}\s*{_ARGUMENT}")
    for _ in range(9):
        tex = re.sub(r"([_^])\{([^{}]*)\}(?=[\w\\])", r"\1\2 ", tex)
        tex = re.sub(r"([_^])\{([^{}]*)\}", r"\1\2", tex)
        tex = re.sub(r"\\(bar|hat|tilde)\{([^{}]*)\}", r"\\\1 \2", tex)
        tex = re.sub(r"\\sqrt\{([^{}]*)\}", lambda m: "√" + _held(m[1]), tex)
        tex = re.sub(r"(?<![\w}])\{([^{}]*)\}", r"\1", tex)
        tex = fraction.sub(lambda m: f" {_held(m[1])}/{_held(m[2])}", tex)
    return re.sub("[{}]", "", tex)


def _plain(tex):
    "A formula in a line as one would type it: x_0, β_t, L_t-1."
    tex = re.sub(r"\\\||\\[lr]Vert(?![a-zA-Z])", "‖", re.sub(_LOOKS, "", tex))
    tex = _unbraced(re.sub(r"\\[()\[\],;:!]|\\q?quad\b|\$", "", tex))
    accent = lambda m: re.sub(r"\\(\w+)", _sign, m[2]) + _ACCENTS[m[1]]
    tex = re.sub(r"\\(bar|hat|tilde)\s*(\\[a-zA-Z]+|\S)", accent, tex)
    tex = re.sub(r"(?<=[(‖])\s+|\s+(?=[_^,.)]|$)", "", re.sub(r"\\([a-zA-Z]+) ?", _sign, tex))
    return re.sub(r"\s+", " ", tex).strip()


def _words(node):
    "Its text, in one line."
    return re.sub(r"\s+", " ", node.get_text(" ", strip=True)).strip()


def _title(section):
    heading = section.find(re.compile("^h[1-6]$"), recursive=False)
    return _words(heading).rstrip(" #") if heading else ""


def _names(article, page, where):
    "The public functions and classes documented on a page, and their methods."
    for card in article.select("details.api"):
        name = card["id"].removeprefix("api-")
        about = _words(card.summary) + " " + " ".join(map(_words, card.find_all("p", limit=4)))
        yield Entry("name", f"{page}#{card['id']}", name, where, about)
        for method in card.select("div.api-method"):
            called = method["id"].removeprefix("api-")
            yield Entry("name", f"{page}#{method['id']}", called, where, _words(method))


def entries(path, page):
    "What can be found on one rendered page."
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    article = soup.select_one("article.bd-article")
    if article is None or article.section is None: return []
    for formula in article.select("div.math"): formula.decompose()
    for formula in article.select("span.math"): formula.replace_with(_plain(formula.get_text()))
    for code in article.select("pre, code"): code.replace_with(code.get_text())     # loss.backward
    where = _title(article.section)
    found = list(_names(article, page, where))
    for useless in article.select("details.api, .headerlink, script, style, button, .page-links, "
                                  ".page-symbols"):
        useless.decompose()
    sections = article.find_all("section")
    texts = []
    for section in reversed(sections):      # from the inside out: each text belongs to one place
        texts.append((section["id"], _title(section), _words(section)))
        section.extract()
    for i, (anchor, title, text) in enumerate(reversed(texts)):
        kind, url = ("section", f"{page}#{anchor}") if i else ("page", page)
        found.append(Entry(kind, url, title, where, text))
    return found


def write_index(docs: Path):
    "search-index.js, and the page that searches with it in place of Sphinx's."
    pages = sorted(p for p in docs.rglob("*.html") if not p.is_relative_to(docs / "source")
                   and p.name not in ("search.html", "reference.html"))
    found = [e for p in pages for e in entries(p, p.relative_to(docs).as_posix())]
    index = json.dumps([list(e) for e in found], ensure_ascii=False, separators=(",", ":"))
    (docs / "search-index.js").write_text(f"const SEARCH_INDEX = {index};\n", encoding="utf-8")
    scripts = "(?:_static/searchtools|_static/language_data|searchindex)"
    old = re.compile(rf'\s*<script src="(?:\.\./)*{scripts}\.js[^>]*></script>')
    for page in docs.rglob("*.html"):
        text, new = page.read_text(encoding="utf-8"), ""
        if page.name == "search.html":
            new = "".join(f'\n  <script src="{o}"></script>'
                          for o in ("search-index.js", "_static/search.js"))
        text = old.sub("", text).replace("</head>", f"{new}\n</head>", 1)
        page.write_text(text, encoding="utf-8")
    for name in ("searchindex.js", "_static/searchtools.js", "_static/language_data.js",
                 "_static/base-stemmer.js", "_static/english-stemmer.js"):
        (docs / name).unlink(missing_ok=True)
