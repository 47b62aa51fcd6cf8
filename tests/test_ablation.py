"""Unit ablation: what is set to 0, that it equals zero weights, that the network is restored, and that only what lies behind a layer runs again."""

import copy
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from neuronbench.evaluate.ablation import Ablation, DescribedDrops, _Passes, _place, ablated, class_accuracy, unit_ablation
from neuronbench.probe.images import BadImage, ProbingSet
from neuronbench.probe.hooks import evaluating
from neuronbench.probe.target import Target

NAMES = ["ant", "bee", "cow"]


def preprocess(image):
    return torch.from_numpy(np.asarray(image.resize((32, 32)), np.float32) / 255 - 0.5).permute(2, 0, 1)


class Block(nn.Module):
    """A residual block as torchvision writes it: one in-place ReLU used twice, and a sum in place."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class SmallNet(nn.Module):
    """A stem with functional operations between its modules, two residual blocks and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Identity()
        self.stem, self.norm = nn.Conv2d(3, 6, 5, 2, 2), nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(Block(6), Block(6))
        self.fc, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.nn.functional.relu(self.norm(self.stem(self.first(x))))
        skip = 0.5 * x
        x = self.blocks(x) + skip
        return self.out(torch.tanh(self.fc(x.mean((2, 3)))))


def random_norms(model):
    """Norms with weights, biases and statistics that are not 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_(0.5)
            module.running_var.uniform_(0.5, 2)
    return model


def small_net():
    return random_norms(SmallNet())


def vit():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
    nn.init.normal_(model.heads.head.weight)
    return model


def swin():
    from torchvision.models import SwinTransformer

    return SwinTransformer(patch_size=[4, 4], embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=3)


def hugging_face_vit():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = dict(image_size=32, patch_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    return ViTForImageClassification(ViTConfig(**sizes, num_labels=3))


CALLS = {"blocks.1.relu": 2}  # of the layers that run several times in one pass


def target_of(make, layer, calls=CALLS):
    torch.manual_seed(0)
    return Target(make().eval(), [layer], preprocess, classes=NAMES, device="cpu", calls={name: call for name, call in calls.items() if name == layer})


def pictures(count=24):
    """Images of noise over a grey level, and their labels."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(np.clip(rng.normal(rng.integers(60, 200), 50, (32, 32, 3)), 0, 255).astype(np.uint8)) for _ in range(count)]
    return ProbingSet.from_images(images, [NAMES[number % 3] for number in range(count)])


def batch_of(images):
    return torch.stack([preprocess(images[number]) for number in range(len(images))])


def scores_of(target, batch):
    with torch.inference_mode(), evaluating(target.model):
        output = target.model(batch)
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.fixture(scope="module")
def images():
    return pictures()


# what is set to 0


def without_weights(target, layer, norm, units):
    """A copy of the target whose weights and biases that produce the units are 0, as the paper does it."""
    other = Target(copy.deepcopy(target.model), target.layers, target.preprocess, target.classes, "cpu")
    for name in filter(None, (layer, norm)):
        module = other.model.get_submodule(name)
        for parameter in (module.weight, module.bias):
            parameter.data[list(units)] = 0
    return other


@pytest.mark.parametrize("layer, norm", [("stem", "norm"), ("blocks.1.conv1", "blocks.1.bn1"), ("blocks.0.conv2", "blocks.0.bn2"),
                                         ("fc", None), ("blocks.1.bn2", None)])
@settings(max_examples=8, deadline=None)
@given(units=st.sets(st.integers(0, 5), max_size=6))
def test_it_equals_weights_and_biases_of_zero(images, layer, norm, units):
    target, batch = target_of(small_net, layer), batch_of(images)[:4]
    expected = scores_of(without_weights(target, layer, norm, units), batch)
    with ablated(target, layer, list(units)):
        torch.testing.assert_close(scores_of(target, batch), expected)


@pytest.mark.parametrize("make, layer, axis", [(small_net, "blocks.0", 1), (small_net, "fc", 1), (vit, "encoder.layers.encoder_layer_0", 2),
                                               (swin, "features.1", 3), (hugging_face_vit, "vit.layers.0", 2)])
def test_the_units_of_any_kind_of_layer_are_zero_and_the_others_are_not(images, make, layer, axis):
    target, seen = target_of(make, layer), {}
    with ablated(target, layer, [1, 3]):
        handle = target.model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.update(output=output))
        scores_of(target, batch_of(images)[:2])
        handle.remove()
    output = seen["output"] if isinstance(seen["output"], torch.Tensor) else seen["output"][0]
    zero = (output == 0).all(tuple(number for number in range(output.ndim) if number != axis))
    assert zero[[1, 3]].all() and not zero.all() and not zero[[0, 2]].all()


def test_a_relu_that_runs_twice_is_ablated_where_it_is_recorded(images):
    target, batch = target_of(small_net, "blocks.1.relu"), batch_of(images)[:3]
    with ablated(target, "blocks.1.relu", [2]):
        at_relu, through_hook = scores_of(target, batch), target.activations(batch)["blocks.1.relu"]
    with ablated(target, "blocks.1", [2]):
        torch.testing.assert_close(scores_of(target, batch), at_relu)
    assert not through_hook[:, 2].any()


# the network is restored


def state_of(target):
    model = target.model
    hooks = [dict(getattr(module, name)) for module in model.modules() for name in ("_forward_hooks", "_forward_pre_hooks")]
    attributes = [sorted(vars(module)) for module in model.modules()]
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, hooks, attributes, [module.training for module in model.modules()]


def assert_same_state(one, other):
    assert one[1:] == other[1:]
    assert one[0].keys() == other[0].keys() and all(one[0][name].equal(other[0][name]) for name in one[0])


@pytest.mark.parametrize("layer", ["stem", "blocks.1.conv1", "blocks", "fc"])
def test_an_exception_inside_the_context_leaves_the_network_as_it_was_bit_for_bit(images, layer):
    target, batch = target_of(small_net, layer), batch_of(images)
    before, scores, key = state_of(target), scores_of(target, batch), target.fingerprint
    with pytest.raises(RuntimeError, match="on purpose"):
        with ablated(target, layer, [0, 2]):
            assert not scores_of(target, batch).equal(scores)
            raise RuntimeError("on purpose")
    assert_same_state(state_of(target), before)
    assert scores_of(target, batch).equal(scores) and target.fingerprint == key


def test_an_exception_in_the_middle_of_a_replay_leaves_the_network_as_it_was(images):
    target = target_of(small_net, "blocks.0.conv1")
    before = state_of(target)
    handle = target.model.fc.register_forward_pre_hook(stop_at_call(7))
    with pytest.raises(KeyboardInterrupt):
        unit_ablation(target, images, "blocks.0.conv1", progress=False)
    handle.remove()
    assert_same_state(state_of(target), before)


def stop_at_call(number):
    calls = [0]

    def hook(*_):
        calls[0] += 1
        if calls[0] == number:
            raise KeyboardInterrupt

    return hook


def test_contexts_may_be_nested_and_change_the_fingerprint(images):
    target, batch = target_of(small_net, "blocks"), batch_of(images)
    key = target.fingerprint
    with ablated(target, "blocks", [1, 4]):
        both, of_both = scores_of(target, batch), target.fingerprint
    with ablated(target, "blocks", 1):
        of_one = target.fingerprint
        with ablated(target, "blocks", 4):
            assert scores_of(target, batch).equal(both)
            assert target.fingerprint not in (key, of_one)
        assert target.fingerprint == of_one
    assert len({key, of_one, of_both}) == 3 and target.fingerprint == key


# only what lies behind the layer runs again


LAYERS = [(small_net, layer) for layer in ("stem", "norm", "blocks", "blocks.0.conv1", "blocks.1.conv2", "blocks.1.bn2", "blocks.1.relu", "fc", "out")]
LAYERS += [(vit, "encoder.layers.encoder_layer_0.mlp.0"), (vit, "encoder.layers.encoder_layer_1"), (vit, "heads.head")]
LAYERS += [(swin, "features.1"), (hugging_face_vit, "vit.layers.0"), (hugging_face_vit, "vit.layers.1.mlp.fc1")]


@pytest.mark.parametrize("make, layer", LAYERS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_a_replay_gives_the_scores_of_a_whole_pass(images, make, layer):
    target, batch = target_of(make, layer), batch_of(images)[:4]
    with warnings.catch_warnings(), target.running():
        warnings.simplefilter("error")
        whole, *replayed = _Passes(target, _place(target, layer), [0, 2], batch[0])(batch)
    expected = scores_of(target, batch)
    torch.testing.assert_close(whole, expected)
    for unit, scores in zip([0, 2], replayed, strict=True):
        with ablated(target, layer, unit):
            torch.testing.assert_close(scores, scores_of(target, batch))
    assert layer == "stem" or any(not scores.equal(expected) for scores in replayed)


class Counter(nn.Module):
    """Counts how often it really runs."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return x


def test_the_way_to_the_layer_runs_once_whatever_the_number_of_units(images):
    runs = []
    for units in ([0], None):
        target = target_of(small_net, "blocks.1.conv1")
        target.model.first, target.model.blocks[1].relu = Counter(), Counter()
        unit_ablation(target, images, "blocks.1.conv1", units, progress=False)
        runs.append((target.model.first.runs, target.model.blocks[1].relu.runs))
    (before_one, behind_one), (before_all, behind_all) = runs
    assert before_one == before_all and behind_all - behind_one == 2 * 5  # the ReLU runs twice for each of the five other units


def test_only_what_is_read_again_is_kept(images):
    target = target_of(small_net, "blocks.1.conv2")
    passes = _Passes(target, _place(target, "blocks.1.conv2"), [0], batch_of(images)[0])
    with target.running():
        list(passes(batch_of(images)))
    kept = {number for number, output in passes.downstream.recorded.items() if output is not None}
    calls = {"first": 0, "stem": 1, "norm": 2, "blocks.0": 3, "conv1": 4, "bn1": 5, "relu": 6, "conv2": 7}
    assert kept == {calls["norm"], calls["blocks.0"], calls["conv2"]}  # for the skip around all blocks, the second block's sum, the layer itself


class Moody(SmallNet):
    """Is larger at each pass."""

    passes = 0

    def forward(self, x):
        self.passes += 1
        return super().forward(x) * self.passes


class TwiceThroughOneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, 1, 1), nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(self.conv(torch.relu(self.conv(x))).mean((2, 3)))


def test_where_it_cannot_be_replayed_each_unit_costs_a_whole_pass_and_a_warning_says_so(images):
    with pytest.warns(UserWarning, match="behind 'blocks' cannot be run by itself.*other scores"):
        found = unit_ablation(target_of(Moody, "blocks"), images, "blocks", progress=False)
    expected = unit_ablation(target_of(SmallNet, "blocks"), images, "blocks", progress=False)
    pd.testing.assert_frame_equal(found.after, expected.after)  # a factor changes no highest score


@pytest.mark.parametrize("call", [1, 2])
def test_of_weights_that_are_used_twice_the_call_that_is_recorded_is_ablated(images, call):
    target = target_of(TwiceThroughOneLayer, "conv", {"conv": call})
    network, batch = target.model, batch_of(images)
    found = unit_ablation(target, images, "conv", progress=False)
    with torch.no_grad():
        for unit in range(3):
            first = network.conv(batch)
            first[:, unit] *= call != 1
            second = network.conv(torch.relu(first))
            second[:, unit] *= call != 2
            expected = network.fc(second.mean((2, 3)))
            with ablated(target, "conv", unit):
                torch.testing.assert_close(scores_of(target, batch), expected)
            right = (expected.argmax(1).numpy() == images.labels).mean()
            assert np.average(found.after.loc[unit], weights=found.images) == pytest.approx(right)


def test_a_layer_that_runs_twice_is_refused_where_no_call_is_said(images):
    with pytest.raises(ValueError, match="runs 2 times in one pass; say which call counts"):
        unit_ablation(target_of(TwiceThroughOneLayer, "conv", {}), images, "conv", progress=False)


def test_another_thread_sees_the_whole_network(images):
    target, batch = target_of(small_net, "blocks.1.conv1"), batch_of(images)[:4]
    expected, found = scores_of(target, batch), []
    with ablated(target, "blocks.1.conv1", [0, 1, 2]):
        other = threading.Thread(target=lambda: found.append(scores_of(target, batch)))
        other.start()
        other.join()
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_network_of_another_floating_type(images, kind):
    target = target_of(small_net, "blocks.1.conv1")
    expected = unit_ablation(target, images, "blocks.1.conv1", [0], progress=False)
    other = target_of(small_net, "blocks.1.conv1")
    other.model.to(kind)
    found = unit_ablation(other, images, "blocks.1.conv1", [0], progress=False)
    assert np.abs(found.after.values - expected.after.values).max() <= (0 if kind == torch.float64 else 0.2)


def test_a_network_that_was_compiled_in_place(images):
    expected = unit_ablation(target_of(small_net, "blocks.1.conv1"), images, "blocks.1.conv1", progress=False)
    target = target_of(small_net, "blocks.1.conv1")
    target.model.compile(backend="eager")
    target.model(batch_of(images)[:2])
    pd.testing.assert_frame_equal(unit_ablation(target, images, "blocks.1.conv1", progress=False).after, expected.after)


def test_what_gives_no_class_scores_says_so(images):
    class Boxes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return [{"boxes": one} for one in self.conv(x)]

    with pytest.raises(ValueError, match="Boxes gives .*: expected class scores .*, which detectors and segmentation networks do not have"):
        class_accuracy(target_of(Boxes, "conv"), images, progress=False)


# accuracies


def direct_accuracies(target, images, layer, norm, unit):
    """The definition: image by image, with weights of 0."""
    network = target if unit is None else without_weights(target, layer, norm, [unit])
    right = {name: [] for name in NAMES}
    for number, label in enumerate(images.labels):
        scores = scores_of(network, preprocess(images[number])[None])[0]
        right[images.classes[label]].append(NAMES[int(scores.argmax())] == images.classes[label])
    return {name: np.mean(values) for name, values in right.items()}


def test_accuracies_before_and_after_are_those_of_the_definition(images):
    target = target_of(small_net, "stem")
    found = unit_ablation(target, images, "stem", [5, 0], progress=False)
    assert found.after.index.tolist() == [0, 5] and found.images.to_dict() == {name: 8 for name in NAMES}
    assert found.before.to_dict() == pytest.approx(direct_accuracies(target, images, "stem", "norm", None))
    for unit in (0, 5):
        assert found.after.loc[unit].to_dict() == pytest.approx(direct_accuracies(target, images, "stem", "norm", unit))


def test_drops_are_largest_first_and_name_the_class(images):
    found = unit_ablation(target_of(small_net, "blocks"), images, "blocks", progress=False)
    table = found.largest(100)
    assert (table["drop"] > 0).all() and (np.diff(table["drop"]) <= 0).all()
    for row in table.to_dict("records"):
        assert row["drop"] == pytest.approx(row["before"] - row["after"]) == pytest.approx(found.drops.loc[row["unit"]].max())
        assert found.drops.loc[row["unit"], row["class"]] == pytest.approx(row["drop"])
    assert set(found.drops.index[(found.drops > 0).any(axis=1)]) == set(table.unit)


def test_the_plot_shows_names_as_they_are(images):
    hostile = ["a$b$", "<b>bee</b>", "cow"]
    target = Target(target_of(small_net, "blocks").model, ["blocks"], preprocess, classes=hostile, device="cpu")
    relabelled = ProbingSet.from_images([images[number] for number in range(24)], [hostile[label] for label in images.labels])
    found = unit_ablation(target, relabelled, "blocks", progress=False)
    figure = found.plot(4)
    labels = figure.axes[0].get_yticklabels()
    figure.canvas.draw()
    assert [label.get_text() for label in labels] == [f"unit {row.unit}: {row[2]}" for row in found.largest(4).itertuples()]
    assert len(labels) and not any(label.get_parse_math() for label in labels)


def test_classes_are_matched_by_name_and_by_number_where_there_are_no_names(images):
    target = target_of(small_net, "blocks")
    expected = class_accuracy(target, images, progress=False)
    some = [images[number] for number in range(24) if images.labels[number] > 0]
    names = [NAMES[label] for label in images.labels if label > 0]
    assert class_accuracy(target, ProbingSet.from_images(some, names), progress=False).to_dict() == expected[["bee", "cow"]].to_dict()
    by_number = ProbingSet.from_images([images[number] for number in range(24)], images.labels.tolist())
    assert class_accuracy(target, by_number, progress=False).to_dict() == expected.to_dict()


# bad input


def test_unknown_layers_and_units_are_named(images):
    target = target_of(small_net, "blocks")
    with pytest.raises(KeyError, match="no layer 'block'; did you mean 'blocks'"):
        unit_ablation(target, images, "block")
    for units in ([6], [-1]):
        with pytest.raises(IndexError, match=r"no unit .* in layer 'blocks': it has 6 units \(0..5\)"):
            ablated(target, "blocks", units)


def test_a_layer_that_never_runs_is_refused():
    model = small_net()
    model.idle = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'idle' never runs"):
        ablated(Target(model.eval(), ["idle"], preprocess, device="cpu"), "idle", 0)


def test_images_without_labels_are_refused(images):
    unlabelled = ProbingSet.from_images([images[number] for number in range(3)])
    for call in (lambda target: class_accuracy(target, unlabelled), lambda target: unit_ablation(target, unlabelled, "blocks")):
        with pytest.raises(ValueError, match="needs labels"):
            call(target_of(small_net, "blocks"))


def test_labels_that_the_network_does_not_know_are_refused(images):
    target = target_of(small_net, "blocks")
    with pytest.raises(KeyError, match="'cows'; did you mean 'cow'"):
        class_accuracy(target, ProbingSet.from_images([images[0]], ["cows"]), progress=False)
    with pytest.raises(ValueError, match="label 3, but the network has 3 outputs"):
        class_accuracy(target, ProbingSet.from_images([images[0]], [3]), progress=False)


def test_a_network_without_class_scores_is_refused(images):
    target = Target(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), ["0"], preprocess, device="cpu")
    with pytest.raises(ValueError, match="expected class scores"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be replayed is said first
        unit_ablation(target, images, "0", progress=False)


def test_bad_images_are_skipped_and_listed_or_raised(images, tmp_path):
    for number in range(6):
        (tmp_path / NAMES[number % 3]).mkdir(exist_ok=True)
        images[number].save(tmp_path / NAMES[number % 3] / f"{number}.png")
    (tmp_path / "bee" / "broken.png").write_bytes(b"no image")
    folder, target = ProbingSet.from_folder(tmp_path), target_of(small_net, "blocks")
    found = unit_ablation(target, folder, "blocks", [0], progress=False)
    assert found.bad_images.id.tolist() == ["bee/broken.png"] and found.images.to_dict() == {name: 2 for name in NAMES}
    with pytest.raises(BadImage, match="broken"):
        unit_ablation(target, folder, "blocks", [0], on_bad_image="raise", progress=False)
    with pytest.raises(KeyError, match="did you mean 'skip'"):
        class_accuracy(target, folder, on_bad_image="skipp")


# descriptions

def ablation_of(drops):
    """An `Ablation` of layer "l" with these drops, (unit, class)."""
    after = pd.DataFrame(1 - np.array(list(drops.values())), index=list(drops), columns=NAMES)
    return Ablation("l", pd.Series(1.0, NAMES), after, pd.Series(9, NAMES), pd.DataFrame(columns=["id", "reason"]))


def words(*rows):
    return pd.DataFrame([("l", unit, text, 1.0, method) for unit, text, method in rows], columns=["layer", "unit", "description", "score", "method"])


HAS = pd.DataFrame({"wings": [True, True, False], "horns": [False, False, True], "legs": [True, True, True], "gills": [False, False, False]}, index=NAMES)


def test_drops_of_classes_that_have_it_worked_by_hand():
    ablation = ablation_of({3: [0.5, 0.3, 0.1], 4: [0.0, 0.2, 0.6]})
    found = DescribedDrops(ablation, HAS)(words((3, "wings", "A"), (4, "wings", "A"), (4, "horns", "B")))
    assert found[["unit", "method"]].values.tolist() == [[3, "A"], [4, "A"], [4, "B"]]
    assert found.having.tolist() == pytest.approx([0.4, 0.1, 0.6]) and found.lacking.tolist() == pytest.approx([0.1, 0.6, 0.1])
    assert found.value.tolist() == pytest.approx([0.3, -0.5, 0.5]) and set(found.measure) == {"drop difference"} and found.description.tolist() == ["wings", "wings", "horns"]


def test_only_descriptions_that_tell_classes_apart_count():
    ablation = ablation_of({3: [0.5, 0.3, 0.1]})
    odd = words((3, "legs", "all have it"), (3, "gills", "none has it"), (3, "teapots", "not asked"), (3, None, "silent"), (3, "\u7ffc", "not English"), (7, "wings", "not ablated"))
    assert DescribedDrops(ablation, HAS)(odd).values.tolist() == []
    twice = DescribedDrops(ablation, HAS)(pd.concat([words((3, "wings", "A"), (3, "horns", "A")), words((3, "horns", "A")).assign(layer="other")]))
    assert twice.description.tolist() == ["wings"]
    with pytest.raises(ValueError, match="says nothing of the classes bee: expected a row for each class"):
        DescribedDrops(ablation, HAS.drop("bee"))
