"""TIFF files of any layout, byte by byte: Pillow writes only some of them."""

import struct

import numpy as np

KINDS = {"u": 1, "i": 2, "f": 3}


def tiff(*pages, photometric=1, extra=(), planar=False, nodata="", bits=None, big_endian=False, subfiles=None):
    """Return an uncompressed TIFF of these pages, each (H, W) or (H, W, C).

    extra: kinds of bands behind the colours. bits: of a value, where the pages are bytes that hold packed values.
    subfiles: NewSubfileType of each page.
    """
    order = ">" if big_endian else "<"
    file = bytearray(b"MM\0*\0\0\0\0" if big_endian else b"II*\0\0\0\0\0")
    link = 4
    for number, page in enumerate(pages):
        subfile = subfiles[number] if subfiles else 0
        height, width = page.shape[:2]
        bands = page.shape[2] if page.ndim == 3 else 1
        planes = [page[..., band] for band in range(bands)] if planar and bands > 1 else [page]
        stored = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
        offsets = [len(file) + sum(map(len, stored[:at])) for at in range(len(stored))]
        file += b"".join(stored)
        size = bits or page.dtype.itemsize * 8
        tags = {
            254: ("I", [subfile]),
            256: ("I", [width * 8 // bits if bits else width]),
            257: ("I", [height]),
            258: ("H", [size] * bands),
            259: ("H", [1]),
            262: ("H", [photometric]),
            273: ("I", offsets),
            277: ("H", [bands]),
            278: ("I", [height]),
            279: ("I", [len(plane) for plane in stored]),
            284: ("H", [2 if planar else 1]),
            338: ("H", list(extra)),
            339: ("H", [KINDS[page.dtype.kind]] * bands),
            42113: ("s", nodata.encode() + b"\0" if nodata else b""),
        }
        link = _add_page(file, link, {tag: value for tag, value in tags.items() if value[1]}, order)
    return bytes(file)


def _add_page(file, link, tags, order):
    """Append a directory with its values, and let `link` point at it; return where the next link goes."""
    entries = b""
    for tag, (form, values) in tags.items():
        packed = values if form == "s" else struct.pack(f"{order}{len(values)}{form}", *values)
        if len(packed) > 4:
            where, packed = len(file), packed + b"\0" * (len(packed) % 2)
            file += packed
            packed = struct.pack(f"{order}I", where)
        kind = {"s": 2, "H": 3, "I": 4}[form]
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    file += b"\0" * (len(file) % 2)
    file[link : link + 4] = struct.pack(f"{order}I", len(file))
    file += struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"
    return len(file) - 4


def ramp(side=16):
    """Return (side, side) uint8 greys from 0 to 255, each row and column another."""
    return np.linspace(0, 255, side * side).astype(np.uint8).reshape(side, side)
