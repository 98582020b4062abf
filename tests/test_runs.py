"Long runs: resuming to the bit, and every accident that they meet."
import errno
import importlib.util
import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from guards import PATIENCE, run_python
from torch import nn
from torch.overrides import TorchFunctionMode

from ddpm_nb import training
from ddpm_nb.data import Batches, swiss_roll
from ddpm_nb.engine import runs
from ddpm_nb.engine.recipes import recipe
from ddpm_nb.engine.files import FolderLock
from ddpm_nb.engine.runs import Diverged, Trainer, checkpoints, load_run, read_checkpoint
from ddpm_nb.sampling import SAMPLERS, GaussianDiffusion
from ddpm_nb.schedules import NoiseSchedule
from ddpm_nb.training import TrainConfig, TrainState, draw
from ddpm_nb.unet import UNet, UNetConfig

ROOT = Path(training.__file__).parents[1]
SMALL = dict(steps=20, batch_size=8, lr=1e-2, warmup=4, ema_decay=0.9, flip=False, log_every=3,
             save_every=5, keep_last=10)


class Net(nn.Module):
    "A network for points in the plane, with dropout."
    def __init__(self, dropout=0.1):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Dropout(dropout),
                                    nn.Linear(16, 2))

    def forward(self, x, t): return self.layers(torch.cat([x, t[:, None].to(x) / 100], 1))


def net(dropout=0.1, seed=0):
    torch.manual_seed(seed)
    return Net(dropout)


def diffusion(T=100): return GaussianDiffusion(NoiseSchedule.linear(T), decoder="gaussian")
def points(): return swiss_roll(50, torch.Generator().manual_seed(0))


def trainer(folder=None, model=None, **changes):
    model, config = net() if model is None else model, TrainConfig(**{**SMALL, **changes})
    return quiet(model, diffusion(), points(), config, folder)


def quiet(*args):
    "A trainer on the CPU, without a bar."
    return Trainer(*args, device="cpu", progress=False)


def by_recipe(r, images, folder=None):
    "A trainer of a recipe's network."
    return quiet(r.network(), r.process(), images, r.train, folder)


def tiny(size="smoke", data="digits", **changes):
    "A recipe for a very small U-Net."
    unet = dict(base_channels=8, groups=4, **changes.pop("unet", {}))
    return recipe(data, size).replace(unet=unet, batch_size=changes.pop("batch_size", 4), **changes)


def same_weights(a, b):
    "Whether two networks' weights are equal, to the bit."
    a, b = a.state_dict(), b.state_dict()
    assert a and a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def assert_close_weights(a, b, **tolerance):
    "Two networks have the same weights up to rounding."
    for v, w in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(v, w, **(tolerance or {"atol": 1e-6}))


def log_lines(folder):
    "The lines of a run's log."
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps_of(found): return [int(p.name[5:]) for p in found]


def assert_same(a, b):
    "Two trainers are in the same state, to the bit."
    (files_a, state_a), (files_b, state_b) = a.snapshot(), b.snapshot()
    for name in files_a:
        assert files_a[name].keys() == files_b[name].keys()
        for key, value in files_a[name].items():
            assert torch.equal(value, files_b[name][key]), (name, key)
    for state in (state_a, state_b): state.update(seconds=0, since=state["since"][0])
    assert state_a == state_b


# The loss by t


def test_a_trainer_fills_the_histogram_with_the_losses_of_its_own_draws():
    t = trainer(model=net(0.0), lr=0.0)
    seen = torch.zeros(2, 100)
    for _ in range(20):
        t.update()
    again = trainer(model=net(0.0), lr=0.0)
    for step in range(20):
        x0 = next(again.batches)
        times, noise = draw(x0, 100, 0, step)
        losses = again.diffusion.losses(again.model, x0, times, noise).detach()
        seen *= t.loss_by_t.keep
        seen[0].index_add_(0, times, losses), seen[1].index_add_(0, times, torch.ones(8))
    assert torch.allclose(t.loss_by_t.mean(), seen[0] / seen[1], equal_nan=True, rtol=1e-5)


# Resuming


KILLED = """
import sys, os
from pathlib import Path
from test_runs import trainer
t = trainer(sys.argv[1])
for update in t.steps():
    if update.step == 10: t.save()
    if update.step == 13:                             # killed in the middle of writing a checkpoint
        def die(path, data):
            write(path, data[:len(data) // 2])
            if path.name == "optimizer.safetensors": os.kill(os.getpid(), 9)
        write, Path.write_bytes = Path.write_bytes, die
        t.save()
"""


def test_a_run_killed_and_resumed_equals_one_that_never_stopped_to_the_bit(tmp_path):
    process = run_python(KILLED, tmp_path / "killed")
    whole = trainer(tmp_path / "whole").train()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL, err
    part, kept = sorted(p.name for p in (tmp_path / "killed" / "checkpoints").iterdir())
    assert re.fullmatch(r"\.step_00000013\..+\.part", part) and kept == "step_00000010"
    resumed = trainer(tmp_path / "killed").resume()
    assert resumed.step == 10
    assert_same(resumed.train(), whole)
    assert {10, 15, 20} <= set(steps_of(checkpoints(tmp_path / "killed")))
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


@pytest.mark.parametrize("config", [dict(base_channels=8, groups=4, dropout=0.1)])
def test_a_convolutional_network_resumes_to_the_bit_too(tmp_path, config):
    "Its weights lie in memory channels last, and so must the moments of Adam when they come back."
    r = recipe("digits", "smoke").replace(unet=config, steps=6, batch_size=4, save_every=3)
    images = r.images()[:40]
    whole, first = (by_recipe(r, images, tmp_path / n) for n in "ab")
    whole.train()
    for update in first.steps():
        if update.step == 3: break
    first.save()
    assert_same(by_recipe(r, images, tmp_path / "b").resume().train(), whole)


@pytest.mark.parametrize("cuda, accumulate, processes, recorded", [
    (True, 1, 1, True), (False, 1, 1, False), (True, 2, 1, False), (True, 1, 2, False)])
def test_on_cuda_an_update_of_one_pass_is_recorded(monkeypatch, cuda, accumulate, processes,
                                                   recorded):
    "Where gradients are added up, a graph would write over them."
    monkeypatch.setattr("ddpm_nb.engine.faster.compiled", lambda net, **options: options)
    net = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(is_cuda=cuda)]))
    config = TrainConfig(compile=True, accumulate=accumulate)
    kept, options = runs._forms(net, config, processes)
    assert kept is net and options == ({"mode": "reduce-overhead"} if recorded else {})


@pytest.mark.skipif(" " in torch.__file__, reason="torch.compile links no kernels where PyTorch "
                                                  "lies in a path with a space")
def test_a_compiled_run_follows_the_plain_one_in_one_graph_and_goes_on_plain(tmp_path):
    from torch._dynamo.utils import counters
    torch._dynamo.reset()
    counters.clear()
    r = tiny(steps=4, accumulate=2, save_every=2)

    def run(folder=None, **changes):
        return by_recipe(r.replace(**changes), r.images()[:40], folder)

    for update in (compiled := run(tmp_path, compile=True)).steps():
        if update.step == 2: break
    compiled.save()
    assert counters["stats"]["unique_graphs"] == 1                # for both parts of both batches
    assert not any("_orig_mod" in key for key in compiled.snapshot()[0]["model"])
    plain, resumed = run().train(), run(tmp_path).resume().train()
    start = r.network().state_dict()
    there, here = resumed.model.state_dict(), plain.model.state_dict()
    moved = torch.cat([(v - start[k]).flatten() for k, v in here.items()])
    apart = torch.cat([(v - there[k]).flatten() for k, v in here.items()])
    assert apart.norm() < 1e-2 * moved.norm()


def test_the_log_of_a_resumed_run_has_each_line_once(tmp_path):
    whole = trainer(tmp_path / "whole").train()
    part = trainer(tmp_path / "part", save_every=5)
    for update in part.steps():
        if update.step % 3 == 0: part.log()
        if update.step == 10: part.save()
        if update.step == 13: break
    with open(tmp_path / "part" / "log.jsonl", "a") as f:
        f.write('{"step": 15, "lo')                                         # cut short by the kill
    resumed = trainer(tmp_path / "part").resume().train()
    rows = log_lines(tmp_path / "part")
    assert [r["step"] for r in rows] == [3, 6, 9, 12, 15, 18] and rows == resumed.history
    def numbers(rows): return [(r["loss"], r["grad_norm"], r["lr"]) for r in rows]
    assert numbers(rows) == numbers(whole.history)


def test_a_changed_configuration_is_refused_with_the_keys_that_differ(tmp_path):
    trainer(tmp_path).train()
    differ = "train.lr is 0.01 there and 0.5 here; train.seed is 0 there and 1 here"
    with pytest.raises(ValueError, match="another configuration: " + differ):
        trainer(tmp_path, lr=0.5, seed=1).resume()
    with pytest.raises(ValueError, match="diffusion.T is 100 there and 50 here"):
        quiet(net(), diffusion(50), points(), TrainConfig(**SMALL), tmp_path).resume()
    with pytest.raises(ValueError, match="data.fingerprint"):
        quiet(net(), diffusion(), points() + 1, TrainConfig(**SMALL), tmp_path).resume()
    with pytest.raises(ValueError, match="model.weights"):
        quiet(nn.Linear(2, 2), diffusion(), points(), TrainConfig(**SMALL), tmp_path).resume()


def test_what_does_not_change_the_result_may_change_on_resume(tmp_path):
    whole = trainer(tmp_path / "whole", net(0.0), steps=24).train()
    trainer(tmp_path / "parts", net(0.0)).train()
    changed = dict(steps=24, log_every=1, save_every=2, accumulate=2)
    longer = trainer(tmp_path / "parts", net(0.0), **changed).resume().train()
    assert longer.step == 24
    assert_close_weights(longer.model, whole.model)
    for key in runs._MAY_CHANGE: assert key.removeprefix("train.") in TrainConfig().to_dict()


def test_more_steps_are_refused_where_the_learning_rate_would_jump(tmp_path):
    trainer(tmp_path, cooldown=8).train()                                 # falls from step 12 on
    jump = "in the cooldown of 20 steps: with 40 the learning rate would jump from 0.00625 to 0.01"
    with pytest.raises(ValueError, match=jump):
        trainer(tmp_path, steps=40, cooldown=8).resume(checkpoints(tmp_path)[-2])
    early = trainer(tmp_path, steps=40, cooldown=8).resume(checkpoints(tmp_path)[1]).train()
    assert early.step == 40 and early.recent[-1].lr == pytest.approx(0.01 / 8)
    again = trainer(tmp_path, steps=40, cooldown=8).resume().train()
    assert again.step == 40                                # nothing is left to do, so nothing jumps


def test_a_run_that_went_back_loses_neither_its_new_checkpoints_nor_its_old_ones(tmp_path, capsys):
    whole = trainer(tmp_path / "whole", keep_last=2).train()
    old = trainer(tmp_path / "run", keep_last=2).train()                         # 15, 20
    path = tmp_path / "run" / "checkpoints" / "step_00000020" / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    lines = (tmp_path / "run" / "log.jsonl").read_text()
    back = trainer(tmp_path / "run", keep_last=2).resume(checkpoints(tmp_path / "run")[0])
    assert (tmp_path / "run" / "log.jsonl").read_text() == lines    # an older state: a look is free
    assert back.save().name == "step_00000015" and len(checkpoints(tmp_path / "run")) == 2
    back.train()
    note = "step_00000020 is of another continuation of this run; it is now aside_step_00000020"
    assert note in capsys.readouterr().err
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step_00000015", "step_00000020"]
    assert (tmp_path / "run" / "checkpoints" / "aside_step_00000020" / "state.json").exists()
    assert_same(trainer(tmp_path / "run", keep_last=2).resume(), whole)
    assert [r["loss"] for r in back.history] == [r["loss"] for r in old.history]


def test_a_run_killed_before_its_first_checkpoint_leaves_no_lines_to_the_next(tmp_path):
    tmp_path.joinpath("log.jsonl").write_text('{"step": 3, "loss": 9.0}\n')
    trainer(tmp_path).train()
    assert [row["step"] for row in log_lines(tmp_path)] == [3, 6, 9, 12, 15, 18]


def test_a_new_run_does_not_start_over_an_old_one(tmp_path):
    trainer(tmp_path).train()
    with pytest.raises(ValueError, match="already holds a run at step_00000020"):
        trainer(tmp_path).train()
    with pytest.raises(ValueError, match="no checkpoint"): trainer(tmp_path / "nothing").resume()


def everything_in(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("do", ["save", "log", "train", "elsewhere"])
def test_a_loop_of_ones_own_does_not_write_over_an_old_run_either(tmp_path, do):
    "Nor does a run that was begun elsewhere; and once the old one is taken up all of it goes on."
    trainer(tmp_path / "there").train()
    before = everything_in(tmp_path / "there")
    new = trainer(tmp_path / "there", lr=3e-3)
    if do == "elsewhere":
        trainer(tmp_path / "other", lr=3e-3).train()
        new.resume(checkpoints(tmp_path / "other")[1])
    else: new.update()
    with pytest.raises(ValueError, match="already holds a run at step_00000020: resume it, or"):
        getattr(new, "save" if do == "elsewhere" else do)()
    assert everything_in(tmp_path / "there") == before
    own = trainer(tmp_path / "there", steps=22).resume()
    own.update()
    assert own.log()["step"] == 21 and own.save().name == "step_00000021"
    assert own.train().step == 22


def test_a_run_goes_on_from_a_checkpoint_elsewhere_in_a_folder_of_its_own(tmp_path):
    trainer(tmp_path / "a").train()
    trainer(tmp_path / "b").resume(checkpoints(tmp_path / "a")[1]).train()
    assert [p.name for p in checkpoints(tmp_path / "b")] == ["step_00000015", "step_00000020"]


def test_no_line_is_logged_while_another_process_has_the_folder(tmp_path):
    mine, held = trainer(tmp_path), FolderLock(tmp_path)
    mine.update()
    with held, pytest.raises(OSError, match="in use by another command"): mine.log()
    assert not (tmp_path / "log.jsonl").exists()


def test_checkpoints_hold_everything_and_no_pickle(tmp_path):
    trainer(tmp_path).train()
    folder = checkpoints(tmp_path)[-1]
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
    files, state = read_checkpoint(folder)
    assert set(files) == {"model", "ema", "optimizer", "diffusion", "log"}
    for kind in ("exp_avg", "exp_avg_sq", "step"):
        assert f"{kind}.layers.0.weight" in files["optimizer"]
    assert state["step"] == 20 and state["data"]["step"] == 20 and state["format"] == 2
    assert state["code"] == runs._code_version()
    assert state["config"]["train.lr"] == 0.01 and state["config"]["diffusion.prediction"] == "eps"


@pytest.mark.parametrize("harm", ["flip a bit", "cut", "remove", "empty list"])
@pytest.mark.parametrize("name", ["model", "ema", "optimizer", "diffusion", "log", "state"])
def test_a_damaged_checkpoint_is_recognised(tmp_path, name, harm):
    trainer(tmp_path).train()
    folder = checkpoints(tmp_path)[-1]
    path = folder / (f"{name}.json" if name == "state" else f"{name}.safetensors")
    content = bytearray(path.read_bytes())
    if harm == "flip a bit":
        if name == "state": content = content.replace(b'"step": 20', b'"step": 90')
        else: content[-3] ^= 1
        assert content != path.read_bytes()
        path.write_bytes(content)
    elif harm == "cut": path.write_bytes(content[:100])
    elif harm == "empty list": path.write_bytes(b"[]")
    else: path.unlink()
    with pytest.raises(ValueError, match="damaged|not a whole checkpoint"):
        trainer(tmp_path).resume()
    assert trainer(tmp_path).resume(checkpoints(tmp_path)[-2]).step == 15


def test_an_error_of_a_library_is_no_damage_that_deleting_would_mend(tmp_path, monkeypatch):
    import safetensors.torch
    trainer(tmp_path, steps=1).train()
    def broken(data): raise ValueError("the library's own")
    monkeypatch.setattr(safetensors.torch, "load", broken)
    with pytest.raises(ValueError, match="^the library's own$"):
        read_checkpoint(checkpoints(tmp_path)[0])


def test_tied_weights_and_a_config_of_another_kind_can_be_saved(tmp_path):
    class Tied(Net):
        config = {"of": "another library"}
        def __init__(self):
            super().__init__()
            self.same = self.layers

    torch.manual_seed(0)
    first = trainer(tmp_path, Tied()).train()
    assert_same(trainer(tmp_path, Tied()).resume(), first)


def test_the_rate_in_the_log_is_that_of_its_own_updates(tmp_path):
    "Also where the loop is the caller's, and where the log of a resumed run is gone."
    t, begun = trainer(tmp_path), time.monotonic()
    for update in t.steps():
        if update.step % 5 == 0: t.log()
    assert len(t.recent) == 0 and t.since == (20, t.seconds)
    assert 0 < t.seconds <= time.monotonic() - begun
    assert sum(5 / r["steps_per_second"] for r in t.history) == pytest.approx(t.seconds)
    for r in t.history: assert r["images_per_second"] == pytest.approx(8 * r["steps_per_second"])
    t.seconds += 3600
    t.since = (20, t.seconds)
    t.save()
    (tmp_path / "log.jsonl").unlink()
    resumed = trainer(tmp_path, steps=23).resume().train()
    assert resumed.seconds > 3600 and resumed.history[0]["steps_per_second"] > 1


def test_updates_that_nobody_logs_are_not_collected_for_ever():
    t = trainer(log_every=4, steps=100)
    for _ in t.steps(): pass
    assert [u.step for u in t.recent] == [97, 98, 99, 100]


def test_a_line_is_logged_every_so_many_updates(tmp_path):
    trainer(tmp_path, log_every=7).train()
    assert [row["step"] for row in log_lines(tmp_path)] == [7, 14]


def test_the_last_n_and_every_kth_checkpoint_are_kept(tmp_path):
    trainer(tmp_path, save_every=2, keep_last=3, keep_every=8).train()
    assert [int(p.name[5:]) for p in checkpoints(tmp_path)] == [8, 16, 18, 20]


# Accidents


STOPPED = """
import sys
from test_runs import trainer
t = trainer(sys.argv[1], steps=10**6, save_every=10**6)
t.train()
print(t.step, t.stopped_by)
"""


def wait_for_the_log(folder, *processes):
    "Until a run of processes of its own has begun its log; they may die, or never get there."
    log, end = folder / "log.jsonl", time.monotonic() + PATIENCE
    while not log.exists() or not log.stat().st_size:
        for process in processes: assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing was logged"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    process = run_python(STOPPED, tmp_path)
    wait_for_the_log(tmp_path, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    step, name = out.split()
    assert process.returncode == 0 and name == signal.Signals(number).name
    assert f"stopped by {name} after step {step}" in err
    assert [int(p.name[5:]) for p in checkpoints(tmp_path)] == [int(step)]
    assert trainer(tmp_path, steps=int(step) + 2).resume().train().step == int(step) + 2


SHOVED = """
import signal, sys
from test_runs import net, trainer
signal.signal(signal.SIGTERM, signal.SIG_IGN)      # which is what a second signal meets at the end
t = trainer(sys.argv[1], net(0.0), steps=10**6, save_every=10**6, log_every=1)
t.train()
print(t.step, t.stopped_by, flush=True)
"""


def start_two(code, *args):
    "Two processes that train together over gloo; they meet here, at a port that is taken already."
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
               MASTER_PORT=str(store.port), ACCELERATE_USE_CPU="true",
               TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    pair = [run_python(code, *args, RANK=str(r), LOCAL_RANK=str(r), **env) for r in range(2)]
    pair[0].store = store      # which is open as long as the two are
    return pair


def test_two_processes_told_twice_to_stop_finish_the_same_step_and_save_once(tmp_path):
    "As under a scheduler that signals every process, and a launcher that passes the signal on."
    workers = start_two(SHOVED, tmp_path)
    wait_for_the_log(tmp_path, *workers)
    workers[1].send_signal(signal.SIGTERM)
    time.sleep(0.01)
    for w in workers: w.send_signal(signal.SIGTERM)
    results = [w.communicate(timeout=PATIENCE) for w in workers]
    assert [w.returncode for w in workers] == [0, 0], results
    (step, name), (other, _) = (out.split(maxsplit=1) for out, _ in results)
    assert step == other and name.strip() in ("SIGTERM", "another process")
    assert [int(p.name[5:]) for p in checkpoints(tmp_path)] == [int(step)]


FULL = """
import errno, os, sys
from pathlib import Path
from test_runs import net, trainer
write = Path.write_bytes
def full(path, data):
    if "step_00000010" in str(path): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(path, data)
Path.write_bytes = full
trainer(sys.argv[1], net(0.0), steps=15, save_every=5).train()
"""


def test_two_processes_go_on_together_when_the_disk_is_full(tmp_path):
    workers = start_two(FULL, tmp_path)
    errors = [w.communicate(timeout=PATIENCE)[1] for w in workers]
    assert [w.returncode for w in workers] == [0, 0], errors
    assert "cannot save at step 10 (No space left on device)" in errors[0]
    assert [int(p.name[5:]) for p in checkpoints(tmp_path)] == [5, 15]


class Poisoned(Net):
    "Answers NaN from its nth call on, or gives an infinite gradient."
    def __init__(self, calls, how):
        super().__init__()
        self.calls, self.how = calls, how

    def forward(self, x, t):
        self.calls -= self.training
        y = super().forward(x, t)
        if self.calls >= 0: return y
        if self.how == "gradient": y.register_hook(lambda g: g * math.inf)
        return y * math.nan if self.how == "loss" else y


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("log_every, save_every", [(3, 5), (100, 5), (3, 100)])
def test_a_number_that_is_not_finite_stops_the_run_and_harms_no_checkpoint(tmp_path, how, log_every,
                                                                          save_every):
    torch.manual_seed(0)
    t = trainer(tmp_path, Poisoned(11, how), log_every=log_every, save_every=save_every)
    good = [5, 10] if save_every == 5 else []
    last = "step_00000010" if good else "none"
    report = rf"at step 12: loss .*last good checkpoint: (\S*/)?{last}\."
    with pytest.raises(Diverged, match=report): t.train()
    assert steps_of(checkpoints(tmp_path)) == good
    for folder in checkpoints(tmp_path):
        files, _ = read_checkpoint(folder)
        for name in ("model", "ema", "optimizer"):
            assert all(v.isfinite().all() for v in files[name].values())
    with pytest.raises(Diverged): t.save()


@pytest.mark.parametrize("which", ["model", "ema"])
def test_weights_that_are_not_finite_are_not_saved_though_every_loss_was(tmp_path, which):
    t = trainer(tmp_path)
    t.update()
    weights = next((t.model if which == "model" else t.ema.model).parameters())
    with torch.no_grad(): weights.view(-1)[0] = math.nan
    with pytest.raises(Diverged, match="no longer finite at step 1; not saved"): t.save()
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_needs_a_folder():
    with pytest.raises(ValueError, match="no folder to save in"): trainer().save()


def test_a_line_of_the_log_needs_an_update():
    with pytest.raises(ValueError, match="no update to log"): trainer().log()


def test_a_second_ctrl_c_interrupts_but_not_an_echo_of_the_first_nor_a_sigterm(monkeypatch):
    now, before = [0.0], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with runs._StopSignals() as stop:
        for number, now[0] in ((signal.SIGINT, 0.0), (signal.SIGINT, 0.5), (signal.SIGTERM, 2.0)):
            try: signal.raise_signal(number)
            except KeyboardInterrupt: pytest.fail(f"interrupted by {number!r} at {now[0]} s")
            assert stop.name == "SIGINT"
        now[0] = 3.0
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_in_a_thread_trains_too():
    with ThreadPoolExecutor(1) as pool: run = pool.submit(trainer(steps=2).train).result()
    assert run.step == 2


def test_a_disk_that_fills_up_costs_no_checkpoint_and_no_progress(tmp_path, monkeypatch, capsys):
    whole = trainer(tmp_path / "whole").train()
    write, calls = Path.write_bytes, []

    def full(path, data):
        calls.append(path)
        if "step_00000010" in str(path):
            write(path, data[:len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    t = trainer(tmp_path / "full", keep_last=2).train()
    note = "cannot save at step 10 (No space left on device); training goes on"
    assert note in capsys.readouterr().err and calls
    assert [int(p.name[5:]) for p in checkpoints(tmp_path / "full")] == [15, 20]
    assert not list((tmp_path / "full" / "checkpoints").glob(".*"))
    assert same_weights(t.model, whole.model)


def test_a_real_write_error_at_the_end_is_raised_and_the_older_checkpoint_stays_whole(tmp_path):
    t = trainer(tmp_path, save_every=10)
    for update in t.steps():
        if update.step == 10: break
    t.save()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="cannot write to .*the checkpoints there are whole"):
            t.train()
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000010"]
    t.save()                                                 # there is room again: nothing was lost
    assert trainer(tmp_path).resume().step == 20


def full_at_20(monkeypatch, room_of):
    "A disk that has no room for step 20 until the checkpoint `room_of` is gone; what was tried."
    write, tries = Path.write_bytes, []

    def full(path, data):
        if "step_00000020" in str(path):
            tries.append(path.name)
            if any(path.parent.parent.glob(f"{room_of}*")):
                write(path, data[:len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    return tries


def test_the_oldest_checkpoint_makes_room_for_the_last_on_a_full_disk(
        tmp_path, monkeypatch, capsys):
    full_at_20(monkeypatch, "step_00000005")
    t = trainer(tmp_path, keep_last=10).train()
    assert steps_of(checkpoints(tmp_path)) == [10, 15, 20]
    assert "step_00000005 made room for the last checkpoint" in capsys.readouterr().err
    assert_same(trainer(tmp_path).resume(), t)
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("options, left", [
    (dict(keep_last=1), [15]),                          # the only good one stays
    (dict(keep_last=2, keep_every=5), [5, 10, 15]),     # kept for good
    (dict(keep_last=10), [10, 15]),                     # one makes room, and that was not enough
])
def test_no_other_checkpoint_makes_room(tmp_path, monkeypatch, options, left):
    tries = full_at_20(monkeypatch, "step_00000015")
    with pytest.raises(OSError, match="No space left.*the checkpoints there are whole"):
        trainer(tmp_path, **options).train()
    assert steps_of(checkpoints(tmp_path)) == left
    assert tries == ["model.safetensors"] * (2 if options["keep_last"] == 10 else 1)


def test_a_checkpoint_that_cannot_be_read_stands_for_no_other(tmp_path, monkeypatch):
    trainer(tmp_path, steps=15).train()
    for path in checkpoints(tmp_path)[1:]: (path / "state.json").write_text("{")
    full_at_20(monkeypatch, "step_00000005")
    t = trainer(tmp_path).resume(checkpoints(tmp_path)[0])
    for _ in t.steps(): pass
    with pytest.raises(OSError, match="No space left"): t.save()
    assert steps_of(checkpoints(tmp_path)) == [5, 10, 15]
    assert read_checkpoint(checkpoints(tmp_path)[0])[1]["step"] == 5


def test_a_run_that_is_stopped_makes_room_as_well(tmp_path, monkeypatch):
    full_at_20(monkeypatch, "step_00000005")
    t = trainer(tmp_path, steps=40)
    stop = lambda name: "SIGTERM" if t.step == 20 else None
    monkeypatch.setattr(t, "stop_together", stop)
    t.train()
    assert steps_of(checkpoints(tmp_path)) == [10, 15, 20] and t.stopped_by == "SIGTERM"


def test_a_log_that_was_torn_by_a_full_disk_is_made_whole_when_there_is_room(tmp_path, monkeypatch,
                                                                            capsys):
    t, torn = trainer(tmp_path, log_every=1, save_every=100), []

    class Torn:
        "A file on a disk that is full in the middle of a line."
        def __init__(self, *args): self.f = open(*args)
        def __enter__(self): return self
        def __exit__(self, *exc): self.f.close()
        def write(self, data):
            self.f.write(data[:20])
            torn.append(data)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for update in t.steps():
        if update.step == 4: monkeypatch.setattr(runs, "open", Torn, raising=False)
        t.log()
        if update.step == 4:
            monkeypatch.undo()
            assert not (tmp_path / "log.jsonl").read_text().endswith("\n")
    assert len(torn) == 1 and "cannot write the log" in capsys.readouterr().err
    assert log_lines(tmp_path) == t.history
    assert [r["step"] for r in t.history] == list(range(1, 21))


@pytest.mark.parametrize("error", [
    torch.cuda.OutOfMemoryError("CUDA out of memory"), OSError(errno.ENOSPC, "disk is full"),
    ValueError("images have 1 or 3 channels, got 5"), FloatingPointError("not finite"),
    TypeError("forward() takes one more"), RuntimeError("sizes differ")], ids=repr)
def test_samples_that_fail_cost_no_checkpoint(tmp_path, monkeypatch, capsys, error):
    r = tiny(steps=4, sample_every=2, save_every=2)
    t = by_recipe(r, r.images()[:20], tmp_path)
    saved = []
    def fail(*args, **kwargs):
        saved.append([p.name for p in checkpoints(tmp_path)][-1])
        raise error
    monkeypatch.setattr(t, "sample", fail)
    t.train()
    assert saved == ["step_00000002", "step_00000004"]
    said = getattr(error, "strerror", None) or error
    assert f"no samples this time ({said})" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_ends_the_run_saved_and_mended_it_goes_on_to_the_bit(tmp_path):
    from PIL import Image

    from ddpm_nb.data import digits
    from ddpm_nb.engine.images import image_folder
    (tmp_path / "images").mkdir()
    for i, image in enumerate(digits()[0][:40]):
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{i:02}.png")
    r = tiny(data="folder", unet=dict(image_size=16), steps=12, sample_every=0)

    def run(folder): return by_recipe(r, image_folder(tmp_path / "images", 16, memory=0)[0], folder)
    whole, broken = run(None).train(), run(tmp_path / "run")
    eighth = int(broken.batches.indices(7)[2])                            # in the eighth batch
    path = tmp_path / "images" / f"{eighth:02}.png"
    good = path.read_bytes()
    path.write_bytes(good[:60])
    with pytest.raises(ValueError, match=f"{path.name} cannot be read as an image"): broken.train()
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step_00000007"]
    path.write_bytes(good)
    resumed = run(tmp_path / "run").resume().train()
    assert same_weights(resumed.model, whole.model)


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    t = trainer(tmp_path / "file" / "run")
    with pytest.raises(OSError, match="cannot write to the folder"): t.train()
    assert t.step == 0


# One step, several ways


def test_the_step_is_algorithm_1_written_by_hand():
    "Algorithm 1 with Adam, warm-up and clipping, without any of the trainer's helpers (eq. 14)."
    model, t, norms = net(0.0), trainer(model=net(0.0), grad_clip=0.3), []
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    s = NoiseSchedule.linear(100)
    source = Batches(points(), 8)
    for step in range(6):
        x0 = next(source)
        times, eps = draw(x0, 100, 0, step)
        abar = s.alpha_bars[times].float()[:, None]
        loss = (model(abar.sqrt() * x0 + (1 - abar).sqrt() * eps, times) - eps).square().mean()
        adam.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.3).item())
        adam.param_groups[0]["lr"] = 1e-2 * min((step + 1) / 4, 1)
        adam.step()
        assert t.update().loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_close_weights(model, t.model)
    assert max(norms) > 0.3                                         # so that clipping was at work
    usual = dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, maximize=False)
    assert {name: t.state.optimizer.param_groups[0][name] for name in usual} == usual


def test_half_precision_keeps_the_weights_in_float32_and_agrees_roughly():
    a, b = trainer(model=net(0.0)), trainer(model=net(0.0), precision="bf16")
    for _ in range(5): a.update(), b.update()
    assert all(p.dtype == torch.float32 for p in b.model.parameters())
    assert b.recent[-1].loss.item() == pytest.approx(a.recent[-1].loss.item(), rel=0.02)
    assert b.recent[-1].loss.item() != a.recent[-1].loss.item()
    answer = b.model(torch.zeros(1, 2), torch.zeros(1))
    assert answer.dtype == torch.float32                # the user's own network is left as it was
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="fp16 needs device cuda"): trainer(precision="fp16")


def use_scaler(t, scale):
    from accelerate.optimizer import AcceleratedOptimizer
    t.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    adam, scaler = t.state.optimizer.optimizer, t.accelerator.scaler
    t.state.optimizer = AcceleratedOptimizer(adam, scaler=scaler)


def test_scaled_gradients_as_fp16_needs_them_give_the_same_norm_and_step():
    "The scaler of fp16, on a CPU in float32, where it must change nothing."
    plain, scaled = trainer(model=net(0.0)), trainer(model=net(0.0))
    use_scaler(scaled, 2.0**16)
    for _ in range(5):
        a, b = plain.update(), scaled.update()
        assert b.grad_norm.item() == pytest.approx(a.grad_norm.item(), rel=1e-5)
    assert_close_weights(plain.model, scaled.model)
    assert scaled.snapshot()[1]["scaler"]["scale"] == 2.0**16


def test_with_a_scaler_one_infinite_gradient_is_skipped_and_endless_ones_stop_the_run():
    torch.manual_seed(0)
    t = trainer(model=Poisoned(3, "gradient"), log_every=4)
    use_scaler(t, 2.0**3)
    for _ in range(3): t.update()
    before = [p.detach().clone() for p in t.model.parameters()]
    assert not t.update().grad_norm.isfinite() and t.accelerator.scaler.get_scale() == 4
    assert all(torch.equal(a, b) for a, b in zip(before, t.model.parameters()))
    row = t.log()
    assert math.isfinite(row["grad_norm"]) and json.loads(json.dumps(row, allow_nan=False)) == row
    for _ in range(2): t.update()
    assert t.log()["grad_norm"] is None
    t.update()
    with pytest.raises(Diverged, match="no finite number any more"): t.log()
    t = trainer(model=Poisoned(3, "gradient"), log_every=4)
    use_scaler(t, 1.0)
    for _ in range(4): t.update()
    with pytest.raises(Diverged, match="at step 4: .*gradient norm (inf|nan)"):
        t.log()                                                      # not step 1, which was sound


def test_accelerates_own_accumulation_is_refused():
    code = "from test_runs import trainer; trainer()"
    process = run_python(code, ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4")
    _, err = process.communicate(timeout=PATIENCE)
    assert "accelerate was told to accumulate 4 steps: leave that out" in err


def test_an_absent_device_is_refused_with_those_that_are_there():
    absent = "mps" if torch.cuda.is_available() else "cuda"
    refusal = f"device must be one of .*cpu on this machine, got '{absent}'"
    with pytest.raises(ValueError, match=refusal):
        Trainer(net(), diffusion(), points(), TrainConfig(**SMALL), device=absent)


def test_the_caller_may_stop_between_steps_and_go_on():
    t, reference = trainer(), trainer()
    for update in t.steps():
        if update.step == 7: break
    for _ in t.steps(): pass
    assert t.step == 20 and len(list(t.steps())) == 0
    for _ in reference.steps(): pass
    assert same_weights(t.model, reference.model)


def test_an_update_after_the_last_is_refused_in_words():
    t = trainer(steps=2)
    assert [t.update().step, t.update().step] == [1, 2]
    with pytest.raises(ValueError, match="all 2 updates are made: to go on, set more steps"):
        t.update()


class Frozen(nn.Module):
    "A network whose weights the test sets."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("steps, decay, warmup", [
    (30, 0.9, False), (400, 0.99, False), (1, 0.9, True), (3, 0.9, True), (150, 0.99, True)])
def test_the_share_of_the_random_start_is_what_the_average_does(steps, decay, warmup):
    start, learnt = Frozen(), Frozen()
    start.double(), learnt.double()
    with torch.no_grad(): start.weight.fill_(1.0)
    average = training.EMA(start, decay, warmup)
    for step in range(steps): average.update(learnt, step)
    share = runs._random_share(TrainConfig(steps=steps, ema_decay=decay, ema_warmup=warmup))
    assert share == pytest.approx(average.model.weight.item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("changes, told", [
    (dict(ema_decay=0.9999), "after 20 updates 100% of the averaged weights"),
    (dict(ema_decay=0.9), "after 20 updates 12% of the averaged weights"),
    (dict(ema_decay=0.86), None), (dict(ema_decay=0.9999, ema_warmup=True), None)])
def test_an_average_younger_than_its_memory_is_told_at_the_start(changes, told, capsys):
    t = trainer(**changes)
    t.train()
    err = capsys.readouterr().err
    assert err.count("the random start: set ema_warmup, or a lower ema_decay") == bool(told)
    assert told is None or told in err
    t.train()                                                                # nothing is left to do
    assert "random start" not in capsys.readouterr().err


def test_a_network_that_does_not_say_its_variance_is_refused_before_it_is_trained(tmp_path):
    r = tiny()
    for d, out, want in (("learned_range", 1, 2), ("learned", 1, 2), ("fixed_small", 2, 1)):
        model = UNet(UNetConfig.from_dict({**r.unet.to_dict(), "out_channels": out}))
        process = GaussianDiffusion(NoiseSchedule.linear(8), variance=d)
        words = f"'{d}' needs unet.out_channels={want} where unet.in_channels=1, got {out}"
        with pytest.raises(ValueError, match=words):
            quiet(model, process, r.images(), r.train, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_four_hundred_updates_lower_the_loss_by_a_quarter():
    options = dict(steps=400, batch_size=50, warmup=20)
    runs_ = (trainer(model=net(0.0), lr=lr, **options).train() for lr in (0.0, 1e-2))
    untrained, trained = (sum(r["loss"] for r in t.history[-20:]) / 20 for t in runs_)
    assert trained < 0.75 * untrained


def test_samples_are_drawn_on_time_and_leave_the_run_as_it_was(tmp_path):
    r = tiny(steps=4, sample_count=4, sample_steps=2)
    one, other = (by_recipe(r.replace(sample_every=n), r.images()[:20], tmp_path / str(n))
                  for n in (0, 2))
    one.train(), other.train()
    grids = sorted(p.name for p in (tmp_path / "2" / "samples").iterdir())
    assert grids == ["step_00000002.png", "step_00000004.png"]
    assert not (tmp_path / "0" / "samples").exists()
    assert same_weights(one.model, other.model)
    assert torch.equal(one.sample(3), one.sample(3))
    assert not torch.equal(one.sample(3), one.sample(3, seed=1))


def test_tensorboard_is_written_when_asked(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    def watched(steps):
        c = TrainConfig(**dict(SMALL, tracker="tensorboard", steps=steps))
        return Trainer(net(), diffusion(), points(), c, tmp_path, "cpu", False, held_out=points())
    watched(20).train()
    t = watched(26).resume().train()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for key in ("loss", "held_out", "grad_norm", "lr", "images_per_second"):
        wanted = [(r["step"], pytest.approx(r[key], rel=1e-6)) for r in t.history]
        assert [(e.step, e.value) for e in events.Scalars(key)] == wanted


def test_a_tensorboard_that_cannot_be_written_does_not_stop_the_run(tmp_path, monkeypatch, capsys):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    def full(self, *args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", full)
    t = trainer(tmp_path, tracker="tensorboard").train()
    assert t.step == 20 and "cannot write the log" in capsys.readouterr().err
    assert [row["step"] for row in log_lines(tmp_path)] == [3, 6, 9, 12, 15, 18]


# Whose folder it is


LOCKED = """
import sys
from test_runs import net, trainer
trainer(sys.argv[1], net(0.0), steps=int(sys.argv[2]), save_every=10**6, log_every=1).train()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_second_training_in_the_folder_is_refused_until_the_first_has_ended(tmp_path, number):
    first = run_python(LOCKED, tmp_path, 10**6)
    try:
        wait_for_the_log(tmp_path, first)
        second = run_python(LOCKED, tmp_path, 20)
        _, err = second.communicate(timeout=PATIENCE)
        refusal = f"OSError: {tmp_path} is in use by another command (process {first.pid}): stop"
        assert second.returncode == 1 and err.splitlines()[-1].startswith(refusal)
        with pytest.raises(OSError, match="in use by another command"): trainer(tmp_path).save()
    finally: first.send_signal(number)
    first.communicate(timeout=PATIENCE)
    if number == signal.SIGKILL: assert trainer(tmp_path, net(0.0)).train().step == 20
    assert not (tmp_path / ".lock").exists()


def test_a_copy_that_somebody_made_of_a_checkpoint_is_left_alone(tmp_path):
    t = trainer(tmp_path, keep_last=1, steps=10).train()
    folder = tmp_path / "checkpoints"
    for name in ("step_00000015_good", "step_best", "step_1", "my_step_00000010"):
        shutil.copytree(folder / "step_00000010", folder / name)
    assert steps_of(checkpoints(tmp_path)) == [10]
    trainer(tmp_path, keep_last=1).resume().train()
    assert steps_of(checkpoints(tmp_path)) == [20]
    kept = {p.name for p in folder.iterdir()} - {"step_00000020"}
    assert kept == {"step_00000015_good", "step_best", "step_1", "my_step_00000010"}
    assert same_weights(load_run(folder / "step_best", False, model=Net())[0], t.model.eval())


@pytest.mark.parametrize("harm", [b"\xff\xfe\x00\n", b"5\n", b"null\n", b"[1]\n", b"{}\n"])
def test_a_damaged_log_does_not_stand_in_the_way(tmp_path, harm):
    trainer(tmp_path, steps=10).train()
    path = tmp_path / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + harm + b"".join(lines[1:]))
    resumed = trainer(tmp_path).resume().train()
    assert [r["step"] for r in resumed.history] == [3, 6, 9, 12, 15, 18]
    assert log_lines(tmp_path) == resumed.history


# Checkpoints of the former format


def as_format_1(folder):
    "Rewrite a checkpoint as the former version wrote it: random states, a position in the data."
    files, state = read_checkpoint(folder)
    state.pop("format")
    state["data"]["position"] = state["data"].pop("step") * 8
    if "recent" not in files["log"]: files["log"]["recent"] = torch.zeros(0, 4)
    shutil.rmtree(folder)
    runs._write_checkpoint(folder, files | {"random": {"torch.0": torch.get_rng_state()}}, state)


def test_a_checkpoint_of_the_former_format_is_read_and_resumed_with_a_note(tmp_path, capsys):
    first = trainer(tmp_path, steps=10).train()
    as_format_1(checkpoints(tmp_path)[-1])
    assert same_weights(load_run(tmp_path, False, model=Net())[0], first.model)
    capsys.readouterr()
    second = trainer(tmp_path).resume()
    assert "an older version of ddpm_nb saved this run" in capsys.readouterr().err
    assert second.step == 10 and second.batches.step == 10 and second.train().step == 20
    files, state = read_checkpoint(checkpoints(tmp_path)[-1])
    assert state["format"] == 2 and "random" not in files


def test_a_checkpoint_of_a_later_format_is_refused_in_words(tmp_path):
    trainer(tmp_path, steps=5).train()
    folder = checkpoints(tmp_path)[-1]
    files, state = read_checkpoint(folder)
    shutil.rmtree(folder)
    runs._write_checkpoint(folder, files, state | {"format": 3})
    with pytest.raises(ValueError, match="has format 3, .* reads up to 2: update ddpm_nb"):
        trainer(tmp_path).resume()


def test_a_network_that_torch_compile_has_wrapped_is_saved_under_its_own_names(tmp_path):
    wrapped = torch.compile(net(), backend="eager")
    t = trainer(tmp_path, wrapped, steps=5).train()
    files, _ = read_checkpoint(checkpoints(tmp_path)[-1])
    assert files["model"].keys() == files["ema"].keys() == Net().state_dict().keys()
    assert same_weights(load_run(tmp_path, False, model=Net())[0], t.model)


def test_a_respaced_diffusion_is_not_trained():
    with pytest.raises(ValueError, match="train the one it was made from"):
        quiet(net(), diffusion().respaced(5), points(), TrainConfig())


# So many minutes


class Clocked(Net):
    "Each call of the network takes `pace` seconds of a clock that nothing else moves."
    clock, pace = 0.0, 1.0

    def forward(self, x, t):
        if self.training: Clocked.clock += Clocked.pace
        return super().forward(x, t)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(Clocked, "clock", 0.0)
    monkeypatch.setattr(Clocked, "pace", 1.0)
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: Clocked.clock))


def clocked(folder=None, **changes):
    torch.manual_seed(0)
    budget = dict(minutes=5.0, steps=10**6, warmup=20, cooldown=200_000, save_every=10**6)
    return trainer(folder, Clocked(0.0), **{**budget, **changes})


def test_a_run_fits_itself_to_its_minutes_and_its_rate_ends_at_0(tmp_path, clock, capsys):
    "One second an update, five minutes: measured at update 20; 98 % of what is left is 274 more."
    t = clocked(tmp_path).train()
    assert t.step == t.config.steps == 20 + 274 and t.config.cooldown == round(294 / 5)
    assert Clocked.clock <= 300 and t.seconds == 294
    line = "time: 1 s an update, 8 images/s: 294 updates in 5 minutes, the last 59 of them at"
    assert line in capsys.readouterr().err
    rates = [row["lr"] for row in t.history]
    assert max(rates) == 1e-2 and rates[-1] == pytest.approx(1e-2 / 59)
    assert t.history[-1]["step"] == 294
    assert [r["lr"] for r in t.history if r["step"] == 234] == [1e-2]      # the fall begins at 236
    assert t.budget == {"minutes": 5.0, "steps": 10**6, "cooldown": 200_000, "at": 20,
                        "seconds_per_update": 1.0}
    assert steps_of(checkpoints(tmp_path)) == [20, 294]       # what was settled is on disk at once
    state = read_checkpoint(checkpoints(tmp_path)[0])[1]
    assert state["config"]["train.steps"] == 294 and state["config"]["train.cooldown"] == 59
    plain = trainer(None, Clocked(0.0), steps=294, warmup=20, cooldown=59).wanted
    for step in range(294):
        assert training.learning_rate(step, t.config) == training.learning_rate(step, plain)


def test_the_first_updates_which_compile_are_used_time_but_not_the_pace(clock):
    t = clocked()
    for update in t.steps():
        if update.step == 1: Clocked.clock += 60
        if update.step == 20: break
    assert t.budget["seconds_per_update"] == 1.0 and t.config.steps == 20 + int(0.98 * 220)


def test_a_tenth_of_the_time_is_enough_to_know_the_pace(clock):
    "The rate may still be rising then: a slow machine, a long warm-up."
    t = clocked(minutes=10.0, warmup=5_000)
    for _ in t.steps():
        if t.budget: break
    assert t.step == t.budget["at"] == 70 and t.config.steps == 70 + int(0.98 * 530)


def test_a_tenth_of_the_time_begins_when_all_is_compiled(clock):
    "Compiling may take longer than that: ten updates alone would say little."
    t = clocked(minutes=10.0, warmup=5_000)
    for update in t.steps():
        if update.step == 1: Clocked.clock += 90
        if t.budget: break
    assert t.step == t.budget["at"] == 70 and t.budget["seconds_per_update"] == 1.0
    assert t.config.steps == 70 + int(0.98 * 440)


@pytest.mark.parametrize("pace", [1.0, 3.0, 0.2])
def test_a_run_that_is_resumed_keeps_its_updates_on_any_machine(tmp_path, clock, pace):
    whole = clocked(tmp_path / "whole").train()
    part = clocked(tmp_path / "part")
    for update in part.steps():
        if update.step == 100: break
    part.save()
    Clocked.pace, Clocked.clock = pace, 1e6                  # another machine, much later
    again = clocked(tmp_path / "part").resume()
    assert again.seconds == 100 and again.config == whole.config
    again.train()
    assert again.step == 294 and again.seconds == pytest.approx(100 + 194 * pace)
    assert same_weights(again.model, whole.model) and again.budget == part.budget


def test_a_run_stopped_before_its_pace_is_known_measures_it_when_it_goes_on(tmp_path, clock):
    first = clocked(tmp_path)
    for update in first.steps():
        if update.step == 15: break
    first.save()
    Clocked.pace = 2.0
    again = clocked(tmp_path).resume()
    for _ in again.steps():
        if again.budget: break
    assert again.step == 35 and again.budget["seconds_per_update"] == 2.0    # after 10 and 20
    assert again.config.steps == 35 + int(0.98 * (300 - 15 - 40) / 2)


def test_other_minutes_settle_anew_as_long_as_the_rate_has_not_begun_to_fall(tmp_path, clock):
    t = clocked(tmp_path, save_every=100, keep_last=10).train()
    longer = clocked(tmp_path, minutes=10.0).resume(checkpoints(tmp_path)[1])        # at 100
    for _ in longer.steps(): pass
    assert longer.step == longer.config.steps == 120 + int(0.98 * (600 - 120))
    with pytest.raises(ValueError, match="in the cooldown of 294 steps"):
        clocked(tmp_path, minutes=10.0).resume(checkpoints(tmp_path)[-1])
    with pytest.raises(ValueError, match="in the cooldown of 294 steps"):
        clocked(tmp_path, minutes=0.0).resume(checkpoints(tmp_path)[-1])
    assert t.step == clocked(tmp_path).resume(checkpoints(tmp_path)[3]).step == 294


@pytest.mark.parametrize("changes, steps, cooldown", [
    (dict(steps=100, cooldown=20), 100, 20),                 # time enough: as it was asked for
    (dict(steps=100, cooldown=0), 100, 0),
    (dict(cooldown=0), 294, 59),                             # a fifth, where none was asked for
    (dict(cooldown=500_000), 294, 147),
    (dict(cooldown=950_000), 294, 274),                      # it cannot begin in the past
    (dict(minutes=0.5, cooldown=0), 29, 6)])    # settled at 20, of 30; 2 % are kept back
def test_what_the_minutes_settle(clock, changes, steps, cooldown):
    t = clocked(**changes)
    for _ in t.steps(): pass
    assert (t.step, t.config.cooldown) == (steps, cooldown)


def test_processes_that_are_not_equally_fast_settle_the_same(clock):
    "Each sees its own clock, and decides by the mean of all."
    fast, slow = SimpleNamespace(), SimpleNamespace()
    seconds = {id(fast): lambda step: step, id(slow): lambda step: 3 * step}
    for processes in (fast, slow): processes.mean = lambda mine: sum(
        of(update.step) for of in seconds.values()) / 2
    c = TrainConfig(minutes=5.0, warmup=20)
    paces, found = [runs._Pace(c, processes) for processes in (fast, slow)], []
    for step in range(1, 41):
        update = training.Update(step, torch.zeros(()), torch.zeros(()), 0.0, None)
        known = [pace.look(update, lambda: 0.0) for pace in paces]
        assert known[0] == known[1]
        if known[0]: found.append((step, known[0]))
    assert found[0] == (20, (2.0, 40.0))


def test_grids_of_samples_take_their_share_of_the_time():
    c = TrainConfig(minutes=10, batch_size=64, sample_every=100, sample_count=64, sample_steps=50)
    with_grids, none = (runs._settled(x, 0, 0, 1.0).steps for x in (
        c, TrainConfig(minutes=10, batch_size=64)))
    assert none == 588 and with_grids == int(588 / (1 + 50 / 300))


def test_what_the_time_settled_is_in_run_json_too(tmp_path, clock):
    (tmp_path / "run.json").write_text('{"data": "mine"}')
    t = clocked(tmp_path).train()
    assert json.loads((tmp_path / "run.json").read_text()) == {"data": "mine", "budget": t.budget}
    (tmp_path / "run.json").write_text("{}")                                 # written anew
    clocked(tmp_path).resume().train()
    assert json.loads((tmp_path / "run.json").read_text()) == {"budget": t.budget}


def test_without_minutes_nothing_is_settled(tmp_path, clock):
    t = clocked(tmp_path, minutes=0.0, steps=60, cooldown=10).train()
    assert t.step == 60 and t.budget is None and t.config == t.wanted


# Runs of before


def test_a_checkpoint_of_before_the_minutes_and_the_trackers_is_resumed(tmp_path):
    trainer(tmp_path, steps=10).train()
    folder = checkpoints(tmp_path)[-1]
    files, state = read_checkpoint(folder)
    for key in ("minutes", "tracker"): del state["config"][f"train.{key}"]
    state["config"]["train.tensorboard"] = False
    del state["budget"]
    shutil.rmtree(folder)
    runs._write_checkpoint(folder, files, state)
    assert_same(trainer(tmp_path).resume().train(), trainer().train())


def test_choices_that_came_later_have_their_defaults_in_an_older_checkpoint(tmp_path):
    r = tiny(steps=4, save_every=2, sample_every=0)
    by_recipe(r.replace(steps=2), r.images()[:20], tmp_path).train()

    def without(*keys):
        folder = checkpoints(tmp_path)[-1]
        files, state = read_checkpoint(folder)
        for key in keys: del state["config"][key]
        shutil.rmtree(folder)
        runs._write_checkpoint(folder, files, state)
    later = ("norm_eps", "cosines_first", "frequency_shift", "pad_all_sides", "middle_attention")
    assert set(later) <= set(r.unet.to_dict())
    without(*(f"model.{key}" for key in later), "train.grad_clip")
    assert by_recipe(r, r.images()[:20], tmp_path).resume().step == 2
    without("model.groups")                             # a default that is not this network's
    with pytest.raises(ValueError, match="model.groups is 32 there and 4 here"):
        by_recipe(r, r.images()[:20], tmp_path).resume()


# Data as people have it


class Sees(nn.Module):
    "Takes images and labels, and keeps what it saw."
    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(1)), []

    def forward(self, x, t, y=None):
        self.seen.append((x, y))
        return x * self.weight


class Unlabelled(Sees):
    def forward(self, x, t): return super().forward(x, t)


def pictures(n=12, channels=3):
    return torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))


class Torchvision:
    "The protocol of torchvision's data sets: Pillow's images and a number, and a transform."
    def __init__(self, images, labels, transform=None):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self): return len(self.images)

    def __getitem__(self, i):
        from PIL import Image
        a = self.images[i].permute(1, 2, 0).numpy()
        image = Image.fromarray(a if a.shape[2] == 3 else a[:, :, 0])
        return self.transform(image) if self.transform else image, int(self.labels[i])


class HuggingFace(Torchvision):
    "The protocol of Hugging Face's: dicts."
    key = "img"

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return {self.key: image, "label": label}


def taken(data, model=Unlabelled, **changes):
    "The images and labels that a trainer has of its data."
    config = TrainConfig(**{**SMALL, "batch_size": 4, **changes})
    d = GaussianDiffusion(NoiseSchedule.linear(10))
    t = quiet(model(), d, data, config)
    t.update()
    return t.batches.images, t.batches.labels, t.model


@pytest.mark.parametrize("channels", [1, 3])
def test_data_are_taken_in_every_form_that_people_have(channels):
    images, labels = pictures(channels=channels), torch.arange(12) % 3
    a = images.numpy()
    tensors = torch.utils.data.TensorDataset(images, labels)
    forms = [images, a, a.transpose(0, 2, 3, 1), tensors, torch.utils.data.TensorDataset(images),
             torch.utils.data.Subset(tensors, range(12)), list(images),
             Torchvision(images, labels), HuggingFace(images, labels)]
    if channels == 1: forms.append(a[:, 0])
    for form in forms:
        got, none, _ = taken(form)
        assert got.dtype == torch.uint8 and torch.equal(got, images) and none is None
    for form in (tensors, Torchvision(images, labels), HuggingFace(images, labels),
                 (images, labels), (a, labels.numpy()), (a, labels.tolist()),
                 (torch.utils.data.TensorDataset(images), labels)):
        got, numbers, model = taken(form, Sees)
        assert torch.equal(got, images) and torch.equal(numbers, labels)
        assert model.seen[0][1].shape == (4,)                     # and they reach the network
    with_labels = taken(images, Sees)
    assert with_labels[1] is None and with_labels[2].seen[0][1] is None


def test_floats_stay_what_they_are_and_of_double_precision_become_single():
    x = torch.rand(12, 3, 8, 8) * 2 - 1
    for form in (x, x.numpy(), x.double(), x.double().numpy(), torch.utils.data.TensorDataset(x),
                 torch.utils.data.TensorDataset(x.double())):
        got = taken(form)[0]
        assert got.dtype == torch.float32 and torch.equal(got, x)
    assert taken(torch.randn(12, 2).numpy())[0].shape == (12, 2)


def test_a_set_that_is_too_large_for_memory_is_read_image_by_image():
    images, labels = pictures(), torch.arange(12)
    got, numbers = runs._read_set(Torchvision(images, labels), True, memory=100)
    assert not isinstance(got, torch.Tensor) and numbers.tolist() == labels.tolist()
    assert got.shape == (12, 3, 8, 8) and torch.equal(got[torch.tensor([3, 1])], images[[3, 1]])
    held, streamed = (taken(x)[2] for x in (images, got))
    assert torch.equal(held.weight, streamed.weight) and torch.equal(*(
        m.seen[0][0] for m in (held, streamed)))


@pytest.mark.parametrize("with_labels", [True, False])
def test_each_image_of_a_set_is_read_once(with_labels):
    class Counted(Torchvision):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    read, images = [], pictures()
    got, numbers = runs._read_set(Counted(images, torch.arange(12)), with_labels)
    assert torch.equal(got, images) and (numbers is not None) == with_labels
    assert read == [0, *range(12)]                          # the first, for its shape


def test_an_image_of_a_set_is_read_as_a_file_in_a_folder_is(tmp_path):
    "16 bits are scaled, what is transparent is laid on white, grey stays grey."
    from PIL import Image

    from ddpm_nb.engine.images import image_folder
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
    clear = np.full((8, 8, 4), (10, 20, 30, 0), np.uint8)
    for name, pixels, channels in (("a", ramp, 1), ("b", clear, 3)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "x.png")
        folder, _ = image_folder(tmp_path / name, 8, channels=channels)
        assert torch.equal(runs._image_of(Image.open(tmp_path / name / "x.png"))[0], folder[0])
    assert runs._image_of((Image.fromarray(clear), 3))[0].unique().tolist() == [255]


def test_labels_that_the_network_does_not_take_are_refused():
    with pytest.raises(ValueError, match="the network takes none: leave them out"):
        taken((pictures(), torch.arange(12)))


@pytest.mark.parametrize("data, words", [
    (torch.utils.data.DataLoader(pictures()), "not its DataLoader: .* give it loader.dataset"),
    (None, "data must be a tensor of images, an array, a folder's name.*got NoneType"),
    (iter([pictures()]), "got list_iterator"), ({"train": pictures()}, "got dict"), (7, "got int"),
    ([], "data must have images in it, got none"), (["a", "b"], "items, or .*; got str"),
    (np.zeros((4, 8, 8), np.int64), "uint8 or floats, got an array of int64"),
    ([pictures()[0], torch.zeros(3, 9, 9, dtype=torch.uint8)], "item 1 .*make.* its images alike"),
    ((pictures(), "labels"), "labels must be a tensor, got str"),
    ((pictures(), 3), r"must be 12 labels, one an image, got a tensor of shape \(\)"),
    ("pictures", "at which size?")])
def test_other_data_are_refused_in_one_line_that_says_what_to_do(data, words):
    with pytest.raises(ValueError, match=words) as e: taken(data)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_name_of_a_folder_is_enough(tmp_path, channels):
    from PIL import Image
    colours = pictures()
    for i, x in enumerate(colours): Image.fromarray(x.permute(1, 2, 0).numpy()).save(
        tmp_path / f"{i:02}.png")
    r = tiny(unet=dict(image_size=8, in_channels=channels, out_channels=channels))
    got = by_recipe(r, str(tmp_path)).batches.images
    if channels == 3: return torch.testing.assert_close(got, colours)
    grey = [np.asarray(Image.open(p).convert("L")) for p in sorted(tmp_path.iterdir())]
    assert torch.equal(got, torch.from_numpy(np.stack(grey))[:, None])


def test_grey_of_grey_is_the_same_and_files_become_grey_as_they_are_read(tmp_path):
    from PIL import Image

    from ddpm_nb.engine.images import ImageFiles, image_folder
    grey = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8).expand(4, 3, 8, 8)
    assert torch.equal(runs._to_grey(grey), grey[:, :1])
    colours = pictures(4)
    for i, x in enumerate(colours): Image.fromarray(x.permute(1, 2, 0).numpy()).save(
        tmp_path / f"{i}.png")
    streamed = runs._with_channels(image_folder(tmp_path, 8, memory=0)[0], 1)
    assert isinstance(streamed, ImageFiles) and streamed.shape == (4, 1, 8, 8)
    held = runs._with_channels(colours, 1)
    difference = streamed[torch.arange(4)].int() - held.int()
    assert difference.abs().max() <= 1                       # Pillow computes in whole numbers
    assert runs._with_channels(grey, 3) is grey and torch.equal(runs._to_grey(grey), grey[:, :1])


@pytest.mark.parametrize("scale, shift, told", [(1, 0, True), (2, -1, False), (255, 0, True)])
def test_images_in_another_range_than_the_networks_are_told(scale, shift, told, capsys):
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * scale + shift
    d, c = GaussianDiffusion(NoiseSchedule.linear(10)), TrainConfig(**{**SMALL, "steps": 2})
    streamed = runs._read_set(list(x), False, memory=100)[0]
    for images in (x, streamed):
        quiet(Unlabelled(), d, images, c).train()
        assert ("the network is made for -1 .. 1" in capsys.readouterr().err) == told
    assert isinstance(streamed, runs._Set)


@pytest.mark.parametrize("model", [None, "digits", lambda x, t: x])
def test_what_is_no_network_is_named(model):
    with pytest.raises(ValueError, match="model must be a torch.nn.Module, got"):
        Trainer(model, diffusion(), points(), TrainConfig(**SMALL), device="cpu")


def test_no_folder_name_at_all_is_refused():
    for name in ("", " "):
        with pytest.raises(ValueError, match="folder must be a name, got .*'.' is the current"):
            trainer(name)


# A loss on what it never saw


def test_the_held_out_loss_is_that_of_the_averaged_weights_on_the_same_draws_each_time(tmp_path):
    apart = swiss_roll(200, torch.Generator().manual_seed(1))
    c = TrainConfig(**SMALL)
    t = Trainer(net(), diffusion(), points(), c, tmp_path, "cpu", False, held_out=apart).train()
    plain = trainer().train()
    assert same_weights(t.model, plain.model)                           # it changes nothing else
    assert all("held_out" not in row for row in plain.history)
    rows = log_lines(tmp_path)
    assert rows == t.history and len({row["held_out"] for row in rows}) == len(rows)
    x0, times, noise, _ = t.held_out.parts
    assert len(x0) == 128 and sorted(times.tolist())[::127] == [0, 99]
    assert all(bool((apart == x).all(1).any()) for x in x0)
    mean = t.diffusion.losses(t.ema.model, x0, times, noise).mean().item()
    assert t._held_out_loss(t.held_out) == pytest.approx(mean, rel=1e-5)
    resumed = Trainer(net(), diffusion(), points(), c, tmp_path, "cpu", False, apart).resume()
    assert resumed._held_out_loss(resumed.held_out) == t._held_out_loss(t.held_out)


def test_a_run_that_is_resumed_on_other_labels_is_refused(tmp_path):
    config = TrainConfig(**{**SMALL, "steps": 1, "batch_size": 4})
    def run(labels):
        d = GaussianDiffusion(NoiseSchedule.linear(10))
        return Trainer(Sees(), d, (pictures(), labels), config, tmp_path, "cpu", progress=False)
    run(torch.arange(12)).train()
    assert run(torch.arange(12)).resume().step == 1
    with pytest.raises(ValueError, match=r"another configuration: data\.labels is"):
        run(torch.arange(12).flip(0)).resume()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_run_draws_and_measures_is_in_its_own_precision(precision):
    seen = set()
    class Seen(Net):
        def forward(self, x, t):
            half = torch.is_autocast_enabled("cpu")
            seen.add(torch.get_autocast_dtype("cpu") if half else torch.float32)
            return super().forward(x, t)

    config = TrainConfig(**{**SMALL, "precision": precision})
    t = Trainer(Seen(), diffusion(), points(), config, device="cpu", progress=False,
                held_out=points())
    t.update()
    for look in (t.log, lambda: t.sample(2, steps=2)):
        seen.clear()
        look()
        assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_trainers_that_live_side_by_side_each_keep_their_precision():
    first = trainer(precision="fp32")
    second = trainer(precision="bf16")
    assert (first._half().fast_dtype, first._half()._enabled) != (torch.bfloat16, True)
    assert (second._half().fast_dtype, second._half()._enabled) == (torch.bfloat16, True)


@pytest.mark.parametrize("held_out, says", [
    (torch.zeros(0, 2), "must have images in it"), (torch.zeros(4, 3), r"like the data, \(2,\)"),
    (torch.zeros(4, 1, 2), r"got \(1, 2\)")])
def test_held_out_images_that_are_unlike_the_data_are_refused_at_the_start(held_out, says):
    with pytest.raises(ValueError, match=says):
        Trainer(net(), diffusion(), points(), TrainConfig(**SMALL), device="cpu", progress=False,
                held_out=held_out)


def test_a_network_with_labels_draws_its_grids_for_some_of_the_datas_own(tmp_path):
    "Evenly: of twelve images and four samples the first, the last, and two between."
    c = TrainConfig(**{**SMALL, "steps": 2, "batch_size": 4, "sample_every": 1, "sample_count": 4,
                       "sample_steps": 3})
    d = GaussianDiffusion(NoiseSchedule.linear(10))
    t = Trainer(Sees(), d, (pictures(), torch.arange(12)), c, tmp_path, "cpu", False).train()
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "step_00000001.png", "step_00000002.png"]
    assert all(y.tolist() == [0, 3, 7, 11] for _, y in t.ema.model.seen[-3:])


def test_half_precision_weights_are_refused_for_their_average_would_not_move():
    with pytest.raises(ValueError, match="must be float32 or wider, got torch.bfloat16"):
        trainer(model=net().bfloat16())
    trainer(model=net().double())


def test_a_run_that_is_trained_meanwhile_is_read_at_its_newest_checkpoint(tmp_path, monkeypatch):
    "One that is dropped while it is read is no damage."
    r = tiny(steps=4, save_every=2, keep_last=2)
    t = by_recipe(r, r.images()[:20], tmp_path).train()
    first, last = checkpoints(tmp_path)
    listed, real = [[first], [first, last]], runs.checkpoints
    monkeypatch.setattr(runs, "checkpoints", lambda run: listed.pop(0) if listed else real(run))
    shutil.rmtree(first)
    assert same_weights(load_run(tmp_path)[0], t.ema.model) and not listed
    (last / "ema.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="not a whole checkpoint"): load_run(tmp_path)


def test_held_out_images_with_labels_reach_the_network_with_them():
    images, labels = pictures(), torch.arange(12)
    d = GaussianDiffusion(NoiseSchedule.linear(10))
    c = TrainConfig(**{**SMALL, "log_every": 1, "steps": 1})
    t = Trainer(Sees(), d, (images, labels), c, device="cpu", progress=False,
                held_out=(images, labels)).train()
    seen = torch.cat([y for _, y in t.ema.model.seen])
    assert seen.tolist() == labels.tolist() and t.history[0]["held_out"] > 0


# Trackers


WANDB = """
import json, os
lines = open(os.environ["TOLD"], "a", buffering=1)
class Run:
    def log(self, values, step=None, **more): print(json.dumps([step, values]), file=lines)
    def finish(self): print(json.dumps("finished"), file=lines)
def init(**options):
    print(json.dumps(options), file=lines)
    return Run()
"""


def test_wandb_gets_each_line_through_accelerate(tmp_path):
    "A stand-in of the same protocol, in a process of its own."
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text(WANDB)
    (tmp_path / "wandb-1.0.dist-info").mkdir()
    (tmp_path / "wandb-1.0.dist-info" / "METADATA").write_text("Name: wandb\nVersion: 1.0\n")
    code = ("import sys; from test_runs import trainer; "
            "trainer(sys.argv[1], tracker='wandb').train()")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests")))
    process = run_python(code, tmp_path / "run", TOLD=str(tmp_path / "told"), PYTHONPATH=path)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    begun, *lines, ended = map(json.loads, (tmp_path / "told").read_text().splitlines())
    assert begun["project"] == "ddpm_nb" and begun["name"] == "run" and ended == "finished"
    keys = ("loss", "grad_norm", "lr", "images_per_second")
    rows = log_lines(tmp_path / "run")
    assert lines == [[r["step"], {k: r[k] for k in keys}] for r in rows]


@pytest.mark.parametrize("name, words", [
    ("tensorbord", "tracker must be one of .*tensorboard.*wandb.*got 'tensorbord'"),
    ("wandb", "tracker='wandb' needs the package wandb: pip install wandb")])
def test_a_tracker_that_is_not_there_is_refused_in_words(tmp_path, name, words):
    if name == "wandb" and importlib.util.find_spec("wandb"): pytest.skip("wandb is here")
    with pytest.raises(ValueError, match=words): trainer(tmp_path, tracker=name)
    with pytest.raises(ValueError, match="needs a folder"):
        pytest.importorskip("tensorboard")
        trainer(tracker="tensorboard")


# Too large


def test_too_little_memory_on_a_cpu_is_one_line(tmp_path):
    class Huge(Net):
        def forward(self, x, t): return super().forward(x, t) + torch.empty(2**50).sum()

    with pytest.raises(MemoryError, match="not enough memory for 8 images in 1 parts: set accu"):
        trainer(tmp_path, Huge()).train()


def test_too_little_memory_on_a_gpu_keeps_its_kind_and_other_errors_stay(tmp_path):
    class Full(Net):
        error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried\nto allocate 20 GiB")
        def forward(self, x, t): raise self.error

    with pytest.raises(torch.cuda.OutOfMemoryError, match="in 2 parts: set accumulate=4") as e:
        trainer(None, Full(), accumulate=2).train()
    assert "\n" not in str(e.value)
    Full.error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"): trainer(None, Full()).train()


@pytest.mark.parametrize("size", ["cifar10", "lsun256", "small", "digits"])
def test_the_estimate_of_a_networks_size_is_about_right(size, monkeypatch):
    c = getattr(UNetConfig, size)()
    with torch.device("meta"): weights = sum(p.numel() for p in UNet(c).parameters())
    runs._check_size(c)
    monkeypatch.setattr(runs, "_MOST_WEIGHTS", 0)        # so that it says what it takes it for
    with pytest.raises(ValueError, match="are the most built") as e: runs._check_size(c)
    said = float(re.search(r"about (\S+) weights", str(e.value))[1])
    assert 0.8 < said / weights < 1.25


@pytest.mark.parametrize("changes", [
    dict(base_channels=2**40), dict(blocks_per_level=100_000),
    dict(channel_multipliers=(1, 2, 2**20))])
def test_absurd_sizes_are_refused_before_anything_is_built(changes):
    c = UNetConfig.from_dict({**UNetConfig.digits().to_dict(), **changes})
    with pytest.raises(ValueError, match="are the most built: lower unet.base_channels"):
        runs._check_size(c)
    with pytest.raises(ValueError, match="are the most built"):
        recipe("digits").replace(unet=changes).trainer(device="cpu")


@pytest.mark.parametrize("precision, device, capability, word", [
    ("bf16", "cuda", (7, 5), "fp16"), ("bf16", "cuda", (8, 0), "bf16"),
    ("bf16", "cpu", None, "bf16"), ("fp16", "cuda", (7, 5), "fp16"),
    ("fp32", "cuda", (7, 5), "no")])
def test_half_precision_is_what_the_gpu_has_units_for(monkeypatch, precision, device, capability,
                                                      word):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert runs._arithmetic(precision, device) == word


def test_a_gpu_without_units_for_bf16_is_told_what_stands_in():
    t = trainer(precision="bf16")
    def told(): return any("no units for bf16: fp16" in line for line in t._about_start())
    assert not told()
    t.precision = "fp16"                                  # what `_arithmetic` says of such a GPU
    assert told()


# Loading what was learnt


def test_a_run_loads_without_the_code_that_made_it(tmp_path):
    process = dict(T=20, schedule="cosine", prediction="v", variance="fixed_small")
    r = tiny(steps=2, save_every=2, sample_count=2, diffusion=process)
    t = by_recipe(r, r.images()[:20], tmp_path).train()
    for averaged, theirs in ((True, t.ema.model), (False, t.model)):
        model, d = load_run(tmp_path, averaged)
        assert not model.training
        assert same_weights(model, theirs)
    assert d.schedule == t.diffusion.schedule and (d.prediction, d.variance) == ("v", "fixed_small")
    with pytest.raises(ValueError, match="no run folder"): load_run(tmp_path / "nowhere")
    trainer(tmp_path / "points").train()
    with pytest.raises(ValueError, match="holds a Net: pass one as `model`"):
        load_run(tmp_path / "points")
    assert isinstance(load_run(tmp_path / "points", model=Net())[0], Net)


# Several processes


WORKER = """
import json, os, sys, torch
from test_runs import draw, net, trainer
model = net(0.0, seed=int(os.environ.get("RANK", 0)))       # a script that seeds each process anew
t = trainer(sys.argv[1], model, steps=6, save_every=6, batch_size=8, log_every=2)
x0 = next(t.batches)
times, noise = draw(x0, 100, 0, 0, t.batches.rank, t.batches.world)
loss = t.gradient.objective(x0, times, noise).mean()
t.accelerator.backward(loss)
loss = t.accelerator.reduce(loss.detach(), "mean")
gradients = {k: p.grad.clone() for k, p in t.model.named_parameters()}
t.state.optimizer.zero_grad()
t.batches.step = 0
t.train()
world, patience = torch.distributed, None
if t.accelerator.num_processes > 1:
    group = world.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    patience = group.options._timeout.days
found = [loss, gradients, dict(t.model.named_parameters()), t.history, patience,
         dict(t.ema.model.named_parameters()), t.accelerator.num_processes]
torch.save(found, f"{sys.argv[1]}/{t.accelerator.process_index}.pt")
"""


def test_two_processes_compute_what_one_does_on_the_same_global_batch(tmp_path):
    "Loss and gradient of eq. 14, and six whole updates, over gloo on two CPU processes."
    (tmp_path / "two").mkdir(), (tmp_path / "one").mkdir()
    workers = start_two(WORKER, tmp_path / "two")
    workers.append(run_python(WORKER, tmp_path / "one"))
    for w in workers:
        _, err = w.communicate(timeout=PATIENCE)
        assert w.returncode == 0, err
    one, two, other = (torch.load(tmp_path / name, weights_only=False)
                       for name in ("one/0.pt", "two/0.pt", "two/1.pt"))
    assert (one[-1], two[-1]) == (1, 2)
    assert two[0].item() == pytest.approx(one[0].item(), rel=1e-6)
    for key, gradient in one[1].items():
        assert torch.allclose(two[1][key], gradient, rtol=1e-5, atol=1e-7)
        assert torch.equal(two[1][key], other[1][key])
    for key, weight in one[2].items():
        assert torch.allclose(two[2][key], weight, rtol=1e-4, atol=1e-6)
        assert torch.equal(two[2][key], other[2][key])
        assert torch.allclose(two[5][key], one[5][key], rtol=1e-4, atol=1e-6)
        assert torch.equal(two[5][key], other[5][key])
    assert two[4] == 30      # days: while one of them reads, or draws, the others wait
    assert [r["loss"] for r in two[3]] == pytest.approx([r["loss"] for r in one[3]], rel=1e-5)
    files, state = read_checkpoint(checkpoints(tmp_path / "two")[-1])
    assert state["processes"] == 2
    alone_files = read_checkpoint(checkpoints(tmp_path / "one")[-1])[0]
    by_t = [f["log"]["sums"] / f["log"]["counts"] for f in (files, alone_files)]
    assert torch.allclose(*by_t, rtol=1e-4, equal_nan=True)        # of all losses, not of a share
    more = dict(steps=8, batch_size=8)
    alone = trainer(tmp_path / "two", net(0.0), **more).resume().train()    # one goes on
    assert alone.step == 8


CONTINUED = """
import sys
from test_runs import net, trainer
t = trainer(sys.argv[1], net(0.0), steps=12, batch_size=8).resume()
t.train()
"""


def test_a_run_of_one_process_goes_on_in_two_with_the_very_same_draws(tmp_path):
    "Images, t and noise are the same, so the weights are equal up to rounding; and back again."
    whole = trainer(tmp_path / "whole", net(0.0), steps=16).train()
    trainer(tmp_path / "run", net(0.0), steps=6).train()
    workers = start_two(CONTINUED, tmp_path / "run")
    results = [w.communicate(timeout=PATIENCE) for w in workers]
    assert [w.returncode for w in workers] == [0, 0], results
    assert read_checkpoint(checkpoints(tmp_path / "run")[-1])[1]["processes"] == 2
    again = trainer(tmp_path / "run", net(0.0), steps=16).resume()
    assert again.step == 12
    assert_close_weights(again.train().model, whole.model, rtol=1e-4, atol=1e-6)
    for a, b in zip(again.history, whole.history):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


# On another device


class DeviceGuard(TorchFunctionMode):
    """Refuses every tensor that is made without saying where, and every operation whose tensors
    are not all on `device`."""
    factories = {torch.zeros, torch.ones, torch.full, torch.empty, torch.tensor, torch.arange,
                 torch.linspace, torch.randn, torch.rand, torch.randint, torch.eye,
                 torch.as_tensor, torch.scalar_tensor}

    def __init__(self, device):
        super().__init__()
        self.device, self.seen = torch.device(device), 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # torch's Adam counts its steps on the CPU; torch 2.4 does not say so
        theirs = sys._getframe(1).f_globals["__name__"] == "torch.optim.adam"
        if function in self.factories and "device" not in kwargs and not theirs:
            raise AssertionError(f"{function.__name__} makes a tensor on the default device")
        def tensors(o):
            if isinstance(o, torch.Tensor): yield o
            elif isinstance(o, (tuple, list)):
                for v in o: yield from tensors(v)
        moves = ("to", "cpu", "copy_", "__get__", "__set__", "__deepcopy__")
        moving = getattr(function, "__name__", "") in moves
        places = {o.device.type for o in tensors((args, tuple(kwargs.values())))}
        if not moving and len(places) > 1: raise AssertionError(f"{function} mixes {places}")
        self.seen += 1
        return function(*args, **kwargs)


def unet(out_channels=1):
    return UNet(UNetConfig(image_size=16, in_channels=1, out_channels=out_channels, base_channels=8,
                           channel_multipliers=(1, 2), blocks_per_level=1,
                           attention_resolutions=(8,), groups=4, dropout=0.1))


META = torch.device("meta")    # has shapes and devices but no numbers: mixed with the CPU it raises


@pytest.mark.parametrize("prediction", ["eps", "x0", "mu", "v"])
def test_losses_stay_on_the_device(prediction):
    d, model = GaussianDiffusion(NoiseSchedule.linear(20), prediction).to(META), unet().to(META)
    with DeviceGuard(META) as guard:
        losses = d.losses(model, torch.zeros(2, 1, 16, 16, device=META))
        losses.mean().backward()
    assert losses.device == META and guard.seen > 50
    assert all(p.grad.device == META for p in model.parameters())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_stay_on_the_device(sampler):
    d, model = GaussianDiffusion(NoiseSchedule.linear(20)).to(META), unet().to(META).eval()
    with DeviceGuard(META): x = d.sample(model, (2, 1, 16, 16), sampler, progress=False)
    assert x.device == META and x.shape == (2, 1, 16, 16)


def test_bits_per_dim_stay_on_the_device():
    d, model = GaussianDiffusion(NoiseSchedule.linear(20)).to(META), unet().to(META).eval()
    x = torch.zeros(2, 1, 16, 16, device=META)
    with DeviceGuard(META), torch.no_grad(): terms = d.bits_per_dim(model, x)
    assert all(v.device == META for v in terms.values())


def test_a_whole_training_step_stays_on_the_device():
    """Batch, flips, loss, gradient, clipping, Adam, average, histogram: none of it touches the CPU,
    but for t and the noise, which are drawn there and moved."""
    r = recipe("digits", "smoke").replace(flip=True, batch_size=4)
    t = quiet(unet(), r.process(), r.images()[:20], r.train)
    t.batches = Batches(r.images()[:20], 4, flip=True, device=META)
    t.model, t.diffusion = t.model.to(META), t.diffusion.to(META)
    t.state = TrainState(t.model, 1000, r.train)
    t.state.optimizer = torch.optim.Adam(t.model.parameters(), lr=1e-3)      # no fused kernel there
    objective = runs._Objective(t.model, t.diffusion)
    t.gradient = runs._Gradient(t.accelerator, objective, t.state, 1)
    with DeviceGuard(META) as guard: update = t.update()
    assert update.loss.device == update.grad_norm.device == META and guard.seen > 100


def test_a_cpu_table_read_by_the_device_is_caught_by_the_guard():
    "The guard itself: what it is there to catch, it catches."
    with DeviceGuard(META):
        here, there = torch.zeros(2, device="cpu"), torch.zeros(2, device=META)
        with pytest.raises(AssertionError, match="mixes"): torch.add(here, there)
        with pytest.raises(AssertionError, match="default device"): torch.zeros(2)


@pytest.mark.parametrize("device, precision", [
    ("cpu", "fp32"),
    *(pytest.param("cuda", p, marks=pytest.mark.cuda) for p in training.PRECISIONS)])
def test_a_run_on_a_device_resumes(tmp_path, device, precision):
    "With dropout, drawn on the device. (The CPU is here to show that the test can pass.)"
    c = TrainConfig(**{**SMALL, "precision": precision})
    def make(folder):
        return Trainer(net(), diffusion(), points(), c, tmp_path / folder, device, progress=False)
    whole = make("whole").train()
    first = make("parts")
    for update in first.steps():
        if update.step == 10: break
    first.save()
    second = make("parts").resume().train()
    assert_close_weights(whole.model, second.model, rtol=1e-3, atol=1e-5)
    if precision == "fp16":
        scalers = [t.accelerator.scaler.state_dict() for t in (whole, second)]
        assert scalers[0] == scalers[1]


def test_images_streamed_from_a_folder_train_like_images_in_memory(tmp_path):
    from PIL import Image

    from ddpm_nb.data import digits
    from ddpm_nb.engine.images import image_folder
    for i, image in enumerate(digits()[0][:12]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i:02}.png")
    r = tiny(unet=dict(in_channels=3, out_channels=3), steps=4, batch_size=5, flip=True)
    held, streamed = (by_recipe(r, image_folder(tmp_path, 16, memory)[0]).train()
                      for memory in (10**9, 0))
    assert streamed.batches.streamed and not held.batches.streamed
    assert same_weights(held.model, streamed.model)
