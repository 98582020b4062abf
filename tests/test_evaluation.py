"The measures of chapter 9: likelihood of a set, statistics, distances, scores, neighbours."
import math
import re
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from guards import refused, gen as generator

from ddpm_nb import (GaussianDiffusion, NoiseSchedule, Statistics, cifar10, frechet_distance,
                     inception_score, to_model, to_uint8)
from ddpm_nb import evaluation as chapter
from ddpm_nb.engine.images import cache_folder
from ddpm_nb.engine.metrics import sample_quality
from ddpm_nb.evaluation import (Classifier, _OwnExtractor, cifar10_extractor, cifar10_statistics,
                                expected_bias, extract, likelihood, nearest, strata)

close = torch.testing.assert_close
HAS_CIFAR10 = (cache_folder() / "cifar-10-batches-bin" / "test_batch.bin").exists()
needs_cifar10 = pytest.mark.skipif(not HAS_CIFAR10, reason="CIFAR-10 is not here")


def normal(*shape, seed=0): return torch.randn(*shape, generator=generator(seed)).double()


def gaussian(mean, covariance, count=10**9):
    return Statistics(torch.as_tensor(mean).double(), torch.as_tensor(covariance).double(), count)


def covariance(D, seed=0):
    root = normal(D, D, seed=seed)
    return root @ root.T / D


# --- likelihood of a data set ---------------------------------------------------------------------

def constant(x, t):
    "A guess of x_0 that looks at nothing: then no term of the bound depends on the noise."
    return torch.full_like(x, 0.3)


def images(n, seed=0, shape=(3, 4, 4)):
    return torch.randint(256, (n, *shape), dtype=torch.uint8, generator=generator(seed))


def test_strata_cover_every_step_once_and_leave_the_decoder_alone():
    for T in range(1, 40):
        for count in range(min(2, T), T + 1):
            parts = strata(T, count)
            assert len(parts) == count and parts[0] == (0, 1)
            assert [t for low, high in parts for t in range(low, high)] == list(range(T))
    lengths = [high - low for low, high in strata(1000, 32)]
    assert lengths == sorted(lengths) and lengths[:8] == [1] * 8


@pytest.mark.parametrize("terms", [None, 4])
def test_a_likelihood_clips_the_guess_or_leaves_it(terms):
    "A guess of 3 costs what one of 1 does where it is clipped, and more where it is not."
    d, x = GaussianDiffusion(NoiseSchedule.linear(6, 1e-3, 0.3), "x0"), images(2)
    def bits(guess, clip):
        model = lambda x, t: torch.full_like(x, guess)
        return likelihood(d, model, x, terms, generator=generator(), clip=clip).total
    close(bits(3.0, True), bits(1.0, False))
    assert (bits(3.0, False) > bits(3.0, True) + 0.1).all()


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_counts_the_batches(progress, capsys):
    d, x = GaussianDiffusion(NoiseSchedule.linear(6), "x0"), images(5)
    for measure in (lambda: likelihood(d, constant, x, 2, 2, progress=progress),
                    lambda: extract(lambda x: (x, x), x, 2, progress)):
        measure()
        assert (" 3/3 " in capsys.readouterr().err) == progress


def test_the_papers_estimator_is_bits_per_dim_of_each_image():
    d = GaussianDiffusion(NoiseSchedule.linear(20), "x0")
    model, x = (lambda x, t: 0.9 * x), images(5)
    got = likelihood(d, model, x, batch=5, generator=generator(1))
    terms = d.bits_per_dim(model, to_model(x), generator=generator(1))
    close(got.total, terms["total"].double())
    close(got.decoder, terms["vb"][:, 0].double())
    assert got.evaluations == 20 and got.mean == pytest.approx(terms["total"].mean().item())
    expected = terms["total"].double().std().item() / 5**0.5
    assert got.standard_error == pytest.approx(expected, rel=1e-5)


def test_the_cheap_estimate_is_the_bound_on_average_over_all_it_could_have_drawn(monkeypatch):
    "Exactly: one image for each choice of a step in each part, and terms without noise (eq. 5)."
    T, count = 12, 4
    d = GaussianDiffusion(NoiseSchedule.linear(T, 0.1, 0.3), "x0")
    choices = list(product(*(range(*part) for part in strata(T, count))))
    column = {part: k for k, part in enumerate(strata(T, count))}
    drawn = lambda low, high, n, g: torch.tensor([c[column[low, high]] for c in choices])
    monkeypatch.setattr(chapter, "_drawn", drawn)
    x = images(1).expand(len(choices), -1, -1, -1)
    got = likelihood(d, constant, x, count, batch=len(choices))
    exact = d.bits_per_dim(constant, to_model(x[:1]))
    assert got.total.std() > 0.01 * got.mean          # they do differ
    close(got.total.mean(), exact["total"][0].double(), rtol=1e-6, atol=1e-6)
    close(got.decoder, exact["vb"][0, :1].double().expand(len(choices)), rtol=1e-6, atol=1e-6)
    assert got.evaluations == count


def test_with_as_many_terms_as_steps_nothing_is_drawn():
    d = GaussianDiffusion(NoiseSchedule.linear(12, 1e-3, 0.3), "x0")
    x = images(3)
    close(likelihood(d, constant, x, 12).total, likelihood(d, constant, x).total,
          rtol=1e-6, atol=1e-6)


def test_the_drawn_steps_are_uniform_and_reach_both_ends():
    t = chapter._drawn(5, 9, 40_000, generator())
    counts = torch.bincount(t, minlength=9)
    assert counts[:5].sum() == 0 and len(counts) == 9
    # binomial: 10,000 each, standard deviation 87
    assert (counts[5:] - 10_000).abs().max() < 6 * 87


def test_the_last_batch_counts_as_much_as_it_holds_and_floats_are_taken_as_they_are():
    d = GaussianDiffusion(NoiseSchedule.linear(6, 1e-3, 0.3), "x0")
    x = images(7)
    whole = likelihood(d, constant, x, 3, batch=3, generator=generator())
    assert whole.total.shape == whole.decoder.shape == (7,) and whole.total.dtype == torch.float64
    close(likelihood(d, constant, x, 6, batch=2).total, likelihood(d, constant, to_model(x)).total,
          rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_cost_what_the_same_numbers_in_float32_do(dtype):
    d = GaussianDiffusion(NoiseSchedule.linear(), decoder="gaussian")
    model, x = (lambda x, t: 0.9 * x), (images(8, shape=(1, 4, 4)) / 127.5 - 1).to(dtype)
    half, whole = (likelihood(d, model, x, 32, generator=torch.Generator().manual_seed(0))
                   for x in (x, x.float()))
    close(half.total, whole.total, rtol=1e-9, atol=0)


@pytest.mark.parametrize("terms", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_256_levels_in_half_precision_are_among_the_decoders(dtype, terms):
    d = GaussianDiffusion(NoiseSchedule.linear(20, 1e-3, 0.3))
    x = to_model(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)).to(dtype)
    assert likelihood(d, lambda x, t: 0 * x, x, terms, generator=generator()).total.isfinite().all()
    with pytest.raises(ValueError, match="256 values"):
        likelihood(d, lambda x, t: 0 * x, x + 0.1, terms)


def test_a_likelihood_refuses_in_words():
    d = GaussianDiffusion(NoiseSchedule.linear(10))
    x = images(2)
    for terms in (1, 11, 2.5, "all"):
        with refused(r"terms must be a whole number in 2 \.\. 10"):
            likelihood(d, constant, x, terms)
    with refused("no image"): likelihood(d, constant, x[:0])
    with refused("256 values"): likelihood(d, constant, torch.rand(2, 3, 4, 4), 4)
    with pytest.raises(FloatingPointError, match="not finite"):
        likelihood(d, lambda x, t: x * float("nan"), x, 4)


@pytest.mark.parametrize("terms", [None, 4])
def test_an_image_with_a_generator_of_its_own_costs_the_same_in_any_batch(terms):
    "And in any company; another generator is another draw, and one for all goes on as it did."
    d = GaussianDiffusion(NoiseSchedule.linear(150, 1e-3, 0.1), "x0")
    model, x = (lambda x, t: 0.9 * x), images(7)
    own = lambda *seeds: [generator(seed) for seed in seeds]
    whole = likelihood(d, model, x, terms, 7, own(*range(7)))
    for batch in (1, 3, 8):
        part = likelihood(d, model, x, terms, batch, own(*range(7)))
        close(part.total, whole.total, rtol=0, atol=1e-5)
        close(part.decoder, whole.decoder, rtol=0, atol=1e-5)
    pair = likelihood(d, model, x[5:], terms, 2, own(5, 6))
    close(pair.total, whole.total[5:], rtol=0, atol=1e-5)
    other = likelihood(d, model, x, terms, 7, own(*range(7, 14)))
    assert (other.total - whole.total).abs().max() > 1e-3
    with refused("one for each of the 7 items, got 2"): likelihood(d, model, x, terms, 7, own(0, 1))


def test_arrays_are_measured_as_the_tensors_that_they_hold():
    "Read-only and reversed ones too; what is not made of numbers is refused."
    d = GaussianDiffusion(NoiseSchedule.linear(6, 1e-3, 0.3), "x0")
    x = images(5)
    for y in (x, to_model(x)):
        got, want = (likelihood(d, constant, v, 3, 2, generator()) for v in (y.numpy(), y))
        assert torch.equal(got.total, want.total)
    f = normal(50, 4)
    locked = f.numpy()[::-1]
    locked.flags.writeable = False
    a, b = Statistics.of(locked), Statistics.of(f.flip(0))
    assert torch.equal(a.mean, b.mean) and torch.equal(a.covariance, b.covariance)
    own = Statistics(f.numpy().mean(0), np.cov(f.numpy(), rowvar=False).astype(np.float32), 50)
    assert own.mean.dtype == own.covariance.dtype == torch.float64
    assert frechet_distance(own, a) < 1e-10
    p = torch.randn(40, 5).softmax(1)
    assert inception_score(p.numpy(), 4) == inception_score(p, 4)
    for got, want in zip(nearest(f.numpy(), f[:9].numpy(), 2), nearest(f, f[:9], 2)):
        assert torch.equal(got, want)
    squares = lambda x: (x.double().flatten(1), torch.full((len(x), 2), 0.5))
    assert torch.equal(extract(squares, x.numpy(), 2)[0], extract(squares, x, 2)[0])
    with refused("features must hold numbers, got object"): Statistics.of(np.array([[None]]))
    with refused("features must be a tensor or a NumPy array, got list"): Statistics.of([[1.0]])


F, P = torch.randn(20, 3), torch.full((20, 2), 0.5)
WHERE = GaussianDiffusion(NoiseSchedule.linear(10))


@pytest.mark.parametrize("call, match", [
    (lambda: likelihood(WHERE, constant, images(2), 2.0), r"terms must be .* 2 \.\. 10, got 2.0"),
    (lambda: likelihood(WHERE, constant, images(2), True), r"terms must be .* got True"),
    (lambda: likelihood(WHERE, constant, images(2), batch=0), "batch must be a whole .* got 0"),
    (lambda: likelihood(WHERE, constant, images(2).long(), 4), "floating point, .* torch.int64"),
    (lambda: likelihood(WHERE, constant, images(2), 4, generator=0), "a torch.Generator, got 0"),
    (lambda: extract(lambda x: (F, P), images(2), 0), "batch must be a whole number, 1 or more"),
    (lambda: extract(lambda x: (F, P), "photos"), "images must be a tensor or a NumPy array"),
    (lambda: nearest(F, F, True), r"k must be a whole number in 1 \.\. 20, .* got True"),
    (lambda: nearest(F, F, chunk=0), "chunk must be a whole number, 1 or more, got 0"),
    (lambda: nearest(F, F * math.nan), "references must be finite"),
    (lambda: nearest(F[0, 0], F), "items of one shape"),
    (lambda: inception_score(P, True), r"splits must be .* 1 \.\. 20, .* got True"),
    (lambda: Statistics(torch.zeros(2), torch.eye(2), 2.5), "count must be a whole number"),
    (lambda: Statistics(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), 9),
     "a covariance is symmetric, this one is off by 0.5"),
    (lambda: frechet_distance(F, F), "two Statistics, got Tensor: Statistics.of"),
    (lambda: expected_bias(Statistics.of(F), 0), "count must be a whole number, 1 or more"),
    (lambda: cifar10_statistics("test"), "train must be True or False, got 'test'"),
])
def test_a_measure_refuses_in_words(call, match):
    with refused(match): call()


# --- statistics -----------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_statistics_are_numpys_also_over_several_parts(dtype):
    x = normal(4096 + 700, 5).to(dtype) @ torch.eye(5, dtype=dtype)
    s = Statistics.of(x, "mine")
    rows = x.double().numpy()
    close(s.mean, torch.from_numpy(rows.mean(0)), rtol=1e-12, atol=1e-14)
    close(s.covariance, torch.from_numpy(np.cov(rows, rowvar=False)), rtol=1e-12, atol=1e-14)
    assert s.count == len(x) and s.extractor == "mine" and s.mean.dtype == torch.float64


def test_a_large_mean_takes_no_digit_from_the_covariance():
    "In float32, or as the mean of squares less the square of the mean, all would be lost."
    x = normal(3000, 4)
    close(Statistics.of(x + 1e6).covariance, Statistics.of(x).covariance, rtol=1e-8, atol=1e-8)


def test_merged_statistics_are_those_of_all_images():
    x = normal(900, 6) + torch.linspace(0, 5, 900)[:, None]      # the parts differ in their means
    parts = [Statistics.of(p, "e") for p in x.split([1, 299, 600])]
    whole, merged = Statistics.of(x, "e"), parts[0].merged(parts[1]).merged(parts[2])
    close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
    close(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-12)
    assert merged.count == 900 and merged.extractor == "e"


def test_statistics_refuse_in_words():
    x = torch.randn(10, 4)
    x[3, 1] = x[7, 0] = float("nan")
    with refused("features of 2 of 10 images are not finite"): Statistics.of(x)
    with refused(r"shape \(N, D\)"): Statistics.of(torch.randn(10))
    with refused(r"shape \(N, D\)"): Statistics.of(torch.randn(0, 4))
    with refused("floating point"): Statistics.of(torch.ones(10, 4, dtype=torch.uint8))
    with refused(r"shapes \(D,\) and \(D, D\)"): gaussian(torch.zeros(3), torch.eye(2))
    with refused("must be finite"): gaussian(torch.zeros(2), torch.eye(2) * float("inf"))


# --- the Fréchet distance -------------------------------------------------------------------------

def test_the_distance_in_one_dimension_is_that_of_means_and_standard_deviations():
    a, b = gaussian([1.5], [[4.0]]), gaussian([-0.5], [[0.25]])
    assert frechet_distance(a, b) == pytest.approx(2.0**2 + 1.5**2, rel=1e-14)


def test_the_distance_of_diagonal_and_of_commuting_covariances():
    v, w, shift = normal(7).square(), normal(7, seed=1).square(), normal(7, seed=2)
    rotation = torch.linalg.qr(normal(7, 7, seed=3)).Q
    expected = (shift.square().sum() + (v.sqrt() - w.sqrt()).square().sum()).item()
    for Q in (torch.eye(7, dtype=torch.float64), rotation):
        a, b = gaussian(torch.zeros(7), Q * v @ Q.T), gaussian(shift, Q * w @ Q.T)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_the_distance_equals_scipys_matrix_root():
    for D, seed in ((2, 0), (10, 1), (40, 2)):
        a = gaussian(normal(D, seed=seed), covariance(D, seed + 10))
        b = gaussian(normal(D, seed=seed + 5), covariance(D, seed + 20))
        root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
        traces = a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root).real
        expected = ((a.mean - b.mean).square().sum() + traces).item()
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_singular_covariances():
    "Two lines: the traces less twice the overlap; a plane and its own rotation within it: none."
    u, v = normal(30), normal(30, seed=1)
    a, b = (gaussian(torch.zeros(30), torch.outer(w, w)) for w in (u, v))
    expected = (u @ u + v @ v - 2 * (u @ v).abs()).item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    plane, turn = torch.linalg.qr(normal(30, 5, seed=2)).Q, torch.linalg.qr(normal(5, 5, seed=3)).Q
    same = plane @ turn
    a, b = (gaussian(torch.zeros(30), P @ P.T) for P in (plane, same))
    assert 0 <= frechet_distance(a, b) < 1e-13
    zero = gaussian(torch.zeros(30), torch.zeros(30, 30))
    assert frechet_distance(zero, a) == pytest.approx(5, rel=1e-12)


def test_tiny_distances_keep_their_digits():
    "1e-14 of the traces; as a difference of traces it would be rounding and nothing else."
    sd = 1 + torch.rand(50, generator=generator()).double()
    step = 1e-8 * normal(50, seed=1)
    rotation = torch.linalg.qr(normal(50, 50, seed=2)).Q
    spread = lambda s: gaussian(torch.zeros(50), rotation * s.square() @ rotation.T)
    d = frechet_distance(spread(sd), spread(sd + step))
    assert d == pytest.approx(step.square().sum().item(), rel=1e-4)
    assert frechet_distance(spread(sd), spread(sd)) < 1e-25


def test_no_coupling_of_the_two_gaussians_is_cheaper():
    "It is the least mean square of x - y over joint Gaussians: try 200, and the best one."
    D = 6
    A, B = (torch.linalg.cholesky(covariance(D, s)) for s in (1, 2))
    d = frechet_distance(gaussian(torch.zeros(D), A @ A.T), gaussian(torch.zeros(D), B @ B.T))
    cost = lambda R: ((A @ A.T).trace() + (B @ B.T).trace() - 2 * (A @ R @ B.T).trace()).item()
    for seed in range(200):
        R = normal(D, D, seed=100 + seed)
        assert cost(R / torch.linalg.matrix_norm(R, 2)) >= d - 1e-12
    U, _, Vh = torch.linalg.svd(B.T @ A)
    assert cost((U @ Vh).T) == pytest.approx(d, rel=1e-10)


def test_the_bias_of_few_samples_is_what_the_formula_says():
    "2 % of the formula (its next order, D/n of it, is smaller) and five standard errors."
    v = torch.arange(1, 9).double().reciprocal()
    truth, n, repeats = gaussian(torch.zeros(8), v.diag()), 800, 400
    found = torch.tensor([
        frechet_distance(Statistics.of(v.sqrt() * normal(n, 8, seed=s)), truth)
        for s in range(repeats)])
    error = found.std() / repeats**0.5
    assert abs(found.mean() - expected_bias(truth, n)) < 5 * error + 0.02 * expected_bias(truth, n)
    assert error < 0.05 * expected_bias(truth, n)
    identity = gaussian(torch.zeros(8), torch.eye(8))
    assert expected_bias(identity, n) == pytest.approx((8 + 8 * 9 / 4) / n)


def test_fewer_samples_than_features_is_a_warning_that_says_how_far_off():
    many, few = Statistics.of(normal(5000, 40)), Statistics.of(normal(30, 40, seed=1))
    with pytest.warns(UserWarning, match="30 images for 40 features.*too large by about"):
        frechet_distance(few, many)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(many, Statistics.of(normal(41, 40, seed=1)))
    with refused("two images or more"): frechet_distance(many, Statistics.of(normal(1, 40)))


def test_statistics_that_do_not_belong_together_are_refused():
    x = normal(20, 4)
    a, b = Statistics.of(x, "inception"), Statistics.of(x, "cifar10-classifier")
    with refused("two extractors, 'inception' and 'cifar10-classifier'"): frechet_distance(a, b)
    with refused("two extractors"): a.merged(b)
    with refused("4 and 3 features"): frechet_distance(a, Statistics.of(x[:, :3]))
    assert frechet_distance(a, Statistics.of(x)) < 1e-20              # of an unknown one: its word
    with refused("no negative eigenvalue"):
        frechet_distance(gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, -0.1]))),
                         gaussian(torch.zeros(2), torch.eye(2)))


# --- the Inception Score --------------------------------------------------------------------------

def test_the_score_of_distributions_whose_score_is_known():
    C = 10
    sure = torch.eye(C).repeat(30, 1)
    assert inception_score(sure, 1) == (pytest.approx(C), 0.0)
    assert inception_score(torch.full((100, C), 1 / C), 5) == (pytest.approx(1), pytest.approx(0))
    assert inception_score(sure[:1].expand(50, -1), 2)[0] == pytest.approx(1)      # one class alone
    doubtful = 0.7 * sure + 0.3 / C          # right with probability 0.73, else anything
    p, q = 0.7 + 0.3 / C, 0.3 / C
    entropy = -(p * math.log(p) + (C - 1) * q * math.log(q))
    assert inception_score(doubtful, 1)[0] == pytest.approx(C * math.exp(-entropy), rel=1e-6)
    uneven = torch.eye(3)[[0] * 5 + [1] * 3 + [2] * 2]         # sure, of unequal frequency
    shares = torch.tensor([0.5, 0.3, 0.2])
    assert inception_score(uneven, 1)[0] == pytest.approx((-(shares * shares.log()).sum()).exp())


def test_the_score_is_taken_part_by_part_in_order():
    "Numpy, written apart: ten parts, their mean and population standard deviation."
    p = torch.randn(1003, 7, generator=generator()).softmax(1)
    scores = []
    for part in np.array_split(p.double().numpy(), 10):
        kl = part * (np.log(part) - np.log(part.mean(0, keepdims=True)))
        scores.append(np.exp(kl.sum(1).mean()))
    mean, sd = inception_score(p)
    assert mean == pytest.approx(np.mean(scores), rel=1e-9)
    assert sd == pytest.approx(np.std(scores), rel=1e-9)
    by_class = torch.eye(10).repeat_interleave(20, 0)
    assert inception_score(by_class, 10)[0] == pytest.approx(1)     # sorted: each part is one class


def test_a_score_refuses_in_words():
    with refused("take the softmax"): inception_score(torch.randn(50, 10))
    with refused(r"whole number in 1 \.\. 5"): inception_score(torch.full((5, 2), 0.5), 10)
    with refused(r"shape \(N, C\)"): inception_score(torch.full((5,), 0.5))
    with refused("take the softmax"): inception_score(torch.full((20, 2), float("nan")))


# --- nearest neighbours ---------------------------------------------------------------------------

def test_neighbours_are_those_of_brute_force_for_any_chunk():
    q, r = normal(20, 3, 5).float(), normal(333, 3, 5, seed=1).float()
    full = torch.cdist(q.flatten(1).double(), r.flatten(1).double())
    for chunk in (7, 333, 4096):
        distance, index = nearest(q, r, 4, chunk)
        values, expected = full.topk(4, largest=False)
        assert (index == expected).all()
        close(distance, values, rtol=1e-9, atol=1e-9)


def test_a_copy_is_at_distance_nought_exactly_among_bytes_and_among_large_numbers():
    x = images(60, shape=(3, 32, 32))
    distance, index = nearest(x[[4, 31]], x, 2)
    assert index[:, 0].tolist() == [4, 31] and (distance[:, 0] == 0).all()
    assert (distance[:, 1] > 1000).all()
    far = normal(40, 8).float() + 1e4
    distance, index = nearest(far[[7]], far)
    assert index.item() == 7 and distance.item() == 0


def test_a_copy_wins_over_a_lookalike_and_far_clusters_have_their_own_neighbours():
    "One grey level off is nearly the same square; in float32 either could be the nearer."
    x = images(60, shape=(3, 32, 32))
    like = x.clone()
    like[:, 0, 0, 0] ^= 1
    distance, index = nearest(x, torch.cat([like, x]), 2)
    assert index[:, 0].tolist() == [*range(60, 120)] and distance.tolist() == [[0.0, 1.0]] * 60
    q, r = normal(20, 3), normal(200, 3, seed=1)
    for points in (q, r): points[: len(points) // 2] += 1e4
    distance, index = nearest(q, r)
    assert (index == torch.cdist(q, r).topk(1, largest=False).indices).all()


def test_neighbours_refuse_in_words():
    x = torch.zeros(5, 3)
    with refused("items of one shape"): nearest(x, torch.zeros(5, 4))
    with refused("items of one shape"): nearest(x[:0], x)
    with refused(r"k must be a whole number in 1 \.\. 5"): nearest(x, x, 6)


# --- our classifier -------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def ours(): return cifar10_extractor()


def test_the_extractor_is_the_packaged_classifier_with_its_norms_folded_in(ours):
    net = Classifier().eval()
    stored = {k: v.float() for k, v in chapter._asset("model.safetensors").items()}
    missing, foreign = net.load_state_dict(stored, strict=False)
    assert not foreign and all("num_batches" in name for name in missing)
    x = images(8, shape=(3, 32, 32))
    features, probabilities = ours(x)
    assert features.shape == (8, 256) and probabilities.shape == (8, 10)
    with torch.no_grad():
        close(features, net.features(to_model(x)), rtol=1e-4, atol=1e-5)
        close(probabilities, net(to_model(x)).softmax(1), rtol=1e-3, atol=1e-5)
    assert ours.name == "cifar10-classifier" and features.dtype == torch.float32


def test_an_image_has_the_same_features_in_any_batch(ours):
    x = images(23, shape=(3, 32, 32))
    whole, alone = extract(ours, x, 23), extract(ours, x, 5)
    close(whole[0], alone[0], rtol=1e-4, atol=1e-5)
    assert whole[0].shape == (23, 256) and whole[1].shape == (23, 10)


def test_the_extractor_refuses_in_words(ours):
    with refused("uint8, 0 .. 255.*to_uint8"): ours(torch.zeros(2, 3, 32, 32))
    for shape in ((2, 1, 32, 32), (2, 3, 16, 16), (3, 32, 32)):
        with refused(r"shape \(B, 3, 32, 32\)"): ours(torch.zeros(shape, dtype=torch.uint8))
    with refused("no image"): extract(ours, images(0, shape=(3, 32, 32)))


def test_floats_cast_to_uint8_are_met_with_a_warning_and_dark_pictures_are_not(ours):
    x = torch.rand(2, 3, 32, 32, generator=generator())
    with pytest.warns(UserWarning, match="no value.*above 1.*to_uint8"):
        extract(ours, x.round().to(torch.uint8))
    with warnings.catch_warnings(action="error"):
        for good in (to_uint8(2 * x - 1), (2 * x).round().to(torch.uint8)): extract(ours, good)


def test_the_package_carries_little():
    from importlib.resources import files
    folder = files("ddpm_nb") / "assets" / "cifar10-classifier"
    assert sum(f.stat().st_size for f in folder.iterdir()) < 3e6
    card = (folder / "README.md").read_text()
    assert "not FID" in card and "test images" in card


def said_right():
    "The share of the test images that the classifier is right on, as its card and chapter 9 say."
    from importlib.resources import files
    card = (files("ddpm_nb") / "assets" / "cifar10-classifier" / "README.md").read_text()
    page = Path(__file__).resolve().parent.parent / "nbs" / "09_evaluation.ipynb"
    shares = [re.search(pattern, text)[1] for pattern, text in (
        (r"10,000 test images.*?\*\*([\d.]+) ?%\*\*", card),
        (r"right on ([\d.]+) % of the 10,000 test images", page.read_text(encoding="utf-8")))]
    assert len(set(shares)) == 1, shares
    return float(shares[0]) / 100


def test_card_and_chapter_say_the_same_of_the_classifier_and_it_is_enough():
    assert 0.88 < said_right() < 1


@needs_cifar10
def test_the_classifier_is_as_good_as_its_card_says(ours):
    "Of 2,000 images, a standard error of 0.7 %: four of them off is one in 10,000."
    x, y = cifar10(train=False)
    right = (extract(ours, x[:2000])[1].argmax(1) == y[:2000]).double().mean().item()
    assert abs(right - said_right()) < 4 * 0.007


@needs_cifar10
def test_a_part_of_the_test_images_lies_as_far_from_the_packaged_statistics_as_it_should(ours):
    "A few images are off by their bias; not Gaussian, so within half and 1.6 times of it."
    truth = cifar10_statistics(train=False)
    x = cifar10(train=False)[0]
    s = Statistics.of(extract(ours, x[:1500])[0], ours.name)
    d = frechet_distance(s, truth)
    assert 0.5 < d / expected_bias(truth, 1500) < 1.6
    assert frechet_distance(s, cifar10_statistics(train=True)) > d


@pytest.mark.parametrize("train, part, count", [(True, "train", 50_000), (False, "test", 10_000)])
def test_the_packaged_statistics_are_unpacked_as_they_were_packed(train, part, count):
    "Row by row, the lower triangle; no image is needed."
    stored, s = chapter._asset("statistics.safetensors"), cifar10_statistics(train)
    assert (s.count, s.extractor) == (count, "cifar10-classifier")
    assert torch.equal(s.mean, stored[f"{part}.mean"].double())
    D, rows, found = len(s.mean), stored[f"{part}.covariance"].tolist(), s.covariance.tolist()
    assert rows == [found[i][j] for i in range(D) for j in range(i + 1)]
    assert rows == [found[j][i] for i in range(D) for j in range(i + 1)]
    assert torch.equal(cifar10_statistics().mean, cifar10_statistics(True).mean)


@needs_cifar10
@pytest.mark.parametrize("train", [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_packaged_statistics_are_those_of_the_images(ours, train):
    s = Statistics.of(extract(ours, cifar10(train=train)[0])[0], ours.name)
    kept = cifar10_statistics(train)
    assert kept.count == s.count
    close(kept.mean, s.mean, rtol=1e-4, atol=1e-6)
    assert frechet_distance(kept, s) < 1e-6 * s.covariance.trace()


@needs_cifar10
def test_damage_is_seen_the_more_the_worse(ours):
    x, truth = cifar10(train=False)[0][:600], cifar10_statistics()
    g, found = generator(), []
    for strength in (0, 0.05, 0.15, 0.4):
        noisy = to_uint8(to_model(x) + strength * torch.randn(x.shape, generator=g))
        found.append(frechet_distance(Statistics.of(extract(ours, noisy)[0], ours.name), truth))
    assert found == sorted(found) and found[3] > 3 * found[0]


def test_any_callable_with_a_name_is_an_extractor():
    class Squares:
        name = "squares"
        def __call__(self, x): return x.double().flatten(1)[:, :2], torch.full((len(x), 2), 0.5)
    features, probabilities = extract(Squares(), images(11), 4)
    close(features, images(11).double().flatten(1)[:, :2])
    assert probabilities.shape == (11, 2)


def test_folding_changes_nothing_of_what_an_untrained_net_says():
    torch.manual_seed(0)
    net, x = Classifier().eval(), images(4, shape=(3, 32, 32))
    for m in net.modules():                      # norms that do something
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.uniform_(-0.2, 0.2), m.running_var.uniform_(0.5, 2)
    with torch.no_grad(): expected = net.features(to_model(x))
    close(_OwnExtractor(net, "cpu")(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_features_and_what_is_made_of_them_hold_no_graph():
    "Of a network whose weights could learn: 50,000 images would fill the memory."
    net = torch.nn.Linear(12, 3)
    class Own:
        name = "own"
        def __call__(self, images):
            x = net(images.float().flatten(1))
            return x, x.softmax(1)
    x = images(7, shape=(3, 2, 2))
    assert not any(o.requires_grad for o in extract(Own(), x, 3))
    s = Statistics.of(net(x.float().flatten(1)))
    assert not s.mean.requires_grad and not s.covariance.requires_grad
    assert math.isfinite(sample_quality(x, Own(), s, splits=1).distance)


def test_plain_numbers_have_neighbours_and_a_name_is_kept_when_statistics_join():
    far, which = nearest(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 2.5, 6.0]), 2)
    assert far.tolist() == [[1, 1.5], [1, 2.5]] and which.tolist() == [[0, 1], [2, 1]]
    nameless, named = (Statistics.of(torch.randn(9, 2), name) for name in ("", "one"))
    assert nameless.merged(named).extractor == named.merged(nameless).extractor == "one"
