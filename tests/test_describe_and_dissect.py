"""Describe-and-Dissect on a small network and tools that count what they are asked: what it finds, keeps, records and refuses."""

import dataclasses
import math
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
import torch
from PIL import Image

import neuronbench as nb
from neuronbench.basics import clean_text
from neuronbench.describe.describe_and_dissect.candidates import Asking, candidates_of, cleaned
from neuronbench.describe.describe_and_dissect.method import DescribeAndDissect
from neuronbench.describe.describe_and_dissect.prompts import Prompts
from neuronbench.describe.describe_and_dissect.scoring import SCORINGS
from neuronbench.foundation.chat import Answer
from neuronbench.foundation.consensus import Consensus
from neuronbench.probe.crops import CropSettings, attention_crops

COLOURS = {"red": (230, 20, 20), "green": (20, 220, 30), "blue": (20, 40, 230), "yellow": (230, 220, 30), "white": (250, 250, 250), "black": (5, 5, 5)}


def nearest(colour):
    return min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name], float) - colour).sum())


class Channels(torch.nn.Module):
    """Units 0 to 2 like red, green and blue, unit 3 is NaN everywhere, unit 4 silent, unit 5 always negative."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.conv.weight.data.zero_()
        self.conv.weight.data[:3, :, 1, 1] = torch.tensor([[1.0, -0.6, -0.6], [-0.6, 1, -0.6], [-0.6, -0.6, 1]])
        self.conv.weight.data[3] = math.nan
        self.conv.weight.data[5, 0, 1, 1] = 0.1
        self.conv.bias.data = torch.tensor([0.0, 0, 0, 0, 0, -9])
        self.fc = torch.nn.Linear(3, 2)
        torch.nn.init.eye_(self.fc.weight)

    def forward(self, x):
        return self.fc(self.conv(x)[:, :3].mean((2, 3)))


def to_tensor(image):
    return torch.tensor(np.asarray(image.resize((24, 24)))).permute(2, 0, 1) / 255


class Captioner:
    fingerprint = "namer of colours"

    def __init__(self):
        self.seen = []

    def captions(self, images, indices=None, progress=True):
        self.seen += images
        return [f"a {nearest(np.asarray(image)[9:-9, 9:-9].mean((0, 1)))} square" for image in images]


class Chat:
    """Repeats a caption; summarises by the word that most captions share."""

    def __init__(self):
        self.known, self.sent = {}, []

    def answers(self, requests, progress=True):
        new = {request.key: request for request in requests if request.key not in self.known}
        self.sent += new.values()
        self.known |= {key: self.answer(request) for key, request in new.items()}
        return [self.known[request.key] for request in requests]

    def answer(self, request):
        words = [word for text in request.texts for word in text.split() if word in COLOURS]
        text = request.texts[0] if len(request.texts) == 1 else f"{max(words, key=words.count)} things" if request.seed % 2 else "white"
        return Answer(text, model="small talk")


class Painter:
    fingerprint = "painter of colours"

    def __init__(self):
        self.painted = []

    def paint(self, prompts, count=10, progress=True):
        self.painted += prompts
        return [[self.image(prompt, number) for number in range(count)] for prompt in prompts]

    def image(self, prompt, number):
        colour = next((COLOURS[word] for word in prompt.split() if word in COLOURS), (128, 128, 128))
        return Image.fromarray(np.clip(np.full((24, 24, 3), colour) - 8 * number, 0, 255).astype(np.uint8))


class CLIP:
    """Sees the mean colour of an image and reads colours in a text."""

    fingerprint, device = "sees colours", "cpu"

    def __init__(self):
        self.seen = 0

    def embed_images(self, images, indices=None, progress=True):
        self.seen += len(images)
        return self.normalised([np.asarray(image).mean((0, 1)) for image in images])

    def embed_texts(self, texts, progress=True):
        return self.normalised([next((COLOURS[word] for word in text.split() if word in COLOURS), (90, 100, 80)) for text in texts])

    def normalised(self, values):
        values = np.asarray(values, "f4").reshape(-1, 3) / 255 + 0.01
        return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


def squares(count=60, size=24):
    """A square of one colour on grey, or of grey on that colour."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(count):
        colour = np.clip(np.array(list(COLOURS.values())[number % 6]) + rng.normal(0, 12, 3), 0, 255)
        pixels = np.full((size, size, 3), 110.0)
        left, top = rng.integers(2, size - 10, 2)
        pixels[top : top + 8, left : left + 8] = colour
        images.append(Image.fromarray(pixels.astype(np.uint8)))
    return nb.ProbingSet.from_images(images)


def recorded(images, model=None, layers=("conv", "fc")):
    target = nb.Target(model or Channels(), layers=layers, preprocess=to_tensor, device="cpu")
    return nb.record(target, images, progress=False)


@pytest.fixture(scope="module")
def recording():
    return recorded(squares())


@pytest.fixture
def method():
    return DescribeAndDissect(Captioner(), Chat(), Painter(), CLIP(), image_size=48)


@pytest.fixture
def forwards(recording):
    """How many images went through the target, one number for each pass."""
    passes = []
    hook = recording.target.model.conv.register_forward_hook(PassCount(passes))
    yield passes
    hook.remove()


class PassCount:
    """A hook that adds the number of images to `passes`; by its fingerprint it is the same hook after that."""

    fingerprint = "counts images"

    def __init__(self, passes):
        self.passes = passes

    def __call__(self, module, inputs, output):
        self.passes.append(len(output))


def told(method, recording, units=(0, 1, 2), **options):
    return method(recording, recording.images, {"conv": list(units)}, **options)


def test_units_get_the_names_of_their_colours(recording, method):
    table = told(method, recording)
    assert list(table.columns) == ["layer", "unit", "description", "score", "method"]
    assert table.description.tolist() == ["red things", "green things", "blue things"]
    assert set(table.method) == {"Describe-and-Dissect"} and np.isfinite(table.score).all() and table.attrs["failures"] == []


def test_many_units_at_once_say_the_same_as_one_by_one(recording, method):
    together = told(method, recording, units=(0, 1, 2, 5))
    alone = dataclasses.replace(method, captioner=Captioner(), chat=Chat(), painter=Painter())
    for row in together.itertuples():
        trace = alone.trace(recording, "conv", row.unit)
        assert (trace.description, trace.score) == (row.description, row.score)


def test_what_units_share_is_made_once(recording, method, forwards):
    traces = method.traces(recording, "conv", [0, 1, 2, 5])
    distinct = {(image, box) for trace in traces for image, box in zip(trace.augmented.chosen.image, trace.augmented.chosen.box)}
    assert len(method.captioner.seen) == len(distinct) < sum(len(trace.augmented.images) for trace in traces)
    candidates = {candidate for trace in traces for candidate in trace.proposed.candidates}
    assert len(method.painter.painted) == len(set(method.painter.painted)) == len(candidates)
    assert len(forwards) < 12  # full batches: exemplars, crops, and painted images


def test_the_steps_of_a_trace_fit_together(recording, method):
    trace = method.trace(recording, "conv", 0)
    augmented, proposed, painted = trace.augmented, trace.proposed, trace.painted
    assert augmented.exemplars.tolist() == recording.top("conv", 0, 10).image.tolist() and augmented.maps.shape == (10, 24, 24)
    assert len(augmented.crop_steps) == 10 and augmented.note == ""
    crops = augmented.union[augmented.union.box.notna()]
    assert len(crops) == sum(len(steps.boxes) for steps in augmented.crop_steps) > 0
    assert len(augmented.chosen) == len(augmented.images) == len(proposed.captions) == 10
    assert augmented.union.activation.is_monotonic_decreasing and augmented.chosen.box.notna().any()
    row = crops.iloc[0]
    [expected] = [crop for crop in attention_crops(recording.images[int(row.image)].resize((48, 48)),
                                                   augmented.maps[augmented.exemplars.tolist().index(row.image)]) if crop.box == row.box]
    with torch.no_grad():
        seen = recording.target.model.conv(to_tensor(expected.image)[None])[0, 0].mean()
    assert row.activation == pytest.approx(float(seen), abs=1e-5)
    assert proposed.table.step.value_counts().to_dict() == {"simplify": 10, "summarise": 5}
    assert proposed.candidates == ("white", "red things") and trace.answered_by == "small talk"
    assert painted.activations.shape == (2, 10) and painted.embeddings.shape == (2, 10, 3) and painted.exemplars.shape == (10, 3)
    assert trace.ranks.values.sum() == 210 and trace.ranks.loc["red things"].max() < trace.ranks.loc["white"].min()
    assert list(trace.scores.columns) == ["candidate", "score", *SCORINGS] and trace.scores.candidate[0] == "red things" == trace.description
    assert trace.runners_up == ["white"] and [len(images) for images in trace.painted_images.values()] == [10, 10]
    assert len(trace.plot().axes) == 30 and len(trace.plot_crops().axes) == 30


@pytest.mark.parametrize("scoring", [*SCORINGS, lambda activations: activations.max(1)])
def test_description_and_score_are_the_best_by_the_scoring_function(recording, method, scoring):
    method = dataclasses.replace(method, scoring=scoring)
    trace = method.trace(recording, "conv", 1)
    scores = trace.painted.scores(scoring)
    assert trace.score == scores.max() and trace.description == trace.proposed.candidates[scores.argmax()] == "green things"


def test_no_crops(recording, method):
    trace = dataclasses.replace(method, crops=None).trace(recording, "conv", 0)
    assert trace.augmented.union.box.isna().all() and trace.augmented.crop_steps == [] and "switched off" in trace.augmented.note
    assert trace.augmented.chosen.image.tolist() == recording.top("conv", 0, 10).image.tolist()


def test_captions_as_candidates(recording, method):
    method = dataclasses.replace(method, summarise=False)
    trace = method.trace(recording, "conv", 0)
    assert trace.proposed.candidates[0] == "a red square" == trace.description and method.chat.sent == [] and trace.answered_by == ""


def test_without_selection_the_first_candidate_wins_and_nothing_is_painted(recording, method):
    method = dataclasses.replace(method, select=False)
    table = told(method, recording)
    assert table.description.tolist() == ["white"] * 3 and table.score.isna().all() and method.painter.painted == [] and method.clip.seen == 0
    trace = method.trace(recording, "conv", 0)
    assert len(trace.plot().axes) == 10 and trace.scores.candidate.tolist() == ["white", "red things"]


def test_several_labels_are_rows_best_first(recording, method):
    class Three(Chat):
        def answer(self, request):
            return Answer(["red", "red things", "white", "blue", "red"][request.seed % 5] if len(request.texts) > 1 else request.texts[0])

    method = dataclasses.replace(method, chat=Three(), labels=3, scoring="mean")
    table = told(method, recording, units=[0])
    trace = method.trace(recording, "conv", 0)
    order = trace.scores.candidate.tolist()
    texts = method.clip.embed_texts(order)
    expected = [name for place, name in enumerate(order[:3]) if not (texts[:place] @ texts[place] > 0.81).any()]
    assert set(order[:2]) == {"red", "red things"}  # which CLIP cannot tell apart
    assert table.description.tolist() == expected == [label.text for label in trace.labels] and len(expected) == 2
    assert (np.diff(table.score) <= 0).all() and [label.text for label in trace.rescored(labels=1).labels] == expected[:1]


def test_consensus_is_named(recording, method):
    table = told(dataclasses.replace(method, chat=Consensus()), recording, units=[0])
    assert table.method.tolist() == ["Describe-and-Dissect (consensus)"] and table.description[0].startswith("red")


def test_a_semantic_consensus_gives_candidates_where_captions_share_no_word(recording, method):
    class Namer(Captioner):
        def captions(self, images, indices=None, progress=True):
            return [f"{caption.split()[1]} {number}" for number, caption in enumerate(super().captions(images))]

    method = dataclasses.replace(method, captioner=Namer(), chat=Consensus(CLIP()))
    trace = method.trace(recording, "conv", 0)
    assert trace.description.startswith("red ") and trace.answered_by == "semantic consensus" and method.label_of(trace) == "Describe-and-Dissect (semantic consensus)"
    texts = CLIP().embed_texts(list(trace.proposed.candidates))
    assert (np.triu(texts @ texts.T, 1) <= 0.81).all()
    reasons = [reason for _, reason in trace.proposed.dropped]
    assert len(trace.proposed.candidates) + len(reasons) == 5 and all("nothing else to go by" in reason for reason in reasons)


def test_a_second_run_calls_no_model_but_those_that_keep_their_own(recording, method, forwards):
    first = told(method, recording)
    forwards.clear()
    painted = len(method.painter.painted)
    again = told(dataclasses.replace(method), recording)
    assert again.equals(first) and forwards == [] and len(method.painter.painted) == painted


def test_an_edited_prompt_costs_only_what_is_new(recording, method, forwards):
    told(method, recording)
    forwards.clear()
    before, asked = set(method.painter.painted), len(method.chat.sent)
    edited = dataclasses.replace(method, prompts=Prompts(summarise="In common: {descriptions}"))
    told(edited, recording)
    assert forwards == [] and set(method.painter.painted) == before  # the same candidates again
    assert {request.messages[-1]["content"][:9] for request in method.chat.sent[asked:]} == {"In common"}
    asked = len(method.chat.sent)
    painting = dataclasses.replace(edited, prompts=dataclasses.replace(edited.prompts, paint="A close-up of {candidate}"))
    told(painting, recording)
    assert len(method.chat.sent) == asked and all(prompt.startswith("A close-up") for prompt in set(method.painter.painted) - before)


@pytest.mark.parametrize("change", [{"scoring": "mean"}, {"beta": 2}, {"t": 3}, {"labels": 3}])
def test_rescoring_calls_no_model(recording, method, change, monkeypatch):
    trace = method.trace(recording, "conv", 0)
    expected = dataclasses.replace(method, **change).trace(recording, "conv", 0)
    for tool, members in ((Captioner, ["captions"]), (Chat, ["answers"]), (Painter, ["paint"]), (CLIP, ["embed_images", "embed_texts"])):
        for member in members:
            monkeypatch.setattr(tool, member, lambda *arguments, **options: pytest.fail("a model was called"))
    other = trace.rescored(**change)
    assert other.labels == expected.labels and other.scores.equals(expected.scores)
    with pytest.raises(KeyError, match="no setting of the choice 'scorring'; did you mean 'scoring'"):
        trace.rescored(scorring="mean")


class Stopped(Exception):
    pass


def test_stopped_anywhere_the_next_call_continues(monkeypatch, tmp_path):
    """Whatever the call of `watch` at which it is stopped, nothing that was done is done again."""

    def run(stop_at, folder):
        monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / folder))
        recording, forwards = recorded(squares()), []
        hook = recording.target.model.conv.register_forward_hook(PassCount(forwards))
        method, steps = DescribeAndDissect(Captioner(), Chat(), Painter(), CLIP(), image_size=48), []

        def watch(step, done, total):
            assert 0 < done <= total
            steps.append(step)
            if len(steps) == stop_at:
                raise Stopped

        if stop_at:
            with pytest.raises(Stopped):
                told(method, recording, watch=watch)
        table = told(method, recording)
        hook.remove()
        return table, sum(forwards), method, steps

    expected, images, whole, _ = run(0, "whole")
    for stop_at in range(1, 6):
        table, seen, method, steps = run(stop_at, f"stopped {stop_at}")
        assert table.equals(expected), steps
        assert seen == images and len(method.chat.sent) == len(whole.chat.sent), steps
        assert sorted(set(method.painter.painted)) == sorted(method.painter.painted), steps
    assert "paint" in steps or "embed" in steps


def failure_of(method, recording, unit=0):
    """The recorded failure of one unit; the others must be described."""
    table = told(method, recording, units=(unit, *({0, 1, 2} - {unit})))
    [failure] = table.attrs["failures"]
    assert (failure["layer"], failure["unit"]) == ("conv", unit) and table.description.isna().tolist() == [True, *[False] * (len(table) - 1)]
    assert math.isnan(table.score[0]) and list(failure) == ["layer", "unit", "step", "reason", "method"]
    trace = method.trace(recording, "conv", unit)
    assert failure == trace.failure | {"method": method.label_of(trace)} and trace.description is None and failure["reason"] in repr(trace)
    assert len(trace.plot().axes) >= 2 and trace.plot_crops() is not None
    return failure["step"], failure["reason"]


@pytest.mark.filterwarnings("ignore:1 units of 'conv' are finite")
def test_units_that_are_nan_or_silent_ask_no_model(recording, method):
    assert failure_of(method, recording, unit=3) == ("exemplars", "the unit is NaN or infinite on some images")
    assert failure_of(method, recording, unit=4) == ("exemplars", "the unit is 0 on every image, so that no image stands out")
    fresh = dataclasses.replace(method, captioner=Captioner(), chat=Chat(), painter=Painter(), clip=CLIP())
    for trace in fresh.traces(recording, "conv", [3, 4]):
        assert trace.augmented.images == [] and len(trace.augmented.union) == 0 and trace.augmented.note == trace.augmented.reason == trace.failure["reason"]
    assert fresh.captioner.seen == [] and fresh.chat.sent == [] and fresh.painter.painted == [] and fresh.clip.seen == 0


class Rare(Channels):
    """Unit 0 is NaN where there is much red."""

    def forward(self, x):
        maps = self.conv(x)
        return torch.where((torch.arange(6)[None, :, None, None] == 0) & (x[:, :1].mean((2, 3), keepdim=True) > 0.44), torch.nan, maps)


@pytest.mark.filterwarnings("ignore:1 units of '0' are finite")
def test_a_unit_that_is_nan_on_some_images_has_no_description(method):
    target = nb.Target(torch.nn.Sequential(Rare()), layers=["0"], preprocess=to_tensor, device="cpu")
    found = nb.record(target, squares(), progress=False)
    assert 0 < np.isnan(found["0"].values[:, 0]).sum() < 60
    with pytest.warns(UserWarning, match="has no description|have no description"):
        table = method(found, found.images, {"0": [0, 1]})
    assert table.description.isna().tolist() == [True, False] and "NaN or infinite on some images" in table.attrs["failures"][0]["reason"]


def test_one_image_describes_no_unit(method):
    found = recorded(nb.ProbingSet.from_images([squares()[0]]))
    table = told(method, found)
    assert table.description.isna().all() and {one["reason"] for one in table.attrs["failures"]} == {"there is only one image, so that no image stands out"}
    assert method.painter.painted == []


def test_a_layer_of_one_unit_is_described_by_its_own_images(method):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1))
    model[0].weight.data[0] = torch.tensor([1.0, -0.6, -0.6])[:, None, None]
    found = nb.record(nb.Target(model, layers=["0"], preprocess=to_tensor, device="cpu"), squares(), progress=False)
    assert method(found, found.images).description.tolist() == ["red things"]


class Gated(Channels):
    """The units are `value` on pictures of one colour, as the painter's are, and are themselves on others."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        plain = (x.std((2, 3)) < 1e-6).all(1)
        return torch.where(plain[:, None, None, None], self.value, torch.nan_to_num(self.conv(x)))


@pytest.mark.parametrize(("value", "step", "reason"), [(0.0, "score", "is 0 on every painted image"), (math.nan, "paint", "on some of its painted images")])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_unit_that_says_nothing_of_the_painted_images_prefers_no_candidate(method, value, step, reason, scoring):
    found = nb.record(nb.Target(torch.nn.Sequential(Gated(value)), layers=["0"], preprocess=to_tensor, device="cpu"), squares(), progress=False)
    trace = dataclasses.replace(method, scoring=scoring).trace(found, "0", 0)
    assert trace.description is None and trace.failure["step"] == step and reason in trace.failure["reason"]
    assert trace.plot() is not None and len(trace.proposed.candidates) == 2
    without = dataclasses.replace(method, select=False).trace(found, "0", 0)  # where nothing is painted, the first candidate wins
    assert without.description == without.proposed.candidates[0]


def test_maps_without_a_range_have_no_crops_and_the_unit_is_described(method):
    flat = torch.nn.Sequential(Channels().conv, torch.nn.AdaptiveAvgPool2d(1))
    found = nb.record(nb.Target(flat, layers=["1"], preprocess=to_tensor, device="cpu"), squares(), progress=False)
    trace = method.trace(found, "1", 0)
    assert trace.augmented.maps.shape == (10, 1, 1) and trace.augmented.note == "no region of the activation maps stands out"
    assert trace.augmented.union.box.isna().all() and trace.description == "red things"


def pale_and_large(count=24):
    """Green squares on black: the larger, the darker."""
    images = []
    for number in range(count):
        pixels = np.zeros((24, 24, 3), np.uint8)
        pixels[2 : 6 + number // 2, 2 : 6 + number // 2, 1] = 255 - 4 * number
        images.append(Image.fromarray(pixels))
    return nb.ProbingSet.from_images(images)


def test_the_pooling_that_is_asked_for_ranks_exemplars_crops_and_painted_images(method):
    target = nb.Target(Channels(), layers=["conv"], preprocess=to_tensor, device="cpu")
    both, of = pale_and_large(), {}
    recording = nb.record(target, both, pool=("mean", "max"), progress=False)
    for pool in (None, "mean", "max"):
        trace = of[pool] = dataclasses.replace(method, pool=pool).trace(recording, "conv", 1)
        images = trace.augmented.union[trace.augmented.union.box.isna()]
        assert images.image.tolist() == recording.top("conv", 1, 10, pool).image.tolist()
        assert np.allclose(images.activation, recording.top("conv", 1, 10, pool).activation)
        crop = trace.augmented.union[trace.augmented.union.box.notna()].iloc[0]
        cut = trace.augmented.pictures[crop.image].crop(crop.box).resize((48, 48))
        maps = target.activations(to_tensor(cut)[None])["conv"][0, 1]
        assert crop.activation == pytest.approx(float(maps.max() if pool == "max" else maps.mean()), abs=1e-5)
        [seen] = [target.activations(to_tensor(image)[None])["conv"][0, 1] for image in trace.painted_images[trace.description][:1]]
        row = trace.proposed.candidates.index(trace.description)
        assert trace.painted.activations[row, 0] == pytest.approx(float(seen.max() if pool == "max" else seen.mean()), abs=1e-5)
    assert of[None].augmented.union.equals(of["mean"].augmented.union)
    assert of["max"].augmented.exemplars.tolist() != of["mean"].augmented.exemplars.tolist()
    assert told(dataclasses.replace(method, pool="max"), recording, units=[1]).score[0] == of["max"].score
    with pytest.raises(KeyError, match="no recorded pooling 'max'"):
        told(dataclasses.replace(method, pool="max"), recorded(both), units=[1])


def test_what_is_all_missing_is_painted_again(recording, method):
    class Blind(Painter):
        def __init__(self):
            super().__init__()
            self.sees = False

        def paint(self, prompts, count=10, progress=True):
            images = super().paint(prompts, count)
            return images if self.sees else [[] for _ in prompts]

    blind = dataclasses.replace(method, painter=Blind())
    assert told(blind, recording, units=[0]).description.isna().all()
    blind.painter.sees = True
    assert told(blind, recording, units=[0]).description.tolist() == ["red things"]


def test_no_captions_for_one_unit(recording, method):
    class Speechless(Captioner):
        def captions(self, images, **options):
            return ["  " if "red" in caption else caption for caption in super().captions(images)]

    assert failure_of(dataclasses.replace(method, captioner=Speechless()), recording) == ("candidates", "none of the 10 images has a caption")
    assert failure_of(dataclasses.replace(method, captioner=Speechless(), summarise=False), recording)[1] == "none of the 10 images has a caption"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("I'm sorry, but I cannot assist with that request."), "a refusal"),
        (Answer("", error="the server answered 500"), "the server answered 500"),
        (Answer("red " * 10_000), "the answer has 10000 words"),
        (Answer('"..."'), "the answer has no words"),
    ],
)
@pytest.mark.parametrize("step", ["simplified", "summary"])
def test_answers_that_cannot_be_used(recording, method, answer, reason, step):
    class Unwilling(Chat):
        def answer(self, request):
            upset = any("red" in text for text in request.texts) and (len(request.texts) == 1) == (step == "simplified")
            return answer if upset else super().answer(request)

    found = failure_of(dataclasses.replace(method, chat=Unwilling()), recording)
    assert found[0] == "candidates" and step in found[1] and reason in found[1]


def test_a_painter_that_fails_for_one_candidate_or_for_all(recording, method):
    class Careful(Painter):
        def paint(self, prompts, count=10, progress=True):
            if any("red" in prompt for prompt in prompts):
                raise RuntimeError("CUDA out of memory")
            return super().paint(prompts, count)

    careful = dataclasses.replace(method, painter=Careful())
    table = told(careful, recording)
    assert table.description.tolist() == ["white", "green things", "blue things"] and table.attrs["failures"] == []
    trace = careful.trace(recording, "conv", 0)
    assert trace.painted.problems == {"red things": "the painter raised RuntimeError: CUDA out of memory"}
    assert np.isnan(trace.scores.score[1]) and list(trace.painted_images) == ["white"]
    sane = dataclasses.replace(careful, painter=Painter())  # what failed was not kept
    assert told(sane, recording).description[0] == "red things"

    class Censored(Painter):
        fingerprint = "the safety filter"

        def paint(self, prompts, count=10, progress=True):
            return [[] if "red" in prompt or "white" in prompt else images[: 1 + number] for number, (prompt, images) in
                    enumerate(zip(prompts, super().paint(prompts, count)))]

    censored = dataclasses.replace(method, painter=Censored())
    step, reason = failure_of(censored, recording)
    assert step == "paint" and "safety filter" in reason
    assert 0 < np.isfinite(censored.trace(recording, "conv", 1).painted.activations).sum() < 10


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda activations: 1 / 0, "raised ZeroDivisionError"),
        (lambda activations: np.full(len(activations), np.nan), r"returned \[nan nan\]"),
        (lambda activations: "good", "raised ValueError"),
    ],
)
def test_a_scoring_function_of_ones_own_that_fails(recording, method, function, reason):
    table = told(dataclasses.replace(method, scoring=function), recording)
    assert table.description.isna().all() and [failure["step"] for failure in table.attrs["failures"]] == ["score"] * 3
    assert all(re.search(f"the scoring function '<lambda>' {reason}", failure["reason"]) for failure in table.attrs["failures"])
    trace = method.trace(recording, "conv", 0)
    assert trace.rescored(scoring=function).description is None and trace.rescored(scoring="mean").description == "red things"


def test_a_negative_unit_is_described(recording, method):
    negative = method.trace(recording, "conv", 5)
    assert negative.augmented.union.box.notna().any() and negative.failure is None and (negative.augmented.union.activation < 0).all()


def test_a_layer_without_maps_has_no_crops_and_says_so(recording, method):
    trace = method.trace(recording, "fc", 0)
    assert trace.augmented.maps is None and trace.augmented.note == "layer 'fc' has no spatial map, so there is nothing to crop"
    assert trace.augmented.union.box.isna().all() and trace.description == "red things" and len(trace.plot_crops().axes) == 10


def test_images_of_one_pixel(method):
    images = nb.ProbingSet.from_images([Image.new("RGB", (1, 1), colour) for colour in COLOURS.values()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = method(recorded(images), images, {"conv": [0, 2]})
    assert table.description.notna().all() and table.attrs["failures"] == []


def test_identical_captions():
    asked = Chat()
    [found] = candidates_of([["a red square"] * 10], asked, Asking(count=5))
    assert found.simplified == ("a red square",) * 10 and len(found.candidates) == 2
    assert len(asked.sent) == 6  # one to simplify, five summaries


def test_texts_of_models_stay_texts(recording, method):
    hostile = "<img src=x onerror=alert(1)> $\\frac{ **red** {candidate}"

    class Hostile(Chat):
        def answer(self, request):
            return Answer(hostile, model="<b>mallory</b>")

    class Captions(Captioner):
        def captions(self, images, **options):
            return [hostile] * len(images)

    trace = dataclasses.replace(method, chat=Hostile(), captioner=Captions()).trace(recording, "conv", 0)
    assert trace.description == hostile.replace("**", "") and trace.answered_by == "<b>mallory</b>"
    figure = trace.plot()
    figure.canvas.draw()  # no mathematics is read into it
    assert trace.proposed.table._repr_html_().count("<img") == 0


def test_a_server_that_is_not_there_is_an_error_of_the_call(recording, method):
    class Nobody:
        def answers(self, requests, progress=True):
            raise ConnectionError("nothing is listening on port 1")

    with pytest.raises(ConnectionError, match="nothing is listening"):
        told(dataclasses.replace(method, chat=Nobody()), recording)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scoring": "topk"}, "did you mean 'topk_squared'"),
        ({"beta": 0}, "beta=0"),
        ({"labels": 4}, "labels=4"),
        ({"exemplars": 0}, "exemplars is 0"),
        ({"images_per_candidate": -1}, "images_per_candidate is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(method, settings, message):
    with pytest.raises((KeyError, ValueError), match=message):
        dataclasses.replace(method, **settings)


def test_units_and_images_that_do_not_fit(recording, method):
    with pytest.raises(ValueError, match="there is no unit 99"):
        told(method, recording, units=[99])
    with pytest.raises(KeyError, match="no layer 'con'; did you mean 'conv'"):
        method.trace(recording, "con", 0)
    with pytest.raises(ValueError, match="are not the"):
        method(recording, nb.ProbingSet.from_images([Image.new("RGB", (8, 8))] * 60))
    empty = told(method, recording, units=[])
    assert len(empty) == 0 and list(empty.columns) == ["layer", "unit", "description", "score", "method"] and empty.attrs["failures"] == []


def test_few_images_and_few_exemplars(method):
    images = squares(count=4)
    trace = dataclasses.replace(method, exemplars=7).trace(recorded(images), "conv", 0)
    assert len(trace.augmented.exemplars) == 4 < len(trace.augmented.images) == len(trace.augmented.union) <= 7 and trace.failure is None


def test_other_crops_another_target_and_another_painter_never_serve_what_was_kept(recording, method):
    first = method.trace(recording, "conv", 0)
    assert len(dataclasses.replace(method, crops=CropSettings(max_crops=0)).trace(recording, "conv", 0).augmented.union) == 10

    class Inverted(Painter):
        fingerprint = "inverted"

        def image(self, prompt, number):
            return Image.fromarray(255 - np.asarray(super().image(prompt, number)))

    other = dataclasses.replace(method, painter=Inverted()).trace(recording, "conv", 0)
    assert not np.allclose(other.painted.activations, first.painted.activations)
    model = Channels()
    model.conv.weight.data[0] *= 2
    doubled = method.trace(recorded(squares(), model), "conv", 0)
    np.testing.assert_allclose(doubled.painted.activations, 2 * first.painted.activations, rtol=1e-5)
    crops = [trace.augmented.union[trace.augmented.union.box.notna()].activation.max() for trace in (first, doubled)]
    assert crops[1] == pytest.approx(2 * crops[0], rel=1e-5)


def test_the_worlds_own_models_name_a_colour_from_nothing():
    """Every tool is the real class with trained weights: BLIP, a causal language model, the renderer, CLIP."""
    from neuronbench.embedded.world import World

    world = World(scenes=300)
    recording = nb.record(world.target, world.images, progress=False)
    unit = int(world.truth.set_index("description").unit["red"])
    trace = DescribeAndDissect(world.captioner, world.chat, world.painter, world.clip).trace(recording, "layer3", unit)
    assert "red" in trace.description.split() and trace.failure is None and len(trace.proposed.captions) == 10
    assert sum("red" in caption.split() for caption in trace.proposed.captions) >= 8
    assert trace.painted.activations.shape[1] == 10 and np.isfinite(trace.painted.activations).all()


# labels as chat models write them


@pytest.mark.parametrize("said", [
    "Red boats.", '**Label:** "Red boats"', "**Label**: red boats", "Label: **red boats**", "label：red boats", "Concept label - red boats", "1. red boats", "1) red boats", "- red boats",
    "* red boats", "• red boats", "**1. Red boats**", "```\nred boats\n```", "```text\nred boats\n```", "```red boats```", "`red boats`", "# Red Boats", "### Label\nred boats",
    '## **Concept Label:**\n\n"Red boats"', "***Red boats***", "_red boats_", "> red boats", "red boats\n---", "The neuron responds to: red boats", "Unit 12 responds to: **red boats**.",
    "This neuron responds strongly to red boats.", "Sure! Here is the label:\n\nred boats", 'Sure, here is a concise label: "red boats".', "Here's one: red boats", "Label:\nred boats",
    "Final answer: red boats", 'The concise concept label is "red boats"', 'Title: "Label: red boats"', "Answer: red boats\n\nExplanation: they all show boats.",
    "**Red boats**\n\nThis label captures what they share.", "Red boats\n\nBecause all are red.", "<answer>red boats</answer>", "\\boxed{red boats}", "\x1b[31mred\u202e boats\x1b[0m",
])
def test_a_label_is_found_in_markdown_and_after_what_announces_it(said):
    assert cleaned(said) == "red boats" == cleaned(cleaned(said))


@pytest.mark.parametrize("said, label", [
    ("1. red boats\n2. blue boats", "red boats, blue boats"), ("Here are two:\n- red boats\n- blue boats", "red boats, blue boats"), ("red boats: a view", "red boats: a view"),
    ("a clock at 12:30", "a clock at 12:30"), ("3.5 mm jack", "3.5 mm jack"), ("2 boats", "2 boats"), ("C# code", "c# code"), ("#1 fan", "#1 fan"), ("snake_case and a*b*c", "snake_case and a*b*c"),
    ("concept", "concept"), ("label", "label"), ("description of a boat: old", "description of a boat: old"), ("<b>it's</b> a U.S. flag", "<b>it's</b> a u.s. flag"), ("Label:", ""), ("", ""),
])
def test_what_is_a_label_or_a_list_stays(said, label):
    assert cleaned(said) == label


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_a_cleaned_label_is_one_clean_line(said):
    label = cleaned(said)
    assert label == " ".join(label.split()) == clean_text(label) and label.lower() == label
