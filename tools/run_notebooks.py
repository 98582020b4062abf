"""Run notebooks in place and keep their outputs, cleaned: `make notebooks`, or with `NB=nbs/plotting.ipynb` one of them."""
import base64, io, subprocess, sys, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def compact(png):
    "The same picture (base64) in at most 256 colours, if that makes it smaller: photographs then take half the space."
    buffer, picture = io.BytesIO(), Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1).save(buffer, "PNG", optimize=True)
    return min(base64.b64encode(buffer.getvalue()).decode(), png.strip(), key=len)


def refresh(path):
    "Execute one notebook; it is written only if every cell ran."
    nb, start = nbformat.read(path, 4), time.time()
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(nb, timeout=None, kernel_name="python3", resources=where).execute()
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):   # a progress bar leaves only its last state
            if output.output_type == "stream":
                output.text = "\n".join(line.split("\r")[-1] for line in output.text.split("\n"))
            data = output.get("data", {})
            if "image/png" in data: data["image/png"] = compact(data["image/png"])
    nbformat.write(nb, path)
    subprocess.run([str(Path(sys.executable).parent / "nbdev_clean"), "--fname", str(path)], cwd=ROOT, check=True)
    print(f"{path.relative_to(ROOT)}: {time.time() - start:.0f} s, {path.stat().st_size / 1024:.0f} kB", flush=True)


if __name__ == "__main__":
    everything = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    chosen = [Path(p).resolve() for p in sys.argv[1:]] or everything
    for path in chosen: refresh(path)
