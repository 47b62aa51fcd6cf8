"""Recordings: values, keys, resuming after SIGKILL, several processes, bad images, bad numbers, bad stores."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import nn

import recording_script
from neuronbench.probe.images import BadImage, ProbingSet
from neuronbench.probe.recording import largest, record
from neuronbench.probe.store import ArrayStore, StoreError
from neuronbench.probe.target import Target


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def noise(count, size=10):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def recorded(images, layers=("1", "4"), model=None, store=None, **options):
    target = Target(model or network(), layers, to_tensor, device="cpu")
    images = images if isinstance(images, ProbingSet) else ProbingSet.from_images(images)
    return record(target, images, store, progress=False, **options)


def files(store):
    return {path.relative_to(store): path.read_bytes() for path in Path(store).rglob("*") if path.is_file()}


# values


def test_values_are_those_of_the_network():
    pictures, model = noise(70), network()
    recording = recorded(pictures, model=model, pool=("mean", "max"), batch_size=32)
    batch = torch.stack([to_tensor(picture) for picture in pictures])
    with torch.no_grad():
        maps, vectors = model[:2](batch), model(batch)
    assert np.allclose(recording["1"], maps.mean((2, 3)), atol=1e-6)
    assert np.allclose(recording.pooled("1", "max"), maps.amax((2, 3)), atol=1e-6)
    assert np.allclose(recording["4"], vectors, atol=1e-6) and np.array_equal(recording.pooled("4", "max"), recording["4"])
    assert recording["1"].dims == ("image", "unit") and recording["1"]["image"].values.tolist() == list(range(70))
    assert recording["1"].dtype == np.float32 and recording.layers == ("1", "4")


def test_top():
    recording = recorded(noise(30))
    column = recording["4"].values[:, 2]
    top = recording.top("4", unit=2, k=5)
    assert list(top.columns) == ["image", "activation"] and top["image"].tolist() == np.argsort(-column)[:5].tolist()
    assert (np.diff(top["activation"]) <= 0).all() and len(recording.top("4", 2, k=1000)) == 30


def test_images_are_ranked_once_for_all_units(monkeypatch):
    recording, calls = recorded(noise(150), ["0"], nn.Sequential(Dead())), []
    monkeypatch.setattr("neuronbench.probe.recording.largest", lambda values, k: calls.append(values.shape) or largest(values, k))
    values = recording["0"].values
    for k in (1, 7, 100):
        for unit in range(5):
            assert recording.top("0", unit, k)["image"].tolist() == np.argsort(-values[:, unit], kind="stable")[:k].tolist()
    images, activations = recording.ranked("0", [4, 0], k=100)
    assert calls == [(150, 5)] and images.shape == activations.shape == (2, 100) and activations.dtype == np.float32
    assert recording.top("0", 4, k=150)["image"].tolist() == np.argsort(-values[:, 4], kind="stable").tolist() and calls == [(150, 5), (150, 1)]
    with pytest.raises(IndexError, match=r"no unit 5 in layer '0': it has 5 units \(0..4\)"):
        recording.ranked("0", [0, 5])


class Dead(nn.Module):
    """Units that are often equal: the first is always 0, the last never twice the same."""

    def forward(self, x):
        return (x.flatten(1)[:, :5] * torch.tensor([0, 1, 2, 9, 1000])).floor()


def test_missing_layers_units_and_pools():
    recording = recorded(noise(3))
    with pytest.raises(KeyError, match="no layer '11'; did you mean '1'"):
        recording["11"]
    with pytest.raises(IndexError, match=r"no unit 4 in layer '4': it has 4 units \(0..3\)"):
        recording.top("4", 4)
    with pytest.raises(IndexError):
        recording.top("4", -1)
    with pytest.raises(KeyError, match="no recorded pooling 'max'"):
        recording.pooled("1", "max")
    with pytest.raises(KeyError, match="no pooling 'median'"):
        recorded(noise(3), pool=("median",))
    with pytest.raises(KeyError, match="did you mean 'skip'"):
        recorded(noise(3), on_bad_image="skp")


class Tokens(nn.Module):
    """Tokens (B, front + 9, 5): `front` of them before the 3 x 3 patches of a picture of 9 x 9."""

    def __init__(self, front):
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 5, 3, 3), nn.Identity()
        self.cls_token = nn.Parameter(torch.full((1, front, 5), 9.0)) if front else None

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.block(tokens if self.cls_token is None else torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1))


@pytest.mark.parametrize("front", [0, 1])
def test_tokens_are_recorded_by_their_class_token_or_the_mean_of_their_patches(front):
    model, pictures = Tokens(front), noise(4, 9)
    recording = recorded(pictures, ["block"], model)
    with torch.no_grad():
        tokens = model(torch.stack([to_tensor(picture) for picture in pictures]))
    patches = tokens[:, front:]
    assert recording.pools == {"block": ("class",) if front else ("mean",)}
    assert np.allclose(recording["block"], tokens[:, 0] if front else patches.mean(1), atol=1e-6)
    for q in (0, 0.3, 1):
        assert np.allclose(recording.quantile("block", q), np.quantile(patches.numpy(), q, axis=(0, 1), method="inverted_cdf"), atol=1e-6)
    both = recorded(pictures, ["block"], Tokens(front), pool=("mean", "max"))
    with torch.no_grad():
        patches = both.target.model(torch.stack([to_tensor(picture) for picture in pictures]))[:, front:]
    assert np.allclose(both["block"], patches.mean(1), atol=1e-6) and np.allclose(both.pooled("block", "max"), patches.amax(1), atol=1e-6)


def test_a_layer_without_a_class_token_is_not_pooled_by_one():
    with pytest.raises(ValueError, match="layer 'block' .* has no class token: expected pool 'mean' or 'max'"):
        recorded(noise(4, 9), ["block"], Tokens(0), pool="class")


def test_vectors_are_recorded_before_the_next_layer_overwrites_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    recording = recorded(noise(20), ["1", "3"], model)
    assert (recording["1"] < 0).any() and (recording.quantile("1", 0.0) < 0).any()


def test_maps_of_different_sizes_are_pooled():
    recording = recorded(noise(2, 20) + noise(2, 10), batch_size=2)
    assert recording["1"].shape == (4, 6) and np.isfinite(recording["1"]).all() and np.isfinite(recording.quantile("1", 0.9)).all()


def test_autocast_is_another_recording(tmp_path):
    plain, rough = recorded(noise(5), store=tmp_path / "s"), recorded(noise(5), store=tmp_path / "s", autocast=True)
    assert plain.fingerprint != rough.fingerprint and np.allclose(plain["4"], rough["4"], atol=0.05)


def test_workers_and_batches_do_not_change_the_values():
    pictures = noise(40)
    one = recorded(pictures, workers=0, batch_size=7)
    for workers, batch_size in ((1, 7), (4, 7), (4, 64)):
        assert np.allclose(recorded(pictures, workers=workers, batch_size=batch_size)["4"], one["4"], atol=1e-6)


def test_whole_call_is_quick_to_read():
    assert repr(recorded(noise(3))) == "Recording of 3 images: 1 (6 units), 4 (4 units)"


def test_a_recording_is_handed_out_read_only():
    recording = recorded(noise(12), pool=("mean", "max"))
    kept = {pool: recording.pooled("1", pool).values.copy() for pool in ("mean", "max")}

    def in_place(values):
        values *= -1

    def through_numpy(values):
        values.values[0] = 0

    def by_name(values):
        values.loc[{"unit": 1}] = 0

    def of_the_images(values):
        values["image"].values[0] = 7

    for change in (in_place, through_numpy, by_name, of_the_images):
        for pool in kept:
            with pytest.raises(ValueError, match="read-only"):
                change(recording.pooled("1", pool))
    mine = recording["1"]
    mine.data = np.zeros_like(mine)  # gives this array other values, and the recording none
    mine.attrs["note"] = "mine"
    assert all(np.array_equal(recording.pooled("1", pool), values) for pool, values in kept.items()) and not recording["1"].attrs
    assert recording["1"]["image"].values.tolist() == list(range(12))
    changed = recording["1"].copy()
    changed *= -1
    assert np.array_equal(changed, -kept["mean"])


# quantiles


def test_quantiles_of_vectors_are_exact():
    recording = recorded(noise(600))
    for q in (0.0, 0.5, 0.995, 1.0):
        ours, exact = recording.quantile("4", q), np.quantile(recording["4"], q, axis=0)
        gap = np.abs(np.sort(recording["4"].values, axis=0) - exact).min(0)
        assert ours.shape == (4,) and np.allclose(ours, exact, atol=2 * gap.max() + 0.01)


def test_quantiles_of_maps_leave_the_right_share_above():
    pictures, model = noise(400, 24), network()
    recording = recorded(pictures, ["0"], model)
    with torch.no_grad():
        values = model[0](torch.stack([to_tensor(picture) for picture in pictures]))
    for q in (0.5, 0.9, 0.995):
        threshold = torch.from_numpy(recording.quantile("0", q))[None, :, None, None]
        share = (values > threshold).float().mean((0, 2, 3))
        assert (share - (1 - q)).abs().max() < 5 * np.sqrt(q * (1 - q) / (400 * 16)) + 1e-4


class Rising(nn.Module):
    """Maps (B, 3, side, side) whose values grow from image to image, so that every chunk has other values."""

    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, x):
        values = torch.from_numpy(np.stack([np.random.default_rng(int(seed)).standard_normal((3, self.side, self.side), np.float32) for seed in x[:, 0, 0, 0]]))
        return values * torch.tensor([1, 1, 1e-3])[:, None, None] + x[:, :1, :1, :1] * torch.tensor([0, 0.01, 1])[:, None, None]


@pytest.mark.parametrize(["count", "side"], [(600, 2), (400, 12), (1100, 16), (1500, 32)])
def test_the_share_above_the_quantile_of_network_dissection_is_right_also_where_images_are_sorted(count, side):
    images = ProbingSet.from_images([np.array([[[number % 256, number // 256, 0]]], np.uint8) for number in range(count)])
    target = Target(nn.Sequential(Rising(side)), ["0"], lambda image: torch.tensor(np.asarray(image)[0, 0, :2] @ np.array([1.0, 256.0])).float().reshape(1, 1, 1), device="cpu")
    recording = record(target, images, workers=0, progress=False)
    values = Rising(side)(torch.arange(float(count))[:, None, None, None]).transpose(0, 1).flatten(1)
    for q in (0.99, 0.995, 0.999):
        share = (values > torch.from_numpy(recording.quantile("0", q))[:, None]).float().mean(1)
        assert (share - (1 - q)).abs().max() <= (1.5 / values.shape[1] if values.shape[1] <= 65536 and q >= 0.995 else 0.0002 * np.sqrt((1 - q) / 0.005)), (q, share)


@pytest.mark.parametrize(["count", "side"], [(300, 6), (700, 16)])
def test_samples_that_do_not_fit_into_memory_are_sketched_in_between(monkeypatch, count, side):
    target, images = Target(network(), ["0"], to_tensor, device="cpu"), ProbingSet.from_images(noise(count, side + 2))
    once = record(target, images, workers=0, progress=False)
    monkeypatch.setattr("neuronbench.probe.recording._HELD", 50 * 6 * side**2)  # 50 images, of a batch of 64
    often = record(target, images, workers=0, progress=False)
    assert once.store.plan == often.store.plan and once.store.plan.held == 50 and often["0"].equals(once["0"])
    assert (once.quantile("0", 0.5) == often.quantile("0", 0.5)).all() == (side == 6)
    with torch.no_grad():
        values = target.model[0](torch.stack([to_tensor(images[index]) for index in range(count)])).transpose(0, 1).flatten(1)
    for q in (0.9, 0.99, 0.995):
        share = (values > torch.from_numpy(often.quantile("0", q))[:, None]).float().mean(1)
        assert (share - (1 - q)).abs().max() <= 0.01 * (1 - q) + 2 / values.shape[1]


def of_sizes(*sides):
    """A recording, one image at a time, of squares of these sides; a network that gives a picture's red, and its values (n,)."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256 if side > 10 else 80, (side, side, 3), np.uint8) for side in sides]
    model = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False))
    model[0].weight.data = torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1)
    recording = record(Target(model, ["0"], to_tensor, device="cpu"), ProbingSet.from_images(pictures), batch_size=1, workers=0, progress=False)
    return recording, np.concatenate([picture[..., 0].ravel() for picture in pictures]) / 255


def test_quantiles_of_maps_of_different_sizes_are_exact_where_all_positions_were_taken():
    recording, values = of_sizes(64, 8, 64, 8, 30)
    for q in (0.1, 0.9, 0.995):
        assert np.allclose(recording.quantile("0", q), np.quantile(values, q, method="inverted_cdf"), atol=1e-6)


@pytest.mark.parametrize("sides", [(8, 64, 64, 8), (64, 64, 65), (400, 400, 400, 8)])
def test_quantiles_of_maps_of_different_sizes_are_refused_where_large_images_would_count_too_little(sides):
    recording, _ = of_sizes(*sides)
    assert recording["0"].shape == (len(sides), 1) and np.isfinite(recording["0"]).all()
    lengths = f"{min(sides) ** 2:,} to {max(sides) ** 2:,}"
    with pytest.raises(ValueError, match=f"^layer '0' has from {lengths} positions in an image, and quantiles would count those of large images too little: resize all images"):
        recording.quantile("0", 0.9)


def test_quantiles_of_maps_of_one_size_do_not_mind_bad_images():
    images = ProbingSet.from_images([*noise(3, 200), None, *noise(3, 200)])
    target = Target(nn.Sequential(nn.Conv2d(3, 1, 1)), ["0"], to_tensor, device="cpu")
    assert np.isfinite(record(target, images, workers=0, progress=False).quantile("0", 0.9)).all()


def test_quantiles_are_the_same_in_every_call_also_beyond_what_one_sketch_holds():
    images = ProbingSet.from_images([Image.effect_noise((64, 64), 90).convert("RGB") for _ in range(300)])
    torch.manual_seed(0)
    target = Target(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1)), ["0"], lambda image: torch.tensor(np.array(image)).permute(2, 0, 1) / 255, device="cpu")
    first, again = (record(target, images, progress=False) for _ in range(2))
    calls = [one.quantile("0", 0.995) for one in (first, first, again, again)]
    assert all(np.array_equal(calls[0], other) for other in calls[1:])


def test_quantiles_of_many_units_keep_their_order():
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, 600))
    recording = recorded(noise(50), ["1"], model)
    assert np.array_equal(recording.quantile("1", 1.0), recording["1"].values.max(0))


# keys


def test_second_call_computes_nothing(tmp_path):
    log = tmp_path / "log"
    first = recording_script.run(tmp_path / "s", log)
    decoded = len(log.read_text().splitlines())
    second = recording_script.run(tmp_path / "s", log)
    assert decoded == recording_script.COUNT + 1 == len(log.read_text().splitlines())  # the layouts are decided by the first image
    assert first.fingerprint == second.fingerprint and first["3"].equals(second["3"])


def test_no_old_values_after_a_change(tmp_path):
    pictures, store = noise(5), tmp_path / "s"
    first = recorded(pictures, store=store)
    changed = network()
    changed[0].weight.data[0] += 1
    assert not np.allclose(recorded(pictures, model=changed, store=store)["1"][:, 0], first["1"][:, 0])
    other = [picture.copy() for picture in pictures]
    other[3][0, 0] = 255 - other[3][0, 0]
    again = recorded(other, store=store)
    assert not np.allclose(again["1"][3], first["1"][3]) and np.allclose(again["1"][:3], first["1"][:3])
    target = Target(network(), ["1", "4"], lambda image: to_tensor(image) * 2, device="cpu")
    assert not np.allclose(record(target, ProbingSet.from_images(pictures), store, progress=False)["1"], first["1"])
    assert recorded(pictures, layers=["4"], store=store).layers == ("4",)
    assert len(list(zarr.open_group(store, mode="r").groups())) == 5
    assert recorded(pictures, store=store)["1"].equals(first["1"])


def test_image_changed_on_disk_is_noticed(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, picture in enumerate(noise(3)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    images = ProbingSet.from_folder(folder)
    first = recorded(images, store=tmp_path / "s")
    Image.fromarray(255 - noise(3)[1]).save(folder / "1.png")
    second = recorded(images, store=tmp_path / "s")
    assert first.fingerprint != second.fingerprint and not np.allclose(first["1"][1], second["1"][1])


# killed and continued


def start(store, log, *more):
    command = [sys.executable, "-c", "import recording_script; recording_script.main()", *map(str, (store, log, *more))]
    return subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    recording_script.run(folder / "s", folder / "log")
    return files(folder / "s")


@pytest.mark.parametrize("kills", [[1], [2, 3], [5]])
def test_killed_anywhere_it_continues_and_ends_with_the_same_bytes(tmp_path, uninterrupted, kills):
    store, log = tmp_path / "s", tmp_path / "log"
    for finished in kills:
        process = start(store, log)
        while len(list(store.glob("*/finished/c/*"))) < finished and process.poll() is None:
            time.sleep(0.001)
        time.sleep(random.random() * 0.03)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = {int(path.name) for path in store.glob("*/finished/c/*") if path.suffix != ".partial"}
    assert done and len(done) >= max(kills)
    log.write_text("")
    recording_script.run(store, log)
    decoded = {int(line) for line in log.read_text().splitlines()}
    finished_images = {image for chunk in done for image in range(256 * chunk, 256 * (chunk + 1))}
    assert not decoded & finished_images and decoded | finished_images >= set(range(recording_script.COUNT))
    assert {name: content for name, content in files(store).items() if ".partial" not in name.name} == uninterrupted


def test_killed_between_the_arrays_of_a_chunk(tmp_path, uninterrupted):
    store = tmp_path / "s"
    recording_script.run(store, tmp_path / "log")
    for name in ("finished/c/2", "pooled/3/max/c/2/0"):
        next(store.glob(f"*/{name}")).unlink()
    next(store.glob("*/pooled/1/mean/c/2/0")).with_suffix(".0123456789abcdef.partial").write_bytes(b"half")
    recording_script.run(store, tmp_path / "log")
    assert {name: content for name, content in files(store).items() if ".partial" not in name.name} == uninterrupted


@pytest.mark.parametrize("last", range(6))
def test_killed_while_the_sketches_are_merged_it_computes_nothing_anew(tmp_path, uninterrupted, monkeypatch, last):
    """With `last` writes of what they become, or with half of what they were removed."""
    store, log, written = tmp_path / "s", tmp_path / "log", []
    write, remove = ArrayStore.write, ArrayStore.remove

    def killed(*_):
        raise KeyboardInterrupt

    def write_some(arrays, name, *values):
        if name.startswith(("sketch", "counts")):
            written.append(name) if len(written) < last else killed()
        write(arrays, name, *values)

    def remove_half(arrays, folder):
        remove(arrays, f"{folder}/1/points")
        killed()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ArrayStore, "write", write_some)
        patch.setattr(ArrayStore, "remove", remove_half)
        recording_script.run(store, log)
    assert list(store.glob("*/partial")) and len(written) == min(last, 4)
    log.write_text("")
    recording_script.run(store, log)
    assert log.read_text() == "" and files(store) == uninterrupted


def test_nothing_is_left_of_the_sketches_of_chunks(tmp_path, uninterrupted):
    assert not [path for path in uninterrupted if "partial" in path.parts] and {"sketch", "counts"} < {path.parts[1] for path in uninterrupted if len(path.parts) > 2}


def test_sketches_that_are_lost_are_made_anew_of_all_images(tmp_path, uninterrupted):
    store, log = tmp_path / "s", tmp_path / "log"
    recording_script.run(store, log)
    next(store.glob("*/sketch/3/c/0/0/0")).unlink()
    log.write_text("")
    with pytest.warns(UserWarning, match="the quantile sketches of the recording are missing or damaged: all its images are computed anew"):
        recording_script.run(store, log)
    assert sorted(map(int, log.read_text().split())) == list(range(recording_script.COUNT)) and files(store) == uninterrupted


def test_failure_in_the_middle_loses_nothing(tmp_path):
    pictures, store = noise(600), tmp_path / "s"

    def failing(image):
        if np.array_equal(image, pictures[500]) and not failing.mended:
            raise RuntimeError("out of patience")
        return to_tensor(image)

    failing.mended = False
    target, images = Target(network(), ["4"], failing, device="cpu"), ProbingSet.from_images(pictures)
    with pytest.raises(RuntimeError, match="out of patience"):
        record(target, images, store, progress=False)
    assert [path.name for path in store.glob("*/finished/c/*")] == ["0"]
    failing.mended = True
    assert record(target, images, store, progress=False)["4"].shape == (600, 4)


# several at once


def test_two_processes_share_the_work_of_one(tmp_path, uninterrupted):
    log = tmp_path / "log"
    processes = [start(tmp_path / "s", log) for _ in range(2)]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert len(log.read_text().splitlines()) == recording_script.COUNT + 1  # the layouts are decided by the first image
    assert files(tmp_path / "s") == uninterrupted


def test_executors_give_the_same_bytes(tmp_path, uninterrupted):
    target = Target(recording_script.network(), ["1", "3"], recording_script.to_tensor, device="cpu")
    images = ProbingSet.from_dataset(recording_script.Images(tmp_path / "log"))
    with ThreadPoolExecutor(3) as executor:
        record(target, images, tmp_path / "s", pool=("mean", "max"), executor=executor, progress=False)
    assert files(tmp_path / "s") == uninterrupted


def test_other_processes_give_the_same_values():
    pictures = noise(600)
    target, images = Target(network(), ["1", "4"], to_tensor, device="cpu"), ProbingSet.from_images(pictures)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        spread = record(target, images, executor=executor, workers=0, progress=False)
    here = recorded(pictures)
    assert np.allclose(spread["4"], here["4"], atol=1e-6) and np.allclose(spread.quantile("1", 0.9), here.quantile("1", 0.9), atol=1e-6)


# bad images and numbers


def folder_with_bad_images(folder):
    for number, picture in enumerate(noise(6)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes(b"")
    (folder / "4.png").write_text("<img src=x onerror=alert(1)>")
    return ProbingSet.from_folder(folder)


def test_bad_images_are_skipped_counted_and_listed(tmp_path):
    images = folder_with_bad_images(tmp_path)
    recording = recorded(images, store=tmp_path / "s.zarr")
    assert recording["4"]["image"].values.tolist() == [0, 2, 3, 5] and recording["4"].shape == (4, 4)
    assert recording.bad_images.to_dict("list") == {
        "id": ["1.png", "4.png"], "reason": ["empty file (0 bytes)", "not an image in a known format"]
    }
    assert set(recording.top("4", 0)["image"]) == {0, 2, 3, 5} and "2 bad" in repr(recording)


def test_bad_images_are_raised_on_request(tmp_path):
    images = folder_with_bad_images(tmp_path)
    for _ in range(2):
        with pytest.raises(BadImage, match="image '1.png': empty file"):
            recorded(images, store=tmp_path / "s.zarr", on_bad_image="raise")
        recorded(images, store=tmp_path / "s.zarr")


def test_nothing_but_bad_images():
    class Nothing:
        def __len__(self):
            return 300

        def __getitem__(self, index):
            raise ValueError("no film in the camera")

    for _ in range(2):
        with pytest.raises(ValueError, match="none of the 300 images can be read; the first: '0', no film in the camera"):
            recorded(ProbingSet.from_dataset(Nothing()))


def test_whole_chunk_of_bad_images(tmp_path):
    class Late:
        fingerprint = "late"

        def __len__(self):
            return 260

        def __getitem__(self, index):
            return noise(1)[0] if index >= 257 else None

    recording = recorded(ProbingSet.from_dataset(Late()), store=tmp_path / "s")
    assert recording["4"]["image"].values.tolist() == [257, 258, 259] and len(recording.bad_images) == 257
    assert np.isfinite(recording.quantile("4", 0.5)).all()


class Poisoned(nn.Module):
    """Unit 1 is NaN where the image is bright, unit 2 infinite at one position of every image."""

    def forward(self, x):
        x = x.clone()
        x[x.mean((1, 2, 3)) > 0.5, 1, 0, 0] = torch.nan
        x[:, 2, 1, 1] = torch.inf
        return x


def test_nan_and_infinite_activations_are_reported_and_not_ranked():
    pictures = [np.full((4, 4, 3), value, "uint8") for value in (10, 200, 30, 220)]
    recording = recorded(pictures, ["0"], nn.Sequential(Poisoned()))
    assert recording.nonfinite.to_dict("list") == {"layer": ["0", "0"], "unit": [1, 2], "count": [2, 4]}
    with pytest.warns(UserWarning, match="unit 1 of '0' is NaN or infinite on 2 images"):
        top = recording.top("0", 1)
    assert top["image"].tolist() == [2, 0]
    with pytest.warns(UserWarning, match="on 4 images"):
        assert len(recording.top("0", 2)) == 0
    assert recording.top("0", 0)["image"].tolist() == [3, 1, 2, 0]
    assert np.isfinite(recording.quantile("0", 0.5)[:2]).all()


def test_unit_that_is_never_a_number_has_no_quantile():
    class Never(nn.Module):
        def forward(self, x):
            return torch.cat([x, x * torch.nan], 1)

    recording = recorded(noise(300), ["0"], nn.Sequential(Never()))
    assert np.isfinite(recording.quantile("0", 0.5)).tolist() == [True] * 3 + [False] * 3
    assert recording.nonfinite["count"].tolist() == [300] * 3


@pytest.mark.parametrize("at", [64, 256])
def test_number_of_units_that_changes_is_an_error(at):
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = 0

        def forward(self, x):
            self.seen += len(x)
            return x if self.seen <= at + 7 else torch.cat([x, x], 1)  # seven images decide the layout

    with pytest.raises(ValueError, match="layer '0' gave 3 units, then 6"):
        recorded(noise(300), ["0"], nn.Sequential(Growing()))


def test_preprocess_of_the_wrong_kind():
    images = ProbingSet.from_images(noise(2, 10) + noise(2, 12))
    with pytest.raises(ValueError, match=r"tensors of different shapes, \(3, 10, 10\) and \(3, 12, 12\)"):
        record(Target(network(), ["4"], to_tensor, device="cpu"), images, progress=False)
    for wrong, given in ((np.asarray, "ndarray"), (lambda image: to_tensor(image)[None], r"\(1, 3, 10, 10\)")):
        with pytest.raises(ValueError, match=f"preprocess gives {given} for image '0': expected a tensor"):
            record(Target(network(), ["4"], wrong, device="cpu"), images, progress=False)


# stores


def test_places_that_are_no_store(tmp_path):
    (tmp_path / "file").write_text("a letter")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/zarr.json").write_text("{{{")
    expected = {
        "file": "is there already and is no store",
        "photos": "is there already and is no store",
        "broken": "is not a store that zarr can read",
        "file/below.zarr": "cannot write to the store .*: not a directory",
    }
    for name, message in expected.items():
        with pytest.raises(StoreError, match=message) as raised:
            recorded(noise(2), store=tmp_path / name)
        assert "\n" not in str(raised.value)
    assert os.listdir(tmp_path / "photos") == ["a.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_store_that_may_only_be_read(tmp_path, monkeypatch):
    first = recorded(noise(3), store=tmp_path / "s")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("zarr.storage._local._put", refuse)
    assert recorded(noise(3), store=tmp_path / "s")["4"].equals(first["4"])
    with pytest.raises(StoreError, match="cannot write to the store .*: permission denied"):
        recorded(noise(4), store=tmp_path / "s")


def test_full_disk_keeps_what_was_computed(tmp_path, uninterrupted):
    store, log = tmp_path / "s", tmp_path / "log"
    recording_script.run(store, log)
    for number in (3, 4):
        next(store.glob(f"*/finished/c/{number}")).unlink()
    full = start(store, tmp_path / "another log", 4000)
    error = full.communicate()[1]
    assert full.returncode != 0 and error.startswith("StoreError: cannot write to the store") and error.count("\n") == 1
    assert "file too large" in error and "finished chunks are kept" in error
    assert {path.name for path in store.glob("*/finished/c/?")} == {"0", "1", "2", "5"}
    recording_script.run(store, log)
    assert {name: content for name, content in files(store).items() if ".partial" not in name.name} == uninterrupted
