"""Images per second from JPEG bytes: each layer of serving, from decoding to gRPC.

The floor: an image costs one decode and one run of the model. On a CPU both use the cores that
this machine has: with ``bare`` the rate of the session alone and ``d`` the processor time of one
decode, no server on these cores can pass ``1 / (1 / bare + d / cores)``: the ceiling. On a GPU one
image is decoded while another runs, and the ceiling is the lower of the two rates. Decoding counts
as it is fastest: in one process, or in as many as a server of several has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from embedder.config import EmbedderConfig
from embedder.encoding.config import Provider, RuntimeConfig
from embedder.encoding.encoder import Encoder
from embedder.encoding.manifest import Preprocessing
from embedder.flow.batching import Patience
from embedder.images.limits import ImageLimits
from embedder.images.preprocess import decode
from embedder.inference.fleet import Fleet
from shoal.app.bench import machine
from shoal.app.bench.callers import Flow, callers, embed_once, ingest_once
from shoal.app.bench.process import ServerProcess, UpProcess
from shoal.app.bench.rounds import Row, Workload, measure
from shoal.client import Client
from shoal.cores import usable_cores
from shoal.errors import NotFound, ShoalError
from shoal.store import StoreConfig, open_store

_LOG = logging.getLogger(__name__)

CALLERS = 16
CONNECTIONS = 64
"""Connections of each of several clients. Each has one call under way: 256 images wait at 4
processes."""
PER_CALL = 16
"""Images of a call of several; a quarter of the connections are used for those."""
FLOW = Flow(streams=8, window=CONNECTIONS)
"""Streams of each of several clients, with as many images in flight as there are calls otherwise.
With one stream each, the system would leave a third of a server's processes without any."""
DECODING = "decode only"
NO_STORE = "http://127.0.0.1:1"
"""Embed needs no store: with this one, all that fails is readiness."""


@dataclass(frozen=True, slots=True)
class SeveralProcesses:
    """A server of several processes to measure too, by as many clients.

    ``store`` is a Qdrant server; without, nothing is ingested.
    """

    processes: int
    store: StoreConfig | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Those of ``shoal serve embedder``."""
        store = self.store or StoreConfig(url=NO_STORE)
        place = ("--store-url", str(store.url), "--store-grpc-port", str(store.grpc_port))
        return ("--processes", str(self.processes), *place)


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The rows, the ceiling in images/s, and the server's resident memory in MiB."""

    machine: str
    encoder: str
    rows: list[Row]
    bare: Row
    ceiling: float
    resident_mib: float


def bench_embed(
    images: Sequence[bytes],
    *,
    rounds: int,
    encoder_directory: Path | None = None,
    provider: Provider = "cpu",
    several: SeveralProcesses | None = None,
) -> EmbedResult:
    """Measures an encoder (None: the bundled one) on ``images`` (encoded files)."""
    config = EmbedderConfig(
        encoders=() if encoder_directory is None else (encoder_directory,),
        runtime=RuntimeConfig(provider=provider),
    )
    options = ["--provider", provider]
    if encoder_directory is not None:
        options += ["--encoder", str(encoder_directory)]
    encoder = Encoder.open(encoder_directory, config.runtime)
    with (
        TemporaryDirectory(prefix="shoal-bench-") as name,
        UpProcess(Path(name) / "data", *options) as up,
        Client(up.address) as client,
        ThreadPoolExecutor(max(CALLERS, usable_cores())) as threads,
        _in_process(config) as in_process,
        ExitStack() as stack,
    ):
        ingestion = _Ingestion(images, client)
        decoding = Decoding(config.limits, encoder.preprocessings[0])
        pixels = [decoding(image) for image in images]
        units = len(images)
        workloads = [
            Workload(DECODING, units, lambda: decode_all(images, decoding, usable_cores())),
            *(
                Workload(
                    f"bare session, batch {size}",
                    units,
                    _session(pixels, encoder, size, config.inferences),
                )
                for size in (1, config.batch)
            ),
            Workload("in process", units, lambda: in_process(images)),
            Workload(f"gRPC Embed, {CALLERS} callers", units, _unary(images, client, threads)),
            Workload("gRPC Ingest, stored", units, ingestion.run, ingestion.prepare),
        ]
        if several is not None:
            log = Path(name) / "several.log"
            workloads += stack.enter_context(_several(several, images, decoding, options, log))
        rows = measure(workloads, rounds)
        resident = machine.resident_mib(up.process.pid)
    bare = max(rows[1:3], key=lambda row: row.rate)
    return EmbedResult(
        machine=machine.describe(),
        encoder=f"{encoder.name} ({encoder.provider})",
        rows=rows,
        bare=bare,
        ceiling=ceiling(
            bare.rate,
            max(row.rate for row in rows if row.name.startswith(DECODING)),
            shared=config.runtime.on_cpu,
        ),
        resident_mib=resident,
    )


def ceiling(bare: float, decoding: float, *, shared: bool) -> float:
    """Images/s that the two rates leave possible; ``shared``: both use the same cores.

    Decoding is measured on all cores: its rate already holds the division by them.
    """
    return 1 / (1 / bare + 1 / decoding) if shared else min(bare, decoding)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an encoder's images are decoded."""

    limits: ImageLimits
    spec: Preprocessing

    def __call__(self, image: bytes) -> npt.NDArray[np.uint8]:
        """The pixels (H, W, 3) of an encoded image."""
        return decode(image, limits=self.limits, spec=self.spec)


def decode_all(images: Sequence[bytes], decoding: Decoding, threads: int) -> list[float]:
    """Decodes ``images`` in a number of threads; no latencies."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(decoding, images):
            pass
    return []


def _session(
    pixels: Sequence[npt.NDArray[np.uint8]], encoder: Encoder, size: int, workers: int
) -> Callable[[], Sequence[float]]:
    batches = [np.stack(pixels[at : at + size]) for at in range(0, len(pixels), size)]

    def run() -> Sequence[float]:
        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(lambda batch: encoder.embed([batch]), batches))
        return ()

    return run


@contextmanager
def _in_process(
    config: EmbedderConfig,
) -> Iterator[Callable[[Sequence[bytes]], Sequence[float]]]:
    """The embedder's pipeline in a loop of its own, without gRPC."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        fleet = Fleet(config)

        async def embed(images: Sequence[bytes]) -> Sequence[float]:
            room = asyncio.Semaphore(config.stream_window)

            async def one(image: bytes) -> float:
                async with room:
                    began = time.perf_counter()
                    await fleet.embed(image, (fleet.default,), Patience())
                    return time.perf_counter() - began

            return await asyncio.gather(*(one(image) for image in images))

        def run(images: Sequence[bytes]) -> Sequence[float]:
            return loop.run_until_complete(embed(images))

        loop.run_until_complete(fleet.start())
        try:
            yield run
        finally:
            loop.run_until_complete(fleet.close())


def _unary(
    images: Sequence[bytes], client: Client, threads: ThreadPoolExecutor
) -> Callable[[], Sequence[float]]:
    return lambda: list(threads.map(lambda image: embed_once(client, [image]), images))


class _Ingestion:
    """Ingests the images into a new collection each time, or nothing would be embedded."""

    def __init__(self, images: Sequence[bytes], client: Client) -> None:
        self._images = images
        self._client = client
        self.collections: list[str] = []

    @property
    def collection(self) -> str:
        """This round's."""
        return self.collections[-1]

    def prepare(self) -> None:
        """Makes the next collection, which takes half a second, by storing one image."""
        self.collections.append(f"shoal-bench-{uuid4()}")  # the store may be somebody's
        ingest_once(self._client, self._images[:1], self.collection, "first")

    def run(self) -> Sequence[float]:
        """Sends all images over one stream; a latency is from sending to the answer."""
        return ingest_once(self._client, self._images, self.collection, "image")


@contextmanager
def _several(
    several: SeveralProcesses,
    images: Sequence[bytes],
    decoding: Decoding,
    options: Sequence[str],
    log: Path,
) -> Iterator[list[Workload]]:
    """What a server of several processes does, loaded by as many clients."""
    count = several.processes
    serve = ["serve", "embedder", *several.options, *options]
    units = len(images)
    with (
        ExitStack() as stack,
        ServerProcess(log, *serve) as server,
        Client(server.address) as client,
        callers(server.address, images, count) as crowd,
    ):
        threads = max(1, usable_cores() // count)
        decode_share = partial(decode_all, decoding=decoding, threads=threads)
        workloads = [
            Workload(f"{DECODING}, {count} processes", units, lambda: crowd.run(decode_share)),
            Workload(f"gRPC Embed, {count} processes", units, lambda: crowd.embed(CONNECTIONS, 1)),
            Workload(
                f"gRPC Embed of {PER_CALL}, {count} processes",
                units,
                lambda: crowd.embed(CONNECTIONS // 4, PER_CALL),
            ),
        ]
        if several.store is not None:
            ingestion = _Ingestion(images, client)
            stack.callback(drop, several.store, ingestion.collections)
            workloads.append(
                Workload(
                    f"gRPC Ingest, {count} processes",
                    units,
                    lambda: crowd.ingest(ingestion.collection, FLOW),
                    ingestion.prepare,
                )
            )
        yield workloads


def drop(store: StoreConfig, collections: Sequence[str]) -> None:
    """Deletes ``collections``; what was measured is not lost for one that stays."""
    for name in collections:
        try:
            with open_store(store) as opened, suppress(NotFound):
                opened.drop_collection(name)
        except ShoalError as exc:
            _LOG.warning("collection %s is left in the store: %s", name, exc)
