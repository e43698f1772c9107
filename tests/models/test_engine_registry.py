"""The registry: an engine of somebody else takes part in all that the shipped ones do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import QuartersEngine, factory_of, registered

import imgindex
from imgindex import Config, EngineConfig, PublishConfig
from imgindex.errors import MachineError, UsageError
from imgindex.generations.layout import Output, read_manifest
from imgindex.generations.verify import verify
from imgindex.models.engines.registry import engine_factory, engine_names, register, unregister


def test_those_that_are_shipped() -> None:
    assert {"openvino", "tensorflow", "numpy"} <= {*engine_names()}
    assert engine_factory("openvino") is engine_factory("openvino")


def test_the_config_knows_an_engine_as_long_as_it_is_registered() -> None:
    with registered("quarters", factory_of()):
        assert engine_names()[-1] == "quarters"
        assert EngineConfig(name="quarters").name == "quarters"
    with pytest.raises(UsageError, match="'quarters'; expected one of auto, openvino, tensorflow"):
        EngineConfig(name="quarters")


@pytest.mark.parametrize("name", ["openvino", "auto", "", "Quarters", "two words", "4th", "x" * 65])
def test_names_that_are_refused(name: str) -> None:
    before = engine_names()
    with pytest.raises(ValueError, match="engine"):
        register(name, factory_of())
    assert engine_names() == before


def test_one_that_is_not_there() -> None:
    with pytest.raises(MachineError, match="there is no engine quarters here, only openvino, tensorflow"):
        engine_factory("quarters")
    with pytest.raises(KeyError):
        unregister("quarters")


def test_an_index_of_a_registered_engine(tmp_path: Path, image_bytes: Callable[..., bytes]) -> None:
    photos, output = tmp_path / "photos", tmp_path / "index"
    photos.mkdir()
    for number in range(6):
        (photos / f"{number}.png").write_bytes(image_bytes(number))
    with registered("quarters", factory_of()):
        settings = {"engine": EngineConfig(name="quarters"), "publish": PublishConfig(min_recall=0.0)}
        imgindex.build(Config(input=str(photos), output=str(output), **settings))
        (found,) = imgindex.Index.open(str(output)).search([photos / "3.png"], k=1)
    assert [neighbor.uri for neighbor in found.neighbors] == ["3.png"]
    manifest = read_manifest(Output(str(output)))
    assert (manifest.engine.name, manifest.engine.precision) == ("quarters", "float32")
    assert manifest.engine.batch_size == 4
    assert manifest.spec.backbone == QuartersEngine.spec.backbone
    # Where nobody registers it the index can be read, and says what its queries need.
    assert verify(str(output)).problems == ()
    with pytest.raises(MachineError, match="there is no engine quarters here"):
        imgindex.Index.open(str(output)).search([photos / "3.png"], k=1)


@pytest.mark.long
def test_an_engine_of_an_installed_package_is_there_in_every_process(
    tmp_path: Path, image_bytes: Callable[..., bytes]
) -> None:
    packages, photos, output = tmp_path / "packages", tmp_path / "photos", tmp_path / "index"
    package = packages / "quarters-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: quarters\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[imgindex.engines]\nquarters = fake_engine:factory_of\n")
    photos.mkdir()
    for number in range(6):
        (photos / f"{number}.png").write_bytes(image_bytes(number))
    paths = os.pathsep.join([str(packages), str(Path(__file__).parents[1])])

    def command(*arguments: object) -> str:
        return subprocess.run(
            [sys.executable, "-m", "imgindex", *map(str, arguments)], env={**os.environ, "PYTHONPATH": paths},
            check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip

    settings = ["--set", "engine.name=quarters", "--set", "publish.min_recall=0"]
    workers = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
    command("build", "--input", photos, "--output", output, *settings, *workers)
    assert read_manifest(Output(str(output))).engine.name == "quarters"
    (found,) = json.loads(command("search", output, photos / "3.png", "-k", "1", "--json"))
    assert [neighbor["uri"] for neighbor in found["neighbors"]] == ["3.png"]
