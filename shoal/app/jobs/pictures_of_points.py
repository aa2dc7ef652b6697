"""The pictures of stored points, read by their URIs or from a directory."""

from __future__ import annotations

import tarfile
import zlib
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

import fsspec

from shoal.errors import ImageTooLarge, LocationUnavailable, NotFound
from shoal.file_uris import from_uri, is_file_uri

_OPEN_TARS = 8
_MOST_BYTES = 64 * 1024**2
"""The most bytes of a picture; a larger one is not read in part."""


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
            ImageTooLarge: it has more than 64 MiB.
            LocationUnavailable: it cannot be read.
        """
        try:
            if is_file_uri(uri):
                place = from_uri(uri)
                if self._directory is not None:
                    return self._below(self._directory, str(place.path), place.member, uri)
                if place.member:
                    return self._member(place.path, place.member, uri)
                with place.path.open("rb") as file:
                    return _whole(file, uri)
            parts = urlsplit(uri)
            if self._directory is not None:
                path, member = unquote(parts.path), unquote(parts.fragment)
                return self._below(self._directory, path, member, uri)
            if not parts.scheme:
                msg = f"picture: expected a URI, got {uri!r}"
                raise NotFound(msg)
            with fsspec.open(uri, "rb") as file:
                return _whole(file, uri)
        except (FileNotFoundError, KeyError) as exc:
            msg = f"picture {uri}: nothing is there"
            raise NotFound(msg) from exc
        except (OSError, EOFError, ValueError, ImportError, tarfile.TarError, zlib.error) as exc:
            msg = f"picture {uri}: cannot be read: {exc}"
            raise LocationUnavailable(msg) from exc

    def _below(self, directory: Path, path: str, member: str, uri: str) -> bytes:
        """The file under ``directory`` that ends as ``path`` (or the tar's ``member``) does."""
        parts = PurePosixPath(member or path).parts
        for at in range(len(parts)):
            file = directory.joinpath(*(part for part in parts[at:] if part not in ("/", "..")))
            if file.is_file():
                with file.open("rb") as opened:
                    return _whole(opened, uri)
        raise FileNotFoundError(path)

    def _member(self, file: Path, name: str, uri: str) -> bytes:
        if file not in self._tars:
            while len(self._tars) >= _OPEN_TARS:
                self._tars.popitem(last=False)[1].close()
            # As when it was stored: what comes after an end mark may be another tar.
            self._tars[file] = tarfile.open(file, ignore_zeros=True)  # noqa: SIM115 - kept open
        self._tars.move_to_end(file)
        found = self._tars[file].extractfile(name)
        if found is None:
            raise FileNotFoundError(name)
        return _whole(found, uri)

    def close(self) -> None:
        """Closes the tars."""
        while self._tars:
            self._tars.popitem()[1].close()


def _whole(file: IO[bytes], uri: str) -> bytes:
    """All that ``file`` has.

    Raises:
        ImageTooLarge: that is more than a picture may have.
    """
    data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ImageTooLarge(f"picture {uri}: expected at most {_MOST_BYTES:,} bytes, got more")
    return bytes(data)
