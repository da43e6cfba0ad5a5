"""It is responsible for what an engine's process inherits from the node's environment: a few known variables.

vLLM and what it stands on read hundreds: some log prompts, some load code, some serve more than was asked for. None of
them stands in the digest of the engine's arguments, so what is not known is left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    # How much memory the key-value cache takes where there is no GPU.
    "VLLM_CPU_KVCACHE_SPACE",
)


def inherited() -> Mapping[str, str]:
    """Return what of this process's environment an engine gets, beside what its launch says."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}
