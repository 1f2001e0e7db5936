"""The two phases of training, on decoded films: the head on frozen features, then the deeper blocks. Pure Keras 3; resumes where it was stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from cxrlib.config import TrainConfig
from cxrlib.data.scan import Dataset
from cxrlib.data.split import Side, draw
from cxrlib.network import machines
from cxrlib.network.augment import Augment
from cxrlib.network.head import auroc_by_source, calm_head, correct_framing, fit_head
from cxrlib.network.model import BACKBONES, hand_over, reseed, set_trainable

_FLOOR = 0.2  # of the peak, what the learning rate decays to: weights that are averaged later must still move

History = dict[str, list[float]]

_HEAD, _BEST, _STATE = "head.weights.h5", "best.weights.h5", "state.json"


def fit(
    net: keras.Model,
    served: keras.Model,
    train: Side,
    validation: Side,
    config: TrainConfig,
    folder: Path,
    say: Callable[[str], None],
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
        loss, trust = fit_head(net, trainer, train, config)
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
        reseed(trainer, config.seed, state["epoch"])
        done = trainer.fit(
            _Batches(train, config, steps, state["epoch"], state["trust"]), epochs=1, verbose=0, shuffle=False
        )
        score, by_source = measure()
        values = {
            "loss": done.history["loss"][0],
            "val_auroc": score,
            **{f"val_auroc {s}": v for s, v in by_source.items()},
        }
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
        say(
            f"epoch {state['epoch']}/{config.epochs}: loss {values['loss']:.4f}, validation AUROC {score:.4f} ({_list(by_source)}), {took:.0f} s"
        )
    _choose_weights(net, train.films, config, folder, state, say)
    hand_over(net, served)
    correct_framing(served, trainer, train, config, state["trust"])
    if state["epoch"] if config.average else state["best_epoch"]:  # what fine-tuning moved is in it
        calm_head(served, trainer, train, config, state["trust"])
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
    p = machines.agree(
        np.concatenate(
            [
                np.asarray(net.predict_on_batch(side.batch(slice(i, i + 64)).astype(np.float32) / np.float32(255)))
                for i in starts
            ]
        )
    )
    by_source = auroc_by_source(side, p)
    if not by_source:
        raise ValueError(
            "no source has validation films of two classes: every source must bring both (a class that comes from one hospital alone teaches the hospital)"
        )
    return float(np.mean(list(by_source.values()))), by_source


def mix(
    pixels: NDArray[np.uint8], targets: NDArray[np.float32], strength: float, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
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
            pixels, targets = mix(
                self.side.batch(chosen), self.side.targets(chosen), self.mixup, np.random.default_rng([*self.seed, i])
            )
            return pixels[self.share], targets[self.share], weights_
        return self.side.batch(chosen[self.share]), self.side.targets(chosen[self.share]), weights_


def _trainer(net: keras.Model, config: TrainConfig) -> keras.Model:
    """The network behind its augmentation, both on the device; films travel there as uint8."""
    films = keras.Input((config.image_size, config.image_size, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255, dtype="float32", name="unit")(films)
    x = Augment(config.augment, seed=config.seed, dtype="float32", name="augment")(x)
    return keras.Model(films, net(x))


def _compile(trainer: keras.Model, config: TrainConfig, steps: int) -> None:
    total = steps * max(config.epochs, 1)
    rise = max(1, total // 20)
    rate = keras.optimizers.schedules.CosineDecay(
        config.learning_rate / 20,
        max(1, total - rise),
        alpha=_FLOOR,
        warmup_target=config.learning_rate,
        warmup_steps=rise,
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=1.0)
    trainer.compile(optimizer, _loss(trainer.output_shape[-1], config))
    optimizer.build(trainer.trainable_variables)


def _loss(units: int, config: TrainConfig) -> keras.losses.Loss:
    kind = keras.losses.BinaryCrossentropy if units == 1 else keras.losses.CategoricalCrossentropy
    return kind(label_smoothing=config.label_smoothing)


def _choose_weights(
    net: keras.Model,
    films: Dataset,
    config: TrainConfig,
    folder: Path,
    state: dict[str, Any],
    say: Callable[[str], None],
) -> None:
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
    tuned = [
        np.mean(arrays, axis=0) for arrays in zip(*(read(_recent(epoch, config)) for epoch in recent), strict=True)
    ]
    believed = sum(state["trust"][source] for source in films.sources)
    kept = believed**2 / (believed**2 + config.prior_films**2)
    net.set_weights([kept * t + (1 - kept) * s for t, s in zip(tuned, read(_HEAD), strict=True)])
    tuning = f"the mean of the last {len(recent)} epochs" if len(recent) > 1 else "the last epoch"
    say(f"keeps {kept:.0%} of {tuning}, {1 - kept:.0%} from before fine-tuning")


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
