"""Responsible for what an operator decides about the keyset and its certificate."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE, SOURCES = "image", "sources"


@dataclass(frozen=True, slots=True)
class KeysetSettings:
    """The TOML table [keyset]."""

    days: int = 7
    """How long the keyset, and the outward TLS key in it, is valid, days."""
    dns_names: tuple[str, ...] = ()
    """Names in the outward certificate, beside the IP addresses."""
    ip_addresses: tuple[str, ...] = ()
    """IP addresses in the outward certificate."""
    repo_url: str | None = None
    """Where the measured code's source is published; goes into the attestation report, as a label."""
    image_digest_of: str = IMAGE
    """What the image digest in the measured app-compose is over: "image", the image's manifest; "sources", the files
    that run, where there is no image. The attestation report says so."""
    quotes_per_second: float = 10.0
    """How often the quote device may be asked for a fresh report, by everybody together. Four seconds' worth may come
    at once; more is refused with 429."""

    def __post_init__(self) -> None:
        if self.image_digest_of not in (IMAGE, SOURCES):
            raise ValueError(f"keyset.image_digest_of must be {IMAGE} or {SOURCES}")
        if not self.quotes_per_second > 0:
            raise ValueError("keyset.quotes_per_second must be positive")
