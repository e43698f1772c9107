"""What is ready for Dataflow: image, template, commands. Of the job itself see test_dataflow_job.py."""

import json
import re
import runpy
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from imgindex.cli import main
from imgindex.config import IndexConfig, load_config
from imgindex.job import launch

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "dataflow" / "Dockerfile").read_text()
ARGUMENTS = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.M))
METADATA = json.loads((ROOT / "dataflow" / "metadata.json").read_text())
PARAMETERS = {parameter["name"]: parameter for parameter in METADATA["parameters"]}
FLAGS = ["--runner=DataflowRunner", "--project=some-project", "--region=us-central1"]


class Launched(Exception):  # noqa: N818
    """Instead of a build: what it was called with."""


@pytest.fixture
def launched(monkeypatch):
    """Calls the command and gives the config, Beam's options and the checks that it would build with."""

    def stop(config, options, force, retry_failed, rehash):
        raise Launched(config, options, force)

    monkeypatch.setattr(launch, "refresh", stop)
    monkeypatch.setattr(launch, "submit", stop)

    def call(arguments):
        with pytest.raises(Launched) as caught:
            main(arguments)
        config, options, force = caught.value.args
        return config, options.get_all_options(), force

    return call


def build_arguments(*parameters):
    return list(runpy.run_path(str(ROOT / "dataflow" / "main.py"))["build_arguments"](parameters))


def specifiers(name):
    requirements = map(Requirement, PROJECT["dependencies"])
    return next(requirement.specifier for requirement in requirements if requirement.name == name)


def test_the_image_has_versions_that_the_package_allows():
    assert ARGUMENTS["BEAM_VERSION"] in specifiers("apache-beam")
    assert ARGUMENTS["ANNOY_VERSION"] in specifiers("annoy")
    assert ARGUMENTS["PYTHON_VERSION"] in SpecifierSet(PROJECT["requires-python"])
    assert f"Programming Language :: Python :: {ARGUMENTS['PYTHON_VERSION']}" in PROJECT["classifiers"]


def test_the_image_takes_its_versions_from_its_arguments():
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert images[-1] == "apache/beam_python${PYTHON_VERSION}_sdk:${BEAM_VERSION}"
    assert '"apache-beam==${BEAM_VERSION}"' in DOCKERFILE  # or pip might take a newer one
    assert re.findall(r"\b\d+\.\d+\.\d+\b", DOCKERFILE) == [
        ARGUMENTS["BEAM_VERSION"],
        ARGUMENTS["ANNOY_VERSION"],
    ]


def test_the_image_installs_extras_that_there_are():
    documented = re.findall(r"EXTRAS=([\w,]+)", (ROOT / "docs" / "dataflow.md").read_text())
    for extras in [ARGUMENTS["EXTRAS"], *documented]:
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert any("gpu" in extras for extras in documented)


def test_the_image_copies_what_there_is_and_what_docker_is_given():
    ignored, *patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert ignored == "*"
    allowed = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
    names = [name for line in copied for name in line.split()]
    assert {"pyproject.toml", "pipeline", "models", "dataflow/main.py"} <= set(names)
    for name in names:
        assert (ROOT / name).exists(), name
        assert any(fnmatch(name, pattern) or name.startswith(f"{pattern}/") for pattern in allowed), name


def test_annoy_is_compiled_for_any_worker():
    flags = ARGUMENTS["ANNOY_COMPILER_ARGS"].split(",")
    assert [flag for flag in flags if flag.startswith(("-march", "-mcpu", "-mtune"))] == ["-march=x86-64-v3"]
    # Without it Annoy builds with another class of locks and seeds than its own setup.py chooses.
    assert "-DANNOYLIB_MULTITHREADED_BUILD" in flags


def test_the_template_describes_its_parameters():
    assert set(METADATA) == {"name", "description", "parameters"}
    assert len(PARAMETERS) == len(METADATA["parameters"])
    for name, parameter in PARAMETERS.items():
        assert set(parameter) <= {"name", "label", "helpText", "isOptional", "regexes"}
        assert re.fullmatch(r"[a-z][a-z_]*", name)
        assert parameter["label"].strip()
        assert parameter["helpText"].strip()
        for regex in parameter["regexes"]:
            assert re.fullmatch(r"\^.*\$", regex)  # the whole value
            assert not re.search(r"\\[a-mo-qs-zA-Z]|\(\?", regex)  # what every dialect knows
            re.compile(regex)
    required = {name for name, parameter in PARAMETERS.items() if not parameter.get("isOptional")}
    assert required == {"input", "output", "sdk_container_image"}


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("input", ["gs://bucket/images", "gs://bucket/*/a b.jpg"], ["photos", "", "gs://", "gs://b\nc"]),
        ("output", ["gs://bucket/index"], ["/index", "s3://bucket/index"]),
        ("config", ["gs://b/c.yaml", "/opt/imgindex/configs/dataflow.yaml"], ["c.yaml", "http://b/c.yaml"]),
        ("set", ["pca.dims=64", "pca.dims=64 'images.extensions=[.jpg, .png]'"], ["pca.dims", ""]),
        ("force", ["max_shrink", "max_shrink ledger"], ["max_shrink,ledger", "--force"]),
        (
            "sdk_container_image",
            ["us-docker.pkg.dev/p/r/imgindex:0.1.0", f"gcr.io/p/i@sha256:{'0' * 64}", "localhost:5000/i:1"],
            ["imgindex", "https://gcr.io/p/i:1"],
        ),
        (
            "dataflow_service_options",
            ["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver", "a,b=c"],
            [""],
        ),
    ],
)
def test_the_template_accepts_what_is_right_and_refuses_what_is_not(name, accepted, refused):
    (regex,) = PARAMETERS[name]["regexes"]
    examples = PARAMETERS[name]["helpText"].partition("For example: ")[2]
    for value in [*accepted, *filter(None, examples.split(" or "))]:
        assert re.search(regex, value), value
    for value in refused:
        assert not re.search(regex, value), value


def test_what_the_template_launches_is_the_build_that_its_parameters_say(launched, tmp_path):
    (tmp_path / "config.yaml").write_text("pca: {dims: 32}\nindex: {trees: 7, metric: euclidean}\n")
    parameters = [
        "--input=gs://bucket/images",
        "--output=gs://bucket/index",
        f"--config={tmp_path}/config.yaml",
        "--set=pca.dims=64 'images.extensions=[.jpg, .png]' backbone.weights=none",
        "--force=max_shrink ledger",
        "--sdk_container_image=us-docker.pkg.dev/p/r/imgindex:1",
        "--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver",
        *FLAGS,
        "--job_name=imgindex",
        "--temp_location=gs://bucket/tmp",
        "--template_location=gs://bucket/staging/job_object",
        "--experiments=use_network_tags=a",
        '--labels={"goog-dataflow-provided-template-type": "flex"}',
        "--no_use_public_ips",
    ]
    config, options, force = launched(build_arguments(*parameters))
    assert (config.input, config.output) == ("gs://bucket/images", "gs://bucket/index")
    assert config.pca.dims == 64
    assert config.images.extensions == (".jpg", ".png")
    assert config.backbone.weights == "none"
    assert config.index == IndexConfig(trees=7, metric="euclidean")
    assert force == ["max_shrink", "ledger"]
    assert options["sdk_container_image"] == "us-docker.pkg.dev/p/r/imgindex:1"
    assert options["dataflow_service_options"] == [
        "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
    ]
    assert options["experiments"] == ["no_use_multiple_sdk_containers", "use_network_tags=a"]
    assert options["number_of_worker_harness_threads"] == 2
    assert options["use_public_ips"] is False


def test_parameters_that_are_not_filled_in_change_nothing(launched):
    parameters = ["--input=gs://b/in", "--output=gs://b/out", "--config=", "--set=", "--force=", *FLAGS]
    config, _, force = launched(build_arguments(*parameters))
    assert config == load_config(None, []).__class__(input="gs://b/in", output="gs://b/out")
    assert force == []


def test_a_launch_can_ask_for_other_threads(launched):
    parameters = ["--input=gs://b/in", "--output=gs://b/out", "--number_of_worker_harness_threads=5", *FLAGS]
    assert launched(build_arguments(*parameters))[1]["number_of_worker_harness_threads"] == 5


def commands(text):
    """The ``imgindex build`` commands of shell blocks or YAML comments, each on one line."""
    lines = re.sub(r"\\\n *#? *", "", re.sub(r"^# *", "", text, flags=re.M))
    return [line.strip() for line in lines.splitlines() if line.strip().startswith("imgindex build")]


COMMANDS = {
    path.name: commands(path.read_text())
    for path in [ROOT / "docs" / "dataflow.md", *(ROOT / "pipeline" / "configs").glob("dataflow*.yaml")]
}


@pytest.mark.parametrize("command", [command for found in COMMANDS.values() for command in found])
def test_the_documented_commands_are_understood(command, launched, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, options, _ = launched(shlex.split(command)[1:])
    assert options["runner"] == "DataflowRunner"
    assert options["sdk_container_image"] or options["setup_file"]
    assert config.input.startswith("gs://")
    assert config.engine.name != "auto"  # which would ask the machine that submits the job
    assert config.engine.precision != "auto"
    assert options["experiments"] == ["no_use_multiple_sdk_containers"]


def test_every_place_has_its_commands():
    assert all(COMMANDS.values())
    assert len(COMMANDS) == 3


def test_a_config_is_read_from_any_filesystem(memory, launched):
    memory["mem://bucket/c.yaml"] = b"pca: {dims: 5}", 1.0
    arguments = ["build", "--input=i", "--output=o", "--config=mem://bucket/c.yaml"]
    assert launched(arguments)[0].pca.dims == 5
