"""Run notebooks again and store their outputs: python docs/notebooks/build.py [NOTEBOOK.ipynb ...].

Without names it runs all in its own folder.

Each runs in an empty folder. What differs from run to run and says nothing is left out: times, paths, warnings of
libraries. So a second build changes little more than the seconds that heads took.
"""

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
TIMEOUT_S = 300  # of a cell
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook with this Python in a folder, and return it with its outputs. Raises CellExecutionError."""
    # Commands in cells, such as `!featcache leaks`, are those beside this Python.
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "PATH": commands, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    resources = {"metadata": {"path": folder}}
    NotebookClient(notebook, kernel_name="python3", timeout=TIMEOUT_S, resources=resources).execute(env=env)
    return notebook


def clean(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Remove from the outputs what another run would change: paths, times, and what libraries write on stderr."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = _without_folder(output.text, folder)
            else:
                output.metadata = {}
                texts = {kind: text for kind, text in output.data.items() if kind.startswith("text/")}
                output.data |= {kind: _without_folder(text, folder) for kind, text in texts.items()}
    return notebook


def _is_noise(output: nbformat.NotebookNode) -> bool:
    """Return whether an output is a bar that was cleared, or a line on stderr."""
    if output.output_type == "stream":
        return bool(output.name == "stderr")
    return output.get("data", {}).get("text/html") == ""


def _without_folder(text: str, folder: Path) -> str:
    """Return text with paths relative to the folder in which the notebook ran, and without addresses in memory."""
    text = text.replace(f"{folder.resolve()}{os.sep}", "").replace(f"{folder}{os.sep}", "")
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def build(path: Path) -> None:
    """Run one notebook and store it with its outputs."""
    with TemporaryDirectory() as name:
        folder = Path(name).resolve()
        notebook = execute(nbformat.read(path, as_version=4), folder)
        nbformat.write(clean(notebook, folder), path)


if __name__ == "__main__":
    os.environ.update(FEATCACHE_HOME="", TF_CPP_MIN_LOG_LEVEL="3")  # keep nothing on this machine
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        build(path)
