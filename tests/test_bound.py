"The bound: each term against an independent way, the decoder in every corner, brute force."
import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from mpmath import mp, mpf
from scipy import stats

from ddpm_nb import (ForwardProcess, NoiseSchedule, discretized_gaussian_log_likelihood,
                     gaussian_kl, gaussian_log_likelihood, variational_bound)
from ddpm_nb.bound import (DECODERS, ReverseStep, _bits_per_dim, decoder_nll, posterior_kl,
                           prior_bits_per_dim)

f64, LOG2 = torch.float64, math.log(2)
binned, close = discretized_gaussian_log_likelihood, torch.testing.assert_close
LEVELS = torch.arange(256, dtype=f64) / 127.5 - 1
finite = st.floats(-5, 5)


# --- Gaussians -----------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(finite, finite, finite, finite)
def test_kl_equals_torch_distributions_and_is_never_negative(m1, l1, m2, l2):
    "The closed form behind eq. 5."
    values = [torch.tensor(v, dtype=f64) for v in (m1, l1, m2, l2)]
    P, Q = (torch.distributions.Normal(values[i], (values[i + 1] / 2).exp()) for i in (0, 2))
    kl, theirs = gaussian_kl(*values), torch.distributions.kl_divergence(P, Q)
    assert kl >= 0 and kl.item() == pytest.approx(theirs.item(), rel=1e-11, abs=1e-14)


def test_kl_equals_numerical_integration():
    "eq. 5's divergences, as the integral that they are."
    for m1, l1, m2, l2 in ((0.3, -1.0, -0.5, 0.7), (0.0, 2.0, 1.0, -0.5), (1.0, 0.0, 1.0, 0.01)):
        P, Q = stats.norm(m1, math.exp(l1 / 2)), stats.norm(m2, math.exp(l2 / 2))
        z = np.linspace(m1 - 15 * P.std(), m1 + 15 * P.std(), 20_001)
        integral = (P.pdf(z) * (P.logpdf(z) - Q.logpdf(z))).sum() * (z[1] - z[0])
        kl = gaussian_kl(*(torch.tensor(v, dtype=f64) for v in (m1, l1, m2, l2)))
        assert kl.item() == pytest.approx(integral, rel=1e-9)


def test_kl_of_equals_is_zero_and_of_near_equals_keeps_its_digits():
    m, l = torch.randn(2, 100)
    assert (gaussian_kl(m, l, m, l) == 0).all()
    d = torch.tensor([1e-2, 1e-3, 1e-4])
    truth = [float((mp.e ** mpf(v) - 1 - mpf(v)) / 2) for v in d.tolist()]
    zero = torch.zeros(3)
    off = gaussian_kl(zero, d, zero, zero).double() / torch.tensor(truth, dtype=f64) - 1
    assert (off.abs() < 2e-7 / d).all()          # d^2/4 is what is left of numbers as large as d


def test_log_likelihood_equals_scipy():
    x, m, s = torch.randn(3, 50, dtype=f64)
    theirs = stats.norm(m, s.exp()).logpdf(x)
    np.testing.assert_allclose(gaussian_log_likelihood(x, m, s), theirs, rtol=1e-12, atol=1e-12)


WRONG = {    # an argument, and what is said of it
    "none": (None, "{} must be a floating-point tensor, got NoneType"),
    "list": ([0.0, 0.0], "{} must be a floating-point tensor, got list"),
    "number": (0.5, "{} must be a floating-point tensor, got float"),
    "array": (np.zeros(2), "{} must be a floating-point tensor, got ndarray"),
    "bytes": (torch.zeros(2, dtype=torch.uint8), "{} must be a floating-point tensor, got "),
    "whole": (torch.zeros(2, dtype=torch.long), "{} must be a floating-point tensor, got "),
    "shape": (torch.zeros(3), "the shapes must broadcast, got .*{} \\(3,\\)")}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("function, n", (
    (gaussian_kl, 4), (gaussian_log_likelihood, 3), (binned, 3)))
def test_what_is_no_tensor_of_numbers_or_does_not_fit_is_refused_by_name(function, n, wrong):
    "Whole numbers too: a byte of 255 would be taken for a pixel far right of 1."
    value, said = WRONG[wrong]
    for i, name in zip(range(n), inspect.signature(function).parameters):
        given = [torch.zeros(2, 2)] * n
        given[i] = value
        with pytest.raises(ValueError, match=f"^{said.format(name)}") as e: function(*given)
        assert "\n" not in str(e.value)


def test_what_is_not_a_number_stays_none():
    "A NaN anywhere is a NaN in the answer, and nowhere else."
    for function, n in ((gaussian_kl, 4), (gaussian_log_likelihood, 3), (binned, 3)):
        for i in range(n):
            given = [torch.tensor([0.0, 1.0]) for _ in range(n)]
            given[i][0] = math.nan
            assert function(*given).isnan().tolist() == [True, False]


def test_bits_per_dim_averages_all_but_the_batch():
    nats = torch.arange(12.0).view(2, 2, 3) * LOG2
    assert _bits_per_dim(nats).tolist() == pytest.approx([2.5, 8.5])
    assert _bits_per_dim(torch.tensor([LOG2, 0.0])).tolist() == pytest.approx([1, 0])


# --- the decoder ---------------------------------------------------------------------------------

def standardised_edges(k, mean, log_scale):
    "Both edges of the bin of level k, in standard deviations from the mean, 50 digits."
    mp.dps = 50
    scale = mp.exp(mpf(log_scale))
    return [(mpf(edge) / 255 - 1 - mpf(mean)) / scale for edge in (2 * k - 1, 2 * k + 1)]


def log_below(z):
    "log Phi(z), in 50 digits."
    if z < 0: return mp.log(mp.erfc(-z / mp.sqrt(2)) / 2)
    return mp.log1p(-mp.erfc(z / mp.sqrt(2)) / 2)


def exact_log_mass(k, mean, log_scale):
    "log of the mass of level k in 50 digits; inner bins are integrated: nothing is subtracted."
    lower, upper = standardised_edges(k, mean, log_scale)
    if k in (0, 255): return log_below(upper if k == 0 else -lower)
    peak = mpf(0) if lower < 0 < upper else min(abs(lower), abs(upper))
    return mp.log(mp.quad(lambda z: mp.exp((peak**2 - z**2) / 2),
                          mp.linspace(lower, upper, 9))) - peak**2 / 2 - mp.log(2 * mp.pi) / 2


@settings(max_examples=150, deadline=None)
@given(st.floats(-1e30, 1e30) | st.floats(-1.1, 1.1), st.floats(-200, 200) | st.floats(-8, 2))
def test_decoder_sums_to_one_for_any_mean_and_scale(mean, log_scale):
    "eq. 13: 256 masses, one distribution. In float64 to 1e-9, and with float32 arguments to 1e-5."
    for dtype, tolerance in ((f64, 1e-9), (torch.float32, 1e-5)):
        log_p = binned(LEVELS.to(dtype), torch.tensor(mean, dtype=dtype),
                       torch.tensor(log_scale, dtype=dtype))
        assert log_p.dtype == dtype and log_p.isfinite().all() and (log_p <= 0).all()
        assert abs(log_p.double().logsumexp(0)) < tolerance


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 255), st.floats(-1.5, 1.5), st.floats(-5, 9))
def test_decoder_equals_50_digit_arithmetic(k, mean, log_scale):
    "eq. 13, far into both tails."
    m, l = torch.tensor([mean, log_scale], dtype=f64)
    got = binned(LEVELS[k], m, l).item()
    truth = exact_log_mass(k, mean, log_scale)
    assert abs(got - truth) <= 1e-10 * abs(truth) + mpf("1e-300")


@pytest.mark.parametrize("scale", (400.0, 1000.0, 2000.0))
@pytest.mark.parametrize("distance", (3.0, 100.0, 5000.0))
def test_decoder_equals_50_digit_arithmetic_in_thin_bins_far_out(scale, distance):
    "eq. 13 where a bin is thinner than 2e-5 sigma, `distance` sigmas from the mean."
    for k, mean in ((77, -distance * scale), (128, distance * scale)):
        m, l = torch.tensor([mean, math.log(scale)], dtype=f64)
        truth = float(exact_log_mass(k, mean, math.log(scale)))
        assert abs(binned(LEVELS[k], m, l).item() - truth) < 1e-10 + 1e-14 * abs(truth)


@pytest.mark.parametrize("log_scale", (-3.0, -1.0, 0.0))
def test_decoder_equals_differences_of_scipy_where_those_are_good(log_scale):
    "eq. 13, literally."
    edges = np.concatenate([[-np.inf], (2 * np.arange(1, 256) - 1) / 255 - 1, [np.inf]])
    for mean in (-0.9, 0.0, 0.31):
        mass = np.diff(stats.norm(mean, math.exp(log_scale)).cdf(edges))
        log_p = binned(LEVELS, torch.tensor(mean, dtype=f64), torch.tensor(log_scale, dtype=f64))
        np.testing.assert_allclose(log_p.exp().numpy(), mass, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_decoder_and_its_gradient_are_finite_at_extremes(dtype):
    "eq. 13: no infinity, no NaN, and no pixel beyond the reach of its gradient."
    means = torch.tensor([-3e38, -1e4, -40.0, -1.0, -0.4, 0.0, 0.3, 1.0, 40.0, 1e4, 1e10])
    scales = torch.tensor([-1000.0, -100, -36, -20, -10, -7, -3, 0, 5, 20, 36, 100, 1000])
    grid = torch.meshgrid(means, scales, indexing="ij")
    mean, log_scale = (v.flatten().to(dtype).requires_grad_() for v in grid)
    for k in (0, 1, 77, 254, 255):
        x = torch.full(mean.shape, k / 127.5 - 1).to(dtype)
        level = ((x.double() + 1) * 127.5).round()
        ll = binned(x, mean, log_scale)
        by_mean, by_scale = torch.autograd.grad(ll.sum(), (mean, log_scale))
        assert ll.dtype == torch.float32 and by_mean.dtype == by_scale.dtype == dtype
        assert all(v.isfinite().all() for v in (ll, by_mean, by_scale)) and (ll <= 0).all()
        # where the mean is in another bin, there must be a pull towards x
        wrong = ((mean.double() + 1) * 127.5 - level).abs() > 1
        pull = by_mean.double() * torch.sign(level / 127.5 - 1 - mean.double())
        # but an open bin already holds all of the mass
        beyond = ((level == 0) & (mean < -1)) | ((level == 255) & (mean > 1))
        assert (pull[wrong & ~beyond & (log_scale < 10)] > 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 255), st.floats(-1.3, 1.3), st.floats(-6, 4))
def test_decoder_gradient_equals_the_exact_one(k, mean, log_scale):
    "The derivative of eq. 13: the density at both edges over the mass, in 50 digits."
    m, l = (torch.tensor(v, dtype=f64, requires_grad=True) for v in (mean, log_scale))
    by_mean, by_scale = torch.autograd.grad(binned(LEVELS[k], m, l), (m, l))
    log_mass, scale = exact_log_mass(k, mean, log_scale), mp.exp(mpf(log_scale))
    lower, upper = standardised_edges(k, mean, log_scale)
    at = lambda z: mp.exp(-z**2 / 2 - log_mass) / mp.sqrt(2 * mp.pi)
    a, b = (0 if k == 0 else at(lower)), (0 if k == 255 else at(upper))
    exact_mean, exact_scale = float((a - b) / scale), float(a * lower - b * upper)
    mean_size, scale_size = float(a + b) / float(scale), float(abs(a * lower) + abs(b * upper))
    assert by_mean.item() == pytest.approx(exact_mean, rel=1e-6, abs=1e-9 * (1 + mean_size))
    assert by_scale.item() == pytest.approx(exact_scale, rel=1e-6, abs=1e-9 * (1 + scale_size))


def test_decoder_gradient_passes_where_the_scale_is_clamped():
    l = torch.tensor([-50.0, -1e30, 50.0, 1e30], requires_grad=True)
    ll = binned(torch.full((4,), 0.5), torch.zeros(4), l)
    grad, = torch.autograd.grad(ll.sum(), l)
    assert (grad[:2] > 0).all() and torch.equal(grad[2:], torch.tensor([-1.0, -1.0]))
    assert ll[0] == ll[1] and ll.isfinite().all()
    assert ll[2].item() == pytest.approx(-50 + math.log(2 / 255 / math.sqrt(2 * math.pi)))


def test_decoder_is_symmetric():
    means, log_scales = torch.randn(2, 50, dtype=f64)
    mirrored = binned(LEVELS.flip(0)[:, None], -means, log_scales)
    close(binned(LEVELS[:, None], means, log_scales), mirrored, rtol=1e-11, atol=0)


def test_decoder_takes_levels_as_they_are_stored():
    "What a float32 or bfloat16 image holds is the nearest level; the edges 0 and 255 are seen."
    mean, log_scale = torch.tensor([0.1, -2.0], dtype=f64)
    exact = binned(LEVELS, mean, log_scale)
    for dtype in (f64, torch.float32):
        close(binned(LEVELS.to(dtype), mean, log_scale), exact, rtol=1e-12, atol=0)
    for edge in (-1.0, 1.0):
        x = torch.tensor([edge, edge * 1.2]).bfloat16()
        ll = binned(x, torch.tensor(edge * 9), torch.tensor(0.0))
        assert (ll > -1e-6).all()


def test_decoder_broadcasts_and_keeps_shape():
    out = binned(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 1, 1))
    assert out.shape == (2, 3, 4, 4) and out.dtype == torch.float32
    assert binned(torch.zeros(2), torch.zeros(2), torch.zeros((), dtype=f64)).dtype == f64


def test_perfect_mean_costs_what_the_error_function_says():
    "eq. 13 for an inner pixel: -log erf(1 / (255 sqrt(2) sigma))."
    for sigma in (0.001, 0.0074, 0.01, 0.1):
        pixel, log_variance = LEVELS[100:101], torch.tensor(2 * math.log(sigma), dtype=f64)
        bits = -math.log2(math.erf(1 / 255 / math.sqrt(2) / sigma))
        assert decoder_nll(pixel, pixel, log_variance).item() == pytest.approx(bits, abs=1e-10)


# --- the prior term ------------------------------------------------------------------------------

def test_prior_of_cifar10_is_below_1e_5():
    "L_T of eq. 5 from the channel moments of CIFAR-10: the paper says about 1e-5 bits/dim."
    s = NoiseSchedule.linear()
    channels = (0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)
    second = np.mean([(2 * m - 1) ** 2 + (2 * v) ** 2 for m, v in channels])
    for dtype in (f64, torch.float32):
        x0 = torch.full((1, 3), math.sqrt(second), dtype=dtype)
        bits = prior_bits_per_dim(ForwardProcess(s), x0).item()
        assert 5e-6 < bits < 1e-5
        assert bits == pytest.approx(s.alpha_bars[-1].item() * second / 2 / LOG2,
                                     rel=1e-3 if dtype == torch.float32 else 1e-4)


@pytest.mark.parametrize("name", ("linear", "cosine", "jsd", "constant", "quadratic"))
def test_prior_equals_torch_distributions(name):
    "L_T of eq. 5."
    s, x0 = getattr(NoiseSchedule, name)(30), torch.rand(5, 2, dtype=f64) * 2 - 1
    Normal = torch.distributions.Normal
    q_T = Normal(s.alpha_bars[-1].sqrt() * x0, s.one_minus_alpha_bars[-1].sqrt())
    p_T = Normal(torch.zeros(1, dtype=f64), 1)
    expected = torch.distributions.kl_divergence(q_T, p_T).mean(1) / LOG2
    close(prior_bits_per_dim(ForwardProcess(s), x0), expected, rtol=1e-6, atol=1e-15)
    if name == "jsd": assert (expected == 0).all()


# --- the whole, against brute force --------------------------------------------------------------

def some_reverse(process):
    "A reverse process of no particular merit: not linear, its variance depends on where it is."
    def reverse(x_t, t):
        time = t.view(-1, *(1,) * (x_t.ndim - 1)).to(x_t)
        x0 = torch.tanh(x_t + 0.1 * time)
        mean = process.q_posterior(x0, x_t, t)[0]
        small = process.posterior_log_variance[t].to(x_t).view(time.shape)
        log_variance = small + 0.5 + 0.2 * torch.sin(x_t)
        return ReverseStep(mean, log_variance.exp(), log_variance, x0)
    return reverse


@pytest.mark.parametrize("chunk", (None, 1, 2, 5, 100))
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("shape", ((3,), (3, 2), (2, 1, 4, 4)))
def test_every_term_equals_brute_force(shape, decoder, chunk):
    "eq. 5 written out in numpy and scipy, item by item and step by step, for the x_t drawn."
    s = NoiseSchedule.from_betas([0.02, 0.1, 0.2, 0.35, 0.5])
    process, seen = ForwardProcess(s), []
    reverse = some_reverse(process)
    def watched(x_t, t):
        seen.append((x_t, t, reverse(x_t, t)))
        return seen[-1][2]
    g = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, shape, generator=g).double() / 127.5 - 1
    out = variational_bound(process, watched, x0, decoder, chunk, torch.Generator().manual_seed(1))
    B = shape[0]
    shapes = dict(total=(B,), prior=(B,), vb=(B, 5), mse=(B, 5))
    assert {k: tuple(v.shape) for k, v in out.items()} == shapes

    bars = np.cumprod(1 - s.betas.numpy())
    count = 0
    for x_t, t, step in seen:
        assert len(x_t) <= (chunk or 128) * B and len(x_t) % B == 0
        for row in range(len(x_t)):
            i, k = row % B, int(t[row])
            x, y, clean, guess, log_variance = (
                v.numpy().ravel() for v in (x_t[row], step.mean[row], x0[i], step.x0[row],
                                            step.log_variance[row]))
            width = np.exp(log_variance / 2)
            if k == 0 and decoder == "gaussian": nats = -stats.norm(y, width).logpdf(clean)
            elif k == 0:
                low = np.where(clean <= -1, -np.inf, clean - 1 / 255)
                high = np.where(clean >= 1, np.inf, clean + 1 / 255)
                nats = -np.log(stats.norm(y, width).cdf(high) - stats.norm(y, width).cdf(low))
            else:
                before, beta = bars[k - 1], s.betas[k].item()
                variance = 1 / ((1 - beta) / beta + 1 / (1 - before))
                evidence = math.sqrt(1 - beta) * x / beta + math.sqrt(before) * clean / (1 - before)
                square = variance + (variance * evidence - y) ** 2
                nats = np.log(width / math.sqrt(variance)) + square / (2 * width**2) - 0.5
            assert out["vb"][i, k].item() == pytest.approx(nats.mean() / LOG2, rel=1e-8)
            mse = ((guess - clean) ** 2).mean()
            assert out["mse"][i, k].item() == pytest.approx(mse, rel=1e-12)
            count += 1
    assert count == 5 * B
    x, bar = x0.numpy().reshape(B, -1), bars[-1]
    prior = 0.5 * (bar * x**2 - bar - np.log(1 - bar)).mean(1) / LOG2
    np.testing.assert_allclose(out["prior"], prior, rtol=1e-10)
    close(out["total"], out["prior"] + out["vb"].sum(1), rtol=1e-12, atol=0)


def test_x_t_are_draws_of_the_jump():
    "eq. 4 inside eq. 5: mean and variance of what the reverse process is shown."
    process, seen = ForwardProcess(NoiseSchedule.linear(8, 0.05, 0.5)), []
    def watched(x_t, t):
        seen.append((x_t, t))
        return some_reverse(process)(x_t, t)
    n, s = 20_000, process.schedule
    variational_bound(process, watched, torch.full((n,), 0.6, dtype=f64), "gaussian", 1,
                      torch.Generator().manual_seed(0))
    for x_t, t in seen:
        mean, variance = 0.6 * s.alpha_bars[t[0]].sqrt(), s.one_minus_alpha_bars[t[0]]
        assert abs(x_t.mean() - mean) < 5 * math.sqrt(variance / n)
        assert abs(x_t.var() - variance) < 5 * variance * math.sqrt(2 / n)


def linear_reverse(process, a, b, v):
    "p(x_{t-1} given x_t) = N(a x_t + b, v)."
    return lambda x_t, t: ReverseStep(a[t] * x_t + b[t], v[t], v[t].log(), x_t)


def chain_nll(x0, a, b, v):
    "-log p(x_0) of the chain of eq. 1 whose steps are N(a x + b, v), exactly; nats."
    m, V = 0.0, 1.0
    for t in reversed(range(len(a))):
        m, V = float(a[t]) * m + float(b[t]), float(a[t]) ** 2 * V + float(v[t])
    return 0.5 * ((x0 - m) ** 2 / V + math.log(2 * math.pi * V))


def bound_eq_3(s, x0, a, b, v):
    "Expected steps forwards minus expected steps backwards; nats."
    gain = 1 - a * s.alphas.sqrt()
    mean = gain * s.alpha_bars_prev.sqrt() * x0 - b
    variance = gain**2 * s.one_minus_alpha_bars_prev + a**2 * s.betas
    backward = 0.5 * (2 * math.pi * v).log() + (mean**2 + variance) / (2 * v)
    forward = 0.5 * (2 * math.pi * math.e * s.betas).log()
    end = math.log(2 * math.pi) + s.alpha_bars[-1] * x0**2 + s.one_minus_alpha_bars[-1]
    return (0.5 * end + (backward - forward).sum()).item()


def bound_by_the_code(process, x0, a, b, v):
    "eq. 5 without noise: a term is quadratic in it, so +1 and -1 average to its expectation."
    T, reverse = process.T, linear_reverse(process, a, b, v)
    t, x, total = torch.arange(T), torch.full((T,), x0, dtype=f64), 0.0
    for sign in (1.0, -1.0):
        x_t = process.q_sample(x, t, torch.full((T,), sign, dtype=f64))
        mean, _, log_variance, _ = reverse(x_t, t)
        terms = posterior_kl(process, x, x_t, t, mean, log_variance)
        terms[0] = decoder_nll(x[:1], mean[:1], log_variance[:1], "gaussian")[0]
        total += (terms.sum().item() + prior_bits_per_dim(process, x[:1]).item()) * LOG2 / 2
    return total


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 0.9), st.floats(-1.5, 1.5), st.floats(-1, 1),
                          st.floats(0.01, 2)), min_size=1, max_size=12), st.floats(-1.5, 1.5))
def test_both_forms_agree_and_lie_above_the_exact_likelihood(chain, x0):
    """eq. 3 equals eq. 5 for any chain of linear Gaussian steps, good or bad,
    and both bound -log p(x_0)."""
    betas, a, b, v = (torch.tensor(column, dtype=f64) for column in zip(*chain))
    process = ForwardProcess(NoiseSchedule.from_betas(betas))
    eq3 = bound_eq_3(process.schedule, x0, a, b, v)
    eq5 = bound_by_the_code(process, x0, a, b, v)
    assert eq5 == pytest.approx(eq3, rel=1e-9, abs=1e-9)
    assert eq5 >= chain_nll(x0, a, b, v) - 1e-9 * abs(eq5)


def test_the_gap_is_the_divergence_of_the_chains():
    """eq. 3: L(x_0) + log p(x_0) = KL(q(x_1..T given x_0) || p(x_1..T given x_0)), from two
    multivariate Gaussians."""
    T, x0 = 5, 0.4
    generator = torch.Generator().manual_seed(0)
    betas = torch.rand(T, generator=generator, dtype=f64) * 0.5 + 0.05
    a, b, v = (torch.rand(T, generator=generator, dtype=f64) for _ in range(3))
    b, v = b - 0.5, v + 0.1
    process = ForwardProcess(NoiseSchedule.from_betas(betas))
    q_mean, q_cov = torch.zeros(T, dtype=f64), torch.zeros(T, T, dtype=f64)
    A = torch.zeros(T, T, dtype=f64)                    # x = A noise + q_mean, walking forwards
    for t in range(T):
        keep = (1 - betas[t]).sqrt()
        q_mean[t] = keep * (q_mean[t - 1] if t else x0)
        if t: A[t] = keep * A[t - 1]
        A[t, t] += betas[t].sqrt()
    q_cov = A @ A.T
    W, m = torch.zeros(T + 1, T + 1, dtype=f64), torch.zeros(T + 1, dtype=f64)
    W[T, T] = 1
    for t in reversed(range(T)):
        W[t], m[t] = a[t] * W[t + 1], a[t] * m[t + 1] + b[t]
        W[t, t] += v[t].sqrt()
    C = W @ W.T
    p_mean = m[1:] + C[1:, 0] / C[0, 0] * (x0 - m[0])
    p_cov = C[1:, 1:] - torch.outer(C[1:, 0], C[0, 1:]) / C[0, 0]
    Normal = torch.distributions.MultivariateNormal
    gap = torch.distributions.kl_divergence(Normal(q_mean, q_cov), Normal(p_mean, p_cov)).item()
    expected = chain_nll(x0, a, b, v) + gap
    assert bound_by_the_code(process, x0, a, b, v) == pytest.approx(expected, rel=1e-9)


def gaussian_data_chain(s, variance, mean0=0.3, std0=0.4):
    "The chain whose guess of x_0 is exact for data from N(mean0, std0^2)."
    process = ForwardProcess(s)
    V = std0**2 * s.alpha_bars + s.one_minus_alpha_bars
    gain = std0**2 * s.alpha_bars.sqrt() / V
    a = process.posterior_x_t_coef + process.posterior_x0_coef * gain
    b = process.posterior_x0_coef * mean0 * (1 - gain * s.alpha_bars.sqrt())
    doubt = std0**2 * s.one_minus_alpha_bars / V
    exact = process.posterior_variance + process.posterior_x0_coef**2 * doubt
    return process, a, b, (exact if variance == "exact" else s.betas)


# weights and points whose average is that over N(0.3, 0.4^2), exactly, for a quadratic
THREE_POINTS = (4 / 6, 0.3), (1 / 6, 0.3 + 0.4 * 3**0.5), (1 / 6, 0.3 - 0.4 * 3**0.5)


@pytest.mark.parametrize("T", (20, 100, 1000))
def test_bound_on_gaussian_data_is_the_entropy_and_two_kinds_of_mismatch(T):
    "eq. 26, exactly: with the true variances nothing but the end is lost, at any T."
    s = NoiseSchedule.linear(T, 0.1 / T, 16 / T)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.16)
    m, V = 0.3 * s.alpha_bars[-1].sqrt(), 0.16 * s.alpha_bars[-1] + s.one_minus_alpha_bars[-1]
    end = 0.5 * (V + m**2 - 1 - V.log()).item()
    exact_v = gaussian_data_chain(s, "exact")[3]
    for variance in ("exact", "large"):
        process, a, b, v = gaussian_data_chain(s, variance)
        L = sum(w * bound_by_the_code(process, x, a, b, v) for w, x in THREE_POINTS)
        steps = 0.5 * (exact_v / v - 1 - (exact_v / v).log()).sum().item()
        assert L == pytest.approx(entropy + end + steps, rel=1e-9)
        assert variance != "exact" or abs(steps) < 1e-12


def test_bound_tightens_towards_the_truth_as_T_grows():
    "eq. 3 on Gaussian data with variance beta_t: the distance to the entropy falls as 1/T."
    gaps = []
    for T in (25, 50, 100, 200, 400, 800):
        process, a, b, v = gaussian_data_chain(NoiseSchedule.linear(T, 0.1 / T, 20 / T), "large")
        L = sum(w * bound_by_the_code(process, x, a, b, v) for w, x in THREE_POINTS)
        gaps.append(L - 0.5 * math.log(2 * math.pi * math.e * 0.16))
    assert all(0 < later < 0.6 * earlier for earlier, later in zip(gaps, gaps[1:]))
    assert gaps[-1] < 0.003


def test_the_drawn_bound_averages_to_the_exact_one():
    "eq. 5 by Monte Carlo, within five of its own standard errors."
    process, a, b, v = gaussian_data_chain(NoiseSchedule.linear(60, 0.1 / 60, 20 / 60), "large")
    x0, g = torch.full((20_000,), 0.5, dtype=f64), torch.Generator().manual_seed(0)
    reverse = linear_reverse(process, a, b, v)
    terms = variational_bound(process, reverse, x0, "gaussian", generator=g)
    nats, expected = terms["total"] * LOG2, bound_eq_3(process.schedule, 0.5, a, b, v)
    assert abs(nats.mean() - expected) < 5 * nats.std() / 20_000**0.5


def test_a_perfect_memory_of_a_finite_data_set_costs_its_entropy():
    """eq. 5 on 16 points of the plane: with the exact mean, the steps after the first cost about
    log2(16) / 2 = 2 bits/dim."""
    axis = (-0.9, -0.3, 0.3, 0.9)
    points = torch.tensor([(x, y) for x in axis for y in axis], dtype=f64)
    process = ForwardProcess(NoiseSchedule.linear(1000))
    def reverse(x_t, t):
        s = process.schedule
        distance = (x_t[:, None] - s.alpha_bars[t].sqrt()[:, None, None] * points).square().sum(2)
        x0 = torch.softmax(-distance / (2 * s.one_minus_alpha_bars[t][:, None]), 1) @ points
        log_variance = process.posterior_log_variance[t][:, None]
        return ReverseStep(process.q_posterior(x0, x_t, t)[0], log_variance.exp(), log_variance, x0)
    steps = variational_bound(process, reverse, points.repeat(40, 1), "gaussian",
                              generator=torch.Generator().manual_seed(0))["vb"][:, 1:].sum(1)
    assert 2 - 5 * steps.std() / 640**0.5 < steps.mean() < 2.05 + 5 * steps.std() / 640**0.5


# --- how it behaves ------------------------------------------------------------------------------

def test_memory_does_not_grow_with_T():
    "A call of the model sees 128 items, or all there are, however many steps there are."
    for T in (10, 400):
        process, sizes = ForwardProcess(NoiseSchedule.linear(T)), []
        def watched(x_t, t):
            sizes.append(len(x_t))
            return some_reverse(process)(x_t, t)
        variational_bound(process, watched, torch.ones(4, 2))
        assert max(sizes) == min(128, 4 * T) and sum(sizes) == 4 * T


def test_same_generator_same_bits():
    process = ForwardProcess(NoiseSchedule.linear(20))
    draw = lambda: variational_bound(process, some_reverse(process), torch.ones(3, 2),
                                     generator=torch.Generator().manual_seed(7))
    assert all(torch.equal(a, b) for a, b in zip(draw().values(), draw().values()))


def test_half_precision_is_raised_and_no_gradient_is_kept():
    process = ForwardProcess(NoiseSchedule.linear(20))
    x0 = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    for v in variational_bound(process, some_reverse(process), x0).values():
        assert v.dtype == torch.float32 and not v.requires_grad and v.isfinite().all()


@pytest.mark.parametrize("T", (1, 2))
@pytest.mark.parametrize("decoder", DECODERS)
def test_one_and_two_steps_are_enough(T, decoder):
    process = ForwardProcess(NoiseSchedule.linear(T, 0.3, 0.6))
    out = variational_bound(process, some_reverse(process), torch.ones(3, 2), decoder)
    assert out["vb"].shape == (3, T) and all(v.isfinite().all() for v in out.values())


def test_a_schedule_without_signal_at_its_end_has_a_finite_bound():
    process = ForwardProcess(NoiseSchedule.jsd(20))
    out = variational_bound(process, some_reverse(process), torch.randint(256, (3, 2)) / 127.5 - 1)
    assert all(v.isfinite().all() for v in out.values()) and (out["prior"] == 0).all()


@pytest.mark.parametrize("options, says", (
    (dict(decoder="laplace"), "discretized, gaussian"), (dict(chunk=0), "chunk"),
    (dict(chunk=-2), "chunk")))
def test_wrong_options_are_refused_before_any_work(options, says):
    def never(x_t, t): raise AssertionError("the model was called")
    process = ForwardProcess(NoiseSchedule.linear(5))
    with pytest.raises(ValueError, match=says):
        variational_bound(process, never, torch.zeros(2, 2), **options)
    if "decoder" in options:
        zero = torch.zeros(2)
        with pytest.raises(ValueError, match=says): decoder_nll(zero, zero, zero, "laplace")


@pytest.mark.parametrize("x0", (torch.zeros(2, 2), torch.full((2, 2), 1.5), torch.rand(2, 9)))
def test_data_off_the_grid_of_the_discretized_decoder_are_refused(x0):
    "eq. 13: 0 lies between two levels, 1.5 beyond the last. A density is for any number."
    process = ForwardProcess(NoiseSchedule.linear(5))
    with pytest.raises(ValueError, match="256 values k/127.5 - 1.*decoder='gaussian'"):
        variational_bound(process, some_reverse(process), x0)
    variational_bound(process, some_reverse(process), x0, "gaussian")


def test_whole_numbers_are_refused():
    process = ForwardProcess(NoiseSchedule.linear(5))
    x0 = torch.zeros(2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="floating point"):
        variational_bound(process, some_reverse(process), x0)


def test_a_decoder_of_ones_own_is_one_entry(monkeypatch):
    "eq. 5: L_0 is whatever the entry says, in bits; the other terms do not change."
    monkeypatch.setitem(DECODERS, "flat", lambda x, means, log_scales: torch.full_like(x, -LOG2))
    process, x0 = ForwardProcess(NoiseSchedule.linear(5)), torch.zeros(3, 2)
    flat, usual = (variational_bound(process, some_reverse(process), x0, name,
                                     generator=torch.Generator().manual_seed(0))
                   for name in ("flat", "gaussian"))
    assert (flat["vb"][:, 0] == 1).all() and torch.equal(flat["vb"][:, 1:], usual["vb"][:, 1:])
