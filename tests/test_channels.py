"""Networks of one, four, six or thirteen channels: arrays (H, W, C) reach the network as they are, and are shown as `display` says."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from neuronbench.describe.describe_and_dissect.augmentation import augment
from neuronbench.evaluate.ablation import ablated
from neuronbench.probe.activations import LayerActivations
from neuronbench.probe.exemplars import exemplars
from neuronbench.probe.images import BadImage, ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.regions import exemplar_pictures
from neuronbench.probe.seen import Seen
from neuronbench.probe.target import Target
from neuronbench.widgets.browser import browse
from neuronbench.show.card import card


def scene(number, count=6, size=(12, 16), kind=np.uint8):
    """(H, W, C): noise in the lower half of its range."""
    return np.random.default_rng(number).integers(0, 120, (*size, count)).astype(kind)


def scenes(count=6, display=(3, 2, 1), kind=np.uint8, **given):
    return ProbingSet.from_images([scene(number, count, kind=kind) for number in range(5)], display=display, **given)


def to_tensor(array):
    return torch.from_numpy(np.array(array).astype(np.float32)).movedim(-1, 0) / 255


def network(count=6, preprocess=to_tensor):
    torch.manual_seed(0)
    return Target(nn.Sequential(nn.Conv2d(count, 4, 3, padding=1), nn.ReLU()), ["0"], preprocess, device="cpu")


def expected(target, arrays):
    with torch.no_grad():
        return target.model[0](torch.stack([to_tensor(array) for array in arrays])).numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 13])
def test_the_network_gets_the_arrays_and_people_the_picture(count):
    images, target = scenes(count, display=0), network(count)
    recording, maps = record(target, images, progress=False), expected(target, [scene(number, count) for number in range(5)])
    np.testing.assert_allclose(recording["0"].values, maps.mean((2, 3)), atol=1e-5)
    best = exemplars(recording, "0", k=2)
    np.testing.assert_allclose(best.maps[1, 0], maps[best.images[1, 0], 1], atol=1e-5)
    assert images[2].mode == "RGB" and (np.asarray(images[2]) == scene(2, count)[..., :1]).all()


def test_grey_arrays_of_two_axes_are_one_channel_where_that_is_said():
    arrays = [scene(number, 1)[..., 0] for number in range(5)]
    target = network(1)
    recording = record(target, ProbingSet.from_images(arrays, display=0), progress=False)
    np.testing.assert_allclose(recording["0"].values, expected(target, [array[..., None] for array in arrays]).mean((2, 3)), atol=1e-5)
    colours = network(3)
    recording = record(colours, ProbingSet.from_images(arrays), progress=False)
    np.testing.assert_allclose(recording["0"].values, expected(colours, [np.stack([array] * 3, -1) for array in arrays]).mean((2, 3)), atol=1e-5)


def test_tensors_and_datasets_with_labels():
    images = ProbingSet.from_dataset([(torch.from_numpy(scene(number)).movedim(-1, 0), number % 2) for number in range(5)], display=(3, 2, 1))
    assert images.labels.tolist() == [0, 1, 0, 1, 0] and (images.input(3) == scene(3)).all()
    assert (np.asarray(images[3]) == scene(3)[..., [3, 2, 1]]).all()


def test_display_by_channels_by_a_callable_and_with_a_range():
    wide = scenes(kind=np.uint16, value_range=(0, 119))
    assert (np.asarray(wide[0]) == np.rint(scene(0)[..., [3, 2, 1]] / 119 * 255)).all()
    assert wide.input(0).dtype == np.uint16 and (wide.input(0) == scene(0)).all(), "the network's array is not scaled"
    with pytest.warns(UserWarning, match="image '0' has 16-bit pixels that range from .* so it is dark"):
        scenes(kind=np.uint16)[0]
    halves = scenes(display=lambda array: array[..., 0] / 240)
    assert (np.asarray(halves[0])[..., 1] == np.rint(scene(0)[..., 0] / 240 * 255)).all()
    pictures = scenes(display=lambda array: Image.fromarray(array[..., 5]))
    assert (np.asarray(pictures[0])[..., 2] == scene(0)[..., 5]).all()


def test_recording_needs_no_display_and_a_picture_does():
    images = scenes(display=None)
    recording = record(network(), images, progress=False)
    assert recording["0"].shape == (5, 4) and exemplars(recording, "0", k=1).maps.shape == (4, 1, 12, 16)
    sentence = r"^image '\d': it has 6 channels, and how they are shown is not said: give ProbingSet display=\(0, 1, 2\), the channels for red, green and blue, or a callable$"
    for look in (lambda: images[0], lambda: card(recording, images, "0", 1), lambda: exemplar_pictures(recording, "0", [0], 1, 32)):
        with pytest.raises(BadImage, match=sentence):
            look()
    with pytest.raises(BadImage, match="has 4 channels, .* or Image.fromarray\\(array\\) if the fourth is transparency"):
        scenes(4, display=None)[0]


def test_a_recording_is_found_again_with_another_display_and_shown_by_it(tmp_path):
    target = network()
    first = record(target, scenes(display=None), store=tmp_path / "a.zarr", progress=False)
    shown = [scenes(display=display) for display in ((3, 2, 1), 0, picture_of_five)]
    again = [record(target, images, store=tmp_path / "a.zarr", progress=False) for images in shown]
    assert {recording.store.arrays.key for recording in again} == {first.store.arrays.key}, "one recording"
    assert len({first.fingerprint, *(recording.fingerprint for recording in again)}) == 4, "and what is made of pictures has another key"
    assert len({images.fingerprint for images in shown}) == 3 and card(first, shown[0], "0", 2)


def picture_of_five(array):
    return array[..., 5]


def test_card_browser_and_crops_show_the_part_that_the_network_saw():
    middle = v2.Compose([to_tensor, v2.CenterCrop(8)])
    images = scenes()
    target = network(preprocess=middle)
    recording = record(target, images, progress=False)
    assert Seen(images, target)[1].size == (8, 8)
    assert (np.asarray(Seen(images, target)[1]) == np.asarray(images[1].crop((4, 2, 12, 10)))).all()
    assert card(recording, images, "0", 0) and browse(recording, images)._picture(0)[:2] == b"\xff\xd8"
    best, pictures = exemplar_pictures(recording, "0", [0, 1], 2, 8)
    assert best.maps.shape == (2, 2, 8, 8)
    for position, picture in pictures.items():
        assert (np.asarray(picture) == np.asarray(images[position].crop((4, 2, 12, 10)))).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
def test_the_part_seen_is_found_for_every_data_type(kind):
    def clipped(array):
        return v2.functional.center_crop((torch.from_numpy(np.asarray(array).astype(np.float32)).movedim(-1, 0) / 3000).clip(0, 1), [6, 6])

    target = network(preprocess=clipped)
    assert Seen(scenes(kind=kind, value_range=(0, 255) if kind != np.uint8 else None), target)[0].size == (6, 6)


def test_a_network_of_three_channels_given_six_and_the_other_way_round():
    sentence = "preprocess gives images of 6 channels, and the network takes 3: expected images of 3 channels, or a preprocess that makes them"
    with pytest.raises(ValueError, match=sentence):
        record(network(3), scenes(), progress=False)
    pictures = ProbingSet.from_images([Image.new("RGB", (16, 12))])
    with pytest.raises(ValueError, match="preprocess gives images of 3 channels, and the network takes 6"):
        record(network(6), pictures, progress=False)
    with pytest.raises(ValueError, match="images of 3 channels, and the network takes 6"):
        LayerActivations(network(6), "0")([Image.new("RGB", (16, 12))])
    deeper = Target(nn.Sequential(nn.Conv2d(6, 4, 3), nn.Conv2d(5, 2, 3)), ["1"], to_tensor, device="cpu")
    with pytest.raises(RuntimeError, match="to have 5 channels, but got 4"):
        record(deeper, scenes(), progress=False)  # a fault of the network's own is not said to be one of the images


@pytest.mark.parametrize("preprocess", [ImageClassification(crop_size=8), v2.Compose([v2.ToImage(), v2.Normalize([0.5] * 3, [0.5] * 3)]),
                                        lambda image: to_tensor(image.convert("RGB"))])
def test_a_preprocess_for_pictures_says_so(preprocess):
    with pytest.raises(ValueError, match=r"preprocess does not take image '0', an array of shape \(12, 16, 6\), and says .*; expected a preprocess for arrays"):
        record(network(3, preprocess), scenes(), progress=False)


def test_crops_of_a_picture_are_not_given_to_a_network_for_arrays():
    """A network of three channels that are not red, green and blue would take them without a word."""
    recording = record(network(3), scenes(3, display=(2, 1, 0)), progress=False)
    with pytest.raises(ValueError, match="the network takes arrays of 3 channels, and crops are cut from pictures"):
        augment(recording, "0", [0], k=2)


def test_pixels_that_cannot_be_shown_are_recorded():
    arrays = [scene(number).astype(np.float32) * 30 for number in range(3)]
    images = ProbingSet.from_images(arrays, display=0)
    assert record(network(), images, progress=False)["0"].shape == (3, 4)
    with pytest.raises(BadImage, match=r"image '0': pixels from .* lie outside 0..1.0: .* value_range=\(black, white\)"):
        images[0]
    with pytest.raises(BadImage, match=r"image '0': display asks for channel 7, and it has 6 \(0..5\)"):
        scenes(display=(7, 1, 0))[0]
    with pytest.raises(BadImage, match=r"display makes a picture of \(6, 16\) pixels of an array of shape \(12, 16, 6\)"):
        scenes(display=lambda array: array[0])[0]


@pytest.mark.parametrize("display", [(0, 1), (), (0, 1, 2, 3), -1, (0, 1, -2), "rgb", 0.5, {0, 1, 2}])
def test_a_display_that_is_none_is_refused(display):
    with pytest.raises(ValueError, match="display is .*: expected a channel, such as 0, three for red, green and blue, such as"):
        scenes(display=display)


def test_a_range_beside_a_callable_would_be_ignored():
    with pytest.raises(ValueError, match="display makes the picture itself, so value_range would be ignored"):
        scenes(display=picture_of_five, value_range=(0, 10))


def test_channels_in_front_are_no_image():
    images = ProbingSet.from_images([np.zeros((6, 40, 40), np.uint8)])
    with pytest.raises(BadImage, match=r"shape \(6, 40, 40\) is not an image: expected \(H, W\), \(H, W, 3\), or \(H, W, C\) and display="):
        images[0]


@pytest.mark.parametrize("alone", [np.zeros((20, 16, 6)), np.zeros((64, 64, 13)), torch.zeros(6, 20, 16)])
def test_one_array_of_channels_is_not_several_images(alone):
    with pytest.raises(TypeError, match="was given: expected several images, e.g. a list of them"):
        ProbingSet.from_images(alone)


def test_several_arrays_in_one_and_small_grey_ones():
    assert ProbingSet.from_images(np.zeros((3, 20, 16, 6))).input(0).shape == (20, 16, 6)
    assert len(ProbingSet.from_images(np.zeros((30, 8, 8)))) == 30


def test_preprocessing_in_place_changes_nothing_of_the_users():
    arrays = [scene(number).astype(np.float32) for number in range(3)]
    images = ProbingSet.from_images(arrays, display=0)
    target = network(preprocess=lambda array: torch.from_numpy(array).movedim(-1, 0).div_(255))
    first, key = record(target, images, progress=False)["0"].values, images.fingerprint
    np.testing.assert_array_equal(record(target, images, progress=False)["0"].values, first)
    assert images.fingerprint == key and (arrays[0] == scene(0)).all()


def test_a_set_of_channels_goes_to_other_processes():
    images = pickle.loads(pickle.dumps(scenes()))
    assert (np.asarray(images[0]) == scene(0)[..., [3, 2, 1]]).all() and Seen(images, network())[0].size == (16, 12)


def test_what_a_file_says_of_itself_is_not_taken_for_ours(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    for name in ("channels", "range seen"):
        said.add_text(name, "(6, 'uint8')")
    Image.new("RGB", (16, 12), (3, 2, 1)).save(tmp_path / "a.png", pnginfo=said)
    images = ProbingSet.from_folder(tmp_path)
    assert Seen(images, network(3))[0].getpixel((0, 0)) == (3, 2, 1)


@pytest.mark.parametrize("count", [1, 6])
def test_units_of_a_network_of_other_channels_are_ablated(count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(count, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    target, batch = Target(model, ["0"], to_tensor, device="cpu"), torch.stack([to_tensor(scene(number, count)) for number in range(5)])
    with torch.no_grad():
        hidden = model[0](batch)
        hidden[:, [1, 3]] = 0
        directly = model[1:](hidden)
        with ablated(target, "0", [1, 3]):
            assert torch.allclose(model(batch), directly, atol=1e-6)
