"""Everything that a change must pass: `make test` runs this, and so does the CI.

    python tools/check.py            all of it
    python tools/check.py --quick    without running the notebooks and the tests
    python tools/check.py --gpu      with the cells and tests that are marked for a GPU, or as slow
"""
import argparse, filecmp, os, shutil, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
# What one batch frees the next one takes, and the system need not clear it in between.
# (These are glibc's, and others do not mind them.)
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
IGNORE = shutil.ignore_patterns("__pycache__", "runs", "data", ".ipynb_checkpoints", "_static")


def run(*command, **kwargs):
    "Run a command in the project; True if it succeeded."
    where = {"cwd": ROOT, "stdin": subprocess.DEVNULL} | kwargs
    return subprocess.run([str(o) for o in command], **where).returncode == 0


def differences(a, b, suffix):
    "Paths of files with that suffix which differ between two folders, or are in one of them only."
    passing = {"__pycache__", ".ipynb_checkpoints"}

    def files(base):
        found = (f.relative_to(base) for f in base.rglob("*" + suffix))
        return {f for f in found if not passing & set(f.parts)}

    def same(f):
        return all((x / f).exists() for x in (a, b)) and filecmp.cmp(a / f, b / f, shallow=False)

    return sorted(str(f) for f in files(a) | files(b) if not same(f))


def style():
    "ruff, for what is not generated"
    return run(BIN / "ruff", "check", ".")


def exports():
    "ddpm_nb/ is what the notebooks export, and the notebooks are clean"
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / ROOT.name
        copy.mkdir()
        for name in ("settings.ini", "setup.py"): shutil.copy(ROOT / name, copy)
        for name in ("nbs", "ddpm_nb"): shutil.copytree(ROOT / name, copy / name, ignore=IGNORE)
        done = run(BIN / "nbdev_export", cwd=copy) and run(BIN / "nbdev_clean", cwd=copy)
        if not done: return False
        code = differences(ROOT / "ddpm_nb", copy / "ddpm_nb", ".py")
        notebooks = differences(ROOT / "nbs", copy / "nbs", ".ipynb")
    if code: print("behind the notebooks (run `make export`):", *code, sep="\n  ddpm_nb/")
    if notebooks: print("not clean (run `.venv/bin/nbdev_clean`):", *notebooks, sep="\n  nbs/")
    return not (code or notebooks)


def site():
    "README.md and docs/ are in step with the notebooks"
    return run(sys.executable, "tools/site.py", "--check")


def downloads():
    "every notebook runs alone, with the package's own requirements only"
    return run(sys.executable, "tools/run_downloads.py")


def notebooks(gpu):
    "notebooks that do more in a checkout, or on a GPU, run there too"
    chosen = ["--flags", "cuda slow"]
    if not gpu:
        from run_downloads import more
        chosen = ["--file_re", f"^({'|'.join(page.split('/')[-1] for page in more())})\\.ipynb$"]
    return run(BIN / "nbdev_test", "--n_workers", "2", "--timing", *chosen)


def tests(gpu):
    "pytest"
    # each worker keeps to a stretch of files: what a module makes once is not made by both
    workers = "-n", "2", "--dist", "worksteal"
    return run(sys.executable, "-m", "pytest", *workers, *(["--slow"] if gpu else []))


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true",
                        help="leave out the notebooks and the tests")
    parser.add_argument("--gpu", action="store_true",
                        help="include what is marked for a GPU, or as slow")
    args = parser.parse_args()
    # two workers, and one thread for each
    os.environ.update(KEEP, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    os.environ.update(PYTHONUNBUFFERED="1", MPLBACKEND="agg")
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    compiled = tempfile.TemporaryDirectory()       # no half-written file of a compiler's of before
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled.name
    steps = [style, exports, site]
    if not args.quick: steps += [downloads, lambda: notebooks(args.gpu), lambda: tests(args.gpu)]
    names = [f.__doc__ for f in (style, exports, site, downloads, notebooks, tests)]
    failed = []
    for step, name in zip(steps, names):
        print(f"\n=== {name}", flush=True)
        begun = time.time()
        ok = step()
        word = "passed" if ok else "FAILED"
        print(f"--- {word} in {time.time() - begun:.0f} s: {name}", flush=True)
        if not ok: failed.append(name)
    # pytest's closing line stays the last word when all is well
    if failed: sys.exit("\nFAILED: " + "; ".join(failed))


if __name__ == "__main__": main()
