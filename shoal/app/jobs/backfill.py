"""``shoal ingest --engine spark``: a backfill, each task with an embedder of its own."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from embedder.config import EmbedderConfig
from shoal.app.config import SparkChoice
from shoal.client import IngestItem, IngestOutcome, IngestStatus
from shoal.rpc.signals import note_interrupts
from shoal.sources import LeftOut, SourceConfig, SourceItem
from shoal.sources.parts import Part, read_part, split

if TYPE_CHECKING:
    from shoal.spark.cluster import SparkCluster
    from shoal.store import StoreConfig
    from shoal.v1 import embedder_pb2 as pb

_TASKS_PER_CORE: Final = 8
"""So that no core is idle for long at the end; each task opens the encoder, about a second."""
_FILE_PARTS_A_TASK: Final = 100
"""25,600 files, or 100 URIs that were named one by one."""
_MOST_REPORTED: Final = 1000
"""Failures that a task names; it counts all."""
OnTasks: TypeAlias = Callable[[int, int], object]
"""Is told how many tasks are done, and how many there are."""

_MESSAGE_BYTES: Final = 2**31 - 1
"""A request is not sent anywhere: nothing but the image's own limit holds."""


@dataclass(frozen=True, slots=True)
class Backfill:
    """The work of all tasks.

    Attributes:
        store: Where the points go.
        collection: The collection there.
        encoders: Names of the encoders that fill it; none for the default.
        embedder: The embedder of a task: its artefacts, and the places that it may read.
        source: Where the images come from, and the fields that all of them have. Its ``left_out``
            counts the files of directories here; each task counts those of its tars.
    """

    store: StoreConfig
    collection: str
    encoders: tuple[str, ...]
    embedder: EmbedderConfig
    source: SourceConfig


@dataclass(slots=True)
class Done:
    """What a task did: how many items became what, those that failed, and what it left out."""

    counts: Counter[IngestStatus] = field(default_factory=Counter)
    failures: list[IngestOutcome] = field(default_factory=list)
    retryable: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)

    def add(self, outcome: IngestOutcome) -> None:
        """Counts ``outcome``."""
        self.counts[outcome.status] += 1
        if outcome.failure is not None:
            self.retryable += outcome.failure.retryable
            if len(self.failures) < _MOST_REPORTED:
                self.failures.append(outcome)


def ingest_in_spark(
    choice: SparkChoice, paths: tuple[str, ...], backfill: Backfill, *, on_progress: OnTasks
) -> list[Done]:
    """What became of the images at ``paths``, by task.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; what was stored stays.
        ShoalError: the encoders or the store cannot be opened, or fail.
    """
    from shoal.spark.cluster import open_spark

    _prove(backfill)
    name = f"shoal ingest {backfill.collection}"
    with note_interrupts() as check, open_spark(choice.spark, name=name) as cluster:

        def tell(done: int, of: int) -> None:
            check()
            on_progress(done, of)

        return ingest_on(cluster, paths, backfill, on_progress=tell)


def ingest_on(
    cluster: SparkCluster, paths: tuple[str, ...], backfill: Backfill, *, on_progress: OnTasks
) -> list[Done]:
    """As ``ingest_in_spark``, on a cluster that is open."""
    for number, directory in enumerate(backfill.embedder.encoders):
        cluster.add_directory(directory, _shipped_name(number))
    limit = backfill.embedder.limits.max_bytes
    backfill = replace(backfill, source=replace(backfill.source, max_bytes=limit))
    least = _TASKS_PER_CORE * cluster.parallelism
    parts = list(split(paths, least=least, left_out=backfill.source.left_out))
    count = _task_count(parts, least)
    tasks = [found for i in range(count) if (found := parts[i::count])]
    if not tasks:
        return []
    work = functools.partial(ingest_parts, backfill)
    return cluster.map(work, tasks, check=lambda: None, progress=on_progress)


def _task_count(parts: list[Part], least: int) -> int:
    """Tasks that are done again in half an hour at most, however many images there are."""
    kinds = Counter(part.kind for part in parts)
    small = kinds["files"] + kinds["uris"] + kinds["unreadable"]
    return max(least, len(parts) - small, -(-small // _FILE_PARTS_A_TASK))


def _shipped_name(number: int) -> str:
    """What an encoder's directory is called on the executors: two may have one name here."""
    return f"encoder-{number}"


def _prove(backfill: Backfill) -> None:
    """Opens everything once where the command runs, so that an error is told once."""
    _ingest(backfill, backfill.embedder.encoders, iter(()), Done())


def ingest_parts(backfill: Backfill, parts: list[Part]) -> Done:
    """For a task: stores the images of ``parts``."""
    from shoal.spark.cluster import shipped

    done = Done()
    encoders = range(len(backfill.embedder.encoders))
    artefacts = tuple(shipped(_shipped_name(number)) for number in encoders)
    source = replace(backfill.source, left_out=done.left_out)
    items = itertools.chain.from_iterable(read_part(part, source) for part in parts)
    _ingest(backfill, artefacts, items, done)
    return done


def _ingest(
    backfill: Backfill, artefacts: tuple[Path, ...], items: Iterator[SourceItem], done: Done
) -> None:
    from embedder.backfill import ingest_all
    from shoal.client.messages_ingest import from_ingest_response
    from shoal.store import open_store

    names: dict[int, str] = {}
    with open_store(backfill.store) as store:
        answers = ingest_all(
            _requests(backfill, items, names, done),
            collection=backfill.collection,
            encoders=backfill.encoders,
            config=_embedder(backfill, artefacts),
            store=store,
        )
    for answer in answers:
        done.add(from_ingest_response(answer, name=names[answer.sequence]))


def _embedder(backfill: Backfill, artefacts: tuple[Path, ...]) -> EmbedderConfig:
    """The embedder of one task, with one thread of each kind: Spark gives a task one core."""
    return replace(
        backfill.embedder,
        encoders=artefacts,
        inference_workers=1,
        decode_workers=1,
        store_workers=1,
    )


def _requests(
    backfill: Backfill, items: Iterator[SourceItem], names: dict[int, str], done: Done
) -> Iterator[pb.IngestRequest]:
    """The items as the SDK would send them; those that cannot be sent are counted here."""
    from shoal.client.messages_ingest import IngestTarget, to_ingest_request
    from shoal.client.values import ItemFailure
    from shoal.errors import InvalidArgument

    target = IngestTarget(backfill.collection, backfill.encoders, _MESSAGE_BYTES)
    for sequence, item in enumerate(items):
        if not isinstance(item, IngestItem):
            done.add(item)
            continue
        name = item.name or item.uri or item.key
        try:
            request = to_ingest_request(item, target, sequence=sequence)
        except InvalidArgument as exc:
            failure = ItemFailure(exc.reason, exc.message, exc.metadata)
            done.add(IngestOutcome(name, IngestStatus.FAILED, item.key, failure=failure))
            continue
        names[sequence] = name
        yield request
