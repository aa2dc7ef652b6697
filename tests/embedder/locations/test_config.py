"""Which places may be read: what a configuration may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
