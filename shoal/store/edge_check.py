"""Whether a shard's payload indexes agree with its payloads, and how they are made to.

A process that is killed beside a flush may leave an index that is newer than the payload. A filter
then finds other points than a read shows. The check is for the start after an unclean stop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import qdrant_edge as edge

_PAGE = 8192
"""Points per read: each holds the interpreter up for some 30 ms."""

_MOST_VALUES = 10_000_000
"""More values than an index has."""

_CUTS = 16
"""Places at which an index of floats is compared with the payload."""

_SIMPLE = {"Keyword": edge.PayloadSchemaType.Keyword, "Float": edge.PayloadSchemaType.Float}
_TYPES = {"Keyword": (str,), "Integer": (int,), "Float": (int, float)}
"""The types of values that an index of each kind holds."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A field whose index and payload differ.

    Attributes:
        field: The payload field.
        in_payload: The number of its values in the payloads.
        in_index: The number of its values in the index.
        wrong: The number of different values for which the index has other points.
    """

    field: str
    in_payload: int
    in_index: int
    wrong: int

    def facts(self) -> dict[str, object]:
        """This for a line of the log."""
        return asdict(self)


@dataclass(slots=True)
class _Points:
    """Some points: their number, and a sum of their ids that no other points have."""

    count: int = 0
    ids: int = 0

    def add(self, point: object) -> None:
        """Adds a point by its id."""
        self.count += 1
        self.ids ^= hash(point)


_Values: TypeAlias = dict[Any, _Points]


def disagreements(shard: edge.EdgeShard) -> list[Disagreement]:
    """The indexed fields of ``shard`` whose index and payload differ. Reads every point."""
    kinds = {
        field: str(info.data_type).rpartition(".")[2]
        for field, info in shard.info().payload_schema.items()
    }
    values = _in_payloads(shard, kinds)
    found = []
    for field, kind in kinds.items():
        look = _float_index if kind == "Float" else _match_index
        in_payload = sum(points.count for points in values[field].values())
        in_index, wrong = look(shard, field, values[field])
        if wrong or in_index != in_payload:
            found.append(Disagreement(field, in_payload, in_index, wrong))
    return found


def rebuild_index(shard: edge.EdgeShard, field: str) -> None:
    """Makes the index of ``field`` anew from the payloads, and writes it out."""
    info = shard.info().payload_schema[field]
    shard.update(edge.UpdateOperation.delete_field_index(field))
    kind = info.params or _SIMPLE[str(info.data_type).rpartition(".")[2]]
    shard.update(edge.UpdateOperation.create_field_index(field, kind))
    shard.flush()


def _in_payloads(shard: edge.EdgeShard, kinds: Mapping[str, str]) -> dict[str, _Values]:
    """The points of each value of each field, by their payloads."""
    found: dict[str, _Values] = {field: defaultdict(_Points) for field in kinds}
    fields = [(field.split("."), _TYPES[kind], found[field]) for field, kind in kinds.items()]
    for records in _pages(shard, None, with_payload=list(kinds)):
        for record in records:
            for path, types, values in fields:
                for value in _at(record.payload, path, types):
                    values[value].add(record.id)
    return found


def _match_index(shard: edge.EdgeShard, field: str, values: _Values) -> tuple[int, int]:
    """The number of values in an index for matches, and of values with other points."""
    total = wrong = 0
    hits = shard.facet(edge.FacetRequest(field, limit=_MOST_VALUES, exact=True)).hits
    for value in {hit.value for hit in hits if hit.count} | set(values):
        where = edge.Filter(must=[edge.FieldCondition(key=field, match=edge.MatchValue(value))])
        found = _Points()
        for records in _pages(shard, where, with_payload=False):
            for record in records:
                found.add(record.id)
        total += found.count
        wrong += found != values.get(value, _Points())
    return total, wrong


def _float_index(shard: edge.EdgeShard, field: str, values: _Values) -> tuple[int, int]:
    """As ``_match_index``; the points are counted below some of the values."""

    def count(**bounds: float) -> int:
        where = edge.FieldCondition(key=field, range=edge.RangeFloat(**bounds))
        return int(shard.count(edge.CountRequest(exact=True, filter=edge.Filter(must=[where]))))

    ordered = sorted(values)
    below = [0, *accumulate(values[value].count for value in ordered)]
    step = max(1, len(ordered) // _CUTS)
    wrong = sum(count(lt=ordered[at]) != below[at] for at in range(0, len(ordered), step))
    return count(gte=float("-inf")), wrong


def _pages(
    shard: edge.EdgeShard, where: edge.Filter | None, *, with_payload: list[str] | bool
) -> Iterator[list[edge.Record]]:
    """The points that meet ``where``, by id, without their vectors."""
    offset = None
    while True:
        request = edge.ScrollRequest(
            offset=offset, limit=_PAGE, filter=where, with_payload=with_payload, with_vector=False
        )
        records, offset = shard.scroll(request)
        yield records
        if offset is None:
            return


def _at(payload: Any, path: Sequence[str], types: tuple[type, ...]) -> Sequence[Any]:
    """The values of these types at ``path``, as an index has them: those of a list one by one."""
    for name in path:
        if not isinstance(payload, dict) or name not in payload:
            return ()
        payload = payload[name]
    if type(payload) in types:
        return (payload,)
    return [v for v in payload if type(v) in types] if isinstance(payload, list) else ()
