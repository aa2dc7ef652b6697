"""Settings of a Spark application. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from shoal.errors import ConfigError
from shoal.settings import Setting


def parse_property(text: str) -> tuple[str, str]:
    """The name and the value of ``spark.NAME=VALUE``; ValueError for another text."""
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("spark."):
        raise ValueError(f"expected spark.NAME=VALUE, got {text!r}")
    return name, value


@dataclass(frozen=True, slots=True)
class SparkConfig:
    """Where and how Spark runs; the rest is Spark's own configuration.

    Raises:
        ConfigError: a property is not Spark's.
    """

    master: Annotated[str, Setting("--spark-master", metavar="URL")] = ""
    """Spark's master, `spark://HOST:7077` or `k8s://...`. Default: the one that spark-submit or
    spark-defaults.conf names, else `local[*]`."""
    settings: Annotated[
        Mapping[str, str], Setting("--spark-conf", metavar="KEY=VALUE", parse=parse_property)
    ] = field(default_factory=dict)
    """A property of Spark, such as `spark.executor.memory=4g`."""
    log: Annotated[Path | None, Setting("--spark-log", path="file")] = None
    """Where Spark's own log goes. Default: nowhere.

    Without a file, what Spark writes on its standard error is kept until the end, for error
    messages only. Under spark-submit Spark writes where that was told to.
    """

    def __post_init__(self) -> None:
        """Check the names."""
        for name in self.settings:
            if not name.startswith("spark."):
                msg = f"spark property {name!r}: expected a name that begins with spark."
                raise ConfigError(msg, field="spark_conf")
