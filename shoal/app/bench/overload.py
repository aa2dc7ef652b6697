"""Callers of a server that others flood with slow images.

What must hold: the other callers wait hardly longer, all of their images are answered, memory stays
within its bound, and the flood's own images are answered or refused one by one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from shoal.app.bench import machine
from shoal.app.bench.callers import embed_once
from shoal.app.bench.photos import slow_image
from shoal.app.bench.process import UpProcess
from shoal.app.bench.rounds import Row
from shoal.client import Client, IngestItem
from shoal.errors import OperatorError, ShoalError

CALLERS = 4
PAUSE_S = 0.1
"""What a caller waits between two calls: together they ask for 40 images/s, of the 160 that two
cores serve. Callers that are served as fast as they ask would only share what the flood leaves."""
FLOODS = 2
PER_CALL = 256
SIDE = 7_000
"""The edge of a slow image, pixels: 49 megapixels, which take a core most of a second."""
MAX_RATIO = 3.0
"""The most that the flood may multiply the p99 of the other callers by."""
MEASURED_CALLS = 1_000
"""Fewer calls in a phase give no p99 that may fail a measurement."""
_WARM_UP_S = 2.0
_AWAY_S = 2.0
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class OverloadResult:
    """The callers without and with the flood, and the server's memory, MiB.

    ``flooded`` slow images were answered, ``refused`` were refused or abandoned. ``peak_mib`` is
    that of the server and of the largest process that it started.
    """

    machine: str
    rows: Sequence[Row]
    ratio: float
    flooded: int
    refused: int
    before_mib: float
    peak_mib: float
    after_mib: float


@dataclass(slots=True)
class _Flood:
    """What came of the slow images, and whether to send more."""

    answered: int = 0
    refused: int = 0
    goes_on: bool = True


def bench_overload(
    images: Sequence[bytes], *, seconds: float, side: int = SIDE, options: Sequence[str] = ()
) -> OverloadResult:
    """Asks a server for ``images``, half of ``seconds`` alone and half beside slow images.

    Raises:
        OperatorError: an image was refused, or the callers waited too long beside the flood.
        ShoalError: a call failed.
    """
    slow = slow_image(side, side)
    with (
        TemporaryDirectory(prefix="shoal-overload-") as directory,
        UpProcess(Path(directory) / "data", *options) as up,
    ):
        pid = up.process.pid
        load = partial(_load, up.address, images)
        load(_WARM_UP_S)
        alone = Row("alone", [], load(seconds / 2))
        before = machine.resident_mib(pid)
        with (
            machine.children_peak_mib(pid) as children,
            _flooded(up.address, slow) as flood,
        ):
            time.sleep(_AWAY_S)  # the flood has begun by then
            beside = Row("beside slow images", [], load(seconds / 2))
            peak = machine.peak_mib(pid) + children()
        time.sleep(_AWAY_S)
        after = machine.resident_mib(pid)
    for row in (alone, beside):
        row.rates.append(2 * len(row.latencies_s) / seconds)
    return OverloadResult(
        machine=machine.describe(),
        rows=(alone, beside),
        ratio=_ratio(alone, beside),
        flooded=flood.answered,
        refused=flood.refused,
        before_mib=before,
        peak_mib=peak,
        after_mib=after,
    )


def _ratio(alone: Row, beside: Row) -> float:
    """How much longer the p99 is beside the flood; OperatorError if that is too much."""
    first, second = alone.percentile_ms(99), beside.percentile_ms(99)
    if not first or not second:
        raise OperatorError("no call was answered")
    calls = min(len(alone.latencies_s), len(beside.latencies_s))
    if calls >= MEASURED_CALLS and second > MAX_RATIO * first:
        raise OperatorError(
            f"beside slow images the p99 of other callers is {second:.0f} ms, alone {first:.0f}: "
            f"expected at most {MAX_RATIO:g} times as much"
        )
    return second / first


def _load(address: str, images: Sequence[bytes], seconds: float) -> list[float]:
    """The latencies of all callers, each with a connection of its own."""
    until = time.monotonic() + seconds

    def call(number: int) -> list[float]:
        found: list[float] = []
        with Client(address, timeout_s=_TIMEOUT_S) as client:
            while time.monotonic() < until:
                image = images[(number + len(found)) % len(images)]
                found.append(embed_once(client, [image]))
                time.sleep(PAUSE_S)
        return found

    with ThreadPoolExecutor(CALLERS) as threads:
        return [each for found in threads.map(call, range(CALLERS)) for each in found]


@contextmanager
def _flooded(address: str, slow: bytes) -> Iterator[_Flood]:
    """Calls and a stream of slow images, until the end of the block."""
    flood = _Flood()
    loads: Sequence[Callable[[Client, bytes, _Flood], None]] = (*[_call] * FLOODS, _stream)
    clients = [Client(address, timeout_s=_TIMEOUT_S) for _ in loads]
    threads = [
        threading.Thread(target=load, args=(client, slow, flood), daemon=True)
        for load, client in zip(loads, clients, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield flood
    finally:
        flood.goes_on = False
        for client in clients:
            client.close()  # the server is left with abandoned calls
        for thread in threads:
            thread.join()


def _call(client: Client, slow: bytes, flood: _Flood) -> None:
    while flood.goes_on:
        try:
            answers = client.embed([slow] * PER_CALL)
        except ShoalError:
            flood.refused += PER_CALL
            time.sleep(1)
            continue
        refused = sum(answer.failure is not None for answer in answers)
        flood.refused += refused
        flood.answered += len(answers) - refused


def _stream(client: Client, slow: bytes, flood: _Flood) -> None:
    number = 0

    def items() -> Iterator[IngestItem]:
        nonlocal number
        while flood.goes_on:
            number += 1
            yield IngestItem(slow + number.to_bytes(4), key=f"slow/{number}")

    while flood.goes_on:
        try:
            for outcome in client.ingest(items()):
                flood.answered += outcome.failure is None
                flood.refused += outcome.failure is not None
        except ShoalError:
            time.sleep(1)
