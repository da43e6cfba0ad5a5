"""Noise and what it buys, both from OpenDP (https://opendp.org): what is accounted for is the mechanism that ran.

Its Gaussian mechanism draws exactly, from the kernel's randomness: noise of rounded floats gives away what it hides,
and noise that could be drawn again could be taken away again.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from importlib.metadata import version

import opendp.prelude as dp

_LIBRARY = "opendp"
_PLACES = Decimal("0.0001")


class GaussianNoise:
    """The Gaussian mechanism over a sum of updates, each of which has at most the length (L2) `bound`."""

    def __init__(self, bound: float, multiplier: float) -> None:
        """`multiplier` is the noise's standard deviation for each bound on an update's length."""
        dp.enable_features("contrib")
        self._bound = bound
        self._space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l2_distance(T=float)
        self._mechanism = dp.m.make_gaussian(*self._space, scale=multiplier * bound)

    def added_to(self, sums: Sequence[float]) -> list[float]:
        """Return the sums with noise."""
        return list(self._mechanism(list(sums)))

    def spent(self, rounds: int, delta: str) -> dict[str, str | int]:
        """Return what so many rounds with this noise spend together, each of which may rest on those before.

        Neighbours are rounds with an update of one worker and the same rounds with none (zeros) in its place. Epsilon
        is rounded up.
        """
        loss = self._mechanism.map(self._bound)
        measure = self._mechanism.output_measure
        composed = dp.c.make_adaptive_composition(*self._space, measure, d_in=self._bound, d_mids=[loss] * rounds)
        epsilon = dp.c.make_zCDP_to_approxDP(composed).map(self._bound).epsilon(float(delta))
        return {
            "epsilon": str(Decimal(epsilon).quantize(_PLACES, ROUND_CEILING)),
            "delta": delta,
            "unit": "worker",
            "releases": rounds,
            "library": _LIBRARY,
            "version": version(_LIBRARY),
        }
