"""Targets from checkpoints and from the three libraries: every weight is there, no class name is made up, nothing is fetched, nothing runs."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import neuronbench as nb
from neuronbench.probe.target import Target, load_checkpoint

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 100}
NAMES = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
RESNET = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "embedding_size": 8}
images = [Image.effect_noise((40, 40), 90).convert("RGB") for _ in range(3)]


@pytest.fixture(autouse=True)
def no_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*_arguments, **_options):
        pytest.fail("something was to be fetched")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("builtins.input", lambda *_args: pytest.fail("asked at the keyboard"))


# checkpoints


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 2)


def test_what_wrappers_put_into_the_names_is_taken_off(tmp_path):
    net = Net()
    plain = net.state_dict()
    averaged = torch.optim.swa_utils.AveragedModel(net)
    inside = Net()
    inside.load_state_dict(plain)
    inside.features = torch.compile(inside.features)
    under = {prefix: {f"{prefix}{name}": value for name, value in plain.items()} for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.")}
    for number, saved in enumerate([*under.values(), averaged.state_dict(), inside.state_dict(), {"model_ema": averaged.state_dict(), "epoch": 3},
                                    {"state_dict": {"model": under["module."]}}, {"model_state_dict": plain, "loss": 0.5}]):
        torch.save(saved, tmp_path / f"{number}.pt")
        found = load_checkpoint(tmp_path / f"{number}.pt")
        assert found.keys() == plain.keys() and torch.equal(found["head.weight"], plain["head.weight"]), number


def test_a_network_with_a_part_called_module_keeps_its_names(tmp_path):
    weights = {"module.weight": torch.ones(2), "head.weight": torch.zeros(2)}
    torch.save(weights, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").keys() == weights.keys()


def test_two_sets_of_weights_are_not_chosen_from(tmp_path):
    weights = Net().state_dict()
    torch.save({"model": weights, "model_ema": weights}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match="several sets of weights, 'model' and 'model_ema'"):
        load_checkpoint(tmp_path / "two.pt")


def test_what_is_no_checkpoint_is_one_sentence(tmp_path):
    torch.save({"weights_of_mine": Net().state_dict(), "epoch": 3}, tmp_path / "other.pt")
    torch.save({}, tmp_path / "empty.pt")
    torch.jit.save(torch.jit.script(nn.Identity()), tmp_path / "archive.pt")
    torch.save(Net().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:700])
    (tmp_path / "cut.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    for name, said in (("other.pt", "found 'weights_of_mine', 'epoch'"), ("empty.pt", "holds no weights"), ("archive.pt", "TorchScript archive"),
                       ("cut.pt", "damaged"), ("cut.safetensors", "damaged")):
        with pytest.raises(ValueError, match=said) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


def test_the_class_of_a_training_script_around_the_network_is_taken_off(tmp_path):
    made = Target.from_torchvision("resnet18", ["fc"], classes=["a", "b"], device="cpu")
    torch.save({"state_dict": {f"net.{name}": value for name, value in made.model.state_dict().items()}}, tmp_path / "script.ckpt")
    again = Target.from_torchvision("resnet18", ["fc"], tmp_path / "script.ckpt", classes=["a", "b"], device="cpu")
    assert again.fingerprint == made.fingerprint
    with pytest.raises(ValueError, match="size mismatch.*`classes` says how many"):
        Target.from_torchvision("resnet18", ["fc"], tmp_path / "script.ckpt")


# torchvision


@pytest.mark.parametrize(("name", "layer", "units"), [
    ("lraspp_mobilenet_v3_large", "backbone.16", 960), ("fcn_resnet50", "classifier.0", 512), ("quantized_shufflenet_v2_x0_5", "conv5", 1024),
    ("ssdlite320_mobilenet_v3_large", "backbone.features.1.3.0", 480)])
def test_networks_that_are_no_classifiers_are_built_without_a_download_and_recorded(name, layer, units):
    target = Target.from_torchvision(name, [layer], device="cpu")
    assert nb.record(target, nb.ProbingSet.from_images(images[:1]), progress=False)[layer].shape == (1, units)


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "keypointrcnn_resnet50_fpn", "deeplabv3_mobilenet_v3_large"])
def test_detectors_have_as_many_classes_as_are_given(name):
    target = Target.from_torchvision(name, ["backbone"], classes=["nothing", "boat", "cat"], device="cpu")
    assert target.classes == ["nothing", "boat", "cat"]
    assert any(3 in parameter.shape[:1] for parameter in target.model.parameters())


@pytest.mark.parametrize(("name", "layer", "said"), [("mc3_18", "layer1", "takes clips, not images"), ("raft_small", "feature_encoder", "takes pairs of images, not images")])
def test_networks_of_clips_are_built_and_say_that_they_take_no_images(name, layer, said):
    target = Target.from_torchvision(name, [layer], device="cpu")
    with pytest.raises(ValueError, match=said):
        target.preprocess(images[0])


def test_another_number_of_classes_than_the_weights_have_is_refused():
    with pytest.raises(ValueError, match="2 classes were given, and 'resnet18' with the weights 'IMAGENET1K_V1' has 1000 outputs"):
        Target.from_torchvision("resnet18", ["fc"], "IMAGENET1K_V1", classes=["a", "b"])


# timm


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_a_checkpoint_of_timm_says_whether_it_has_a_head(name, tmp_path):
    import timm

    for outputs in (0, 5):
        save_file(timm.create_model(name, num_classes=outputs).state_dict(), tmp_path / f"{outputs}.safetensors")
    bare = Target.from_timm(name, ["blocks.1" if "_" in name else "layer1"], pretrained=tmp_path / "0.safetensors", device="cpu")
    assert bare.classes is None and bare.model.num_classes == 0
    five = Target.from_timm(name, bare.layers, pretrained=tmp_path / "5.safetensors", classes=list("abcde"), device="cpu")
    assert five.model.num_classes == 5 and five.classes == list("abcde")
    for file, count in (("0", 0), ("5", 5)):
        with pytest.raises(ValueError, match=f"3 classes were given, and the head in .* has {count} outputs"):
            Target.from_timm(name, bare.layers, pretrained=tmp_path / f"{file}.safetensors", classes=list("abc"))


def test_names_and_heads_of_timm_are_checked_before_a_download():
    with pytest.raises(KeyError, match="did you mean 'resnet18"):
        Target.from_timm("resnet18.a9_in1k", ["fc"])
    with pytest.raises(KeyError, match="did you mean 'resnet18'"):
        Target.from_timm("resnet188", ["fc"])
    with pytest.raises(ValueError, match="2 classes were given, and timm's 'resnet18' was trained with 1000: with another number its head would be random"):
        Target.from_timm("resnet18", ["fc"], classes=["a", "b"])
    with pytest.raises(ValueError, match="no trained weights"):
        Target.from_timm("vit_base_patch16_gap_224", ["head"])


# transformers


def save(model, folder):
    model.eval().save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def clip():
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=VIT, text_config=TEXT, projection_dim=8))


def detr(kind="DetrForObjectDetection"):
    backbone = transformers.ResNetConfig(**RESNET, out_features=["stage4"])
    return getattr(transformers, kind)(transformers.DetrConfig(
        backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=4))


def mask2former():
    backbone = transformers.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
                                       out_features=["stage1", "stage2", "stage3", "stage4"])
    config = transformers.Mask2FormerConfig(backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
                                            encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=3)
    return transformers.Mask2FormerForUniversalSegmentation(config)


SEGFORMER = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1], "decoder_hidden_size": 8}
DINO = {name: value for name, value in VIT.items() if name != "intermediate_size"}
NETWORKS = {  # maker, layer, units, further names of the layer
    "ViT": (lambda: transformers.ViTModel(transformers.ViTConfig(**VIT)), "vit.layers.1", 24, "layers.1"),
    "DINOv2": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINO)), "dinov2.encoder.layer.1", 24, "encoder.layer.1"),
    "CLIP": (clip, "vision_model.encoder.layers.1", 24, "encoder.layers.1"),
    "CLIP's tower": (lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VIT)), "vision_model.encoder.layers.1", 24, "encoder.layers.1"),
    "SigLIP": (lambda: transformers.SiglipModel(transformers.SiglipConfig(vision_config=VIT, text_config=TEXT)), "vision_model.encoder.layers.0", 24, "encoder.layers.0"),
    "SigLIP's tower": (lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VIT)), "encoder.layers.1", 24, "vision_model.encoder.layers.1"),
    "SegFormer": (lambda: transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**SEGFORMER)), "decode_head.linear_fuse", 8, None),
    "DETR": (detr, "model.backbone.model.encoder.stages.2", 8, None),
    "DETR's backbone": (lambda: detr("DetrModel"), "backbone.model.encoder.stages.2", 8, "model.backbone.model.encoder.stages.2"),
    "Mask2Former": (mask2former, "model.pixel_level_module.encoder.swin.encoder.layers.1.blocks.0", 16, None),
    "ConvNeXt": (lambda: transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)), "encoder.stages.2", 8, "convnext.encoder.stages.2"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_transformers_that_are_no_classifiers_are_recorded(name, tmp_path):
    make, layer, units, other = NETWORKS[name]
    made = make()
    folder = save(made, tmp_path / "net")
    target = Target.from_transformers(folder, [layer], device="cpu")
    assert target.classes is None and target.layers == (layer,)
    assert target.fingerprint == Target.from_transformers(folder, [layer], device="cpu").fingerprint
    recording = nb.record(target, nb.ProbingSet.from_images(images), progress=False)
    assert recording[layer].shape == (3, units)
    if other:
        twin = nb.record(Target.from_transformers(folder, [other], device="cpu"), nb.ProbingSet.from_images(images), progress=False)
        np.testing.assert_array_equal(twin[other], recording[layer])


def test_the_tower_of_a_clip_computes_what_it_computes_in_the_whole(tmp_path):
    whole = clip().eval()
    target = Target.from_transformers(save(whole, tmp_path / "clip"), ["vision_model.post_layernorm"], device="cpu")
    batch = torch.stack([target.preprocess(image) for image in images])
    with torch.no_grad():
        wanted = whole.vision_model(batch).pooler_output
    torch.testing.assert_close(target.activations(batch)["vision_model.post_layernorm"], wanted)


def test_a_masked_autoencoder_sees_all_patches_and_the_same_each_time(tmp_path):
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    folder = save(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**VIT, **decoder)), tmp_path / "mae")
    target = Target.from_transformers(folder, ["vit.layers.1"], device="cpu")
    first, second = (target.activations(target.preprocess(images[0])[None])["vit.layers.1"] for _ in range(2))
    assert first.shape == (1, 1 + 16, 24) and torch.equal(first, second)


def vit_classifier(**names):
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VIT, **names))


def test_a_classifier_has_its_class_names_and_made_up_ones_are_none(tmp_path):
    assert Target.from_transformers(save(vit_classifier(**NAMES), tmp_path / "a"), ["classifier"], device="cpu").classes == ["cat", "dog"]
    assert Target.from_transformers(save(vit_classifier(num_labels=5), tmp_path / "b"), ["classifier"], device="cpu").classes is None


def test_a_classifier_without_its_head_is_a_backbone(tmp_path):
    model = vit_classifier(**NAMES)
    folder = save(model, tmp_path / "cut")
    save_file({name: value for name, value in model.state_dict().items() if not name.startswith("classifier")}, f"{folder}/model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match="no trained head: its backbone, a ViTModel, is the target, without class names"):
        one, two = (Target.from_transformers(folder, ["vit.layers.1"], device="cpu") for _ in range(2))
    assert one.classes is None and one.fingerprint == two.fingerprint
    with pytest.raises(KeyError, match="no layer 'classifier'"), pytest.warns(UserWarning):
        Target.from_transformers(folder, ["classifier"], device="cpu")


def test_a_pooler_without_weights_is_left_out(tmp_path):
    folder = save(transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=False), tmp_path / "dino")
    assert Target.from_transformers(folder, ["layers.1"], device="cpu").model.pooler is None


def test_weights_that_are_missing_or_do_not_fit_are_refused(tmp_path):
    model = vit_classifier(**NAMES)
    folder = save(model, tmp_path / "net")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    save_file({name: value for name, value in weights.items() if "layers.1" not in name}, f"{folder}/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights of a ViTForImageClassification, such as 'vit.layers.1"):
        Target.from_transformers(folder, ["vit.layers.0"])
    save_file(weights | {"classifier.weight": torch.zeros(3, 24), "classifier.bias": torch.zeros(3)}, f"{folder}/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="do not fit its configuration"):
        Target.from_transformers(folder, ["vit.layers.0"])


def test_what_takes_no_images_and_folders_that_lack_a_file(tmp_path):
    folder = save(transformers.BertModel(transformers.BertConfig(**TEXT)), tmp_path / "bert")
    with pytest.raises(ValueError, match="BertModel, which takes 'input_ids': expected a network that takes images"):
        Target.from_transformers(folder, ["encoder"])
    transformers.ViTModel(transformers.ViTConfig(**VIT)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="no preprocessor_config.json"):
        Target.from_transformers(tmp_path / "vit", ["layers.1"])
    with pytest.raises(FileNotFoundError, match="did you mean .*vit"):
        Target.from_transformers(tmp_path / "vitt", ["layers.1"])
    (tmp_path / "vit/config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        Target.from_transformers(tmp_path / "vit", ["layers.1"])


# nothing runs


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def evil_folder(path, mark):
    path.mkdir()
    (path / "evil.py").write_text(f"import os; os.mkdir({str(mark)!r})\nfrom transformers import *\nclass C(PretrainedConfig):\n    model_type = 'evilx'\nclass P(PreTrainedModel):\n    config_class = C\n")
    auto = dict.fromkeys(("AutoModel", "AutoModelForCausalLM", "AutoModelForImageClassification", "AutoModelForImageTextToText", "AutoModelForSemanticSegmentation"), "evil.P")
    auto |= {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.P", None], "AutoImageProcessor": "evil.P", "AutoProcessor": "evil.P"}
    (path / "config.json").write_text(json.dumps({"model_type": "evilx", "auto_map": auto, "architectures": ["P"]}))
    for file in ("preprocessor_config.json", "tokenizer_config.json", "processor_config.json"):
        (path / file).write_text(json.dumps({"auto_map": auto}))
    (path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.P"}]))
    (path / "model_index.json").write_text(json.dumps({"_class_name": ["evil", "P"], "_diffusers_version": "0.1"}))
    return str(path)


LOADERS = {"target": lambda folder: Target.from_transformers(folder, ["x"]), "captioner": lambda folder: nb.Captioner(folder), "segmenter": lambda folder: nb.Segmenter(folder),
           "chat": lambda folder: nb.LocalChat(folder), "sentences": lambda folder: nb.Sentences(folder), "bertscore": lambda folder: nb.BERTScore(folder, 1)}


@pytest.mark.parametrize("name", [*LOADERS, "painter"])
def test_code_in_a_folder_never_runs_and_is_never_offered(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = evil_folder(tmp_path / "evil", tmp_path / "executed")
    load = LOADERS.get(name) or (lambda folder: nb.Painter(folder))
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(folder)
    assert not (tmp_path / "executed").exists()
    assert "trust_remote_code" not in str(caught.value) and "\n" not in str(caught.value)
    if name != "painter":
        assert "is refused: it needs code of its own, which is never run" in str(caught.value)


def test_pickled_weights_are_refused_in_our_words(tmp_path):
    folder = save(vit_classifier(**NAMES), tmp_path / "net")
    (tmp_path / "net/model.safetensors").unlink()
    for content in ({"weight": Bomb(tmp_path / "executed")}, Net()):
        torch.save(content, tmp_path / "net/pytorch_model.bin")
        with pytest.raises(ValueError, match="is refused: it is not plain weights and could execute code") as caught:
            Target.from_transformers(folder, ["vit.layers.1"])
        assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"x": Bomb(tmp_path / "executed")}))
    with pytest.raises(ValueError, match="is refused") as caught:
        Target.from_timm("resnet10t", ["fc"], pretrained=tmp_path / "a.pth")
    assert "weights_only" not in str(caught.value) and not (tmp_path / "executed").exists()
