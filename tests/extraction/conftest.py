import pytest

from .counting import Counter, count


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Return what counts every image that goes through an engine, and every backbone that is built."""
    return count(monkeypatch)
