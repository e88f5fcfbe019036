"""Flip one bit of a cache as a bad disk does: in its place, below every check."""

from __future__ import annotations

from pathlib import Path

import h5py


def flip_feature(path: Path, tap: str = "") -> None:
    """Flip a bit of a number in the middle of the features of the first tap of a file whose name contains `tap`."""
    places: list[tuple[int, int]] = []

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset) and name.endswith("/features") and tap in name:
            places.append((node.id.get_offset(), node.nbytes))

    with h5py.File(path) as file:
        file["taps"].visititems(visit)
    start, nbytes = places[0]
    flip(path, start + nbytes // 8 * 4 + 2)


def flip(path: Path, byte: int) -> None:
    """Flip one bit of a byte of a file."""
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 0x20]))
