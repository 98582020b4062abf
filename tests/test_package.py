"""The package as others install it: what the wheel holds and needs, what importing it costs."""
import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "ddpm_nb").rglob("*.py"))
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
CONFIG = CONFIG["DEFAULT"]
RUN_TIME = {"torch", "einops", "numpy", "matplotlib", "tqdm", "safetensors", "accelerate",
            "huggingface_hub", "filelock", "pillow"}
HEAVY = {"matplotlib", "PIL", "accelerate", "huggingface_hub", "scipy", "sklearn", "pandas",
         "diffusers", "IPython", "nbdev"}


def names(requirements):
    return {re.match(r"[\w.-]+", r)[0] for r in requirements}


def needed_to_build():
    "The tool that builds the wheel, where what it uses is installed."
    for name in ("build", "wheel"): pytest.importorskip(name)
    return pytest.importorskip("run_downloads", reason="Jupyter is not here")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    build_wheel = needed_to_build().build_wheel
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("dist")))


@pytest.fixture(scope="module")
def source_archive(tmp_path_factory):
    "Built from a copy of what the project commits, but for what is not in it anyway."
    needed_to_build()
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT, folder / "project", ignore=shutil.ignore_patterns(
        ".*", "docs", "runs", "build", "dist", "*.egg-info", "__pycache__", "data"))
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir",
               folder / "dist", folder / "project"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((folder / "dist").glob("*.tar.gz"))


def test_the_wheel_holds_every_module_and_all_embedded_data_and_nothing_else(wheel):
    held = {n for n in wheel.namelist() if ".dist-info/" not in n}
    left_out = {"__pycache__", ".ipynb_checkpoints"}
    files = [p.relative_to(ROOT) for p in (ROOT / "ddpm_nb").rglob("*") if p.is_file()]
    assert held == {p.as_posix() for p in files if left_out.isdisjoint(p.parts)}
    assert {"ddpm_nb/py.typed", "ddpm_nb/__main__.py", "ddpm_nb/engine/cli.py"} <= held


def test_the_wheel_says_what_it_is_and_what_it_needs_to_run(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith("METADATA"))
    said = Parser().parsestr(wheel.read(name).decode())
    assert (said["Name"], said["Version"]) == (CONFIG["lib_name"], CONFIG["version"])
    assert said["Requires-Python"] == ">=" + CONFIG["min_python"]
    licences = "Apache-2.0 AND CC-BY-4.0"         # the code's, and that of the packaged digits
    assert licences in (said["License-Expression"], said["License"])
    assert any(n.endswith("licenses/LICENSE") or n.endswith("/LICENSE") for n in wheel.namelist())
    needs = said.get_all("Requires-Dist")
    assert names(r for r in needs if "extra ==" not in r) == RUN_TIME
    assert {"nbdev", "pytest", "ruff", "pyright", "onnx", "onnxruntime", "onnxscript"} \
        <= names(r for r in needs if "extra ==" in r)


def setup_of(folder, monkeypatch):
    "What setup.py hands to setuptools, for the settings in a folder."
    import runpy

    import setuptools
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(folder / "setup.py"))
    return given


def settings_with(folder, **settings):
    "A copy of what setup.py reads, some settings changed."
    for name in ("setup.py", "settings.ini", "README.md"): shutil.copy(ROOT / name, folder)
    (folder / "tools").mkdir(exist_ok=True)
    shutil.copy(ROOT / "tools/addresses.py", folder / "tools")
    text = (ROOT / "settings.ini").read_text(encoding="utf-8")
    for name, value in settings.items():
        text, n = re.subn(rf"^{name} =.*$", f"{name} = {value}", text, flags=re.M)
        assert n == 1
    (folder / "settings.ini").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("git_url, doc_host, site", [
    ("https://github.com/Some-One/ddpm_nb", "", "https://some-one.github.io/ddpm_nb"),
    ("https://github.com/a/b.git", "", "https://a.github.io/b"),
    ("https://github.com/a/b/", "https://x.example.org/", "https://x.example.org"),
    ("https://example.org/x", "", ""), ("", "", "")])
def test_the_address_on_github_says_where_the_site_is(
        tmp_path, monkeypatch, git_url, doc_host, site):
    "One setting is enough: README, metadata and downloads follow it."
    from addresses import documentation
    assert documentation(git_url, doc_host) == site
    settings_with(tmp_path, git_url=git_url, doc_host=doc_host)
    there = setup_of(tmp_path, monkeypatch)
    assert there["project_urls"].get("Documentation", "") == site
    assert (f"({site}/03_bound.html" in there["long_description"]) is bool(site)


def test_the_readme_leads_to_the_site_where_github_publishes_it(monkeypatch):
    pytest.importorskip("nbdev")
    import importlib.util
    from types import SimpleNamespace
    spec = importlib.util.spec_from_file_location("book_site", ROOT / "tools/site.py")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    for git_url, base in (("https://github.com/a/b", "https://a.github.io/b"), ("", "docs")):
        settings = SimpleNamespace(d={"git_url": git_url, "doc_host": ""})
        monkeypatch.setattr(site, "get_config", lambda settings=settings: settings)
        pages = re.findall(r"\(([^()\s]*/)03_bound\.html", site.readme())
        assert pages and set(pages) == {f"{base}/"}


def test_on_the_package_index_no_link_is_relative_and_the_project_has_its_addresses(
        tmp_path, monkeypatch):
    settings_with(tmp_path)
    here = setup_of(tmp_path, monkeypatch)
    assert here["project_urls"] == {} and "](docs/" in here["long_description"]
    settings_with(tmp_path, git_url="https://example.org/x", doc_host="https://x.example.org")
    there = setup_of(tmp_path, monkeypatch)
    links = re.findall(r"\]\(([^)\s]+)\)", there["long_description"])
    assert len(links) > 20 and all(re.match(r"https?://|#", link) for link in links)
    assert "(https://x.example.org/03_bound.html" in there["long_description"]
    assert "(https://example.org/x/raw/main/docs/_images/" in there["long_description"]
    assert there["project_urls"]["Documentation"] == "https://x.example.org"


def test_the_oldest_versions_are_those_that_the_settings_declare():
    done = subprocess.run([sys.executable, "tools/lowest.py"], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    assert names(done.stdout.split()) == RUN_TIME and "safetensors==0.4.4\n" in done.stdout


def test_the_index_takes_both_archives_as_they_are(wheel, source_archive):
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", wheel.filename, source_archive]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_the_source_archives_tests_run_where_the_wheel_is_installed(
        wheel, source_archive, tmp_path):
    "In an environment that knows nothing of this tree; some that are quick, from three shelves."
    with tarfile.open(source_archive) as tar: tar.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    shutil.rmtree(unpacked / "ddpm_nb")             # else that would be imported
    needs = [*CONFIG["requirements"].split(), "pytest", "hypothesis", "scipy"]
    python = needed_to_build().environment(tmp_path / "env", needs, wheel.filename)
    command = [python, "-m", "pytest", *(f"tests/test_{o}.py" for o in ("bound", "files", "plain"))]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=unpacked, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:] + done.stderr


def test_the_source_archive_holds_what_its_tests_need(source_archive):
    with tarfile.open(source_archive) as tar:
        held = {n.split("/", 1)[-1] for n in tar.getnames()}
    needed = {p.relative_to(ROOT).as_posix() for folder in ("tests", "tools", "ddpm_nb/assets")
              for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert needed | {"pytest.ini", "settings.ini", "nbs/01_schedules.ipynb"} <= held


def test_the_wheel_installs_the_command(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    said = ConfigParser()
    said.read_string(wheel.read(name).decode())
    assert dict(said["console_scripts"]) == {"ddpm-nb": "ddpm_nb.engine.cli:main"}


def test_the_installed_wheel_runs_the_command_from_its_own_files(wheel, tmp_path):
    "What the help lists is read from the sources: they must be in the wheel too, wherever it is."
    wheel.extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import runpy; " \
           "sys.argv = ['ddpm-nb', 'train', '--help']; " \
           "runpy.run_module('ddpm_nb', run_name='__main__')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "unet.base_channels=128" in done.stdout, done.stderr


def test_the_version_is_one_everywhere():
    import ddpm_nb
    assert ddpm_nb.__version__ == CONFIG["version"]
    assert f"version: {CONFIG['version']}" in (ROOT / "CITATION.cff").read_text()


def test_the_two_entries_to_cite_by_say_what_the_file_of_citations_says():
    "The BibTeX on the page for teachers, field by field."
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    says = lambda key, text: re.search(rf"^{key}: *(.+?)$", text, flags=re.M)[1].strip('"')
    paper = re.sub(r"^  ", "", cited.partition("preferred-citation:\n")[2], flags=re.M)
    names = re.findall(r"family-names: (\w+), given-names: (\w+)", paper)
    page = json.loads((ROOT / "nbs" / "appendix" / "teaching.ipynb").read_text(encoding="utf-8"))
    (bibtex,) = [o for c in page["cells"] if "```bibtex" in (o := "".join(c["source"]))]
    first, second = re.findall(r"^@\w+\{\w+,\n(.*?)^\}", bibtex, flags=re.M | re.S)
    entry = lambda text: dict(re.findall(r"^ +(\w+) += \{+(.+?)\}+,?$", text, flags=re.M))
    assert entry(first) == {
        "title": says("title", paper), "booktitle": says("collection-title", paper),
        "author": " and ".join(f"{family}, {given}" for family, given in names),
        "volume": says("volume", paper), "year": says("year", paper)}
    ours = entry(second)
    assert ours.pop("year") >= CONFIG["copyright"][:4]
    assert ours == {"title": says("title", cited), "version": CONFIG["version"],
                    "author": says("  - name", cited)}


def test_no_other_file_of_the_package_says_the_version():
    "nbdev writes it into `__init__.py` from settings.ini; the rest asks `ddpm_nb.__version__`."
    said = re.compile(rf"[\"']{re.escape(CONFIG['version'])}")
    files = [p for p in MODULES if said.search(p.read_text(encoding="utf-8"))]
    assert [p.relative_to(ROOT).as_posix() for p in files] == ["ddpm_nb/__init__.py"]


def imported(path):
    "Top-level packages that a module imports anywhere in its code."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): yield from (a.name.split(".")[0] for a in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT / "ddpm_nb").as_posix())
def test_a_module_imports_only_the_standard_library_itself_and_what_is_required_to_run(path):
    allowed = set(sys.stdlib_module_names) | (RUN_TIME - {"pillow"}) | {"PIL", "ddpm_nb"}
    optional = {"tensorboard", "IPython", "ipywidgets"}   # used, or asked for by name
    assert set(imported(path)) <= allowed | optional, path.name


# As if only the run-time requirements, and what they require, were installed: others are refused.
CLEAN = r"""
import importlib, importlib.metadata as md, json, pkgutil, re, sys
norm = lambda name: re.sub(r"[-_.]+", "-", name).lower()
seen, todo = set(), [norm(n) for n in sys.argv[1:]]
while todo:
    name = todo.pop()
    if name in seen: continue
    seen.add(name)
    try: needs = md.requires(name) or []
    except md.PackageNotFoundError: continue   # for another platform
    todo += [norm(re.match(r"[\w.-]+", r)[0]) for r in needs if "extra ==" not in r]
owners = md.packages_distributions()
brought = {module for module, by in owners.items() if {norm(o) for o in by} & (seen | {"ddpm-nb"})}
assert not brought & {"nbdev", "fastcore", "IPython", "diffusers", "sphinx", "sklearn"}, brought
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in set(owners) - brought: return
        raise ModuleNotFoundError(f"not there: {name}", name=name)
sys.meta_path.insert(0, Only())
import ddpm_nb
names = [module.name for module in pkgutil.walk_packages(ddpm_nb.__path__, "ddpm_nb.")]
for name in names: importlib.import_module(name)
print(json.dumps(names))
"""


def test_it_imports_where_nothing_but_its_requirements_is_installed():
    command = [sys.executable, "-c", CLEAN, *sorted(RUN_TIME)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    paths = [p.relative_to(ROOT).with_suffix("").parts for p in MODULES]
    wanted = {".".join(parts).removesuffix(".__init__") for parts in paths} - {"ddpm_nb"}
    assert set(json.loads(done.stdout)) == wanted


ASKED = {name for path in (ROOT / "tests").glob("test_*.py")
         for line in path.read_text(encoding="utf-8").splitlines() if "importorskip" in line
         for name in re.findall(r'"([A-Za-z][\w.]*)"', line)}
assert {"onnx", "onnxruntime", "build", "wheel", "diffusers"} <= ASKED


@pytest.mark.parametrize("name", sorted(ASKED))
def test_what_the_tests_ask_for_can_be_imported_where_it_is_installed(name):
    "Else a release that is broken would turn all that is compared with it into skipped tests."
    if importlib.util.find_spec(name.partition(".")[0]) is None: pytest.skip(f"no {name} here")
    try: importlib.import_module(name)
    except ModuleNotFoundError as e:       # of another that is asked for, and is not here at all
        if e.name not in {o.partition(".")[0] for o in ASKED}: raise
        pytest.skip(f"no {e.name} here, which {name} needs")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys; old = set(sys.modules); import ddpm_nb; print(*set(sys.modules) - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.split()} & (HEAVY | {"torch", "numpy"})


def test_its_names_import_nothing_heavy_but_torch():
    code = "import torch, sys; before = set(sys.modules); from ddpm_nb import *; " \
           "print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.split()} & HEAVY
