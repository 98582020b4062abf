"""The network: parity with diffusers' UNet2DModel, its start, its errors, its shapes, one graph."""
import json
import math
from dataclasses import replace

import pytest
import torch
from guards import randomised
from torch import nn

from ddpm_nb.engine.pretrained import _unet_to_diffusers, load_pretrained, to_diffusers
from ddpm_nb.unet import (Attention, Downsample, ResidualBlock, UNet, UNetConfig, Upsample,
                          timestep_embedding)

TINY = UNetConfig(image_size=8, in_channels=2, out_channels=2, base_channels=8,
                  channel_multipliers=(1, 2), blocks_per_level=1,
                  attention_resolutions=(4,), groups=4, dropout=0.1)


def peer(config: UNetConfig, net: UNet) -> nn.Module:
    """The same network by diffusers, with the same weights, in the same memory format
    (so that both draw the same dropout masks)."""
    diffusers = pytest.importorskip("diffusers")
    values = {k: v for k, v in _unet_to_diffusers(config).items() if k != "_class_name"}
    ref = diffusers.UNet2DModel(**values)
    weights = to_diffusers(net.state_dict(), net)
    ref.load_state_dict({k: v.contiguous() for k, v in weights.items()}, strict=True)
    return ref.to(memory_format=torch.channels_last)


def run(call, net: nn.Module, x: torch.Tensor, t: torch.Tensor, target: torch.Tensor, seed: int):
    "Output, gradient of the input, gradients of all weights, for a mean squared error."
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    net.zero_grad()
    torch.manual_seed(seed)
    out = call(x, t)
    (out - target).square().mean().backward()
    return out.detach(), x.grad, {k: p.grad.clone() for k, p in net.named_parameters()}


CONFIG = UNetConfig.cifar10()


@pytest.fixture(scope="module")
def pair():
    net = randomised(UNet(CONFIG))
    return net, peer(CONFIG, net)


@pytest.mark.parametrize("dtype, tolerance, batch",
                         [(torch.float32, 1e-5, 2), (torch.float64, 1e-10, 1)])
@pytest.mark.parametrize("size", [32, 24])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_output_and_every_gradient_equal_those_of_diffusers(
        pair, dtype, tolerance, batch, size, train):
    "The paper's CIFAR-10 network (appendix B); the same seed gives both the same dropout masks."
    net, ref = (m.to(dtype).train(train) for m in pair)
    g = torch.Generator().manual_seed(size)
    x, target = (torch.randn(batch, 3, size, size, dtype=dtype, generator=g) for _ in range(2))
    x, t = x.contiguous(memory_format=torch.channels_last), torch.tensor([977, 4])[:batch]
    out, grad_x, grads = run(net, net, x, t, target, seed=5)
    ref_out, ref_grad_x, ref_grads = run(lambda x, t: ref(x, t).sample, ref, x, t, target, seed=5)
    assert ref_out.std() > 0.3                       # it does say something
    assert (out - ref_out).abs().max() <= tolerance
    assert (grad_x - ref_grad_x).abs().max() <= tolerance
    grads = to_diffusers(grads, net)
    assert grads.keys() == ref_grads.keys() and len(grads) > 300
    worst = max((grads[k] - ref_grads[k]).abs().max().item() for k in grads)
    assert worst <= tolerance
    # A key's bias moves no softmax: its gradient is zero.
    norms = [v.abs().max().item() for k, v in ref_grads.items() if not k.endswith("to_k.bias")]
    assert min(norms) > 1e-6                         # none is equal because it vanishes


@pytest.mark.parametrize("config", [
    TINY, replace(TINY, head_channels=4),
    replace(TINY, blocks_per_level=3, channel_multipliers=(1, 2, 2), attention_resolutions=(8, 4)),
    replace(TINY, in_channels=1, channel_multipliers=(1,), attention_resolutions=()),
    UNetConfig.digits(), UNetConfig.small(), replace(TINY, norm_eps=1e-2),
    replace(TINY, cosines_first=True), replace(TINY, frequency_shift=0),
    replace(TINY, pad_all_sides=True), replace(TINY, middle_attention=False),
    replace(TINY, norm_eps=1e-5, cosines_first=True, frequency_shift=0, pad_all_sides=True,
            head_channels=8, attention_resolutions=(8, 4)),
], ids=["tiny", "heads", "deep", "one level", "digits", "small", "epsilon", "cosines first",
        "no shift", "padding", "no attention in the middle", "diffusers' defaults"])
def test_other_shapes_equal_diffusers_too(config):
    net = randomised(UNet(config)).double().eval()
    ref = peer(config, net).double().eval()
    size = config.image_size
    x = torch.randn(2, config.in_channels, size, 2 * size, dtype=torch.float64)
    t = torch.tensor([0, 999])
    with torch.no_grad(): assert (net(x, t) - ref(x, t).sample).abs().max() <= 1e-10


def test_the_papers_parameter_counts():
    "35.7M for CIFAR-10, 114M for 256x256 images (section 4, appendix B), on the meta device."
    with torch.device("meta"):
        names = ("cifar10", "lsun256", "small", "digits")
        nets = {name: UNet(getattr(UNetConfig, name)()) for name in names}
        count = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
        x, t = torch.empty(2, 3, 256, 256), torch.zeros(2, dtype=torch.long)
        assert nets["lsun256"](x, t).shape == (2, 3, 256, 256)
    assert count["cifar10"] == 35_746_307
    assert count["lsun256"] == 113_673_219 and round(count["lsun256"] / 1e6) == 114
    assert count["small"] == 4_437_699 and count["digits"] == 438_145


def test_the_packaged_digits_network_is_the_digits_preset():
    assert load_pretrained("digits")[0].config == UNetConfig.digits()


def test_start_is_variance_scaling_with_mean_fan_and_zero_biases():
    """Uniform, variance 1 / mean(fan_in, fan_out); the last layer of every branch 1e-10 of that
    (appendix B, the official code)."""
    torch.manual_seed(0)
    net = UNet(UNetConfig.cifar10())
    near_zero = 0
    for name, m in net.named_modules():
        if isinstance(m, nn.GroupNorm):
            assert (m.weight == 1).all() and (m.bias == 0).all()
            assert m.eps == 1e-6 and m.num_groups == 32
        if not isinstance(m, (nn.Conv2d, nn.Linear)): continue
        assert (m.bias == 0).all(), name
        for w in m.weight.chunk(3) if name.endswith("qkv") else [m.weight]:
            fan = w[0, 0].numel() * (w.shape[0] + w.shape[1]) / 2
            last = name.endswith(("conv2", "attention.out", "conv_out"))
            near_zero += last
            want, n = (1e-10 if last else 1) / fan, w.numel()
            # Uniform on [-a, a]: variance a^2 / 3, and the sample variance of n draws has
            # relative standard deviation sqrt(0.8 / n).
            assert abs(w.var().item() / want - 1) < 5 * math.sqrt(0.8 / n) + 1e-3, name
            assert w.abs().max().item() <= math.sqrt(3 * want) * (1 + 1e-6), name
    assert near_zero == 22 + 6 + 1                   # residual blocks, attentions, the end


def test_a_fresh_network_says_nearly_nothing():
    torch.manual_seed(0)
    net = UNet(UNetConfig.small()).eval()
    with torch.no_grad(): out = net(torch.randn(4, 3, 32, 32), torch.tensor([0, 10, 500, 999]))
    assert 0 < out.abs().max() < 1e-3


@pytest.mark.parametrize("block", [ResidualBlock(8, 8, 16, 4, 0.0), Attention(8, 2, 4)],
                         ids=["residual", "attention"])
def test_a_fresh_block_passes_its_input_on(block):
    x = torch.randn(2, 8, 4, 4)
    inputs = (x, torch.randn(2, 16)) if isinstance(block, ResidualBlock) else (x,)
    with torch.no_grad(): y = block(*inputs)
    assert torch.allclose(x, y, atol=1e-3) and not torch.equal(x, y)


def test_the_clock_is_that_of_the_official_code():
    "Sines, then cosines, frequencies 1 .. 1e-4, the divisor half_dim - 1."
    t, dim = torch.tensor([0, 1, 10, 999]), 128
    code = timestep_embedding(t, dim).double()
    f = [10_000 ** (-i / 63) for i in range(64)]
    want = [[math.sin(s * a) for a in f] + [math.cos(s * a) for a in f] for s in t.tolist()]
    want = torch.tensor(want, dtype=torch.float64)
    # float32 angles: a relative error of a few roundings
    assert (code - want).abs().max() < 999 * 3 * 2**-24
    assert torch.equal(timestep_embedding(t.float(), dim), timestep_embedding(t, dim))


def test_downsampling_pads_right_and_bottom_only():
    "TF's SAME with stride 2: the output at (i, j) sees rows 2i .. 2i+2 and nothing above."
    down = Downsample(1)
    with torch.no_grad():
        down.conv.weight.fill_(1.0)
        x = torch.zeros(1, 1, 4, 4)
        x[0, 0, 0, 0] = 1
        assert down(x)[0, 0].tolist() == [[1, 0], [0, 0]]
        x = torch.zeros(1, 1, 4, 4)
        x[0, 0, 3, 3] = 1
        assert down(x)[0, 0].tolist() == [[0, 0], [0, 1]]
        x = torch.zeros(1, 1, 4, 4)
        x[0, 0, 2, 2] = 1                             # seen by all four
        assert down(x)[0, 0].tolist() == [[1, 1], [1, 1]]


def test_upsampling_equals_repeat_then_convolution():
    up = randomised(Upsample(4)).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    want = up.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.allclose(up(x), want, atol=1e-12)


def test_attention_equals_the_plain_formula():
    "softmax(q k / sqrt(d)) v over all pixels, by loops over images and heads."
    torch.manual_seed(1)
    a = randomised(Attention(8, 2, 4)).double()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = a.qkv(a.norm(x)).reshape(2, 3, 2, 4, 9).unbind(1)
        h = torch.zeros(2, 2, 4, 9, dtype=torch.float64)
        for b in range(2):
            for n in range(2):
                for i in range(9):
                    w = torch.exp(sum(q[b, n, c, i] * k[b, n, c] for c in range(4)) / 2)
                    h[b, n, :, i] = (v[b, n] * w / w.sum()).sum(1)
        assert torch.allclose(a(x), x + a.out(h.reshape(2, 8, 3, 3)), atol=1e-12)


def test_dropout_stands_before_the_second_convolution():
    block = randomised(ResidualBlock(8, 8, 16, 4, 0.5)).train()
    x, time, seen = torch.randn(2, 8, 4, 4), torch.randn(2, 16), []
    block.conv2.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    block(x, time)
    share = (seen[0] == 0).float().mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(seen[0].numel())
    block.eval()
    block(x, time)
    kept = seen[0] != 0
    assert torch.allclose(seen[0][kept], 2 * seen[1][kept], atol=1e-5)


def test_each_image_is_treated_alone():
    net = randomised(UNet(TINY)).double().eval()
    x, t = torch.randn(3, 2, 8, 8, dtype=torch.float64), torch.tensor([1, 50, 999])
    with torch.no_grad():
        whole = net(x, t)
        for i in range(3):
            assert torch.allclose(net(x[i:i + 1], t[i:i + 1]), whole[i:i + 1], atol=1e-12)


def test_an_input_in_any_layout_gives_the_same_answer():
    net = randomised(UNet(TINY)).eval()
    x, t = torch.randn(2, 2, 8, 8), torch.tensor([3, 4])
    with torch.no_grad():
        want = net(x, t)
        turned = x.transpose(2, 3).contiguous().transpose(2, 3)
        for other in (x.contiguous(memory_format=torch.channels_last), turned):
            assert torch.equal(net(other, t), want)


@pytest.mark.parametrize("x, t, words", [
    (torch.zeros(2, 3, 8, 8), torch.zeros(2), r"\(B, 2, H, W\), got \(2, 3, 8, 8\)"),
    (torch.zeros(2, 8, 8), torch.zeros(2), r"\(B, 2, H, W\)"),
    (torch.zeros(2, 2, 8, 7), torch.zeros(2), "multiples of 2, got 8 x 7"),
    (torch.zeros(2, 2, 8, 8), torch.zeros(3), r"t must be \(2,\)"),
    (torch.zeros(2, 2, 8, 8), torch.zeros(2, 1), r"t must be \(2,\)"),
    (torch.zeros(2, 2, 8, 8), torch.tensor(5), r"t must be \(2,\)"),
    (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), torch.zeros(2), "floating point"),
    (torch.zeros(2, 2, 8, 8).double(), torch.zeros(2),
     r"x is torch.float64, the network's weights are torch.float32: bring one"),
    (torch.zeros(2, 2, 8, 8).half(), torch.zeros(2), "x is torch.float16"),
    (None, torch.zeros(2), "^x must be a tensor, got NoneType"),
    (torch.zeros(2, 2, 8, 8), [0, 0], "^t must be a tensor, got list"),
])
def test_wrong_inputs_are_refused_in_words(x, t, words):
    with pytest.raises(ValueError, match=words): UNet(TINY)(x, t)


@pytest.mark.parametrize("change, words", [
    (dict(base_channels=0), "base_channels"), (dict(base_channels=7), "even"),
    (dict(groups=3), "groups must divide"),
    (dict(channel_multipliers=()), "at least one level"), (dict(channel_multipliers=2), "sequence"),
    (dict(channel_multipliers=(1, 0)), "above 0"), (dict(channel_multipliers=None), "sequence"),
    (dict(dropout=1.0), r"\[0, 1\)"),
    (dict(dropout=-0.1), r"\[0, 1\)"), (dict(dropout="much"), r"\[0, 1\)"),
    (dict(image_size=7), "multiple of 2"),
    (dict(attention_resolutions=(16,)), r"\(8, 4\)"),
    (dict(head_channels=3), "head_channels must be None or divide"),
    (dict(head_channels=0), "head_channels"), (dict(blocks_per_level=1.5), "whole number"),
    (dict(in_channels=True), "whole number"), (dict(norm_eps=0.0), r"norm_eps .* \(0, 1\)"),
    (dict(norm_eps="1e-5"), "norm_eps"), (dict(frequency_shift=2), "must be 1 or 0, got 2"),
    (dict(dropout=None), r"dropout .*None"), (dict(norm_eps=None), "norm_eps .*None"),
    (dict(dropout=False), r"dropout .*False"), (dict(frequency_shift=True), "1 or 0, got True"),
    (dict(channel_multipliers=(True, 2)), "above 0"),
    (dict(cosines_first=1), "cosines_first must be a bool"), (dict(pad_all_sides=None), "a bool"),
    (dict(middle_attention="no"), "a bool"),
])
def test_wrong_configs_are_refused_in_words(change, words):
    with pytest.raises(ValueError, match=words): replace(TINY, **change)


def test_configs_survive_json_and_refuse_strange_keys():
    presets = (UNetConfig.cifar10(), UNetConfig.lsun256(), UNetConfig.small(), UNetConfig.digits())
    for config in (TINY, *presets):
        assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert hash(config) == hash(replace(config))
    with pytest.raises(ValueError, match=r"unknown UNetConfig keys \['chanels'\].*base_channels"):
        UNetConfig.from_dict({"chanels": 3})


def test_a_config_of_before_means_the_papers_choices():
    "What was saved when these were no fields."
    new = ("norm_eps", "cosines_first", "frequency_shift", "pad_all_sides", "middle_attention")
    old = {k: v for k, v in UNetConfig.small().to_dict().items() if k not in new}
    config = UNetConfig.from_dict(old)
    assert config == UNetConfig.small()
    assert [getattr(config, k) for k in new] == [1e-6, False, 1, False, True]


def test_heads_need_not_fit_a_middle_without_attention():
    config = replace(TINY, middle_attention=False, attention_resolutions=(8,), head_channels=8,
                     channel_multipliers=(1, 3), base_channels=8, groups=4)
    assert UNet(config).middle[0].attention is None
    with pytest.raises(ValueError, match="head_channels"):
        replace(config, head_channels=5)


def test_a_network_in_double_answers_in_double():
    net, x = randomised(UNet(TINY)).double().eval(), torch.randn(2, 2, 8, 8)
    t = torch.tensor([3, 700])
    with torch.no_grad():
        out = net(x.double(), t)
        assert out.dtype == torch.float64
        assert torch.allclose(net.float()(x, t).double(), out, atol=1e-5)
        with pytest.raises(ValueError, match="are torch.float32"): net(x.double(), t)


def test_learned_variance_has_its_own_channels():
    net = UNet(replace(TINY, out_channels=4))
    assert net(torch.zeros(2, 2, 8, 8), torch.zeros(2)).shape == (2, 4, 8, 8)


def test_one_graph_serves_every_timestep_and_the_last_smaller_batch():
    from torch._dynamo.testing import CompileCounter
    torch._dynamo.reset()
    counter = CompileCounter()
    net = torch.compile(UNet(TINY).eval(), backend=counter, fullgraph=True)
    for batch, t in ((8, 3), (8, 700), (5, 1), (3, 999), (8, 0)):
        x, t = torch.randn(batch, 2, 8, 8), torch.full((batch,), t)
        for o in (x, t): torch._dynamo.mark_dynamic(o, 0)
        with torch.no_grad(): net(x, t)
    assert counter.frame_count == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_answer_is_the_same_and_the_input_untouched(mode):
    net = randomised(UNet(TINY)).eval()
    x, t = torch.randn(4, 2, 8, 8), torch.tensor([0, 5, 70, 999])
    kept, with_gradients = x.clone(), net(x, t).detach()
    with mode(): assert torch.equal(net(x, t), with_gradients)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_hook_sees_the_same_values_in_every_mode(mode):
    "Nothing is written over: what a hook kept stays what the layer gave."
    net, kept = randomised(UNet(TINY)).eval(), {}
    for name, m in net.named_modules():
        m.register_forward_hook(lambda m, args, out, name=name: kept.update({name: out}))
    x, t = torch.randn(2, 2, 8, 8), torch.tensor([3, 4])
    net(x, t)
    want, kept = {k: v.detach().clone() for k, v in kept.items()}, {}
    with mode(): net(x, t)
    assert kept.keys() == want.keys() and len(kept) > 30
    for k in want: assert torch.equal(kept[k], want[k]), k


@pytest.mark.parametrize("layer", [Downsample(8), Upsample(8)])
def test_down_and_up_keep_channels_last(layer):
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 4).to(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_and_autocast_stay_near_float32(dtype):
    net = randomised(UNet(TINY)).eval()
    x, t = torch.randn(4, 2, 8, 8), torch.tensor([0, 5, 70, 999])
    eps = torch.finfo(dtype).eps
    with torch.no_grad():
        full = net(x, t)
        with torch.autocast("cpu", dtype): auto = net(x, t)
        cast = net.to(dtype)(x.to(dtype), t)
    for out in (auto, cast):                         # some 30 roundings, as a random walk
        assert (out.float() - full).norm() / full.norm() < 10 * eps


def test_meta_device_builds_without_numbers():
    with torch.device("meta"): net = UNet(UNetConfig.cifar10())
    assert all(p.is_meta for p in net.parameters())
