"""The encoders of one server: what there is, opened when needed, closed when idle.

The first one is the default: it is opened at the start, and stays. Every artefact is verified at
the start; the others' sessions are opened by the first call that asks for them, and closed when
nobody has for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TypeAlias

from embedder import metrics
from embedder.config import EmbedderConfig
from embedder.encoding.artefact import Artefact, bundled_artefact, load_any_artefact
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import PROVIDERS, RuntimeConfig
from embedder.encoding.tuning import best_run_size, warm_up
from embedder.flow.batching import Patience
from embedder.images.decoding import Decoder
from embedder.pipeline import Picture, Pipeline, Vector
from shoal.errors import (
    ConfigError,
    NotFound,
    ServiceUnavailable,
    Unrecoverable,
    Unsupported,
)

_LOG = logging.getLogger(__name__)

OpenEncoder: TypeAlias = Callable[[Artefact, RuntimeConfig], Encoder]

_LOOKS_PER_IDLE = 4
"""How often in the time that makes an encoder idle it is looked for."""


@dataclass(slots=True)
class _Berth:
    """One encoder's place: its artefact, and its pipeline while it is open."""

    artefact: Artefact
    pipeline: Pipeline | None = None
    opening: asyncio.Task[Pipeline] | None = None
    """Of all who ask meanwhile, and of none of them: a model may take longer than anybody waits."""
    users: int = 0
    used_at: float = 0.0
    run_size: int = 0
    """Measured when it was first opened."""


class Fleet:
    """Images and texts to vectors, by the encoders of a server."""

    def __init__(self, config: EmbedderConfig, *, open_encoder: OpenEncoder = Encoder.of) -> None:
        """Prepare; ``start`` begins."""
        self._config = config
        self._open_encoder = open_encoder
        self._decoder = Decoder(config.limits, threads=config.decoders)
        self._berths: dict[str, _Berth] = {}
        self._reaper: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Verify every artefact and open the default encoder.

        Raises:
            ConfigError, ArtefactError, SelfTestFailed: an encoder cannot serve.
        """
        for directory in self._config.encoders or (bundled_artefact(),):
            artefact = await asyncio.to_thread(load_any_artefact, directory)
            if artefact.name in self._berths:
                other = self._berths[artefact.name].artefact.directory
                msg = (
                    f"encoders: {directory} and {other} are both called {artefact.name!r}: "
                    "expected different names"
                )
                raise ConfigError(msg, field="encoders")
            self._berths[artefact.name] = _Berth(artefact)
        async with self.use(self.default):
            pass
        self._decoder.start()
        if len(self._berths) > 1:
            self._reaper = asyncio.create_task(self._close_idle(), name="idle-encoders")

    async def close(self) -> None:
        """Answer what waits, then give up threads and sessions."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        open_ones = [b.pipeline for b in self._berths.values() if b.pipeline is not None]
        await asyncio.gather(self._decoder.close(), *(pipeline.close() for pipeline in open_ones))

    @property
    def default(self) -> str:
        """The name of the encoder that a request means which names none."""
        return next(iter(self._berths))

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """What there is, the default first."""
        return tuple(berth.artefact for berth in self._berths.values())

    def artefact(self, name: str) -> Artefact:
        """The encoder called ``name`` (the default for an empty name), or NotFound."""
        berth = self._berths.get(name or self.default)
        if berth is None:
            known = ", ".join(self._berths)
            msg = f"no encoder {name!r}: this server has {known}"
            raise NotFound(msg, encoder=name)
        return berth.artefact

    def with_text(self, name: str) -> Artefact:
        """The encoder called ``name``, or the first with a text tower for an empty name.

        Raises:
            NotFound: there is none of this name.
            Unsupported: it, or none of them, has a text tower.
        """
        if not name:
            name = next((a.name for a in self.artefacts if has_text(a)), self.default)
        artefact = self.artefact(name)
        if not has_text(artefact):
            msg = f"encoder {artefact.name} has no text tower: it embeds images only"
            raise Unsupported(msg, encoder=artefact.name)
        return artefact

    def provider(self, name: str) -> str:
        """The execution provider of an encoder: in use, or to be used once it is opened."""
        pipeline = self._berths[name].pipeline
        if pipeline is not None:
            return pipeline.encoder.provider
        return PROVIDERS[self._config.runtime.provider]

    def is_open(self, name: str) -> bool:
        """Whether the encoder ``name`` is loaded now."""
        return self._berths[name].pipeline is not None

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Pipeline]:
        """The open pipeline of the encoder ``name``, which stays open meanwhile.

        Raises:
            ConfigError, ArtefactError, SelfTestFailed: it cannot be opened.
            ServiceUnavailable: the server is shutting down.
        """
        berth = self._berths[name]
        berth.users += 1
        try:
            yield berth.pipeline or await self._opened(berth)
        finally:
            berth.users -= 1
            berth.used_at = asyncio.get_running_loop().time()

    async def _opened(self, berth: _Berth) -> Pipeline:
        """The pipeline once it is open; who stops waiting for it does not stop that."""
        self._check_open()
        if berth.opening is None:
            berth.opening = asyncio.create_task(
                self._open(berth), name=f"open {berth.artefact.name}"
            )
            berth.opening.add_done_callback(partial(self._log_failure, berth.artefact.name))
        return await asyncio.shield(berth.opening)

    async def _open(self, berth: _Berth) -> Pipeline:
        try:
            berth.pipeline = await self._make(berth)
            berth.used_at = asyncio.get_running_loop().time()
            return berth.pipeline
        finally:
            berth.opening = None

    def _log_failure(self, name: str, opening: asyncio.Task[Pipeline]) -> None:
        """Whoever waits is told too, but nobody may wait any more."""
        if opening.cancelled() or (error := opening.exception()) is None or self._closed:
            return
        _LOG.error("encoder not loaded: %s", error, extra={"encoder": name})

    async def _make(self, berth: _Berth) -> Pipeline:
        config = self._config
        encoder = await asyncio.to_thread(self._open_encoder, berth.artefact, config.runtime)
        if not berth.run_size:
            berth.run_size = await asyncio.to_thread(_run_size, encoder, config)
        self._check_open()  # opening takes seconds
        pipeline = Pipeline(encoder, config, self._decoder, run_size=berth.run_size)
        pipeline.start()
        metrics.LOADED.labels(encoder.name, encoder.provider).set(1)
        facts = {
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint,
            "provider": encoder.provider,
            "run_size": berth.run_size,
        }
        _LOG.info("encoder loaded", extra=facts)
        return pipeline

    def _check_open(self) -> None:
        if self._closed:
            msg = "the embedder is shutting down"
            raise ServiceUnavailable(msg)

    async def embed(
        self, data: bytes, names: Sequence[str], patience: Patience
    ) -> dict[str, Vector]:
        """The vector (D,) of an encoded image by each of ``names``, from one decode.

        Raises:
            ImageInvalid: the bytes are not an image within the limits.
            DeadlineExceeded: its turn came too late.
            OperatorError: a model failed on it.
            ServiceUnavailable: the service is shutting down.
        """
        if len(names) == 1:
            (name,) = names
            async with self.use(name) as pipeline:
                picture: Picture = data
                if not pipeline.decodes:
                    specs = pipeline.encoder.preprocessings
                    picture = await self._decoder.decode_in_turn(data, specs, patience)
                return {name: await pipeline.embed(picture, patience)}
        async with AsyncExitStack() as stack:
            pipelines = [await stack.enter_async_context(self.use(name)) for name in names]
            of_each = [pipeline.encoder.preprocessings for pipeline in pipelines]
            pixels = await self._decoder.decode_in_turn(
                data, tuple(chain.from_iterable(of_each)), patience
            )
            rest = iter(pixels)
            shares = [tuple(islice(rest, len(of_one))) for of_one in of_each]
            found = await asyncio.gather(
                *(
                    pipeline.embed(share, patience)
                    for pipeline, share in zip(pipelines, shares, strict=True)
                )
            )
            return dict(zip(names, found, strict=True))

    async def embed_text(self, text: str, name: str, patience: Patience) -> Vector:
        """The vector (D,) of ``text`` by the encoder ``name``; raises as ``embed``."""
        async with self.use(name) as pipeline:
            return await pipeline.embed_text(text, patience)

    def check(self) -> None:
        """Return if every open encoder gave its reference vectors when it was last asked.

        Raises:
            SelfTestFailed, OperatorError: one did not, or does not answer.
            Unrecoverable: one has been wrong for long, or a run of it does not end.
        """
        found = list[Exception]()
        for berth in self._berths.values():
            try:
                if berth.pipeline is not None:
                    berth.pipeline.check()
            except Exception as exc:  # noqa: BLE001 - the others are to be looked at too
                found.append(exc)
        if found:
            raise min(found, key=lambda exc: not isinstance(exc, Unrecoverable))

    async def _close_idle(self) -> None:
        """Closes encoders, but the default one, that nobody has used for a while."""
        loop = asyncio.get_running_loop()
        idle_s = self._config.idle_encoder_s
        while True:
            await asyncio.sleep(idle_s / _LOOKS_PER_IDLE)
            for name, berth in self._berths.items():
                pipeline = berth.pipeline
                idle = berth.users == 0 and loop.time() - berth.used_at >= idle_s
                if pipeline is None or name == self.default or not idle or _is_ill(pipeline):
                    continue
                berth.pipeline = None  # whoever comes now opens another
                metrics.LOADED.labels(name, pipeline.encoder.provider).set(0)
                _LOG.info("encoder unloaded", extra={"encoder": name, "idle_s": idle_s})
                await pipeline.close()


def _is_ill(pipeline: Pipeline) -> bool:
    """Whether a model may hang: closing it would then never end, and hide that it does."""
    try:
        pipeline.check()
    except Exception:  # noqa: BLE001 - whatever its self-test raised
        return True
    return False


def _run_size(encoder: Encoder, config: EmbedderConfig) -> int:
    if not config.runtime.on_cpu:
        warm_up(encoder, config.runtime, most=config.run_size or config.batch)
    if config.run_size or not config.runtime.on_cpu:
        return config.run_size or config.batch
    return best_run_size(encoder, workers=config.inferences, most=config.batch)


def has_text(artefact: Artefact) -> bool:
    """Whether an encoder embeds texts too."""
    return len(artefact.parts) == 1 and artefact.parts[0].manifest.text is not None
