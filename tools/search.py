"""The book's search: what can be found, written from the rendered pages for nbs/_static/search.js.

An entry is a place that a reader can be sent to: a name of the package (its documentation), a
section, a page. The page that searches reads them from one script, so it works from disk.
"""
import json, re
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


def _words(node):
    "Its text, in one line; formulas and buttons left out."
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
    where = _title(article.section)
    found = list(_names(article, page, where))
    for useless in article.select("details.api, .headerlink, script, style, button, .page-links"):
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
