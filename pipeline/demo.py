"""The demo: sample images, an index of them, a few searches and a page to look at."""

import time
from pathlib import Path

from imgindex.config import BackboneConfig, Config
from imgindex.errors import OutputError, UsageError
from imgindex.launch import build
from imgindex.samples import write_samples
from imgindex.search import Index
from imgindex.summary import describe_generation, result_page, result_table


def run(folder: Path) -> None:
    """Runs the demo in `folder`, new or of an earlier demo, and prints what it does.

    Raises:
      UsageError: `folder` holds something else.
      OutputError: `folder` cannot be written.
    """
    started = time.monotonic()
    images, index_directory, page = folder / "images", folder / "index", folder / "search.html"
    if folder.exists() and any(folder.iterdir()) and not images.is_dir():
        raise UsageError(f"{folder} is not empty; name a new directory")
    try:
        count = write_samples(images)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from error
    labels = sorted(path.name for path in images.iterdir())
    print(f"{images}: {count} sample images of {len(labels)} kinds: {', '.join(labels)}\n")

    config = Config(
        input=str(images),
        output=str(index_directory),
        backbone=BackboneConfig(name="MobileNetV2", weights="bundled"),
    )
    print(f"{describe_generation(str(index_directory), build(config))}\n")

    index = Index.open(index_directory)
    queries = [sorted((images / label).iterdir())[0] for label in labels]
    results = index.search(queries, k=8)
    page.write_text(result_page(index, results), encoding="utf-8")
    print(f"{result_table(results[:3])}\n")
    print(f"Look at {page.resolve()} in a browser.")
    print(f"Search by yourself:  imgindex search {index_directory} {queries[0]} -k 5")
    print("Index your own:      imgindex build --input DIR --output OUT\n")
    print(f"The demo took {time.monotonic() - started:.0f} seconds.")
