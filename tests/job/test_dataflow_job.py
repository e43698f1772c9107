"""The job as Dataflow would get it, made offline by Beam's own client, and its graph, run by a local worker.

These need the extra ``dataflow``: ``make test-dataflow`` installs it and runs them.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2 as proto
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import EmbeddedPythonEnvironment
from PIL import Image

from imgindex import Index, build, submit
from imgindex.config import load_config, parse_config
from imgindex.job import launch
from imgindex.models.engines.protocol import EngineChoice

pytestmark = pytest.mark.dataflow

ROOT = Path(__file__).parents[2]
IMAGE = "us-docker.pkg.dev/some-project/repository/imgindex:0.1.0"
SETTINGS = {
    "backbone.name": "MobileNetV2",
    "backbone.weights": "bundled",
    "backbone.image_size": 32,
    "engine.precision": "float32",
    "publish.max_failure_rate": 0.5,
}
FLAGS = [
    "--runner=DataflowRunner",
    "--project=some-project",
    "--region=us-central1",
    "--job_name=imgindex",
    "--temp_location=gs://some-bucket/tmp",
    f"--sdk_container_image={IMAGE}",
    "--worker_machine_type=n4-standard-8",
]
DEFAULT_EXPERIMENTS = ["--experiments=no_use_multiple_sdk_containers", "--number_of_worker_harness_threads=2"]

GROUP = common_urns.primitives.GROUP_BY_KEY.urn
PARDO = common_urns.primitives.PAR_DO.urn
KEY_CODERS = {common_urns.coders.VARINT.urn, common_urns.coders.STRING_UTF8.urn}
MANY_SHARDS = 400  # of 250,000 images: a hundred million
LARGEST_PAYLOAD = 100 * 1024  # bytes; a whole job request may have 20 MB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with ``photos`` and an ``index`` of most of them, so that the next build is a refresh."""
    folder = tmp_path_factory.mktemp("dataflow")
    (folder / "photos").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number:02}.png")
    build(config_of(folder))
    for number in range(3):
        (folder / "photos" / f"{number:02}.png").unlink()
        Image.new("RGB", (30, 30), (90 * number, 7, 7)).save(folder / "photos" / f"new{number}.png")
    return folder


def config_of(folder, output="index"):
    sections = {"input": f"{folder}/photos", "output": f"{folder}/{output}"}
    for key, value in SETTINGS.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return parse_config(sections)


class Jobs(list):
    """The jobs that DataflowRunner has made."""

    def submit(self, config, flags=(*FLAGS, *DEFAULT_EXPERIMENTS)):
        options = PipelineOptions(list(flags))
        options.view_as(
            pipeline_options.TestOptions
        ).dry_run = True  # Beam's own: makes the job and does not send it
        submit(config, options)
        return self[-1]


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def jobs(module_patch):
    made = Jobs()
    run = DataflowRunner.run_pipeline

    def recorded(runner, pipeline, options, *rest):
        result = run(runner, pipeline, options, *rest)
        made.append(result.job)
        return result

    module_patch.setattr(DataflowRunner, "run_pipeline", recorded)
    return made


@pytest.fixture(scope="module", params=["first build", "refresh"])
def job(request, jobs, folder):
    """A job; the refresh is one of an index of very many shards."""
    if request.param == "first build":
        return jobs.submit(config_of(folder, "new"))
    make_plan = launch.make_plan

    def with_many_shards(*arguments):
        plan = make_plan(*arguments)
        (shard,) = plan.previous.metadata
        return replace(plan, previous=replace(plan.previous, metadata=(shard,) * MANY_SHARDS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "make_plan", with_many_shards)
        return jobs.submit(config_of(folder))


@pytest.fixture(scope="module")
def components(job):
    return job.proto_pipeline.components


def test_step_names_are_unique_and_always_the_same(jobs, folder):
    names = []
    for _ in range(2):
        transforms = jobs.submit(config_of(folder)).proto_pipeline.components.transforms.values()
        names.append(sorted(transform.unique_name for transform in transforms))
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0])


def test_keys_are_numbers_or_strings(components):
    names = {transform.unique_name for transform in components.transforms.values()}
    keys = {}
    for transform in components.transforms.values():
        if transform.spec.urn == GROUP:
            (collection,) = transform.inputs.values()
            coder = components.coders[components.pcollections[collection].coder_id]
            assert coder.spec.urn == common_urns.coders.KV.urn
            keys[transform.unique_name] = components.coders[coder.component_coder_ids[0]].spec.urn
    # A global sum has but one key, None, for which Beam has no coder of its own.
    sums = {name for name in keys if name.removesuffix("/CombinePerKey/GroupByKey") + "/KeyWithVoid" in names}
    assert len(keys.keys() - sums) >= 5
    for name in keys.keys() - sums:
        assert keys[name] in KEY_CODERS, name


def test_all_collections_are_bounded(components):
    assert all(
        collection.is_bounded == proto.IsBounded.BOUNDED for collection in components.pcollections.values()
    )


def test_side_inputs_are_of_kinds_that_dataflow_knows(components):
    patterns = [
        side_input.access_pattern.urn
        for transform in components.transforms.values()
        if transform.spec.urn == PARDO
        for side_input in proto.ParDoPayload.FromString(transform.spec.payload).side_inputs.values()
    ]
    assert patterns
    assert set(patterns) <= {common_urns.side_inputs.ITERABLE.urn, common_urns.side_inputs.MULTIMAP.urn}


def test_no_step_carries_much(components, job):
    sizes = {
        transform.unique_name: len(transform.spec.payload) for transform in components.transforms.values()
    }
    assert max(sizes.values()) < LARGEST_PAYLOAD, max(sizes, key=sizes.get)
    assert job.proto_pipeline.ByteSize() < 10 * LARGEST_PAYLOAD


def test_workers_start_from_the_image_and_install_nothing(components):
    images = set()
    for environment in components.environments.values():
        assert environment.urn == common_urns.environments.DOCKER.urn
        images.add(proto.DockerPayload.FromString(environment.payload).container_image)
        staged = {
            proto.ArtifactStagingToRolePayload.FromString(artifact.role_payload).staged_name
            for artifact in environment.dependencies
        }
        # What the launcher had installed, for people to look at; no packages, and no __main__.
        assert staged <= {"submission_environment_dependencies.txt"}
    assert images == {IMAGE}


def test_a_process_on_each_core_gets_an_engine_of_one_thread(jobs, folder, monkeypatch):
    plans = []
    make_plan = launch.make_plan
    monkeypatch.setattr(launch, "make_plan", lambda *a: plans.append(make_plan(*a)) or plans[-1])
    jobs.submit(config_of(folder), FLAGS)
    jobs.submit(config_of(folder))
    assert [plan.threads for plan in plans] == [1, None]


def test_the_client_understands_the_metadata():
    from google.cloud.dataflow_v1beta3 import TemplateMetadata
    from google.protobuf.json_format import ParseDict

    metadata = json.loads((ROOT / "dataflow" / "metadata.json").read_text())
    parsed = ParseDict(metadata, TemplateMetadata.pb()())  # which refuses keys that it does not know
    assert [parameter.help_text for parameter in parsed.parameters] == [
        parameter["helpText"] for parameter in metadata["parameters"]
    ]


def run(*command, **options):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def launched(folder):
    """What the template's launcher gets from ``main.py``: the job, and the staged files."""
    target = folder / "launched"
    (target / "staging").mkdir(parents=True)
    printed = run(
        str(ROOT / "dataflow" / "main.py"),
        f"--input={folder}/photos",
        f"--output={folder}/index",
        "--set=" + " ".join(f"{key}={value}" for key, value in SETTINGS.items()),
        *FLAGS,
        f"--template_location={target}/job_object",
        f"--staging_location={target}/staging",
        "--dataflow_endpoint=http://localhost:1",  # where nobody listens
        "--no_auth",
        cwd=target,
    )
    assert re.search(r"submitted: \S+ goes live", printed)
    return target


def test_the_template_launches_a_batch_job_of_these_workers(launched):
    job = json.loads((launched / "job_object").read_text())
    assert (job["name"], job["type"]) == ("imgindex", "JOB_TYPE_BATCH")
    environment = job["environment"]
    assert {"use_runner_v2", "no_use_multiple_sdk_containers"} <= set(environment["experiments"])
    assert "use_multiple_sdk_containers" not in environment["experiments"]
    (pool,) = environment["workerPools"]
    assert pool["machineType"] == "n4-standard-8"
    assert pool["numThreadsPerWorker"] == 2
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [IMAGE]
    assert environment["sdkPipelineOptions"]["options"]["save_main_session"] is False


LOAD_ALL = """
import base64, bz2, sys
from apache_beam.internal import pickler
from apache_beam.portability.api import beam_runner_api_pb2 as proto

pipeline = proto.Pipeline.FromString(open(sys.argv[1], "rb").read())
pickler.set_library("cloudpickle")
loaded = 0
for transform in pipeline.components.transforms.values():
    if transform.spec.urn == "beam:transform:pardo:v1":
        do_fn = proto.ParDoPayload.FromString(transform.spec.payload).do_fn
        if do_fn.urn == "beam:dofn:pickled_python_info:v1":
            assert b"__main__" not in bz2.decompress(base64.b64decode(do_fn.payload)), transform.unique_name
            pickler.loads(do_fn.payload)
            loaded += 1
print(loaded)
"""


def test_a_worker_can_load_every_step_and_has_no_need_of_main(launched, tmp_path):
    assert int(run("-c", LOAD_ALL, str(launched / "staging" / "pipeline.pb"), cwd=tmp_path)) >= 30


def test_the_launched_graph_makes_the_index(launched, folder):
    pipeline = proto.Pipeline.FromString((launched / "staging" / "pipeline.pb").read_bytes())
    for environment in pipeline.components.environments.values():
        environment.CopyFrom(EmbeddedPythonEnvironment.default().to_runner_api(None))
    before = Index.open(f"{folder}/index").manifest["generation"]
    FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([])).wait_until_finish()
    manifest = Index.open(f"{folder}/index").manifest
    assert manifest["previous"] == before
    assert {key: manifest["ledger"][key] for key in ("indexed", "added", "removed", "unchanged")} == {
        "indexed": 12, "added": 3, "removed": 3, "unchanged": 9,
    }  # fmt: skip


def test_setup_file_stages_the_whole_package(folder, tmp_path):
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    source = tmp_path / "source"
    for name in filter(None, tracked):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    staging = tmp_path / "staging"
    staging.mkdir()
    arguments = ["-m", "imgindex", "build", f"--input={folder}/photos", f"--output={tmp_path}/index"]
    arguments += [f"--set={key}={value}" for key, value in SETTINGS.items()]
    run(
        *arguments,
        *FLAGS,
        "--setup_file=./setup.py",
        f"--template_location={tmp_path}/job_object",
        f"--staging_location={staging}",
        "--dataflow_endpoint=http://localhost:1",
        "--no_auth",
        cwd=source,
    )
    with tarfile.open(staging / "workflow.tar.gz") as archive:
        staged = {name.partition("/")[2] for name in archive.getnames()}
    package = {name for name in tracked if re.match(r"(pipeline|models)/", name)}
    assert package <= staged
    assert {"setup.py", "pyproject.toml"} <= staged


def dockerfile_arguments():
    text = (ROOT / "dataflow" / "Dockerfile").read_text()
    return dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.M))


def test_the_image_has_the_beam_that_these_tests_ran_with():
    import apache_beam

    assert apache_beam.version.__version__ == dockerfile_arguments()["BEAM_VERSION"]


def test_the_warmed_cache_spares_workers_keras_and_tensorflow(tmp_path):
    config = ROOT / "pipeline" / "configs" / "local.yaml"  # its weights are in the package
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    run(str(ROOT / "dataflow" / "warm_cache.py"), str(config), env=environment)
    backbone = load_config(config).backbone
    choice = EngineChoice(**asdict(backbone), engine="openvino", precision="float32", batch_size=1)
    code = (
        "from imgindex.models.engines.loading import load_engine;"
        f"from imgindex.models.engines.protocol import EngineChoice; load_engine({choice!r}, 1)"
    )
    loaded = run("-c", f"{code}; import sys; print(*sys.modules)", env=environment).split()
    assert "openvino" in loaded
    assert not {"keras", "tensorflow"} & set(loaded)


ASK = """
import random, annoy
index = annoy.AnnoyIndex(40, "angular")
generator = random.Random(1)
for item in range(300):
    index.add_item(item, [generator.gauss(0, 1) for _ in range(40)])
index.build(10, n_jobs=1)
print(annoy.__file__, len(set(index.get_nns_by_item(7, 10))))
"""


def test_the_images_annoy_needs_no_avx512(tmp_path):
    """Compiles it as the image does. Where the machine has AVX-512, Annoy's own flags would use it."""
    arguments = dockerfile_arguments()
    run(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-cache-dir", "--no-binary", "annoy",
        "--target", str(tmp_path), f"annoy=={arguments['ANNOY_VERSION']}",
        env={**os.environ, "ANNOY_COMPILER_ARGS": arguments["ANNOY_COMPILER_ARGS"]},
    )  # fmt: skip
    (library,) = tmp_path.glob("annoy/annoylib*.so")
    code = subprocess.run(["objdump", "-d", library], check=True, capture_output=True, text=True).stdout
    assert "%ymm" in code  # AVX
    # Of AVX-512: its wide and its further registers, and its masks.
    assert not re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b", code)
    used, neighbors = run("-c", ASK, env={"PYTHONPATH": str(tmp_path)}).split()
    assert Path(used).is_relative_to(tmp_path)
    assert neighbors == "10"
