"""The notebooks in a real JupyterLab: equations and references have the paper's numbers, and what
is saved is what is committed."""
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import plain
import pytest
from browser import EXECUTABLE, browser

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).resolve().parent.parent
PAGES = ("02_diffusion", "04_objective")
try: import jupyterlab_myst
except ImportError: jupyterlab_myst = None
NEEDS_LAB = pytest.mark.skipif(
    not jupyterlab_myst, reason="needs JupyterLab and jupyterlab-myst")
WITHOUT_BROWSER = pytest.mark.skipif(not EXECUTABLE, reason="no Chromium or Chrome here")
CONFIG = "tools/jupyter_server_config.py"      # what `make lab` starts JupyterLab with


def served(lab, runtime):
    "The address that JupyterLab itself names once it answers."
    end = time.monotonic() + 120
    while lab.poll() is None and time.monotonic() < end:
        for told in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(json.JSONDecodeError):     # half written
                return f"http://127.0.0.1:{json.loads(told.read_text())['port']}"
        time.sleep(0.5)
    pytest.fail("JupyterLab does not answer")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    "Where a JupyterLab of our own serves a copy of the notebooks."
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "nbs", home / "nbs", ignore=shutil.ignore_patterns("_static", "runs"))
    shutil.copy(ROOT / "settings.ini", home)        # whose words on what to keep the server reads
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]      # or, where another process takes it meanwhile, the next
    options = [f"--port={port}", "--no-browser", "--IdentityProvider.token=", "--allow-root",
               f"--ServerApp.root_dir={home / 'nbs'}", "--ServerApp.disable_check_xsrf=True",
               f"--config={ROOT / CONFIG}"]
    # every cell is rendered, not only those in the window
    settings = home / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}', encoding="utf-8")
    places = {f"JUPYTER_{o}_DIR": str(home / o.lower()) for o in ("CONFIG", "DATA", "RUNTIME")}
    places["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    lab = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=os.environ | places | {"PYTHONPATH": str(ROOT)})
    try: yield served(lab, home / "runtime")
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(60)


def labelled(page):
    "Label -> number, as the notebook says it."
    cells = json.loads((ROOT / "nbs" / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return dict(re.findall(r"^:label: (\S+)\n:enumerator: (\S+)$", text, flags=re.M))


def elsewhere(page):
    "The labels of other pages' equations that the notebook refers to."
    text = (ROOT / "nbs" / f"{page}.ipynb").read_text(encoding="utf-8")
    return set(re.findall(r"\.ipynb#(eq-[\w-]+)\)", text))


@NEEDS_LAB
def test_a_notebook_saved_from_jupyterlab_is_the_one_that_is_committed(address):
    "By the server's own save, with all that JupyterLab adds when it has run a notebook."
    place = f"{address}/api/contents/01_schedules.ipynb"
    model = json.load(urllib.request.urlopen(place, timeout=60))
    added = {"name": "python", "version": "3.11.9", "mimetype": "text/x-python"}
    model["content"]["metadata"] |= {"language_info": added}
    for i, cell in enumerate(model["content"]["cells"], 1):
        cell["metadata"] |= {"execution": {"iopub.status.busy": "2026"}, "trusted": True}
        if cell["cell_type"] == "code": cell["execution_count"] = i
    words = json.dumps({k: model[k] for k in ("type", "format", "content")}).encode()
    asked = urllib.request.Request(place, words, {"Content-Type": "application/json"},
                                   method="PUT")
    urllib.request.urlopen(asked, timeout=60).close()
    saved = json.load(urllib.request.urlopen(place, timeout=60))["content"]
    for cell in saved["cells"]: cell["metadata"].pop("trusted")       # not in the file
    assert saved == nbformat.read(ROOT / "nbs/01_schedules.ipynb", 4)


def test_every_way_to_jupyterlab_that_the_project_names_saves_notebooks_clean():
    for name in ("Makefile", "nbs/index.ipynb", "CONTRIBUTING.md"):
        said = re.findall(r"-m jupyterlab[^`\n]*", (ROOT / name).read_text(encoding="utf-8"))
        assert said or name == "CONTRIBUTING.md"
        assert all(f"--config={CONFIG}" in line for line in said), name


READ = """[...document.querySelectorAll('.jp-MarkdownCell [id^=eq-]')].map(o =>
    [o.id, (o.textContent.match(/\\(([\\w-]+)\\)\\s*$/) || [])[1] || ''])"""
# references: where each leads, by its label, and what stands there
POINTED = """[...document.querySelectorAll('.jp-MarkdownCell a')].map(o =>
    [(o.getAttribute('href') || '').match(/#(?:.*-)?(eq-[\\w-]+)$/)?.[1], o.textContent.trim()]
  ).filter(o => o[0])"""
ALL = "[...document.querySelectorAll('.jp-MarkdownCell .katex-display')].length"


@NEEDS_LAB
@WITHOUT_BROWSER
@pytest.mark.parametrize("name", PAGES)
def test_equations_have_the_papers_numbers_and_only_those_with_a_label_have_one(address, name):
    want = labelled(name)
    assert len(want) > 5
    with browser() as page:
        page.open(f"{address}/lab/tree/{name}.ipynb?reset")
        page.wait("document.querySelectorAll('.jp-MarkdownCell').length > 3", 120)
        page.wait(f"({READ}).length >= {len(want)}", 120)
        leading = f"({POINTED}).some(p => p[0] == o)"
        page.wait(f"{sorted(elsewhere(name))}.every(o => {leading})", 120)
        assert dict(page.js(READ)) == want
        counted = "document.querySelectorAll('.jp-MarkdownCell [id^=eq-] .katex-display').length"
        assert page.js(ALL) > page.js(counted)          # there are others,
        unlabelled = page.js("""
            [...document.querySelectorAll('.jp-MarkdownCell .katex-display')]
            .filter(o => !o.closest('[id^=eq-]'))
            .map(o => o.parentElement.parentElement.textContent)""")
        assert not [o for o in unlabelled if re.search(r"\(\d+\)$", o)]      # and they have none
        text = page.js("document.querySelector('.jp-Notebook').innerText")
        assert "{eq}" not in text and "eq-ddpm" not in text
        numbers, pointed = plain.equations(), page.js(POINTED)
        assert all(said == f"({numbers[label][1]})" for label, said in pointed), pointed
        away = {label for label, _ in pointed if numbers[label][0] != name}
        assert away == elsewhere(name) and len(pointed) > len(away)
