"""The notebooks of docs/notebooks run, and what their text claims is so."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_CELLS = 11
PLACES = re.compile(r"/tmp/|/home/|/root/|/work/|/Users/")
# What the text of a notebook says, in its own words and variables.
CLAIMS = {
    "photos": """
        assert cache.splits["train"] == 55
        assert run.best.trial.head == "ridge" and run.best.trial.score > 0.97
        assert fc.compare(run.best, knn).verdict.startswith("tie") and fc.compare(run.best, knn).images == 276
        assert model.certificate.passed
        assert sum(right) > 0.95 * len(right)
    """,
    "own_model": """
        assert fc.compare(mine, pixels).verdict.startswith("tie")
        assert (mine.trial.width, pixels.trial.width) == (64, 768)
        assert abs(accuracy - mine.trial.score) < 0.1
        assert tuned.best.val.value >= tuned.start.val.value
    """,
    "few_shot": """
        assert len(val) == 181
        assert table["glyphnet/top"][2] > table["pixels:size=8/top"][10]
        assert logreg.trial.score == knn.trial.score == 1
    """,
    "leaks": """
        assert leaks.contaminated and len(leaks.contaminating) == 4
        assert sorted(pair.kind for pair in leaks.pairs) == ["exact", "re-encoded", "resized", "rotated/flipped"]
        assert not fc.leaks(cache).contaminated
    """,
    "contest": """
        for other in ("pixels:size=8", "glyphnet:weights=none"):
            assert fc.compare(best_on("glyphnet"), best_on(other)).interval[0] > 0
        assert not run.looks()  # nothing has read the test split
    """,
}


def by_name(path):
    return path.stem


def test_there_are_claims_for_every_notebook():
    assert {path.stem for path in NOTEBOOKS} == set(CLAIMS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_a_notebook_is_short_and_stored_with_clean_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(notebook.cells) <= MOST_CELLS
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [output for cell in code for output in cell.outputs if output.output_type == "error"] == []
    assert PLACES.findall(path.read_text()) == []


def test_a_newcomer_compares_two_heads_within_eight_cells():
    notebook = nbformat.read(FOLDER / "photos.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    [number] = [number for number, cell in enumerate(code, start=1) if "fc.compare" in cell.source]
    assert number <= 8
    [output] = code[number - 1].outputs
    assert "difference" in output.data["text/html"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_a_notebook_runs_and_its_text_is_true(path, tmp_path):
    copy = shutil.copy(path, tmp_path)
    notebook = nbformat.read(copy, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(dedent(CLAIMS[path.stem])))
    nbformat.write(notebook, copy)
    # In a process of its own: nbclient runs an event loop.
    done = subprocess.run([sys.executable, FOLDER / "build.py", copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    stored, again = nbformat.read(path, as_version=4), nbformat.read(copy, as_version=4)
    for before, after in zip(stored.cells, again.cells, strict=False):
        assert [output.output_type for output in before.get("outputs", [])] == [
            output.output_type for output in after.get("outputs", [])
        ]
