"""Places of images, to be read: pages of a web server, a store that hangs, and what reads them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from fsspec.spec import AbstractFileSystem
from websites import Page, WebServer

from embedder.locations.config import LocationsConfig
from embedder.locations.reading import Locations
from shoal.errors import ShoalError

PAGES = {
    "/a.png": Page(b"picture"),
    "/with%20space?x=1&y=%C3%A9": Page(b"quoted"),
    "/to": Page(status=302, headers={"Location": "/a.png"}),
    "/to-metadata": Page(status=302, headers={"Location": "http://169.254.169.254/latest"}),
    "/to-file": Page(status=302, headers={"Location": "file:///etc/passwd"}),
    "/to-http": Page(status=302, headers={"Location": "http://a.test/x"}),
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


def allowing(web: WebServer, **settings: Any) -> LocationsConfig:
    defaults: dict[str, Any] = {"hosts": (f"localhost:{web.port}",), "allow_private": True}
    return LocationsConfig(**{**defaults, **settings})


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


class Plain:
    """Means without bounds: calls run at once, and what is reserved is remembered."""

    def __init__(self, *, on_reserve: Callable[[], object] = lambda: None) -> None:
        self.reserved: list[int] = []
        self._on_reserve = on_reserve

    async def reserve(self, size: int) -> None:
        self.reserved.append(size)
        self._on_reserve()

    async def run(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)
