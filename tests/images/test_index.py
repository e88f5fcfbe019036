import json
import os
import time
from collections import Counter

import pytest

from featcache.errors import DiskFault
from featcache.images import index as indexing
from featcache.images.folder import FolderSource
from featcache.images.index import Index
from featcache.images.manifest import scan

OLD = 1_600_000_000


@pytest.fixture
def old(photos):
    """Return photos that were last changed long ago."""
    for file in photos.rglob("*.png"):
        os.utime(file, (OLD, OLD))
    return photos


@pytest.fixture
def reads(monkeypatch):
    """Count what is read, by path."""
    counter, read = Counter(), FolderSource.read

    def counting(source, path):
        counter[path] += 1
        return read(source, path)

    monkeypatch.setattr(FolderSource, "read", counting)
    return counter


def scanned(photos, **options):
    return scan(photos, index=photos.parent / "i.index", **options)


def test_what_has_not_changed_is_not_read_again(old, reads):
    first = scanned(old)
    assert sum(reads.values()) == 36
    assert scanned(old) == first
    assert sum(reads.values()) == 36


def test_only_what_is_new_or_changed_is_read(old, reads):
    scanned(old)
    reads.clear()
    os.utime(old / "red" / "000.png", (OLD + 9, OLD + 9))
    (old / "red" / "001.png").write_bytes(b"other")
    (old / "red" / "002.png").rename(old / "red" / "new.png")
    os.replace(old / "red" / "003.png", old / "red" / "004.png")
    rows = scanned(old).rows
    assert reads.keys() == {"red/000.png", "red/001.png", "red/new.png", "red/004.png"}
    assert rows == scan(old).rows


def test_other_bytes_of_the_same_size_and_time_are_found_by_rehash_only(old, reads):
    before = scanned(old)
    path = old / "red" / "000.png"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, (OLD, OLD))
    assert scanned(old).rows == before.rows
    assert scanned(old, rehash=True).rows == scan(old).rows != before.rows
    assert scanned(old).rows == scan(old).rows


def test_checking_reads_everything(old, reads):
    scanned(old)
    assert scanned(old, check=True).sizes == {(20, 16): 36}
    assert set(reads.values()) == {2}


@pytest.mark.parametrize(("age_s", "remembered"), [(2.5, True), (1.5, False), (0, False), (-5, False)])
def test_what_was_changed_just_now_is_not_trusted(photos, age_s, remembered):
    now = time.time_ns()
    for file in photos.rglob("*.png"):
        os.utime(file, ns=(now, now - int(age_s * 1e9)))
    source = FolderSource(photos)
    index = Index(photos.parent / "i", source, clock=lambda: now)
    index.read("red/000.png")
    index.save()
    assert bool(Index(photos.parent / "i", source).known(["red/000.png"])) == remembered


def test_a_time_in_the_future_is_not_trusted_even_if_it_was_once_past(old):
    later = Index(old.parent / "i", FolderSource(old))
    later.read("red/000.png")
    later.save()
    before = (OLD - 9) * 10**9
    assert not Index(old.parent / "i", FolderSource(old), clock=lambda: before).known(["red/000.png"])
    assert Index(old.parent / "i", FolderSource(old)).known(["red/000.png"])


def test_a_file_that_changes_while_it_is_read_is_not_remembered(old, monkeypatch):
    source = FolderSource(old)
    read = source.read

    def changing(path):
        data = read(path)
        os.utime(old / path, (OLD + 1, OLD + 1))
        return data

    source.read = changing
    index = Index(old.parent / "i", source)
    index.read("red/000.png")
    index.save()
    assert not (old.parent / "i").exists()


def test_an_index_of_another_place_is_not_used(old, reads):
    scanned(old)
    old.rename(old.with_name("moved"))
    reads.clear()
    scanned(old.with_name("moved"))
    assert sum(reads.values()) == 36


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b'{"format": "featcache index 1"}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"format": "featcache index 1", "place": "HERE", "files": {"red/000.png": [1, 2, 3]}}',
        b'{"format": "featcache index 1", "place": "HERE", "files": {"red/000.png": [1, 2, 3, "no digest"]}}',
        b'{"format": "featcache index 1", "place": "HERE", "files": {"red/000.png": ["a", 2, 3, "'
        + b"0" * 64
        + b'"]}}',
        b'{"format": "featcache index 1", "place": "HERE", "files": [1]}',
    ],
)
def test_a_damaged_index_costs_nothing_but_time(old, content):
    path = old.parent / "i.index"
    path.write_bytes(content.replace(b"HERE", bytes(old.resolve())))
    assert scanned(old) == scan(old)
    assert json.loads(path.read_bytes())["files"].keys() == {row.path for row in scan(old).rows}


def test_it_is_written_only_if_it_says_something_new(old):
    scanned(old)
    path = old.parent / "i.index"
    before = path.stat()
    scanned(old)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (old / "red" / "000.png").unlink()
    scanned(old)
    assert "red/000.png" not in json.loads(path.read_bytes())["files"]


def test_names_of_any_bytes_are_remembered(old, reads):
    name = os.fsdecode(b"red/caf\xe9.png")
    os.rename(old / "red" / "000.png", os.path.join(old, name))
    scanned(old)
    scanned(old)
    assert reads[name] == 1


def test_a_full_disk_costs_nothing_but_time(old, monkeypatch):
    def full(path, data):
        raise DiskFault("full")

    monkeypatch.setattr(indexing, "write_whole", full)
    assert len(scanned(old).rows) == 36


def test_a_file_that_is_gone_is_not_served_from_the_index(old):
    manifest = old / "m.csv"
    manifest.write_text("path,label\nred/000.png,a\nred/001.png,b\n")
    assert len(scan(manifest, index=old.parent / "i").rows) == 2
    (old / "red" / "000.png").unlink()
    images = scan(manifest, index=old.parent / "i")
    assert [one.path for one in images.unreadable] == ["red/000.png"]


@pytest.mark.slow
def test_sixty_thousand_images_that_are_known_are_scanned_in_no_time(tmp_path):
    for label in range(10):
        (tmp_path / "p" / str(label)).mkdir(parents=True)
        for number in range(6000):
            path = tmp_path / "p" / str(label) / f"{number:05d}.png"
            path.write_bytes(b"%d %d" % (label, number))
            os.utime(path, (OLD, OLD))
    first = scan(tmp_path / "p", index=tmp_path / "i")
    began = time.process_time()
    assert scan(tmp_path / "p", index=tmp_path / "i").rows == first.rows
    assert time.process_time() - began < 4  # 1.0 s on two cores of 2026, alone
