"""The embedded engine's own search, with nothing of Shoal around it: for benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import qdrant_edge as edge

from shoal.store import edge_files as files
from shoal.store.edge_models import to_filter as to_edge
from shoal.store.filters import to_filter
from shoal.store.model import Query


@contextmanager
def raw_engine(root: Path, collection: str) -> Iterator[Callable[[Query], Callable[[], int]]]:
    """The engine's shard of ``collection`` in the store at ``root``, which nobody else has open.

    Yields:
        A function that builds the request of a query, and gives a call that runs it and returns
        the number of hits. So the call measures the engine alone.

    Raises:
        StoreLocked: another process owns the directory.
    """
    with files.take_lock(root):
        shard = edge.EdgeShard.load(str(files.collection_dir(root, collection) / "shard"))
        try:

            def prepare(query: Query) -> Callable[[], int]:
                request = edge.QueryRequest(
                    limit=query.limit,
                    query=edge.Query.Nearest(query.vector.tolist(), using=query.vector_name),
                    filter=to_edge(to_filter(query.where)),
                    params=edge.SearchParams(exact=query.exact),
                    with_payload=True,
                )
                return lambda: len(shard.query(request))

            yield prepare
        finally:
            shard.close()
