"""The one rule for ``file:`` URIs (RFC 8089): from a path to its URI, and back.

A path is bytes, which need not be UTF-8. Everything but plain letters is percent-encoded, byte by
byte. What comes after ``#`` names a member of a tar, which is no part of the RFC.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote_to_bytes

_SCHEME: Final = re.compile("file:", re.IGNORECASE)
_LOCAL_HOSTS: Final = ("", "localhost")


@dataclass(frozen=True, slots=True)
class FilePlace:
    """What a ``file:`` URI names.

    Attributes:
        path: From the root; it may have ``..`` in it.
        member: A member's name, if ``path`` is a tar; else empty.
    """

    path: Path
    member: str


def to_uri(path: Path) -> str:
    """The URI of ``path``, which is made absolute without following links."""
    return Path(os.path.abspath(path)).as_uri()  # noqa: PTH100 - Path.resolve would follow links


def member_uri(tar: str, name: str) -> str:
    """The URI of the member ``name`` of the tar whose URI is ``tar``."""
    return f"{tar}#{quote(_bytes(name))}"


def is_file_uri(text: str) -> bool:
    """Whether ``text`` begins as a ``file:`` URI does, in capitals or not."""
    return _SCHEME.match(text) is not None


def from_uri(uri: str) -> FilePlace:
    """What ``uri`` names. Characters that ought to be percent-encoded may stand as they are.

    Raises:
        ValueError: it is no ``file:`` URI of this machine, or ``?`` and ``#`` are not encoded.
    """
    place, _, member = uri[len("file:") :].partition("#")
    host = ""
    if place.startswith("//"):
        host, slash, rest = place[2:].partition("/")
        place = slash + rest
    path = _decoded(place)
    if not is_file_uri(uri) or host.lower() not in _LOCAL_HOSTS or path[:1] != b"/" or 0 in path:
        raise ValueError("expected file:///path")
    if "?" in place:
        raise ValueError("expected ? in a path as %3F")
    return FilePlace(Path(os.fsdecode(path)), os.fsdecode(_decoded(member)))


def _decoded(text: str) -> bytes:
    return unquote_to_bytes(_bytes(text))


def _bytes(name: str) -> bytes:
    """The bytes of a name, whatever encoding this process takes names to have."""
    return name.encode("utf-8", "surrogateescape")


def readable_name(name: str) -> str:
    """``name``, of a file or member, as UTF-8: bytes of it that are none are percent-encoded.

    It is the same in every locale. In some, Python takes all letters but ASCII for such bytes.
    """
    name = _bytes(name).decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", name)
