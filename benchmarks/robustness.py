"""What another hospital's way of making films does to an answer: `python benchmarks/robustness.py [--model M] [--films N] SOURCE [SOURCE ...]`.

At most N films of each class of every source are framed, exposed, processed and stored otherwise, and answered. Prints a Markdown table: AUROC, sensitivity
and specificity at the model's threshold, all without the gate; how far the median film moves, in the logit; and which part of the films the gate refuses.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from cxrlib import Predictor
from cxrlib.data.scan import scan
from cxrlib.metrics.compute import make_report

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def image(pixels: np.ndarray) -> Image.Image:
    """Pixels (h, w) in [0, 1]."""
    return Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))


def unit(film: Image.Image) -> np.ndarray:
    """Pixels (h, w) in [0, 1]."""
    return np.asarray(film, np.float64) / 255


def cut(left: float, top: float, right: float, bottom: float) -> Change:
    """What lies between these parts of the width and of the height."""
    return lambda film, _: film.crop(
        tuple(round(part * side) for part, side in zip((left, top, right, bottom), film.size * 2, strict=True))
    )


def gamma(power: float) -> Change:
    return lambda film, _: image(unit(film) ** power)


def sigmoid(film: Image.Image, _: np.random.Generator) -> Image.Image:
    """The tone curve of a film on a light box."""
    x = 1 / (1 + np.exp(-8 * (unit(film) - 0.5)))
    return image((x - x.min()) / np.ptp(x))


def locally(limit: float, tiles: int = 8) -> Change:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld, 1994, doi:10.1016/B978-0-12-336156-1.50061-6)."""

    def change(film: Image.Image, _: np.random.Generator) -> Image.Image:
        pixels, curves, near = np.asarray(film), np.empty((tiles, tiles, 256)), []
        for i, rows in enumerate(np.array_split(pixels, tiles)):
            for j, tile in enumerate(np.array_split(rows, tiles, axis=1)):
                count = np.bincount(tile.ravel(), minlength=256).astype(float)
                ceiling = limit * tile.size / 256
                count = np.minimum(count, ceiling) + np.maximum(count - ceiling, 0).sum() / 256
                curves[i, j] = count.cumsum() / tile.size
        for side in (
            pixels.shape
        ):  # for each row and column: the tiles whose centres lie before and behind, and how near the second is
            place = (np.arange(side) + 0.5) / side * tiles - 0.5
            before = np.floor(place).astype(int).clip(0, tiles - 1)
            near.append((before, (before + 1).clip(max=tiles - 1), (place - before).clip(0, 1)))
        (top, bottom, down), (left, right, across) = near
        upper, lower = (
            curves[row[:, None], left[None], pixels] * (1 - across) + curves[row[:, None], right[None], pixels] * across
            for row in (top, bottom)
        )
        return image(upper * (1 - down[:, None]) + lower * down[:, None])

    return change


def unsharp(radius: float, percent: int) -> Change:
    return lambda film, _: film.filter(ImageFilter.UnsharpMask(radius * film.width / 224, percent, 0))


def blurred(radius: float) -> Change:
    return lambda film, _: film.filter(ImageFilter.GaussianBlur(radius * film.width / 224))


def noisy(deviation: float) -> Change:
    return lambda film, random: image(unit(film) + random.normal(0, deviation, film.size[::-1]))


def turned(degrees: float) -> Change:
    return lambda film, random: film.rotate(random.choice([-degrees, degrees]), Image.Resampling.BICUBIC)


def collimated(part: float) -> Change:
    """A black frame over the outer parts."""

    def change(film: Image.Image, _: np.random.Generator) -> Image.Image:
        width, height = film.size
        framed = Image.new("L", film.size)
        x, y = round(part * width), round(part * height)
        framed.paste(film.crop((x, y, width - x, height - y)), (x, y))
        return framed

    return change


def lettered(film: Image.Image, _: np.random.Generator) -> Image.Image:
    """Letters in the upper corners, a label in a lower one."""
    film, (width, height) = film.copy(), film.size
    draw = ImageDraw.Draw(film)
    draw.text((0.04 * width, 0.04 * height), "L", fill=255, font_size=height // 10)
    draw.text((0.6 * width, 0.02 * height), "PORTABLE 10:32", fill=255, font_size=max(8, height // 22))
    draw.rectangle((0.85 * width, 0.9 * height, 0.98 * width, 0.97 * height), fill=255)
    return film


def photographed(film: Image.Image, random: np.random.Generator) -> Image.Image:
    """A photograph of a screen: a little askew, lit from one side, with a reflection."""
    width, height = film.size
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    at = random.uniform(-1, 1, 2)
    lit = unit(film) * (1 - 0.15 * (x**2 + y**2) + 0.12 * random.normal() * x) + 0.12 * np.exp(
        -((x - at[0]) ** 2 + (y - at[1]) ** 2) / 0.1
    )
    square = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
    corners = (square + random.uniform(0, 0.04, (4, 2)) * (1 - 2 * square)) * film.size
    return image(lit).transform(film.size, Image.Transform.QUAD, corners.ravel().tolist(), Image.Resampling.BICUBIC)


def stored(quality: int) -> Change:
    def change(film: Image.Image, _: np.random.Generator) -> Image.Image:
        film.save(data := io.BytesIO(), "JPEG", quality=quality)
        return Image.open(data)

    return change


def small(side: int) -> Change:
    return lambda film, _: film.resize((side, side), Image.Resampling.LANCZOS)


CHANGES: dict[str, Change] = {
    "as they are": lambda film, _: film,
    "8 % less above": cut(0, 0.08, 1, 1),
    "15 % less above": cut(0, 0.15, 1, 1),
    "8 % less below": cut(0, 0, 1, 0.92),
    "15 % less below": cut(0, 0, 1, 0.85),
    "6 % less on every side": cut(0.06, 0.06, 0.94, 0.94),
    "turned by 5°": turned(5),
    "turned by 10°": turned(10),
    "mirrored": lambda film, _: ImageOps.mirror(film),
    "8 % under a black frame": collimated(0.08),
    "letters and a label": lettered,
    "gamma 0.6": gamma(0.6),
    "gamma 1.6": gamma(1.6),
    "another tone curve": sigmoid,
    "histogram equalised": lambda film, _: ImageOps.equalize(film),
    "CLAHE, limit 2": locally(2),
    "CLAHE, limit 4": locally(4),
    "unsharp mask, 2 pixels of 224": unsharp(2, 150),
    "unsharp mask, 12 pixels": unsharp(12, 80),
    "blurred by 1 pixel": blurred(1),
    "blurred by 2 pixels": blurred(2),
    "noise of 2 %": noisy(0.02),
    "noise of 5 %": noisy(0.05),
    "JPEG of quality 30": stored(30),
    "JPEG of quality 10": stored(10),
    "128 pixels a side": small(128),
    "64 pixels a side": small(64),
    "photographed": photographed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--model")
    parser.add_argument("--films", type=int, default=300)
    options = parser.parse_args()
    answers, gated, random = Predictor(options.model, gate=False), Predictor(options.model), np.random.default_rng(0)
    print(
        "| films | how | AUROC | sensitivity | specificity | median film moves by | refused |\n" + "|---" * 7 + "|",
        flush=True,
    )
    for address in options.sources:
        every = scan(address)
        films = every.take(
            np.concatenate(
                [np.sort(random.permutation(np.flatnonzero(every.targets == k))[: options.films]) for k in range(2)]
            )
        )
        bare: np.ndarray | None = None
        for name, change in CHANGES.items():
            draw = np.random.default_rng(1)
            changed = [change(Image.open(path).convert("L"), draw) for path in films.paths]
            p = np.array([answer.probability for answer in answers.predict(changed)])
            refused = np.mean([answer.label is None for answer in gated.predict(changed)])
            logit = np.log(p.clip(1e-6, 1 - 1e-6)) - np.log1p(-p.clip(1e-6, 1 - 1e-6))
            bare = logit if bare is None else bare
            report = make_report(
                films.targets,
                np.stack([1 - p, p], 1),
                labels=films.labels,
                threshold=answers.threshold,
                names=films.names,
            )
            figures = f"{report.auroc.value:.3f} | {report.recall.value:.3f} | {report.specificity.value:.3f}"
            print(
                f"| {films.sources[0]} | {name} | {figures} | {np.median(logit - bare):+.2f} | {refused:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
