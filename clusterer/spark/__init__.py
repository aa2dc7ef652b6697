"""Reclustering runs whose fit, assignment and writes are stages of an Apache Spark application.

The driver does a run like any other (``clusterer.runs.run``): it holds the lease, makes the plan
and flips the pointer. It does not hold the points. Tasks count and write them, slice by slice; a
task knows a range of ids and the fit's rule, and nothing of the other tasks.
"""

from __future__ import annotations

from clusterer.spark.driver import SparkTask, plan_task, recluster

__all__ = ["SparkTask", "plan_task", "recluster"]
