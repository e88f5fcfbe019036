"""Locks save work where there are some, and are left out where there are none."""

import errno
import os
import threading

import filelock
import pytest

from featcache.locks import locked

NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


def never():
    raise AssertionError("nobody else holds the lock")


@pytest.mark.parametrize("code", NO_LOCKS)
def test_where_the_file_system_has_no_locks_the_work_is_done(code, tmp_path, monkeypatch):
    def refused(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refused)
    with locked(tmp_path / "lock", busy=never) as waited, locked(tmp_path / "lock", busy=never):
        assert not waited
    assert [path.name for path in tmp_path.iterdir() if path.stat().st_size] == []  # no marker that a kill would leave


def test_where_the_folder_has_gone_the_work_is_done(tmp_path):
    with locked(tmp_path / "gone" / "lock", busy=never) as waited:
        assert not waited


def test_another_that_holds_the_lock_is_told_and_waited_for(tmp_path):
    done, told, held = [], threading.Event(), filelock.FileLock(tmp_path / "lock")

    def second():
        with locked(tmp_path / "lock", busy=told.set) as waited:
            done.append(waited)

    with held:
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(60)
        assert done == []
    thread.join(60)
    assert done == [True]


def test_a_refusal_while_another_holds_the_lock_is_passed_on(tmp_path):
    with filelock.FileLock(tmp_path / "lock"), pytest.raises(AssertionError), locked(tmp_path / "lock", busy=never):
        pass
