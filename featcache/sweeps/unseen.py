"""Which images can judge a head: those that neither trained nor chose the backbone that its features come from.

The cache records what each image did for a backbone that featcache fine-tuned (see `backbones.lineage`). An image that
trained the backbone must not choose a head, and leaving it out of the head's training means nothing: the features know
it already. An image that chose an epoch of the backbone may choose a head too, but not judge it in the end.
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
    """Return what each image did for the backbone of a tap: "none" if it has no row, or nothing can be known."""
    described = cache.taps[tap]
    if described.backbone.origin != "file":
        return ["none"] * len(rows)
    stored = stored_rows(cache.path, described.fingerprint)[described.fingerprint]
    digests = [row.digest for row in rows if row.digest in stored.at]
    makers, maker_numbers = stored.made_by(digests)
    maker_of = {digest: makers[number] for digest, number in zip(digests, maker_numbers.tolist(), strict=True)}
    role_by_maker: dict[str, Role | None] = {maker: json.loads(maker).get(IMAGE_ROLE) for maker in makers}
    role_of = {digest: role_by_maker[maker] for digest, maker in maker_of.items()}

    # Rows of an earlier featcache have no role, but the model file that made them may record it by now.
    unrecorded = [digest for digest, role in role_of.items() if role in (None, "unknown")]
    lineage = lineage_of(described.backbone, described.layer) if unrecorded else None
    if lineage is not None:
        # "unknown": the same model may have been written again, with its record. No role at all: another model may lie
        # at that path by now, so its record counts only if the weights are those that made the row.
        weights = source(described.backbone, described.preprocess.size)
        has_same_weights = {maker: weights_source_of(maker) == weights for maker in makers}
        for digest in unrecorded:
            if role_of[digest] == "unknown" or has_same_weights[maker_of[digest]]:
                role_of[digest] = lineage.role(digest)
    return [role_of.get(row.digest) or "none" for row in rows]


def rows_that_judge(cache: Cache, rows: Sequence[ImageRow], split: str, taps: Sequence[str]) -> list[ImageRow]:
    """Return the images of a split that can judge heads on all these taps; for train, which judges nothing, all."""
    kept = list(rows)
    if split not in EXCLUDED:
        return kept
    for tap in taps:
        roles_of_rows = roles(cache, kept, tap)
        kept = [row for row, role in zip(kept, roles_of_rows, strict=True) if role not in EXCLUDED[split]]
    return kept


def why_not_left_out(cache: Cache, rows: Sequence[ImageRow], tap: str) -> str:
    """Return why leaving out some of these images means nothing on a tap; "" if it means something.

    The caller adds what to do instead, as another sentence.
    """
    roles_of_rows = roles(cache, rows, tap)
    num_trained = roles_of_rows.count("trained")
    if num_trained:
        return (
            f"{num_trained} of {len(rows)} images trained the backbone of tap '{tap}', "
            "which knows them, so leaving them out tells nothing"
        )
    if "unknown" in roles_of_rows:
        return (
            f"{cache.taps[tap].backbone.weights}, the backbone of tap '{tap}', does not record which images trained "
            "it, so leaving images out may tell nothing. To have it recorded, write it again (featcache finetune, or "
            "handoff)"
        )
    return ""
