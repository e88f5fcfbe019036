"""The recipes as data: what five tutorials do, in the words of `extract`, `sweep` and `finetune`.

Backbones, sizes, heads, optimizers, epochs and what trains are the tutorials'. What they leave open is ours: constant
rates, and features that enter the head as they are, neither standardised nor whitened. Adam is AdamW without weight
decay. Each option of a step can be set otherwise, and `commands` are the steps as they are typed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from featcache.errors import UsageError
from featcache.extras.recipes.overrides import OF_NAMING, OPTIONS, Settings, flags_of, word
from featcache.spec import choose
from featcache.tuning import Recipe

ADAM: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.0, "schedule": "constant", "batch_size": 32}
NESTEROV: dict[str, Any] = ADAM | {"optimizer": "sgd", "momentum": 0.9, "nesterov": True}
PLAIN: dict[str, Any] = {"weight_decay": 0.0, "schedule": "constant", "warmup": 0.0}
TRAIN, VAL = "train", "val"
FEW = {TRAIN: 6, VAL: 3}  # images per class with --small
NARROWER = 64  # its hidden layers, by this factor


@dataclass(frozen=True)
class Training:
    """One set-up that trains."""

    name: str
    does: str
    data: str  # which images, and where they are to be had
    backbone: str  # "" for the user's own model
    head: str  # as a sweep names it
    fit: Mapping[str, Any]  # the head's parameters
    tune: Mapping[str, Any]  # the fields of `tuning.Recipe`; patience is its epochs if it is not there
    tuned: str  # what the table calls the fine-tuned model
    size: int | None = None
    tap: str = "top"
    also: tuple[str, ...] = ()  # other layers that are read, for advice
    pool: str | None = "avg"
    weights: str | None = "imagenet"
    split: str | None = None
    per_class: Mapping[str, int] = field(default_factory=dict)  # most images of each split; nothing: all there are
    class_weight: str | None = None  # of head and fine-tuning
    test_as_val: bool = False  # the test folder chooses, as in the tutorial
    more: Settings = field(default_factory=dict)  # what else `scan`, `extract` and `sweep` are told
    num_classes: int | None = None  # that there have to be
    controls: tuple[str, ...] = ()
    advice: bool = False
    note: str = ""
    small_backbone: str = ""  # of the same family, for --small; nothing: the same
    small_size: int | None = 32

    def small(self) -> Training:
        """Return the same path at small size: figures that mean nothing, in seconds."""
        return replace(
            self,
            backbone=self.small_backbone or self.backbone,
            size=self.small_size,
            weights="none" if self.backbone else None,
            per_class=FEW,
            head=re.sub(r"\d+", lambda width: str(int(width[0]) // NARROWER), self.head),
            fit={**self.fit, "epochs": 1, "steps_per_epoch": None},  # but 300 steps at least, as every dense head
            tune={**self.tune, "epochs": 1, "steps_per_epoch": None},
        )

    def with_epochs(self, epochs: int | None) -> Training:
        """Return the same with other most epochs of fine-tuning."""
        return self if epochs is None else replace(self, tune={**self.tune, "epochs": epochs})

    def with_settings(self, settings: Settings) -> Training:
        """Return the same with other options of its steps. Raises UsageError if one is not known."""
        changed = self
        for step, options in settings.items():
            for name, value in options.items():
                changed = changed._with(choose("settings", step, list(OPTIONS)), name, value)
        return changed

    def _with(self, step: str, name: str, value: Any) -> Training:
        choose(f"`settings` {step}", name, OPTIONS[step])
        if name == "controls" and isinstance(value, str):
            value = tuple(control for control in value.split(",") if control)
        if (step, name) in _FIELDS:
            return replace(self, **{_FIELDS[step, name]: value})
        if step == "head":
            return replace(self, fit={**self.fit, name: value})
        if step == "finetune":
            return replace(self, tune={**self.tune, name: value})
        return replace(self, more={**self.more, step: {**self.more.get(step, {}), name: value}})

    def options(self, step: str) -> dict[str, Any]:
        """Return all that a step is told, beside what it reads and writes. step: scan, extract, sweep or finetune."""
        if step == "finetune":
            return {"patience": self.tune["epochs"], **self.tune}
        options = {name: getattr(self, field) for (of, name), field in _FIELDS.items() if of == step}
        if step == "extract":
            options["tap"] = ",".join([self.tap, *self.also])
        if step == "sweep":
            options["prepare"] = "none"
        options = {name: value for name, value in options.items() if value is not None}
        return {**options, **self.more.get(step, {})}

    def commands(self, backbone: str, images: str, folder: Path) -> list[str]:
        """Return its steps as commands. backbone: the backbone of the recipe, or the user's model."""
        cache, run, model = (quote(str(folder / name)) for name in ("features.h5", "head.run", "model.keras"))
        reads = flags_of(self.options("extract") | {"backbone": backbone} | self.options("scan"))
        grid = [f"--grid {quote(f'{self.head}.{name}={word(value)}')}" for name, value in self.fit.items()]
        tunes = map(quote, Recipe(**self.options("finetune")).flags)
        controls = [f"--controls {','.join(self.controls)}"] if self.controls else []
        notes = []
        if self.per_class:
            most = " and ".join(f"{count:,} {split}" for split, count in self.per_class.items())
            notes.append(f"# The recipe takes at most {most} images of each class.")
        if self.test_as_val:
            notes.append("# The recipe takes the images of a test folder as validation, and all others as training.")
        return [
            *notes,
            " ".join(["featcache extract", quote(images), "-o", cache, *reads]),
            " ".join(["featcache sweep", cache, "-o", run, *flags_of(self.options("sweep")), *grid]),
            " ".join(["featcache finetune", f"{run}@best -o", model, *tunes, *controls]),
        ]


@dataclass(frozen=True)
class Naming:
    """One set-up that trains nothing: ImageNet's classes for photos."""

    name: str
    does: str
    data: str
    top: int
    weights: str = "imagenet"  # "none": random ones, which name anything

    def with_settings(self, settings: Settings) -> Naming:
        """Return the same with other options. Raises UsageError if one is not known."""
        changed = self
        for step, options in settings.items():
            choose("settings", step, list(OF_NAMING))
            for name, value in options.items():
                choose(f"`settings` {step}", name, OF_NAMING[step])
                changed = replace(changed, **{name: value})
        choose("`settings` predict.weights", changed.weights, ["imagenet", "none"])
        if not isinstance(changed.top, int) or changed.top < 1:
            raise UsageError(f"`settings` predict.top takes a number from 1; got {changed.top}")
        return changed


# Where an option of a step stands in a recipe
_FIELDS = {
    ("scan", "split"): "split",
    ("extract", "backbone"): "backbone",
    ("extract", "tap"): "tap",
    ("extract", "size"): "size",
    ("extract", "pool"): "pool",
    ("extract", "weights"): "weights",
    ("sweep", "heads"): "head",
    ("sweep", "class_weight"): "class_weight",
    ("finetune", "controls"): "controls",
}


_ENTRIES: tuple[Training | Naming, ...] = (
    Training(
        name="flowers",
        does="InceptionV3, global average, Dense 1024 + softmax with adam, rare classes weigh as much; then all but "
        "the first 18 layers with Adagrad 1e-4 on images turned, moved, sheared, zoomed and mirrored",
        data="one folder per class; the tutorial's is flowers17: https://www.robots.ox.ac.uk/~vgg/data/flowers/17/",
        backbone="inception_v3",
        size=299,
        head="mlp:1024",
        fit=ADAM | {"learning_rate": 1e-3, "batch_size": 64, "epochs": 2, "steps_per_epoch": 800},
        tune=PLAIN
        | {"unfreeze": "mixed0", "optimizer": "adagrad", "learning_rate": 1e-4, "augment": "tutorial", "batch": 64}
        | {"epochs": 2, "steps_per_epoch": 800, "augment_val": True},
        tuned="fine-tuned from mixed0 on",
        class_weight="balanced",
        more={
            "extract": {"views": "identity,tutorial-1,tutorial-2,tutorial-3,tutorial-4"},
            "sweep": {"train_views": True},
        },
        note="The first 18 layers end with the second max pooling, after which mixed0 begins. The head trains on each "
        "image as it is and in four changed views, computed once; the tutorial draws new ones in each epoch. As in the "
        "tutorial, epochs are judged on changed validation images. 800 steps of 64 are 51,200 images an epoch, hours "
        "without a GPU: fewer with --set finetune.steps_per_epoch=50.",
        small_size=75,
    ),
    Training(
        name="hotdog",
        does="ResNet50V2, Flatten + Dense 2; all layers fine-tuned, the head at 10 times their rate; from scratch, too",
        data="two class folders; the tutorial's is hotdog.zip: https://d2l-data.s3-accelerate.amazonaws.com/hotdog.zip",
        backbone="resnet50_v2",
        size=224,
        pool="flatten",
        head="softmax",
        fit=ADAM | {"learning_rate": 1e-4, "epochs": 20},
        tune=PLAIN
        | {"unfreeze": "all", "optimizer": "sgd", "learning_rate": 5e-5, "head_lr": 5e-4, "batch": 32}
        | {"epochs": 3, "steps_per_epoch": 10},
        tuned="fine-tuned, all layers",
        test_as_val=True,
        num_classes=2,
        controls=("scratch",),
        note="At 224 pixels Flatten keeps 7 x 7 x 2048 features, 0.4 MB an image. As in the tutorial, images of a test "
        "folder choose, so these figures are a little too good.",
    ),
    Training(
        name="flower-photos",
        does="MobileNetV2, Dense 1024 - Dense 512 - Dropout 0.2, 20 % validation; then the last 8 layers",
        data="one folder per class; the tutorial's is "
        "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        backbone="mobilenet_v2",
        size=224,
        split="80/20",
        head="mlp:1024-512",
        fit=ADAM | {"learning_rate": 1e-3, "dropout": 0.2, "epochs": 10},
        tune=PLAIN | {"unfreeze": "4", "optimizer": "adam", "learning_rate": 1e-5, "epochs": 10},
        tuned="fine-tuned, last 8 layers",
        note="Of the last 8 layers of the whole model four are in the backbone: Conv_1, its batch normalisation (which "
        "stays frozen), its ReLU and the average. Dropout acts in the head's own training only.",
        small_backbone="mobilenet_v2:alpha=0.35",
    ),
    Training(
        name="cifar",
        does="InceptionV3 at 139 pixels, Dense 512, on 10,000 + 2,000 images: frozen, unfrozen, from scratch; and "
        "which of the four cases of transfer learning it is",
        data="CIFAR-10: cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html or its folder "
        "cifar-10-batches-py, in KERAS_HOME/datasets or as IMAGES; or an .npz with x_train, y_train, x_test, y_test",
        backbone="inception_v3",
        size=139,
        also=("mixed5", "mixed8"),
        head="mlp:512",
        fit=ADAM | {"learning_rate": 1e-3, "epochs": 10},
        tune=PLAIN | {"unfreeze": "all", "optimizer": "adam", "learning_rate": 1e-5, "epochs": 5},
        tuned="unfrozen",
        per_class={TRAIN: 1000, VAL: 200},
        controls=("frozen", "scratch"),
        advice=True,
        note="From scratch has one Dense layer on the network, without the 512; all its layers train at 1e-3.",
        small_size=75,
    ),
    Naming(
        name="imagenet",
        does="VGG16 with its top: the three most probable ImageNet classes of every photo",
        data="any photos",
        top=3,
    ),
    Training(
        name="own-model",
        does="your model.hdf5 cut at flatten_1, Dense 1024 + softmax, SGD with Nesterov momentum, 10 % validation; "
        "stopped after 10 epochs without a better validation accuracy, of at most 200",
        data="one folder per class, and your model: -m model.hdf5 (say how pixels enter: -m model.hdf5:mode=unit)",
        backbone="",
        tap="flatten_1",
        pool=None,
        weights=None,
        head="mlp:1024",
        split="90/10",
        fit=NESTEROV | {"learning_rate": 1e-3, "batch_size": 64, "epochs": 200, "patience": 10},
        tune=PLAIN
        | {"unfreeze": "none", "optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.9, "batch": 64}
        | {"epochs": 200, "patience": 10},
        tuned="the head trained on, stopped and kept by validation accuracy",
        note="The tutorial's decay of 1e-6 a step takes 0.4 % off the rate in 4,000 steps; here the rate is constant. "
        "Its second method, to train the file's own classifier on, is left out: here a new head is trained, whatever "
        "the file's classes are.",
        small_size=None,
    ),
)
RECIPES: dict[str, Training | Naming] = {recipe.name: recipe for recipe in _ENTRIES}


def find(name: str) -> Training | Naming:
    """Return the recipe of that name. Raises UsageError with near names."""
    return RECIPES[choose("recipe", name, ["list", *RECIPES])]
