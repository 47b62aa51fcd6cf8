"""Network Dissection and the compositional search at the size of a real layer, against direct loops in NumPy.

Network Dissection: the direct loop goes over images and units, upsamples one map (as a product of two small matrices), and compares the mask with
those of all concepts; every image and unit costs it the same, so it is timed on `SAMPLE` images and scaled to all. Ours is timed on all
images. The IoUs of the sampled images are compared.
Search: the same beam search on boolean masks, every candidate formed and counted; timed on `SAMPLE_UNITS` units and scaled to all. Ours is
timed on all units, gathering and packing the masks included. The beams of the sampled units are compared.
Figures are medians of the ratios of `RUNS` pairs of runs.
"""

import itertools
import statistics
import tempfile
import time

import numpy as np
import torch

from neuronbench.describe.compositional import JOINS, Hits, Masks, Search
from neuronbench.describe.network_dissection import Tally
from neuronbench.probe.masks import ConceptMasks

UNITS, CONCEPTS, IMAGES, SIDE, GRID = 512, 200, 2_000, 112, 14
SEARCHED, SEARCH_IMAGES, SEARCH_SIDE = 64, 400, 56
RUNS, SAMPLE, SAMPLE_UNITS = 3, 3, 2
CATEGORIES = {"object": [f"concept {number}" for number in range(CONCEPTS)]}


def drawn(image, side):
    """The ConceptMasks of an image: a rectangle for each of about twenty concepts."""
    rng = np.random.default_rng((1, image))
    present = np.flatnonzero(rng.random(CONCEPTS) < 0.1)
    corners = np.sort(rng.integers(0, side + 1, (len(present), 2, 2)), axis=2)
    place = np.arange(side)
    rows, columns = ((corners[:, axis, :1] <= place) & (place <= corners[:, axis, 1:]) for axis in (0, 1))
    return ConceptMasks(np.ones(1, bool), present, rows[:, :, None] & columns[:, None, :])


def maps_of(image):
    """(unit, 14, 14) float32: noise around a level of the image."""
    rng = np.random.default_rng((2, image))
    return rng.standard_normal((UNITS, 1, 1), np.float32) + 0.5 * rng.standard_normal((UNITS, GRID, GRID), np.float32)


def weights(count, length):
    """(count, length): bilinear upsampling of a row, as a matrix."""
    place = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
    return np.maximum(1 - abs(place[:, None] - np.arange(length)), 0).astype(np.float32)


def direct(images, thresholds):
    """(IoU (unit, concept), seconds): the loop over images and units."""
    both, unit_area, concept_area = np.zeros((UNITS, CONCEPTS), int), np.zeros(UNITS, int), np.zeros(CONCEPTS, int)
    upsample, seconds = weights(SIDE, GRID), 0
    for image in images:
        maps, found = maps_of(image), drawn(image, SIDE)
        masks = np.zeros((CONCEPTS, SIDE, SIDE), bool)
        masks[found.concepts] = found.masks
        start = time.perf_counter()
        for unit in range(UNITS):
            active = upsample @ maps[unit] @ upsample.T > thresholds[unit]
            both[unit] += (masks & active).sum((1, 2))
            unit_area[unit] += active.sum()
        concept_area += masks.sum((1, 2))
        seconds += time.perf_counter() - start
    return both / np.maximum(unit_area[:, None] + concept_area - both, 1), seconds


def ours(images, thresholds):
    """(IoU (unit, concept), seconds): the tally that `NetworkDissection` keeps."""
    tally, limits, seconds = Tally(UNITS, CONCEPTS, 1), torch.from_numpy(thresholds), 0
    for image in images:
        maps, found = torch.from_numpy(maps_of(image)), drawn(image, SIDE)
        start = time.perf_counter()
        tally.add(maps, limits, found)
        seconds += time.perf_counter() - start
    return tally.iou(np.zeros(CONCEPTS, int)), seconds


def dissection_rows():
    thresholds = np.quantile(np.stack([maps_of(image) for image in range(0, IMAGES, 20)]), 0.995, axis=(0, 2, 3)).astype(np.float32)
    ours(range(2), thresholds)
    ratios, times = [], []
    for _ in range(RUNS):
        expected, theirs = direct(range(SAMPLE), thresholds)
        _, mine = ours(range(IMAGES), thresholds)
        ratios.append(theirs * IMAGES / SAMPLE / mine)
        times.append(mine)
    ratio, difference = statistics.median(ratios), abs(ours(range(SAMPLE), thresholds)[0] - expected).max()
    yield "Network Dissection, 512 x 200 x 2,000 of 112x112: direct loop (scaled) / ours", ratio, "times", ">= 20", ratio >= 20
    yield "Network Dissection, same: time", statistics.median(times), "s", "-", True
    yield f"Network Dissection, same: largest difference of IoU on {SAMPLE} images", difference, "", "<= 1e-4", difference <= 1e-4


def unit_mask(unit, labels):
    """(image, side, side) bool: a unit that likes two concepts but not a third, where a noisy map is highest."""
    rng = np.random.default_rng((3, unit))
    one, other, not_this = rng.integers(0, CONCEPTS, 3)
    level = ((labels[:, one] | labels[:, other]) & ~labels[:, not_this]) + rng.standard_normal(labels[:, 0].shape, np.float32) * 0.3
    return level > np.quantile(level, 0.995)


def boolean_search(labels, active, length=3, beam_size=5):
    """The beam search on boolean masks (image, concept, H, W): [(key, IoU) of each beam]."""
    def scored(key, mask):
        inside = (mask & active).sum()
        return inside / max(active.sum() + mask.sum() - inside, 1), key

    def truth(key):
        mask = labels[:, key[0][1]]
        for join, concept in key[1:]:
            other = labels[:, concept]
            mask = {"OR": mask | other, "AND": mask & other, "AND NOT": mask & ~other}[join]
        return mask

    def distinct(candidates):
        beam = []
        for iou, key in sorted(candidates, key=lambda candidate: -candidate[0]):
            if iou == 0 or len(beam) == beam_size:
                break
            if not any(iou == best and np.array_equal(truth(key), truth(other)) for best, other in beam):
                beam.append((iou, key))
        return beam

    beams = [distinct([scored((("", concept),), labels[:, concept]) for concept in range(CONCEPTS)])]
    for _ in range(length - 1):
        candidates = list(beams[-1])
        for _, key in beams[-1]:
            mask = truth(key)
            used = [concept for _, concept in key]
            for join, concept in itertools.product(JOINS, [concept for concept in range(CONCEPTS) if concept not in used]):
                other = labels[:, concept]
                joined = mask | other if join == "OR" else mask & other if join == "AND" else mask & ~other
                candidates.append(scored((*key, (join, concept)), joined))
        beams.append(distinct(candidates))
    return beams


def packed_search(found, active):
    """The same by `Search`, for all units, from the ConceptMasks of each image."""
    with tempfile.TemporaryFile() as file:
        masks, hits, shared = Masks(tuple(CATEGORIES["object"]), len(found), SEARCH_SIDE**2, file), [Hits() for _ in active], {}
        for image, of_image in enumerate(found):
            masks.add(image, of_image)
            for own, mask in zip(hits, active):
                if mask[image].any():
                    own.add(mask[image], of_image)
        return [[[(one.iou, one.key) for one in beam] for beam in Search(masks, own, shared).beams(3, 5)] for own in hits]


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def search_rows():
    found = [drawn(image, SEARCH_SIDE) for image in range(SEARCH_IMAGES)]
    labels = np.zeros((SEARCH_IMAGES, CONCEPTS, SEARCH_SIDE, SEARCH_SIDE), bool)
    for image, of_image in enumerate(found):
        labels[image, of_image.concepts] = of_image.masks
    labels = np.ascontiguousarray(labels.swapaxes(0, 1)).swapaxes(0, 1)  # the masks of a concept lie together, as the loop reads them
    active = [unit_mask(unit, labels) for unit in range(SEARCHED)]
    ratios, same = [], True
    for _ in range(RUNS):
        theirs = [timed(boolean_search, labels, active[unit]) for unit in range(SAMPLE_UNITS)]
        mine, beams = timed(packed_search, found, active)
        ratios.append(sum(seconds for seconds, _ in theirs) * SEARCHED / SAMPLE_UNITS / mine)
        same &= all(beams[unit] == expected for unit, (_, expected) in enumerate(theirs))
    ratio = statistics.median(ratios)
    yield "compositional search, length 3, beam 5, 64 x 200: boolean masks (scaled) / ours", ratio, "times", ">= 10", ratio >= 10
    yield "compositional search, same: time", mine, "s", "-", True
    yield f"compositional search, same: formulas of all beams alike for {SAMPLE_UNITS} units", float(same), "", "1", same


def rows():
    yield from dissection_rows()
    yield from search_rows()


if __name__ == "__main__":
    for row in rows():
        print(*row, sep="\t")
