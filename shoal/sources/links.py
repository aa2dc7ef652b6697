"""Links inside a tar: from a link's name to the member whose content it has."""

from __future__ import annotations

import posixpath
import tarfile
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

_MOST_STEPS: Final = 40
"""Links that lead to each other, as Linux follows them."""
MOST_LINKS: Final = 1_000_000
"""Links of one archive that are kept in memory, some 300 bytes each."""


def plain(name: str) -> str:
    """The path that a member's ``name`` means: ``./a//b`` is ``a/b``."""
    return posixpath.normpath(name).lstrip("/")


@dataclass(frozen=True, slots=True)
class Link:
    """A link in an archive.

    Attributes:
        name: As the archive has it.
        target: Where it leads, as the archive has it.
        symbolic: A symbolic link's target is relative to it, and may come later in the archive; a
            hard link's is a member before it.
        position: How many members are before it.
    """

    name: str
    target: str
    symbolic: bool
    position: int


@dataclass(slots=True)
class Links:
    """The links of an archive."""

    _all: dict[str, Link] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._all)

    def add(self, member: tarfile.TarInfo, *, position: int) -> None:
        """Keeps ``member``, which is a link; a hard link to its own name says nothing new."""
        name = plain(member.name)
        if member.issym() or plain(member.linkname) != name:
            self._all[name] = Link(member.name, member.linkname, member.issym(), position)

    def by_member(self) -> dict[str, list[Link]]:
        """The links by the path of the member that they lead to; "" is the path of no member."""
        found: dict[str, list[Link]] = defaultdict(list)
        for name, link in self._all.items():
            found[self._resolve(name)].append(link)
        return found

    def _resolve(self, name: str) -> str:
        """Where ``name`` leads after all links; empty if that is outside, or nowhere."""
        done: list[str] = []
        todo = name.split("/")[::-1]
        steps = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not done:
                    return ""
                done.pop()
                continue
            done.append(part)
            link = self._all.get("/".join(done))
            if link is None:
                continue
            steps += 1
            if steps > _MOST_STEPS or (link.symbolic and link.target.startswith("/")):
                return ""
            if link.symbolic:
                done.pop()
            else:
                done.clear()
            todo.extend(link.target.split("/")[::-1])
        return "/".join(done)
