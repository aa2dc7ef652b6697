"""The encoders of one server: opened when they are needed, closed when they are idle.

Every artefact is verified at the start. The first encoder is the default: it is opened at the
start, and stays open. Another one is opened by the first call that asks for it, and closed when no
call has asked for it for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
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
from embedder.inference.pipeline import Pipeline, Vector
from shoal.errors import (
    ConfigError,
    EncoderMismatch,
    NotFound,
    ServiceUnavailable,
    Unrecoverable,
    Unsupported,
)

_LOG = logging.getLogger(__name__)

OpenEncoder: TypeAlias = Callable[[Artefact, RuntimeConfig], Encoder]

_LOOKS_PER_IDLE = 4
"""The fleet looks for idle encoders this often in the time after which one is idle."""


@dataclass(slots=True)
class _EncoderState:
    """What the fleet knows of one encoder: its artefact, and its pipeline while it is open."""

    artefact: Artefact
    pipeline: Pipeline | None = None
    opening: asyncio.Task[Pipeline] | None = None
    """Opens the pipeline for all callers that ask meanwhile. It belongs to none of them, since a
    model may take longer to load than any caller waits."""
    users: int = 0
    used_at: float = 0.0
    run_size: int = 0
    """Images of one run of the model, measured when the encoder was first opened; 0 until then."""
    before_matte: Artefact | None = None
    """The artefact as it was before it had a matte, once a caller has asked for its vectors."""


class Fleet:
    """Turns images and texts into vectors, with the encoders of a server."""

    def __init__(self, config: EmbedderConfig, *, open_encoder: OpenEncoder = Encoder.of) -> None:
        """Prepares; ``start`` begins."""
        self._config = config
        self._open_encoder = open_encoder
        self._decoder = Decoder(config.limits, threads=config.decoders, memory=config.decode_memory)
        self._encoders: dict[str, _EncoderState] = {}
        self._idle_closer: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Verifies every artefact and opens the default encoder.

        Raises:
            ConfigError, ArtefactError, SelfTestFailed: an encoder cannot serve.
        """
        for directory in self._config.encoders or (bundled_artefact(),):
            artefact = await asyncio.to_thread(load_any_artefact, directory)
            if artefact.name in self._encoders:
                other = self._encoders[artefact.name].artefact.directory
                msg = (
                    f"encoders: {directory} and {other} are both called {artefact.name!r}: "
                    "expected different names"
                )
                raise ConfigError(msg, field="encoders")
            self._encoders[artefact.name] = _EncoderState(artefact)
        async with self.use(self.default):
            pass
        self._decoder.start()
        if len(self._encoders) > 1:
            self._idle_closer = asyncio.create_task(self._close_idle(), name="idle-encoders")

    async def close(self) -> None:
        """Answers the items that wait, then gives up threads and sessions."""
        self._closed = True
        if self._idle_closer is not None:
            self._idle_closer.cancel()
            await asyncio.gather(self._idle_closer, return_exceptions=True)
        pipelines = [s.pipeline for s in self._encoders.values() if s.pipeline is not None]
        await asyncio.gather(self._decoder.close(), *(pipeline.close() for pipeline in pipelines))

    @property
    def default(self) -> str:
        """The name of the default encoder: a request that names none means this one."""
        return next(iter(self._encoders))

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """The artefacts of all encoders, the default first."""
        return tuple(state.artefact for state in self._encoders.values())

    def artefact(self, name: str) -> Artefact:
        """The encoder called ``name`` (the default for an empty name), or NotFound."""
        state = self._encoders.get(name or self.default)
        if state is None:
            known = ", ".join(self._encoders)
            msg = f"no encoder {name!r}: this server has {known}"
            raise NotFound(msg, encoder=name)
        return state.artefact

    def as_made(self, name: str, fingerprint: str) -> Artefact:
        """The encoder called ``name`` as it makes vectors of ``fingerprint``; empty: as it is now.

        An encoder with a matte also makes the vectors that it made before it had one.

        Raises:
            NotFound: there is no encoder of this name.
            EncoderMismatch: the encoder makes other vectors.
        """
        artefact = self.artefact(name)
        if fingerprint in ("", artefact.fingerprint):
            return artefact
        state = self._encoders[artefact.name]
        if state.before_matte is None:
            state.before_matte = artefact.before_matte
        if fingerprint == state.before_matte.fingerprint:
            return state.before_matte
        msg = (
            f"this server's encoder {artefact.name!r} is another ({artefact.fingerprint[:12]}) "
            f"than the one asked for ({fingerprint[:12]})"
        )
        raise EncoderMismatch(msg, encoder=artefact.name)

    def with_text(self, name: str) -> Artefact:
        """The encoder called ``name``, or the first with a text tower for an empty name.

        Raises:
            NotFound: there is no encoder of this name.
            Unsupported: the encoder, or every one of them, has no text tower.
        """
        if not name:
            name = next((a.name for a in self.artefacts if has_text(a)), self.default)
        artefact = self.artefact(name)
        if not has_text(artefact):
            msg = f"encoder {artefact.name} has no text tower: it embeds images only"
            raise Unsupported(msg, encoder=artefact.name)
        return artefact

    def provider(self, name: str) -> str:
        """The execution provider that an encoder uses, or will use once it is opened."""
        pipeline = self._encoders[name].pipeline
        if pipeline is not None:
            return pipeline.encoder.provider
        return PROVIDERS[self._config.runtime.provider]

    def is_open(self, name: str) -> bool:
        """Whether the encoder ``name`` is loaded now."""
        return self._encoders[name].pipeline is not None

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Pipeline]:
        """The open pipeline of the encoder ``name``, which stays open inside the block.

        Raises:
            ConfigError, ArtefactError, SelfTestFailed: it cannot be opened.
            ServiceUnavailable: the server is shutting down.
        """
        state = self._encoders[name]
        state.users += 1
        try:
            yield state.pipeline or await self._wait_until_open(state)
        finally:
            state.users -= 1
            state.used_at = asyncio.get_running_loop().time()

    async def _wait_until_open(self, state: _EncoderState) -> Pipeline:
        """The pipeline once it is open; a caller that stops waiting does not stop the opening."""
        self._check_not_closed()
        if state.opening is None:
            name = state.artefact.name
            state.opening = asyncio.create_task(self._open(state), name=f"open {name}")
            state.opening.add_done_callback(partial(self._log_failure, name))
        return await asyncio.shield(state.opening)

    async def _open(self, state: _EncoderState) -> Pipeline:
        try:
            state.pipeline = await self._load_pipeline(state)
            state.used_at = asyncio.get_running_loop().time()
            return state.pipeline
        finally:
            state.opening = None

    def _log_failure(self, name: str, opening: asyncio.Task[Pipeline]) -> None:
        """Logs why an encoder did not open: no caller may be left that waits for the error."""
        if opening.cancelled() or (error := opening.exception()) is None or self._closed:
            return
        _LOG.error("encoder not loaded: %s", error, extra={"encoder": name})

    async def _load_pipeline(self, state: _EncoderState) -> Pipeline:
        config = self._config
        encoder = await asyncio.to_thread(self._open_encoder, state.artefact, config.runtime)
        if not state.run_size:
            state.run_size = await asyncio.to_thread(_run_size, encoder, config)
        self._check_not_closed()  # opening takes seconds
        pipeline = Pipeline(encoder, config, self._decoder, run_size=state.run_size)
        pipeline.start()
        metrics.LOADED.labels(encoder.name, encoder.provider).set(1)
        facts = {
            "encoder": encoder.name,
            "fingerprint": encoder.fingerprint,
            "provider": encoder.provider,
            "run_size": state.run_size,
        }
        _LOG.info("encoder loaded", extra=facts)
        return pipeline

    def _check_not_closed(self) -> None:
        if self._closed:
            msg = "the embedder is shutting down"
            raise ServiceUnavailable(msg)

    async def embed(
        self,
        data: bytes,
        names: Sequence[str],
        patience: Patience,
        *,
        fingerprints: Mapping[str, str] | None = None,
    ) -> dict[str, Vector]:
        """The vector (D,) of an encoded image by each of ``names``, from one decode.

        ``fingerprints`` of the vectors that are wanted, by encoder; by default what it makes now.

        Raises:
            ImageInvalid: the bytes are not an image within the limits.
            DeadlineExceeded: its turn came too late.
            OperatorError: a model failed on it.
            ServiceUnavailable: the service is shutting down.
            EncoderMismatch: an encoder makes vectors of other fingerprints.
        """
        wanted = [self.as_made(name, (fingerprints or {}).get(name, "")) for name in names]
        if len(names) == 1 and wanted[0] is self.artefact(names[0]):
            (name,) = names
            async with self.use(name) as pipeline:
                return {name: await pipeline.embed(data, patience)}
        async with AsyncExitStack() as stack:
            pipelines = [await stack.enter_async_context(self.use(name)) for name in names]
            specs = [
                tuple(part.manifest.preprocessing for part in artefact.parts) for artefact in wanted
            ]
            pixels = iter(
                await self._decoder.decode_in_turn(
                    data, tuple(chain.from_iterable(specs)), patience
                )
            )
            vectors = await asyncio.gather(
                *(
                    pipeline.embed_pixels(tuple(islice(pixels, len(own_specs))), patience)
                    for pipeline, own_specs in zip(pipelines, specs, strict=True)
                )
            )
            return dict(zip(names, vectors, strict=True))

    def slow_ms(self, data: bytes) -> float:
        """How long a slow image takes to decode, ms of a core, by its header; 0 if it is not."""
        image = self._decoder.weighed(data)
        return image.cost.ms if self._decoder.is_slow(image) else 0.0

    async def embed_text(self, text: str, name: str, patience: Patience) -> Vector:
        """The vector (D,) of ``text`` by the encoder ``name``; raises as ``embed``."""
        async with self.use(name) as pipeline:
            return await pipeline.embed_text(text, patience)

    def check(self) -> None:
        """Returns if the last self-test of every open encoder gave its reference vectors.

        Raises:
            SelfTestFailed, OperatorError: a self-test failed, or does not end.
            Unrecoverable: an encoder has been wrong for long, or one of its runs does not end.
        """
        failures = list[Exception]()
        for state in self._encoders.values():
            try:
                if state.pipeline is not None:
                    state.pipeline.check()
            except Exception as exc:  # noqa: BLE001 - the other encoders are checked too
                failures.append(exc)
        if failures:
            raise min(failures, key=lambda exc: not isinstance(exc, Unrecoverable))

    async def _close_idle(self) -> None:
        """Closes each encoder, except the default one, that nobody has used for a while."""
        loop = asyncio.get_running_loop()
        idle_s = self._config.idle_encoder_s
        while True:
            await asyncio.sleep(idle_s / _LOOKS_PER_IDLE)
            for name, state in self._encoders.items():
                pipeline = state.pipeline
                idle = state.users == 0 and loop.time() - state.used_at >= idle_s
                if pipeline is None or name == self.default or not idle or _is_ill(pipeline):
                    continue
                state.pipeline = None  # the next caller opens another
                metrics.LOADED.labels(name, pipeline.encoder.provider).set(0)
                _LOG.info("encoder unloaded", extra={"encoder": name, "idle_s": idle_s})
                await pipeline.close()


def _is_ill(pipeline: Pipeline) -> bool:
    """Whether a model may hang: closing it would then never end, and would hide that it hangs."""
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
