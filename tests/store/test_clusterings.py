from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from shoal.clock import SKEW_S
from shoal.errors import InvalidArgument, NotFound
from shoal.store import (
    Equals,
    Filter,
    Payload,
    Point,
    Range,
    VectorInfo,
    point_id,
    records_name,
)
from shoal.store.clusterings import (
    Clusterings,
    ClusterRecord,
    DriftSums,
    Pointer,
    State,
    StoredLease,
    cluster_of,
)

if TYPE_CHECKING:
    from tests.store.conftest import Room

STORED: Payload = {
    "kind": "clustering",
    "clustering": "default",
    "active_slot": "a",
    "active_run": "",
    "previous_run": "",
    "changed_at": 0,
    "next_cluster": 0,
    "fence": 0,
    "lease_owner": "",
    "lease_run": "",
    "lease_expires": 0,
    "lease_ttl": 0,
    "rollback_request": "",
    "run_noise": 0,
    "run_confidence": 0,
    "previous_noise": 0,
    "previous_confidence": 0,
    "newcomers_clustered": 0,
    "newcomers_confidence": 0,
    "unsettled": False,
}
"""A new clustering as it is stored. Other versions read it: no key may change or go."""

CHANGED: Payload = {
    "active_slot": "b",
    "active_run": "r2",
    "previous_run": "r1",
    "changed_at": 1.5,
    "next_cluster": 7,
    "fence": 3,
    "lease_owner": "me",
    "lease_run": "r3",
    "lease_expires": 2.5,
    "lease_ttl": 30.0,
    "rollback_request": "q",
    "run_noise": 4,
    "run_confidence": 0.5,
    "previous_noise": 5,
    "previous_confidence": 0.25,
    "newcomers_clustered": 6,
    "newcomers_confidence": 3.5,
    "unsettled": True,
}

READ = State(
    "default",
    Pointer("b", "r2", "r1", 1.5, "q"),
    StoredLease(3, "me", "r3", 2.5, 30.0),
    DriftSums(4, 0.5, 5, 0.25, 6, 3.5),
    next_cluster=7,
    unsettled=True,
)


@pytest.fixture
def clusterings(room: Room) -> Clusterings:
    return Clusterings(room.store, room.name)


def stored(room: Room, key: str) -> Payload | None:
    (record,) = room.store.retrieve(records_name(room.name), [point_id(key)])
    return record.payload if record else None


# The state


def test_state_is_stored_under_the_keys_of_every_version(
    room: Room, clusterings: Clusterings
) -> None:
    """One flat object, in which a change of any part is a change of that part."""
    assert clusterings.ensure("default") == State("default")
    assert stored(room, "state/default") == STORED
    assert clusterings.compare_and_set("default", CHANGED) == READ
    assert clusterings.state("default") == READ
    assert clusterings.state() == READ
    assert stored(room, "state/default") == {**STORED, **CHANGED}


def test_state_of_another_version_is_read(room: Room, clusterings: Clusterings) -> None:
    """Keys that are missing have their defaults; unknown ones are passed over."""
    payload: Payload = {"kind": "clustering", "clustering": "default", "fence": 4, "new": [1]}
    room.store.upsert(records_name(room.name), [Point(point_id("state/default"), {}, payload)])
    assert clusterings.state() == State("default", lease=StoredLease(4))


def test_state_of_a_clustering_never_run_is_a_new_one(clusterings: Clusterings) -> None:
    """It needs no record; a collection that does not exist has no state."""
    assert clusterings.state("fine") == State("fine")
    with pytest.raises(InvalidArgument):
        clusterings.state("no name")
    with pytest.raises(NotFound, match="existing"):
        Clusterings(clusterings._store, "elsewhere").state()


def test_ensure_keeps_what_is_there(new_room: Room) -> None:
    """A new clustering gets slots that can be counted; one that is there is left alone."""
    clusterings = Clusterings(new_room.store, new_room.name)
    assert clusterings.ensure("fine") == State("fine")
    assert new_room.store.facet(new_room.name, "clusters.fine.b") == {}
    clusterings.compare_and_set("fine", {"fence": 9})
    assert clusterings.ensure("fine").lease.fence == 9
    with pytest.raises(InvalidArgument):
        clusterings.ensure("no name")


@pytest.mark.parametrize(
    ("expected", "where", "sets"),
    [
        ((), None, True),
        ((Equals("fence", 0), Equals("lease_owner", "")), None, True),
        ((Equals("fence", 1),), None, False),
        ((Equals("fence", 0), Equals("lease_owner", "x")), None, False),
        ((Equals("fence", 0),), Filter((Range("lease_expires", lt=1),)), True),
        ((Equals("fence", 0),), Filter((Range("lease_expires", gt=1),)), False),
    ],
)
def test_compare_and_set_needs_every_condition(
    new_room: Room, expected: tuple[Equals, ...], where: Filter | None, *, sets: bool
) -> None:
    """The change is made if all holds; either way the answer is the state afterwards."""
    clusterings = Clusterings(new_room.store, new_room.name)
    for name in ("default", "other"):
        clusterings.ensure(name)
    now = clusterings.compare_and_set("default", {"next_cluster": 5}, *expected, where=where)
    assert now.next_cluster == (5 if sets else 0)
    assert clusterings.state("default") == now
    assert clusterings.state("other").next_cluster == 0


def test_slots_follow_the_pointer() -> None:
    """The active slot and the other one, as payload fields of the clustering."""
    for active, other in (("a", "b"), ("b", "a")):
        state = State("fine", Pointer(active))
        assert state.pointer.inactive_slot == other
        assert state.active_field == f"clusters.fine.{active}"
        assert state.inactive_field == f"clusters.fine.{other}"


def test_lease_is_held_to_its_last_moment() -> None:
    """A lease without a run is nobody's, and one past its end is a dead run's."""
    assert StoredLease(run="r", expires=5.0).held(5.0)
    assert not StoredLease(run="r", expires=5.0).held(5.1)
    assert not StoredLease(owner="me", expires=5.0).held(1.0)


@pytest.mark.parametrize(
    ("payload", "cluster"),
    [
        ({"clusters": {"default": {"a": 3, "b": 4}}}, 3),
        ({"clusters": {"default": {"a": -1}}}, -1),
        ({"clusters": {"default": {"a": 0}}}, 0),
        ({"clusters": {"default": {"b": 4}}}, None),
        ({"clusters": {"default": {"a": "3"}}}, None),
        ({"clusters": {"default": 3}}, None),
        ({"clusters": {"other": {"a": 3}}}, None),
        ({"clusters": 3}, None),
        ({}, None),
    ],
)
def test_cluster_of_reads_one_slot(payload: Payload, cluster: int | None) -> None:
    """The id in the slot; None when there is none, or no id."""
    assert cluster_of(payload, "default", "a") == cluster


# Clusters and models


def record(cluster: int, **changes: Any) -> ClusterRecord:
    """A cluster whose values tell it apart from every other."""
    centroid = np.zeros(8, np.float32)
    centroid[cluster % 8] = 1.0
    lineage = {"kind": "born", "related": [cluster], "overlap": 0.5}
    given = {"name": f"c{cluster}", "lineage": lineage, **changes}
    return ClusterRecord(cluster, cluster * 10, cluster / 8, centroid, **given)


def put(clusterings: Clusterings, run: str, *ids: int, fence: int = 1, name: str = "fine") -> None:
    """Stores clusters and a model of a run."""
    clusterings.put_clusters(name, run, [record(i) for i in ids], vector="tiny", fence=fence)
    clusterings.put_model(name, run, f"model of {run}".encode(), fence=fence)


def same(found: ClusterRecord, expected: ClusterRecord) -> bool:
    assert found.centroid.dtype == np.float32
    assert found.centroid.flags.c_contiguous
    np.testing.assert_allclose(found.centroid, expected.centroid, atol=1e-6)
    fields = ("cluster", "size", "cohesion", "name", "lineage")
    return all(getattr(found, name) == getattr(expected, name) for name in fields)


def test_clusters_come_back_by_id(clusterings: Clusterings) -> None:
    """What was stored of one run, and of no other, by ascending id."""
    put(clusterings, "r1", 4, 1, 3)
    put(clusterings, "r2", 5)
    put(clusterings, "r1", 6, name="other")
    found = clusterings.clusters("fine", "r1")
    assert [c.cluster for c in found] == [1, 3, 4]
    assert all(same(c, record(c.cluster)) for c in found)
    assert clusterings.sizes("fine", "r1") == {1: 10, 3: 30, 4: 40}
    assert clusterings.count_clusters("fine", "r1") == 3
    assert clusterings.count_clusters("fine", "r3") == 0


def test_clusters_of_an_unknown_run_are_not_found(room: Room, clusterings: Clusterings) -> None:
    """The error names the clustering and the run."""
    with pytest.raises(NotFound, match=f"'fine' of '{room.name}' has no clusters of run 'r9'"):
        clusterings.clusters("fine", "r9")
    with pytest.raises(NotFound, match="'fine' has no clusters of run 'r9'"):
        clusterings.sizes("fine", "r9")


def test_clusters_name_their_vector(new_room: Room) -> None:
    """A run's vector is the one that its clusters name; the first one if there are none."""
    name = f"{new_room.name}-two"
    specs = [VectorInfo("one", 8, "a" * 64), VectorInfo("two", 8, "b" * 64)]
    new_room.store.create_collection(name, specs)
    try:
        clusterings = Clusterings(new_room.store, name)
        clusterings.put_clusters("default", "r1", [record(1)], vector="two", fence=1)
        assert clusterings.vector_name_of("default", "r1") == "two"
        assert clusterings.vector_name_of("default", "r2") == "one"
        (found,) = clusterings.clusters("default", "r1")
        assert same(found, record(1))
    finally:
        new_room.store.drop_collection(name)


@pytest.mark.parametrize("size", [0, 1, 384 * 1024, 384 * 1024 + 1, 900_000])
def test_model_of_any_size_comes_back(clusterings: Clusterings, size: int) -> None:
    """Also one that is stored in several pieces."""
    model = np.random.default_rng(size).bytes(size)
    clusterings.put_model("fine", "r1", b"another", fence=1)
    clusterings.put_model("fine", "r2", model, fence=1)
    clusterings.put_model("other", "r2", b"another", fence=1)
    assert clusterings.model("fine", "r2") == model


def test_dropping_clusters_keeps_the_runs_named_and_the_later_ones(
    clusterings: Clusterings,
) -> None:
    """Clusters and models of earlier fences go; those of a run that came since must stay."""
    for run, fence in (("r1", 1), ("r2", 2), ("r3", 3), ("r4", 4)):
        put(clusterings, run, 1, 2, fence=fence)
    put(clusterings, "r1", 1, fence=1, name="other")
    clusterings.put_run("r1", {"clustering": "fine", "created_at": 1.0, "fence": 1})
    clusterings.drop_clusters_except("fine", ["r2", ""], fence=3)
    left = [run for run in ("r1", "r2", "r3", "r4") if clusterings.count_clusters("fine", run)]
    assert left == ["r2", "r3", "r4"]
    assert [bool(clusterings.model("fine", f"r{n}")) for n in (1, 2, 3, 4)] == [False, *[True] * 3]
    assert clusterings.count_clusters("other", "r1") == 1
    assert clusterings.model("other", "r1")
    assert clusterings.run("r1")
    clusterings.drop_clusters_except("fine", (), fence=99)
    assert clusterings.count_clusters("fine", "r2") == 0


def test_records_without_a_fence_are_kept(room: Room, clusterings: Clusterings) -> None:
    """Nothing says that they are older than the run that drops."""
    strange = Point(point_id("strange"), {}, {"kind": "model", "clustering": "fine", "run": "r0"})
    room.store.upsert(records_name(room.name), [strange])
    put(clusterings, "r1", 1, fence=1)
    clusterings.drop_clusters_except("fine", (), fence=99)
    assert clusterings.count_clusters("fine", "r1") == 0
    assert room.store.retrieve(records_name(room.name), [strange.id]) != [None]


# Schedules and runs


def test_schedule_is_kept_until_it_is_removed(clusterings: Clusterings) -> None:
    """One per clustering; the last one counts."""
    assert clusterings.schedule("fine") is None
    for at in (5.0, 7.5):
        clusterings.put_schedule("fine", {"next_at": at, "cron": "x"})
    clusterings.put_schedule("other", {"next_at": 1.5})
    assert clusterings.schedule("fine") == {
        "next_at": 7.5,
        "cron": "x",
        "kind": "schedule",
        "clustering": "fine",
    }
    clusterings.put_schedule("fine", None)
    assert clusterings.schedule("fine") is None
    assert clusterings.schedule("other") is not None


def test_schedules_have_times(clusterings: Clusterings) -> None:
    """By name; records of other kinds are none."""
    for name, at in (("late", 9.5), ("now", 5.5), ("early", 2.5)):
        clusterings.put_schedule(name, {"next_at": at})
    clusterings.put_run("r1", {"clustering": "x", "created_at": 1.0, "next_at": 1.0})
    assert clusterings.schedule_times() == {"late": 9.5, "now": 5.5, "early": 2.5}


def test_schedule_moves_for_one_of_two_who_see_it_due(clusterings: Clusterings) -> None:
    """Only while its time is the one that was seen; others' schedules stay."""
    for name in ("fine", "other"):
        clusterings.put_schedule(name, {"next_at": 5.5, "last_run": ""})
    clusterings.move_schedule("fine", 5.5, {"next_at": 9.5, "last_run": "r1"})
    clusterings.move_schedule("fine", 5.5, {"next_at": 7.5, "last_run": "r2"})
    moved, other = clusterings.schedule("fine"), clusterings.schedule("other")
    assert moved is not None
    assert other is not None
    assert (moved["next_at"], moved["last_run"], other["next_at"]) == (9.5, "r1", 5.5)
    for seen in (9.4, 9.6):
        clusterings.move_schedule("fine", seen, {"last_run": "r3"})
    assert clusterings.schedule("fine") == moved


def test_runs_come_newest_first(clusterings: Clusterings) -> None:
    """Of all clusterings or of one; of two of one moment the lower id first."""
    for run, at, name in (("b", 2.5, "fine"), ("c", 3.5, "fine"), ("a", 2.5, "other")):
        clusterings.put_run(run, {"clustering": name, "created_at": at})
    clusterings.put_schedule("fine", {"next_at": 1.5})
    assert [run["run"] for run in clusterings.runs()] == ["c", "a", "b"]
    assert [run["run"] for run in clusterings.runs("fine")] == ["c", "b"]
    assert clusterings.run("a") == {
        "clustering": "other",
        "created_at": 2.5,
        "kind": "run",
        "run": "a",
    }


def test_runs_of_a_clock_that_was_wrong_are_the_oldest(clusterings: Clusterings) -> None:
    """Else a few runs of the future would push every later one out of the kept ones."""
    now = time.time()
    for run, at in (("future", now + 1e9), ("ahead", now + SKEW_S - 5), ("old", 1.5)):
        clusterings.put_run(run, {"clustering": "fine", "created_at": at})
    assert [run["run"] for run in clusterings.runs()] == ["ahead", "old", "future"]


def test_run_is_stored_anew_as_it_goes_on(clusterings: Clusterings) -> None:
    """The last record of a run counts."""
    for stage in ("fit", "write"):
        clusterings.put_run("a", {"clustering": "fine", "created_at": 1.5, "stage": stage})
    (run,) = clusterings.runs()
    assert run["stage"] == "write"


def test_dropped_runs_are_forgotten(room: Room, clusterings: Clusterings) -> None:
    """Those named, and no others; unknown ones are no matter."""
    for run in ("a", "b", "c"):
        clusterings.put_run(run, {"clustering": "fine", "created_at": 1.5})
    clusterings.drop_runs([])
    clusterings.drop_runs(["a", "c", "unknown"])
    assert [run["run"] for run in clusterings.runs()] == ["b"]
    with pytest.raises(NotFound, match=f"collection '{room.name}' has no run 'a'") as gone:
        clusterings.run("a")
    assert gone.value.metadata == {"run": "a"}


def test_runs_of_an_unknown_collection_are_not_found(room: Room) -> None:
    """The error names the collection, and not its records."""
    for call in (lambda c: c.runs(), lambda c: c.run("a")):
        with pytest.raises(NotFound, match="collection 'elsewhere' does not exist"):
            call(Clusterings(room.store, "elsewhere"))


def test_records_are_the_points_of_every_version(new_room: Room) -> None:
    """The ids are made of the names as ever: another version finds what this one stored."""
    clusterings = Clusterings(new_room.store, new_room.name)
    clusterings.ensure("fine")
    put(clusterings, "r", 1)
    clusterings.put_schedule("fine", {"next_at": 1.5})
    clusterings.put_run("r", {"clustering": "fine", "created_at": 1.5})
    expected = {
        "clustering": "45b64c4f-2383-5c97-a09d-4eb8f4a8a85c",
        "cluster": "78af1c80-e3a7-53e7-a424-c20eecedf17e",
        "model": "a1088bec-01ed-5b94-8a93-8f167badac9e",
        "schedule": "8f373b18-75eb-54ba-8868-6dcebec56910",
        "run": "619770e8-7e05-590d-b8c7-a1cf957b3647",
    }
    found = new_room.store.retrieve(records_name(new_room.name), list(expected.values()))
    assert [record and record.payload["kind"] for record in found] == list(expected)
