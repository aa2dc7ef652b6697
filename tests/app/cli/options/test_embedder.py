"""Each option of an embedder reaches its field, and no other, with the default that is promised."""

from __future__ import annotations

from pathlib import Path

import pytest
from option_tables import Command, Row, changed, flat

from embedder.config import EmbedderConfig
from shoal.app.cli.options.derive import configured

ROWS = (
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
WITH = {"--require-gpu": ["--provider", "cuda"]}
"""Options that one is refused without."""


@pytest.fixture(scope="module")
def command() -> Command:
    return Command(configured(EmbedderConfig, as_="embedder"), "embedder")


def test_without_options_the_config_is_its_own_default(command: Command) -> None:
    """The defaults of the command line are those of the config, and those of the table."""
    assert command.built() == EmbedderConfig()
    defaults = flat(EmbedderConfig())
    assert {row.field: defaults[row.field] for row in ROWS} == {r.field: r.default for r in ROWS}


def test_table_has_all_options(command: Command) -> None:
    """An option that is new, renamed or gone is a change that somebody sees."""
    assert command.flags == {row.flag for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=[row.flag for row in ROWS])
def test_option_sets_its_field_alone(command: Command, row: Row) -> None:
    """On the command line and in the environment alike."""
    other = WITH.get(row.flag, [])
    before = command.built(other)
    expected = {row.field: row.expected}
    assert changed(command.built([*other, *row.words()]), before) == expected
    assert changed(command.built(other, row.environment()), before) == expected


def test_capacities_are_in_bytes() -> None:
    """What calls and streams may have in process is counted in images and bytes."""
    config = EmbedderConfig(
        max_call_images=5, max_call_mib=6, max_stream_images=8, max_stream_mib=9
    )
    assert (config.calls.max_items, config.calls.max_bytes) == (5, 6 * 2**20)
    assert (config.streams.max_items, config.streams.max_bytes) == (8, 9 * 2**20)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *((flag, "-1") for flag in ("--device", "--threads", "--max-batch", "--run-size")),
        *((flag, "-1") for flag in ("--inference-workers", "--decode-workers", "--stream-images")),
        *((flag, "0") for flag in ("--max-image-bytes", "--max-image-pixels", "--max-call-images")),
        *((flag, "0") for flag in ("--max-call-mib", "--max-stream-images", "--max-stream-mib")),
        *((flag, "0") for flag in ("--idle-encoder", "--give-up", "--read-timeout")),
        ("--provider", "gpu"),
        ("--max-batch", "1.5"),
    ],
)
def test_value_outside_its_range_is_a_wrong_usage(command: Command, flag: str, value: str) -> None:
    """The message names the option and the value."""
    said = command.refused(flag, value)
    assert f"'{flag}'" in said
    assert value in said
