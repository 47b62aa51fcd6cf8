"""The leaderboard: known answers give known tables, failures count as wrong and are kept, and what does not fit is refused in one sentence."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronbench.describe.descriptions import describe_frame
from neuronbench.describe.method import METHODS, Method, Trace, needs
from neuronbench.embedded.world import World
from neuronbench.evaluate.agreement import measured, text_cosine
from neuronbench.evaluate.leaderboard import (SAME, TRUTH, UNIT_KINDS, VARIANTS, answer_values, leaderboard, plot_leaderboard, summed_up, unit_answers, wide_table,
                                              world_measures, world_methods)
from neuronbench.evaluate.measure import summary
from neuronbench.probe.recording import record


@pytest.fixture(scope="module")
def here():
    return World(scenes=240)


@pytest.fixture(scope="module")
def recording(here):
    return record(here.target, here.images, progress=False)


class Says:
    """A method that says what `words` ({(layer, unit): text or None}) has, and nothing of other units."""

    def __init__(self, words):
        self.words = words

    def __call__(self, recording, images, units=None):
        [(layer, numbers)] = units.items()
        said = [unit for unit in numbers if (layer, unit) in self.words]
        texts = [self.words[layer, unit] for unit in said]
        table = describe_frame(layer, said, texts, np.where([text is None for text in texts], np.nan, 1.0), "any name")
        table.attrs["failures"] = [{"layer": layer, "unit": unit, "step": "say", "reason": "silent"} for unit in said if self.words[layer, unit] is None]
        return table


def truths(world):
    return {(row.layer, row.unit): row.description for row in world.truth.itertuples()}


def means(board, measure):
    """(method, kind) -> mean."""
    return board[board.measure == measure].set_index(["method", "kind"])["mean"]


def test_whoever_knows_the_truth_is_right_and_whoever_is_silent_gets_what_a_guess_gets(here, recording):
    silent = dict.fromkeys(truths(here))
    board = leaderboard(here, recording, {"oracle": Says(truths(here)), "silent": Says(silent), "absent": Says({})}, world_measures(here, painted=2))
    assert board[board.measure == "right"].units.tolist() == [units for units in (20, 24, 8, 8) for _ in range(5)]
    for measure, best, guess in (("right", 1, 0), ("described", 1, 0), ("CLIP cosine", 1, 0), ("CoSy AUC", None, 0.5), ("top against random", None, 0.5), ("Spearman", None, 0)):
        found = means(board, measure)
        assert (found.loc[["silent", "absent"]] == guess).all() and np.allclose(found["oracle"], found[TRUTH]), measure
        assert best is None or np.allclose(found["oracle"], best, atol=1e-5), measure
    assert means(board, "CoSy AUC")["oracle", "class"] > 0.9 and means(board, "Spearman")["oracle", "single"] > 0.2
    failures = board.attrs["failures"]
    assert len(failures) == 60 and all(failure["method"] == "silent" and failure["reason"] == "silent" for failure in failures)


def test_a_constant_stands_in_every_table(here, recording):
    board = leaderboard(here, recording, {}, world_measures(here, painted=2))
    assert set(board.method) == {TRUTH, SAME} and (means(board, "right")[SAME] == 0).all() and (means(board, "described")[SAME] == 1).all()
    assert means(board, "CLIP cosine")[SAME].max() < 0.5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_shares_are_those_of_the_units_that_were_named(here, recording, seed):
    rng, known = np.random.default_rng(seed), truths(here)
    named = {unit for unit in known if rng.random() < 0.5}
    spoken = {unit: text if unit in named else rng.choice(["a nice picture", None]) for unit, text in known.items()}
    answers = unit_answers(here, recording, {"one": Says(spoken)})
    own = answers[answers.method == "one"].groupby("kind")
    for kind in UNIT_KINDS:
        units = [(row.layer, row.unit) for row in here.truth[here.truth.kind == kind].itertuples()]
        assert own.right.mean()[kind] == pytest.approx(np.mean([unit in named for unit in units]))
        assert own.description.count()[kind] == sum(spoken[unit] is not None for unit in units)


def test_a_sentence_model_is_one_more_measure_and_each_row_has_its_interval(here, recording):
    class Letters:
        def embed_texts(self, texts, progress=True):
            vectors = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    values = answer_values(recording, unit_answers(here, recording, {"oracle": Says(truths(here))}), world_measures(here, Letters(), painted=2))
    assert list(values.measure.unique()) == ["right", "described", "CLIP cosine", "sentence cosine", "CoSy AUC", "top against random", "Spearman", "seconds"]
    assert values.value.notna().all() and len(values) == 8 * 3 * 60
    board = summed_up(values)
    assert np.allclose(means(board, "sentence cosine")["oracle"], 1) and means(board, "sentence cosine")[SAME].max() < 0.9
    row = board[(board.kind == "single") & (board.measure == "Spearman") & (board.method == TRUTH)].iloc[0]
    [expected] = summary(values[(values.kind == "single") & (values.measure == "Spearman") & (values.method == TRUTH)]).itertuples()
    assert (row["mean"], row.low, row.high) == (expected.mean, expected.low, expected.high) and row.low < row["mean"] < row.high


def test_of_several_words_for_a_unit_the_first_counts(here, recording):
    class Twice(Says):
        def __call__(self, recording, images, units=None):
            first = super().__call__(recording, images, units)
            return pd.concat([first, first.assign(description="teapot")], ignore_index=True)

    answers = unit_answers(here, recording, {"twice": Twice(truths(here))}).query("method == 'twice'")
    assert len(answers) == 60 and answers.right.all()


def test_the_best_stands_first_and_every_kind_is_drawn(here, recording):
    known = truths(here)
    half = {unit: text for unit, text in known.items() if unit[1] % 2}
    board = leaderboard(here, recording, {"silent": Says({}), "half": Says(half), "oracle": Says(known)}, world_measures(here, painted=2))
    table = wide_table(board)
    assert table.index.tolist() == ["oracle", TRUTH, "half", "silent", SAME]
    others = ["described", "CLIP cosine", "CoSy AUC", "top against random", "Spearman"]
    assert table.columns.tolist() == [("right", kind) for kind in UNIT_KINDS] + [("mean over kinds", name) for name in others] + [("seconds", "all units")]
    assert table.loc["half", ("mean over kinds", "described")] == pytest.approx(means(board, "described")["half"].mean())
    figure = plot_leaderboard(board)
    assert [axis.get_title().split()[0] for axis in figure.axes] == list(UNIT_KINDS)
    assert [bar.get_width() for bar in figure.axes[0].patches] == table["right", "class"][::-1].tolist()


def test_only_what_is_asked_for_is_built():
    fresh = World(scenes=4)
    assert list(world_methods(fresh, ["invert"])) == ["invert"]
    assert not {"clip", "captioner", "chat"} & set(vars(fresh))
    with pytest.raises(KeyError, match="no method 'falkon'; did you mean 'falcon'"):
        world_methods(fresh, ["falkon"])


def test_published_methods_run_on_a_small_world(here, recording):
    names = [name for name in [*METHODS, *VARIANTS] if name.split()[0] in ("clip-dissect", "invert", "network-dissection")]
    answers = unit_answers(here, recording, world_methods(here, names))
    answers = answers[answers.method.isin(names)]
    assert len(answers) == 60 * len(names) and answers.description.notna().mean() > 0.8  # on few scenes, some class units never exceed their threshold
    right = answers.groupby(["method", "kind"]).right.mean()
    assert right["clip-dissect", "class"] >= 0.5
    halves = [["clip-dissect", "network-dissection"], ["polysemantic", "composition"]]
    cosines = pd.Series(measured(text_cosine(here.clip), answers.description, answers.truth), answers.index).groupby([answers.method, answers.kind]).mean()
    assert (right.loc[*halves] == 0).all() and (cosines.loc[*halves] > 0).all()


def test_a_recording_of_other_images_is_refused(here):
    other = World(scenes=30)
    with pytest.raises(ValueError, match="images"):
        leaderboard(here, record(other.target, other.images, progress=False), world_methods(here, ["invert"]))


@pytest.fixture
def installed_methods(monkeypatch):
    """The methods, to which a test may add its own; gone after it."""
    len(METHODS)
    monkeypatch.setattr(METHODS, "_classes", dict(METHODS._classes))


def naive(name, traces, **needed):
    """A method of somebody else's."""
    members = {"name": name, "label": name.title(), "traces": traces, "__module__": "somebody_else", "__annotations__": dict.fromkeys(needed, object), **needed}
    return dataclass(frozen=True, eq=False)(type(name.title(), (Method,), members))


def test_a_method_that_somebody_installs_is_on_the_leaderboard_and_a_failing_one_costs_only_itself(here, recording, installed_methods):
    def says(self, recording, layer, units, watch=None):
        return [Trace(recording, layer, int(unit), labels=((self.concepts[0], 1.0),)) for unit in units]

    def fails(self, recording, layer, units, watch=None):
        raise ZeroDivisionError("by nothing")

    naive("parrot", says, concepts=needs()), naive("broken", fails), naive("wanting", says, segmenter=needs())
    methods = world_methods(here)
    assert {"parrot", "broken"} <= set(methods) and "wanting" not in methods and set(VARIANTS) <= set(methods) and list(methods) == sorted(methods) and len(methods) == 8 + len(VARIANTS) + 2
    with pytest.raises(ValueError, match="wanting needs segmenter"):
        world_methods(here, ["wanting"])
    with pytest.warns(UserWarning, match="the method 'broken' is left out: it raised ZeroDivisionError: by nothing"):
        answers = unit_answers(here, recording, {name: methods[name] for name in ("parrot", "broken")})
    assert set(answers.method) == {"parrot", TRUTH, SAME} and (answers[answers.method == "parrot"].description == here.concepts[0]).all()
