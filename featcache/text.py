"""Plain text: aligned columns, no colour, the same in a terminal and in a pipe. Imports nothing heavy."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

GAP = "  "  # between columns
NARROW, NARROWEST = 18, 10  # characters to which a column of text is narrowed: first, and if nothing else helps
_COMMAND = re.compile(r"\b(?:featcache|tensorboard|pip install) .+?(?=[,;.:)](?:\s|$)|$)")
_HELD_SPACE = "\0"  # stands for a space at which no line may break
_WORDS = re.compile(r"(?<=\s)")
_PARTS = re.compile(r"(?<=[/:+,_=-])")  # where a word that is longer than its column goes on in the next line


def table(
    header: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None, spare: Sequence[str] = ()
) -> str:
    """Return the rows under their header; columns of numbers stand to the right.

    width: characters of a line, by default of the terminal, 80 where there is none. What is longer goes on
    below, within its column, as far as that helps: numbers stay whole.
    spare: columns that are left out, the first one first, where even that is not enough.

    >>> print(table(["head", "score"], [["logreg", "0.95"], ["knn", "0.9"]]))
    head    score
    ------  -----
    logreg   0.95
    knn       0.9
    >>> print(table(["tap", "rows"], [["mobilenet_v2/block_3_expand", 1360]], width=24))
    tap                 rows
    ------------------  ----
    mobilenet_v2/       1360
    block_3_expand
    """
    lines = [[printable(str(cell)) for cell in row] for row in rows]
    right = [bool(lines) and all(_is_number(line[at]) for line in lines) for at in range(len(header))]
    room = width or shutil.get_terminal_size().columns
    widths = _fitted([header, *lines], right, room, NARROW if spare else NARROWEST)
    if spare and _long(widths) > room:
        at = header.index(spare[0])
        less = [[*row[:at], *row[at + 1 :]] for row in (header, *rows)]
        return table([str(name) for name in less[0]], less[1:], room, spare[1:])

    def row(cells: Sequence[str]) -> list[str]:
        folded = [_folded(cell, wide) for cell, wide in zip(cells, widths, strict=True)]
        deep = max(map(len, folded))
        return [_line([one[at] if at < len(one) else "" for one in folded], widths, right) for at in range(deep)]

    rule = _line(["-" * wide for wide in widths], widths, right)
    return "\n".join([*row(header), rule, *(line for cells in lines for line in row(cells))])


def fields(facts: Mapping[str, object], width: int | None = None) -> str:
    """Return a name and its value a line; long values go on below, between words.

    >>> print(fields({"head": "ridge", "scores": {"accuracy": 0.9, "ece": None}, "taps": ()}))
    head    ridge
    scores  accuracy 0.9, ece None
    taps    -
    """
    left = max(map(len, facts)) + len(GAP)
    return "\n".join(
        wrapped(f"{name:{left}}{printable(_plain(value))}", width, indent=left) for name, value in facts.items()
    )


def _plain(value: object) -> str:
    """Return a value as it is said, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else str(value)


def wrapped(line: str, width: int | None = None, indent: int = 2) -> str:
    """Return a sentence on as many lines as it takes; paths and commands that stand in it stay whole.

    >>> print(wrapped("The test split was not read, so it still proves something.", width=30))
    The test split was not read,
      so it still proves
      something.
    """
    room = max(width or shutil.get_terminal_size().columns, indent + NARROWEST)
    if len(line) <= room:
        return line
    return textwrap.fill(line, room, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def folded(text: str) -> str:
    """Return text whose sentences break between words, for a terminal.

    Tables stay as they are. A command stays on one line, so that it can be copied.
    """
    lines = []
    for line in text.split("\n"):
        is_table = "  " in line.strip()
        if not is_table:
            held = _COMMAND.sub(lambda command: command[0].replace(" ", _HELD_SPACE), line)
            line = wrapped(held).replace(_HELD_SPACE, " ")
        lines.append(line)
    return "\n".join(lines)


def fits(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bool:
    """Tell whether the lines of a table have room in the terminal as they are."""
    widths = [max(len(printable(str(cell))) for cell in column) for column in zip(header, *rows, strict=True)]
    return _long(widths) <= shutil.get_terminal_size().columns


def counted(count: int, noun: str) -> str:
    """Return how many there are of something.

    >>> counted(1, "image"), counted(1360, "image"), counted(2, "class")
    ('1 image', '1360 images', '2 classes')
    """
    plural = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}" + ("" if count == 1 else plural)


def printable(text: str) -> str:
    """Return text that a terminal shows as it is: no control characters, no undecodable bytes.

    >>> printable("caf\\udce9 \\x1b[31m")
    'caf\\\\udce9 \\\\x1b[31m'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def interval(score: float, low: float, high: float) -> str:
    """Return a score with its interval.

    >>> interval(0.951, 0.918, 0.971)
    '0.951 [0.918, 0.971]'
    """
    return f"{score:.3f} [{low:.3f}, {high:.3f}]"


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    placed = zip(cells, widths, right, strict=True)
    return GAP.join(cell.rjust(wide) if to_right else cell.ljust(wide) for cell, wide, to_right in placed).rstrip()


def _long(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _fitted(lines: Sequence[Sequence[str]], right: Sequence[bool], room: int, narrowest: int) -> list[int]:
    """Return the widths of columns: the widest columns of text are narrowed until the line has room."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    while _long(widths) > room:
        widest = max((at for at in range(len(widths)) if not right[at]), key=lambda at: widths[at], default=None)
        if widest is None or widths[widest] <= narrowest:
            break
        widths[widest] -= 1
    return widths


def _folded(cell: str, wide: int) -> list[str]:
    """Return a cell as lines of at most so many characters, broken between words, or within names if it must be."""
    lines = [""]
    for part in _pieces(cell, wide):
        if len(lines[-1]) + len(part.rstrip()) > wide:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines if line] or [""]


def _pieces(cell: str, wide: int) -> Iterator[str]:
    """Yield what stays together: words; parts of longer ones; what is longer still in equal lengths."""
    for word in _WORDS.split(cell):
        for part in [word] if len(word.rstrip()) <= wide else _PARTS.split(word):
            fits = len(part.rstrip()) <= wide
            yield from [part] if fits else (part[at : at + wide] for at in range(0, len(part), wide))


def _is_number(text: str) -> bool:
    try:
        float(text.split()[0] if text else "")
    except ValueError:
        return False
    return True
