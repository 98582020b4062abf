"""What chapter zero claims, measured by other means than its own: other classifiers,
scipy's statistics, exact moments."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_nb import GaussianDiffusion, NoiseSchedule, load_pretrained
from ddpm_nb.data import Mixture, digits, to_model

stats = pytest.importorskip("scipy.stats")
NOTEBOOK = Path(__file__).parent.parent / "nbs" / "00_prestudy.ipynb"


@pytest.fixture(scope="module")
def real():
    "Training pictures, their digits, held-out pictures, their digits."
    (seen, names), (held_out, their_names) = digits(True), digits(False)
    return to_model(seen), np.asarray(names), to_model(held_out), np.asarray(their_names)


@pytest.fixture(scope="module")
def model(): return load_pretrained("digits")


@pytest.fixture(scope="module")
def samples(model):
    net, d = model
    draw = lambda seed: d.sample(net, (100, 1, 16, 16), "dpm++", steps=20, progress=False,
                                 generator=torch.Generator().manual_seed(seed))
    return torch.cat([draw(1000 + i) for i in range(4)])


@pytest.fixture(scope="module")
def readers(real):
    "Two classifiers that share nothing with the chapter's, nor with each other."
    KNeighborsClassifier = pytest.importorskip("sklearn.neighbors").KNeighborsClassifier
    SVC = pytest.importorskip("sklearn.svm").SVC
    x, y = real[0].flatten(1).numpy(), real[1]
    return [c.fit(x, y) for c in (SVC(gamma="scale", C=5.0), KNeighborsClassifier(3))]


def read(readers, x): return [r.predict(x.flatten(1).numpy()) for r in readers]


def agreement(readers, x):
    a, b = read(readers, x)
    return int((a == b).sum()), len(a)


def smudges(pictures, n):
    "The chapter's second try, drawn by numpy."
    flat = pictures.flatten(1).double().numpy()
    g = np.random.default_rng(0)
    drawn = g.multivariate_normal(flat.mean(0), np.cov(flat.T), n, method="eigh")
    return torch.from_numpy(drawn).float().view(-1, 1, 16, 16).clamp(-1, 1)


def nearest(x, pictures): return torch.cdist(x.flatten(1), pictures.flatten(1)).min(1).values


def seeded(seed): return torch.Generator().manual_seed(seed)


def test_two_unlike_readers_agree_on_samples_as_on_real_digits_but_not_on_smudges(
        readers, real, samples):
    pictures = (real[2], samples, smudges(real[0], 400))
    held_out, drawn, smudged = (agreement(readers, x) for x in pictures)
    table = lambda a, b: [[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]]
    p = lambda a, b: stats.fisher_exact(table(a, b), alternative="less").pvalue
    assert p(drawn, held_out) > 1e-4       # so often by chance, where the two are alike
    assert p(smudged, held_out) < 1e-6


def test_the_copying_cheat_is_exposed_and_the_model_passes(real, samples):
    pictures, _, unseen, _ = real
    copies = pictures[::4] + 0.05 * torch.randn(375, 1, 16, 16, generator=seeded(0))
    limit = nearest(unseen, pictures).quantile(0.05)
    too_near = lambda x: int((nearest(x, pictures) < limit).sum())
    allowed = 0.05 + 4 * (0.05 * 0.95 * (1 / len(samples) + 1 / len(unseen))) ** 0.5
    assert too_near(samples) / len(samples) < allowed
    assert too_near(copies) == len(copies)


def test_a_noisier_copy_escapes_the_distance_but_not_the_ratio(real, samples):
    pictures, _, unseen, _ = real
    def ratio(x):
        small = lambda v: v.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).flatten(1)
        two = torch.cdist(small(x), small(pictures)).sort(1).values
        return two[:, 0] / two[:, 1]
    copies = pictures[::4] + 0.15 * torch.randn(375, 1, 16, 16, generator=seeded(0))
    limit, bound = nearest(unseen, pictures).quantile(0.05), ratio(unseen).quantile(0.05)
    assert (nearest(copies, pictures) < limit).float().mean() < 0.1
    assert (ratio(copies) < bound).float().mean() > 0.8
    assert (ratio(samples) < bound).float().mean() < 0.1


def test_the_share_of_each_digit_is_the_datas_and_the_one_digit_cheat_is_exposed(
        readers, real, samples):
    count = lambda x: np.bincount(read(readers, x)[0], minlength=10)
    p = lambda x: stats.chi2_contingency(np.stack([count(x), count(real[0])]) + 1e-9).pvalue
    assert p(samples) > 1e-4
    cheat = samples[:1] + 0.05 * torch.randn(400, 1, 16, 16, generator=seeded(0))
    assert p(cheat) < 1e-12


def test_pairs_of_samples_differ_as_pairs_of_real_digits_do(real, samples):
    mean = lambda x: torch.pdist(x.flatten(1)).mean()
    assert 0.9 < mean(samples) / mean(real[0][:400]) < 1.1


def test_the_forward_process_has_nothing_to_learn(model):
    net, d = model
    assert not list(d.parameters()) and sum(p.numel() for p in net.parameters()) > 100_000


def test_one_step_from_pure_noise_is_the_average_digit_and_many_are_a_digit(model, real):
    net, d = model
    average = real[0].mean(0)
    noise = torch.randn(16, 1, 16, 16, generator=seeded(3))
    draw = lambda k: d.sample(net, noise.shape, "ddim", steps=k, noise=noise, progress=False)
    off = lambda x: (x - average).square().mean().sqrt()
    spread = off(real[2])
    assert off(draw(1)) < spread / 3 < 0.75 * spread < off(draw(20))


def test_the_guess_is_nearer_than_picture_and_average_at_every_level(model, real):
    net, d = model
    x0, average = real[2][:100], real[0].mean(0)
    for t in (10, 50, 200, 400, 600, 999):
        t = torch.full((100,), t)
        damaged = d.q_sample(x0, t, torch.randn(x0.shape, generator=seeded(int(t[0]))))
        with torch.inference_mode(): guess = d.p_mean_variance(net, damaged, t).x0
        off = lambda x: (x - x0).square().mean()
        assert off(guess) < off(damaged)
        assert off(guess) < 1.1 * off(average)


def test_the_walk_with_knowledge_rebuilds_the_drop_to_its_moments():
    "Not the chapter's measure: mean and covariance of the rebuilt cloud against the exact ones."
    centres = torch.tensor([[-0.8, -0.5], [0.9, -0.2], [0.1, 1.1], [0.4, 0.3]])
    ink, n = Mixture(centres, 0.15), 8000
    s = NoiseSchedule.linear(T=250, beta_start=4e-4, beta_end=0.08)
    water = GaussianDiffusion(s, decoder="gaussian")
    score = lambda x, t: ink.noised(s.alpha_bars[t].item()).score(x)
    knows = lambda x, t: -s.one_minus_alpha_bars[t[0]].sqrt() * score(x, t[0])
    x = water.sample(knows, (n, 2), clip=False, progress=False, generator=seeded(0)).double()
    centres = centres.double()
    covariance = torch.cov(centres.T, correction=0) + 0.15**2 * torch.eye(2)
    luck = 5 * (covariance.diagonal() / n).sqrt()
    assert ((x.mean(0) - centres.mean(0)).abs() < luck + 0.01).all()
    assert (torch.cov(x.T) - covariance).abs().max() < 0.03
    near = torch.cdist(x, centres).min(1).values < 0.45          # three standard deviations: 98.9 %
    assert near.double().mean() > 0.98


def test_the_numbers_in_the_text_are_right():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert "1,797" in text and len(digits()[0]) == 1797
    assert "297 of them" in text and len(digits(False)[0]) == 297
    assert "21.7 only once in a hundred" in text and abs(stats.chi2.ppf(0.99, 9) - 21.7) < 0.05
    assert stats.chi2.mean(9) == 9 and "about 9" in text
    assert load_pretrained("digits")[1].T == 1000


def test_chapter_zero_has_no_formula_a_glossary_and_three_folded_answers():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert "$" not in text
    words = re.findall(r"^(\w[\w ]*)\n: ", text.split("## Glossary")[1], flags=re.M)
    assert len(words) >= 12
    before = text.split("## Glossary")[0].lower()
    assert [w for w in words if w.lower() not in before] == []
    assert text.count("```{dropdown} Answer") == 3
    folded = ["#| code-fold: true" in "".join(c["source"]) for c in cells]
    answers = [i for i, c in enumerate(cells) if "{dropdown} Answer" in "".join(c["source"])]
    assert all(folded[i + 1] for i in answers)                   # each answer's code is behind it
    warm_ups = ["#| warm-up:" in "".join(c["source"]) for c in cells]
    assert sum(warm_ups) == 2 and sum(folded) == 3 + 2 + 1       # and so are the imports
