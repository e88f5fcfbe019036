"""The page of a run stands alone, shows what is known and nothing of test, and what users named is text."""

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import COLOURS, write_images

from featcache.errors import ImagesChanged, NotARun
from featcache.extraction import extract
from featcache.extras.report import checks, figures
from featcache.extras.report.embedding import places
from featcache.extras.report.final import open_test
from featcache.extras.report.html import write_report
from featcache.extras.report.pictures import SHEET_BYTES, sheet
from featcache.extras.report.tuned_models import TunedModel, best_of, tuned_lines
from featcache.files import file_digest, write_arrays, write_sealed
from featcache.sweeps import Run, sweep
from featcache.sweeps.metrics import Predictions, wilson
from featcache.sweeps.records import predictions_of, write_record
from featcache.tuning import finetune

NASTY = ["<script>alert(1)<", 'it\'s "q" & $x$', "two\nlines", "caf\udce9"]

PREDICTS_ALONE = """
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
class First(ClassifierMixin, BaseEstimator):
    def fit(self, X, y): self.classes_ = np.unique(y); return self
    def predict(self, X): return np.zeros(len(X), int)
"""


@pytest.fixture
def run(own_run):
    """Return a run to change."""
    return own_run


def points(page):
    """Return what the map shows, as the page's script reads it."""
    return json.loads(re.search(r'id="map-data">(.*?)</script>', page, re.S)[1])["points"]


def page_of(run, **options):
    return write_report(run, **options).read_text()


@pytest.mark.slow
def test_the_page_needs_no_network_and_runs_only_its_own_script(run):
    page = page_of(run)
    assert (run.path / "report.html").exists()
    assert re.findall(r"""(?:src|href)=["'](?!data:image/|#)""", page) == []
    assert "url(http" not in page
    policy = re.search(r'Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'$", policy)
    assert page.count("<script") == 2  # the data of the map, and the one whose digest is in the policy


@pytest.mark.slow
def test_the_page_is_made_without_keras(run):
    code = (
        "import sys; from featcache.sweeps import Run; from featcache.extras.report.html import write_report\n"
        f"write_report(Run.open({str(run.path)!r})); print({{'keras', 'tensorflow'}} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_page_has_every_trial_and_class(run, toy):
    page = page_of(run)
    assert page.count('<tr><td class="n">') == len(run.ranked)
    for name in toy.classes:
        assert f"<td>{name}</td>" in page
    for head in ("ridge", "logreg", "svm"):
        assert f"accuracy of {head} against" in page


def test_a_curve_joins_trials_that_differ_only_in_strength(run, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "curves", lambda lines, x, y, **how: drawn.update({lines[0].name: (x, lines)}) or "")
    figures.of_scores(run, run.cache())
    axis, [line] = drawn["logreg"]
    assert (axis, list(line.x)) == ("C", [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0])
    assert line.y == [
        next(trial.score for trial in run.trials if trial.params == {"C": c} and trial.head == "logreg") for c in line.x
    ]


def test_the_curves_share_one_scale_and_the_best_comes_first(run, monkeypatch):
    scales = []
    monkeypatch.setattr(figures, "curves", lambda *lines, limits, **how: scales.append(limits) or "")
    titles = [title for title, _ in figures.of_scores(run, run.cache())]
    heads = list(dict.fromkeys(trial.head for trial in run.ranked))
    drawn = [title.partition(": ")[0] for title in titles]
    assert drawn == [head for head in heads if head in drawn]
    assert len(drawn) > 2
    assert len(set(scales)) == 1
    low, high = scales[0]
    assert low < min(trial.judged.low for trial in run.ranked if trial.head in drawn)
    assert high > 1


def tune(run, trial, wrong, name="better.keras", epoch=2, mixture=None):
    """Record a model that was fine-tuned from a trial and takes so many validation images for another class."""
    cache = run.cache()
    truth = cache.labels(run.rows(cache, "val"))
    predicted = truth.copy()
    predicted[:wrong] = (predicted[:wrong] + 1) % len(run.classes)
    record = run.path / "tuned" / f"{Path(name).stem}.json"
    record.parent.mkdir(exist_ok=True)
    sure = np.full(len(truth), 0.9)
    write_arrays(predictions_of(record), {"predicted": predicted, "loss": 1 - sure, "confidence": sure})
    start = {"epoch": 0, "val": list(run[trial].trial.judged), "val_loss": 0.5, "train_loss": None, "mixture": None}
    best = {"epoch": epoch, "val": list(wilson(len(truth) - wrong, len(truth))), "val_loss": 0.1, "train_loss": 0.2}
    facts = {"flags": [], "controls": {}, "certificate": None}
    facts |= {"model": name, "file": name, "trial": trial, "metric": "accuracy", "unfrozen": "", "seconds": 1.0}
    history = [start, best | {"mixture": None}]
    if mixture is not None:
        best |= {"mixture": mixture}
        history.append(best)
    facts |= {"stopped": "", "best": best, "history": history, "at": ""}
    write_record(record, facts | {"predictions": file_digest(predictions_of(record))})
    return record


def weak_trial(run):
    return next(trial.trial for trial in run.trials if trial.score is not None and trial.score < 0.9)


@pytest.mark.slow
def test_the_page_is_about_the_fine_tuned_model_with_the_head_beside_it(run):
    assert run.best.trial.score == 1
    tune(run, weak_trial(run), wrong=0, name="other.keras")
    tune(run, run.best.trial.trial, wrong=0, mixture=0.3)
    page = page_of(run)
    assert re.search(r"Fine-tuned model <b>\w+\.keras</b>, epoch 2", page)
    assert "Best: epoch 2 x 0.3, accuracy" in page
    assert "(--wise-ft), by their share of the end: 0.3 has 1.000 [" in page
    assert f"Best head beside it: trial {run.best.trial.trial}" in page
    assert "The head: true classes (down)" in page
    assert ">fine-tuned, training</text>" in page  # the curve of the loss

    weak = run[weak_trial(run)]
    tune(run, weak.trial.trial, wrong=2)
    page = page_of(run, chosen=weak)
    assert f"Head beside it: trial {weak.trial.trial}" in page
    assert sum(point["verdict"] == "mistake" for point in points(page)) == 0  # of other.keras, from the same head
    (run.path / "tuned" / "other.json").unlink()
    page = page_of(run, chosen=weak)
    assert "Fine-tuned model <b>better.keras</b>" in page
    assert sum(point["verdict"] == "mistake" for point in points(page)) == 2
    mistakes = page[page.index("Most confident mistakes") : page.index("Least certain")]
    assert mistakes.count("<br>head: ") == 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["worse than the head", "the head itself", "predictions of another training"])
def test_the_page_is_about_the_head_where_no_fine_tuned_model_is_better(run, way):
    best = run.best.trial.trial
    if way == "worse than the head":
        tune(run, weak_trial(run), wrong=3)
    elif way == "the head itself":
        tune(run, best, wrong=0, epoch=0)
    else:
        record = tune(run, best, wrong=0)
        predictions_of(record).write_bytes(b"of a training that was killed before it wrote its record")
    page = page_of(run)
    assert "Fine-tuned model" not in page
    assert f"Best head: trial {best}" in page
    assert ("Its predictions are not stored" in page) == (way == "predictions of another training")


@pytest.mark.parametrize(("facts", "is_better"), [({}, False), ({"val_view": "tutorial-1"}, True)])
def test_a_model_that_augmented_images_judged_is_compared_with_the_head_on_images_as_they_are(facts, is_better):
    truth = np.array([0, 1, 1, 0])
    predictions = Predictions(truth, truth, loss=np.zeros(4), confidence=np.ones(4))
    best = {"epoch": 1, "val": [0.5, 0.2, 0.8], "val_loss": 0.7}
    model = TunedModel({"trial": 1, "metric": "accuracy", "best": best, **facts}, [], [], predictions)
    assert best_of([model], None, "accuracy", at_least=0.9) == (model if is_better else None)


@pytest.mark.slow
def test_each_class_is_judged_on_test_once_it_was_opened(run):
    assert "On the test split" not in page_of(run)
    final = open_test(run)
    page = page_of(final.run, final=final.scores, tested=final)
    section = page[page.index("<h3>On the test split</h3>") : page.index('<section id="images">')]
    [name] = final.predictions
    for row in final.classes[name]:
        value, low, high = row["recall"]
        assert re.search(rf"<td>{row['name']}</td>.*\n.*{value:.3f} \[{low:.3f}, {high:.3f}\]", section)
    assert sum(row["images"] for row in final.classes[name]) == len(final.rows)
    verdicts = [point["verdict"] for point in points(page) if point["split"] == "test"]
    assert len(verdicts) == len(final.rows)
    assert "not judged" not in verdicts


@pytest.mark.slow
def test_test_images_stay_hidden_until_they_are_opened(run, toy):
    hidden = {row.path for row in toy.usable("test")}
    before = page_of(run)
    assert hidden
    assert not any(path in before for path in hidden)
    tested = open_test(run)
    opened, scores = tested.run, tested.scores
    after = page_of(opened, final=scores)
    assert hidden <= {point["path"] for point in points(after)}
    assert "on the test split" in after
    assert "this page does not show it" in page_of(opened)


@pytest.mark.slow
def test_mistakes_are_those_of_the_head(run):
    weak = run[next(trial.trial for trial in run.trials if trial.score is not None and trial.score < 1)]
    shown = points(page_of(run, chosen=weak))
    wrong = sum(point["verdict"] == "mistake" for point in shown)
    assert wrong == round((1 - weak.trial.score) * run.num_select)
    assert sum(point["verdict"] != "not judged" for point in shown) == run.num_select


@pytest.mark.slow
def test_the_page_says_if_there_are_no_mistakes(run):
    assert run.best.trial.score == 1
    page = page_of(run)
    assert re.search(r"<h3>Most confident mistakes</h3>\s*<p>None\.</p>", page)


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """Return a run on classes and files with names that are no names."""
    root = tmp_path_factory.mktemp("nasty")
    rng = np.random.default_rng(0)
    for number, name in enumerate(NASTY):
        (root / "photos" / name).mkdir(parents=True)
        for at in range(8):
            pixels = (rng.random((12, 12, 3)) * 120 + 30 * number).astype(np.uint8)
            Image.fromarray(pixels).save(root / "photos" / name / f"{at}<img src=x onerror=alert(1)>.png")
    cache = extract(root / "photos", "pixels:size=8", out=root / "c.h5", split="60/40")
    return sweep(cache, "logreg", out=root / "run")


def test_names_of_users_are_text(nasty):
    page = write_report(nasty).read_bytes().decode()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert "$x$" in page
    assert "two\\nlines" in page
    assert "caf\\udce9" in page
    assert {point["class"] for point in points(page)} == {
        "<script>alert(1)<",
        'it\'s "q" & $x$',
        "two\\nlines",
        "caf\\udce9",
    }


def test_a_class_whose_name_cannot_be_printed_is_judged_as_any_other(nasty):
    shown = points(page_of(nasty))
    wrong = round((1 - nasty.best.trial.score) * nasty.num_select)
    assert sum(point["verdict"] == "mistake" for point in shown) == wrong
    assert {point["verdict"] for point in shown if point["class"] == "two\\nlines"} >= {"right"}


@pytest.mark.slow
def test_images_that_are_gone_leave_no_picture(toy_run, tmp_path):
    run = Run.open(shutil.copytree(toy_run.path, tmp_path / "run"))
    cache = run.cache()
    moved = tmp_path / "moved"
    shutil.copytree(cache.root, moved)
    shutil.copy(cache.path, tmp_path / "toy.h5")
    away = tmp_path / "away"
    facts = json.loads((run.path / "run.json").read_text())
    facts["settings"]["cache"] = str(tmp_path / "toy.h5")
    del facts["digest"]
    write_sealed(run.path / "run.json", facts)
    run = Run.open(run.path)
    cache.root.rename(away)
    try:
        assert "so there are no pictures" in page_of(run)
        assert "data:image/webp" in page_of(run, images=moved)
        with pytest.raises(ImagesChanged, match="There are no images at"):
            write_report(run, images=tmp_path / "nowhere")
        Image.new("RGB", (9, 9)).save(moved / next(iter(run.rows(cache, "train"))).path)
        assert "data:image/webp" in page_of(run, images=moved)  # one that is another now is grey
    finally:
        away.rename(cache.root)


@pytest.mark.slow
def test_an_archive_that_is_damaged_now_leaves_no_picture(tmp_path):
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", write_images(tmp_path / "photos", 16)))
    run = sweep(extract(archive, "pixels:size=8", out=tmp_path / "c.h5"), "ridge", out=tmp_path / "run")
    assert "data:image/webp" in page_of(run)
    archive.write_bytes(b"PK")
    assert "so there are no pictures" in page_of(run)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """Return a run whose test split has a copy of a training image, and a wrong label in train and in test."""
    root = tmp_path_factory.mktemp("copied")
    photos = root / "photos"
    write_images(photos / "train", 20)
    write_images(photos / "val", 6, first=30)
    write_images(photos / "test", 6, first=50)
    shutil.copy(photos / "train" / "red" / "003.png", photos / "test" / "red" / "copy.png")
    for split, name in (("train", "007.png"), ("test", "051.png")):
        shutil.move(photos / split / "red" / name, photos / split / "blue" / f"wrong-{name}")
    return sweep(extract(photos, "pixels:size=8", out=root / "c.h5"), "ridge", out=root / "run")


@pytest.mark.slow
def test_copies_and_wrong_labels_are_shown_but_no_label_of_test(copied):
    page = page_of(copied)
    assert "test is contaminated: 1 pair joins it" in page
    assert "test/red/copy.png<br>train/red/003.png" in page
    assert "train/blue/wrong-007.png" in page
    assert "test/blue/wrong-051.png" not in page
    tested = open_test(copied)
    opened, scores = tested.run, tested.scores
    assert "test/blue/wrong-051.png" in page_of(opened, final=scores)


@pytest.mark.slow
def test_doubts_outside_of_test_do_not_depend_on_test_labels(tmp_path):
    photos = write_images(tmp_path / "photos", 12)
    shutil.move(photos / "red" / "004.png", photos / "blue" / "0001.png")  # second, so in train
    files = sorted(path.relative_to(tmp_path) for path in photos.rglob("*.png"))

    def section(labels_of_test):
        rows = [
            f"{path},{labels_of_test.get(path.parent.name, path.parent.name) if at % 3 == 0 else path.parent.name},"
            f"{('test', 'train', 'val')[at % 3]}"
            for at, path in enumerate(files)
        ]
        (tmp_path / "photos.csv").write_text("\n".join(["path,label,split", *rows]))
        cache = extract(tmp_path / "photos.csv", "pixels:size=8", out=tmp_path / "c.h5")
        page = page_of(sweep(cache, "ridge", out=tmp_path / "run"), out=tmp_path / "report.html")
        shutil.rmtree(tmp_path / "run")
        return re.search(r'<section id="copies">.*?</section>', page, re.S)[0]

    assert "blue/0001.png" in section({})
    assert section({}) == section({"red": "green", "green": "blue", "blue": "red"})


@pytest.mark.slow
def test_copies_within_test_are_counted_but_not_shown(tmp_path):
    photos = tmp_path / "photos"
    for split, first in (("train", 0), ("val", 30), ("test", 50)):
        write_images(photos / split, 8, first=first)
    shutil.copy(photos / "test" / "red" / "053.png", photos / "test" / "red" / "copy.png")
    run = sweep(extract(photos, "pixels:size=8", out=tmp_path / "c.h5"), "ridge", out=tmp_path / "run")
    page = page_of(run)
    assert "copy.png" not in page
    assert "images show the same outside of test." in page
    assert "1 within test, not shown." in page
    tested = open_test(run)
    opened, scores = tested.run, tested.scores
    assert "test/red/053.png<br>test/red/copy.png" in page_of(opened, final=scores)


@pytest.mark.slow
def test_without_test_images_the_report_offers_no_test_scores(tmp_path):
    cache = extract(write_images(tmp_path / "photos", 6), "pixels:size=8", out=tmp_path / "c.h5", split="60/40")
    page = page_of(sweep(cache, "ridge", out=tmp_path / "run"))
    assert "There is no test split: these scores are of the images that chose" in page
    assert "--final" not in page


def test_a_page_of_many_images_says_how_to_look_for_copies(run, monkeypatch):
    monkeypatch.setattr(checks, "MOST_IMAGES", 10)
    assert (
        f"Not searched among 90 images, which would take minutes: featcache leaks {run.settings.cache} --labels"
        in page_of(run)
    )


@pytest.mark.slow
def test_a_run_that_was_stopped_says_so(run):
    shorter = replace(run, trials=run.trials[:4])
    shorter.save()
    assert f"The sweep was stopped: 4 of {run.planned} trials are done" in page_of(Run.open(run.path))
    replace(run, trials=()).save()
    page = page_of(Run.open(run.path))
    assert "No trial has a score yet" in page
    assert "featcache extract" in page


def test_the_text_names_the_models_that_were_fine_tuned_from_the_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("better.keras").touch()
    assert tuned_lines(run) == []
    tune(run, 2, wrong=0)
    tune(run, 3, wrong=1, name="same.keras", epoch=0)
    better, same = tuned_lines(run)
    head = run[2].trial.score
    assert better.startswith("Fine-tuned from head 2: better.keras, accuracy 1.000 [")
    assert better.endswith(f"] on the validation images (the head: {head:.3f}).")
    assert "Fine-tuned from head 3: same.keras, accuracy" in same
    assert same.endswith("; it is the head: no epoch was better; its file is gone.")


def test_a_damaged_record_of_a_fine_tuning_is_one_line(run):
    (run.path / "tuned").mkdir()
    for text in ("{}", "[", "[]", '{"trial": 1}'):
        (run.path / "tuned" / "x.json").write_text(text)
        with pytest.raises(NotARun, match=r"tuned/x\.json"):
            page_of(run)
        with pytest.raises(NotARun, match=r"tuned/x\.json"):
            tuned_lines(run)


@pytest.mark.slow
def test_the_table_is_marked_as_sorted_best_first(toy, tmp_path):
    for metric, how in (("accuracy", "descending"), ("log_loss", "ascending")):
        page = page_of(sweep(toy, "ridge", metric=metric, out=tmp_path / metric))
        assert f'<th aria-sort="{how}"><button>{metric} [95 %]' in page


@pytest.mark.slow
def test_a_head_without_probabilities_is_not_called_sure(toy, tmp_path, monkeypatch):
    (tmp_path / "predicts_alone.py").write_text(PREDICTS_ALONE)
    monkeypatch.chdir(tmp_path)
    page = page_of(sweep(toy, "predicts_alone:First", taps=["pixels:size=8/top"], out=tmp_path / "run"))
    assert "<h3>Mistakes</h3>" in page
    assert "Surest first" not in page
    assert "A head of this kind does not say how certain it is." in page
    assert "Calibration" not in page


@pytest.mark.slow
def test_commands_on_the_page_can_be_typed(toy, tmp_path):
    page = page_of(sweep(toy, "ridge", refit=True, out=tmp_path / "a run"))
    assert html.unescape(page).count(f"featcache report '{tmp_path / 'a run'}@refit' --final") == 1


@pytest.mark.slow
def test_a_fine_tuning_is_shown_from_its_head_on(run):
    weak = run[next(trial.trial for trial in run.trials if trial.params == {"C": 1e-4})]
    tuned = finetune(weak, epochs=2, learning_rate=1e-3, batch=16, controls="frozen")
    page = page_of(Run.open(run.path))
    low, high = tuned.start.val.low, tuned.start.val.high
    assert f"the start {tuned.start.val.value:.3f} [{low:.3f}, {high:.3f}]" in page
    assert "Certificate: on 64 images" in page
    assert ">fine-tuned</text>" in page
    assert ">frozen</text>" in page
    again = f"featcache finetune toy-again.run@{weak.trial.trial} -o toy-again.keras --epochs 2 --lr 0.001 --batch 16"
    assert again in page


@pytest.mark.slow
def test_a_page_of_2000_images_of_noise_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    for at in range(20):
        Image.fromarray((rng.random((64, 64, 3)) * 255).astype(np.uint8)).save(tmp_path / f"{at}.png")
    from featcache.images.manifest import scan

    images = scan(tmp_path)
    rows = [images.rows[at % 20] for at in range(2_000)]
    thumbnails = sheet(images.source, rows)
    assert len(thumbnails.data) < SHEET_BYTES
    assert thumbnails.columns == 45


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (5, 3), (40, 6)])
def test_the_map_takes_any_number_of_images(shape):
    points_on_map = places(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    assert points_on_map.shape == (shape[0], 2)
    assert np.isfinite(points_on_map).all()
    assert ((points_on_map >= 0) & (points_on_map <= 1)).all()
    assert np.array_equal(points_on_map, places(np.random.default_rng(0).normal(size=shape).astype(np.float32)))


def test_equal_features_have_one_place_on_the_map():
    assert len(np.unique(places(np.ones((30, 5), np.float32)), axis=0)) == 1


def test_groups_of_features_stay_groups():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 40)
    points_on_map = places((rng.normal(size=(120, 16)) + 9 * np.eye(3, 16)[truth]).astype(np.float32))
    apart = np.linalg.norm(points_on_map[:, None] - points_on_map[None], axis=-1) + 9 * np.eye(120)
    assert (truth[apart.argmin(axis=1)] == truth).mean() > 0.97


@pytest.mark.slow
def test_the_colours_of_the_toy_images_are_classes(run):
    assert {point["class"] for point in points(page_of(run))} == set(COLOURS)
    assert Path(run.path / "report.html").stat().st_size < 1_000_000
