"""Apache Spark as an engine: where it runs, and work over slices of a store or of a list.

What services do in Spark tasks is theirs (``clusterer.spark``, ``embedder.backfill``); this room
opens the cluster, cuts the work, and turns what fails there into errors of ours. pyspark is an
extra, so it is imported only when a cluster is opened.
"""

from __future__ import annotations

from shoal.spark.cluster import SparkCluster, open_spark
from shoal.spark.config import SparkConfig
from shoal.spark.slices import Slice, scan_slice, slices_of, window_of

__all__ = [
    "Slice",
    "SparkCluster",
    "SparkConfig",
    "open_spark",
    "scan_slice",
    "slices_of",
    "window_of",
]
