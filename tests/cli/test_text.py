"""A CLIP behind ``shoal up``: two named vectors from one ingestion, and queries by text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny_clip import make_clip

from embedder.artefact import bundled_artefact
from embedder.encoder import Encoder
from embedder.runtime import RuntimeConfig
from shoal.client import Client


def test_text_finds_what_brute_force_finds_and_its_cluster(
    start_server: Any, run_shoal: Any, pictures: Any, tmp_path: Path
) -> None:
    """The hits of --text are the images whose CLIP vectors are nearest to the text's, by NumPy."""
    clip = make_clip(tmp_path / "made")
    pictures(tmp_path / "p", [f"{i}.png" for i in range(12)])
    encoders = ("--encoder", str(bundled_artefact()), "--encoder", str(clip.directory))
    server = start_server(tmp_path / "up", *encoders, "--run-size", "1")
    address = ("--address", server.address)
    names = ("--with-encoder", "efficientnet-lite0", "--with-encoder", clip.name)
    stored = run_shoal("ingest", "p", "--keys", "name", *names, *address, cwd=tmp_path)
    assert stored.code == 0, stored.stderr

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
    found = run_shoal("search", *query, *address, cwd=tmp_path)
    assert found.code == 0, found.stderr
    hits = json.loads(found.stdout)["hits"]
    np.testing.assert_allclose(
        [hit["score"] for hit in hits], [scores[key] for key in expected], atol=1e-4
    )
    assert {hit["payload"]["key"] for hit in hits} == set(expected)

    run = run_shoal("cluster", "-k", "3", "--vector", clip.name, *address, cwd=tmp_path)
    assert run.code == 0, run.stderr
    inside = run_shoal("search", *query, "--within", "auto", *address, cwd=tmp_path)
    assert inside.code == 0, inside.stderr
    answer = json.loads(inside.stdout)
    assert {hit["cluster"] for hit in answer["hits"]} == {answer["cluster"]}

    (tmp_path / "words.txt").write_text("stripes\ndisc\nnoise\nfog\n")
    named = ("--vector", clip.name, "--vocabulary", "words.txt")
    again = run_shoal("cluster", "-k", "3", *named, *address, cwd=tmp_path)
    assert again.code == 0, again.stderr
    with Client(server.address) as client:
        names = [cluster.name for cluster in client.clusters().clusters]
    assert len(set(names)) == len(names)
    assert set(names) <= {"stripes", "disc", "noise", "fog"}

    wrong = run_shoal("search", "--text", "x", *address, cwd=tmp_path)
    assert wrong.code == 1
    assert "has no text tower" in wrong.stderr
    server.stop()
