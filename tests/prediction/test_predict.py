import io
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import COLOURS, write_images

from featcache.errors import NoImages, NotAModel, UsageError
from featcache.images.manifest import scan
from featcache.prediction import Prediction, Tally, predict
from featcache.sweeps.metrics import wilson


def image(path, colour, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_images_get_the_class_they_show_in_the_order_of_their_paths(model, tmp_path):
    write_images(tmp_path, per_class=20, seed=9)
    found = list(predict(model, tmp_path))
    assert [one.path for one in found] == sorted(f"{name}/{at:03d}.png" for name in COLOURS for at in range(20))
    hits = [one.top[0][0] == one.path.split("/")[0] for one in found]
    assert np.mean(hits) > 0.9
    assert all(one.status == "ok" and one.reason == "" and len(one.top) == 1 for one in found)


def test_top_classes_come_from_most_to_least_probable_and_add_up(model, photos):
    for one in predict(model, photos, top=3):
        shares = [share for _, share in one.top]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert {label for label, _ in one.top} == set(COLOURS)


def test_an_image_is_judged_the_same_alone_and_among_others(model, photos):
    among = {one.path: one.top for one in predict(model, photos, top=3)}
    for path in ("blue/000.png", "red/011.png"):
        [alone] = predict(model, photos / path, top=3)
        assert alone.path == path.split("/")[1]
        assert [share for _, share in alone.top] == pytest.approx([share for _, share in among[path]], abs=1e-5)


def test_a_bad_file_is_a_row_with_its_reason_and_the_others_go_on(model, tmp_path):
    image(tmp_path / "a.png", COLOURS["red"])
    (tmp_path / "b.jpg").write_text("no image")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (tmp_path / "c.jpg").write_bytes(buffer.getvalue()[:900])
    (tmp_path / "d.png").write_bytes(b"")
    image(tmp_path / "e.png", COLOURS["blue"])
    found = list(predict(model, tmp_path))
    assert [one.path for one in found] == ["a.png", "b.jpg", "c.jpg", "d.png", "e.png"]
    assert [one.status for one in found] == ["ok", "unknown_format", "truncated", "empty", "ok"]
    assert [bool(one.reason) for one in found] == [False, True, True, True, False]
    assert [len(one.top) for one in found] == [1, 0, 0, 0, 1]


def test_a_folder_of_bad_files_alone_gives_rows_too(model, tmp_path):
    (tmp_path / "b.jpg").write_text("no image")
    assert [one.status for one in predict(model, tmp_path)] == ["unknown_format"]


@pytest.mark.slow
def test_archives_and_scans_are_predicted_like_their_folders(model, photos, tmp_path):
    wanted = list(predict(model, photos, top=3))
    archive = shutil.make_archive(str(tmp_path / "photos"), "gztar", photos)
    assert list(predict(model, archive, top=3)) == wanted
    assert list(predict(model, scan(photos), top=3)) == wanted


def test_a_scan_gives_a_row_to_all_that_it_found(model, photos):
    image(photos / "cover.png", COLOURS["red"])
    (photos / "red" / "none.png").symlink_to("/proc/self/mem")  # opens, but reading it fails
    assert len(list(predict(model, scan(photos)))) == len(list(predict(model, photos))) == 38


def test_a_manifest_names_the_images_and_their_true_classes(model, photos):
    (photos / "m.csv").write_text("path,label\nred/000.png,red\nblue/000.png,\nred/gone.png,red\n")
    found = [(one.path, one.true, one.status) for one in predict(model, photos / "m.csv")]
    assert found == [("blue/000.png", "", "ok"), ("red/000.png", "red", "ok"), ("red/gone.png", "red", "unreadable")]


def test_arrays_are_predicted(model, tmp_path):
    pixels = np.stack([np.full((16, 20, 3), colour, np.uint8) for colour in COLOURS.values()])
    np.save(tmp_path / "a.npy", pixels)
    found = list(predict(model, tmp_path / "a.npy"))
    assert [one.path for one in found] == ["000000", "000001", "000002"]
    assert [one.top for one in found] == [one.top for one in predict(model, scan(pixels))]


def test_one_file_is_an_image_whatever_its_name(model, photos):
    (photos / "red" / "000.png").rename(photos / "upload")
    assert [(one.path, one.status) for one in predict(model, photos / "upload")] == [("upload", "ok")]


def test_nested_folders_and_images_beside_them_are_all_found(model, tmp_path):
    for path in ("z.png", "a/one.png", "a/b/two.png", "train/x/three.png"):
        image(tmp_path / path, (9, 9, 9))
    assert [one.path for one in predict(model, tmp_path)] == ["a/b/two.png", "a/one.png", "train/x/three.png", "z.png"]


def test_images_of_every_size_go_through(model, tmp_path):
    for at, size in enumerate([(1, 1), (3, 200), (64, 64)]):
        image(tmp_path / f"{at}.png", COLOURS["green"], size)
    assert [one.status for one in predict(model, tmp_path)] == ["ok"] * 3


@pytest.mark.parametrize("top", [0, -1])
def test_no_classes_at_all_are_refused(top, model, photos):
    with pytest.raises(UsageError, match=rf"`top` takes a number of classes from 1; got {top}"):
        next(predict(model, photos, top=top))


def test_more_classes_than_there_are_gives_all(model, photos):
    assert len(next(predict(model, photos, top=9)).top) == 3


def tally(rows):
    found = Tally()
    for one in rows:
        found.add(one)
    return found


def test_folders_named_after_classes_tell_how_many_are_right(model, photos, tmp_path):
    rows = list(predict(model, photos))
    right = sum(row.top[0][0] == row.path.split("/")[0] for row in rows)
    assert tally(rows).accuracy == wilson(right, 36)
    (photos / "red").rename(photos / "crimson")
    assert tally(predict(model, photos)).accuracy.value <= 1
    assert sum(bool(row.true) for row in predict(model, photos)) == 24
    assert tally([Prediction("a.png", (("red", 1.0),))]).accuracy is None


def test_a_missing_folder_is_named(model, tmp_path):
    with pytest.raises(NoImages, match=r"nowhere does not exist"):
        next(predict(model, tmp_path / "nowhere"))


def test_what_is_no_model_is_refused(photos, tmp_path):
    (tmp_path / "m.keras").write_text("no model")
    with pytest.raises(NotAModel, match=r"Keras cannot load .*m\.keras"):
        next(predict(tmp_path / "m.keras", photos))


def test_progress_counts_all_images(model, photos):
    ticks = []
    list(predict(model, photos, progress=ticks.append))
    assert [(tick.done, tick.total) for tick in ticks] == [(0, 36), (32, 36), (36, 36)]
