"""Reclustering runs whose fit, assignment and writes are stages of an Apache Spark application.

The driver is a run like any other (``clusterer.run``): it holds the lease, makes the plan, flips
the pointer. What it does not hold is the points: they are counted and written slice by slice, by
tasks that know a range of ids and the fit's rule, and nothing of each other.
"""

from __future__ import annotations

from clusterer.spark.driver import SparkTask, plan_task, recluster

__all__ = ["SparkTask", "plan_task", "recluster"]
