"""Patches and vocabulary: how a patch is cut, how answers are read, what is scored, and what is recorded when there are no words."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import nn

from neuronbench.basics import content_key
from neuronbench.describe.patch_vocabulary import PatchVocabulary, patch_box, patches, phrases_of, predicted_classes, read_vocabulary, write_vocabulary
from neuronbench.foundation.chat import Answer, ChatModel
from neuronbench.probe.exemplars import exemplars
from neuronbench.probe.images import ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.target import Target

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
CLASSES = ["tomato", "grass", "lake"]  # in the order of the colours
FEATURES = {"tomato": "- a red\n- round", "grass": "green, blades of grass, red", "lake": "1. Blue\n2. Round."}


class ColourCLIP:
    """An image's embedding is its mean colour, a text's that of its name. The interface of CLIP; counts what it embeds."""

    fingerprint = "colours"

    def __init__(self):
        self.images, self.texts = [], []

    def embed_images(self, images, progress=True):
        self.images += images
        return normalised([np.asarray(image).mean((0, 1)) for image in images])

    def embed_texts(self, texts, progress=True):
        self.texts += texts
        return normalised([COLOURS.get(text, (90, 100, 80)) for text in texts])


def normalised(values):
    values = np.asarray(values, dtype="f4") / 255 - 0.3
    return values / np.linalg.norm(values, axis=1, keepdims=True)


class Expert(ChatModel):
    """Answers by class from `FEATURES`, or what `says` it does; remembers what was sent to it."""

    name, prices = "expert", None

    def __init__(self, says=FEATURES):
        super().__init__()
        self.says, self.fingerprint, self.sent = says, content_key(says), []

    def _prompt_tokens(self, requests):
        return [0] * len(requests)

    def _send(self, requests, keep, show):
        self.sent += [request.messages[-1]["content"] for request in requests.values()]
        keep({key: self._said(request.messages[-1]["content"]) for key, request in requests.items()})

    def _said(self, question):
        [name] = [name for name in CLASSES if name in question]
        text = self.says[name]
        return text if isinstance(text, Answer) else Answer(text, model=self.name)


class Colours(nn.Module):
    """Four units: much of one colour and little of the others, and one that is NaN everywhere; three classes, one for each colour."""

    def __init__(self):
        super().__init__()
        self.conv, self.spoil, self.fc = nn.Conv2d(3, 4, 1, bias=False), Spoil(), nn.Linear(3, 3, bias=False)
        self.conv.weight.data = torch.tensor([[1.0, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1], [0, 0, 0]])[:, :, None, None]
        self.fc.weight.data = torch.eye(3)

    def forward(self, x):
        return self.fc(self.spoil(torch.relu(self.conv(x)))[:, :3].mean((2, 3)))


class Spoil(nn.Module):
    def forward(self, maps):
        maps = maps.clone()
        maps[:, 3] = torch.nan
        return maps


def preprocess(image):
    """The left square of an image, 16 x 16 pixels."""
    square = image.crop((0, 0, image.height, image.height)).resize((16, 16), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(square, np.float32) / 255).permute(2, 0, 1)


def picture(number):
    """48 x 32 pixels of grey, a coloured square of 8 x 8 at a place of its own, and a red stripe at the right that preprocessing cuts off."""
    pixels = np.full((32, 48, 3), 90 + number, np.uint8)
    left, top = 2 + (7 * number) % 20, 2 + (5 * number) % 20
    pixels[top : top + 8, left : left + 8] = list(COLOURS.values())[number % 3]
    pixels[:, 36:] = COLOURS["red"]
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recording():
    target = Target(Colours().eval(), ["spoil", "fc"], preprocess, classes=CLASSES, device="cpu")
    return record(target, ProbingSet.from_images([picture(number) for number in range(18)]), progress=False)


@pytest.fixture
def method():
    return PatchVocabulary(ColourCLIP(), Expert(), exemplars=4, margin=0.0)


# patches

MAPS = arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-10, 10, width=16))


@settings(max_examples=100, deadline=None)
@given(MAPS, st.tuples(st.integers(8, 60), st.integers(8, 60)), st.floats(0, 2))
def test_a_patch_lies_in_the_image_and_grows_with_its_margin(activation_map, size, margin):
    left, top, right, bottom = patch_box(activation_map, size, margin=margin)
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    inner = patch_box(activation_map, size, margin=0)
    assert left <= inner[0] and top <= inner[1] and right >= inner[2] and bottom >= inner[3]


def test_a_patch_is_around_the_peak_and_not_around_the_largest_region():
    activation_map = np.zeros((10, 10))
    activation_map[1:3, 1:3], activation_map[5:, 4:] = 1.0, 0.9
    left, top, right, bottom = patch_box(activation_map, (100, 100), margin=0)
    assert right <= 40 and bottom <= 40 and left <= 10 and top <= 10
    assert patch_box(activation_map, (100, 100), margin=0, threshold=250)[2] < right  # a higher threshold leaves a smaller region


def test_a_ring_around_another_region_is_taken_as_its_own_region():
    activation_map = np.zeros((15, 15))
    activation_map[1, 1:14] = activation_map[13, 1:14] = activation_map[1:14, 1] = activation_map[1:14, 13] = 0.8
    activation_map[6:9, 6:9] = 1.0
    left, _, right, _ = patch_box(activation_map, (150, 150), margin=0)
    assert left > 40 and right < 110


@pytest.mark.parametrize("activation_map", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.ones((1, 1))])
def test_a_map_without_a_range_gives_the_whole_image(activation_map):
    assert patch_box(activation_map, (30, 20)) == (0, 0, 30, 20)


def test_patches_are_cut_from_what_preprocessing_keeps(recording):
    for own in patches(recording, exemplars(recording, "spoil", [0, 1, 2], 4), margin=0.0):
        for patch in own:
            colour = list(COLOURS.values())[patch.position % 3]
            middle = patch.image.getpixel((patch.image.width // 2, patch.image.height // 2))
            assert middle == colour and patch.box[2] <= 32 and patch.image.width <= 14  # not the stripe beside the square that is kept
        assert [patch.activation for patch in own] == sorted((patch.activation for patch in own), reverse=True)


def test_a_layer_without_maps_gives_whole_images(recording):
    [own] = patches(recording, exemplars(recording, "fc", [1], 2))
    assert [patch.box for patch in own] == [(0, 0, 32, 32)] * 2


# the classes


def test_predicted_classes_are_those_of_the_highest_score(recording):
    positions = [5, 0, 7, 5]
    assert predicted_classes(recording, positions) == {position: CLASSES[position % 3] for position in (5, 0, 7)}


def test_a_target_without_class_names_is_refused(recording, method):
    recording.target.classes = None
    with pytest.raises(ValueError, match="no class names"):
        method(recording, recording.images)
    recording.target.classes = ["one", "two"]
    with pytest.raises(ValueError, match="2 class names, but its network has 3 outputs"):
        method(recording, recording.images)


# answers


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_phrases_of_any_text_are_distinct_short_and_clean(text):
    phrases = phrases_of(text)
    assert len(set(phrases)) == len(phrases)
    for phrase in phrases:
        assert phrase == " ".join(phrase.lower().split()) and len(phrase.split()) <= 8 and any(map(str.isalpha, phrase))


@pytest.mark.parametrize("text, expected", [
    ("Red hull\nA mast", ("red hull", "mast")),
    ("1. hull\n2) the mast\n(3) sails", ("hull", "mast", "sails")),
    ("Here are the features of a boat:\n\n* **Hull**.\n• \"white sails\"\n- hull", ("hull", "white sails")),
    ("Features: hull, mast; sails.", ("hull", "mast", "sails")),
    ("It is known by a great many things that no list could ever hold.", ()),
    ("...\n---", ()),
    ("Here are:\n- **Parts:** mast, sail\n- a red hull\n### Colors\n1. white", ("mast", "sail", "red hull", "white")),
    ("```text\nmast\nsail\n```", ("mast", "sail")),
    ("**Setting and colors:** open sea; white\nhull", ("open sea", "white", "hull")),
    ("", ()),
])
def test_phrases_of_the_ways_in_which_models_answer(text, expected):
    assert phrases_of(text) == expected


WORDS = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1).map(lambda text: " ".join(text.split())).filter(bool)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(WORDS, st.lists(WORDS, unique=True)))
def test_a_vocabulary_is_read_as_it_was_written(tmp_path_factory, vocabulary):
    path = tmp_path_factory.mktemp("vocabulary") / "words.csv"
    write_vocabulary(vocabulary, path)
    assert read_vocabulary(path) == {name: tuple(phrases) for name, phrases in vocabulary.items()}


def test_a_file_saved_by_a_table_program_is_read(tmp_path):
    path = tmp_path / "words.csv"
    path.write_bytes("\ufeffclass,phrase,remark\r\ntomato,  deep   red ,mine\r\ntomato,deep red,\r\nlake,,nothing\r\n".encode())
    assert read_vocabulary(path) == {"tomato": ("deep red",), "lake": ()}


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("name,phrase\na,b\n")
    with pytest.raises(ValueError, match="words.csv has the columns name, phrase; expected class and phrase; not found: class"):
        read_vocabulary(path)
    for wrong in ({"tomato": "red"}, {"tomato": [1]}, ["red"]):
        with pytest.raises(TypeError):
            PatchVocabulary(ColourCLIP(), vocabulary=wrong)


# the method


def direct_scores(recording, unit, k):
    """The definition, by loops: {phrase: mean cosine with the squares of the unit's exemplars}."""
    clip, best = ColourCLIP(), recording.top("spoil", unit, k).image
    cut = patches(recording, exemplars(recording, "spoil", [unit], k), margin=0.0)[0]
    assert [patch.position for patch in cut] == best.tolist()
    phrases = {phrase for position in best for phrase in phrases_of(FEATURES[CLASSES[position % 3]])}
    return {phrase: np.mean([float(clip.embed_images([patch.image])[0] @ clip.embed_texts([phrase])[0]) for patch in cut]) for phrase in phrases}


def test_descriptions_are_those_of_the_definition(recording, method):
    table = method(recording, recording.images, {"spoil": [0, 1, 2]})
    assert table.description.tolist() == ["red", "green", "blue"]
    for unit, score in zip(table.unit, table.score):
        expected = direct_scores(recording, unit, 4)
        trace = method.trace(recording, "spoil", unit)
        assert dict(zip(trace.scores.phrase, trace.scores.score)) == pytest.approx(expected, abs=1e-5)
        assert score == pytest.approx(max(expected.values()), abs=1e-5)


def test_identical_requests_are_sent_once_and_distinct_patches_and_phrases_embedded_once(recording, method):
    method(recording, recording.images, {"spoil": [0, 1, 2], "fc": [0, 1, 2]})
    assert sorted(name for question in method.chat.sent for name in CLASSES if name in question) == sorted(CLASSES)
    method(recording, recording.images, {"spoil": [2, 0, 1]})
    assert len(method.chat.sent) == 3
    clip = ColourCLIP()
    PatchVocabulary(clip, Expert(), exemplars=18, margin=0.0).traces(recording, "fc", [0, 1, 2])
    assert len(clip.images) == 18 and len(clip.texts) == len(set(clip.texts)) == 5


def test_the_trace_says_which_class_each_phrase_came_from(recording):
    trace = PatchVocabulary(ColourCLIP(), Expert(), exemplars=18, margin=0.0).trace(recording, "spoil", 0)
    of = trace.scores.set_index("phrase").classes
    assert sorted(of["red"].split(", ")) == ["grass", "tomato"] and of["blades of grass"] == "grass"
    assert {one.name: one.answer for one in trace.vocabularies} == FEATURES
    assert trace.classes == tuple(CLASSES[patch.position % 3] for patch in trace.patches)


def test_the_plot_shows_hostile_text_as_text(recording):
    trace = PatchVocabulary(ColourCLIP(), Expert(FEATURES | {"tomato": "$x_1$ <b>red</b>"}), exemplars=3).trace(recording, "spoil", 0)
    figure = trace.plot()
    figure.canvas.draw()
    labels = figure.axes[-1].get_yticklabels()
    assert labels[0].get_text().startswith("$x_1$ <b>red</b>") and not labels[0].get_parse_math()


def test_a_vocabulary_made_by_hand_goes_before_the_model(recording, tmp_path):
    path, chat = tmp_path / "words.csv", Expert()
    write_vocabulary({"tomato": ["green", "blue"], "grass": ["green"]}, path)
    for words in (path, read_vocabulary(path)):
        table = PatchVocabulary(ColourCLIP(), chat, words, exemplars=4, margin=0.0)(recording, recording.images, {"spoil": [0, 2]})
        assert table.description[0] in ("green", "blue") and table.description[1] == "blue"
    assert len(chat.sent) == 1 and "lake" in chat.sent[0]


def test_the_prompt_is_a_setting(recording, method):
    chat = Expert()
    PatchVocabulary(ColourCLIP(), chat, prompt="Say it of {class}!", exemplars=2).trace(recording, "spoil", 1)
    assert chat.sent == ["Say it of grass!"]


# no words


@pytest.mark.parametrize("said, reason", [("I'm sorry, but I can't do that.", "a refusal"), ("…", "names no feature"),
                                          (Answer("", "no answer within 60 s"), "no answer within 60 s")])
def test_a_refused_vocabulary_is_recorded_and_the_run_goes_on(recording, said, reason):
    method = PatchVocabulary(ColourCLIP(), Expert(FEATURES | {"grass": said}), exemplars=4, margin=0.0)
    table = method(recording, recording.images, {"spoil": [0, 1, 2]})
    assert table.description.fillna("").tolist() == ["red", "", "blue"] and np.isnan(table.score[1])
    [failure] = table.attrs["failures"]
    assert (failure["layer"], failure["unit"], failure["step"]) == ("spoil", 1, "vocabulary")
    assert reason in failure["reason"] and failure["reason"].startswith("grass: ")
    problems = {name: known.problem for name, known in method.vocabularies(FEATURES).items() if known.problem}
    assert list(problems) == ["grass"] and reason in problems["grass"]


def test_an_empty_vocabulary_made_by_hand_is_recorded(recording):
    method = PatchVocabulary(ColourCLIP(), vocabulary={"tomato": [" "], "gras": ["green"]}, exemplars=4)
    table = method(recording, recording.images, {"spoil": [0, 1]})
    assert table.description.isna().all()
    empty, missing = table.attrs["failures"]
    assert "its vocabulary is empty" in empty["reason"] and "'grass'; did you mean 'gras'" in missing["reason"]


def test_a_class_without_words_does_not_cost_a_unit_its_description(recording):
    method = PatchVocabulary(ColourCLIP(), Expert(FEATURES | {"grass": "No."}), vocabulary={"grass": []}, exemplars=8, margin=0.0)
    trace = method.trace(recording, "spoil", 0)
    assert "grass" in trace.classes and trace.description == "red"


def test_a_unit_that_is_nan_everywhere_is_recorded(recording, method):
    with pytest.warns(UserWarning):
        table = method(recording, recording.images, {"spoil": [3, 0]})
    assert table.description.fillna("").tolist() == ["", "red"]
    assert table.attrs["failures"] == [{"layer": "spoil", "unit": 3, "step": "exemplars", "reason": "the unit is NaN or infinite on some images", "method": "PatchVocabulary"}]


class Narrow(Colours):
    """The same network with a layer of one unit, much red, and one that is the same everywhere."""

    def __init__(self):
        super().__init__()
        self.one, self.same = nn.Identity(), nn.Identity()

    def forward(self, x):
        self.one(x[:, :1]), self.same(torch.full_like(x, 0.3))
        return super().forward(x)


class Scoreless(Colours):
    """The network without class scores: maps, as of a segmentation network, or boxes of another number than images, as of a detector."""

    def __init__(self, gives):
        super().__init__()
        self.gives = gives

    def forward(self, x):
        super().forward(x)
        return {"maps": x, "named": {"out": x}, "boxes": [{"boxes": torch.ones(5, 4), "scores": torch.ones(5)} for _ in x]}[self.gives]


@pytest.mark.parametrize("gives", ["maps", "named", "boxes"])
def test_a_network_without_class_scores_says_so_before_any_work(method, gives):
    images = ProbingSet.from_images([picture(number) for number in range(6)])
    found = record(Target(Scoreless(gives), ["spoil"], preprocess, CLASSES), images, progress=False)
    with pytest.raises(ValueError, match="class scores \\(images, classes\\), which detectors and segmentation networks do not have"):
        method(found, images, {"spoil": [0]})
    assert not method.chat.sent and not method.clip.images


def test_missing_class_names_are_said_before_any_work(method, recording):
    bare = record(Target(Colours(), ["spoil"], preprocess), recording.images, progress=False)
    with pytest.raises(ValueError, match="no class names: give Target"):
        method(bare, bare.images, {"spoil": [3]})  # a unit that needs no exemplar
    assert not method.clip.images


@pytest.mark.parametrize("layer, count, reason", [("one", 18, "only unit of its layer"), ("same", 18, "0.3 on every image"), ("same", 1, "only one image"),
                                                  ("one", 1, "only one image")])
def test_units_that_tell_no_images_apart_are_recorded_and_cost_no_request(method, layer, count, reason):
    images = ProbingSet.from_images([picture(number) for number in range(count)])
    alone = record(Target(Narrow(), [layer], preprocess, CLASSES), images, progress=False)
    with pytest.warns(UserWarning, match=reason):
        table = method(alone, images, {layer: [0]})
    assert table.description.isna().all() and table.attrs["failures"][0]["step"] == "exemplars" and not method.chat.sent
    assert reason in repr(method.trace(alone, layer, 0)) and method.trace(alone, layer, 0).plot().axes


def test_patches_are_of_the_images_of_the_pooling_asked_for(recording, method):
    shown = [picture(number) for number in range(18)]
    shown[3] = Image.new("RGB", shown[0].size, (120, 0, 0))  # a little red everywhere
    both = record(recording.target, ProbingSet.from_images(shown), pool=("mean", "max"), progress=False)
    of = {pool: replace(method, pool=pool).trace(both, "spoil", 0).patches for pool in (None, "mean", "max")}
    for pool, own in of.items():
        best = both.top("spoil", 0, 4, pool)
        assert [patch.position for patch in own] == best.image.tolist() and [patch.activation for patch in own] == pytest.approx(best.activation.tolist())
    assert 3 in [patch.position for patch in of["mean"]] and 3 not in [patch.position for patch in of["max"]]
    with pytest.raises(KeyError, match="no recorded pooling"):
        replace(method, pool="class").trace(both, "spoil", 0)


def test_settings_out_of_range_are_refused():
    clip, chat = ColourCLIP(), Expert()
    for wrong, message in (({"prompt": "Features?"}, "no placeholder {class}"), ({"exemplars": 0}, "at least one exemplar"), ({"margin": -1}, "margin"),
                           ({"threshold": 300}, "threshold"), ({"chat": None}, "a chat model to ask")):
        with pytest.raises(ValueError, match=message):
            PatchVocabulary(clip, **({"chat": chat} | wrong))


def test_unknown_layers_units_and_images_are_refused(recording, method):
    with pytest.raises(KeyError, match="did you mean 'spoil'"):
        method(recording, recording.images, {"spoils": [0]})
    with pytest.raises(ValueError, match="there is no unit 4"):
        method(recording, recording.images, {"spoil": [4]})
    with pytest.raises(ValueError):
        method(recording, ProbingSet.from_images([picture(0)]), {"spoil": [0]})


def test_descriptions_go_through_the_csv_of_the_published_tools(recording, method, tmp_path):
    from neuronbench.describe.descriptions import read_descriptions, write_descriptions

    table = method(recording, recording.images, {"spoil": [0, 1]})
    write_descriptions(table, tmp_path / "found.csv")
    pd.testing.assert_frame_equal(read_descriptions(tmp_path / "found.csv", "PatchVocabulary"), table, check_like=True)
