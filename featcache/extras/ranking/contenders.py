"""What a ranking found: the place of each tap, what it costs, and an estimate of the winner that did not choose it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from featcache.sweeps.metrics import Score

Verdict = Literal["winner", "tie", "behind", "no time", "not judged", "no weights"]


@dataclass(frozen=True)
class Contender:
    """One tap in the ranking, or a backbone that could not start.

    score: accuracy of ridge when each of `images` training images is left out once, with its 95 % interval.
    difference: the paired 99 % interval of this accuracy minus the leader's, on the same images, in the last rung that
    the tap took part in.
    """

    backbone: str  # as the user named it
    tap: str  # "" if the backbone could not start
    layer: str
    verdict: Verdict
    reason: str = ""  # in a sentence
    score: Score | None = None
    images: int = 0
    difference: tuple[float, float] | None = None
    seconds_per_1000: float | None = None  # images, decoding included; None if all features were in the cache before
    start_s: float = 0.0  # building the network and choosing an engine
    mb_per_1000: float | None = None  # of features, in the cache
    engine: str = ""  # that computed here; "" if all features were in the cache before


@dataclass(frozen=True)
class Rung:
    """One step: training images, and the backbones that were compared on them."""

    images: int
    backbones: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """The result of `rank`: all taps, the winner first."""

    cache: str
    images: int
    classes: int
    contenders: tuple[Contender, ...]
    rungs: tuple[Rung, ...]
    estimate: Score | None  # accuracy of the winner on validation images; None if there are none
    judging_images: int  # these validation images, which chose nothing
    budget: float | None
    seconds: float
    share: float | None  # of the time that all images through all backbones would take; None if not known
    remarks: tuple[str, ...] = ()

    @property
    def winner(self) -> Contender:
        """The tap with the highest score."""
        return self.contenders[0]

    @property
    def ties(self) -> tuple[Contender, ...]:
        """The taps that these images cannot tell from the winner."""
        return tuple(contender for contender in self.contenders if contender.verdict == "tie")

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values."""
        contenders: list[dict[str, Any]] = []
        for contender in self.contenders:
            contenders.append(asdict(contender) | _score_document(contender.score))
        estimate = None
        if self.estimate is not None:
            estimate = {**_score_document(self.estimate), "images": self.judging_images}
        return {
            "cache": self.cache,
            "images": self.images,
            "classes": self.classes,
            "winner": self.winner.tap,
            "backbone": self.winner.backbone,
            "estimate": estimate,
            "contenders": contenders,
            "rungs": [asdict(rung) for rung in self.rungs],
            "budget": self.budget,
            "seconds": round(self.seconds, 1),
            "share": self.share,
            "remarks": list(self.remarks),
        }


def _score_document(score: Score | None) -> dict[str, Any]:
    if score is None:
        return {"score": None, "interval": None}
    return {"score": score.value, "interval": [score.low, score.high]}
