"What several tests share: a watch over devices, and a network with nothing left at zero."
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class NoStrangers(TorchDispatchMode):
    "Fails when an operation makes a CPU tensor out of nothing, or mixes one with meta tensors."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = torch.utils._pytree.tree_leaves
        tensors = lambda tree: [x for x in leaves(tree) if isinstance(x, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        ins = tensors((args, kwargs))
        kinds = {x.device.type for x in ins if x.ndim or x.device.type == "meta"}
        if len(kinds) > 1 and func is not torch.ops.aten.copy_.default:
            raise RuntimeError(f"{func} mixes {kinds}")
        if not ins and any(x.device.type == "cpu" for x in tensors(out)):
            raise RuntimeError(f"{func} makes a CPU tensor")
        return out


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    "Every parameter drawn at random, norms and biases too, so that no term hides behind a zero."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(std=p[0].numel() ** -0.5 if p.ndim > 1 else 0.3, generator=g)
            if "norm" in name and name.endswith("weight"): p.add_(1)
    return net
