"""The refusals with which remote calls fail; a call that does not fail is the test's failure."""

from __future__ import annotations

from typing import Any

import pytest

from libs.errors import MeshError
from libs.rpc.errors import remote_errors


async def refused(call: Any) -> MeshError:
    """Why a call fails."""
    with pytest.raises(MeshError) as error, remote_errors():
        await call
    return error.value


async def refusal(call: Any) -> str:
    """The reason with which a call fails."""
    return (await refused(call)).reason
