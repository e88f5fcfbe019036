"""Plain text: aligned columns, no colour, the same in a terminal and in a pipe. Imports nothing heavy.

Not rich.table: it takes 0.2 s to import, folds numbers with their intervals, and breaks names anywhere.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple, TextIO

GAP = "  "  # between columns
# Characters to which columns of text are narrowed: first, and after all spare columns are left out.
NARROW, NARROWEST = 18, 10
# The name must be a command's: "featcache does not run it" is a sentence, which breaks like any other.
_NAMES = (
    "quickstart|recipe|scan|rank|extract|advise|leaks|similar|sweep|show|compare|handoff|finetune|predict|export|report|"
    "doctor|backbones|cache"
)
_COMMAND = re.compile(rf"\b(?:featcache (?:{_NAMES})|tensorboard|pip install)\b.*?(?=[,;.:)](?:\s|$)|$)")
_HELD_SPACE = "\0"  # stands for a space at which no line may break
_WORD_ENDS = re.compile(r"(?<=\s)")
_NAME_BREAKS = re.compile(r"(?<=[/:+,_=-])")  # where a word that is longer than its column may be broken


class Table(NamedTuple):
    """The rows of a table under their header: `table` draws them for a terminal, `notebook.html` for a notebook."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def table(
    header: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None, spare: Sequence[str] = ()
) -> str:
    """Return the rows under their header; columns of numbers are right-aligned.

    width: most characters of a line; by default the terminal's, or 80 without a terminal. Longer text is folded within
    its column, numbers stay whole. Lines may still be longer if that is not enough.
    spare: columns to leave out if folding is not enough, the first one first.

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
    cells = printable_cells(rows)
    is_number = number_columns(len(header), cells)
    room = width or shutil.get_terminal_size().columns
    narrowest = NARROW if spare else NARROWEST
    widths = _fitted_widths([header, *cells], is_number, room, narrowest)
    if spare and _line_length(widths) > room:
        column = header.index(spare[0])
        fewer_header, *fewer_rows = [[*row[:column], *row[column + 1 :]] for row in (header, *rows)]
        return table([str(name) for name in fewer_header], fewer_rows, room, spare[1:])

    rule = ["-" * column_width for column_width in widths]
    lines = [*_lines(header, widths, is_number), *_lines(rule, widths, is_number)]
    for row in cells:
        lines += _lines(row, widths, is_number)
    return "\n".join(lines)


def printable_cells(rows: Sequence[Sequence[object]]) -> list[list[str]]:
    """Return the cells of a table as text that is safe to print."""
    cells: list[list[str]] = []
    for row in rows:
        cells.append([printable(str(cell)) for cell in row])
    return cells


def number_columns(num_columns: int, cells: Sequence[Sequence[str]]) -> list[bool]:
    """Return for each column of a table whether it has only numbers, which stand on the right."""
    is_number: list[bool] = []
    for column in range(num_columns):
        # `all` of no rows is true, but the header of an empty table is text.
        has_only_numbers = all(_is_number(row[column]) for row in cells)
        is_number.append(bool(cells) and has_only_numbers)
    return is_number


def fields(facts: Mapping[str, object], width: int | None = None) -> str:
    """Return a line for each name and its value; long values are folded between words.

    >>> print(fields({"head": "ridge", "scores": {"accuracy": 0.9, "ece": None}, "taps": ()}))
    head    ridge
    scores  accuracy 0.9, ece None
    taps    -
    """
    left = max(map(len, facts)) + len(GAP)
    lines: list[str] = []
    for name, value in facts.items():
        line = f"{name:{left}}{printable(plain(value))}"
        lines.append(wrapped(line, width, indent=left))
    return "\n".join(lines)


def plain(value: object) -> str:
    """Return a value in plain words, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else str(value)


def wrapped(line: str, width: int | None = None, indent: int = 2) -> str:
    """Return a sentence on as many lines as it takes; paths and other words in it stay whole.

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
        # The columns of a table are two blanks apart.
        is_table = "  " in line.strip()
        if not is_table:
            held = _COMMAND.sub(lambda command: command[0].replace(" ", _HELD_SPACE), line)
            line = wrapped(held).replace(_HELD_SPACE, " ")
        lines.append(line)
    return "\n".join(lines)


def folded_for(stream: TextIO, text: str) -> str:
    """Return text with its sentences folded for a terminal; unchanged for a pipe or a file."""
    return folded(text) if stream.isatty() else text


def fits(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bool:
    """Return whether a table fits into the terminal without folding."""
    all_rows = printable_cells([header, *rows])
    return _line_length(_natural_widths(all_rows)) <= shutil.get_terminal_size().columns


def counts_text(counts: Mapping[str, int]) -> str:
    """Return counts as a person reads them.

    >>> counts_text({"train": 80, "val": 20})
    '80 train, 20 val'
    """
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural if need be.

    >>> counted(1, "image"), counted(1360, "image"), counted(2, "class")
    ('1 image', '1360 images', '2 classes')
    """
    plural = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}" + ("" if count == 1 else plural)


def printable(text: str) -> str:
    """Return text with control characters and undecodable bytes escaped, so that it is safe to print.

    >>> printable("caf\\udce9 \\x1b[31m")
    'caf\\\\udce9 \\\\x1b[31m'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def interval(score: float, low: float, high: float) -> str:
    """Return a score with its interval.

    >>> interval(0.951, 0.918, 0.971)
    '0.951 [0.918, 0.971]'
    """
    return f"{score:.3f} [{low:.3f}, {high:.3f}]"


def _lines(row: Sequence[str], widths: Sequence[int], is_number: Sequence[bool]) -> list[str]:
    """Return a row as lines: several if a cell is folded."""
    folded_cells = [_folded(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines: list[str] = []
    for parts in zip_longest(*folded_cells, fillvalue=""):
        placed: list[str] = []
        for part, width, to_right in zip(parts, widths, is_number, strict=True):
            placed.append(part.rjust(width) if to_right else part.ljust(width))
        lines.append(GAP.join(placed).rstrip())
    return lines


def _line_length(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _fitted_widths(rows: Sequence[Sequence[str]], is_number: Sequence[bool], room: int, narrowest: int) -> list[int]:
    """Return the widths of columns. Columns of text are narrowed, the widest first, until a line fits."""
    widths = _natural_widths(rows)
    # Numbers stay whole, so only columns of text give way.
    text_columns = [at for at in range(len(widths)) if not is_number[at]]
    while text_columns and _line_length(widths) > room:
        widest = max(text_columns, key=widths.__getitem__)
        if widths[widest] <= narrowest:
            break
        widths[widest] -= 1
    return widths


def _natural_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _folded(cell: str, width: int) -> list[str]:
    """Return a cell as lines of at most `width` characters, broken between words, or within names if it must be."""
    lines = [""]
    for piece in _pieces(cell, width):
        if len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines if line] or [""]


def _pieces(cell: str, width: int) -> Iterator[str]:
    """Yield what should stay together: words, else parts of names, else runs of `width` characters."""
    for word in _WORD_ENDS.split(cell):
        if len(word.rstrip()) <= width:
            yield word
            continue
        for part in _NAME_BREAKS.split(word):
            if len(part.rstrip()) <= width:
                yield part
                continue
            for start in range(0, len(part), width):
                yield part[start : start + width]


def _is_number(text: str) -> bool:
    try:
        float(text.split()[0] if text else "")
    except ValueError:
        return False
    return True
