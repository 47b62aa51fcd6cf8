"""Descriptions as their authors published them: what ships and may, what is read from a folder, what is refused."""

import hashlib
import re
from pathlib import Path

import pandas as pd
import pytest
import setuptools  # brings distutils, which Python no longer has
from distutils.core import run_setup

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
