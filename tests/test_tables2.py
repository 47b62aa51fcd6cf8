"""The papers' tables that ablate, prune, connect, take steps away and count costs, each on a few images of the embedded world."""
import numpy as np
import pandas as pd
import pytest
import torch

import neuronbench as nb
from neuronbench.evaluate.ablation import Ablation, group_ablation, unit_ablation
from neuronbench.evaluate.tables.ablated_steps import STEPS, WITH_WHOLE, AblatedSteps, step_rows, with_whole
from neuronbench.evaluate.tables.ablated_units import DROPS, AblatedUnits, described_drops, nearest_classes
from neuronbench.evaluate.tables.cost import KNOWN, REQUESTS, SECONDS, SENT, WRITTEN, Cost, StepClock, machine
from neuronbench.evaluate.tables.pruned_groups import RANDOM, Group, PrunedGroups, random_groups, same_groups
from neuronbench.foundation.chat import Answer, Usage


@pytest.fixture(scope="module")
def world():
    return nb.world()


@pytest.fixture(scope="module")
def bench(world):
    places = range(60)
    images = nb.ProbingSet.from_images([world.images[place] for place in places], [world.images.classes[world.images.labels[place]] for place in places])
    return nb.Workbench(world.target, images, clip=world.clip, concepts=world.concepts, truth=world.truth)


def said(descriptions, layer="layer3", method="somebody"):
    """Descriptions {unit: text} as a table."""
    return pd.DataFrame({"layer": layer, "unit": list(descriptions), "description": list(descriptions.values()), "score": 1.0, "method": method})


class Letters:
    """A sentence model by first letters."""

    fingerprint = "letters"

    def embed_texts(self, texts, progress=True):
        return np.array([[text[0] == letter for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], np.float32)


BOATS = {8: "umbrella", 16: "boat", 36: "cat", 49: "turtle"}  # units that one class hangs on


def test_the_nearest_classes_are_those_of_the_nearest_synonym_and_all_that_tie():
    near = nearest_classes(["boat", "Tree"], ["ship, boat", "tree", "bird", "tram"], Letters())
    assert near.tolist() == [[True, False, True, False], [False, True, False, True]]


def test_drops_are_means_over_the_classes_on_either_side():
    ablation = Ablation("a", pd.Series([1.0, 0.8, 0.6], [*"xyz"]), pd.DataFrame([[0.5, 0.8, 0.5]], pd.Index([3], name="unit"), [*"xyz"]), pd.Series([1, 1, 1]), pd.DataFrame())
    drops = described_drops(said({3: "x", 4: "y"}), [3, 3], ablation, np.array([[True, False, True], [False] * 3]))
    assert np.allclose(drops[[*DROPS]].values[0], [0.8, 0.5, 0.3, 0]) and drops.near.tolist() == ["x, z", ""] and np.isnan(drops["drop"][1])


def test_a_class_falls_with_the_unit_that_is_called_after_it(bench):
    result = bench.table("ablated-units", layer="layer3", methods=[], descriptions=said(BOATS))
    means = result.table.set_index(["measure", "row"])["mean"]
    assert means["accuracy before", "somebody"] > 0.9 and means["drop", "somebody"] > 0.7 > 0.1 > means["drop of the other classes", "somebody"]
    assert result.values.near.unique().tolist() == list(BOATS.values()) and any("'boat' of unit 16" in note for note in result.made.notes)
    assert any(sentence.startswith("network: SceneNet") for sentence in result.stood_in)


def test_the_published_drop_is_the_papers():
    # Zhao et al., section Feature Importance Analysis
    assert [number.value for number in AblatedUnits.published] == [0.84]


def test_groups_are_ablated_together_and_a_group_of_one_is_its_unit(bench):
    groups = group_ablation(bench.target, bench.images, "layer3", {"one": [16], "both": [8, 16]}, progress=False)
    units = unit_ablation(bench.target, bench.images, "layer3", [8, 16], progress=False)
    assert groups.after.loc["one"].tolist() == units.after.loc[16].tolist()
    assert (groups.after.loc["both", ["boat", "umbrella"]] <= units.after[["boat", "umbrella"]].min()).all()
    assert groups.largest().columns[0] == "group" and units.largest().columns[0] == "unit" and groups.plot().axes
    with pytest.raises(ValueError, match="the group 'none' has no units"):
        group_ablation(bench.target, bench.images, "layer3", {"none": []}, progress=False)
    with pytest.raises(IndexError, match="no unit 99"):
        group_ablation(bench.target, bench.images, "layer3", {"far": [99]}, progress=False)


@pytest.mark.parametrize("table", ["ablated-units", "pruned-groups"])
@pytest.mark.parametrize(("labels", "sentence"), [(None, "accuracy by class needs labels"), (["boat", "boat"], "all 2 images are of one class")])
def test_accuracy_by_class_needs_classes(bench, table, labels, sentence):
    images = nb.ProbingSet.from_images([bench.images[0], bench.images[1]], labels)
    with pytest.raises(ValueError, match=sentence):
        nb.Workbench(bench.target, images, clip=bench.held["clip"]).table(table, layer="layer3", methods=[], descriptions=said(BOATS))


@pytest.mark.parametrize("table", ["ablated-units", "pruned-groups"])
def test_classes_without_names_are_refused(bench, table):
    target = nb.Target(bench.target.model, ["layer3"], bench.target.preprocess, device="cpu")
    images = nb.ProbingSet.from_images([bench.images[0], bench.images[1]], [0, 1])
    with pytest.raises(ValueError, match="no names|no meaning in words"):
        nb.Workbench(target, images, clip=bench.held["clip"]).table(table, layer="layer3", methods=[], descriptions=said(BOATS))


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"nearest": 20}, "expected 1 to 19"), ({"nearest": 0}, "expected 1 to 19"), ({"methods": ["clip-disect"]}, "did you mean 'clip-dissect'"),
    ({"methods": [], "descriptions": said({8: " "})}, "none of the 1 units has a description"), ({"methods": []}, "name a method"), ({"layer": "layer4"}, "did you mean 'layer1'|'layer3'|'layer2'")])
def test_what_cannot_be_ablated_is_told(bench, settings, sentence):
    with pytest.raises((KeyError, ValueError), match=sentence):
        bench.table("ablated-units", **{"layer": "layer3", "units": [8]} | settings)


def test_texts_of_one_meaning_are_a_group_and_so_are_texts_that_are_alike():
    units = said({1: "boats", 2: "tree", 3: "a boat", 4: "boats", 5: "bird"})
    assert same_groups(units) == [Group("boats", (1, 3, 4))]
    assert [group.units for group in same_groups(units, 0.9, Letters())] == [(1, 4, 5)] and same_groups(units[:1], 0.9, Letters()) == []


def test_random_groups_are_as_large_seeded_and_of_other_units():
    groups, again = (random_groups([0, 3], 9, 4, seed) for seed in (1, 1))
    assert all(len(group) == 2 and not {0, 3} & set(group) for group in groups) and np.array_equal(groups, again)
    assert not np.array_equal(groups, random_groups([0, 3], 9, 4, 2)) and random_groups([0, 1, 2], 5, 4, 0) == []


def test_a_group_stands_beside_random_ones(bench):
    descriptions = said({16: "boat", 7: "boats", 2: "red", 3: "red"})
    settings = {"layer": "layer3", "methods": [], "descriptions": descriptions, "draws": 3}
    result, again = bench.table("pruned-groups", **settings), bench.table("pruned-groups", **settings)
    means = result.table.set_index(["measure", "row"])
    assert means["mean"]["drop", "somebody"] > means["mean"]["drop", "somebody" + RANDOM] and means.units["drop", "somebody" + RANDOM] == 6
    assert means["mean"]["drop over random groups", "somebody"] == pytest.approx(means["mean"]["drop", "somebody"] - means["mean"]["drop", "somebody" + RANDOM])
    assert result.table.equals(again.table) and any("numbers are not in the version" in note for note in result.made.notes) and not PrunedGroups.published


def test_a_group_without_random_ones_beside_it_is_told(bench):
    descriptions = said({unit: "boat" if unit < 40 else f"tree {unit}" for unit in range(42)})
    result = bench.table("pruned-groups", layer="layer3", methods=[], descriptions=descriptions)
    assert any("40 of 64 units are 'boat' by somebody" in note for note in result.made.notes) and set(result.values.method) == {"somebody"}


@pytest.mark.parametrize(("settings", "sentence"), [
    ({}, "no two of the 2 described units of 'layer3' say the same"), ({"alike": 1.5}, "expected a cosine between 0 and 1"), ({"draws": 0}, "expected at least 1"), ({"nearest": 20}, "expected 1 to 19")])
def test_what_cannot_be_pruned_is_told(bench, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        bench.table("pruned-groups", **{"layer": "layer3", "methods": [], "descriptions": said({1: "boat", 2: "tree"})} | settings)


def test_units_joined_by_large_weights_stand_beside_random_ones(bench):
    weights = bench.target.model.fc.weight.detach().numpy()
    words = {unit: bench.target.classes[int(weights[:, unit].argmax())] for unit in range(64)}
    descriptions = pd.concat([said(words), said(dict(enumerate(bench.target.classes)), "fc")])
    result = bench.table("connections", layer="fc", methods=[], descriptions=descriptions, sentences=Letters(), strongest=1)
    means = result.table.set_index(["measure", "row"])["mean"]
    assert means["joined", "somebody"] > means["random", "somebody"] + 0.2
    assert means["joined over random", "somebody"] == pytest.approx(means["joined", "somebody"] - means["random", "somebody"])
    assert any("standard error" in note for note in result.made.notes) and any("usually represent similar concepts" in note for note in result.made.notes)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"layer": "layer3"}, "expected a linear layer or a convolution of all 64 inputs"), ({"layer": "conv1"}, "no layer of the target comes before 'conv1'"),
    ({"layer": "fc", "first": "layer33"}, "did you mean 'layer3'"), ({"layer": "fc", "first": "layer1"}, "modules that fit: none")])
def test_layers_that_nothing_joins_are_told(bench, settings, sentence):
    with pytest.raises((KeyError, ValueError), match=sentence):
        bench.table("connections", **settings)


class Colours:
    """A captioner that says red of every image."""

    fingerprint = "colours"

    def captions(self, images, indices=None, progress=True):
        return ["a red wall"] * len(images if indices is None else list(indices))


class Tokens:
    """A language model that has an answer for all requests, and counts."""

    name, fingerprint = "tokens", "tokens"

    def __init__(self):
        self.usage = Usage()

    def answers(self, requests, progress=True):
        counts = self.usage
        self.usage = Usage(counts.requests + len(requests), counts.cached + 1, counts.prompt_tokens + 10 * len(requests), counts.completion_tokens + 3 * len(requests))
        return [Answer("red", model=self.name) for _ in requests]

    def estimate(self, requests):
        return Usage(len(requests))


@pytest.fixture(scope="module")
def full(world, bench):
    """A bench with all that Describe-and-Dissect needs, of models that cost nothing but the world's CLIP and painter."""
    return nb.Workbench(world.target, bench.images, concepts=["red", "sea"], truth=world.truth, clip=world.clip, captioner=Colours(), chat=Tokens(), painter=world.painter)


def test_every_step_has_its_row_and_what_no_bench_holds_its_reason(full):
    rows, missing = step_rows(full)
    assert [row.variant for row in rows][:3] == ["", ", captions from a fixed concept set", ", no crops"] and len(rows) == 8
    assert rows[1].settings["captioner"].concepts == ["red", "sea"] and "captioner" not in rows[-1].settings
    assert list(missing) == ["Describe-and-Dissect, captions by BLIP-2", "Describe-and-Dissect, captions by a chat model that sees"]
    given, still = step_rows(full, ["captioners"], {"BLIP-2": Colours()})
    assert [row.variant for row in given] == ["", ", captions by BLIP-2"] and len(still) == 1 and STEPS["captioners"] == {}
    bare = nb.Workbench(full.target, full.images, concepts=["red"])
    assert "the bench holds no CLIP" in step_rows(bare, ["captions"])[1]["Describe-and-Dissect, captions from a fixed concept set"]


def test_a_variant_is_compared_with_the_whole_method_where_this_says_something():
    whole = said({1: "red", 2: "sea", 3: None}, method="Describe-and-Dissect (consensus)")
    variant = said({1: "red", 2: None, 3: "red"}, method="Describe-and-Dissect, no crops")
    values = with_whole(pd.concat([whole, variant]), {"exact": lambda said, true: np.array([a == b for a, b in zip(said, true)], float)})
    assert values.unit.tolist() == [1, 2] and values.value.tolist() == [1, 0] and set(values.measure) == {"exact" + WITH_WHOLE} and set(values.method) == {"Describe-and-Dissect, no crops"}
    assert len(with_whole(said({1: None}, method="Describe-and-Dissect"), {})) == 0


def test_the_method_stands_beside_itself_without_its_steps(full):
    table = full.table("ablations", layer="fc", units=[0, 1], steps=["captions", "captioners", "selection"], measures=["exact", "CLIP cosine"]).table.set_index(["measure", "row"])
    assert table["mean"]["exact" + WITH_WHOLE, "Describe-and-Dissect, no concept selection"] == 1
    assert table.published["CLIP cosine", "Describe-and-Dissect"] == 0.7598 and table.published["CLIP cosine", "Describe-and-Dissect (concepts), captions from a fixed concept set"] == 0.7583
    assert "BLIP-2" in table.note["CLIP cosine" + WITH_WHOLE, "Describe-and-Dissect, captions by BLIP-2"] and "people rated" in table.note["mean rating, 1 to 5", "Describe-and-Dissect"]


def test_a_layer_of_which_nothing_is_known_is_compared_with_the_whole_method_alone(full):
    result = full.table("ablations", layer="layer1", units=[0, 1], steps=["selection"], measures=["exact", "CLIP cosine"])
    table = result.table.set_index(["measure", "row"])
    assert set(result.values.measure) == {"exact" + WITH_WHOLE, "CLIP cosine" + WITH_WHOLE}
    assert table.note["CLIP cosine", "Describe-and-Dissect"] == "nothing is known of the units of 'layer1'"
    assert any(sentence.startswith("captioner: Colours here") for sentence in result.stood_in)


@pytest.mark.parametrize(("settings", "sentence"), [({"steps": ["crop"]}, "did you mean 'crops'"), ({"steps": "crops"}, "a list of names"), ({"measures": ["exakt"]}, "did you mean 'exact'"),
                                                    ({"units": [20]}, "there is no unit 20")])
def test_what_no_step_is_is_told(full, settings, sentence):
    with pytest.raises((KeyError, ValueError, TypeError), match=sentence):
        full.table("ablations", **{"layer": "fc", "measures": ["exact"]} | settings)


def test_the_published_ablations_are_the_papers():
    # Bai et al., A.4, tables 8 to 10
    numbers = {(number.row.removeprefix("Describe-and-Dissect"), number.measure): number.value for number in AblatedSteps.published}
    assert numbers[", captions from a fixed concept set", "sentence cosine"] == 0.4465 and numbers[", captions by BLIP-2", "BERTScore" + WITH_WHOLE] == 0.887
    assert numbers[", no concept selection", "mean rating, 1 to 5"] == 3.84 and numbers["", "mean rating, 1 to 5"] == 3.97


def test_a_clock_gives_each_step_what_passed_before_it_spoke():
    clock = StepClock()
    for step in ("captions", "paint", "captions"):
        clock(step, 1, 1)
    assert list(clock.seconds) == ["captions", "paint"] and all(seconds >= 0 for seconds in clock.seconds.values())


def test_what_a_unit_costs_is_counted_in_parts(full):
    result = full.table("cost", layer="fc", units=[0, 1, 2], together=2)
    table, whole = result.table.set_index(["measure", "row"]), "Describe-and-Dissect"
    assert table.units[SECONDS, whole] == 2 and table.published[SECONDS, whole] == 38.8 and table.units[SECONDS, "CLIP-Dissect"] == 2
    assert table["mean"][REQUESTS, whole] == 15 and table["mean"][SENT, whole] == 150 and table["mean"][WRITTEN, whole] == 45 and table["mean"][KNOWN, whole] > 0
    steps = result.values[(result.values.measure == SECONDS) & result.values.method.str.startswith(whole + ", ")].groupby("unit").value.sum()
    total = result.values[(result.values.measure == SECONDS) & (result.values.method == whole)].set_index("unit").value
    assert np.allclose(steps, total) and any(note.startswith("Measured on: ") for note in result.made.notes)


def test_a_machine_is_told_without_a_gpu_where_there_is_none():
    assert "cores" in machine(torch.device("cpu")) and machine(torch.device("cpu")).endswith("no GPU")


def test_the_published_costs_are_the_papers():
    # Bai et al., A.6; Oikarinen & Weng, abstract: ResNet-50's conv1 and four stages in 4 minutes
    numbers = {number.row: number.value for number in Cost.published}
    assert numbers["Describe-and-Dissect"] == 38.8 and numbers["CLIP-Dissect"] == 240 / (64 + 256 + 512 + 1024 + 2048)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"together": 0}, "expected at least 1"), ({"methods": []}, "no method of the table can be called: name one"), ({"methods": ["milan"]}, "no method of the table can be called: milan needs region captioner"),
    ({"methods": ["clip"]}, "did you mean 'clip-dissect'"), ({"units": [20]}, "there is no unit 20")])
def test_what_has_no_cost_is_told(full, settings, sentence):
    with pytest.raises((KeyError, ValueError), match=sentence):
        full.table("cost", layer="fc", **settings)


def test_a_folder_is_the_class_whose_words_it_has(bench):
    images = nb.ProbingSet.from_images([bench.images[place] for place in range(4)], [f"{bench.images.classes[bench.images.labels[place]].upper()}_" for place in range(4)])
    ablation = unit_ablation(bench.target, images, "layer3", [8], progress=False)
    assert set(ablation.after.columns) <= set(bench.target.classes)
    far = nb.ProbingSet.from_images([bench.images[0], bench.images[1]], ["boat", "boats of"])
    with pytest.raises(KeyError, match="no output of the network for the class 'boats of'; did you mean 'boat'"):
        unit_ablation(bench.target, far, "layer3", [8], progress=False)
