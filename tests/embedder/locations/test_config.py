"""Which places may be read: what a configuration may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedder.flow.admission import Capacity
from embedder.locations.config import LocationsConfig
from shoal.errors import ConfigError


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


def test_field_of_a_wrong_place_is_named(tmp_path: Path) -> None:
    """Each kind of place by its own setting."""
    (tmp_path / "file").write_bytes(b"")
    wrong: dict[str, Any] = {
        "roots": (tmp_path, tmp_path / "file"),
        "hosts": ("good.test", "bad host"),
        "prefixes": ("s3://good", "s3"),
    }
    for field, value in wrong.items():
        with pytest.raises(ConfigError) as caught:
            LocationsConfig(**{field: value})
        assert caught.value.metadata["field"] == field


def test_nothing_is_allowed_by_default() -> None:
    """No place, no scheme, no plain http, no private address; and every bound has a value."""
    config = LocationsConfig()
    assert (config.roots, config.hosts, config.prefixes, config.schemes) == ((), (), (), ())
    assert not config.allow_http
    assert not config.allow_private
    assert (config.timeout_s, config.max_redirects, config.concurrency) == (30, 3, 32)
    assert config.capacity == Capacity(1024, 256 * 2**20)


@pytest.mark.parametrize(
    "host",
    [
        "a",
        "images.example.org",
        "images.example.org:8443",
        "*.example.org",
        "*.example.org:8443",
        "a-b.c1",
        "192.0.2.1",
        "192.0.2.1:80",
        "[::1]",
        "[2001:db8::1]:8443",
        "[::ffff:192.0.2.1]",
    ],
)
def test_hosts_that_may_be_allowed(host: str) -> None:
    """Names, their subdomains and addresses, each with a port or without."""
    assert LocationsConfig(hosts=(host,)).schemes == ("https",)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "*",
        "*.",
        "*:443",
        "**.example.org",
        "a.*.org",
        "*example.org",
        "https://a.test",
        "a.test/x",
        "a.test:",
        "a.test:123456",
        "a.test:x",
        "user@a.test",
        "A.test",
        "-a.test",
        "a.test-",
        ".a.test",
        "a.test.",
        "a test",
        "bücher.test",
        "[::1",
        "::1",
        "[]",
        "[g::1]",
        "a.test\n",
    ],
)
def test_hosts_that_cannot_be_allowed(host: str) -> None:
    """No star alone, no scheme, path or user, and no spelling that no URL's host would equal."""
    with pytest.raises(ConfigError, match=r"^host .*: expected a name as"):
        LocationsConfig(hosts=(host,))


@pytest.mark.parametrize("prefix", ["s3://b", "gs://b/photos", "abfs://c@a/x", "a+b-c.d://x"])
def test_prefixes_that_may_be_allowed(prefix: str) -> None:
    """Any scheme but those with rules of their own."""
    assert LocationsConfig(prefixes=(prefix,)).schemes == (prefix.partition("://")[0],)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", "a place as s3://bucket/photos"),
        ("s3:", "a place as s3://bucket/photos"),
        ("s3://", "a place as s3://bucket/photos"),
        ("://b", "a place as s3://bucket/photos"),
        ("3s://b", "a place as s3://bucket/photos"),
        ("S3://b", "a place as s3://bucket/photos"),
        ("s3://a b", "a place as s3://bucket/photos"),
        ("s3://a\n", "a place as s3://bucket/photos"),
        ("zip://x::s3://y", "a place as s3://bucket/photos"),
        ("file://x", "an object store: files and hosts are allowed as such"),
        ("local://x", "an object store: files and hosts are allowed as such"),
        ("http://x", "an object store: files and hosts are allowed as such"),
        ("https://x", "an object store: files and hosts are allowed as such"),
    ],
)
def test_prefixes_that_cannot_be_allowed(prefix: str, expected: str) -> None:
    """What is no place, chains file systems, or would go round the rules of files and hosts."""
    with pytest.raises(ConfigError) as caught:
        LocationsConfig(prefixes=(prefix,))
    assert caught.value.message == f"object prefix {prefix!r}: expected {expected}"
    assert caught.value.metadata["field"] == "prefixes"


def test_schemes_are_those_of_the_allowed_places(tmp_path: Path) -> None:
    """In order, each once; http only where there are hosts and it is allowed."""
    prefixes = ("s3://b", "gs://b", "s3://c")
    everything = LocationsConfig(
        roots=(tmp_path,), hosts=("a.test",), prefixes=prefixes, allow_http=True
    )
    assert everything.schemes == ("file", "gs", "http", "https", "s3")
    assert LocationsConfig(hosts=("a.test",)).schemes == ("https",)
    assert LocationsConfig(allow_http=True).schemes == ()
    assert LocationsConfig(roots=(tmp_path,), allow_http=True).schemes == ("file",)


@pytest.mark.parametrize(
    "settings", [{"timeout_s": 0.001}, {"max_redirects": 0}, {"concurrency": 1}]
)
def test_least_values_are_allowed(settings: dict[str, Any]) -> None:
    """Each bound's own edge."""
    LocationsConfig(**settings)


def test_time_that_is_no_number_is_refused() -> None:
    """NaN is more than nothing and less than nothing."""
    with pytest.raises(ConfigError, match="timeout_s: expected more than 0 s, got nan"):
        LocationsConfig(timeout_s=float("nan"))
