import errno
import os
import stat

import pytest

from featcache.errors import DataError, DiskFault, NotARun
from featcache.files import file_digest, read_json, write_json, write_whole


class Failing:
    """The n-th call of an operating system function fails as on a full disk, and every later one too."""

    def __init__(self, function, allowed):
        self.function, self.left = function, allowed

    def __call__(self, *args, **options):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.function(*args, **options)


def full_while_writing(handle, data):
    """Stand for `os.write`: a file that takes the first bytes and then no more."""
    if os.lseek(handle, 0, os.SEEK_CUR) >= 3:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return WRITE(handle, data[:3])


WRITE = os.write
STEPS = {
    "open": (os, "open", Failing(os.open, 0)),
    "write": (os, "write", full_while_writing),
    "fsync": (os, "fsync", Failing(os.fsync, 0)),
    "replace": (os, "replace", Failing(os.replace, 0)),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("old", [b"old content", None])
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step, old):
    path = tmp_path / "file.bin"
    if old is not None:
        path.write_bytes(old)
    monkeypatch.setattr(*STEPS[step])
    with pytest.raises(DiskFault, match=r"Cannot write .*file.bin: No space left on device. Free some space") as caught:
        write_whole(path, b"new content")
    assert "\n" not in str(caught.value)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == ({"file.bin": old} if old else {})


def test_an_interruption_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    path = tmp_path / "file.bin"
    path.write_bytes(b"old content")
    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new content")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"file.bin": b"old content"}


def test_bytes_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, f=function, name=name: (calls.append(name), f(*args))[1])
    write_whole(tmp_path / "file.bin", b"new content")
    assert calls == ["fsync", "replace", "fsync"]  # the file, the name, the folder


def test_the_new_content_replaces_the_old_and_folders_are_made(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    for content in (b"one", b"two", b""):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert [one.name for one in path.parent.iterdir()] == ["file.bin"]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file.bin", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.bin").stat().st_mode) == 0o640


def test_a_file_in_the_way_of_a_folder_is_a_disk_fault(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskFault, match=r"Cannot make the folder .*/file: File exists"):
        write_whole(tmp_path / "file" / "inside.bin", b"")


def test_json_comes_back(tmp_path):
    value = {"name": "caf\udce9 é", "numbers": [1, 0.1, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_missing_and_damaged_json_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"Cannot read .*a.json"):
        read_json(tmp_path / "a.json")
    with pytest.raises(NotARun):
        read_json(tmp_path / "a.json", NotARun)


def test_a_digest_is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
