"""The config: its defaults, how files and assignments change them, and how mistakes are named."""

import pickle  # noqa: TID251
import traceback
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from apache_beam.internal import pickler
from hypothesis import example, given
from hypothesis import strategies as st

from imgindex.config import Config, ImagesConfig, PcaConfig, PublishConfig, load_config, parse_config
from imgindex.errors import UsageError

CONFIGS = sorted((Path(__file__).parents[1] / "pipeline" / "configs").glob("*.yaml"))

DEFAULTS = """
input: null
output: null
backbone:
  {name: ResNet50, weights: imagenet, pooling: avg, image_size: null, resize: stretch, mirror: false,
   output: null}
engine: {name: auto, precision: auto, batch_size: null}
images:
  extensions: [.avif, .bmp, .gif, .heic, .heif, .hif, .jfif, .jpe, .jpeg, .jpg, .jxl,
               .png, .tif, .tiff, .webp]
  include: []
  exclude: []
  max_pixels: 178956970
  max_bytes: 268435456
  color_profile: srgb
  truncated: fail
pca: {dims: 150, whiten: false, refit: auto}
index: {metric: angular, trees: 40, items_per_shard: 1000000, seed: 0, target_recall: 0.95, memory: auto}
publish:
  {max_failure_rate: 0.05, max_shrink: 0.5, min_recall: 0.9, max_precision_drop: null,
   check_live: 4294967296}
report: {enabled: true, images: 200, seconds: 10}
"""

# A value other than the default for every key.
CHANGES = """
backbone: {name: MobileNetV2, weights: none, pooling: max, image_size: 96, resize: pad, mirror: true}
engine: {name: tensorflow, precision: float32, batch_size: 8}
images:
  {extensions: [.JPG, .x], include: ["*.x"], exclude: [a/], max_pixels: 1000, max_bytes: 2000,
   color_profile: ignore, truncated: accept}
pca: {dims: 0.9, whiten: true, refit: never}
index: {metric: euclidean, trees: 7, items_per_shard: 50, seed: 3, target_recall: 1, memory: 4294967296}
publish: {max_failure_rate: 0, max_shrink: 0.25, min_recall: 0.5, max_precision_drop: 0.02, check_live: 0}
report: {enabled: false, images: 5, seconds: 1}
"""

KEYS = [
    f"{section.name}.{key.name}"
    for section in fields(Config)
    if is_dataclass(getattr(Config(), section.name))
    for key in fields(getattr(Config(), section.name))
    if key.name != "output"  # takes a saved model, as in test_saved_models.py
]


def settings_of(config: Config) -> dict[str, Any]:
    """`config` as YAML would hold it."""
    settings = asdict(config)
    for key in ("extensions", "include", "exclude"):
        settings["images"][key] = list(settings["images"][key])
    return settings


def written(directory: Path, content: str | bytes) -> Path:
    path = directory / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path | None = None, *assignments: str) -> str:
    """The message of the UsageError that loading ends with."""
    with pytest.raises(UsageError) as caught:
        load_config(path, assignments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults(tmp_path: Path) -> None:
    assert settings_of(load_config()) == yaml.safe_load(DEFAULTS)
    assert load_config(written(tmp_path, "")) == load_config(written(tmp_path, "pca:\n")) == Config()


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_set_by_file_and_by_assignment(key: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    value = yaml.safe_load(CHANGES)[section][name]
    expected = settings_of(Config())
    assert value != expected[section][name]
    expected[section][name] = value
    path = written(tmp_path, yaml.safe_dump({section: {name: value}}))
    assert settings_of(load_config(path)) == expected
    assert settings_of(load_config(None, [f"{key}={yaml.safe_dump(value, default_flow_style=True)}"])) == (
        expected
    )


def test_assignments_win_over_the_file_and_later_ones_over_earlier(tmp_path: Path) -> None:
    path = written(tmp_path, "pca: {dims: 10}\nindex: {trees: 5}\npublish:\n")
    config = load_config(path, ["pca.dims=20", "publish.max_shrink=1", "pca.dims = 30"])
    assert (config.pca.dims, config.index.trees, config.publish.max_shrink) == (30, 5, 1.0)


def test_input_and_output_may_stand_in_the_file(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "input: photos\noutput: index\n"))
    assert (config.input, config.output) == ("photos", "index")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ("pcs: {dims: 3}", ["'pcs'", "'pca'"]),
        ("zzzzzz: 1", ["'zzzzzz'", "backbone", "publish"]),
        ("7: {dims: 3}", ["7", "backbone", "publish"]),
        ("pca: {dim: 3}", ["'pca.dim'", "'pca.dims'"]),
        ("index: {tree: 3}", ["'index.tree'", "'index.trees'"]),
        ("publish: {min_recal: 1}", ["'publish.min_recal'", "'publish.min_recall'"]),
        ("index: {3: 3}", ["'index.3'", "index."]),
        ("input: 5", ["input", "5", "text or null"]),
        ("pca: 5", ["'pca'", "5", "keys"]),
        ("pca: [dims]", ["'pca'", "dims", "keys"]),
        ("pca: {dims: many}", ["pca.dims", "'many'", "a whole number from 1 to 65536 or a share"]),
        ("pca: {dims: true}", ["pca.dims", "True", "number"]),
        ("pca: {dims: null}", ["pca.dims", "None", "number"]),
        ("pca: {dims: 0}", ["pca.dims", "0", "from 1 to 65536"]),
        ("pca: {dims: 1.5}", ["pca.dims", "1.5", "between 0 and 1"]),
        ("pca: {dims: .nan}", ["pca.dims", "nan", "between 0 and 1"]),
        ("pca: {whiten: 1.5}", ["pca.whiten", "1.5", "true or false or a number from 0.0 to 1.0"]),
        ("pca: {whiten: half}", ["pca.whiten", "'half'", "true or false or a number from 0.0 to 1.0"]),
        ("index: {trees: true}", ["index.trees", "True", "a whole number from 1 to 10000 or auto"]),
        ("index: {trees: 2.0}", ["index.trees", "2.0", "a whole number from 1 to 10000 or auto"]),
        ("index: {trees: [3]}", ["index.trees", "[3]", "a whole number from 1 to 10000 or auto"]),
        ("index: {trees: many}", ["index.trees", "many", "a whole number from 1 to 10000 or auto"]),
        ("pca: {refit: yes}", ["pca.refit", "True", "one of auto, always, never"]),
        ("pca: {refit: sometimes}", ["pca.refit", "sometimes", "auto, always, never"]),
        ("index: {memory: 4GiB}", ["index.memory", "'4GiB'", "a whole number of bytes from", "or auto"]),
        ("index: {memory: 1000}", ["index.memory", "1000", "from 1048576"]),
        ("index: {memory: 1.5}", ["index.memory", "1.5", "a whole number of bytes from", "or auto"]),
        ("index: {trees: 0}", ["index.trees", "0", "from 1 to 10000"]),
        ("index: {items_per_shard: -1}", ["index.items_per_shard", "-1", "from 1"]),
        ("index: {seed: 2147483648}", ["index.seed", "2147483648", "2147483647"]),
        ("index: {metric: cosine}", ["index.metric", "'cosine'", "angular", "euclidean"]),
        ("index: {metric: 5}", ["index.metric", "5", "angular", "euclidean"]),
        ("index: {target_recall: 1.01}", ["index.target_recall", "1.01", "from 0.0 to 1.0"]),
        ("publish: {min_recall: .inf}", ["publish.min_recall", "inf", "from 0.0 to 1.0"]),
        ("publish: {check_live: -1}", ["publish.check_live", "-1", "from 0 to"]),
        ("publish: {min_recall: yes}", ["publish.min_recall", "True", "a number"]),
        ("publish: {max_shrink: half}", ["publish.max_shrink", "'half'", "a number"]),
        (f"publish: {{max_shrink: 1{'0' * 400}}}", ["publish.max_shrink", "from 0.0 to 1.0"]),
        ("images: {extensions: .jpg}", ["images.extensions", "'.jpg'", "a list of texts"]),
        ("images: {extensions: [.jpg, 3]}", ["images.extensions[1]", "3", "text"]),
        ("images: {extensions: [jpg]}", ["images.extensions", "'jpg'", "'.jpg'"]),
        ("images: {extensions: []}", ["images.extensions", "empty"]),
        ("images: {max_pixels: 2147483648}", ["images.max_pixels", "2147483648", "2147483647"]),
        ("images: {max_bytes: 0}", ["images.max_bytes", "0", "from 1"]),
        ("engine: {name: jax}", ["engine.name", "'jax'", "auto", "tensorflow"]),
        ("engine: {precision: int8}", ["engine.precision", "'int8'", "auto", "float32"]),
        ("engine: {batch_size: 0}", ["engine.batch_size", "0", "from 1 to 4096"]),
        ("engine: {batch_size: x}", ["engine.batch_size", "'x'", "a whole number from 1 to 4096 or null"]),
        ("backbone: {name: Resnet50}", ["backbone.name", "'Resnet50'", "ResNet50"]),
        ("backbone: {name: none.keras}", ["backbone.name", "none.keras", "no such file"]),
        ("backbone: {weights: imagnet}", ["backbone.weights", "'imagnet'", "imagenet"]),
        ("backbone: {pooling: mean}", ["backbone.pooling", "'mean'", "avg", "max"]),
        ("backbone: {image_size: 8}", ["backbone.image_size", "8", "32 to 2048"]),
    ],
)
def test_mistakes_are_named_with_what_was_given_and_expected(
    settings: str, named: list[str], tmp_path: Path
) -> None:
    message = refusal(written(tmp_path, settings))
    assert [part for part in named if part not in message] == [], message


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("pca.dims", ["--set pca.dims:", "section.key=value"]),
        ("dims=3", ["--set dims=3:", "section.key=value"]),
        ("", ["section.key=value"]),
        ("pca.dims=[1", ["--set pca.dims=[1", "YAML"]),
        # Values that PyYAML takes for its own types and then fails on with other than a YAMLError.
        ("pca.dims=2024-99-99", ["--set pca.dims=2024-99-99", "YAML"]),
        ("pca.dims=!!int ''", ["--set pca.dims=!!int ''", "YAML"]),
        ("pca.dims=0x_", ["--set pca.dims=0x_", "YAML"]),
        ("pca.dims=", ["pca.dims", "None", "number"]),
        ("pca.dim=3", ["'pca.dim'", "'pca.dims'"]),
        ("pcs.dims=3", ["'pcs'", "'pca'"]),
        ("pca.dims.more=3", ["'pca.dims.more'", "'pca.dims'"]),
        ("index.trees=0", ["index.trees", "0", "from 1 to 10000"]),
    ],
)
def test_mistakes_in_assignments_are_named(assignment: str, named: list[str]) -> None:
    message = refusal(None, assignment)
    assert [part for part in named if part not in message] == [], message


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (
            lambda: PcaConfig(dims="40"),
            "pca.dims is '40'; expected a whole number from 1 to 65536 or a share",
        ),
        (lambda: PcaConfig(dims=True), "pca.dims is True; expected a whole number"),
        (lambda: PcaConfig(whiten=2), "pca.whiten is 2; expected true or false or a number from 0.0 to 1.0"),
        (lambda: PcaConfig(dim=40), "unknown config key 'pca.dim'; did you mean 'pca.dims'?"),
        (lambda: replace(Config().index, trees=0), "index.trees is 0; expected a whole number from 1"),
        (lambda: ImagesConfig(extensions=(".jpg", 3)), "images.extensions[1] is 3; expected text"),
        (lambda: ImagesConfig(include=["!"]), "images.include: '!' is no pattern"),
        (lambda: PublishConfig(min_recall=float("nan")), "publish.min_recall is nan; expected a number from"),
        (lambda: Config(input=5), "input is 5; expected text or null"),
        (lambda: Config(pca=40), "config section 'pca' must hold keys, got 40"),
        (lambda: Config(pcs=PcaConfig()), "unknown config section 'pcs'; did you mean 'pca'?"),
    ],
)
def test_construction_refuses_what_a_file_may_not_say(construct: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        construct()
    assert str(caught.value).startswith(message)


def test_a_refusal_shows_no_more_of_a_value_than_its_message() -> None:
    with pytest.raises(UsageError) as caught:
        PcaConfig(dims="x" * 100_000)
    assert len("".join(traceback.format_exception(caught.value))) < 5000


def test_a_config_travels_to_a_worker() -> None:
    config = load_config(None, ["pca.dims=0.5", "images.include=['*.x']"])
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301
    assert pickler.loads(pickler.dumps(config)) == config


def test_a_config_cannot_be_altered() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().pca.dims = 3  # type: ignore[misc]


def test_an_assignment_below_what_is_no_section(tmp_path: Path) -> None:
    assert "'input' is no config section" in refusal(written(tmp_path, "input: photos"), "input.x=1")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("pca: {dims: 3", "YAML"),
        ("pca:\n\tdims: 3\n", "YAML"),
        ("pca: {dims: 2024-99-99}", "YAML"),
        ("pca: !!python/object:os.system {}", "YAML"),
        ("- pca\n", "sections such as"),
        ("pca", "sections such as"),
        (b"pca: {dims: \xff}", "is not UTF-8 text"),
        (b"\x00", "YAML"),
    ],
)
def test_a_file_that_is_no_config(content: str | bytes, named: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    message = refusal(path)
    assert str(path) in message
    assert named in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.yaml")
    assert "directory" in refusal(tmp_path)


def test_there_are_examples() -> None:
    assert {"local.yaml", "inception.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_examples_load_and_change_something(path: Path) -> None:
    assert load_config(path) != Config()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
)
VALUES = SCALARS | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def sections() -> st.SearchStrategy[dict[Any, Any]]:
    """Mostly sections that exist, with some of their keys, and mostly strange values."""
    known = {}
    for section, keys in yaml.safe_load(CHANGES).items():
        values = {key: st.just(value) | VALUES for key, value in keys.items()}
        known[section] = st.fixed_dictionaries({}, optional=values) | VALUES
    strange = st.dictionaries(SCALARS, VALUES, max_size=1)
    return st.tuples(st.fixed_dictionaries({}, optional=known), st.just({}) | strange).map(
        lambda parts: parts[0] | parts[1]
    )


@given(sections())
def test_any_settings_parse_or_are_refused(settings: dict[Any, Any]) -> None:
    try:
        config = parse_config(settings)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    # What parses is what was asked for, and complete.
    complete = settings_of(config)
    assert parse_config(complete) == config
    for section, values in settings.items():
        for key, value in values.items() if isinstance(values, dict) else []:
            assert complete[section][key] == value


@given(st.sampled_from(KEYS), st.text(max_size=12))
@example("pca.dims", "!!float ''")
@example("pca.dims", "!!timestamp x")
@example("pca.dims", "!!bool x")
@example("index.seed", "0b_")
@example("publish.min_recall", "9" * 400)
def test_any_assignment_parses_or_is_refused(key: str, text: str) -> None:
    try:
        assert isinstance(load_config(None, [f"{key}={text}"]), Config)
    except UsageError as error:
        assert key in str(error)  # noqa: PT017
