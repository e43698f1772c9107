"""The last step of a build: check the finished generation, write its manifest, make it the live one."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from imgindex.errors import DamagedError, ImgindexError, InputError, PublishRefusedError, SupersededError
from imgindex.generations.counters import Counters
from imgindex.generations.failure_lists import FailureList
from imgindex.generations.layout import (
    DETACHED,
    OUTCOME,
    current_name,
    generation_names,
    publish,
    read_manifest,
)
from imgindex.generations.manifest import Ledger, Manifest
from imgindex.indexing import vector_files
from imgindex.indexing.shards import ShardSummary
from imgindex.io import filesystem
from imgindex.job.checks import path_of, reasons, refusal
from imgindex.job.description import (
    Finished,
    WrittenBasis,
    digest_of_failures,
    ledger_of,
    manifest_of,
    search_recalls,
    timings,
    tune,
)
from imgindex.job.plan import Plan
from imgindex.job.report import report
from imgindex.models.drift import Verdict


def nothing_changed(plan: Plan, counters: Counters) -> bool:
    """Whether the index of the live generation is what this build would write again."""
    previous, counts = plan.previous, counters.counts
    if previous is None or not previous.same_recipe:
        return False
    changed = sum(counts.get(kind, 0) for kind in ("added", "changed", "removed"))
    return changed == 0 and digest_of_failures(counters) == previous.failures


def finish(
    plan: Plan,
    counters: Counters,
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
    if nothing_changed(plan, counters):
        ledger = ledger_of(counters, failures, counters.counts.get("unchanged", 0))
        _write_outcome(plan, {"unchanged": asdict(ledger)})
        return
    shards = sorted(shards, key=lambda shard: shard.index.path)
    failures = sorted(failures, key=lambda listed: listed.file.path)
    ledger = ledger_of(counters, failures, sum(shard.items for shard in shards))
    if not shards:
        message = (
            f"none of the {ledger.listed} images in {plan.input} could be indexed "
            f"({reasons(ledger)}); see {path_of(plan, failures)}"
        )
        _write_outcome(plan, {"error": InputError.__name__, "message": message})
        return
    tuned = tune(shards, plan.config.index.target_recall)
    finished = Finished(plan, ledger, shards, bases[0], failures, tuned, counters, verdicts[0])
    refused = refusal(finished)
    if refused is not None:
        _write_outcome(plan, {"error": PublishRefusedError.__name__, "message": refused})
        return
    manifest = manifest_of(finished)
    reported = report(plan, manifest, search_recalls(shards))
    if reported.file is not None:
        files = sorted([*manifest.files, reported.file], key=lambda file: file.path)
        manifest = replace(manifest, files=tuple(files), report=reported.file.path)
    manifest = replace(
        manifest,
        precision=reported.precision,
        warnings=reported.warnings,
        timings=timings(plan, counters, bases[0], shards),
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
    for folder in ("index", "metadata", "pca", "report", DETACHED):
        filesystem.delete_tree(filesystem.join(plan.directory, folder))
    kinds: dict[str, type[ImgindexError]] = {
        kind.__name__: kind for kind in (PublishRefusedError, InputError, SupersededError)
    }
    raise kinds[content["error"]](content["message"])
