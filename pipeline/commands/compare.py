"""The command `imgindex compare`: how similar two images are, by every measure."""

import argparse
import json
from dataclasses import asdict

from imgindex.generations.manifest import Manifest
from imgindex.io.asked_files import check_asked_files
from imgindex.runtime.standard_streams import encodable
from imgindex.search.comparison import Comparison, compare_in, comparison_table, what_ranks
from imgindex.search.pages import write_comparison
from imgindex.search.results import one_dimension
from imgindex.text import printable


def run(known: argparse.Namespace) -> None:
    """Compares the images that the command line names."""
    check_asked_files(known.output, page=known.html)
    comparison, manifest = compare_in(known.output, known.a, known.b, model=known.model)
    if known.json:
        print(encodable(json.dumps(asdict(comparison), indent=2, ensure_ascii=False)))
    else:
        print(_text(comparison, manifest))
    if known.html:
        write_comparison(known.html, known.output, manifest, comparison)


def _text(comparison: Comparison, manifest: Manifest) -> str:
    images = [
        f"{letter}  {printable(image.name)}" for letter, image in (("a", comparison.a), ("b", comparison.b))
    ]
    table = comparison_table(comparison)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for first, *rest in table]
    without = [
        f"{letter} has no feature: it would be zero or not finite"
        for letter, image in (("a", comparison.a), ("b", comparison.b))
        if not image.has_feature
    ]
    about = [what_ranks(manifest.metric), *one_dimension(manifest.dims, manifest.metric)]
    return "\n".join([*images, "", *lines, *without, "", *about])
