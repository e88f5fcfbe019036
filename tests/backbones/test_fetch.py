"""Weights that were fetched load; what a broken download leaves is found and made good. The server is this machine."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from backbones.conftest import FILE, MODULE, NAME, SPEC, save

from featcache.backbones import inventory
from featcache.backbones.build import build
from featcache.backbones.fetch import fetch
from featcache.errors import DiskFault, UsageError, WeightsMismatch, WeightsMissing
from featcache_cli.app import main

NOWHERE = "http://127.0.0.1:9/"


@pytest.fixture
def server(monkeypatch):
    """Return a server for Keras to download from. `answers`: (status, body, length said or None) for each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path.strip("/"))
            status, body, length = server.answers[min(len(server.asked), len(server.answers)) - 1]
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(MODULE, "BASE_WEIGHT_PATH", server.url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def cli(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["featcache", "backbones", "fetch", *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as leaving:
        main()
    signal.signal(signal.SIGTERM, handler)
    return leaving.value.code, *capsys.readouterr()


@pytest.mark.slow
def test_what_was_fetched_loads_and_is_not_fetched_again(home, good, server):
    server.answers = [(200, good, len(good))]
    ticks = []
    [first] = fetch(NAME, ticks.append)
    assert (first.backbone, first.file, first.bytes) == (NAME, str(home / "models" / FILE), len(good))
    assert first.downloaded
    assert [tick.note for tick in ticks] == ["downloading the ImageNet weights of mobilenet_v2, once"]
    [second] = fetch(NAME)
    assert not second.downloaded
    assert server.asked == [FILE]
    assert build(SPEC, 96, "avg").network.count_params() > 0


def test_a_download_that_was_cut_off_is_made_again(home, good, server, capsys):
    server.answers = [(200, good[: len(good) // 2], None), (200, good, len(good))]
    ticks = []
    [found] = fetch(NAME, ticks.append)
    assert (found.bytes, found.downloaded, len(server.asked)) == (len(good), True, 2)
    notes = [tick.note for tick in ticks]
    assert notes[1] == f"{found.file} ({len(good) // 2} bytes) is broken and was removed"
    assert notes[0] == notes[2]
    said = capsys.readouterr()
    assert said.out == ""
    assert "Downloading data from" in said.err


@pytest.mark.parametrize("stump", [b"", b"\x89HDF\r\n\x1a\n", b"<html>"])
def test_a_stump_is_repaired(place, good, server, stump):
    place.write_bytes(stump)
    server.answers = [(200, good, len(good))]
    assert fetch(NAME)[0].downloaded
    assert place.read_bytes() == good


@pytest.mark.slow
def test_weights_of_another_width_under_that_name_are_repaired(place, good, server):
    save(place, alpha=0.5)
    server.answers = [(200, good, len(good))]
    assert fetch(NAME)[0].downloaded
    assert place.read_bytes() == good


def test_a_proxy_that_answers_instead_is_suspected_and_nothing_stays(home, server):
    server.answers = [(200, b"<html>please log in</html>", None)]
    with pytest.raises(WeightsMissing, match=r"^The download of the ImageNet weights .* Does a proxy .*\n?$"):
        fetch(NAME)
    assert len(server.asked) == 2
    assert list((home / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, b"", 0), r"404 -- Not Found"),
        ((200, b"half", 8), r"retrieval incomplete: got only 4 out of 8 bytes"),
    ],
)
def test_a_download_that_fails_leaves_nothing(home, server, answer, reason):
    server.answers = [answer]
    with pytest.raises(WeightsMissing, match=rf"^No network, and the ImageNet weights .*{reason}.*put {FILE}"):
        fetch(NAME)
    assert list((home / "models").iterdir()) == []


def test_without_network_the_last_line_is_ours_and_keras_says_nothing(home, monkeypatch, capsys):
    monkeypatch.setattr(MODULE, "BASE_WEIGHT_PATH", NOWHERE)
    code, out, err = cli(monkeypatch, capsys, NAME, "--json")
    # A slow machine is also told that the network is being built.
    first, *_, last = err.splitlines()
    assert (code, out) == (5, "")
    assert first == "downloading the ImageNet weights of mobilenet_v2, once"
    assert last.startswith("featcache: No network, and the ImageNet weights of 'mobilenet_v2' are not on this machine")
    assert "Connection refused" in last
    assert list((home / "models").iterdir()) == []
    assert len(cli(monkeypatch, capsys, NAME, "--quiet")[2].splitlines()) == 1


def test_json_and_text_say_what_was_fetched(home, good, server, monkeypatch, capsys):
    server.answers = [(200, good, len(good))]
    code, out, _ = cli(monkeypatch, capsys, NAME, "--json")
    expected = {"backbone": NAME, "file": str(home / "models" / FILE), "bytes": len(good), "downloaded": True}
    assert (code, json.loads(out)) == (0, {"fetched": [expected]})
    code, out, err = cli(monkeypatch, capsys, NAME, "--quiet")
    assert (code, err) == (0, "")
    assert out == f"{NAME}: {home / 'models' / FILE}, {len(good) / 1e6:.1f} MB, was there already\n"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("glyphnet", r"'glyphnet' does not use ImageNet weights"),
        ("pixels", r"'pixels' does not use ImageNet weights"),
        ("mobilenet_v2:weights=none", r"'mobilenet_v2' does not use ImageNet weights"),
        (f"{NAME},mobilenet_v2:alpha=0.36", r"There are no ImageNet weights of mobilenet_v2:alpha=0.36: "),
    ],
)
def test_what_has_no_imagenet_weights_is_refused_before_anything_is_downloaded(home, server, names, message):
    with pytest.raises(UsageError, match=message):
        fetch(names)
    assert server.asked == []


def test_a_folder_that_cannot_be_written_to_is_named_for_keras_would_take_another(home, server, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    with pytest.raises(DiskFault, match=rf"{home}/models/{FILE} is missing, and {home} cannot be written to. Set"):
        fetch(NAME)
    assert server.asked == []


@pytest.mark.slow
def test_a_file_that_was_in_the_way_is_kept_under_another_name(place, good, server):
    server.answers = [(200, good, len(good))]
    mine = [save(place, alpha=0.5).read_bytes(), b"my stump"]
    for content, name in zip(mine, (f"{FILE}.kept", f"{FILE}.kept2"), strict=True):
        place.write_bytes(content)
        ticks = []
        assert fetch(NAME, ticks.append)[0].downloaded
        assert f"{place} ({len(content)} bytes) is not Keras' own: renamed to {name}" in [tick.note for tick in ticks]
        assert place.with_name(name).read_bytes() == content
        assert place.read_bytes() == good
    assert len(list(place.parent.iterdir())) == 3


def test_a_file_with_another_digest_is_kept_though_it_loads(place, good, server, monkeypatch):
    mine = save(place).read_bytes()
    monkeypatch.setattr(inventory, "keras_digest", lambda name: hashlib.md5(good).hexdigest())
    server.answers = [(200, good, len(good))]
    assert fetch(NAME)[0].downloaded
    assert place.read_bytes() == good
    assert place.with_name(f"{FILE}.kept").read_bytes() == mine


@pytest.mark.parametrize("answer", [(404, b"", 0), (200, b"<html>please log in</html>", None)])
def test_a_file_that_was_in_the_way_keeps_its_place_if_the_download_fails(place, server, answer):
    mine = save(place, alpha=0.5).read_bytes()
    server.answers = [answer]
    with pytest.raises(WeightsMissing):
        fetch(NAME)
    assert [path.name for path in place.parent.iterdir()] == [FILE]
    assert place.read_bytes() == mine


@pytest.mark.slow
def test_a_download_that_was_killed_is_found_out_and_repaired(place, good, server):
    hold = threading.Event()
    handler = server.RequestHandlerClass

    class Slow(handler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(good)))
            self.end_headers()
            self.wfile.write(good[: len(good) // 2])
            self.wfile.flush()
            hold.wait(60)

    server.RequestHandlerClass = Slow
    code = (
        "import sys, keras; from featcache.backbones.fetch import fetch\n"
        f"sys.modules[keras.applications.MobileNetV2.__module__].BASE_WEIGHT_PATH = {server.url!r}\n"
        f"fetch({NAME!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (not place.exists() or place.stat().st_size < 1000) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    hold.set()
    server.RequestHandlerClass = handler
    server.answers = [(200, good, len(good))]
    assert 1000 <= place.stat().st_size < len(good)
    with pytest.raises(WeightsMismatch, match=rf"{FILE} are damaged .* has \d+ of {len(good)} bytes. Delete it or run"):
        build(SPEC, 96, "avg")
    assert fetch(NAME)[0].downloaded
    assert place.read_bytes() == good
