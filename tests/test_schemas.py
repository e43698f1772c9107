"""The JSON Schemas that are shipped: what the code says, and refusing what the code refuses."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import yaml
from hypothesis import given
from jsonschema import Draft202012Validator
from outputs import publish_features
from test_config import CHANGES, CONFIGS, DEFAULTS, sections

from imgindex.cli import main
from imgindex.config import parse_config
from imgindex.errors import UsageError
from imgindex.generations import manifest as manifests
from imgindex.io.digest_json import seal
from imgindex.schemas import SCHEMAS

FOLDER = Path(__file__).parents[1] / "pipeline" / "schemas"
GOLDEN = sorted(Path(__file__).parent.glob("generations/golden/*/generations/*/manifest.json"))


def shipped(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.schema.json").read_text())


def valid(name: str, value: Any) -> bool:
    return bool(Draft202012Validator(shipped(name)).is_valid(value))


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.skipif(
    pydantic.VERSION < "2.13", reason="before 2.13 pydantic leaves out what dataclasses say of themselves"
)
def test_the_files_are_what_the_code_says(name: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "imgindex.schemas", name], check=True, capture_output=True, text=True
    ).stdout
    assert printed == (FOLDER / f"{name}.schema.json").read_text(), "run `make schemas`"


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_files_are_json_schemas(name: str) -> None:
    Draft202012Validator.check_schema(shipped(name))


def keys_of(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in [schema, *schema["$defs"].values()]:
        yield kind["title"], kind
        for key, value in kind["properties"].items():
            if "$ref" not in json.dumps(value) or value.get("type") == "array":  # else its kind describes it
                yield f"{kind['title']}.{key}", value


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_is_described(name: str) -> None:
    assert [key for key, value in keys_of(shipped(name)) if not value.get("description")] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_are_valid_and_lead_editors_to_the_schema(path: Path) -> None:
    assert valid("config", yaml.safe_load(path.read_text()))
    server, _, schema = path.read_text().splitlines()[0].partition("$schema=")
    assert server == "# yaml-language-server: "
    assert (path.parent / schema).resolve() == (FOLDER / "config.schema.json").resolve()


@pytest.mark.parametrize("text", [DEFAULTS, CHANGES, "{}", "pca:", "pca: {dims: 0.9}"])
def test_configs_that_load_are_valid(text: str) -> None:
    settings = yaml.safe_load(text)
    parse_config(settings)
    assert valid("config", settings)


@given(sections())
def test_what_parses_is_valid(settings: dict[Any, Any]) -> None:
    try:
        parse_config(settings)
    except UsageError:
        return
    assert valid("config", settings)


@pytest.mark.parametrize(
    "text",
    [
        "pcs: {dims: 3}",
        "pca: {dim: 3}",
        "pca: 5",
        "input: 5",
        "pca: {dims: '40'}",
        "pca: {dims: 0}",
        "pca: {dims: 1.5}",
        "pca: {dims: true}",
        "pca: {whiten: 2}",
        "pca: {whiten: many}",
        "pca: {refit: sometimes}",
        "index: {trees: many}",
        "index: {trees: 0}",
        "index: {metric: cosine}",
        "index: {memory: 1000}",
        "index: {target_recall: 1.01}",
        "publish: {min_recall: yes}",
        "images: {extensions: .jpg}",
        "images: {extensions: [jpg]}",
        "images: {extensions: []}",
        "images: {max_pixels: 2147483648}",
        "engine: {name: jax}",
        "engine: {precision: int8}",
        "engine: {batch_size: 0}",
        "backbone: {name: Resnet50}",
        "backbone: {weights: imagnet}",
        "backbone: {pooling: mean}",
        "backbone: {image_size: 8}",
    ],
)
def test_configs_that_both_refuse(text: str) -> None:
    settings = yaml.safe_load(text)
    assert not valid("config", settings)
    with pytest.raises(UsageError):
        parse_config(settings)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parents[2].name)
def test_golden_manifests_are_valid(path: Path) -> None:
    assert valid("manifest", json.loads(path.read_text()))


GONE = object()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("schema_version", 2),
        ("digest", GONE),
        ("generation", 5),
        ("ledger", GONE),
        ("ledger", []),
        ("ledger.listed", -1),
        ("ledger.listed", True),
        ("ledger.listed", "3"),
        ("ledger.failed_by_reason", {"decode/x": 0.5}),
        ("spec.image_size", [64]),
        ("spec.image_size", [64, 64, 3]),
        ("spec.decoding", 3),
        ("engine.name", "No Engine"),
        ("engine.name", "auto"),
        ("engine.batch_size", 0),
        ("config.images", GONE),
        ("config.pca.whiten", 2),
        ("config.backbone.image_size", "64"),
        ("metric", "cosine"),
        ("pca.refit", None),
        ("shards", {}),
        ("shards.0.index", "../index-00000-of-00001.ann"),
        ("shards.0.items", 0),
        ("files.0.sha256", "0"),
        ("files.0.size", GONE),
        ("timings", {"list": 1.0}),
        ("libraries", {"numpy": 2}),
    ],
)
def test_manifests_that_both_refuse(where: str, value: Any) -> None:
    content = copy.deepcopy(json.loads(GOLDEN[0].read_text()))
    inner, (*folders, key) = content, where.split(".")
    for folder in folders:
        inner = inner[int(folder) if folder.isdigit() else folder]
    if value is GONE:
        del inner[key]
    else:
        inner[key] = value
    assert not valid("manifest", content)
    if where != "digest":
        content.pop("digest")
        with pytest.raises(ValueError, match=rf"\b{folders[0] if folders else key}\b|has schema 2"):
            manifests.decode(seal(content), str(content["generation"]))


def test_one_key_of_a_manifest_is_named_with_its_place() -> None:
    content = json.loads(GOLDEN[0].read_text())
    del content["digest"], content["shards"][0]["trees"]
    with pytest.raises(ValueError, match=r"^it has no shards\[0\]\.trees$"):
        manifests.decode(seal(content), content["generation"])
    content["shards"][0]["trees"] = "4"
    with pytest.raises(ValueError, match=r"^shards\[0\]\.trees is '4'$"):
        manifests.decode(seal(content), content["generation"])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parents[2].name)
def test_the_config_of_a_manifest_has_types(path: Path) -> None:
    read = manifests.decode(path.read_bytes(), path.parent.name)
    recorded = json.loads(path.read_text())["config"]
    settings = read.settings
    assert read.config == recorded
    assert settings.images.extensions == tuple(recorded["images"]["extensions"])
    assert settings.images.color_profile == "srgb"  # older builds did not write it
    assert settings.backbone.image_size == 64
    assert (settings.pca.dims, settings.pca.whiten) == (4, False)


def test_a_manifest_is_written_as_it_was_read() -> None:
    for path in GOLDEN:
        written = manifests.encode(manifests.decode(path.read_bytes(), path.parent.name))
        before, after = json.loads(path.read_text()), json.loads(written)
        assert set(before) <= set(after)
        assert after["config"] == before["config"]
        assert manifests.encode(manifests.decode(written, path.parent.name)) == written


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("evaluation")
    rows = np.random.default_rng(0).random((60, 8), np.float32)
    publish_features(folder / "index", rows, [f"{n % 3}/{n}.jpg" for n in range(60)])
    written = folder / "found.json"
    flags = ["--measures", "l1", "--compare", "annoy", "--json", str(written)]
    assert main(["evaluate", str(folder / "index"), *flags]) == 0
    return json.loads(written.read_text())


def test_what_evaluate_writes_is_valid_and_has_every_key(evaluation: Any) -> None:
    assert valid("evaluation", evaluation)
    assert set(evaluation) == set(shipped("evaluation")["properties"])
    assert all(
        evaluation[key] for key in ("quality", "ladder", "sweep", "unseen_recall", "compare", "measures")
    )


@pytest.mark.parametrize("key", ["generator", "quality", "ladder", "advice"])
def test_an_evaluation_without_a_key_is_not_valid(key: str, evaluation: Any) -> None:
    assert not valid("evaluation", {name: value for name, value in evaluation.items() if name != key})


def test_the_docs_list_every_key_of_an_evaluation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "evaluate.md").read_text()
    assert [key for key in shipped("evaluation")["properties"] if f"`{key}`" not in text] == []
