"""What stands in for people on photographs: words that WordNet gives, labels that a network predicts, masks of whole images, phrases, a region captioner; every method runs on them and says so."""
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import neuronbench as nb
from neuronbench.describe.method import METHODS
from neuronbench.embedded import photographs, wordnet
from neuronbench.embedded.photographs import Photographs, Views, class_names, lite_encoder, photograph_tools
from neuronbench.embedded.predicted import ClassProbabilities, Windows, captioner_of_photographs, folder_labels, predicted_labels, telling_words, word_examples, word_truths
from neuronbench.embedded.wordnet import CLASSES, class_phrases, definition_phrases, kinds, synsets
from neuronbench.foundation.interfaces import Later, StandIn, stand_ins, standing_in
from neuronbench.probe.annotations import annotations_from_labels

TAKEN = ("cat", "coffee", "rocket", "text", "coins")


def views(half, each):
    """So many views of one half of each of five photographs."""
    images = nb.ProbingSet.from_dataset(Views(half))
    return images.chosen(place for name in TAKEN for place in [place for place, id in enumerate(images.ids) if id.startswith(f"{name}/")][:each])


@pytest.fixture(scope="module")
def known():
    return Photographs(views("left", 6), views("right", 3), layers=("bn2", "classifier"))


@pytest.fixture(scope="module")
def bench(known):
    tools = photograph_tools(known)
    return nb.Workbench(known.target, known.images, concept_labels=tools.pop("labels"), **tools)


@pytest.fixture(scope="module")
def some_probabilities():
    """Of four classes, ten images: five of the first, three of the second or third, two of the fourth."""
    return np.array([[0.9, 0.1, 0, 0]] * 5 + [[0, 0.4, 0.4, 0.2]] * 3 + [[0, 0, 0.2, 0.8]] * 2)


# words


def test_the_classes_are_those_of_the_network_in_their_order():
    first = [entry.names for entry in list(synsets().values())[:CLASSES]]
    same = sum(any(name.lower() == other.lower() for other in names) for name, names in zip(class_names(), first))
    assert same > 900 and class_names()[207] == "golden retriever" and "golden retriever" in first[207]


def test_kinds_are_wordnets():
    words = kinds()
    assert words["dog"] == tuple(range(151, 269)) and set(words["hound"]) < set(words["dog"]) < set(words["animal"])
    assert all(1 < len(classes) <= CLASSES / 2 for classes in words.values()) and len(set(words.values())) == len(words)
    assert not {"entity", "object", "whole", "placental", "causal agent", "drug of abuse"} & set(words)


def test_wordnets_licence_is_beside_its_file():
    assert "Princeton University" in (wordnet.WORDNET / "LICENSE").read_text() and "hypernyms.csv" in (wordnet.WORDNET / "SOURCE.md").read_text()


@pytest.mark.parametrize("definition, phrases", [
    ("large domed structure of North America; has a red roof and white walls", ("large domed structure", "red roof", "white walls")),
    ("black-and-white bird", ("black-and-white bird",)), ("any of several breeds", ()), ("", ())])
def test_phrases_of_a_definition(definition, phrases):
    assert definition_phrases(definition) == phrases


def test_every_class_has_phrases():
    phrases = class_phrases(class_names())
    assert set(phrases) == set(class_names()) and all(phrases.values()) and "cat" in phrases["tabby"]
    with pytest.raises(ValueError, match="2 names: expected those of ImageNet's 1000 classes"):
        class_phrases(["cat", "dog"])


# labels


def test_a_word_is_true_where_its_classes_sum_to_more_than_one_half(some_probabilities):
    truths = word_truths(some_probabilities, {"first": [0], "middle": [1, 2], "second": [1]})
    assert truths["first"].tolist() == [True] * 5 + [False] * 5
    assert truths["middle"].tolist() == [False] * 5 + [True] * 3 + [False] * 2 and not truths["second"].any()


def test_words_that_tell_nothing_are_left_out(some_probabilities):
    truths = word_truths(some_probabilities, {"wide": [0, 1], "first": [0], "all": [0, 1, 2, 3], "fourth": [3]})
    assert telling_words(truths, 2).columns.tolist() == ["first", "fourth"]  # wide is true of the same images as first
    assert telling_words(truths, 5).columns.tolist() == ["first"]


def test_no_word_that_tells_images_apart_is_refused(some_probabilities):
    with pytest.raises(ValueError, match=r"none of 1 words is true of at least 6 of the 10 photographs and untrue of as many: .*Workbench\(concept_labels=...\)"):
        telling_words(word_truths(some_probabilities, {"first": [0]}), 6)


def test_photographs_all_of_one_class_are_refused_when_labels_are_needed(known):
    cats = views("left", 6).chosen(range(6))
    one = Photographs(cats, known.gallery_images)
    one.clip = known.clip
    bench = nb.Workbench(known.target, cats, concept_labels=Later(lambda: one.labels), annotations=Later(lambda: one.annotations))
    for method in ("invert", "network-dissection"):
        with pytest.raises(ValueError, match=r"none of [\d,]+ words is true of at least 5 of the 6 photographs and untrue of as many"):
            bench.method(method)


def test_folders_come_before_predictions(some_probabilities):
    images = nb.ProbingSet.from_images([Image.new("RGB", (8, 8), (place, 0, 0)) for place in range(10)], ["boat"] * 2 + ["first"] * 3 + ["boat"] * 5)
    table = predicted_labels(images, some_probabilities, ["first", "second", "third", "fourth"], {"middle": [1, 2]}, "a network", 2)
    assert table["first"].tolist() == folder_labels(images)["first"].tolist() == [False] * 2 + [True] * 3 + [False] * 5
    assert table.attrs["categories"] == {"kind": ["middle"], "class": ["fourth"], "folder": ["boat", "first"]}
    [said] = stand_ins([table])
    assert said.name == "predicted labels" and "what a network predicts stands in for labels of people: 4 words" in said.sentence


def test_probabilities_are_kept_and_those_of_the_network(known, monkeypatch):
    target = known.clip.target
    images = views("left", 1)
    probabilities = ClassProbabilities(target)(images, progress=False)
    assert probabilities.shape == (5, 1000) and np.allclose(probabilities.sum(1), 1, atol=1e-4)
    assert target.classes[probabilities[1].argmax()] == "espresso"
    monkeypatch.setattr(ClassProbabilities, "_scored", None)  # it is not asked again
    assert np.array_equal(ClassProbabilities(target)(images, progress=False), probabilities)


# masks


def test_a_label_is_a_mask_of_the_whole_image():
    images = nb.ProbingSet.from_images([Image.new("RGB", size) for size in ((40, 30), (30, 90))])
    said = StandIn("predicted labels", "a network")
    labels = standing_in(pd.DataFrame({"boat": [True, False], "night": [True, True]}), said)
    whole = annotations_from_labels(images, labels, {"thing": ["boat"], "time": ["night"]})
    assert stand_ins([whole]) == [said] and whole.mask_size == (28, 28)
    assert whole[0][1]["thing"]["boat"].all() and whole[1][1]["thing"] == {} and whole[1][1]["time"]["night"].all()
    assert whole.fingerprint != annotations_from_labels(images, ~labels, {"thing": ["boat"], "time": ["night"]}).fingerprint


@pytest.mark.parametrize("labels, categories, error, message", [
    (pd.DataFrame({"boat": [True]}), {"thing": ["boat"]}, ValueError, "1 rows of labels for 2 images"),
    (pd.DataFrame({"boat": [1, 0]}), {"thing": ["boat"]}, TypeError, "other values than False and True"),
    (pd.DataFrame({"boat": [True, False]}), {"thing": ["boot"]}, KeyError, "did you mean 'boat'")])
def test_labels_that_do_not_fit_are_refused(labels, categories, error, message):
    images = nb.ProbingSet.from_images([Image.new("RGB", (8, 8))] * 2)
    with pytest.raises(error, match=message):
        annotations_from_labels(images, labels, categories)


# regions


def test_windows_are_the_whole_and_its_parts(known):
    windows = Windows(known.gallery_images, known.target)
    assert len(windows) == 5 * len(known.gallery_images) and windows.mask(5).all() and not windows.mask(6).all()
    side = windows[5].size[0]
    assert windows[6].size == (round(0.6 * side),) * 2 and np.array_equal(np.asarray(windows[6]), np.asarray(windows[5].crop((0, 0, *windows[6].size))))


def test_examples_are_regions_of_their_word():
    features = np.arange(20, dtype=np.float32)[:, None]
    truths = pd.DataFrame({"low": np.arange(20) < 12, "high": np.arange(20) >= 17, "rare": np.arange(20) == 3})
    values, texts = word_examples(features, truths)
    assert texts == [["low"], ["low"], ["high"]] and values.shape == (3, 15, 1) and values[:2].max() < 12 and values[2].min() >= 17
    with pytest.raises(ValueError, match="none of 1 words is true of 3 of the 20 regions"):
        word_examples(features, truths[["rare"]])


def test_a_captioner_learns_the_words_of_other_photographs_once(known, monkeypatch):
    words, encoder = {"cat": [281, 282, 285], "coffee": [967, 504, 968, 969]}, lite_encoder(0)
    captioner = captioner_of_photographs(known.gallery_images, known.clip.target, words, encoder, epochs=3)
    monkeypatch.setattr("neuronbench.embedded.predicted.train_region_captioner", None)  # it is not trained again
    again = captioner_of_photographs(known.gallery_images, known.clip.target, words, encoder, epochs=3)
    assert captioner.fingerprint == again.fingerprint and set(captioner.words) >= {"cat", "coffee"} and captioner.encoder == encoder.learnt
    assert stand_ins([captioner])[0].sentence == "a captioner trained on the class names of 15 photographs, which a network gave, stands in for MILAN's, which learnt from people; it says little, and that roughly"


# the bench


def test_nothing_is_missing_and_nothing_is_made_before_it_is_needed(bench, known, monkeypatch):
    monkeypatch.setattr(photographs, "predicted_labels", None)
    fresh = photograph_tools(Photographs(known.images, known.gallery_images))
    assert {need for need, value in fresh.items() if isinstance(value, Later)} == {"labels", "annotations", "vocabulary", "region_captioner", "region_encoder"}
    assert set(bench.methods().missing) == {""}


def test_the_bench_says_what_stood_in(bench):
    said = bench.stood_in.set_index("need").stands_in
    assert said.to_dict() == {"annotations": "predicted labels", "captions": "class names", "captioner": "concepts", "chat": said["chat"], "clip": "ConSE", "labels": "predicted labels",
                              "painter": "gallery", "region_captioner": "class names", "vocabulary": "definitions"}


SAYS = {"clip-dissect": "(ConSE)", "compositional": "(predicted labels)", "falcon": "(ConSE, class names)", "invert": "(predicted labels)", "milan": "(class names)",
        "network-dissection": "(predicted labels)", "patch-vocabulary": "(ConSE, definitions)"}


def unsaturated(recording):
    """Two units that exceed their thresholds: the layer's activations end at 6, and one that is often at 6 exceeds none."""
    return np.flatnonzero((recording.quantile("bn2", 0.995) < 5.9) & (recording.quantile("bn2", 0.99) > 0))[:2].tolist()


@pytest.mark.parametrize("method", sorted({*SAYS, "describe-and-dissect"}))
def test_every_method_runs_and_says_what_stood_in(bench, method):
    """Fifteen photographs are too few for a captioner to say much: a unit that it does not describe has a reason."""
    table = bench.describe("bn2", method, units=unsaturated(bench.recording))
    reasons = {failure["unit"]: failure["reason"] for failure in table.attrs["failures"]}
    assert table.unit.nunique() == 2 and set(table.unit[table.description.isna()]) == set(reasons) and (method == "milan" or not reasons)
    assert table.method.str.endswith(SAYS.get(method, ")")).all(), table.method[0]


def test_no_method_is_forgotten():
    assert {*SAYS, "describe-and-dissect"} <= set(METHODS)


def test_what_invert_says_of_a_cat_and_a_coffee(bench):
    units = [bench.target.classes.index(name) for name in ("espresso", "tabby")]
    coffee, cat = bench.describe("classifier", "invert", units=units).drop_duplicates("unit").description
    assert ("coffee" in coffee or "espresso" in coffee) and "cat" in cat
