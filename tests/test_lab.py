"""The notebooks in a real JupyterLab: the equations have the paper's numbers."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import EXECUTABLE, browser

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("02_diffusion", "04_objective")
try: import jupyterlab_myst
except ImportError: jupyterlab_myst = None
pytestmark = pytest.mark.skipif(
    not (EXECUTABLE and jupyterlab_myst), reason="needs a browser, JupyterLab and jupyterlab-myst")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    "Where a JupyterLab of our own serves a copy of the notebooks."
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "nbs", home / "nbs", ignore=shutil.ignore_patterns("_static", "runs"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", "--no-browser", "--IdentityProvider.token=", "--allow-root",
               f"--ServerApp.root_dir={home / 'nbs'}", "--ServerApp.disable_check_xsrf=True"]
    places = {f"JUPYTER_{o}_DIR": str(home / o.lower()) for o in ("CONFIG", "DATA", "RUNTIME")}
    lab = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env=os.environ | places | {"PYTHONPATH": str(ROOT)})
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0: break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree"
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(60)


def labelled(page):
    "Label -> number, as the notebook says it."
    cells = json.loads((ROOT / "nbs" / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return dict(re.findall(r"^:label: (\S+)\n:enumerator: (\S+)$", text, flags=re.M))


READ = """[...document.querySelectorAll('.jp-MarkdownCell [id^=eq-]')].map(o =>
    [o.id, (o.textContent.match(/\\(([\\w-]+)\\)\\s*$/) || [])[1] || ''])"""
ALL = "[...document.querySelectorAll('.jp-MarkdownCell .katex-display')].length"


@pytest.mark.parametrize("name", PAGES)
def test_equations_have_the_papers_numbers_and_only_those_with_a_label_have_one(address, name):
    want = labelled(name)
    assert len(want) > 5
    with browser() as page:
        page.open(f"{address}/{name}.ipynb?reset")
        page.wait("document.querySelectorAll('.jp-MarkdownCell').length > 3", 120)
        page.resize(1300, 40_000)       # the whole notebook is in the window, and so rendered
        page.wait(f"({READ}).length >= {len(want)}", 120)
        assert dict(page.js(READ)) == want
        counted = "document.querySelectorAll('.jp-MarkdownCell [id^=eq-] .katex-display').length"
        assert page.js(ALL) > page.js(counted)          # there are others,
        plain = page.js("""[...document.querySelectorAll('.jp-MarkdownCell .katex-display')].filter(
            o => !o.closest('[id^=eq-]')).map(o => o.parentElement.parentElement.textContent)""")
        assert not [o for o in plain if re.search(r"\(\d+\)$", o)]      # and they have none
        text = page.js("document.querySelector('.jp-Notebook').innerText")
        assert "{eq}" not in text and "eq-ddpm" not in text
