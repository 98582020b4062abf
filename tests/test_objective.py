"Properties of the objective: parameterizations, losses, the bound, and the ideal denoiser."
import math

import numpy as np
import pytest
import torch
from guards import NoStrangers, default_dtype, draw, gen, refused

from ddpm_nb.bound import decoder_nll, gaussian_kl, posterior_kl
from ddpm_nb.diffusion import extract
from ddpm_nb.objective import (LOSSES, PREDICTIONS, VARIANCES, IdealDenoiser, Prediction,
                               ReverseProcess, Variance)
from ddpm_nb.sampling import GaussianDiffusion
from ddpm_nb.schedules import NoiseSchedule
from ddpm_nb.unet import UNet, UNetConfig

close = torch.testing.assert_close
SHORT = NoiseSchedule.linear(T=20, beta_start=1e-3, beta_end=0.3)
SHAPES = [(6,), (6, 2), (6, 3, 4, 4), (6, 1, 2, 3, 2)]


def levels(*shape, seed=0, dtype=torch.float64):
    "Data on the grid of the discretized decoder."
    return torch.randint(0, 256, shape, generator=gen(seed)).to(dtype) / 127.5 - 1
def zeros(x, t): return torch.zeros_like(x)
def twice(x, t): return torch.zeros_like(torch.cat([x, x], 1))


# --- parameterizations ----------------------------------------------------------------------------

@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_target_gives_x0_back(prediction, shape):
    "eq. 9, 10: x_0 is recovered from each parameterization's target."
    d = ReverseProcess(SHORT, prediction=prediction)
    x0, noise, t = draw(*shape), draw(*shape, seed=1), torch.arange(6) * 3
    x_t = d.q_sample(x0, t, noise)
    p = PREDICTIONS[prediction]
    close(p.to_x0(d, p.target(d, x0, x_t, t, noise), x_t, t), x0, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_no_table_loses_precision_in_float32(prediction):
    "In float32, over the paper's 1000 steps: a few rounding errors, amplified for eps and mu."
    d = ReverseProcess(NoiseSchedule.linear(), prediction=prediction)
    t = torch.arange(1000)
    x0, noise = draw(1000, 8, dtype=torch.float32), draw(1000, 8, seed=1, dtype=torch.float32)
    x_t = d.q_sample(x0, t, noise)
    p = PREDICTIONS[prediction]
    error = (p.to_x0(d, p.target(d, x0, x_t, t, noise), x_t, t) - x0).abs().amax(1)
    amplify = {"eps": 1 / d.sqrt_alpha_bars, "mu": d.posterior_x_t_coef / d.posterior_x0_coef}
    amplification = amplify.get(prediction, torch.ones(1000))
    assert (error < 4e-6 * (1 + amplification)).all()


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_same_prediction_gives_one_bound_in_all_parameterizations(variance):
    "eq. 8, 10, 12: L_{t-1} from mu, eps, x0 and v is one number when they say the same."
    d = {p: ReverseProcess(SHORT, p, variance, loss="vlb", decoder="gaussian") for p in PREDICTIONS}
    x0, noise, guess = draw(20, 5), draw(20, 5, seed=1), draw(20, 5, seed=2)
    t = torch.arange(20)
    x_t = d["eps"].q_sample(x0, t, noise)
    signal, sigma = d["eps"].sqrt_alpha_bars[:, None], d["eps"].sqrt_one_minus_alpha_bars[:, None]
    guess_noise = (x_t - signal * guess) / sigma
    def model(name, p): return lambda x, u: PREDICTIONS[name].target(p, guess, x, t, guess_noise)
    losses = {name: p.losses(model(name, p), x0, t, noise) for name, p in d.items()}
    for name in losses: close(losses[name], losses["eps"], rtol=1e-10, atol=1e-12)
    # and eq. 12 itself, with the constant of eq. 8 put back
    small = d["eps"].posterior_log_variance
    sigma2 = d["eps"].p_mean_variance(zeros, x_t, t).log_variance[:, 0]
    constant = gaussian_kl(torch.zeros(20), small, torch.zeros(20), sigma2)
    nats = d["eps"].eps_weights * (noise - guess_noise).pow(2).mean(1) + constant
    close((20 * nats / math.log(2))[1:], losses["eps"][1:], rtol=1e-10, atol=1e-12)


def test_eq_11_is_the_posterior_mean_at_the_implied_x0():
    "eq. 11: the mean written with eps."
    d, s = ReverseProcess(SHORT), SHORT
    x_t, eps, t = draw(20, 3), draw(20, 3, seed=1), torch.arange(20)
    column = lambda table: table[:, None]
    mean = (x_t - column(s.betas / s.one_minus_alpha_bars.sqrt()) * eps) / column(s.alphas.sqrt())
    step = d.p_mean_variance(lambda x, u: eps, x_t, t, clip=False)
    close(step.mean, mean, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("prediction,name", [("eps", "epsilon"), ("x0", "sample"),
                                             ("v", "v_prediction")])
@pytest.mark.parametrize("clip", [True, False])
def test_the_mean_and_x0_agree_with_diffusers(prediction, name, clip):
    "eq. 7, 11, 15: against DDPMScheduler, float64."
    DDPMScheduler = pytest.importorskip("diffusers").DDPMScheduler
    s = NoiseSchedule.linear()
    theirs = DDPMScheduler(prediction_type=name, clip_sample=clip, variance_type="fixed_large")
    theirs.alphas_cumprod, theirs.one = s.alpha_bars, torch.tensor(1.0, dtype=torch.float64)
    d = ReverseProcess(s, prediction)
    for i in (0, 1, 10, 500, 999):
        x, out = draw(4, 2, 3, 3, seed=i), 0.3 * draw(4, 2, 3, 3, seed=i + 1)
        step = d.p_mean_variance(lambda x_t, t, out=out: out, x, torch.full((4,), i), clip=clip)
        want = theirs.step(out, i, x, generator=gen(7))
        noise = torch.randn(x.shape, generator=gen(7), dtype=x.dtype) if i else 0
        scale = want.pred_original_sample.abs().max()
        close(step.x0, want.pred_original_sample, rtol=0, atol=1e-12 * max(1, scale))
        got = step.mean + (step.log_variance / 2).exp() * noise
        close(got, want.prev_sample, rtol=0, atol=1e-12 * max(1, scale))


def test_learned_range_agrees_with_diffusers():
    "Interpolated log-variance, against DDPMScheduler's learned_range."
    DDPMScheduler = pytest.importorskip("diffusers").DDPMScheduler
    s = NoiseSchedule.linear()
    theirs = DDPMScheduler(variance_type="learned_range", clip_sample=True)
    theirs.alphas_cumprod, theirs.one = s.alpha_bars, torch.tensor(1.0, dtype=torch.float64)
    d = ReverseProcess(s, variance="learned_range")
    for i in (1, 10, 500, 999):
        x, out = draw(4, 2, 3, 3, seed=i), 0.3 * draw(4, 4, 3, 3, seed=i + 1)
        step = d.p_mean_variance(lambda x_t, t, out=out: out, x, torch.full((4,), i))
        want = theirs.step(out, i, x, generator=gen(7)).prev_sample
        noise = torch.randn(x.shape, generator=gen(7), dtype=x.dtype)
        got = step.mean + (step.log_variance / 2).exp() * noise
        close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clip", [True, False])
def test_clipping_leaves_the_mean_of_a_mu_network_alone(clip):
    "As in the paper's code: the network says the mean; only the x0-hat that is reported is cut."
    d, x, t = ReverseProcess(SHORT, "mu"), draw(20, 3), torch.arange(20)
    answer = 0.999 * x + 0.5
    step = d.p_mean_variance(lambda x, t: answer, x, t, clip)
    assert torch.equal(step.mean, answer)
    x0 = PREDICTIONS["mu"].to_x0(d, answer, x, t)
    assert x0.abs().max() > 10
    close(step.x0, x0.clamp(-1, 1) if clip else x0)


def test_where_stretches_are_long_a_mu_networks_mean_is_that_of_its_x0():
    "Of 3 stretches of 20 steps none is a step of the network's; of 19, all but one are."
    s, x = SHORT, draw(20, 3)
    for steps, single in ((3, 0), (19, 18)):
        d = ReverseProcess(s.respaced(steps), "mu", original=s)
        t, answer = torch.arange(steps), 0.999 * x[:steps] + 0.5
        step = d.p_mean_variance(lambda x, t: answer, x[:steps], t)
        assert (step.mean == answer).all(1).sum() == single == d.is_single.sum()
        long, mean = ~d.is_single, d.q_posterior(step.x0, x[:steps], t)[0]
        close(step.mean[long], mean[long])


def test_what_is_asked_for_is_a_formula_that_a_subclass_must_give():
    for base in (Prediction, Variance):
        with pytest.raises(TypeError, match="abstract"): type("Empty", (base,), {})()
    one = torch.ones(3, 1)
    with refused("_FixedSmall has no target: a variance that is learned needs one"):
        VARIANCES["fixed_small"].target(ReverseProcess(SHORT), one, one, one)


# --- variances ------------------------------------------------------------------------------------

def test_fixed_large_takes_the_posterior_variance_of_index_1_at_index_0():
    "As in the paper's code. So at t = 1 the weight of eq. 12 is not that of sigma^2 = beta."
    s = NoiseSchedule.linear()
    d, beta = ReverseProcess(s), s.betas / (2 * s.alphas * s.one_minus_alpha_bars)
    close(d.eps_weights[1:], beta[1:])
    assert round(d.eps_weights[0].item(), 3) == 0.917 and round(beta[0].item(), 3) == 0.5
    step = d.p_mean_variance(zeros, draw(2, 1), torch.tensor([0, 1]))
    close(step.variance[:, 0], torch.stack([d.posterior_variance[1], d.betas[1]]))


@pytest.mark.parametrize("end,fraction", [(-1.0, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_learned_range_runs_from_small_to_large(end, fraction):
    "v = -1 gives beta-tilde, v = 1 gives beta, between them the logarithms are mixed."
    d, t, x = ReverseProcess(SHORT, variance="learned_range"), torch.arange(1, 20), draw(19, 2)
    step = d.p_mean_variance(lambda x, t: torch.cat([x, torch.full_like(x, end)], 1), x, t)
    small, large = d.posterior_variance[1:].log(), d.betas[1:].log()
    close(step.log_variance, (small + fraction * (large - small))[:, None].expand(-1, 2))


def test_learned_variance_is_read_from_the_second_half_of_the_channels():
    d, x, t = ReverseProcess(SHORT, variance="learned"), draw(5, 3, 2, 2), torch.arange(5)
    log_variance = draw(5, 3, 2, 2, seed=3)
    step = d.p_mean_variance(lambda x, t: torch.cat([0.1 * x, log_variance], 1), x, t, clip=False)
    close(step.log_variance, log_variance)
    close(step.variance, log_variance.exp())
    plain = ReverseProcess(SHORT).p_mean_variance(lambda x, t: 0.1 * x, x, t, clip=False)
    close(step.mean, plain.mean)


@pytest.mark.parametrize("variance,spread", [("fixed_large", 1.0), ("fixed_small", 0.0)])
def test_each_fixed_variance_is_optimal_for_its_extreme_of_the_data(variance, spread):
    "Section 3.2: x0 ~ N(0, I) wants beta_t, a known point wants beta-tilde_t (index 0 apart)."
    d = ReverseProcess(SHORT, variance=variance)
    centre = torch.full((1, 2), 0.0 if spread else 0.7, dtype=torch.float64)
    ideal = IdealDenoiser(ReverseProcess(SHORT, variance="learned"), centre, spread)
    x, t = draw(19, 2), torch.arange(1, 20)
    best = ideal(x, t).chunk(2, 1)[1]
    close(best, d.p_mean_variance(zeros, x, t).log_variance.expand_as(best), rtol=1e-10, atol=1e-10)


# --- losses ---------------------------------------------------------------------------------------

class Affine(torch.nn.Module):
    "A small model with parameters: the prediction, and a variance if asked, from x and t."
    def __init__(self, channels, outputs):
        super().__init__()
        self.weight = torch.nn.Parameter(0.3 * draw(channels, outputs, seed=9))
        self.bias = torch.nn.Parameter(0.1 * draw(outputs, seed=10))

    def forward(self, x, t):
        shift = self.bias * (1 + 0.01 * t[:, None])
        shift = shift.view(len(x), -1, *(1,) * (x.ndim - 2))
        return torch.einsum("bc...,cd->bd...", x, self.weight) + shift


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_simple_loss_and_gradient_equal_a_loop_over_items(prediction):
    "eq. 14, written out item by item, and its gradient by central differences."
    d, s = ReverseProcess(SHORT, prediction), SHORT
    net, x0, noise = Affine(2, 2), draw(5, 2, 3), draw(5, 2, 3, seed=1)
    t = torch.tensor([0, 3, 19, 7, 7])

    def brute():
        total = 0.0
        for i in range(5):
            k = int(t[i])
            a, b = s.alpha_bars[k], s.one_minus_alpha_bars[k]
            x_t = a.sqrt() * x0[i] + b.sqrt() * noise[i]
            prev = s.alpha_bars_prev[k]
            mu = prev.sqrt() * s.betas[k] * x0[i] + s.alphas[k].sqrt() * (1 - prev) * x_t
            v = a.sqrt() * noise[i] - b.sqrt() * x0[i]
            target = {"eps": noise[i], "x0": x0[i], "mu": mu / b, "v": v}[prediction]
            total = total + ((net(x_t[None], t[i:i + 1])[0] - target) ** 2).mean() / 5
        return total

    loss = d.loss(net, x0, t, noise)
    close(loss, brute(), rtol=1e-12, atol=1e-12)
    loss.backward()
    check_gradient(net, brute)


def check_gradient(net, value, h=1e-5, atol=1e-8):
    for p in net.parameters():
        for i in range(p.numel()):
            with torch.no_grad():
                flat = p.data.view(-1)
                keep = flat[i].item()
                flat[i] = keep + h
                up = value()
                flat[i] = keep - h
                down = value()
                flat[i] = keep
            slope = float(up - down) / (2 * h)
            got = p.grad.view(-1)[i].item()
            assert abs(slope - got) < atol * (1 + abs(slope)) * 10, (slope, got)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("decoder", ["discretized", "gaussian"])
def test_vlb_loss_and_gradient_equal_torch_distributions(variance, decoder):
    "eq. 5, 13: T times the term at t, item by item; its gradient by central differences."
    from torch.distributions import Normal, kl_divergence
    d = ReverseProcess(SHORT, "eps", variance, "vlb", decoder)
    net = Affine(2, 4 if variance.startswith("learned") else 2)
    x0 = (draw(6, 2, 3) * 60 + 127).round().clamp(0, 255) / 127.5 - 1
    noise, t = draw(6, 2, 3, seed=1), torch.tensor([0, 0, 1, 5, 12, 19])

    def brute():
        total = 0.0
        x_t = d.q_sample(x0, t, noise)
        out = net(x_t, t)
        for i in range(6):
            k = t[i:i + 1]
            step = d.read(out[i:i + 1], x_t[i:i + 1], k, clip=False)
            p = Normal(step.mean, (step.log_variance / 2).exp().expand_as(step.mean))
            if k == 0 and decoder == "gaussian": term = -p.log_prob(x0[i:i + 1])
            elif k == 0:
                upper = torch.where(x0[i:i + 1] > 0.999, 1.0, p.cdf(x0[i:i + 1] + 1 / 255))
                lower = torch.where(x0[i:i + 1] < -0.999, 0.0, p.cdf(x0[i:i + 1] - 1 / 255))
                term = -(upper - lower).log()
            else:
                mean, _, log_variance = d.q_posterior(x0[i:i + 1], x_t[i:i + 1], k)
                term = kl_divergence(Normal(mean, (log_variance / 2).exp().expand_as(mean)), p)
            total = total + SHORT.T * term.mean() / math.log(2) / 6
        return total

    loss = d.loss(net, x0, t, noise)
    close(loss, brute(), rtol=1e-9, atol=1e-9)
    loss.backward()
    check_gradient(net, lambda: d.loss(net, x0, t, noise), atol=1e-6)


def test_hybrid_trains_the_mean_by_simple_and_the_variance_by_the_bound():
    "The bound's gradient stops at the mean."
    x0, noise, t = draw(6, 2, 3), draw(6, 2, 3, seed=1), torch.arange(6)
    grads = {}
    for loss in ("hybrid", "vlb"):
        net = Affine(2, 4)
        d = ReverseProcess(SHORT, variance="learned_range", loss=loss)
        d.loss(net, x0, t, noise).backward()
        grads[loss] = net.weight.grad.clone()
    net = Affine(2, 4)
    class Half(torch.nn.Module):
        def forward(self, x, t): return net(x, t).chunk(2, 1)[0]
    ReverseProcess(SHORT).loss(Half(), x0, t, noise).backward()
    close(grads["hybrid"][:, :2], net.weight.grad[:, :2])              # mean: L_simple alone
    close(grads["hybrid"][:, 2:], 0.001 * grads["vlb"][:, 2:])         # variance: the bound alone


@pytest.mark.parametrize("variance", VARIANCES)
def test_vlb_losses_over_all_t_sum_to_bits_per_dim(variance):
    "eq. 5: the mean over t of the vlb loss is L_0 + ... + L_{T-1}; a uniform t is unbiased."
    d = ReverseProcess(SHORT, variance=variance, loss="vlb")
    net = Affine(2, 4 if variance.startswith("learned") else 2)
    x0 = levels(1, 2, 3)
    with torch.no_grad():
        terms = d.bits_per_dim(net, x0, chunk=20, generator=gen(5), clip=False)
        noise = torch.randn(20, 2, 3, generator=gen(5), dtype=torch.float64)   # as there
        losses = d.losses(net, x0.expand(20, -1, -1), torch.arange(20), noise)
    close(losses / 20, terms["vb"][0], rtol=1e-10, atol=1e-12)
    close(terms["total"], terms["prior"] + losses.mean(), rtol=1e-10, atol=1e-12)


def test_random_t_gives_the_bound_on_average():
    "eq. 5: 40,000 draws of t and noise against the sum over t, within 5 standard errors of both."
    d = ReverseProcess(SHORT, loss="vlb", decoder="gaussian")
    ideal = IdealDenoiser(d, torch.zeros(1, 1), 0.5)
    x0 = 0.5 * torch.randn(40_000, 1, generator=gen(1))
    torch.manual_seed(0)
    losses = d.losses(ideal, x0)
    terms = d.bits_per_dim(ideal, x0, generator=gen(2), clip=False)["vb"].sum(1)
    error = math.sqrt(losses.var() / 40_000 + terms.var() / 40_000)
    assert abs(losses.mean() - terms.mean()) < 5 * error


def chi_square(t, T):
    "How far the counts of 0 .. T-1 in `t` are from equal, in units of what luck alone does."
    expected = len(t) / T
    return ((t.bincount(minlength=T) - expected) ** 2 / expected).sum().item()


def test_every_t_is_drawn_as_often_as_any_other():
    """eq. 14: t is uniform on 1 .. T, both ends among them.

    20,000 draws of 20 values: fair ones exceed 51.5 less than once in 10,000 times. One value that
    comes 30 % too seldom is seen in 99 of 100 times (checked in 300 trials), and a range that
    lacks one of its ends always.
    """
    T, n, limit, luck = 20, 20_000, 51.5, torch.tensor((19 / 2, 51.5 / 2)).double()
    assert torch.special.gammaincc(*luck) < 1e-4
    d, seen = ReverseProcess(SHORT), []
    def model(x, t):
        seen.append(t)
        return x
    for draw_t in (d.losses, d.loss):
        torch.manual_seed(0)
        draw_t(model, torch.zeros(n, 1))
        assert chi_square(seen.pop(), T) < limit
    for low, high in ((0, T - 1), (1, T)):     # from 0 .. T-2, and from 1 .. T-1
        assert chi_square(torch.randint(low, high, (n,), generator=gen(1)), T) > limit
    share = torch.ones(300, T)
    share[:, -1] = 0.7
    rare = torch.multinomial(share, n, replacement=True, generator=gen(2))
    assert sum(chi_square(t, T) > limit for t in rare) > 297


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_losses_and_bound_accept_any_shape_of_data(shape, prediction):
    d = ReverseProcess(SHORT, prediction)
    x0 = levels(*shape, dtype=torch.float32)
    assert d.losses(zeros, x0).shape == (6,)
    assert d.loss(zeros, x0).shape == ()
    terms = d.bits_per_dim(zeros, x0)
    shapes = {k: tuple(v.shape) for k, v in terms.items()}
    assert shapes == dict(total=(6,), prior=(6,), vb=(6, 20), mse=(6, 20))
    assert all(v.isfinite().all() for v in terms.values())


@pytest.mark.parametrize("chunk", [1, 7, 13, 20])
def test_bits_per_dim_in_chunks_are_those_of_each_step_alone(chunk):
    "Memory may be saved, the numbers stay: a model and a noise that depend on x_t alone."
    d = ReverseProcess(SHORT, variance="learned_range")
    net, x0 = Affine(2, 4), levels(3, 2, 3)
    whole = {k: [] for k in ("vb", "mse")}
    # the noise of one call per chunk, as bits_per_dim walks, from the last chunk to the first
    got = d.bits_per_dim(net, x0, chunk=chunk, generator=gen(3))
    g = gen(3)
    for stop in range(20, 0, -chunk):
        start = max(0, stop - chunk)
        noise = torch.randn(3 * (stop - start), 2, 3, generator=g, dtype=torch.float64)
        for j, k in enumerate(range(start, stop)):
            part = noise[3 * j: 3 * j + 3]
            with torch.no_grad():
                t = torch.full((3,), k)
                x_t = d.q_sample(x0, t, part)
                step = d.p_mean_variance(net, x_t, t)
                said = step.mean, step.log_variance
                own = posterior_kl(d, x0, x_t, t, *said) if k else decoder_nll(x0, *said)
            whole["vb"].append((k, own))
            whole["mse"].append((k, (step.x0 - x0).pow(2).mean((1, 2))))
    for name, parts in whole.items():
        order = torch.stack([m for _, m in sorted(parts, key=lambda p: p[0])], 1)
        close(got[name], order, rtol=1e-12, atol=1e-12)
    close(got["total"], got["prior"] + got["vb"].sum(1))


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_counts_the_calls_of_the_bound(progress, capsys):
    ReverseProcess(SHORT).bits_per_dim(zeros, levels(2, 3), chunk=5, progress=progress)
    assert (" 4/4 " in capsys.readouterr().err) == progress


def test_every_exact_term_of_the_bound_on_a_gaussian():
    "eq. 5, 12: x0 ~ N(0, s^2), the ideal model: each L_{t-1}, within 5 standard errors."
    s, n = 0.5, 20_000
    for variance in ("fixed_small", "fixed_large"):
        d = ReverseProcess(SHORT, variance=variance, decoder="gaussian")
        x0 = s * draw(n, 1)
        ideal = IdealDenoiser(d, torch.zeros(1, 1, dtype=torch.float64), s)
        vb = d.bits_per_dim(ideal, x0, generator=gen(4), clip=False)["vb"]
        r2 = SHORT.alpha_bars * s**2 + SHORT.one_minus_alpha_bars
        doubt = s**2 * SHORT.one_minus_alpha_bars / r2      # Var[x0 | x_t]
        log_small = d.posterior_log_variance
        log_variance = log_small if variance == "fixed_small" else d.fixed_large_log_variance
        nats = 0.5 * (torch.expm1(log_small - log_variance) - (log_small - log_variance))
        nats = nats + d.posterior_x0_coef**2 * doubt / (2 * log_variance.exp())
        error = 5 * vb.std(0) / math.sqrt(n)
        assert ((vb.mean(0) - nats / math.log(2)).abs()[1:] < error[1:]).all()


@pytest.mark.parametrize("x0,says", [
    (levels(4, 3) / 2 + 0.5, r", 0.\d+ .. 0.\d+, are off by up to 0.5 of a level"),
    ((levels(4, 3) + 1) * 127.5, "are off by up to 3.+ of a level.*to_model.*decoder='gaussian'"),
    (draw(4, 3).clamp(-1, 1), "are off by up to 0.[34]"), (torch.tensor([math.nan]), "nan .. nan")])
def test_bits_of_data_off_the_grid_are_refused(x0, says):
    "eq. 13 is for 256 values: in [0, 1] every other is half a level off, and bytes by thousands."
    def never(x, t): raise AssertionError("the model was called")
    with refused("discretized decoder is for the 256 values k/127.5 - 1, and the data.*" + says):
        ReverseProcess(SHORT).bits_per_dim(never, x0)
    if x0.ndim > 1: ReverseProcess(SHORT, decoder="gaussian").bits_per_dim(zeros, x0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_level_is_on_the_grid_in_its_own_precision(dtype):
    x0 = (torch.arange(256.0) / 127.5 - 1).to(dtype)[None]
    assert ReverseProcess(SHORT).bits_per_dim(zeros, x0)["total"].isfinite().all()
    if dtype != torch.float16:
        with refused("off by up to 0.01"):
            ReverseProcess(SHORT).bits_per_dim(zeros, x0 + 0.01 / 127.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [0, 7, 19])
def test_bits_from_a_network_that_is_not_finite_are_an_error(bad, when):
    "One answer in one place at one step is enough, and the step is named."
    def model(x, t):
        out = torch.zeros_like(x)
        out[t == when, 1:] = bad
        return out
    for chunk in (1, 6, 20):
        with pytest.raises(FloatingPointError, match=f"not finite .*at times up to t = {when}$"):
            ReverseProcess(SHORT).bits_per_dim(model, levels(3, 4), chunk)


def test_half_precision_output_leaves_the_state_in_float32():
    d, x, t = ReverseProcess(SHORT), draw(4, 3, dtype=torch.float32), torch.arange(4)
    step = d.p_mean_variance(lambda x, t: x.bfloat16(), x, t)
    assert {v.dtype for v in step} == {torch.float32}
    assert d.loss(lambda x, t: x.bfloat16(), x).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("loss", ["simple", "vlb"])
def test_the_loss_of_data_in_half_precision_is_computed_in_float32(loss, prediction, dtype):
    """The answer is exact, so that nothing but the loss's own arithmetic could differ; in bfloat16
    it said 470.7 bits/dim where 273.5 is right."""
    d = ReverseProcess(NoiseSchedule.linear(), prediction, loss=loss)
    x0, noise = levels(1000, 12, dtype=dtype), draw(1000, 12, seed=1, dtype=dtype)
    seen, t = [], torch.arange(1000)
    def model(x, t):
        seen.append(x.dtype)
        return torch.full_like(x, 0.25)
    half = d.losses(model, x0, t, noise)
    full = d.losses(model, x0.float(), t, noise.float())
    assert seen == [dtype, torch.float32]              # the network is asked in the data's own
    assert half.dtype == torch.float32 and torch.equal(half, full)
    assert d.loss(model, x0, t, noise).dtype == torch.float32


def test_a_step_from_a_half_precision_state_is_float32():
    d, x, t = ReverseProcess(SHORT), draw(20, 3, dtype=torch.bfloat16), torch.arange(20)
    step, want = (d.p_mean_variance(zeros, v, t) for v in (x, x.float()))
    for a, b in zip(step, want): assert a.dtype == torch.float32 and torch.equal(a, b)


class Wrapped(dict):
    "As diffusers' outputs are: a dictionary, and attributes."
    def __init__(self, sample): self.sample = sample


@pytest.mark.parametrize("wrap, cure", [
    (Wrapped, r"got Wrapped: .* lambda x, t: model\(x, t\).sample in its place"),
    (lambda x: (x,), r"got tuple: .* lambda x, t: model\(x, t\)\[0\] in its place"),
    (lambda x: [x], "got list"), (lambda x: None, "got NoneType"),
    (lambda x: x.numpy(), "got ndarray")])
def test_an_answer_that_is_no_tensor_is_refused_with_the_cure(wrap, cure):
    x = levels(4, 3)
    for variance in ("fixed_large", "learned_range"):
        d, own = GaussianDiffusion(SHORT, variance=variance), zeros
        model = lambda x, t: wrap(own(x, t))
        with refused(cure): d.loss(model, x)
        with refused(cure): d.bits_per_dim(model, x)
        with refused(cure): d.sample(model, (4, 3), progress=False)


def test_diffusers_network_runs_in_our_sampler_unwrapped_and_is_refused_wrapped():
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, norm_num_groups=4,
                                layers_per_block=1, block_out_channels=(8,),
                                down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    d = GaussianDiffusion(SHORT)
    x = d.sample(lambda x, t: net(x, t).sample, (2, 1, 8, 8), "ddim", 3, gen(), progress=False)
    assert x.shape == (2, 1, 8, 8) and x.isfinite().all()
    with refused("UNet2DOutput.*sample"): d.sample(net, (2, 1, 8, 8), progress=False)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 3, 4, 4)])
def test_an_empty_batch_has_no_bound_and_no_loss(shape):
    d = ReverseProcess(SHORT)
    with refused("x0 must hold at least one item, got shape"): d.bits_per_dim(zeros, draw(*shape))
    with refused("at least one item"): d.loss(zeros, draw(*shape))
    assert d.losses(zeros, draw(*shape)).shape == (0,)


def test_an_item_with_a_generator_of_its_own_has_the_same_bound_in_any_chunk_and_company():
    d, x = GaussianDiffusion(SHORT), levels(3, 2)
    own = lambda: [gen(4), gen(5), gen(6)]
    whole = d.bits_per_dim(Affine(2, 2), x, generator=own())
    for chunk in (1, 3, 7):
        close(d.bits_per_dim(Affine(2, 2), x, chunk, own())["vb"], whole["vb"])
    close(d.bits_per_dim(Affine(2, 2), x[1:2], 2, [gen(5)])["vb"], whole["vb"][1:2])
    other = d.bits_per_dim(Affine(2, 2), x, generator=own()[::-1])
    assert not torch.equal(other["vb"], whole["vb"])
    with refused("one for each of the 3 items, got 2"): d.bits_per_dim(zeros, x, 1, own()[:2])


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True, "all"])
def test_a_chunk_is_a_whole_number(chunk):
    with refused("chunk must be a whole number, 1 or more, got"):
        GaussianDiffusion(SHORT).bits_per_dim(zeros, levels(2, 3), chunk)


@pytest.mark.parametrize("noise, match", [
    (np.zeros((2, 3)), r"noise must have shape \(2, 3\), got ndarray"), (0, "got int"),
    (torch.zeros(2, 3, dtype=torch.long), "noise must be floating point, standard normal")])
def test_noise_that_is_none_is_refused(noise, match):
    d, x, t = GaussianDiffusion(SHORT), draw(2, 3), torch.tensor([0, 4])
    with refused(match): d.loss(zeros, x, t, noise)
    with refused(match): d.q_sample(x, t, noise)


@pytest.mark.parametrize("wrong", [0, 7, "cpu", 0.5])
def test_a_generator_that_is_none_is_refused_with_the_cure(wrong):
    d, words = GaussianDiffusion(SHORT), "generator must be a torch.Generator, got .*manual_seed"
    with refused(words): d.bits_per_dim(zeros, levels(2, 3), generator=wrong)
    with refused(words): d.sample(zeros, (2, 3), generator=wrong, progress=False)
    with refused(words): d.interpolate(zeros, draw(2, 3), draw(2, 3), 0.5, 4, wrong, False)


@pytest.mark.parametrize("wrong", [["eps"], {"eps": 1}, {"eps"}, None, 3, b"eps", torch.ones(2),
                                   "", 0, False, [], {}])
def test_a_name_that_is_no_name_is_refused_with_those_there_are(wrong):
    for what in ("prediction", "variance", "decoder", *(["loss"] if wrong is not None else [])):
        with refused(f"{what} must be one of "): ReverseProcess(SHORT, **{what: wrong})
    d = GaussianDiffusion(SHORT)
    with refused("sampler must be one of ddpm"): d.sample(zeros, (2, 3), wrong, progress=False)


# --- a network in double, and where double is the default -----------------------------------------

def test_all_is_in_double_where_the_data_are():
    d, x = GaussianDiffusion(SHORT), levels(4, 3)
    linear = torch.nn.Linear(3, 3).double()
    model = lambda x, t: linear(x)
    assert d.losses(model, x).dtype == d.loss(model, x).dtype == torch.float64
    assert {v.dtype for v in d.bits_per_dim(model, x).values()} == {torch.float64}
    noise = draw(4, 3)
    with torch.no_grad():
        assert d.sample(model, (4, 3), noise=noise, progress=False).dtype == torch.float64


def test_a_default_of_double_changes_nothing_but_the_type():
    "`torch.set_default_dtype(torch.float64)` before anything is made."
    d, x = GaussianDiffusion(SHORT), levels(4, 3)
    want = d.bits_per_dim(zeros, x, generator=gen(1)), d.sample(
        zeros, (4, 3), noise=draw(4, 3), generator=gen(1), progress=False)
    with default_dtype(torch.float64):
        d = GaussianDiffusion(NoiseSchedule.linear(T=20, beta_start=1e-3, beta_end=0.3))
        got = d.bits_per_dim(zeros, x, generator=gen(1)), d.sample(
            zeros, (4, 3), noise=draw(4, 3), generator=gen(1), progress=False)
        assert d.sample(zeros, (4, 3), progress=False).dtype == torch.float64
        net = UNet(UNetConfig(image_size=8, in_channels=1, out_channels=1, base_channels=8,
                              channel_multipliers=(1, 2), attention_resolutions=(4,), groups=4))
        image = levels(2, 1, 8, 8)
        assert d.loss(net, image).dtype == torch.float64
        assert d.sample(net.eval(), (2, 1, 8, 8), steps=2, progress=False).dtype == torch.float64
    for k, v in want[0].items(): assert torch.equal(got[0][k], v), k
    assert torch.equal(got[1], want[1])


# --- guidance: a model that takes gradients -------------------------------------------------------

S2, R2, READ = 0.5**2, 0.3**2, 0.8      # variances of data and reading, and what was read


def of_gaussian(d, mean, variance):
    "The best answer for data N(mean, variance)."
    def eps(x, t):
        a, sigma = extract(d.sqrt_alpha_bars, t, x), extract(d.sqrt_one_minus_alpha_bars, t, x)
        return sigma * (x - a * mean) / (a**2 * variance + sigma**2)
    return eps


def guided_by_a_reading(d, leave=True):
    "The answer for data N(0, S2), moved uphill in log p(READ given x_t)."
    def eps(x, t):
        with torch.inference_mode(not leave and torch.is_inference_mode_enabled()):
            with torch.enable_grad():
                x, t = x.clone().requires_grad_(), t.clone()
                a = extract(d.sqrt_alpha_bars, t, x)
                sigma = extract(d.sqrt_one_minus_alpha_bars, t, x)
                gain = a * S2 / (a**2 * S2 + sigma**2)
                fit = -(READ - gain * x) ** 2 / (2 * (S2 * (1 - a * gain) + R2))
                uphill, = torch.autograd.grad(fit.sum(), x)
        return of_gaussian(d, 0, S2)(x.detach(), t) - sigma * uphill
    return eps


@pytest.mark.parametrize("sampler, steps", [("ddpm", None), ("ddim", 7), ("dpm++", 12)])
def test_guidance_samples_the_conditional_distribution(sampler, steps):
    """Bayes' rule in closed form: the guided answer for all data is the plain one for those with
    that reading, so both lead from the same noise to the same samples."""
    d = GaussianDiffusion(NoiseSchedule.linear(T=100, beta_end=0.15))
    mean, variance = S2 * READ / (S2 + R2), S2 * R2 / (S2 + R2)
    plain, guided = (d.sample(model, (4000, 2), sampler, steps, gen(1), clip=False, progress=False,
                              noise=draw(4000, 2)) for model in
                     (of_gaussian(d, mean, variance), guided_by_a_reading(d)))
    close(guided, plain, rtol=0, atol=1e-9)
    # and they are where they should be: five standard errors of 8,000 numbers (false alarm 1e-6),
    # and 0.02 for a chain of 100 steps that ends with 0.0005 of the signal
    assert abs(guided.mean() - mean) < 5 * math.sqrt(variance / 8000) + 0.02
    assert not abs(guided.mean()) < 0.3                # where the data are without the reading


def test_guidance_that_stays_in_inference_mode_is_told_how_to_leave_it():
    d = GaussianDiffusion(SHORT)
    with pytest.raises(RuntimeError, match=r"torch.inference_mode\(False\), torch.enable") as e:
        d.sample(guided_by_a_reading(d, leave=False), (4, 2), progress=False)
    assert len(str(e.value).splitlines()) == 1
    d.bits_per_dim(guided_by_a_reading(d, leave=False), levels(4, 2))   # not in that mode
    def other(x, t): raise RuntimeError("grad: a fault of the model's own")
    with pytest.raises(RuntimeError, match="^grad: a fault"): d.bits_per_dim(other, levels(4, 2))


def test_the_model_is_told_the_original_times():
    "After respacing, t is the index in the long schedule."
    seen = []
    d = ReverseProcess(NoiseSchedule.linear().respaced(10))
    d.losses(lambda x, t: seen.append(t) or x, draw(10, 2), torch.arange(10))
    assert seen[0].tolist() == list(range(99, 1000, 100))


# --- the ideal denoiser ---------------------------------------------------------------------------

@pytest.mark.parametrize("std", [0.0, 0.2])
def test_ideal_denoiser_equals_bayes_on_a_grid(std):
    "E[x0 | x_t] and Var[x0 | x_t] by integration over x0 (sums over points where std is 0)."
    d, points = ReverseProcess(SHORT, "x0"), torch.tensor([-0.9, 0.1, 0.4], dtype=torch.float64)
    ideal, t = IdealDenoiser(d, points, std), torch.arange(20)
    x_t = d.q_sample(points[t % 3], t, draw(20))
    if std:
        grid = torch.linspace(-4, 4, 40_001, dtype=torch.float64)
        prior = torch.exp(-(grid[:, None] - points) ** 2 / (2 * std**2)).sum(1)
    else: grid, prior = points, torch.ones(3, dtype=torch.float64)
    a, b = SHORT.alpha_bars[:, None].sqrt(), SHORT.one_minus_alpha_bars[:, None]
    weight = prior * torch.exp(-(x_t[:, None] - a * grid) ** 2 / (2 * b))
    weight = weight / weight.sum(1, keepdim=True)
    mean = weight @ grid
    variance = (weight * (grid - mean[:, None]) ** 2).sum(1)
    got_mean, got_variance = ideal.moments(x_t, t)
    close(got_mean, mean, rtol=0, atol=1e-9)
    close(got_variance, variance, rtol=0, atol=1e-9)
    close(ideal(x_t, t), mean, rtol=0, atol=1e-9)


def test_ideal_eps_is_the_score_by_autograd():
    "Section 3.2: eps = -sqrt(1 - alpha_bar) grad log q(x_t)."
    d = ReverseProcess(SHORT)
    ideal, t = IdealDenoiser(d, draw(7, 2, 2), 0.1), torch.arange(20)
    x = draw(20, 2, 2, seed=5).requires_grad_()
    score, = torch.autograd.grad(ideal.log_prob(x, t).sum(), x)
    eps = -SHORT.one_minus_alpha_bars.sqrt().view(-1, 1, 1) * score
    close(eps, ideal(x, t).detach(), rtol=1e-9, atol=1e-9)


def test_ideal_density_is_that_of_the_noised_mixture_in_any_dimension():
    from ddpm_nb.data import Mixture
    centres, x, t = draw(5, 3), draw(20, 3, seed=1), torch.arange(20)
    want = [Mixture(centres, 0.2).noised(bar).log_prob(x[i:i + 1])
            for i, bar in enumerate(SHORT.alpha_bars.tolist())]
    ideal = IdealDenoiser(ReverseProcess(SHORT), centres, 0.2)
    close(ideal.log_prob(x, t), torch.cat(want), rtol=1e-10, atol=1e-10)


def test_ideal_density_integrates_to_one():
    d = ReverseProcess(SHORT)
    grid = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    for k in (0, 7, 19):
        ideal = IdealDenoiser(d, torch.tensor([-0.9, 0.4]).double())
        density = ideal.log_prob(grid, torch.full((24_001,), k)).exp()
        assert abs(torch.trapezoid(density, grid) - 1) < 1e-9


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_nobody_beats_the_ideal_denoiser(prediction, variance):
    "Its L_simple is lower than that of any perturbed answer (the mean minimises squared error)."
    loss = "vlb" if variance.startswith("learned") else "simple"
    d = ReverseProcess(SHORT, prediction, variance, loss=loss, decoder="gaussian")
    points = draw(5, 2)
    ideal, n = IdealDenoiser(d, points, 0.1), 20_000
    x0 = points[torch.randint(5, (n,), generator=gen(0))] + 0.1 * draw(n, 2)
    t, noise = torch.randint(1, 20, (n,), generator=gen(1)), draw(n, 2, seed=2)
    best = d.losses(ideal, x0, t, noise)
    for change in (lambda y: y + 0.1, lambda y: y - 0.1, lambda y: 1.1 * y):
        gap = d.losses(lambda x, t, change=change: change(ideal(x, t)), x0, t, noise) - best
        assert gap.mean() > 3 * gap.std() / math.sqrt(n)


def test_learned_variance_lowers_the_bound():
    "For an exact model the ideal diagonal variance beats both fixed ones."
    points = draw(5, 2)
    x0 = points[torch.randint(5, (4000,), generator=gen(0))] + 0.1 * draw(4000, 2)
    total = {}
    for variance in VARIANCES:
        d = ReverseProcess(SHORT, variance=variance, decoder="gaussian")
        ideal = IdealDenoiser(d, points, 0.1)
        total[variance] = d.bits_per_dim(ideal, x0, generator=gen(1), clip=False)["total"]
    # the ideal may leave the range
    close(total["learned"], total["learned_range"], rtol=1e-6, atol=1e-6)
    for fixed in ("fixed_small", "fixed_large"):
        gap = total[fixed] - total["learned"]
        assert gap.mean() > 3 * gap.std() / math.sqrt(4000)


# --- devices --------------------------------------------------------------------------------------

def test_the_guard_catches_a_stranger():
    x = torch.empty(3, device="meta")
    with NoStrangers():
        with pytest.raises(RuntimeError, match="makes a CPU tensor"): torch.randn(3)
    y = torch.randn(3)
    with NoStrangers():
        with pytest.raises(RuntimeError, match="mixes|device"): x + y


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_nothing_is_created_on_the_wrong_device(prediction, variance):
    "Losses, gradient and bound with all tensors on the meta device."
    for loss in LOSSES:
        learned = variance.startswith("learned")
        if (loss == "hybrid") > learned or (loss == "simple") & learned: continue
        d = ReverseProcess(SHORT, prediction, variance, loss).to("meta")
        scale = torch.ones(2 if learned else 1, device="meta", requires_grad=True)
        model = lambda x, t: torch.cat([x * w for w in scale], 1)
        x0 = torch.empty(4, 3, 8, 8, device="meta")
        with NoStrangers():
            value = d.loss(model, x0)
            value.backward()
            terms = d.bits_per_dim(model, x0, chunk=5)
        assert {v.device.type for v in (value, scale.grad, *terms.values())} == {"meta"}


def test_the_ideal_denoiser_follows_its_process_to_the_device():
    d = ReverseProcess(SHORT, variance="learned").to("meta")
    ideal = IdealDenoiser(d, draw(5, 3))
    x, t = torch.empty(4, 3, device="meta"), torch.empty(4, device="meta", dtype=torch.long)
    with NoStrangers(): assert ideal(x, t).device.type == "meta"


def test_data_on_another_device_is_refused():
    d = ReverseProcess(SHORT).to("meta")
    with refused("data is on cpu, the diffusion on meta"): d.loss(zeros, draw(2, 2))


# --- what is refused ------------------------------------------------------------------------------

@pytest.mark.parametrize("wrong,allowed", [
    (dict(prediction="epsilon"), "prediction must be one of eps, x0, mu, v, got 'epsilon'"),
    (dict(variance="fixed"),
     "variance must be one of fixed_small, fixed_large, learned, learned_range, got 'fixed'"),
    (dict(loss="l2"), "loss must be one of simple, vlb, hybrid, got 'l2'"),
    (dict(decoder="laplace"), "decoder must be one of discretized, gaussian, got 'laplace'"),
    (dict(loss="hybrid"), "variance must be learned or learned_range"),
    (dict(variance="learned", loss="simple"), "loss must be vlb or hybrid"),
])
def test_a_wrong_name_is_answered_with_the_allowed_ones(wrong, allowed):
    with refused(allowed): ReverseProcess(SHORT, **wrong)


def test_a_schedule_is_needed():
    with refused("schedule must be a NoiseSchedule"): ReverseProcess(SHORT.betas)


@pytest.mark.parametrize("wrong", [lambda x, t: x[:, :1], lambda x, t: torch.cat([x, x], 1),
                                   lambda x, t: x[:2], lambda x, t: x[..., :1]])
def test_an_output_of_the_wrong_shape_is_refused(wrong):
    x, t = levels(4, 3, 2, 2), torch.arange(4)
    for call in (lambda d: d.loss(wrong, x), lambda d: d.p_mean_variance(wrong, x, t),
                 lambda d: d.bits_per_dim(wrong, x)):
        with refused(r"must return the shape of x_t, \(\d+, 3, 2, 2\), got"):
            call(ReverseProcess(SHORT))


@pytest.mark.parametrize("loss", ["vlb", "hybrid"])
def test_a_learned_variance_needs_twice_the_channels(loss):
    d, x = ReverseProcess(SHORT, variance="learned", loss=loss), draw(4, 3, 2, 2)
    with refused(r"must return shape \(4, 6, 2, 2\), got \(4, 3, 2, 2\)"): d.loss(zeros, x)
    assert d.loss(twice, x).isfinite()
    with refused(r"needs data of shape \(B, C, ...\)"): d.loss(zeros, draw(4))


def test_wrong_t_noise_or_data_are_refused():
    d, x = ReverseProcess(SHORT), draw(4, 3)
    with refused("0 .. 19"): d.loss(zeros, x, torch.tensor([0, 1, 2, 20]))
    with refused("long"): d.loss(zeros, x, torch.ones(4))
    with refused(r"shape \(4,\)"): d.loss(zeros, x, torch.tensor([1]))
    with refused("noise must have shape"): d.loss(zeros, x, noise=draw(4, 1))
    with refused("floating point"): d.loss(zeros, torch.zeros(4, 3, dtype=torch.uint8))
    for wrong in (None, [x, x], "x", torch.tensor(0.0)):        # a batch with its labels, too
        with refused("data must be a tensor of shape"): d.loss(zeros, wrong)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_schedule_that_ends_in_pure_noise_bears_all_but_eps(prediction):
    "jsd: alpha_bar_T = 0, where eps says nothing of x0."
    if PREDICTIONS[prediction].needs_signal:
        with refused("prediction must be x0, mu or v"):        # before anything is trained
            ReverseProcess(NoiseSchedule.jsd(T=10), prediction)
        return
    d = ReverseProcess(NoiseSchedule.jsd(T=10), prediction, decoder="gaussian")
    x, t = draw(10, 2), torch.arange(10)
    assert all(v.isfinite().all() for v in d.p_mean_variance(zeros, x, t)[:2])
    assert d.bits_per_dim(zeros, x)["total"].isfinite().all()


def test_eps_weights_are_for_a_fixed_variance():
    "eq. 12"
    with refused("fixed_small or fixed_large"):
        _ = ReverseProcess(SHORT, variance="learned").eps_weights


@pytest.mark.parametrize("points,std,match", [
    (torch.zeros(0, 2), 0, "points must be"), (torch.tensor(1.0), 0, "points must be"),
    (torch.zeros(3, 2, dtype=torch.long), 0, "points must be"),
    (torch.zeros(3, 2), -1, "std must be"), (torch.zeros(3, 2), math.nan, "std must be"),
    (torch.zeros(3, 2), math.inf, "and finite"), (np.zeros((3, 2)), 0, "a tensor .*, got ndarray"),
    (torch.full((3, 2), math.nan), 0, "points must be finite")])
def test_the_ideal_denoiser_refuses_what_is_no_data_set(points, std, match):
    with refused(match): IdealDenoiser(ReverseProcess(SHORT), points, std)


def test_the_ideal_denoiser_answers_no_whole_numbers_for_whole_numbers():
    "It took the dtype of x_t, and cut its answer to 0 or 1."
    ideal, t = IdealDenoiser(ReverseProcess(SHORT), draw(3, 2)), torch.tensor([4])
    for call in (ideal, ideal.moments, ideal.log_prob):
        with refused("data must be floating point"): call(torch.ones(1, 2, dtype=torch.long), t)
        with refused("t must be a long tensor"): call(draw(1, 2), t.numpy())


# --- what a reader adds ---------------------------------------------------------------------------

def test_a_prediction_of_ones_own_is_one_entry_of_the_table(monkeypatch):
    "Twice the noise: half the answer is the noise; it needs some signal, as eps does."
    class Double(Prediction):
        needs_signal = True
        def target(self, d, x0, x_t, t, noise): return 2 * noise
        def to_x0(self, d, output, x_t, t): return PREDICTIONS["eps"].to_x0(d, output / 2, x_t, t)
    monkeypatch.setitem(PREDICTIONS, "double", Double())
    x0, noise, t, net = draw(6, 2), draw(6, 2, seed=1), torch.arange(6) * 3, Affine(2, 2)
    d, eps = ReverseProcess(SHORT, "double", loss="vlb"), ReverseProcess(SHORT, loss="vlb")
    twice = lambda x, t: 2 * net(x, t)
    close(d.losses(twice, x0, t, noise), eps.losses(net, x0, t, noise))
    simple = ReverseProcess(SHORT, "double").losses(twice, x0, t, noise)
    close(simple, 4 * ReverseProcess(SHORT).losses(net, x0, t, noise))
    with refused("double says nothing of x0 where alpha_bar is 0"):
        ReverseProcess(NoiseSchedule.jsd(T=16), "double")


def test_a_variance_of_ones_own_says_itself_whether_it_is_learned(monkeypatch):
    "Twice the channels, the default loss and the ideal denoiser follow the entry, not its name."
    class Shifted(Variance):
        learned = True
        def read(self, d, said, t, x):
            log_variance = said + extract(d.log_betas, t, x)
            return log_variance.exp(), log_variance
        def target(self, d, log_variance, t, x): return log_variance - extract(d.log_betas, t, x)
    monkeypatch.setitem(VARIANCES, "shifted", Shifted())
    d, learned = (ReverseProcess(SHORT, variance=v) for v in ("shifted", "learned"))
    assert d.loss_type == "hybrid"
    x, t, points = draw(20, 2), torch.arange(20), draw(3, 2, seed=1)
    a, b = (p.p_mean_variance(IdealDenoiser(p, points, 0.1), x, t) for p in (d, learned))
    close(a.log_variance, b.log_variance)
    with refused("weight of 'shifted' depends on x_t"): _ = d.eps_weights


def test_a_schedule_that_does_not_know_where_it_came_from_is_no_ideal_denoisers():
    short, points = NoiseSchedule.linear().respaced(10), torch.tensor([[0.5]])
    with pytest.raises(ValueError, match="original="):
        IdealDenoiser(GaussianDiffusion(short), points)
    knows = GaussianDiffusion(short, original=NoiseSchedule.linear())
    IdealDenoiser(knows, points)(torch.zeros(1, 1), knows.timesteps[-1:])
