"""Images that show the same within and across splits, groups that keep them together, and labels that look wrong."""

from featcache.extras.leaks.finding import leaks
from featcache.extras.leaks.fixing import Fixed, Move, Unfixed, check_table, fix, unfix, write_table
from featcache.extras.leaks.label_review import (
    Relabelled,
    Reviewed,
    apply_review,
    check_doubts_table,
    unapply,
    write_doubts,
)
from featcache.extras.leaks.labels import Doubt, Doubts, doubts
from featcache.extras.leaks.results import KINDS, Leaks, Pair, Thresholds

__all__ = [
    "KINDS",
    "Doubt",
    "Doubts",
    "Fixed",
    "Leaks",
    "Move",
    "Pair",
    "Relabelled",
    "Reviewed",
    "Thresholds",
    "Unfixed",
    "apply_review",
    "check_doubts_table",
    "check_table",
    "doubts",
    "fix",
    "leaks",
    "unapply",
    "unfix",
    "write_doubts",
    "write_table",
]
