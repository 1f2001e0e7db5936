"""What figures are drawn from: ROC and precision–recall curves, the reliability diagram, the decision curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxrlib.metrics.calibration import BINS, bins, confidence
from cxrlib.metrics.compute import Ranking, ratio
from cxrlib.metrics.intervals import Floats, Ints, resamples, wilson
from cxrlib.metrics.report import Report, answered


@dataclass(frozen=True, eq=False)
class Curves:
    """ROC and precision–recall curves of one label against the others, with 95 % bands at 101 points.

    Args:
        fpr: ndarray of shape (t,), false positive rate at each score that occurs, from the highest down.
        tpr: ndarray of shape (t,), true positive rate there: the recall.
        precision: ndarray of shape (t,), share of the images at or above the score that are positive.
        grid: ndarray of shape (101,), from 0 to 1: false positive rates of the ROC band, recalls of the other.
        roc_band: ndarray of shape (2, 101), lowest and highest sensitivity at each false positive rate.
        pr_band: ndarray of shape (2, 101), lowest and highest precision at each recall.
        auroc: Area under the ROC curve.
        average_precision: Area under the precision–recall steps.
        prevalence: Share of the images that are positive.
    """

    fpr: Floats
    tpr: Floats
    precision: Floats
    grid: Floats
    roc_band: Floats
    pr_band: Floats
    auroc: float
    average_precision: float
    prevalence: float


def curves(report: Report, label: str | None = None, *, n_bootstrap: int = 300) -> Curves | None:
    """Compute the curves of one label against the others.

    Args:
        report: A report with its predictions.
        label: Which label is positive; the last when not given.
        n_bootstrap: Number of resamples behind the bands.

    Returns:
        The curves; `None` where they are undefined, because every image is of one class.

    Raises:
        ValueError: If the report lacks its predictions or the label is unknown.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> p = [[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.1, 0.9]]
        >>> r = make_report([0, 0, 1, 1], p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abcd")
        >>> curves(r).tpr.tolist()
        [0.5, 0.5, 1.0, 1.0]
    """
    y, p, patients = answered(report)
    label = report.labels[-1] if label is None else label
    if label not in report.labels:
        raise ValueError(f"label must be one of {', '.join(report.labels)}. Received: label={label!r}")
    c = report.labels.index(label)
    positive, ranking = y == c, Ranking(y == c, p[:, c])
    if positive.all() or not positive.any():
        return None
    [tp], [fp] = ranking.counts(np.ones((1, len(y))))
    grid = np.linspace(0, 1, 101)
    at_fpr, at_recall = [], []
    for weights in resamples(patients, n_bootstrap, report.seed):
        for t, f in zip(*ranking.counts(weights), strict=True):  # (g,), (g,)
            if t[-1] and f[-1]:
                at_fpr.append(np.interp(grid, np.r_[0, f / f[-1]], np.r_[0, t / t[-1]]))
                first = np.minimum(np.searchsorted(t / t[-1], np.maximum(grid, 1e-9)), len(t) - 1)
                at_recall.append(t[first] / (t[first] + f[first]))
    bands = [np.quantile(x, [0.025, 0.975], axis=0) if x else np.full((2, 101), np.nan) for x in (at_fpr, at_recall)]
    [auroc], [average_precision] = ranking.areas(np.ones((1, len(y))))
    return Curves(
        fpr=fp / fp[-1],
        tpr=tp / tp[-1],
        precision=tp / (tp + fp),
        grid=grid,
        roc_band=bands[0],
        pr_band=bands[1],
        auroc=float(auroc),
        average_precision=float(average_precision),
        prevalence=float(positive.mean()),
    )


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often the label was true at which probability: the bins of 15 equally wide ones that hold images.

    Args:
        centre: ndarray of shape (b,), centre of each bin.
        probability: ndarray of shape (b,), mean predicted probability in it.
        observed: ndarray of shape (b,), share of its images where the label was true.
        low: ndarray of shape (b,), lower ends of Wilson's 95 % intervals of `observed`.
        high: ndarray of shape (b,), upper ends.
        count: ndarray of shape (b,), int64, number of images in each bin.
    """

    centre: Floats
    probability: Floats
    observed: Floats
    low: Floats
    high: Floats
    count: Ints


def reliability(report: Report) -> Reliability:
    """Compute the reliability diagram: of the second label of two, else of the most probable label.

    Args:
        report: A report with its predictions.

    Returns:
        The bins that hold images.

    Raises:
        ValueError: If the report lacks its predictions.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> p = [[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]]
        >>> r = make_report([0, 1, 1], p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="abc")
        >>> reliability(r).count.tolist()
        [1, 2]

    References:
        Guo et al. 2017, arXiv:1706.04599.
    """
    y, p, _ = answered(report)
    predicted, outcome = confidence(y, p)
    places = bins(predicted)
    filled, count = np.unique(places, return_counts=True)
    rates = [wilson(int(outcome[places == b].sum()), int(n)) for b, n in zip(filled, count, strict=True)]
    return Reliability(
        centre=(filled + 0.5) / BINS,
        probability=np.array([predicted[places == b].mean() for b in filled]),
        observed=np.array([rate.value for rate in rates]),
        low=np.array([rate.low for rate in rates]),
        high=np.array([rate.high for rate in rates]),
        count=count,
    )


def net_benefit(report: Report) -> tuple[Floats, Floats, Floats]:
    """Compute the decision curve of acting on the positive class; with three or more labels, on any but the first.

    Args:
        report: A report with its predictions.

    Returns:
        Three ndarrays of shape (99,): the threshold probabilities 0.01 to 0.99, the net benefit of acting on images at
        or above each, and that of acting on every image. Acting on none has 0. A net benefit of 0.1 is worth ten true
        positives in a hundred images and no false one.

    Raises:
        ValueError: If the report lacks its predictions.

    Example:
        >>> from cxrlib.metrics.compute import make_report
        >>> p = [[0.9, 0.1], [0.2, 0.8]]
        >>> r = make_report([0, 1], p, labels=["NORMAL", "PNEUMONIA"], threshold=0.5, names="ab")
        >>> float(net_benefit(r)[1][49])
        0.5

    References:
        Vickers and Elkin 2006, doi:10.1177/0272989X06295361.
    """
    y, p, _ = answered(report)
    positive, score = y > 0, 1 - p[:, 0] if p.shape[1] > 2 else p[:, 1]
    thresholds = np.arange(1, 100) / 100
    odds = thresholds / (1 - thresholds)
    called = score[None, :] >= thresholds[:, None]  # (99, n)
    hits, alarms, all_hits, all_alarms = (
        ratio(x.sum(-1).astype(np.float64), np.asarray(len(y), np.float64))
        for x in (called & positive, called & ~positive, positive, ~positive)
    )
    return thresholds, hits - odds * alarms, all_hits - odds * all_alarms
