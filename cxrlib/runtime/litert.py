"""LiteRT: films in, probabilities, evidence and embeddings out."""

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

from cxrlib import cores
from cxrlib.config import BundleError
from cxrlib.runtime.flatbuffer import check_graph

_MAX_BYTES = 2**29  # of a model; the default one has 10 MB
_MAX_SIDE = 2048
_WIDE = 4  # cores that one film is spread over at most: the layers are small
_ORPHANS: list[
    Any
] = []  # what a forked process inherits: destroying it would wait for threads that did not survive the fork


@dataclass(frozen=True, eq=False)
class Output:
    """What the network says of n films.

    Args:
        probabilities: ndarray of shape (n, k), float32 in [0, 1]: of each label, not yet calibrated.
        evidence: ndarray of shape (n, h, w, k), float32: what each place of the last feature map says for each label.
        embedding: ndarray of shape (n, d), float32: mean features of several depths.

    Example:
        >>> Output(np.ones((1, 2)), np.ones((1, 7, 7, 2)), np.ones((1, 16))).evidence.shape
        (1, 7, 7, 2)
    """

    probabilities: np.ndarray
    evidence: np.ndarray
    embedding: np.ndarray


class Runtime:
    """A network that any number of threads may use at once.

    Films pass one at a time, whatever the batch: one film's activations stay in a core's cache, and an answer never depends on a film's neighbours. A film that
    comes alone is spread over the cores; the films of a batch, or of several callers, get a core each.

    Args:
        model: Path or bytes of a `model.tflite` with one input (n, s, s, 1) and the outputs `probabilities`, `evidence` and `embedding`, all float32.
        threads: Cores to use; None for all that this process may use.
        trusted: Take any network with these inputs and outputs, such as one of 8 bits: for files that this process has made itself.

    Raises:
        BundleError: If the model is missing, damaged or another network.
        ValueError: If `threads` is below 1.

    Example:
        >>> try:
        ...     Runtime(b"garbage")
        ... except BundleError as error:
        ...     print(error)
        model: it is no LiteRT model (7 bytes)
    """

    def __init__(
        self, model: str | os.PathLike[str] | bytes, *, threads: int | None = None, trusted: bool = False
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or None for all cores. Received: threads={threads}")
        self._name = "model" if isinstance(model, bytes) else os.fspath(model)
        self._model = model if isinstance(model, bytes) else _read(self._name)
        if not trusted:
            try:
                check_graph(self._model)
            except BundleError as error:
                raise BundleError(f"{self._name}: {error}") from error
        self.threads = threads or cores.usable()
        self._lock = threading.Lock()
        self._start()
        _RUNTIMES.add(self)

    def _start(self) -> None:
        self._calls = 0  # under way
        self._wide = self._interpreter(min(self.threads, _WIDE))  # for a film that comes alone
        self._graph = _graph(self._wide)
        self._narrow: queue.SimpleQueue[Any] = (
            queue.SimpleQueue()
        )  # free interpreters of one thread each; None is one not made yet
        for _ in range(self.threads):
            self._narrow.put(None)
        self._helpers = ThreadPoolExecutor(self.threads, "cxrlib")
        self._pid = os.getpid()  # last: what a parent's threads left must not be taken for this process's own

    def _interpreter(self, threads: int) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(model_content=self._model, num_threads=threads)
            _graph(interpreter)  # before memory is allocated for it
            interpreter.allocate_tensors()
            _graph(interpreter)  # whose shapes are settled only now
        except (ValueError, RuntimeError) as error:
            raise BundleError(
                f"{self._name}: it is damaged or no network of cxrlib ({' '.join(str(error).split())})"
            ) from error
        return interpreter

    @property
    def input_size(self) -> int:
        """Side in pixels of the films that the network takes."""
        return self._graph.side

    @property
    def labels_count(self) -> int:
        """Number of classes."""
        return self._graph.shapes[0][0]

    def run(self, films: np.ndarray, *, spread: bool = True) -> Output:
        """Run the network.

        Args:
            films: ndarray of shape (n, s, s, 1), float32 in [0, 1], where s is `input_size`; n may be 0.
            spread: Whether a film that comes alone is spread over the cores; not where other work, such as decoding, keeps them busy.

        Returns:
            Its output, row for row.

        Raises:
            ValueError: If `films` has another shape or type.
        """
        graph = self._graph
        if (
            not isinstance(films, np.ndarray)
            or films.dtype != np.float32
            or films.ndim != 4
            or films.shape[1:] != (graph.side, graph.side, 1)
        ):
            received = (
                f"shape={films.shape}, dtype={films.dtype}" if isinstance(films, np.ndarray) else type(films).__name__
            )
            raise ValueError(
                f"films must be a float32 array of shape (n, {graph.side}, {graph.side}, 1). Received: {received}"
            )
        with self._lock:
            if (
                self._pid != os.getpid()
            ):  # forked; asked as well as told, for servers such as uWSGI fork without Python's knowledge
                _ORPHANS.append((self._wide, self._narrow, self._helpers))
                self._start()
            alone = spread and len(films) == 1 and not self._calls
            self._calls += 1
        try:
            return self._one(self._wide, films) if alone else self._share(films)
        finally:
            with self._lock:
                self._calls -= 1

    def _one(self, interpreter: Any, film: np.ndarray) -> Output:
        interpreter.set_tensor(self._graph.film, film)
        interpreter.invoke()  # without the GIL
        return Output(*map(interpreter.get_tensor, self._graph.outputs))

    def _share(self, films: np.ndarray) -> Output:
        """Do the films on this thread and its helpers; each takes the next film, and for it any free interpreter."""
        n = len(films)
        output = Output(*(np.empty((n, *shape), np.float32) for shape in self._graph.shapes))
        turns = iter(range(n))

        def work() -> None:
            for i in turns:
                interpreter = self._narrow.get()
                try:
                    interpreter = interpreter or self._interpreter(1)
                    of_film = self._one(interpreter, films[i : i + 1])
                    output.probabilities[i], output.evidence[i], output.embedding[i] = (
                        of_film.probabilities[0],
                        of_film.evidence[0],
                        of_film.embedding[0],
                    )
                finally:
                    self._narrow.put(interpreter)

        helpers = [self._helpers.submit(work) for _ in range(min(self.threads, n) - 1)]
        try:
            work()
        finally:
            deque(turns, maxlen=0)  # on an error or Ctrl-C leave nothing for the helpers
        for helper in helpers:
            if not helper.cancel():  # one that has not begun is not needed any more
                helper.result()
        return output


_RUNTIMES: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _forked() -> None:
    """Make runtimes fit for a forked process, while it has one thread: the parent's other threads may have held their locks."""
    for runtime in _RUNTIMES:
        runtime._lock, runtime._pid = threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Graph(NamedTuple):
    film: int  # index of the input tensor
    side: int
    outputs: tuple[int, ...]  # indices of the output tensors, in the order of Output's fields
    shapes: tuple[tuple[int, ...], ...]  # theirs, without the batch


def _graph(interpreter: Any) -> _Graph:
    """Find inputs and outputs by name; ValueError if they are not a classifier's."""
    runner = interpreter.get_signature_runner()
    inputs, outputs = list(runner.get_input_details().values()), runner.get_output_details()
    wanted = tuple(Output.__dataclass_fields__)
    if len(inputs) != 1 or set(outputs) != set(wanted):
        raise ValueError(
            f"it must have one input and the outputs {', '.join(wanted)}; it has {len(inputs)} and {', '.join(sorted(outputs))}"
        )
    tensors = [inputs[0], *(outputs[name] for name in wanted)]
    film, *rest = (tuple(map(int, tensor["shape"])) for tensor in tensors)
    fits = len(film) == 4 and film[1] == film[2] and (film[0], film[3]) == (1, 1) and 0 < film[1] <= _MAX_SIDE
    fits = fits and [len(shape) for shape in rest] == [2, 4, 2] and rest[0][1] == rest[1][3] >= 2
    if not fits or any(tensor["dtype"] != np.float32 for tensor in tensors):
        raise ValueError(f"its input and outputs have the wrong shapes or types: {film} to {', '.join(map(str, rest))}")
    return _Graph(
        tensors[0]["index"],
        film[1],
        tuple(tensor["index"] for tensor in tensors[1:]),
        tuple(shape[1:] for shape in rest),
    )


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            model = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path}: it cannot be read ({error.strerror})") from error
    if len(model) > _MAX_BYTES:
        raise BundleError(f"{path}: it is larger than {_MAX_BYTES // 2**20} MiB")
    return model
