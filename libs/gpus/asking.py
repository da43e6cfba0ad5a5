"""It is responsible for one answer of NVIDIA's libraries: of devices that stayed what they were meanwhile, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from libs.gpus.answer import Answer, Device, LibraryRefused
from libs.gpus.bound import GPU_DRIVER, SWITCH_DRIVER, bound
from libs.gpus.mode import Mode


class Driver(Protocol):
    """The GPUs'."""

    @property
    def driver(self) -> str: ...

    def errors(self) -> int:
        """Count the errors so far."""

    def mode(self) -> Mode: ...

    def gpus(self, nonce: bytes | None) -> tuple[Device, ...]: ...


class Fabric(Protocol):
    """The switches between GPUs."""

    def switches(self, nonce: bytes | None) -> tuple[Device, ...]: ...


def ask(
    driver: Driver, fabric: Fabric | None, nonce: bytes | None, held: Callable[[str], Mapping[str, str]] = bound
) -> Answer:
    """Have every device answer a nonce, or without one say what there is. `held` says what a kernel's driver holds.

    Raises `LibraryRefused`, also where devices changed meanwhile.
    """

    def links() -> tuple[Mapping[str, str], Mapping[str, str]]:
        return held(GPU_DRIVER), held(SWITCH_DRIVER)

    # Counted before and after: what answered meanwhile may be of either side of a reset.
    errors, before = driver.errors(), links()
    answer = Answer(
        mode=driver.mode(),
        driver=driver.driver,
        gpus=driver.gpus(nonce),
        switches=() if fabric is None else fabric.switches(nonce),
        bound_gpus=before[0],
        bound_switches=before[1],
        errors=driver.errors(),
    )
    if errors != answer.errors or links() != before:
        raise LibraryRefused("the devices changed while they were asked")
    return answer
