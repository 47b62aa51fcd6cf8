"""What would differ between devices: TF32, autocast, where a module says it is, and processes that fork; the GPU is pretended."""

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.backends import cuda, cudnn, mkldnn

from neuronbench.basics import exact_float32
from neuronbench.describe.patch_vocabulary import _whole
from neuronbench.probe.activations import LayerActivations
from neuronbench.probe.directions import Directions
from neuronbench.probe.exemplars import exemplars
from neuronbench.probe.recording import _refuse_fork, record
from neuronbench.probe.target import Target
from test_memory import own_cache, pictures, quietly, recorded, set_of, target_with, to_tensor  # noqa: F401


def precisions():
    return [operation.fp32_precision for operation in (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)]


@pytest.fixture
def settings_of_torch():
    """torch's settings are put back after a test that changes them."""
    before = precisions()
    yield
    torch.backends.fp32_precision = "none"
    cudnn.allow_tf32 = True
    for operation, precision in zip((cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv), before):
        operation.fp32_precision = precision


@pytest.mark.parametrize("change", [
    lambda: None,
    lambda: setattr(cuda.matmul, "allow_tf32", True),
    lambda: setattr(cudnn, "allow_tf32", False),
    lambda: torch.set_float32_matmul_precision("medium"),
    lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    lambda: setattr(cudnn.conv, "fp32_precision", "ieee"),
], ids=["default", "products", "no convolutions", "bfloat16", "all", "apart"])
def test_nothing_is_rounded_inside_and_all_is_as_before_afterwards(change, settings_of_torch):
    change()
    before = precisions()
    with pytest.raises(KeyError), exact_float32():
        assert precisions() == ["ieee"] * 5
        with exact_float32():
            pass
        assert precisions() == ["ieee"] * 5
        raise KeyError
    assert precisions() == before


def test_the_settings_come_back_when_the_last_thread_leaves():
    before, entered, leave = precisions(), threading.Event(), threading.Event()

    def stays():
        with exact_float32():
            entered.set()
            leave.wait(60)
            return precisions()

    with ThreadPoolExecutor(1) as pool:
        with exact_float32():
            longer = pool.submit(stays)
            assert entered.wait(60)
        assert precisions() == ["ieee"] * 5
        leave.set()
        assert longer.result() == ["ieee"] * 5
    assert precisions() == before


class Telling(nn.Module):
    """Gives maps and notes at which precisions it runs."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Conv2d(3, 4, 3)
        self.seen = Seen()

    def forward(self, batch):
        self.seen.append(precisions())
        return self.maps(batch)


class Seen(list):
    fingerprint = "no part of the network"


def test_whatever_looks_through_a_network_is_exact(settings_of_torch):
    torch.set_float32_matmul_precision("medium")
    target = Target(Telling(), ["maps"], to_tensor, device="cpu")
    recording = record(target, set_of(5), progress=False)
    exemplars(recording, "maps", k=2)
    LayerActivations(target, "maps")(pictures(2))
    assert len(target.model.seen) > 3 and all(each == ["ieee"] * 5 for each in target.model.seen)


def test_a_recording_goes_on_in_smaller_batches_and_keeps_its_values():
    expected = record(target_with(1000), set_of(), progress=False)
    target = target_with(20)
    recording, said = quietly(lambda: record(target, set_of(), progress=False))
    assert said == ["Crowded runs out of memory with 64 items at once: from here on it takes 16 at once"]
    np.testing.assert_allclose(recording["relu"], expected["relu"], atol=1e-6)
    np.testing.assert_allclose(recording.quantile("relu", 0.99), expected.quantile("relu", 0.99), atol=1e-6)
    assert recording.fingerprint == expected.fingerprint and target.batch_limit.largest == 16


def test_what_is_seen_after_a_recording_with_autocast_has_its_precision():
    images, target = set_of(40), target_with(1000)
    rough, exact = (record(target, images, autocast=autocast, progress=False) for autocast in (True, False))
    assert rough.target.autocast and not exact.target.autocast
    own = record(rough.target, images, progress=False)  # nothing is said of it here: it runs as the target says
    assert own.fingerprint == rough.fingerprint != exact.fingerprint
    assert not np.array_equal(rough["relu"], exact["relu"])
    for recording in (rough, exact):
        seen = LayerActivations(recording.target, "relu")(images)
        np.testing.assert_allclose(seen, recording["relu"], atol=1e-7)
        best = exemplars(recording, "relu", k=3)
        np.testing.assert_allclose(best.maps.mean((2, 3)), best.activations, atol=1e-6)
        assert _whole(recording).autocast == recording.target.autocast == Directions(recording, np.eye(5), progress=False).target.autocast


class Coder(nn.Linear):
    """An autoencoder's encoder that says where it was trained, as overcomplete's do."""

    def __init__(self, device):
        super().__init__(5, 3)
        nn.init.constant_(self.weight, 0.5)
        nn.init.zeros_(self.bias)
        self.device = device


def test_where_an_autoencoder_was_trained_is_no_part_of_a_key():
    recording = recorded(1000)
    keys = {Directions(recording, Coder(device), progress=False).fingerprint for device in ("cpu", "cuda", torch.device("cuda", 1), torch.device("cpu"))}
    other = Coder("cpu")
    other.temperature = 2
    assert len(keys) == 1 and Directions(recording, other, progress=False).fingerprint not in keys


def test_a_pool_that_forks_is_refused_where_cuda_has_begun():
    target = target_with(1000)
    target.device = torch.device("cuda", 0)  # pretended: nothing is computed
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as forks:
        with pytest.raises(ValueError, match="the executor forks this process, in which CUDA has begun .*: expected ProcessPoolExecutor.*spawn"):
            record(target, set_of(5), executor=forks, progress=False)
        _refuse_fork(forks, torch.device("cpu"))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as spawns, ThreadPoolExecutor(1) as threads:
        for executor in (spawns, threads, None):
            _refuse_fork(executor, target.device)
