"""featcache finetune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import trust
from featcache.settings import FinetuneOptions
from featcache_cli.handoff import Moved, Trial
from featcache_cli.output import Allow, Force, Json, Quiet, emit, in_shell, open_trial, progress

if TYPE_CHECKING:
    from featcache.sweeps import Comparison
    from featcache.tuning import Tuned


def command(
    *,
    trial: Trial,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The model to write. [default: RUN/finetuned.keras]")
    ] = None,
    force: Force = False,
    options: FinetuneOptions,
    images: Moved = None,
    allow: Allow = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune the model from a head on; the result is never worse on validation than the head.

    Example: featcache finetune photos.run@best -o tuned.keras --unfreeze last --controls frozen,scratch
    """
    from featcache.tuning import finetune

    trust.allow(*(allow or ()))
    with progress(quiet) as draw:
        tuned = finetune(
            open_trial(trial),
            out,
            images=images,
            force=force,
            progress=draw,
            **vars(options),
        )
    emit(
        json,
        document(tuned),
        lambda: f"{text(tuned)}\nModel: {tuned.path}\nNext: featcache predict {in_shell(tuned.path)} IMAGES",
    )


def document(tuned: Tuned) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    parity = tuned.certificate
    found = {
        "model": str(tuned.path),
        "start": {"val": tuned.start.val.value},
        "best": {"val": tuned.best.val.value, "epoch": tuned.best.epoch, "mixture": tuned.best.mixture},
        "epochs": len(tuned.trained),
        "seconds_per_epoch": round(tuned.seconds_per_epoch, 3),
        "parity": None if parity is None else {"inference": parity.inference, "training": parity.training},
        "unfrozen": tuned.unfrozen,
        "prefix": tuned.prefix,
        "prefix_s": round(tuned.prefix_s, 3),
        "stopped": tuned.stopped,
        "history": _history(tuned),
    }
    if tuned.controls:
        found["controls"] = {name: _history(control) for name, control in tuned.controls.items()}
        found["differences"] = {
            name: {"difference": one.difference, "interval": list(one.interval), "p_value": one.p_value}
            for name, one in _differences(tuned).items()
        }
    return found


def text(tuned: Tuned) -> str:
    """Return the result as a person reads it."""
    from featcache.text import interval, table

    rows = [
        (
            one.epoch if one.mixture is None else f"{one.epoch} x {one.mixture:.1f}",
            f"{one.train_loss:.4f}" if one.epoch and one.mixture is None else "",
            f"{one.val_loss:.4f}",
            interval(*one.val),
            f"{one.seconds:.1f}" if one.mixture is None else "",
            "best" if one == tuned.best else "",
        )
        for one in tuned.history
    ]
    lines = [table(["epoch", "train loss", "val loss", "val [95 %]", "s", ""], rows, spare=["s", "train loss"])]
    lines.append("Epoch 0 is the head as it was handed over. Best is the highest val, then the lowest val loss.")
    mixtures = [one for one in tuned.history if one.mixture is not None]
    if mixtures:
        first = mixtures[0]
        lines.append(
            f"{first.epoch} x {first.mixture:.1f} are weights {first.mixture:.0%} of the way from the start to epoch "
            f"{first.epoch}, judged on the same images."
        )
    if tuned.best.epoch == 0:
        lines.append("No epoch was better on validation than the head: the model is the head as it was handed over.")
    lines += tuned.notes
    if tuned.unfrozen:
        lines.append(
            f"Trained, from {tuned.unfrozen} on: {tuned.num_trainable:,} weights of the backbone, and the head."
        )
    if tuned.prefix:
        lines.append(f"Computed once, and kept in the run: everything up to {tuned.prefix} ({tuned.prefix_s:.1f} s).")
    if tuned.stopped:
        lines.append(f"Ended early: {tuned.stopped}.")
    if tuned.controls:
        lines.append(_compared(tuned))
    return "\n".join(lines)


def _compared(tuned: Tuned) -> str:
    """Return the table of the controls, epoch by epoch."""
    from featcache.text import interval, table

    ways = {"fine-tuned": tuned, **tuned.controls}
    rows = [
        (
            name,
            one.epoch,
            interval(*one.val),
            f"{one.val_loss:.4f}",
            one.images,
            f"{one.seconds:.1f}",
            "best" if one == way.best else "",
        )
        for name, way in ways.items()
        for one in (way.start, *way.trained)
    ]
    lines = ["", table(["", "epoch", "val [95 %]", "val loss", "images seen", "s", ""], rows)]
    for name, found in _differences(tuned).items():
        low, high = found.interval
        said = "a tie" if low <= 0 <= high else "better" if low > 0 else "worse"
        lines.append(
            f"fine-tuned - {name}: {found.difference:+.4f} [{low:+.4f}, {high:+.4f}] on the same images: {said}"
        )
    if "scratch" in tuned.controls:
        lines.append(
            "From scratch all layers train at 0.001 from random weights; that takes many more epochs than a head."
        )
    return "\n".join(lines)


def _differences(tuned: Tuned) -> dict[str, Comparison]:
    """Return how much better the model is than each control, each at its best epoch."""
    from featcache.sweeps import compare

    return {name: compare(tuned, control, tuned.best.metric) for name, control in tuned.controls.items()}


def _history(tuned: Tuned) -> list[dict[str, Any]]:
    return [
        {
            "epoch": one.epoch,
            "val": one.val.value,
            "val_loss": one.val_loss,
            "seconds": round(one.seconds, 3),
            "images": one.images,
            "mixture": one.mixture,
        }
        for one in tuned.history
    ]
