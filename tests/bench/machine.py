"""Responsible for saying on what was measured, without which no figure means anything."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def description(folder: Path) -> str:
    """One line: processor, cores, memory, kernel, Python, and the filesystem below `folder`."""
    return ", ".join(
        (
            _field(Path("/proc/cpuinfo"), "model name") or platform.machine(),
            f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
            f"{int((_field(Path('/proc/meminfo'), 'MemTotal') or '0').split()[0]) >> 20} GiB",
            f"{platform.system()} {platform.release()}",
            f"Python {platform.python_version()}",
            f"disk {_filesystem(folder)}",
            f"load {load()}",
        )
    )


def load() -> str:
    """The load average over the last minute: above the benchmark's own, others were working too."""
    return f"{os.getloadavg()[0]:.2f}"


def _field(path: Path, name: str) -> str | None:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _filesystem(folder: Path) -> str:
    """The type of the filesystem of the longest mount point above the folder."""
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(point, kind) for _, point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]))[1]
