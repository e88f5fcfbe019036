"""The Python of the README and of docs/export.md runs, and the README's test command is what CI runs."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from tiny import write_images

from featcache.extras.export import export

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RUNTIMES = ("onnxruntime", "ai_edge_litert", "openvino", "tensorflow")  # in the order of docs/export.md


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
def test_the_docs_python_for_exported_files_runs_one_runtime_at_a_time(tmp_path, monkeypatch, capsys, toy_run):
    monkeypatch.chdir(tmp_path)
    for name, kind in {"tuned.onnx": "onnx", "tuned.tflite": "litert", "tuned.xml": "openvino"}.items():
        export(f"{toy_run.path}@best", kind, name)
    export(f"{toy_run.path}@best", "savedmodel", "tuned_savedmodel")
    cache = toy_run.cache()
    row = next(row for row in cache.usable("train") if row.label == "red")
    Image.open(cache.root / row.path).save("photo.jpg", quality=100)
    photo_block, *runtime_blocks = python_blocks((ROOT / "docs" / "export.md").read_text())
    for runtime, block in zip(RUNTIMES, runtime_blocks, strict=True):
        with monkeypatch.context() as patch:
            for other in RUNTIMES:
                if other != runtime:
                    patch.setitem(sys.modules, other, None)  # as if it were not installed
            capsys.readouterr()
            names: dict[str, object] = {}
            exec(photo_block.replace("(224, 224)", "(32, 32)"), names)
            exec(block, names)
            assert capsys.readouterr().out.split() == ["red"], runtime


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", per_class=30)
    write_images(tmp_path / "new_photos", per_class=2, seed=1)
    # the embedded backbone stands in for one whose weights would be downloaded
    [block] = python_blocks(README)
    names: dict[str, object] = {}
    exec(block.replace("mobilenet_v2", "glyphnet").replace("block_16", "block_4"), names)
    assert names["model"].certificate.passed
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_ci_runs_the_readmes_test_command():
    command = README.split("<!-- test command -->")[1].split("```")[1]
    assert command.startswith("sh\npython3 -m venv .venv && ")
    assert ".venv/bin/python -m pytest" in command


def test_every_part_that_can_be_installed_by_name_stands_in_the_readme():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"]) - {"docs", "test", "dev"}
    assert {name for name in extras if f"`{name}`" not in README} == set()
