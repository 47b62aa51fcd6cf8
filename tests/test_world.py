"""The embedded world: scenes, pictures and masks agree; formulas and claims mean what they say; models load and are rebuilt."""
import itertools
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from neuronbench import cli
from neuronbench.embedded.drawing import rendering
from neuronbench.embedded.drawing.objects import pieces
from neuronbench.embedded.drawing.rendering import HELD_OUT_SEED, Scenes, render
from neuronbench.embedded.drawing.scenes import CATEGORIES, COLOURS, CONCEPTS, KINDS, SETTINGS, TEXTURES, Scene, Thing, caption, parts_of, random_scene
from neuronbench.embedded.drawing.settings import backdrop

SCENES = [random_scene(7, number) for number in range(60)]


@pytest.mark.parametrize(
    "wrong, nearest",
    [({"kind": "boot"}, "boat"), ({"colour": "rad"}, "red"), ({"texture": "stripy"}, "striped"), ({"parts": ("flags",)}, "flag")],
)
def test_an_unknown_word_names_the_nearest(wrong, nearest):
    with pytest.raises(KeyError, match=nearest):
        Thing(**({"kind": "boat", "colour": "red", "texture": "plain"} | wrong))


def test_an_unknown_setting_or_time_names_the_nearest():
    thing = Thing("boat", "red", "plain")
    with pytest.raises(KeyError, match="desert"):
        Scene((thing,), setting="dessert")
    with pytest.raises(KeyError, match="night"):
        Scene((thing,), time="nigth")
    with pytest.raises(KeyError, match="meadow"):
        backdrop("meadows", "day", 0)
    with pytest.raises(KeyError, match="robot"):
        pieces("robots", ())


def test_a_caption_names_every_thing_and_the_scene():
    for scene in SCENES:
        words = caption(scene).split()
        assert all(word in words for thing in scene.things for word in (thing.kind, thing.colour, thing.texture))
        assert scene.setting in words and scene.time in words


def test_labels_and_masks_agree():
    for scene in SCENES:
        masks = render(scene)[1]
        assert {concept for concept, mask in masks.items() if mask.any()} == scene.concepts


def test_masks_lie_inside_one_another_as_their_meanings_do():
    for scene in SCENES:
        masks = render(scene)[1]
        objects = np.any([masks[thing.kind] for thing in scene.things], 0)
        assert masks[scene.setting].all() and masks[scene.time].all()
        for category in ("part", "colour", "texture", "shape"):
            for concept in set(masks) & set(CATEGORIES[category]):
                assert not (masks[concept] & ~objects).any(), concept


def test_a_scene_is_the_same_in_another_process():
    code = "import hashlib; from neuronbench.embedded.drawing.rendering import render; from neuronbench.embedded.drawing.scenes import random_scene;"
    code += "print(hashlib.sha256(b''.join(render(random_scene(7, i))[0].tobytes() for i in range(5))).hexdigest())"
    hashes = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(hashes) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_with_and_without_its_parts(kind):
    bare = Thing(kind, "red", "plain")
    scene = Scene((replace(bare, parts=parts_of(kind)),))
    masks = render(scene)[1]
    assert all(masks[part].any() for part in parts_of(kind))
    assert masks[kind].mean() > 0.05 and masks["red"].any()
    assert not set(parts_of(kind)) & set(render(Scene((bare,)))[1])


@pytest.mark.parametrize("time", ["day", "night"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_colours_and_textures_look_different_in_every_setting(setting, time):
    thing = Thing("balloon", "red", "plain", size=0.35)
    draw = lambda **changes: render(Scene((replace(thing, **changes),), setting, time))[0].astype(int)
    looks = [draw(colour=colour) for colour in COLOURS] + [draw(texture=texture) for texture in TEXTURES if texture != "plain"]
    for a, b in itertools.combinations(looks, 2):
        assert np.abs(a - b).mean() > 1


@pytest.mark.parametrize("place", [{"x": 0.0}, {"x": 1.0, "y": 1.0}, {"y": 0.0, "tilt": 180.0}, {"size": 0.9}, {"size": 0.02}, {"flipped": True}])
def test_a_thing_at_the_edge_is_drawn_as_far_as_it_is_visible(place):
    image, masks = render(Scene((replace(Thing("car", "blue", "striped"), **place),)))
    assert image.shape == (128, 128, 3) and masks["car"].any()


def test_a_data_set_is_known_without_drawing(monkeypatch):
    def fail(scene):
        raise AssertionError("drawn")

    scenes = Scenes.random(50, HELD_OUT_SEED)
    with monkeypatch.context() as patch:
        patch.setattr(rendering.Scenes, "__getitem__", fail)
        assert len(scenes.labels) == len(scenes.ids) == len(scenes.concept_labels) == 50
        assert scenes.fingerprint == Scenes.random(50, HELD_OUT_SEED).fingerprint
    assert scenes.fingerprint != Scenes(scenes.scenes[::-1]).fingerprint


# %% what needs torch
from neuronbench.embedded.training import clip as tools  # noqa: E402
from neuronbench.embedded.training.target import evaluate_formula, formula_concepts  # noqa: E402
from neuronbench.embedded.training.train_world import train_world  # noqa: E402
from neuronbench.embedded.world import WEIGHTS, World, world  # noqa: E402


@pytest.fixture(scope="module")
def here():
    return world()


def test_all_who_ask_share_a_world_and_its_recording(here, tmp_path, monkeypatch):
    assert world() is here and World() is not here and here.store.is_relative_to(os.environ["NEURONBENCH_CACHE"])
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path))
    assert world() is not here and world() is world() and world().store == tmp_path / "recordings" / "world.zarr"


def test_a_world_records_its_images_once(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path))
    few = World(scenes=12)
    recording = few.recording
    again = World(scenes=12).recording
    assert recording is few.recording and recording.images is few.images and recording.target is few.target
    assert again.fingerprint == recording.fingerprint and {path.name for path in few.store.iterdir() if path.is_dir()} == {recording.fingerprint}
    np.testing.assert_array_equal(recording["layer3"], again["layer3"])


def test_a_formula_is_read_from_left_to_right():
    truths = list(itertools.product([False, True], repeat=3))
    values = {word: np.array(column) for word, column in zip(("cat", "bird", "night"), zip(*truths))}
    expected = {
        "cat": [a for a, b, c in truths],
        "cat AND NOT bird": [a and not b for a, b, c in truths],
        "(cat OR bird) AND night": [(a or b) and c for a, b, c in truths],
        "(cat AND bird) OR night": [(a and b) or c for a, b, c in truths],
        "(cat OR bird) AND NOT night": [(a or b) and not c for a, b, c in truths],
    }
    for formula, truth in expected.items():
        assert evaluate_formula(formula, values).tolist() == truth


def test_a_concept_that_is_absent_is_false_everywhere():
    night = {"night": np.ones((2, 2), bool)}
    assert not evaluate_formula("red AND round", night).any()
    assert evaluate_formula("night AND NOT red", night).all()


def test_an_unknown_concept_in_a_formula_names_the_nearest():
    with pytest.raises(KeyError, match="round"):
        formula_concepts("red AND rounded")
    with pytest.raises(KeyError, match="round"):
        evaluate_formula("red AND rounded", {"red": np.ones(1, bool)})


@pytest.mark.parametrize("text, formula", [
    ("red things", "red"), ("Red round THINGS", "red AND round"), ("boats at sea", "boat AND sea"), ("butterflies", "butterfly"),
    ("leaves", "leaf"), ("hands", "hands"), ("luggage", "luggage"), ("a boat but not at night", "boat AND NOT night"),
    ("boats without sails", "boat AND NOT sail"), ("no wheels", "NOT wheel"), ("wheels or flags", "wheel OR flag"), ("or boat or", "boat"),
    ("(cat OR bird) AND NOT night", "cat OR bird AND NOT night"), ("fish, wheel or flag", "fish"), ("boat not", "boat"),
    ("", ""), ("things and areas", ""), ("not or without", ""), ("<b>boat</b>", "boat"), (", boat", ""), ("boat\x00", "boat"),
])
def test_a_description_is_read_as_a_formula(text, formula):
    reading = World.same_meaning.reading(text)
    assert reading == formula or not formula and not set(CONCEPTS) & set(reading.split())


@pytest.mark.parametrize("text, formula, same", [
    ("red things", "red", True), ("red boat", "red", False), ("boat not night", "boat AND NOT night", True), ("boat by day", "boat AND NOT night", True),
    ("flags or wheels", "wheel OR flag", True), ("wheels and flags", "wheel OR flag", False), ("cats or birds by day", "(cat OR bird) AND day", True),
    ("bird or cat not night", "(cat OR bird) AND day", True), ("boat or night and boat", "boat", True), ("not boat", "boat", False),
    ("boat or not boat", "boat", False), ("things", "boat", False), ("ship", "boat", False), ("day or night", "day", False),
    (" ".join(CONCEPTS), "boat", False), ("boat " * 100, "boat", True),
])
def test_right_is_what_means_the_same(text, formula, same):
    assert World.same_meaning(text, formula) is World.same_meaning(formula, text) is same


@pytest.mark.parametrize("seed", range(3))
def test_what_people_write_of_a_formula_means_it(seed):
    from neuronbench.embedded.training.networks import network_formulas, wordings

    formulas = network_formulas(seed)
    for number, formula in enumerate(formulas):
        assert all(World.same_meaning(text, formula) for text in wordings(formula, number)), formula
        assert World.same_meaning(formula.lower(), formula)


def test_formulas_of_other_concepts_mean_something_else():
    from neuronbench.embedded.training.target import PLANTED

    for one, other in itertools.permutations(PLANTED, 2):
        assert not World.same_meaning(one, other), (one, other)


def test_marks_leave_out_unknown_units_and_count_silence_as_wrong(here):
    import pandas as pd

    table = pd.DataFrame({"layer": ["fc", "fc", "fc", "conv1"], "unit": [0, 1, 2, 0], "description": ["a boat", None, "houses", "boat"]})
    marks = here.marked(table)
    assert marks.right.tolist() == [True, False, False] and marks.truth.tolist() == ["boat", "house", "tree"] and marks.right.dtype == bool
    assert here.marked(table[:0]).right.dtype == bool
    everything = here.truth.assign(score=1.0, method="the truth").drop(columns="kind")
    assert here.marked(everything[["layer", "unit", "description", "score", "method"]]).right.all()


def test_annotations_are_the_masks_of_the_images(here):
    masks = here.annotations.masks(3, (128, 128))
    assert here.annotations.images is here.images and len(here.annotations) == len(here.images)
    assert {concept for of in masks.values() for concept in of} == set(here.masks(3))


def test_claims_are_true_as_sets_say():
    rng = np.random.default_rng(1)
    claims = [tools.phrase_claim(rng, scene) for scene in SCENES] + [tools.caption_claim(scene) for scene in SCENES]
    claims += [tools.word_claim(word) for word in CONCEPTS] + [tools.foreign_claim("tax")]
    true = tools.claims_true(claims, tools.scene_words(SCENES))
    for scene, row in zip(SCENES, true):
        things = [set(thing.concepts) for thing in scene.things]
        for claim, answer in zip(claims, row):
            fits = all(any(claimed <= words for words in things) for claimed in claim.things)
            assert answer == (claim.possible and fits and claim.scene <= {scene.setting, scene.time})


def test_every_word_of_the_world_is_one_token_and_others_are_spelled(here):
    tokenize = here.clip.tokenizer
    for word in CONCEPTS:
        assert (tokenize([word])[0] != 0).sum() == 3, word
    ids = tokenize(["qat", "qux", "<img src=x onerror=alert(1)>", "", "word " * 100])
    last = len(tools.vocabulary()) - 1
    assert ids.shape == (5, tools.CONTEXT_LENGTH) and (ids.max(1).values == last).all()
    assert (ids[0] != ids[1]).any()


def test_the_world_is_complete(here):
    assert here.target.layers == ("conv1", "layer1", "layer2", "layer3", "fc") and here.target.classes == list(KINDS)
    assert len(here.images) == len(here.captions) == len(here.concept_labels) and here.images.classes == list(KINDS)
    assert list(here.concept_labels.columns) == here.concepts
    assert list(here.truth.columns) == ["layer", "unit", "kind", "description", "concepts", "formula"]
    assert set(itertools.chain(*here.truth.concepts)) <= set(here.concepts)
    assert (here.truth[here.truth.kind == "single"].description.map(lambda text: text in here.concepts)).all()
    assert here.images[3].size == (128, 128) and here.masks(3)


def test_the_shipped_weights_are_small_and_safe():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    assert sum(path.stat().st_size for path in files) < 16e6


def test_nothing_shown_was_trained_on(here):
    trained = set(Scenes.random(10_000, rendering.TRAINING_SEED).scenes)
    assert not trained & set(here.scenes.scenes)


def test_training_by_the_command_writes_a_world_that_is_measured_loads_and_repeats_itself(tmp_path, capsys):
    settings = {"seed": 5, "scenes": 24, "epochs": 1}
    cli.train(tmp_path / "a", held_out=160, **settings)
    said = capsys.readouterr().out
    assert "accuracy of the target" in said and "right caption among 32" in said and str(tmp_path) in said
    rebuilt = World(tmp_path / "a", scenes=4)
    assert rebuilt.clip.embed_images(rebuilt.images).shape[0] == 4 and rebuilt.target.classes == list(KINDS) and rebuilt.target.layers[-1] == "fc"
    train_world(tmp_path / "b", workers=0, device="cpu", **settings)
    written = sorted((tmp_path / "a").rglob("*.safetensors"))
    assert len(written) == 6 and all(path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() for path in written)


def test_missing_weights_say_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        World(tmp_path).target
    with pytest.raises(FileNotFoundError, match="clip"):
        World(tmp_path).clip


# %% training the target


@pytest.fixture(scope="module")
def drawn():
    from neuronbench.embedded.training.fitting import draw_scenes

    return draw_scenes(Scenes.random(400, 11), workers=0)


def test_views_show_what_a_formula_covers_and_say_how_much_of_the_thing(drawn):
    import torch

    from neuronbench.embedded.training.fitting import views
    from neuronbench.embedded.training.target_and_clip import formula_boxes, near_and_far

    positions = torch.arange(64)
    images, cover, shares = near_and_far(drawn, positions, torch.Generator().manual_seed(0))
    assert torch.equal(images[:32], drawn.images[:32] / 255) and (shares[:32] == 1).all()
    assert ((shares >= 0) & (shares <= 1)).all() and 0.1 < (shares[32:] < 0.9).float().mean() < 0.99
    boxes = formula_boxes(drawn.cover[:64], torch.Generator().manual_seed(0))
    assert (boxes[:, [1, 3]] >= 2 / 16).all() and (boxes[:, [1, 3]] <= 1).all()
    left_half = torch.tensor([[-0.5, 0.5, 0.0, 1.0]])
    assert torch.allclose(views(images[:1], left_half)[..., 1::2], images[:1, :, :, :64], atol=0.2)


def test_within_a_class_no_concept_tells_how_high_the_score_is(drawn):
    import torch

    from neuronbench.embedded.training.target import SceneNet
    from neuronbench.embedded.training.target_and_clip import fc_features, even_classes

    torch.manual_seed(0)
    net = SceneNet().eval()
    even_classes(net, drawn, weight=0, least=5)
    before = largest_gap(net, drawn, fc_features(net, drawn)[0])
    even_classes(net, drawn, weight=1000, least=5)
    assert largest_gap(net, drawn, fc_features(net, drawn)[0]) < 0.3 * before


def largest_gap(net, drawn, features):
    """The mean over classes of how far a concept shifts the class's mean score, at most."""
    import torch

    from neuronbench.embedded.drawing.scenes import concept_labels

    weights = torch.cat([net.fc.weight, net.fc.bias[:, None]], 1).double()
    scores, has = (features[: len(drawn)] @ weights.T).detach().numpy(), concept_labels(drawn.scenes).values
    gaps = []
    for number in range(len(KINDS)):
        own = drawn.labels.numpy() == number
        common = has[own][:, has[own].sum(0) >= 5]
        gaps.append(max(abs(scores[own, number][concept].mean() - scores[own, number].mean()) for concept in common.T))
    return np.mean(gaps)
