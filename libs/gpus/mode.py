"""It is responsible for which modes of confidential computing may serve; all others are refused.

Numbers and names are those of NVML (nvml.h): `nvmlSystemConfComputeSettings_v1_t`, `nvmlConfComputeGetGpusReadyState`.
"""

from __future__ import annotations

from dataclasses import dataclass

from libs.errors import Code, MeshError

_ENVIRONMENT_PRODUCTION = 2
_FEATURE_ENABLED = 1
_DEVTOOLS_OFF = 0
_UNPROTECTED, _PROTECTED_PCIE, _ENCRYPTED_NVLINK = 0, 1, 2
_READY = 1


class ConfidentialModeOff(MeshError):
    """The GPUs are not in confidential mode, or in one that is not known here."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_CONFIDENTIAL_MODE_OFF"


class EnvironmentNotProduction(MeshError):
    """Confidential mode is simulated, or the driver cannot say."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_ENVIRONMENT_NOT_PRODUCTION"


class DevToolsOn(MeshError):
    """The GPUs are in confidential mode with developer tools: whoever runs the host may look into them."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_DEVTOOLS_ON"


class GpusNotReady(MeshError):
    """The driver takes no work for the GPUs: after a reset somebody must say that they were attested."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_NOT_READY"


@dataclass(frozen=True, slots=True)
class Mode:
    """What the driver says of the whole guest."""

    environment: int
    feature: int
    devtools: int
    multi_gpu: int
    ready: int

    @property
    def needs_switches(self) -> bool:
        """Whether the links between GPUs are protected by the NVSwitches alone."""
        return self.multi_gpu == _PROTECTED_PCIE


def require_confidential(mode: Mode) -> None:
    """Raise `ConfidentialModeOff`, `EnvironmentNotProduction`, `DevToolsOn` or `GpusNotReady` for all modes but a few.

    With protected PCIe, for eight Hopper GPUs and their switches, the driver states the feature itself as disabled.
    """
    if mode.devtools != _DEVTOOLS_OFF:
        raise DevToolsOn("switch the GPUs' developer tools off")
    is_on = mode.feature == _FEATURE_ENABLED and mode.multi_gpu in (_UNPROTECTED, _ENCRYPTED_NVLINK)
    if not is_on and mode.multi_gpu != _PROTECTED_PCIE:
        raise ConfidentialModeOff("switch the GPUs' confidential mode on, and reset them")
    if mode.environment != _ENVIRONMENT_PRODUCTION:
        raise EnvironmentNotProduction("the GPUs' confidential mode is not the one of production")
    if mode.ready != _READY:
        raise GpusNotReady("the driver does not take work for the GPUs: attest them, and set their ready state")
