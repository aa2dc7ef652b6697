"""File systems of a few MiB, to fill. Mounting one takes privileges that few test runs have."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

MIB = 1 << 20


@contextmanager
def small_disk(place: Path, *, size_mib: int) -> Iterator[Path]:
    """A file system of its own at ``place``; the test is skipped where none can be mounted."""
    place.mkdir(parents=True)
    how = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(place)]
    with suppress(FileNotFoundError):
        if subprocess.run(how, capture_output=True, check=False, timeout=30).returncode == 0:
            try:
                yield place
            finally:
                # Lazily: a memory map that is still open does not keep it.
                subprocess.run(["umount", "-l", str(place)], check=True, timeout=30)
            return
    pytest.skip("no file system can be mounted here")


def fill_up(disk: Path) -> Path:
    """A file that takes all the room there is."""
    path = disk / "filler"
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(MIB))
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path
