"Algorithm 1: its configuration, its rate, its average, its draws, its loop."
import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from guards import default_dtype
from torch import nn

from ddpm_nb.data import Batches, digits
from ddpm_nb.engine.recipes import recipe
from ddpm_nb.engine.runs import Trainer
from ddpm_nb.sampling import GaussianDiffusion
from ddpm_nb.schedules import NoiseSchedule
from ddpm_nb.training import (EMA, LossByT, TrainConfig, TrainState, draw, learning_rate,
                              train)


# The configuration


def test_defaults_are_the_papers():
    c = TrainConfig()
    assert (c.steps, c.batch_size, c.lr, c.warmup) == (800_000, 128, 2e-4, 5_000)
    assert (c.grad_clip, c.ema_decay, c.flip) == (1.0, 0.9999, True)
    assert (c.accumulate, c.precision, c.cooldown, c.ema_warmup) == (1, "fp32", 0, False)


def test_config_survives_json_and_refuses_unknown_keys():
    c = TrainConfig(steps=7, precision="bf16", flip=False)
    assert TrainConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c
    refusal = r"unknown TrainConfig keys \['learning_rate'\]; allowed: steps, batch_size, lr"
    with pytest.raises(ValueError, match=refusal):
        TrainConfig.from_dict({"learning_rate": 1})


@pytest.mark.parametrize("wrong, match", [
    (dict(steps=0), "steps must be 1 or more"), (dict(steps=1.5), "steps must be of type int"),
    (dict(flip=1), "flip must be of type bool"), (dict(lr="fast"), "lr must be of type float"),
    (dict(lr=math.nan), "lr must be 0 or more"), (dict(ema_decay=1.0), r"\[0, 1\)"),
    (dict(precision="fp8"), "one of fp32, bf16, fp16"),
    (dict(sampler="euler"), "one of ddpm, ddim"), (dict(batch_size=True), "type int"),
    (dict(batch_size=10, accumulate=3), "accumulate must divide")])
def test_wrong_values_are_refused_in_words(wrong, match):
    with pytest.raises(ValueError, match=match): TrainConfig(**wrong)


def test_learning_rate_rises_stays_and_falls():
    c = TrainConfig(steps=100, lr=1.0, warmup=10, cooldown=20)
    rates = [learning_rate(i, c) for i in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == pytest.approx([1 - i / 20 for i in range(20)])
    assert learning_rate(799_999, TrainConfig()) == 2e-4
    assert learning_rate(0, TrainConfig()) == pytest.approx(2e-4 / 5000)


# The averaged weights


def test_ema_is_the_weighted_sum_that_its_name_says():
    model, history = nn.Linear(3, 2).double(), []
    ema = EMA(model, 0.9)
    first = model.weight.detach().clone()
    for _ in range(12):
        with torch.no_grad(): model.weight.add_(torch.randn_like(model.weight))
        history.append(model.weight.detach().clone())
        ema.update(model)
    direct = 0.9**12 * first + sum(0.1 * 0.9 ** (11 - i) * w for i, w in enumerate(history))
    assert torch.allclose(ema.model.weight, direct, atol=1e-14)
    assert not ema.model.weight.requires_grad and not ema.model.training


def test_an_average_is_of_a_network():
    with pytest.raises(ValueError, match="^model must be a torch.nn.Module, got OrderedDict"):
        EMA(nn.Linear(1, 1).state_dict())


def test_ema_warmup_forgets_the_random_start():
    model = nn.Linear(1, 1, bias=False)
    slow, quick = EMA(model, 0.9999), EMA(model, 0.9999, warmup=True)
    with torch.no_grad(): model.weight.fill_(5.0)
    for step in range(100): slow.update(model, step), quick.update(model, step)
    assert abs(quick.model.weight.item() - 5) < 1e-3 < abs(slow.model.weight.item() - 5)


def test_the_average_of_all_weights_is_one_fused_call():
    "What it costs beside an update is measured by bench/cifar10_speed.py."
    from torch.utils._python_dispatch import TorchDispatchMode
    calls = []

    class Listen(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            calls.append(operation)
            return operation(*args, **(kwargs or {}))

    model = recipe("cifar10", "smoke").network()
    ema = EMA(model)
    with Listen(): ema.update(model)
    assert calls == [torch.ops.aten._foreach_lerp_.Scalar]


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, math.nan, "0.9", None, True])
def test_a_decay_outside_0_to_1_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"): EMA(nn.Linear(1, 1), decay)


# The loss by t


def test_loss_by_t_is_a_mean_that_forgets():
    h = LossByT(4, memory=2)
    h.add(torch.tensor([0, 0, 3]), torch.tensor([1.0, 3.0, 5.0]))
    h.add(torch.tensor([0]), torch.tensor([9.0]))
    old = math.exp(-1 / 2)
    mean = h.mean()
    assert mean[0] == pytest.approx((old * 4 + 9) / (old * 2 + 1)) and mean[3] == pytest.approx(5)
    assert mean[1:3].isnan().all()
    assert h.mean(bins=2).tolist() == pytest.approx([mean[0].item(), 5.0])


def test_loss_by_t_remembers_a_thousand_updates():
    h = LossByT(1)
    for loss in [1.0] + [0.0] * 1000: h.add(torch.tensor([0]), torch.tensor([loss]))
    assert h.sums[0] == pytest.approx(math.exp(-1), rel=1e-3)


# The draws


def test_t_and_noise_depend_on_the_seed_and_the_step_alone():
    x0 = torch.zeros(6, 3)
    torch.manual_seed(1)
    t, noise = draw(x0, 50, seed=3, step=8)
    before = torch.get_rng_state()
    for seed, step in ((3, 9), (4, 8), (8, 3), (38, 0), (3, 80)):
        other_t, other = draw(x0, 50, seed, step)
        assert not torch.equal(other, noise) and not torch.equal(other_t, t)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = draw(x0, 50, seed=3, step=8)
    assert torch.equal(again[0], t) and torch.equal(again[1], noise)
    for world in (2, 3):
        shares = [draw(x0[:6 // world], 50, 3, 8, rank, world) for rank in range(world)]
        assert torch.equal(torch.cat([s[0] for s in shares]), t)
        assert torch.equal(torch.cat([s[1] for s in shares]), noise)
    assert draw(x0.double(), 50, 3, 8)[1].dtype == torch.float64


def test_every_t_is_drawn_alike_and_the_noise_is_standard_normal():
    draws = [draw(torch.zeros(100, 10), 20, 0, step) for step in range(200)]
    counts = torch.bincount(torch.cat([t for t, _ in draws]), minlength=20)
    assert len(counts) == 20 and (counts - 1000).abs().max() < 5 * math.sqrt(1000)
    noise = torch.cat([n for _, n in draws]).flatten()
    assert abs(noise.mean()) < 5 / len(noise) ** 0.5
    assert abs(noise.var() - 1) < 5 * (2 / len(noise)) ** 0.5


class Net(nn.Module):
    "A network for small images, with dropout."
    def __init__(self, dropout=0.3):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.dropout = nn.Conv2d(1, 8, 3, padding=1), nn.Dropout(dropout)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, t):
        return self.last(self.dropout(self.first(x).relu())) + t.view(-1, 1, 1, 1) / 100


def diffusion(T=100): return GaussianDiffusion(NoiseSchedule.linear(T))
def images(): return digits(True)[0][:40]


CONFIG = TrainConfig(steps=6, batch_size=8, lr=1e-2, warmup=4, grad_clip=0.1, ema_decay=0.9,
                     ema_warmup=True, flip=True, seed=7)


def batches(**options):
    return Batches(images(), 8, **{"seed": 7, "flip": True, **options})


def test_the_trainer_runs_the_very_same_loop(tmp_path):
    alone, inside = Net(), Net()
    *_, last = train(alone, diffusion(), batches(), CONFIG)
    trainer = Trainer(inside, diffusion(), images(), CONFIG, device="cpu", progress=False).train()
    for a, b in zip(alone.state_dict().values(), inside.state_dict().values()):
        assert torch.equal(a, b)
    for a, b in zip(last.average.parameters(), trainer.ema.model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("run", ["train", "Trainer"])
def test_other_users_of_torchs_random_numbers_do_not_matter_and_are_left_alone(run):
    def loop(net):
        if run == "train": return train(net, diffusion(), batches(), CONFIG)
        return Trainer(net, diffusion(), images(), CONFIG, device="cpu", progress=False).steps()

    quiet, noisy = Net(), Net()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for _ in loop(quiet): pass
    assert torch.equal(torch.get_rng_state(), before)
    for update in loop(noisy): torch.manual_seed(update.step), torch.randn(update.step)
    for a, b in zip(quiet.parameters(), noisy.parameters()): assert torch.equal(a, b)


def test_dropout_depends_on_the_seed_the_step_and_the_process_alone():
    class Ones(Net):
        "Drops units of ones first, so that who was dropped can be seen."
        def forward(self, x, t):
            seen.append(self.dropout(torch.ones(1000)))
            return super().forward(x, t)

    def dropped(seed, step, rank):
        state = TrainState(net := Ones(), 100)
        state.step = step
        torch.randn(len(seen))                                          # somebody else's draws
        source, config = batches(rank=rank, world=2), replace(CONFIG, seed=seed)
        next(train(net, diffusion(), source, config, state))
        return tuple(seen[-1].tolist())

    seen = []
    assert dropped(7, 2, 0) == dropped(7, 2, 0)
    keys = [(7, 2, 0), (8, 2, 0), (7, 3, 0), (7, 2, 1)]
    assert len({dropped(*key) for key in keys}) == 4


# The loop


def test_a_loop_that_is_left_and_entered_again_goes_on_to_the_bit():
    whole, parts = Net(), Net()
    for _ in train(whole, diffusion(), batches(), CONFIG): pass
    state = TrainState(parts, 100, CONFIG)
    for update in train(parts, diffusion(), batches(), CONFIG, state):
        if update.step == 2: break
    source = batches()
    source.step = state.step
    seen = [u.step for u in train(parts, diffusion(), source, CONFIG, state)]
    assert seen == [3, 4, 5, 6]
    for a, b in zip(whole.parameters(), parts.parameters()): assert torch.equal(a, b)


def test_training_ends_with_its_steps_or_with_its_batches():
    three = [torch.zeros(4, 1, 16, 16)] * 3
    assert [u.step for u in train(Net(), diffusion(), three, CONFIG)] == [1, 2, 3]
    assert len(list(train(Net(), diffusion(), batches(), CONFIG))) == CONFIG.steps
    source = batches()
    for _ in train(Net(), diffusion(), source, CONFIG): pass
    assert source.step == CONFIG.steps                          # and not one batch more was taken


def test_gradients_that_were_left_in_the_weights_do_not_count():
    clean, stale = Net(), Net()
    for p in stale.parameters(): p.grad = torch.ones_like(p)
    for net in (clean, stale): next(train(net, diffusion(), batches(), CONFIG))
    for a, b in zip(clean.parameters(), stale.parameters()): assert torch.equal(a, b)


def test_labels_reach_the_network_whole_and_in_order():
    class Labelled(Net):
        def forward(self, x, t, y):
            seen.append(y)
            return super().forward(x, t)

    seen, labels = [], torch.arange(40)
    source, twin = batches(labels=labels), batches(labels=labels)
    next(train(Labelled(), diffusion(), source, CONFIG))
    assert torch.equal(seen[0], next(twin)[1])
    parts = replace(CONFIG, accumulate=2)
    data = (images(), labels)
    t = Trainer(Labelled(), diffusion(), data, parts, device="cpu", progress=False)
    t.update()
    assert torch.equal(torch.cat(seen[1:]), seen[0]) and len(seen) == 3
    with pytest.raises(ValueError, match=r"must be 40 labels, .*\(3,\)"):
        Trainer(Labelled(), diffusion(), (images(), labels[:3]), parts, device="cpu")


def test_batches_that_do_not_fit_are_refused_in_words():
    uint8, elsewhere = images()[:4], torch.zeros(4, 1, 16, 16, device="meta")
    for batch, got in ((uint8, "torch.uint8 on cpu"), (elsewhere, "torch.float32 on meta")):
        with pytest.raises(ValueError, match=f"batches must be floats on cpu, got {got}"):
            next(train(Net(), diffusion(), [batch], CONFIG))
    with pytest.raises(ValueError, match="batches must be floats on cpu, got ndarray: see Batches"):
        next(train(Net(), diffusion(), [images().numpy()], CONFIG))
    for data in (None, {"train": images()}, iter([images()])):
        with pytest.raises(ValueError, match="data must be a tensor of images"):
            Trainer(Net(), diffusion(), data, CONFIG, device="cpu")


def test_data_in_the_place_of_batches_are_refused_in_words(tmp_path):
    "Not taken apart, each image for a batch of as many as it has channels."
    class Pairs:
        def __len__(self): return 12
        def __getitem__(self, i): return floats[i], i

    class Asked(Net):
        def forward(self, x, t): raise AssertionError("the network was asked")

    floats = images()[:12].float() / 127.5 - 1
    dataset = torch.utils.data.TensorDataset(floats, torch.arange(12))
    for data, got in ((floats, "Tensor"), (floats.numpy(), "ndarray"), (dataset, "TensorDataset"),
                      (Pairs(), "Pairs"), (str(tmp_path), "str"), (None, "NoneType"),
                      (tmp_path, type(tmp_path).__name__)):
        with pytest.raises(ValueError, match=f"an iterable of batches, got {got}: see Batches and"):
            next(train(Asked(), diffusion(), data, CONFIG))


@pytest.mark.parametrize("scale, shift, told", [
    (1, 0, True), (255, 0, True), (2, -1, False), (2.4, -1.2, False), (4, -2, True)])
def test_a_first_batch_of_images_in_another_range_is_a_warning_and_the_trainers_is_its_own(
        scale, shift, told):
    x = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, :, 0, 0] = 0                                                # black, as images have it
    x = x * scale + shift
    class Scaled(nn.Linear):
        def forward(self, x, t): return x * self.weight
    for images, expected in ((x, told), (x.flatten(1), False)):     # no image: left alone
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in train(Scaled(1, 1), diffusion(), Batches(images, 8), CONFIG): pass
        said = [str(w.message) for w in seen if "made for -1 .. 1" in str(w.message)]
        assert len(said) == expected and (not said or seen[0].filename == __file__)
    with warnings.catch_warnings(action="error"):                    # it has a line of its own
        Trainer(Scaled(1, 1), diffusion(), x, CONFIG, device="cpu", progress=False).update()


def test_a_loader_of_pytorchs_gives_batches_to_the_loop():
    class Labelled(Net):
        def forward(self, x, t, y):
            seen.append(y)
            return super().forward(x, t)

    seen, x = [], images()[:12].float() / 127.5 - 1
    pairs = torch.utils.data.TensorDataset(x, torch.arange(12))
    loader = torch.utils.data.DataLoader(pairs, batch_size=4)
    assert [u.step for u in train(Labelled(), diffusion(), loader, CONFIG)] == [1, 2, 3]
    assert torch.cat(seen).tolist() == list(range(12))


def test_training_does_not_mind_a_default_of_double():
    model, source = Net(), batches()
    with default_dtype(torch.float64):
        updates = list(train(model, diffusion(), source, replace(CONFIG, steps=2)))
    assert all(u.loss.isfinite() for u in updates) and len(updates) == 2


def test_an_average_that_warms_up_asks_for_the_step_and_is_one():
    torch.manual_seed(0)
    net = nn.Linear(40, 40)
    ema = EMA(net, 0.999, warmup=True)
    with pytest.raises(ValueError, match="needs to know the step"): ema.update(net)
    for step in range(2000):
        nn.init.normal_(net.weight)
        ema.update(net, step)
    assert ema.model.weight.std() < 0.06        # of the decay: 0.032; without it 1
    EMA(net, 0.9).update(net)


def test_a_network_that_its_caller_has_put_to_rest_learns_on_awake():
    net = Net()
    awake = []
    net.register_forward_hook(lambda net, *_: awake.append(net.training))
    with warnings.catch_warnings(action="ignore"):
        for _ in train(net, diffusion(), [torch.zeros(4, 1, 16, 16)] * 3, CONFIG): net.eval()
    assert awake == [True] * 3
