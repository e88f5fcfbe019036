import os
from pathlib import Path

import pytest

from featcache.errors import DataError, NoImages
from featcache.images.listing import list_images


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def listed(root):
    return [tuple(file)[:3] for file in list_images(root).files]


def test_class_folders_give_labels(tmp_path):
    root = touch(tmp_path, "roses/2.jpg", "roses/1.png", "tulips/deep/er/3.JPEG")
    assert list_images(root).layout == "classes"
    assert listed(root) == [
        ("roses/1.png", "roses", ""),
        ("roses/2.jpg", "roses", ""),
        ("tulips/deep/er/3.JPEG", "tulips", ""),
    ]


def test_split_folders_give_labels_and_splits(tmp_path):
    root = touch(tmp_path, "Train/a/1.jpg", "validation/a/2.jpg", "testing/b/3.jpg")
    assert list_images(root).layout == "splits"
    assert listed(root) == [
        ("Train/a/1.jpg", "a", "train"),
        ("testing/b/3.jpg", "b", "test"),
        ("validation/a/2.jpg", "a", "val"),
    ]


def test_a_flat_folder_has_no_labels(tmp_path):
    root = touch(tmp_path, "1.jpg", "2.jpg")
    assert list_images(root).layout == "flat"
    assert listed(root) == [("1.jpg", "", ""), ("2.jpg", "", "")]


@pytest.mark.parametrize("folders", [("train", "bus"), ("test", "val"), ("steam_train", "tram")])
def test_classes_that_are_called_like_splits_stay_classes(tmp_path, folders):
    root = touch(tmp_path, *(f"{folder}/1.jpg" for folder in folders))
    assert list_images(root).layout == "classes"
    assert [file.label for file in list_images(root).files] == sorted(folders)


@pytest.mark.parametrize("folders", [("train", "test"), ("train2017", "val2017"), ("Training", "Validation", "Test")])
def test_splits_without_class_folders_never_become_classes(tmp_path, folders):
    root = touch(tmp_path, *(f"{folder}/cat.1.jpg" for folder in folders))
    with pytest.raises(DataError, match=r"'.*' in .* are splits, but their images lie in no class folders"):
        list_images(root)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/train", "test/test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train2017", "test2017"),
        ("training_set", "test_set"),
        ("train-images", "Evaluation"),
    ],
)
def test_splits_are_known_as_data_sets_name_them(tmp_path, train, test):
    root = touch(tmp_path, f"{train}/roses/1.jpg", f"{test}/roses/2.jpg")
    assert set(listed(root)) == {(f"{train}/roses/1.jpg", "roses", "train"), (f"{test}/roses/2.jpg", "roses", "test")}
    assert list_images(root).layout == "splits"


def test_images_beside_the_class_folders_are_named_as_stray(tmp_path):
    listing = list_images(touch(tmp_path, "a/1.jpg", "cover.jpg"))
    assert (len(listing.files), listing.stray) == (1, ["cover.jpg"])


def test_images_beside_the_class_folders_of_a_split_are_stray(tmp_path):
    listing = list_images(touch(tmp_path, "train/a/1.jpg", "train/cover.jpg"))
    assert (len(listing.files), listing.stray) == (1, ["train/cover.jpg"])


def test_hidden_files_and_other_suffixes_are_not_looked_at(tmp_path):
    root = touch(tmp_path, "a/1.jpg", "a/.2.jpg", ".git/3.jpg", "a/notes.txt", "a/Thumbs.db", "a/4.h5")
    assert [file.path for file in list_images(root).files] == ["a/1.jpg"]


def test_the_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    root = touch(tmp_path, *(f"{label}/{number}.png" for label in "bca" for number in range(5)))
    once = list_images(root)
    scandir = os.scandir

    class Reversed(list):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(os, "scandir", lambda folder: Reversed(reversed(list(scandir(folder)))))
    assert list_images(root) == once


def test_links_to_folders_are_followed_but_never_in_circles(tmp_path):
    root = touch(tmp_path / "photos", "a/1.jpg")
    touch(tmp_path / "elsewhere", "2.jpg")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "again").symlink_to(root)
    (root / "a" / "itself").symlink_to(".")
    files = list_images(root).files
    assert [(file.path, file.label) for file in files] == [("a/1.jpg", "a"), ("b/2.jpg", "b")]


def test_another_folder_beside_splits_does_not_turn_them_into_classes(tmp_path):
    root = touch(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "unlabelled/3.jpg")
    listing = list_images(root)
    assert listing.layout == "splits"
    assert [(file.path, file.label, file.split) for file in listing.files] == [
        ("train/a/1.jpg", "a", "train"),
        ("val/a/2.jpg", "a", "val"),
    ]
    assert listing.stray == ["unlabelled/3.jpg"]


def test_a_class_called_train_is_a_class(tmp_path):
    root = touch(tmp_path, "train/1.jpg", "tram/2.jpg")
    assert list_images(root).layout == "classes"


def test_a_link_to_an_image_is_an_image(tmp_path):
    root = touch(tmp_path / "photos", "a/1.jpg")
    (root / "a" / "2.jpg").symlink_to(touch(tmp_path, "elsewhere.jpg") / "elsewhere.jpg")
    assert [file.path for file in list_images(root).files] == ["a/1.jpg", "a/2.jpg"]


def test_links_that_lead_nowhere_or_to_themselves_are_passed_by(tmp_path):
    root = touch(tmp_path, "a/1.jpg")
    (root / "a" / "circle.jpg").symlink_to("circle.jpg")
    (root / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    assert [file.path for file in list_images(root).files] == ["a/1.jpg"]


def test_pipes_are_not_opened(tmp_path):
    root = touch(tmp_path, "a/1.jpg")
    os.mkfifo(root / "a" / "pipe.jpg")
    assert [file.path for file in list_images(root).files] == ["a/1.jpg"]


def test_names_that_are_not_utf8_are_listed(tmp_path):
    root = touch(tmp_path, "a/1.jpg")
    with open(os.fsencode(root / "a") + b"/caf\xe9.jpg", "wb"):
        pass
    assert [os.fsencode(file.path) for file in list_images(root).files] == [b"a/1.jpg", b"a/caf\xe9.jpg"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(NoImages, match=r"The image folder .*nowhere does not exist. Give a folder"):
        list_images(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(NoImages, match=r"1.jpg is a file, not a folder"):
        list_images(touch(tmp_path, "1.jpg") / "1.jpg")


def test_a_folder_without_images_is_named_with_the_suffixes_looked_for(tmp_path):
    with pytest.raises(NoImages, match=r"No images in .*\.avif .*\.webp"):
        list_images(touch(tmp_path, "a/notes.txt"))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    root, scandir = touch(tmp_path, "a/1.jpg", "b/2.jpg"), os.scandir

    def refused(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"b cannot be listed: Permission denied"):
        list_images(root)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("STRASSE", "straße"), ("\u00c9t\u00e9", "e\u0301te\u0301")],
)
def test_class_folders_that_are_one_on_other_systems_are_refused(tmp_path, one, other):
    root = touch(tmp_path, f"{one}/1.jpg", f"{other}/2.jpg", "dog/3.jpg")
    with pytest.raises(DataError) as caught:
        list_images(root)
    message = str(caught.value)
    assert ascii(one) in message
    assert ascii(other) in message
    assert "differ only in case or in how Unicode writes them" in message
    assert "Rename one" in message


def test_class_folders_of_different_splits_are_compared_too(tmp_path):
    with pytest.raises(DataError, match="'Cat' and 'cat'"):
        list_images(touch(tmp_path, "train/Cat/1.jpg", "val/cat/2.jpg"))


def test_folders_below_the_class_may_differ_in_case(tmp_path):
    assert len(list_images(touch(tmp_path, "a/X/1.jpg", "a/x/2.jpg", "b/3.jpg")).files) == 3


def test_files_that_are_not_looked_at_are_counted_by_suffix(tmp_path):
    root = touch(tmp_path, "a/1.jpg", "a/1.psd", "b/2.PSD", "b/notes", "b/.hidden.txt", ".DS_Store")
    assert list_images(root).others == {".psd": 2, "none": 1}
