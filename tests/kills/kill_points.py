"""Stop a command at one of its operations on files, and run it again: kills.kill_points ROOT HOW MOST NAME..

HOW: KILL, INT or TERM. MOST: at how many operations each command is stopped. Every command runs in a fork of this
process, which has imported what the commands need, but has computed nothing: TensorFlow does not survive a fork.
Prints a line of JSON for each command: how many operations it has, at which it was stopped, and what was wrong.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from extras.leaks.conftest import copy, write_pictures
from kills.victims import LOOK, STAGES, VICTIMS, WITH_KERAS, comparable
from tiny import write_images

from featcache_cli.app import main as featcache

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "remove", "os.rmdir": "rmdir", "os.link": "link"}
LONGEST_S = 300
NOT_BEFORE_A_FORK = {"__main__", "onnxruntime", "tf2onnx"}  # its threads are not there after a fork, and waited for
OLD = time.time() - 1000  # an index remembers no image that was written just now


class Watch:
    """Notes every operation that changes files below a folder, and sends this process a signal at one of them.

    Native code writes unseen; what Python does before and after it is seen.
    """

    def __init__(self, root: Path, log: Path, at: int, number: int) -> None:
        self.root = os.path.realpath(root)
        self.left, self.number = at, number
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.lock = threading.RLock()
        self.write, os.write = os.write, self.written
        os.fsync = lambda handle: None
        sys.addaudithook(self.audited)

    def audited(self, event: str, arguments: tuple[object, ...]) -> None:
        """See an operation of Python's."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and isinstance(flags, int) and flags & WRITES:
                self.note("open", path)
        elif event in CHANGES:
            self.note(CHANGES[event], arguments[0], relative=arguments[-1] not in (-1, None, 0o777))

    def written(self, handle: int, data: bytes) -> int:
        """Write, or only half of it when it is time to go."""
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return self.write(handle, data)
        with self.lock:
            if self.left == 1 and self.number == signal.SIGKILL:
                self.write(handle, memoryview(data).cast("B")[: len(data) // 2])
            self.note("write")
            return self.write(handle, data)

    def note(self, operation: str, path: object = None, relative: bool = False) -> None:
        """Count an operation, and send the signal if this is the one."""
        if path is not None and not relative:
            path = os.path.abspath(os.fsdecode(path))
            if not path.startswith(self.root + os.sep):
                return
        with self.lock:
            self.write(self.log, f"{operation} {os.path.basename(path) if path else ''}\n".encode())
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)


class Place:
    """Where the commands run: always in one folder, since caches and runs name others by their paths."""

    def __init__(self, root: Path) -> None:
        self.root, self.work = root, root / "work"
        self.log, self.said = root / "operations", root / "said"
        self.stages = root / "stages"
        photos = write_images(root / "inputs" / "photos")
        leaky = write_pictures(root / "inputs" / "leaky")
        for number, label in enumerate(("daisy", "iris", "rose")):
            copy(leaky / label / "000.png", leaky / label / "copy.jpg", quality=90 - number)
        for image in [*photos.rglob("*.*"), *leaky.rglob("*.*")]:
            os.utime(image, (OLD, OLD))

    def fill(self, stage: str) -> None:
        """Make the folder as it is before a command, with a place for the temporary files of the system."""
        shutil.rmtree(self.work, ignore_errors=True)
        kept = self.stages / stage
        if kept.exists():
            shutil.copytree(kept, self.work)
            return
        before, commands = STAGES[stage]
        if before is None:
            (self.work / "tmp").mkdir(parents=True)
        else:
            self.fill(before)
        for command in commands:
            code = self.run(command)
            assert code == 0, f"{command}: exit {code}: {self.last_words()}"
        shutil.copytree(self.work, kept)

    def run(self, command: tuple[str, ...], at: int = 0, number: int = signal.SIGKILL) -> int:
        """Run a command in a fork, and send it a signal at an operation. Return its exit code, -9 if it was killed."""
        sys.stdout.flush()
        process = os.fork()
        if not process:
            self.become(command, at, number)
        ends = time.monotonic() + LONGEST_S
        while time.monotonic() < ends:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise TimeoutError(f"{command} hangs: {self.last_words()}")

    def become(self, command: tuple[str, ...], at: int, number: int) -> None:
        """Be the command, in this process, which ends with it."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
        os.chdir(self.work)
        os.environ["TMPDIR"], tempfile.tempdir = str(self.work / "tmp"), None
        said = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = ["featcache", *command]
        Watch(self.work, self.log, at, number)
        try:
            featcache()
        finally:
            (self.root / "modules").write_text("\n".join(sys.modules))

    def last_words(self) -> str:
        """Return the end of what the last command printed."""
        return self.said.read_text(errors="replace")[-1500:]

    def operations(self) -> list[str]:
        """Return what the last command did to files."""
        return self.log.read_text().splitlines()

    def result(self) -> dict[str, object]:
        """Return what is in the folder, but for what Keras and TensorFlow leave among temporary files.

        All that featcache makes there has a name by which it is known: see tests/test_files.py.
        """
        found: dict[str, object] = {}
        for path in sorted(self.work.rglob("*")):
            name = str(path.relative_to(self.work))
            if name.startswith("tmp/") and not name.startswith("tmp/.tmp-"):
                continue
            found[_without_number(name)] = "folder" if path.is_dir() else comparable(name, path.read_bytes())
        return found

    def import_all(self) -> None:
        """Import what the last command had imported, so that the next ones start at once."""
        for name in (self.root / "modules").read_text().splitlines():
            if name not in sys.modules and name.partition(".")[0] not in NOT_BEFORE_A_FORK:
                with suppress(Exception):
                    import_module(name)
        gc.freeze()  # else every fork looks at, and so copies, all of that once more when it ends


def _without_number(name: str) -> str:
    """Return the name of a file, without the time and the process that are in some."""
    folder, _, last = name.rpartition("/")
    if LOOK.search(name):
        return f"{folder}/look"
    return f"{folder}/tfevents" if "tfevents" in last else name


def stop_everywhere(place: Place, victim, number: int, most: int) -> dict[str, object]:
    """Stop a command at its operations and run it again; return what was wrong."""
    place.fill(victim.stage)
    code = place.run(victim.command)
    problems = [] if code in (0, 3) else [f"exit {code}: {place.last_words()}"]
    place.import_all()
    operations, whole = place.operations(), place.result()
    points, exits = chosen(operations, most), []
    for at in points:
        where = f"stopped at {at} of {len(operations)}, {operations[at - 1]}"
        place.fill(victim.stage)
        stopped = place.run(victim.command, at, number)
        exits.append(stopped)
        problems += [f"{where}: {what}" for what in wrong_when_stopped(place, stopped, code, number)]
        problems += [f"{where}: {what}" for what in wrong_after(place, victim, code, whole)]
    place.fill(victim.stage)
    place.run(victim.command)
    problems += [f"run twice: {what}" for what in wrong_after(place, victim, code, whole)]
    return {"name": victim.name, "operations": len(operations), "stopped": points, "exits": exits, "problems": problems}


def wrong_when_stopped(place: Place, stopped: int, code: int, number: int) -> list[str]:
    """Return what is wrong with how the command ended. Late signals may find nothing left to stop."""
    if number == signal.SIGKILL:
        return [] if stopped in (-number, code) else [f"exit {stopped} when killed"]
    wrong = [] if stopped in (130, code) else [f"exit {stopped}: {place.last_words()}"]
    litter = [path.name for path in place.work.rglob(".tmp-*")]
    return [*wrong, f"left over: {litter}"] if litter else wrong


def wrong_after(place: Place, victim, code: int, whole: dict[str, object]) -> list[str]:
    """Run the command again; return in what the result is not the one of a command that nobody stopped."""
    again = place.run(victim.command)
    if again != code:
        return [f"then exit {again}: {place.last_words()}"]
    now = place.result()
    wrong = {
        "left over": now.keys() - whole.keys(),
        "missing": whole.keys() - now.keys(),
        "different": {name for name in now.keys() & whole.keys() if now[name] != whole[name]},
    }
    return [f"{what}: {', '.join(sorted(names)[:5])}" for what, names in wrong.items() if names]


def chosen(operations: list[str], most: int) -> list[int]:
    """Return the numbers of operations to stop at, spread evenly; of the many writes of HDF5 a few."""
    numbers = [at for at, line in enumerate(operations, 1) if not line.startswith("write") or at % 8 == 1]
    if most == 1:
        return [numbers[len(numbers) // 2]]
    step = max(1.0, (len(numbers) - 1) / (most - 1))
    return sorted({numbers[min(round(index * step), len(numbers) - 1)] for index in range(min(most, len(numbers)))})


def main(root: str, how: str, most: str, *names: str) -> None:
    place = Place(Path(root))
    for victim in VICTIMS + WITH_KERAS:
        if victim.name in names:
            number = signal.Signals[f"SIG{how}"]
            print(json.dumps(stop_everywhere(place, victim, number, int(most))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
