"""A device whose memory runs out, pretended on the CPU: batches are halved, the results stay those of smaller batches, and the size that fits is remembered and said once."""

import copy
import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from neuronbench.basics import BatchLimit
from neuronbench.evaluate.ablation import class_accuracy, unit_ablation
from neuronbench.foundation.conse import ConSE
from neuronbench.foundation.kept import KeptVectors, text_keys
from neuronbench.probe.activations import LayerActivations
from neuronbench.probe.directions import activation_vectors
from neuronbench.probe.exemplars import exemplars
from neuronbench.probe.images import ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.target import Target


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


def full():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 8 GiB")


class Room:
    """How many images the pretended device takes, and the sizes of the batches that came through; no part of the network's key."""

    fingerprint = "room"

    def __init__(self, most):
        self.most, self.sizes = most, []


class Crowded(nn.Module):
    """A small classifier on a device with room for `room.most` images; the second layer is where memory runs out."""

    def __init__(self, most):
        super().__init__()
        torch.manual_seed(0)
        self.maps, self.relu, self.head, self.room = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Linear(5, 3), Room(most)

    def forward(self, batch):
        maps = self.maps(batch)
        if len(batch) > self.room.most:
            raise full()
        self.room.sizes.append(len(batch))
        return self.head(self.relu(maps).mean((2, 3)))


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def pictures(count=150):
    chance = np.random.default_rng(0)
    return [Image.fromarray(chance.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(count)]


def set_of(count=150):
    return ProbingSet.from_images(pictures(count), [["ant", "bee", "cow"][number % 3] for number in range(count)])


def target_with(most):
    return Target(Crowded(most), ["relu"], to_tensor, classes=["ant", "bee", "cow"], device="cpu")


def recorded(most):
    return record(target_with(most), set_of(), batch_size=4, progress=False)


def quietly(work):
    """(what `work()` gives, the warnings about memory)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return work(), [str(warning.message) for warning in caught if "memory" in str(warning.message)]


@settings(deadline=None)
@given(count=st.integers(0, 70), room=st.integers(1, 80), kind=st.sampled_from([list, range, torch.Tensor]))
def test_parts_are_in_order_whole_and_fit(count, room, kind):
    batch = {list: list(range(count)), range: range(count), torch.Tensor: torch.arange(count)}[kind]
    limit = BatchLimit("a model")

    def work(items):
        if len(items) > room:
            raise full()
        return [int(item) for item in items]

    for _ in range(2):
        parts, said = quietly(lambda: list(limit.parts(work, batch)))
        assert [item for _, items in parts for item in items] == list(range(count)) == [item for part, _ in parts for item in range(part.start, part.stop)]
        assert len(said) <= 1 and (limit.largest is None) == (count <= room)
    assert not said  # it is known by then
    assert limit.largest is None or room / 2 - 1 < limit.largest <= room


@pytest.mark.parametrize("error", [full(), RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), RuntimeError("CUDA error: out of memory")])
def test_memory_runs_out_in_several_words(error):
    def work(items):
        if len(items) > 1:
            raise error
        return items[0]

    limit = BatchLimit("a model")
    results, said = quietly(lambda: [done for _, done in limit.parts(work, "abcde")])
    assert results == list("abcde") and said == ["a model runs out of memory with 5 items at once: from here on it takes 1 at once"]


def test_one_item_that_does_not_fit_is_one_sentence():
    def work(items):
        raise full()

    with pytest.raises(torch.OutOfMemoryError, match=r"^ResNet runs out of memory with a single item \(CUDA out of memory. Tried to allocate 2.00 GiB.\): expected") as raised:
        list(BatchLimit("ResNet").parts(work, [1, 2, 3]))
    assert "\n" not in str(raised.value)


def test_other_errors_are_raised_at_once():
    tried = []

    def work(items):
        tried.append(len(items))
        raise RuntimeError("the shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        list(BatchLimit("a model").parts(work, [1, 2, 3]))
    assert tried == [3]


def test_what_the_failed_batch_held_is_free_before_the_next_try():
    held = []

    def work(items):
        assert all(tensor() is None for tensor in held)
        large = torch.zeros(len(items), 1000)
        circle = [large]
        circle.append(circle)
        held.append(weakref.ref(large))
        if len(items) > 2:
            raise full()
        circle.clear()
        return len(items)

    gc.disable()
    try:
        results, _ = quietly(lambda: [done for _, done in BatchLimit("a model").parts(work, range(8))])
    finally:
        gc.enable()
    assert results == [2] * 4 and len(held) == 6


def test_what_is_seen_after_a_recording_is_that_of_a_smaller_batch(monkeypatch, tmp_path):
    def everything(most):
        monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / str(most)))
        recording = recorded(most)
        del recording.target.model.room.sizes[:]
        best = exemplars(recording, "relu", k=40)
        activations = LayerActivations(recording.target, "relu")(pictures(70))
        return recording, best.images, best.maps, activations, activation_vectors(recording, "relu", count=300)

    (_, *expected), nothing = quietly(lambda: everything(1000))
    (crowded, *results), said = quietly(lambda: everything(20))
    assert nothing == [] and said == ["Crowded runs out of memory with 64 items at once: from here on it takes 16 at once"]
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert max(crowded.target.model.room.sizes) == 16 and crowded.target.batch_limit.largest == 16


@pytest.mark.parametrize("downstream", [True, False])
def test_ablation_counts_each_image_once(downstream, monkeypatch):
    if not downstream:
        monkeypatch.setattr("neuronbench.evaluate.ablation._alike", lambda *scores: False)

    def drops(most):
        target = target_with(most)
        return class_accuracy(target, set_of(), progress=False), unit_ablation(target, set_of(), "relu", progress=False).drops

    (expected, without), _ = quietly(lambda: drops(1000))
    (accuracy, drop), said = quietly(lambda: drops(20))
    assert accuracy.to_dict() == expected.to_dict() and drop.equals(without) and len(said) == 1


class Doubled(KeptVectors):
    folder, label, dim = "doubled", "The doubler", 2


def test_embedding_goes_on_in_smaller_batches():
    model, sizes = Doubled(), []

    def encode(values):
        if len(values) > 5:
            raise full()
        sizes.append(len(values))
        return np.float32([[value, 2 * value] for value in values])

    def embed(key, count):
        return model.embedded(key, text_keys(map(str, range(count))), float, encode, 16, "")

    vectors, said = quietly(lambda: embed("first", 40))
    assert np.array_equal(vectors, [[value, 2 * value] for value in range(40)]) and sizes == [4] * 10
    assert said == ["The doubler runs out of memory with 16 items at once: from here on it takes 4 at once"]
    assert quietly(lambda: embed("second", 10))[1] == [] and sizes[10:] == [4, 4, 2]


class Words:
    """A sentence model of three words."""

    fingerprint = "three words"

    def embed_texts(self, texts, progress=True):
        return np.float32([np.eye(3)[["ant", "bee", "cow"].index(text.split()[-1])] if text.split()[-1] in ("ant", "bee", "cow") else np.ones(3) / 3**0.5 for text in texts])


def test_conse_embeds_in_smaller_batches(monkeypatch, tmp_path):
    expected = ConSE(target_with(1000), Words()).embed_images(pictures(70), progress=False)
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "another"))
    vectors, said = quietly(lambda: ConSE(target_with(10), Words()).embed_images(pictures(70), progress=False))
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert len(said) == 1 and "8 at once" in said[0]


def test_a_limit_goes_with_the_copies_of_a_target():
    target = target_with(3)
    assert target.at("maps").batch_limit is target.batch_limit and target.in_precision(True).batch_limit is target.batch_limit
    assert target.fingerprint == copy.deepcopy(target).fingerprint
    target.batch_limit.largest = 3
    assert target.fingerprint == target_with(3).fingerprint
