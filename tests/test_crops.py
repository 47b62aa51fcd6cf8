"""Attention crops: the published procedure on drawn maps, and every map that could upset it."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neuronbench.probe.crops import CropSettings, attention_crops, crop_steps, scaled_map


def spots(*places, size=20):
    """A map with rectangles (top, bottom, left, right, value) on zeros."""
    result = np.zeros((size, size), np.float32)
    for top, bottom, left, right, value in places:
        result[top:bottom, left:right] = value
    return result


def picture(width=100, height=100, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


NEAREST = CropSettings(upsampling="nearest")


def test_boxes_are_the_regions_largest_first():
    steps = crop_steps(spots((1, 3, 1, 3, 5), (8, 18, 2, 6, 6), (2, 5, 10, 15, 7)), (100, 100), NEAREST)
    assert steps.boxes == steps.all_boxes == [(10, 40, 30, 90), (50, 10, 75, 25), (5, 5, 15, 15)]
    assert steps.mask.sum() == 20 * 50 + 25 * 15 + 10 * 10


@given(seed=st.integers(0, 2**32), width=st.integers(5, 80), height=st.integers(5, 80))
def test_the_threshold_is_otsus_and_boxes_bound_the_mask(seed, width, height):
    rng = np.random.default_rng(seed)
    activation_map = rng.normal(size=(6, 7)) * 10.0 ** rng.integers(-3, 4)
    steps = crop_steps(activation_map, (width, height), CropSettings(max_crops=1000, max_iou=1, max_cover=1))
    levels = np.arange(256)
    counts = np.bincount(steps.scaled.ravel(), minlength=256)

    def between(level):  # the variance between the classes, which Otsu's threshold maximises
        low, high = counts[: level + 1], counts[level + 1 :]
        if not low.sum() or not high.sum():
            return 0
        apart = (low @ levels[: level + 1]) / low.sum() - (high @ levels[level + 1 :]) / high.sum()
        return low.sum() * high.sum() * apart**2

    assert between(int(steps.threshold)) == pytest.approx(max(map(between, range(255))), rel=1e-6)
    covered = np.zeros_like(steps.mask)
    for left, top, right, bottom in steps.all_boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        region = steps.mask[top:bottom, left:right]
        assert region[0].any() and region[-1].any() and region[:, 0].any() and region[:, -1].any()
        covered[top:bottom, left:right] = True
    assert (covered | ~steps.mask).all()
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in steps.all_boxes]
    assert areas == sorted(areas, reverse=True)


def test_at_most_four_and_none_that_shows_the_same_or_everything():
    many = spots(*[(3 * row, 3 * row + 2, 3 * column, 3 * column + 2, 1) for row in range(3) for column in range(2)])
    assert len(crop_steps(many, (100, 100), NEAREST).boxes) == 4 and len(crop_steps(many, (100, 100), NEAREST).all_boxes) == 6
    frame = spots((0, 19, 0, 20, 1))  # a box that covers 95 % of the image
    assert crop_steps(frame, (100, 100), NEAREST).boxes == []
    assert crop_steps(frame, (100, 100), CropSettings(max_cover=0.96, upsampling="nearest")).boxes == [(0, 0, 100, 95)]


def test_a_box_inside_another_counts_by_its_iou():
    ring = spots((0, 14, 0, 14, 1), (1, 20, 1, 20, 0), (3, 14, 3, 14, 1))  # an L along two edges, and a square within its box
    boxes = crop_steps(ring, (20, 20), NEAREST).all_boxes
    assert boxes == [(0, 0, 14, 14), (3, 3, 14, 14)]
    assert crop_steps(ring, (20, 20), NEAREST).boxes == boxes[:1]  # their IoU is 121 / 196
    assert crop_steps(ring, (20, 20), CropSettings(max_iou=121 / 196, upsampling="nearest")).boxes == boxes


def test_a_threshold_of_ones_own_and_a_least_area():
    two = spots((0, 10, 0, 10, 1.0), (15, 17, 15, 17, 0.4))
    assert len(crop_steps(two, (20, 20), CropSettings(threshold=50, upsampling="nearest")).boxes) == 2
    assert len(crop_steps(two, (20, 20), CropSettings(threshold=102, upsampling="nearest")).boxes) == 1  # 0.4 of the range is 102
    assert len(crop_steps(two, (20, 20), CropSettings(threshold=50, min_area=0.02, upsampling="nearest")).boxes) == 1
    assert crop_steps(two, (20, 20), CropSettings(threshold=255)).boxes == []


def test_only_the_maps_own_range_counts():
    rng = np.random.default_rng(0)
    activation_map = rng.random((7, 7))
    expected = crop_steps(activation_map, (50, 40))
    for other in (activation_map * 300 - 1000, activation_map / 1e4, -5 + activation_map):
        steps = crop_steps(other, (50, 40))
        assert np.abs(steps.scaled.astype(int) - expected.scaled).max() <= 1
    assert expected.scaled.shape == (40, 50) and len(expected.boxes) == 4


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0, np.nan, np.inf, -np.inf])
def test_a_map_without_a_range_has_no_crops(value):
    steps = crop_steps(np.full((7, 7), value), (30, 30))
    assert not steps.scaled.any() and not steps.mask.any() and steps.boxes == [] and attention_crops(picture(), np.full((7, 7), value)) == []


def test_nan_counts_as_the_lowest():
    activation_map = spots((5, 10, 5, 10, 2.0))
    holed = activation_map.copy()
    holed[0, :], holed[19, 0] = np.nan, -np.inf
    assert crop_steps(holed, (40, 40), NEAREST).boxes == crop_steps(activation_map, (40, 40), NEAREST).boxes == [(10, 10, 20, 20)]
    holed[7, 7] = np.inf  # as high as the highest that is finite
    assert crop_steps(holed, (40, 40), NEAREST).boxes == [(10, 10, 20, 20)]


def test_all_negative_maps_are_cut_like_others():
    below = spots((5, 10, 5, 10, 2.0)) - 7
    assert crop_steps(below, (40, 40), NEAREST).boxes == [(10, 10, 20, 20)]


def test_images_of_one_pixel_and_maps_of_one_position():
    assert attention_crops(Image.new("RGB", (1, 1), "red"), spots((5, 10, 5, 10, 2.0))) == []
    assert attention_crops(picture(), np.array([[3.0]])) == []
    assert attention_crops(picture(1, 60), spots((5, 10, 0, 20, 2.0)))[0].image.size == (1, 60)


def test_crops_are_cut_out_and_enlarged():
    image = picture(90, 60)
    [crop] = attention_crops(image, torch.tensor(spots((5, 10, 5, 10, 2.0))), upsampling="nearest")
    left, top, right, bottom = crop.box
    assert (left, top, right - left, bottom - top) == (23, 15, 22, 15) and crop.image.size == (90, 60)
    small = np.asarray(image.crop(crop.box))
    assert np.abs(cv2.resize(small, (90, 60), interpolation=cv2.INTER_LINEAR).astype(int) - np.asarray(crop.image)).mean() < 16
    assert len(attention_crops(image, spots((0, 3, 0, 3, 1), (9, 12, 9, 12, 1)), max_crops=1)) == 1


@pytest.mark.parametrize("wrong", [np.zeros((3, 4, 5)), np.zeros(7), np.zeros((0, 3))])
def test_what_is_no_map_is_refused(wrong):
    with pytest.raises(ValueError, match=r"an activation map has shape \(h, w\), not"):
        scaled_map(wrong, (10, 10))


@pytest.mark.parametrize(("settings", "message"), [
    ({"max_iou": -0.1}, "max_iou is -0.1: expected a number between 0 and 1"), ({"threshold": 256}, "between 0 and 255"),
    ({"min_area": 2}, "min_area is 2"), ({"max_cover": 1.1}, "max_cover is 1.1"), ({"max_crops": -1}, "max_crops is -1"),
    ({"upsampling": "bilinaer"}, "no upsampling 'bilinaer'; did you mean 'bilinear'"), ({"max_iou": float("nan")}, "max_iou is nan")])
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises((ValueError, KeyError), match=message):
        CropSettings(**settings)
