"""A run as text for a terminal: its trials, notes on them, and the final scores. Options are named as flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from shlex import quote
from string import ascii_uppercase
from typing import Any

import numpy as np

from featcache.errors import DataError
from featcache.sweeps import Run
from featcache.sweeps.metrics import Score
from featcache.sweeps.trial import settings_of
from featcache.sweeps.trial_rows import failures, ties, trial_rows
from featcache.sweeps.unseen import why_not_left_out
from featcache.text import NARROW, counted, fits, interval, printable, table

MOST_NAMES = 8  # classes that a note names; --json has all
MOST_CLASSES = 20  # classes whose recall on test is printed; --json has all
FEW_SELECT = 100  # with fewer validation images their choice is mostly chance


def trials_table(run: Run, limit: int | None = None) -> str:
    """Return the trials of a run, best first, and notes on ties, failures and small data.

    limit: print at most this many trials, and a line that says how to see the others.
    """
    ranked = run.ranked
    if limit is not None and len(ranked) == limit + 1:
        limit = None  # a line that says "1 more" takes as much room as the trial
    columns, rows = trial_rows(run, limit)
    lines: list[str] = []
    taps = list(dict.fromkeys(trial.tap for trial in ranked))
    has_one_tap = len(taps) == 1
    if has_one_tap:
        lines.append(f"On {taps[0]}, {counted(ranked[0].width, 'feature')}:")
    if rows and not has_one_tap and not fits(columns, rows):
        short_names, notes = shortened(taps)
        lines += notes
        tap_column = columns.index("tap")
        for row in rows:
            row[tap_column] = short_names[str(row[tap_column])]
    # What a reader misses least is dropped first.
    spare = [name for name in ("MB", "width", "std", "fit s", "handoff") if name in columns]
    lines.append(table(columns, rows, spare=spare))
    num_hidden = len(ranked) - len(rows)
    if num_hidden:
        lines.append(f"{num_hidden} more: featcache show {quote(str(run.path))}")
    return "\n".join([*lines, *_notes(run)])


def shortened(taps: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return {tap: its name without the backbone, or with a letter for it}, and the lines that explain it.

    >>> shortened(["vgg16/top", "vgg16/block4_pool"])
    ({'vgg16/top': 'top', 'vgg16/block4_pool': 'block4_pool'}, ['On layers of vgg16:'])
    >>> shortened(["vgg16/top", "vgg16/top+xception/top"])  # doctest: +NORMALIZE_WHITESPACE
    ({'vgg16/top': 'A/top', 'vgg16/top+xception/top': 'A/top+B/top'},
     ['On layers of these backbones (after --tap type the name, such as vgg16/top, not the letter):',
      '  A  vgg16', '  B  xception'])
    """
    layers_of: dict[str, list[tuple[str, str]]] = {}  # {tap: (backbone, layer) of its parts}
    for tap in taps:
        layers_of[tap] = []
        for part in tap.split("+"):
            backbone, _, layer = part.strip().rpartition("/")
            layers_of[tap].append((backbone, layer))
    all_layers = list(chain.from_iterable(layers_of.values()))
    backbones = list(dict.fromkeys(backbone for backbone, _ in all_layers))
    if len(backbones) == 1:
        letters = {backbones[0]: ""}
        lines = [f"On layers of {backbones[0]}:"]
    else:
        letters = dict(zip(backbones, ascii_uppercase, strict=False))  # after 26 the names stay as they are
        example = "/".join(all_layers[0])
        lines = [f"On layers of these backbones (after --tap type the name, such as {example}, not the letter):"]
        lines += [f"  {letters.get(name, name)}  {name}" for name in backbones]

    short_names: dict[str, str] = {}
    for tap, layers in layers_of.items():
        parts = [f"{letters.get(backbone, backbone)}/{layer}".lstrip("/") for backbone, layer in layers]
        short_names[tap] = "+".join(parts)
    return short_names, lines


def text_report(run: Run, final: Mapping[str, Score] | None = None, has_test: bool = True) -> str:
    """Return what was done, the best trials, and the final scores if the test split was opened."""
    settings = run.settings
    how = settings.selection.describe()
    lines = [
        f"Run {run.path}",
        f"{counted(len(run.classes), 'class')}, {counted(run.num_train, 'training image')}, "
        f"chosen on {counted(run.num_select, 'image')} by {how}.",
        f"{counted(len(run.trials), 'trial')} in {run.seconds:.1f} s on the features of {settings.cache}",
        "",
        trials_table(run, limit=15),
        "",
        *_test_lines(run, final, has_test),
    ]
    reviewed = reviewed_text(run)
    if reviewed:
        lines.append(reviewed)
    return "\n".join(lines)


def _test_lines(run: Run, final: Mapping[str, Score] | None, has_test: bool) -> list[str]:
    """Return the final scores with notes on them, or why there are none."""
    looks = run.looks()
    if final is None:
        if not has_test:
            return ["There is no test split: these scores are of the images that chose. Expect less on new ones."]
        if looks:
            return [f"The test split was opened {looks_text(run)} before; --final shows its scores."]
        head = "" if run.refitted is None else "@refit"
        report = f"featcache report {quote(f'{run.path}{head}')} --final"
        return [f"The test split was not read. When everything is decided: {report}"]

    opened = run.test_opened[-1] if run.test_opened else {}
    images = ""
    if num_images := opened.get("num_images"):
        images = f", {counted(num_images, 'image')}"
    rows = [[name, interval(*score)] for name, score in final.items()]
    lines = [table([f"on the test split{images}", f"{run.settings.metric} [95 %]"], rows)]
    if left_out := opened.get("left_out"):
        lines.append(f"{left_out} test images are not counted: they trained or chose the backbone.")
    if unjudged := opened.get("unjudged"):
        lines.append(unjudged_text(unjudged, len(run.classes), "test"))
    if len(looks) > 1:
        lines.append(f"The test split was opened {looks_text(run)}: the more looks, the less it proves.")
    if only_in_run := opened.get("only_in_run"):
        lines.append(f"This look is recorded in {run.path} only, not beside the cache. {only_in_run}")
    return lines


def class_table(classes: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the recall of each class on the test split, worst first. classes: {model: `Evaluation.per_class`}.

    Several models stand side by side; the last one, fine-tuned if any is, sets the order. In a narrow terminal letters
    stand for the models, and if that is not enough, the intervals are left out.
    """
    scores_of_models = list(classes.values())

    def recall_of_last(number: int) -> float:
        recall = scores_of_models[-1][number]["recall"]
        return 2.0 if recall is None else float(recall.value)  # classes without test images come last

    num_classes = len(scores_of_models[0])
    order = sorted(range(num_classes), key=recall_of_last)
    shown = order[:MOST_CLASSES]
    header = ["test class", "images", *(f"recall of {name}" for name in classes)]
    rows = _class_rows(scores_of_models, shown, has_intervals=True)
    lines: list[str] = []
    if not _fits_with_short_names(header, rows):
        letters = dict(zip(classes, ascii_uppercase, strict=False))  # after 26 the names stay as they are
        header = ["test class", "images", *(letters.get(name, name) for name in classes)]
        has_intervals = _fits_with_short_names(header, rows)
        rows = _class_rows(scores_of_models, shown, has_intervals)
        lines.append("Recall of:" if has_intervals else "Recall, without the intervals that --json has, of:")
        lines += [f"  {letter}  {printable(name)}" for name, letter in letters.items()]
    lines.append(table(header, rows))
    num_hidden = num_classes - len(rows)
    if num_hidden:
        lines.append(f"{num_hidden} more, none with a lower recall: --json and --html have all.")
    return "\n".join(lines)


def _class_rows(
    scores_of_models: Sequence[Sequence[Mapping[str, Any]]], shown: Sequence[int], has_intervals: bool
) -> list[list[object]]:
    """Return name, number of images and recall by each model of the classes with these numbers."""
    rows: list[list[object]] = []
    for number in shown:
        first = scores_of_models[0][number]
        row = [first["name"], first["images"]]
        for scores in scores_of_models:
            recall = scores[number]["recall"]
            if recall is None:
                row.append("-")
            else:
                row.append(interval(*recall) if has_intervals else f"{recall[0]:.3f}")
        rows.append(row)
    return rows


def _fits_with_short_names(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bool:
    """Return whether a table fits into the terminal if names of classes are folded, but no short ones."""
    return fits(header, [[str(name)[:NARROW], *cells] for name, *cells in rows])


def looks_text(run: Run) -> str:
    """Return how often the test split of a run's cache was opened, and by which runs if others opened it, too.

    Looks at other test images count, too: the cache may have gained some since.
    """
    looks = run.looks()
    text = counted(len(looks), "time")
    runs = list(dict.fromkeys(str(look.get("run", run.path)) for look in looks))
    if set(runs) - {str(run.path), str(run.path.resolve())}:
        names = [printable(Path(path).name) for path in runs]
        text += f" ({', '.join(names)})"
    digests = {look["images"] for look in looks if "images" in look}
    if len(digests) > 1:
        text += ", in part with other images or labels in it"
    return text


def reviewed_text(run: Run) -> str:
    """Return a sentence on test labels that a review changed, before or after the first look at test; "" if none."""
    reviews = run.test_reviews()
    looks = run.looks()
    if not reviews:
        return ""
    times = [str(look["at"]) for look in looks if "at" in look]
    num_later = 0
    if times:
        num_later = sum(review.at > min(times) for review in reviews)
    after = f", {num_later} of them after it was first opened" if num_later else ""
    images = "1 test image was" if len(reviews) == 1 else f"{len(reviews)} test images were"
    return f"By a review of labels {images} changed or dropped{after}: scores on test depend on these decisions."


def _notes(run: Run) -> list[str]:
    notes = ties(run)
    without_probabilities = [str(trial.trial) for trial in run.ranked if trial.log_loss is None]
    if without_probabilities:
        trials = ", ".join(without_probabilities)
        notes.append(f"Trials that only name a class, so that no probabilities are calibrated: {trials}.")
    unconverged = [str(trial.trial) for trial in run.trials if not trial.converged]
    if unconverged:
        notes.append(f"{len(unconverged)} of {len(run.trials)} did not converge: {', '.join(unconverged)}.")
    notes += [*_small_data(run), *_small_sets(run)]
    num_dropped = sum(trial.dropped for trial in run.trials)
    if num_dropped:
        notes.append(f"{num_dropped} of {len(run.trials)} were dropped to keep within {run.settings.budget:g} s.")
    if len(run.trials) < run.planned:
        notes.append(f"{len(run.trials)} of {run.planned} are done; the command that began the run goes on with it.")
    return [*notes, *failures(run)]


def unjudged_text(unjudged: Sequence[str], num_classes: int, images: str) -> str:
    """Return which classes the scores leave out. images: "training" if folds chose, "validation" or "test".

    >>> unjudged_text(["x", "y"], 13, "test")
    '2 of 13 classes have no test image and are not judged: x, y. Scores are about the other 11.'
    """
    num_unjudged = len(unjudged)
    cause = "too few training images to leave one out" if images == "training" else f"no {images} image"
    names = ", ".join(map(printable, unjudged[:MOST_NAMES]))
    if num_unjudged > MOST_NAMES:
        names += f" and {num_unjudged - MOST_NAMES} more"
    others = f"Scores are about the other {num_classes - num_unjudged}."
    return f"{num_unjudged} of {num_classes} classes have {cause} and are not judged: {names}. {others}"


def _small_data(run: Run) -> list[str]:
    """Return notes on few images, and on classes without images."""
    notes: list[str] = []
    is_within_train = run.settings.selection.is_within_train
    if run.num_select < FEW_SELECT:
        # Runs of earlier versions have heads that nothing calibrated: their temperature is exactly 1.
        is_calibrated = all(trial.temperature != 1 for trial in run.ranked if trial.log_loss is not None)
        note = f"Only {counted(run.num_select, 'image')} chose"
        if is_calibrated:
            note += " and calibrated the probabilities"
        if not is_within_train and run.num_train > run.num_select and _can_leave_out(run):
            sweep = f"featcache sweep {quote(run.settings.cache)} --cv 5"
            notes.append(f"{note}. To choose on {run.num_train}: {sweep}")
        else:
            notes.append(f"{note}.")
    shots = run.settings.shots
    if shots is not None:
        chose = "" if is_within_train else f", and at most {counted(shots, 'validation image')} chose"
        notes.append(f"At most {counted(shots, 'image')} per class trained{chose} (--shots).")
    if run.settings.train_views:
        notes.append(
            "Heads were fitted on all cached views of each training image; the images that chose stayed as they are "
            "(--train-views)."
        )
    if run.unjudged:
        notes.append(unjudged_text(run.unjudged, len(run.classes), "training" if is_within_train else "validation"))
    return notes


def _can_leave_out(run: Run) -> bool:
    """Return whether cross-validation is possible, as far as is known: see `sweeps.unseen`."""
    try:
        cache = run.cache()
    except DataError:
        return True
    train = run.rows(cache, "train")
    obstacles = [why_not_left_out(cache, train, tap) for tap in run.fingerprints]
    return not any(obstacles)


def _small_sets(run: Run) -> list[str]:
    """Return the mean and standard deviation over draws of each small training set, a line each."""
    scores: dict[tuple[str, int], list[float]] = {}
    for trial in run.trials:
        if trial.few is None or trial.status != "ok":
            continue
        shots, _ = trial.few
        settings = settings_of(replace(trial, few=None))
        scores.setdefault((f"{trial.head} {settings}".strip(), shots), []).append(trial.judged.value)
    lines: list[str] = []
    for (name, shots), values in sorted(scores.items()):
        mean = np.mean(values)
        std = np.std(values, ddof=min(1, len(values) - 1))  # a single draw has no spread: 0, not NaN
        lines.append(f"{shots} per class, {name}: {mean:.3f} +- {std:.3f} over {len(values)} draws")
    return lines
