"The command line: the whole path on a tiny model, and one clear line for each mistake."
import contextlib
import dataclasses
import importlib
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from guards import PATIENCE, started

from ddpm_nb import GaussianDiffusion, UNetConfig, data, load_pretrained, sampling, training
from ddpm_nb.engine import cli, faster, images, many, recipes, runs
from ddpm_nb.engine.cli import main
from ddpm_nb.engine.many import generators
from ddpm_nb.schedules import SCHEDULES, NoiseSchedule
from ddpm_nb.unet import UNet

ROOT = Path(cli.__file__).parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TINY = ["steps=4", "batch_size=4", "save_every=2", "log_every=2", "sample_count=4",
        "sample_steps=2", "unet.base_channels=8", "unet.groups=4", "diffusion.T=8"]


def tiny(*more):
    words = ["train", "digits", "--size", "smoke", "--device", "cpu", "--quiet"]
    return [*words, *more, "--set", *TINY]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run folder."
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(tiny("--out", str(folder))) == 0
    return folder


def fails(capsys, words, *parts, code=2):
    "The command fails with one line on stderr that holds all of `parts`, and nothing on stdout."
    capsys.readouterr()
    try: assert main([str(w) for w in words]) == code
    except SystemExit as e: assert e.code == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err, err
    for part in parts: assert part in err, err


# The path


def test_train_writes_samples_loss_and_animation(run):
    from PIL import Image
    wanted = {"run.json", "log.jsonl", "checkpoints", "samples.png", "loss.png", "loss_by_t.png",
              "reverse.gif"}
    assert {p.name for p in run.iterdir()} == wanted
    with Image.open(run / "samples.png") as im: assert im.size[0] > 64
    with Image.open(run / "reverse.gif") as im: assert im.n_frames >= 3
    assert json.loads((run / "run.json").read_text())["train"]["steps"] == 4


def test_a_finished_run_says_so_and_draws_its_pictures_again(run, capsys):
    before = (run / "samples.png").read_bytes()
    (run / "samples.png").unlink()
    assert main(tiny("--out", str(run))) == 0
    out, err = capsys.readouterr()
    assert "finished, 4 of 4 steps made" in err
    assert out.count("\n") == 1 and f"Look at {run / 'samples.png'}" in out
    assert (run / "samples.png").read_bytes() == before


def test_an_interrupted_run_goes_on_either_way(tmp_path, capsys):
    full, part = tmp_path / "full", tmp_path / "part"
    assert main(tiny("--out", str(full))) == 0
    assert main(tiny("--out", str(part), "--steps", "2")) == 0
    assert main(tiny("--out", str(part))) == 0
    assert "going on from step 2" in capsys.readouterr().err
    assert main(["train", "--resume", str(part), "--steps", "6", "--device", "cpu", "--quiet"]) == 0
    again = ["train", "--resume", str(full), "--device", "cpu", "--quiet"]
    assert main([*again, "--set", "steps=6"]) == 0
    a, b = (runs.read_checkpoint(runs.checkpoints(p)[-1])[0] for p in (full, part))
    assert all(torch.equal(v, b["ema"][k]) for k, v in a["ema"].items())


def test_ctrl_c_saves_and_tells_how_to_go_on(tmp_path):
    words = [*tiny("--out", str(tmp_path / "r")), "steps=100000", "save_every=100000"]
    process = started([sys.executable, "-m", "ddpm_nb.engine.cli", *words], text=True,
                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)
    log, end = tmp_path / "r" / "log.jsonl", time.monotonic() + PATIENCE
    while not log.exists() and process.poll() is None and time.monotonic() < end: time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert f"go on with: ddpm-nb train --resume {tmp_path / 'r'}" in err
    assert len(runs.checkpoints(tmp_path / "r")) == 1


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_sample_writes_a_grid_that_depends_on_the_seed_alone(run, tmp_path, sampler):
    files = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        path = tmp_path / name / "grid.png"
        words = ["--n", "4", "--sampler", sampler, "--steps", "4", "--seed", str(seed), "--quiet"]
        assert main(["sample", str(run), *words, "--out", str(path)]) == 0
        files.append(path.read_bytes())
        assert [p.name for p in path.parent.iterdir()] == ["grid.png"]
    assert files[0] == files[1] != files[2]


def test_sample_streams_an_npz_that_numpy_reads(run, tmp_path, capsys):
    path = tmp_path / "x.npz"
    words = ["--n", "7", "--batch", "3", "--steps", "2", "--quiet"]
    assert main(["sample", str(run), *words, "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"7 samples in {path}\n"
    with np.load(path, allow_pickle=False) as f:
        assert f.files == ["arr_0"]
        assert f["arr_0"].shape == (7, 16, 16, 1) and f["arr_0"].dtype == np.uint8
        assert len({image.tobytes() for image in f["arr_0"]}) == 7
    assert zipfile.ZipFile(path).testzip() is None


def test_sample_passes_its_options_on(run, tmp_path):
    sample = ["sample", str(run), "--n", "4", "--out", str(tmp_path / "x.npz"), "--quiet",
              "--sampler", "ddim", "--steps", "8"]
    files = []
    for words in ([], ["--no-clip"], ["--eta", "1"]):
        assert main([*sample, *words]) == 0
        with np.load(tmp_path / "x.npz") as f: files.append(torch.from_numpy(f["arr_0"]))
    model, d = runs.load_run(run)
    for got, options in zip(files, (dict(), dict(clip=False), dict(eta=1.0))):
        noise = generators(0, range(4))
        x = d.sample(model, (4, 1, 16, 16), "ddim", 8, noise, progress=False, **options)
        assert torch.equal(got, data.to_uint8(x).permute(0, 2, 3, 1))
    assert not torch.equal(files[0], files[1]) and not torch.equal(files[0], files[2])


def test_no_memory_is_told_in_one_line(run, capsys, monkeypatch):
    def no_memory(*args, **kwargs): raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(cli, "_load_model", no_memory)
    fails(capsys, ["sample", run, "--device", "cpu"], "not enough memory: choose a smaller --batch")


def drawn(run, path, *words):
    "The images that `sample` puts into an archive."
    words = ["--steps", "4", "--sampler", "ddpm", "--quiet", "--device", "cpu", *words]
    assert main([str(w) for w in ("sample", run, "--out", path, *words)]) == 0
    with np.load(path) as f: return f["arr_0"]


def same_pictures(a, b):
    "Equal but for roundings: at most 1 of 255, and that in few of the pixels."
    apart = abs(a.astype(int) - b)
    return a.shape == b.shape and apart.max() <= 1 and (apart > 0).mean() < 0.01


def test_an_image_depends_on_the_seed_and_its_number_alone(run, tmp_path):
    path = tmp_path / "x.npz"
    all_of_them = drawn(run, path, "--n", "9")
    for n, batch in ((9, 2), (9, 4), (5, 64), (1, 1)):
        assert same_pictures(drawn(run, path, "--n", n, "--batch", batch), all_of_them[:n])
    assert not same_pictures(drawn(run, path, "--n", "9", "--seed", "1"), all_of_them)


@pytest.mark.parametrize("spacing", ["even", "log_snr"])
def test_where_the_steps_are_put_is_passed_on(run, tmp_path, spacing):
    got = drawn(run, tmp_path / "x.npz", "--n", 3, "--sampler", "ddim", "--spacing", spacing)
    model, d = runs.load_run(run)
    x = d.sample(model, (3, 1, 16, 16), "ddim", 4, generators(0, range(3)), False, spacing=spacing)
    assert np.array_equal(got, data.to_uint8(x).permute(0, 2, 3, 1))


@pytest.mark.parametrize("steps, variance", [(4, "fixed_small"), (1000, "fixed_large")])
def test_ancestral_sampling_in_fewer_steps_takes_the_smaller_variance_and_says_so(
        tmp_path, capsys, monkeypatch, steps, variance):
    d = load_pretrained("digits")[1]
    assert d.variance == "fixed_large"
    shrink = lambda x, t: 0.2 * x
    monkeypatch.setattr(cli, "_inference", lambda *_: shrink)
    got = drawn("digits", tmp_path / "x.npz", "--n", 2, "--steps", steps)
    d, shape = GaussianDiffusion(d.schedule, d.prediction, variance), (2, 1, 16, 16)
    want = d.sample(shrink, shape, "ddpm", steps, generators(0, range(2)), False)
    assert np.array_equal(got, data.to_uint8(want).permute(0, 2, 3, 1))
    assert ("was taken" in capsys.readouterr().err) == (steps == 4)


def test_a_folder_holds_a_png_of_each_image_and_goes_on(run, tmp_path, capsys, monkeypatch):
    from PIL import Image
    monkeypatch.chdir(tmp_path)
    words = ["sample", str(run), "--steps", "4", "--sampler", "ddpm", "--batch", "4", "--quiet",
             "--device", "cpu", "--out"]
    archive = drawn(run, "x.npz", "--n", "10", "--batch", "4")
    for n, out in ((6, "here/"), (10, "here/"), (10, "here")):
        assert main([*words, out, "--n", str(n)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{n} samples in {out}"
    read = np.stack([np.asarray(Image.open(f"here/{i:06}.png")) for i in range(10)])
    assert np.array_equal(read, archive[..., 0])
    settings = json.loads(Path("here/settings.json").read_text())
    assert settings["spacing"] == "even"
    assert settings["sampler"] == "ddpm" and settings["steps"] == 4 and settings["seed"] == 0
    fails(capsys, [*words, "here/", "--n", "10", "--seed", "1"], "seed is 0 there and 1 here")
    fails(capsys, [*words, "here/", "--n", "10", "--weights", "last"], "weights is")
    fails(capsys, [*words, "here/", "--n", "9"], "ask for 10 of them or more")
    fails(capsys, ["sample", "digits", "--out", "here/", "--device", "cpu"], "schedule is")
    assert len(os.listdir("here")) == 11


def test_several_processes_write_no_one_file(run, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(capsys, ["sample", run, "--out", "x.npz"], "several processes fill a folder", "--out")


def test_torchrun_shares_a_folder(run, tmp_path):
    "-n, because torchrun on an older Python takes --n for an abbreviation of options of its own."
    words = ["sample", str(run), "-n", "10", "--batch", "2", "--quiet", "--device", "cpu", "--out"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*launch, "-m", "ddpm_nb", *words, str(tmp_path / "two")], text=True,
                          capture_output=True, env=ENV, timeout=540)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"10 samples in {tmp_path / 'two'}\n"
    assert main([*words, str(tmp_path / "one")]) == 0
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
                for name in ("one", "two"))
    assert one == two and len(one) == 11


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for rank in ("0", "3", "5"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert cli._device(None) == "cuda"
    assert cli._device("cpu") == "cpu" and taken == [0, 3, 1]


def test_the_figures_of_the_paper_are_drawn_of_any_model(run, tmp_path):
    from PIL import Image
    sample = ["sample", str(run), "--n", "2", "--quiet", "--device", "cpu", "--out"]
    words = {"progress": [], "between": ["--depths", "4", "8"], "real": ["--data", "digits"]}
    sizes = {}
    for name, more in words.items():
        figure = "progress" if name == "progress" else "interpolation"
        path = tmp_path / f"{name}.png"
        assert main([*sample, str(path), "--grid-of", figure, *more]) == 0
        with Image.open(path) as im: sizes[name] = im.size
    assert sizes["between"][1] > sizes["real"][1] > 0          # four rows, and two


def test_a_row_is_named_by_the_steps_of_noise_that_it_has(run, tmp_path, monkeypatch):
    "A sampler of few steps stops at few times: the nearest is taken, and said."
    from ddpm_nb import plotting
    found = []
    monkeypatch.setattr(plotting, "show_strip", lambda rows, columns, labels, **_: found.append(
        labels))
    words = "--steps 3 --sampler ddim --grid-of interpolation --n 1 --depths 1 4 8 --quiet"
    assert main(["sample", str(run), *words.split(), "--device", "cpu", "--out",
                 str(tmp_path / "x.png")]) == 0
    stops = runs.load_run(run)[1].schedule.respaced(3).timesteps + 1
    nearest = [min(stops.tolist(), key=lambda t: abs(t - depth)) for depth in (1, 4, 8)]
    assert found == [[f"t = {t}" for t in nearest]] and nearest != [1, 4, 8]


def test_what_lies_between_two_images_is_what_interpolate_makes(run):
    "Against `GaussianDiffusion.interpolate`, by algorithm 2, with the same noise."
    model, d = runs.load_run(run)
    s = many.Samples(d, model, (1, 16, 16), 5, dict(sampler="ddpm", steps=8))
    a, b = data.to_model(data.digits()[0][:4]).chunk(2)
    rows = cli._between(s, a, b, depth=6, batch=64)
    assert rows.shape == (2, 11, 1, 16, 16)
    for k in (0, 3, 10):
        encode, decode = generators(5, range(4, 6)), generators(5, range(6, 8))
        z = [torch.stack([torch.randn(x[0].shape, generator=g) for g in encode]) for x in (a, b)]
        t = torch.full((2,), 5)
        x_t = torch.lerp(d.q_sample(a, t, z[0]), d.q_sample(b, t, z[1]), k / 10)
        want = d.sample(model, a.shape, "ddpm", generator=decode, progress=False, noise=x_t,
                        start=5)
        assert torch.allclose(rows[:, k], want, atol=1e-5)
    again = cli._between(s, a, b, depth=6, batch=3)
    assert torch.allclose(again, rows, atol=1e-5)


def test_the_guesses_end_in_the_images(run):
    model, d = runs.load_run(run)
    s = many.Samples(d, model, (1, 16, 16), 0, dict(sampler="ddim", steps=8))
    labels, states, guesses = zip(*cli._record(s, 3, False, count=4))
    assert labels == ("t = 6", "t = 4", "t = 2", "t = 0")
    assert torch.equal(guesses[-1], states[-1])              # the last step ends in x0-hat itself
    assert torch.equal(data.to_uint8(states[-1]), s.draw(range(3)))


def test_sample_makes_an_animation(run, tmp_path):
    from PIL import Image
    words = ["--n", "4", "--steps", "8", "--out", str(tmp_path / "x.gif"), "--quiet"]
    assert main(["sample", str(run), *words]) == 0
    with Image.open(tmp_path / "x.gif") as im: assert im.n_frames == 9


def test_a_compiled_network_sees_one_batch_size_and_draws_the_same_images(tmp_path, monkeypatch):
    seen, made = set(), []

    class Recorded(torch.nn.Module):
        "In place of the compiled form: the same network, and it notes the sizes that it sees."
        def __init__(self, net):
            super().__init__()
            self.net = net
            made.append(net)

        def forward(self, x, t):
            seen.add((len(x), len(t)))
            return self.net(x, t)

    monkeypatch.setattr(faster, "compiled", Recorded)
    words = ["sample", "digits", "--n", "10", "--batch", "4", "--steps", "4", "--device", "cpu",
             "--quiet"]
    assert main([*words, "--out", str(tmp_path / "plain.npz")]) == 0 and not made
    assert main([*words, "--compile", "--out", str(tmp_path / "compiled.npz")]) == 0
    assert len(made) == 1 and seen == {(4, 4)}
    plain, compiled = (np.load(tmp_path / f"{name}.npz")["arr_0"].astype(int)
                       for name in ("plain", "compiled"))
    assert plain.shape == compiled.shape == (10, 16, 16, 1)
    assert abs(plain - compiled).max() <= 1                                              # rounding


def test_fid_of_another_shape_or_of_one_sample_is_refused_before_anything_is_drawn(capsys):
    words = ["evaluate", "digits", "--fid", "--device", "cpu"]
    fails(capsys, words, "compares with CIFAR-10", "these are (1, 16, 16)")
    fails(capsys, ["evaluate", "cifar10-small", "--fid", "--n", "1", "--device", "cpu"],
          "takes two samples at the least")


@pytest.mark.parametrize("words", [["--sampler", "ddim"], ["--steps", "5"], ["--eta", "0.5"],
                                   ["--spacing", "even"], ["--no-clip"]])
def test_bits_refuse_what_is_said_of_samples(capsys, words):
    fails(capsys, ["evaluate", "digits", "--n", "1", *words], "bits/dim need none")


def test_fid_refuses_what_it_would_not_listen_to(capsys):
    words = ["evaluate", "cifar10-small", "--fid", "--n", "4", "--device", "cpu"]
    fails(capsys, [*words, "--data", "folder", "--root", "."], "compares with CIFAR-10",
          "--data folder")
    fails(capsys, [*words, "--terms", "20"], "--terms is for the bound")
    fails(capsys, [*words, "--eta", "0.5"], "eta")
    fails(capsys, [*words, "--sampler", "euler"], "sampler must be one of")


@pytest.mark.parametrize("looks, words, fetched", [
    ("inception", ["--download", "--root", "here"], [(Path("here"), True, True)]),
    ("inception", ["--download", "--split", "test"], [(None, False, True)]),
    ("inception", ["--split", "train"], []), ("ours", ["--download"], [])])
def test_fid_fetches_the_images_that_it_compares_with(capsys, monkeypatch, looks, words, fetched):
    "Before a sample is drawn, and only for Inception: our classifier's statistics are here."
    from ddpm_nb.engine import metrics
    asked, named = [], {"inception": metrics.INCEPTION}.get(looks, looks)

    class Eyes: name = named
    monkeypatch.setattr(cli, "_extractor", lambda device: Eyes())
    monkeypatch.setattr(images, "cifar10", lambda root, train, download: asked.append(
        (root, train, download)))

    def measured(samples, extractor, reference, root):
        assert asked == fetched and root == (Path("here") if "--root" in words else None)
        raise ValueError("far enough")
    monkeypatch.setattr(metrics, "sample_quality", measured)
    fails(capsys, ["evaluate", "cifar10-small", "--fid", *words, "--device", "cpu"], "far enough")


def test_half_precision_is_the_networks_under_autocast(tmp_path):
    words = ["sample", "digits", "--n", "4", "--steps", "10", "--device", "cpu", "--quiet"]
    net, d = load_pretrained("digits")
    for precision in ("fp32", "bf16"):
        out = str(tmp_path / f"{precision}.npz")
        assert main([*words, "--precision", precision, "--out", out]) == 0
    with torch.autocast("cpu", torch.bfloat16):
        x = d.sample(net, (4, 1, 16, 16), "adams", 10, generators(0, range(4)), progress=False)
    full, half = (np.load(tmp_path / f"{precision}.npz")["arr_0"] for precision in ("fp32", "bf16"))
    assert np.array_equal(half, data.to_uint8(x).permute(0, 2, 3, 1).numpy())
    assert not np.array_equal(half, full)


@pytest.mark.parametrize("sampler, T, steps", [
    (None, 1000, 20), (None, 12, 12), ("adams", 1000, 20), ("unipc", 1000, 20),
    ("dpm++", 1000, 20), ("ddim", 1000, 50), ("ddim", 30, 30), ("ddpm", 1000, 1000)])
def test_without_a_word_on_steps_a_sampler_takes_as_many_as_the_help_says(sampler, T, steps):
    words = ["sample", "digits", *(["--sampler", sampler] if sampler else [])]
    d = GaussianDiffusion(NoiseSchedule.linear(T))
    net = UNet(UNetConfig(image_size=8, base_channels=8, attention_resolutions=(4,), groups=4))
    options = cli._samples(cli.parser().parse_args(words), net, d, 1).options
    assert (options["sampler"], options["steps"]) == (sampler or "adams", steps)


def test_the_pictures_of_a_run_are_drawn_with_its_seed(tmp_path, monkeypatch):
    seeds, real = [], many.Samples
    def spy(d, model, image, seed, options):
        seeds.append(seed)
        return real(d, model, image, seed, options)
    monkeypatch.setattr(many, "Samples", spy)
    assert main([*tiny("--out", str(tmp_path / "run")), "seed=5"]) == 0
    assert seeds == [5]


def test_an_interrupted_sample_leaves_no_file(run, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(many, "write_npz", interrupted)
    out = str(tmp_path / "x.npz")
    assert main(["sample", str(run), "--n", "4", "--out", out, "--quiet"]) == 130
    assert list(tmp_path.iterdir()) == []


def test_evaluate_prints_the_bound_and_its_standard_error(run, capsys):
    assert main(["evaluate", str(run), "--n", "6", "--batch", "3", "--quiet"]) == 0
    words = capsys.readouterr().out.split()
    bits, error = float(words[0]), float(words[2])
    model, d = runs.load_run(run)
    images = data.digits(False)[0]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:6]
    own = generators(0, chosen.tolist())
    total = d.bits_per_dim(model, data.to_model(images[chosen]), generator=own)["total"]
    assert bits == pytest.approx(total.mean().item(), abs=1e-3)
    assert error == pytest.approx(total.std().item() / 6**0.5, abs=1e-3)


def evaluated(capsys, *words):
    capsys.readouterr()
    assert main(["evaluate", *map(str, words), "--quiet", "--device", "cpu"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("terms", [[], ["--terms", "4"]])
def test_evaluate_gives_an_image_the_same_number_in_any_batch_and_company(run, capsys, terms):
    "To rounding; another seed is another draw."
    def found(n, batch, seed="0"):
        words = ["--n", n, "--batch", batch, "--seed", seed, "--json", *terms]
        told = json.loads(evaluated(capsys, run, *words))
        return {image["index"]: image["bits_per_dim"] for image in told["images"]}
    whole = found("8", "8")
    for part in (found("8", "1"), found("8", "3"), found("5", "2")):
        assert all(abs(bits - whole[i]) < 1e-4 for i, bits in part.items())
    other = found("297", "99", "1")
    assert max(abs(other[i] - bits) for i, bits in whole.items()) > 1e-3


def test_evaluate_is_for_one_process(run, tmp_path, capsys, monkeypatch):
    "Under torchrun each would print the result, and write it to one file."
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(capsys, ["evaluate", run, "--out", tmp_path / "x.json"],
          "for one process, and this is one of 2: leave torchrun out")
    assert not (tmp_path / "x.json").exists()


def test_evaluate_says_the_same_as_json_image_by_image(run, tmp_path, capsys):
    words, out = [run, "--n", "5", "--batch", "2"], tmp_path / "deep" / "found.json"
    line = evaluated(capsys, *words)
    found = json.loads(evaluated(capsys, *words, "--json", "--out", out))
    assert evaluated(capsys, *words, "--out", out).split(",")[0] == line.split(",")[0]
    written, seconds = json.loads(out.read_text()), "seconds"
    assert {k: v for k, v in written.items() if k != seconds} == \
        {k: v for k, v in found.items() if k != seconds}
    bits = torch.tensor([image["bits_per_dim"] for image in found["images"]], dtype=torch.float64)
    assert found["value"] == pytest.approx(bits.mean().item())
    assert found["standard_error"] == pytest.approx(bits.std().item() / 5**0.5)
    assert line.startswith(f"{found['value']:.4f} ± {found['standard_error']:.4f} bits/dim")
    chosen = torch.randperm(297, generator=torch.Generator().manual_seed(0))[:5].tolist()
    assert [image["index"] for image in found["images"]] == chosen
    assert found["data"] == "digits" and found["split"] == "test" and found["terms"] == 8
    assert list(out.parent.iterdir()) == [out]
    alone = json.loads(evaluated(capsys, run, "--n", "1", "--json"))
    assert alone["standard_error"] is None and alone["n"] == 1


def test_evaluate_estimates_the_bound_from_some_of_its_terms(run, capsys):
    found = json.loads(evaluated(capsys, run, "--n", "3", "--terms", "4", "--json"))
    assert found["terms"] == 4 and found["value"] > 0
    fails(capsys, ["evaluate", run, "--terms", "9", "--device", "cpu"], "2 .. 8, got 9")


@pytest.fixture
def eyes(tmp_path, monkeypatch):
    "A small model, and Inception that looks at its samples: both eyes, and what they see, made up."
    from ddpm_nb import save_pretrained
    from ddpm_nb.engine import metrics
    from ddpm_nb.evaluation import Statistics

    class Eyes:
        def __init__(self, name): self.name = name
        def __call__(self, images):
            small = images.float().reshape(len(images), 3, 4, -1).mean(3).flatten(1)
            return small, small[:, :10].softmax(1)

    config = dataclasses.replace(UNetConfig.small(), base_channels=8, groups=4)
    model = str(save_pretrained(tmp_path / "model", UNet(config), load_pretrained("digits")[1]))
    truth = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) * 30 + 128
    asked = []

    def reference(extractor, part, root, progress):
        asked.append(part)
        return Statistics.of(truth, extractor.name), f"the {part} images"
    monkeypatch.setattr(metrics, "_cifar10_reference", reference)
    monkeypatch.setattr(metrics, "inception_extractor", lambda device: Eyes(metrics.INCEPTION))
    monkeypatch.setattr("ddpm_nb.evaluation.cifar10_extractor", lambda device: Eyes("ours"))
    return SimpleNamespace(model=model, asked=asked)


@pytest.fixture
def no_inception(eyes, monkeypatch):
    from ddpm_nb.engine import metrics
    def absent(device): raise ImportError("FID needs torch-fidelity")
    monkeypatch.setattr(metrics, "inception_extractor", absent)


@pytest.fixture
def folder(eyes, no_inception, tmp_path):
    "24 images that the small model has drawn."
    words = ["sample", eyes.model, "--n", "24", "--steps", "2", "--quiet", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "drawn")]) == 0
    return tmp_path / "drawn"


def test_fid_is_named_so_in_inceptions_eyes(eyes, capsys):
    line = evaluated(capsys, eyes.model, "--fid", "--n", "24", "--steps", "2")
    assert line.startswith("FID ") and "Inception Score" in line and "adams, 2 steps" in line
    assert eyes.asked == ["train"]


def test_without_inception_our_classifier_looks_and_it_is_said_that_this_is_not_fid(
        eyes, no_inception, capsys):
    words = [eyes.model, "--fid", "--n", "24", "--steps", "2"]
    assert main(["evaluate", *words, "--split", "test", "--quiet", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("distance ") and "which are not FID's" in out
    assert "FID needs torch-fidelity; so our own classifier looks" in err
    found = json.loads(evaluated(capsys, *words, "--json"))
    assert found["measure"] == "classifier distance, which is not FID" and found["n"] == 24
    assert eyes.asked == ["test", "train"]


def test_a_folder_of_drawn_images_measures_as_drawing_them_does(eyes, folder, capsys):
    words = [eyes.model, "--fid", "--n", "24", "--steps", "2", "--json"]
    found = json.loads(evaluated(capsys, *words))
    again = json.loads(evaluated(capsys, folder, "--fid", "--json"))
    assert again["value"] == pytest.approx(found["value"], rel=1e-3) and again["n"] == 24
    assert again["made"]["sampler"] == "adams" and again["made"]["steps"] == 2
    (folder / "settings.json").write_text('{"seed": 0}')
    assert "drawn elsewhere" in evaluated(capsys, folder, "--fid")


def test_of_a_folder_of_drawn_images_no_more_is_asked_than_it_holds(folder, tmp_path, capsys):
    fails(capsys, ["evaluate", folder, "--fid", "--n", "25", "--device", "cpu"],
          "holds 24 images, fewer than --n 25")
    words = ["--sampler", "ddim", "--eta", "0.5", "--weights", "last", "--seed", "7", "--compile"]
    fails(capsys, ["evaluate", folder, "--fid", *words], "holds samples that are drawn: leave out "
          "--sampler, --eta, --weights, --compile, --seed")
    fails(capsys, ["evaluate", folder, "--fid", "--n", "1"], "two samples at the least")
    assert main(["sample", "digits", "--n", "2", "--steps", "1", "--quiet", "--device", "cpu",
                 "--out", str(tmp_path / "grey/")]) == 0
    fails(capsys, ["evaluate", tmp_path / "grey", "--fid"], "these are (1, 16, 16)")


def test_a_damaged_image_of_a_folder_is_named(folder, capsys):
    image = folder / "000003.png"
    damaged = bytearray(image.read_bytes())
    damaged[35] = 0
    image.write_bytes(damaged)
    assert main(["evaluate", str(folder), "--fid", "--device", "cpu"]) == 2
    assert "000003.png is missing or damaged" in capsys.readouterr().err


def test_info_tells_of_a_model_wherever_it_is(run, tmp_path, capsys):
    from ddpm_nb import save_pretrained

    def told(model):
        capsys.readouterr()
        assert main(["info", str(model)]) == 0
        return capsys.readouterr().out
    for word in ("digits, which came with the package", "438,145 weights, 0.9 MB", "1 x 16 x 16",
                 "T=1000, beta 0.0001", "prediction=v", "base_channels=16",
                 "trained on   The first 1,500 of the 1,797"):
        assert word in told("digits")
    assert "trained on   the 50,000 training images of CIFAR-10" in told("cifar10-small")
    save_pretrained(tmp_path / "saved", *runs.load_run(run))
    for word in (f"model        {tmp_path / 'saved'}\n", "T=8", "variance=fixed_large"):
        assert word in told(tmp_path / "saved")
    assert "trained on" not in told(tmp_path / "saved")
    assert told(runs.checkpoints(run)[-1]) == told(run)
    fails(capsys, ["info", "nowhere"], "there is no folder 'nowhere'", "hub name")


def test_a_recipe_of_a_file_is_trained(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--config", str(run / "run.json"), "--quiet", "--device", "cpu"]
    assert main([*words, "--out", "same"]) == 0
    a, b = (runs.read_checkpoint(runs.checkpoints(p)[-1])[0]["ema"] for p in (run, "same"))
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    assert main([*words, "--set", "seed=1", "--steps", "2"]) == 0
    held = json.loads((tmp_path / "runs" / "digits-run" / "run.json").read_text())
    before = json.loads((run / "run.json").read_text())
    assert held["train"] == before["train"] | {"seed": 1, "steps": 2}
    assert {k: v for k, v in held.items() if k != "train"} == \
        {k: v for k, v in before.items() if k != "train"}
    fails(capsys, [*words, "--size", "demo"], "with --config", "leave them out")
    fails(capsys, ["train", "digits", *words[1:]], "with --config", "leave them out")
    fails(capsys, ["train", "--resume", run, *words[1:]], "with --resume", "leave them out")
    fails(capsys, ["train", "--config", "none.json"], "there is no file none.json")
    Path("bad.json").write_text('{"data": "digits"}')
    fails(capsys, ["train", "--config", "bad.json"], "bad.json is damaged (it has no 'unet')")
    Path("bad.json").write_text(json.dumps(before | {"lr": 1, "split": "by hand"}))
    fails(capsys, ["train", "--config", "bad.json"],
          "unknown keys ['lr']; allowed: data, unet, train, diffusion, root, split, budget")


def test_minutes_settle_the_updates(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "digits", "--size", "smoke", "--device", "cpu", "--quiet", "--out", str(out),
             "--minutes", "0.05", "--set", "unet.base_channels=8", "unet.groups=4", "batch_size=4",
             "sample_count=4", "sample_steps=2", "diffusion.T=8", "steps=1000000", "warmup=0"]
    start = time.monotonic()
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "at most 0.05 minutes, 1,000,000 steps" in said and "updates in 0.05 minutes" in said
    budget = json.loads((out / "run.json").read_text())["budget"]
    assert budget["minutes"] == 0.05 and time.monotonic() - start < 120
    assert main(words) == 0
    made = re.search(r"finished, (\d+) of (\d+) steps", capsys.readouterr().err)
    assert made and made[1] == made[2] and int(made[1]) < 1_000_000
    assert json.loads((out / "run.json").read_text())["budget"] == budget
    fails(capsys, ["train", "digits", "--minutes", "-1", "--out", tmp_path], "minutes must be")


def test_info_tells_what_is_there(run, capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("cpu", "digits: demo, smoke", f"cifar10: {', '.join(recipes.RECIPES['cifar10'])}",
                 ", ".join(sampling.SAMPLERS)):
        assert word in out
    assert main(["info", str(run)]) == 0
    out = capsys.readouterr().out
    for word in ("trained on digits", "of 4", "step_00000004", "lr=0.002", "base_channels=8",
                 "prediction=eps"):
        assert word in out


# The help, which imports no torch


def commands():
    "The parser of each command, by its name."
    return next(iter(cli.parser()._subparsers._group_actions)).choices


def held(table):
    "The table of that name, or of that name with an underscore, in its module."
    module = importlib.import_module(f"ddpm_nb.{cli._TABLES[table].replace('/', '.')}")
    return vars(module).get(table, vars(module).get(f"_{table}"))


def test_the_words_of_the_help_are_the_tables_of_the_code():
    "The command line is described without importing torch: what it says must be what the code has."
    text = " ".join(" ".join(command.format_help().split()) for command in commands().values())
    for table in (sampling.SAMPLERS, recipes.DATASETS):
        *names, last = table
        assert f"{', '.join(names)} or {last}" in text
    listed = (f"{data}: {', '.join(sizes)}" for data, sizes in recipes.RECIPES.items())
    assert "; ".join(listed) in text
    precisions = f"--precision {{{','.join(held('PRECISIONS'))}}}"
    for command in ("sample", "evaluate"): assert precisions in commands()[command].format_help()


@pytest.mark.parametrize("name", cli._TABLES)
def test_a_table_read_from_the_source_is_the_one_that_its_module_holds(name):
    assert list(cli._table(name)) == list(held(name))


def test_the_sizes_of_the_recipes_are_read_from_the_source():
    read = {data: list(cli._entries(sizes)) for data, sizes in cli._table("RECIPES").items()}
    assert read == {data: list(sizes) for data, sizes in recipes.RECIPES.items()}


def test_the_keys_of_set_their_defaults_and_meanings_are_the_codes():
    keys = cli._set_keys()
    d = inspect.signature(GaussianDiffusion).parameters
    schedules = [inspect.signature(s).parameters for s in SCHEDULES.values()]
    defaults = dataclasses.asdict(training.TrainConfig())
    defaults |= {f"unet.{k}": v for k, v in dataclasses.asdict(UNetConfig()).items()}
    diffusion = {p.name: p.default for own in schedules[::-1] for p in own.values()}
    diffusion |= {p.name: p.default for p in list(d.values())[1:]} | {"schedule": "linear"}
    del diffusion["original"]
    defaults |= {f"diffusion.{k}": v for k, v in diffusion.items()}
    assert {key: default for key, (default, _) in keys.items()} == defaults
    assert all(meaning for _, meaning in keys.values())
    assert "sampler=adams" in cli._help_on_set() and "one of ddpm, ddim" in cli._help_on_set()


def test_the_keys_of_the_help_are_those_that_set_takes():
    told = {key.partition(".")[2] for key in cli._set_keys() if key.startswith("diffusion.")}
    assert told == {key for name in SCHEDULES for key in recipes.diffusion_options(name)}


@pytest.mark.parametrize("columns", ["60", "200"])
def test_every_key_of_set_is_listed_by_the_help_of_train(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    text = commands()["train"].format_help()
    for key, (default, _) in cli._set_keys().items():
        assert f"\n  {key}={cli._as_typed(default)} " in text
        read = dict([cli._setting(f"{key}={cli._as_typed(default)}")])[key]
        assert read == (list(default) if isinstance(default, tuple) else default)


def test_a_meaning_is_the_comment_beside_and_under_a_field(monkeypatch):
    text = b"""@dataclass
class C:
    a: str = "#1"      # one \xc3\xa9
                       # and more
    # the others
    b: float = 1e-3
    c: tuple = (1, 2)  # last
"""
    monkeypatch.setattr(cli, "_source", lambda module: text)
    cli._tree.cache_clear()
    read = cli._options("x", "C")
    cli._tree.cache_clear()
    assert read == {"a": ("#1", "one é and more"), "b": (1e-3, ""), "c": ((1, 2), "last")}


def test_the_help_can_be_printed_anywhere():
    for command in commands().values(): command.format_help().encode("ascii")
    assert "mirrored only where --set flip=true says so" in \
        " ".join(commands()["train"].format_help().split())
    assert not any(r.train.flip for r in recipes.RECIPES["folder"].values())


QUICK = [["--help"], ["--version"], ["fly"], [], ["sample", "x", "--colour"],
         ["train", "--steps", "0"], ["train", "--help"], ["sample", "--help"],
         ["evaluate", "--help"], ["info", "--help"]]


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_no_torch_is_imported_before_the_words_are_understood(words):
    code = ("import sys\nfrom ddpm_nb.engine.cli import main\n"
            f"try: main({words})\nexcept SystemExit as e: pass\n"
            "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and done.stdout + done.stderr


@pytest.mark.slow     # not for its minutes: a busy machine, or a cold disk, takes longer
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processor seconds of a child: POSIX only")
def test_help_and_a_mistyped_command_take_little_of_the_processor():
    "0.15 s is the aim, measured by bench/import_time.py; twice that would be an import of torch."
    import resource

    def seconds(words):
        "Of the processor, in a process of its own."
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "ddpm_nb", *words], capture_output=True, env=ENV)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for words in (["--help"], ["--version"], ["fly"], ["train", "--help"]):
        assert min(seconds(words) for _ in range(3)) < 0.3, words


def test_python_minus_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "ddpm_nb", "fly"], capture_output=True, text=True,
                          env=ENV)
    assert done.returncode == 2 and done.stderr.startswith("ddpm-nb: ")
    assert "invalid choice: 'fly'" in done.stderr


def test_help_is_quick_and_the_module_itself_imports_nothing_heavy():
    code = "import sys, runpy; sys.argv = ['ddpm-nb', '--help']\n" \
           f"try: runpy.run_path({str(Path(cli.__file__))!r}, run_name='x')['main']()\n" \
           "except SystemExit as e: assert not e.code\n" \
           "assert not {'torch', 'numpy', 'matplotlib', 'accelerate', 'PIL'} & set(sys.modules)"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                       timeout=PATIENCE)
    assert r.returncode == 0 and "train" in r.stdout and "evaluate" in r.stdout, r.stderr


def test_a_reader_that_has_had_enough_is_no_error():
    code = "import sys; from ddpm_nb.engine.cli import main; sys.exit(main(['info']))"
    reader, writer = os.pipe()
    os.close(reader)
    r = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE,
                       text=True, timeout=PATIENCE, env=ENV)
    os.close(writer)
    assert r.returncode == 141 and r.stderr == ""


def test_the_version_is_the_packages(capsys):
    from ddpm_nb import __version__
    with pytest.raises(SystemExit) as e: main(["--version"])
    assert e.value.code == 0 and capsys.readouterr().out == f"ddpm_nb {__version__}\n"


# One's own images


def test_a_folder_of_images_is_trained_on_resumed_and_measured(tmp_path, capsys, monkeypatch):
    from PIL import Image
    pictures = tmp_path / "pictures" / "deep"
    pictures.mkdir(parents=True)
    for i, image in enumerate(data.digits()[0][:23]):
        Image.fromarray(image[0].numpy()).save(pictures / f"{i:03}.png")
    (pictures / "._00.png").write_bytes(b"what a Mac leaves behind")
    monkeypatch.chdir(tmp_path)
    words = ["train", "folder", "--size", "smoke", "--root", "pictures", "--out", "run",
             "--device", "cpu", "--quiet", "--set", *TINY, "unet.image_size=16"]
    assert main(words) == 0 and "20 images" in capsys.readouterr().err
    monkeypatch.chdir("/")
    run = str(tmp_path / "run")
    assert main(["train", "--resume", run, "--steps", "6", "--device", "cpu", "--quiet"]) == 0
    capsys.readouterr()
    measure = ["evaluate", run, "--quiet", "--device", "cpu"]
    assert main(measure) == 0 and "3 test images of folder" in capsys.readouterr().out
    assert main([*measure, "--split", "train", "--n", "99"]) == 0
    assert "20 train images" in capsys.readouterr().out
    fails(capsys, ["train", "folder"], "needs their folder", "--root FOLDER")
    fails(capsys, ["train", "folder", "--root", "/nowhere"], "there is no folder /nowhere")


def test_a_run_without_a_recipe_is_not_measured_on_a_guess(tmp_path, capsys):
    small = dict(unet=dict(base_channels=8, groups=4), diffusion=dict(T=8))
    r = recipes.recipe("digits", "smoke").replace(steps=2, batch_size=4, save_every=2, **small)
    folder, images = tmp_path / "run", r.images()[:20]
    runs.Trainer(r.network(), r.process(), images, r.train, folder, "cpu", progress=False).train()
    for path in (tmp_path / "run", runs.checkpoints(tmp_path / "run")[0]):
        fails(capsys, ["evaluate", path, "--device", "cpu"],
              "say with --data on what to measure, one of digits, cifar10, folder")
        words = ["--data", "digits", "--n", "2", "--quiet", "--device", "cpu"]
        assert main(["evaluate", str(path), *words]) == 0


def test_a_network_for_another_size_is_refused_before_it_is_trained_or_measured(
        run, tmp_path, capsys, monkeypatch):
    fails(capsys, [*tiny("--out", str(tmp_path / "r")), "unet.image_size=32"],
          "have shape (1, 16, 16), the network is for (1, 32, 32)")
    coloured = torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.zeros(10)
    monkeypatch.setitem(recipes.DATASETS, "cifar10", lambda *words: coloured)
    fails(capsys, ["evaluate", run, "--data", "cifar10"],
          "for images of shape (1, 16, 16), those of cifar10 have (3, 32, 32)")


# Mistakes


def test_wrong_words_take_one_line(capsys):
    fails(capsys, [], "COMMAND")
    fails(capsys, ["fly"], "invalid choice: 'fly'", "train", "sample", "evaluate", "info")
    fails(capsys, ["train", "--steps", "0", "digits"], "whole number above 0, got '0'")
    fails(capsys, ["train", "digits", "--set", "lr"], "expected KEY=VALUE, got 'lr'")
    fails(capsys, ["train"], "one of digits, cifar10, folder, or --resume RUN")


@pytest.mark.parametrize("words, parts", [
    (["mnist"], ["one of digits, cifar10, folder, got 'mnist'"]),
    (["digits", "--size", "paper"], ["one of demo, smoke, got 'paper'"]),
    (["digits", "--set", "learning_rate=1"], ["unknown key 'learning_rate'", "lr", "batch_size"]),
    (["digits", "--set", "unet.depth=1"], ["unknown key 'unet.depth'", "unet.base_channels"]),
    (["digits", "--set", "diffusion.colour=1"],
     ["unknown key 'diffusion.colour'", "diffusion.prediction"]),
    (["digits", "--set", "diffusion.s=0.01"],
     ["unknown key 'diffusion.s'", "diffusion.beta_start"]),
    (["digits", "--set", "diffusion.schedule=cosine", "diffusion.beta_end=0.1"],
     ["unknown key 'diffusion.beta_end'", "diffusion.s,"]),
    (["digits", "--set", "model.depth=1"], ["unknown key 'model.depth'", "unet.KEY"]),
    (["digits", "--set", "batch_size=many"], ["batch_size must be of type int, got 'many'"]),
    (["digits", "--set", "compile=no"], ["compile must be of type bool, got 'no'"]),
    (["digits", "--set", "flip=1"], ["flip must be of type bool, got 1"]),
    (["digits", "--set", "unet.middle_attention=off"], ["must be a bool, got 'off'"]),
    (["digits", "--minutes", "inf"], ["minutes must be 0 or more, and finite, got inf"]),
    (["digits", "--minutes", "nan"], ["minutes must be 0 or more, and finite, got nan"]),
    (["digits", "--set", "sampler=euler"], [f"one of {', '.join(sampling.SAMPLERS)}, got 'euler'"]),
    (["digits", "--set", "precision=fp8"], ["one of fp32, bf16, fp16"]),
    (["digits", "--set", "diffusion.schedule=sigmoid"],
     ["one of linear, quadratic, constant, jsd, cosine"]),
    (["digits", "--set", "diffusion.prediction=score"], ["one of eps, x0"]),
    (["digits", "--set", "diffusion.T=many"], ["many"]),
    (["digits", "--set", "unet.dropout=2"], ["dropout must lie in [0, 1)"]),
    (["digits", "--set", "unet.base_channels=wide"], ["base_channels", "wide"]),
    (["digits", "--device", "abacus"], ["device must be one of", "cpu", "'abacus'"]),
    (["digits", "--resume", "somewhere"], ["leave them out"]),
    (["digits", "--out", ""], ["argument --out: expected a name, got ''"]),
    (["--resume", " "], ["argument --resume: expected a name, got ' '"]),
    (["digits", "--set", "diffusion.variance=learned_range"],
     ["variance 'learned_range' needs unet.out_channels=2", "unet.in_channels=1, got 1"]),
    (["digits", "--set", "unet.out_channels=2"], ["'fixed_large' needs unet.out_channels=1"]),
    (["digits", "--set", "seed=99999999999999999999"], ["seed must lie in 0 .. 2**64 - 1"]),
    (["digits", "--set", "seed=-1"], ["seed must be 0 or more, got -1"]),
    (["--resume", "nowhere"], ["no run to resume in nowhere"]),
])
def test_a_mistake_in_train_is_told_in_one_line_and_leaves_nothing(
        capsys, tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["train", *words], *parts)
    assert list(tmp_path.iterdir()) == []


def test_an_absent_gpu_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fails(capsys, ["train", "digits", "--device", "cuda"],
          "one of", "cpu on this machine, got 'cuda'")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_told_before_anything_is_done(capsys, tmp_path, run):
    (tmp_path / "file").write_text("")
    fails(capsys, ["train", "digits", "--out", tmp_path / "file" / "run"],
          "cannot write to the folder", "choose another")
    fails(capsys, ["sample", run, "--out", tmp_path / "file" / "x.png"], "file")


def test_another_configuration_is_refused_with_the_keys_that_differ(capsys, run):
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*"))
    fails(capsys, [*tiny("--out", run), "lr=0.5"],
          "another configuration", "train.lr is 0.002 there and 0.5 here", "--out")
    resume = ["train", "--resume", run, "--device", "cpu", "--quiet", "--set"]
    fails(capsys, [*resume, "unet.dropout=0.3"], "model.dropout is 0.0 there and 0.3 here")
    fails(capsys, ["train", "cifar10", "--out", run], "data is 'digits' there and 'cifar10' here")
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*")) == before


def test_missing_cifar10_says_how_to_get_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--size", "smoke", "--root", tmp_path / "none", "--device", "cpu"]
    fails(capsys, ["train", "cifar10", *words], "CIFAR-10 is not in", "download")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words, parts", [
    (["--sampler", "euler"], [f"one of {', '.join(sampling.SAMPLERS)}, got 'euler'"]),
    (["--out", "x.bmp"], ["one of .png, .npz, .gif, or in a slash: a folder, got x.bmp"]),
    (["--grid-of", "progress", "--out", "x.gif"], ["must end in one of .png, got x.gif"]),
    (["--grid-of", "progress", "--out", "x/"], ["must end in one of .png, got x/"]),
    (["--grid-of", "faces"], ["invalid choice: 'faces'", "progress", "interpolation"]),
    (["--depths", "4"], ["--depths are those of --grid-of interpolation"]),
    *((words.split(), ["real images are for --grid-of interpolation: --data names them"])
      for words in ("--data digits", "--split train", "--download", "--root here",
                    "--grid-of progress --data digits", "--grid-of interpolation --split train")),
    (["--grid-of", "interpolation", "--depths", "9"], ["depths must lie in 1 .. 8, got 9"]),
    (["--grid-of", "interpolation", "--data", "digits", "--n", "149"],
     ["149 pairs need 298 images, there are 297"]),
    (["--steps", "9"], ["1 .. 8, got 9"]),
    (["--n", "-3"], ["whole number above 0"]),
    (["--device", "abacus"], ["device must be one of"]),
    (["--out", ""], ["argument --out: expected a name, got ''"]),
    *((["--seed", seed], ["expected a whole number in -2**63 .. 2**64 - 1, got", seed])
      for seed in ("99999999999999999999", str(2**64), str(-2**63 - 1), "one")),
])
def test_a_mistake_in_sample_is_told_in_one_line_and_leaves_nothing(
        capsys, tmp_path, monkeypatch, run, words, parts):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["sample", run, *words], *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_place_for_a_picture(capsys, tmp_path, run):
    (tmp_path / "x.png").mkdir()
    fails(capsys, ["sample", run, "--out", tmp_path / "x.png"], "--out must be a file", "a folder")
    assert list((tmp_path / "x.png").iterdir()) == []


def test_what_is_no_run_is_said_to_be_none(capsys, tmp_path):
    for command in ("sample", "evaluate", "info"):
        fails(capsys, [command, tmp_path], "no run folder")
        fails(capsys, [command, ""], "expected a name, got ''")
    for command in ("sample", "evaluate"):
        fails(capsys, [command, "nowhere"], "there is no folder 'nowhere'", "hub name")


def test_a_saved_model_is_sampled_and_measured_like_a_run(run, tmp_path, capsys):
    from ddpm_nb.engine.pretrained import save_pretrained
    save_pretrained(tmp_path / "saved", *runs.load_run(run))
    for model, name in ((run, "a.png"), (tmp_path / "saved", "b.png")):
        words = ["--n", "4", "--steps", "2", "--out", str(tmp_path / name), "--quiet"]
        assert main(["sample", str(model), *words]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    capsys.readouterr()
    printed = []
    for model in (run, tmp_path / "saved"):
        assert main(["evaluate", str(model), "--n", "2", "--quiet"]) == 0
        printed.append(capsys.readouterr().out.split(",")[0])
    assert printed[0] == printed[1]
    fails(capsys, ["evaluate", tmp_path / "saved", "--data", "cifar10", "--root", tmp_path],
          "CIFAR-10 is not in")


def test_what_needs_no_recipe_goes_on_without_a_damaged_one(capsys, tmp_path, run):
    import shutil
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text('{ "data": ')
    for words, notes in ((["info", tmp_path / "run"], 1),
                         (["evaluate", tmp_path / "run", "--data", "digits", "--n", "2",
                           "--terms", "2"], 1),
                         (["sample", tmp_path / "run", "--n", "1", "--steps", "1", "--out",
                           tmp_path / "one.png"], 0)):
        assert cli.main([str(word) for word in words]) == 0
        assert capsys.readouterr().err.count("going on without it") == notes


def test_a_damaged_run_is_told_in_one_line(capsys, tmp_path, run):
    import shutil
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    fails(capsys, ["train", "--resume", tmp_path / "run"], "run.json is damaged", "delete it, and "
          f"repeat the command that began the run with --out {tmp_path / 'run'}")
    (tmp_path / "run" / "run.json").unlink()
    fails(capsys, ["train", "--resume", tmp_path / "run"], "run.json is lost: repeat the command "
          f"that began the run with --out {tmp_path / 'run'}")
    path = runs.checkpoints(tmp_path / "run")[-1] / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    fails(capsys, ["sample", tmp_path / "run"],
          "ema.safetensors is damaged", "delete it to go on from the one before it")


def test_divergence_ends_with_a_report_and_exit_code_1(capsys, tmp_path):
    capsys.readouterr()
    words = ["lr=1e30", "warmup=0", "steps=30", "grad_clip=0"]
    assert main([*tiny("--out", str(tmp_path / "r")), *words]) == 1
    err = capsys.readouterr().err
    assert "no finite number any more at step" in err and "last good checkpoint" in err
    assert "Traceback" not in err


def test_traceback_is_there_when_asked_for(tmp_path):
    with contextlib.chdir(tmp_path), pytest.raises(ValueError):
        main(["--traceback", "train", "mnist"])


def test_a_sample_that_is_terminated_leaves_nothing_behind(tmp_path):
    words = ["sample", "digits", "--n", "5000", "--quiet", "--out", tmp_path / "x.npz"]
    code = "import sys; from ddpm_nb.engine.cli import main; sys.exit(main())"
    job = started([sys.executable, "-c", code, *map(str, words)], stderr=subprocess.PIPE)
    until = time.monotonic() + PATIENCE
    while not list(tmp_path.iterdir()) and time.monotonic() < until: time.sleep(0.1)
    assert list(tmp_path.iterdir())                      # the part is there: it is sampling
    job.terminate()
    assert job.wait(timeout=PATIENCE) == 143 and not list(tmp_path.iterdir())


def test_fewer_steps_than_were_made_are_refused(capsys, run):
    before = (run / "run.json").read_text()
    fails(capsys, ["train", "--resume", run, "--steps", 2, "--device", "cpu", "--quiet"],
          "is at step 4 already")
    assert (run / "run.json").read_text() == before


@pytest.mark.parametrize("seed", [-2**63, 2**63, 2**64 - 1])
def test_every_seed_that_is_allowed_samples(run, tmp_path, seed):
    words = ["--n", "1", "--steps", "1", "--quiet", "--out", str(tmp_path / "x.png")]
    assert main(["sample", str(run), *words, "--seed", str(seed)]) == 0


def test_a_learned_variance_trains_where_the_network_says_it(tmp_path):
    out = str(tmp_path / "run")
    words = ["diffusion.variance=learned_range", "unet.out_channels=2", "seed=18446744073709551615"]
    assert main([*tiny("--out", out), *words]) == 0
    assert main(["sample", out, "--n", "1", "--quiet", "--out", str(tmp_path / "x.png")]) == 0


def test_a_training_begins_with_the_number_of_its_processes(tmp_path, capsys):
    words = tiny("--out", str(tmp_path / "run"))
    assert main([*words, "--steps", "2"]) == 0
    assert "2 steps on cpu, 1 process\n" in capsys.readouterr().err
    assert main(words) == 0
    assert "going on from step 2 of 4 on cpu, 1 process\n" in capsys.readouterr().err
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
              "-m", "ddpm_nb"]
    words = tiny("--out", str(tmp_path / "two"))
    done = subprocess.run([*launch, *words], capture_output=True, text=True, env=ENV, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("4 steps on cpu(:0)?, 2 processes\n", done.stderr)) == 1


@pytest.fixture
def babbler(tmp_path):
    "A saved model whose weights are finite, and whose answers are not."
    from ddpm_nb import UNet, load_pretrained, save_pretrained
    config = dataclasses.replace(UNetConfig.digits(), base_channels=8, groups=4)
    net, (_, d) = UNet(config), load_pretrained("digits")
    with torch.no_grad(): net.conv_out.weight.fill_(3e38)
    return str(save_pretrained(tmp_path / "model", net, d))


@pytest.mark.parametrize("kind", ["png", "npz", "gif"])
def test_answers_that_are_not_finite_end_a_sampling_in_one_line_and_without_a_file(
        babbler, tmp_path, capsys, kind):
    before = sorted(tmp_path.rglob("*"))
    words = ["--n", "2", "--steps", "3", "--quiet", "--out", tmp_path / f"x.{kind}"]
    for sampler in sampling.SAMPLERS:
        fails(capsys, ["sample", babbler, *words, "--sampler", sampler], "not finite", code=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_answers_that_are_not_finite_are_not_measured(babbler, capsys):
    fails(capsys, ["evaluate", babbler, "--n", "2", "--quiet"], "not finite", code=1)


def test_a_run_on_images_that_are_not_square_is_sampled_and_measured_in_their_shape(
        tmp_path, capsys, monkeypatch):
    wide = torch.cat([data.digits()[0][:40], data.digits()[0][40:80]], 3)
    monkeypatch.setitem(recipes.DATASETS, "wide", lambda *words: (wide, torch.zeros(len(wide))))
    small = dict(unet=dict(base_channels=8, groups=4), diffusion=dict(T=8))
    r = recipes.recipe("digits", "smoke").replace(steps=2, batch_size=4, save_every=2, **small)
    run = tmp_path / "run"
    runs.Trainer(r.network(), r.process(), wide, r.train, run, "cpu", progress=False).train()
    for model in (run, runs.checkpoints(run)[0]):
        words = ["--n", "2", "--quiet", "--device", "cpu"]
        out = tmp_path / "x.npz"
        assert main(["sample", str(model), *words, "--out", str(out)]) == 0
        with np.load(out) as f: assert f["arr_0"].shape == (2, 16, 32, 1)
        assert main(["evaluate", str(model), *words, "--data", "wide"]) == 0
        assert "2 test images of wide" in capsys.readouterr().out
        fails(capsys, ["evaluate", model, "--data", "digits"],
              "for images of shape (1, 16, 32), those of digits have (1, 16, 16)")


def test_one_image_has_no_standard_error_and_the_line_says_so(run, capsys):
    assert main(["evaluate", str(run), "--n", "1", "--quiet", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "nan" not in out and "±" not in out and out.count("\n") == 1
    assert float(out.split()[0]) > 0
    assert "one image: no standard error; 1 test image of digits" in out


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "utf-8"])
def test_a_terminal_without_the_sign_loses_no_number(run, encoding):
    words = [sys.executable, "-m", "ddpm_nb", "evaluate", str(run), "--n", "2", "--quiet"]
    done = subprocess.run([*words, "--device", "cpu"], capture_output=True,
                          env={**ENV, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    bits, sign, error, *_ = done.stdout.decode(encoding).split()
    assert float(bits) > 0 and float(error) >= 0
    assert sign == ("+-" if encoding == "ascii" else "±")


def test_a_name_that_the_terminal_cannot_print_is_no_error_after_the_work(run, tmp_path):
    words = [sys.executable, "-m", "ddpm_nb", "sample", str(run), "--n", "1", "--steps", "1"]
    done = subprocess.run([*words, "--quiet", "--out", str(tmp_path / "é.png")], text=True,
                          capture_output=True, env={**ENV, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "1 samples in" in done.stdout and (tmp_path / "é.png").exists()


def test_what_was_measured_is_told_though_its_file_cannot_be_written(run, tmp_path, capsys,
                                                                      monkeypatch):
    "And a file that cannot be there is told before anything is measured."
    (tmp_path / "results").mkdir()
    words = ["evaluate", run, "--n", "2", "--device", "cpu", "--quiet", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(cli, "_bits", lambda args: pytest.fail("it measures"))
        fails(capsys, [*words, tmp_path / "results"], "results is there")
    def full(self, text): raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_text", full)
    assert main([str(w) for w in [*words, tmp_path / "x.json"]]) == 2
    out, err = capsys.readouterr()
    assert "bits/dim" in out and "No space left" in err


def test_a_run_among_its_own_images_does_not_train_on_its_pictures(tmp_path, capsys, monkeypatch):
    "Nor a second one on those of the first, or on samples beside them; and it can be resumed."
    from ddpm_nb import digits
    from ddpm_nb.plotting import save_grid
    monkeypatch.chdir(tmp_path)
    for i, x in enumerate(digits()[0][:30]): save_grid(x, f"{i:02}.png")
    words = ["train", "folder", "--size", "smoke", "--root", ".", "--device", "cpu", "--quiet"]
    small = ["unet.base_channels=8", "unet.groups=4", "unet.image_size=16", "sample_every=2",
             "unet.channel_multipliers=[1, 2]", "unet.attention_resolutions=[8]", "steps=2"]
    assert main([*words, "--out", "runs/one", "--set", *small]) == 0
    assert main(["sample", "runs/one", "--n", "4", "--steps", "1", "--quiet", "--device", "cpu",
                 "--out", "drawn/"]) == 0
    more = ["train", "--resume", "runs/one", "--steps", "3", "--quiet", "--device", "cpu"]
    assert main(more) == 0
    capsys.readouterr()
    assert main([*words, "--out", "runs/two", "--set", *small]) == 0
    err = capsys.readouterr().err
    assert "made by a run, or by sample" in err and "runs/one" in err and "drawn" in err
    newest = [runs.checkpoints(Path("runs", name))[-1] for name in ("one", "two")]
    one, two = (runs.read_checkpoint(at, ("none",))[1]["config"] for at in newest)
    assert one["data.fingerprint"] == two["data.fingerprint"]


def test_a_folder_of_a_packaged_models_name_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["sample", "digits", "--n", "2", "--steps", "1", "--quiet", "--device", "cpu", "--out"]
    for _ in range(2): assert main([*words, "digits/"]) == 0
    assert load_pretrained("digits")[0].config == UNetConfig.digits()
    assert main(["info", "digits"]) == 0


def test_a_sample_that_was_refused_leaves_a_folder_that_the_next_may_fill(tmp_path, capsys):
    words = ["sample", "digits", "--n", "2", "--steps", "1", "--quiet", "--device", "cpu", "--out",
             f"{tmp_path}/here/"]
    fails(capsys, [*words, "--eta", "0.5"], "eta")
    assert not (tmp_path / "here").exists()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "settings.json").write_text('{"eta": 0.5}')      # of one that was stopped
    assert main(words) == 0
    assert json.loads((tmp_path / "here" / "settings.json").read_text())["eta"] == 0


def test_a_saved_model_has_no_last_weights(capsys):
    fails(capsys, ["sample", "digits", "--weights", "last"], "leave --weights out")


def test_the_last_lines_of_a_training_are_true(tmp_path, capsys, monkeypatch):
    "Of few updates there is no curve of the loss; a folder with a space can be gone on with."
    words = tiny("--out", str(tmp_path / "my run"))
    assert main([*words, "log_every=25"]) == 0
    out = capsys.readouterr().out
    assert "loss_by_t.png how it learnt" in out and not (tmp_path / "my run/loss.png").exists()
    monkeypatch.setattr(runs.Trainer, "train", lambda self: setattr(self, "stopped_by", "SIGINT"))
    assert main(tiny("--out", str(tmp_path / "your run"))) == 130
    said = capsys.readouterr().err.rpartition("go on with: ")[2]
    assert shlex.split(said) == ["ddpm-nb", "train", "--resume", str(tmp_path / "your run")]


@pytest.mark.parametrize("text", ['{"train": []}', '{"unet": 3}', "[]"])
def test_a_recipe_of_another_content_is_damaged_in_one_line(tmp_path, capsys, text):
    (tmp_path / "c.json").write_text(text)
    fails(capsys, ["train", "--config", tmp_path / "c.json"], "c.json is damaged")


def test_the_ends_of_an_interpolation_are_drawn_in_batches_too(run, tmp_path):
    sizes = set()
    real = many.Samples.draw
    def draw(self, indices, *more):
        sizes.add(len(indices))
        return real(self, indices, *more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many.Samples, "draw", draw)
        assert main(["sample", str(run), "--grid-of", "interpolation", "-n", "4", "--batch", "3",
                     "--steps", "2", "--quiet", "--device", "cpu",
                     "--out", str(tmp_path / "x.png")]) == 0
    assert sizes == {3, 2}
