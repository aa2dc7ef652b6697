from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from qdrant_client import models

from shoal.errors import Conflict, EncoderMismatch, InvalidArgument, NotFound, Unsupported
from shoal.store import EVERYWHERE, Point, Store, VectorInfo, point_id, records_name

if TYPE_CHECKING:
    from tests.store.conftest import Room

CLIP = VectorInfo("clip", 4, "cd" * 32)
DINO = VectorInfo("dino", 6, "ef" * 32)


def test_create_collection_answers_what_was_made(store: Store, fresh_name: str) -> None:
    """A new collection has the vectors asked for, the default clustering and its time."""
    made = store.create_collection(fresh_name, [CLIP, DINO])
    assert made == store.collection(fresh_name)
    assert made.vectors == (CLIP, DINO)
    assert made.clusterings == ("default",)
    assert made.created_at > 1.7e9


def test_create_collection_is_idempotent(new_room: Room) -> None:
    """Creating again changes nothing, and keeps the points and the records."""
    before = new_room.store.collection(new_room.name)
    new_room.fill([{"n": 1}])
    new_room.store.upsert(
        records_name(new_room.name), [Point(point_id("run"), {}, {"kind": "run"})]
    )
    assert new_room.store.create_collection(new_room.name, [new_room.encoder]) == before
    assert new_room.store.count(new_room.name) == 1
    assert new_room.store.count(records_name(new_room.name)) == 1


def test_create_collection_refuses_another_fingerprint(room: Room) -> None:
    """The same vector name from another encoder is refused, naming both fingerprints."""
    other = replace(room.encoder, fingerprint="0123456789abcdef")
    with pytest.raises(EncoderMismatch, match=r"'tiny'.*abababababab.*'tiny'.*0123456789ab\b"):
        room.store.create_collection(room.name, [other])


def test_create_collection_refuses_another_dim(room: Room) -> None:
    """The same name and fingerprint with another dim is refused."""
    with pytest.raises(EncoderMismatch, match=r"8-d.*9-d"):
        room.store.create_collection(room.name, [replace(room.encoder, dim=9)])


def test_create_collection_refuses_another_encoder(room: Room) -> None:
    """A collection of one encoder refuses another, naming both."""
    with pytest.raises(EncoderMismatch, match=r"'tiny'.*'clip'"):
        room.store.create_collection(room.name, [CLIP])


def test_create_collection_cannot_add_a_vector(room: Room) -> None:
    """The collection's own vector plus a new one is not supported, and says so."""
    with pytest.raises(Unsupported, match="adding clip"):
        room.store.create_collection(room.name, [room.encoder, CLIP])
    assert room.store.collection(room.name).vectors == (room.encoder,)


@pytest.mark.parametrize(
    "vectors",
    [
        [],
        [CLIP, replace(DINO, name="clip")],
        [replace(CLIP, name="")],
        [replace(CLIP, dim=0)],
        [replace(CLIP, dim=65_537)],
    ],
)
def test_create_collection_refuses_impossible_vectors(
    store: Store, fresh_name: str, vectors: list[VectorInfo]
) -> None:
    """No vectors, two of one name, no name or an impossible dim: refused, nothing made."""
    with pytest.raises(InvalidArgument):
        store.create_collection(fresh_name, vectors)
    with pytest.raises(NotFound):
        store.collection(fresh_name)


@pytest.mark.parametrize("name", ["", "a--records", "a/b", "..", "-a", "é", "a" * 101])
def test_create_collection_refuses_a_bad_name(store: Store, name: str) -> None:
    """Names that could escape the directory or meet a companion are refused."""
    with pytest.raises(InvalidArgument, match="collection name"):
        store.create_collection(name, [CLIP])


def test_collection_unknown_names_those_that_exist(room: Room) -> None:
    """NotFound lists the collections that there are."""
    with pytest.raises(NotFound, match=room.name):
        room.store.collection("nowhere")


def test_operations_on_an_unknown_collection_are_not_found(store: Store) -> None:
    """Every operation says NotFound for a collection that does not exist."""
    for call in (
        lambda: store.count("nowhere"),
        lambda: store.upsert("nowhere", []),
        lambda: store.scan("nowhere"),
        lambda: store.retrieve("nowhere", []),
        lambda: store.set_payload("nowhere", {}, where=EVERYWHERE),
        lambda: store.delete("nowhere", EVERYWHERE),
        lambda: store.drop_collection("nowhere"),
        lambda: store.ensure_clustering("nowhere", "colour"),
    ):
        with pytest.raises(NotFound):
            call()


def test_collections_lists_by_name_without_companions(store: Store, fresh_name: str) -> None:
    """Collections come sorted; the companions do not show."""
    names = [f"{fresh_name}{suffix}" for suffix in "ba"]
    for name in names:
        store.create_collection(name, [CLIP])
    listed = [c.name for c in store.collections()]
    assert [name for name in listed if name.startswith(fresh_name)] == sorted(names)
    assert not [name for name in listed if name.endswith("--records")]
    for name in names:
        store.drop_collection(name)


def test_drop_collection_removes_everything(new_room: Room) -> None:
    """A dropped collection and its companion are gone, and the name can be used again."""
    new_room.fill([{"n": 1}])
    new_room.store.upsert(
        records_name(new_room.name), [Point(point_id("run"), {}, {"kind": "run"})]
    )
    new_room.store.drop_collection(new_room.name)
    for name in (new_room.name, records_name(new_room.name)):
        with pytest.raises(NotFound):
            new_room.store.count(name)
    new_room.store.create_collection(new_room.name, [CLIP])
    assert new_room.store.count(new_room.name) == 0
    assert new_room.store.count(records_name(new_room.name)) == 0
    assert new_room.store.collection(new_room.name).vectors == (CLIP,)


def test_ensure_clustering_adds_countable_slots(new_room: Room) -> None:
    """A new clustering is listed once, however often it is ensured, and its slots count."""
    for _ in range(2):
        made = new_room.store.ensure_clustering(new_room.name, "colour")
        assert made.clusterings == ("colour", "default")
    ids = new_room.fill([{"clusters": {"colour": {"a": 3}}}, {}])
    assert new_room.store.facet(new_room.name, "clusters.colour.a") == {3: 1}
    assert (
        new_room.store.create_collection(new_room.name, [new_room.encoder]).clusterings
        == made.clusterings
    )
    assert set(new_room.state()) == set(ids)


def test_ensure_clustering_refuses_a_bad_name(room: Room) -> None:
    """A clustering's name becomes part of a field path: dots and capitals are refused."""
    with pytest.raises(InvalidArgument, match="clustering name"):
        room.store.ensure_clustering(room.name, "a.b")


def test_foreign_collection_is_hidden_and_refused(store: Store, fresh_name: str) -> None:
    """A collection that Shoal did not make is neither listed nor written."""
    engine = store._session._backend.engine
    engine.create_collection(
        fresh_name,
        vectors_config={"v": models.VectorParams(size=4, distance=models.Distance.COSINE)},
        metadata={},
    )
    try:
        assert fresh_name not in [c.name for c in store.collections()]
        for call in (
            lambda: store.create_collection(fresh_name, [CLIP]),
            lambda: store.collection(fresh_name),
            lambda: store.count(fresh_name),
            lambda: store.drop_collection(fresh_name),
        ):
            with pytest.raises(Conflict, match="not made by Shoal"):
                call()
    finally:
        engine.delete_collection(fresh_name)


def test_collection_of_a_newer_format_is_refused(store: Store, fresh_name: str) -> None:
    """A layout this version does not know is refused, not guessed at."""
    engine = store._session._backend.engine
    engine.create_collection(
        fresh_name,
        vectors_config={"v": models.VectorParams(size=4, distance=models.Distance.COSINE)},
        metadata={"shoal": {"format": 99}},
    )
    try:
        with pytest.raises(Conflict, match="expected format 1, got 99"):
            store.collection(fresh_name)
    finally:
        engine.delete_collection(fresh_name)


def test_creation_cut_short_is_completed(store: Store, fresh_name: str) -> None:
    """A companion left by a creation that died does not stop another, with other vectors."""
    store.create_collection(fresh_name, [CLIP])
    store._session._backend.engine.delete_collection(fresh_name)
    assert store.create_collection(fresh_name, [DINO]).vectors == (DINO,)
    assert store.collection(records_name(fresh_name)).vectors == (DINO,)


def test_create_collection_lost_race_takes_the_winner(
    new_room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two creators at once the second finds it made: the same, or refused; nothing breaks."""
    store, name, real = new_room.store, new_room.name, new_room.store._catalogue._look
    for wanted in (new_room.encoder, CLIP):
        # What the loser saw before the winner's creation: no collection.
        answers = {name: None, records_name(name): None}
        monkeypatch.setattr(
            store._catalogue, "_look", lambda n, a=answers: a.pop(n) if n in a else real(n)
        )
        if wanted == new_room.encoder:
            assert store.create_collection(name, [wanted]).vectors == (wanted,)
        else:
            with pytest.raises(EncoderMismatch):
                store.create_collection(name, [wanted])
        assert not answers
        assert store.collection(records_name(name)).vectors == (new_room.encoder,)
