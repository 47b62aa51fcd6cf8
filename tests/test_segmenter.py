"""Segmenters on tiny untrained checkpoints of the real classes: loading, refusing, and what they are shown."""
import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from test_clip import Bomb

import neuronbench as nb
from neuronbench.describe.network_dissection import NetworkDissection
from neuronbench.foundation.segmenter import CLIPSegmenter, Segmenter
from neuronbench.probe.target import Target

LABELS = list(tiny_models.LABELS.values())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    many = tiny_models.segformer(folder / "many", problem_type="multi_label_classification")
    return {"one": tiny_models.segformer(folder / "one"), "many": many, "mobilevit": tiny_models.mobilevit(folder / "mobilevit"),
            "clipseg": tiny_models.clipseg(folder / "clipseg"), "blip": tiny_models.blip(folder / "blip")}


def pictures(count=3, seed=0):
    """Noise of several sizes."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (24 + 16 * number, 60, 3)).astype("uint8")) for number in range(count)]


def test_one_label_for_each_position(folders):
    found = Segmenter(folders["one"], device="cpu").segment(pictures())
    assert found.shape == (3, 4, 8, 8) and found.dtype == bool and (found.sum(1) == 1).all()
    assert found.any((0, 2, 3)).sum() > 1


def test_a_model_of_several_labels_gives_each_that_is_likely(folders):
    one = Segmenter(folders["many"], device="cpu")
    square = pictures(1)[0].resize((32, 32))
    with torch.inference_mode():
        likely = one.model(**one.processor(images=[square], return_tensors="pt")).logits.sigmoid()[0].numpy()
    found = one.segment([square])[0]
    assert (found == (likely > 0.5)).all() and (found.sum(0) != 1).any()


def test_categories_choose_and_order_labels(folders):
    everything = Segmenter(folders["one"], device="cpu")
    some = Segmenter(folders["one"], {"thing": ["boat"], "colour": ["green", "red"]}, device="cpu")
    assert everything.categories == {"segment": tuple(LABELS)} and some.categories == {"thing": ("boat",), "colour": ("green", "red")}
    assert (some.segment(pictures()) == everything.segment(pictures())[:, [3, 2, 1]]).all()
    assert some.fingerprint != everything.fingerprint
    with pytest.raises(KeyError, match="did you mean 'green'"):
        Segmenter(folders["one"], {"colour": ["greem"]}, device="cpu")


def test_batches_change_nothing(folders):
    images = pictures(5)
    whole = Segmenter(folders["one"], device="cpu").segment(images)
    assert (whole == Segmenter(folders["one"], device="cpu", batch_size=2).segment(images)).all()
    assert Segmenter(folders["one"], device="cpu").segment([]).shape[:2] == (0, 4)


def test_nothing_is_cut_off(folders):
    """What the processor would cut off with its defaults changes the masks."""
    one = Segmenter(folders["mobilevit"], device="cpu")
    plain, framed = Image.new("RGB", (48, 48), (90, 90, 90)), Image.new("RGB", (48, 48), (250, 20, 20))
    framed.paste(plain.crop((8, 8, 40, 40)), (8, 8))
    assert one._pixels([plain]).shape[2:] == (48, 48)
    assert one.processor(images=[plain], return_tensors="pt").pixel_values.equal(one.processor(images=[framed], return_tensors="pt").pixel_values)
    assert not one._pixels([plain]).equal(one._pixels([framed]))


def test_phrases_are_looked_for_as_clipseg_does_it(folders):
    categories = {"object": ["boat", "red car"], "setting": ["beach"]}
    one = CLIPSegmenter(categories, folders["clipseg"], threshold=0.4, device="cpu")
    square = pictures(1)[0].resize((32, 32))
    prompts = [f"a photo of {phrase}" for phrase in ("boat", "red car", "beach")]
    with torch.inference_mode():
        pixels = one.processor(images=[square] * 3, return_tensors="pt")
        tokens = tiny_models.tokenizer()(prompts, padding=True, return_tensors="pt")
        likely = one.model(pixel_values=pixels.pixel_values, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits.sigmoid()
    found = one.segment([square, *pictures(2, seed=1)])
    assert found.shape == (3, 3, 32, 32) and (found[0] == (likely.reshape(3, 32, 32).numpy() > 0.4)).all()


def test_phrases_and_threshold_change_the_fingerprint(folders):
    keys = {CLIPSegmenter(categories, folders["clipseg"], threshold=threshold, device="cpu").fingerprint
            for categories in ({"object": ["boat"]}, {"object": ["car"]}) for threshold in (0.4, 0.5)}
    assert len(keys) == 4


@pytest.mark.parametrize(["categories", "threshold"], [({}, 0.5), ({"object": []}, 0.5), ({"object": ["boat"]}, 1.0)])
def test_nothing_to_look_for(folders, categories, threshold):
    with pytest.raises(ValueError, match="phrases to look for"):
        CLIPSegmenter(categories, folders["clipseg"], threshold=threshold, device="cpu")


def test_other_models_are_refused(folders):
    with pytest.raises(ValueError, match="type 'blip'.*segformer"):
        Segmenter(folders["blip"])
    with pytest.raises(ValueError, match="expected a CLIPSeg"):
        CLIPSegmenter({"object": ["boat"]}, folders["one"])
    with pytest.raises(FileNotFoundError, match="no folder"):
        Segmenter("/nowhere/at/all")
    with pytest.raises(ConnectionError, match="copy the model's folder"):
        Segmenter("nvidia/segformer-b0-finetuned-ade-512-512")


def test_weights_that_would_execute_code_are_refused(tmp_path):
    folder = tiny_models.segformer(tmp_path / "bomb")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "fired")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="refused"):
        Segmenter(folder)
    assert not (tmp_path / "fired").exists()


class Colours(torch.nn.Module):
    """Unit 0 likes red, unit 1 green."""

    def __init__(self):
        super().__init__()
        self.maps = torch.nn.Identity()

    def forward(self, batch):
        return self.maps(batch[:, :2])


def test_network_dissection_takes_its_masks(folders):
    images = nb.ProbingSet.from_images([picture.resize((32, 32)) for picture in pictures(4)])
    preprocess = lambda image: torch.from_numpy(np.array(image, np.float32) / 255).permute(2, 0, 1)
    recording = nb.record(Target(Colours(), ["maps"], preprocess, device="cpu"), images, progress=False)
    found = NetworkDissection(segmenter=Segmenter(folders["one"], {"colour": ["red", "green"], "object": ["boat"]}, device="cpu"), share=0.2)(recording, images)
    assert len(found) == 2 and set(found.description.dropna()) <= {"red", "green", "boat"} and found.description.notna().any()
