"""Keeps native libraries from writing to the console while they load."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what the process writes to stderr while a block runs, native code included; exceptions pass.

    LiteRT and TensorFlow greet on stderr as they load, and have no setting against it.

    Example:
        >>> with quiet():
        ...     _ = os.write(2, b"INFO: Created a delegate")
    """
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
