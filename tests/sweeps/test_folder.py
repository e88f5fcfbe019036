"""The folder of a run: whose it is from the beginning, after a kill at any point, and what replaces it."""

import errno
import json
import os
import shutil
import threading
from dataclasses import replace

import pytest

from featcache.cache.layout import looks_beside
from featcache.errors import DataError, DiskFault, NotARun, UsageError
from featcache.sweeps import Run, sweep, writer
from featcache.sweeps.records import LOOKS, TUNED, write_record

from ..cache.disk import Disk, grow
from .conftest import TAP, edited

ASKED = {"heads": "ridge", "taps": [TAP], "jobs": 1, "grid": {"ridge": {"alpha": [1.0, 100.0]}}}


@pytest.fixture
def photos(hard, tmp_path):
    """Return a cache in a folder of its own."""
    return edited(hard, tmp_path / "disk" / "photos.h5", lambda file: None)


def timeless(run):
    return [replace(trial, fit_s=0.0) for trial in run.trials]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_run_json_is_the_first_file_in_the_folder_of_a_run(photos):
    disk = Disk(photos.path.parent)
    with disk.watching():
        sweep(photos, **ASKED)
    renamed = [effect[2] for effect in disk.log if effect[0] == "rename"]
    assert renamed[0] == "photos.run/run.json"
    assert any(name.startswith("photos.run/heads/") for name in renamed)


def test_after_a_kill_at_any_point_the_same_sweep_goes_on_in_its_folder(photos, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    root = photos.path.parent
    disk = Disk(root)
    with disk.watching():
        whole = sweep(photos, **ASKED)
    states = {}
    for at in range(len(disk.log) + 1):
        for share in (0.0, 0.5):
            files = disk.after_kill(at, share)
            states[repr({name: "" if ".tmp-" in name else content for name, content in files.items()})] = files
    assert len(states) > 20
    for files in states.values():
        shutil.rmtree(root)
        grow(root, files)
        kept = Run.open(whole.path).trials if (whole.path / "run.json").exists() else ()
        again = sweep(photos.path, **ASKED)
        assert again.path == whole.path
        assert timeless(again) == timeless(whole)
        assert set(map(repr, kept)) <= set(map(repr, again.trials))  # with their seconds: not fitted again
        assert names(root) == ["photos.h5", "photos.run"]
        assert [path for path in root.rglob("*") if path.name.startswith((".tmp-", ".lock"))] == []


def test_every_group_of_trials_of_a_short_sweep_is_written_at_once(photos, monkeypatch):
    monkeypatch.setattr(writer, "SAVE_SHARE", 1e9)  # however long writing takes on this machine
    seen = []
    keep = writer.Writer.add

    def add(self, trials):
        keep(self, trials)
        seen.append((len(self.run.trials), len(Run.open(self.run.path).trials)))

    monkeypatch.setattr(writer.Writer, "add", add)
    sweep(photos, "ridge,knn", taps=[TAP], jobs=1)
    assert seen
    assert all(done == written for done, written in seen)


@pytest.mark.parametrize("litter", [[], [".lock"], [".tmp-elsewhere-1+4194305+00000000+00000000"]])
def test_an_empty_folder_that_a_kill_left_is_used(litter, photos):
    folder = photos.path.with_name("photos.run")
    folder.mkdir()
    for name in litter:
        (folder / name).write_bytes(b"")
    assert sweep(photos, **ASKED).path == folder


def test_a_folder_of_something_else_is_not_used(photos):
    folder = photos.path.with_name("photos.run")
    folder.mkdir()
    (folder / "trials.csv").write_text("mine")
    assert sweep(photos, **ASKED).path.name == "photos-2.run"
    for force in (False, True):
        with pytest.raises(UsageError, match=r"photos\.run is there already and is no run: it holds trials\.csv"):
            sweep(photos, **ASKED, out=folder, force=force)
    assert names(folder) == ["trials.csv"]


def test_a_sweep_that_ends_before_its_first_trial_leaves_no_folder(photos, monkeypatch):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("featcache.sweeps.trials.make_tap_data", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep(photos, **ASKED)
    assert names(photos.path.parent) == ["photos.h5"]


def test_force_replaces_the_files_of_another_sweep_and_nothing_else(photos):
    out = photos.path.with_name("daily.run")
    sweep(photos, "ridge,logreg", taps=[TAP], out=out)
    look = {"at": "2026-01-01T00:00:00+00:00", "run": str(out), "scores": {}}
    for folder in (out / LOOKS, looks_beside(photos.path)):
        write_record(folder / "test-x.json", look)
    write_record(out / TUNED / "x.json", {"file": "x.keras", "at": ""})
    (out / "heads" / "notes.txt").write_text("mine")
    (out / "finetuned.keras").write_text("a model")
    with pytest.raises(UsageError, match=r"daily\.run holds a run already, with other heads.*`force=True` replaces it"):
        sweep(photos, "knn", taps=[TAP], out=out)
    run = sweep(photos, "knn", taps=[TAP], out=out, force=True)
    fresh = sweep(photos, "knn", taps=[TAP], out=photos.path.with_name("fresh.run"))
    assert timeless(Run.open(out)) == timeless(run) == timeless(fresh)
    assert run.best.estimator is not None
    assert names(out / "heads") == ["notes.txt"]  # neighbours are not stored
    assert names(out / "predictions") == names(fresh.path / "predictions")
    assert (out / "finetuned.keras").read_text() == "a model"
    assert Run.open(out).tuned == ()
    assert [one["record"] for one in Run.open(out).looks()] == ["test-x.json"]
    assert len(fresh.looks()) == 1


def test_force_replaces_a_run_whose_images_have_changed(photos):
    out = photos.path.with_name("daily.run")
    sweep(photos, **ASKED, out=out, shots=5)
    assert sweep(photos, **ASKED, out=out, shots=7, force=True).num_train == 21
    assert Run.open(out).num_train == 21


def test_force_goes_on_with_the_same_sweep(photos):
    out = photos.path.with_name("daily.run")
    before = sweep(photos, **ASKED, out=out)
    assert sweep(photos, **ASKED, out=out, force=True) == before


def test_force_replaces_a_damaged_run_but_not_a_run_json_of_others(photos):
    out = photos.path.with_name("daily.run")
    sweep(photos, **ASKED, out=out)
    whole = (out / "run.json").read_bytes()
    (out / "run.json").write_bytes(whole[:-100])
    with pytest.raises(NotARun):
        sweep(photos, **ASKED, out=out)
    assert sweep(photos, **ASKED, out=out, force=True).trials
    (out / "run.json").write_text(json.dumps({"project": "of another program"}))
    with pytest.raises(DataError, match=r"run\.json"):
        sweep(photos, **ASKED, out=out, force=True)
    assert "project" in (out / "run.json").read_text()


def test_force_without_a_name_is_refused(photos):
    with pytest.raises(UsageError, match="`force` goes with `out`"):
        sweep(photos, **ASKED, force=True)


def test_sweeps_at_once_without_locks_have_a_folder_each_and_whole_runs(photos, monkeypatch):
    def refused(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    runs = []
    asked = [{**ASKED, "seed": seed} for seed in (0, 1)]
    threads = [threading.Thread(target=lambda how=how: runs.append(sweep(photos, **how))) for how in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.path.name for run in runs} == {"photos.run", "photos-2.run"}
    assert {Run.open(run.path).settings.seed for run in runs} == {0, 1}
    assert all(Run.open(run.path).trials == run.trials for run in runs)


def test_the_same_sweep_twice_at_once_without_locks_is_not_corrupt(photos, monkeypatch):
    monkeypatch.setattr(writer, "locked", unlocked)
    whole = sweep(photos, **ASKED, out=photos.path.with_name("whole.run"))
    out = photos.path.with_name("both.run")
    threads = [threading.Thread(target=lambda: sweep(photos, **ASKED, out=out)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run = Run.open(out)
    assert timeless(run) == timeless(whole)
    X, _ = photos.arrays("val", TAP)
    for trial in run.trials:
        assert (run[trial.trial].estimator.predict(X) == whole[trial.trial].estimator.predict(X)).all()


class unlocked:
    """A lock of a file system that has none."""

    def __init__(self, file, busy):
        pass

    def __enter__(self):
        return False

    def __exit__(self, *error):
        return None


def test_streamed_features_for_which_the_disk_has_no_room_are_one_line(photos, monkeypatch):
    def full(handle, start, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFault, match=r"Cannot keep 0 MB of features .*No space left on device\. Free some space"):
        sweep(photos, "ridge", taps=[TAP], memory=1.0)
    assert names(photos.path.parent) == ["photos.h5"]


def test_a_run_that_is_written_again_does_not_take_over_what_has_records(photos):
    out = photos.path.with_name("daily.run")
    run = sweep(photos, **ASKED, out=out)
    replace(run, tuned=("old.keras",)).save()  # as earlier versions wrote it
    record = out / TUNED / "x.json"
    write_record(record, {"file": "x.keras", "at": ""})
    Run.open(out).save()
    assert Run.open(out).tuned == ("old.keras", "x.keras")
    record.unlink()
    assert Run.open(out).tuned == ("old.keras",)


def test_a_run_that_could_not_be_replaced_keeps_its_records(photos, monkeypatch):
    out = photos.path.with_name("daily.run")
    sweep(photos, **ASKED, out=out)
    write_record(out / TUNED / "x.json", {"file": "x.keras", "at": ""})

    def fails(self, *, replaces=True):
        raise DiskFault("full")

    with monkeypatch.context() as patched:
        patched.setattr(Run, "save", fails)
        with pytest.raises(DiskFault):
            sweep(photos, "knn", taps=[TAP], out=out, force=True)
    assert Run.open(out).tuned == ("x.keras",)


def test_writing_that_is_slow_is_done_rarely(photos, monkeypatch):
    monkeypatch.setattr(writer, "SAVE_SHARE", 1e-9)  # as if writing took long
    saves = []
    save = Run.save

    def counted(self, *, replaces=True):
        saves.append(len(self.trials))
        save(self, replaces=replaces)

    monkeypatch.setattr(Run, "save", counted)
    run = sweep(photos, "ridge,knn", taps=[TAP], jobs=1)
    assert saves[-1] == len(run.trials)
    assert len(saves) <= 3  # begun, the first group, the end
