"""What part of an image a target sees, and that attention crops are cut from it."""
import itertools
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageOps
from tiny_recording import tiny_recording
from torchvision.transforms import v2

from neuronbench.describe.describe_and_dissect.augmentation import augment
from neuronbench.describe.network_dissection import NetworkDissection
from neuronbench.probe.annotations import annotations_from_arrays
from neuronbench.probe.images import ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.seen import Seen, seen_box
from neuronbench.probe.target import Target
from neuronbench.show.card import card


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (64, 200)])
@pytest.mark.parametrize("resize", [v2.Resize(256), v2.Resize((224, 224)), v2.CenterCrop(64)])
def test_seen_box_finds_what_resizing_and_cropping_keep(size, resize):
    cropped = v2.Compose([resize, v2.CenterCrop(min(224, 64 if isinstance(resize, v2.CenterCrop) else 224))])
    preprocess = v2.Compose([cropped, v2.PILToTensor(), lambda x: (x / 255 - 0.45) / 0.22])
    left, top, right, bottom = seen_box(preprocess, size)
    width, height = size
    if isinstance(resize, v2.CenterCrop):
        expected = ((width - 64) / 2, (height - 64) / 2, (width + 64) / 2, (height + 64) / 2)
    elif resize.size == [224, 224]:
        expected = (0, 0, width, height)
    else:
        half = min(size) * 224 / 256 / 2
        expected = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    assert np.abs(np.subtract((left, top, right, bottom), expected)).max() <= 2


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_seen_box_is_the_same_for_tensors_of_any_kind(device, dtype):
    middle = v2.Compose([v2.Resize(64), v2.CenterCrop(56), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])
    box = seen_box(lambda image: middle(image).to(device, dtype).requires_grad_(), (100, 75))
    assert np.abs(np.subtract(box, seen_box(middle, (100, 75)))).max() <= 1


def scaled(output):
    return (output - output.mean()) / (output.std() + 1e-7)


def stretched(output):
    return (output - output.min()) / (output.max() - output.min())


SIZES = [(64, 32), (32, 64), (500, 375), (33, 41)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fill", [0, 255, (124, 116, 104)])
def test_seen_box_lies_beyond_the_image_where_preprocessing_pads(size, fill):
    pad = v2.Compose([v2.Pad((5, 0, 16, 9), fill=fill), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.4] * 3, [0.2] * 3)])
    assert seen_box(pad, size) == (-5, 0, size[0] + 16, size[1] + 9)


@pytest.mark.parametrize("size", SIZES)
def test_seen_box_of_a_letterbox_is_a_square_around_the_image(size):
    preprocess = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(size=64, resize_mode="longest", fill_color=0), is_train=False)
    width, height = size
    down, across = (max(size) - height) // 2, (max(size) - width) // 2
    assert np.abs(np.subtract(seen_box(preprocess, size), (-across, -down, width + across, height + down))).max() <= max(size) / 64 + 1


@pytest.mark.parametrize("own", [scaled, stretched])
@pytest.mark.parametrize("size", SIZES)
def test_seen_box_is_found_where_each_image_is_scaled_by_itself(size, own):
    part = (size[0] * 3 // 4, size[1] // 2)
    top, left = (size[1] - part[1]) // 4, (size[0] - part[0]) // 2
    cut = v2.Compose([lambda image: v2.functional.crop(image, top, left, part[1], part[0]), v2.PILToTensor(), v2.ToDtype(torch.float32), own])
    assert seen_box(cut, size) == (left, top, left + part[0], top + part[1])
    assert seen_box(v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32), own]), size) == (0, 0, *size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [lambda x: 255 - x, lambda x: (x / 255) ** 2.2, lambda x: x.half(), lambda x: x.float().log1p()])
def test_seen_box_does_not_depend_on_how_values_are_scaled(size, scale):
    kept = min(size) // 2
    cut = v2.Compose([v2.CenterCrop(kept), v2.PILToTensor(), scale])
    left, top = (round((side - kept) / 2) for side in size)
    assert np.abs(np.subtract(seen_box(cut, size), (left, top, left + kept, top + kept))).max() <= 1


def test_seen_box_of_a_cut_whose_contrast_is_stretched():
    """A ramp within the cut is stretched to all of black to white, and looks like one over the whole image."""
    assert seen_box(v2.Compose([v2.CenterCrop(20), ImageOps.autocontrast, v2.PILToTensor()]), (64, 32)) == (22, 6, 42, 26)


@pytest.mark.parametrize(("side", "resample"), [*itertools.product((1, 2, 7, 64, 100), (2, 3)), (7, 0), (64, 0), (100, 0)])
def test_seen_box_of_a_whole_image_is_the_whole_image_at_any_size(side, resample):
    small = v2.Compose([lambda image: image.resize((side, side), resample), v2.PILToTensor()])
    assert np.abs(np.subtract(seen_box(small, (500, 375)), (0, 0, 500, 375))).max() <= 375 / side / 2


ELSEWHERE = {
    "flip": lambda output: output.flip(2),
    "flip down": lambda output: output.flip(1),
    "transpose": lambda output: output.transpose(1, 2),
    "quarter turn": lambda output: output.rot90(1, (1, 2)),
    "mirrored border": v2.Pad(8, padding_mode="reflect"),
    "turn": v2.RandomRotation((10, 10)),
    "turn without border": v2.Compose([v2.RandomRotation((10, 10)), v2.CenterCrop(16)]),
    "random crop": v2.RandomResizedCrop(32),
    "random shift": v2.RandomCrop(24),
    "padded, then scaled by itself": v2.Compose([v2.Pad(8), scaled]),
    "scaled by itself, then padded": v2.Compose([scaled, v2.Pad(8)]),
    "frequencies": lambda output: torch.fft.fft2(output).abs(),
    "nothing": torch.zeros_like,
    "not a number": lambda output: output * torch.nan,
    "noise": torch.rand_like,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ELSEWHERE)
def test_no_box_where_preprocessing_shows_none(how, size):
    torch.manual_seed(0)
    preprocess = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), ELSEWHERE[how]])
    with pytest.raises(ValueError, match="^preprocess does not show where its output lies in an image of .* pixels: expected that it resizes, crops, pads") as raised:
        seen_box(preprocess, size)
    assert "\n" not in str(raised.value)


def test_pictures_and_masks_are_refused_where_no_box_can_be_told():
    """A map laid over a picture that preprocessing flips would point at the wrong half of it."""
    images = ProbingSet.from_images([Image.effect_noise((24, 16), 90) for _ in range(3)])
    target = Target(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1)), ["0"], lambda image: v2.functional.to_image(image).flip(2) / 255, device="cpu")
    recording = record(target, images, progress=False)
    notes = annotations_from_arrays(images, {"object": np.ones((3, 1, 16, 24), bool)}, {"object": ["boat"]})
    for look in (lambda: card(recording, images, "0", 0), lambda: augment(recording, "0", [0]), lambda: NetworkDissection(notes, share=0.1).explain(recording, images)):
        with pytest.raises(ValueError, match="^preprocess does not show where its output lies in an image of 24 x 16 pixels"):
            look()


def test_what_lies_beyond_the_image_is_black_and_the_image_is_in_its_place():
    image = Image.effect_noise((24, 16), 90).convert("RGB")
    pad = v2.Compose([v2.Pad((0, 4), fill=200), v2.PILToTensor()])
    seen = np.asarray(Seen([image], SimpleNamespace(preprocess=pad))[0])
    assert seen.shape == (24, 24, 3) and not seen[:4].any() and not seen[20:].any() and (seen[4:20] == np.asarray(image)).all()


def test_crops_are_cut_from_what_the_target_saw():
    """The tiny target sees the middle square of its images, and its maps cover just that."""
    recording = tiny_recording()
    [found] = augment(recording, "maps", [0])
    for position, picture in found.pictures.items():
        expected = recording.images[position].crop((10, 0, 50, 40)).resize((375, 375))
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
