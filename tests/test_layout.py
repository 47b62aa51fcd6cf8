"""Layouts: a table of networks of four libraries against a direct computation, and what each ambiguity is refused with."""

import warnings
from functools import partial

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

import neuronbench as nb
from neuronbench.probe.layout import Layout, layers, maps, pooled, positions

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "image_size": 64, "patch_size": 8}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}


def from_timm(name, **settings):
    return partial(timm.create_model, name, pretrained=False, **settings)


def from_torchvision(name, **settings):
    return partial(torchvision.models.get_model, name, weights=None, **settings)


def from_transformers(name, **settings):
    return lambda: getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings))


def from_open_clip(name):
    return lambda: open_clip.create_model(name).visual


def detr():
    """An object detector of as many queries as a 64 x 64 image has patches."""
    backbone = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"])
    sizes = {f"{part}_{name}": count for part in ("encoder", "decoder") for name, count in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))}
    return transformers.DetrModel(transformers.DetrConfig(num_queries=4, use_timm_backbone=False, backbone_config=backbone, backbone=None, use_pretrained_backbone=False, d_model=32, **sizes))


class LastAndFixed(nn.Module):
    """Maps with their units last and a position embedding of one size, behind which no module says where the units are."""

    def __init__(self, units):
        super().__init__()
        self.patches, self.where, self.drop = nn.Conv2d(3, units, 4, 4), nn.Parameter(torch.zeros(1, 8, 8, units)), nn.Dropout(0.0)

    def forward(self, x):
        return self.drop(self.patches(x).permute(0, 2, 3, 1) + self.where)


class MixesTokens(nn.Module):
    """A linear layer over the patches, turned back and added."""

    def __init__(self):
        super().__init__()
        self.patches, self.mix, self.block = nn.Conv2d(3, 24, 8, 8), nn.Linear(16, 16), nn.Identity()

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.block(tokens + self.mix(tokens.transpose(1, 2)).transpose(1, 2))


class NormOfMaps(nn.Module):
    """A layer norm over all three axes of maps."""

    def __init__(self, units):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, units, 2, 2), nn.LayerNorm((units, 16, 16))

    def forward(self, x):
        return self.norm(self.conv(x))


VIT_TORCHVISION = partial(torchvision.models.VisionTransformer, 64, 16, 2, 4, 48, 96)
NETWORKS = [  # network, size of the images, {layer: (kind, units, tokens in front, class token, grid)}
    (from_torchvision("resnet18"), (64, 96), {"layer3": ("maps", 256, 0, False, (4, 6)), "layer1.0.bn2": ("maps", 64, 0, False, (16, 24)), "fc": ("vectors", 1000, 0, False, None)}),
    (from_torchvision("densenet121"), (64, 96), {"features.denseblock2": ("maps", 512, 0, False, (8, 12))}),
    (from_torchvision("mobilenet_v3_small"), (64, 96), {"features.8": ("maps", 48, 0, False, (4, 6))}),
    (from_torchvision("convnext_tiny"), (64, 96), {"features.1": ("maps", 96, 0, False, (16, 24)), "features.1.0.block.2": ("maps-last", 96, 0, False, (16, 24)),
                                                   "features.1.0.block.4": ("maps-last", 384, 0, False, (16, 24)), "features.2.0": ("maps", 96, 0, False, (16, 24))}),
    (from_torchvision("swin_t"), (64, 128), {"features.1": ("maps-last", 96, 0, False, (16, 32)), "features.5": ("maps-last", 384, 0, False, (4, 8)), "permute": ("maps", 768, 0, False, (2, 4))}),
    (from_torchvision("swin_v2_t"), (96, 64), {"features.1.0": ("maps-last", 96, 0, False, (24, 16))}),
    (VIT_TORCHVISION, (64, 64), {"encoder.layers.encoder_layer_1": ("tokens", 48, 1, True, (4, 4)), "encoder.layers.encoder_layer_0.mlp.1": ("tokens", 96, 1, True, (4, 4)),
                                 "conv_proj": ("maps", 48, 0, False, (4, 4))}),
    (from_torchvision("lraspp_mobilenet_v3_large", weights_backbone=None), (64, 96), {"backbone.16": ("maps", 960, 0, False, (4, 6)), "classifier": ("maps", 21, 0, False, (8, 12))}),
    (from_timm("convnext_atto"), (64, 96), {"stages.1": ("maps", 80, 0, False, (8, 12)), "stages.0.blocks.0.norm": ("maps", 40, 0, False, (16, 24))}),
    (from_timm("vit_tiny_patch16_224", img_size=(64, 128)), (64, 128), {"blocks.1": ("tokens", 192, 1, True, (4, 8)), "blocks.3.mlp.act": ("tokens", 768, 1, True, (4, 8)),
                                                                       "blocks.3.attn.qkv": ("tokens", 576, 1, True, (4, 8)), "head": ("vectors", 1000, 0, False, None)}),
    (from_timm("vit_wee_patch16_reg1_gap_256", img_size=(64, 96)), (64, 96), {"blocks.1": ("tokens", 256, 1, False, (4, 6))}),
    (from_timm("vit_small_patch14_reg4_dinov2", img_size=(56, 84)), (56, 84), {"blocks.1": ("tokens", 384, 5, True, (4, 6))}),
    (from_timm("deit_tiny_distilled_patch16_224", img_size=64), (64, 64), {"blocks.1": ("tokens", 192, 2, True, (4, 4))}),
    (from_timm("vit_relpos_small_patch16_224", img_size=64), (64, 64), {"blocks.1": ("tokens", 384, 0, False, (4, 4))}),
    (from_timm("mixer_s32_224", img_size=96), (96, 96), {"blocks.1": ("tokens", 512, 0, False, (3, 3)), "blocks.1.mlp_channels.act": ("tokens", 2048, 0, False, (3, 3))}),
    (from_timm("xcit_nano_12_p16_224"), (64, 96), {"blocks.1": ("tokens", 128, 0, False, (4, 6)), "cls_attn_blocks.0": ("tokens", 128, 1, True, (4, 6))}),
    (from_timm("mvitv2_tiny", img_size=64), (64, 64), {"stages.1": ("tokens", 192, 0, False, (8, 8))}),
    (from_timm("cait_xxs24_224", img_size=64), (64, 64), {"blocks.1": ("tokens", 192, 0, False, (4, 4))}),
    (from_timm("swin_tiny_patch4_window7_224", img_size=(56, 112)), (56, 112), {"layers.0": ("maps-last", 96, 0, False, (14, 28)), "layers.1.blocks.0": ("maps-last", 192, 0, False, (7, 14))}),
    (from_timm("levit_128s", img_size=64), (64, 64), {"stages.0": ("tokens", 128, 0, False, (4, 4)), "stages.1": ("tokens", 256, 0, False, (2, 2))}),
    (from_timm("pit_ti_224", img_size=64), (64, 64), {"transformers.1": ("maps", 128, 0, False, (4, 4))}),
    (from_transformers("ViT", **SMALL | {"image_size": (64, 96)}), (64, 96), {"layers.1": ("tokens", 48, 1, True, (8, 12)), "pooler": ("vectors", 48, 0, False, None)}),
    (from_transformers("DeiT", **SMALL), (64, 64), {"layers.0": ("tokens", 48, 2, True, (8, 8))}),
    (from_transformers("Dinov2", **SMALL), (48, 96), {"encoder.layer.1": ("tokens", 48, 1, True, (6, 12))}),
    (from_transformers("Dinov2WithRegisters", num_register_tokens=4, **SMALL), (64, 64), {"encoder.layer.1": ("tokens", 48, 5, True, (8, 8))}),
    (from_transformers("SiglipVision", **SMALL), (64, 64), {"encoder.layers.1": ("tokens", 48, 0, False, (8, 8)), "encoder.layers.1.mlp.activation_fn": ("tokens", 96, 0, False, (8, 8))}),
    (from_transformers("CLIPVision", **SMALL), (64, 64), {"encoder.layers.0": ("tokens", 48, 1, True, (8, 8)), "pre_layrnorm": ("tokens", 48, 1, True, (8, 8))}),
    (from_transformers("Swin", **SWIN), (64, 96), {"encoder.layers.0": ("tokens", 48, 0, False, (8, 12)), "encoder.layers.0.blocks.1": ("tokens", 24, 0, False, (16, 24))}),
    (from_transformers("ConvNext", hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1]), (64, 96), {"encoder.stages.2": ("maps", 48, 0, False, (4, 6))}),
    (from_transformers("Pvt", image_size=64), (64, 64), {"encoder.block.0.1": ("tokens", 64, 0, False, (16, 16)), "encoder.block.3.1": ("tokens", 512, 1, True, (2, 2))}),
    (from_timm("gmlp_ti16_224", img_size=64), (64, 64), {"blocks.0.mlp_channels.gate": ("tokens", 384, 0, False, (4, 4)), "blocks.1.mlp_channels.norm": ("tokens", 384, 0, False, (4, 4))}),
    (from_timm("resmlp_12_224", img_size=64), (64, 64), {"blocks.0.norm2": ("tokens", 384, 0, False, (4, 4)), "blocks.3.norm2": ("tokens", 384, 0, False, (4, 4))}),
    (from_timm("tnt_s_legacy_patch16_224"), (224, 224), {"blocks.0.norm_out": ("tokens", 384, 1, True, (14, 14))}),
    (from_transformers("SamVision", output_channels=16, global_attn_indexes=[1], window_size=2, mlp_ratio=2.0, **SMALL | {"patch_size": 16}), (64, 64),
     {"vision_encoder.patch_embed": ("maps-last", 48, 0, False, (4, 4)), "vision_encoder.layers.1": ("maps-last", 48, 0, False, (4, 4))}),
    (from_transformers("GroupViTVision", depths=[1, 1, 1], num_group_tokens=[8, 4, 0], num_output_groups=[8, 4, 0], **SMALL | {"patch_size": 16}), (64, 64),
     {"vision_model.encoder.stages.0.downsample.mlp_inter": ("positions-last", 48, 0, False, None), "vision_model.encoder.stages.1": ("positions-last", 48, 0, False, None)}),
    (detr, (64, 64), {"encoder.layers.0": ("tokens", 32, 0, False, (2, 2)), "decoder.layers.0": ("positions-last", 32, 0, False, None), "decoder.layernorm": ("positions-last", 32, 0, False, None)}),
    (from_timm("davit_tiny"), (224, 224), {"stages.3.blocks.0.0.attn": ("tokens", 768, 0, False, (7, 7))}),  # one window, at half the size as well
    (partial(LastAndFixed, 24), (32, 32), {"drop": ("maps-last", 24, 0, False, (8, 8))}),
    (MixesTokens, (32, 32), {"block": ("tokens", 24, 0, False, (4, 4))}),
    (partial(NormOfMaps, 8), (32, 32), {"norm": ("maps", 8, 0, False, (16, 16))}),
    (from_open_clip("ViT-B-32"), (224, 224), {"transformer.resblocks.1": ("tokens", 768, 1, True, (7, 7)), "transformer.resblocks.1.mlp.gelu": ("tokens", 3072, 1, True, (7, 7))}),
    (from_open_clip("RN50"), (224, 224), {"layer3": ("maps", 1024, 0, False, (14, 14)), "attnpool": ("vectors", 1024, 0, False, None)}),
]
COUNT = 3  # images


def outputs(model, names, batch):
    """{layer: its first tensor}, read by hooks of the test's own."""
    seen, handles = {}, []
    for name in names:
        def keep(_module, _inputs, output, name=name):
            output = output if isinstance(output, torch.Tensor) else next(iter(output.values() if isinstance(output, dict) else output))
            seen[name] = output.clone()
        handles.append(model.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        model.eval()(batch)
    for handle in handles:
        handle.remove()
    return seen


def direct(output, kind, prefix, class_token, grid):
    """(the default number of each unit, its map or None), by the definition."""
    if kind == "vectors":
        return output, None
    if kind == "maps":
        return output.mean((2, 3)), output
    if kind == "maps-last":
        return output.mean((1, 2)), output.permute(0, 3, 1, 2)
    if kind == "positions-last":
        return output.mean(1), None
    patches = output[:, prefix:]
    return output[:, 0] if class_token else patches.mean(1), patches.transpose(1, 2).reshape(len(output), output.shape[2], *grid)


@pytest.mark.parametrize("make, size, expected", NETWORKS, ids=lambda value: None)
def test_networks_of_four_libraries(make, size, expected):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    chance = np.random.default_rng(0)
    pictures = [Image.fromarray(chance.integers(0, 256, (*size, 3), np.uint8)) for _ in range(COUNT)]
    target, images = nb.Target(model, list(expected), to_tensor, device="cpu"), nb.ProbingSet.from_images(pictures)
    one = nb.record(target, images, batch_size=2, workers=0, progress=False)
    two = nb.record(target, images, batch_size=3, workers=2, progress=False)
    seen = outputs(model, expected, torch.stack([to_tensor(picture) for picture in pictures]))
    for layer, (kind, units, prefix, class_token, grid) in expected.items():
        layout = one.layouts[layer]
        assert (layout.kind, layout.units, layout.prefix, layout.class_token, layout.grid) == (kind, units, prefix, class_token, grid), layer
        number, activation_map = direct(seen[layer], kind, prefix, class_token, grid)
        for recording in (one, two):
            assert np.allclose(recording[layer], number, atol=1e-4 * max(1, number.abs().max())), layer
        found = nb.exemplars(one, layer, units=[1], k=COUNT)
        if grid is None:
            assert found.maps is None
        else:
            assert found.maps.shape[2:] == grid
            assert np.allclose(found.maps[0], activation_map[found.images[0].tolist(), 1], atol=1e-4 * max(1, activation_map.abs().max())), layer
            threshold = one.quantile(layer, 0.5)[1]
            assert np.isclose(threshold, np.quantile(activation_map[:, 1], 0.5, method="inverted_cdf"), atol=1e-4 * max(1, activation_map.abs().max()))


def test_the_table_has_as_many_networks_and_layers_as_it_says():
    assert len(NETWORKS) >= 25 and sum(len(expected) for _, _, expected in NETWORKS) >= 40


# what is refused


class Heads(nn.Module):
    """Attention whose softmax is a module."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.patches, self.softmax, self.norm = 2, nn.Conv2d(3, 8, 4, 4), nn.Softmax(-1), nn.LayerNorm(4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2).unflatten(2, (2, 4)).transpose(1, 2)
        return self.softmax(self.norm(tokens) @ tokens.transpose(2, 3)) @ tokens


class OtherHeads(nn.Module):
    """Attention that keeps its number of heads under a name of its own, for images of any size or of one."""

    def __init__(self, name, size=None):
        super().__init__()
        setattr(self, name, 4)
        self.where = nn.Parameter(torch.zeros(size)) if size else 0
        self.patches, self.qkv, self.softmax, self.out = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48), nn.Softmax(-1), nn.Linear(16, 16)

    def forward(self, x):
        tokens = self.patches(x + self.where).flatten(2).transpose(1, 2)
        queries, keys, values = self.qkv(tokens).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        return self.out((self.softmax(queries @ keys.transpose(2, 3)) @ values).transpose(1, 2).flatten(2))


class Windows(nn.Module):
    """Folds four windows of an image into the batch."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.inside(x.unflatten(3, (2, -1)).unflatten(2, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2))


class Ambiguous(nn.Module):
    """Takes one size only, ends on a linear layer and gives four axes of one length."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(8, 8)
        self.where = nn.Parameter(torch.zeros(8, 8, 8))

    def forward(self, x):
        return self.inside(x.mean(1, keepdim=True).expand(-1, 8, -1, -1) + self.where)


class Extra(nn.Module):
    """Five tokens that no parameter names in front of 4 x 4 patches."""

    def __init__(self):
        super().__init__()
        self.patches, self.block, self.memory = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 6), nn.Parameter(torch.zeros(1, 5, 6))

    def forward(self, x):
        return self.block(torch.cat([self.memory.expand(len(x), -1, -1), self.patches(x).flatten(2).transpose(1, 2)], 1))


class Forgetful(nn.Module):
    """A dropout that is always on before the head."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 2)

    def forward(self, x):
        return self.head(nn.functional.dropout(self.conv(x).mean((2, 3))))


SMALL_VIT = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 96, "image_size": 64, "patch_size": 16}
REFUSED = [
    (lambda: nn.Sequential(Heads()), "0.softmax", (16, 16), "by attention head: a head is not a unit"),
    (lambda: nn.Sequential(Heads()), "0.norm", (16, 16), "by attention head: a head is not a unit"),
    (lambda: OtherHeads("num_heads"), "softmax", (32, 32), "by attention head: a head is not a unit"),
    (lambda: nn.Sequential(OtherHeads("nhead")), "0.softmax", (32, 48), "by attention head: a head is not a unit"),
    (lambda: nn.Sequential(OtherHeads("h", (32, 32))), "0.softmax", (32, 32), "by attention head: a head is not a unit"),
    (partial(LastAndFixed, 8), "drop", (32, 32), r"say layout=\{'drop': 'maps'\} if it is axis 1, or layout=\{'drop': 'maps-last'\} if it is the last"),
    (partial(NormOfMaps, 16), "norm", (32, 32), r"say layout=\{'norm': 'maps'\} if it is axis 1"),
    (lambda: timm.create_model("mobilevitv2_050"), "stages.2.1.transformer", (64, 64), r"4 x 16 positions that are no map of the image.* say layout=\{'stages.2.1.transformer': 'maps'\}"),
    (lambda: timm.create_model("mobilevitv2_050"), "stages.2.1.transformer.0.mlp.fc1", (64, 96), r"4 x 24 positions that are no map of the image"),
    (Windows, "inside", (8, 8), r"\(8, 4, 4, 4\) for 2 images and \(12, 4, 4, 4\) for 3: expected one axis that follows the number of images; where windows"),
    (lambda: nn.Sequential(Ambiguous()), "0", (8, 8), r"say layout=\{'0': 'maps'\} if it is axis 1, or layout=\{'0': 'maps-last'\} if it is the last"),
    (Extra, "block", (16, 16), r"has 21 tokens, 5 more than its patch grid of 4 x 4, and the network names no such tokens; say layout="),
    (lambda: torchvision.models.resnet18(), "layer1.0.relu", (64, 64), r"runs 2 times in one pass; say which call counts, from 1 to 2: calls=\{'layer1.0.relu': 2\}"),
    (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), "blocks.0.attn.attn_drop", (64, 64), r"never runs .* the fused attention of Attention skips it; .*set_fused_attn\(False\)"),
    (lambda: timm.create_model("cait_xxs24_224", img_size=64, depth=1), "blocks.0.attn.proj_l", (64, 64), "by attention head: a head is not a unit"),
    (lambda: timm.create_model("efficientformerv2_s0", img_size=64), "stages.2.blocks.4.token_mixer.talking_head1", (64, 64), "by attention head: a head is not a unit"),
    (lambda: timm.create_model("beit_base_patch16_224", img_size=64, depth=1), "blocks.0.attn.qkv", (64, 64), "never runs .* Attention uses its weights without calling it; record the Att"),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), "1", (16, 16), "one image other numbers in another batch: .* normalises over the batch"),
    (lambda: Forgetful(), "head", (16, 16), r"one image other numbers in another batch: .* at random even in eval mode \(a mask, a dropout\)"),
    (lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL_VIT)), "layers.0", (64, 64), "one image other numbers in another batch"),
    (lambda: timm.create_model("nest_tiny", img_size=64), "levels.0.transformer_encoder.0", (64, 64), r"16 x 16 positions that are no map of the image, such as blocks"),
    (lambda: timm.create_model("nest_tiny", img_size=128), "levels.1.transformer_encoder.0.mlp.fc1", (128, 128), r"4 x 64 positions that are no map of the image, such as blocks"),
    (VIT_TORCHVISION, "encoder.layers.encoder_layer_0.self_attention.out_proj", (64, 64), "never runs .* MultiheadAttention uses its weights without calling it; record the MultiheadAttention itself"),
    (lambda: torchvision.models.inception_v3(init_weights=False), "AuxLogits", (96, 96), "never runs when the network sees an image: it may belong to training"),
    (lambda: torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None), "backbone.fpn", (64, 64), "gives a OrderedDict of 3 tensors: choose a layer inside"),
    (lambda: transformers.YolosModel(transformers.YolosConfig(num_detection_tokens=10, **SMALL | {"image_size": [64, 64]})), "encoder.layer.0", (64, 64), "11 more than its patch grid of 8 x 8"),
]


@pytest.mark.parametrize("make, layer, size, sentence", REFUSED)
def test_what_is_ambiguous_is_refused(make, layer, size, sentence):
    images = nb.ProbingSet.from_images([Image.effect_noise(size[::-1], 90).convert("RGB")] * 2)
    with pytest.raises(ValueError, match=sentence) as refused:
        nb.record(nb.Target(make(), [layer], to_tensor, device="cpu"), images, progress=False)
    assert "\n" not in str(refused.value)
    [note] = layers(make(), [layer], size).note
    assert note == str(refused.value)


def test_what_the_caller_says_stands_above_the_guess_and_must_fit():
    images = nb.ProbingSet.from_images([Image.effect_noise((16, 16), 90).convert("RGB") for _ in range(3)])
    model = Extra()
    tokens = outputs(model, ["block"], torch.stack([to_tensor(images[i]) for i in range(3)]))["block"]
    said = nb.Target(model, ["block"], to_tensor, device="cpu", layout={"block": Layout("tokens", prefix=5, grid=(4, 4))})
    alike = nb.Target(model, ["block"], to_tensor, device="cpu", layout={"block": "positions-last"})
    assert np.allclose(nb.record(said, images, progress=False)["block"], tokens[:, 5:].mean(1), atol=1e-5)
    assert np.allclose(nb.record(alike, images, progress=False)["block"], tokens.mean(1), atol=1e-5)
    assert said.fingerprint != alike.fingerprint != nb.Target(model, ["block"], to_tensor, device="cpu").fingerprint
    for wrong, sentence in (("maps", r"layout says maps \(B, U, h, w\) of layer 'block', which gives \(2, 21, 6\)"), ("tokens-first", "layout says tokens-first"),
                            (Layout("tokens", prefix=1, grid=(4, 4)), "expected 21 tokens in all")):
        with pytest.raises(ValueError, match=sentence):
            nb.record(nb.Target(model, ["block"], to_tensor, device="cpu", layout={"block": wrong}), images, progress=False)
    with pytest.raises(KeyError, match="no layout 'token'; did you mean 'tokens'"):
        nb.record(nb.Target(model, ["block"], to_tensor, device="cpu", layout={"block": "token"}), images, progress=False)


def test_of_ambiguous_maps_either_axis_can_be_said():
    images = nb.ProbingSet.from_images([Image.effect_noise((8, 8), 90).convert("RGB") for _ in range(3)])
    model = nn.Sequential(Ambiguous())
    output = outputs(model, ["0"], torch.stack([to_tensor(images[i]) for i in range(3)]))["0"]
    for kind, axes in (("maps", (2, 3)), ("maps-last", (1, 2))):
        recording = nb.record(nb.Target(model, ["0"], to_tensor, device="cpu", layout={"0": kind}), images, progress=False)
        assert np.allclose(recording["0"], output.mean(axes), atol=1e-5)


# tokens first, steps, one-dimensional maps


@pytest.mark.parametrize("count", [2, 3, 50])
def test_tokens_first_are_those_of_the_twin_with_the_batch_first(count):
    class Net(nn.Module):
        def __init__(self, batch_first):
            super().__init__()
            self.embed, self.block, self.batch_first = nn.Linear(3, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first), batch_first

        def forward(self, x):
            tokens = self.embed(x.flatten(2).transpose(1, 2))
            return self.block(tokens if self.batch_first else tokens.transpose(0, 1))

    one, twin = Net(False), Net(True)
    twin.load_state_dict(one.state_dict())
    images = nb.ProbingSet.from_images([Image.effect_noise((10, 5), 90).convert("RGB") for _ in range(count)])
    first, last = (nb.record(nb.Target(net, ["block"], to_tensor, device="cpu"), images, progress=False) for net in (one, twin))
    assert first.layouts["block"].kind == "tokens-first" and np.allclose(first["block"], last["block"], atol=1e-5)
    assert np.allclose(nb.exemplars(first, "block", [3], 2).maps, nb.exemplars(last, "block", [3], 2).maps, atol=1e-5)
    assert nb.exemplars(first, "block", [3], 2).maps.shape[2:] == (5, 10)


HIERA = {"image_size": [64, 64], "embed_dim": 24, "depths": [1, 1, 1, 1], "patch_stride": [2, 2], "mlp_ratio": 2.0}


@pytest.mark.parametrize("make, layer", [(lambda: timm.create_model("hiera_tiny_224", img_size=64), "blocks.0"), (lambda: transformers.HieraModel(transformers.HieraConfig(**HIERA)), "encoder.stages.1")])
def test_patches_in_an_order_of_the_networks_own_have_no_maps(make, layer):
    model = make()
    images = nb.ProbingSet.from_images([Image.effect_noise((64, 64), 90).convert("RGB") for _ in range(2)])
    recording = nb.record(nb.Target(model, [layer], to_tensor, device="cpu"), images, progress=False)
    output = outputs(model, [layer], torch.stack([to_tensor(images[i]) for i in range(2)]))[layer]
    assert np.allclose(recording[layer], output.mean(1), atol=1e-4) and nb.exemplars(recording, layer, [0], 2).maps is None


@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_have_steps_and_no_class_token(batch_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.steps, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.LSTM(8, 12, batch_first=batch_first), nn.Linear(12, 5)

        def forward(self, x):
            steps = self.conv(x).flatten(2).transpose(1, 2)
            return self.head(self.steps(steps if batch_first else steps.transpose(0, 1))[0])

    model, images = Net(), nb.ProbingSet.from_images([Image.effect_noise((8, 12), 90).convert("RGB") for _ in range(3)])
    recording = nb.record(nb.Target(model, ["steps", "head"], to_tensor, device="cpu"), images, pool=("mean", "max"), progress=False)
    for layer, output in outputs(model, ["steps", "head"], torch.stack([to_tensor(images[i]) for i in range(3)])).items():
        axis = 1 if batch_first else 0
        assert np.allclose(recording[layer], output.mean(axis), atol=1e-5) and np.allclose(recording.pooled(layer, "max"), output.amax(axis), atol=1e-5)
        assert nb.exemplars(recording, layer, [0], 2).maps is None
    with pytest.raises(KeyError, match="no recorded pooling 'class'"):
        recording.pooled("steps", "class")


def test_one_dimensional_convolutions_have_their_units_on_axis_1():
    model = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 9, 3), nn.BatchNorm1d(9), nn.GELU(), nn.Sequential(nn.Conv1d(9, 62, 1), nn.ReLU()))
    images = nb.ProbingSet.from_images([Image.effect_noise((8, 8), 90).convert("RGB") for _ in range(3)])
    names = ["1", "2", "3", "4"]  # the last has as many units as positions
    recording = nb.record(nb.Target(model, names, to_tensor, device="cpu"), images, progress=False)
    for layer, output in outputs(model, names, torch.stack([to_tensor(images[i]) for i in range(3)])).items():
        assert np.allclose(recording[layer], output.mean(2), atol=1e-5), layer


# pooling


def test_pooling_of_each_kind():
    square = Layout("maps", 5, grid=(3, 4), size=(12, 16))
    patches = Layout("tokens", 5, prefix=2, class_token=True, grid=(3, 4), size=(12, 16))
    activation, tokens, vectors = torch.rand(2, 5, 3, 4), torch.rand(2, 14, 5), torch.rand(2, 5)
    assert torch.equal(pooled(activation, square), activation.flatten(2).transpose(1, 2).mean(1)) and torch.equal(pooled(activation, square, "max"), activation.amax((2, 3)))
    assert torch.equal(pooled(tokens, patches), tokens[:, 0]) and torch.equal(pooled(tokens, patches, "max"), tokens[:, 2:].amax(1))
    assert all(torch.equal(pooled(vectors, Layout("vectors", 5), pool), vectors) for pool in (None, "class", "mean", "max"))
    assert positions(tokens, patches).shape == (2, 12, 5) and maps(tokens, patches, (24, 8)).shape == (2, 5, 6, 2)
    with pytest.raises(KeyError, match="did you mean 'max'"):
        pooled(activation, square, "maxx")
    with pytest.raises(ValueError, match="12 patches are no grid of 6 x 4 on an image of 24 x 16"):
        maps(tokens, patches, (24, 16))
    with pytest.raises(ValueError, match="has no class token: expected pool 'mean' or 'max'"):
        pooled(activation, square, "class")


def test_layers_of_a_network_in_a_table():
    table = layers(torchvision.models.resnet18(), size=(64, 64)).set_index("layer")
    assert table.loc["layer4", ["layout", "units", "map", "pool"]].tolist() == ["maps", 512, "2 x 2", "mean, max"]
    assert "runs 2 times" in table.note["layer1.0.relu"] and len(table) == len(list(torchvision.models.resnet18().named_modules())) - 1
    with pytest.raises(KeyError, match="did you mean 'layer4'"):
        layers(torchvision.models.resnet18(), ["layer5"])


def test_a_network_that_folds_its_pixels_is_shown_pictures_of_three_channels():
    table = layers(timm.create_model("tresnet_m"), ["body.s2d", "body.conv1"], size=(64, 64))
    assert list(table.units) == [48, 64] and list(table["map"]) == ["16 x 16", "16 x 16"]
