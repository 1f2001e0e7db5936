"""cxrlib: train, verify, publish and serve a chest X-ray classifier in four calls. Research software, not a medical device."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxrlib.config import AugmentConfig, BundleError, TrainConfig
    from cxrlib.evaluation import evaluate
    from cxrlib.images.sources import ImageError
    from cxrlib.metrics.intervals import Estimate
    from cxrlib.metrics.report import Report
    from cxrlib.network.model import build_model
    from cxrlib.predictor import Prediction, Predictor
    from cxrlib.runtime.explain import Explanation
    from cxrlib.training import TrainingRun, train

__version__ = "0.1.0"

_HOMES = {
    "AugmentConfig": "config",
    "BundleError": "config",
    "Estimate": "metrics.intervals",
    "Explanation": "runtime.explain",
    "ImageError": "images.sources",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "Report": "metrics.report",
    "TrainConfig": "config",
    "TrainingRun": "training",
    "build_model": "network.model",
    "evaluate": "evaluation",
    "train": "training",
}
__all__ = [
    "AugmentConfig",
    "BundleError",
    "Estimate",
    "Explanation",
    "ImageError",
    "Prediction",
    "Predictor",
    "Report",
    "TrainConfig",
    "TrainingRun",
    "build_model",
    "evaluate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"cxrlib.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'cxrlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
