"""MILAN: regions against direct computation, units without a description, and annotations and exemplars that cannot be used."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import neuronbench as nb
from neuronbench.basics import content_key
from neuronbench.describe.milan import MILAN, exemplar_examples, read_exemplars, recording_examples, unit_texts
from neuronbench.foundation.region_captioner import STOP, RegionCaptioner, Speaker, StageFeatures, train_by_network, word_list
from neuronbench.probe.regions import exemplar_regions, region_features
from neuronbench.probe.target import Target, hashed_once
from tiny_colours import One

HOSTILE = "<script>alert('x')</script> $\\frac$"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


class Units(torch.nn.Module):
    """Unit 0 likes red, 1 likes green, 2 is the same everywhere, 3 is NaN where it is green; `flat` has no maps."""

    def __init__(self):
        super().__init__()
        self.maps, self.flat = torch.nn.Identity(), torch.nn.Identity()

    def forward(self, batch):
        red, green, _ = batch.unbind(1)
        broken = torch.where(green.mean((1, 2)) > 0.2, torch.nan, 1.0)[:, None, None].expand_as(red)
        return self.flat(self.maps(torch.stack([red - green, green - red, torch.full_like(red, 0.5), broken], 1)).mean((2, 3)))


def preprocess(image):
    return torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)


def pictures(count):
    """Squares of changing colour and place on grey."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        pixels = np.full((16, 16, 3), 60, np.uint8)
        left, top = rng.integers(0, 10, 2)
        pixels[top : top + 6, left : left + 6] = rng.integers(150, 255, (6, 6, 1)) * np.eye(3, dtype=int)[number % 3]
        found.append(Image.fromarray(pixels))
    return found


@pytest.fixture(scope="module")
def recording():
    return nb.record(Target(Units(), ["maps", "flat"], preprocess, device="cpu"), nb.ProbingSet.from_images(pictures(40)), progress=False)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return StageFeatures(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)), ["0"], preprocess, "cpu")


@pytest.fixture(scope="module")
def method(encoder):
    torch.manual_seed(0)
    words = word_list(["red things", "green things", HOSTILE])
    models = Speaker(len(words), 4, 8, 4), Speaker(len(words), 0, 8, 4)
    models[0].next.bias.data[STOP] -= 5  # it speaks before it ends
    captioner = RegionCaptioner(*models, words, torch.stack([torch.zeros(4), torch.ones(4)]), encoder.learnt)
    return MILAN(captioner, encoder, exemplars=5, beam=4, length=4)


def test_regions_are_where_the_unit_is_above_its_quantile(recording):
    [red] = exemplar_regions(recording, "maps", [0], k=4, quantile=0.9, size=16)
    threshold = recording.quantile("maps", 0.9)[0]
    for image, picture, mask in zip(red.images, red.pictures, red.masks):
        assert picture == recording.images[int(image)]
        pixels = np.asarray(picture, np.float32) / 255
        assert (mask == (pixels[..., 0] - pixels[..., 1] > threshold)).all() and mask.any()
    assert (red.images == recording.top("maps", 0, 4).image).all()


def test_a_layer_without_maps_is_seen_whole(recording):
    [red] = exemplar_regions(recording, "flat", [0], k=3, size=16)
    assert red.masks.shape == (3, 16, 16) and red.masks.all()


def test_features_of_many_units_are_those_of_each(recording, encoder, monkeypatch):
    monkeypatch.setattr("neuronbench.probe.regions._AT_ONCE", 1)
    features, marked = region_features(recording, "maps", [1, 0], encoder, k=4, size=16)
    for unit, own in zip((1, 0), features):
        [regions] = exemplar_regions(recording, "maps", [unit], k=4, size=16)
        assert np.allclose(own, encoder(regions.pictures, regions.masks), atol=1e-6)
    assert marked.shape == (2, 4) and marked.all()
    assert region_features(recording, "maps", [], encoder)[0].shape == (0, 15, 0)


def test_a_call_gives_what_the_traces_say(recording, method):
    with pytest.warns(UserWarning, match="4 units have no description"):
        found = method(recording, recording.images)
    assert list(found.columns) == ["layer", "unit", "description", "score", "method"] and len(found) == 8
    trace = method.trace(recording, "maps", 1)
    [row] = found[(found.layer == "maps") & (found.unit == 1)].itertuples()
    assert row.description == trace.description and row.score == pytest.approx(trace.phrases.score[0])
    assert np.allclose(trace.phrases.score, trace.phrases.given_regions - 0.2 * trace.phrases.anyway, atol=1e-5)
    pd.testing.assert_frame_equal(found, method(recording, recording.images), check_exact=True)


def test_units_without_a_description_say_why(recording, method):
    with pytest.warns(UserWarning):
        found = method(recording, recording.images, {"maps": [2, 3, 0]})
    assert found.description.isna().tolist() == [True, True, False]
    reasons = {failure["unit"]: failure["reason"] for failure in found.attrs["failures"]}
    assert "0.5 on every image" in reasons[2] and "NaN" in reasons[3] and set(reasons) == {2, 3}
    assert method.trace(recording, "maps", 2).plot().axes


def test_a_unit_that_is_nowhere_above_its_threshold_says_so(recording, method):
    with pytest.warns(UserWarning, match="no description"):
        found = replace(method, exemplars=40, quantile=0.999999)(recording, recording.images, {"maps": [0]})
    assert "quantile on none of its exemplars" in found.attrs["failures"][0]["reason"]


@pytest.mark.parametrize("network, count, reason", [(One, 40, "only unit of its layer"), (Units, 1, "only one image")])
def test_a_single_unit_and_a_single_image_have_no_description(method, network, count, reason):
    images = nb.ProbingSet.from_images(pictures(count))
    alone = nb.record(Target(network(), ["maps"], preprocess, device="cpu"), images, pool="max", progress=False)
    with pytest.warns(UserWarning, match=reason):
        found = method(alone, images, {"maps": [0]})
    assert found.description.isna().all() and reason in found.attrs["failures"][0]["reason"] and method.trace(alone, "maps", 0).plot().axes


def test_images_are_ranked_by_the_largest_value_where_it_is_recorded(recording, method, monkeypatch):
    both = nb.record(recording.target, recording.images, pool=("mean", "max"), progress=False)
    for pool, own in ((None, "max"), ("max", "max"), ("mean", "mean")):
        regions = replace(method, pool=pool).trace(both, "maps", 0).regions
        assert regions.images.tolist() == both.top("maps", 0, 5, own).image.tolist()
        assert regions.activations.tolist() == both.top("maps", 0, 5, own).activation.tolist()
    assert both.top("maps", 0, 5, "max").image.tolist() != both.top("maps", 0, 5, "mean").image.tolist()
    heard, phrases = [], RegionCaptioner.phrases
    monkeypatch.setattr(RegionCaptioner, "phrases", lambda self, features, *settings: heard.append(features) or phrases(self, features, *settings))
    for pool in ("max", "mean"):
        replace(method, pool=pool).trace(both, "maps", 0)
        assert np.array_equal(heard[-1], region_features(both, "maps", [0], method.region_encoder, 5, pool=pool)[0])
    assert not np.array_equal(*heard)
    features = recording_examples(both, annotations(("maps", 0, "red")), method.region_encoder, 4)[0]
    assert np.array_equal(features, region_features(both, "maps", [0], method.region_encoder, 4, pool="max")[0])


def test_another_pooling_than_the_papers_is_said_where_nobody_chose_it(recording, method):
    with pytest.warns(UserWarning, match="not recorded, and takes the recording's own pooling"):
        method.trace(recording, "maps", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(method, pool="mean").trace(recording, "maps", 0), method.trace(recording, "flat", 0)
    with pytest.raises(KeyError, match="no recorded pooling 'max'"):
        replace(method, pool="max").trace(recording, "maps", 0)


def test_fewer_images_than_exemplars_are_all_looked_at(method, recording):
    few = nb.ProbingSet.from_images(pictures(3))
    small, wide = nb.record(recording.target, few, progress=False), replace(method, quantile=0.8)
    assert len(wide.trace(small, "maps", 0).regions.images) == 3 and wide(small, few, {"maps": [0]}).description.notna().all()


def test_words_of_the_captioner_are_text_in_figures(recording, method):
    trace = method.trace(recording, "maps", 0)
    trace.phrases.loc[0, "description"] = HOSTILE
    figure = trace.plot()
    assert not figure._suptitle.get_parse_math()
    figure.canvas.draw()


def test_another_encoder_is_refused(method, encoder):
    other = StageFeatures(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)), ["0"], preprocess, "cpu")
    with pytest.raises(ValueError, match="another encoder"):
        MILAN(method.region_captioner, other)
    with pytest.raises(TypeError, match="RegionCaptioner.load"):
        MILAN(None, encoder)


@pytest.mark.parametrize(["setting", "value"], [("exemplars", 0), ("beam", 0), ("length", 0), ("quantile", 1.0), ("quantile", -0.1)])
def test_settings_out_of_range_are_named(method, setting, value):
    with pytest.raises(ValueError, match=setting):
        MILAN(method.region_captioner, method.region_encoder, **{setting: value})


def test_other_images_and_units_are_refused(recording, method):
    with pytest.raises(ValueError, match="not the 40 images"):
        method(recording, nb.ProbingSet.from_images(pictures(4)))
    with pytest.raises(ValueError, match="no unit 9"):
        method(recording, recording.images, {"maps": [9]})
    with pytest.raises(KeyError, match="did you mean 'maps'"):
        method(recording, recording.images, {"map": [0]})


def annotations(*rows):
    return pd.DataFrame(rows, columns=["layer", "unit", "description"])


def test_annotations_come_by_unit_and_empty_ones_are_left_out():
    table = annotations(("maps", 1, "green"), ("maps", 0, "red"), ("maps", 1, " "), ("flat", 0, None), ("maps", 1, "grass"))
    with pytest.warns(UserWarning, match="2 of 5 descriptions are empty"):
        assert unit_texts(table) == {"maps": {0: ["red"], 1: ["green", "grass"]}}
    with pytest.raises(ValueError, match="all 1 are empty"):
        unit_texts(annotations(("maps", 0, "")))
    with pytest.raises(ValueError, match="missing: description"):
        unit_texts(table[["layer", "unit"]])


def test_a_csv_with_missing_columns_says_what_was_found(tmp_path):
    (tmp_path / "annotations.csv").write_text("layer,neuron,text\nmaps,0,red\n")
    with pytest.raises(ValueError, match="layer, neuron, text.*not found: unit, description"):
        nb.read_descriptions(tmp_path / "annotations.csv")


def test_examples_of_units_that_were_not_recorded_are_refused(recording, encoder):
    with pytest.raises(ValueError, match="no unit 7"):
        recording_examples(recording, annotations(("maps", 7, "red")), encoder)
    with pytest.raises(KeyError, match="maps"):
        recording_examples(recording, annotations(("mops", 0, "red")), encoder)


@pytest.fixture
def folder(tmp_path, recording):
    layer = tmp_path / "published" / "maps"
    layer.mkdir(parents=True)
    own = exemplar_regions(recording, "maps", [0, 1], k=3, size=16)
    np.save(layer / "images.npy", np.stack([[np.moveaxis(np.asarray(one), 2, 0) for one in regions.pictures] for regions in own]))
    np.save(layer / "masks.npy", np.stack([regions.masks for regions in own])[:, :, None].astype(np.uint8))
    return layer.parent


def test_a_folder_of_exemplars_teaches_what_the_recording_does(folder, recording, encoder):
    table = annotations(("maps", 1, "green"), ("maps", 0, "red things"))
    features, texts = exemplar_examples(folder, table, encoder)
    expected = region_features(recording, "maps", [0, 1], encoder, k=3, size=16)[0]
    assert np.allclose(features, expected, atol=1e-6) and texts == [["red things"], ["green"]]
    np.save(folder / "maps" / "units.npy", np.array([11, 4]))
    features, texts = exemplar_examples(folder, annotations(("maps", 4, "green")), encoder)
    assert np.allclose(features, expected[1:], atol=1e-6) and texts == [["green"]]


def test_units_and_layers_that_a_folder_lacks_are_named(folder, encoder):
    with pytest.raises(ValueError, match="2 units of layer 'maps'; there is no unit 2"):
        exemplar_examples(folder, annotations(("maps", 2, "red")), encoder)
    with pytest.raises(KeyError, match="did you mean 'maps'"):
        exemplar_examples(folder, annotations(("mapz", 0, "red")), encoder)


@pytest.mark.parametrize(["name", "array", "message"], [
    ("masks.npy", np.zeros((2, 3, 8, 8), bool), "expected \\(2, 3, 16, 16\\)"),
    ("images.npy", np.zeros((2, 3, 16, 16, 3), np.uint8), "expected uint8"),
    ("images.npy", np.zeros((2, 3, 3, 16, 16)), "expected uint8"),
    ("units.npy", np.zeros(5, int), "expected a number for each of 2 units"),
    ("masks.npy", np.array([{}], object), "Python objects"),
])
def test_arrays_of_other_shapes_are_refused(folder, name, array, message):
    np.save(folder / "maps" / name, array)
    with pytest.raises(ValueError, match=message):
        read_exemplars(folder)


def test_folders_without_exemplars_say_what_is_missing(folder, tmp_path):
    (folder / "maps" / "masks.npy").unlink()
    with pytest.raises(FileNotFoundError, match="masks.npy"):
        read_exemplars(folder)
    with pytest.raises(FileNotFoundError, match="images.npy"):
        read_exemplars(tmp_path / "nothing")


def test_training_holds_the_last_network_out(recording, encoder):
    network = recording_examples(recording, annotations(("maps", 0, "red things"), ("maps", 1, "green things")), encoder, regions=4)
    strange = network[0], [["never read"], ["words"]]
    captioner, losses = train_by_network([network, strange], encoder, hidden=8, embedding=4, epochs=2, regions=3, device="cpu")
    assert "red" in captioner.words and "never" not in captioner.words and len(losses[0]) == 2
    assert captioner.encoder == encoder.learnt
    with pytest.raises(ValueError, match="at least two"):
        train_by_network([network], encoder)


def test_the_key_of_its_features_can_be_told_in_any_run():
    with hashed_once():
        inside = content_key(region_features)
    assert inside == content_key(region_features)
