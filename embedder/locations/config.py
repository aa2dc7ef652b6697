"""Which places may be read, and what reading may take."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from embedder.flow.admission import Capacity
from shoal.errors import ConfigError

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

    roots: tuple[Path, ...] = ()
    """Directories whose files may be read as ``file:`` URIs. Links that lead out are refused."""
    hosts: tuple[str, ...] = ()
    """Hosts that may be asked over https: ``images.example.org``, ``*.example.org`` (its
    subdomains), either with ``:port`` for another port than the scheme's own."""
    prefixes: tuple[str, ...] = ()
    """What URIs of object stores must begin with, such as ``s3://bucket/photos``; read by the
    fsspec package and the one for the scheme (s3fs, gcsfs, adlfs), with their own credentials."""
    allow_http: bool = False
    """Whether the hosts may be asked without encryption too."""
    allow_private: bool = False
    """Whether the hosts may have addresses that are not public: loopback, private networks, cloud
    metadata."""
    timeout_s: float = 30.0
    """Longest time for one image, from name to last byte; waiting for memory does not count."""
    max_redirects: int = 3
    """Each of them is held to the same rules."""
    concurrency: int = 32
    """Images read at the same time from one kind of place: files, hosts, object stores of a scheme.
    A read that outlives its time counts until it really ends."""
    capacity: Capacity = field(default_factory=lambda: Capacity(1024, 256 * 2**20))
    """What has been read and is not yet done with; past it, reading waits."""

    def __post_init__(self) -> None:
        """Check the values."""
        for root in self.roots:
            if not root.is_dir():
                raise ConfigError(f"file root {root}: expected a directory", field="roots")
        for host in self.hosts:
            if not _HOST.fullmatch(host):
                expected = "a name as images.example.org or *.example.org, with or without :port"
                raise ConfigError(f"host {host!r}: expected {expected}", field="hosts")
        for prefix in self.prefixes:
            _check_prefix(prefix)
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s: expected more than 0 s, got {self.timeout_s}")
        if self.max_redirects < 0:
            raise ConfigError(f"max_redirects: expected 0 or more, got {self.max_redirects}")
        if self.concurrency < 1:
            raise ConfigError(f"concurrency: expected 1 or more, got {self.concurrency}")

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
