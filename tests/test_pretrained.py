"""Saving and loading: both directions with diffusers' own pipeline, both layouts, all that can be
wrong with a folder; and the network as ONNX."""
import json
import os
import shutil
import warnings
from dataclasses import replace

import guards
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ddpm_nb.engine.pretrained as pretrained
from ddpm_nb.objective import PREDICTIONS, VARIANCES
from ddpm_nb.engine.pretrained import _FILES as FILES
from ddpm_nb.engine.pretrained import _WEIGHTS as WEIGHTS
from ddpm_nb.engine.pretrained import (_scheduler_from_diffusers, _scheduler_to_diffusers,
                                       export_onnx, load_pretrained, save_pretrained)
from ddpm_nb.sampling import GaussianDiffusion
from ddpm_nb.schedules import NoiseSchedule
from ddpm_nb.unet import UNet, UNetConfig

TINY = UNetConfig(image_size=8, in_channels=1, out_channels=1, base_channels=8,
                  channel_multipliers=(1, 2), blocks_per_level=1,
                  attention_resolutions=(4,), groups=4, dropout=0.1)
PICKLES = torch.__version__ >= (2, 6)       # which can be read safely; before, none is read
REFUSED = "cannot load safely: update it to 2.6"


def randomised(net, seed=0): return guards.randomised(net, seed).eval()


def our_images(net, d, seed):
    c = net.config
    shape, generator = (3, c.in_channels, c.image_size, c.image_size), torch.Generator()
    x = d.sample(net, shape, generator=generator.manual_seed(seed), progress=False)
    return (x / 2 + 0.5).clamp(0, 1)


def their_images(pipe, seed):
    pipe.set_progress_bar_config(disable=True)
    steps = pipe.scheduler.config.num_train_timesteps
    generator = torch.Generator().manual_seed(seed)
    return pipe(3, generator=generator, num_inference_steps=steps, output_type="pt").images


@pytest.fixture
def saved(tmp_path):
    "A folder with a saved tiny model."
    d = GaussianDiffusion(NoiseSchedule.linear(20))
    return save_pretrained(tmp_path / "model", randomised(UNet(TINY)), d)


SCHEDULES = {"linear": NoiseSchedule.linear(30), "quadratic": NoiseSchedule.quadratic(30),
             "cosine": NoiseSchedule.cosine(30), "constant": NoiseSchedule.constant(30),
             "listed": NoiseSchedule.from_betas(torch.linspace(0.01, 0.3, 30) ** 1.5)}


@pytest.mark.parametrize("schedule, prediction, variance", [
    *(("linear", p, v) for p in ("eps", "x0", "v")
      for v in ("fixed_small", "fixed_large", "learned_range")),
    *((s, "eps", "fixed_large") for s in SCHEDULES if s != "linear")])
def test_diffusers_samples_the_same_images_from_what_we_save(
        tmp_path, schedule, prediction, variance):
    diffusers = pytest.importorskip("diffusers")
    config = replace(TINY, out_channels=2) if variance == "learned_range" else TINY
    net, d = randomised(UNet(config)), GaussianDiffusion(SCHEDULES[schedule], prediction, variance)
    save_pretrained(tmp_path / "m", net, d)
    theirs = their_images(diffusers.DDPMPipeline.from_pretrained(tmp_path / "m"), seed=1)
    ours = our_images(net, d, seed=1)
    # float32 tables there: 1 - alpha_bar carries 6e-8, relative to beta_1 = 1e-4 or more; an eighth
    # of a grey level in all.
    assert (ours - theirs).abs().max() < 5e-4 and ours.std() > 0.05


@pytest.mark.parametrize("flat", [False, True], ids=["folders", "flat"])
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_we_sample_the_same_images_from_what_diffusers_saves(tmp_path, flat, pickled, variance):
    diffusers = pytest.importorskip("diffusers")
    ref = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4,
        attention_head_dim=4, freq_shift=1,
        flip_sin_to_cos=False, downsample_padding=0, norm_eps=1e-6,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"))
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=30, variance_type=variance)
    pipe = diffusers.DDPMPipeline(randomised(ref), scheduler)
    pipe.save_pretrained(tmp_path / "m", safe_serialization=not pickled)
    folder = tmp_path / "m"
    if flat:                                         # as google/ddpm-cifar10-32 lies on the hub
        folder = tmp_path / "flat"
        folder.mkdir()
        for part in ("unet", "scheduler"):
            for file in (tmp_path / "m" / part).iterdir(): shutil.copy(file, folder / file.name)
    net, d = load_pretrained(folder)
    assert not net.training and net.config.head_channels == 4 and d.variance == variance
    assert (our_images(net, d, 2) - their_images(pipe, 2)).abs().max() < 5e-4


def test_a_network_of_latents_is_refused(tmp_path):
    "Its three channels would pass for pictures."
    save_pretrained(tmp_path / "m", randomised(UNet(TINY)), GaussianDiffusion(SCHEDULES["linear"]))
    index = tmp_path / "m" / "model_index.json"
    values = json.loads(index.read_text())
    load_pretrained(tmp_path / "m")
    index.write_text(json.dumps(values | {"vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(ValueError, match="its samples are no images: its vqvae makes images"):
        load_pretrained(tmp_path / "m")


# --- layouts in common use -----------------------------------------------------------------------

SCRIPT = dict(      # what diffusers' script for unconditional training names, but smaller
    sample_size=16, in_channels=3, out_channels=3, layers_per_block=2, norm_num_groups=8,
    block_out_channels=(8, 8, 16), attention_head_dim=8,
    down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"))
PAPER = dict(SCRIPT, flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-6,
             attention_head_dim=None)
NETWORKS = {
    "the paper's": PAPER, "the script's": SCRIPT,
    "the course's": dict(SCRIPT, block_out_channels=(8, 16, 16, 32), down_block_types=(
        "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"), up_block_types=(
        "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D")),
    "attention all but first": dict(SCRIPT, down_block_types=(
        "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"), up_block_types=(
        "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")),
    "sines first": dict(SCRIPT, flip_sin_to_cos=False), "shift 1": dict(SCRIPT, freq_shift=1),
    "padding 0": dict(SCRIPT, downsample_padding=0), "epsilon 1e-6": dict(SCRIPT, norm_eps=1e-6),
    "no attention in the middle": dict(SCRIPT, add_attention=False),
    "one head": dict(SCRIPT, attention_head_dim=None),
    "grey": dict(SCRIPT, in_channels=1, out_channels=1), "swish": dict(SCRIPT, act_fn="swish"),
    "two sizes": dict(SCRIPT, sample_size=[16, 16])}


def assert_the_same(net, theirs):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, theirs.config.in_channels, 16, 16, generator=g)
    t = torch.tensor([0, 20, 500, 999])
    with torch.no_grad(): a, b = net(x, t), theirs.eval()(x, t).sample
    assert b.std() > 0.3 and (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_common_use_load_and_answer_as_in_diffusers(tmp_path, name):
    diffusers = pytest.importorskip("diffusers")
    theirs = randomised(diffusers.UNet2DModel(**NETWORKS[name]))
    theirs.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    assert_the_same(load_pretrained(tmp_path)[0], theirs)


@pytest.mark.parametrize("left_out", [True, False], ids=["left out", "written"])
def test_keys_that_are_left_out_are_what_diffusers_takes_them_for(tmp_path, left_out):
    "A config that an older version wrote, or a person, holds fewer keys."
    diffusers = pytest.importorskip("diffusers")
    theirs = randomised(diffusers.UNet2DModel(**SCRIPT))
    theirs.save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "DDIMScheduler"}))
    file = tmp_path / "unet" / "config.json"
    values = {k: v for k, v in json.loads(file.read_text()).items()
              if not left_out or k in SCRIPT or k == "_class_name"}
    file.write_text(json.dumps(values))
    assert_the_same(load_pretrained(tmp_path)[0], theirs)


@pytest.mark.parametrize("how", [
    dict(variant="fp16"), dict(max_shard_size="40KB"), dict(variant="fp16", max_shard_size="40KB"),
    dict(safe_serialization=False), dict(safe_serialization=False, variant="fp16"),
    dict(safe_serialization=False, max_shard_size="40KB"), dict(variant="bf16")],
    ids=lambda how: " ".join(f"{k}={v}" for k, v in how.items()))
@pytest.mark.parametrize("flat", [False, True], ids=["folders", "flat"])
def test_weights_in_half_precision_in_pieces_or_pickled_load(tmp_path, how, flat):
    diffusers = pytest.importorskip("diffusers")
    theirs = randomised(diffusers.UNet2DModel(**SCRIPT))
    if "variant" in how: theirs = theirs.to(getattr(torch, how["variant"].replace("fp", "float")
                                                    .replace("bf", "bfloat")))
    theirs.save_pretrained(tmp_path / "unet", **how)
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    if "max_shard_size" in how: assert len(list((tmp_path / "unet").iterdir())) > 3
    if flat:
        for part in ("unet", "scheduler"):
            for file in (tmp_path / part).iterdir(): shutil.move(file, tmp_path / file.name)
            (tmp_path / part).rmdir()
    net, _ = load_pretrained(tmp_path)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert_the_same(net, theirs.float())


def test_of_several_files_of_weights_the_fullest_is_read(saved):
    "A repository often holds both; and the safe one before a pickle."
    state = load_file(saved / FILES[2])
    half = {k: (v + 1).half() for k, v in state.items()}
    save_file(half, saved / "unet" / f"{WEIGHTS}.fp16.safetensors")
    torch.save(half, saved / "unet" / f"{WEIGHTS}.bin")
    bias = lambda: load_pretrained(saved)[0].conv_in.bias
    assert torch.equal(bias(), state["conv_in.bias"])
    (saved / FILES[2]).unlink()
    assert torch.equal(bias(), half["conv_in.bias"].float())
    (saved / "unet" / f"{WEIGHTS}.bin").write_bytes(b"a pickle that is not looked at")
    assert torch.equal(bias(), half["conv_in.bias"].float())


@pytest.mark.parametrize("name", pretrained._SCHEDULERS)
def test_a_solvers_config_gives_the_schedule_and_the_prediction(name):
    "As the class writes it, and with nothing but its name: its own defaults."
    diffusers = pytest.importorskip("diffusers")
    cls = getattr(diffusers, name)
    for options in ({}, dict(beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction"),
                    dict(beta_schedule="squaredcos_cap_v2")):
        theirs = cls(**options)
        written = json.loads(json.dumps(dict(theirs.config))) | {"_class_name": name}
        for values in (written, {"_class_name": name} | options):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                d = _scheduler_from_diffusers(values)
            assert torch.allclose(d.schedule.betas.float(), theirs.betas, atol=1e-6)
            assert d.prediction == {"epsilon": "eps", "v_prediction": "v"}[
                theirs.config.prediction_type]
            assert d.variance == "fixed_small"
            assert bool(said) == (theirs.config.get("clip_sample") is False)


def test_a_network_saved_with_a_solver_is_sampled_as_by_diffusers_ancestral_sampler(tmp_path):
    "The solver's file says what was trained; which sampler is run, the caller says."
    diffusers = pytest.importorskip("diffusers")
    theirs = randomised(diffusers.UNet2DModel(**SCRIPT))
    solver = diffusers.UniPCMultistepScheduler(num_train_timesteps=20, beta_end=0.3)
    diffusers.DDPMPipeline(theirs, solver).save_pretrained(tmp_path)
    net, d = load_pretrained(tmp_path)
    ancestral = diffusers.DDPMScheduler(num_train_timesteps=20, beta_end=0.3)
    want = their_images(diffusers.DDPMPipeline(theirs, ancestral), seed=1)
    assert (our_images(net, d, seed=1) - want).abs().max() < 5e-4


def test_our_networks_of_every_kind_sample_in_diffusers_pipeline(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    config = replace(TINY, cosines_first=True, frequency_shift=0, pad_all_sides=True,
                     norm_eps=1e-5, head_channels=8, middle_attention=False)
    net, d = randomised(UNet(config)), GaussianDiffusion(NoiseSchedule.linear(20, beta_end=0.3))
    save_pretrained(tmp_path / "m", net, d)
    assert load_pretrained(tmp_path / "m")[0].config == config
    theirs = their_images(diffusers.DDPMPipeline.from_pretrained(tmp_path / "m"), seed=1)
    assert (our_images(net, d, seed=1) - theirs).abs().max() < 5e-4


def test_the_hub_is_asked_for_half_precision_where_there_is_no_full(saved, monkeypatch):
    asked, state = [], load_file(saved / FILES[2])
    def snapshot(repo, **options):
        asked.append(options["allow_patterns"])
        return str(saved)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    (saved / FILES[2]).unlink()
    save_file(state, saved / "unet" / f"{WEIGHTS}.fp16.safetensors")
    load_pretrained("someone/model")
    assert len(asked) == 2 and f"unet/{WEIGHTS}.fp16.safetensors" in asked[1]
    assert not any(".bin" in p or p.endswith(".bin") for patterns in asked for p in patterns)
    assert f"unet/{WEIGHTS}-*-of-*.safetensors" in asked[0]
    assert f"{WEIGHTS}.safetensors.index.json" in asked[0]


def test_the_published_config_is_the_papers_network():
    "The two texts of google/ddpm-cifar10-32, keys as they are there: the paper's configuration."
    unet = json.loads("""{"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4",
        "act_fn": "silu", "attention_head_dim": null,
        "block_out_channels": [128, 256, 256, 256], "center_input_sample": false,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D",
        "DownBlock2D", "DownBlock2D"], "downsample_padding": 0, "flip_sin_to_cos": false,
        "freq_shift": 1, "in_channels": 3,
        "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-06,
        "norm_num_groups": 32, "out_channels": 3, "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]}""")
    scheduler = json.loads("""{"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1",
        "beta_end": 0.02, "beta_schedule": "linear",
        "beta_start": 0.0001, "clip_sample": true, "num_train_timesteps": 1000,
        "timestep_values": null, "trained_betas": null,
        "variance_type": "fixed_large"}""")
    assert pretrained._unet_from_diffusers(unet) == replace(UNetConfig.cifar10(), dropout=0.0)
    d = _scheduler_from_diffusers(scheduler)
    assert d.schedule == NoiseSchedule.linear()
    assert (d.prediction, d.variance) == ("eps", "fixed_large")


def test_the_old_names_of_attention_are_read(saved):
    "Files from before diffusers 0.15, the published CIFAR-10 weights among them."
    state = load_file(saved / FILES[2])
    olds = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    def rename(k):
        for new, old in olds.items(): k = k.replace(new, old)
        return k
    old = {rename(k): v
           for k, v in state.items()}
    assert old.keys() != state.keys()
    want = load_pretrained(saved)[0].state_dict()
    save_file(old, saved / FILES[2])
    got = load_pretrained(saved)[0].state_dict()
    for k in want: assert torch.equal(got[k], want[k])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_every_diffusion_comes_back_to_the_last_bit(schedule, prediction, variance):
    for loss, decoder in ((None, "discretized"), ("vlb", "gaussian")):
        d = GaussianDiffusion(SCHEDULES[schedule], prediction, variance, loss, decoder)
        back = _scheduler_from_diffusers(json.loads(json.dumps(_scheduler_to_diffusers(d))))
        assert torch.equal(back.schedule.betas, d.schedule.betas)
        for name in ("prediction", "variance", "loss_type", "decoder"):
            assert getattr(back, name) == getattr(d, name)


@pytest.mark.parametrize("prediction, variance, words", [
    ("mu", "fixed_large", "prediction_type given as mu must be one of"),
    ("eps", "learned", "to have 1 channels, but got 2")])
def test_diffusers_refuses_what_it_would_misread(tmp_path, prediction, variance, words):
    diffusers = pytest.importorskip("diffusers")
    config = replace(TINY, out_channels=2) if variance == "learned" else TINY
    d = GaussianDiffusion(NoiseSchedule.linear(5), prediction, variance)
    save_pretrained(tmp_path / "m", randomised(UNet(config)), d)
    with pytest.raises((ValueError, RuntimeError), match=words):
        their_images(diffusers.DDPMPipeline.from_pretrained(tmp_path / "m"), 0)


def test_loading_gives_the_same_weights_in_float32_and_draws_no_random_number(saved):
    want = randomised(UNet(TINY)).state_dict()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    net, d = load_pretrained(saved)
    assert torch.equal(torch.rand(4), expected)
    for k, v in net.state_dict().items():
        assert torch.equal(v, want[k]) and v.dtype == torch.float32 and v.device.type == "cpu"
    assert all(p.requires_grad for p in net.parameters())
    assert net.config == TINY and d.schedule == NoiseSchedule.linear(20)
    net.train()(torch.randn(2, 1, 8, 8), torch.zeros(2)).mean().backward()   # it can be trained on


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_disk_is_float32_in_memory(tmp_path, dtype):
    net = randomised(UNet(TINY))
    save_pretrained(tmp_path / "m", net, GaussianDiffusion(NoiseSchedule.linear(5)), dtype=dtype)
    for k, v in load_pretrained(tmp_path / "m")[0].state_dict().items():
        assert v.dtype == torch.float32 and torch.equal(v, net.state_dict()[k].to(dtype).float())


def test_saving_again_replaces_the_model_and_leaves_nothing_beside_it(saved):
    net = randomised(UNet(TINY), seed=9)
    save_pretrained(saved, net, GaussianDiffusion(NoiseSchedule.cosine(7)))
    loaded, d = load_pretrained(saved)
    assert torch.equal(loaded.conv_in.weight, net.conv_in.weight)
    assert d.schedule == NoiseSchedule.cosine(7)
    assert [p.name for p in saved.parent.iterdir()] == ["model"]
    files = [p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()]
    assert sorted(files) == sorted(FILES)


@pytest.mark.parametrize("when", ["writing", "moving"])
def test_a_save_that_breaks_off_leaves_the_old_model(saved, monkeypatch, when):
    before = {f: (saved / f).read_bytes() for f in FILES}
    if when == "writing":
        def fail(*args, **kwargs): raise OSError("the disk is full")
        monkeypatch.setattr("safetensors.torch.save", fail)
    else:
        moved, rename = [], os.rename                # the old one aside, the new one there: fails

        def refuse(a, b):
            moved.append(b)
            raise OSError("no")
        monkeypatch.setattr(os, "replace", refuse)
        monkeypatch.setattr(os, "rename", lambda a, b: (moved.append(b), rename(a, b)))
    net, d = randomised(UNet(TINY), 5), GaussianDiffusion(NoiseSchedule.linear(3))
    with pytest.raises(OSError): save_pretrained(saved, net, d)
    assert when == "writing" or len(moved) == 3      # the third move brings the old one back
    assert {f: (saved / f).read_bytes() for f in FILES} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    d = GaussianDiffusion(NoiseSchedule.linear(5))
    assert save_pretrained("~/m", randomised(UNet(TINY)), d) == tmp_path / "m"
    assert load_pretrained("~/m")[0].config == TINY


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_others_may_read_the_weights_as_they_may_the_rest(saved):
    assert len({(saved / f).stat().st_mode for f in FILES}) == 1


def test_a_folder_with_other_things_in_it_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        save_pretrained(tmp_path, UNet(TINY), GaussianDiffusion(NoiseSchedule.linear(3)))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_saving_refuses_in_words(tmp_path):
    net, d = UNet(TINY), GaussianDiffusion(NoiseSchedule.linear(10))
    def refused(words, *args, **options):
        with pytest.raises(ValueError, match=words):
            save_pretrained(tmp_path / "m", *args, **options)
    refused("must be a UNet, got Linear", torch.nn.Linear(1, 1), d)
    refused("must be a GaussianDiffusion", net, NoiseSchedule.linear(3))
    refused("respaced", net, d.respaced(5))
    refused("float32, float16 or bfloat16", net, d, dtype=torch.int8)
    learned = GaussianDiffusion(NoiseSchedule.linear(3), variance="learned_range")
    refused("needs unet.out_channels=2 where unet.in_channels=1, got 1", net, learned)
    with torch.no_grad(): net.conv_in.bias[0] = 1e6
    refused("not finite.*conv_in.bias", net, d, dtype=torch.float16)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError): save_pretrained(tmp_path / "file", UNet(TINY), d)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("table, kind, names", [
    (PREDICTIONS, "prediction", "eps, x0, v, mu"),
    (VARIANCES, "variance", "fixed_small, fixed_large, learned, learned_range")])
def test_what_a_reader_has_added_is_not_saved_and_the_refusal_says_what_is(
        tmp_path, monkeypatch, table, kind, names):
    monkeypatch.setitem(table, "mine", next(iter(table.values())))
    d = GaussianDiffusion(NoiseSchedule.linear(10), **{kind: "mine"})
    words = f"a saved {kind} must be one of {names}, got 'mine'"
    with pytest.raises(ValueError, match=words): save_pretrained(tmp_path / "m", UNet(TINY), d)
    assert list(tmp_path.iterdir()) == []


def turn_a_bit(path, place, bit=0):
    "Turn one bit of the numbers in a file of weights; `place` in 0 .. 1."
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + int(place * (len(data) - 1 - start))] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.777, 1.0])
def test_one_bit_that_has_turned_is_noticed(tmp_path, dtype, place):
    d = GaussianDiffusion(NoiseSchedule.linear(20))
    folder = save_pretrained(tmp_path / "model", randomised(UNet(TINY)), d, dtype)
    load_pretrained(folder)
    turn_a_bit(folder / FILES[2], place)
    with pytest.raises(ValueError, match="safetensors is damaged: its weights have the checksum "):
        load_pretrained(folder)


def test_two_weights_that_have_changed_names_are_noticed(saved):
    with safe_open(saved / FILES[2], "pt") as f: header = f.metadata()
    state = load_file(saved / FILES[2])
    one, two = (f"mid_block.resnets.{i}.conv1.weight" for i in (0, 1))
    assert not torch.equal(state[one], state[two])
    save_file({**state, one: state[two], two: state[one]}, saved / FILES[2], header)
    with pytest.raises(ValueError, match="is damaged"): load_pretrained(saved)


def test_a_file_without_a_checksum_loads_as_before(saved):
    before = load_pretrained(saved)[0].state_dict()
    save_file(load_file(saved / FILES[2]), saved / FILES[2], {"format": "pt"})
    after = load_pretrained(saved)[0].state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_diffusers_loads_what_has_a_checksum_and_saves_it_without(saved):
    diffusers = pytest.importorskip("diffusers")
    with safe_open(saved / FILES[2], "pt") as f: assert pretrained._CHECKSUM in f.metadata()
    theirs = diffusers.UNet2DModel.from_pretrained(saved / "unet")
    for name, value in load_file(saved / FILES[2]).items():
        assert torch.equal(theirs.state_dict()[name], value)
    with torch.no_grad(): theirs.conv_in.bias.add_(1)              # trained on, say
    theirs.save_pretrained(saved / "unet")
    assert torch.equal(load_pretrained(saved)[0].conv_in.bias, theirs.conv_in.bias)


def edit(file, **changes):
    def change(folder):
        values = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return change


def rewrite(change):
    def run(folder):
        state = load_file(folder / FILES[2])
        change(state)
        save_file(state, folder / FILES[2])
    return run


def pickled(value):
    def run(folder):
        (folder / FILES[2]).unlink()
        torch.save(value, folder / "unet" / f"{WEIGHTS}.bin")
    return run


def in_place_of_the_weights(data):
    def run(folder):
        (folder / FILES[2]).unlink()
        (folder / "unet" / f"{WEIGHTS}.bin").write_bytes(data)
    return run


def cut(folder):
    whole = (folder / FILES[2]).read_bytes()
    (folder / FILES[2]).write_bytes(whole[:-100])


def in_pieces(change):
    "Two files in place of the one, and their index, changed."
    def run(folder):
        state, unet = load_file(folder / FILES[2]), folder / "unet"
        (folder / FILES[2]).unlink()
        names, places = sorted(state), {}
        for i, part in enumerate((names[::2], names[1::2]), 1):
            file = f"{WEIGHTS}-0000{i}-of-00002.safetensors"
            save_file({k: state[k] for k in part}, unet / file)
            places |= dict.fromkeys(part, file)
        index = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
        (unet / f"{WEIGHTS}.safetensors.index.json").write_text(change(index))
    return run


class Trap:
    def __reduce__(self): return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize("damage, words", {
    "empty": (lambda f: (shutil.rmtree(f), f.mkdir()), "has no config.json"),
    "no config": (lambda f: (f / FILES[1]).unlink(), "has no unet/config.json"),
    "no scheduler": (lambda f: (f / FILES[3]).unlink(), "has no scheduler/scheduler_config.json"),
    "no weights": (lambda f: (f / FILES[2]).unlink(),
        "has no weights: neither .*safetensors nor .*bin"),
    "not json": (lambda f: (f / FILES[1]).write_text("{"), "unet/config.json is not a JSON file"),
    "not text": (lambda f: (f / FILES[1]).write_bytes(b"\xff\xfe\x00"), "is not a JSON file"),
    "not a table": (lambda f: (f / FILES[3]).write_text("[1]"), "table of keys"),
    "class": (edit(FILES[1], _class_name="UNet2DConditionModel"),
        "UNet2DModel, got 'UNet2DConditionModel'"),
    "no class": (edit(FILES[1], _class_name=...), "UNet2DModel, got None"),
    "scheduler class": (edit(FILES[3], _class_name="FlowMatchEulerDiscreteScheduler"),
        "the scheduler must be one of DDPMScheduler, .*, got 'FlowMatchEulerDiscreteScheduler'"),
    "no scheduler class": (edit(FILES[3], _class_name=...), "DDPMScheduler, .*, got ''"),
    "listed class": (edit(FILES[3], _class_name=["DDPMScheduler"]), r"got \['DDPMScheduler'\]"),
    "flow": (edit(FILES[3], use_flow_sigmas=True), "use_flow_sigmas must be False or absent"),
    "continuous": (edit(FILES[3], timestep_type="continuous"), "timestep_type must be 'discrete'"),
    "clock": (edit(FILES[1], flip_sin_to_cos="yes"), "cosines_first must be a bool"),
    "shift": (edit(FILES[1], freq_shift=2), "frequency_shift must be 1 or 0, got 2"),
    "fourier": (edit(FILES[1], time_embedding_type="fourier"), "must be 'positional', as in the"),
    "eps": (edit(FILES[1], norm_eps=0), "norm_eps must lie in"),
    "time": (edit(FILES[1], time_embedding_dim=7), "time_embedding_dim must be 4 x 8, got 7"),
    "padding": (edit(FILES[1], downsample_padding=2), "must be 0 .right and bottom. or 1 .all"),
    "scale shift": (edit(FILES[1], resnet_time_scale_shift="scale_shift"),
        "resnet_time_scale_shift must be 'default'"),
    "no middle": (edit(FILES[1], mid_block_type=None), "mid_block_type must be 'UNetMidBlock2D'"),
    "centred": (edit(FILES[1], center_input_sample=True), "center_input_sample must be False"),
    "oblong": (edit(FILES[1], sample_size=[8, 16]), "sample_size must be one whole number"),
    "head size": (edit(FILES[1], attention_head_dim=5), "head_channels must be None or divide"),
    "classes": (edit(FILES[1], num_class_embeds=10), "num_class_embeds"),
    "unknown": (edit(FILES[1], addition_embed_type="text"),
        "unknown keys \\['addition_embed_type'\\]"),
    "blocks": (edit(FILES[1], down_block_types=["DownBlock2D", "SkipDownBlock2D"]),
        "DownBlock2D or AttnDownBlock2D, got"),
    "lopsided": (edit(FILES[1], up_block_types=["UpBlock2D", "UpBlock2D"]),
        "way up must have its attention"),
    "lengths": (edit(FILES[1], block_out_channels=[8]), "lists of one length"),
    "channels": (edit(FILES[1], block_out_channels=[8, 12]), "whole multiples of the first"),
    "missing key": (edit(FILES[1], sample_size=...), "\\['sample_size'\\] are missing"),
    "groups": (edit(FILES[1], norm_num_groups=3), "groups must divide"),
    "schedule": (edit(FILES[3], beta_schedule="sigmoid"),
        "one of linear, scaled_linear, squaredcos_cap_v2"),
    "betas": (edit(FILES[3], trained_betas=[0.1, 2.0], num_train_timesteps=2), "betas must lie in"),
    "no beta": (edit(FILES[3], beta_start=None), r"beta_start must lie in \(0, 1\], got None"),
    "beta count": (edit(FILES[3], trained_betas=[0.1, 0.2]),
        "2 entries, num_train_timesteps is 20"),
    "steps": (edit(FILES[3], num_train_timesteps="many"), "scheduler_config.json: T must be"),
    "variance": (edit(FILES[3], variance_type="learned"), "variance_type must be one of"),
    "listed variance": (edit(FILES[3], variance_type=["fixed_small"]), "variance_type must be one"),
    "listed schedule": (edit(FILES[3], beta_schedule=["linear"]), "beta_schedule must be one of"),
    "prediction": (edit(FILES[3], prediction_type="flow"),
        "prediction_type must be one of epsilon"),
    "thresholding": (edit(FILES[3], thresholding=True), "thresholding must be False"),
    "variance channels": (edit(FILES[3], variance_type="learned_range"),
        "needs unet.out_channels=2 where"),
    "cut": (cut, "safetensors is damaged or cut short"),
    "garbage": (lambda f: (f / FILES[2]).write_bytes(b"garbage"), "damaged or cut short"),
    "missing": (rewrite(lambda s: s.pop("conv_in.weight")),
        "lacks 1 of .* tensors, the first: conv_in.weight"),
    "foreign": (rewrite(lambda s: s.update(extra=torch.zeros(1))),
        "1 tensors too many, the first: extra"),
    "shape": (rewrite(lambda s: s.update({"conv_in.bias": torch.zeros(7)})),
        r"conv_in.bias has shape \(7,\), the config says \(8,\)"),
    "dtype": (rewrite(lambda s: s.update({"conv_in.bias": torch.zeros(8, dtype=torch.int32)})),
        "conv_in.bias has dtype torch.int32"),
    "nan": (rewrite(lambda s: s["conv_in.bias"].fill_(float("nan"))), "conv_in.bias is not finite"),
    "trap": (pickled({"conv_in.weight": Trap()}), "not safe to load" if PICKLES else REFUSED),
    "bin garbage": (in_place_of_the_weights(b"garbage"), "damaged"),
    "bin empty": (in_place_of_the_weights(b""), "damaged"),
    "bin list": (pickled([torch.zeros(2)]), "table of tensors" if PICKLES else REFUSED),
    "index": (in_pieces(lambda index: "{"), "index.json is not a JSON file"),
    "index without a map": (in_pieces(lambda index: "{}"), "weight_map must give"),
    "index elsewhere": (in_pieces(lambda index: index.replace("diffusion", "../diffusion")),
        "weight_map must give, for each tensor, a file in this folder"),
    "a piece lost": (in_pieces(lambda index: index.replace("model-00002", "model-00003")),
        "names .*00003.*safetensors, which is not there: fetch"),
    "a piece unnamed": (in_pieces(lambda index: index.replace("model-00002", "model-00001")),
        "index.json lacks .* tensors, the first"),
}.values(), ids=lambda v: None)
def test_a_damaged_folder_is_refused_in_words_before_anything_is_built(
        saved, monkeypatch, damage, words):
    damage(saved)
    monkeypatch.setattr(UNet, "load_state_dict",
                        lambda *a, **k: pytest.fail("something was half loaded"))
    with pytest.raises((ValueError, OSError), match=words): load_pretrained(saved)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    for name in (tmp_path / "absent", "absent", "a/b/c", "/absent/folder", ""):
        with pytest.raises(OSError, match="hub name such as|is not a saved model"):
            load_pretrained(name)


@pytest.mark.parametrize("error, words", [
    ("LocalEntryNotFoundError", "the hub cannot be reached, and the model is not in the cache"),
    ("RepositoryNotFoundError", "no model of that name"),
    ("RevisionNotFoundError", "no revision 'v9'"), ("GatedRepoError", "granted access")])
def test_the_hub_answers_in_words(monkeypatch, error, words):
    from huggingface_hub import errors

    class Answer(getattr(errors, error)):
        def __init__(self): Exception.__init__(self, "raw text")

    def fail(*args, **kwargs): raise Answer()
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(OSError, match=words): load_pretrained("someone/model", revision="v9")


def test_hub_options_are_passed_on_and_safetensors_are_preferred(saved, monkeypatch, tmp_path):
    asked = []

    def snapshot(repo, **options):
        asked.append((repo, options))
        return str(saved)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    net, _ = load_pretrained("someone/model", revision="abc", cache_dir=tmp_path,
                             local_files_only=True)
    (repo, options), = asked
    assert repo == "someone/model" and options["revision"] == "abc"
    assert options["cache_dir"] == tmp_path and options["local_files_only"]
    assert not any(p.endswith(".bin") for p in options["allow_patterns"]) and net.config == TINY
    state = load_file(saved / FILES[2])
    (saved / FILES[2]).unlink()
    torch.save(state, saved / "unet" / f"{WEIGHTS}.bin")
    if PICKLES: load_pretrained("someone/model")
    else:
        with pytest.raises(ValueError, match=REFUSED): load_pretrained("someone/model")
    assert any(p.endswith(".bin") for p in asked[-1][1]["allow_patterns"])


def test_a_pickle_is_refused_where_pytorch_cannot_read_one_safely(saved, monkeypatch):
    state = load_file(saved / FILES[2])
    (saved / FILES[2]).unlink()
    torch.save(state, saved / "unet" / f"{WEIGHTS}.bin")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1+cpu"))
    with pytest.raises(ValueError, match=REFUSED): load_pretrained(saved)


def test_packaged_models_load_by_name(saved, monkeypatch):
    monkeypatch.setattr(pretrained, "_ASSETS", saved.parent)
    monkeypatch.chdir(saved)                         # where no folder has that name
    assert pretrained.packaged() == ["model"]
    assert load_pretrained("model")[0].config == TINY
    with pytest.raises(OSError, match="packaged model \\(model\\)"): load_pretrained("modle")


def test_the_digits_and_a_small_cifar10_are_packaged():
    assert {"digits", "cifar10-small"} <= {*pretrained.packaged()}


@pytest.mark.parametrize("name", pretrained.packaged())
def test_every_packaged_model_is_whole(name):
    net, d = load_pretrained(name)
    c = net.config
    shape = (2, c.in_channels, c.image_size, c.image_size)
    x = d.sample(net, shape, "dpm++", steps=5, progress=False)
    assert x.isfinite().all()


# --- ONNX ----------------------------------------------------------------------------------------

def test_the_exported_graph_is_the_plain_network():
    "One norm, one swish, one doubling for each there is: nothing that is meant for a compiler."
    net, d = randomised(UNet(TINY)), {}
    batch = torch.export.Dim("batch")
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([3, 500, 999])
    program = torch.export.export(net, (x, t), dynamic_shapes={"x": {0: batch}, "t": {0: batch}})
    for node in program.graph.nodes:
        name = str(node.target).split(".")[1] if "aten." in str(node.target) else ""
        d[name] = d.get(name, 0) + 1
    count = lambda kind: sum(isinstance(m, kind) for m in net.modules())
    assert d["group_norm"] == count(torch.nn.GroupNorm) and d["conv2d"] == count(torch.nn.Conv2d)
    assert d["upsample_nearest2d"] == 1 and "mean" not in d and "bitwise_xor" not in d
    for b in (1, 5):
        x, t = torch.randn(b, 1, 8, 8), torch.arange(b) * 100
        with torch.no_grad(): assert torch.allclose(program.module()(x, t), net(x, t), atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 1e-2)])
def test_onnxruntime_gives_the_networks_answers(tmp_path, dtype, tolerance):
    onnx, ort = (pytest.importorskip(m) for m in ("onnx", "onnxruntime"))
    pytest.importorskip("onnxscript")
    net = randomised(UNet(replace(TINY, head_channels=4)))
    file = export_onnx(net.train(), tmp_path / "net.onnx", dtype)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]         # weights and all
    assert net.training and net.conv_in.weight.dtype == torch.float32   # and the network as it was
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert __file__ not in str(model) and "site-packages" not in str(model)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    net.eval()
    for b in (1, 2, 7):
        x, t = torch.randn(b, 1, 8, 8), torch.randint(1000, (b,))
        out, = session.run(None, {"x": x.to(dtype).numpy(), "t": t.numpy()})
        with torch.no_grad(): want = net(x, t)
        assert out.shape == want.shape
        assert (torch.from_numpy(out).float() - want).abs().max() <= tolerance * want.abs().max()


def test_export_refuses_in_words(tmp_path):
    with pytest.raises(ValueError, match="must be a UNet, got Linear"):
        export_onnx(torch.nn.Linear(1, 1), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="float32 or float16"):
        export_onnx(UNet(TINY), tmp_path / "x.onnx", torch.int8)


def test_a_network_that_no_machine_could_build_is_refused_at_once(tmp_path):
    place = save_pretrained(tmp_path / "model", *load_pretrained("digits"))
    config = place / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"layers_per_block": 10**9}))
    with pytest.raises(ValueError, match="config.json: this network would have about"):
        load_pretrained(place)
