"""Mixed load for a while: streams, calls, poison images and callers that go away.

What must hold: every image is answered exactly once, good ones with a vector or a status, poison
with an error of its own; nothing wedges; and the server's memory, once warm, stays where it is.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from shoal.bench import machine
from shoal.bench.process import UpProcess
from shoal.client import Client, IngestItem
from shoal.errors import OperatorError, Overloaded

POISON = 0.05
KEYS = 2_000
"""Points that the streams write over and over: the collection does not grow without end."""
CALLERS = 4
WARM_UP = 0.2
"""The share of the time after which memory is looked at."""
STALLED_S = 60.0
"""Without an answer for so long the server is taken to be stuck."""
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
    rate: float
    resident_mib: float
    growth_mib_per_hour: float


@dataclass(slots=True)
class _Tally:
    """Counts of all threads, and when the last answer came."""

    counts: Counter[str] = field(default_factory=Counter)
    last: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, count: int = 1) -> None:
        with self.lock:
            self.counts[name] += count
            self.last = time.monotonic()


def bench_soak(images: Sequence[bytes], *, seconds: float, seed: int = 0) -> SoakResult:
    """Loads a server with ``images`` (encoded files) for so many seconds.

    Raises:
        OperatorError: an answer was lost, doubled or wrong, or the server is stuck.
    """
    with (
        TemporaryDirectory(prefix="shoal-soak-") as directory,
        UpProcess(Path(directory) / "data") as up,
    ):
        began = time.monotonic()
        tally, until = _Tally(), began + seconds
        with ThreadPoolExecutor(CALLERS + 3) as threads:
            loads = [
                threads.submit(_stream, up.address, images, tally, until, seed),
                threads.submit(_leaver, up.address, images, tally, until, seed + 1),
                *(
                    threads.submit(_caller, up.address, images, tally, until, seed + 2 + n)
                    for n in range(CALLERS)
                ),
            ]
            samples = _watch(up.process.pid, tally, until)
            for load in loads:
                load.result(timeout=STALLED_S)
        took = time.monotonic() - began
        counts = tally.counts
        return SoakResult(
            machine=machine.describe(),
            seconds=took,
            answered=counts["good"] + counts["poison"],
            poisoned=counts["poison"],
            cancelled=counts["cancelled"],
            refused=counts["refused"],
            rate=(counts["good"] + counts["poison"]) / took,
            resident_mib=samples[-1][1],
            growth_mib_per_hour=_slope(samples, began + WARM_UP * seconds) * 3600,
        )


def _mixture(images: Sequence[bytes], rng: random.Random) -> tuple[bytes, bool]:
    """An image, and whether it is poison: cut short, empty or no image at all."""
    data = rng.choice(images)
    if rng.random() >= POISON:
        return data, False
    return rng.choice([data[: len(data) // 2], b"", b"no image", data[:20]]), True


def _stream(address: str, images: Sequence[bytes], tally: _Tally, until: float, seed: int) -> None:
    """Streams of a thousand images each, answered once each, good and bad told apart."""
    rng = random.Random(seed)  # noqa: S311 - a load, not a secret
    with Client(address) as client:
        while time.monotonic() < until:
            sent: dict[str, bool] = {}

            def items(sent: dict[str, bool] = sent) -> Iterator[IngestItem]:
                for number in range(1000):
                    if time.monotonic() >= until:
                        return
                    data, poison = _mixture(images, rng)
                    name = str(number)
                    sent[name] = poison
                    yield IngestItem(data, key=f"k{rng.randrange(KEYS)}", name=name)

            answered: set[str] = set()
            for outcome in client.ingest(items()):
                if outcome.name in answered:
                    raise OperatorError(f"image {outcome.name} was answered twice")
                answered.add(outcome.name)
                _check(poison=sent[outcome.name], failed=outcome.failure is not None, tally=tally)
            if answered != set(sent):
                raise OperatorError(f"{len(sent) - len(answered)} images were not answered")


def _caller(address: str, images: Sequence[bytes], tally: _Tally, until: float, seed: int) -> None:
    """Calls of one to eight images, each answered in its own place."""
    rng = random.Random(seed)  # noqa: S311 - a load, not a secret
    with Client(address) as client:
        while time.monotonic() < until:
            batch = [_mixture(images, rng) for _ in range(rng.randint(1, 8))]
            try:
                answers = client.embed([data for data, _ in batch])
            except Overloaded:
                tally.add("refused")
                time.sleep(0.2)
                continue
            if len(answers) != len(batch):
                raise OperatorError(f"{len(batch)} images were sent, {len(answers)} answered")
            for (_, poison), answer in zip(batch, answers, strict=True):
                _check(poison=poison, failed=answer.failure is not None, tally=tally)


def _leaver(address: str, images: Sequence[bytes], tally: _Tally, until: float, seed: int) -> None:
    """Streams whose sender goes away in the middle."""
    rng = random.Random(seed)  # noqa: S311 - a load, not a secret
    with Client(address) as client:
        while time.monotonic() < until:
            items = (IngestItem(rng.choice(images), key=f"l{rng.randrange(64)}") for _ in range(64))
            stream = client.ingest(items)
            for _ in range(rng.randint(1, 8)):
                next(stream, None)
            stream.close()
            tally.add("cancelled")
            time.sleep(0.5)


def _check(*, poison: bool, failed: bool, tally: _Tally) -> None:
    if poison != failed:
        what = "a poison image was accepted" if poison else "a good image was refused"
        raise OperatorError(what)
    tally.add("poison" if poison else "good")


def _watch(pid: int, tally: _Tally, until: float) -> list[tuple[float, float]]:
    """The server's resident memory in MiB over time; raises when nothing is answered any more."""
    samples = [(time.monotonic(), machine.resident_mib(pid))]
    while time.monotonic() < until:
        time.sleep(_SAMPLE_S)
        samples.append((time.monotonic(), machine.resident_mib(pid)))
        if time.monotonic() - tally.last > STALLED_S:
            raise OperatorError(f"no image was answered for {STALLED_S:.0f} s")
    return samples


def _slope(samples: Sequence[tuple[float, float]], since: float) -> float:
    """MiB per second, by least squares over the samples after ``since``."""
    kept = np.array([sample for sample in samples if sample[0] >= since])
    if len(kept) < 2:  # noqa: PLR2004 - no line without two points
        return 0.0
    return float(np.polyfit(kept[:, 0] - kept[0, 0], kept[:, 1], 1)[0])
