"""featcache rank, as a user types it."""

import json

import pytest

import featcache as fc

GOOD, COARSE = "pixels:size=8", "pixels:size=4"


def test_the_command_prints_a_table_a_page_and_the_extraction_that_goes_on(photos, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("rank", photos, "-b", f"{GOOD},{COARSE}", "--html", "rank.html")
    assert done.code == 0, done.err
    assert "verdict" in done.out
    assert "which chose nothing" in done.out
    assert done.commands == [["extract", str(photos), "-o", "photos.h5", "-b", GOOD]]
    page = (tmp_path / "rank.html").read_text()
    assert "<svg" in page
    assert "mathdefault" not in page  # numbers on an axis of powers of ten
    assert "https://" not in page.replace("http://www.w3.org", "").replace("https://matplotlib.org", "")
    facts = json.loads(cli("rank", photos, "-b", f"{GOOD},{COARSE}", "-o", "photos.h5", "--json").out)
    assert (facts["backbone"], facts["contenders"][0]["verdict"]) == (GOOD, "winner")
    assert facts["estimate"]["images"] == 36 - fc.scan(photos).splits["train"] - fc.scan(photos).splits["test"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-b", f"{GOOD},nonet"], 2, "Unknown backbone 'nonet'"),
        (["-b", GOOD], 2, "-b names only"),
        ([], 2, "such as -b mobilenet_v2,resnet50_v2"),
        (["-b", f"{GOOD},{COARSE}", "-o", "notes.txt"], 2, "no cache of featcache"),
        (["-b", f"{GOOD},{COARSE}", "--html", "notes.txt"], 2, "no page of featcache rank"),
        (["-b", f"{GOOD},{COARSE}", "--budget", "0.000001"], 2, "--budget of 1e-06 s is too short"),
    ],
)
def test_bad_input_is_one_line(photos, tmp_path, cli, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    done = cli("rank", photos, "--quiet", *arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1), done
    assert message in done.err
    assert (tmp_path / "notes.txt").read_text() == "mine"
