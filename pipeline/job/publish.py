"""The last step of a build: check the finished generation, write its manifest, make it the live one."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from imgindex.errors import DamagedError, ImgindexError, InputError, PublishRefusedError, SupersededError
from imgindex.features.known_failures import is_environmental
from imgindex.generations.layout import (
    DETACHED,
    OUTCOME,
    current_name,
    generation_names,
    library_versions,
    publish,
    read_manifest,
)
from imgindex.generations.manifest import (
    Ledger,
    Manifest,
    MeasuredRecall,
    RecordedEngine,
    RecordedPca,
    RecordedSpec,
    Shard,
)
from imgindex.generations.tally import Tally
from imgindex.indexing import vector_files
from imgindex.inputs.listing import input_root
from imgindex.inputs.skipped import most_frequent
from imgindex.io import filesystem
from imgindex.job.checks import Finished, path_of, reasons, refusal
from imgindex.job.plan import Plan
from imgindex.models.annoy_index import EFFORTS, RECALL_K, cheapest_effort
from imgindex.models.drift import Verdict
from imgindex.records import FailureList, ShardSummary, WrittenBasis


def nothing_changed(plan: Plan, tally: Tally) -> bool:
    """Whether the index of the live generation is what this build would write again."""
    previous, counts = plan.previous, tally.counts
    if previous is None or not previous.same_recipe:
        return False
    changed = sum(counts.get(kind, 0) for kind in ("added", "changed", "removed"))
    return changed == 0 and digest_of_failures(tally) == previous.failures


def digest_of_failures(tally: Tally) -> str:
    """A digest of which images have failed and why, in whatever order they were counted."""
    return f"{tally.failures % 2**128:032x}"


def finish(
    plan: Plan,
    tally: Tally,
    failures: Sequence[FailureList],
    bases: Sequence[WrittenBasis],
    verdicts: Sequence[Verdict],
    shards: Sequence[ShardSummary],
) -> None:
    """Publishes the generation, or records why not; `outcome` tells.

    A runner that retries may run it again.

    Raises:
      OutputError: a file cannot be written.
      SupersededError: another writer has published since an earlier attempt.
    """
    if current_name(plan.output) == plan.generation:
        return
    filesystem.delete_tree(vector_files.directory(plan.directory))
    if nothing_changed(plan, tally):
        ledger = _ledger(tally, failures, tally.counts.get("unchanged", 0))
        _write_outcome(plan, {"unchanged": asdict(ledger)})
        return
    shards = sorted(shards, key=lambda shard: shard.index.path)
    failures = sorted(failures, key=lambda listed: listed.file.path)
    ledger = _ledger(tally, failures, sum(shard.items for shard in shards))
    if not shards:
        message = (
            f"none of the {ledger.listed} images in {plan.input} could be indexed "
            f"({reasons(ledger)}); see {path_of(plan, failures)}"
        )
        _write_outcome(plan, {"error": InputError.__name__, "message": message})
        return
    basis, verdict = bases[0], verdicts[0]
    recalls = _mean_recalls(shards)
    effort = cheapest_effort(recalls, plan.config.index.target_recall)
    finished = Finished(plan, ledger, shards, basis, failures, recalls[effort])
    refused = refusal(finished)
    if refused is not None:
        _write_outcome(plan, {"error": PublishRefusedError.__name__, "message": refused})
        return
    written = [basis.file, *(listed.file for listed in failures)]
    written += [file for shard in shards for file in (shard.index, shard.metadata)]
    previous = plan.previous
    if verdict.refit or previous is None:
        fitted_in, fitted_images = plan.generation, ledger.indexed
    else:
        fitted_in, fitted_images = previous.fitted_in, previous.fitted_images
    manifest = Manifest(
        generation=plan.generation,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        previous=previous.name if previous else None,
        spec=RecordedSpec(digest=plan.spec.digest, **asdict(plan.spec)),
        engine=RecordedEngine(
            plan.engine.engine, plan.engine.precision, plan.engine.batch_size, plan.engine.cosine
        ),
        input_root=input_root(plan.input),
        config=asdict(plan.config),
        forced=tuple(sorted(plan.force)),
        ledger=ledger,
        feature_dim=basis.feature_dim,
        dims=basis.dims,
        explained_variance_ratio=basis.explained_variance_ratio,
        pca=RecordedPca(
            **asdict(verdict),
            fitted_in=fitted_in,
            fitted_images=fitted_images,
            cut=basis.cut,
            scale_ratio=basis.scale_ratio,
        ),
        metric=plan.config.index.metric,
        search_k=EFFORTS[effort],
        recall=MeasuredRecall(
            RECALL_K,
            recalls[effort],
            queries=sum(shard.queries for shard in shards),
            distinct=sum(shard.distinct for shard in shards),
        ),
        shards=tuple(
            Shard(shard.index.path, shard.metadata.path, shard.items, shard.trees) for shard in shards
        ),
        basis=basis.file.path,
        failures=tuple(listed.file.path for listed in failures),
        failures_digest=digest_of_failures(tally),
        files=tuple(sorted(written, key=lambda file: file.path)),
        libraries=library_versions(),
        timings=_timings(plan, tally, basis, shards),
    )
    try:
        publish(plan.output, manifest, partial(_check_unsuperseded, plan))
    except PublishRefusedError as error:
        _write_outcome(plan, {"error": PublishRefusedError.__name__, "message": str(error)})
    except SupersededError as error:
        # The answer to a write of CURRENT, or of an earlier attempt, may be lost: then another build may have
        # followed it.
        if _was_followed(plan):
            raise
        if filesystem.exists(plan.output.manifest(plan.generation)):
            filesystem.delete(plan.output.manifest(plan.generation))
        _write_outcome(plan, {"error": SupersededError.__name__, "message": str(error)})


def _was_followed(plan: Plan) -> bool:
    """Whether a build has published a generation that follows this one, which was live then."""
    for name in generation_names(plan.output):
        try:
            if read_manifest(plan.output, name).previous == plan.generation:
                return True
        except DamagedError:
            return True  # it may be the one
    return False


def _check_unsuperseded(plan: Plan) -> None:
    """Raises SupersededError where another writer has the output, or has published since `plan` was made."""
    if plan.claim is not None:
        plan.claim.check()
    live, before = current_name(plan.output), plan.previous.name if plan.previous else None
    if live != before:
        raise SupersededError(
            f"{live or 'nothing'} is live in {plan.output.root} where {before or 'nothing'} was when this "
            "build began; it publishes nothing, and what it embedded is kept; build again"
        )


def _write_outcome(plan: Plan, content: dict[str, Any]) -> None:
    filesystem.write_bytes(filesystem.join(plan.directory, OUTCOME), json.dumps(content).encode())


def is_finished(plan: Plan) -> bool:
    """Whether `finish` has published the generation, or recorded why not."""
    return filesystem.exists(plan.output.manifest(plan.generation)) or filesystem.exists(
        filesystem.join(plan.directory, OUTCOME)
    )


@dataclass(frozen=True)
class Outcome:
    """What a build came to."""

    live: Manifest  # of the generation that is live now
    counted: Ledger  # of this build
    published: bool  # False: nothing had changed
    replaced: tuple[str, ...] = ()  # the files of the generation before that were damaged

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the generation that is live now, as it stands in ``manifest.json``."""
        return dict(self.live.content)

    @property
    def ledger(self) -> dict[str, Any]:
        """The ledger of this build."""
        return asdict(self.counted)


def outcome(plan: Plan) -> Outcome:
    """What a finished pipeline came to.

    Raises:
      PublishRefusedError, InputError: `finish` refused, with its reason.
    """
    unchanged = conclude(plan)
    if unchanged is None:
        manifest = read_manifest(plan.output, plan.generation)
        replaced = plan.previous.damaged if plan.previous else ()
        return Outcome(manifest, manifest.ledger, True, replaced)
    return Outcome(read_manifest(plan.output), unchanged, False)


def conclude(plan: Plan) -> Ledger | None:
    """Deletes what `finish` left that nobody can use. Gives the ledger where nothing had changed, else None.

    Raises what `outcome` does. A runner that retries may run it again.
    """
    path = filesystem.join(plan.directory, OUTCOME)
    if not filesystem.exists(path):
        return None
    content: dict[str, Any] = json.loads(filesystem.read_bytes(path))
    if "unchanged" in content:
        filesystem.delete_tree(plan.directory)
        return Ledger(**content["unchanged"])
    # What nobody can use goes; the list of failures, which the message names, stays.
    for folder in ("index", "metadata", "pca", DETACHED):
        filesystem.delete_tree(filesystem.join(plan.directory, folder))
    kinds: dict[str, type[ImgindexError]] = {
        kind.__name__: kind for kind in (PublishRefusedError, InputError, SupersededError)
    }
    raise kinds[content["error"]](content["message"])


def _ledger(tally: Tally, failures: Sequence[FailureList], indexed: int) -> Ledger:
    counts = tally.counts
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
        skipped=most_frequent(tally.skipped),
    )


def _mean_recalls(shards: Sequence[ShardSummary]) -> list[float]:
    """Recall over all shards, weighted by their distinct images, at each effort."""
    distinct = sum(shard.distinct for shard in shards)
    return [
        sum(shard.recalls[effort] * shard.distinct for shard in shards) / distinct
        for effort in range(len(EFFORTS))
    ]


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
