"""Run the notebooks to download as a reader does: each alone, in an empty folder, in an environment
that holds the package, what it requires, a kernel, and nothing else.

    python tools/run_downloads.py                             all of them, two at a time
    python tools/run_downloads.py 01_schedules engine/runs    some
    python tools/run_downloads.py --python bare/bin/python    in an environment that pip made

The environment costs seconds and no disk: the package's wheel is installed, and what it requires
is linked from where this runs. Nothing has been downloaded there and no GPU is seen, so each page
goes at the size that fits anywhere. A page of the appendix that reads the others may say so, and
stop there.
"""
import argparse, ast, json, os, re, shutil, subprocess, sys, sysconfig, tempfile, time, venv
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from plain import NBS, ROOT, notebooks, plain, plain_code

CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")


# --- the environment -----------------------------------------------------------------------------

def build_wheel(into):
    "The wheel, built from a copy of what the project commits: nothing is left in the tree."
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / "a folder with spaces"
        shutil.copytree(ROOT / "ddpm_nb", copy / "ddpm_nb",
                        ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        for name in ("setup.py", "settings.ini", "MANIFEST.in", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        (copy / "tools").mkdir()
        shutil.copy(ROOT / "tools" / "addresses.py", copy / "tools")      # which setup.py asks
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", into]
        done = subprocess.run([*command, copy], capture_output=True, text=True)
    if done.returncode: sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return next(Path(into).glob("*.whl"))


def brought_by(requirements):
    "Name -> distribution, of these and of all that they require on this machine."
    found, todo = {}, [Requirement(r) for r in requirements]
    while todo:
        needed = todo.pop()
        name = canonicalize_name(needed.name)
        if name in found or needed.marker and not needed.marker.evaluate({"extra": ""}): continue
        found[name] = distribution(name)
        todo += map(Requirement, found[name].requires or ())
    return found


def requirements(): return [*CONFIG["DEFAULT"]["requirements"].split(), "ipykernel"]


def link(there, here):
    "As a link; where the system allows none, as a copy."
    if here.exists(): return        # a folder of several distributions
    try: here.symlink_to(there, target_is_directory=there.is_dir())
    except OSError: (shutil.copytree if there.is_dir() else shutil.copy)(there, here)


def environment(folder, needs, wheel):
    "Its Python. `needs` and what they bring are linked; the wheel is installed."
    venv.create(folder, symlinks=os.name != "nt")
    paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    for found in brought_by(needs).values():
        for top in {f.parts[0] for f in found.files} - {"..", "__pycache__"}:
            link(Path(found.locate_file(top)), Path(paths["purelib"], top))
    python = Path(paths["scripts"], "python")
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet",
                    "--no-index", "--no-deps", "--ignore-installed",    # a checkout on PYTHONPATH
                    wheel], check=True)
    return python


# --- one page ------------------------------------------------------------------------------------

def surroundings(scratch, python):
    "What a page sees of this machine: nothing that was downloaded, no GPU, no settings of ours."
    ours = re.compile(r"DDPM_NB_|PYTHONPATH$|MPLBACKEND$|VIRTUAL_ENV$")
    env = {name: value for name, value in os.environ.items() if not ours.match(name)}
    return {"OMP_NUM_THREADS": "1"} | env | {
        "DDPM_NB_CACHE": str(scratch / "cache"), "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(python).parent}{os.pathsep}{env['PATH']}"}


def kernel(scratch, python):
    "Describe a kernel called `alone`, which that Python runs."
    place = scratch / "kernels" / "alone"
    place.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = dict(argv=argv, display_name="alone", language="python")
    (place / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


def run(page, nb, scratch, env):
    "Run one to its end, or to where it stops of itself; False after any other error."
    folder, start, said = scratch / "pages" / page, time.time(), ""
    folder.mkdir(parents=True)
    text = json.dumps(plain(nb, page))
    (folder / "alone.ipynb").write_text(text, encoding="utf-8")
    client = NotebookClient(nbformat.reads(text, 4), timeout=900, kernel_name="alone",
                            resources={"metadata": {"path": str(folder)}})
    client.create_kernel_manager().kernel_spec_manager.kernel_dirs = [str(scratch / "kernels")]
    try: client.execute(env=env, stderr=subprocess.DEVNULL)
    except Exception as e:          # of a cell; or it took too long, or the kernel died
        if getattr(e, "ename", "") != "SystemExit" or not page.startswith("appendix/"):
            text = re.sub(r"\x1b\[[\d;]*m", "", str(e))       # without colours
            return print(f"{page}: FAILED\n{text}", flush=True)
        said = f", stops: {e.evalue}"
    print(f"{page}: {time.time() - start:.0f} s{said}", flush=True)
    return True


# --- all of them ---------------------------------------------------------------------------------

@cache
def lacking():
    "The modules that are here, and not there."
    there = {*brought_by(requirements()), "ddpm-nb"}
    return {module for module, owners in packages_distributions().items()
            if there.isdisjoint(map(canonicalize_name, owners))}


def has_more(page, nb):
    "Does it do more in a checkout: with other packages, files beside it, or CIFAR-10?"
    cells = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]
    code = "\n".join(map(plain_code, cells))
    called = "\n".join(c for c in cells if not re.match(r"#\s*\|\s*export", c))
    nodes = list(ast.walk(ast.parse(code)))
    imported = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    beside = {p.name for p in (NBS / page).parent.iterdir()} - {"runs", "data"} | {"tools"}
    imported = {o.split(".")[0] for o in imported} - {"ipywidgets"}      # no hand is there
    return bool(imported & lacking() or texts & beside
                or re.search(r"(?<![\w.])(?<!def )(read_)?cifar10\(", called))


def more():
    "The pages that are worth a run in the checkout besides."
    return [page for _, page, nb in notebooks() if has_more(page, nb)]


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("pages", nargs="*", help="paths in nbs/, without suffix; all of them")
    parser.add_argument("--python", help="of an environment with the package and ipykernel")
    args = parser.parse_args()
    found = {page: nb for _, page, nb in notebooks()}
    if unknown := {*args.pages} - {*found}: sys.exit(f"no such page: {', '.join(unknown)}")
    # these take longest: with them first, no stream waits for the other at the end
    long = "experiments/", "engine/faster"
    pages = sorted(args.pages or found, key=lambda page: not page.startswith(long))
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        if args.python: python = Path(args.python).absolute()       # as a link: it is a venv's
        else: python = environment(tmp / "env", requirements(), build_wheel(tmp))
        kernel(tmp, python)
        env = surroundings(tmp, python)
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda page: run(page, found[page], tmp, env), pages))
    failed = [page for page, ok in zip(pages, done) if not ok]
    if failed: sys.exit(f"{len(failed)} of {len(pages)} did not run alone: {', '.join(failed)}")
    print(f"{len(pages)} notebooks ran, each alone")


if __name__ == "__main__": main()
