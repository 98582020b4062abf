"Data: pixels and back, CIFAR-10's format, the promises of the batch source, the toys."
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from guards import default_dtype

from ddpm_nb import data
from ddpm_nb.data import (CIFAR10_CLASSES, Batches, Mixture, digits, fingerprint, read_cifar10,
                          swiss_roll, to_model, to_uint8)

# Pixels


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_pixel_value_survives_the_round_trip(dtype):
    v = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_model(v).to(dtype)), v)


def test_scaled_values_are_the_centres_of_the_256_bins_of_the_decoder():
    x = to_model(torch.arange(256, dtype=torch.uint8))
    assert x.min() == -1 and x.max() == 1
    assert torch.allclose(x.diff(), torch.full((255,), 2 / 255), atol=1e-6)


def test_to_uint8_takes_the_nearest_value_and_clips():
    x = torch.tensor([-9.0, -1 + 0.9 / 255, -1 + 1.1 / 255, 1.2])
    assert to_uint8(x).tolist() == [0, 0, 1, 255]


def test_wrong_dtypes_are_refused():
    with pytest.raises(ValueError, match="uint8"): to_model(torch.zeros(1))
    with pytest.raises(ValueError, match="floating"): to_uint8(torch.zeros(1, dtype=torch.uint8))


def test_nan_is_no_black_pixel():
    nan, inf = float("nan"), float("inf")
    with pytest.raises(ValueError, match="NaN has no nearest"): to_uint8(torch.tensor([0.0, nan]))
    assert to_uint8(torch.tensor([inf, -inf])).tolist() == [255, 0]


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


def test_digits_are_enlarged_by_cubic_convolution_and_framed_in_black():
    "Keys' kernel with a = -0.75, as a matrix of 12 rows and 8 columns; outside, the edge goes on."
    def kernel(d):
        d, a = abs(d), -0.75
        if d < 1: return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0
    w = torch.zeros(12, 8, dtype=torch.float64)
    for i in range(12):
        at = (i + 0.5) * 8 / 12 - 0.5
        for j in range(math.floor(at) - 1, math.floor(at) + 3):
            w[i, min(max(j, 0), 7)] += kernel(at - j)
    with np.load(Path(data.__file__).parent / "assets" / "digits.npz") as f:
        small = torch.from_numpy(f["images"]).double() * 255 / 16
    expected = (w @ small @ w.T).clamp(0, 255)
    large = digits()[0][:, 0]
    assert (large[:, 2:14, 2:14].double() - expected).abs().max() < 0.5 + 1e-3      # rounded
    frame = large.clone()
    frame[:, 2:14, 2:14] = 0
    assert (frame == 0).all()


def test_digits_come_with_their_source_and_licence():
    text = (Path(data.__file__).parent / "assets" / "digits.md").read_text()
    assert "CC BY 4.0" in text and "UCI" in text


# CIFAR-10's format


def test_cifar10_is_read_from_its_folder_labels_first_then_the_three_colours(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_RECORDS", 2)
    for i, name in enumerate((*data._TRAIN_FILES, *data._TEST_FILES)):
        rows = np.arange(2 * data._RECORD).reshape(2, data._RECORD) % 251
        rows[:, 0] = i, 9 - i
        (tmp_path / name).write_bytes(rows.astype(np.uint8).tobytes())
    x, y = read_cifar10(tmp_path)
    assert x.shape == (10, 3, 32, 32) and x.dtype == torch.uint8 and y.dtype == torch.long
    assert y.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert [x[0, 0, 0, 0], x[0, 0, 0, 1], x[0, 0, 1, 0], x[0, 1, 0, 0]] == [1, 2, 33, 1025 % 251]
    assert read_cifar10(str(tmp_path), train=False)[1].tolist() == [5, 4]
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match="missing: data_batch_4.bin.*download=True"):
        read_cifar10(tmp_path, train=False)


def test_the_classes_are_in_the_archives_own_order():
    "batches.meta.txt of the archive."
    assert CIFAR10_CLASSES == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog",
                               "horse", "ship", "truck")


# Batches


IMAGES = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 1, 2, 2).contiguous()


def colours():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (30, 3, 4, 4), dtype=torch.uint8, generator=generator)


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
    images, one = colours(), Batches(colours(), 8, flip=True)
    several = [Batches(images, 8, flip=True, rank=r, world=world) for r in range(world)]
    for _ in range(12): assert torch.equal(next(one), torch.cat([next(s) for s in several]))


def test_a_saved_position_goes_on_with_the_very_next_batch():
    images = colours()
    a = Batches(images, 7, flip=True)
    for _ in range(9): next(a)
    b = Batches(images, 7, flip=True)
    b.load_state_dict(a.state_dict())
    for _ in range(9): assert torch.equal(next(a), next(b))
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        Batches(images, 7, seed=1).load_state_dict(a.state_dict())
    with pytest.raises(ValueError, match="images: 30 there, 29 here"):
        Batches(images[:29], 7).load_state_dict(a.state_dict())


def test_half_of_the_images_are_mirrored_and_the_others_untouched():
    images = torch.arange(4000 * 2, dtype=torch.float32).view(4000, 1, 1, 2)
    x = next(Batches(images, 4000, flip=True))
    mirrored = (x[:, 0, 0, 0] > x[:, 0, 0, 1]).double().mean()
    assert abs(mirrored - 0.5) < 5 * math.sqrt(0.25 / 4000)
    assert torch.equal(x.sort(-1).values.flatten(1).sort(0).values, images.flatten(1))


def test_who_is_mirrored_depends_on_the_seed_and_the_number_of_the_batch_alone():
    "Any batch can be asked for first, and every batch draws anew."
    a, b = (Batches(colours(), 8, seed=3, flip=True) for _ in range(2))
    batches = [next(a) for _ in range(9)]
    for step in (7, 2, 4, 4, 0):
        b.step = step
        assert torch.equal(next(b), batches[step]) and b.step == step + 1
    flips = torch.stack([b.mirrored(step) for step in range(9)])
    assert len(set(map(tuple, flips.tolist()))) == 9
    other = Batches(colours(), 8, seed=4, flip=True)
    assert not torch.equal(other.mirrored(0), b.mirrored(0))


def test_an_image_is_mirrored_in_some_passes_and_not_in_others():
    "Drawn for the place in the batch, not once for the image: in 40 passes, all are both."
    b = Batches(colours(), 30, flip=True)
    mirrored = torch.zeros(30, dtype=torch.long)
    for step in range(40): mirrored[b.indices(step)] += b.mirrored(step).long()
    assert (mirrored > 0).all() and (mirrored < 40).all()
    assert abs(mirrored.double().mean() - 20) < 5 * math.sqrt(40 / 4 / 30)


def test_batches_do_not_touch_the_global_random_numbers_nor_the_default_dtype():
    before, expected = torch.get_rng_state(), next(Batches(colours(), 8, flip=True))
    assert torch.equal(torch.get_rng_state(), before)
    with default_dtype(torch.float64): x = next(Batches(colours(), 8, flip=True))
    assert torch.equal(x, expected)


@pytest.mark.parametrize("world", [1, 2])
def test_labels_stay_with_their_images(world):
    numbers = torch.arange(30, dtype=torch.int32)
    parts = [Batches(IMAGES, 8, flip=True, rank=r, world=world, labels=numbers)
             for r in range(world)]
    plain = Batches(IMAGES, 8, flip=True)
    for _ in range(12):
        images, labels = (torch.cat(v) for v in zip(*map(next, parts)))
        assert labels.dtype == torch.long and labels.tolist() == values(images)
        assert torch.equal(images, next(plain))                # labels change nothing


def test_wrong_labels_are_refused_in_words():
    for labels in (torch.arange(29), torch.zeros(30), torch.zeros(30, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="labels must be 30 whole numbers, one an image"):
            Batches(IMAGES, 8, labels=labels)


def test_the_state_is_a_place_and_what_it_belongs_to():
    a = Batches(IMAGES, 8, seed=5)
    for _ in range(3): next(a)
    assert a.state_dict() == {"step": 3, "seed": 5, "images": 30, "batch_size": 8}
    b = Batches(IMAGES, 8, seed=5)
    numpys = Batches(IMAGES, np.int64(8), seed=5, rank=np.int64(0))   # JSON can hold its place
    b.load_state_dict(a.state_dict() | json.loads(json.dumps(numpys.state_dict() | {"step": 3})))
    assert torch.equal(next(b), next(a))
    with pytest.raises(ValueError, match="seed: 6 there, 5 here"):
        b.load_state_dict(a.state_dict() | dict(seed=6, step=9))
    assert b.step == 4                                         # a refused place moves nothing
    with pytest.raises(ValueError, match="batch_size: 8 there, 10 here"):
        Batches(IMAGES, 10, seed=5).load_state_dict(a.state_dict())


class Slow:
    "Images that are read when asked for; notes what was asked for, and fails where told to."
    shape, dtype, ndim = torch.Size((30, 1, 2, 2)), torch.uint8, 4

    def __init__(self): self.asked, self.broken = [], False
    def __len__(self): return 30

    def __getitem__(self, indices):
        self.asked.append(indices.tolist())
        if self.broken: raise ValueError("cannot be read")
        return IMAGES[indices]


def test_streamed_images_are_read_one_batch_ahead():
    slow, held = Slow(), Batches(IMAGES, 8, flip=True)
    streamed = Batches(slow, 8, flip=True)
    for step in range(6):
        assert torch.equal(next(streamed), next(held))
        streamed._reader.ahead[step + 1].result()              # the thread has read the next one
        assert slow.asked[-1] == held.indices(step + 1).tolist()
    assert streamed.streamed and not held.streamed
    assert len(fingerprint(slow)) == 8                         # files or not, they have a name


def test_an_image_that_cannot_be_read_moves_nothing():
    slow, held = Slow(), Batches(IMAGES, 8)
    streamed = Batches(slow, 8)
    next(streamed), next(held)
    slow.broken, streamed.step = True, 3           # elsewhere: nothing is read ahead there
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be read"): next(streamed)
        assert streamed.step == 3
    slow.broken, held.step = False, 3
    assert torch.equal(next(streamed), next(held)) and streamed.step == 4


def test_float_data_pass_through_unscaled():
    points = swiss_roll(64)
    assert torch.equal(next(Batches(points, 64)).sort(0).values, points.sort(0).values)


def test_wrong_arguments_are_refused_in_words():
    for words, match in [(dict(batch_size=0), "batch_size"),
                         (dict(batch_size=9, world=2), "multiple of the 2 processes"),
                         (dict(batch_size=8, rank=2, world=2), "rank must be a whole .*in 0 .. 1")]:
        with pytest.raises(ValueError, match=match): Batches(IMAGES, **words)
    with pytest.raises(ValueError, match="flip needs images"): Batches(swiss_roll(8), 4, flip=True)
    with pytest.raises(ValueError, match="no image"): Batches(IMAGES[:0], 4)


@pytest.mark.parametrize("call, match", [
    (lambda: swiss_roll(9, generator=0), "generator must be a torch.Generator, got 0; .*seed"),
    (lambda: swiss_roll(9.5), "n must be a whole number, 0 or more, got 9.5"),
    (lambda: swiss_roll(9, noise=-1), "noise must be 0 or more, and finite, got -1"),
    (lambda: swiss_roll(9, noise=math.nan), "noise must be 0 or more, and finite, got nan"),
    (lambda: Mixture.ring().sample(9, 0), "generator must be a torch.Generator, got 0"),
    (lambda: Mixture.ring(2.5), "k must be a whole number, 1 or more, got 2.5"),
    (lambda: Mixture.ring(radius=math.nan), "means must be floating point and finite"),
    (lambda: Mixture(torch.zeros(2, 2), math.inf), r"std above 0, got \(2, 2\) and inf"),
    (lambda: Mixture(torch.zeros(2, 2, dtype=torch.long), 1.0), "means must be floating point"),
    (lambda: Mixture.ring().noised(2.0), r"alpha_bar must lie in \[0, 1\], got 2.0"),
    (lambda: Mixture.ring().score(torch.zeros(4, 2, dtype=torch.long)), "x must be floating point"),
    (lambda: Mixture.ring().log_prob(torch.zeros(4, 3)), r"shape \(B, 2\), .* \(4, 3\)"),
    (lambda: digits(size=16.0), "size must be a whole number, 8 or more, got 16.0"),
    (lambda: read_cifar10("nowhere", "test"), "train must be True or False, got 'test'"),
    (lambda: to_model([1, 2]), "x must be a tensor or a NumPy array, got list"),
    (lambda: Batches(IMAGES.long(), 4), "images must be uint8, or floats as .*, got torch.int64"),
    (lambda: Batches(IMAGES, 4.0), "batch_size must be a whole number, 1 or more, got 4.0"),
    (lambda: Batches(IMAGES, 4, world=0), "world must be a whole number, 1 or more, got 0"),
])
def test_what_is_no_number_array_or_generator_is_refused_in_words(call, match):
    with pytest.raises(ValueError, match=match): call()


def test_arrays_are_taken_for_tensors():
    "Without a copy where they may be written to."
    x = np.arange(256, dtype=np.uint8)
    assert torch.equal(to_model(x), to_model(torch.from_numpy(x)))
    assert np.array_equal(to_uint8(to_model(x).numpy()).numpy(), x)
    assert data.as_tensor("x", x).data_ptr() == x.ctypes.data
    labels = torch.arange(len(IMAGES))
    pairs = [next(Batches(*v, labels=y)) for v, y in (((IMAGES, 4), labels),
                                                      ((IMAGES.numpy(), 4), labels.numpy()))]
    assert all(torch.equal(a, b) for a, b in zip(*pairs))
    m, y = Mixture.ring(), swiss_roll(5)
    assert torch.equal(m.score(y.numpy()), m.score(y))
    assert torch.equal(Mixture(m.means.numpy(), m.std).log_prob(y.numpy()), m.log_prob(y))


def test_fingerprints_tell_data_sets_apart():
    assert fingerprint(IMAGES) == fingerprint(IMAGES.clone()) != fingerprint(IMAGES.flip(0))
    assert fingerprint(IMAGES) == f"{zlib.crc32(IMAGES.numpy().tobytes()):08x}"
    assert fingerprint(IMAGES.bfloat16()) != fingerprint(IMAGES.half())
    assert fingerprint(IMAGES.mT) == fingerprint(IMAGES.mT.contiguous())


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
    x0, eps = m.sample(n, generator), torch.randn(n, 2, generator=generator)
    x = math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * eps
    z = m.noised(alpha_bar).sample(n, torch.Generator().manual_seed(1))
    for power in (1, 2, 4):
        a, b = x**power, z**power
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * ((a.var(0) + b.var(0)) / n).sqrt()).all()


def test_swiss_roll_is_reproducible_and_of_about_unit_variance():
    a, b = (swiss_roll(5000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (5000, 2)
    assert (a.std(0) > 0.8).all() and (a.std(0) < 1.2).all()


def test_swiss_roll_lies_on_its_spiral_up_to_the_noise():
    "Without noise the radius is the angle over 2.25 pi, from 1.5 pi to 4.5 pi."
    def roll(noise):
        return swiss_roll(20_000, torch.Generator().manual_seed(3), noise).double()
    bare = roll(0.0)
    angle = bare.norm(dim=1) * 2.25 * math.pi
    direction = torch.stack([angle.cos(), angle.sin()], 1)
    assert torch.allclose(bare, bare.norm(dim=1, keepdim=True) * direction, atol=1e-4)
    turns = angle / (2 * math.pi)
    assert 0.75 < turns.min() < 0.755 and 2.245 < turns.max() < 2.25
    for noise in (0.05, 0.2):
        off = (roll(noise) - bare).flatten()
        assert abs(off.std() / noise - 1) < 5 / math.sqrt(2 * len(off))


def test_the_toys_centres_lie_where_their_names_say():
    ring, grid = Mixture.ring(6, radius=2.0).means, Mixture.grid(3, spacing=0.5).means
    assert torch.allclose(ring.norm(dim=1), torch.full((6,), 2.0))
    assert torch.allclose((ring - ring.roll(1, 0)).norm(dim=1), torch.full((6,), 2.0))   # a hexagon
    assert sorted(grid.tolist()) == [[a, b] for a in (-0.5, 0, 0.5) for b in (-0.5, 0, 0.5)]


def test_toys_are_single_where_the_default_is_double_and_nine_pixels_are_refused():
    with default_dtype(torch.float64): assert swiss_roll(5).dtype == torch.float32
    with pytest.raises(ValueError, match="9 has no room"): digits(size=9)
