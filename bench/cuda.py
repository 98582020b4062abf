#!/usr/bin/env python
"""What a machine with CUDA makes of this package: correct or not, how fast, and how good after so
many minutes. One command, in steps, which needs no network:

    python bench/cuda.py --minutes 60                       # all of it
    python bench/cuda.py --minutes 9 --train-minutes 18     # where a command may take ten minutes:
                                                            # again, until it says that all is done
    python bench/cuda.py --dry-run                          # tiny, on a CPU: does the script work?

Each step is a process of its own with a time limit; its results are in `results.json` before the
next begins, and one that fails stops none of the others. A call goes on where the last one ended:
what is done is not done again (`--again STEP` for that), rates are kept one by one, and training
goes on from its checkpoint. `--out` holds what is to be brought home (one JSON, a few PNG files),
`--work` the rest (logs, the run, its checkpoints).

Training wants CIFAR-10: the folder that holds `cifar-10-batches-bin`, in `--data`. Its six files
are 31 MB each, so they may travel one or two at a time. Where they are not, smooth random colours
stand in, and the results say so. `--weights 0 1 2` puts these parts (15 MB each) of the averaged
weights, in half precision, into `--out`, with their checksums.
"""
import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PART = 15 * 2**20           # bytes of a part of the weights
LAST = 15                   # seconds that a step has to save what it has once its time is over


def words() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=60, help="that this call has (default: 60)")
    p.add_argument("--train-minutes", type=float, help="of training, over all calls (default: what "
                   "is left of the first call that gets there, less three)")
    p.add_argument("--out", type=Path, default=Path("cuda-results"))
    p.add_argument("--work", type=Path, help="(default: OUT-work)")
    p.add_argument("--data", help="where CIFAR-10 is (default: ~/.cache/ddpm_nb)")
    p.add_argument("--only", nargs="+", choices=STEPS, help="steps to do in this call (all)")
    p.add_argument("--again", nargs="+", default=[], choices=STEPS, help="steps to do once more")
    p.add_argument("--dry-run", action="store_true", help="everything tiny")
    p.add_argument("--weights", type=int, nargs="+", help="parts to put into --out")
    p.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    a = p.parse_args()
    a.work = a.work or a.out.with_name(a.out.name + "-work")
    return a


class Notes(dict):
    "Results of a step, each on disk as soon as it is known."

    def __init__(self, path: Path):
        super().__init__(json.loads(path.read_text()) if path.is_file() else {})
        self.path = path

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        write(self.path, self)


def write(path: Path, values: dict) -> None:
    from ddpm_nb.engine.files import replacing
    with replacing(path) as part: part.write_text(json.dumps(values, indent=1))


# What the steps share -----------------------------------------------------------------------------

def device_name() -> str:
    import torch
    return "cuda" if torch.cuda.is_available() else "cpu"


def plan(a: argparse.Namespace, **changes):
    "The recipe of the training: the paper's network for hours on a GPU; tiny in a dry run."
    from ddpm_nb.engine.recipes import recipe
    r = recipe("cifar10", "gpu-hours")
    if a.dry_run:
        r = recipe("cifar10", "smoke").replace(unet=dict(
            base_channels=8, groups=4, channel_multipliers=(1, 2), attention_resolutions=(16,)),
            batch_size=8, steps=30, warmup=4, cooldown=6, sample_every=0)
    return r.replace(**changes)


def images_of(a: argparse.Namespace):  # uint8 (N, 3, 32, 32), and what they are
    "CIFAR-10's training images, or what stands in for them."
    import torch
    import torch.nn.functional as F

    from ddpm_nb import cifar10, to_uint8
    try:
        if not a.dry_run: return cifar10(a.data)[0], "CIFAR-10"
    except OSError as e: print(e)
    coarse = torch.randn(200 if a.dry_run else 5_000, 3, 4, 4,
                         generator=torch.Generator().manual_seed(0))
    return to_uint8(0.6 * F.interpolate(coarse, size=32, mode="bicubic")), "smooth random colours"


def trainer(a, config: dict, device=None, dropout=0.0):
    "A trainer of the recipe's network on a few images, which makes no files."
    from ddpm_nb import Trainer
    r = plan(a, **{"minutes": 0.0, "compile": False, "precision": "fp32", "warmup": 0,
                   "batch_size": 4 if a.dry_run else 32, "sample_every": 0, **config})
    net = type(r.network())(replace(r.unet, dropout=dropout))
    net.load_state_dict(r.network().state_dict())
    return Trainer(net, r.process(), images_of(a)[0][:200], r.train, device=device or device_name(),
                   progress=False)


def gradients_of(run, n: int = 4):  # (n, weights), float32, on the CPU
    "The gradients of the first batches, as the run computes them; a graph is replayed by the last."
    import torch

    from ddpm_nb.training import draw
    found = []
    for k in range(n):
        run.state.optimizer.zero_grad()
        x0 = next(run.batches)
        run.gradient(x0, *draw(x0, run.diffusion.T, 0, k), None)
        found.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]).float().cpu())
    return torch.stack(found)


def weights_of(run):
    import torch
    return torch.cat([p.detach().flatten() for p in run.model.parameters()]).cpu()


def apart(a, b) -> float:  # (..., weights), twice
    "How far a is from b, of b's size; of several, the most."
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())


@contextlib.contextmanager
def exact_float32(exact: bool = True):
    "In the block, float32 products are of float32, or of TF32."
    import torch
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [p.allow_tf32 for p in places]
    for p in places: p.allow_tf32 = not exact
    try: yield
    finally:
        for p, was in zip(places, before): p.allow_tf32 = was


@contextlib.contextmanager
def repeatable():
    "In the block, kernels that give the same bits each time, where there are such."
    import torch
    torch.use_deterministic_algorithms(True, warn_only=True)
    try: yield
    finally: torch.use_deterministic_algorithms(False)


# The steps ----------------------------------------------------------------------------------------

def machine(a: argparse.Namespace, notes: Notes) -> None:
    "What it is."
    import torch

    from ddpm_nb import __version__
    from ddpm_nb.engine.runs import _code_version
    notes["software"] = dict(ddpm_nb=_code_version(), torch=torch.__version__,
                             python=sys.version.split()[0], version=__version__)
    notes["device"] = "cpu"
    if device_name() == "cuda":
        p = torch.cuda.get_device_properties(0)
        notes["device"] = dict(name=p.name, gib=round(p.total_memory / 2**30, 1), cuda=torch.version
                               .cuda, capability=f"{p.major}.{p.minor}", number=torch.cuda
                               .device_count(), cudnn=torch.backends.cudnn.version())


def tests(a: argparse.Namespace, notes: Notes) -> None:
    "All that is marked `cuda`."
    found = sorted(p for p in (ROOT / "tests").glob("test_*.py") if "mark.cuda" in p.read_text())
    if a.dry_run: found = [ROOT / "tests" / "test_diffusion.py"]
    report = a.work.resolve() / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider",
               "--continue-on-collection-errors", f"--junitxml={report}", *map(str, found)]
    notes["exit code"] = subprocess.run(command, cwd=ROOT).returncode
    cases = [*ElementTree.parse(report).iter("testcase")]
    bad = ("failure", "error", "skipped")
    kind = lambda c: next((k for k in bad if c.find(k) is not None), "ok")
    notes["counts"] = Counter(map(kind, cases))
    notes["cases"] = {f"{c.get('classname')}.{c.get('name')}": kind(c) for c in cases}


def _check_gradients(a, notes):
    "The gradients in each precision and form, beside float32 on the CPU and on the device."
    with exact_float32():
        base, here = (gradients_of(trainer(a, {}, d)) for d in ("cpu", None))
        yield "fp32, the device and the CPU", apart(here, base), 1e-3
        forms = {"bf16": dict(precision="bf16"), "fp16": dict(precision="fp16")}
        if not a.dry_run: forms |= {f"{p}, compiled": dict(precision=p, compile=True)
                                    for p in ("fp32", "bf16", "fp16")}
        if not a.dry_run: forms |= {"bf16, compiled, in two parts": dict(
            precision="bf16", compile=True, accumulate=2)}
        for name, config in forms.items():
            if "fp16" in name and device_name() == "cpu": continue
            limit = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}[name[:4]]
            run = trainer(a, config)
            found = gradients_of(run)
            yield f"{name}, and fp32", apart(found, here), limit


def _check_runs(a, notes):
    "Random numbers and resuming."
    import torch
    with exact_float32(), repeatable():
        first, second = (trainer(a, {}, dropout=0.1) for _ in range(2))
        torch.backends.cudnn.benchmark = False          # which may choose another kernel each time
        state = torch.cuda.get_rng_state() if device_name() == "cuda" else torch.get_rng_state()
        for _ in range(3): first.update(), second.update()
        after = torch.cuda.get_rng_state() if device_name() == "cuda" else torch.get_rng_state()
        yield "the device's random numbers are where they were", float((state != after).sum()), 0
        yield "the same seed, the same weights", apart(*map(weights_of, (first, second))), 1e-5
        folder = a.work / "resume" / str(time.time_ns())
        first.folder = folder
        first.save()
        again = trainer(a, {}, dropout=0.1)
        torch.backends.cudnn.benchmark = False
        again.folder = folder
        again.resume()
        for _ in range(3): again.update(), second.update()
        yield "resumed, and not stopped", apart(*map(weights_of, (again, second))), 1e-5
        draws = [run.sample(2, steps=3).flatten(1).cpu() for run in (again, again)]
        yield "samples: the same seed, the same images", apart(*draws), 1e-5


# the last one is of numbers on either side
SYNC = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy",
        "aten::_local_scalar_dense")


def _profiled(f) -> Counter:  # how often each event happened
    import torch
    from torch.profiler import ProfilerActivity, profile
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=kinds) as p: f()
    return Counter({e.key: e.count for e in p.key_averages()})


def _check_waiting(a, notes):
    "Does a loop wait for the device, and do copies to it come from pinned memory?"
    import torch
    for name, f in _loops(a):
        f()                                                    # what is made once is made here
        if device_name() == "cuda": torch.cuda.set_sync_debug_mode("error")
        try: f()
        finally:
            if device_name() == "cuda": torch.cuda.set_sync_debug_mode("default")
        events = _profiled(f)
        notes[f"{name}: events"] = {k: v for k, v in events.items() if "emcpy" in k or k in SYNC}
        waits = sum(events[k] for k in SYNC[:-1]) if device_name() == "cuda" else 0
        yield f"{name}: waits for the device in four turns", waits, 1     # one ends the profile
        if device_name() == "cuda":
            pinned = sum(v for k, v in events.items() if "Pinned -> Device" in k)
            yield f"{name}: turns without a pinned copy of noise", max(0, 4 - pinned), 0


def _loops(a):  # name, four turns
    import torch
    run = trainer(a, {}, dropout=0.1)
    yield "training", lambda: [run.update() for _ in range(4)]
    g = torch.Generator().manual_seed(0)
    states = run.diffusion.trajectory(run.ema.model, (2, 3, 32, 32), "ddpm", 20, g)
    yield "sampling", lambda: [next(states) for _ in range(4)]     # the end may wait: it checks


def correct(a: argparse.Namespace, notes: Notes) -> None:
    "One training step in every form beside the plain one; random numbers, resuming, waiting."
    failed = []
    for check in (_check_gradients, _check_runs, _check_waiting):
        try:
            for name, found, most in check(a, notes):
                notes[name] = dict(found=found, most=most, ok=found <= most)
                if not found <= most: failed.append(name)
        except Exception as e:
            notes[check.__name__] = dict(ok=False, error=f"{type(e).__name__}: {e}"[:2000])
            failed.append(check.__name__)
    notes["failed"] = failed


def _timed(f, seconds: float) -> float:  # seconds a call, the least of three
    "How long a call takes, the device's work included, after two calls that do not count."
    import torch
    done = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(2): f()
    done()
    start = time.perf_counter()
    f(), done()
    n, best = max(1, int(seconds / 3 / (time.perf_counter() - start))), []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(n): f()
        done()
        best.append((time.perf_counter() - start) / n)
    return min(best)


DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
FORMS = {"eager": None, "compiled": dict(mode="default"), "graphs": dict(mode="reduce-overhead")}


def _product(a, precision: str) -> float:  # operations a second
    "The rate of a large matrix product."
    import torch
    n, dtype = 256 if a.dry_run else 8192, getattr(torch, DTYPES[precision])
    x, y = (torch.randn(n, n, dtype=dtype, device=device_name()) for _ in range(2))
    return 2 * n**3 / _timed(lambda: x @ y, 0.05 if a.dry_run else 1)


def _network(a, who: str, form: str):
    "Ours or diffusers' network of the same weights, and the form of it that is called."
    import torch
    from unet import build      # bench/unet.py

    from ddpm_nb.engine.faster import compiled
    net = build([who], replace(plan(a).unet, dropout=0.1), torch.device(device_name()))[who].train()
    if FORMS[form] is None: return net, net
    return net, compiled(net, **FORMS[form]) if who == "ours" else torch.compile(net, **FORMS[form])


def _rate(a, precision: str, form: str, who: str, product: float, work: float) -> dict:
    "Images a second in training and forward, their share of the product's rate, and the memory."
    import torch
    torch._dynamo.reset()
    net, call = _network(a, who, form)
    device, n, seconds = device_name(), *((4, 0.05) if a.dry_run else (128, 4))
    adam = torch.optim.Adam(net.parameters(), 1e-5, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    half = precision in ("bf16", "fp16")
    x, t = torch.randn(n, 3, 32, 32, device=device), torch.randint(1000, (n,), device=device)

    def answer():
        with torch.autocast(device, getattr(torch, DTYPES[precision]), enabled=half):
            return call(x, t)

    def step():
        adam.zero_grad()
        scaler.scale((answer().float() - x).square().mean()).backward()
        scaler.unscale_(adam)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(adam)
        scaler.update()

    def forward():
        with torch.no_grad(): answer()

    found, cuda = {}, device == "cuda"
    for name, f, times in (("training", step, 3), ("forward", forward, 1)):
        net.train(f is step)
        if cuda: torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        f()
        first, rate = time.perf_counter() - begun, n / _timed(f, seconds)
        memory = torch.cuda.max_memory_allocated() / 2**20 if cuda else None
        found[name] = dict(images_per_second=rate, share=times * work * rate / product,
                           peak_mib=memory, seconds_of_the_first=first)
    return found


def rates(a: argparse.Namespace, notes: Notes) -> None:
    "Throughput and memory, for each precision and form; those that matter most come first."
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ddpm_nb import UNet
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(plan(a).unet)(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    work = notes["operations of an image, forward"] = counter.get_total_flops()
    order = [(p, "eager", "ours") for p in ("bf16", "fp16", "tf32", "fp32")]
    order += [("bf16", "eager", "diffusers"), ("bf16", "compiled", "ours"),
              ("bf16", "compiled", "diffusers"), ("bf16", "graphs", "ours"),
              ("bf16", "graphs", "diffusers")]
    order += [(p, form, "ours") for p in ("fp16", "tf32", "fp32") for form in [*FORMS][1:]]
    if a.dry_run: order = [("fp32", "eager", "ours"), ("bf16", "eager", "diffusers")]
    for precision, form, who in order:
        key, product = f"{precision}, {form}, {who}", f"product, {precision}"
        if key in notes: continue
        with exact_float32(precision != "tf32"):
            if product not in notes: notes[product] = _product(a, precision)
            try: notes[key] = _rate(a, precision, form, who, notes[product], work)
            except Exception as e: notes[key] = dict(error=f"{type(e).__name__}: {e}"[:500])
    _draw_rates(a, notes)


def _draw_rates(a, notes) -> None:
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    found = {k: v["training"]["images_per_second"] for k, v in notes.items()
             if isinstance(v, dict) and "training" in v}
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(found) + 1), layout="constrained")
    axes.barh(list(found), list(found.values()), color="tab:orange")
    axes.invert_yaxis()
    axes.set(xlabel="images a second, in training", title="The paper's network, batch of 128"
             if not a.dry_run else "A dry run: says nothing")
    figure.savefig(a.out / "rates.png", dpi=90)


def train(a: argparse.Namespace, notes: Notes) -> None:
    "A run with a time budget, from where it is; a signal stops and saves it."
    from ddpm_nb import Trainer
    from ddpm_nb.engine.runs import checkpoints
    if "minutes" not in notes: notes["minutes"] = a.train_minutes
    images, notes["data"] = images_of(a)
    keep = {} if a.dry_run else dict(save_every=4_000, keep_every=4_000)
    r, folder = plan(a, minutes=notes["minutes"], **keep), a.work / "run"
    run = Trainer(r.network(), r.process(), images[128:], r.train, folder, device_name(),
                  progress=False, held_out=images[:128])
    if checkpoints(folder): run.resume()
    try: run.train()
    finally:
        notes["step"], notes["seconds"], notes["budget"] = run.step, run.seconds, run.budget
        notes["config"], notes["log"] = run.config.to_dict(), run.history[-400:]
        if run.history: _draw_loss(a, run.history)
    notes["precision"] = run.precision
    if run.step < run.config.steps: sys.exit(3)               # stopped: to be gone on with


def _draw_loss(a, history) -> None:
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = [row["step"] for row in history]
    for key, color in (("loss", "tab:orange"), ("held_out", "tab:blue")):
        axes.plot(steps, [row[key] for row in history], color=color, label=key)
    axes.set(xlabel="updates", ylabel="mean squared error of eps", yscale="log",
             title="In training, and of the average on images that it never saw")
    axes.legend()
    figure.savefig(a.out / "loss.png", dpi=90)


def _trained(a):
    from ddpm_nb.engine.runs import load_run
    return load_run(a.work / "run", device=device_name())


def samples(a: argparse.Namespace, notes: Notes) -> None:
    "What it draws, by two samplers; of twelve, some of the states and guesses of x0 on the way."
    import torch
    from cifar10_snapshot import save
    net, diffusion = _trained(a)
    n, few = (4, 3) if a.dry_run else (100, 50)
    for sampler, steps in (("ddim", few), ("ddpm", few if a.dry_run else 1000)):
        begun, states, guesses = time.perf_counter(), [], []
        with torch.autocast(device_name(), torch.bfloat16, enabled=not a.dry_run):
            for state in diffusion.trajectory(net, (n, 3, 32, 32), sampler, steps,
                                              torch.Generator().manual_seed(0)):
                if (state.t + 1) % (steps // 20 or 1) == 0 or state.t == 0:
                    states.append(state.x[:12].cpu()), guesses.append(state.x0[:12].cpu())
        save(state.x, 10, a.out / f"samples-{sampler}.png")
        save(torch.cat(states), 12, a.out / f"states-{sampler}.png")
        save(torch.cat(guesses), 12, a.out / f"guesses-{sampler}.png")
        notes[sampler] = dict(images=n, steps=steps, seconds=time.perf_counter() - begun)


def distance(a: argparse.Namespace, notes: Notes) -> None:
    "The Fréchet distance of the samples from the training images, in the packaged features."
    import torch

    from ddpm_nb import evaluation, to_uint8
    names = ("cifar10_extractor", "cifar10_statistics", "extract", "Statistics", "frechet_distance")
    if missing := [k for k in names if not hasattr(evaluation, k)]:
        notes["left out"] = f"ddpm_nb.evaluation has no {', '.join(missing)}"
        return
    (net, diffusion), n, batch = _trained(a), *((32, 16) if a.dry_run else (10_000, 500))
    g, drawn, steps = torch.Generator().manual_seed(1), [], 3 if a.dry_run else 20
    for _ in range(0, n, batch):
        with torch.autocast(device_name(), torch.bfloat16, enabled=not a.dry_run):
            x = diffusion.sample(net, (batch, 3, 32, 32), "adams", steps, g, progress=False)
        drawn.append(to_uint8(x).cpu())
    extractor = evaluation.cifar10_extractor(device_name())
    features, _ = evaluation.extract(extractor, torch.cat(drawn))
    own = evaluation.Statistics.of(features, extractor.name)
    notes["distance"] = evaluation.frechet_distance(own, evaluation.cifar10_statistics(True))
    notes["of"] = dict(images=n, precision="bf16", sampler="adams", steps=steps,
                       extractor=extractor.name)


# What runs them -----------------------------------------------------------------------------------

STEPS = {"machine": 60, "tests": 200, "correct": 300, "rates": 400, "train": 10**6,
         "samples": 200, "distance": 300}       # the most seconds of each
FINAL = ("done", "failed", "out of time")


def run_step(name: str, limit: float, a: argparse.Namespace) -> dict:
    "A step in a process of its own; how it ended."
    a.work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--step", name, *sys.argv[1:]]
    if name == "train": command += ["--train-minutes", str(a.train_minutes)]
    env, begun = {**os.environ, "PYTHONPATH": os.pathsep.join(
        [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])}, time.monotonic()
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")       # as `repeatable` wants it
    with open(a.work / f"{name}.log", "ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        try: code, late = child.wait(limit), False
        except subprocess.TimeoutExpired:
            late = True
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError): os.killpg(child.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(LAST)
                    break
            code = child.returncode
    found, seconds = a.work / f"{name}.json", round(time.monotonic() - begun, 1)
    result = json.loads(found.read_text()) if found.is_file() else {}
    unfinished = code == 3 or (late and limit < STEPS[name])       # it is this call that is over
    status = "to be gone on with" if unfinished else "out of time" if late else \
        "done" if code == 0 else "failed"
    ended = {} if code == 0 else {"log": (a.work / f"{name}.log").read_text()[-2000:]}
    return dict(status=status, seconds=seconds, result=result, **ended)


def put_weights(a: argparse.Namespace) -> None:
    "Parts of the averaged weights, in half precision, and their checksums, into `--out`."
    import hashlib

    from safetensors.torch import save
    data = save({k: v.half().contiguous().cpu() for k, v in _trained(a)[0].state_dict().items()})
    parts = [data[i:i + PART] for i in range(0, len(data), PART)]
    for i in a.weights: (a.out / f"weights.{i}").write_bytes(parts[i])
    sums = [hashlib.sha256(part).hexdigest() for part in parts]
    write(a.out / "weights.json", dict(parts=sums, all=hashlib.sha256(data).hexdigest()))
    print(f"{len(parts)} parts; {a.weights} are in {a.out}")


def main() -> int:
    a = words()
    begun, results = time.monotonic(), Notes(a.out / "results.json")
    if a.step:
        globals()[a.step](a, Notes(a.work / f"{a.step}.json"))
        return 0
    a.out.mkdir(parents=True, exist_ok=True)
    if a.weights is not None:
        put_weights(a)
        return 0
    again = {*a.again} | ({"samples", "distance"} if "train" in a.again else set())
    for name in again: results.pop(name, None)
    if again: write(results.path, results)        # before anything is deleted
    if "train" in again:                 # another run; and what is measured is of the new one
        shutil.rmtree(a.work / "run", ignore_errors=True)
    for name in again:
        (a.work / f"{name}.json").unlink(missing_ok=True)
    for name, most in STEPS.items():
        if results.get(name, {}).get("status") in FINAL: continue
        if a.only and name not in a.only: continue
        left = 60 * a.minutes - (time.monotonic() - begun) - LAST
        if left < 5: break
        if a.train_minutes is None and name == "train":
            a.train_minutes = 0.05 if a.dry_run else max(1.0, left / 60 - 3)
        results[name] = run_step(name, min(most, left), a)
        print(f"{name}: {results[name]['status']}, {results[name]['seconds']} s", flush=True)
        if results[name]["status"] not in FINAL: break
    done = all(results.get(name, {}).get("status") in FINAL for name in STEPS)
    goes_on = "the same command goes on" + (", without --again" if again else "")
    print(f"all is done, in {a.out}" if done else f"not all is done: {goes_on}")
    return 0


if __name__ == "__main__": sys.exit(main())
