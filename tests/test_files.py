"Files that appear at once and whole or not at all, and the lock of a folder."
import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from guards import PATIENCE, run_python
from PIL import Image

from ddpm_nb.data import read_cifar10
from ddpm_nb.engine import cli, files, runs
from ddpm_nb.engine.files import FolderLock, check_writable, replacing
from ddpm_nb.engine.images import load_image
from ddpm_nb.engine.runs import checkpoints, read_checkpoint
from ddpm_nb.plotting import save_grid, show_images

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX's signals and modes")


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home folder; the work goes on in another."
    (tmp_path / "home").mkdir(), (tmp_path / "work").mkdir()
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert names(tmp_path / "work") == []


def names(folder): return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("accident", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("folder", [False, True])
def test_a_block_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, folder, accident):
    path = tmp_path / "x.png"
    for before in ([], ["x.png"]):
        if before:
            with replacing(path, folder) as part: (part / "a" if folder else part).write_text("old")
        with pytest.raises(accident), replacing(path, folder) as part:
            (part / "b" if folder else part).write_text("new")
            raise accident
        assert names(tmp_path) == before
    assert (path / "a" if folder else path).read_text() == "old"


def test_a_full_disk_leaves_what_was_there(tmp_path):
    resource = pytest.importorskip("resource")
    (tmp_path / "x").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError), replacing(tmp_path / "x") as part:
            part.write_bytes(bytes(5000))
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


def test_the_part_is_hidden_beside_its_place_with_its_ending_and_a_name_of_its_own(tmp_path):
    with replacing(tmp_path / "new" / "x.png") as a, replacing(tmp_path / "new" / "x.png") as b:
        assert a != b and a.parent == b.parent == tmp_path / "new"
        assert a.suffix == ".png" and a.name.startswith(".x.") and str(os.getpid()) in a.name
        a.write_text("a"), b.write_text("b")
    assert names(tmp_path / "new") == ["x.png"] and (tmp_path / "new" / "x.png").read_text() == "a"
    long = "n" * 251 + ".png"                                      # as long as a name may be
    with replacing(tmp_path / long) as part: part.write_text("")
    assert (tmp_path / long).exists()


@POSIX
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_is_the_one_the_umask_gives(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "x") as part: part.write_text("")
        with replacing(tmp_path / "f", folder=True) as part: (part / "y").write_text("")
    finally: os.umask(before)
    found = [(tmp_path / name).stat().st_mode & 0o777 for name in ("x", "f/y", "f")]
    assert found == [mode, mode, mode | (mode & 0o444) >> 2]


def test_files_and_folders_are_synced_before_they_get_their_name_and_the_name_after(tmp_path,
                                                                                   monkeypatch):
    done, sync, move = [], files._sync, files.move
    monkeypatch.setattr(files, "_sync", lambda p: (done.append(p.name), sync(p)))
    monkeypatch.setattr(files, "move", lambda a, b: (done.append("MOVE"), move(a, b)))
    with replacing(tmp_path / "f", folder=True) as part:
        (part / "sub").mkdir()
        for name in ("a", "sub/b"): (part / name).write_text("")
    before, after = done[:done.index("MOVE")], done[done.index("MOVE") + 1:]
    assert sorted(before) == sorted([part.name, "a", "b", "sub"]) and after == [tmp_path.name]


def test_a_link_is_written_through_and_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with replacing(tmp_path / "link") as part: part.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "new"
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", Path(os.devnull)):
        with pytest.raises(OSError, match="is there, and no ordinary file"), replacing(path): pass
    with pytest.raises(OSError, match="no folder"), replacing(tmp_path / "there", folder=True): pass
    assert names(tmp_path) == ["folder", "link", "there"]


def test_a_folder_that_cannot_take_its_place_gives_it_back(tmp_path, monkeypatch):
    with replacing(tmp_path / "f", folder=True) as part: (part / "old").write_text("")
    rename = os.replace

    def refuse(a, b):
        if Path(b).name == "f" and (Path(a) / "new").exists():
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename(a, b)

    with pytest.raises(OSError), replacing(tmp_path / "f", folder=True) as part:
        (part / "new").write_text("")
        monkeypatch.setattr(os, "replace", refuse)
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["old"]


KILLED = """
import os, sys
from pathlib import Path
from ddpm_nb.engine.files import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_text("new, to the ha")
    os.kill(os.getpid(), 9)
"""


@POSIX
def test_a_kill_in_the_middle_leaves_the_old_file_whole(tmp_path):
    (tmp_path / "x").write_text("old")
    assert run_python(KILLED, tmp_path / "x").wait(timeout=PATIENCE) == -signal.SIGKILL
    assert (tmp_path / "x").read_text() == "old"
    assert [n for n in names(tmp_path) if not n.startswith(".x.")] == ["x"]


def test_a_folder_that_cannot_be_written_is_told_and_a_probe_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the folder"):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path) == ["file"]


# The lock


HOLDS = """
import sys, time
from ddpm_nb.engine.files import FolderLock
with FolderLock(sys.argv[1]):
    print("taken", flush=True)
    time.sleep(1000)
"""


@POSIX
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_lock_keeps_other_processes_out_and_ends_with_its_own(tmp_path, name):
    holder = run_python(HOLDS, tmp_path / "run")
    assert holder.stdout.readline() == "taken\n"
    for _ in range(2):
        with pytest.raises(OSError, match=rf"run is in use .* \(process {holder.pid}\)"):
            FolderLock(tmp_path / "run").__enter__()
    holder.send_signal(getattr(signal, name))
    holder.wait(timeout=PATIENCE)
    with FolderLock(tmp_path / "run"): pass
    assert names(tmp_path / "run") == []


def test_a_lock_may_be_taken_again_by_its_holder_and_is_free_at_the_end(tmp_path):
    lock = FolderLock(tmp_path)
    with lock:
        with lock: pass
        with pytest.raises(OSError, match="in use"), FolderLock(tmp_path): pass
    with pytest.raises(RuntimeError), FolderLock(tmp_path): raise RuntimeError
    with FolderLock(tmp_path), FolderLock(tmp_path / "other"): pass


# The home folder, by its sign

def test_what_is_written_to_a_path_with_a_tilde_is_in_the_home_folder(home):
    with replacing("~/a/x.txt") as part: part.write_text("x")
    assert (home / "a" / "x.txt").read_text() == "x"
    check_writable("~/new")
    with FolderLock("~/run") as lock: assert lock.folder == home / "run"
    x = torch.zeros(2, 1, 4, 4)
    assert save_grid(x, "~/x.png") == home / "x.png"
    show_images(x, path="~/y.png")
    assert {"a", "run", "x.png", "y.png"} <= {*names(home)}


def test_what_is_read_from_a_path_with_a_tilde_is_in_the_home_folder(home):
    Image.new("RGB", (4, 4)).save(home / "x.png")
    assert load_image("~/x.png", 4).shape == (3, 4, 4)
    saved = home / "run" / "checkpoints" / "step_00000001"
    runs._write_checkpoint(saved, {"model": {"w": torch.ones(1)}}, {"step": 1})
    assert checkpoints("~/run") == [saved]
    assert read_checkpoint("~/run/checkpoints/step_00000001")[1]["step"] == 1
    with pytest.raises(FileNotFoundError, match="CIFAR-10 is not in .*home.cifar"):
        read_cifar10("~/cifar")


def test_the_command_knows_the_tilde_that_the_shell_left_alone(home):
    words = cli.parser().parse_args(["sample", "~/run", "--out=~/x/", "--root=~/data"])
    assert (words.model, words.out) == (str(home / "run"), str(home / "x") + "/")
    assert words.root == home / "data"
    words = cli.parser().parse_args(["train", "--out=~/r", "--config=~/c.json"])
    assert (words.out, words.config) == (home / "r", home / "c.json")


def test_a_file_whose_own_name_begins_with_a_tilde_is_left_alone(home, monkeypatch):
    monkeypatch.chdir(home)
    with replacing("~notes.txt") as part: part.write_text("x")
    assert names(home) == ["~notes.txt"]
