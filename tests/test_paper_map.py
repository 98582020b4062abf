"The map of the paper is complete, its links lead somewhere, and its faults would be seen."
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import paper_map
import pytest

ROOT = Path(__file__).resolve().parent.parent
ITEMS, FOUND, MADE_OF = paper_map.items(), paper_map.scan(), paper_map.made_of()


def test_the_list_is_that_of_the_paper():
    "26 equations (16, and 10 in appendix A), 4 algorithms, 4 tables, 19 figures, once, in order."
    numbers = {kind: [i.number for i in ITEMS if i.kind == kind] for kind in paper_map.KINDS}
    counts = {"eq": 26, "alg": 4, "tab": 4, "fig": 19}
    assert numbers == {kind: list(range(1, n + 1)) for kind, n in counts.items()}


@pytest.mark.parametrize("item", ITEMS, ids=lambda i: f"{i.kind}-{i.number}")
def test_item_has_its_place_its_symbol_and_its_check(item):
    lacks = paper_map.lacks(item, FOUND)
    said = f"{item.kind} {item.number} lacks {', '.join(lacks)}"
    assert not lacks, said + ": see tools/paper_map.py for the words that say it"


def test_no_label_of_something_that_the_paper_does_not_have():
    assert not [p for p in paper_map.problems(ITEMS, FOUND) if "does not have" in p]


def test_every_link_leads_somewhere():
    "In the notebooks, and on the site where it has been built."
    assert not paper_map.dead(ITEMS, FOUND)


def test_every_symbol_can_be_imported_from_its_module():
    import importlib
    for place in {p for key in FOUND.symbols for p in FOUND.symbols[key]}:
        cells = json.loads((ROOT / "nbs" / place.page).read_text(encoding="utf-8"))["cells"]
        sources = ("".join(c["source"]) for c in cells)
        exports = (re.search(r"#\|\s*default_exp\s+([\w.]+)", o) for o in sources)
        module = next(filter(None, exports))[1]
        here = importlib.import_module(f"ddpm_nb.{module}")
        for part in place.text.split("."): here = getattr(here, part)


def test_the_tables_in_the_notebook_are_those_of_today():
    "If this fails: `make notebooks NB=nbs/appendix/paper_map.ipynb`, then `make docs`."
    cells = json.loads((ROOT / "nbs" / paper_map.PAGE).read_text(encoding="utf-8"))["cells"]
    outputs = (o.get("data", {}) for c in cells for o in c.get("outputs", []))
    kept = ["".join(data["text/html"]) for data in outputs if "text/html" in data]
    assert kept == [paper_map.table(ITEMS, FOUND, kind, MADE_OF) for kind in paper_map.KINDS]


def test_what_is_shown_on_cifar10_too_counts_as_that():
    "Of several places the one that comes nearest to the paper's."
    said = {(i.kind, i.number): paper_map.nearest(i, FOUND, MADE_OF) for i in ITEMS}
    for n in (5, 6, 10, 13, 14, 15): assert said["fig", n].startswith("ours on CIFAR-10"), n
    for n in (1, 2, 4): assert said["tab", n].startswith("quoted, and ours on CIFAR-10"), n
    for n in (7, 8, 9, 12): assert said["fig", n].startswith("the same code on"), n
    assert said["tab", 3] == "quoted" and said["eq", 14] == "the paper's"


# --- the scan itself -----------------------------------------------------------------------------

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
def test_a_sentence_mentions_what_it_names_one_by_one(text, said):
    assert {f"{kind} {n}" for kind, n in paper_map.mentions(text)} == set(said)


def test_comments_are_read_and_strings_are_not():
    source = 'assert x  # checks eq. 4\ny = "# checks eq. 5"\n# it checks eq. 6'
    assert paper_map.checked(source) == {("eq", 4)}


def test_a_class_defined_step_by_step_is_known_by_its_public_name():
    "And one that is private to the end is not."
    steps = ['class _Start:\n    def q(self):\n        "(eq. 4)"',
             'class _Middle(_Start):\n    def p(self):\n        "(eq. 11)"',
             'class Whole(_Middle):\n    "Algorithm 2."', 'class _Aside:\n    "(eq. 5)"']
    known_as = paper_map.heirs(steps)
    assert [o for source in steps for o in paper_map.documented(source, known_as)] == [
        ("Whole.q", {("eq", 4)}), ("Whole.p", {("eq", 11)}), ("Whole", {("alg", 2)})]


@pytest.mark.parametrize("page, said", {
    "03_bound.ipynb": "chapter 3", "experiments/swiss_roll.ipynb": "experiment swiss roll",
    "engine/runs.ipynb": "engine runs", "appendix/plotting.ipynb": "appendix plotting",
}.items())
def test_what_a_notebook_is_called(page, said):
    assert paper_map.chapter(paper_map.Place(page, "", "", "")) == said


@pytest.mark.parametrize("said, html", {
    "$L_T$: the start": "<i>L</i><sub>T</sub>: the start",
    "L_{t-1} & x_0's": "<i>L</i><sub>t−1</sub> &amp; <i>x</i><sub>0</sub>&#x27;s",
    "L_simple": "<i>L</i><sub>simple</sub>", "1 - x_t < 2": "1 - <i>x</i><sub>t</sub> &lt; 2",
    "swiss_roll, 256x256": "swiss_roll, 256x256",
}.items())
def test_a_symbol_and_its_foot_stand_as_on_paper(said, html):
    assert paper_map.typeset(said).startswith(html)


def test_a_target_belongs_to_the_heading_after_it_and_fences_hide_headings():
    cell = ("# Title\n\ntext\n\n(alg-ddpm-1)=\n(sec-x)=\n## Algorithm `1`\n"
            "```\n# not a heading\n```\n(fig-ddpm-5)=\nin a section")
    where = {line: section.text for section, line in paper_map.sections(cell, None)}
    for line in ("(alg-ddpm-1)=", "(fig-ddpm-5)=", "# not a heading"):
        assert where[line] == "Algorithm 1"
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
    before = set(paper_map.problems(ITEMS, FOUND))
    complaints = lambda: set(paper_map.problems(ITEMS, paper_map.scan(book))) - before
    page.write_text(text.replace(":label: eq-ddpm-16", ":label: eq-other"), encoding="utf-8")
    assert complaints() == {"equation 16 lacks a label"}
    page.write_text(text.replace(":label: eq-ddpm-16", ":label: eq-ddpm-5"), encoding="utf-8")
    assert any(c.startswith("equation 5 lacks just one label") for c in complaints())
    page.write_text(text.replace("(tab-ddpm-4)=", "(tab-ddpm-5)="), encoding="utf-8")
    foreign = "10_compression.ipynb labels table 5, which the paper does not have"
    assert complaints() == {"table 4 lacks a label", foreign}


def test_a_lost_symbol_and_a_lost_check_are_reported(book):
    page = book / "nbs" / "10_compression.ipynb"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("(algorithm 4)", ""), encoding="utf-8")
    found = paper_map.scan(book)
    found.symbols.pop(("alg", 4), None)
    assert "algorithm 4 lacks a symbol" in paper_map.problems(ITEMS, found)
    for what in (found.cells, found.tests): what.pop(("alg", 3), None)
    assert "algorithm 3 lacks a test" in paper_map.problems(ITEMS, found)


def test_a_label_is_no_check_and_one_of_the_whole_derivation_is_none_of_its_lines():
    "Each line of appendix A has a check of its own."
    for number in (8, 17, 19, 25):
        cells, tests = ({k: v for k, v in o.items() if k != ("eq", number)}
                        for o in (FOUND.cells, FOUND.tests))
        found = FOUND._replace(cells=cells, tests=tests)
        lost = set(paper_map.problems(ITEMS, found)) - set(paper_map.problems(ITEMS, FOUND))
        assert lost == {f"equation {number} lacks a test"}


def test_a_test_that_mentions_a_table_does_not_check_its_numbers(tmp_path):
    page = tmp_path / "test_x.py"
    page.write_text('def test_a():\n    "Table 2, figure 8."\n    assert 1\n'
                    'def test_b():\n    # checks table 4\n    assert 1\n')
    found = FOUND._replace(tests=defaultdict(list))
    paper_map.scan_tests(page, found)
    assert found.tests == {("fig", 8): ["tests/test_x.py::test_a"],
                           ("tab", 4): ["tests/test_x.py::test_b"]}


@pytest.mark.parametrize("item, page, said", [
    ("fig 6 | x | images: CIFAR-10", "experiments/figures", "ours on CIFAR-10 (packaged network)"),
    ("fig 6 | x | images: CIFAR-10", "00_prestudy",
     "the same code on digits: the paper's images are not here"),
    ("fig 3 | x | images: LSUN", "experiments/figures",
     "the same code on CIFAR-10 (packaged network): the paper's images are not here"),
    ("fig 1 | x | images: CelebA-HQ and CIFAR-10", "experiments/figures",
     "ours on CIFAR-10 (packaged network)"),
    ("tab 2 | x | images: CIFAR-10", "04_objective", "quoted"),
    ("tab 1 | x | images: CIFAR-10", "09_evaluation",
     "quoted, and ours on CIFAR-10 (packaged network)"),
    ("fig 2 | x", "experiments/swiss_roll", "the paper's"), ("eq 4 | x", "02_diffusion",
                                                             "the paper's"),
])
def test_each_item_says_what_it_is_here(item, page, said):
    made_of = {"00_prestudy.ipynb": "digits", "04_objective.ipynb": "quoted",
               "experiments/figures.ipynb": "CIFAR-10: packaged network",
               "09_evaluation.ipynb": "CIFAR-10: packaged network"}
    (one,) = paper_map.parse(item)
    assert paper_map.is_here(one, paper_map.Place(f"{page}.ipynb", "", "", ""), made_of) == said


def test_every_page_that_shows_a_picture_or_a_measurement_says_what_it_is_made_of():
    shown = {p.page for i in ITEMS if i.images for found in (FOUND.places, FOUND.again)
             for p in found.get((i.kind, i.number), [])}
    assert shown <= MADE_OF.keys()


def test_what_is_only_shown_or_quoted_is_not_called_checked():
    place = paper_map.Place("04_objective.ipynb", "x", "tab-ddpm-2", "x")
    for number, made_of, said in ((2, {place.page: "quoted"}, "quoted"),
                                  (2, {place.page: "digits"}, "shown")):
        items = [i for i in ITEMS if (i.kind, i.number) == ("tab", number)]
        found = paper_map.Map({("tab", number): [place]}, {}, {}, {}, {})
        assert paper_map.entries(items[0], found, made_of)[4] == f"<em>only {said}</em>"
    computed = {i.number: paper_map.entries(i, FOUND, MADE_OF)[3] for i in ITEMS if i.kind == "eq"}
    assert computed[20].startswith("<em>with equation 5:</em>") and "<em>" not in computed[5]
    rows = [paper_map.entries(i, FOUND, MADE_OF)[4] for i in ITEMS if i.kind in ("eq", "alg")]
    assert rows and not any("<em>" in checks for checks in rows)


def test_a_tag_where_nothing_can_fail_is_no_check(tmp_path):
    tag, check = "# checks eq. 4\nprint(1)", "# checks eq. 4\nassert f(1) == 2"
    assert paper_map.claimed(tag) == {("eq", 4)} and not paper_map.checked(tag)
    for code in (check, "# checks eq. 4\ntest_close(a, b)",
                 "# checks eq. 4\ntorch.testing.assert_close(a, b)"):
        assert paper_map.checked(code) == {("eq", 4)}
    page = tmp_path / "test_x.py"
    page.write_text('def test_a():\n    "eq. 4"\n    print(1)\n'
                    'def test_b():\n    "eq. 5"\n    assert 1\n'
                    'def test_c():\n    "eq. 6"\n    with pytest.raises(ValueError): f(1)\n')
    found = FOUND._replace(tests=defaultdict(list))
    paper_map.scan_tests(page, found)
    assert found.tests == {("eq", 5): ["tests/test_x.py::test_b"],
                           ("eq", 6): ["tests/test_x.py::test_c"]}


def test_a_label_with_a_word_after_its_number_is_a_second_place(book):
    page = book / "nbs" / "10_compression.ipynb"
    text = page.read_text(encoding="utf-8").replace("## Exercises", "(fig-ddpm-2-digits)=\\n## E")
    page.write_text(text, encoding="utf-8")
    found = paper_map.scan(book)
    assert [p.anchor for p in found.again["fig", 2]] == ["fig-ddpm-2-digits"]
    assert found.places["fig", 2] == FOUND.places["fig", 2]
    assert paper_map.problems(ITEMS, found) == paper_map.problems(ITEMS, FOUND)


# --- the ten lines of appendix A: a slip in each is seen ------------------------------------------

LINES = {   # in chapter 10's cells: what is right, and a slip
    17: ("p[0] * p[1] * p[2]", "p[0] * p[1] * p[1]"),
    18: ("line[18] = -log(p_T) - over(every", "line[18] = -log(p_T) - over(later"),
    19: ("- log(p[0] / step[0]))", "- log(p[0]))"),
    20: ("q(t-1, t, 0) * q(t-1, 0) / q(t, 0)", "q(t-1, t, 0) * q(t, 0) / q(t-1, 0)"),
    21: ("line[21] = (-log(p_T / q(T, 0))", "line[21] = (-log(p_T / q(T))"),
    22: ("over(later, lambda t: kl(t, t, 0))", "over(later, lambda t: kl(t, t))"),
    23: ("line[23] = -log(p_T)", "line[23] = -log(p_T / q(T))"),
    24: ("q(t-1, t) * q(t-1) / q(t)", "q(t-1, t) * q(t) / q(t-1)"),
    25: ("- log(q(0))", "- 0"),
    26: ("+ entropy_of_x0", "- entropy_of_x0"),
}


@pytest.fixture(scope="module")
def discrete_world():
    "The two cells of chapter 10 that evaluate the lines, and what they use."
    import torch
    test_close = pytest.importorskip("fastcore.test").test_close

    from ddpm_nb.compression import _Paths, exact_bound
    path = ROOT / "nbs" / "10_compression.ipynb"
    code = [o for kind, o in paper_map.cells(path) if kind == "code"]
    first, second = (next(o for o in code if f"# checks eq. {n}" in o) for n in ("17 to 21", "22"))
    g = torch.Generator().manual_seed(0)
    table = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=g).softmax(-1)
    q0, forward, reverse = table(5), [table(5, 5) for _ in "123"], [table(5, 5) for _ in "123"]
    world = dict(torch=torch, test_close=test_close, _Paths=_Paths, q0=q0, forward=forward,
                 reverse=reverse, pT=table(5), print=lambda *_: None)
    world["L"] = exact_bound(q0, forward, reverse, world["pT"])
    # the chapter's last assertion but one is about *its* world: how far single paths are off
    return f"{first}\n{second.split('slip =')[0]}".replace("off > 0.1", "off > 0.001"), world


def test_the_lines_of_appendix_a_hold_in_another_world_too(discrete_world):
    code, world = discrete_world
    exec(code, dict(world))


@pytest.mark.parametrize("number", LINES)
def test_a_slip_in_a_line_of_appendix_a_is_seen(discrete_world, number):
    code, world = discrete_world
    right, slip = LINES[number]
    assert code.count(right) == 1
    with pytest.raises(AssertionError): exec(code.replace(right, slip), dict(world))


def test_a_dead_link_is_reported(tmp_path):
    (tmp_path / "03_bound.html").write_text('<div id="equation-eq-ddpm-5"></div>')
    items = [i for i in ITEMS if (i.kind, i.number) == ("eq", 5)]
    place = paper_map.Place("03_bound.ipynb", "x", "equation-eq-ddpm-5", "x")
    key, symbol = ("eq", 5), place._replace(anchor="api-nothing")
    check = place._replace(page="gone.ipynb")
    found = paper_map.Map({key: [place]}, {}, {key: [symbol]}, {key: [check]}, {})
    assert paper_map.dead(items, found, docs=tmp_path) == [
        "docs/03_bound.html has no #api-nothing", "there is no nbs/gone.ipynb",
        "the site has no gone.html"]


def test_links_become_the_sites():
    site = (ROOT / "tools" / "site.py").read_text(encoding="utf-8")
    scope = {"re": re}
    exec(site[site.index("def site_links"):].split("\n\n\n")[0], scope)
    place = paper_map.Place("experiments/swiss_roll.ipynb", "The-field", "the-field", "The field")
    link = '<a href="../experiments/swiss_roll.html#the-field">The field</a>'
    assert scope["site_links"](paper_map.link(place)) == link


def test_an_item_that_is_not_understood_is_refused():
    for text, said in (("equ 1 | something", "begins with eq, alg"),
                       ("eq 1 | something | needs: data", "step of")):
        with pytest.raises(ValueError, match=said): paper_map.parse(text)
