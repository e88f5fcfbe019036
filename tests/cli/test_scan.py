import json
import shutil


def document(cli, *arguments):
    found = cli("scan", *arguments, "--json")
    assert found.code == 0, found.err
    return json.loads(found.out)


def test_a_scan_takes_archives_as_it_takes_folders(cli, photos, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    assert document(cli, archive) == document(cli, photos)


def test_a_manifest_says_which_files_and_groups(cli, photos):
    manifest = photos / "m.csv"
    manifest.write_text("path,label,plant\nred/000.png,a,p1\nred/001.png,a,p1\nblue/000.png,b,p2\nblue/001.png,b,p2\n")
    found = document(cli, manifest, "--group-from", "csv:plant")
    assert (found["images"], found["classes"]) == (4, {"a": 2, "b": 2})


def test_a_manifest_reaches_outside_only_if_it_is_allowed(cli, photos, tmp_path):
    (tmp_path / "m").mkdir()
    manifest = tmp_path / "m" / "m.csv"
    lines = [f"{photos}/{label}/00{at}.png,{label}" for label in ("red", "blue") for at in (0, 1)]
    manifest.write_text("\n".join(["path,label", *lines]))
    refused = cli("scan", manifest)
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert "m.csv, line 2: " in refused.err
    assert "--allow-outside" in refused.err
    assert document(cli, manifest, "--allow-outside")["images"] == 4


def test_class_folders_that_differ_in_case_exit_with_4(cli, photos):
    shutil.copytree(photos / "red", photos / "Red")
    refused = cli("scan", photos)
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert "'Red' and 'red'" in refused.err
