"""What a publisher needs of the service that it writes for: an identity, and a way to reach the broker with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from libs.events.admission import Admission


class _Certificate(Protocol):
    @property
    def der(self) -> bytes: ...


class _Evidence(Protocol):
    @property
    def document(self) -> bytes: ...
    @property
    def claims(self) -> Mapping[str, Any]: ...


class _Credential(Protocol):
    @property
    def certificate(self) -> _Certificate: ...
    @property
    def evidence(self) -> _Evidence: ...


class _Identity(Protocol):
    @property
    def current(self) -> _Credential: ...


class PublishingMember(Protocol):
    """What a publisher needs of the service that it writes for."""

    @property
    def role(self) -> str: ...
    @property
    def instance(self) -> str: ...
    @property
    def trust_domain(self) -> str: ...
    @property
    def identity(self) -> _Identity: ...
    def broker(self, target: str) -> Admission: ...
