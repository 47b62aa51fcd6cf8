"""ConSE: the definition against ten lines of numpy, what is kept, what is refused, and the methods that take it for a CLIP."""
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import neuronbench as nb
from neuronbench.basics import cache_folder
from neuronbench.describe.method import METHODS
from neuronbench.evaluate.ablation import class_accuracy
from neuronbench.evaluate.classifier import nearest_units
from neuronbench.evaluate.faithfulness import Faithfulness
from neuronbench.foundation.captioner import ConceptCaptioner
from neuronbench.foundation.clip import warn_of_concepts
from neuronbench.foundation.conse import ConSE, are_logits, mixed_vectors
from neuronbench.foundation.interfaces import Classifier, ImageTextModel, check_model, stand_ins
from neuronbench.probe.images import BadImage
from neuronbench.probe.target import Target
from neuronbench.words import class_words, readable_classes

CLASSES = ["red brick", "green_grass", "blue sea", "white snow"]
ANCHORS = np.float32([[1, 0.2, 0.2], [0.2, 1, 0.2], [0.2, 0.2, 1], [1, 1, 1]])  # the colours of the classes
MEANINGS = {"red": 0, "brick": 0, "fire": 0, "green": 1, "grass": 1, "leaf": 1, "blue": 2, "sea": 2, "water": 2, "white": 3, "snow": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


class Passes(list):
    """What a network keeps for the test alone."""

    fingerprint = "passes"


class Colours(torch.nn.Module):
    """Logits of four classes by the mean colour of an image; `passes` has the size of each batch."""

    def __init__(self, after=None):
        super().__init__()
        self.maps, self.head, self.after = torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.Identity(), after or torch.nn.Identity()
        self.maps.weight.data = 20 * (torch.from_numpy(ANCHORS) - torch.from_numpy(ANCHORS).mean(1, keepdim=True))[..., None, None] + torch.tensor([0, 0, 0, 2.0]).reshape(4, 1, 1, 1)
        self.passes = Passes()

    def forward(self, batch):
        self.passes.append(len(batch))
        return self.after(self.head(torch.relu(self.maps(batch)).mean((2, 3)) - 1))


class Words:
    """A sentence model of four meanings; `asked` has the texts of each call."""

    def __init__(self, fingerprint="words"):
        self.fingerprint, self.asked = fingerprint, []

    def embed_texts(self, texts, progress=True):
        self.asked += texts
        vectors = np.array([[sum(MEANINGS.get(word) == meaning for word in text.lower().split()) for meaning in range(4)] for text in texts]).reshape(-1, 4) + 0.1
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def to_tensor(image):
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)


def flat(colour, light=1.0, size=(8, 8)):
    return Image.new("RGB", size, tuple(round(255 * light * part) for part in colour))


PICTURES = [flat(colour, light) for light in (0.4, 0.7, 1) for colour in ANCHORS]


def colour_target(after=None, classes=CLASSES, preprocess=to_tensor, **options):
    return Target(Colours(after), ["maps", "head"], preprocess, classes=classes, device="cpu", **options)


def reference(logits, names, count):
    """The definition, one image at a time."""
    rows = []
    for row in np.asarray(logits, np.float64):
        likely = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        best = sorted(range(len(row)), key=lambda place: -likely[place])[:count]
        share = likely[best] / likely[best].sum()
        mixed = sum(part * names[place].astype(np.float64) for part, place in zip(share, best))
        rows.append(mixed / np.sqrt((mixed**2).sum()))
    return np.array(rows)


# the definition


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
def test_vectors_are_what_the_paper_defines(count):
    target, words = colour_target(), Words()
    conse = ConSE(target, words, count)
    names = words.embed_texts(["red brick", "green grass", "blue sea", "white snow"])
    logits = target.class_scores(torch.stack([to_tensor(picture) for picture in PICTURES])).numpy()
    np.testing.assert_allclose(conse.embed_images(PICTURES, progress=False), reference(logits, names, count), atol=1e-6)
    np.testing.assert_array_equal(conse.embed_texts(["a fire", "water"], progress=False), words.embed_texts(["a fire", "water"]))


def test_a_text_that_is_no_class_name_finds_its_images():
    conse = ConSE(colour_target(), Words())
    found = (conse.embed_texts(["fire", "a leaf", "water"]) @ conse.embed_images(PICTURES[-4:]).T).argmax(axis=1)
    assert found.tolist() == [0, 1, 2]


@pytest.mark.parametrize("after", [torch.nn.Softmax(1), torch.nn.LogSoftmax(1)], ids=["probabilities", "their logarithms"])
def test_logits_probabilities_and_their_logarithms_are_the_same(after):
    expected = ConSE(colour_target(), Words()).embed_images(PICTURES)
    np.testing.assert_allclose(ConSE(colour_target(after), Words()).embed_images(PICTURES), expected, atol=1e-5)


def test_indices_order_and_batches_change_nothing():
    whole = ConSE(colour_target(), Words("whole")).embed_images(PICTURES)
    parts = ConSE(colour_target(), Words("parts"))
    np.testing.assert_allclose(parts.embed_images(PICTURES, [7, 0, 7, 3], batch_size=1), whole[[7, 0, 7, 3]], atol=1e-6)
    assert parts.embed_images(PICTURES, []).shape == parts.embed_images([]).shape == parts.embed_texts([]).shape == (0, 4)


def test_images_of_several_sizes_and_modes():
    conse = ConSE(colour_target(), Words())
    mixed = [PICTURES[0], flat(ANCHORS[1], size=(5, 9)), PICTURES[2], Image.new("L", (8, 8), 255), flat(ANCHORS[1], size=(5, 9)).convert("RGBA")]
    assert (conse.embed_images(mixed) @ conse.name_vectors.T).argmax(axis=1).tolist() == [0, 1, 2, 3, 1]


def test_images_of_channels_are_given_as_they_are():
    def from_array(array):
        return torch.from_numpy(np.asarray(array, np.float32)).permute(2, 0, 1)[[4, 0, 2]]

    channels = [np.repeat(np.float32(anchor)[None, None, [1, 0, 2, 0, 0]], 8, 0).repeat(8, 1) for anchor in ANCHORS[:3]]
    images = nb.ProbingSet.from_images(channels)
    conse = ConSE(colour_target(preprocess=from_array), Words())
    assert (conse.embed_images(images) @ conse.name_vectors.T).argmax(axis=1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"does not take an array of shape \(8, 8, 5\), and says TypeError: .*expected a classifier of such arrays, or images of three colours"):
        ConSE(colour_target(preprocess=lambda image: to_tensor(image.resize((8, 8), 0, "no box"))), Words()).embed_images(images)


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_network_of_another_precision(cast):
    expected = ConSE(colour_target(), Words()).embed_images(PICTURES)
    network = Colours(torch.nn.Softmax(1)).to(cast)
    vectors = ConSE(Target(network, ["maps"], to_tensor, classes=CLASSES, device="cpu"), Words()).embed_images(PICTURES)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=0.02)


def test_a_compiled_network_and_one_in_bfloat16():
    expected = ConSE(colour_target(), Words()).embed_images(PICTURES)
    compiled = Target(torch.compile(Colours()), ["maps"], to_tensor, classes=CLASSES, device="cpu")
    np.testing.assert_allclose(ConSE(compiled, Words()).embed_images(PICTURES), expected, atol=1e-5)
    np.testing.assert_allclose(ConSE(colour_target(autocast=True), Words()).embed_images(PICTURES), expected, atol=0.05)


def test_a_network_is_in_eval_mode_and_has_its_flag_back():
    target = colour_target(torch.nn.Dropout(0.9))
    target.model.train()
    expected = ConSE(colour_target(), Words()).embed_images(PICTURES)
    np.testing.assert_allclose(ConSE(target, Words()).embed_images(PICTURES), expected, atol=1e-6)
    assert target.model.training


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (5, 6), elements=st.floats(-60, 60, width=32)), arrays(np.float32, (6, 3), elements=st.floats(0.125, 4, width=32)), st.integers(1, 9))
def test_vectors_have_length_1(logits, names, count):
    names = names / np.linalg.norm(names, axis=1, keepdims=True)
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    vectors = mixed_vectors(likely / likely.sum(axis=1, keepdims=True), names, count)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, reference(logits, names, count), atol=1e-4)


# what is kept


def test_what_was_seen_is_not_seen_again():
    target, words = colour_target(), Words()
    conse = ConSE(target, words)
    first = conse.embed_images(PICTURES[:8])
    assert target.model.passes == [8]
    np.testing.assert_array_equal(conse.embed_images(PICTURES[4:8]), first[4:])
    again = ConSE(target, words).embed_images(PICTURES)
    assert target.model.passes == [8, 4] and np.array_equal(again[:8], first)
    conse.embed_texts(["a leaf", "a leaf", "fire"])
    asked = len(words.asked)
    ConSE(colour_target(torch.nn.Softmax(1)), words).embed_texts(["fire", "a leaf"])
    assert [text for text in words.asked[asked:] if text != "word"] == []


def test_a_probing_set_is_kept_by_content_without_opening_its_images():
    opened, target = [], colour_target()
    images = nb.ProbingSet.from_images(PICTURES)
    conse = ConSE(target, Words())
    first = conse.embed_images(images)
    load, images._load = images._load, lambda index: opened.append(index) or load(index)
    assert np.array_equal(conse.embed_images(images), first) and not opened and len(target.model.passes) == 1


def test_fingerprint_covers_all_that_shapes_a_vector():
    target = colour_target()
    same = [ConSE(target, Words()), ConSE(target, Words(), count=10), ConSE(target.at("head"), Words())]
    assert len({conse.fingerprint for conse in same}) == 1
    others = [ConSE(target, Words(), 3), ConSE(target, Words("others")), ConSE(colour_target(classes=CLASSES[::-1]), Words()),
              ConSE(colour_target(preprocess=lambda image: 1 - to_tensor(image)), Words()), ConSE(colour_target(torch.nn.Softmax(1)), Words()), ConSE(colour_target(autocast=True), Words())]
    assert len({conse.fingerprint for conse in [same[0], *others]}) == 7


def test_a_target_changed_in_place_is_another_one():
    target = Target(Colours(torch.nn.BatchNorm1d(4)), ["maps"], to_tensor, classes=CLASSES, device="cpu")
    conse = ConSE(target, Words())
    seen = [(conse.fingerprint, conse.embed_images(PICTURES[:4]))]
    for change in (lambda: target.model.maps.weight.data.mul_(0.5), lambda: target.model.after.running_mean.add_(torch.tensor([3.0, 0, 0, 0]))):
        change()
        seen.append((conse.fingerprint, conse.embed_images(PICTURES[:4])))
    assert len({fingerprint for fingerprint, _ in seen}) == 3 and target.model.passes == [4, 4, 4]
    assert not np.allclose(seen[0][1], seen[1][1]) and not np.allclose(seen[1][1], seen[2][1])


def test_an_interrupted_run_loses_no_batch():
    class Cut(list):
        def __getitem__(self, place):
            if place == 7:
                raise BadImage("picture 7", "the file is cut off")
            return super().__getitem__(place)

    target = colour_target()
    conse, cut = ConSE(target, Words()), Cut(PICTURES)
    images = nb.ProbingSet(cut.__getitem__, [f"picture {number}" for number in range(12)], lambda: "pictures")
    with pytest.raises(BadImage, match="the file is cut off"):
        conse.embed_images(images, batch_size=4)
    assert target.model.passes == [4]
    conse.embed_images(images, [*range(7), *range(8, 12)], batch_size=4)
    assert sum(target.model.passes) == 11


def test_a_bad_image_is_raised_by_its_name():
    def read(place):
        raise BadImage("photo.png", "no picture")

    with pytest.raises(BadImage, match="photo.png"):
        ConSE(colour_target(), Words()).embed_images(nb.ProbingSet(read, ["photo.png"], lambda: "one"))


def test_damaged_vectors_are_made_anew():
    target = colour_target()
    conse = ConSE(target, Words())
    first = conse.embed_images(PICTURES)
    (cache_folder("conse") / f"{conse.fingerprint}.sqlite").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        assert np.array_equal(conse.embed_images(PICTURES), first)
    assert target.model.passes == [12, 12]


# what is refused


@pytest.mark.parametrize("classes", [None, []])
def test_a_classifier_without_class_names(classes):
    with pytest.raises(ValueError, match=r"made of class names, and this target has none: give Target\(..., classes=\[...\]\)"):
        ConSE(colour_target(classes=classes), Words())


@pytest.mark.parametrize("name", ["3", "LABEL_0", "class_3", "Class 12", "n12345678", "id-7", "", "  ", "?", "12.5"])
def test_names_without_words(name):
    with pytest.raises(ValueError, match="1 of 4 class names have no meaning in words, such as .*: expected names such as 'tabby cat', or WordNet ids of ImageNet's classes"):
        ConSE(colour_target(classes=[*CLASSES[:3], name]), Words())


def test_wordnet_ids_of_imagenet_are_its_names():
    ids = ["n01440764", "n02085936", "n02012849", "n03126707"]
    assert ConSE(colour_target(classes=ids), Words()).names == ["tench", "Maltese dog", "crane bird", "crane"]
    assert class_words(["n12345678", "7", "tiger_shark"]) == ["n12345678", "7", "tiger shark"]


def test_imagenets_names_are_all_different_and_those_of_torchvision():
    from timm.data import ImageNetInfo
    from torchvision.models import get_model_weights

    names = get_model_weights("resnet18").DEFAULT.meta["categories"]
    assert [name.lower() for name in readable_classes(ImageNetInfo().label_names())] == [name.lower() for name in names] and len(set(names)) == 1000


def test_names_are_cleaned():
    names = ConSE(colour_target(classes=["<b>red</b>", "green\u200b_grass", "blue\tsea", "$x$"]), Words()).names
    assert names[0] == "<b>red</b>" and not any(set("\u200b\t_") & set(name) for name in names)


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one(count):
    with pytest.raises(ValueError, match=f"count is {count}: expected .* at least 1"):
        ConSE(colour_target(), Words(), count)


@pytest.mark.parametrize("given", [Colours(), "resnet50", Words()], ids=["a network", "a name", "a sentence model"])
def test_what_is_no_classifier(given):
    with pytest.raises(TypeError, match=r"(?s)^target is .*, which cannot class_scores\(\): expected a model such as nb.Target"):
        ConSE(given, Words())


@pytest.mark.parametrize("given", [None, "all-MiniLM", colour_target()], ids=["nothing", "a name", "a target"])
def test_what_is_no_sentence_model(given):
    with pytest.raises(TypeError, match=r"^sentences is .*, which cannot embed_texts\(\): expected a model such as nb.Sentences"):
        ConSE(colour_target(), given)


def test_another_number_of_scores_than_classes():
    with pytest.raises(ValueError, match="the classifier has 3 class names, but gives 4 scores: expected one for each"):
        ConSE(colour_target(classes=CLASSES[:3]), Words()).embed_images(PICTURES)


def test_a_network_that_is_no_classifier():
    target = Target(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)), ["0"], to_tensor, classes=CLASSES, device="cpu")
    with pytest.raises(ValueError, match="expected class scores"):
        ConSE(target, Words()).embed_images(PICTURES)


def test_scores_of_several_classes_at_once():
    with pytest.raises(ValueError, match=r"between 0 and 1 and sum to \d.\d\d, not to 1: .*several classes at once; if they are logits, put torch.nn.LogSoftmax"):
        ConSE(colour_target(torch.nn.Sigmoid()), Words()).embed_images(PICTURES)


class Damaged(torch.nn.Module):
    def forward(self, scores):
        return torch.where(scores > 3, torch.inf, scores)


def test_scores_that_are_not_finite():
    with pytest.raises(ValueError, match="scores that are not finite"):
        ConSE(colour_target(Damaged()), Words()).embed_images(PICTURES)


def test_logits_that_look_like_nothing_are_known_once_others_were_seen():
    target = Target(Colours(), ["maps"], to_tensor, classes=CLASSES, device="cpu")
    dull = [flat((0.07, 0.08, 0.09))]
    scores = target.class_scores(torch.stack([to_tensor(dull[0])]) * 0 + 0.5).numpy()
    assert are_logits(np.float32([[-3, 2]])) and not are_logits(np.float32([[0.25, 0.75]]))
    with pytest.raises(ValueError, match="sum to 0.70"):
        are_logits(np.float32([[0.3, 0.4]]))
    conse = ConSE(target, Words())
    conse.embed_images(PICTURES)
    assert scores.shape == (1, 4) and np.isfinite(conse.embed_images(dull)).all()


def test_a_preprocess_that_gives_no_image():
    with pytest.raises(ValueError, match=r"the classifier's preprocess gives \(8, 8\): expected a tensor \(C, H, W\)"):
        ConSE(colour_target(preprocess=lambda image: to_tensor(image)[0]), Words()).embed_images(PICTURES)


def test_names_that_cancel_each_other_out():
    with pytest.raises(ValueError, match="cancel each other out"):
        mixed_vectors(np.float32([[0.5, 0.5]]), np.float32([[1, 0], [-1, 0]]))


# where it stands in for a CLIP


def test_it_is_an_image_text_model_and_says_what_it_stands_in_for():
    conse = ConSE(colour_target(), Words())
    check_model("clip", conse, ImageTextModel)
    check_model("target", conse.target, Classifier)
    warn_of_concepts(conse, ["Dog", "dog", "狗"])
    assert conse.device == torch.device("cpu") and conse.stands_in.name == "ConSE" and "4 classes" in conse.stands_in.sentence
    assert [said.name for said in stand_ins([conse, None, conse])] == ["ConSE"]


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    pictures = [flat(colour, light) for light in rng.uniform(0.3, 1, 16) for colour in ANCHORS]
    return nb.ProbingSet.from_images(pictures, labels=[name.replace("_", " ") for _ in range(16) for name in CLASSES])


@pytest.fixture
def conse():
    return ConSE(colour_target(), Words())


METHOD_SETTINGS = {
    "clip-dissect": {"concepts": ["red", "green", "blue", "white"]},
    "patch-vocabulary": {"vocabulary": {name: [name, f"a {name.split()[0].split('_')[0]} thing"] for name in CLASSES}},
    "falcon": {"captions": ["a red brick", "a green leaf", "the blue sea", "white snow"]},
}


@pytest.mark.parametrize("name", METHOD_SETTINGS)
def test_methods_take_it_and_name_the_units(name, conse, photos):
    recording = nb.record(conse.target, photos, progress=False)
    found = METHODS[name](clip=conse, **METHOD_SETTINGS[name])(recording, photos, units={"maps": [0, 1, 2]})
    assert found.method.unique().tolist() == [f"{METHODS[name].label} (ConSE)"]
    best = found.groupby("unit").description.first()
    assert [{MEANINGS[word] for word in text.replace("_", " ").split() if word in MEANINGS} for text in best] == [{0}, {1}, {2}]


def test_a_captioner_and_a_measure_take_it(conse, photos):
    captions = ConceptCaptioner(conse, ["fire", "a leaf", "water", "snow"]).captions(photos, range(4), progress=False)
    assert captions == ["fire", "a leaf", "water", "snow"]
    recording = nb.record(conse.target, photos, progress=False)
    found = nb.CLIPDissect(clip=conse, concepts=["red", "green", "blue"])(recording, photos, units={"maps": [0, 1, 2]})
    values = Faithfulness(conse, seen=5, top=8)(found, recording)
    assert set(values.measure) == {"Pearson (ConSE)", "Spearman (ConSE)", "top against random (ConSE)"} and values[values.measure == "Pearson (ConSE)"].value.min() > 0.5


# class names elsewhere


def test_class_folders_named_by_ids_or_with_underscores_are_matched_with_the_outputs():
    names = ["tench", "goldfish", "great white shark", "tiger shark"]
    target = colour_target(classes=names)
    folders = ["n01491361", "n01443537", "great_white_shark"]
    images = nb.ProbingSet.from_images([PICTURES[11], PICTURES[9], PICTURES[10]], labels=folders)
    assert class_accuracy(target, images, progress=False).to_dict() == dict.fromkeys(["tiger shark", "goldfish", "great white shark"], 1.0)
    with pytest.raises(KeyError, match="no output of the network for the class 'n12345678'"):
        class_accuracy(target, nb.ProbingSet.from_images(PICTURES[:1], labels=["n12345678"]), progress=False)
    twice = colour_target(classes=["crane", "crane", "tench", "heron"])
    with pytest.raises(ValueError, match="2 outputs for the class 'crane'"):
        class_accuracy(twice, nb.ProbingSet.from_images(PICTURES[:1], labels=["crane"]), progress=False)


def test_ids_are_read_where_names_are_compared():
    class Fish(Words):
        def embed_texts(self, texts, progress=True):
            return np.float32([[1, 0] if "fish" in text else [0, 1] for text in texts])

    table = pd.DataFrame({"layer": "fc", "unit": [0, 1], "description": ["a fish", "a house"], "score": 1.0, "method": "mine"})
    assert nearest_units(table, ["n01443537"], [Fish()])[["class", "unit"]].values.tolist() == [["n01443537", 0]]
    with pytest.raises(ValueError, match="no meaning in words, such as 'class 3'"):
        nearest_units(table, ["class_3"], [Fish()])
    assert nb.class_truths(["n01440764", "a_b"], "fc").truth.tolist() == ["tench", "a b"]
    images = nb.ProbingSet.from_images(PICTURES, labels=["n01443537", "tiger_shark"] * 6)
    recording = nb.record(colour_target(), images, progress=False)
    assert set(" ".join(nb.INVERT(length=1)(recording, images).description).replace("NOT ", "").replace("tiger shark", "").split()) <= {"goldfish"}


def test_a_class_whose_name_has_no_words_is_not_asked_for(conse, photos):
    recording = nb.record(colour_target(classes=["red brick", "4", "5", "6"]), photos, progress=False)
    with pytest.raises(ValueError, match="class names have no meaning in words, such as '[456]'"):
        nb.PatchVocabulary(clip=conse, chat=nb.Consensus())(recording, photos, units={"maps": [1]})
