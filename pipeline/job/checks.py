"""The checks that a finished generation must pass before it goes live."""

import math
from collections.abc import Callable, Sequence

from imgindex.generations.failure_lists import FailureList
from imgindex.generations.manifest import Ledger
from imgindex.inputs.skipped import EXCLUDED_FILES, EXCLUDED_FOLDERS, HIDDEN_FILES, HIDDEN_FOLDERS, described
from imgindex.io import filesystem, written_files
from imgindex.job.description import Finished, manifest_of
from imgindex.job.plan import Plan
from imgindex.job.precision_check import precision_change
from imgindex.models.ann.recall import RECALL_K
from imgindex.text import counted, printable


def path_of(plan: Plan, failures: Sequence[FailureList]) -> str:
    """The file that lists the failures, or the folder of several."""
    path = failures[0].file.path if len(failures) == 1 else "failures"
    return filesystem.join(plan.directory, path)


def refusal(finished: Finished) -> str | None:
    """The first refusal, naming its check and the figures; None where all checks pass or are forced."""
    for name, check in CHECKS.items():
        if name in finished.plan.force:
            continue
        message = check(finished)
        if message is not None:
            return f"check {name}: {message}"
    return None


def reasons(ledger: Ledger) -> str:
    """The failures by reason, for a message."""
    return ", ".join(f"{reason} {count}" for reason, count in ledger.failed_by_reason.items())


def _ledger(finished: Finished) -> str | None:
    ledger = finished.ledger
    if ledger.listed == ledger.indexed + ledger.failed:
        return None
    return (
        f"{ledger.listed} listed, but {ledger.indexed} indexed and {ledger.failed} failed; this is a bug, "
        "please report it"
    )


def _files(finished: Finished) -> str | None:
    problems = [problem for shard in finished.shards for problem in shard.problems]
    problems += [problem for listed in finished.failures for problem in listed.problems]
    fault = written_files.fault_of(finished.plan.directory, finished.basis.file)
    problems += [] if fault is None else [fault]
    if not problems:
        return None
    return f"{'; '.join(problems[:3])} ({len(problems)} in all); build again, for these files are deleted"


def _max_failure_rate(finished: Finished) -> str | None:
    limit = finished.plan.config.publish.max_failure_rate
    listed, failed = finished.ledger.listed, finished.ledger.failed
    failures = path_of(finished.plan, finished.failures)
    # Ratios, for 0.29 * 100 is less than 29: what is just at a limit is within it.
    if failed / listed <= limit:
        return None
    enough = -(-100 * failed // listed) / 100
    return (
        f"{failed} of {listed} images failed ({reasons(finished.ledger)}), more than "
        f"publish.max_failure_rate={limit} allows; mend or remove those in {failures}, or "
        f"go on with --set publish.max_failure_rate={enough} or --force max_failure_rate"
    )


def _max_shrink(finished: Finished) -> str | None:
    limit, previous = finished.plan.config.publish.max_shrink, finished.plan.previous
    indexed = finished.ledger.indexed
    before = previous.indexed if previous else 0
    if not before or (before - indexed) / before <= limit:
        return None
    return (
        f"{indexed} images where the live generation has {before}, fewer than publish.max_shrink={limit} "
        f"allows; is all of {finished.plan.input} there? If so, go on with --set publish.max_shrink="
        f"{-(-100 * (before - indexed) // before) / 100} or --force max_shrink{_left_out(finished)}"
    )


def _left_out(finished: Finished) -> str:
    """What patterns leave out, for a message: they may be new."""
    kinds = (HIDDEN_FILES, HIDDEN_FOLDERS, EXCLUDED_FILES, EXCLUDED_FOLDERS)
    counts = {kind: count for kind, count in finished.ledger.skipped.items() if kind in kinds}
    if not counts:
        return ""
    return f". This build left out {described(counts)}, as images.include and images.exclude say"


def _min_recall(finished: Finished) -> str | None:
    limit, recall = finished.plan.config.publish.min_recall, finished.tuned.recall
    if recall >= limit:
        return None
    target = finished.plan.config.index.target_recall
    enough = math.floor(100 * recall) / 100
    advice = f"index.target_recall to {limit}" if recall >= target else "index.trees"
    return (
        f"recall@{RECALL_K} is {recall:.3f}, less than publish.min_recall={limit}; raise {advice}, "
        f"or go on with --set publish.min_recall={enough} or --force min_recall"
    )


def _max_precision_drop(finished: Finished) -> str | None:
    limit, previous = finished.plan.config.publish.max_precision_drop, finished.plan.previous
    if limit is None or previous is None:
        return None
    change = precision_change(finished.plan.output, previous.name, manifest_of(finished))
    if change is None or change.fall <= limit or change.interval[1] >= 0:
        return None
    low, high = (abs(end) for end in reversed(change.interval))
    worst = ", ".join(
        f"{printable(each.label)} ({each.before:.3f} to {each.after:.3f}, "
        f"{counted(each.queries, 'query', 'queries')})"
        for each in change.worst
    )
    enough = math.ceil(100 * change.fall) / 100
    return (
        f"P@{change.k} by label is {change.after:.4f} where the live generation has {change.before:.4f}, by "
        f"{change.queries} images that both have; it falls by {change.fall:.4f} (95 % interval {low:.4f} to "
        f"{high:.4f}), more than publish.max_precision_drop={limit} allows, and most for {worst}; has the "
        "backbone, pca or what is in these folders changed? If it was meant to, go on with --set "
        f"publish.max_precision_drop={enough} or --force max_precision_drop"
    )


# By the names that `--force` takes, in the order in which they refuse.
CHECKS: dict[str, Callable[[Finished], str | None]] = {
    "ledger": _ledger,
    "files": _files,
    "max_failure_rate": _max_failure_rate,
    "max_shrink": _max_shrink,
    "min_recall": _min_recall,
    "max_precision_drop": _max_precision_drop,
}
