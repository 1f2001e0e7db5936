"""Several devices, processes and machines that train as one, through `keras.distribution` on the JAX backend.

`KERAS_DISTRIBUTION_NUM_PROCESSES`, `…_PROCESS_ID` and `…_JOB_ADDRESSES` tell each process which of how many it is.
One process with one device needs nothing of this.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PROCESSES = "KERAS_DISTRIBUTION_NUM_PROCESSES"


def join() -> None:
    """Join the other processes, if the environment names any.

    Raises:
        ValueError: If Keras does not run on JAX.
    """
    if int(os.environ.get(_PROCESSES) or 1) < 2 or _joined():
        return
    import keras

    if (backend := keras.backend.backend()) != "jax":
        raise ValueError(f"training in several processes needs KERAS_BACKEND=jax. Received: KERAS_BACKEND={backend}")
    keras.distribution.initialize()


def leave() -> None:
    """Part from the other processes, all at once: one that went alone would be waited for, and then end them all."""
    if _joined():
        _jax().distributed.shutdown()


def rank() -> int:
    """Say which process this is: 0 for the first, which alone writes."""
    return int(_jax().process_index()) if _joined() else 0


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Share each batch among all devices of all processes; with one device, or without JAX, change nothing."""
    import keras

    if keras.backend.backend() != "jax" or len(found := keras.distribution.list_devices()) < 2:
        yield
        return
    with _distribution(keras.distribution.DataParallel(devices=found, auto_shard_dataset=False)):
        yield


def alone() -> contextlib.AbstractContextManager[None]:
    """Let each device compute all of what follows, inside `sharing`: for what would be shared in uneven parts."""
    return _distribution(None)


def share(size: int) -> slice:
    """Say which part of a batch this process brings.

    Args:
        size: Images in the batch of all processes.

    Returns:
        A slice of the batch.

    Raises:
        ValueError: If the batch cannot be divided among the devices.

    Example:
        >>> share(32)
        slice(0, 32, None)
    """
    if size % (devices := _count()):
        raise ValueError(f"batch_size must be a multiple of the number of devices, {devices}. Received: {size}")
    part = size // (_jax().process_count() if _joined() else 1)
    return slice(rank() * part, (rank() + 1) * part)


def repeat(values: NDArray[Any]) -> NDArray[Any]:
    """Repeat a batch of any size, so that each device measures all of it: means and AUROC stay the same.

    Args:
        values: ndarray of shape (n, …), the same in all processes.

    Returns:
        ndarray of shape (n * devices of this process, …).

    Example:
        >>> repeat(np.ones(3)).shape
        (3,)
    """
    of_process = _count() // (_jax().process_count() if _joined() else 1)
    return values if of_process == 1 else np.repeat(values, of_process, axis=0)


def agree(values: NDArray[Any]) -> NDArray[Any]:
    """Take the first process's values in all of them, and wait until all are here.

    Args:
        values: ndarray of the same shape in all processes.

    Returns:
        ndarray of that shape.

    Example:
        >>> agree(np.ones(2)).tolist()
        [1.0, 1.0]
    """
    if not _joined():
        return values
    from jax.experimental import multihost_utils  # type: ignore[import-not-found,unused-ignore]

    return np.asarray(multihost_utils.broadcast_one_to_all(values))


@contextlib.contextmanager
def _distribution(wanted: Any) -> Iterator[None]:
    import keras

    before = keras.distribution.distribution()
    keras.distribution.set_distribution(wanted)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def _count() -> int:
    """Devices of all processes that share a batch."""
    import keras

    distribution = keras.distribution.distribution()
    return 1 if distribution is None else int(distribution.device_mesh.devices.size)


def _joined() -> bool:
    return "jax" in sys.modules and bool(_jax().distributed.is_initialized())


def _jax() -> Any:
    import jax  # type: ignore[import-not-found,unused-ignore]

    return jax
