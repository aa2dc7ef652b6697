"""A backfill in Spark makes the points that the embedder's service makes of the same images."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import other_encoder
from PIL import Image
from serving import serving

from embedder.config import EmbedderConfig
from embedder.service import EmbedderService
from shoal.app.jobs.backfill import Backfill, Done, ingest_on
from shoal.client import Client, IngestOutcome, IngestStatus
from shoal.errors import EncoderMismatch
from shoal.sources import LeftOut, SourceConfig, read_items
from shoal.spark.cluster import SparkCluster
from shoal.store import Record, Scan, Store, StoreConfig, arrival

ENCODER = "efficientnet-lite0"
CONFIG = SourceConfig(source="cam", payload={"year": 2024})
BUNDLED = EmbedderConfig()


def picture(seed: int) -> bytes:
    """A small JPEG of coloured noise, blurred by its scaling."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((96, 72)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A directory with a broken file in it, a manifest and a tar: 6 + 1 + 8 + 3 images."""
    root = tmp_path_factory.mktemp("photos")
    (root / "some").mkdir()
    for i in range(6):
        (root / "some" / f"{i}.jpg").write_bytes(picture(i))
    (root / "some" / "broken.jpg").write_bytes(picture(6)[:200])
    (root / "some" / "notes.txt").write_text("no image")
    lines = []
    for i in range(8):
        (root / f"listed-{i}.jpg").write_bytes(picture(10 + i))
        lines.append({"path": f"listed-{i}.jpg", "key": f"sku-{i}", "payload": {"i": i}})
    (root / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with tarfile.open(root / "more.tar", "w") as tar:
        for i in range(3):
            data = picture(20 + i)
            member = tarfile.TarInfo(f"{i}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        tar.addfile(tarfile.TarInfo(".hidden"))
    return (str(root / "some"), str(root / "list.jsonl"), str(root / "more.tar"))


@pytest.fixture
def collection(store: Store) -> Iterator[str]:
    """A name; what is made of it is dropped."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    if name in {one.name for one in store.collections()}:
        store.drop_collection(name)


def backfill(place: StoreConfig, collection: str, embedder: EmbedderConfig = BUNDLED) -> Backfill:
    source = dataclasses.replace(CONFIG, left_out=LeftOut())
    return Backfill(place, collection, (), embedder, source)


def ingest(spark: SparkCluster, paths: tuple[str, ...], what: Backfill) -> Done:
    """What all tasks did together, and what was left out here."""
    total = Done()
    for one in ingest_on(spark, paths, what, on_progress=lambda _done, _of: None):
        total.counts.update(one.counts)
        total.failures += one.failures
        total.left_out.update(one.left_out)
    total.left_out.update(what.source.left_out)
    return total


def points(store: Store, collection: str) -> dict[str, Record]:
    ids = [one for block in store.scan(collection, Scan()) for one in block.ids]
    found = store.retrieve(collection, ids, vectors=[ENCODER])
    return {record.id: record for record in found if record}


def timeless(record: Record) -> dict[str, Any]:
    """The payload, but for the time at which it was stored, which is in it twice."""
    payload = dict(record.payload)
    at = payload.pop("ingested_at")
    assert payload.pop("clusters") == arrival(at)["clusters"]
    return payload


def test_points_are_those_of_the_service(
    store: Store,
    place: StoreConfig,
    spark: SparkCluster,
    photos: tuple[str, ...],
    collection: str,
) -> None:
    """The same ids, payloads and vectors; a bad image costs only itself; a second time, nothing."""
    done = ingest(spark, photos, backfill(place, collection))
    assert done.counts == Counter({IngestStatus.STORED: 17, IngestStatus.FAILED: 1})
    (failed,) = done.failures
    assert failed.failure is not None
    assert (Path(failed.name).name, failed.failure.reason) == ("broken.jpg", "IMAGE_CORRUPT")
    assert done.left_out.counts == {"not_an_image": 1, "hidden": 1}

    theirs = f"{collection}-served"
    try:
        with (
            serving(lambda: [EmbedderService(EmbedderConfig(), store)]) as served,
            Client(served.address) as client,
        ):
            items = read_items(photos, CONFIG, stdin=io.BytesIO())
            outcomes = list(client.ingest(items, collection=theirs))
        assert sum(one.status is IngestStatus.STORED for one in outcomes) == 17
        mine, expected = points(store, collection), points(store, theirs)
    finally:
        store.drop_collection(theirs)
    assert mine.keys() == expected.keys()
    for one, record in mine.items():
        other = expected[one]
        assert timeless(record) == timeless(other)
        assert np.abs(record.vectors[ENCODER] - other.vectors[ENCODER]).max() <= 1e-5

    again = ingest(spark, photos, backfill(place, collection))
    assert again.counts == Counter({IngestStatus.UNCHANGED: 17, IngestStatus.FAILED: 1})
    assert {one: r.payload for one, r in points(store, collection).items()} == {
        one: r.payload for one, r in mine.items()
    }


def test_encoder_is_sent_to_the_executors_and_never_mixed(  # noqa: PLR0913, PLR0917 - fixtures
    store: Store,
    place: StoreConfig,
    spark: SparkCluster,
    photos: tuple[str, ...],
    collection: str,
    tmp_path: Path,
) -> None:
    """An artefact need not lie where executors are; its fingerprint is the collection's."""
    directory = other_encoder(tmp_path / "another", name="another")
    what = backfill(place, collection, EmbedderConfig(encoders=(directory,)))
    done = ingest(spark, photos[2:], what)
    assert done.counts == Counter({IngestStatus.STORED: 3})
    assert [spec.name for spec in store.collection(collection).vectors] == ["another"]
    with pytest.raises(EncoderMismatch):
        ingest(spark, photos[2:], backfill(place, collection))


def test_tasks_grow_in_number_and_not_in_size() -> None:
    """However many images there are, a task is half an hour's work at most."""
    from shoal.app.jobs.backfill import _task_count  # noqa: PLC0415
    from shoal.sources.parts import Part  # noqa: PLC0415

    files = [Part("files", ("x",), ("x",))] * 5000
    ranges = [Part("manifest", ("m",))] * 700
    assert _task_count(files[:100], 16) == 16
    assert _task_count(files, 16) == 50
    assert _task_count([*files, *ranges], 16) == 700


def test_a_directory_that_cannot_be_listed_is_one_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of its neighbours is there, as with the local engine."""
    from shoal.sources import parts  # noqa: PLC0415

    def walk(
        directory: Path, *, on_error: Callable[[OSError], object], left_out: LeftOut
    ) -> Iterator[Path]:
        assert not left_out.total
        yield directory / "a.jpg"
        on_error(PermissionError(13, "Permission denied", str(directory / "locked")))

    monkeypatch.setattr(parts, "walk", walk)
    found = list(parts.split([str(tmp_path)], least=1, left_out=LeftOut()))
    assert [part.kind for part in found] == ["files", "unreadable"]
    (failure,) = parts.read_part(found[1], SourceConfig())
    assert isinstance(failure, IngestOutcome)
    assert failure.name == str(tmp_path / "locked")
    assert failure.failure is not None
    assert "cannot be read: Permission denied" in failure.failure.message


def test_manifest_in_many_ranges_loses_no_line(tmp_path: Path) -> None:
    """However a manifest is cut, each of its lines is in exactly one part."""
    from shoal.sources.parts import Part, read_part  # noqa: PLC0415

    manifest = tmp_path / "list.jsonl"
    uris = [f"https://example.org/{'x' * (i % 7)}{i}.jpg" for i in range(50)]
    manifest.write_text("\n".join(json.dumps({"uri": uri}) for uri in uris))
    size = manifest.stat().st_size
    for step in (1, 7, 64, 1000, size):
        found = [
            item.uri  # type: ignore[union-attr]
            for start in range(0, size, step)
            for item in read_part(
                Part("manifest", (str(manifest),), start=start, end=min(size, start + step)),
                SourceConfig(),
            )
        ]
        assert found == uris
