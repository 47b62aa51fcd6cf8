"""The report of a layer of 512 units with two descriptions each: its size, and how soon it opens in Chromium without a network."""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from browser_lab import FLAGS, find_chromium  # noqa: E402

UNITS, LARGEST = 512, 20  # units; MB


def written(folder):
    """The report of ResNet-18's last stage, untrained, on 500 scenes of the world, with words drawn at random."""
    import numpy as np
    import pandas as pd
    import torch
    from torchvision.models import resnet18
    from torchvision.transforms import ToTensor

    import neuronbench as nb
    from neuronbench.embedded.world import World

    torch.manual_seed(0)
    world, random = World(scenes=500), np.random.default_rng(0)
    recording = nb.record(nb.Target(resnet18().eval(), ["layer4"], ToTensor(), device="cpu"), world.images, progress=False)
    rows = [("layer4", unit, " and ".join(random.choice(world.concepts, 3)), random.random(), method) for method in ("one", "another") for unit in range(UNITS)]
    descriptions = pd.DataFrame(rows, columns=["layer", "unit", "description", "score", "method"])
    bench = nb.Workbench(recording.target, world.images)
    bench.recording, bench.descriptions = recording, descriptions
    return bench.report(Path(folder, "report.html"))


def seconds_to_open(path):
    """From the request to the whole page drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page, begun = browser.new_page(), time.perf_counter()
        page.goto(path.as_uri())
        assert page.locator("article").count() == UNITS
        seconds = time.perf_counter() - begun
        browser.close()
    return seconds


def rows():
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder)
        size = path.stat().st_size / 1e6
        yield f"report of {UNITS} units, one file", size, "MB", f"< {LARGEST}", size < LARGEST
        yield f"report of {UNITS} units, opened in Chromium", seconds_to_open(path), "s", "no target", True
