"""The papers' tables: what all of them are, and each on the embedded world. Published numbers are typed from the papers, whose text is no part of the project."""
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import neuronbench as nb
from neuronbench import cli
from neuronbench.embedded.world import WEIGHTS
from neuronbench.evaluate.tables.final_layer import WITH, WITHOUT, FinalLayer, concepts_with_and_without
from neuronbench.evaluate.tables.milannotations import AMONG, Milannotations, annotators_among_themselves
from neuronbench.evaluate.tables.rows import Row, constant_notes, described_rows, judged, known_truths, text_measures, text_models
from neuronbench.evaluate.tables.scoring import FIRST, LABELS, RANDOM, Scoring, scored_rows
from neuronbench.evaluate.tables.table import Made, PaperModel, PaperTable, Published, beside_published, plain, stood_in, table_fault, tables
from neuronbench.evaluate.tables.unseen_classes import ANY, BEST, UnseenClasses, unit_aurocs, unseen_labels
from neuronbench.foundation.interfaces import StandIn
from neuronbench.foundation.interfaces import StandIn


@pytest.fixture(scope="module")
def bench():
    return nb.Workbench.demo()


@pytest.fixture(scope="module")
def annotations():
    told = {0: ["red", "a red thing", "round"], 1: ["night", "at night", "by night"], 2: ["car", "red", "sea"]}
    return pd.DataFrame([("layer3", unit, text) for unit, texts in told.items() for text in texts], columns=["layer", "unit", "description"])


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


def test_a_measure_that_nobody_asked_for_is_not_shown():
    assert beside_published(values([1, 2]), [Published("DnD", "letters", 9.0, "table 0")], {}).measure.tolist() == ["words"]


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
    ("final-layer", {"layer": "fc", "measures": ["BERTscore"]}, "did you mean 'BERTScore'"),
    ("milannotations", {"layer": "layer3"}, "milannotations needs annotations=..., columns layer, unit, description"),
    ("scoring", {"layer": "layer3", "units": [64]}, "there is no unit 64")])
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


def first_published(table):
    numbers = {}
    for number in table.published:
        numbers.setdefault((number.row, number.measure), number.value)
    return numbers


def test_the_published_numbers_are_those_of_the_paper():
    # Bai et al., arXiv:2403.13771: table 2 (section 4.2.1), table 7 (A.3), table 5 (section 4.4), table 6 (A.1.4)
    assert first_published(FinalLayer)["MILAN", "CLIP cosine"] == 0.7080 and first_published(FinalLayer)["Describe-and-Dissect", "BERTScore"] == 0.8286
    assert first_published(Milannotations)["constant: depictions", "CLIP cosine"] == 0.7864 and first_published(Milannotations)[AMONG, "BERTScore"] == 0.8482
    assert {(number.row, number.value) for number in Milannotations.published if "layer4" in number.where and number.measure == "sentence cosine"} == {
        ("MILAN", 0.1973), ("CLIP-Dissect", 0.1995), ("Describe-and-Dissect", 0.1132), ("constant: depictions", 0.2501), (AMONG, 0.1252)}
    assert [number.value for number in UnseenClasses.published] == [0.5906, 0.7036, 0.6514, 0.7396]
    assert [number.value for number in Scoring.published if number.row == "TopK Squared + Image Products"] == [3.93, 3.77, 3.94, 4.28, 3.78]


def test_annotators_are_held_against_each_other(annotations):
    truths = annotations.rename(columns={"description": "truth"})
    same = {"same letter": lambda said, true: np.array([first[0] == second[0] for first, second in zip(said, true)], float)}
    among = annotators_among_themselves(pd.concat([truths, truths.head(1).assign(unit=9)]), same)
    assert among.unit.tolist() == [0, 1, 2] and among.value.round(2).tolist() == [0.33, 0.0, 0.0]


def test_only_units_whose_annotators_agree_count(bench, annotations):
    result = bench.table("milannotations", layer="layer3", pool="mean", annotations=annotations, methods=["clip-dissect"], measures=["CLIP cosine"])
    table = result.table.set_index(["measure", "row"])
    assert table.units["CLIP cosine", "CLIP-Dissect"] == table.units["CLIP cosine", AMONG] == 2
    assert table["mean"]["CLIP cosine", "CLIP-Dissect"] > table["mean"]["CLIP cosine", "constant: depictions"]
    assert "2 of 3 annotated units are reliable" in result.text() and "single characters" in result.text()


def test_one_reliable_unit_has_no_interval(bench, annotations):
    table = bench.table("milannotations", layer="layer3", units=[1], pool="mean", annotations=annotations, methods=["clip-dissect"], measures=["exact"]).table
    assert table.note[0] == "one unit: no interval" and np.isnan(table.low[0])


@pytest.mark.parametrize(("settings", "sentence"), [({"layer": "layer2"}, "no annotations of the units of 'layer2'.*of the layers 'layer3'"),
                                                    ({"least": 1.5}, "none of the 3 annotated units of 'layer3' is reliable"), ({"units": [5]}, "no annotations of the units")])
def test_annotations_of_nothing_are_refused(bench, annotations, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        bench.table("milannotations", **{"layer": "layer3", "annotations": annotations, **settings})


def test_a_word_for_everything_that_wins_is_told(bench):
    said = pd.concat([values([0.1, 0.2], "MILAN"), values([0.3, 0.4], "constant: depictions")])
    assert constant_notes(said) == ("By words, 'depictions', said of every unit, gets 0.350, and no better than that: MILAN.",)


def test_classes_that_the_network_knows_are_no_unseen_ones():
    labels = pd.DataFrame({"Boat": [True, False], "sea": [False, True], "all": [True, True]})
    assert list(unseen_labels(labels, ["boat, ship"])) == ["sea"] and list(unseen_labels(labels, None)) == ["Boat", "sea"]
    with pytest.raises(ValueError, match="none of the 1 classes, such as 'Boat'"):
        unseen_labels(labels[["Boat"]], ["boat"])


def test_the_auroc_of_every_unit(bench):
    from sklearn.metrics import roc_auc_score

    activations, labels = bench.recording["layer3"], bench.held["labels"][["night", "sea"]]
    aurocs = unit_aurocs(activations, labels)
    assert np.isclose(aurocs.loc["sea", 5], roc_auc_score(labels["sea"], activations[:, 5]))
    broken = activations.copy(data=np.where(np.arange(64) == 5, np.nan, activations.values))
    assert unit_aurocs(broken, labels)[5].isna().all() and np.isclose(unit_aurocs(broken, labels).loc["sea", 6], aurocs.loc["sea", 6])


def test_descriptions_find_detectors_of_unseen_classes(bench):
    truth = bench.truth[(bench.truth.layer == "layer3") & (bench.truth.kind == "single")].assign(score=1.0, method="the truth")
    result = bench.table("unseen-classes", layer="layer3", methods=[], descriptions=truth)
    means = result.table.set_index("row")["mean"]
    assert means[ANY] < means["the truth"] <= means[BEST] and "53 of 73 classes count" in result.text()
    shown = result.table.set_index(["measure", "row"])
    assert shown.published["class AUROC", "MILAN"] == 0.5906 and shown.published["class AUROC, CIFAR-100", "MILAN"] == 0.6514


def test_unseen_images_are_recorded(bench):
    few = [0, 1, 2, 3, 5, 8]
    images = nb.ProbingSet.from_images([bench.images[number] for number in few], labels=["day", "night"] * 3)
    truth = bench.truth[bench.truth.layer == "layer3"].assign(score=1.0, method="the truth")
    result = bench.table("unseen-classes", layer="layer3", methods=[], descriptions=truth, unseen=images)
    assert result.table.units.max() == 2 and any(sentence.startswith("unseen classes: ProbingSet(6 images") for sentence in result.stood_in)
    with pytest.raises(ValueError, match="unseen-classes needs images of known classes"):
        bench.table("unseen-classes", layer="layer3", unseen=nb.ProbingSet.from_images([bench.images[0]]))


def test_a_scoring_function_chooses_among_the_candidates_of_one_trace(bench):
    method = bench.method("describe-and-dissect", images_per_candidate=2, exemplars=4, summarise=False)  # captions are the candidates: several for a unit
    traces = method.traces(bench.recording, "layer3", np.array([1, 2]))
    rows = scored_rows(traces)
    said = rows.pivot(index="unit", columns="method", values="description")
    assert set(said) == {*LABELS.values(), FIRST, RANDOM} and said.index.tolist() == [1, 2]
    for trace in traces:
        assert set(said.loc[trace.unit]) <= set(trace.proposed.candidates) and said[FIRST][trace.unit] == trace.proposed.candidates[0]
        assert said["TopK Squared + Image Products"][trace.unit] == trace.description
    assert scored_rows(traces).equals(rows)


def test_the_scoring_table_has_what_people_said_as_a_gap(bench):
    result = bench.table("scoring", layer="layer3", units=[1, 2], measures=["exact"])
    table = result.table.set_index(["measure", "row"])
    assert table.published["mean rating, 1 to 5", "Mean"] == 3.95 and table.note["mean rating, 1 to 5", "Mean"].startswith("people rated")
    assert table.units["Pearson", RANDOM] == 2 and "fewer than two candidates" in result.text()


def test_what_can_be_judged_is_judged(bench):
    said = bench.truth[bench.truth.layer == "layer3"].head(2).assign(score=1.0, method="the truth")
    assert set(judged(bench, said, bench.recording, measures=["exact"]).values.measure) == {"exact", "Pearson", "Spearman", "top against random"}
    few = nb.Workbench(bench.target, nb.ProbingSet.from_images([bench.images[0], bench.images[1]]))
    with pytest.raises(ValueError, match="nothing is known of the units of 'layer3'; the bench has no CLIP"):
        judged(few, said, few.recording)


def test_what_is_known_of_a_layer(bench):
    assert known_truths(bench, "fc").truth.tolist() == list(bench.target.classes) and known_truths(bench, "layer3").truth.iloc[1] == "night" and known_truths(bench, "layer2") is None


def test_no_model_that_compares_texts_is_told(bench):
    assert list(text_models(bench)[0]) == ["CLIP cosine"]
    with pytest.raises(FileNotFoundError):
        text_models(bench, "no/such/folder/at all")


@pytest.fixture
def photographs(tmp_path):
    """A folder of two classes of eight noisy squares."""
    draw = np.random.default_rng(0)
    for name, colour in {"crimson": (200, 20, 60), "navy": (10, 20, 120)}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            noise = draw.integers(-10, 10, (48, 48, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype("uint8")).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_a_table_is_a_command(tmp_path, capsys):
    out = tmp_path / "new" / "table.csv"
    assert cli.main(["table", "final-layer", "--network", "world", "--layer", "fc", "--units", "0", "1", "--methods", "clip-dissect", "--measures", "CLIP cosine,exact", "--out", str(out)]) == 0
    said, saved = capsys.readouterr().out, pd.read_csv(out)
    assert "CLIP-Dissect, class names among the concepts" in said and "- network: SceneNet" in said and "0.954" in said
    assert set(saved.measure) == {"CLIP cosine", "exact"} and saved.stood_in.str.contains("ResNet-50").all()


def test_a_table_of_a_network_and_images_of_ones_own(photographs, tmp_path, capsys):
    written = tmp_path / "said.csv"
    pd.DataFrame({"layer": ["layer1"] * 2, "unit": [0, 5], "description": ["navy", "crimson"], "similarity": [0.5, 0.4]}).to_csv(written, index=False)
    code = cli.main(["table", "unseen-classes", "--network", "torchvision:resnet18", "--weights", "none", "--layer", "layer1", "--units", "0", "5", "--images", str(photographs),
                     "--methods", "invert", "--descriptions", str(written), "--clip", str(WEIGHTS / "clip"), "--out", str(tmp_path / "table.csv")])
    table = pd.read_csv(tmp_path / "table.csv").dropna(subset=["mean"]).set_index("row")
    assert code == 0 and table.units.to_dict() == {"INVERT": 2, "said": 2, ANY: 2, BEST: 2}
    assert "2 of 2 classes count" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "sentence"), [
    ("final-layr --network world --layer fc", "did you mean 'final-layer'"), ("final-layer --network world --layer fc layer3", "is made for one layer: --layer names 2"),
    ("final-layer --network world --layer fc --unseen photos", "does not use --unseen"), ("final-layer --network world --layer layer3", "expected the layer that gives the classes"),
    ("final-layer --network world --layer fc --images photos", "leave out --images"), ("final-layer --network world --layer fc --methods milann", "did you mean 'milan'"),
    ("milannotations --network world --layer layer3", "needs --annotations FILE"), ("milannotations --network world --layer layer3 --annotations nowhere.csv", "nowhere.csv"),
    ("final-layer --network timm:resnet18 --layer fc", "give one of --images FOLDER"),
    ("final-layer --network photos --layer classifier --clip here", "the network photos has its own words and models: leave out --clip"),
    ("final-layer --network world --layer fc --gallery photos", "--gallery belongs to --network photos"), ("connections --network world --layer layer1 layer2 layer3", "one layer, and the one before it: --layer names 3"), ("final-layer --network world --layer fc --out .", "is a folder")])
def test_what_a_table_cannot_be_made_of_is_said_in_a_sentence(options, sentence, capsys):
    assert cli.main(["table", *options.split()]) == 2
    assert sentence in capsys.readouterr().err


def test_a_classifier_and_a_sentence_model_are_no_clip_that_reads_texts(bench):
    class Conse:
        sentences = bench.held["clip"]
        stands_in = StandIn("ConSE", "names stand in for CLIP")

    made = text_measures(nb.Workbench(bench.target, bench.images, clip=Conse()), ["CLIP cosine", "sentence cosine"])
    assert list(made.used) == ["sentence cosine"] and "ViT-B-16" in made.missing["CLIP cosine"]
    assert stood_in({"clip": PaperModel("CLIP")}, {"clip": Conse()}) == ("clip: names stand in for CLIP, CLIP in the paper",)


def test_the_help_lists_the_tables(capsys):
    with pytest.raises(SystemExit):
        cli.main(["table", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in tables) and "--annotations" in said and "milannotations: Descriptions of hidden units" in said
