"""Descriptions as tables and CSV files, choices of units, concept sets, and kept steps."""

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

import neuronbench as nb
from neuronbench.basics import clean_text
from neuronbench.describe.concepts import common_words, concept_set
from neuronbench.describe.descriptions import (COLUMNS, chosen_units, describe_frame, failures_of, finite_units, joined_frames, kept, read_descriptions,
                                               unit_reasons, write_descriptions)


class Recorded(dict):
    """What `chosen_units` needs of a recording."""

    @property
    def layers(self):
        return tuple(self)


recording = Recorded({layer: xarray.DataArray(np.zeros((3, units)), dims=("image", "unit")) for layer, units in (("conv1", 4), ("layer3", 64))})


def test_frame_has_the_columns_of_the_design():
    frame = describe_frame("conv1", np.array([3, 1]), ["red", None], [0.5, math.nan], "CLIP-Dissect")
    assert list(frame.columns) == COLUMNS == ["layer", "unit", "description", "score", "method"]
    assert frame.unit.dtype == np.int64 and frame.score.dtype == np.float64
    assert frame.description.isna().tolist() == [False, True]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), min_size=1).filter(lambda text: text == clean_text(text).strip() and text)


RUN = ["=1+1", "+1", "-1", "@SUM(A1)", "'=1", "''-1", "＝1", '=HYPERLINK("http://a","b")', "=cmd|' /C calc'!A0"]  # what a spreadsheet would run, or seems guarded from it


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.none() | texts | st.sampled_from(["null", "nan", "NaN", "None", "'nan", "<NA>", "NA", "a,b", "a;b", '"', "'", *RUN]),
                          st.none() | st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=8, unique=True))
def test_file_and_back(tmp_path_factory, rows):
    units, words, scores = zip(*rows)
    frame = describe_frame("layer1.0", units, words, [math.nan if score is None else score for score in scores], "INVERT")
    path = tmp_path_factory.mktemp("csv") / "invert.csv"
    write_descriptions(frame, path)
    pd.testing.assert_frame_equal(read_descriptions(path, method="INVERT"), frame)
    for row in pd.read_csv(path, dtype=str, keep_default_na=False).itertuples():
        assert row.description[:1] not in tuple("=+-@\t\r\n")


def test_layers_that_a_spreadsheet_would_run_are_text_and_come_back(tmp_path):
    frame = describe_frame("=conv1", [0, 1], RUN[:2], [-0.5, 0.1], "INVERT")
    write_descriptions(frame, tmp_path / "out.csv")
    assert "'=conv1,0,'=1+1,-0.5" in (tmp_path / "out.csv").read_text()
    pd.testing.assert_frame_equal(read_descriptions(tmp_path / "out.csv", "INVERT"), frame)


def test_file_has_the_published_columns_and_no_leftovers(tmp_path):
    nb.write_descriptions(describe_frame("conv1", [0], ["red"], [0.25], "CLIP-Dissect"), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "layer,unit,description,similarity\nconv1,0,red,0.25\n"
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]


def test_writing_needs_the_columns(tmp_path):
    with pytest.raises(ValueError, match="missing: description, score"):
        write_descriptions(pd.DataFrame({"layer": ["a"], "unit": [1]}), tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text, options, expected", [
    ("layer,unit,description,similarity\nconv1,0,red,0.25616455\n", {}, ("conv1", 0, "red", 0.25616455, "file")),
    ("layer,unit,description\nlayer1,3, label\n", {}, ("layer1", 3, "label", math.nan, "file")),
    ("layer,unit,summary\nlayer3,226,a person\n", {"method": "human"}, ("layer3", 226, "a person", math.nan, "human")),
    ("Neuron ID,Label 1,Label 2\n7,red things, \n", {"layer": "layer4"}, ("layer4", 7, "red things", math.nan, "file")),
    ("Neuron ID,label\n7,red things\n", {"layer": "fc"}, ("fc", 7, "red things", math.nan, "file")),
    ("unit,category,label,score,color-label,color-iou\n1,part,body,0.042,grey-c,0.01\n", {"layer": "layer4"}, ("layer4", 0, "body", 0.042, "file")),
    ("unit,category,label,score,object-label,object-iou\n2048,object,cat,0.1,cat,0.1\n", {"layer": "layer4"}, ("layer4", 2047, "cat", 0.1, "file")),
    ("unit,category,label,score\n1,part,body,0.042\n", {"layer": "layer4", "first": 1}, ("layer4", 0, "body", 0.042, "file")),
    ("unit,category,label,iou\n1,part,body,0.042\n", {"layer": "layer4", "first": 0}, ("layer4", 1, "body", 0.042, "file")),
    ("unit,category,label,iou\n0.0,part,body,0.042\n", {"layer": "layer4"}, ("layer4", 0, "body", 0.042, "file")),
    ("unit,category,label,score,part-iou\n0,part,body,0.042,0.1\n", {"layer": "layer4", "first": 0}, ("layer4", 0, "body", 0.042, "file")),
    ("layer,unit,category,description\nconv1,1,part,body\n", {}, ("conv1", 1, "body", math.nan, "file")),
    ("layer,unit,description,similarity\nconv1,1,red,1.234\n", {}, ("conv1", 1, "red", 1.234, "file")),
    ("layer;unit;description;similarity\nconv1;1;red;0,234\n", {}, ("conv1", 1, "red", 0.234, "file")),
    ("\ufefflayer;unit;description;similarity\r\nconv1;7;rot, blau;0,25\r\n", {}, ("conv1", 7, "rot, blau", 0.25, "file")),
    ("Layer\tUnit\tDescription\nconv1\t7.0\tred; blue\n\n", {}, ("conv1", 7, "red; blue", math.nan, "file")),
    ('layer,unit,description\nconv1,7,"red\nand blue"\n,,\n', {}, ("conv1", 7, "red\nand blue", math.nan, "file")),
])
def test_published_forms(tmp_path, text, options, expected):
    (tmp_path / "file.csv").write_text(text)
    [row] = nb.read_descriptions(tmp_path / "file.csv", **options).itertuples(index=False)
    assert tuple(row)[:3] == expected[:3] and row.method == expected[4]
    assert row.score == expected[3] or math.isnan(row.score) and math.isnan(expected[3])


def test_a_decimal_comma_that_shows_decides_for_the_others(tmp_path):
    (tmp_path / "file.csv").write_text("layer;unit;description;similarity\nconv1;0;red;0,5\nconv1;1;red;1,234\nconv1;2;red;-2,345\nconv1;3;red;3\nconv1;4;red;\n")
    assert read_descriptions(tmp_path / "file.csv").score.tolist()[:4] == [0.5, 1.234, -2.345, 3]


def test_what_pandas_writes_for_a_missing_description_is_missing(tmp_path):
    said = ["nan", "NaN", "None", "<NA>", "", "NAN", "none", "null", "a nan", "'nan", "'None"]
    (tmp_path / "file.csv").write_text("layer,unit,description,similarity\n" + "".join(f"conv1,{unit},{text},nan\n" for unit, text in enumerate(said)))
    table = read_descriptions(tmp_path / "file.csv")
    assert table.description.isna().tolist() == [True] * 5 + [False] * 6 and table.score.isna().all()
    assert table.description.tolist()[5:] == ["NAN", "none", "null", "a nan", "nan", "None"]


def test_unknown_columns_are_listed_beside_those_expected(tmp_path):
    (tmp_path / "file.csv").write_text("neuron,text\n1,red\n")
    with pytest.raises(ValueError, match="columns neuron, text; expected layer, unit, description.*not found: layer, unit, description"):
        read_descriptions(tmp_path / "file.csv")
    (tmp_path / "file.csv").write_text("Neuron ID,label\n1,red\n")
    with pytest.raises(ValueError, match="not found: layer; give layer="):
        read_descriptions(tmp_path / "file.csv")


@pytest.mark.parametrize("text, options, message", [
    ("layer,unit,description\nconv1,0,red\nconv1,abc,red\n", {}, "file.csv, line 3: 'abc' is no number of a unit: expected a whole number of at least 0"),
    ("layer,unit,description\nconv1,3.5,red\n", {}, "line 2: '3.5'"),
    ("layer,unit,description\nconv1,-1,red\n", {}, "line 2: '-1'"),
    ("layer,unit,description\nconv1,,red\n", {}, "line 2: ''"),
    ("layer,unit,description\nconv1,1e400,red\n", {}, "line 2: '1e400'"),
    ("layer,unit,description\n,1,red\n", {}, "line 2 names no layer"),
    ("unit,category,label,score,part-iou\n0,part,body,0.04,0.04\n", {"layer": "a"}, r"'0' is no number of a unit \(its units count from 1; give first=0 if they count from 0\)"),
    ("unit,category,label,score\n1,part,body,0.04\n", {"layer": "a"}, "columns category and label of Network Dissection, which counts units from 1, .*: give first=1 .* or first=0"),
    ("unit,category,label,iou\n1,part,body,0.04\n", {"layer": "a"}, "give first=1"),
    ("layer,unit,description\nconv1,1,red\n", {"first": 2}, "first is the number of a layer's first unit in the file, 0 or 1, not 2"),
    ("layer;unit;description;similarity\nconv1;0;red;1,234\nconv1;1;red;2,000\n", {}, "line 2: '1,234' may have a decimal comma or a mark between thousands"),
    ("layer;unit;description;similarity\nconv1;0;red;0.5\nconv1;1;red;1,234\n", {}, "line 3: '1,234' may have a decimal comma"),
    ("layer;unit;description;similarity\nconv1;0;red;0,5\nconv1;1;red;1.234\n", {}, "line 3: '1.234' may have a decimal point or a mark between thousands"),
    ("layer;unit;description;similarity\nconv1;0;red;1.234,5\n", {}, "line 2: '1.234,5' is no similarity"),
    ("layer,unit,description,similarity\nconv1,1,red,inf\n", {}, "line 2: 'inf' is no similarity"), ("layer,unit,description,similarity\nconv1,1,red,1_0\n", {}, "line 2: '1_0'"),
    ("layer,unit,description\nnan,1,red\n", {}, "line 2 names no layer"),
    ("layer,unit,description\nconv1,1,red, or blue\n", {}, "line 2 has 4 fields, its header has 3"),
    ("layer,unit,description\nconv1,1\n", {}, "line 2 has 2 fields"),
    ('layer,unit,description\nconv1,1,"red\n', {}, "line 2: unexpected end of data"),
    ("layer,unit,description,similarity\nconv1,1,red,high\n", {}, "line 2: 'high' is no similarity"),
    ("layer,unit,label,label\nconv1,1,red,blue\n", {}, "more than one column 'label'"),
    ("layer,unit,description\nconv1,1,red\n", {"layer": "fc"}, "has a column 'layer' of its own: leave out layer='fc'"),
    ("", {}, "not found: layer, unit, description"),
])
def test_a_line_that_does_not_fit_is_named(tmp_path, text, options, message):
    (tmp_path / "file.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_descriptions(tmp_path / "file.csv", **options)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_refused(tmp_path, encoding):
    (tmp_path / "file.csv").write_bytes("layer,unit,description\nconv1,1,café\n".encode(encoding))
    with pytest.raises(ValueError, match="file.csv is not UTF-8 text"):
        read_descriptions(tmp_path / "file.csv")


def test_rows_that_stand_twice_count_once_but_annotators_may_agree(tmp_path):
    (tmp_path / "twice.csv").write_text("layer,unit,description,similarity\n" + 2 * "conv1,0,red,0.5\nconv1,1,blue,0.4\n")
    with pytest.warns(UserWarning, match="2 rows of twice.csv say again what a row before them says, the first in line 4"):
        assert len(read_descriptions(tmp_path / "twice.csv")) == 2
    (tmp_path / "people.csv").write_text("layer,unit,summary\n" + 3 * "conv1,0,red things\n")
    assert len(read_descriptions(tmp_path / "people.csv")) == 3


def test_units_without_a_description_are_in_a_warning():
    failures = failures_of("conv1", [4, 5, 6], ["", "it is dead", "it is dead"], "compare")
    assert failures == [{"layer": "conv1", "unit": unit, "step": "compare", "reason": "it is dead"} for unit in (5, 6)]
    with pytest.warns(UserWarning, match="2 units have no description; the first: unit 5 of 'conv1', it is dead"):
        table = describe_frame("conv1", [4, 5, 6], ["red", None, None], [1.0, math.nan, math.nan], "INVERT")
        table.attrs["failures"] = failures
        assert joined_frames([table]).attrs["failures"] == failures
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert joined_frames([]).attrs["failures"] == []


@pytest.mark.parametrize("column, reason", [
    ([0, 0, 0], "the unit is 0 on every image"), ([-2.5, -2.5, -2.5], "the unit is -2.5 on every image"), ([0.1, 0.1 + 7e-9, 0.1 - 7e-9], "the unit is 0.1 on every"),
    ([0, np.nan, 1], "NaN or infinite"), ([np.inf] * 3, "NaN or infinite"), ([0, 1, 2], ""), ([0, 0, 1e-30], ""), ([1, 1, 1.00001], ""), ([0.0, -0.0, 0.0], "the unit is 0 on"),
])
def test_units_that_tell_no_images_apart(column, reason):
    values = xarray.DataArray(np.array([column, [1, 2, 3]], np.float32).T, dims=("image", "unit"))
    given, other = unit_reasons(values)
    assert given.startswith(reason) if reason.startswith("the") else reason in given
    assert (given == "") == (reason == "") and other == ""
    assert all("only one image" in one for one in unit_reasons(values[2:3, 1:])) and len(unit_reasons(values[:, :0])) == 0


def test_chosen_units():
    assert {layer: units.tolist() for layer, units in chosen_units(recording, {"conv1": [3, 0, 3]}).items()} == {"conv1": [3, 0]}
    assert {layer: len(units) for layer, units in chosen_units(recording).items()} == {"conv1": 4, "layer3": 64}
    assert list(chosen_units(recording, {"layer3": range(2), "conv1": np.array([1])})) == ["layer3", "conv1"]


@pytest.mark.parametrize("units, kind, message", [
    ({"layer5": [0]}, KeyError, "no layer 'layer5'; did you mean 'layer3'"),
    ({"conv1": range(6)}, ValueError, "'conv1' has 4 units, numbered 0 to 3; there is no unit 4, 5"),
    ({"conv1": range(100)}, ValueError, "and 91 more"),
    ({"conv1": [-1]}, ValueError, "no unit -1"),
    ({"conv1": ["0"]}, TypeError, "whole numbers, not '0'"),
    ({"conv1": [True]}, TypeError, "whole numbers, not True"),
    ({"conv1": [0.0]}, TypeError, "whole numbers, not 0.0"),
    ([0, 1], TypeError, "by layer"),
])
def test_wrong_units(units, kind, message):
    with pytest.raises(kind, match=message):
        chosen_units(recording, units)


def test_units_that_are_not_finite_are_named_by_number():
    values = xarray.DataArray([[0.0, np.nan, -np.inf]], {"unit": [7, 8, 9]}, ("image", "unit"))
    with pytest.warns(UserWarning, match="2 units of layer 'conv1'.*8, 9"):
        assert finite_units(values, "conv1").tolist() == [True, False, False]


def test_a_step_is_kept_only_when_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        kept("step", "key", lambda: {"a": np.array(1 / 0)})
    first = kept("step", "key", lambda: {"a": np.arange(3)})
    second = kept("step", "key", lambda: pytest.fail("computed again"))
    assert first["a"].tolist() == second["a"].tolist() == [0, 1, 2]
    assert [file.name for file in (tmp_path / "step").iterdir()] == ["key.npz"]


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-30], lambda content: content[:150] + b"\xff" + content[151:], lambda content: b"x" * 200])
def test_a_damaged_file_is_computed_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path))
    kept("step", "key", lambda: {"a": np.arange(100)})
    [file] = (tmp_path / "step").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert kept("step", "key", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert kept("step", "key", lambda: pytest.fail("computed again"))["a"].tolist() == [0, 1, 2]


def test_what_is_all_missing_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path))
    assert np.isnan(kept("step", "key", lambda: {"a": np.arange(2), "b": np.full(3, np.nan)})["b"]).all()
    assert kept("step", "key", lambda: {"a": np.arange(2), "b": np.array([np.nan, 1])})["b"][1] == 1
    assert kept("step", "key", lambda: pytest.fail("computed again"))["b"][1] == 1


def test_what_is_all_missing_in_the_cache_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path))
    (tmp_path / "step").mkdir()
    np.savez(tmp_path / "step" / "key.npz", a=np.full(3, np.nan))
    assert kept("step", "key", lambda: {"a": np.ones(3)})["a"].tolist() == [1, 1, 1]


def test_common_words():
    words = nb.concept_set(3000)
    assert len(words) == len(set(words)) == 3000 and words[:2] == ["the", "to"]
    assert all(word.isalpha() and word.isascii() for word in words)
    assert words == common_words(10_000)[:3000]


@pytest.mark.parametrize("count", [0, -5, 10**7])
def test_impossible_counts(count):
    with pytest.raises(ValueError, match="expected 1 to"):
        concept_set(count)


def test_concepts_from_a_file(tmp_path):
    path = tmp_path / "concepts.txt"
    path.write_bytes("\ufeffred\r\n  striped   cloth \n\n caf\u00e9\n".encode())
    assert concept_set(path) == concept_set(str(path)) == ["red", "striped cloth", "caf\u00e9"]
    with pytest.raises(FileNotFoundError, match="no file 'red'"):
        concept_set("red")


def test_repeated_concepts_are_dropped_and_counted():
    with pytest.warns(UserWarning, match="2 repeated concepts were dropped from the list"):
        assert concept_set(["red", "boat", " red", "boat "]) == ["red", "boat"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert concept_set(("red", "", "Red")) == ["red", "Red"]


@pytest.mark.parametrize("source", [[], ["", "  "]])
def test_empty_concept_set(source, tmp_path):
    with pytest.raises(ValueError, match="empty concept set"):
        concept_set(source)
    Path(tmp_path / "empty.txt").write_text("\n".join(source))
    with pytest.raises(ValueError, match="empty concept set: the file"):
        concept_set(tmp_path / "empty.txt")


@pytest.mark.parametrize(("name", "content", "columns"), [
    ("words.csv", "word,count\ndog,3\ncat,5\n", "'word', 'count'"), ("words.tsv", "a\tb\n1\t2\n", "'a', 'b'"), ("one.csv", "word\ndog\n", "'word'"),
    ("words.txt", "word,count\r\ndog,3\r\n\r\ncat,5\r\n", "'word', 'count'"), ("tabs.txt", "dog\t3\ncat\t5\n", "'dog', '3'"), ("half.txt", "a;b;c\n1;2;3\n", "'a', 'b', 'c'"),
    ("quoted.csv", '"a word, or two",n\ndog,3\n', "'a word, or two', 'n'")])
def test_a_table_is_refused_with_its_columns(name, content, columns, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"is a table with the columns {columns}: .*read_csv"):
        concept_set(tmp_path / name)


def test_tables_and_mappings_in_memory_are_refused():
    table = pd.DataFrame({"word": ["dog", "cat"], "count": [1, 2]})
    with pytest.raises(ValueError, match="columns 'word', 'count'"):
        concept_set(table)
    assert concept_set(table.word) == ["dog", "cat"]
    with pytest.raises(TypeError, match="a list of words"):
        concept_set({"animal": ["dog"]})
    assert concept_set({"b", "c", "a"}) == ["a", "b", "c"]


def test_phrases_with_commas_and_comments_are_no_table(tmp_path):
    path = tmp_path / "phrases.txt"
    path.write_text("# mine\nred, round\nold, grey\n#sunset\n#\nC#\n")
    assert concept_set(path) == ["red, round", "old, grey", "#sunset", "C#"]
    path.write_text("red,round\n")
    assert concept_set(path) == ["red,round"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_say_what_they_are(encoding, tmp_path):
    (tmp_path / "words.txt").write_bytes("café\r\n狗\r\n".encode(encoding))
    assert concept_set(tmp_path / "words.txt") == ["café", "狗"]


@pytest.mark.parametrize("content", ["red\ncafé\n".encode("latin-1"), b"PK\x03\x04\x00\x00", "red\nboat".encode("utf-16-le"), "café".encode("utf-16")[:-1]])
def test_what_is_no_text_in_utf_8_is_refused(content, tmp_path):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(ValueError, match="not text in UTF-8") as caught:
        concept_set(tmp_path / "words.txt")
    assert "\n" not in str(caught.value) and not isinstance(caught.value, UnicodeDecodeError)


@pytest.mark.parametrize("entry", [3, None, b"red", ["red"], math.nan])
def test_entries_that_are_not_text_are_named(entry):
    with pytest.raises(TypeError, match=r"entry 1 of the list is .*\(" + type(entry).__name__):
        concept_set(["red", entry])


@pytest.mark.parametrize("source", [True, None])
def test_things_that_are_no_concept_set(source):
    with pytest.raises(TypeError, match="a concept set is"):
        concept_set(source)
