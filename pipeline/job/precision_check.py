"""Whether images find those of their label less often in a new generation than in the live one."""

import logging

from imgindex.errors import OutputError
from imgindex.evaluation.precision_change import PrecisionChange, compare_precision
from imgindex.evaluation.sample import Sample, read_alike
from imgindex.generations.layout import Output, read_manifest
from imgindex.generations.manifest import Manifest
from imgindex.text import counted

logger = logging.getLogger(__name__)

_K = 4
# Of fewer queries the bootstrap gives no interval to rely on.
_LEAST_QUERIES = 10


def precision_change(output: Output, live: str, manifest: Manifest) -> PrecisionChange | None:
    """The change of P@4 from the generation `live` to the one that `manifest` describes.

    Both are sampled, so that it takes about as long for any number of images. Gives None, and a log says why,
    where there is nothing to compare.
    """
    change, why = None, "the first shard is too large to be copied from the object store"
    try:
        samples = read_alike(output, read_manifest(output, live), manifest)
    except OutputError as error:  # the live one may be damaged, which a build is to mend
        samples, why = None, str(error)
    if samples is not None:
        change, why = _compared(*samples)
    if change is None:
        logger.warning("publish.max_precision_drop compares nothing: %s", why)
    else:
        logger.info(
            "P@%d by label is %.4f, and %.4f in the live generation, by %d images that both have",
            change.k, change.after, change.before, change.queries,
        )  # fmt: skip
    return change


def _compared(before: Sample, after: Sample) -> tuple[PrecisionChange | None, str]:
    """The change, or why there is none."""
    if not (before.label_names or after.label_names):
        return None, "the images have no labels"
    change = compare_precision(before, after, _K)
    count = change.queries if change is not None else 0
    if count < _LEAST_QUERIES:
        return None, (
            f"{counted(count, 'image')} of the sample have a label with other images in both generations, "
            f"and {_LEAST_QUERIES} are needed"
        )
    return change, ""
