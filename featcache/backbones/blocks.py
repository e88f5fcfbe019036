"""Group the layers of a backbone into its blocks, by the layer names alone.

Fine-tuning unfreezes whole blocks, never half a residual or Inception block. Most families name every layer after its
block ("block_16_expand"). Such a name opens a block, and the layers after it belong to the block until another opens.
The Inceptions name only the layer that closes a block ("mixed5"). The convolutions before it have names such as
"conv2d_56", whose numbers depend on what the session built earlier, so they are ignored.
"""

import re
from collections.abc import Sequence
from itertools import accumulate

from featcache.errors import UnknownBlock
from featcache.spec import did_you_mean

STEM = "stem"

# (pattern of a layer name, name of the block) for families whose names open a block
_OPENING = (
    (r"(?:.*_)?((?:stage_\d+|downsampling)_block_\d+)(?:_|$)", r"\1"),  # ConvNeXt
    (r"(conv\d+_block\d+)(?:_|$)", r"\1"),  # ResNet, DenseNet
    (r"(block\d+[a-z]?)(?:_|$)", r"\1"),  # VGG, Xception, EfficientNet
    (r"(block_\d+)(?:_|$)", r"\1"),  # MobileNetV2, glyphnet
    (r"(expanded_conv(?:_\d+)?)(?:_|$)", r"\1"),  # MobileNetV3, and block 0 of MobileNetV2
    (r"conv_(?:pad|dw|pw)_(\d+)(?:_|$)", r"block_\1"),  # MobileNet
    (r"(?:adjust|normal|reduction|separable_conv)_.*?_(stem_\d+|reduce_\d+|\d+)$", r"cell_\1"),  # NASNet
)
# the same for families whose names close a block
_CLOSING = (
    (r"(mixed\d+|mixed_\d[a-z])$", r"\1"),  # InceptionV3, InceptionResNetV2
    (r"(block\d+_\d+)_(?:mixed|conv|ac)$", r"\1"),  # InceptionResNetV2
)
# The output of a NASNet cell. Layers behind it that carry the cell's name already work for the next cell.
_OUTPUT = r"(?:normal|reduction)_concat_"  # NASNet


def block_names(layer_names: Sequence[str]) -> list[str]:
    """Return the block of every layer, in order. The layers of a block follow each other.

    Layers before the first block belong to "stem", layers after the last block belong to that block.

    >>> block_names(["input", "Conv1", "block_1_expand", "re_lu", "block_2_expand", "out_relu"])
    ['stem', 'stem', 'block_1', 'block_1', 'block_2', 'block_2']
    >>> block_names(["input", "max_pooling2d", "conv2d_7", "mixed0", "conv2d_9", "mixed1", "avg_pool"])
    ['stem', 'stem', 'mixed0', 'mixed0', 'mixed1', 'mixed1', 'mixed1']
    """
    inception, _ = _CLOSING[0]
    if any(re.match(inception, name) for name in layer_names):
        return _untangled(_by_closing_names(layer_names))
    marks = [_mark(name, _OPENING) for name in layer_names]
    return _untangled(_filled(marks, first=STEM))


def blocks(layer_names: Sequence[str]) -> list[str]:
    """Return the names of the blocks in order, each once."""
    return list(dict.fromkeys(block_names(layer_names)))


def block_ends(layer_names: Sequence[str]) -> list[str]:
    """Return, for every block but the last, the layer whose output enters the next block.

    The stem is left out: edges and colours, averaged over an image, add little to the first block's features.

    >>> block_ends(["input", "Conv1", "block_1_expand", "re_lu", "block_2_expand", "block_2_add", "block_3_expand"])
    ['re_lu', 'block_2_add']
    """
    ends: dict[str, str] = {}
    for layer, block in zip(layer_names, block_names(layer_names), strict=True):
        has_output = re.match(_OUTPUT, ends.get(block, ""))
        if not has_output:
            ends[block] = layer
    ends.pop(STEM, None)
    return list(ends.values())[:-1]


def first_of(layer_names: Sequence[str], block: str) -> int:
    """Return the index of the first layer of `block`, or of the layer with exactly that name.

    If a block and a layer share a name ("mixed5"), the block is meant.
    Raises UnknownBlock.

    >>> first_of(["input", "block_1_expand", "block_2_expand", "out_relu"], "block_2")
    2
    """
    names = block_names(layer_names)
    if block in names:
        return names.index(block)
    if block in layer_names:
        return layer_names.index(block)
    known = list(dict.fromkeys(names))
    raise UnknownBlock(
        f"No block or layer '{block}'{did_you_mean(block, known)}. "
        f"The {len(known)} blocks run from {known[0]} to {known[-1]}"
    )


def _by_closing_names(layer_names: Sequence[str]) -> list[str]:
    marks = [_mark(name, _CLOSING) for name in layer_names]
    last_block = next(mark for mark in reversed(marks) if mark)
    # A name closes its block, so read backwards it opens it. What follows the last block belongs to it.
    backwards = _filled(marks[::-1], first=last_block)
    names = backwards[::-1]
    first_end = marks.index(names[0])
    stem_length = _stem_length(layer_names[:first_end])
    return [STEM] * stem_length + names[stem_length:]


def _mark(layer_name: str, rules: Sequence[tuple[str, str]]) -> str | None:
    """Return the block that the name of the layer contains; None if it contains none."""
    for pattern, block in rules:
        if match := re.match(pattern, layer_name):
            return match.expand(block)
    return None


def _filled(marks: Sequence[str | None], first: str) -> list[str]:
    """Return the marks with every None replaced by the mark before it, and by `first` before the first mark."""
    filled: list[str] = []
    block = first
    for mark in marks:
        block = mark or block
        filled.append(block)
    return filled


def _stem_length(layer_names: Sequence[str]) -> int:
    """Return the number of layers up to the last max pooling, which ends the stem of an Inception.

    The first Inception block itself pools by average.
    """
    length = 0
    for number, name in enumerate(layer_names, start=1):
        if name.startswith("max_pooling2d"):
            length = number
    return length


def _untangled(names: Sequence[str]) -> list[str]:
    """Return the block names such that every block begins only after the block before it has ended.

    Keras sorts layers by depth. So in NASNet the first layers of a cell (activation and padding, without weights) lie
    among the last layers of the cell before it. They are counted to that earlier cell.
    """
    order = list(dict.fromkeys(names))
    ranks = [order.index(name) for name in names]
    # No layer may have a later block than any layer behind it: the running minimum from the end.
    untangled_ranks = list(accumulate(reversed(ranks), min))[::-1]
    return [order[rank] for rank in untangled_ranks]
