"""Run notebooks in place and keep their outputs, cleaned.

    python tools/run_notebooks.py                          all of them, as `make notebooks` does
    python tools/run_notebooks.py nbs/engine/runs.ipynb    one; `make notebooks NB=...`
"""
import argparse, base64, io, subprocess, sys, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from plain import is_view

ROOT = Path(__file__).resolve().parent.parent


def compact(png):
    "The same picture (base64) in at most 256 colours, if that is smaller: half, for photographs."
    buffer, picture = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    few = picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)
    few.save(buffer, "PNG", optimize=True)
    return min(base64.b64encode(buffer.getvalue()).decode(), png.strip(), key=len)


def tidy(output):
    "What need not be kept: the states of a progress bar before its last, colours that nobody sees."
    if output.output_type == "stream":
        output.text = "\n".join(line.split("\r")[-1] for line in output.text.split("\n"))
    data = output.get("data", {})
    if "image/png" in data: data["image/png"] = compact(data["image/png"])


def tidied(nb):
    "Make a notebook that was run what is kept of it."
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code": continue
        cell.outputs = [o for o in cell.outputs if not is_view(o)]
        for output in cell.outputs: tidy(output)
    return nb


def refresh(path):
    "Execute one notebook; it is written only if every cell ran."
    nb, start = nbformat.read(path, 4), time.time()
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(nb, timeout=None, kernel_name="python3", resources=where,
                   coalesce_streams=True).execute()
    nbformat.write(tidied(nb), path)
    clean = str(Path(sys.executable).parent / "nbdev_clean")
    subprocess.run([clean, "--fname", str(path)], cwd=ROOT, check=True)
    seconds, size = time.time() - start, path.stat().st_size / 1024
    print(f"{path.relative_to(ROOT)}: {seconds:.0f} s, {size:.0f} kB", flush=True)


def everything():
    notebooks = (ROOT / "nbs").rglob("*.ipynb")
    return sorted(p for p in notebooks if ".ipynb_checkpoints" not in p.parts)


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("notebooks", nargs="*", type=Path, help="their paths; all of them")
    for path in parser.parse_args().notebooks or everything(): refresh(path.resolve())
