"""The contract in ``proto/`` keeps its own rules, and the rooms keep theirs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTOS = sorted((ROOT / "proto" / "shoal" / "v1").glob("*.proto"))
BEGINNINGS = ("Required", "Optional", "Output only")

# Numbers of the descriptor fields that a source location's path is made of.
MESSAGE, ENUM, FIELD, NESTED = 4, 5, 2, 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """The compiled contract, comments included."""
    target = tmp_path_factory.mktemp("contract") / "set.binpb"
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = [f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--descriptor_set_out={target}"]
    assert protoc.main(["protoc", *arguments, "--include_source_info", *map(str, PROTOS)]) == 0
    return list(descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file)


def messages(
    file: descriptor_pb2.FileDescriptorProto,
) -> Iterator[tuple[tuple[int, ...], descriptor_pb2.DescriptorProto]]:
    """Every message with the path of its source location, nested ones included."""

    def below(
        path: tuple[int, ...], message: descriptor_pb2.DescriptorProto
    ) -> Iterator[tuple[tuple[int, ...], descriptor_pb2.DescriptorProto]]:
        yield path, message
        for number, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from below((*path, NESTED, number), nested)

    for number, message in enumerate(file.message_type):
        yield from below((MESSAGE, number), message)


def comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    locations = file.source_code_info.location
    return {tuple(each.path): each.leading_comments.strip() for each in locations}


def test_contract_field_comments_say_who_fills_them(files: Any) -> None:
    """Each field begins with Required, Optional or Output only; a oneof's members need not."""
    checked = 0
    for file in files:
        said = comments(file)
        for path, message in messages(file):
            for number, field in enumerate(message.field):
                comment = said.get((*path, FIELD, number), "")
                if not field.HasField("oneof_index") or field.proto3_optional:
                    assert comment.startswith(BEGINNINGS), f"{message.name}.{field.name}"
                checked += 1
    assert checked > 100


def test_contract_enums_have_a_prefixed_unspecified_zero(files: Any) -> None:
    """So that an absent value is told from the first one, and values do not clash in C++."""
    checked = 0
    for file in files:
        for enum in file.enum_type:
            words = "".join(f"_{each}" if each.isupper() else each for each in enum.name)
            prefix = words.removeprefix("_").upper()
            assert enum.value[0].number == 0
            assert enum.value[0].name == f"{prefix}_UNSPECIFIED"
            assert all(value.name.startswith(f"{prefix}_") for value in enum.value)
            checked += 1
        assert all(not message.enum_type for _, message in messages(file))
    assert checked >= 4


def test_contract_methods_have_requests_of_their_own(files: Any) -> None:
    """A method can get a parameter without another method getting it too."""
    seen: set[str] = set()
    for file in files:
        for service in file.service:
            for method in service.method:
                request = method.input_type.rpartition(".")[2]
                assert request == f"{method.name}Request"
                assert request not in seen
                seen.add(request)
    assert len(seen) > 15


def test_contract_stubs_are_what_the_contract_generates() -> None:
    """``proto/generate.py --check`` finds nothing stale in shoal/v1."""
    done = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_contract_stubs_that_are_stale_are_named(tmp_path: Path) -> None:
    """The check fails on a changed, a missing and an orphaned stub, each by its name."""
    for source in [*PROTOS, ROOT / "proto" / "generate.py", *(ROOT / "shoal" / "v1").iterdir()]:
        if source.is_file():
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    stubs = tmp_path / "shoal" / "v1"
    (stubs / "common_pb2.py").write_text("# edited by hand\n", encoding="utf-8")
    (stubs / "search_pb2.pyi").unlink()
    (stubs / "gone_pb2.py").touch()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "proto" / "generate.py"), "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert [line.partition(";")[0] for line in done.stderr.splitlines()] == [
        "shoal/v1/common_pb2.py is stale",
        "shoal/v1/gone_pb2.py has no .proto file",
        "shoal/v1/search_pb2.pyi is missing",
    ]


def test_contract_stubs_are_registered_under_the_package_name() -> None:
    """The stubs import as shoal.v1, which is the proto package too."""
    from shoal.v1 import search_pb2  # noqa: PLC0415 - importing is what is tested

    pool = descriptor_pool.Default()
    assert (
        pool.FindMessageTypeByName("shoal.v1.SearchRequest") is search_pb2.SearchRequest.DESCRIPTOR
    )


def test_contract_rooms_import_only_what_they_may() -> None:
    """The import contracts of pyproject.toml hold."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
