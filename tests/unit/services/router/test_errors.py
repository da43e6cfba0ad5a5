from __future__ import annotations

import json

import pytest

from libs.aci.sse import Protocol
from services.router import errors
from services.router.errors import (
    BodiesBusy,
    ConnectionEnding,
    LedgerUnavailable,
    Overloaded,
    ReportsBusy,
    RouterError,
    RouterStopping,
    ServiceUnavailable,
    TenantsUnavailable,
)

ANTHROPICS = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "api_error",
    "overloaded_error",
}
"""The types of Anthropic's API, as its reference lists them."""
OF_ACI = {"session_not_accepted", "upstream_verification_failed"}
"""Types that ACI defines, section 10."""


def kinds() -> list[type[RouterError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RouterError)][1:]


def test_body_has_the_shape_that_openai_clients_read() -> None:
    assert json.loads(LedgerUnavailable("no acknowledgement in time").body) == {
        "error": {
            "message": "no acknowledgement in time",
            "type": "ledger_unavailable",
            "code": None,
            "param": None,
        }
    }


def test_statuses_and_types_are_those_clients_branch_on() -> None:
    assert {(kind.status, kind.type) for kind in kinds()} == {
        (400, "invalid_request_error"),
        (401, "unauthorized"),
        (403, "key_not_scoped"),
        (403, "tenant_disabled"),
        (403, "tenant_revoked"),
        (404, "not_found"),
        (404, "not_found_error"),
        (405, "method_not_allowed"),
        (408, "request_timeout"),
        (412, "session_not_accepted"),
        (413, "request_too_large"),
        (414, "uri_too_long"),
        (415, "unsupported_media_type"),
        (417, "expectation_failed"),
        (421, "misdirected_request"),
        (429, "overloaded"),
        (429, "rate_limited"),
        (431, "request_headers_too_large"),
        (500, "internal_error"),
        (502, "upstream_error"),
        (503, "upstream_verification_failed"),
        (503, "tenant_constraints_unmet"),
        (503, "keyset_ended"),
        (503, "ledger_unavailable"),
        (503, "service_unavailable"),
        (505, "http_version_not_supported"),
    }


def test_when_to_ask_again_is_said_the_same_to_clients_of_http_and_of_grpc() -> None:
    said = {kind: kind.__new__(kind).headers.get("Retry-After") for kind in kinds()}
    assert {kind: int(after) for kind, after in said.items() if after is not None} == {
        BodiesBusy: 1,
        ConnectionEnding: 0,
        ReportsBusy: 1,
        RouterStopping: 1,
    }
    assert {kind for kind in kinds() if kind.retry_seconds is not None} == {k for k, after in said.items() if after}
    assert Overloaded(7).headers == {"Retry-After": "7"}


def test_each_error_has_a_reason_of_its_own() -> None:
    reasons = [kind.reason for kind in kinds()]
    assert len(set(reasons)) == len(reasons)


def test_anthropics_clients_are_told_that_the_service_is_overloaded_and_all_else_under_its_own_status() -> None:
    told = {kind: kind.__new__(kind).told(Protocol.MESSAGES)[0] for kind in kinds()}
    assert {kind for kind, status in told.items() if status != kind.status} == {
        BodiesBusy,
        ConnectionEnding,
        Overloaded,
        RouterStopping,
        ServiceUnavailable,
        TenantsUnavailable,
    }
    assert told[ServiceUnavailable] == told[Overloaded] == 529


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.reason)
def test_anthropics_clients_know_the_type_of_each_refusal_that_aci_does_not_define(kind: type[RouterError]) -> None:
    named = json.loads(kind.__new__(kind).told(Protocol.MESSAGES)[1])["error"]["type"]
    assert named == kind.type if kind.type in OF_ACI else named in ANTHROPICS
