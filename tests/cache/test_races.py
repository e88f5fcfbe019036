"""Any number of extractions and readers at once, without a lock: no row is lost, and readers see whole states."""

import os
import random
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.cache import layout, parts, rows
from featcache.cache.layout import part_files
from featcache.cache.reader import Cache
from featcache.files import Overtaken

from .disk import Disk, tree
from .scenes import DIGESTS, FACTS, IMAGES, MAPS, TOP, all_of, commit, maps, merge, rows_of, top

pytestmark = pytest.mark.slow  # processes and threads that race

TESTS = Path(__file__).parents[1]
NAMES = {"open", "replace", "unlink", "mkdir", "rmdir"}  # calls that others can notice
END = 10**9


class Turns:
    """Let threads go on one at a time, by a plan of (who, how many steps)."""

    def __init__(self, plan, actors):
        self.plan, self.changed = list(plan), threading.Condition()
        self.actors, self.done, self.steps = actors, set(), [[] for _ in range(actors)]
        self._me = threading.local()

    def step(self, what):
        """Wait for this thread's turn, if it is one of the actors."""
        me = getattr(self._me, "number", None)
        if me is None:
            return
        with self.changed:
            self.steps[me].append(what)
            who, left = self.plan[0]
            assert who == me
            self.plan[0] = (who, left - 1)
            self._wait(me)

    def _wait(self, me):
        while self.plan and (self.plan[0][1] <= 0 or self.plan[0][0] in self.done):
            self.plan.pop(0)
        if not self.plan:
            self.plan += [(one, END) for one in range(self.actors) if one not in self.done]
        self.changed.notify_all()
        while self.plan and self.plan[0][0] != me:
            assert self.changed.wait(timeout=60), "nobody goes on"

    def play(self, works):
        """Run the works, one thread each, to their ends; raise what any of them raised."""
        errors = []

        def act(number, work):
            self._me.number = number
            try:
                with self.changed:
                    self._wait(number)
                work()
            except BaseException as error:
                errors.append(error)
            finally:
                with self.changed:
                    self.done.add(number)
                    self._wait_not()

        threads = [threading.Thread(target=act, args=one) for one in enumerate(works)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _wait_not(self):
        while self.plan and self.plan[0][0] in self.done:
            self.plan.pop(0)
        if not self.plan:
            self.plan += [(one, END) for one in range(self.actors) if one not in self.done]
        self.changed.notify_all()


@contextmanager
def interleaved(root, turns):
    """Make every file operation below a folder a step of whoever does it."""
    disk = Disk(root)
    disk.hook = lambda call, path: turns.step(call) if call in NAMES else None
    with pytest.MonkeyPatch.context() as patched, disk.watching():
        for module, name in [
            (layout, "reading"),
            (layout, "reading_part"),
            (layout, "part_files"),
            (parts, "part_files"),
        ]:
            real = getattr(module, name)
            patched.setattr(module, name, lambda *args, name=name, real=real: (turns.step(name), real(*args))[1])
        yield


@pytest.fixture(params=["new", "again", "folder"])
def begin(request, tmp_path):
    """Return a function that makes the cache that two extractions are to work on, each time in an empty folder."""
    numbers = iter(range(10**6))

    def begun():
        cache = tmp_path / str(next(numbers)) / "c.h5"
        cache.parent.mkdir()
        if request.param == "folder":
            cache.mkdir()
        commit(cache, 0, 1)
        if request.param != "new":
            merge(cache)
            commit(cache, 1, 2)
        return cache

    return begun


def works_of(cache):
    def first():
        commit(cache, 2, 5)
        merge(cache)

    def second():
        commit(cache, 4, 7)
        commit(cache, 7, 8, maker=1)
        merge(cache)

    return [first, second]


def play(cache, plan, works):
    turns = Turns(plan, len(works))
    with interleaved(cache.parent, turns):
        turns.play(works)
    return turns.steps


def check(cache):
    """Assert that every row is there once, and that one more merge brings all into the one file."""
    had = range(8) if len(rows_of(cache)[TOP.fingerprint]) == 8 else [0, *range(2, 8)]
    assert rows_of(cache) == all_of(list(had))
    cache_now = merge(cache)
    assert len(cache_now.rows) == len(IMAGES)
    assert rows_of(cache) == all_of(list(had))
    assert not [name for name in tree(cache.parent) if ".tmp-" in name or ".damaged" in name]
    if not cache.is_dir():
        assert list(cache.parent.iterdir()) == [cache]
        with h5py.File(cache) as file:
            stored = list(file["taps"][TOP.name]["digest"])
        assert len(set(stored)) == len(stored) == len(had)


def steps_of(begin):
    """Return how many steps each of the two takes if nobody is in the way."""
    cache = begin()
    return [len(steps) for steps in play(cache, [(0, END), (1, END)], works_of(cache))]


def pauses(begin, some):
    """Return plans: one goes i steps, the other j or to its end, then both end; some of each kind."""
    steps = steps_of(begin)
    plans = [
        [(me, i), (1 - me, j), (me, END), (1 - me, END)]
        for me in (0, 1)
        for i in range(1, steps[me] + 1)
        for j in (*range(1, steps[1 - me] + 1), END)
    ]
    once = [plan for plan in plans if plan[1][1] == END]
    return [*random.Random(0).sample(once, min(some, len(once))), *random.Random(1).sample(plans, some)]


def take_turns(begin, some):
    for plan in pauses(begin, some):
        cache = begin()
        play(cache, plan, works_of(cache))
        check(cache)


@pytest.mark.usefixtures("_fast")
def test_two_extractions_that_take_turns_lose_no_row(begin):
    take_turns(begin, 8)


@pytest.mark.usefixtures("_fast")
def test_two_extractions_that_take_many_turns_lose_no_row(begin):
    take_turns(begin, 50)


@pytest.mark.usefixtures("_fast")
def test_extractions_that_take_turns_at_random_lose_no_row(begin):
    chosen = random.Random(0)
    for _ in range(6):
        cache = begin()
        plan = [(chosen.randrange(3), chosen.randint(1, 9)) for _ in range(60)]
        play(cache, plan, [*works_of(cache), lambda cache=cache: merge(cache)])
        check(cache)


@pytest.mark.parametrize("call", ["replace", "fsync", "unlink"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_merge_inside_the_last_step_of_a_merge_loses_no_row(tmp_path, call, earlier):
    cache = tmp_path / "c.h5"
    if earlier:
        commit(cache, 0, 2)
        merge(cache)
    commit(cache, 2, 5)
    disk, others = Disk(tmp_path), [lambda: (commit(cache, 5, 9), merge(cache))]

    def inside(now, path):
        if now == call and "/" not in path.removeprefix("c.h5.parts/") and others:
            others.pop()()

    disk.hook = inside
    with disk.watching():
        merge(cache)
    wanted = all_of(range(0 if earlier else 2, 9))
    assert rows_of(cache) == wanted
    merge(cache)
    assert rows_of(cache) == wanted
    assert list(tmp_path.iterdir()) == [cache]


@pytest.mark.parametrize("later", [1, 2, 3])
def test_of_two_merges_that_rename_right_behind_each_other_no_row_is_lost(tmp_path, later):
    def begun(name):
        cache = tmp_path / name / "c.h5"
        cache.parent.mkdir()
        commit(cache, 0, 2)
        merge(cache)
        commit(cache, 2, 5)
        return cache

    def works(cache):
        return [lambda: merge(cache), lambda: (commit(cache, 5, 9), merge(cache))]

    cache = begun("steps")
    first, second = play(cache, [(0, END), (1, END)], works(cache))
    looked = first.index("replace") + 1  # the first has looked whether the table is still the one it read
    renamed = len(second) - second[::-1].index("replace")  # the second is about to rename its own
    cache = begun("raced")
    play(cache, [(0, looked), (1, renamed + later), (0, END), (1, END)], works(cache))
    assert rows_of(cache) == all_of(range(9))
    merge(cache)
    assert rows_of(cache) == all_of(range(9))


@pytest.fixture
def _fast(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def read_whole(cache, number):
    """Read a cache as a user does: the first images have had rows all the time, so none may be missing or wrong."""
    opened = Cache.open(cache)
    assert len(opened.rows) == len(IMAGES)
    there = [row for row in opened.rows if row.digest in DIGESTS[:number]]
    digests = [row.digest for row in there]
    assert np.array_equal(opened.features(there, TOP.name), top(digests))
    assert np.array_equal(opened.features(there, MAPS.name), maps(digests).astype(np.float32))


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.usefixtures("_fast")
def test_a_reader_sees_whole_states_wherever_it_pauses(tmp_path, folder):
    def begun(number):
        cache = tmp_path / str(number) / "c.h5"
        (cache if folder else cache.parent).mkdir(parents=True)
        commit(cache, 0, 2)
        commit(cache, 2, 3)
        merge(cache)
        commit(cache, 3, 5)
        commit(cache, 5, 9, maker=1)
        return cache

    def works(cache):
        return [lambda: read_whole(cache, 3), lambda: merge_in_other_order(cache)]

    def merge_in_other_order(cache):
        parts.merge(cache, IMAGES[::-1], {}, FACTS)
        commit(cache, 0, 9)
        merge(cache)

    reads, writes = map(len, play(begun("steps"), [(0, END), (1, END)], works(tmp_path / "steps" / "c.h5")))
    assert reads > 3
    plans = [(i, j) for i in range(1, reads + 1) for j in range(1, writes + 1)]
    for number, (i, j) in enumerate(random.Random(0).sample(plans, 10)):
        cache = begun(number)
        play(cache, [(0, i), (1, j), (0, END), (1, END)], works(cache))
    for i in range(0, reads + 1, 2):
        cache = begun(f"pause {i}")
        play(cache, [(0, i), (1, END), (0, END)], works(cache))


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.usefixtures("_fast")
def test_a_plan_misses_no_row_that_is_merged_while_it_is_made(tmp_path, folder):
    def begun(name):
        cache = tmp_path / name / "c.h5"
        (cache if folder else cache.parent).mkdir(parents=True)
        commit(cache, 0, 3)
        merge(cache)
        commit(cache, 3, 5)
        commit(cache, 5, 9)
        return cache

    def planned(cache):
        found = parts.read_rows(cache)
        assert {tap: sorted(rows.digests) for tap, rows in found.items()} == all_of(range(9))

    def works(cache):
        return [lambda: planned(cache), lambda: merge(cache)]

    steps, _ = play(begun("steps"), [(0, END), (1, END)], works(tmp_path / "steps" / "c.h5"))
    for at in range(len(steps) + 1):
        cache = begun(str(at))
        play(cache, [(0, at), (1, END), (0, END)], works(cache))


def test_processes_that_commit_and_merge_at_random_lose_no_row(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    for kind in ("file", "folder"):
        (tmp_path / kind / "c.h5" if kind == "folder" else tmp_path / kind).mkdir(parents=True)
        cache = tmp_path / kind / "c.h5"
        commands = [[sys.executable, "-m", "cache.racer", str(cache), str(number)] for number in range(3)]
        racers = [subprocess.Popen(one, env=environment, stderr=subprocess.PIPE, text=True) for one in commands]
        errors = [racer.communicate(timeout=300)[1] for racer in racers]
        assert [racer.returncode for racer in racers] == [0, 0, 0], errors
        merge(cache)
        assert rows_of(cache) == all_of(range(9))
        assert not [name for name in tree(cache.parent) if ".tmp-" in name or ".damaged" in name]


def test_a_part_that_is_gone_when_it_is_compared_is_no_damage(tmp_path):
    """Another process may remove a part, whose rows it has copied, between opening it and comparing its rows."""
    commit(tmp_path / "c.h5", 0, 2)
    [part] = part_files(tmp_path / "c.h5")
    with layout.reading_part(part) as file:
        [group] = layout.tap_groups(file, part)[:1]
        part.unlink()
        with pytest.raises(Overtaken):
            rows.check_tap(group, part)


def with_group(cache, name, number):
    """Return what puts one image more into a group of the table, as that is when it is asked."""

    def decide():
        rows = Cache.open(cache).rows
        row = rows[number]._replace(group=name)
        return parts.ImageTable([*rows[:number], row, *rows[number + 1 :]], {}, FACTS)

    return lambda: parts.merge_decided(cache, decide)


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.usefixtures("_fast")
def test_what_is_decided_about_images_is_never_lost_unseen(tmp_path, folder):
    def begun(name):
        cache = tmp_path / name / "c.h5"
        (cache if folder else cache.parent).mkdir(parents=True)
        commit(cache, 0, 2)
        merge(cache)
        commit(cache, 2, 9)
        return cache

    def works(cache):
        return [with_group(cache, "first", 0), with_group(cache, "second", 1)]

    cache = begun("steps")
    steps, _ = play(cache, [(0, END), (1, END)], works(cache))
    for at in range(len(steps) + 1):  # wherever the first pauses, the second does all that it does
        cache = begun(str(at))
        play(cache, [(0, at), (1, END), (0, END)], works(cache))
        assert [row.group for row in Cache.open(cache).rows[:3]] == ["first", "second", ""]
        assert rows_of(cache) == all_of(range(9))
