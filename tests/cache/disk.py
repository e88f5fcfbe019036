"""A log of every effect on the files below a folder, what a crash leaves of it, and calls that fail on purpose.

The idea is SQLite's: rebuild the disk as it may be after a crash at any point, and look what can be read from it.
After a kill everything done so far is there. After a power loss only what was synced is there for sure: of the data
of a file any subset of the writes since its last fsync, of a folder's entry any of its states since the folder's.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

GONE = 2**22 + 1  # no process can have this number
FOLDER = "folder"
CALLS = ("open", "write", "ftruncate", "fsync", "close", "replace", "unlink", "mkdir", "rmdir")
CALLS += ("lseek", "read", "preadv")


def tree(root):
    """Return {name: bytes, or FOLDER} of everything below a folder."""
    found = {}
    for one in sorted(Path(root).rglob("*")):
        found[str(one.relative_to(root))] = FOLDER if one.is_dir() else one.read_bytes()
    return found


def grow(root, files):
    """Make what `tree` returned. Temporary files become those of a process that is gone."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name.replace(f"+{os.getpid()}+", f"+{GONE}+")
        if content == FOLDER:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)


class Disk:
    """The effects of what runs inside `watching`, in order; and the failure of one of its calls."""

    def __init__(self, root):
        self.root = os.path.realpath(root)
        self.start = tree(root)
        self.log = []
        self.calls = []  # of the operating system, on files below the root
        self.hook = lambda call, path: None  # called before each
        self._handles = {}
        self._ids = {name: name for name in self.start}

    @contextmanager
    def watching(self):
        real = {name: getattr(os, name) for name in CALLS}
        with mock.patch.multiple(os, **{name: self._watched(name, real) for name in CALLS}):
            yield self

    def _watched(self, name, real):
        def call(*args, **options):
            where = self._handles.get(args[0]) if isinstance(args[0], int) else self._below(args[0])
            if where is None or (options.get("dir_fd") is not None):
                return real[name](*args, **options)
            self.calls.append(name)
            try:
                self.hook(name, where)
            except OSError:
                if name == "close":  # the handle is gone even then
                    self._handles.pop(args[0])
                    real["close"](args[0])
                raise
            return getattr(self, f"_{name}", self._other)(real, name, where, *args, **options)

        return call

    def _below(self, path):
        path = os.path.abspath(os.fsdecode(path)) if not isinstance(path, int) else None
        if path is None or (path != self.root and not path.startswith(self.root + os.sep)):
            return None
        return os.path.relpath(path, self.root)

    def _other(self, real, name, where, *args, **options):
        return real[name](*args, **options)

    def _open(self, real, _, where, path, flags, *args, **options):
        handle = real["open"](path, flags, *args, **options)
        if flags & os.O_CREAT and flags & os.O_EXCL:
            self._ids[where] = f"{where} {len(self.log)}"
            self.log.append(("entry", where, self._ids[where]))
        self._handles[handle] = where
        return handle

    def _close(self, real, _, where, handle):
        self._handles.pop(handle)
        real["close"](handle)

    def _write(self, real, _, where, handle, data):
        at = real["lseek"](handle, 0, os.SEEK_CUR)
        size = real["write"](handle, data)
        self.log.append(("write", self._ids[where], at, bytes(data[:size])))
        return size

    def _ftruncate(self, real, _, where, handle, size):
        real["ftruncate"](handle, size)
        self.log.append(("truncate", self._ids[where], size))

    def _fsync(self, real, _, where, handle):
        folder = os.path.isdir(os.path.join(self.root, where))  # of the disk itself nothing is asked: that is slow
        self.log.append(("sync folder", where) if folder else ("sync", self._ids[where]))

    def _replace(self, real, _, where, source, target):
        real["replace"](source, target)
        target = self._below(target)
        self._ids[target] = self._ids.pop(where)
        self.log.append(("rename", where, target, self._ids[target]))

    def _unlink(self, real, _, where, path, **options):
        real["unlink"](path, **options)
        self.log.append(("entry", where, None))

    def _rmdir(self, real, _, where, path, **options):
        real["rmdir"](path, **options)
        self.log.append(("entry", where, None))

    def _mkdir(self, real, _, where, path, *args, **options):
        real["mkdir"](path, *args, **options)
        self.log.append(("entry", where, FOLDER))

    def after_kill(self, at, share=0.0):
        """Return the tree after `at` effects, and this share of the next one if that is a write."""
        log = self.log[:at]
        if share and at < len(self.log) and self.log[at][0] == "write":
            _, which, offset, data = self.log[at]
            log = [*log, ("write", which, offset, data[: int(share * len(data))])]
        return self._rebuilt(log, lambda states: states[-1], lambda writes: writes)

    def after_power_loss(self, at, random=None):
        """Return a tree that a power loss may leave: without `random` only what was synced, else any state."""
        if random is None:
            return self._rebuilt(self.log[:at], lambda states: states[0], lambda writes: [])

        def some(writes):
            kept = [one for one in writes if random.random() < 0.7]
            return [self._torn(one, random) for one in kept]

        return self._rebuilt(self.log[:at], random.choice, some)

    def _torn(self, effect, random):
        if effect[0] != "write" or random.random() < 0.7:
            return effect
        _, which, offset, data = effect
        return ("write", which, offset, data[: random.randrange(len(data) + 1)])

    def _rebuilt(self, log, choose, keep):
        data = {which: ([] if content == FOLDER else [("content", content)]) for which, content in self.start.items()}
        waiting = {}
        entries = {name: [FOLDER if content == FOLDER else name] for name, content in self.start.items()}
        for effect in log:
            kind, which = effect[:2]
            if kind in ("write", "truncate"):
                waiting.setdefault(which, []).append(effect)
            elif kind == "sync":
                data.setdefault(which, []).extend(waiting.pop(which, []))
            else:
                self._enter(entries, *effect)
        there, contents = {}, {}
        for name, states in sorted(entries.items()):
            state = choose(states)
            folder = os.path.dirname(name)
            if state is None or (folder and there.get(folder) != FOLDER):
                continue
            if state != FOLDER and state not in contents:
                contents[state] = self._content([*data.get(state, []), *keep(waiting.get(state, []))])
            there[name] = FOLDER if state == FOLDER else contents[state]
        return there

    def _enter(self, entries, kind, which, *rest):
        if kind == "entry":
            entries.setdefault(which, [None]).append(rest[0])
        elif kind == "rename":
            entries[which].append(None)
            entries.setdefault(rest[0], [None]).append(rest[1])
        for name, states in entries.items() if kind == "sync folder" else ():
            if (os.path.dirname(name) or ".") == which:
                states[:] = states[-1:]

    def _content(self, effects):
        content = bytearray()
        for kind, *rest in effects:
            if kind == "content":
                content[:] = rest[0]
            elif kind == "truncate":
                content = content[: rest[1]].ljust(rest[1], b"\0")
            else:
                _, at, written = rest
                content = content.ljust(at, b"\0")
                content[at : at + len(written)] = written
        return bytes(content)


class FailAt:
    """A hook that lets the n-th call fail, and with `lasting` all that could need space after it."""

    def __init__(self, number, error, lasting=False):
        self.left, self.error, self.lasting = number, error, lasting
        self.failed = None

    def __call__(self, call, path):
        self.left -= 1
        if self.left == 0 or (self.lasting and self.left < 0 and call in ("open", "write", "ftruncate", "fsync")):
            self.failed = self.failed or call
            raise OSError(self.error, os.strerror(self.error), path)
