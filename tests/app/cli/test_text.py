"""A CLIP behind ``shoal up``: two named vectors from one ingestion, queries by text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_clip import make_clip

from embedder.encoding.artefact import EncoderArtefact, bundled_artefact
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import RuntimeConfig
from shoal.client import Client


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> EncoderArtefact:
    """An encoder of images and texts."""
    return make_clip(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def server(
    start_server: Any, tmp_path_factory: pytest.TempPathFactory, clip: EncoderArtefact
) -> Any:
    """A server with two encoders."""
    encoders = ("--encoder", str(bundled_artefact()), "--encoder", str(clip.directory))
    return start_server(tmp_path_factory.mktemp("up"), *encoders, "--run-size", "1")


@pytest.fixture
def address(
    server: Any, clip: EncoderArtefact, in_process: Any, pictures: Any, tmp_path: Path
) -> tuple[str, str]:
    """The server's, which has twelve pictures with two vectors each."""
    pictures(tmp_path / "p", [f"{i}.png" for i in range(12)])
    names = ("--with-encoder", "efficientnet-lite0", "--with-encoder", clip.name)
    to = ("--address", server.address)
    stored = in_process("ingest", "p", "--keys", "name", *names, *to)
    assert stored.code == 0, stored.stderr
    return to


def test_text_finds_what_brute_force_finds_and_its_cluster(
    server: Any, address: tuple[str, str], clip: EncoderArtefact, in_process: Any
) -> None:
    """The hits of --text are the images whose CLIP vectors are nearest to the text's, by NumPy."""
    text = Encoder.open(clip.directory, RuntimeConfig()).embed_texts(["a red square"])[0]
    with Client(server.address) as client:
        vectors = {}
        for i in range(12):
            point = client.point(f"p/{i}.png", with_vectors=True)
            assert set(point.vectors) == {"efficientnet-lite0", clip.name}
            vectors[f"p/{i}.png"] = point.vectors[clip.name]
    scores = {key: float(vector @ text) for key, vector in vectors.items()}
    expected = sorted(scores, key=lambda key: -scores[key])[:5]

    query = ("--text", "a red square", "--vector", clip.name, "-n", "5", "--json")
    found = in_process("search", *query, *address)
    assert found.code == 0, found.stderr
    hits = json.loads(found.stdout)["hits"]
    np.testing.assert_allclose(
        [hit["score"] for hit in hits], [scores[key] for key in expected], atol=1e-4
    )
    assert {hit["payload"]["key"] for hit in hits} == set(expected)

    run = in_process("cluster", "-k", "3", "--vector", clip.name, *address)
    assert run.code == 0, run.stderr
    inside = in_process("search", *query, "--within", "auto", *address)
    assert inside.code == 0, inside.stderr
    answer = json.loads(inside.stdout)
    assert {hit["cluster"] for hit in answer["hits"]} == {answer["cluster"]}

    Path("words.txt").write_text("stripes\ndisc\nnoise\nfog\n")
    named = ("--vector", clip.name, "--vocabulary", "words.txt")
    again = in_process("cluster", "-k", "3", *named, *address)
    assert again.code == 0, again.stderr
    with Client(server.address) as client:
        names = [cluster.name for cluster in client.clusters().clusters]
    assert len(set(names)) == len(names)
    assert set(names) <= {"stripes", "disc", "noise", "fog"}

    wrong = in_process("search", "--text", "x", *address)
    assert wrong.code == 1
    assert "has no text tower" in wrong.stderr


def test_a_head_of_two_encoders_is_trained_and_applied(
    server: Any, address: tuple[str, str], clip: EncoderArtefact, in_process: Any
) -> None:
    """Trained on both vectors as one, with views by both encoders; a run knows what it is for."""
    heads = ("--heads", str(server.data / "heads"))
    fast = ("--epochs", "1", "--seeds", "1", "--neighbours", "3", "--views", "1", "--pairs", "both")
    both = ("--encoders", f"{clip.name},efficientnet-lite0")
    mixed = in_process("train", "scp", "-k", "2", *both, *fast, *heads, *address)
    assert mixed.code == 0, mixed.stderr
    apply = ("--method", "scp", "--head", "images", "--json")
    alone = in_process("cluster", *apply, "--vector", clip.name, *address)
    assert alone.code == 1
    joint = f"{clip.name}+efficientnet-lite0"
    assert f"expected vectors of encoder {joint}" in alone.stderr
    run = in_process("cluster", *apply, *address)
    assert run.code == 0, run.stderr
    assert json.loads(run.stdout)["config"]["vector"] == joint
    assert json.loads(run.stdout)["plan"]["points"] == 12
    listed = in_process("clusters", "--json", *address)
    assert listed.code == 0, listed.stderr
    assert sum(each["size"] for each in json.loads(listed.stdout)["clusters"]) == 12
    assert all(each["exemplars"] for each in json.loads(listed.stdout)["clusters"])
