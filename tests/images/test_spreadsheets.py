"""Tables as spreadsheets and data sets write them: what can have one meaning is read, and what is not used is told."""

import importlib
import shutil

import numpy as np
import pytest

from featcache.errors import DataError, NoImages, UsageError
from featcache.extraction import extract
from featcache.images.manifest import scan

PIXELS = "pixels:size=8"
ROWS = [(f"{label}/{number:03d}.png", label) for label in ("blue", "red") for number in range(3)]


@pytest.fixture
def written(photos):
    """Return a function that writes a table beside the photos, a line for each row, and gives its path."""

    def write(header, line, encoding="utf-8", name="m.csv"):
        lines = [header, *(line(path, label) for path, label in ROWS)]
        (photos / name).write_bytes("\r\n".join(lines).encode(encoding))
        return photos / name

    return write


def labels_of(images):
    return [(row.path, row.label) for row in images.rows]


@pytest.mark.parametrize(
    ("header", "between", "encoding", "name"),
    [
        ("path;label", ";", "utf-8-sig", "m.csv"),
        ("path\tlabel", "\t", "utf-16", "m.csv"),
        ("path\tlabel", "\t", "utf-8", "m.csv"),
        ("path,label", ",", "utf-8", "m.tsv"),
        (" path , label", " , ", "utf-8", "m.csv"),
    ],
)
def test_a_table_is_read_as_excel_writes_it(written, header, between, encoding, name):
    images = scan(written(header, lambda path, label: f"{path}{between}{label}", encoding, name))
    assert labels_of(images) == ROWS


def test_backslashes_and_blanks_are_not_part_of_names_unless_a_file_has_them(written, photos):
    images = scan(written("path,label", lambda path, label: f" {path} ,\t{label} ".replace("/", "\\")))
    assert labels_of(images) == ROWS
    shutil.copy(photos / "red/000.png", photos / "a\\b.png")
    shutil.copy(photos / "red/001.png", photos / " c.png")
    (photos / "m.csv").write_text("label,path\nx,a\\b.png\ny, c.png\n")
    assert labels_of(scan(photos / "m.csv")) == [(" c.png", "y"), ("a\\b.png", "x")]


def test_what_leads_out_with_backslashes_is_refused(photos):
    shutil.copy(photos / "red/000.png", photos.parent / "out.png")
    (photos / "m.csv").write_text("path\nred/000.png\n..\\out.png\n")
    with pytest.raises(DataError, match=r"line 3: '\.\./out\.png' leads out"):
        scan(photos / "m.csv")


def test_a_column_of_another_name_is_named_or_told(written, photos):
    table = written("Width,ClassId,img,Roi", lambda path, label: f"32,{label},{path},7")
    with pytest.raises(DataError, match=r"none of them called path, .* `path_column=NAME`"):
        scan(table)
    [remark] = scan(table, path_column="img").remarks
    assert "no column of m.csv is called label, class, target" in remark
    assert "It also has Width, ClassId, Roi; name the column with the labels, as in `label_column='ClassId'`" in remark
    images = scan(table, path_column="img", label_column="ClassId")
    assert (labels_of(images), images.remarks) == (ROWS, ())
    with pytest.raises(DataError, match=r"no column 'Class' for `label_column`; it has Width, ClassId, img, Roi"):
        scan(table, path_column="img", label_column="Class")
    cache = extract(table, PIXELS, out=photos / "c.h5", path_column="img", label_column="ClassId")
    assert cache.classes == ("blue", "red")


def test_columns_are_named_of_tables_only(photos):
    with pytest.raises(UsageError, match=r"`label_column` goes with a manifest \(\.csv, \.tsv, \.parquet\), not with"):
        scan(photos, label_column="a")
    with pytest.raises(UsageError, match=r"`path_column` goes with a manifest"):
        scan(photos, path_column="a")


@pytest.mark.parametrize("header", ["path,label,label", "path,Label,LABEL ", "path,path,label"])
def test_two_columns_of_one_name_are_refused(written, header):
    with pytest.raises(DataError, match=r"has 2 columns called '(label|path)', and each could be meant"):
        scan(written(header, lambda path, label: f"{path},{label},{label}"))


def test_of_two_usual_names_it_is_told_which_one_is_read(written):
    images = scan(written("path,label,class", lambda path, label: f"{path},{label},other"))
    assert labels_of(images) == ROWS
    assert images.remarks == (
        "Labels come from column 'label' of m.csv; column 'class' is not used. If it has them: `label_column='class'`",
    )


def test_zero_one_columns_are_the_label_where_one_of_them_is_1(written):
    table = written(
        "filename, blue, red, rare", lambda path, label: f"{path}, {label == 'blue':d}, {label == 'red':d}, 0"
    )
    images = scan(table)
    assert labels_of(images) == ROWS
    assert images.remarks == (
        "Labels are the names of the 0/1 columns of m.csv, which add up to 1 in each row: blue, red, rare",
    )


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("path,blue,red", lambda path, label: f"{path},1,{label == 'red':d}"),
        ("path,species,male,female", lambda path, label: f"{path},{label},{label == 'red':d},{label != 'red':d}"),
        ("path,flag", lambda path, label: f"{path},1"),
    ],
)
def test_other_zero_one_columns_are_no_label_and_are_told(written, header, line):
    images = scan(written(header, line))
    assert images.classes == {}
    assert "No image has a label, since no column of m.csv" in images.remarks[0]
    if header == "path,blue,red":
        assert images.remarks[1] == (
            "The 0/1 columns blue, red are no labels, since they do not add up to 1 in each row, as in line 5"
        )


def test_rows_without_a_label_are_counted(written, photos):
    table = written("path,label", lambda path, label: f"{path}, {label if path[-5] != '0' else ''}")
    told = "2 of 6 rows of m.csv have no label, such as blue/000.png: these images neither train nor judge"
    assert scan(table).remarks == (told,)
    assert told in extract(table, PIXELS, out=photos / "c.h5").report.remarks


def test_a_list_of_paths_has_nothing_to_tell(written):
    assert scan(written("path,split", lambda path, label: f"{path},train")).remarks == ()


def test_labels_that_differ_in_case_are_told(photos):
    (photos / "m.csv").write_text("path,label\nred/000.png,Rose\nred/001.png,rose\nred/002.png,ROSE\n")
    images = scan(photos / "m.csv")
    assert images.classes == {"ROSE": 1, "Rose": 1, "rose": 1}
    [remark] = images.remarks
    assert remark.startswith("The labels 'ROSE', 'Rose', 'rose' of m.csv differ only in case and are different classes")


SPELLINGS = ["caf\u00e9", "cafe\u0301", "caf\u00e9 "]
ONE_CLASS = r"'cafe\u0301', 'caf\xe9', 'caf\xe9 ' of {} look the same and are one class: they differ only in blanks"


def test_labels_and_groups_that_look_the_same_are_one_and_it_is_told(photos):
    lines = [f"red/{number:03d}.png,{text},{text}" for number, text in enumerate(SPELLINGS)]
    (photos / "m.csv").write_text("\n".join(["path,label,patient", *lines, "blue/000.png,b,b"]))
    images = scan(photos / "m.csv", group_from="csv:patient")
    assert images.classes == {"b": 1, "caf\u00e9": 3}
    assert {row.group for row in images.rows} == {"b", "caf\u00e9"}
    assert [remark for remark in images.remarks if remark.startswith(ONE_CLASS.format("m.csv"))]
    assert any(
        ONE_CLASS.format("m.csv") in line
        for line in extract(photos / "m.csv", PIXELS, out=photos / "c.h5").report.remarks
    )


def test_labels_of_arrays_that_look_the_same_are_one_class():
    images = scan(np.zeros((4, 8, 8), np.uint8), labels=[*SPELLINGS, "b"], groups=[*SPELLINGS, ""])
    assert images.classes == {"b": 1, "caf\u00e9": 3}
    assert images.groups.count == 1
    assert images.remarks[0].startswith(ONE_CLASS.format("the arrays"))


@pytest.mark.parametrize("encoding", ["cp1252", "cp1250", "shift-jis"])
def test_a_table_of_a_national_code_page_is_refused_and_never_misread(photos, encoding):
    word = "花" if encoding == "shift-jis" else "Gänse"
    (photos / "m.csv").write_bytes(f"path,label\nred/000.png,{word}\n".encode(encoding))
    with pytest.raises(DataError, match=r"m\.csv, line 2: b.* is not UTF-8, .*in Excel: CSV UTF-8.*iconv -f CP1252"):
        scan(photos / "m.csv")
    (photos / word).mkdir()
    shutil.copy(photos / "red/000.png", photos / word / "1.png")
    (photos / "m.csv").write_bytes(f"path,label\n{word}/1.png,a\n".encode(encoding))
    with pytest.raises(DataError, match=r"line 2: b'.*/1\.png' is not UTF-8"):
        scan(photos / "m.csv")


def test_missing_values_of_pandas_in_parquet_are_no_labels(photos):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"path": ["red/000.png", "red/001.png"], "label": ["a", None], "group": [1.0, float("nan")]})
    importlib.import_module("pyarrow.parquet").write_table(table, photos / "m.parquet")
    images = scan(photos / "m.parquet")
    assert [(row.label, row.group) for row in images.rows] == [("a", "1.0"), ("", "")]
    assert images.remarks[0].startswith("1 of 2 rows of m.parquet have no label, such as red/001.png")


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("red/000", "red/000.png"),
        ("000", "blue/000.png"),
        ("D:\\work\\photos\\red\\000.png", "red/000.png"),
        ("photos/red/000.png", "red/000.png"),
    ],
)
def test_where_no_file_exists_the_table_is_named_and_what_it_may_mean(photos, path, near):
    (photos / "m.csv").write_text(f"path,label\n{path},a\n{path}x,b\n")
    with pytest.raises(NoImages) as raised:
        scan(photos / "m.csv")
    message = str(raised.value)
    assert f"None of the 2 files that {photos / 'm.csv'} names exists; the first, {path!r}, would be " in message
    assert repr(str(photos / path)) in message
    assert f"There is {near!r}: write the paths like that, relative to the table" in message


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("https://example.org/1.png", "names addresses, such as 'https://example.org/1.png', not files"),
        ("gone/1.png", "move the table to the folder"),
    ],
)
def test_what_cannot_be_meant_by_a_path_has_another_hint(photos, path, hint):
    (photos / "m.csv").write_text(f"path,label\n{path},a\n")
    with pytest.raises(NoImages, match=hint):
        scan(photos / "m.csv")
