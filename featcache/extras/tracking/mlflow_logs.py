"""A sweep in MLflow: one run of it with the best head, and below it one for every trial."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from featcache.errors import EnvironmentFault, FeatcacheError, UsageError
from featcache.extras.tracking.tensorboard_logs import hparams, scores_of
from featcache.spec import Progress, Tick, silent
from featcache.sweeps import Run
from featcache.sweeps.run_paths import head_file

EXPERIMENT = "featcache"
LONGEST = 6000  # characters of a parameter that MLflow takes


def log_to_mlflow(run: Run, uri: str, progress: Progress = silent) -> str:
    """Log the trials, and as artifacts the best head with run.json and trials.csv; return the ID of MLflow's run.

    uri: of the tracking server or store, such as http://localhost:5000 or sqlite:///mlflow.db.
    Raises EnvironmentFault without mlflow or if the store cannot be used, UsageError if the run was logged there.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise EnvironmentFault(f"--mlflow needs it ({error}): pip install 'featcache[mlflow]'") from error
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what MLflow warns of is between it and its libraries
        try:
            return _logged(MlflowClient(tracking_uri=uri), run, uri, progress)
        except FeatcacheError:
            raise
        except (MlflowException, *_of_stores()) as error:
            raise EnvironmentFault(
                f"--mlflow {uri}: {' '.join(str(error).partition('[SQL')[0].split())[:300]}"
            ) from error


def _of_stores() -> tuple[type[Exception], ...]:
    """Return what stores raise that MLflow passes on: a full disk, a database that is none."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return (OSError,)
    return OSError, SQLAlchemyError


def _logged(client: Any, run: Run, uri: str, progress: Progress) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = client.create_experiment(EXPERIMENT) if found is None else found.experiment_id
    name = str(run.path.resolve())
    there = client.search_runs([experiment], f"tags.`featcache.run` = '{_quoted(name)}'", max_results=1)
    if there:
        raise UsageError(f"{run.path} is in {uri} already, as {there[0].info.run_id}. Delete it there to log it again")
    best, ranked = run.best.trial, run.ranked
    settings = {key: value for key, value in asdict(run.settings).items() if value not in (None, ())}
    settings = {key: ",".join(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    tags = {"best": str(best.trial), **_classes(run)}
    with _mlflow_run(client, experiment, run.path.name) as parent:
        _batch(client, parent, settings, scores_of(best, run.settings.metric), tags)
        for number, trial in enumerate(ranked, start=1):
            with _mlflow_run(client, experiment, f"trial {trial.trial}", {"mlflow.parentRunId": parent}) as child:
                _batch(client, child, hparams(trial), scores_of(trial, run.settings.metric), {})
            progress(Tick("mlflow", number, len(ranked)))
        head = head_file(run.path, best.trial)
        for file in [run.path / "run.json", run.path / "trials.csv", *head.parent.glob(f"{head.stem}.*")]:
            client.log_artifact(parent, str(file), artifact_path="head" if file.parent == head.parent else None)
        client.set_tag(parent, "featcache.run", name)  # last: one that was stopped is not taken for whole
    return parent


@contextmanager
def _mlflow_run(client: Any, experiment: str, name: str, tags: dict[str, str] | None = None) -> Iterator[str]:
    """Give the ID of a new run in MLflow, which ends as FINISHED, FAILED or KILLED (Ctrl-C), as the block does."""
    run_id = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    try:
        yield run_id
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with suppress(Exception):  # the store may be what failed; what is told is the first error
            client.set_terminated(run_id, status=status)
        raise
    client.set_terminated(run_id)


def _batch(client: Any, run_id: str, params: dict[str, Any], scores: dict[str, float], tags: dict[str, str]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in scores.items() if math.isfinite(value)],
        params=[Param(name, str(value)[:LONGEST]) for name, value in params.items()],
        tags=[RunTag(f"featcache.{name}", value) for name, value in tags.items()],
    )


def _classes(run: Run) -> dict[str, str]:
    return {"classes": str(len(run.classes)), "train_images": str(run.num_train), "select_images": str(run.num_select)}


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")
