"""Plots as SVG for a page. Their text takes the colour and font of the page, so they can be read in light and dark."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from featcache.arrays import Classes
from featcache.sweeps.metrics import NUM_BINS, Predictions, Score, wilson

INK = "#010203"  # is replaced by the colour of the page's text; no plot uses it for anything else
COLOURS = ("#3b7dd8", "#d9722b", "#2f9e6e", "#c94f7c", "#8a6fd1", "#b08a1e", "#2ba3b8", "#8c8c8c")
MOST_LABELS = 40  # classes whose names fit beside a matrix
MOST_COUNTS = 20  # classes whose counts fit into its cells
SLANTED: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}  # names below an axis
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "featcache",
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}


@dataclass(frozen=True)
class Curve:
    """Points (x, y) under one name, and the ends of their intervals if they have any."""

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = field(default=False, kw_only=True)  # drawn in the colour of the curve before it, to which it belongs


def curves(
    lines: Sequence[Curve], x: str, y: str, *, log: bool = False, limits: tuple[float, float] | None = None, about: str
) -> str:
    """Return a plot of curves over numbers. limits: ends of the y axis; None to fit the curves."""
    with _figure(6.0, 2.8 + 0.1 * len(lines), about) as (axes, svg):
        number = -1
        numbers: list[Any] = []
        for line in lines:
            numbers += line.x
            if not line.dashed:
                number += 1
            colour = COLOURS[number % len(COLOURS)]
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
            how = "--" if line.dashed else "-"
            axes.plot(line.x, line.y, how, marker="o", markersize=3, linewidth=1.4, color=colour, label=line.name)
        if all(isinstance(value, int) for value in numbers):
            axes.xaxis.get_major_locator().set_params(integer=True)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        # After plotting, which sets the limits by itself.
        axes.set_ylim(limits)
        _legend(axes, len(lines))
    return svg.text


def points(lines: Sequence[Curve], x: str, y: str, *, about: str) -> str:
    """Return a plot of one point with its interval for each curve. x grows by factors."""
    from matplotlib.ticker import LogLocator

    with _figure(6.0, 3.0 + 0.2 * len(lines), about) as (axes, svg):
        for number, line in enumerate(lines):
            colour = COLOURS[number % len(COLOURS)]
            axes.vlines(line.x, line.low or line.y, line.high or line.y, color=colour, linewidth=1.4)
            axes.scatter(line.x, line.y, color=colour, s=24, zorder=3, label=line.name)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # points may lie within one power of ten
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.figure.legend(loc="outside lower center", fontsize=8)
    return svg.text


def steps(lines: Sequence[Curve], y: str, *, limits: tuple[float, float] | None = None, about: str) -> str:
    """Return a plot of points with intervals over names, side by side. limits: ends of the y axis."""
    names = list(chain.from_iterable(line.x for line in lines))
    height = 2.4 + 0.055 * max(map(len, names))  # the names stand slanted below the plot
    with _figure(6.0, height, about) as (axes, svg):
        start = 0
        for number, line in enumerate(lines):
            # matplotlib takes the lengths of error bars, not their ends.
            below = np.subtract(line.y, line.low or line.y)
            above = np.subtract(line.high or line.y, line.y)
            places = list(range(start, start + len(line.x)))
            start += len(line.x)
            how = {"marker": "o", "markersize": 4, "capsize": 2, "color": COLOURS[number % len(COLOURS)]}
            axes.errorbar(places, line.y, [below, above], label=line.name, **how)
        axes.set_xticks(range(start), names, **SLANTED)
        axes.set_ylabel(y)
        axes.set_ylim(limits)
        _legend(axes, len(lines))
    return svg.text


def confusion(counts: Classes, classes: Sequence[str], *, about: str) -> str:
    """Return a plot of the (K, K) counts: true classes down, predicted ones across, shaded by share of the row."""
    num = len(classes)
    # A class without images has zeros only, which dividing by 1 keeps.
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(7.0, 2.2 + 0.28 * min(num, MOST_LABELS))
    with _figure(side, side, about) as (axes, svg):
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(visible=False)
        if num <= MOST_LABELS:
            names = [_short(name) for name in classes]
            axes.set_xticks(range(num), names, **SLANTED)
            axes.set_yticks(range(num), names)
        if num <= MOST_COUNTS:
            for row, column in zip(*counts.nonzero(), strict=True):
                is_dark = shares[row, column] > 0.5
                colour = "#ffffff" if is_dark else "#102030"  # on the cell, not on the page
                axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=7)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
    return svg.text


def calibration(predictions: Predictions, *, about: str) -> str:
    """Return a plot of how often predictions are right by how sure they were, in bins with 95 % intervals (Wilson)."""
    confidence = predictions.confidence
    assert confidence is not None
    # A confidence of exactly 1 belongs to the last bin.
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    is_right = predictions.predicted == predictions.truth
    accuracies: list[Score] = []
    sure: list[float] = []
    sizes: list[float] = []
    for number in np.unique(bins):
        in_bin = bins == number
        num_images = int(in_bin.sum())
        num_right = int(is_right[in_bin].sum())
        accuracies.append(wilson(num_right, num_images))
        sure.append(float(confidence[in_bin].mean()))
        # The area of a point grows with its share of the images, so that a bin of few images does not stand out.
        share = float(in_bin.mean())
        sizes.append(20 + 120 * share)
    values, lows, highs = zip(*accuracies, strict=True)
    with _figure(4.0, 3.6, about) as (axes, svg):
        axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=INK, alpha=0.5)
        axes.vlines(sure, lows, highs, color=COLOURS[0], linewidth=1)
        axes.scatter(sure, values, s=sizes, color=COLOURS[0], zorder=3)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="how sure it was", ylabel="how often it was right")
    return svg.text


def confusions(predictions: Predictions, num_classes: int) -> Classes:
    """Return (K, K): images by true class (row) and predicted class (column)."""
    # Count the cells of the flattened table: cell (row, column) has the number row * K + column.
    cells = predictions.truth * num_classes + predictions.predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def palette(names: Sequence[str]) -> Mapping[str, str]:
    """Return {name: colour}. Many names get hues that are the golden angle apart, so that neighbours differ."""
    if len(names) <= len(COLOURS):
        return dict(zip(names, COLOURS, strict=False))
    colours: dict[str, str] = {}
    for at, name in enumerate(names):
        hue = 137.508 * at % 360
        lightness = 45 + 12 * (at % 3)
        colours[name] = f"hsl({hue:.0f} 65% {lightness}%)"
    return colours


class _Svg:
    text = ""


@contextmanager
def _figure(width: float, height: float, about: str) -> Iterator[tuple[Any, _Svg]]:
    """Give axes to draw on; afterwards `text` is the SVG. about: what it shows, for people who cannot see it."""
    import matplotlib as mpl
    from markupsafe import escape
    from matplotlib.figure import Figure

    svg = _Svg()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the page has its own fonts
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(), svg
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # Without the XML declaration, which may not stand inside a page.
    _, _, drawing = file.getvalue().partition("<svg")
    opening = f'<svg role="img" aria-label="{escape(about)}" style="max-width:{width * 96:.0f}px"'
    svg.text = opening + drawing.replace(INK, "currentColor")


def _legend(axes: Any, num_lines: int) -> None:
    if num_lines > 1:
        axes.figure.legend(loc="outside lower center", fontsize=8, ncols=2)


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
