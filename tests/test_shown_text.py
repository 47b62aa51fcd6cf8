"""Text from outside in what is shown and kept: names that are not UTF-8, half characters, escape sequences, formulas that a spreadsheet would run; and older files, which a full disk must not take."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import neuronbench as nb
from neuronbench.describe.comparison import best_descriptions
from neuronbench.describe.descriptions import guarded, unguarded
from neuronbench.describe.patch_vocabulary import read_vocabulary, write_vocabulary
from neuronbench.describe.describe_and_dissect.prompts import Prompts
from neuronbench.evaluate.answers import Session
from neuronbench.evaluate.study import Study
from neuronbench.probe.target import Target
from neuronbench.widgets.browser import browse
from neuronbench.widgets.compare import Compare
from neuronbench.show.card import card
from neuronbench.show.report import write_report

DIRTY = "a half \ud83d, an \x1b[31mescape, \x00\x07 and a mark \u202e"
CLEAN = "a half , an escape,  and a mark"
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx"]


def preprocess(image):
    return torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Of a folder in which a class and an image have names that are not UTF-8."""
    rng, folder = np.random.default_rng(0), os.fsencode(tmp_path_factory.mktemp("images"))
    for number in range(8):
        home = os.path.join(folder, [b"red", b"gr\xfcn"][number % 2])
        os.makedirs(home, exist_ok=True)
        with open(os.path.join(home, b"caf\xe9 %d.png" % number), "wb") as file:
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(file, "PNG")
    torch.manual_seed(0)
    images = nb.ProbingSet.from_folder(os.fsdecode(folder))
    return nb.record(Target(torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3)), ["0"], preprocess, device="cpu"), images, progress=False)


def described(*texts, method="A"):
    texts, methods = (pd.Series(column, dtype=object) for column in (texts, [method] * len(texts)))  # pandas' own text holds no half characters
    return pd.DataFrame({"layer": "0", "unit": range(len(texts)), "description": texts, "score": 1.0, "method": methods})


def test_names_of_files_are_shown_whatever_their_bytes(recording):
    view = browse(recording, recording.images, "0", described("red things"))
    view.sent = []
    view.send = lambda content, buffers=None: view.sent.append(content)
    view._answer(view, {"kind": "ask", "layer": "0", "unit": 0, "k": 8, "pool": "mean"}, [])
    assert "\\" in view.sent[0]["ids"][0] and len(set(view.sent[0]["ids"])) == 8 and len(set(view.sent[0]["labels"])) == 2
    json.dumps(view.sent[0], ensure_ascii=False).encode()  # as it goes to the page
    drawn = io.BytesIO()
    card(recording, recording.images, "0", 0).figure.savefig(drawn)
    assert drawn.getvalue().startswith(b"\x89PNG")


def test_descriptions_are_shown_without_what_is_not_seen(recording, tmp_path):
    given = described(DIRTY, "\x00\u200b", None, method="A\ud83d")
    best = best_descriptions(given)
    assert best[["unit", "description", "method"]].values.tolist() == [[0, CLEAN, "A"]]
    view = browse(recording, recording.images, "0", given)
    assert view.table["A"][0][:3] == [CLEAN, None, None]
    compare = Compare(recording, {"a": given}, "0", [0])
    assert compare.rows[0]["answers"][0]["said"] == CLEAN
    card(recording, recording.images, "0", 0, given).figure.savefig(io.BytesIO())
    for page in (write_report(tmp_path / "r.html", recording, given, title=DIRTY, settings={"A": DIRTY}).read_text(encoding="utf-8"), compare.page()):
        assert CLEAN in page and not any(letter in page for letter in "\x1b\x00\x07\u202e")


def test_a_study_asks_about_what_is_seen(recording, tmp_path):
    study = Study.design(tmp_path / "study", described(DIRTY, "\x00", "red"), recording, ["Ada\ud83d", "Bob"], per_unit=2)
    sessions = [Session(study.folder, link.partition("=")[2]) for link in study.links().link]
    assert sorted(sessions[0].question(place)["texts"] for place in range(sessions[0].count)) == [[CLEAN], ["red"]]
    assert study.progress().rater.tolist()[1] == "Bob" and study.links().rater[0].encode()
    with pytest.raises(ValueError, match="columns"):
        Study.design(tmp_path / "other", described("red").drop(columns="description"), recording, 1, 1)


def test_no_cell_of_a_table_is_run_by_a_spreadsheet(recording, tmp_path):
    given = described(*FORMULAS)
    view = browse(recording, recording.images, "0", given)
    view.pinned = [["0", unit] for unit in range(6)]
    compare = Compare(recording, {"=A": given}, "0")
    compare.send = lambda content, buffers=None: setattr(compare, "exported", content["text"])
    compare._send_csv()
    write_vocabulary({"=cmd": ["@red", "boats"], "sea": []}, tmp_path / "v.csv")
    for text in (view.pins_csv, compare.exported, (tmp_path / "v.csv").read_text(encoding="utf-8")):
        cells = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False).drop(columns=["similarity"], errors="ignore")
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells.values.ravel())
    assert read_vocabulary(tmp_path / "v.csv") == {"=cmd": ("@red", "boats"), "sea": ()}


def test_a_guarded_table_comes_back_as_it_was():
    table = pd.DataFrame({"text": [*FORMULAS, "'=1", "'quoted", "plain", ""], "also": "-"})
    assert guarded(table).text.str.startswith("'").sum() == 8 and unguarded(guarded(table)).equals(table)
    numbers = pd.DataFrame({"score": [-1.5, np.nan], "text": ["a", None]})
    assert guarded(numbers).equals(numbers)


LITTLE_ROOM = """import resource, signal, sys
from pathlib import Path
from neuronbench.describe.describe_and_dissect.prompts import Prompts
from neuronbench.describe.patch_vocabulary import write_vocabulary
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
for save in (lambda: Prompts(simplify="x " * 3000 + "{description}").save(folder / "p.txt"), lambda: write_vocabulary({"a": [str(n) for n in range(3000)]}, folder / "v.csv")):
    try:
        save()
    except OSError as error:
        print(error.strerror)
"""


def test_older_files_outlive_a_full_disk(tmp_path):
    Prompts().save(tmp_path / "p.txt")
    write_vocabulary({"a": ["red"]}, tmp_path / "v.csv")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = subprocess.run([sys.executable, "-c", LITTLE_ROOM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["File too large"] * 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert Prompts.load(tmp_path / "p.txt") == Prompts() and read_vocabulary(tmp_path / "v.csv") == {"a": ("red",)}
