"""Prediction: the answer for one image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["ok", "refused", "unreadable"]
_MOST_RATIO = 99.0  # likelihood ratios beyond it and its inverse are not claimed


@dataclass(frozen=True)
class PostTest:
    """What an image adds to what was known before.

    Args:
        pretest: Probability of the positive class before the image.
        likelihood_ratio: How much more probable the image is with the positive class than without it.
        probability: Probability of the positive class afterwards.

    Example:
        >>> PostTest(0.2, 9.0, 0.69).probability
        0.69
    """

    pretest: float
    likelihood_ratio: float
    probability: float

    def __str__(self) -> str:
        return (
            f"pre-test probability {self.pretest:.0%}, likelihood ratio {self.likelihood_ratio:#.2g}, "
            f"post-test probability {self.probability:.0%}"
        )


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    The second label is the positive class, such as pneumonia.

    Args:
        label: The class, such as `"NORMAL"` or `"PNEUMONIA"`; `None` unless `status` is `"ok"`.
        probability: Calibrated probability of the positive class, in [0, 1]; where three or more labels have no
            threshold, of `label`. `nan` unless `status` is `"ok"`.
        probabilities: Calibrated probability of every label; `nan` unless `status` is `"ok"`.
        threshold: Probability of the positive class from which on it is predicted. `None` where the most probable
            label is.
        status: `"ok"`, `"refused"` (the gate takes the image for something other than a frontal chest radiograph) or
            `"unreadable"` (the source could not be decoded).
        reasons: Why there is no answer, or warnings about the one there is, in plain words.
        source: Name of the source: its path or URL, or what kind of object it was.

    Example:
        >>> p = Prediction("PNEUMONIA", 0.9, {"NORMAL": 0.1, "PNEUMONIA": 0.9}, 0.4, "ok", (), "image.png")
        >>> p.at(0.95).label
        'NORMAL'
    """

    label: str | None
    probability: float
    probabilities: dict[str, float]
    threshold: float | None
    status: Status
    reasons: tuple[str, ...]
    source: str

    @classmethod
    def without_answer(
        cls, source: str, status: Status, reasons: Sequence[str], labels: Sequence[str], threshold: float | None
    ) -> Prediction:
        """Make the prediction of an image that gets no answer.

        Args:
            source: Name of the source.
            status: `"refused"` or `"unreadable"`.
            reasons: Why.
            labels: The model's class names.
            threshold: The threshold in use.

        Returns:
            A prediction whose label is `None` and whose probabilities are `nan`.
        """
        return cls(None, math.nan, dict.fromkeys(labels, math.nan), threshold, status, tuple(reasons), source)

    @classmethod
    def unreadable(cls, source: str, message: str, labels: Sequence[str], threshold: float | None) -> Prediction:
        """Make the prediction of an image that could not be read, so that tables have one row for every image.

        Args:
            source: Name of the source.
            message: Why it could not be read.
            labels: The model's class names.
            threshold: The threshold in use.

        Returns:
            A prediction with the status `"unreadable"`.

        Example:
            >>> Prediction.unreadable("image.png", "image.png: no such file", ("NORMAL", "PNEUMONIA"), 0.5).reasons
            ('image.png: no such file',)
        """
        return cls.without_answer(source, "unreadable", (message,), labels, threshold)

    def at(self, threshold: float) -> Prediction:
        """Decide again at another threshold, without running the network.

        Args:
            threshold: Probability of the positive class from which on it is predicted, in [0, 1].

        Returns:
            The prediction at that threshold.

        Raises:
            ValueError: If the threshold lies outside [0, 1].
        """
        threshold = check_threshold(threshold)
        if self.status != "ok":
            return replace(self, threshold=threshold)
        negative, positive, *others = self.probabilities
        p = self.probabilities[positive]
        if p >= threshold:
            label = positive
        else:
            label = max((negative, *others), key=self.probabilities.__getitem__) if others else negative
        return Prediction(label, p, self.probabilities, threshold, "ok", self.reasons, self.source)

    def given(self, pretest: float) -> PostTest:
        """Combine the image with what was known before: Bayes' rule.

        Classes count the same in training and in calibration, so the odds of the positive class, times the number of
        other classes, are a likelihood ratio. It is bounded to 1 / 99 and 99: beyond, calibration was not measured.

        Args:
            pretest: Probability of the positive class before the image was taken, in (0, 1), as the clinician
                estimates it.

        Returns:
            The probability afterwards, and the likelihood ratio.

        Raises:
            ValueError: If `pretest` lies outside (0, 1), or the image got no answer.

        References:
            Deeks and Altman, Diagnostic tests 4: likelihood ratios, BMJ 2004, doi:10.1136/bmj.329.7458.168.

        Example:
            >>> p = Prediction("PNEUMONIA", 0.9, {"NORMAL": 0.1, "PNEUMONIA": 0.9}, 0.4, "ok", (), "image.png")
            >>> print(p.given(0.2))
            pre-test probability 20%, likelihood ratio 9.0, post-test probability 69%
        """
        if isinstance(pretest, bool) or not 0 < pretest < 1:
            raise ValueError(f"pretest must be a probability between 0 and 1. Received: pretest={pretest!r}")
        if self.status != "ok":
            raise ValueError(f"there is no answer to combine with: the image was {self.status}")
        positive = list(self.probabilities)[1]
        p = min(max(self.probabilities[positive], 1e-9), 1 - 1e-9)
        ratio = min(max(p / (1 - p) * (len(self.probabilities) - 1), 1 / _MOST_RATIO), _MOST_RATIO)
        odds = ratio * pretest / (1 - pretest)
        return PostTest(float(pretest), ratio, odds / (1 + odds))

    def to_dict(self, *, flat: bool = False) -> dict[str, Any]:
        """Return plain JSON types; `nan` becomes `None`.

        Args:
            flat: Whether to return one row of a table: `probability_<label>` for each label, and the reasons as one
                text.

        Returns:
            The values by name.

        Example:
            >>> Prediction("A", 0.2, {"A": 0.8, "B": 0.2}, 0.5, "ok", ("it is small",), "a.png").to_dict(flat=True)
            {'source': 'a.png', 'status': 'ok', 'label': 'A', 'probability': 0.2, 'threshold': 0.5, \
'probability_A': 0.8, 'probability_B': 0.2, 'reasons': 'it is small'}
        """
        probabilities = {label: _number(p) for label, p in self.probabilities.items()}
        row: dict[str, Any] = {
            "source": self.source,
            "status": self.status,
            "label": self.label,
            "probability": _number(self.probability),
            "threshold": self.threshold,
        }
        if flat:
            return {
                **row,
                **{f"probability_{label}": p for label, p in probabilities.items()},
                "reasons": "; ".join(self.reasons),
            }
        return {**row, "probabilities": probabilities, "reasons": list(self.reasons)}


def check_threshold(threshold: float) -> float:
    """Check a threshold.

    Args:
        threshold: In [0, 1].

    Returns:
        It, as a Python float.

    Raises:
        ValueError: If it lies outside [0, 1].

    Example:
        >>> check_threshold(1)
        1.0
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1]. Received: threshold={threshold!r}")
    return float(threshold)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
