"""The papers' tables: what all of them are, and each on the embedded world. Published numbers are typed from the papers, whose text is no part of the project."""
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

import neuronbench as nb
from neuronbench.evaluate.tables.final_layer import WITH, WITHOUT, FinalLayer, concepts_with_and_without
from neuronbench.evaluate.tables.rows import Row, described_rows, text_measures
from neuronbench.evaluate.tables.table import Made, PaperModel, PaperTable, Published, beside_published, plain, stood_in, table_fault, tables


@pytest.fixture(scope="module")
def bench():
    return nb.Workbench.demo()


def values(numbers, method="DnD", measure="words"):
    return pd.DataFrame([("fc", unit, method, measure, float(value)) for unit, value in enumerate(numbers)], columns=["layer", "unit", "method", "measure", "value"])


def test_a_published_number_stands_beside_the_row_of_its_name_whatever_stood_in():
    table = beside_published(values([1, 2, 3], "DnD (consensus, gallery), no crops", "words (ConSE)"), [Published("DnD, no crops", "words", 1.5, "table 0")], {})
    assert table.published.tolist() == [1.5] and table["mean"].tolist() == [2] and plain("a (b) c (d)") == "a c"


def test_a_gap_has_its_reason():
    numbers = [Published("MILAN", "words", 2.0, "table 0"), Published("DnD", "letters", 9.0, "table 0"), Published("FALCON", "words", 1.0, "table 0")]
    table = beside_published(values([1, 2]), numbers, {"MILAN": "no decoder", "letters": "no alphabet", "pages": "no paper"})
    notes = {(row.measure, row.row): row.note for row in table.itertuples()}
    assert notes == {("words", "DnD"): "", ("words", "MILAN"): "no decoder", ("words", "FALCON"): "not asked for", ("letters", "DnD"): "no alphabet", ("", "pages"): "no paper"}


def test_one_unit_has_no_interval_and_a_unit_without_a_number_no_mean():
    table = beside_published(pd.concat([values([1]), values([np.nan], "MILAN")]), [], {})
    assert table.note.tolist() == ["one unit: no interval", "no unit has a number"] and np.isnan(table.low).all() and table.units.tolist() == [1, 0]


def test_what_stood_in_is_told_without_the_folder():
    class Model:
        def __repr__(self):
            return "CLIP('/home/somebody/clip')"

    papers = {"clip": PaperModel("CLIP of OpenAI", ("openai",)), "chat": PaperModel("GPT", ("CLIP",))}
    assert stood_in(papers, {"clip": Model(), "chat": Model(), "labels": 3}) == ("clip: CLIP('clip') here, CLIP of OpenAI in the paper",)


@dataclass(frozen=True, eq=False)
class Hostile(PaperTable):
    name, title, paper, needs = "hostile", "<b>bold</b>", "Nobody", "nothing"

    def made(self, bench):
        return Made(values([1, 2], "<script>\x1b[2J", "=1+1"), notes=("<i>",))


def test_a_table_is_text_a_page_and_a_file(bench, tmp_path):
    result = bench.table("hostile", layer="fc")
    assert "\x1b" not in result.text() and "<script>" in result.text()
    assert "<script>" not in result._repr_html_() and "<i>" not in result._repr_html_()
    result.save(tmp_path / "table.csv")
    saved = pd.read_csv(tmp_path / "table.csv")
    assert saved.measure.tolist() == ["'=1+1"] and saved["mean"].tolist() == [1.5] and "stood_in" in saved
    assert result.plot().axes


def test_what_is_no_table_is_told():
    @dataclass(frozen=True, eq=False)
    class Idle(PaperTable):
        title, paper, needs = "a", "b", "c"

    assert "no subclass" in table_fault(dict) and "has no name" in table_fault(Idle)
    Idle.name = "idle"
    assert "makes nothing" in table_fault(Idle) and "final-layer" in tables and "needs" in repr(tables)


@pytest.mark.parametrize(("name", "settings", "sentence"), [
    ("final-layr", {"layer": "fc"}, "did you mean 'final-layer'"), ("final-layer", {"layer": "fd"}, "did you mean 'fc'"),
    ("final-layer", {"layer": "fc", "unit": [1]}, "did you mean 'units'"), ("final-layer", {}, "give layer=..., such as layer='fc'"),
    ("final-layer", {"layer": "layer3"}, "expected the layer that gives the classes"), ("final-layer", {"layer": "fc", "units": [99]}, "there is no unit 99"),
    ("final-layer", {"layer": "fc", "methods": ["milann"]}, "did you mean 'milan'"), ("final-layer", {"layer": "fc", "methods": []}, "name a method"),
    ("final-layer", {"layer": "fc", "measures": ["BERTscore"]}, "did you mean 'BERTScore'")])
def test_a_wrong_table_is_answered_in_a_sentence(bench, name, settings, sentence):
    with pytest.raises((KeyError, ValueError, TypeError), match=sentence):
        bench.table(name, **settings)


def test_class_names_go_among_the_concepts_or_out_of_them():
    sets = concepts_with_and_without(["Tench", "red"], ["tench, Tinca tinca", "crane", "crane"])
    assert sets == {WITH: ["Tench", "red", "tench", "crane"], WITHOUT: ["red"]} and list(concepts_with_and_without(["crane"], ["crane"])) == [WITH]


def test_the_final_layer_by_clip_dissect_and_a_method_that_lacks_its_model(bench):
    bare = nb.Workbench(bench.target, bench.images, bench.store, clip=bench.held["clip"], concepts=bench.held["concepts"])
    result = bare.table("final-layer", layer="fc", units=[0, 1, 2], methods=["milan", "clip-dissect"], measures=["exact", "sentence cosine"])
    table = result.table.set_index(["measure", "row"])
    assert table["mean"]["exact", "CLIP-Dissect" + WITH] == 1 and table["mean"]["exact", "CLIP-Dissect" + WITHOUT] == 0
    assert "region captioner" in table.note["CLIP cosine", "MILAN"] and table.published["CLIP cosine", "MILAN"] == 0.708
    assert "all-mpnet-base-v2" in table.note["sentence cosine", "Describe-and-Dissect"]
    assert any(sentence.startswith("network: SceneNet") for sentence in result.stood_in)


def test_a_target_without_class_names_has_no_final_layer_to_judge(bench):
    target = nb.Target(bench.target.model, ["fc"], bench.target.preprocess, device="cpu")
    with pytest.raises(ValueError, match="the target has no class names"):
        nb.Workbench(target, bench.images).table("final-layer", layer="fc")


def test_descriptions_from_elsewhere_are_rows(bench):
    truth = bench.truth[bench.truth.layer == "fc"].assign(score=1.0, method="the authors")
    assert described_rows(bench, [], "fc", [1, 2], others=truth).table.unit.tolist() == [1, 2]
    with pytest.raises(ValueError, match="none is of the units asked for of 'layer3'"):
        described_rows(bench, [Row("invert")], "layer3", others=truth)


def test_no_measure_at_all_is_told(bench):
    with pytest.raises(ValueError, match="no measure of the table can be had: .*roberta-large"):
        text_measures(bench, ["BERTScore"])


def test_the_published_numbers_are_those_of_the_paper():
    # Bai et al., section 4.2.1, table 2
    numbers = {(number.row, number.measure): number.value for number in FinalLayer.published}
    assert numbers["MILAN", "CLIP cosine"] == 0.7080 and numbers["Describe-and-Dissect", "BERTScore"] == 0.8286
