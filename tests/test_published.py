"""Descriptions as their authors published them: what ships and may, what is read from a folder, what is refused."""

import hashlib
import re
from pathlib import Path

import pandas as pd
import pytest
import setuptools  # brings distutils, which Python no longer has
from distutils.core import run_setup
from tiny_recording import tiny_recording

import neuronbench as nb
from neuronbench.describe.published import DESCRIBED, NETWORKS, PUBLICATIONS, REPOSITORIES, SHIPPED

ROOT = Path(__file__).resolve().parent.parent
BLOBS = {  # as git names the authors' files at the commit in REPOSITORIES
    "LICENSE.md": "32c97bedebcbc9376c46773e666c3e0035eeb3a8",
    "plot/ResNet-152-model_imagenet.csv": "03d77fda1f0905b3edaad0687763b7327b9ca364",
    "plot/ResNet-152-model_places365.csv": "ee68e86d0d920ed9d6184a95fae81a24a45e5569",
    "plot/caffe_reference_imagenet.csv": "435e659e79269c62730cd926eba3e204ee6e7fc6",
    "plot/caffe_reference_places205.csv": "559ba55fcccc4f44de3a580cfe31bc96e59c39d0",
    "plot/caffe_reference_places365.csv": "54cc6c92e44a6b457a62f7d655fa35a179828ed7",
}
FILES = SHIPPED / "NetDissect"
SHIP = [known for known, files in DESCRIBED.items() if REPOSITORIES[files.repository].licence]


@pytest.fixture
def folder(tmp_path):
    """A function that writes files, {path: text}, into a folder, and gives the folder."""

    def write(files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
        return tmp_path

    return write


def drawn(network, method):
    """{path in the authors' repository: a file of two units of each layer in the authors' form}."""
    files = DESCRIBED[network, method]
    if "{}" in files.path:
        return {files.path.format(layer): f"Neuron ID,Label 1\n0,stripes\n1,{layer}\n" for layer in files.layers}
    return {files.path: "layer,unit,description,similarity\n" + "".join(f"{layer},{unit},red,0.{unit}\n" for layer in files.layers for unit in (1, 0))}


# what ships


def test_the_files_are_the_authors_own():
    def blob(path):
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    assert {path: blob(FILES / path) for path in BLOBS} == BLOBS


def test_what_ships_has_its_licence_and_its_source_beside_it():
    for name in {DESCRIBED[known].repository for known in SHIP}:
        repository, told = REPOSITORIES[name], (SHIPPED / name / "SOURCE.md").read_text()
        licence, _, copyright = repository.licence.partition(", ")
        assert f"{licence} LICENSE" in (SHIPPED / name / "LICENSE.md").read_text() and copyright in (SHIPPED / name / "LICENSE.md").read_text()
        assert repository.address in told and repository.commit in told and " ".join(told.split()).count(copyright) == 1
    assert {path.name for path in SHIPPED.iterdir()} == {DESCRIBED[known].repository for known in SHIP}


def test_the_wheel_has_them(monkeypatch):
    monkeypatch.chdir(ROOT)
    package = run_setup("setup.py", stop_after="init")
    assert isinstance(package, setuptools.Distribution)
    command = package.get_command_obj("build_py")
    command.ensure_finalized()
    listed = {f"{source}/{name}" for _, source, _, names in command.data_files for name in names}
    shipped = {path.relative_to(ROOT).as_posix() for path in SHIPPED.rglob("*.*")}
    assert len(shipped) == len(BLOBS) + 1 and shipped <= listed
    assert sum((ROOT / path).stat().st_size for path in shipped) < 3_000_000


@pytest.mark.parametrize("network, method", SHIP)
def test_what_ships_is_read_by_name(network, method):
    table = nb.published(network, method)
    units = NETWORKS[network].units
    assert list(table.columns) == ["layer", "unit", "description", "score", "method"] and table.attrs["units"] == units
    assert {layer: sorted(rows.unit) for layer, rows in table.groupby("layer")} == {layer: list(range(count)) for layer, count in units.items()}
    assert table.description.notna().all() and table.score.between(0, 1).all() and set(table.method) == {PUBLICATIONS[method].label}
    assert table.attrs["licence"].startswith("MIT, Copyright (c) 2017") and table.attrs["network"] == network
    assert table.attrs["source"].startswith("https://github.com/CSAILVision/NetDissect/tree/") and "CVPR 2017" in table.attrs["citation"]


def test_units_count_from_0():
    table = nb.published("alexnet-caffe", "network-dissection").set_index("unit")
    assert table.description[197] == "wheel" and table.score[197] == pytest.approx(0.218998646)  # "198,part,wheel,0.21899864690447707" in the file
    assert (table.score > 0.04).sum() == 97  # detectors, as the authors count them in plot/semantics_samples.mat


# what there is


def test_asked_for_nothing_it_lists_what_there_is():
    listed = nb.published()
    assert len(listed) == len(DESCRIBED) and listed.ships.sum() == len(SHIP)
    assert set(listed.licence[~listed.ships]) == {"none named"} and set(listed.licence[listed.ships]) == {"MIT"}
    assert set(nb.published("resnet50").method) == {"network-dissection", "clip-dissect", "describe-and-dissect", "milan", "milan-places365"}
    assert set(nb.published(method="describe-and-dissect").network) == {"resnet50", "resnet152"}
    assert set(nb.published("resnet50").weights) == {"torchvision resnet50 IMAGENET1K_V1"}


@pytest.mark.parametrize("network, method, words", [
    ("resnet5", "milan", "did you mean 'resnet50'"), ("resnet5", None, "did you mean 'resnet50'"),
    ("resnet50", "clipdissect", "no published descriptions of 'resnet50' by 'clipdissect'; did you mean 'clip-dissect'"),
    ("resnet50", "milannotations", "did you mean 'milan'"), (None, "clipdissect", "did you mean 'clip-dissect'"),
])
def test_a_wrong_name_is_answered_with_the_nearest(network, method, words):
    with pytest.raises(KeyError, match=words):
        nb.published(network, method)


@pytest.mark.parametrize("network, method", [known for known in DESCRIBED if known not in SHIP])
def test_what_does_not_ship_says_why_and_where_it_is(network, method):
    address = REPOSITORIES[DESCRIBED[network, method].repository].address
    with pytest.raises(FileNotFoundError, match=f"do not ship: {re.escape(address)} names no licence that allows it. Copy it .git clone {re.escape(address)}. and give folder="):
        nb.published(network, method)


def test_a_folder_needs_a_network_and_a_method(tmp_path):
    with pytest.raises(ValueError, match="expected both"):
        nb.published("resnet50", folder=tmp_path)


# a folder of the authors' files


@pytest.mark.parametrize("network, method", [known for known in DESCRIBED if known not in SHIP])
def test_a_copy_of_the_repository_is_read(folder, network, method):
    table = nb.published(network, method, folder(drawn(network, method)))
    assert set(table.layer) <= NETWORKS[network].units.keys() and set(table.unit) == {0, 1} and table.attrs["units"].keys() == set(table.layer)
    assert len(table) == 2 * len(DESCRIBED[network, method].layers) and table.attrs["licence"] == "none named by the authors"


@pytest.mark.parametrize("below", ["", "data", "data/DnD_results", "data/DnD_results/rn50_results"])
def test_the_folder_may_be_any_of_the_repository_or_the_bare_files(folder, below):
    assert len(nb.published("resnet50", "describe-and-dissect", folder(drawn("resnet50", "describe-and-dissect")) / below)) == 10


def test_a_unit_keeps_its_several_descriptions(folder):
    path = DESCRIBED["resnet152", "milannotations"].path
    table = nb.published("resnet152", "milannotations", folder({path: "layer,unit,summary\nlayer3,226,a facemask\nlayer3,226,wool\nlayer3,226,wool\n"}))
    assert table.description.tolist() == ["a facemask", "wool", "wool"] and table.score.isna().all()


def test_a_layer_without_its_file_is_refused(folder):
    files = drawn("resnet50", "describe-and-dissect")
    files.popitem()
    with pytest.raises(FileNotFoundError, match="lacks data/DnD_results/rn50_results/resnet50_imagenet_broden_fc.csv of https://github.com/Trustworthy-ML-Lab/Describe-and-Dissect: expected a copy"):
        nb.published("resnet50", "describe-and-dissect", folder(files))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(NotADirectoryError, match="no folder .*absent': expected one with the files of https://github.com/Trustworthy-ML-Lab/CLIP-dissect"):
        nb.published("resnet50", "milan", tmp_path / "absent")


@pytest.mark.parametrize("line, words", [
    ("layer1,256,red,0.1", "describes unit 256 of layer 'layer1', and the network has units 0 to 255: is it a file of another network"),
    ("blocks.1,0,red,0.1", "of layer 'blocks.1', and the network has only the layers conv1, layer1"),
    ("layer1,x,red,0.1", "'x' is no number of a unit"),
])
def test_a_file_of_another_network_is_refused(folder, line, words):
    path = DESCRIBED["resnet50", "clip-dissect"].path
    with pytest.raises(ValueError, match=words):
        nb.published("resnet50", "clip-dissect", folder({path: f"layer,unit,description,similarity\n{line}\n"}))


def test_a_file_that_names_no_layer_where_it_should_is_refused(folder):
    path = DESCRIBED["resnet50", "clip-dissect"].path
    with pytest.raises(ValueError, match="not found: layer"):
        nb.published("resnet50", "clip-dissect", folder({path: "unit,description,similarity\n0,red,0.1\n"}))


def test_a_file_of_another_name_is_read_all_the_same(folder):
    path = folder({"dnd_resnet50_fc.csv": "Neuron ID,label\n0,fishing and catching fish\n"}) / "dnd_resnet50_fc.csv"
    pd.testing.assert_series_equal(nb.read_descriptions(path, "DnD", "fc").iloc[0], pd.Series(["fc", 0, "fishing and catching fish", float("nan"), "DnD"], ["layer", "unit", "description", "score", "method"], name=0))


# read without a network: the browser of descriptions


def spoken(layer="layer3", unit=1, method="people", words="wool"):
    return pd.DataFrame({"layer": [layer], "unit": [unit], "description": [words], "score": [float("nan")], "method": [method]})


def browsing(*tables, layer=None):
    view = nb.browse_descriptions(*tables, layer=layer)
    view.sent = []
    view.send = lambda content, buffers=None: view.sent.append(content)
    return view


def test_published_descriptions_open_without_a_network():
    view = browsing(nb.published("alexnet-caffe", "network-dissection"))
    assert (view.layers, view.layer, view.unit, view.unit_count, view.order) == (["conv5"], "conv5", 0, 256, list(range(256)))
    view.query, view.sort = "wheel", "highest score"
    assert view.order[0] == 197 and all("wheel" in view.said[unit][0][1] for unit in view.order)
    [[methods, facts]] = view.about
    assert methods == "Network Dissection (published)" and dict(facts)["licence"].startswith("MIT, Copyright") and "no network of torchvision" in view.weights
    view._handle_custom_msg({"kind": "ask"}, [])
    assert view.sent == [{"kind": "awake"}]


def test_only_described_units_are_listed_and_all_that_is_said_is_searched(folder):
    path = DESCRIBED["resnet152", "milannotations"].path
    words = "layer,unit,summary\nlayer3,226,a facemask\nlayer3,226,wool\nlayer4,7,snow\nlayer4,9,\n"
    view = browsing(nb.published("resnet152", "milannotations", folder({path: words})), layer="layer3")
    assert (view.order, view.unit, view.unit_count) == ([226], 226, 1024) and view.said[226] == [["MILANNOTATIONS (three people)", text, None] for text in ("a facemask", "wool")]
    view.query = "wool"
    assert view.order == [226] and view.table["MILANNOTATIONS (three people)"][0][226] == "a facemask"
    view.query, view.layer = "", "layer4"
    assert (view.order, view.unit, view.unit_count) == ([7], 7, 2048) and 'layers=["layer4"]' in view.code
    view.pinned = [["layer4", 7]]
    assert "layer4,7,snow" in view.pins_csv


def test_methods_stand_side_by_side():
    view = browsing(spoken(), spoken(method="MILAN", words="sheep"), spoken("layer4", 5))
    assert view.layers == ["layer3", "layer4"] and view.layer == "layer4"
    view.layer = "layer3"
    assert view.said[1] == [["people", "wool", None], ["MILAN", "sheep", None]] and list(view.table) == ["people", "MILAN"]
    assert view.about == [] and "the network that was described" in view.code


def test_the_code_opens_the_network_that_was_described(folder):
    view = browsing(nb.published("resnet50", "describe-and-dissect", folder(drawn("resnet50", "describe-and-dissect"))))
    assert 'nb.Target.from_torchvision("resnet50", weights="IMAGENET1K_V1", layers=["fc"])' in view.code and 'bench.add(descriptions, layers=["fc"])' in view.code
    compile(view.code, "code", "exec")
    hostile = spoken('"]); import os #')
    hostile.attrs["weights"] = "x\nimport os"
    code = browsing(hostile).code
    assert [line for line in code.splitlines() if "import" in line and not line.startswith(("import neuronbench", "#", "target = ", "bench"))] == []
    compile(code, "code", "exec")


def test_where_no_kernel_answers_there_is_a_table_of_text():
    bundle, _ = browsing(spoken(words="<img src=x onerror=alert(1)>", method="<b>"))._repr_mimebundle_()
    assert "<img" not in bundle["text/html"] and "<b>" not in bundle["text/html"] and "&lt;img src=x" in bundle["text/html"] and "1 unit<" in bundle["text/html"]
    bundle, _ = browsing(nb.published("alexnet-caffe", "network-dissection"))._repr_mimebundle_()
    assert "the first 20 of 256 units" in bundle["text/html"] and bundle["text/html"].count("<tr") == 21 and "licence: MIT" in bundle["text/html"]


@pytest.mark.parametrize("tables, error, words", [
    ([], ValueError, "no descriptions to browse"), ([spoken().iloc[:0]], ValueError, "no descriptions to browse"),
    ([spoken().drop(columns="score")], ValueError, "missing: score"), (["table.csv"], TypeError, "descriptions are a table"),
    ([spoken(), spoken()], ValueError, "two tables describe unit 1 of 'layer3' by 'people'"), ([spoken(unit=-1), spoken(unit=4)], IndexError, "-1 was asked for"),
])
def test_what_cannot_be_browsed_is_refused(tables, error, words):
    with pytest.raises(error, match=words):
        nb.browse_descriptions(*tables)


def test_wrong_choices_are_refused():
    with pytest.raises(KeyError, match="did you mean 'layer3'"):
        nb.browse_descriptions(spoken(), layer="layer5")
    view = browsing(spoken())
    with pytest.raises(IndexError, match="0 to 1; 2 was asked for"):
        view.unit = 2


def test_descriptions_of_two_networks_are_not_laid_side_by_side():
    tables = [nb.published(network, "network-dissection") for network in ("alexnet-caffe", "alexnet-caffe-places365")]
    with pytest.raises(ValueError, match="of caffe_reference_imagenet.* and of caffe_reference_places365.*: a unit of one is no unit of the other"):
        nb.browse_descriptions(*tables)


# beside one's own


@pytest.fixture(scope="module")
def bench():
    recording = tiny_recording()
    return nb.Workbench(recording.target, recording.images)


def told(table, **attrs):
    table.attrs = attrs
    return table


def test_they_stand_beside_ones_own(bench):
    own = spoken("maps", 3, "CLIP-Dissect", "lake")
    bench.descriptions = own
    added = bench.add(told(spoken("maps", 3, "CLIP-Dissect (published)", "sea"), units={"maps": 40}, weights="a network of somebody", licence="MIT"))
    assert bench.descriptions.description.tolist() == ["lake", "sea"] and added.attrs["licence"] == "MIT"
    bench.add(spoken("maps", 3, "CLIP-Dissect (published)", "ocean"))
    assert bench.descriptions.description.tolist() == ["lake", "ocean"]  # one who speaks again is heard once
    view = bench.browse("maps")
    assert list(view.table) == ["CLIP-Dissect", "CLIP-Dissect (published)"] and view.table["CLIP-Dissect (published)"][0][3] == "ocean"


def test_of_a_table_of_many_layers_those_of_the_target_are_taken_when_named(bench):
    table = pd.concat([spoken("maps", 3), spoken("fc", 2000)])
    with pytest.raises(ValueError, match=r"the target has 'maps' of the described layers and not 'fc': give layers=\['maps'\]"):
        bench.add(table)
    assert bench.add(table, layers=["maps"]).layer.tolist() == ["maps"]


def test_the_report_says_where_they_come_from(bench, tmp_path):
    bench.descriptions = bench.descriptions.iloc[:0]
    bench.add(told(spoken("maps", 3, "CLIP-Dissect (published)", "sea"), source="https://example.org/a", licence="MIT"))
    page = bench.report(tmp_path / "report.html").read_text()
    assert "CLIP-Dissect (published) of maps" in page and "source: https://example.org/a" in page and "licence: MIT" in page


@pytest.mark.parametrize("table, layers, error, words", [
    (spoken("mapz"), None, KeyError, "no layer 'mapz'; did you mean 'maps'"), (spoken("maps", 40), None, ValueError, "layer 'maps' has 40 units, numbered 0 to 39; there is no unit 40"),
    (told(spoken("maps"), units={"maps": 64}), None, ValueError, "the described network has 64 units in layer 'maps', and the target has 40: it is another network"),
    (spoken("maps"), ["map"], KeyError, "no described layer 'map'; did you mean 'maps'"), (spoken("maps"), "maps", TypeError, "layers are a list of names"),
    (spoken("maps").drop(columns="score"), None, ValueError, "missing: score"),
])
def test_what_does_not_fit_the_target_is_refused(bench, table, layers, error, words):
    before = bench.descriptions
    with pytest.raises(error, match=words):
        bench.add(table, layers)
    assert bench.descriptions is before


def test_descriptions_of_other_weights_are_refused(bench, monkeypatch):
    monkeypatch.setattr(bench.target, "origin", "torchvision resnet50 IMAGENET1K_V2")
    with pytest.raises(ValueError, match="are of torchvision resnet50 IMAGENET1K_V1, and the target is torchvision resnet50 IMAGENET1K_V2: a unit of one is no unit of the other"):
        bench.add(told(spoken("maps"), weights=NETWORKS["resnet50"].weights))
    monkeypatch.setattr(bench.target, "origin", NETWORKS["resnet50"].weights)
    assert len(bench.add(told(spoken("maps"), weights=NETWORKS["resnet50"].weights))) == 1
