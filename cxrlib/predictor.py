"""Predictor: any source of a film in, a calibrated answer or a stated refusal out."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from cxrlib import bundle, hub
from cxrlib.bundle import Bundle
from cxrlib.config import BundleConfig, BundleError, from_dict
from cxrlib.images import decode as images
from cxrlib.images.decode import Film
from cxrlib.images.sources import ImageError, Source, heed, name_of
from cxrlib.metrics.calibration import calibrate
from cxrlib.progress import track
from cxrlib.runtime.explain import Explanation, heatmap
from cxrlib.runtime.gate import Gate, GateConfig, Verdict, inspect
from cxrlib.runtime.litert import Output

if TYPE_CHECKING:
    from cxrlib.metrics.compute import Report

_UNGUARDED = Verdict(True, ("the gate is off: nobody checked that this is a chest film",))
_PATIENCE = 0.1  # seconds that an answer may wait for others
UNREADABLE = "unreadable: "  # begins the reason in tables and reports for a film that could not be read


@dataclass(frozen=True)
class Prediction:
    """The answer for one film.

    Args:
        label: The class, such as `"NORMAL"` or `"PNEUMONIA"`; `None` when the gate refuses the picture.
        probability: With two labels, of the second (pneumonia), with more, of `label`; calibrated, in [0, 1]; `nan` when refused.
        probabilities: Of every label; `nan` when refused.
        threshold: With two labels, the probability from which on the second is called; `None` with more.
        accepted: Whether the gate takes the picture for a frontal chest radiograph.
        reasons: Why it was refused, or what to be careful about, in plain words.
        source: What the film was called: its path or URL, or what kind of object it was.

    Example:
        >>> Prediction("PNEUMONIA", 0.9, {"NORMAL": 0.1, "PNEUMONIA": 0.9}, 0.4, True, (), "film.png").at(0.95).label
        'NORMAL'
    """

    label: str | None
    probability: float
    probabilities: dict[str, float]
    threshold: float | None
    accepted: bool
    reasons: tuple[str, ...]
    source: str

    def at(self, threshold: float) -> Prediction:
        """Decide anew at another threshold, without another pass.

        Args:
            threshold: In [0, 1].

        Returns:
            The prediction at that threshold.

        Raises:
            ValueError: If the threshold is no probability, or there are three or more labels.
        """
        if len(self.probabilities) != 2:
            raise ValueError("a threshold decides between two labels; with more, the most probable one is taken")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1]. Received: threshold={threshold!r}")
        threshold = float(threshold)  # of NumPy, maybe
        label = tuple(self.probabilities)[self.probability >= threshold] if self.accepted else None
        return Prediction(
            label, self.probability, self.probabilities, threshold, self.accepted, self.reasons, self.source
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; what is `nan` becomes `None`."""
        return {
            "label": self.label,
            "probability": _number(self.probability),
            "probabilities": {label: _number(p) for label, p in self.probabilities.items()},
            "threshold": self.threshold,
            "accepted": self.accepted,
            "reasons": list(self.reasons),
            "source": self.source,
        }


class Predictor:
    """Predicts with a bundle. Safe to call from many threads at once; needs no TensorFlow.

    Args:
        model: A bundle's folder, `hf://user/repo[@revision]`, or `None` or `"default"` for the model that comes with cxrlib.
        operating_point: Name of one of the bundle's operating points; `None` for its default.
        threshold: A threshold of your own in [0, 1] instead.
        gate: Whether pictures that are no frontal chest radiographs are refused.
        threads: Cores to use; `None` for all.

    Raises:
        FileNotFoundError: If there is no such bundle.
        BundleError: If the bundle cannot be trusted.
        ValueError: If the operating point is not known, or both it and a threshold are given.

    Example:
        >>> from cxrlib.images import phantom
        >>> predictor = Predictor()
        >>> predictor(phantom.draw(seed=1)).source
        'array'
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        operating_point: str | None = None,
        threshold: float | None = None,
        gate: bool = True,
        threads: int | None = None,
    ) -> None:
        revision = None
        if isinstance(model, str) and model.startswith("hf://"):
            repo_id, wanted = hub.parse_address(model)
            model, revision = hub.pull(repo_id, list_files=bundle.list_files, revision=wanted)
        self._bundle: Bundle = bundle.load(bundle.DEFAULT if model in (None, "default") else model, threads=threads)
        self._threshold = _choose(self.config, operating_point, threshold)
        self._gate = _gate_of(self._bundle) if gate else None
        self._usual = _usual_of(self._bundle)
        self.revision = revision

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Predictor:
        """Load a bundle from the Hugging Face Hub; nothing that came from there is deserialised as Keras objects or unpickled.

        Args:
            repo_id: `user/repo`.
            revision: Branch, tag or commit; pin a commit for an answer that never changes. `None` is `main`.
            token: For a private or gated repository; `None` takes the one you logged in with, `False` none.
            cache_dir: The cache's folder; `None` is the one that all Hugging Face libraries share.
            local_files_only: Whether to take what is in the cache and ask nobody.
            **options: `operating_point`, `threshold`, `gate`, `threads`, as for `Predictor`.

        Returns:
            The predictor.

        Raises:
            FileNotFoundError: If there is no such repository or revision.
            PermissionError: If it is private or gated and the token does not open it.
            ConnectionError: If the Hub cannot be reached and the cache has no copy.
            BundleError: If it holds no bundle, or one that cannot be trusted.
        """
        folder, commit = hub.pull(
            repo_id,
            list_files=bundle.list_files,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        predictor = cls(folder, **options)
        predictor.revision = commit
        return predictor

    @property
    def config(self) -> BundleConfig:
        """Everything about the bundle but its weights."""
        return self._bundle.config

    @property
    def folder(self) -> Path:
        """Where the bundle lies."""
        return self._bundle.folder

    @property
    def report(self) -> Report | None:
        """How the bundle was measured; `None` when it holds no report."""
        return self._bundle.report

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names."""
        return self.config.labels

    @property
    def threshold(self) -> float | None:
        """The threshold in use; `None` with three or more labels."""
        return self._threshold

    def __call__(self, source: Source) -> Prediction:
        """Predict one film.

        Args:
            source: A path, a `file://` or `http(s)://` URL, bytes, a binary file object, a PIL image, an ndarray (uint8, uint16, or float in [0, 1]), or a
                pydicom dataset.

        Returns:
            The prediction; a refusal is one, too.

        Raises:
            ImageError: If the source cannot be read as a film.
        """
        return self._answer(source)[0]

    def predict(self, sources: Iterable[Source], *, batch_size: int = 32, progress: bool = False) -> list[Prediction]:
        """Predict many films, decoding some while others are computed.

        Args:
            sources: Sources, of any kinds.
            batch_size: Films under way at once.
            progress: Whether to show a progress line.

        Returns:
            One prediction per source, in order.

        Raises:
            ImageError: If one of them cannot be read; `stream` can go on instead.
            TypeError: If `sources` is a single film.
        """
        total = len(sources) if isinstance(sources, Sized) else None
        return list(track(self.stream(sources, batch_size=batch_size), "predict", total=total, shown=progress))

    @overload
    def stream(
        self, sources: Iterable[Source], *, batch_size: int = 32, errors: Literal["raise"] = "raise"
    ) -> Iterator[Prediction]: ...
    @overload
    def stream(
        self, sources: Iterable[Source], *, batch_size: int = 32, errors: Literal["return"]
    ) -> Iterator[Prediction | ImageError]: ...
    def stream(
        self, sources: Iterable[Source], *, batch_size: int = 32, errors: Literal["raise", "return"] = "raise"
    ) -> Iterator[Prediction] | Iterator[Prediction | ImageError]:
        """Predict an endless iterable of films, in order, as they come.

        Args:
            sources: Sources, of any kinds. They are drawn in the caller's thread, up to `batch_size` ahead of the answers. An answer that is not ready yet
                waits for the next draw, so a source that in turn waits for the answer is better served by calling the predictor itself. Where sources come
                faster than answers, an answer may wait for others, a tenth of a second at most.
            batch_size: Films under way at once.
            errors: `"raise"` stops at a film that cannot be read; `"return"` yields its `ImageError` in its place and goes on. What `sources` itself raises is
                raised after the answers to all films drawn before.

        Returns:
            An iterator of predictions.

        Raises:
            ImageError: If a film cannot be read and `errors` is `"raise"`.
            TypeError: If `sources` is a single film.
            ValueError: If `batch_size` is below 1 or `errors` is neither of the two.
        """
        check_many(sources)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size!r}")
        if errors not in ("raise", "return"):
            raise ValueError(f"errors must be 'raise' or 'return'. Received: errors={errors!r}")
        return self._stream(iter(sources), batch_size, errors == "return")

    def _stream(self, sources: Iterator[Source], ahead: int, tolerant: bool) -> Iterator[Any]:
        def answer(source: Source) -> Prediction | ImageError:
            try:
                return self._answer(source, spread=False)[0]
            except ImageError as error:
                if tolerant:
                    return error
                raise
            except ImportError as error:  # this film needs an extra, the others may not
                if not tolerant:
                    raise
                unread = ImageError(f"{name_of(source)}: {error}")
                unread.__cause__ = error
                return unread

        waiting: deque[Future[Prediction | ImageError]] = deque()
        failure, gone = None, threading.Event()
        with ThreadPoolExecutor(self._bundle.runtime.threads, "cxrlib-films", heed, (gone,)) as pool:
            try:
                while failure is None:
                    try:
                        source = next(sources)
                    except Exception as error:  # noqa: BLE001 - raised in its turn: films drawn before are answered first
                        failure = error
                    else:
                        waiting.append(pool.submit(answer, source))
                    if (
                        len(waiting) >= ahead
                    ):  # several answers at one waking cost the other threads less than one at each
                        wait([waiting[ahead // 2]], timeout=_PATIENCE)
                    while waiting and (failure or len(waiting) >= ahead or waiting[0].done()):
                        yield waiting.popleft().result()
            finally:
                gone.set()
                for future in waiting:
                    future.cancel()
        if not isinstance(failure, StopIteration):
            raise failure

    def explain(self, source: Source, *, label: str | None = None) -> Explanation:
        """Predict one film and show where the evidence for a class lies: more of it than healthy films usually have at that place.

        Args:
            source: As for `__call__`.
            label: The class; `None` for pneumonia, or with three or more labels for the predicted one.

        Returns:
            Prediction and heatmap, the heatmap at the film's own size.

        Raises:
            ImageError: If the source cannot be read as a film.
            ValueError: If the label is not one of the model's.
        """
        if label is not None and label not in self.labels:
            raise ValueError(f"label must be one of {', '.join(self.labels)}. Received: label={label!r}")
        prediction, film, output = self._answer(source)
        shown = label or (
            self.labels[1] if len(self.labels) == 2 else self.labels[int(np.argmax(output.probabilities[0]))]
        )
        beyond = (output.evidence[0] - self._usual)[..., self.labels.index(shown)]  # (h, w)
        return Explanation(heatmap(beyond, film), film, shown, prediction)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> hub.Published:
        """Publish the bundle on the Hugging Face Hub: one commit with exactly its files and a card that names the repository, and a version tag.

        Args:
            repo_id: `user/repo`; created when missing.
            private: Whether the repository must be private.
            revision: The branch to commit to; `None` is `main`.
            commit_message: Title of the commit.
            create_pr: Whether to open a pull request instead.
            token: Token with write access; `None` takes the one you logged in with.

        Returns:
            Commit, tag and address.

        Raises:
            PermissionError: If the token may not write there.
            ConnectionError: If the Hub cannot be reached or fails.
        """
        return hub.push(
            self.folder,
            repo_id,
            files=tuple(self.config.files),
            contents=bundle.for_hub(self._bundle, repo_id),
            private=private,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            token=token,
            obsolete=("figures/*", "model.*"),
        )

    def _answer(self, source: Source, *, spread: bool = True) -> tuple[Prediction, Film, Output]:
        size = self.config.image_size
        film = images.read(source, model_size=size)
        fitted = images.fit(film, size)  # (s, s, 1)
        sight = (
            inspect(film, fitted) if self._gate else None
        )  # before the network fills the processor's cache with other things
        output = self._bundle.runtime.run(fitted[None], spread=spread)
        verdict = self._gate.check(sight, output.embedding[0]) if self._gate and sight else _UNGUARDED
        return self._decide(film, verdict, calibrate(output.probabilities, self.config.temperature)[0]), film, output

    def _decide(self, film: Film, verdict: Verdict, p: np.ndarray) -> Prediction:
        if not verdict.accepted:
            p = np.full_like(p, np.nan)
        reasons = (*verdict.reasons, *film.notes)
        probabilities = dict(zip(self.labels, p.tolist(), strict=True))
        if self._threshold is not None:
            return Prediction(None, float(p[1]), probabilities, None, verdict.accepted, reasons, film.name).at(
                self._threshold
            )
        label = self.labels[int(np.argmax(p))] if verdict.accepted else None
        return Prediction(label, float(np.max(p)), probabilities, None, verdict.accepted, reasons, film.name)


def _choose(config: BundleConfig, operating_point: str | None, threshold: float | None) -> float | None:
    if len(config.labels) > 2:
        if operating_point is not None or threshold is not None:
            raise ValueError(
                "operating points and thresholds decide between two labels; this model has more and takes the most probable one"
            )
        return None
    if threshold is not None:
        if operating_point is not None:
            raise ValueError(
                f"give an operating point or a threshold, not both. Received: {operating_point!r} and {threshold!r}"
            )
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1]. Received: threshold={threshold!r}")
        return float(threshold)
    name = config.default_point if operating_point is None else operating_point
    if name is None:
        return 0.5
    if name not in config.operating_points:
        raise ValueError(
            f"operating_point must be one of {', '.join(config.operating_points) or 'none: this model has none'}. Received: {operating_point!r}"
        )
    return config.operating_points[name].threshold


def _usual_of(loaded: Bundle) -> np.ndarray:
    """What evidence healthy films have, ndarray of shape (h, w, k)."""
    config, size = loaded.config, loaded.config.image_size
    shape = loaded.runtime.run(np.empty((0, size, size, 1), np.float32)).evidence.shape[1:]
    if config.usual_evidence is None:
        return np.zeros(shape, np.float32)
    if config.usual_evidence.shape != shape:
        raise BundleError(
            f"{loaded.folder} cannot be trusted: its usual evidence has shape {config.usual_evidence.shape}, its network's has {shape}"
        )
    return config.usual_evidence.numpy()


def _gate_of(loaded: Bundle) -> Gate | None:
    """The bundle's gate, tried on no film."""
    config, size = loaded.config, loaded.config.image_size
    if config.gate is None:
        return None
    try:
        settings = from_dict(GateConfig, config.gate, where="config.gate")
        gate = Gate(settings)
        gate.measure(
            loaded.runtime.run(np.empty((0, size, size, 1), np.float32)).embedding,
            np.empty((0, *settings.layout.shape), np.float32),
        )
    except ValueError as error:
        raise BundleError(f"{loaded.folder} cannot be trusted: {error}") from error
    return gate


def unanswered(film: str, reason: str, predictor: Predictor) -> Prediction:
    """Give the row of a film that could not be read, so that tables have one row for every film.

    Args:
        film: What the film is called.
        reason: Why it could not be read.
        predictor: Whose labels and threshold the row has.

    Returns:
        A prediction without label and probability, whose only reason begins with `UNREADABLE`.

    Example:
        >>> unanswered("film.png", "film.png: no such file", Predictor()).reasons
        ('unreadable: film.png: no such file',)
    """
    nothing = float("nan")
    return Prediction(
        None,
        nothing,
        dict.fromkeys(predictor.labels, nothing),
        predictor.threshold,
        False,
        (f"{UNREADABLE}{reason}",),
        film,
    )


def check_many(sources: object) -> None:
    """Refuse what is a single film where several are asked for.

    Args:
        sources: What should be an iterable of films.

    Raises:
        TypeError: If it is none.
    """
    single = (
        isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike))
        or hasattr(sources, "read")
        or hasattr(type(sources), "pixel_array")
    )
    if (
        single
        or not isinstance(sources, Iterable)
        or (isinstance(sources, np.ndarray) and sources.ndim < 3 and sources.dtype.kind in "uif")
    ):
        raise TypeError(
            f"sources must be a list or another iterable of films; call the predictor itself for a single one. Received: {type(sources).__name__}"
        )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
