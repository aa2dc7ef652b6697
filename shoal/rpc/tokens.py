"""Bearer tokens: which ones can travel, and whether a call carries one. Light: knows no gRPC."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from pydantic import SecretStr

from shoal.errors import ConfigError

AUTHORIZATION = "authorization"
_SCHEME = "bearer"


def check_token(token: SecretStr) -> None:
    """Refuses a token that cannot travel in an HTTP header.

    Raises:
        ConfigError: it is empty, or has spaces, control or non-ASCII characters. The message
            does not repeat it.
    """
    text = token.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        msg = "the bearer token is malformed: expected printable ASCII characters without spaces"
        raise ConfigError(msg)


def is_authorized(metadata: Iterable[tuple[str, str | bytes]], tokens: Sequence[SecretStr]) -> bool:
    """True when the call's metadata carries one of the tokens.

    Every token is compared, in constant time, so that the time taken says nothing about them.
    """
    found = False
    for key, value in metadata:
        if key != AUTHORIZATION or not isinstance(value, str):
            continue
        scheme, _, given = value.partition(" ")
        for token in tokens:
            same = hmac.compare_digest(given.encode(), token.get_secret_value().encode())
            found |= same and scheme.lower() == _SCHEME
    return found
