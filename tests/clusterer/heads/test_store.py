"""The place of heads: what is found there, what is damaged, what is removed."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from made_heads import made_manifest

from clusterer.heads.store import HeadManifest, HeadSeed, HeadStore, check_name
from shoal.errors import ArtefactError, ConfigError, EncoderMismatch, InvalidArgument, NotFound
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


def test_heads_of_a_clock_that_was_wrong_are_the_oldest(place: str) -> None:
    """Else no later head of the name would be found, and each would make room at once."""
    store = HeadStore(place)
    old, new, future = (manifest(made=at) for at in (1.0, time.time(), time.time() + 1e9))
    for each in (old, future, new):
        store.put(each, b"graph")
    assert [each.id for each in store.manifests()] == [new.id, old.id, future.id]
    assert store.find("h") == new


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


def test_files_beside_a_head_outlive_it(tmp_path: Path) -> None:
    """A head that makes room goes alone: a directory with somebody's notes stays with them."""
    store = HeadStore(tmp_path)
    for made, notes in enumerate((True, False, False), start=1):
        head = manifest("h", made=float(made)).model_copy(update={"parent": "x"})
        place = tmp_path / store.put(head, b"graph")
        if notes:
            (place / "notes.txt").write_text("theirs")
    store.drop_retrained("h", keep=1)
    kept = {file.name for each in tmp_path.iterdir() for file in each.iterdir()}
    assert (len(list(tmp_path.iterdir())), kept) == (2, {"notes.txt", "head.onnx", "head.json"})
    assert len(store.manifests()) == 1


def test_no_place_is_refused() -> None:
    """An empty text is no place of heads: it would be the working directory."""
    with pytest.raises(InvalidArgument, match="got an empty text"):
        HeadStore("")


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


def test_a_hash_may_be_shortened_to_four_digits(place: str) -> None:
    """Fewer digits are no hash; a beginning that two heads share names both."""
    store = HeadStore(place)
    seen: dict[str, HeadManifest] = {}
    made = 0
    while True:  # by the birthday paradox some three hundred
        made += 1
        new = manifest(made=float(made))
        if new.hash[:4] in seen:
            break
        seen[new.hash[:4]] = new
    twin = seen[new.hash[:4]]
    store.put(twin, b"graph")
    assert store.find(twin.hash[:4]) == twin
    with pytest.raises(NotFound):
        store.find(twin.hash[:3])
    store.put(new, b"graph")
    with pytest.raises(InvalidArgument, match="expected one head, got") as refused:
        store.find(new.hash[:4])
    assert twin.id in refused.value.message
    assert new.id in refused.value.message
    assert store.find(new.hash) == new


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file where the directory would be: the head is not kept, and the setting is named."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/heads cannot be written"):
        HeadStore(tmp_path / "file" / "heads").put(manifest(), b"graph")


@pytest.mark.parametrize("name", ["a", "a" * 64, "0", "a_b.c-d"])
def test_names_that_can_be(name: str) -> None:
    """1 to 64 letters, digits and signs, the first one no sign."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a" * 65, "A", ".a", "-a", "_a", "a/b", "a b", "a\n"])
def test_names_that_cannot_be(name: str) -> None:
    """They would leave the place, or not be found by their names."""
    with pytest.raises(InvalidArgument, match="head name"):
        check_name(name)


def test_a_head_is_for_vectors_of_its_dimension() -> None:
    """The same fingerprint with another number of components is another encoder."""
    with pytest.raises(EncoderMismatch, match=r"3-d.*got toy .*4-d"):
        manifest().check(replace(SPEC, dim=4))
    manifest().check(replace(SPEC, name="renamed"))
