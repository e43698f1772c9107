"""What a service counts, for Prometheus."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from imgindex.serving.live_index import Answering

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


class Metrics:
    """The counters of one service. Each has a registry of its own, so that several can be in a process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "imgindex_requests", "Requests that were answered.", ["route", "status"], registry=registry
        )
        self._errors = Counter(
            "imgindex_errors", "Requests that were answered with an error.", ["route", "reason"],
            registry=registry,
        )  # fmt: skip
        self._request_seconds = Histogram(
            "imgindex_request_seconds", "Seconds until a request was answered.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._stage_seconds = Histogram(
            "imgindex_stage_seconds", "Seconds of a stage of a query.", ["stage"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "imgindex_batch_images", "Images that were embedded together.", buckets=_SIZES, registry=registry
        )
        self.working = Gauge("imgindex_working", "Requests that are being worked on.", registry=registry)
        self._generation = Gauge(
            "imgindex_generation", "1 for the generation that answers.", ["generation"], registry=registry
        )
        self._images = Gauge("imgindex_images", "Images of that generation.", registry=registry)
        self._bytes = Gauge("imgindex_generation_bytes", "Bytes of its files.", registry=registry)
        self._since = Gauge(
            "imgindex_generation_seconds", "Seconds since it was begun to be built.", registry=registry
        )
        self._switches = Counter(
            "imgindex_generation_switches", "How often another generation took over.", registry=registry
        )
        self._trouble = Gauge(
            "imgindex_generation_trouble", "1 where the live generation cannot be opened, and an older one "
            "answers.", registry=registry,
        )  # fmt: skip

    def answered(self, route: str, status: int, reason: str | None, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)
        if reason is not None:
            self._errors.labels(route, reason).inc()

    def stage(self, name: str, seconds: float) -> None:
        """Counts the seconds of a stage: decode, embed, search or metadata."""
        self._stage_seconds.labels(name).observe(seconds)

    def batch(self, count: int, seconds: float) -> None:
        """Counts a batch of images."""
        self._batches.observe(count)
        self.stage("embed", seconds)

    def answering(self, found: Answering, begun: float, trouble: Callable[[], bool]) -> None:
        """Tells which generation answers; `begun` is in seconds since the epoch."""
        self._generation.clear()
        self._generation.labels(found.generation).set(1)
        self._images.set(found.manifest.items)
        self._bytes.set(found.manifest.size)
        self._since.set_function(lambda: time.time() - begun)
        self._trouble.set_function(lambda: float(trouble()))
        self._switches.inc()

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
