"""Responsible for what an operator decides about the keyset and its certificate."""

from __future__ import annotations

import re
from dataclasses import dataclass

from libs.aci.keyset import HOST_NAME
from libs.aci.provenance import IMAGE, SOURCES

DAY_SECONDS = 24 * 3600
LONGEST_SECONDS = 31 * DAY_SECONDS
_CERTIFICATE_SECONDS = 29 * DAY_SECONDS
"""The KMS certifies an outward key for thirty days, and again with each keyset."""
_DEFAULT_SECONDS = 7 * DAY_SECONDS
_OVERLAPS = 7
MOST_DOMAINS = 16
_ADDRESS = re.compile(r"[0-9.]+")
"""Of an IPv4 address nobody may say in TLS that it is a host's name (RFC 6066, section 3)."""
SETTLING_SECONDS = 30.0
"""How long after a request's time its receipt may be signed, and then be fetched: a client may be slow to read."""


@dataclass(frozen=True, slots=True)
class KeysetSettings:
    """The TOML table [keyset]."""

    lifetime_seconds: int | None = None
    """How long a keyset is valid, seconds: 31 days at most, as far ahead as clients believe; absent: a week."""
    days: int | None = None
    """The same in days, as earlier files have it; one of the two."""
    overlap_seconds: int | None = None
    """How long before its end a keyset is replaced, seconds: for so long clients that verified it may go on with it. At
    most half of its life; absent: a seventh.
    """
    dns_names: tuple[str, ...] = ()
    """Names in the outward certificate, beside the IP addresses."""
    ip_addresses: tuple[str, ...] = ()
    """IP addresses in the outward certificate."""
    domains: tuple[str, ...] = ()
    """Host names of which each has a TLS key and a certificate of its own, shown to whoever asks for it. The keyset
    lists the key for that name alone. Where there are any, a client that asks for a name that is neither here nor in
    `dns_names` is refused."""
    repo_url: str | None = None
    """Where the measured code's source is published; goes into the attestation report, as a label."""
    image_digest_of: str = IMAGE
    """What the image digest in the measured app-compose is over: "image", the image's manifest; "sources", the files
    that run, where there is no image. The attestation report says so."""
    quotes_per_second: float = 10.0
    """How often the quote device may be asked for a fresh report, by everybody together. Four seconds' worth may come
    at once; more is refused with 429."""

    def __post_init__(self) -> None:
        if None not in (self.days, self.lifetime_seconds):
            raise ValueError("keyset.days is what lifetime_seconds was before: give one of them")
        if not 0 < self.lifetime <= LONGEST_SECONDS:
            raise ValueError(f"a keyset lives for {LONGEST_SECONDS // DAY_SECONDS} days at most")
        if not 0 < self.overlap <= self.lifetime // 2:
            raise ValueError("keyset.overlap_seconds must be positive, and at most half of the keyset's life")
        if self.lifetime - self.overlap > _CERTIFICATE_SECONDS:
            raise ValueError("keyset.overlap_seconds is too short: the outward certificate would end before the keyset")
        if len(self.domains) > MOST_DOMAINS:
            raise ValueError(f"keyset.domains may hold {MOST_DOMAINS} names at most: each is certified by itself")
        if len({*self.domains, *self.dns_names}) < len(self.domains) + len(self.dns_names):
            raise ValueError("keyset.domains and keyset.dns_names must name each host once: it has one key")
        for domain in self.domains:
            if HOST_NAME.fullmatch(domain) is None or _ADDRESS.fullmatch(domain):
                raise ValueError("keyset.domains must hold host names in lower case, without wildcards")
        if self.image_digest_of not in (IMAGE, SOURCES):
            raise ValueError(f"keyset.image_digest_of must be {IMAGE} or {SOURCES}")
        if not self.quotes_per_second > 0:
            raise ValueError("keyset.quotes_per_second must be positive")

    @property
    def lifetime(self) -> int:
        """How long a keyset is valid, seconds."""
        if self.days is not None:
            return self.days * DAY_SECONDS
        return _DEFAULT_SECONDS if self.lifetime_seconds is None else self.lifetime_seconds

    @property
    def overlap(self) -> int:
        """How long before its end a keyset is replaced, seconds."""
        return self.lifetime // _OVERLAPS if self.overlap_seconds is None else self.overlap_seconds
