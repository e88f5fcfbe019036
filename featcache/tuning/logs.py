"""Logs of a training for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from featcache.errors import EnvironmentFault, UsageError
from featcache.tuning.train import Epoch


def logger(folder: Path | None) -> Callable[[Epoch, float], None]:
    """Return a function that writes an epoch and its learning rate into a folder; without a folder it does nothing.

    Raises EnvironmentFault if tensorboard is not installed.
    """
    if folder is None:
        return lambda epoch, rate: None
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise EnvironmentFault(f'`logs` needs tensorboard ({error}): pip install "featcache[tensorboard]"') from error

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`logs` takes a folder; {folder} is a file")
    writer = cache(lambda: Writer(str(folder)))  # made at the first epoch: showing a finished training writes nothing

    def log(epoch: Epoch, rate: float) -> None:
        values = {
            "loss/train": epoch.train_loss,
            "loss/val": epoch.val_loss,
            f"{epoch.metric}/val": epoch.val.value,
            "learning_rate/head": rate,
            "seconds": epoch.seconds,
        }
        for name, value in values.items():
            writer().add_scalar(name, value, epoch.epoch)
        writer().flush()

    return log
