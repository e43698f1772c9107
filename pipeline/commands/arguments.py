"""The arguments of every command: their names, what they take and how `--help` explains them."""

import argparse
import difflib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from imgindex.commands.argument_values import seconds, whole_number, whole_numbers
from imgindex.commands.serve_arguments import add_serve
from imgindex.commands.train_arguments import add_train
from imgindex.evaluation.duplicates.results import THRESHOLD
from imgindex.models.ann.families import FAMILIES
from imgindex.presets import FEATURE_PRESETS, shipped
from imgindex.sinks.databases.names import DEFAULT_NAME
from imgindex.sinks.databases.targets import TARGETS
from imgindex.sinks.formats import FORMATS
from imgindex.text import printable

_BUILD_EPILOG = (
    "Flags may be written with hyphens, as in --dry-run. "
    "Every other flag goes to Beam: --runner, --direct_num_workers, --flink_master and so on. "
    "Exit codes: 0 done, or nothing had changed; 2 bad usage or config; 3 input or environment trouble, "
    "nothing was published; 4 a publish check refused, nothing was published; 130 and 143 stopped by "
    "SIGINT and SIGTERM."
)


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, without the usage of all flags."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        where = "" if message.endswith("?") else f"; see {self.prog} --help"
        self.exit(2, f"imgindex: {printable(message)}{where}\n")

    def refuse(self, unknown: str) -> NoReturn:
        """Ends the process for an argument that the command does not know, and says which one is like it."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        nearest = difflib.get_close_matches(unknown.partition("=")[0], flags, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        self.error(f"{self.prog} does not know the argument {unknown!r}{hint}")


def parser() -> CommandParser:
    """The parser of all commands.

    In the namespace that it gives, `command` is the name of a command, and `parser` parses the arguments of
    that command.
    """
    made = CommandParser(
        prog="imgindex",
        description="Turn a directory of images into a search index, and search it.",
    )
    made.add_argument("--version", action="version", version=f"imgindex {version('imgindex')}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help_text: str, **options: Any) -> CommandParser:
        # Beam has flags that begin like ours; an abbreviation of one must not be taken for the other.
        added: CommandParser = commands.add_parser(
            name, help=help_text, description=help_text, allow_abbrev=False, **options
        )
        added.set_defaults(parser=added)
        added.add_argument("-v", "--verbose", action="store_true", help="log what Beam and Keras do")
        return added

    _add_build(command("build", "Build or refresh an index.", epilog=_BUILD_EPILOG))
    _add_search(command("search", "Find the images of an index that are nearest to given ones."))
    _add_compare(command("compare", "Say how similar two images are: by pixels, features and vectors."))

    def upkeep(name: str, help_text: str) -> CommandParser:
        added = command(name, help_text)
        added.add_argument("output", metavar="INDEX", help="the index's directory")
        return added

    _add_evaluate(upkeep("evaluate", "Measure how good an index is, and what other settings would change."))
    _add_duplicates(upkeep("duplicates", "Find images that are duplicates of each other; delete nothing."))
    inspect = upkeep("inspect", "Print what the live generation of an index holds, and its history.")
    inspect.add_argument(
        "--failures", action="store_true", help="list instead the images that failed, with stage, reason and "
        "message: of the live generation, and of the last build if it was refused",
    )  # fmt: skip
    inspect.add_argument(
        "--reason", metavar="R", help="with --failures: only those, as truncated or decode/truncated"
    )
    inspect.add_argument("--json", action="store_true", help="with --failures: an object on each line")
    upkeep("verify", "Read every byte of the live generation and the store; exit 3 for damage.")
    rollback = upkeep("rollback", "Make an older generation the live one.")
    rollback.add_argument(
        "generation", metavar="GENERATION", nargs="?", help="its name (default: the one before)"
    )
    prune = upkeep("prune", "Delete old generations, and what of the store they alone used.")
    prune.add_argument(
        "--keep", metavar="N", type=whole_number, required=True, help="how many of the newest stay"
    )
    prune.add_argument(
        "--grace", metavar="DURATION", type=seconds, help="delete only what is older: a number and s, m, h "
        "or d, as in 12h (default: 1h for generations, 7d for the features and failures of the store, from "
        "which a build goes on that was killed or refused)",
    )  # fmt: skip

    export = upkeep(
        "export", "Write the vectors of an index, and what describes their images, for other tools."
    )
    export.add_argument(
        "folder", metavar="DIR", help="a new folder, or that of an earlier export, which is replaced"
    )
    export.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="; ".join(f"{name}: {format.text}" for name, format in FORMATS.items()),
    )
    export.add_argument("--generation", metavar="G", help="its name (default: the live one)")
    export.add_argument(
        "--normalize",
        action="store_true",
        help="scale vectors to length 1, so that inner products are cosines",
    )
    export.add_argument(
        "--faiss_index", metavar="FACTORY", help="with --format faiss: the index, in the words of FAISS's "
        "index factory, as HNSW32 or IVF256,Flat (default: Flat, which is exact)",
    )  # fmt: skip
    export.add_argument(
        "--images", metavar="N", type=whole_number, help="with --format atlas and projector: how many at "
        "most (default: 10,000)",
    )  # fmt: skip
    export.add_argument(
        "--seed",
        metavar="N",
        type=whole_number,
        help="with --images: draws them, where there are more (default: 0)",
    )
    export.add_argument(
        "--since", metavar="G", help="with --format vertex: write only what has changed since this generation"
    )

    _add_push(upkeep("push", "Put an index into a vector database, and switch its clients to it at once."))

    add_serve(upkeep("serve", "Answer searches over HTTP, and show a page to search on."))

    add_train(command("train", "Train a backbone on a labeled folder."))

    doctor = command("doctor", "Check whether this machine can build an index; exit 3 where it cannot.")
    doctor.add_argument(
        "output", metavar="OUT", nargs="?", help="where the index would lie (default: the current directory)"
    )

    completion = command("completion", "Print a script that completes commands and flags in a shell.")
    completion.add_argument("shell", choices=["bash", "zsh"], help="the shell that completes")

    demo = command("demo", "Make sample images, index them and search: a first look in one command.")
    demo.add_argument(
        "output", metavar="OUT", nargs="?", default="demo", help="a new directory (default: demo)"
    )
    return made


def _add_build(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "--input", metavar="DIR|GLOB|LIST", help="a directory of images, a quoted glob, a .tar, "
        "or a .txt, .csv or .parquet file of paths",
    )  # fmt: skip
    build.add_argument("--output", metavar="OUT", help="the directory to write the index to")
    build.add_argument(
        "--config", metavar="FILE|NAME", help="a YAML file of settings, or the name of a shipped one: "
        f"{', '.join(shipped())}",
    )  # fmt: skip
    build.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change one setting, as in "
        "--set pca.dims=64; may be repeated",
    )  # fmt: skip
    build.add_argument(
        "--force", metavar="CHECK", action="append", default=[], help="publish although this check "
        "refuses: ledger, files, max_failure_rate, max_shrink, min_recall or max_precision_drop; may be "
        "repeated",
    )  # fmt: skip
    build.add_argument(
        "--retry_failed", action="store_true", help="also try images whose bytes have failed before, as "
        "after an update of Pillow",
    )  # fmt: skip
    build.add_argument(
        "--rehash", action="store_true", help="read every listed file, and embed those whose bytes are new, "
        "also where size, times and etag are as before",
    )  # fmt: skip
    build.add_argument(
        "--dry_run", action="store_true", help="print counts, the plan and estimates; write nothing"
    )


def _add_search(search: argparse.ArgumentParser) -> None:
    search.add_argument(
        "output", metavar="INDEX|URI", help="the index's directory; with --from, where the database is"
    )
    search.add_argument(
        "images", metavar="IMAGE", nargs="+", help="an image to search for, or a directory, a quoted glob, a "
        ".tar, or a .txt, .csv or .parquet file of paths: each of its images",
    )  # fmt: skip
    search.add_argument(
        "-k", "--k", metavar="N", type=whole_number, help="neighbors of each image (default: 10)"
    )
    search.add_argument(
        "--exact", action="store_true", help="compare with every stored vector, by brute force"
    )
    search.add_argument(
        "--distinct", action="store_true", help="list images whose files have the same bytes only once"
    )
    search.add_argument(
        "--exclude_self", action="store_true", help="leave out the indexed image that the query is, by its "
        "path or its bytes, and its copies",
    )  # fmt: skip
    search.add_argument(
        "--where", metavar="CONDITION", action="append", help="answer only with images of a label, as in "
        "label=ketch,anchor, or whose paths begin so, as in uri^=boats/; may be repeated: all must hold",
    )  # fmt: skip
    search.add_argument(
        "--combine", action="store_true", help="search once, for the mean of all images that are given"
    )
    search.add_argument(
        "--negative", metavar="IMAGE", action="append", default=[], help="search once, for what is like the "
        "images that are given and not like this one; may be repeated",
    )  # fmt: skip
    search.add_argument(
        "--vectors", action="store_true", help="with --json: also the vectors of queries and neighbors"
    )
    search.add_argument(
        "--from", dest="from_database", choices=TARGETS, help="search what `imgindex push` has put there; "
        "--where, --combine, --negative and --vectors do not go with it",
    )  # fmt: skip
    _add_collection(search, None)
    search.add_argument(
        "--index",
        metavar="INDEX",
        help="with --from: the index's directory (default: where it was pushed from)",
    )
    _add_model_and_formats(search)


def _add_push(push: argparse.ArgumentParser) -> None:
    push.epilog = (
        "Exit codes: 0 done, or nothing to do; 2 bad usage; 3 the index or the database is in trouble; 4 the "
        "collection was refused. After any but 0 clients see what they saw before."
    )
    push.add_argument("uri", metavar="URI", help="where the database is, without a password")
    push.add_argument(
        "--to", required=True, choices=TARGETS,
        help="; ".join(f"{name}: {of.text} (credentials: {of.secret})" for name, of in TARGETS.items()),
    )  # fmt: skip
    _add_collection(push, DEFAULT_NAME)
    push.add_argument(
        "--keep", metavar="N", type=whole_number, help="then delete the collections of all but the N newest "
        "generations; never the live one, nor what imgindex did not make (default: delete none)",
    )  # fmt: skip
    push.add_argument("--generation", metavar="G", help="its name (default: the live one)")
    push.add_argument(
        "--batch_rows",
        metavar="N",
        type=whole_number,
        help="rows of a request (default: what makes some 4 MiB)",
    )
    push.add_argument(
        "--index_kind",
        metavar="KIND",
        help="how the vectors are indexed; the first is the default. "
        + "; ".join(f"{name}: {', '.join(of.index_kinds)}" for name, of in TARGETS.items()),
    )
    push.add_argument("--dry_run", action="store_true", help="print what would be done; write nothing")


def _add_collection(command: argparse.ArgumentParser, default: str | None) -> None:
    command.add_argument(
        "--collection", metavar="NAME", default=default, help="the name that clients ask a database for: an "
        f"alias, or a view (default: {DEFAULT_NAME})",
    )  # fmt: skip


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("output", metavar="INDEX", help="the index's directory")
    compare.add_argument("a", metavar="A", help="an image: its path, or its uri in the index")
    compare.add_argument("b", metavar="B", help="another one")
    _add_model_and_formats(compare)


def _add_model_and_formats(of_images: argparse.ArgumentParser) -> None:
    of_images.add_argument(
        "--model",
        metavar="FILE",
        help="the index's .keras model, .h5 weights or preset, where it has moved",
    )
    of_images.add_argument("--json", action="store_true", help="print JSON instead of a table")
    of_images.add_argument("--html", metavar="FILE", type=Path, help="also write a page of thumbnails")


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument(
        "-k",
        "--k",
        metavar="N",
        type=whole_number,
        default=4,
        help="the ranks that P@k and recall@k look at (default: 4)",
    )
    evaluate.add_argument(
        "--dims", metavar="N,N", type=whole_numbers, help="numbers of PCA dimensions to try "
        "(default: 1,2,5,10,20,50,100,150,200)",
    )  # fmt: skip
    evaluate.add_argument(
        "--sample", metavar="N", type=whole_number, help="how many images are queries at most "
        "(default: 10,000; of more than 100,000 images fewer, and at least 1,000)",
    )  # fmt: skip
    evaluate.add_argument(
        "--measures", metavar="NAME,NAME", type=lambda text: text.split(","), help="similarity measures to "
        "compare on pixels, features and vectors: l1, l2, mse, cosine, ncc; needs the images",
    )  # fmt: skip
    evaluate.add_argument(
        "--seed", metavar="N", type=whole_number, default=0, help="draws the samples (default: 0)"
    )
    evaluate.add_argument(
        "--compare", metavar="NAME,NAME", nargs="?", const="all", help="also compare indexes of other "
        f"libraries in the vectors: all (the default), or some of {', '.join(FAMILIES)}",
    )  # fmt: skip
    evaluate.add_argument(
        "--compare_seconds", metavar="S", type=float, default=60.0, help="with --compare: how long the "
        "process of each index may take (default: 60)",
    )  # fmt: skip
    evaluate.add_argument(
        "--presets", metavar="NAME,NAME", nargs="?", const="all", help="also embed a sample of the images "
        "with the settings of shipped configs, and say what each would gain: all (the default), or some of "
        f"{', '.join(FEATURE_PRESETS)}; needs the images and the backbone",
    )  # fmt: skip
    evaluate.add_argument(
        "--model", metavar="FILE", help="with --presets: the index's .keras model, .h5 weights or preset, "
        "where it has moved",
    )  # fmt: skip
    evaluate.add_argument("--json", metavar="FILE", type=Path, help="also write everything to a JSON file")
    evaluate.add_argument(
        "--html", metavar="FILE", type=Path, help="also write a page of charts, tables and thumbnails"
    )


def _add_duplicates(duplicates: argparse.ArgumentParser) -> None:
    duplicates.epilog = (
        "Exit codes: 0 done; 2 bad usage; 3 an index is in trouble; 4 with --fail_if_found, where there are "
        "duplicates."
    )
    duplicates.add_argument(
        "--threshold", metavar="T", type=float, default=THRESHOLD, help="the least similarity of near "
        f"duplicates, the cosine of their features (default: {THRESHOLD})",
    )  # fmt: skip
    duplicates.add_argument(
        "--across", choices=["labels", "folders"], help="show only groups whose images have several labels, "
        "or lie in several folders",
    )  # fmt: skip
    duplicates.add_argument(
        "--against", metavar="OTHER", help="find the images of INDEX that this index holds, too, as those of "
        "a test set in its training set; both must be of the same backbone and weights",
    )  # fmt: skip
    duplicates.add_argument(
        "--new", action="store_true", help="look only at images that the last refresh has added or changed"
    )
    duplicates.add_argument("--csv", metavar="FILE", type=Path, help="also write a line for each image")
    duplicates.add_argument("--json", metavar="FILE", type=Path, help="also write all groups as JSON")
    duplicates.add_argument("--html", metavar="FILE", type=Path, help="also write a page of thumbnails")
    duplicates.add_argument(
        "--fail_if_found", action="store_true", help="exit with 4 where there are duplicates"
    )


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """`arguments` with underscores for the hyphens in the names of flags; values stay as they are.

    What follows a lone ``--`` is no flag.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*map(_with_underscores, arguments[:end]), *arguments[end:]]


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def hyphened(flag: str) -> str:
    """A flag of ours with hyphens for underscores, as people may write it."""
    return flag.replace("_", "-")
