"""Responsible for the API key as clients send it, and whose a request is: OpenAI's as a bearer, Anthropic's in
`x-api-key`.
"""

from __future__ import annotations

from services.router.admission.tenants import Tenant, Tenants, bearer
from services.router.errors import InvalidRequest
from services.router.face.arrivals import Arrival, Fields

_AUTHORIZATION, _API_KEY = "authorization", "x-api-key"


async def authenticated(tenants: Tenants, arrival: Arrival) -> Tenant:
    """Return whose a request is; what runs on its connection goes on from then, however many others come. Raises what
    `Tenants.authenticate` does, and `InvalidRequest`.
    """
    tenant = await tenants.authenticate(authorization(arrival.headers), arrival.connection)
    arrival.keep()
    return tenant


def authorization(headers: Fields) -> str | None:
    """Return what the request shows, in the form of `Authorization`; None if nothing.

    Raises `InvalidRequest` if a header is given twice, or both are and differ: of two keys, somebody on the way may
    have gone by the other one.
    """
    shown, key = headers.only(_AUTHORIZATION), headers.only(_API_KEY)
    if key is None or not key.strip():
        return shown
    if shown is not None and bearer(shown) != key.strip():
        raise InvalidRequest(f"{_AUTHORIZATION} and {_API_KEY} show different API keys")
    return f"Bearer {key.strip()}"
