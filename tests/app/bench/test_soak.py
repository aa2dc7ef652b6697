from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from shoal import vectors
from shoal.app.bench import soak
from shoal.app.bench.photos import slow_image
from shoal.errors import ImageCorrupt, OperatorError, ShoalError
from shoal.rpc.status import item_error
from shoal.v1 import (
    common_pb2,
    embedder_pb2,
    embedder_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)

IMAGES = [b"the image with number %02d" % number for number in range(8)]


SLOW = slow_image(*soak.SLOW_SIZE)


def vector_of(data: bytes) -> common_pb2.Vector:
    axis = np.eye(len(IMAGES), dtype=np.float32)[IMAGES.index(data)]
    return common_pb2.Vector(values=vectors.encode(axis), dim=len(IMAGES))


class Fake(
    embedder_pb2_grpc.EmbedderServiceServicer,
    search_pb2_grpc.SearchServiceServicer,
):
    """A server that knows IMAGES, orthogonal to each other, and has the faults that a test sets."""

    def __init__(self) -> None:
        self.fault = ""
        self.calls = 0
        self.stored: dict[str, bytes] = {}
        self.killed = threading.Event()
        self.stopped = threading.Event()

    def Embed(self, request: Any, context: Any) -> Any:
        self.calls += 1
        warm = self.calls > len(IMAGES)
        self.wait_where_silent("Embed" if warm else "from the beginning")
        results = [self.embed(image.data) for image in request.images]
        if self.fault == "slots swapped":
            results.reverse()
        if self.fault == "one answer too few" and len(results) > 1:
            results.pop()
        return embedder_pb2.EmbedResponse(results=results)

    def embed(self, data: bytes) -> Any:
        if data == SLOW and self.fault != "slow image refused":
            return embedder_pb2.EmbedResult(vector=vector_of(IMAGES[0]))
        if data in IMAGES and not (self.fault == "good image refused" and self.calls > 20):
            return embedder_pb2.EmbedResult(vector=vector_of(data))
        if data not in IMAGES and self.fault == "poison accepted":
            return embedder_pb2.EmbedResult(vector=vector_of(IMAGES[0]))
        return embedder_pb2.EmbedResult(error=item_error(ImageCorrupt("not an image")))

    def Ingest(self, requests: Any, context: Any) -> Any:
        for request in requests:
            self.wait_where_silent("Ingest")
            response = embedder_pb2.IngestResponse(sequence=request.sequence, key=request.key)
            if request.image.data in IMAGES:
                self.stored.setdefault(request.key, request.image.data)
                if self.fault != "old image kept":
                    self.stored[request.key] = request.image.data
                response.result.status = embedder_pb2.INGEST_STATUS_STORED
            else:
                response.error.CopyFrom(item_error(ImageCorrupt("not an image")))
            last = request.sequence % soak.PER_STREAM == soak.PER_STREAM - 1
            if self.fault == "answer lost" and last:
                continue
            if self.fault == "answer to nothing" and last:
                response.sequence += 1
            if self.fault == "key of another":
                response.key += "0"
            yield response
            if self.fault == "answer doubled" and last:
                yield response

    def GetPoint(self, request: Any, context: Any) -> Any:
        return search_pb2.Point(vectors={"fake": vector_of(self.stored[request.id])})

    def wait_where_silent(self, call: str) -> None:
        if self.fault == f"silent {call}":
            self.stopped.wait()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """The server that the soak finds where it would start one."""
    served = Fake()
    server = grpc.server(ThreadPoolExecutor(soak.CALLERS + 4))
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(served, server)
    search_pb2_grpc.add_SearchServiceServicer_to_server(served, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    @contextmanager
    def up(_: Path) -> Iterator[SimpleNamespace]:
        process = SimpleNamespace(pid=os.getpid(), kill=served.killed.set)
        yield SimpleNamespace(address=f"127.0.0.1:{port}", process=process)

    monkeypatch.setattr(soak, "UpProcess", up)
    yield served
    served.stopped.set()
    server.stop(0).wait()


def test_soak_of_an_honest_server_passes(fake: Fake) -> None:
    """All that was asked is counted."""
    result = soak.bench_soak(IMAGES, seconds=1)
    assert result.answered > 100
    assert 0 < result.poisoned < result.answered
    assert result.cancelled > 0
    assert result.refused == 0
    assert not fake.killed.is_set()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("answer doubled", r"image \d+ was answered twice"),
        ("answer lost", "1 images were not answered"),
        ("answer to nothing", r"an answer to image \d+, which was not sent"),
        ("key of another", r"image \d+ has the key 'k\d+0': expected 'k\d+'"),
        ("old image kept", r"point k\d+ has not the vector of the image sent last"),
        ("one answer too few", r"\d images were sent, \d answered"),
        ("poison accepted", "a poison image was accepted"),
        ("good image refused", "a good image was refused: not an image"),
        ("slow image refused", "a slow image was refused: not an image"),
    ],
)
def test_soak_tells_a_wrong_answer(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    """Each ends it with its own message."""
    monkeypatch.setattr(soak, "PER_STREAM", 100)
    monkeypatch.setattr(soak, "KEYS", 10)
    fake.fault = fault
    with pytest.raises(OperatorError, match=message):
        soak.bench_soak(IMAGES, seconds=3)


def test_soak_tells_good_vectors_that_are_exchanged(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without poison only the vectors themselves can tell."""
    monkeypatch.setattr(soak, "POISON", 0.0)
    fake.fault = "slots swapped"
    with pytest.raises(OperatorError, match="a vector that is not its own"):
        soak.bench_soak(IMAGES, seconds=3)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("fault", "who"),
    [
        ("silent from the beginning", "did not answer before the deadline"),
        ("silent Ingest", r"the stream( that is left)? had no answer for 1 s"),
        ("silent Embed", r"caller \d had no answer|before the deadline"),
    ],
)
def test_soak_of_a_server_that_goes_silent_ends(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, fault: str, who: str
) -> None:
    """One kind of load without answers is enough, long before the time is over."""
    monkeypatch.setattr(soak, "STALLED_S", 1.0)
    fake.fault = fault
    with pytest.raises(ShoalError, match=who):
        soak.bench_soak(IMAGES, seconds=600)
    assert fake.killed.is_set()


@pytest.mark.usefixtures("fake")
def test_soak_refuses_images_that_are_alike() -> None:
    """An answer in the place of another would not be seen."""
    with pytest.raises(OperatorError, match="images 0 and 8 are too alike"):
        soak.bench_soak([*IMAGES, IMAGES[0]], seconds=1)


def test_soak_growth_is_of_the_warm_part() -> None:
    """Memory that grows while it warms up and then stays has a slope of zero."""
    grown = [(float(t), float(min(t, 10))) for t in range(1000)]
    assert soak._growth(grown, 20) == pytest.approx(0, abs=1e-6)


def test_soak_growth_has_a_limit_once_it_is_measured() -> None:
    """A leak ends a long soak; in a short one the same slope is only told."""
    per_hour = 2 * soak.MAX_GROWTH_MIB_PER_HOUR
    leak = [(float(t), t * per_hour / 3600) for t in range(int(soak.MEASURED_S) + 2)]
    assert soak._growth(leak[:-10], 0) == pytest.approx(per_hour)
    with pytest.raises(OperatorError, match="grew by 200 MiB/h once warm: expected at most 100"):
        soak._growth(leak, 0)
