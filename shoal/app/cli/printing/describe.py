"""Runs, plans and clusters in words. Pure."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.client import Clustering, Lineage, Plan, Run

SHORT_ID_CHARS = 8
_BAR = 40
"""Characters of the longest bar of a plot."""


def short(run_id: str) -> str:
    """The beginning of a run's id, which commands understand; "-" for none."""
    return run_id[:SHORT_ID_CHARS] or "-"


def amount(count: int, noun: str) -> str:
    """``1 point``, ``2,000 points``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration_s(run: Run) -> float | None:
    """Seconds from a run's beginning to its end; None while it has none."""
    if run.created_at is None or run.ended_at is None:
        return None
    return (run.ended_at - run.created_at).total_seconds()


def describe_method(run: Run) -> str:
    """``kmeans k=10 seed=0``: the method, the number of clusters or the head, and the seed."""
    config = run.config
    k = f" k={config['k']}" if "k" in config else ""
    head = f" head={config['head']}" if "head" in config else ""
    return f"{config.get('method') or '-'}{k}{head} seed={config.get('seed', 0)}"


def describe_run(run: Run) -> list[str]:
    """What a run did, or would do, one fact per line."""
    took = duration_s(run)
    seconds = "" if took is None else f" in {took:.1f} s"
    lines = [f"run {short(run.id)} {run.state}{seconds}: {describe_method(run)}"]
    if run.plan is not None:
        lines += describe_plan(run.plan)
    if run.points_written:
        lines.append(f"written: {amount(run.points_written, 'point')}")
    return lines


def describe_plan(plan: Plan) -> list[str]:
    """What a run would change, one fact per line."""
    kinds = Counter(each.kind for each in plan.lineage)
    became = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    facts = [
        f"moved {plan.moved:,} ({plan.moved_share:.1%})",
        f"noise {plan.noise:,} ({plan.noise_share:.1%})",
        f"to write {plan.to_write:,}",
        f"inertia {plan.inertia:,.2f}",
    ]
    if plan.silhouette is not None:
        facts.append(f"silhouette {plan.silhouette:.3f}")
    if plan.agreement is not None:
        facts.append(f"agreement {plan.agreement:.3f}")
    if plan.centroid_drift is not None:
        facts.append(f"centroid drift {plan.centroid_drift:.3f}")
    facts.append(f"confidence {plan.confidence:.2f}")
    return [
        f"{amount(plan.clusters, 'cluster')} over {amount(plan.points, 'point')}"
        + (f": {became}" if became else ""),
        ", ".join(facts),
        *_describe_sizes(plan),
        *_describe_count(plan),
        *(f"objection: {objection}" for objection in plan.objections),
    ]


def _describe_sizes(plan: Plan) -> list[str]:
    """How many clusters there are of each order of size, and what did not count."""
    sizes = [each.size for each in plan.lineage if each.kind != "retired" and each.size]
    lines = []
    if sizes:
        bins = Counter(int(math.log10(size)) for size in sizes)
        shown = ", ".join(
            f"{10**order:,}-{10 ** (order + 1) - 1:,}: {bins[order]}" for order in sorted(bins)
        )
        lines.append(f"clusters by size: {shown}")
    if plan.duplicates:
        lines.append(f"near-duplicates, counted once in the fit: {plan.duplicates:,}")
    if plan.head:
        lines.append(f"head: {plan.head}")
    if plan.layers:
        lines.append(f"layers, finest first: {', '.join(map(str, plan.layers))} clusters")
    return lines


def _describe_count(plan: Plan) -> list[str]:
    """What the estimators of the number of clusters said, and the elbow curve."""
    if not plan.votes:
        return []
    votes = ", ".join(f"{name} {k}" for name, k in plan.votes.items())
    apart = "; they disagree: look at the clusters, or give -k" if plan.votes_disagree else ""
    lines = [f"votes for k: {votes}{apart}"]
    if plan.elbow:
        most = max(inertia for _, inertia in plan.elbow) or 1.0
        width = max(len(str(k)) for k, _ in plan.elbow)
        lines.append("inertia by k:")
        lines += [
            f"  {k:>{width}} {'#' * round(_BAR * inertia / most)} {inertia:,.1f}"
            for k, inertia in plan.elbow
        ]
    return lines


def describe_lineage(lineage: Lineage | None) -> str:
    """``split from 3, 7``: how a cluster came to be."""
    if lineage is None:
        return "-"
    joint = {"retired": "into", "split": "from", "merged": "from", "born": "from"}
    word = joint.get(lineage.kind)
    if word is None or not lineage.related:
        return lineage.kind
    return f"{lineage.kind} {word} {', '.join(str(each) for each in lineage.related)}"


def describe_drift(state: Clustering) -> list[str]:
    """What came in since the active run, and whether it is time for another."""
    drift = state.drift
    if drift is None:
        return []
    noise = f"noise {drift.noise_share:.0%} (run: {drift.run_noise_share:.0%})"
    confidence = f"confidence {drift.confidence:.2f} (run: {drift.run_confidence:.2f})"
    since = f"since run {short(state.active_run)}: {amount(drift.newcomers, 'point')}"
    lines = [f"{since}, {noise}, {confidence}, stability index {drift.psi:.2f}"]
    if drift.due:
        lines.append(f"reclustering is due: {'; '.join(drift.signs)}")
    return lines
