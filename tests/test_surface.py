"""What the package promises from outside: its names, and that importing it costs nothing."""
import ast
import importlib
import math
import subprocess
import sys

import pytest
import torch

import ddpm_nb
from ddpm_nb import GaussianDiffusion, NoiseSchedule

PROMISED = """
    NoiseSchedule GaussianDiffusion UNet UNetConfig EMA Trainer TrainConfig train
    discretized_gaussian_log_likelihood load_pretrained save_pretrained cifar10 digits
    to_model to_uint8 Statistics frechet_distance inception_score
""".split()
BEFORE = """
    discretized_gaussian_log_likelihood gaussian_kl gaussian_log_likelihood variational_bound
    rate_distortion cifar10 digits image_folder swiss_roll to_model to_uint8 ForwardProcess LOSSES
    PREDICTIONS VARIANCES IdealDenoiser ReverseProcess load_pretrained save_pretrained SAMPLERS
    GaussianDiffusion NoiseSchedule EMA TrainConfig Trainer UNet UNetConfig
""".split()      # what version 0.1.0 had at its top


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_name_is_importable(name):
    assert callable(getattr(ddpm_nb, name)) and name in ddpm_nb.__all__


@pytest.mark.parametrize("name", sorted({*BEFORE, *ddpm_nb.__all__}))
def test_a_public_name_is_the_object_of_the_one_module_that_names_it(name):
    modules = [importlib.import_module(f"ddpm_nb.{m}") for m in ddpm_nb._MODULES]
    (home,) = (m for m in modules if name in m.__all__)
    assert name in ddpm_nb.__all__ and name in dir(ddpm_nb)
    assert getattr(ddpm_nb, name) is getattr(home, name)


def test_a_type_checker_and_the_interpreter_search_the_same_modules():
    tree = ast.parse(open(ddpm_nb.__file__, encoding="utf-8").read())
    (block,) = (line for line in tree.body if isinstance(line, ast.If))
    assert [line.module for line in block.body] == list(ddpm_nb._MODULES)
    assert all(line.names[0].name == "*" for line in block.body)


def fresh(code):
    "What a new interpreter prints."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_no_torch_and_a_name_brings_its_module():
    assert fresh("import sys, ddpm_nb; print(*{'torch', 'numpy'} & set(sys.modules))") == ""
    assert fresh("from ddpm_nb import *; print(NoiseSchedule.__module__)") == "ddpm_nb.schedules"
    assert fresh("import ddpm_nb; print(ddpm_nb.data.to_model.__name__)") == "to_model"
    imported = "import sys; from ddpm_nb import UNet; print('ddpm_nb.engine.runs' in sys.modules)"
    assert fresh(imported) == "False"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ddpm_nb' has no attribute 'nothing'"):
        ddpm_nb.nothing     # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from ddpm_nb import nothing  # noqa: F401
    assert not hasattr(ddpm_nb, "file_md5")       # public in its module, not at the top


def test_the_diffusion_is_the_papers_where_nothing_is_said():
    d = GaussianDiffusion(NoiseSchedule.linear())
    assert (d.prediction, d.variance) == ("eps", "fixed_large")


def test_loss_of_a_model_that_knows_the_noise_is_0_and_of_one_that_says_0_is_1():
    d = GaussianDiffusion(NoiseSchedule.linear())
    x0, noise = torch.zeros(4000, 2), torch.randn(4000, 2)
    t = torch.randint(1000, (4000,))
    assert d.loss(lambda x, t: noise, x0, t, noise) == 0
    assert abs(d.loss(lambda x, t: torch.zeros_like(x), x0) - 1) < 5 * math.sqrt(2 / 8000)
