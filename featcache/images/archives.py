"""Zip and tar archives as sources: members are read in place, never unpacked to disk under their names.

`zipfile` and `tarfile` list an archive once. From then on a table of offsets serves all threads at once with `pread`;
reading through these modules would make the decoding threads wait for one lock. A compressed tar has no offsets, so it
is decompressed once, to a temporary file without a name. Links, devices and names that lead out of the archive are
listed as unreadable, not followed.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from featcache.errors import DataError, DiskFault
from featcache.files import raise_if_of_the_system
from featcache.images.decode import Undecodable
from featcache.images.folder import Stamp, require_size, stamp_of
from featcache.images.listing import SUFFIXES

MAX_UNPACKED_BYTES = 64 * 2**30  # of a compressed tar, and at most half of what is free
CHUNK = 2**20
BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)
PACKERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


class Held:
    """A file that stays open and that any thread can read at any offset. It is closed when nobody refers to it."""

    def __init__(self, file: IO[bytes]) -> None:
        # A copy of the handle, because the caller closes the file.
        self._handle = os.dup(file.fileno())

    def __del__(self) -> None:
        os.close(self._handle)

    def read(self, size: int, offset: int) -> bytes:
        """Return `size` bytes from `offset` on, or fewer at the end of the file."""
        pieces = []
        # One call reads less than 2 GB on Linux.
        while size > 0 and (piece := os.pread(self._handle, min(size, 2**30), offset)):
            pieces.append(piece)
            size -= len(piece)
            offset += len(piece)
        return b"".join(pieces)

    def stamp(self) -> Stamp:
        """Return the stamp of the whole file."""
        return stamp_of(os.fstat(self._handle))

    def reopened(self) -> IO[bytes]:
        """Return the file opened at its beginning."""
        file = os.fdopen(os.dup(self._handle), "rb")
        file.seek(0)
        return file


class Member(NamedTuple):
    """Where the bytes of a member are."""

    offset: int  # of its data; in a zip, of its header
    size: int
    packed_size: int = 0  # in a zip
    packed: bool = False
    checksum: int = 0


class Archive:
    """What zip and tar have in common: the table of members, and what is refused and why."""

    def __init__(self, path: Path, held: Held) -> None:
        self.location = path
        self.refused: dict[str, str] = {}
        self._held = held
        self._members: dict[str, Member] = {}

    @property
    def names(self) -> list[str]:
        """The members that can be read."""
        return list(self._members)

    def read(self, path: str) -> bytes:
        """Return the bytes of one member."""
        member = self._member(path)
        require_size(max(member.size, member.packed_size))
        try:
            return self._bytes_of(member)
        except (OSError, zlib.error) as error:
            raise Undecodable("unreadable", f"the archive cannot be read there ({error})") from error
        except MemoryError as error:
            raise Undecodable("too_big", "more bytes than there is memory") from error

    def stamp(self, path: str) -> Stamp:
        """Return the stamp of the archive together with the place of the member in it."""
        # A stamp is three numbers. Each one here is made of the member's and the archive's.
        member = self._member(path)
        archive = self._archive_stamp()
        size = member.size + (archive.size << 40)
        inode = archive.inode + (member.offset << 64)
        return Stamp(size, archive.mtime_ns, inode)

    def _archive_stamp(self) -> Stamp:
        return self._held.stamp()

    def _bytes_of(self, member: Member) -> bytes:
        data = self._held.read(member.size, member.offset)
        if len(data) < member.size:
            raise Undecodable("unreadable", "the archive ends before this member does")
        return data

    def _add(self, name: str, member: Member, wrong: str) -> None:
        """Add a member to the table, or to the refused ones. wrong: why it is refused, or "".

        If several members have one name, the last counts, as it does when an archive is unpacked.
        """
        name = name.replace("\0", "\ufffd")
        wrong = wrong or _wrong_name(name)
        # Only now, since `_wrong_name` must still see a `..` in the name.
        if not wrong:
            name = posixpath.normpath(name)
        self._members.pop(name, None)
        self.refused.pop(name, None)
        if not wrong:
            self._members[name] = member
        elif posixpath.splitext(name)[1].lower() in SUFFIXES:
            self.refused[name] = wrong

    def _member(self, path: str) -> Member:
        if path not in self._members:
            raise Undecodable("unreadable", self.refused.get(path, f"no such member in {self.location.name}"))
        return self._members[path]


class ZipSource(Archive):
    """A zip archive."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            super().__init__(path, Held(file))
            members = members_of_zip(file, path)
            # The format demands slashes, but Compress-Archive of Windows 10 and old .NET programs write backslashes
            # only. Where one name has a slash, a backslash is an ordinary character of a name.
            has_slashes = any("/" in info.filename for info in members)
            separator = "/" if has_slashes else "\\"
            for info in members:
                name = info.filename.replace(separator, "/")
                if name.endswith("/"):
                    continue  # a folder
                packed = info.compress_type == zipfile.ZIP_DEFLATED
                place = Member(info.header_offset, info.file_size, info.compress_size, packed, info.CRC)
                self._add(name, place, _wrong_in_zip(info))

    def _bytes_of(self, member: Member) -> bytes:
        data = self._held.read(member.packed_size, data_offset(self._held, member.offset))
        if member.packed:
            # One byte more than the table says at most: a bomb stops there, and then its length differs.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
        if len(data) != member.size or zlib.crc32(data) != member.checksum:
            raise Undecodable("unreadable", "damaged in the archive: its checksum differs")
        return data


class TarSource(Archive):
    """A tar archive, compressed or not."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # Unpacking takes a while, and the stamp must belong to the bytes that were unpacked.
            self._stamp = stamp_of(os.fstat(file.fileno()))
            packer = _packer_of(file)
            self._unpacked = packer is not None
            held = Held(file) if packer is None else unpacked(packer(file), path)
            super().__init__(path, held)
            if self._unpacked and stamp_of(os.fstat(file.fileno())) != self._stamp:
                raise DataError(f"{path} has changed while it was read. Try again when nothing writes to it")
        with self._held.reopened() as file:
            self._list(file)

    def _archive_stamp(self) -> Stamp:
        return self._stamp if self._unpacked else super()._archive_stamp()

    def _list(self, file: IO[bytes]) -> None:
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
                while (info := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                    if not info.isdir():
                        self._add(info.name, Member(info.offset_data, info.size), _wrong_in_tar(info))
                file.seek(archive.offset)
                # tarfile takes any damage behind the first member for the end; a real end is a block of zeros.
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"no member begins at byte {archive.offset}")
        except BROKEN as error:
            raise damaged(self.location, error) from error


def _packer_of(file: IO[bytes]) -> Callable[[IO[bytes]], Any] | None:
    """Return what decompresses a file, by its first bytes, or None if it is not compressed."""
    start = file.read(max(map(len, PACKERS)))
    file.seek(0)
    for magic, packer in PACKERS.items():
        if start.startswith(magic):
            return packer
    return None


def unpacked(stream: IO[bytes], path: Path) -> Held:
    """Return the bytes of a stream in a temporary file without a name. Raises DataError, DiskFault."""
    folder = tempfile.gettempdir()
    limit = min(MAX_UNPACKED_BYTES, shutil.disk_usage(folder).free // 2)
    size = 0
    with stream, tempfile.TemporaryFile(dir=folder) as file:
        while chunk := _read_chunk(stream, path):
            size += len(chunk)
            if size > limit:
                raise DataError(
                    f"{path} unpacks to more than {limit} bytes, half of what is free in {folder} or the limit. "
                    "Unpack it yourself and give the folder, or set TMPDIR to a larger disk"
                )
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise DiskFault(
                    f"Cannot unpack {path} in {folder}: {error.strerror}. Free some space or set TMPDIR"
                ) from error
        return Held(file)


def members_of_zip(file: IO[bytes], path: Path) -> list[zipfile.ZipInfo]:
    """Return the table of a zip archive. Raises DataError if it has none."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except Exception as error:  # zipfile raises many kinds on damaged files
        raise damaged(path, error) from error


def data_offset(held: Held, header: int) -> int:
    """Return where the bytes of a zip's member begin. Raises Undecodable.

    In front of them is a header of 30 bytes, the name, and an extra field; bytes 26 to 29 have the lengths of the two.
    """
    fixed = held.read(30, header)
    if len(fixed) < 30 or fixed[:4] != b"PK\3\4":
        raise Undecodable("unreadable", "damaged in the archive: its header is not there")
    name_length = int.from_bytes(fixed[26:28], "little")
    extra_length = int.from_bytes(fixed[28:30], "little")
    return header + 30 + name_length + extra_length


def damaged(path: Path, error: Exception) -> DataError:
    """Return the error for an archive that cannot be read at all. Raises DiskFault if the system refused."""
    raise_if_of_the_system(path, error)
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} is damaged, or not what its name says ({reason}). Copy or download it again")


def _read_chunk(stream: IO[bytes], path: Path) -> bytes:
    try:
        return stream.read(CHUNK)
    except BROKEN as error:
        raise damaged(path, error) from error


def _wrong_name(name: str) -> str:
    """Return what is wrong with a name that leads out of the archive, or ""."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
        return "an absolute name in an archive is not followed"
    if ".." in re.split(r"[/\\]", name):
        return "a name with .. in an archive is not followed"
    return ""


def _wrong_in_zip(info: zipfile.ZipInfo) -> str:
    """Return why a member of a zip cannot be read, or ""."""
    # Programs of Unix store the kind of the file in the upper 16 bits; others leave 0 there.
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a link in an archive is not followed"
    if kind not in (0, stat.S_IFREG):
        return "not a regular file"
    if info.flag_bits & 1:
        return "encrypted in the archive"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "compressed in the archive by a method other than deflate"
    return ""


def _wrong_in_tar(info: tarfile.TarInfo) -> str:
    """Return why a member of a tar cannot be read, or ""."""
    if info.islnk() or info.issym():
        return "a link in an archive is not followed"
    if not info.isreg() or info.issparse():
        return "not a regular file"
    return ""
