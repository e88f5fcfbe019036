"""TAB in a real bash: commands, options and values, offered without Keras."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from featcache import spec
from featcache.backbones.registry import REGISTRY
from featcache.extras.recipes import RECIPES
from featcache.heads.estimators import FAMILIES
from featcache_cli import complete

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
HEAVY = ("keras", "tensorflow", "sklearn", "h5py")


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Return the environment of a shell that finds `featcache`, in a home of its own, and says what it imports."""
    folder = tmp_path_factory.mktemp("shell")
    command = folder / "featcache"
    check = f"import atexit, sys; atexit.register(lambda: print(*[n for n in {HEAVY} if n in sys.modules]))"
    command.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "{check}; from featcache_cli.app import main; main()" "$@"\n'
    )
    command.chmod(0o755)
    path = os.pathsep.join(one for one in sys.path if one)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "PYTHONPATH": path}


def bash(shell, script, cwd=None):
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, env=shell, cwd=cwd)
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture(scope="module")
def offered(shell):
    """Return a function that gives what bash would offer after TAB."""
    # with one command alone bash would become featcache, which looks for the shell that it was started from
    script = bash(shell, "featcache --show-completion; true")

    def after(*words):
        line = " ".join(f"'{word}'" for word in ("featcache", *words))
        called = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _featcache_completion featcache; "
        return bash(shell, f'{script}\n{called}printf "%s\\n" "${{COMPREPLY[@]}}"').split()

    return after


def test_tab_completes_a_command_in_an_interactive_bash_after_installing(shell):
    assert "completion installed" in bash(shell, "featcache --install-completion && true")
    terminal, theirs = pty.openpty()
    command = ["bash", "--rcfile", f"{shell['HOME']}/.bashrc", "-i"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=shell, start_new_session=True)
    os.close(theirs)
    shown, until = b"", time.monotonic() + 30
    os.write(terminal, b"featcache ext\t")
    while b"featcache extract " not in shown and time.monotonic() < until:
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096)
    process.kill()
    process.wait()
    os.close(terminal)
    assert b"featcache extract " in shown


def test_commands_and_options_are_offered(offered):
    assert offered("ex") == ["extract", "export"]
    assert offered("cache", "in") == ["info"]
    assert {"--json", "--config", "--quiet"} <= set(offered("show", "--"))


@pytest.mark.slow
def test_values_are_offered_and_after_a_comma_again(offered):
    assert offered("compare", "--metric", "bal") == ["balanced_accuracy"]
    assert "resnet50" in offered("backbones", "fetch", "resnet5")
    assert offered("extract", "photos", "-b", "mobilenet_v") == [
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mobilenet_v3_large",
    ]
    assert offered("extract", "photos", "-b", "vgg16,vgg") == ["vgg16,vgg16", "vgg16,vgg19"]
    assert offered("sweep", "c.h5", "--heads", "lo") == ["logreg"]
    assert offered("cache", "export", "c.h5", "--split", "") == ["train", "val", "test"]
    assert offered("backbones", "show", "xc") == ["xception"]
    assert offered("finetune", "RUN@best", "--augment", "") == ["none", "light", "strong", "tutorial"]
    assert offered("sweep", "c.h5", "--preset", "c") == ["clip"]
    assert offered("recipe", "fl") == ["flowers", "flower-photos"]


def test_files_are_left_to_the_shell(offered):
    assert offered("scan", "te") == []


def test_what_is_offered_without_being_declared_is_what_the_library_takes():
    """The choices of options are Literal types of featcache.settings, which tests/test_settings.py compares."""
    assert complete.backbones("") == list(REGISTRY)
    assert complete.heads("") == list(FAMILIES)
    assert complete.SPLITS == spec.SPLITS
    assert complete.RECIPES("") == ["list", *RECIPES]
