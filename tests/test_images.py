"""Pictures with more than 8 bits: what is black and what is white, and that somebody is told where it cannot be known."""

import warnings

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from neuronbench.probe.images import BadImage, ProbingSet

SCAN = np.linspace(0, 4095, 64).reshape(8, 8).round().astype(np.uint16)


def seen(images, index=0):
    """(8-bit pixels of the red channel, warnings) of one picture."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pixels = np.asarray(images[index])[..., 0]
    return pixels, [str(each.message) for each in said]


def scaled(pixels, low, high):
    return np.rint((pixels.astype(float) - low).clip(0, high - low) / (high - low) * 255)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("colours", [False, True])
def test_twelve_bits_in_a_file_of_sixteen(tmp_path, suffix, colours):
    cv2.imwrite(str(tmp_path / f"scan.{suffix}"), np.stack([SCAN] * 3, -1) if colours else SCAN)
    pixels, said = seen(ProbingSet.from_folder(tmp_path))
    assert np.abs(pixels - SCAN / 257).max() < 1, "taken for 16 bits"
    assert len(said) == 1 and f"image 'scan.{suffix}' has 16-bit pixels that range from 0 to 4095 only" in said[0]
    assert "if they hold 12 bits, give value_range=(0, 4095)" in said[0] and "value_range=(0, 65535) says that it is right" in said[0]
    pixels, said = seen(ProbingSet.from_folder(tmp_path, value_range=(0, 4095)))
    assert not said and (pixels == scaled(SCAN, 0, 4095)).all()
    pixels, said = seen(ProbingSet.from_folder(tmp_path, value_range=(0, 65535)))
    assert not said and np.abs(pixels - SCAN / 257).max() < 1


@pytest.mark.parametrize("wide", [SCAN, SCAN.astype(np.int16), Image.fromarray(SCAN), torch.from_numpy(SCAN.astype(np.int16))[None]])
def test_scans_in_memory(wide):
    pixels, said = seen(ProbingSet.from_images([wide]))
    assert pixels.max() == 16 and "range from 0 to 4095" in said[0]
    assert (seen(ProbingSet.from_dataset([(wide, 0)], value_range=(0, 4095)))[0] == scaled(SCAN, 0, 4095)).all()


def test_one_warning_for_a_set_and_none_where_the_range_is_full_or_there_are_eight_bits():
    dark = ProbingSet.from_images([SCAN, SCAN])
    assert len(seen(dark, 0)[1]) == 1 and not seen(dark, 1)[1]
    for picture in (SCAN * 16, np.zeros((4, 4), np.uint16), SCAN.astype(np.uint8) // 32, SCAN / 65535, SCAN > 4):
        assert not seen(ProbingSet.from_images([picture]))[1]


def test_a_window_is_cut_off_and_lets_floats_and_negative_numbers_in():
    counts = np.array([[-1000, -160, 40, 240, 3000]], np.int16)
    with pytest.raises(BadImage, match=r"pixels from -1000 to 3000 lie outside 0..65535: .* or value_range=\(black, white\)"):
        ProbingSet.from_images([counts])[0]
    assert seen(ProbingSet.from_images([counts], value_range=(-160, 240)))[0].tolist() == [[0, 0, 128, 255, 255]]
    assert seen(ProbingSet.from_images([counts.astype(float)], value_range=(-160, 240)))[0].tolist() == [[0, 0, 128, 255, 255]]
    with pytest.raises(BadImage, match="pixels from nan"):
        ProbingSet.from_images([np.array([[0.5, np.nan]])], value_range=(0, 1))[0]


def test_eight_bits_and_truth_values_keep_their_own_range():
    for picture in (np.array([[0, 128, 255]], np.uint8), Image.fromarray(np.array([[0, 128, 255]], np.uint8))):
        assert seen(ProbingSet.from_images([picture], value_range=(0, 4095)))[0].tolist() == [[0, 128, 255]]
    assert seen(ProbingSet.from_images([np.array([[False, True]])], value_range=(0, 4095)))[0].tolist() == [[0, 255]]


def test_a_turned_scan_with_transparency(tmp_path):
    pixels = np.full((2, 4, 4), 4095, np.uint16)
    pixels[:, 0, :3], pixels[:, 3, 3] = 0, 0
    pixels[:, :3, 3] = 65535
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    picture = ProbingSet.from_folder(tmp_path, value_range=(0, 8190))[0]
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 128, 128, 255], "white where it is transparent"


@pytest.mark.parametrize("given", [(4095, 0), (1, 1), 4095, (0, 1, 2), ("0", "9"), (0, float("inf")), (0, None), "09"])
def test_a_range_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match=r"value_range is .*: expected the pixel values of black and of white, e.g. \(0, 4095\)"):
        ProbingSet.from_images([SCAN], value_range=given)


def test_the_range_is_part_of_what_identifies_the_images(tmp_path):
    Image.fromarray(SCAN).save(tmp_path / "a.png")
    for make in (ProbingSet.from_folder, lambda _, **given: ProbingSet.from_images([SCAN], **given), lambda _, **given: ProbingSet.from_dataset([SCAN], **given)):
        keys = {make(tmp_path, value_range=given).fingerprint for given in (None, (0, 4095), (0, 1023))}
        assert len(keys) == 3 and make(tmp_path, value_range=[0, 4095]).fingerprint in keys
    one, two = (ProbingSet.from_images([SCAN + number]) for number in (0, 1))
    assert one.fingerprint != two.fingerprint, "they differ in bits that are not shown"
