"Images: every way in which a download, an archive or a picture can be wrong."
import hashlib
import http.server
import io
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ddpm_nb import data
from ddpm_nb.data import _CIFAR10_FOLDER, Batches
from ddpm_nb.engine import images
from ddpm_nb.engine.images import (ImageFiles, cache_folder, cifar10, download_file, image_folder,
                                   load_image, unpack)

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
        self.asked, server = [], self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                server.asked.append(wanted)
                if server.fault == "missing": return self.send_error(404)
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
    def __exit__(self, *exc): self.http.shutdown(), self.http.server_close()


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
    if train:
        assert y[:5].tolist() == [6, 9, 9, 4, 1]
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


def test_a_missing_page_and_a_silent_host_are_told_in_one_line(tmp_path):
    with Server(CONTENT, "missing") as server:
        with pytest.raises(OSError, match="answers 404"): fetch(server, tmp_path / "file")
    with pytest.raises(OSError, match="cannot reach"):          # it is down now
        fetch(server, tmp_path / "file")


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
