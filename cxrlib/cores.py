"""How many cores this process may use."""

from __future__ import annotations

import os


def usable() -> int:
    """Count the cores that this process may use: by its affinity, and by its container's quota.

    Returns:
        At least 1.

    Example:
        >>> usable() >= 1
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or the quota is "max"
        return cores
