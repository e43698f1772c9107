"""The last step of a build: check the finished generation, write its manifest, make it the live one."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from imgindex import parts, storage
from imgindex.config import Config
from imgindex.errors import ImgindexError, InputError, OutputError, PublishRefusedError
from imgindex.generation import (
    SCHEMA_VERSION,
    Output,
    library_versions,
    publish,
    read_manifest,
)
from imgindex.listing import input_root
from imgindex.models.annoy_index import RECALL_EFFORTS, RECALL_K, search_effort
from imgindex.models.engines import EngineChoice
from imgindex.models.spec import Spec
from imgindex.records import Failure, ShardSummary, Tally, WrittenBasis, WrittenFile

_REFUSAL = "refusal.json"


@dataclass(frozen=True)
class Plan:
    """What the launcher knows of a build before it starts."""

    config: Config
    input: str
    output: Output
    generation: str  # its name
    previous: str | None  # the name of the live generation
    previous_items: int  # how many images that holds
    spec: Spec
    engine: EngineChoice
    threads: int | None  # a worker's; None: all its cores
    started: float  # seconds since the epoch
    prepared: float  # when the backbone was loaded

    @property
    def store(self) -> str:
        """Where the features are kept."""
        return self.output.store(self.spec.digest)

    @property
    def directory(self) -> str:
        """Where the generation is written."""
        return self.output.generation(self.generation)


def finish(
    plan: Plan,
    tally: Tally,
    failures: Sequence[Failure],
    bases: Sequence[WrittenBasis],
    shards: Sequence[ShardSummary],
) -> None:
    """Publishes the generation, or records why it must not be; `outcome` tells which.

    Raises:
      OutputError: a file cannot be written, or one that was written is not there any more.
    """
    storage.delete_tree(parts.directory(plan.directory))
    shards = sorted(shards, key=lambda shard: shard.index.path)
    ledger = _ledger(tally, failures, sum(shard.items for shard in shards))
    recalls = _mean_recalls(shards)
    effort = _cheapest_effort(recalls, plan.config.index.target_recall)
    recall = recalls[effort]
    failures_file = _write_failures(plan.directory, failures)
    refusal = _refusal(plan, ledger, recall, failures_file)
    if refusal is not None:
        kind, message = refusal
        content = json.dumps({"error": kind, "message": message})
        storage.write_bytes(storage.join(plan.directory, _REFUSAL), content.encode())
        return
    basis = bases[0]
    written = [basis.file, failures_file]
    written += [file for shard in shards for file in (shard.index, shard.metadata)]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "generation": plan.generation,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "previous": plan.previous,
        "spec": {"digest": plan.spec.digest, **asdict(plan.spec)},
        "engine": {
            "name": plan.engine.engine,
            "precision": plan.engine.precision,
            "batch_size": plan.engine.batch_size,
            "cosine_with_float32": plan.engine.cosine,
        },
        "input_root": input_root(plan.input),
        "config": asdict(plan.config),
        "ledger": ledger,
        "feature_dim": basis.feature_dim,
        "dims": basis.dims,
        "explained_variance_ratio": basis.explained_variance_ratio,
        "metric": plan.config.index.metric,
        "search_k": search_effort(plan.config.index.trees, effort),
        "recall": {"k": RECALL_K, "recall": recall},
        "shards": [
            {"index": shard.index.path, "metadata": shard.metadata.path, "items": shard.items}
            for shard in shards
        ],
        "basis": basis.file.path,
        "failures": failures_file.path,
        "files": [asdict(file) for file in sorted(written, key=lambda file: file.path)],
        "libraries": library_versions(),
        "timings": _timings(plan, tally, basis, shards),
    }
    for file in written:
        _check_present(storage.join(plan.directory, file.path), file)
    publish(plan.output, plan.generation, manifest)


def outcome(plan: Plan) -> dict[str, Any]:
    """The manifest of the generation that a finished pipeline published.

    Raises:
      PublishRefusedError, InputError: `finish` refused, with its reason.
    """
    path = storage.join(plan.directory, _REFUSAL)
    if storage.exists(path):
        refusal = json.loads(storage.read_bytes(path))
        # What nobody can use goes; the list of failures, which the message names, stays.
        for folder in ("index", "metadata", "pca"):
            storage.delete_tree(storage.join(plan.directory, folder))
        kinds: dict[str, type[ImgindexError]] = {
            kind.__name__: kind for kind in (PublishRefusedError, InputError)
        }
        raise kinds[refusal["error"]](refusal["message"])
    return read_manifest(plan.output, plan.generation)


def _check_present(path: str, file: WrittenFile) -> None:
    size = storage.size(path)
    if size != file.size:
        raise OutputError(f"{path} was written with {file.size} bytes and now has {size}; build again")


def _ledger(tally: Tally, failures: Sequence[Failure], indexed: int) -> dict[str, Any]:
    return {
        "listed": tally.counts.get("listed", 0),
        "indexed": indexed,
        "failed": len(failures),
        "failed_by_reason": dict(
            sorted(Counter(f"{failure.stage}/{failure.reason}" for failure in failures).items())
        ),
        "embedded": tally.counts.get("embedded", 0),
        "reused": tally.counts.get("reused", 0),
    }


def _refusal(
    plan: Plan, ledger: dict[str, Any], recall: float, failures: WrittenFile
) -> tuple[str, str] | None:
    """The kind of error and its message when a check refuses the generation."""
    limits = plan.config.publish
    listed, indexed, failed = ledger["listed"], ledger["indexed"], ledger["failed"]
    reasons = ", ".join(f"{reason} {n}" for reason, n in ledger["failed_by_reason"].items())
    list_of_them = storage.join(plan.directory, failures.path)
    if listed != indexed + failed:
        message = f"check ledger: {listed} listed, but {indexed} indexed and {failed} failed"
        return PublishRefusedError.__name__, f"{message}; this is a bug, please report it"
    if not indexed:
        message = (
            f"none of the {listed} images in {plan.input} could be indexed ({reasons}); see {list_of_them}"
        )
        return InputError.__name__, message
    # Ratios, for 0.29 * 100 is less than 29: what is just at a limit is within it.
    if failed / listed > limits.max_failure_rate:
        message = (
            f"check max_failure_rate: {failed} of {listed} images failed ({reasons}), more than "
            f"publish.max_failure_rate={limits.max_failure_rate} allows; mend or remove those in "
            f"{list_of_them}, or raise the limit"
        )
        return PublishRefusedError.__name__, message
    before = plan.previous_items
    if before and (before - indexed) / before > limits.max_shrink:
        message = (
            f"check max_shrink: {indexed} images where the live generation has {before}, fewer than "
            f"publish.max_shrink={limits.max_shrink} allows; is all of {plan.input} there?"
        )
        return PublishRefusedError.__name__, message
    if recall < limits.min_recall:
        message = (
            f"check min_recall: recall@{RECALL_K} is {recall:.3f}, less than publish.min_recall="
            f"{limits.min_recall}; raise index.trees"
        )
        return PublishRefusedError.__name__, message
    return None


def _mean_recalls(shards: Sequence[ShardSummary]) -> list[float]:
    """Recall over all shards, weighted by their items, at each effort."""
    items = sum(shard.items for shard in shards)
    return [
        sum(shard.recalls[effort] * shard.items for shard in shards) / items if items else 0.0
        for effort in range(RECALL_EFFORTS)
    ]


def _cheapest_effort(recalls: Sequence[float], target: float) -> int:
    """The least effort whose recall reaches `target`; the greatest where none does."""
    for effort, recall in enumerate(recalls):
        if recall >= target:
            return effort
    return len(recalls) - 1


def _write_failures(directory: str, failures: Sequence[Failure]) -> WrittenFile:
    rows = sorted(failures, key=lambda failure: (failure.uri, failure.stage))
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
    return storage.write_described(
        directory, "failures/failures-00000-of-00001.jsonl", "".join(lines).encode()
    )


def _timings(
    plan: Plan, tally: Tally, basis: WrittenBasis, shards: Sequence[ShardSummary]
) -> dict[str, float]:
    """Seconds by stage, one after the other; `engine` is the part of `embed` that the backbone ran."""
    embed_started, embed_finished = tally.span or (tally.diffed, tally.diffed)
    indexed = max(shard.finished for shard in shards)
    now = time.time()
    seconds = {
        "prepare": plan.prepared - plan.started,
        "list": embed_started - plan.prepared,
        "embed": embed_finished - embed_started,
        "engine": tally.engine_seconds,
        "pca": basis.finished - embed_finished,
        "index": indexed - basis.finished,
        "publish": now - indexed,
        "total": now - plan.started,
    }
    return {stage: round(value, 3) for stage, value in seconds.items()}
