"""The images in a tar, compressed or not: streamed in one pass, never extracted to disk."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import quote

from shoal.client import IngestItem
from shoal.sources.files import absolute, is_image_name
from shoal.sources.items import SourceConfig, SourceItem, unreadable

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

# The errors that tarfile raises for a damaged archive, or for damaged compression around it.
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


class _StrictHeader(tarfile.TarInfo):
    """A header that must be whole: after the first, tarfile takes a damaged one for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """The next header; ReadError, saying after how many bytes, if it is damaged."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined,unused-ignore]  # the end mark
            raise
        except tarfile.HeaderError as exc:
            if tar.offset == 0:  # no tar at all: tarfile's own message says so
                raise
            msg = f"damaged after {tar.offset:,} bytes: {exc}"
            raise tarfile.ReadError(msg) from exc


def read_tar(path: Path, config: SourceConfig) -> Iterator[SourceItem]:
    """The image members of the tar at ``path``, in its order, each called ``TAR#MEMBER``.

    A damaged tar ends with one failed outcome in its name; the items before it stand. A tar
    without an end mark ends in the same way, though some programs write such tars: nothing else
    tells it from a tar that was cut between two members, and images must not be lost in silence.
    """
    uri = absolute(path).as_uri()
    try:
        # "r|*" reads front to back only, so that compressed tars need no rewinding.
        with tarfile.open(path, "r|*", tarinfo=_StrictHeader) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined,unused-ignore]  # it keeps all in memory
                if not (member.isreg() and is_image_name(member.name)):
                    continue
                shown = f"{path}#{member.name}"
                if refused := config.too_large(shown, member.size):
                    yield refused
                    continue
                stream = tar.extractfile(member)
                data = b"" if stream is None else stream.read()
                place = f"{uri}#{quote(member.name, errors='surrogateescape')}"
                yield IngestItem(
                    data=data,
                    key=config.key(uri=place, name=f"{path.name}/{member.name}"),
                    uri=place,
                    source=config.source,
                    payload=config.payload,
                    name=shown,
                )
    except _DAMAGE as exc:
        yield unreadable(str(path), exc)


def count_tar(path: Path) -> Iterator[int]:
    """1 for each image member, 0 for each other one; reads only the headers."""
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined,unused-ignore]
                yield int(member.isreg() and is_image_name(member.name))
    except _DAMAGE:
        return
