"""CLIP-Dissect end to end on small networks made here: what it computes, keeps, traces and refuses."""

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import neuronbench as nb
from neuronbench.describe import clip_dissect
from neuronbench.describe.clip_dissect import CLIPDissect, best_concepts, images_taken
from neuronbench.describe.similarity import SIMILARITIES, soft_wpmi, standing_out, wpmi
from neuronbench.show.report import method_settings

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 30), "black": (5, 5, 5), "white": (250, 250, 250)}


class ColourCLIP:
    """Knows the colours: an image's embedding is its mean colour, a text's that of its name. The interface of CLIP."""

    device = "cpu"

    def __init__(self, fingerprint="colours"):
        self.fingerprint, self.embedded = fingerprint, []

    def embed_images(self, images, indices=None):
        indices = range(len(images)) if indices is None else indices
        self.embedded.append(("images", len(indices)))
        return self._normalised([np.asarray(images[int(index)]).mean((0, 1)) for index in indices])

    def embed_texts(self, texts):
        self.embedded.append(("texts", len(texts)))
        return self._normalised([COLOURS.get(text, (90, 100, 80)) for text in texts])

    def _normalised(self, values):
        values = np.concatenate([np.asarray(values, dtype="f4") / 255 - 0.5, np.full((len(values), 1), 0.3, "f4")], axis=1)
        return values / np.linalg.norm(values, axis=1, keepdims=True)


class Channels(torch.nn.Module):
    """Four units: the mean of red, green and blue, and how blue without red; then two units of a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1, bias=False)
        self.conv.weight.data = torch.tensor([[1.0, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1], [-1, 0, 1]])[:, :, None, None]
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


class Poisoned(Channels):
    """Unit 1 is NaN where the image is very blue, unit 3 infinite everywhere."""

    def forward(self, x):
        return self.fc(self.spoil(self.conv(x)).mean((2, 3)))

    def __init__(self):
        super().__init__()
        self.spoil = Spoil()


class Spoil(torch.nn.Module):
    def forward(self, maps):
        maps = maps.clone()
        maps[:, 1] = torch.where(maps[:, 2].mean((1, 2), keepdim=True) > 0.4, math.nan, maps[:, 1])
        maps[:, 3] = math.inf
        return maps


def to_tensor(image):
    return torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    colours = list(COLOURS.values())
    flat = [np.clip(np.array(colours[i % 6]) + rng.normal(0, 25, 3), 0, 255) for i in range(90)]
    return nb.ProbingSet.from_images([Image.fromarray(np.full((8, 8, 3), colour, np.uint8)) for colour in flat])


def recorded(model, images, layers, **options):
    return nb.record(nb.Target(model, layers=layers, preprocess=to_tensor, device="cpu"), images, progress=False, **options)


@pytest.fixture(scope="module")
def recording(images):
    torch.manual_seed(0)
    return recorded(Channels(), images, ["conv", "fc"])


@pytest.fixture
def method():
    return CLIPDissect(ColourCLIP(), list(COLOURS), similarity="cos_cubed")


def test_units_get_the_names_of_their_colours(recording, images, method):
    found = method(recording, images)
    assert list(found.columns) == ["layer", "unit", "description", "score", "method"]
    assert list(zip(found.layer, found.unit)) == [("conv", 0), ("conv", 1), ("conv", 2), ("conv", 3), ("fc", 0), ("fc", 1)]
    assert found.description.tolist()[:3] == ["red", "green", "blue"] and set(found.method) == {"CLIP-Dissect"}


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_description_and_score_are_the_arg_max_of_the_similarity(recording, images, name):
    clip = ColourCLIP()
    found = CLIPDissect(clip, list(COLOURS), similarity=name)(recording, images, units={"conv": [2, 0]})
    scores = clip.embed_images(images) @ clip.embed_texts(list(COLOURS)).T
    activations = recording["conv"].values
    options = {"top_k": images_taken(SIMILARITIES[name], activations)} if "wpmi" in name else {}
    expected = SIMILARITIES[name](scores, activations, **options)[[2, 0]]
    assert found.unit.tolist() == [2, 0]
    given = expected[range(2), [list(COLOURS).index(word) for word in found.description]]
    assert (given >= expected.amax(1) - 1e-3).all()
    np.testing.assert_allclose(found.score, expected.amax(1).numpy(), atol=1e-3)


def test_describing_some_units_says_the_same_as_describing_all(recording, images):
    method = CLIPDissect(ColourCLIP(), list(COLOURS))
    some = method(recording, images, units={"conv": [3]})
    everything = method(recording, images)
    row = everything[(everything.layer == "conv") & (everything.unit == 3)].reset_index(drop=True)
    assert some.equals(row)


def test_second_call_computes_nothing_and_another_knob_only_what_follows(recording, images, method, monkeypatch):
    first = method(recording, images)
    embeddings, compared = len(method.clip.embedded), []
    monkeypatch.setattr(clip_dissect, "best_concepts", lambda *args, **options: compared.append(1) or best_concepts(*args, **options))
    dataclasses.replace(method, similarity="wpmi")(recording, images, units={"conv": [0]})
    assert len(compared) == 1
    embeddings = len(method.clip.embedded)
    monkeypatch.setattr(clip_dissect, "best_concepts", best_concepts)
    again = method(recording, images)
    assert again.equals(first) and len(method.clip.embedded) == embeddings


def test_other_clip_concepts_or_similarity_never_serve_the_old_result(recording, images, method):
    first = method(recording, images)
    fewer = dataclasses.replace(method, concepts=["black", "white"])(recording, images)
    assert set(fewer.description) <= {"black", "white"}

    class Inverted(ColourCLIP):
        def embed_texts(self, texts):
            return -super().embed_texts(texts)

    other = dataclasses.replace(method, clip=Inverted("inverted"))(recording, images)
    assert (other.description != first.description).all()


def test_a_function_of_ones_own(recording, images):
    def last_concept(concept_scores, activations):
        assert concept_scores.shape == (90, 6) and activations.shape[0] == 90
        return torch.arange(6.0).expand(activations.shape[1], 6)

    method = CLIPDissect(ColourCLIP(), list(COLOURS), similarity=last_concept)
    assert set(method(recording, images).description) == {"white"}
    with pytest.raises(ValueError, match=r"gave shape \(90, 6\): expected \(unit, concept\), \(4, 6\)"):
        CLIPDissect(ColourCLIP(), list(COLOURS), similarity=lambda scores, activations: scores)(recording, images)


def test_max_pooling_is_its_own_result(images):
    recording = recorded(Channels(), images, ["conv"], pool=("mean", "max"))
    method = CLIPDissect(ColourCLIP(), list(COLOURS), pool="max")
    scores = ColourCLIP().embed_images(images) @ ColourCLIP().embed_texts(list(COLOURS)).T
    activations = recording.pooled("conv", "max").values
    expected = soft_wpmi(scores, activations, standing_out(activations)).amax(1)
    np.testing.assert_allclose(method(recording, images).score, expected.numpy(), atol=1e-3)
    with pytest.raises(KeyError, match="pooling"):
        dataclasses.replace(method, pool="min")(recording, images)


def test_units_that_are_not_finite_are_named_and_the_rest_described(images):
    recording = recorded(Poisoned(), images, ["spoil"])
    method = CLIPDissect(ColourCLIP(), list(COLOURS), similarity="cos_cubed")
    for _ in range(2):  # also when the result comes from the cache
        with pytest.warns(UserWarning, match="2 units have no description; the first: unit 1 of 'spoil', the unit is NaN or infinite on some images"):
            found = method(recording, images)
        assert found.description.isna().tolist() == found.score.isna().tolist() == [False, True, False, True]
        assert found.description.tolist()[::2] == ["red", "blue"]
    assert [failure["unit"] for failure in found.attrs["failures"]] == [1, 3]
    with pytest.warns(UserWarning, match="NaN or infinite on 90 images"):
        trace = method.trace(recording, "spoil", 3)
        assert len(trace.evidence) == 0
    assert trace.description is None and "NaN" in trace.reason and len(trace.concepts) == 0 and trace.concept_scores.sizes["concept"] == 0


def test_all_units_not_finite(images):
    recording = recorded(Poisoned(), images, ["fc"])
    with pytest.warns(UserWarning, match="2 units"):
        found = CLIPDissect(ColourCLIP(), list(COLOURS))(recording, images)
    assert found.description.isna().all()


def test_trace_shows_why(recording, images, method):
    trace = method.trace(recording, "conv", 2)
    found = method(recording, images, units={"conv": [2]})
    assert trace.description == found.description[0] == "blue" and trace.concepts.score[0] == found.score[0]
    assert trace.evidence.equals(recording.top("conv", 2, k=10))
    assert (np.diff(trace.concepts.score) <= 1e-3).all() and len(trace.concepts) == 6
    scores = method.clip.embed_images(images, trace.evidence.image) @ method.clip.embed_texts(trace.concepts.description.tolist()).T
    np.testing.assert_allclose(trace.concept_scores.values, scores, atol=1e-6)
    assert trace.concept_scores.image.values.tolist() == trace.evidence.image.tolist()


def test_bad_images_are_left_out_of_everything(tmp_path, method):
    rng = np.random.default_rng(1)
    for number in range(12):
        colour = list(COLOURS.values())[number % 6]
        Image.fromarray(np.clip(np.full((8, 8, 3), colour) + rng.integers(0, 9, 3), 0, 255).astype(np.uint8)).save(tmp_path / f"{number:02}.png")
    (tmp_path / "04.png").write_bytes(b"broken")
    images = nb.ProbingSet.from_folder(tmp_path)
    recording = recorded(Channels(), images, ["conv"])
    found = method(recording, images)
    assert found.description.tolist()[:3] == ["red", "green", "blue"]
    assert method.clip.embedded[0] == ("images", 11)
    assert 4 not in method.trace(recording, "conv", 0).evidence.image.tolist()


def test_other_images_than_those_recorded_are_refused(recording, images, method):
    other = nb.ProbingSet.from_images([Image.new("RGB", (8, 8), "red")] * 90)
    with pytest.raises(ValueError, match="are not the"):
        method(recording, other)
    same = nb.ProbingSet.from_images([images[index] for index in range(len(images))])
    assert method(recording, same).equals(method(recording, images))


def test_errors_come_before_the_work(recording, images):
    clip = ColourCLIP()
    with pytest.raises(KeyError, match="no similarity function 'soft_wmpi'; did you mean 'soft_wpmi'"):
        CLIPDissect(clip, ["red"], similarity="soft_wmpi")
    with pytest.raises(ValueError, match="empty concept set"):
        CLIPDissect(clip, [])
    with pytest.raises(TypeError, match="entry 1"):
        CLIPDissect(clip, ["red", 7])
    method = CLIPDissect(clip, ["red", "blue"])
    for units, kind in (({"conv2": [0]}, KeyError), ({"conv": [9]}, ValueError)):
        with pytest.raises(kind):
            method(recording, images, units=units)
        with pytest.raises(kind):
            method.trace(recording, *[(layer, numbers[0]) for layer, numbers in units.items()][0])
    assert clip.embedded == []


def test_concepts_at_the_ceiling_keep_the_order_of_the_definition():
    """Each unit has two concepts all to itself, so both score log U; one of them shows more."""
    rng = np.random.default_rng(0)
    shown = np.repeat(np.kron(np.eye(5), [[1.0, 1.6]]), 30, axis=0)  # (image, concept)
    scores = np.clip(0.5 * shown + rng.normal(0, 0.01, shown.shape), -1, 1).astype("f4")
    activations = np.repeat(np.eye(5, dtype="f4"), 30, axis=0) + rng.random((150, 5), dtype="f4") / 10
    result = soft_wpmi(scores, activations, top_k=30)
    found = best_concepts(scores, np.eye(10, dtype="f4"), activations, soft_wpmi)
    assert (result.amax(1) - math.log(5)).abs().max() < 1e-3
    assert found["concepts"][:, 0].tolist() == [1, 3, 5, 7, 9]


def test_settings_are_frozen_and_quiet():
    method = CLIPDissect(ColourCLIP(), 20_000)
    assert len(method.concepts) == 20_000 and len(repr(method)) < 300
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.similarity = "cos"


# units and concepts that leave nothing to tell


class Table(torch.nn.Module):
    """Image i gives row i of the table; its number is the last pixel's red."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values, dtype=torch.float32), requires_grad=False)

    def forward(self, batch):
        return self.values[(batch[:, 0, -1, -1] * 255).round().long()]


def numbered(image, number):
    image = image.copy()
    image.putpixel((7, 7), (number, 128, 128))
    return image


def given_recording(values, images):
    """A recording of `values` (image, unit) on as many of the images, each with its number in a corner."""
    images = nb.ProbingSet.from_images([numbered(images[number], number) for number in range(len(values))])
    net = torch.nn.Sequential()
    net.add_module("table", Table(values))
    return nb.record(nb.Target(net, ["table"], to_tensor, device="cpu"), images, progress=False)


def redness(images, channels=(1, -0.5, -0.5)):
    return np.array([np.asarray(images[number], float)[0, 0] @ channels for number in range(len(images))]) / 255


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_constant_and_dead_units_have_no_description_and_a_reason(images, name):
    red = redness(images)
    green, blue = redness(images, (-0.5, 1, -0.5)), redness(images, (-0.5, -0.5, 1))
    values = np.stack([red, np.zeros(90), np.full(90, 0.7), green, 0.7 + 1e-8 * red, blue], axis=1)
    recording = given_recording(values, images)
    orders = [list(COLOURS), list(COLOURS)[::-1]]
    for concepts in orders:
        method = CLIPDissect(ColourCLIP(), concepts, similarity=name)
        with pytest.warns(UserWarning, match="3 units have no description; the first: unit 1 of 'table', the unit is 0 on every image"):
            found = method(recording, recording.images)
        assert found.description.isna().tolist() == found.score.isna().tolist() == [False, True, True, False, True, False]
        assert [(one["unit"], one["step"]) for one in found.attrs["failures"]] == [(1, "compare"), (2, "compare"), (4, "compare")]
        assert "0.7 on every image" in found.attrs["failures"][1]["reason"]
        trace = method.trace(recording, "table", 2)
        assert trace.description is None and trace.reason == found.attrs["failures"][1]["reason"]


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_one_unit_in_the_layer_is_described_alike_in_any_order_of_the_concepts_or_not_at_all(images, name):
    recording = given_recording(redness(images)[:, None], images)
    orders = [["red", "blue", "green"], ["blue", "green", "red"], ["green", "red", "blue"]]
    found = [CLIPDissect(ColourCLIP(), order, similarity=name)(recording, recording.images) for order in orders]
    said = {table.description.fillna("").iloc[0] for table in found}
    assert said == ({""} if name == "soft_wpmi" else {"red"})
    assert name != "soft_wpmi" or "there is no other" in found[0].attrs["failures"][0]["reason"]


def test_units_that_are_all_alike_cannot_be_told_from_each_other(images):
    recording = given_recording(np.repeat(redness(images)[:, None], 3, axis=1), images)
    found = CLIPDissect(ColourCLIP(), ["blue", "red", "green"])(recording, recording.images)
    assert found.description.isna().all() and all("equally well" in one["reason"] for one in found.attrs["failures"])
    assert set(CLIPDissect(ColourCLIP(), ["blue", "red", "green"], similarity="cos_cubed")(recording, recording.images).description) == {"red"}


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_concepts_that_clip_cannot_tell_apart_are_a_tie(images, name):
    red = redness(images)
    recording = given_recording(np.stack([red, -red], axis=1), images)
    COLOURS["crimson"] = COLOURS["red"]
    try:
        for concepts in (["red", "crimson", "blue", "black"], ["blue", "black", "crimson", "red"]):
            found = CLIPDissect(ColourCLIP(), concepts, similarity=name)(recording, recording.images)
            assert found.description.isna()[0] and not found.description.isna()[1]
            assert re.search("'(red|crimson)' and '(red|crimson)' fit equally well", found.attrs["failures"][0]["reason"])
    finally:
        del COLOURS["crimson"]


def test_upper_and_lower_case_of_a_word_are_no_tie(images):
    red = redness(images)
    recording = given_recording(np.stack([red, -red], axis=1), images)

    class Lower(ColourCLIP):
        def embed_texts(self, texts):
            return super().embed_texts([text.lower() for text in texts])

    found = CLIPDissect(Lower("lower"), ["blue", "Red", "red"])(recording, recording.images)
    assert found.description[0] == "Red"


@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_a_single_concept_is_no_choice(images, name):
    red = redness(images)
    recording = given_recording(np.stack([red, -red], axis=1), images)
    found = CLIPDissect(ColourCLIP(), ["red"], similarity=name)(recording, recording.images)
    assert found.description.isna().all() and "one concept" in found.attrs["failures"][0]["reason"]


@pytest.mark.parametrize("name", ["soft_wpmi", "wpmi", "cos", "cos_cubed"])
def test_one_image_and_fewer_images_than_the_top(images, name):
    red = redness(images)
    values = np.stack([red, -red], axis=1)
    one = given_recording(values[:1], images)
    found = CLIPDissect(ColourCLIP(), list(COLOURS), similarity=name)(one, one.images)
    assert found.description.isna().all() and all("only one image" in failure["reason"] for failure in found.attrs["failures"])
    few = given_recording(values[:20], images)
    for top_k in (None, 100) if "wpmi" in name else (None,):
        found = CLIPDissect(ColourCLIP(), list(COLOURS), similarity=name, top_k=top_k)(few, few.images)
        if name == "wpmi" and top_k:  # takes every image of every unit, so that it does not look at the activations
            assert found.description.isna().all() and "takes all 20: record more images, choose a smaller top_k" in found.attrs["failures"][0]["reason"]
        else:
            assert found.description[0] == "red" and found.description[1] != "red"


def test_a_unit_that_is_saturated_on_more_images_than_count_has_no_top(images):
    red = redness(images)
    saturated = np.stack([red > np.sort(red)[50], red, -red], axis=1).astype(float)  # the first on 39 images, more than 28
    recording = given_recording(saturated, images)
    for name, top_k in (("wpmi", 28), ("soft_wpmi", 28), ("soft_wpmi", None)):
        method = CLIPDissect(ColourCLIP(), list(COLOURS), similarity=name, top_k=top_k)
        found, taken = method(recording, recording.images), method.trace(recording, "table", 0).top_k
        assert found.description.isna().tolist() == [True, False, False]
        assert found.attrs["failures"][0]["reason"] == (f"39 images activate it equally, so that the {taken} that activate it most cannot be told: "
                                                        "choose top_k=39, or similarity='cos_cubed'")
        assert dataclasses.replace(method, top_k=39)(recording, recording.images).description[0]


# how many images are looked at


def test_as_many_images_are_looked_at_as_stand_out_and_the_trace_and_the_report_say_so(recording, images):
    method = CLIPDissect(ColourCLIP(), list(COLOURS))
    stand_out = standing_out(recording["conv"].values)
    assert 10 <= stand_out <= 25  # 15 of the 90 images are of each colour
    assert method.trace(recording, "conv", 0).top_k == stand_out
    assert method.chosen(recording, "conv") == f"top_k of conv: {stand_out}, the number of images that stand out"
    asked = dataclasses.replace(method, top_k=stand_out)
    assert asked(recording, images).equals(method(recording, images)) and asked.chosen(recording, "conv") == ""
    assert f"top_k={stand_out}" in method_settings(asked) and "top_k=None" in method_settings(method)
    of_all = dataclasses.replace(method, similarity="cos_cubed")
    assert of_all.trace(recording, "conv", 0).top_k is None and of_all.chosen(recording, "conv") == ""


def test_another_number_of_images_never_serves_the_old_result(recording, images):
    method = CLIPDissect(ColourCLIP(), list(COLOURS))
    scores = {top_k: dataclasses.replace(method, top_k=top_k)(recording, images).score.tolist() for top_k in (None, 2, 40, 100)}
    assert len({tuple(each) for each in scores.values()}) == 4
    expected = soft_wpmi(ColourCLIP().embed_images(images) @ ColourCLIP().embed_texts(list(COLOURS)).T, recording["conv"].values).amax(1)
    np.testing.assert_allclose(scores[100][:4], expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("name", ["soft_wpmi", "wpmi"])
@pytest.mark.parametrize("per_class", [1, 5])
def test_units_of_classes_with_few_images_each_are_named(name, per_class):
    """30 concepts, each shown by so many images and something like the next five, and a unit for each: the paper's numbers of images lose most of them."""
    chance = np.random.default_rng(0)
    shows = np.repeat(np.eye(30, dtype="f4"), per_class, axis=0)
    alike = shows + sum((0.6 - 0.08 * step) * np.roll(shows, step, axis=1) for step in range(1, 6))
    scores = (0.2 * alike + chance.normal(0, 0.03, alike.shape)).astype("f4")
    activations = (alike + chance.normal(0, 0.1, alike.shape)).astype("f4")
    exact = {top_k: (best_concepts(scores, np.eye(30, dtype="f4"), activations, SIMILARITIES[name], top_k=top_k)["concepts"][:, 0] == np.arange(30)).mean() for top_k in (None, 100)}
    assert exact[None] >= 0.87 and exact[None] >= exact[100]
    assert abs(images_taken(SIMILARITIES[name], activations) - per_class) <= 1


def test_numbers_of_images_that_make_no_sense_are_refused(recording):
    for wrong in (0, -3, 2.5, True, "10"):
        with pytest.raises(ValueError, match="expected the number of a unit's top images, at least 1, or None"):
            CLIPDissect(ColourCLIP(), ["red", "blue"], top_k=wrong)
    with pytest.raises(ValueError, match="top_k is 5, which is for soft_wpmi and wpmi: cos_cubed looks at other images"):
        CLIPDissect(ColourCLIP(), ["red", "blue"], similarity="cos_cubed", top_k=5)
    with pytest.raises(ValueError, match="top_k is 5, which is for soft_wpmi and wpmi"):
        CLIPDissect(ColourCLIP(), ["red", "blue"], similarity=lambda scores, activations: scores, top_k=5)


def test_the_papers_numbers_are_the_most_that_are_looked_at():
    many = np.random.default_rng(0).random((2_000, 6))  # evenly spread: a third of the upper half stands out
    assert (images_taken(soft_wpmi, many), images_taken(wpmi, many), images_taken(wpmi, many, 300), images_taken(wpmi, many[:20], 300)) == (100, 28, 300, 20)


def test_the_default_pooling_and_its_name_are_one_result(images):
    recording = recorded(Channels(), images, ["conv"], pool=("max", "mean"))
    tables = {pool: CLIPDissect(ColourCLIP(), list(COLOURS), pool=pool)(recording, images) for pool in (None, "max", "mean")}
    pd.testing.assert_frame_equal(tables[None], tables["max"])
    assert CLIPDissect(ColourCLIP(), list(COLOURS)).trace(recording, "conv", 0).evidence.equals(recording.top("conv", 0, 10, "max"))
