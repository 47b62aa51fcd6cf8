"""Measures by name: those of the package, those that somebody else installs, and what is wrong with a broken one."""

import re
import warnings
from dataclasses import dataclass

import pandas as pd
import pytest

import neuronbench as nb
from neuronbench.evaluate.leaderboard import UNIT_KINDS, leaderboard, wide_table, world_measures
from neuronbench.evaluate.measure import MEASURES, Measure, measure_fault, supplied_measures
from test_leaderboard import here, recording  # noqa: F401

OURS = {"agreement", "class-detection", "connections", "described", "described-drops", "faithfulness", "right", "seconds", "synthesis"}

SHORT = '''
from dataclasses import dataclass
from neuronbench.evaluate.measure import Measure

@dataclass(frozen=True, eq=False)
class Brevity(Measure):
    """One divided by the number of words."""
    truths: object
    name = "brevity"
    gives = {"brevity": 0.0, "words": None}

    def values(self, judged, recording):
        words = judged.description.str.split().str.len()
        return judged.assign(brevity=1 / words, words=words)
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs a package: its name, its code and its entry points {name: "module:attribute"}; gone after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    len(MEASURES)  # so that what is of the package is imported before

    def install(package, code, **offers):
        (tmp_path / f"{package}.py").write_text(code)
        metadata = tmp_path / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[neuronbench.measures]\n" + "".join(f"{name} = {place}\n" for name, place in offers.items()))
        monkeypatch.setattr(MEASURES, "_searched", False)

    monkeypatch.setattr(MEASURES, "_classes", dict(MEASURES._classes))
    monkeypatch.setattr(MEASURES, "faults", {})
    yield install
    monkeypatch.setattr(MEASURES, "_searched", True)


class Silent:
    """A method that says nothing."""

    def __call__(self, recording, images, units=None):
        return pd.DataFrame(columns=["layer", "unit", "description", "score", "method"])


def test_the_package_has_its_measures():
    assert OURS <= set(MEASURES) and MEASURES["synthesis"] is nb.Synthesis and nb.MEASURES is MEASURES
    with pytest.raises(KeyError, match="no measure 'synthesys'; did you mean 'synthesis'"):
        MEASURES["synthesys"]


def test_a_measure_that_somebody_installs_stands_in_the_leaderboard(installed, here, recording):
    installed("brevity_of_words", SHORT, brevity="brevity_of_words:Brevity")
    measures = world_measures(here, painted=2)
    assert list(measures) == ["right", "described", "agreement", "synthesis", "faithfulness", "brevity", "seconds"]
    board = leaderboard(here, recording, {"silent": Silent()}, measures)
    brief = board[board.measure == "brevity"].pivot(index="kind", columns="method", values="mean").loc[list(UNIT_KINDS)]
    assert brief.columns.tolist() == ["constant: depictions", "silent", "the truth"]
    assert brief["silent"].tolist() == [0] * 4 and brief["constant: depictions"].tolist() == [1] * 4 and brief.loc["single", "the truth"] == 1 > brief.loc["composition", "the truth"]
    assert ("mean over kinds", "brevity") in wide_table(board) and "words" not in set(board.measure)


@pytest.mark.parametrize("code, sentence", [
    ("import no_such_library_anywhere", "ModuleNotFoundError: No module named 'no_such_library_anywhere'"),
    ("raise SystemError('gone')", "SystemError: gone"), ("def Bad(:", "SyntaxError"), ("Bad = 3", "3 is no subclass of neuronbench.evaluate.measure.Measure"),
    ("other = 1", "AttributeError: .*Bad"), ("from neuronbench.evaluate.measure import Measure\nclass Bad(Measure):\n    name = 'bad'", "Bad is no frozen dataclass")])
def test_a_broken_package_is_named_in_a_sentence_and_costs_nothing_else(installed, code, sentence, request):
    package = f"broken_package_{abs(hash(request.node.name))}"
    installed(package, code, bad=f"{package}:Bad")
    with pytest.warns(UserWarning, match=f"the measure 'bad' of the package {package} cannot be used: {sentence}"):
        assert OURS <= set(MEASURES) and "bad" not in MEASURES
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is told once
        assert MEASURES["agreement"] is nb.Agreement
    with pytest.raises(ValueError, match="cannot be used"):
        MEASURES["bad"]


def test_a_measure_of_another_package_that_fails_is_left_out_of_the_leaderboard(here, recording):
    @dataclass(frozen=True, eq=False)
    class Failing(Measure):
        gives = {"failing": 0.0}

        def values(self, judged, recording):
            raise ZeroDivisionError("by nothing")

    with pytest.warns(UserWarning, match="the measure 'failing' is left out: it raised ZeroDivisionError: by nothing"):
        board = leaderboard(here, recording, {}, {"described": MEASURES["described"](), "failing": Failing()})
    assert set(board.measure) == {"described"}


def test_what_is_no_complete_measure_is_told_what_it_lacks():
    @dataclass(frozen=True, eq=False)
    class Nameless(Measure):
        gives = {}

    @dataclass(frozen=True, eq=False)
    class Giveless(Nameless):
        name, gives = "giveless", None

    @dataclass(frozen=True, eq=False)
    class Valueless(Measure):
        name, gives = "valueless", {"nothing": 0.0}

    for kind, sentence in ((int, "int'> is no subclass of"), (4, "4 is no subclass of"), (Nameless, "has no name"), (Giveless, "does not say what it gives"),
                           (Valueless, r"give it values\(self, judged, recording\)")):
        assert re.search(sentence, measure_fault(kind)), measure_fault(kind)
    assert measure_fault(nb.Agreement) == "" == measure_fault(nb.Synthesis) and not {"giveless", "valueless"} & set(MEASURES)
    with pytest.raises(ValueError, match="the measure 'valueless' cannot be used: .*Valueless measures nothing"):
        MEASURES["valueless"]


def test_measures_are_supplied_by_the_names_of_what_they_need():
    supplied = supplied_measures({"clip": "a clip", "models": ["a clip"], "labels": pd.DataFrame()}, {"faithfulness": {"top": 7}})
    assert {"faithfulness", "class-detection", "described", "seconds"} <= set(supplied) and not {"synthesis", "agreement", "connections", "right"} & set(supplied)
    assert supplied["faithfulness"].clip == "a clip" and supplied["faithfulness"].top == 7 and supplied["faithfulness"].seen == 15


def test_a_measure_of_another_package_that_cannot_be_made_costs_only_itself(installed):
    code = SHORT.replace("    def values", "    def __post_init__(self):\n        raise LookupError('no dictionary')\n\n    def values")
    installed("brevity_without_words", code, brevity="brevity_without_words:Brevity")
    with pytest.warns(UserWarning, match="the measure 'brevity' is left out: it raised LookupError: no dictionary"):
        assert list(supplied_measures({"truths": pd.DataFrame(columns=["layer", "unit", "truth"])})) == ["agreement", "described", "seconds"]


def test_a_fault_of_our_own_is_no_warning():
    with pytest.raises(TypeError):
        supplied_measures({"truths": "no table"})
