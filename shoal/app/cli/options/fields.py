"""``NAME=VALUE``, as ``ingest --field`` and ``search --where`` take it."""

from __future__ import annotations

import json
import math

import click

from shoal.client import Json
from shoal.errors import InvalidArgument

_COMPARISONS = "<>!~"
"""At the end of a name, in year>=2000, these are meant for a comparison."""


def parse_fields(
    _ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Json]:
    """``NAME=VALUE`` pairs as an object; a value that is JSON is read as JSON."""
    fields: dict[str, Json] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            msg = f"expected NAME=VALUE, got {text!r}"
            raise click.BadParameter(msg)
        if name[-1] in _COMPARISONS or value[:1] == "=":
            msg = f"expected NAME=VALUE, which is all that there is, got {text!r}"
            raise click.BadParameter(msg)
        fields[name] = _value(name, value)
    return fields


def _value(name: str, text: str) -> Json:
    """``text`` as JSON, or as it is; BadParameter for a number that is not finite."""

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            msg = f"{name}: expected finite numbers, got {text!r}; as a text: {name}='\"{text}\"'"
            raise click.BadParameter(msg)
        return value

    try:
        value: Json = json.loads(text, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError):  # also of an integer of more than 4,300 digits
        return text
    return value


def check_fields(fields: dict[str, Json]) -> None:
    """Refuses once, before anything is sent, the fields that would be refused of every image.

    Raises:
        click.UsageError: a name is reserved, or a value or all of them cannot be stored.
    """
    from embedder.ingest.items import MAX_PAYLOAD_BYTES
    from shoal.client.messages_ingest import to_struct
    from shoal.store.model import RESERVED_FIELDS
    from shoal.store.payloads import is_addressable

    for name in fields:
        if name in RESERVED_FIELDS or not is_addressable(name):
            reserved = ", ".join(sorted(RESERVED_FIELDS))
            msg = f'--field {name}: expected a name without . and ", and none of {reserved}'
            raise click.UsageError(msg)
    try:
        to_struct(fields)
    except InvalidArgument as exc:
        raise click.UsageError(f"--field: {exc.message}") from exc
    size = len(json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if size > MAX_PAYLOAD_BYTES:
        msg = f"--field: expected at most {MAX_PAYLOAD_BYTES:,} bytes as JSON, got {size:,}"
        raise click.UsageError(msg)
