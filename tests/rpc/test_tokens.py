from __future__ import annotations

import pytest
from pydantic import SecretStr

from shoal.errors import ConfigError
from shoal.rpc.tokens import check_token, is_authorized

TOKENS = (SecretStr("old"), SecretStr("new"))


@pytest.mark.parametrize("token", ["x", "A-b_c.d~e+f/g==", "!#$%&'*()"])
def test_token_of_printable_ascii_can_travel(token: str) -> None:
    """Anything without spaces."""
    check_token(SecretStr(token))


@pytest.mark.parametrize("token", ["", " ", "two words", "tab\there", "end\n", "ü", "\x7f"])
def test_token_that_cannot_travel_is_refused(token: str) -> None:
    """The message does not repeat it."""
    with pytest.raises(ConfigError) as refused:
        check_token(SecretStr(token))
    assert refused.value.message == (
        "the bearer token is malformed: expected printable ASCII characters without spaces"
    )


@pytest.mark.parametrize(
    ("metadata", "authorized"),
    [
        ([("authorization", "Bearer old")], True),
        ([("authorization", "Bearer new")], True),
        ([("authorization", "bEARER new")], True),
        ([("x", "y"), ("authorization", "Bearer wrong"), ("authorization", "Bearer new")], True),
        ([("authorization", "Bearer new"), ("authorization", "Bearer wrong")], True),
        ([], False),
        ([("authorization", "Bearer newer")], False),
        ([("authorization", "Bearer ")], False),
        ([("authorization", "new")], False),
        ([("authorization", "Basic new")], False),
        ([("authorization", "Bearer  new")], False),
        ([("authorization", b"Bearer new")], False),
        ([("authorisation", "Bearer new")], False),
    ],
)
def test_call_is_authorized_by_any_of_the_tokens(
    metadata: list[tuple[str, str | bytes]], *, authorized: bool
) -> None:
    """In the one key and scheme, exactly as it is; one good header is enough."""
    assert is_authorized(metadata, TOKENS) is authorized


def test_call_is_never_authorized_without_tokens() -> None:
    """A server without tokens does not ask; this function would let nobody in."""
    assert not is_authorized([("authorization", "Bearer ")], ())
