"""featcache finetune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.handoff import Moved, Trial
from featcache_cli.output import Json, Quiet, emit, progress

if TYPE_CHECKING:
    from featcache.tuning import Tuned


def command(
    trial: Trial,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The model to write. [default: RUN/finetuned.keras]")
    ] = None,
    unfreeze: Annotated[
        str,
        typer.Option("--unfreeze", help="none, last (block), all, a number of layers, or the block to start from."),
    ] = "last",
    epochs: Annotated[int, typer.Option("--epochs", help="Most epochs.")] = 10,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate of AdamW.")] = 1e-5,
    batch: Annotated[int, typer.Option("--batch", help="Images per step.")] = 32,
    patience: Annotated[int, typer.Option("--patience", help="Epochs without improvement before it stops.")] = 3,
    class_weight: Annotated[
        str | None, typer.Option("--class-weight", help="balanced: rare classes weigh as much.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the order of images.")] = 0,
    images: Moved = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune the model from a head on; the result is never worse on validation than the head.

    Example: featcache finetune photos.run@best -o tuned.keras --unfreeze last
    """
    from featcache.sweeps import open_trial
    from featcache.tuning import finetune

    with progress(quiet) as draw:
        tuned = finetune(
            open_trial(trial),
            out,
            unfreeze=unfreeze,
            epochs=epochs,
            learning_rate=lr,
            batch=batch,
            patience=patience,
            class_weight=class_weight,
            seed=seed,
            images=images,
            progress=draw,
        )
    emit(
        json,
        document(tuned),
        lambda: f"{text(tuned)}\nModel: {tuned.path}\nNext: featcache predict {tuned.path} IMAGES",
    )


def document(tuned: Tuned) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    parity = tuned.certificate
    return {
        "model": str(tuned.path),
        "start": {"val": tuned.start.val.value},
        "best": {"val": tuned.best.val.value, "epoch": tuned.best.epoch},
        "epochs": len(tuned.history) - 1,
        "seconds_per_epoch": round(tuned.seconds_per_epoch, 3),
        "parity": None if parity is None else {"inference": parity.inference, "training": parity.training},
        "history": [{"epoch": one.epoch, "val": one.val.value, "val_loss": one.val_loss} for one in tuned.history],
    }


def text(tuned: Tuned) -> str:
    """Return the result as a person reads it."""
    from featcache.reports.table import interval, table

    rows = [
        (
            one.epoch,
            f"{one.train_loss:.4f}" if one.epoch else "",
            f"{one.val_loss:.4f}",
            interval(*one.val),
            f"{one.seconds:.1f}",
            "best" if one.epoch == tuned.best.epoch else "",
        )
        for one in tuned.history
    ]
    start = "Epoch 0 is the head as it was handed over. Best is the highest val, then the lowest val loss."
    return "\n".join([table(["epoch", "train loss", "val loss", "val [95 %]", "s", ""], rows), start])
