"""Mixed load for a while: streams, calls, poison, slow images and callers that go away.

What must hold: every image is answered exactly once, in its own place, good ones with their own
vector or a status, poison with an error of its own; what is stored is what was sent last; nothing
wedges; and the server's memory, once warm, stays where it is.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import grpc
import numpy as np

from shoal.app.bench import machine
from shoal.app.bench.photos import slow_image
from shoal.app.bench.process import UpProcess
from shoal.client import COLLECTION, Client, IngestItem, ItemFailure, Vector
from shoal.client.messages_ingest import from_ingest_response
from shoal.errors import OperatorError, Overloaded
from shoal.rpc.channel import ChannelConfig, open_channel
from shoal.rpc.status import from_rpc_error
from shoal.v1 import common_pb2, embedder_pb2, embedder_pb2_grpc

POISON = 0.05
KEYS = 2_000
"""Points that the streams write over and over: the collection does not grow without end."""
PER_STREAM = 1_000
CALLERS = 4
SLOW_SIZE = (4_000, 3_000)
SLOW_IMAGES = 4
"""The slow images of one call: as WebP, a second of one core together."""
SLOW_PAUSE_S = 2.0
"""A pause between two such calls, which leaves most of the machine to the other loads."""
WARM_UP = 0.2
"""The share of the time after which memory is looked at."""
STALLED_S = 60.0
"""Time without an answer to one of the loads after which the server counts as stuck."""
SAME_COSINE = 0.999
"""Least cosine of an image's vector and the one that it had alone: 2.6 degrees. Batches of other
sizes make less than 0.1."""
OTHER_COSINE = 0.995
"""Largest cosine of two images: 5.7 degrees, so that no vector passes for both."""
LOOKED_UP = 64
"""Stored points that are compared at the end."""
MEASURED_S = 900.0
"""Least time over which the slope of memory is measured before it has a limit.

The memory of a sound server rises by 40 MiB and falls back every five minutes: a slope of up to
480 MiB/h over one such period, and of up to 60 over three.
"""
MAX_GROWTH_MIB_PER_HOUR = 100.0
"""Above the 60 of a sound server, and far below a leak of one vector (5 KB) per image, which is 880
at 50 images/s."""
_SAMPLE_S = 0.5


@dataclass(frozen=True, slots=True)
class SoakResult:
    """What happened. ``growth_mib_per_hour``: the slope of the server's memory once warm."""

    machine: str
    seconds: float
    answered: int
    poisoned: int
    cancelled: int
    refused: int
    slow: int
    rate: float
    resident_mib: float
    growth_mib_per_hour: float


@dataclass(frozen=True, slots=True)
class _Picture:
    """What is sent: an encoded file, and its vector; None for poison."""

    data: bytes
    vector: Vector | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all loads send, where to, and until when."""

    address: str
    pictures: Sequence[_Picture]
    until: float

    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    def draw(self, rng: random.Random) -> _Picture:
        """One of the pictures, or poison: cut short, empty or no image at all."""
        picture = rng.choice(self.pictures)
        if rng.random() >= POISON:
            return picture
        data = picture.data
        return _Picture(rng.choice([data[: len(data) // 2], b"", b"no image", data[:20]]), None)


@dataclass(slots=True)
class _Tally:
    """The counts of one load, and when its last answer came."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    last: float = field(default_factory=time.monotonic)

    def add(self, what: str) -> None:
        self.counts[what] += 1
        self.last = time.monotonic()


_Load: TypeAlias = Callable[[_Plan, _Tally, random.Random], None]


def bench_soak(images: Sequence[bytes], *, seconds: float, seed: int = 0) -> SoakResult:
    """Loads a server with ``images`` (encoded files, no two alike) for ``seconds``.

    Raises:
        OperatorError: an answer was lost, doubled or wrong, the server is stuck, or its memory
            grows.
        ShoalError: a call failed.
    """
    with (
        TemporaryDirectory(prefix="shoal-soak-") as directory,
        UpProcess(Path(directory) / "data") as up,
    ):
        try:
            return _soak(up, images, seconds, seed)
        except BaseException:
            up.process.kill()  # one that is stuck would not stop, and its data goes in any case
            raise


def _soak(up: UpProcess, images: Sequence[bytes], seconds: float, seed: int) -> SoakResult:
    loads: dict[Future[None], _Tally] = {}
    # Left in reverse: an error closes the connections, which ends the loads, which are waited for.
    with ThreadPoolExecutor(CALLERS + 3) as threads, ExitStack() as connections:

        def client() -> Client:
            return connections.enter_context(Client(up.address, timeout_s=STALLED_S))

        def start(name: str, load: _Load) -> None:
            rng = random.Random(seed + len(loads))  # noqa: S311 - a load, not a secret
            tally = _Tally(name)
            loads[threads.submit(load, plan, tally, rng)] = tally

        channel = open_channel(
            ChannelConfig(address=up.address), embedder_pb2_grpc.EmbedderServiceStub
        )
        connections.callback(channel.close)
        pictures = _prepare(client(), images)
        began = time.monotonic()
        plan = _Plan(up.address, pictures, began + seconds)
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        start("the stream", partial(_stream, stub, client()))
        start("the stream that is left", partial(_leaver, client()))
        start("the caller with slow images", partial(_slow_caller, client()))
        for number in range(CALLERS):
            start(f"caller {number}", partial(_caller, client()))
        samples = _watch(up.process.pid, loads)
    took = time.monotonic() - began
    counts = sum((tally.counts for tally in loads.values()), Counter[str]())
    answered = counts["good"] + counts["poison"]
    return SoakResult(
        machine=machine.describe(),
        seconds=took,
        answered=answered,
        poisoned=counts["poison"],
        cancelled=counts["cancelled"],
        refused=counts["refused"],
        slow=counts["slow"],
        rate=answered / took,
        resident_mib=samples[-1][1],
        growth_mib_per_hour=_growth(samples, began + WARM_UP * seconds),
    )


def _prepare(client: Client, images: Sequence[bytes]) -> list[_Picture]:
    """The images with the vectors that they have alone, before there is any load.

    Raises:
        OperatorError: two are so alike that one's answer in the other's place would not be seen.
    """
    answers = [client.embed([data])[0] for data in images]
    pictures = []
    for data, answer in zip(images, answers, strict=True):
        if answer.vector is None:
            raise OperatorError(f"a good image was refused: {answer.failure}")
        pictures.append(_Picture(data, answer.vector))
    vectors = np.array([picture.vector for picture in pictures])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    if cosines.max() > OTHER_COSINE:
        one, other = np.unravel_index(cosines.argmax(), cosines.shape)
        raise OperatorError(
            f"images {one} and {other} are too alike to be told apart: expected a cosine of at "
            f"most {OTHER_COSINE}, got {cosines.max():.4f}"
        )
    return pictures


def _stream(
    stub: embedder_pb2_grpc.EmbedderServiceStub,
    client: Client,
    plan: _Plan,
    tally: _Tally,
    rng: random.Random,
) -> None:
    """Streams of a thousand images each, answered once each, good and bad told apart.

    Not through ``Client.ingest``, which lets go what it did not ask for. At the end some of what
    is stored is compared with what was sent last.
    """
    numbers = itertools.count()  # never twice: an answer to an earlier stream is not one to this
    stored: dict[str, _Picture] = {}
    while plan.goes_on():
        sent: dict[int, tuple[str, _Picture]] = {}

        def requests(
            sent: dict[int, tuple[str, _Picture]] = sent,
        ) -> Iterator[embedder_pb2.IngestRequest]:
            while len(sent) < PER_STREAM and plan.goes_on():
                number, key, picture = next(numbers), f"k{rng.randrange(KEYS)}", plan.draw(rng)
                sent[number] = key, picture
                if picture.vector is not None:
                    stored[key] = picture  # of one key, what was sent last stays
                yield embedder_pb2.IngestRequest(
                    sequence=number,
                    collection=COLLECTION,
                    key=key,
                    image=common_pb2.Image(data=picture.data),
                )

        try:
            _check_stream(stub.Ingest(requests()), sent, tally)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc, plan.address) from exc
    for key in rng.sample(sorted(stored), min(LOOKED_UP, len(stored))):
        point = client.point(key, with_vectors=True)
        if not _is_of(stored[key], next(iter(point.vectors.values()), None)):
            raise OperatorError(f"point {key} has not the vector of the image sent last")
        tally.add("looked up")


def _check_stream(
    responses: Iterable[embedder_pb2.IngestResponse],
    sent: Mapping[int, tuple[str, _Picture]],
    tally: _Tally,
) -> None:
    answered: set[int] = set()
    for response in responses:
        number = response.sequence
        if number in answered:
            raise OperatorError(f"image {number} was answered twice")
        if number not in sent:
            raise OperatorError(f"there is an answer to image {number}, which was not sent")
        answered.add(number)
        key, picture = sent[number]
        outcome = from_ingest_response(response, name=str(number))
        if outcome.key != key:
            raise OperatorError(f"image {number} has the key {outcome.key!r}: expected {key!r}")
        _check(picture, outcome.failure, tally)
    if len(answered) < len(sent):
        raise OperatorError(f"{len(sent) - len(answered)} images were not answered")


def _caller(client: Client, plan: _Plan, tally: _Tally, rng: random.Random) -> None:
    """Calls of one to eight images, each answered in its own place."""
    while plan.goes_on():
        batch = [plan.draw(rng) for _ in range(rng.randint(1, 8))]
        try:
            answers = client.embed([picture.data for picture in batch])
        except Overloaded:
            tally.add("refused")
            time.sleep(0.2)
            continue
        if len(answers) != len(batch):
            raise OperatorError(f"{len(batch)} images were sent, {len(answers)} answered")
        for picture, answer in zip(batch, answers, strict=True):
            _check(picture, answer.failure, tally)
            if answer.failure is None and not _is_of(picture, answer.vector):
                raise OperatorError("an image was answered with a vector that is not its own")


def _leaver(client: Client, plan: _Plan, tally: _Tally, rng: random.Random) -> None:
    """Streams whose sender goes away in the middle."""
    while plan.goes_on():
        items = (
            IngestItem(rng.choice(plan.pictures).data, key=f"l{rng.randrange(64)}")
            for _ in range(64)
        )
        stream = client.ingest(items)
        for _ in range(rng.randint(1, 8)):
            next(stream, None)
        stream.close()
        tally.add("cancelled")
        time.sleep(0.5)


def _slow_caller(client: Client, plan: _Plan, tally: _Tally, _: random.Random) -> None:
    """Calls of slow images, which are all answered or refused for their number."""
    slow = slow_image(*SLOW_SIZE)
    while plan.goes_on():
        try:
            answers = client.embed([slow] * SLOW_IMAGES)
        except Overloaded:
            tally.add("refused")
            time.sleep(0.2)
            continue
        if len(answers) != SLOW_IMAGES:
            raise OperatorError(f"{SLOW_IMAGES} images were sent, {len(answers)} answered")
        for answer in answers:
            if answer.failure is not None:
                raise OperatorError(f"a slow image was refused: {answer.failure.message}")
            tally.add("slow")
        time.sleep(SLOW_PAUSE_S)


def _check(picture: _Picture, failure: ItemFailure | None, tally: _Tally) -> None:
    if picture.vector is None and failure is None:
        raise OperatorError("a poison image was accepted")
    if picture.vector is not None and failure is not None:
        raise OperatorError(f"a good image was refused: {failure.message}")
    tally.add("poison" if failure else "good")


def _is_of(picture: _Picture, vector: Vector | None) -> bool:
    """Whether ``vector`` is the picture's own."""
    own = picture.vector
    if own is None or vector is None or own.shape != vector.shape:
        return False
    return float(own @ vector) >= SAME_COSINE


def _watch(pid: int, loads: Mapping[Future[None], _Tally]) -> list[tuple[float, float]]:
    """The server's resident memory in MiB over time, until all loads have ended.

    Raises at once what a load raises, and when one has no answer any more.
    """
    samples = []
    under_way = set(loads)
    while under_way:
        samples.append((time.monotonic(), machine.resident_mib(pid)))
        done, under_way = wait(under_way, timeout=_SAMPLE_S, return_when=FIRST_EXCEPTION)
        for load in done:
            load.result()
        for load in under_way:
            if time.monotonic() - loads[load].last > STALLED_S:
                raise OperatorError(f"{loads[load].name} had no answer for {STALLED_S:.0f} s")
    return samples


def _growth(samples: Sequence[tuple[float, float]], since: float) -> float:
    """MiB per hour, by least squares over the samples (seconds, MiB) after ``since``.

    Raises:
        OperatorError: it is above the limit, over a time that is long enough to tell.
    """
    kept = np.array([sample for sample in samples if sample[0] >= since])
    if len(kept) < 2:  # noqa: PLR2004 - no line without two points
        return 0.0
    times = kept[:, 0] - kept[0, 0]
    growth = float(np.polyfit(times, kept[:, 1], 1)[0]) * 3600
    if times[-1] >= MEASURED_S and growth > MAX_GROWTH_MIB_PER_HOUR:
        raise OperatorError(
            f"the server's memory grew by {growth:.0f} MiB/h once warm: expected at most "
            f"{MAX_GROWTH_MIB_PER_HOUR:.0f}"
        )
    return growth
