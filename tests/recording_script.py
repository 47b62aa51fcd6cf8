"""A recording in a process of its own, for the tests that kill it, run it twice at once or fill its disk.

    python -c "import recording_script; recording_script.main()" STORE LOG [largest file in bytes]

Started by -c because functions of a script itself belong to `__main__`, and would have another key than in the tests.
Every decoded image is appended to LOG by its number, so that a test sees what was computed.
"""

import os
import resource
import sys

import numpy as np
import torch

from neuronbench.probe.images import ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.store import StoreError
from neuronbench.probe.target import Target

COUNT = 256 * 5 + 40


class Images:
    """Noise drawn from the index; image 300 cannot be read."""

    fingerprint = "noise, version 1"

    def __init__(self, log):
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        os.write(self.log, f"{index}\n".encode())
        if index == 300:
            raise ValueError("a scratch on the film")
        return np.random.default_rng(index).integers(0, 256, (12, 12, 3), dtype=np.uint8)


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def network():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, 3)
    return torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(500, 7))


def run(store, log):
    target = Target(network(), ["1", "3"], to_tensor, device="cpu")
    return record(target, ProbingSet.from_dataset(Images(log)), store, pool=("mean", "max"), workers=2, progress=False)


def main():
    store, log, *limit = sys.argv[1:]
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[0]), resource.RLIM_INFINITY))
    try:
        print(run(store, log))
    except StoreError as error:
        sys.exit(f"StoreError: {error}")
