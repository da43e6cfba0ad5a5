"""Responsible for what a sealed field is bound to (e2ee-v2 §6): its place, its request, its direction and the model."""

from __future__ import annotations

from dataclasses import dataclass

from libs import jcs

_REQUEST, _RESPONSE = "aci.e2ee.request.v2", "aci.e2ee.response.v2"


@dataclass(frozen=True, slots=True)
class Binding:
    """One request's."""

    algo: str
    model: str
    """As the request names it, byte for byte, also in its answer."""
    nonce: str
    """As `X-E2EE-Nonce` has it, in its case."""
    timestamp: int
    """Unix seconds."""

    def of_request(self, path: str) -> bytes:
        """Return the associated data of a request's field. Raises `JsonMalformed` for a model that has no UTF-8."""
        return jcs.dumps(self._members(_REQUEST, path))

    def of_response(self, path: str, response_id: str) -> bytes:
        """Return the associated data of an answer's field; `response_id` is "" where the answer has none."""
        return jcs.dumps(self._members(_RESPONSE, path) | {"id": response_id})

    def _members(self, purpose: str, path: str) -> dict[str, str | int]:
        return {
            "purpose": purpose,
            "algo": self.algo,
            "model": self.model,
            "field": path,
            "nonce": self.nonce,
            "ts": self.timestamp,
        }
