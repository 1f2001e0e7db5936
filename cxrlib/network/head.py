"""The head: fitted to features of films, then made to hear less of compression and of framing. Pure Keras 3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from cxrlib.config import TrainConfig
from cxrlib.data.split import Side, draw, importance
from cxrlib.metrics.calibration import calibrate, fit_temperature
from cxrlib.network import machines
from cxrlib.network.model import reseed, set_trainable

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_SURE = 4.0  # deviation of the logits of a head that is as sure as it should be
_SHOWN = 2048  # films that show how compression moves features
_CUT = 1024  # films that show how another framing does: a slope for each feature takes fewer than a covariance
_SCATTER = 0.01  # by which found apices are off: a slope that rests on smaller moves is none
_FOLDS = 4  # of the cross-validation that says how far a source's labels are believed
_ENOUGH = 25  # patients of each class that a source needs before it can be disbelieved
_LEAST = 0.01  # what a source counts whose labels look like chance
_HEAD_EPOCH = (
    10_000  # the head's views draw films as epochs from this one on, so that they differ from those of fine-tuning
)


def fit_head(net: keras.Model, trainer: keras.Model, side: Side, config: TrainConfig) -> tuple[float, dict[str, float]]:
    """Phase 1: the backbone is frozen, so its features are computed once per view, and the head is fitted to them.

    The first view is the films themselves, the others are augmented. The head is a penalised logistic regression on standardised features, whose scaling is
    then merged into it. The penalty is stronger along the directions in which compression moves features, as in within-class covariance normalisation (Hatch,
    Kajarekar and Stolcke, 2006, doi:10.21437/Interspeech.2006-183). It shrinks the logits, which is undone, so that fine-tuning does not begin with making
    them larger; but not beyond what label smoothing rewards, where a few films are told apart without an error.

    Args:
        net: A network of `build_model`; its backbone is frozen, its head is set.
        trainer: The same network behind its augmentation.
        side: Films to train on.
        config: The recipe.

    Returns:
        The head's loss, and how far each source is believed, in [0.01, 1].
    """
    from sklearn.metrics import log_loss

    n = len(side.index)
    set_trainable(net, "dropout")
    features = _Features(net, trainer, side, config)
    unchanged = features("plain", np.arange(n), 0)
    trust = _trust(unchanged, side, config)
    drawn = [draw(side.films, config, n, _HEAD_EPOCH + view, trust) for view in range(config.views)]
    x = np.concatenate(
        [features("augmented", chosen, view) if view else unchanged[chosen] for view, (chosen, _) in enumerate(drawn)]
    )
    y = np.concatenate([side.films.targets[chosen] for chosen, _ in drawn])
    w = np.concatenate([weight for _, weight in drawn])
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
    some = drawn[0][0][:_SHOWN]
    penalty = _penalty(features("compressed", some, config.views) - x[: len(some)], scale, config.compression_penalty)
    whiten = (np.linalg.inv(np.linalg.cholesky(penalty)).T / scale[:, None]).astype(
        np.float32
    )  # (c, c): to what is penalised alike in all directions
    z = (x - centre) @ whiten
    model = _logistic(len(z), config).fit(z, y, sample_weight=w)
    logits = model.decision_function(z)
    sharper = min(1 / fit_temperature(logits, y), _SURE / float(logits.std()))
    kernel = sharper * whiten @ model.coef_.T  # (c, units)
    bias = sharper * model.intercept_ - centre @ kernel
    net.get_layer("probability").set_weights([machines.agree(array.astype(np.float32)) for array in (kernel, bias)])
    return float(log_loss(y, calibrate(model.predict_proba(z), 1 / sharper))), trust


def calm_head(
    net: keras.Model, trainer: keras.Model, side: Side, config: TrainConfig, trust: Mapping[str, float]
) -> None:
    """Shrink the head along the directions in which compression moves the features that fine-tuning has made: it learns to hear them again.

    Of all weights on standardised features, those that are least far from the tuned ones under a penalty like that by which the head was fitted: its inverse
    times the tuned ones. The mean logit stays.

    Args:
        net: A network of `build_model`, fine-tuned; its head is changed.
        trainer: A network for the same films behind its augmentation.
        side: Films to train on.
        config: The recipe.
        trust: For each source, how far its labels are believed, as `fit_head` returns it.
    """
    chosen, _ = draw(side.films, config, len(side.index), _HEAD_EPOCH, trust)
    features = _Features(net, trainer, side, config)
    x = features("plain", chosen[:_SHOWN], 0)  # (n, c)
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
    penalty = _penalty(features("compressed", chosen[:_SHOWN], config.views) - x, scale, config.calm_penalty)
    kernel, bias = (
        np.asarray(weights_) for weights_ in net.get_layer("probability").get_weights()
    )  # (c, units), (units,)
    calm = np.linalg.solve(penalty, kernel * scale[:, None]) / scale[:, None]
    net.get_layer("probability").set_weights(
        [machines.agree(array.astype(np.float32)) for array in (calm, bias + centre @ (kernel - calm))]
    )


def correct_framing(
    net: keras.Model, trainer: keras.Model, side: Side, config: TrainConfig, trust: Mapping[str, float]
) -> None:
    """Measure what the height of the apices does to the features, and have it taken off them.

    The tops of films are cut off. How features move then, for each part of the film's height by which the apices do, is a slope within films: that ill films
    are framed otherwise than healthy ones cannot enter it (a fixed effect: Mundlak, 1978, doi:10.2307/1913646).

    Args:
        net: A network of `build_model`; its layer `reframe` is set.
        trainer: As for `calm_head`.
        side: Films to train on.
        config: The recipe.
        trust: As for `calm_head`.
    """
    layer = net.get_layer("reframe")
    lower_and_features = keras.ops.concatenate([layer.lower(layer.input[1]), layer.input[0]], axis=1)
    read = _Features(net, trainer, side, config, lower_and_features)
    chosen = draw(side.films, config, len(side.index), _HEAD_EPOCH, trust)[0][:_CUT]
    moved = read("cut", chosen, config.views) - read("plain", chosen, 0)  # (n, 1 + c)
    lower = moved[:, 0]
    slope = config.framing_correction * (lower @ moved[:, 1:]) / (lower @ lower + len(lower) * _SCATTER**2)
    layer.set_weights([machines.agree(slope.astype(np.float32))])


def auroc_by_source(side: Side, p: NDArray[Any], weight: NDArray[np.float64] | None = None) -> dict[str, float]:
    """Measure how well probabilities rank the films of each source that has two classes or more.

    Args:
        side: The m films.
        p: ndarray of shape (m, 1) for two labels, (m, k) for more.
        weight: ndarray of shape (m,): how much each film counts; `None` for all alike.

    Returns:
        The AUROC of each source by its name; with three or more labels the mean of those of each against the others.

    Example:
        >>> from cxrlib.data.scan import Dataset
        >>> films = Dataset(tuple("abc"), np.array([0, 1, 1]), ("NORMAL", "PNEUMONIA"), (None,) * 3, ("home",) * 3, (None,) * 3)
        >>> side = Side(np.zeros((3, 1, 1), np.uint8), np.arange(3), films)
        >>> auroc_by_source(side, np.array([[0.4], [0.3], [0.9]]))
        {'home': 0.5}
    """
    from sklearn.metrics import roc_auc_score

    truth, where = side.targets(slice(None)), np.array(side.films.sources)
    by_source = {}
    for source in np.unique(where):
        y, q, w = truth[where == source], p[where == source], None if weight is None else weight[where == source]
        scores = [roc_auc_score(y[:, c], q[:, c], sample_weight=w) for c in range(y.shape[1]) if 0 < y[:, c].mean() < 1]
        if scores:
            by_source[str(source)] = float(np.mean(scores))
    return by_source


def _trust(features: NDArray[np.float32], side: Side, config: TrainConfig) -> dict[str, float]:
    """How far the labels of each source are believed, in [0.01, 1], from the features (n, c) of its films.

    A head is trained on all sources together, in a cross-validation by patients, and ranks the films of each source. Labels that are wrong at a rate r shrink
    2 AUROC - 1 by the factor 1 - 2 r (Menon et al., 2015, proceedings.mlr.press/v37/menon15.html), and what a film tells about the disease by its square.
    Labels that only their own hospital could teach, since they go with its ways of making films, look wrong to such a head too. A source with few patients, or
    with one class, is believed.
    """
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    films = side.films
    patients = films.patients_or_names
    counts = Counter(
        (source, target) for source, target, _ in set(zip(films.sources, films.targets.tolist(), patients, strict=True))
    )
    names = list(dict.fromkeys(films.sources))
    trust = dict.fromkeys(names, 1.0)
    measured = [name for name in names if min(counts[name, target] for target in range(len(films.labels))) >= _ENOUGH]
    if len(names) < 2 or not measured or not config.source_trust:
        return trust
    z = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-3)
    weight = importance(films, config, {})
    p = cross_val_predict(
        _logistic(len(z), config),
        z,
        films.targets,
        groups=patients,
        cv=StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=config.seed),
        method="predict_proba",
        params={"sample_weight": weight},
    )
    auroc = auroc_by_source(side, p[:, 1:] if p.shape[1] == 2 else p, weight)
    believed = machines.agree(np.array([max(2 * auroc[name] - 1, 0.0) ** config.source_trust for name in measured]))
    return trust | {name: max(_LEAST, round(float(part), 4)) for name, part in zip(measured, believed, strict=True)}


def _penalty(moved: NDArray[np.float32], scale: NDArray[np.float32], strength: float) -> NDArray[np.float64]:
    """How much weights on standardised features are penalised (c, c), from what compression alone does to the features (n, c) of films."""
    moved = moved / scale
    return np.asarray(np.eye(len(scale)) + strength * moved.T @ moved / len(moved), np.float64)


def _logistic(n: int, config: TrainConfig) -> LogisticRegression:
    """A logistic regression whose penalty is the recipe's, for n films."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / (config.head_penalty * n), max_iter=1000)


class _Features:
    """Reads what a network makes of a side's films in one of the views: "plain", "augmented", "compressed", "cut"."""

    def __init__(
        self, net: keras.Model, trainer: keras.Model, side: Side, config: TrainConfig, output: Any = None
    ) -> None:
        self.net = keras.Model(net.input, net.get_layer("dropout").input if output is None else output)
        self.trainer, self.side, self.config = trainer, side, config

    def __call__(self, kind: str, chosen: NDArray[np.int64], view: int) -> NDArray[np.float32]:
        """Features (n, c), or the other output (n, d), of the chosen films (n,); the same draws for the same number of the view."""
        reseed(self.trainer, self.config.seed, _HEAD_EPOCH + view)
        views, size = _Views(self.trainer, self.net, kind), self.config.batch_size
        batches = (self.side.batch(chosen[i : i + size]) for i in range(0, len(chosen), size))
        return np.concatenate([np.asarray(views.predict_on_batch(batch), np.float32) for batch in batches])


class _Views(keras.Model):  # type: ignore[misc]
    """Features of films as they are or changed: that works although nothing is trained, which a functional model would not let it."""

    def __init__(self, trainer: keras.Model, net: keras.Model, view: str) -> None:
        super().__init__(name=f"{view}_views")
        self.unit, self.augment, self.net, self.view = (
            trainer.get_layer("unit"),
            trainer.get_layer("augment"),
            net,
            view,
        )

    def call(self, films: Any) -> Any:
        """Give features (b, c) of films (b, s, s, 1) uint8; of another view at every call."""
        augment = self.augment
        change = {
            "plain": lambda x: x,
            "augmented": lambda x: augment(x, training=True),
            "compressed": augment.compress,
            "cut": augment.cut,
        }[self.view]
        return self.net(change(self.unit(films)), training=False)
