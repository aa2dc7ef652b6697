"""Proof that Shoal made a directory: a marker with an id, and names that contain the id.

A directory that Shoal fills has a file ``shoal.json`` with a random id. A directory that Shoal
makes in it for a time has that id in its name, so nobody else's has such a name. Shoal deletes
nothing at a start that lacks this proof.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from shoal.errors import OperatorError
from shoal.files import replacing

_LOG = logging.getLogger(__name__)

MARKER = "shoal.json"
"""The name of the marker."""

FORMAT = 1
"""The version of the marker that this module writes and reads."""


def read_mark(directory: Path) -> str | None:
    """The id of ``directory``; None if it has no marker.

    Raises:
        OperatorError: the marker is damaged, or another version or program wrote it.
    """
    path = directory / MARKER
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as exc:
        msg = f"{path}: expected JSON, got {exc}; restore the file, or move it away"
        raise OperatorError(msg, path=str(path)) from exc
    found = noted.get("id") if isinstance(noted, dict) else None
    if not isinstance(found, str) or not found.isalnum() or noted.get("format") != FORMAT:
        msg = f"{path}: expected format {FORMAT} with an id; another version or program wrote it"
        raise OperatorError(msg, path=str(path))
    return found


def mark(directory: Path) -> str:
    """The id of ``directory``, which gets a marker if it has none. One process at a time.

    Raises:
        OperatorError: as ``read_mark``.
    """
    found = read_mark(directory)
    if found is not None:
        return found
    made = uuid.uuid4().hex
    with replacing(directory / MARKER) as fresh:
        fresh.write_text(json.dumps({"format": FORMAT, "id": made}) + "\n", encoding="utf-8")
    return made


def temporary(directory: Path, *, owner: str, purpose: str) -> Path:
    """A new path in ``directory``, whose id is ``owner``, for a directory that may be deleted."""
    return directory / f".{purpose}-{owner}-{secrets.token_hex(8)}"


def remove_temporary(
    directory: Path, *, owner: str, parts: Collection[str] | None = None
) -> Iterator[Path]:
    """Deletes what ``temporary`` named in ``directory``; gives all other entries, by name.

    ``parts`` is as for ``remove_directory``.
    """
    for each in sorted(directory.iterdir()):
        if each.name.startswith(".") and f"-{owner}-" in each.name and not each.is_symlink():
            remove_directory(each, parts=parts)
        else:
            yield each


def remove_directory(path: Path, *, parts: Collection[str] | None = None) -> None:
    """Deletes a directory that Shoal made, or only those entries in it that are named ``parts``.

    Whatever cannot be deleted, and whatever somebody else has put there, stays and is reported.
    """
    if parts is None:
        shutil.rmtree(path, ignore_errors=True)
    else:
        for part in (path / name for name in parts):
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.rmdir()
    if path.exists():
        leave_alone(path, "something in it is not Shoal's, or cannot be deleted")


def leave_alone(path: Path, why: str) -> None:
    """Reports an entry that Shoal cannot prove it made, and which therefore stays as it is."""
    _LOG.warning("left alone: %s", why, extra={"path": str(path)})
