"FID by the paper's protocol; a network stands in for Inception, whose weights are not here."
import hashlib
import os
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from ddpm_nb import Statistics, frechet_distance, inception_score
from ddpm_nb.engine import metrics
from ddpm_nb.engine.images import image_folder
from ddpm_nb.engine.metrics import (INCEPTION, Scores, inception_extractor, reference_statistics,
                                    sample_quality)
from ddpm_nb.evaluation import _OwnExtractor, cifar10_statistics


def images(n, seed=0, size=32):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=g)


class Blocks:
    "Features: the means of 16 blocks and 3 colours; classes: which colour is strongest."
    name = "blocks"

    def __init__(self): self.calls = 0

    def __call__(self, x):
        self.calls += 1
        x = x.float() / 255
        colours = x.mean((2, 3))
        return nn.functional.avg_pool2d(x, x.shape[-1] // 4).flatten(1), (50 * colours).softmax(1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_NB_CACHE", str(tmp_path))
    return tmp_path


# --- the protocol ---------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore")
def test_fewer_samples_than_splits_are_scored_in_as_many_parts():
    e, few = Blocks(), images(4)
    got = sample_quality(few, e, Statistics.of(e(images(300, 1))[0], "blocks"))
    assert got.class_score == pytest.approx(inception_score(e(few)[1], 4)[0])


def test_quality_is_the_distance_and_the_score_of_all_samples():
    a, b, e = images(200), images(300, 1), Blocks()
    reference = Statistics.of(e(b)[0], "blocks")
    got = sample_quality(a, e, reference, splits=4, batch=64)
    features, probabilities = e(a)
    assert got.distance == pytest.approx(frechet_distance(Statistics.of(features), reference))
    assert (got.class_score, got.standard_deviation) == pytest.approx(
        inception_score(probabilities, 4))
    assert (got.samples, got.extractor, got.reference) == (200, "blocks", "300 images")
    from_batches = sample_quality((x for x in a.split(30)), e, reference, 4)
    assert from_batches.distance == pytest.approx(got.distance)


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_counts_the_batches_of_samples(progress, capsys):
    e = Blocks()
    reference = Statistics.of(e(images(300, 1))[0], "blocks")
    sample_quality(images(200), e, reference, batch=64, progress=progress)
    assert (" 4/4 " in capsys.readouterr().err) == progress


def test_samples_are_compared_with_cifar10_kept_from_the_first_time(monkeypatch, cache):
    asked = []
    def fake(root, train):
        return asked.append((root, train)) or (images(120, 5 + train), None)
    monkeypatch.setattr(metrics, "cifar10", fake)
    e, a = Blocks(), images(100)
    first, calls = sample_quality(a, e, root="/data"), e.calls
    again = sample_quality(a, e, root="/data")
    assert first == again and e.calls == calls + 1 and asked == [("/data", True)] * 2
    assert sample_quality(a, e, "test").distance != first.distance
    assert first.reference == "the 50,000 training images of CIFAR-10"
    assert len(list((cache / "statistics").iterdir())) == 2
    with pytest.raises(ValueError, match="reference must be one of train, test"):
        sample_quality(a, e, "validation")


def test_our_classifier_brings_its_own_reference(monkeypatch):
    def never(*_): raise AssertionError("CIFAR-10 was asked for")
    monkeypatch.setattr(metrics, "cifar10", never)
    class Ours:
        name = _OwnExtractor.name
        def __call__(self, x): return torch.randn(len(x), 256), torch.full((len(x), 10), 0.1)
    torch.manual_seed(0)
    got = sample_quality(images(300), Ours())
    torch.manual_seed(0)
    s = Statistics.of(torch.cat([torch.randn(100, 256) for _ in range(3)]))
    assert got.distance == pytest.approx(frechet_distance(s, cifar10_statistics()))


def test_only_inceptions_distance_is_called_fid():
    official = Scores(3.17, 9.46, 0.11, 50_000, INCEPTION, "the 50,000 training images of CIFAR-10")
    assert str(official).startswith("FID 3.17, Inception Score 9.46 ± 0.11 (50,000 samples")
    other = str(official._replace(extractor="blocks"))
    assert other.startswith("distance 3.17, class score 9.46") and "not FID's" in other
    assert "Inception" not in other


def test_no_sample_at_all_is_refused():
    reference = Statistics.of(Blocks()(images(60))[0])
    for nothing in (images(0), iter(())):
        with pytest.raises(ValueError, match="no sample"):
            sample_quality(nothing, Blocks(), reference)


# --- the cache ------------------------------------------------------------------------------------

def test_reference_statistics_are_kept_by_extractor_and_by_content(cache):
    e, x = Blocks(), images(60)
    s = reference_statistics(e, x, "mine")
    assert reference_statistics(e, x, "mine").mean.equal(s.mean) and e.calls == 1
    reference_statistics(e, images(60, 1), "mine")
    other = Blocks()
    other.name = "blocks/2"
    reference_statistics(other, x, "mine")
    names = sorted(p.name for p in (cache / "statistics").iterdir())
    assert len(names) == 3 and all(n.startswith("mine-") for n in names) and e.calls == 2
    again = reference_statistics(e, x, "mine")
    assert again.covariance.equal(s.covariance) and again.count == 60 and again.extractor == e.name


def test_statistics_of_files_are_those_of_these_very_files(cache, tmp_path):
    "Samples are all called 000000.png and on: neither another folder's nor yesterday's are taken."
    from PIL import Image
    def folder(name, seed):
        (tmp_path / name / "train").mkdir(parents=True, exist_ok=True)
        for i, x in enumerate(images(60, seed).permute(0, 2, 3, 1).numpy()):
            Image.fromarray(x).save(tmp_path / name / "train" / f"{i:06}.png")
        return image_folder(tmp_path / name, images(1).shape[-1], memory=0)[0]
    e, a, b = Blocks(), folder("a", 0), folder("b", 1)
    found = [reference_statistics(e, x, "mine").mean for x in (a, b, a, b)]
    assert e.calls == 2 and found[0].equal(found[2]) and found[1].equal(found[3])
    assert not found[0].equal(found[1])
    assert reference_statistics(e, folder("a", 2), "mine").mean.ne(found[0]).any() and e.calls == 3
    class Nameless:                                      # nothing says whether they have changed
        shape, dtype, _images = (60, *a.shape[1:]), torch.uint8, images(60)
        def __len__(self): return 60
        def __getitem__(self, i): return self._images[i]
    for calls in (4, 5):
        reference_statistics(e, Nameless(), "mine")
        assert e.calls == calls


def test_damaged_statistics_are_made_anew(cache):
    e, x = Blocks(), images(60)
    s = reference_statistics(e, x, "mine")
    (path,) = (cache / "statistics").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert reference_statistics(e, x, "mine").mean.equal(s.mean) and e.calls == 2
    reference_statistics(e, x, "mine")
    assert e.calls == 2


# --- Inception ------------------------------------------------------------------------------------

class StandIn(nn.Module):
    "What torch-fidelity's class takes and returns, on 3 features and 5 classes."

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.fc = nn.Linear(3, 5)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x):
        features = x.float().mean((2, 3)) / 255
        return features, features @ self.fc.weight.T


@pytest.fixture
def library(monkeypatch):
    module = ModuleType("torch_fidelity")
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)


@pytest.fixture
def weights(tmp_path):
    if torch.__version__ < (2, 6): pytest.skip("before PyTorch 2.6 no pickle can be read safely")
    torch.manual_seed(0)
    torch.save(nn.Linear(3, 5).state_dict() | {}, path := tmp_path / "weights.pth")
    state = torch.load(path, weights_only=True)
    torch.save({f"fc.{k}": v for k, v in state.items()}, path)
    return path


def test_the_networks_answers_are_features_and_probabilities(library, weights):
    e, x = inception_extractor(weights=weights), images(4)
    features, probabilities = e(x)
    matrix = torch.load(weights, weights_only=True)["fc.weight"]
    expected = x.float().mean((2, 3)) / 255
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(probabilities, (expected @ matrix.T).softmax(1))
    with pytest.raises(ValueError, match="uint8"): e(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="shape"): e(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_only_the_published_weights_carry_the_name(library, weights, monkeypatch):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert inception_extractor(weights=weights).name == f"inception-{digest[:8]}"
    monkeypatch.setattr(metrics, "_SHA256", digest[:8])
    assert inception_extractor(weights=weights).name == INCEPTION


def test_weights_are_fetched_once(library, weights, cache, monkeypatch):
    asked = []
    def fetch(url, place, hash_prefix):
        asked.append((url, hash_prefix))
        with open(place, "wb") as f: f.write(weights.read_bytes())
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    inception_extractor(), inception_extractor()
    assert asked == [(metrics._URL, "6726825d")] and metrics._URL.endswith("6726825d.pth")
    assert (cache / metrics._URL.rpartition("/")[2]).is_file()


def test_what_is_missing_is_said_in_words(library, cache, monkeypatch):
    def unreachable(*_, **__): raise OSError("no route to host")
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(OSError, match="cannot be fetched.*no route.*put it into") as e:
        inception_extractor()
    assert str(cache) in str(e.value) and not [p for p in cache.iterdir() if p.is_file()]
    with pytest.raises(FileNotFoundError, match="no file of weights"):
        inception_extractor(weights=cache / "nothing.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install 'ddpm_nb\[fid\]'"): inception_extractor()


def test_a_pickle_that_would_run_something_is_refused(library, cache):
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(cache / "boom"),)
    torch.save({"fc.weight": Bomb()}, cache / "evil.pth")
    with pytest.raises(ValueError, match="not safe to load|cannot load safely"):
        inception_extractor(weights=cache / "evil.pth")
    assert not (cache / "boom").exists()


def test_statistics_that_cannot_be_kept_are_used_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_NB_CACHE", str(tmp_path))
    (tmp_path / "statistics").write_text("no folder")
    class Eyes:
        name = "eyes"
        def __call__(self, images): return images.float().flatten(1)[:, :3], images
    images = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8)
    with pytest.warns(UserWarning, match="not kept"):
        s = reference_statistics(Eyes(), images, "some")
    assert s.count == 9 and s.mean.shape == (3,)
