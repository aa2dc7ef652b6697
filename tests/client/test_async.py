"""What only the asynchronous client has: tasks, asynchronous items, and a loop not to block."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from clients import Fake, make_items

from shoal import errors
from shoal.client import AsyncClient, Client, IngestItem, IngestStatus, KMeans, Run, RunState
from shoal.v1 import clusterer_pb2, embedder_pb2


def run(address: str, work: Callable[[AsyncClient], Awaitable[Any]]) -> Any:
    """What ``work`` gives back; no task is left when it ends."""

    async def main() -> Any:
        async with AsyncClient(address, timeout_s=10) as client:
            found = await work(client)
        await asyncio.sleep(0)  # what was cancelled last gets its turn
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not {task for task in left if not task.done()}
        return found

    return asyncio.run(main(), debug=True)


def public(kind: type) -> dict[str, Any]:
    return {
        name: method
        for name, method in inspect.getmembers(kind, callable)
        if not name.startswith("_")
    }


def test_both_clients_have_the_same_methods() -> None:
    """By name, parameters and defaults; and each has help."""
    blocking, asynchronous = public(Client), public(AsyncClient)
    assert blocking.keys() == asynchronous.keys()
    assert {"search", "ingest", "cluster", "close"} < blocking.keys()
    for name, method in blocking.items():
        twin = asynchronous[name]
        mine, other = inspect.signature(method).parameters, inspect.signature(twin).parameters
        assert list(mine) == list(other), name
        assert [p.default for p in mine.values()] == [p.default for p in other.values()], name
        assert [p.kind for p in mine.values()] == [p.kind for p in other.values()], name
        assert method.__doc__, name
        assert twin.__doc__, name
        assert (method.__name__, method.__qualname__) == (name, f"Client.{name}")
        assert twin.__qualname__ == f"AsyncClient.{name}"
    assert inspect.signature(Client.get_run).return_annotation == "Run"
    assert inspect.signature(Client.runs).return_annotation == "Iterator[Run]"
    assert inspect.signature(Client.clusterings).return_annotation == "list[Clustering]"
    assert inspect.signature(AsyncClient.watch).return_annotation == "AsyncGenerator[Run, None]"


def test_client_may_be_made_before_the_loop(address: str, fake: Fake) -> None:
    """It connects in the loop that makes the first call."""
    client = AsyncClient(address)
    fake.answers = [embedder_pb2.GetInfoResponse(version="1")]

    async def main() -> str:
        async with client:
            return (await client.info()).version

    assert asyncio.run(main()) == "1"


@pytest.mark.parametrize("settings", [{"timeout_s": 0}, {"address": "localhost:0"}])
def test_settings_are_checked_at_once(settings: dict[str, Any]) -> None:
    """A value out of range does not wait for the first call."""
    with pytest.raises(errors.ConfigError):
        AsyncClient(**settings)


@pytest.mark.parametrize("streams", [1, 3])
def test_asynchronous_items_are_read_lazily_and_one_at_a_time(
    address: str, fake: Fake, streams: int
) -> None:
    """In the loop, never by two streams at once, and never more than the window ahead."""
    inside = ahead = read = 0

    class Items:
        def __aiter__(self) -> AsyncIterator[IngestItem]:
            return self

        async def __anext__(self) -> IngestItem:
            nonlocal inside, read
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1
            read += 1
            if read > 60:
                raise StopAsyncIteration
            return make_items(str(read))[0]

    async def work(client: AsyncClient) -> list[str]:
        nonlocal ahead
        found = []
        async for outcome in client.ingest(Items(), window=6, streams=streams):
            ahead = max(ahead, read - len(found))
            found.append(outcome.key)
        return found

    assert sorted(run(address, work)) == sorted(map(str, range(1, 61)))
    assert ahead <= 6 + 1  # the outcome that was just taken
    assert len(set(fake.peers)) == streams


def test_an_iterable_that_blocks_does_not_block_the_loop(address: str, fake: Fake) -> None:
    """Ordinary items are read in a thread, all in the same one, and only one is read ahead."""
    more = threading.Event()
    threads = set()

    def items() -> Iterator[IngestItem]:
        threads.add(threading.current_thread())
        yield from make_items("a")
        more.wait(10)
        threads.add(threading.current_thread())
        yield from make_items("b")

    fake.answers = [embedder_pb2.GetInfoResponse(version="1")]

    async def work(client: AsyncClient) -> list[str]:
        async with aclosing(client.ingest(items())) as outcomes:
            first = await anext(outcomes)
            assert (await client.info()).version == "1"
            more.set()
            return [first.key, (await anext(outcomes)).key]

    assert run(address, work) == ["a", "b"]
    (thread,) = threads
    assert thread is not threading.current_thread()
    thread.join(10)
    assert not thread.is_alive()


def test_leaving_an_ingestion_does_not_wait_for_the_next_item(address: str) -> None:
    """Whether the items are asynchronous or block: nobody waits for one that is not wanted."""
    never = threading.Event()
    ended = False

    def blocking() -> Iterator[IngestItem]:
        yield from make_items("a")
        never.wait(60)

    async def asynchronous() -> AsyncIterator[IngestItem]:
        nonlocal ended
        try:
            for item in make_items("a"):
                yield item
            await asyncio.Event().wait()
        finally:
            ended = True

    async def work(client: AsyncClient) -> None:
        for items in (blocking(), asynchronous()):
            async with aclosing(client.ingest(items, streams=2)) as outcomes:
                assert (await anext(outcomes)).status is IngestStatus.STORED

    run(address, work)
    assert ended
    assert not never.is_set()
    never.set()


def test_error_of_asynchronous_items_comes_after_the_answers(address: str) -> None:
    """What was sent before is answered; a ValueError stays one."""

    async def items() -> AsyncIterator[IngestItem]:
        for item in make_items("a", "b"):
            yield item
        msg = "the disk is gone"
        raise ValueError(msg)

    async def work(client: AsyncClient) -> list[str]:
        async with aclosing(client.ingest(items())) as outcomes:
            found = [(await anext(outcomes)).key, (await anext(outcomes)).key]
            with pytest.raises(ValueError, match=r"^the disk is gone$"):
                await anext(outcomes)
        return found

    assert run(address, work) == ["a", "b"]


def test_cancelling_a_task_cancels_its_call(address: str, fake: Fake) -> None:
    """The task ends as any cancelled one does; the client goes on."""
    fake.gate.clear()

    async def work(client: AsyncClient) -> None:
        async def ingest() -> None:
            async for _ in client.ingest(make_items("a", "b"), streams=2):
                pass

        task = asyncio.create_task(ingest())
        assert await asyncio.to_thread(fake.arrived.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        fake.gate.set()
        assert len([each async for each in client.ingest(make_items("c"))]) == 1

    run(address, work)


def test_closing_fails_the_calls_under_way(address: str, fake: Fake) -> None:
    """As an error of Shoal's: the tasks that wait for an answer are not cancelled themselves."""
    fake.gate.clear()

    async def work(client: AsyncClient) -> None:
        async def ingest() -> None:
            async for _ in client.ingest(make_items("a")):
                pass

        task = asyncio.create_task(ingest())
        assert await asyncio.to_thread(fake.arrived.wait, 10)
        await client.close()
        with pytest.raises(errors.Cancelled, match="the client was closed"):
            await task
        with pytest.raises(errors.InvalidArgument, match="the client is closed"):
            await client.info()

    run(address, work)


def test_many_calls_share_a_client(address: str, fake: Fake) -> None:
    """Calls of one loop run beside each other."""
    fake.answers = [clusterer_pb2.Run(id="r")] * 50

    async def work(client: AsyncClient) -> list[Run]:
        return await asyncio.gather(*(client.get_run("r") for _ in range(50)))

    assert [each.id for each in run(address, work)] == ["r"] * 50


def test_cluster_awaits_what_it_tells(address: str, fake: Fake) -> None:
    """A coroutine function may be told of changes, as well as a plain one."""
    running = clusterer_pb2.Run(id="r", state=clusterer_pb2.RUN_STATE_RUNNING)
    done = clusterer_pb2.Run(id="r", state=clusterer_pb2.RUN_STATE_SUCCEEDED)
    fake.answers = [running, [running, done]]
    seen: list[RunState] = []

    async def told(now: Run) -> None:
        await asyncio.sleep(0)
        seen.append(now.state)

    async def work(client: AsyncClient) -> Run:
        return await client.cluster(KMeans(3), on_change=told)

    assert run(address, work).state is RunState.SUCCEEDED
    assert seen == [RunState.RUNNING, RunState.SUCCEEDED]
