"""CoSy, faithfulness, the classifier and connections: against scipy, scikit-learn and hand-worked cases; bad input of each."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.metrics import roc_auc_score

import neuronbench as nb
from neuronbench.evaluate.ablation import Ablation, DescribedDrops
from neuronbench.evaluate.agreement import Agreement
from neuronbench.evaluate.classifier import ClassDetection, nearest_units
from neuronbench.evaluate.connections import Connections, connection_summary, joining_weights
from neuronbench.evaluate.faithfulness import Faithfulness, prediction_scores
from neuronbench.evaluate.leaderboard import Described, Right, Seconds, plot_leaderboard, summed_up, wide_table, world_methods
from neuronbench.evaluate.measure import Measure, described_units, paired_tests, summary
from neuronbench.evaluate.synthesis import CLOSE_UP, Synthesis, auc, mean_activation_difference
from neuronbench.probe.target import Target

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
HOSTILE = "<script>alert('x')</script> {0} {}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


class Colours(torch.nn.Module):
    """Units of `maps` like red, green, blue, nothing, and are NaN where it is green; `head` adds red and green, and green and blue."""

    def __init__(self):
        super().__init__()
        self.maps, self.head = torch.nn.Identity(), torch.nn.Linear(5, 2)
        self.head.weight.data = torch.tensor([[3.0, 2.0, -1.0, 0.0, 0.0], [-1.0, 2.0, 3.0, 0.0, 0.0]])

    def forward(self, batch):
        broken = torch.where(batch[:, 1].mean((1, 2)) > 0.6, torch.nan, 1.0)
        maps = self.maps(torch.cat([batch, torch.full_like(batch[:, :1], 0.5), broken[:, None, None, None].expand(-1, 1, *batch.shape[2:])], 1))
        return self.head(maps.nan_to_num().mean((2, 3)))


def preprocess(image):
    return torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)


def flat(colour, light):
    return Image.new("RGB", (8, 8), tuple(round(255 * light * part) for part in colour))


class ColourModel:
    """A CLIP and a sentence model that knows three colours."""

    fingerprint, device = "colours", "cpu"

    def embed_images(self, images, indices=None, progress=True):
        return self._unit([np.asarray(images[int(index)], float).mean((0, 1)) for index in (range(len(images)) if indices is None else indices)])

    def embed_texts(self, texts, progress=True):
        return self._unit([[100.0 * (name in text) for name in COLOURS] for text in texts])

    def _unit(self, rows):
        vectors = np.array(rows, float).reshape(-1, 3) + 1e-3
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class FlatPainter:
    """Paints the colour that a prompt names; nothing for black, and raises for a bomb."""

    fingerprint = "flat"

    def __init__(self):
        self.asked = []

    def paint(self, prompts, count=10, progress=True):
        self.asked += prompts
        if any("bomb" in prompt for prompt in prompts):
            raise RuntimeError("out of memory")
        return [[] if "black" in prompt else [flat(self._colour(prompt), 0.5 + number / 2 / count) for number in range(count)] for prompt in prompts]

    def _colour(self, prompt):
        return next((colour for name, colour in COLOURS.items() if name in prompt), (1, 1, 1))


def spotted(seed):
    """Dull noise with one bright pixel: its mean and its maximum say different things."""
    chance = np.random.default_rng(seed)
    pixels = chance.integers(0, 120, (8, 8, 3))
    pixels[chance.integers(8), chance.integers(8)] = chance.integers(120, 256, 3)
    return Image.fromarray(pixels.astype(np.uint8))


class SpotPainter:
    fingerprint = "spots"

    def paint(self, prompts, count=10, progress=True):
        return [[spotted(1000 + len(prompt) + number) for number in range(count)] for prompt in prompts]


@pytest.fixture(scope="module")
def recording():
    images = [flat(colour, light) for light in np.linspace(0.1, 0.9, 20) for colour in COLOURS.values()]
    return nb.record(Target(Colours(), ["maps", "head"], preprocess, device="cpu"), nb.ProbingSet.from_images(images), progress=False)


def by_measure(values, *index):
    """(unit or more, measure): the values."""
    return values.pivot(index=list(index or ("unit",)), columns="measure", values="value")


def described(*rows, method="A", layer="maps"):
    return pd.DataFrame([(layer, unit, text, 1.0, method) for unit, text in rows], columns=["layer", "unit", "description", "score", "method"])


# what all share

def test_units_and_columns_that_are_not_there_are_named(recording):
    for wrong, error, sentence in ((described((9, "red")), ValueError, "no unit 9"), (described((0, "red"), layer="mops"), KeyError, "did you mean 'maps'"),
                                   (described((0, "red")).drop(columns="unit"), ValueError, "missing: unit")):
        with pytest.raises(error, match=sentence):
            described_units(wrong, recording)
    with pytest.raises(TypeError, match=r"expected measure\(descriptions, recording\)"):
        Synthesis(FlatPainter(), 2)(described((0, "red")))


@pytest.mark.parametrize("evaluate", [connection_summary, summed_up, wide_table, plot_leaderboard])
def test_what_is_no_table_and_tables_of_other_columns_are_named(evaluate):
    with pytest.raises(TypeError, match="not of the type list"):
        evaluate(["red"])
    with pytest.raises(ValueError, match="have the columns layer, unit, description, score, method; expected .*; missing: "):
        evaluate(described((0, "red")))


def test_a_prompt_without_one_place_for_the_description_is_refused(recording):
    for prompt in ("a photo", "{} and {}", "a {photo}"):
        with pytest.raises(ValueError, match="places for the description: expected {} once"):
            Synthesis(FlatPainter(), 2, prompt)(described((0, "red")), recording)
        with pytest.raises(ValueError, match="places for the description: expected {} once"):
            Faithfulness(ColourModel(), 5, 5, prompt)(described((0, "red")), recording)


def test_one_where_several_are_expected_is_refused(recording):
    with pytest.raises(TypeError, match=r"classes are a list of names, such as \['red'\], not 'red'"):
        nearest_units(described((0, "red")), "red", [ColourModel()])
    for models in (ColourModel(), []):
        with pytest.raises(TypeError, match="models are a list of at least one"):
            nearest_units(described((0, "red")), ["red"], models)
        with pytest.raises(TypeError, match="models are a list of at least one"):
            ClassDetection(pd.DataFrame({"red": [True] * 60}), models)
    with pytest.raises(TypeError, match=r"methods are a list of names, such as \['invert'\], not 'invert'"):
        world_methods(None, "invert")
    with pytest.raises(TypeError, match="methods are given by name, as `world_methods"):
        nb.leaderboard(None, recording, methods=["invert"])
    with pytest.raises(TypeError, match="labels are a table .a pandas DataFrame., not of the type list"):
        ClassDetection([True] * 60, [ColourModel()])(described((0, "red")), recording)


def test_empty_descriptions_are_left_out_and_the_first_of_several_counts(recording):
    table = described((0, "red"), (0, "blue"), (1, None), (2, "  "), (3, HOSTILE))
    assert described_units(table, recording).description.tolist() == ["red", HOSTILE]
    labels = pd.DataFrame({"red": np.arange(60) % 3 == 0})
    for measure in (Synthesis(FlatPainter(), 2), Faithfulness(ColourModel(), 5, 5), ClassDetection(labels, [ColourModel()])):
        nothing = measure(table.iloc[2:4], recording)
        assert len(nothing) == 0 and list(nothing.columns[:5]) == LONG


LONG = ["layer", "unit", "method", "measure", "value"]


def every_measure():
    """(measure, descriptions of layer maps and head by A and B, how many rows it gives)."""
    table = pd.concat([described((0, "red"), (1, "green"), (2, "blue"), (3, "red"), method=method) for method in "AB"] + [described((0, "red"), layer="head", method=method) for method in "AB"])
    labels = pd.DataFrame({name: np.arange(60) % 3 == number for number, name in enumerate(("red", "green"))})
    drops = Ablation("maps", pd.Series(1.0, ["bee", "cow"]), pd.DataFrame([[0.5, 1.0]] * 3, columns=["bee", "cow"]), pd.Series(9, ["bee", "cow"]), pd.DataFrame())
    return [(Synthesis(FlatPainter(), 2), table, 20), (Faithfulness(ColourModel(), 5, 5), table, 30), (ClassDetection(labels, [ColourModel()]), table, 8),
            (Connections("maps", "head", ColourModel(), strongest=2), table, 2), (DescribedDrops(drops, pd.DataFrame({"red": [True, False]}, ["bee", "cow"])), table, 2),
            (Agreement(table.rename(columns={"description": "truth"})[["layer", "unit", "truth"]], ["exact"]), table, 15),
            (Described(), table, 10), (Seconds(), table.assign(seconds=2), 10), (Right(lambda judged: judged.assign(kind="class", truth="red", right=judged.description == "red")), table, 10)]


@pytest.mark.parametrize("measure, table, rows", every_measure(), ids=lambda value: getattr(value, "name", ""))
def test_every_measure_gives_the_long_table_and_is_summed_up_and_tested(measure, table, rows, recording):
    values = measure(table, recording)
    assert isinstance(measure, Measure) and measure.name and list(values.columns[:5]) == LONG and len(values) == rows
    assert values.value.dtype == np.float64 and set(values.measure) == set(measure.gives) and {"A", "B"} <= set(values.method)
    means = summary(values)
    assert set(means.measure) == set(measure.gives) and set(means.method) == set(values.method)
    tests = paired_tests(values)
    assert len(tests) == len(measure.gives) * (3 if measure.name == "agreement" else 1) and (tests[(tests["first"] == "A") & (tests.second == "B")].difference == 0).all()


def test_means_are_those_of_the_values(recording):
    values = Synthesis(FlatPainter(), 4)(pd.concat([described((0, "red"), (1, "green")), described((0, "blue"), method="B")]), recording)
    assert list(values.columns) == [*LONG, "description", "painted", "reason"] and len(values) == 6
    means = summary(values).set_index(["measure", "method"])["mean"]
    expected = by_measure(values, "method", "unit").loc["A", "CoSy AUC"].mean()
    assert means["CoSy AUC", "A"] == pytest.approx(expected) and means["CoSy AUC", "A"] > means["CoSy AUC", "B"]


@dataclass(frozen=True, eq=False)
class Wordy(Measure):
    """A measure of somebody else's: what `table` says."""

    table: object
    name = "wordy"
    gives = {"words": 0.0}

    def values(self, judged, recording):
        return self.table(judged)


def test_a_measure_that_gives_something_else_is_named(recording):
    words = described((0, "a red thing"), (1, "green"))
    assert Wordy(lambda judged: judged.assign(words=judged.description.str.split().str.len(), why="so"))(words, recording)[["unit", "value", "why"]].values.tolist() == [[0, 3, "so"], [1, 1, "so"]]
    with pytest.raises(ValueError, match="values of the measure 'wordy' have the columns layer, unit, description, method; expected layer, unit, method, words; missing: words"):
        Wordy(lambda judged: judged)(words, recording)
    with pytest.raises(TypeError, match="values of the measure 'wordy' are a table"):
        Wordy(lambda judged: [3, 1])(words, recording)
    with pytest.raises(ValueError, match="the measure 'wordy' gives .* for 'words': expected numbers"):
        Wordy(lambda judged: judged.assign(words="many"))(words, recording)


# CoSy

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_auc_counts_pairs(painted, controls):
    pairs = [(one > other) + 0.5 * (one == other) for one in painted for other in controls]
    assert auc(np.array(painted), np.array(controls)) == pytest.approx(np.mean(pairs))
    assert auc(np.array(painted), np.array(controls)) == pytest.approx(1 - auc(np.array(controls), np.array(painted)))


def test_mad_is_in_standard_deviations_of_the_controls():
    assert mean_activation_difference(np.array([5.0, 7.0]), np.array([1.0, 3.0])) == 4
    assert np.isnan(mean_activation_difference(np.array([5.0]), np.array([2.0, 2.0]))) and np.isnan(mean_activation_difference(np.array([]), np.array([1.0, 2.0])))


def test_cosy_is_what_its_parts_give(recording):
    values = Synthesis(FlatPainter(), 6)(described((0, "red")), recording)
    painted = np.array([np.asarray(image)[0, 0, 0] / 255 for image in FlatPainter().paint([CLOSE_UP.format("red")], 6)[0]])
    controls = recording["maps"].values[:, 0]
    [row] = by_measure(values).to_dict("records")
    assert values.painted.tolist() == [6, 6] and row["CoSy AUC"] == pytest.approx(auc(painted, controls))
    assert row["CoSy MAD"] == pytest.approx(mean_activation_difference(painted, controls), rel=1e-5)


def test_each_phrase_is_painted_once(recording):
    painter = FlatPainter()
    Synthesis(painter, 3)(pd.concat([described((0, "red"), (1, "red")), described((2, "red"), method="B")]), recording)
    assert painter.asked == [CLOSE_UP.format("red")]
    Synthesis(painter, 3)(described((1, "red")), recording)
    assert len(painter.asked) == 1


def test_units_and_painters_that_give_nothing_say_why(recording):
    values = Synthesis(FlatPainter(), 3)(described((0, "black"), (1, "a bomb"), (4, "red"), (3, "red"), (2, "Ein blaues Haus, blue")), recording)
    found, reason = by_measure(values), values.drop_duplicates("unit").set_index("unit").reason
    assert found["CoSy AUC"].isna()[[0, 1, 4, 3, 2]].tolist() == [True, True, True, False, False]
    assert "no image" in reason[0] and "out of memory" in reason[1] and "not finite" in reason[4] and reason[2] == ""
    assert found["CoSy AUC"][3] == 0.5 and np.isnan(found["CoSy MAD"][3])


# faithfulness

def test_scores_are_those_of_scipy():
    rng = np.random.default_rng(0)
    activations = rng.normal(size=60)
    predicted = activations + rng.normal(size=60)
    found = prediction_scores(predicted, activations, 10, np.random.default_rng(1))
    assert found["Pearson"] == pytest.approx(stats.pearsonr(predicted, activations)[0]) and found["Spearman"] == pytest.approx(stats.spearmanr(predicted, activations)[0])
    assert prediction_scores(activations, activations, 10, rng)["top against random"] == 1 and prediction_scores(-activations, activations, 10, rng)["Pearson"] == pytest.approx(-1)


@pytest.mark.parametrize(["predicted", "activations"], [(np.arange(20), np.ones(20)), (np.ones(20), np.arange(20)), (np.arange(9), np.arange(9))])
def test_what_cannot_be_predicted_has_no_score(predicted, activations):
    assert all(np.isnan(value) for value in prediction_scores(predicted * 1.0, activations * 1.0, 5, np.random.default_rng(0)).values())


def test_right_words_predict_and_exemplars_are_held_out(recording):
    model = ColourModel()
    found = by_measure(Faithfulness(model, seen=5, top=10)(described((0, "red"), (1, "red"), (3, "red"), (4, "red")), recording))
    assert found["top against random"][0] > 0.95 > 0.5 > found["Pearson"][1] and found.loc[[3, 4], "Pearson"].isna().all()
    rest = np.argsort(-recording["maps"].values[:, 0], kind="stable")[5:]
    fits = model.embed_images(recording.images) @ model.embed_texts(["red"])[0]
    assert found["Pearson"][0] == pytest.approx(stats.pearsonr(fits[rest], recording["maps"].values[rest, 0])[0])
    pd.testing.assert_frame_equal(Faithfulness(model, 5, 10)(described((0, "red")), recording), Faithfulness(model, 5, 10)(described((0, "red")), recording))


def test_too_few_images_to_hold_out(recording):
    with pytest.raises(ValueError, match="60 images: expected at least 215"):
        Faithfulness(ColourModel())(described((0, "red")), recording)


# classifier

def test_the_nearest_unit_detects_the_class(recording):
    labels = pd.DataFrame({name: [(position % 3) == number for position in range(60)] for number, name in enumerate(COLOURS)})
    found = ClassDetection(labels, [ColourModel()])(described((0, "red"), (1, "green"), (2, "blue")), recording)
    assert found["class"].tolist() == list(COLOURS) and found.description.tolist() == list(COLOURS) and found.unit.tolist() == [0, 1, 2]
    expected = [roc_auc_score(labels[name], recording["maps"].values[:, unit]) for unit, name in enumerate(COLOURS)]
    assert found.value.tolist() == pytest.approx(expected) and set(found.measure) == {"class AUROC"}


def test_units_equally_near_count_by_their_mean(recording):
    labels = pd.DataFrame({"red": [(position % 3) == 0 for position in range(60)], "blue": [(position % 3) == 2 for position in range(60)]})
    found = ClassDetection(labels, [ColourModel()])(described((0, "red"), (1, "red"), (2, "blue"), (4, "red")), recording)
    each = [roc_auc_score(labels.red, recording["maps"].values[:, unit]) for unit in (0, 1)]
    blue = roc_auc_score(labels.blue, recording["maps"].values[:, 2])
    assert found[found["class"] == "red"].unit.tolist() == [0, 1] and found.value.tolist() == pytest.approx([*each, blue])
    [row] = summary(found).itertuples()
    assert row.units == 2 and row.mean == pytest.approx(np.mean([np.mean(each), blue]))  # each class once


def test_methods_are_compared_class_by_class(recording):
    """Whatever units they find for it: A takes the mean of two, B another one."""
    labels = pd.DataFrame({name: [(position % 3) == number for position in range(60)] for number, name in enumerate(COLOURS)})
    table = pd.concat([described((0, "red"), (1, "red"), (2, "blue"), (3, "green")), described((2, "red"), (1, "green"), (0, "blue"), method="B")])
    found = ClassDetection(labels, [ColourModel()])(table, recording)
    [row] = paired_tests(found).itertuples()
    by_class = found.pivot_table(index="class", columns="method", values="value")
    assert row.units == 3 and row.difference == pytest.approx((by_class.A - by_class.B).mean()) and len(found) == 7
    expected = stats.permutation_test((by_class.A, by_class.B), lambda one, other, axis: np.mean(one - other, axis=axis), permutation_type="samples", vectorized=True)
    assert row.p == pytest.approx(expected.pvalue)
    with pytest.raises(ValueError, match="'A' has several values of 'class AUROC' for unit"):
        paired_tests(pd.concat([found, found]))


def test_the_mean_of_several_models_decides():
    class Other(ColourModel):
        def embed_texts(self, texts, progress=True):
            return np.array([[1.0, 0.0] if text in ("red", "reddish blue") else [0.0, 1.0] for text in texts])

    table = described((0, "red blue"), (1, "reddish blue"))
    assert nearest_units(table, ["red"], [ColourModel()]).unit.tolist() == [0, 1]
    assert nearest_units(table, ["red"], [ColourModel(), Other()]).unit.tolist() == [1]


def test_classes_without_images_and_labels_of_others(recording):
    labels = pd.DataFrame({"red": np.zeros(60, bool), "green": np.ones(60, bool)})
    assert ClassDetection(labels, [ColourModel()])(described((0, "red")), recording).value.isna().tolist() == [True, True]
    with pytest.raises(ValueError, match="labels of 3 images.*60"):
        ClassDetection(labels.head(3), [ColourModel()])(described((0, "red")), recording)


# connections

def test_weights_of_linear_and_convolutional_layers_by_unit():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 9, 2))
    kernel, matrix = network[0].weight.detach().numpy(), network[3].weight.detach().numpy()
    assert np.allclose(joining_weights(network, "0", (3, 4)), kernel.sum((2, 3)))
    assert np.allclose(joining_weights(network, "3", (4, 2), positions=9), matrix.reshape(2, 4, 9).sum(2))


def test_weights_inside_a_wrapper_are_those_of_the_bare_network():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.Flatten())
    expected = network[0].weight.detach().numpy().sum((2, 3))
    for wrapper, name in ((torch.nn.DataParallel(network), "module.0"), (torch.compile(network), "_orig_mod.0")):
        assert np.allclose(joining_weights(wrapper, name, (3, 4)), expected) and np.allclose(joining_weights(wrapper, "0", (3, 4)), expected)


def test_a_transposed_convolution_is_read_the_right_way_round():
    network = torch.nn.Sequential(torch.nn.ConvTranspose2d(3, 3, 1, bias=False))
    assert np.allclose(joining_weights(network, "0", (3, 3)), network(torch.eye(3)[..., None, None])[..., 0, 0].T.detach())


@pytest.mark.parametrize("module", [torch.nn.Conv2d(4, 4, 3, groups=4), torch.nn.Embedding(4, 1), torch.nn.Embedding(4, 4), torch.nn.Bilinear(4, 4, 4)])
def test_weights_that_do_not_join_every_two_units_are_refused(module):
    with pytest.raises(ValueError, match="modules that fit: 1"):
        joining_weights(torch.nn.Sequential(module, torch.nn.Linear(4, 4)), "0", (4, 4))


class UnitsLast(torch.nn.Module):
    """Flattens maps whose units are the last axis, and reads them."""

    def __init__(self):
        super().__init__()
        self.maps, self.head = torch.nn.Identity(), torch.nn.Linear(16 * 3, 2)

    def forward(self, batch):
        return self.head(self.maps(batch.movedim(1, 3)).flatten(1))


def test_flattened_maps_with_units_last_are_told_apart():
    network = UnitsLast()
    network.head.weight.data = torch.arange(96.0).view(2, 48).sin()
    images = nb.ProbingSet.from_images([Image.effect_noise((4, 4), 90).convert("RGB") for _ in range(6)])
    to_tensor = lambda image: torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)
    found = nb.record(nb.Target(network, ["maps", "head"], to_tensor, device="cpu", layout={"maps": "maps-last"}), images, progress=False)
    step = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)  # one unit everywhere
    expected = (network(step) - network.head.bias).T.detach().numpy()
    assert np.allclose(joining_weights(network, "head", (3, 2), 16, units_last=True), expected, atol=1e-5)
    assert np.allclose(Connections("maps", "head", ColourModel(), positions=16).weights(found), expected, atol=1e-5)


def test_layers_without_one_matrix_name_what_could_be_recorded():
    from torchvision.models import resnet18

    network = resnet18(weights=None)
    with pytest.raises(ValueError, match="'layer4' .* has no weight.*layer4.0.conv1.*record the convolution"):
        joining_weights(network, "layer4", (256, 512))
    with pytest.raises(ValueError, match="'fc' \\(Linear\\) has a weight of shape \\(1000, 512\\): expected .* all 256 inputs to 1000 units; modules that fit: none"):
        joining_weights(network, "fc", (256, 1000))
    with pytest.raises(KeyError, match="no layer 'layer9'; did you mean 'layer"):
        joining_weights(network, "layer9", (256, 512))


def test_joined_units_are_compared_with_others(recording):
    table = pd.concat([described((0, "red"), (1, "green"), (2, "blue"), (3, "red")), described((0, "red"), (1, "blue"), layer="head")])
    found = Connections("maps", "head", ColourModel(), strongest=2)(table, recording)
    model = ColourModel()
    first, head = model.embed_texts(["red", "green", "blue", "red"]), model.embed_texts(["red", "blue"])
    assert found.joined.tolist() == pytest.approx([(head[0] @ first[[0, 1]].T).mean(), (head[1] @ first[[2, 1]].T).mean()])
    assert found.random.tolist() == pytest.approx([(head[0] @ first[[2, 3]].T).mean(), (head[1] @ first[[0, 3]].T).mean()])
    [row] = connection_summary(found).itertuples()
    gap = found.joined - found.random
    assert (row.difference, row.error, row.effect) == pytest.approx((gap.mean(), stats.sem(gap), gap.mean() / gap.std()))
    assert found.value.tolist() == gap.tolist() and (found.layer == "head").all() and summary(found)["mean"].tolist() == pytest.approx([row.difference])


def test_too_few_described_units_are_said(recording):
    table = pd.concat([described((0, "red")), described((0, "red"), layer="head")])
    with pytest.raises(ValueError, match="A describes 1 units of 'head' and 1 of 'maps': expected at least 1 and 4"):
        Connections("maps", "head", ColourModel(), strongest=2)(table, recording)


@pytest.mark.parametrize("evaluate", [
    lambda recording, pool: Synthesis(SpotPainter(), count=6, pool=pool)(described((0, "red"), (1, "green")), recording),
    lambda recording, pool: Faithfulness(ColourModel(), seen=2, top=4, pool=pool)(described((0, "red"), (1, "green")), recording),
    lambda recording, pool: ClassDetection(pd.DataFrame({"red": np.arange(24) % 3 == 0, "green": np.arange(24) % 3 == 1}), [ColourModel()], pool)(described((0, "red"), (1, "green")), recording)],
    ids=["synthesis", "faithfulness", "class_detection"])
def test_units_are_judged_by_the_pooling_that_is_asked_for(evaluate):
    target, images = Target(Colours(), ["maps"], preprocess, device="cpu"), nb.ProbingSet.from_images([spotted(seed) for seed in range(24)])
    both, largest, means = (nb.record(target, images, pool=pool, progress=False) for pool in (("mean", "max"), "max", "mean"))
    pd.testing.assert_frame_equal(evaluate(both, "max"), evaluate(largest, None))
    pd.testing.assert_frame_equal(evaluate(both, None), evaluate(means, None))
    assert not evaluate(both, "max").equals(evaluate(both, None))
    with pytest.raises(KeyError, match="mean"):
        evaluate(means, "max")
