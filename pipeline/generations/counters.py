"""What a build counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from imgindex.inputs.skipped import Counts, added


@dataclass(frozen=True)
class Counters:
    """What any part of a run counted and how long it embedded; parts add up in any order."""

    counts: Mapping[str, int] = field(default_factory=dict)
    span: tuple[float, float] | None = None  # of embedding, seconds since the epoch
    engine_seconds: float = 0.0
    diffed: float = 0.0  # when the last image was found in the store, by its name or its bytes
    failures: int = 0  # the sum of the failures' `known_failures.fingerprint`s
    skipped: Counts = field(default_factory=dict)  # files of the input that are not taken, by kind

    @property
    def held(self) -> int:
        """Images of the listing whose features the store holds by now."""
        return sum(self.counts.get(kind, 0) for kind in ("embedded", "copied", "reused"))

    def __add__(self, other: "Counters") -> "Counters":
        """Both parts together: counts and seconds summed, the spans joined."""
        counts = dict(self.counts)
        for name, count in other.counts.items():
            counts[name] = counts.get(name, 0) + count
        spans = [span for span in (self.span, other.span) if span is not None]
        span = (min(s for s, _ in spans), max(f for _, f in spans)) if spans else None
        engine_seconds = self.engine_seconds + other.engine_seconds
        failures = self.failures + other.failures
        diffed, skipped = max(self.diffed, other.diffed), added(self.skipped, other.skipped)
        return Counters(counts, span, engine_seconds, diffed, failures, skipped)
