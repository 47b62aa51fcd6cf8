"""Probing sets from WebDataset tar files and Parquet files: what is read, and what is refused."""

import builtins
import gzip
import io
import json
import os
import pickle
import re
import shutil
import tarfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from torch import nn
from torchvision.transforms import ToTensor

from neuronbench.probe import shards as shards_module
from neuronbench.probe.images import BadImage, ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.shards import Held, Shard, ShardError
from neuronbench.probe.target import Target

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def soon_settled(monkeypatch, tmp_path):
    """Files that were just written need not be waited for, and each test begins with an empty cache."""
    monkeypatch.setattr(shards_module, "_UNSETTLED", 0.02)
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "cache"))


def picture(seed, size=(12, 10)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def encoded(seed, format="PNG"):
    buffer = io.BytesIO()
    picture(seed).save(buffer, format)
    return buffer.getvalue()


def tar_bytes(files, format=tarfile.PAX_FORMAT):
    """A tar file of [(name, bytes or TarInfo)]."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in files:
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def sample(key, seed, label=None):
    return [(f"{key}.png", encoded(seed))] + ([] if label is None else [(f"{key}.cls", str(label).encode())])


def shard(path, *samples):
    path.write_bytes(tar_bytes([file for files in samples for file in files]))
    return path


@pytest.fixture
def folder(tmp_path):
    """Two shards of three samples, and of two."""
    (tmp_path / "shards").mkdir()
    shard(tmp_path / "shards/00000.tar", *(sample(f"{key:03}", key, label) for key, label in ((0, "dog"), (1, "cat"), (2, "dog"))))
    shard(tmp_path / "shards/00001.tar", *(sample(f"{key:03}", 10 + key, label) for key, label in ((0, "ant"), (1, "dog"))))
    return tmp_path / "shards"


def opened(given, **settings):
    return ProbingSet.from_webdataset(given, progress=False, **settings)


def rows(given, **settings):
    return ProbingSet.from_parquet(given, progress=False, **settings)


def refused(path, files, **settings):
    """What is said of a tar file of these files."""
    path.mkdir(exist_ok=True)
    (path / "bad.tar").write_bytes(files if isinstance(files, bytes) else tar_bytes(files))
    with pytest.raises(ShardError) as raised:
        opened(path / "bad.tar", **settings)
    said = str(raised.value)
    assert said.startswith("shard ") and "bad.tar" in said and "\n" not in said
    return said


# what is read


def test_images_labels_and_ids_in_order(folder):
    images = opened(folder)
    assert len(images) == 5 and images.classes == ["ant", "cat", "dog"] and images.labels.tolist() == [2, 1, 2, 0, 2]
    assert list(images.ids) == ["00000.tar/000.png", "00000.tar/001.png", "00000.tar/002.png", "00001.tar/000.png", "00001.tar/001.png"]
    assert images.ids[-1] == list(images.ids)[-1] and images.ids[1:4:2] == list(images.ids)[1:4:2]
    for position, seed in enumerate((0, 1, 2, 10, 11)):
        assert np.array_equal(images[position], picture(seed))
    with pytest.raises(IndexError, match="no image 5: the probing set has 5"):
        images[5]
    with pytest.raises(IndexError):
        images.ids[5]


def test_the_same_shards_by_range_star_list_and_address(folder, monkeypatch):
    keys = {opened(given).fingerprint for given in (folder, str(folder), f"{folder}/{{00000..00001}}.tar", f"{folder}/*.tar", sorted(folder.iterdir()), f"file://{folder}/{{00000..00001}}.tar", f"file://{folder}")}
    monkeypatch.chdir(folder.parent)
    images = opened("shards/{00000..00001}.tar")
    monkeypatch.chdir("/")
    assert keys == {images.fingerprint} and np.array_equal(images[0], picture(0))


def test_a_list_keeps_its_order_and_shards_of_two_folders_are_told_apart(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        shard(tmp_path / name / "0.tar", sample("x", ord(name)))
    images = opened([tmp_path / "b", tmp_path / "a"])
    assert list(images.ids) == ["b/0.tar/x.png", "a/0.tar/x.png"] and np.array_equal(images[0], picture(ord("b"))) and images.labels is None and images.classes is None


def test_numbers_as_labels_and_other_files_beside_the_image(tmp_path):
    files = [("a.jpg", encoded(1, "JPEG")), ("a.json", b"{}"), ("a.cls", b"7\n"), ("a.txt", b"a text"), ("b.json", b"{}"), ("b.cls", b"2"), ("b.JPG", encoded(2, "JPEG")), ("b.txt", b"more")]
    (tmp_path / "0.tar").write_bytes(tar_bytes(files))
    images = opened(tmp_path / "0.tar")
    assert images.labels.tolist() == [7, 2] and images.classes is None and list(images.ids) == ["0.tar/a.jpg", "0.tar/b.JPG"]
    named = opened(tmp_path / "0.tar", label="txt")
    assert named.classes == ["a text", "more"] and named.labels.tolist() == [0, 1] and named.fingerprint == images.fingerprint


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_folders_hidden_and_describing_files_and_long_names(tmp_path, format):
    top, long = tarfile.TarInfo("a.b"), f"{'n' * (40 if format == tarfile.USTAR_FORMAT else 200)}"
    top.type = tarfile.DIRTYPE
    files = [("", top), ("a.b/._x.png", b"a Mac's"), ("__index.json__", b"?"), ("README", b"read me"), (f"a.b/{long}.png", encoded(1)), ("./y.seg.x", b""), ("./y.png", encoded(2))]
    (tmp_path / "0.tar").write_bytes(tar_bytes(files, format))
    images = opened(tmp_path / "0.tar")
    assert list(images.ids) == [f"0.tar/a.b/{long}.png", "0.tar/./y.png"] and np.array_equal(images[1], picture(2))


def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9\x1b[2J")
    shard(tmp_path / f"{name}.tar", sample(name, 1))
    images = opened(tmp_path)
    assert images.ids[0] == r"caf\xe9\x1b[2J.tar/caf\xe9\x1b[2J.png" and np.array_equal(images[0], picture(1))
    assert "\x1b" not in refused(tmp_path / "bad", [(f"{name}.cls", b"1")])


def test_which_of_two_images(tmp_path):
    files = [("a.png", encoded(1)), ("a.seg.png", encoded(2)), ("b.jpg", encoded(3, "JPEG")), ("b.seg.png", encoded(4))]
    assert "sample 'a' has 2 images, 'png' and 'seg.png': expected one; say which, such as image='png'" in refused(tmp_path / "bad", files)
    assert "sample 'b' has no image, only 'jpg' and 'seg.png': expected one of the kind 'png'" in refused(tmp_path / "bad", files, image="png")
    (tmp_path / "0.tar").write_bytes(tar_bytes(files))
    assert list(opened(tmp_path / "0.tar", image="PNG;jpg").ids) == ["0.tar/a.png", "0.tar/b.jpg"]
    assert np.array_equal(opened(tmp_path / "0.tar", image="seg.png")[1], picture(4))


def test_wide_pixels_are_read_as_from_a_folder(tmp_path):
    wide = Image.fromarray(np.array([[0, 2048, 4095]], "uint16"))
    (tmp_path / "photos").mkdir()
    wide.save(tmp_path / "photos/a.png")
    wide.save(tmp_path / "photos/b.tiff")
    (tmp_path / "photos/c.pgm").write_bytes(b"P5 3 1 4095\n" + np.array([[0, 2048, 4095]], ">u2").tobytes())
    (tmp_path / "0.tar").write_bytes(tar_bytes([(file.name, file.read_bytes()) for file in sorted((tmp_path / "photos").iterdir())]))
    from_folder, from_shard = ProbingSet.from_folder(tmp_path / "photos", (0, 4095)), opened(tmp_path / "0.tar", value_range=(0, 4095))
    for position in range(3):
        assert np.array(from_shard[position])[0, :, 0].tolist() == np.array(from_folder[position])[0, :, 0].tolist() == [0, 128, 255]
    assert from_shard.fingerprint != opened(tmp_path / "0.tar").fingerprint


# samples and labels that are refused


@pytest.mark.parametrize("files, said", [
    ([("a.cls", b"1")], "sample 'a' has no image, only 'cls': expected one"),
    ([("a.png", b"1"), ("a.png", b"2")], "sample 'a' has 2 images, 'png' and 'png'"),
    ([("a.png", b"1"), ("b.png", b"2"), ("a.png", b"3")], "the files of sample 'a' lie apart, or it stands there twice"),
    ([("a.png", b"1"), ("b.png", b"2"), ("a.cls", b"3")], "the files of sample 'a' lie apart"),
    ([("a.png", b"1"), ("a.cls", b"1"), ("b.png", b"2")], "1 of its 2 images have no label, the first 'b.png': expected a label for all or for none"),
    ([("a.png", b"1"), ("a.cls", b"1"), ("a.cls", b"2")], "sample 'a' has 2 files of the kind 'cls': expected one, with its label"),
    ([("a.png", b"1"), ("a.cls", b"1"), ("b.png", b"2"), ("b.cls", b"boat")], "its labels are such as 1 and 'boat': expected whole numbers, or names, for all"),
    ([("a.png", b"1"), ("a.cls", b" \n")], "the label of sample 'a' is '': expected a whole number or a name"),
    ([("a.png", b"1"), ("a.cls", b"\x00\x00\x00\x01")], r"the label of sample 'a' is '\\x00\\x00\\x00\\x01': expected"),
    ([("a.png", b"1"), ("a.cls", b"\xff\xfe")], "'utf-8' codec can't decode"),
    ([("a.png", b"1"), ("a.cls", b"9" * 30)], "too large to convert|too big to convert"),
    ([], "it holds no images: expected at least one"),
    ([("README", b"1")], "it holds no images"),
])
def test_samples_that_are_refused(tmp_path, files, said):
    assert re.search(said, refused(tmp_path / "bad", files))


def test_a_label_that_is_asked_for_must_be_there(tmp_path):
    assert "sample 'a' has no files of the kind 'txt': expected one" in refused(tmp_path / "bad", sample("a", 1, 1), label="txt")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices(tmp_path, kind):
    link = tarfile.TarInfo("b.png")
    link.type, link.linkname = kind, "a.png"
    assert "'b.png' is a link, a device or a sparse file: expected plain files" in refused(tmp_path / "bad", [*sample("a", 1), ("b.png", link)])


@pytest.mark.parametrize("first, second, said", [
    ((1,), ("boat",), "with labels that are numbers, and shard .*with labels that are names: expected the same of all"),
    ((1,), (None,), "with labels that are numbers, and shard .*with no labels"),
])
def test_shards_of_different_labels(tmp_path, first, second, said):
    shard(tmp_path / "0.tar", sample("a", 1, *first))
    shard(tmp_path / "1.tar", sample("b", 2, *second))
    with pytest.raises(ShardError, match=said):
        opened(tmp_path)


def test_one_bad_image_is_skipped_and_listed_or_raised(folder):
    shard(folder / "00001.tar", sample("000", 10, "ant"), [("001.png", encoded(11)[:60]), ("001.cls", b"dog")], [("002.png", b""), ("002.cls", b"dog")])
    images = opened(folder)
    torch.manual_seed(0)
    target = Target(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), ["0"], ToTensor(), device="cpu")
    recording = record(target, images, progress=False)
    assert recording.bad_images["id"].tolist() == ["00001.tar/001.png", "00001.tar/002.png"] and recording["0"].shape == (4, 4)
    assert recording.bad_images["reason"].tolist() == ["truncated: the file ends before the image does", "empty file (0 bytes)"]
    with pytest.raises(BadImage, match="00001.tar/001.png"):
        record(target, images, on_bad_image="raise", progress=False)


# damage


def test_wherever_a_tar_file_is_cut_off_it_is_seen(tmp_path):
    whole = tar_bytes(sample("a", 1, 1) + sample("b", 2, 0))
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    cuts = [*range(512, end + 1024, 512), *np.random.default_rng(0).integers(1, end, 20)]
    for cut in cuts:
        said = refused(tmp_path / "bad", whole[:cut])
        assert "truncated" in said or "unexpected end of data" in said, (cut, said)
    (tmp_path / "whole.tar").write_bytes(whole[: end + 1024])
    assert len(opened(tmp_path / "whole.tar")) == 2
    assert "empty file" in refused(tmp_path / "bad", b"")


def test_files_that_are_no_tar_files(tmp_path):
    whole = tar_bytes(sample("a", 1))
    assert "it is compressed (gzip), so nothing in it can be read by itself: expected a plain tar file" in refused(tmp_path / "bad", gzip.compress(whole))
    assert "header" in refused(tmp_path / "bad", b"Dear Sir or Madam," * 100)
    assert "it is damaged at byte" in refused(tmp_path / "bad", whole + whole)
    assert "it holds no images" in refused(tmp_path / "bad", bytes(10240))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_any_flipped_byte_is_refused_or_is_in_a_file(tmp_path, format):
    random, whole = np.random.default_rng(0), np.frombuffer(tar_bytes(sample("a", 1, 1) + sample("ü" * 120, 2, 0), format), np.uint8)
    for trial in range(80):
        damaged = whole.copy()
        damaged[random.integers(0, len(whole.tobytes().rstrip(b"\0")), 2)] ^= random.integers(1, 256, 2).astype(np.uint8)
        (tmp_path / f"{trial}.tar").write_bytes(damaged.tobytes())
        try:
            images = opened(tmp_path / f"{trial}.tar")
        except ShardError as error:
            assert "\n" not in str(error)
            continue
        assert len(images) == 2
        for position in range(2):
            try:
                assert images[position].mode == "RGB"
            except BadImage as bad:
                assert bad.reason


def test_a_pipe_and_a_folder(tmp_path):
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(ShardError, match="it is a folder, a pipe or a device: expected a file"):
        opened(tmp_path / "0.tar")
    (tmp_path / "1.tar").mkdir()
    with pytest.raises(ShardError, match="it is a folder, a pipe or a device"):
        opened(tmp_path / "1.tar")


# change


def same_size(path, seed):
    """Another tar file of the same number of bytes and the same time of modification."""
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(encoded(0), encoded(seed)[: len(encoded(0))].ljust(len(encoded(0)), b"\0")))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_shard_that_changed_is_refused_and_read_anew_when_opened_anew(folder):
    images = opened(folder)
    before = images.fingerprint
    images[0]
    time.sleep(0.05)
    same_size(folder / "00000.tar", 99)
    for use in (lambda: images[0], lambda: images.fingerprint):
        with pytest.raises(ShardError, match="shard '00000.tar': it has changed since the probing set was opened: open it anew"):
            use()
    assert np.array_equal(images[3], picture(10)), "the other shard is what it was"
    again = opened(folder)
    assert again.fingerprint != before and len(again) == 5


def test_a_shard_that_is_gone_or_cut_off_after_opening(folder):
    images = opened(folder)
    os.truncate(folder / "00000.tar", 3000)
    with pytest.raises(ShardError, match="shard '00000.tar': it has changed"):
        images[2]
    (folder / "00001.tar").unlink()
    with pytest.raises(ShardError, match="shard '00001.tar': no such file or directory"):
        images[4]
    with pytest.raises(FileNotFoundError, match="no shard .*00001.tar"):
        opened([folder / "00000.tar", folder / "00001.tar"])


def test_a_touched_shard_keeps_its_fingerprint(folder):
    before = opened(folder).fingerprint
    time.sleep(0.05)
    os.utime(folder / "00000.tar")
    assert opened(folder).fingerprint == before


def test_a_shard_that_is_written_while_it_is_read(folder, monkeypatch):
    look = shards_module._index

    def slow(found):
        with open(folder / "00000.tar", "ab") as file:
            file.write(bytes(512))
        return look(found)

    monkeypatch.setattr(shards_module, "_index", slow)
    with pytest.raises(ShardError, match="shard '00000.tar': it was changed while it was read: open it when it is whole"):
        opened(folder / "00000.tar")


def test_a_recording_stops_at_a_changed_shard_and_goes_on_when_it_is_back(tmp_path):
    shard(tmp_path / "0.tar", *(sample(f"{key:03}", key) for key in range(256)))
    shard(tmp_path / "1.tar", *(sample(f"{key:03}", key) for key in range(8)))
    torch.manual_seed(0)
    target = Target(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), ["0"], ToTensor(), device="cpu")
    images, content = opened(tmp_path), (tmp_path / "1.tar").read_bytes()
    key = images.fingerprint
    whole = record(target, images, progress=False)["0"]
    (tmp_path / "1.tar").write_bytes(content.replace(encoded(3), encoded(3)[:-20] + bytes(20)))
    images._fingerprint = lambda: key  # as if it had changed after the recording had begun
    with pytest.raises(ShardError, match="shard '1.tar': it has changed"):
        record(target, images, tmp_path / "store.zarr", progress=False)
    (tmp_path / "1.tar").write_bytes(content)
    seen = []
    images._load = lambda index, load=images._load: seen.append(index) or load(index)
    assert record(target, images, tmp_path / "store.zarr", progress=False)["0"].equals(whole) and min(seen) in (0, 256) and sorted(set(seen))[-8:] == list(range(256, 264)) and len(set(seen)) <= 9


# addresses


@pytest.mark.parametrize("given, error, said", [
    ("s4://photos/0.tar", KeyError, "no filesystem 's4'; did you mean 's3'"),
    ("dropbox://photos/0.tar", ModuleNotFoundError, "no installed filesystem reads 'dropbox://photos/0.tar': Dropbox"),
    ("nowhere/0.tar", FileNotFoundError, "no shard '.*nowhere/0.tar'"),
    ("nowhere/*.tar", FileNotFoundError, "no file is called '.*nowhere/\\*.tar'"),
    ("nowhere/{1..2}.tar", FileNotFoundError, "no shard '.*nowhere/1.tar'"),
    ("nowhere/{2..1}.tar", ValueError, "the range {2..1} in .* counts down"),
    ("memory://nowhere/0.tar", FileNotFoundError, "no shard 'memory://nowhere/0.tar'"),
    ("simplecache::memory://0.tar", ValueError, "leads through several filesystems"),
    ([], ValueError, "no shards were given"),
    (7, TypeError, "7 was given for shards: expected a path or an address such as"),
    (b"0.tar", TypeError, "expected a path or an address"),
    ([None], TypeError, "None was given for shards"),
])
def test_addresses_that_lead_nowhere(given, error, said):
    with pytest.raises(error, match=said):
        opened(given)


def test_a_folder_without_shards_and_a_shard_given_twice(folder):
    with pytest.raises(ValueError, match="no shards in .*: expected files such as 00000.parquet directly in it; there is '00000.tar'"):
        rows(folder)
    with pytest.raises(ValueError, match="shard .*00001.tar' was given more than once: expected each once"):
        opened([folder, f"file://{folder}/00001.tar"])
    (folder.parent / "empty").mkdir()
    with pytest.raises(ValueError, match="directly in it$"):
        opened(folder.parent / "empty")


def test_no_secret_is_shown(monkeypatch):
    class Signed(MemoryFileSystem):
        protocol = "signed"

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.split("@")[-1].split("?")[0].lstrip("/")

    fsspec.register_implementation("signed", Signed, clobber=True)
    Signed().pipe("/0.tar", tar_bytes(sample("a", 1)))
    Signed().pipe("/1.tar", tar_bytes([("a.cls", b"1")]))
    images = opened("signed://ann:hunter2@0.tar?key=hunter2")
    assert images.ids[0] == "0.tar/a.png" and "hunter2" not in repr(images)
    for given in ("signed://ann:hunter2@1.tar?key=hunter2", "signed://ann:hunter2@2.tar?key=hunter2"):
        with pytest.raises((ShardError, FileNotFoundError)) as raised:
            opened(given)
        assert "hunter2" not in str(raised.value)

    def down(self, path, **settings):
        raise ConnectionError("no answer from https://ann:hunter2@example.org/0.tar?key=hunter2")

    monkeypatch.setattr(Signed, "cat_file", down)
    with pytest.raises(ShardError, match="shard '0.tar': no answer from https://example.org/0.tar$") as raised:
        images[0]
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_shards_in_memory_and_how_their_change_is_seen(folder):
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    keys = {opened(given).fingerprint for given in ("memory://bucket/{00000..00001}.tar", "memory://bucket/*.tar", "memory://bucket", ["memory://bucket/00000.tar", "memory://bucket/00001.tar"])}
    assert keys == {opened(folder).fingerprint}
    images = opened("memory://bucket")
    assert images.labels.tolist() == [2, 1, 2, 0, 2] and np.array_equal(images[4], picture(11))
    memory.pipe("/bucket/00001.tar", (folder / "00001.tar").read_bytes().replace(encoded(10), encoded(12)[: len(encoded(10))].ljust(len(encoded(10)), b"\0")))
    for use in (lambda: images[3], lambda: images.fingerprint):
        with pytest.raises(ShardError, match="shard '00001.tar': it has changed"):
            use()


def test_a_filesystem_that_says_nothing_of_changes_is_read_at_every_opening(folder, monkeypatch):
    class Silent(MemoryFileSystem):
        protocol = "silent"

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.removeprefix("silent://").lstrip("/")

        def info(self, path, **settings):
            return {name: value for name, value in super().info(path, **settings).items() if name != "created"}

    fsspec.register_implementation("silent", Silent, clobber=True)
    Silent().pipe("/0.tar", (folder / "00000.tar").read_bytes())
    read = []
    monkeypatch.setattr(Shard, "made", lambda self, made=Shard.made: read.append(self.name) or made(self))
    for _ in range(2):
        with pytest.warns(UserWarning, match="nothing says when shard '0.tar' changes, so that all of it is read at every opening"):
            images = opened("silent://0.tar")
    assert read == ["0.tar"] * 2 and np.array_equal(images[1], picture(1))


# the index


def test_the_second_opening_reads_no_shard(folder, monkeypatch):
    before = opened(folder)
    monkeypatch.setattr(Shard, "made", lambda self: pytest.fail("a shard was read"))
    images = opened(folder)
    assert images.fingerprint == before.fingerprint and images.labels.tolist() == before.labels.tolist() and list(images.ids) == list(before.ids)
    with pytest.raises(BaseException, match="a shard was read"):
        opened(folder, image="png")


def test_ids_and_labels_are_not_read_at_opening(folder, monkeypatch):
    opened(folder)
    shards_module._arrays.cache_clear()
    monkeypatch.setattr(shards_module, "_unpacked", lambda content: pytest.fail("an index was read"))
    images = opened(folder)
    assert repr(images) == "ProbingSet(5 images, 3 classes)" and images.fingerprint
    with pytest.raises(BaseException, match="an index was read"):
        images.labels


def test_a_lost_index_is_made_again(folder, tmp_path):
    images, kept = opened(folder), tmp_path / "cache/shards"
    for file in kept.iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    shards_module._arrays.cache_clear()
    assert np.array_equal(images[4], picture(11)) and opened(folder).fingerprint == images.fingerprint
    shutil.rmtree(kept)
    shards_module._arrays.cache_clear()
    shard(folder / "00001.tar", sample("000", 10, "ant"), sample("001", 12, "dog"))
    with pytest.raises(ShardError, match="shard '00001.tar': it has changed"):
        images[4]


def test_threads_that_need_an_index_read_the_shard_once(folder, monkeypatch, tmp_path):
    images = opened(folder)
    shutil.rmtree(tmp_path / "cache/shards")
    shards_module._arrays.cache_clear()
    read = []
    monkeypatch.setattr(Shard, "made", lambda self, made=Shard.made: read.append(self.name) or made(self))
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(images.__getitem__, [0, 1, 2, 3, 4] * 20))
    assert sorted(read) == ["00000.tar", "00001.tar"]
    assert all(np.array_equal(shown, picture(seed)) for shown, seed in zip(pictures, [0, 1, 2, 10, 11] * 20))


def test_progress_counts_the_bytes_that_are_read(folder, capsys):
    ProbingSet.from_webdataset(folder)
    assert "index of shards: 100%" in capsys.readouterr().err
    ProbingSet.from_webdataset(folder)
    assert capsys.readouterr().err == ""


# recordings and other processes


def same_images(tmp_path):
    """Probing sets of the same nine images, one of them bad: from a folder, from tar files, from Parquet."""
    contents = [encoded(seed) for seed in range(8)]
    contents.insert(4, encoded(8)[:50])
    (tmp_path / "photos").mkdir()
    (tmp_path / "tars").mkdir()
    for number, content in enumerate(contents):
        (tmp_path / "photos" / f"{number}.png").write_bytes(content)
    for number in range(3):
        (tmp_path / "tars" / f"{number}.tar").write_bytes(tar_bytes([(f"{key}.png", contents[3 * number + key]) for key in range(3)]))
    parquet.write_table(pyarrow.table({"image": [{"bytes": content, "path": None} for content in contents]}), tmp_path / "0.parquet", row_group_size=4)
    return ProbingSet.from_folder(tmp_path / "photos"), opened(tmp_path / "tars"), rows(tmp_path / "0.parquet")


@pytest.mark.parametrize("workers", [0, 4])
def test_a_recording_from_shards_is_that_from_a_folder(tmp_path, workers):
    torch.manual_seed(0)
    target = Target(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3)), ["0", "2"], ToTensor(), device="cpu")
    recordings = [record(target, images, pool=("mean", "max"), batch_size=2, workers=workers, progress=False) for images in same_images(tmp_path)]
    for recording in recordings[1:]:
        for layer in ("0", "2"):
            assert all(recording.pooled(layer, pool).equals(recordings[0].pooled(layer, pool)) for pool in ("mean", "max"))
            assert np.array_equal(recording.quantile(layer, 0.9), recordings[0].quantile(layer, 0.9))
        assert recording.bad_images["reason"].tolist() == recordings[0].bad_images["reason"].tolist() and len(recording.bad_images) == 1
    assert len({recording.fingerprint for recording in recordings}) == 3


def test_another_process_gets_addresses_and_reads_for_itself(tmp_path, monkeypatch):
    torch.manual_seed(0)
    target = Target(nn.Sequential(nn.Conv2d(3, 4, 3)), ["0"], ToTensor(), device="cpu")
    folder, tars, table = same_images(tmp_path)
    expected = record(target, folder, progress=False)["0"]
    monkeypatch.setenv("NEURONBENCH_CACHE", str(tmp_path / "of the workers"))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for images in (tars, table):
            assert record(target, images, executor=pool, progress=False)["0"].equals(expected)
    assert len(list((tmp_path / "of the workers/shards").glob("*.npz"))) == 4


def test_what_is_sent_does_not_grow_with_the_images(tmp_path):
    sizes = []
    for count in (10, 400):
        shard(tmp_path / f"{count:04}.tar", *(sample(f"{key:04}", key, key % 3) for key in range(count)))
        images = opened(tmp_path / f"{count:04}.tar")
        images.labels, list(images.ids), images[0]
        sizes.append(len(pickle.dumps(images)))
        again = pickle.loads(pickle.dumps(images))
        assert again.labels.tolist() == images.labels.tolist() and np.array_equal(again[3], images[3]) and again.fingerprint == images.fingerprint
    assert abs(sizes[1] - sizes[0]) < 10 and sizes[1] < 2500


def test_chosen_images_of_shards(folder):
    some = opened(folder).chosen([3, 0])
    assert some.ids == ["00001.tar/000.png", "00000.tar/000.png"] and some.classes == ["ant", "dog"] and some.labels.tolist() == [0, 1]
    assert np.array_equal(pickle.loads(pickle.dumps(some))[0], picture(10))


# Parquet


def table_of(labels=None, seeds=range(4), **columns):
    given = {"image": [{"bytes": encoded(seed), "path": f"{seed}.png"} for seed in seeds]} | ({} if labels is None else {"label": labels}) | columns
    return pyarrow.table(given)


def hub(table, **features):
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def written(path, table, **settings):
    parquet.write_table(table, path, **settings)
    return path


def refused_rows(path, table, error=ShardError, **settings):
    with pytest.raises(error) as raised:
        rows(written(path, table), **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_rows_of_two_shards(tmp_path):
    written(tmp_path / "train-00000-of-00002.parquet", table_of(["dog", "cat", "dog", "dog"]), row_group_size=3)
    written(tmp_path / "train-00001-of-00002.parquet", table_of(["ant", "cat"], seeds=(7, 8)))
    images = rows(tmp_path)
    assert images.classes == ["ant", "cat", "dog"] and images.labels.tolist() == [2, 1, 2, 2, 0, 1]
    assert images.ids[3] == "train-00000-of-00002.parquet/3" and list(images.ids)[4:] == ["train-00001-of-00002.parquet/0", "train-00001-of-00002.parquet/1"]
    assert all(np.array_equal(images[position], picture(seed)) for position, seed in enumerate((0, 1, 2, 3, 7, 8)))


def test_what_datasets_writes(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "species": datasets.ClassLabel(names=["cat", "dog"]), "size": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"photo": [picture(seed) for seed in range(5)], "species": [1, 0, 1, 1, 0], "size": [3, 4, 5, 6, 7]}, features=features)
    data.to_parquet(tmp_path / "0.parquet", batch_size=2)
    images = rows(tmp_path)
    assert images.classes == ["cat", "dog"] and images.labels.tolist() == [1, 0, 1, 1, 0] and np.array_equal(images[4], picture(4))
    assert rows(tmp_path, label="size").labels.tolist() == [3, 4, 5, 6, 7]


def test_a_column_of_bytes_and_one_that_is_named(tmp_path):
    table = pyarrow.table({"image": [encoded(1), encoded(2)], "thumb": [encoded(3), encoded(4)], "kind": pyarrow.array(["b", "a"]).dictionary_encode()})
    images = rows(written(tmp_path / "0.parquet", table), label="kind")
    assert np.array_equal(images[1], picture(2)) and images.labels.tolist() == [1, 0] and images.classes == ["a", "b"]
    assert np.array_equal(rows(tmp_path / "0.parquet", image="thumb")[1], picture(4))


def test_columns_that_are_not_told_apart(tmp_path):
    two = pyarrow.table({"left": table_of()["image"], "right": table_of()["image"], "label": [1, 2, 3, 4]})
    path = tmp_path / "0.parquet"
    assert "columns 'left' and 'right' hold images: say which to record, such as image='left'" in refused_rows(path, two)
    assert np.array_equal(rows(path, image="right")[2], picture(2))
    assert "no column 'rigth'; did you mean 'right'" in refused_rows(path, two, image="rigth")
    assert "column 'label' is of the type int64: expected the bytes of images" in refused_rows(path, two, image="label")
    assert "no column of images among 'label'" in refused_rows(path, two.select(["label"]))
    sound = {"image": {"_type": "Audio"}, "label": {"_type": "Value", "dtype": "int64"}}
    assert "no column of images among 'image', 'label'" in refused_rows(path, hub(table_of([1, 2, 3, 4]), **sound))
    names = {name: {"_type": "ClassLabel", "names": ["a", "b"]} for name in ("coarse", "fine")} | {"image": {"_type": "Image"}}
    classes = hub(table_of(coarse=[0, 1, 0, 1], fine=[1, 1, 0, 0]), **names)
    assert "columns 'coarse' and 'fine' hold labels: say which are meant, such as label='coarse'" in refused_rows(path, classes)
    images = rows(path, label="fine")
    assert images.labels.tolist() == [1, 1, 0, 0] and images.classes == ["a", "b"]


def test_rows_without_an_image_or_a_label(tmp_path):
    path = tmp_path / "0.parquet"
    for missing in ({"bytes": None, "path": "elsewhere/3.png"}, None):
        contents = [{"bytes": encoded(1), "path": None}, missing]
        assert "row 1 has no bytes in its column 'image': expected an image, and not only the path of its file" in refused_rows(path, pyarrow.table({"image": contents}))
    assert "2 of its 4 images have no label, the first 'row 1': expected a label for all or for none" in refused_rows(path, table_of([1, None, 2, None]))
    assert "its labels are such as 3.5: expected whole numbers, or names, for all" in refused_rows(path, table_of(weight=[0.5, 1.5, 2.5, 3.5]), label="weight")
    assert "it holds no images" in refused_rows(path, table_of([1] * 4).slice(0, 0))
    assert rows(written(path, table_of([-1] * 4))).labels is None
    with pytest.raises(ValueError, match="1 of 4 labels are no class, the first -1 of image '0.parquet/2'"):
        rows(written(path, table_of([1, 0, -1, 1]))).labels


def test_mixed_columns(tmp_path):
    written(tmp_path / "0.parquet", table_of([1, 2, 3, 4]))
    written(tmp_path / "1.parquet", table_of([1, 2, 3, 4]).rename_columns(["photo", "label"]))
    with pytest.raises(ShardError, match="shard '0.parquet' has images in the column 'image' .*, and shard '1.parquet' images in the column 'photo' .*: expected the same of all"):
        rows(tmp_path)
    for number, names in enumerate((["a", "b"], ["b", "a"])):
        written(tmp_path / f"{number}.parquet", hub(table_of([0, 1, 0, 1]), image={"_type": "Image"}, label={"_type": "ClassLabel", "names": names}))
    with pytest.raises(ShardError, match="expected the same of all, with the same names"):
        rows(tmp_path)


def test_damaged_parquet(tmp_path):
    path = written(tmp_path / "0.parquet", table_of([1, 2, 3, 4]), write_page_checksum=True)
    whole = path.read_bytes()
    for cut in (0, 3, 11, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match="shard '0.parquet': "):
            rows(path)
    at = whole.index(encoded(2)[20:40]) if encoded(2)[20:40] in whole else 200
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ShardError, match="shard '0.parquet': "):
        rows(path)
    path.write_bytes(tar_bytes(sample("a", 1)))
    with pytest.raises(ShardError, match="shard '0.parquet': .*[Pp]arquet"):
        rows(path)


def test_any_flipped_byte_of_parquet_is_refused_or_is_in_an_image_or_a_label(tmp_path):
    random, whole = np.random.default_rng(1), np.frombuffer(written(tmp_path / "0.parquet", table_of(["a", "b", "a", "c"]), row_group_size=2).read_bytes(), np.uint8)
    refusals = 0
    for trial in range(60):
        damaged = whole.copy()
        damaged[random.integers(0 if trial % 2 else len(whole) - 900, len(whole), 2)] ^= random.integers(1, 256, 2).astype(np.uint8)
        (tmp_path / "damaged.parquet").write_bytes(damaged.tobytes())
        try:
            images = rows(tmp_path / "damaged.parquet")
        except ShardError as error:
            refusals += "\n" not in str(error)
            continue
        for position in range(4):
            try:
                assert images[position].mode == "RGB"
            except BadImage as bad:
                assert bad.reason
    assert 0 < refusals < 60


def test_a_parquet_file_that_changed(tmp_path):
    path = written(tmp_path / "0.parquet", table_of(), row_group_size=1)
    images = rows(path)
    images[0]
    time.sleep(0.05)
    written(path, table_of(seeds=range(10, 14)), row_group_size=1)
    with pytest.raises(ShardError, match="shard '0.parquet': it has changed"):
        images[1]
    with pytest.raises(ShardError, match="shard '0.parquet': it has changed"):
        images.fingerprint
    written(path, table_of(seeds=range(2)), row_group_size=1)
    with pytest.raises(ShardError, match="shard '0.parquet': "):
        images[3]
    assert np.array_equal(rows(path)[1], picture(1))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    path, imported = written(tmp_path / "0.parquet", table_of()), builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"Parquet files need pyarrow: pip install 'neuronbench\[parquet\]'"):
        rows(path)


def test_groups_are_read_once_by_whoever_asks_first(tmp_path, monkeypatch):
    images = rows(written(tmp_path / "0.parquet", table_of(seeds=range(40)), row_group_size=10))
    read = []
    monkeypatch.setattr(shards_module.Parquet, "_group", lambda self, address, group, make=shards_module.Parquet._group: read.append(group) or make(self, address, group))
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(images.__getitem__, range(40)))
    assert read == [0, 1, 2, 3] and all(np.array_equal(shown, picture(seed)) for seed, shown in enumerate(pictures))


def test_what_could_not_be_made_is_tried_again():
    held = Held(100)

    def fails():
        raise OSError("the line is down")

    for _ in range(2):
        with pytest.raises(OSError, match="the line is down"):
            held.get("a", fails)
    assert held.get("a", lambda: np.ones(3)).sum() == 3


def test_a_server_that_gives_only_whole_files(folder, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe("/whole/0.tar", (folder / "00000.tar").read_bytes())
    images = opened("memory://whole/0.tar")
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda self, path, start=None, end=None: self.store[path].getvalue())
    with pytest.raises(ShardError, match="shard '0.tar': whoever holds it gives only the whole file: expected a server that gives parts of it"):
        images[0]
