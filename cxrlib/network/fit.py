"""Training a network of either recipe on decoded images. Pure Keras 3; it resumes where it was stopped."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cxrlib.config import DefaultRecipe, Recipe, TextbookRecipe
from cxrlib.data.cache import Images
from cxrlib.data.scan import Dataset
from cxrlib.network import default, devices, textbook
from cxrlib.network.augment import augmenter, reseed

History = dict[str, list[float]]

_HEAD, _BEST, _STATE = "head.weights.h5", "best.weights.h5", "state.json"


@dataclass(frozen=True, eq=False)
class Side:
    """The images of one side of a split.

    Args:
        images: ndarray of shape (n, s, s), uint8, of the whole data set; perhaps on disk.
        index: ndarray of shape (m,), int64: the positions of this side's images.
        dataset: The m images' labels, patients and sources.
    """

    images: Images | NDArray[np.uint8]
    index: NDArray[np.int64]
    dataset: Dataset

    def batch(self, chosen: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """Read some of the images.

        Args:
            chosen: ndarray of shape (b,), or a slice: positions within the side.

        Returns:
            ndarray of shape (b, s, s, 1), uint8.
        """
        return np.asarray(self.images[self.index[chosen]])[..., None]

    def targets(self, chosen: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Give the targets of some of the images.

        Args:
            chosen: As for `batch`.

        Returns:
            ndarray of float32: 0 or 1 of shape (b, 1) for two labels, one-hot of shape (b, k) for more.
        """
        targets, k = self.dataset.targets[chosen], len(self.dataset.labels)
        return targets.astype(np.float32)[:, None] if k == 2 else np.eye(k, dtype=np.float32)[targets]


def fit(
    model: keras.Model, train: Side, validation: Side, recipe: Recipe, folder: Path, *, progress: bool = True
) -> History:
    """Train a network of `build_model`.

    `"textbook"`: the head, on the frozen backbone, with early stopping; the best epoch is kept. `"default"`: the head
    on features that are computed once, then the deeper blocks; a moving average of the weights is kept.

    Args:
        model: The network; it is trained in place.
        train: Images to train on.
        validation: Images to measure on after every epoch; they are never augmented.
        recipe: The recipe.
        folder: Where checkpoints lie. A run that was stopped goes on from there, with the same result.
        progress: Whether to show progress on stderr.

    Returns:
        For every epoch, `loss`, `accuracy` and `auroc` of the training images as they were augmented, and `val_loss`,
        `val_accuracy` and `val_auroc`.
    """
    trainer = _behind_augmentation(model, recipe)
    steps = max(1, len(train.index) // recipe.batch_size)
    state = json.loads((folder / _STATE).read_text("utf-8")) if (folder / _STATE).exists() else {}
    callbacks: list[Any] = [_Record(model, recipe, folder, state.get("history", {}), steps, progress)]
    balance = {}
    if isinstance(recipe, TextbookRecipe):
        textbook.compile(trainer, recipe)
        counts = Counter(train.dataset.targets.tolist())
        balance = {k: len(train.index) / (len(counts) * n) for k, n in counts.items()}
    else:
        if not devices.agree(np.array([(folder / _HEAD).exists()]))[0]:
            weights = sampling_weights(train.dataset, recipe.source_power)
            with devices.alone():
                features = _features(model, train, recipe.batch_size, progress)
                default.fit_head(model, features, train.targets(slice(None)), weights)
            _save(model, folder / _HEAD)
        model.load_weights(folder / _HEAD)
        default.set_trainable(model, default.BACKBONES[recipe.backbone].fine_tune_from)
        default.compile(trainer, recipe, steps * recipe.epochs)
        if recipe.ema:
            callbacks.append(keras.callbacks.SwapEMAWeights())  # the average is what validation measures
    trainer.optimizer.build(trainer.trainable_variables)
    done = state.get("epoch", 0)
    if done:
        trainer.load_weights(folder / _last(done))  # and the optimiser's state
    trainer.fit(
        _Batches(train, recipe, steps, done),
        validation_data=_InOrder(validation, recipe.batch_size),
        initial_epoch=done,
        epochs=callbacks[0].last_epoch(done),
        class_weight=balance or None,
        callbacks=callbacks,
        shuffle=False,
        verbose=0,
    )
    if recipe.epochs:
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)  # the average, where there is one
    if isinstance(recipe, TextbookRecipe) and (folder / _BEST).exists():
        model.load_weights(folder / _BEST)
    history: History = callbacks[0].history
    return history


def sampling_weights(dataset: Dataset, source_power: float) -> NDArray[np.float64]:
    """Weigh images so that within every source each class counts the same.

    Args:
        dataset: The images.
        source_power: A source of n images counts n to this power: 1 by its size, 0 as much as any other.

    Returns:
        ndarray of shape (n,), float64, positive, mean 1.

    Example:
        >>> labels, unknown = ("NORMAL", "PNEUMONIA"), (None,) * 4
        >>> data = Dataset(tuple("abcd"), np.array([0, 1, 1, 1]), labels, unknown, ("home",) * 4, unknown)
        >>> sampling_weights(data, 0.5).round(2).tolist()
        [2.0, 0.67, 0.67, 0.67]
    """
    cells = list(zip(dataset.sources, dataset.targets.tolist(), strict=True))
    of_source, of_cell = Counter(dataset.sources), Counter(cells)
    classes = Counter(source for source, _ in of_cell)
    weights = np.array(
        [of_source[cell[0]] ** source_power / (classes[cell[0]] * of_cell[cell]) for cell in cells], np.float64
    )
    return np.asarray(weights / weights.mean(), np.float64)


def draw(weights: NDArray[np.float64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Draw the images of an epoch, each as often as it counts, give or take one: systematic sampling.

    Args:
        weights: ndarray of shape (m,), positive.
        n: How many to draw.
        seed: Seed of the run.
        epoch: Which epoch.

    Returns:
        ndarray of shape (n,), int64: positions, in random order; the same for the same seed and epoch.

    Example:
        >>> np.bincount(draw(np.array([3.0, 1.0]), 8, 0, 0)).tolist()
        [6, 2]
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(weights))
    ends = np.cumsum(weights[order])
    points = (np.arange(n) + random.random()) * (ends[-1] / n)
    chosen = order[np.minimum(np.searchsorted(ends, points, side="right"), len(order) - 1)]
    return random.permutation(chosen)


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """The training batches of an epoch, or this process's share of them."""

    def __init__(self, side: Side, recipe: Recipe, steps: int, epoch: int) -> None:
        super().__init__()
        self.side, self.recipe, self.steps, self.epoch = side, recipe, steps, epoch
        self.share = devices.share(recipe.batch_size)
        self.weights = (
            sampling_weights(side.dataset, recipe.source_power)
            if isinstance(recipe, DefaultRecipe)
            else np.ones(len(side.index))
        )
        self.chosen = self._drawn()  # Keras looks at some batches before the first epoch begins

    def __len__(self) -> int:
        return self.steps

    def on_epoch_begin(self) -> None:
        self.chosen = self._drawn()
        self.epoch += 1

    def __getitem__(self, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        chosen = self.chosen[i * self.recipe.batch_size : (i + 1) * self.recipe.batch_size][self.share]
        return self.side.batch(chosen), self.side.targets(chosen)

    def _drawn(self) -> NDArray[np.int64]:
        return draw(self.weights, self.steps * self.recipe.batch_size, self.recipe.seed, self.epoch)


class _InOrder(keras.utils.PyDataset):  # type: ignore[misc]
    """All images of a side, once, in their order."""

    def __init__(self, side: Side, size: int) -> None:
        super().__init__()
        self.side, self.size = side, size

    def __len__(self) -> int:
        return math.ceil(len(self.side.index) / self.size)

    def __getitem__(self, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        part = slice(i * self.size, (i + 1) * self.size)
        return devices.repeat(self.side.batch(part)), devices.repeat(self.side.targets(part))


class _Record(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the history, checkpoints after each epoch, shows progress, and stops when `patience` is at its end."""

    def __init__(
        self, net: keras.Model, recipe: Recipe, folder: Path, history: History, steps: int, progress: bool
    ) -> None:
        super().__init__()
        self.net, self.recipe, self.folder, self.history, self.steps = net, recipe, folder, history, steps
        self.progress = progress

    def last_epoch(self, done: int) -> int:
        """The epoch to train to: this one when patience is at its end already."""
        return done if self._impatient() else self.recipe.epochs

    def on_train_begin(self, logs: Any = None) -> None:
        done, total = len(self.history.get("loss", [])) * self.steps, self.recipe.epochs * self.steps
        disable = None if self.progress else True  # None: a bar on a terminal only
        self.bar = tqdm(total=total, initial=done, unit="batch", disable=disable, leave=False)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        reseed(self.model, self.recipe.seed, epoch)
        self.bar.set_description(f"epoch {epoch + 1}/{self.recipe.epochs}")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.bar.update()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(round(float(value), 5))
        values = {name: values[-1] for name, values in self.history.items()}
        if isinstance(self.recipe, TextbookRecipe) and values["val_auroc"] >= max(self.history["val_auroc"]):
            _save(self.net, self.folder / _BEST)
        _save(self.model, self.folder / _last(epoch + 1))
        _write(self.folder / _STATE, {"epoch": epoch + 1, "history": self.history})
        if self.progress:
            figures = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            tqdm.write(f"epoch {epoch + 1}/{self.recipe.epochs}: {figures}", file=sys.stderr)
        self.model.stop_training = self._impatient()

    def on_train_end(self, logs: Any = None) -> None:
        self.bar.close()

    def _impatient(self) -> bool:
        scores = self.history.get("val_auroc", [])
        return (
            isinstance(self.recipe, TextbookRecipe)
            and len(scores) > 0
            and len(scores) - 1 - int(np.argmax(scores)) >= self.recipe.patience
        )


def _behind_augmentation(model: keras.Model, recipe: Recipe) -> keras.Model:
    """The network behind its augmentation, both on the device; images travel there as uint8."""
    images = keras.Input(model.input_shape[1:], dtype="uint8")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(images)
    return keras.Model(images, model(augmenter(recipe.augmentation, seed=recipe.seed)(x)))


def _features(model: keras.Model, side: Side, size: int, progress: bool) -> NDArray[np.float32]:
    """Pooled features (n, c) of a side's images, unchanged."""
    pooled = keras.Model(model.input, model.get_layer("features").output)
    disable = None if progress else True
    starts = tqdm(range(0, len(side.index), size), "features", unit="batch", disable=disable, leave=False)
    batches = (side.batch(slice(i, i + size)).astype(np.float32) / np.float32(255) for i in starts)
    return np.concatenate([np.asarray(pooled.predict_on_batch(batch), np.float32) for batch in batches])


def _last(epoch: int) -> str:
    return f"last-{epoch % 2}.weights.h5"  # the one before stays until the state names this one


def _save(model: keras.Model, path: Path) -> None:
    if devices.rank() == 0:
        part = path.with_name(f"part-{path.name}")
        with devices.alone():  # Keras makes variables while it saves, which other processes would have to make, too
            model.save_weights(part, overwrite=True)
        os.replace(part, path)
    devices.agree(np.zeros(1))  # before another process reads it


def _write(path: Path, state: dict[str, Any]) -> None:
    if devices.rank() == 0:
        part = path.with_name(f"part-{path.name}")
        part.write_text(json.dumps(state), "utf-8")
        os.replace(part, path)
