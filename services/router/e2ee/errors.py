"""Responsible for how a request under E2EE v2 is refused (e2ee-v2 §9). No message says more than its type does."""

from __future__ import annotations

from libs.errors import Code
from services.router.errors import RouterError, ServiceUnavailable


class E2eeRefused(RouterError):
    """The request claims to be encrypted, and is not as the protocol has it. Nothing of it was forwarded."""

    status = 400
    type = "e2ee_refused"
    code = Code.INVALID_ARGUMENT
    reason = "E2EE_REFUSED"


class HeaderMissing(E2eeRefused):
    """Some of the five headers are there, and not all."""

    type = "e2ee_header_missing"
    reason = "E2EE_HEADER_MISSING"


class VersionNotSupported(E2eeRefused):
    """Another version, or the protocol before it. There is no falling back."""

    type = "e2ee_invalid_version"
    reason = "E2EE_INVALID_VERSION"


class NonceRefused(E2eeRefused):
    """The nonce is not 64 hex digits."""

    type = "e2ee_invalid_nonce"
    reason = "E2EE_INVALID_NONCE"


class TimestampRefused(E2eeRefused):
    """The time is malformed, or too far from now."""

    type = "e2ee_invalid_timestamp"
    reason = "E2EE_INVALID_TIMESTAMP"


class ModelKeyMismatch(E2eeRefused):
    """The prompt was encrypted to a key that this router's keyset does not list."""

    type = "e2ee_model_key_mismatch"
    reason = "E2EE_MODEL_KEY_MISMATCH"


class ClientKeyRefused(E2eeRefused):
    """The answer cannot be encrypted to the client's key."""

    type = "e2ee_invalid_public_key"
    reason = "E2EE_INVALID_PUBLIC_KEY"


class ModelNotBound(E2eeRefused):
    """There is no model name to which fields could be bound."""

    type = "e2ee_invalid_payload_model"
    reason = "E2EE_INVALID_PAYLOAD_MODEL"


class Replayed(E2eeRefused):
    """The same keys and nonce came before."""

    type = "e2ee_replay_detected"
    reason = "E2EE_REPLAY_DETECTED"


class DecryptionFailed(E2eeRefused):
    """A field cannot be decrypted, or none is encrypted. One message for all of it: it must not tell which."""

    type = "e2ee_decryption_failed"
    reason = "E2EE_DECRYPTION_FAILED"

    def __init__(self) -> None:
        super().__init__("the encrypted request cannot be opened")


class EndpointWithoutFields(E2eeRefused):
    """The protocol says nothing of what is to be encrypted there."""

    type = "e2ee_unsupported_endpoint"
    reason = "E2EE_UNSUPPORTED_ENDPOINT"


class ContentWithoutPlace(E2eeRefused):
    """The request asks for what the protocol would leave in clear. It would be answered without."""

    type = "invalid_request_error"
    reason = "E2EE_CONTENT_WITHOUT_PLACE"


class TooManyRemembered(ServiceUnavailable):
    """More requests of the last minutes would have to be remembered than there is room for."""

    reason = "E2EE_REPLAY_MEMORY_FULL"
