"""Callers of an embedder in processes of their own.

One Python process sends about as many images a second as one Python process serves. To load a
server of several processes takes several clients; they stand on the same cores as the server, as
all clients of ``shoal bench`` do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from shoal.client import WINDOW, Client, IngestItem, IngestStatus
from shoal.errors import OperatorError

_LEAVE_S = 5.0
"""What processes have in which to end by themselves, all together."""


@dataclass(frozen=True, slots=True)
class Flow:
    """How one client ingests: its streams, and the images in flight on all of them together."""

    streams: int = 1
    window: int = WINDOW


class Callers:
    """Client processes, each with a share of the images and a few connections."""

    def __init__(self, processes: Sequence[tuple[BaseProcess, Connection]]) -> None:
        """Use ``callers``."""
        self._processes = processes

    def embed(self, connections: int, per_call: int) -> list[float]:
        """Sends all images once; the seconds of each call.

        Args:
            connections: Of each process; each has one call under way.
            per_call: Images of one call.

        Raises:
            OperatorError: an image was refused, or a process died.
            ShoalError: a call failed.
        """
        return self._all(("embed", connections, per_call))

    def ingest(self, collection: str, flow: Flow) -> list[float]:
        """Stores all images once; the seconds from sending each to its answer.

        Raises:
            OperatorError: an image was not stored, or a process died.
            ShoalError: the ingestion failed.
        """
        return self._all(("ingest", collection, flow))

    def run(self, work: Callable[[Sequence[bytes]], list[float]]) -> list[float]:
        """What ``work``, which is pickled, returns of the images of each process.

        Raises:
            OperatorError: a process died.
            Exception: what ``work`` raises.
        """
        return self._all(("run", work))

    def _all(self, order: tuple[object, ...]) -> list[float]:
        for process, pipe in self._processes:
            with _alive(process):
                pipe.send(order)
        answers = []
        for process, pipe in self._processes:
            with _alive(process):
                answers.append(pipe.recv())
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [seconds for answer in answers for seconds in answer]


@contextmanager
def callers(address: str, images: Sequence[bytes], processes: int) -> Iterator[Callers]:
    """So many client processes of the server at ``address``, until the end of the block."""
    context = get_context("spawn")  # a fork would copy gRPC's threads in whatever state
    started: list[tuple[BaseProcess, Connection]] = []
    try:
        for index in range(processes):
            here, there = context.Pipe()
            share = images[index::processes]
            process = context.Process(
                target=_obey, args=(there, address, share, str(index)), daemon=True
            )
            process.start()
            there.close()
            started.append((process, here))
        yield Callers(started)
    finally:
        _end(started)


def _end(processes: Sequence[tuple[BaseProcess, Connection]]) -> None:
    """Ends them: those that are idle at once, those in the middle of an order soon."""
    for _, pipe in processes:
        pipe.close()
    deadline = time.monotonic() + _LEAVE_S
    for process, _ in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()  # nothing, if it has ended
        process.join()


@contextmanager
def _alive(process: BaseProcess) -> Iterator[None]:
    """OperatorError where the other end of a pipe is not there any more."""
    try:
        yield
    except (EOFError, ConnectionError) as exc:
        process.join(_LEAVE_S)
        msg = f"a client process of the bench died (exit code {process.exitcode})"
        raise OperatorError(msg) from exc


def _obey(orders: Connection, address: str, images: Sequence[bytes], name: str) -> None:
    """The main function of a client process."""
    gone = suppress(EOFError, ConnectionError)  # of the other end: there are no more orders
    with gone, ExitStack() as stack:
        clients: list[Client] = []
        while True:
            what, *arguments = orders.recv()
            try:
                if what == "embed":
                    connections, per_call = arguments
                    while len(clients) < connections:
                        clients.append(stack.enter_context(Client(address)))
                    seconds = _embed(images, clients[:connections], per_call)
                elif what == "run":
                    (work,) = arguments
                    seconds = work(images)
                else:
                    collection, flow = arguments
                    with Client(address) as client:  # a new one: connections fall as they fall
                        seconds = ingest_once(client, images, collection, name, flow)
            except Exception as exc:  # noqa: BLE001 - raised where it was ordered
                orders.send(exc)
            else:
                orders.send(seconds)


def _embed(images: Sequence[bytes], clients: Sequence[Client], per_call: int) -> list[float]:
    calls = iter([images[at : at + per_call] for at in range(0, len(images), per_call)])

    def work(client: Client) -> list[float]:
        return [embed_once(client, call) for call in calls]  # each takes the next that is left

    with ThreadPoolExecutor(len(clients)) as threads:
        return [seconds for done in threads.map(work, clients) for seconds in done]


def embed_once(client: Client, images: Sequence[bytes]) -> float:
    """The seconds that one call took.

    Raises:
        OperatorError: an image was refused.
    """
    began = time.perf_counter()
    for answer in client.embed(images):
        if answer.failure is not None:
            raise OperatorError(f"an image was refused: {answer.failure.message}")
    return time.perf_counter() - began


def ingest_once(
    client: Client, images: Sequence[bytes], collection: str, prefix: str, flow: Flow | None = None
) -> list[float]:
    """Stores the images under keys that begin so; the seconds from sending each to its answer.

    Raises:
        OperatorError: an image was not stored.
    """
    sent: dict[str, float] = {}
    latencies: list[float] = []

    def items() -> Iterator[IngestItem]:
        for number, image in enumerate(images):
            key = f"{prefix}/{number}"
            sent[key] = time.perf_counter()
            yield IngestItem(image, key=key)

    flow = flow or Flow()
    outcomes = client.ingest(
        items(), collection=collection, streams=flow.streams, window=flow.window
    )
    for outcome in outcomes:
        if outcome.status is not IngestStatus.STORED:
            raise OperatorError(f"image {outcome.key} was not stored: {outcome}")
        latencies.append(time.perf_counter() - sent[outcome.key])
    return latencies
