"""Runs, plans and clusters in words. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.client import Lineage, Plan, Run

SHORT_ID_CHARS = 8


def short(run_id: str) -> str:
    """The beginning of a run's id, which commands understand; "-" for none."""
    return run_id[:SHORT_ID_CHARS] or "-"


def duration_s(run: Run) -> float | None:
    """Seconds from a run's beginning to its end; None while it has none."""
    if run.created_at is None or run.ended_at is None:
        return None
    return (run.ended_at - run.created_at).total_seconds()


def describe_method(run: Run) -> str:
    """``kmeans k=10 seed=0``: the method, the number of clusters and the seed."""
    config = run.config
    k = f" k={config['k']}" if "k" in config else ""
    return f"{config.get('method') or '-'}{k} seed={config.get('seed', 0)}"


def describe_run(run: Run) -> list[str]:
    """What a run did, or would do, one fact per line."""
    took = duration_s(run)
    seconds = "" if took is None else f" in {took:.1f} s"
    lines = [f"run {short(run.id)} {run.state}{seconds}: {describe_method(run)}"]
    if run.plan is not None:
        lines += describe_plan(run.plan)
    if run.points_written:
        lines.append(f"written: {run.points_written:,} points")
    return lines


def describe_plan(plan: Plan) -> list[str]:
    """What a run would change, one fact per line."""
    kinds = Counter(each.kind for each in plan.lineage)
    became = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    facts = [
        f"moved {plan.moved:,} ({plan.moved_share:.1%})",
        f"noise {plan.noise:,}",
        f"to write {plan.to_write:,}",
        f"inertia {plan.inertia:,.2f}",
    ]
    if plan.silhouette is not None:
        facts.append(f"silhouette {plan.silhouette:.3f}")
    if plan.agreement is not None:
        facts.append(f"agreement {plan.agreement:.3f}")
    return [
        f"{plan.clusters:,} clusters over {plan.points:,} points"
        + (f": {became}" if became else ""),
        ", ".join(facts),
        *(f"objection: {objection}" for objection in plan.objections),
    ]


def describe_lineage(lineage: Lineage | None) -> str:
    """``split from 3, 7``: how a cluster came to be."""
    if lineage is None:
        return "-"
    joint = {"retired": "into", "split": "from", "merged": "from", "born": "from"}
    word = joint.get(lineage.kind)
    if word is None or not lineage.related:
        return lineage.kind
    return f"{lineage.kind} {word} {', '.join(str(each) for each in lineage.related)}"
