"""Where heads are kept, and the views that they are trained on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from made_heads import made_manifest
from PIL import Image

from clusterer.heads.augment import open_picture, random_view, to_file
from clusterer.heads.store import HeadManifest, HeadSeed, HeadStore
from clusterer.heads.views import ViewCache, drop_oldest, with_views
from shoal.errors import ArtefactError, EncoderMismatch, InvalidArgument, NotFound
from shoal.values import VectorInfo

SPEC = VectorInfo("toy", 3, "f" * 64)


def manifest(name: str = "h", graph: bytes = b"graph", *, made: float = 1.0) -> HeadManifest:
    return made_manifest(
        name,
        graph,
        SPEC,
        clusters=4,
        created_at=made,
        options={"seed": 1},
        metrics={"agreement": 0.5},
        terms=["total"],
        curves={"1": [[0.25]]},
    )


@pytest.fixture(params=["directory", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that is not there yet: a directory, and one of fsspec's."""
    return str(tmp_path / "heads") if request.param == "directory" else f"memory://{uuid.uuid4()}"


def test_a_head_is_found_by_name_id_and_hash(place: str) -> None:
    """The newest of a name; any by its id or the beginning of its hash."""
    store = HeadStore(place)
    assert store.manifests() == []
    old, new = manifest(made=1.0), manifest(made=2.0)
    for each in (new, old):
        assert store.put(each, b"graph") == each.id
    assert [each.id for each in store.manifests()] == [new.id, old.id]
    assert HeadStore(place).find("h") == new
    assert store.find(old.id) == old
    assert store.find(old.hash[:6]) == old
    assert store.graph(old) == b"graph"
    with pytest.raises(NotFound, match=f"'other'.*{new.id}, {old.id}"):
        store.find("other")


def test_a_damaged_head_is_named(tmp_path: Path) -> None:
    """A changed graph or manifest is never applied; half a head is not there."""
    store = HeadStore(tmp_path)
    made = manifest()
    store.put(made, b"graph")
    (tmp_path / "half-0000").mkdir()
    (tmp_path / "half-0000" / "head.onnx").write_bytes(b"graph")
    assert [each.id for each in store.manifests()] == [made.id]
    (tmp_path / made.id / "head.onnx").write_bytes(b"graph!")
    with pytest.raises(ArtefactError, match=r"head\.onnx: expected SHA-256"):
        store.graph(made)
    (tmp_path / made.id / "head.onnx").unlink()
    with pytest.raises(ArtefactError, match="cannot be read"):
        store.graph(made)
    file = tmp_path / made.id / "head.json"
    file.write_text(file.read_text().replace('"clusters": 4', '"clusters": 5'))
    for reference in (made.id, made.name, made.hash[:6]):
        with pytest.raises(ArtefactError, match="expected the manifest of this directory's head"):
            store.find(reference)
    file.write_text("{")
    with pytest.raises(ArtefactError, match="expected a head's manifest"):
        store.find(made.name)
    other = store.put(manifest("other"), b"graph")  # which is none the worse for it
    assert store.find("other").id == other
    whole, damaged = store.survey()
    assert ([each.id for each in whole], list(damaged)) == ([other], [made.id])


def test_heads_of_training_on_do_not_pile_up(place: str) -> None:
    """The newest few stay, with all that were trained from nothing and those of other names."""
    store = HeadStore(place)
    first = store.put(manifest(made=0.0), b"graph")
    retrained = [
        manifest(name, made=float(made)).model_copy(update={"parent": first})
        for made, name in enumerate(("h", "h", "other", "h", "h"), start=1)
    ]
    ids = [store.put(each, b"graph") for each in retrained]
    store.drop_retrained("h", keep=2)
    assert [each.id for each in store.manifests()] == [ids[4], ids[3], ids[2], first]
    store.put(retrained[0], b"graph")
    assert store.graph(store.find(ids[0])) == b"graph"
    store.drop_retrained("h", keep=2)
    with pytest.raises(ArtefactError, match="cannot be read"):
        store.graph(retrained[0])


def test_a_head_of_before_there_were_parents_keeps_its_id() -> None:
    """A field that is new says nothing of heads that were made without it."""
    made = manifest()
    said = json.loads(made.model_dump_json())
    del said["parent"], said["seeds"]
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
    assert made.hash == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert made.model_copy(update={"parent": "x-000000000000"}).hash != made.hash
    seed = HeadSeed(seed=1, agreement=0.5, cohesion=0.5, used=4, kept=True)
    assert made.model_copy(update={"seeds": [seed]}).hash != made.hash


def test_a_head_for_another_encoder_is_refused() -> None:
    """Same dimension, another fingerprint: both are named."""
    made = manifest()
    made.check(SPEC)
    with pytest.raises(EncoderMismatch, match=r"encoder toy \(ffffffffffff, 3-d\), got toy \(eeee"):
        made.check(VectorInfo("toy", 3, "e" * 64))


def test_names_and_places_that_cannot_be(tmp_path: Path) -> None:
    """Nothing is written under a name that would leave the place."""
    with pytest.raises(InvalidArgument, match=r"head name '\.\./x'"):
        HeadStore(tmp_path).put(manifest("../x"), b"graph")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidArgument, match="nosuch://x"):
        HeadStore("nosuch://x")


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_view_is_a_part_of_the_picture() -> None:
    """A crop keeps 0.4 to 0.9 of the area and the shape; half are not cropped; seeds decide."""
    whole = open_picture(picture(0))
    views = [random_view(whole, np.random.default_rng(seed)) for seed in range(200)]
    cropped = [view for view in views if view.size != whole.size]
    assert 70 <= len(cropped) <= 130
    for view in cropped:
        assert 0.35 <= view.width * view.height / (60 * 40) <= 0.95
        assert view.width / view.height == pytest.approx(1.5, abs=0.06)
    again = random_view(whole, np.random.default_rng(7))
    assert again.tobytes() == views[7].tobytes()
    assert open_picture(to_file(views[7])).size == views[7].size


def test_caches_of_views_are_bounded_together(tmp_path: Path) -> None:
    """The one that was used longest ago goes first, whichever was made first."""
    size = {"views": 2, "pictures": 100, "dim": 10}
    for name in ("one", "two", "three"):
        ViewCache(tmp_path / name, **size)
    for age, name in enumerate(("two", "three")):
        os.utime(tmp_path / name, (time.time() - 100 + age,) * 2)
    ViewCache(tmp_path / "two", **size)
    drop_oldest(list(tmp_path.iterdir()), most=20_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    drop_oldest(list(tmp_path.iterdir()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_views_are_made_once_and_go_on_after_a_kill(tmp_path: Path) -> None:
    """What was embedded stays; the same seed gives the same views; unreadable ones are left out."""
    pictures, views, dim = 70, 2, 3
    asked: list[int] = []

    def embed(files: Sequence[bytes]) -> list[np.ndarray]:
        asked.append(len(files))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [np.full(dim, sum(file) % 251, np.float32) for file in files]

    def read(row: int) -> bytes:
        if row == 5:
            raise NotFound("gone")
        return picture(row) if row != 6 else b"no picture"

    def cache(name: str) -> ViewCache:
        return ViewCache(tmp_path / name, views=views, pictures=pictures, dim=dim)

    def read_later(row: int) -> bytes:
        return picture(row)

    silent = {"seed": 3, "progress": lambda _done, _of: None}
    with pytest.raises(KeyboardInterrupt):
        cache("a").fill(read, embed, **silent)  # type: ignore[arg-type]
    found = cache("a").fill(read, embed, **silent)  # type: ignore[arg-type]
    assert asked == [30 * views, 32 * views, 30 * views, 8 * views]
    assert np.flatnonzero(~found.there).tolist() == [5, 6]
    whole = cache("b").fill(read, embed, **silent)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.vectors, whole.vectors)
    asked.clear()
    assert cache("b").fill(read_later, embed, **silent).there.all()  # type: ignore[arg-type]
    assert asked == [2 * views]  # only those that could not be had before
    base = np.arange(pictures * dim, dtype=np.float32).reshape(pictures, dim)
    every, rows = with_views(base, found)
    assert every.shape == ((views + 1) * 68, dim)
    np.testing.assert_array_equal(every[:68], base[rows])
    np.testing.assert_array_equal(every[68 : 2 * 68], found.vectors[0][rows])
    with pytest.raises(InvalidArgument, match="expected views of shape"):
        ViewCache(tmp_path / "a", views=3, pictures=pictures, dim=dim)
    with pytest.raises(InvalidArgument, match="at most 8 GiB"):
        ViewCache(tmp_path / "c", views=16, pictures=10**6, dim=1280)
