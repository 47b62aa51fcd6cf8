"""Stores that lose files, bytes or their folder: what is damaged is computed anew or refused, and never served."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import nn

from neuronbench.probe.exemplars import exemplars
from neuronbench.probe.images import ProbingSet
from neuronbench.probe.recording import record
from neuronbench.probe.store import ArrayPlan, ArrayStore, StoreError, locked
from neuronbench.probe.target import Target


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


class Noise:
    """Noise drawn from the index; the last image cannot be read, and counts how often images are asked for."""

    fingerprint = "noise of the store's tests"
    asked = 0

    def __init__(self, count=258):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        Noise.asked += 1
        if index == self.count - 1:
            raise ValueError("a scratch on the film")
        return np.random.default_rng(index).integers(0, 256, (5, 5, 3), dtype=np.uint8)


def target(seed=0):
    torch.manual_seed(seed)
    return Target(nn.Sequential(nn.Conv2d(3, 4, 3)), ["0"], to_tensor, device="cpu")


def recorded(store, seed=0, count=258):
    return record(target(seed), ProbingSet.from_dataset(Noise(count)), store, workers=0, progress=False)


def answers(recording):
    return (recording["0"].values.tolist(), recording.quantile("0", 0.9).tolist(), recording.bad_images.to_dict("list"),
            len(recording.nonfinite), exemplars(recording, "0", units=[1, 2], k=2).maps.tolist())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """(store, what it answers)."""
    store = tmp_path_factory.mktemp("sound") / "s.zarr"
    return store, answers(recorded(store))


def emptied(file):
    file.write_bytes(b"")


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    file.write_bytes(content)


def flipped_early(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 5] ^= 1
    file.write_bytes(content)


HARMS = (os.remove, emptied, cut, flipped, flipped_early)


@pytest.mark.parametrize("harm", HARMS)
def test_any_file_that_is_lost_or_damaged_is_made_anew(sound, tmp_path, harm):
    store, expected = sound
    files = sorted(path.relative_to(store) for path in store.rglob("*") if path.is_file())
    assert len(files) > 15
    for number, file in enumerate(files):
        copy = tmp_path / f"{number}.zarr"
        shutil.copytree(store, copy)
        harm(copy / file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert answers(recorded(copy)) == expected, file
            Noise.asked = 0
            assert answers(recorded(copy)) == expected and Noise.asked == 0, file  # the damage is mended for good
        shutil.rmtree(copy)


def to_folder(path):
    path.unlink()
    path.mkdir()


def to_itself(path):
    path.unlink()
    path.symlink_to(path)


def to_pipe(path):
    path.unlink()
    os.mkfifo(path)


def to_nesting(path):
    path.write_bytes(b"[" * 200_000)


def to_null(path):
    path.write_bytes(b"null")


def to_file(path):
    shutil.rmtree(path)
    path.write_bytes(b"x")


def to_nowhere(path):
    shutil.rmtree(path)
    path.symlink_to("/nowhere/there")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(store of one chunk, what it answers)."""
    store = tmp_path_factory.mktemp("small") / "s.zarr"
    return store, answers(recorded(store, count=6))


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
@pytest.mark.parametrize("harm", [to_folder, to_itself, to_pipe, to_nesting, to_null, to_file, to_nowhere, shutil.rmtree])
def test_what_lies_in_the_place_of_a_file_or_a_folder_makes_way(small, tmp_path, harm):
    store, expected = small
    whole = harm in (to_file, to_nowhere, shutil.rmtree)
    for number, path in enumerate(sorted(path.relative_to(store) for path in store.rglob("*") if path.is_dir() == whole)):
        copy = tmp_path / f"{number}.zarr"
        shutil.copytree(store, copy)
        harm(copy / path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert answers(recorded(copy, count=6)) == expected, path


def test_metadata_that_change_under_an_open_recording_are_refused(small, tmp_path):
    store, expected = small
    shutil.copytree(store, tmp_path / "s")
    opened = recorded(tmp_path / "s", count=6)
    for name, ask in (("pooled/0/mean", lambda one: one["0"]), ("sketch/0", lambda one: one.quantile("0", 0.5)), ("nonfinite/0", lambda one: one.nonfinite),
                      ("finished", lambda one: one.bad_images)):
        [file] = (tmp_path / "s").glob(f"*/{name}/zarr.json")
        sound = file.read_text()
        line = sound.replace("\n", "").replace("[    ", "[")
        for change in (('"shape": [', '"shape": [1'), ("NaN", "1.0"), ('"fill_value": 0', '"fill_value": 1'), ("zstd", "gzip"), ("int", "uint"), ("float32", "float64")):
            if change[0] in line:
                file.write_text(line.replace(*change, 1))
                with pytest.raises(StoreError, match="zarr.json' of the store is missing or damaged: call record"):
                    ask(opened)
        file.write_text(sound)
    assert answers(opened) == expected


@pytest.mark.parametrize("harm", HARMS)
def test_an_open_recording_refuses_what_is_lost_or_damaged(sound, tmp_path, harm):
    store, expected = sound
    for part, ask in (("pooled", lambda one: one["0"]), ("sketch", lambda one: one.quantile("0", 0.5)),
                      ("nonfinite", lambda one: one.nonfinite), ("finished", lambda one: one.bad_images)):
        copy = tmp_path / f"{part}.zarr"
        shutil.copytree(store, copy)
        opened = recorded(copy)
        [file, *_] = sorted(path for path in copy.rglob(f"{part}/**/c/**/*") if path.is_file())
        harm(file)
        with pytest.raises(StoreError, match="of the store is (missing|damaged): call record with this store again, which computes its images anew") as raised:
            ask(opened)
        assert str(file) in str(raised.value) and "\n" not in str(raised.value)
        [metadata] = copy.glob(f"*/{part}/zarr.json") if part == "finished" else copy.glob(f"*/{part}/**/c/../zarr.json")
        metadata.unlink()
        with pytest.raises(StoreError, match="zarr.json' of the store is missing or damaged: call record"):
            ask(opened)


def test_damage_is_said_and_only_its_chunk_is_computed_anew(sound, tmp_path):
    store, expected = sound
    shutil.copytree(store, tmp_path / "s")
    [file] = (tmp_path / "s").glob("*/pooled/0/mean/c/1/0")
    file.unlink()
    Noise.asked = 0
    with pytest.warns(UserWarning, match="files of 1 chunks of the recording are missing or damaged, e.g. '.*/pooled/0/mean/c/1/0': their images"):
        again = recorded(tmp_path / "s")
    assert Noise.asked == 2 and answers(again) == expected


def test_maps_of_exemplars_are_gathered_anew_where_a_file_is_lost_or_damaged(sound, tmp_path):
    store, expected = sound
    for number, harm in enumerate(HARMS):
        copy = tmp_path / f"{number}.zarr"
        shutil.copytree(store, copy)
        recording = recorded(copy)
        [file, *_] = sorted(path for path in copy.rglob("exemplars/**/c/**/*") if path.is_file())
        harm(file)
        assert exemplars(recording, "0", units=[1, 2], k=2).maps.tolist() == expected[-1]
        assert not recording.store.arrays.damaged("/".join(file.relative_to(copy).parts[1:3]))


def test_maps_of_exemplars_are_written_by_one_at_a_time(tmp_path):
    recording = recorded(tmp_path / "s")
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "s", recording.fingerprint):
            waiting = pool.submit(exemplars, recording, "0", None, 3)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=2)
            assert not (tmp_path / "s" / recording.fingerprint / "exemplars").exists()
        assert waiting.result(timeout=60).maps.shape == (4, 3, 3, 3)


def test_a_lock_that_is_waited_for_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("neuronbench.probe.store._PATIENCE", 0.1)
    said = []
    monkeypatch.setattr("neuronbench.probe.store.warnings.warn", lambda text, **_: said.append(text) or freed.set())
    freed, entered = Event(), Event()

    def hold():
        with locked(tmp_path / "s", "key"):
            entered.set()
            assert freed.wait(60)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        assert entered.wait(60)
        with locked(tmp_path / "s", "key"):
            holding.result(timeout=60)
    assert said == [f"another process is writing to this store: waiting until it ends; if none is, delete '{tmp_path}/s.locks/key'"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_on_a_disk_without_locks_one_process_writes_at_a_time_and_one_that_was_killed_holds_nothing(tmp_path, code):
    script = ("import fcntl, os, sys, time\ndef flock(*_):\n    raise OSError(int(sys.argv[2]), 'no locks')\nfcntl.flock = flock\n"
              "from pathlib import Path\nfrom neuronbench.probe.store import locked\nwith locked(Path(sys.argv[1]), 'key'):\n    print('held', flush=True)\n    time.sleep(float(sys.argv[3]))")
    ask = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "s"), str(code)]
    first = subprocess.Popen([*ask, "600"], stdout=subprocess.PIPE, text=True)
    second = None
    try:
        assert first.stdout.readline() == "held\n"
        second = subprocess.Popen([*ask, "0"], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(8)
        first.kill()
        first.wait()
        assert second.communicate(timeout=120)[0] == "held\n" and second.returncode == 0
    finally:
        for process in filter(None, (first, second)):
            process.kill()
            process.wait()


def test_exemplars_at_once_from_several_threads(tmp_path):
    recording = recorded(tmp_path / "s")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: exemplars(recording, "0", k=5).maps, range(8)))
    assert all(np.array_equal(maps, found[0]) for maps in found)


def test_a_recording_by_a_relative_path_works_after_chdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recording = recorded("runs/a.zarr")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert recording["0"].shape == (257, 4) and np.isfinite(recording.quantile("0", 0.9)).all() and "(4 units)" in repr(recording)
    assert exemplars(recording, "0", k=1).maps.shape == (4, 1, 3, 3) and len(recording.bad_images) == 1
    assert not os.listdir(tmp_path / "elsewhere")


def test_different_recordings_begun_at_once_in_a_new_store(tmp_path):
    for attempt in range(3):
        store = tmp_path / f"{attempt}.zarr"
        images, targets = ProbingSet.from_dataset(Noise()), [target(seed) for seed in range(4)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda one: record(one, images, store, workers=0, progress=False), targets))
        assert len({recording.fingerprint for recording in found}) == 4
        for seed, recording in enumerate(found):
            assert np.array_equal(recording["0"], recorded(store, seed)["0"])


def test_different_recordings_begun_at_once_by_processes(tmp_path):
    code = "import sys, test_store; test_store.recorded(sys.argv[1], int(sys.argv[2])); print('recorded')"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "s"), str(seed)], cwd=Path(__file__).parent,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for seed in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [out for out, _ in said] == ["recorded\n"] * 2, said
    assert len(list(zarr.open_group(tmp_path / "s", mode="r").groups())) == 2


def test_a_folder_that_is_no_store_is_left_as_it_is(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos/a.png")
    with pytest.raises(StoreError, match="is there already and is no store"):
        recorded(tmp_path / "photos")
    assert os.listdir(tmp_path) == ["photos"] and os.listdir(tmp_path / "photos") == ["a.png"]


def test_what_is_nothing_but_fill_values_is_not_missing(tmp_path):
    plan = ArrayPlan((4, 2), (2, 2), "float32", np.nan)
    arrays = ArrayStore.opened(tmp_path / "s", "g")
    arrays.begin({})
    arrays.prepare({"a": plan})
    assert [what for _, _, what in arrays.damaged("a")] == ["missing"] * 2
    arrays.write("a", slice(None), np.nan)
    assert np.isnan(arrays.read("a", plan)).all() and not arrays.damaged("a")


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (7, 7)])
def test_a_store_takes_at_most_three_times_its_pooled_values(tmp_path, size):
    """Of 2,000 images: vectors, maps of so few positions that all are kept, and others."""
    recording = wide(tmp_path / "s", 2000, 512, size)
    taken = sum(path.stat().st_size for path in (tmp_path / "s").rglob("*") if path.is_file())
    assert taken <= 3 * 4 * 2000 * 512, taken / (4 * 2000 * 512)
    assert recording["0"].shape == (2000, 512) and np.unique(recording["0"]).size > 500_000  # hardly to be compressed


def wide(store, count, units, size):
    """A recording of many images that are small, and of units whose values hardly compress."""
    values = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
    torch.manual_seed(0)
    network = Target(nn.Sequential(nn.Conv2d(3, units, 1)), ["0"], to_tensor, device="cpu")
    return record(network, ProbingSet.from_images(list(values)), store, workers=0, batch_size=256, progress=False)


@pytest.mark.parametrize("bad", [False, True])
def test_a_layer_is_read_and_ranked_in_little_more_than_its_own_memory(tmp_path, bad):
    recording = wide(tmp_path / "s", 256 * 40, 512, (1, 1))
    if bad:
        recording.store.arrays.write("finished", 1, json.dumps([[300, "300", "a scratch"]]))
    tracemalloc.start()
    recording.top("0", 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recording["0"].shape == (256 * 40 - bad, 512) and peak <= 1.4 * recording["0"].nbytes, peak / recording["0"].nbytes
    assert np.array_equal(recording["0"].values, recording.store.arrays.read("pooled/0/mean", recording.store.planned["pooled/0/mean"])[recording["0"]["image"]])


def test_a_store_in_memory_has_no_files_to_lose():
    recording = recorded(None)
    assert recording["0"].shape == (257, 4) and not recording.store.arrays.damaged("pooled/0/mean")
