"""A trained model, and how it got there."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.cache.reader import Cache
from featcache.errors import NotARun
from featcache.files import file_digest, make_folder, write_arrays
from featcache.models.certificate import Certificate
from featcache.notebook import html, never_raising
from featcache.provenance import made_with
from featcache.spec import IDENTITY
from featcache.sweeps import Chosen
from featcache.sweeps.metrics import Predictions, Score
from featcache.sweeps.records import TUNED, predictions_of, read_record, write_record
from featcache.text import Table, interval
from featcache.tuning.train import Epoch

SMALL_LOSS = 0.001


def record_of(run: Path, model: Path) -> Path:
    """Return the file in which a run records how a model was fine-tuned from it."""
    name = hashlib.sha256(str(model.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return run / TUNED / f"{model.stem}-{name}.json"


@dataclass(frozen=True)
class Tuned:
    """A trained model. `history[0]` is the start; `best` is what `model` holds."""

    model: Any  # keras.Model: uint8 images -> probabilities
    path: Path | None
    history: tuple[Epoch, ...]
    best: Epoch
    certificate: Certificate | None  # None from scratch: there is nothing to agree with
    num_trainable: int  # weights of the backbone that trained
    seconds: float  # all epochs, and computing what is frozen
    chosen: Chosen  # the trial whose head was the start, or whose images it trained on
    val_logits: Floats = field(repr=False)  # (M, K), on the validation images as they are
    unfrozen: str = ""  # the first block of the backbone that trained
    prefix: str = ""  # the layers up to which the backbone was computed once
    prefix_s: float = 0.0  # what that took, this time
    notes: tuple[str, ...] = ()
    stopped: str = ""  # why training ended before its epochs were over, if it did
    controls: dict[str, Tuned] = field(default_factory=dict)
    flags: tuple[str, ...] = ()  # options of the command that trains it again
    val_view: str = IDENTITY  # the view of the validation images that judged the epochs
    plain_val: Score | None = None  # of `best` on the validation images as they are, if augmented ones judged

    def __repr__(self) -> str:
        return (
            f"Tuned({self.path}, val {self.start.val.value:.4f} -> {self.best.val.value:.4f}, epoch {self.best.epoch})"
        )

    @never_raising
    def _repr_html_(self) -> str:
        notes = ["Epoch 0 is the head as it was handed over.", *self.notes]
        if self.stopped:
            notes.append(f"Ended early: {self.stopped}.")
        if self.certificate is not None:
            passed = "passed" if self.certificate.passed else "failed"
            notes.append(f"Certificate of the start: {passed}, on {self.certificate.images} images.")
        title = f"{self.name}: {self.best.metric} {interval(*self.best.val)} on validation, epoch {self.best.epoch}"
        return html(title, self.history_table(), notes=notes)

    @property
    def val_header(self) -> str:
        """Return what tables call validation scores."""
        return "val" if self.val_view == IDENTITY else "augmented val"

    def history_table(self) -> Table:
        """Return the epochs and the mixtures, which have no training loss or time."""
        rows: list[list[object]] = []
        for epoch in self.history:
            name, train_loss, seconds = str(epoch.epoch), "", ""
            if epoch.mixture is None:
                seconds = f"{epoch.seconds:.1f}"
                if epoch.epoch:
                    train_loss = loss_text(epoch.train_loss)
            else:
                name = f"{epoch.epoch} x {epoch.mixture:.1f}"
            best = "best" if epoch == self.best else ""
            rows.append([name, train_loss, loss_text(epoch.val_loss), interval(*epoch.val), seconds, best])
        return Table(["epoch", "train loss", "val loss", f"{self.val_header} [95 %]", "s", ""], rows)

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
        return tuple(epoch for epoch in self.history if epoch.epoch and epoch.mixture is None)

    def save(self, cache: Cache | None = None) -> None:
        """Record the training in its run, for reports. Raises DiskFault.

        If the record is of this training already, which was only shown again, its controls and seconds stay.
        The predictions on validation are a file beside the record, which names their digest: after a kill between the
        two, the record does not take the predictions of another training for its own.
        cache: the run's cache, if it is open already.
        """
        if self.path is None:
            return
        path = record_of(self.chosen.run.path, self.path)
        predictions = predictions_of(path)
        make_folder(path.parent)
        write_arrays(predictions, self._predicted(self.chosen.run.cache() if cache is None else cache))
        now = datetime.datetime.now(datetime.UTC)
        facts = self.to_json() | {
            "file": str(self.path.resolve()),
            "at": now.isoformat(),
            "made_with": made_with(),
            "predictions": file_digest(predictions),
        }
        facts = json.loads(json.dumps(facts))  # as it is read again
        if path.exists():
            with suppress(NotARun):  # a damaged record is replaced
                before = read_record(path)
                if before.get("history") == facts["history"]:
                    # This time the frozen part came from the disk.
                    facts["seconds"] = before.get("seconds", facts["seconds"])
                    if not self.controls:
                        facts["controls"] = before["controls"]
        write_record(path, facts)

    def _predicted(self, cache: Cache) -> dict[str, Any]:
        """Return its predictions on the validation images, as arrays in their order."""
        truth = cache.labels(self.chosen.run.rows(cache, "val"))
        predicted = self.val_logits.argmax(axis=1).astype(np.int32)
        predictions = Predictions.of(truth, predicted, self.val_logits)
        return {"predicted": predicted, "loss": predictions.loss, "confidence": predictions.confidence}

    def to_json(self) -> dict[str, Any]:
        """Return the training as JSON."""
        facts = {
            "model": str(self.path),
            "trial": self.chosen.trial.trial,
            "flags": list(self.flags),
            "metric": self.best.metric,
            "unfrozen": self.unfrozen,
            "num_trainable": self.num_trainable,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "certificate": None if self.certificate is None else asdict(self.certificate),
            "best": self.best.to_json(),
            "history": _json_of(self.history),
            "controls": {name: _json_of(control.history) for name, control in self.controls.items()},
        }
        if self.val_view != IDENTITY:
            facts["val_view"] = self.val_view
        return facts

    @property
    def seconds_per_epoch(self) -> float:
        """Return the mean time of an epoch, validation included."""
        if not self.trained:
            return 0.0
        return sum(epoch.seconds for epoch in self.trained) / len(self.trained)


def _json_of(history: Sequence[Epoch]) -> list[dict[str, Any]]:
    return [epoch.to_json() for epoch in history]


def loss_text(loss: float) -> str:
    """Return a loss as tables show it: small ones such as 1.2e-05, because four digits would make them 0."""
    return f"{loss:.1e}" if 0 < loss < SMALL_LOSS else f"{loss:.4f}"
