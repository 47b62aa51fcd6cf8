"""Probing sets from tar files: 1.3 million images opened again, the first index and fingerprint, and reading against a folder of files."""
import io
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from neuronbench.probe import shards
from neuronbench.probe.images import ProbingSet

SHARDS, IMAGES = 1300, 1000  # of one image each a hundred bytes long, since nothing is decoded
PHOTOGRAPHS, RUNS = 512, 5


def packed(path, contents):
    with tarfile.open(path, "w") as tar:
        for number, content in enumerate(contents):
            member = tarfile.TarInfo(f"{number:08}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def photographs():
    """JPEG files of 500 x 375 pixels with the smoothness and the grain of photographs (about 70 kB each)."""
    random = np.random.default_rng(0)
    for _ in range(PHOTOGRAPHS):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        saved = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(coarse) + random.normal(0, 8, (375, 500, 3)), 0, 255).astype("uint8")).save(saved, "JPEG", quality=90)
        yield saved.getvalue()


def cpu_seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def opened(given):
    return ProbingSet.from_webdataset(given, progress=False)


def million(folder):
    """Rows of a set as large as ImageNet: one tar file under many names."""
    packed(folder / "0000.tar", [os.urandom(100) for _ in range(IMAGES)])
    for number in range(1, SHARDS):
        os.link(folder / "0000.tar", folder / f"{number:04}.tar")
    first = cpu_seconds(lambda: opened(folder))
    yield "index of 1.3 million images in 1,300 tar files, made once", first, "s", "", True
    again = []
    for _ in range(RUNS):
        start = time.perf_counter()
        images = opened(folder)
        images.fingerprint
        again.append(time.perf_counter() - start)
    yield "the same set opened again, with its fingerprint", statistics.median(again), "s", "<= 5", statistics.median(again) <= 5
    shards._arrays.cache_clear()
    names = cpu_seconds(lambda: list(images.ids))
    yield "the ids of all its images", names, "s", "", True


def reading(folder):
    """Rows of photographs in a tar file beside the same in a folder."""
    (folder / "photographs").mkdir()
    contents = list(photographs())
    for number, content in enumerate(contents):
        (folder / "photographs" / f"{number:08}.jpg").write_bytes(content)
    packed(folder / "0.tar", contents)
    size = os.path.getsize(folder / "0.tar") / 1e9
    yield "index and fingerprint of photographs, made once", cpu_seconds(lambda: opened(folder / "0.tar")) / size, "s per GB", "", True
    sets = opened(folder / "0.tar"), ProbingSet.from_folder(folder / "photographs")
    ratios = []
    for _ in range(RUNS):
        in_tar, in_folder = (cpu_seconds(lambda: [images[position] for position in range(PHOTOGRAPHS)]) for images in sets)
        ratios.append(in_tar / in_folder)
    yield "reading photographs from a tar file / from a folder", statistics.median(ratios), "x", "<= 1.10", statistics.median(ratios) <= 1.1


def rows():
    for measured in (reading, million):
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, NEURONBENCH_CACHE=cache):
            yield from measured(Path(folder))
