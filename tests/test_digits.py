"""The packaged digits model: what its card says, and that it has learnt more than any linear
method could."""
import json
import re
from pathlib import Path

import pytest
import torch

import ddpm_nb
from ddpm_nb import UNetConfig, load_pretrained
from ddpm_nb.data import digits, to_model
from ddpm_nb.engine.recipes import Recipe, recipe

FOLDER = Path(ddpm_nb.__file__).parent / "assets" / "digits"
CARD = FOLDER / "README.md"


@pytest.fixture(scope="module")
def model(): return load_pretrained("digits")


@pytest.fixture(scope="module")
def written() -> Recipe:
    "The recipe as the card gives it."
    changes = json.loads(re.search(r"```json\n(.*?)```", CARD.read_text(), re.S)[1])
    return recipe("digits", "demo").replace(**changes)


def test_the_packaged_model_is_the_cards_recipe(model, written):
    net, d = model
    assert net.config == written.unet == UNetConfig.digits() == recipe("digits", "smoke").unet
    assert d.schedule == written.process().schedule and d.prediction == written.process().prediction


def test_it_weighs_less_than_a_megabyte_and_is_stored_in_half_precision(model):
    net, _ = model
    size = sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file())
    assert size < 1_000_000
    assert all(torch.equal(p, p.half().float()) for p in net.parameters())


def test_the_card_states_the_number_of_parameters(model):
    assert f"{sum(p.numel() for p in model[0].parameters()):,} parameters" in CARD.read_text()


def test_the_held_out_loss_is_the_cards(model):
    net, d = model
    said = re.search(r"held-out images: (\d\.\d+) ± (\d\.\d+)", CARD.read_text())
    x0 = to_model(digits(False)[0])
    g = torch.Generator().manual_seed(123)
    t, noise = torch.randint(1000, (len(x0),), generator=g), torch.randn(x0.shape, generator=g)
    with torch.inference_mode(): losses = d.losses(net, x0, t, noise)
    luck = losses.std() / len(x0) ** 0.5 + float(said[2])
    assert abs(losses.mean() - float(said[1])) < 5 * luck


@pytest.mark.parametrize("step", [20, 100, 200, 300, 400, 600])
def test_it_beats_the_best_linear_denoiser_until_that_is_as_good_as_any(model, step):
    """The linear guess of x_0 with the least squared error (Wiener's) knows mean and covariance of
    the training images, and nothing else."""
    net, d = model
    train, test = (to_model(digits(part)[0]).flatten(1).double() for part in (True, False))
    a, s2 = d.schedule.alpha_bars[step].sqrt(), d.schedule.one_minus_alpha_bars[step]
    g = torch.Generator().manual_seed(step)
    noise = torch.randn(test.shape, dtype=torch.float64, generator=g)
    x_t = a * test + s2.sqrt() * noise
    mean, covariance = train.mean(0), torch.cov(train.T)
    gain = torch.linalg.solve(a**2 * covariance + s2 * torch.eye(256), a * covariance)
    linear = mean + (x_t - a * mean) @ gain
    t = torch.full((len(test),), step)
    x_t = x_t.float().view(-1, 1, 16, 16)
    with torch.inference_mode(): guess = d.p_mean_variance(net, x_t, t).x0.flatten(1).double()
    ours, theirs = ((x - test).square().mean(1) for x in (guess, linear.clamp(-1, 1)))
    gap = theirs - ours
    if step < 500: assert gap.mean() > 3 * gap.std() / len(gap) ** 0.5
    # in so much noise the digits look Gaussian, and linear is best
    else: assert ours.mean() < 1.02 * theirs.mean()


def test_sampling_repeats_to_the_bit(model):
    net, d = model
    draw = lambda: d.sample(net, (3, 1, 16, 16), "dpm++", steps=5, progress=False,
                            generator=torch.Generator().manual_seed(0))
    a, b = draw(), draw()
    assert torch.equal(a, b) and a.isfinite().all()


def test_a_few_steps_of_the_recipe_lower_the_held_out_loss(written):
    r = written.replace(steps=40, warmup=5, cooldown=20, batch_size=32, ema_decay=0.8)
    x0 = to_model(digits(False)[0])[:99]
    g = torch.Generator().manual_seed(0)
    t, noise = torch.randint(1000, (99,), generator=g), torch.randn(x0.shape, generator=g)
    trainer = r.trainer(device="cpu", progress=False)
    def held_out():
        with torch.inference_mode():
            return trainer.diffusion.losses(trainer.ema.model, x0, t, noise).mean()
    before = held_out()
    trainer.train()
    after = held_out()
    assert after < 0.8 * before
