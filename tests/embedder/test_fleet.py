"""Several encoders in one server: mixes, one decode for all, loading and unloading."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import NAME, mixed_encoder, other_encoder

from embedder import fleet as fleet_module
from embedder.artefact import Artefact, bundled_artefact, load_any_artefact
from embedder.config import EmbedderConfig
from embedder.encoder import Encoder
from embedder.fleet import Fleet
from embedder.pipeline import Patience
from embedder.runtime import RuntimeConfig
from shoal import vectors
from shoal.errors import (
    ArtefactError,
    ConfigError,
    ImageCorrupt,
    NotFound,
    OperatorError,
    SelfTestFailed,
    ServiceUnavailable,
    Unsupported,
)
from shoal.store import point_id
from shoal.v1 import embedder_pb2

STORED = embedder_pb2.INGEST_STATUS_STORED


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Three artefacts: the bundled one, one that crops less, and the mix of both."""
    root = tmp_path_factory.mktemp("encoders")
    near = other_encoder(root / "near", name="near", resize=300)
    return bundled_artefact(), near, mixed_encoder(root / "mix", [bundled_artefact(), near])


@asynccontextmanager
async def running(config: EmbedderConfig, **options: Any) -> AsyncIterator[Fleet]:
    fleet = Fleet(config, **options)
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.close()


def test_mix_is_the_parts_vectors_side_by_side(others: Any, images: Any) -> None:
    """A mix's vector is its parts' unit vectors, concatenated and scaled to length 1."""

    async def scenario() -> None:
        config = EmbedderConfig(encoders=others)
        async with running(config) as fleet:
            found = await fleet.embed(images.china, (NAME, "near", "mix"), Patience())
            alone = await fleet.embed(images.china, ("mix",), Patience())
        whole = np.concatenate([found[NAME], found["near"]]) / np.sqrt(2)
        np.testing.assert_allclose(found["mix"], whole, atol=1e-6)
        np.testing.assert_allclose(alone["mix"], whole, atol=1e-6)
        assert found[NAME] @ found["near"] < 0.999, "the parts must differ for this to say much"

    asyncio.run(scenario())


def test_embed_decodes_an_image_once_for_all_encoders(
    others: Any, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many encoders look at an image, its bytes are decoded once."""
    decoded: list[int] = []
    decode = fleet_module.decode_for

    def counting(data: bytes, **options: Any) -> Any:
        decoded.append(len(options["specs"]))
        return decode(data, **options)

    monkeypatch.setattr(fleet_module, "decode_for", counting)

    async def scenario() -> None:
        async with running(EmbedderConfig(encoders=others)) as fleet:
            await fleet.embed(images.flower, (NAME, "near", "mix"), Patience())

    asyncio.run(scenario())
    assert decoded == [4]


def test_encoders_are_opened_when_asked_for_and_closed_when_idle(others: Any, images: Any) -> None:
    """The default one is open from the start and for good; another while it is used."""
    opened: list[str] = []

    def opening(artefact: Artefact, runtime: RuntimeConfig) -> Encoder:
        opened.append(artefact.name)
        return Encoder.of(artefact, runtime)

    async def scenario() -> None:
        config = EmbedderConfig(encoders=others, idle_encoder_s=0.2)
        async with running(config, open_encoder=opening) as fleet:
            assert opened == [NAME]
            together = (fleet.embed(images.china, ("near",), Patience()) for _ in range(8))
            first, *rest = await asyncio.gather(*together)
            assert opened == [NAME, "near"]
            async with asyncio.timeout(30):
                while fleet.is_open("near"):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)
            assert fleet.is_open(NAME)
            again = await fleet.embed(images.china, ("near",), Patience())
            assert opened == [NAME, "near", "near"]
            for each in (*rest, again):
                np.testing.assert_allclose(each["near"], first["near"], atol=1e-5)

    asyncio.run(scenario())


def test_encoder_in_use_is_not_closed(others: Any, images: Any) -> None:
    """An encoder that works for longer than the idle time answers all the same."""

    async def scenario() -> None:
        config = EmbedderConfig(encoders=others, idle_encoder_s=0.05)
        async with running(config) as fleet, fleet.use("near") as held:
            await asyncio.sleep(0.2)
            assert fleet.is_open("near")
            found = await fleet.embed(images.china, ("near",), Patience())
            assert held.encoder.name == "near"
            vectors.check_unit(found["near"], 1280)

    asyncio.run(scenario())


def test_encoder_that_cannot_be_opened_fails_its_calls_and_no_others(
    others: Any, images: Any
) -> None:
    """A model that does not load is tried again by the next call; the default one serves on."""
    attempts: list[str] = []

    def opening(artefact: Artefact, runtime: RuntimeConfig) -> Encoder:
        attempts.append(artefact.name)
        if attempts == [NAME, "near"]:
            msg = "no memory"
            raise SelfTestFailed(msg)
        return Encoder.of(artefact, runtime)

    async def scenario() -> None:
        config = EmbedderConfig(encoders=others)
        async with running(config, open_encoder=opening) as fleet:
            with pytest.raises(OperatorError):
                await fleet.embed(images.china, (NAME, "near"), Patience())
            assert NAME in await fleet.embed(images.china, (NAME,), Patience())
            assert "near" in await fleet.embed(images.china, ("near",), Patience())

    asyncio.run(scenario())


def test_bad_image_fails_alone_for_all_encoders(others: Any, images: Any) -> None:
    """An image that does not decode is one error, whoever else was to look at it."""

    async def scenario() -> None:
        async with running(EmbedderConfig(encoders=others)) as fleet:
            with pytest.raises(ImageCorrupt):
                await fleet.embed(images.truncated, (NAME, "near"), Patience())

    asyncio.run(scenario())


def test_closed_fleet_opens_nothing(others: Any, images: Any) -> None:
    """After the close, an encoder that was not loaded is refused, not loaded."""

    async def scenario() -> None:
        async with running(EmbedderConfig(encoders=others)) as fleet:
            pass
        with pytest.raises(ServiceUnavailable):
            await fleet.embed(images.china, ("near",), Patience())

    asyncio.run(scenario())


def test_two_encoders_of_one_name_are_refused(tmp_path: Path) -> None:
    """A name says which vector of a collection is meant, so a server has it once."""
    other = other_encoder(tmp_path / "other")

    async def scenario() -> None:
        with pytest.raises(ConfigError, match=r"both called 'efficientnet-lite0'"):
            await Fleet(EmbedderConfig(encoders=(bundled_artefact(), other))).start()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dim": 2559}, "dim"),
        ({"fingerprint": "0" * 64}, "fingerprint"),
        ({"parts": ["near"]}, "parts"),
        ({"parts": ["near", "near"]}, "(whole file)"),
        ({"parts": ["near", "../near"]}, "parts.1"),
        ({"extra": 1}, "extra"),
    ],
)
def test_damaged_mix_is_refused(
    others: Any, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    """Every field of a mix is checked, and its parts as artefacts of their own."""
    mix = mixed_encoder(tmp_path / "mix", others[:2])
    file = mix / "encoder.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ArtefactError) as caught:
        load_any_artefact(mix)
    assert caught.value.metadata["field"] == field


def test_damaged_part_of_a_mix_is_refused(others: Any, tmp_path: Path) -> None:
    """One flipped byte in a part's weights is found, by the name of the part's file."""
    mix = mixed_encoder(tmp_path / "mix", others[:2])
    weights = mix / "near" / "image.onnx"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"near/image\.onnx: sha256"):
        load_any_artefact(mix)


def test_ingest_fills_the_vectors_that_were_asked_for(others: Any, images: Any, serve: Any) -> None:
    """A stream names the encoders of a new collection; a later one need not name them again."""

    async def scenario() -> None:
        async with serve(EmbedderConfig(encoders=others)) as served:
            request = served.request(images.china, key="china", encoders=[NAME, "mix"])
            (answer,) = await served.ingest(request)
            assert answer.result.status == STORED
            (answer,) = await served.ingest(served.request(images.flower, key="flower"))
            assert answer.result.status == STORED
            names = [spec.name for spec in served.store.collection("photos").vectors]
            assert names == [NAME, "mix"]
            china, flower = served.store.retrieve(
                "photos", [point_id("china"), point_id("flower")], vectors=names
            )
            for record, data in ((china, images.china), (flower, images.flower)):
                for name in names:
                    (result,) = (await served.embed(data, encoder=name)).results
                    sent = vectors.decode(result.vector.values, result.vector.dim)
                    np.testing.assert_allclose(record.vectors[name], sent, atol=1e-5)

    asyncio.run(scenario())


def test_ingest_into_a_collection_of_one_encoder_uses_that_one(
    others: Any, images: Any, serve: Any
) -> None:
    """A collection keeps its own encoder, whatever the server's first one is."""

    async def scenario() -> None:
        async with serve(EmbedderConfig(encoders=others)) as served:
            await served.ingest(served.request(images.china, encoders=["near"]))
            (answer,) = await served.ingest(served.request(images.flower))
            assert answer.result.status == STORED
            assert [s.name for s in served.store.collection("photos").vectors] == ["near"]

    asyncio.run(scenario())


def test_ingest_refuses_encoders_that_do_not_fit(others: Any, images: Any, serve: Any) -> None:
    """An unknown encoder, and one that the collection has no vector of, end the stream."""

    async def failing(served: Any, **fields: Any) -> Any:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - gRPC's error, told apart below
            await served.ingest(served.request(images.china, **fields))
        return caught.value.code().name, caught.value.details()

    async def scenario() -> None:
        async with serve(EmbedderConfig(encoders=others[:2])) as served:
            code, message = await failing(served, encoders=["gone"])
            assert (code, message) == (
                "NOT_FOUND",
                "no encoder 'gone': this server has efficientnet-lite0, near",
            )
            await served.ingest(served.request(images.china, encoders=["near"]))
            code, _ = await failing(served, encoders=[NAME])
            assert code == "FAILED_PRECONDITION"
        async with serve(EmbedderConfig()) as served:
            code, message = await failing(served)
            assert code == "FAILED_PRECONDITION"
            assert "was made with encoder 'near'" in message

    asyncio.run(scenario())


def test_get_info_tells_of_every_encoder(others: Any, images: Any, serve: Any) -> None:
    """All encoders are told, the default first, with what is loaded and what a mix is made of."""

    async def scenario() -> None:
        async with serve(EmbedderConfig(encoders=others)) as served:
            info = await served.stub.GetInfo(embedder_pb2.GetInfoRequest())
            told = [(e.name, e.dim, e.loaded, list(e.parts)) for e in info.encoders]
            assert told == [
                (NAME, 1280, True, []),
                ("near", 1280, False, []),
                ("mix", 2560, False, [NAME, "near"]),
            ]
            assert {e.provider for e in info.encoders} == {"CPUExecutionProvider"}
            await served.embed(images.china, encoder="near")
            info = await served.stub.GetInfo(embedder_pb2.GetInfoRequest())
            assert [e.loaded for e in info.encoders] == [True, True, False]

    asyncio.run(scenario())


def test_text_needs_a_text_tower(others: Any) -> None:
    """Without any text tower, and by an encoder without one, a text is refused."""

    async def scenario() -> None:
        async with running(EmbedderConfig(encoders=others)) as fleet:
            for name in ("", "near", "mix"):
                with pytest.raises(Unsupported, match="has no text tower"):
                    fleet.with_text(name)
            with pytest.raises(NotFound):
                fleet.with_text("gone")

    asyncio.run(scenario())
