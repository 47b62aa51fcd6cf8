"""INVERT: AUCs against scikit-learn, the search against all formulas, bounds, ties, labels and refusals."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, rankdata
from sklearn.metrics import roc_auc_score

import neuronbench as nb
from neuronbench.describe import invert
from neuronbench.describe.formulas import Formula
from neuronbench.describe.invert import INVERT, auc_from_ranks, formulas_of, label_table, p_adjusted, p_value

NAMES = ["red", "boat", "night", "cat", "tree"]
JOINS = [("AND", False), ("AND", True), ("OR", False), ("OR", True)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


def random_case(seed, images=60, units=3, labels=5, levels=12):
    """Activations with ties and boolean labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, (images, units)) / 4, rng.random((images, labels)) < rng.uniform(0.1, 0.6, labels)


class Given(torch.nn.Module):
    """A network whose activations are given: image i is a picture of the number i."""

    def __init__(self, activations):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.tensor(activations, dtype=torch.float32))

    def forward(self, batch):
        return self.table(batch[:, 0, 0, 0].long())


def number_picture(number):
    return Image.new("RGB", (2, 2), (number % 256, number // 256, 0))


def recorded(activations, **labels):
    images = nb.ProbingSet.from_images([number_picture(number) for number in range(len(activations))], **labels)
    preprocess = lambda image: torch.full((3, 1, 1), float(np.asarray(image)[0, 0] @ [1, 256, 0]))
    return nb.record(nb.Target(Given(activations), layers=["table"], preprocess=preprocess, device="cpu"), images, progress=False)


def labelled(labels):
    return pd.DataFrame(labels, columns=NAMES[: labels.shape[1]])


def all_formulas(labels, length):
    """Every chain of up to `length` labels."""
    first = [("AND", name, negated) for name in labels for negated in (False, True)]
    more = [(join, name, negated) for join, negated in JOINS for name in labels]
    for count in range(1, length + 1):
        for head in first:
            for tail in itertools.product(more, repeat=count - 1):
                yield Formula((head, *tail))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_auc_is_that_of_scikit_learn(seed):
    activations, labels = random_case(seed)
    ranks = rankdata(activations, axis=0).T
    found = auc_from_ranks(ranks @ labels, labels.sum(0), len(labels))
    for unit, label in np.ndindex(found.shape):
        if 0 < labels[:, label].sum() < len(labels):
            assert found[unit, label] == pytest.approx(roc_auc_score(labels[:, label], activations[:, unit]), abs=1e-12)


def test_auc_of_nothing_and_everything_is_nan():
    assert np.isnan(auc_from_ranks(np.array([0.0, 15.0]), np.array([0, 5]), 5)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_extensions_are_scored_as_what_they_mean(seed):
    activations, labels = random_case(seed, units=1)
    formula = labels[:, 0]
    sums, counts = invert._extended(rankdata(activations[:, 0])[None], formula[None].astype(float), labels.astype(float))
    scores = auc_from_ranks(sums, counts, len(labels))[0]
    for (row, (join, negated)), label in itertools.product(enumerate(JOINS), range(5)):
        literal = labels[:, label] ^ negated
        truth = formula & literal if join == "AND" else formula | literal
        assert counts[0, row, label] == truth.sum()
        if 0 < truth.sum() < len(truth):
            assert scores[row, label] == pytest.approx(roc_auc_score(truth, activations[:, 0]), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", [1, 2, 3])
def test_wide_beam_finds_the_best_of_all_formulas(seed, length):
    activations, labels = random_case(seed, images=40, units=2, labels=3)
    recording, table = recorded(activations), labelled(labels)
    method = INVERT(table, length=length, beam_size=500, min_fraction=0.1, max_fraction=0.5)
    found = method.explain(recording, recording.images)
    for unit in range(2):
        scores = {}
        for formula in all_formulas(table.columns, length):
            truth = formula.truth(table)
            if 4 <= truth.sum() <= 20:
                scores[str(formula)] = roc_auc_score(truth, activations[:, unit])
        best = max(scores.values())
        assert found.auc[unit] == pytest.approx(best, abs=1e-12)
        assert scores[found.formula[unit]] == pytest.approx(best, abs=1e-12)


def test_narrow_beam_still_means_what_it_says():
    activations, labels = random_case(9, images=200, units=6)
    recording, table = recorded(activations), labelled(labels)
    found = INVERT(table).explain(recording, recording.images)
    by_text = {str(formula): formula for formula in all_formulas(table.columns, 3)}
    assert not set(found.formula) - set(by_text)
    for row in found.itertuples():
        truth = by_text[row.formula].truth(table)
        assert row.auc == pytest.approx(roc_auc_score(truth, activations[:, row.unit]), abs=1e-12)
        assert row.fraction == truth.mean() and 0.001 <= row.fraction <= 0.5
        expected = mannwhitneyu(activations[truth, row.unit], activations[~truth, row.unit]).pvalue
        assert row.p_value == pytest.approx(expected, rel=1e-6)


def test_planted_composition_is_found_and_the_simplest_formula_wins():
    table = labelled(np.random.default_rng(3).random((300, 5)) < 0.25)
    planted = [table.red, table.red & ~table.boat, table.red | table.night, ~table.tree & table.cat]
    recording = recorded(np.stack(planted, axis=1).astype("f4"))
    found = INVERT(table, length=3)(recording, recording.images)
    assert found.description[2] in ("red OR night", "night OR red")
    assert found.description.drop(2).tolist() == ["red", "red AND NOT boat", "cat AND NOT tree"]
    assert (found.score == 1).all() and set(found.method) == {"INVERT"}
    assert list(found.columns) == ["layer", "unit", "description", "score", "method"]


def test_formulas_read_well():
    text = lambda *terms: str(Formula(terms))
    assert text(("AND", "red", False)) == "red"
    assert text(("AND", "red", True)) == "NOT red"
    assert text(("AND", "a", False), ("AND", "b", True), ("AND", "c", False)) == "a AND NOT b AND c"
    assert text(("AND", "a", False), ("OR", "b", False), ("AND", "c", False), ("OR", "d", True)) == "((a OR b) AND c) OR NOT d"


def test_classes_of_the_probing_set_are_the_default_labels():
    numbers = [0, 1, 2, 1] * 10
    activations = np.array([[number == 2, number == 1] for number in numbers], dtype="f4")
    recording = recorded(activations, labels=[["airplane", "bird", "cat"][number] for number in numbers])
    assert INVERT(length=1)(recording, recording.images).description.tolist() == ["cat", "bird"]


def test_one_image_per_class_grows_by_or():
    recording = recorded(np.arange(40.0)[:, None], labels=[f"class{number:02}" for number in range(40)])
    found = INVERT(length=3, min_fraction=3 / 40).explain(recording, recording.images)
    assert set(found.formula[0].split(" OR ")) == {"class39", "class38", "class37"} and found.auc[0] == 1
    with pytest.raises(ValueError, match="no formula of up to 3 labels is true of 4 to 20 of the 40 images"):
        INVERT(length=3, min_fraction=0.1)(recording, recording.images)


def test_labels_that_never_or_always_hold_are_never_chosen():
    activations, labels = random_case(5)
    labels[:, 0], labels[:, 1] = True, False
    recording = recorded(activations)
    for formula in INVERT(labelled(labels))(recording, recording.images).description:
        assert "red" not in formula and "boat" not in formula


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_constant_unit_is_not_tested():
    activations, labels = random_case(6)
    activations[:, 1] = 0
    recording = recorded(activations)
    found = INVERT(labelled(labels)).explain(recording, recording.images)
    assert found.loc[1, ["auc", "p_value", "p_adjusted", "fraction"]].isna().all() and found.p_adjusted[[0, 2]].notna().all()
    assert pd.isna(found.formula[1]) and found.formula.notna()[[0, 2]].all()
    table = INVERT(labelled(labels))(recording, recording.images)
    assert table.description.isna().tolist() == table.score.isna().tolist() == [False, True, False]
    assert [(one["unit"], one["reason"]) for one in table.attrs["failures"]] == [(1, "the unit is 0 on every image, so that no image stands out")]
    assert INVERT(labelled(labels)).trace(recording, "table", 1).description is None


def test_one_image_is_no_evidence_for_any_label():
    recording = recorded(np.array([[0.3, -1.0]]))
    table = INVERT(pd.DataFrame({"red": [True], "boat": [False]}))(recording, recording.images)
    assert table.description.isna().all() and all("only one image" in one["reason"] for one in table.attrs["failures"])


@pytest.mark.parametrize("reverse", [False, True])
def test_labels_that_are_true_of_the_same_images_cannot_be_told_apart(reverse):
    rng = np.random.default_rng(0)
    flags = rng.random((60, 4)) < 0.4
    flags[:, 1] = flags[:, 0]
    recording = recorded(np.stack([flags[:, 0] + rng.random(60) / 2, flags[:, 2] + rng.random(60) / 2], axis=1))
    table = pd.DataFrame(flags, columns=["red", "crimson", "boat", "sea"])
    table = table[table.columns[::-1]] if reverse else table
    method = INVERT(table, length=1)
    found = method(recording, recording.images)
    assert found.description.isna().tolist() == [True, False] and found.description[1] == "boat"
    assert {"'red'", "'crimson'"} <= set(found.attrs["failures"][0]["reason"].split())
    trace = method.trace(recording, "table", 0)
    assert trace.description is None and "crimson" in trace.reason and len(trace.formulas)


@pytest.mark.parametrize("reverse", [False, True])
def test_labels_that_separate_equally_well_are_decided_by_the_number_of_images_or_not_at_all(reverse):
    activation, place = np.arange(40)[::-1].astype(float), np.arange(40)
    recording, order = recorded(np.stack([activation, activation], axis=1)), slice(None, None, -1 if reverse else 1)
    wide = pd.DataFrame({"few": place < 2, "many": place < 12, "odd": place % 2 == 1})
    crossed = pd.DataFrame({"red": np.isin(place, [0, 3]), "boat": np.isin(place, [1, 2]), "odd": place % 2 == 1})
    assert set(INVERT(wide[wide.columns[order]], length=1)(recording, recording.images).description) == {"many"}
    table = INVERT(crossed[crossed.columns[order]], length=1)(recording, recording.images)
    assert table.description.isna().all() and "fit equally well" in table.attrs["failures"][0]["reason"]


def test_units_that_are_not_finite_are_named_and_the_rest_described():
    activations, labels = random_case(7, units=4)
    activations[3, 2] = math.nan
    recording = recorded(activations)
    method = INVERT(labelled(labels))
    for _ in range(2):
        with pytest.warns(UserWarning, match="a unit has no description: unit 2 of 'table', the unit is NaN or infinite on some images"):
            found = method(recording, recording.images, units={"table": [3, 2]})
        assert found.description.isna().tolist() == found.score.isna().tolist() == [False, True]
    with pytest.warns(UserWarning, match="NaN or infinite on 1 images"):
        trace = method.trace(recording, "table", 2)
        assert len(trace.evidence) == 10
    assert trace.description is None and not trace.truth.any()


def test_trace_agrees_with_the_description():
    activations, labels = random_case(8, images=100)
    recording = recorded(activations)
    method = INVERT(labelled(labels), beam_size=4)
    row = method.explain(recording, recording.images, units={"table": [1]}).iloc[0]
    trace = method.trace(recording, "table", 1)
    assert trace.description == row.formula
    assert trace.truth.mean() == row.fraction and len(trace.evidence) == 10 and trace.p_adjusted == row.p_adjusted
    assert trace.formulas.groupby("length").size().tolist() == [4, 4, 4]
    best = trace.formulas.groupby("length").auc.max()
    assert best.is_monotonic_increasing and best.iloc[-1] == row.auc


def test_result_is_kept_and_read_by_content(monkeypatch):
    activations, labels = random_case(10)
    recording = recorded(activations)
    first = INVERT(labelled(labels))(recording, recording.images)
    searched = []
    search = invert._searched
    monkeypatch.setattr(invert, "_searched", lambda *args: searched.append(1) or search(*args))
    assert INVERT(labelled(labels))(recording, recording.images).equals(first) and not searched
    INVERT(labelled(~labels))(recording, recording.images)
    INVERT(labelled(labels), length=2)(recording, recording.images)
    assert len(searched) == 2


def test_blocks_of_units_do_not_matter():
    activations, labels = random_case(11, images=50, units=30)
    ranks = rankdata(activations, axis=0).T
    whole = invert._search(ranks, labels.astype(float), 3, 4, (1, 25))
    parts = [invert._search(ranks[unit : unit + 1], labels.astype(float), 3, 4, (1, 25))[0] for unit in range(30)]
    assert [[one.terms for one in history[-1]] for history in whole] == [[one.terms for one in history[-1]] for history in parts]


def test_wrong_labels_are_refused():
    activations, labels = random_case(12)
    recording = recorded(activations)
    images = recording.images
    with pytest.raises(ValueError, match="invert needs labels"):
        INVERT()(recording, images)
    with pytest.raises(ValueError, match="59 rows of labels for 60 images"):
        INVERT(labelled(labels[1:]))(recording, images)
    with pytest.raises(TypeError, match="other values"):
        INVERT(labelled(labels) + 0.5)(recording, images)
    with pytest.raises(TypeError, match="not ndarray"):
        INVERT(labels)(recording, images)
    with pytest.raises(ValueError, match="own name"):
        INVERT(pd.DataFrame(labels[:, :2], columns=["red", "red"]))(recording, images)
    with pytest.raises(ValueError, match="no formula"):
        INVERT(pd.DataFrame({"red": [False] * 60}))(recording, images)
    assert label_table(images, labelled(labels).astype(int)).dtypes.eq(bool).all()


@pytest.mark.parametrize("options", [{"length": 0}, {"beam_size": 0}, {"min_fraction": 0.6}, {"max_fraction": 1.5}, {"min_fraction": -0.1}])
def test_wrong_settings(options):
    with pytest.raises(ValueError, match="expected length"):
        INVERT(**options)


def test_wrong_units_and_layers():
    activations, labels = random_case(13)
    recording = recorded(activations)
    with pytest.raises(KeyError, match="did you mean 'table'"):
        INVERT(labelled(labels))(recording, recording.images, units={"tabel": [0]})
    with pytest.raises(ValueError, match="3 units, numbered 0 to 2; there is no unit 3"):
        INVERT(labelled(labels))(recording, recording.images, units={"table": range(4)})


def test_bad_images_leave_the_labels_in_step(tmp_path):
    for number in range(20):
        folder = tmp_path / ("dark" if number % 2 else "light")
        folder.mkdir(exist_ok=True)
        Image.new("L", (4, 4), 40 if number % 2 else 200).save(folder / f"{number:02}.png")
    (tmp_path / "dark" / "01.png").write_bytes(b"")
    images = nb.ProbingSet.from_folder(tmp_path)
    to_tensor = lambda image: torch.tensor(np.asarray(image) / 255, dtype=torch.float32).permute(2, 0, 1)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1))
    torch.nn.init.constant_(model[0].weight, 1)
    recording = nb.record(nb.Target(model, layers=["0"], preprocess=to_tensor, device="cpu"), images, progress=False)
    found = INVERT(length=1, max_fraction=0.6).explain(recording, images)
    assert found.formula[0] in ("light", "NOT dark") and found.auc[0] == 1 and found.fraction[0] == 10 / 19


def test_p_value_is_that_of_mann_whitney():
    rng = np.random.default_rng(0)
    truth, values = rng.random(80) < 0.3, rng.normal(size=80)
    assert p_value(values, truth) == mannwhitneyu(values[truth], values[~truth]).pvalue


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_the_corrected_p_value_is_never_below_the_true_one(seed):
    rng = np.random.default_rng(seed)
    images, true = rng.integers(4, 12), int(rng.integers(1, 4))
    values, truth = rng.integers(0, rng.integers(2, 12), images) / 4, rng.permutation(images) < true
    ranks = rankdata(values)
    exact = np.mean([sum(some) >= ranks[truth].sum() for some in itertools.combinations(ranks, true)])
    assert exact <= p_adjusted(values, truth, 1) * (1 + 1e-9)


@pytest.mark.parametrize("true", [1, 5, 40, 100])
def test_the_corrected_p_value_of_a_perfect_separation_is_exact(true):
    place = np.arange(200)
    assert p_adjusted(-place, place < true, 1) == pytest.approx(1 / math.comb(200, true), rel=0.1)
    assert p_adjusted(place < true, place < true, 3) == pytest.approx(3 / math.comb(200, true), rel=0.1)


def test_the_number_of_formulas_covers_all_formulas():
    for labels, terms in ((2, 1), (2, 3), (3, 2)):
        assert formulas_of(labels, terms) >= len({str(formula) for formula in all_formulas(NAMES[:labels], terms) if len(formula.terms) == terms})
    table = pd.DataFrame(list(itertools.product([False, True], repeat=2)), columns=NAMES[:2])
    meant = lambda formulas: {tuple(formula.truth(table)) for formula in formulas}
    longest = [formula for formula in all_formulas(table.columns, 3) if len(formula.terms) == 3]
    assert meant(longest) == meant(all_formulas(table.columns, 3))


@pytest.mark.parametrize("each, classes", [(1, 500), (2, 100), (5, 100), (10, 10)])
@pytest.mark.parametrize("floor", [-math.inf, 2])
def test_formulas_of_noise_are_said_to_be_chance(each, classes, floor):
    """Random units, also such as are 0 on nearly all images, where the normal approximation of the test is far off."""
    activations = np.maximum(np.random.default_rng(0).normal(size=(each * classes, 20)), floor)
    recording = recorded(activations, labels=[f"class{number % classes:03}" for number in range(len(activations))])
    with pytest.warns(UserWarning) as caught:
        table = INVERT()(recording, recording.images)
    [said] = [str(one.message) for one in caught if "by chance" in str(one.message)]
    described = table.description.count()
    assert said.startswith(f"{described} of {described} formulas") and table.description.dropna().iloc[0] in said
    assert f"of {len(activations)} images" in said and "more images of each label" in said


def test_labels_that_are_never_chosen_do_not_count():
    activations, labels = random_case(14)
    recording, table = recorded(activations), labelled(labels)
    found = [INVERT(one).explain(recording, recording.images) for one in (table, table.assign(never=False, always=True))]
    assert found[0].p_adjusted.equals(found[1].p_adjusted)


@pytest.mark.filterwarnings("error")
def test_formulas_that_hold_are_not_said_to_be_chance():
    rng = np.random.default_rng(4)
    table = labelled(rng.random((300, 5)) < 0.2)
    recording = recorded(table.values.astype(float) + rng.normal(size=(300, 5)) / 2)
    assert INVERT(table, length=1)(recording, recording.images).description.tolist() == NAMES
