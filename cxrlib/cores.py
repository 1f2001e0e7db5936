"""Moved to `cxrlib.runtime.litert.usable_cores`."""

from cxrlib.runtime.litert import usable_cores as usable  # noqa: F401
