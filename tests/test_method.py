"""The contract of methods: what a run keeps when it stops, what is refused, and what a trace of each method shows."""

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import neuronbench as nb
import test_degenerate_units as small
from neuronbench.describe import method as contract
from neuronbench.describe.method import METHODS, Label, Method, Need, Trace, needs, needs_of, supplied
from neuronbench.probe import target as networks
from tiny_colours import COLOURS, ColourCLIP

UNITS = [0, 1, 4, 5, 2, 3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """The methods of this file are gone after each test."""
    list(METHODS)
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))


@pytest.fixture(scope="module")
def recording():
    return small.recorded()


@pytest.fixture
def bench(recording):
    bench = nb.Workbench(recording.target, recording.images)
    bench.__dict__["recording"] = recording
    return bench


@pytest.fixture
def told(own_registry):
    """The class of a method that says of each unit what its setting tells."""

    @dataclass(frozen=True, eq=False)
    class Told(Method):
        name, label, part = "told", "Told", 2
        answers: dict = field(default_factory=dict)  # {unit: labels, a reason, or an exception to raise}

        def traces(self, recording, layer, units, watch=None):
            return [self.trace_of(recording, layer, unit, self.answers.get(int(unit), [("said", 0.5)])) for unit in units]

        def trace_of(self, recording, layer, unit, answer):
            if isinstance(answer, BaseException):
                raise answer
            return Trace(recording, layer, unit, reason=answer) if isinstance(answer, str) else Trace(recording, layer, unit, answer)

    return Told


@pytest.mark.parametrize("error", [RuntimeError("the third part"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_what_stops_a_run_costs_none_of_the_parts_before(told, bench, error):
    with pytest.raises(type(error)):
        bench.describe("layer", "told", UNITS, answers={2: error, 1: "it is dead"})
    assert bench.descriptions.unit.tolist() == UNITS[:4] and [failure["unit"] for failure in bench.failures] == [1]


def test_failures_of_two_runs_stay_until_a_unit_succeeds(told, bench):
    with pytest.warns(UserWarning, match="no description"):
        bench.describe("layer", "told", [0], answers={0: "it is constant"})
        bench.describe("layer", "told", [1, 4], answers={1: "it is dead"})
    assert [(failure["unit"], failure["reason"], failure["method"]) for failure in bench.failures] == [(0, "it is constant", "Told"), (1, "it is dead", "Told")]
    bench.describe("layer", "told", [0])
    assert [failure["unit"] for failure in bench.failures] == [1]
    assert bench.descriptions.set_index("unit").description.dropna().to_dict() == {4: "said", 0: "said"}


@pytest.mark.parametrize("answered", [lambda units: units[:1], lambda units: units[::-1], lambda units: [*units, 5], lambda units: []])
def test_a_method_that_answers_for_other_units_is_refused(own_registry, recording, answered):
    @dataclass(frozen=True, eq=False)
    class Astray(Method):
        name, label = "astray", "Astray"

        def traces(self, recording, layer, units, watch=None):
            return [Trace(recording, layer, unit, [("said", 0.5)]) for unit in answered(list(units))]

    with pytest.raises(ValueError, match=r"^astray answered for the units \[.*\] of 'layer': expected \[0, 1\]$"):
        Astray()(recording, recording.images, {"layer": [0, 1]})


@pytest.mark.parametrize("label", [(None, 0.5), ("", 0.5), (" \n", 0.5), (b"said", 0.5), (np.nan, 0.5), ("said", "high"), ("said", None), ("said",), ("said", 1, 2), "said", 7, None])
def test_a_label_that_is_no_text_with_a_number_is_refused(recording, label):
    with pytest.raises(TypeError, match="^a label of unit 4 of 'layer' is .*: expected a text that is not empty, and a number, NaN where there is no score$"):
        Trace(recording, "layer", 4, [("said", 0.5), label])


def test_a_trace_has_labels_or_a_reason(recording):
    for labels in ((), []):
        with pytest.raises(ValueError, match=r"the trace of unit 4 of 'layer' has no labels: give the reason why as reason=\.\.\.$"):
            Trace(recording, "layer", 4, labels)
    failed = Trace(recording, "layer", np.int64(4), [(None, np.nan)], "it is dead", "compare")
    assert failed.labels == () and failed.description is None and np.isnan(failed.score)
    assert failed.failure == {"layer": "layer", "unit": 4, "step": "compare", "reason": "it is dead"}


def test_a_label_is_text_that_can_be_shown_and_a_number(recording):
    trace = Trace(recording, "layer", 4, [(" red\x00 house ", np.float32(0.5)), ("boat", np.nan)])
    assert trace.labels[0] == Label("red house", 0.5) and type(trace.labels[0].score) is float and np.isnan(trace.labels[1].score)
    assert trace.description == "red house" and trace.score == 0.5 and trace.failure is None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:.*have no description", "ignore:.*not finite")
def test_a_trace_of_each_method_has_labels_or_a_failure_evidence_and_a_plot(recording, name):
    method = small.methods(recording)[name]
    for unit in [0, 2] if name == "describe-and-dissect" else [0, 2, 4]:
        trace = method.trace(recording, "layer", unit)
        assert isinstance(trace, Trace) and (trace.layer, trace.unit) == ("layer", unit)
        assert bool(trace.labels) == (unit == 4) and (trace.failure is None) == (unit == 4) and all(isinstance(label, Label) for label in trace.labels)
        assert {"image", "activation"} <= set(trace.evidence) and trace.evidence.image.isin(range(len(recording.images))).all()
        assert (trace.evidence.activation.diff().dropna() <= 0).all() and isinstance(trace.plot(), Figure) and repr(unit) in repr(trace)
        assert len(trace.evidence) or unit != 4


def test_weights_are_hashed_once_a_part(told, recording, monkeypatch):
    hashed, key_of = [], networks._network_key
    monkeypatch.setattr(networks, "_network_key", lambda model: hashed.append(model) or key_of(model))
    monkeypatch.setattr(told, "trace_of", lambda self, recording, layer, unit, answer: Trace(recording, layer, unit, [(recording.target.fingerprint, 1.0)]))
    parts = told().parts(recording, recording.images, {"layer": UNITS})
    counts = [len(hashed)]
    for _ in parts:
        counts.append(len(hashed))
        recording.target.fingerprint  # what is done between the parts is not of the run: it reads the weights again
    checked, between = 1, 1  # the network is checked before the first part
    assert np.diff(counts).tolist() == [checked + 1, between + 1, between + 1]


class Unloaded(AssertionError):
    """A model was loaded before everything was checked."""


def never():
    raise Unloaded


@pytest.fixture
def needing(own_registry, monkeypatch):
    """Makes the class of a method from its needs; models are never loaded, unless a test says how."""
    monkeypatch.setattr(contract, "NEEDS", {name: replace(need, load=need.load and never) for name, need in contract.NEEDS.items()})

    def make(**fields):
        kind = type("Needing", (Method,), {"name": "needing", "label": "Needing", "__annotations__": dict.fromkeys(fields, object), **fields,
                                           "traces": lambda self, recording, layer, units, watch=None: []})
        return dataclass(frozen=True, eq=False)(kind)

    return make


def supply(recording, held=None, **settings):
    return supplied("needing", {} if held is None else held, recording.target, recording.images, **settings)


def test_what_is_needed_is_said_before_a_model_is_loaded(needing, recording):
    needing(clip=needs(), captions=needs())
    with pytest.raises(ValueError, match=r"^needing needs captions: give Workbench\(captions="):
        supply(recording)
    with pytest.raises(Unloaded):
        supply(recording, captions=["a boat"])


def test_unless_another_setting_takes_its_place(needing, recording):
    needing(annotations=needs(unless="segmenter", default=None), segmenter=None)
    with pytest.raises(ValueError, match="needs annotations"):
        supply(recording)
    segmenter = nb.world().segmenter
    method = supply(recording, {"annotations": "masks"}, segmenter=segmenter)
    assert method.annotations is None and method.segmenter is segmenter
    assert supply(recording, {"annotations": "masks"}).annotations == "masks"


def test_what_is_optional_may_be_missing(needing, recording):
    kind = needing(labels=needs(optional=True, default=None))
    assert supply(recording).labels is None and supply(recording, {"labels": "a table"}).labels == "a table"
    assert needs_of(kind) == {"labels": {"read": None, "unless": "", "optional": True}}


def test_what_is_held_is_read_before_a_model_is_loaded(needing, recording):
    needing(clip=needs(), captions=needs(read=open), concepts=needs(read=tuple, optional=True, default=None))
    with pytest.raises(FileNotFoundError):
        supply(recording, captions="/no/such/file.txt")
    held = {"clip": ColourCLIP(), "captions": __file__, "concepts": "ab"}
    method = supply(recording, held)
    with method.captions:
        assert method.concepts == ("a", "b") and method.clip is held["clip"] and held["captions"] == __file__


@pytest.mark.parametrize("given, sentence", [({"clip": "ViT-B-16"}, r"^clip is 'ViT-B-16', which cannot embed_images\(\): expected a model such as nb\.CLIP\("),
                                             ({"chat": COLOURS}, r"^chat is .*, which cannot answers\(\): expected a model such as nb\.")])
def test_a_thing_that_is_no_model_is_refused_before_another_is_loaded(needing, recording, given, sentence):
    needing(clip=needs(), chat=needs(), painter=needs())
    with pytest.raises(TypeError, match=sentence):
        supply(recording, **given)


def test_the_words_of_a_method_come_before_a_model_is_loaded(needing, recording):
    kind = needing(clip=needs())

    def refuse(cls, given, target, images):
        raise ValueError(f"it cannot work on {len(images)} images")

    kind.check_given = classmethod(refuse)
    with pytest.raises(ValueError, match="it cannot work on 30 images"):
        supply(recording)


def test_a_model_is_loaded_once_and_held(needing, recording, monkeypatch):
    needing(clip=needs())
    loaded, held = [], {}
    monkeypatch.setitem(contract.NEEDS, "clip", Need(load=lambda: loaded.append(ColourCLIP()) or loaded[-1]))
    assert supply(recording, held).clip is supply(recording, held).clip is held["clip"] and len(loaded) == 1


def test_settings_come_before_what_is_held(needing, recording):
    needing(clip=needs())
    held, other = {"clip": ColourCLIP()}, ColourCLIP()
    assert supply(recording, held, clip=other).clip is other and held["clip"] is not other
    with pytest.raises(KeyError, match="no setting of needing 'clipp'; did you mean 'clip'"):
        supply(recording, held, clipp=other)


def test_a_need_that_no_bench_holds_is_a_fault(needing, recording):
    needing(microscope=needs())
    with pytest.raises(ValueError, match="the method 'needing' cannot be used: Needing needs microscope, which no bench holds"):
        supply(recording)
    assert "needing" not in METHODS
