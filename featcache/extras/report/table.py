"""A run as text: its trials, what there is to know of them, and the final scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from string import ascii_uppercase
from typing import Any

import numpy as np

from featcache.errors import DataError
from featcache.heads.steps import NONE, STANDARDISE
from featcache.sweeps import Run, Trial
from featcache.sweeps.metrics import Score
from featcache.sweeps.run import LOO, spelt
from featcache.sweeps.unseen import why_not_left_out
from featcache.text import counted, fits, interval, printable, table

NAMED = 8  # classes that a note names; --json has all
MOST_CLASSES = 20  # of which the recall on test is printed; --json has all
FEW_SELECT = 100  # validation images below which their choice is mostly chance


def trials_table(run: Run, limit: int | None = None) -> str:
    """Return the trials of a run, best first, and a line on ties and failures."""
    ranked = run.ranked
    folds = any(trial.std is not None for trial in ranked)
    columns: dict[str, Callable[[Trial], object]] = {
        "trial": lambda trial: trial.trial,
        "tap": lambda trial: trial.tap,
        "width": lambda trial: trial.width,
        "head": lambda trial: trial.head,
        "setting": settings_of,
        f"{run.settings.metric} [95 %]": lambda trial: interval(*trial.judged),
        "std": lambda trial: "-" if trial.std is None else f"{trial.std:.3f}",
        "fit s": lambda trial: f"{trial.fit_s:.2f}",
        "MB": lambda trial: f"{trial.size / 1e6:.2f}" if trial.size else "-",
        "handoff": lambda trial: "exact" if trial.handoff else "taught",
    }
    one_tap = len({trial.tap for trial in ranked}) == 1
    left_out = [*([] if folds else ["std"]), *(["tap", "width"] if one_tap else [])]
    shown = {name: cell for name, cell in columns.items() if name not in left_out}
    if limit is not None and len(ranked) == limit + 1:
        limit = None  # a line that says "1 more" takes as much room as the trial
    rows = [[cell(trial) for cell in shown.values()] for trial in ranked[:limit]]
    where = [f"On {ranked[0].tap}, {counted(ranked[0].width, 'feature')}:"] if one_tap else []
    if not one_tap and not fits(list(shown), rows):
        short, where = shortened(dict.fromkeys(trial.tap for trial in ranked))
        rows = [[row[0], short[str(row[1])], *row[2:]] for row in rows]
    more = len(ranked) - len(rows)
    rest = [f"{more} more: featcache show {quote(str(run.path))}"] if more else []
    spare = [name for name in ("MB", "width", "std", "fit s", "handoff") if name in shown]
    return "\n".join([*where, table(list(shown), rows, spare=spare), *rest, *_notes(run)])


def shortened(taps: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return {tap: its name without the backbone, or with a letter for it}, and the lines that say so.

    >>> shortened(["vgg16/top", "vgg16/block4_pool"])
    ({'vgg16/top': 'top', 'vgg16/block4_pool': 'block4_pool'}, ['On layers of vgg16:'])
    >>> shortened(["vgg16/top", "vgg16/top+xception/top"])
    ({'vgg16/top': 'A/top', 'vgg16/top+xception/top': 'A/top+B/top'}, ['On layers of:', '  A  vgg16', '  B  xception'])
    """
    parts = {tap: [part.strip().rpartition("/") for part in tap.split("+")] for tap in taps}
    backbones = list(dict.fromkeys(backbone for some in parts.values() for backbone, _, _ in some))
    letters = dict(zip(backbones, ascii_uppercase, strict=False))
    if len(backbones) == 1:
        lines, letters = [f"On layers of {backbones[0]}:"], {backbones[0]: ""}
    else:
        lines = ["On layers of:", *(f"  {letters.get(name, name)}  {name}" for name in backbones)]
    return {
        tap: "+".join(f"{letters.get(name, name)}/{layer}".lstrip("/") for name, _, layer in some)
        for tap, some in parts.items()
    }, lines


def trial_fields(trial: Trial) -> dict[str, object]:
    """Return what there is to know of one trial, as a person reads it."""
    facts: dict[str, object] = {
        "trial": trial.trial,
        "tap": trial.tap,
        "width": trial.width,
        "head": trial.head,
        "setting": settings_of(trial),
        "status": trial.status,
    }
    if trial.status != "ok":
        return facts
    facts["score"] = interval(*trial.judged)
    if trial.std is not None:
        facts["std"] = f"{trial.std:.3f}"
    known = {name: value for name, value in trial.scores.items() if value is not None}
    return facts | {
        "scores": ", ".join(f"{name} {value:.3f}" for name, value in known.items()),
        "temperature": f"{trial.temperature:.3g}",
        "fit s": f"{trial.fit_s:.2f}",
        "MB": f"{trial.size / 1e6:.2f}" if trial.size else None,
        "handoff": "exact" if trial.handoff else "taught",
        "converged": trial.converged,
    }


def text_report(run: Run, final: Mapping[str, Score] | None = None, has_test: bool = True) -> str:
    """Return what was done, the best trials, and the final scores if the test split was opened."""
    settings = run.settings
    how = "the validation split"
    if settings.cv:
        how = "leaving one out" if settings.cv == LOO else f"{settings.cv}-fold cross-validation within train"
    lines = [
        f"Run {run.path}",
        f"{counted(len(run.classes), 'class')}, {counted(run.num_train, 'training image')}, "
        f"chosen on {counted(run.num_select, 'image')} by {how}.",
        f"{counted(len(run.trials), 'trial')} in {run.seconds:.1f} s on the features of {settings.cache}",
        "",
        trials_table(run, limit=15),
        "",
    ]
    looks, reviewed = run.looks(), reviewed_text(run)
    if final is not None:
        rows = [[name, interval(*found)] for name, found in final.items()]
        lines += [table(["on the test split", f"{settings.metric} [95 %]"], rows)]
        if left_out := run.test_opened[-1].get("left_out"):
            lines += [f"{left_out} test images are not counted: they trained or chose the backbone."]
        if unjudged := run.test_opened[-1].get("unjudged"):
            lines += [unjudged_text(unjudged, len(run.classes), "test")]
        if len(looks) > 1:
            lines += [f"The test split was opened {looks_text(run)}: the more looks, the less it proves."]
        only_in_run = run.test_opened[-1].get("only_in_run") if run.test_opened else None
        if only_in_run:
            lines += [f"This look is recorded in {run.path} only, not beside the cache. {only_in_run}"]
    elif not has_test:
        lines += ["There is no test split: these scores are of the images that chose. Expect less on new ones."]
    elif looks:
        lines += [f"The test split was opened {looks_text(run)} before; --final shows what it says."]
    else:
        head = "" if run.refitted is None else "@refit"
        report = f"featcache report {quote(f'{run.path}{head}')} --final"
        lines += [f"The test split was not read. When everything is decided: {report}"]
    lines += [reviewed] if reviewed else []
    return "\n".join(lines)


def class_table(classes: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the recall of each class on the test split, worst first. classes: {model: `Judged.per_class`}.

    Several models stand side by side; the last, which is fine-tuned where there is one, decides the order.
    """

    def worst_first(at: int) -> float:
        recall = list(classes.values())[-1][at]["recall"]
        return 2.0 if recall is None else float(recall.value)

    num_classes = len(next(iter(classes.values())))
    order = sorted(range(num_classes), key=worst_first)
    rows = []
    for at in order[:MOST_CLASSES]:
        of_models = [of_classes[at] for of_classes in classes.values()]
        recalls = ["-" if one["recall"] is None else interval(*one["recall"]) for one in of_models]
        rows.append([of_models[0]["name"], of_models[0]["images"], *recalls])
    more = num_classes - len(rows)
    rest = [f"{more} more, none with a lower recall: --json and --html have all."] if more else []
    header = ["test class", "images", *(f"recall of {name}" for name in classes)]
    return "\n".join([table(header, rows), *rest])


def looks_text(run: Run) -> str:
    """Return how often the test split of a run's cache was opened, and by which runs if not only by this one.

    Looks at other test images count too: a cache may have got more of them since.
    """
    looks = run.looks()
    text = f"{len(looks)} time{'' if len(looks) == 1 else 's'}"
    runs = {str(look.get("run", run.path)): None for look in looks}
    if set(runs) - {str(run.path), str(run.path.resolve())}:
        text += f" ({', '.join(printable(Path(path).name) for path in runs)})"
    others = {look["images"] for look in looks if "images" in look}
    return f"{text}, in part with other images or labels in it" if len(others) > 1 else text


def reviewed_text(run: Run) -> str:
    """Return a sentence on test labels that a review changed, before or after somebody looked at test; "" if none."""
    reviews, looks = run.test_reviews(), run.looks()
    if not reviews:
        return ""
    first_look = min((str(look["at"]) for look in looks if "at" in look), default="")
    num_later = sum(bool(first_look) and review.at > first_look for review in reviews)
    after = f", {num_later} of them after it was first opened" if num_later else ""
    images = "1 test image was" if len(reviews) == 1 else f"{len(reviews)} test images were"
    return f"By a review of labels {images} changed or dropped{after}: scores on test depend on these decisions."


def settings_of(trial: Trial) -> str:
    """Return on one line what a trial was trained with: parameters, steps before, and how few images."""
    said = [f"{key}={spelt(value)}" for key, value in trial.params.items() if key != "hidden"]
    if trial.prepare != STANDARDISE:
        said += ["not standardised" if trial.prepare == NONE else f"after {trial.prepare}"]
    said += ["{} per class, seed {}".format(*trial.few)] if trial.few else []
    return " ".join(said)


def _notes(run: Run) -> list[str]:
    ranked = run.ranked
    notes = []
    if ranked:
        best = ranked[0]
        _, low, high = best.judged
        ties = [trial for trial in ranked[1:] if low <= trial.judged.value <= high]
        equal = [trial for trial in ties if trial.score == best.score]
        if equal:
            notes.append(
                f"{len(equal) + 1} trials tie at {best.score:.4f}; best is the simplest kind, then the lower log loss."
            )
        if ranked[1:]:
            notes.append(f"Within the best one's interval: {len(ties)} of {counted(len(ranked) - 1, 'other trial')}.")
    silent = [str(trial.trial) for trial in ranked if trial.log_loss is None]
    if silent:
        notes.append(f"Trials that only name a class, so that no probabilities are calibrated: {', '.join(silent)}.")
    slow = [trial for trial in run.trials if not trial.converged]
    if slow:
        notes.append(
            f"{len(slow)} of {len(run.trials)} did not converge: {', '.join(str(trial.trial) for trial in slow)}."
        )
    notes += [*_on_images(run), *_small_sets(run)]
    dropped = sum(trial.dropped for trial in run.trials)
    if dropped:
        notes.append(f"{dropped} of {len(run.trials)} were dropped to keep within {run.settings.budget:g} s.")
    if len(run.trials) < run.planned:
        notes.append(f"{len(run.trials)} of {run.planned} are done; the command that began the run goes on with it.")
    return [*notes, *_failures(run)]


def unjudged_text(unjudged: Sequence[str], num_classes: int, images: str) -> str:
    """Return what scores say nothing about. images: "training" where folds chose, "validation" or "test".

    >>> unjudged_text(["x", "y"], 13, "test")
    '2 of 13 classes have no test image and are not judged: x, y. Scores are about the other 11.'
    """
    cause = "too few training images to leave one out" if images == "training" else f"no {images} image"
    names = ", ".join(map(printable, unjudged[:NAMED]))
    more = f" and {len(unjudged) - NAMED} more" if len(unjudged) > NAMED else ""
    others = f"Scores are about the other {num_classes - len(unjudged)}."
    return f"{len(unjudged)} of {num_classes} classes have {cause} and are not judged: {names}{more}. {others}"


def _on_images(run: Run) -> list[str]:
    """Return what to know of the images that trained and chose: how few they are, and which classes they lack."""
    notes = []
    if run.num_select < FEW_SELECT:
        # Runs of earlier versions have heads that nothing calibrated: their temperature is exactly 1.
        is_calibrated = all(trial.temperature != 1 for trial in run.ranked if trial.log_loss is not None)
        calibrated = " and calibrated the probabilities" if is_calibrated else ""
        text = f"Only {counted(run.num_select, 'image')} chose{calibrated}"
        may_be_more = run.settings.cv is None and run.num_train > run.num_select and _can_leave_out(run)
        more = f" To choose on {run.num_train}: featcache sweep {quote(run.settings.cache)} --cv 5"
        notes.append(f"{text}.{more if may_be_more else ''}")
    if run.settings.shots is not None:
        chose = "" if run.settings.cv else f", and at most {counted(run.settings.shots, 'validation image')} chose"
        notes.append(f"At most {counted(run.settings.shots, 'image')} per class trained{chose} (--shots).")
    if run.unjudged:
        notes.append(unjudged_text(run.unjudged, len(run.classes), "training" if run.settings.cv else "validation"))
    return notes


def _can_leave_out(run: Run) -> bool:
    """Tell whether cross-validation would tell something, as far as one can see: see `sweeps.unseen`."""
    try:
        cache = run.cache()
    except DataError:
        return True
    train = run.rows(cache, "train")
    return not any(why_not_left_out(cache, train, tap) for tap in run.fingerprints)


def _failures(run: Run) -> list[str]:
    """Return why trials failed, a line for each reason."""
    alike: dict[tuple[str, str], list[str]] = {}
    for trial in run.trials:
        if trial.failed:
            alike.setdefault((trial.head, trial.status), []).append(str(trial.trial))
    return [
        f"Trial{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} ({head}) failed: {status}"
        for (head, status), numbers in alike.items()
    ]


def _small_sets(run: Run) -> list[str]:
    """Return the mean and standard deviation over draws of each small training set, a line each."""
    scores: dict[tuple[str, int], list[float]] = {}
    for trial in run.trials:
        if trial.few is not None and trial.status == "ok":
            name = f"{trial.head} {settings_of(replace(trial, few=None))}"
            scores.setdefault((name, trial.few[0]), []).append(trial.judged.value)
    return [
        f"{shots} per class, {name.strip()}: {np.mean(found):.3f} +- {np.std(found, ddof=min(1, len(found) - 1)):.3f} "
        f"over {len(found)} draws"
        for (name, shots), found in sorted(scores.items())
    ]
