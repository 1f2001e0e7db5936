"""The networks and how they are trained. Pure Keras 3."""

import contextlib
import logging
import os

from cxrlib.runtime.quiet import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is loaded; it raises what matters
logging.getLogger("absl").setLevel(logging.ERROR)  # of TensorFlow and Keras, from Python
with quiet(), contextlib.suppress(ImportError):  # the modules that need Keras say so
    import keras  # noqa: F401
