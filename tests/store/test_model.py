from __future__ import annotations

import hashlib

import pytest

from shoal.errors import InvalidArgument
from shoal.store import Collection, VectorInfo, canonical_id, point_id
from shoal.store.model import (
    check_clustering_name,
    check_collection_name,
    is_records_name,
    other_slot,
    records_name,
    slot_field,
)

CLIP, DINO = VectorInfo("clip", 3, "aa" * 32), VectorInfo("dino", 5, "bb" * 32)
BOTH = Collection("photos", (CLIP, DINO), ("default",), 1.0)


def test_ids_are_made_of_keys_as_ever() -> None:
    """Another version, or another writer, gives a key the same id."""
    assert point_id("photo-1") == "a37b423f-63d9-5e8c-af24-4331973afc9f"


@pytest.mark.parametrize(
    "spelling",
    [
        "45b64c4f-2383-5c97-a09d-4eb8f4a8a85c",
        "45B64C4F-2383-5C97-A09D-4EB8F4A8A85C",
        "45b64c4f23835c97a09d4eb8f4a8a85c",
        "{45b64c4f-2383-5c97-a09d-4eb8f4a8a85c}",
        "urn:uuid:45b64c4f-2383-5c97-a09d-4eb8f4a8a85c",
    ],
)
def test_id_has_one_canonical_spelling(spelling: str) -> None:
    """36 characters, in lower case."""
    assert canonical_id(spelling) == "45b64c4f-2383-5c97-a09d-4eb8f4a8a85c"


@pytest.mark.parametrize("bad", ["", "7", "45b64c4f-2383-5c97-a09d-4eb8f4a8a85", 7, None])
def test_what_is_no_id_is_refused(bad: object) -> None:
    """The message repeats it."""
    with pytest.raises(InvalidArgument) as refused:
        canonical_id(bad)  # type: ignore[arg-type]
    assert refused.value.message == f"point id {bad!r}: expected a UUID"
    assert refused.value.metadata == {"field": "id"}


@pytest.mark.parametrize("name", ["a", "9", "A-b_c", "a" * 100])
def test_collection_names_are_plain(name: str) -> None:
    """Letters, digits, - and _, 100 at most."""
    assert check_collection_name(name) == name


@pytest.mark.parametrize("name", ["", "_a", "-a", "a b", "a--b", "a/b", "é", "a" * 101, "a\n"])
def test_other_collection_names_are_refused(name: str) -> None:
    """They could leave the directory, or be the name of a companion."""
    with pytest.raises(InvalidArgument, match="collection name") as refused:
        check_collection_name(name)
    assert refused.value.metadata == {"field": "collection"}


def test_companion_is_told_by_its_name() -> None:
    """No collection can have such a name."""
    assert records_name("photos") == "photos--records"
    assert is_records_name("photos--records")
    assert not is_records_name("photos")
    with pytest.raises(InvalidArgument):
        check_collection_name(records_name("photos"))


@pytest.mark.parametrize(
    ("name", "checked"), [("", "default"), ("a", "a"), ("_9", "_9"), ("a" * 40, "a" * 40)]
)
def test_clustering_names_are_parts_of_a_path(name: str, checked: str) -> None:
    """Small letters, digits and _, 40 at most; none means the default one."""
    assert check_clustering_name(name) == checked


@pytest.mark.parametrize("name", ["A", "a.b", "a-b", " ", "a" * 41, "a\n"])
def test_other_clustering_names_are_refused(name: str) -> None:
    """The error names the field."""
    with pytest.raises(InvalidArgument, match="clustering name") as refused:
        check_clustering_name(name)
    assert refused.value.metadata == {"field": "clustering"}


def test_slots_are_two() -> None:
    """Each is the other's other."""
    assert (other_slot("a"), other_slot("b")) == ("b", "a")
    assert slot_field("default", "a") == "clusters.default.a"


def test_collection_gives_its_vectors_by_name() -> None:
    """The first for an empty name; several joined by +, in the order asked for."""
    assert BOTH.vector() == BOTH.vector("clip") == CLIP
    assert BOTH.vector("dino") == DINO
    assert BOTH.parts() == (CLIP,)
    assert BOTH.parts("dino+clip") == (DINO, CLIP)
    joint = BOTH.vector("dino+clip")
    assert (joint.name, joint.dim) == ("dino+clip", 8)
    made_of = "+".join(part.fingerprint for part in (DINO, CLIP)).encode()
    assert joint.fingerprint == hashlib.sha256(made_of).hexdigest()
    assert joint.fingerprint != BOTH.vector("clip+dino").fingerprint


def test_vector_with_a_plus_in_its_name_is_itself() -> None:
    """A collection may have been made with such a name; it is no joint vector."""
    odd = VectorInfo("clip+dino", 9, "cc" * 32)
    assert Collection("photos", (CLIP, DINO, odd), (), 1.0).vector("clip+dino") == odd


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ghost", "collection 'photos' has no vector 'ghost': expected one of clip, dino"),
        (
            "clip+ghost",
            "collection 'photos' has no vector 'clip+ghost': expected one of clip, dino",
        ),
        ("clip+clip", "vector 'clip+clip': expected different vectors in a joint one"),
    ],
)
def test_vector_that_is_not_there_is_refused(name: str, says: str) -> None:
    """The message says which there are."""
    with pytest.raises(InvalidArgument) as refused:
        BOTH.vector(name)
    assert refused.value.message == says
    assert refused.value.metadata == {"field": "vector"}


def test_joint_vector_cannot_be_searched() -> None:
    """No index holds it; its parts can."""
    assert BOTH.searchable() == CLIP
    assert BOTH.searchable("dino") == DINO
    with pytest.raises(InvalidArgument) as refused:
        BOTH.searchable("clip+dino")
    assert refused.value.message == (
        "search: expected a stored vector (clip or dino), got the joint vector clip+dino"
    )
