"""What was found in collections, until somebody writes to them.

The tasks look at every collection about once a second. Looking opens the collection in the embedded
store, which keeps only those open that are in use.
"""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

from shoal.store.gateway import Store
from shoal.store.model import records_name

T = TypeVar("T")
Version: TypeAlias = tuple[int | None, int | None]
"""The versions of a collection and of its companion."""


class Unchanged(Generic[T]):
    """One value for each collection that has not changed since. Not thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[str, tuple[Version, T]] = {}

    def version(self, collection: str) -> Version:
        """The version of ``collection``; to be asked for before the collection is read."""
        return self._store.version(collection), self._store.version(records_name(collection))

    def get(self, collection: str) -> T | None:
        """The value that was kept for ``collection``; None if it may have changed since."""
        version, value = self._kept.get(collection, (None, None))
        return value if version == self.version(collection) else None

    def keep(self, collection: str, version: Version, value: T) -> None:
        """Keeps ``value``, which was read at ``version``, unless others may write there too."""
        if None not in version:
            self._kept[collection] = (version, value)
