"""Several devices, processes and machines that train as one: Keras' own distribution, which is JAX's. One process with one device needs nothing of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ASKED = "KERAS_DISTRIBUTION_NUM_PROCESSES"  # Keras' own variables say which process of how many this is, and where the first one listens


def join() -> None:
    """Join the processes that `KERAS_DISTRIBUTION_NUM_PROCESSES`, `…_PROCESS_ID` and `…_JOB_ADDRESSES` speak of; without these, do nothing.

    Raises:
        ValueError: If Keras does not run on JAX.
        RuntimeError: If the others do not come, or JAX has computed something already.

    Example:
        >>> join()
        >>> count()
        1
    """
    if int(os.environ.get(_ASKED) or 1) < 2 or count() > 1:
        return
    import keras

    if keras.backend.backend() != "jax":
        raise ValueError(
            f"training in several processes needs KERAS_BACKEND=jax. Received: KERAS_BACKEND={keras.backend.backend()}, {_ASKED}={os.environ[_ASKED]}"
        )
    keras.distribution.initialize()


def count() -> int:
    """Count the processes that train as one.

    Returns:
        How many there are, this one included.
    """
    return _jax().process_count() if _joined() else 1


def rank() -> int:
    """Say which of them this is.

    Returns:
        0 for the first, which alone writes.
    """
    return _jax().process_index() if _joined() else 0


def _joined() -> bool:
    import sys

    return "jax" in sys.modules and bool(_jax().distributed.is_initialized())


def _jax() -> Any:
    import jax  # type: ignore[import-not-found,unused-ignore]

    return jax


def devices() -> int:
    """Count the devices that share a batch.

    Returns:
        Those of all processes inside `sharing`, 1 outside.
    """
    import keras

    distribution = keras.distribution.distribution()
    return 1 if distribution is None else int(distribution.device_mesh.devices.size)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Share each batch among all devices of all processes, and keep the same weights on each; with one device, or another backend than JAX, change nothing."""
    import keras

    before = keras.distribution.distribution()
    if before is None and keras.backend.backend() == "jax" and len(found := keras.distribution.list_devices()) > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found, auto_shard_dataset=False))
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def share(size: int) -> slice:
    """Say which part of a batch this process brings.

    Args:
        size: Films in the batch of all processes.

    Returns:
        A slice of the batch.

    Raises:
        ValueError: If the batch cannot be divided among the devices.

    Example:
        >>> share(32)
        slice(0, 32, None)
    """
    if size % devices():
        raise ValueError(
            f"batch_size must be a multiple of the {devices()} devices that share a batch. Received: batch_size={size}"
        )
    part = size // count()
    return slice(rank() * part, (rank() + 1) * part)


def wait(name: str) -> None:
    """Wait until all processes are here.

    Args:
        name: What they wait for; the same in all.
    """
    if count() > 1:
        from jax.experimental import multihost_utils  # type: ignore[import-not-found,unused-ignore]

        multihost_utils.sync_global_devices(name)


def agree(values: NDArray[Any]) -> NDArray[Any]:
    """Take the first process's values in all: processors round differently, and what is decided by them must be decided alike.

    Args:
        values: ndarray, of the same shape in all.

    Returns:
        ndarray of that shape.

    Example:
        >>> agree(np.ones(2)).tolist()
        [1.0, 1.0]
    """
    if count() == 1:
        return values
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(values))
