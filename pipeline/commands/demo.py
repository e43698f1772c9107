"""The demo: sample images, an index of them, a few searches and a page to look at."""

import argparse
import shlex
import sys
import time
from pathlib import Path

from imgindex.commands.descriptions import describe_generation
from imgindex.commands.sample_images import PAINTERS, write_samples
from imgindex.config import BackboneConfig, Config
from imgindex.errors import OutputError, UsageError
from imgindex.io import filesystem
from imgindex.job.launch import build
from imgindex.search.index import Index
from imgindex.search.pages import write_page
from imgindex.search.results import result_table


def run(known: argparse.Namespace) -> None:
    """Runs the demo in the folder that the command line names."""
    make_demo(Path(known.output))


def make_demo(folder: Path) -> None:
    """Runs the demo in `folder`, new or of an earlier demo, and prints what it does.

    Raises:
      UsageError: `folder` is something else.
      OutputError: `folder` cannot be written.
    """
    started = time.monotonic()
    images, index_directory, page = folder / "images", folder / "index", folder / "search.html"
    try:
        if filesystem.exists(str(folder)) and not _is_new_or_a_demo(folder):
            raise UsageError(f"{folder} is not empty, nor an earlier demo; name a new directory")
        count = write_samples(images)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from error
    labels = sorted(path.name for path in images.iterdir() if path.is_dir())
    print(f"{images}: {count} sample images of {len(labels)} kinds: {', '.join(labels)}\n")

    config = Config(
        input=str(images),
        output=str(index_directory),
        backbone=BackboneConfig(name="MobileNetV2", weights="bundled"),
    )
    build(config)
    index = Index.open(index_directory)
    print(f"{describe_generation(str(index_directory), index.facts)}\n")

    queries = [sorted((images / label).iterdir())[0] for label in labels]
    results = index.search(queries, k=8)
    write_page(page, index, results)
    print(f"{result_table(results[:3], index.facts.metric)}\n")
    print(f"Look at {page.resolve()} in a browser.")
    print("Search on a page in your browser (needs pip install 'imgindex[serve]'):")
    print(f"  {_command('serve', index_directory)}")
    print("Search by yourself:")
    print(f"  {_command('search', index_directory, queries[0], '-k', 5)}")
    print("Index images, with your own folder in place of the demo's:")
    own = folder.with_name(f"{folder.name}-index")
    print(f"  {_command('build', '--config', 'mobilenetv2', '--input', images, '--output', own)}\n")
    print(f"The demo took {time.monotonic() - started:.0f} seconds.")


def _command(*arguments: object) -> str:
    """A command line of imgindex that a shell runs, also where the environment is not active."""
    beside = Path(sys.executable).with_name("imgindex")
    start = [str(beside)] if beside.exists() else [sys.executable, "-m", "imgindex"]
    return shlex.join([*start, *map(str, arguments)])


def _is_new_or_a_demo(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    held = {path.name for path in folder.iterdir()}
    # Not by glob, which finds nothing where it may not look.
    kinds = {path.name for path in (folder / "images").iterdir()} if "images" in held else set()
    return held <= {"images", "index", "search.html"} and kinds <= PAINTERS.keys()
