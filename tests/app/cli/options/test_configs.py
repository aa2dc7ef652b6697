"""Each option of each config reaches its field, and no other, with the default that is promised.

The tables are written by hand, so that an option that is new, renamed, gone, or of another default
or range, is a change that somebody sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from option_tables import Command, Row, changed, flat
from pydantic import SecretStr

from clusterer.config import ClustererConfig
from embedder.config import EmbedderConfig
from search.config import EmbedderAddress, SearchConfig
from shoal.app.cli.options.contexts import ClientContext
from shoal.app.cli.options.derive import configured
from shoal.app.cli.options.reporting import Reporting
from shoal.app.cli.options.target import Target
from shoal.app.config import LocalConfig, ServeConfig, SparkChoice
from shoal.rpc.config import ChannelConfig, ServerConfig
from shoal.store import StoreConfig

EMBEDDER = (
    Row("--encoder", "encoders", (), ["a", "b"], (Path("a"), Path("b")), "a:b"),
    Row("--provider", "runtime.provider", "cpu", ["cuda"], "cuda"),
    Row("--device", "runtime.device", 0, ["3"], 3),
    Row("--require-gpu", "runtime.require_gpu", False, [], True),
    Row("--threads", "runtime.threads", 1, ["4"], 4),
    Row("--engine-cache", "runtime.engine_cache", None, ["e"], Path("e")),
    Row("--max-batch", "max_batch", 0, ["9"], 9),
    Row("--run-size", "run_size", 0, ["10"], 10),
    Row("--inference-workers", "inference_workers", 0, ["11"], 11),
    Row("--decode-workers", "decode_workers", 0, ["12"], 12),
    Row("--max-image-bytes", "limits.max_bytes", 20_971_520, ["13"], 13),
    Row("--max-image-pixels", "limits.max_pixels", 50_000_000, ["14"], 14),
    Row("--max-call-images", "max_call_images", 512, ["15"], 15),
    Row("--max-call-mib", "max_call_mib", 256, ["16"], 16),
    Row("--max-call-decode", "max_call_decode_s", 60.0, ["1.5"], 1.5),
    Row("--max-decode-memory-mib", "max_decode_memory_mib", 0, ["900"], 900),
    Row("--stream-images", "stream_images", 0, ["17"], 17),
    Row("--max-stream-images", "max_stream_images", 1024, ["18"], 18),
    Row("--max-stream-mib", "max_stream_mib", 256, ["19"], 19),
    Row("--idle-encoder", "idle_encoder_s", 600.0, ["20.5"], 20.5),
    Row("--give-up", "give_up_s", 300.0, ["inf"], float("inf")),
    Row("--allow-files", "locations.roots", (), ["/", "/usr"], (Path("/"), Path("/usr")), "/:/usr"),
    Row("--allow-host", "locations.hosts", (), ["a.b", "*.c:1"], ("a.b", "*.c:1")),
    Row("--allow-objects", "locations.prefixes", (), ["s3://a", "gs://b"], ("s3://a", "gs://b")),
    Row("--allow-http", "locations.allow_http", False, [], True),
    Row("--allow-private-hosts", "locations.allow_private", False, [], True),
    Row("--read-timeout", "locations.timeout_s", 30.0, ["21"], 21.0),
)
SERVER = (
    Row("--address", "address", "127.0.0.1:7800", ["a:1"], "a:1"),
    Row("--token", "tokens", (), ["t", "u"], ("t", "u")),
    Row("--tls-cert", "tls_cert", None, ["c"], Path("c")),
    Row("--tls-key", "tls_key", None, ["k"], Path("k")),
    Row("--grace", "grace_s", 20.0, ["0"], 0.0),
    Row("--max-connection-age", "max_connection_age_s", 0.0, ["2.5"], 2.5),
)
STORE = (
    Row("--store-url", "url", None, ["http://q"], "http://q"),
    Row("--store-api-key", "api_key", None, ["s"], "s"),
    Row("--store-grpc-port", "grpc_port", 6334, ["65535"], 65535),
    Row("--store-via-proxy", "via_proxy", False, [], True),
)
GATES = (
    Row("--max-moved-share", "gates.max_moved_share", None, ["0"], 0.0),
    Row("--max-noise-share", "gates.max_noise_share", None, ["1"], 1.0),
    Row("--min-agreement", "gates.min_agreement", None, ["-1"], -1.0),
    Row("--max-cluster-share", "gates.max_cluster_share", None, ["0.5"], 0.5),
)
CLUSTERER = (
    Row("--heads", "heads", "", ["s3://b/h"], "s3://b/h"),
    Row("--sample-size", "sample_size", 50_000, ["1"], 1),
    Row("--max-sample-size", "max_sample_size", 1_000_000, ["60000"], 60_000),
    Row("--kept-runs", "kept_runs", 1_000, ["3"], 3),
    Row("--store-patience", "store_patience_s", 120.0, ["0"], 0.0),
    Row("--continued-jaccard", "matching.continued_jaccard", 0.5, ["1"], 1.0),
    Row("--related-share", "matching.related_share", 0.1, ["0"], 0.0),
    *GATES,
)
SEARCH = (
    Row("--embedder-address", "embedder_address", "localhost:7801", ["e:2"], "e:2"),
    Row("--embedder-token", "embedder_token", None, ["t"], "t"),
    Row("--embedder-tls-ca", "embedder_tls_ca", None, ["ca"], Path("ca")),
)
SPARK = (
    Row("--spark-master", "master", "", ["k8s://m"], "k8s://m"),
    Row(
        "--spark-conf", "settings", {}, ["spark.a=1", "spark.b=="], {"spark.a": "1", "spark.b": "="}
    ),
    Row("--spark-log", "log", None, ["l"], Path("l")),
)
TARGET = (
    Row("--address", "channel.address", "localhost:7800", ["a:1"], "a:1"),
    Row("--token", "channel.token", None, ["t"], "t"),
    Row("--tls", "channel.tls", False, [], True),
    Row("--tls-ca", "channel.tls_ca", None, ["ca"], Path("ca")),
    Row("--timeout", "channel.timeout_s", 60.0, ["0.5"], 0.5),
    Row("--via-proxy", "channel.via_proxy", False, [], True),
    Row("--embedder-address", "embedder_address", None, ["e:1"], "e:1"),
    Row("--clusterer-address", "clusterer_address", None, ["c:1"], "c:1"),
    Row("--search-address", "search_address", None, ["s:1"], "s:1"),
    Row("--context", "context", None, ["prod"], "prod"),
    Row("--collection", "collection", "images", ["c"], "c"),
    Row("--clustering", "clustering", "default", ["d"], "d"),
)
CONTEXT = (
    Row("--address", "address", None, ["a:1"], "a:1"),
    Row("--embedder-address", "embedder_address", None, ["e:1"], "e:1"),
    Row("--clusterer-address", "clusterer_address", None, ["c:1"], "c:1"),
    Row("--search-address", "search_address", None, ["s:1"], "s:1"),
    Row("--token-file", "token_file", None, ["t"], Path("t")),
    Row("--tls", "tls", None, [], True),
    Row("--tls-ca", "tls_ca", None, ["ca"], Path("ca")),
    Row("--via-proxy", "via_proxy", None, [], True),
    Row("--collection", "collection", None, ["c"], "c"),
    Row("--clustering", "clustering", None, ["d"], "d"),
)
REPORTING = (
    Row("--log-level", "log_level", "info", ["debug"], "debug"),
    Row("--log-format", "log_format", "json", ["text"], "text"),
    Row("--ready-file", "ready_file", None, ["r"], Path("r")),
)


def inside(rows: tuple[Row, ...], name: str) -> tuple[Row, ...]:
    """The options of a config that is the field ``name`` of another."""
    return tuple(row._replace(field=f"{name}.{row.field}") for row in rows)


LOCAL = (
    Row("--data", "data", Path("shoal-data"), ["d"], Path("d")),
    *inside(EMBEDDER, "embedder"),
    *inside(SERVER, "server"),
    Row("--metrics-address", "metrics_address", "off", ["m:3"], "m:3"),
    Row("--min-free-mib", "min_free_mib", 128, ["7"], 7),
)
SERVE = (
    *inside(SERVER, "server"),
    *inside(STORE, "store"),
    Row("--metrics-address", "metrics_address", "127.0.0.1:9464", ["off"], "off"),
)


@dataclass(frozen=True)
class Case:
    """A config, its options, and the options that it cannot be without."""

    config: type[Any]
    rows: tuple[Row, ...]
    needs: tuple[str, ...] = ()
    default: Any = None

    @property
    def command(self) -> Command:
        return Command(configured(self.config, as_="config"), "config")


NEEDED = ("--store-url", "http://other")
CASES = {
    "up": Case(LocalConfig, LOCAL),
    "serve": Case(
        ServeConfig, SERVE, NEEDED, ServeConfig(ServerConfig(), StoreConfig(url="http://other"))
    ),
    "embedder": Case(EmbedderConfig, EMBEDDER),
    "clusterer": Case(ClustererConfig, CLUSTERER),
    "search": Case(SearchConfig, ()),
    "embedder of search": Case(EmbedderAddress, SEARCH),
    "spark": Case(
        SparkChoice,
        (*inside(STORE, "store"), *inside(SPARK, "spark")),
        NEEDED,
        SparkChoice(StoreConfig(url="http://other")),
    ),
    "target": Case(Target, TARGET),
    "context": Case(ClientContext, CONTEXT),
    "reporting": Case(Reporting, REPORTING),
}
COMMANDS = {name: case.command for name, case in CASES.items()}
WITH = {"--require-gpu": ("--provider", "cuda")}
"""Options that one is refused without."""


@pytest.mark.parametrize("name", CASES)
def test_without_options_the_config_is_its_own_default(name: str) -> None:
    """The defaults of the command line are those of the config, and those of the table."""
    case = CASES[name]
    built = COMMANDS[name].built(case.needs)
    assert flat(built) == flat(case.default or case.config())
    defaults = flat(built)
    promised = {row.field: row.default for row in case.rows if row.flag not in case.needs}
    assert {field: defaults[field] for field in promised} == promised


@pytest.mark.parametrize("name", CASES)
def test_table_has_all_options(name: str) -> None:
    """No option is without a promise."""
    assert COMMANDS[name].flags == {row.flag for row in CASES[name].rows}


@pytest.mark.parametrize(
    ("name", "row"), [(name, row) for name, case in CASES.items() for row in case.rows], ids=str
)
def test_option_sets_its_field_alone(name: str, row: Row) -> None:
    """On the command line and in the environment alike."""
    command, case = COMMANDS[name], CASES[name]
    other = [*case.needs, *WITH.get(row.flag, ())]
    before = command.built(other)
    expected = {row.field: row.expected}
    assert changed(command.built([*other, *row.words()]), before) == expected
    words = [] if row.flag in case.needs else other
    assert changed(command.built(words, row.environment()), before) == expected


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        *(("embedder", f, "-1") for f in ("--device", "--threads", "--max-batch", "--run-size")),
        *(("embedder", f, "-1") for f in ("--inference-workers", "--decode-workers")),
        *(("embedder", f, "0") for f in ("--max-image-bytes", "--max-image-pixels")),
        *(("embedder", f, "0") for f in ("--max-call-images", "--max-call-mib")),
        *(("embedder", f, "0") for f in ("--max-stream-images", "--max-stream-mib")),
        *(("embedder", f, "0") for f in ("--idle-encoder", "--give-up", "--read-timeout")),
        ("embedder", "--stream-images", "-1"),
        ("embedder", "--provider", "gpu"),
        ("embedder", "--max-batch", "1.5"),
        *(("up", f, "-0.1") for f in ("--grace", "--max-connection-age")),
        *(("serve", "--store-grpc-port", value) for value in ("0", "65536")),
        *(("clusterer", f, "0") for f in ("--sample-size", "--max-sample-size", "--kept-runs")),
        *(("clusterer", "--continued-jaccard", value) for value in ("0.49", "1.01")),
        *(("clusterer", "--related-share", value) for value in ("-0.01", "1.01")),
        *(("clusterer", row.flag, "1.01") for row in GATES),
        *(("clusterer", row.flag, "-1.01") for row in GATES),
        *(("clusterer", f"--max-{what}-share", "-0.01") for what in ("moved", "noise", "cluster")),
        ("target", "--timeout", "0"),
        ("reporting", "--log-level", "trace"),
        ("reporting", "--log-format", "xml"),
        ("spark", "--spark-conf", "spark.a"),
        ("spark", "--spark-conf", "a=b"),
    ],
)
def test_value_outside_its_range_is_a_wrong_usage(name: str, flag: str, value: str) -> None:
    """The message names the option and the value."""
    said = COMMANDS[name].refused(*CASES[name].needs, flag, value)
    assert f"'{flag}'" in said
    assert value in said


def test_capacities_are_in_bytes() -> None:
    """What calls and streams may have in process is counted in images and bytes."""
    config = EmbedderConfig(
        max_call_images=5, max_call_mib=6, max_stream_images=8, max_stream_mib=9
    )
    assert (config.calls.max_items, config.calls.max_bytes) == (5, 6 * 2**20)
    assert (config.streams.max_items, config.streams.max_bytes) == (8, 9 * 2**20)


def test_search_reaches_the_embedder_with_all_that_it_was_told() -> None:
    """An authority is enough to ask for TLS."""
    token, authority = SecretStr("t"), Path("ca.pem")
    assert EmbedderAddress().channel() == ChannelConfig("localhost:7801")
    assert EmbedderAddress("e:1", token, authority).channel() == ChannelConfig(
        "e:1", token, tls=True, tls_ca=authority
    )


def test_client_is_told_all_of_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Address, token, TLS, authority, timeout and proxy."""
    told: list[Any] = []
    monkeypatch.setattr(
        "shoal.app.cli.options.target.Client", lambda *args, **kwargs: told.append((args, kwargs))
    )
    authority = Path("ca.pem")
    Target(ChannelConfig("a:1", SecretStr("t"), True, authority, 2.5, via_proxy=True)).connect()
    Target().connect()
    assert told == [
        (
            ("a:1",),
            {"token": "t", "tls": True, "tls_ca": authority, "timeout_s": 2.5, "via_proxy": True},
        ),
        (
            ("localhost:7800",),
            {"token": None, "tls": False, "tls_ca": None, "timeout_s": 60.0, "via_proxy": False},
        ),
    ]
