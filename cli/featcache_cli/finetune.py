"""featcache finetune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import trust
from featcache.settings import FinetuneOptions
from featcache.spec import IDENTITY
from featcache_cli.handoff import Moved, Trial
from featcache_cli.output import Allow, Force, Json, Quiet, emit, in_shell, open_trial, progress, remarks_in_flags

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
        tuned = finetune(open_trial(trial), out, images=images, force=force, progress=draw, **vars(options))
    next_line = f"Next: featcache predict {in_shell(tuned.path)} IMAGES"
    emit(json, document(tuned), lambda: f"{text(tuned)}\nModel: {tuned.path}\n{next_line}")


def document(tuned: Tuned) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    parity = tuned.certificate
    facts = {
        "model": str(tuned.path),
        "start": {"val": tuned.start.val.value},
        "best": {"val": tuned.best.val.value, "epoch": tuned.best.epoch, "mixture": tuned.best.mixture},
        "epochs": len(tuned.trained),
        "val_view": tuned.val_view,
        "plain_val": None if tuned.plain_val is None else tuned.plain_val.value,
        "seconds_per_epoch": round(tuned.seconds_per_epoch, 3),
        "parity": None if parity is None else {"inference": parity.inference, "training": parity.training},
        "unfrozen": tuned.unfrozen,
        "prefix": tuned.prefix,
        "prefix_s": round(tuned.prefix_s, 3),
        "stopped": tuned.stopped,
        "notes": remarks_in_flags(tuned.notes),
        "history": _history(tuned),
    }
    if tuned.controls:
        facts["controls"] = {name: _history(control) for name, control in tuned.controls.items()}
        differences: dict[str, Any] = {}
        for name, comparison in _differences(tuned).items():
            differences[name] = {
                "difference": comparison.difference,
                "interval": list(comparison.interval),
                "p_value": comparison.p_value,
            }
        facts["differences"] = differences
    return facts


def text(tuned: Tuned) -> str:
    """Return the result as a person reads it."""
    from featcache.text import interval, table

    lines = [table(*tuned.history_table(), spare=["s", "train loss"])]
    lines.append("Epoch 0 is the head as it was handed over. Best is the highest val, then the lowest val loss.")
    if tuned.plain_val is not None:
        lines.append(
            f"These validation scores are of augmented images: each image in its view {tuned.val_view}, in all epochs. "
            f"On the images as they are, the model has {interval(*tuned.plain_val)}; featcache compare shows the head "
            "beside it."
        )
    first = next((epoch for epoch in tuned.history if epoch.mixture is not None), None)
    if first is not None:
        lines.append(
            f"{first.epoch} x {first.mixture:.1f} are weights {first.mixture:.0%} of the way from the start to epoch "
            f"{first.epoch}, judged on the same images."
        )
    if tuned.best.epoch == 0:
        lines.append("No epoch was better on validation than the head: the model is the head as it was handed over.")
    lines += remarks_in_flags(tuned.notes)
    if tuned.unfrozen:
        lines.append(
            f"Trained, from {tuned.unfrozen} on: {tuned.num_trainable:,} weights of the backbone, and the head."
        )
    if tuned.prefix:
        lines.append(f"Computed once, and kept in the run: everything up to {tuned.prefix} ({tuned.prefix_s:.1f} s).")
    if tuned.stopped:
        lines.append(f"Ended early: {tuned.stopped}.")
    if tuned.controls:
        lines.append(_controls_table(tuned))
    return "\n".join(lines)


def _controls_table(tuned: Tuned) -> str:
    """Return the table of the model and its controls, epoch by epoch, and how they differ."""
    from featcache.text import interval, table
    from featcache.tuning.tuned import loss_text

    rows = []
    for name, model in {"fine-tuned": tuned, **tuned.controls}.items():
        for epoch in (model.start, *model.trained):
            best = "best" if epoch == model.best else ""
            score, seconds = interval(*epoch.val), f"{epoch.seconds:.1f}"
            rows.append([name, epoch.epoch, score, loss_text(epoch.val_loss), epoch.images, seconds, best])
    header = ["", "epoch", f"{tuned.val_header} [95 %]", "val loss", "images seen", "s", ""]
    lines = ["", table(header, rows)]
    images = "the same images" if tuned.val_view == IDENTITY else "the same images as they are"

    for name, comparison in _differences(tuned).items():
        low, high = comparison.interval
        if low > 0:
            verdict = "better"
        elif high < 0:
            verdict = "worse"
        else:
            verdict = "a tie"
        difference = f"{comparison.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.append(f"fine-tuned - {name}: {difference} on {images}: {verdict}")
    for control in tuned.controls.values():
        lines += remarks_in_flags(control.notes)
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
            "epoch": epoch.epoch,
            "val": epoch.val.value,
            "val_loss": epoch.val_loss,
            "seconds": round(epoch.seconds, 3),
            "images": epoch.images,
            "mixture": epoch.mixture,
        }
        for epoch in tuned.history
    ]
