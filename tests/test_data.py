"Data: every way in which a file, a download or an archive can be wrong, and the promises of the batch source."
import hashlib
import http.server
import io
import math
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_nb import data
from ddpm_nb.data import Batches, Mixture, digits, fingerprint, swiss_roll, to_model, to_uint8
from ddpm_nb.engine.images import ImageFiles, cache_folder, cifar10, download_file, image_folder, load_image, unpack

# Pixels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_pixel_value_survives_the_round_trip(dtype):
    v = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_model(v).to(dtype)), v)


def test_scaled_values_are_the_centres_of_the_256_bins_of_the_decoder():
    x = to_model(torch.arange(256, dtype=torch.uint8))
    assert x.min() == -1 and x.max() == 1
    assert torch.allclose(x.diff(), torch.full((255,), 2 / 255), atol=1e-6)


def test_to_uint8_takes_the_nearest_value_and_clips():
    assert to_uint8(torch.tensor([-9.0, -1 + 0.9 / 255, -1 + 1.1 / 255, 1.2])).tolist() == [0, 0, 1, 255]


def test_wrong_dtypes_are_refused():
    with pytest.raises(ValueError, match="uint8"): to_model(torch.zeros(1))
    with pytest.raises(ValueError, match="floating"): to_uint8(torch.zeros(1, dtype=torch.uint8))


# Digits


def test_digits_are_those_of_scikit_learn():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    bunch = load_digits()
    images, labels = digits(size=8)
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.uint8
    assert torch.equal((images[:, 0].double() * 16 / 255).round(), torch.from_numpy(bunch.images))
    assert torch.equal(labels, torch.from_numpy(bunch.target).long())


def test_digits_parts_make_up_the_whole():
    whole, first, rest = digits(), digits(True), digits(False)
    assert whole[0].shape == (1797, 1, 16, 16) and len(first[0]) == 1500
    for i in (0, 1): assert torch.equal(torch.cat([first[i], rest[i]]), whole[i])
    assert digits(size=20)[0].shape == (1797, 1, 20, 20)
    with pytest.raises(ValueError, match="8 or more"): digits(size=4)


def test_digits_come_with_their_source_and_licence():
    text = (Path(data.__file__).parent / "assets" / "digits.md").read_text()
    assert "CC BY 4.0" in text and "UCI" in text


# CIFAR-10 from a small stand-in of its archive


def small_files(monkeypatch, records=20):
    monkeypatch.setattr(data, "RECORDS", records)
    rng = np.random.default_rng(0)
    files = {}
    for name in (*data.CIFAR10_TRAIN, *data.CIFAR10_TEST):
        rows = rng.integers(0, 256, (records, data.RECORD), dtype=np.uint8)
        rows[:, 0] %= 10
        files[name] = rows.tobytes()
    return files


def archive_of(files, folder=data.CIFAR10_FOLDER):
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
    "Serves one file on 127.0.0.1; `fault` makes it misbehave. Notes the Range headers that it was asked for."
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
    monkeypatch.setattr(data, "CIFAR10_MD5", hashlib.md5(packed).hexdigest())
    with Server(packed) as server:
        monkeypatch.setattr(data, "CIFAR10_URL", server.url)
        x, y = cifar10(tmp_path, download=True)
        assert len(server.asked) == 1
        again, _ = cifar10(tmp_path, download=True)
        assert len(server.asked) == 1
    assert x.shape == (100, 3, 32, 32) and x.dtype == torch.uint8 and y.dtype == torch.long
    first = np.frombuffer(files["data_batch_1.bin"], np.uint8)
    assert y[0] == first[0] and (x[0].numpy().ravel() == first[1:3073]).all() and torch.equal(x, again)
    assert cifar10(tmp_path / data.CIFAR10_FOLDER, train=False)[0].shape == (20, 3, 32, 32)
    assert sorted(p.name for p in tmp_path.iterdir()) == [data.CIFAR10_FOLDER]      # no archive, no scratch folder left


def test_programs_that_fetch_cifar10_at_once_do_it_once(tmp_path, monkeypatch):
    packed = archive_of(small_files(monkeypatch))
    monkeypatch.setattr(data, "CIFAR10_MD5", hashlib.md5(packed).hexdigest())
    with Server(packed) as server, ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(data, "CIFAR10_URL", server.url)
        found = list(pool.map(lambda _: cifar10(tmp_path, download=True)[0], range(4)))
        assert server.asked == [None]
    assert all(torch.equal(x, found[0]) for x in found)
    assert sorted(p.name for p in tmp_path.iterdir()) == [data.CIFAR10_FOLDER]


def test_cifar10_says_what_is_missing_and_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="download=True"): cifar10(tmp_path)
    files = small_files(monkeypatch)
    del files["data_batch_3.bin"]
    write_files(tmp_path / data.CIFAR10_FOLDER, files)
    with pytest.raises(FileNotFoundError, match="missing: data_batch_3.bin"): cifar10(tmp_path)
    with pytest.raises(FileExistsError, match="incomplete.*data_batch_3.bin"): cifar10(tmp_path, download=True)


def test_cifar10_refuses_files_of_the_wrong_size_or_with_impossible_labels(tmp_path, monkeypatch):
    files = small_files(monkeypatch)
    write_files(tmp_path / "a" / data.CIFAR10_FOLDER, {**files, "data_batch_2.bin": files["data_batch_2.bin"][:-1]})
    with pytest.raises(ValueError, match=r"data_batch_2.bin has 61,459 bytes instead of 61,460"): cifar10(tmp_path / "a")
    bad = bytearray(files["test_batch.bin"])
    bad[data.RECORD * 7] = 200
    write_files(tmp_path / "b" / data.CIFAR10_FOLDER, {**files, "test_batch.bin": bytes(bad)})
    with pytest.raises(ValueError, match="label 200"): cifar10(tmp_path / "b", train=False)


@pytest.mark.parametrize("train", [True, False])
def test_real_cifar10_has_its_published_statistics(train):
    if not (cache_folder() / data.CIFAR10_FOLDER).is_dir(): pytest.skip(f"CIFAR-10 is not in {cache_folder()}")
    x, y = cifar10(train=train)
    assert x.shape == ((50_000 if train else 10_000), 3, 32, 32)
    assert y.bincount().tolist() == [5000 if train else 1000] * 10
    if train:
        assert y[:5].tolist() == [6, 9, 9, 4, 1]
        c = x.permute(1, 0, 2, 3).reshape(3, -1).double() / 255
        assert torch.allclose(c.mean(1), torch.tensor([.4914, .4822, .4465], dtype=torch.float64), atol=5e-5)
        assert torch.allclose(c.std(1), torch.tensor([.2470, .2435, .2616], dtype=torch.float64), atol=5e-5)


# Downloads


CONTENT = bytes(range(256)) * 2000
MD5 = hashlib.md5(CONTENT).hexdigest()


def fetch(server, path): return download_file(server.url, path, MD5, progress=False, timeout=5)


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "deep" / "file"
    with Server(CONTENT, "truncated") as server:
        with pytest.raises(OSError, match="stopped after 256,000 of 512,000 bytes.*call again"): fetch(server, path)
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
    with pytest.raises(OSError, match="cannot reach"): fetch(server, tmp_path / "file")     # it is down now


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
    member("box/link", tarfile.SYMTYPE, "/etc/passwd"), member("box/hard", tarfile.LNKTYPE, "box/good"),
    member("box/device", tarfile.CHRTYPE), member("box/pipe", tarfile.FIFOTYPE)],
    ids=lambda m: m.name)
def test_unsafe_archives_are_refused_and_nothing_is_unpacked(tmp_path, bad):
    archive = tar_with(tmp_path, member("box/good"), bad)
    with pytest.raises(ValueError, match="nothing was unpacked"): unpack(archive, tmp_path / "box")
    assert [p.name for p in tmp_path.iterdir()] == ["archive.tar"]


def test_an_archive_unpacks_whole(tmp_path):
    unpack(tar_with(tmp_path, member("box", tarfile.DIRTYPE), member("box/a", size=3), member("box/deep/b")), tmp_path / "box")
    assert (tmp_path / "box" / "a").read_bytes() == b"xxx" and (tmp_path / "box" / "deep" / "b").exists()


# Folders of images


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image
    rng = np.random.default_rng(0)
    for name, size, mode in [("a/1.png", (40, 30), "RGB"), ("a/2.PNG", (16, 16), "L"), ("b/3.jpg", (33, 50), "RGB"),
                             ("b/4.webp", (20, 20), "RGBA"), ("5.bmp", (16, 16), "P")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shape = {"L": size[::-1], "P": size[::-1], "RGB": (*size[::-1], 3), "RGBA": (*size[::-1], 4)}[mode]
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).convert(mode).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_in_memory_equals_the_same_folder_streamed(pictures):
    held, labels = image_folder(pictures, 16)
    streamed, same = image_folder(pictures, 16, memory=0)
    assert isinstance(held, torch.Tensor) and isinstance(streamed, ImageFiles)
    assert held.shape == streamed.shape == (5, 3, 16, 16) and held.dtype == streamed.dtype == torch.uint8
    assert torch.equal(streamed[torch.arange(5)], held) and torch.equal(labels, same) and labels.tolist() == [0, 1, 1, 2, 2]
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
    for x in images[:2]: assert torch.equal(x, torch.arange(256, dtype=torch.uint8).reshape(16, 16).expand(3, 16, 16))
    assert (images[2, :, :8] == torch.tensor([255, 0, 0])[:, None, None]).all() and (images[2, :, 8:] == 255).all()
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "d.tif")
    with pytest.raises(ValueError, match="d.tif cannot be read as an image: its values .mode F. have no known range"):
        image_folder(tmp_path, 16)


def test_broken_images_and_empty_folders_are_named(pictures, tmp_path_factory):
    (pictures / "b" / "0.png").write_bytes(b"not a PNG")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image"): image_folder(pictures, 16)
    with pytest.raises(ValueError, match=r"no image in .*looked for \.png"): image_folder(tmp_path_factory.mktemp("empty"), 16)
    with pytest.raises(FileNotFoundError, match="there is no folder"): image_folder(pictures / "nowhere", 16)
    with pytest.raises(ValueError, match="above 0"): image_folder(pictures, 0)


# Batches


IMAGES = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 1, 2, 2).contiguous()


def values(x): return (x[:, 0, 0, 0].double() * 127.5 + 127.5).round().long().tolist()


@pytest.mark.parametrize("batch", [1, 7, 10, 30, 64])
def test_each_pass_shows_every_image_once_whatever_the_batch_size(batch):
    source = Batches(IMAGES, batch)
    seen = [v for _ in range(math.ceil(90 / batch)) for v in values(next(source))][:90]
    for start in (0, 30, 60): assert sorted(seen[start:start + 30]) == list(range(30))
    assert seen[:30] != seen[30:60] != list(range(30))


def test_the_order_depends_on_the_seed_alone():
    torch.manual_seed(1)
    a = [values(next(b)) for b in [Batches(IMAGES, 8, seed=5)] for _ in range(8)]
    torch.manual_seed(2)
    b = [values(next(b)) for b in [Batches(IMAGES, 8, seed=5)] for _ in range(8)]
    c = [values(next(b)) for b in [Batches(IMAGES, 8, seed=6)] for _ in range(8)]
    assert a == b != c


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_very_batch_that_one_process_would_see(world):
    images = torch.randint(256, (30, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, several = Batches(images, 8, flip=True), [Batches(images, 8, flip=True, rank=r, world=world) for r in range(world)]
    for _ in range(12): assert torch.equal(next(one), torch.cat([next(s) for s in several]))


def test_a_saved_position_goes_on_with_the_very_next_batch():
    images = torch.randint(256, (30, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    a = Batches(images, 7, flip=True)
    for _ in range(9): next(a)
    b = Batches(images, 7, flip=True)
    b.load_state_dict(a.state_dict())
    for _ in range(9): assert torch.equal(next(a), next(b))
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"): Batches(images, 7, seed=1).load_state_dict(a.state_dict())


def test_half_of_the_images_are_mirrored_and_the_others_untouched():
    images = torch.arange(4000 * 2, dtype=torch.float32).view(4000, 1, 1, 2)
    x = next(Batches(images, 4000, flip=True))
    mirrored = (x[:, 0, 0, 0] > x[:, 0, 0, 1]).double().mean()
    assert abs(mirrored - 0.5) < 5 * math.sqrt(0.25 / 4000)
    assert torch.equal(x.sort(-1).values.flatten(1).sort(0).values, images.flatten(1))


def test_float_data_pass_through_unscaled():
    points = swiss_roll(64)
    assert torch.equal(next(Batches(points, 64)).sort(0).values, points.sort(0).values)


def test_wrong_arguments_are_refused_in_words():
    for words, match in [(dict(batch_size=0), "batch_size"), (dict(batch_size=9, world=2), "multiple of the 2 processes"),
                         (dict(batch_size=8, rank=2, world=2), "rank must lie in 0 .. 1")]:
        with pytest.raises(ValueError, match=match): Batches(IMAGES, **words)
    with pytest.raises(ValueError, match="flip needs images"): Batches(swiss_roll(8), 4, flip=True)
    with pytest.raises(ValueError, match="no image"): Batches(IMAGES[:0], 4)


def test_fingerprints_tell_data_sets_apart():
    assert fingerprint(IMAGES) == fingerprint(IMAGES.clone()) != fingerprint(IMAGES.flip(0))


# Two dimensions


def test_mixture_density_integrates_to_one_and_its_score_is_the_gradient():
    m = Mixture.ring(std=0.3)
    line = torch.linspace(-4, 4, 401, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    assert abs(m.log_prob(x).exp().sum() * (line[1] - line[0]) ** 2 - 1) < 1e-6
    y = x[::997].requires_grad_()
    gradient, = torch.autograd.grad(m.log_prob(y).sum(), y)
    assert torch.allclose(gradient, m.score(y), atol=1e-9)


def test_noised_mixture_is_what_the_forward_process_makes_of_it():
    "The law of x_t under eq. 4, in its first two moments."
    generator, n, alpha_bar = torch.Generator().manual_seed(0), 200_000, 0.3
    m = Mixture.grid(3, 1.0, 0.2)
    x = math.sqrt(alpha_bar) * m.sample(n, generator) + math.sqrt(1 - alpha_bar) * torch.randn(n, 2, generator=generator)
    z = m.noised(alpha_bar).sample(n, torch.Generator().manual_seed(1))
    for power in (1, 2, 4):
        a, b = x**power, z**power
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * ((a.var(0) + b.var(0)) / n).sqrt()).all()


def test_swiss_roll_is_reproducible_and_of_about_unit_variance():
    a, b = (swiss_roll(5000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (5000, 2)
    assert (a.std(0) > 0.8).all() and (a.std(0) < 1.2).all()
