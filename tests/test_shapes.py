"""The axes that signatures promise, checked by jaxtyping: it takes the place of `neuronbench.shapes`, and modules imported then check every call."""
import importlib
import subprocess
import sys

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook

CHECKED = ["neuronbench.probe.layout", "neuronbench.probe.masks", "neuronbench.describe.similarity", "neuronbench.describe.describe_and_dissect.scoring"]


@pytest.fixture(scope="module")
def modules():
    """{last name: a module of CHECKED that checks its annotations}; the modules that other tests know come back afterwards."""
    known = {name: importlib.import_module(name) for name in ["neuronbench.shapes", *CHECKED]}
    for name in CHECKED:
        del sys.modules[name]
    sys.modules["neuronbench.shapes"] = jaxtyping
    with install_import_hook(CHECKED, "beartype.beartype"):
        checked = {name.rpartition(".")[2]: importlib.import_module(name) for name in CHECKED}
    for name, module in known.items():
        sys.modules[name] = module
        setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    return checked


SIMILARITIES = ("cos", "cos_cubed", "wpmi", "soft_wpmi", "soft_wpmi_odds", "rank_reorder")
chance = np.random.default_rng(0)
SCORES, ACTIVATIONS = (chance.random(shape).astype(np.float32) for shape in ((60, 5), (60, 4)))  # (image, concept), (image, unit)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_keep_their_promise(modules, name):
    similarity = modules["similarity"]
    images, texts = torch.rand(60, 6), torch.rand(5, 6)
    for scores, activations in ((SCORES, ACTIVATIONS), (torch.tensor(SCORES), torch.tensor(ACTIVATIONS)), (similarity.Cosines(images, texts), ACTIVATIONS)):
        assert getattr(similarity, name)(scores, activations).shape == (4, 5)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("scores, activations", [(SCORES, ACTIVATIONS[:20]), (SCORES[0], ACTIVATIONS), (SCORES, ACTIVATIONS[None]), (SCORES.astype(int), ACTIVATIONS)],
                         ids=["other images", "no concepts", "three axes", "integers"])
def test_similarities_of_other_shapes_are_refused(modules, name, scores, activations):
    with pytest.raises(TypeCheckError):
        getattr(modules["similarity"], name)(scores, activations)


def test_cosines_of_two_spaces_are_refused(modules):
    with pytest.raises(TypeCheckError):
        modules["similarity"].Cosines(torch.rand(30, 6), torch.rand(5, 7))


PAINTED, EXEMPLARS = chance.random((3, 8, 6)), chance.random((10, 6))  # (candidate, painted, dim), (image, dim)
SCORED = {"mean": (), "topk_squared": (), "image_products": (PAINTED, EXEMPLARS), "topk_squared_image_products": (PAINTED, EXEMPLARS)}


@pytest.mark.parametrize("name", SCORED)
def test_scorings_keep_their_promise(modules, name):
    activations = np.where(np.arange(24).reshape(3, 8) % 5, chance.random((3, 8)), np.nan)
    assert getattr(modules["scoring"], name)(activations, *SCORED[name]).shape == (3,)
    assert modules["scoring"].candidate_scores(name, activations, PAINTED, EXEMPLARS).shape == (3,)


@pytest.mark.parametrize("activations, painted, exemplars", [
    (np.zeros((2, 8)), PAINTED, EXEMPLARS), (np.zeros((3, 7)), PAINTED, EXEMPLARS), (np.zeros((3, 8)), PAINTED, EXEMPLARS[:, :5]), (np.zeros(8), PAINTED, EXEMPLARS),
    (np.zeros((3, 8)), PAINTED[0], EXEMPLARS)], ids=["candidates", "painted images", "dimensions", "one axis", "no candidates"])
def test_scorings_of_other_shapes_are_refused(modules, activations, painted, exemplars):
    with pytest.raises(TypeCheckError):
        modules["scoring"].image_products(activations, painted, exemplars)


def test_masks_keep_their_promise(modules):
    masks = modules["masks"]
    units, active = masks.unit_masks(torch.rand(4, 3, 5), torch.tensor([0.5, 2.0, 0.1, 0.9]), (9, 20))
    assert active.shape == (len(units), 9, 20) and masks.packed(active.numpy()).shape == (len(units), 3)
    none, nothing = masks.unit_masks(torch.rand(4, 3, 5), torch.full((4,), 2.0), (9, 20))
    assert nothing.shape == (0, 9, 20) == (len(none), 9, 20)
    concept_masks = masks.ConceptMasks.of({"object": {"boat": np.ones((9, 20), bool)}}, {"object": ["cat", "boat"], "colour": ["red"]}, (9, 20))
    assert concept_masks.concepts.tolist() == [1] and concept_masks.annotated.tolist() == [True, False]


def test_masks_of_other_shapes_are_refused(modules):
    masks = modules["masks"]
    refused = [lambda: masks.unit_masks(torch.rand(4, 3, 5), torch.rand(3), (9, 20)), lambda: masks.unit_masks(torch.rand(4, 3), torch.rand(4), (9, 20)),
               lambda: masks.packed(np.zeros((2, 9, 20))), lambda: masks.ConceptMasks(np.ones(2, bool), np.array([1, 2]), np.ones((1, 9, 20), bool))]
    for call in refused:
        with pytest.raises(TypeCheckError):
            call()


def layouts(layout):
    """(layout, the shape of an output) of each kind."""
    Layout, grid = layout.Layout, {"grid": (2, 3), "size": (16, 24)}
    return [(Layout("maps"), (5, 4, 2, 3)), (Layout("maps-last"), (5, 2, 3, 4)), (Layout("vectors"), (5, 4)), (Layout("positions"), (5, 4, 7)),
            (Layout("tokens", prefix=1, **grid), (5, 7, 4)), (Layout("tokens-first", prefix=1, **grid), (7, 5, 4))]


def test_layouts_keep_their_promise(modules):
    layout = modules["layout"]
    for given, shape in layouts(layout):
        arranged = layout.arranged(torch.rand(shape), given)
        here = given.arranged
        assert layout.positions(arranged, here).shape[::2] == (5, 4) and layout.pooled(arranged, here).shape == (5, 4), given.kind
        maps = layout.maps(arranged, here, (16, 24))
        assert maps is None or maps.shape == (5, 4, 2, 3), given.kind


@pytest.mark.parametrize("shape", [(5,), (5, 4, 3, 2, 1)])
def test_outputs_of_other_shapes_are_refused(modules, shape):
    layout = modules["layout"]
    for function in (layout.arranged, layout.positions, layout.pooled):
        with pytest.raises(TypeCheckError):
            function(torch.rand(shape), layout.Layout("vectors"))


def test_nobody_needs_jaxtyping_to_use_the_package():
    code = ("import sys; sys.modules.update(jaxtyping=None, beartype=None); import numpy as np, neuronbench as nb, neuronbench.probe.masks; "
            "print(tuple(nb.similarity.cos(np.eye(4, 3, dtype='f'), np.eye(4, 2, dtype='f')).shape))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "(2, 3)"
