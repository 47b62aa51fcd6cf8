"""Exemplars: ranking, maps of every shape of layer, the second pass, what is kept."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from PIL import Image
from torch import nn

from neuronbench.describe.invert import INVERT
from neuronbench.probe.exemplars import exemplars
from neuronbench.probe.images import ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.regions import region_features
from neuronbench.probe.target import Target, _network_key


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def noise(count, size=10):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


class Counted(list):
    """Pictures that count how often each is asked for; None cannot be read."""

    fingerprint = "counted"

    def __init__(self, pictures):
        super().__init__(pictures)
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        return super().__getitem__(index)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def recorded(pictures, layers=("1", "4"), model=None, store=None):
    images = ProbingSet.from_dataset(pictures if isinstance(pictures, Counted) else Counted(pictures))
    return record(Target(model or network(), layers, to_tensor, device="cpu"), images, store, progress=False)


def test_images_activations_and_maps():
    pictures, model = noise(150), network()
    recording = recorded(pictures, model=model)
    best = exemplars(recording, "1", k=7)
    with torch.no_grad():
        maps = model[:2](torch.stack([to_tensor(picture) for picture in pictures])).numpy()
    means = maps.mean((2, 3))
    assert best.layer == "1" and best.units.tolist() == list(range(6)) and best.maps.dtype == np.float32
    for unit in range(6):
        order = np.argsort(-means[:, unit])[:7]
        assert best.images[unit].tolist() == order.tolist() == recording.top("1", unit, 7)["image"].tolist()
        assert np.allclose(best.activations[unit], means[order, unit], atol=1e-6)
        assert np.allclose(best.maps[unit], maps[order, unit], atol=1e-6)


def test_only_the_images_needed_are_run_again_and_only_once():
    pictures = Counted(noise(100))
    recording = recorded(pictures)
    pictures.asked.clear()
    best = exemplars(recording, "1", units=[0, 3], k=4)
    assert sorted(pictures.asked) == np.unique(best.images).tolist()
    pictures.asked.clear()
    again = exemplars(recording, "1", units=[0, 3], k=4)
    assert not pictures.asked and np.array_equal(again.maps, best.maps)


def test_kept_beside_the_recording(tmp_path):
    best = exemplars(recorded(noise(20), store=tmp_path / "s"), "1", k=3)
    pictures = Counted(noise(20))
    again = exemplars(recorded(pictures, store=tmp_path / "s"), "1", k=3)
    assert not pictures.asked and np.array_equal(again.maps, best.maps)


def test_maps_that_were_not_completely_stored_are_gathered_again(tmp_path):
    recording = recorded(noise(20), store=tmp_path / "s")
    best = exemplars(recording, "1", k=3)
    [[_, maps]] = zarr.open_group(tmp_path / "s", path=f"{recording.fingerprint}/exemplars").arrays()
    maps[0] = 0
    maps.attrs["complete"] = False
    assert np.array_equal(exemplars(recording, "1", k=3).maps, best.maps)


def test_store_that_may_only_be_read_still_gives_maps(tmp_path, monkeypatch):
    recording = recorded(noise(20), store=tmp_path / "s")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("zarr.storage._local._put", refuse)
    with pytest.warns(UserWarning, match="cannot be kept beside the recording: Permission denied"):
        assert exemplars(recording, "1", k=3).maps.shape == (6, 3, 8, 8)


def test_vectors_have_no_maps():
    best = exemplars(recorded(noise(9)), "4", units=2, k=4)
    assert best.maps is None and best.images.shape == (1, 4) and best.units.tolist() == [2] and "no maps" in repr(best)


def test_tokens_have_the_map_of_their_patches():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Identity()

        def forward(self, x):
            patches = x.flatten(2).transpose(1, 2)
            return self.block(torch.cat([patches.mean(1, keepdim=True), patches], 1))

    pictures = noise(5, size=4)
    best = exemplars(recorded(pictures, ["block"], Tokens()), "block", units=[1], k=2)
    assert best.maps.shape == (1, 2, 4, 4)
    assert np.allclose(best.maps[0, 0], pictures[best.images[0, 0]][..., 1] / 255)


def test_maps_of_different_sizes_are_brought_to_one():
    torch.manual_seed(0)
    pictures = ProbingSet.from_images(noise(3, 20) + noise(3, 10))
    target = Target(nn.Sequential(nn.Conv2d(3, 3, 1)), ["0"], to_tensor, device="cpu")
    best = exemplars(record(target, pictures, batch_size=1, progress=False), "0", k=6)
    assert best.maps.shape == (3, 6, 20, 20) and np.isfinite(best.maps).all()
    small = best.images[0].tolist().index(4)
    assert np.isclose(best.maps[0, small].mean(), best.activations[0, small], atol=0.02)


def test_more_images_than_there_are_and_bad_ones_left_out():
    pictures = noise(6)
    pictures[2] = None
    best = exemplars(recorded(pictures), "1", k=100)
    assert best.images.shape == (6, 5) and 2 not in best.images and (np.diff(best.activations) <= 0).all()


def test_units_that_are_not_finite_are_not_ranked():
    class Poisoned(nn.Module):
        def forward(self, x):
            x = x.clone()
            x[x.mean((1, 2, 3)) > 0.5, 1] = torch.inf
            return x

    pictures = [np.full((4, 4, 3), value, "uint8") for value in (10, 200, 30, 220)]
    recording = recorded(pictures, ["0"], nn.Sequential(Poisoned()))
    with pytest.warns(UserWarning, match="1 units of '0' are finite on fewer than 3 images"):
        best = exemplars(recording, "0", k=3)
    assert best.images.tolist() == [[3, 1, 2], [2, 0, -1], [3, 1, 2]]
    assert np.isnan(best.activations[1, 2]) and np.isnan(best.maps[1, 2]).all() and np.isfinite(best.maps[0]).all()


def test_units_and_layers_that_do_not_exist():
    recording = recorded(noise(3))
    for wrong in ([4], [0, -1], 17):
        with pytest.raises(IndexError, match=r"no unit -?\d+ in layer '4': it has 4 units \(0..3\)"):
            exemplars(recording, "4", units=wrong)
    with pytest.raises(KeyError, match="no layer 'conv1'"):
        exemplars(recording, "conv1")
    with pytest.raises(ValueError, match="k is 0"):
        exemplars(recording, "4", k=0)


def test_hooks_and_target_are_left_as_they_were():
    recording = recorded(noise(5))
    exemplars(recording, "1")
    assert recording.target.layers == ("1", "4") and not any(m._forward_hooks for m in recording.target.model.modules())


def test_a_network_that_has_changed_gives_no_maps_and_leaves_none(tmp_path):
    torch.manual_seed(0)
    pictures, model = noise(20), network()
    weights = copy.deepcopy(model.state_dict())
    found = recorded(pictures, model=model, store=tmp_path / "s.zarr")
    with torch.no_grad():
        model[0].weight.mul_(-3)
    with pytest.raises(ValueError, match="the Sequential has changed since it was recorded"):
        exemplars(found, "1", k=3)
    model.load_state_dict(weights)
    right = exemplars(recorded(pictures, model=model, store=tmp_path / "s.zarr"), "1", k=3)
    assert np.allclose(right.maps.mean((2, 3)), right.activations, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_images_that_have_changed_give_no_maps(tmp_path, pool):
    for number, picture in enumerate(noise(6)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    images = ProbingSet.from_folder(tmp_path)
    found = record(Target(network(), ["1"], to_tensor, device="cpu"), images, pool=pool, progress=False)
    for path in tmp_path.glob("*.png"):
        Image.new("RGB", (10, 10), "white").save(path)
    with pytest.raises(ValueError, match="images give other activations of layer '1' than were recorded"):
        exemplars(found, "1", k=3)
    with pytest.raises(ValueError, match="images of the probing set have changed since they were recorded"):
        INVERT(pd.DataFrame({"dark": np.arange(6) < 3}))(found, images)


def test_a_run_over_many_units_reads_the_weights_once(monkeypatch):
    recording, keys = recorded(noise(20)), []
    monkeypatch.setattr("neuronbench.probe.regions._AT_ONCE", 1)
    monkeypatch.setattr("neuronbench.probe.target._network_key", lambda model: keys.append(_network_key(model)) or keys[-1])
    region_features(recording, "1", [0, 1, 2], lambda pictures, masks: np.zeros((len(pictures), 2)), k=2, size=8)
    assert len(keys) == 1
    exemplars(recording, "1", units=[0], k=3)
    exemplars(recording, "1", units=[0], k=4)
    assert len(keys) == 3, "outside of a run the network may have been trained in between"
