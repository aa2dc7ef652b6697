"""Payloads on their way in: only JSON, and every number in one form.

Qdrant keeps integers and floats apart: ``2.0`` never equals ``2`` in an exact match. Callers
whose numbers travel as doubles (``google.protobuf.Struct``) cannot tell the two apart, so here a
whole float becomes an integer, for every engine.

Qdrant keeps payloads as JSON text, and reads numbers fast rather than exactly: one float in ten
comes back with its last place off by a unit or two. Its index keeps the float that was sent, so a
condition with the float that was read would miss its own point. Here such a float is moved, by a
unit or two as well, to one that is read as itself. Pure: knows no engine.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from shoal.errors import InvalidArgument
from shoal.store.model import Payload
from shoal.values import Json

MAX_DEPTH = 32
"""The most levels of a payload; a deeper one is a mistake or an attack."""

_EXACT_DOUBLE = 2.0**53  # above it a float no longer names one integer
_LEAST_INT64 = -(2**63)
_MOST_STEPS = 100  # none of 120,000 random doubles needed more than 23, and those tiny ones
_LARGEST_POWER = 308  # of ten, as a double
_PATH_SYNTAX = frozenset('."')
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")


def is_addressable(name: str) -> bool:
    """Whether ``name`` can be a name in a path: it is not empty, and has no dot and no quote."""
    return bool(name) and _PATH_SYNTAX.isdisjoint(name)


def json_path(field: str) -> str:
    """``field`` as a Qdrant JSON path: dots reach into objects, odd keys are quoted.

    Raises:
        InvalidArgument: an empty part, or a double quote, which a path cannot hold.
    """
    parts = field.split(".")
    if not all(map(is_addressable, parts)) or not is_text(field):
        raise InvalidArgument(
            f'field {field!r}: expected names joined by ".", each non-empty and without quotes',
            field="field",
        )
    return ".".join(part if _PLAIN_KEY.fullmatch(part) else f'"{part}"' for part in parts)


def clean_payload(payload: Payload) -> Payload:
    """A copy of ``payload`` with every number cleaned by ``clean_number``.

    Raises:
        InvalidArgument: a value is not JSON, is NaN, infinite or outside 64 bits, or is nested
            deeper than MAX_DEPTH.
    """
    return {_clean_key(key, "payload"): _clean(value, key, 1) for key, value in payload.items()}


def clean_number(value: float, name: str) -> int | float:
    """``value`` of the field ``name``: an integer if it is whole, else a float that lasts.

    Idempotent. Most floats stay as they are. So do all with up to 15 significant digits, unless
    they are tiny. The others move by a unit or two in the last place.

    Raises:
        InvalidArgument: ``value`` is NaN or infinite.
    """
    if not math.isfinite(value):
        raise InvalidArgument(f"{name}: expected a finite number, got {value}", field=name)
    if value.is_integer() and abs(value) <= _EXACT_DOUBLE:
        return int(value)
    above = below = value
    for _ in range(_MOST_STEPS):
        for near in (above, below):
            if math.isfinite(near) and _as_read(near) == near:
                return near
        above, below = math.nextafter(above, math.inf), math.nextafter(below, -math.inf)
    return value


def _as_read(value: float) -> float:
    """``value`` after the engine wrote and read it (serde_json without float_roundtrip).

    The engine reads the digits as one integer and scales it by powers of ten; each step rounds.
    """
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    read = float(int("".join(map(str, digits))))
    power = int(exponent)
    if power > 0:
        read *= float(f"1e{power}")
    while power < 0:
        step = min(-power, _LARGEST_POWER)
        read, power = read / float(f"1e{step}"), power + step
    return -read if sign else read


def _clean(value: Any, name: str, depth: int) -> Json:
    """``value``, found in the field ``name``, ``depth`` levels down."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _clean_text(value, name)
    if isinstance(value, int):
        if is_int64(value):
            return int(value)
        raise InvalidArgument(f"{name}: expected an integer of 64 bits, got {value}", field=name)
    if isinstance(value, float):
        return clean_number(float(value), name)
    if depth >= MAX_DEPTH:
        raise InvalidArgument(f"{name}: expected at most {MAX_DEPTH} levels", field=name)
    if isinstance(value, dict):
        return {_clean_key(key, name): _clean(item, key, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, name, depth + 1) for item in value]
    got = type(value).__name__
    raise InvalidArgument(f"{name}: expected a JSON value, got {got}", field=name)


def _clean_key(key: Any, name: str) -> str:
    if not isinstance(key, str) or not key:
        raise InvalidArgument(f"{name}: expected non-empty names, got {key!r}", field=name)
    return _clean_text(key, name)


def _clean_text(value: str, name: str) -> str:
    if not is_text(value):
        raise InvalidArgument(f"{name}: expected Unicode text, got a lone surrogate", field=name)
    return value


def is_int64(value: int) -> bool:
    """Whether ``value`` fits into 64 bits."""
    return _LEAST_INT64 <= value < -_LEAST_INT64


def is_text(value: str) -> bool:
    """Whether ``value`` can be written as UTF-8: it has no lone surrogate."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
