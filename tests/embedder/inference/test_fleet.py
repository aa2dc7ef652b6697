"""Several encoders in one server: mixes, one decode for all, loading and unloading."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from encoders import NAME, mixed_encoder, other_encoder
from PIL import Image
from prometheus_client import REGISTRY
from timed_encoder import Timed

from embedder.config import EmbedderConfig
from embedder.encoding.artefact import Artefact, bundled_artefact, load_any_artefact
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import RuntimeConfig
from embedder.flow.batching import Patience
from embedder.images import decoding
from embedder.inference.fleet import Fleet, _EncoderState, _run_size
from shoal import vectors
from shoal.errors import (
    ArtefactError,
    ConfigError,
    EncoderMismatch,
    ImageCorrupt,
    ImageInvalid,
    NotFound,
    OperatorError,
    SelfTestFailed,
    ServiceUnavailable,
    Unrecoverable,
    Unsupported,
)
from shoal.store import point_id
from shoal.v1 import embedder_pb2

STORED = embedder_pb2.INGEST_STATUS_STORED

pytestmark = pytest.mark.usefixtures("shared_sessions")


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


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


def test_mix_is_the_parts_vectors_side_by_side(others: Any, images: Any) -> None:
    """A mix's vector is its parts' unit vectors, concatenated and scaled to length 1."""

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, encoders=others)
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
    decode = decoding.decode_for

    def counting(data: bytes, **options: Any) -> Any:
        decoded.append(len(options["specs"]))
        return decode(data, **options)

    monkeypatch.setattr(decoding, "decode_for", counting)

    async def scenario() -> None:
        async with running(EmbedderConfig(run_size=1, encoders=others)) as fleet:
            await fleet.embed(images.flower, (NAME, "near", "mix"), Patience())

    asyncio.run(scenario())
    assert decoded == [4]


def test_an_encoder_makes_the_vectors_that_it_made_before_its_matte(others: Any) -> None:
    """Alone, beside others and as a mix; what it never made is refused."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((250, 200, 0, 255), (20, 10, 40, 60))
    out, flat = io.BytesIO(), io.BytesIO()
    image.save(out, "PNG")
    image.convert("RGB").save(flat, "PNG")

    async def scenario() -> None:
        async with running(EmbedderConfig(run_size=1, encoders=others)) as fleet:
            before = {a.name: a.before_matte.fingerprint for a in fleet.artefacts}
            for names in ((NAME,), ("mix",), (NAME, "mix")):
                given = {name: before[name] for name in names}
                now, old, dropped = [
                    await fleet.embed(each.getvalue(), names, Patience(), fingerprints=prints)
                    for each, prints in ((out, None), (out, given), (flat, given))
                ]
                for name in names:
                    np.testing.assert_allclose(old[name], dropped[name], atol=1e-6)
                    assert now[name] @ old[name] < 0.99
            mixed = await fleet.embed(
                out.getvalue(), (NAME, "near"), Patience(), fingerprints={NAME: before[NAME]}
            )
            assert mixed[NAME] @ old[NAME] > 0.9999
            assert mixed["near"] @ mixed[NAME] < 0.99
            assert fleet.as_made(NAME, "") is fleet.artefact(NAME)
            assert fleet.as_made(NAME, fleet.artefact(NAME).fingerprint) is fleet.artefact(NAME)
            with pytest.raises(EncoderMismatch, match=r"is another \(") as caught:
                fleet.as_made(NAME, before["mix"])
            assert caught.value.metadata["encoder"] == NAME
            with pytest.raises(NotFound):
                fleet.as_made("gone", "")

    asyncio.run(scenario())


def test_an_encoder_that_loads_longer_than_anybody_waits_is_loaded_once(
    others: Any, images: Any
) -> None:
    """Callers whose patience ends do not end the loading, nor does the next begin another."""
    opened: list[str] = []
    go = threading.Event()

    def slowly(artefact: Artefact, runtime: RuntimeConfig) -> Encoder:
        opened.append(artefact.name)
        if artefact.name == "near":
            go.wait(30)
        return Encoder.of(artefact, runtime)

    async def scenario() -> None:
        async with running(
            EmbedderConfig(run_size=1, encoders=others), open_encoder=slowly
        ) as fleet:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await fleet.embed(images.china, ("near",), Patience())
            go.set()
            await fleet.embed(images.china, ("near",), Patience())

    asyncio.run(scenario())
    assert opened == [NAME, "near"]


def test_encoders_are_opened_when_asked_for_and_closed_when_idle(others: Any, images: Any) -> None:
    """The default one is open from the start and for good; another while it is used."""
    opened: list[str] = []

    def opening(artefact: Artefact, runtime: RuntimeConfig) -> Encoder:
        opened.append(artefact.name)
        return Encoder.of(artefact, runtime)

    def loaded() -> float | None:
        return REGISTRY.get_sample_value(
            "shoal_embedder_encoder_loaded",
            {"encoder": "near", "provider": "CPUExecutionProvider"},
        )

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, encoders=others, idle_encoder_s=0.2)
        async with running(config, open_encoder=opening) as fleet:
            assert opened == [NAME]
            together = (fleet.embed(images.china, ("near",), Patience()) for _ in range(8))
            first, *rest = await asyncio.gather(*together)
            assert opened == [NAME, "near"]
            await until(lambda: not fleet.is_open("near"))
            assert loaded() == 0
            assert fleet.is_open(NAME)
            again = await fleet.embed(images.china, ("near",), Patience())
            assert opened == [NAME, "near", "near"]
            assert loaded() == 1
            for each in (*rest, again):
                np.testing.assert_allclose(each["near"], first["near"], atol=1e-5)

    asyncio.run(scenario())


def test_encoder_in_use_is_not_closed(others: Any, images: Any) -> None:
    """An encoder that works for longer than the idle time answers all the same."""

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, encoders=others, idle_encoder_s=0.05)
        async with running(config) as fleet, fleet.use("near") as held:
            await fleet.embed(images.china, ("mix",), Patience())
            async with asyncio.timeout(30):  # it was used later, and nobody holds it
                while fleet.is_open("mix"):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)
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
        config = EmbedderConfig(run_size=1, encoders=others)
        async with running(config, open_encoder=opening) as fleet:
            with pytest.raises(OperatorError):
                await fleet.embed(images.china, (NAME, "near"), Patience())
            assert NAME in await fleet.embed(images.china, (NAME,), Patience())
            assert "near" in await fleet.embed(images.china, ("near",), Patience())

    asyncio.run(scenario())


def test_bad_image_fails_alone_for_all_encoders(others: Any, images: Any) -> None:
    """An image that does not decode is one error, whoever else was to look at it."""

    async def scenario() -> None:
        async with running(EmbedderConfig(run_size=1, encoders=others)) as fleet:
            with pytest.raises(ImageCorrupt):
                await fleet.embed(images.truncated, (NAME, "near"), Patience())

    asyncio.run(scenario())


def test_closed_fleet_opens_nothing(others: Any, images: Any) -> None:
    """After the close, an encoder that was not loaded is refused, and so is one that was."""

    async def scenario() -> None:
        async with running(EmbedderConfig(run_size=1, encoders=others)) as fleet:
            pass
        for names in (("near",), (NAME,), (NAME, "near")):
            with pytest.raises(ServiceUnavailable):
                await fleet.embed(images.china, names, Patience())
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_fleet_that_closes_while_an_encoder_opens_keeps_none(others: Any, images: Any) -> None:
    """An encoder that finishes opening after the close is not put to work."""
    going, go_on = threading.Event(), threading.Event()

    def slowly(artefact: Artefact, runtime: RuntimeConfig) -> Encoder:
        if artefact.name == "near":
            going.set()
            go_on.wait(30)
        return Encoder.of(artefact, runtime)

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, encoders=others)
        async with running(config, open_encoder=slowly) as fleet:
            late = asyncio.create_task(fleet.embed(images.china, ("near",), Patience()))
            await asyncio.to_thread(going.wait)
        go_on.set()
        with pytest.raises(ServiceUnavailable):
            await late
        assert not fleet.is_open("near")

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
        async with serve(EmbedderConfig(run_size=1, encoders=others)) as served:
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
        async with serve(EmbedderConfig(run_size=1, encoders=others)) as served:
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
        async with serve(EmbedderConfig(run_size=1, encoders=others[:2])) as served:
            code, message = await failing(served, encoders=["gone"])
            assert (code, message) == (
                "NOT_FOUND",
                "no encoder 'gone': this server has efficientnet-lite0, near",
            )
            await served.ingest(served.request(images.china, encoders=["near"]))
            specs = served.store.collection("photos").vectors
            code, _ = await failing(served, encoders=[NAME])
            assert code == "FAILED_PRECONDITION"
        async with serve() as served:
            served.store.create_collection("photos", specs)
            code, message = await failing(served)
            assert code == "FAILED_PRECONDITION"
            assert "was made with encoder 'near'" in message

    asyncio.run(scenario())


def test_get_info_tells_of_every_encoder(others: Any, images: Any, serve: Any) -> None:
    """All encoders are told, the default first, with what is loaded and what a mix is made of."""

    async def scenario() -> None:
        async with serve(EmbedderConfig(run_size=1, encoders=others)) as served:
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


def test_an_encoder_that_does_not_load_is_logged(
    others: Any, images: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asked for it may be gone by then; a server that shuts down has nothing to say."""
    go = threading.Event()

    def failing(artefact: Artefact, runtime: RuntimeConfig) -> Encoder:
        if artefact.name == "near":
            assert go.wait(30)
            raise SelfTestFailed("no memory")
        return Encoder.of(artefact, runtime)

    def logged() -> list[tuple[str, Any]]:
        errors = [record for record in caplog.records if record.levelname == "ERROR"]
        return [(record.getMessage(), getattr(record, "encoder", None)) for record in errors]

    async def scenario() -> None:
        config = EmbedderConfig(run_size=1, encoders=others)
        async with running(config, open_encoder=failing) as fleet:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await fleet.embed(images.china, ("near",), Patience())
            assert logged() == []
            go.set()
            await until(logged)
            assert logged() == [("encoder not loaded: no memory", "near")]
            go.clear()
            late = asyncio.create_task(fleet.embed(images.china, ("near",), Patience()))
            await asyncio.sleep(0)
        go.set()
        with pytest.raises(OperatorError):
            await late

    asyncio.run(scenario())
    assert len(logged()) == 1


def test_a_run_size_is_measured_once_for_each_encoder(others: Any) -> None:
    """When it is first opened; after that the encoder opens faster, and runs as it did."""
    opened: list[Timed] = []

    def timed(artefact: Artefact, _runtime: RuntimeConfig) -> Any:
        opened.append(Timed(lambda size: 0.01 + 0.001 * size))
        opened[-1].name = artefact.name
        return opened[-1]

    async def scenario() -> None:
        config = EmbedderConfig(encoders=others, idle_encoder_s=0.02, max_batch=4)
        async with running(config, open_encoder=timed) as fleet:
            async with fleet.use("near") as pipeline:
                assert 1 <= pipeline.run_size <= 4
                first = pipeline.run_size
            await until(lambda: not fleet.is_open("near"))
            async with fleet.use("near") as pipeline:
                assert pipeline.run_size == first

    asyncio.run(scenario())
    assert [encoder.name for encoder in opened] == [NAME, "near", "near"]
    assert [bool(encoder.runs) for encoder in opened] == [True, True, False]


def test_an_encoder_that_may_hang_is_not_closed(others: Any) -> None:
    """Closing it would wait for ever, and health would not tell any more that it hangs."""
    closed: list[str] = []

    def idle(name: str, *, error: Exception | None = None) -> _EncoderState:
        def check() -> None:
            if error is not None:
                raise error

        async def close() -> None:
            closed.append(name)

        encoder = SimpleNamespace(name=name, provider="CPUExecutionProvider")
        pipeline = SimpleNamespace(check=check, close=close, encoder=encoder)
        return _EncoderState(None, pipeline)  # type: ignore[arg-type]

    async def scenario() -> None:
        fleet = Fleet(EmbedderConfig(encoders=others, idle_encoder_s=0.01))
        used = idle("used")
        used.users = 1
        fleet._encoders = {
            "default": idle("default"),
            "ill": idle("ill", error=OperatorError("ill")),
            "used": used,
            "idle": idle("idle"),
        }
        closing = asyncio.create_task(fleet._close_idle())
        await until(lambda: not fleet.is_open("idle"))
        await asyncio.sleep(0.05)
        closing.cancel()
        assert [name for name in fleet._encoders if fleet.is_open(name)] == [
            "default",
            "ill",
            "used",
        ]

    asyncio.run(scenario())
    assert closed == ["idle"]


def test_check_looks_at_every_encoder_and_tells_the_worst(others: Any) -> None:
    """One that is wrong hides none that is lost, whichever comes first."""
    looked: list[str] = []

    def ill(name: str, error: Exception) -> Any:
        def check() -> None:
            looked.append(name)
            raise error

        return SimpleNamespace(check=check)

    fleet = Fleet(EmbedderConfig(encoders=others))
    fleet.check()
    fleet._encoders = {
        "wrong": _EncoderState(None, ill("wrong", RuntimeError("wrong"))),  # type: ignore[arg-type]
        "lost": _EncoderState(None, ill("lost", Unrecoverable("lost"))),  # type: ignore[arg-type]
        "late": _EncoderState(None, ill("late", OperatorError("late"))),  # type: ignore[arg-type]
    }
    with pytest.raises(Unrecoverable):
        fleet.check()
    assert looked == ["wrong", "lost", "late"]


def test_text_needs_a_text_tower(others: Any) -> None:
    """Without any text tower, and by an encoder without one, a text is refused."""

    async def scenario() -> None:
        async with running(EmbedderConfig(run_size=1, encoders=others)) as fleet:
            for name in ("", "near", "mix"):
                with pytest.raises(Unsupported, match="has no text tower"):
                    fleet.with_text(name)
            with pytest.raises(NotFound):
                fleet.with_text("gone")

    asyncio.run(scenario())


def test_a_text_goes_to_the_first_encoder_that_has_a_text_tower() -> None:
    """Unless it names one; the default one need not be it, and a mix has none."""

    def artefact(name: str, *texts: str | None) -> Any:
        parts = [SimpleNamespace(manifest=SimpleNamespace(text=text)) for text in texts]
        return SimpleNamespace(name=name, parts=parts)

    fleet = Fleet(EmbedderConfig())
    artefacts = [
        artefact("images", None),
        artefact("mix", "text", "text"),
        artefact("first", "text"),
        artefact("second", "text"),
    ]
    fleet._encoders = {each.name: _EncoderState(each) for each in artefacts}
    assert fleet.default == "images"
    assert fleet.artefact("").name == "images"
    assert fleet.with_text("").name == "first"
    assert fleet.with_text("second").name == "second"
    for name in ("images", "mix"):
        with pytest.raises(Unsupported, match=f"encoder {name} has no text tower"):
            fleet.with_text(name)


def test_a_gpu_sees_every_size_before_a_caller_does() -> None:
    """All the sizes that batches are filled up to, and then it takes all of a batch at once."""
    encoder = Timed(lambda _: 0.01)
    config = EmbedderConfig(runtime=RuntimeConfig(provider="tensorrt"), max_batch=4)
    assert _run_size(encoder, config) == 4  # type: ignore[arg-type]
    assert encoder.runs == [1, 2, 4]


def test_pipeline_runs_the_model_in_pieces_of_the_run_size(images: Any) -> None:
    """A worker's batch is run in pieces, with answers in order and bad images alone in failing."""
    ran: list[int] = []

    class Watching(Encoder):
        def embed(self, pixels: Any) -> Any:
            ran.append(len(pixels[0]))
            return super().embed(pixels)

    async def scenario() -> None:
        config = EmbedderConfig(run_size=2, inference_workers=1)
        async with running(config, open_encoder=Watching.of) as fleet:
            ran.clear()
            data = [*images.digits[:3], images.text, *images.digits[3:6], images.truncated]
            answers = await asyncio.gather(
                *(fleet.embed(each, (NAME,), Patience()) for each in data), return_exceptions=True
            )
            assert max(ran) == 2
            assert sum(ran) == 6
            for each, answer in zip(data, answers, strict=True):
                if each in (images.text, images.truncated):
                    assert isinstance(answer, ImageInvalid)
                    continue
                alone = await fleet.embed(each, (NAME,), Patience())
                assert isinstance(answer, dict)
                np.testing.assert_allclose(answer[NAME], alone[NAME], atol=1e-5)

    asyncio.run(scenario())
