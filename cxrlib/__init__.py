"""cxrlib: train, verify, publish and serve a chest X-ray classifier. Research software, not a medical device."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxrlib.config import Augmentation, BundleError, DefaultRecipe, TextbookRecipe
    from cxrlib.evaluation import evaluate
    from cxrlib.images import phantom
    from cxrlib.images.sources import ImageError
    from cxrlib.metrics.intervals import Estimate
    from cxrlib.metrics.report import Report
    from cxrlib.network.model import build_model
    from cxrlib.predictor import Predictor
    from cxrlib.runtime.explain import Explanation
    from cxrlib.runtime.prediction import Prediction
    from cxrlib.training import TrainingRun, train

__version__ = "0.1.0"
__all__ = [
    "Augmentation",
    "BundleError",
    "DefaultRecipe",
    "Estimate",
    "Explanation",
    "ImageError",
    "Prediction",
    "Predictor",
    "Report",
    "TextbookRecipe",
    "TrainingRun",
    "build_model",
    "evaluate",
    "phantom",
    "train",
]
_HOMES = {
    "Augmentation": "config",
    "BundleError": "config",
    "DefaultRecipe": "config",
    "Estimate": "metrics.intervals",
    "Explanation": "runtime.explain",
    "ImageError": "images.sources",
    "Prediction": "runtime.prediction",
    "Predictor": "predictor",
    "Report": "metrics.report",
    "TextbookRecipe": "config",
    "TrainingRun": "training",
    "build_model": "network.model",
    "evaluate": "evaluation",
    "phantom": "images.phantom",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cxrlib' has no attribute {name!r}")
    module = import_module(f"cxrlib.{_HOMES[name]}")
    value = globals()[name] = getattr(module, name, module)  # `phantom` is a module
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
