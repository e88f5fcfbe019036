"""Protocols by which papers report their numbers, on cached features.

Each says what it takes from its source. The user's options win over a preset's, except for its heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.arrays import Floats
from featcache.heads.grids import Grid
from featcache.spec import choose


@dataclass(frozen=True)
class Preset:
    """What a protocol sets."""

    source: str
    heads: str
    grid: Grid
    prepare: str = "none"
    refit: bool = False
    few: tuple[tuple[int, int], ...] = ()  # (images per class, seed) of each small training set
    join_last: int = 0  # number of last taps that are also tried joined


def _short(values: Floats) -> list[float]:
    """Return values rounded to 12 digits: 0.1 rather than 0.09999999999999999."""
    return [float(f"{value:.12g}") for value in values]


SHOTS, SEEDS = (1, 2, 5, 10), (0, 1, 2)
DINO_RATES = np.array([1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1])
DINO_BATCH = 128

PRESETS: dict[str, Preset] = {
    "kornblith": Preset(
        source="Kornblith et al. 2019, arXiv:1805.08974: L2-regularised logistic regression by L-BFGS, 45 strengths "
        "from 1e-6 to 1e5 chosen on validation, then fitted on train and validation",
        heads="logreg",
        grid={"logreg": {"C": _short(np.geomspace(1e-6, 1e5, 45))}},
        refit=True,
    ),
    "clip": Preset(
        source="Radford et al. 2021, arXiv:2103.00020, A.3: logistic regression by L-BFGS, 8 strengths per decade from "
        "1e-6 to 1e6; they search by bisection, here all 97 are tried",
        heads="logreg",
        grid={"logreg": {"C": _short(np.geomspace(1e-6, 1e6, 97))}},
        refit=True,
    ),
    "dinov2": Preset(
        source="Oquab et al. 2023, arXiv:2304.07193 and their eval/linear.py: SGD with momentum 0.9 and a cosine, "
        "batches of 128, 13 learning rates scaled by batch / 256, on the last tap and on the last four joined",
        heads="softmax",
        grid={
            "softmax": {
                "learning_rate": _short(DINO_RATES * DINO_BATCH / 256),
                "optimizer": ["sgd"],
                "weight_decay": [0.0],
                "batch_size": [DINO_BATCH],
                "epochs": [10],
            }
        },
        join_last=4,
    ),
    "fewshot": Preset(
        source="big_vision evaluators/fewshot_lsr.py: standardised features, least squares on -1 and 1 with L2 1024 in "
        "closed form, 1, 2, 5 and 10 images of each class, three draws",
        heads="ridge",
        grid={"ridge": {"alpha": [1024.0]}},
        prepare="standardise",
        few=tuple((shots, seed) for shots in SHOTS for seed in SEEDS),
    ),
}


def preset_of(name: str) -> Preset:
    """Return a preset by its name. Raises UsageError with near names."""
    return PRESETS[choose("preset", name, PRESETS)]


def taps_of(preset: Preset, vectors: Sequence[str]) -> list[str]:
    """Return the taps that a preset tries if the user names none. vectors: the taps of one backbone by their depth."""
    if not preset.join_last:
        return list(vectors)
    taps = list(vectors[-1:])
    if len(vectors) > 1:
        taps.append("+".join(vectors[-preset.join_last :]))
    return taps
