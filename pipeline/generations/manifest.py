"""The manifest: what a generation says of itself, and the limits that whoever reads one relies on."""

import functools
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    AfterValidator,
    FailFast,
    Field,
    GetCoreSchemaHandler,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema, core_schema

from imgindex.config.settings import OneOf
from imgindex.generations.manifest_values import (
    Count,
    Degree,
    Dims,
    EngineName,
    Level,
    Number,
    Path,
    Sha256,
    Switch,
    Text,
    about,
)
from imgindex.io.digest_json import seal, unseal
from imgindex.models.ann.protocol import Metric
from imgindex.models.engines.protocol import PRECISIONS
from imgindex.models.resizing import Resizing
from imgindex.records import WrittenFile

SCHEMA_VERSION = 1

# A hundred thousand shards make some 80 MiB.
MAX_BYTES = 1 << 28


def _with_total(timings: Mapping[str, float]) -> Mapping[str, float]:
    if "total" not in timings:
        raise ValueError("it has no total")
    return timings


@dataclass(frozen=True)
class Ledger:
    """What a build did with the images of its input; those listed are those indexed and those failed."""

    listed: Annotated[Count, about("Images that the input holds.")]
    indexed: Annotated[Count, about("Those that the index holds.")]
    failed: Annotated[Count, about("Those that could not be indexed.")]
    failed_by_reason: Annotated[Mapping[str, Count], about("How many failed, by stage/reason.")]
    added: Annotated[Count, about("Images that the generation before did not have.")]
    changed: Annotated[Count, about("Images whose bytes are others than in the generation before.")]
    removed: Annotated[Count, about("Images that only the generation before has.")]
    unchanged: Annotated[Count, about("Images that are as in the generation before.")]
    embedded: Annotated[Count, about("Images whose features were computed.")]
    copied: Annotated[Count, about("Images whose features are those of images of the same bytes.")]
    reused: Annotated[Count, about("Images whose features the store had.")]
    damaged_chunks: Annotated[Count, about("Damaged files of the store, which were dropped.")]
    environmental: Annotated[Count, about("Failures that may pass, which the next builds try again.")] = 0
    skipped: Annotated[Mapping[str, Count], about("Files that are no images of the input, by kind.")] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class RecordedSpec:
    """The spec of the features, as of `models.spec.Spec`; what has its default is not written."""

    digest: Annotated[Text, about("The digest of all else here.")]
    backbone: Annotated[
        Text,
        about(
            "A model of keras.applications, the class of a preset's, or a digest of a saved model's layers."
        ),
    ]
    weights_sha256: Annotated[Text, about("The digest of the weights.")]
    image_size: Annotated[tuple[Dims, Dims], about("Height and width that images are scaled to.")]
    pooling: Annotated[Text, about("How a feature map becomes one feature.")]
    preprocessing: Annotated[Text | None, about("The function that the model applies to pixels.")] = None
    decoding: Annotated[Text | None, about("How a file becomes pixels.")] = None
    layers_sha256: Annotated[Text | None, about("The digest of the layers.")] = None
    resize: Annotated[Text, about("How images of another shape are resized: stretch, pad or crop.")] = (
        "stretch"
    )
    interpolation: Annotated[Text, about("The filter of the resizing.")] = "bilinear"
    fill: Annotated[
        tuple[Level, Level, Level] | None, about("The color around a padded image: red, green and blue.")
    ] = None
    mirror: Annotated[Switch, about("Whether features are those of the mirror image, too.")] = False

    @property
    def resizing(self) -> Resizing:
        """What makes an image one of those that the features were computed of."""
        return Resizing(self.image_size, self.resize, self.interpolation, self.fill)


@dataclass(frozen=True)
class RecordedEngine:
    """What computed the features."""

    name: Annotated[EngineName, about("What executed the backbone, be it registered here or not.")]
    # None is `auto`.
    precision: Annotated[Text, OneOf(lambda: PRECISIONS[1:]), about("In which precision.")]
    batch_size: Annotated[Annotated[int, Strict(), Field(ge=1, le=4096)], about("How many images at once.")]
    cosine_with_float32: Annotated[
        Number | None, about("The least cosine of the first images with float32. null: not compared.")
    ] = None


@dataclass(frozen=True)
class RecordedPca:
    """How the basis came about; older builds did not write what is None."""

    refit: Annotated[Switch, about("Whether it was fitted in this build.")]
    why: Annotated[Text, about("Why it was, or was not.")]
    fitted_in: Annotated[Text, about("The generation that it was fitted in.")]
    fitted_images: Annotated[Count, about("How many images it was fitted to.")]
    new_images: Annotated[Count | None, about("Images that it was not fitted to.")] = None
    unexplained: Annotated[Number | None, about("The mean share of their variance that it leaves out.")] = (
        None
    )
    tolerated: Annotated[Number | None, about("The share from which a refresh fits a new basis.")] = None
    cut: Annotated[Count | None, about("Components that whitening left out.")] = None
    scale_ratio: Annotated[
        Number | None, about("The scale of the last dimension to that of the first, where it is whitened.")
    ] = None


@dataclass(frozen=True)
class MeasuredRecall:
    """Recall@k against exact search; older builds measured it with copies and did not write what is None."""

    k: Annotated[Count, about("How many neighbors were compared.")]
    recall: Annotated[Number, about("The share of the exact ones that the index returns with search_k.")]
    queries: Annotated[Count | None, about("Images that were searched for.")] = None
    distinct: Annotated[Count | None, about("Images that they were drawn from.")] = None


@dataclass(frozen=True)
class SampledPrecision:
    """P@k of a sample of images, by exact search among them."""

    k: Annotated[Count, about("How many neighbors were looked at.")]
    images: Annotated[Count, about("Images of the sample.")]
    queries: Annotated[Count, about("Images that were searched for.")]
    p_at_k: Annotated[Number, about("The share of the neighbors that have the label of the query.")]
    interval: Annotated[tuple[Number, Number], about("Its interval of 95 %, by the bootstrap.")]
    labels: Annotated[Mapping[str, Number], about("P@k by label; of very many labels, of the largest.")]


@dataclass(frozen=True)
class Shard:
    """An Annoy file, and the metadata file whose row i describes its item i."""

    index: Annotated[Path, about("The path of the Annoy file below the generation.")]
    metadata: Annotated[Path, about("The path of the metadata file.")]
    items: Annotated[Annotated[int, Strict(), Field(ge=1, le=2**31)], about("Images in it.")]
    trees: Annotated[int, Strict(), Field(ge=1, le=10_000), about("Trees of the Annoy file.")]


@dataclass(frozen=True)
class RecordedBackbone:
    """The backbone, as the build's config has it."""

    name: Annotated[Text, about("A model of keras.applications, or the path of a saved model or a preset.")]
    weights: Annotated[Text, about("imagenet, bundled, none, or the path of a file of weights.")]
    pooling: Annotated[Text, about("How a feature map becomes one feature.")]
    image_size: Annotated[Dims | None, about("Side of the images, in pixels. null: the model's own.")]
    output: Annotated[Text | None, about("The output of a saved model that gives the features.")] = None
    resize: Annotated[Text, about("How images of another shape are resized.")] = "stretch"
    mirror: Annotated[Switch, about("Whether features are those of the mirror image, too.")] = False


@dataclass(frozen=True)
class RecordedImages:
    """What of the images decides queries, as the build's config has it."""

    max_bytes: Annotated[Annotated[int, Strict(), Field(ge=1, le=2**40)], about("The most of a file.")]
    max_pixels: Annotated[Annotated[int, Strict(), Field(ge=1, le=2**63)], about("The most of an image.")]
    extensions: Annotated[tuple[Text, ...], about("What the names of images end in.")] = ()
    color_profile: Annotated[Text, about("Whether embedded ICC profiles are applied.")] = "srgb"
    truncated: Annotated[Text, about("Whether JPEGs that were cut off are indexed.")] = "fail"


@dataclass(frozen=True)
class RecordedPcaSettings:
    """How features were to be compressed, as the build's config has it."""

    dims: Annotated[Number, about("A number of dimensions, or a share of the variance.")]
    whiten: Annotated[Degree, about("The power of its standard deviation that a dimension is divided by.")]


@dataclass(frozen=True)
class RecordedPublish:
    """What an index had to fulfill, as the build's config has it."""

    min_recall: Annotated[Number | None, about("The least recall@10 of distinct images.")] = None


@dataclass(frozen=True)
class RecordedConfig:
    """What is read of the config of a build. The manifests of older builds lack keys that have a default."""

    input: Annotated[Text, about("A directory, a glob, a tar, or a file that lists images.")]
    backbone: RecordedBackbone
    images: RecordedImages
    pca: RecordedPcaSettings
    index: Annotated[Mapping[str, Any], about("How vectors were indexed.")]
    publish: RecordedPublish = field(default_factory=RecordedPublish)


@dataclass(frozen=True)
class _FileOfGeneration:
    """A file of a generation."""

    path: Annotated[Path, about("Its path below the generation.")]
    size: Annotated[Count, about("Its bytes.")]
    sha256: Annotated[Sha256, about("The digest of its bytes.")]


_T = TypeVar("_T")


@dataclass(frozen=True)
class _CheckedAs(Generic[_T]):
    """Reads a value that a `kind` can be made of; `made` says what becomes of it."""

    kind: type[_T]
    made: Callable[[Any, _T], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            lambda value, check: self.made(value, check(value)), handler.generate_schema(self.kind)
        )


File = Annotated[WrittenFile, _CheckedAs(_FileOfGeneration, lambda _, file: WrittenFile(**vars(file)))]


@dataclass(frozen=True)
class Manifest:
    """All that a generation says of itself. Paths are relative to the generation."""

    generation: Annotated[Text, about("Its name.")]
    previous: Annotated[Text | None, about("The name of the generation that was live before it.")]
    spec: RecordedSpec
    engine: RecordedEngine
    input_root: Annotated[Text, about("The directory that uris are relative to.")]
    config: Annotated[  # older ones lack some keys
        Mapping[str, Any],
        _CheckedAs(RecordedConfig, lambda value, _: value),
        about("The config of the build, by section and key."),
    ]
    ledger: Ledger
    feature_dim: Annotated[Annotated[int, Strict(), Field(ge=1, le=2**20)], about("Values of a feature.")]
    dims: Annotated[Dims, about("Values of a vector.")]
    explained_variance_ratio: Annotated[
        Number, about("The share of the features' variance that vectors keep.")
    ]
    pca: RecordedPca
    metric: Annotated[Metric, about("The distance between two vectors.")]
    search_k: Annotated[
        Annotated[int, Strict(), Field(ge=1, le=2**24)],
        about("Nodes of each shard that a search inspects."),
    ]
    recall: MeasuredRecall
    shards: Annotated[tuple[Shard, ...], FailFast(), about("The shards of the index.")]
    basis: Annotated[Path, about("The path of the PCA basis.")]
    failures: Annotated[tuple[Path, ...], FailFast(), about("The paths of the lists of failures.")]
    files: Annotated[tuple[File, ...], FailFast(), about("All files of the generation but the manifest.")]
    timings: Annotated[
        Mapping[str, Number],
        AfterValidator(_with_total),
        about("Seconds by stage, and in total.", json_schema_extra={"required": ["total"]}),
    ]
    created: Annotated[Text, about("The time, as of ISO 8601.")] = ""
    forced: Annotated[tuple[Text, ...], about("The checks that could not refuse.")] = ()
    failures_digest: Annotated[  # older builds did not write it
        Text, about("A digest of which images failed and why.")
    ] = ""
    libraries: Annotated[Mapping[str, Text], about("The versions of libraries, by name.")] = field(
        default_factory=dict
    )
    report: Annotated[Path | None, about("The path of the page about it.")] = None
    precision: SampledPrecision | None = None  # None: not measured, as where no two images share a label
    warnings: Annotated[tuple[Text, ...], about("What went wrong and did not stop the build.")] = ()
    # The JSON that it was read from.
    content: Annotated[Mapping[str, Any], SkipJsonSchema()] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def settings(self) -> RecordedConfig:
        """What is read of `config`, with its types."""
        settings: RecordedConfig = _reader(RecordedConfig).validate_python(self.config)
        return settings

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def items(self) -> int:
        """How many images are indexed."""
        return sum(shard.items for shard in self.shards)


@functools.cache  # built when it is first needed, for that takes a while
def _reader(kind: type[_T]) -> TypeAdapter[_T]:
    return TypeAdapter(kind)


def encode(manifest: Manifest) -> bytes:
    """A manifest's bytes. Raises ValueError where no reader would accept them."""
    content = asdict(replace(manifest, content={}))
    del content["content"]
    for each in fields(RecordedSpec):
        if content["spec"][each.name] == each.default:
            del content["spec"][each.name]
    data = seal({"schema_version": SCHEMA_VERSION, **content})
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is of {len(data)} bytes, more than the {MAX_BYTES} that are read")
    decode(data, manifest.generation)
    return data


def decode(data: bytes, generation: str) -> Manifest:
    """Reads the bytes of the manifest of `generation`.

    Raises ValueError for whatever `encode` has not written, and for values that nothing has which a build
    publishes, such as a path that leads elsewhere.
    """
    content = unseal(data)
    if content.get("schema_version") != SCHEMA_VERSION:
        schema = reprlib.repr(content.get("schema_version"))
        raise ValueError(f"it has schema {schema}, of another imgindex; this one reads {SCHEMA_VERSION}")
    try:
        manifest: Manifest = _reader(Manifest).validate_python({**content, "content": content})
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        raise ValueError(_described(mistake["loc"], mistake["type"], mistake["input"])) from None
    if manifest.generation != generation:
        raise ValueError(f"it is that of generation {manifest.generation}")
    if not manifest.shards:
        raise ValueError("it has no shards")
    named = [path for shard in manifest.shards for path in (shard.index, shard.metadata)]
    named += [manifest.basis, *manifest.failures, *([manifest.report] if manifest.report else [])]
    described = Counter(file.path for file in manifest.files)
    for path, count in Counter(named).items():
        if (described[path], count) != (1, 1):
            raise ValueError(f"it names {path} {count} times and describes it {described[path]} times")
    return manifest


def _described(where: tuple[int | str, ...], kind: str, value: Any) -> str:
    """A mistake that pydantic has found, in words."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
    return f"it has no {key}" if kind == "missing" else f"{key} is {reprlib.repr(value)}"
