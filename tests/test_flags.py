"""What is true or false takes nothing else: a word such as "no" would be taken for true."""
import importlib
import inspect
import pkgutil
import re

import numpy as np
import pytest
import torch
from torch import nn

import ddpm_nb
from ddpm_nb import (EMA, SAMPLERS, GaussianDiffusion, NoiseSchedule, TrainConfig, Trainer,
                     UNetConfig, cifar10, digits, load_pretrained, rate_distortion,
                     variational_bound)
from ddpm_nb.compression import receive, send
from ddpm_nb.data import Batches, read_cifar10
from ddpm_nb.engine import images
from ddpm_nb.engine.metrics import sample_quality
from ddpm_nb.engine.recipes import recipe
from ddpm_nb.engine.runs import load_run
from ddpm_nb.evaluation import cifar10_extractor, cifar10_statistics, extract, likelihood
from ddpm_nb.schedules import _check_flags

WORDS = ["no", "false", "", 0, 1, None, torch.tensor(True)]
d = GaussianDiffusion(NoiseSchedule.linear(T=4, beta_end=0.5), variance="fixed_small")
x, t, counts = torch.ones(2, 3), torch.zeros(2, dtype=torch.long), [2] * 4
pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)


def model(x, t): return torch.zeros_like(x)
def judged(x, t): return d.p_mean_variance(model, x, t)
def never(x, t): pytest.fail("the model was asked")


CALLS = {     # of each public function that takes a flag; nothing but the flag is wrong in it
    Batches: lambda **k: Batches(pixels, 2, **k),
    EMA: lambda **k: EMA(nn.Linear(1, 1), **k),
    GaussianDiffusion.bits_per_dim: lambda **k: d.bits_per_dim(model, x, **k),
    GaussianDiffusion.interpolate: lambda **k: d.interpolate(model, x, x, 0.5, 2, **k),
    GaussianDiffusion.p_mean_variance: lambda **k: d.p_mean_variance(model, x, t, **k),
    GaussianDiffusion.read: lambda **k: d.read(x, x, t, **k),
    GaussianDiffusion.sample: lambda **k: d.sample(never, (2, 3), **{"progress": False} | k),
    GaussianDiffusion.trajectory: lambda **k: next(d.trajectory(never, (2, 3), **k)),
    TrainConfig: TrainConfig,
    Trainer: lambda **k: Trainer(nn.Linear(1, 1), d, x, **k),
    UNetConfig: UNetConfig,
    cifar10: cifar10,
    cifar10_statistics: cifar10_statistics,
    digits: digits,
    likelihood: lambda **k: likelihood(d, never, x, **k),
    load_pretrained: lambda **k: load_pretrained("digits", **k),
    load_run: lambda **k: load_run("nowhere", **k),
    rate_distortion: lambda **k: rate_distortion(d, model, x, **k),
    read_cifar10: lambda **k: read_cifar10("nowhere", **k),
    receive: lambda **k: next(receive(d, model, "0" * 99, (2, 3), counts, 0, **k)),
    recipe("digits").dataset.__func__: recipe("digits").dataset,
    recipe("digits").images.__func__: recipe("digits").images,
    recipe("digits").trainer.__func__: lambda **k: recipe("digits", "smoke").trainer(**k),
    sample_quality: lambda **k: sample_quality(pixels, cifar10_extractor(), **k),
    send: lambda **k: send(d, model, x, counts, 0, **k),
    variational_bound: lambda **k: variational_bound(d, judged, x, **k),
    # and what is not in a module's `__all__`, but called by name
    extract: lambda **k: extract(cifar10_extractor(), pixels, **k),
    **{f: lambda f=f, **k: next(f(d, model, x, 3, generator=None, **k)) for f in SAMPLERS.values()}}


def flags_of(function):
    "Its arguments that are true or false, as annotated."
    return [name for name, p in inspect.signature(function).parameters.items()
            if re.search(r"\bbool\b", str(p.annotation))]


def public():
    """Functions, classes and their own methods that the modules name; but for plotting, where the
    picture shows what it was told, and files, which is the package's own door."""
    for found in pkgutil.walk_packages(ddpm_nb.__path__, "ddpm_nb."):
        if found.name.endswith(("__main__", "_modidx", "plotting", "files")): continue
        module = importlib.import_module(found.name)
        for thing in (getattr(module, name) for name in getattr(module, "__all__", ())):
            if not callable(thing) or getattr(thing, "__module__", "") != found.name: continue
            if inspect.isclass(thing) and issubclass(thing, Exception): continue
            yield thing
            if not inspect.isclass(thing): continue
            methods = (m for name, m in inspect.getmembers(thing, inspect.isfunction)
                       if not name.startswith("_"))
            yield from (m for m in methods if m.__module__.startswith("ddpm_nb"))


def test_every_public_flag_is_tried_here():
    inside = {Trainer.save_or_note}           # a step of the training loop's
    assert {f for f in public() if flags_of(f)} - inside <= CALLS.keys()
    assert all(map(flags_of, CALLS))


@pytest.mark.parametrize("function, flag", [
    pytest.param(f, flag, id=f"{f.__qualname__}-{flag}") for f in CALLS for flag in flags_of(f)])
def test_a_flag_is_true_or_false_and_no_word(function, flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_NB_CACHE", str(tmp_path))
    monkeypatch.setattr(images, "_fetch_cifar10", lambda folder: pytest.fail("a download"))
    for word in WORDS:
        if function is digits and word is None: continue          # which is all of them
        said = f"^{flag} must be (a bool|of type bool|True or False|one of True, False, None), got "
        with pytest.raises(ValueError, match=said) as e:
            CALLS[function](**{flag: word})
        assert repr(word) in str(e.value) and "\n" not in str(e.value)


def test_numpys_true_and_false_are_flags_too():
    _check_flags(a=True, b=False, c=np.True_, d=np.bool_(False))
    with pytest.raises(ValueError, match="^b must be True or False, got 'no'$"):
        _check_flags(a=True, b="no")
