"""LiteRT: images in, probabilities, evidence and embeddings out."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cxrlib.config import BundleError
from cxrlib.runtime.flatbuffer import check_graph
from cxrlib.runtime.quiet import quiet

_MAX_BYTES = 2**29  # of a model file; the bundled one has 9 MB
_MAX_SIDE = 2048
_WIDE = 4  # most cores for a single image: the layers are small
_ORPHANS: list[Any] = []  # inherited by a forked process; destroying them would wait for threads that no longer exist


def usable_cores() -> int:
    """Count the cores that this process may use: by its affinity, and by its container's quota.

    Returns:
        At least 1.

    Example:
        >>> usable_cores() >= 1
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or the quota is "max"
        return cores


@dataclass(frozen=True, eq=False)
class Output:
    """The network's output for n images.

    Args:
        probabilities: ndarray of shape (n, k), float32 in [0, 1]: of each label, before calibration.
        evidence: ndarray of shape (n, h, w, k), float32: evidence for each label at each place of the last feature map;
            its mean over the places is the logit.
        embedding: ndarray of shape (n, d), float32: mean features at several depths.

    Example:
        >>> Output(np.ones((1, 2)), np.ones((1, 7, 7, 2)), np.ones((1, 16))).evidence.shape
        (1, 7, 7, 2)
    """

    probabilities: np.ndarray
    evidence: np.ndarray
    embedding: np.ndarray


class Runtime:
    """A network that any number of threads may use at once.

    Images pass one at a time, whatever the batch: the activations of one image stay in a core's cache, and an answer
    never depends on other images. A single image is spread over the cores; the images of a batch, or of several
    callers, get a core each.

    Args:
        model: Path or bytes of a `model.tflite` with one input (n, s, s, 1) and the outputs `probabilities`, `evidence`
            and `embedding`, all float32.
        threads: Cores to use; `None` for all that this process may use.
        trusted: Accept any network with these inputs and outputs, such as one of 8 bits: for files that this process
            has made itself.

    Raises:
        BundleError: If the model is missing, damaged or another network.
        ValueError: If `threads` is below 1.

    Example:
        >>> try:
        ...     Runtime(b"garbage")
        ... except BundleError as error:
        ...     print(error)
        model: it is not a LiteRT model (7 bytes)
    """

    def __init__(
        self, model: str | os.PathLike[str] | bytes, *, threads: int | None = None, trusted: bool = False
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or None for all cores. Received: threads={threads}")
        self._name = "model" if isinstance(model, bytes) else os.fspath(model)
        self.model = model if isinstance(model, bytes) else _read(self._name)  # its bytes, as they were checked
        if not trusted:
            try:
                check_graph(self.model)
            except BundleError as error:
                raise BundleError(f"{self._name}: {error}") from error
        self.threads = threads or usable_cores()
        self._lock = threading.Lock()
        self._start()
        _RUNTIMES.add(self)

    def _start(self) -> None:
        self._calls = 0  # in progress
        with quiet():  # the first interpreter of a process greets
            self._wide = self._interpreter(min(self.threads, _WIDE))  # for a single image
        self._graph = _graph(self._wide)
        self._narrow: queue.SimpleQueue[Any] = (
            queue.SimpleQueue()
        )  # free interpreters of one thread; None: not made yet
        for _ in range(self.threads):
            self._narrow.put(None)
        self._helpers = ThreadPoolExecutor(self.threads, "cxrlib")
        self._pid = os.getpid()  # last: marks all the above as this process's own

    def _interpreter(self, threads: int) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(model_content=self.model, num_threads=threads)
            _graph(interpreter)  # before memory is allocated for it
            interpreter.allocate_tensors()
            _graph(interpreter)  # shapes are settled only now
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise BundleError(f"{self._name}: it is damaged or not a network of cxrlib ({reason})") from error
        return interpreter

    @property
    def input_size(self) -> int:
        """Height and width of the network's input, in pixels."""
        return self._graph.side

    @property
    def labels_count(self) -> int:
        """Number of classes."""
        return self._graph.shapes[0][0]

    def run(self, images: np.ndarray, *, spread: bool = True) -> Output:
        """Run the network.

        Args:
            images: ndarray of shape (n, s, s, 1), float32 in [0, 1], where s is `input_size`; n may be 0.
            spread: Whether a single image is spread over the cores. Off where decoding keeps the other cores busy.

        Returns:
            Its output, row for row.

        Raises:
            ValueError: If `images` has another shape or type.
        """
        side = self._graph.side
        if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.shape[1:] != (side, side, 1):
            array = isinstance(images, np.ndarray)
            received = f"shape={images.shape}, dtype={images.dtype}" if array else type(images).__name__
            raise ValueError(f"images must be a float32 array of shape (n, {side}, {side}, 1). Received: {received}")
        with self._lock:
            if self._pid != os.getpid():  # forked by a server such as uWSGI, which does not call Python's hooks
                _ORPHANS.append((self._wide, self._narrow, self._helpers))
                self._start()
            alone = spread and len(images) == 1 and not self._calls
            self._calls += 1
        try:
            return self._one(self._wide, images) if alone else self._share(images)
        finally:
            with self._lock:
                self._calls -= 1

    def _one(self, interpreter: Any, image: np.ndarray) -> Output:
        interpreter.set_tensor(self._graph.image, image)
        interpreter.invoke()  # without the GIL
        return Output(*map(interpreter.get_tensor, self._graph.outputs))

    def _share(self, images: np.ndarray) -> Output:
        """Share the images out between this thread and its helpers; each uses any free interpreter."""
        n = len(images)
        output = Output(*(np.empty((n, *shape), np.float32) for shape in self._graph.shapes))
        turns = iter(range(n))

        def work() -> None:
            for i in turns:
                interpreter = self._narrow.get()
                try:
                    interpreter = interpreter or self._interpreter(1)
                    one = self._one(interpreter, images[i : i + 1])
                    output.probabilities[i] = one.probabilities[0]
                    output.evidence[i] = one.evidence[0]
                    output.embedding[i] = one.embedding[0]
                finally:
                    self._narrow.put(interpreter)

        helpers = [self._helpers.submit(work) for _ in range(min(self.threads, n) - 1)]
        try:
            work()
        finally:
            deque(turns, maxlen=0)  # after an error or Ctrl-C, leave nothing for the helpers
        for helper in helpers:
            if not helper.cancel():  # one that has not begun is not needed any more
                helper.result()
        return output


_RUNTIMES: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _forked() -> None:
    """Renew locks in a forked process while it has one thread: other threads of the parent may have held them."""
    for runtime in _RUNTIMES:
        runtime._lock, runtime._pid = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Graph(NamedTuple):
    image: int  # index of the input tensor
    side: int
    outputs: tuple[int, ...]  # indices of the output tensors, in the order of Output's fields
    shapes: tuple[tuple[int, ...], ...]  # of the outputs, without the batch


def _graph(interpreter: Any) -> _Graph:
    """Find inputs and outputs by name; ValueError if they are not a classifier's."""
    runner = interpreter.get_signature_runner()
    inputs, outputs = list(runner.get_input_details().values()), runner.get_output_details()
    wanted = tuple(Output.__dataclass_fields__)
    if len(inputs) != 1 or set(outputs) != set(wanted):
        found = f"{len(inputs)} and {', '.join(sorted(outputs))}"
        raise ValueError(f"it must have one input and the outputs {', '.join(wanted)}; it has {found}")
    tensors = [inputs[0], *(outputs[name] for name in wanted)]
    image, *rest = (tuple(map(int, tensor["shape"])) for tensor in tensors)
    fits = len(image) == 4 and image[1] == image[2] and (image[0], image[3]) == (1, 1) and 0 < image[1] <= _MAX_SIDE
    fits = fits and [len(shape) for shape in rest] == [2, 4, 2] and rest[0][1] == rest[1][3] >= 2
    if not fits or any(tensor["dtype"] != np.float32 for tensor in tensors):
        raise ValueError(
            f"its input and outputs have the wrong shapes or types: {image} to {', '.join(map(str, rest))}"
        )
    indices = tuple(tensor["index"] for tensor in tensors)
    return _Graph(indices[0], image[1], indices[1:], tuple(shape[1:] for shape in rest))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            model = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path}: it cannot be read ({error.strerror})") from error
    if len(model) > _MAX_BYTES:
        raise BundleError(f"{path}: it is larger than {_MAX_BYTES // 2**20} MiB")
    return model
