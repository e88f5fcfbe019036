"""Log a sweep to TensorBoard: scores, the settings of every trial (HParams), and the features (projector).

FOLDER/RUN/                 the experiment; projector_config.pbtxt, features.tsv, metadata.tsv, images.png
FOLDER/RUN/trials/NUMBER/   one session per trial: its settings, its scores at step 0
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from featcache.errors import EnvironmentFault
from featcache.extras.report.figures import is_number
from featcache.extras.tracking.projector import points_of, write_projector
from featcache.files import place_folder, temporary_folder
from featcache.heads.estimators import family_of
from featcache.images.manifest import Images
from featcache.models import image_source
from featcache.outputs import Kind, check_output
from featcache.spec import Progress, Tick, silent
from featcache.sweeps import Run, Trial

LOG_ENTRY = re.compile(  # paths that `write_tensorboard` writes in the folder of a run
    r"(trials/\d+/)?events\.out\.tfevents\.\d+\.featcache|trials(/\d+)?"
    r"|projector_config\.pbtxt|features\.tsv|metadata\.tsv|images\.png"
)


def write_tensorboard(
    run: Run,
    folder: Path,
    images: Images | str | Path | None = None,
    progress: Progress = silent,
    *,
    force: bool = False,
) -> Path:
    """Write the logs of a run to FOLDER/RUN, all of them or none; return FOLDER/RUN.

    The projector shows the training and validation images, by the features that the best head reads.
    images: where the images lie now, if they have moved. force: replace what lies there even if it is no earlier log.
    Raises EnvironmentFault if tensorboard is missing, UsageError if something else lies there, ImagesChanged.
    """
    try:
        from tensorboard.plugins.hparams import summary_v2 as api
    except ImportError as error:
        raise EnvironmentFault(f"`tensorboard` needs it ({error}): pip install 'featcache[tensorboard]'") from error
    target = folder / run.path.name
    cache = run.cache()
    folder_of_images = image_source(run.best, images).location or cache.root
    check_output(target, LOGS, inputs=[run.path, cache.path], around=[folder_of_images], force=force)
    points = points_of(run.best, images)
    ranked = run.ranked
    metrics: dict[str, None] = {run.settings.metric: None}  # in the order in which TensorBoard shows them
    for trial in ranked:
        metrics.update(dict.fromkeys(trial.scores))
    metrics["fit_s"] = None
    domains = _domains(map(hparams, ranked))
    config = api.hparams_config_pb(domains, [api.Metric(name) for name in metrics])
    with temporary_folder(beside=target) as temporary:
        _write(temporary, [config])
        for number, trial in enumerate(ranked, start=1):
            _write(temporary / "trials" / str(trial.trial), _session(trial, run.settings.metric))
            progress(Tick("tensorboard", number, len(ranked)))
        write_projector(temporary, points)
        place_folder(temporary, target)
    return target


def is_logs(folder: Path) -> bool:
    """Return whether a folder holds logs that `write_tensorboard` wrote, and nothing else."""
    if not any(folder.glob("events.out.tfevents.*.featcache")):
        return False
    entries = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return all(map(LOG_ENTRY.fullmatch, entries))


LOGS = Kind("log of featcache for TensorBoard", is_logs, is_folder=True)


def hparams(trial: Trial) -> dict[str, Any]:
    """Return {setting: value} of a trial; parameters of its head have the names that `--grid` takes.

    A trial on few images has two more: images per class (shots), and the seed that drew them (draw).
    """
    settings: dict[str, Any] = {"head": trial.head, "tap": trial.tap, "prepare": trial.prepare}
    if trial.few is not None:
        settings["shots"], settings["draw"] = trial.few
    family = family_of(trial.head).name
    for name, value in trial.params.items():
        if name != "hidden":
            settings[f"{family}.{name}"] = value
    return settings


def scores_of(trial: Trial, metric: str) -> dict[str, float]:
    """Return {metric: score} of a trial, with the interval of the metric that chose and the seconds of the fit."""
    scores = {metric: trial.score, **trial.scores, "fit_s": trial.fit_s}
    if trial.interval:
        low, high = trial.interval
        scores |= {f"{metric}_low": low, f"{metric}_high": high}
    return {name: float(score) for name, score in scores.items() if score is not None}


def _domains(settings: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the domain of every setting: an interval if all its values are numbers, else the list of them."""
    from tensorboard.plugins.hparams import summary_v2 as api

    values_of: dict[str, set[Any]] = {}
    for settings_of_trial in settings:
        for name, value in settings_of_trial.items():
            # As text, because a value may be a list, which no set takes.
            values_of.setdefault(name, set()).add(value if is_number(value) else str(value))
    domains: list[Any] = []
    for name, values in values_of.items():
        if all(map(is_number, values)):
            domain = api.RealInterval(float(min(values)), float(max(values)))
        else:
            domain = api.Discrete(sorted(map(str, values)))
        domains.append(api.HParam(name, domain))
    return domains


def _session(trial: Trial, metric: str) -> list[Any]:
    """Return the summaries of one trial: its settings, its scores, and its end, without which it shows as running."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.plugins.hparams import summary_v2 as api
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    settings: dict[str, float | str] = {}
    for name, value in hparams(trial).items():
        settings[name] = float(value) if is_number(value) else str(value)
    summaries = [api.hparams_pb(settings, trial_id=f"trial {trial.trial}")]
    for name, score in scores_of(trial, metric).items():
        summaries.append(scalar_pb(name, score))
    ended = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    end = plugin_data_pb2.HParamsPluginData(session_end_info=ended)
    return [*summaries, api._summary_pb(metadata.SESSION_END_INFO_TAG, end)]


def _write(folder: Path, summaries: Iterable[Any]) -> None:
    """Write a file of events. TensorBoard's own file writer would import TensorFlow first."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    events += [Event(wall_time=now, step=0, summary=summary) for summary in summaries]
    with (folder / f"events.out.tfevents.{now:.0f}.featcache").open("wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
