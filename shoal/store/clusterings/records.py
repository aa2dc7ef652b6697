"""The records of a collection: the base of the parts of ``Clusterings``."""

from __future__ import annotations

from shoal.store.gateway import Store
from shoal.store.model import Equals, Filter, records_name


class Records:
    """The records collection that belongs to ``collection``."""

    def __init__(self, store: Store, collection: str) -> None:
        self._store = store
        self.collection = collection
        self._records = records_name(collection)


def of_run(kind: str, clustering: str, run: str) -> Filter:
    """The filter for the records of ``kind`` that belong to one run."""
    return Filter(must=(Equals("kind", kind), Equals("clustering", clustering), Equals("run", run)))
