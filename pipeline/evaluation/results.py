"""What an evaluation found, as it stands in its JSON."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """A mean over queries."""

    micro: float  # over all queries
    macro: float  # over the labels' own means
    interval: tuple[float, float]  # of the micro mean, 95 %, by bootstrap


@dataclass(frozen=True)
class Confusion:
    """A label that the neighbors of another label's images have."""

    label: str
    share: float  # of all the neighbors at the first k ranks


@dataclass(frozen=True)
class LabelQuality:
    """How well the images of one label find each other."""

    label: str
    images: int
    queries: int
    p_at_k: float
    map_at_r: float
    recall_at_k: float
    precision_at_1: float
    confused_with: tuple[Confusion, ...]  # the most frequent first


@dataclass(frozen=True)
class Quality:
    """How well images of a label find each other, by exact search in the vectors of the index."""

    k: int
    queries: int  # that the means rest on: sampled images whose label has another one
    labels: int  # with at least two distinct images
    single_image_labels: int  # whose one image has nothing to find; they are no queries
    images_without_label: int
    p_at_k: Mean
    map_at_r: Mean
    recall_at_k: Mean
    precision_at_1: Mean
    per_label: tuple[LabelQuality, ...]


@dataclass(frozen=True)
class Rung:
    """One way to search, with its accuracy and its price."""

    method: str
    dims: int
    p_at_k: float | None = None  # None without labels
    recall_at_10: float | None = None  # of the ten nearest by features
    ms_per_query: float | None = None  # the median of single queries on one thread
    ms_p95: float | None = None
    ms_p99: float | None = None
    queries_per_second: float | None = None  # one after the other, on one thread
    build_seconds: float | None = None
    bytes: int | None = None
    note: str = ""  # why figures are missing


@dataclass(frozen=True)
class SweepPoint:
    """Exact search in vectors of other dimensions, or whitened to another degree."""

    dims: int
    whiten: float
    p_at_k: float | None
    recall_at_10: float
    explained_variance: float
    ms_per_query: float
    bytes: int


@dataclass(frozen=True)
class UnseenRecall:
    """Recall@10 of Annoy for images that are not in the index, beside that of images that are."""

    queries: int
    recall: float
    interval: tuple[float, float]
    seen: float  # as the manifest has it
    seen_queries: int | None
    build_seconds: float  # of the index without them


@dataclass(frozen=True)
class Candidate:
    """An index of one library, searched in one way: how much it finds, and what it takes, on one thread."""

    family: str  # the name that `compare` takes
    library: str
    build: dict[str, int | str]  # settings, in the library's own words
    search: dict[str, int]
    queries: int | None = None  # that the figures rest on
    recall_at_10: float | None = None  # of the ten nearest by exact search in the same vectors
    ms_per_query: float | None = None  # the median of single queries
    ms_p95: float | None = None
    ms_p99: float | None = None
    queries_per_second: float | None = None  # one after the other
    build_seconds: float | None = None
    peak_memory: int | None = None  # bytes, of the process that builds and searches, with the vectors
    bytes: int | None = None  # of the index's file
    pareto: bool = False  # no other has as much recall and is as quick, and is better in one of them
    note: str = ""  # why figures are missing


@dataclass(frozen=True)
class MeasureRow:
    """Exact search among some images by one similarity measure."""

    measure: str  # l1, l2, mse, cosine or ncc
    on: str  # pixels, features or vectors
    images: int  # that were compared with each other
    queries: int  # those of them whose label another one has
    p_at_k: float | None  # None without labels
    ms_per_query: float | None  # the median of single queries
    note: str = ""  # why figures are missing


@dataclass(frozen=True)
class Advice:
    """A setting that would be better, with what it gains and costs."""

    setting: str
    value: str
    text: str


@dataclass(frozen=True)
class Evaluation:
    """Everything that `evaluate` found out about a generation."""

    output: str
    generation: str
    images: int
    distinct: int  # images that are no copies of each other
    queries: int  # sampled
    seed: int
    k: int
    metric: str
    dims: int
    whiten: float  # the exponent of the index's whitening
    feature_dim: int
    quality: Quality | None  # None where no two images share a label
    ladder: tuple[Rung, ...]
    sweep: tuple[SweepPoint, ...]
    unseen_recall: UnseenRecall | None  # None for fewer than three distinct images
    advice: tuple[Advice, ...]
    compare: tuple[Candidate, ...] = ()  # empty unless asked for
    measures: tuple[MeasureRow, ...] = ()  # empty unless they were asked for
