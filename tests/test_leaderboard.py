"""The leaderboard: known answers give known tables, failures count as wrong and are kept, and what does not fit is refused in one sentence."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronbench.describe.descriptions import describe_frame
from neuronbench.embedded.world import World
from neuronbench.evaluate.leaderboard import UNIT_KINDS, WORLD_METHODS, leaderboard, plot_leaderboard, summed_up, unit_answers, wide_table, world_methods
from neuronbench.probe.recording import record


@pytest.fixture(scope="module")
def here():
    return World(scenes=160)


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


def test_whoever_knows_the_truth_is_right_and_whoever_is_silent_is_not(here, recording):
    silent = dict.fromkeys(truths(here))
    board = leaderboard(here, recording, {"oracle": Says(truths(here)), "silent": Says(silent), "absent": Says({})})
    assert board[["method", "kind"]].values.tolist() == [[name, kind] for name in ("oracle", "silent", "absent") for kind in UNIT_KINDS]
    assert board.units.tolist() == 3 * [20, 24, 8, 8]
    measures = board.set_index("method")[["exact", "agreement", "described"]]
    assert np.allclose(measures.loc["oracle"], 1, atol=1e-5) and (measures.loc[["silent", "absent"]] == 0).all(axis=None)
    failures = board.attrs["failures"]
    assert len(failures) == 60 and all(failure["method"] == "silent" and failure["reason"] == "silent" for failure in failures)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_shares_are_those_of_the_units_that_were_named(here, recording, seed):
    rng, known = np.random.default_rng(seed), truths(here)
    named = {unit for unit in known if rng.random() < 0.5}
    spoken = {unit: text if unit in named else rng.choice(["a nice picture", None]) for unit, text in known.items()}
    board = leaderboard(here, recording, {"one": Says(spoken)}).set_index("kind")
    for kind in UNIT_KINDS:
        units = [(row.layer, row.unit) for row in here.truth[here.truth.kind == kind].itertuples()]
        assert board.exact[kind] == pytest.approx(np.mean([unit in named for unit in units]))
        assert board.described[kind] == pytest.approx(np.mean([spoken[unit] is not None for unit in units]))


def test_of_several_words_for_a_unit_the_first_counts(here, recording):
    class Twice(Says):
        def __call__(self, recording, images, units=None):
            first = super().__call__(recording, images, units)
            return pd.concat([first, first.assign(description="teapot")], ignore_index=True)

    answers = unit_answers(here, recording, {"twice": Twice(truths(here))})
    assert len(answers) == 60 and answers.right.all() and summed_up(answers).exact.eq(1).all()


def test_the_best_stands_first_and_every_kind_is_drawn(here, recording):
    known = truths(here)
    half = {unit: text for unit, text in known.items() if unit[1] % 2}
    board = leaderboard(here, recording, {"silent": Says({}), "half": Says(half), "oracle": Says(known)})
    table = wide_table(board)
    assert table.index.tolist() == ["oracle", "half", "silent"]
    assert table.columns.tolist() == [(name, kind) for name in ("exact", "agreement") for kind in UNIT_KINDS] + [("seconds", "all")]
    figure = plot_leaderboard(board)
    assert [axis.get_title().split()[0] for axis in figure.axes] == list(UNIT_KINDS)
    assert [bar.get_width() for bar in figure.axes[0].patches] == table["exact", "class"][::-1].tolist()


def test_only_what_is_asked_for_is_built():
    fresh = World(scenes=4)
    assert list(world_methods(fresh, ["invert"])) == ["invert"]
    assert not {"clip", "captioner", "chat"} & set(vars(fresh))
    with pytest.raises(KeyError, match="no method 'falkon'; did you mean 'falcon'"):
        world_methods(fresh, ["falkon"])


def test_published_methods_run_on_a_small_world(here, recording):
    names = [name for name in WORLD_METHODS if name.split()[0] in ("clip-dissect", "invert", "network-dissection")]
    answers = unit_answers(here, recording, world_methods(here, names))
    assert len(answers) == 60 * len(names) and answers.description.notna().mean() > 0.8  # on few scenes, some class units never exceed their threshold
    board = summed_up(answers)
    assert board[(board.method == "clip-dissect") & (board.kind == "class")].exact.item() >= 0.5
    words = board[board.method.isin(["clip-dissect", "network-dissection"]) & board.kind.isin(["polysemantic", "composition"])]
    assert (words.exact == 0).all() and (words.agreement > 0).all()


def test_a_recording_of_other_images_is_refused(here):
    other = World(scenes=30)
    with pytest.raises(ValueError, match="images"):
        leaderboard(here, record(other.target, other.images, progress=False), world_methods(here, ["invert"]))
