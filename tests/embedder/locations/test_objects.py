"""Objects in stores: a real fsspec file system."""

from __future__ import annotations

import asyncio

import pytest
from places import kinds, read

from embedder.locations.config import LocationsConfig
from embedder.locations.reading import Locations
from shoal.errors import ConfigError, ImageTooLarge, InvalidArgument, NotFound, Unsupported


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
        with pytest.raises(ConfigError, match="nosuch://: no file system for it"):
            Locations(LocationsConfig(prefixes=("nosuch://bucket",)))

    asyncio.run(scenario())
