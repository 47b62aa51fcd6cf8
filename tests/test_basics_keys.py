"""Keys of what people give: tables, slots, closures, modules of their own, transforms - by content, or refused by name."""

import enum
import functools
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import types
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from neuronbench.basics import content_key


class Holds:
    def __init__(self, value):
        self.value = value


class Slots:
    __slots__ = "value", "other"

    def __init__(self, value):
        self.value = value


class SlotsBelow(Slots):
    def __init__(self, value, more):
        super().__init__(value)
        self.more = more


@dataclass(frozen=True, slots=True)
class Frozen:
    value: object
    listed: list = field(default_factory=list)


class Words(str):
    """Text that shows itself in another way."""

    def __str__(self):
        return "words"

    __repr__ = __str__


class Listed(list):
    pass


class Answering(dict):
    """Answers to every name, or fails with a KeyError."""

    __getattr__ = dict.__getitem__


class Mode(enum.Enum):
    ONE = 1
    TWO = 2


class Reduced:
    """Keeps an open file, and says what pickle keeps."""

    def __init__(self, value):
        self.value, self.file = value, open(os.devnull)

    def __reduce__(self):
        return Reduced, (self.value,)


class Row(namedtuple("Row", "left right")):
    pass


class Loud:
    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return "always the same"

    def method(self):
        return self.value


def outer(value):
    def inner(x):
        return x * value

    return inner


def with_attribute(value):
    def plain(x):
        return x * plain.value

    plain.value = value
    return plain


def recursive(value):
    def down(x):
        return x if x < value else down(x - 1)

    return down


def defaulted(value):
    def plain(x, *, by=value):
        return x * by

    return plain


def class_of(value):
    class Scale:
        table = {"by": [value]}

        def __call__(self, x):
            return x * self.table["by"][0]

    return Scale


def class_with_object(value):
    class Scale:
        transform = Holds(value)

    return Scale


def class_with_static(value):
    class Scale:
        @staticmethod
        def by(x):
            return x * value

    return Scale()


def class_with_property(value):
    class Scale:
        @property
        def by(self):
            return value

    return Scale()


def class_with_cached_function(value):
    @functools.lru_cache
    def by(x):
        return x * value

    return by


def generator_seeded(seed):
    return np.random.default_rng(seed)


def masked(value):
    return np.ma.array([1.0, 2.0, 3.0], mask=[False, value == 1, False])


def categorical(value):
    return pd.DataFrame({"kind": pd.Categorical(["a", "b"], categories=["a", "b", "c"])}, index=[value, 9])


def palette(value):
    picture = Image.new("P", (2, 2))
    picture.putpalette([value] * 768)
    return picture


MAKERS = [
    Holds, Slots, Frozen, Loud, Words, Reduced, outer, with_attribute, recursive, defaulted, class_of, class_with_object, class_with_static, class_with_property,
    class_with_cached_function, generator_seeded, masked, categorical, palette, lambda value: torch.full((2, 2), value),
    lambda value: SlotsBelow(1, value), lambda value: SlotsBelow(value, 1), lambda value: Mode(value), lambda value: Row(1, value), lambda value: Frozen(1, [value]),
    lambda value: pd.DataFrame({"file": [f"{value}.png"] * 3}), lambda value: pd.Series([value, None]), lambda value: pd.DataFrame(np.zeros((2, 2)), columns=["a", f"{value}"]),
    lambda value: pd.DataFrame([[value, 1]], columns=["a", "a"]), lambda value: np.array([value, "x", None], object), lambda value: np.array([[1, [value]]], object),
    lambda value: np.array([(1, str(value))], [("number", "i4"), ("text", "O")]), lambda value: np.array([(1, value)], "i4,i4")[0],
    lambda value: functools.partial(pow, value), lambda value: functools.partial(outer(value), 1), lambda value: functools.partial(pow, mod=value), lambda value: Loud(value).method,
    lambda value: str(value).join, lambda value: [value].append, lambda value: re.compile(str(value)), lambda value: defaultdict(list, {1: [value]}), lambda value: defaultdict({1: list, 2: dict}[value]),
    lambda value: Counter([value]), lambda value: OrderedDict(a=value), lambda value: deque([value]), lambda value: deque([1], maxlen=value), lambda value: Listed([value]), lambda value: types.SimpleNamespace(a=value),
    lambda value: types.MappingProxyType({"a": value}), lambda value: {value: 1}.keys(), lambda value: range(value), lambda value: slice(value), lambda value: {value, "x"}, lambda value: frozenset([Row(1, value)]),
    lambda value: memoryview(bytes([value, 1])), lambda value: np.float32(value), lambda value: np.datetime64(value, "D"), lambda value: 10**5000 + value, lambda value: complex(0, value),
    lambda value: v2.Compose([v2.Resize(8 * value), v2.ToImage()]), lambda value: v2.Lambda(outer(value)), lambda value: torchvision.transforms.Lambda(lambda image: image * value),
    lambda value: v2.Normalize([0.5] * 3, [value] * 3), lambda value: v2.RandomResizedCrop(8, scale=(0.1 * value, 1.0)), lambda value: getattr(torchvision.models, {1: "ResNet18_Weights", 2: "ViT_B_16_Weights"}[value]),
    lambda value: nn.Sequential(nn.Dropout(0.1 * value)), lambda value: torch.Generator().manual_seed(value), lambda value: "\ud83d" * value, lambda value: Holds([{"deep": (Slots(value),)}]),
    lambda value: torchvision.tv_tensors.BoundingBoxes([[0, 0, 1, 1]], format={1: "XYXY", 2: "XYWH"}[value], canvas_size=(8, 8)), lambda value: Answering(a=value),
    lambda value: pd.Index([value, 3]), lambda value: pd.Categorical(["a"], categories=["a", str(value)]), lambda value: pd.Timestamp(value, unit="D"),
    lambda value: functools.partialmethod(outer(value)), lambda value: iter([value]), lambda value: class_with_static(value).by, lambda value: np.linspace if value == 1 else np.arange,
]


@pytest.mark.parametrize("make", MAKERS, ids=range(len(MAKERS)))
def test_content_makes_the_key_and_nothing_else(make):
    one, same, other = make(1), make(1), make(2)
    assert content_key(one) == content_key(one) == content_key(same) != content_key(other)
    assert content_key(Holds([one])) != content_key(Holds([other])), "inside others, too"


def test_kinds_and_shapes_differ():
    values = [1, 1.0, True, "1", b"1", np.int64(1), np.int32(1), [1], {1}, {1: 1}, None, ..., Words("1"), Listed([1]), np.array([1]), np.array([[1]]), torch.tensor([1]), range(1), Mode.ONE, int, pd.Series([1])]
    assert len({content_key(value) for value in values}) == len(values)
    assert content_key(np.array(["ab", "c"], object)) != content_key(np.array(["a", "bc"], object))
    assert content_key([1], 2) != content_key([1, 2]) != content_key([[1], 2])


def test_a_changed_class_or_global_changes_the_key():
    kind = class_of(1)
    before = content_key(kind())
    kind.table["by"][0] = 2
    assert content_key(kind()) != before
    space = {"__name__": "somewhere", "scale": [1]}
    exec("def run(x):\n    return x * scale[0]", space)
    before = content_key(space["run"])
    space["scale"].append(3)
    assert content_key(space["run"]) != before
    twins = []
    for work in ("+", "-"):
        space = {}
        exec(f"def run(x):\n    return x {work} 1\nclass Kind:\n    def run(self, x):\n        return x {work} 1", space)
        twins.append((content_key(space["run"]), content_key(space["Kind"])))
    assert twins[0][0] != twins[1][0] and twins[0][1] != twins[1][1], "code without a module is nobody's library"


def test_a_wrapped_function_is_known_by_what_it_wraps():
    def twice(function):
        @functools.wraps(function)
        def run(x):
            return function(function(x))

        return run

    assert content_key(twice(outer(1))) != content_key(twice(outer(2)))
    assert content_key(torch.no_grad()(outer(1))) != content_key(torch.no_grad()(outer(2))), "a library's wrapper around it, too"


def test_values_worked_out_once_from_others_do_not_count():
    class Cached:
        def __init__(self, value):
            self.value = value

        @functools.cached_property
        def large(self):
            return self.value * 1000

    one = Cached(3)
    before = content_key(one)
    assert one.large == 3000 and content_key(one) == before != content_key(Cached(4))


def test_circles_and_shared_parts_end():
    ring = [Holds(number) for number in range(30)]
    for one in ring:
        one.others = ring  # each knows all of them
    assert content_key(ring) == content_key(pickle.loads(pickle.dumps(ring)))
    shared = ["x"]
    for _ in range(60):
        shared = [shared, shared]
    assert content_key(shared) == content_key(shared)
    assert content_key([["a"], ["a"]]) == content_key(2 * [["a"]]), "whether equal parts are one object is not content"


@pytest.mark.parametrize("value, name", [
    (open(os.devnull), "TextIOWrapper"), ((number for number in ()), "generator"), (torch.zeros(2).to_sparse(), "Tensor"), (torch.empty(2, device="meta"), "Tensor"), (threading.local(), "_local"),
], ids=["file", "generator", "sparse", "meta", "local"])
def test_what_cannot_be_told_is_refused_by_the_name_of_the_attribute(value, name):
    with pytest.raises(ValueError, match=rf"^Holds\.value\['a'\]\[1\]\.value is a {name}, and what it holds cannot be told.* give the object that has it an attribute `fingerprint`"):
        content_key(Holds({"a": [0, Holds(value)]}))
    with pytest.raises(ValueError, match=f"outer.<locals>.inner with its 'value' is a {name}"):
        content_key(outer(value))
    with pytest.raises(ValueError, match=rf"SlotsBelow.value is a {name}"):
        content_key(SlotsBelow(value, 1))
    known = Holds(value)
    known.fingerprint = "my own word"
    assert content_key(known) == content_key(known)


def test_locks_are_no_content():
    assert content_key(Holds([threading.Lock(), threading.RLock(), threading.Event()])) == content_key(Holds([threading.Lock(), threading.RLock(), threading.Event()]))


SCRIPT = """
import sys; sys.path.insert(0, {folder!r})
import numpy as np, torch, helpers, helpers.deep
from helpers import scale as imported, Transform
from neuronbench.basics import content_key
def through(x): return helpers.scale(x)
def deeper(x): return helpers.deep.factor * x
def constant(x): return x * helpers.FACTOR
def passed(x): return getattr(helpers, "FACTOR")
def inside(x):
    import helpers.deep as d
    return d.factor * x
def inside_from(x):
    from helpers.deep import factor
    return factor * x
def library(x):
    import json
    return np.mean(x) + json.loads("1")
values = [through, deeper, constant, passed, inside, inside_from, imported, Transform(), Transform, torch.nn.Sequential(Transform()), library, helpers,
          {{"a", "b", "c"}}, lambda x: x in {{"a", "b", "c"}}, [frozenset("xyz"), {{(1, "z"), (2, "y")}}]]
{change}
print(*map(content_key, values))
"""


def keys_of(folder, change="", seed="0", **files):
    """The keys in a new process of what uses the modules in `folder`."""
    package = folder / "helpers"
    package.mkdir(exist_ok=True)
    written = {"init": "FACTOR = 3\nfrom torch import nn\ndef scale(x):\n    return x * FACTOR\nclass Transform(nn.Module):\n    def forward(self, x):\n        return scale(x)\n", "deep": "factor = 2\n", **files}
    (package / "__init__.py").write_text(written["init"])
    (package / "deep.py").write_text(written["deep"])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"}
    script = SCRIPT.format(folder=str(folder), change=change)
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=300).stdout.split()


def test_what_a_function_takes_from_ones_own_modules_counts(tmp_path):
    names = "through deeper constant passed inside inside_from imported object class network library module set constant_set sets".split()
    before = keys_of(tmp_path)
    assert before == keys_of(tmp_path, seed="7"), "in every process, whatever the order of sets"

    def changed(**given):
        return {name for name, one, other in zip(names, before, keys_of(tmp_path, **given)) if one != other}

    code = textwrap.dedent(SCRIPT)
    assert "helpers.scale(x)" in code
    uses_scale = {"through", "passed", "imported", "object", "class", "network", "module"}
    assert changed(change="helpers.FACTOR = 4") == uses_scale | {"constant"}, "a module's value, changed in the running session"
    assert changed(init="FACTOR = 3\nfrom torch import nn\ndef scale(x):\n    return x + FACTOR\nclass Transform(nn.Module):\n    def forward(self, x):\n        return scale(x)\n") == uses_scale
    assert changed(deep="factor = 5\n") == {"deeper", "inside", "inside_from"}
    assert changed(deep="factor = 2\nother = 5\n") == {"inside"}, "where it cannot be seen what is used, all of the module counts"


def test_libraries_are_known_by_name_and_version(monkeypatch):
    def prepare(x):
        return torchvision.transforms.functional.resize(x, np.arange(3).tolist())

    before = content_key(prepare), content_key(v2.Resize(8)), content_key(nn.ReLU)
    assert before == (content_key(prepare), content_key(v2.Resize(8)), content_key(nn.ReLU))
    monkeypatch.setattr(torchvision, "__version__", "99")
    assert content_key(prepare) != before[0] and content_key(v2.Resize(8)) != before[1] and content_key(nn.ReLU) == before[2]


def test_hooks_of_a_network_count_by_what_they_do_not_by_their_number():
    def hooked(by):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(2, 2))
        network[0].register_forward_hook(lambda module, given, output: output * by)
        return network

    assert content_key(hooked(1)) == content_key(hooked(1)) != content_key(hooked(2))


def decorated_by_a_library(decorate, factor):
    """A function of the user's, decorated by a library and run again after an edit, under its old name."""
    space = {"__name__": "__main__", "decorate": decorate}
    exec(f"@decorate\ndef preprocess(image):\n    return image * {factor}", space)
    sys.modules["__main__"].preprocess = space["preprocess"]
    return content_key(space["preprocess"])


@pytest.mark.parametrize("decorate", [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu"), np.errstate(all="ignore"), functools.singledispatch, functools.cache],
                         ids=["no_grad", "inference_mode", "autocast", "errstate", "singledispatch", "cache"])
def test_a_function_decorated_by_a_library_is_known_by_what_it_does(decorate, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "preprocess", None, raising=False)
    first, edited, again = (decorated_by_a_library(decorate, factor) for factor in (1, 2, 1))
    assert first == again != edited


@pytest.mark.parametrize("kind, make", [(v2.Resize, lambda: v2.Resize((8, 8))), (v2.Transform, lambda: v2.Resize((8, 8))), (nn.ReLU, nn.ReLU)], ids=["its own", "inherited", "module"])
def test_a_function_that_is_put_into_a_library_class_counts(kind, make, monkeypatch):
    before = content_key(make())
    monkeypatch.setattr(kind, "forward", lambda self, image: image)
    patched = content_key(make())
    monkeypatch.setattr(kind, "forward", lambda self, image: image + 1)
    assert len({before, patched, content_key(make())}) == 3
    monkeypatch.undo()
    assert content_key(make()) == before


def test_a_class_has_one_key_before_and_after_an_instance_was_pickled():
    class Slotted:
        __slots__ = ("level",)

        def __init__(self):
            self.level = 1

    before = content_key(Slotted)
    Slotted().__reduce_ex__(4)  # it leaves what it learned in the class
    assert "__slotnames__" in vars(Slotted) and content_key(Slotted) == before
    assert content_key(Slotted()) == content_key(Slotted())
