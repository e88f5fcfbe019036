"""A sweep for TensorBoard and MLflow, read back by what these tools read it with."""

import errno
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from featcache.errors import EnvironmentFault, ImagesChanged, UsageError
from featcache.extras.tracking.mlflow_logs import log_to_mlflow
from featcache.extras.tracking.projector import THUMBNAIL, Points, sprite, write_projector
from featcache.extras.tracking.tensorboard_logs import hparams, write_tensorboard
from featcache.images.decode import decode
from featcache.spec import ImageRow, Preprocess
from featcache.sweeps import sweep


@pytest.fixture(scope="module")
def logs(toy_run, tmp_path_factory):
    """Return the folder of the run's logs. Do not change it."""
    return write_tensorboard(toy_run, tmp_path_factory.mktemp("logs"))


def test_every_trial_is_a_session_with_its_settings_and_scores(logs, toy_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    def hparams_of(folder, tag):
        events = EventAccumulator(str(folder)).Reload()
        return events, events.SummaryMetadata(tag).plugin_data.content

    for trial in toy_run.trials:
        events, content = hparams_of(logs / "trials" / str(trial.trial), metadata.SESSION_START_INFO_TAG)
        settings = metadata.parse_session_start_info_plugin_data(content).hparams
        settings_of_trial = {name: value.number_value or value.string_value for name, value in settings.items()}
        assert settings_of_trial == hparams(trial)
        assert [event.step for event in events.Tensors("accuracy")] == [0]
        assert events.Tensors("accuracy")[0].tensor_proto.float_val[0] == pytest.approx(trial.score)
        _, content = hparams_of(logs / "trials" / str(trial.trial), metadata.SESSION_END_INFO_TAG)
        assert metadata.parse_session_end_info_plugin_data(content).status
    _, content = hparams_of(logs, metadata.EXPERIMENT_TAG)
    experiment = metadata.parse_experiment_plugin_data(content)
    ranges = {info.name: info.domain_interval for info in experiment.hparam_infos if info.HasField("domain_interval")}
    assert (ranges["ridge.alpha"].min_value, ranges["ridge.alpha"].max_value) == (1.0, 10000.0)
    assert "accuracy" in [info.name.tag for info in experiment.metric_infos]


def test_the_projector_shows_images_of_train_and_val_with_their_features(logs, toy_run):
    features = np.loadtxt(logs / "features.tsv", delimiter="\t")
    header, *lines = (logs / "metadata.tsv").read_text().splitlines()
    assert header == "label\tsplit\tpath"
    cache = toy_run.cache()
    rows = {row.path: row for row in cache.rows}
    shown = [rows[line.split("\t")[2]] for line in lines]
    assert [(row.label, row.split) for row in shown] == [tuple(line.split("\t")[:2]) for line in lines]
    assert {row.split for row in shown} == {"train", "val"}
    assert len(shown) == sum(row.split != "test" for row in cache.rows)
    np.testing.assert_allclose(features, toy_run.best.features(shown), rtol=1e-5, atol=1e-6)
    sheet = np.asarray(Image.open(logs / "images.png"))
    columns = sheet.shape[1] // THUMBNAIL
    for at in (0, columns + 1, len(shown) - 1):
        top, left = (THUMBNAIL * place for place in divmod(at, columns))
        pixels = decode((cache.root / shown[at].path).read_bytes(), Preprocess(THUMBNAIL, resize="crop"))
        np.testing.assert_array_equal(sheet[top : top + THUMBNAIL, left : left + THUMBNAIL], pixels)


def test_names_are_written_as_utf8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("io.text_encoding", lambda encoding, level=2: encoding or "ascii")
    row = ImageRow("blüte.png", "Gänseblümchen", "", "train", "0" * 64)
    write_projector(tmp_path, Points("a/top", [row], np.zeros((1, 2)), np.zeros((1, 4, 4, 3), np.uint8)))
    assert "Gänseblümchen\ttrain\tblüte.png" in (tmp_path / "metadata.tsv").read_text("utf-8")


def test_trials_that_differ_in_their_images_alone_differ_in_their_settings(toy, tmp_path):
    run = sweep(toy, preset="fewshot", taps=["pixels:size=8/top"], out=tmp_path / "run")
    settings = [hparams(trial) for trial in run.ranked]
    assert {(setting["shots"], setting["draw"]) for setting in settings} == {trial.few for trial in run.ranked}
    assert all(settings.count(setting) == 1 for setting in settings)


def test_sheets_of_thumbnails_are_square():
    for count in (1, 2, 5, 9):
        side = int(np.ceil(count**0.5)) * 4
        assert sprite(np.zeros((count, 4, 4, 3), np.uint8)).size == (side, side)


@pytest.mark.slow
def test_writing_for_tensorboard_imports_no_tensorflow(toy_run, tmp_path):
    code = (
        "import sys; from pathlib import Path; from featcache.sweeps import Run\n"
        "from featcache.extras.tracking.tensorboard_logs import write_tensorboard\n"
        f"write_tensorboard(Run.open({str(toy_run.path)!r}), Path({str(tmp_path)!r}))\n"
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_logs_that_are_there_are_not_mixed_with_new_ones(toy_run, tmp_path):
    for _ in range(2):
        logs = write_tensorboard(toy_run, tmp_path)
        assert len(list(logs.glob("events.out.tfevents.*"))) == 1
    assert len(list(logs.glob("trials/*/events.out.tfevents.*"))) == len(toy_run.ranked)


def test_a_folder_of_the_user_in_the_place_of_logs_is_kept(toy_run, tmp_path):
    mine = tmp_path / toy_run.path.name / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UsageError, match=r"is there already and is no log of featcache for TensorBoard, so it is kept"):
        write_tensorboard(toy_run, tmp_path)
    assert mine.read_text() == "mine"


def test_images_that_have_moved_are_asked_for_before_anything_is_written(toy_run, tmp_path, monkeypatch):
    photos = shutil.copytree(toy_run.cache().root, tmp_path / "elsewhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(ImagesChanged, match="`images=FOLDER`"):
        write_tensorboard(toy_run, tmp_path / "logs", tmp_path / "none")
    assert not (tmp_path / "logs").exists()
    assert (write_tensorboard(toy_run, tmp_path / "logs", photos) / "images.png").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_logs_that_were_not_finished_are_not_there_and_are_written_the_next_time(toy_run, tmp_path, error):
    def stop(tick):
        if tick.done == 3:
            raise error

    with pytest.raises(type(error)):
        write_tensorboard(toy_run, tmp_path / "logs", progress=stop)
    assert list((tmp_path / "logs").iterdir()) == []
    written = write_tensorboard(toy_run, tmp_path / "logs")
    assert len(list((written / "trials").iterdir())) == len(toy_run.ranked)


@pytest.mark.parametrize(
    ("module", "write", "extra"),
    [
        ("tensorboard.plugins.hparams", lambda run, to: write_tensorboard(run, to), r"featcache\[tensorboard\]"),
        ("mlflow", lambda run, to: log_to_mlflow(run, str(to)), r"featcache\[mlflow\]"),
    ],
)
def test_a_missing_library_names_the_extra_to_install(module, write, extra, toy_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentFault, match=f"pip install '{extra}'"):
        write(toy_run, tmp_path / "logs")


@pytest.mark.parametrize("store", ["file", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_mlflow_finds_the_trials_below_the_run_and_the_best_head(store, toy_run, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path}/mlruns" if store == "file" else f"sqlite:///{tmp_path}/mlflow.db"
    run_id = log_to_mlflow(toy_run, uri)
    client, best = MlflowClient(tracking_uri=uri), toy_run.best.trial
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == (toy_run.path.name, "FINISHED")
    assert run.data.metrics["accuracy"] == best.score
    assert (run.data.params["heads"], run.data.tags["featcache.best"]) == (
        ",".join(toy_run.settings.heads),
        str(best.trial),
    )
    assert {artifact.path for artifact in client.list_artifacts(run_id)} == {"head", "run.json", "trials.csv"}
    [head] = client.list_artifacts(run_id, "head")
    stored = (tmp_path / client.download_artifacts(run_id, head.path, str(tmp_path))).read_bytes()
    assert stored == (toy_run.path / "heads" / f"{best.trial}.npz").read_bytes()
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert len(children) == len(toy_run.trials)
    named = {child.info.run_name: child.data for child in children}
    assert named[f"trial {best.trial}"].params == {name: str(value) for name, value in hparams(best).items()}
    with pytest.raises(UsageError, match=f"already, as {run_id}"):
        log_to_mlflow(toy_run, uri)


@pytest.mark.parametrize(("error", "status"), [(OSError("full"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_logging_to_mlflow_that_is_stopped_runs_no_longer_and_can_be_done_again(
    error, status, toy_run, tmp_path, monkeypatch
):
    from mlflow import MlflowClient

    def stop(tick):
        if tick.done == 2:
            raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path}/mlruns"
    with pytest.raises((EnvironmentFault, KeyboardInterrupt)):
        log_to_mlflow(toy_run, uri, progress=stop)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("featcache").experiment_id
    ended = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    assert ended.pop(toy_run.path.name) == status
    assert set(ended.values()) == {"FINISHED"}
    assert client.get_run(log_to_mlflow(toy_run, uri)).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nonsense://x", r"^`mlflow=nonsense://x`: "),
        ("sqlite:////dev/null/m.db", r"^Cannot make the folder /dev/null: .* Choose another place$"),
        ("http://127.0.0.1:9", r"^`mlflow=http://127.0.0.1:9`: no server answers there \(.*refused\)"),
        ("http://127.0.0.1:port", r"^`mlflow=http://127.0.0.1:port`: no server answers there \(Port could not"),
        ("http://[::1", r"^`mlflow=http://\[::1` is not an address \(Invalid IPv6 URL\)\. Give one"),
        ("http://", r"^`mlflow=http://` names no server\. Give one"),
    ],
)
def test_a_store_that_mlflow_cannot_use_is_an_error_in_one_line(uri, message, toy_run):
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match=message):
        log_to_mlflow(toy_run, uri)
    assert time.monotonic() - began < 60  # MLflow itself tries for minutes


@pytest.fixture
def server(logs, tmp_path):
    """Return a function that asks a real TensorBoard that shows the logs."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs.parent), "--host", "127.0.0.1"]
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen([*command, "--port", "0", "--load_fast", "false"], stdout=file, stderr=file)
    try:
        yield lambda path, body=None: _ask(_address(output), path, body)
    finally:
        process.terminate()
        process.wait()


def _address(output):
    for _ in range(120):
        address = re.search(r"http://127\S+", output.read_text())
        if address:
            return address[0]
        time.sleep(0.5)
    pytest.fail(f"TensorBoard did not start: {output.read_text()}")


def _ask(address, path, body):
    asked = urllib.request.Request(f"{address}data/plugin/{path}", headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, None if body is None else json.dumps(body).encode(), timeout=30) as answer:
        return answer.read()


@pytest.mark.slow
def test_a_real_tensorboard_shows_trials_and_features(server, logs, toy_run):
    asked = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "startIndex": 0, "sliceSize": 100}
    for _ in range(60):
        groups = json.loads(server("hparams/session_groups", asked)).get("sessionGroups", [])
        if len(groups) == len(toy_run.trials):
            break
        time.sleep(0.5)  # it reads in the background
    groups_by_name = {group["name"]: group for group in groups}
    assert groups_by_name.keys() == {f"trial {trial.trial}" for trial in toy_run.trials}
    for trial in toy_run.trials:
        scores = {
            value["name"]["tag"]: value["value"] for value in groups_by_name[f"trial {trial.trial}"]["metricValues"]
        }
        assert scores["accuracy"] == pytest.approx(trial.score)
    assert json.loads(server("projector/runs")) == [logs.name]
    [shown] = json.loads(server(f"projector/info?run={logs.name}"))["embeddings"]
    assert shown["tensorShape"] == [sum(row.split != "test" for row in toy_run.cache().rows), 256]
    assert server(f"projector/sprite_image?run={logs.name}&name={shown['tensorName']}")[:4] == b"\x89PNG"
