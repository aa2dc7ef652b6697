"""``shoal clusters``: the clusters of the active run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shoal.app.cli.command import Command
from shoal.app.cli.options.option import json_option, option
from shoal.app.cli.options.target import CLUSTER_ID, Target, target_options
from shoal.app.cli.printing.describe import amount, describe_drift, describe_lineage, short
from shoal.app.cli.printing.hits import hit_json, place, print_hits
from shoal.app.cli.printing.output import print_json, print_table, say, talk
from shoal.errors import ServiceMissing, TransientError

if TYPE_CHECKING:
    from shoal.client import Client, Cluster, Clustering, ClusterList

MAX_LISTED_EXEMPLARS = 20


@click.command(cls=Command)
@click.argument("cluster_id", type=CLUSTER_ID, required=False, metavar="[ID]")
@option(
    "--exemplars",
    type=click.IntRange(0, 1000),
    help="Exemplars per cluster; at most 20 in the list.  [default: 3, or 10 with ID]",
)
@json_option
@target_options
def clusters(
    *, cluster_id: int | None, exemplars: int | None, as_json: bool, target: Target
) -> None:
    """List the clusters, or show one.

    Exemplars are a cluster's medoid (the member nearest to its centroid), and members that show
    how much the cluster holds: each as unlike those before it as can be.

    Example:
      shoal clusters
      shoal clusters 4 --exemplars 20
    """
    with target.connect() as client:
        if cluster_id is not None:
            found = client.get_cluster(
                cluster_id,
                collection=target.collection,
                clustering=target.clustering,
                exemplars=10 if exemplars is None else exemplars,
            )
            if as_json:
                print_json({"run": found.run, **cluster_json(found)})
            else:
                _print_cluster(found)
            return
        listed = client.clusters(
            collection=target.collection,
            clustering=target.clustering,
            exemplars=3 if exemplars is None else min(exemplars, MAX_LISTED_EXEMPLARS),
        )
        state = _state(client, target)
    if as_json:
        print_json(
            {
                "run": listed.run,
                "noise": listed.noise,
                "unassigned": listed.unassigned,
                "drift": state.drift if state else None,
                "clusters": [cluster_json(each) for each in listed.clusters],
            }
        )
    else:
        _print_list(listed)
        if state and state.drift and state.drift.due:
            talk(f"shoal: {describe_drift(state)[-1]}")


def _state(client: Client, target: Target) -> Clustering | None:
    """The state of the clustering; None where no clusterer tells it, which is said."""
    try:
        return client.clustering(target.clustering, collection=target.collection)
    except (ServiceMissing, TransientError) as exc:
        talk(f"shoal: the drift is left out: {exc.message}")
        return None


def cluster_json(cluster: Cluster) -> dict[str, object]:
    """A cluster for programs."""
    return {
        "id": cluster.id,
        "size": cluster.size,
        "name": cluster.name,
        "cohesion": cluster.cohesion,
        "lineage": cluster.lineage,
        "exemplars": [hit_json(hit) for hit in cluster.exemplars],
    }


def _print_list(listed: ClusterList) -> None:
    if not listed.run:
        waiting = f"{amount(listed.unassigned, 'point')} stored"
        talk(f"shoal: no clustering yet ({waiting}): shoal cluster -k N makes one")
        return
    print_table(
        ("cluster", "size", "cohesion", "lineage", "name", "medoid"),
        [
            (
                str(each.id),
                f"{each.size:,}",
                f"{each.cohesion:.3f}",
                describe_lineage(each.lineage),
                each.name or "-",
                place(each.exemplars[0]) if each.exemplars else "-",
            )
            for each in listed.clusters
        ],
    )
    total = sum(each.size for each in listed.clusters)
    say(
        f"{amount(len(listed.clusters), 'cluster')} with {amount(total, 'point')}, "
        f"noise {listed.noise:,}, "
        f"unassigned {listed.unassigned:,}, run {short(listed.run)}"
    )


def _print_cluster(cluster: Cluster) -> None:
    name = f" ({cluster.name})" if cluster.name else ""
    say(
        f"cluster {cluster.id}{name}: {amount(cluster.size, 'point')}, "
        f"cohesion {cluster.cohesion:.3f}, "
        f"{describe_lineage(cluster.lineage)}, run {short(cluster.run)}"
    )
    print_hits(cluster.exemplars)
