"""What all tests share: when the slow ones and those for a GPU run; one thread for a worker; the
same random numbers; and that a test leaves nothing behind that the next would meet."""
import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path

import guards
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))       # the tools are no package


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run what takes minutes")


@pytest.fixture(autouse=True, scope="session")
def compiled_files_of_this_session_alone(tmp_path_factory):
    "What a compiler was writing when it was killed is taken for whole ever after: not in a test."
    folder = str(tmp_path_factory.getbasetemp() / "inductor")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
        yield


@pytest.fixture(autouse=True)
def the_same_random_numbers():
    "Whichever tests ran before. No test's own generator has this seed: its draws would be these."
    torch.manual_seed(200611239)
    np.random.seed(200611239)


# what the package reads from the environment
READ = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "DDPM_NB_CACHE", "DDPM_NB_SIZE")


@pytest.fixture(autouse=True)
def what_all_tests_share_stays_as_it_was():
    "A name that a library sets for itself when it is imported is its own affair."
    names = {*os.environ, *READ} - {"PYTEST_CURRENT_TEST"}
    def now():
        return {"dtype": torch.get_default_dtype(), "threads": torch.get_num_threads(),
                "gradients": torch.is_grad_enabled(), "folder": os.getcwd(),
                "inference": torch.is_inference_mode_enabled(),
                **{name: os.environ.get(name) for name in names}}
    before = now()
    yield
    after = now()
    changed = [name for name in before if after[name] != before[name]]
    assert not changed          # by name: what is in the environment may be secret


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    guards.end_processes()


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ: torch.set_num_threads(1)
    if os.environ.get("CI") and importlib.util.find_spec("hypothesis"):
        # what fails there can be repeated here; elsewhere each run looks at other examples
        from hypothesis import settings
        settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
        settings.load_profile("repeatable")


def pytest_terminal_summary(terminalreporter):
    "What was not tested, and why: a subject that is skipped as a whole is no dot among many."
    skipped = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])
               if isinstance(report.longrepr, tuple)]
    for reason, number in Counter(skipped).most_common():
        terminalreporter.write_line(f"{number} skipped: {reason.removeprefix('Skipped: ')}")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: runs with --slow"))
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
        of_site = item.path.stem in ("test_site", "test_site_axe", "test_live")
        if of_site and not (ROOT / "docs").is_dir():
            item.add_marker(pytest.mark.skip(reason="the source archive leaves docs/ out"))
