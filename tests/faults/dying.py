"""Run a service that kills itself with SIGKILL at one of its own writes: `python -m tests.faults.dying <service> ...`.

Steps are calls that change files: `os.write`, `os.fsync`, `os.fdatasync`, `os.replace` and `os.unlink`; with `--every`
also `os.pwrite`, `os.ftruncate`, `os.rename` and opens that create. The process dies before the step that is named, so
every state between two steps can be met. Torn, it leaves half of what it was about to write, or of a file that it made
and was about to sync for the first time: what was synced once stays. With `--error`
the step fails instead, and so does every one after it. SIGUSR1 begins the count anew; steps are counted from the start
where none is asked for. Other options are the service's.
"""

from __future__ import annotations

import argparse
import errno
import os
import runpy
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

_COUNTED = ("write", "fsync", "fdatasync", "replace", "unlink")
_ALSO_COUNTED = ("pwrite", "ftruncate", "rename", "open")


class Death:
    """Counts steps down to the last one."""

    def __init__(self, step: int, *, torn: bool, armed: bool, error: int = 0) -> None:
        self._left = step
        self._torn = torn
        self._armed = armed
        self._error = error
        self._unsynced: set[tuple[int, int]] = set()
        """Files that this process made, by device and inode."""

    def arm(self, number: int, frame: FrameType | None) -> None:
        self._armed = True

    def before(self, name: str, *arguments: Any) -> None:
        if not self._armed or (name == "open" and not arguments[1] & os.O_CREAT):
            return
        self._left -= 1
        if self._left > 0:
            return
        if self._error:
            raise OSError(self._error, os.strerror(self._error))
        if self._torn:
            self._tear(name, *arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    def after(self, name: str, result: Any, *arguments: Any) -> None:
        """Note which files are new and which are not any more."""
        if name == "open" and arguments[1] & os.O_CREAT and os.fstat(result).st_size == 0:
            self._unsynced.add(_file_of(result))
        elif name in ("fsync", "fdatasync"):
            self._unsynced.discard(_file_of(arguments[0]))

    def _tear(self, name: str, *arguments: Any) -> None:
        """Leave half of a write, or of a file that was written in one go and not synced yet."""
        if name == "write":
            descriptor, data = arguments
            _write(descriptor, bytes(data)[: len(data) // 2])
        elif name == "pwrite":
            descriptor, data, offset = arguments
            _pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
        elif name == "fsync" and _file_of(arguments[0]) in self._unsynced:
            os.truncate(f"/proc/self/fd/{arguments[0]}", os.fstat(arguments[0]).st_size // 2)


_write, _pwrite = os.write, os.pwrite


def _file_of(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def counting(death: Death, name: str, real: Callable[..., Any], *, is_counted: bool = True) -> Callable[..., Any]:
    """Return a call that is a step where it is counted."""

    def step(*arguments: Any, **options: Any) -> Any:
        if is_counted:
            death.before(name, *arguments)
        result = real(*arguments, **options)
        death.after(name, result, *arguments)
        return result

    return step


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.dying", description=__doc__)
    parser.add_argument("service")
    parser.add_argument("config")
    parser.add_argument("--step", type=int, required=True, help="the step before which it dies, from 1")
    parser.add_argument("--torn", action="store_true", help="leave half of what that step was to write")
    parser.add_argument("--serving", action="store_true", help="count from SIGUSR1 on")
    parser.add_argument("--every", action="store_true", help="count every call that changes files")
    parser.add_argument("--error", metavar="NAME", help="fail with this error, for example EIO, and do not die")
    arguments, options = parser.parse_known_args()
    error = 0 if arguments.error is None else getattr(errno, arguments.error)
    death = Death(arguments.step, torn=arguments.torn, armed=not arguments.serving, error=error)
    signal.signal(signal.SIGUSR1, death.arm)
    for name in (*_COUNTED, *_ALSO_COUNTED):
        is_counted = arguments.every or name in _COUNTED
        setattr(os, name, counting(death, name, getattr(os, name), is_counted=is_counted))
    sys.argv = [arguments.service, arguments.config, *options]
    runpy.run_module(f"services.{arguments.service}", run_name="__main__")


if __name__ == "__main__":
    main()
