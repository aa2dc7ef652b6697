"""A trained head (SCP, TEMI) as a method: applied unchanged, or trained on; it leaves no noise."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np

from clusterer.fits.models import Head, Model
from clusterer.fits.values import Fit, FitPlan, Surroundings
from clusterer.heads.retraining import least_points, train_on
from clusterer.heads.session import HeadSession
from clusterer.heads.store import HeadManifest, HeadStore
from clusterer.nearest import cluster_sums, directions
from shoal.errors import ConfigError, Conflict, FitFailed, InvalidArgument, Unsupported
from shoal.vectors import Vectors

KEPT_RETRAINED: Final = 10
"""The most retrained heads of one name that stay: a schedule makes one each time it is due."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeadFitOptions:
    """The head to apply, and whether it is trained on first.

    Attributes:
        head: A head's name, its id, or the beginning of its hash. A plan holds the id.
        retrain: True trains it on with the sample.
        heads: The place of the heads. A plan fills it in.
        seed: Seed of the training.

    Raises:
        InvalidArgument: no head is named.
    """

    method: ClassVar[str] = "scp"

    head: str
    retrain: bool = False
    heads: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.head:
            msg = "head: expected a head's name or hash, got none"
            raise InvalidArgument(msg, field="config.scp")


def plan(options: HeadFitOptions, surroundings: Surroundings) -> FitPlan:
    """The plan of a fit with ``options``: the head is found and checked.

    Raises:
        Unsupported: the service keeps no heads.
        ConfigError: the head is to be trained on, and torch is not installed.
        NotFound: there is no such head.
        EncoderMismatch: the head is for the vectors of another encoder.
    """
    if not surroundings.heads:
        msg = "method scp: this server was told of no place with heads (--heads)"
        raise Unsupported(msg)
    manifest = HeadStore(surroundings.heads).find(options.head)
    if surroundings.vector is not None:
        manifest.check(surroundings.vector)
    planned = replace(options, head=manifest.id, heads=surroundings.heads)
    if options.retrain:
        # The packages are looked for and not imported: only the fit's own process needs them.
        if missing := missing_package():
            msg = f"retrain: this server has no {missing}: pip install 'shoal[train]'"
            raise ConfigError(msg, package=missing)
        return FitPlan(planned, least_points=least_points(manifest))
    return FitPlan(planned, least_points=1)


def run(vectors: Vectors, options: HeadFitOptions, warm: Vectors | None) -> Fit:
    """The planned head, with the centroids of its clusters on ``vectors`` (N, D).

    A cluster that no vector of the sample gets is left out: it has no centroid to be matched by.
    Its later points go to their next likeliest cluster.

    Raises:
        NotEnoughPoints: too few vectors to train the head on.
        FitFailed: no cluster has a direction.
    """
    del warm
    heads = HeadStore(options.heads)
    manifest = heads.find(options.head)
    graph = heads.graph(manifest)
    facts: dict[str, Any] = {"head": manifest.id}
    if options.retrain:
        made, graph = train_on(manifest, graph, vectors, seed=options.seed)
        if made is not manifest:
            facts = {"head": made.id, "manifest": made.model_dump()}
    labels = HeadSession(graph).probabilities(vectors).argmax(axis=1).astype(np.int32)
    sums = cluster_sums(vectors, labels, int(labels.max(initial=0)) + 1)
    columns = np.flatnonzero(np.linalg.norm(sums, axis=1) > 0).astype(np.int32)
    if not len(columns):
        raise FitFailed("no cluster of the head has a direction: the vectors cancel out")
    model = Head(directions(sums), np.frombuffer(graph, np.uint8), columns)
    return Fit(model, facts=facts)


def keep(options: HeadFitOptions, model: Model, facts: Mapping[str, Any]) -> None:
    """Puts a retrained head beside its parent, under the same name; only the newest ten stay.

    It is called once the clusters are active: no training goes on from a head that a gate refused.
    A run has its own copy of its head.

    Raises:
        Conflict: the newest head of that name is no longer the parent.
    """
    if "manifest" in facts and isinstance(model, Head):
        manifest = HeadManifest.model_validate(facts["manifest"])
        heads = HeadStore(options.heads)
        newest = heads.find(manifest.name)
        if newest.id != manifest.parent:
            msg = f"head {manifest.id} comes of {manifest.parent}, and {newest.id} is newer"
            raise Conflict(msg)
        heads.put(manifest, model.graph.tobytes())
        try:
            heads.drop_retrained(manifest.name, keep=KEPT_RETRAINED)
        except ConfigError as exc:  # the new head is kept; older ones may stay
            _LOG.warning("%s", exc)


def missing_package() -> str:
    """The first package of training that is not installed; empty if none is missing."""
    lacking = (name for name in ("torch", "onnx") if importlib.util.find_spec(name) is None)
    return next(lacking, "")
