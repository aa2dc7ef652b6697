"""Memory, time and number of what is read: no place holds up another."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from places import Hanging, kinds, outcome, until
from prometheus_client import REGISTRY

from embedder.flow.admission import Capacity
from embedder.locations.config import LocationsConfig
from embedder.locations.reading import Locations
from embedder.locations.web import Web
from shoal.errors import (
    LocationUnavailable,
    NotFound,
    ServiceUnavailable,
    ShoalError,
    Unsupported,
)


def test_what_is_read_waits_for_memory_and_gives_it_back(root: Path) -> None:
    """No more bytes are held than the capacity says; waiting for them is not the place's time."""
    uri = (root / "sub" / "a b#1.png").as_uri()
    config = LocationsConfig(roots=(root,), capacity=Capacity(10, 8), timeout_s=1)

    async def scenario() -> None:
        locations = Locations(config)
        async with locations.read(uri, max_bytes=1000) as first:
            second = asyncio.create_task(outcome(locations, uri))
            await until(lambda: bool(locations._room._waiting))
            await asyncio.wait({second}, timeout=1.5 * config.timeout_s)
            assert not second.done()
            assert first == b"inside"
        assert await second == first
        assert locations._room.items == locations._room.bytes == 0
        await locations.close()

    asyncio.run(scenario())


def test_clock_goes_on_after_the_wait_for_memory(root: Path, hanging: type[Hanging]) -> None:
    """A body that hangs ends in time, also when its memory had to be waited for."""
    file = (root / "sub" / "a b#1.png").as_uri()
    config = LocationsConfig(
        roots=(root,), prefixes=("hanging://b",), capacity=Capacity(1, 1000), timeout_s=1
    )

    async def scenario() -> None:
        locations = Locations(config)
        async with locations.read(file, max_bytes=1000):
            read = asyncio.create_task(outcome(locations, "hanging://b/body"))
            await until(lambda: bool(locations._room._waiting))
        answer = await read
        assert isinstance(answer, LocationUnavailable)
        assert "within 1 s" in answer.message
        assert hanging.entered == 1
        assert locations._room.items == locations._room.bytes == 0
        await locations.close()

    asyncio.run(scenario())


def test_objects_that_hang_hold_up_their_own_kind_only(root: Path, hanging: type[Hanging]) -> None:
    """Threads do not pile up; what finds them all hanging is told at once, until one has ended."""
    file = (root / "sub" / "a b#1.png").as_uri()
    config = LocationsConfig(
        roots=(root,), prefixes=("hanging://b", "memory://b"), concurrency=2, timeout_s=1
    )

    async def scenario() -> None:
        locations = Locations(config)
        answers = await asyncio.gather(*(outcome(locations, f"hanging://b/{n}") for n in range(5)))
        assert kinds(answers) == [LocationUnavailable] * 5
        told = [answer.message for answer in answers if isinstance(answer, ShoalError)]
        assert all("within 1 s, it took longer" in message for message in told[:2])
        assert all("hanging: all 2 reads" in message for message in told[2:])
        assert hanging.entered == 2
        assert await outcome(locations, file) == b"inside"
        assert kinds([await outcome(locations, "memory://b/absent")]) == [NotFound]
        later = await outcome(locations, "hanging://b/later")
        assert isinstance(later, LocationUnavailable)
        assert "all 2 reads" in later.message
        assert hanging.entered == 2
        hanging.go_on.set()
        await until(lambda: not locations._slots["hanging"]._abandoned)
        assert await outcome(locations, "hanging://b/later") == b"object"
        await locations.close()

    asyncio.run(scenario())


def test_read_that_its_caller_gave_up_keeps_its_slot_until_it_ends(hanging: type[Hanging]) -> None:
    """The next one waits for the thread: a cancel does not say that the place hangs."""
    config = LocationsConfig(prefixes=("hanging://b",), concurrency=1)

    async def scenario() -> None:
        locations = Locations(config)
        first = asyncio.create_task(outcome(locations, "hanging://b/1"))
        await until(lambda: hanging.entered == 1)
        first.cancel()
        await asyncio.wait({first})
        second = asyncio.create_task(outcome(locations, "hanging://b/2"))
        third = asyncio.create_task(outcome(locations, "hanging://b/3"))
        await until(lambda: len(locations._slots["hanging"]._waiting) == 2)
        assert hanging.entered == 1
        second.cancel()
        hanging.go_on.set()
        assert await third == b"object"
        await locations.close()

    asyncio.run(scenario())


def test_read_that_its_caller_gave_up_counts_as_hanging_in_the_end(hanging: type[Hanging]) -> None:
    """Who waits for its slot does not wait for longer than a read may take."""
    config = LocationsConfig(prefixes=("hanging://b",), concurrency=1, timeout_s=0.3)

    async def scenario() -> None:
        locations = Locations(config)
        first = asyncio.create_task(outcome(locations, "hanging://b/1"))
        await until(lambda: hanging.entered == 1)
        first.cancel()
        answer = await outcome(locations, "hanging://b/2")
        assert isinstance(answer, LocationUnavailable)
        assert "all 1 reads" in answer.message
        await locations.close()

    asyncio.run(scenario())


def test_close_ends_idle_threads_and_those_who_wait(root: Path, hanging: type[Hanging]) -> None:
    """Nobody waits for ever for a slot that is not given any more, and no thread is left over."""
    file = (root / "sub" / "a b#1.png").as_uri()
    config = LocationsConfig(roots=(root,), prefixes=("hanging://b",), concurrency=1)

    async def scenario() -> None:
        before = set(threading.enumerate())
        locations = Locations(config)
        assert await outcome(locations, file) == b"inside"
        first = asyncio.create_task(outcome(locations, "hanging://b/1"))
        await until(lambda: hanging.entered == 1)
        second = asyncio.create_task(outcome(locations, "hanging://b/2"))
        await until(lambda: bool(locations._slots["hanging"]._waiting))
        await locations.close()
        assert isinstance(await second, ServiceUnavailable)
        assert isinstance(await outcome(locations, file), ServiceUnavailable)
        hanging.go_on.set()
        assert await first == b"object"
        await until(lambda: set(threading.enumerate()) <= before)

    asyncio.run(scenario())


def test_process_ends_while_a_read_hangs() -> None:
    """A thread that cannot be ended is not waited for."""
    script = """
import asyncio, threading, fsspec
from fsspec.spec import AbstractFileSystem
from embedder.locations.config import LocationsConfig
from embedder.locations.reading import Locations
from shoal.errors import LocationUnavailable

class Hanging(AbstractFileSystem):
    def info(self, path, **_):
        threading.Event().wait()

async def main():
    locations = Locations(LocationsConfig(prefixes=("hanging://b",), timeout_s=0.1))
    try:
        async with locations.read("hanging://b/x", max_bytes=1):
            pass
    except LocationUnavailable:
        print("in time")
    await locations.close()

fsspec.register_implementation("hanging", Hanging)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "in time\n", "")


def test_host_name_that_is_not_resolved_keeps_no_thread_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What resolves names has threads of its own, no more than may run, and tells so."""
    go_on, asked = threading.Event(), list[str]()

    def resolve(host: str, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        go_on.wait()
        raise socket.gaierror

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    config = LocationsConfig(hosts=("a.test",), concurrency=1, timeout_s=0.3)

    async def scenario() -> None:
        locations = Locations(config)
        uris = [f"https://a.test/{n}" for n in range(3)]
        answers = [await outcome(locations, uri) for uri in uris]
        assert kinds(answers) == [LocationUnavailable] * 3
        assert asked == ["a.test"]
        assert "all 1 reads" in str(answers[2])
        go_on.set()
        await locations.close()

    try:
        asyncio.run(scenario())
    finally:
        go_on.set()


def test_without_places_every_uri_is_told_to_send_bytes() -> None:
    """Whoever did not configure any learns what to do instead."""

    async def scenario() -> None:
        locations = Locations(LocationsConfig())
        for uri in ("file:///x", "https://a.test/x", "x"):
            answer = await outcome(locations, uri)
            assert isinstance(answer, Unsupported)
            told = "image.uri: this server reads no locations; send the bytes in image.data"
            assert (answer.message, answer.metadata["field"]) == (told, "image.uri")
        await locations.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("uri", ["https://a.test/x", "s3://b/x", "x", "", "/photos/x", "fil"])
def test_scheme_of_no_allowed_place_is_not_allowed(root: Path, uri: str) -> None:
    """Whatever is allowed otherwise."""

    async def scenario() -> None:
        locations = Locations(LocationsConfig(roots=(root,)))
        answer = await outcome(locations, uri)
        assert isinstance(answer, Unsupported)
        told = f"image.uri: expected a place that this server may read, got {uri!r}"
        assert answer.message == told
        await locations.close()

    asyncio.run(scenario())


def test_http_and_https_share_their_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are one kind of place: as many at a time as there are connections."""
    reading: list[str] = []
    may_end = asyncio.Event()

    async def read(_: Web, uri: str, **__: Any) -> bytes:
        reading.append(uri)
        await may_end.wait()
        return uri.encode()

    monkeypatch.setattr(Web, "read", read)
    config = LocationsConfig(hosts=("a.test",), allow_http=True, concurrency=1)

    async def scenario() -> None:
        locations = Locations(config)
        uris = ["https://a.test/1", "http://a.test/2"]
        tasks = [asyncio.create_task(outcome(locations, uri)) for uri in uris]
        await until(lambda: bool(locations._slots["http"]._waiting))
        assert reading == uris[:1]
        may_end.set()
        assert await asyncio.gather(*tasks) == [uri.encode() for uri in uris]
        await locations.close()

    asyncio.run(scenario())


def test_closed_locations_close_their_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no host may be asked."""
    closed: list[Web] = []

    async def close(web: Web) -> None:
        closed.append(web)

    monkeypatch.setattr(Web, "close", close)

    async def scenario() -> None:
        locations = Locations(LocationsConfig())
        await locations.close()
        assert closed == [locations._web]

    asyncio.run(scenario())


def test_reads_are_timed(root: Path) -> None:
    """Each one counts once, whatever comes of it."""

    def count() -> float:
        return REGISTRY.get_sample_value("shoal_embedder_read_seconds_count") or 0

    async def scenario() -> None:
        locations = Locations(LocationsConfig(roots=(root,)))
        before = count()
        await outcome(locations, (root / "sub" / "a b#1.png").as_uri())
        await outcome(locations, (root / "absent").as_uri())
        assert count() == before + 2
        await locations.close()

    asyncio.run(scenario())
