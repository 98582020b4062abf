"Recipes: a run as data, data sets and schedules by name, each open to a reader's own."
import hashlib
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from ddpm_nb.data import digits
from ddpm_nb.engine import recipes
from ddpm_nb.engine.images import ImageFiles, load_files
from ddpm_nb.engine.recipes import DATASETS, RECIPES, Recipe, diffusion_options, recipe
from ddpm_nb.engine.runs import Trainer
from ddpm_nb.sampling import GaussianDiffusion
from ddpm_nb.schedules import SCHEDULES, NoiseSchedule
from ddpm_nb.training import TrainConfig
from ddpm_nb.unet import UNet, UNetConfig


@pytest.mark.parametrize("data, size", [(d, s) for d in RECIPES for s in RECIPES[d]])
def test_every_recipe_is_whole_and_survives_json(data, size):
    r = recipe(data, size)
    assert Recipe.from_dict(json.loads(json.dumps(r.to_dict()))) == r
    with torch.device("meta"): assert UNet(r.unet).config == r.unet
    assert r.process().T == 1000 and r.unet.image_size in (16, 32, 256)


def test_the_papers_recipe_is_the_papers():
    r = recipe("cifar10", "paper")
    assert r.unet == UNetConfig.cifar10() and r.process().schedule == NoiseSchedule.linear()
    for key in ("steps", "batch_size", "lr", "warmup", "grad_clip", "ema_decay", "flip",
                "cooldown", "ema_warmup"):
        assert getattr(r.train, key) == getattr(TrainConfig(), key)


def test_all_digits_recipes_and_the_packaged_network_are_of_one_size():
    from ddpm_nb.engine.pretrained import load_pretrained
    for r in RECIPES["digits"].values():
        assert r.unet == UNetConfig.digits()
        assert sum(p.numel() for p in r.network().parameters()) == 438_145
    assert load_pretrained("digits")[0].config == UNetConfig.digits()


def test_unknown_recipes_and_options_are_refused_in_words():
    with pytest.raises(ValueError, match="one of digits, cifar10, folder, got 'mnist'"):
        recipe("mnist")
    with pytest.raises(ValueError, match="one of paper, gpu-hours, small, smoke, got 'huge'"):
        recipe("cifar10", "huge")
    with pytest.raises(ValueError, match="the size for digits must be one of demo, smoke, got ''"):
        recipe("digits", "")
    with pytest.raises(ValueError, match="unknown UNetConfig keys"):
        recipe("digits").replace(unet=dict(depth=3))
    with pytest.raises(ValueError, match="unknown TrainConfig keys"):
        recipe("digits").replace(depth=3)
    with pytest.raises(ValueError, match="schedule must be one of linear"):
        recipe("digits").replace(diffusion=dict(schedule="sigmoid"))
    with pytest.raises(ValueError, match="does not take these options"):
        recipe("digits").replace(diffusion=dict(colour=3))
    with pytest.raises(ValueError, match="the data set must be one of digits, cifar10, folder"):
        recipe("digits").replace(data="mnist").images()


def test_a_recipe_changes_in_each_of_its_parts_and_the_old_one_stays():
    before = recipe("digits").to_dict()
    r = recipe("digits").replace(lr=1e-4, unet=dict(dropout=0.2), root="/data",
                                 diffusion=dict(prediction="v"))
    assert (r.train.lr, r.unet.dropout, r.root, r.process().prediction) == (1e-4, 0.2, "/data", "v")
    assert r.train == replace(recipe("digits").train, lr=1e-4)
    assert r.diffusion == {"schedule": "linear", "T": 1000, "prediction": "v"}
    assert recipe("digits").to_dict() == before
    before["diffusion"]["T"] = 3                       # what was handed out is a copy
    assert recipe("digits").process().T == 1000


def test_differences_name_what_matters_to_what_is_learnt():
    a = recipe("digits")
    b = a.replace(lr=1e-4, save_every=7, unet=dict(dropout=0.2), root="/data",
                  diffusion=dict(schedule="cosine", s=0.02))
    assert a.differences(a) == a.differences(a.replace(save_every=7, root="/data")) == []
    assert sorted(line.split()[0] for line in a.differences(b)) == [
        "diffusion.s", "diffusion.schedule", "train.lr", "unet.dropout"]
    assert a.differences(a.replace(data="folder")) == ["data is 'digits' there and 'folder' here"]


def test_a_network_has_its_recipes_seed_and_leaves_the_global_random_numbers_alone():
    def weights(r): return torch.cat([p.flatten() for p in r.network().parameters()])
    before = torch.get_rng_state()
    first = weights(recipe("digits"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(weights(recipe("digits")), first)
    assert not torch.equal(weights(recipe("digits").replace(seed=1)), first)


# The diffusion


@pytest.mark.parametrize("options, schedule", [
    ({}, NoiseSchedule.linear()),
    (dict(beta_start=1e-3, beta_end=0.1, T=50), NoiseSchedule.linear(50, 1e-3, 0.1)),
    (dict(schedule="quadratic", beta_end=0.03), NoiseSchedule.quadratic(beta_end=0.03)),
    (dict(schedule="constant", beta_end=0.01), NoiseSchedule.constant(beta_end=0.01)),
    (dict(schedule="cosine", s=0.02), NoiseSchedule.cosine(s=0.02)),
    (dict(schedule="cosine", max_beta=0.9, T=70), NoiseSchedule.cosine(70, max_beta=0.9)),
])
def test_every_option_of_a_schedule_is_reachable_from_a_recipe(options, schedule):
    r = recipe("digits").replace(diffusion=options)
    assert r.process().schedule == schedule
    assert Recipe.from_dict(json.loads(json.dumps(r.to_dict()))).process().schedule == schedule


def test_every_option_that_is_listed_is_taken():
    "Each listed key, with the value that it has when it is left out, changes nothing."
    from inspect import signature
    for name, make in SCHEDULES.items():
        own = {k: p.default for k, p in signature(make).parameters.items()}
        mine = dict(prediction="eps", variance="fixed_large", loss="simple", decoder="discretized")
        options = diffusion_options(name)
        assert options[:len(own) + 1] == ("schedule", *own) and set(mine) < set(options)
        if name == "jsd": mine["prediction"] = "v"      # no signal is left at the end of jsd
        r = recipe("digits").replace(diffusion=dict(schedule=name, **own, **mine))
        assert isinstance(r.process(), GaussianDiffusion) and r.process().schedule == make()


@pytest.mark.parametrize("name, wrong, right", [
    ("linear", "s", "schedule, T, beta_start, beta_end, prediction, variance, loss, decoder"),
    ("cosine", "beta_end", "schedule, T, s, max_beta, prediction, variance, loss, decoder"),
    ("jsd", "beta_end", "schedule, T, prediction, variance, loss, decoder")])
def test_an_option_of_another_schedule_is_refused_with_the_list_of_its_own(name, wrong, right):
    words = f"options: {wrong}; allowed with the schedule {name}: {right}"
    with pytest.raises(ValueError, match=words):
        recipe("digits").replace(diffusion={"schedule": name, wrong: 0.01})


def test_values_that_fit_no_option_are_refused_in_words():
    for options, match in [(dict(T=0), "T must be"), (dict(T="many"), "T must be"),
                           (dict(schedule="cosine", s=-1), "s must be 0 or more"),
                           (dict(schedule="cosine", s="big"), "s must be 0 or more"),
                           (dict(prediction="noise"), "eps, x0, mu, v")]:
        with pytest.raises(ValueError, match=match): recipe("digits").replace(diffusion=options)


def test_another_schedule_leaves_the_options_of_the_former_behind():
    r = recipe("digits").replace(diffusion=dict(schedule="cosine", s=0.02, T=70, prediction="v"))
    back = r.replace(diffusion=dict(schedule="linear"))
    assert back.diffusion == {"schedule": "linear", "T": 70, "prediction": "v"}


# A reader's own


def test_a_readers_own_schedule_is_used_by_its_name_with_its_own_options(monkeypatch):
    def halving(T=8, *, first=0.1, factor=0.5, **unnamed):
        return NoiseSchedule.from_betas([first * factor**i for i in range(T)])
    monkeypatch.setitem(SCHEDULES, "halving", halving)
    assert diffusion_options("halving")[:4] == ("schedule", "T", "first", "factor")
    r = recipe("digits").replace(diffusion=dict(schedule="halving", T=5, factor=0.9))
    assert r.process().schedule == halving(5, factor=0.9)
    with pytest.raises(ValueError, match="unnamed; allowed with the schedule halving: schedule, T"):
        r.replace(diffusion=dict(unnamed=1))


def test_a_readers_own_data_set_is_trained_on_by_its_name(monkeypatch):
    asked = []

    def mine(train, root, download, size):
        asked.append((train, root, download, size))
        labels = torch.arange(40 if train else 10) % 2
        return (labels * 255).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, size, size), labels
    monkeypatch.setitem(DATASETS, "mine", mine)
    r = recipe("digits", "smoke").replace(data="mine", root="/somewhere", steps=2,
                                          unet=dict(base_channels=8, image_size=8,
                                                    attention_resolutions=[]))
    images, labels = r.dataset(train=False, download=True)
    assert images.shape == (10, 1, 8, 8) and labels.tolist() == [0, 1] * 5
    trained = r.trainer(device="cpu", progress=False).train()
    assert isinstance(trained, Trainer) and trained.step == 2 and len(trained.batches.images) == 40
    assert asked == [(False, "/somewhere", True, 8), (True, "/somewhere", False, 8),
                     (False, "/somewhere", False, 8)]              # the last: for the log
    assert len(trained.held_out.parts[0]) == 10


# Data sets


def test_labels_come_with_the_images_of_every_data_set():
    images, labels = recipe("digits").dataset(train=False)
    assert torch.equal(images, digits(False)[0]) and torch.equal(labels, digits(False)[1])
    assert torch.equal(recipe("digits").images(), digits(True)[0])


def test_cifar10_is_trained_on_one_part_and_measured_on_the_other(monkeypatch):
    "The recipe's `train`, `root` and `download` reach the reader of the archive."
    asked = []

    def stand_in(root, train, download):
        asked.append((root, train, download))
        return torch.zeros(3, 3, 32, 32, dtype=torch.uint8), torch.tensor([6, 9, 4])
    monkeypatch.setattr(recipes, "cifar10", stand_in)
    r = recipe("cifar10", "smoke").replace(root="/data")
    assert r.dataset(False)[1].tolist() == [6, 9, 4] and r.images(True, download=True).shape[0] == 3
    assert asked == [("/data", False, False), ("/data", True, True)]


def greys(folder, names):
    "Number i of the names is a grey of i."
    from PIL import Image
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / name)


def split(folder):
    "The greys trained on, and those held out."
    return tuple(DATASETS["folder"](train, str(folder), False, 8)[0][:][:, 0, 0, 0].tolist()
                 for train in (True, False))


@pytest.mark.parametrize("memory", [10**9, 0])
def test_about_every_tenth_image_of_a_folder_is_held_out_with_its_label(tmp_path, monkeypatch,
                                                                       memory):
    "The numbers are written down: a split must be the same on every machine, for ever."
    monkeypatch.setattr(recipes, "load_files", partial(load_files, memory=memory))
    names = [f"{i % 2}/{i:02}.png" for i in range(40)]        # in the folder of its last bit
    greys(tmp_path, names)
    out = [i for i, name in enumerate(names)
           if int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) % 10 == 0]
    assert out == [15, 16, 19, 27, 35, 36]
    order = [*range(0, 40, 2), *range(1, 40, 2)]
    for train in (False, True):
        images, labels = DATASETS["folder"](train, str(tmp_path), False, 8)
        assert isinstance(images, ImageFiles if memory == 0 else torch.Tensor)
        shown = images[torch.arange(len(images))][:, 0, 0, 0].tolist()
        assert shown == [i for i in order if (i in out) != train]
        assert images.shape == (len(shown), 3, 8, 8)
        assert labels.tolist() == [number % 2 for number in shown]


def test_files_added_later_shift_no_other_image_between_training_and_held_out(tmp_path):
    names = [f"deep/{i:03}.png" for i in range(1, 201, 2)]
    greys(tmp_path, names)
    train, out = split(tmp_path)
    assert sorted(train + out) == list(range(100)) and 3 <= len(out) <= 20
    greys(tmp_path, names + [f"deep/{i:03}.png" for i in range(0, 200, 2)] + ["0.png"])
    more_train, more_out = split(tmp_path)
    assert set(train) <= set(more_train) and set(out) <= set(more_out)
    assert len(more_train) + len(more_out) == 201
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))   # a folder may be moved
    assert split(moved) == (more_train, more_out)


def test_the_share_held_out_is_a_tenth():
    share = np.mean([recipes._held_out(f"photos/IMG_{i}.jpg") for i in range(40_000)])
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / 40_000) ** 0.5


def test_labels_of_both_parts_number_the_same_folders(tmp_path):
    "A class of which nothing is held out keeps its number."
    names = [f"{c}/{i:02}.png" for c in "abc" for i in range(30 if c != "b" else 1)]
    greys(tmp_path, names)
    for train in (True, False):
        images, labels = DATASETS["folder"](train, str(tmp_path), False, 8)
        assert labels.tolist() == ["abc".index(names[g][0]) for g in images[:, 0, 0, 0].tolist()]
        assert 2 in labels


def test_a_held_out_image_that_cannot_be_read_is_told_when_a_run_begins(tmp_path):
    names = [f"{i}.png" for i in range(60)]
    greys(tmp_path / "data", names)
    bad = next(name for name in names if recipes._held_out(name))
    (tmp_path / "data" / bad).write_bytes(b"no image")
    r = recipe("folder", "smoke").replace(root=str(tmp_path / "data"))
    with pytest.warns(UserWarning, match=f"no loss on held-out images is logged: .*{bad}"):
        assert r._held_out() is None


def test_a_folder_that_is_not_named_or_too_small_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"needs their folder: root .in the shell: --root FOLDER."):
        recipe("folder", "smoke").images()
    kept, = [name for name in ("a.png",) if not recipes._held_out(name)]
    lone = next(f"{i}.png" for i in range(100) if recipes._held_out(f"{i}.png"))
    greys(tmp_path / "kept", [kept])
    greys(tmp_path / "lone", [lone])
    with pytest.raises(ValueError, match="has only 1 images: .* would be trained on; add some"):
        recipe("folder", "smoke").replace(root=str(tmp_path / "kept")).images(train=False)
    with pytest.raises(ValueError, match="has only 1 images: .* would be held out; add some"):
        recipe("folder", "smoke").replace(root=str(tmp_path / "lone")).images()
    with pytest.warns(UserWarning, match="has only 1 images, .* nothing to evaluate on"):
        DATASETS["folder"](True, str(tmp_path / "kept"), False, 8)


def test_a_bad_image_is_named_before_training_and_only_those_asked_for_are_read(tmp_path):
    names = [f"{i:02}.png" for i in range(40)]
    greys(tmp_path, names)
    bad = [n for n in names if not recipes._held_out(n)][:2]
    for name in bad: (tmp_path / name).write_bytes(b"no picture")
    r = recipe("folder", "smoke").replace(root=str(tmp_path))
    with pytest.raises(ValueError, match=f"2 of .*{bad[0]}, .*{bad[1]}"):
        r.trainer(device="cpu", progress=False)
    assert len(r.images(train=False)) == sum(map(recipes._held_out, names))


def test_images_of_another_size_than_the_networks_are_refused_with_the_keys_to_set():
    words = r"shape \(1, 16, 16\), the network is for \(1, 32, 32\): set unet.in_channels"
    with pytest.raises(ValueError, match=words):
        recipe("digits").replace(unet=dict(image_size=32)).images()


def test_the_message_on_shapes_is_the_words_to_type():
    words = "--set unet.in_channels=1 unet.out_channels=2 unet.image_size=16"
    r = recipe("digits").replace(unet=dict(in_channels=3, out_channels=6),
                                 diffusion=dict(variance="learned_range"))
    with pytest.raises(ValueError, match=words): r.images()


# What people have


def test_the_papers_network_for_256_pixels_is_the_papers():
    "Appendix B: 114 million parameters, six levels, no dropout; 2e-5, batch 64, decay 0.9999."
    r = recipe("folder", "lsun256")
    with torch.device("meta"): assert sum(p.numel() for p in UNet(r.unet).parameters()) == 113673219
    u, c = r.unet, r.train
    assert (u.image_size, u.base_channels, u.channel_multipliers) == (256, 128, (1, 1, 2, 2, 4, 4))
    assert (u.attention_resolutions, u.blocks_per_level, u.dropout) == ((16,), 2, 0.0)
    assert (c.lr, c.batch_size, c.ema_decay, c.steps) == (2e-5, 64, 0.9999, 500_000)


def test_gpu_hours_is_the_papers_network_in_half_precision_within_four_hours():
    paper, r = recipe("cifar10", "paper"), recipe("cifar10", "gpu-hours")
    assert r.unet == paper.unet and r.diffusion == paper.diffusion
    assert (r.train.minutes, r.train.precision, r.train.compile) == (240, "bf16", True)
    assert r.train.batch_size == paper.train.batch_size and r.train.steps == paper.train.steps
    assert r.train.cooldown * 5 == r.train.steps and r.train.ema_warmup
    # for a twentieth of the updates: twice the rate, warm in a fifth, an average of half the memory
    assert (r.train.lr, r.train.warmup, r.train.ema_decay) == (4e-4, 1_000, 0.9998)


def test_folders_are_not_mirrored_unless_that_is_asked_for():
    assert not any(r.train.flip for r in RECIPES["folder"].values())
    assert recipe("folder").replace(flip=True).train.flip
    assert recipe("cifar10", "small").train.flip and recipe("cifar10", "paper").train.flip


@pytest.mark.parametrize("size, widths, at", [
    (32, (32, 16, 8), 16), (64, (64, 32, 16), 16), (96, (96, 48, 24, 12), 12),
    (100, (100, 50, 25), 25), (128, (128, 64, 32, 16), 16), (256, (256, 128, 64, 32, 16), 16)])
def test_a_recipe_for_another_size_has_the_levels_and_the_attention_that_it_needs(size, widths, at):
    u = recipe("folder", "small").replace(unet=dict(image_size=size)).unet
    assert (u.image_size, u.resolutions, u.attention_resolutions) == (size, widths, (at,))
    with torch.device("meta"):
        x = torch.zeros(1, 3, size, size)
        assert UNet(u)(x, torch.zeros(1)).shape == x.shape


def test_levels_and_attention_that_are_named_are_left_alone():
    named = dict(image_size=64, channel_multipliers=(1, 2, 4, 4), attention_resolutions=(8,))
    u = recipe("folder", "small").replace(unet=named).unet
    assert (u.channel_multipliers, u.attention_resolutions) == ((1, 2, 4, 4), (8,))
    u = recipe("folder", "small").replace(unet=dict(image_size=64, channel_multipliers=(1, 2))).unet
    assert (u.channel_multipliers, u.attention_resolutions) == ((1, 2), (32,))
    u = recipe("digits").replace(unet=dict(image_size=32)).unet    # 8 is a level still
    assert u.attention_resolutions == (8,) and u.resolutions == (32, 16, 8)


@pytest.mark.parametrize("memory", [10**9, 0])
def test_a_folder_is_grey_for_a_grey_network(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(recipes, "load_files", partial(load_files, memory=memory))
    greys(tmp_path, [f"{i:02}.png" for i in range(40)])
    r = recipe("folder", "smoke").replace(root=str(tmp_path), unet=dict(
        image_size=8, in_channels=1, out_channels=1, base_channels=8, groups=4), steps=2,
        batch_size=4, sample_every=0)
    images = r.images()
    assert images.shape[1:] == (1, 8, 8) and isinstance(images, torch.Tensor) == bool(memory)
    shown = images[torch.arange(len(images))][:, 0, 0, 0].tolist()
    assert shown == [i for i in range(40) if not recipes._held_out(f"{i:02}.png")]
    run = r.trainer(device="cpu", progress=False).train()
    assert run.held_out.parts[0].shape == (40 - len(shown), 1, 8, 8)


def test_a_run_measures_on_what_its_data_set_keeps_back():
    r = recipe("digits", "smoke").replace(steps=5, batch_size=2, unet=dict(base_channels=8))
    run = r.trainer(device="cpu", progress=False).train()
    held = digits(False)[0]
    assert 0 < run.history[0]["held_out"] < 2 and len(run.held_out.parts[0]) == 128
    flat = held.float().flatten(1) / 127.5 - 1
    assert all(bool((flat == x).all(1).any()) for x in run.held_out.parts[0].flatten(1))


# Runs of before


@pytest.mark.parametrize("there, tracker", [(True, "tensorboard"), (False, ""), (None, "")])
def test_a_recipe_with_a_tensorboard_is_read(there, tracker):
    values = recipe("digits").to_dict()
    del values["train"]["tracker"], values["train"]["minutes"]
    if there is not None: values["train"]["tensorboard"] = there
    r = Recipe.from_dict(json.loads(json.dumps(values)))
    assert r == recipe("digits").replace(tracker=tracker)
    assert recipe("digits").replace(tensorboard=bool(there)) == r


def test_held_out_images_are_refused_where_an_older_run_may_have_trained_on_them(tmp_path):
    "Every tenth by name was held out once; today it is a hash of the name."
    greys(tmp_path / "images", [f"{i:02}.png" for i in range(40)])
    r = recipe("folder", "smoke").replace(root=str(tmp_path / "images"), steps=1, batch_size=2,
                                          unet=dict(image_size=8, base_channels=8, groups=4))
    everything = torch.cat([r.images(True), r.images(False)])
    ninety = everything[torch.arange(40) % 10 != 0]

    def begun(name, images, run_json):
        run = tmp_path / name
        Trainer(r.network(), r.process(), images, r.train, run, "cpu", progress=False).train()
        if run_json: (run / "run.json").write_text(json.dumps(run_json))
        return run
    old = {k: v for k, v in r.to_dict().items() if k != "split"}
    recipes._check_held_out(begun("new", r.images(), r.to_dict()), r.images)
    recipes._check_held_out(begun("same", r.images(), old), r.images)
    for name, about in (("old", old), ("lost", None)):
        with pytest.raises(ValueError, match="another choice of held-out images.*fingerprint is"):
            recipes._check_held_out(begun(name, ninety, about), r.images)
    assert "split" not in recipe("digits").to_dict()
    def never(): raise AssertionError("a new run says how it was split: no image is read")
    recipes._check_held_out(tmp_path / "new", never)


def test_a_seed_beyond_64_bits_is_refused_in_words():
    assert recipe("digits").replace(seed=2**64 - 1).network()
    with pytest.raises(ValueError, match=r"seed must lie in 0 .. 2\*\*64 - 1, got 1844674407"):
        recipe("digits").replace(seed=2**64).network()


def test_a_recipe_shares_its_options_with_no_other_and_with_nobody():
    recipe("digits").diffusion["T"] = 500
    assert recipe("digits").process().T == recipe("cifar10", "paper").process().T == 1000
    values = recipe("digits").to_dict()
    made = Recipe.from_dict(values)
    values["diffusion"]["T"] = 7
    assert made.process().T == 1000
