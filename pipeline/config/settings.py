"""Every setting with its type, its default, its limits and what it means."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from imgindex.config.json_schema import json_schema
from imgindex.config.messages import refusal, shown
from imgindex.errors import UsageError
from imgindex.io.paths import absolute
from imgindex.io.patterns import compiled
from imgindex.models.ann.protocol import Metric
from imgindex.models.applications import APPLICATIONS
from imgindex.models.backbones import IMAGE_SIZES, PIXELS, WEIGHTS_WORDS, check_backbone, is_preset
from imgindex.models.color import COLOR_PROFILES, can_convert
from imgindex.models.engines.protocol import PRECISIONS
from imgindex.models.engines.registry import check_engine, engine_names
from imgindex.models.pooling import POOLINGS
from imgindex.models.preprocess import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS
from imgindex.models.resizing import RESIZES
from imgindex.models.saved_models import is_saved_model

# Strict: pydantic would take "40" for 40 and true for 1. Its errors would show their input, which may be
# endless. A process that reads no config need not wait for the validators to be built.
_STRICT = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, defer_build=True
)

# Characters of a text, and its bytes: as many as of a path on Linux.
_MAX_TEXT = 4096


def _writable(value: str) -> str:
    """Refuses what no manifest and no path can hold."""
    try:
        if len(value.encode()) <= _MAX_TEXT and "\0" not in value:
            return value
    except UnicodeEncodeError:
        pass
    raise PydanticCustomError("writable", "it cannot be written down")


def _with_dot(extension: str) -> str:
    if not extension.startswith("."):
        raise ValueError(f"{shown(extension)} has no leading dot; write {shown('.' + extension)}")
    return extension


def _pattern(pattern: str) -> str:
    try:
        compiled([pattern])
    except ValueError as error:
        raise ValueError(
            f"{shown(pattern)} is no pattern; write one as in a .gitignore, such as drafts/ or *.gif"
        ) from error
    return pattern


class OneOf:
    """Takes only a text of those that `choices` gives whenever a text is checked."""

    def __init__(self, choices: Callable[[], Collection[str]]) -> None:
        self._choices = choices

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "enum": [*self._choices()]}

    def _check(self, value: str) -> str:
        if value not in self._choices():
            raise PydanticCustomError("one_of", "it is none of the choices")
        return value


def _or(words: Collection[str], ending: str) -> dict[str, Any]:
    """JSON Schema of a text that is one of `words` or ends in `ending`, which is a regular expression."""
    return {"anyOf": [{"enum": [*words]}, {"pattern": f"{ending}$"}]}


Text = Annotated[str, Field(max_length=_MAX_TEXT), AfterValidator(_writable)]
Bytes = Annotated[int, Field(ge=1, le=2**40, title="a whole number of bytes")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

# YAML has lists where dataclasses of fixed values have tuples.
_FROM_LIST = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Extensions = Annotated[
    tuple[Annotated[Text, AfterValidator(_with_dot), Field(json_schema_extra={"pattern": r"^\."})], ...],
    Field(min_length=1),
    _FROM_LIST,
]
Patterns = Annotated[tuple[Annotated[Text, AfterValidator(_pattern)], ...], _FROM_LIST]


@dataclass(frozen=True, config=_STRICT)
class _Settings:
    """Keys with values. Construction refuses with UsageError what they do not allow."""

    section: ClassVar[str] = ""

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, given: Any, validate: Callable[[Any], Self]) -> Self:
        if given is None:  # a file that says `pca:` and no more
            return cls()
        if isinstance(given, Mapping):
            return cls(**named(given))
        try:
            return validate(given)
        except ValidationError as error:
            mistake = error.errors(include_url=False)[0]
        # Not from the error: a traceback would show it, too.
        raise UsageError(refusal(cls.section, json_schema(cls), mistake))


def named(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings as keyword arguments: YAML's keys may be of any type, and of none but texts is there a key."""
    return {key if _is_text(key) else shown(key): value for key, value in settings.items()}


def _is_text(key: Any) -> bool:
    return isinstance(key, str) and not any("\ud800" <= character <= "\udfff" for character in key)


@dataclass(frozen=True, config=_STRICT)
class BackboneConfig(_Settings):
    """What computes the features."""

    section = "backbone"

    name: Annotated[
        Text,
        Field(
            description="A model of keras.applications, the path of a saved .keras model, or that of the "
            "folder of a KerasHub preset. pixels: no model, the RGB values themselves.",
            json_schema_extra=_or([*APPLICATIONS, PIXELS], r"(\.keras|/.*)"),
        ),
    ] = "ResNet50"
    weights: Annotated[
        Text,
        Field(
            description="imagenet: downloaded. bundled: those of MobileNetV2 in the package. none: random. "
            "Or the path of a .h5 file of weights.",
            json_schema_extra=_or(WEIGHTS_WORDS, r"\.h5"),
        ),
    ] = "imagenet"
    pooling: Annotated[
        Text,
        OneOf(lambda: POOLINGS),
        Field(
            description="How a feature map becomes one feature. avg, max: each channel's average or maximum. "
            "gem: its generalized mean, the cube root of the mean cube. cls: the class token of a preset's "
            "vision transformer."
        ),
    ] = "avg"
    image_size: Annotated[
        Annotated[int, Field(ge=IMAGE_SIZES[0], le=IMAGE_SIZES[-1])] | None,
        Field(
            description="Side of the square that images are scaled to, in pixels. null: the backbone's own."
        ),
    ] = None
    resize: Annotated[
        Text,
        OneOf(lambda: RESIZES),
        Field(
            description="How an image of another shape becomes that square. stretch: it is distorted. "
            "pad: in the middle of the mean color. crop: only the middle is seen."
        ),
    ] = "stretch"
    mirror: Annotated[
        bool,
        Field(
            description="Whether a feature is the mean of the image's and its mirror image's, which takes "
            "twice as long."
        ),
    ] = False
    output: Annotated[
        Text | None,
        Field(
            description="The output, or the layer, of a saved model that gives the features. null: its only "
            "output."
        ),
    ] = None

    def __post_init__(self) -> None:
        # A process elsewhere, or a search next year, has another current directory.
        if is_saved_model(self.name) or is_preset(self.name):
            object.__setattr__(self, "name", absolute(self.name))
        if self.weights.endswith(".h5"):
            object.__setattr__(self, "weights", absolute(self.weights))
        check_backbone(
            self.name, self.weights, self.pooling, self.image_size, self.output, self.resize, self.mirror
        )


@dataclass(frozen=True, config=_STRICT)
class EngineConfig(_Settings):
    """What executes the backbone."""

    section = "engine"

    name: Annotated[
        Text,
        OneOf(lambda: ("auto", *engine_names())),
        Field(description="auto: the fastest here that agrees with float32."),
    ] = "auto"
    precision: Annotated[
        Text,
        OneOf(lambda: PRECISIONS),
        Field(description="How the backbone computes. auto: the fastest here that agrees with float32."),
    ] = "auto"
    batch_size: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | None,
        Field(description="How many images the backbone takes at once. null: the engine's own."),
    ] = None


@dataclass(frozen=True, config=_STRICT)
class ImagesConfig(_Settings):
    """Which files are images, and how large one may be."""

    section = "images"

    extensions: Annotated[Extensions, Field(description="What the names of images end in, in any case.")] = (
        ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jxl", ".png",
        ".tif", ".tiff", ".webp",
    )  # fmt: skip
    include: Annotated[
        Patterns,
        Field(
            description="Patterns as in a .gitignore. Where there are any, only what they match is indexed."
        ),
    ] = ()
    exclude: Annotated[
        Patterns, Field(description="Patterns as in a .gitignore. What they match is not indexed.")
    ] = ()
    max_pixels: Annotated[
        int, Field(ge=1, le=LARGEST_MAX_PIXELS, description="An image of more pixels is listed as failed.")
    ] = DEFAULT_MAX_PIXELS
    max_bytes: Annotated[Bytes, Field(description="An image of more bytes is listed as failed.")] = (
        268_435_456
    )
    color_profile: Annotated[
        Text,
        OneOf(lambda: COLOR_PROFILES),
        Field(description="srgb: embedded ICC profiles are applied. ignore: they are not."),
    ] = "srgb"
    truncated: Annotated[
        Literal["fail", "accept"],
        Field(description="accept: a JPEG that was cut off is indexed, and what is missing of it is gray."),
    ] = "fail"

    def __post_init__(self) -> None:
        if self.color_profile == "srgb" and not can_convert():
            raise UsageError(
                "images.color_profile is 'srgb', but this Pillow is built without LittleCMS: install "
                "Pillow's own wheel, or set images.color_profile=ignore"
            )


@dataclass(frozen=True, config=_STRICT)
class PcaConfig(_Settings):
    """How features are compressed."""

    section = "pca"

    dims: Annotated[
        Annotated[int, Field(ge=1, le=65_536)]
        | Annotated[float, Field(gt=0, lt=1, title="a share of the variance")],
        Field(description="A number of dimensions, or a share of the variance such as 0.9."),
    ] = 150
    whiten: Annotated[
        bool | Share,
        Field(
            description="The power of its standard deviation that each dimension is divided by. false or 0: "
            "vectors stay as they are. true or 1: every dimension has a variance of 1."
        ),
    ] = False
    refit: Annotated[
        Literal["auto", "always", "never"],
        Field(description="Whether a refresh fits a new basis. auto: where the images have drifted."),
    ] = "auto"


@dataclass(frozen=True, config=_STRICT)
class IndexConfig(_Settings):
    """How vectors are indexed."""

    section = "index"

    metric: Annotated[Metric, Field(description="The distance between two vectors.")] = "angular"
    trees: Annotated[
        Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"],
        Field(
            description="Trees of a shard. auto: of 10, 20, 40 and 80 what needs the least search_k; "
            "building takes four times as long."
        ),
    ] = 40
    items_per_shard: Annotated[
        int, Field(ge=1, le=1_000_000_000, description="How many images a shard holds, about.")
    ] = 1_000_000
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="What the trees are drawn with.")] = 0
    target_recall: Annotated[
        Share, Field(description="The recall@10 for which the least search_k is chosen.")
    ] = 0.95
    memory: Annotated[
        Annotated[int, Field(ge=1 << 20, le=1 << 50, title="a whole number of bytes")] | Literal["auto"],
        Field(description="Bytes that a worker's shards in the making take. auto: half of what it has."),
    ] = "auto"


@dataclass(frozen=True, config=_STRICT)
class PublishConfig(_Settings):
    """What an index must fulfill before it replaces the one that is served."""

    section = "publish"

    max_failure_rate: Annotated[Share, Field(description="The largest share of images that may fail.")] = 0.05
    max_shrink: Annotated[
        Share, Field(description="The largest share of the live generation's images that may be gone.")
    ] = 0.5
    min_recall: Annotated[
        Share, Field(description="The least recall@10 of distinct images against exact search.")
    ] = 0.9
    max_precision_drop: Annotated[
        Share | None,
        Field(
            description="By how much P@4 by label, from 0 to 1, may be less than in the live generation. "
            "null: it is not compared."
        ),
    ] = None
    check_live: Annotated[
        int,
        Field(
            ge=0,
            le=1 << 50,
            title="a whole number of bytes",
            description="Bytes of the live generation that each build compares with their digests.",
        ),
    ] = 4_294_967_296


@dataclass(frozen=True, config=_STRICT)
class ReportConfig(_Settings):
    """The page that a build writes beside the index."""

    section = "report"

    enabled: Annotated[bool, Field(description="Whether there is one.")] = True
    images: Annotated[int, Field(ge=0, le=1000, description="How many thumbnails it has at most.")] = 200
    seconds: Annotated[int, Field(ge=0, le=3600, description="How long reading their images may take.")] = 10


@dataclass(frozen=True, config=_STRICT)
class Config(_Settings):
    """All settings of a build. Construction refuses with UsageError what is out of range."""

    input: Annotated[
        Text | None, Field(description="A directory, a glob, a tar, or a file that lists images.")
    ] = None
    output: Annotated[Text | None, Field(description="The directory that the index is written to.")] = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    pca: PcaConfig = field(default_factory=PcaConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        check_engine(self.engine.name, self.backbone.name)
