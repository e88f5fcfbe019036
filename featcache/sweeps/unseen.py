"""Which images can judge a head: those that neither trained nor chose the backbone that its features come from.

The rows of a cache say what their images did for a backbone that featcache fine-tuned (see `backbones.lineage`). An
image that trained it cannot be left out of it, so neither folds nor leaving one out tell anything, and it must not
choose a head. What chose an epoch of the backbone may choose a head, too, but not judge it in the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from featcache.backbones.lineage import IMAGE_ROLE, Role, lineage_of
from featcache.backbones.weights import source
from featcache.cache.reader import Cache, stored_rows
from featcache.extraction.engines import weights_source_of
from featcache.spec import ImageRow

EXCLUDED: dict[str, frozenset[Role]] = {"val": frozenset({"trained"}), "test": frozenset({"trained", "chose"})}


def roles(cache: Cache, rows: Sequence[ImageRow], tap: str) -> list[Role]:
    """Return what each image did for the backbone of a tap: "none" where it has no row, or nothing can be known."""
    described = cache.taps[tap]
    if described.backbone.origin != "file":
        return ["none"] * len(rows)
    stored = stored_rows(cache.path, described.fingerprint)[described.fingerprint]
    digests = [row.digest for row in rows if row.digest in stored.at]
    makers, made_by = stored.made_by(digests)
    of_maker: list[Role | None] = [json.loads(maker).get(IMAGE_ROLE) for maker in makers]
    role_of = {digest: of_maker[number] for digest, number in zip(digests, made_by.tolist(), strict=True)}
    unrecorded = [digest for digest, role in role_of.items() if role in (None, "unknown")]
    # Rows of an earlier featcache do not say it, but the model that they come from may say it by now.
    lineage = lineage_of(described.backbone, described.layer) if unrecorded else None
    if lineage is not None:
        # A model that unknown images trained may be written again, with its record. Where nothing is said of the rows,
        # another model may lie at that path by now, which tells nothing of them.
        now = source(described.backbone, described.preprocess.size)
        is_same = [weights_source_of(maker) == now for maker in makers]
        of_same = {digest for digest, number in zip(digests, made_by.tolist(), strict=True) if is_same[number]}
        unrecorded = [digest for digest in unrecorded if role_of[digest] == "unknown" or digest in of_same]
        role_of |= {digest: lineage.role(digest) for digest in unrecorded}
    return [role_of.get(row.digest) or "none" for row in rows]


def judging(cache: Cache, rows: Sequence[ImageRow], split: str, taps: Sequence[str]) -> list[ImageRow]:
    """Return those images of a split that can judge heads on all these taps; all of train, which judges nothing."""
    kept = list(rows)
    for tap in taps if split in EXCLUDED else ():
        excluded = EXCLUDED[split]
        kept = [row for row, role in zip(kept, roles(cache, kept, tap), strict=True) if role not in excluded]
    return kept


def why_not_left_out(cache: Cache, rows: Sequence[ImageRow], tap: str) -> str:
    """Return why leaving some of these images out tells nothing on a tap; "" if it does.

    What to do instead comes after it, as another sentence.
    """
    of_images = roles(cache, rows, tap)
    trained = of_images.count("trained")
    if trained:
        return (
            f"{trained} of {len(rows)} images trained the backbone of tap '{tap}', "
            "which knows them, so leaving them out tells nothing"
        )
    if "unknown" in of_images:
        return (
            f"{cache.taps[tap].backbone.weights}, the backbone of tap '{tap}', does not record which images trained "
            "it, so leaving images out may tell nothing. To have it recorded, write it again (featcache finetune, or "
            "handoff)"
        )
    return ""
