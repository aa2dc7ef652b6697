"""JSONL manifests: one object per line that says where an image is and what belongs to it.

    {"path": "a/1.jpg", "key": "sku-1", "source": "cam-3", "payload": {"label": "cat"}}

``path`` is relative to the manifest. A line may have a ``uri`` instead: a ``file:`` URI is read
here, any other by the server. With both, the file at ``path`` is read and ``uri`` is stored.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from shoal.client import IngestItem
from shoal.errors import InvalidArgument
from shoal.file_uris import is_file_uri
from shoal.sources.files import read_file, to_path
from shoal.sources.items import (
    MANIFEST_INVALID,
    SourceConfig,
    SourceItem,
    failed,
    remote_item,
    unreadable,
)
from shoal.sources.kinds import is_compressed, is_tar

MANIFEST_SUFFIXES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 2**20
_NO_MANIFEST = "expected a manifest, one JSON object per line, got {}: give its path"
_IMAGE_STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"RIFF",
    b"GIF8",
    b"BM",
    b"II*",
    b"MM\x00",
    b"\x00\x00\x00",
)
"""How images begin; no line of a manifest begins so."""
_TYPES = {"path": str, "uri": str, "key": str, "source": str, "payload": dict}


def read_manifest(
    manifest: BinaryIO, config: SourceConfig, *, base: Path, name: str, piped: bool = False
) -> Iterator[SourceItem]:
    """The images of the manifest ``name``, whose paths are relative to ``base``.

    A wrong line is a failed outcome called ``NAME:LINE``. The item of a line is called
    ``NAME:LINE: PATH`` (or its key or URI), since two lines may have the same path. Empty lines
    are skipped. A manifest that stops being readable ends with a failed outcome in its name. A
    ``piped`` manifest has no suffix that tells it from an image or a tar: one of them in its place
    is one failed outcome too.
    """
    lines = enumerate(read_lines(manifest), start=1)
    try:
        for number, line in lines:
            other = _other_kind(line or b"") if piped and number == 1 else ""
            if other:
                yield failed(name, MANIFEST_INVALID, _NO_MANIFEST.format(other))
                return
            if line is None or line.strip():
                yield _read_line(line, config, base=base, name=f"{name}:{number}")
    except OSError as exc:
        yield unreadable(name, exc)


def _other_kind(line: bytes) -> str:
    """What begins with ``line``, if that is no manifest; empty if it may be one."""
    if is_tar(line) or is_compressed(line):
        return "a tar"
    return "an image" if line.startswith(_IMAGE_STARTS) else ""


def read_lines(manifest: BinaryIO) -> Iterator[bytes | None]:
    """The lines; None in place of a line longer than MAX_LINE_BYTES, which is never held whole."""
    while line := manifest.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = manifest.readline(MAX_LINE_BYTES)
        yield None


def _read_line(line: bytes | None, config: SourceConfig, *, base: Path, name: str) -> SourceItem:
    try:
        if line is None:
            message = f"expected lines of at most {MAX_LINE_BYTES:,} bytes, got a longer one"
            return failed(name, MANIFEST_INVALID, message)
        found = _read_entry(_parse(line), config, base=base)
    except InvalidArgument as exc:  # a file: URI
        return failed(name, MANIFEST_INVALID, f"uri: {exc.message}")
    except ValueError as exc:  # from _read_entry: a URI or path that is malformed
        return failed(name, MANIFEST_INVALID, str(exc))
    return dataclasses.replace(found, name=f"{name}: {found.name}")


def _parse(line: bytes) -> Mapping[str, Any]:
    """The object on ``line``.

    Raises:
        ValueError: the line is malformed; the message says what was expected and got.
    """
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as exc:
        msg = f"expected one JSON object per line: {exc}"
        raise ValueError(msg) from exc
    if not isinstance(entry, dict):
        msg = f"expected a JSON object, got {type(entry).__name__}"
        raise ValueError(msg)  # noqa: TRY004 - as json's
    for field, value in entry.items():
        if field not in _TYPES:
            msg = f"expected the fields {', '.join(_TYPES)}, got {field!r}"
            raise ValueError(msg)
        if not isinstance(value, _TYPES[field]):
            msg = f"{field}: expected {_TYPES[field].__name__}, got {type(value).__name__}"
            raise ValueError(msg)  # noqa: TRY004 - as json's
    if not (entry.get("path") or entry.get("uri")):
        msg = 'expected "path" or "uri", got neither'
        raise ValueError(msg)
    return entry


def _read_entry(entry: Mapping[str, Any], config: SourceConfig, *, base: Path) -> SourceItem:
    uri = entry.get("uri", "")
    config = dataclasses.replace(
        config,
        source=entry.get("source", config.source),
        payload={**config.payload, **entry.get("payload", {})},
    )
    if entry.get("path"):
        file = base / entry["path"]
    elif is_file_uri(uri):
        file = to_path(uri)
    else:
        urlsplit(uri)  # raises ValueError if it is malformed
        return remote_item(uri, config, key=entry.get("key", ""))
    found = read_file(file, config, name=entry.get("path", ""))
    if not isinstance(found, IngestItem):
        return found
    key = entry.get("key") or (config.key(uri=uri, name=found.key) if uri else found.key)
    return dataclasses.replace(found, key=key, uri=uri or found.uri)
