"""The command `imgindex evaluate`."""

import argparse
import json

from imgindex.evaluation.evaluate import DIMS, evaluate_in
from imgindex.evaluation.results import as_json
from imgindex.evaluation.tables import as_text
from imgindex.io.asked_files import check_asked_files, write_text
from imgindex.runtime.standard_streams import encodable


def run(known: argparse.Namespace) -> None:
    """Prints what the evaluation found, and writes it as JSON or a page if asked for. Raises OutputError."""
    check_asked_files(known.output, page=known.html, json=known.json)
    found, collection = evaluate_in(
        known.output,
        k=known.k,
        dims=known.dims or DIMS,
        sample=known.sample,
        seed=known.seed,
        compare=known.compare.split(",") if known.compare else False,
        compare_seconds=known.compare_seconds,
        measures=known.measures or (),
        presets=known.presets.split(",") if known.presets else False,
        model=known.model,
    )
    print(encodable(as_text(found)))
    if known.json:
        text = json.dumps(as_json(found), indent=2, ensure_ascii=True, allow_nan=False)
        write_text(known.json, f"{text}\n")
    if known.html:
        # Only a page needs what draws its charts.
        from imgindex.evaluation.report.evaluation_page import write_evaluation

        write_evaluation(known.html, found, collection)
