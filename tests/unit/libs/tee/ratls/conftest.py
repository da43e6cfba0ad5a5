from __future__ import annotations

import pytest

from services.devtee.machine import InstanceIdentity, Machine, VirtualTd
from tests.unit.libs.tee.ratls.maker import NOW


@pytest.fixture(scope="session")
def td() -> VirtualTd:
    return Machine.create(NOW).boot(b'{"name":"foreign"}', InstanceIdentity.random(), NOW)
