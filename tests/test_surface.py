"""What the package promises from outside: names, shapes, dtypes, errors."""
import ast
import importlib
import math
import subprocess
import sys

import pytest
import torch

import ddpm_nb
from ddpm_nb import (GaussianDiffusion, NoiseSchedule, UNet, UNetConfig,
                     discretized_gaussian_log_likelihood)

SCHEDULES = ["linear", "quadratic", "constant", "jsd", "cosine"]


def zero(x, t):
    "A model that predicts nothing."
    return torch.zeros_like(x)


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


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_float64_of_shape_T_and_default_to_1000_steps(name):
    s = getattr(NoiseSchedule, name)()
    for table in (s.betas, s.alphas, s.alpha_bars):
        assert table.shape == (1000,) and table.dtype == torch.float64
    assert getattr(NoiseSchedule, name)(T=10).betas.shape == (10,)


def test_defaults_are_the_papers():
    s = NoiseSchedule.linear()
    assert s.betas[0] == 1e-4 and abs(s.betas[-1] - 0.02) < 1e-17
    assert (NoiseSchedule.constant().betas == 0.02).all()
    fractions = torch.tensor([1 / 4, 1 / 3, 1 / 2, 1], dtype=torch.float64)
    assert torch.equal(NoiseSchedule.jsd(T=4).betas, fractions)
    assert NoiseSchedule.cosine().betas.max() == 0.999
    d = GaussianDiffusion(s)
    assert (d.prediction, d.variance) == ("eps", "fixed_large")


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 8, 8)])
def test_all_calls_take_data_of_any_shape(shape):
    d = GaussianDiffusion(NoiseSchedule.linear(T=20), prediction="eps", variance="fixed_large")
    x0 = torch.randint(256, shape) / 127.5 - 1
    t = torch.tensor([0, 5, 12, 19])
    x_t = d.q_sample(x0, t, torch.randn(shape))
    mean, variance, log_variance = d.q_posterior(x0, x_t, t)
    assert x_t.shape == mean.shape == shape
    assert torch.broadcast_shapes(variance.shape, log_variance.shape, shape) == shape
    assert d.loss(zero, x0).shape == ()
    terms = d.bits_per_dim(zero, x0)
    shapes = {"total": (4,), "prior": (4,), "vb": (4, 20), "mse": (4, 20)}
    assert {k: tuple(v.shape) for k, v in terms.items()} == shapes
    torch.testing.assert_close(terms["total"], terms["prior"] + terms["vb"].sum(1))
    for sampler in ("ddpm", "ddim", "dpm++", "unipc", "adams"):
        noise = torch.Generator().manual_seed(0)
        x = d.sample(zero, shape, sampler=sampler, steps=5, generator=noise, progress=False)
        assert x.shape == shape and x.abs().max() <= 1


def test_posterior_variance_is_0_at_index_0_and_its_logarithm_that_of_index_1():
    d = GaussianDiffusion(NoiseSchedule.linear())
    x = torch.zeros(2, 1, dtype=torch.float64)
    _, variance, log_variance = d.q_posterior(x, x, torch.tensor([0, 1]))
    assert variance[0] == 0 and log_variance[0] == log_variance[1]
    torch.testing.assert_close(log_variance[1], variance[1].log())


def test_loss_of_a_model_that_knows_the_noise_is_0_and_of_one_that_says_0_is_1():
    d = GaussianDiffusion(NoiseSchedule.linear())
    x0, noise = torch.zeros(4000, 2), torch.randn(4000, 2)
    t = torch.randint(1000, (4000,))
    assert d.loss(lambda x, t: noise, x0, t, noise) == 0
    assert abs(d.loss(zero, x0) - 1) < 5 * math.sqrt(2 / 8000)


def test_sampling_repeats_to_the_bit_with_a_seeded_cpu_generator():
    d = GaussianDiffusion(NoiseSchedule.linear(T=10))
    seeded = [torch.Generator().manual_seed(7) for _ in range(2)]
    a, b = (d.sample(zero, (3, 2), generator=g, progress=False) for g in seeded)
    assert torch.equal(a, b)


def test_sampling_runs_the_model_in_inference_mode_and_hands_back_an_ordinary_tensor():
    modes = []
    def model(x, t):
        modes.append(torch.is_inference_mode_enabled())
        return torch.zeros_like(x)
    x = GaussianDiffusion(NoiseSchedule.linear(T=3)).sample(model, (1, 2), progress=False)
    assert modes == [True] * 3 and not x.is_inference()


def test_decoder_sums_to_1_over_the_256_values_and_stays_finite():
    x = torch.arange(256) / 127.5 - 1
    for mean in (-30.0, -1.0, -0.3, 0.0021, 1.0, 4.0):
        for log_scale in (-30.0, -12.0, -4.0, 0.0, 6.0, 20.0):
            m = torch.full((256,), mean, requires_grad=True)
            s = torch.full((256,), log_scale, requires_grad=True)
            ll = discretized_gaussian_log_likelihood(x, m, s)
            assert ll.shape == x.shape and ll.isfinite().all()
            assert abs(ll.double().exp().sum() - 1) < 1e-5, (mean, log_scale)
            ll.sum().backward()
            assert m.grad.isfinite().all() and s.grad.isfinite().all()


def test_the_papers_network_has_its_number_of_parameters():
    with torch.device("meta"): net = UNet(UNetConfig.cifar10())
    assert sum(p.numel() for p in net.parameters()) == 35_746_307


SHORT, ORIGIN = NoiseSchedule.linear(T=3), torch.zeros(1, 2)


@pytest.mark.parametrize("call, allowed", [
    (lambda: GaussianDiffusion(SHORT, prediction="noise"), "eps, x0, mu, v"),
    (lambda: GaussianDiffusion(SHORT, variance="big"),
     "fixed_small, fixed_large, learned, learned_range"),
    (lambda: GaussianDiffusion(SHORT).sample(zero, (1, 2), sampler="plms"), "ddpm, ddim, dpm"),
    (lambda: GaussianDiffusion(SHORT).sample(zero, (1, 2), steps=4), r"1 \.\. 3"),
    (lambda: NoiseSchedule.from_betas([0.1, 1.1]), r"\(0, 1\]"),
    (lambda: NoiseSchedule.from_betas([0.1, float("nan")]), r"\(0, 1\]"),
    (lambda: GaussianDiffusion(SHORT).q_sample(ORIGIN, torch.tensor([3])), r"0 \.\. 2"),
    (lambda: GaussianDiffusion(SHORT).q_sample(ORIGIN, torch.tensor([-1])), r"0 \.\. 2"),
])
def test_a_wrong_argument_is_a_value_error_that_says_what_is_allowed(call, allowed):
    with pytest.raises(ValueError, match=allowed): call()


