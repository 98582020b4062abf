"""The compiled form of the network: the same outputs, gradients, weights and mode; its norm, its
dropout and its doubling; and that the network itself stays as it was."""
import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from guards import randomised
from torch import nn

from ddpm_nb.engine.faster import (_FORMS, _GroupNorm, _hash_dropout, _in_forms, _ResidualBlock,
                                   _seed, _Upsample, compiled)
from ddpm_nb.engine.pretrained import load_pretrained, save_pretrained
from ddpm_nb.sampling import GaussianDiffusion
from ddpm_nb.schedules import NoiseSchedule
from ddpm_nb.unet import ResidualBlock, UNet, UNetConfig, Upsample

TINY = UNetConfig(image_size=8, in_channels=2, out_channels=2, base_channels=8,
                  channel_multipliers=(1, 2), blocks_per_level=1,
                  attention_resolutions=(4,), groups=4, dropout=0.1)
ONE = replace(TINY, channel_multipliers=(1,), attention_resolutions=())
X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0, 5, 70, 999])


@pytest.fixture(autouse=True)
def fresh_compiler():
    "Nothing compiled before."
    torch._dynamo.reset()


def run(call, net, *inputs):
    "Output, gradient of the first input, gradients of all weights, for a sum with random signs."
    x = inputs[0].clone().requires_grad_()
    net.zero_grad()
    out = call(x, *inputs[1:])
    sign = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    sign = sign.to(out.device)
    (out * sign).mean().backward()
    return [out.detach(), x.grad, *[p.grad.clone() for p in net.parameters()]]


def assert_equal(a, b, relative):
    for u, v in zip(a, b, strict=True):
        assert (u - v).abs().max() <= relative * v.abs().max() + 1e-7 * relative


def form(layer: nn.Module) -> nn.Module: return _in_forms(layer, _FORMS["cpu"])


# The forms, one by one, by PyTorch's ordinary operations ----------------------------------------

@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_written_out_normalisation_equals_pytorchs_with_its_gradients(dtype, tolerance):
    "The mean far from zero, where a naive variance fails."
    norm = nn.GroupNorm(4, 16, eps=1e-6).to(dtype)
    nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias)
    x = torch.randn(3, 16, 6, 5, dtype=dtype) + 20 * torch.randn(1, 16, 1, 1, dtype=dtype)
    assert isinstance(form(norm), _GroupNorm)
    for a, b in zip(run(norm, norm, x), run(form(norm), norm, x), strict=True):
        assert (a - b).abs().max() <= tolerance


def test_the_transposed_convolution_equals_doubling_and_convolution_with_its_gradients():
    up, x = randomised(Upsample(4)).double(), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    assert isinstance(form(up), _Upsample)
    assert_equal(run(form(up), up, x), run(up, up, x), 1e-12)


@pytest.mark.parametrize("p, train", [(0.0, True), (0.5, False)], ids=["no dropout", "eval"])
def test_the_residual_block_equals_the_plain_one_with_its_gradients(p, train):
    block = randomised(ResidualBlock(8, 12, 16, 4, p)).double().train(train)
    x, time = (torch.randn(o, dtype=torch.float64) for o in ((2, 8, 6, 6), (2, 16)))
    fast = form(block).train(train)
    assert isinstance(fast, _ResidualBlock)
    assert_equal(run(fast, block, x, time), run(block, block, x, time), 1e-12)


@pytest.mark.parametrize("change", [
    dict(norm_eps=1e-2), dict(cosines_first=True), dict(frequency_shift=0),
    dict(pad_all_sides=True), dict(middle_attention=False), dict(head_channels=4)],
    ids=lambda change: next(iter(change)))
def test_the_form_of_every_kind_of_network_gives_its_answers_and_gradients(change):
    net = randomised(UNet(replace(TINY, dropout=0.0, **change))).double()
    assert_equal(run(form(net), net, X.double(), T), run(net, net, X.double(), T), 1e-11)
    if "middle_attention" in change: return            # else the choice makes a difference
    plain = UNet(replace(TINY, dropout=0.0)).double()
    plain.load_state_dict(net.state_dict())
    with torch.no_grad(): away = plain(X.double(), T) - form(net)(X.double(), T)
    assert away.abs().max() > 1e-4


def test_the_residual_block_keeps_little_for_the_way_back():
    "Gradient checkpointing: of each half, only what enters it and what its convolution needs."
    block = randomised(ResidualBlock(16, 16, 16, 4, 0.5)).train()
    x, time, kept = torch.randn(2, 16, 8, 8), torch.randn(2, 16), {}
    for call in (block, form(block)):
        seen = kept[call] = set()
        pack = lambda v, seen=seen: (seen.add(v.data_ptr()) if v.shape == x.shape else None, v)[1]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v): call(x, time)
    plain, fast = kept.values()
    assert len(fast) < len(plain)


def test_the_hash_dropout_drops_the_right_share_anew_each_time_and_obeys_the_seed():
    x = torch.ones(4, 8, 16, 16).requires_grad_()
    torch.manual_seed(1)
    first, second = (_hash_dropout(x, 0.3, _seed()) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(first, _hash_dropout(x, 0.3, _seed()))
    n, kept, both = x.numel(), first > 0, (first > 0) & (second > 0)
    assert abs(kept.double().mean().item() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / n)
    assert abs(both.double().mean().item() - 0.49) < 5 * math.sqrt(0.49 * 0.51 / n)
    grad, = torch.autograd.grad(first.sum(), x)
    assert torch.equal(grad, torch.where(kept, 1 / torch.tensor(0.7), 0.0))     # the same mask


# The whole network ------------------------------------------------------------------------------

@pytest.mark.parametrize("backend, config", [
    ("eager", TINY), ("aot_eager", replace(TINY, head_channels=4)),
    ("aot_eager", UNetConfig.digits())], ids=["tiny-eager", "heads-aot_eager", "digits-aot_eager"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_outputs_and_every_gradient_are_the_networks(backend, config, train):
    "`aot_eager` does all that `eager` does, and derives the way back: a second or two a layer."
    net = randomised(UNet(replace(config, dropout=0.0 if train else 0.1))).double().train(train)
    size = config.image_size
    x = torch.randn(4, config.in_channels, size, size, dtype=torch.float64)
    fast = compiled(net, backend=backend)
    assert_equal(run(fast, net, x, T), run(net, net, x, T), 1e-10)
    if train and backend != "eager": return       # a graph of its own, in each mode once
    with torch.no_grad(): assert_equal([fast(x, T)], [net(x, T)], 1e-12)


SPACE = pytest.mark.skipif(" " in torch.__file__, reason="torch.compile cannot link its kernels "
                           "where PyTorch lies in a path with a space")


@SPACE
def test_compiled_equals_eager():
    "One real compilation, forward and backward, in float32."
    net = randomised(UNet(replace(TINY, attention_resolutions=()))).eval()
    assert_equal(run(compiled(net), net, X, T), run(net, net, X, T), 1e-5)


@SPACE
def test_compiled_dropout_obeys_torchs_seed():
    "Really compiled: what is seeded around a step decides the mask; another seed, another mask."
    net = randomised(UNet(replace(ONE, dropout=0.5))).train()
    fast, results = compiled(net), []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        results.append(run(fast, net, X, T))
    first, other, again = results
    for a, b in zip(first, again, strict=True): assert torch.equal(a, b)
    assert (first[0] - other[0]).abs().max() > 0.1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_compiled_way_back_uses_the_mask_of_the_way_there(backend):
    "The mask is recomputed: the gradient is the slope of the very function that the seed gives."
    net = randomised(UNet(replace(ONE, dropout=0.5))).double().train()
    fast, x, along = compiled(net, backend=backend), X.double(), torch.randn_like(X).double()

    def f(x, call=fast):
        torch.manual_seed(7)
        return (call(x, T) ** 2).mean()

    x.requires_grad_()
    grad, = torch.autograd.grad(f(x), x)
    slope = (f(x + 1e-5 * along) - f(x - 1e-5 * along)) / 2e-5
    assert slope.item() == pytest.approx((grad * along).sum().item(), rel=1e-6)
    dropped, plain = f(x).item(), f(x, net.eval()).item()
    assert dropped != pytest.approx(plain, rel=1e-3)            # some numbers were dropped
    assert f(x).item() == pytest.approx(plain, rel=1e-12)       # and in eval mode none


def test_one_graph_serves_every_timestep_and_the_last_smaller_batch():
    from torch._dynamo.testing import CompileCounter
    counter = CompileCounter()
    net = compiled(UNet(TINY).eval(), backend=counter, fullgraph=True)
    for batch, t in ((8, 3), (8, 700), (5, 1), (3, 999), (8, 0)):
        x, t = torch.randn(batch, 2, 8, 8), torch.full((batch,), t)
        for o in (x, t): torch._dynamo.mark_dynamic(o, 0)
        with torch.no_grad(): net(x, t)
    assert counter.frame_count == 1


# One network, two forms -------------------------------------------------------------------------

def test_the_network_itself_is_untouched():
    net, seen = randomised(UNet(TINY)).eval(), []
    kinds, keys = [type(m) for m in net.modules()], list(net.state_dict())
    parameters = [id(p) for p in net.parameters()]
    net.down[0].block.norm1.register_forward_hook(lambda m, args, out: seen.append(out))
    before = net(X, T)
    fast = compiled(net, backend="eager")
    assert torch.allclose(fast(X, T), before, atol=1e-5)
    assert len(seen) == 1                                # hooks are net's alone
    assert torch.equal(net(X, T), before) and len(seen) == 2
    assert [type(m) for m in net.modules()] == kinds and list(net.state_dict()) == keys
    assert [id(p) for p in net.parameters()] == parameters
    twin = copy.deepcopy(net)
    assert torch.equal(twin(X, T), before)
    assert not set(parameters) & {id(p) for p in twin.parameters()}


def test_weights_are_shared_in_every_direction():
    net = randomised(UNet(TINY)).eval()
    fast = compiled(net, backend="eager")
    assert [id(p) for p in fast.parameters()] == [id(p) for p in net.parameters()]

    def same(x=X): return torch.allclose(fast(x, T), net(x, T), atol=1e-5)
    first = fast(X, T)
    first.square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert same() and not torch.allclose(fast(X, T), first, atol=1e-3)
    net.load_state_dict(randomised(UNet(TINY), 1).state_dict(), assign=True)     # other parameters
    assert same() and not torch.allclose(fast(X, T), first, atol=1e-3)
    net.double()
    assert same(X.double())


def test_train_and_eval_are_one_switch():
    net = randomised(UNet(replace(ONE, dropout=0.5))).eval()
    fast = compiled(net, backend="eager")

    def drops(): return not torch.equal(fast(X, T), fast(X, T))
    assert not drops() and not fast.training
    net.train()
    assert drops() and fast.training
    fast.eval()
    assert not drops() and not net.training and not net.middle[0].block.dropout.training
    fast.train()
    assert drops() and net.training and net.middle[0].block.dropout.training
    net.eval()
    net.middle[0].block.dropout.train()                  # one layer alone
    assert drops()


def test_a_copy_of_the_compiled_form_has_weights_of_its_own():
    net = randomised(UNet(TINY)).eval()
    fast = compiled(net, backend="eager")
    before, other = fast(X, T), copy.deepcopy(fast)
    assert torch.equal(other(X, T), before)
    with torch.no_grad():
        for p in other.parameters(): p.mul_(0.5)
    assert torch.equal(fast(X, T), before) and not torch.allclose(other(X, T), before, atol=1e-3)


def test_the_compiled_form_is_saved_as_its_network(tmp_path):
    net, d = randomised(UNet(TINY)), GaussianDiffusion(NoiseSchedule.linear(5))
    save_pretrained(tmp_path / "m", compiled(net), d)
    for k, v in load_pretrained(tmp_path / "m")[0].state_dict().items():
        assert torch.equal(v, net.state_dict()[k])


def test_another_network_is_compiled_as_it_is():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.GroupNorm(2, 4)

        def forward(self, x, t): return F.silu(self.norm(x)) + t[:, None, None, None]

    net, x = Other(), torch.randn(4, 4, 3, 3)
    fast = compiled(net, backend="eager")
    assert torch.equal(fast(x, T), net(x, T)) and fast._orig_mod is net


@pytest.mark.cuda
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_on_a_gpu_outputs_and_gradients_are_the_networks(train, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)     # whose rounding is 5e-4
    net = randomised(UNet(replace(TINY, dropout=0.0))).cuda().train(train)
    fast, x, t = compiled(net), X.cuda(), T.cuda()
    a, b = ([o.cpu() for o in run(lambda x, t, c=c: c(x, t), net, x, t)] for c in (fast, net))
    assert_equal(a, b, 1e-4)
    with torch.no_grad():
        first = fast(x, t)
        kept = first.clone()
        fast(2 * x, t)                                   # a CUDA graph writes where it did before
        assert torch.equal(first, kept)
        assert torch.allclose(first, net(x, t), rtol=1e-4, atol=1e-4)


def test_a_network_that_takes_labels_keeps_its_arguments():
    class Labelled(UNet):
        def forward(self, x, t, y=None): return super().forward(x, t) + (0 if y is None else y)

    net = Labelled(ONE).eval()
    x, t = torch.randn(2, ONE.in_channels, 8, 8), torch.tensor([1, 5])
    fast = compiled(net, backend="eager")
    torch.testing.assert_close(fast(x, t, 3.0), net(x, t, 3.0))


def test_the_hash_is_the_one_it_names():
    "Fibonacci hashing, then MurmurHash3's last rounds, on 32-bit numbers without a sign."
    def bits(place, seed):
        h = (place ^ seed[0]) * (-1640531527 % 2**32) % 2**32
        h = ((h ^ h >> 16 ^ seed[1]) * (-2048144789 % 2**32)) % 2**32
        h = ((h ^ h >> 13) * (-1028477387 % 2**32)) % 2**32
        return h ^ h >> 16
    seed, p, x = torch.tensor([12345, 67890], dtype=torch.int32), 0.25, torch.ones(2, 8, 8, 8)
    kept = _hash_dropout(x, p, seed).permute(0, 2, 3, 1).flatten() > 0
    def signed(h): return h - 2**32 if h >= 2**31 else h
    wanted = [signed(bits(i, (12345, 67890))) >= round(2**32 * p) - 2**31 for i in range(x.numel())]
    assert kept.tolist() == wanted
