"""The pages of docs/ run on tiny images, with the embedded backbone in place of one that downloads weights.

`sh` and `python` blocks run in order, and every command must exit with 0. Three kinds of blocks do not run: `console`
has commands that need a network, a GPU or much time, or that fail on purpose; `toml` has settings, `text` output.
"""

import re
import runpy
import shlex
import sys
from pathlib import Path

import h5py
import pytest
from tiny import write_images

import featcache as fc

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
README = DOCS.parent / "README.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", flags=re.DOTALL)
NOT_RUN = {"console", "toml", "text"}
LINK = re.compile(r'\]\(([^)\s]+)\)|src="([^"]+)"')


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder with the photos that the pages speak of, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    write_images(tmp_path / "photos", per_class=30)
    for number, name in enumerate(("new_photos", "photos_a", "photos_b"), start=1):
        write_images(tmp_path / name, per_class=6, first=100 * number)
    before = set(sys.modules)
    yield tmp_path
    for name in {"my_heads", "my_nets"} & (set(sys.modules) - before):
        del sys.modules[name]


def test_there_is_a_page_for_each_task_and_the_readme_leads_there():
    names = """
        quickstart photos images extract hub rank leaks labels heads finetune report predict export recipes
        model add-a-class gpu cache head backbone engine notebooks
        commands words files python scikit_learn promises integrity trust performance architecture
    """
    assert {page.stem for page in PAGES} == set(names.split())
    readme = README.read_text()
    assert [page.name for page in PAGES if f"docs/{page.name}" not in readme] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    text = BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    for link in ("".join(groups) for groups in LINK.findall(page.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_that_stands_in_a_page_runs(page, place, cli):
    names: dict[str, object] = {}
    for language, text in BLOCK.findall(page.read_text().replace("mobilenet_v2", "glyphnet")):
        if language == "sh":
            for line in text.splitlines():
                command, *arguments = shlex.split(line, comments=True)
                assert command == "featcache", line
                done = cli(*arguments)
                assert done.code == 0, (line, done.err)
        elif language == "python":
            # the page on exporting has a block for each runtime, which tests/test_readme.py runs
            if page.stem != "export":
                exec(compile(text, page.name, "exec"), names)
        elif language == "matlab":
            matlab_finds(text)
        else:
            assert language in NOT_RUN, language
    if page.stem == "cache":
        assert len(names["features"]) == len(names["digest"]) == 90


@pytest.mark.slow
def test_the_readmes_commands_for_photographs_run(place, cli):
    [commands] = [text for language, text in BLOCK.findall(README.read_text()) if text.startswith("featcache scan")]
    for line in commands.splitlines():
        command, *arguments = shlex.split(line, comments=True)
        if command == "pip":
            continue  # the tests' environment has every extra
        if arguments[0] == "extract":
            arguments += ["-b", "glyphnet"]  # the default would download its weights
        done = cli(*arguments)
        assert done.code == 0, (line, done.err)


def matlab_finds(text: str) -> None:
    """Check that what MATLAB is told to read is there, with as many rows as it is joined by."""
    asked = re.findall(r"h5read\('([^']+)', '([^']+)'\)", text)
    assert len(asked) == text.count("h5read(")
    with h5py.File(asked[0][0]) as file:
        shapes = {path: file[path].shape for _, path in asked}
    assert [len(shape) for shape in shapes.values()] == [2, 1, 1, 1]
    assert len({shape[0] for shape in shapes.values()}) == 1


def test_the_api_reference_builds_without_warnings_and_has_every_public_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build.py", str(tmp_path)])
    runpy.run_path(str(DOCS / "build.py"), run_name="__main__")  # warnings are errors
    page = (tmp_path / "featcache.html").read_text()
    for name in fc.__all__:
        assert f'id="{name}"' in page or name == "__version__", name
    assert "Absorb" not in page  # nothing of the modules within
