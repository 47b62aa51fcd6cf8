"""Peak resident memory of recording 10,000 images, against 1,000: each in a process of its own, from files, into a store on disk."""
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

FEW, MANY = 1_000, 10_000


def draw(folder, count):
    """JPEG files of 64 x 64 pixels."""
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number:05}.jpg")


def peak_megabytes():
    status = Path("/proc/self/status")  # getrusage of a new process starts at its parent's peak on Linux
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def record_and_print_peak(folder, store):
    from torchvision.models import resnet18
    from torchvision.transforms import ToTensor

    import neuronbench as nb

    target = nb.Target(resnet18(), ["layer1", "layer2", "layer3", "layer4"], ToTensor(), device="cpu")
    nb.record(target, nb.ProbingSet.from_folder(folder), store, progress=False)
    print(peak_megabytes())


def peak_of(count):
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        draw(images, count)
        command = [sys.executable, __file__, str(images), str(Path(folder, "store.zarr"))]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def rows():
    few, many = peak_of(FEW), peak_of(MANY)
    yield f"peak memory recording {FEW:,} images (ResNet-18 at 64 px, on disk)", few, "MB", "", True
    yield f"peak memory recording {MANY:,} images / {FEW:,} images", many / few, "x", "<= 1.10", many / few <= 1.10


if __name__ == "__main__":
    if len(sys.argv) > 2:
        record_and_print_peak(*sys.argv[1:])
    else:
        for row in rows():
            print(*row, sep="\t")
