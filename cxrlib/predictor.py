"""Predictor: any source of a radiograph in, a calibrated answer or a stated refusal out."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cxrlib import bundle, hub
from cxrlib.bundle import Bundle
from cxrlib.config import BundleConfig, BundleError, from_dict
from cxrlib.images import decode as images
from cxrlib.images.sources import ImageError, Source, heed, name_of
from cxrlib.metrics.calibration import calibrate
from cxrlib.runtime.explain import Explanation, heatmap
from cxrlib.runtime.gate import GRID, Gate, GateConfig, inspect
from cxrlib.runtime.litert import Output
from cxrlib.runtime.prediction import Prediction, check_threshold

if TYPE_CHECKING:
    from cxrlib.images.decode import Radiograph
    from cxrlib.metrics.report import Report

_UNCHECKED = "the gate is off: nothing checked that this is a frontal chest radiograph"
_LATENCY = 0.1  # seconds that a finished answer may wait for others


class Predictor:
    """Predicts with a bundle. Safe to call from many threads at once; needs no TensorFlow; can be pickled.

    Args:
        model: A bundle's folder, `hf://user/repo[@revision]`, a loaded `Bundle`, or the name of one that comes with
            cxrlib: `"default"` (normal or pneumonia; `None` means it, too) or `"causes"` (normal, bacterial or viral
            pneumonia of children).
        operating_point: Name of one of the bundle's operating points; `None` for its default.
        threshold: Your own threshold in [0, 1] instead: the probability of the second label, such as pneumonia, from
            which on it is predicted.
        gate: Whether images that are not frontal chest radiographs are refused.
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
        model: str | os.PathLike[str] | Bundle | None = None,
        *,
        operating_point: str | None = None,
        threshold: float | None = None,
        gate: bool = True,
        threads: int | None = None,
    ) -> None:
        self.revision: str | None = None
        if isinstance(model, str) and model.startswith("hf://"):
            repo_id, wanted = hub.parse_address(model)
            model, self.revision = hub.pull(repo_id, list_files=bundle.list_files, revision=wanted)
        elif model is None or (isinstance(model, str) and model in bundle.BUNDLED):
            model = bundle.BUNDLED[model or "default"]
        self._bundle = model if isinstance(model, Bundle) else bundle.load(model, threads=threads)
        self._threshold = _choose(self.config, operating_point, threshold)
        self._gate = _gate_of(self._bundle) if gate else None
        self._normal = _normal_evidence_of(self._bundle)  # (h, w, k), or 0
        self._options = {"gate": gate, "threads": threads}

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._name() or self.folder, {**self._options, "threshold": self._threshold}, self.revision)

    def __repr__(self) -> str:
        model = self._name() or str(self.folder)
        gate = "" if self._gate else ", gate=False"
        return f"Predictor({model!r}, threshold={self._threshold}, labels={self.labels}{gate})"

    def _name(self) -> str | None:
        """The name of the model, if it comes with cxrlib."""
        return next((name for name, folder in bundle.BUNDLED.items() if folder == self.folder), None)

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
        """Load a bundle from the Hugging Face Hub. Nothing of it is deserialised as Keras objects or unpickled.

        Args:
            repo_id: `user/repo`.
            revision: Branch, tag or commit; pin a commit for answers that never change. `None` is `main`.
            token: For a private or gated repository; `None` takes the one you logged in with, `False` none.
            cache_dir: The cache's folder; `None` is the one that all Hugging Face libraries share.
            local_files_only: Whether to use the cache alone, without the network.
            **options: `operating_point`, `threshold`, `gate`, `threads`, as for `Predictor`.

        Returns:
            The predictor.

        Raises:
            FileNotFoundError: If there is no such repository or revision.
            PermissionError: If it is private or gated and the token gives no access.
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
        return _restore(folder, options, commit)

    @property
    def config(self) -> BundleConfig:
        """Everything about the bundle but its weights."""
        return self._bundle.config

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self._bundle.folder

    @property
    def report(self) -> Report | None:
        """How the bundle was measured; `None` when it holds no report."""
        return self._bundle.report

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names; the second is the positive class."""
        return self.config.labels

    @property
    def threshold(self) -> float | None:
        """Probability of the positive class from which on it is predicted; `None` where the most probable label is."""
        return self._threshold

    @property
    def gated(self) -> bool:
        """Whether the gate may refuse images."""
        return self._gate is not None

    def __call__(self, source: Source) -> Prediction:
        """Predict one image.

        Args:
            source: A path, a `file://` or `http(s)://` URL, bytes, a binary file object, a PIL image, an ndarray
                (uint8, uint16, or float in [0, 1]) or an object that converts to one, or a pydicom dataset.

        Returns:
            The prediction; its status is `"ok"` or `"refused"`.

        Raises:
            ImageError: If the source cannot be read.
            TypeError: If the source is none of these.
        """
        return self._answer(source)[0]

    def predict(
        self,
        sources: Iterable[Source],
        *,
        prefetch: int = 32,
        progress: bool = False,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[Prediction]:
        """Predict many images; some are decoded while the network runs on others.

        Args:
            sources: Sources, of any kinds.
            prefetch: How many images are read ahead of the answers.
            progress: Whether to show a progress bar.
            errors: As for `stream`.

        Returns:
            One prediction per source, in order.

        Raises:
            ImageError: If an image cannot be read and `errors` is `"raise"`.
            TypeError: If `sources` is a single image.
            ValueError: If `prefetch` is below 1 or `errors` is neither of the two.
        """
        answers: Iterable[Prediction] = self.stream(sources, prefetch=prefetch, errors=errors)
        if progress:
            from tqdm import tqdm

            total = len(sources) if isinstance(sources, Sized) else None
            answers = tqdm(answers, "predict", total, unit=" images")
        return list(answers)

    def stream(
        self, sources: Iterable[Source], *, prefetch: int = 32, errors: Literal["raise", "return"] = "raise"
    ) -> Iterator[Prediction]:
        """Predict an iterable of images, which may be endless, in order, as they come.

        Args:
            sources: Sources, of any kinds. They are drawn in the caller's thread, up to `prefetch` ahead of the
                answers. An answer that is not ready yet waits for the next draw, so where the next source depends on
                the answer, call the predictor itself.
            prefetch: How many images are read ahead of the answers.
            errors: `"raise"` stops at an image that cannot be read; `"return"` yields a prediction with the status
                `"unreadable"` in its place and goes on. An exception of `sources` itself is raised after the answers
                to all images drawn before.

        Returns:
            An iterator of predictions.

        Raises:
            ImageError: If an image cannot be read and `errors` is `"raise"`.
            TypeError: If `sources` is a single image.
            ValueError: If `prefetch` is below 1 or `errors` is neither of the two.
        """
        check_many(sources)
        if prefetch < 1:
            raise ValueError(f"prefetch must be at least 1. Received: prefetch={prefetch!r}")
        if errors not in ("raise", "return"):
            raise ValueError(f"errors must be 'raise' or 'return'. Received: errors={errors!r}")
        return self._stream(iter(sources), prefetch, errors == "return")

    def _stream(self, sources: Iterator[Source], prefetch: int, tolerant: bool) -> Iterator[Prediction]:
        def answer(source: Source) -> Prediction:
            try:
                return self._answer(source, spread=False)[0]
            except (ImageError, ImportError) as error:  # ImportError: this image needs an extra, others may not
                if not tolerant:
                    raise
                name = name_of(source)
                message = str(error) if isinstance(error, ImageError) else f"{name}: {error}"
                return Prediction.unreadable(name, message, self.labels, self._threshold)

        waiting: deque[Future[Prediction]] = deque()
        failure, closed = None, threading.Event()
        with ThreadPoolExecutor(self._bundle.runtime.threads, "cxrlib-images", heed, (closed,)) as pool:
            try:
                while failure is None:
                    try:
                        source = next(sources)
                    except Exception as error:  # noqa: BLE001 - raised below, after the answers to images drawn before
                        failure = error
                    else:
                        waiting.append(pool.submit(answer, source))
                    if len(waiting) >= prefetch:  # taking several answers at once wakes this thread less often
                        wait([waiting[prefetch // 2]], timeout=_LATENCY)
                    while waiting and (failure or len(waiting) >= prefetch or waiting[0].done()):
                        yield waiting.popleft().result()
            finally:
                closed.set()
                for future in waiting:
                    future.cancel()
        if not isinstance(failure, StopIteration):
            raise failure

    def explain(self, source: Source, *, label: str | None = None) -> Explanation:
        """Predict one image and show where the evidence for a class lies: what exceeds that of normal images.

        Args:
            source: As for `__call__`.
            label: The class; `None` for the positive class, or the predicted one where there is no threshold.

        Returns:
            Prediction and heatmap, the heatmap at the image's own size; all 0 where the image is refused.

        Raises:
            ImageError: If the source cannot be read.
            ValueError: If the label is not one of the model's.
        """
        if label is not None and label not in self.labels:
            raise ValueError(f"label must be one of {', '.join(self.labels)}. Received: label={label!r}")
        prediction, image, output = self._answer(source)
        shown = label or (None if self._threshold is not None else prediction.label) or self.labels[1]
        evidence = np.zeros((1, 1), np.float32)
        if output is not None and prediction.status == "ok":
            evidence = (output.evidence[0] - self._normal)[..., self.labels.index(shown)]  # (h, w)
        return Explanation(heatmap(evidence, image), image, shown, prediction)

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
        """Publish the bundle on the Hugging Face Hub: one commit with its files and a card that names the repository.

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
            repo_id,
            bundle.for_hub(self._bundle, repo_id),
            private=private,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            token=token,
        )

    def _answer(self, source: Source, *, spread: bool = True) -> tuple[Prediction, Radiograph, Output | None]:
        """The prediction, the image, and the network's output; `None` where the gate refused before the network ran."""
        size = self.config.image_size
        image = images.read(source, model_size=size)
        fitted = images.fit(image, size)  # (s, s, 1)
        seen = inspect(image, fitted) if self._gate else None
        if seen and seen.refusals:
            return self._refused(image, seen.refusals), image, None
        output = self._bundle.runtime.run(fitted[None], spread=spread)
        reasons: tuple[str, ...] = (_UNCHECKED,)
        if self._gate and seen:
            verdict = self._gate.check(seen, output.embedding[0])
            if not verdict.accepted:
                return self._refused(image, verdict.reasons), image, output
            reasons = verdict.reasons
        p = calibrate(output.probabilities, self.config.temperature)[0]  # (k,)
        probabilities = dict(zip(self.labels, p.tolist(), strict=True))
        best = max(probabilities, key=probabilities.__getitem__)
        prediction = Prediction(
            best, probabilities[best], probabilities, None, "ok", (*reasons, *image.notes), image.name
        )
        return prediction if self._threshold is None else prediction.at(self._threshold), image, output

    def _refused(self, image: Radiograph, reasons: tuple[str, ...]) -> Prediction:
        return Prediction.without_answer(image.name, "refused", (*reasons, *image.notes), self.labels, self._threshold)


def check_many(sources: object) -> None:
    """Refuse a single image where several are asked for.

    Args:
        sources: What should be an iterable of images.

    Raises:
        TypeError: If it is not.
    """
    single = (
        isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike))
        or hasattr(sources, "read")
        or hasattr(type(sources), "pixel_array")
        or len(getattr(sources, "shape", ())) == 2  # an array or a tensor
    )
    if single or not isinstance(sources, Iterable):
        raise TypeError(
            "sources must be a list or another iterable of images; call the predictor itself for a single one. "
            f"Received: {type(sources).__name__}"
        )


def _restore(model: Path | str, options: dict[str, Any], revision: str | None) -> Predictor:
    predictor = Predictor(model, **options)
    predictor.revision = revision
    return predictor


def _choose(config: BundleConfig, operating_point: str | None, threshold: float | None) -> float | None:
    if threshold is not None:
        if operating_point is not None:
            raise ValueError(
                f"give an operating point or a threshold, not both. Received: {operating_point!r} and {threshold!r}"
            )
        return check_threshold(threshold)
    name = config.default_point if operating_point is None else operating_point
    if name is None:
        return 0.5 if len(config.labels) == 2 else None
    if name not in config.operating_points:
        raise ValueError(
            f"operating_point must be one of {', '.join(config.operating_points) or 'none: this model has none'}. "
            f"Received: {operating_point!r}"
        )
    return config.operating_points[name].threshold


def _normal_evidence_of(loaded: Bundle) -> np.ndarray | float:
    """The evidence of normal images, ndarray of shape (h, w, k); 0 where the bundle has none."""
    stored = loaded.config.normal_evidence
    if stored is None:
        return 0.0
    shape = _nothing(loaded).evidence.shape[1:]
    if stored.shape != shape:
        raise BundleError(
            f"{loaded.folder} cannot be trusted: its normal_evidence has shape {stored.shape}, its network's {shape}"
        )
    return stored.numpy()


def _gate_of(loaded: Bundle) -> Gate | None:
    """The bundle's gate, tried on an empty batch."""
    if loaded.config.gate is None:
        return None
    try:
        gate = Gate(from_dict(GateConfig, loaded.config.gate, where="config.gate"))
        gate.measure(_nothing(loaded).embedding, np.empty((0, GRID**2), np.float32))
    except ValueError as error:
        raise BundleError(f"{loaded.folder} cannot be trusted: {error}") from error
    return gate


def _nothing(loaded: Bundle) -> Output:
    """The network's output for no image."""
    size = loaded.config.image_size
    return loaded.runtime.run(np.empty((0, size, size, 1), np.float32))
