"The map of the paper is complete, its links lead somewhere, and its faults would be seen."
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
import paper_map  # noqa: E402

ITEMS, FOUND = paper_map.items(), paper_map.scan()


def test_the_list_is_that_of_the_paper():
    "26 equations (16, and 10 in appendix A), 4 algorithms, 4 tables, 19 figures, each once and in order."
    numbers = {kind: [i.number for i in ITEMS if i.kind == kind] for kind in paper_map.KINDS}
    assert numbers == {kind: list(range(1, n + 1)) for kind, n in {"eq": 26, "alg": 4, "tab": 4, "fig": 19}.items()}


@pytest.mark.parametrize("item", ITEMS, ids=lambda i: f"{i.kind}-{i.number}")
def test_item_has_its_place_its_symbol_and_its_check(item):
    lacks = paper_map.lacks(item, FOUND)
    assert not lacks, f"{item.kind} {item.number} lacks {', '.join(lacks)}: see tools/paper_map.py for the words that say it"


def test_only_equations_and_algorithms_that_data_forbids_may_be_absent():
    assert not [i for i in ITEMS if i.needs and i.kind in paper_map.COMPUTED]


def test_no_label_of_something_that_the_paper_does_not_have():
    assert not [p for p in paper_map.problems(ITEMS, FOUND) if "does not have" in p]


def test_every_link_leads_somewhere():
    "In the notebooks, and on the site where it has been built."
    assert not paper_map.dead(ITEMS, FOUND)


def test_every_symbol_can_be_imported_from_its_module():
    import importlib
    for place in {p for key in FOUND.symbols for p in FOUND.symbols[key]}:
        cells = json.loads((ROOT / "nbs" / place.page).read_text(encoding="utf-8"))["cells"]
        module = next(m[1] for c in cells if (m := re.search(r"#\|\s*default_exp\s+(\w+)", "".join(c["source"]))))
        here = importlib.import_module(f"ddpm_nb.{module}")
        for part in place.text.split("."): here = getattr(here, part)


def test_the_tables_in_the_notebook_are_those_of_today():
    "If this fails: `make notebooks NB=nbs/paper_map.ipynb`, then `make docs`."
    cells = json.loads((ROOT / "nbs" / "paper_map.ipynb").read_text(encoding="utf-8"))["cells"]
    kept = ["".join(o["data"]["text/html"]) for c in cells for o in c.get("outputs", []) if "text/html" in o.get("data", {})]
    assert kept == [paper_map.table(ITEMS, FOUND, kind) for kind in paper_map.KINDS]


# --- the scan itself ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, said", {
    "Draw x_t given x_0 (eq. 4).": ["eq 4"],
    "eq. 6 and 7, Algorithm 2": ["eq 6", "eq 7", "alg 2"],
    "equations 8 to 10": ["eq 8", "eq 9", "eq 10"],
    "eq. 23 to eq. 26": ["eq 23", "eq 24", "eq 25", "eq 26"],
    "(figure 5, table 4)": ["fig 5", "tab 4"],
    "eq. 3, 5, and 16": ["eq 3", "eq 5", "eq 16"],
    "eqs. 17-19": ["eq 17", "eq 18", "eq 19"],
    "table 4.5, a table of 3 rows, sequel 7, eq. x": [],
    "eq. 7 at t = 1": ["eq 7"],
}.items())
def test_mentions(text, said):
    assert {f"{kind} {n}" for kind, n in paper_map.mentions(text)} == set(said)


def test_comments_are_read_and_strings_are_not():
    assert paper_map.checked('x = 1  # checks eq. 4\ny = "# checks eq. 5"\n# it checks eq. 6') == {("eq", 4)}


def test_a_target_belongs_to_the_heading_after_it_and_fences_hide_headings():
    cell = "# Title\n\ntext\n\n(alg-ddpm-1)=\n(sec-x)=\n## Algorithm `1`\n```\n# not a heading\n```\n(fig-ddpm-5)=\nin a section"
    where = {line: section.text for section, line in paper_map.sections(cell, None)}
    assert where["(alg-ddpm-1)="] == where["(fig-ddpm-5)="] == where["# not a heading"] == "Algorithm 1"
    assert where["text"] == "Title"


@pytest.fixture
def book(tmp_path):
    "A copy of the notebooks and tests, to break."
    ignore = shutil.ignore_patterns("_static", "__pycache__", ".ipynb_checkpoints", "runs", "data")
    for name in ("nbs", "tests"): shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    return tmp_path


def test_a_lost_label_a_second_label_and_a_foreign_one_are_reported(book):
    page = book / "nbs" / "10_compression.ipynb"
    text = page.read_text(encoding="utf-8")
    complaints = lambda: set(paper_map.problems(ITEMS, paper_map.scan(book))) - set(paper_map.problems(ITEMS, FOUND))
    page.write_text(text.replace(":label: eq-ddpm-16", ":label: eq-other"), encoding="utf-8")
    assert complaints() == {"equation 16 lacks a label"}
    page.write_text(text.replace(":label: eq-ddpm-16", ":label: eq-ddpm-5"), encoding="utf-8")
    assert any(c.startswith("equation 5 lacks just one label") for c in complaints())
    page.write_text(text.replace("(tab-ddpm-4)=", "(tab-ddpm-5)="), encoding="utf-8")
    assert complaints() == {"table 4 lacks a label", "10_compression.ipynb labels table 5, which the paper does not have"}


def test_a_lost_symbol_and_a_lost_check_are_reported(book):
    page = book / "nbs" / "10_compression.ipynb"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("(algorithm 4)", ""), encoding="utf-8")
    found = paper_map.scan(book)
    found.symbols.pop(("alg", 4), None)
    assert "algorithm 4 lacks a symbol" in paper_map.problems(ITEMS, found)
    for what in (found.cells, found.tests): what.pop(("alg", 3), None)
    assert "algorithm 3 lacks a test" in paper_map.problems(ITEMS, found)


def test_a_dead_link_is_reported(tmp_path):
    (tmp_path / "03_bound.html").write_text('<div id="equation-eq-ddpm-5"></div>')
    items = [i for i in ITEMS if (i.kind, i.number) == ("eq", 5)]
    place = paper_map.Place("03_bound.ipynb", "x", "equation-eq-ddpm-5", "x")
    key, symbol, check = ("eq", 5), place._replace(anchor="api-nothing"), place._replace(page="gone.ipynb")
    found = paper_map.Map({key: [place]}, {key: [symbol]}, {key: [check]}, {})
    assert paper_map.dead(items, found, docs=tmp_path) == [
        "docs/03_bound.html has no #api-nothing", "there is no nbs/gone.ipynb", "the site has no gone.html"]


def test_links_become_the_sites():
    site = (ROOT / "tools" / "site.py").read_text(encoding="utf-8")
    scope = {"re": re}
    exec(site[site.index("def site_links"):].split("\n\n\n")[0], scope)
    place = paper_map.Place("experiments/swiss_roll.ipynb", "The-field", "the-field", "The field")
    assert scope["site_links"](paper_map.link(place)) == '<a href="experiments/swiss_roll.html#the-field">The field</a>'


def test_an_item_that_is_not_understood_is_refused():
    with pytest.raises(ValueError, match="begins with eq, alg"): paper_map.parse("equ 1 | something")
    with pytest.raises(ValueError, match="step of"): paper_map.parse("eq 1 | something | needs data: all")
