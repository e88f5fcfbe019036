"""The main job in one go, on tiny images with random weights."""

import json

import pytest
from tiny import TOY, write_images

from featcache.extras.main_job import quickstart
from featcache.models import load_model
from featcache.sweeps import Run

LINES = [
    "raw pixels + logistic regression",
    "random weights + best head",
    "frozen features + best head",
    "fine-tuned from the best head",
    "trained from scratch, equal time",
]


@pytest.mark.slow
def test_the_main_job_ends_in_a_table_of_ten_lines(tmp_path):
    parts = []
    photos = write_images(tmp_path / "photos", per_class=24)
    done = quickstart(photos, tmp_path / "out", backbone=TOY, seen=parts.append)
    kinds = ["Images", "Extracted", "Run", "Certificate", "Tuned", "Compared", "Compared"]
    assert [type(part).__name__ for part in parts] == kinds
    assert [line.name for line in done.table] == LINES * 2
    assert [line.train_images for line in done.table] == [done.run.num_train] * 5 + [15] * 5
    for line in done.table:
        assert 0 <= line.interval[0] <= line.test_score <= line.interval[1] <= 1
        assert line.seconds > 0
    assert done.judged_on == "test"
    assert done.model.certificate.passed
    assert done.tuned.best.val.value >= done.tuned.start.val.value
    assert done.head.trial.handoff
    for name in ("head.keras", "model.keras", "model-5-per-class.keras"):
        load_model(done.folder / name)
    for folder in (done.folder / "runs").iterdir():
        assert len(Run.open(folder).test_opened) == 1, folder
    assert len(done.run.looks()) == 2  # one table, once with all training images and once with a few
    json.dumps([line.__dict__ for line in done.table])


@pytest.mark.slow
def test_small_classes_have_no_few_shot_half_and_a_second_run_computes_nothing(tmp_path):
    root = write_images(tmp_path / "photos", per_class=6)
    done = quickstart(root, tmp_path / "out", backbone=TOY, split="60/40")
    assert [line.name for line in done.table] == LINES
    assert done.judged_on == "val"  # no test split
    assert all(Run.open(folder).test_opened == () for folder in (done.folder / "runs").iterdir())
    again = quickstart(root, tmp_path / "out", backbone=TOY, split="60/40")
    assert (again.extracted.hits, again.extracted.computed) == (18, 0)
    assert [line.test_score for line in again.table[:4]] == [line.test_score for line in done.table[:4]]
