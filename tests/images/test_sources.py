import gc
import gzip
import io
import os
import shutil
import stat
import tarfile
import threading
import tracemalloc
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import write_images

from featcache.errors import DataError, DiskFault, FeatcacheError, ImagesChanged, NoImages
from featcache.images import archives, folder
from featcache.images.decode import Undecodable
from featcache.images.listing import list_images
from featcache.images.manifest import scan
from featcache.images.sources import IN_MEMORY, list_source, open_source

TARS = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def zipped(photos, path, top="", compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(photos.rglob("*")):
            archive.write(file, f"{top}{file.relative_to(photos)}")
    return path


def tarred(photos, path, mode="w", top=".", **options):
    with tarfile.open(path, mode, **options) as archive:
        archive.add(photos, top)
    return path


def packed(photos, folder, kind):
    path = folder / f"p.{kind}"
    return zipped(photos, path) if kind == "zip" else tarred(photos, path, TARS[kind])


def zipped_by_windows(photos, path):
    """Write names as Compress-Archive of Windows 10 does: folders end in, and are separated by, backslashes."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(photos.rglob("*")):
            member = zipfile.ZipInfo()
            member.filename = str(file.relative_to(photos.parent)).replace("/", "\\") + "\\" * file.is_dir()
            archive.writestr(member, b"" if file.is_dir() else file.read_bytes())
    return path


def facts_of(images):
    return [tuple(row) for row in images.rows]


def reason_of(source, path):
    with pytest.raises(Undecodable) as caught:
        source.read(path)
    assert "\n" not in caught.value.reason
    return caught.value.status, caught.value.reason


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_an_archive_is_the_folder_that_was_packed(photos, tmp_path, kind):
    path = packed(photos, tmp_path, kind)
    images = scan(path, check=True)
    assert facts_of(images) == facts_of(scan(photos))
    assert (images.root, images.layout, images.sizes) == (path, "classes", {(20, 16): 36})
    again = open_source(images.source.location)
    assert all(again.read(row.path) == (photos / row.path).read_bytes() for row in images.rows)


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_a_folder_around_everything_says_nothing(photos, tmp_path, kind):
    path = tmp_path / f"p.{kind}"
    if kind == "zip":
        zipped(photos, path, top="my photos/")
    else:
        tarred(photos, path, TARS[kind], top="my photos")
    images = scan(path)
    assert [(row.path, row.label, row.split) for row in images.rows] == [
        (f"my photos/{row.path}", row.label, row.split) for row in scan(photos).rows
    ]


def test_split_folders_in_an_archive_are_splits(photos, tmp_path):
    (tmp_path / "s").mkdir()
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / "s" / split)
    for top in ("", "data/"):
        images = scan(zipped(tmp_path / "s", tmp_path / "s.zip", top))
        assert (images.layout, images.source.location) == ("splits", tmp_path / "s.zip")
        assert {row.split for row in images.rows if "test/" in row.path} == {"test"}


def test_a_zipped_flat_folder_is_flat_and_one_with_more_than_a_folder_is_not_stripped(photos, tmp_path):
    assert scan(zipped(photos / "red", tmp_path / "a.zip", "red/")).layout == "flat"
    path = zipped(photos / "red", tmp_path / "b.zip", "red/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(photos / "blue" / "000.png", "cover.png")
    images = scan(path)
    assert (images.classes, images.stray) == ({"red": 12}, ("cover.png",))


def test_what_macs_and_others_hide_is_not_looked_at(tmp_path):
    names = [
        "a/1.png",
        "b/2.png",
        "__MACOSX/a/._1.png",
        "a/._1.png",
        ".hidden/3.png",
        "a/.DS_Store",
        "b/__MACOSX/4.png",
    ]
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    assert [file.path for file in list_source(tmp_path / "m.zip")[1].files] == ["a/1.png", "b/2.png"]
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        archive.extractall(tmp_path / "m")
    assert [file.path for file in list_images(tmp_path / "m").files] == ["a/1.png", "b/2.png"]


def tar_of(path, *members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                archive.addfile(info)
    return path


def slips():
    """Names of members that must not be followed, and what is said of each."""
    names = ("../../evil.png", "/tmp/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png")
    return {name: "absolute name" if name[0] in "/C" else r"name with \.\." for name in names}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_nothing_leads_out_of_an_archive(photos, tmp_path, kind):
    path = packed(photos, tmp_path, kind)
    members = [(name, tarfile.REGTYPE, b"evil") for name in slips()]
    if kind == "zip":
        with zipfile.ZipFile(path, "a") as archive:
            for name, _, content in members:
                archive.writestr(name, content)
            link = zipfile.ZipInfo("red/link.png")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/passwd")
    else:
        regular = [(f"{label}/0.png", tarfile.REGTYPE, b"x") for label in ("red", "blue")]
        links = [("red/link.png", tarfile.SYMTYPE, "/etc/passwd"), ("red/hard.png", tarfile.LNKTYPE, "red/0.png")]
        devices = [("red/device.png", tarfile.CHRTYPE, ""), ("red/pipe.png", tarfile.FIFOTYPE, "")]
        tar_of(path, *regular, *members, *links, *devices, mode=TARS[kind])
    before = sorted(os.listdir(tmp_path))
    images = scan(path)
    wanted = {**slips(), "red/link.png": "a link in an archive is not followed"}
    if kind != "zip":
        wanted |= {
            "red/hard.png": "a link in an archive",
            "red/device.png": "not a regular",
            "red/pipe.png": "not a regular",
        }
    assert {one.path for one in images.unreadable} == wanted.keys()
    for one in images.unreadable:
        assert (one.status, one.digest) == ("unreadable", "")
        with pytest.raises(Undecodable, match=wanted[one.path]):
            images.source.read(one.path)
    assert set(images.classes) <= {"red", "blue", "green"}
    assert sorted(os.listdir(tmp_path)) == before


def test_of_several_members_of_one_name_the_last_counts(tmp_path):
    members = [("a/1.png", tarfile.REGTYPE, b"old"), ("a/1.png", tarfile.REGTYPE, b"new")]
    assert open_source(tar_of(tmp_path / "t.tar", *members)).read("a/1.png") == b"new"
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        warnings.simplefilter("ignore")
        for name, _, content in members:
            archive.writestr(name, content)
    assert open_source(tmp_path / "z.zip").read("a/1.png") == b"new"


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_are_read_from_many_threads_at_once(tmp_path, kind):
    photos = write_images(tmp_path / "photos", 40)
    images = scan(packed(photos, tmp_path, kind))
    with ThreadPoolExecutor(8) as threads:
        for row, data in zip(
            images.rows * 5, threads.map(images.source.read, [r.path for r in images.rows] * 5), strict=True
        ):
            assert data == (photos / row.path).read_bytes()


def test_names_that_are_not_utf8_are_members(tmp_path):
    name = os.fsdecode(b"a/caf\xe9.jpg")
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.GNU_FORMAT, encoding="utf-8") as archive:
        info = tarfile.TarInfo(name)
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    assert [row.path for row in scan(tmp_path / "t.tar").rows] == [name]


def test_a_zip_says_what_it_cannot_read(tmp_path):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/good.png", b"good")
        archive.writestr("a/bad.png", b"A" * 999)
        archive.writestr("a/bz.png", b"x", compress_type=zipfile.ZIP_BZIP2)
        archive.writestr("a/locked.png", b"locked")
    data = path.read_bytes()
    data = data.replace(b"A" * 9, b"B" * 9, 1)
    at = data.index(b"PK\1\2", data.rindex(b"a/bz.png"))
    data = data[: at + 8] + b"\1" + data[at + 9 :]  # the flag that says encrypted
    path.write_bytes(data)
    source = open_source(path)
    assert source.read("a/good.png") == b"good"
    assert reason_of(source, "a/bad.png") == ("unreadable", "damaged in the archive: its checksum differs")
    assert reason_of(source, "a/bz.png") == ("unreadable", "compressed in the archive by a method other than deflate")
    assert reason_of(source, "a/locked.png") == ("unreadable", "encrypted in the archive")
    assert reason_of(source, "a/none.png") == ("unreadable", "no such member in z.zip")


def test_a_member_that_lies_about_its_size_is_not_unpacked_further(tmp_path):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(50_000_000))
    data = path.read_bytes()
    path.write_bytes(data.replace((50_000_000).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    source = open_source(path)
    tracemalloc.start()
    assert reason_of(source, "a/1.png")[1] == "damaged in the archive: its checksum differs"
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["zip", "tar", "folder"])
def test_no_more_is_read_than_an_image_can_have(photos, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", 500)
    (photos / "red" / "big.png").write_bytes(bytes(501))
    source = open_source(photos if kind == "folder" else packed(photos, tmp_path, kind))
    assert reason_of(source, "red/big.png") == ("too_big", "501 bytes, more than 500")


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_a_damaged_archive_is_named(photos, tmp_path, kind):
    path = packed(photos, tmp_path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"p\.{kind} is damaged, or not what its name says \(.*\)\. Copy or"):
        open_source(path)
    path.write_bytes(b"<html>404</html>" * 99)
    with pytest.raises(DataError, match=rf"p\.{kind} is damaged, or not what its name says"):
        open_source(path)


def test_garbage_in_the_middle_of_a_tar_does_not_end_it_silently(photos, tmp_path):
    path = tarred(photos, tmp_path / "p.tar", format=tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    at = data.index(b"./green/005.png")
    data[at : at + 100] = b"\xff" * 100
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"p\.tar is damaged.*no member begins at byte"):
        open_source(path)


def test_an_archive_that_shrinks_later_gives_unreadable_images(photos, tmp_path):
    for kind in ("zip", "tar"):
        source = open_source(packed(photos, tmp_path, kind))
        os.truncate(source.location, 100)
        assert reason_of(source, "red/011.png")[0] == "unreadable"


def test_a_compressed_tar_is_unpacked_up_to_a_limit(photos, tmp_path, monkeypatch):
    path = packed(photos, tmp_path, "tar.gz")
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 10_000)
    with pytest.raises(DataError, match=r"p\.tar\.gz unpacks to more than 10000 bytes.*TMPDIR"):
        open_source(path)


def test_a_full_disk_while_unpacking_is_named(photos, tmp_path, monkeypatch):
    path = packed(photos, tmp_path, "tar.gz")

    def full(size, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.tempfile, "TemporaryFile", lambda **options: Full())
    with pytest.raises(DiskFault, match=r"Cannot unpack .*p\.tar\.gz in .*No space left on device"):
        open_source(path)


class Full(io.BytesIO):
    def write(self, data):
        raise OSError(28, "No space left on device")


def test_a_tar_bomb_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 10 * 2**20)
    monkeypatch.setattr(archives.tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    with gzip.open(tmp_path / "b.tar.gz", "wb") as file:
        for _ in range(64):
            file.write(bytes(2**20))
    with pytest.raises(DataError, match="unpacks to more than"):
        open_source(tmp_path / "b.tar.gz")
    assert not list((tmp_path / "t").iterdir())


def test_sources_close_what_they_opened(photos, tmp_path):
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    for kind in ("zip", "tar", "tar.gz"):
        open_source(packed(photos, tmp_path, kind)).read("red/000.png")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_a_stamp_changes_with_the_bytes(photos, tmp_path, kind):
    def opened():
        return open_source(photos if kind == "folder" else packed(photos, tmp_path, kind))

    source = opened()
    first = source.stamp("red/000.png")
    assert first == source.stamp("red/000.png")
    assert first != source.stamp("red/001.png")
    shutil.copy(photos / "red" / "001.png", photos / "red" / "000.png")
    assert opened().stamp("red/000.png") != first
    with pytest.raises(Undecodable, match="unreadable"):
        source.stamp("red/none.png")


def test_a_stamp_of_a_member_says_where_it_lies(tmp_path):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"same size")
        archive.writestr("a/2.png", b"size same")
    source = open_source(path)
    assert source.stamp("a/1.png") != source.stamp("a/2.png")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none.png", "No such file or directory"),
        ("red", "Is a directory"),
        ("loop.png", "Too many levels of symbolic links"),
        ("nul\0.png", "embedded null byte"),
        ("pipe.png", "not a regular file"),
        ("\ud800.png", "can't encode"),
    ],
)
def test_a_folder_says_what_it_cannot_read_and_never_waits(photos, path, reason):
    (photos / "loop.png").symlink_to("loop.png")
    os.mkfifo(photos / "pipe.png")
    status, said = reason_of(open_source(photos), path)
    assert (status, reason in said) == ("unreadable", True)


def test_no_memory_for_a_file_is_too_big(photos, tmp_path, monkeypatch):
    def exhausted(*args):
        raise MemoryError

    monkeypatch.setattr(archives.Held, "read", exhausted)
    source = open_source(packed(photos, tmp_path, "tar"))
    assert reason_of(source, "red/000.png") == ("too_big", "more bytes than there is memory")
    monkeypatch.setattr(folder, "require_size", exhausted)
    assert reason_of(open_source(photos), "red/000.png") == ("too_big", "more bytes than there is memory")


def test_a_name_with_escape_codes_or_of_other_bytes_is_a_name(tmp_path):
    photos = write_images(tmp_path / "photos", 2)
    names = [b"red/\x1b[31mred.png", b"red/caf\xe9.png", b"red/new\nline.png"]
    for name in names:
        shutil.copy(photos / "red" / "000.png", os.path.join(os.fsencode(photos), name))
    assert {os.fsencode(row.path) for row in scan(photos).rows} >= {*names}


def test_what_holds_no_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no images")
    with pytest.raises(
        NoImages, match=r"notes\.txt is a file, not a folder, and none that holds images \(\.zip, \.tar"
    ):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(NoImages, match=r"nowhere\.zip does not exist"):
        open_source(tmp_path / "nowhere.zip")
    with zipfile.ZipFile(tmp_path / "e.zip", "w"):
        pass
    with pytest.raises(NoImages, match=r"No images in .*e\.zip\. They are looked for by suffix"):
        scan(tmp_path / "e.zip")


def test_arrays_in_memory_cannot_be_opened_again():
    for location in (IN_MEMORY, IN_MEMORY.resolve()):
        with pytest.raises(ImagesChanged, match=r"were arrays in memory\. Give them again: images="):
            open_source(location)


def test_a_suffix_in_capitals_is_the_same(photos, tmp_path):
    path = zipped(photos, tmp_path / "p.zip").rename(tmp_path / "P.ZIP")
    assert len(scan(path).rows) == 36


def test_threads_do_not_outlive_a_scan_that_is_stopped(photos):
    class Stop(BaseException):
        pass

    def stop(tick):
        raise Stop

    before = threading.active_count()
    with pytest.raises(Stop):
        scan(photos, progress=stop)
    assert threading.active_count() == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder of small archives, arrays and manifests that are sound: NAMES."""
    folder = tmp_path_factory.mktemp("whole")
    photos = write_images(folder / "photos", 2)
    for kind in ("zip", "tar", "tar.gz", "tar.xz"):
        packed(photos, folder, kind)
    pixels = np.zeros((3, 4, 4), np.uint8)
    np.save(folder / "a.npy", pixels)
    np.savez(folder / "a.npz", x=pixels, y=[0, 1, 2])
    np.savez_compressed(folder / "c.npz", x_train=pixels, y_train=["a", "b", "c"])
    (folder / "m.csv").write_text("path,label\na.png,a\n")
    return folder


def outcome(path):
    """Return what a scan says, an error or reasons: nothing else may come of it."""
    try:
        return [one.reason for one in scan(path, check=True).unreadable]
    except FeatcacheError as error:
        return [str(error)]


NAMES = ["a.npy", "a.npz", "c.npz", "m.csv", "p.tar", "p.tar.gz", "p.tar.xz", "p.zip"]
flips = st.lists(st.tuples(st.integers(0, 9999), st.integers(1, 255)), min_size=1, max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(name=st.sampled_from(NAMES), flips=flips, share=st.just(1.0) | st.floats(0, 1))
def test_whatever_is_damaged_raises_errors_of_one_line_and_nothing_else(whole, tmp_path, name, flips, share):
    content = bytearray((whole / name).read_bytes())
    for at, bits in flips:
        content[at % len(content)] ^= bits
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    assert all(reason and "\n" not in reason for reason in outcome(tmp_path / name))


def test_a_zip_that_windows_wrote_keeps_its_class_folders(photos, tmp_path):
    images = scan(zipped_by_windows(photos, tmp_path / "windows.zip"))
    assert facts_of(images) == facts_of(scan(zipped(photos, tmp_path / "unix.zip", top="photos/")))
    assert images.layout == "classes"


def test_names_of_a_windows_zip_cannot_lead_out_of_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as archive:
        for name in ("..\\up.jpg", "C:\\up.jpg", "\\up.jpg"):
            archive.writestr(name, b"")
    source = open_source(tmp_path / "slip.zip")
    assert source.names == []
    assert len(source.refused) == 3


def test_a_backslash_beside_slashes_is_part_of_a_name(photos, tmp_path):
    image = next(photos.rglob("*.png"))
    image.rename(image.with_name("odd\\name.png"))
    source = open_source(zipped(photos, tmp_path / "unix.zip"))
    assert f"{image.parent.name}/odd\\name.png" in source.names
