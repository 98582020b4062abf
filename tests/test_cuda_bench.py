"bench/cuda.py: end to end at a tiny size, and what it makes of steps that fail or take too long."
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "bench" / "cuda.py"

# A stand-in for the script's own children: each step does what the file DO says of it.
CHILD = """
import json, pathlib, sys, time
argument = lambda name: sys.argv[sys.argv.index(name) + 1]
step, work = argument("--step"), pathlib.Path(argument("--work"))
with open(work / "begun", "a") as f: print(step, file=f)
what = json.loads((work / "DO").read_text()).get(step, "works")
(work / f"{step}.json").write_text(json.dumps({"what": what}))
print("a word of", step, flush=True)
if what == "hangs": time.sleep(3600)
sys.exit({"fails": 1, "stops": 3}.get(what, 0))
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    "Call the script with stand-ins for its steps; answers what results.json says, and what began."
    spec = importlib.util.spec_from_file_location("cuda_bench", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out, work, child = tmp_path / "out", tmp_path / "work", tmp_path / "child.py"
    work.mkdir()
    child.write_text(CHILD)
    monkeypatch.setattr(script, "__file__", str(child))
    monkeypatch.setitem(script.STEPS, "correct", 1)

    def call(*words, **do):
        (work / "DO").write_text(json.dumps(do))
        (work / "begun").unlink(missing_ok=True)
        options = ["--out", str(out), "--work", str(work), "--minutes", "30", *words]
        monkeypatch.setattr(sys, "argv", ["cuda.py", *options])
        assert script.main() == 0
        begun = (work / "begun").read_text().split() if (work / "begun").exists() else []
        return json.loads((out / "results.json").read_text()), begun
    call.steps, call.work = list(script.STEPS), work
    return call


def states(results): return {name: r["status"] for name, r in results.items()}


def test_each_step_is_kept_and_none_is_done_twice(bench, capsys):
    results, begun = bench()
    assert begun == bench.steps and set(states(results).values()) == {"done"}
    assert results["rates"]["result"] == {"what": "works"}
    assert "all is done" in capsys.readouterr().out
    again, begun = bench()
    assert begun == [] and again == results
    _, begun = bench("--again", "samples")
    assert begun == ["samples"]
    run = bench.work / "run" / "checkpoints"
    run.mkdir(parents=True)
    _, begun = bench("--again", "train")
    assert {*begun} == {"train", "samples", "distance"} and not run.exists()


def test_what_is_to_be_done_again_is_not_done_until_it_is(bench, capsys):
    "Else a run that is gone would be said to be done."
    bench()
    results, begun = bench("--again", "train", "--minutes", "0")
    assert begun == [] and not {"train", "samples", "distance"} & {*results}
    assert "the same command goes on, without --again" in capsys.readouterr().out
    assert bench()[1] == ["train", "samples", "distance"]


def test_a_step_that_fails_or_takes_too_long_stops_none_of_the_rest(bench):
    results, _ = bench(tests="fails", correct="hangs")
    assert states(results) == dict.fromkeys(bench.steps, "done") | {
        "tests": "failed", "correct": "out of time"}
    assert "a word of tests" in results["tests"]["log"] and "log" not in results["rates"]
    assert bench()[1] == []


def test_training_that_was_stopped_is_gone_on_with_by_the_next_call(bench, capsys):
    results, begun = bench(train="stops")
    assert begun[-1] == "train" and "samples" not in results
    assert results["train"]["status"] == "to be gone on with"
    assert "the same command goes on" in capsys.readouterr().out
    results, begun = bench()
    assert begun == ["train", "samples", "distance"]
    assert set(states(results).values()) == {"done"}


def test_only_some_steps_are_done_if_so_asked_and_the_rest_by_the_next_call(bench, capsys):
    results, begun = bench("--only", "rates", "machine")
    assert begun == ["machine", "rates"] and set(results) == {"machine", "rates"}
    assert "the same command goes on" in capsys.readouterr().out
    assert bench()[1] == [step for step in bench.steps if step not in ("machine", "rates")]


def test_without_time_nothing_is_begun(bench, capsys):
    results, _ = bench(train="stops")
    assert bench("--minutes", "0") == (results, [])
    assert "the same command goes on" in capsys.readouterr().out


def test_the_script_runs_end_to_end_at_a_tiny_size(tmp_path):
    "On whatever there is; on a CPU the tests marked `cuda` are skipped, and said to be."
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), "--dry-run", "--minutes", "20", "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    r = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1200)
    assert r.returncode == 0 and "all is done" in r.stdout, r.stdout + r.stderr
    results = json.loads((out / "results.json").read_text())
    assert set(states(results).values()) == {"done"}, results
    of = {name: r["result"] for name, r in results.items()}
    assert sum(of["tests"]["counts"].values()) >= 1 and of["tests"]["exit code"] in (0, 5)
    assert of["correct"]["failed"] == []
    assert of["correct"]["bf16, and fp32"]["found"] > 0
    assert of["rates"]["fp32, eager, ours"]["training"]["images_per_second"] > 0
    assert of["train"]["step"] == of["train"]["config"]["steps"] and of["train"]["budget"]
    assert of["train"]["log"][-1]["held_out"] > 0 and of["train"]["data"] == "smooth random colours"
    assert of["samples"]["ddpm"]["images"] == 4
    assert "distance" in of["distance"] or "left out" in of["distance"]
    files = {p.name for p in out.iterdir()}
    assert files == {"results.json", "rates.png", "loss.png", *(
        f"{what}-{sampler}.png" for what in ("samples", "states", "guesses")
        for sampler in ("ddim", "ddpm"))}
