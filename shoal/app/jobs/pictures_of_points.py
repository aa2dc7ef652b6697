"""The pictures of stored points, read by their URIs or from a directory."""

from __future__ import annotations

import tarfile
import zlib
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import fsspec

from shoal.errors import LocationUnavailable, NotFound
from shoal.sources.files import to_path

_OPEN_TARS = 8
_MOST_BYTES = 64 * 1024**2
"""The most bytes of a picture that are read."""


class Pictures:
    """Reads pictures by URI: files, members of tars, and all that fsspec knows (https, s3, ...).

    With ``directory``, pictures that were ingested elsewhere are looked up there by the last parts
    of their URIs.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._tars: OrderedDict[Path, tarfile.TarFile] = OrderedDict()

    def read(self, uri: str) -> bytes:
        """The bytes of the picture at ``uri``.

        Raises:
            NotFound: there is no such picture, or ``uri`` is no URI.
            LocationUnavailable: it cannot be read.
        """
        parts = urlsplit(uri)
        try:
            if self._directory is not None:
                return self._below(self._directory, unquote(parts.path), unquote(parts.fragment))
            if parts.scheme == "file" and parts.fragment:
                return self._member(to_path(uri), unquote(parts.fragment))
            if parts.scheme == "file":
                return to_path(uri).read_bytes()
            if not parts.scheme:
                msg = f"picture: expected a URI, got {uri!r}"
                raise NotFound(msg)
            with fsspec.open(uri, "rb") as file:
                return bytes(file.read(_MOST_BYTES))
        except (FileNotFoundError, KeyError) as exc:
            msg = f"picture {uri}: nothing is there"
            raise NotFound(msg) from exc
        except (OSError, EOFError, ValueError, ImportError, tarfile.TarError, zlib.error) as exc:
            msg = f"picture {uri}: cannot be read: {exc}"
            raise LocationUnavailable(msg) from exc

    def _below(self, directory: Path, path: str, member: str) -> bytes:
        """The file under ``directory`` that ends as ``path`` (or the tar's ``member``) does."""
        parts = PurePosixPath(member or path).parts
        for at in range(len(parts)):
            file = directory.joinpath(*(part for part in parts[at:] if part not in ("/", "..")))
            if file.is_file():
                return file.read_bytes()
        raise FileNotFoundError(path)

    def _member(self, file: Path, name: str) -> bytes:
        if file not in self._tars:
            while len(self._tars) >= _OPEN_TARS:
                self._tars.popitem(last=False)[1].close()
            self._tars[file] = tarfile.open(file)  # noqa: SIM115 - kept open
        self._tars.move_to_end(file)
        found = self._tars[file].extractfile(name)
        if found is None:
            raise FileNotFoundError(name)
        return found.read(_MOST_BYTES)

    def close(self) -> None:
        """Closes the tars."""
        while self._tars:
            self._tars.popitem()[1].close()
