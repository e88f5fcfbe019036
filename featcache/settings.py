"""Every option of what featcache computes, once: its name in Python, its type, its default, its choices and its help.

A class holds what one command and one function of the library take: `extract` and `fc.extract`. The command line makes
its flags, `--config` and completion from the fields. The functions repeat names and defaults in their signatures, where
editors complete them, and tests/test_settings.py compares the two. What only the command line has, such as `--dry-run`,
is declared in its command. Only the standard library is imported here: `featcache --help` reads this file.
"""

import keyword
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, dataclass_transform, get_args

T = TypeVar("T")

Resize = Literal["stretch", "crop", "pad"]
Pooling = Literal["avg", "max", "flatten", "none"]
Decode = Literal["exact", "draft"]
Precision = Literal["float32", "bfloat16", "float16", "int8"]  # of the forward pass
TrainingPrecision = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["float32", "float16"]  # of the stored features
EngineName = Literal["auto", "keras", "openvino"]
CacheLayout = Literal["file", "parts"]
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"]
ClassWeight = Literal["balanced"]
PresetName = Literal["kornblith", "clip", "dinov2", "fewshot"]
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop", "adagrad"]
Schedule = Literal["cosine", "constant"]
Augmentation = Literal["none", "light", "strong", "tutorial"]
Control = Literal["frozen", "unfrozen", "scratch", "own"]
FormatName = Literal["keras", "savedmodel", "litert", "onnx", "openvino"]
SplitName = Literal["train", "val", "test"]


def option(
    default: Any, help: str, *, flag: str = "", short: str = "", metavar: str = "", suggestions: tuple[str, ...] = ()
) -> Any:
    """Return the field of an option.

    flag: where it is not the field's name with dashes. short: a flag of one letter. metavar: stands for the value in
    the help. suggestions: what the shell offers, where the type is no Literal.
    """
    details = {"help": help, "flag": flag, "short": short, "metavar": metavar, "suggestions": suggestions}
    return field(default=default, metadata=details)


@dataclass_transform(frozen_default=True)
def options_class(kind: type[T]) -> type[T]:
    """Return the class as a frozen dataclass without equality and repr, which would cost `--help` 10 ms."""
    return dataclass(frozen=True, eq=False, repr=False)(kind)


@options_class
class SharedOptions:
    """Options that mean the same in every command that has them."""

    json: bool = option(False, "Print one JSON document on stdout, everything else on stderr.")
    quiet: bool = option(False, "Show no progress.", short="-q")
    config: Path | None = option(None, "Options from a TOML file, flat or a table per command; flags win.")
    out: Path | None = option(None, "Where to write the result.", short="-o")
    force: bool = option(False, "Replace what is there, even if featcache did not write it; never an input.")
    trust: bool = option(False, "Run the code that a model file of yours carries (Lambda layers, SavedModels).")
    allow: list[str] | None = option(
        None,
        "Import this class or function of yours, which the run or the cache names. Repeat it for several.",
        metavar="MODULE:NAME",
    )
    images: Path | None = option(None, "Where the images are now, if they have moved.")


@options_class
class SplitOptions:
    """How labelled images are split."""

    split: str | None = option(None, "Percentages of train/val/test. [default: 70/15/15]")
    group_from: str | None = option(
        None, "Keep groups in one split: parent (folder inside the class folder), regex:PATTERN or csv:COLUMN."
    )


@options_class
class ImageOptions(SplitOptions):
    """How images are found, labelled and split."""

    allow_outside: bool = option(False, "Let a manifest name files outside its own folder.")
    label_column: str | None = option(None, "The column of a manifest with the labels. [default: label]")
    path_column: str | None = option(None, "The column of a manifest with the paths. [default: path]")


@options_class
class ScanOptions(ImageOptions):
    """Options of `scan`."""

    seed: int = option(0, "Seed of the split.")


@options_class
class NetworkOptions:
    """Which backbones, and how images go through them: options that enter a tap's fingerprint."""

    backbone: str | None = option(
        "mobilenet_v2",
        "Names with options, such as mobilenet_v2:alpha=0.35,hub:dinov2_small; or a model file.",
        short="-b",
    )
    tap: str = option("top", "Layers to read, comma between them; top is the last, auto one per block.")
    weights: str | None = option(
        None, "imagenet, none (random) or a file. [default: imagenet]", suggestions=("imagenet", "none")
    )
    size: int | None = option(None, "Pixels a side. [default: the backbone's own]")
    pool: Pooling | None = option(None, "avg, max, flatten or none. [default: avg]")
    resize: Resize = option("stretch", "How images become square: stretch, crop or pad.")
    decode: Decode = option("exact", "exact, or draft: large JPEGs at reduced scale, which is faster.")
    bits: int | None = option(None, "How many bits of 16-bit images are in use: 12 where 4095 is white. [default: 16]")
    precision: Precision = option(
        "float32", "Precision of the network: float32, bfloat16, float16, or int8 (OpenVINO and NNCF)."
    )
    dtype: Dtype = option("float32", "Type of the stored features: float32 or float16.")


@options_class
class FeatureOptions(NetworkOptions):
    """What decides the numbers of a feature: the options of `extract` that enter a tap's fingerprint."""

    views: str = option(
        "1", "1, flip, or a number: the image, its mirror image, and seeded crops.", suggestions=("1", "flip", "8")
    )


@options_class
class ComputeOptions:
    """What computes the features."""

    engine: EngineName = option("auto", "auto, keras or openvino: auto takes what is faster and agrees with Keras.")
    device: str = option(
        "auto", "auto (all GPUs there are), cpu, gpu, or names: gpu:0,gpu:1", suggestions=("auto", "cpu", "gpu")
    )
    batch: str = option("auto", "Images through the backbone at once, or auto.")
    trust: bool = option(False, "Run the code that a model file of yours carries (Lambda layers, SavedModels).")


@options_class
class ExtractOptions(ImageOptions, ComputeOptions, FeatureOptions):  # the fields of the last base come first
    """Options of `extract`."""

    layout: CacheLayout | None = option(None, "file: one CACHE.h5; parts: a folder. [default: file]")
    seed: int | None = option(None, "Seed of the split. [default: 0]")
    apply: Path | None = option(None, "Take the labels that a reviewed CSV of featcache leaks --labels decides.")
    rehash: bool = option(False, "Read every image again, and check every row; compute damaged ones again.")
    strict: bool = option(False, "Exit with 4 if an image cannot be used.")


@options_class
class RankOptions(ImageOptions, ComputeOptions, NetworkOptions):
    """Options of `rank`."""

    backbone: str | None = option(
        None, "Two or more backbones, comma between them; or one, to rank its layers with --tap.", short="-b"
    )
    budget: str | None = option(None, "Time for images, such as 60s or 5m; starting backbones comes on top.")
    seed: int | None = option(None, "Seed of the split, and of which images come first. [default: 0]")


@options_class
class WhyOptions(FeatureOptions):
    """Options of `cache why`: of the extraction that is compared with a cache."""

    backbone: str | None = option(
        None, "Also report which features of this backbone, with the options below, are missing.", short="-b"
    )


@options_class
class LeaksOptions:
    """Options of `leaks` that decide which pairs it finds."""

    tap: str | None = option(None, "Compare the features of this tap. [default: the widest last layer]")
    threshold: str = option("auto", "Look at pairs whose features are at least this similar, such as 0.97.")
    images: Path | None = option(None, "Where the images are now, if they have moved.")


@options_class
class SimilarOptions:
    """Options of `similar`."""

    tap: str | None = option(None, "Compare the features of this tap. [default: the widest last layer]")
    top: int = option(20, "Number of images to list.")


@options_class
class SweepOptions:
    """Options of `sweep`."""

    heads: str | None = option(
        None,
        "Heads to try, each with its grid: centroid, gnb, ridge, lda, logreg, svm, softmax, knn, rbf, forest, mlp:256, "
        "mlp:1024-512, mlpclassifier, boosting, or module:Classifier. [default: ridge,logreg,svm,softmax,knn,mlp:256]",
    )
    taps: str | None = option(
        None, "Taps of the cache, comma between them; A+B joins their features. [default: all]", flag="--tap"
    )
    grid: list[str] | None = option(
        None, "Other values to try: ridge.alpha=1e-6..1e5:45, logreg.C=0.1,1. Repeat it for several."
    )
    prepare: str | None = option(
        None,
        "Steps before the heads: standardise, l2, pca:N, pca:N:whiten, none; + chains, comma tries several. "
        "[default: standardise]",
        suggestions=("standardise", "l2", "l2+pca:64", "none"),
    )
    preset: list[str] | None = option(
        None, "A published protocol: kornblith, clip, dinov2 or fewshot.", suggestions=get_args(PresetName)
    )
    cv: str | None = option(
        None, "Choose by cross-validation within train, not on val: a number of folds, or loo to leave one image out."
    )
    metric: Metric = option("accuracy", "accuracy, balanced_accuracy, macro_f1, log_loss or ece.")
    class_weight: ClassWeight | None = option(None, "balanced: rare classes weigh as much as frequent ones.")
    shots: int | None = option(None, "Largest number of images per class, in train and in val.")
    train_views: bool = option(
        False, "Fit heads on all cached views of each training image; the images that choose stay as they are."
    )
    budget: str | None = option(None, "Time to spend on the promising heads, such as 60s or 5m.")
    refit: bool | None = option(None, "Fit the winner on train and val in the end, as RUN@refit.")
    memory: str | None = option(
        None, "Memory that features may take, such as 4G; larger ones are streamed. [default: 1/4 of the machine's]"
    )
    jobs: int = option(-1, "Trials at once, fewer if memory is short; -1: one per core.")
    seed: int = option(0, "Seed of folds and initial weights.")


@options_class
class TrainingOptions:
    """Options of `finetune` that decide how a model is trained."""

    unfreeze: str = option(
        "last",
        "none, last (block), all, the block to start from, a number of layers (8, or 172: for layers[172:]), gradual "
        "or gradual:BLOCK.",
        suggestions=("none", "last", "all", "gradual"),
    )
    epochs: int = option(10, "Largest number of epochs.")
    learning_rate: float = option(1e-5, "Highest learning rate of the last block.", flag="--lr")
    head_lr: float | None = option(None, "Highest learning rate of the head. [default: --lr]")
    lr_decay: float = option(1.0, "Learning rate of a block, as a fraction of the rate of the block after it.")
    optimizer: Optimizer = option("adamw", "adamw, adam, sgd, rmsprop or adagrad.")
    weight_decay: float = option(1e-4, "Weight decay of kernels, with adamw and sgd.")
    momentum: float | None = option(None, "Momentum of sgd, with Nesterov's step. [default: 0.9]")
    schedule: Schedule = option("cosine", "cosine or constant.")
    warmup: float = option(0.05, "Fraction of all steps in which the learning rate rises.")
    clip: float | None = option(None, "Largest gradient norm of a learning-rate group.")
    batch: int = option(32, "Images per step.")
    steps_per_epoch: int | None = option(None, "Steps of an epoch. [default: each image once]")
    patience: int = option(3, "Epochs without improvement before it stops.")
    class_weight: ClassWeight | None = option(
        None, "balanced: rare classes weigh as much as frequent ones. [default: as in the run]"
    )
    label_smoothing: float = option(0.0, "Share of each label that is spread over all classes.")
    augment: Augmentation = option("none", "none, light, strong or tutorial.")
    views: int | None = option(
        None,
        "Number of augmented views of each image, computed once. [default: a new view in each epoch]",
        suggestions=("8",),
    )
    augment_val: bool = option(
        False, "Judge epochs on validation images that are augmented too, each always in the same way."
    )
    prefix: bool = option(True, "Compute the frozen part of the network once.")
    precision: TrainingPrecision = option("float32", "float32, bfloat16 or float16.")
    wise_ft: bool = option(False, "Also judge mixtures of the weights of start and end.")
    seed: int = option(0, "Seed of the order of images and of their views.")


@options_class
class FinetuneOptions(TrainingOptions):
    """Options of `finetune`."""

    controls: str = option(
        "",
        "Train these too, to compare: frozen,unfrozen,scratch; own is the classifier of your own model file.",
        suggestions=get_args(Control),
    )
    resume: bool | None = option(
        None, "Go on from the .state file beside -o. [default: if it belongs to this training]"
    )
    logs: Path | None = option(None, "Folder for TensorBoard.")


@options_class
class PredictOptions:
    """Options of `predict`."""

    top: int = option(1, "Number of classes to report per image.")
    reject: float | None = option(
        None, "Call an image unknown if at most this share of known images looks as strange, such as 0.02."
    )
    views: str = option(
        "1", "Mean over views: flip, or a number (8: mirror image and six crops too).", suggestions=("1", "flip", "8")
    )
    imagenet: bool = option(False, "MODEL is a backbone by name, with its top; classes are ImageNet's.")
    engine: EngineName = option("auto", "auto, keras or openvino: auto takes OpenVINO on a CPU where it is installed.")


@options_class
class ExportOptions:
    """Options of `export`."""

    to: FormatName | None = option(None, "keras, savedmodel, litert, onnx or openvino. [default: by the name of -o]")
    int8: bool = option(False, "With litert: weights and activations in 8 bits, calibrated on images.")
    images: Path | None = option(None, "Compare on these images. [default: the validation images of the run]")
    run: Path | None = option(None, "The run that the model came from, if it is not beside the model.")
    gates: list[str] | None = option(
        None,
        "Write nothing and exit with 3 unless the file reaches this.",
        flag="--assert",
        metavar="METRIC>=VALUE",
    )


@options_class
class QuickstartOptions(SplitOptions):
    """Options of `quickstart`."""

    backbone: str | None = option(None, "[default: mobilenet_v2; for the digits glyphnet]", short="-b")
    seed: int = option(0, "Seed of the split.")
    controls: bool = option(
        True, "Compare with raw pixels, random weights, training from scratch and 5 images per class."
    )


@options_class
class RecipeOptions:
    """Options of `recipe`."""

    model: str | None = option(None, "For own-model: your model file, such as model.hdf5:mode=unit", short="-m")
    tap: str | None = option(None, "For own-model: the layer to cut at. [default: flatten_1]")
    epochs: int | None = option(None, "Largest number of epochs of fine-tuning. [default: the recipe's]")
    settings: list[str] | None = option(
        None,
        "Change an option of scan, extract, sweep, head or finetune (for imagenet: predict), as in finetune.lr=1e-5. "
        "Repeat it for several.",
        flag="--set",
        metavar="STEP.OPTION=VALUE",
    )
    small: bool = option(False, "Try the same path in seconds: random weights, few images, no meaningful figures.")


@options_class
class ReportOptions:
    """Options of `report`."""

    final: bool = option(False, "Open the test split; that it was opened is recorded.")
    html: Path | None = option(None, "Write one HTML file to look at and to send; it needs no network.")
    tensorboard: Path | None = option(None, "Write trials and features for TensorBoard below this folder.")
    mlflow: str | None = option(None, "Log trials and the best head, such as to sqlite:///mlflow.db.")


COMMANDS = {
    "quickstart": QuickstartOptions,
    "recipe": RecipeOptions,
    "scan": ScanOptions,
    "rank": RankOptions,
    "extract": ExtractOptions,
    "cache why": WhyOptions,
    "leaks": LeaksOptions,
    "similar": SimilarOptions,
    "sweep": SweepOptions,
    "finetune": FinetuneOptions,
    "predict": PredictOptions,
    "export": ExportOptions,
    "report": ReportOptions,
}


def flag_of(option: Field[Any]) -> str:
    """Return the long flag of an option: --learning-rate of learning_rate, unless the field names another."""
    return option.metadata["flag"] or f"--{option.name.replace('_', '-')}"


def as_flags(kind: Any, values: Mapping[str, Any]) -> list[str]:
    """Return values of the options in a class as words on the command line, without those at their default.

    >>> as_flags(TrainingOptions, {"learning_rate": 1e-4, "wise_ft": True, "prefix": False, "epochs": 10})
    ['--lr', '0.0001', '--no-prefix', '--wise-ft']
    """
    words: list[str] = []
    for option in fields(kind):
        value = values.get(option.name, option.default)
        flag = option.metadata["short"] or flag_of(option)
        if value in (None, option.default):
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-"))
        elif isinstance(value, list):
            for item in value:
                words += [flag, str(item)]
        else:
            words += [flag, str(value)]
    return words


def name_on_command_line(option: Field[Any]) -> str:
    """Return the name that a configuration file uses: the flag's, unless Python cannot use it as a name (assert)."""
    name = flag_of(option).removeprefix("--").replace("-", "_")
    return option.name if keyword.iskeyword(name) else name
