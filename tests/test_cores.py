from __future__ import annotations

import os

from cxrlib import cores


def test_cores_obey_the_quota_of_a_container(monkeypatch, tmp_path):
    quota = tmp_path / "cpu.max"
    real_open = open
    monkeypatch.setattr(
        "builtins.open", lambda path, *a, **k: real_open(quota if path == "/sys/fs/cgroup/cpu.max" else path, *a, **k)
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for text, wanted in (("200000 100000", 2), ("max 100000", 16), ("50000 100000", 1), ("9999999 100000", 16)):
        quota.write_text(text)
        assert cores.usable() == wanted
    quota.unlink()
    assert cores.usable() == 16
