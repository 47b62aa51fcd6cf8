"""Network Dissection: IoU against a direct loop over images, units and concepts; partly annotated categories; units and masks that say nothing."""

import numpy as np
import pandas as pd
import pytest
import torch
from given_maps import CATEGORIES, annotated_case, random_case, recorded, upsampled
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

import neuronbench as nb
from neuronbench.describe.network_dissection import NetworkDissection, detectors, plot_detectors
from neuronbench.probe.annotations import Annotations, annotations_from_arrays
from neuronbench.probe.masks import unit_masks

NAMES = [name for names in CATEGORIES.values() for name in names]
OF = [category for category, names in CATEGORIES.items() for _ in names]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


def direct_ious(maps, masks, annotated, thresholds):
    """(unit, concept): METHODS' definition, one image, unit and concept at a time."""
    both, either = np.zeros((maps.shape[1], len(NAMES))), np.zeros((maps.shape[1], len(NAMES)))
    stacked = np.concatenate(list(masks.values()), axis=1)
    for image, unit in np.ndindex(maps.shape[:2]):
        active = upsampled(maps[image, unit], stacked.shape[2:]) > thresholds[unit]
        for concept, category in enumerate(OF):
            if annotated[category][image]:
                both[unit, concept] += (active & stacked[image, concept]).sum()
                either[unit, concept] += (active | stacked[image, concept]).sum()
    return both / np.maximum(either, 1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_iou_is_that_of_a_direct_loop(seed, partial):
    recording, annotations, maps, masks, annotated = annotated_case(seed, images=25, partial=partial)
    method = NetworkDissection(annotations, share=0.1)
    found = method.explain(recording, recording.images)
    expected = direct_ious(maps.astype("f4"), masks, annotated, recording.quantile("table", 0.9))
    assert np.allclose(found.iou, expected.max(1), atol=2e-3)  # a pixel may fall on either side of the threshold
    for unit in range(len(found)):
        table = method.trace(recording, "table", unit).concepts
        assert np.allclose(table.sort_index().iou, expected[unit], atol=4e-3)  # an upsampled pixel may lie on the threshold
        assert table.concept.iloc[0] == found.concept[unit] and OF[table.index[0]] == found.category[unit]


def letterbox(image):
    """As detectors see an image: padded to a square, and smaller."""
    wide, high = ((max(image.size) - side) // 2 for side in image.size)
    square = v2.functional.pad(v2.functional.to_image(image), [wide, high], fill=99) / 255
    return v2.functional.resize(square, [32, 32], interpolation=v2.InterpolationMode.NEAREST)


def one_by_one(image):
    pixels = v2.functional.to_image(image).float()
    return (pixels - pixels.min()) / (pixels.max() - pixels.min())


def twice_as_large(image):
    return v2.functional.pad(v2.functional.to_image(image) / 255, [0, 0, *image.size])


@pytest.mark.parametrize("preprocess", [letterbox, one_by_one, twice_as_large])
def test_iou_is_one_for_a_unit_that_is_the_concept_whatever_preprocessing_does(preprocess):
    rng = np.random.default_rng(0)
    pixels, masks = np.zeros((30, 32, 64, 3), np.uint8), np.zeros((30, 1, 32, 64), bool)
    for image in range(30):
        top, left = 8 * rng.integers(0, 3), 8 * rng.integers(0, 7)
        masks[image, 0, top : top + 8, left : left + 8] = True
    pixels[masks[:, 0]] = 255
    images = nb.ProbingSet.from_images(list(pixels))
    recording = nb.record(nb.Target(torch.nn.Sequential(torch.nn.Identity()), ["0"], preprocess, device="cpu"), images, progress=False)
    notes = annotations_from_arrays(images, {"object": masks}, {"object": ["square"]})
    assert NetworkDissection(notes, share=0.1).explain(recording, images, {"0": [0]}).iou[0] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_unit_masks_are_those_of_all_maps_upsampled(seed):
    generator = torch.Generator().manual_seed(seed)
    maps, thresholds = torch.rand(6, 3, 5, generator=generator), torch.rand(6, generator=generator) * 1.5
    units, found = unit_masks(maps, thresholds, (9, 20))
    for unit in range(6):
        expected = upsampled(maps[unit].double().numpy(), (9, 20)) > thresholds[unit].item()
        mine = found[units.tolist().index(unit)].numpy() if unit in units else np.zeros((9, 20), bool)
        assert (mine != expected).mean() < 0.02


def planted_case():
    """Units: boat's masks, red's, silent, constant, NaN, and one active only where nothing is; "tree" has no pixel at all. Maps are as large as masks."""
    _, masks, _ = random_case(3, images=30, partial=False)
    masks["object"][:, 2] = False
    for of in masks.values():
        of[:5] = False
    maps = np.zeros((30, 6, 8, 12))
    maps[:, 0], maps[:, 1] = masks["object"][:, 0], masks["colour"][:, 0]
    maps[:, 3], maps[:, 4], maps[:5, 5] = 2.5, np.nan, 1
    return maps, masks


SHARE = 0.7  # more than is ever active in `planted_case`, so that thresholds are 0


def test_units_that_cannot_be_described_have_a_reason_and_the_others_go_on():
    maps, masks = planted_case()
    recording = recorded(maps)
    annotations = annotations_from_arrays(recording.images, masks, CATEGORIES)
    with pytest.warns(UserWarning, match="have no description"):
        found = NetworkDissection(annotations, share=SHARE)(recording, recording.images)
    assert found.description.iloc[:2].tolist() == ["boat", "red"] and found.description.iloc[2:].isna().all()
    assert list(found.columns) == ["layer", "unit", "description", "score", "method"] and set(found.method) == {"Network Dissection"}
    assert [(one["unit"], one["reason"]) for one in found.attrs["failures"]] == [
        (2, "the unit never exceeds its threshold"), (3, "the unit never exceeds its threshold"),
        (4, "the unit is NaN or infinite on some images"), (5, "the unit is nowhere active on an annotated concept")]


@pytest.mark.parametrize("reverse", [False, True])
def test_concepts_that_overlap_equally_are_no_description(reverse):
    maps, masks = planted_case()
    masks["object"][:, 1] = masks["object"][:, 0]
    categories = {name: concepts[::-1] if reverse else concepts for name, concepts in CATEGORIES.items()}
    masks = {name: of[:, ::-1] if reverse else of for name, of in masks.items()}
    recording = recorded(maps[:, :2])
    method = NetworkDissection(annotations_from_arrays(recording.images, masks, categories), share=SHARE)
    found = method(recording, recording.images)
    assert found.description.isna().tolist() == [True, False] and found.description[1] == "red"
    [failure] = found.attrs["failures"]
    assert failure["unit"] == 0 and {"'boat'", "'cat'"} <= set(failure["reason"].split()) and "equally well" in failure["reason"]
    assert method.trace(recording, "table", 0).description is None


def test_a_label_in_two_categories_is_no_tie_with_itself():
    maps, masks = planted_case()
    recording = recorded(maps[:, :1])
    twice = {"object": ("boat",), "part": ("boat",)}
    annotations = annotations_from_arrays(recording.images, {name: masks["object"][:, :1] for name in twice}, twice)
    found = NetworkDissection(annotations, share=SHARE).explain(recording, recording.images)
    assert (found.concept[0], found.category[0]) == ("boat", "object") and found.attrs["failures"] == []


def test_one_image_tells_nothing_two_do_and_the_pooling_ranks_the_exemplars():
    maps, masks = planted_case()
    images = np.flatnonzero(maps[:, :2].any((2, 3)).all(1))[:2]
    for chosen, expected in ((images[:1], [np.nan, np.nan]), (images, [1, 1])):
        recording = recorded(maps[chosen, :2])
        annotations = annotations_from_arrays(recording.images, {name: of[chosen] for name, of in masks.items()}, CATEGORIES)
        found = NetworkDissection(annotations, share=SHARE).explain(recording, recording.images)
        assert np.array_equal(found.iou, expected, equal_nan=True)
        assert {failure["reason"] for failure in found.attrs["failures"]} == ({"there is only one image, so that no image stands out"} if len(chosen) == 1 else set())
    with pytest.raises(KeyError, match="recorded pooling 'max'"):
        NetworkDissection(annotations, share=SHARE, pool="max").trace(recording, "table", 0)


def test_a_concept_without_a_pixel_is_never_the_answer():
    maps, masks = planted_case()
    recording = recorded(maps[:, :2])
    annotations = annotations_from_arrays(recording.images, masks, CATEGORIES)
    table = NetworkDissection(annotations, share=SHARE).trace(recording, "table", 0).concepts
    assert table[table.concept == "tree"].iou.tolist() == [0] and table.concept.iloc[0] == "boat"


def test_a_category_annotated_on_part_of_the_images_counts_only_there():
    maps, masks = planted_case()
    recording = recorded(maps[:, :2])
    some = np.arange(30) % 3 == 0
    masks["object"] &= some[:, None, None, None]
    partly = annotations_from_arrays(recording.images, masks, CATEGORIES, {"object": some})
    wholly = annotations_from_arrays(recording.images, masks, CATEGORIES)
    iou = [NetworkDissection(of, share=SHARE).trace(recording, "table", 0).concepts.iou[0] for of in (partly, wholly)]
    assert iou == [1, masks["object"][:, 0].sum() / maps[:, 0].sum()] and iou[1] < 0.6


def test_images_without_any_annotation_change_nothing():
    maps, masks = planted_case()
    recording = recorded(maps[:, :2])
    none = annotations_from_arrays(recording.images, masks, CATEGORIES, {name: np.zeros(30, bool) for name in CATEGORIES})
    assert NetworkDissection(none).explain(recording, recording.images).concept.isna().all()


def test_a_layer_without_positions_has_one():
    maps, masks = planted_case()
    numbers = np.stack([masks["scene"][:, 0, 0, 0], masks["scene"][:, 1, 0, 0]], axis=1).astype(float)
    recording = recorded(numbers)
    found = NetworkDissection(annotations_from_arrays(recording.images, masks, CATEGORIES), share=0.7).explain(recording, recording.images)
    assert found.concept.tolist() == ["sea", "room"] and found.iou.tolist() == [1, 1] and found.detector.all()


class GivenSegmenter:
    """Gives the masks of the images it is shown, which carry their number."""

    categories, fingerprint = CATEGORIES, "given"

    def __init__(self, masks, answer=lambda masks: masks):
        self.masks, self.answer = np.concatenate(list(masks.values()), axis=1), answer

    def segment(self, images):
        return self.answer(self.masks[[image.getpixel((0, 0))[0] for image in images]])


def test_a_segmenter_that_sees_the_truth_gives_what_annotations_give():
    recording, annotations, _, masks, _ = annotated_case(5, images=80, partial=False)
    by_hand = NetworkDissection(annotations, share=0.1)(recording, recording.images)
    by_model = NetworkDissection(segmenter=GivenSegmenter(masks), share=0.1)(recording, recording.images)
    pd.testing.assert_frame_equal(by_model.drop(columns="method"), by_hand.drop(columns="method"))
    assert set(by_model.method) == {"Network Dissection (segmenter)"}


@pytest.mark.parametrize("answer", [lambda masks: masks[:, 1:], lambda masks: masks[1:], lambda masks: masks.astype(float), lambda masks: masks[:, :, 0]])
def test_a_segmenter_that_breaks_its_promise_is_refused(answer):
    recording, _, _, masks, _ = annotated_case(5, partial=False)
    with pytest.raises(ValueError, match="expected bool, 40 images x 7 concepts x H x W"):
        NetworkDissection(segmenter=GivenSegmenter(masks, answer))(recording, recording.images)


def test_bad_settings_units_and_images_are_refused():
    recording, annotations, _, masks, _ = annotated_case(1)
    for wrong in ({}, {"annotations": annotations, "segmenter": GivenSegmenter(masks)}):
        with pytest.raises(ValueError, match="give one of them"):
            NetworkDissection(**wrong)
    for wrong in ({"share": 0}, {"share": 1}, {"min_iou": 2}):
        with pytest.raises(ValueError, match="expected 0 < share < 1"):
            NetworkDissection(annotations, **wrong)
    method = NetworkDissection(annotations)
    with pytest.raises(KeyError, match="did you mean 'table'"):
        method(recording, recording.images, {"tables": [0]})
    with pytest.raises(ValueError, match="there is no unit 3"):
        method(recording, recording.images, {"table": [3]})
    fewer, other, *_ = annotated_case(1, images=30)
    with pytest.raises(ValueError, match="not the 40 images of the recording"):
        method(recording, fewer.images)
    with pytest.raises(ValueError, match="annotations are of 30 images, the recording of 40"):
        NetworkDissection(other)(recording, recording.images)
    drawn = nb.ProbingSet.from_images([image.rotate(180) for image in map(recording.images.__getitem__, range(39))] + [recording.images[0]])
    with pytest.raises(ValueError, match="other images than the recording"):
        NetworkDissection(Annotations(drawn, lambda position: {}, CATEGORIES))(recording, recording.images)


class Counting:
    """Masks that count how often they are asked for."""

    def __init__(self, masks):
        self.masks, self.asked, self.fingerprint = masks, 0, "counting"

    def __call__(self, position):
        self.asked += 1
        return self.masks(position)


def test_one_pass_serves_all_units_and_later_calls():
    recording, annotations, *_ = annotated_case(2)
    counting = Counting(annotations._masks)
    annotations = Annotations(recording.images, counting, CATEGORIES)
    whole = NetworkDissection(annotations, share=0.1).explain(recording, recording.images)
    asked = counting.asked
    assert 40 < asked < 50  # and the first few for the size
    method = NetworkDissection(annotations, share=0.1, min_iou=0.9)
    some = method.explain(recording, recording.images, {"table": [2, 0]})
    assert counting.asked - asked < 10
    assert some.concept.tolist() == whole.concept[[2, 0]].tolist() and some.iou.tolist() == whole.iou[[2, 0]].tolist()
    assert not some.detector.any() and whole.detector.all()


def test_trace_shows_what_was_compared():
    maps, masks = planted_case()
    recording = recorded(maps[:, :3])
    method = NetworkDissection(annotations_from_arrays(recording.images, masks, CATEGORIES), share=SHARE)
    trace = method.trace(recording, "table", 1)
    assert trace.description == "red" and len(trace.images) == len(trace.active) == 10 and "'red'" in repr(trace)
    for rank, image in enumerate(trace.evidence.image):
        assert np.array_equal(trace.mask(rank, NAMES.index("red")), masks["colour"][image, 0])
        assert np.array_equal(trace.active[rank], upsampled(maps[image, 1], (8, 12)) > trace.threshold)
    figure = trace.plot(3)
    assert len(figure.axes) == 3 and "red" in figure.get_suptitle()
    silent = method.trace(recording, "table", 2)
    assert silent.description is None and "never exceeds" in silent.plot().get_suptitle()


def test_detectors_are_counted_by_category_and_drawn():
    rows = [("a", "boat", "object", 0.2), ("a", "boat", "object", 0.3), ("a", "$red_1$ <b>", "colour", 0.1), ("b", "cat", "object", 0.03), ("b", "cat", "object", 0.5)]
    found = pd.DataFrame(rows, columns=["layer", "concept", "category", "iou"]).assign(detector=lambda table: table.iou > 0.04)
    counts = detectors(found).set_index(["layer", "category"])
    assert counts.loc["a", "object"].tolist() == [2, 1] and counts.loc["a", "colour"].tolist() == [1, 1] and counts.loc["b", "object"].tolist() == [1, 1]
    figure = plot_detectors(found)
    figure.canvas.draw()
    above, below = figure.axes
    assert sorted(bar.get_height() for bar in above.patches) == [1, 2] and len(below.patches) == 1
    assert "$red_1$ <b>" in [label.get_text() for label in above.get_xticklabels()]
    assert len(plot_detectors(found.assign(detector=False)).axes[0].patches) == 0
