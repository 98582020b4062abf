"""One seed an image; a folder that fills up, whoever writes into it and however often it stops."""
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_nb import GaussianDiffusion, NoiseSchedule, sampling
from ddpm_nb.engine import many
from ddpm_nb.engine.files import FolderLock
from ddpm_nb.engine.many import Samples, fill, generators

D = GaussianDiffusion(NoiseSchedule.linear(T=20))
SETTINGS = {"weights": "abc", "steps": 5, "seed": 0}


def model(x, t): return (0.3 * x).sin()     # each number by itself: no batch can change its bits


def samples(sampler="ddpm", image=(1, 6, 5), seed=0, net=model):
    return Samples(D, net, image, seed, dict(sampler=sampler, steps=5))


def held(folder): return {p.name: p.read_bytes() for p in folder.glob("*.png")}


# --- seeds ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", [0, 1, -2**63, 2**64 - 1])
def test_no_two_images_of_a_job_share_a_seed_in_the_32_bits_that_are_used(seed):
    numbers = {*range(20_000), *range(2**32 - 20_000, 2**32), *range(0, 2**32, 214_747)}
    seeds = [g.initial_seed() for g in generators(seed, numbers)]
    assert len(set(seeds)) == len(numbers) > 59_000 and max(seeds) < 2**32


def test_other_seeds_begin_elsewhere():
    starts = {generators(seed, [0])[0].initial_seed() for seed in range(-500, 500)}
    assert len(starts) == 1000


def test_the_noise_of_neighbours_is_independent():
    """Inner products of 300 images' noise, 44,850 pairs, each standard normal if independent: the
    largest exceeds 6.5 with a chance of 4e-6; a twin would make it 32."""
    x = torch.stack([torch.randn(1024, generator=g) for g in generators(0, range(300))]).double()
    products = (x @ x.T / 32).fill_diagonal_(0)
    assert products.abs().max() < 6.5
    assert abs(x.mean()) < 5 / x.numel()**0.5 and abs(x.var() - 1) < 5 * (2 / x.numel())**0.5


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_an_image_is_the_same_in_whatever_company_it_is_drawn(sampler):
    s = samples(sampler)
    together = s.draw(range(7))
    assert together.dtype == torch.uint8 and len({x.numpy().tobytes() for x in together}) == 7
    for part in (range(0, 3), range(2, 7), range(4, 5)):
        assert torch.equal(s.draw(part), together[part.start:part.stop])
    assert not torch.equal(samples(sampler, seed=1).draw(range(7)), together)


def test_the_noise_added_on_the_way_is_an_images_own():
    s = Samples(D, model, (1, 6, 5), 0, dict(sampler="ddim", steps=5, eta=1.0))
    assert torch.equal(s.draw(range(3, 5)), s.draw(range(5))[3:])


@pytest.mark.parametrize("options, T", [({}, 20), (dict(steps=None), 20), (dict(steps=5), 5)])
def test_the_process_is_that_of_the_times_that_are_visited(options, T):
    s = Samples(D, model, (1, 6, 5), 0, options)
    assert s.process.T == T == len(list(s.states(range(1)))) and s.draw(range(2)).shape[0] == 2


def test_states_lead_to_the_images():
    s = samples()
    *_, last = s.states(range(3))
    assert torch.equal(((last.x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8),
                       s.draw(range(3)))


# --- a folder ------------------------------------------------------------------------------------

@pytest.mark.parametrize("image", [(1, 6, 5), (3, 4, 8)])
def test_a_folder_holds_the_images_by_number(tmp_path, image):
    fill(tmp_path / "a", samples(image=image), 7, SETTINGS, 3, progress=False)
    names = [f"{i:06}.png" for i in range(7)]
    assert sorted(os.listdir(tmp_path / "a")) == [*names, "settings.json"]
    assert json.loads((tmp_path / "a" / "settings.json").read_text()) == SETTINGS
    read = [np.asarray(Image.open(tmp_path / "a" / name)) for name in names]
    drawn = samples(image=image).draw(range(7)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.stack(read).reshape(drawn.shape), drawn)
    again = torch.cat(list(many.read_back(tmp_path / "a", 5, 2)))
    assert torch.equal(again, samples(image=image).draw(range(5)))


def test_an_empty_image_is_drawn_again_and_a_damaged_one_is_named(tmp_path):
    fill(tmp_path, samples(), 3, SETTINGS, 2, progress=False)
    first = (tmp_path / "000001.png").read_bytes()
    (tmp_path / "000001.png").write_bytes(b"")
    fill(tmp_path, samples(), 3, SETTINGS, 2, progress=False)
    assert (tmp_path / "000001.png").read_bytes() == first
    (tmp_path / "000002.png").write_bytes(first[:20])
    with pytest.raises(ValueError, match="000002.png is missing or damaged: delete it"):
        list(many.read_back(tmp_path, 3, 2))


def test_what_is_there_is_not_drawn_again(tmp_path):
    drawn = []

    def counting(x, t):
        drawn.append(len(x))
        return model(x, t)

    more = lambda n: fill(tmp_path, samples(net=counting), n, SETTINGS, 4, progress=False)
    more(6)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")}
    drawn.clear()
    more(6)
    assert not drawn
    more(11)
    assert drawn == [4] * 5 + [3] * 5           # images 4 .. 7 as a batch, and those after them
    now = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.png")}
    assert len(now) == 11 and before.items() <= now.items()


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
signal.signal(signal.SIGINT, signal.default_int_handler)   # a job in the background ignores it
import test_many as t
real, calls = t.Samples.draw, []
def draw(self, indices):
    calls.append(indices)
    if len(calls) == 3: os.kill(os.getpid(), signal.{how})
    return real(self, indices)
t.Samples.draw = draw
t.fill({folder!r}, t.samples(), 40, t.SETTINGS, 4, progress=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_killed_job_goes_on_to_the_same_bits(tmp_path, how):
    folder, whole = tmp_path / "a", tmp_path / "b"
    code = KILLED.format(tests=os.path.dirname(__file__), how=how, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -getattr(signal, how), done.stderr
    assert 4 <= len(held(folder)) <= 8
    fill(folder, samples(), 40, SETTINGS, 4, progress=False)
    fill(whole, samples(), 40, SETTINGS, 4, progress=False)
    assert held(folder) == held(whole) and len(held(whole)) == 40
    assert sorted(os.listdir(folder)) == sorted(os.listdir(whole))


def test_half_written_files_are_swept_away(tmp_path):
    fill(tmp_path, samples(), 2, SETTINGS, progress=False)
    (tmp_path / ".000002.123-abcd.part.png").write_bytes(b"half")
    (tmp_path / "000001.png").unlink()
    fill(tmp_path, samples(), 4, SETTINGS, progress=False)
    assert len(os.listdir(tmp_path)) == 5


@pytest.mark.parametrize("change, said", [
    (dict(steps=6), "steps is 5 there and 6 here"), (dict(weights="x"), "weights is 'abc' there"),
    (dict(eta=1.0), "eta is None there and 1.0 here")])
def test_other_settings_are_refused_and_nothing_is_changed(tmp_path, change, said):
    fill(tmp_path, samples(), 3, SETTINGS | {"made_by": "me"}, progress=False)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"images of other settings .*{said}"):
        fill(tmp_path, samples(), 3, SETTINGS | change, progress=False)
    fill(tmp_path, samples(), 3, SETTINGS | {"made_by": "you"}, progress=False)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "000000.png").write_bytes(b"somebody's")
    (tmp_path / ".mine.part.txt").touch()
    with pytest.raises(ValueError, match="holds other files .000000.png.: give the samples"):
        fill(tmp_path, samples(), 3, SETTINGS, progress=False)
    assert sorted(os.listdir(tmp_path)) == [".mine.part.txt", "000000.png"]
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="settings.json is damaged"):
        fill(tmp_path, samples(), 3, SETTINGS, progress=False)


def test_fewer_images_than_there_are_are_refused(tmp_path):
    fill(tmp_path, samples(), 5, SETTINGS, progress=False)
    with pytest.raises(ValueError, match="up to number 4: ask for 5 of them or more"):
        fill(tmp_path, samples(), 4, SETTINGS, progress=False)


def test_a_folder_is_one_jobs_alone(tmp_path):
    with FolderLock(tmp_path), pytest.raises(OSError, match="is in use by another"):
        fill(tmp_path, samples(), 3, SETTINGS, progress=False)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_ends_the_job_in_words(tmp_path, monkeypatch):
    def full(x, path): raise OSError("No space left on device")
    monkeypatch.setattr(many, "save_grid", full)
    with pytest.raises(OSError, match="No space left"):
        fill(tmp_path, samples(), 20, SETTINGS, 2, progress=False)
    assert held(tmp_path) == {}


def test_an_archive_holds_the_same_images(tmp_path):
    many.write_npz(tmp_path / "x.npz", samples(), 7, 3, progress=False)
    with np.load(tmp_path / "x.npz") as f:
        assert np.array_equal(f["arr_0"], samples().draw(range(7)).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_counts_the_images_that_are_drawn_or_the_steps_of_a_single_batch(
        tmp_path, progress, capsys):
    def told(said): return (f" {said} " in capsys.readouterr().err) == progress
    for n, said in ((4, "4/4"), (7, "3/3")):             # four of the seven are there by then
        fill(tmp_path, samples(), n, SETTINGS, 2, progress)
        assert told(said)
    for batch, said in ((3, "7/7"), (7, "5/5")):
        many.write_npz(tmp_path / "x.npz", samples(), 7, batch, progress)
        assert told(said)


# --- several processes ---------------------------------------------------------------------------

@pytest.mark.parametrize("words, kind, said", [
    ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer", OSError,
     "another process of this command has stopped; the same command goes on"),
    ("not enough memory", RuntimeError, "^not enough memory$")])
def test_a_process_that_is_gone_is_told_and_other_errors_are_left_alone(
        monkeypatch, words, kind, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = []
    monkeypatch.setattr(many, "distributed", SimpleNamespace(
        init_process_group=lambda kind, timeout: asked.append(kind),
        destroy_process_group=lambda: asked.append("the end")))
    with pytest.raises(kind, match=said), many.team() as mates:
        assert mates == (0, 2)
        raise RuntimeError(words)
    assert asked == ["gloo", "the end"]


SHARED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_many as t
real, calls = t.Samples.draw, []
def draw(self, indices):
    calls.append(indices)
    open(os.path.join({log!r}, f"{{os.environ['RANK']}}-{{indices.start}}"), "w").close()
    if {deadly} and os.environ["RANK"] == "1" and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, indices)
t.Samples.draw = draw
t.fill({folder!r}, t.samples(), {n}, t.SETTINGS, 4, progress=False)
"""


def launched(tmp_path, folder, deadly=False, n=40):
    "Two processes on one folder; their exit status, words, and which began at which image."
    log = tmp_path / f"log{deadly}{n}"
    log.mkdir()
    (tmp_path / "job.py").write_text(SHARED.format(
        tests=os.path.dirname(__file__), log=str(log), deadly=deadly, folder=str(folder), n=n))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "job.py"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True,
                          timeout=540)
    return done.returncode, done.stderr, sorted(os.listdir(log))


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_two_processes_share_a_job_that_may_be_killed_and_make_the_same_images(tmp_path):
    folder, alone = tmp_path / "two", tmp_path / "one"
    fill(alone, samples(), 40, SETTINGS, 4, progress=False)
    code, _, _ = launched(tmp_path, folder, deadly=True)
    assert code != 0 and len(held(folder)) < 40
    there = {i for i in range(0, 40, 4)
             if all((folder / f"{k:06}.png").exists() for k in range(i, i + 4))}
    code, words, drawn = launched(tmp_path, folder)
    assert code == 0, words
    assert held(folder) == held(alone)
    # each batch that was not there was drawn, by the one whose share it is; the killed one's, too
    assert sorted(int(name.split("-")[1]) for name in drawn) == sorted({*range(0, 40, 4)} - there)
    who = {int(start) // 4: int(rank) for rank, start in (name.split("-") for name in drawn)}
    assert all(rank == number % 2 for number, rank in who.items()) and 1 in who.values()
    assert sorted(os.listdir(folder)) == sorted(os.listdir(alone))


def test_what_is_wrong_with_a_folder_is_said_once_and_ends_all_processes(tmp_path):
    fill(tmp_path / "a", samples(), 8, SETTINGS, progress=False)
    code, words, drawn = launched(tmp_path, tmp_path / "a", n=4)
    assert code != 0 and not drawn
    assert words.count("ValueError: ") == 1 and "up to number 7" in words
