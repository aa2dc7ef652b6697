"""Requests that are checked, and answers as messages."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from clustered import CLUSTERS, DIM, TINT, TOY

from search import messages
from search.query import Found, Target
from search.snapshots import Snapshot
from shoal import vectors
from shoal.errors import EncoderMismatch, InvalidArgument
from shoal.rpc.pages import AnswerRoom
from shoal.store.clusterings import Pointer, State
from shoal.store.model import Collection, Equals, Filter, Hit, Record
from shoal.v1 import common_pb2
from shoal.v1 import search_pb2 as pb

TOYS = Collection("toys", (TOY, TINT), ("default", "mine"), 1_700_000_000.5)
VECTOR = vectors.unit(np.arange(1, DIM + 1))
SNAPSHOT = Snapshot(
    State("mine", Pointer(active_slot="b", active_run="r1")),
    {},
    [*CLUSTERS],
    np.eye(DIM, dtype=np.float32)[:3],
    "toy",
)


def target(**fields: Any) -> Target:
    return messages.target(pb.SearchRequest(**{"collection": "toys", "id": "k", **fields}), TOYS)


def test_what_is_not_said_has_the_contracts_defaults() -> None:
    """Everywhere, the first vector, 10 hits, no least score, no vectors, exact."""
    assert target() == Target(
        collection=TOYS,
        clustering="default",
        vector=TOY,
        within="any",
        where=Filter(),
        limit=10,
        offset=0,
        min_score=None,
        with_vectors=False,
        approximate=False,
    )


def test_all_that_is_said_is_kept() -> None:
    """Each field of a request reaches the search."""
    condition = common_pb2.Condition(field="n")
    condition.equals.number_value = 3
    found = target(
        clustering="mine",
        vector_name="tint",
        within=pb.Within(cluster=0),
        filter=common_pb2.Filter(must_not=[condition]),
        limit=3,
        offset=4,
        min_score=0.0,
        with_vectors=True,
        approximate=True,
    )
    assert found == Target(
        collection=TOYS,
        clustering="mine",
        vector=TINT,
        within=0,
        where=Filter(must_not=(Equals("n", 3),)),
        limit=3,
        offset=4,
        min_score=0.0,
        with_vectors=True,
        approximate=True,
    )


@pytest.mark.parametrize(
    ("within", "scope"),
    [
        (pb.Within(), "any"),
        (pb.Within(any=True), "any"),
        (pb.Within(any=False), "any"),
        (pb.Within(auto=True), "auto"),
        (pb.Within(auto=False), "any"),
        (pb.Within(cluster=0), 0),
        (pb.Within(cluster=-1), -1),
        (pb.Within(cluster=2**40), 2**40),
    ],
)
def test_within_is_a_word_or_a_number(within: pb.Within, scope: object) -> None:
    """Auto that is false is no restriction, and cluster 0 is a cluster."""
    assert target(within=within).within == scope


@pytest.mark.parametrize(
    "fields",
    [
        {"limit": 1},
        {"limit": 10_000},
        {"offset": 100_000},
        {"min_score": -1.0},
        {"min_score": 1.0},
    ],
)
def test_bounds_are_in_range(fields: dict[str, Any]) -> None:
    """The ends of each range are taken as they are."""
    ((name, value),) = fields.items()
    assert getattr(target(**fields), name) == value


@pytest.mark.parametrize(
    ("fields", "words", "field"),
    [
        ({"limit": 10_001}, "limit: expected 1 to 10000, got 10001", "limit"),
        ({"offset": 100_001}, "offset: expected 0 to 100000, got 100001", "offset"),
        ({"min_score": 1.5}, "min_score: expected -1 to 1, got 1.5", "min_score"),
        ({"min_score": -1.5}, "min_score: expected -1 to 1, got -1.5", "min_score"),
        ({"min_score": float("nan")}, "min_score: expected -1 to 1, got nan", "min_score"),
        ({"clustering": "No"}, "clustering name 'No'", "clustering"),
        ({"vector_name": "toy+tint"}, "got the joint vector toy+tint", "vector"),
        ({"filter": common_pb2.Filter(must=[common_pb2.Condition()])}, "a field name", "filter"),
    ],
)
def test_what_is_out_of_range_is_refused(fields: dict[str, Any], words: str, field: str) -> None:
    """By the field's name, with what was expected and got."""
    with pytest.raises(InvalidArgument) as caught:
        target(**fields)
    assert words in caught.value.message
    assert caught.value.metadata == {"field": field}


def test_a_request_without_a_query_is_refused_last() -> None:
    """What is wrong with the rest of the request is said first."""
    with pytest.raises(InvalidArgument, match="expected an image, id, vector or text, got none"):
        messages.target(pb.SearchRequest(collection="toys"), TOYS)
    with pytest.raises(InvalidArgument, match="limit"):
        messages.target(pb.SearchRequest(collection="toys", limit=10_001), TOYS)


def query(vector: np.ndarray, **fields: Any) -> vectors.Vectors:
    message = common_pb2.Vector(values=vectors.encode(vector), dim=len(vector), **fields)
    return messages.query_vector(message, target())


def test_query_vector_is_scaled_to_length_1() -> None:
    """One that is nearly of unit length has its length corrected, not its direction."""
    assert abs(float(np.linalg.norm(query(VECTOR * np.float32(1.0009)))) - 1) < 1e-6
    np.testing.assert_allclose(query(VECTOR * np.float32(1.0009)), VECTOR, atol=1e-6)


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (VECTOR * np.float32(1.002), "expected length 1"),
        (VECTOR * np.float32(0), "expected length 1"),
        (VECTOR * np.float32(np.nan), "expected length 1"),
        (vectors.unit(np.ones(DIM + 1)), r"expected shape \(8,\)"),
        (vectors.unit(np.ones(3)), r"expected shape \(8,\)"),
    ],
)
def test_query_vector_must_fit(vector: np.ndarray, words: str) -> None:
    """One of another dimension or length is refused, though it could be scaled."""
    with pytest.raises(InvalidArgument, match=words):
        query(vector)


def test_query_vector_must_be_of_the_collections_encoder() -> None:
    """By its fingerprint, where it has one: the compared vector's, not another's."""
    assert len(query(VECTOR, fingerprint=TOY.fingerprint)) == DIM
    for other in (TINT.fingerprint, "f" * 63):
        with pytest.raises(EncoderMismatch, match="made with encoder 'toy' "):
            query(VECTOR, fingerprint=other)


def hit(number: int, slots: object, vector: vectors.Vectors | None = None) -> Hit:
    return Hit(str(number), 0.5, {"n": number, "clusters": {"mine": slots}}, vector)


def test_response_is_of_the_snapshot() -> None:
    """Hits in order, each with its cluster in the active slot; no payload shows the slots."""
    found = Found([hit(1, {"a": 7, "b": 0}, VECTOR), hit(2, {"a": 7})], SNAPSHOT, 0)
    message = messages.response(found, target())
    assert (message.run, message.cluster, message.HasField("cluster")) == ("r1", 0, True)
    first, second = message.hits
    assert (first.id, first.score, first.cluster, first.HasField("cluster")) == ("1", 0.5, 0, True)
    assert not second.HasField("cluster")
    assert [dict(each.payload) for each in message.hits] == [{"n": 1}, {"n": 2}]
    assert first.vector == common_pb2.Vector(
        values=vectors.encode(VECTOR), dim=DIM, fingerprint=TOY.fingerprint
    )
    assert not second.HasField("vector")
    everywhere = messages.response(Found([], SNAPSHOT, None), target())
    assert not everywhere.HasField("cluster")


def test_response_too_large_for_a_message_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before all of it is made; the error says how many hits fit."""
    found = Found([hit(number, {"a": 7}) for number in range(5)], SNAPSHOT, 0)
    sizes = [each.ByteSize() for each in messages.response(found, target()).hits]
    for most, fits in ((sum(sizes), True), (sum(sizes) - 1, False)):
        monkeypatch.setattr(messages, "AnswerRoom", partial(AnswerRoom, most))
        if fits:
            assert len(messages.response(found, target()).hits) == 5
        else:
            with pytest.raises(InvalidArgument, match="the first 4 entries fit"):
                messages.response(found, target())


def test_point_has_each_vector_with_its_own_encoder() -> None:
    """Vectors are told apart by name, dimension and fingerprint."""
    tint = vectors.unit(np.ones(3))
    record = Record("1", {"n": 1, "clusters": {"mine": {"b": 2}}}, {"toy": VECTOR, "tint": tint})
    message = messages.point(record, SNAPSHOT, TOYS)
    assert (message.id, message.cluster, dict(message.payload)) == ("1", 2, {"n": 1})
    assert {
        name: (each.dim, each.fingerprint, each.values) for name, each in message.vectors.items()
    } == {
        "toy": (DIM, TOY.fingerprint, vectors.encode(VECTOR)),
        "tint": (3, TINT.fingerprint, vectors.encode(tint)),
    }


def test_collection_tells_what_it_consists_of() -> None:
    """Vectors in the collection's order, clusterings, and when it was made."""
    message = messages.collection(TOYS, 12)
    assert (message.name, message.points, [*message.clusterings]) == (
        "toys",
        12,
        ["default", "mine"],
    )
    assert [(v.name, v.dim, v.fingerprint) for v in message.vectors] == [
        ("toy", DIM, TOY.fingerprint),
        ("tint", 3, TINT.fingerprint),
    ]
    assert message.created_at.ToMilliseconds() == 1_700_000_000_500
