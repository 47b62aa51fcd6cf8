"""Networks as they come: compiled, spread over devices, in other floating types, run by another thread - recorded, with their maps, as the bare network is."""

import copy
import threading

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

import neuronbench as nb
from neuronbench.probe.hooks import bare, named_layers


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU()))


def pictures(count=5):
    chance = np.random.default_rng(0)
    return nb.ProbingSet.from_images([Image.fromarray(chance.integers(0, 256, (16, 12, 3), np.uint8)) for _ in range(count)])


def numbers(model, layer="3.0", **settings):
    """(pooled activations, maps of unit 1) of a layer."""
    recording = nb.record(nb.Target(model, [layer], to_tensor, device="cpu", **settings), pictures(), progress=False)
    found = nb.exemplars(recording, layer, [1], 5)
    return recording[layer].values, found.maps[0][np.argsort(found.images[0])]


def run_once(model):
    with torch.no_grad():
        model(torch.rand(2, 3, 16, 12))
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_inside(model):
    model[3] = torch.compile(model[3], backend="eager")
    return model


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled and used": lambda model: run_once(torch.compile(model, backend="eager").eval()),
    "compiled in place": compiled_in_place,
    "compiled in place and used": lambda model: run_once(compiled_in_place(model).eval()),
    "compiled inside": compiled_inside,
    "compiled inside and used": lambda model: run_once(compiled_inside(model).eval()),
    "data parallel": nn.DataParallel,
    "data parallel of compiled": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_network_gives_the_numbers_of_the_bare_one(name):
    wrapped, expected = WRAPPERS[name](network()), numbers(network())
    for found, right in zip(numbers(wrapped), expected):
        assert np.allclose(found, right, atol=1e-6)
    other = [layer for layer, module in named_layers(wrapped).items() if module is named_layers(wrapped)["3.0"] and layer != "3.0"]
    for layer in other:
        assert np.allclose(numbers(wrapped, layer)[0], expected[0], atol=1e-6)
    assert nb.Target(wrapped, ["3.0"], to_tensor).fingerprint == nb.Target(wrapped, ["3.0"], to_tensor).fingerprint


@pytest.mark.parametrize("name", ["compiled", "compiled and used", "compiled in place and used", "data parallel"])
def test_a_wrapper_leaves_no_trace_in_the_key(name):
    assert nb.Target(WRAPPERS[name](network()), ["3.0"], to_tensor).fingerprint == nb.Target(network(), ["3.0"], to_tensor).fingerprint


def test_a_network_that_was_compiled_is_still_compiled_afterwards():
    model, runs = network().eval(), []

    def backend(graph, _inputs):
        def forward(*given):
            runs.append(1)
            return graph.forward(*given)
        return forward

    fast = torch.compile(model, backend=backend)
    run_once(fast)
    before = len(runs)
    numbers(fast)
    assert len(runs) == before
    run_once(fast)
    assert len(runs) == before + 1


def test_names_that_a_wrapper_lacks_name_the_nearest():
    with pytest.raises(KeyError, match="no layer '3.9'; did you mean '3.1'"):
        nb.Target(torch.compile(network()), ["3.9"], to_tensor)


def test_a_torchscript_network_is_refused_in_one_sentence():
    with pytest.raises(TypeError, match="TorchScript network runs outside Python"):
        nb.Target(torch.jit.script(network()), ["0"], to_tensor)


@pytest.mark.parametrize("kind, tolerance", [(torch.float16, 2e-2), (torch.bfloat16, 5e-2), (torch.float64, 1e-5)])
def test_images_are_cast_to_the_type_of_the_network(kind, tolerance):
    model = network().to(kind)
    for found, right in zip(numbers(model), numbers(network())):
        assert found.dtype == np.float32 and np.allclose(found, right, atol=tolerance)


def test_what_overflows_is_reported():
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False)).double()
    model[0].weight.data[0], model[0].weight.data[1] = 1e300, 1
    recording = nb.record(nb.Target(model, ["0"], to_tensor, device="cpu"), pictures(), progress=False)
    assert recording.nonfinite.values.tolist() == [["0", 0, 5]] and np.isfinite(recording["0"].values[:, 1]).all()


def test_another_threads_own_passes_neither_feed_nor_stop_ours():
    model, expected = network().eval(), numbers(network())
    done, failed, other = threading.Event(), [], torch.rand(3, 3, 40, 40)

    def work():
        with torch.no_grad():
            right = copy.deepcopy(model)(other)
            while not done.is_set():
                if not torch.allclose(model(other), right, atol=1e-6):
                    failed.append("other numbers")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            for found, right in zip(numbers(model), expected):
                assert np.allclose(found, right, atol=1e-6)
    finally:
        done.set()
        thread.join(60)
    assert not failed and not thread.is_alive()


def test_a_users_hook_is_part_of_the_key_and_ours_are_not():
    model = network()
    key = nb.Target(model, ["3.0"], to_tensor).fingerprint
    handle = model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    changed = nb.Target(model, ["3.0"], to_tensor).fingerprint
    assert changed != key and not np.allclose(numbers(model)[0], numbers(network())[0])
    handle.remove()
    target = nb.Target(model, ["3.0"], to_tensor, device="cpu")
    inside = target.collect(torch.rand(1, 3, 16, 12), lambda *given: target.fingerprint)
    assert inside == {"3.0": key} and target.fingerprint == key


def test_layers_of_a_detector_are_recorded_and_described():
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    recording = nb.record(nb.Target(model, ["backbone.body.6"], to_tensor, device="cpu"), pictures(4), progress=False)
    labels = np.arange(4) % 2 == 0
    table = nb.INVERT(pd.DataFrame({"even": labels, "odd": ~labels}), length=1)(recording, recording.images, {"backbone.body.6": [0, 1]})
    assert len(table) == 2 and bare(model) is model
