"""Nearest neighbours in a fixed order: by score, then by id, also across pages.

Engines break ties as they please, and duplicates of an image are ties. One point more than
asked for tells whether the page ends inside a group of ties; then the whole group is read.
"""

from __future__ import annotations

from dataclasses import replace

from qdrant_client import models

from shoal.store import points as convert
from shoal.store.engines import Engine
from shoal.store.filters import to_filter
from shoal.store.model import Hit, Query


def nearest(engine: Engine, name: str, query: Query) -> list[Hit]:
    """The hits ``offset`` to ``offset + limit`` of ``query``, whose vector name is not empty."""
    end = query.offset + query.limit
    hits = _ranked(engine, name, query, end + 1)
    if len(hits) > end and hits[end].score == hits[end - 1].score:
        page = _page_in_ties(engine, name, query, end)
    else:
        page = hits[query.offset : end]
    if query.min_score is None:
        return page
    return [hit for hit in page if hit.score >= query.min_score]


def _ranked(
    engine: Engine, name: str, query: Query, limit: int, *, bare: bool = False
) -> list[Hit]:
    """The ``limit`` nearest points in order; if ``bare``, only their ids and scores."""
    with_vector = query.with_vector and not bare
    points = engine.query_points(
        name,
        query=query.vector,
        using=query.vector_name,
        query_filter=to_filter(query.where),
        search_params=models.SearchParams(exact=query.exact),
        limit=limit,
        with_payload=not bare,
        with_vectors=[query.vector_name] if with_vector else False,
    ).points
    hits = [convert.to_hit(point, query.vector_name, with_vector=with_vector) for point in points]
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


def _page_in_ties(engine: Engine, name: str, query: Query, end: int) -> list[Hit]:
    """The page that ends at ``end``, if the points before and after the end have one score."""
    limit = end + 1
    while True:
        limit *= 4
        hits = _ranked(engine, name, query, limit, bare=True)
        if len(hits) < limit or hits[-1].score < hits[end - 1].score:
            break
    page = hits[query.offset : end]
    records = engine.retrieve(
        name,
        [hit.id for hit in page],
        with_payload=True,
        with_vectors=[query.vector_name] if query.with_vector else False,
    )
    found = {record.id: record for record in map(convert.to_record, records)}
    return [
        replace(
            hit,
            payload=found[hit.id].payload,
            vector=found[hit.id].vectors.get(query.vector_name) if query.with_vector else None,
        )
        for hit in page
        if hit.id in found  # a point may have been deleted since it was ranked
    ]
