"""Objects in stores: a real fsspec file system."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem
from places import Plain, kinds, read

from embedder.locations.config import LocationsConfig
from embedder.locations.objects import Objects
from embedder.locations.reading import Locations
from shoal.errors import (
    ConfigError,
    ImageTooLarge,
    InvalidArgument,
    LocationUnavailable,
    NotFound,
    ShoalError,
    Unsupported,
)


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


def test_object_store_without_its_package_is_a_config_error() -> None:
    """A scheme that fsspec has no file system for is refused when the server starts."""

    async def scenario() -> None:
        with pytest.raises(ConfigError, match="nosuch://: no file system for it") as caught:
            Locations(LocationsConfig(prefixes=("nosuch://bucket",)))
        assert caught.value.metadata["field"] == "prefixes"

    asyncio.run(scenario())


class Told(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store that answers as it is told, and notes what it was asked."""

    cachable = False
    facts: ClassVar[dict[str, Any] | Exception]
    body: ClassVar[bytes | Exception]
    asked: ClassVar[list[tuple[Any, ...]]]
    options: ClassVar[dict[str, Any]]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        type(self).options = options

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self.asked.append(("info", path))
        if isinstance(self.facts, Exception):
            raise self.facts
        return self.facts

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self.asked.append(("cat", path, start, end))
        if isinstance(self.body, Exception):
            raise self.body
        return self.body[start:end]


@pytest.fixture
def told() -> type[Told]:
    """The store behind told://, with an object of six bytes."""
    Told.facts, Told.body, Told.asked = {"size": 6, "type": "file"}, b"object", []
    fsspec.register_implementation("told", Told, clobber=True)
    return Told


def read_now(uri: str, *prefixes: str, max_bytes: int = 1000) -> tuple[Any, list[int]]:
    """What is read at ``uri``, or the error, and the memory that was reserved."""
    means = Plain()
    objects = Objects(prefixes or ("told://bucket",))
    try:
        return asyncio.run(objects.read(uri, max_bytes=max_bytes, means=means)), means.reserved
    except ShoalError as exc:
        return exc, means.reserved


def test_store_is_asked_for_one_byte_more_than_the_size(told: type[Told]) -> None:
    """So that an object that has grown shows, and no more of it is ever sent."""
    assert read_now("told://bucket/x", max_bytes=6) == (b"object", [6])
    uri = "told://bucket/x"
    assert told.asked == [("info", uri), ("cat", uri, 0, 7)]
    assert told.options == {"use_listings_cache": False}, "a listing may be old"


def test_object_that_is_too_large_takes_no_memory(told: type[Told]) -> None:
    """Its body is not asked for."""
    outcome, reserved = read_now("told://bucket/x", max_bytes=5)
    assert isinstance(outcome, ImageTooLarge)
    assert outcome.message == "image 'told://bucket/x': expected at most 5 bytes, got 6"
    assert reserved == []
    assert [what for what, *_ in told.asked] == ["info"]


@pytest.mark.parametrize("body", [b"objects", b"obj", b""])
def test_object_that_changes_while_it_is_read_is_unavailable(told: type[Told], body: bytes) -> None:
    """Longer or shorter than its size said."""
    told.body = body
    outcome, _ = read_now("told://bucket/x")
    assert isinstance(outcome, LocationUnavailable)
    assert outcome.message == "object 'told://bucket/x': it changed while it was read"


@pytest.mark.parametrize(
    "facts",
    [
        {"size": 6, "type": "directory"},
        {"size": 6},
        {"type": "file"},
        {"size": None, "type": "file"},
        {"size": "6", "type": "file"},
    ],
)
def test_what_is_no_object_is_refused(told: type[Told], facts: dict[str, Any]) -> None:
    """A directory, and whatever has no size, is not read."""
    told.facts = facts
    outcome, _ = read_now("told://bucket/x")
    assert isinstance(outcome, InvalidArgument)
    message = "image.uri: expected an object, got 'told://bucket/x', which is none"
    assert (outcome.message, outcome.metadata["field"]) == (message, "image.uri")


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (FileNotFoundError("secret"), NotFound, "no such object: {}"),
        (
            PermissionError("secret"),
            InvalidArgument,
            "image.uri: expected an object that this server may read, got {}",
        ),
        (OSError("secret"), LocationUnavailable, "object {}: OSError; the log has more"),
        (KeyError("secret"), LocationUnavailable, "object {}: KeyError; the log has more"),
    ],
)
def test_store_that_fails_tells_the_log_and_not_the_caller(
    told: type[Told],
    failure: Exception,
    kind: type[ShoalError],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own words may hold keys and names of servers; what is no answer is in the log."""
    for asked in ("facts", "body"):
        told.facts = {"size": 6, "type": "file"}
        setattr(told, asked, failure)
        caplog.clear()
        outcome, _ = read_now("told://bucket/x")
        assert type(outcome) is kind
        assert outcome.message == message.format("'told://bucket/x'")
        assert outcome.__cause__ is failure
        assert outcome.metadata.get("field") == ("image.uri" if kind is InvalidArgument else None)
        records = [r for r in caplog.records if r.name == "embedder.locations.objects"]
        assert len(records) == (kind is LocationUnavailable)
        for record in records:
            assert record.levelno == logging.WARNING
            assert record.__dict__["uri"] == "told://bucket/x"
            assert record.exc_info is not None
            assert record.exc_info[1] is failure


@pytest.mark.parametrize(
    ("prefix", "uri"),
    [
        ("told://bucket", "told://bucket/x"),
        ("told://bucket/", "told://bucket/x"),
        ("told://bucket//", "told://bucket/x"),
        ("told://bucket/a", "told://bucket/a/b/c.png"),
        ("told://bucket", "told://bucket/.hidden"),
        ("told://bucket", "told://bucket/a..b"),
        ("told://bucket", "told://bucket/a/...x"),
        ("told://bucket", "told://bucket/a:b"),
        ("told://bucket", "told://bucket/ü ö?a#b%2F"),
    ],
)
def test_object_below_a_prefix_may_have_any_name(told: type[Told], prefix: str, uri: str) -> None:
    """The store gets its URI as it came."""
    assert read_now(uri, "told://other", prefix)[0] == b"object"
    assert told.asked[0] == ("info", uri)


@pytest.mark.parametrize(
    "uri",
    [
        "told://bucket",
        "told://bucket2/x",
        "told://other/x",
        "TOLD://bucket/x",
        "told:///bucket/x",
        "memory://bucket/x",
        "x::told://bucket/x",
    ],
)
def test_object_beside_a_prefix_is_not_looked_at(told: type[Told], uri: str) -> None:
    """Neither the prefix itself, nor a name that only begins like it."""
    outcome, _ = read_now(uri)
    assert isinstance(outcome, Unsupported)
    assert told.asked == []


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../x",
        "a/..",
        "a/../../x",
        ".",
        "./x",
        "a/./x",
        "a//x",
        "/x",
        "a::b",
        "a\\b",
        "a\nb",
        "a\x00b",
        "a\x1fb",
        "a\x7fb",
    ],
)
def test_name_that_climbs_or_chains_is_refused(told: type[Told], name: str) -> None:
    """Whatever a file system might make of it, it is not asked."""
    uri = f"told://bucket/{name}"
    outcome, _ = read_now(uri)
    assert isinstance(outcome, InvalidArgument)
    message = f"image.uri: expected told://bucket/name without .. and ::, got {uri!r}"
    assert (outcome.message, outcome.metadata["field"]) == (message, "image.uri")
    assert told.asked == []


def test_store_without_fsspec_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed, the error names it."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError) as caught:
        Objects(("s3://bucket",))
    told = "s3:// needs the fsspec package: install shoal[objects]"
    assert (caught.value.message, caught.value.metadata["field"]) == (told, "prefixes")
