"""Apache Spark as an engine: where it runs, and work over slices of a store or of a list.

What services do in Spark tasks is theirs (``clusterer.spark``, ``embedder.backfill``); this room
opens the cluster, cuts the work, and turns what fails there into errors of ours. pyspark is an
extra, so it is imported only when a cluster is opened.
"""
