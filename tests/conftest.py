"""What all tests share: when the slow ones and those for a GPU run; one thread for a worker."""
import os
import sys
from pathlib import Path

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


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ: torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: runs with --slow"))
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
        of_site = item.path.stem in ("test_site", "test_site_axe", "test_live")
        if of_site and not (ROOT / "docs").is_dir():
            item.add_marker(pytest.mark.skip(reason="the source archive leaves docs/ out"))
