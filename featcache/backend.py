"""Start Keras without the greeting that TensorFlow's C++ code prints on stderr before it can be configured."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# GPUs would compute float32 in TF32, with 10 bits of mantissa, without a word: cuBLAS and cuDNN, and JAX
TRUE_FLOAT32 = {"NVIDIA_TF32_OVERRIDE": "0", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}


def start_keras() -> None:
    """Import Keras; if TF_CPP_MIN_LOG_LEVEL asks for silence (2 or more), with stderr closed meanwhile.

    An import that fails still raises, so nothing that matters is lost.
    """
    if "keras" in sys.modules:
        return
    for name, value in TRUE_FLOAT32.items():
        os.environ.setdefault(name, value)
    with quietly():
        import keras  # noqa: F401


@contextmanager
def quietly() -> Iterator[None]:
    """Have what native code prints on stderr lost, if TF_CPP_MIN_LOG_LEVEL asks for silence (2 or more)."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") < "2":
        yield
        return
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
