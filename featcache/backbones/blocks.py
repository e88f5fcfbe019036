"""Group the layers of a backbone into its blocks, from the layer names alone.

Fine-tuning unfreezes whole blocks, never half a residual or Inception block. Most families name
every layer after the block it stands in ("block_16_expand"), so a name opens a block and what follows
belongs to it. The Inceptions name the layer that closes a block ("mixed5"); the convolutions
before it carry names such as "conv2d_56", whose numbers depend on what the session built earlier
and are never read.
"""

import difflib
import re
from collections.abc import Sequence
from itertools import accumulate

from featcache.errors import UnknownBlock

STEM = "stem"

# (layer name, block name) of families whose names open a block
_OPENING = (
    (r"(?:.*_)?((?:stage_\d+|downsampling)_block_\d+)(?:_|$)", r"\1"),  # ConvNeXt
    (r"(conv\d+_block\d+)(?:_|$)", r"\1"),  # ResNet, DenseNet
    (r"(block\d+[a-z]?)(?:_|$)", r"\1"),  # VGG, Xception, EfficientNet
    (r"(block_\d+)(?:_|$)", r"\1"),  # MobileNetV2, glyphnet
    (r"(expanded_conv(?:_\d+)?)(?:_|$)", r"\1"),  # MobileNetV3, and block 0 of MobileNetV2
    (r"conv_(?:pad|dw|pw)_(\d+)(?:_|$)", r"block_\1"),  # MobileNet
    (r"(?:adjust|normal|reduction|separable_conv)_.*?_(stem_\d+|reduce_\d+|\d+)$", r"cell_\1"),  # NASNet
)
# the same of those whose names close one
_CLOSING = (
    (r"(mixed\d+|mixed_\d[a-z])$", r"\1"),  # InceptionV3, InceptionResNetV2
    (r"(block\d+_\d+)_(?:mixed|conv|ac)$", r"\1"),  # InceptionResNetV2
)
# what follows it in its block belongs to the next one, by its work if not by its name
_OUTPUT = r"(?:normal|reduction)_concat_"  # NASNet


def block_names(layer_names: Sequence[str]) -> list[str]:
    """Return for every layer, in order, the block it belongs to; each block is one run of layers.

    Layers before the first block are "stem"; layers after the last one belong to it.

    >>> block_names(["input", "Conv1", "block_1_expand", "re_lu", "block_2_expand", "out_relu"])
    ['stem', 'stem', 'block_1', 'block_1', 'block_2', 'block_2']
    >>> block_names(["input", "max_pooling2d", "conv2d_7", "mixed0", "conv2d_9", "mixed1", "avg_pool"])
    ['stem', 'stem', 'mixed0', 'mixed0', 'mixed1', 'mixed1', 'mixed1']
    """
    if any(re.match(_CLOSING[0][0], name) for name in layer_names):
        return _untangled(_by_closing_names(layer_names))
    return _untangled(_by_opening_names(layer_names))


def blocks(layer_names: Sequence[str]) -> list[str]:
    """Return the names of the blocks in order, each once."""
    return list(dict.fromkeys(block_names(layer_names)))


def block_ends(layer_names: Sequence[str]) -> list[str]:
    """Return for every block but the last the layer whose output the next block takes.

    The stem is no block: edges and colours, averaged over an image, tell little that the first block does not.

    >>> block_ends(["input", "Conv1", "block_1_expand", "re_lu", "block_2_expand", "block_2_add", "block_3_expand"])
    ['re_lu', 'block_2_add']
    """
    ends: dict[str, str] = {}
    for layer, block in zip(layer_names, block_names(layer_names), strict=True):
        if not re.match(_OUTPUT, ends.get(block, "")):
            ends[block] = layer
    ends.pop(STEM, None)
    return list(ends.values())[:-1]


def first_of(layer_names: Sequence[str], block: str) -> int:
    """Return the index of the first layer of `block`, or of the layer of exactly that name.

    Where a block and a layer share a name ("mixed5"), the block is meant.
    Raises UnknownBlock.

    >>> first_of(["input", "block_1_expand", "block_2_expand", "out_relu"], "block_2")
    2
    """
    names = block_names(layer_names)
    for candidates in (names, layer_names):
        if block in candidates:
            return candidates.index(block)
    known = list(dict.fromkeys(names))
    near = difflib.get_close_matches(block, known)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise UnknownBlock(f"No block or layer '{block}'.{hint} The {len(known)} blocks run from {known[0]} to {known[-1]}")


def _by_opening_names(layer_names: Sequence[str]) -> list[str]:
    return _filled([_mark(name, _OPENING) for name in layer_names], first=STEM)


def _by_closing_names(layer_names: Sequence[str]) -> list[str]:
    marks = [_mark(name, _CLOSING) for name in layer_names]
    last = next(mark for mark in reversed(marks) if mark)
    filled = _filled(marks[::-1], first=last)[::-1]
    stem = _stem_length(layer_names[: marks.index(filled[0])])
    return [STEM] * stem + filled[stem:]


def _mark(layer_name: str, rules: Sequence[tuple[str, str]]) -> str | None:
    """Return the block that the name of the layer tells, None where it tells none."""
    for pattern, block in rules:
        if match := re.match(pattern, layer_name):
            return match.expand(block)
    return None


def _filled(marks: Sequence[str | None], first: str) -> list[str]:
    """Return the marks with every None replaced by the mark before it, `first` where there is none."""
    return list(accumulate(marks, lambda block, mark: mark or block, initial=first))[1:]


def _stem_length(layer_names: Sequence[str]) -> int:
    """Return the number of layers up to the last max pooling: the first Inception block pools by average."""
    return max((i + 1 for i, name in enumerate(layer_names) if name.startswith("max_pooling2d")), default=0)


def _untangled(names: Sequence[str]) -> list[str]:
    """Return the names with every block begun only after the one before it has ended.

    Keras sorts layers by depth, so that in NASNet the first layers of a cell (activation and padding,
    none with weights) stand among the last of the cell before it.
    """
    order = list(dict.fromkeys(names))
    ranks = accumulate((order.index(name) for name in reversed(names)), min)
    return [order[rank] for rank in ranks][::-1]
