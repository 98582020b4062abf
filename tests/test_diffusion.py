"The forward process: each distribution against an independent way to it; arguments checked."
import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from ddpm_nb import ForwardProcess, NoiseSchedule
from ddpm_nb.diffusion import _check_t, extract, noise_like, randn

ALL = ("linear", "quadratic", "constant", "jsd", "cosine")
SHAPES = ((3,), (3, 2), (3, 1, 4, 4))
f64, close = torch.float64, torch.testing.assert_close


def process(name="linear", *args): return ForwardProcess(getattr(NoiseSchedule, name)(*args))
def long(*values): return torch.tensor(values, dtype=torch.long)


# --- the distributions ---------------------------------------------------------------------------

@pytest.mark.parametrize("name", ALL)
def test_jump_equals_all_steps_moments_exactly(name):
    "eq. 4 against eq. 2: mean and variance pushed through all steps, in extended precision."
    q, mean, variance = process(name), np.longdouble(1), np.longdouble(0)
    for t, beta in enumerate(q.schedule.betas.tolist()):
        beta = np.longdouble(beta)
        mean, variance = mean * np.sqrt(1 - beta), (1 - beta) * variance + beta
        assert q.sqrt_alpha_bars[t].item() == pytest.approx(float(mean), rel=1e-12, abs=1e-300)
        deviation = float(np.sqrt(variance))
        assert q.sqrt_one_minus_alpha_bars[t].item() == pytest.approx(deviation, rel=1e-14)


def test_jump_equals_walking_there():
    "eq. 4 against eq. 2, by Monte Carlo: 60 steps, five standard errors."
    torch.manual_seed(0)
    q, n = process("linear", 60), 40_000
    x = start = torch.full((n,), -0.9, dtype=f64)
    for t in range(60): x = q.q_step(x, torch.full((n,), t))
    jump = q.q_sample(start, torch.full((n,), 59))
    mean, variance = -0.9 * q.schedule.alpha_bars[-1].sqrt(), q.schedule.one_minus_alpha_bars[-1]
    for sample in (x, jump):
        assert abs(sample.mean() - mean) < 5 * math.sqrt(variance / n)
        assert abs(sample.var() - variance) < 5 * variance * math.sqrt(2 / n)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-6), (f64, 1e-12)))
def test_q_sample_equals_numpy(shape, dtype, tolerance):
    "eq. 4, term by term, in extended precision."
    torch.manual_seed(0)
    q, t = process(), long(0, 417, 999)
    x0, noise = torch.rand(shape, dtype=dtype) * 2 - 1, torch.randn(shape, dtype=dtype)
    bars = np.cumprod(1 - q.schedule.betas.numpy().astype(np.longdouble))[t.numpy()]
    bars = bars.reshape(-1, *(1,) * (len(shape) - 1))
    expected = np.sqrt(bars) * x0.numpy() + np.sqrt(1 - bars) * noise.numpy()
    got = q.q_sample(x0, t, noise)
    assert got.dtype == dtype and got.shape == shape
    np.testing.assert_allclose(got.numpy(), expected.astype(np.float64), rtol=0, atol=tolerance)


def test_q_sample_equals_diffusers():
    "eq. 4. Their tables are float32, so their first steps are off by 1e-4 of a small number."
    diffusers = pytest.importorskip("diffusers")
    DDIMScheduler, DDPMScheduler = diffusers.DDIMScheduler, diffusers.DDPMScheduler
    torch.manual_seed(0)
    q, t = process(), torch.arange(0, 1000, 37)
    x0, noise = torch.rand(len(t), 3, 8, 8) * 2 - 1, torch.randn(len(t), 3, 8, 8)
    for scheduler in (DDPMScheduler, DDIMScheduler):
        theirs = scheduler(1000, beta_start=1e-4, beta_end=0.02).add_noise(x0, noise, t)
        close(q.q_sample(x0, t, noise), theirs, rtol=0, atol=8e-6)
    late = t > 100
    close(q.q_sample(x0, t, noise)[late], theirs[late], rtol=0, atol=1e-6)


@pytest.mark.parametrize("t", (0, 1, 2, 10, 500, 999))
@pytest.mark.parametrize("dtype", (torch.float32, f64))
def test_posterior_equals_a_step_of_diffusers(t, dtype):
    """eq. 6 and eq. 7: their step from the same prediction of eps, with their noise drawn again.

    Their tables are float32, in which 1 - alpha_bar and 1 - alpha_t lose digits; given ours, in
    float64, they agree to 1e-12.
    """
    DDPMScheduler = pytest.importorskip("diffusers").DDPMScheduler
    torch.manual_seed(0)
    theirs = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, variance_type="fixed_small",
                           clip_sample=False)
    q = process()
    x_t, eps = torch.randn(4, 3, 8, 8, dtype=dtype), torch.randn(4, 3, 8, 8, dtype=dtype)
    s = q.schedule
    if dtype == f64:
        theirs.betas, theirs.alphas, theirs.alphas_cumprod = s.betas, s.alphas, s.alpha_bars
        theirs.one = torch.ones((), dtype=f64)
    x0 = (x_t - q.sqrt_one_minus_alpha_bars[t].to(dtype) * eps) / q.sqrt_alpha_bars[t].to(dtype)
    out = theirs.step(eps, t, x_t, generator=torch.Generator().manual_seed(5))
    mean, variance, log_variance = q.q_posterior(x0, x_t, torch.full((4,), t))
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(5), dtype=dtype)
    # half a unit in the last place of a number near 1 is 6e-8; it is that part of the small
    # difference, 1 - alpha_bar or beta
    lost = 6e-8 / min(s.one_minus_alpha_bars[max(t - 1, 0)].item(), s.betas[t].item())
    tolerance = 1e-12 if dtype == f64 else 1e-6 + lost * x0.abs().max().item()
    close(out.pred_original_sample, x0, atol=tolerance,
          rtol=1e-4 if dtype == torch.float32 else 1e-12)
    close(mean + variance.sqrt() * noise, out.prev_sample, rtol=0, atol=tolerance)
    if t: close(log_variance, variance.log(), rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.002, 0.9), min_size=2, max_size=12), st.floats(-1, 1),
       st.floats(-2.5, 2.5), st.data())
def test_posterior_equals_bayes_on_a_grid(betas, x0, z, data):
    "eq. 6 and eq. 7 for any schedule: prior times likelihood at many points, divided by the sum."
    q = ForwardProcess(NoiseSchedule.from_betas(betas))
    t = data.draw(st.integers(1, q.T - 1))
    s, x0 = q.schedule, torch.tensor([x0], dtype=f64)
    x_t = q.q_sample(x0, long(t), torch.tensor([z], dtype=f64))
    mean, variance, log_variance = q.q_posterior(x0, x_t, long(t))
    grid = mean + 10 * variance.sqrt() * torch.linspace(-1, 1, 4001, dtype=f64)
    log_density = (-(x_t - (1 - s.betas[t]).sqrt() * grid) ** 2 / (2 * s.betas[t])
                   - (grid - math.sqrt(math.prod(1 - b for b in betas[:t])) * x0) ** 2
                   / (2 * (1 - math.prod(1 - b for b in betas[:t]))))
    density = log_density.softmax(0)
    grid_mean = (density * grid).sum()
    assert abs(grid_mean - mean.item()) < 1e-9 * max(1, abs(mean.item()))
    grid_variance = (density * (grid - grid_mean) ** 2).sum().item()
    assert grid_variance == pytest.approx(variance.item(), rel=1e-8)
    assert log_variance.item() == pytest.approx(math.log(variance.item()), abs=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_posterior_equals_conditioning_the_joint_gaussian(name):
    "eq. 7 by conditional means: x_{t-1} and x_t given x_0 have a known covariance. To 1e-12."
    q, t = process(name), torch.arange(1, 1000)
    s = q.schedule
    before, after = s.one_minus_alpha_bars[t - 1], s.one_minus_alpha_bars[t]
    covariance = s.alphas[t].sqrt() * before
    close(q.posterior_x_t_coef[t], covariance / after, rtol=1e-12, atol=1e-15)
    # the difference cancels where x_t says nearly all, so the tolerance is absolute
    x0_coef = s.alpha_bars[t - 1].sqrt() - s.alpha_bars[t].sqrt() * covariance / after
    close(q.posterior_x0_coef[t], x0_coef, rtol=0, atol=1e-12)
    close(q.posterior_variance[t], before - covariance**2 / after, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_averaging_the_posterior_over_x_t_gives_back_the_jump(name):
    "eq. 7 with eq. 4: the laws of total expectation and total variance."
    q, t = process(name), torch.arange(1, 1000)
    s = q.schedule
    mean = q.posterior_x0_coef[t] + q.posterior_x_t_coef[t] * s.alpha_bars[t].sqrt()
    variance = q.posterior_variance[t] + q.posterior_x_t_coef[t] ** 2 * s.one_minus_alpha_bars[t]
    close(mean, s.alpha_bars[t - 1].sqrt(), rtol=1e-12, atol=1e-15)
    close(variance, s.one_minus_alpha_bars[t - 1], rtol=1e-12, atol=0)


def test_posterior_at_index_0_is_the_data_and_its_log_variance_that_of_index_1():
    "eq. 7 at t = 1."
    q, x0 = process(), torch.rand(2, 3, dtype=f64)
    mean, variance, log_variance = q.q_posterior(x0, torch.randn(2, 3, dtype=f64), long(0, 0))
    assert torch.equal(mean, x0) and (variance == 0).all()
    assert torch.equal(log_variance, q.posterior_variance[1].log().expand(2, 1))
    assert torch.equal(q.posterior_log_variance[1:], q.posterior_variance[1:].log())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("T", (1, 2, 3, 1000))
def test_all_tables_are_finite(name, T):
    q = process(name, T)
    assert all(b.isfinite().all() for b in q.buffers())
    x0, t = torch.full((T,), 0.5), torch.arange(T)
    x_t = q.q_sample(x0, t)
    assert all(v.isfinite().all() for v in (x_t, q.q_step(x0, t), *q.q_posterior(x0, x_t, t)))


def test_where_no_signal_is_left_x_t_is_the_noise():
    q, noise = process("jsd", 50), torch.randn(4, 2)
    assert torch.equal(q.q_sample(torch.rand(4, 2), torch.full((4,), 49), noise), noise)
    assert torch.equal(q.q_step(torch.rand(4, 2), torch.full((4,), 49), noise), noise)


# --- shapes, types, devices ----------------------------------------------------------------------

@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", (f64, torch.float32, torch.bfloat16, torch.float16))
def test_shape_and_dtype_are_kept(shape, dtype):
    q, x, t = process(), torch.zeros(shape, dtype=dtype), long(0, 500, 999)
    mean, variance, log_variance = q.q_posterior(x, x, t)
    other_noise = torch.zeros(shape, dtype=f64)
    for out in (q.q_sample(x, t), q.q_step(x, t), q.q_sample(x, t, other_noise), mean):
        assert (out.shape, out.dtype) == (x.shape, dtype)
    for out in (variance, log_variance):
        assert out.shape == (3, *(1,) * (len(shape) - 1)) and out.dtype == dtype


def test_each_item_has_its_own_t():
    q, x0, noise, t = process(), torch.rand(3, 2, 4), torch.randn(3, 2, 4), long(3, 999, 0)
    together = q.q_sample(x0, t, noise)
    for i in range(3):
        alone = q.q_sample(x0[i:i + 1], t[i:i + 1], noise[i:i + 1])
        assert torch.equal(together[i:i + 1], alone)


def test_gradients_flow_to_the_data():
    q, t = process(), long(1, 500)
    x0, x_t = (torch.rand(2, 3, dtype=f64, requires_grad=True) for _ in range(2))
    noise = torch.randn(2, 3, dtype=f64)
    assert torch.autograd.gradcheck(lambda x: q.q_sample(x, t, noise), x0)
    assert torch.autograd.gradcheck(lambda a, b: q.q_posterior(a, b, t)[0], (x0, x_t))


@pytest.mark.parametrize("change", (
    lambda q: q.half(), lambda q: q.bfloat16(), lambda q: q.float(), lambda q: q.to(torch.float16),
    lambda q: q.to("cpu", torch.bfloat16), lambda q: q.type(torch.float16),
    lambda q: q.double().half(), lambda q: q.to(memory_format=torch.channels_last)))
def test_tables_keep_their_precision(change):
    q = change(process())
    tables, before = dict(q.named_buffers()), dict(process().named_buffers())
    assert tables.keys() == before.keys()
    assert all(torch.equal(tables[n], b) and tables[n].dtype == b.dtype for n, b in before.items())


def test_what_a_subclass_adds_is_moved_as_usual():
    class Sub(ForwardProcess):
        def __init__(self):
            super().__init__(NoiseSchedule.linear(5))
            self.net, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(1))
    q = Sub().half()
    assert q.net.weight.dtype == q.scale.dtype == torch.float16 and q.betas.dtype == f64
    assert Sub().to("meta").net.weight.device.type == "meta"


def test_nothing_to_save_and_free_to_copy():
    q = process("cosine", 20)
    assert q.state_dict() == {} and list(q.parameters()) == []
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(other.posterior_variance, q.posterior_variance)
        assert other.schedule == q.schedule
    assert "T=20" in repr(q) and q.T == 20


def test_runs_on_meta_so_it_never_looks_at_values():
    "On the meta device any look at a number raises: what runs here cannot wait for a GPU."
    q = process().to("meta")
    assert q.device.type == "meta"
    x, t = torch.zeros(3, 2, 4, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
    for out in (q.q_sample(x, t), q.q_step(x, t), *q.q_posterior(x, x, t)):
        assert out.device.type == "meta"


@pytest.mark.cuda
def test_no_synchronisation_on_cuda():
    q = process().cuda()
    x, t = torch.zeros(4, 3, 8, 8, device="cuda"), torch.arange(4, device="cuda")
    q.q_sample(x, t)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try: q.q_sample(x, t), q.q_step(x, t), q.q_posterior(x, x, t)
    finally: torch.cuda.set_sync_debug_mode("default")
    cpu = process()
    noise = torch.randn(4, 3, 8, 8)
    close(q.q_sample(x + 0.5, t, noise.cuda()).cpu(), cpu.q_sample(x.cpu() + 0.5, t.cpu(), noise),
          rtol=0, atol=1e-6)


def test_compiles_in_one_piece():
    q, x0, noise, t = process(), torch.rand(2, 3), torch.randn(2, 3), long(5, 900)
    compiled = torch.compile(lambda x, n, t: q.q_sample(x, t, n), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x0, noise, t), q.q_sample(x0, t, noise))


# --- what is refused -----------------------------------------------------------------------------

BAD_T = ((torch.tensor([0, 1, 2], dtype=torch.int32), "long"),
         (torch.tensor([0.0, 1.0, 2.0]), "long"),
         (long(0, 1), r"shape \(3,\)"), (long(0), r"shape \(3,\)"),
         (torch.zeros(3, 1, dtype=torch.long), r"shape \(3,\)"), (torch.tensor(1), r"shape \(3,\)"),
         (5, "got 5"), ([0, 1, 2], "long"), (None, "long"),
         (long(0, 1, 1000), r"0 \.\. 999, got 0 \.\. 1000"), (long(-1, 0, 1), r"got -1 \.\. 1"))


@pytest.mark.parametrize("t, says", BAD_T)
def test_a_bad_t_is_refused_everywhere(t, says):
    q, x = process(), torch.zeros(3, 2)
    for call in (lambda: q.q_sample(x, t), lambda: q.q_step(x, t), lambda: q.q_posterior(x, x, t),
                 lambda: _check_t(t, 1000, 3)):
        with pytest.raises(ValueError, match=says): call()


@pytest.mark.parametrize("x, says", (
    (torch.zeros(3, 2, dtype=torch.uint8), "floating point"),
    (torch.zeros(3, 2, dtype=torch.long), "floating point"),
    (torch.tensor(1.0), r"\(B, \.\.\.\)"), (np.zeros((3, 2)), "tensor"),
    (torch.zeros(3, 2, device="meta"), "data is on meta"),
    (torch.zeros(3, 2, dtype=torch.complex64), "floating point")))
def test_bad_data_are_refused(x, says):
    q, t = process(), long(0, 1, 2)
    for call in (lambda: q.q_sample(x, t), lambda: q.q_step(x, t), lambda: q.q_posterior(x, x, t)):
        with pytest.raises(ValueError, match=says): call()


def test_t_on_another_device_is_refused():
    t = torch.zeros(3, dtype=torch.long, device="meta")
    with pytest.raises(ValueError, match="t is on meta"): process().q_sample(torch.zeros(3), t)


def test_shapes_that_would_broadcast_are_refused():
    q, x, t = process(), torch.zeros(3, 2), long(0, 1, 2)
    for call in (lambda: q.q_sample(x, t, torch.zeros(3, 1)),
                 lambda: q.q_step(x, t, torch.zeros(2)), lambda: noise_like(x, torch.zeros(1, 2))):
        with pytest.raises(ValueError, match=r"noise must have shape \(3, 2\)"): call()
    with pytest.raises(ValueError, match=r"x_t must have shape \(3, 2\), got \(3, 1\)"):
        q.q_posterior(x, torch.zeros(3, 1), t)


@pytest.mark.parametrize("schedule", (torch.linspace(1e-4, 0.02, 10), "linear", None))
def test_what_is_no_schedule_is_refused(schedule):
    with pytest.raises(ValueError, match="must be a NoiseSchedule"): ForwardProcess(schedule)


# --- tools ---------------------------------------------------------------------------------------

def test_noise_repeats_with_its_generator():
    draw = lambda: randn((2, 3), torch.empty(0, dtype=f64), torch.Generator().manual_seed(3))
    assert torch.equal(draw(), draw()) and draw().dtype == f64
    assert randn((2, 3), torch.empty(0, device="meta")).device.type == "meta"


def seeded(*seeds): return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("shape", [(1, 2), (3, 8, 8)])
def test_noise_of_an_item_with_its_own_generator_does_not_see_the_batch(shape):
    "Against torch.randn, item by item; and a second draw goes on where the first ended."
    like, batch = torch.empty(0), seeded(4, 9, 2)
    drawn = [randn((3, *shape), like, batch) for _ in range(2)]
    for i, seed in enumerate((4, 9, 2)):
        one, alone = seeded(seed)[0], seeded(seed)
        for noise in drawn:
            assert torch.equal(noise[i], torch.randn(shape, generator=one))
            assert torch.equal(noise[i:i + 1], randn((1, *shape), like, alone))


def test_one_generator_draws_what_pytorch_draws_with_it():
    draw = lambda f: f(torch.Generator().manual_seed(8))
    for shape in ((), (3,), (2, 3, 8, 8)):
        ours = draw(lambda g: randn(shape, torch.empty(0, dtype=f64), g))
        assert torch.equal(ours, draw(lambda g: torch.randn(shape, generator=g, dtype=f64)))


@pytest.mark.parametrize("generator, said", [
    (seeded(1), "one for each of the 2 items, got 1"), ([], "of the 2 items, got 0"),
    (0, "got 0; torch.Generator"), ([0, 1], "got \\[0, 1\\]"), (iter(()), "got <")])
def test_generators_that_do_not_fit_are_refused(generator, said):
    with pytest.raises(ValueError, match=f"generator must be .*{said}"):
        randn((2, 3), torch.empty(0), generator)
    assert randn((0, 3), torch.empty(0), []).shape == (0, 3)


def test_extract_has_one_entry_for_each_item():
    out = extract(torch.arange(5, dtype=f64), long(4, 0), torch.zeros(2, 3, 4, 4))
    assert out.shape == (2, 1, 1, 1) and out.dtype == torch.float32
    assert out.flatten().tolist() == [4, 0]
