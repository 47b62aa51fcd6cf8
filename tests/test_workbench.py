"""The notebook's door: everything that can be known before the images are recorded is checked before."""
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import nn
from torchvision.transforms import ToTensor

import neuronbench as nb


class Counting(nn.Conv2d):
    """A convolution that counts the images it has seen."""

    seen = 0

    def forward(self, batch):
        self.seen += len(batch)
        return super().forward(batch)


class Painter:
    """Anything that is no CLIP."""

    def paint(self, prompts, count):
        return []


def pictures(count=40, labels=None):
    chance = np.random.default_rng(0)
    return nb.ProbingSet.from_images([Image.fromarray(chance.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(count)], labels)


def bench_of(images, **given):
    given = {"clip": nb.world().clip, "concepts": ["red", "blue"]} | given
    return nb.Workbench(nb.Target(nn.Sequential(Counting(3, 4, 3)), ["0"], ToTensor()), images, **given)


TABLE = pd.DataFrame({"red": [True, False] * 20})


@pytest.mark.parametrize("asked, given, error, sentence", [
    ({"layer": "1"}, {}, KeyError, "no layer '1'"),
    ({"method": "clip-disect"}, {}, KeyError, "did you mean 'clip-dissect'"),
    ({"similarty": "cos"}, {}, KeyError, "no setting of clip-dissect 'similarty'; did you mean 'similarity'"),
    ({"similarity": "soft-wpmi"}, {}, KeyError, "did you mean 'soft_wpmi'"),
    ({"pool": "maximum"}, {}, KeyError, "did you mean 'max'"),
    ({"units": 3}, {}, TypeError, r"\[3\]"),
    ({}, {"clip": "ViT-B-16"}, TypeError, "clip is 'ViT-B-16', which cannot embed_images"),
    ({"clip": Painter()}, {}, TypeError, "cannot embed_images"),
    ({}, {"concepts": []}, ValueError, "empty concept set"),
    ({}, {"concepts": "/no/such/file.txt"}, FileNotFoundError, "/no/such/file.txt"),
    ({"method": "invert"}, {}, ValueError, r"invert needs labels: give Workbench\(concept_labels=..."),
    ({"method": "invert"}, {"concept_labels": TABLE[:7]}, ValueError, "7 rows of labels for 40 images"),
    ({"method": "invert", "length": 0}, {"concept_labels": TABLE}, ValueError, "length and beam_size of at least 1"),
    ({"method": "network-dissection"}, {}, ValueError, r"network-dissection needs annotations: give Workbench\(annotations=..."),
    ({"method": "compositional"}, {}, ValueError, "segmenter=..."),
    ({"method": "compositional", "segmenter": Painter()}, {}, TypeError, r"cannot segment\(\)"),
    ({"method": "falcon"}, {}, ValueError, r"falcon needs captions: give Workbench\(captions=..."),
    ({"method": "falcon"}, {"captions": "/no/such/file.txt"}, FileNotFoundError, "/no/such/file.txt"),
    ({"method": "falcon"}, {"captions": ["  "]}, ValueError, "empty caption corpus"),
    ({"method": "milan"}, {}, ValueError, r"milan needs region captioner: give Workbench\(region_captioner=..."),
    ({"method": "patch-vocabulary"}, {}, ValueError, r"no class names: give Target\(..., classes="),
    ({"method": "describe-and-dissect"}, {"captioner": Painter(), "chat": nb.Consensus(), "painter": Painter()}, TypeError, r"cannot captions\(\)"),
])
def test_what_is_wrong_is_said_before_an_image_is_seen(asked, given, error, sentence):
    bench = bench_of(pictures(), **given)
    with pytest.raises(error, match=sentence) as caught:
        bench.describe(**{"layer": "0"} | asked)
    assert "\n" not in str(caught.value) and bench.target.model[0].seen == 0


def test_annotations_of_other_images_are_refused_before_an_image_is_seen():
    other = pictures(3)
    masks = nb.annotations_from_arrays(other, {"object": np.ones((3, 1, 16, 16), bool)}, {"object": ["boat"]})
    bench = bench_of(pictures(), annotations=masks)
    with pytest.raises(ValueError, match="annotations are of 3 other images than the 40"):
        bench.describe("0", method="network-dissection")
    assert bench.target.model[0].seen == 0


def test_a_consensus_is_not_asked_for_a_vocabulary():
    bench = bench_of(pictures(), chat=nb.Consensus())
    bench.target.classes = ["boat"]
    with pytest.raises(ValueError, match="consensus cannot tell: give Workbench\\(vocabulary="):
        bench.check("0", "patch-vocabulary")
    assert bench.check("0", "patch-vocabulary", vocabulary={"boat": ["a sail"]}).vocabulary


@pytest.mark.parametrize("units", [[4], [-1], [0, 99]])
def test_a_unit_that_does_not_exist_costs_no_recording(units):
    bench = bench_of(pictures())
    with pytest.raises(ValueError, match="4 units, numbered 0 to 3; there is no unit"):
        bench.describe("0", units=units)
    assert bench.target.model[0].seen < 20  # one image, a few times, and not all forty


def test_the_first_image_that_can_be_read_tells_the_units(tmp_path):
    (tmp_path / "0.png").write_bytes(b"no image")
    Image.new("RGB", (16, 16)).save(tmp_path / "1.png")
    bench = bench_of(nb.ProbingSet.from_folder(tmp_path))
    with pytest.raises(ValueError, match="there is no unit 7"):
        bench.check("0", units=[7])
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match="none of the 1 images can be read; the first: '0.png'"):
        bench_of(nb.ProbingSet.from_folder(tmp_path)).check("0", units=[7])


@pytest.mark.parametrize("store", [None, "recording.zarr"])
def test_a_pooling_is_recorded_when_it_is_asked_for(store, tmp_path):
    bench = bench_of(pictures(labels=["a", "b"] * 20), store=store and tmp_path / store)
    means, maxima = (bench.describe("0", method="invert", pool=pool).score for pool in (None, "max"))
    by_hand = nb.record(bench.target, bench.images, pool=("max",), progress=False)
    expected = nb.INVERT(pool="max")(by_hand, bench.images).score
    assert maxima.equals(expected) and not maxima.equals(means)  # a unit without a description has the score NaN
    assert bench.recorded("0", "max") is bench.recorded("0", "max") and bench.recorded("0") is bench.recording


def test_card_and_browser_are_ranked_by_the_pooling_asked_for():
    bench = bench_of(pictures())
    for pool in ("mean", "max"):
        assert any(f"pooled by {pool}" in text.get_text() for text in bench.card("0", 1, pool).figure.texts)
        view = bench.browse("0", pool)
        assert view.pool_on_view == pool and pool in view.pools["0"]
    assert bench.browse(pool="max").layer == "0" and bench.browse().pool_on_view == "mean"
    for asked, said in ((("0", 1, "maximum"), "did you mean 'max'"), (("1", 1, "max"), "no layer '1'")):
        with pytest.raises(KeyError, match=said):
            bench.card(*asked)
    with pytest.raises(ValueError, match="has no class token"):
        bench.browse("0", "class")


def test_report_and_tuners_show_the_exemplars_of_the_pooling_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench = bench_of(pictures())
    bench.describe("0", units=[1], pool="max")
    for pool, said in (("max", "pooled: 0 by max."), (None, "pooled: 0 by mean.")):
        assert said in bench.report(tmp_path / "r.html", pool=pool).read_text()
    with pytest.raises(ValueError, match="has no class token"):
        bench.report(tmp_path / "r.html", pool="class")
    with pytest.raises(KeyError, match="did you mean 'max'"):
        bench.report(tmp_path / "r.html", pool="maximum")


def test_a_bench_records_the_poolings_that_it_is_given():
    bench = bench_of(pictures(), pool=["mean", "max"])
    assert bench.recorded("0", "max") is bench.recording and (bench.recording.pooled("0", "max") >= bench.recording["0"]).all()
    with pytest.raises(KeyError, match="did you mean 'max'"):
        bench_of(pictures(), pool="maximal")


def test_a_segmenter_goes_before_the_annotations_of_the_bench():
    world = nb.world()
    method = nb.Workbench.demo().method("network-dissection", segmenter=world.segmenter)
    assert method.annotations is None and method.segmenter is world.segmenter


@pytest.mark.parametrize("bench, asked", [({"pool": "class"}, {}), ({}, {"pool": "class"})])
def test_a_class_token_that_a_layer_lacks_costs_no_recording(bench, asked):
    bench = bench_of(pictures(), **bench)
    with pytest.raises(ValueError, match="layer '0' .* has no class token: expected pool 'mean' or 'max'"):
        bench.describe("0", **asked)
    assert bench.target.model[0].seen < 20


@pytest.mark.parametrize("take", [nb.record, nb.Workbench])
def test_parts_of_another_kind_or_in_another_order_are_refused(take):
    network = nn.Conv2d(3, 2, 1)
    target = nb.Target(nn.Sequential(network), ["0"], ToTensor(), device="cpu")
    images = nb.ProbingSet.from_images([Image.new("RGB", (8, 8))])
    for wrong, sentence in (((target, "photos/"), "the images are a str: expected a ProbingSet"), ((target, [images[0]]), "the images are a list"),
                            ((images, target), "the target is a ProbingSet: expected a Target"), ((network, images), "the target is a Conv2d")):
        with pytest.raises(TypeError, match=sentence):
            take(*wrong)


@pytest.mark.parametrize("layers", [["0"], None])
def test_a_report_is_of_the_layers_that_are_asked_for(layers, tmp_path):
    bench = bench_of(pictures())
    bench.describe("0", units=[1])
    assert "unit 1" in bench.report(tmp_path / "r.html", layers=layers).read_text()


@pytest.mark.parametrize("descriptions, options, error, sentence", [
    (None, {"layers": ["1"]}, KeyError, "no layer '1'"), (None, {"layers": "0"}, TypeError, "layers are a list of names"), (None, {"layers": [0]}, TypeError, "layers are a list of names"), (["red"], {}, TypeError, "descriptions are a table"),
    (pd.DataFrame({"layer": ["0"], "unit": [1]}), {}, ValueError, "missing: description, score, method")])
def test_what_cannot_be_reported_is_said_in_a_sentence(descriptions, options, error, sentence, tmp_path):
    bench = bench_of(pictures())
    bench.describe("0", units=[1])
    bench.descriptions = bench.descriptions if descriptions is None else descriptions
    with pytest.raises(error, match=sentence):
        bench.report(tmp_path / "r.html", **options)
    assert not (tmp_path / "r.html").exists()
