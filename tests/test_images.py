"Images: every way in which a download, an archive or a picture can be wrong."
import hashlib
import http.server
import io
import os
import shutil
import struct
import tarfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_nb import data
from ddpm_nb.data import _CIFAR10_FOLDER, Batches
from ddpm_nb.engine import images
from ddpm_nb.engine.images import (ImageFiles, cache_folder, cifar10, download_file, image_folder,
                                   load_image, unpack)

pytestmark = pytest.mark.filterwarnings("ignore:left out in")   # what is said has tests of its own

# CIFAR-10 from a small stand-in of its archive


def small_files(monkeypatch, records=20):
    monkeypatch.setattr(data, "_RECORDS", records)
    rng = np.random.default_rng(0)
    files = {}
    for name in (*data._TRAIN_FILES, *data._TEST_FILES):
        rows = rng.integers(0, 256, (records, data._RECORD), dtype=np.uint8)
        rows[:, 0] %= 10
        files[name] = rows.tobytes()
    return files


def archive_of(files, folder=_CIFAR10_FOLDER):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_files(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items(): (folder / name).write_bytes(content)


class Server:
    "Serves one file on 127.0.0.1; `fault` makes it misbehave. Notes the Range headers asked for."
    def __init__(self, content, fault=None):
        self.asked, self.over, server = [], threading.Event(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                server.asked.append(wanted)
                if server.fault == "missing": return self.send_error(404)
                if server.fault == "silent": return server.over.wait(20)
                start = int(wanted[6:-1]) if wanted and server.fault != "no ranges" else 0
                if wanted and start >= len(content): return self.send_error(416)
                body = content[start:]
                self.send_response(206 if wanted and server.fault != "no ranges" else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if server.fault == "corrupt": body = bytes(len(body))
                if server.fault == "truncated": body = body[:len(body) // 2]
                self.wfile.write(body)

            def log_message(self, *args): pass

        self.fault = fault
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/cifar-10-binary.tar.gz"

    def __enter__(self): return self
    def __exit__(self, *exc): self.over.set(), self.http.shutdown(), self.http.server_close()


def test_cifar10_downloads_unpacks_and_is_then_used_as_it_is(tmp_path, monkeypatch):
    files = small_files(monkeypatch)
    packed = archive_of({"readme.html": b"hello", **files})
    monkeypatch.setattr(images, "_CIFAR10_MD5", hashlib.md5(packed).hexdigest())
    with Server(packed) as server:
        monkeypatch.setattr(images, "_CIFAR10_URL", server.url)
        x, y = cifar10(tmp_path, download=True)
        assert len(server.asked) == 1
        again, _ = cifar10(tmp_path, download=True)
        assert len(server.asked) == 1
    assert x.shape == (100, 3, 32, 32) and x.dtype == torch.uint8 and y.dtype == torch.long
    first = np.frombuffer(files["data_batch_1.bin"], np.uint8)
    assert y[0] == first[0] and (x[0].numpy().ravel() == first[1:3073]).all()
    assert torch.equal(x, again)
    assert cifar10(tmp_path / _CIFAR10_FOLDER, train=False)[0].shape == (20, 3, 32, 32)
    assert [p.name for p in tmp_path.iterdir()] == [_CIFAR10_FOLDER]   # no archive, nothing scratch


def test_programs_that_fetch_cifar10_at_once_do_it_once(tmp_path, monkeypatch):
    packed = archive_of(small_files(monkeypatch))
    monkeypatch.setattr(images, "_CIFAR10_MD5", hashlib.md5(packed).hexdigest())
    with Server(packed) as server, ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(images, "_CIFAR10_URL", server.url)
        found = list(pool.map(lambda _: cifar10(tmp_path, download=True)[0], range(4)))
        assert server.asked == [None]
    assert all(torch.equal(x, found[0]) for x in found)
    assert sorted(p.name for p in tmp_path.iterdir()) == [_CIFAR10_FOLDER]


def test_cifar10_says_what_is_missing_and_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="download=True"): cifar10(tmp_path)
    files = small_files(monkeypatch)
    del files["data_batch_3.bin"]
    write_files(tmp_path / _CIFAR10_FOLDER, files)
    with pytest.raises(FileNotFoundError, match="missing: data_batch_3.bin"): cifar10(tmp_path)
    with pytest.raises(FileExistsError, match="incomplete.*data_batch_3.bin"):
        cifar10(tmp_path, download=True)


def test_cifar10_refuses_files_of_the_wrong_size_or_with_impossible_labels(tmp_path, monkeypatch):
    files = small_files(monkeypatch)
    short = {**files, "data_batch_2.bin": files["data_batch_2.bin"][:-1]}
    write_files(tmp_path / "a" / _CIFAR10_FOLDER, short)
    with pytest.raises(ValueError, match=r"data_batch_2.bin has 61,459 bytes instead of 61,460"):
        cifar10(tmp_path / "a")
    bad = bytearray(files["test_batch.bin"])
    bad[data._RECORD * 7] = 200
    write_files(tmp_path / "b" / _CIFAR10_FOLDER, {**files, "test_batch.bin": bytes(bad)})
    with pytest.raises(ValueError, match="label 200"): cifar10(tmp_path / "b", train=False)


@pytest.mark.parametrize("train", [True, False])
def test_real_cifar10_has_its_published_statistics(train):
    if not (cache_folder() / _CIFAR10_FOLDER).is_dir():
        pytest.skip(f"CIFAR-10 is not in {cache_folder()}")
    x, y = cifar10(train=train)
    assert x.shape == ((50_000 if train else 10_000), 3, 32, 32)
    assert y.bincount().tolist() == [5000 if train else 1000] * 10
    # a frog, two trucks, a deer, a car; a cat, two ships, a plane and a frog
    assert y[:5].tolist() == ([6, 9, 9, 4, 1] if train else [3, 8, 8, 0, 6])
    if train:
        c = x.permute(1, 0, 2, 3).reshape(3, -1).double() / 255
        means, stds = torch.tensor([[.4914, .4822, .4465], [.2470, .2435, .2616]]).double()
        assert torch.allclose(c.mean(1), means, atol=5e-5)
        assert torch.allclose(c.std(1), stds, atol=5e-5)


# Downloads


CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


def fetch(server, path): return download_file(server.url, path, MD5, progress=False, timeout=5)


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "deep" / "file"
    with Server(CONTENT, "truncated") as server:
        with pytest.raises(OSError, match="stopped after 256,000 of 512,000 bytes.*call again"):
            fetch(server, path)
        assert not path.exists()
        server.fault = None
        fetch(server, path)
        assert server.asked == [None, "bytes=256000-"]
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_server_that_knows_no_ranges_sends_everything_again(tmp_path):
    (tmp_path / "file.part").write_bytes(b"an older beginning")
    with Server(CONTENT, "no ranges") as server: fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_is_already_whole_needs_no_more_bytes(tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    with Server(CONTENT) as server: fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_corrupt_bytes_are_thrown_away_and_the_next_call_begins_anew(tmp_path):
    with Server(CONTENT, "corrupt") as server:
        with pytest.raises(OSError, match=f"instead of {MD5}"): fetch(server, tmp_path / "file")
        assert list(tmp_path.iterdir()) == []
        server.fault = None
        assert fetch(server, tmp_path / "file").read_bytes() == CONTENT


def test_a_missing_page_and_a_host_that_is_down_are_told_in_one_line(tmp_path):
    with Server(CONTENT, "missing") as server:
        with pytest.raises(OSError, match="answers 404"): fetch(server, tmp_path / "file")
    with pytest.raises(OSError, match="cannot reach"):          # it is down now
        fetch(server, tmp_path / "file")


def test_a_host_that_is_silent_is_given_up(tmp_path):
    with Server(CONTENT, "silent") as server:
        with pytest.raises(OSError, match="cannot reach .*timed out"):
            download_file(server.url, tmp_path / "file", MD5, progress=False, timeout=0.2)


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_counts_the_bytes_and_begins_with_those_that_are_there(tmp_path, progress, capsys):
    (tmp_path / "file.part").write_bytes(CONTENT[:256_000])
    with Server(CONTENT) as server:
        download_file(server.url, tmp_path / "file", MD5, progress, timeout=5)
    assert (" 512k/512k " in capsys.readouterr().err) == progress


def test_a_whole_file_is_not_fetched_again(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    with Server(CONTENT) as server:
        fetch(server, tmp_path / "file")
        assert server.asked == []


# Archives


def tar_with(tmp_path, *members):
    path = tmp_path / "archive.tar"
    with tarfile.open(path, "w") as tar:
        for m in members: tar.addfile(m, io.BytesIO(b"x" * m.size))
    return path


def member(name, kind=tarfile.REGTYPE, target="", size=1):
    m = tarfile.TarInfo(name)
    m.type, m.linkname, m.size = kind, target, size if kind == tarfile.REGTYPE else 0
    return m


@pytest.mark.parametrize("bad", [
    member("../escape"), member("/etc/escape"), member("box/../../escape"), member("other/file"),
    member("box"), member("box/link", tarfile.SYMTYPE, "/etc/passwd"),
    member("box/hard", tarfile.LNKTYPE, "box/good"),
    member("box/device", tarfile.CHRTYPE), member("box/pipe", tarfile.FIFOTYPE)],
    ids=lambda m: m.name)
def test_unsafe_archives_are_refused_and_nothing_is_unpacked(tmp_path, bad):
    archive = tar_with(tmp_path, member("box/good"), bad)
    with pytest.raises(ValueError, match="nothing was unpacked"): unpack(archive, tmp_path / "box")
    assert [p.name for p in tmp_path.iterdir()] == ["archive.tar"]


def test_an_archive_unpacks_whole(tmp_path):
    members = member("box", tarfile.DIRTYPE), member("box/a", size=3), member("box/deep/b")
    unpack(tar_with(tmp_path, *members), tmp_path / "box")
    assert (tmp_path / "box" / "a").read_bytes() == b"xxx"
    assert (tmp_path / "box" / "deep" / "b").exists()


def test_an_archive_never_takes_the_place_of_a_folder_that_is_there(tmp_path):
    write_files(tmp_path / "box", {"mine": b"precious"})
    with pytest.raises(FileExistsError, match="is there already"):
        unpack(tar_with(tmp_path, member("box/a")), tmp_path / "box")
    assert (tmp_path / "box" / "mine").read_bytes() == b"precious"


def test_an_archive_that_ends_in_its_middle_leaves_nothing(tmp_path):
    whole = tar_with(tmp_path, member("box/a"), member("box/b", size=100_000)).read_bytes()
    (tmp_path / "archive.tar").write_bytes(whole[:50_000])
    with pytest.raises((tarfile.ReadError, OSError)):
        unpack(tmp_path / "archive.tar", tmp_path / "box")
    assert [p.name for p in tmp_path.iterdir()] == ["archive.tar"]


# Folders of images


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image
    rng = np.random.default_rng(0)
    for name, (w, h), mode in [("a/1.png", (40, 30), "RGB"), ("a/2.PNG", (16, 16), "L"),
                               ("b/3.jpg", (33, 50), "RGB"), ("b/4.webp", (20, 20), "RGBA"),
                               ("5.bmp", (16, 16), "P")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shape = {"L": (h, w), "P": (h, w), "RGB": (h, w, 3), "RGBA": (h, w, 4)}[mode]
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_in_memory_equals_the_same_folder_streamed(pictures):
    held, labels = image_folder(pictures, 16)
    streamed, same = image_folder(pictures, 16, memory=0)
    assert isinstance(held, torch.Tensor) and isinstance(streamed, ImageFiles)
    assert held.shape == streamed.shape == (5, 3, 16, 16)
    assert held.dtype == streamed.dtype == torch.uint8
    assert torch.equal(streamed[torch.arange(5)], held)
    assert torch.equal(labels, same) and labels.tolist() == [0, 1, 1, 2, 2]
    few = streamed.subset(torch.tensor([3, 0]))
    assert isinstance(few, ImageFiles) and few.shape == (2, 3, 16, 16)
    assert torch.equal(few[torch.arange(2)], held[[3, 0]])
    a, b = (Batches(x, 3, seed=4, flip=True) for x in (held, streamed))
    for _ in range(7): assert torch.equal(next(a), next(b))
    b.load_state_dict(a.state_dict() | {"step": 2})
    a.step = 2
    assert torch.equal(next(a), next(b))


def test_an_image_is_cropped_to_its_middle(tmp_path):
    from PIL import Image
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (load_image(tmp_path / "wide.png", 10) == 200).all()


@pytest.mark.parametrize("memory", [10**9, 0])
@pytest.mark.parametrize("size", [8, 96, 100, 256, (24, 40), [64, 32]])
def test_grey_folders_load_at_any_size_and_shape(tmp_path, size, memory):
    from PIL import Image
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (2, height, width), dtype=np.uint8)
    Image.fromarray(small[0]).save(tmp_path / "a.png")
    Image.fromarray(np.tile(small[1][..., None], 3)).save(tmp_path / "b.png")      # grey, as RGB
    Image.fromarray(small[0].astype(np.uint16) * 257).save(tmp_path / "c.png")
    images, _ = image_folder(tmp_path, size, memory, channels=1)
    assert images.shape == (3, 1, height, width)
    assert torch.equal(images[:], torch.from_numpy(small[[0, 1, 0]])[:, None])
    assert torch.equal(images[:10], images[torch.arange(3)])
    colour, _ = image_folder(tmp_path, size, memory)
    assert torch.equal(colour[:], images[:].expand(3, 3, height, width))


def test_the_grey_of_a_colour_is_its_luma_and_the_transparent_is_white(tmp_path):
    from PIL import Image
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "a.png")
    pixels[8:, :, 3], pixels[:8, :, 3] = 0, 255
    Image.fromarray(pixels, "RGBA").save(tmp_path / "b.png")
    want = pixels[..., :3] @ np.array([0.299, 0.587, 0.114])
    a, b = (load_image(tmp_path / name, 16, channels=1)[0].numpy() for name in ("a.png", "b.png"))
    assert abs(a - want).max() <= 1
    assert abs(b[:8] - want[:8]).max() <= 1 and (b[8:] == 255).all()


def test_a_shape_that_is_not_square_is_cut_from_the_middle(tmp_path):
    from PIL import Image
    x = np.zeros((30, 61), np.uint8)
    x[:, 23:38] = 200                                   # what 2 : 1, height to width, leaves of it
    Image.fromarray(x).save(tmp_path / "a.png")
    assert (load_image(tmp_path / "a.png", (30, 15), channels=1) == 200).all()
    files = ImageFiles([tmp_path / "a.png"], (30, 15), channels=1)
    assert files.subset([0]).shape == files.shape == (1, 1, 30, 15)


@pytest.mark.parametrize("size, channels, words", [
    (0, 3, "above 0"), (16.0, 3, "above 0, or two, height and width, got 16.0"),
    ((16, 0), 3, "above 0"), ((1, 2, 3), 3, "above 0"), (None, 3, "got None"),
    ("16", 3, "got '16'"), (16, 4, "got 4"),
    (16, 2, r"channels must be 3 \(colour\) or 1 \(grey\), got 2")])
def test_a_size_or_channels_that_cannot_be_are_refused(pictures, size, channels, words):
    for act in (lambda: image_folder(pictures, size, channels=channels),
                lambda: ImageFiles([], size, channels),
                lambda: load_image(pictures / "5.bmp", size, channels)):
        with pytest.raises(ValueError, match=words): act()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_an_uncompressed_tiff_is_turned_as_a_compressed_one(tmp_path, mode, turn):
    from PIL import Image
    shape = (4, 8) if mode == "L" else (4, 8, len(mode))
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    exif = Image.Exif()
    exif[0x112] = turn
    for name, way in (("plain", None), ("small", "tiff_lzw")):
        Image.fromarray(pixels, mode).save(tmp_path / f"{name}.tif", exif=exif, compression=way)
    size = (8, 4) if turn > 4 else (4, 8)
    plain, small = (load_image(tmp_path / f"{name}.tif", size) for name in ("plain", "small"))
    assert torch.equal(plain, small)


def test_what_is_transparent_in_16_bits_of_grey_is_white(tmp_path):
    from PIL import Image
    pixels = np.array([[40_000, 0], [0, 65_535]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=0)
    assert load_image(tmp_path / "a.png", 2, 1).tolist() == [[[156, 255], [255, 255]]]


def test_deep_and_transparent_images_keep_what_they_show(tmp_path):
    from PIL import Image
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp).save(tmp_path / "b.tif")
    clear = np.zeros((16, 16, 4), np.uint8)
    clear[:8] = (255, 0, 0, 255)
    Image.fromarray(clear, "RGBA").save(tmp_path / "c.png")
    (tmp_path / "._a.png").write_bytes(b"not an image")
    images, _ = image_folder(tmp_path, 16)
    assert len(images) == 3
    grey = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    for x in images[:2]: assert torch.equal(x, grey.expand(3, 16, 16))
    assert (images[2, :, :8] == torch.tensor([255, 0, 0])[:, None, None]).all()
    assert (images[2, :, 8:] == 255).all()
    floats = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(floats).save(tmp_path / "d.tif")
    words = "d.tif cannot be read as an image: its values .mode F. have no known range"
    with pytest.raises(ValueError, match=words): image_folder(tmp_path, 16)


def test_broken_images_and_empty_folders_are_named(pictures, tmp_path_factory):
    (pictures / "b" / "0.png").write_bytes(b"not a PNG")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image"):
        image_folder(pictures, 16)
    with pytest.raises(ValueError, match=r"no image in .*looked for \.png"):
        image_folder(tmp_path_factory.mktemp("empty"), 16)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        image_folder(pictures / "nowhere", 16)
    with pytest.raises(ValueError, match="above 0"): image_folder(pictures, 0)


# What of a folder is taken


def picture(path, value=100, size=(8, 8)):
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def taken(folder, **how):
    "The grey of each image that is taken, and the warnings."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images, _ = image_folder(folder, 8, **how)
    return images[:, 0, 0, 0].tolist(), [str(w.message) for w in said]


def test_linked_folders_are_followed_each_once_and_loops_end(tmp_path):
    top, elsewhere = tmp_path / "top", tmp_path / "elsewhere"
    picture(top / "a" / "1.png", 1)
    picture(elsewhere / "2.png", 2)
    picture(elsewhere / "deep" / "3.png", 3)
    (top / "0_first").symlink_to(top / "a")              # first by name; the folder itself wins
    (top / "b").symlink_to(elsewhere)
    (top / "c").symlink_to(elsewhere / "deep")           # reached through b too
    (top / "4.png").symlink_to(elsewhere / "2.png")      # a linked file is a file
    (elsewhere / "deep" / "up").symlink_to(top)
    values, said = taken(top)
    assert sorted(values) == [1, 2, 2, 3]
    assert len(said) == 1 and "3 linked a second time (0_first, " in said[0]
    places = [p.relative_to(top).as_posix() for p in image_folder(top, 8, memory=0)[0].paths]
    assert "a/1.png" in places and "b/2.png" in places


def test_hidden_things_are_left_out_with_a_word_and_what_systems_leave_without(tmp_path):
    top = tmp_path / ".hidden_itself"
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "b/.trash/x/old.png", "b/._c.png",
                 "b/c.png"): picture(top / name)
    for name in (".DS_Store", "b/Thumbs.db"): (top / name).write_bytes(b"junk")
    values, said = taken(top)
    assert values == [100, 100]
    assert len(said) == 1 and said[0].endswith(
        "3 hidden (.ipynb_checkpoints, ._c.png, .trash)"), said
    (top / ".DS_Store").rename(tmp_path / ".DS_Store")
    for name in (".ipynb_checkpoints", "b/.trash"): shutil.rmtree(top / name)
    (top / "b" / "._c.png").unlink()
    assert taken(top) == ([100, 100], [])                # nothing to say


@pytest.mark.parametrize("name", ["x.jfif", "x.JFIF", "x.avif"])
def test_less_common_endings_are_taken(tmp_path, name):
    from PIL import Image
    kind = {"jfif": "JPEG", "avif": "AVIF"}[name[2:].lower()]
    Image.init()
    if kind not in Image.SAVE: pytest.skip(f"this Pillow does not write {kind}")
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(tmp_path / name, kind)
    values, said = taken(tmp_path)
    assert abs(values[0] - 100) < 5 and said == []


def test_a_format_that_pillow_was_built_without_is_left_out_with_a_word(tmp_path, monkeypatch):
    from PIL import Image
    picture(tmp_path / "a.png")
    (tmp_path / "b.avif").write_bytes(b"whatever")
    known = {k: v for k, v in Image.registered_extensions().items() if k != ".avif"}
    monkeypatch.setattr(Image, "registered_extensions", lambda: known)
    assert taken(tmp_path)[1] == [f"left out in {tmp_path}: 1 with another ending (*.avif)"]


def test_what_is_left_out_is_said_in_one_line_by_reason(tmp_path):
    picture(tmp_path / "a.png")
    for name in ("1.heic", "2.heic", "notes.txt", "x.csv", "y.mp4", "README"):
        (tmp_path / name).write_bytes(b"another kind")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    assert taken(tmp_path)[1] == [
        f"left out in {tmp_path}: 6 with another ending (*.heic, README, *.txt and 2 more); "
        f"2 neither a file nor a folder (gone, round.png)"]


def unreadable(monkeypatch, folder):
    "Even for root, who may read everything."
    scandir = os.scandir

    def refuse(path):
        if Path(path) == folder: raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)
    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    picture(tmp_path / "a" / "1.png", 1)
    picture(tmp_path / "b" / "2.png", 2)
    unreadable(monkeypatch, tmp_path / "b")
    words = f"left out in {tmp_path}: 1 unreadable (b: Permission denied)"
    assert taken(tmp_path) == ([1], [words])
    unreadable(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"no image in .*left out: 1 unreadable \(\.: Permission"):
        image_folder(tmp_path, 8)


# What is wrong with them, before the first is trained on


@pytest.mark.parametrize("memory", [10**9, 0])
def test_all_bad_images_are_named_at_once_up_to_ten(tmp_path, memory):
    for i in range(300): picture(tmp_path / f"{i:03}.png")
    bad = [tmp_path / f"{i:03}.png" for i in (0, 7, 8, 40, 99, 100, 101, 255, 256, 257, 270, 299)]
    for path in bad[:2]: path.write_bytes(b"not a PNG")
    words = f"2 of 300 files cannot be read as images: {bad[0]}, {bad[1]} .the first: {bad[0]} can"
    with pytest.raises(ValueError, match=words): image_folder(tmp_path, 8, memory)
    for path in bad: path.write_bytes(b"not a PNG")
    with pytest.raises(ValueError, match="12 of 300 files") as e: image_folder(tmp_path, 8, memory)
    assert f"{', '.join(map(str, bad[:10]))} and 2 more" in str(e.value)
    assert "\n" not in str(e.value) and str(bad[10]) not in str(e.value)


def test_streamed_files_are_checked_as_far_as_is_cheap(tmp_path):
    from PIL import Image
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("a.png", "b.jpg", "c.webp"): noise.save(tmp_path / name)
    files, _ = image_folder(tmp_path, 16, memory=0)
    assert isinstance(files, ImageFiles)
    Image.fromarray(rng.random((8, 8), dtype=np.float32)).save(tmp_path / "d.tif")
    for name in ("a.png", "b.jpg"):                      # cut off in the middle
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:len(content) // 2])
    with pytest.raises(ValueError, match=r"2 of 4 files .*a\.png, .*d\.tif"):
        image_folder(tmp_path, 16, memory=0)
    with pytest.raises(ValueError, match=r"b\.jpg cannot be read"): files[[2, 1]]   # at its turn


@pytest.mark.parametrize("memory", [10**9, 0])
@pytest.mark.parametrize("name, dtype", [("g.png", "<u2"), ("g.tif", "<u2"), ("h.tif", ">u2")])
def test_twelve_bits_in_sixteen_are_told_with_the_factor(tmp_path, memory, name, dtype):
    from PIL import Image
    picture(tmp_path / "bright.png", 255)                # 8 bits: says nothing of the others
    black = np.zeros((8, 8), np.uint16)
    Image.fromarray(black).save(tmp_path / "black.png")

    def said(values):
        Image.fromarray(np.full((8, 8), values, dtype)).save(tmp_path / name)
        with warnings.catch_warnings(record=True) as said: image_folder(tmp_path, 8, memory)
        return [str(w.message) for w in said]
    for top, number, bits, factor in [(4095, "4,095", 12, 16), (2048, "2,048", 12, 16),
                                      (1023, "1,023", 10, 64), (1, "1", 1, 32768)]:
        line, = said(top)
        assert f"above {number} of 65,535" in line and f"{bits} bits of grey" in line
        assert f"multiply their values by {factor} " in line and "\n" not in line
        assert top * factor < 65536 <= top * factor * 2
    for top in (0, 4096, 65535): assert said(top) == []


def test_one_bright_image_says_that_all_of_its_folder_use_their_bits(tmp_path):
    from PIL import Image
    for name, value in [("a", 4000), ("b", 60_000), ("c", 10)]:
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / f"{name}.png")
    assert taken(tmp_path) == ([16, 233, 0], [])


@pytest.mark.parametrize("which", [
    slice(3), slice(None), slice(1, None, 2), slice(2, 2), 0, -1, [4, 0], [-2], [],
    torch.tensor([3, 3, 1]), torch.tensor(2), torch.tensor([True, False, False, True, False])],
    ids=str)
def test_streamed_files_are_indexed_as_a_tensor_is(pictures, which):
    held, streamed = (image_folder(pictures, 16, memory)[0] for memory in (10**9, 0))
    want = held[which]
    assert torch.equal(streamed[which], want) and streamed[which].dtype == torch.uint8
    if want.ndim == 4:
        few = streamed.subset(which)
        assert len(few) == len(want) and torch.equal(few[:], want)


def test_an_index_that_no_image_has_is_an_error_and_a_loop_over_files_ends(pictures):
    files, _ = image_folder(pictures, 16, memory=0)
    for which in (5, -6, [5], torch.tensor([0, 5])):
        with pytest.raises(IndexError): files[which]
    assert len(list(files)) == 5


def exif_of(turn, odd):
    "EXIF that says an orientation; `odd`: and has text where numbers are due, as some cameras do."
    tags = [(0x112, 3, 1, struct.pack("<HH", turn, 0))]
    if odd: tags += [(tag, 2, 4, b"odd\0") for tag in (0x100, 0x11A, 0x128)]
    entries = b"".join(struct.pack("<HHL4s", *tag) for tag in sorted(tags))
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("turn", range(1, 9))
def test_an_image_is_turned_as_its_exif_says_whatever_else_that_says(tmp_path, turn):
    from PIL import Image, ImageOps
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    for name in ("plain", "odd"):
        exif = exif_of(turn, name == "odd")
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", exif=exif)
    with Image.open(tmp_path / "plain.png") as f: upright = np.array(ImageOps.exif_transpose(f))
    expected = torch.from_numpy(upright).permute(2, 0, 1)
    for name in ("plain", "odd"):
        assert torch.equal(load_image(tmp_path / f"{name}.png", upright.shape[:2]), expected)


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    from PIL import Image
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    def broken(self): raise TypeError("bad operand")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with pytest.raises(ValueError, match="a.png cannot be read as an image: bad operand"):
        load_image(tmp_path / "a.png", 4)


def test_the_home_folder_is_meant_in_the_place_of_the_cache_too(monkeypatch):
    monkeypatch.setenv("DDPM_NB_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
