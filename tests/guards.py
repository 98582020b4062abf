"""What several tests share: a watch over devices, a network with nothing left at zero, processes
that end with their test, and short names for what is said often."""
import ast
import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import ddpm_nb

HOME = Path(ddpm_nb.__file__).parents[1]        # of the package that is tested
PATIENCE = 300      # seconds: two processes that import torch on one busy core take a minute
STARTED = []


def started(*command, **options):
    "A process that ends with its test at the latest, see conftest.py."
    STARTED.append(subprocess.Popen(*command, **options))
    return STARTED[-1]


def end_processes():
    "End what is left of those that a test has started."
    for process in STARTED:
        if process.poll() is None: process.kill()
        process.wait()
    STARTED.clear()


def run_python(code, *args, **env):
    "A Python process of its own, which finds the package and the tests."
    path = f"{HOME}{os.pathsep}{Path(__file__).parent}"
    return started([sys.executable, "-c", code, *map(str, args)], text=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env},
                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@contextlib.contextmanager
def default_dtype(dtype):
    "PyTorch's default, for as long as it lasts."
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try: yield
    finally: torch.set_default_dtype(usual)


def cells_run(notebook, cells, *markers, **given):
    "Run the notebook's imports, and the cells that contain the markers, in the page's order."
    names = {"__name__": "notebook", "device": "cpu"} | given
    for c in cells:
        first = "import ddpm_nb.plotting as plot" in c.source
        if first or any(m in c.source for m in markers):
            exec(compile(c.source, str(notebook), "exec"), names)
        if first: names |= given
    return names


def calls_of(cells, name):
    "What is written of each call, in code cells, of a function whose name matches."
    calls = [(c.source, call) for c in cells for call in ast.walk(ast.parse(c.source))
             if isinstance(call, ast.Call) and re.match(name, ast.unparse(call.func))]
    return [ast.get_source_segment(*found) for found in calls]


def refused(match): return pytest.raises(ValueError, match=match)
def gen(seed=0): return torch.Generator().manual_seed(seed)
def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=gen(seed), dtype=dtype)


class NoStrangers(TorchDispatchMode):
    "Fails when an operation makes a CPU tensor out of nothing, or mixes one with meta tensors."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = torch.utils._pytree.tree_leaves
        tensors = lambda tree: [x for x in leaves(tree) if isinstance(x, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        ins = tensors((args, kwargs))
        kinds = {x.device.type for x in ins if x.ndim or x.device.type == "meta"}
        if len(kinds) > 1 and func is not torch.ops.aten.copy_.default:
            raise RuntimeError(f"{func} mixes {kinds}")
        if not ins and any(x.device.type == "cpu" for x in tensors(out)):
            raise RuntimeError(f"{func} makes a CPU tensor")
        return out


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    "Every parameter drawn at random, norms and biases too, so that no term hides behind a zero."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(std=p[0].numel() ** -0.5 if p.ndim > 1 else 0.3, generator=g)
            if "norm" in name and name.endswith("weight"): p.add_(1)
    return net
