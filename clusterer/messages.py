"""The clusterer's messages, translated to its domain and back.

``clusterer.runs.records`` has the message of a run, which is also its stored form.
"""

from __future__ import annotations

import uuid
from typing import cast

from clusterer.duplicates import DuplicateGroup
from clusterer.fits import METHODS, MethodOptions
from clusterer.fits.count.asked import DEFAULT_LEAST, DEFAULT_MOST, AskedCount, Auto
from clusterer.fits.evoc import LEAST_CLUSTER, EvocOptions
from clusterer.fits.gmm import DEFAULT_DIM, GmmOptions
from clusterer.fits.hdbscan import DEFAULT_MIN_SAMPLES, MAX_DIM, HdbscanOptions, Reduction
from clusterer.fits.head import HeadFitOptions
from clusterer.fits.kmeans import MAX_ITERATIONS, KMeansOptions
from clusterer.runs.naming import Word
from clusterer.runs.task import RunRequest
from shoal.errors import InvalidArgument, Unsupported
from shoal.store.model import VectorBlock
from shoal.v1 import clusterer_pb2 as pb
from shoal.v1 import common_pb2
from shoal.values import Drift, Gates, VectorInfo

_NAMESPACE = uuid.UUID("0b0c0a0e-93a7-5d0f-8f5b-3c1f2b7a9d11")


def run_request(request: pb.CreateRunRequest) -> RunRequest:
    """The run that ``request`` asks for; its id follows from the request id, or is random.

    Raises:
        InvalidArgument: the request id is not a UUID, or a value is out of range.
        Unsupported: a method of the contract that this version does not have.
    """
    config, request_id = request.config, check_request_id(request.request_id)
    return RunRequest(
        run=str(uuid.uuid5(_NAMESPACE, request_id) if request_id else uuid.uuid4()),
        repeatable=bool(request_id),
        collection=request.collection,
        clustering=request.clustering,
        method=method_options(config),
        vector=config.vector,
        sample_size=config.sample_size,
        seed=config.seed,
        duplicate_cosine=config.duplicate_cosine if config.HasField("duplicate_cosine") else None,
        warm_start=not config.cold_start,
        plan_only=request.plan_only,
        force=request.force,
        gates=gates(request.gates) if request.HasField("gates") else None,
        noise_only=request.noise_only,
        fields=tuple(request.naming.fields),
        vocabulary=tuple(Word(word.text, word.vector) for word in request.naming.vocabulary),
    )


def check_request_id(request_id: str) -> str:
    """``request_id`` in canonical form, or InvalidArgument unless it is empty or a UUID."""
    try:
        return str(uuid.UUID(request_id)) if request_id else ""
    except ValueError as exc:
        raise InvalidArgument(
            f"request_id: expected a UUID, got {request_id!r}", field="request_id"
        ) from exc


def method_options(config: pb.ClusteringConfig) -> MethodOptions:
    """The options of the method that ``config`` names, defaults filled in.

    Raises:
        InvalidArgument: no method, or a value is out of range.
        Unsupported: a method of the contract that this version does not have.
    """
    match config.WhichOneof("method"):
        case "kmeans":
            return KMeansOptions(
                _count(config.kmeans, "kmeans"),
                n_init=config.kmeans.n_init,
                max_iterations=config.kmeans.max_iterations or MAX_ITERATIONS,
                mini_batch=config.kmeans.mini_batch,
                seed=config.seed,
            )
        case "gmm":
            return GmmOptions(
                _count(config.gmm, "gmm"),
                dim=config.gmm.reduced_dim or DEFAULT_DIM,
                seed=config.seed,
            )
        case "hdbscan":
            return _hdbscan(config.hdbscan, config.seed)
        case "evoc":
            return EvocOptions(
                layer=config.evoc.layer if config.evoc.HasField("layer") else None,
                coarsest=config.evoc.coarsest,
                min_cluster_size=config.evoc.min_cluster_size or LEAST_CLUSTER,
                seed=config.seed,
            )
        case "scp":
            return HeadFitOptions(config.scp.head, retrain=config.scp.retrain, seed=config.seed)
        case None:
            raise InvalidArgument("config: expected a method, got none", field="config.method")
        case method:
            known = ", ".join(METHODS)
            raise Unsupported(f"method {method!r} is not available: expected one of {known}")


def _count(message: pb.KMeans | pb.GaussianMixture, method: str) -> AskedCount:
    match message.WhichOneof("count"):
        case "k":
            return message.k
        case "auto":
            return Auto(message.auto.min or DEFAULT_LEAST, message.auto.max or DEFAULT_MOST)
        case _:
            msg = f"{method}: expected k, a number of clusters, or auto; got neither"
            raise InvalidArgument(msg, field=f"config.{method}.k")


def _hdbscan(message: pb.Hdbscan, seed: int) -> HdbscanOptions:
    return HdbscanOptions(
        min_cluster_size=message.min_cluster_size,
        min_samples=message.min_samples or DEFAULT_MIN_SAMPLES,
        reduction=cast("Reduction", message.reduction or "pca"),
        dim=message.reduced_dim or MAX_DIM,
        noise_threshold=message.noise_threshold if message.HasField("noise_threshold") else None,
        seed=seed,
    )


def gates(message: pb.Gates) -> Gates:
    """The thresholds in ``message``.

    Raises:
        InvalidArgument: one is out of range.
    """

    def given(name: str, least: float) -> float | None:
        if not message.HasField(name):
            return None
        value: float = getattr(message, name)
        if not least <= value <= 1:
            raise InvalidArgument(
                f"gates.{name}: expected {least:g} to 1, got {value:g}", field=f"gates.{name}"
            )
        return value

    return Gates(
        max_moved_share=given("max_moved_share", 0),
        max_noise_share=given("max_noise_share", 0),
        min_agreement=given("min_agreement", -1),
        max_cluster_share=given("max_cluster_share", 0),
    )


def drift(found: Drift) -> pb.Drift:
    """``found`` as a message."""
    return pb.Drift(
        newcomers=found.newcomers,
        noise_share=found.noise_share,
        run_noise_share=found.run_noise_share,
        confidence=found.confidence,
        run_confidence=found.run_confidence,
        psi=found.psi,
        due=found.due,
        signs=found.signs,
    )


def vector_info(spec: VectorInfo) -> common_pb2.VectorInfo:
    """``spec`` as a message."""
    return common_pb2.VectorInfo(name=spec.name, dim=spec.dim, fingerprint=spec.fingerprint)


def duplicate_group(found: DuplicateGroup) -> pb.DuplicateGroup:
    """``found`` as a message."""
    message = pb.DuplicateGroup(size=found.size)
    for member in found.members:
        message.members.add(id=member.id, key=member.key, uri=member.uri, cosine=member.cosine)
    return message


def sampled(block: VectorBlock, count: int) -> pb.SampledVectors:
    """The first ``count`` points of ``block`` as a message."""
    return pb.SampledVectors(
        ids=block.ids[:count],
        vectors=block.vectors[:count].astype("<f4").tobytes(),
        uris=[str(payload.get("uri") or "") for payload in block.payloads[:count]],
    )
