"""Writes the tables of docs/scaling.md, which `imgindex.job.costs` predicts, into that page."""

import re
from collections.abc import Iterable
from pathlib import Path

from imgindex.job import costs
from imgindex.job.costs import EMBED_SECONDS, Workload
from imgindex.text import human_bytes

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
SIZES = (10**6, 10**8, 10**10)
CORES = 16  # of a worker
CORES_AT = {10**6: 16, 10**8: 1_600, 10**10: 160_000}  # of all workers

# Seconds that builds took on two cores: the backbone, images, those that were embedded, the clock's.
BUILDS = (
    ("MobileNetV2", "float32", 1280, 600, 600, 9.1),
    ("MobileNetV2", "float32", 1280, 2_400, 2_400, 19.1),
    ("MobileNetV2", "float32", 1280, 9_600, 9_600, 55.5),
    ("MobileNetV2", "float32", 1280, 9_600, 96, 9.2),
    ("ResNet50", "bfloat16", 2048, 2_400, 2_400, 26.7),
)
# Seconds of the index half alone, of 2048 dimensions, on two cores, and when.
INDEX_HALVES = (
    (10_000, 4.9, "2026-11-26"),
    (100_000, 20.9, "2026-11-26"),
    (1_000_000, 365.8, "2026-11-22"),
)
# Of the start of a build, what making and starting the graph takes.
GRAPH_SECONDS = 2.0


def first_build(images: int, backbone: str = "ResNet50", precision: str = "bfloat16") -> Workload:
    """A build of all images."""
    feature_dim = 1280 if backbone == "MobileNetV2" else 2048
    return Workload(images, images, EMBED_SECONDS[backbone, precision], feature_dim=feature_dim)


def refresh(images: int) -> Workload:
    """A build after 1 % of the images are new, on the basis that is there."""
    return Workload(images, images // 100, EMBED_SECONDS["ResNet50", "bfloat16"], fitted=False)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def power(images: int) -> str:
    """A size as the page has it."""
    return f"10^{len(str(images)) - 1}"


def duration(seconds: float) -> str:
    """Seconds, hours or days, to two or three digits."""
    if seconds < 600:
        return f"{seconds:.3g} s"
    return f"{seconds / 3600:.2g} h" if seconds < 360_000 else f"{seconds / 86_400:.3g} days"


def rounded(value: float) -> str:
    """A number of two digits, or of more where it has them before the point."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def hours(work: Workload) -> float:
    """Hours of a worker of `CORES`."""
    return sum(costs.core_seconds(work).values()) / 3600 / CORES


def measured() -> str:
    """What builds took, beside what is predicted."""
    rows = []
    for backbone, precision, dim, images, new, taken in BUILDS:
        work = Workload(
            images,
            new,
            EMBED_SECONDS[backbone, precision],
            feature_dim=dim,
            uri_bytes=26,
            fitted=images == new,
        )
        expected = sum(costs.elapsed_seconds(work, 2, in_process=True).values())
        what = f"{images:,} photos, {new:,} of them new, {backbone} in {precision}"
        rows.append((what, f"{expected:.1f} s", f"{taken} s", f"{expected / taken:.2f}"))
    for images, taken, when in INDEX_HALVES:
        stages = costs.elapsed_seconds(Workload(images, images, 0.0), 2, in_process=True)
        expected = GRAPH_SECONDS + sum(
            stages[stage] for stage in ("read", "moments", "fit", "project", "shards")
        )
        what = f"index half of {images:,} features ({when})"
        rows.append((what, f"{expected:.1f} s", f"{taken} s", f"{expected / taken:.2f}"))
    return table(("", "predicted", "measured", "ratio"), rows)


def stages() -> str:
    """Core-hours by stage."""
    rows = []
    for stage in costs.core_seconds(first_build(SIZES[0])):
        seconds = [costs.core_seconds(first_build(images))[stage] for images in SIZES]
        again = [costs.core_seconds(refresh(images))[stage] for images in SIZES]
        rows.append((stage, *(rounded(second / 3600) for second in (*seconds, *again))))
    head = [f"first, {power(images)}" for images in SIZES] + [f"1 % new, {power(images)}" for images in SIZES]
    return table(("core-hours", *head), rows)


def workers() -> str:
    """Hours of workers of 16 cores, of a first build."""
    rows = []
    for backbone, precision in EMBED_SECONDS:
        works = [first_build(images, backbone, precision) for images in SIZES]
        rows.append((f"{backbone}, {precision}", *(rounded(hours(work)) for work in works)))
    rows.append(("refresh, 1 % new", *(rounded(hours(refresh(images))) for images in SIZES)))
    return table((f"hours of {CORES} cores", *map(power, SIZES)), rows)


def sizes() -> str:
    """Bytes, shards and time by size."""
    works = [first_build(images) for images in SIZES]
    again = [refresh(images) for images in SIZES]
    stored = [costs.stored_bytes(work) for work in works]
    needed = [costs.worker_bytes(work) for work in again]
    rows: list[tuple[str, ...]] = [
        (kind, *(human_bytes(each[kind]) for each in stored)) for kind in stored[0]
    ]
    rows += [
        ("chunks of the store", *(f"{images // 512:,}" for images in SIZES)),
        ("shuffled, first build", *(human_bytes(costs.shuffled_bytes(work)) for work in works)),
        ("shuffled, refresh", *(human_bytes(costs.shuffled_bytes(work)) for work in again)),
        ("shards", *(f"{work.shards:,}" for work in works)),
        ("nodes a query inspects, search_k 400", *(f"{costs.nodes_asked(work, 400):,}" for work in works)),
        ("memory of a worker: a join", *(human_bytes(each["join"]) for each in needed)),
        ("memory of a worker: a shard", *(human_bytes(each["shard"]) for each in needed)),
        ("the same, on disk", *(human_bytes(each["shard on disk"]) for each in needed)),
        ("memory in one process", *(human_bytes(costs.in_process_bytes(work)) for work in works)),
        ("cores of the cluster", *(f"{CORES_AT[images]:,}" for images in SIZES)),
        *(
            (f"time there, {what}",
             *(duration(sum(costs.elapsed_seconds(work, CORES_AT[work.images]).values())) for work in group))
            for what, group in (("first build", works), ("refresh", again))
        ),
        *(
            (f"of it {stage} on one core",
             *(duration(costs.elapsed_seconds(work, CORES_AT[work.images])[stage]) for work in works))
            for stage in ("list", "fit")
        ),
    ]  # fmt: skip
    return table(("", *map(power, SIZES)), rows)


def filled(text: str) -> str:
    """The page with its tables as they are predicted now."""
    for make in (measured, stages, workers, sizes):
        block = rf"(<!-- {make.__name__} -->\n).*?(<!-- end -->)"
        parts = re.split(block, text, flags=re.S)
        if len(parts) != 4:
            raise ValueError(f"{len(parts) // 3} places for the table {make.__name__}")
        before, opening, closing, after = parts
        text = f"{before}{opening}{make()}\n{closing}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
