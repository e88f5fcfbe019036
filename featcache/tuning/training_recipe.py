"""How to fine-tune: everything but the head, the images and the place. Checked once, at the door."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from featcache.errors import UsageError
from featcache.images.augment import AUGMENTATIONS
from featcache.settings import Control, Metric, Optimizer, Schedule, TrainingOptions, TrainingPrecision, as_flags
from featcache.spec import IDENTITY, choose
from featcache.sweeps import Chosen
from featcache.sweeps.metrics import METRICS

NO_AUGMENTATION = "none"
AUGMENTED_VIEW = 1  # the number of the view in which augmented validation images are shown, whatever the seed
OPTIMIZERS = get_args(Optimizer)
SCHEDULES = get_args(Schedule)
CONTROLS = get_args(Control)


@dataclass(frozen=True)
class Recipe(TrainingOptions):
    """How to train: what `finetune` was asked for, and what a run or a control sets."""

    metric: Metric = "accuracy"  # the run's
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
                    f"`momentum` applies only to `optimizer='sgd'`; {self.optimizer} has its own. Leave one of them out"
                )
        choices: dict[str, Sequence[str]] = {
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "augment": (NO_AUGMENTATION, *AUGMENTATIONS),
            "precision": get_args(TrainingPrecision),
            "metric": METRICS,
        }
        for name, known in choices.items():
            choose(name, getattr(self, name), known)
        if self.class_weight is not None:
            choose("class_weight", self.class_weight, ["balanced"])
        if self.views is not None and self.augment == NO_AUGMENTATION:
            raise UsageError("`views` is a number of augmented views. Say of which kind, such as `augment='light'`")
        if self.augment_val and self.augment == NO_AUGMENTATION:
            raise UsageError("`augment_val` needs the kind of augmentation, such as `augment='light'`")

    @property
    def is_augmented(self) -> bool:
        """Tell whether training sees changed images."""
        return self.augment != NO_AUGMENTATION

    @property
    def computes_frozen_once(self) -> bool:
        """Return whether what is frozen is computed once. With new views in each epoch there is nothing to keep."""
        return self.prefix and not (self.is_augmented and self.views is None)

    @property
    def val_view(self) -> str:
        """Return the view in which every validation image judges the epochs: the image itself, or "light-1"."""
        return f"{self.augment}-{AUGMENTED_VIEW}" if self.augment_val else IDENTITY

    @property
    def flags(self) -> list[str]:
        """Return it as words on the command line: what is not the default there.

        >>> Recipe(learning_rate=1e-4, wise_ft=True, prefix=False).flags
        ['--lr', '0.0001', '--no-prefix', '--wise-ft']
        """
        return as_flags(TrainingOptions, vars(self))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        facts = asdict(self) | {"max_seconds": self.max_seconds if math.isfinite(self.max_seconds) else None}
        if not self.augment_val:
            del facts["augment_val"]  # states of earlier versions lack it, and go on
        return facts


def recipe_of(chosen: Chosen, **options: Any) -> Recipe:
    """Return the recipe, with metric and class weights of the run where they are None. Raises UsageError."""
    settings = chosen.run.settings
    chosen_options = {name: value for name, value in options.items() if value is not None}
    return Recipe(**{"metric": settings.metric, "class_weight": settings.class_weight, **chosen_options})


def control_names(controls: str | Sequence[str]) -> list[str]:
    """Return the names of the controls, each once; a text has commas between them. Raises UsageError."""
    if isinstance(controls, str):
        controls = controls.split(",")
    names = dict.fromkeys(name.strip() for name in controls if name.strip())
    return [choose("controls", name, CONTROLS) for name in names]


def _from_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"`{name}` takes a number from 1; got {value}")


def _above_zero(name: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UsageError(f"`{name}` takes a number above 0; got {value}")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"`{name}` takes a number from 0 to below 1; got {value}")
