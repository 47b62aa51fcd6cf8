"""Caches that cannot be written, that lose bytes or their folder: the work goes on, and no other values come back."""
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from neuronbench.basics import ContentStore, cache_folder, content_key, keep_file, kept_file


def test_a_cache_that_cannot_be_made_is_said_once_and_works_until_the_process_ends(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for unset, home in (("XDG_CACHE_HOME", "NEURONBENCH_CACHE"), ("NEURONBENCH_CACHE", "XDG_CACHE_HOME")):
        monkeypatch.delenv(unset, raising=False)
        monkeypatch.setenv(home, str(tmp_path / "file" / home))
        with pytest.warns(UserWarning, match="Not a directory.*set NEURONBENCH_CACHE to a folder that can be written") as said:
            for _ in range(2):
                store = ContentStore(cache_folder("clip") / "a.sqlite")
                store.put({"key": b"value"})
                keep_file(cache_folder("step") / "a.npz", b"arrays")
                assert ContentStore(cache_folder("clip") / "a.sqlite").get(["key"]) == {"key": b"value"}
                assert kept_file(cache_folder("step") / "a.npz") == b"arrays"
        assert len(said) == 1 and str(tmp_path / "file" / home) in str(said[0].message)
    assert (tmp_path / "file").read_bytes() == b""


@contextmanager
def without_right_to_write(folder):
    """Inside, the folder and what is in it may only be read: root, whom no mode stops, is somebody else meanwhile."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root := os.geteuid() == 0:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def readable_folder():
    """A folder that others may enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_a_cache_that_may_only_be_read_is_read_and_said_once(readable_folder, monkeypatch):
    monkeypatch.setenv("NEURONBENCH_CACHE", str(readable_folder / "cache"))
    store, file = ContentStore(cache_folder("clip") / "a.sqlite"), cache_folder("step") / "a.npz"
    store.put({"old": b"value"})
    keep_file(file, b"arrays")
    cache_folder("empty")
    before = {path: path.read_bytes() for path in readable_folder.rglob("*") if path.is_file()}
    with without_right_to_write(readable_folder / "cache"), pytest.warns(UserWarning, match="set NEURONBENCH_CACHE") as said:
        for number in range(3):
            store = ContentStore(cache_folder("clip") / "a.sqlite")
            assert store.get(["old", "new"]) == {"old": b"value"} | ({"new": b"1"} if number else {})
            store.put({"new": b"1"})
            assert kept_file(file) == b"arrays"
            keep_file(file.with_name("b.npz"), b"others")
            assert kept_file(file.with_name("b.npz")) == b"others"
            (cache_folder("empty") / "file").touch()
            cache_folder("not there yet").joinpath("file").touch()
    assert len(said) == 1
    assert {path: path.read_bytes() for path in readable_folder.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_a_damaged_cache_that_may_only_be_read_is_computed_anew(readable_folder):
    store = ContentStore(readable_folder / "cache" / "a.sqlite")
    store.put({"old": b"value"})
    store.path.write_bytes(b"x" * 8192)
    with without_right_to_write(readable_folder / "cache"), pytest.warns(UserWarning, match="nothing can be written to the cache") as said:
        assert store.get(["old"]) == {}
        store.put({"old": b"value"})
        assert store.get(["old"]) == {"old": b"value"}
    assert len(said) == 1


def test_a_full_disk_costs_nothing_that_was_kept(tmp_path):
    """With a limit on the size of files, which a process sets for itself."""
    code = ("import resource, signal, sys, warnings\nfrom pathlib import Path\nfrom neuronbench.basics import ContentStore, keep_file, kept_file\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nfolder = Path(sys.argv[1])\nstore = ContentStore(folder / 'a.sqlite')\nstore.put({'old': b'a' * 5000})\n"
            "keep_file(folder / 'a.npz', b'older')\nresource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
            "store.put({'new': b'b' * 50000})\nkeep_file(folder / 'a.npz', b'c' * 50000)\n"
            "assert store.get(['old', 'new']) == {'old': b'a' * 5000} and kept_file(folder / 'a.npz') == b'older'\nstore.put({'small': b'd'})\nprint(store.get(['small']))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "{'small': b'd'}\n" and done.stderr.count("UserWarning") == 1 and "NEURONBENCH_CACHE" in done.stderr, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.sqlite", "a.npz"}


VALUES = {content_key(number): bytes([number]) * (9000 if number % 7 == 0 else 50 + number) for number in range(40)}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The bytes of a database with these values."""
    store = ContentStore(tmp_path_factory.mktemp("database") / "a.sqlite")
    for key, value in VALUES.items():
        store.put({key: value})
    return store.path.read_bytes()


def flips(size):
    """(position, bits): the header and the schema, whose every byte has a meaning, and some of the rest."""
    positions = [*range(100), *range(3900, 4096), *np.random.default_rng(0).integers(100, size, 100).tolist()]
    return [(position, 1 << position % 8) for position in positions]


def test_a_database_with_a_flipped_byte_never_gives_other_values_and_is_whole_again_after_they_are_put(database, tmp_path):
    store = ContentStore(tmp_path / "a.sqlite")
    for position, bits in flips(len(database)):
        harmed = bytearray(database)
        harmed[position] ^= bits
        store.path.write_bytes(harmed)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(3):
                found = store.get(VALUES)
                assert found.items() <= VALUES.items(), position
                store.put({key: value for key, value in VALUES.items() if key not in found})
            assert store.get(VALUES) == VALUES, position
        assert len(said) <= 1 and all("is damaged: it is moved aside to 'a.sqlite.damaged'" in str(one.message) for one in said), position
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.mark.parametrize("harm", [lambda content: b"", lambda content: content[:50], lambda content: content[:5000], lambda content: content[:-1],
                                  lambda content: b"not a database, but a letter" * 100, lambda content: content[:4096] + bytes(len(content) - 4096)])
def test_a_database_that_lost_bytes_is_begun_anew(database, tmp_path, harm):
    store = ContentStore(tmp_path / "a.sqlite")
    store.path.write_bytes(harm(database))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            found = store.get(VALUES)
            assert found.items() <= VALUES.items()
            store.put({key: value for key, value in VALUES.items() if key not in found})
    assert store.get(VALUES) == VALUES


def test_a_value_under_another_key_is_missing(tmp_path):
    store = ContentStore(tmp_path / "a.sqlite")
    store.put({"a": b"1", "b": b"2", "c": b"3"})
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("UPDATE content SET value = (SELECT value FROM content WHERE key = 'a') WHERE key = 'b'")
        connection.execute("UPDATE content SET value = 7 WHERE key = 'c'")
    assert store.get("abc") == {"a": b"1"}


def test_a_database_of_something_else_is_moved_aside(tmp_path):
    store = ContentStore(tmp_path / "a.sqlite")
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.execute("CREATE TABLE content (letter TEXT)")
    with pytest.warns(UserWarning, match="is damaged: it is moved aside"):
        store.put({"a": b"1"})
    assert store.get("a") == {"a": b"1"} and (tmp_path / "a.sqlite.damaged").is_file()


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path):
    store = ContentStore(tmp_path / "cache" / "a.sqlite")
    store.put({"a": b"1"})
    keep_file(tmp_path / "cache" / "a.npz", b"1")
    shutil.rmtree(tmp_path / "cache")
    assert store.get("a") == {} and kept_file(tmp_path / "cache" / "a.npz") is None
    keep_file(tmp_path / "cache" / "a.npz", b"1")
    shutil.rmtree(tmp_path / "cache")
    store.put({"a": b"1"})
    assert store.get("a") == {"a": b"1"}


def test_a_kept_file_with_a_flipped_byte_or_under_another_name_is_missing(tmp_path):
    file = tmp_path / "a.npz"
    keep_file(file, b"some arrays")
    sound = file.read_bytes()
    for position in range(len(sound)):
        file.write_bytes(sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        assert kept_file(file) is None
    for harmed in (b"", sound[:-1], sound + b"\0"):
        file.write_bytes(harmed)
        assert kept_file(file) is None
    (tmp_path / "b.npz").write_bytes(sound)
    file.write_bytes(sound)
    assert kept_file(tmp_path / "b.npz") is None and kept_file(file) == b"some arrays"
    file.unlink()
    file.mkdir()
    assert kept_file(file) is None
