"""Predictions as files: whole or absent, exact, and harmless in a spreadsheet."""

import csv
import json
import sys
import tracemalloc

import pytest
from pyarrow import parquet
from tiny import write_images

from featcache.errors import EnvironmentFault, UsageError
from featcache.prediction import Prediction, predict, predict_to
from featcache.prediction.writing import FORMATS, Columns

EVERY = pytest.mark.parametrize("kind", FORMATS)
ODD = ['comma, "quote"', "line\nbreak", "<b>café</b>", "\udce9.png", "tab\t&amp;"]


def written(path, rows, top=1, rejects=False):
    with FORMATS[path.suffix](path, Columns(top, rejects)) as add:
        for row in rows:
            add(row)
    return path


def rows_of(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def read(path):
    """Return (path, predicted, status) of each row."""
    if path.suffix == ".csv":
        head, *rows = rows_of(path)
        found = [dict(zip(head, row, strict=True)) for row in rows]
    elif path.suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        found = parquet.read_table(path).to_pylist()
        for row in found:
            row["path"] = row["path_bytes"].decode("utf-8", "surrogateescape")
    return [(row["path"], row["predicted"] or "", row["status"]) for row in found]


def test_the_csv_has_a_column_for_each_class_asked_for(tmp_path):
    found = [
        Prediction("red/a.png", (("red", 0.75), ("blue", 0.25)), "red"),
        Prediction("b.jpg", (), "", "truncated", "the file ends early"),
    ]
    assert rows_of(written(tmp_path / "p.csv", found, top=2)) == [
        ["path", "predicted", "probability", "predicted2", "probability2", "true", "status", "reason"],
        ["red/a.png", "red", "0.750000", "blue", "0.250000", "red", "ok", ""],
        ["b.jpg", "", "", "", "", "", "truncated", "the file ends early"],
    ]


def test_a_rejected_image_is_unknown_and_its_nearest_class_stays(tmp_path):
    found = [
        Prediction("a.png", (("red", 0.75), ("blue", 0.25)), strangeness=-0.5),
        Prediction("b.png", (("red", 0.5), ("blue", 0.25)), strangeness=9.0, unknown=True),
    ]
    head, *rows = rows_of(written(tmp_path / "p.csv", found, top=2, rejects=True))
    assert head[-2:] == ["strangeness", "nearest"]
    assert rows[0] == ["a.png", "red", "0.750000", "blue", "0.250000", "", "ok", "", "-0.500000", "red"]
    assert rows[1] == ["b.png", "unknown", "", "blue", "0.250000", "", "ok", "", "9.000000", "red"]
    lines = [json.loads(line) for line in written(tmp_path / "p.jsonl", found, 2, True).read_text().splitlines()]
    assert [(one["predicted"], one["unknown"], one["strangeness"]) for one in lines] == [
        ("red", False, -0.5),
        ("unknown", True, 9.0),
    ]
    assert lines[1]["top"][0] == {"label": "red", "probability": 0.5}


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_labels_and_reasons_are_no_formulas_in_a_spreadsheet_and_paths_stay_exact(start, tmp_path):
    evil = f"{start}HYPERLINK(1)"
    written(tmp_path / "p.csv", [Prediction(evil, ((evil, 1.0),), evil, "ok", evil)])
    assert rows_of(tmp_path / "p.csv")[1] == [evil, f"'{evil}", "1.000000", f"'{evil}", "ok", f"'{evil}"]


def test_labels_that_are_numbers_stay_exact(tmp_path):
    written(tmp_path / "p.csv", [Prediction("a.png", (("-1", 1.0),), "+2.5"), Prediction("b.png", (("-1+2", 1.0),))])
    assert [(row[1], row[3]) for row in rows_of(tmp_path / "p.csv")[1:]] == [("-1", "+2.5"), ("'-1+2", "")]


@EVERY
def test_any_name_of_a_file_survives(kind, tmp_path):
    path = written(tmp_path / f"p{kind}", [Prediction(name, ((name, 1.0),)) for name in ODD])
    assert [row[0] for row in read(path)] == ODD


@EVERY
def test_every_format_has_a_row_for_every_file(kind, model, photos, tmp_path):
    (photos / "bad.png").write_text("no image")
    tally = predict_to([(kind, tmp_path / f"p{kind}")], model, photos, top=3)
    expected = [(one.path, one.predicted, one.status) for one in predict(model, photos)]
    assert read(tmp_path / f"p{kind}") == expected
    assert (tally.rows, dict(tally.by_status)) == (37, {"ok": 36, "unknown_format": 1})
    assert [one.path for one in tally.failures] == ["bad.png"]


@EVERY
def test_a_job_that_ends_early_leaves_the_old_file(kind, model, photos, tmp_path):
    path = tmp_path / f"p{kind}"
    path.write_text("old")

    def stop(one):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_to([(kind, path)], model, photos, force=True, seen=stop)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == [path.name]


def test_many_rows_take_no_more_memory_than_few(tmp_path):
    most = {}
    for count in (5_000, 50_000):
        rows = (Prediction(f"{'x' * 50}{at}.png", (("red", 0.5), ("blue", 0.5))) for at in range(count))
        tracemalloc.start()
        for kind in FORMATS:
            written(tmp_path / f"{count}{kind}", rows if kind == ".csv" else (), 2)
        most[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most[50_000] < 1.5 * most[5_000]


def test_parquet_keeps_more_rows_than_one_group(tmp_path):
    path = written(tmp_path / "p.parquet", [Prediction(f"{at}", (("a", 0.5),)) for at in range(5000)])
    assert [row[0] for row in read(path)] == [f"{at}" for at in range(5000)]
    assert parquet.ParquetFile(path).num_row_groups == 2


def test_another_suffix_is_refused_before_the_model_is_opened(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.csv, \.jsonl, \.parquet; got '\.xlsx'"):
        predict_to([(".xlsx", tmp_path / "p.xlsx")], tmp_path / "gone.keras", tmp_path)


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'featcache\[parquet\]'"):
        predict_to([(".parquet", tmp_path / "p.parquet")], tmp_path / "gone.keras", tmp_path)


def test_300_classes_and_2_images(tmp_path):
    names = [f"class {at}" for at in range(300)]
    rows = [Prediction(f"{at}.png", tuple((name, 1 / 300) for name in names)) for at in range(2)]
    head, *found = rows_of(written(tmp_path / "p.csv", rows, top=300))
    assert (len(head), head[-4], len(found)) == (1 + 600 + 3, "probability300", 2)


def test_the_folder_that_predictions_are_written_to_is_made(model, tmp_path):
    photos = write_images(tmp_path / "photos", per_class=1)
    predict_to([(".csv", tmp_path / "new" / "p.csv")], model, photos)
    assert len(rows_of(tmp_path / "new" / "p.csv")) == 4
