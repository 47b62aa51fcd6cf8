"""A network whose activation maps are given and annotations of any kind for its images; for tests of what compares masks."""

import numpy as np
import torch
from PIL import Image

import neuronbench as nb
from neuronbench.probe.annotations import annotations_from_arrays

CATEGORIES = {"object": ["boat", "cat", "tree"], "colour": ["red", "blue"], "scene": ["sea", "room"]}


class Table(torch.nn.Module):
    """Image i is a picture of the number i; its maps (or numbers) are row i of the table."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values, dtype=torch.float32), requires_grad=False)

    def forward(self, batch):
        return self.values[batch[:, 0, 0, 0].long()]


def number_picture(number, size):
    return Image.new("RGB", size, (number % 256, number // 256, 0))


def read_number(image):
    return torch.full((3, 1, 1), float(np.asarray(image)[0, 0] @ [1, 256, 0]))


def recorded(values, size=(12, 8)):
    """A recording of layer "table" with the values (image, unit, h, w) or (image, unit), on pictures of `size` (width, height)."""
    images = nb.ProbingSet.from_images([number_picture(number, size) for number in range(len(values))])
    model = torch.nn.Sequential()
    model.add_module("table", Table(values))
    return nb.record(nb.Target(model, layers=["table"], preprocess=read_number, device="cpu"), images, progress=False)


def random_case(seed, images=40, units=3, size=(8, 12), partial=True):
    """(maps (image, unit, 4, 4), masks {category: (image, concept, H, W)}, annotated {category: (image,)}); units like some concepts."""
    rng = np.random.default_rng(seed)
    masks = {name: rng.random((images, len(concepts), *size)) < rng.uniform(0.1, 0.5, (1, len(concepts), 1, 1)) for name, concepts in CATEGORIES.items()}
    for name, of in masks.items():
        of &= rng.random(of.shape[:2])[..., None, None] < 0.6  # absent from some images
    masks["scene"][:] = rng.random((images, 2, 1, 1)) < 0.4  # labels of whole images
    annotated = {name: rng.random(images) < (0.7 if partial else 1) for name in CATEGORIES}
    masks = {name: of & annotated[name][:, None, None, None] for name, of in masks.items()}
    liked = np.concatenate(list(masks.values()), axis=1)[:, rng.integers(0, 7, units)]
    coarse = liked.reshape(images, units, 4, size[0] // 4, 4, size[1] // 4).mean((3, 5))
    return coarse * 2 + rng.random((images, units, 4, 4)), masks, annotated


def annotated_case(seed, **settings):
    """(recording, annotations, maps, masks, annotated) of `random_case`."""
    maps, masks, annotated = random_case(seed, **settings)
    recording = recorded(maps)
    return recording, annotations_from_arrays(recording.images, masks, CATEGORIES, annotated), maps, masks, annotated


def weights(count, length):
    """(count, length): bilinear upsampling of a row of `length` to `count`, pixel centres aligned, as a matrix."""
    place = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
    low = np.floor(place).astype(int)
    high, share = np.minimum(low + 1, length - 1), place - low
    matrix = np.zeros((count, length))
    np.add.at(matrix, (np.arange(count), low), 1 - share)
    np.add.at(matrix, (np.arange(count), high), share)
    return matrix


def upsampled(small, size):
    """(H, W): a map upsampled bilinearly, without any library."""
    return weights(size[0], small.shape[0]) @ small @ weights(size[1], small.shape[1]).T
