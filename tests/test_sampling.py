"The samplers: algorithm 2, DDIM, DPM-Solver++(2M), UniPC, Adams; respacing, interpolation."
import gc
import math
import types

import numpy as np
import pytest
import torch
from guards import NoStrangers, default_dtype, draw, gen, refused

from ddpm_nb import sampling
from ddpm_nb.compression import rate_distortion, send
from ddpm_nb.diffusion import randn
from ddpm_nb.objective import PREDICTIONS, VARIANCES, IdealDenoiser
from ddpm_nb.sampling import _SPACINGS, SAMPLERS, GaussianDiffusion, State
from ddpm_nb.schedules import SPACINGS, NoiseSchedule

close = torch.testing.assert_close
SHORT = NoiseSchedule.linear(T=20, beta_start=1e-3, beta_end=0.3)
PAPER = NoiseSchedule.linear()


def tame(x, t): return torch.tanh(1.3 * x + 0.1)    # a stand-in for a network, imperfect on purpose


def gaussian(d, s=0.5, m=0.0):
    "The ideal model for x0 ~ N(m, s^2 I) in one dimension a row."
    return IdealDenoiser(d, torch.full((1, 1), m, dtype=torch.float64), s)


# --- algorithm 2 ----------------------------------------------------------------------------------

@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_is_algorithm_2_line_by_line(variance):
    "Algorithm 2, eq. 11, in the paper's own words and indices."
    s, d = SHORT, GaussianDiffusion(SHORT, variance=variance)
    g = gen(3)
    x = torch.randn(4, 2, generator=g, dtype=torch.float64)                       # 1: x_T ~ N(0, I)
    alpha_bar = lambda step: s.alphas[:step].prod()
    for step in range(20, 0, -1):                                             # 2: for t = T, ..., 1
        z = torch.zeros(4, 2, dtype=torch.float64)
        if step > 1: z = torch.randn(4, 2, generator=g, dtype=torch.float64)                     # 3
        alpha, beta = s.alphas[step - 1], s.betas[step - 1]
        beta_tilde = (1 - alpha_bar(step - 1)) / (1 - alpha_bar(step)) * beta
        sigma2 = beta if variance == "fixed_large" else beta_tilde
        mean = (x - beta / (1 - alpha_bar(step)).sqrt() * tame(x, step)) / alpha.sqrt()
        x = mean + sigma2.sqrt() * z                                                            # 4
    g = gen(3)
    noise = torch.randn(4, 2, generator=g, dtype=torch.float64)
    # 6: return x_0
    got = d.sample(tame, (4, 2), generator=g, progress=False, noise=noise, clip=False)
    close(got, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_has_the_moments_of_exact_propagation(variance):
    "Algorithm 2 on x0 ~ N(m, s^2), the exact model: linear steps, so moments follow by hand."
    n, s, m = 40_000, 0.5, 0.3
    d = GaussianDiffusion(SHORT, variance=variance)
    noise = draw(n, 1, seed=1)
    x = d.sample(gaussian(d, s, m), (n, 1), generator=gen(0), progress=False, clip=False,
                 noise=noise)
    mean, var = 0.0, 1.0
    for i in range(19, -1, -1):
        a, b = SHORT.alpha_bars[i].item(), SHORT.one_minus_alpha_bars[i].item()
        gain = math.sqrt(a) * s**2 / (a * s**2 + b)              # x0-hat = m + gain (x - sqrt(a) m)
        c0, ct = d.posterior_x0_coef[i].item(), d.posterior_x_t_coef[i].item()
        table = d.betas if variance == "fixed_large" else d.posterior_variance
        sigma2 = 0.0 if i == 0 else table[i].item()
        mean = c0 * (m + gain * (mean - math.sqrt(a) * m)) + ct * mean
        var = (c0 * gain + ct) ** 2 * var + sigma2
    assert abs(x.mean() - mean) < 5 * math.sqrt(var / n)
    assert abs(x.var() - var) < 5 * var * math.sqrt(2 / n)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_each_ancestral_step_agrees_with_diffusers(variance, clip, dtype, tolerance):
    "Algorithm 2, eq. 15, along one trajectory."
    DDPMScheduler = pytest.importorskip("diffusers").DDPMScheduler
    theirs = DDPMScheduler(variance_type=variance, clip_sample=clip)
    # their own tables are float32
    theirs.alphas_cumprod, theirs.one = PAPER.alpha_bars, torch.tensor(1.0, dtype=torch.float64)
    d = GaussianDiffusion(PAPER, variance=variance)
    x, g = draw(2, 3, 4, 4, dtype=dtype), gen(1)
    for i in (999, 998, 700, 300, 50, 1, 0):
        first = next(d.trajectory(tame, x.shape, generator=gen(i), noise=x, start=i, clip=clip))
        want = theirs.step(tame(x, i), i, x, generator=gen(i))
        scale = want.pred_original_sample.abs().max().item()     # up to 1/sqrt(alpha_bar) = 158
        close(first.x0, want.pred_original_sample, rtol=0, atol=tolerance * max(1, 10 * scale))
        close(first.x, want.prev_sample, rtol=0, atol=2 * tolerance * max(1, scale))
        x = 0.5 * first.x.clone() + 0.5 * torch.randn(x.shape, generator=g, dtype=dtype)


def test_the_last_step_adds_no_noise():
    "Algorithm 2, line 3: z = 0 at t = 1."
    d = GaussianDiffusion(SHORT)
    *_, last = d.trajectory(tame, (4, 2), generator=gen(0))
    assert torch.equal(last.x, last.x0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_clipping_keeps_every_guess_and_the_result_in_the_range_of_data(sampler):
    d, wild = GaussianDiffusion(SHORT), lambda x, t: -3 * x
    states = list(d.trajectory(wild, (4, 2), sampler, generator=gen(0)))
    assert max(s.x0.abs().max() for s in states) <= 1 and states[-1].x.abs().max() <= 1
    unclipped = d.sample(wild, (4, 2), sampler, generator=gen(0), progress=False, clip=False)
    assert unclipped.abs().max() > 1


@pytest.mark.parametrize("variance", VARIANCES)
def test_every_variance_samples_the_mixture(variance):
    "The exact model on two blobs: moments, within 5 standard errors and the bias of 200 steps."
    s = NoiseSchedule.linear(T=200, beta_start=5e-4, beta_end=0.1)
    d, n = GaussianDiffusion(s, variance=variance), 4000
    points = torch.tensor([[-0.8, 0.0], [0.8, 0.4]])
    ideal = IdealDenoiser(d, points, 0.1)
    x = d.sample(ideal, (n, 2), generator=gen(0), progress=False, clip=False)
    data = points[torch.randint(2, (n,), generator=gen(1))]
    data = data + 0.1 * torch.randn(n, 2, generator=gen(2))
    assert ((x.mean(0) - points.mean(0)).abs() < 5 * data.std(0) / math.sqrt(n)).all()
    assert ((x.var(0) / data.var(0) - 1).abs() < 5 * math.sqrt(2 / n) + 0.03).all()
    right = (x[:, 0] > 0).float().mean()
    assert abs(right - 0.5) < 5 * 0.5 / math.sqrt(n)


# --- DDIM -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("steps", [None, 10])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_with_eta_1_equals_ancestral_sampling_with_the_small_variance(clip, steps):
    "The same noise gives the same samples, at every step, to float precision."
    d, x = GaussianDiffusion(SHORT, variance="fixed_small"), draw(4, 3)
    a = d.trajectory(tame, x.shape, "ddim", steps, gen(5), noise=x, clip=clip, eta=1.0)
    b = d.trajectory(tame, x.shape, "ddpm", steps, gen(5), noise=x, clip=clip)
    for p, q in zip(a, b, strict=True):
        close(p.x, q.x, rtol=1e-11, atol=1e-11)
        close(p.x0, q.x0, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_ddim_agrees_with_diffusers(eta, clip, dtype, tolerance):
    "20 trailing steps of 1000, noise from one generator."
    DDIMScheduler = pytest.importorskip("diffusers").DDIMScheduler
    theirs = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=clip,
                           timestep_spacing="trailing", set_alpha_to_one=True)
    if dtype == torch.float64:
        theirs.alphas_cumprod = PAPER.alpha_bars
        theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=dtype)
    theirs.set_timesteps(20)
    d = GaussianDiffusion(PAPER)
    assert theirs.timesteps.tolist() == d.respaced(20).timesteps.tolist()[::-1]
    x, ours = draw(2, 3, 4, 4, dtype=dtype), d.respaced(20)
    for i, t in zip(range(19, -1, -1), theirs.timesteps, strict=True):
        states = ours.trajectory(tame, x.shape, "ddim", None, gen(i), noise=x, start=i, clip=clip,
                                 eta=eta)
        first = next(states)
        want = theirs.step(tame(x, t), t, x, eta=eta, use_clipped_model_output=True,
                           generator=gen(i))
        scale = max(1, want.pred_original_sample.abs().max().item())
        close(first.x, want.prev_sample, rtol=0, atol=4 * tolerance * scale)
        x = first.x.clone().clamp(-3, 3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_marginals_of_the_forward_process(eta):
    "If x0-hat were the true x0, x_t would stay q(x_t | x_0) at each step, for any eta."
    n = 40_000
    d, x0 = GaussianDiffusion(SHORT, "x0"), torch.tensor(0.6, dtype=torch.float64)
    start = d.q_sample(x0.expand(n, 1), torch.full((n,), 19), draw(n, 1))
    knows = lambda x, t: x0.expand_as(x)
    for state in d.trajectory(knows, (n, 1), "ddim", None, gen(1), noise=start, eta=eta):
        if state.t == 0: break
        a, b = SHORT.alpha_bars[state.t - 1], SHORT.one_minus_alpha_bars[state.t - 1]
        assert abs(state.x.mean() - a.sqrt() * x0) < 5 * (b / n).sqrt()
        assert abs(state.x.var() - b) < 5 * b * math.sqrt(2 / n)


def test_deterministic_samplers_take_no_noise():
    d, x = GaussianDiffusion(SHORT), draw(4, 2)
    for sampler in ("ddim", "dpm++", "unipc", "adams"):
        a, b = (d.sample(tame, x.shape, sampler, 10, gen(seed), False, noise=x) for seed in (0, 1))
        assert torch.equal(a, b)


# --- DPM-Solver++(2M) -----------------------------------------------------------------------------

@pytest.mark.parametrize("prediction,name", [("eps", "epsilon"), ("x0", "sample"),
                                             ("v", "v_prediction")])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_dpm_solver_agrees_with_diffusers(prediction, name, dtype, tolerance):
    "DPMSolverMultistepScheduler, order 2, midpoint, data prediction, 20 trailing steps of 1000."
    Scheduler = pytest.importorskip("diffusers").DPMSolverMultistepScheduler
    theirs = Scheduler(beta_start=1e-4, beta_end=0.02, algorithm_type="dpmsolver++", solver_order=2,
                       prediction_type=name, timestep_spacing="trailing", final_sigmas_type="zero",
                       lower_order_final=True)
    theirs.set_timesteps(20)
    d = GaussianDiffusion(PAPER, prediction)
    kept = d.respaced(20)
    assert theirs.timesteps.tolist() == kept.timesteps.tolist()[::-1]
    sigmas = ((1 - PAPER.alpha_bars) / PAPER.alpha_bars).sqrt()[kept.timesteps].flip(0)
    theirs.sigmas = torch.cat([sigmas, torch.zeros(1)])                           # float64, as ours
    theirs._init_step_index(theirs.timesteps[0])
    x = draw(2, 3, 4, 4, dtype=dtype)
    theirs_x, outputs, model = x, [None], lambda x, t: 0.3 * tame(x, t)
    states = d.trajectory(model, x.shape, "dpm++", 20, noise=x, clip=False, spacing="even")
    for k, (state, t) in enumerate(zip(states, theirs.timesteps, strict=True)):
        outputs = [outputs[-1], theirs.convert_model_output(model(theirs_x, t), sample=theirs_x)]
        # not `step`, which rounds to float32
        first, second = (theirs.dpm_solver_first_order_update,
                         theirs.multistep_dpm_solver_second_order_update)
        if k in (0, 19): theirs_x = first(outputs[1], sample=theirs_x)
        else: theirs_x = second(outputs, sample=theirs_x)
        theirs._step_index += 1
        scale = max(1, outputs[1].abs().max().item())
        close(state.x, theirs_x, rtol=0, atol=10 * tolerance * scale)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_unipc_agrees_with_diffusers(order, spacing, dtype, tolerance):
    "UniPCMultistepScheduler, data prediction, B_2, at our times; all states but the last jump."
    theirs = pytest.importorskip("diffusers").UniPCMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, solver_order=order, timestep_spacing="trailing",
        lower_order_final=False)
    theirs.set_timesteps(20)
    d = GaussianDiffusion(PAPER)
    kept, model = d.respaced(20, spacing), lambda x, t: 0.3 * tame(x, t)
    sigmas = (1 / kept.schedule.snr).sqrt().flip(0)
    theirs.sigmas = torch.cat([sigmas, torch.zeros(1)]).to(dtype)
    theirs.timesteps = kept.schedule.timesteps.flip(0)
    x = draw(2, 3, 4, 4, dtype=dtype)
    states = d.trajectory(model, x.shape, "unipc", 20, noise=x, clip=False, spacing=spacing,
                          order=order)
    for state, t in zip(states, theirs.timesteps):
        if state.t == 0: break
        x = theirs.step(model(x, t), t, x).prev_sample
        close(state.x, x, rtol=0, atol=tolerance * max(1, x.abs().max().item()))


def test_adams_follows_the_equation_as_another_solver_does():
    "Two blobs: 250 steps against scipy's DOP853 on dx/dphi = v, with v written out anew."
    solve_ivp = pytest.importorskip("scipy.integrate").solve_ivp
    centres, std = torch.tensor([-0.8, 0.6], dtype=torch.float64), 0.2
    def velocity(phi, x):
        cos, sin = math.cos(phi), math.sin(phi)
        x, spread = torch.as_tensor(x), (cos * std) ** 2 + sin**2
        w = (-(x[:, None] - cos * centres) ** 2 / (2 * spread)).softmax(1)
        centre = w @ centres
        x0 = centre + cos * std**2 / spread * (x - cos * centre)
        return (cos * (x - cos * x0) / sin - sin * x0).numpy()
    ends = PAPER.one_minus_alpha_bars[[-1, 0]].sqrt().asin().tolist()
    x = draw(50, seed=4)
    exact = solve_ivp(velocity, ends, x.numpy(), method="DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
    d = GaussianDiffusion(PAPER)
    ideal = IdealDenoiser(d, centres[:, None], std)
    for sampler, off in (("adams", 1e-3), ("unipc", 1e-3), ("ddim", 3e-2)):
        for spacing in ("between", "log_snr"):
            *_, before, _ = d.trajectory(ideal, (50, 1), sampler, 250, noise=x[:, None],
                                         clip=False, spacing=spacing)
            assert (before.x[:, 0] - torch.as_tensor(exact)).abs().max() < off


def solve(sampler, steps, low=-3.0, high=3.0, s=0.5, **options):
    "Relative error on x0 ~ N(0, s^2), from half log-SNR `low` to `high`, without the last jump."
    lambdas = torch.linspace(high, low, steps + 1, dtype=torch.float64)
    alpha_bars = torch.sigmoid(2 * lambdas)
    betas = 1 - alpha_bars / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])
    schedule = NoiseSchedule.from_betas(betas)
    d = GaussianDiffusion(schedule)
    # the ODE's solution is x / std = constant
    std = (schedule.alpha_bars * s**2 + schedule.one_minus_alpha_bars).sqrt()
    x = torch.ones(1, 1, dtype=torch.float64)
    states = d.trajectory(gaussian(d, s), x.shape, sampler, noise=x, clip=False, **options)
    for state in states:
        true = (std[0] / std[-1]).item()
        if state.t == 1: return abs(state.x.item() - true) / true


@pytest.mark.parametrize("sampler,options,order", [
    ("ddim", {}, 1), ("dpm++", {}, 2), ("unipc", dict(order=1), 2), ("unipc", dict(order=2), 3),
    ("adams", dict(order=2, width=None), 2), ("adams", dict(order=1), 2),
    ("adams", dict(order=2, width=0.5), 3), ("adams", dict(order=2, s=1.5), 3)])
def test_the_solvers_converge_at_their_order(sampler, options, order):
    "Halving the step divides the error by 2^order, within 10 %; a corrector raises the order."
    errors = [solve(sampler, n, **options) for n in (80, 160, 320, 640)]
    for coarse, fine in zip(errors, errors[1:]):
        assert abs(math.log2(coarse / fine) - order) < 0.1 * order


@pytest.mark.parametrize("sampler, usual", [("unipc", 2), ("adams", 3)])
def test_each_order_is_nearer_than_the_one_below_and_the_usual_is_the_one_measured(sampler, usual):
    errors = [solve(sampler, 40, s=1.5, order=order) for order in (1, 2, 3)]
    assert errors[1] < errors[0] / 5 and errors[2] < errors[1] / 5
    assert solve(sampler, 40, s=1.5) == errors[usual - 1]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_adams_of_order_1_is_ddim(spacing):
    "With one velocity it goes round the circle, and leaves no noise behind."
    d, x = GaussianDiffusion(PAPER), draw(5, 3)
    a, b = (d.sample(tame, x.shape, sampler, 7, None, False, noise=x, spacing=spacing, **options)
            for sampler, options in (("adams", dict(order=1, width=None)), ("ddim", {})))
    close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_adams_in_very_few_steps_is_as_near_as_ddim(spacing, steps):
    "On x0 ~ N(0, s^2), where the solution is x / std = constant; s from fine detail to large."
    d, one = GaussianDiffusion(PAPER), torch.ones(1, 1, dtype=torch.float64)
    off = {"adams": 0.0, "ddim": 0.0}
    for s in (0.1, 0.3, 0.5, 1.0, 2.0):
        true = s / (PAPER.alpha_bars[-1] * s**2 + PAPER.one_minus_alpha_bars[-1]).sqrt()
        for sampler in off:
            x = d.sample(gaussian(d, s), (1, 1), sampler, steps, None, False, noise=one,
                         clip=False, spacing=spacing)
            off[sampler] += ((x - true) / s).square().item()
    assert off["adams"] < 1.001 * off["ddim"]


@pytest.mark.parametrize("s", [0.05, 0.2, 1.0])
def test_on_data_of_its_width_adams_goes_as_if_the_network_were_asked_twice_a_step(s):
    "Predict, ask, correct, ask again: written out for order 1, with the integrals by scipy."
    quad = pytest.importorskip("scipy.integrate").quad
    d = GaussianDiffusion(PAPER.respaced(12, "between"), original=PAPER)
    angles = d.schedule.one_minus_alpha_bars.sqrt().asin().tolist()
    lambdas = (d.schedule.log_snr / 2).tolist()
    def velocity(x, i):                       # of data N(0, s^2), at index i
        cos, sin = math.cos(angles[i]), math.sin(angles[i])
        x0 = cos * s**2 / (cos**2 * s**2 + sin**2) * x
        return (cos * x - x0) / sin
    x = 1.0
    for i in range(11, 0, -1):
        v, turn = velocity(x, i), angles[i - 1] - angles[i]
        there = math.cos(turn) * x + math.sin(turn) * v
        a, b = lambdas[i], lambdas[i - 1]
        shares = [quad(lambda u: -(u - o) / (p - o) / 2 / math.cosh(u), a, b)[0]
                  for p, o in ((a, b), (b, a))]
        x = x + shares[0] * v + shares[1] * velocity(there, i - 1)
    x = x * math.cos(angles[0]) * s**2 / (math.cos(angles[0])**2 * s**2 + math.sin(angles[0])**2)
    one = torch.ones(1, 1, dtype=torch.float64)
    found = d.sample(gaussian(d, s), (1, 1), "adams", None, None, False, noise=one, clip=False,
                     order=1, width=s)
    assert abs(found.item() / x - 1) < 1e-9


def test_a_guess_goes_along_by_no_more_than_the_width():
    d, said = GaussianDiffusion(PAPER, "x0"), []
    def wild(x, t):
        said.append(5 * torch.sin(7 * x))
        return said[-1]
    states = d.trajectory(wild, (50, 3), "adams", 12, noise=3 * draw(50, 3), clip=False)
    moves = [(state.x0 - said[-1]).abs().max().item() for state in states]
    assert moves[0] == 0 and max(moves) == pytest.approx(0.2, rel=1e-9)


def test_a_guess_that_goes_along_stays_in_the_range_if_guesses_are_clipped():
    d, x = GaussianDiffusion(PAPER), 3 * draw(50, 3)
    wild = lambda x, t: 5 * torch.sin(7 * x)
    for state in d.trajectory(wild, x.shape, "adams", 12, noise=x): assert state.x0.abs().max() <= 1
    states = [*d.trajectory(wild, x.shape, "adams", 12, noise=x, clip=False)]
    assert max(state.x0.abs().max() for state in states) > 1


# --- schedules ------------------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["x0", "mu", "v"])
@pytest.mark.parametrize("schedule", [NoiseSchedule.jsd(T=50), NoiseSchedule.cosine(T=50)],
                         ids=["jsd", "cosine"])
def test_schedules_that_end_in_pure_noise_can_be_sampled(sampler, prediction, schedule):
    "alpha_bar_T = 0 (jsd) or nearly so (cosine): finite, and where the data are."
    d = GaussianDiffusion(schedule, prediction)
    ideal = IdealDenoiser(d, torch.tensor([[-0.7], [0.7]]), 0.05)
    x = d.sample(ideal, (200, 1), sampler, generator=gen(0), progress=False)
    assert ((x.abs() - 0.7).abs() < 0.2).all() and abs(x.abs().mean() - 0.7) < 0.01
    assert x.abs().std() < 0.06 and abs((x > 0).float().mean() - 0.5) < 5 * 0.5 / 200**0.5


def test_a_schedule_that_ends_in_pure_noise_refuses_eps():
    "When it is made, and not after a training."
    for schedule in (NoiseSchedule.jsd(T=50), NoiseSchedule.linear(50, beta_end=1.0)):
        with refused("prediction must be x0, mu or v"): GaussianDiffusion(schedule)


# T = 50; at the end of the first two steps together the noise is .10 wide, of one step .045
FIFTY = NoiseSchedule.linear(T=50, beta_start=2e-3, beta_end=0.35)
OF_POINTS = {"adams": dict(width=0.0)}      # near which nothing is undecided


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 25, 49, 50])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_prediction_and_variance_is_read_right_at_every_number_of_steps(
        sampler, prediction, variance, steps):
    """The exact model of two points, at -.9 and .9, in float64.

    `x0` needs no reading, so each prediction must give its samples. From 25 steps on they lie on
    the data: the last x0-hat is off by at most 1.8 exp(-(D^2 - 2 D d) / 2 v), where D = 1.8 is
    the distance of the points, v < .0106 the noise before the last step and d < 6 sqrt(v).
    """
    points, noise = torch.tensor([[-0.9], [0.9]], dtype=torch.float64), draw(40, 1, seed=1)
    def samples(prediction):
        d = GaussianDiffusion(FIFTY, prediction, variance)
        return d.sample(IdealDenoiser(d, points), (40, 1), sampler, steps, gen(0), False,
                        noise=noise, **OF_POINTS.get(sampler, {}))
    x = samples(prediction)
    # rounding, 1e-16, times what mu makes of it at the end of this schedule, 1e3, and some more
    close(x, samples("x0"), rtol=0, atol=1e-10)
    if steps >= 25: assert ((x.abs() - 0.9).abs() < 1e-10).all()


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 25, 49, 50])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ancestral_steps_of_any_length_are_those_of_bayes_rule(prediction, variance, steps):
    """Two points again, and the whole chain by hand, with the same noise.

    x0 given x_t is at -.9 or .9, weighed by a tanh; x_prev given x_t and x0 is a product of two
    Gaussians, over the stretch; and the learned variances are the true one of x_prev given x_t.
    """
    points, x = torch.tensor([[-0.9], [0.9]], dtype=torch.float64), draw(40, 1, seed=1)
    d = GaussianDiffusion(FIFTY, prediction, variance)
    got = d.sample(IdealDenoiser(d, points), x.shape, "ddpm", steps, gen(0), False, noise=x)
    bars, noise = [1.0], gen(0)
    for i in range(steps):
        left = (1 - FIFTY.betas[:round((i + 1) * 50 / steps)]).prod().item()
        bars.append(left)
    for before, bar in zip(bars[-2::-1], bars[:0:-1]):
        kept = bar / before                         # of the signal's variance, in this stretch
        x0 = 0.9 * torch.tanh(0.9 * bar**0.5 * x / (1 - bar))
        if before == 1: x = x0; break
        precision = 1 / (1 - before) + kept / (1 - kept)
        weight = before**0.5 / (1 - before) / precision
        x = weight * x0 + kept**0.5 / (1 - kept) / precision * x
        spread = {"fixed_small": 1 / precision, "fixed_large": 1 - kept}
        true = 1 / precision + weight**2 * (0.81 - x0**2)
        x = x + spread.get(variance, true) ** 0.5 * randn(x.shape, x, noise)
    close(got, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 5, 25, 49])
@pytest.mark.parametrize("spacing", ["log_snr", "between"])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_prediction_and_variance_is_read_right_with_every_spacing(
        sampler, variance, spacing, steps):
    "As above, where the steps are of very different lengths; the last begins at index 0."
    points, noise = torch.tensor([[-0.9], [0.9]], dtype=torch.float64), draw(40, 1, seed=1)
    found = {}
    for prediction in PREDICTIONS:
        d = GaussianDiffusion(FIFTY, prediction, variance)
        found[prediction] = d.sample(IdealDenoiser(d, points), (40, 1), sampler, steps, gen(0),
                                     False, noise=noise, spacing=spacing,
                                     **OF_POINTS.get(sampler, {}))
    for x in found.values(): close(x, found["x0"], rtol=0, atol=1e-10)
    if steps >= 25: assert ((found["x0"].abs() - 0.9).abs() < 1e-10).all()


def test_the_spacing_is_the_samplers_best_unless_named(monkeypatch):
    d = GaussianDiffusion(PAPER)
    def times(sampler, **options):
        seen = []
        model = lambda x, t: seen.append(t[0].item()) or x
        d.sample(model, (1, 2), sampler, 10, gen(0), False, **options)
        return seen[::-1]
    assert set(_SPACINGS) == set(SAMPLERS) and set(_SPACINGS.values()) <= set(SPACINGS)
    for sampler in SAMPLERS:
        for spacing in SPACINGS:
            kept = PAPER.respaced(10, spacing).timesteps.tolist()
            assert times(sampler, spacing=spacing) == kept
            assert (times(sampler) == kept) == (spacing == _SPACINGS[sampler])
    assert sampling._spacing_for("adams", 5) == "even" != sampling._spacing_for("adams", 6)
    monkeypatch.setitem(SPACINGS, "last ones", lambda s, steps: torch.arange(s.T - steps, s.T))
    assert times("ddim", spacing="last ones") == list(range(990, 1000))
    monkeypatch.setitem(SAMPLERS, "mine", lambda *a: SAMPLERS["ddim"](*a))
    assert times("mine") == times("ddim", spacing="even")


@pytest.mark.parametrize("sampler", ["unipc", "adams"])
@pytest.mark.parametrize("schedule", [NoiseSchedule.jsd(T=50), NoiseSchedule.cosine(T=50),
                                      NoiseSchedule.from_betas([0.01] * 30 + [1.0, 0.3, 0.4]),
                                      NoiseSchedule.linear(4000)])
def test_solvers_are_finite_where_there_is_no_signal(sampler, schedule):
    d = GaussianDiffusion(schedule, "x0")
    ideal = IdealDenoiser(d, torch.tensor([[-0.7], [0.7]]), 0.05)
    for spacing in SPACINGS:
        x = d.sample(ideal, (50, 1), sampler, 20, gen(0), False, spacing=spacing)
        assert (x.abs() < 1.3).all()


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 49, 50])
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_learned_variance_is_that_of_the_stretch(prediction, variance, steps):
    "x0 ~ N(m, s^2): mean and variance of x_prev given x_t, of two Gaussian variables, by hand."
    m, s = 0.3, 0.5
    d = GaussianDiffusion(FIFTY, prediction, variance)
    r, ideal = d.respaced(steps), gaussian(d, s, m)
    t, x = torch.arange(steps), draw(steps, 1)
    step = r.p_mean_variance(ideal, x, t, clip=False)
    k = r.schedule
    spread = lambda bar, rest: bar * s**2 + rest
    before = spread(k.alpha_bars_prev, k.one_minus_alpha_bars_prev)
    now = spread(k.alpha_bars, k.one_minus_alpha_bars)
    gain = k.alphas.sqrt() * before / now
    mean = k.alpha_bars_prev.sqrt() * m + gain * (x[:, 0] - k.alpha_bars.sqrt() * m)
    variance = before - gain**2 * now
    close(step.mean[:, 0], mean, rtol=1e-9, atol=1e-9)
    close(step.variance[:, 0], variance, rtol=1e-7, atol=0)
    close(step.log_variance, step.variance.log())


def test_a_learned_range_of_a_stretch_is_right_in_single_precision_at_every_length_of_steps():
    "As above, in the paper's thousand steps, where the two limits differ by 1e-6 at the end."
    d = GaussianDiffusion(PAPER, variance="learned_range")
    ideal = gaussian(d, 0.15)
    for steps, spacing in ((10, "even"), (50, "even"), (50, "log_snr"), (999, "even")):
        r, t = d.respaced(steps, spacing), torch.arange(steps)
        k = r.schedule
        before = k.alpha_bars_prev * 0.15**2 + k.one_minus_alpha_bars_prev
        exact = before - k.alphas * before**2 / (k.alpha_bars * 0.15**2 + k.one_minus_alpha_bars)
        found = r.p_mean_variance(ideal, draw(steps, 1).float(), t, clip=False).variance[:, 0]
        assert found.dtype == torch.float32
        close(found.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("output", [-40.0, 0.0, 40.0])
@pytest.mark.parametrize("how", ["learned", "learned_range"])
def test_a_learned_variance_of_a_stretch_lies_where_that_of_data_in_range_can(how, output):
    "Whatever the network says: above beta-tilde, and no doubt about x0 is above 1."
    r = GaussianDiffusion(PAPER, variance=how).respaced(20)
    model = lambda x, t: torch.cat([x, torch.full_like(x, output)], 1)
    t, x = torch.arange(20), draw(20, 1, dtype=torch.float32)
    variance = r.p_mean_variance(model, x, t).variance[:, 0].double()
    most = r.posterior_variance + r.posterior_x0_coef**2
    least = r.posterior_variance.clamp(min=r.original.posterior_variance[1])
    assert (variance >= least * (1 - 1e-5)).all() and (variance <= most * (1 + 1e-5)).all()


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_bound_of_fewer_steps_is_the_same_for_all_predictions(variance):
    "A network is judged by what it says, in whatever form; at 7 steps, and from those at 3."
    x0 = 0.15 * draw(50, 1, seed=2)
    for route in ((7,), (25, 7), (7, 3)):
        total = {}
        for prediction in PREDICTIONS:
            d = GaussianDiffusion(FIFTY, prediction, variance, decoder="gaussian")
            r, ideal = d, gaussian(d, 0.15)
            for steps in route: r = r.respaced(steps)
            terms = r.bits_per_dim(ideal, x0, generator=gen(1), clip=False)
            total[prediction] = terms["total"]
        for name in total: close(total[name], total["x0"], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_a_respaced_diffusion_asks_what_the_network_was_trained_to_say(prediction):
    "Data of one point: the exact model of the original chain has nothing to learn at fewer times."
    d, point = GaussianDiffusion(FIFTY, prediction), torch.tensor([[0.3]], dtype=torch.float64)
    losses = d.respaced(7).losses(IdealDenoiser(d, point), point.expand(7, 1), torch.arange(7))
    assert (losses < 1e-20).all()


def test_a_respaced_diffusion_keeps_the_original_at_its_side():
    d = GaussianDiffusion(FIFTY, "mu", "learned").to("meta")
    assert d.original is d
    r = d.respaced(25).respaced(7)
    assert r.original.schedule == FIFTY and r.original.device.type == "meta"
    again = GaussianDiffusion(r.schedule, "mu", "learned", original=FIFTY)
    assert again.network_t.tolist() == r.schedule.timesteps.tolist()
    assert again.is_single.tolist() == [False] * 7
    assert GaussianDiffusion(FIFTY).respaced(50).is_single.all()
    for other in (SHORT, PAPER, NoiseSchedule.cosine(50)):
        with refused("schedule must be a respacing of original"):
            GaussianDiffusion(r.schedule, original=other)


def test_moving_a_respaced_diffusion_leaves_the_first_where_it_is():
    d = GaussianDiffusion(FIFTY, "mu")
    r = d.respaced(7).to("meta")
    assert (r.original.device.type, d.device.type) == ("meta", "cpu")


def test_the_ideal_denoiser_of_a_respaced_diffusion_speaks_of_the_original():
    "It is a network as any other, and is told the original times."
    for prediction in PREDICTIONS:
        d = GaussianDiffusion(FIFTY, prediction, "learned")
        t, x = torch.arange(50), draw(50, 1)
        close(gaussian(d.respaced(7))(x, t), gaussian(d)(x, t))


def test_alpha_bars_too_small_for_one_step_do_not_stop_eps():
    "4e-18 is not 0, though one step from there has beta = 1 in float64."
    d = GaussianDiffusion(NoiseSchedule.linear(4000))
    assert d.sample(tame, (4, 2), steps=1, generator=gen(0), progress=False).isfinite().all()


def test_a_respaced_sampler_tells_the_model_the_original_times():
    "Each kept time ends one of equal stretches; the last is T - 1, where the noise is."
    seen = []
    model = lambda x, t: seen.append(t.tolist()) or x
    GaussianDiffusion(PAPER).sample(model, (2, 2), "ddim", 10, progress=False, spacing="even")
    assert seen == [[t, t] for t in range(999, 0, -100)]


def test_respacing_keeps_names_device_and_alpha_bars():
    d = GaussianDiffusion(PAPER, "v", "fixed_small", "vlb", "gaussian").to("meta")
    r = d.respaced(25)
    names = r.prediction, r.variance, r.loss_type, r.decoder
    assert names == ("v", "fixed_small", "vlb", "gaussian")
    assert (r.device.type, r.T) == ("meta", 25)
    close(r.schedule.alpha_bars, PAPER.alpha_bars[r.schedule.timesteps], rtol=1e-12, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_steps_and_no_steps_are_the_same(sampler):
    d = GaussianDiffusion(SHORT)
    a, b = (d.sample(tame, (3, 2), sampler, steps, gen(1), False) for steps in (None, 20))
    close(a, b)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_single_step_ends_at_the_guess_from_the_noise(sampler):
    "Of x_0 ~ N(0, 1/4): its mean, given the noise."
    d, noise = GaussianDiffusion(PAPER), draw(4, 1)
    x = d.sample(gaussian(d), (4, 1), sampler, 1, gen(0), False, noise=noise)
    bar = PAPER.alpha_bars[-1]
    close(x, bar.sqrt() / 4 / (bar / 4 + 1 - bar) * noise, rtol=1e-9, atol=0)


# --- promises of `sample` -------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 4), (3, 2, 2, 2, 2), (0, 2)])
def test_samples_have_the_shape_asked_for(sampler, shape):
    assert GaussianDiffusion(SHORT).sample(tame, shape, sampler, progress=False).shape == shape


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_gives_the_same_bits(sampler):
    d = GaussianDiffusion(SHORT)
    a, b, c = (d.sample(tame, (4, 2), sampler, 7, gen(seed), False) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_global_generator_is_left_alone_when_one_is_given():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    GaussianDiffusion(SHORT).sample(tame, (4, 2), generator=gen(1), progress=False)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_model_runs_in_inference_mode_and_the_result_is_a_plain_tensor(sampler):
    modes = []
    def model(x, t):
        modes.append(torch.is_inference_mode_enabled())
        return tame(x, t)
    x = GaussianDiffusion(SHORT).sample(model, (4, 2), sampler, progress=False)
    assert all(modes) and not x.is_inference() and not torch.is_inference_mode_enabled()
    x.requires_grad_().pow(2).sum().backward()                                   # autograd takes it


def test_inference_mode_is_off_while_the_caller_looks_at_a_state():
    for _ in GaussianDiffusion(SHORT).trajectory(tame, (2, 2)):
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_autocast_reaches_the_model_and_not_the_state(sampler):
    "The network runs in bf16, and all else as it does without: x stays in float32."
    d, net = GaussianDiffusion(SHORT), torch.nn.Linear(4, 4)
    torch.nn.init.eye_(net.weight)
    seen = []
    def model(x, t):
        out = net(x)
        seen.append((x.dtype, out.dtype))
        return out
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = d.sample(model, (8, 4), sampler, generator=gen(0), progress=False)
    assert set(seen) == {(torch.float32, torch.bfloat16)} and x.dtype == torch.float32
    weights = [w.detach().bfloat16() for w in (net.weight, net.bias)]
    half = lambda x, t: torch.nn.functional.linear(x.bfloat16(), *weights)
    alone = d.sample(half, (8, 4), sampler, generator=gen(0), progress=False)
    close(x, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype,state", [
    (torch.bfloat16, torch.float32), (torch.float32, torch.float32),
    (torch.float64, torch.float64)])
def test_the_state_is_never_in_half_precision(dtype, state):
    noise = draw(2, 2, dtype=torch.float32).to(dtype)
    x = GaussianDiffusion(SHORT).sample(tame, (2, 2), progress=False, noise=noise)
    assert x.dtype == state


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_memory_does_not_grow_with_the_number_of_steps(sampler):
    "Live tensors as large as the batch, after each step: as many after 6 steps as after 200."
    def live(steps):
        counts = []
        def count(state):
            if state.t not in (1, 2): return
            tensors = (o for o in gc.get_objects() if type(o) is torch.Tensor)
            counts.append(sum(o.numel() == 1237 for o in tensors))
        model, d = lambda x, t: 0.3 * x, GaussianDiffusion(PAPER)
        d.sample(model, (1237,), sampler, steps, gen(0), False, callback=count)
        return max(counts)
    assert live(6) == live(200) > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_callback_sees_each_state_once_in_order(sampler):
    d, states = GaussianDiffusion(SHORT), []
    x = d.sample(tame, (2, 2), sampler, 10, gen(0), False, callback=states.append)
    assert [s.t for s in states] == list(range(9, -1, -1))
    assert all(isinstance(s, State) for s in states)
    assert torch.equal(states[-1].x, x)
    again = list(d.trajectory(tame, (2, 2), sampler, 10, gen(0)))
    for a, b in zip(states, again, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.x0, b.x0)


def test_a_trajectory_can_be_left_early():
    "What was not asked for is not computed."
    calls = []
    for state in GaussianDiffusion(SHORT).trajectory(lambda x, t: calls.append(1) or x, (2, 2)):
        if state.t == 15: break
    assert len(calls) == 5


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("options, said", [
    ({}, " 20/20 "), (dict(steps=10), " 10/10 "), (dict(start=4), " 5/5 "),
    (dict(steps=10, start=4), " 5/5 ")])
def test_progress_bar_counts_the_steps(progress, options, said, capsys):
    GaussianDiffusion(SHORT).sample(tame, (2, 2), "ddim", progress=progress, **options)
    err = capsys.readouterr().err
    assert (said in err and "ddim" in err) == progress


def test_sampling_can_begin_at_any_index():
    "Start from a half-noised state: only the steps below it are undone."
    seen = []
    d = GaussianDiffusion(SHORT)
    model = lambda x, t: seen.append(t[0].item()) or x
    d.sample(model, (2, 2), progress=False, noise=draw(2, 2), start=4)
    assert seen == [4, 3, 2, 1, 0]


# --- encoding and interpolation -------------------------------------------------------------------

def test_interpolation_without_noise_level_keeps_both_ends_and_from_pure_noise_forgets_them():
    d = GaussianDiffusion(PAPER)
    ideal = IdealDenoiser(d, torch.tensor([[-0.7], [0.7]]), 0.01)
    a, b = torch.full((400, 1), -0.7), torch.full((400, 1), 0.7)
    near = d.interpolate(ideal, a, b, 0.1, 20, gen(0), progress=False)
    assert (near < 0).all()
    far = d.interpolate(ideal, a, b, 0.1, 999, gen(0), progress=False)
    assert abs((far > 0).float().mean() - 0.5) < 5 * 0.5 / 20


# --- devices --------------------------------------------------------------------------------------

@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_nothing_is_created_on_the_wrong_device_and_no_value_is_read_back(sampler, variance):
    "The meta device has no values: a sampler that ran there waited for none (no synchronisation)."
    d = GaussianDiffusion(SHORT, variance=variance).to("meta")
    model = (lambda x, t: torch.cat([x, x], 1)) if variance.startswith("learned") else tame
    with NoStrangers():
        x = d.sample(model, (4, 3, 2, 2), sampler, progress=False)
        if sampler == "ddim": d.sample(model, (4, 3, 2, 2), sampler, progress=False, eta=0.5)
    assert x.device.type == "meta" and x.shape == (4, 3, 2, 2)


def test_interpolation_stays_on_its_device():
    d = GaussianDiffusion(SHORT).to("meta")
    a = torch.empty(4, 3, device="meta")
    with NoStrangers(): mixed = d.interpolate(tame, a, a, 0.5, 9, progress=False)
    assert mixed.device.type == "meta"


@pytest.mark.parametrize("given", [dict(generator=gen(0)), dict(noise=torch.zeros(2, 2))])
def test_a_generator_or_noise_on_the_cpu_serves_another_device(given):
    d = GaussianDiffusion(SHORT).to("meta")
    assert d.sample(tame, (2, 2), progress=False, **given).device.type == "meta"


# --- what is refused ------------------------------------------------------------------------------

@pytest.mark.parametrize("wrong,match", [
    (dict(sampler="euler"),
     r"sampler must be one of ddpm, ddim, dpm\+\+, unipc, adams, got 'euler'"),
    (dict(spacing="karras"), "spacing must be one of even, log_snr, between, got 'karras'"),
    (dict(steps=0), "steps must be a whole number in 1 .. 20, got 0"),
    (dict(steps=21), "steps must be a whole number in 1 .. 20, got 21"),
    (dict(steps=2.5), "steps must be a whole number in 1 .. 20, got 2.5"),
    (dict(start=20), "start must be a whole number in 0 .. 19, got 20"),
    (dict(start=-1), "start must be a whole number in 0 .. 19, got -1"),
    (dict(start=10, steps=10), "start must be a whole number in 0 .. 9, got 10"),
    (dict(start=1.5), "start must be a whole number in 0 .. 19, got 1.5"),
    (dict(eta=0.5),
     "eta must lie in .0, 1., and be 0 with any sampler but ddim, got eta=0.5 with 'ddpm'"),
    (dict(eta=1.5, sampler="ddim"), "eta must lie in"),
    (dict(eta=-0.1, sampler="ddim"), "eta must lie in"),
    (dict(eta=math.nan, sampler="ddim"), "eta must lie in"),
    (dict(noise=torch.full((4, 2), math.nan)), "noise must be finite, got NaN or infinity"),
    (dict(noise=torch.full((4, 2), -math.inf)), "noise must be finite, got NaN or infinity"),
    (dict(noise=torch.zeros(4, 3)), r"noise must have shape \(4, 2\), got \(4, 3\)"),
    (dict(noise=torch.zeros(4, 2, dtype=torch.uint8)),
     "noise must be floating point, standard normal, got torch.uint8"),
    (dict(noise=np.zeros((4, 2))), r"noise must be a tensor of shape \(4, 2\), got ndarray"),
    (dict(eta="x", sampler="ddim"), "eta must lie in .*, got eta='x'"),
    (dict(eta=True, sampler="ddim"), "eta must lie in .*, got eta=True"),
    (dict(steps=True), "steps must be a whole number in 1 .. 20, got True"),
    (dict(steps="ten"), "steps must be a whole number in 1 .. 20, got 'ten'"),
    (dict(start=True), "start must be a whole number in 0 .. 19, got True"),
    (dict(start="last"), "start must be a whole number in 0 .. 19, got 'last'"),
])
def test_a_wrong_argument_is_refused_before_anything_runs(wrong, match, capsys):
    d, calls = GaussianDiffusion(SHORT), []
    model = lambda x, t: calls.append(1) or x
    for call in (d.sample, d.trajectory):                           # trajectory too answers at once
        with refused(match): call(model, (4, 2), **wrong)
    assert not calls and not capsys.readouterr().err                              # no bar was begun


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_that_returns_the_wrong_shape_is_refused(sampler):
    d = GaussianDiffusion(SHORT)
    with refused(r"must return the shape of x_t, \(4, 2\), got \(4, 1\)"):
        d.sample(lambda x, t: x[:, :1], (4, 2), sampler, progress=False)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_from_a_network_that_is_not_finite_are_an_error(sampler, bad, clip):
    "Clipped, infinity would be white. One item of a batch is enough; the first step is named."
    d = GaussianDiffusion(SHORT)
    for steps, first in ((20, 19), (20, 7), (20, 0), (5, 7)):
        def model(x, t):
            out = tame(x, t)
            out[1] = torch.where(t[1] <= first, bad, out[1])
            return out
        with pytest.raises(FloatingPointError, match=f"not finite .*at times up to t = {first}$"):
            d.sample(model, (3, 2), sampler, steps, gen(0), False, clip=clip)
        states = d.trajectory(model, (3, 2), sampler, steps, gen(0), clip=clip)
        for _ in range(steps): next(states)
        with pytest.raises(FloatingPointError): next(states)        # a trajectory too, at its end


def test_interpolation_refuses_what_does_not_fit():
    d, x = GaussianDiffusion(SHORT), draw(3, 2)
    with refused("x0_b must have shape"): d.interpolate(tame, x, x[:2], 0.5, 9)
    with refused(r"weight must lie in \[0, 1\]"): d.interpolate(tame, x, x, 1.5, 9)
    with refused("0 .. 19"): d.interpolate(tame, x, x, 0.5, 20)
    with refused("t must be a whole .* 0 .. 19, got 3.5"): d.interpolate(tame, x, x, 0.5, 3.5)
    with refused("weight must lie in"): d.interpolate(tame, x, x, "half", 9)
    with refused("data must be a tensor"): d.interpolate(tame, x.numpy(), x, 0.5, 9)
    with refused("floating point"): d.interpolate(tame, x, x.byte(), 0.5, 9)


@pytest.mark.parametrize("shape", [4, "x", (), (4, 2.0), (4, -2), (True, 2)])
def test_a_shape_that_is_none_is_refused(shape):
    with refused("shape must be"): GaussianDiffusion(SHORT).sample(tame, shape, progress=False)


def test_a_sampler_is_a_function_that_anyone_can_add(monkeypatch):
    "One table: a new name is a new sampler."
    def still(d, model, x, start, clip, generator):
        yield State(0, x, x)
    monkeypatch.setitem(SAMPLERS, "still", still)
    x = GaussianDiffusion(SHORT).sample(tame, (2, 2), "still", generator=gen(0), progress=False)
    assert torch.equal(x,
                       torch.randn(2, 2, generator=gen(0)))
    states = GaussianDiffusion(SHORT).trajectory(tame, (2, 2), "still")
    assert isinstance(states, types.GeneratorType)


def test_options_of_a_samplers_own_are_found_by_its_signature(monkeypatch):
    "What follows the six arguments of all is handed on; what is not there is refused at once."
    seen = []
    def mine(d, model, x, start, clip, generator, order=2, eta=0.0):
        seen.append((order, eta))
        yield State(0, x, x)
    monkeypatch.setitem(SAMPLERS, "mine", mine)
    d = GaussianDiffusion(SHORT)
    d.sample(tame, (2, 2), "mine", progress=False)
    d.sample(tame, (2, 2), "mine", progress=False, order=3, eta=0.5)
    assert seen == [(2, 0.0), (3, 0.5)]
    for sampler, has in (("ddpm", "none"), ("ddim", "eta"), ("mine", "order, eta")):
        with refused(f"sampler '{sampler}' has no option 'churn', it has {has}"):
            d.trajectory(tame, (2, 2), sampler, churn=1)
    with refused("eta must lie in .0, 1., and be 0 with any sampler but ddim, mine, got eta=0.5"):
        d.trajectory(tame, (2, 2), "dpm++", eta=0.5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_eta_0_suits_every_sampler(sampler):
    d = GaussianDiffusion(SHORT)
    a, b = (d.sample(tame, (2, 2), sampler, 5, gen(0), False, **o) for o in ({}, dict(eta=0.0)))
    assert torch.equal(a, b)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_interpolation_decodes_the_weighted_mean_of_the_latents(weight):
    "Figure 8: (1 - weight) a + weight b, at its ends too."
    d, a, b, g = GaussianDiffusion(SHORT), draw(3, 2), draw(3, 2, seed=1), gen(4)
    def encode(x):
        noise = torch.randn(3, 2, generator=g, dtype=torch.float64)
        return d.q_sample(x, torch.full((3,), 9), noise)
    code_a, code_b = encode(a), encode(b)
    mixed = (1 - weight) * code_a + weight * code_b
    want = d.sample(tame, a.shape, generator=g, progress=False, noise=mixed, start=9)
    close(d.interpolate(tame, a, b, weight, 9, gen(4), progress=False), want)


@pytest.mark.parametrize("sampler", ["unipc", "adams"])
@pytest.mark.parametrize("order", [0, 4, 2.5, "2"])
def test_an_order_that_there_is_not_is_refused(sampler, order):
    with refused("order must"):
        GaussianDiffusion(SHORT).sample(tame, (2, 2), sampler, progress=False, order=order)


@pytest.mark.parametrize("wrong", [None, "digits", torch.zeros(1)])
def test_what_is_no_model_is_named(wrong):
    d, said = GaussianDiffusion(NoiseSchedule.linear(T=4)), "model must be callable"
    x, t = torch.ones(1, 2), torch.tensor([2])
    with pytest.raises(ValueError, match=said): d.sample(wrong, (1, 2), progress=False)
    with pytest.raises(ValueError, match=said): d.bits_per_dim(wrong, x)
    with pytest.raises(ValueError, match=said): d.p_mean_variance(wrong, x, t)
    with pytest.raises(ValueError, match=said): d.losses(wrong, x)
    with pytest.raises(ValueError, match=said): d.loss(wrong, x, t)
    with pytest.raises(ValueError, match=said): rate_distortion(d, wrong, x)
    with pytest.raises(ValueError, match=said): send(d, wrong, x, [1] * 4, 0)


@pytest.mark.parametrize("wrong", ["", 0, False])
def test_what_is_no_spacing_is_not_taken_for_none_said(wrong):
    with pytest.raises(ValueError, match="spacing must be one of"):
        GaussianDiffusion(SHORT).sample(tame, (1, 2), steps=5, progress=False, spacing=wrong)


def test_a_sampler_that_is_no_generator_function_records_no_gradients_either(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "own", lambda *words: SAMPLERS["ddim"](*words))
    d, net = GaussianDiffusion(SHORT), torch.nn.Linear(2, 2)
    x = d.sample(lambda x, t: net(x), (3, 2), "own", progress=False, generator=gen(0))
    assert not x.requires_grad
    assert torch.equal(x, d.sample(lambda x, t: net(x), (3, 2), "ddim", progress=False,
                                   generator=gen(0)))
    for _ in d.trajectory(lambda x, t: net(x), (3, 2), "own"):
        assert not torch.is_inference_mode_enabled()       # while the caller looks


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_signal_that_is_gone_before_the_end_of_a_schedule_is_no_fault_of_the_model(sampler):
    d = GaussianDiffusion(NoiseSchedule.from_betas([0.01] * 30 + [1.0, 0.3, 0.4]), "x0")
    x = d.sample(lambda x, t: 0.5 * x, (50, 1), sampler, generator=gen(0), progress=False)
    assert (x.abs() <= 1).all()


@pytest.mark.parametrize("steps", [3, 8])
def test_adams_width_is_looked_at_whatever_the_number_of_steps(steps):
    d = GaussianDiffusion(NoiseSchedule.linear(50))
    with pytest.raises(ValueError, match="width must be None"):
        d.sample(tame, (2, 2), "adams", steps, progress=False, width="x")


def test_a_walk_that_begins_near_its_end_is_corrected_if_its_steps_are_short():
    d, z = GaussianDiffusion(NoiseSchedule.linear(200)), torch.randn(5, 2, generator=gen(0))
    walk = lambda width: d.sample(tame, (5, 2), "adams", progress=False, noise=z, start=4,
                                  width=width)
    assert not torch.equal(walk(0.9), walk(None))
    few = d.respaced(5)
    walk = lambda width: few.sample(tame, (5, 2), "adams", progress=False, noise=z, width=width)
    assert torch.equal(walk(0.9), walk(None))


def test_the_first_noise_is_whole_where_the_default_is_half():
    with default_dtype(torch.bfloat16):
        x = GaussianDiffusion(SHORT).sample(lambda x, t: x, (2000,), noise=None, progress=False,
                                            generator=gen(0), start=0, clip=False)
    assert x.dtype == torch.float32 and len(x.unique()) > 1900
