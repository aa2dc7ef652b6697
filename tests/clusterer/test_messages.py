"""The contract's messages as the clusterer's domain takes them."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from clusterer import messages
from clusterer.fits import MethodOptions, plan_fit
from clusterer.fits.count.asked import Auto
from clusterer.fits.evoc import EvocOptions
from clusterer.fits.gmm import GmmOptions
from clusterer.fits.hdbscan import HdbscanOptions
from clusterer.fits.head import HeadFitOptions
from clusterer.fits.kmeans import KMeansOptions
from clusterer.runs.naming import Word
from shoal.errors import InvalidArgument, Unsupported
from shoal.v1 import clusterer_pb2 as pb
from shoal.values import Gates

REQUEST = "6fa459ea-ee8a-3ca4-894e-db77e160355e"


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"kmeans": pb.KMeans(k=7)}, KMeansOptions(7)),
        (
            {
                "kmeans": pb.KMeans(k=7, n_init=3, max_iterations=20, mini_batch=512),
                "seed": 2**40,
            },
            KMeansOptions(7, n_init=3, max_iterations=20, mini_batch=512, seed=2**40),
        ),
        ({"kmeans": pb.KMeans(auto=pb.AutoCount())}, KMeansOptions(Auto(2, 200))),
        ({"kmeans": pb.KMeans(auto=pb.AutoCount(min=3))}, KMeansOptions(Auto(3, 200))),
        ({"gmm": pb.GaussianMixture(k=3)}, GmmOptions(3, dim=16)),
        (
            {"gmm": pb.GaussianMixture(auto=pb.AutoCount(max=9), reduced_dim=64), "seed": 5},
            GmmOptions(Auto(2, 9), dim=64, seed=5),
        ),
        ({"hdbscan": pb.Hdbscan()}, HdbscanOptions()),
        (
            {
                "hdbscan": pb.Hdbscan(
                    min_cluster_size=9,
                    min_samples=2,
                    reduction="umap",
                    reduced_dim=10,
                    noise_threshold=0.0,
                ),
                "seed": 5,
            },
            HdbscanOptions(9, 2, "umap", 10, 0.0, 5),
        ),
        ({"evoc": pb.EmbeddingVectors()}, EvocOptions()),
        (
            {"evoc": pb.EmbeddingVectors(layer=0, min_cluster_size=9), "seed": 5},
            EvocOptions(layer=0, min_cluster_size=9, seed=5),
        ),
        ({"evoc": pb.EmbeddingVectors(coarsest=True)}, EvocOptions(coarsest=True)),
        ({"scp": pb.ScpHead(head="toys")}, HeadFitOptions("toys")),
        (
            {"scp": pb.ScpHead(head="toys", retrain=True), "seed": 5},
            HeadFitOptions("toys", retrain=True, seed=5),
        ),
    ],
)
def test_method_options_are_the_messages_values(
    config: dict[str, object], options: MethodOptions
) -> None:
    """Every parameter arrives; one that is left out gets the default that the contract states."""
    message = pb.ClusteringConfig(**config)  # type: ignore[arg-type]
    assert messages.method_options(message) == options


@pytest.mark.parametrize(
    ("config", "words", "field"),
    [
        ({"kmeans": pb.KMeans()}, "kmeans: expected k", "config.kmeans.k"),
        ({"gmm": pb.GaussianMixture()}, "gmm: expected k", "config.gmm.k"),
        ({"kmeans": pb.KMeans(k=0)}, "1 to 100000, got 0", "config.kmeans.k"),
        ({"kmeans": pb.KMeans(k=100_001)}, "got 100001", "config.kmeans.k"),
        ({"gmm": pb.GaussianMixture(k=0)}, "got 0", "config.gmm.k"),
        (
            {"kmeans": pb.KMeans(auto=pb.AutoCount(min=9, max=3))},
            "got min 9 and max 3",
            "config.kmeans.auto",
        ),
        ({"gmm": pb.GaussianMixture(auto=pb.AutoCount(min=1))}, "got min 1", "config.gmm.auto"),
        (
            {"kmeans": pb.KMeans(auto=pb.AutoCount(max=1001))},
            "max 1001",
            "config.kmeans.auto",
        ),
        (
            {"gmm": pb.GaussianMixture(k=3, reduced_dim=65)},
            "2 to 64, got 65",
            "config.gmm.reduced_dim",
        ),
        ({"gmm": pb.GaussianMixture(k=3, reduced_dim=1)}, "got 1", "config.gmm.reduced_dim"),
        ({"hdbscan": pb.Hdbscan(reduction="tsne")}, "got 'tsne'", "config.hdbscan.reduction"),
        (
            {"hdbscan": pb.Hdbscan(min_cluster_size=1)},
            "at least 2, got 1",
            "config.hdbscan.min_cluster_size",
        ),
        (
            {"hdbscan": pb.Hdbscan(reduced_dim=51)},
            "2 to 50, got 51",
            "config.hdbscan.reduced_dim",
        ),
        (
            {"hdbscan": pb.Hdbscan(noise_threshold=1.5)},
            "got 1.5",
            "config.hdbscan.noise_threshold",
        ),
        (
            {"hdbscan": pb.Hdbscan(noise_threshold=-1.5)},
            "got -1.5",
            "config.hdbscan.noise_threshold",
        ),
        (
            {"evoc": pb.EmbeddingVectors(layer=1, coarsest=True)},
            "got both: layer 1",
            "config.evoc.layer",
        ),
        (
            {"evoc": pb.EmbeddingVectors(min_cluster_size=1)},
            "at least 2, got 1",
            "config.evoc.min_cluster_size",
        ),
        ({"scp": pb.ScpHead()}, "expected a head's name or hash, got none", "config.scp"),
        ({}, "expected a method, got none", "config.method"),
    ],
)
def test_parameters_out_of_range_are_named(
    config: dict[str, object], words: str, field: str
) -> None:
    """The error says what was expected and what was got, and which field it was."""
    with pytest.raises(InvalidArgument, match=words) as caught:
        messages.method_options(pb.ClusteringConfig(**config))  # type: ignore[arg-type]
    assert caught.value.metadata["field"] == field


def test_duplicate_cosine_out_of_range_is_named() -> None:
    """Below 0.9 nothing would be a near-duplicate that a person calls one."""
    config = pb.ClusteringConfig(kmeans=pb.KMeans(k=2), duplicate_cosine=0.5)
    asked = messages.run_request(pb.CreateRunRequest(config=config))
    with pytest.raises(InvalidArgument, match=r"at least 0\.9, got 0\.5") as caught:
        plan_fit(asked.method, duplicate_cosine=asked.duplicate_cosine)
    assert caught.value.metadata["field"] == "config.duplicate_cosine"


def test_methods_of_later_versions_are_unsupported() -> None:
    """A method of the contract that is not here is named with those that are."""
    with pytest.raises(Unsupported, match=r"'text'.*evoc, gmm, hdbscan, kmeans, scp"):
        messages.method_options(pb.ClusteringConfig(text=pb.TextCentroids(texts=["x"])))


def test_run_request_holds_every_field() -> None:
    """Nothing that the caller says is lost on the way into the domain."""
    vector = np.arange(3, dtype="<f4").tobytes()
    asked = messages.run_request(
        pb.CreateRunRequest(
            collection="toys",
            clustering="colours",
            config=pb.ClusteringConfig(
                kmeans=pb.KMeans(k=7),
                seed=5,
                sample_size=99,
                vector="a+b",
                cold_start=True,
                duplicate_cosine=1.5,
            ),
            plan_only=True,
            force=True,
            gates=pb.Gates(max_moved_share=0.5),
            request_id=REQUEST,
            noise_only=True,
            naming=pb.Naming(fields=["kind"], vocabulary=[pb.Word(text="cat", vector=vector)]),
        )
    )
    assert (asked.collection, asked.clustering) == ("toys", "colours")
    assert asked.method == KMeansOptions(7, seed=5)
    assert (asked.seed, asked.sample_size, asked.vector) == (5, 99, "a+b")
    assert (asked.warm_start, asked.duplicate_cosine) == (False, 1.5)
    assert asked.gates == Gates(max_moved_share=0.5)
    assert (asked.plan_only, asked.force, asked.noise_only) == (True, True, True)
    assert asked.fields == ("kind",)
    assert asked.vocabulary == (Word("cat", vector),)
    assert asked.repeatable


def test_run_request_defaults_leave_the_choice_to_the_service() -> None:
    """What is left out is not set to anything that a caller could have asked for."""
    config = pb.ClusteringConfig(kmeans=pb.KMeans(k=7))
    asked = messages.run_request(pb.CreateRunRequest(collection="toys", config=config))
    assert (asked.sample_size, asked.duplicate_cosine, asked.gates) == (0, None, None)
    assert asked.warm_start
    flags = (asked.plan_only, asked.force, asked.noise_only, asked.repeatable)
    assert not any(flags)
    assert (asked.vector, asked.fields, asked.vocabulary) == ("", (), ())


def test_run_id_follows_from_the_request_id() -> None:
    """The same request id, however it is written, is the same run; without one each is new."""
    config = pb.ClusteringConfig(kmeans=pb.KMeans(k=7))

    def run(request_id: str) -> str:
        request = pb.CreateRunRequest(config=config, request_id=request_id)
        return messages.run_request(request).run

    assert run(REQUEST) == run(REQUEST.upper()) == run(REQUEST.replace("-", ""))
    assert run(REQUEST) != REQUEST
    assert len({run(""), run(""), run(REQUEST), run(str(uuid.UUID(int=1)))}) == 4
    with pytest.raises(InvalidArgument, match="expected a UUID, got 'x'") as caught:
        run("x")
    assert caught.value.metadata["field"] == "request_id"


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("max_moved_share", 0),
        ("max_noise_share", 0),
        ("min_agreement", -1),
        ("max_cluster_share", 0),
    ],
)
def test_gates_take_their_range_and_no_more(name: str, least: int) -> None:
    """Both ends are thresholds; past them, the gate is named."""
    for value in (least, 1):
        assert messages.gates(pb.Gates(**{name: value})) == Gates(**{name: value})
    for value in (least - 0.01, 1.01):
        with pytest.raises(InvalidArgument, match=f"{name}: expected {least} to 1, got") as caught:
            messages.gates(pb.Gates(**{name: value}))
        assert caught.value.metadata["field"] == f"gates.{name}"
    assert messages.gates(pb.Gates()) == Gates()
