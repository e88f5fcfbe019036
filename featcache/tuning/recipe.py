"""How to fine-tune: everything but the head, the images and the place. Checked once, at the door."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from featcache.errors import UsageError
from featcache.images.augment import AUGMENTATIONS
from featcache.spec import Precision, choose
from featcache.sweeps import Chosen
from featcache.sweeps.metrics import METRICS, Metric

NO_AUGMENTATION = "none"
OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop", "adagrad")
SCHEDULES = ("cosine", "constant")
CONTROLS = ("frozen", "unfrozen", "scratch")


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    unfreeze: str = "last"
    epochs: int = 10
    learning_rate: float = 1e-5  # of the last block, at its highest
    head_lr: float | None = None  # of the head; None: that of the last block
    lr_decay: float = 1.0  # from a block to the one before it
    optimizer: str = "adamw"
    weight_decay: float = 1e-4  # of kernels, decoupled from the gradient: adamw and sgd
    momentum: float | None = None  # of sgd, with Nesterov's step; None: 0.9
    schedule: str = "cosine"
    warmup: float = 0.05  # share of all steps in which the learning rate rises
    clip: float | None = None  # largest norm of the gradient of each learning-rate group
    batch: int = 32
    steps_per_epoch: int | None = None  # an epoch of so many steps, however many images there are; None: of all images
    patience: int = 3  # epochs without a better validation score before it stops
    class_weight: str | None = None
    label_smoothing: float = 0.0
    augment: str = NO_AUGMENTATION
    views: int | None = None  # of each image, whose frozen part is computed once; None: a new one in every epoch
    prefix: bool = True  # compute the frozen part once, where there is one
    precision: Precision = "float32"
    wise_ft: bool = False  # judge mixtures of the start's weights and the best ones, too
    metric: Metric = "accuracy"
    seed: int = 0
    max_seconds: float = math.inf

    def __post_init__(self) -> None:
        """Raise UsageError if a value is none that it can have."""
        for name in ("epochs", "batch", "steps_per_epoch", "patience", "views"):
            _from_one(name, getattr(self, name))
        for name in ("learning_rate", "head_lr", "lr_decay", "clip"):
            _above_zero(name, getattr(self, name))
        for name in ("weight_decay", "warmup", "label_smoothing"):
            _share(name, getattr(self, name))
        if self.momentum is not None:
            _share("momentum", self.momentum)
            if self.optimizer != "sgd":
                raise UsageError(
                    f"--momentum is of --optimizer sgd; {self.optimizer} has its own. Leave one of them out"
                )
        choices: dict[str, Sequence[str]] = {
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "augment": (NO_AUGMENTATION, *AUGMENTATIONS),
            "precision": get_args(Precision),
            "metric": METRICS,
        }
        for name, known in choices.items():
            choose(_flag(name), getattr(self, name), known)
        if self.momentum is not None and self.optimizer != "sgd":
            raise UsageError(f"--momentum is of --optimizer sgd; {self.optimizer} has its own. Leave one of them out")
        if self.class_weight is not None:
            choose("--class-weight", self.class_weight, ["balanced"])
        if self.views is not None and self.augment == NO_AUGMENTATION:
            raise UsageError("--views is a number of augmented views: say of which kind, --augment light")

    @property
    def is_augmented(self) -> bool:
        """Tell whether training sees changed images."""
        return self.augment != NO_AUGMENTATION

    @property
    def flags(self) -> list[str]:
        """Return it as words on the command line: what is not the default there.

        >>> Recipe(learning_rate=1e-4, wise_ft=True, prefix=False).flags
        ['--lr', '0.0001', '--no-prefix', '--wise-ft']
        """
        given = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        said: list[str] = []
        for name, value in given.items():
            if isinstance(value, bool):
                said.append(_flag(name) if value else f"--no-{name}")
            elif name not in ("metric", "max_seconds"):  # the run's, and not to be had there
                said += [_flag(name), str(value)]
        return said

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"max_seconds": self.max_seconds if math.isfinite(self.max_seconds) else None}


def recipe_of(chosen: Chosen, how: dict[str, Any]) -> Recipe:
    """Return the recipe, with metric and class weights of the run. Raises UsageError."""
    known = Recipe.__dataclass_fields__
    for name in how:
        if name == "lr":  # the name of the flag
            raise UsageError("finetune takes learning_rate, which is --lr on the command line; got 'lr'")
        choose("finetune", name, list(known))
    settings = chosen.run.settings
    given = {name: value for name, value in how.items() if value is not None}
    return Recipe(**{"metric": settings.metric, "class_weight": settings.class_weight, **given})


def _flag(name: str) -> str:
    return "--" + {"learning_rate": "lr"}.get(name, name).replace("_", "-")


def _from_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"{_flag(name)} takes a number from 1; got {value}")


def _above_zero(name: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{_flag(name)} takes a number above 0; got {value}")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{_flag(name)} takes a number from 0 to below 1; got {value}")
