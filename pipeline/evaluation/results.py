"""What an evaluation found, as it stands in its JSON."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from imgindex.io.asked_files import JSON_GENERATOR


def _about(text: str) -> Any:
    return Field(description=text)


Interval = tuple[float, float]


@dataclass(frozen=True)
class Mean:
    """A mean over queries; all values are from 0 to 1."""

    micro: Annotated[float, _about("The mean of all queries.")]
    macro: Annotated[float, _about("The mean of the labels' own means.")]
    interval: Annotated[
        Interval,
        _about("The 95 % interval of `micro`: by bootstrap, or Wilson's where all queries have one value."),
    ]
    best: Annotated[float, _about("The most that any search could reach with these labels and this k.")]


@dataclass(frozen=True)
class Confusion:
    """A label that neighbors of another label's images have."""

    label: Annotated[str, _about("The label of these neighbors.")]
    share: Annotated[float, _about("Their share of all neighbors at the first k ranks.")]


@dataclass(frozen=True)
class LabelQuality:
    """How well the images of one label find each other."""

    label: Annotated[str, _about("The name of the folder that the images lie in.")]
    images: Annotated[int, _about("How many images have it.")]
    queries: Annotated[int, _about("How many of them were queries.")]
    p_at_k: Annotated[float, _about("The mean of P@k over these queries.")]
    map_at_r: Annotated[float, _about("The mean of mAP@R over these queries.")]
    recall_at_k: Annotated[float, _about("The mean of recall@k over these queries.")]
    precision_at_1: Annotated[float, _about("The share of these queries whose nearest has the label.")]
    confused_with: Annotated[
        tuple[Confusion, ...], _about("Labels that wrong neighbors have, the most frequent first.")
    ]


@dataclass(frozen=True)
class Quality:
    """How well images of a label find each other, by exact search in the vectors of the index."""

    k: Annotated[int, _about("How many ranks P@k and recall@k look at.")]
    queries: Annotated[
        int, _about("How many queries the means rest on: sampled images whose label has another image.")
    ]
    labels: Annotated[int, _about("How many labels have at least two distinct images.")]
    single_image_labels: Annotated[
        int, _about("How many labels have one distinct image, which has nothing to find and is no query.")
    ]
    images_without_label: Annotated[int, _about("How many images lie in no folder below the input.")]
    median_others: Annotated[
        float, _about("The median, over the queries, of how many other images have the query's label.")
    ]
    p_at_k: Annotated[Mean, _about("The share of the k nearest neighbors that have the query's label.")]
    map_at_r: Annotated[
        Mean, _about("Mean average precision at R, the number of other images of the query's label.")
    ]
    recall_at_k: Annotated[
        Mean, _about("The share of the label's other images that are among the k nearest neighbors.")
    ]
    precision_at_1: Annotated[Mean, _about("P@k of the nearest neighbor alone.")]
    per_label: Annotated[tuple[LabelQuality, ...], _about("The same, label by label.")]


@dataclass(frozen=True)
class Rung:
    """One way to search, with its accuracy and its price."""

    method: Annotated[str, _about("Exact search or Annoy, and what is searched.")]
    dims: Annotated[int, _about("How many numbers each image has there.")]
    p_at_k: Annotated[float | None, _about("The mean of P@k; null without labels.")] = None
    recall_at_10: Annotated[
        float | None, _about("The share of the ten nearest images by features that the method finds.")
    ] = None
    ms_per_query: Annotated[
        float | None, _about("Milliseconds of a single query on one thread: the median.")
    ] = None
    ms_p95: Annotated[float | None, _about("The 95th percentile of the same.")] = None
    ms_p99: Annotated[float | None, _about("The 99th percentile of the same.")] = None
    queries_per_second: Annotated[
        float | None, _about("Queries a second, one after the other, on one thread.")
    ] = None
    build_seconds: Annotated[float | None, _about("Seconds that it takes to make what is searched.")] = None
    bytes: Annotated[int | None, _about("The size of what is searched: vectors, or Annoy's files.")] = None
    note: Annotated[str, _about("Why figures are missing, or rest on few of the queries.")] = ""


@dataclass(frozen=True)
class SweepPoint:
    """Exact search in vectors of other dimensions, or whitened to another degree."""

    dims: Annotated[int, _about("The number of PCA dimensions, `pca.dims`.")]
    whiten: Annotated[float, _about("The exponent of whitening, `pca.whiten`.")]
    p_at_k: Annotated[float | None, _about("The mean of P@k; null without labels.")]
    recall_at_10: Annotated[float, _about("The share of the ten nearest images by features that are found.")]
    explained_variance: Annotated[float, _about("The share of the features' variance that remains.")]
    ms_per_query: Annotated[float, _about("Milliseconds of a single query on one thread: the median.")]
    bytes: Annotated[int, _about("The size of the vectors alone, without Annoy's trees.")]


@dataclass(frozen=True)
class UnseenRecall:
    """The recall of Annoy against exact search in the same vectors, for images that are not in the index."""

    queries: Annotated[int, _about("How many images were held out and asked for.")]
    recall: Annotated[float, _about("The share of their ten nearest vectors that Annoy finds.")]
    interval: Annotated[Interval, _about("The 95 % interval of it.")]
    seen: Annotated[float, _about("The same for images that are in the index, as its manifest has it.")]
    seen_queries: Annotated[int | None, _about("How many images that rests on; null in older manifests.")]
    build_seconds: Annotated[float, _about("Seconds to build the index without the images held out.")]


@dataclass(frozen=True)
class Candidate:
    """An index of one library, searched in one way: how much it finds, and what it takes, on one thread."""

    family: Annotated[str, _about("The name that `--compare` takes.")]
    library: Annotated[str, _about("The library that it is from.")]
    build: Annotated[dict[str, int | str], _about("Settings of the build, in the library's own words.")]
    search: Annotated[dict[str, int], _about("Settings of the search, in the library's own words.")]
    queries: Annotated[int | None, _about("How many queries the figures rest on.")] = None
    recall_at_10: Annotated[
        float | None, _about("The share of the ten nearest vectors, by exact search, that are found.")
    ] = None
    ms_per_query: Annotated[float | None, _about("Milliseconds of a single query: the median.")] = None
    ms_p95: Annotated[float | None, _about("The 95th percentile of the same.")] = None
    ms_p99: Annotated[float | None, _about("The 99th percentile of the same.")] = None
    queries_per_second: Annotated[float | None, _about("Queries a second, one after the other.")] = None
    build_seconds: Annotated[float | None, _about("Seconds to build the index.")] = None
    peak_memory: Annotated[
        int | None, _about("The most bytes of memory of the process that builds and searches.")
    ] = None
    bytes: Annotated[int | None, _about("The size of the index's file.")] = None
    pareto: Annotated[
        bool, _about("No other candidate has as much recall and is as quick, and is better in one of them.")
    ] = False
    note: Annotated[str, _about("Why figures are missing.")] = ""


@dataclass(frozen=True)
class MeasureRow:
    """Exact search among some images by one similarity measure."""

    measure: Annotated[str, _about("l1, l2, mse, cosine or ncc.")]
    on: Annotated[str, _about("What is compared: pixels, features or vectors.")]
    images: Annotated[int, _about("How many images were compared with each other.")]
    queries: Annotated[int, _about("How many of them have a label that another one has.")]
    p_at_k: Annotated[float | None, _about("The mean of P@k; null without labels.")]
    ms_per_query: Annotated[float | None, _about("Milliseconds of a single query: the median.")]
    note: Annotated[str, _about("Why figures are missing.")] = ""


@dataclass(frozen=True)
class PresetRow:
    """Exact search in the features of a sample, embedded with the settings of a preset."""

    preset: Annotated[str, _about("The name that `--config` takes; now: the index's own settings.")]
    pooling: Annotated[str, _about("`backbone.pooling`.")]
    resize: Annotated[str, _about("`backbone.resize`.")]
    image_size: Annotated[
        tuple[int, int] | None, _about("Height and width of the images; null: the backbone's own.")
    ]
    mirror: Annotated[bool, _about("`backbone.mirror`.")]
    images: Annotated[int, _about("How many images were embedded and compared with each other.")]
    queries: Annotated[int, _about("How many of them have a label that another one has.")] = 0
    p_at_k: Annotated[float | None, _about("The mean of P@k in the sample.")] = None
    interval: Annotated[Interval | None, _about("The 95 % interval of it.")] = None
    gain: Annotated[float | None, _about("The mean of P@k less that of the index's own settings.")] = None
    gain_interval: Annotated[Interval | None, _about("The 95 % interval of the gain, by bootstrap.")] = None
    images_per_second: Annotated[
        float | None, _about("Images that this machine read, decoded and embedded in a second.")
    ] = None
    note: Annotated[str, _about("Why figures are missing.")] = ""


@dataclass(frozen=True)
class Advice:
    """A setting that would be better, with what it gains and costs."""

    setting: Annotated[str, _about("The key of the config, such as pca.dims; backbone for a preset.")]
    value: Annotated[str, _about("The value, or the name of the preset, that is advised.")]
    text: Annotated[str, _about("The line to change, with the measured gain and cost.")]
    command: Annotated[str, _about("The command that applies it.")]


@dataclass(frozen=True)
class Evaluation:
    """Everything that `imgindex evaluate` found out about a generation."""

    output: Annotated[str, _about("The index's directory.")]
    generation: Annotated[str, _about("The generation that was evaluated.")]
    images: Annotated[int, _about("How many images it holds.")]
    distinct: Annotated[int, _about("How many of them are no copies of each other.")]
    queries: Annotated[int, _about("How many images were queries.")]
    seed: Annotated[int, _about("The seed of the samples.")]
    k: Annotated[int, _about("How many ranks P@k and recall@k look at.")]
    metric: Annotated[str, _about("The index's metric: angular or euclidean.")]
    dims: Annotated[int, _about("The dimensions of the index's vectors.")]
    whiten: Annotated[float, _about("The exponent of the index's whitening.")]
    feature_dim: Annotated[int, _about("The dimensions of the backbone's features.")]
    quality: Annotated[Quality | None, _about("Quality by label; null where no two images share a label.")]
    ladder: Annotated[tuple[Rung, ...], _about("Ways to search; empty for fewer than two distinct images.")]
    sweep: Annotated[
        tuple[SweepPoint, ...], _about("Other PCA settings; empty for fewer than two distinct images.")
    ]
    unseen_recall: Annotated[
        UnseenRecall | None,
        _about("Recall for images that are not in the index; null for fewer than three distinct images."),
    ]
    notes: Annotated[tuple[str, ...], _about("What to know before relying on the figures.")]
    advice: Annotated[tuple[Advice, ...], _about("Settings that would be better.")]
    no_advice: Annotated[
        str, _about("Why no PCA setting is advised, where the figures do not allow to; else empty.")
    ]
    compare: Annotated[tuple[Candidate, ...], _about("Indexes of other libraries, if asked for.")] = ()
    measures: Annotated[tuple[MeasureRow, ...], _about("Similarity measures, if asked for.")] = ()
    presets: Annotated[
        tuple[PresetRow, ...], _about("Other settings of the features, if asked for, the index's own first.")
    ] = ()


def as_json(found: Evaluation) -> dict[str, Any]:
    """What an evaluation's JSON file holds."""
    return JSON_GENERATOR | asdict(found)
