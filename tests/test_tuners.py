"""The Python side of the tuners: what crosses to the view, what is refused, what runs again, and that the code they give is exact."""

import dataclasses
import io
import json
import threading
import time

import numpy as np
import pandas as pd
import pytest
import traitlets
from PIL import Image
from tiny_recording import HOSTILE, Drawings, tiny_descriptions, tiny_recording
from tuner_fakes import Captions, Paints, Sight, Talker, fake_method

from neuronbench.describe.comparison import disagreeing
from neuronbench.describe.describe_and_dissect.method import DescribeAndDissect
from neuronbench.describe.describe_and_dissect.prompts import Prompts, examples_from
from neuronbench.describe.describe_and_dissect.reasons import reason, score_columns
from neuronbench.describe.describe_and_dissect.scoring import SCORINGS
from neuronbench.describe.method import METHODS, Method, Trace
from neuronbench.foundation.consensus import Consensus
from neuronbench.probe.crops import CropSettings, crop_steps
from neuronbench.probe.exemplars import exemplars
from neuronbench.probe.target import Target
from neuronbench.show.page import static_page
from neuronbench.widgets.compare import Compare
from neuronbench.widgets.crops_tuner import CropsTuner
from neuronbench.widgets.prompts_tuner import PromptsTuner, chosen_numbers, version_path
from neuronbench.widgets.scoring_tuner import ScoringTuner
from neuronbench.widgets.selection import Selection
from neuronbench.widgets.tuner import written
from neuronbench.widgets.tuners import tune
from neuronbench.widgets.work import Stopped, Work

pytestmark = pytest.mark.filterwarnings("ignore:.*(finite on fewer than|NaN or infinite):UserWarning")


@pytest.fixture(scope="module")
def recording():
    return tiny_recording()


@pytest.fixture(scope="module")
def both():
    """Recorded by two poolings."""
    return tiny_recording(("mean", "max"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test starts with nothing known."""
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


def listen(tuner):
    """The tuner, with the messages it sends in `tuner.sent`."""
    tuner.sent = []
    tuner.send = lambda content, buffers=None: tuner.sent.append((content, buffers or []))
    return tuner


def ask(tuner, kind, **rest):
    """What the view's message of that kind does."""
    tuner._answer(tuner, {"kind": kind, **rest}, [])


def last(tuner, kind):
    return next((content, buffers) for content, buffers in reversed(tuner.sent) if content["kind"] == kind)


def finished(tuner, seconds=60):
    tuner.work.wait(seconds)
    return tuner


def executed(code, **names):
    exec(code, names)
    return names


# a run in a thread


def test_a_run_shows_its_steps_and_then_nothing():
    states = []
    work = Work(states.append)
    work.start(lambda watch: [watch("captions", 1, 2), watch("captions", 2, 2), watch("paint", 1, 1)])
    work.wait(10)
    assert states[0]["step"] == "starting" and states[-2:] == [{"step": "paint", "done": 1, "total": 1}, {}]


def test_a_stopped_run_says_where_and_the_next_one_starts():
    said, gate = [], threading.Event()
    work = Work(lambda state: None, said.append)
    work.start(lambda watch: [gate.wait(10), watch("captions", 3, 9)])
    with pytest.raises(RuntimeError, match="something is running"):
        work.start(lambda watch: None)
    work.stop()
    gate.set()
    work.wait(10)
    assert said == ["Stopped at captions, 3 of 9; what was done is kept, and the next run continues from it."]
    work.start(lambda watch: watch("captions", 9, 9))
    work.wait(10)
    assert len(said) == 1 and work.error is None


def test_an_error_of_a_run_is_a_sentence_and_is_kept():
    said = []
    work = Work(lambda state: None, said.append)
    work.start(lambda watch: 1 / 0)
    work.wait(10)
    assert said == ["ZeroDivisionError: division by zero"] and isinstance(work.error, ZeroDivisionError)


def test_waiting_too_short_is_said():
    gate = threading.Event()
    work = Work(lambda state: None)
    work.start(lambda watch: gate.wait(10))
    with pytest.raises(TimeoutError, match="still runs"):
        work.wait(0.01)
    gate.set()
    work.wait(10)


def test_stopped_is_an_exception_that_a_method_may_let_through():
    with pytest.raises(Stopped):
        raise Stopped("here")


# code


@dataclasses.dataclass(frozen=True)
class Everything:
    model: object
    text: str = "a"
    number: float = 0.5
    nothing: int | None = 3
    pair: tuple = (1,)
    crops: CropSettings | None = CropSettings()


@pytest.mark.parametrize("value", [
    Everything("m"), Everything("m", "it's\n\"two\" lines\n"), Everything("m", 'one \\ "line"'), Everything("m", number=1e-7, nothing=None, pair=("x",)),
    Everything("m", pair=(("a", ("b",)), "c")), Everything("m", crops=None), Everything("m", crops=CropSettings(threshold=7.0, upsampling="nearest")), Everything("m", HOSTILE, pair=()),
])
def test_written_code_makes_the_same_value_again(value):
    assert eval(written(value), {"Everything": Everything, "CropSettings": CropSettings}) == value


def test_functions_and_models_are_written_by_name():
    assert written(Everything(np.linalg, pair=(len,))) == "Everything(model=model, pair=(len,))"


# every tuner


def every_tuner(recording, tmp_path):
    method = fake_method()
    return [CropsTuner(recording, "maps", 3), PromptsTuner(method, recording, "maps", 3, folder=tmp_path), ScoringTuner(method, recording, "maps", 3),
            Compare(recording, {"a": tiny_descriptions()}, "maps"), tune(method, recording, recording.images, "maps", 3, folder=tmp_path).bar]


def test_every_trait_explains_itself(recording, tmp_path):
    for tuner in every_tuner(recording, tmp_path):
        own = {name for name in type(tuner).class_trait_names(sync=True) if not name.startswith("_")} - {"layout", "tabbable", "tooltip"}
        assert all(type(tuner).class_traits()[name].help for name in own), tuner


def test_wrong_layers_units_and_messages_are_sentences(recording, tmp_path):
    for tuner in every_tuner(recording, tmp_path):
        with pytest.raises(KeyError, match="did you mean 'maps'"):
            tuner.layer = "mapz"
        with pytest.raises(IndexError, match="0 to 39; 40 was asked for"):
            tuner.unit = 40
        ask(tuner, "explode")
        assert tuner.message.startswith("UnknownChoice: no action 'explode'")
        ask(tuner, "stop", force=True)
        assert tuner.message.startswith("TypeError")


def test_a_layer_and_a_unit_can_come_together(recording, tmp_path):
    for tuner in every_tuner(recording, tmp_path)[:3]:
        tuner.set_state({"layer": "vector", "unit": 2000})
        assert (tuner.layer, tuner.unit, tuner.unit_count) == ("vector", 2000, 2048)
        tuner.layer = "maps"
        assert (tuner.unit, tuner.unit_count) == (39, 40)


def test_every_message_is_valid_json(recording, tmp_path):
    for tuner in map(listen, every_tuner(recording, tmp_path)[:4]):
        for unit in (0, 1, 2, 3):
            tuner.unit = unit
            ask(tuner, "ask")
        json.dumps([content for content, _ in tuner.sent], allow_nan=False)
        assert tuner.message == ""


# crops


def test_the_page_is_what_the_crop_steps_say(recording):
    tuner = listen(CropsTuner(recording, "maps", 5, CropSettings(threshold=100), k=6, side=60))
    ask(tuner, "ask")
    shown, pictures = last(tuner, "exemplars")
    best = exemplars(recording, "maps", [5], 6)
    assert shown["images"] == best.images[0].tolist() and shown["ids"] == [Drawings.ids[i] for i in best.images[0]]
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(60, 60)] * 6
    content, (masks, maps) = last(tuner, "steps")
    steps = [crop_steps(one, (60, 60), tuner.settings) for one in best.maps[0]]
    assert content["boxes"] == [[list(box) for box in one.boxes] for one in steps] and content["thresholds"] == [100.0] * 6
    assert np.array_equal(np.unpackbits(np.frombuffer(masks, np.uint8))[: 6 * 3600].reshape(6, 60, 60), np.stack([one.mask for one in steps]))
    assert maps == np.stack([one.scaled for one in steps]).tobytes()


def test_dragging_sends_masks_and_boxes_only(recording):
    tuner = listen(CropsTuner(recording, "maps", 5, k=6, side=60))
    ask(tuner, "ask")
    tuner.sent.clear()
    for level in (40, 80, 120):
        tuner.set_state({"threshold": level})
    assert [content["kind"] for content, _ in tuner.sent] == ["steps"] * 3 and all(len(buffers) == 1 for _, buffers in tuner.sent)
    assert sum(len(buffers[0]) for _, buffers in tuner.sent) == 3 * 6 * 3600 // 8
    tuner.upsampling = "nearest"
    assert len(tuner.sent[-1][1]) == 2  # other maps


@pytest.mark.parametrize("name, value", [("threshold", 90.0), ("max_crops", 1), ("max_iou", 0.1), ("max_cover", 0.3), ("min_area", 0.1), ("upsampling", "bicubic")])
def test_each_control_is_a_field_of_the_settings(recording, name, value):
    tuner = CropsTuner(recording, "maps", 5, side=60)
    tuner.set_state({name: value})
    assert tuner.settings == CropSettings(**{name: value})
    assert executed(tuner.code)["crops"] == tuner.settings
    tuner.settings = CropSettings()
    assert tuner.settings == CropSettings() and getattr(tuner, name) == getattr(CropSettings(), name)


def test_the_exemplars_are_those_of_the_pooling_asked_for(both, recording):
    tuner = listen(CropsTuner(both, "maps", 5, k=6, side=60, pool="max"))
    ask(tuner, "ask")
    content, _ = last(tuner, "exemplars")
    assert content["pool"] == "max" and content["images"] == both.top("maps", 5, 6, "max").image.tolist()
    tuner.pool = None
    content, _ = last(tuner, "exemplars")
    assert content["pool"] == "mean" and content["images"] == both.top("maps", 5, 6, "mean").image.tolist() != both.top("maps", 5, 6, "max").image.tolist()
    assert len(last(tuner, "steps")[1]) == 2  # the maps of other images are sent again
    tuner.layer, tuner.pool = "vector", "max"
    assert last(tuner, "exemplars")[0]["pool"] is None
    with pytest.raises(KeyError, match="no recorded pooling 'max'"):
        CropsTuner(recording, "maps", 5, pool="max")


def test_settings_out_of_range_are_refused(recording):
    tuner = CropsTuner(recording, "maps", 5, side=60)
    for name, value in {"threshold": 300, "max_iou": 1.5, "upsampling": "cubist", "max_crops": -1}.items():
        with pytest.raises(traitlets.TraitError):
            setattr(tuner, name, value)
    assert tuner.settings == CropSettings()


def test_a_layer_without_maps_says_so(recording):
    tuner = listen(CropsTuner(recording, "vector", 7, side=60))
    ask(tuner, "ask")
    tuner.threshold = 90
    assert [content["kind"] for content, _ in tuner.sent] == ["exemplars"] and not tuner.sent[0][0]["spatial"] and tuner.message == ""


@pytest.mark.parametrize("unit, count", [(1, 10), (2, 0)])
def test_units_that_are_nan_have_a_page_too(recording, unit, count):
    tuner = listen(CropsTuner(recording, "maps", unit, side=60))
    ask(tuner, "ask")
    assert len(last(tuner, "exemplars")[0]["images"]) == count and tuner.message == ""


def test_an_image_that_is_gone_is_a_sentence(recording, monkeypatch):
    tuner = listen(CropsTuner(recording, "maps", 9, side=60))
    monkeypatch.setattr(type(recording.images), "__getitem__", lambda self, i: (_ for _ in ()).throw(OSError(f"no {HOSTILE}")))
    ask(tuner, "ask")
    assert tuner.message == f"OSError: no {HOSTILE}"


# scoring


@pytest.fixture
def scoring(recording):
    def largest(activations):
        return np.nanmax(activations, 1)

    def hasty(activations):
        raise RuntimeError(HOSTILE)

    def undecided(activations):
        return np.full(len(activations), np.nan)

    tuner = listen(ScoringTuner(fake_method(summarise=False), recording, "maps", 5, scorings=[largest, hasty, undecided]))
    assert tuner.runs == "Run on unit 5"
    ask(tuner, "run")
    return finished(tuner)


def test_the_candidates_arrive_with_all_scores(scoring):
    content, pictures = last(scoring, "painted")
    trace = scoring.trace
    assert content["candidates"] == list(trace.proposed.candidates) and len(content["candidates"]) > 1
    assert len(pictures) == content["exemplars"] + sum(map(len, content["counts"])) and content["exemplars"] == len(trace.augmented.images)
    scores, _ = last(scoring, "scores")
    assert [column["name"] for column in scores["columns"]] == [*SCORINGS, "largest", "hasty", "undecided"]
    for column in scores["columns"][:4]:
        np.testing.assert_allclose(np.array(column["scores"], float), trace.painted.scores(column["name"]))
    assert scores["order"][0] == scores["winner"] and trace.description == content["candidates"][scores["winner"]]
    assert scoring.runs == "" and scoring.message == ""


def test_functions_that_fail_are_text_beside_the_others(scoring):
    columns = {column["name"]: column for column in last(scoring, "scores")[0]["columns"]}
    assert HOSTILE in columns["hasty"]["error"] and "finite" in columns["undecided"]["error"] and not columns["largest"]["error"]
    scoring.scoring = "hasty"
    content, _ = last(scoring, "scores")
    assert content["winner"] is None and HOSTILE in content["reason"] and scoring.message == ""


def test_turning_scores_calls_no_model(scoring):
    method, calls = scoring.method, (scoring.method.captioner.calls, scoring.method.painter.calls)
    for change in ({"scoring": "mean"}, {"scoring": "topk_squared", "beta": 2}, {"t": 1, "scoring": "image_products"}, {"images_per_candidate": 2}, {"scoring": "largest"}):
        scoring.sent.clear()
        scoring.set_state(change)
        content, _ = last(scoring, "scores")
        expected = scoring.trace.painted.activations[:, : scoring.images_per_candidate]
        column = next(one for one in content["columns"] if one["name"] == scoring.scoring)
        [again] = score_columns([scoring.functions[scoring.scoring]], expected, scoring.trace.painted.embeddings[:, : scoring.images_per_candidate],
                                scoring.trace.painted.exemplars, scoring.beta, scoring.t)
        assert column == again and not any(sent["kind"] == "painted" for sent, _ in scoring.sent)
    assert (method.captioner.calls, method.painter.calls) == calls
    assert scoring.method.scoring.__name__ == "largest" and scoring.method.beta == 2


def test_images_are_ordered_by_activation_and_those_that_count_are_marked(scoring):
    scoring.set_state({"scoring": "topk_squared", "beta": 2})
    for row, images in zip(scoring.trace.painted.activations, last(scoring, "scores")[0]["images"]):
        assert [image["activation"] for image in images] == sorted(row[np.isfinite(row)].tolist(), reverse=True)
        assert [image["counts"] for image in images] == [True, True, False, False]


def test_more_images_than_painted_need_a_run(scoring):
    scoring.images_per_candidate = 6
    assert scoring.runs == "Paint 6 images of each"
    finished(scoring)
    ask(scoring, "run")
    finished(scoring)
    assert scoring.runs == "" and scoring.trace.painted.activations.shape[1] == 6


def test_a_change_upstream_drops_the_trace_and_one_downstream_does_not(scoring):
    scoring.method = dataclasses.replace(scoring.method, beta=1)
    assert scoring.trace is not None and scoring.beta == 1
    scoring.method = dataclasses.replace(scoring.method, crops=None)
    assert scoring.trace is None and last(scoring, "nothing")[0]["sentence"].startswith("The candidates of this unit are not here yet")


def test_the_code_of_the_scoring_tuner_describes_the_unit_the_same(scoring, recording):
    scoring.set_state({"scoring": "topk_squared", "beta": 2})
    method = scoring.method
    names = executed(scoring.code, recording=recording, captioner=method.captioner, chat=method.chat, painter=method.painter, clip=method.clip)
    assert names["descriptions"]["description"].tolist() == [scoring.trace.description]
    assert all(getattr(names["method"], field.name) == getattr(method, field.name) for field in dataclasses.fields(method))


@pytest.mark.parametrize("method, words", [
    (fake_method(select=False), "is the first candidate"), (fake_method(scoring=lambda activations: np.full(len(activations), np.nan)), "returned"),
])
def test_a_unit_without_scores_says_why(recording, method, words):
    tuner = listen(ScoringTuner(method, recording, "maps", 5))
    tuner.run()
    finished(tuner)
    said = [content.get("sentence", "") + content.get("reason", "") for content, _ in tuner.sent]
    assert any(words in one for one in said) and tuner.message == ""


def test_a_unit_that_is_nan_everywhere_says_why(recording):
    tuner = listen(ScoringTuner(fake_method(), recording, "maps", 2))
    tuner.run()
    finished(tuner)
    assert "NaN or infinite on some images" in last(tuner, "nothing")[0]["sentence"]


def test_reasons_speak_the_terms_of_their_function():
    activations = np.array([[9.0, 8.0], [7.0, 1.0], [np.nan, np.nan]])
    painted, exemplars = np.ones((3, 2, 4)), np.ones((2, 4))
    columns = score_columns(list(SCORINGS), activations, painted, exemplars, beta=1)
    said = {one["name"]: reason(one["name"], one["scores"], ["a", "b", "c"], activations, painted, exemplars, beta=1) for one in columns}
    assert "the mean rank of its images is 1.50, of 4; for “b”, the next, the mean rank of its images is 3.50" in said["mean"]
    assert "its best ranks are 1, their mean square 1.00" in said["topk_squared"]
    assert "place 1 by squared ranks and a cosine of 1.00 make 2.00" in said["topk_squared_image_products"]
    assert "have the same score" in said["image_products"]


# prompts


@pytest.fixture
def prompts(recording, tmp_path):
    truth = pd.DataFrame({"layer": "maps", "unit": [3, 4, 5], "description": ["Red", "very red", HOSTILE]})
    return listen(PromptsTuner(fake_method(), recording, "maps", 3, chats={"loud": Talker("loud", f"{HOSTILE} ")}, truth=truth, folder=tmp_path / "prompts"))


def run(tuner):
    ask(tuner, "run")
    return finished(tuner)


def test_a_prompt_without_its_placeholder_is_told_beside_its_field_and_nothing_runs(prompts):
    before = prompts.method
    prompts.set_state({"summarise": "In one word", "paint": "A picture"})
    assert set(prompts.problems) == {"summarise", "paint"} and "{descriptions}" in prompts.problems["summarise"] and prompts.method is before
    ask(prompts, "run")
    assert prompts.message.startswith("ValueError") and prompts.running == {} and prompts.rows == []
    prompts.set_state({"summarise": "In one word: {descriptions}", "paint": "A picture of {candidate}"})
    assert prompts.problems == {} and prompts.method.prompts == Prompts(summarise="In one word: {descriptions}", paint="A picture of {candidate}")


@pytest.mark.parametrize("text, words", [("one caption", "example 1"), ("-> label", "example 1"), ("a\n-> b\n\nc\n->", "example 2")])
def test_wrong_examples_are_told_beside_their_field(prompts, text, words):
    prompts.examples = text
    assert words in prompts.problems["examples"]
    with pytest.raises(ValueError, match=words):
        examples_from(text)


@pytest.mark.parametrize("text", ["3, five", "40", "9-3", "-1", "1e3", "3-", "²"])
def test_wrong_units_are_told_beside_their_field(prompts, text):
    prompts.chosen = text
    assert prompts.problems["chosen"]
    with pytest.raises(ValueError):
        chosen_numbers(text, 40)
    prompts.chosen = "3-5"
    assert prompts.problems == {} and prompts.units == [3, 4, 5] and prompts.runs == "Run on 3 units"


def test_tokens_and_cost_are_counted_before_anything_is_sent(prompts):
    talker = prompts.method.chat
    assert prompts.countable and "captioned" in prompts.estimate
    ask(prompts, "count")
    finished(prompts)
    assert not prompts.countable and talker.sent == 0 and prompts.method.painter.calls == 0
    assert "tokens to send" in prompts.estimate and "$" in prompts.estimate
    run(prompts)
    assert prompts.estimate.startswith("9 requests, 9 of them known: 0 tokens to send") and talker.sent > 0
    prompts.summarise = "EMPHASIS {descriptions}"
    assert prompts.estimate == "Counting requests and tokens."
    prompts.estimating.wait(60)
    assert prompts.estimate.startswith("9 requests, 4 of them known")


def test_a_letter_that_is_typed_counts_and_asks_nothing(prompts, monkeypatch):
    ask(prompts, "count")
    finished(prompts).estimating.wait(60)
    handlers, talker = [], prompts.method.chat
    for name in ("estimate", "answers"):
        called = getattr(Talker, name)
        monkeypatch.setattr(Talker, name, lambda self, *given, called=called, **settings: handlers.append(threading.current_thread()) or called(self, *given, **settings))
    for typed in range(20):
        prompts.set_state({"summarise": f"{'EMPHASIS'[:typed]} {{descriptions}}"})
        assert threading.current_thread() not in handlers
    prompts.estimating.wait(60)
    assert handlers and threading.current_thread() not in handlers and "9 requests" in prompts.estimate and talker.sent == 0


def test_what_goes_wrong_in_counting_is_a_sentence(prompts, monkeypatch):
    ask(prompts, "count")
    finished(prompts)
    monkeypatch.setattr(Talker, "estimate", lambda self, requests: 1 / 0)
    prompts.temperature = 0.9
    prompts.estimating.wait(60)
    assert prompts.message == "ZeroDivisionError: division by zero"


def test_an_edited_prompt_shows_what_changed_and_what_agrees(prompts):
    prompts.chosen = "3-5"
    prompts.summarise = "EMPHASIS {descriptions}"
    run(prompts)
    assert prompts.message == "" and [row["unit"] for row in prompts.rows] == [3, 4, 5] and prompts.compared == "as given"
    row = prompts.rows[0]
    assert row["before"]["words"] == [["red", False]] and row["after"]["words"] == [["very", True], ["red", False]] and row["changed"]
    assert row["before"]["right"] is True and row["after"]["right"] is False and row["truth"] == "Red"
    assert prompts.summary.startswith("3 of 3 descriptions changed. ") and "Sent: " in prompts.summary


def test_editing_one_prompt_and_running_ten_units_again_looks_at_nothing_that_is_known(prompts, monkeypatch):
    method, passes, collect = prompts.method, [], Target.collect
    monkeypatch.setattr(Target, "collect", lambda self, *given: passes.append(1) or collect(self, *given))
    prompts.chosen = "3-12"
    run(prompts)
    calls, looked = (method.captioner.calls, method.painter.calls), len(passes)
    prompts.simplify = f"Shorter, please. {Prompts().simplify}"  # other requests, the same candidates
    sent = method.chat.sent
    run(prompts)
    assert prompts.message == "" and len(prompts.rows) == 10 and method.chat.sent > sent
    assert (method.captioner.calls, method.painter.calls) == calls and len(passes) == looked > 0


def test_model_temperature_and_candidates_are_settings_too(prompts):
    prompts.set_state({"chat": "loud", "temperature": 0.0, "candidates": 2})
    assert prompts.method.chat.name == "loud" and prompts.method.temperature == 0 and prompts.method.candidates == 2
    run(prompts)
    after = prompts.rows[0]["after"]
    assert HOSTILE.split()[0] in after["words"][0][0] and after["words"][0][1]
    with pytest.raises(KeyError, match="did you mean 'loud'"):
        prompts.chat = "lout"
    table = prompts.still()["text/html"]
    assert HOSTILE not in table and "&lt;img" in table


def test_versions_are_plain_text_files_that_load_again(prompts):
    prompts.set_state({"summarise": "EMPHASIS {descriptions}", "examples": "a\nb\n-> c"})
    ask(prompts, "save", name="loud words")
    assert prompts.version == "loud words" and prompts.versions == ["as given", "loud words"] and prompts.message.startswith("Saved as")
    text = (prompts.folder / "loud words.txt").read_text()
    assert "EMPHASIS {descriptions}" in text and Prompts.load(prompts.folder / "loud words.txt") == prompts.method.prompts == prompts.saved.prompts
    ask(prompts, "load", name="as given")
    assert prompts.method.prompts == Prompts() == prompts.saved.prompts and prompts.examples.startswith("a knitted cloth")
    ask(prompts, "load", name="loud words")
    assert prompts.method.prompts.examples == ((("a", "b"), "c"),) and prompts.message == ""


@pytest.mark.parametrize("name", ["", "../out", "a/b", "..", "a\\b", ".hidden", "a\nb", "x" * 200, "dot.", "as given"])
def test_a_version_cannot_leave_its_folder(prompts, name):
    ask(prompts, "save", name=name)
    assert prompts.message.startswith("ValueError") and not prompts.folder.exists()
    with pytest.raises(ValueError, match="no name for a version"):
        version_path("prompts", name)


def test_a_damaged_version_is_a_sentence(prompts):
    prompts.folder.mkdir()
    (prompts.folder / "bad.txt").write_text("=== summarise ===\nno placeholder\n")
    ask(prompts, "load", name="bad")
    assert "{descriptions}" in prompts.message and prompts.method.prompts == Prompts()
    ask(prompts, "load", name="gone")
    assert prompts.message.startswith("FileNotFoundError")


def test_the_code_of_the_prompts_tuner_describes_the_units_the_same(prompts, recording):
    prompts.set_state({"summarise": "EMPHASIS it's\n{descriptions}", "chosen": "3, 4", "candidates": 3, "chat": "loud"})
    run(prompts)
    method = prompts.method
    names = executed(prompts.code, recording=recording, captioner=method.captioner, chats={"loud": method.chat}, painter=method.painter, clip=method.clip)
    said = [" ".join(text for text, _ in row["after"]["words"]) for row in prompts.rows]
    assert names["descriptions"]["description"].tolist() == said and names["method"].prompts == method.prompts


def test_a_unit_that_fails_has_its_reason_in_the_table(prompts):
    prompts.chosen = "2, 3"
    run(prompts)
    assert "NaN or infinite on some images" in prompts.rows[0]["after"]["reason"] and prompts.rows[1]["after"]["reason"] == ""


def test_a_run_can_be_stopped_and_the_kernel_answers_meanwhile(recording, tmp_path):
    gate = threading.Event()
    tuner = listen(PromptsTuner(fake_method(gate), recording, "maps", 3, folder=tmp_path))
    ask(tuner, "run")
    deadline = time.monotonic() + 30
    while not tuner.running and time.monotonic() < deadline:
        time.sleep(0.01)
    tuner.candidates = 3  # what a person does meanwhile
    assert tuner.running and tuner.method.candidates == 3
    ask(tuner, "stop")
    gate.set()
    finished(tuner)
    assert tuner.message.startswith("Stopped at captions") and tuner.running == {} and tuner.rows == []
    run(tuner)
    assert tuner.message == "" and len(tuner.rows) == 1


def test_a_model_that_cannot_be_reached_is_a_sentence(recording, tmp_path):
    class Unreachable(Talker):
        def answers(self, requests, progress=True):
            raise ConnectionError("nothing listens at 127.0.0.1:8000; LocalChat and Consensus need no server")

    tuner = listen(PromptsTuner(fake_method(), recording, "maps", 3, chats={"far": Unreachable("far")}, folder=tmp_path))
    tuner.chat = "far"
    run(tuner)
    assert tuner.message.startswith("ConnectionError: nothing listens") and tuner.running == {}
    tuner.chat = "talker"
    run(tuner)
    assert tuner.message == "" and len(tuner.rows) == 1


# comparison


def two_methods():
    words = tiny_descriptions()
    return {name: words[words["method"] == name] for name in ("CLIP-Dissect", "INVERT")}


@pytest.fixture
def compare(recording):
    truth = pd.DataFrame({"layer": "maps", "unit": [0, 1], "description": [HOSTILE, "red boat"]})
    return listen(Compare(recording, two_methods(), "maps", [0, 1, 2, 39], truth=truth))


def test_rows_hold_what_each_method_says(compare):
    given = two_methods()["INVERT"].set_index("unit")
    assert compare.names == ["CLIP-Dissect", "INVERT"] and [row["unit"] for row in compare.rows] == [0, 1, 2, 39]
    assert compare.rows[1]["answers"][1]["said"] == given.description[1] and compare.rows[1]["answers"][1]["score"] == pytest.approx(given.score[1])
    assert compare.rows[0]["answers"][0]["right"] is True and compare.rows[3]["answers"][0] == {"said": None, "score": None, "right": None, "reason": ""}
    json.dumps(compare.rows, allow_nan=False)


def test_the_filter_lists_units_that_disagree_or_match(compare):
    frame = two_methods()["INVERT"]
    same = Compare(compare.recording, {"a": frame, "b": frame.assign(description=frame.description.str.upper())}, "maps", range(5))
    assert not disagreeing({"a": frame[["description"]], "b": frame[["description"]]}).any()
    same.only_disagreeing = True
    assert same.listed == []
    compare.only_disagreeing = True
    assert compare.listed == [0, 1, 2]
    compare.query = "ONERROR"
    assert compare.listed == [0]
    compare.set_state({"query": "39", "only_disagreeing": False})
    assert compare.listed == [39]


def test_the_table_and_the_csv_file_are_what_is_listed(compare):
    compare.query = compare.rows[1]["answers"][0]["said"]
    ask(compare, "csv")
    content, _ = last(compare, "file")
    table = pd.read_csv(io.StringIO(content["text"]))
    assert table.columns.tolist() == ["layer", "unit", "description", "similarity", "method"] and table["unit"].tolist() == [1, 1]
    assert compare.table["description"].tolist() == table["description"].tolist() and content["name"] == "maps.csv"


def test_the_page_has_everything_inside_and_nothing_that_runs(compare, tmp_path):
    compare.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    ask(compare, "page")
    assert last(compare, "file")[0]["text"] == page
    assert HOSTILE not in page and "&lt;img src=x onerror" in page and "<script" not in page and "http" not in page
    assert page.count('src="data:image/jpeg;base64,') == 4 * 5 - 5 and len(page) < 200_000  # unit 2 has no exemplars
    assert "http" not in static_page([], ["a"], "maps", None)


def test_the_pictures_are_those_of_the_pooling_asked_for(both, recording):
    compare = listen(Compare(both, {"a": tiny_descriptions()}, "maps", [5], pool="max"))
    ask(compare, "pictures", layer="maps", units=[5], pool="max")
    ask(compare, "pictures", layer="maps", units=[5], pool=None)
    largest, mean = (buffers for _, buffers in compare.sent)
    assert [content["pool"] for content, _ in compare.sent] == ["max", None] and largest != mean
    assert largest == [compare.thumbnail(i) for i in both.top("maps", 5, 5, "max").image]
    assert "pooled by max" in compare.page() and compare.code.endswith(", pool='max')")
    compare.layer = "vector"
    assert "pooled by" not in compare.page() and "pool" not in Compare(both, {"a": tiny_descriptions()}, "maps", [5]).code
    with pytest.raises(KeyError, match="no recorded pooling 'max'"):
        Compare(recording, {"a": tiny_descriptions()}, "maps", pool="max")


def test_pictures_cross_for_the_rows_in_view(compare):
    ask(compare, "pictures", layer="maps", units=[1, 39], pool=None)
    assert [content["unit"] for content, _ in compare.sent] == [1, 39] and [len(buffers) for _, buffers in compare.sent] == [5, 5]
    assert max(Image.open(io.BytesIO(compare.sent[0][1][0])).size) <= 112


def test_methods_run_in_parts_and_their_failures_have_reasons(recording):
    tuner = listen(Compare(recording, {"fake": fake_method(), "INVERT": two_methods()["INVERT"]}, "maps", range(20)))
    assert tuner.runs == "Run fake" and tuner.rows[0]["answers"][0]["said"] is None and not any(row["disagree"] for row in tuner.rows)
    run(tuner)
    assert tuner.message == "" and tuner.rows[5]["answers"][0]["said"] and "NaN or infinite" in tuner.rows[2]["answers"][0]["reason"]
    page = tuner.page()
    assert "NaN or infinite on some images" in page


def test_a_stopped_comparison_keeps_what_was_described(recording):
    class Stopping(Captions):
        batches = 0

        def captions(self, images, indices=None, progress=True):
            self.batches += 1
            if self.batches == 2:
                tuner.work.stop()
            return super().captions(images)

    method = DescribeAndDissect(Stopping(), Talker(), Paints(), Sight(), exemplars=4, image_size=60, images_per_candidate=4)
    tuner = listen(Compare(recording, {"fake": method}, "maps", range(3, 40)))
    run(tuner)
    described = [row["unit"] for row in tuner.rows if row["answers"][0]["said"]]
    assert tuner.message.startswith("Stopped at") and described == list(range(3, 3 + len(described))) and 0 < len(described) < 37
    run(tuner)
    assert tuner.message == "" and all(row["answers"][0]["said"] for row in tuner.rows)


def test_wrong_units_and_columns_are_refused(recording):
    with pytest.raises(ValueError, match="there is no unit 40"):
        Compare(recording, two_methods(), "maps", [40])
    with pytest.raises(ValueError, match="missing: score"):
        Compare(recording, {"a": tiny_descriptions().drop(columns="score")}, "maps")


def test_the_code_of_the_comparison_makes_the_same_table(compare, recording):
    names = executed(Compare(recording, {"INVERT": two_methods()["INVERT"]}, "maps", [0, 1]).code, recording=recording, descriptions=two_methods()["INVERT"])
    assert names["compare"].rows == Compare(recording, {"INVERT": two_methods()["INVERT"]}, "maps", [0, 1]).rows
    method = fake_method(beta=2)
    code = Compare(recording, {"tuned": method}, "maps", [3]).code
    names = executed(code, recording=recording, captioner=method.captioner, chat=method.chat, painter=method.painter, clip=method.clip)
    assert names["compare"].methods["tuned"].beta == 2 and names["compare"].units == [3]


@dataclasses.dataclass(frozen=True, eq=False)
class Plain(Method):
    """A method that somebody else wrote: it says which half of the units a unit is in, and nothing of unit 5."""

    name, label = "plain", "Plain"
    word: str = "half"

    def traces(self, recording, layer, units, watch=None):
        middle = recording[layer].sizes["unit"] / 2
        return [Trace(recording, layer, unit, [(f"{self.word} {'first' if unit < middle else 'second'}", 1.0)], reason="it is unit five" if unit == 5 else "") for unit in units]


del METHODS._classes["plain"]  # other tests count the methods that there are


def test_a_method_that_somebody_else_wrote_is_compared_as_ours_are(recording):
    truth = pd.DataFrame({"layer": "maps", "unit": [3, 30], "description": ["First halves", "first half"]})
    tuner = listen(Compare(recording, {"plain": Plain(), "worded": Plain("piece"), "fake": fake_method()}, "maps", [3, 5, 30], truth=truth))
    assert [row["answers"][0]["reason"] for row in tuner.rows] == ["not run yet"] * 3
    run(tuner)
    assert tuner.message == "" and [row["answers"][0]["said"] for row in tuner.rows] == ["half first", None, "half second"]
    assert [row["answers"][0]["right"] for row in tuner.rows] == [True, None, False] and tuner.rows[1]["answers"][0]["reason"] == "it is unit five (describe)"
    assert "from test_tuners import Plain" in tuner.code and "Plain(word='piece')" in tuner.code and "half first" in tuner.page()
    exec(compile(tuner.code, "code", "exec"), {"recording": recording, "truth": truth, **{name: getattr(tuner.methods["fake"], name) for name in ("captioner", "chat", "painter", "clip")}})


def test_a_selection_stands_for_its_method(recording):
    selection = Selection(recording, "maps", 3, Plain())
    tuner = listen(Compare(recording, {"before": Plain(), "now": selection}, units=[3, 30], selection=selection))
    run(tuner)
    assert not any(row["disagree"] for row in tuner.rows)
    selection.method = Plain("piece")
    assert [row["answers"][1]["reason"] for row in tuner.rows] == ["not run yet"] * 2 and [row["answers"][0]["said"] for row in tuner.rows] == ["half first", "half second"]
    run(tuner)
    assert [row["answers"][1]["said"] for row in tuner.rows] == ["piece first", "piece second"] and all(row["disagree"] for row in tuner.rows)


# all of them


@pytest.fixture
def bench(recording, tmp_path):
    return tune(fake_method(), recording, recording.images, "maps", 3, chats={"no model": Consensus()}, folder=tmp_path)


def test_the_tuners_share_the_unit(bench):
    bench.bar.set_state({"layer": "vector", "unit": 2000})
    assert {(one.layer, one.unit) for one in (bench, bench.bar, bench.crops, bench.prompts, bench.scoring)} == {("vector", 2000)} and bench.compare.layer == "vector"
    bench.crops.set_state({"layer": "maps", "unit": 7})
    assert {(one.layer, one.unit) for one in (bench, bench.bar, bench.crops, bench.prompts, bench.scoring)} == {("maps", 7)} and bench.compare.layer == "maps"
    bench.unit = 9
    assert {one.unit for one in (bench.bar, bench.crops, bench.prompts, bench.scoring)} == {9}
    bench.layer, bench.unit = "vector", 2000
    bench.layer = "maps"  # which has fewer units
    assert {(one.layer, one.unit) for one in (bench, bench.bar, bench.crops, bench.prompts, bench.scoring)} == {("maps", 39)}


@pytest.mark.parametrize("shared", ["crops", "prompts", "scoring"])
def test_a_cell_and_a_click_at_once_leave_all_tuners_on_one_unit(bench, shared):
    """JupyterLab has the page's messages handled in a thread beside the one that runs cells."""
    heard, go_on = threading.Event(), threading.Event()

    def hear(change):
        if change["new"] == "vector":
            heard.set()
            go_on.wait(60)

    getattr(bench, shared).observe(hear, "layer")
    click = {"content": {"data": {"method": "update", "state": {"layer": "vector", "unit": 2000}}}}
    page = threading.Thread(target=bench.bar._handle_msg, args=(click,))
    page.start()
    assert heard.wait(60)
    cell = threading.Thread(target=setattr, args=(bench, "layer", "maps"))  # before the page's click has come to all
    cell.start()
    cell.join(0.5)
    go_on.set()
    page.join(60)
    cell.join(60)
    tuners = (bench, bench.bar, bench.crops, bench.prompts, bench.scoring)
    assert {one.layer for one in tuners} == {"maps"} == {bench.compare.layer} and len({one.unit for one in tuners}) == 1 and bench.bar.unit < 40


def test_what_one_tuner_sets_the_others_use(bench):
    bench.crops.set_state({"threshold": 120, "max_crops": 1})
    bench.prompts.set_state({"chat": "no model", "candidates": 2, "paint": "Draw {candidate}"})
    bench.scoring.set_state({"scoring": "topk_squared", "beta": 2})
    for one in (bench.method, bench.prompts.method, bench.scoring.method, bench.compare.methods["tuned"]):
        assert one.crops == CropSettings(threshold=120, max_crops=1) and one.chat.name == "consensus" and one.candidates == 2
        assert one.prompts.paint == "Draw {candidate}" and one.scoring == "topk_squared" and one.beta == 2
    assert bench.compare.methods["as given"].crops == CropSettings() and bench.prompts.saved.beta == 2 and bench.prompts.saved.prompts == Prompts()
    names = executed(bench.bar.code, recording=bench.crops.recording, captioner=bench.method.captioner, chats={"no model": bench.method.chat}, painter=bench.method.painter, clip=bench.method.clip)
    assert names["method"].crops == bench.method.crops and names["method"].prompts == bench.method.prompts and len(names["descriptions"]) == 1


def test_only_what_lies_downstream_runs_again(bench):
    finished((bench.scoring.run(), bench.scoring)[1])
    method, trace = bench.method, bench.scoring.trace
    calls = method.captioner.calls, method.chat.sent, method.painter.calls
    bench.scoring.set_state({"scoring": "mean"})
    assert bench.scoring.trace.painted is trace.painted
    bench.prompts.summarise = "EMPHASIS {descriptions}"
    assert bench.scoring.trace is None
    finished((bench.scoring.run(), bench.scoring)[1])
    assert method.captioner.calls == calls[0] and method.chat.sent > calls[1]
    bench.crops.max_crops = 0
    finished((bench.scoring.run(), bench.scoring)[1])
    assert method.captioner.calls >= calls[0] and bench.scoring.message == ""


def test_a_method_from_outside_moves_the_controls(bench):
    bench.method = dataclasses.replace(bench.method, crops=CropSettings(threshold=77), beta=1, temperature=0.0, prompts=Prompts(paint="See {candidate}"))
    assert bench.crops.threshold == 77 and bench.scoring.beta == 1 and bench.prompts.temperature == 0 and bench.prompts.paint == "See {candidate}"
    assert bench.method.crops.threshold == 77 and bench.method.beta == 1


def test_all_tuners_show_the_exemplars_of_the_methods_pooling(both, tmp_path):
    bench = tune(fake_method(pool="max"), both, both.images, "maps", 5, folder=tmp_path)
    key = bench.prompts.captions_key(5)
    assert bench.crops.pool == bench.compare.pool == "max"
    bench.method = dataclasses.replace(bench.method, pool="mean")
    assert bench.crops.pool == bench.compare.pool == "mean" and bench.prompts.captions_key(5) != key  # captions of other images are not taken for these
    assert "pool='mean'" in bench.bar.code


def test_only_the_page_on_view_redraws(bench):
    for page in bench.pages.children:
        listen(page)
    bench.prompts.estimating.wait(60)
    compared = bench.compare.rows
    bench.layer = "vector"
    bench.crops.threshold = 99
    bench.prompts.paint = "See {candidate}"
    assert [content["kind"] for content, _ in bench.crops.sent] == ["exemplars"] and all(page.sent == [] for page in bench.pages.children[1:])
    assert bench.compare.rows == compared and bench.compare.stale and bench.scoring.stale and bench.prompts.stale
    bench.bar.tab = 2
    assert [content["kind"] for content, _ in bench.scoring.sent] == ["nothing"] and not bench.scoring.stale and bench.compare.rows == compared
    bench.crops.sent.clear()
    bench.unit = 7
    assert bench.crops.sent == [] and len(bench.scoring.sent) == 2
    bench.bar.tab = 3
    assert len(bench.compare.rows) == 2048 and not bench.compare.stale
    bench.bar.tab = 0
    assert bench.crops.sent[0][0]["key"].startswith("vector 7 ")


def test_a_table_that_is_not_on_view_is_current_all_the_same(bench):
    bench.compare.descriptions["as given"] = tiny_descriptions().assign(layer="vector")
    bench.layer = "vector"
    assert set(bench.compare.table.layer) == {"vector"} and "vector: 2048 units" in bench.compare.page()


def test_what_one_tuner_ran_the_others_have(bench):
    run(bench.prompts)
    trace = bench.selection.results["maps", 3]
    assert bench.scoring.trace.painted is trace.painted and bench.scoring.runs == "Run on unit 3"  # its pictures are not made yet
    calls = bench.method.painter.calls
    finished((bench.scoring.run(), bench.scoring)[1])
    assert bench.scoring.runs == "" and bench.scoring.message == "" and bench.method.painter.calls >= calls
    bench.crops.max_crops = 1
    assert bench.selection.results == {} and bench.scoring.trace is None and bench.scoring.runs == "Run on unit 3"


def test_a_selection_is_always_a_unit_of_its_layer(recording):
    selection, heard = Selection(recording, "vector", 2000), []
    selection.observe(lambda change: heard.append((selection.layer, selection.unit)), ["layer", "unit"])
    selection.layer = "maps"
    selection.move("vector", 2047)
    selection.move("maps", 3)
    assert (selection.layer, selection.unit) == ("maps", 3) and all(unit < {"maps": 40, "vector": 2048}[layer] for layer, unit in heard)
    with pytest.raises(IndexError, match="40 was asked for"):
        selection.move("maps", 40)
    with pytest.raises(KeyError, match="did you mean 'maps'"):
        selection.move("mapz", 0)
    assert (selection.layer, selection.unit) == ("maps", 3)


def test_the_tabs_choose_the_page(bench):
    assert [type(page).__name__ for page in bench.pages.children] == ["CropsTuner", "PromptsTuner", "ScoringTuner", "Compare"]
    bench.bar.tab = 2
    assert bench.pages.selected_index == 2 and not any(page.alone for page in bench.pages.children)


def test_other_images_are_refused(recording):
    other = type(recording.images).from_images([Image.new("RGB", (9, 9))] * 2)
    with pytest.raises(ValueError, match="these 2 images are not the 60 images"):
        tune(fake_method(), recording, other, "maps", 3)


# without a kernel


def test_tuners_are_shown_with_a_still_output_that_the_view_hides(prompts, recording, monkeypatch):
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: outputs.append(data))
    run(prompts)
    for tuner, held in ((CropsTuner(recording, "maps", 3, side=60), "<img "), (prompts, "<table")):
        tuner._ipython_display_()
        view, still = outputs[-2:]
        assert set(view) == {"application/vnd.jupyter.widget-view+json", "text/plain"} and held in still["text/html"] and tuner.still_id in still["text/html"]
    listen(prompts)
    ask(prompts, "ask")
    assert last(prompts, "awake")  # by which the view knows to hide it


def test_stored_outputs_hold_a_picture_or_a_table(scoring, prompts, compare, recording):
    run(prompts)
    for tuner, kind in ((CropsTuner(recording, "maps", 3, side=60), "image/png"), (scoring, "image/png"), (prompts, "text/html"), (compare, "text/html")):
        bundle, _ = tuner._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle and len(bundle[kind]) < 400_000, tuner
        assert HOSTILE not in bundle.get("text/html", "")
