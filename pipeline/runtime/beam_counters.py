"""What a run counts for Beam's metrics, in the namespace ``imgindex``."""

from apache_beam.metrics import Metrics

from imgindex.records import Failure

_NAMESPACE = "imgindex"


def count_embedded(images: int) -> None:
    """Counts images whose features are in the store now."""
    Metrics.counter(_NAMESPACE, "embedded").inc(images)


def count_failure(failure: Failure) -> Failure:
    """Counts a failure by its reason, and returns it."""
    Metrics.counter(_NAMESPACE, f"failed_{failure.reason}").inc()
    return failure
