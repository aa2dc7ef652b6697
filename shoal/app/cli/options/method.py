"""The options that say how clusters are found and named, for a run now and for scheduled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from shoal.app.cli.options.gates import GATES
from shoal.app.cli.options.option import Decorator, decorate, option
from shoal.client import (
    Client,
    EmbeddingVectors,
    Gates,
    GaussianMixture,
    Hdbscan,
    KMeans,
    Method,
    Naming,
    RunOptions,
    ScpHead,
    TextCentroids,
)

_UINT32 = 2**32 - 1
MAX_CLUSTERS = 100_000
"""The contract's limit."""
METHODS = ("kmeans", "hdbscan", "gmm", "evoc", "scp", "text")
PROMPT = "a photo of {}"
"""What a word of a vocabulary is embedded as: CLIP was trained on captions."""
_WORDS_A_CALL = 64


class CountType(click.ParamType[Any]):
    """A number of clusters, or ``auto``."""

    name = "number|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["auto"]:
        """The number, at least 1, or ``"auto"``."""
        if value == "auto":
            return "auto"
        return int(click.IntRange(1, MAX_CLUSTERS).convert(value, param, ctx))


class LayerType(click.ParamType[Any]):
    """A layer of EVoC's, or ``coarsest``."""

    name = "number|coarsest"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["coarsest"]:
        """The number, at least 0, or ``"coarsest"``."""
        if value == "coarsest":
            return "coarsest"
        return int(click.IntRange(0, _UINT32).convert(value, param, ctx))


def _whole(name: str, help_text: str) -> Decorator:
    return option(name, type=click.IntRange(0, _UINT32), default=0, help=help_text)


_METHOD: tuple[Decorator, ...] = (
    option(
        "--method",
        type=click.Choice(METHODS),
        default="kmeans",
        help="How clusters are found. kmeans and gmm need -k; hdbscan and evoc find their own "
        "number and leave noise; scp applies a trained head. (text: not in this version.)",
    ),
    option("-k", "k", type=CountType(), help="Number of clusters, or auto: let estimators vote."),
    _whole("--k-min", "Fewest clusters of -k auto. 0: 2."),
    _whole("--k-max", "Most clusters of -k auto. 0: the server's 200."),
    option(
        "--seed", type=click.IntRange(0, 2**64 - 1), default=0, help="Seed of everything random."
    ),
    option(
        "--vector",
        default="",
        metavar="NAME",
        help="Which of the collection's named vectors to cluster. Default: its first.",
    ),
    _whole("--sample-size", "Most points that the fit looks at. 0: the server's limit."),
    _whole("--n-init", "Starts of k-means, of which the best is kept. 0: by size."),
    _whole("--mini-batch", "k-means in batches of so many points. 0: full batches."),
    _whole("--min-cluster-size", "Fewest points of a cluster. 0: hdbscan by size, evoc 5."),
    _whole("--min-samples", "Neighbours that make a core point of hdbscan. 0: 5."),
    option(
        "--reduction",
        type=click.Choice(["pca", "umap", "none"]),
        help="How hdbscan's vectors are reduced. Default: pca.",
    ),
    _whole("--reduced-dim", "Dimensions of hdbscan (0: 50) or gmm (0: 16) after the reduction."),
    option(
        "--noise-threshold",
        type=click.FloatRange(-1, 1),
        help="Cosine below which a new point of hdbscan is noise. Default: by the members.",
    ),
    option("--layer", type=LayerType(), help="Which layer of evoc, 0 the finest, or coarsest."),
    option("--cold-start", is_flag=True, help="Do not start from the active clusters."),
    option(
        "--head",
        default="",
        metavar="NAME",
        help="The trained head of --method scp: its name, id or hash.",
    ),
    option(
        "--retrain", is_flag=True, help="Train --head on first; the server needs PyTorch for that."
    ),
    option("--text", "texts", multiple=True, help="A cluster's text for --method text; repeat."),
    option(
        "--duplicate-cosine",
        type=click.FloatRange(0.9, 2),
        help="Points this near to each other count once in the fit; above 1 all count. "
        "Default: 0.98.",
    ),
    option("--noise-only", is_flag=True, help="Cluster only the noise; all else stays as it is."),
    option(
        "--name-by",
        "name_fields",
        multiple=True,
        metavar="FIELD",
        help="Name clusters by the typical values of this field; repeat.",
    ),
    option(
        "--vocabulary",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Name clusters by the nearest of these words, one a line; needs a text tower.",
    ),
    *GATES,
)
_ONLY: dict[str, tuple[str, tuple[str, ...]]] = {
    "texts": ("--text", ("text",)),
    "head": ("--head", ("scp",)),
    "retrain": ("--retrain", ("scp",)),
    "k_min": ("--k-min", ("kmeans", "gmm")),
    "k_max": ("--k-max", ("kmeans", "gmm")),
    "n_init": ("--n-init", ("kmeans",)),
    "mini_batch": ("--mini-batch", ("kmeans",)),
    "min_cluster_size": ("--min-cluster-size", ("hdbscan", "evoc")),
    "min_samples": ("--min-samples", ("hdbscan",)),
    "reduction": ("--reduction", ("hdbscan",)),
    "reduced_dim": ("--reduced-dim", ("hdbscan", "gmm")),
    "noise_threshold": ("--noise-threshold", ("hdbscan",)),
    "layer": ("--layer", ("evoc",)),
    "noise_only": ("--noise-only", ("hdbscan", "evoc")),
}
"""Options that some methods alone have."""
_ZERO_COUNTS = {"layer", "noise_threshold"}
"""Those of which 0 is a value and not a default."""


def method_options(function: Any) -> Any:
    """Give a command the options of a method, its names and its gates."""
    return decorate(function, _METHOD)


def method_of(options: dict[str, Any]) -> Method:
    """The method that the options describe; UsageError where they contradict each other."""
    name, k = options["method"], options["k"]
    if name in {"kmeans", "gmm"} and k is None:
        msg = f"--method {name} needs -k: a number of clusters, or auto"
        raise click.UsageError(msg)
    if name not in {"kmeans", "gmm"} and k is not None:
        msg = f"-k is for --method kmeans or gmm: {name} finds its own number"
        raise click.UsageError(msg)
    if name == "scp" and not options["head"]:
        msg = "--method scp needs --head: a head of `shoal train`"
        raise click.UsageError(msg)
    if k not in (None, "auto") and (options["k_min"] or options["k_max"]):
        msg = "--k-min and --k-max are for -k auto"
        raise click.UsageError(msg)
    for key, (flag, methods) in _ONLY.items():
        unset = (None,) if key in _ZERO_COUNTS else (None, 0, "", (), False)
        if options[key] not in unset and name not in methods:
            msg = f"{flag} is for --method {' or '.join(methods)}, not {name}"
            raise click.UsageError(msg)
    layer = options["layer"]
    made: dict[str, Method] = {
        "kmeans": KMeans(k=k, n_init=options["n_init"], mini_batch=options["mini_batch"]),
        "gmm": GaussianMixture(k=k, reduced_dim=options["reduced_dim"]),
        "hdbscan": Hdbscan(
            min_cluster_size=options["min_cluster_size"],
            min_samples=options["min_samples"],
            reduction=options["reduction"] or "",
            reduced_dim=options["reduced_dim"],
            noise_threshold=options["noise_threshold"],
        ),
        "scp": ScpHead(head=options["head"], retrain=options["retrain"]),
        "text": TextCentroids(texts=options["texts"]),
        "evoc": EmbeddingVectors(
            layer=None if layer == "coarsest" else layer,
            coarsest=layer == "coarsest",
            min_cluster_size=options["min_cluster_size"],
        ),
    }
    return made[name]


def run_options_of(options: dict[str, Any], client: Client) -> RunOptions:
    """The rest of a run; ``client`` embeds the words of a vocabulary."""
    return RunOptions(
        seed=options["seed"],
        sample_size=options["sample_size"],
        vector=options["vector"],
        cold_start=options["cold_start"],
        plan_only=options.get("plan_only", False),
        force=options.get("force", False),
        gates=_gates(options),
        k_range=(options["k_min"], options["k_max"]),
        duplicate_cosine=options["duplicate_cosine"],
        noise_only=options["noise_only"],
        naming=_naming(options, client),
    )


def _gates(options: dict[str, Any]) -> Gates | None:
    names = ("max_moved_share", "max_noise_share", "min_agreement", "max_cluster_share")
    given = {name: options[name] for name in names}
    return None if all(value is None for value in given.values()) else Gates(**given)


def _naming(options: dict[str, Any], client: Client) -> Naming | None:
    fields, file = options["name_fields"], options["vocabulary"]
    if not fields and file is None:
        return None
    words: list[str] = []
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as exc:
            msg = f"{file}: expected words in UTF-8, got byte {exc.object[exc.start]:#04x}"
            raise click.UsageError(msg) from exc
        words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not words:
            msg = f"{file}: expected words, one a line, got none"
            raise click.UsageError(msg)
    if "+" in options["vector"] or (options["method"] == "scp" and not options["vector"] and words):
        msg = "--vocabulary needs --vector: the one stored vector whose encoder knows the words"
        raise click.UsageError(msg)
    vectors: dict[str, Any] = {}
    for at in range(0, len(words), _WORDS_A_CALL):
        some = words[at : at + _WORDS_A_CALL]
        texts = [PROMPT.format(word) for word in some]
        found = client.embed_text(texts, encoder=options["vector"])
        vectors.update(zip(some, (each.vector for each in found), strict=True))
    return Naming(tuple(fields), vectors)
