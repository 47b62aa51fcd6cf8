"""Names of files and folders that are not UTF-8, or that a terminal or a page would obey, in everything that shows or writes them."""

import csv
import json
import os
import pickle
import unicodedata
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from neuronbench.basics import clean_name, clean_text
from neuronbench.describe.descriptions import read_descriptions, write_descriptions
from neuronbench.describe.invert import INVERT
from neuronbench.evaluate.study import Study
from neuronbench.probe.images import BadImage, ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.target import Target
from neuronbench.widgets.browser import browse, unit_message
from neuronbench.show.card import card
from neuronbench.show.evidence import evidence, names_of
from neuronbench.show.report import write_report

FOLDERS = {b"caf\xe9": r"caf\xe9", b"caf\xe8": r"caf\xe8", b"<b>\x1b[2J\n": r"<b>\x1b[2J\n", "\u202efdp".encode(): r"\u202efdp", "日本 $x^2$".encode(): "日本 $x^2$"}


@pytest.fixture
def photos(tmp_path):
    """A folder of class folders with odd names, four pictures and a bad file in each."""
    top = os.fsencode(tmp_path) + b"/h\xf6he"
    for number, folder in enumerate(FOLDERS):
        os.makedirs(top + b"/" + folder)
        for each in range(4):
            pixels = np.random.default_rng(10 * number + each).integers(0, 50 * number + 50, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(os.fsdecode(top + b"/" + folder + b"/n\xba%d.png" % each))
        with open(top + b"/" + folder + b"/bad\xff\x07.png", "wb") as file:
            file.write(b"no picture")
    return os.fsdecode(top)


@pytest.fixture
def recording(photos):
    torch.manual_seed(0)
    target = Target(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), ["0"], ToTensor(), device="cpu")
    return record(target, ProbingSet.from_folder(photos), store=os.path.join(photos, os.fsdecode(b"st\xf6re.zarr")), progress=False)


def is_clean(text):
    text.encode()
    return clean_text(text) == text


def test_ids_and_classes_are_shown_and_files_opened_by_their_own_names(photos):
    images = ProbingSet.from_folder(photos)
    assert sorted(images.classes) == sorted(FOLDERS.values()) and len(set(images.ids)) == len(images) == 25
    assert all(map(is_clean, [*images.ids, *images.classes])) and r"caf\xe9/n\xba0.png" in images.ids
    bad = 0
    for position, id in enumerate(images.ids):
        if "bad" in id:
            with pytest.raises(BadImage, match="not an image in a known format") as raised:
                images[position]
            assert raised.value.id == id and pickle.loads(pickle.dumps(raised.value)).id == id and is_clean(str(raised.value))
            bad += 1
        else:
            assert images[position].size == (16, 16)
    assert bad == 5 and images.fingerprint == ProbingSet.from_folder(photos).fingerprint


def test_torchvisions_folder_gives_the_same_names(photos):
    for folder in FOLDERS:
        os.remove(os.fsencode(photos) + b"/" + folder + b"/bad\xff\x07.png")
    images = ProbingSet.from_dataset(ImageFolder(photos))
    assert sorted(images.classes) == sorted(FOLDERS.values()) and all(map(is_clean, images.ids)) and images[3].size == (16, 16)


def test_a_recording_and_what_is_bad_in_it(recording, tmp_path):
    assert recording["0"].shape == (20, 4) and len(recording.bad_images) == 5
    recording.bad_images.to_csv(tmp_path / "bad.csv", index=False)
    with open(tmp_path / "bad.csv", encoding="utf-8", newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} == {f"{name}/bad\\xff\\x07.png" for name in FOLDERS.values()}
    again = record(recording.target, recording.images, store=recording.images._load.args[0][0].parents[1] / os.fsdecode(b"st\xf6re.zarr"), progress=False)
    assert again.store.arrays.key == recording.store.arrays.key and again.bad_images.equals(recording.bad_images)


def test_card_and_browser(recording):
    shown = evidence(recording, "0", 1, 20)
    assert all(map(is_clean, (text for image in shown.images for text in names_of(recording.images, image))))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        card(recording, recording.images, "0", 1, k=20).figure.canvas.draw()
    content, _ = unit_message(shown, recording.images, [])
    json.dumps(content, ensure_ascii=False).encode()
    assert is_clean("".join(content["ids"] + content["labels"])) and browse(recording, recording.images)


def test_descriptions_by_class_csv_report_and_study(recording, tmp_path):
    found = INVERT(length=1)(recording, recording.images)
    assert len(found) == 4 and set(found.description) <= set(FOLDERS.values())
    for name in ("plain.csv", os.fsdecode(b"caf\xe9.csv")):
        write_descriptions(found, tmp_path / name)
        assert set(read_descriptions(tmp_path / name).description) == set(found.description)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        write_report(tmp_path / os.fsdecode(b"r\xe9port.html"), recording, found)
    assert Study.design(tmp_path / os.fsdecode(b"\xe9tude"), found, recording, ["Zoë", "Ann"], per_unit=1).path.exists()
    page = (tmp_path / os.fsdecode(b"r\xe9port.html")).read_text("utf-8")
    assert "<b>\\x1b" not in page and "\x1b" not in page and "\u202e" not in page


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters() | st.sampled_from("\x1b[2J\ud83d\ude00\udce9\u202e\t\n\r\x85\u2028 \xa0\u202f\u3000")))
def test_a_name_is_clean_and_stays_so(text):
    name = clean_name(text)
    assert is_clean(name) and clean_name(name) == name and not set(name) & set("\n\t")
    assert not [letter for letter in name if unicodedata.category(letter) in ("Cc", "Cs")]


@pytest.mark.parametrize("text, name", [
    ("my cat 🚤.png", "my cat 🚤.png"), ("Screenshot 3.00\u202fPM.png", "Screenshot 3.00\u202fPM.png"), ("写真\u3000一.png", "写真\u3000一.png"), ("", ""),
    ("caf\udce9", r"caf\xe9"), ("\ud83d\ude00", "😀"), ("\ude00\ud83d", r"\ude00\ud83d"), ("a\tb\nc", r"a\tb\nc"), ("x\x1b[31m", r"x\x1b[31m"), ("a\u202eb", r"a\u202eb"),
], ids=ascii)
def test_clean_name(text, name):
    assert clean_name(text) == name


def test_reasons_are_clean():
    bad = BadImage("a\nb", "says \x1b[31mred\x1b[0m\nand \ud83d")
    assert str(bad) == "image 'a\\\\nb': says red and"
    assert pd.DataFrame([(bad.id, bad.reason)]).to_csv().encode()
