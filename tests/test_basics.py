"""Keys made from content: equal content gives one key, any change another, in every process."""
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neuronbench.basics import ContentStore, cache_folder, choose, clean_text, content_key

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4), max_leaves=8)


def _same(a, b):
    """Equal in type as well as in value: 1, 1.0 and True are different settings."""
    return repr(a) == repr(b)


@settings(max_examples=200, deadline=None)
@given(plain, plain)
def test_keys_are_equal_exactly_for_equal_values(a, b):
    assert (content_key(a) == content_key(b)) == _same(a, b)


@dataclass
class Settings:
    k: int = 10
    words: tuple = ("a", "b")


class Scale:
    def __init__(self, factor):
        self._factor = factor

    def __call__(self, x):
        return x * self._factor


def _outer(factor):
    return lambda x: x * factor


@pytest.mark.parametrize("one, other", [
    (Settings(), Settings(k=11)), (Scale(1), Scale(2)), (_outer(1), _outer(2)), (partial(pow, 2), partial(pow, 3)), (torch.zeros(3), torch.ones(3)),
    (torch.zeros(3), torch.zeros(3, dtype=torch.float64)), (np.zeros(2), np.zeros((2, 1))), (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
    (Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2))), (Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 1)), ({1, 2}, {1, 3}), (torch.nn.ReLU, torch.nn.GELU),
    (lambda x: x + 1, lambda x: x + 2), (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
], ids=lambda value: type(value).__name__)
def test_a_change_changes_the_key(one, other):
    assert content_key(one) != content_key(other)
    assert content_key(one) == content_key(one)


def test_the_key_is_the_same_in_another_process():
    code = "import numpy, neuronbench.basics as b; from functools import partial; print(b.content_key({'a': {'x', 'y', 'z'}}, numpy.arange(3), 1.5, partial(lambda x: x + 1)))"
    keys = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(keys) == 1


def test_a_circle_of_references_ends():
    circle = []
    circle.append(circle)
    assert content_key(circle) == content_key(circle)


def test_what_has_a_fingerprint_is_taken_at_its_word():
    class Known:
        fingerprint = "abc"

    assert content_key(Known()) == content_key(Known())


def test_an_unknown_name_without_a_near_one_lists_the_choices():
    with pytest.raises(KeyError, match="choose one of 'wpmi', 'cos'"):
        choose("xyzzy", ["wpmi", "cos"], "similarity")


def test_the_cache_folder_follows_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "here"))
    assert cache_folder("clip") == tmp_path / "here" / "clip" and cache_folder("clip").is_dir()


def test_store_keeps_all_or_nothing(tmp_path):
    store = ContentStore(tmp_path / "store.sqlite")
    with pytest.raises(TypeError):
        store.put({"a": b"kept", "b": object()})
    assert store.get(["a", "b"]) == {}
    store.put({str(number): bytes([number % 256]) for number in range(1200)})
    found = store.get([*map(str, range(1199, -1, -1)), "absent"])
    assert len(found) == 1200 and found["7"] == b"\x07"


def test_store_is_shared_by_threads(tmp_path):
    store = ContentStore(tmp_path / "store.sqlite")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put({str(number): b"x" * number}), range(64)))
    assert {key: len(value) for key, value in store.get(map(str, range(64))).items()} == {str(number): number for number in range(64)}


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters() | st.sampled_from("\x1b\x9b]\x07[m;\ud83d\ude00\u202e\u200f\r\n\x85\u2028 \ufeff")))
def test_clean_text_can_be_hashed_saved_and_shown_and_is_clean(text):
    clean = clean_text(text)
    clean.encode()
    assert content_key(clean) and clean_text(clean) == clean
    assert not [letter for letter in clean if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t"]
    assert not set(clean) & set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\u200b\ufeff")


@pytest.mark.parametrize("text, clean", [
    ("red boat", "red boat"), ("", ""), ("a <b>&amp;\tb", "a <b>&amp;\tb"), ("naïve 船 שלום سفينة", "naïve 船 שלום سفينة"),
    ("red \ud83d boat", "red  boat"), ("red \ude00boat", "red boat"), ("caf\udce9.png", "caf.png"), ("\ud83d\ude00", "😀"), ("\ude00\ud83d", ""),
    ("a\r\nb\rc\u2028d\x85e\n\nf", "a\nb\nc\nd\ne\n\nf"), ("a\0b\x07c\x7fd", "abcd"), ("ab\b\bc", "abc"),
    ("\x1b[1;31mred\x1b[0m \x1b[2J\x1b[Hboat", "red boat"), ("\x9b31mred", "red"), ("red\x1b(B", "red"), ("red\x1b", "red"), ("\x1b[", "["),
    ("\x1b]0;my title\x07boat", "boat"), ("\x1b]8;;http://x.y\x1b\\boat\x1b]8;;\x1b\\", "boat"), ("\x1b]0;never ends", "]0;never ends"), ("\x9d0;title\x9cboat", "boat"),
    ("boat\u202egnp.exe", "boatgnp.exe"), ("\u2067a\u2069\u200e\u200f\u061cb", "ab"), ("\ufeffred\u200b bo\xadat\u2060", "red boat"),
    ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"), ("می\u200cخواهم", "می\u200cخواهم"), ("red\U000e0041\U000e007f", "red"),
], ids=ascii)
def test_clean_text(text, clean):
    assert clean_text(text) == clean
