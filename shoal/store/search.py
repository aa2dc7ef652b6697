"""Nearest neighbours in a fixed order: by score, then by id, also across pages.

Engines break ties as they please, and duplicates of an image are ties. One point more than
asked for tells whether the page ends inside a group of ties; then the whole group is read.
"""

from __future__ import annotations

import json
from dataclasses import replace

from qdrant_client import models

from shoal.errors import InvalidArgument
from shoal.store import points as convert
from shoal.store.engines import Engine
from shoal.store.filters import to_filter
from shoal.store.model import Hit, Query

AT_ONCE = 256
"""The most hits that are read with their payloads in one call: 16 MiB of the largest payloads.

More are ranked first, and then read in pieces, so that what is too much is known early.
"""


def nearest(engine: Engine, name: str, query: Query) -> list[Hit]:
    """The hits ``offset`` to ``offset + limit`` of ``query``, whose vector name is not empty.

    Raises:
        InvalidArgument: they have more than ``max_bytes``.
    """
    end = query.offset + query.limit
    many = query.limit > AT_ONCE
    hits = _ranked(engine, name, query, end + 1, bare=many)
    tied = len(hits) > end and hits[end].score == hits[end - 1].score
    if tied:
        hits = _ranked_in_ties(engine, name, query, end)
    page = hits[query.offset : end]
    if query.min_score is not None:
        page = [hit for hit in page if hit.score >= query.min_score]
    return _filled(engine, name, query, page) if many or tied else page


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


def _ranked_in_ties(engine: Engine, name: str, query: Query, end: int) -> list[Hit]:
    """The points up to ``end`` and all after it that have the score of the last; bare."""
    limit = end + 1
    while True:
        limit *= 4
        hits = _ranked(engine, name, query, limit, bare=True)
        if len(hits) < limit or hits[-1].score < hits[end - 1].score:
            return hits


def _filled(engine: Engine, name: str, query: Query, page: list[Hit]) -> list[Hit]:
    """The hits of ``page``, which are bare, with their payloads and vectors."""
    filled: list[Hit] = []
    size = 0
    for start in range(0, len(page), AT_ONCE):
        hits = page[start : start + AT_ONCE]
        records = engine.retrieve(
            name,
            [hit.id for hit in hits],
            with_payload=True,
            with_vectors=[query.vector_name] if query.with_vector else False,
        )
        found = {record.id: record for record in map(convert.to_record, records)}
        for hit in hits:
            if hit.id not in found:  # a point may have been deleted since it was ranked
                continue
            record = found[hit.id]
            vector = record.vectors.get(query.vector_name) if query.with_vector else None
            filled.append(replace(hit, payload=record.payload, vector=vector))
            size += _size(filled[-1]) if query.max_bytes else 0
            if size > query.max_bytes:
                most = query.max_bytes
                msg = (
                    f"limit: the first {len(filled)} of {len(page)} hits have more than the {most} "
                    f"bytes that fit into one answer: ask for at most {len(filled) - 1} at once, "
                    "and for the others with offset"
                )
                raise InvalidArgument(msg, field="limit", fitting=str(len(filled) - 1))
    return filled


def _size(hit: Hit) -> int:
    """The bytes of a hit's payload as JSON, and of its vector."""
    vector = 0 if hit.vector is None else hit.vector.nbytes
    return len(json.dumps(hit.payload, ensure_ascii=False)) + vector
