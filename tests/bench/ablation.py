"""Ablating every unit of the last stage of ResNet-18, against a full forward pass of the whole network for each unit.

Both run in this process on the same images, `RUNS` times in turn; the figure is the median of the ratios. The full passes get the images
preprocessed and set the unit's map to 0 by the same hooks; ours decodes and preprocesses. A convolution at the start of the stage, with the
rest of the stage behind it, is measured on some of its units.
"""

import statistics
import time

import numpy as np
import torch
from PIL import Image

from neuronbench.evaluate.ablation import _ablating, _place, unit_ablation
from neuronbench.probe.images import ProbingSet
from neuronbench.probe.target import Target

CLASSES, RUNS = 10, 3


def network():
    torch.manual_seed(0)
    return Target.from_torchvision("resnet18", ["layer4"], classes=[str(number) for number in range(CLASSES)])


def pictures(target, count):
    """(ProbingSet, batch): random images, every second one labelled with another class than the network sees in it."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)) for _ in range(count)]
    images = [image.resize((256, 256), Image.Resampling.BICUBIC) for image in coarse]
    batch = torch.stack([target.preprocess(image) for image in images]).to(target.device, memory_format=torch.channels_last)
    with torch.inference_mode():
        seen = target.model.eval()(batch).argmax(1).tolist()
    return ProbingSet.from_images(images, [(label + number % 2) % CLASSES for number, label in enumerate(seen)]), batch


def whole_passes(target, images, batch, layer, units):
    """(unit, class) accuracies of the classes that have images, each unit from a full pass."""
    labels, place, found = images.labels, _place(target, layer), []
    with torch.inference_mode():
        for unit in units:
            with _ablating(target, place, np.array([unit])):
                right = target.model(batch).argmax(1).cpu().numpy() == labels
            found.append([right[labels == label].mean() for label in np.unique(labels)])
    return np.array(found)


def seconds(function, *arguments, **options):
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def compared(layer, units, count):
    """(median of whole passes / ours, median seconds of ours, largest difference of accuracies)."""
    target, ratios, fast = network(), [], []
    images, batch = pictures(target, count)
    for _ in range(RUNS):
        ours, found = seconds(unit_ablation, target, images, layer, units, progress=False)
        theirs, expected = seconds(whole_passes, target, images, batch, layer, units)
        ratios.append(theirs / ours)
        fast.append(ours)
    return statistics.median(ratios), statistics.median(fast), float(np.abs(found.after.values - expected).max())


def rows():
    for layer, units, count, what in (("layer4", range(512), 2, "all 512 units of layer4, 2 images"),
                                      ("layer4.0.conv1", range(0, 512, 8), 8, "64 units of layer4.0.conv1, 8 images")):
        ratio, fast, difference = compared(layer, units, count)
        yield f"ablation, ResNet-18, {what}: whole / ours", ratio, "times", ">= 3", ratio >= 3
        yield "ablation, same: time", fast, "s", "-", True
        yield "ablation, same: largest difference of accuracies", difference, "", "0", difference == 0


if __name__ == "__main__":
    for row in rows():
        print(*row, sep="\t")
