"""After an unclean stop the embedded store compares its payload indexes with its payloads."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import qdrant_edge as edge

from shoal.errors import StoreUnavailable
from shoal.store import (
    EVERYWHERE,
    Equals,
    Filter,
    IdIn,
    Payload,
    Point,
    Scan,
    Store,
    StoreConfig,
    VectorInfo,
    open_store,
    point_id,
)
from shoal.store.edge_check import Disagreement, disagreements, rebuild_index

TINY = VectorInfo("tiny", 8, "ab" * 32)
SLOT = "clusters.default.a"


@pytest.fixture
def root(quick_path: Path) -> Path:
    return quick_path / "store"


@pytest.fixture
def place(root: Path) -> Path:
    """The directory of the collection ``photos``, with five points, closed."""
    with open_store(StoreConfig(path=root)) as store:
        store.create_collection("photos", [TINY])
        vector = np.eye(8, dtype=np.float32)[0]
        store.upsert(
            "photos",
            [
                Point(
                    point_id(str(i)),
                    {"tiny": vector},
                    {"source": "up", "ingested_at": float(i), "tags": ["x"], "ok": True}
                    | ({"clusters": {"default": {"a": i % 2}}} if i else {}),
                )
                for i in range(5)
            ],
        )
    return root / "collections" / "photos"


def set_at(store: Store, key: int, payload: Payload, *, inside: str | None = None) -> None:
    """Sets fields of one point, or of the object ``inside``."""
    where = Filter((IdIn((point_id(str(key)),)),))
    store.set_payload("photos", payload, where=where, key=inside)


def swap(store: Store) -> None:
    """Exchanges the clusters of two points: each cluster has as many points as before."""
    set_at(store, 1, {"a": 0}, inside="clusters.default")
    set_at(store, 2, {"a": 1}, inside="clusters.default")


def lose_in_payload(place: Path, act: Callable[[Store], object]) -> None:
    """Runs ``act``, and takes it back in the payloads alone, as a kill beside a flush may."""
    (payloads,) = place.glob("shard/segments/*/payload_storage")
    saved = place.parent.parent / "saved"
    shutil.copytree(payloads, saved)
    with open_store(StoreConfig(path=place.parent.parent)) as store:
        act(store)
    shutil.rmtree(payloads)
    saved.rename(payloads)


@pytest.fixture
def load(place: Path) -> Iterator[Callable[[], edge.EdgeShard]]:
    """Opens the shard of ``place``; closed at the end."""
    opened: list[edge.EdgeShard] = []

    def open_it() -> edge.EdgeShard:
        opened.append(edge.EdgeShard.load(str(place / "shard")))
        return opened[-1]

    yield open_it
    for each in opened:
        each.close()


def test_whole_store_has_no_disagreement(load: Callable[[], edge.EdgeShard]) -> None:
    """Points without a field, booleans, lists and floats are no disagreement."""
    assert disagreements(load()) == []


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (swap, Disagreement(SLOT, 4, 4, 2)),
        (lambda s: set_at(s, 0, {"a": 7}, inside="clusters.default"), Disagreement(SLOT, 4, 5, 1)),
        (lambda s: set_at(s, 1, {"source": "down"}), Disagreement("source", 5, 5, 2)),
        (
            lambda s: s.delete_fields("photos", ["source"], where=EVERYWHERE),
            Disagreement("source", 5, 0, 1),
        ),
        (lambda s: set_at(s, 0, {"ingested_at": 3.5}), Disagreement("ingested_at", 5, 5, 3)),
        (lambda s: set_at(s, 4, {"ingested_at": None}), Disagreement("ingested_at", 5, 4, 0)),
    ],
)
def test_disagreement_is_found_and_mended(
    place: Path,
    load: Callable[[], edge.EdgeShard],
    act: Callable[[Store], object],
    found: Disagreement,
) -> None:
    """Values that moved, came, changed or went are found by field; a new index agrees."""
    lose_in_payload(place, act)
    shard = load()
    assert disagreements(shard) == [found]
    kinds = {name: str(info.data_type) for name, info in shard.info().payload_schema.items()}
    rebuild_index(shard, found.field)
    assert disagreements(shard) == []
    again = {name: str(info.data_type) for name, info in shard.info().payload_schema.items()}
    assert again == kinds


def test_pages_are_put_together(
    load: Callable[[], edge.EdgeShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection of several pages is read to its end."""
    monkeypatch.setattr("shoal.store.edge_check._PAGE", 2)
    assert disagreements(load()) == []


def checked(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    """The collections that were checked, and the number of indexes that disagreed."""
    found = [
        (vars(record)["collection"], vars(record)["disagreed"])
        for record in caplog.records
        if record.message == "indexes checked after an unclean stop"
    ]
    caplog.clear()
    return found


def test_check_comes_after_an_unclean_stop_only(
    root: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each collection that was open is checked once, when it is opened; others are not."""
    caplog.set_level(logging.INFO)
    assert not (place / "unwritten").exists()
    lose_in_payload(place, swap)
    with open_store(StoreConfig(path=root)) as store:
        store.count("photos")
        assert checked(caplog) == []

    (place / "unwritten").touch()  # as a killed process leaves it
    with open_store(StoreConfig(path=root)) as store:
        assert checked(caplog) == []  # not before somebody needs it
        assert store.facet("photos", SLOT) == {0: 2, 1: 2}
        (warning,) = (r for r in caplog.records if r.levelname == "WARNING")
        told = {"collection": "photos", "field": SLOT, "in_payload": 4, "in_index": 4, "wrong": 2}
        assert told.items() <= vars(warning).items()
        assert checked(caplog) == [("photos", 1)]
        store.flush()
        assert not (place / "unwritten").exists()
        where = Filter((Equals(SLOT, 1),))
        blocks = list(store.scan("photos", Scan(where=where)))
        assert [p["clusters"] for block in blocks for p in block.payloads] == [
            {"default": {"a": 1}}
        ] * 2
    with open_store(StoreConfig(path=root)) as store:
        store.count("photos")
        assert checked(caplog) == []


@pytest.mark.usefixtures("place")
def test_store_of_an_earlier_version_is_checked_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It did not note which collections were open, so any of them may have been."""
    caplog.set_level(logging.INFO)
    (root / "shoal.json").unlink()
    for expected in ([("photos", 0)], []):
        with open_store(StoreConfig(path=root)) as store:
            store.count("photos")
        assert checked(caplog) == expected


def test_check_that_fails_is_repeated(
    root: Path, place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection is usable, and the next opening checks it."""
    caplog.set_level(logging.INFO)
    (place / "unwritten").touch()

    def fail(_: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patched:
        patched.setattr("shoal.store.edge_shard.disagreements", fail)
        with open_store(StoreConfig(path=root)) as store:
            assert store.count("photos") == 5
    assert "not checked" in caplog.text
    assert (place / "unwritten").exists()
    with open_store(StoreConfig(path=root)) as store:
        assert store.count("photos") == 5
    assert checked(caplog) == [("photos", 0)]


def test_writes_that_are_not_written_out_are_noted(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first write to the next flush; on disk before the engine writes; not for reads."""
    note, synced = place / "unwritten", list[Path]()
    monkeypatch.setattr("shoal.store.edge_files.sync", synced.append)
    with open_store(StoreConfig(path=root)) as store:
        for _ in range(2):
            store.count("photos")
            assert not note.exists()
            synced.clear()
            set_at(store, 1, {"tags": ["y"]})
            set_at(store, 2, {"tags": ["y"]})
            assert (note.exists(), synced) == (True, [place])
            store.flush()
            assert not note.exists()
        set_at(store, 1, {"tags": ["z"]})
    assert not note.exists()


def test_write_that_fails_is_noted_too(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log may have it; the next flush writes it out."""
    note = place / "unwritten"
    with open_store(StoreConfig(path=root)) as store:
        store.count("photos")
        shard = store._session._backend.engine._shards["photos"]  # type: ignore[attr-defined]
        whole, seen = shard.engine, list[bool]()

        def fail(_: object) -> None:
            seen.append(note.exists())
            raise Exception("no")  # noqa: TRY002 - as the engine does

        with monkeypatch.context() as patched:
            patched.setattr(shard, "engine", SimpleNamespace(update=fail, flush=whole.flush))
            with pytest.raises(StoreUnavailable):
                set_at(store, 1, {"tags": ["y"]})
            assert seen == [True]
            assert note.exists()
            store.flush()
            assert not note.exists()
