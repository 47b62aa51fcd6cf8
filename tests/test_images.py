"""Pictures with more than 8 bits: what is black and what is white, and that somebody is told where it cannot be known."""

import struct
import warnings
import zlib

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


# what a file says of its own pixels


def tiff(path, pixels, *tags, planes=False, packed=False, kind="<u2"):
    """A TIFF file of one strip, or of one for each colour; `tags`: (number, value) beyond the usual."""
    height, width, count = pixels.shape
    strips = [zlib.compress(strip.astype(kind).tobytes()) if packed else strip.astype(kind).tobytes() for strip in (np.moveaxis(pixels, 2, 0) if planes else [pixels])]
    bits = 8 * np.dtype(kind).itemsize
    entries = {256: [width], 257: [height], 258: [bits] * count, 259: [8 if packed else 1], 262: [2 if count > 1 else 1], 277: [count], 278: [height], 284: [2 if planes else 1]}
    entries |= {279: [len(strip) for strip in strips], 273: [0] * len(strips)} | {number: [value] for number, value in tags}
    end = 14 + 12 * len(entries)
    places, place = {}, end
    for number, values in entries.items():
        places[number], place = (place, place + 4 * len(values)) if len(values) > 1 else (0, place)
    entries[273] = [place + sum(map(len, strips[:number])) for number in range(len(strips))]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for number, values in sorted(entries.items()):
        head += struct.pack("<HHII", number, 4, len(values), places[number] if len(values) > 1 else values[0])
    path.write_bytes(head + bytes(4) + b"".join(struct.pack("<I", value) for values in entries.values() if len(values) > 1 for value in values) + b"".join(strips))


def png(path, pixels, kind, transparent):
    """A PNG of 16 bits, grey (kind 0) or in colours (2), with one transparent colour."""

    def part(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"tRNS", np.array(transparent, ">u2").tobytes()) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b""))


def bad(images):
    with pytest.raises(BadImage) as raised:
        images[0]
    return raised.value.reason


COLOURS = np.stack([SCAN, SCAN.T, SCAN[::-1]], -1)


@pytest.mark.parametrize("white", [1000, 4095, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P5", b"P6"])
def test_the_white_of_a_pgm_or_ppm_file_and_a_range_in_its_own_numbers(tmp_path, kind, white):
    pixels = np.minimum(COLOURS if kind == b"P6" else SCAN, white)
    body = " ".join(map(str, pixels.ravel())).encode() if kind == b"P2" else pixels.astype(">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(b"%s 8 8 %d\n" % (kind, white) + body)
    red = pixels if pixels.ndim == 2 else pixels[..., 0]
    shown, said = seen(ProbingSet.from_folder(tmp_path))
    assert np.abs(shown - scaled(red, 0, white)).max() <= 1 and len(said) == (white == 65535), "only where 16 bits are said may they be fewer"
    for given in ((0, 4095), (300, 900)):
        shown, said = seen(ProbingSet.from_folder(tmp_path, value_range=given))
        assert np.abs(shown - scaled(red, *given)).max() <= 1 and not said
    if kind != b"P6":
        opened = ProbingSet.from_images([Image.open(tmp_path / "a.ppm")], value_range=(0, 4095))
        assert "Pillow scales the grey levels of a PPM file itself, so value_range cannot be applied to it: read it by ProbingSet.from_folder" in bad(opened)


LARGE = SCAN.repeat(8, 0).repeat(8, 1)  # JPEG 2000 takes no fewer pixels


@pytest.mark.parametrize("colours", [False, True])
def test_jpeg2000_of_sixteen_bits(tmp_path, colours):
    cv2.imwrite(str(tmp_path / "a.jp2"), LARGE[..., None].repeat(3, -1) if colours else LARGE, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    shown, said = seen(ProbingSet.from_folder(tmp_path))
    assert shown.max() <= 16 and "give value_range=(0, " in said[0]
    shown, said = seen(ProbingSet.from_folder(tmp_path, value_range=(0, 4095)))
    assert not said and np.abs(shown - scaled(LARGE, 0, 4095)).max() <= 1


def test_jpeg2000_of_twelve_bits_which_pillow_stretches(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jp2"), LARGE + np.uint16(32768 - 2048), [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])  # stored around the middle of 16 bits
    content = bytearray((tmp_path / "a.jp2").read_bytes())
    size = content.index(b"\xff\x4f\xff\x51") + 42
    assert content[size] == 15
    content[size] = 11  # now around the middle of 12
    (tmp_path / "a.jp2").write_bytes(content)
    for given in (None, (0, 4095), (1000, 3000)):
        shown, said = seen(ProbingSet.from_folder(tmp_path, value_range=given))
        assert not said and np.abs(shown - scaled(LARGE, *(given or (0, 4095)))).max() <= 1
    content[size] |= 128
    (tmp_path / "a.jp2").write_bytes(content)
    assert "its pixels are signed numbers, and what is black among them is not said" in bad(ProbingSet.from_folder(tmp_path))


def test_avif_of_ten_bits(tmp_path):
    ramp = np.linspace(0, 1023, 64).round().astype(np.uint16).repeat(64).reshape(64, 64, 1).repeat(3, 2)
    assert cv2.imwrite(str(tmp_path / "a.avif"), ramp, [cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_QUALITY, 100])
    shown, said = seen(ProbingSet.from_folder(tmp_path))
    assert np.abs(shown - scaled(ramp[..., 0], 0, 1023)).max() <= 2 and not said
    shown, said = seen(ProbingSet.from_folder(tmp_path, value_range=(0, 511)))
    assert np.abs(shown - scaled(ramp[..., 0], 0, 511)).max() <= 3 and not said


def test_a_tiff_whose_zero_is_white(tmp_path):
    tiff(tmp_path / "a.tif", SCAN[..., None], (262, 0))
    shown, said = seen(ProbingSet.from_folder(tmp_path))
    assert np.abs(shown - (255 - SCAN / 257)).max() < 1 and "from 0 to 4095 only, so it is bright: if they hold 12 bits" in said[0]
    for make in (lambda **given: ProbingSet.from_folder(tmp_path, **given), lambda **given: ProbingSet.from_images([Image.open(tmp_path / "a.tif")], **given)):
        shown, said = seen(make(value_range=(0, 4095)))
        assert (shown == np.rint((1 - SCAN / 4095) * 255)).all() and not said
    tiff(tmp_path / "b.tif", SCAN[..., None])
    negative, positive = (ProbingSet.from_images([Image.open(tmp_path / name)]) for name in ("a.tif", "b.tif"))
    assert negative.fingerprint != positive.fingerprint == ProbingSet.from_images([Image.fromarray(SCAN)]).fingerprint


def test_colours_that_are_stored_one_after_the_other(tmp_path):
    tiff(tmp_path / "a.tif", COLOURS, planes=True)
    sentence = "its colours of 16 bits are stored one after the other, which Pillow reads wrongly: save it with its colours together, or as PNG"
    for images in (ProbingSet.from_folder(tmp_path), ProbingSet.from_folder(tmp_path, value_range=(0, 4095)), ProbingSet.from_images([Image.open(tmp_path / "a.tif")])):
        assert bad(images) == sentence
    tiff(tmp_path / "a.tif", COLOURS, planes=True, packed=True)
    assert np.abs(seen(ProbingSet.from_folder(tmp_path))[0] - SCAN / 257).max() < 1
    tiff(tmp_path / "a.tif", COLOURS >> 4, planes=True, kind="u1")
    assert (seen(ProbingSet.from_folder(tmp_path))[0] == SCAN >> 4).all()


def test_what_two_readers_see_differently_is_refused_a_range(tmp_path):
    sentence = "its colours of more than 8 bits cannot be read with certainty, so value_range cannot be applied: save it as PNG"
    four = np.concatenate([COLOURS, SCAN.T[..., None]], -1)
    for tags in ([(338, 1)], [(262, 5)]):  # colours that are multiplied by their transparency; cyan, magenta, yellow and black
        tiff(tmp_path / "a.tif", four, *tags)
        assert bad(ProbingSet.from_folder(tmp_path, value_range=(0, 4095))) == sentence
    tiff(tmp_path / "a.tif", four, (338, 0))  # a fourth number that means nothing
    assert (seen(ProbingSet.from_folder(tmp_path, value_range=(0, 4095)))[0] == scaled(SCAN, 0, 4095)).all()
    for orientation, turned in ((1, SCAN), (2, SCAN[:, ::-1]), (3, SCAN[::-1, ::-1])):
        tiff(tmp_path / "a.tif", COLOURS, (274, orientation))
        assert (seen(ProbingSet.from_folder(tmp_path, value_range=(0, 4095)))[0] == scaled(turned, 0, 4095)).all()


def test_dark_colours_with_transparency_are_told_of(tmp_path):
    opaque = np.full((8, 8, 1), 65535, np.uint16)
    opaque[0] = 0
    cv2.imwrite(str(tmp_path / "a.png"), np.concatenate([COLOURS, opaque], -1))
    shown, said = seen(ProbingSet.from_folder(tmp_path))
    assert (shown[0] == 255).all() and "give value_range=(0, " in said[0]


def test_one_transparent_colour_of_sixteen_bits(tmp_path):
    png(tmp_path / "a.png", SCAN * 16, 0, [SCAN[2, 3] * 16])
    shown, _ = seen(ProbingSet.from_folder(tmp_path))
    assert shown[2, 3] == 255 and shown[2, 2] == np.rint(SCAN[2, 2] * 16 / 257)
    png(tmp_path / "a.png", COLOURS * 16, 2, [4000, 300, 20])
    for given in (None, (0, 4095)):
        assert "one of its colours of 16 bits is transparent" in bad(ProbingSet.from_folder(tmp_path, value_range=given))
    assert "one of its colours of 16 bits is transparent" in bad(ProbingSet.from_images([Image.open(tmp_path / "a.png")]))


def test_opened_colours_to_which_no_range_is_applied_are_told_of_once(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), COLOURS)
    images = ProbingSet.from_images([Image.open(tmp_path / "a.png")] * 2, value_range=(0, 4095))
    said = seen(images)[1]
    assert len(said) == 1 and not seen(images, 1)[1]
    assert "image '0' is a PNG file of which Pillow gave 8 bits for each colour, so value_range is not applied to it" in said[0]
    tiff(tmp_path / "b.tif", COLOURS >> 4, kind="u1")
    assert not seen(ProbingSet.from_images([Image.open(tmp_path / "b.tif")], value_range=(0, 4095)))[1]


def test_turned_scans_have_keys_of_their_own():
    keys, pictures = set(), set()
    for orientation in range(1, 9):
        scan = Image.fromarray(SCAN * 16)
        scan.getexif()[0x0112] = orientation
        images = ProbingSet.from_images([scan])
        keys.add(images.fingerprint)
        pictures.add(np.asarray(images[0]).tobytes())
    assert len(keys) == len(pictures) == 8
