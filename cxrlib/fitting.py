"""The two phases of training, on decoded films: the head on frozen features, then the deeper blocks. Pure Keras 3; resumes where it was stopped."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from cxrlib import machines
from cxrlib.augmentation import Augment
from cxrlib.cache import Films
from cxrlib.calibration import calibrate, fit_temperature
from cxrlib.config import TrainConfig
from cxrlib.data import Dataset
from cxrlib.model import BACKBONES, hand_over, set_trainable
from cxrlib.sampling import weights

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_FLOOR = 0.2  # of the peak, what the learning rate decays to: weights that are averaged later must still move

History = dict[str, list[float]]

_HEAD, _BEST, _STATE = "head.weights.h5", "best.weights.h5", "state.json"
_SURE = 4.0  # deviation of the logits of a head that is as sure as it should be
_SHOWN = 2048  # films that show how compression, or another framing, moves features
_SCATTER = 0.01  # by which found apices are off: a slope that rests on smaller moves is none
_FOLDS = 4  # of the cross-validation that says how far a source's labels are believed
_ENOUGH = 25  # patients of each class that a source needs before it can be disbelieved
_LEAST = 0.01  # what a source counts whose labels look like chance
_HEAD_EPOCH = 10_000  # the head's views draw films as epochs from this one on, so that they differ from those of fine-tuning


@dataclass(frozen=True, eq=False)
class Side:
    """The films of one side of a split.

    Args:
        pixels: (n, s, s) uint8 of the whole data set, perhaps on disk.
        index: ndarray of shape (m,), int64, the side's positions in it.
        films: The m films.
    """

    pixels: Films
    index: NDArray[np.int64]
    films: Dataset

    def batch(self, chosen: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """Read pixels of some of the side's films.

        Args:
            chosen: ndarray of shape (b,), or a slice: which of them.

        Returns:
            ndarray of shape (b, s, s, 1), uint8.
        """
        return self.pixels[self.index[chosen]][..., None]

    def targets(self, chosen: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Give the targets of some of the side's films.

        Args:
            chosen: As for `batch`.

        Returns:
            ndarray of float32: 0 or 1 of shape (b, 1) for two labels, one-hot of shape (b, k) for more.
        """
        targets = self.films.targets[chosen]
        k = len(self.films.labels)
        return targets.astype(np.float32)[:, None] if k == 2 else np.eye(k, dtype=np.float32)[targets]


def fit(
    net: keras.Model, served: keras.Model, train: Side, validation: Side, config: TrainConfig, folder: Path, say: Callable[[str], None]
) -> tuple[History, dict[str, float]]:
    """Train a network of `build_model`, and hand its weights over to one that is shown less of each film: its inner part, less sharply.

    A network that learns from whole films and is then shown their inner part ranks films of other hospitals better than one that sees the same at both times,
    all of them or their inner part. Things look larger where it is used, as after training on random crops (Touvron et al., 2019,
    arXiv:1906.06423), which brings compression nearer, too. All validation is of the network that is served.

    Args:
        net: The network that is trained.
        served: The network that gets what was learnt; it is corrected and calmed in the end. It may be `net` itself.
        train: Films to train on.
        validation: Films to select by; they are never augmented.
        config: The recipe.
        folder: Where checkpoints lie; a run that was stopped goes on from there.
        say: Called with a line now and then.

    Returns:
        One value per epoch under `loss`, `val_auroc` (the mean over the sources), `val_auroc <source>` and `seconds`; and how far each source was believed.
    """
    trainer = _trainer(net, config)

    def measure() -> tuple[float, dict[str, float]]:
        hand_over(net, served)
        return validate(served, validation)

    steps = max(1, len(train.index) // config.batch_size)
    state = json.loads((folder / _STATE).read_text("utf-8")) if (folder / _STATE).exists() else None
    if state is None:
        loss, trust = _fit_head(net, trainer, train, config)
        if len(trust) > 1:
            say(f"labels are believed by source: {_list(trust)}")
        score, by_source = measure()
        say(f"head on frozen features: loss {loss:.4f}, validation AUROC {score:.4f} ({_list(by_source)})")
        state = {"epoch": 0, "best": score, "best_epoch": 0, "history": {}, "trust": trust}
        _save(net, folder / _HEAD)
        _save(net, folder / _BEST)
    set_trainable(net, config.fine_tune_from or BACKBONES[config.backbone].fine_tune_from)
    _compile(trainer, config, steps)
    if state["epoch"]:
        trainer.load_weights(folder / _last(state["epoch"]))
        say(f"goes on after epoch {state['epoch']}")
    else:
        net.load_weights(folder / _HEAD)
        _write(folder / _STATE, state)
    history: History = state["history"]
    while state["epoch"] < config.epochs and _epochs_without_gain(history) < config.patience:
        start = time.monotonic()
        state["epoch"] += 1
        _reseed(trainer, config.seed, state["epoch"])
        done = trainer.fit(_Batches(train, config, steps, state["epoch"], state["trust"]), epochs=1, verbose=0, shuffle=False)
        score, by_source = measure()
        values = {"loss": done.history["loss"][0], "val_auroc": score, **{f"val_auroc {s}": v for s, v in by_source.items()}}
        for name, value in {**values, "seconds": time.monotonic() - start}.items():
            history.setdefault(name, []).append(round(float(value), 5))
        if score > state["best"]:
            state |= {"best": score, "best_epoch": state["epoch"]}
            _save(net, folder / _BEST)
        if config.average:
            _save(net, folder / _recent(state["epoch"], config))
        _save(trainer, folder / _last(state["epoch"]))  # weights and the optimiser's state
        _write(folder / _STATE, state)
        took = history["seconds"][-1]
        say(f"epoch {state['epoch']}/{config.epochs}: loss {values['loss']:.4f}, validation AUROC {score:.4f} ({_list(by_source)}), {took:.0f} s")
    _choose_weights(net, train.films, config, folder, state, say)
    hand_over(net, served)
    _correct_framing(served, trainer, train, config, state["trust"])
    if state["epoch"] if config.average else state["best_epoch"]:  # what fine-tuning moved is in it
        _calm_head(served, trainer, train, config, state["trust"])
    score, by_source = validate(served, validation)
    say(f"ends with validation AUROC {score:.4f} ({_list(by_source)})")
    return history, state["trust"]


def validate(net: keras.Model, side: Side) -> tuple[float, dict[str, float]]:
    """Measure how well a network ranks a side's films.

    Args:
        net: A network of `build_model`.
        side: The films.

    Returns:
        The mean AUROC over the sources that have two classes or more, and that of each; with three or more labels, each against the others.
    """
    starts = range(0, len(side.index), 64)
    p = machines.agree(np.concatenate([np.asarray(net.predict_on_batch(side.batch(slice(i, i + 64)).astype(np.float32) / np.float32(255))) for i in starts]))
    by_source = _auroc_by_source(side, p)
    if not by_source:
        raise ValueError(
            "no source has validation films of two classes: every source must bring both (a class that comes from one hospital alone teaches the hospital)"
        )
    return float(np.mean(list(by_source.values()))), by_source


def _auroc_by_source(side: Side, p: NDArray[Any], weight: NDArray[np.float64] | None = None) -> dict[str, float]:
    """How well probabilities (m, 1) or (m, k) rank the films of each source that has two classes or more, each film counting as its weight (m,) says."""
    from sklearn.metrics import roc_auc_score

    truth, where = side.targets(slice(None)), np.array(side.films.sources)
    by_source = {}
    for source in np.unique(where):
        y, q, w = truth[where == source], p[where == source], None if weight is None else weight[where == source]
        scores = [roc_auc_score(y[:, c], q[:, c], sample_weight=w) for c in range(y.shape[1]) if 0 < y[:, c].mean() < 1]
        if scores:
            by_source[str(source)] = float(np.mean(scores))
    return by_source


def importance(films: Dataset, config: TrainConfig, trust: Mapping[str, float]) -> NDArray[np.float64]:
    """Say how much each film counts.

    Classes count alike within a source, and within each view and framing there (or what else `config.balance_by` names); a source of m films counts as m to
    the power of `config.source_power`, times how far its labels are believed.

    Args:
        films: The films.
        config: The recipe.
        trust: For each source, how far its labels are believed, in [0, 1]; sources that are not named are believed.

    Returns:
        ndarray of shape (m,), float64, positive, mean 1.
    """
    _, source, size = np.unique(films.sources, return_inverse=True, return_counts=True)
    w = (np.ones(len(films)) if config.balance == "none" else weights(films, by=config.balance_by)) * size[source] ** (config.source_power - 1.0)
    w *= [trust.get(name, 1.0) for name in films.sources]
    return np.asarray(w * (len(w) / w.sum()), np.float64)


def draw(films: Dataset, config: TrainConfig, n: int, epoch: int, trust: Mapping[str, float]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw the films of an epoch; the same ones for the same seed and epoch.

    With `balance="sample"` films come the more often the more they count, see `importance`; otherwise every film comes once and weighs more or less.

    Args:
        films: The films to draw from.
        config: The recipe.
        n: How many to draw.
        epoch: Which epoch.
        trust: As for `importance`.

    Returns:
        Positions of shape (n,), int64, and the weight of each, float32 with mean about 1.
    """
    random = np.random.default_rng([config.seed, epoch])
    w = importance(films, config, trust)
    order = random.permutation(len(w))
    if config.balance != "sample":
        chosen = np.resize(order, n)
        return chosen, w[chosen].astype(np.float32)
    edges = np.cumsum(w[order]) * (n / len(w))  # systematic sampling: a film that counts 1.4 comes once or twice
    chosen = order[np.searchsorted(edges, np.arange(n) + random.random(), side="right").clip(max=len(w) - 1)]
    return random.permutation(chosen), np.ones(n, np.float32)


def mix(pixels: NDArray[np.uint8], targets: NDArray[np.float32], strength: float, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Blend every film of a batch with another one, and their targets alike (Zhang et al., 2018, arXiv:1710.09412).

    Args:
        pixels: (b, s, s, 1) uint8.
        targets: (b, k) float32.
        strength: Parameter of the symmetric beta distribution that the parts are drawn from; the smaller, the purer the films.
        random: Where the draws come from.

    Returns:
        Blended pixels and targets, of the same shapes and dtypes.
    """
    part = random.beta(strength, strength, len(pixels)).astype(np.float32)
    part = np.maximum(part, 1 - part)  # of the film itself
    other = random.permutation(len(pixels))
    p, t = part[:, None, None, None], part[:, None]
    return np.rint(p * pixels + (1 - p) * pixels[other]).astype(np.uint8), t * targets + (1 - t) * targets[other]


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """The batches of one epoch, or this process's share of them, read ahead by a thread while the network computes."""

    def __init__(self, side: Side, config: TrainConfig, steps: int, epoch: int, trust: Mapping[str, float]) -> None:
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=8)
        self.side, self.size, self.steps, self.mixup = side, config.batch_size, steps, config.mixup
        self.seed, self.share = (config.seed, epoch), machines.share(config.batch_size)
        self.chosen, self.weights = draw(side.films, config, steps * config.batch_size, epoch, trust)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, i: int) -> tuple[NDArray[Any], ...]:
        part = slice(i * self.size, (i + 1) * self.size)
        chosen, weights_ = self.chosen[part], self.weights[part][self.share]
        if self.mixup:  # of a film with any other of the batch
            pixels, targets = mix(self.side.batch(chosen), self.side.targets(chosen), self.mixup, np.random.default_rng([*self.seed, i]))
            return pixels[self.share], targets[self.share], weights_
        return self.side.batch(chosen[self.share]), self.side.targets(chosen[self.share]), weights_


def _trainer(net: keras.Model, config: TrainConfig) -> keras.Model:
    """The network behind its augmentation, both on the device; films travel there as uint8."""
    films = keras.Input((config.image_size, config.image_size, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255, dtype="float32", name="unit")(films)
    x = Augment(config.augment, seed=config.seed, dtype="float32", name="augment")(x)
    return keras.Model(films, net(x))


class _Features:
    """Reads what a network makes of a side's films in one of the views: "plain", "augmented", "compressed", "cut"."""

    def __init__(self, net: keras.Model, trainer: keras.Model, side: Side, config: TrainConfig, output: Any = None) -> None:
        self.net = keras.Model(net.input, net.get_layer("dropout").input if output is None else output)
        self.trainer, self.side, self.config = trainer, side, config

    def __call__(self, kind: str, chosen: NDArray[np.int64], view: int) -> NDArray[np.float32]:
        """Features (n, c), or the other output (n, d), of the chosen films (n,); the same draws for the same number of the view."""
        _reseed(self.trainer, self.config.seed, _HEAD_EPOCH + view)
        views, size = _Views(self.trainer, self.net, kind), self.config.batch_size
        batches = (self.side.batch(chosen[i : i + size]) for i in range(0, len(chosen), size))
        return np.concatenate([np.asarray(views.predict_on_batch(batch), np.float32) for batch in batches])


class _Views(keras.Model):  # type: ignore[misc]
    """Features of films as they are or changed: that works although nothing is trained, which a functional model would not let it."""

    def __init__(self, trainer: keras.Model, net: keras.Model, view: str) -> None:
        super().__init__(name=f"{view}_views")
        self.unit, self.augment, self.net, self.view = trainer.get_layer("unit"), trainer.get_layer("augment"), net, view

    def call(self, films: Any) -> Any:
        """Give features (b, c) of films (b, s, s, 1) uint8; of another view at every call."""
        augment = self.augment
        change = {"plain": lambda x: x, "augmented": lambda x: augment(x, training=True), "compressed": augment.compress, "cut": augment.cut}[self.view]
        return self.net(change(self.unit(films)), training=False)


def _compile(trainer: keras.Model, config: TrainConfig, steps: int) -> None:
    total = steps * max(config.epochs, 1)
    rise = max(1, total // 20)
    rate = keras.optimizers.schedules.CosineDecay(
        config.learning_rate / 20, max(1, total - rise), alpha=_FLOOR, warmup_target=config.learning_rate, warmup_steps=rise
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=1.0)
    trainer.compile(optimizer, _loss(trainer.output_shape[-1], config))
    optimizer.build(trainer.trainable_variables)


def _loss(units: int, config: TrainConfig) -> keras.losses.Loss:
    kind = keras.losses.BinaryCrossentropy if units == 1 else keras.losses.CategoricalCrossentropy
    return kind(label_smoothing=config.label_smoothing)


def _fit_head(net: keras.Model, trainer: keras.Model, side: Side, config: TrainConfig) -> tuple[float, dict[str, float]]:
    """Phase 1: the backbone is frozen, so its features are computed once per view, and the head is fitted to them.

    Gives its loss, and how far each source is believed. The first view is the films themselves, the others are augmented. The head is a penalised logistic
    regression on standardised features, whose scaling is then merged into it. The penalty is stronger along the directions in which compression moves features,
    as in within-class covariance normalisation (Hatch, Kajarekar and Stolcke, 2006, doi:10.21437/Interspeech.2006-183). It shrinks the logits, which is undone,
    so that fine-tuning does not begin with making them larger; but not beyond what label smoothing rewards, where a few films are told apart without an error.
    """
    from sklearn.metrics import log_loss

    n = len(side.index)
    set_trainable(net, "dropout")
    features = _Features(net, trainer, side, config)
    unchanged = features("plain", np.arange(n), 0)
    trust = _trust(unchanged, side, config)
    drawn = [draw(side.films, config, n, _HEAD_EPOCH + view, trust) for view in range(config.views)]
    x = np.concatenate([features("augmented", chosen, view) if view else unchanged[chosen] for view, (chosen, _) in enumerate(drawn)])
    y = np.concatenate([side.films.targets[chosen] for chosen, _ in drawn])
    w = np.concatenate([weight for _, weight in drawn])
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
    some = drawn[0][0][:_SHOWN]
    penalty = _penalty(features("compressed", some, config.views) - x[: len(some)], scale, config.compression_penalty)
    whiten = (np.linalg.inv(np.linalg.cholesky(penalty)).T / scale[:, None]).astype(np.float32)  # (c, c): to what is penalised alike in all directions
    z = (x - centre) @ whiten
    model = _logistic(len(z), config).fit(z, y, sample_weight=w)
    logits = model.decision_function(z)
    sharper = min(1 / fit_temperature(logits, y), _SURE / float(logits.std()))
    kernel = sharper * whiten @ model.coef_.T  # (c, units)
    bias = sharper * model.intercept_ - centre @ kernel
    net.get_layer("probability").set_weights([machines.agree(array.astype(np.float32)) for array in (kernel, bias)])
    return float(log_loss(y, calibrate(model.predict_proba(z), 1 / sharper))), trust


def _penalty(moved: NDArray[np.float32], scale: NDArray[np.float32], strength: float) -> NDArray[np.float64]:
    """How much weights on standardised features are penalised (c, c), from what compression alone does to the features (n, c) of films."""
    moved = moved / scale
    return np.asarray(np.eye(len(scale)) + strength * moved.T @ moved / len(moved), np.float64)


def _calm_head(net: keras.Model, trainer: keras.Model, side: Side, config: TrainConfig, trust: Mapping[str, float]) -> None:
    """Shrink the head along the directions in which compression moves the features that fine-tuning has made: it learns to hear them again.

    Of all weights on standardised features, those that are least far from the tuned ones under a penalty like that by which the head was fitted: its inverse
    times the tuned ones. The mean logit stays.
    """
    chosen, _ = draw(side.films, config, len(side.index), _HEAD_EPOCH, trust)
    features = _Features(net, trainer, side, config)
    x = features("plain", chosen[:_SHOWN], 0)  # (n, c)
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
    penalty = _penalty(features("compressed", chosen[:_SHOWN], config.views) - x, scale, config.calm_penalty)
    kernel, bias = (np.asarray(weights_) for weights_ in net.get_layer("probability").get_weights())  # (c, units), (units,)
    calm = np.linalg.solve(penalty, kernel * scale[:, None]) / scale[:, None]
    net.get_layer("probability").set_weights([machines.agree(array.astype(np.float32)) for array in (calm, bias + centre @ (kernel - calm))])


def _correct_framing(net: keras.Model, trainer: keras.Model, side: Side, config: TrainConfig, trust: Mapping[str, float]) -> None:
    """Measure what the height of the apices does to the features, and have it taken off them.

    The tops of films are cut off. How features move then, for each part of the film's height by which the apices do, is a slope within films: that ill films
    are framed otherwise than healthy ones cannot enter it (a fixed effect: Mundlak, 1978, doi:10.2307/1913646).
    """
    layer = net.get_layer("reframe")
    lower_and_features = keras.ops.concatenate([layer.lower(layer.input[1]), layer.input[0]], axis=1)
    read = _Features(net, trainer, side, config, lower_and_features)
    chosen = draw(side.films, config, len(side.index), _HEAD_EPOCH, trust)[0][:_SHOWN]
    moved = read("cut", chosen, config.views) - read("plain", chosen, 0)  # (n, 1 + c)
    lower = moved[:, 0]
    slope = config.framing_correction * (lower @ moved[:, 1:]) / (lower @ lower + len(lower) * _SCATTER**2)
    layer.set_weights([machines.agree(slope.astype(np.float32))])


def _logistic(n: int, config: TrainConfig) -> LogisticRegression:
    """A logistic regression whose penalty is the recipe's, for n films."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / (config.head_penalty * n), max_iter=1000)


def _trust(features: NDArray[np.float32], side: Side, config: TrainConfig) -> dict[str, float]:
    """How far the labels of each source are believed, in [0.01, 1], from the features (n, c) of its films.

    A head is trained on all sources together, in a cross-validation by patients, and ranks the films of each source. Labels that are wrong at a rate r shrink
    2 AUROC - 1 by the factor 1 - 2 r (Menon et al., 2015, proceedings.mlr.press/v37/menon15.html), and what a film tells about the disease by its square.
    Labels that only their own hospital could teach, since they go with its ways of making films, look wrong to such a head too. A source with few patients, or
    with one class, is believed.
    """
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    films = side.films
    patients = [patient or name for patient, name in zip(films.patients, films.names, strict=True)]
    counts = Counter((source, target) for source, target, _ in set(zip(films.sources, films.targets.tolist(), patients, strict=True)))
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
    auroc = _auroc_by_source(side, p[:, 1:] if p.shape[1] == 2 else p, weight)
    believed = machines.agree(np.array([max(2 * auroc[name] - 1, 0.0) ** config.source_trust for name in measured]))
    return trust | {name: max(_LEAST, round(float(part), 4)) for name, part in zip(measured, believed, strict=True)}


def _reseed(trainer: keras.Model, seed: int, epoch: int) -> None:
    """Start every random layer from the seed and the epoch alone, so that a resumed run draws what an unbroken one would have."""
    states = [variable for variable in trainer.variables if variable.name == "seed_generator_state"]
    for i, state in enumerate(states):
        state.assign(np.array([seed + i, epoch], np.uint32))


def _choose_weights(net: keras.Model, films: Dataset, config: TrainConfig, folder: Path, state: dict[str, Any], say: Callable[[str], None]) -> None:
    """Load what fine-tuning found: the mean of the last epochs' weights, mixed with the weights before it.

    Averages along the way generalise better than the best single epoch, which is best by luck too (Izmailov et al., 2018, arXiv:1803.05407), and so do mixtures
    with the weights before fine-tuning, on data unlike the training data (Wortsman et al., 2022, arXiv:2109.01903). How much is kept is the recipe's, because
    validation patients cannot tell: they come from the hospitals that fine-tuning has learnt. The more films, the less what it learns is theirs alone.
    """
    if not (config.average and state["epoch"]):
        net.load_weights(folder / _BEST)
        say(f"keeps epoch {state['best_epoch']}")
        return

    def read(name: str) -> list[NDArray[Any]]:
        net.load_weights(folder / name)
        return list(net.get_weights())

    recent = range(max(1, state["epoch"] - config.average + 1), state["epoch"] + 1)
    tuned = [np.mean(arrays, axis=0) for arrays in zip(*(read(_recent(epoch, config)) for epoch in recent), strict=True)]
    believed = sum(state["trust"][source] for source in films.sources)
    kept = believed**2 / (believed**2 + config.prior_films**2)
    net.set_weights([kept * t + (1 - kept) * s for t, s in zip(tuned, read(_HEAD), strict=True)])
    say(f"keeps {kept:.0%} of the mean of the last {len(recent)} epochs, {1 - kept:.0%} from before fine-tuning")


def _epochs_without_gain(history: History) -> int:
    scores = history.get("val_auroc", [])
    return len(scores) - 1 - int(np.argmax(scores)) if scores else 0


def _recent(epoch: int, config: TrainConfig) -> str:
    return f"recent-{epoch % config.average}.weights.h5"


def _last(epoch: int) -> str:
    return f"last-{epoch % 2}.weights.h5"  # the epoch before stays until the state speaks of this one


def _save(model: keras.Model, path: Path) -> None:
    part = path.with_name(f"part-{machines.rank()}-{path.name}")
    model.save_weights(part, overwrite=True)  # in every process: it reads what all of them must read together
    if machines.rank():
        part.unlink()
    else:
        os.replace(part, path)
    machines.wait(path.name)  # before anybody reads it


def _write(path: Path, state: dict[str, Any]) -> None:
    if machines.rank() == 0:
        part = path.with_name(f"part-{path.name}")
        part.write_text(json.dumps(state), "utf-8")
        os.replace(part, path)


def _list(by_source: dict[str, float]) -> str:
    return ", ".join(f"{source} {value:.4f}" for source, value in by_source.items())
