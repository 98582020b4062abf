"""Algorithm 1 as it is wired: every option, every seed and the order of what a training step does,
held against plain PyTorch; and constants that a wrong number would hide in."""
import ast
import copy
import hashlib
import inspect
import os
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_nb import data, plotting
from ddpm_nb.data import Batches, Mixture, digits, swiss_roll
from ddpm_nb.engine import images
from ddpm_nb.engine.files import replacing
from ddpm_nb.engine.images import load_image
from ddpm_nb.engine.pretrained import _scheduler_from_diffusers, _unet_from_diffusers
from ddpm_nb.engine.recipes import recipe
from ddpm_nb.engine.runs import Trainer, load_run
from ddpm_nb.sampling import GaussianDiffusion
from ddpm_nb.schedules import NoiseSchedule
from ddpm_nb.training import EMA, TrainConfig, TrainState, train
from ddpm_nb.unet import UNetConfig


class Net(nn.Module):
    "A small network for small images, with dropout."
    def __init__(self, dropout=0.3):
        super().__init__()
        self.first, self.dropout = nn.Conv2d(1, 8, 3, padding=1), nn.Dropout(dropout)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, t):
        return self.last(self.dropout(self.first(x).relu())) + t.view(-1, 1, 1, 1) / 100


# The known state: five updates in, where a run of nine goes on. Moments and average are not the
# weights' own, both limits of the average's decay and both ends of the rate are within three steps.
START, T = 5, 100
CONFIG = TrainConfig(steps=9, batch_size=8, lr=1e-2, warmup=10, grad_clip=0.1, ema_decay=0.45,
                     ema_warmup=True, flip=True, seed=7)
IMAGES = digits(True)[0][:20]        # a pass ends within the fourth batch of eight


def known():
    "Weights, an average apart from them, and Adam with something to remember."
    torch.manual_seed(0)
    net, average = Net(), Net()
    adam = torch.optim.Adam(net.parameters())
    for p in net.parameters(): p.grad = torch.randn_like(p)
    adam.step()
    return net, average, adam


def set_up(state, average, adam):
    state.step = START
    state.ema.model.load_state_dict(average.state_dict())
    groups = state.optimizer.state_dict()["param_groups"]      # its own: betas and eps as wired
    moments = copy.deepcopy(adam.state_dict()["state"])
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def told(updates, number):
    "What they say of themselves: steps made, loss, norm of the gradient, rate."
    return np.array([(u.step, u.loss.item(), u.grad_norm.item(), u.lr)
                     for _, u in zip(range(number), updates)])


def diffusion(): return GaussianDiffusion(NoiseSchedule.linear(T))


def by_train(config, updates):
    net, average, adam = known()
    state = TrainState(net, T, config)
    set_up(state, average, adam)
    source = Batches(IMAGES, config.batch_size, config.seed, config.flip)
    source.step = START
    said = told(train(net, diffusion(), source, config, state), updates)
    return net, state.ema.model, said


def by_trainer(config, updates):
    net, average, adam = known()
    run = Trainer(net, diffusion(), IMAGES, config, device="cpu", progress=False)
    set_up(run.state, average, adam)
    run.batches.step = START
    said = told(run.steps(), updates)
    return net, run.ema.model, said


def generator(text):
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def batch_by_hand(c, step):
    "Passes, each in an order of its own, one behind the other; then the mirror."
    n, passes = c.batch_size, [torch.randperm(20, generator=generator(f"{c.seed} {k}"))
                               for k in range(6)]
    x = IMAGES[torch.cat(passes)[n * step:n * step + n]].float() / 127.5 - 1
    mirrored = torch.rand(n, generator=generator(f"{c.seed} flip {step}")) < 0.5
    return torch.stack([i.flip(-1) if c.flip and m else i for i, m in zip(x, mirrored)])


ORDER = ("clip", "rate", "descend", "average")


def by_hand(c, updates, order=ORDER):
    "Algorithm 1 with nothing of the package: its schedule, its seeds, its state, its order."
    net, average, adam = known()
    abars, said = (1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64)).cumprod(0), []
    for step in range(START, START + updates):
        x0, g = batch_by_hand(c, step), generator(repr(("t and noise", c.seed, step)))
        t = torch.randint(T, (c.batch_size,), generator=g)
        eps = torch.randn(c.batch_size, 1, 16, 16, generator=g)
        a = abars[t].view(-1, 1, 1, 1)
        x_t = a.sqrt().float() * x0 + (1 - a).sqrt().float() * eps
        adam.zero_grad()
        total = 0.0
        torch.manual_seed(generator(repr(("dropout", c.seed, step, 0))).initial_seed())
        for part in torch.arange(c.batch_size).chunk(c.accumulate):
            with torch.autocast("cpu", torch.bfloat16, enabled=c.precision == "bf16"):
                answer = net(x_t[part], t[part]).float()
            loss = ((answer - eps[part]) ** 2).mean() / c.accumulate
            loss.backward()
            total += loss.item()
        norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()

        def clip():
            for p in net.parameters(): p.grad *= min(1, c.grad_clip / norm) if c.grad_clip else 1

        def rate():
            fall = min(1, (c.steps - step) / c.cooldown) if c.cooldown else 1
            adam.param_groups[0]["lr"] = c.lr * fall * min(1, (step + 1) / c.warmup)

        def average_():
            decay = min(c.ema_decay, (1 + step) / (10 + step)) if c.ema_warmup else c.ema_decay
            for a, p in zip(average.parameters(), net.parameters()):
                a.data = decay * a.data + (1 - decay) * p.data

        steps = {"clip": clip, "rate": rate, "descend": adam.step, "average": average_}
        for name in order: steps[name]()
        said.append((step + 1, total, norm, adam.param_groups[0]["lr"]))
    return net, average, np.array(said)


def distance(one, other):
    "The largest difference of a weight, or of an averaged weight."
    pairs = [*zip(one[0].parameters(), other[0].parameters()),
             *zip(one[1].parameters(), other[1].parameters())]
    return max((a.detach() - b.detach()).abs().max().item() for a, b in pairs)


SAME = 1e-6      # what is wired otherwise differs by more than twenty times this


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("run", [by_train, by_trainer])
def test_updates_from_a_known_state_are_those_of_a_plain_loop(run, updates):
    ours, plain = run(CONFIG, updates), by_hand(CONFIG, updates)
    assert distance(ours, plain) < SAME
    assert ours[2] == pytest.approx(plain[2], rel=1e-5)
    assert ours[0].training and not ours[1].training


OPTIONS = [dict(lr=2e-2), dict(warmup=7), dict(cooldown=4), dict(grad_clip=0.0),
           dict(grad_clip=0.02), dict(ema_decay=0.3), dict(ema_warmup=False), dict(flip=False),
           dict(seed=8), dict(batch_size=4), dict(precision="bf16"), dict(steps=8, cooldown=4)]


# what a long run alone needs, or what changes no update, and the test that shows it at work
ELSEWHERE = {
    "accumulate": "wired::accumulation_cuts_a_batch_in_parts_and_changes_nothing_else",
    "minutes": "runs::a_tenth_of_the_time_is_enough_to_know_the_pace",
    "compile": "runs::a_compiled_run_follows_the_plain_one_in_one_graph_and_goes_on_plain",
    "log_every": "runs::a_line_is_logged_every_so_many_updates",
    "save_every": "runs::the_last_n_and_every_kth_checkpoint_are_kept",
    "keep_last": "runs::the_last_n_and_every_kth_checkpoint_are_kept",
    "keep_every": "runs::the_last_n_and_every_kth_checkpoint_are_kept",
    "sample_every": "runs::samples_are_drawn_on_time_and_leave_the_run_as_it_was",
    "sample_count": "wired::grids_and_samples_are_of_the_averaged_weights_and_the_sampler",
    "sampler": "wired::grids_and_samples_are_of_the_averaged_weights_and_the_sampler",
    "sample_steps": "wired::grids_and_samples_are_of_the_averaged_weights_and_the_sampler",
    "tracker": "runs::tensorboard_is_written_when_asked"}


def test_no_option_of_a_training_is_without_a_test_that_sets_it():
    "In `OPTIONS`, or where `ELSEWHERE` says: there a test sets it by its name."
    assert {f.name for f in fields(TrainConfig)} == set().union(*OPTIONS) | ELSEWHERE.keys()
    for option, name in ELSEWHERE.items():
        file, test = name.split("::")
        text = Path(__file__).with_name(f"test_{file}.py").read_text()
        (found,) = (f for f in ast.walk(ast.parse(text))
                    if isinstance(f, ast.FunctionDef) and f.name == f"test_{test}")
        assert re.search(rf"\b{option}=", ast.get_source_segment(text, found)), option


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_does_what_it_says_and_is_seen_in_the_result(option):
    config = replace(CONFIG, **option)
    plain = by_hand(config, 3)
    assert distance(plain, by_hand(CONFIG, 3)) > 20 * SAME
    assert distance(by_trainer(config, 3), plain) < SAME
    if "precision" not in option: assert distance(by_train(config, 3), plain) < SAME


def test_accumulation_cuts_a_batch_in_parts_and_changes_nothing_else():
    sizes = []

    class Counted(Net):
        def forward(self, x, t):
            sizes.append(len(x))
            return super().forward(x, t)

    parts = replace(CONFIG, accumulate=4)
    run = Trainer(Counted(0.0), diffusion(), IMAGES, parts, device="cpu", progress=False)
    run.update()
    assert sizes == [2, 2, 2, 2]
    for config in (parts, replace(parts, grad_clip=0.0)):
        ours, plain = by_trainer(config, 3), by_hand(config, 3)
        assert distance(ours, plain) < SAME and ours[2] == pytest.approx(plain[2], rel=1e-5)


@pytest.mark.parametrize("order", [
    ("rate", "descend", "average"), ("rate", "descend", "clip", "average"),
    ("clip", "descend", "rate", "average"), ("clip", "rate", "average", "descend"),
    ("clip", "rate", "descend")], ids=" ".join)
def test_any_other_order_of_a_steps_parts_would_be_seen(order):
    assert distance(by_hand(CONFIG, 3, order), by_hand(CONFIG, 3)) > 20 * SAME


def test_a_gradient_was_above_the_limit_and_images_were_mirrored():
    "Or else the tests above would say nothing of either."
    assert distance(by_hand(replace(CONFIG, grad_clip=0.0), 1), by_hand(CONFIG, 1)) > 20 * SAME
    for step in range(START, START + 3):
        plain, mirrored = (batch_by_hand(replace(CONFIG, flip=f), step) for f in (False, True))
        changed = (plain != mirrored).flatten(1).any(1)
        assert changed.any() and not changed.all()


def test_the_averages_buffers_are_the_networks_own():
    model = nn.Sequential(nn.BatchNorm1d(2))
    ema = EMA(model, 0.9)
    model(torch.arange(8.0).view(4, 2))
    assert not torch.equal(ema.model[0].running_mean, model[0].running_mean)
    ema.update(model)
    for a, b in zip(ema.model.buffers(), model.buffers(), strict=True): assert torch.equal(a, b)


# What a run shows and keeps


@pytest.mark.parametrize("sampler", ["adams", "ddpm"])
def test_grids_and_samples_are_of_the_averaged_weights_and_the_sampler(
        sampler, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plotting, "save_grid", lambda x, path, **kw: shown.append(x) or path)
    config = replace(CONFIG, steps=2, sample_every=2, sample_count=4, sample_steps=3,
                     sampler=sampler)
    run = Trainer(Net(), diffusion(), IMAGES, config, tmp_path, "cpu", progress=False).train()
    def sample(net):
        return diffusion().sample(net, (4, 1, 16, 16), sampler, 3,
                                  torch.Generator().manual_seed(0), progress=False)
    assert len(shown) == 1 and torch.equal(shown[0], sample(run.ema.model))
    assert torch.equal(run.sample(), shown[0])
    asked = run.sample(2, seed=5, sampler="ddim", steps=2)       # over the config's
    assert torch.equal(asked, diffusion().sample(
        run.ema.model, (2, 1, 16, 16), "ddim", 2, torch.Generator().manual_seed(5), False))
    assert not torch.allclose(shown[0], sample(run.model.eval()))


def test_what_is_loaded_are_the_averaged_weights_unless_the_last_are_asked_for(tmp_path):
    r = recipe("digits", "smoke").replace(steps=2, batch_size=2)
    run = Trainer(r.network(), r.process(), IMAGES, r.train, tmp_path, "cpu", False).train()
    for averaged, want in ((True, run.ema.model), (False, run.model)):
        got = load_run(tmp_path, averaged)[0].state_dict()
        for k, v in want.state_dict().items(): assert torch.equal(got[k], v)
    a, b = run.ema.model.conv_in.weight, run.model.conv_in.weight
    assert not torch.equal(a, b)


def test_what_is_loaded_has_the_diffusion_that_it_was_trained_with(tmp_path):
    names = dict(prediction="v", variance="fixed_small", loss="vlb", decoder="gaussian")
    d = GaussianDiffusion(NoiseSchedule.cosine(9), **names)
    r = recipe("digits", "smoke").replace(steps=1, batch_size=2)
    Trainer(r.network(), d, IMAGES, r.train, tmp_path, "cpu", False).train()
    got = load_run(tmp_path)[1]
    assert got.schedule == d.schedule
    assert [got.prediction, got.variance, got.loss_type, got.decoder] == [*names.values()]


def test_a_recipes_trainer_is_made_of_the_recipes_parts():
    r = recipe("digits", "smoke").replace(seed=3, diffusion={"T": 7, "prediction": "v"})
    run = r.trainer(device="cpu", progress=False)
    for a, b in zip(run.model.parameters(), r.network().parameters()): assert torch.equal(a, b)
    assert run.config == r.train and run.batches.seed == 3 and run.batches.flip == r.train.flip
    assert run.diffusion.T == 7 and run.diffusion.prediction == "v"
    assert torch.equal(run.batches.images, digits(True)[0])


# Data


def test_cifar10s_recipe_measures_on_test_images(tmp_path, monkeypatch):
    "An archive of two images a file, each file of its own grey."
    monkeypatch.setattr(data, "_RECORDS", 2)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    greys = {**{f"data_batch_{i}.bin": i for i in range(1, 6)}, "test_batch.bin": 99}
    for name, grey in greys.items():
        rows = np.full((2, 3073), grey, np.uint8)
        rows[:, 0] = grey % 10
        (folder / name).write_bytes(rows.tobytes())
    for size in ("paper", "small", "smoke"):
        r = recipe("cifar10", size).replace(root=str(tmp_path))
        x, labels = r.dataset(train=False)
        assert x.unique().tolist() == [99] and labels.tolist() == [9, 9]
        assert r.images(train=True).unique().tolist() == [1, 2, 3, 4, 5]
        assert r.images().shape == (10, 3, 32, 32)


def test_an_image_keeps_its_colours_and_which_way_is_up(tmp_path):
    from PIL import Image
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0, :, 0], pixels[:, 3, 2] = 255, 200           # red above, blue at the right
    Image.fromarray(pixels).save(tmp_path / "x.png")
    x = load_image(tmp_path / "x.png", 4)
    assert torch.equal(x, torch.from_numpy(pixels).permute(2, 0, 1))
    exif = Image.Exif()
    exif[0x0112] = 3                                      # the camera was held upside down
    Image.fromarray(pixels).save(tmp_path / "y.png", exif=exif)
    assert torch.equal(load_image(tmp_path / "y.png", 4), x.flip(1, 2))


def test_a_file_with_other_bytes_is_fetched_anew(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(images, "_fetched", lambda url, part, *rest: part.write_bytes(b"new"))
    images.download_file("http://x/x.bin", path, hashlib.md5(b"new").hexdigest(), False)
    assert path.read_bytes() == b"new"


def test_what_is_written_is_synced_with_its_folder(tmp_path, monkeypatch):
    synced, real = set(), os.fsync
    def fsync(handle):
        synced.add(os.fstat(handle).st_ino)
        real(handle)
    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "x.txt") as part: part.write_text("x")
    assert {(tmp_path / "x.txt").stat().st_ino, tmp_path.stat().st_ino} <= synced


def test_toys_without_options_are_as_documented():
    def g(): return torch.Generator().manual_seed(0)
    assert torch.equal(swiss_roll(9, g()), swiss_roll(9, g(), noise=0.05))
    ring, grid = Mixture.ring(), Mixture.grid()
    assert (len(ring.means), ring.std, len(grid.means), grid.std) == (8, 0.1, 25, 0.08)
    assert torch.allclose(ring.means[0], torch.tensor([1.5, 0.0]))
    assert grid.means.mean().abs() < 1e-6 and sorted(set(grid.means[:, 0].tolist())) == [
        -1.5, -0.75, 0.0, 0.75, 1.5]


# The loss, the network, and models of others


def test_the_papers_network_has_the_sizes_that_the_paper_names():
    "Appendix B."
    c = UNetConfig.cifar10()
    assert (c.image_size, c.in_channels, c.out_channels) == (32, 3, 3)
    assert (c.base_channels, c.channel_multipliers, c.blocks_per_level) == (128, (1, 2, 2, 2), 2)
    assert (c.attention_resolutions, c.head_channels, c.groups) == ((16,), None, 32)
    assert c.dropout == 0.1 and UNetConfig.lsun256().dropout == 0.0


@pytest.mark.parametrize("variance, loss", [
    ("fixed_small", "simple"), ("fixed_large", "simple"), ("learned", "hybrid"),
    ("learned_range", "hybrid")])
def test_the_loss_where_none_is_named_trains_all_that_the_network_says(variance, loss):
    assert GaussianDiffusion(NoiseSchedule.linear(5), variance=variance).loss_type == loss


def test_keys_that_a_saved_scheduler_leaves_out_mean_what_diffusers_takes_them_for():
    d = _scheduler_from_diffusers({"_class_name": "DDPMScheduler"})
    assert d.schedule == NoiseSchedule.linear(1000, 1e-4, 0.02)
    assert (d.prediction, d.variance, d.loss_type, d.decoder) == (
        "eps", "fixed_small", "simple", "discretized")
    scaled = {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_end": 0.012}
    betas = torch.linspace(1e-4**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert torch.allclose(_scheduler_from_diffusers(scaled).schedule.betas, betas, atol=1e-15)
    older = {"_class_name": "DDPMScheduler", "variance_type": "fixed_small_log"}
    assert _scheduler_from_diffusers(older).variance == "fixed_small"
    with pytest.warns(UserWarning, match="clip=False"):
        _scheduler_from_diffusers({"_class_name": "DDPMScheduler", "clip_sample": False})


NEEDED = dict(_class_name="UNet2DModel", sample_size=16, block_out_channels=[32, 64],
              down_block_types=["DownBlock2D", "AttnDownBlock2D"],
              up_block_types=["AttnUpBlock2D", "UpBlock2D"], flip_sin_to_cos=False, freq_shift=1,
              downsample_padding=0, norm_eps=1e-6)


def test_keys_that_a_saved_network_leaves_out_mean_what_diffusers_takes_them_for():
    assert _unet_from_diffusers(NEEDED) == UNetConfig(
        image_size=16, in_channels=3, out_channels=3, base_channels=32, channel_multipliers=(1, 2),
        blocks_per_level=2, attention_resolutions=(8,), head_channels=8, groups=32, dropout=0.0)
    unet = pytest.importorskip("diffusers").UNet2DModel
    theirs = {k: p.default for k, p in inspect.signature(unet.__init__).parameters.items()}
    usual = dict(in_channels=3, out_channels=3, layers_per_block=2, attention_head_dim=8,
                 norm_num_groups=32, dropout=0.0)
    assert {k: theirs[k] for k in usual} == usual
