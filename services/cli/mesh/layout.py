"""It is responsible for where a local mesh keeps what it has: the names inside the state folder, and their modes.

Nothing outside the folder is written, and nothing in it is needed once `teemesh reset` has removed it.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from libs.errors import Code, MeshError
from services.cli.mesh.roster import JOBS, KMS_REPLICA, LEDGER_OTHERS, SERVICES, WITNESS

DEFAULT_STATE = Path(".teemesh")
_MARKER = b"The state of a local teemesh. `teemesh reset` removes it.\n"
_LONGEST_SOCKET_BYTES = 107
"""What Linux takes as the path of a unix socket."""

_LONGEST_NAME_BELOW = "sockets/attestation.notify"


class StatePathTooLong(MeshError):
    """Sockets in the state folder would have longer paths than the system takes."""

    code = Code.INVALID_ARGUMENT
    reason = "STATE_PATH_TOO_LONG"


class StateUnusable(MeshError):
    """The state folder cannot be made, or belongs to something else."""

    reason = "STATE_UNUSABLE"


@dataclass(frozen=True, slots=True)
class Layout:
    """The names in one state folder. `root` is absolute."""

    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def mesh_file(self) -> Path:
        return self.root / "mesh.json"

    @property
    def ports(self) -> Path:
        return self.root / "config" / "ports.json"

    @property
    def weights_manifest(self) -> Path:
        """What the node's model was when the mesh was started."""
        return self.root / "config" / "weights.json"

    @property
    def operators(self) -> Path:
        return self.root / "operators"

    @property
    def tenant(self) -> Path:
        """The local tenant: its random id and its API key."""
        return self.operators / "tenant.json"

    @property
    def operator_key(self) -> Path:
        return self.operators / "operator.key"

    @property
    def operator_certificate(self) -> Path:
        return self.operators / "operator.pem"

    @property
    def mesh_ca(self) -> Path:
        return self.operators / "mesh-ca.pem"

    @property
    def devtee(self) -> Path:
        return self.root / "devtee"

    @property
    def reference(self) -> Path:
        return self.devtee / "reference.json"

    @property
    def vendor_root(self) -> Path:
        return self.operators / "vendor-root.pem"

    @property
    def policies(self) -> Path:
        return self.root / "policy"

    def policy(self, version: int) -> Path:
        return self.policies / f"{version}.json"

    def config(self, service: str) -> Path:
        return self.root / "config" / f"{service}.toml"

    def compose(self, role: str) -> Path:
        return self.root / "compose" / f"{role}.json"

    @property
    def join_order(self) -> Path:
        """The operators' order that the second KMS be given the root."""
        return self.operators / "join-order.json"

    @property
    def witness_certificate(self) -> Path:
        return self.state(WITNESS) / "tls.pem"

    @property
    def witness_tls_key(self) -> Path:
        return self.state(WITNESS) / "tls.key"

    @property
    def witness_verifier_keys(self) -> Path:
        """Written by the witness at each start."""
        return self.state(WITNESS) / "verifier-keys"

    def state(self, service: str) -> Path:
        return self.root / "state" / service

    def guest_socket(self, service: str) -> Path:
        return self.root / "sockets" / f"{service}.sock"

    def notify_socket(self, service: str) -> Path:
        return self.root / "sockets" / f"{service}.notify"

    def log(self, service: str) -> Path:
        return self.root / "logs" / f"{service}.log"

    @property
    def exists(self) -> bool:
        """Whether a mesh was ever started here."""
        return (self.root / "README").is_file()

    def prepare(self) -> None:
        """Make the folders. Raises `StatePathTooLong`, `StateUnusable`."""
        verify_length(self.root)
        folders = [self.root / name for name in ("config", "compose", "state", "sockets", "logs")]
        folders += [
            self.operators,
            self.devtee,
            self.policies,
            *(self.state(name) for name in (*SERVICES, KMS_REPLICA, *LEDGER_OTHERS, *JOBS, WITNESS)),
        ]
        try:
            if self.root.is_dir() and not self.exists and any(self.root.iterdir()):
                raise StateUnusable(f"{self.root} holds something else: choose another --state")
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.root / "README").write_bytes(_MARKER)
            for folder in folders:
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateUnusable(f"cannot make {self.root}: {error.strerror}") from error


def verify_length(root: Path) -> None:
    """Raise `StatePathTooLong` when sockets below `root` could not be bound."""
    excess = len(os.fsencode(root / _LONGEST_NAME_BELOW)) - _LONGEST_SOCKET_BYTES
    if excess > 0:
        raise StatePathTooLong(f"{root} is {excess} bytes too long for unix sockets: choose a shorter --state")


def add_state_option(parser: argparse.ArgumentParser) -> None:
    """Add `--state`."""
    parser.add_argument(
        "--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help="the mesh's folder (default: %(default)s)"
    )


def layout_of(args: argparse.Namespace) -> Layout:
    """Return the layout that `--state` names."""
    state: Path = args.state
    return Layout(state.absolute())
