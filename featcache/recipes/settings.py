"""The recipes as data: what five tutorials do, in the words of `extract`, `sweep` and `finetune`.

Backbones, sizes, heads, optimizers and what trains are the tutorials'. What they leave open is ours: the number of
epochs, rates without a schedule, and features that enter the head as they are, neither standardised nor whitened.
Adam is AdamW without weight decay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from featcache.spec import choose

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
    tune: Mapping[str, Any]  # the fields of `tuning.Recipe`
    tuned: str  # what the table calls the fine-tuned model
    size: int | None = None
    tap: str = "top"
    also: tuple[str, ...] = ()  # other layers that are read, for advice
    pool: str | None = "avg"
    weights: str | None = "imagenet"
    split: str | None = None
    per_class: Mapping[str, int] = field(default_factory=dict)  # most images of each split; nothing: all there are
    num_classes: int | None = None  # that there have to be
    controls: tuple[str, ...] = ()
    advice: bool = False
    layers: tuple[int, ...] = ()  # where tutorials cut the network, counted from its input
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
            fit={**self.fit, "epochs": 1},  # but never fewer than 300 steps, as every dense head
            tune={**self.tune, "epochs": 1},
        )

    def with_epochs(self, epochs: int | None) -> Training:
        """Return the same with other most epochs of fine-tuning."""
        return self if epochs is None else replace(self, tune={**self.tune, "epochs": epochs})


@dataclass(frozen=True)
class Naming:
    """One set-up that trains nothing: ImageNet's classes for photos."""

    name: str
    does: str
    data: str
    top: int


_ENTRIES: tuple[Training | Naming, ...] = (
    Training(
        name="flowers",
        does="InceptionV3, global average, Dense 1024 + softmax with adam; then from a block on with Adagrad 1e-4",
        data="one folder per class; the tutorial's is flowers17: https://www.robots.ox.ac.uk/~vgg/data/flowers/17/",
        backbone="inception_v3",
        size=299,
        head="mlp:1024",
        fit=ADAM | {"learning_rate": 1e-3, "epochs": 20},
        tune=PLAIN | {"unfreeze": "mixed9", "optimizer": "adagrad", "learning_rate": 1e-4, "epochs": 10},
        tuned="fine-tuned from mixed9 on",
        layers=(172, 249),
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
        | {"unfreeze": "all", "optimizer": "sgd", "learning_rate": 5e-5, "head_lr": 5e-4, "epochs": 5, "batch": 32},
        tuned="fine-tuned, all layers",
        num_classes=2,
        controls=("scratch",),
        note="At 224 pixels Flatten keeps 7 x 7 x 2048 features, 0.4 MB an image.",
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
        tune=PLAIN | {"unfreeze": "8", "optimizer": "adam", "learning_rate": 1e-5, "epochs": 10},
        tuned="fine-tuned, last 8 layers",
        note="Of the last 8 layers three are batch normalisation, which stays frozen, and one is the average: "
        "only two convolutions train. The head's dropout is of its training only.",
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
        does="your model.hdf5 cut at flatten_1, Dense 1024 + softmax, SGD with momentum, early stopping and checkpoint "
        "on validation accuracy",
        data="one folder per class, and your model: -m model.hdf5 (say how pixels enter: -m model.hdf5:mode=unit)",
        backbone="",
        tap="flatten_1",
        pool=None,
        weights=None,
        head="mlp:1024",
        fit=NESTEROV | {"learning_rate": 1e-3, "epochs": 20},
        tune=PLAIN | {"unfreeze": "none", "optimizer": "sgd", "learning_rate": 1e-4, "epochs": 50, "patience": 5},
        tuned="the head trained on, stopped and kept by validation accuracy",
        small_size=None,
    ),
)
RECIPES: dict[str, Training | Naming] = {one.name: one for one in _ENTRIES}


def find(name: str) -> Training | Naming:
    """Return the recipe of that name. Raises UsageError with near names."""
    return RECIPES[choose("recipe", name, ["list", *RECIPES])]
