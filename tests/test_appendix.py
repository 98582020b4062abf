"""Symbols and words, notebooks with blanks, warm-ups, and what a page shows where one points."""
import ast
import importlib.util
import json
import re
import shutil
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import EXECUTABLE, browser

ROOT = Path(__file__).resolve().parent.parent
NBS, STATIC = ROOT / "nbs", ROOT / "nbs" / "_static"
pytest.importorskip("nbdev", reason="the build of the site needs nbdev: pip install .[dev]")
import notation  # noqa: E402
import paper_map  # noqa: E402
import reading  # noqa: E402
import student  # noqa: E402

spec = importlib.util.spec_from_file_location("book_site_of_reading", ROOT / "tools" / "site.py")
SITE = importlib.util.module_from_spec(spec)
spec.loader.exec_module(SITE)

SYMBOLS, PLACES = notation.symbols(), notation.labels()
CHAPTERS = sorted(p for p in NBS.glob("[01]*.ipynb"))
WORKED = [p for p in CHAPTERS if p.stem[:2] in ("03", "06", "07", "10")]    # as samples


def chapter(path): return json.loads(path.read_text(encoding="utf-8"))


# --- symbols -------------------------------------------------------------------------------------

def test_every_symbol_has_its_place_and_a_name_of_its_own():
    assert len(SYMBOLS) > 30 and not notation.problems(SYMBOLS, PLACES)


def test_a_symbol_without_a_place_and_a_name_given_twice_are_reported():
    one = SYMBOLS[0]
    assert notation.problems([one._replace(label="eq-nowhere"), one], PLACES) == [
        f"{one.name}: there is no eq-nowhere", f"two symbols are called {one.name}"]


def test_a_line_that_is_not_understood_is_refused_and_an_indented_one_goes_on():
    with pytest.raises(ValueError, match="6 parts"): notation.parse("x | y | z")
    (one,) = notation.parse("a | x_t | | (B,) | what it\n    means | eq-ddpm-2")
    assert one == ("a", "x_t", "", "(B,)", "what it means", "eq-ddpm-2")


def test_a_symbol_is_found_on_a_page_and_not_in_a_longer_one():
    listed = [s for s in SYMBOLS if s.name in ("beta", "beta-tilde", "x_t", "T")]
    names = lambda text: [s.name for s in notation.on(text, listed)]
    assert names(r"$\beta_t$ and $\tilde\beta_t$ of T") == ["beta", "beta-tilde"]
    assert names(r"$\beta_{t-1}$ and $\mathbf x_{t-1}$ and $\mathbf x_test$") == []


def test_the_words_that_the_book_needs_before_it_explains_them_are_explained():
    words = "nats divergence jsd reverse-process bits-per-dim posterior marginal ema fid".split()
    assert not [w for w in words if f"word-{w}" not in PLACES]


def test_the_table_in_the_notebook_is_that_of_today():
    outputs = [o.get("data", {}) for c in chapter(NBS / notation.PAGE)["cells"]
               for o in c.get("outputs", [])]
    kept = ["".join(data["text/html"]) for data in outputs if "text/html" in data]
    assert kept == [notation.table(SYMBOLS, PLACES)]


# --- notebooks with blanks -----------------------------------------------------------------------

CELL = '''#| export
def twice(x: float,   # a number
          ) -> float: # its double
    "Two times x (eq. 4)."
    if x < 0: raise ValueError("x must not be negative")
    y = x + x
    return y


class Pair:
    "Two."
    def sum(self) -> int:
        "Of both."
        return 2

    @classmethod
    def new(cls):
        "One."
        return cls()

    def _step(self):
        "A step."
        return 1'''


def test_a_blank_keeps_signature_docstring_and_checks_and_takes_the_body():
    source, names = student.emptied(CELL)
    assert names == ["twice", "Pair.sum"]
    assert "return y" not in source and "return 2" not in source
    for kept in ("its double", "Two times x", "x must not be negative", "return cls()", "return 1"):
        assert kept in source
    scope = {}
    exec(source, scope)
    with pytest.raises(NotImplementedError, match="twice: yours"): scope["twice"](1)
    with pytest.raises(ValueError, match="negative"): scope["twice"](-1)


def test_a_cell_tagged_as_blank_is_one_and_one_tagged_as_plumbing_is_given():
    formula = "#| export\ndef _even(T: int) -> list: return [1 / T] * T"
    cells = [{"cell_type": "code", "source": source, "metadata": {"tags": tags}, "outputs": []}
             for source, tags in ((formula, ["blank"]), (formula, []), (CELL, ["plumbing"]))]
    head = {"cell_type": "markdown", "source": "# One", "metadata": {}}
    made = student.student({"cells": [head, *cells]}, "01_one")
    assert [blank.title for blank in made.blanks] == ["`_even`"]
    shown = [student.text_of(cell) for cell in made.notebook["cells"][2:]]
    assert "raise NotImplementedError" in shown[0] and shown[1:] == [formula, CELL]


@pytest.mark.parametrize("name, asked, given", [
    ("01_schedules", ["_linear", "_quadratic", "_constant", "_jsd", "_cosine"],
     ["whole_number", "lies"]),
    ("04_objective", ["_Mu.target", "_Eps.target", "_Eps.to_x0", "_V.target", "_simple"],
     ["Variance.target"])])
def test_the_blanks_of_a_chapter_are_its_formulas_and_none_is_a_check_of_arguments(name, asked,
                                                                                   given):
    made = student.student(chapter(NBS / f"{name}.ipynb"), name)
    titles = {o for blank in made.blanks for o in re.findall("`(.*?)`", blank.title)}
    assert {*asked} <= titles and not {*given} & titles


MODULES = '''#| exporti
class Half(nn.Module):
    "Half the size."
    def forward(self, x: Tensor) -> Tensor: return self.conv(x)


class Whole(nn.Module):
    "All of it."
    def forward(self,
                x: Tensor,   # images
                ) -> Tensor: # as many
        _check_input(self, x)
        h = self.half(x)
        return h + x


class _Inner(nn.Module):
    def forward(self, x): return x'''


def test_what_a_module_does_is_to_write_and_stays_callable_in_name():
    source, names = student.emptied(MODULES)
    assert names == ["Half.forward", "Whole.forward"]
    assert "self.conv" not in source and "return h + x" not in source
    assert "_check_input(self, x)" in source and "def forward(self, x): return x" in source
    scope = {"nn": SimpleNamespace(Module=object), "Tensor": object, "_check_input": lambda *_: 0}
    exec(source, scope)
    for name in ("Half", "Whole"):
        with pytest.raises(NotImplementedError, match=f"{name}.forward: yours to write"):
            scope[name]().forward(1)


def test_the_blocks_of_the_network_are_blank_in_the_notebook_of_chapter_6():
    made = student.student(chapter(NBS / "06_unet.ipynb"), "06_unet")
    titles = " ".join(b.title for b in made.blanks)
    for name in ("TimeEmbedding", "ResidualBlock", "Attention", "Downsample", "Upsample", "UNet"):
        assert f"`{name}.forward`" in titles


def test_an_exercise_keeps_its_checks_and_names_what_they_need():
    source = student.asked("a = 3\nb = a * 2\nprint(b)\nassert b == 6\ntest_close(b, a)", "")
    assert source.startswith("# yours to write, above the book's own check, which needs: a, b\n")
    assert source.endswith("assert b == 6\ntest_close(b, a)") and "print" not in source


@pytest.mark.parametrize("directive, printed, interval", [
    ("#| warm-up: 1 %", "3.322 bits", (3.28878, 3.35522)), ("#| warm-up: 0.001", "0.5686",
                                                              (0.5676, 0.5696)),
    ("#| warm-up: 3 %", "1,024: two to the tenth", (993.28, 1054.72)),
    ("#| warm-up: 10 %", "-2e-3 nats", (-0.0022, -0.0018)), ("print(1)", "1", None),
])
def test_a_warm_up_accepts_an_interval_about_what_its_cell_printed(directive, printed, interval):
    assert student.warm_up(directive, printed) == (interval and pytest.approx(interval))


@pytest.mark.parametrize("answer, right", [("...", False), ("3", False), ("-2.01e-3", True)])
def test_a_warm_up_marks_a_student_and_does_not_show_the_answer(answer, right):
    cell = student.asked("#| warm-up: 1 %\nprint('...')", "-2e-3 nats")
    assert "2e-" not in cell and "0.002" not in cell
    def run(): exec(cell.replace("answer = ...", f"answer = {answer}"), {})
    if right: run()
    else:
        with pytest.raises(AssertionError, match="yours to compute|not yet"): run()


def test_a_notebook_with_blanks_does_not_speak_of_folded_answers():
    made = student.student(chapter(NBS / "06_unet.ipynb"), "06_unet").notebook
    assert student.FOLDED in (NBS / "06_unet.ipynb").read_text()
    assert not any(student.FOLDED in student.text_of(cell) for cell in made["cells"])


def test_a_warm_up_that_prints_no_number_is_refused():
    with pytest.raises(ValueError, match="been run"): student.warm_up("#| warm-up: 1", "?")


def test_exercises_go_from_their_heading_to_the_next_of_its_rank():
    inside = False
    for text, expected in (("# T\n## A", False), ("## Exercises\n\n### Warm-ups", True),
                           ("**1.** x", True), ("### Further", True), ("## Next", False)):
        inside = student.is_exercises(text, inside)
        assert inside is expected


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_every_chapters_notebook_with_blanks_is_python_and_hides_its_answers(path):
    nb = chapter(path)
    made = student.student(nb, path.stem)
    for cell in made.notebook["cells"] + made.answers["cells"]:
        source = student.text_of(cell)
        assert not cell.get("outputs")
        if cell["cell_type"] == "code": ast.parse(re.sub(r"^[!%].*", "", source, flags=re.M))
    whole = "\n".join(student.text_of(c) for c in made.notebook["cells"])
    answers = "\n".join(student.text_of(c) for c in made.answers["cells"])
    assert "{dropdown} Answer" not in whole
    to_write = [b for b in made.blanks if not b.title.startswith("Warm-up")]   # those are numbers
    assert whole.count("yours to write") >= len(to_write)
    for blank in made.blanks:
        for cell in blank.cells: assert student.text_of(cell) in answers


def checks(cells):
    "The code cells that check something, outside the exercises, but for those with code to write."
    found, in_exercises = [], False
    for cell in cells:
        source = student.text_of(cell)
        if cell["cell_type"] == "markdown":
            in_exercises = student.is_exercises(source, in_exercises)
        elif not in_exercises and not re.search(r"^#\s*\|\s*export", source, flags=re.M):
            if re.search(r"\bassert |test_close\(", source): found.append(source)
    return found


@pytest.mark.parametrize("path", WORKED, ids=lambda p: p.stem)
def test_the_checks_of_the_chapter_are_in_the_notebook_with_blanks(path):
    "All that stand outside the exercises, so that they are the marker."
    nb = chapter(path)
    made = student.student(nb, path.stem)
    there, here = checks(nb["cells"]), checks(made.notebook["cells"])
    assert there and here == there
    assert len([b for b in made.blanks if b.title.startswith("`")]) >= 4


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_has_two_warm_ups_and_three_grades(path):
    cells = chapter(path)["cells"]
    warm = [c for c in cells if "#| warm-up:" in student.text_of(c)]
    assert len(warm) == 2
    for cell in warm:
        low, high = student.warm_up(student.text_of(cell), student.printed_by(cell))
        assert low < high
    text = "\n".join(student.text_of(c) for c in cells if c["cell_type"] == "markdown")
    grades = [text.index(f"### {grade}\n") for grade in ("Warm-ups", "Exercises", "Further")]
    assert grades == sorted(grades) and "{admonition} What do you expect?" in text


def test_a_blank_filled_in_from_the_answers_is_the_chapter_again():
    nb = chapter(NBS / "03_bound.ipynb")
    made = student.student(nb, "03_bound")
    kept = [c for c in made.notebook["cells"] if c["id"] != "how-to-work"]
    assert [c["id"] for c in kept] == [c["id"] for c in nb["cells"]]
    given = {c["id"]: student.text_of(c) for b in made.blanks for c in b.cells}
    filled = [given.get(c["id"], student.text_of(c)) for c in kept if c["cell_type"] == "code"]
    assert filled == [student.text_of(c) for c in nb["cells"] if c["cell_type"] == "code"]


# --- the page for teachers -----------------------------------------------------------------------

def test_the_route_of_three_hours_takes_three_hours_and_begins_with_the_whole():
    cells = chapter(NBS / "appendix" / "teaching.ipynb")["cells"]
    text = "\n".join(student.text_of(c) for c in cells if c["cell_type"] == "markdown")
    route = re.findall(r"^\| (\d+) \| \[.+?\]\(\.\./(\S+)\.ipynb\)", text, flags=re.M)
    assert sum(int(minutes) for minutes, _ in route) == 180
    assert "argument" in [page for _, page in route][:2]


# --- how long a page takes to read ---------------------------------------------------------------

def cell(kind, source, tags=(), outputs=()):
    return dict(cell_type=kind, source=source, metadata=dict(tags=[*tags]), outputs=[*outputs])


def test_what_there_is_to_read_is_counted_before_the_exercises_and_without_folds():
    picture = {"data": {"image/png": ""}}
    cells = [cell("markdown", "Two words $x + y$ and\n\n$$z = 1\\,2$$\n\n```{math}\nq\n```"),
             cell("markdown", "```bash\nmake a\nmake b\n```\nagain"),
             cell("code", "a = 1\nb = 2", outputs=[picture]),
             cell("code", "#| echo: false\nc = 3\nd = 4", outputs=[picture]),
             cell("code", "e = 5", tags=["plumbing"]),
             cell("code", "#| export\nimport math"),          # these three the site folds or hides
             cell("code", "def _check(n):\n    if n < 0: raise ValueError('n')"),
             cell("code", "#| hide\nshow()", outputs=[picture]),
             cell("markdown", "## Exercises\n\n**1.** What?\n\n$$p$$"), cell("code", "f = 6")]
    assert reading.counted(dict(cells=cells)) == (7, 4, 4, 1)    # an x for each formula


def test_a_minute_is_so_many_words_lines_or_figures_and_five_are_the_least():
    takes = lambda *o: reading.minutes(reading.Counted(*o))
    assert takes(1800, 0, 0, 0) == takes(0, 100, 0, 0) == takes(0, 0, 30, 9) == 10
    assert takes(0, 0, 0, 9) == 5 and takes(600, 33, 10, 0) == 10


@pytest.mark.parametrize("name", ["argument", "03_bound", "engine/cli", "appendix/live"])
def test_a_page_says_under_its_title_how_long_it_takes_to_read(name):
    path = NBS / f"{name}.ipynb"
    takes = reading.minutes(reading.counted(chapter(path)))
    first = "\n".join(student.text_of(c) for c in SITE.process(path).notebook.cells[:2])
    number = "Chapter 3 · " if name == "03_bound" else ""
    assert f'<p class="page-links">{number}{takes} minutes to read · ' in first


def test_no_page_types_its_time_and_the_table_for_teachers_is_near_todays():
    table = student.json.dumps(chapter(NBS / "appendix" / "teaching.ipynb"), ensure_ascii=False)
    for path in NBS.rglob("[!.]*.ipynb"):
        if ".ipynb_checkpoints" in path.parts or path.stem == "index": continue
        nb = chapter(path)
        typed = r"(?i)reading time|minutes to read|minutes of reading"
        assert not re.findall(typed, "".join(map(student.text_of, nb["cells"]))), path
        row = re.search(rf"{re.escape(student.title_of(nb))} \|.*?(\d+) min \|", table)
        assert row, f"{path.stem} is not in the table: run teaching again"
        takes = reading.minutes(reading.counted(nb))
        assert abs(int(row[1]) - takes) <= max(10, 0.1 * takes), path


# --- the page of mistakes ------------------------------------------------------------------------

def test_each_symptom_says_what_to_measure_the_cause_and_the_cure():
    cells = chapter(NBS / "appendix" / "mistakes.ipynb")["cells"]
    text = "\n".join(student.text_of(c) for c in cells if c["cell_type"] == "markdown")
    boxes = re.findall(r"^```\{admonition\} What goes wrong\n(.*?)^```", text, flags=re.M | re.S)
    assert len(boxes) >= 15 == len(set(boxes[:15]))
    for box in boxes:
        for part in ("**Measure first**", "**Cause", "**Cure.**"): assert part in box, box[:60]
    symptoms = re.findall(r"^### (.+)$", text, flags=re.M)
    assert len(symptoms) == len(boxes) == len(set(symptoms))


# --- in a page -----------------------------------------------------------------------------------

HINTS = {"equations": {"a/b.html#equation-eq-x": r"E = m c^2"},
         "words": {"a/b.html#word-nats": "<b>Nats</b>: a unit", "a/b.html#api-UNet": "A network."}}
PAGE = """<!doctype html><html data-content_root="./"><head><meta charset="utf-8">
<link rel="stylesheet" href="_static/reading.css"><script src="_static/reading.js"></script></head>
<body><article style="margin: 100px"><p>
<a id="eq" href="a/b.html#equation-eq-x">(1)</a> <a id="word" href="a/b.html#word-nats">nats</a>
<a id="none" href="a/b.html#word-other">other</a></p>
<form class="warm-up" data-low="3.2" data-high="3.4"><label for="w">Your answer</label>
<input id="w"><button>Check</button><output></output></form></article></body></html>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A small page with the site's script, from disk."
    if not EXECUTABLE: pytest.skip("no Chromium or Chrome here")
    folder = tmp_path_factory.mktemp("site")
    (folder / "_static").mkdir()
    for name in ("reading.js", "reading.css"): shutil.copy(STATIC / name, folder / "_static")
    (folder / "_static" / "hints.js").write_text(f"window.bookHints = {json.dumps(HINTS)};")
    (folder / "index.html").write_text(PAGE)
    with browser() as p:
        p.address = (folder / "index.html").as_uri()
        yield p


def key(page, name, code):
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=name, code=name,
                  windowsVirtualKeyCode=code, **({"text": "\r"} if name == "Enter" else {}))


def test_a_link_reached_by_keyboard_shows_its_target_and_escape_takes_it_away(page):
    page.open(page.address)
    assert page.js("document.getElementById('hint').hidden")
    key(page, "Tab", 9)
    page.wait("!document.getElementById('hint').hidden", 10)
    assert page.js("document.activeElement.id") == "eq"
    assert "E = m c^2" in page.js("document.getElementById('hint').textContent")
    assert page.js("document.getElementById('eq').getAttribute('aria-describedby')") == "hint"
    assert page.js("document.getElementById('hint').getAttribute('role')") == "tooltip"
    key(page, "Escape", 27)
    assert page.js("document.getElementById('hint').hidden")
    assert page.js("document.getElementById('eq').getAttribute('aria-describedby')") is None
    key(page, "Tab", 9)
    page.wait("document.getElementById('hint').textContent.includes('Nats')", 10)
    key(page, "Tab", 9)       # a link of which nothing is known
    page.wait("document.getElementById('hint').hidden", 10)
    assert not page.complaints
    assert all(r.startswith("file:") for r in page.requests)


def move(page, x, y): page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


@pytest.mark.parametrize("width", [1300, 390])
def test_the_mouse_shows_it_too_lets_one_move_onto_it_and_it_stays_in_the_window(page, width):
    page.open(page.address)
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1,
              mobile=False)     # a narrow window, with a mouse
    page.js("new Promise(done => setTimeout(done, 300))")     # the event of the change is over
    box = "document.getElementById('{}').getBoundingClientRect()"
    x, y = page.js(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box.format('word')})")
    move(page, x, y)
    page.wait("!document.getElementById('hint').hidden", 10)
    left, top, right, bottom = page.js(
        f"(b => [b.left, b.top, b.right, b.bottom])({box.format('hint')})")
    assert 0 <= left and right <= width and 0 <= top and bottom <= 800
    move(page, (left + right) / 2, (top + bottom) / 2)
    page.js("new Promise(done => setTimeout(done, 500))")
    assert not page.js("document.getElementById('hint').hidden")
    move(page, 5, 700)
    page.wait("document.getElementById('hint').hidden", 10)


def tap(page, what):
    x, y = page.js(f"(b => [b.x + b.width / 2, b.y + b.height / 2])"
                   f"(document.getElementById('{what}').getBoundingClientRect())")
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)


def test_a_tap_shows_it_a_second_goes_there_and_one_elsewhere_takes_it_away(page):
    page.open(page.address)
    tap(page, "word")
    page.wait("!document.getElementById('hint').hidden", 10)
    page.js("new Promise(done => setTimeout(done, 400))")
    assert "Nats" in page.js("document.getElementById('hint').textContent")
    assert page.js("!document.getElementById('hint').hidden && location.href") == page.address
    tap(page, "w")
    page.wait("document.getElementById('hint').hidden", 10)
    page.js("document.getElementById('none').href = 'index.html#word-other'")
    tap(page, "none")         # nothing is known of it: it is followed
    page.wait("location.hash === '#word-other'", 10)


def test_what_comes_late_is_not_shown_to_a_reader_who_has_gone_on(page):
    "Its file takes its time, or does not come; who asks again, is answered."
    page.open(page.address)
    page.js("""(() => {
      const append = document.head.append.bind(document.head);
      let times = 0;
      document.head.append = node => times++ ? append(node) : setTimeout(() => node.onerror(), 300);
    })()""")
    key(page, "Tab", 9)
    key(page, "Escape", 27)
    page.js("new Promise(done => setTimeout(done, 600))")
    assert page.js("document.getElementById('hint').hidden")
    page.js("document.activeElement.blur()")
    page.js("""(() => {
      const append = document.head.append.bind(document.head);
      document.head.append = node => setTimeout(() => append(node), 400);
    })()""")
    move(page, 5, 700)
    x, y = page.js("(b => [b.x + b.width / 2, b.y + b.height / 2])"
                   "(document.getElementById('word').getBoundingClientRect())")
    move(page, x, y)
    page.js("new Promise(done => setTimeout(done, 250))")
    move(page, 5, 700)
    page.js("new Promise(done => setTimeout(done, 900))")
    assert page.js("document.getElementById('hint').hidden")
    move(page, x, y)
    page.wait("!document.getElementById('hint').hidden", 10)
    assert not page.complaints


@pytest.mark.parametrize("typed, said", [
    ("3.32", "right"), ("3,3", "right"), ("33/10", "right"), ("332 %", "right"), ("4", "wrong"),
    ("3,322", "right"), ("3,3219", "right"), ("3,32e0", "right"), ("\u22123.32", "wrong"),
    ("6,64/2", "right"), ("3.32 %", "right"), ("40 %", "wrong"), ("3,320,000", "wrong"),
    ("3.41", "wrong"), ("three", ""), ("", ""), ("1e1", "wrong"), ("0.33e1", "right"),
])
def test_a_warm_up_is_marked_in_the_page_by_keyboard(page, typed, said):
    page.open(page.address)
    page.js("document.getElementById('w').focus()")
    for letter in typed: page.call("Input.insertText", text=letter)
    key(page, "Enter", 13)
    page.wait("document.querySelector('output').textContent", 10)
    assert page.js("document.querySelector('form').dataset.is") == said
    words = page.js("document.querySelector('output').textContent")
    assert words.startswith({"right": "Right", "wrong": "Not yet", "": "That is no number"}[said])
    assert not page.complaints and len(page.requests) == 3


# --- what the build makes of it ------------------------------------------------------------------

def test_the_build_collects_equations_words_symbols_and_names():
    Is = SimpleNamespace
    word = "(word-nats)=\n**Nats**: a [unit](x.ipynb), $e$.\n\nX"
    cells = [Is(cell_type="markdown", source=word),
             Is(cell_type="markdown", source="a\n```{math}\n:label: eq-ddpm-4\nx = y\n```\n")]
    named = SITE.Symbol("UNet", "06_unet", "A <em>network</em>.")
    made = {"06_unet": Is(notebook=Is(cells=cells), symbols=[named])}
    text = SITE.hints(made)
    data = json.loads(text.removeprefix("window.bookHints = ").removesuffix(";\n"))
    assert data["equations"] == {"06_unet.html#equation-eq-ddpm-4": "x = y"}
    assert data["words"]["06_unet.html#word-nats"].startswith("Nats: a unit, <span")
    assert data["words"]["06_unet.html#api-UNet"] == "A <em>network</em>."
    assert r"\(\bar\alpha_t\)" in data["words"]["appendix/notation.html#sym-alpha-bar"]


def test_every_equation_of_the_book_is_among_them():
    found = set()
    for path in paper_map_notebooks():
        for kind, source in paper_map.cells(path):
            if kind == "markdown": found |= {o for o, _ in SITE.EQUATION.findall(source)}
    assert {f"eq-ddpm-{n}" for n in range(1, 27)} <= found
    assert found == {label for label in PLACES if label.startswith("eq-")}


def paper_map_notebooks():
    return [p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]


def test_a_warm_up_becomes_a_form_before_its_folded_answer():
    from execnb.nbio import read_nb
    from nbdev.process import extract_directives
    nb = read_nb(NBS / "10_compression.ipynb")
    cell = next(c for c in nb.cells if "warm-up: 1 %" in c.source)
    (form,) = SITE.warm_up(cell, extract_directives(cell, remove=False), 7)
    for part in ('class="warm-up"', 'for="warm-up-7"', 'data-low="3.28', ">bits<"):
        assert part in form.source
    plain = next(c for c in nb.cells if c.cell_type == "code")
    assert SITE.warm_up(plain, extract_directives(plain, remove=False), 1) == []


DOCS = ROOT / "docs"
@pytest.mark.parametrize("set_, says", [
    ({}, "raise ModuleNotFoundError"), ({"git_url": "https://example.org/book"},
                                        "%pip install --quiet git+https://example.org/book"),
    ({"on_index": "yes"}, "%pip install --quiet ddpm_nb")])
def test_a_download_installs_the_package_only_from_where_it_is_ours(monkeypatch, set_, says):
    "A name that is not on the index may be anyone's tomorrow."
    config = types.SimpleNamespace(d={"lib_name": "ddpm_nb", **set_})
    monkeypatch.setattr(SITE, "get_config", lambda: config)
    nb = dict(cells=[dict(cell_type="markdown", source="# Page")])
    text = "".join(json.loads(SITE.as_plain(nb, "01_schedules"))["cells"][1]["source"])
    assert says in text and ("pip install --quiet" in text) == bool(set_)


# the source archive leaves docs/ out; where it is, it has its hints
BUILT = pytest.mark.skipif(not DOCS.is_dir(), reason="the source archive leaves docs/ out")


@BUILT
@pytest.mark.skipif(not EXECUTABLE, reason="no browser here")
def test_a_chapters_page_shows_the_equation_set_in_type_and_marks_its_warm_ups():
    with browser() as p:
        p.open((DOCS / "10_compression.html").as_uri())
        link = "document.querySelector('article a[href*=\"03_bound.html#equation-eq-ddpm-5\"]')"
        x, y = p.js(f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = "
                    f"e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] }})"
                    f"({link})")
        move(p, x, y)
        p.wait("document.querySelector('#hint:not([hidden]) mjx-container')", 20)
        assert p.js("document.querySelectorAll('#hint [data-mjx-error]').length") == 0
        assert p.js("document.querySelectorAll('.page-symbols a[aria-label]').length") > 5
        for number, said in (("3.32", "right"), ("3,32", "right"), ("332/100", "right"),
                             ("2", "wrong"), ("0,332", "wrong"), ("three", "")):
            p.js(f"(f => {{ f.querySelector('input').value = '{number}'; f.requestSubmit() }})"
                 "(document.querySelector('form.warm-up'))")
            assert p.js("document.querySelector('form.warm-up').dataset.is") == said
        assert not p.complaints and all(r.startswith(("file:", "data:")) for r in p.requests)


@BUILT
def test_every_link_of_a_chapter_to_an_equation_or_a_symbol_has_something_to_show():
    text = (DOCS / "_static" / "hints.js").read_text(encoding="utf-8")
    data = json.loads(text.removeprefix("window.bookHints = ").removesuffix(";\n"))
    known, seen = data["equations"].keys() | data["words"].keys(), 0
    for page in DOCS.glob("[01]*.html"):
        for to in re.findall(r'href="([^"]*#(?:equation|sym|word)-[^"]+)"', page.read_text()):
            seen += 1
            address = page.name + to if to.startswith("#") else to
            assert address in known, f"{page.name}: {to}"
    assert seen > 200
