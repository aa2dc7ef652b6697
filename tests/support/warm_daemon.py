# ruff: noqa: E402 - what is imported, and from where, is the point
"""Spark's Python daemon, which forks a process for each task, with Shoal loaded before it forks.

Otherwise every process would take two seconds to import it, and the tests have dozens. Nothing
that is imported here starts a thread, so forking stays safe.
"""

from __future__ import annotations

import gc
import sys

# Spark puts its own copy of pyspark first, a zip: Python compiles it anew in every process.
sys.path[:] = [place for place in sys.path if not place.endswith("pyspark.zip")]

import pyspark.worker  # noqa: F401 - what the forked process runs
from pyspark.daemon import manager

import clusterer.spark.passes  # noqa: F401 - what tasks import
import embedder.backfill  # noqa: F401 - the same

if __name__ == "__main__":
    gc.freeze()  # after each task a full collection, which is not to look through all modules
    manager()
