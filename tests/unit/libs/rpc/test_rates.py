from __future__ import annotations

import pytest

from libs.rpc.rates import RateLimited, Rates


def test_an_address_has_its_own_allowance_which_time_refills() -> None:
    now = [0.0]
    rates = Rates(0.5, clock=lambda: now[0])
    rates.spend("ipv4:10.0.0.1:1")
    rates.spend("ipv4:10.0.0.1:2")
    with pytest.raises(RateLimited) as caught:
        rates.spend("ipv4:10.0.0.1:3")
    assert caught.value.reason == "RATE_LIMITED"
    rates.spend("ipv4:10.0.0.2:1")
    now[0] = 2.0
    rates.spend("ipv4:10.0.0.1:4")
    with pytest.raises(RateLimited):
        rates.spend("ipv4:10.0.0.1:5")
