"""What part of an image a target sees, and that attention crops are cut from it."""
import numpy as np
import pytest
import torch
from tiny_recording import tiny_recording
from torchvision.transforms import v2

from neuronbench.describe.augmentation import augment
from neuronbench.probe.seen import seen_box

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


def test_seen_box_is_the_whole_image_where_preprocessing_tells_nothing():
    assert seen_box(lambda image: np.zeros((3, 8, 8)), (50, 40)) == (0, 0, 50, 40)


def test_crops_are_cut_from_what_the_target_saw():
    """The tiny target sees the middle square of its images, and its maps cover just that."""
    recording = tiny_recording()
    [found] = augment(recording, "maps", [0])
    for position, picture in found.pictures.items():
        expected = recording.images[position].crop((10, 0, 50, 40)).resize((375, 375))
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
