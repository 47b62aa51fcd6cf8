"""On a layer of patch tokens every method looks where the patches lie: oblong grids are the right way round and the class token is no position."""
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import neuronbench as nb
from neuronbench.describe.patch_vocabulary import patches
from neuronbench.foundation.region_captioner import STOP, RegionCaptioner, Speaker, StageFeatures, word_list
from neuronbench.probe.regions import exemplar_regions
from tiny_colours import ColourCLIP

COLOURS = ["red", "green", "blue"]
SIZES = {"wide": (32, 48), "tall": (48, 32)}  # (H, W) in pixels
PATCH = 8


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


class Patches(nn.Module):
    """A small ViT. Unit u of each patch is how much more of colour u it has than of the others; the class token is the mean of the patches."""

    def __init__(self):
        super().__init__()
        self.patch_embed, self.block, self.cls_token = nn.Conv2d(3, 3, PATCH, PATCH, bias=False), nn.Identity(), nn.Parameter(torch.zeros(1, 1, 3))
        self.patch_embed.weight.data = ((2 * torch.eye(3) - 1) / PATCH**2)[..., None, None].repeat(1, 1, PATCH, PATCH)

    def forward(self, batch):
        tokens = self.patch_embed(batch).flatten(2).transpose(1, 2)
        return self.block(torch.cat([self.cls_token + tokens.mean(1, keepdim=True), tokens], 1))[:, 0]


def preprocess(image):
    """Fractions whose sums have no rounding."""
    return torch.from_numpy(np.array(image, np.float32) / 256).permute(2, 0, 1)


def scenes(height, width, count=30):
    """(ProbingSet, (image, colour, H, W) bool): black with a rectangle of 2 x 2 patches of one colour, at every place in turn."""
    rows, columns, pictures = height // PATCH - 1, width // PATCH - 1, []
    for number in range(count):
        top, left = PATCH * ((number // 3) % rows), PATCH * ((number * 2) % columns if number % 2 else columns - (number // 2) % 2)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[top : top + 2 * PATCH, min(left, width - 2 * PATCH) : left + 2 * PATCH, number % 3] = 150 + 3 * number
        pictures.append(Image.fromarray(pixels))
    return nb.ProbingSet.from_images(pictures), np.stack([np.asarray(picture) > 0 for picture in pictures]).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module", params=list(SIZES))
def recorded(request):
    """(Recording of all poolings, masks of the colours, (image, unit, h, w) maps computed patch by patch)."""
    images, masks = scenes(*SIZES[request.param])
    target = nb.Target(Patches(), ["block"], preprocess, COLOURS, "cpu")
    pixels = np.stack([np.asarray(images[number], np.float64) / 256 for number in range(len(images))])
    rows, columns = (side // PATCH for side in SIZES[request.param])
    means = pixels.reshape(len(images), rows, PATCH, columns, PATCH, 3).mean((2, 4))
    maps = (2 * means - means.sum(-1, keepdims=True)).transpose(0, 3, 1, 2)
    return nb.record(target, images, pool=("class", "mean", "max"), progress=False), masks, maps


def thresholded(maps, threshold, size):
    """Maps (N, h, w) above a threshold at (H, W)."""
    return F.interpolate(torch.tensor(maps, dtype=torch.float32)[:, None], size, mode="bilinear")[:, 0].numpy() > threshold


def annotations(recording, masks):
    return nb.annotations_from_arrays(recording.images, {"colour": masks}, {"colour": COLOURS})


def test_network_dissection_marks_the_patches(recorded):
    recording, masks, maps = recorded
    method = nb.NetworkDissection(annotations(recording, masks), share=0.05)
    found = method.explain(recording, recording.images)
    assert found.concept.tolist() == COLOURS
    for unit in range(3):
        assert (maps[:, unit] > found.threshold[unit] + 1e-6).mean() <= 0.05 < (maps[:, unit] >= found.threshold[unit] - 1e-6).mean()  # of the patches alone
        marked = thresholded(maps[:, unit], found.threshold[unit], masks.shape[2:])
        assert found.iou[unit] == pytest.approx((marked & masks[:, unit]).sum() / (marked | masks[:, unit]).sum(), abs=1e-6)
        trace = method.trace(recording, "block", unit)
        assert all((active == marked[image]).all() for image, active in zip(trace.evidence.image, trace.active))


def test_compositional_explanations_have_the_masks_of_network_dissection(recorded):
    recording, masks, _ = recorded
    notes = annotations(recording, masks)
    found = nb.CompositionalExplanations(notes, share=0.05, length=1)(recording, recording.images)
    assert found.description.tolist() == COLOURS
    assert np.allclose(found.score, nb.NetworkDissection(notes, share=0.05).explain(recording, recording.images).iou)


def milan(pool="max"):
    torch.manual_seed(0)
    encoder = StageFeatures(nn.Sequential(nn.Conv2d(3, 3, 1)), ["0"], preprocess, "cpu")
    encoder.network[0].weight.data, encoder.network[0].bias.data = torch.eye(3)[..., None, None], torch.zeros(3)
    words = word_list(["red things", "green things"])
    models = Speaker(len(words), 3, 8, 4), Speaker(len(words), 0, 8, 4)
    models[0].next.bias.data[STOP] -= 5  # it speaks before it ends
    return nb.MILAN(RegionCaptioner(*models, words, torch.stack([torch.zeros(3), torch.ones(3)]), encoder.learnt), encoder, exemplars=6, quantile=0.95, beam=4, length=3, pool=pool)


@pytest.mark.parametrize("pool", ["class", "mean", "max"])
def test_milan_looks_at_the_patches(recorded, pool):
    recording, masks, maps = recorded
    method = milan(pool)
    for unit in range(3):
        regions = method.trace(recording, "block", unit).regions
        assert regions.images.tolist() == recording.top("block", unit, 6, pool).image.tolist()
        assert (regions.masks == thresholded(maps[regions.images, unit], recording.quantile("block", 0.95)[unit], (224, 224))).all() and regions.masks.any((1, 2)).all()
        seen = method.region_encoder(regions.pictures, regions.masks)
        assert (seen.argmax(1) == unit).all() and (seen.max(1) > 0.4).all()  # the region is where the colour is
    assert not method(recording, recording.images).description.isna().any()


@pytest.mark.parametrize("pool", [None, "max"])
def test_falcon_crops_the_patches(recorded, pool):
    recording, masks, _ = recorded
    method = nb.FALCON(ColourCLIP(), [f"a {colour} house" for colour in COLOURS], exemplars=6, resemblance=0.0, pool=pool)
    for unit in range(3):
        trace = method.trace(recording, "block", unit)
        assert trace.description == COLOURS[unit] and trace.maps.shape[1:] == tuple(side // PATCH for side in masks.shape[2:])
        assert all(np.asarray(crop)[..., unit].mean() > 0.4 * np.asarray(crop).max() for crop in trace.crops)


@pytest.mark.parametrize("pool", [None, "max"])
def test_patches_are_cut_where_the_patches_lie(recorded, pool):
    recording, masks, _ = recorded
    method = nb.PatchVocabulary(ColourCLIP(), vocabulary={name: COLOURS for name in COLOURS}, exemplars=6, margin=0.0, pool=pool)
    assert method(recording, recording.images).description.tolist() == COLOURS
    for unit, cut in enumerate(patches(recording, nb.exemplars(recording, "block", range(3), 6, pool=pool), margin=0.0)):
        for patch in cut:
            left, top, right, bottom = patch.box
            inside = masks[patch.position, unit, top:bottom, left:right]
            assert inside.mean() > 0.5 and inside.sum() > 0.5 * masks[patch.position, unit].sum()


@pytest.mark.parametrize("pool", [None, "class", "mean", "max"])
def test_what_needs_no_maps_ranks_by_the_recorded_pooling(recorded, pool):
    recording, masks, _ = recorded
    labels = pd.DataFrame(masks.any((2, 3)), columns=COLOURS)
    for method in (nb.CLIPDissect(ColourCLIP(), COLOURS, pool=pool), nb.INVERT(labels, length=1, pool=pool)):
        assert method(recording, recording.images).description.tolist() == COLOURS


def test_attention_crops_of_describe_and_dissect_hold_the_colour(recorded):
    recording, masks, _ = recorded
    best = nb.exemplars(recording, "block", range(3), 6)
    for unit in range(3):
        for image, activation_map in zip(best.images[unit], best.maps[unit]):
            for crop in nb.attention_crops(recording.images[int(image)], activation_map):
                left, top, right, bottom = crop.box
                assert masks[image, unit, top:bottom, left:right].mean() > 0.4


def test_a_real_vision_transformer_of_oblong_images_has_the_masks_of_its_patches():
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=(32, 80), num_classes=3).eval()
    rng = np.random.default_rng(0)
    images = nb.ProbingSet.from_images([Image.fromarray(rng.integers(0, 256, (32, 80, 3), dtype=np.uint8)) for _ in range(8)])
    recording = nb.record(nb.Target(model, ["blocks.3"], preprocess, COLOURS, "cpu"), images, pool=("class", "mean", "max"), progress=False)
    held = []
    hook = model.blocks[3].register_forward_hook(lambda module, given, output: held.append(output))
    with torch.no_grad():
        model(torch.stack([preprocess(images[number]) for number in range(8)]))
    hook.remove()
    maps = held[0][:, 1:].transpose(1, 2).unflatten(2, (2, 5)).numpy()
    for pool in ("class", "mean", "max"):
        [own] = exemplar_regions(recording, "blocks.3", [7], 4, 0.8, size=40, pool=pool)
        number = {"class": held[0][:, 0].numpy(), "mean": maps.mean((2, 3)), "max": maps.max((2, 3))}[pool][:, 7]
        assert own.images.tolist() == np.argsort(-number)[:4].tolist()
        large = F.interpolate(torch.tensor(maps[own.images, 7])[:, None], (40, 40), mode="bilinear")[:, 0].numpy()
        threshold = recording.quantile("blocks.3", 0.8)[7]
        sure = np.abs(large - threshold) > 1e-4  # float32 of another batch
        assert ((own.masks == (large > threshold)) | ~sure).all() and own.masks.any()
        assert (maps[:, 7] > threshold).mean() == pytest.approx(0.2, abs=1 / 80 + 0.001)
