"""``shoal cluster``, ``clusters``, ``search``, ``runs``, ``rollback`` against ``shoal up``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shoal.client import Client, KMeans, RunState

Run = Callable[..., Any]
COLLECTION = ("--collection", "groups")
N = 24


def ask(shoal: Run, *arguments: str, stdin: bytes = b"") -> Any:
    """What a command prints as JSON."""
    result = shoal(*arguments, *COLLECTION, "--json", stdin=stdin)
    assert result.code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def groups(shoal: Run, tmp_path: Path, pictures: Any) -> Path:
    """A folder of 24 pictures that is stored; clustered with k=3 when first asked for."""
    folder = pictures(tmp_path / "p", [f"{i:02d}.png" for i in range(N)])
    result = shoal("ingest", "p", "--keys", "name", "--field", 'tag="x"', *COLLECTION)
    assert result.code == 0, result.stderr
    if not ask(shoal, "clusters")["run"]:
        assert ask(shoal, "cluster", "-k", "3")["state"] == "succeeded"
    return folder


@pytest.mark.usefixtures("groups")
def test_cluster_tells_progress_plan_and_result(shoal: Run) -> None:
    """Stages on stderr; state, plan and counts on stdout; the run is then the active one."""
    result = shoal("cluster", "-k", "3", "--seed", "5", *COLLECTION)
    assert result.code == 0, result.stderr
    assert result.stdout.splitlines()[0].endswith("kmeans k=3 seed=5")
    assert "succeeded" in result.stdout
    assert f"3 clusters over {N} points" in result.stdout
    assert "shoal: " in result.stderr
    newest = ask(shoal, "runs")[0]
    assert newest["active"]
    assert newest["config"]["seed"] == 5


@pytest.mark.usefixtures("groups")
def test_plan_changes_nothing(shoal: Run) -> None:
    """With --plan, the run ends planned and the clusters are as they were."""
    before = ask(shoal, "clusters")
    planned = ask(shoal, "cluster", "-k", "4", "--plan")
    assert planned["state"] == "planned"
    assert planned["plan"]["clusters"] == 4
    assert ask(shoal, "clusters") == before


@pytest.mark.usefixtures("groups")
def test_refused_plan_exits_3_and_says_why(shoal: Run) -> None:
    """A plan past a gate changes nothing and is one line with the objection."""
    before = ask(shoal, "clusters")
    result = shoal("cluster", "-k", "3", "--max-cluster-share", "0.1", *COLLECTION)
    assert result.code == 3
    last = result.stderr.splitlines()[-1]
    assert last.startswith("shoal: error: run ")
    assert " was refused: " in last
    assert ask(shoal, "clusters") == before
    forced = ("-k", "3", "--max-cluster-share", "0.1", "--force", "--clustering", "forced")
    assert ask(shoal, "cluster", *forced)["active"]


@pytest.mark.usefixtures("groups")
def test_a_second_run_exits_4_until_the_first_is_cancelled(shoal: Run, server: Any) -> None:
    """The status that a Kubernetes job takes for "somebody else does it"; the line says who."""
    place = {"clustering": "busy"}
    with Client(server.address) as client:
        running = client.start_run(KMeans(3, n_init=1_000_000), collection="groups", **place)
        result = shoal("cluster", "-k", "3", "--clustering", "busy", *COLLECTION)
        assert result.code == 4
        assert running.id in result.stderr.splitlines()[-1]
        shown = shoal("runs", "cancel", running.id[:8], *COLLECTION)
        assert shown.code == 0, shown.stderr
        *_, ended = client.watch(running.id, collection="groups")
    assert ended.state is RunState.CANCELLED
    assert "cancelled" in shoal("runs", "--clustering", "busy", *COLLECTION).stdout
    assert ask(shoal, "cluster", "-k", "3", "--clustering", "busy")["state"] == "succeeded"


@pytest.mark.usefixtures("groups")
def test_noise_that_there_is_not_cannot_be_clustered(shoal: Run) -> None:
    """--noise-only looks at the noise that the active run left, and says how much that is."""
    hdbscan = ("cluster", "--method", "hdbscan", "--min-cluster-size", "5")
    place = ("--clustering", "calm")
    assert ask(shoal, *hdbscan, *place)["plan"]["noise"] == 0
    before = ask(shoal, "clusters", *place)
    none = shoal(*hdbscan, "--noise-only", *place, *COLLECTION)
    assert none.code == 1
    assert "points of noise in collection 'groups', which is 0" in none.stderr.splitlines()[-1]
    assert ask(shoal, "clusters", *place) == before


@pytest.mark.usefixtures("groups")
def test_clusters_add_up(shoal: Run) -> None:
    """The clusters' sizes add up to all points; one cluster alone says the same."""
    listed = ask(shoal, "clusters")
    assert sum(each["size"] for each in listed["clusters"]) == N
    first = listed["clusters"][0]
    alone = ask(shoal, "clusters", str(first["id"]))
    assert (alone["run"], alone["size"]) == (listed["run"], first["size"])
    table = shoal("clusters", *COLLECTION).stdout
    assert f"clusters with {N} points, noise 0, unassigned 0" in table


@pytest.mark.usefixtures("groups")
def test_search_json_is_run_cluster_and_hits(shoal: Run) -> None:
    """One object: run, cluster, and hits with id, score, cluster and payload, nearest first."""
    found = ask(shoal, "search", "p/00.png", "--within", "auto", "-n", "5")
    assert set(found) == {"run", "cluster", "hits"}
    assert found["run"] == ask(shoal, "clusters")["run"]
    assert {hit["cluster"] for hit in found["hits"]} == {found["cluster"]}
    assert all(set(hit) == {"id", "score", "cluster", "payload"} for hit in found["hits"])
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True)
    best = found["hits"][0]
    assert best["score"] == pytest.approx(1, abs=1e-3)
    assert best["payload"]["key"] == "p/00.png"
    assert best["payload"]["tag"] == "x"


def test_search_by_image_stdin_id_and_key_agree(shoal: Run, groups: Path) -> None:
    """The same image is the same query from a file, from stdin, by id and by key."""
    by_file = ask(shoal, "search", "p/01.png", "-n", "4")["hits"]
    by_stdin = ask(shoal, "search", "-", "-n", "4", stdin=(groups / "01.png").read_bytes())["hits"]
    by_id = ask(shoal, "search", "--id", by_file[0]["id"], "-n", "3")["hits"]
    by_key = ask(shoal, "search", "--id", "p/01.png", "-n", "3")["hits"]
    ids = [hit["id"] for hit in by_file]
    assert [hit["id"] for hit in by_stdin] == ids
    assert [hit["id"] for hit in by_id] == [hit["id"] for hit in by_key] == ids[1:]


@pytest.mark.usefixtures("groups")
def test_search_where_restricts(shoal: Run) -> None:
    """Only images whose field equals the value are hits."""
    assert len(ask(shoal, "search", "--id", "p/00.png", "--where", "tag=x")["hits"]) == 10
    assert ask(shoal, "search", "--id", "p/00.png", "--where", "tag=y")["hits"] == []


@pytest.mark.usefixtures("groups")
def test_search_text_without_a_text_tower_is_one_line(shoal: Run) -> None:
    """The bundled encoder reads no texts, and the server says so."""
    result = shoal("search", "--text", "a cat", *COLLECTION)
    assert result.code == 1
    assert result.stderr.startswith("shoal: error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("groups")
def test_rollback_restores_what_was(shoal: Run) -> None:
    """After a run and a rollback, the clusters and the active run are those before."""

    def assignment() -> dict[str, int]:
        hits = ask(shoal, "search", "p/00.png", "-n", "100")["hits"]
        return {hit["id"]: hit["cluster"] for hit in hits}

    run = ask(shoal, "clusters")["run"]
    before = assignment()
    assert ask(shoal, "cluster", "-k", "5", "--seed", "3")["state"] == "succeeded"
    assert len(set(assignment().values())) == 5
    assert ask(shoal, "rollback")["active_run"] == run
    assert assignment() == before


@pytest.mark.usefixtures("groups")
def test_runs_show_takes_the_beginning_of_an_id(shoal: Run) -> None:
    """A run is found by its first characters; an unknown one is one line."""
    newest = ask(shoal, "runs", "-n", "1")[0]
    assert ask(shoal, "runs", "show", newest["id"][:8]) == newest
    shown = shoal("runs", "show", newest["id"][:8], *COLLECTION).stdout
    assert newest["id"] in shown
    plan = newest["plan"]
    assert f"{plan['clusters']} clusters over {N} points" in shown
    table = [line.split() for line in shown[shown.index("lineage") :].splitlines()[1:]]
    assert {(int(row[0]), int(row[1])) for row in table} >= {
        (line["cluster"], line["size"]) for line in plan["lineage"]
    }
    assert {row[2] for row in table} <= {"continued", "born", "split", "merged", "retired"}
    result = shoal("runs", "show", "ffffffff-0000", *COLLECTION)
    assert result.code == 1
    assert result.stderr.startswith("shoal: error: ")


@pytest.mark.usefixtures("groups")
def test_methods_of_later_versions_are_refused_in_one_line(shoal: Run) -> None:
    """What the server cannot do yet is Unsupported, not a crash."""
    for arguments in (["--method", "scp", "--head", "x"], ["--method", "text", "--text", "a"]):
        result = shoal("cluster", *arguments, *COLLECTION)
        assert result.code == 1
        assert result.stderr.splitlines()[-1].startswith("shoal: error: ")


@pytest.mark.usefixtures("groups")
def test_more_clusters_than_points_is_one_line(shoal: Run) -> None:
    """A k above the number of points is refused with both numbers."""
    result = shoal("cluster", "-k", "25", *COLLECTION)
    assert result.code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("shoal: error: ")
    assert "25" in last
    assert str(N) in last


def test_clusters_before_the_first_run_says_what_to_do(
    shoal: Run, tmp_path: Path, pictures: Any
) -> None:
    """Points without a clustering are no error: the listing is empty and says how to go on."""
    pictures(tmp_path / "p", ["1.png"])
    assert shoal("ingest", "p", "--collection", "fresh").code == 0
    result = shoal("clusters", "--collection", "fresh")
    assert (result.code, result.stdout) == (0, "")
    assert "shoal cluster -k N" in result.stderr


def test_model_list_tells_the_encoder(shoal: Run) -> None:
    """The server's encoders are listed with the name that collections know them by."""
    result = shoal("model", "list", "--json")
    (encoder,) = json.loads(result.stdout)["encoders"]
    assert encoder["dim"] == 1280
    assert encoder["name"] in shoal("model", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cluster", "-k", "99999999999"], "100000"),
        (["cluster", "-k", "2", "--seed", str(2**64)], "range"),
        (["cluster", "-k", "2", "--sample-size", str(2**32)], "range"),
        (["cluster", "-k", "2", "--n-init", str(2**32)], "range"),
        (["clusters", str(2**63)], "range"),
        (["search", "--id", "x", "--within", str(2**63)], "expected any, auto"),
        (["search", "--id", "x", "--where", "year>=2000"], "NAME=VALUE"),
        (["search", "--id", "x", "--where", "year==2000"], "NAME=VALUE"),
        (["cluster", "-k", "2", "--text", "a dog"], "--text is for --method text"),
        (["cluster", "-k", "2", "--head", "h"], "--head is for --method scp"),
        (["cluster"], "needs -k: a number of clusters"),
        (["cluster", "--method", "hdbscan", "-k", "3"], "-k is for --method kmeans or gmm"),
        (["cluster", "-k", "3", "--layer", "0"], "--layer is for --method evoc"),
        (["cluster", "-k", "3", "--noise-only"], "--noise-only is for --method hdbscan or evoc"),
        (["cluster", "--method", "evoc", "--layer", "top"], "'top' is not a valid integer"),
        (["duplicates", "--min-cosine", "0.5"], "0.5 is not in the range"),
        (["ingest", ".", "--field", "key=1"], "--field key"),
        (["ingest", ".", "--field", "a.b=1"], "--field a.b"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_sent(
    shoal: Run, arguments: list[str], said: str
) -> None:
    """Numbers out of range, comparisons, and options of another method are usage errors."""
    result = shoal(*arguments, "--address", "127.0.0.1:9")
    assert result.code == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert said in result.stderr


@pytest.mark.usefixtures("groups")
def test_auto_count_prints_the_votes_and_the_curve(shoal: Run) -> None:
    """-k auto says who voted for what, draws the inertia, and has both as JSON."""
    arguments = ("cluster", "-k", "auto", "--k-max", "6", "--clustering", "auto")
    shown = shoal(*arguments, *COLLECTION)
    assert shown.code == 0, shown.stderr
    assert "votes for k: " in shown.stdout
    assert "inertia by k:" in shown.stdout
    plan = ask(shoal, *arguments)["plan"]
    assert len(plan["votes"]) >= 3
    assert 2 <= plan["clusters"] <= 6
    curve = [inertia for _, inertia in plan["elbow"]]
    assert curve == sorted(curve, reverse=True)


@pytest.mark.usefixtures("groups")
def test_density_method_leaves_noise_and_keeps_a_clustering_of_its_own(shoal: Run) -> None:
    """Hdbscan runs without -k in a clustering beside the default one, which stays."""
    before = ask(shoal, "clusters")
    run = ask(
        shoal, "cluster", "--method", "hdbscan", "--min-cluster-size", "3", "--clustering", "dense"
    )
    assert run["state"] == "succeeded"
    assert run["config"]["min_cluster_size"] == 3
    listed = ask(shoal, "clusters", "--clustering", "dense")
    assert sum(one["size"] for one in listed["clusters"]) + listed["noise"] == N
    assert listed["drift"]["due"] is False
    assert ask(shoal, "clusters") == before


@pytest.mark.usefixtures("groups")
def test_names_come_from_a_field(shoal: Run) -> None:
    """--name-by asks for names; a field that is alike everywhere gives none."""
    run = ("cluster", "-k", "3", "--clustering", "named", "--name-by", "tag")
    assert ask(shoal, *run)["state"] == "succeeded"
    assert {one["name"] for one in ask(shoal, "clusters", "--clustering", "named")["clusters"]} == {
        ""
    }


@pytest.mark.usefixtures("groups")
def test_vocabulary_without_a_text_tower_is_one_line(shoal: Run, tmp_path: Path) -> None:
    """Words need an encoder of texts, and the error says so."""
    (tmp_path / "words.txt").write_text("dog\n\ncat\ndog\n")
    result = shoal("cluster", "-k", "3", "--vocabulary", "words.txt", *COLLECTION)
    assert result.code == 1
    assert "text" in result.stderr.splitlines()[-1]
    (tmp_path / "empty.txt").write_text("\n")
    result = shoal("cluster", "-k", "3", "--vocabulary", "empty.txt", *COLLECTION)
    assert result.code == 2
    assert "empty.txt: expected words" in result.stderr


@pytest.mark.usefixtures("groups")
def test_schedule_is_set_shown_and_removed(shoal: Run) -> None:
    """What was set is shown with its next time; removed, there is none."""
    place = ("--clustering", "nightly", *COLLECTION)
    made = shoal("schedule", "set", "--cron", "30 2 * * *", "--if-due", "-k", "4", *place)
    assert made.code == 0, made.stderr
    assert "cron '30 2 * * *' (UTC), when reclustering is due, next at 20" in made.stdout
    assert shoal("schedule", "show", *place).stdout == made.stdout
    every = shoal("schedule", "set", "--every", "90m", "-k", "4", *place)
    assert "every 5400 s, next at" in every.stdout
    gone = shoal("schedule", "remove", *place)
    assert gone.stdout.startswith("clustering nightly has no schedule")
    for arguments, said in (
        (["--every", "5x", "-k", "4"], "such as 6h; got '5x'"),
        (["--cron", "* * * * *", "--every", "1h", "-k", "4"], "one of them"),
        (["-k", "4"], "one of them"),
    ):
        wrong = shoal("schedule", "set", *arguments, *place)
        assert wrong.code == 2
        assert said in wrong.stderr
    bad = shoal("schedule", "set", "--cron", "61 * * * *", "-k", "4", *place)
    assert bad.code == 1
    assert bad.stderr.startswith("shoal: error: cron: ")


def test_duplicates_are_listed_in_groups(shoal: Run, tmp_path: Path, pictures: Any) -> None:
    """The same picture saved anew is found; others are in no group."""
    folder = pictures(tmp_path / "d", [f"{i}.png" for i in range(4)])
    with Image.open(folder / "0.png") as image:
        image.convert("RGB").save(folder / "copy.jpg", quality=95)
    place = ("--collection", "copies")
    assert shoal("ingest", "d", "--keys", "name", *place).code == 0
    result = shoal("duplicates", "--json", *place)
    assert result.code == 0, result.stderr
    (found,) = json.loads(result.stdout)
    group = found["members"]
    assert found["size"] == 2
    assert {one["key"] for one in group} == {"d/0.png", "d/copy.jpg"}
    assert group[0]["cosine"] == 1
    assert 0.95 <= group[1]["cosine"] < 1
    shown = shoal("duplicates", *place)
    assert shown.stdout.endswith("1 groups, 1 images are near-duplicates of another\n")
