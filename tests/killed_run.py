"""A description run against a chat server, for the tests that kill it: prints the descriptions as JSON."""
import json
import sys

import numpy as np
import torch
from torch import nn

from neuronbench.describe.describe_and_dissect.method import DescribeAndDissect
from neuronbench.foundation.captioner import ChatCaptioner
from neuronbench.foundation.chat import Chat
from neuronbench.probe.images import ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.target import Target


class Noise:
    """Noise drawn from the index."""

    fingerprint = "noise of the killed runs"

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


if __name__ == "__main__":
    torch.manual_seed(0)
    images = ProbingSet.from_dataset(Noise())
    recording = record(Target(nn.Sequential(nn.Conv2d(3, 6, 3)), ["0"], to_tensor, device="cpu"), images, workers=0, progress=False)
    chat = Chat("tiny", base_url=sys.argv[1], concurrency=3)
    method = DescribeAndDissect(ChatCaptioner(chat), chat, None, None, exemplars=3, crops=None, image_size=16, select=False)
    print(json.dumps(method(recording, images, watch=lambda *_: None).description.tolist()))
