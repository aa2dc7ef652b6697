from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick_disk import quick_directory

from shoal.errors import InvalidArgument
from shoal.store import (
    EVERYWHERE,
    AnyOf,
    Empty,
    Equals,
    Filter,
    IdIn,
    Point,
    Query,
    Range,
    Store,
    StoreConfig,
    VectorInfo,
    VectorScan,
    open_store,
    point_id,
)

NAMES = ["n", "s", "flag", "d.x", "d.y.z", "source", "clusters.default.a", "odd name"]
IDS = [point_id(str(i)) for i in range(6)]
DIRECTIONS = np.eye(4, dtype=np.float32)

scalars = (
    st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([0.5, 2.0, -1.5])
    | st.sampled_from(["", "x", "true", "\x00true", "\x00"])
)
values = st.recursive(
    st.none() | scalars,
    lambda inner: (
        st.lists(scalars, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "y", "z", "a"]), inner, max_size=3)
    ),
    max_leaves=4,
)
payloads = st.dictionaries(
    st.sampled_from(["n", "s", "flag", "d", "source", "clusters", "odd name"]), values, max_size=4
)
numbers = st.integers(-2, 3) | st.sampled_from([0.5, 2.0])
conditions = st.one_of(
    st.builds(Equals, st.sampled_from(NAMES), scalars),
    st.builds(
        AnyOf,
        st.sampled_from(NAMES),
        st.lists(st.integers(-2, 3), min_size=1, max_size=3).map(tuple)
        | st.lists(st.sampled_from(["x", "\x00"]), min_size=1, max_size=2).map(tuple),
    ),
    st.builds(Range, st.sampled_from(NAMES), gte=numbers, lt=st.none() | numbers),
    st.builds(Empty, st.sampled_from(NAMES)),
    st.builds(IdIn, st.lists(st.sampled_from(IDS), max_size=4).map(tuple)),
)
clauses = st.lists(conditions, max_size=2).map(tuple)
wheres = st.just(EVERYWHERE) | st.builds(Filter, clauses, clauses, clauses)
points = st.builds(
    lambda i, d, p: Point(i, {"v": DIRECTIONS[d]}, p),
    st.sampled_from(IDS),
    st.integers(0, 3),
    payloads,
)
operations = st.one_of(
    st.tuples(st.just("upsert"), st.lists(points, max_size=4), st.booleans()),
    st.tuples(
        st.just("set_payload"),
        payloads,
        wheres,
        st.sampled_from([None, "d", "d.y", "clusters.default", "odd name", "new.path"]),
    ),
    st.tuples(st.just("delete_fields"), st.lists(st.sampled_from(NAMES), max_size=3), wheres),
    st.tuples(st.just("delete"), wheres),
)


@pytest.fixture(scope="module")
def stores() -> Iterator[tuple[Store, Store]]:
    with (
        quick_directory() as path,
        open_store(StoreConfig(path=path / "store")) as embedded,
        open_store(StoreConfig(in_memory=True)) as memory,
    ):
        for store in (embedded, memory):
            store.create_collection("all", [VectorInfo("v", 4, "00" * 32)])
        yield embedded, memory


def apply(store: Store, operation: tuple[Any, ...]) -> str:
    """Runs ``operation``; how it ended."""
    match operation:
        case ("upsert", batch, insert_only):
            call = partial(store.upsert, "all", batch, insert_only=insert_only)
        case ("set_payload", payload, where, key):
            call = partial(store.set_payload, "all", payload, where=where, key=key)
        case ("delete_fields", fields, where):
            call = partial(store.delete_fields, "all", fields, where=where)
        case ("delete", where):
            call = partial(store.delete, "all", where)
    try:
        call()
    except InvalidArgument as exc:
        return exc.reason
    return "OK"


def read(store: Store, where: Filter) -> list[Any]:
    """What the store answers about ``where`` in every way of asking."""
    blocks = list(store.scan("all", VectorScan(where=where, vector="v", block_size=2)))
    found = [
        (i, typed(payload), vector.tolist())
        for block in blocks
        for i, payload, vector in zip(block.ids, block.payloads, block.vectors, strict=True)
    ]
    hits = store.search("all", Query(DIRECTIONS[1], limit=4, offset=1, where=where))
    return [
        found,
        store.count("all", where),
        [(h.id, h.score, typed(h.payload)) for h in hits],
        store.facet("all", "clusters.default.a", where),
        store.facet("all", "source", where),
    ]


def typed(value: Any) -> Any:
    """``value`` with its types, since True == 1 == 1.0 in Python."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return (type(value).__name__, value)


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=st.lists(operations, min_size=1, max_size=7), where=wheres)
def test_embedded_and_memory_agree(
    stores: tuple[Store, Store], script: list[tuple[Any, ...]], where: Filter
) -> None:
    """Any sequence of operations ends in the same state, answered alike, on both engines."""
    for store in stores:
        store.delete("all", EVERYWHERE)
    for operation in script:
        ends = [apply(store, operation) for store in stores]
        assert ends[0] == ends[1], operation
    for asked in (EVERYWHERE, where):
        embedded, memory = (read(store, asked) for store in stores)
        assert embedded == memory


def test_stand_in_paths_exist(tmp_path: Path) -> None:
    """An embedded store can be opened where nothing is: it leaves its marks, and a reserve."""
    open_store(StoreConfig(path=tmp_path / "a" / "b")).close()
    root = tmp_path / "a" / "b"
    owner = json.loads((root / "shoal.json").read_text())["id"]
    names = [f".reserve-{owner}", "LOCK", "collections", "shoal.json"]
    assert sorted(p.name for p in root.iterdir()) == names
