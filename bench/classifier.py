#!/usr/bin/env python
"""Train the small classifier of CIFAR-10 whose features chapter 9 measures samples with.

Stochastic gradient descent with momentum on images that are mirrored at random and shifted by up
to four pixels; the learning rate rises over the first fifth of the run and falls to zero over the
rest. Every choice was settled beforehand: the test images are looked at once, when it is finished.

--package writes ddpm_nb/assets/cifar10-classifier: the weights in half precision, a card, and the
statistics of CIFAR-10's images in its features, so that a distance needs none of them.
--statistics makes these anew for a classifier that is there.
"""
import argparse
import json
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARD = """# A small classifier of CIFAR-10

What it is for: the features that chapter 9 of ddpm_nb compares images in. It is *not* the Inception
network, and a distance in its features is not FID.

- Architecture: `ddpm_nb.evaluation.Classifier`, {weights:,} weights, in half precision.
- Trained on the 50,000 training images of CIFAR-10 by `bench/classifier.py`: {epochs} epochs of
  SGD, batch {batch}, largest learning rate {lr}, weight decay {decay}, images mirrored and shifted
  by up to 4 pixels, seed {seed}; {minutes:.0f} minutes of two CPU cores.
- Accuracy on the 10,000 test images, with the weights as they are stored: **{accuracy:.2%}**.
- Limits: ten classes of small photographs; it knows textures and colours better than shapes.
"""


def shifted(x, generator, most: int = 4):
    "Each image mirrored with probability 1/2 and moved by up to `most` pixels; (B, C, H, W)."
    import torch
    import torch.nn.functional as F
    B, C, H, W = x.shape
    mirror = torch.rand(B, 1, 1, 1, generator=generator) < 0.5
    x = F.pad(torch.where(mirror, x.flip(3), x), (most,) * 4, mode="reflect")
    down, right = torch.randint(2 * most + 1, (2, B, 1), generator=generator)
    rows = (down + torch.arange(H))[:, None, :, None].expand(B, C, H, x.shape[3])
    columns = (right + torch.arange(W))[:, None, None, :].expand(B, C, H, W)
    return x.gather(2, rows).gather(3, columns)


def train(images, labels, a):
    "The trained classifier, in eval mode."
    import torch
    import torch.nn.functional as F

    from ddpm_nb import to_model
    from ddpm_nb.evaluation import Classifier
    torch.manual_seed(a.seed)
    net = Classifier().to(memory_format=torch.channels_last)
    matrices = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [dict(params=matrices, weight_decay=a.decay), dict(params=others, weight_decay=0)],
        lr=a.lr, momentum=0.9, nesterov=True)
    steps = a.epochs * (len(images) // a.batch)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(k / (0.2 * steps), (steps - k) / (0.8 * steps)))
    g, start = torch.Generator().manual_seed(a.seed), time.monotonic()
    for epoch in range(a.epochs):
        total = torch.zeros(())
        for index in torch.randperm(len(images), generator=g).split(a.batch):
            if len(index) < a.batch: continue
            x = shifted(to_model(images[index]), g).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(net(x), labels[index])
            loss.backward()
            optimizer.step()
            rate.step()
            total += loss.detach()
        print(json.dumps(dict(epoch=epoch + 1, loss=total.item() / (steps // a.epochs),
                              seconds=round(time.monotonic() - start))), flush=True)
    return net.eval(), time.monotonic() - start


def accuracy(net, images, labels) -> float:
    import torch

    from ddpm_nb import to_model
    with torch.inference_mode():
        right = [(net(to_model(x)).argmax(1) == y).sum().item()
                 for x, y in zip(images.split(500), labels.split(500))]
    return sum(right) / len(images)


def write_statistics(place: Path) -> None:
    "Means and covariances (lower triangles, row by row) of training and test images' features."
    import torch
    from safetensors.torch import load_file, save

    from ddpm_nb import Statistics, cifar10
    from ddpm_nb.evaluation import Classifier, _OwnExtractor, extract
    net, stored = Classifier(), load_file(place / "model.safetensors")
    net.load_state_dict({k: v.float() for k, v in stored.items()}, strict=False)
    extractor, out = _OwnExtractor(net, "cpu"), {}
    for part in ("train", "test"):
        s = Statistics.of(extract(extractor, cifar10(train=part == "train")[0], progress=True)[0])
        rows = s.covariance[*torch.tril_indices(*s.covariance.shape)]
        out |= {f"{part}.mean": s.mean.float(), f"{part}.covariance": rows.float()}
    # `save_file` would let nobody else read it
    (place / "statistics.safetensors").write_bytes(save(out))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--epochs", type=int, default=12)
    p.add_argument("--batch", type=int, default=250)
    p.add_argument("--lr", type=float, default=0.3)
    p.add_argument("--decay", type=float, default=5e-4)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("runs/cifar10-classifier"))
    p.add_argument("--package", action="store_true", help="ship it with the package")
    p.add_argument("--statistics", action="store_true", help="of a classifier that is there")
    a = p.parse_args()
    place = ROOT / "ddpm_nb/assets/cifar10-classifier" if a.package else a.out
    if a.statistics: return write_statistics(place)
    from safetensors.torch import save

    from ddpm_nb import cifar10
    from ddpm_nb.evaluation import Classifier
    net, seconds = train(*cifar10(train=True), a)
    stored = {k: v.half() for k, v in net.state_dict().items() if v.is_floating_point()}
    net = Classifier().eval()
    net.load_state_dict({k: v.float() for k, v in stored.items()}, strict=False)
    right = accuracy(net, *cifar10(train=False))
    place.mkdir(parents=True, exist_ok=True)
    weights = save({k: v.contiguous() for k, v in stored.items()})
    (place / "model.safetensors").write_bytes(weights)
    card = CARD.format(weights=sum(p.numel() for p in net.parameters()), minutes=seconds / 60,
                       accuracy=right, **vars(a))
    (place / "README.md").write_text(card)
    write_statistics(place)
    print(json.dumps(dict(accuracy=right, seconds=round(seconds))))


if __name__ == "__main__":
    main()
