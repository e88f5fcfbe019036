"""The README's Python runs, and its test command is what CI runs."""

import re
from pathlib import Path

import pytest
from tiny import write_images

README = (Path(__file__).parents[1] / "README.md").read_text()


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", per_class=30)
    write_images(tmp_path / "new_photos", per_class=2, seed=1)
    # the embedded backbone stands in for one whose weights would be downloaded
    code = "\n".join(python_blocks()).replace("mobilenet_v2", "glyphnet").replace("block_16", "block_4")
    names: dict[str, object] = {}
    exec(code, names)
    assert len(names["features"]) == len(names["digest"]) == 90
    assert names["model"].certificate.passed
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_ci_runs_the_readmes_test_command():
    command = README.split("<!-- test command -->")[1].split("```")[1]
    assert command.startswith("sh\npython3 -m venv .venv && ")
    assert command.rstrip().endswith("python -m pytest")
