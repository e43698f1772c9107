"""The command `imgindex search`: prints answers as they are found, and says which queries have none."""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from imgindex.config import ImagesConfig
from imgindex.errors import InputError, UsageError
from imgindex.generations.manifest import Manifest
from imgindex.inputs.skipped import described, most_frequent
from imgindex.io.asked_files import check_asked_files
from imgindex.runtime.standard_streams import encodable
from imgindex.search.filters import filter_of
from imgindex.search.index import Index
from imgindex.search.pages import write_page
from imgindex.search.queries import Found, each_in, is_several
from imgindex.search.results import Result, as_json, describe_error, one_dimension, result_table
from imgindex.sinks.databases.names import DEFAULT_NAME
from imgindex.text import counted, printable

if TYPE_CHECKING:
    from imgindex.sinks.databases.index import DatabaseIndex

# Pictures of a page; each takes some 6 KiB of it.
_MAX_PICTURES = 5000
_NEIGHBORS = 10  # unless it is said how many


def run(known: argparse.Namespace) -> None:
    """Searches for what the command line names.

    Raises InputError at the end where a query has no answer.
    """
    with contextlib.ExitStack() as stack:
        index: Index | DatabaseIndex
        k = _NEIGHBORS if known.k is None else known.k
        if known.vectors and not known.json:
            raise UsageError("--vectors are for JSON; give --json, too")
        if known.html and (known.combine or known.negative):
            raise UsageError(
                "a page shows a picture of each query, and a combined one has none; leave out --html"
            )
        if known.from_database:
            index = stack.enter_context(_in_database(known))
        else:
            if known.index is not None:
                raise UsageError("--index says where the index of a database lies; it needs --from")
            if known.collection is not None:
                raise UsageError(
                    "--collection is the name of what was pushed into a database; it needs --from"
                )
            check_asked_files(known.output, page=known.html)
            filter_of(known.where)  # what is wrong with it is said before anything is opened
            index = Index.open(known.output, model=known.model)
            if known.where:
                _tell_matching(index, known.where)
        results = _results(known, index, k)
        if known.k is not None and known.k > len(index):
            images = counted(len(index), "image")
            print(f"imgindex: -k is {known.k}, but the index has only {images}", file=sys.stderr)
        for warning in one_dimension(index.facts.dims, index.facts.metric):
            print(f"imgindex: {warning}", file=sys.stderr)
        _show(known, index, results)


def _results(known: argparse.Namespace, index: "Index | DatabaseIndex", k: int) -> Iterator[Result]:
    """The answers of `index`."""
    how: dict[str, Any] = {
        "exact": known.exact,
        "distinct": known.distinct,
        "exclude_self": known.exclude_self,
    }
    queries = _queries(known.images, index.facts)
    if not isinstance(index, Index):
        return index.search_each(queries, k, **how)
    how |= {"where": known.where, "vectors": known.vectors}
    if not known.combine and not known.negative:
        return index.search_each(queries, k, **how)
    negative = _queries(known.negative, index.facts)
    return iter([index.search_combined(queries, negative, k, **how)])


def _tell_matching(index: Index, where: Sequence[str]) -> None:
    """Says so where no image fulfills the conditions, for a name may be misspelled."""
    if not index.matching(where):
        conditions = " and ".join(where)
        print(printable(f"imgindex: no image of the index fulfills {conditions}"), file=sys.stderr)


@contextlib.contextmanager
def _in_database(known: argparse.Namespace) -> Iterator["DatabaseIndex"]:
    """What `--from` names."""
    from imgindex.sinks.databases.index import DatabaseIndex
    from imgindex.sinks.databases.targets import connected

    for flag in ("where", "vectors", "combine", "negative"):
        if getattr(known, flag):
            raise UsageError(f"--{flag} is for the files of an index; leave it out with --from")
    name = DEFAULT_NAME if known.collection is None else known.collection
    with contextlib.closing(connected(known.from_database, known.output, make=False)) as database:
        index = DatabaseIndex.open(database, name, output=known.index, model=known.model)
        check_asked_files(index.output.root, page=known.html)
        yield index


def _show(known: argparse.Namespace, index: "Index | DatabaseIndex", results: Iterator[Result]) -> None:
    """Prints each result as it comes, and writes the page."""
    show = _JsonPrinter() if known.json else _TablePrinter(index.facts.metric)
    one_alone = len(known.images) == 1 and not is_several(known.images[0])
    on_page: list[Result] = []
    pictures = total = failed = 0
    message = ""
    for result in results:
        show.add(result)
        total += 1
        if result.error is not None:
            failed += 1
            message = f"query {result.query}: {describe_error(result.error)}"
            if not one_alone:
                print(f"imgindex: {printable(message)}", file=sys.stderr)
        pictures += 1 + len(result.neighbors)
        if known.html and (pictures <= _MAX_PICTURES or not on_page):
            on_page.append(result)
    show.end()
    if known.html:
        write_page(known.html, index, on_page, total - len(on_page))
    if failed:
        several = f"{failed} of {counted(total, 'query', 'queries')} could not be answered"
        raise InputError(message if one_alone else several)


def _queries(sources: Sequence[str], manifest: Manifest) -> Iterator[str | Found]:
    indexed = manifest.settings.images.extensions
    extensions = sorted({*ImagesConfig.extensions, *indexed})
    for source in sources:
        skipped: Counter[str] = Counter()
        yield from each_in(source, extensions, skipped)
        if skipped:
            text = f"imgindex: query {source}: skipped {described(most_frequent(skipped))}"
            print(printable(text), file=sys.stderr)


class _TablePrinter:
    """Prints each answer as a table of its own."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._between = ""

    def add(self, result: Result) -> None:
        if result.error is None:
            print(self._between + result_table([result], self._metric))
            self._between = "\n"

    def end(self) -> None:
        """Nothing is left to print."""


class _JsonPrinter:
    """Prints an array, one result after the other: all of them might not fit into memory."""

    def __init__(self) -> None:
        self._before = "[\n"

    def add(self, result: Result) -> None:
        text = json.dumps(as_json(result), indent=2, ensure_ascii=False)
        # Only a line feed begins a line of it: the others that Python knows stand in names, as they are.
        indented = "  " + text.replace("\n", "\n  ")
        print(self._before + encodable(indented), end="")
        self._before = ",\n"

    def end(self) -> None:
        print("\n]")
