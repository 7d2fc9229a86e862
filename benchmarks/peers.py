"""The peers' side: transformers' and timm's BiT in PyTorch, in every setting that may be their best."""

from __future__ import annotations

import os
import sys
from functools import cache

import engines
import numpy as np
import torch
from protocol import serve


def mend_torchvision() -> None:
    """Let timm and transformers import it where it has no compiled operators: no CPU build is everywhere."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        mend_torchvision.kept = library
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


mend_torchvision()


class Logits(torch.nn.Module):
    """A model of transformers that returns a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        """Logits."""
        return self.model(images).logits


def build(architecture: str, library: str):
    """A network with random weights, images as NCHW."""
    torch.manual_seed(0)
    depth, width = architecture[1:].split("x")
    if library == "timm":
        import timm

        return timm.create_model(f"resnetv2_{depth}x{width}_bit")
    from transformers import BitConfig, BitForImageClassification

    units = {"50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}[depth]
    # As transformers' own conversion of the published weights sets them.
    config = BitConfig(
        depths=units, width_factor=int(width), num_labels=1000, global_padding="same", layer_type="bottleneck"
    )
    return Logits(BitForImageClassification(config))


@cache
def model(architecture: str, library: str, layout: str, mode: str, compiled: bool):
    """A network in one of the memory layouts, for training or inference, compiled or not."""
    net = build(architecture, library)
    net = net.train() if mode == "training" else net.eval()
    if layout == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    return torch.compile(net, dynamic=False) if compiled else net  # a shape at a time: its fastest


@cache
def images(batch: int, size: int, layout: str):
    """A batch of noise."""
    array = np.random.default_rng(0).uniform(-1, 1, (batch, 3, size, size)).astype(np.float32)
    tensor = torch.from_numpy(array)
    return tensor.to(memory_format=torch.channels_last) if layout == "channels_last" else tensor


def settings(variant: str) -> tuple[str, str, bool]:
    """`timm channels_last compiled` -> library, memory layout, compiled or not."""
    words = variant.split()
    return words[0], "channels_last" if "channels_last" in words else "contiguous", "compiled" in words


@cache
def onnx_file(architecture: str, library: str, batch: int, size: int) -> str:
    """The network as PyTorch writes it to ONNX, for one shape of images: the engines' fastest."""
    net = model(architecture, library, "contiguous", "inference", False)
    file = f"build/bench/{library}-{architecture}-{batch}x{size}.onnx"
    torch.onnx.export(net, (images(batch, size, "contiguous"),), file, dynamo=False)
    return file


def engine(architecture: str, batch: int, size: int, variant: str):
    """One forward pass of another engine."""
    library, name = variant.split()
    run = engines.ENGINES[name](onnx_file(architecture, library, batch, size))
    fed = images(batch, size, "contiguous").numpy()
    return lambda: run(fed)


def inference(architecture: str, batch: int, size: int, variant: str):
    """One forward pass."""
    if variant.split()[-1] in engines.ENGINES:
        return engine(architecture, batch, size, variant)
    library, layout, compiled = settings(variant)
    net, fed = model(architecture, library, layout, "inference", compiled), images(batch, size, layout)

    def run():
        with torch.inference_mode():
            return net(fed)[0, 0].item()

    return run


def training(architecture: str, batch: int, size: int, variant: str):
    """One step of SGD with momentum."""
    library, layout, compiled = settings(variant)
    net, fed = model(architecture, library, layout, "training", compiled), images(batch, size, layout)
    optimizer = torch.optim.SGD(net.parameters(), 1e-8, momentum=0.9)
    labels = torch.arange(batch) % 1000

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(net(fed), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def jpegs(architecture: str, folder: str, size: int, variant: str):
    """From JPEG files to pooled features."""
    from PIL import Image

    library, layout, compiled = settings(variant)
    net = model(architecture, library, layout, "inference", compiled)
    files = sorted(os.path.join(folder, name) for name in os.listdir(folder))

    def read(file):
        image = Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1

    def run():
        results = []
        with torch.inference_mode():
            for start in range(0, len(files), 32):
                batch = torch.from_numpy(np.stack([read(file) for file in files[start : start + 32]]))
                if layout == "channels_last":
                    batch = batch.to(memory_format=torch.channels_last)
                results.append(net.forward_features(batch).mean((2, 3)))
        return torch.cat(results)

    return run


CASES = {"inference": inference, "training": training, "jpegs": jpegs}


if __name__ == "__main__":
    serve(CASES)
