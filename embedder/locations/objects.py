"""Reads objects in object stores through fsspec: s3://, gs://, abfs:// and its other schemes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from embedder.locations.sources import Means, check_size, not_allowed, shown
from shoal.errors import (
    ConfigError,
    InvalidArgument,
    LocationUnavailable,
    NotFound,
    ShoalError,
)

_LOG = logging.getLogger(__name__)
_ODD = re.compile(r"[\x00-\x1f\x7f\\]|::|/\.{1,2}(/|$)|//")
"""Finds characters and parts of a path that chain fsspec's file systems or leave a directory."""


class Objects:
    """Reads objects whose URI begins with one of ``prefixes``."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        """Makes the file systems; nothing is connected to yet.

        Raises:
            ConfigError: the package for a scheme is not installed.
        """
        self._prefixes = [prefix.rstrip("/") + "/" for prefix in prefixes]
        schemes = {prefix.partition("://")[0] for prefix in prefixes}
        self._systems = {scheme: _file_system(scheme) for scheme in schemes}

    async def read(self, uri: str, *, max_bytes: int, means: Means) -> bytes:
        """The bytes of the object; raises as ``Source.read`` says."""
        if not any(uri.startswith(prefix) for prefix in self._prefixes):
            raise not_allowed(uri)
        scheme, _, place = uri.partition("://")
        if _ODD.search(place):
            msg = f"image.uri: expected {scheme}://bucket/name without .. and ::, got {shown(uri)}"
            raise InvalidArgument(msg, field="image.uri")
        system = self._systems[scheme]
        size = await means.run(_size, system, uri)
        check_size(uri, size, max_bytes)
        await means.reserve(size)
        return await means.run(_read, system, uri, size)


def _file_system(scheme: str) -> Any:
    try:
        import fsspec  # noqa: PLC0415 - an extra
    except ImportError as exc:
        msg = f"{scheme}:// needs the fsspec package: install shoal[objects]"
        raise ConfigError(msg, field="prefixes") from exc
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except (ImportError, ValueError) as exc:
        msg = f"{scheme}://: no file system for it: {exc}"
        raise ConfigError(msg, field="prefixes") from exc


def _size(system: Any, uri: str) -> int:
    try:
        info = system.info(uri)
    except Exception as exc:
        raise _failure(uri, exc) from exc
    size = info.get("size")
    if info.get("type") != "file" or not isinstance(size, int):
        msg = f"image.uri: expected an object, got {shown(uri)}, which is none"
        raise InvalidArgument(msg, field="image.uri")
    return size


def _read(system: Any, uri: str, size: int) -> bytes:
    try:
        data = bytes(system.cat_file(uri, start=0, end=size + 1))
    except Exception as exc:
        raise _failure(uri, exc) from exc
    if len(data) != size:
        raise LocationUnavailable(f"object {shown(uri)}: it changed while it was read")
    return data


def _failure(uri: str, error: Exception) -> ShoalError:
    """The error for an exception of a file system: each has its own, with details to hide."""
    if isinstance(error, FileNotFoundError):
        return NotFound(f"no such object: {shown(uri)}")
    if isinstance(error, PermissionError):
        msg = f"image.uri: expected an object that this server may read, got {shown(uri)}"
        return InvalidArgument(msg, field="image.uri")
    _LOG.warning("an object cannot be read", extra={"uri": uri}, exc_info=error)
    return LocationUnavailable(f"object {shown(uri)}: {type(error).__name__}; the log has more")
