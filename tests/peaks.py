"""How much memory a call takes, as Python and NumPy count it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any


def peak_of(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call returns, and the most bytes that it held at one time beside what was there before."""
    tracemalloc.start()
    try:
        result = call()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
