"""Which places may be read, and what reading may take."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt

from embedder.flow.admission import Capacity
from shoal.errors import ConfigError
from shoal.settings import INTERNAL, Setting, check_ranges

_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?|\[[0-9a-f:.]+\](:\d{1,5})?")
_PREFIX = re.compile(r"([a-z][a-z0-9+.-]*)://[^\x00-\x20]+")
_OWN_RULES = frozenset({"file", "local", "http", "https"})
"""Schemes that no object store may have: they are read under rules of their own."""


@dataclass(frozen=True, slots=True)
class LocationsConfig:
    """Which places may be read; by default none.

    Raises:
        ConfigError: a value is out of range, or a place is not written as it must be.
    """

    roots: Annotated[tuple[Path, ...], Setting("--allow-files", metavar="DIR")] = ()
    """Read images that come as `file://` URIs of files under DIR. Default: none.

    A link that leads out of the directory is refused.
    """
    hosts: Annotated[tuple[str, ...], Setting("--allow-host", metavar="HOST[:PORT]")] = ()
    """Read images that come as `https://` URLs of HOST; `*.HOST` is its subdomains. Default:
    none."""
    prefixes: Annotated[tuple[str, ...], Setting("--allow-objects", metavar="URI")] = ()
    """Read images that come as URIs which begin with URI, such as `s3://bucket/photos`; needs
    shoal[objects]. Default: none.

    They are read by the fsspec package and the one for the scheme (s3fs, gcsfs, adlfs), with
    their own credentials.
    """
    allow_http: bool = False
    """Read images from the allowed hosts by `http://` too."""
    allow_private: Annotated[bool, Setting("--allow-private-hosts")] = False
    """Read images from allowed hosts whose addresses are not public: loopback, private networks,
    cloud metadata."""
    timeout_s: Annotated[float, Gt(0), Setting("--read-timeout")] = 30.0
    """Longest time to read one image from its URI, from name to last byte, without the time that
    it waits for memory."""
    max_redirects: Annotated[int, Ge(0), INTERNAL] = 3
    """Redirects of one read; each is held to the same rules."""
    concurrency: Annotated[int, Ge(1), INTERNAL] = 32
    """Images read at the same time from one kind of place: files, hosts, object stores of a scheme.
    A read that outlives its time counts until it really ends."""
    capacity: Annotated[Capacity, INTERNAL] = field(
        default_factory=lambda: Capacity(1024, 256 * 2**20)
    )
    """The images that are read and not yet done with; beyond them, reading waits."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_ranges(self)
        for root in self.roots:
            if not root.is_dir():
                raise ConfigError(f"file root {root}: expected a directory", field="roots")
        for host in self.hosts:
            if not _HOST.fullmatch(host):
                expected = "a name as images.example.org or *.example.org, with or without :port"
                raise ConfigError(f"host {host!r}: expected {expected}", field="hosts")
        for prefix in self.prefixes:
            _check_prefix(prefix)

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes of the places, in alphabetical order."""
        found = {prefix.partition("://")[0] for prefix in self.prefixes}
        if self.roots:
            found.add("file")
        if self.hosts:
            found.add("https")
        if self.hosts and self.allow_http:
            found.add("http")
        return tuple(sorted(found))


def _check_prefix(prefix: str) -> None:
    found = _PREFIX.fullmatch(prefix)
    if found is None or "::" in prefix:
        expected = "a place as s3://bucket/photos"
        raise ConfigError(f"object prefix {prefix!r}: expected {expected}", field="prefixes")
    if found[1] in _OWN_RULES:
        expected = "an object store: files and hosts are allowed as such"
        raise ConfigError(f"object prefix {prefix!r}: expected {expected}", field="prefixes")
