"""Directions: against einsum on the layer's own maps, through everything that reads a recording, and what does not fit."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import neuronbench as nb
from neuronbench.describe.describe_and_dissect.augmentation import augment
from neuronbench.describe.clip_dissect import CLIPDissect
from neuronbench.probe.activations import LayerActivations
from neuronbench.probe.crops import cut
from neuronbench.probe.directions import DirectedNetwork, Directions, Projection, activation_vectors, sparse_autoencoder
from neuronbench.probe.target import Target


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


class Reused(nn.Module):
    """A ReLU without weights that runs twice in one pass; the second time counts."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, 2), nn.ReLU()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))

    def forward(self, batch):
        return self.head(self.relu(self.second(self.relu(self.first(batch)))))


class Tokens(nn.Module):
    """Tokens (B, 1 + 9, 6): a class token and 3 x 3 patches."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 5, 5)

    def forward(self, batch):
        patches = self.patches(batch).flatten(2).transpose(1, 2)
        return torch.cat([patches.mean(1, keepdim=True), patches], 1)


def preprocess(image):
    return torch.from_numpy(np.asarray(image, np.float32) / 255 - 0.5).permute(2, 0, 1)


def pictures(count=40, side=16):
    chance = np.random.default_rng(0)
    return [Image.fromarray(chance.integers(0, 256, (side, side, 3)).astype(np.uint8)) for _ in range(count)]


def recorded(layers, network=None, pool=("mean",), images=None):
    torch.manual_seed(0)
    target = Target(network or Reused(), layers, preprocess, classes=list("abcd"), device="cpu", calls={"relu": 2} if "relu" in layers else None)
    return nb.record(target, nb.ProbingSet.from_images(images or pictures()), pool=pool, progress=False)


def layer_output(recording, layer):
    batch = torch.stack([preprocess(recording.images[i]) for i in range(len(recording.images))])
    return recording.target.at(layer).activations(batch)[layer]


def matrix(directions=5, units=6, seed=0):
    return np.random.default_rng(seed).normal(size=(directions, units)).astype("f4")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.booleans(), st.integers(0, 10**6))
def test_projection_is_a_product_at_every_position(count, relu, seed):
    weight, chance = torch.from_numpy(matrix(count, seed=seed)), np.random.default_rng(seed)
    linear = nn.Linear(6, count, bias=False)
    linear.weight = nn.Parameter(weight)
    project = Projection(nn.Sequential(linear, nn.ReLU()) if relu else linear)
    after = torch.relu if relu else lambda values: values
    for shape, formula in (((2, 6, 3, 4), "du,buhw->bdhw"), ((2, 5, 6), "du,btu->btd"), ((2, 6), "du,bu->bd")):
        given_values = torch.from_numpy(chance.normal(size=shape).astype("f4"))
        assert torch.allclose(project(given_values), after(torch.einsum(formula, weight, given_values)), atol=1e-5)


@pytest.mark.parametrize("layer", ["first", "relu", "head.2"])
@pytest.mark.parametrize("relu", [False, True])
def test_pooled_values_maps_and_quantiles_are_those_of_the_product(layer, relu):
    recording = recorded([layer], pool=("mean", "max"))
    output, bias = layer_output(recording, layer), np.arange(5, dtype="f4") / 10
    weight = torch.from_numpy(matrix(units=output.shape[1]))
    found = Directions(recording, weight, bias=bias, relu=relu, progress=False)
    codes = torch.einsum("du,bu...->bd...", weight, output) + torch.from_numpy(bias).view(-1, *[1] * (output.ndim - 2))
    codes = (codes.relu() if relu else codes).flatten(2) if output.ndim == 4 else (codes.relu() if relu else codes)[..., None]
    assert np.allclose(found[layer], codes.mean(2), atol=1e-5) and np.allclose(found.pooled(layer, "max"), codes.amax(2), atol=1e-5)
    if codes.shape[2] <= 16:  # all positions were sampled
        values, quantile = codes.permute(1, 0, 2).flatten(1).numpy(), found.quantile(layer, 0.9)[:, None] + np.array([-1e-5, 1e-5])
        assert ((values < quantile[:, :1]).mean(1) <= 0.91).all() and ((values <= quantile[:, 1:]).mean(1) >= 0.89).all()
    best = nb.exemplars(found, layer, [3], k=4)
    assert best.images[0].tolist() == found.top(layer, 3, k=4).image.tolist()
    if output.ndim == 4:
        assert np.allclose(best.maps[0], codes[best.images[0], 3].unflatten(1, output.shape[2:]), atol=1e-5)
    else:
        assert best.maps is None


def test_tokens_keep_their_class_token_and_maps():
    recording = recorded(["0"], nn.Sequential(Tokens()), images=pictures(side=15))
    weight = torch.from_numpy(matrix())
    found = Directions(recording, weight, progress=False)
    tokens = layer_output(recording, "0") @ weight.T
    assert np.allclose(found["0"], tokens[:, 0], atol=1e-5)
    best = nb.exemplars(found, "0", [1], k=2)
    assert np.allclose(best.maps[0], tokens[best.images[0], 1:, 1].unflatten(1, (3, 3)), atol=1e-5)


def test_network_answers_as_before_and_flags_and_hooks_are_left_alone():
    recording = recorded(["relu"])
    network = recording.target.model.train()
    directed = DirectedNetwork(network, "relu", Projection(nn.Linear(6, 3)), recording.layouts["relu"])
    batch = torch.rand(2, 3, 16, 16)
    Target(directed, ["relu"], preprocess, device="cpu").activations(batch)
    assert network.training and not any(module._forward_hooks for module in directed.modules())
    assert torch.equal(directed.eval()(batch), network.eval()(batch))


def test_identity_directions_are_the_units():
    recording = recorded(["first", "relu"])
    found = Directions(recording, np.eye(6), "relu", progress=False)
    assert found.layers == ("relu",) and isinstance(found, nb.Recording)
    assert np.allclose(found["relu"], recording["relu"], atol=1e-6)
    assert found.target.classes == recording.target.classes and found.images is recording.images


def test_directions_of_directions_multiply():
    recording, one, two = recorded(["relu"]), matrix(5), matrix(3, 5, seed=1)
    nested = Directions(Directions(recording, one, progress=False), two, progress=False)
    assert np.allclose(nested["relu"], Directions(recording, two @ one, progress=False)["relu"], atol=1e-5)


def test_fingerprint_tells_directions_apart_and_the_store_serves_only_its_own(tmp_path):
    recording, store = recorded(["relu"]), tmp_path / "runs.zarr"
    first = Directions(recording, matrix(), store=store, progress=False)
    again = Directions(recording, matrix(), store=store, progress=False)
    others = [Directions(recording, matrix(seed=1), store=store, progress=False), Directions(recording, matrix(), relu=True, store=store, progress=False),
              Directions(recording, matrix(), bias=np.ones(5), store=store, progress=False)]
    assert first.fingerprint == again.fingerprint and np.array_equal(first["relu"], again["relu"])
    assert len({first.fingerprint, recording.fingerprint, *(one.fingerprint for one in others)}) == 5
    assert not any(np.allclose(first["relu"], one["relu"]) for one in others)


def test_new_images_are_seen_through_the_directions():
    recording, new = recorded(["relu"]), pictures(5)[::-1]
    found = Directions(recording, matrix(), progress=False)
    look = LayerActivations(found.target, "relu")
    seen = LayerActivations(recording.target, "relu")(new) @ matrix().T
    assert look.fingerprint != LayerActivations(recording.target, "relu").fingerprint
    assert np.allclose(look(new), seen, atol=1e-5)


def test_crops_of_exemplars_are_seen_through_the_directions_too():
    recording = recorded(["relu"])
    found = Directions(recording, matrix(), progress=False)
    [augmented] = augment(found, "relu", [3], k=4, size=16)
    crops = augmented.union[augmented.union.box.notna()]
    cuts = [cut(augmented.pictures[image], box).image for image, box in zip(crops.image, crops.box)]
    assert len(cuts) and np.allclose(crops.activation, LayerActivations(recording.target, "relu")(cuts) @ matrix()[3], atol=1e-5)


def test_other_methods_take_directions():
    images = pictures(40)
    recording = recorded(["relu"], images=images)
    found = Directions(recording, matrix(), progress=False)
    labels = pd.DataFrame({"high": found["relu"].values[:, 2] > np.median(found["relu"].values[:, 2]), "even": np.arange(40) % 2 == 0})
    said = nb.INVERT(labels, length=1)(found, found.images, {"relu": [2]})
    assert said.description[0] == "high" and said.score[0] == 1


class Colours:
    """A stand-in for CLIP that sees how red, green and blue an image is."""

    fingerprint, device = "colours", "cpu"
    words = ("red", "green", "blue")

    def embed_images(self, images, indices=None, progress=True):
        means = np.stack([np.asarray(images[int(i)], np.float32).mean((0, 1)) for i in (range(len(images)) if indices is None else indices)])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def embed_texts(self, texts, progress=True):
        return np.eye(3, dtype=np.float32)[[self.words.index(text) for text in texts]]


def test_a_mixed_unit_comes_apart_for_clip_dissect_and_the_browser_shows_it():
    """Two units, red + green and red - green: each unit mixes both colours, their sum and their difference do not."""
    chance = np.random.default_rng(0)
    images = [Image.fromarray(np.full((16, 16, 3), chance.integers(0, 256, 3), np.uint8)) for _ in range(120)]
    mix = nn.Conv2d(3, 2, 1, bias=False)
    mix.weight = nn.Parameter(torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0]]).view(2, 3, 1, 1))
    recording = recorded(["0"], nn.Sequential(mix), images=images)
    found = Directions(recording, [[0.5, 0.5], [0.5, -0.5]], progress=False)
    said = CLIPDissect(Colours(), list(Colours.words), similarity="cos_cubed")(found, found.images)
    assert said.description.tolist() == ["red", "green"]
    browser = nb.browse(found, found.images, descriptions=said)
    assert browser.unit_count == 2 and browser.layer == "0"


def test_vectors_are_taken_from_positions_of_good_images():
    recording = recorded(["relu"])
    every = layer_output(recording, "relu").permute(0, 2, 3, 1).flatten(0, 2).numpy()
    found = activation_vectors(recording, "relu", count=10**6)
    assert sorted(map(tuple, found.round(4))) == sorted(map(tuple, every.round(4)))
    some = activation_vectors(recording, "relu", count=80, seed=3)
    known = {tuple(row) for row in every.round(4)}
    assert some.shape == (80, 6) and all(tuple(row) in known for row in some.round(4))
    assert np.array_equal(some, activation_vectors(recording, "relu", count=80, seed=3))
    assert len(activation_vectors(recording, "relu", count=10)) == 10
    assert np.allclose(np.sort(activation_vectors(recorded(["head.2"]), "head.2"), 0), np.sort(layer_output(recorded(["head.2"]), "head.2"), 0), atol=1e-5)


def test_sparse_autoencoder_finds_planted_directions_and_is_seeded():
    """Vectors are sums of two of eight sparse sources in six dimensions."""
    chance = np.random.default_rng(0)
    sources = chance.random((4000, 8)) * (chance.random((4000, 8)).argsort(1) < 2)
    vectors = (sources @ np.abs(matrix(8, 6))).astype("f4")
    state = torch.random.get_rng_state()
    found = sparse_autoencoder(vectors, 16, top_k=2, epochs=120, seed=1, device="cpu")
    assert torch.equal(state, torch.random.get_rng_state()) and not found.training
    with torch.no_grad():
        codes = found.encode(torch.from_numpy(vectors))[1]
        rebuilt = found.decode(codes)
    assert (codes > 0).sum(1).max() <= 2
    assert ((rebuilt.numpy() - vectors) ** 2).sum() < 0.4 * ((vectors - vectors.mean(0)) ** 2).sum()
    again, other = (sparse_autoencoder(vectors, 16, top_k=2, epochs=120, seed=seed, device="cpu").get_dictionary() for seed in (1, 2))
    assert torch.allclose(found.get_dictionary(), again, atol=1e-2) and not torch.allclose(found.get_dictionary(), other, atol=1e-2)
    recording = recorded(["relu"])
    directions = Directions(recording, found, progress=False)
    with torch.no_grad():
        expected = Projection(found)(layer_output(recording, "relu")).mean((2, 3))
    assert np.allclose(directions["relu"], expected, atol=1e-5)


@pytest.mark.parametrize("wrong, sentence", [
    (np.zeros((6, 5)), r"the matrix has shape \(6, 5\): expected \(direction, 6\), a column for each unit of layer 'relu'; did you mean its transpose\?"),
    (np.zeros((5, 7)), r"the matrix has shape \(5, 7\): expected \(direction, 6\), a column for each unit of layer 'relu'$"),
    (np.zeros(6), r"the matrix has shape \(6,\)"),
    (np.zeros((0, 6)), r"the matrix has shape \(0, 6\)"),
    (np.zeros((2, 3, 6)), r"the matrix has shape \(2, 3, 6\)"),
    (np.full((2, 6), np.nan), "NaN or infinite"),
    (nn.Linear(7, 2), "Linear does not take vectors of the 6 units of layer 'relu': .*shapes"),
    (nn.Unflatten(1, (2, 3)), r"Unflatten gives shape \(2, 2, 3\)"),
])
def test_what_does_not_fit_is_refused_in_one_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        Directions(recorded(["relu"]), wrong, progress=False)
    assert "\n" not in str(refused.value)


def test_layer_and_bias_are_checked():
    recording = recorded(["first", "relu"])
    with pytest.raises(ValueError, match="the layers first, relu: say of which"):
        Directions(recording, matrix())
    with pytest.raises(KeyError, match="did you mean 'relu'"):
        Directions(recording, matrix(), "relo")
    with pytest.raises(ValueError, match=r"the bias has shape \(6,\): expected \(5,\)"):
        Directions(recording, matrix(), "relu", bias=np.zeros(6))
    with pytest.raises(ValueError, match="bias and relu go with a matrix: Linear has its own"):
        Directions(recording, nn.Linear(6, 2), "relu", relu=True)
    with pytest.raises(ValueError, match="directions is 0: expected"):
        sparse_autoencoder(np.zeros((10, 6), "f4"), 0)
    with pytest.raises(ValueError, match="top_k is 9"):
        sparse_autoencoder(np.zeros((10, 6), "f4"), 8, top_k=9)


def test_bad_images_stay_bad(tmp_path):
    for number, picture in enumerate(pictures(6)):
        picture.save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    torch.manual_seed(0)
    recording = nb.record(Target(Reused(), ["relu"], preprocess, device="cpu", calls={"relu": 2}), nb.ProbingSet.from_folder(tmp_path), progress=False)
    found = Directions(recording, matrix(), progress=False)
    assert found.bad_images.id.tolist() == ["2.png"] and 2 not in found["relu"].image
    assert np.allclose(found["relu"], recording["relu"].values @ matrix().T, atol=1e-5)
    assert len(activation_vectors(recording, "relu", count=50)) == 45  # all positions of 5 good images
