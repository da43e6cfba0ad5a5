from __future__ import annotations

import pytest

from tests.unit.libs.tee.nvidia.gpu_bench import GpuBench


@pytest.fixture(scope="session")
def gpu_bench() -> GpuBench:
    return GpuBench.create()
