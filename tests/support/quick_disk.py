"""A place for stores where making a file safe on disk costs nothing.

An embedded collection is some 150 files, each of which is synced. On a busy disk that takes
seconds; nothing but a power cut could tell the difference.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.store import edge_space

edge_space.RESERVE_BYTES = 1 << 20  # it takes memory there

_IN_MEMORY = Path("/dev/shm")
_LEAST_FREE = 2 * 2**30
"""A collection takes about 20 MB there. Containers often have only 64 MB in all."""


@contextmanager
def quick_directory() -> Iterator[Path]:
    """A temporary directory in memory if the machine has room for it, else on disk."""
    roomy = os.access(_IN_MEMORY, os.W_OK) and shutil.disk_usage(_IN_MEMORY).free > _LEAST_FREE
    place = _IN_MEMORY if roomy else None
    with tempfile.TemporaryDirectory(prefix="shoal-test-", dir=place) as name:
        yield Path(name)
