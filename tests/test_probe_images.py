"""Probing sets: what is read from folders, datasets and lists, and how bad files are reported."""

import io
import os
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset
from torchvision.datasets import MNIST, FakeData, ImageFolder, OxfordIIITPet

from neuronbench.probe.images import BadImage, ProbingSet, as_rgb, to_image


def picture(seed=0, size=(20, 14)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def reason(images, index=0):
    with pytest.raises(BadImage) as raised:
        images[index]
    assert raised.value.id == images.ids[index]
    return raised.value.reason


def one_file(folder, name, content):
    (folder / name).write_bytes(content)
    return ProbingSet.from_folder(folder)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def bomb(width=60_000, height=60_000):
    """A PNG of a few hundred bytes whose header promises billions of pixels."""

    def part(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(1000))) + part(b"IEND", b"")


# folders


def test_class_folders_give_labels_and_sorted_relative_ids(tmp_path):
    for name in ("dog/b.png", "dog/a.png", "cat/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(tmp_path / name)
    images = ProbingSet.from_folder(tmp_path)
    assert images.ids == ["cat/deep/c.png", "dog/a.png", "dog/b.png"]
    assert images.classes == ["cat", "dog"] and images.labels.tolist() == [0, 1, 1] and images.labels.dtype == np.int64
    assert len(images) == 3 and images[0].mode == "RGB"


def test_order_and_labels_are_those_of_torchvision(tmp_path):
    for name in ("b c/1.jpg", "b/2.jpg", "b/10.jpg", "a-1/x.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / name)
    expected = ImageFolder(tmp_path)
    images = ProbingSet.from_folder(tmp_path)
    assert [str(tmp_path / id) for id in images.ids] == [path for path, _ in expected.samples]
    assert images.classes == expected.classes and images.labels.tolist() == expected.targets


def test_flat_folder_has_no_labels_and_leaves_out_other_files(tmp_path):
    picture().save(tmp_path / "b.webp")
    picture().save(tmp_path / "a.tiff")
    (tmp_path / "notes.csv").write_text("a,b")
    (tmp_path / "._a.jpg").write_bytes(b"what a Mac leaves behind")
    images = ProbingSet.from_folder(str(tmp_path))
    assert images.ids == ["a.tiff", "b.webp"] and images.labels is None and images.classes is None


def test_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match="no images in .*expected files such as .jpg"):
        ProbingSet.from_folder(tmp_path)


def test_missing_folder_and_file_for_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        ProbingSet.from_folder(tmp_path / "nowhere")
    picture().save(tmp_path / "a.png")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        ProbingSet.from_folder(tmp_path / "a.png")


def test_index_beyond_the_end_names_the_range(tmp_path):
    picture().save(tmp_path / "a.png")
    images = ProbingSet.from_folder(tmp_path)
    with pytest.raises(IndexError, match="no image 1: the probing set has 1"):
        images[1]
    assert images[-1].size == images[0].size and len(list(images)) == 1


def place(folder, *names):
    """Drawn image files below `folder`."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)


def test_hidden_folders_are_passed_over_and_a_hidden_top_is_not(tmp_path):
    top = tmp_path / ".cache"
    place(top, "cat/a.png", "dog/b.png", ".ipynb_checkpoints/a.png", "cat/.thumbnails/a.png", "cat/.thumbnails/deep/b.png")
    images = ProbingSet.from_folder(top)
    assert images.ids == ["cat/a.png", "dog/b.png"] and images.classes == ["cat", "dog"]


def test_links_that_lead_back_are_walked_once_and_named(tmp_path):
    place(tmp_path, "c/a.png", "d/b.png")
    for number, target in enumerate(("..", "../c", "../d", "/", str(tmp_path.parent))):
        (tmp_path / f"c/up{number}").symlink_to(target)
    (tmp_path / "a link").symlink_to("d")  # would come first in order: the folder's own name is kept
    with pytest.warns(UserWarning, match="'a link' is left out: it leads back to .*/d.*; and 3 more"):
        images = ProbingSet.from_folder(tmp_path)
    assert images.ids == ["c/a.png", "d/b.png"] and images.classes == ["c", "d"]


def test_links_between_two_folders_and_to_themselves_end(tmp_path):
    place(tmp_path, "here/a/1.png", "there/b/2.png")
    (tmp_path / "here/a/over").symlink_to(tmp_path / "there")
    (tmp_path / "there/b/back").symlink_to(tmp_path / "here")
    (tmp_path / "here/a/self").symlink_to("self")
    (tmp_path / "here/a/self.png").symlink_to("self.png")
    with pytest.warns(UserWarning, match="'a/over' is read, though it leads outside to .*there'; 'a/over/b/back' is left out: it leads back"):
        images = ProbingSet.from_folder(tmp_path / "here")
    assert images.ids == ["a/1.png", "a/over/b/2.png", "a/self.png"]
    assert reason(images, 2) and images.fingerprint


def test_two_links_to_a_folder_outside_are_read_once(tmp_path):
    place(tmp_path, "store/n01/1.png", "store/n02/2.png")
    (tmp_path / "photos").mkdir()
    for name, target in (("cat", "n01"), ("dog", "n02"), ("hound", "n02")):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "store" / target)
    with pytest.warns(UserWarning, match="'cat' is read, though .*'dog' is read, though .*'hound' is left out"):
        images = ProbingSet.from_folder(tmp_path / "photos")
    assert images.ids == ["cat/1.png", "dog/2.png"] and images.labels.tolist() == [0, 1]


def test_a_link_to_an_image_of_the_folder_is_no_second_image(tmp_path):
    place(tmp_path / "photos", "cat/a.png")
    place(tmp_path, "elsewhere.png")
    (tmp_path / "photos/cat/again.png").symlink_to("a.png")
    (tmp_path / "photos/cat/b.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.warns(UserWarning, match="'cat/again.png' is left out: it is a link to .*a.png"):
        images = ProbingSet.from_folder(tmp_path / "photos")
    assert images.ids == ["cat/a.png", "cat/b.png"] and [image.size for image in images] == [(20, 14)] * 2


def test_pipes_and_devices_are_never_opened(tmp_path):
    place(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    with pytest.warns(UserWarning, match="'b.png' is left out: a pipe or a device, not a file; 'c.png' is left out: a pipe"):
        images = ProbingSet.from_folder(tmp_path)
    assert images.ids == ["a.png"]
    before = images.fingerprint
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")
    assert reason(images) == "a folder, a pipe or a device, not a file" and images.fingerprint != before


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    place(tmp_path, "cat/a.png", "dog/b.png")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.warns(UserWarning, match="'dog' is left out: permission denied"):
        images = ProbingSet.from_folder(tmp_path)
    assert images.ids == ["cat/a.png"]


def test_a_set_works_after_the_working_folder_has_changed(tmp_path, monkeypatch):
    place(tmp_path, "photos/a.png")
    monkeypatch.chdir(tmp_path)
    images = ProbingSet.from_folder("photos")
    before = images.fingerprint
    monkeypatch.chdir("/")
    assert np.array_equal(images[0], picture(0)) and images.fingerprint == before


# odd files that are images


def test_exif_rotation_is_applied(tmp_path):
    upright, exif = picture(), Image.Exif()
    exif[0x0112] = 8
    images = one_file(tmp_path, "a.png", encoded(upright.transpose(Image.Transpose.ROTATE_270), "PNG", exif=exif))
    assert np.array_equal(images[0], upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_lose_the_image(tmp_path):
    plain = encoded(picture(), "JPEG")
    broken = b"Exif\0\0MM\0*" + b"\xff" * 40
    with_exif = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(broken) + 2) + broken + plain[2:]
    assert np.array_equal(one_file(tmp_path, "a.jpg", with_exif)[0], Image.open(io.BytesIO(plain)))


def test_palette_with_transparency_lies_on_white(tmp_path):
    indexed = Image.fromarray(np.array([[0, 1, 2]], "uint8")).convert("P")
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    images = one_file(tmp_path, "a.png", encoded(indexed, "PNG", transparency=1))
    assert np.array(images[0]).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_alpha_lies_on_white():
    glass = Image.fromarray(np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], "uint8"))
    assert np.array(as_rgb(glass)).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    grey = Image.fromarray(np.array([[0, 200]], "uint8"))
    grey.putalpha(Image.fromarray(np.array([[0, 255]], "uint8")))
    assert np.array(as_rgb(grey)).tolist() == [[[255] * 3, [200] * 3]]


def test_cmyk_keeps_its_colours(tmp_path):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    images = one_file(tmp_path, "a.jpg", encoded(red, "JPEG", quality=95))
    assert np.abs(np.array(images[0]).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, format):
    wide = Image.fromarray(np.array([[0, 257, 32896, 65535]], "uint16"))
    images = one_file(tmp_path, f"a.{format.lower()}", encoded(wide, format))
    assert np.array(images[0])[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_pixels_need_a_known_range(tmp_path):
    assert np.array(as_rgb(Image.fromarray(np.array([[0, 0.5, 1]], "float32"))))[0, :, 2].tolist() == [0, 128, 255]
    images = one_file(tmp_path, "a.tiff", encoded(Image.fromarray(np.array([[-3, 700.0]], "float32")), "TIFF"))
    assert "outside 0..1" in reason(images)


def test_first_frame_of_an_animation(tmp_path):
    first = Image.new("RGB", (8, 8), "red")
    for format in ("GIF", "WEBP"):
        moving = encoded(first, format, save_all=True, append_images=[ImageOps.invert(first)])
        (tmp_path / f"a.{format.lower()}").write_bytes(moving)
    for image in ProbingSet.from_folder(tmp_path):
        assert np.abs(np.array(image).astype(int) - [255, 0, 0]).max() <= 4


def test_black_and_white():
    assert np.array(as_rgb(Image.fromarray(np.array([[True, False]]))))[0, :, 0].tolist() == [255, 0]


# files that are no images


def test_zero_bytes(tmp_path):
    assert reason(one_file(tmp_path, "a.jpg", b"")) == "empty file (0 bytes)"


def test_not_an_image(tmp_path):
    assert reason(one_file(tmp_path, "a.jpg", b"Dear Sir or Madam")) == "not an image in a known format"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(tmp_path, format, share):
    whole = encoded(picture(size=(200, 100)), format)
    assert reason(one_file(tmp_path, f"a.{format.lower()}", whole[: int(len(whole) * share)]))


def test_truncated_photograph_says_so(tmp_path):
    whole = encoded(picture(size=(200, 100)), "JPEG")
    assert reason(one_file(tmp_path, "a.jpg", whole[:-500])) == "truncated: the file ends before the image does"


def test_any_flipped_byte_is_an_image_or_a_bad_image(tmp_path):
    random, whole = np.random.default_rng(0), np.frombuffer(encoded(picture(), "PNG"), np.uint8)
    for trial in range(60):
        damaged = whole.copy()
        damaged[random.integers(8, len(damaged), 4)] = random.integers(0, 256, 4)
        images = one_file(tmp_path, "a.png", damaged.tobytes())
        try:
            assert images[0].mode == "RGB"
        except BadImage as bad:
            assert bad.reason


def test_decompression_bomb_is_refused_without_unpacking(tmp_path):
    assert "too large to unpack safely" in reason(one_file(tmp_path, "a.png", bomb()))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_but_below_pillows_error_is_refused_too(tmp_path):
    assert "too large to unpack safely" in reason(one_file(tmp_path, "a.png", bomb(10_000, 9_500)))


def test_postscript_is_never_run(tmp_path):
    assert reason(one_file(tmp_path, "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")) == "not an image in a known format"


def test_file_that_vanished(tmp_path):
    images = one_file(tmp_path, "a.png", encoded(picture(), "PNG"))
    (tmp_path / "a.png").unlink()
    assert reason(images) == "no such file or directory" and images.fingerprint


# lists and datasets


def test_lists_of_pictures_and_arrays():
    images = ProbingSet.from_images([picture(), np.zeros((4, 5), "uint8"), torch.rand(3, 6, 7), np.ones((2, 2, 3), "float32")])
    assert [image.size for image in images] == [(20, 14), (5, 4), (7, 6), (2, 2)] and images.labels is None
    assert np.array(images[3]).tolist() == np.full((2, 2, 3), 255).tolist()


def test_labels_as_names_or_numbers():
    named = ProbingSet.from_images([picture()] * 3, ["dog", "cat", "dog"])
    assert named.classes == ["cat", "dog"] and named.labels.tolist() == [1, 0, 1]
    assert ProbingSet.from_images([picture()] * 2, np.array([4, 2])).labels.tolist() == [4, 2]
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        ProbingSet.from_images([picture()] * 3, [0, 1])
    with pytest.raises(TypeError, match="all whole numbers or all class names"):
        ProbingSet.from_images([picture()] * 2, ["cat", 1])


def test_empty_list_and_dataset():
    for empty in (ProbingSet.from_images, ProbingSet.from_dataset):
        with pytest.raises(ValueError, match="expected"):
            empty([])


@pytest.mark.parametrize("value", [np.full((4, 4, 3), -1.5), np.zeros((4, 4, 7)), np.full((2, 2), 300), torch.full((3, 4, 4), torch.nan)])
def test_arrays_that_are_no_images(value):
    with pytest.raises(ValueError):
        to_image(value)
    assert reason(ProbingSet.from_images([value]))


def test_pairs_with_labels():
    data = FakeData(5, (3, 8, 8), num_classes=3)
    images = ProbingSet.from_dataset(data)
    assert images.labels.tolist() == [int(data[i][1]) for i in range(5)] and np.array_equal(images[2], data[2][0])


def test_subset_and_image_folder(tmp_path):
    for number, name in enumerate(("a/1.png", "b/2.png", "b/3.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(number).save(tmp_path / name)
    whole = ProbingSet.from_dataset(ImageFolder(tmp_path))
    part = ProbingSet.from_dataset(Subset(ImageFolder(tmp_path), [2, 0]))
    assert whole.classes == ["a", "b"] and part.labels.tolist() == [1, 0] and part.fingerprint != whole.fingerprint
    assert np.array_equal(part[1], whole[0])


def test_hugging_face_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"]), "photo": datasets.Image()})
    rows = datasets.Dataset.from_dict({"label": [1, 0], "photo": [picture(1), picture(2)]}, features=features)
    images = ProbingSet.from_dataset(rows)
    assert images.classes == ["cat", "dog"] and images.labels.tolist() == [1, 0] and np.array_equal(images[1], picture(2))
    assert ProbingSet.from_dataset(rows.select([0])).fingerprint != images.fingerprint


def test_dataset_is_taken_at_its_word():
    class Known(list):
        ids, labels, classes, fingerprint = ["x", "y"], [1, 0], ["a", "b"], "mine"

    images = ProbingSet.from_dataset(Known([picture(1), picture(2)]))
    assert images.ids == ["x", "y"] and images.labels.tolist() == [1, 0] and images.classes == ["a", "b"]
    assert images.fingerprint == ProbingSet.from_dataset(Known([picture(3), picture(4)])).fingerprint


def test_dataset_that_fails_on_one_row():
    class Broken:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index == 1:
                raise RuntimeError("shard is gone")
            return {"note": "text", "image": picture()}

    images = ProbingSet.from_dataset(Broken())
    assert images[0].mode == "RGB" and reason(images, 1) == "shard is gone" and images.labels is None and images.fingerprint


def test_tensor_dataset():
    images = ProbingSet.from_dataset(TensorDataset(torch.rand(3, 3, 4, 4), torch.tensor([2, 0, 1])))
    assert images[0].size == (4, 4) and images.labels.tolist() == [2, 0, 1]


# what is given for a dataset


def rows_of(columns, **features):
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), "class": datasets.ClassLabel(names=["cat", "dog"])}
    features = {name: kinds.get(kind) or datasets.Value(kind) for name, kind in features.items()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.mark.parametrize(
    "given, said",
    [
        ("photos/", "is a path: .*from_folder"),
        ({"train": [1], "test": [2]}, "a dict of 'train', 'test' was given: expected one of them, e.g. dataset\\['train'\\]"),
        ({}, "expected one of them"),
        (DataLoader([torch.rand(3, 8, 8)] * 4, batch_size=2), "gives batches, not images: give its dataset"),
        ((picture() for _ in range(3)), "a generator is read once .*list\\(itertools.islice"),
        (zip([1], [2]), "a zip is read once"),
        ({picture}, "a set is read once"),
        (picture(), "one Image of size \\(20, 14\\) was given: expected several"),
        (np.zeros((8, 9, 3), "uint8"), "one ndarray of size \\(8, 9, 3\\)"),
        (torch.zeros(3, 8, 9), "one Tensor of size"),
        (pd.DataFrame({"file": ["a.png"]}), "a DataFrame of file was given: .*cast_column"),
    ],
)
def test_what_has_no_ith_image_is_refused_with_what_to_give(given, said):
    with pytest.raises(TypeError, match=said):
        ProbingSet.from_dataset(given)


def test_streams_and_splits_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    rows = rows_of({"image": [picture(1), picture(2)], "label": [4, 2]}, image="image", label="int64")
    for given in (rows.to_iterable_dataset(), datasets.IterableDatasetDict({"train": rows.to_iterable_dataset()}), datasets.DatasetDict({"train": rows})):
        with pytest.raises(TypeError, match="load it without streaming|expected one of them, e.g. dataset\\['train'\\]"):
            ProbingSet.from_dataset(given)
    images = ProbingSet.from_dataset(list(rows.to_iterable_dataset().take(2)))  # as the message says
    assert np.array_equal(images[1], picture(2)) and images.labels.tolist() == [4, 2]


def test_torchs_stream_is_refused_though_it_has_getitem_and_perhaps_a_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([picture()])

        def __len__(self):
            return 1

    with pytest.raises(TypeError, match="a Stream is read once"):
        ProbingSet.from_dataset(Stream())


def test_a_list_that_holds_no_images_is_refused_and_an_array_of_several_is_taken():
    for given, said in ((["a.png"], "a list of str"), ([{"image": picture()}], "from_dataset"), (picture(), "one Image"), (np.zeros((8, 8)), "one ndarray")):
        with pytest.raises(TypeError, match=said):
            ProbingSet.from_images(given)
    for given in (np.zeros((5, 8, 9), "uint8"), np.zeros((5, 8, 9, 3), "uint8"), torch.zeros(5, 3, 8, 9)):
        for make in (ProbingSet.from_images, ProbingSet.from_dataset):
            assert [image.size for image in make(given)] == [(9, 8)] * 5


def test_several_image_columns_need_one_called_image():
    pictures = [picture(1), picture(2)]
    paired = ProbingSet.from_dataset(rows_of({"mask": pictures[::-1], "image": pictures}, mask="image", image="image"))
    assert np.array_equal(paired[0], pictures[0])
    sides = rows_of({"left": pictures, "right": pictures[::-1]}, left="image", right="image")
    with pytest.raises(ValueError, match="columns 'left' and 'right' hold images: name the one to record 'image'"):
        ProbingSet.from_dataset(sides)
    assert np.array_equal(ProbingSet.from_dataset(sides.rename_column("right", "image"))[0], pictures[1])
    assert np.array_equal(ProbingSet.from_dataset(sides.select_columns(["right"]))[0], pictures[1])
    own = ProbingSet.from_dataset(sides.with_transform(lambda batch: {"photo": batch["right"], "noise": [np.zeros(3)] * len(batch["right"])}))
    assert np.array_equal(own[0], pictures[1])
    loose = ProbingSet.from_dataset([{"a": np.zeros((4, 4)), "b": np.zeros((4, 4))}])
    assert "columns 'a' and 'b' hold images" in reason(loose)


@pytest.mark.parametrize("kind", ["int64", "uint8", "bool"])
@pytest.mark.parametrize("name", ["label", "labels", "target"])
def test_number_columns_called_label_are_labels(name, kind):
    images = ProbingSet.from_dataset(rows_of({"image": [picture()] * 3, "size": [7, 8, 9], name: [1, 0, 1]}, image="image", size="int64", **{name: kind}))
    assert images.labels.tolist() == [1, 0, 1] and images.labels.dtype == np.int64 and images.classes is None


def test_words_called_label_are_class_names_and_other_columns_are_no_labels():
    images = ProbingSet.from_dataset(rows_of({"image": [picture()] * 3, "label": ["dog", "cat", "dog"]}, image="image", label="string"))
    assert images.labels.tolist() == [1, 0, 1] and images.classes == ["cat", "dog"]
    for column, kind in (([0.5, 1.5], "float32"), ([1, 2], "int64")):
        name = "label" if kind == "float32" else "size"
        assert ProbingSet.from_dataset(rows_of({"image": [picture()] * 2, name: column}, image="image", **{name: kind})).labels is None


def test_several_columns_of_classes_are_not_guessed():
    rows = rows_of({"image": [picture()] * 2, "coarse": [0, 1], "fine": [1, 0]}, image="image", coarse="class", fine="class")
    with pytest.warns(UserWarning, match="columns 'coarse' and 'fine' hold labels, so none is taken: rename"):
        assert ProbingSet.from_dataset(rows).labels is None
    images = ProbingSet.from_dataset(rows.rename_column("fine", "label"))
    assert images.labels.tolist() == [1, 0] and images.classes == ["cat", "dog"]


def test_rows_without_a_label_among_rows_with_one():
    def labelled(*labels):
        return rows_of({"image": [picture()] * len(labels), "label": list(labels)}, image="image", label="class")

    assert ProbingSet.from_dataset(labelled(-1, -1)).labels is None
    images = ProbingSet.from_dataset(labelled(0, -1, 1))
    with pytest.raises(ValueError, match="1 of 3 labels are no class, the first -1 of image '1': expected 0 to 1"):
        images.labels
    with pytest.raises(ValueError, match="1 of 2 rows have no value in the label column 'label': leave them out with dataset.filter"):
        ProbingSet.from_dataset(labelled(None, 1))


def test_labels_under_a_format_or_a_transform():
    rows = rows_of({"image": [picture()] * 2, "label": [1, 0]}, image="image", label="class")
    for given in (rows.with_format("torch"), rows.with_format("numpy"), rows.with_transform(lambda batch: {"image": batch["image"]})):
        images = ProbingSet.from_dataset(given)
        assert images.labels.tolist() == [1, 0] and np.array_equal(images[0], picture())


@pytest.mark.parametrize(
    "label, expected", [(0.7, None), ("cat", None), (torch.tensor([1, 0]), None), ({"boxes": []}, None), (torch.tensor(3), [3] * 3), (np.uint8(2), [2] * 3)]
)
def test_labels_of_rows_are_whole_numbers_or_none(label, expected):
    labels = ProbingSet.from_dataset([(picture(), label)] * 3).labels
    assert expected == (None if labels is None else labels.tolist())


def test_a_datasets_own_labels_are_one_for_each_row():
    class Known(list):
        labels = ["cat", "dog"]  # the names of classes, not the labels of the three rows

    assert ProbingSet.from_dataset(Known([(picture(), 1)] * 3)).labels.tolist() == [1, 1, 1]
    for rows in ([1, 1], [1, 0]):  # as many rows as names, by chance
        with pytest.warns(UserWarning, match="the Known gives other labels in its rows than it keeps"):
            images = ProbingSet.from_dataset(Known([(picture(), label) for label in rows]))
        assert images.labels.tolist() == rows and images.classes is None
    Known.labels = ["dog", "cat", "dog"]
    images = ProbingSet.from_dataset(Known([(picture(), label) for label in (0, 1, 0)]))
    assert images.labels.tolist() == [1, 0, 1] and images.classes == ["cat", "dog"], "a word for each number"
    Known.ids = ["a"]
    with pytest.raises(ValueError, match="2 rows and 1 ids"):
        ProbingSet.from_dataset(Known([(picture(), 1)] * 2))


def test_labels_that_a_transform_changes_are_those_of_the_rows(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / name)
    for given in (ImageFolder(tmp_path, target_transform=lambda label: 1 - label), Subset(ImageFolder(tmp_path, target_transform=lambda label: 1 - label), [0, 1, 2])):
        with pytest.warns(UserWarning, match="the ImageFolder gives other labels in its rows than it keeps"):
            images = ProbingSet.from_dataset(given)
        assert images.labels.tolist() == [1, 1, 0] and images.classes is None
    pets = OxfordIIITPet.__new__(OxfordIIITPet)
    pets.__dict__.update(_images=[tmp_path / "a/1.png"] * 3, _labels=[0, 0, 1], _target_types=["category"], classes=["a", "b"], transforms=None)
    assert ProbingSet.from_dataset(pets).classes == ["a", "b"]
    pets.transforms = lambda image, label: (image, 1 - label)
    with pytest.warns(UserWarning, match="or may do so by a transform"):
        images = ProbingSet.from_dataset(pets)
    assert images.labels.tolist() == [1, 1, 0] and images.classes is None
    same = ProbingSet.from_dataset(ImageFolder(tmp_path, target_transform=torch.tensor))
    assert same.labels.tolist() == [0, 0, 1] and same.classes == ["a", "b"]


@pytest.mark.parametrize("set_in_place", [False, True])
def test_labels_that_a_hugging_face_transform_changes(set_in_place):
    def turned(batch):
        return {"image": batch["image"], "species": [1 - label for label in batch["species"]]}

    rows = rows_of({"image": [picture()] * 3, "species": [0, 0, 1]}, image="image", species="class")
    if set_in_place:
        rows.set_transform(turned)
    else:
        rows = rows.with_transform(turned)
    with pytest.warns(UserWarning, match="the Dataset gives other labels in its rows than it keeps"):
        images = ProbingSet.from_dataset(rows)
    assert images.labels.tolist() == [1, 1, 0] and images.classes is None
    images = ProbingSet.from_dataset(rows.with_transform(lambda batch: batch))
    assert images.labels.tolist() == [0, 0, 1] and images.classes == ["cat", "dog"]


def test_of_many_rows_the_first_and_the_last_of_each_label_are_looked_at():
    class Kept:
        targets, classes, looked = [number // 500 for number in range(1000)], ["cat", "dog"], ()

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            Kept.looked += (index,)
            if index == 0:
                raise OSError("gone")
            return picture(), 0 if index == 999 and self.last else index // 500

    Kept.last = False
    assert ProbingSet.from_dataset(Kept()).classes == ["cat", "dog"] and Kept.looked == (0, 499, 500, 999)
    Kept.last = True
    with pytest.warns(UserWarning, match="other labels"):
        assert ProbingSet.from_dataset(Kept()).classes is None


# what a dataset's rows depend on


class Opened:
    """A dataset that keeps `files` in whatever form, and opens them when a row is looked at."""

    def __init__(self, files, **settings):
        self.data, self.samples = files, None
        self.__dict__.update(settings)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        file = self.data.file[index] if isinstance(self.data, pd.DataFrame) else list(self.data)[index]
        return Image.open(file).convert("RGB").point(lambda level: level // getattr(self, "divisor", 1)), 0


def painted(files, *levels):
    for file, level in zip(files, levels):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(file)


def hugging_face(files):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())


def transformed(files):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"file": files}).with_transform(lambda batch: {"photo": [Image.open(file) for file in batch["file"]]})


KINDS = {
    "list": Opened,
    "tuple": lambda files: Opened(tuple(files)),
    "dict": lambda files: Opened(dict.fromkeys(files)),
    "array": lambda files: Opened(np.array(files)),
    "objects": lambda files: Opened(np.array(files, dtype=object)),
    "table": lambda files: Opened(pd.DataFrame({"file": files})),
    "subset": lambda files: Subset(Opened(files), [1, 0]),
    "chain": lambda files: ConcatDataset([Opened(files[:1]), Opened(files[1:])]),
    "Hugging Face": hugging_face,
    "Hugging Face, selected": lambda files: hugging_face(files).select([1]),
    "Hugging Face, transformed": transformed,
    "Hugging Face, as arrays": lambda files: hugging_face(files).with_format("numpy"),
    "torchvision": lambda files: ImageFolder(Path(files[0]).parent.parent),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_a_dataset_names_are_seen_to_change(tmp_path, kind):
    (tmp_path / "class").mkdir()
    files = [str(tmp_path / "class" / f"{number}.png") for number in range(2)]
    painted(files, 10, 20)
    before = ProbingSet.from_dataset(KINDS[kind](files)).fingerprint
    assert ProbingSet.from_dataset(KINDS[kind](files)).fingerprint == before
    painted(files, 10, 200)
    assert ProbingSet.from_dataset(KINDS[kind](files)).fingerprint != before


@pytest.mark.parametrize("kind", KINDS)
def test_two_sets_of_the_same_shape_have_two_keys(tmp_path, kind):
    keys = []
    for folder in ("a/x", "b/y"):
        (tmp_path / folder).mkdir(parents=True)
        files = [str(tmp_path / folder / f"{number}.png") for number in range(2)]
        painted(files, *((10, 20) if folder == "a/x" else (30, 40)))
        keys.append(ProbingSet.from_dataset(KINDS[kind](files)).fingerprint)
    assert keys[0] != keys[1]


def test_settings_and_transforms_of_a_dataset_count(tmp_path):
    (tmp_path / "c").mkdir()
    files = [str(tmp_path / "c" / f"{number}.png") for number in range(2)]
    painted(files, 100, 200)

    class Darker(Subset):
        def __getitem__(self, index):
            return super().__getitem__(index)[0].point(lambda level: level // 2)

        def __getitems__(self, indices):
            return [self[index] for index in indices]

    def scaled(by):
        return ImageFolder(tmp_path, transform=lambda image: image.point(lambda level: level // by))

    given = [Opened(files), Opened(files, divisor=3), Subset(Opened(files), [0, 1]), Darker(Opened(files), [0, 1])]
    given += [ImageFolder(tmp_path), ImageFolder(tmp_path, loader=lambda path: Image.new("RGB", (4, 4))), scaled(5), scaled(7)]
    given += [hugging_face(files), hugging_face(files).with_transform(lambda batch: {"image": [image.resize((4, 4)) for image in batch["image"]]})]
    keys = [ProbingSet.from_dataset(dataset).fingerprint for dataset in given]
    assert len(set(keys)) == len(keys)


def test_arrays_and_lists_that_torchvision_keeps():
    def kept(kind, data, **settings):
        dataset = kind.__new__(kind)
        dataset.__dict__.update(data=data, targets=[0] * len(data), transform=None, target_transform=None, **settings)
        return ProbingSet.from_dataset(dataset)

    first, second = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(3, 8, 8, dtype=torch.uint8)
    assert kept(MNIST, first).fingerprint == kept(MNIST, first.clone()).fingerprint != kept(MNIST, second).fingerprint
    assert kept(MNIST, first)[2].size == (8, 8)


def test_a_hugging_face_set_is_known_by_its_pictures(tmp_path):
    pictures = [picture(1), picture(2)]
    one, again = (rows_of({"image": pictures, "label": labels}, image="image", label="int64") for labels in ([0, 1], [1, 1]))
    assert ProbingSet.from_dataset(one).fingerprint == ProbingSet.from_dataset(again).fingerprint
    assert ProbingSet.from_dataset(one.select([1, 0])).fingerprint != ProbingSet.from_dataset(one).fingerprint
    one.save_to_disk(tmp_path / "saved")
    assert ProbingSet.from_dataset(type(one).load_from_disk(str(tmp_path / "saved"))).fingerprint == ProbingSet.from_dataset(one).fingerprint
    missing = hugging_face([str(tmp_path / "nowhere.png")])
    assert ProbingSet.from_dataset(missing).fingerprint and reason(ProbingSet.from_dataset(missing))


def test_pictures_of_equal_indices_and_other_palettes_differ():
    pixels, keys = Image.fromarray(np.array([[0, 1, 2]], "uint8")).convert("P"), []
    for palette in ([255, 0, 0] * 3, [0, 255, 0] * 3):
        pixels.putpalette(palette)
        keys.append(ProbingSet.from_images([pixels.copy()]).fingerprint)
    assert keys[0] != keys[1]


def test_a_picture_that_is_drawn_on_is_seen_to_change():
    one = picture()
    images = ProbingSet.from_images([one])
    before = images.fingerprint
    one.putpixel((0, 0), (1, 2, 3))
    assert images.fingerprint != before


def test_a_dataset_with_one_open_file_gives_each_thread_its_own_pixels(tmp_path):
    (tmp_path / "all").write_bytes(bytes(level for level in range(40) for _ in range(64)))

    class Packed:
        def __init__(self):
            self.file = open(tmp_path / "all", "rb")

        def __len__(self):
            return 40

        def __getitem__(self, index):
            self.file.seek(64 * index)
            time.sleep(0.001)  # another thread may seek now
            return np.frombuffer(self.file.read(64), np.uint8).reshape(8, 8)

    packed = Packed()
    with ThreadPoolExecutor(8) as pool:
        levels = list(pool.map(lambda image: image.getpixel((0, 0))[0], pool.map(ProbingSet.from_dataset(packed).__getitem__, range(40))))
    packed.file.close()
    assert levels == list(range(40))


# the fingerprint


def test_fingerprint_follows_content_and_order_not_place_or_time(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        picture(1).save(tmp_path / folder / "a.png")
    here, there = ProbingSet.from_folder(tmp_path / "here"), ProbingSet.from_folder(tmp_path / "there")
    assert here.fingerprint == there.fingerprint
    before, size = here.fingerprint, (tmp_path / "here/a.png").stat().st_size
    changed = bytearray((tmp_path / "here/a.png").read_bytes())
    changed[-20] ^= 1
    (tmp_path / "here/a.png").write_bytes(changed)
    assert here.fingerprint != before and (tmp_path / "here/a.png").stat().st_size == size
    one, two = picture(1), picture(2)
    assert ProbingSet.from_images([one, two]).fingerprint != ProbingSet.from_images([two, one]).fingerprint


def test_names_that_are_not_unicode(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    picture().save(tmp_path / name, "PNG")
    images = ProbingSet.from_folder(tmp_path)
    assert images.ids == [r"caf\xe9.png"] and images.fingerprint and images[0].mode == "RGB"


def test_many_threads_share_pictures_that_are_not_read_yet():
    content = encoded(picture(size=(64, 64)), "PNG")
    images = ProbingSet.from_images([Image.open(io.BytesIO(content))] * 8)
    seen = []
    threads = [threading.Thread(target=lambda index=index: seen.append(np.array(images[index]))) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and all(np.array_equal(image, picture(size=(64, 64))) for image in seen)
