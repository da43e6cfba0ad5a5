"""It is responsible for diagnosing a mesh's state folder: ports, policy, certificate, sockets, and the clock."""

from __future__ import annotations

import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from libs.errors import MeshError
from libs.identity.certificate import der_of, parse
from libs.policy.succession import verify_valid_at
from services.cli.doctor.findings import Finding
from services.cli.local.policy import newest_policy, open_operators
from services.cli.mesh.layout import Layout, StatePathTooLong, verify_length
from services.cli.mesh.lock import is_held
from services.cli.mesh.ports import HOST, is_free, read_ports
from services.cli.mesh.roster import SERVICES
from services.cli.terminal.inputs import read_input

_SOON_SECONDS = 3 * 86400
_SKEW_SECONDS = 60
_CONNECT_SECONDS = 2.0


def examine_state(layout: Layout, router_port: int) -> Iterator[Finding]:
    """Look at a state folder. One that is not there yet is fine: `teemesh up` makes it."""
    running = is_held(layout.lock)
    yield _folder(layout, running)
    yield _ports(layout, router_port, running)
    if not layout.exists:
        return
    yield _clock(layout)
    yield _policy(layout)
    if running:
        yield _certificate(layout)
        yield _sockets(layout)


def _folder(layout: Layout, running: bool) -> Finding:
    try:
        verify_length(layout.root)
    except StatePathTooLong as error:
        return Finding("state", str(layout.root), str(error))
    if not layout.exists:
        if layout.root.exists() and any(layout.root.iterdir()):
            return Finding("state", f"{layout.root} holds something else", "choose another --state")
        return Finding("state", f"{layout.root}: none yet")
    if stat.S_IMODE(layout.root.stat().st_mode) & 0o077:
        return Finding("state", f"others may look into {layout.root}", f"chmod 700 {layout.root}")
    return Finding("state", f"{layout.root}: {'a mesh runs' if running else 'no mesh runs'}")


def _ports(layout: Layout, router_port: int, running: bool) -> Finding:
    if running:
        return Finding("ports", "in use by the running mesh")
    taken = [port for port in read_ports(layout.ports).values() if not is_free(port)]
    if not is_free(router_port):
        return Finding("ports", f"{HOST}:{router_port} is taken", "stop who uses it, or choose another --router-port")
    if taken:
        return Finding("ports", f"{len(taken)} kept ports are taken; teemesh up chooses others")
    return Finding("ports", f"{router_port} is free")


def _clock(layout: Layout) -> Finding:
    """A clock that went back makes certificates and policies not valid yet; the files here show where it has been."""
    written = max((path.stat().st_mtime for path in _files(layout)), default=0.0)
    behind = written - time.time()
    if behind > _SKEW_SECONDS:
        return Finding("clock", f"{behind:.0f} s behind what was written here", "set the clock right")
    return Finding("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def _files(layout: Layout) -> list[Path]:
    folders = (layout.policies, layout.operators, layout.root / "config")
    return [path for folder in folders if folder.is_dir() for path in folder.iterdir()]


def _policy(layout: Layout) -> Finding:
    if not any(layout.policies.glob("*.json")):
        return Finding("policy", "none yet: teemesh up signs the first")
    try:
        policy = newest_policy(layout, open_operators(layout))
        if policy is None:
            return Finding("policy", "none yet: teemesh up signs the first")
        now = time.time()
        verify_valid_at(policy, now)
    except MeshError as error:
        return Finding("policy", f"{error.reason}: {error}", "restart with teemesh up, or begin anew: teemesh reset")
    left = policy.not_after - now
    if left < _SOON_SECONDS:
        return Finding("policy", f"version {policy.version} ends in {left / 3600:.0f} h", "restart with teemesh up")
    return Finding("policy", f"version {policy.version}, valid for {left / 86400:.0f} more days")


def _certificate(layout: Layout) -> Finding:
    try:
        certificate = parse(der_of(read_input(layout.operator_certificate)))
    except MeshError as error:
        return Finding("certificate", f"{error.reason}: {error}", f"see why in {layout.log('kms')}")
    left = certificate.not_after - time.time()
    if left <= 0:
        return Finding("certificate", "the operator's has ended", f"see why in {layout.log('kms')}")
    return Finding("certificate", f"the operator's is valid for {left / 60:.0f} more minutes")


def _sockets(layout: Layout) -> Finding:
    deaf = [service for service in SERVICES if not _answers(layout.guest_socket(service))]
    if deaf:
        return Finding("sockets", f"no guest agent for {', '.join(deaf)}", f"see why in {layout.log('devtee')}")
    return Finding("sockets", f"{len(SERVICES)} guest agents answer")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
