"""A captioner, a chat model, a painter and a CLIP that need no weights, do the same every time and count what they are asked; for the tuners' tests."""

import hashlib

import numpy as np
from PIL import Image

from neuronbench.describe.describe_and_dissect.method import DescribeAndDissect
from neuronbench.foundation.chat import Answer, Usage

COLOURS = ("red", "green", "blue")


def mean_colour(image):
    return np.asarray(image.convert("RGB"), np.float64).mean((0, 1))


class Captions:
    """Names the strongest colour of an image; `calls` counts the images it has looked at, each once. It waits for `gate` where there is one."""

    fingerprint = "captions"

    def __init__(self, gate=None):
        self.calls, self.gate, self.known = 0, gate, {}

    def captions(self, images, indices=None, progress=True):
        if self.gate is not None:
            self.gate.wait(60)
        keys = [image.tobytes() for image in images]
        new = {key: self._say(image) for key, image in zip(keys, images) if key not in self.known}
        self.calls, self.known = self.calls + len(new), self.known | new
        return [self.known[key] for key in keys]

    @staticmethod
    def _say(image):
        return f"a {COLOURS[int(mean_colour(image).argmax())]} spot, level {int(mean_colour(image).max()) // 40}"


class Talker:
    """Simplifies by the second word; summarises by the first word of the texts, behind whatever stands in front of "answer" in the prompt."""

    prices = (1.0, 2.0)

    def __init__(self, name="talker", prefix=""):
        self.name, self.prefix, self.fingerprint, self.known, self.sent = name, prefix, name, {}, 0
        self._usage = Usage()

    @property
    def usage(self):
        return self._usage

    def answers(self, requests, progress=True):
        new = {request.key: request for request in requests if request.key not in self.known}
        self.sent += len(new)
        self._usage = self._total(self._usage, len(requests), new)
        self.known |= {key: self._say(request) for key, request in new.items()}
        return [Answer(self.known[request.key], model=self.name, prompt_tokens=9, completion_tokens=2) for request in requests]

    def estimate(self, requests):
        return self._total(Usage(), len(requests), {request.key: request for request in requests if request.key not in self.known})

    @staticmethod
    def _total(before, requests, new):
        prompt = before.prompt_tokens + sum(len(request.messages[-1]["content"].split()) for request in new.values())
        completion = before.completion_tokens + 8 * len(new)
        return Usage(before.requests + requests, before.cached + requests - len(new), prompt, completion, (prompt + 2 * completion) / 1e6)

    def _say(self, request):
        text = request.messages[-1]["content"]
        word = request.texts[0].split()[1 if request.texts[0].startswith("a ") else 0]
        return f"{self.prefix}{'very ' if 'EMPHASIS' in text else ''}{word}"


class Paints:
    """Squares of the colour that a prompt names, or of its own, more or less bright."""

    fingerprint = "paints"

    def __init__(self):
        self.calls = 0

    def paint(self, prompts, count=10, progress=True):
        self.calls += len(prompts)
        return [[self._square(prompt, i) for i in range(count)] for prompt in prompts]

    def _square(self, prompt, i):
        rng = np.random.default_rng([i, *hashlib.sha256(prompt.encode()).digest()[:8]])
        colour = np.array([200.0 if name in prompt else 40.0 for name in COLOURS])
        return Image.fromarray((rng.random((40, 40, 1)) * colour * rng.uniform(0.5, 1.2)).clip(0, 255).astype(np.uint8))


class Sight:
    """Embeds images by their mean colour, texts by the colours they name."""

    fingerprint, device = "sight", "cpu"

    def embed_images(self, images, indices=None, progress=True):
        return self._unit([mean_colour(image) for image in images])

    def embed_texts(self, texts, progress=True):
        return self._unit([[1.0 + 5 * (name in text) for name in COLOURS] for text in texts])

    @staticmethod
    def _unit(rows):
        rows = np.array(rows, np.float32).reshape(-1, 3)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def fake_method(gate=None, **settings):
    """Describe-and-Dissect over these; `gate` is a threading.Event that captions wait for."""
    return DescribeAndDissect(Captions(gate), Talker(), Paints(), Sight(), **{"exemplars": 4, "image_size": 60, "images_per_candidate": 4, **settings})

