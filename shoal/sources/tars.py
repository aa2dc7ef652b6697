"""The images in a tar, compressed or not: streamed, never extracted to disk."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal import file_uris
from shoal.client import IngestItem
from shoal.sources.archives import DAMAGE, Archive, open_archive
from shoal.sources.items import UNREADABLE, SourceConfig, SourceItem, failed, unreadable
from shoal.sources.kinds import HEAD_BYTES, has_image_suffix, is_hidden, reason_to_leave_out
from shoal.sources.links import MOST_LINKS, Link, Links, plain

TAR_SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".taz", ".tar.bz2", ".tbz2", ".tbz", ".tb2", ".tar.xz", ".txz"),
    *(".tar.lzma", ".tlz", ".tar.zst", ".tzst", ".tar.z", ".tar.lz4", ".tar.lz"),
)
"""The last three are not read, but said to be what they are."""


_NO_FILES = (b"D", b"V")
"""GNU tar's list of a directory, and its label of an archive."""


@dataclass(frozen=True, slots=True)
class _Tar:
    """A tar whose images are read."""

    path: Path
    uri: str
    config: SourceConfig

    def shown(self, name: str) -> str:
        """The member ``name`` in reports."""
        return f"{self.path}#{name}"

    def item(self, name: str, data: bytes) -> IngestItem:
        """The member ``name`` as an item."""
        place = file_uris.member_uri(self.uri, name)
        return IngestItem(
            data=data,
            key=self.config.key(uri=place, name=f"{self.path.name}/{name}"),
            uri=place,
            source=self.config.source,
            payload=self.config.payload,
            name=self.shown(name),
            merge_fields=self.config.merge_fields,
        )

    def read(self, tar: Archive, member: tarfile.TarInfo, names: list[str]) -> Iterator[SourceItem]:
        """The content of ``member`` under each of ``names`` that makes it an image."""
        stream = tar.extractfile(member)
        head = b"" if stream is None else stream.read(HEAD_BYTES)
        sent = []
        for name in names:
            if reason := reason_to_leave_out(name, head):
                self.config.left_out.add(reason, self.shown(name))
            elif refused := self.config.too_large(self.shown(name), member.size):
                yield refused
            else:
                sent.append(name)
        if sent:
            data = head if stream is None else head + stream.read()
            yield from (self.item(name, data) for name in sent)


def read_tar(path: Path, config: SourceConfig) -> Iterator[SourceItem]:
    """The image members of the tar at ``path``, each called ``TAR#MEMBER``.

    First come the files, in the archive's order; then what links inside the archive lead to, for
    which it is read once more. A damaged tar gives one failed outcome in its name; the items before
    the damage stand.
    """
    tar = _Tar(path, file_uris.to_uri(path), config)
    links = Links()
    try:
        with open_archive(path) as archive:
            for position, member in enumerate(archive.members_in_order()):
                if member.isreg():
                    yield from tar.read(archive, member, [member.name])
                elif member.issym() or member.islnk():
                    yield from _note_link(tar, links, member, position=position)
                elif not member.isdir() and member.type not in _NO_FILES:
                    config.left_out.add("not_a_file", tar.shown(member.name))
    except DAMAGE as exc:
        yield unreadable(str(path), exc)
    if links:
        yield from _read_links(tar, links)


def _note_link(
    tar: _Tar, links: Links, member: tarfile.TarInfo, *, position: int
) -> Iterator[SourceItem]:
    """Keeps ``member``, a link, for later; its failure if there are too many."""
    if is_hidden(member.name):
        tar.config.left_out.add("hidden", tar.shown(member.name))
    elif len(links) < MOST_LINKS:
        links.add(member, position=position)
    else:
        message = f"cannot be read: expected at most {MOST_LINKS:,} links in an archive, got more"
        yield failed(tar.shown(member.name), UNREADABLE, message)


def _read_links(tar: _Tar, links: Links) -> Iterator[SourceItem]:
    """What ``links`` lead to, and the failures of those that lead to nothing here."""
    by_member = links.by_member()
    found: set[str] = set()
    directories: set[str] = set()
    if stat.S_ISREG(tar.path.stat().st_mode):
        try:
            with open_archive(tar.path) as archive:
                for position, member in enumerate(archive.members_in_order()):
                    here = by_member.get(plain(member.name), [])
                    ready = [
                        link.name for link in here if link.symbolic or link.position > position
                    ]
                    if member.isreg() and ready:
                        found.update(ready)
                        yield from tar.read(archive, member, ready)
                    elif member.isdir():
                        directories.add(plain(member.name))
        except DAMAGE:
            pass  # told when it was read for the first time
    for target, leading in by_member.items():
        for link in leading:
            if link.name not in found:
                yield from _leads_nowhere(tar, link, to_directory=target in directories)


def _leads_nowhere(tar: _Tar, link: Link, *, to_directory: bool) -> Iterator[SourceItem]:
    if to_directory:
        tar.config.left_out.add("link_to_directory", tar.shown(link.name))
    elif has_image_suffix(link.name):
        message = f"cannot be read: a link to {link.target!r}, which is no file of the archive"
        yield failed(tar.shown(link.name), UNREADABLE, message)
    else:
        tar.config.left_out.add("broken_link", tar.shown(link.name))


def count_tar(path: Path) -> Iterator[int]:
    """1 for each member that may be an image, 0 for each other one; reads only the beginnings."""
    try:
        with open_archive(path) as tar:
            for member in tar.members_in_order():
                head = b""
                if member.isreg() and (stream := tar.extractfile(member)):
                    head = stream.read(HEAD_BYTES)
                linked = (member.issym() or member.islnk()) and has_image_suffix(member.name)
                yield int(linked or (member.isreg() and not reason_to_leave_out(member.name, head)))
    except DAMAGE:
        return
