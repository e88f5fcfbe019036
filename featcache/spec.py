"""The values that every room shares, and the fingerprint that decides what is computed twice.

A row of features is known by the digest of the image's bytes and the fingerprint of its tap. The
fingerprint is the SHA-256 of the canonical JSON of everything that changes the numbers, and of nothing
else: names, labels, splits and where files lie are not in it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args

from featcache.errors import DataError, UsageError
from featcache.settings import Dtype as Dtype
from featcache.settings import Pooling as Pooling
from featcache.settings import Precision as Precision
from featcache.settings import Resize as Resize
from featcache.settings import SplitName

Mode = Literal["tf", "caffe", "torch", "inside", "unit"]
Origin = Literal["registry", "file", "import", "hub"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos3"]
SPLITS = get_args(SplitName)
IDENTITY = "identity"  # the view that changes nothing
NO_WEIGHTS = hashlib.sha256().hexdigest()  # the digest of the weights of a backbone that has none

# Raise it when the same bytes would give other pixels: every cached row then misses. It stayed when white-is-zero and
# no-data values of 16 bits and more were mended: such files gave no picture, and all other rows are as they were.
DECODE_VERSION = "pillow/1"
DRAFT_VERSION = "pillow/1 draft"  # the same, with JPEGs decoded at reduced scale where the size allows it
ALL_BITS = 16  # of a channel of a 16-bit image: white is 65535 unless `bits` says another


def with_bits(decode: str, bits: int) -> str:
    """Return the decoder that takes 2**bits - 1 for the white of 16-bit images.

    >>> with_bits(DECODE_VERSION, 12), with_bits(DECODE_VERSION, 16)
    ('pillow/1 bits=12', 'pillow/1')
    """
    return decode if bits == ALL_BITS else f"{decode} bits={bits}"


class ImageRow(NamedTuple):
    """One image of the manifest. `path` is relative to the root, with undecodable bytes as surrogates."""

    path: str
    label: str  # "" where there is none
    group: str  # "" where there is none
    split: str  # "train", "val", "test", or "" for an image without a label
    digest: str  # SHA-256 of the file's bytes in hex


def unit_of(row: ImageRow) -> str:
    """Return what must stay in one split with this image: its group, else its own bytes."""
    return f"group:{row.group}" if row.group else row.digest


def units_of(rows: Sequence[ImageRow]) -> list[str]:
    """Return for each image the name of what must stay in one split with it.

    That is its group, or its own bytes where it has none. Copies of an image are in one unit, so groups that share an
    image are one unit too: it is called after the first of them by name, whatever the order of the rows.

    >>> rows = [ImageRow("1", "", "b", "", "x"), ImageRow("2", "", "a", "", "x"), ImageRow("3", "", "b", "", "y")]
    >>> units_of([*rows, ImageRow("4", "", "", "", "y"), ImageRow("5", "", "", "", "z")])
    ['group:a', 'group:a', 'group:a', 'group:a', 'z']
    """
    earlier: dict[str, str] = {}  # {group: one that shares images with it and comes before it by name, or itself}
    group_of: dict[str, str] = {}  # {digest: a group that has the image}

    def first_of(group: str) -> str:
        # Union-find: each step also shortens the chain by half, so that the next search is quick.
        while earlier.setdefault(group, group) != group:
            earlier[group] = earlier[earlier[group]]
            group = earlier[group]
        return group

    for row in rows:
        if row.group:
            mine = first_of(row.group)
            other = first_of(group_of.setdefault(row.digest, row.group))
            earlier[max(mine, other)] = min(mine, other)

    units = []
    for row in rows:
        group = row.group or group_of.get(row.digest, "")
        units.append(f"group:{first_of(group)}" if group else row.digest)
    return units


class Failure(NamedTuple):
    """One image that gives no features, and why."""

    path: str
    digest: str  # "" where the bytes could not be read
    status: str  # empty, unknown_format, truncated, too_big, unreadable, no_memory, nonfinite
    reason: str


@dataclass(frozen=True)
class SplitSpec:
    """Shares of train, val and test in percent, and the seed of the hash that decides."""

    train: int = 70
    val: int = 15
    test: int = 15
    seed: int = 0

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> SplitSpec:
        """Read '70/15/15'.

        >>> SplitSpec.parse("80/20").test
        0
        """
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(part.strip().isdecimal() for part in parts):
            raise UsageError(f"`split` takes train/val/test in percent, such as 70/15/15; got '{text}'")
        train, val, *rest = map(int, parts)
        test = rest[0] if rest else 0
        if train + val + test != 100 or train == 0:
            raise UsageError(f"`split` must add up to 100 with some train in it; '{text}' does not")
        return cls(train, val, test, seed)


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone as a user names it: enough to build it again."""

    name: str  # of the registry: "mobilenet_v2"; of a user's own model: the stem of its file, or its function
    options: tuple[tuple[str, Any], ...] = ()  # only those that differ from the constructor's defaults
    # "imagenet", "none" (random), "embedded", a file, "package.module:function", or a preset of keras-hub: its folder,
    # or how -b names it, "hub:dinov2_small"
    weights: str = "imagenet"
    seed: int = 0  # of random weights
    origin: Origin = "registry"  # where the architecture comes from: a user's own is a model file or a function

    @property
    def is_own(self) -> bool:
        """Whether it is a user's own model."""
        return self.origin in ("file", "import")


@dataclass(frozen=True)
class Preprocess:
    """Bytes of an image -> input of the backbone."""

    size: int  # pixels; images become size x size
    resize: Resize = "stretch"
    mode: Mode = "tf"
    decode: str = DECODE_VERSION  # or DRAFT_VERSION; behind either " bits=12", where the white of 16-bit images is 4095
    interpolation: Interpolation = "bilinear"

    @property
    def is_draft(self) -> bool:
        """Whether JPEGs are decoded at reduced scale."""
        return "draft" in self.decode.split()

    @property
    def bits(self) -> int:
        """How many bits of a 16-bit channel hold the image: white is 2**bits - 1."""
        for word in self.decode.split():
            if word.startswith("bits="):
                return int(word.removeprefix("bits="))
        return ALL_BITS

    @property
    def shown(self) -> tuple[object, ...]:
        """What must be equal for two backbones to be parts of one model, which shows both the same pixels."""
        return self.size, self.resize, self.bits, self.interpolation

    def to_dict(self) -> dict[str, Any]:
        """Return its fields, without the interpolation if it is bilinear: so digests of earlier versions stay."""
        fields = asdict(self)
        if self.interpolation == "bilinear":
            del fields["interpolation"]
        return fields


@dataclass(frozen=True)
class Tap:
    """One column family of the cache: what is read where, and how it was made."""

    name: str  # "mobilenet_v2/top"; a name, so not in the fingerprint
    backbone: BackboneSpec
    weights_digest: str  # SHA-256 of the weight values
    layer: str  # name of the Keras layer, or "top": the last one before a classifier
    pooling: Pooling
    preprocess: Preprocess
    view: str = IDENTITY  # or "hflip", "crop-1" ...: one fixed augmentation
    precision: Precision = "float32"
    dtype: Dtype = "float32"
    architecture: str = ""  # SHA-256 of a user's own model's configuration; the registry's names say enough
    calibration: str = ""  # SHA-256 of the 8-bit network, at precision int8

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the numbers."""
        facts = {
            "architecture": self.architecture or [self.backbone.name, dict(self.backbone.options)],
            "weights": self.weights_digest,
            "layer": self.layer,
            "pooling": self.pooling,
            "preprocess": self.preprocess.to_dict(),
            "view": self.view,
            "precision": self.precision,
            "dtype": self.dtype,
        }
        # Other taps keep the fingerprint that they had before there were 8-bit networks.
        if self.calibration:
            facts["calibration"] = self.calibration
        return digest_of(facts)

    @property
    def in_keras(self) -> Tap:
        """The tap that Keras computes in place of this one: at float32 if this is 8-bit, which Keras cannot compute."""
        return replace(self, precision="float32", calibration="") if self.precision == "int8" else self

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        fields = asdict(self) | {"preprocess": self.preprocess.to_dict()}
        if not self.calibration:
            del fields["calibration"]
        return canonical_json(fields)

    @classmethod
    def from_json(cls, text: str) -> Tap:
        """Return the tap that `to_json` wrote."""
        try:
            fields = json.loads(text)
            fields["preprocess"] = Preprocess(**fields["preprocess"])
            backbone = fields["backbone"]
            # JSON has no tuples, and only tuples can be hashed.
            backbone["options"] = tuple((str(key), value) for key, value in backbone["options"])
            fields["backbone"] = BackboneSpec(**backbone)
            return cls(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"Not the description of a tap: {text[:80]!r} ({error})") from error


class Tick(NamedTuple):
    """Progress of a long step, for whoever draws it."""

    step: str
    done: int
    total: int  # 0: only a note; -1: not known yet
    note: str = ""


Progress = Callable[[Tick], None]


def silent(tick: Tick) -> None:
    """Draw nothing."""


def canonical_json(value: object) -> str:
    """Return one text per value: keys sorted, no spaces, no NaN, nothing that is not JSON.

    >>> canonical_json({"b": 1, "a": [True, None]})
    '{"a":[true,null],"b":1}'
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Cannot be written down exactly, so it cannot be cached: {value!r} ({error})") from error


def digest_of(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def choose(option: str, value: Any, choices: Collection[str]) -> Any:
    """Return `value` if it is one of `choices`; raise UsageError with near names if not. option: an argument's name."""
    if value in choices:
        return value
    if option.isidentifier():
        option = f"`{option}`"
    raise UsageError(f"{option} takes {', '.join(choices)}; got '{value}'{did_you_mean(str(value), choices)}")


def did_you_mean(name: str, names: Collection[str]) -> str:
    """Return ' (did you mean x, y?)', or nothing where no name is near."""
    near = near_names(name, names)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def near_names(name: str, names: Collection[str]) -> list[str]:
    """Return the names that are spelt like this one; else those that are a part of it, hold it, or abbreviate it.

    >>> near_names("rigde", ["ridge", "logreg"]), near_names("f1", ["accuracy", "macro_f1"])
    (['ridge'], ['macro_f1'])
    >>> near_names("logistic_regression", ["ridge", "logreg"]), near_names("random_forest", ["rbf", "forest"])
    (['logreg'], ['forest'])
    """
    if near := get_close_matches(name, list(names), n=3, cutoff=0.5):
        return near
    # A single letter is a part of almost every name.
    candidates = [other for other in names if len(other) > 1]
    if len(name) > 1:
        parts = [other for other in candidates if other in name or name in other]
        if parts:
            return parts[:3]
    return [other for other in candidates if _abbreviates(other, name)][:3]


def _abbreviates(short: str, name: str) -> bool:
    """Return whether a name begins with the same letter, and has all the others in this order."""
    letters = iter(name)
    return short[0] == name[:1] and all(letter in letters for letter in short)


def count_by(values: Collection[str]) -> Mapping[str, int]:
    """Return how often each value stands there, by name.

    >>> count_by(["b", "a", "b"])
    {'a': 1, 'b': 2}
    """
    return dict(sorted(Counter(values).items()))
