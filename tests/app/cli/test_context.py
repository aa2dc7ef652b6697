"""Contexts, and client commands over services that are servers of their own."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from clients import Fake, serving

from shoal.app.cli import main
from shoal.app.cli.options.target import PROXIES, Target, target_options
from shoal.client.calls import SERVICES, Service
from shoal.errors import ConfigError
from shoal.rpc.config import ChannelConfig
from shoal.v1 import clusterer_pb2, search_pb2


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's directory of settings, which is not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config" / "shoal"


Shoal = Callable[..., str]


@pytest.fixture
def shoal(home: Path) -> Shoal:
    """Runs a command that must succeed; what it printed for programs."""
    del home

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    return run


def failing(*arguments: str) -> str:
    """The one line of a command that must fail."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def target_of(*arguments: str, environment: dict[str, str] | None = None) -> Target:
    """What a client command would be about."""
    found: list[Target] = []

    @click.command()
    @target_options
    def command(*, target: Target) -> None:
        found.append(target)

    result = CliRunner().invoke(command, arguments, env=environment)
    if isinstance(result.exception, Exception):
        raise result.exception
    return found[0]


def test_context_is_kept_changed_shown_and_forgotten(shoal: Shoal) -> None:
    """Only what is given changes; paths hold in every directory."""
    shoal("context", "set", "prod", "--address", "p:1", "--tls", "--token-file", "token")
    shoal("context", "set", "prod", "--search-address", "s:2", "--collection", "c")
    shoal("context", "set", "home", "--address", "h:1")
    assert json.loads(shoal("context", "show", "prod")) == {
        "name": "prod",
        "address": "p:1",
        "search_address": "s:2",
        "token_file": str(Path("token").absolute()),
        "tls": True,
        "collection": "c",
    }
    assert json.loads(shoal("context", "list", "--json")) == {
        "current": "",
        "contexts": ["home", "prod"],
    }
    shoal("context", "use", "prod")
    assert json.loads(shoal("context", "show"))["name"] == "prod"
    assert shoal("context", "list").splitlines() == [
        "   name  addresses",
        "   home  h:1",
        "*  prod  p:1, search s:2",
    ]
    shoal("context", "delete", "home")
    assert json.loads(shoal("context", "list", "--json"))["current"] == "prod"
    shoal("context", "delete", "prod")
    assert json.loads(shoal("context", "list", "--json")) == {"current": "", "contexts": []}


def test_context_keeps_nothing_of_the_environment(
    shoal: Shoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is set there today would outlast it in the file."""
    monkeypatch.setenv("SHOAL_ADDRESS", "e:1")
    shoal("context", "set", "prod", "--tls")
    assert json.loads(shoal("context", "show", "prod")) == {"name": "prod", "tls": True}


def test_file_of_contexts_is_for_its_owner_alone(shoal: Shoal, home: Path) -> None:
    """Also where an older one could be read by others."""
    shoal("context", "set", "prod", "--address", "p:1")
    file = home / "contexts.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    (home / "contexts.json.shoal-new").touch(mode=0o644)
    shoal("context", "set", "prod", "--tls")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("command", ["use", "show", "delete"])
def test_context_that_is_not_there_is_told_with_those_that_are(shoal: Shoal, command: str) -> None:
    """Whoever mistyped a name sees the right one."""
    assert "context 'prof' does not exist; existing: none" in failing("context", command, "prof")
    shoal("context", "set", "prod", "--address", "p:1")
    assert "context 'prof' does not exist; existing: prod" in failing("context", command, "prof")
    assert "existing: prod" in failing("runs", "--context", "prof")


def test_context_with_a_malformed_address_is_not_kept(shoal: Shoal) -> None:
    """Of any of the four."""
    for name in ("--address", "--embedder-address", "--clusterer-address", "--search-address"):
        assert "'nowhere' cannot be read" in failing("context", "set", "x", name, "nowhere")
    assert json.loads(shoal("context", "list", "--json"))["contexts"] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "the file: Invalid JSON"),
        ('{"current": 1}', "current: Input should be a valid string"),
        ('{"contexts": {"a": {"adress": "x"}}}', "contexts.a.adress: Unexpected"),
        ('{"contexts": {"a": {"tls": []}}}', "contexts.a.tls: Input should be a valid boolean"),
    ],
)
def test_file_of_contexts_that_is_damaged_is_named(home: Path, text: str, says: str) -> None:
    """With the place in it and what is wrong there; nothing is overwritten."""
    home.mkdir(parents=True)
    (home / "contexts.json").write_text(text)
    for arguments in (("runs",), ("context", "set", "b", "--address", "b:1")):
        told = failing(*arguments)
        assert f"contexts file {home / 'contexts.json'} cannot be used: {says}" in told
    assert (home / "contexts.json").read_text() == text


def test_current_context_gives_what_is_not_given(shoal: Shoal) -> None:
    """Addresses, token, TLS and names; without one, the defaults stay."""
    assert target_of() == Target()
    Path("token").write_text(" secret\n")
    shoal("context", "set", "prod", "--address", "p:1", "--token-file", "token", "--tls")
    shoal("context", "set", "prod", "--clusterer-address", "c:2", "--collection", "photos")
    shoal("context", "set", "prod", "--via-proxy", "--tls-ca", "ca.pem")
    assert target_of() == Target()
    shoal("context", "use", "prod")
    target = target_of("--timeout", "5")
    assert target.channel.token is not None
    assert target.channel.token.get_secret_value() == "secret"
    assert target == Target(
        ChannelConfig(
            "p:1",
            target.channel.token,
            tls=True,
            tls_ca=Path("ca.pem").absolute(),
            timeout_s=5.0,
            via_proxy=True,
        ),
        clusterer_address="c:2",
        collection="photos",
    )


@pytest.mark.parametrize("how", ["option", "environment"])
def test_options_and_environment_outrank_the_context(shoal: Shoal, how: str) -> None:
    """Setting by setting."""
    shoal("context", "set", "prod", "--address", "p:1", "--token-file", "gone", "--collection", "a")
    shoal("context", "use", "prod")
    if how == "option":
        target = target_of("--token", "t", "--collection", "b")
    else:
        target = target_of(environment={"SHOAL_TOKEN": "t", "SHOAL_COLLECTION": "b"})
    assert (target.channel.address, target.collection) == ("p:1", "b")
    assert target.channel.token is not None
    assert target.channel.token.get_secret_value() == "t"


def test_address_that_is_given_sets_the_current_context_aside(shoal: Shoal) -> None:
    """Its token is for other servers, unless the context is named all the same."""
    Path("token").write_text("secret")
    shoal("context", "set", "prod", "--search-address", "s:2", "--token-file", "token")
    shoal("context", "use", "prod")
    assert target_of("--address", "a:1") == Target(ChannelConfig("a:1"))
    assert target_of(environment={"SHOAL_SEARCH_ADDRESS": "x:1"}) == Target(
        ChannelConfig(""), search_address="x:1"
    )
    named = target_of("--address", "a:1", "--context", "prod")
    assert named.channel.token is not None
    assert (named.channel.address, named.search_address) == ("a:1", None)
    both = target_of("--clusterer-address", "c:1", "--context", "prod")
    assert (both.channel.address, both.search_address, both.clusterer_address) == (
        ("", "s:2", "c:1")
    )


def test_address_for_all_is_that_of_services_without_their_own(shoal: Shoal) -> None:
    """Given, or of the context; the default address is no service's once another is given."""
    del shoal
    target = target_of("--address", "localhost:7800", "--search-address", "s:1")
    assert (target.channel.address, target.search_address) == ("localhost:7800", "s:1")
    assert target_of("--search-address", "s:1").channel.address == ""


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), (None, "No such file")])
def test_token_file_that_gives_no_token_is_named(shoal: Shoal, text: str | None, says: str) -> None:
    """Empty, or not there."""
    if text is not None:
        Path("token").write_text(text)
    shoal("context", "set", "prod", "--token-file", "token")
    with pytest.raises(ConfigError, match=says) as caught:
        target_of("--context", "prod")
    assert str(Path("token").absolute()) in caught.value.message


# Services that are servers of their own


@pytest.fixture
def fakes() -> dict[Service, Fake]:
    return {service: Fake() for service in SERVICES}


@pytest.fixture
def split(home: Path, fakes: dict[Service, Fake]) -> Iterator[dict[Service, str]]:
    """The address of each of three servers."""
    del home
    with ExitStack() as stack:
        yield {each: stack.enter_context(serving(fakes[each], each)) for each in SERVICES}


def listed() -> search_pb2.ListClustersResponse:
    return search_pb2.ListClustersResponse(run="r1", clusters=[search_pb2.Cluster(id=7, size=3)])


def clusters(*arguments: str) -> tuple[Any, str]:
    result = CliRunner().invoke(main, ["clusters", "--json", *arguments])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), result.stderr


@pytest.mark.parametrize("how", ["search alone", "as the only address", "clusterer is away"])
def test_clusters_leaves_out_the_drift_where_no_clusterer_tells_it(
    fakes: dict[Service, Fake], split: dict[Service, str], how: str
) -> None:
    """The list is complete without it; a line says what is missing, and how to get it."""
    fakes["search"].answers = [listed()]
    away = "127.0.0.1:9"
    arguments = {
        "search alone": ("--search-address", split["search"]),
        "as the only address": ("--address", split["search"]),
        "clusterer is away": ("--search-address", split["search"], "--clusterer-address", away),
    }[how]
    found, told = clusters(*arguments)
    assert [each["id"] for each in found["clusters"]] == [7]
    assert found["drift"] is None
    assert "the drift is left out" in told
    assert (away if how == "clusterer is away" else "--clusterer-address") in told


def test_clusters_of_split_services_have_their_drift(
    fakes: dict[Service, Fake], split: dict[Service, str], shoal: Shoal
) -> None:
    """Both addresses come from a context."""
    shoal("context", "set", "prod", "--search-address", split["search"])
    shoal("context", "set", "prod", "--clusterer-address", split["clusterer"])
    shoal("context", "use", "prod")
    fakes["search"].answers = [listed()]
    drift = clusterer_pb2.Drift(due=True)
    fakes["clusterer"].answers = [clusterer_pb2.Clustering(name="default", drift=drift)]
    found, told = clusters()
    assert found["drift"]["due"] is True
    assert told == ""


def test_command_names_the_service_that_has_no_address(split: dict[Service, str]) -> None:
    """And the option that would give it."""
    told = failing("runs", "--search-address", split["search"])
    assert "the call is for the clusterer, which has no address" in told
    assert "--clusterer-address" in told
    told = failing("runs", "--address", split["search"])
    assert f"the server at {split['search']} is not the clusterer" in told


@pytest.mark.parametrize(
    ("arguments", "variable", "hinted"),
    [
        (("no-such-host.invalid:1",), "https_proxy", True),
        (("no-such-host.invalid:1",), "http_proxy", True),
        (("no-such-host.invalid:1",), "other", False),
        (("127.0.0.1:9",), "https_proxy", False),
        (("no-such-host.invalid:1", "--via-proxy"), "http_proxy", False),
    ],
)
def test_proxy_that_was_left_out_is_mentioned(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    variable: str,
    *,
    hinted: bool,
) -> None:
    """To whoever cannot reach another machine, and has one in the environment."""
    del home
    for name in (*PROXIES, "no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    told = failing("runs", "--address", *arguments)
    assert (f"({variable} is set; --via-proxy goes by that proxy)" in told) is hinted
