"""Targets: shapes of layers, early stop, hooks, checkpoints, fingerprints."""

import copy
import functools
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import transforms

from neuronbench.probe.images import ProbingSet
from neuronbench.probe.layout import layers
from neuronbench.probe.recording import record
from neuronbench.probe.target import Target, load_checkpoint

to_tensor = transforms.ToTensor()


class Counting(nn.Module):
    """Passes its input on and counts how often it ran."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return x


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.deep = nn.Sequential(nn.Conv2d(6, 4, 3), nn.Dropout(0.5))
        self.after = Counting()
        self.fc = nn.Linear(4, 2)
        self.spare = nn.Linear(4, 2)

    def forward(self, x):
        x = self.deep(self.relu(self.bn(self.conv(x))))
        return self.fc(self.after(x).mean((2, 3)))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small()


batch = torch.rand(5, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


# one forward pass


def test_every_layer_has_what_the_whole_network_computes(small):
    target = Target(small, ["conv", "deep", "fc"], to_tensor, device="cpu")
    seen = target.activations(batch)
    small.eval()
    with torch.no_grad():
        assert torch.allclose(seen["conv"], small.conv(batch), atol=1e-6)
        assert torch.allclose(seen["fc"], small(batch), atol=1e-6)
    assert list(seen) == ["conv", "deep", "fc"] and seen["deep"].shape == (5, 4, 8, 6)


def test_what_a_later_layer_overwrites_in_place_is_still_seen(small):
    seen = Target(small, ["bn", "deep"], to_tensor, device="cpu").activations(batch)["bn"]
    assert (seen < 0).any()


def test_stops_after_the_deepest_chosen_layer(small):
    target = Target(small, ["deep", "conv"], to_tensor, device="cpu")
    target.activations(batch)
    before = small.after.runs  # one pass to the end counts the calls of each layer
    target.activations(batch)
    assert small.after.runs == before == 1
    other = Target(small, ["fc"], to_tensor, device="cpu")
    other.decide(batch[0])
    before = small.after.runs
    other.activations(batch)
    assert small.after.runs == before + 1


def test_failure_behind_the_chosen_layers_does_not_matter(small):
    small.fc = nn.Linear(99, 2)
    for layer in ("deep", "relu"):
        assert len(Target(small, [layer], to_tensor, device="cpu").activations(batch)[layer]) == 5
    with pytest.raises(RuntimeError):
        Target(small, ["fc"], to_tensor, device="cpu").activations(batch)


class Twice(nn.Module):
    """Runs its convolution and its ReLU two times."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Linear(3, 2)

    def calls(self, x):
        first = self.conv(x)
        second = self.conv(self.relu(first))
        return {"conv": (first, second), "relu": (self.relu(first), self.relu(second))}

    def forward(self, x):
        return self.fc(self.relu(self.conv(self.relu(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize("layer", ["conv", "relu"])
def test_a_layer_that_runs_twice_is_refused_by_name_unless_its_call_is_given(layer):
    network = Twice()
    for layers in ([layer], [layer, "fc"]):
        with pytest.raises(ValueError, match=f"layer '{layer}' runs 2 times in one pass; say which call counts, from 1 to 2"):
            Target(network, layers, to_tensor, device="cpu").activations(batch)
    for call in (1, 2):
        for layers in ([layer], [layer, "fc"], ["fc", layer]):
            seen = Target(network, layers, to_tensor, device="cpu", calls={layer: call}).activations(batch)[layer]
            assert torch.allclose(seen, network.calls(batch)[layer][call - 1], atol=1e-6)
    for call in (0, 3, -1):
        with pytest.raises(ValueError, match=f"call {call} of layer '{layer}': expected 1 to 2"):
            Target(network, [layer], to_tensor, device="cpu", calls={layer: call}).activations(batch)
    with pytest.raises(KeyError, match="did you mean 'conv'"):
        Target(network, [layer], to_tensor, calls={"cov": 1})


def test_hooks_and_training_flags_are_put_back(small):
    small.train()
    small.bn.eval()
    target = Target(small, ["deep"], to_tensor, device="cpu")
    target.activations(batch)
    with pytest.raises(ZeroDivisionError):
        target.collect(batch, lambda *given: 1 / 0)
    with pytest.raises(ValueError, match="images of 9 channels, and the network takes 3"):
        target.activations(torch.rand(2, 9, 12, 12))
    assert hooks(small) == 0 and small.training and small.deep[1].training and not small.bn.training
    assert torch.equal(small.bn.running_mean, torch.zeros(6))


def test_threads_sharing_a_network_do_not_see_each_other(small):
    target = Target(small, ["conv", "deep"], to_tensor, device="cpu")
    batches = [torch.rand(2 + number, 3, 12, 12) for number in range(6)]
    expected = [target.activations(one)["deep"] for one in batches]
    found = [None] * len(batches)

    def run(number):
        for _ in range(5):
            found[number] = target.activations(batches[number])["deep"]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected))


def test_network_that_reshapes_by_view():
    class View(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 10 * 8, 3)

        def forward(self, x):
            return self.fc(self.conv(x).view(len(x), -1))

    network = View()
    target = Target(network, ["fc"], to_tensor, device="cpu")
    for _ in range(2):
        assert torch.allclose(target.activations(batch)["fc"], network(batch), atol=1e-6)


def test_autocast(small):
    target = Target(small, ["fc"], to_tensor, device="cpu")
    rough = target.in_precision(True).activations(batch)["fc"]
    assert rough.dtype == torch.bfloat16 and torch.allclose(rough.float(), target.activations(batch)["fc"], atol=0.05)


# shapes


def test_swin_has_units_first():
    target = Target.from_torchvision("swin_t", ["features.1", "head"], device="cpu")
    square, wide = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 96)
    seen = target.activations(square)["features.1"]
    with torch.no_grad():
        expected = target.model.eval().features[1](target.model.features[0](square))
    assert seen.shape == (2, 96, 16, 16) and torch.allclose(seen, expected.permute(0, 3, 1, 2), atol=1e-5)
    assert target.activations(wide)["features.1"].shape == (2, 96, 16, 24)


def test_tuple_and_dictionary_outputs():
    class Block(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.wrap, self.weight = wrap, nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.wrap(x * self.weight)

    network = nn.Sequential(Block(lambda x: (x, None)))
    assert torch.equal(Target(network, ["0"], to_tensor, device="cpu").activations(batch)["0"], batch)
    network = nn.Sequential(Block(lambda x: {"hidden": (x,), "rest": 3}))
    assert torch.equal(Target(network, ["0"], to_tensor, device="cpu").activations(batch)["0"], batch)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x.flatten(), "rows|expected maps"),
        (lambda x: x.mean(), "expected maps"),
        (lambda x: "text", "gives str"),
        (lambda x: (), "gives NoneType"),
        (lambda x: x.flatten(0, 1)[:, 0], r"gives \(6, \d+\) for 2 images and \(9, \d+\) for 3: expected one axis that follows the number of images"),
        (lambda x: x.argmax(1), "of torch.int64: expected maps .* of floating numbers"),
        (lambda x: [x, x], "a list of 2 tensors: choose a layer inside it"),
        (lambda x: {"low": x, "high": x}, "a dict of 2 tensors: choose a layer inside it"),
    ],
)
def test_outputs_that_cannot_be_recorded(output, message):
    class Odd(nn.Module):
        def forward(self, x):
            return output(x)

    with pytest.raises(ValueError, match=message):
        Target(nn.Sequential(Odd()), ["0"], to_tensor, device="cpu").activations(batch)


# bad layers


def test_missing_layer_names_the_nearest(small):
    with pytest.raises(KeyError) as raised:
        Target(small, ["convv"], to_tensor)
    assert str(raised.value) == "no layer 'convv'; did you mean 'conv'?"
    with pytest.raises(KeyError, match="did you mean 'deep"):
        Target(small, ["deep.O"], to_tensor)
    with pytest.raises(ValueError, match="at least one"):
        Target(small, [], to_tensor)


def test_layer_that_never_runs_is_named(small):
    with pytest.raises(ValueError, match="layer 'spare' never runs"):
        Target(small, ["conv", "spare"], to_tensor, device="cpu").activations(batch)
    assert hooks(small) == 0


def test_one_layer_as_text_and_doubled_layers(small):
    assert Target(small, "fc", to_tensor).layers == ("fc",)
    assert Target(small, ["fc", "conv", "fc"], to_tensor).layers == ("fc", "conv")


# checkpoints


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code from a checkpoint was executed')",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_checkpoint_that_would_execute_code_is_refused(tmp_path):
    torch.save({"weight": Malicious()}, tmp_path / "a.pt")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Malicious()))
    torch.save(Small(), tmp_path / "whole.pt")
    for name in ("a.pt", "b.pth", "whole.pt"):
        with pytest.raises(ValueError, match="is refused: it is not plain weights and could execute code"):
            load_checkpoint(tmp_path / name)
        with pytest.raises(ValueError, match="is refused"):
            Target.from_torchvision("resnet18", ["fc"], weights=tmp_path / name)


def test_checkpoints_that_are_no_weights(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "empty.pt").touch()
    for name in ("list.pt", "other.pt", "noise.safetensors", "empty.pt"):
        with pytest.raises(ValueError, match=name):
            load_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path / "missing.pt")


def test_wrapped_checkpoints(small, tmp_path):
    weights = small.state_dict()
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "b.pt")
    torch.save({"epoch": 9, "state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "c.pt")
    torch.save({"model": weights}, tmp_path / "d.pt")
    for path in tmp_path.iterdir():
        found = load_checkpoint(path)
        assert found.keys() == weights.keys() and torch.equal(found["conv.weight"], weights["conv.weight"])


# the three libraries


def test_torchvision_from_a_checkpoint(tmp_path):
    made = Target.from_torchvision("resnet18", ["layer4", "fc"], classes=["a", "b", "c"], device="cpu")
    save_file(made.model.state_dict(), tmp_path / "mine.safetensors")
    again = Target.from_torchvision("resnet18", ["layer4", "fc"], tmp_path / "mine.safetensors", classes=["a", "b", "c"], device="cpu")
    image = Image.fromarray(np.zeros((300, 400, 3), "uint8"))
    assert again.preprocess(image).shape == (3, 224, 224) and again.classes == ["a", "b", "c"]
    assert again.fingerprint == made.fingerprint
    with pytest.raises(ValueError, match="do not fit ResNet"):
        Target.from_torchvision("resnet34", ["fc"], tmp_path / "mine.safetensors", classes=["a", "b", "c"])


def test_torchvision_names():
    with pytest.raises(KeyError, match="did you mean 'resnet50'"):
        Target.from_torchvision("resnet500", ["fc"])
    with pytest.raises(KeyError, match="did you mean 'IMAGENET1K_V1'"):
        Target.from_torchvision("resnet18", ["fc"], "IMAGENET1K_V7")


def test_timm_vision_transformer_gives_tokens():
    target = Target.from_timm("vit_tiny_patch16_224", ["blocks.3", "head"], pretrained=False, device="cpu")
    image = target.preprocess(Image.fromarray(np.zeros((256, 300, 3), "uint8")))
    seen = target.activations(image[None])
    assert seen["blocks.3"].shape == (1, 197, 192) and seen["head"].shape == (1, 1000)
    with pytest.raises(KeyError, match="no timm network"):
        Target.from_timm("vit_tinny_patch16", ["head"], pretrained=False)


def test_transformers_from_a_local_folder(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    names = [name for name, module in ViTForImageClassification(config).named_modules() if type(module).__name__ == "ViTLayer"]
    target = Target.from_transformers(tmp_path, [names[-1], "vit", "classifier"], device="cpu")
    seen = target.activations(target.preprocess(Image.fromarray(np.zeros((50, 40, 3), "uint8")))[None])
    assert seen[names[-1]].shape == (1, 17, 32) and seen["vit"].shape == (1, 17, 32) and seen["classifier"].shape == (1, 2)
    assert target.classes == ["cat", "dog"] and target.fingerprint == Target.from_transformers(tmp_path, target.layers).fingerprint


def test_what_is_missing_when_the_hub_cannot_be_reached(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise OSError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    calls = {
        "resnet18": functools.partial(Target.from_torchvision, "resnet18", ["fc"], "IMAGENET1K_V1"),
        "vit_tiny_patch16_224": functools.partial(Target.from_timm, "vit_tiny_patch16_224", ["head"]),
        "nobody/nothing": functools.partial(Target.from_transformers, "nobody/nothing", ["classifier"]),
    }
    for name, call in calls.items():
        with pytest.raises(OSError) as raised:
            call()
        text = str(raised.value)
        assert name in text and "could not be downloaded" in text and "\n" not in text


# the fingerprint


def changes():
    """Pairs of a name and a function that changes a target in one respect."""

    def weight(target):
        target.model.conv.weight.data[0, 0, 0, 0] += 1e-6

    def buffer(target):
        target.model.bn.running_var[0] += 1e-6

    def setting(target):
        target.model.deep[1].p = 0.4

    def structure(target):
        target.model.fc = nn.Sequential(target.model.fc)

    def layers(target):
        target.layers = ("conv",)

    def code(target):
        target.model.after = type("Counting", (Counting,), {"forward": lambda self, x: x * 2, "__module__": __name__})()

    return [weight, buffer, setting, structure, layers, code]


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_fingerprint_sees(small, change):
    target = Target(small, ["conv", "fc"], to_tensor, device="cpu")
    other = copy.deepcopy(target)
    assert other.fingerprint == target.fingerprint
    change(other)
    assert other.fingerprint != target.fingerprint


class Resized(nn.Module):
    def __init__(self, size):
        super().__init__()
        self._size = size

    def forward(self, image):
        return to_tensor(image.resize((self._size, self._size)))


size = 8


def closure(size):
    return lambda image: to_tensor(image.resize((size, size)))


def with_global(image):
    return to_tensor(image.resize((size, size)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (closure(8), closure(9)),
        (Resized(8), Resized(9)),
        (nn.Sequential(Resized(8)), nn.Sequential(Resized(9))),
        (transforms.Compose([transforms.Resize(8), to_tensor]), transforms.Compose([transforms.Resize(9), to_tensor])),
        (functools.partial(with_global, 8), functools.partial(with_global, 9)),
        (lambda image: to_tensor(image), lambda image: to_tensor(image) * 2),
    ],
)
def test_fingerprint_sees_the_preprocessing(small, one, other):
    assert Target(small, ["fc"], one).fingerprint == Target(small, ["fc"], one).fingerprint != Target(small, ["fc"], other).fingerprint


def test_fingerprint_sees_globals_of_the_preprocessing(small, monkeypatch):
    target = Target(small, ["fc"], with_global)
    before = target.fingerprint
    monkeypatch.setitem(globals(), "size", 9)
    assert target.fingerprint != before


def test_fingerprint_does_not_depend_on_use_or_training(small):
    target = Target(small, ["fc"], to_tensor, device="cpu")
    before = target.fingerprint
    small.train()
    assert target.fingerprint == before
    small.eval()
    assert target.fingerprint == before


PROGRAM = """
import torch
from torch import nn
from neuronbench.probe.target import Target

class Own(nn.Module):
    def forward(self, x):
        return sum([(lambda y: y + k)(x) for k in {1, 2}]) if "a" in {"a", "b", "c"} else x

torch.manual_seed(0)
print(Target(nn.Sequential(nn.Conv2d(3, 2, 1), Own()), ["0"], lambda image: [x for x in image]).fingerprint)
"""


def test_fingerprint_is_the_same_in_every_process():
    runs = [subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert runs[0] == runs[1] and len(runs[0]) > 30


def test_repr_is_short(small):
    assert repr(Target(small, ["fc"], to_tensor, device="cpu")) == "Target(Small, layers=['fc'], device='cpu')"


def test_repr_shows_layouts_once_they_are_known(small):
    target = Target(small, ["conv", "fc"], to_tensor, device="cpu")
    target.activations(batch)
    assert repr(target) == "Target(Small, layers={'conv': maps (B, U, h, w), 10 x 8, 'fc': vectors (B, U)}, device='cpu')"


@pytest.mark.parametrize("given, sentence", [
    ({"0.weight": torch.zeros(1)}, "not weights: build the network, and load them into it"),
    ("resnet50", "a torch.nn.Module, not a str"), (None, "not a NoneType"), (Small, "not a type")])
@pytest.mark.parametrize("take", [lambda given: Target(given, ["conv"], to_tensor), layers], ids=["Target", "layers"])
def test_what_is_no_network_is_refused(take, given, sentence):
    with pytest.raises(TypeError, match=sentence):
        take(given)


@pytest.mark.parametrize("preprocess", [None, "imagenet", 224])
def test_what_is_no_preprocessing_is_refused(small, preprocess):
    with pytest.raises(TypeError, match=r"expected a callable that makes a tensor \(C, H, W\)"):
        Target(small, ["conv"], preprocess)


class ScalesBytes(Small):
    def forward(self, x):
        return super().forward(x.float() / 255)


def test_whole_numbers_are_refused_in_a_sentence_about_images(small):
    pictures = ProbingSet.from_images([np.full((8, 8, 3), level, np.uint8) for level in (0, 90, 200)])
    with pytest.raises(ValueError, match=r"preprocess gives whole numbers \(torch.uint8\), which the network does not take"):
        record(Target(small, ["conv"], transforms.PILToTensor(), device="cpu"), pictures, progress=False)


def test_a_network_that_scales_bytes_itself_takes_them():
    torch.manual_seed(0)
    model = ScalesBytes().eval()
    pictures = ProbingSet.from_images([np.full((8, 8, 3), level, np.uint8) for level in (0, 90, 200)])
    given = record(Target(model, ["conv"], transforms.PILToTensor(), device="cpu"), pictures, progress=False)["conv"]
    batch = torch.stack([transforms.PILToTensor()(pictures[number]) for number in range(3)])
    with torch.no_grad():
        assert np.allclose(given, model.conv(batch.float() / 255).mean((2, 3)), atol=1e-6)


def test_a_hook_on_all_networks_is_part_of_the_fingerprint(small):
    target = Target(small, ["conv"], to_tensor, device="cpu")
    before = target.fingerprint
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * 3)
    assert target.fingerprint != before
    hook.remove()
    assert target.fingerprint == before


class Tenfold(nn.DataParallel):
    def forward(self, x):
        return self.module(x * 10)


def test_a_wrapper_that_computes_something_is_part_of_the_network():
    torch.manual_seed(0)
    wrapper = Tenfold(nn.Sequential(nn.Conv2d(3, 2, 1)))
    [maps] = Target(wrapper, ["module.0"], to_tensor, device="cpu").activations(batch).values()
    with torch.no_grad():
        assert torch.allclose(maps, wrapper.module(batch * 10), atol=1e-5)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapper_with_hooks_is_refused(wrap):
    wrapper = wrap(nn.Sequential(nn.Conv2d(3, 2, 1)))
    wrapper.register_forward_hook(lambda module, inputs, output: output * 10)
    with pytest.raises(TypeError, match="has hooks, which the network inside does not run"):
        Target(wrapper, ["0"], to_tensor, device="cpu")
