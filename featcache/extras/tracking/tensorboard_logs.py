"""A sweep as TensorBoard shows it: scores, the settings of every trial (HParams), and the features (projector).

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
from featcache.extras.tracking.projector import points_of, write_projector
from featcache.files import place_folder, temporary_folder
from featcache.heads.estimators import family_of
from featcache.images.manifest import Images
from featcache.models import image_source
from featcache.outputs import Kind, check_output
from featcache.spec import Progress, Tick, silent
from featcache.sweeps import Run, Trial

OF_LOGS = re.compile(  # what `write_tensorboard` writes, in the folder of a run
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
    """Write the logs of a run below a folder, all of them or none; return the folder of its own.

    The projector shows the training and validation images, in the features that the best head reads.
    images: where they lie now, if not where they were extracted from. force: replace what lies in the run's place,
    even if it is no earlier log of this kind.
    Raises EnvironmentFault without tensorboard, UsageError if something else lies there, ImagesChanged.
    """
    try:
        from tensorboard.plugins.hparams import summary_v2 as api
    except ImportError as error:
        raise EnvironmentFault(f"--tensorboard needs it ({error}): pip install 'featcache[tensorboard]'") from error
    target = folder / run.path.name
    cache = run.cache()
    check_output(
        target,
        LOGS,
        inputs=[run.path, cache.path],
        around=[image_source(run.best, images).location or cache.root],
        force=force,
    )
    points = points_of(run.best, images)
    scored = run.ranked
    metrics = list(dict.fromkeys([run.settings.metric, *(name for trial in scored for name in trial.scores), "fit_s"]))
    config = api.hparams_config_pb(_domains(map(hparams, scored)), [api.Metric(name) for name in metrics])
    with temporary_folder(beside=target) as made:
        _write(made, [config])
        for number, trial in enumerate(scored, start=1):
            _write(made / "trials" / str(trial.trial), _session(trial, run.settings.metric))
            progress(Tick("tensorboard", number, len(scored)))
        write_projector(made, points)
        place_folder(made, target)
    return target


def is_logs(folder: Path) -> bool:
    """Return whether a folder holds logs that `write_tensorboard` wrote, and nothing else."""
    entries = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return any(folder.glob("events.out.tfevents.*.featcache")) and all(map(OF_LOGS.fullmatch, entries))


LOGS = Kind("log of featcache for TensorBoard", is_logs, is_folder=True)


def hparams(trial: Trial) -> dict[str, Any]:
    """Return the settings of a trial by name: those of its head as `--grid` calls them.

    Of a trial on few images also how many of each class these are (shots), and the seed that drew them (draw).
    """
    family = family_of(trial.head).name
    found: dict[str, Any] = {"head": trial.head, "tap": trial.tap, "prepare": trial.prepare}
    found |= {} if trial.few is None else dict(zip(("shots", "draw"), trial.few, strict=True))
    return found | {f"{family}.{name}": value for name, value in trial.params.items() if name != "hidden"}


def scores_of(trial: Trial, metric: str) -> dict[str, float]:
    """Return the scores of a trial by every metric, the interval of the one that chose, and the seconds of its fit."""
    found = {metric: trial.score, **trial.scores, "fit_s": trial.fit_s}
    found |= dict(zip((f"{metric}_low", f"{metric}_high"), trial.interval or (), strict=False))
    return {name: float(value) for name, value in found.items() if value is not None}


def _domains(settings: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return what values every setting has: from lowest to highest of numbers, else one by one."""
    from tensorboard.plugins.hparams import summary_v2 as api

    values: dict[str, set[Any]] = {}
    for one in settings:
        for name, value in one.items():
            values.setdefault(name, set()).add(value if _is_number(value) else str(value))
    return [
        api.HParam(
            name,
            api.RealInterval(float(min(some)), float(max(some)))
            if all(map(_is_number, some))
            else api.Discrete(sorted(map(str, some))),
        )
        for name, some in values.items()
    ]


def _session(trial: Trial, metric: str) -> list[Any]:
    """Return the summaries of one trial: its settings, its scores, and that it has ended."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.plugins.hparams import summary_v2 as api
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    settings = {name: float(value) if _is_number(value) else str(value) for name, value in hparams(trial).items()}
    ended = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    return [
        api.hparams_pb(settings, trial_id=f"trial {trial.trial}"),
        *(scalar_pb(name, value) for name, value in scores_of(trial, metric).items()),
        api._summary_pb(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=ended)),
    ]


def _write(folder: Path, summaries: Iterable[Any]) -> None:
    """Write a file of events. TensorBoard's own writer of files would import TensorFlow first."""
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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
