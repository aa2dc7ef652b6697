"""Settings of a Spark application. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shoal.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SparkConfig:
    """Where and how Spark runs; what is not said here is Spark's own configuration.

    Attributes:
        master: Spark's master URL. Empty for what spark-submit or spark-defaults.conf says, else
            ``local[*]``.
        settings: Spark's properties, ``spark.executor.memory`` and the like.
        log: The file that gets what Spark writes on its standard error; None keeps it until the
            end for error messages only. Under spark-submit Spark writes where that was told to.

    Raises:
        ConfigError: a property is not Spark's.
    """

    master: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None

    def __post_init__(self) -> None:
        """Check the names."""
        for name in self.settings:
            if not name.startswith("spark."):
                msg = f"spark property {name!r}: expected a name that begins with spark."
                raise ConfigError(msg, field="spark_conf")
