"Noise schedules: every table to the last digit, and nothing that is not a schedule gets in."
import copy
import math
import pickle

import numpy as np
import pytest
import torch
from guards import default_dtype
from hypothesis import given, settings, strategies as st
from mpmath import mp, mpf

from ddpm_nb import NoiseSchedule
from ddpm_nb.schedules import SCHEDULES, SPACINGS, look_up

ALL = ("linear", "quadratic", "constant", "jsd", "cosine")
some_betas = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40)


def make(name, *args): return getattr(NoiseSchedule, name)(*args)


# --- the tables ----------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("T", (1, 2, 37, 1000))
def test_tables_equal_50_digit_arithmetic(name, T):
    "alpha_bar, its complement and the SNR of eq. 4, against exact products of the same betas."
    mp.dps = 50
    s, bar = make(name, T), mpf(1)
    for i, beta in enumerate(s.betas.tolist()):
        before, bar = bar, bar * (1 - mpf(beta))
        size = 1 + abs(float(mp.log(bar)) if bar else 0)
        assert abs(s.alpha_bars[i].item() - bar) <= 3e-15 * max(1e-300, bar) * size
        assert abs(s.one_minus_alpha_bars[i].item() / (1 - bar) - 1) < 2e-15
        assert s.alpha_bars_prev[i].item() == pytest.approx(float(before), rel=1e-13)
        assert s.one_minus_alpha_bars_prev[i].item() == pytest.approx(float(1 - before), rel=2e-15)
        if bar:
            assert s.snr[i].item() == pytest.approx(float(bar / (1 - bar)), rel=1e-13)
            assert s.log_snr[i].item() == pytest.approx(float(mp.log(bar / (1 - bar))), abs=1e-13)
    for name in ("betas alphas alpha_bars alpha_bars_prev log_alpha_bars one_minus_alpha_bars "
                 "one_minus_alpha_bars_prev snr log_snr").split():
        table = getattr(s, name)
        assert table.dtype == torch.float64 and table.shape == (T,) and table.device.type == "cpu"


@pytest.mark.parametrize("T", (2, 37, 1000))
def test_betas_equal_the_official_formulas(T):
    expected = dict(linear=np.linspace(1e-4, 0.02, T),
                    quadratic=np.linspace(1e-4**0.5, 0.02**0.5, T) ** 2,
                    constant=np.full(T, 0.02),
                    jsd=1 / np.linspace(T, 1, T))
    for name, betas in expected.items():
        np.testing.assert_allclose(make(name, T).betas, betas, rtol=1e-13)


@pytest.mark.parametrize("T", (1, 4, 1000))
def test_cosine_betas_keep_their_digits(T):
    mp.dps = 50
    s = mpf(0.008)
    f = [mp.cos((mpf(t) / T + s) / (1 + s) * mp.pi / 2) ** 2 for t in range(T + 1)]
    for t, beta in enumerate(NoiseSchedule.cosine(T).betas.tolist()):
        assert abs(beta / min(1 - f[t + 1] / f[t], mpf(0.999)) - 1) < 1e-12


def test_cosine_clips_the_last_beta_alone():
    betas = NoiseSchedule.cosine().betas
    assert betas[-1] == 0.999 and (betas[:-1] < 0.999).all()
    assert NoiseSchedule.cosine(max_beta=1.0).alpha_bars[-1] < 1e-30


@pytest.mark.parametrize("name, scheduler", (
    ("linear", dict(beta_schedule="linear")), ("quadratic", dict(beta_schedule="scaled_linear")),
    ("cosine", dict(beta_schedule="squaredcos_cap_v2")), ("jsd", {}), ("constant", {})))
def test_tables_equal_those_of_diffusers(name, scheduler):
    "At the precision of theirs, which is float32."
    DDPMScheduler = pytest.importorskip("diffusers").DDPMScheduler
    s = make(name)
    scheduler = scheduler or dict(trained_betas=s.betas.numpy())
    theirs = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, **scheduler)
    torch.testing.assert_close(theirs.betas.double(), s.betas, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(theirs.alphas_cumprod.double(), s.alpha_bars, rtol=0, atol=1e-6)


def test_jsd_falls_in_equal_steps_to_zero():
    s = NoiseSchedule.jsd(50)
    line = 1 - torch.arange(1, 51, dtype=torch.float64) / 50
    torch.testing.assert_close(s.alpha_bars, line, rtol=0, atol=1e-14)
    assert s.alpha_bars[-1] == 0 and s.one_minus_alpha_bars[-1] == 1
    assert s.snr[-1] == 0 and s.log_snr[-1] == -math.inf


def test_schedules_are_the_papers_where_nothing_is_said():
    s = NoiseSchedule.linear()
    assert (s.T, len(s), s.betas[0].item(), s.betas[-1].item()) == (1000, 1000, 1e-4, 0.02)
    assert s.alpha_bars[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert (NoiseSchedule.constant().betas == 0.02).all()
    assert all(make(name).T == 1000 for name in ALL)


@settings(max_examples=60, deadline=None)
@given(some_betas)
def test_any_schedule_only_loses_signal(betas):
    s = NoiseSchedule.from_betas(betas)
    assert (s.alpha_bars.diff() <= 0).all() and (s.log_snr.diff()[s.snr[1:] > 0] < 1e-12).all()
    ones = torch.ones(s.T, dtype=torch.float64)
    torch.testing.assert_close(s.alpha_bars + s.one_minus_alpha_bars, ones, rtol=0, atol=1e-15)
    assert s.alpha_bars_prev[0] == 1 and s.one_minus_alpha_bars_prev[0] == 0
    assert torch.equal(s.alpha_bars_prev[1:], s.alpha_bars[:-1])


# --- respaced ------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(some_betas, st.data())
def test_respaced_keeps_alpha_bars_and_the_end(betas, data):
    s = NoiseSchedule.from_betas(betas)
    r = s.respaced(data.draw(st.integers(1, s.T)))
    assert (r.timesteps.diff() > 0).all() and r.timesteps[-1] == s.T - 1 and r.timesteps[0] >= 0
    torch.testing.assert_close(r.alpha_bars, s.alpha_bars[r.timesteps], rtol=1e-12, atol=4e-16)


@settings(max_examples=60, deadline=None)
@given(some_betas, st.data(), st.sampled_from(list(SPACINGS)))
def test_every_spacing_keeps_distinct_times_the_last_and_their_alpha_bars(betas, data, spacing):
    s = NoiseSchedule.from_betas(betas)
    steps = data.draw(st.integers(1, s.T))
    r = s.respaced(steps, spacing)
    assert r.T == steps and (r.timesteps.diff() > 0).all() and r.timesteps[-1] == s.T - 1
    if spacing == "log_snr" and steps > 1: assert r.timesteps[0] == 0
    torch.testing.assert_close(r.alpha_bars, s.alpha_bars[r.timesteps], rtol=1e-12, atol=4e-16)
    assert s.respaced(s.T, spacing) == s


@pytest.mark.parametrize("steps", (2, 5, 10, 20))
def test_steps_even_in_log_snr_are_the_nearest_whole_times(steps):
    "Each is nearer to its wanted place than its neighbours are; searched one by one."
    s = NoiseSchedule.linear()
    log_snr = s.log_snr.tolist()
    for k, t in enumerate(s.respaced(steps, "log_snr").timesteps.tolist()):
        wanted = log_snr[0] + (log_snr[-1] - log_snr[0]) * k / (steps - 1)
        assert t == min(range(1000), key=lambda i: abs(log_snr[i] - wanted))


@pytest.mark.parametrize("steps", (1, 2, 5, 10, 20, 30))
def test_between_shares_the_error_of_adams_among_the_steps(steps):
    "Nearest times, with the integrals by scipy: each stretch costs as much, the last jump too."
    quad = pytest.importorskip("scipy.integrate").quad
    s = NoiseSchedule.linear()
    lambdas = (s.log_snr / 2).tolist()
    costs = [quad(lambda u: math.cosh(u) ** -0.5, lambdas[0], 60)[0]]
    costs += [quad(lambda u: math.cosh(u) ** -0.2, b, a)[0] for a, b in zip(lambdas, lambdas[1:])]
    until = np.cumsum(costs)
    first = max(until[0], until[-1] / steps)                 # few steps begin late, with one of all
    times = s.respaced(steps, "between").timesteps.tolist()
    assert len(times) == steps and times[-1] == 999 and (times[0] == 0) == (steps >= 20)
    for k, t in enumerate(times[:-1]):
        wanted = first + (until[-1] - first) * k / (steps - 1)
        assert abs(until - wanted).argmin() == t


def test_a_spacing_of_ones_own_must_end_where_the_noise_is(monkeypatch):
    s = NoiseSchedule.linear(20)
    for name, at in (("mine", [3, 19]), ("short", [19]), ("first", [0, 5]), ("twice", [19, 19])):
        monkeypatch.setitem(SPACINGS, name, lambda s, steps, at=at: torch.tensor(at))
    assert s.respaced(2, "mine").timesteps.tolist() == [3, 19]
    for name, says in (("short", "2 increasing"), ("first", "must end at index 19"),
                       ("twice", "2 increasing")):
        with pytest.raises(ValueError, match=says): s.respaced(2, name)
    with pytest.raises(ValueError, match="spacing must be one of even, log_snr, between, mine"):
        s.respaced(2, "karras")


@pytest.mark.parametrize("name", ALL)
def test_respaced_to_all_steps_is_the_same_to_the_bit(name):
    s = make(name)
    assert s.respaced(1000) == s and torch.equal(s.respaced(1000).alpha_bars, s.alpha_bars)


@pytest.mark.parametrize("name", ALL)
def test_respaced_to_one_step_is_one_jump(name):
    s = make(name)
    one = s.respaced(1)
    assert one.timesteps.tolist() == [999]
    torch.testing.assert_close(one.betas[0], s.one_minus_alpha_bars[-1], rtol=1e-14, atol=0)


def test_respaced_beyond_the_end_of_the_signal():
    "After a beta of 1 there is nothing left to take a ratio of."
    s = NoiseSchedule.from_betas([0.1, 1.0, 0.3, 0.4]).respaced(3)
    assert s.betas.isfinite().all() and (s.alpha_bars[1:] == 0).all()


@pytest.mark.parametrize("steps", (1, 7, 10, 50, 250, 333, 400, 1000))
def test_respaced_times_equal_diffusers_trailing_ones(steps):
    DDIMScheduler = pytest.importorskip("diffusers").DDIMScheduler
    theirs = DDIMScheduler(1000, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    ours = NoiseSchedule.linear().respaced(steps).timesteps.flip(0)
    assert ours.tolist() == theirs.timesteps.tolist()


def test_respaced_twice_points_into_the_first():
    s = NoiseSchedule.linear()
    assert torch.equal(s.respaced(100).respaced(20).timesteps, s.respaced(20).timesteps)
    torch.testing.assert_close(s.respaced(100).respaced(20).betas, s.respaced(20).betas,
                               rtol=1e-13, atol=0)


@pytest.mark.parametrize("steps", (0, -1, 1001, 10.0, "10", None))
def test_respaced_refuses_what_is_no_number_of_steps(steps):
    with pytest.raises(ValueError, match=r"1 \.\. 1000"): NoiseSchedule.linear().respaced(steps)


# --- by name -------------------------------------------------------------------------------------

def test_look_up_finds_an_entry_or_lists_what_there_is():
    for name in ALL: assert look_up("schedule", name, SCHEDULES)(T=5) == make(name, 5)
    for wrong in ("cosin", "", None, ["linear"], 3):
        with pytest.raises(ValueError) as error: look_up("schedule", wrong, SCHEDULES)
        assert str(error.value) == f"schedule must be one of {', '.join(ALL)}, got {wrong!r}"


def test_a_schedule_of_ones_own_is_one_entry(monkeypatch):
    "And its options are its own."
    def flat(T=10, beta=0.5): return NoiseSchedule.from_betas([beta] * T)
    monkeypatch.setitem(SCHEDULES, "flat", flat)
    assert look_up("schedule", "flat", SCHEDULES)(beta=0.25).betas.tolist() == [0.25] * 10
    with pytest.raises(ValueError, match="cosine, flat, got 'flatt'"):
        look_up("schedule", "flatt", SCHEDULES)


def test_a_subclass_makes_its_own_kind():
    class Mine(NoiseSchedule): pass
    made = [getattr(Mine, name)(10) for name in ALL]
    assert all(type(s) is Mine and type(s.respaced(3)) is Mine for s in made)


# --- what is refused -----------------------------------------------------------------------------

@pytest.mark.parametrize("betas, says", (
    ([0.1, 0.0], r"betas\[1\] = 0.0"), ([0.1, -0.1], r"\(0, 1\]"),
    ([1.1, 0.1], r"betas\[0\] = 1.1"),
    ([0.1, math.nan], r"betas\[1\] = nan"), ([math.inf], r"\(0, 1\]"),
    ([], "non-empty"), ([[0.1, 0.2]], r"\(1, 2\)"),
    (0.1, r"shape \(\)"), (torch.zeros(2, 0), r"\(2, 0\)"),
    (None, "vector of numbers"), ("linear", "vector of numbers"), (["a"], "vector of numbers"),
    ([0.1, [0.2]], "vector of numbers"), (torch.tensor([0.1j]), "real"),
    ([True, True], "real"), (np.array([True]), "real"), ([0.1j], "real"),
    (np.array([0.1 + 0.5j]), "real"), ([2**70], "vector of numbers"),
    (torch.full((3,), 0.1, device="meta"), "vector of numbers")))
def test_bad_betas_are_refused(betas, says):
    for build in (NoiseSchedule, NoiseSchedule.from_betas):
        with pytest.raises(ValueError, match=says): build(betas)


@pytest.mark.parametrize("timesteps", (
    [0], [1, 0], [0, 0], [-1, 0], [0.0, 1.0], [[0, 1]], "ab", [0, 1, 2]))
def test_bad_timesteps_are_refused(timesteps):
    if timesteps == [0.0, 1.0]: timesteps = torch.tensor(timesteps)
    with pytest.raises(ValueError, match="timesteps"): NoiseSchedule([0.1, 0.2], timesteps)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("T", (0, -3, 10.0, "10", None, math.nan, True))
def test_bad_T_is_refused(name, T):
    with pytest.raises(ValueError, match="T must be a whole number"): make(name, T)


@pytest.mark.parametrize("call", (
    lambda: NoiseSchedule.linear(10, beta_start="x"), lambda: NoiseSchedule.cosine(10, s=None),
    lambda: NoiseSchedule.from_betas(torch.ones(3, dtype=torch.bool)),
    lambda: NoiseSchedule.linear(10).respaced(True),
    lambda: NoiseSchedule.linear(10, beta_start=-1), lambda: NoiseSchedule.linear(10, beta_end=2),
    lambda: NoiseSchedule.quadratic(10, beta_start=-1),
    lambda: NoiseSchedule.quadratic(10, beta_end=math.nan), lambda: NoiseSchedule.constant(10, 0),
    lambda: NoiseSchedule.cosine(10, s=-1), lambda: NoiseSchedule.cosine(10, s=math.inf),
    lambda: NoiseSchedule.cosine(10, max_beta=0)))
def test_bad_parameters_are_refused(call):
    with pytest.raises(ValueError, match="must .*got"): call()


# --- how it behaves ------------------------------------------------------------------------------

def test_betas_are_copied():
    betas = torch.full((4,), 0.1, dtype=torch.float64)
    s = NoiseSchedule.from_betas(betas)
    betas[0] = 0.9
    assert s.betas[0] == 0.1


@pytest.mark.parametrize("betas", (
    [0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), torch.tensor([0.1, 0.2], dtype=torch.float64),
    torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True)))
def test_betas_may_come_in_any_form(betas):
    s = NoiseSchedule.from_betas(betas)
    assert s.betas.tolist() == [0.1, 0.2] and not s.betas.requires_grad
    assert NoiseSchedule.linear(np.int64(5)).T == 5


def test_default_device_and_dtype_do_not_matter():
    with torch.device("meta"):
        made = [NoiseSchedule.linear(20).respaced(3), NoiseSchedule.from_betas([0.1, 0.2]),
                *(make(name, 20) for name in ALL)]
    assert all(s.alpha_bars.device.type == s.timesteps.device.type == "cpu" for s in made)
    usual = [make(name) for name in ALL]
    with default_dtype(torch.float16): assert [make(name) for name in ALL] == usual
    assert all(s.alpha_bars.dtype == torch.float64 for s in usual)
    assert NoiseSchedule.jsd().betas[2].item() == 1 / 998


def test_equality_copies_and_words():
    s = NoiseSchedule.linear(10)
    assert s == NoiseSchedule.linear(10) == copy.deepcopy(s) == pickle.loads(pickle.dumps(s))
    for other in (NoiseSchedule.linear(11), NoiseSchedule.cosine(10),
                  NoiseSchedule(s.betas, range(10, 20)), "linear"): assert s != other
    with pytest.raises(TypeError, match="unhashable"): hash(s)
    assert "T=10" in repr(s) and "0.0001 .. 0.02" in repr(s)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_times_that_are_not_whole_are_refused_in_whatever_they_come(kind):
    with pytest.raises(ValueError, match="timesteps must be whole numbers, got torch.float"):
        NoiseSchedule([0.1, 0.2, 0.3], kind([0.9, 1.7, 2.2]))
    assert NoiseSchedule([0.1, 0.2, 0.3], kind([0, 1, 7])).timesteps.tolist() == [0, 1, 7]


def test_a_spacing_of_ones_own_that_is_not_whole_is_refused(monkeypatch):
    monkeypatch.setitem(SPACINGS, "mine", lambda s, k: np.linspace(0, s.T - 1, k))
    with pytest.raises(ValueError, match="must be whole numbers"):
        NoiseSchedule.linear().respaced(8, "mine")
