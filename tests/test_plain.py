"""The notebooks to download: no extension, no checkout and no development package is needed."""
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import plain as PLAIN
import pytest

from ddpm_nb import objective, plotting, schedules

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PATHS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def page_of(path): return path.relative_to(NBS).with_suffix("").as_posix()


def made(path): return PLAIN.plain(json.loads(path.read_text(encoding="utf-8")), page_of(path))


def without_listings(prose):
    "JavaScript in the prose is no Markdown."
    return re.sub(r"^```javascript\n.*?^```$", "", prose, flags=re.M | re.S)


def code(nb): return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", PATHS, ids=page_of)
def test_no_word_of_an_extension_is_left(path):
    nb = made(path)
    prose = without_listings("\n".join(PLAIN.prose(nb)))
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", prose, flags=re.S))
    assert not re.findall(r"```\{.*|\{\w+\}`|^\([\w-]+\)=|^:::|^:label:", prose, flags=re.M)
    assert outside.count("<details>") == outside.count("</details>")
    assert not any(re.search(r"^#\s*\|", c, flags=re.M) or "fastcore" in c for c in code(nb))


@pytest.mark.parametrize("path", PATHS, ids=page_of)
def test_no_notebook_keeps_a_widget(path):
    "Read without its kernel it is an error, or a line that says VBox(children=..."
    nb = json.loads(path.read_text(encoding="utf-8"))
    kept = [o for c in nb["cells"] for o in c.get("outputs", []) if PLAIN.is_view(o)]
    assert not kept and "widgets" not in nb["metadata"]


@pytest.mark.parametrize("name", ["01_schedules", "04_objective"])
def test_the_sliders_of_a_notebook_draw_for_every_place_they_can_stand_at(name, monkeypatch):
    "With a stand-in for ipywidgets, which it need not have."
    cells = code(json.loads((NBS / f"{name}.ipynb").read_text(encoding="utf-8")))
    (cell,) = (c for c in cells if "ipywidgets import interact" in c)
    made = {}
    interact = lambda **places: lambda draw: made.update(draw=draw, places=places)
    monkeypatch.setitem(sys.modules, "ipywidgets", SimpleNamespace(interact=interact))
    names = {"lines": plotting.lines, "NoiseSchedule": schedules.NoiseSchedule,
             "SCHEDULES": schedules.SCHEDULES, "ReverseProcess": objective.ReverseProcess}
    exec(cell, names)
    assert made["draw"]().alt
    for name, places in made["places"].items():
        for place in places[:2] if isinstance(places, tuple) else places:
            assert made["draw"](**{name: place}).alt


def test_a_widget_is_dropped_when_a_notebook_is_run_and_when_it_is_made_plain():
    nbformat = pytest.importorskip("nbformat")
    import run_notebooks
    new, view = nbformat.v4, "application/vnd.jupyter.widget-view+json"
    shown = [new.new_output("display_data", {view: {}, "text/plain": "VBox(children=())"}),
             new.new_output("stream", text="step 1\rstep 2")]
    cells = [new.new_markdown_cell("# Title"), new.new_code_cell("display(slider)", outputs=shown)]
    nb = new.new_notebook(cells=cells, metadata={"widgets": {}})
    (left,) = PLAIN.plain(json.loads(nbformat.writes(nb)), "x")["cells"][2]["outputs"]
    assert left["output_type"] == "stream"
    kept = run_notebooks.tidied(nb)
    assert [o.text for o in kept.cells[1].outputs] == ["step 2"] and not kept.metadata


def test_an_equation_has_the_number_that_the_site_gives_it():
    text = "```{math}\n:label: eq-ddpm-4\nq = 1\n```\nBy {eq}`eq-ddpm-4` and {eq}`eq-ddpm-14`:"
    said = PLAIN.plain_text(text, "02_diffusion")
    assert "$$\nq = 1 \\tag{4}\n$$" in said
    assert "[(4)](#eq-ddpm-4)" in said and "[(14)](04_objective.ipynb#eq-ddpm-14)" in said
    assert "../04_objective.ipynb#eq-ddpm-14" in PLAIN.plain_text(text, "engine/runs")


def test_every_equation_carries_its_number_for_readers_that_would_count_anew():
    done = subprocess.run([sys.executable, "tools/equations.py", "--check"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_folds_and_boxes_are_html_and_markdown_also_one_in_the_other():
    inner = "```{dropdown} Why\nSo.\n```"
    text = f"````{{admonition}} What goes wrong\n:class: warning\nThis.\n\n{inner}\n````"
    lines = PLAIN.plain_text(text, "x").split("\n")
    assert lines[0] == "> **What goes wrong**" and "> This." in lines
    assert "> <summary>Why</summary>" in lines and "> </details>" in lines


def test_a_badge_leads_to_colab_where_the_project_has_an_address_and_nowhere_else():
    assert PLAIN.colab("", "01_schedules") == ""
    badge = PLAIN.colab("https://github.com/someone/ddpm_nb", "engine/runs")
    assert "github/someone/ddpm_nb/blob/main/docs/notebooks/engine/runs.ipynb" in badge


SITE = "https://book.example.org/ddpm"


@pytest.mark.parametrize("text, page, there", [
    ("[(4)](02_diffusion.ipynb#eq-ddpm-4)", "04_objective", "02_diffusion.html#equation-eq-ddpm-4"),
    ("[far](../05_sampling.ipynb#sec-a)", "engine/runs", "05_sampling.html#sec-a"),
    ("[chapter 3](../03_bound.ipynb)", "experiments/digits", "03_bound.html"),
    ("[long runs](runs.ipynb), again", "engine/many", "engine/runs.html"),
    ("[answers](answers/03_bound.ipynb)", "03_bound", "student/answers/03_bound.ipynb")])
def test_a_link_to_another_page_leads_to_the_site_where_there_is_one(text, page, there):
    nb = dict(cells=[dict(cell_type="markdown", source=text, metadata={}, id="a")])
    said = lambda site: "".join(PLAIN.plain(nb, page, site=site)["cells"][0]["source"])
    assert f"]({SITE}/{there})" in said(SITE) and said("") == text


def test_a_link_in_a_table_leads_to_the_site_too():
    link = '<a href="../02_diffusion.ipynb#Some-words" class="at-equation-eq-ddpm-4">(4)</a>'
    output = {"data": {"text/html": [link]}, "metadata": {}}
    cells = [dict(cell_type="code", source="1", metadata={}, id="a", outputs=[output])]
    made = PLAIN.plain(dict(cells=cells), "appendix/paper_map", site=SITE)["cells"][0]["outputs"]
    there = f'<a href="{SITE}/02_diffusion.html#equation-eq-ddpm-4">(4)</a>'
    assert "".join(made[0]["data"]["text/html"]) == there
    assert output["data"]["text/html"] == [link]


def test_a_links_own_page_and_other_addresses_are_left_alone():
    text = "[here](#sec-a), [paper](https://arxiv.org/abs/2006.11239)"
    assert PLAIN.linked_text(text, "01_schedules", SITE) == text


@pytest.mark.parametrize("path", PATHS, ids=page_of)
def test_with_an_address_no_download_leads_to_a_notebook_that_is_not_there(path):
    nb = PLAIN.plain(json.loads(path.read_text(encoding="utf-8")), page_of(path), site=SITE)
    outputs = [o for c in nb["cells"] for o in c.get("outputs", [])]
    shown = ["".join(o.get("data", {}).get("text/html", "")) for o in outputs]
    text = without_listings("\n".join(PLAIN.prose(nb) + shown))
    assert not re.findall(r"(?:\]\(|href=\")(?!https?:|#)[^)\s\"]+", text)


def test_the_code_of_the_moving_parts_is_in_its_download():
    prose = "\n".join(PLAIN.prose(made(NBS / "appendix" / "live.ipynb")))
    assert "](../_live/" not in prose and prose.count("```javascript\n") == 8
