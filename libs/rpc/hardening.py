"""It is responsible for keeping gRPC to TLS 1.3, which it has no option for, and its own lines to errors.

Certificates of the mesh hold P-256 keys, so a list of one TLS 1.2 suite for RSA leaves TLS 1.2 without any suite that
could be agreed on; TLS 1.3 has its own suites and does not look at the list. This module must not import gRPC.
"""

from __future__ import annotations

import os
import sys

from libs.errors import MeshError

_VARIABLE = "GRPC_SSL_CIPHER_SUITES"
_NONE_THAT_FITS = "ECDHE-RSA-AES256-GCM-SHA384"
_VERBOSITY = "GRPC_VERBOSITY"
"""gRPC's word. For less than errors it has a line for each handshake that fails, and anybody's may."""


class HardeningTooLate(MeshError):
    """gRPC was loaded before its suites were limited: it reads them once, when it is imported."""

    reason = "HARDENING_TOO_LATE"


def ssl_hardening() -> None:
    """Leave TLS 1.3 only, and errors, unless the operator has set what gRPC writes, for this process and its children.
    MUST run before `import grpc`.
    """
    os.environ.setdefault(_VERBOSITY, "ERROR")
    if os.environ.get(_VARIABLE) == _NONE_THAT_FITS:
        return
    if "grpc" in sys.modules:
        raise HardeningTooLate("limit the TLS suites before gRPC is imported")
    os.environ[_VARIABLE] = _NONE_THAT_FITS
