"""The options that say how clusters are found and named, for a run now and for scheduled ones.

They are derived from the SDK's values. A method is a dataclass; an option of several methods is
a field that several of them have, and a method takes the options whose fields it has.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import click

from shoal.app.cli.options.derive import Leaf, Options
from shoal.app.cli.options.option import Decorator, decorate, option
from shoal.client import (
    Client,
    EmbeddingVectors,
    GaussianMixture,
    Hdbscan,
    KMeans,
    Method,
    Naming,
    RunOptions,
    ScpHead,
    TextCentroids,
)
from shoal.settings import Setting

METHODS: Final[Mapping[str, type[Method]]] = {
    "kmeans": KMeans,
    "hdbscan": Hdbscan,
    "gmm": GaussianMixture,
    "evoc": EmbeddingVectors,
    "scp": ScpHead,
    "text": TextCentroids,
}
_LEAVE_NOISE: Final = ("hdbscan", "evoc")
"""The methods that leave noise, which they can cluster alone."""
_PROMPT: Final = "a photo of {}"
"""The text that a word of a vocabulary is embedded in: CLIP was trained on captions."""
_WORDS_A_CALL: Final = 64


@dataclass(frozen=True, slots=True)
class NamingOptions:
    """What the clusters are named by."""

    name_fields: Annotated[tuple[str, ...], Setting("--name-by", metavar="FIELD")] = ()
    """Name clusters by the typical values of this field."""
    vocabulary: Annotated[Path | None, Setting(path="file", exists=True)] = None
    """Name clusters by the nearest of these words, one a line; needs a text tower."""

    def words(self) -> list[str]:
        """The words of the vocabulary, each once; UsageError for a file without any."""
        if self.vocabulary is None:
            return []
        try:
            lines = self.vocabulary.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as exc:
            byte = exc.object[exc.start]
            msg = f"{self.vocabulary}: expected words in UTF-8, got byte {byte:#04x}"
            raise click.UsageError(msg) from exc
        words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not words:
            raise click.UsageError(f"{self.vocabulary}: expected words, one a line, got none")
        return words


@dataclass(frozen=True, slots=True)
class Wanted:
    """The run that somebody asks for. Words of a vocabulary are not yet vectors."""

    method: Method
    options: RunOptions
    naming: NamingOptions

    def run_options(self, client: Client) -> RunOptions:
        """The options with the clusters' names; ``client`` embeds the words of a vocabulary."""
        words = self.naming.words()
        if not (words or self.naming.name_fields):
            return self.options
        vector = self.options.vector
        if words and ("+" in vector or (isinstance(self.method, ScpHead) and not vector)):
            msg = "--vocabulary needs --vector: the one stored vector whose encoder knows the words"
            raise click.UsageError(msg)
        naming = Naming(self.naming.name_fields, _embedded(client, words, encoder=vector))
        return dataclasses.replace(self.options, naming=naming)


def _embedded(client: Client, words: list[str], *, encoder: str) -> dict[str, Any]:
    """The vector of each word."""
    vectors: dict[str, Any] = {}
    for at in range(0, len(words), _WORDS_A_CALL):
        some = words[at : at + _WORDS_A_CALL]
        found = client.embed_text([_PROMPT.format(word) for word in some], encoder=encoder)
        vectors.update(zip(some, (each.vector for each in found), strict=True))
    return vectors


def _by_parameter() -> dict[str, dict[str, Leaf]]:
    """The options of all methods: for each, the field that it is in the methods that have it."""
    found: dict[str, dict[str, Leaf]] = {}
    for name, method in METHODS.items():
        for leaf in Options(method).leaves:
            found.setdefault(leaf.parameter, {})[name] = leaf
    return found


_OF_METHODS: Final = _by_parameter()
_METHOD_OPTION: Final = option(
    "--method",
    type=click.Choice(list(METHODS)),
    default="kmeans",
    help="How clusters are found. kmeans and gmm need -k; hdbscan and evoc find their own number "
    "and leave noise; scp applies a trained head. (text: not in this version.)",
)


def wanted_options(*, without: Collection[str] = ()) -> Decorator:
    """Gives a command the options of a run, which it gets as ``wanted``.

    ``without``: fields of RunOptions that are no options of the command.
    """
    run, naming = Options(RunOptions, without=without), Options(NamingOptions)

    def give(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(*, method: str, **values: Any) -> Any:
            found = _take_method(method, values)
            options = run.take(values)
            _check(method, found, options)
            return function(wanted=Wanted(found, options, naming.take(values)), **values)

        of_methods = [_shared(leaves).option(required=False) for leaves in _OF_METHODS.values()]
        given = decorate(run.give(naming.give(command)), of_methods)
        return _METHOD_OPTION(given)

    return give


def _shared(leaves: Mapping[str, Leaf]) -> Leaf:
    """One option for the fields of several methods, which says which ones they are."""
    texts: dict[str, list[str]] = {}
    for name, leaf in leaves.items():
        texts.setdefault(leaf.help, []).append(name)
    said = " ".join(f"With {' or '.join(names)}: {text}" for text, names in texts.items())
    first = next(iter(leaves.values()))
    default = None if first.default is MISSING else first.default
    return dataclasses.replace(first, default=default, help=said)


def _take_method(name: str, values: dict[str, Any]) -> Method:
    """The method called ``name``; UsageError for options that it has not, or lacks."""
    arguments: dict[str, Any] = {}
    for parameter, leaves in _OF_METHODS.items():
        shared = _shared(leaves)
        value, flag = shared.value(values.pop(parameter)), shared.flags
        leaf = leaves.get(name)
        if leaf is None:
            if value not in (None, "", (), shared.default):
                known = " or ".join(leaves)
                raise click.UsageError(f"{flag} is for --method {known}, not {name}")
            continue
        if leaf.default is MISSING and value in (None, ""):
            needed = leaf.help[:1].lower() + leaf.help[1:]
            raise click.UsageError(f"--method {name} needs {flag}: {needed}")
        arguments[leaf.field.name] = value
    return METHODS[name](**arguments)


def _check(name: str, method: Method, options: RunOptions) -> None:
    """UsageError for options of a run that mean nothing to its method."""
    if (options.k_min or options.k_max) and getattr(method, "k", None) != "auto":
        raise click.UsageError("--k-min and --k-max are for -k auto")
    if options.noise_only and name not in _LEAVE_NOISE:
        known = " or ".join(_LEAVE_NOISE)
        raise click.UsageError(f"--noise-only is for --method {known}, not {name}")
