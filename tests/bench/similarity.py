"""soft_wpmi at the size of a real layer, against the definition gathered unit by unit in torch.

Speed: both run in this process, in turn, `RUNS` times; the figure is the median of the ratios of each pair.
Memory: a fresh process makes the inputs in place, runs once on a corner of them so that libraries and threads are
loaded, and reads its peak resident size before and after the full run (on Linux from /proc: getrusage there starts a new
process at its parent's peak); what the peak grew by beyond the result is the overhead, given as a share of inputs and
result together.
"""

import math
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from neuronbench.describe.similarity import soft_wpmi

IMAGES, CONCEPTS, UNITS, TOP_K, RUNS = 2_000, 20_000, 2_048, 100, 3


def inputs():
    """Cosines of random unit vectors around a common direction, as CLIP's are, and activations after a ReLU."""
    generator = torch.Generator().manual_seed(0)
    concept_scores = torch.empty(IMAGES, CONCEPTS).normal_(0.2, 0.03, generator=generator)
    activations = torch.empty(IMAGES, UNITS).normal_(generator=generator).clamp_(min=0)
    return concept_scores, activations


def direct_gather(concept_scores, activations):
    """METHODS' definition: for each unit, gather q at its top images and take every logarithm."""
    q = torch.softmax(10 * concept_scores, dim=1)
    p = (0.998 - torch.arange(TOP_K) / TOP_K * (0.998 - 0.97))[:, None]
    top = torch.sort(activations, dim=0, descending=True, stable=True).indices[:TOP_K]
    sums = torch.empty(UNITS, CONCEPTS)
    for unit in range(UNITS):
        sums[unit] = torch.log(1 + p * (q[top[:, unit]] - 1) + 1e-7).sum(0)
    return sums - (torch.logsumexp(sums, 0) - math.log(UNITS))


def seconds(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def agreement(found, expected):
    """Largest difference, and the share of units whose arg max agrees where the best leads by more than 1e-3."""
    difference = (found - expected).abs().max().item()
    lead = expected.topk(2, dim=1).values
    clear = lead[:, 0] - lead[:, 1] > 1e-3
    return difference, (found.argmax(1) == expected.argmax(1))[clear].float().mean().item()


def speed_rows():
    concept_scores, activations = inputs()
    soft_wpmi(concept_scores[:, :500], activations)
    ratios, fast = [], []
    for _ in range(RUNS):
        ours, found = seconds(soft_wpmi, concept_scores, activations)
        theirs, expected = seconds(direct_gather, concept_scores, activations)
        ratios.append(theirs / ours)
        fast.append(ours)
    difference, same = agreement(found, expected)
    ratio = statistics.median(ratios)
    yield "soft_wpmi, 2,000 x 20,000 x 2,048: direct gather / ours", ratio, "times", ">= 10", ratio >= 10
    yield "soft_wpmi, same: time", statistics.median(fast), "s", "-", True
    yield "soft_wpmi, same: largest difference from the definition", difference, "", "<= 1e-3", difference <= 1e-3
    yield "soft_wpmi, same: units with the same arg max (ties aside)", 100 * same, "%", "100", same == 1


def peak_bytes():
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def print_overhead():
    concept_scores, activations = inputs()
    soft_wpmi(concept_scores[:, :500], activations[:, :64])
    before = peak_bytes()
    result = soft_wpmi(concept_scores, activations)
    held = sum(tensor.nbytes for tensor in (concept_scores, activations, result))
    print((peak_bytes() - before - result.nbytes) / held)


def rows():
    yield from speed_rows()
    shares = [float(subprocess.run([sys.executable, __file__, "overhead"], capture_output=True, text=True, check=True).stdout)
              for _ in range(RUNS)]
    share = 100 * statistics.median(shares)
    yield "soft_wpmi, same: peak memory over inputs and result", share, "%", "<= 25", share <= 25


if __name__ == "__main__":
    if sys.argv[1:] == ["overhead"]:
        print_overhead()
    else:
        for row in rows():
            print(*row, sep="\t")
