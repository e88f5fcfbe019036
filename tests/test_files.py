import errno
import io
import os
import re
import stat
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import featcache
from featcache.errors import DataError, DiskFault, NotARun
from featcache.files import (
    ATTEMPTS,
    Overtaken,
    again,
    being_written,
    check_seal,
    check_writable,
    file_digest,
    make_folder,
    place_folder,
    read_arrays,
    read_json,
    remove,
    remove_litter,
    reserve,
    temporary_folder,
    write_json,
    write_sealed,
    write_whole,
    writing,
)


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


def leave(folder, *, host=None, process=None, age=0.0):
    """Make the temporary file of a process; return it."""
    with suppress(RuntimeError), writing(folder / "x") as _:
        found = next(folder.glob(".tmp-*")).name
        raise RuntimeError
    was_host, was_process, *rest = found.removeprefix(".tmp-").split("+")
    litter = folder / f".tmp-{'+'.join([host or was_host, str(process or was_process), *rest])}"
    litter.write_bytes(b"half")
    os.utime(litter, (time.time() - age, time.time() - age))
    return litter


@pytest.mark.parametrize(
    ("litter", "gone"),
    [
        ({"process": 2**22 + 1}, True),
        ({}, False),
        ({"age": 86_500}, True),
        ({"host": "elsewhere", "process": 2**22 + 1}, False),
        ({"host": "elsewhere", "age": 86_500}, True),
        ({"process": 10**30}, False),
    ],
)
def test_litter_is_removed_once_it_is_nobodys(tmp_path, litter, gone):
    left = leave(tmp_path, **litter)
    remove_litter(tmp_path)
    assert left.exists() is not gone


@pytest.mark.parametrize("name", [".tmp-notes", ".tmp-a+1", ".tmp-a+1+zz+12", ".tmp-a+1+00000000+00000000.txt"])
def test_files_of_other_programs_are_never_removed(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / name, (0, 0))
    remove_litter(tmp_path)
    assert (tmp_path / name).exists()


def test_it_shows_while_a_file_is_being_written(tmp_path):
    seen = []
    with writing(tmp_path / "a.h5") as sink:
        sink.write(b"1")
        seen += [being_written(tmp_path / "a.h5"), being_written(tmp_path / "b.h5")]
    assert [*seen, being_written(tmp_path / "a.h5")] == [True, False, False]
    assert being_written(tmp_path / "none" / "a.h5")  # who cannot see must not say no


def test_a_file_that_changed_meanwhile_is_not_replaced(tmp_path):
    (tmp_path / "a").write_bytes(b"theirs")
    with (
        pytest.raises(Overtaken, match=r"a was replaced by another process again and again"),
        writing(tmp_path / "a", lambda: False) as sink,
    ):
        sink.write(b"mine")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"a": b"theirs"}


def test_work_is_done_again_when_it_was_overtaken_but_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("featcache.files.LAST_WAIT_S", 0.001)
    tries = []

    def work(times):
        tries.append(1)
        if len(tries) < times:
            raise Overtaken(tmp_path)
        return "done"

    assert again(lambda: work(5)) == "done"
    assert len(tries) == 5
    with pytest.raises(DataError, match=r"Run the command once more"):
        again(lambda: work(10**6))
    assert len(tries) < 100


def test_many_threads_do_not_change_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda at: write_whole(tmp_path / str(at), b""), range(200)))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()} == {0o640}


def test_a_link_stays_a_link_to_the_new_content(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_bytes(b"old")
    (tmp_path / "near").symlink_to(tmp_path / "far" / "file")
    write_whole(tmp_path / "near", b"new")
    assert (tmp_path / "near").is_symlink()
    assert (tmp_path / "far" / "file").read_bytes() == b"new"
    assert len(list(tmp_path.rglob("*"))) == 3


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_cannot_sync_folders_will_do(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    make_folder(tmp_path / "deep" / "er")
    write_whole(tmp_path / "deep" / "er" / "file", b"x")
    assert (tmp_path / "deep" / "er" / "file").read_bytes() == b"x"


def test_every_folder_that_is_made_is_durable(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), real(handle)))
    make_folder(tmp_path / "a" / "b")
    assert {one.stat().st_ino for one in (tmp_path, tmp_path / "a")} <= set(synced)
    synced.clear()
    make_folder(tmp_path / "a" / "b")  # another process may have made it and not come to syncing it
    assert synced == [(tmp_path / "a").stat().st_ino]


def test_a_folder_that_cannot_be_made_is_a_disk_fault(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskFault, match=r"Cannot make the folder .*file/inside"):
        make_folder(tmp_path / "file" / "inside")


def test_a_file_that_cannot_be_removed_is_a_disk_fault(tmp_path):
    remove(tmp_path / "none")
    with pytest.raises(DiskFault, match=r"Cannot remove .*: Is a directory"):
        remove(tmp_path)


def test_a_sink_is_a_file_that_never_raises(tmp_path):
    with writing(tmp_path / "a") as sink:
        assert sink.write(b"0123456789") == 10
        assert (sink.seek(2), sink.read(3), sink.tell()) == (2, b"234", 5)
        assert sink.read() == b"56789"
        assert (sink.seek(-1, os.SEEK_END), sink.seek(-2, os.SEEK_CUR), sink.read(9)) == (9, 7, b"789" + bytes(6))
        sink.seek(12)
        sink.write(b"c")
        assert sink.truncate(14) == 14
        sink.flush()
    assert (tmp_path / "a").read_bytes() == b"0123456789\0\0c\0"


def test_a_sink_that_failed_once_touches_the_disk_no_more(tmp_path):
    def fails_twice():
        with writing(tmp_path / "a") as sink:
            sink.write(b"good")
            sink.fail(OSError("first"))
            sink.fail(OSError("second"))
            assert (sink.write(b"bad"), sink.truncate(99), sink.seek(0), sink.read(4)) == (3, 99, 0, bytes(4))
            assert os.fstat(sink.handle).st_size == 4

    with pytest.raises(DiskFault, match=r"Cannot write .*a: first"):
        fails_twice()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["write", "ftruncate", "read", "lseek"])
def test_a_sink_keeps_the_failure_of_the_disk_to_itself(tmp_path, monkeypatch, call):
    def fails():
        with writing(tmp_path / "a") as sink:
            sink.write(b"good")
            monkeypatch.setattr(os, call, Failing(getattr(os, call), 0))
            sink.truncate(4)
            sink.seek(0)
            assert len(sink.read(4)) == 4
            assert sink.write(b"more") == 4
            with pytest.raises(OSError, match="No space left"):
                sink.check()
            reached.append(call)

    reached = []
    with pytest.raises(DiskFault, match=r"Cannot write .*a: No space left on device"):
        fails()
    assert reached == [call]
    assert list(tmp_path.iterdir()) == []


def test_what_is_overtaken_for_longer_than_a_moment_is_waited_for():
    until = time.monotonic() + 0.3

    def work():
        if time.monotonic() < until:
            raise Overtaken(Path("part.h5"))
        return "read"

    assert again(work) == "read"


@pytest.mark.parametrize("within_another", [False, True])
def test_what_is_overtaken_for_ever_is_an_error_after_20_attempts(within_another, monkeypatch):
    monkeypatch.setattr("featcache.files.FIRST_WAIT_S", 0)
    attempts = []

    def work():
        attempts.append(1)
        raise Overtaken(Path("part.h5"))

    with pytest.raises(DataError, match=r"^part\.h5 was replaced by another process again and again\. Run the command"):
        again((lambda: again(work)) if within_another else work)
    assert len(attempts) == ATTEMPTS == 20
    assert again(lambda: "read") == "read"


def test_what_is_overtaken_within_other_work_is_repeated_with_all_of_it():
    steps = []

    def part():
        if len(steps) < 2:
            raise Overtaken(Path("part.h5"))
        return "read"

    def work():
        steps.append(1)
        return again(part)

    assert again(work) == "read"
    assert len(steps) == 2


def test_the_next_writer_in_a_folder_removes_what_a_killed_one_left(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from featcache.files import temporary_folder, writing\n"
        "with writing(Path(sys.argv[1]) / 'a'), temporary_folder(Path(sys.argv[1]) / 'b') as folder:\n"
        "    (folder / 'inside').mkdir()\n"
        "    (folder / 'inside' / 'file').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for number, write in enumerate((lambda path: write_whole(path, b""), check_writable, made_beside)):
        place = tmp_path / str(number)
        place.mkdir()
        subprocess.run([sys.executable, "-c", code, str(place)], check=False)
        assert len(list(place.iterdir())) == 2
        write(place / "c")
        assert not list(place.glob(".tmp-*"))


def made_beside(path):
    with temporary_folder(path):
        pass


def test_a_folder_is_searched_for_litter_once_and_not_at_every_write(tmp_path, monkeypatch):
    searched = []
    monkeypatch.setattr("featcache.files.remove_litter", searched.append)
    for number in range(5):
        write_whole(tmp_path / str(number), b"")
    assert searched == [tmp_path]


@pytest.mark.parametrize(("age", "inside", "gone"), [(86_500, 86_500, True), (86_500, 10, False)])
def test_a_folder_of_another_machine_is_litter_a_day_after_its_last_change(tmp_path, age, inside, gone):
    litter = tmp_path / ".tmp-elsewhere+7+00000000+00000000"
    (litter / "deep").mkdir(parents=True)
    (litter / "deep" / "file").write_bytes(b"half")
    now = time.time()
    os.utime(litter / "deep" / "file", (now - inside, now - inside))
    for folder in (litter / "deep", litter):
        os.utime(folder, (now - age, now - age))
    remove_litter(tmp_path)
    assert litter.exists() is not gone


def test_a_link_that_is_litter_goes_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(b"")
    name = leave(tmp_path, process=2**22 + 1).name
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "mine")
    remove_litter(tmp_path)
    assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "mine" / "file").exists()


def test_a_temporary_folder_goes_at_the_end_whatever_happens(tmp_path):
    with temporary_folder(tmp_path / "deep" / "x") as folder:
        (folder / "file").write_bytes(b"")
        assert folder.parent == tmp_path / "deep"
    with suppress(KeyboardInterrupt), temporary_folder(tmp_path / "x") as folder:
        (folder / "file").write_bytes(b"")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]


def test_a_temporary_folder_goes_even_if_its_removal_is_stopped(tmp_path, monkeypatch):
    real, stops = os.rmdir, [KeyboardInterrupt()]

    def rmdir(*arguments, **options):
        if stops:
            raise stops.pop()
        real(*arguments, **options)

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(KeyboardInterrupt), temporary_folder(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nobody_else_may_look_into_what_lies_in_the_place_of_the_system(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_temporary_folder_that_cannot_be_made_is_a_disk_fault(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(DiskFault, match=r"Cannot make the folder .*/file: File exists"),
        temporary_folder(tmp_path / "file" / "x"),
    ):
        pass


@pytest.mark.parametrize("old", [True, False])
def test_a_folder_takes_the_place_of_another_as_a_whole(tmp_path, old):
    if old:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "old").write_bytes(b"")
    with temporary_folder(tmp_path / "x") as folder:
        (folder / "made").mkdir()
        (folder / "made" / "new").write_bytes(b"")
        place_folder(folder / "made", tmp_path / "x")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["x", "x/new"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch, error):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").write_bytes(b"")
    real = os.rename

    def rename(source, target):
        if Path(source).name == "made":
            raise error
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with temporary_folder(tmp_path / "x") as folder:
        (folder / "made").mkdir()
        with pytest.raises((DiskFault, KeyboardInterrupt)):
            place_folder(folder / "made", tmp_path / "x")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["x", "x/old"]


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "rename"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, f=function, name=name: (calls.append(name), f(*args))[1])
    with temporary_folder(tmp_path / "x") as folder:
        (folder / "file").write_bytes(b"new content")
        place_folder(folder, tmp_path / "x")
    assert calls == ["fsync", "fsync", "rename", "fsync"]  # the file, the folder, the name, the folder around it


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_room_is_kept_where_the_file_system_cannot_reserve_it(code, tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refused)
    with (tmp_path / "mapped").open("wb+") as file:
        reserve(file.fileno(), 3 * 2**20 + 5)
        found = os.fstat(file.fileno())
    assert found.st_size == 3 * 2**20 + 5
    assert found.st_blocks * 512 >= found.st_size  # not sparse


def test_room_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (tmp_path / "mapped").open("wb+") as file, pytest.raises(OSError, match="No space left"):
        reserve(file.fileno(), 10)


def test_no_damaged_byte_of_a_sealed_file_changes_what_is_read(tmp_path):
    facts = {"format": 3, "text": "\u00fc \ud83d", "numbers": [0.1, 1e-7, None, float("nan")], "more": {"b": (1, 2)}}
    write_sealed(tmp_path / "facts.json", facts)
    whole = (tmp_path / "facts.json").read_bytes()
    want = repr(check_seal(read_json(tmp_path / "facts.json"), tmp_path, NotARun, "Do"))
    for at in range(len(whole)):
        for bit in (1, 4, 32, 128):
            (tmp_path / "facts.json").write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            with suppress(NotARun):
                read = read_json(tmp_path / "facts.json", NotARun)
                assert repr(check_seal(read, tmp_path, NotARun, "Do")) == want


def test_a_sealed_file_that_was_changed_says_so_and_what_to_do(tmp_path):
    with pytest.raises(NotARun, match=r"x\.json was changed after it was written, or is damaged.* Do this$"):
        check_seal({"a": 1, "digest": "0" * 64}, tmp_path / "x.json", NotARun, "Do this")


def test_every_temporary_folder_has_a_name_that_tells_whose_it_is():
    """What Python's own module makes stays after a kill, and nobody can tell that it was ours."""
    root = Path(featcache.__file__).parent
    for module in [*root.rglob("*.py"), *(root.parent / "cli").rglob("*.py")]:
        assert not re.search(r"TemporaryDirectory|mkdtemp|mkstemp|NamedTemporaryFile", module.read_text("utf-8")), (
            module
        )


def test_a_header_that_declares_more_than_the_file_holds_is_damage_not_a_lack_of_memory(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**50,)})
    with zipfile.ZipFile(tmp_path / "head.npz", "w") as archive:
        archive.writestr("kernel.npy", header.getvalue() + bytes(64))
    with pytest.raises(ValueError, match="is declared in"):
        read_arrays(tmp_path / "head.npz")


@pytest.mark.parametrize("rename", ["first", "second"])
def test_a_kill_while_a_folder_takes_its_place_loses_neither(rename, tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").write_bytes(b"")
    killed = (
        "import os, sys; from pathlib import Path; from featcache.files import place_folder, temporary_folder\n"
        "real, left = os.rename, [int(sys.argv[2])]\n"
        "def rename(*paths):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os._exit(9)\n"
        "    real(*paths)\n"
        "os.rename = rename\n"
        "with temporary_folder(Path(sys.argv[1])) as folder: place_folder(folder, Path(sys.argv[1]))\n"
    )
    number = {"first": "1", "second": "2"}[rename]
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path / "x"), number])
    assert done.returncode == 9
    remove_litter(tmp_path)
    assert [path.name for path in tmp_path.rglob("old")] == ["old"]
    with temporary_folder(tmp_path / "x") as folder:
        (folder / "new").write_bytes(b"")
        place_folder(folder, tmp_path / "x")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["x", "x/new"]
