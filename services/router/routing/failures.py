"""It is responsible for a node's failures in a row, and for whether they are the node's or one tenant's own.

A node that cannot be reached, breaks off or falls silent fails whoever asks. One that answers with a 5xx is there, and
some prompts bring its engine to it: of such answers one tenant's alone never say that the node fails everybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Failures:
    """Those since the last answer that was none."""

    _silences: int = 0
    """Without an answer, or without its end."""
    _answers: dict[str, int] = field(default_factory=dict)
    """With one, by whose they were. Who counts to `are_the_nodes` has no more tenants here than it asks for."""

    def count(self) -> None:
        """Count one of the node's own."""
        self._silences += 1

    def count_answer(self, tenant_id: str) -> None:
        """Count an answer that failed, and whose it was."""
        self._answers[tenant_id] = self._answers.get(tenant_id, 0) + 1

    def answers_of(self, tenant_id: str) -> int:
        """Return how many answers failed for this tenant."""
        return self._answers.get(tenant_id, 0)

    def are_the_nodes(self, enough: int) -> bool:
        """Say whether there are enough, of which the answers to any one tenant are half at most, rounded up."""
        most = (enough + 1) // 2
        return self._silences + sum(min(failed, most) for failed in self._answers.values()) >= enough

    def forget(self) -> None:
        """Begin anew."""
        self._silences = 0
        self._answers.clear()
