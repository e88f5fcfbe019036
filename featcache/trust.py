"""Which classes and functions may be imported: those that the user named, never those that only a file names.

A run says which class each head was, a cache which function made its backbone. Whoever wrote the file chose these
names, so a name from a file imports nothing and calls nothing. The user names code on the command line (-b, --heads,
--allow), as an argument of `extract` and `sweep`, or by `allow`. The names hold for this process, as modules do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from shlex import quote

from featcache.errors import UsageError

ALLOWED: set[str] = set()


def allow(*names: str) -> None:
    """Let runs and caches use these classes and functions of yours: "my_heads:Nearest", "my_nets:small".

    They are imported when a file asks for them. Raises UsageError for a name that is not module:Class or
    module:function.
    """
    # Check all names before any is allowed.
    for name in names:
        module, _, attribute = name.partition(":")
        parts = [*module.split("."), attribute]
        if not all(part.isidentifier() for part in parts):
            raise UsageError(f"Name code as module:Class or module:function, such as my_heads:Nearest; got '{name}'")
    ALLOWED.update(names)


def is_allowed(name: str) -> bool:
    """Return whether the user named this class or function."""
    return name in ALLOWED


def how_to_allow(name: str) -> str:
    """Return what to do about a name that only a file gives, for the end of a message."""
    return f"If you trust that code: --allow {name} (in Python: fc.allow('{name}'))"


def allow_flags(names: Iterable[str]) -> str:
    """Return the --allow options for a command that needs this code, each after a space."""
    return "".join(f" --allow {quote(name)}" for name in names)


@contextmanager
def current_folder_last() -> Iterator[None]:
    """Have modules of the current folder found, where there is no installed one of that name.

    The folder comes last because it may be a download: a ./sklearn or ./numpy in it must not stand in for the installed
    package, neither for the module that the user named nor for what that module, Keras or scikit-learn imports then.
    """
    current_folder = os.getcwd()
    if current_folder in sys.path:  # Python was started so
        yield
        return
    sys.path.append(current_folder)
    try:
        yield
    finally:
        sys.path.remove(current_folder)
