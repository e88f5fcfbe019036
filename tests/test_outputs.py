"""What lies where a command writes is kept, unless featcache wrote it as the same kind of output."""

import os
from pathlib import Path

import pytest

from featcache.errors import DiskFault, UsageError
from featcache.files import disk_faults, write_whole
from featcache.outputs import Kind, check_output


def begins_as_ours(path):
    return path.read_bytes().startswith(b"ours")


def holds_mark(folder):
    return (folder / "mark").is_file()


NOTE = Kind("note of featcache", begins_as_ours)
FOLDER = Kind("folder of featcache", holds_mark, is_folder=True)
KEPT = "is there already and is no note of featcache, so it is kept. Name another, or replace it with `force=True`"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.txt"


@pytest.mark.parametrize("content", [None, b"", b"ours, of yesterday"])
def test_nothing_an_empty_file_and_an_earlier_output_may_go(file, content):
    if content is not None:
        file.write_bytes(content)
    check_output(file, NOTE)


def test_a_file_of_another_origin_goes_by_force_only(file):
    file.write_bytes(b"mine")
    with pytest.raises(UsageError) as caught:
        check_output(file, NOTE)
    assert str(caught.value) == f"{file} {KEPT}"
    check_output(file, NOTE, force=True)
    assert file.read_bytes() == b"mine"


def test_a_file_that_cannot_be_read_as_ours_is_not(file):
    def fails(path):
        raise ZeroDivisionError

    file.write_bytes(b"?")
    with pytest.raises(UsageError, match="is kept"):
        check_output(file, Kind("note", fails))


@pytest.mark.parametrize("content", [b"mine", b"ours", b""])
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_an_input_is_kept_even_by_force_whatever_it_is_called(file, content, link):
    file.write_bytes(content)
    other = file
    if link is not None:
        other = file.with_name("b.txt")
        link(file, other)
    with pytest.raises(UsageError, match=r"is kept, even with `force=True`, because this command uses"):
        check_output(other, NOTE, inputs=[file], force=True)


def test_in_a_folder_that_is_read_only_outputs_of_ours_go(tmp_path):
    (tmp_path / "run").mkdir()
    for name, content in {"ours.txt": b"ours", "trials.csv": b"trial"}.items():
        (tmp_path / "run" / name).write_bytes(content)
    check_output(tmp_path / "run" / "ours.txt", NOTE, inputs=[tmp_path / "run"])
    check_output(tmp_path / "run" / "new.txt", NOTE, inputs=[tmp_path / "run"])
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for folder in ("run", "link"):
        with pytest.raises(UsageError, match="even with `force=True`"):
            check_output(tmp_path / folder / "trials.csv", NOTE, inputs=[tmp_path / "run"], force=True)


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    with pytest.raises(UsageError, match=r"is a folder, but a note of featcache is a file\. Give the name of a file"):
        check_output(tmp_path, NOTE, force=True)


def test_a_folder_goes_if_it_is_empty_or_ours_and_holds_nothing_that_is_read(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    check_output(folder, FOLDER)
    (folder / "mine").touch()
    with pytest.raises(UsageError, match="is no folder of featcache"):
        check_output(folder, FOLDER)
    check_output(folder, FOLDER, force=True)
    (folder / "mark").touch()
    check_output(folder, FOLDER)
    with pytest.raises(UsageError, match="even with `force=True`"):
        check_output(folder, FOLDER, inputs=[folder / "mine"], force=True)


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_device_or_a_pipe_is_never_replaced_by_a_file(pipe):
    for path in (pipe, Path("/dev/null"), Path("/dev/stdout"), Path("/dev/fd/1")):
        with pytest.raises(UsageError, match=r"is a device or a pipe; featcache writes whole files"):
            check_output(path, NOTE, force=True)
    with pytest.raises(UsageError, match=r"is a device or a pipe"):
        write_whole(pipe, b"x")
    assert pipe.is_fifo()


def test_a_link_leads_to_what_is_judged_and_stays_a_link(file):
    link = file.with_name("link.txt")
    link.symlink_to(file)
    check_output(link, NOTE)  # to nothing
    file.write_bytes(b"mine")
    with pytest.raises(UsageError, match="is kept"):
        check_output(link, NOTE)
    write_whole(link, b"ours")
    assert (link.is_symlink(), file.read_bytes()) == (True, b"ours")


def test_a_place_where_nothing_can_be_written_is_told_before_the_work(file):
    file.write_bytes(b"")
    with pytest.raises(DiskFault, match=r"Cannot make the folder .*a.txt: File exists"):
        check_output(file / "b.txt", NOTE)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(28, "No space left on device"),
        RuntimeError("variables.data: No space left on device [Op:SaveV2]"),
        ValueError("Unable to write (file write failed: errno = 30, 'Read-only file system')"),
    ],
)
def test_what_a_library_raises_on_a_full_disk_is_a_disk_fault(file, failure):
    says = rf"Cannot write {file}: (No space left on device|Read-only file system)\. \w"
    with pytest.raises(DiskFault, match=says), disk_faults(file):
        raise failure
    with pytest.raises(DiskFault, match=says), disk_faults(file):
        raise KeyError("tensor") from failure


def test_what_a_library_raises_for_other_reasons_stays(file):
    with pytest.raises(KeyError, match="tensor"), disk_faults(file):
        raise KeyError("tensor")


def test_checking_makes_no_folder(tmp_path):
    check_output(tmp_path / "a" / "b" / "c.txt", NOTE)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").write_bytes(b"a file")
    with pytest.raises(DiskFault):
        check_output(tmp_path / "a" / "b" / "c.txt", NOTE)
