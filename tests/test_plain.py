"""The notebooks to download: no extension, no checkout and no development package is needed."""
import json
import re
import subprocess
import sys
from pathlib import Path

import plain as PLAIN
import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PATHS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def page_of(path): return path.relative_to(NBS).with_suffix("").as_posix()


def made(path): return PLAIN.plain(json.loads(path.read_text(encoding="utf-8")), page_of(path))


def code(nb): return ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", PATHS, ids=page_of)
def test_no_word_of_an_extension_is_left(path):
    nb = made(path)
    prose = "\n".join(PLAIN.prose(nb))
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", prose, flags=re.S))
    assert not re.findall(r"```\{.*|\{\w+\}`|^\([\w-]+\)=|^:::|^:label:", prose, flags=re.M)
    assert outside.count("<details>") == outside.count("</details>")
    assert not any(re.search(r"^#\s*\|", c, flags=re.M) or "fastcore" in c for c in code(nb))


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


ALONE = """
import json, sys
from importlib.machinery import PathFinder
there = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, path=None, target=None:
    None if name.split(".")[0] in {names} else there(name, path, target))
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in json.load(open({path!r}))["cells"]:
    if cell["cell_type"] != "code": continue
    done = shell.run_cell("".join(cell["source"]))
    if not done.success: sys.exit("".join(cell["source"]) + str(done.error_in_exec))
"""
FOR_DEVELOPERS = ("fastcore", "nbdev", "execnb", "diffusers", "scipy", "sklearn", "pytest", "onnx",
                  "onnxruntime", "onnxscript", "tensorboard", "hypothesis", "transformers")


@pytest.mark.parametrize("page", ["01_schedules", "07_data", "engine/recipes"])
def test_one_notebook_alone_runs_with_what_the_package_itself_requires(page, tmp_path):
    "In an empty folder, with the packages that only developers have hidden."
    alone = tmp_path / "alone.ipynb"
    alone.write_text(json.dumps(made(NBS / f"{page}.ipynb")), encoding="utf-8")
    program = ALONE.format(names=FOR_DEVELOPERS, path=str(alone))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
