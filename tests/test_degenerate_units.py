"""Units that tell no images apart get no description and a reason, from every method."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import neuronbench as nb
from neuronbench.foundation.region_captioner import STOP, RegionCaptioner, Speaker, StageFeatures, word_list
from neuronbench.probe.target import Target
from neuronbench.workbench import METHODS
from tiny_colours import COLOURS, ColourCLIP

REASONS = {"constant": 0, "dead": 1, "NaN": 2, "infinite": 3}  # the unit


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


class Degenerate(torch.nn.Module):
    """The units of `layer` are `REASONS`, then redness and greenness; `alone` is a layer of redness only."""

    def __init__(self):
        super().__init__()
        self.layer, self.alone = torch.nn.Identity(), torch.nn.Identity()

    def forward(self, batch):
        red, green, blue = batch.unbind(1)
        bright = green.mean((1, 2), keepdim=True) > 0.1
        broken = [torch.where(bright, value, red) for value in (torch.nan, torch.inf)]
        self.alone((red - green - blue)[:, None])
        return self.layer(torch.stack([torch.full_like(red, 0.3), 0 * red, *broken, red - green - blue, green - red - blue], 1)).mean((2, 3))


def preprocess(image):
    return torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)


def pictures(count):
    """Squares of changing colour and place on black."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        pixels = np.zeros((16, 16, 3), np.uint8)
        left, top = rng.integers(0, 10, 2)
        pixels[top : top + 6, left : left + 6] = rng.integers(150, 255) * np.eye(3, dtype=int)[number % 3]
        found.append(Image.fromarray(pixels))
    return nb.ProbingSet.from_images(found)


def recorded(count=30):
    return nb.record(Target(Degenerate(), ["layer", "alone"], preprocess, list("abcdef"), device="cpu"), pictures(count), progress=False)


class Unasked:
    """A model that must not be asked."""

    fingerprint = "unasked"


def milan():
    torch.manual_seed(0)
    encoder = StageFeatures(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)), ["0"], preprocess, "cpu")
    words = word_list(["red things", "green things"])
    models = Speaker(len(words), 4, 8, 4), Speaker(len(words), 0, 8, 4)
    models[0].next.bias.data[STOP] -= 5  # it speaks before it ends
    return nb.MILAN(RegionCaptioner(*models, words, torch.stack([torch.zeros(4), torch.ones(4)]), encoder.learnt), encoder, exemplars=5, beam=4, length=4, pool="mean")


def methods(recording):
    """{name: a method with tools that need no weights}."""
    pixels = np.stack([np.asarray(recording.images[number]).astype(int) for number in range(len(recording.images))])
    masks = np.stack([pixels[..., number] > 100 for number in range(3)], 1)
    notes = nb.annotations_from_arrays(recording.images, {"colour": masks}, {"colour": list(COLOURS)})
    return {
        "clip-dissect": nb.CLIPDissect(ColourCLIP(), list(COLOURS)),
        "describe-and-dissect": nb.DescribeAndDissect(Unasked(), Unasked(), Unasked(), ColourCLIP()),
        "patch-vocabulary": nb.PatchVocabulary(ColourCLIP(), vocabulary={name: list(COLOURS) for name in "abcdef"}),
        "milan": milan(),
        "falcon": nb.FALCON(ColourCLIP(), [f"a {colour} house" for colour in COLOURS], resemblance=0.0),
        "invert": nb.INVERT(pd.DataFrame(masks.any((2, 3)), columns=list(COLOURS)), length=1),
        "network-dissection": nb.NetworkDissection(notes, share=0.05),
        "compositional": nb.CompositionalExplanations(notes, share=0.05, length=1),
    }


def test_the_methods_here_are_all_there_are():
    assert set(methods(recorded(3))) == set(METHODS)


@pytest.fixture(scope="module")
def recording():
    return recorded()


@pytest.fixture(scope="module")
def known(recording):
    return methods(recording)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:.*have no description", "ignore:.*not finite")
def test_constant_dead_and_unsound_units_have_a_reason(recording, known, name):
    found = known[name](recording, recording.images, {"layer": list(REASONS.values())})
    assert found.unit.tolist() == list(REASONS.values()) and found.description.isna().all() and found.score.isna().all()
    reasons = {failure["unit"]: failure["reason"] for failure in found.attrs["failures"]}
    assert set(reasons) == set(REASONS.values()) and all("NaN or infinite" in reasons[REASONS[unit]] for unit in ("NaN", "infinite"))
    for unit in ("constant", "dead"):
        assert "on every image" in reasons[REASONS[unit]] or reasons[REASONS[unit]] == "the unit never exceeds its threshold"


@pytest.mark.parametrize("name", METHODS)
def test_one_image_tells_nothing(name):
    alone = recorded(1)
    with pytest.warns(UserWarning, match="no description"):
        found = methods(alone)[name](alone, alone.images, {"layer": [0, 4, 5], "alone": [0]})
    assert len(found) == 4 and found.description.isna().all() and len(found.attrs["failures"]) == 4
    assert {failure["reason"] for failure in found.attrs["failures"]} == {"there is only one image, so that no image stands out"}


@pytest.mark.parametrize("name, reason", [("clip-dissect", "there is no other"), ("patch-vocabulary", "only unit"), ("milan", "only unit"), ("falcon", "only unit")])
def test_the_only_unit_of_a_layer_has_a_reason(recording, known, name, reason):
    with pytest.warns(UserWarning, match="a unit has no description"):
        found = known[name](recording, recording.images, {"alone": [0]})
    assert found.description.isna().all() and reason in found.attrs["failures"][0]["reason"]


@pytest.mark.parametrize("name", ["invert", "network-dissection", "compositional"])
def test_what_compares_a_unit_with_annotations_describes_the_only_unit_of_a_layer(recording, known, name):
    assert known[name](recording, recording.images, {"alone": [0]}).description.tolist() == ["red"]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "describe-and-dissect"])
def test_sound_units_beside_them_are_described(recording, known, name):
    assert not known[name](recording, recording.images, {"layer": [4, 5]}).description.isna().any()
