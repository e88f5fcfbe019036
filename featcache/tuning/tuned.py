"""A trained model, and how it got there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.arrays import Floats
from featcache.assembly.certificate import Certificate
from featcache.sweeps import Chosen
from featcache.tuning.train import Epoch


@dataclass(frozen=True)
class Tuned:
    """A trained model. `history[0]` is the start; `best` is what `model` holds."""

    model: Any  # keras.Model: uint8 images -> probabilities
    path: Path | None
    history: tuple[Epoch, ...]
    best: Epoch
    certificate: Certificate | None  # None from scratch: there is nothing to agree with
    num_trainable: int  # weights of the backbone that trained
    seconds: float  # of all epochs, and of computing what is frozen
    chosen: Chosen  # the trial whose head was the start, or whose images it trained on
    val_logits: Floats = field(repr=False)  # (M, K), of the validation images
    unfrozen: str = ""  # the block from which on the backbone trained
    prefix: str = ""  # the layers up to which it was computed once
    prefix_s: float = 0.0  # what that took, this time
    notes: tuple[str, ...] = ()
    stopped: str = ""  # why training ended before its epochs were over, if it did
    controls: dict[str, Tuned] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Tuned({self.path}, val {self.start.val.value:.4f} -> {self.best.val.value:.4f}, epoch {self.best.epoch})"
        )

    @property
    def name(self) -> str:
        """Return what to call it."""
        return str(self.path) if self.path else f"tuned from {self.chosen.run.path}@{self.chosen.trial.trial}"

    @property
    def start(self) -> Epoch:
        """Return epoch 0: the head, before any training."""
        return self.history[0]

    @property
    def trained(self) -> tuple[Epoch, ...]:
        """Return the epochs that trained."""
        return tuple(one for one in self.history if one.epoch and one.mixture is None)

    @property
    def seconds_per_epoch(self) -> float:
        """Return the mean time of an epoch, validation included."""
        return sum(one.seconds for one in self.trained) / len(self.trained) if self.trained else 0.0
