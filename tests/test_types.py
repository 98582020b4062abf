"""What a type checker sees: README's program, a user's with every public name, the package."""
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import ddpm_nb

ROOT = Path(__file__).resolve().parent.parent
# pyright asks the first `python` on the path what is installed; with --verifytypes nothing else
# tells it, and without torch every Tensor would be of unknown type.
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
       "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
LEAST = 0.9       # of the public symbols have a type that needs no guess

USER = f"""
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor

from ddpm_nb import (__version__, {", ".join(ddpm_nb.__all__)})

version: str = __version__
schedule = NoiseSchedule.cosine(T=100).respaced(10)
assert_type(schedule.alpha_bars, Tensor)
assert_type(SCHEDULES["linear"](T=10).T, int)
names: list[str] = [*PREDICTIONS, *VARIANCES, *LOSSES, *SAMPLERS]

diffusion = GaussianDiffusion(schedule, prediction="eps", variance="fixed_large")
assert_type(diffusion.T, int)
x0, t = torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)
x_t = diffusion.q_sample(x0, t, torch.randn(4, 3, 32, 32))
assert_type(x_t, Tensor)
mean, variance, log_variance = diffusion.q_posterior(x0, x_t, t)
assert_type(log_variance, Tensor)

config = UNetConfig.cifar10()
net = UNet(config)
assert_type(config.dropout, float)
assert_type(net.config, UNetConfig)
assert_type(diffusion.loss(net, x0), Tensor)
assert_type(diffusion.bits_per_dim(net, x0)["total"], Tensor)
assert_type(diffusion.sample(net, (4, 3, 32, 32), "ddim", 10, torch.Generator()), Tensor)
each = [torch.Generator() for _ in range(4)]
assert_type(diffusion.sample(net, (4, 3, 32, 32), generator=each, spacing="log_snr"), Tensor)
own = diffusion.sample(lambda x, t: torch.zeros_like(x), (4, 2), progress=False)
likelihood = discretized_gaussian_log_likelihood(own, own, own)
assert_type(likelihood, Tensor)

images, labels = digits()
assert_type(to_model(images), Tensor)
assert_type(to_uint8(own), Tensor)
images, labels = cifar10(Path("data"), train=False, download=False)
assert_type(labels, Tensor)
points = swiss_roll(100)

run = TrainConfig(steps=10, lr=1e-3, flip=False)
assert_type(run.to_dict(), dict[str, Any])
trainer = Trainer(net, diffusion, images, run, "runs/x", device="cpu").train()
assert_type(trainer.step, int)
for update in train(net, diffusion, [x0], TrainConfig(steps=1)): print(update.step, update.loss)
model, process = load_pretrained("digits")
assert_type(process, GaussianDiffusion)
save_pretrained("saved", net, diffusion)
"""
MISSPELT = "from ddpm_nb import NoiseShedule\n"


def pyright(*words, cwd):
    "Its answer as JSON; the test is skipped where the checker is not installed, or not to be had."
    if not importlib.util.find_spec("pyright"): pytest.skip("pyright is not installed")
    command = [sys.executable, "-m", "pyright"]
    run = partial(subprocess.run, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=600)
    done = run([*command, "--outputjson", *words])
    try: return json.loads(done.stdout)
    except ValueError:
        if run([*command, "--version"]).returncode:
            pytest.skip("pyright's own part, which it fetches when it first runs, could not be had")
        raise AssertionError(done.stdout[-2000:] + done.stderr[-2000:]) from None


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    "File name -> the errors in it."
    folder = tmp_path_factory.mktemp("user")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, flags=re.M | re.S)
    assert blocks, "README.md has no block of Python"
    programs = {"readme.py": "\n".join(blocks), "user.py": USER, "misspelt.py": MISSPELT}
    for name, text in programs.items(): (folder / name).write_text(text, encoding="utf-8")
    found = {name: [] for name in programs}
    answer = pyright(*programs, cwd=folder)
    assert answer["summary"]["filesAnalyzed"] == len(programs)
    for told in answer["generalDiagnostics"]:
        if told["severity"] != "error": continue
        line = told["range"]["start"]["line"] + 1
        found[Path(told["file"]).name].append((line, told["message"]))
    return found


def test_the_program_in_readme_has_no_type_error(errors):
    assert errors["readme.py"] == []


def test_a_program_with_every_public_name_has_no_type_error(errors):
    assert errors["user.py"] == []


def test_a_misspelt_name_is_a_type_error(errors):
    ((_, message),) = errors["misspelt.py"]
    assert "NoiseShedule" in message


def test_the_public_surface_is_annotated(tmp_path):
    answer = pyright("--verifytypes", "ddpm_nb", "--ignoreexternal", cwd=tmp_path)
    told = answer["typeCompleteness"]
    assert Path(told["packageRootDirectory"]) == ROOT / "ddpm_nb" and told["pyTypedPath"]
    missing = [s["name"] for s in told["symbols"] if s["isExported"] and not s["isTypeKnown"]]
    assert told["completenessScore"] > LEAST, f"{len(missing)} without: {' '.join(missing[:40])}"
