"""Bars of `fc.show_progress`: drawn while something is counted, gone afterwards; remarks stay."""

import io

import pytest

import featcache as fc
from featcache import progress as progress_module
from featcache.progress import ERASED, NotebookBar, TerminalBar
from featcache.spec import Tick


@pytest.fixture(autouse=True)
def redraws_at_once(monkeypatch):
    monkeypatch.setattr(progress_module, "REDRAW_S", -1.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_the_count_and_clears_it_in_the_end(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    bar = fc.show_progress()
    assert isinstance(bar, TerminalBar)
    bar(Tick("extract", 3, 10, "2 cached"))
    assert stream.getvalue() == f"{ERASED}extract  3/10, 2 cached"
    bar(Tick("extract", 10, 10))
    assert stream.getvalue().endswith(ERASED)


def test_a_long_line_is_cut_at_the_edge_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    TerminalBar(stream)(Tick("a step with a long name", 3, 10))
    assert stream.getvalue() == f"{ERASED}a step with a long n"[: len(ERASED) + 19]


def test_a_file_gets_remarks_only(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    bar = fc.show_progress()
    bar(Tick("extract", 3, 10))
    bar(Tick("weights", 0, 0, "downloading"))
    assert stream.getvalue() == "downloading\n"


def test_a_notebook_shows_a_bar_that_escapes_names(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown, displayed = [], []

    class Handle:
        def update(self, page):
            shown.append(page.data)

    def show(page, display_id):
        displayed.append(display_id)
        shown.append(page.data)
        return Handle()

    monkeypatch.setattr(display, "display", show)
    bar = NotebookBar()
    bar(Tick("<b>", 3, 10))
    bar(Tick("<b>", 4, -1))
    bar(Tick("<b>", 10, 10))
    assert shown[0] == '<div>&lt;b&gt; <progress value="3" max="10"></progress> 3/10</div>'
    assert "<progress></progress> 4" in shown[1]
    assert shown[2] == ""
    bar(Tick("<b>", 1, 2))
    assert len(displayed) == 2  # once it was cleared, it may be another cell's turn


def test_a_long_call_draws_and_leaves_nothing(photos, tmp_path, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    fc.extract(photos, "pixels:size=8", out=tmp_path / "photos.h5", progress=fc.show_progress())
    assert "pixels" in stream.getvalue()
    assert stream.getvalue().endswith(ERASED)
