"""CLIP over open_clip: loading, refusing, embedding and keeping, on tiny untrained models made here."""

import json
import os
import pickle
import warnings

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import neuronbench as nb
from neuronbench.foundation.clip import CLIP, warn_of_concepts

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


OPENAI = {"ViT-B-16": "ViT-B-16-quickgelu", "ViT-B-32": "ViT-B-32-quickgelu", "RN50": "RN50-quickgelu", "ViT-L-14-336": "ViT-L-14-336-quickgelu"}


@pytest.fixture
def without_weights(monkeypatch):
    """open_clip builds its networks and leaves their weights random."""
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_args, **_kwargs: "weights.pt")
    monkeypatch.setattr("open_clip.factory.load_checkpoint", lambda *_args, **_kwargs: None)


@pytest.mark.parametrize(("name", "tag", "quick"), [("ViT-B-32", "openai", True), ("ViT-B-32-quickgelu", "openai", True), ("RN50", "openai", True),
                                                    ("ViT-B-32", "laion2b_s34b_b79k", False), ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", False),
                                                    ("ViT-B-32", "metaclip_400m", True)])
def test_the_tag_decides_the_activation(without_weights, name, tag, quick, recwarn):
    model = CLIP(name, pretrained=tag, device="cpu").model
    x = torch.linspace(-3, 3, 61)
    wanted = x * torch.sigmoid(1.702 * x) if quick else torch.nn.functional.gelu(x)
    towers = [model.transformer, *([model.visual.transformer] if hasattr(model.visual, "transformer") else [])]
    for tower in towers:
        torch.testing.assert_close(tower.resblocks[-1].mlp.gelu(x), wanted)
    assert not [one for one in recwarn if "QuickGELU" in str(one.message)]


def test_every_tag_of_open_clip_gets_its_activation_or_is_refused():
    from neuronbench.foundation.clip import _variant

    refused = set()
    for name, tag in open_clip.list_pretrained():
        trained = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
        try:
            variant = _variant(name, tag, None)
        except ValueError as error:
            refused.add(name)
            assert "hf-hub:owner/name" in str(error) and "\n" not in str(error)
            continue
        assert bool(open_clip.get_model_config(variant).get("quick_gelu", False)) == trained, (name, tag)
    assert refused == {"roberta-ViT-B-32"}  # its configuration and its tag say two things


def test_a_checkpoint_file_of_a_network_with_two_activations_asks(without_weights, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.touch()
    with pytest.raises(ValueError, match="the name 'ViT-B-32-quickgelu' or quick_gelu=True .* or quick_gelu=False"):
        CLIP("ViT-B-32", pretrained=str(file), device="cpu")
    for arguments, name in ((("ViT-B-32", True), "ViT-B-32-quickgelu"), (("ViT-B-32", False), "ViT-B-32"), (("ViT-B-32-quickgelu", None), "ViT-B-32-quickgelu")):
        assert CLIP(arguments[0], pretrained=str(file), device="cpu", quick_gelu=arguments[1]).name == name
    with pytest.raises(ValueError, match="computes"):
        CLIP("ViT-B-32", pretrained="openai", device="cpu", quick_gelu=False)


def test_a_folder_says_its_activation_itself_and_vectors_are_kept_apart(tmp_path):
    plain, quick = make_folder(tmp_path / "plain"), make_folder(tmp_path / "quick")
    config = json.loads((quick / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (quick / "open_clip_config.json").write_text(json.dumps(config))
    first, second = CLIP(str(plain), device="cpu"), CLIP(str(quick), device="cpu")
    assert first.fingerprint != second.fingerprint
    assert not np.allclose(first.embed_texts(["red"]), second.embed_texts(["red"]), atol=1e-4)


def test_what_a_folder_would_ignore_is_refused(folder):
    for given in ({"pretrained": "openai"}, {"quick_gelu": True}):
        with pytest.raises(ValueError, match="weights and an activation of its own"):
            CLIP(str(folder), device="cpu", **given)


def test_settings_that_no_weight_and_no_repr_shows_are_in_the_fingerprint(tmp_path):
    one, other = make_folder(tmp_path / "one"), make_folder(tmp_path / "other")
    config = json.loads((other / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["heads"] *= 2
    (other / "open_clip_config.json").write_text(json.dumps(config))
    assert CLIP(str(one), device="cpu").fingerprint != CLIP(str(other), device="cpu").fingerprint


def test_a_silent_configuration_of_the_hub_gets_the_activation_of_its_tag(monkeypatch):
    from neuronbench.foundation.clip import _activation

    config = {"embed_dim": 16, "text_cfg": {}, "vision_cfg": {}}
    monkeypatch.setattr("open_clip.get_model_config", lambda _name: config)
    assert _activation("hf-hub:timm/vit_base_patch16_clip_224.openai") == {"quick_gelu": True}
    assert _activation("hf-hub:somebody/else") == _activation("local-dir:/a/folder") == {}
    config["quick_gelu"] = False
    assert _activation("hf-hub:timm/vit_base_patch16_clip_224.openai") == {}


def test_a_torchscript_archive_and_weights_that_do_not_fit_are_one_sentence(tiny_name, folder, tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Identity()), tmp_path / "archive.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    (tmp_path / "cut.safetensors").write_bytes((folder / "open_clip_model.safetensors").read_bytes()[:500])
    for file, said in (("archive.pt", "TorchScript archive"), ("other.pt", "do not fit"), ("cut.safetensors", "damaged or cut off")):
        with pytest.raises(ValueError, match=said) as caught:
            CLIP(tiny_name, pretrained=str(tmp_path / file), device="cpu")
        assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_that_brings_code_is_refused_and_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_args: pytest.fail("asked at the keyboard"))
    place = make_folder(tmp_path / "evil")
    (place / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'executed')!r})")
    (place / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", None]}}))
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}))
    config = json.loads((place / "open_clip_config.json").read_text())
    for more in ({}, {"tokenizer_kwargs": {"trust_remote_code": True}}):
        config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", **more}
        (place / "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="needs code of its own, which is never run"):
            CLIP(str(place), device="cpu")
    assert not (tmp_path / "executed").exists()


def test_a_damaged_vector_is_computed_anew(clip):
    from neuronbench.basics import ContentStore, cache_folder, content_key

    first = clip.embed_texts(["red", "boat"])
    store = ContentStore(cache_folder("clip") / f"{clip.fingerprint}.sqlite")
    for damage in (b"", b"abc", bytes(4 * 15), bytes(4 * 17)):
        store.put({content_key("text", "red"): damage})
        np.testing.assert_allclose(clip.embed_texts(["red", "boat"]), first, atol=1e-6)


def test_values_that_are_not_finite_are_refused_and_not_kept(clip):
    kept = clip.model.text_projection.data.clone()
    clip.model.text_projection.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        clip.embed_texts(["red"])
    clip.model.text_projection.data = kept
    assert np.isfinite(clip.embed_texts(["red"])).all()


def said_of(clip, concepts):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_concepts(clip, concepts)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(("concepts", "words"), [
    (["Dog", "dog", "DOG"], ["3 concepts cannot be told apart", "'Dog' = 'dog' = 'DOG'"]),
    (["it's", "it 's", "red"], ["2 concepts cannot be told apart"]),
    (["cats &amp; dogs", "cats & dogs"], ["2 concepts cannot be told apart"]),
    (["狗", "猫", "a dog"], ["2 concepts are in a script", "'狗', '猫'"]),
    (["собака"], ["1 concepts are in a script"]),
    (["very " * 100 + "dog", "very " * 100 + "cat"], ["2 concepts are longer than the 16 tokens", "cut off"]),
    (["dog", "café", "a red 🚗", "piñata", "C++", "don't"], None)])
def test_concepts_that_clip_cannot_read_are_warned_of(clip, concepts, words):
    said = said_of(clip, concepts)
    assert all("concept" in one for one in said)
    assert (said == []) if words is None else all(any(word in one for one in said) for word in words)


def test_common_words_are_no_reason_to_warn(clip):
    from neuronbench.describe.concepts import common_words

    assert said_of(clip, common_words(20_000)) == [] and said_of(object(), ["狗"]) == []


def test_the_longest_text_that_fits_is_not_called_cut(clip):
    assert said_of(clip, ["dog " * 14]) == [] and "longer" in said_of(clip, ["dog " * 15])[0]


@pytest.mark.parametrize(("pieces", "unknown"), [(1, False), (2, False), (9, True)])
def test_a_multilingual_tokenizer_knows_other_scripts(pieces, unknown):
    from neuronbench.foundation.clip import _unread

    class Vocabulary:
        all_special_ids, unk_token_id = [0, 1, 2], 3

    class Tokenizer:
        context_length, tokenizer = 77, Vocabulary()

        def __call__(self, texts, context_length=77):
            return torch.tensor([[1, *[9] * pieces, 2, *[0] * (context_length - pieces - 2)] for _ in texts])

    said = _unread(Tokenizer(), ("犬犬",))
    assert bool(said) == unknown


def test_clip_dissect_warns_of_its_concepts_at_each_call(clip, recwarn):
    from torchvision.transforms import ToTensor

    images = nb.ProbingSet.from_images(pictures(4))
    recording = nb.record(nb.Target(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)), ["0"], ToTensor()), images, progress=False)
    method = nb.CLIPDissect(clip, ["Dog", "dog", "boat"])
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 concepts cannot be told apart"):
            method(recording, images)
