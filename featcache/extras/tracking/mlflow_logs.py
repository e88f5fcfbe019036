"""Log a sweep to MLflow: a parent run with the best head, and a child run for every trial."""

from __future__ import annotations

import logging
import math
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from featcache.errors import EnvironmentFault, FeatcacheError, UsageError
from featcache.extras.tracking.tensorboard_logs import hparams, scores_of
from featcache.files import check_writable
from featcache.spec import Progress, Tick, silent
from featcache.sweeps import Run
from featcache.sweeps.run_paths import head_file

EXPERIMENT = "featcache"
PORTS = {"http": 80, "https": 443}
CONNECTING_S = 10
LONGEST = 6000  # most characters of a parameter that MLflow takes


def log_to_mlflow(run: Run, uri: str, progress: Progress = silent) -> str:
    """Log the trials, with the best head, run.json and trials.csv as artifacts; return the ID of MLflow's run.

    uri: of the tracking server or store, such as http://localhost:5000 or sqlite:///mlflow.db.
    Raises EnvironmentFault if mlflow is missing or the store cannot be used, UsageError if the run is there already.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise EnvironmentFault(f"`mlflow` needs it ({error}): pip install 'featcache[mlflow]'") from error
    _check_store(uri)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's warnings are about its own libraries
        try:
            return _log_run(MlflowClient(tracking_uri=uri), run, uri, progress)
        except FeatcacheError:
            raise
        except (MlflowException, *_store_errors()) as error:
            reason, _, _ = str(error).partition("[SQL")  # what follows is the whole statement
            raise EnvironmentFault(f"`mlflow={uri}`: {' '.join(reason.split())[:300]}") from error


def _check_store(uri: str) -> None:
    """Raise DiskFault or EnvironmentFault if a database cannot be written, or no server is named or answers.

    MLflow would try again and again for minutes.
    """
    try:
        address = urlsplit(uri)
    except ValueError as error:
        raise EnvironmentFault(
            f"`mlflow={uri}` is not an address ({error}). Give one, such as http://localhost:5000"
        ) from error
    if address.scheme.startswith("sqlite") and address.path:
        check_writable(Path(address.path.removeprefix("/")))  # sqlite:///mlflow.db, sqlite:////home/me/mlflow.db
    if address.scheme in PORTS and not address.hostname:
        raise EnvironmentFault(f"`mlflow={uri}` names no server. Give one, such as http://localhost:5000")
    if address.scheme in PORTS and address.scheme not in getproxies():
        try:
            port = address.port or PORTS[address.scheme]
            socket.create_connection((address.hostname, port), timeout=CONNECTING_S).close()
        except (OSError, ValueError) as error:
            raise EnvironmentFault(f"`mlflow={uri}`: no server answers there ({error})") from error


def _store_errors() -> tuple[type[Exception], ...]:
    """Return the errors of stores that MLflow passes on, such as a full disk or a damaged database."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return (OSError,)
    return OSError, SQLAlchemyError


def _log_run(client: Any, run: Run, uri: str, progress: Progress) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
    name = str(run.path.resolve())
    quoted_name = name.replace("'", "\\'")
    earlier = client.search_runs([experiment_id], f"tags.`featcache.run` = '{quoted_name}'", max_results=1)
    if earlier:
        raise UsageError(
            f"{run.path} is in {uri} already, as {earlier[0].info.run_id}. Delete it there to log it again"
        )

    best = run.best.trial
    metric = run.settings.metric
    settings: dict[str, Any] = {}
    for key, value in asdict(run.settings).items():
        if value not in (None, ()):
            settings[key] = ",".join(value) if isinstance(value, tuple) else value
    tags = {
        "best": str(best.trial),
        "classes": str(len(run.classes)),
        "train_images": str(run.num_train),
        "select_images": str(run.num_select),
    }
    with _mlflow_run(client, experiment_id, run.path.name) as parent:
        _log_batch(client, parent, settings, scores_of(best, metric), tags)
        child_of_parent = {"mlflow.parentRunId": parent}
        ranked = run.ranked
        for number, trial in enumerate(ranked, start=1):
            with _mlflow_run(client, experiment_id, f"trial {trial.trial}", child_of_parent) as child:
                _log_batch(client, child, hparams(trial), scores_of(trial, metric), {})
            progress(Tick("mlflow", number, len(ranked)))
        for name_of_file in ("run.json", "trials.csv"):
            client.log_artifact(parent, str(run.path / name_of_file))
        head = head_file(run.path, best.trial)
        for file in head.parent.glob(f"{head.stem}.*"):
            client.log_artifact(parent, str(file), artifact_path="head")
        # Last, so that a run that was stopped halfway does not count as logged.
        client.set_tag(parent, "featcache.run", name)
    return parent


@contextmanager
def _mlflow_run(client: Any, experiment: str, name: str, tags: dict[str, str] | None = None) -> Iterator[str]:
    """Give the ID of a new run in MLflow, which ends as FINISHED, FAILED or KILLED (Ctrl-C), as the block does."""
    run_id = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    try:
        yield run_id
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with suppress(Exception):  # the store itself may have failed; the first error is the one to report
            client.set_terminated(run_id, status=status)
        raise
    client.set_terminated(run_id)


def _log_batch(
    client: Any, run_id: str, params: dict[str, Any], scores: dict[str, float], tags: dict[str, str]
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    finite_scores = {name: score for name, score in scores.items() if math.isfinite(score)}
    client.log_batch(
        run_id,
        metrics=[Metric(name, score, now, 0) for name, score in finite_scores.items()],
        params=[Param(name, str(value)[:LONGEST]) for name, value in params.items()],
        tags=[RunTag(f"featcache.{name}", value) for name, value in tags.items()],
    )
