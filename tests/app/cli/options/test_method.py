"""The options of a run: what each method takes, and what contradicts what."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from option_tables import Command, Row, changed

from shoal.app.cli.options.method import METHODS, NamingOptions, Wanted, wanted_options
from shoal.client import (
    EmbeddingVectors,
    GaussianMixture,
    Hdbscan,
    KMeans,
    Method,
    RunOptions,
    ScpHead,
    TextCentroids,
)
from shoal.values import Gates

COMMAND = Command(wanted_options(), "wanted")
SCHEDULE = Command(wanted_options(without=("plan_only", "force")), "wanted")
KMEANS = ("-k", "3")

MADE: list[tuple[tuple[str, ...], Method]] = [
    (("-k", "1"), KMeans(1)),
    (("-k", "auto"), KMeans("auto")),
    (("-k", "100000", "--n-init", "2", "--mini-batch", "5"), KMeans(100_000, 2, mini_batch=5)),
    (("--method", "kmeans", "-k", "3"), KMeans(3)),
    (("--method", "gmm", "-k", "3"), GaussianMixture(3)),
    (("--method", "gmm", "-k", "auto", "--reduced-dim", "7"), GaussianMixture("auto", 7)),
    (("--method", "hdbscan"), Hdbscan()),
    (
        (
            *("--method", "hdbscan", "--min-cluster-size", "4", "--min-samples", "5"),
            *("--reduction", "umap", "--reduced-dim", "6", "--noise-threshold", "0"),
        ),
        Hdbscan(4, 5, "umap", 6, 0.0),
    ),
    (("--method", "evoc"), EmbeddingVectors()),
    (("--method", "evoc", "--layer", "0"), EmbeddingVectors(0)),
    (
        ("--method", "evoc", "--layer", "coarsest", "--min-cluster-size", "2"),
        EmbeddingVectors("coarsest", 2),
    ),
    (("--method", "scp", "--head", "h"), ScpHead("h")),
    (("--method", "scp", "--head", "h", "--retrain"), ScpHead("h", retrain=True)),
    (("--method", "text", "--text", "a", "--text", "b c"), TextCentroids(("a", "b c"))),
]


@pytest.mark.parametrize(("words", "method"), MADE, ids=str)
def test_method_is_made_of_its_options(words: tuple[str, ...], method: Method) -> None:
    """Each option reaches the field of its name; a scheduled run has the same methods."""
    assert COMMAND.built(words) == Wanted(method, RunOptions(), NamingOptions())
    assert SCHEDULE.built(words).method == method


def test_environment_makes_the_method_too() -> None:
    """As a Kubernetes job is configured."""
    environment = {"SHOAL_METHOD": "gmm", "SHOAL_K": "9", "SHOAL_REDUCED_DIM": "3"}
    assert COMMAND.built([], environment).method == GaussianMixture(9, 3)


ROWS = (
    Row("--k-min", "k_min", 0, ["4"], 4),
    Row("--k-max", "k_max", 0, ["5"], 5),
    Row("--seed", "seed", 0, ["18446744073709551615"], 2**64 - 1),
    Row("--vector", "vector", "", ["v"], "v"),
    Row("--sample-size", "sample_size", 0, ["6"], 6),
    Row("--cold-start", "cold_start", False, [], True),
    Row("--duplicate-cosine", "duplicate_cosine", None, ["0.9"], 0.9),
    Row("--plan", "plan_only", False, [], True),
    Row("--force", "force", False, [], True),
)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_option_of_a_run_sets_its_field_alone(row: Row) -> None:
    """On the command line and in the environment alike."""
    expected = {row.field: row.expected}
    run = ("-k", "auto")
    assert changed(COMMAND.built([*run, *row.words()]).options, RunOptions()) == expected
    assert changed(COMMAND.built(run, row.environment()).options, RunOptions()) == expected
    assert getattr(RunOptions(), row.field) == row.default


@pytest.mark.parametrize(
    ("flag", "gates"),
    [
        ("--max-moved-share", Gates(max_moved_share=0.0)),
        ("--max-noise-share", Gates(max_noise_share=0.0)),
        ("--min-agreement", Gates(min_agreement=0.0)),
        ("--max-cluster-share", Gates(max_cluster_share=0.0)),
    ],
)
def test_a_gate_of_zero_is_a_gate(flag: str, gates: Gates) -> None:
    """Without any, the server's count."""
    assert COMMAND.built([*KMEANS, flag, "0"]).options == RunOptions(gates=gates)


@pytest.mark.parametrize("method", ["hdbscan", "evoc"])
def test_noise_can_be_clustered_alone_where_there_is_some(method: str) -> None:
    """By the methods that leave noise."""
    assert COMMAND.built(["--method", method, "--noise-only"]).options == RunOptions(
        noise_only=True
    )


def test_a_schedule_neither_stops_after_the_plan_nor_forces() -> None:
    """These are for somebody who waits."""
    assert COMMAND.flags - SCHEDULE.flags == {"--plan", "--force"}
    assert "No such option '--plan'" in SCHEDULE.refused(*KMEANS, "--plan")


def test_table_has_all_options() -> None:
    """No option is without a promise here."""
    of_methods = {word for words, _ in MADE for word in words if word[0] == "-"}
    gates = {"--max-moved-share", "--max-noise-share", "--min-agreement", "--max-cluster-share"}
    others = {"--noise-only", "--name-by", "--vocabulary"}
    assert COMMAND.flags == of_methods | {row.flag for row in ROWS} | gates | others


OWNERS = {
    "-k": ("3", "kmeans or gmm"),
    "--n-init": ("1", "kmeans"),
    "--mini-batch": ("1", "kmeans"),
    "--min-cluster-size": ("1", "hdbscan or evoc"),
    "--min-samples": ("1", "hdbscan"),
    "--reduction": ("pca", "hdbscan"),
    "--reduced-dim": ("1", "hdbscan or gmm"),
    "--noise-threshold": ("0", "hdbscan"),
    "--layer": ("0", "evoc"),
    "--head": ("h", "scp"),
    "--retrain": ("", "scp"),
    "--text": ("t", "text"),
}
SOUND = {"kmeans": KMEANS, "gmm": KMEANS, "scp": ("--head", "h")}


@pytest.mark.parametrize("flag", OWNERS)
@pytest.mark.parametrize("method", METHODS)
def test_option_of_another_method_is_refused(method: str, flag: str) -> None:
    """The message says which methods have it; none is taken and then ignored."""
    value, owners = OWNERS[flag]
    words = ["--method", method, *SOUND.get(method, ()), *filter(None, (flag, value))]
    if method in owners.split(" or "):
        COMMAND.built(words)
    else:
        assert f"{flag} is for --method {owners}, not {method}\n" in COMMAND.refused(*words)


@pytest.mark.parametrize("flag", OWNERS)
def test_help_says_which_methods_have_an_option(flag: str) -> None:
    """Methods of which it says the same are named together."""
    text = " ".join(CliRunner().invoke(COMMAND.command, ["--help"]).output.split())
    options = text.split("Options: ")[1]
    told = options[options.index(f" {flag} ") :].split("[env var")[0]
    for owner in OWNERS[flag][1].split(" or "):
        assert owner in told.split(": ")[0] or f"With {owner}: " in told


def test_help_of_two_methods_says_what_differs() -> None:
    """A default that differs is told for each."""
    text = " ".join(CliRunner().invoke(COMMAND.command, ["--help"]).output.split())
    assert (
        "--reduced-dim N With hdbscan: Dimensions after the reduction. 0: 50. "
        "With gmm: Dimensions after the reduction. 0: 16. [env var: SHOAL_REDUCED_DIM" in text
    )
    assert "With kmeans or gmm: A number of clusters, or auto: estimators vote for it." in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--method kmeans needs -k: a number of clusters, or auto"),
        (("--method", "gmm"), "--method gmm needs -k: a number of clusters, or auto"),
        (("--method", "scp"), "--method scp needs --head: a head of `shoal train`"),
        (("--method", "scp", "--head", ""), "--method scp needs --head"),
        ((*KMEANS, "--k-min", "2"), "--k-min and --k-max are for -k auto"),
        ((*KMEANS, "--k-max", "2"), "--k-min and --k-max are for -k auto"),
        (("--method", "hdbscan", "--k-max", "2"), "--k-min and --k-max are for -k auto"),
        ((*KMEANS, "--noise-only"), "--noise-only is for --method hdbscan or evoc, not kmeans"),
        (("-k", "0"), "0 is not in the range 1<=x<=100000"),
        (("-k", "100001"), "100001 is not in the range 1<=x<=100000"),
        (("-k", "many"), "'many' is not a valid integer"),
        ((*KMEANS, "--seed", str(2**64)), "is not in the range"),
        ((*KMEANS, "--seed", "-1"), "is not in the range"),
        ((*KMEANS, "--sample-size", str(2**32)), "is not in the range 0<=x<=4294967295"),
        ((*KMEANS, "--n-init", "-1"), "is not in the range 0<=x<=4294967295"),
        ((*KMEANS, "--duplicate-cosine", "0.89"), "is not in the range 0.9<=x<=2"),
        ((*KMEANS, "--duplicate-cosine", "2.01"), "is not in the range 0.9<=x<=2"),
        ((*KMEANS, "--vocabulary", "gone"), "does not exist"),
        (("--method", "evoc", "--layer", "top"), "'top' is not a valid integer"),
        (("--method", "hdbscan", "--noise-threshold", "1.01"), "is not in the range -1<=x<=1"),
        (("--method", "hdbscan", "--reduction", "tsne"), "'tsne' is not one of"),
        (("--method", "dbscan"), "'dbscan' is not one of"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(words: tuple[str, ...], said: str) -> None:
    """What is missing, out of range, or means nothing to the method."""
    assert said in COMMAND.refused(*words)


class Embedder:
    """A client whose embedding of a text is the number of the call, and the text's place in it."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.encoders: set[str] = set()

    def embed_text(self, texts: list[str], *, encoder: str) -> list[Any]:
        self.calls.append(texts)
        self.encoders.add(encoder)
        rows = range(len(texts))
        return [SimpleNamespace(vector=np.array([len(self.calls), row])) for row in rows]


def wanted(*words: str) -> Wanted:
    """The run that is asked for."""
    found: Wanted = COMMAND.built([*KMEANS, *words])
    return found


def test_without_names_nothing_is_embedded() -> None:
    """And the options are as they were given."""
    client: Any = Embedder()
    assert wanted("--seed", "4").run_options(client) == RunOptions(seed=4)
    assert client.calls == []


def test_fields_name_clusters_without_an_embedder() -> None:
    """Their values are in the payload."""
    client: Any = Embedder()
    naming = wanted("--name-by", "a", "--name-by", "b").run_options(client).naming
    assert naming is not None
    assert (naming.fields, naming.vocabulary, client.calls) == (("a", "b"), {}, [])


def test_words_of_a_vocabulary_become_vectors(tmp_path: Path) -> None:
    """Each word once, in a sentence, by the encoder of the vector, 64 in a call."""
    words = [f"w{number}" for number in range(65)]
    file = tmp_path / "words.txt"
    file.write_text("\n".join([*words, "", "  w0 ", "w64"]))
    client: Any = Embedder()
    options = wanted("--vocabulary", str(file), "--vector", "clip", "--seed", "4")
    found = options.run_options(client)
    assert found.naming is not None
    assert (found.seed, found.vector, found.naming.fields) == (4, "clip", ())
    assert list(found.naming.vocabulary) == words
    assert [len(call) for call in client.calls] == [64, 1]
    assert client.calls[0][0] == "a photo of w0"
    assert client.encoders == {"clip"}
    assert found.naming.vocabulary["w63"].tolist() == [1, 63]
    assert found.naming.vocabulary["w64"].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        (b"\n \n", (), "words.txt: expected words, one a line, got none"),
        (b"caf\xe9", (), "words.txt: expected words in UTF-8, got byte 0xe9"),
        (b"dog", ("--vector", "a+b"), "--vocabulary needs --vector"),
        (b"dog", ("--method", "scp", "--head", "h"), "--vocabulary needs --vector"),
    ],
)
def test_vocabulary_that_cannot_be_used_is_a_wrong_usage(
    tmp_path: Path, content: bytes, words: tuple[str, ...], said: str
) -> None:
    """Nothing is embedded."""
    file = tmp_path / "words.txt"
    file.write_bytes(content)
    client: Any = Embedder()
    method = words if "--method" in words else (*KMEANS, *words)
    found = COMMAND.built([*method, "--vocabulary", str(file)])
    with pytest.raises(click.UsageError, match=said):
        found.run_options(client)
    assert client.calls == []


def test_head_of_one_vector_can_have_a_vocabulary(tmp_path: Path) -> None:
    """And fields without one, whatever it was trained on."""
    file = tmp_path / "words.txt"
    file.write_text("dog")
    client: Any = Embedder()
    head = ("--method", "scp", "--head", "h")
    found = COMMAND.built([*head, "--vocabulary", str(file), "--vector", "v"])
    assert list(found.run_options(client).naming.vocabulary) == ["dog"]
    for vector in ("", "a+b"):
        named = COMMAND.built([*head, "--name-by", "f", "--vector", vector])
        assert named.run_options(client).naming.fields == ("f",)
