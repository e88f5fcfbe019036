import csv
import importlib
import shutil

import pytest

from featcache.errors import DataError, EnvironmentFault, NoImages, UsageError
from featcache.images import tables
from featcache.images.manifest import scan


def write(path, header, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def write_parquet(path, columns):
    pyarrow = pytest.importorskip("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture
def table(photos):
    """Return a function that writes a manifest beside the photos and gives its path."""
    return lambda header, *rows, name="m.csv": write(photos / name, header, *rows)


@pytest.mark.parametrize(
    ("path", "label"),
    [("path", "label"), ("file", "class"), ("filename", "target"), ("image", "Label"), (" PATH ", "CLASS")],
)
@pytest.mark.parametrize("name", ["m.csv", "m.tsv"])
def test_columns_are_known_by_several_names(table, photos, path, label, name):
    manifest = table([label, path, "more"], ["x", "red/001.png", "?"], ["y", "blue/000.png"], name=name)
    images = scan(manifest)
    assert [(row.path, row.label) for row in images.rows] == [("blue/000.png", "y"), ("red/001.png", "x")]
    assert (images.root, images.layout) == (photos, "classes")
    assert images.source.read("red/001.png") == (photos / "red/001.png").read_bytes()


def test_splits_and_groups_are_those_of_the_manifest(table):
    rows = [[f"red/{n:03d}.png", "r", split, f"plant {n}"] for n, split in enumerate(["train", "VAL", "testing", ""])]
    images = scan(table(["path", "label", "split", "group"], *rows), split="100/0/0")
    assert images.layout == "splits"
    assert [row.split for row in images.rows] == ["train", "val", "test", "train"]
    assert [row.group for row in images.rows] == [f"plant {n}" for n in range(4)]


def test_without_val_it_is_carved_out_of_train_but_not_where_rows_are_left_to_featcache(table):
    rows = [[f"{label}/{n:03d}.png", label, "train"] for label in ("red", "blue", "green") for n in range(12)]
    rows[0][2] = "test"
    assert set(scan(table(["path", "label", "split"], *rows)).splits) == {"train", "val", "test"}
    rows[1][2] = ""
    splits = {row.path: row.split for row in scan(table(["path", "label", "split"], *rows)).rows}
    assert {splits[path] for path, _, split in rows if split == "train"} == {"train"}


def test_a_manifest_without_labels_is_flat(table):
    images = scan(table(["path"], ["red/000.png"]))
    assert (images.layout, images.rows[0].label) == ("flat", "")


def test_groups_come_from_any_column(table):
    manifest = table(
        ["path", "label", "Patient", "group"], ["red/000.png", "a", "p7", "g"], ["red/001.png", "a", "p8", "g"]
    )
    assert [row.group for row in scan(manifest, group_from="csv:Patient").rows] == ["p7", "p8"]
    assert [row.group for row in scan(manifest).rows] == ["g", "g"]
    assert [row.group for row in scan(manifest, group_from="regex:.$").rows] == ["g", "g"]
    with pytest.raises(
        DataError, match=r"m\.csv has no column 'ward' for `group_from`; it has path, label, Patient, group"
    ):
        scan(manifest, group_from="csv:ward")


def test_files_that_do_not_exist_are_rows_with_a_reason(table):
    images = scan(table(["path", "label"], ["red/000.png", "r"], ["red/gone.png", "r"]))
    assert [(one.path, one.status, one.reason) for one in images.unreadable] == [
        ("red/gone.png", "unreadable", "No such file or directory")
    ]
    assert len(images.rows) == 1


@pytest.mark.parametrize("path", ["../out.png", "red/../../out.png", "{absolute}", "link.png", "linked/out.png"])
def test_what_leads_out_of_the_folder_is_refused_unless_allowed(table, photos, path):
    outside = photos.parent / "elsewhere"
    outside.mkdir()
    shutil.copy(photos / "red/000.png", outside / "out.png")
    shutil.copy(photos / "red/000.png", photos.parent / "out.png")
    (photos / "link.png").symlink_to(outside / "out.png")
    (photos / "linked").symlink_to(outside)
    path = path.format(absolute=outside / "out.png")
    manifest = table(["path", "label"], ["red/000.png", "r"], [path, "r"])
    with pytest.raises(DataError, match=r"m\.csv, line 3: '.*out.*|link.*' leads out .* `allow_outside=True`"):
        scan(manifest)
    images = scan(manifest, allow_outside=True)
    assert (path in {row.path for row in images.rows}, len({row.digest for row in images.rows})) == (True, 1)


def test_links_that_stay_inside_are_followed(table, photos):
    (photos / "link.png").symlink_to("red/000.png")
    (photos / "linked").symlink_to("blue")
    assert len(scan(table(["path"], ["link.png"], ["linked/000.png"], ["./red//001.png"])).rows) == 3


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (
            ["name", "label"],
            [["a", "b"]],
            r"has the columns name, label, none of them called path, file, filename, image",
        ),
        (
            ["path", "split"],
            [["a.png", "train"], ["b.png", "dev"]],
            r"m\.csv, line 3: split 'dev'\. Splits are called train",
        ),
        (["path"], [["a.png"], ["b.png"], ["./a.png"]], r"m\.csv, line 4: 'a\.png' stands there twice"),
        (["path", "label"], [["a.png", "x"], ["", "y"]], r"m\.csv, line 3: no path"),
        (["path", "label"], [["a.png", "x\0"]], r"line 2: a label or group with a NUL byte"),
        (["path"], [["a\0.png"]], r"line 2: a path with a NUL byte"),
    ],
)
def test_what_cannot_be_meant_is_named_with_its_row(table, header, rows, message):
    with pytest.raises(DataError, match=message):
        scan(table(header, *rows))


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty: it needs a header"), ("path,label\n\n", "names no images")]
)
def test_an_empty_manifest_is_refused(photos, text, message):
    (photos / "m.csv").write_text(text)
    with pytest.raises(NoImages, match=message):
        scan(photos / "m.csv")


def test_a_file_that_is_no_table_is_refused(photos):
    (photos / "m.csv").write_text("path\n" + "x" * 200_000)
    with pytest.raises(DataError, match=r"Cannot read .*m\.csv: field larger"):
        scan(photos / "m.csv")


def test_lines_are_counted_as_an_editor_does(photos):
    (photos / "m.csv").write_text('path,label\n\nred/000.png,"two\nlines"\nred/001.png,a\nred/001.png,a\n')
    with pytest.raises(DataError, match=r"line 6: 'red/001\.png' stands there twice"):
        scan(photos / "m.csv")


def test_a_mark_at_the_beginning_and_names_of_other_bytes_are_read(photos):
    shutil.copy(photos / "red/000.png", bytes(photos) + b"/caf\xe9.png")
    (photos / "m.csv").write_bytes(b"\xef\xbb\xbfpath,label\ncaf\xe9.png,\xc3\xa9t\xc3\xa9\n")
    (row,) = scan(photos / "m.csv").rows
    assert (row.path, row.label) == ("caf\udce9.png", "été")


def test_labels_that_differ_in_case_are_meant_where_they_are_written_down(table):
    assert scan(table(["path", "label"], ["red/000.png", "a"], ["red/001.png", "A"])).classes == {"A": 1, "a": 1}


def test_parquet_says_the_same(photos):
    columns = {
        "image": ["red/000.png", "blue/001.png"],
        "label": [1, None],
        "split": ["train", "val"],
        "extra": [[1], [2]],
    }
    images = scan(write_parquet(photos / "m.parquet", columns))
    assert [(row.path, row.label, row.split) for row in images.rows] == [
        ("blue/001.png", "", "val"),
        ("red/000.png", "1", "train"),
    ]
    write_parquet(photos / "m.parquet", {"path": ["a.png", "../b.png"]})
    with pytest.raises(DataError, match=r"m\.parquet, row 2: '\.\./b\.png' leads out"):
        scan(photos / "m.parquet")


def test_a_broken_parquet_file_is_named(photos):
    pytest.importorskip("pyarrow")
    (photos / "m.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"Cannot read .*m\.parquet: "):
        scan(photos / "m.parquet")


def test_without_pyarrow_it_is_said_how_to_get_it(photos, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(tables, "import_module", missing)
    (photos / "m.parquet").write_bytes(b"PAR1")
    with pytest.raises(EnvironmentFault, match=r"m\.parquet takes pyarrow: pip install featcache\[parquet\]"):
        scan(photos / "m.parquet")


def test_labels_of_arrays_do_not_go_with_files(photos):
    with pytest.raises(UsageError, match=r"`labels`, `splits` and `groups` go with an array"):
        scan(photos, labels=["a"])
