"""What runs the notebooks to download: an environment that holds no more than they may need."""
import subprocess
import sys

import pytest

ALONE = pytest.importorskip("run_downloads", reason="Jupyter is not here")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    "A folder with the environment in it, its kernel, and what its pages see."
    scratch = tmp_path_factory.mktemp("alone")
    python = ALONE.environment(scratch / "env", ALONE.requirements(), ALONE.build_wheel(scratch))
    ALONE.kernel(scratch, python)
    return scratch, python, ALONE.surroundings(scratch, python)


def says(bare, *command):
    scratch, python, env = bare
    done = subprocess.run([python, *command], cwd=scratch, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_the_package_what_that_requires_a_kernel_and_nothing_else(bare):
    code = "from importlib.metadata import distributions as d; print(*(o.name for o in d()))"
    held = {ALONE.canonicalize_name(name) for name in says(bare, "-c", code).split()}
    assert held == {*ALONE.brought_by(ALONE.requirements()), "ddpm-nb"}
    assert {"torch", "sympy", "ipykernel"} <= held
    assert not held & {"fastcore", "nbdev", "diffusers", "scipy", "ipywidgets", "pytest", "onnx"}


def test_what_a_developer_has_is_not_found_there_and_the_package_is_the_wheels(bare):
    code = "import importlib.util as u, ddpm_nb; print(ddpm_nb.__file__, " \
           "*(name for name in ('fastcore', 'scipy', 'tools', 'plain') if u.find_spec(name)))"
    (file,) = says(bare, "-c", code).split()
    assert file.startswith(str(bare[0] / "env"))


def notebook(*sources):
    cells = [dict(cell_type="code", id=f"c{i}", metadata={}, source=text, outputs=[],
                  execution_count=None) for i, text in enumerate(sources)]
    return dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)


@pytest.mark.parametrize("page, sources, ok, said", [
    ("fails", ("x = 1", "import fastcore"), False, "No module named 'fastcore'"),
    ("wrong", ("from fastcore.test import test_eq", "test_eq(1, 2)"), False, "1 is not 2"),
    ("appendix/stops", ("raise SystemExit('A checkout!')", "1 / 0"), True, "stops: A checkout!"),
    ("stops", ("raise SystemExit('A checkout!')",), False, "FAILED"),
    ("runs", ("import os, torch, ddpm_nb", "assert sorted(os.listdir()) == ['alone.ipynb']",
              "assert not torch.cuda.is_available()"), True, "runs: "),
], ids=lambda o: o if isinstance(o, str) else "")
def test_a_page_that_fails_is_reported_and_one_of_the_appendix_that_stops_in_words_is_not(
        bare, page, sources, ok, said, capsys):
    nb = notebook(*sources)
    nb["cells"].insert(0, dict(cell_type="markdown", id="title", metadata={}, source="# A page"))
    assert bool(ALONE.run(page, nb, bare[0], bare[2])) == ok
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("code, more", [
    ("import torch, numpy, IPython", False), ("def f():\n    from scipy.linalg import sqrtm", True),
    ("from diffusers import UNet2DModel", True), ("x = cifar10(train=False)", True),
    ("net = UNet(UNetConfig.cifar10())", False), ("Path('samplers.json')", True),
    ("from fastcore.test import test_eq", False), ("Path('..', '..', 'tools')", True),
    ("from ipywidgets import interact", False)])
def test_a_page_does_more_in_a_checkout_if_it_uses_what_a_reader_lacks(code, more):
    assert ALONE.has_more("05_sampling", notebook(code)) == more


def test_what_does_more_in_a_checkout_is_some_of_the_notebooks():
    pages, found = {page for _, page, _ in ALONE.notebooks()}, set(ALONE.more())
    assert {"09_evaluation", "engine/pretrained", "experiments/cifar10"} <= found < pages
    assert not found & {"01_schedules", "08_training", "experiments/digits", "engine/cli"}


def test_each_name_is_one_notebooks():
    "nbdev_test is given the names of files, without their folders."
    names = [page.split("/")[-1] for _, page, _ in ALONE.notebooks()]
    assert len(names) == len({*names})


def test_a_page_that_nobody_wrote_is_an_error():
    tool = ALONE.ROOT / "tools" / "run_downloads.py"
    done = subprocess.run([sys.executable, tool, "99_end"], capture_output=True, text=True)
    assert done.returncode and "no such page: 99_end" in done.stderr
