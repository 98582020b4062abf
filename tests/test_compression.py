"Rate and distortion, messages that arrive, and the bound's three forms."
import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from guards import default_dtype, refused, gen as generator

from ddpm_nb import GaussianDiffusion, NoiseSchedule
from ddpm_nb.compression import Interval, choose, exact_bound, rate_distortion, receive, send
from ddpm_nb.data import to_model

close = torch.testing.assert_close


def steps(T, low=-6.0, high=7.0):
    "T steps, evenly spaced in log-SNR."
    alpha_bars = torch.linspace(high, low, T, dtype=torch.float64).sigmoid()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])
    return NoiseSchedule.from_betas(1 - alpha_bars / before)


# --- rate and distortion --------------------------------------------------------------------------

def test_rate_and_distortion_are_those_of_algorithm_3_done_by_hand():
    "Algorithm 3, figure 5: one chain, its divergences by torch.distributions, added up as sent."
    from torch.distributions import Normal, kl_divergence
    d = GaussianDiffusion(steps(5), prediction="x0", decoder="gaussian")
    model = lambda x, t: torch.tanh(x + 0.1 * t[:, None])
    x0 = torch.rand(3, 4, generator=generator()) * 2 - 1
    curve = rate_distortion(d, model, x0, chunk=5, generator=generator(1))
    # chunk=5: all times at once, t-major
    noise = torch.randn(20 - 5, 4, generator=generator(1)).view(5, 3, 4)
    bits = lambda q, p: kl_divergence(q, p).mean(1) / math.log(2)
    s = d.schedule
    q_T = Normal(s.alpha_bars[-1].sqrt() * x0, s.one_minus_alpha_bars[-1].sqrt())
    sent = bits(q_T, Normal(0.0, 1.0))
    for i in range(4, -1, -1):
        x = s.alpha_bars[i].sqrt() * x0 + s.one_minus_alpha_bars[i].sqrt() * noise[i]
        guess = model(x.float(), torch.full((3,), i)).clamp(-1, 1)
        close(curve.rate[:, i].double(), sent.double(), rtol=1e-5, atol=1e-6)
        rmse = 127.5 * (guess - x0).square().mean(1).sqrt()
        close(curve.distortion[:, i], rmse, rtol=1e-4, atol=1e-4)
        if i == 0: break
        a, prev, beta = s.alphas[i], s.alpha_bars_prev[i], s.betas[i]
        b = s.one_minus_alpha_bars[i]
        mean = lambda x0: prev.sqrt() * beta / b * x0 + a.sqrt() * (1 - prev) / b * x
        tilde = (beta * (1 - prev) / s.one_minus_alpha_bars[i]).sqrt()
        sent = sent + bits(Normal(mean(x0), tilde), Normal(mean(guess), beta.sqrt()))
    assert curve.time.tolist() == [5, 4, 3, 2, 1]


def test_rate_grows_and_ends_at_the_bound_less_the_decoders_term():
    "At the last time the rate is L_1 + ... + L_T (eq. 5)."
    d = GaussianDiffusion(NoiseSchedule.linear(60, 1e-3, 0.2), decoder="gaussian")
    x0 = torch.rand(6, 1, 4, 4, generator=generator()) * 2 - 1
    model = lambda x, t: 0.3 * x
    curve = rate_distortion(d, model, x0, generator=generator(1))
    terms = d.bits_per_dim(model, x0, generator=generator(1))
    assert (curve.rate[:, :-1] >= curve.rate[:, 1:]).all()
    close(curve.rate[:, -1], terms["prior"])
    close(curve.rate[:, 0] + terms["vb"][:, 0], terms["total"])


@pytest.mark.parametrize("T", [1, 2])
def test_the_shortest_diffusions_have_a_curve(T):
    d = GaussianDiffusion(NoiseSchedule.linear(T, 0.1, 0.2))
    curve = rate_distortion(d, lambda x, t: x, torch.ones(2, 3), generator=generator())
    assert curve.rate.shape == curve.distortion.shape == (2, T) and curve.rate.isfinite().all()


def test_rate_is_information_plus_waste_for_gaussian_data():
    "Eq. 16: x0 ~ N(0, s^2), the ideal mean, either variance: within 5 standard errors."
    s2, schedule = 0.25, NoiseSchedule.linear(40, 1e-3, 0.3)
    x0 = s2**0.5 * torch.randn(3000, 4, generator=generator())
    ab, V = schedule.alpha_bars, schedule.alpha_bars * s2 + schedule.one_minus_alpha_bars   # of x_t
    V_prev = torch.cat([torch.tensor([s2], dtype=torch.float64), V[:-1]])
    information = 0.5 * torch.log2(1 + s2 * ab / schedule.one_minus_alpha_bars)
    true = schedule.betas * V_prev / V                      # variance of q(x_{t-1} | x_t), by Bayes
    for variance in ("fixed_small", "fixed_large"):
        d = GaussianDiffusion(schedule, "x0", variance, decoder="gaussian")
        model = lambda x, t: (ab.sqrt() * s2 / V)[t].float()[:, None] * x
        step = d.posterior_variance if variance == "fixed_small" else schedule.betas
        waste = 0.5 * (true / step - 1 - (true / step).log()) / math.log(2)
        end = 0.5 * (V[-1] - 1 - V[-1].log()) / math.log(2)
        later = torch.cat([waste[1:].flip(0).cumsum(0).flip(0), torch.zeros(1)])
        expected = information + end + later
        curve = rate_distortion(d, model, x0, clip=False, generator=generator(1))
        z = (curve.rate.mean(0) - expected) / (curve.rate.std(0) / 3000**0.5)
        assert z.abs().max() < 5, variance


# --- messages -------------------------------------------------------------------------------------

def test_what_is_written_is_read_and_costs_its_share():
    g, written, symbols, ideal = generator(), Interval(), [], 0.0
    for _ in range(200):
        n = int(torch.randint(1, 40, (1,), generator=g))
        shares = torch.randint(1, 1000, (n,), generator=g)
        k = int(torch.randint(len(shares), (1,), generator=g))
        starts = [0, *shares.cumsum(0).tolist()]
        written.narrow(k, starts)
        symbols.append((k, starts))
        ideal -= math.log2(int(shares[k]) / starts[-1])
        assert written.bits == pytest.approx(ideal)
    message, read = written.message(), Interval()
    assert ideal - 1e-6 <= len(message) < ideal + 1 + 1e-6
    for k, starts in symbols:
        assert read.symbol(message, starts) == k
        read.narrow(k, starts)


def test_every_short_message_is_read_back():
    "All pairs of symbols of a table with unequal shares, and of equal shares given as a range."
    for starts in ([0, 1, 8, 9, 20], range(6)):
        for pair in product(range(len(starts) - 1), repeat=2):
            written, read = Interval(), Interval()
            for k in pair: written.narrow(k, starts)
            for k in pair:
                assert read.symbol(written.message(), starts) == k
                read.narrow(k, starts)


def test_what_is_certain_costs_nothing():
    written = Interval()
    for _ in range(5): written.narrow(0, range(2))
    assert written.message() == "" and written.bits == 0 and Interval().symbol("", range(2)) == 0


def test_minimal_random_coding_gives_the_moments_of_q():
    "Algorithm 3's `send x ~ q using p`: 4,096 candidates for 4 bits; within 5 standard errors."
    mean, log_variance, zero = torch.tensor([1.0, -0.5]), torch.tensor([-1.5, -1.0]), torch.zeros(2)
    g, n = generator(), 2000
    drawn = (torch.randn(4096, 2, generator=g) for _ in range(n))
    x = torch.stack([z[choose(z, mean, log_variance, zero, zero, g)] for z in drawn])
    assert ((x.mean(0) - mean).abs() < 5 * ((log_variance / 2).exp() / n**0.5)).all()
    assert ((x.var(0) / log_variance.exp() - 1).abs() < 5 * (2 / n) ** 0.5).all()


def test_minimal_random_coding_survives_weights_that_no_float_holds():
    candidates = torch.tensor([[0.0], [3.0], [9.0]])
    mean, log_variance, zero = torch.tensor([9.0]), torch.tensor([-40.0]), torch.zeros(1)
    assert choose(candidates, mean, log_variance, zero, zero, generator()) == 2


MODELS = {"good": lambda x, t: 0.9 * x.clamp(-1, 1), "wrong": lambda x, t: -x.clamp(-1, 1) + 0.5}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("counts", [1, 50])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_what_is_sent_arrives_exactly(model, counts, variance):
    "Algorithms 3 and 4: whatever the model, however few the candidates, all of it is decoded."
    d = GaussianDiffusion(steps(6), prediction="x0", variance=variance)
    x0 = to_model(torch.randint(256, (3, 2), generator=generator(), dtype=torch.uint8))
    x0[0] = torch.tensor([-1.0, 1.0])
    message = send(d, MODELS[model], x0, [counts] * 6, seed=7, generator=generator(1))
    got = list(receive(d, MODELS[model], message, x0.shape, [counts] * 6, seed=7))
    assert len(got) == 7 and torch.equal(got[-1].x, x0) and torch.equal(got[-1].x0, x0)
    bits = [r.bits for r in got]
    assert bits == sorted(bits) and bits[-1] <= len(message) < bits[-1] + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("usual", [torch.float32, torch.float64])
def test_what_is_sent_in_another_dtype_arrives_as_exactly(dtype, usual):
    "Both sides draw the same candidates, whatever the data's type and PyTorch's default."
    d, model = GaussianDiffusion(steps(6), prediction="x0"), MODELS["good"]
    x0 = to_model(torch.tensor([[0, 255], [0, 255], [255, 0]], dtype=torch.uint8))
    message = send(d, model, x0.to(dtype), [50] * 6, 7, generator(1))
    with default_dtype(usual): *_, last = receive(d, model, message, x0.shape, [50] * 6, 7)
    assert torch.equal(last.x, x0)


def test_sender_and_receiver_clip_the_guess_or_leave_it():
    "A model that overshoots: with clip, all guesses lie in [-1, 1]; without, another message."
    d, model = GaussianDiffusion(steps(6), prediction="x0"), lambda x, t: 3 * x
    x0 = to_model(torch.randint(256, (3, 2), generator=generator(), dtype=torch.uint8))
    messages, largest = {}, {}
    for clip in (True, False):
        messages[clip] = send(d, model, x0, [20] * 6, 7, generator(1), clip)
        got = list(receive(d, model, messages[clip], x0.shape, [20] * 6, 7, clip))
        assert torch.equal(got[-1].x, x0)
        largest[clip] = max(r.x0.abs().max().item() for r in got)
    assert messages[True] != messages[False] and largest[True] <= 1 < largest[False]


def test_a_receiver_with_another_seed_gets_something_else():
    d = GaussianDiffusion(steps(6), prediction="x0")
    x0 = to_model(torch.randint(256, (4, 2), generator=generator(), dtype=torch.uint8))
    message = send(d, MODELS["good"], x0, [20] * 6, seed=7, generator=generator(1))
    got = list(receive(d, MODELS["good"], message, x0.shape, [20] * 6, seed=8))
    assert not torch.equal(got[-1].x, x0)


def test_a_better_model_makes_shorter_messages():
    d = GaussianDiffusion(steps(6), prediction="x0")
    x0 = to_model(torch.randint(256, (30, 3, 2), generator=generator(), dtype=torch.uint8))
    def length(model):
        return sum(len(send(d, model, x, [30] * 6, i, generator(i))) for i, x in enumerate(x0))
    assert length(MODELS["good"]) < 0.9 * length(MODELS["wrong"])


@pytest.mark.parametrize("counts", [[1] * 5, [1] * 5 + [0], [1] * 5 + [2.0],
                                    [1] * 5 + [True]])
def test_wrong_counts_are_refused_by_both(counts):
    d = GaussianDiffusion(steps(6), prediction="x0")
    x0 = torch.zeros(1, 2)
    words = "counts must be 6 whole numbers, one for each step, got 5"
    if len(counts) == 6: words = r"counts\[5\] must be a whole number, 1 or more, got"
    with refused(words): send(d, MODELS["good"], x0, counts, 0)
    with refused(words):
        next(receive(d, MODELS["good"], "", (1, 2), counts, 0))


def test_nothing_is_made_float64_where_the_device_may_have_none(monkeypatch):
    "Apple's GPUs have no float64; `_to_double` knows, `Tensor.double` does not."
    from ddpm_nb.evaluation import inception_score, likelihood, nearest
    def double(*_): raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
    monkeypatch.setattr(torch.Tensor, "double", double)
    d, x0, good = GaussianDiffusion(steps(3), prediction="x0"), torch.ones(2, 2), MODELS["good"]
    for terms in (None, 2): assert likelihood(d, good, x0, terms).total.dtype == torch.float64
    message = send(d, good, x0, [4, 4, 4], 7, generator(1))
    *_, last = receive(d, good, message, x0.shape, [4, 4, 4], 7)
    assert torch.equal(last.x, x0) and nearest(x0, x0)[0].dtype == torch.float64
    assert inception_score(torch.full((20, 4), 0.25), splits=1)[0] == pytest.approx(1)


def test_numpys_whole_numbers_are_whole_numbers():
    d, x0, good = GaussianDiffusion(steps(3), prediction="x0"), torch.ones(1, 2), MODELS["good"]
    message = send(d, good, x0, list(np.array([4, 4, 4])), np.int64(7), generator(1))
    assert message == send(d, good, x0, [4, 4, 4], 7, generator(1))
    *_, last = receive(d, good, message, x0.shape, list(np.array([4, 4, 4])), np.uint8(7))
    assert torch.equal(last.x, x0)


@pytest.mark.parametrize("wrong, said", [
    (dict(x0=None), "data must be a tensor"), (dict(x0=torch.zeros(1, 2).byte()), "floating point"),
    (dict(x0=torch.zeros(1, 2)), "256 values k/127.5 - 1"),
    (dict(counts=None), "counts must be 6 whole numbers, got NoneType"),
    (dict(seed=None), "seed must be a whole number"), (dict(seed="0"), "seed must be a whole"),
    (dict(shape=None), "shape must be"), (dict(shape=(1.0, 2)), "each number of shape must be"),
    (dict(message=None), "zeros and ones, got None"), (dict(message=[0]), "zeros and ones")])
def test_what_cannot_be_sent_or_received_is_refused_in_words(wrong, said):
    "0 lies between two of the 256 values: it would arrive as another."
    d, good = GaussianDiffusion(steps(6), prediction="x0"), MODELS["good"]
    sent = dict(x0=torch.ones(1, 2), counts=[1] * 6, seed=0) | wrong
    read = dict(message="0" * 99, shape=(1, 2), counts=[1] * 6, seed=0) | wrong
    if wrong.keys() <= {"x0", "counts", "seed"}:
        with refused(said): send(d, good, **sent)
    if "x0" not in wrong:
        with refused(said): next(receive(d, good, **read))


@pytest.mark.parametrize("message", ["012", "0b1", " 1", "-1"])
def test_what_is_not_a_message_is_refused(message):
    d = GaussianDiffusion(steps(2), prediction="x0")
    with refused("zeros and ones"): next(receive(d, MODELS["good"], message, (1, 2), [1, 1], 0))


def test_continuous_data_cannot_be_sent_exactly():
    d = GaussianDiffusion(steps(6), prediction="x0", decoder="gaussian")
    with refused("decoder must be 'discretized'"):
        send(d, MODELS["good"], torch.zeros(1, 2), [1] * 6, 0)


# --- eq. 16 ---------------------------------------------------------------------------------------

def tables(*shape, g):
    w = torch.rand(*shape, dtype=torch.float64, generator=g) ** 4 + 1e-3
    return w / w.sum(-1, keepdim=True)


def small_chain(S, T):
    "Random tables, their exact bound, and the probability of every path, by loops."
    g = generator(S + T)
    q0, prior = tables(S, g=g), tables(S, g=g)
    forward, reverse = [tables(S, S, g=g) for _ in range(T)], [tables(S, S, g=g) for _ in range(T)]
    paths = {}
    for path in product(range(S), repeat=T + 1):
        p = q0[path[0]].item()
        for t in range(T): p *= forward[t][path[t], path[t + 1]].item()
        paths[path] = p
    return q0, prior, forward, reverse, exact_bound(q0, forward, reverse, prior), paths


@pytest.mark.parametrize("S, T", [(2, 1), (3, 2), (4, 3), (2, 5)])
def test_the_bound_has_three_forms_of_one_value(S, T):
    "Eq. 3, 5, 16, by loops over all paths in plain Python."
    q0, prior, forward, reverse, L, paths = small_chain(S, T)
    def ratio(t, i, j): return reverse[t][j, i] / forward[t][i, j]
    def log_ratio(path): return sum(math.log(ratio(t, path[t], path[t + 1])) for t in range(T))
    eq_3 = sum(p * (-math.log(prior[path[-1]]) - log_ratio(path)) for path, p in paths.items())
    assert L.total == pytest.approx(eq_3, abs=1e-12)
    assert sum(L.parts) == pytest.approx(eq_3, abs=1e-12)
    entropy = -sum(v * math.log(v) for v in q0.tolist())
    assert sum(L.waste) + entropy == pytest.approx(eq_3, abs=1e-12)
    assert min(L.waste) >= -1e-15


@pytest.mark.parametrize("S, T", [(2, 1), (3, 2), (4, 3), (2, 5)])
def test_each_term_of_each_form_follows_from_the_paths(S, T):
    "L_T .. L_0 of eq. 5, the divergences of eq. 16, and what each state knows of the data."
    q0, prior, _, reverse, L, paths = small_chain(S, T)
    def seen(*times):
        "The probabilities of the states at these times."
        found = Counter()
        for path, p in paths.items(): found[tuple(path[t] for t in times)] += p
        return found
    def mean(times, log):
        "The average of a logarithm over the states at these times."
        return sum(p * log(p, *states) for states, p in seen(*times).items())
    def agree(got, want): assert got == pytest.approx(want, abs=1e-12)
    ln, inner = math.log, range(T - 1, 0, -1)       # reverse[t] leads from x_{t+1} to x_t
    agree(L.parts, [
        mean((0, T), lambda p, i, k: ln(p / seen(0)[i,] / prior[k])),
        *(mean((0, t, t + 1), lambda p, i, j, k, t=t: (
            ln(p / seen(0, t + 1)[i, k] / reverse[t][k, j]))) for t in inner),
        mean((0, 1), lambda p, i, k: -ln(reverse[0][k, i]))])
    agree(L.waste, [
        mean((T,), lambda p, k: ln(p / prior[k])),
        *(mean((t, t + 1), lambda p, j, k, t=t: ln(p / seen(t + 1)[k,] / reverse[t][k, j]))
          for t in (*inner, 0))])
    agree(L.information, [
        mean((0, t), lambda p, i, k, t=t: ln(p / seen(t)[k,] / seen(0)[i,]))
        for t in range(T, 0, -1)] + [-sum(v * ln(v) for v in q0.tolist())])


@pytest.mark.parametrize("S, T", [(2, 1), (3, 2), (3, 3), (2, 5)])
def test_each_line_of_appendix_a_is_one_number_on_every_path(S, T):
    """Path by path, in plain Python: eq. 17 to 21, and eq. 23 to 25.

    Their common average is the bound of `exact_bound`.
    """
    g, log = generator(10 * S + T), math.log
    q0, prior = tables(S, g=g).tolist(), tables(S, g=g).tolist()
    forward, reverse = (torch.stack([tables(S, S, g=g) for _ in range(T)]) for _ in range(2))
    step = lambda x, t: forward[t - 1][x[t - 1], x[t]].item()       # q(x_t given x_{t-1})
    back = lambda x, t: reverse[t - 1][x[t], x[t - 1]].item()       # p(x_{t-1} given x_t)
    chance = lambda x: q0[x[0]] * math.prod(step(x, t) for t in range(1, T + 1))
    paths = {x: chance(x) for x in product(range(S), repeat=T + 1)}
    def q(x, *times): return sum(p for y, p in paths.items() if all(y[t] == x[t] for t in times))
    def given(x, t, *known): return q(x, t, *known) / q(x, *known)

    def lines(x):
        end, every, later = prior[x[T]], range(1, T + 1), range(2, T + 1)
        first = -log(back(x, 1) / step(x, 1))
        joint = end * math.prod(back(x, t) for t in every)
        plain = -log(end) - sum(log(back(x, t) / step(x, t)) for t in every)
        apart = -log(end) - sum(log(back(x, t) / step(x, t)) for t in later) + first
        turned = -log(end) - log(back(x, 1) / given(x, 1, 0)) - sum(
            log(back(x, t) / given(x, t - 1, t, 0) * given(x, t - 1, 0) / given(x, t, 0))
            for t in later)
        joined = -log(end / given(x, T, 0)) - log(back(x, 1)) - sum(
            log(back(x, t) / given(x, t - 1, t, 0)) for t in later)
        without = -log(end) - sum(log(back(x, t) / given(x, t - 1, t) * q(x, t - 1) / q(x, t))
                                  for t in every)
        entropy = -log(end / q(x, T)) - log(q(x, 0)) - sum(
            log(back(x, t) / given(x, t - 1, t)) for t in every)
        return [-log(joint / (paths[x] / q0[x[0]])), plain, apart, turned, joined, without, entropy]

    by_path = {x: lines(x) for x in paths}
    for values in by_path.values(): assert values == pytest.approx([values[0]] * 7, abs=1e-12)
    exact = (torch.tensor(o, dtype=torch.float64) for o in (q0, prior))
    L = exact_bound(next(exact), list(forward), list(reverse), next(exact))
    assert L.total == pytest.approx(sum(paths[x] * by_path[x][0] for x in paths), abs=1e-12)


def test_the_best_reverse_process_pays_the_entropy_and_nothing_else():
    "Eq. 16: with p = q throughout, L is H(x_0)."
    g = generator(3)
    q0, forward = tables(4, g=g), [tables(4, 4, g=g) for _ in range(3)]
    reverse, marginal = [], q0
    for q in forward:
        joint = marginal[:, None] * q
        marginal = joint.sum(0)
        reverse.append((joint / marginal).T.contiguous())
    L = exact_bound(q0, forward, reverse, marginal)
    assert L.total == pytest.approx(-(q0 * q0.log()).sum().item(), abs=1e-12)
    assert max(map(abs, L.waste)) < 1e-14 and L.information[-1] == pytest.approx(L.total, abs=1e-12)
    assert L.information == sorted(L.information)


def test_paths_that_cannot_happen_do_not_spoil_the_sum():
    "Zeros in the tables, as in the masking diffusion of section 4.3."
    q0 = torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64)
    forward = [torch.tensor([[0, 0, 1], [0, 0, 1], [0, 0, 1]], dtype=torch.float64)]
    reverse = [torch.tensor([[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]], dtype=torch.float64)]
    L = exact_bound(q0, forward, reverse, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    assert L.total == pytest.approx(math.log(2)) and L.waste[0] == 0
    assert sum(L.waste) + L.information[-1] == pytest.approx(math.log(2))
