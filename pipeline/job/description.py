"""What a finished generation says of itself: its ledger, its recall and its manifest."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from imgindex.features.known_failures import is_environmental
from imgindex.generations.counters import Counters
from imgindex.generations.failure_lists import FailureList
from imgindex.generations.layout import library_versions
from imgindex.generations.manifest import (
    Ledger,
    Manifest,
    MeasuredRecall,
    RecordedEngine,
    RecordedPca,
    RecordedSpec,
    Shard,
)
from imgindex.indexing.shard_backend import SEARCHES
from imgindex.indexing.shards import ShardSummary
from imgindex.inputs.skipped import most_frequent
from imgindex.inputs.source import input_root
from imgindex.job.plan import Plan
from imgindex.models.ann.recall import RECALL_K, first_to_reach
from imgindex.models.drift import Verdict
from imgindex.records import WrittenFile


@dataclass(frozen=True)
class WrittenBasis:
    """The written PCA basis of a generation."""

    file: WrittenFile
    feature_dim: int
    dims: int
    explained_variance_ratio: float  # of all components together
    finished: float
    cut: int = 0  # as of `Basis`
    scale_ratio: float = 1.0


@dataclass(frozen=True)
class Tuned:
    """How deep searches must go, and the recall@10 that they have then."""

    search_k: int
    recall: float


@dataclass(frozen=True)
class Finished:
    """A generation whose files are written, with what is known of it."""

    plan: Plan
    ledger: Ledger
    shards: Sequence[ShardSummary]
    basis: WrittenBasis
    failures: Sequence[FailureList]
    tuned: Tuned
    counters: Counters
    verdict: Verdict  # why the basis is new, or the one before


def digest_of_failures(counters: Counters) -> str:
    """A digest of which images have failed and why, in whatever order they were counted."""
    return f"{counters.failures % 2**128:032x}"


def ledger_of(counters: Counters, failures: Sequence[FailureList], indexed: int) -> Ledger:
    """The ledger of a build that indexed so many images."""
    counts = counters.counts
    by_reason: Counter[str] = Counter()
    for listed in failures:
        by_reason.update(listed.by_reason)
    return Ledger(
        listed=counts.get("listed", 0),
        indexed=indexed,
        failed=by_reason.total(),
        failed_by_reason=dict(sorted(by_reason.items())),
        environmental=sum(n for reason, n in by_reason.items() if is_environmental(*reason.split("/"))),
        **{kind: counts.get(kind, 0) for kind in ("added", "changed", "removed", "unchanged")},
        **{kind: counts.get(kind, 0) for kind in ("embedded", "copied", "reused", "damaged_chunks")},
        skipped=most_frequent(counters.skipped),
    )


def tune(shards: Sequence[ShardSummary], target_recall: float) -> Tuned:
    """The least search_k that reaches `target_recall`, or the most recall that there is."""
    recalls = _mean_recalls(shards)
    step = first_to_reach(recalls, target_recall)
    return Tuned(SEARCHES[step]["search_k"], recalls[step])


def _mean_recalls(shards: Sequence[ShardSummary]) -> list[float]:
    """Recall over all shards, weighted by their distinct images, of each of `SEARCHES`."""
    distinct = sum(shard.distinct for shard in shards)
    return [
        sum(shard.recalls[step] * shard.distinct for shard in shards) / distinct
        for step in range(len(SEARCHES))
    ]


def search_recalls(shards: Sequence[ShardSummary]) -> list[tuple[int, float]]:
    """search_k, and the recall@10 over all shards with it."""
    return [(step["search_k"], recall) for step, recall in zip(SEARCHES, _mean_recalls(shards), strict=True)]


def manifest_of(finished: Finished) -> Manifest:
    """The manifest of a generation."""
    plan, basis, shards, failures = finished.plan, finished.basis, finished.shards, finished.failures
    files = [basis.file, *(listed.file for listed in failures)]
    files += [file for shard in shards for file in (shard.index, shard.metadata)]
    return Manifest(
        generation=plan.generation,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        previous=plan.previous.name if plan.previous else None,
        spec=RecordedSpec(digest=plan.spec.digest, **asdict(plan.spec)),
        engine=RecordedEngine(
            plan.engine.engine, plan.engine.precision, plan.engine.batch_size, plan.engine.cosine
        ),
        input_root=input_root(plan.input),
        config=asdict(plan.config),
        forced=tuple(sorted(plan.force)),
        ledger=finished.ledger,
        feature_dim=basis.feature_dim,
        dims=basis.dims,
        explained_variance_ratio=basis.explained_variance_ratio,
        pca=_pca(finished),
        metric=plan.config.index.metric,
        search_k=finished.tuned.search_k,
        recall=MeasuredRecall(
            RECALL_K,
            finished.tuned.recall,
            queries=sum(shard.queries for shard in shards),
            distinct=sum(shard.distinct for shard in shards),
        ),
        shards=tuple(
            Shard(shard.index.path, shard.metadata.path, shard.items, shard.settings["trees"])
            for shard in shards
        ),
        basis=basis.file.path,
        failures=tuple(listed.file.path for listed in failures),
        failures_digest=digest_of_failures(finished.counters),
        files=tuple(sorted(files, key=lambda file: file.path)),
        libraries=library_versions(),
        timings=timings(plan, finished.counters, basis, shards),
    )


def _pca(finished: Finished) -> RecordedPca:
    plan, basis, previous = finished.plan, finished.basis, finished.plan.previous
    if finished.verdict.refit or previous is None:
        fitted_in, fitted_images = plan.generation, finished.ledger.indexed
    else:
        fitted_in, fitted_images = previous.fitted_in, previous.fitted_images
    return RecordedPca(
        **asdict(finished.verdict),
        fitted_in=fitted_in,
        fitted_images=fitted_images,
        cut=basis.cut,
        scale_ratio=basis.scale_ratio,
    )


def timings(
    plan: Plan, counters: Counters, basis: WrittenBasis, shards: Sequence[ShardSummary]
) -> dict[str, float]:
    """Seconds by stage, one after the other; `engine` is the part of `embed` that the backbone ran."""
    embed_started, embed_finished = counters.span or (counters.diffed, counters.diffed)
    indexed = max(shard.finished for shard in shards)
    now = time.time()
    seconds = {
        "prepare": plan.prepared - plan.started,
        "list": embed_started - plan.prepared,
        "embed": embed_finished - embed_started,
        "engine": counters.engine_seconds,
        "pca": basis.finished - embed_finished,
        "index": indexed - basis.finished,
        "publish": now - indexed,
        "total": now - plan.started,
    }
    return {stage: round(value, 3) for stage, value in seconds.items()}
