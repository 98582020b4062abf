"""What moves on the site: JavaScript from nbs/_live, the digits' network, films from GIFs.

    python tools/live.py FOLDER    write live.js and live-digits.js there, as tools/site.py does

The sources are modules. A page that is opened from disk may not load modules, so the site gets them
as one plain script.
"""
import argparse, base64, hashlib, html, io, json, re
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SOURCES, ASSETS = ROOT / "nbs" / "_live", ROOT / "ddpm_nb" / "assets"
DIGITS = 10   # real ones that are shown, the first of those held out from training


# --- the script ----------------------------------------------------------------------------------

def modules():
    "The modules, each after those that it imports: name -> source."
    found = {}
    def visit(name):
        if name in found: return
        source = (SOURCES / name).read_text(encoding="utf-8")
        for other in re.findall(r'from "\./(\S+)";$', source, flags=re.M): visit(other)
        found[name] = source
    visit("main.js")
    return found


def scoped(name, source):
    "A module as a function that is called at once and returns what the module exports."
    source = re.sub(r'^import (\{[^}]+\})\s+from "\./(\S+)";$',
                    r'const \1 = modules["\2"];', source, flags=re.M)
    exported = re.findall(r"^export (?:const|function\*?) (\w+)", source, flags=re.M)
    body = re.sub(r"^export ", "", source, flags=re.M)
    return (f'modules["{name}"] = (() => {{\n{body}'
            f'return {{ {", ".join(exported)} }};\n}})();\n')


def script():
    "All modules as one script."
    parts = "\n".join(scoped(name, source) for name, source in modules().items())
    return ("// Written by tools/live.py from the modules in nbs/_live.\n"
            f'(() => {{\n"use strict";\nconst modules = {{}};\n\n{parts}}})();\n')


# --- the network ---------------------------------------------------------------------------------

def network():
    "The packaged network of digits as a script: its three files, and a few digits it never saw."
    folder = ASSETS / "digits"
    encoded = lambda data: base64.b64encode(data).decode()
    from ddpm_nb.data import digits
    shown = digits(train=False)[0][:DIGITS].numpy()
    given = {name: json.loads((folder / path).read_text(encoding="utf-8")) for name, path in
             (("unet", "unet/config.json"), ("scheduler", "scheduler/scheduler_config.json"))}
    weights = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    given |= {"weights": encoded(weights), "digits": encoded(shown.tobytes()), "count": DIGITS}
    return ("// Written by tools/live.py from ddpm_nb/assets/digits.\n"
            f"globalThis.ddpmDigits = {json.dumps(given)};\n")


# --- films ---------------------------------------------------------------------------------------

def film(gif, alt, folder, link):
    """A GIF as HTML for nbs/_live/player.js; its frames, in rows, as one picture in `folder`.

    Without the script, the first frame is seen.
    """
    image, frames, durations = Image.open(io.BytesIO(gif)), [], []
    for i in range(image.n_frames):
        image.seek(i)
        frames.append(np.asarray(image.convert("RGB")))
        durations.append(image.info.get("duration", 100))
    height, width, _ = frames[0].shape
    columns = max(1, min(len(frames), 4000 // width))
    frames += [np.full_like(frames[0], 255)] * (-len(frames) % columns)
    rows = [np.concatenate(frames[i:i + columns], 1) for i in range(0, len(frames), columns)]
    name = f"{hashlib.sha256(gif).hexdigest()[:32]}.webp"
    folder.mkdir(parents=True, exist_ok=True)
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.save(folder / name, lossless=True, quality=100, method=4)
    data = {"live": "player", "frames": len(durations), "columns": columns,
            "duration": durations[0], "hold": durations[-1]}
    said = " ".join(f'data-{key}="{value}"' for key, value in data.items())
    return (f'<div class="live live-player" {said}>'
            f'<div class="live-frame" style="aspect-ratio: {width} / {height}; width: {width}px">'
            f'<img src="{link}/{name}" alt="{html.escape(alt)}" style="width: {100 * columns}%">'
            "</div></div>")


# --- the page that shows the script --------------------------------------------------------------

LISTED = re.compile(r"^\[(\S+\.js)\]\((?:\.\./)*_live/\1\)$", flags=re.M)


def listed(text):
    "A link to a module that stands alone on its line becomes the module."
    source = lambda m: (SOURCES / m[1]).read_text(encoding="utf-8").strip()
    return LISTED.sub(lambda m: f"```javascript\n{source(m)}\n```", text)


def write(folder):
    "The two scripts."
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("live.js", script()), ("live-digits.js", network())):
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path, help="where to: docs/_static is the site's")
    write(parser.parse_args().folder)
