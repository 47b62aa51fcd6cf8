"""A small random network recorded on drawn images, whose names try to break into the page; for the widgets' tests."""

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from neuronbench.probe.images import ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.target import Target

HOSTILE = "<img src=x onerror=\"document.title='broken in'\">"
WORDS = ("red", "round", "wheel", "boat", "night", "leaf", "snow", "window", "sail", "door")


class Drawings:
    """60 images of 60 x 40 pixels, a bright spot on a dark gradient."""

    classes = ["lighthouse", HOSTILE, "a_class$with$dollars"]
    ids = [f"drawing_{i:02d}.png" for i in range(59)] + [f"{HOSTILE}.png"]
    labels = np.arange(60) % 3
    fingerprint = "drawings"

    def __len__(self):
        return 60

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        across, down = np.meshgrid(np.arange(60), np.arange(40))
        spot = np.exp(-((across - rng.uniform(0, 60)) ** 2 + (down - rng.uniform(0, 40)) ** 2) / 60)[..., None]
        return Image.fromarray((60 * rng.random(3) + 190 * spot * rng.random(3)).astype(np.uint8))


class Fragile(nn.Module):
    """Unit 1 is NaN where unit 0 hardly responds, unit 2 everywhere."""

    def forward(self, maps):
        dark = maps[:, :1].mean((2, 3), keepdim=True) < 0.0075
        unit = torch.arange(maps.shape[1])[None, :, None, None]
        return torch.where(dark & (unit == 1) | (unit == 2), torch.nan, maps)


class Mended(nn.Module):
    """Zeros for NaN, so that the layers behind are finite."""

    def forward(self, maps):
        return torch.nan_to_num(maps)


def preprocess(image):
    """The middle square, 32 x 32 pixels."""
    left = (image.width - image.height) // 2
    square = image.crop((left, 0, left + image.height, image.height)).resize((32, 32))
    return torch.from_numpy(np.asarray(square, np.float32) / 255 - 0.5).permute(2, 0, 1)


def tiny_recording(pool=None):
    """Layers "maps" (40 units, 16 x 16 maps, unit 1 NaN on some images, unit 2 on all) and "vector" (2048 units)."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("maps", nn.Sequential(nn.Conv2d(3, 40, 5, 2, 2), nn.ReLU(), Fragile()))
    model.add_module("pool", nn.Sequential(Mended(), nn.AdaptiveAvgPool2d(4), nn.Flatten()))
    model.add_module("vector", nn.Linear(640, 2048))
    target = Target(model.eval(), layers=["maps", "vector"], preprocess=preprocess, device="cpu")
    return record(target, ProbingSet.from_dataset(Drawings()), pool=pool, progress=False)


def tiny_descriptions():
    """Two methods' descriptions of the units of "maps"; unit 0's are hostile, unit 39 has none."""
    rng = np.random.default_rng(0)
    rows = [("maps", unit, " ".join(rng.choice(WORDS, 2, replace=False)), rng.random(), method)
            for method in ("CLIP-Dissect", "INVERT") for unit in range(39)]
    rows[0] = ("maps", 0, HOSTILE, 0.5, "CLIP-Dissect")
    rows[39] = ("maps", 0, f"$x_1$ {HOSTILE}", 0.25, "INVERT")
    return pd.DataFrame(rows, columns=["layer", "unit", "description", "score", "method"])
