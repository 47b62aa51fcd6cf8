"""CLIP over open_clip: loading, refusing, embedding and keeping, on tiny untrained models made here."""

import json
import os
import pickle

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import neuronbench as nb
from neuronbench.foundation.clip import CLIP

TINY = {"embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


def make_folder(path, seed=0, preprocess=None):
    path.mkdir()
    torch.manual_seed(seed)
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": preprocess or {}}))
    save_file(open_clip.model.CLIP(**TINY).state_dict(), path / "open_clip_model.safetensors")
    return path


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "tiny")


@pytest.fixture
def clip(folder):
    return CLIP(str(folder), device="cpu")


@pytest.fixture
def tiny_name(tmp_path, monkeypatch):
    """The tiny model under a name of open_clip's, so that checkpoints can be given for it."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-16", TINY)
    return "tiny-16"


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(count)]


def forwards(clip, monkeypatch):
    """How many images and texts went through the model, as two lists that grow."""
    seen = {"images": [], "texts": []}
    encode_image, encode_text = clip.model.encode_image, clip.model.encode_text
    monkeypatch.setattr(clip.model, "encode_image", lambda batch: seen["images"].append(len(batch)) or encode_image(batch))
    monkeypatch.setattr(clip.model, "encode_text", lambda batch: seen["texts"].append(len(batch)) or encode_text(batch))
    return seen


def test_embeddings_are_those_of_open_clip(clip):
    images, texts = pictures(3), ["red", "a boat at night"]
    with torch.no_grad():
        image = clip.model.encode_image(torch.stack([clip.preprocess(one) for one in images]), normalize=True)
        text = clip.model.encode_text(clip.tokenizer(texts), normalize=True)
    found = clip.embed_images(images), clip.embed_texts(texts)
    for ours, theirs in zip(found, (image, text)):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_batches_do_not_matter(clip, folder, tmp_path, monkeypatch):
    whole = clip.embed_images(pictures(7), batch_size=64)
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "other"))
    np.testing.assert_allclose(clip.embed_images(pictures(7), batch_size=2), whole, atol=1e-5)


def test_only_new_texts_are_computed(clip, monkeypatch):
    first = clip.embed_texts(["red", "boat", "red"])
    seen = forwards(clip, monkeypatch)
    again = clip.embed_texts(["night", "boat", "red"])
    assert seen["texts"] == [1]
    np.testing.assert_array_equal(again[1:], first[[1, 0]])


def test_images_of_a_probing_set_are_known_by_content_and_position(clip, monkeypatch):
    images = nb.ProbingSet.from_images(pictures(5))
    some = clip.embed_images(images, indices=[3, 1])
    seen = forwards(clip, monkeypatch)
    whole = clip.embed_images(nb.ProbingSet.from_images(pictures(5)))
    assert seen["images"] == [3]
    np.testing.assert_array_equal(whole[[3, 1]], some)
    clip.embed_images(nb.ProbingSet.from_images(pictures(5, seed=1)))
    assert seen["images"] == [3, 5]


def test_bad_images_are_left_out_by_indices(clip, tmp_path):
    for number, picture in enumerate(pictures(3)):
        picture.save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    images = nb.ProbingSet.from_folder(tmp_path)
    good = clip.embed_images(images, indices=np.array([0, 2]))
    assert good.shape == (2, 16)
    from neuronbench.probe.images import BadImage

    with pytest.raises(BadImage):
        clip.embed_images(images)


def test_what_was_computed_before_a_failure_is_kept(clip, monkeypatch):
    class Failing(list):
        def __getitem__(self, index):
            if index == 5:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    images = Failing(pictures(6))
    images.fingerprint = "six pictures"
    with pytest.raises(KeyboardInterrupt):
        clip.embed_images(images, batch_size=2)
    seen = forwards(clip, monkeypatch)
    images = list.__new__(Failing)
    images.extend(pictures(6))
    images.fingerprint = "six pictures"
    clip.embed_images(images, indices=range(5), batch_size=2)
    assert sum(seen["images"]) == 1


def test_fingerprint_covers_weights_preprocessing_and_precision(clip, folder, tmp_path):
    same = CLIP(str(folder), device="cpu")
    others = [CLIP(str(make_folder(tmp_path / "b", seed=1)), device="cpu"),
              CLIP(str(make_folder(tmp_path / "c", preprocess={"mean": [0.1, 0.2, 0.3]})), device="cpu"),
              CLIP(str(folder), device="cpu", precision="bf16")]
    assert same.fingerprint == clip.fingerprint
    assert len({one.fingerprint for one in [clip, *others]}) == 4


def test_changed_weights_never_serve_old_vectors(tmp_path):
    first = CLIP(str(make_folder(tmp_path / "a", seed=0)), device="cpu").embed_texts(["red"])
    second = CLIP(str(make_folder(tmp_path / "b", seed=1)), device="cpu").embed_texts(["red"])
    assert not np.allclose(first, second)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_close(folder, clip, precision):
    low = CLIP(str(folder), device="cpu", precision=precision).embed_texts(["red", "boat"])
    assert low.dtype == np.float32 and np.abs(low - clip.embed_texts(["red", "boat"])).max() < 0.05


def test_random_weights_warn_and_repeat(tiny_name):
    with pytest.warns(UserWarning, match="random"):
        one = CLIP(tiny_name, device="cpu")
    with pytest.warns(UserWarning, match="random"):
        two = CLIP(tiny_name, device="cpu")
    assert one.fingerprint == two.fingerprint


def test_loading_leaves_the_random_numbers_alone(tiny_name):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with pytest.warns(UserWarning):
        CLIP(tiny_name, device="cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_local_checkpoint_for_a_name(tiny_name, folder, clip, tmp_path, suffix):
    checkpoint = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(clip.model.state_dict(), checkpoint)
    loaded = CLIP(tiny_name, pretrained=str(checkpoint), device="cpu")
    np.testing.assert_allclose(loaded.embed_texts(["red"]), clip.embed_texts(["red"]), atol=1e-6)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["checkpoint", "folder"])
def test_checkpoint_that_wants_to_execute_code_is_refused(tiny_name, tmp_path, how):
    trap = tmp_path / "executed"
    if how == "checkpoint":
        torch.save({"state_dict": Bomb(trap)}, tmp_path / "evil.pt")
        arguments = dict(name=tiny_name, pretrained=str(tmp_path / "evil.pt"))
    else:
        place = make_folder(tmp_path / "evil")
        (place / "open_clip_model.safetensors").unlink()
        (place / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps({"weight": Bomb(trap)}))
        arguments = dict(name=str(place))
    with pytest.raises(ValueError, match="refused"):
        CLIP(**arguments, device="cpu")
    assert not trap.exists()


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(KeyError, match="did you mean 'ViT-B-16'"):
        CLIP("ViT-B16", pretrained="openai")
    with pytest.raises(KeyError, match="did you mean 'openai'"):
        CLIP("ViT-B-16", pretrained="openia")
    with pytest.raises(FileNotFoundError, match="hf-hub:runs/clip"):
        CLIP("runs/clip")
    with pytest.raises(FileNotFoundError, match="open_clip_config.json"):
        CLIP(str(tmp_path))
    place = make_folder(tmp_path / "tiny")
    with pytest.raises(KeyError, match="precision"):
        CLIP(str(place), precision="fp8")
    (place / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        CLIP(str(place))


@pytest.mark.parametrize("arguments", [("ViT-B-16", "openai"), ("hf-hub:timm/vit_base_patch16_clip_224.openai", None)])
def test_one_sentence_when_the_hub_cannot_be_reached(arguments, monkeypatch):
    import huggingface_hub

    def unreachable(*_args, **_kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr("open_clip.pretrained.hf_hub_download", unreachable)
    with pytest.raises(ConnectionError, match="not on this machine and could not be fetched") as caught:
        CLIP(*arguments)
    assert "\n" not in str(caught.value)


def test_hostile_text_is_only_text(clip):
    texts = ["'); DROP TABLE embedding; --", "<img src=x onerror=alert(1)>", "nul \x00 byte"]
    first = clip.embed_texts(texts)
    assert first.shape == (3, 16)
    np.testing.assert_array_equal(clip.embed_texts(texts), first)
