"""The calls of the clusterer."""

from __future__ import annotations

import uuid

from shoal.client import messages_runs
from shoal.client.calls import CLUSTERING, COLLECTION, Call, Gathered, Pages, Stream
from shoal.client.gathering import SampleGatherer
from shoal.client.methods import Method, RunOptions
from shoal.client.runs import Clustering, DuplicateGroup, Run, Schedule, VectorSample
from shoal.v1 import clusterer_pb2


def start_run(
    method: Method,
    *,
    collection: str = COLLECTION,
    clustering: str = CLUSTERING,
    options: RunOptions | None = None,
) -> Call[Run]:
    """Starts a run and returns it at once."""
    request = messages_runs.to_request(method, collection, clustering, options or RunOptions())
    request.request_id = str(uuid.uuid4())
    return Call("clusterer", "CreateRun", request, messages_runs.from_run)


def watch(run: str, *, collection: str = COLLECTION) -> Stream[Run]:
    """The run now and after each change, until it has ended."""
    request = clusterer_pb2.WatchRunRequest(collection=collection, run=run)
    return Stream("clusterer", "WatchRun", request, messages_runs.from_run)


def get_run(run: str, *, collection: str = COLLECTION) -> Call[Run]:
    """The run with this id, or the only one whose id begins so (at least 4 characters)."""
    request = clusterer_pb2.GetRunRequest(collection=collection, run=run)
    return Call("clusterer", "GetRun", request, messages_runs.from_run)


def runs(*, collection: str = COLLECTION, clustering: str = "") -> Pages[Run]:
    """The runs of a collection (of one clustering, if given), newest first."""
    request = clusterer_pb2.ListRunsRequest(collection=collection, clustering=clustering)
    return Pages("clusterer", "ListRuns", request, _runs)


def _runs(page: clusterer_pb2.ListRunsResponse) -> list[Run]:
    return [messages_runs.from_run(run) for run in page.runs]


def cancel(run: str, *, collection: str = COLLECTION) -> Call[Run]:
    """Stops a run; the active clustering stays as it was."""
    request = clusterer_pb2.CancelRunRequest(collection=collection, run=run)
    return Call("clusterer", "CancelRun", request, messages_runs.from_run)


def rollback(*, collection: str = COLLECTION, clustering: str = CLUSTERING) -> Call[Clustering]:
    """Goes back to the assignment before the last run, exactly as it was."""
    request = clusterer_pb2.RollbackRequest(
        collection=collection, clustering=clustering, request_id=str(uuid.uuid4())
    )
    return Call("clusterer", "Rollback", request, messages_runs.from_clustering)


def clustering(name: str = CLUSTERING, *, collection: str = COLLECTION) -> Call[Clustering]:
    """The state of one clustering."""
    request = clusterer_pb2.GetClusteringRequest(collection=collection, clustering=name)
    return Call("clusterer", "GetClustering", request, messages_runs.from_clustering)


def clusterings(*, collection: str = COLLECTION) -> Call[list[Clustering]]:
    """The clusterings of a collection."""
    request = clusterer_pb2.ListClusteringsRequest(collection=collection)
    return Call("clusterer", "ListClusterings", request, _clusterings)


def _clusterings(response: clusterer_pb2.ListClusteringsResponse) -> list[Clustering]:
    return [messages_runs.from_clustering(each) for each in response.clusterings]


def set_schedule(
    schedule: Schedule,
    method: Method,
    *,
    collection: str = COLLECTION,
    clustering: str = CLUSTERING,
    options: RunOptions | None = None,
) -> Call[Clustering]:
    """Lets the service make a clustering anew by itself, in place of any earlier schedule."""
    run = messages_runs.to_request(method, collection, clustering, options or RunOptions())
    request = clusterer_pb2.SetScheduleRequest(
        collection=collection,
        clustering=clustering,
        schedule=messages_runs.to_schedule(schedule, run),
    )
    return Call("clusterer", "SetSchedule", request, messages_runs.from_clustering)


def remove_schedule(
    *, collection: str = COLLECTION, clustering: str = CLUSTERING
) -> Call[Clustering]:
    """Ends the schedule of a clustering: the service no longer makes it anew by itself."""
    request = clusterer_pb2.SetScheduleRequest(collection=collection, clustering=clustering)
    return Call("clusterer", "SetSchedule", request, messages_runs.from_clustering)


def duplicates(
    *, collection: str = COLLECTION, vector: str = "", min_cosine: float | None = None
) -> Stream[DuplicateGroup]:
    """Groups of near-duplicates, largest first; the first of each stands for it."""
    request = clusterer_pb2.ListDuplicatesRequest(
        collection=collection, vector=vector, min_cosine=min_cosine
    )
    return Stream("clusterer", "ListDuplicates", request, messages_runs.from_duplicates)


def sample_vectors(
    *, collection: str = COLLECTION, vector: str = "", size: int = 0, seed: int = 0
) -> Gathered[VectorSample]:
    """At most ``size`` points (0: the server's 50,000) with their vectors, drawn by ``seed``.

    Held in memory: 4 bytes per component.
    """
    request = clusterer_pb2.SampleVectorsRequest(
        collection=collection, vector=vector, size=size, seed=seed
    )
    parts = Stream("clusterer", "SampleVectors", request, lambda response: response)
    return Gathered(parts, SampleGatherer)
