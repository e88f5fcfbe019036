"""Logs of a training that TensorBoard shows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from featcache.errors import EnvironmentFault, UsageError
from featcache.tuning.train import Epoch


def logger(folder: Path | None) -> Callable[[Epoch, float], None]:
    """Return what writes an epoch and its learning rate into a folder, nothing without one.

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
    writer = cache(lambda: Writer(str(folder)))  # at the first epoch: a finished training that is shown has none

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
