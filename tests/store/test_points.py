from __future__ import annotations

import math
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from shoal.errors import InvalidArgument, StoreUnavailable, Unsupported
from shoal.store import (
    EVERYWHERE,
    Empty,
    Equals,
    Filter,
    IdIn,
    Payload,
    Point,
    Range,
    StoreConfig,
    open_store,
    point_id,
    records_name,
)

if TYPE_CHECKING:
    from tests.store.conftest import Room

RICH: Payload = {
    "uri": "file:///Å.jpg",
    "ok": True,
    "not_ok": False,
    "none": None,
    "int": -(2**63),
    "float": 0.1,
    "text": "\x00true",
    "deep": {"flags": [True, False, "\x00", 1, None], "ключ": {"x": {}}, "a.b": []},
}


def test_upsert_then_retrieve_gives_the_point_back(room: Room) -> None:
    """Payloads of any JSON shape and the vector come back as they went in."""
    point = room.point("a", RICH)
    room.store.upsert(room.name, [point])
    (record,) = room.store.retrieve(room.name, [point.id], vectors=["tiny"])
    assert record is not None
    assert record.id == point.id
    assert record.payload == RICH
    assert record.vectors["tiny"].dtype == np.float32
    np.testing.assert_allclose(record.vectors["tiny"], point.vectors["tiny"], atol=1e-6)


def test_upsert_keeps_the_kinds_of_values(room: Room) -> None:
    """A boolean is never mistaken for a number, nor a fraction for an integer."""
    (i,) = room.fill([{"b": True, "one": 1, "half": 0.5, "l": [True, 1]}])
    payload = room.state()[i]
    kinds = {k: type(v) for k, v in payload.items()}
    assert kinds == {"b": bool, "one": int, "half": float, "l": list}
    assert [type(v) for v in payload["l"]] == [bool, int]


def test_upsert_stores_whole_floats_as_integers(room: Room) -> None:
    """2.0 and 2 are one number: a caller whose numbers are doubles finds both."""
    room.fill([{"n": 2.0}, {"n": 2}, {"n": 2.5}, {"n": [2.0]}])
    for value in (2, 2.0):
        assert room.store.count(room.name, Filter((Equals("n", value),))) == 3


def test_upsert_replaces_whole_points(room: Room) -> None:
    """Writing an id again replaces payload and vector, and never doubles the point."""
    first, second = room.point("a", {"x": 1, "y": 2}), room.point("a", {"x": 3}, seed=9)
    for point in (first, first, second):
        room.store.upsert(room.name, [point])
    (record,) = room.store.retrieve(room.name, [first.id], vectors=["tiny"])
    assert record is not None
    assert record.payload == {"x": 3}
    np.testing.assert_allclose(record.vectors["tiny"], second.vectors["tiny"], atol=1e-6)
    assert room.store.count(room.name) == 1


def test_upsert_takes_the_last_of_one_id(room: Room) -> None:
    """Of several points with one id in one call the last counts."""
    room.store.upsert(room.name, [room.point("a", {"x": i}) for i in range(3)])
    assert room.state() == {point_id("a"): {"x": 2}}


def test_upsert_insert_only_keeps_what_is_there(room: Room) -> None:
    """insert_only writes new points and leaves the others alone."""
    room.store.upsert(room.name, [room.point("a", {"x": 1})])
    both = [room.point("a", {"x": 2}), room.point("b", {"x": 3})]
    room.store.upsert(room.name, both, insert_only=True)
    assert room.state() == {point_id("a"): {"x": 1}, point_id("b"): {"x": 3}}


def test_upsert_writes_more_than_a_chunk(room: Room) -> None:
    """Many points arrive whole."""
    ids = room.fill([{"n": i} for i in range(300)])
    assert room.state() == {i: {"n": n} for n, i in enumerate(ids)}


def test_upsert_accepts_other_spellings_of_an_id(room: Room) -> None:
    """An id in capitals or without dashes is the same id, and comes back canonical."""
    i = point_id("a")
    point = replace(room.point("a"), id=uuid.UUID(i).hex.upper())
    room.store.upsert(room.name, [point])
    assert list(room.state()) == [i]
    assert room.store.count(room.name, Filter((IdIn([i.upper()]),))) == 1
    assert room.store.retrieve(room.name, [i.replace("-", "")])[0] is not None


def _vector(*head: float) -> np.ndarray:
    vector = np.zeros(8, np.float32)
    vector[: len(head)] = head
    return vector


GOOD = _vector(1.0)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"tiny": _vector(math.nan)}, "expected length 1, got nan"),
        ({"tiny": _vector(math.inf)}, "expected length 1"),
        ({"tiny": _vector()}, "expected length 1, got 0"),
        ({"tiny": _vector(1.1)}, "expected length 1, got 1.1"),
        ({"tiny": GOOD[:7]}, r"expected shape \(8,\), got \(7,\)"),
        ({"tiny": GOOD[None]}, r"expected shape \(8,\), got \(1, 8\)"),
        ({"tiny": GOOD.astype(np.float64)}, "expected a float32 array, got float64"),
        ({"tiny": GOOD.tolist()}, "expected a float32 array, got list"),
        ({"huge": GOOD}, "has no vector 'huge': expected one of tiny"),
        ({"": GOOD}, "has no vector"),
        ({}, "expected at least one vector"),
    ],
)
def test_upsert_refuses_a_bad_vector_whole(
    room: Room, vectors: dict[str, np.ndarray], message: str
) -> None:
    """One bad vector anywhere in the call: nothing of it is written."""
    bad = Point(point_id("bad"), vectors, {})
    points = [room.point(i) for i in range(200)]
    with pytest.raises(InvalidArgument, match=message):
        room.store.upsert(room.name, [*points, bad])
    assert room.store.count(room.name) == 0


def _nested(depth: int) -> Payload:
    payload: Payload = {}
    for _ in range(depth):
        payload = {"x": payload}
    return payload


BAD_PAYLOADS = [
    {"x": math.nan},
    {"x": [math.inf]},
    {"x": {"y": -math.inf}},
    {"x": 2**63},
    {"x": "\ud800"},
    {"\ud800": 1},
    {"": 1},
    {1: 1},
    {"x": {1: 1}},
    {"x": (1, 2)},
    {"x": b""},
    {"x": np.float32(1)},
    {"x": uuid.uuid4()},
    _nested(40),
]


@pytest.mark.parametrize("payload", BAD_PAYLOADS)
def test_upsert_refuses_a_payload_that_is_not_json(room: Room, payload: Payload) -> None:
    """What JSON cannot hold is refused before anything is written."""
    with pytest.raises(InvalidArgument):
        room.store.upsert(room.name, [room.point("a"), room.point("b", payload)])
    assert room.store.count(room.name) == 0


@pytest.mark.parametrize("payload", BAD_PAYLOADS)
def test_set_payload_refuses_a_payload_that_is_not_json(room: Room, payload: Payload) -> None:
    """The same rule holds for a merge."""
    room.fill([{"x": 1}])
    with pytest.raises(InvalidArgument):
        room.store.set_payload(room.name, payload, where=EVERYWHERE)
    assert list(room.state().values()) == [{"x": 1}]


@pytest.mark.parametrize("bad", ["", "7", "not-a-uuid", 7, None])
def test_ids_must_be_uuids(room: Room, bad: str) -> None:
    """An id that is not a UUID is refused in every place that takes one."""
    for call in (
        lambda: room.store.upsert(room.name, [replace(room.point("a"), id=bad)]),
        lambda: room.store.retrieve(room.name, [bad]),
        lambda: room.store.count(room.name, Filter((IdIn([bad]),))),
    ):
        with pytest.raises(InvalidArgument, match="expected a UUID"):
            call()


def test_retrieve_keeps_order_and_marks_the_missing(room: Room) -> None:
    """The answer has one entry per id asked for, in that order, None where there is no point."""
    ids = room.fill([{"n": i} for i in range(5)])
    asked = [ids[3], point_id("missing"), ids[0], ids[3], ids[4]]
    records = room.store.retrieve(room.name, asked)
    assert [r and r.payload["n"] for r in records] == [3, None, 0, 3, 4]
    assert all(r is None or r.vectors == {} for r in records)
    assert room.store.retrieve(room.name, []) == []


def test_retrieve_refuses_an_unknown_vector(room: Room) -> None:
    """A vector that the collection lacks is refused, not silently left out."""
    with pytest.raises(InvalidArgument, match="has no vector 'huge'"):
        room.store.retrieve(room.name, [], vectors=["huge"])


def test_records_may_lack_vectors(room: Room) -> None:
    """The companion takes points without vectors, and with them."""
    name = records_name(room.name)
    bare, full = Point(point_id("run"), {}, {"kind": "run"}), room.point("c", {"kind": "cluster"})
    room.store.upsert(name, [bare, full])
    got = room.store.retrieve(name, [bare.id, full.id], vectors=["tiny"])
    assert [r and sorted(r.vectors) for r in got] == [[], ["tiny"]]
    assert room.store.facet(name, "kind") == {"cluster": 1, "run": 1}
    room.store.upsert(name, [replace(full, vectors={})])
    assert room.store.retrieve(name, [full.id], vectors=["tiny"])[0].vectors == {}


def test_set_payload_merges_at_the_top(room: Room) -> None:
    """Fields given replace theirs, whole; the others stay; None removes one."""
    a, b = room.fill([{"x": 1, "y": {"p": 1, "q": 2}}, {"x": 5}])
    room.store.set_payload(
        room.name, {"y": {"p": 9}, "z": True, "x": None}, where=Filter((IdIn([a]),))
    )
    assert room.state() == {a: {"y": {"p": 9}, "z": True}, b: {"x": 5}}


def test_set_payload_under_a_key_keeps_the_sibling_slot(room: Room) -> None:
    """Writing one slot under ``clusters.default`` leaves the other slot and clustering."""
    a, b = room.fill([{"clusters": {"default": {"a": 1, "b": 2}, "other": {"a": 7}}}, {}])
    room.store.set_payload(room.name, {"b": 3}, where=EVERYWHERE, key="clusters.default")
    assert room.state() == {
        a: {"clusters": {"default": {"a": 1, "b": 3}, "other": {"a": 7}}},
        b: {"clusters": {"default": {"b": 3}}},
    }
    assert room.store.facet(room.name, "clusters.default.b") == {3: 2}
    assert room.store.count(room.name, Filter((Equals("clusters.default.b", 2),))) == 0


def test_set_payload_changes_what_a_boolean_matches(room: Room) -> None:
    """Filters follow a boolean through every kind of write."""
    true, false = Filter((Equals("flag", value=True),)), Filter((Equals("flag", value=False),))
    room.fill([{"flag": True}, {"flag": False}, {"flag": 1}, {"flag": "true"}, {}])
    counts = [(room.store.count(room.name, true), room.store.count(room.name, false))]
    for value in (False, "no", True):
        room.store.set_payload(room.name, {"flag": value}, where=EVERYWHERE)
        counts.append((room.store.count(room.name, true), room.store.count(room.name, false)))
    assert counts == [(1, 1), (0, 5), (0, 0), (5, 0)]


def test_set_payload_reaches_exactly_the_filtered(room: Room) -> None:
    """A filter of thousands of ids, many of them unknown, reaches every known one."""
    ids = room.fill([{"n": i} for i in range(40)])
    asked = [*ids[::2], *(point_id(f"missing {i}") for i in range(1500))]
    room.store.set_payload(room.name, {"hit": 1}, where=Filter((IdIn(asked),)))
    assert {i for i, p in room.state().items() if "hit" in p} == set(ids[::2])


def test_set_payload_matching_nothing_is_fine(room: Room) -> None:
    """No point to write to is no error, nor is nothing to write."""
    (i,) = room.fill([{"n": 1}])
    room.store.set_payload(room.name, {"x": 1}, where=Filter((Equals("n", 2),)))
    room.store.set_payload(room.name, {}, where=EVERYWHERE)
    assert room.state() == {i: {"n": 1}}


def test_set_payload_keeps_the_vector(room: Room) -> None:
    """A payload write leaves the vector searchable as it was."""
    point = room.point("a")
    room.store.upsert(room.name, [point])
    room.store.set_payload(room.name, {"x": 1}, where=EVERYWHERE)
    (record,) = room.store.retrieve(room.name, [point.id], vectors=["tiny"])
    np.testing.assert_allclose(record.vectors["tiny"], point.vectors["tiny"], atol=1e-6)


def test_delete_fields_removes_nested_and_plain(room: Room) -> None:
    """Fields go where the filter says; siblings and unknown names are no trouble."""
    a, b = room.fill([{"x": 1, "d": {"p": 1, "q": True}, "odd name": 1}, {"x": 2, "d": 3}])
    room.store.delete_fields(
        room.name, ["x", "d.p", "odd name", "unknown.z"], where=Filter((Equals("x", 1),))
    )
    room.store.delete_fields(room.name, [], where=EVERYWHERE)
    assert room.state() == {a: {"d": {"q": True}}, b: {"x": 2, "d": 3}}


def test_delete_removes_the_filtered(room: Room) -> None:
    """Deletion takes what the filter selects, and EVERYWHERE takes all."""
    ids = room.fill([{"n": i} for i in range(10)])
    room.store.delete(room.name, Filter((Range("n", gte=3),)))
    assert set(room.state()) == set(ids[:3])
    room.store.delete(room.name, Filter((IdIn([]),)))
    assert room.store.count(room.name) == 3
    room.store.delete(room.name, EVERYWHERE)
    assert room.store.count(room.name) == 0


def test_facet_counts_every_value(room: Room) -> None:
    """All values come, however many; the rest of the filter applies."""
    payloads: list[Payload] = [
        {"clusters": {"default": {"a": i % 1500}}, "source": f"s{i % 2}"} for i in range(1600)
    ]
    room.fill(payloads)
    field = "clusters.default.a"
    counts = room.store.facet(room.name, field)
    assert counts == {i: 2 if i < 100 else 1 for i in range(1500)}
    odd = room.store.facet(room.name, field, Filter((Equals("source", "s1"),)))
    assert set(odd) == set(range(1, 1500, 2))
    assert room.store.facet(room.name, "source") == {"s0": 800, "s1": 800}
    assert room.store.facet(room.name, "clusters.default.b") == {}


def test_facet_counts_values_of_the_index_only(room: Room) -> None:
    """A value of another type than the field's index holds is not counted, on any engine."""
    room.fill([{"source": "x"}, {"source": 0}, {"source": True}, {"source": ["x", "y"]}])
    assert room.store.facet(room.name, "source") == {"x": 2, "y": 1}


def test_facet_needs_an_indexed_field(room: Room) -> None:
    """A field without an index is refused alike on all engines, naming those that have one."""
    for field in ("camera", "ingested_at"):  # an index of numbers has no values to count
        with pytest.raises(Unsupported) as refused:
            room.store.facet(room.name, field)
        assert refused.value.message == (
            f"field {field!r}: expected one of the indexed fields source, clusters.default.a, "
            "clusters.default.b"
        )


@pytest.mark.parametrize("field", ["", ".", "a..b", 'a"b', "a.", "\ud800"])
def test_fields_must_be_paths(room: Room, field: str) -> None:
    """A field name that is no path is refused wherever a field can stand."""
    for call in (
        lambda: room.store.count(room.name, Filter((Empty(field),))),
        lambda: room.store.delete_fields(room.name, [field], where=EVERYWHERE),
        lambda: room.store.set_payload(room.name, {"x": 1}, where=EVERYWHERE, key=field),
    ):
        with pytest.raises(InvalidArgument, match="expected names"):
            call()


def test_close_is_final_and_idempotent(config: StoreConfig, room: Room, quick_path: Path) -> None:
    """After close every call says that the store is closed; closing again is fine."""
    own = replace(config, path=quick_path / "own") if config.path else config
    store = open_store(own)
    name = f"{room.name}-closed"
    store.create_collection(name, [room.encoder])
    store.upsert(name, [room.point("a")])
    store.flush()
    iterator = store.scan(name)
    store.drop_collection(name)
    store.close()
    store.close()
    for call in (
        lambda: store.count(name),
        store.collections,
        lambda: store.create_collection(name, [room.encoder]),
        lambda: next(iterator),
        store.flush,
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            call()
    assert store.kind in ("embedded", "memory", "server")
