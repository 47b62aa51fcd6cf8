"""Annotations: from functions, arrays and Broden's folder; partly annotated categories; everything that does not fit; the world's masks."""

import csv

import numpy as np
import pytest
from given_maps import CATEGORIES, number_picture, random_case, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import neuronbench as nb
from neuronbench.embedded.drawing.annotations import scene_annotations
from neuronbench.embedded.drawing.rendering import Scenes
from neuronbench.embedded.drawing.scenes import CATEGORIES as WORLD_CATEGORIES
from neuronbench.probe.annotations import Annotations, annotations_from_arrays, annotations_from_broden
from neuronbench.probe.images import BadImage
from neuronbench.probe.masks import Annotated, ConceptMasks, Segmented, mask_batches, packed

WHOLE = np.ones((8, 12), bool)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


def pictures(count, size=(12, 8)):
    return nb.ProbingSet.from_images([number_picture(number, size) for number in range(count)])


# functions

def test_an_item_is_an_image_and_its_masks_by_category():
    annotations = Annotations(pictures(2), lambda position: {"object": {"boat": WHOLE}} if position else {}, {"object": ["boat", "cat"]})
    image, masks = annotations[1]
    assert image.getpixel((0, 0)) == (1, 0, 0) and list(masks) == ["object"] and masks["object"]["boat"].all()
    assert annotations[0][1] == {} and len(annotations) == 2 and "object (2 concepts)" in repr(annotations)


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"objects": {"boat": WHOLE}}, KeyError, "did you mean 'object'"),
        ({"object": {"boot": WHOLE}}, KeyError, "image '0'.*did you mean 'boat'"),
        ({"object": {"boat": WHOLE.astype(int)}}, TypeError, r"image '0', concept 'boat': a mask is a boolean array \(H, W\), not int64"),
        ({"object": {"boat": WHOLE[None]}}, TypeError, r"not bool of shape \(1, 8, 12\)"),
        ({"object": {"boat": [[True]]}}, TypeError, "not list"),
        ({"object": {"boat": WHOLE.T}}, ValueError, "the mask is 8 x 12 pixels, the image 12 x 8: expected the same proportions"),
        ({"object": {"boat": WHOLE, "cat": WHOLE[::2, ::2]}}, ValueError, "masks of 2 sizes"),
    ],
)
def test_masks_that_do_not_fit_are_refused_in_one_sentence(given, error, message):
    with pytest.raises(error, match=message) as raised:
        Annotations(pictures(1), lambda position: given, {"object": ["boat", "cat"]})[0]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("categories", [{}, {"object": []}, {"object": ["boat", "boat"]}])
def test_categories_need_concepts_each_once(categories):
    with pytest.raises(ValueError, match="at least one"):
        Annotations(pictures(1), dict, categories)


@pytest.mark.parametrize("scale", [0.5, 1, 2.5])
def test_masks_may_be_scaled_as_a_whole(scale):
    mask = np.ones((round(8 * scale), round(12 * scale)), bool)
    annotations = Annotations(pictures(1), lambda position: {"object": {"boat": mask}}, {"object": ["boat"]})
    assert annotations[0][1]["object"]["boat"].shape == mask.shape


# arrays

def test_arrays_give_back_their_masks_where_annotated():
    _, masks, annotated = random_case(0)
    annotations = annotations_from_arrays(pictures(40), masks, CATEGORIES, annotated)
    for position in range(40):
        _, found = annotations[position]
        assert set(found) == {name for name in CATEGORIES if annotated[name][position]}
        for category, concepts in CATEGORIES.items():
            for concept, mask in zip(concepts, masks[category][position]):
                assert np.array_equal(found.get(category, {}).get(concept, np.zeros_like(mask)), mask)


def test_arrays_may_be_mapped_from_a_file(tmp_path):
    np.save(tmp_path / "masks.npy", np.ones((3, 1, 8, 12), bool))
    annotations = annotations_from_arrays(pictures(3), {"object": np.load(tmp_path / "masks.npy", mmap_mode="r")}, {"object": ["boat"]})
    assert annotations[2][1]["object"]["boat"].all() and len(annotations.fingerprint) == 32


def test_another_number_of_masks_than_images_is_refused():
    masks = {"object": np.ones((4, 1, 8, 12), bool)}
    with pytest.raises(ValueError, match=r"shape \(4, 1, 8, 12\): expected 5 images x 1 concepts"):
        annotations_from_arrays(pictures(5), masks, {"object": ["boat"]})
    with pytest.raises(ValueError, match="expected 4 images x 2 concepts"):
        annotations_from_arrays(pictures(4), masks, {"object": ["boat", "cat"]})
    with pytest.raises(ValueError, match="expected bool, one for each of 4 images"):
        annotations_from_arrays(pictures(4), masks, {"object": ["boat"]}, {"object": np.ones(3, bool)})
    with pytest.raises(TypeError, match="float64: expected bool"):
        annotations_from_arrays(pictures(4), {"object": np.ones((4, 1, 8, 12))}, {"object": ["boat"]})
    with pytest.raises(KeyError, match="did you mean 'object'"):
        annotations_from_arrays(pictures(4), {"objects": masks["object"]}, {"object": ["boat"]})


def test_fingerprint_knows_pixels_categories_and_what_is_annotated():
    masks = {"object": np.ones((4, 1, 8, 12), bool)}
    changed = {"object": masks["object"].copy()}
    changed["object"][3, 0, 0, 0] = False
    some = {"object": np.arange(4) > 0}
    made = [(masks, "boat", None), (changed, "boat", None), (masks, "cat", None), (masks, "boat", some)]
    prints = [annotations_from_arrays(pictures(4), of, {"object": [name]}, known).fingerprint for of, name, known in made]
    assert len(set(prints)) == 4 and prints[0] == annotations_from_arrays(pictures(4), masks, {"object": ["boat"]}).fingerprint


# Broden

def write_broden(folder, rows, size=(6, 5), labels=None):
    """A folder in Broden's layout. `rows`: {category: list of label maps (h, w), whole numbers or nothing} per image; `labels` {category: {number: name}}."""
    labels = labels or {"object": {1: "boat", 300: "sail"}, "scene": {4: "sea-s", 65535: "room-s"}}
    (folder / "images").mkdir(parents=True)
    write_csv(folder / "category.csv", [["name", "first", "last", "count", "frequency"], *([name, 0, 0, 0, 0] for name in labels)])
    for name, of in labels.items():
        write_csv(folder / f"c_{name}.csv", [["code", "number", "name", "frequency", "coverage"], *([code, *pair, 0, 0] for code, pair in enumerate(of.items(), 1))])
    index = [["image", "split", "ih", "iw", "sh", "sw", *labels]]
    for number, row in enumerate(rows):
        number_picture(number, (2 * size[0], 2 * size[1])).save(folder / "images" / f"{number}.png")
        index.append([f"{number}.png", "val" if number % 2 else "train", 2 * size[1], 2 * size[0], size[1], size[0],
                      *(cell(folder / "images", f"{number}_{name}", row.get(name, ())) for name in labels)])
    write_csv(folder / "index.csv", index)
    return folder


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def cell(folder, name, entries):
    names = []
    for number, entry in enumerate(entries):
        if not np.isscalar(entry):
            pixels = np.stack([entry % 256, entry // 256, np.full_like(entry, 7)], 2).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{number}.png")
            entry = f"{name}_{number}.png"
        names.append(str(entry))
    return ";".join(names)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_broden_is_read_as_it_was_written(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    planes = [rng.choice([0, 1, 300], (5, 6)) for _ in range(3)]
    rows = [{"object": planes[:2], "scene": [4]}, {"object": planes[2:]}, {"scene": [4, 65535]}, {}]
    annotations = annotations_from_broden(write_broden(tmp_path_factory.mktemp("broden"), rows))
    assert annotations.categories == {"object": ("boat", "sail"), "scene": ("sea-s", "room-s")}
    first, second, third, last = (annotations[position][1] for position in range(4))
    for name, number in (("boat", 1), ("sail", 300)):
        assert np.array_equal(first["object"].get(name, np.zeros((5, 6), bool)), (planes[0] == number) | (planes[1] == number))
        assert np.array_equal(second["object"].get(name, np.zeros((5, 6), bool)), planes[2] == number)
    assert first["scene"]["sea-s"].all() and list(first["scene"]) == ["sea-s"]
    assert "scene" not in second and "object" not in third and list(third["scene"]) == ["sea-s", "room-s"] and last == {}
    assert annotations.images.ids == ["0.png", "1.png", "2.png", "3.png"] and annotations.images[1].getpixel((0, 0)) == (1, 0, 0)


def test_categories_and_split_of_broden_can_be_chosen(tmp_path):
    folder = write_broden(tmp_path / "b", [{"scene": [4]}, {"scene": [65535], "object": [1]}, {"scene": [4]}])
    annotations = annotations_from_broden(folder, ["scene"], "val")
    assert annotations.images.ids == ["1.png"] and list(annotations[0][1]) == ["scene"]
    with pytest.raises(KeyError, match="did you mean 'scene'"):
        annotations_from_broden(folder, ["scenes"])
    with pytest.raises(KeyError, match="did you mean 'train'"):
        annotations_from_broden(folder, split="training")


def test_fingerprint_of_broden_follows_its_masks(tmp_path):
    folder = write_broden(tmp_path / "b", [{"object": [np.ones((5, 6), int)]}])
    before = annotations_from_broden(folder).fingerprint
    assert annotations_from_broden(folder).fingerprint == before
    cell(folder / "images", "0_object", [np.zeros((5, 6), int)])
    assert annotations_from_broden(folder).fingerprint != before


def broken(folder, name):
    return {
        "table": lambda: (folder / "c_object.csv").unlink(),
        "index": lambda: (folder / "index.csv").unlink(),
        "column": lambda: (folder / "index.csv").write_text("image,split,sh,sw,object\n"),
        "empty": lambda: (folder / "index.csv").write_text("image,split,sh,sw,object,scene\n"),
        "mask": lambda: (folder / "images" / "0_object_0.png").unlink(),
        "cut": lambda: (folder / "images" / "0_object_0.png").write_bytes((folder / "images" / "0_object_0.png").read_bytes()[:45]),
        "size": lambda: Image.new("RGB", (6, 4)).save(folder / "images" / "0_object_0.png"),
        "grey": lambda: Image.new("L", (6, 5)).save(folder / "images" / "0_object_0.png"),
        "number": lambda: (folder / "c_object.csv").write_text("code,number,name\n1,one,boat\n"),
        "height": lambda: (folder / "index.csv").write_text((folder / "index.csv").read_text().replace(",5,6,", ",,6,")),
        "label": lambda: cell(folder / "images", "0_object", [np.full((5, 6), 2)]),
    }[name]()


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("table", FileNotFoundError, "no file 'c_object.csv'"),
        ("index", FileNotFoundError, "no file 'index.csv'"),
        ("column", ValueError, "has no column 'scene'; it has image, split"),
        ("empty", ValueError, "lists no images"),
        ("mask", OSError, "the mask '0_object_0.png' .* no such file"),
        ("cut", OSError, "the mask '0_object_0.png' .* cannot be read"),
        ("size", ValueError, "is RGB, 6 x 4 pixels: expected RGB, 6 x 5"),
        ("grey", ValueError, "is L, 6 x 5 pixels: expected RGB"),
        ("number", ValueError, "c_object.csv has 'one' in the column 'number': expected a whole number"),
        ("height", ValueError, "index.csv has '' in the column 'sh': expected a whole number"),
        ("label", ValueError, "image '0.png' has label 2 in '0_object_0.png', which c_object.csv does not list"),
    ],
)
def test_a_damaged_broden_folder_is_refused_in_one_sentence(tmp_path, name, error, message):
    folder = write_broden(tmp_path / "b", [{"object": [np.ones((5, 6), int)]}])
    broken(folder, name)
    with pytest.raises(error, match=f"(?i){message}") as raised:
        annotations_from_broden(folder)[0]
    assert "\n" not in str(raised.value)


def test_a_missing_image_of_broden_is_a_bad_image(tmp_path):
    folder = write_broden(tmp_path / "b", [{"scene": [4]}, {"scene": [4]}])
    (folder / "images" / "1.png").unlink()
    with pytest.raises(BadImage, match="no such file"):
        annotations_from_broden(folder)[1]


# the world

def test_the_worlds_masks_by_category():
    scenes = Scenes.random(4, 11)
    annotations = scene_annotations(scenes)
    for position in range(4):
        image, masks = annotations[position]
        drawn = scenes.masks(position)
        assert list(masks) == list(WORLD_CATEGORIES) and image.size == (128, 128)
        assert {concept: mask.sum() for of in masks.values() for concept, mask in of.items()} == {concept: mask.sum() for concept, mask in drawn.items()}
    assert annotations.fingerprint == scene_annotations(Scenes.random(4, 11)).fingerprint != scene_annotations(Scenes.random(4, 12)).fingerprint


# one pass

def test_masks_come_with_maps_once_for_each_image_and_only_what_the_network_sees():
    maps, _, _ = random_case(0, images=70)
    recording, asked = recorded(maps, size=(24, 16)), []

    def masks_of(position):
        asked.append(position)
        left_half = np.zeros((8, 12), bool)
        left_half[:, :6] = True
        return {"object": {"boat": left_half}}

    source = Annotated(Annotations(recording.images, masks_of, {"object": ["boat"]}))
    batches = list(mask_batches(recording, "table", source, progress=False))
    assert [position for numbers, _, _ in batches for position in numbers] == list(range(70)) and len(batches[0][0]) == 64
    assert sorted(asked) == [0, *range(70)]  # the first once more, for the size
    seen = np.concatenate([of.numpy() for _, of, _ in batches])
    assert np.allclose(seen, maps.astype(np.float32))
    assert all(np.array_equal(one.masks[0], masks_of(0)["object"]["boat"]) for _, _, found in batches for one in found)


def test_masks_are_cut_to_what_preprocessing_keeps():
    left_half = np.zeros((8, 12), bool)
    left_half[:, :6] = True
    source = Annotated(Annotations(pictures(1, (24, 16)), lambda position: {"object": {"boat": left_half}}, {"object": ["boat"]}))
    found = source.within(0, source.annotations.images[0], (4, 0, 20, 16))
    assert found.masks.shape == (1, 8, 12) and np.array_equal(found.masks[0], left_half)
    found = source.within(0, source.annotations.images[0], (0, 0, 12, 16))
    assert found.masks.all()
    found = source.within(0, source.annotations.images[0], (12, 0, 24, 16))
    assert len(found.masks) == 0 and found.annotated.all()


class Everywhere:
    """A segmenter that sees its one concept in every pixel."""

    categories, fingerprint = {"object": ["boat"]}, "everywhere"

    def segment(self, images):
        return np.ones((len(images), 1, 8, 8), bool)


def test_what_lies_beyond_an_image_has_no_concept():
    [image] = pictures(1, (16, 16))
    whole = Annotated(Annotations(pictures(1, (16, 16)), lambda position: {"object": {"boat": np.ones((8, 8), bool)}}, {"object": ["boat"]}))
    segmented = Segmented(Everywhere())
    for box, rows, columns in (((0, -4, 16, 20), slice(1, 7), slice(None)), ((-16, 0, 16, 32), slice(0, 4), slice(4, 8))):
        expected = np.zeros((8, 8), bool)
        expected[rows, columns] = True
        [found] = segmented.concept_masks([segmented.within(0, image, box)])
        assert np.array_equal(found.masks[0], expected) and np.array_equal(whole.within(0, image, box).masks[0], expected)
    [found] = segmented.concept_masks([segmented.within(0, image, (16, 0, 32, 16))])
    assert found.masks.shape == (0, 8, 8) and found.annotated.all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_packed_masks_have_the_same_pixels(seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((rng.integers(0, 4), rng.integers(0, 20), rng.integers(1, 20))) < 0.5
    bits = packed(masks)
    assert (np.bitwise_count(bits).sum(1) == masks.sum((1, 2))).all()
    if len(masks) > 1:
        assert np.bitwise_count(bits[0] & bits[1]).sum() == (masks[0] & masks[1]).sum()


def test_only_concepts_with_a_pixel_are_kept():
    found = ConceptMasks.of({"object": {"boat": ~WHOLE, "cat": WHOLE}, "scene": {}}, CATEGORIES, (8, 12))
    assert found.concepts.tolist() == [1] and found.annotated.tolist() == [True, False, True] and found.masks.shape == (1, 8, 12)
