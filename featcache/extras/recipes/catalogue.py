"""The recipes as data: what five tutorials do, as options of `scan`, `extract`, `sweep` and `finetune`.

Backbones, sizes, heads, optimizers, epochs and what trains are the tutorials'. What they leave open is ours: constant
rates, and features that enter the head as they are, neither standardised nor whitened. Adam is AdamW without weight
decay. Each option of a step can be set otherwise. The steps run, and are printed as commands, from the same options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import join
from typing import Any

from featcache.errors import UsageError
from featcache.extras.main_path import FEATURES
from featcache.extras.recipes.overrides import OF_NAMING, OPTIONS, Settings, checked, grid_of
from featcache.settings import ExtractOptions, FinetuneOptions, SweepOptions, as_flags
from featcache.spec import choose
from featcache.tuning.training_recipe import control_names

ADAM: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.0, "schedule": "constant", "batch_size": 32}
NESTEROV: dict[str, Any] = ADAM | {"optimizer": "sgd", "momentum": 0.9, "nesterov": True}
PLAIN: dict[str, Any] = {"weight_decay": 0.0, "schedule": "constant", "warmup": 0.0}
TRAIN, VAL = "train", "val"
RUN, MODEL = "head.run", "model.keras"  # the files of a recipe, beside its features
FEW = {TRAIN: 6, VAL: 3}  # images per class with --small
NARROWER = 64  # its hidden layers, by this factor


@dataclass(frozen=True)
class Training:
    """One set-up that trains."""

    name: str
    does: str
    data: str  # which images, and where they are to be had
    options: Settings  # of each step; of the step "head" the parameters of the one head that `sweep` tries
    tuned: str  # what the table calls the fine-tuned model
    small_options: Settings = field(default_factory=dict)  # in place of these with --small
    per_class: Mapping[str, int] = field(default_factory=dict)  # most images of each split; nothing: all there are
    test_as_val: bool = False  # the test folder chooses, as in the tutorial
    num_classes: int | None = None  # that there have to be
    advice: bool = False
    note: str = ""

    @property
    def takes_model(self) -> bool:
        """Return whether the backbone is the user's own model, which is not known yet."""
        return "backbone" not in self.options["extract"]

    def small(self) -> Training:
        """Return the same path at small size: figures that mean nothing, in seconds."""
        head = re.sub(r"\d+", lambda width: str(int(width[0]) // NARROWER), self.options["sweep"]["heads"])
        short = {"epochs": 1, "steps_per_epoch": None}  # but 300 steps of the head at least, as every dense head
        shorter: Settings = {"sweep": {"heads": head}, "head": short, "finetune": short}
        return replace(self.with_settings(shorter).with_settings(self.small_options), per_class=FEW)

    def with_settings(self, settings: Settings) -> Training:
        """Return the same with other options of its steps. Raises UsageError if one is not known."""
        changes = checked(settings, OPTIONS)
        options = {step: {**self.options.get(step, {}), **changes.get(step, {})} for step in OPTIONS}
        return replace(self, options=options)

    def step(self, name: str) -> dict[str, Any]:
        """Return all that a step is told, beside what it reads and writes. name: scan, extract, sweep or finetune."""
        options = {option: value for option, value in self.options.get(name, {}).items() if value is not None}
        if name == "sweep":
            options["grid"] = grid_of(options["heads"], self.options["head"])
        if name == "finetune":
            options["controls"] = ",".join(control_names(options.get("controls", "")))
            if "epochs" in options:
                options.setdefault("patience", options["epochs"])
        return options

    def commands(self, images: str, folder: Path) -> list[str]:
        """Return its steps as commands."""
        cache, run, model = (str(folder / name) for name in (FEATURES, RUN, MODEL))
        reads = as_flags(ExtractOptions, self.step("extract") | self.step("scan"))
        notes = []
        if self.per_class:
            most = " and ".join(f"{count:,} {split}" for split, count in self.per_class.items())
            notes.append(f"# The recipe takes at most {most} images of each class.")
        if self.test_as_val:
            notes.append("# The recipe takes the images of a test folder as validation, and all others as training.")
        return [
            *notes,
            join(["featcache", "extract", images, "-o", cache, *reads]),
            join(["featcache", "sweep", cache, "-o", run, *as_flags(SweepOptions, self.step("sweep"))]),
            join(
                ["featcache", "finetune", f"{run}@best", "-o", model, *as_flags(FinetuneOptions, self.step("finetune"))]
            ),
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
        changed = replace(self, **checked(settings, OF_NAMING).get("predict", {}))
        choose("`settings` predict.weights", changed.weights, ["imagenet", "none"])
        if not isinstance(changed.top, int) or changed.top < 1:
            raise UsageError(f"`settings` predict.top takes a number from 1; got {changed.top}")
        return changed


_ENTRIES: tuple[Training | Naming, ...] = (
    Training(
        name="flowers",
        does="InceptionV3, global average, Dense 1024 + softmax with adam, rare classes weigh as much; then all but "
        "the first 18 layers with Adagrad 1e-4 on images turned, moved, sheared, zoomed and mirrored",
        data="one folder per class; the tutorial's is flowers17: https://www.robots.ox.ac.uk/~vgg/data/flowers/17/",
        options={
            "extract": {"backbone": "inception_v3", "size": 299}
            | {"views": "identity,tutorial-1,tutorial-2,tutorial-3,tutorial-4"},
            "sweep": {"heads": "mlp:1024", "class_weight": "balanced", "prepare": "none", "train_views": True},
            "head": ADAM | {"learning_rate": 1e-3, "batch_size": 64, "epochs": 2, "steps_per_epoch": 800},
            "finetune": PLAIN
            | {"unfreeze": "mixed0", "optimizer": "adagrad", "learning_rate": 1e-4, "batch": 64}
            | {"epochs": 2, "steps_per_epoch": 800, "augment": "tutorial", "augment_val": True},
        },
        tuned="fine-tuned from mixed0 on",
        note="The first 18 layers end with the second max pooling, after which mixed0 begins. The head trains on each "
        "image as it is and in four changed views, computed once; the tutorial draws new ones in each epoch. As in the "
        "tutorial, epochs are judged on changed validation images. 800 steps of 64 are 51,200 images an epoch, hours "
        "without a GPU: fewer with --set finetune.steps_per_epoch=50.",
        small_options={"extract": {"weights": "none", "size": 75}},
    ),
    Training(
        name="hotdog",
        does="ResNet50V2, Flatten + Dense 2; all layers fine-tuned, the head at 10 times their rate; from scratch, too",
        data="two class folders; the tutorial's is hotdog.zip: https://d2l-data.s3-accelerate.amazonaws.com/hotdog.zip",
        options={
            "extract": {"backbone": "resnet50_v2", "size": 224, "pool": "flatten"},
            "sweep": {"heads": "softmax", "prepare": "none"},
            "head": ADAM | {"learning_rate": 1e-4, "epochs": 20},
            "finetune": PLAIN
            | {"unfreeze": "all", "optimizer": "sgd", "learning_rate": 5e-5, "head_lr": 5e-4, "batch": 32}
            | {"epochs": 3, "steps_per_epoch": 10, "controls": "scratch"},
        },
        tuned="fine-tuned, all layers",
        test_as_val=True,
        num_classes=2,
        note="At 224 pixels Flatten keeps 7 x 7 x 2048 features, 0.4 MB an image. As in the tutorial, images of a test "
        "folder choose, so these figures are a little too good.",
        small_options={"extract": {"weights": "none", "size": 32}},
    ),
    Training(
        name="flower-photos",
        does="MobileNetV2, Dense 1024 - Dense 512 - Dropout 0.2, 20 % validation; then the last 8 layers",
        data="one folder per class; the tutorial's is "
        "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        options={
            "scan": {"split": "80/20"},
            "extract": {"backbone": "mobilenet_v2", "size": 224},
            "sweep": {"heads": "mlp:1024-512", "prepare": "none"},
            "head": ADAM | {"learning_rate": 1e-3, "dropout": 0.2, "epochs": 10},
            "finetune": PLAIN | {"unfreeze": "4", "optimizer": "adam", "learning_rate": 1e-5, "epochs": 10},
        },
        tuned="fine-tuned, last 8 layers",
        note="Of the last 8 layers of the whole model four are in the backbone: Conv_1, its batch normalisation (which "
        "stays frozen), its ReLU and the average. Dropout acts in the head's own training only.",
        small_options={"extract": {"backbone": "mobilenet_v2:alpha=0.35", "weights": "none", "size": 32}},
    ),
    Training(
        name="cifar",
        does="InceptionV3 at 139 pixels, Dense 512, on 10,000 + 2,000 images: frozen, unfrozen, from scratch; and "
        "which of the four cases of transfer learning it is",
        data="CIFAR-10: cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html or its folder "
        "cifar-10-batches-py, in KERAS_HOME/datasets or as IMAGES; or an .npz with x_train, y_train, x_test, y_test",
        options={
            "extract": {"backbone": "inception_v3", "size": 139, "tap": "top,mixed5,mixed8"},  # all for the advice
            "sweep": {"heads": "mlp:512", "prepare": "none"},
            "head": ADAM | {"learning_rate": 1e-3, "epochs": 10},
            "finetune": PLAIN
            | {"unfreeze": "all", "optimizer": "adam", "learning_rate": 1e-5, "epochs": 5}
            | {"controls": "frozen,scratch"},
        },
        tuned="unfrozen",
        per_class={TRAIN: 1000, VAL: 200},
        advice=True,
        note="From scratch has one Dense layer on the network, without the 512; all its layers train at 1e-3.",
        small_options={"extract": {"weights": "none", "size": 75}},
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
        "stopped after 10 epochs without a better validation accuracy, of at most 200; and the same for the classifier "
        "in the file, if its classes are the labels of the images",
        data="one folder per class, and your model: -m model.hdf5 (say how pixels enter: -m model.hdf5:mode=unit)",
        options={
            "scan": {"split": "90/10"},
            "extract": {"tap": "flatten_1"},
            "sweep": {"heads": "mlp:1024", "prepare": "none"},
            "head": NESTEROV | {"learning_rate": 1e-3, "batch_size": 64, "epochs": 200, "patience": 10},
            "finetune": PLAIN
            | {"unfreeze": "none", "optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.9, "batch": 64}
            | {"epochs": 200, "patience": 10, "controls": "own"},
        },
        tuned="the head trained on, stopped and kept by validation accuracy",
        note="The tutorial's decay of 1e-6 a step takes 0.4 % off the rate in 4,000 steps; here the rate is constant.",
    ),
)
RECIPES: dict[str, Training | Naming] = {recipe.name: recipe for recipe in _ENTRIES}


def find(name: str) -> Training | Naming:
    """Return the recipe of that name. Raises UsageError with near names."""
    return RECIPES[choose("recipe", name, ["list", *RECIPES])]
