"""What a recording takes on disk, and what it costs to read: 2,000 images x 512 units, and 100,000 x 2,048.

The network is one convolution of random images, so that its maps come at next to no cost and its activations, unlike those behind a ReLU, hardly compress. They are recorded by `nb.record` like any others. Reading is measured in a
process of its own, which opens the store anew: what its memory grows by over that of an open recording (from /proc, so on Linux only, with the peak set back before) is given as a share of the pooled values.
"""
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import ToTensor

import neuronbench as nb

SMALL = 2_000, 512, 7  # images, units, side of a map
LARGE = 100_000, 2_048, 3
CHECKED = 64  # units whose thresholds are compared with all their activations


class Noise:
    """Images of side x side pixels of noise, each drawn from its index; the brightness rises from image to image, as in a folder that is sorted."""

    def __init__(self, count, side):
        self.count, self.side, self.fingerprint = count, side, f"noise of {count} images of {side} pixels"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.random.default_rng(index).integers(index * 128 // self.count, 128 + index * 128 // self.count, (self.side, self.side, 3), np.uint8)


def opened(store, count, units, side):
    torch.manual_seed(0)
    target = nb.Target(torch.nn.Sequential(torch.nn.Conv2d(3, units, 1)), ["0"], ToTensor(), device="cpu")  # not a function of this file, which would have another key in the other process
    return nb.record(target, nb.ProbingSet.from_dataset(Noise(count, side)), store, workers=0, batch_size=256, progress=False)


def bytes_of(store):
    return sum(path.stat().st_size for path in Path(store).rglob("*") if path.is_file())


def share_error(recording, thresholds, side):
    """The largest error of the share of activations above the 0.995 quantiles, of some units, over all positions of all images."""
    convolution, above = recording.target.model[0], torch.zeros(CHECKED)
    weight, bias = convolution.weight[:CHECKED].detach(), convolution.bias[:CHECKED].detach()
    for start in range(0, recording.count, 1000):
        pixels = torch.stack([recording.target.preprocess(recording.images[index]) for index in range(start, min(start + 1000, recording.count))])
        values = torch.nn.functional.conv2d(pixels, weight, bias)
        above += (values > torch.from_numpy(thresholds[:CHECKED])[:, None, None]).sum((0, 2, 3))
    return (above / (recording.count * side**2) - 0.005).abs().max().item()


def resident(name, forget=False):
    """Bytes in memory: now (VmRSS), or at most until now (VmHWM) since a call that was to forget what was before."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def read_and_print(store, *shape):
    """Prints the seconds of `quantile`, of the first `top` and of another, and the memory that they took over the pooled bytes."""
    count, units, side = map(int, shape)
    recording = opened(store, count, units, side)
    assert sum(path.is_dir() for path in Path(store).iterdir()) == 1, "opened, not recorded anew"
    quantile = min(seconds(lambda: recording.quantile("0", 0.995)) for _ in range(3))
    before = resident("VmRSS", forget=True)
    first, second = seconds(lambda: recording.top("0", 0)), seconds(lambda: recording.top("0", units - 1))
    print(quantile, first, second, (resident("VmHWM") - before) / (4 * count * units))


def rows():
    for (count, units, side), most in ((SMALL, 3), (LARGE, 1.3)):
        size = f"{count:,} images x {units:,} units"
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder, "store.zarr")
            took = seconds(lambda: opened(store, count, units, side))
            recording, ratio = opened(store, count, units, side), bytes_of(store) / (4 * count * units)
            yield f"store of {size} / its pooled values", ratio, "x", f"<= {most}", ratio <= most
            error = share_error(recording, recording.quantile("0", 0.995), side)
            yield f"largest error of the share above the 0.995 quantile, {CHECKED} units", error, "", "<= 0.0002", error <= 0.0002
            command = [sys.executable, __file__, str(store), str(count), str(units), str(side)]
            quantile, first, second, grown = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
            if (count, units, side) == LARGE:
                yield f"quantile of {units:,} units, {count:,} images", quantile, "s", "<= 1", quantile <= 1
                yield "peak memory of load and top / pooled values", grown, "x", "<= 1.2", grown <= 1.2
                yield "top of a unit, the first: all units are ranked", first, "s", "", True
                yield "top of another unit", 1000 * second, "ms", "", True
                yield f"recording {size}, all of it", took, "s", "", True


if __name__ == "__main__":
    if len(sys.argv) > 2:
        read_and_print(*sys.argv[1:])
    else:
        for row in rows():
            print(*row, sep="\t")
