"""Which images made a network what it is: those that trained it, and those that chose among its states.

A network fits the images that trained it better than any others. So nothing can be learnt by leaving such an image out
of what a head is fitted on: its features know its label already. Every model that featcache writes therefore carries
two lineages, one of the features that enter its classifier and one of the classifier's scores. They include those of
the backbone that training began with. An image is known by the first 8 bytes of its SHA-256.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from featcache.backbones import saved
from featcache.backbones.own import FACTS
from featcache.files import raise_if_of_the_system
from featcache.spec import BackboneSpec, ImageRow

MEMBER = "featcache_lineage.npz"  # in a .keras file, or in the folder of a SavedModel
SCORES = ("logits", "probabilities")  # how the names of the layers begin that give a classifier's scores

IMAGE_ROLE = "image_role"  # what a row of a cache says of its image, in `provenance`
Role = Literal["trained", "unknown", "chose", "none"]


@dataclass(frozen=True)
class Lineage:
    """The images behind a network. is_complete: nothing trained it that was not recorded."""

    trained: frozenset[int] = frozenset()
    chose: frozenset[int] = frozenset()
    is_complete: bool = True

    @classmethod
    def of(cls, trained: Iterable[ImageRow], chose: Iterable[ImageRow]) -> Lineage:
        """Return the lineage of a network that these images trained and chose."""
        return cls(
            frozenset(_number(row.digest) for row in trained),
            frozenset(_number(row.digest) for row in chose),
        )

    def __or__(self, other: Lineage) -> Lineage:
        """Return the lineage of a network that was made from both."""
        is_complete = self.is_complete and other.is_complete
        return Lineage(self.trained | other.trained, self.chose | other.chose, is_complete)

    def role(self, digest: str) -> Role:
        """Return what an image did for the network; "unknown" where that was not recorded."""
        number = _number(digest)
        # Recorded images have trained the network even if others are not recorded.
        if number in self.trained:
            return "trained"
        if not self.is_complete:
            return "unknown"
        return "chose" if number in self.chose else "none"


@dataclass(frozen=True)
class Lineages:
    """The lineages of one model."""

    features: Lineage  # of what enters the classifier, and of all layers before
    scores: Lineage  # of what the classifier gives

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads: an .npz file with (M,) uint64 images and (M, 4) flags."""
        sets = (self.features.trained, self.features.chose, self.scores.trained, self.scores.chose)
        # One row for each image, with a flag for each set. Sorted, so that equal lineages give equal arrays.
        images = sorted(frozenset[int]().union(*sets))
        flags = np.zeros((len(images), len(sets)), bool)
        for column, members in enumerate(sets):
            flags[:, column] = [image in members for image in images]
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            images=np.array(images, np.uint64),
            flags=flags,
            is_complete=np.array([self.features.is_complete, self.scores.is_complete]),
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Lineages:
        """Return the lineages that were written. Raises ValueError, KeyError and the like if they are damaged."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            images = file["images"]
            flags = file["flags"]
            is_complete = file["is_complete"]
        sets: list[frozenset[int]] = []
        for column in range(4):
            members = images[flags[:, column]]
            sets.append(frozenset(members.tolist()))
        features_complete, scores_complete = is_complete.tolist()
        features = Lineage(sets[0], sets[1], features_complete)
        scores = Lineage(sets[2], sets[3], scores_complete)
        return cls(features, scores)


UNRECORDED = Lineages(Lineage(is_complete=False), Lineage(is_complete=False))


def lineages_in(path: Path) -> Lineages | None:
    """Return the lineages that a model carries; None of one that featcache did not write, of which nothing is known.

    Of a model of an earlier featcache, or a damaged record, nothing is known either, but that something trained it.
    Raises DiskFault where the system does not let the file be read: that must not pass for a model of others.
    """
    try:
        if path.is_dir():
            is_ours = (path / FACTS).is_file()
            record = path / MEMBER
            data = record.read_bytes() if record.is_file() else None
        else:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                is_ours = FACTS in names
                data = archive.read(MEMBER) if MEMBER in names else None
    except (OSError, zipfile.BadZipFile) as error:
        raise_if_of_the_system(path, error)
        return None
    if data is None:
        return UNRECORDED if is_ours else None
    try:
        return Lineages.from_bytes(data)
    except Exception:  # damaged files raise many kinds
        return UNRECORDED


def lineage_of(spec: BackboneSpec, layer: str) -> Lineage | None:
    """Return which images are behind what a layer of a backbone gives; None where featcache cannot know."""
    if spec.origin != "file":
        return None
    path = Path(spec.weights)
    lineages = lineages_in(path)
    if lineages is None:
        return None
    is_scores = layer.startswith(SCORES) or saved.is_saved(path)  # of a SavedModel only the output is read
    return lineages.scores if is_scores else lineages.features


def _number(digest: str) -> int:
    return int(digest[:16], 16)
