"Algorithm 1: its configuration, its rate, its average, its draws, its loop."
import json
import math

import pytest
import torch
from torch import nn

from ddpm_nb.engine.recipes import recipe
from ddpm_nb.training import EMA, LossByT, TrainConfig, learning_rate


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
    ema, first = EMA(model, 0.9), None
    first = model.weight.detach().clone()
    for _ in range(12):
        with torch.no_grad(): model.weight.add_(torch.randn_like(model.weight))
        history.append(model.weight.detach().clone())
        ema.update(model)
    direct = 0.9**12 * first + sum(0.1 * 0.9 ** (11 - i) * w for i, w in enumerate(history))
    assert torch.allclose(ema.model.weight, direct, atol=1e-14)
    assert not ema.model.weight.requires_grad and not ema.model.training


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
