"""Recording ResNet-18 at 224 pixels from JPEG files, against the bare forward pass; and the second `record` of the same thing."""
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights, resnet18

import neuronbench as nb

IMAGES, BATCH, RUNS = 512, 64, 5
LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def photographs(folder, count):
    """JPEG files of 500 x 375 pixels with the smoothness and the grain of photographs (about 70 kB each)."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        grain = random.normal(0, 8, (375, 500, 3))
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype("uint8")).save(folder / f"{number:04}.jpg", quality=90)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def bare(model, batch):
    """The forward pass alone, on a batch that is ready, as often as the recording has batches."""
    with torch.inference_mode():
        for _ in range(IMAGES // BATCH):
            model(batch)


def rows():
    folder = Path(tempfile.mkdtemp())
    photographs(folder, IMAGES)
    model = resnet18().eval()
    images, batch = nb.ProbingSet.from_folder(folder), torch.randn(BATCH, 3, 224, 224)
    channels_last = batch.contiguous(memory_format=torch.channels_last)
    target = nb.Target(model, LAYERS, ResNet18_Weights.IMAGENET1K_V1.transforms(), device="cpu")
    bare(model, batch[:8]), bare(model, channels_last[:8])
    times = {"bare": [], "channels_last": [], "first": [], "second": []}
    for run in range(RUNS):
        store = folder / f"{run}.zarr"
        times["bare"].append(seconds(lambda: bare(model, batch)))
        times["first"].append(seconds(lambda: nb.record(target, images, store, batch_size=BATCH, progress=False)))
        times["second"].append(seconds(lambda: nb.record(target, images, store, batch_size=BATCH, progress=False)))
        times["channels_last"].append(seconds(lambda: bare(model, channels_last)))
    shutil.rmtree(folder)

    def ratio(above, below):
        return statistics.median(a / b for a, b in zip(times[above], times[below]))

    yield "recording ResNet-18 from JPEG / bare forward pass", ratio("first", "bare"), "x", "<= 1.10", ratio("first", "bare") <= 1.10
    yield "the same / bare forward pass in channels-last layout (for information)", ratio("first", "channels_last"), "x", "", True
    yield "recording ResNet-18 from JPEG", 1000 * statistics.median(times["first"]) / IMAGES, "ms per image", "", True
    share = 100 * ratio("second", "first")
    yield "second record / first", share, "%", "< 1", share < 1


if __name__ == "__main__":
    for row in rows():
        print(*row, sep="\t")
