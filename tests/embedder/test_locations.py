"""Images given by their place: real files, a real web server, a real fsspec file system."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem
from websites import Page, WebServer, web_server

from embedder.config import EmbedderConfig
from embedder.flow.admission import Capacity
from embedder.locations.addresses import is_public
from embedder.locations.config import LocationsConfig
from embedder.locations.reading import Locations
from embedder.locations.slots import Slots
from shoal.errors import (
    ConfigError,
    ImageTooLarge,
    InvalidArgument,
    LocationUnavailable,
    NotFound,
    ServiceUnavailable,
    ShoalError,
    Unsupported,
)
from shoal.v1 import common_pb2, embedder_pb2


def read(config: LocationsConfig, *uris: str, max_bytes: int = 1000) -> list[bytes | ShoalError]:
    """What is read at each of ``uris``, one after the other: bytes, or the error."""

    async def scenario() -> list[bytes | ShoalError]:
        locations = Locations(config)
        found = list[bytes | ShoalError]()
        for uri in uris:
            try:
                async with locations.read(uri, max_bytes=max_bytes) as data:
                    found.append(data)
            except ShoalError as exc:
                found.append(exc)
        assert locations._room.items == locations._room.bytes == 0
        await locations.close()
        return found

    return asyncio.run(scenario())


async def outcome(locations: Locations, uri: str) -> bytes | ShoalError:
    """What is read at ``uri``: bytes, or the error."""
    try:
        async with locations.read(uri, max_bytes=1000) as data:
            return data
    except ShoalError as exc:
        return exc


async def until(true: Callable[[], bool]) -> None:
    """Return when it is true; fail if it does not become so."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 - of threads and internals, which tell nobody
            await asyncio.sleep(0.001)


def kinds(answers: list[bytes | ShoalError]) -> list[Any]:
    return [answer if isinstance(answer, bytes) else type(answer) for answer in answers]


# -- files ---------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with a file; beside it one that is not to be read."""
    inside = tmp_path / "photos"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "a b#1.png").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (tmp_path / "photos-2").mkdir()
    (tmp_path / "photos-2" / "x").write_bytes(b"outside")
    return inside


def test_file_under_a_root_is_read_however_its_uri_is_written(root: Path) -> None:
    """Percent-encoding, a host of localhost and dots inside the root all name the file."""
    uri = (root / "sub" / "a b#1.png").as_uri()
    dotted = uri.replace("/sub/", "/sub/../sub/./")
    local = uri.replace("file:///", "file://localhost/")
    assert read(LocationsConfig(roots=(root,)), uri, dotted, local) == [b"inside"] * 3


def test_file_outside_the_roots_is_refused_by_name_and_by_link(root: Path) -> None:
    """Neither .., nor a root's name as a beginning, nor links of any kind lead out."""
    (root / "link").symlink_to(root.parent / "secret")
    (root / "up").symlink_to(root.parent)
    base = root.as_uri()
    answers = read(
        LocationsConfig(roots=(root,)),
        f"{base}/../secret",
        f"{base}/%2e%2e/secret",
        f"{base}-2/x",
        f"{base}/link",
        f"{base}/up/secret",
        "file:///etc/passwd",
        f"{base}/../absent",
    )
    assert kinds(answers) == [Unsupported] * 7


def test_file_may_be_linked_inside_and_the_root_may_be_a_link(root: Path) -> None:
    """A link that stays under a root is followed, and a root is where its link leads."""
    (root / "again").symlink_to(root / "sub" / "a b#1.png")
    alias = root.parent / "alias"
    alias.symlink_to(root)
    config = LocationsConfig(roots=(alias,))
    by_both = read(config, (alias / "again").as_uri(), (root / "again").as_uri())
    assert by_both == [b"inside", b"inside"]


def test_file_that_is_none_is_told_apart(root: Path) -> None:
    """Nothing there, a directory, a pipe (without waiting for its other end), a bad URI."""
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    base = root.as_uri()
    answers = read(
        LocationsConfig(roots=(root,)),
        f"{base}/absent.png",
        f"{base}/sub",
        f"{base}/pipe",
        f"{base}/sub/a%20b#1.png",
        "file://elsewhere/x",
        f"{base}/%00",
        f"{base}/{'x' * 300}",
        f"{base}/loop",
        f"{base}/sub/a%20b%231.png/x",
    )
    bad = InvalidArgument
    assert kinds(answers) == [NotFound, *[bad] * 7, NotFound]


def test_file_larger_than_an_image_may_be_is_not_read(root: Path) -> None:
    """The size is looked at first, and is in the message."""
    (root / "large").write_bytes(b"x" * 1001)
    (answer,) = read(LocationsConfig(roots=(root,)), (root / "large").as_uri())
    assert isinstance(answer, ImageTooLarge)
    assert "at most 1000 bytes, got 1001" in answer.message


# -- the web -------------------------------------------------------------------------------------

PAGES = {
    "/a.png": Page(b"picture"),
    "/with%20space?x=1&y=%C3%A9": Page(b"quoted"),
    "/to": Page(status=302, headers={"Location": "/a.png"}),
    "/to-metadata": Page(status=302, headers={"Location": "http://169.254.169.254/latest"}),
    "/to-file": Page(status=302, headers={"Location": "file:///etc/passwd"}),
    "/to-nowhere": Page(status=302),
    "/loop": Page(status=301, headers={"Location": "/loop"}),
    "/gone": Page(status=410),
    "/forbidden": Page(status=403),
    "/busy": Page(status=503),
    "/throttled": Page(status=429),
    "/zipped": Page(b"picture", headers={"Content-Encoding": "gzip"}),
    "/large": Page(b"x" * 1001),
    "/endless": Page(b"x" * 100_000, declared=None),
    "/undeclared": Page(b"x" * 1000, declared=None),
    "/cut": Page(b"x" * 10, declared=20),
    "/slow": Page(b"xx", pause_s=3),
}


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A server with TLS whose authority this process trusts."""
    with web_server(PAGES, tls=tmp_path) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.authority))
        yield server


def allowing(web: WebServer, **settings: Any) -> LocationsConfig:
    defaults: dict[str, Any] = {"hosts": (f"localhost:{web.port}",), "allow_private": True}
    return LocationsConfig(**{**defaults, **settings})


def test_web_images_are_read_redirects_followed_connections_kept(web: WebServer) -> None:
    """What the host serves is what is read, over one connection."""
    answers = read(
        allowing(web),
        web.url("/a.png"),
        web.url("/with space?x=1&y=é"),
        web.url("/a.png").replace("https", "HTTPS"),
        web.url("/to"),
        web.url("/undeclared"),
    )
    assert answers == [b"picture", b"quoted", b"picture", b"picture", b"x" * 1000]
    assert len({client for client, _ in web.asked[:3]}) == 1


def test_web_errors_say_whether_to_try_again(web: WebServer) -> None:
    """Gone, refused, busy, cut, encoded and too large are different answers."""
    again, bad = LocationUnavailable, InvalidArgument
    expected = {
        "/absent": NotFound,
        "/gone": NotFound,
        "/forbidden": bad,
        "/busy": again,
        "/throttled": again,
        "/zipped": bad,
        "/large": ImageTooLarge,
        "/endless": ImageTooLarge,
        "/cut": again,
        "/loop": bad,
        "/to-metadata": Unsupported,
        "/to-file": Unsupported,
        "/to-nowhere": bad,
    }
    answers = read(allowing(web), *map(web.url, expected))
    assert dict(zip(expected, kinds(answers), strict=True)) == expected


def test_web_place_is_refused_unless_host_port_and_scheme_are_allowed(web: WebServer) -> None:
    """Nothing is asked of another host, port or scheme, or with a password."""
    config = LocationsConfig(hosts=("images.test", "*.cdn.test", f"localhost:{web.port}"))
    answers = read(
        config,
        f"https://localhost:{web.port + 1}/a.png",
        "https://localhost/a.png",
        web.url("/a.png").replace("https", "http"),
        web.url("/a.png", host="user:pass@localhost"),
        web.url("/a.png", host="127.0.0.1"),
        "https://cdn.test/a.png",
        "https://evilcdn.test/a.png",
        "https://images.test.evil.test/a.png",
        "https://images.test:8443/a.png",
        "https:///a.png",
        "ftp://images.test/a.png",
        "s3://images.test/a.png",
    )
    assert kinds(answers) == [Unsupported] * 12
    assert not web.asked


def test_web_host_with_a_private_address_is_refused(web: WebServer) -> None:
    """An allowed name that resolves to this machine is not connected to."""
    answers = read(allowing(web, allow_private=False), web.url("/a.png"))
    assert kinds(answers) == [Unsupported]
    assert not web.asked


def test_web_host_that_resolves_to_public_and_private_is_refused(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second, private address spoils the first: which one is connected to is no matter."""

    async def both(_names: Slots, _host: str, _port: int) -> list[str]:
        return ["93.184.215.14", "127.0.0.1"]

    monkeypatch.setattr("embedder.locations.addresses._resolve", both)
    answers = read(allowing(web, allow_private=False), web.url("/a.png"))
    assert kinds(answers) == [Unsupported]


def test_web_connects_to_the_addresses_that_were_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is not resolved again, and the next address is tried where one does not answer."""

    async def resolved(_names: Slots, _host: str, _port: int) -> list[str]:
        return ["::1", "127.0.0.1"]  # nobody listens on the first

    monkeypatch.setattr("embedder.locations.addresses._resolve", resolved)
    with web_server(PAGES) as web:
        hosts = (f"images.invalid:{web.port}",)
        config = LocationsConfig(hosts=hosts, allow_http=True, allow_private=True)
        assert read(config, web.url("/a.png", host="images.invalid")) == [b"picture"]


def test_web_certificate_is_verified(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose authority is not trusted is not read."""
    monkeypatch.delenv("SSL_CERT_FILE")
    (answer,) = read(allowing(web), web.url("/a.png"))
    assert isinstance(answer, LocationUnavailable)
    assert "certificate" in answer.message.lower()
    assert not web.asked


def test_web_host_that_is_slow_absent_or_silent_ends_in_time(web: WebServer) -> None:
    """Neither a slow body, nor a host that accepts and says nothing, nor nobody holds a caller."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        hosts = (f"localhost:{web.port}", f"localhost:{port}", "absent.invalid")
        config = allowing(web, hosts=hosts, timeout_s=0.5)
        answers = read(
            config, web.url("/slow"), f"https://localhost:{port}/x", "https://absent.invalid/x"
        )
    assert kinds(answers) == [LocationUnavailable] * 3
    assert "within 0.5 s" in str(answers[0])


def test_web_without_tls_needs_to_be_allowed() -> None:
    """Http is off unless asked for, also for a redirect."""
    with web_server(PAGES) as web:
        assert kinds(read(allowing(web), web.url("/a.png"))) == [Unsupported]
        assert read(allowing(web, allow_http=True), web.url("/to")) == [b"picture"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:4700::1111", True),
        ("::ffff:93.184.215.14", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.0.2.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("::", False),
        ("::ffff:127.0.0.1", False),
        ("::7f00:1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("no address", False),
    ],
)
def test_is_public(address: str, public: bool) -> None:  # noqa: FBT001
    """Only what is reachable from everywhere is public, through whatever notation."""
    assert is_public(address) is public


# -- object stores -------------------------------------------------------------------------------


@pytest.fixture
def bucket() -> Iterator[str]:
    """A place in fsspec's memory, with an object in it and one beside it."""
    system = fsspec.filesystem("memory")
    system.pipe({"/bucket/photos/a b.png": b"object", "/bucket/secret": b"outside"})
    yield "memory://bucket/photos"
    system.rm("/bucket", recursive=True)


class Hanging(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store whose objects hang until they may go on; of ``body`` it is the body that does."""

    cachable = False
    go_on: ClassVar[threading.Event]
    entered: ClassVar[int]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if not path.endswith("body"):
            self.hang()
        return {"size": 6, "type": "file"}

    def cat_file(self, path: str, **_: Any) -> bytes:
        if path.endswith("body"):
            self.hang()
        return b"object"

    @classmethod
    def hang(cls) -> None:
        cls.entered += 1
        cls.go_on.wait()


@pytest.fixture
def hanging() -> Iterator[type[Hanging]]:
    """The store behind hanging://, whose threads end with the test."""
    Hanging.go_on, Hanging.entered = threading.Event(), 0
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    yield Hanging
    Hanging.go_on.set()


def test_object_under_a_prefix_is_read(bucket: str) -> None:
    """Names are taken as they are; a size limit is looked at before the body."""
    config = LocationsConfig(prefixes=(bucket,))
    assert read(config, f"{bucket}/a b.png") == [b"object"]
    assert kinds(read(config, f"{bucket}/a b.png", max_bytes=5)) == [ImageTooLarge]


def test_object_elsewhere_absent_or_chained_is_refused(bucket: str) -> None:
    """Neither another prefix, nor .., nor fsspec's own chaining leads out."""
    answers = read(
        LocationsConfig(prefixes=(bucket,)),
        "memory://bucket/secret",
        f"{bucket}-2/x",
        "file:///etc/passwd",
        f"{bucket}/../secret",
        f"{bucket}/a b.png::file:///etc/passwd",
        f"{bucket}//x",
        f"{bucket}/absent",
    )
    bad = InvalidArgument
    assert kinds(answers) == [Unsupported, Unsupported, Unsupported, bad, bad, bad, NotFound]


# -- bounds and configuration --------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"roots": (Path("/no/such/dir"),)}, "file root /no/such/dir: expected a directory"),
        ({"hosts": ("https://images.test",)}, "host 'https://images.test': expected a name"),
        ({"hosts": ("*",)}, r"host '\*': expected a name"),
        ({"prefixes": ("bucket/photos",)}, "object prefix 'bucket/photos': expected a place"),
        ({"prefixes": ("file:///data",)}, "expected an object store"),
        ({"prefixes": ("zip://x::s3://y",)}, "expected a place"),
        ({"timeout_s": 0}, "timeout_s: expected more than 0 s"),
        ({"max_redirects": -1}, "max_redirects: expected at least 0"),
        ({"concurrency": 0}, "concurrency: expected at least 1"),
    ],
)
def test_config_says_what_is_wrong(settings: dict[str, Any], message: str) -> None:
    """A wrong setting is named, with what was expected."""
    with pytest.raises(ConfigError, match=message):
        LocationsConfig(**settings)


def test_object_store_without_its_package_is_a_config_error() -> None:
    """A scheme that fsspec has no file system for is refused when the server starts."""

    async def scenario() -> None:
        with pytest.raises(ConfigError, match="nosuch://: no file system for it"):
            Locations(LocationsConfig(prefixes=("nosuch://bucket",)))

    asyncio.run(scenario())


# -- in the service ------------------------------------------------------------------------------


def test_service_embeds_and_ingests_by_uri(serve: Any, images: Any, tmp_path: Path) -> None:
    """A place gives the vector and the point of the bytes; wrong ones cost only themselves."""
    (tmp_path / "china.jpg").write_bytes(images.china)
    (tmp_path / "text.jpg").write_bytes(images.text)
    good, bad = ((tmp_path / name).as_uri() for name in ("china.jpg", "text.jpg"))

    async def scenario() -> None:
        config = EmbedderConfig(locations=LocationsConfig(roots=(tmp_path,)))
        async with serve(config) as served:
            info = await served.stub.GetInfo(embedder_pb2.GetInfoRequest())
            assert list(info.uri_schemes) == ["file"]
            sources = [{"uri": good}, {"uri": bad}, {"uri": "file:///etc/passwd"}, {"uri": ""}]
            embedded = await served.stub.Embed(
                embedder_pb2.EmbedRequest(
                    images=[common_pb2.Image(**each) for each in sources]
                    + [common_pb2.Image(data=images.china)]
                )
            )
            found = [result.error.reason for result in embedded.results]
            assert found == ["", "IMAGE_UNSUPPORTED_FORMAT", "UNSUPPORTED", "INVALID_ARGUMENT", ""]
            by_uri, by_bytes = embedded.results[0].vector, embedded.results[4].vector
            assert by_uri.values == by_bytes.values

            requests = [
                embedder_pb2.IngestRequest(
                    sequence=number,
                    collection="photos",
                    image=common_pb2.Image(uri=uri),
                    key=key,
                )
                for number, (uri, key) in enumerate([(good, ""), (good, "k"), (bad, "b")])
            ]
            answers = {a.sequence: a async for a in served.stub.Ingest(iter(requests))}
            assert answers[0].key.startswith("sha256:")
            assert answers[1].key == "k"
            assert answers[2].error.reason == "IMAGE_UNSUPPORTED_FORMAT"
            (record,) = served.store.retrieve("photos", [answers[1].result.id])
            assert record.payload["uri"] == good
            again = [a async for a in served.stub.Ingest(iter(requests[:2]))]
            assert {a.result.status for a in again} == {embedder_pb2.INGEST_STATUS_UNCHANGED}

    asyncio.run(scenario())


def test_service_keeps_the_order_of_two_places_with_one_key(serve: Any, images: Any) -> None:
    """The later one wins, also when the earlier one takes longer to read."""
    pages = {"/slow": Page(images.china, pause_s=0.7), "/fast": Page(images.flower)}

    async def scenario(web: WebServer) -> None:
        locations = allowing(web, allow_http=True)
        async with serve(EmbedderConfig(locations=locations)) as served:
            requests = [
                embedder_pb2.IngestRequest(
                    sequence=number,
                    collection="photos",
                    image=common_pb2.Image(uri=web.url(path)),
                    key="one",
                )
                for number, path in enumerate(("/slow", "/fast"))
            ]
            answers = [a async for a in served.stub.Ingest(iter(requests))]
            assert [a.sequence for a in answers] == [0, 1]
            (record,) = served.store.retrieve("photos", [answers[0].result.id])
            assert record.payload["uri"] == web.url("/fast")

    with web_server(pages) as web:
        asyncio.run(scenario(web))
