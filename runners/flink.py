"""A Flink session cluster on this machine that runs Beam's Python pipelines.

``install HOME`` downloads Flink and the jars of Beam's job server for it; ``start HOME`` starts a job
manager, task managers, a pool of Python workers for each, and the job server, every one with a limit of
memory; ``stop HOME`` ends them. Needs Java and, to install, Maven and pip.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

FLINK_VERSION = "1.16.3"
HERE = Path(__file__).resolve().parent

REST_PORT = 8081
JOB_PORT = 8099
POOL_PORT = 50000
# Each task manager finds a pool of its own under this name, as on machines of its own it would on localhost.
POOL_HOST = "worker-pool"
_STARTED_SECONDS = 120

# Flink's own scripts limit a JVM by these; the job server and the Python workers are limited here.
JOB_MANAGER_MEMORY = "1g"
TASK_MANAGER_MEMORY = "3g"
JOB_SERVER_MEMORY = "512m"
WORKER_MEMORY = 3 << 30

# A task manager that dies leaves slots enough for all of a job at a parallelism of 4. Of a build's many
# exchanges each takes buffers of the network, more of them the higher the parallelism. Beam's classes are
# Flink's own, or else Beam would end a worker at each step. A restart must wait for longer than Beam keeps a
# worker, `--environment_cache_millis`, which may be the one that has died. What goes to workers takes memory
# off the heap, of which Flink gives tasks none by itself.
_CONFIG = f"""\
jobmanager.rpc.address: localhost
jobmanager.memory.process.size: {JOB_MANAGER_MEMORY}
taskmanager.memory.process.size: {TASK_MANAGER_MEMORY}
taskmanager.memory.task.off-heap.size: 512m
taskmanager.memory.network.min: 512m
taskmanager.memory.network.max: 512m
taskmanager.network.sort-shuffle.min-buffers: 64
taskmanager.numberOfTaskSlots: 4
cluster.evenly-spread-out-slots: true
classloader.resolve-order: parent-first
rest.address: localhost
rest.port: {REST_PORT}
jobmanager.execution.failover-strategy: full
restart-strategy: fixed-delay
restart-strategy.fixed-delay.attempts: 10
restart-strategy.fixed-delay.delay: 10 s
heartbeat.interval: 2000
heartbeat.timeout: 20000
"""

# What Flink of this version needs on Java 17, and later ones have in their configuration.
_OPENED = [
    "java.lang", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.text", "java.time",
    "java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks",
    "sun.nio.ch",
]  # fmt: skip
_JAVA_17 = [
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
]

_LOG4J = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss} %-5p %c{1} %m%n
"""


def install(home: Path) -> None:
    """Downloads to `home` what is not there yet."""
    flink, jars = home / "flink", home / "job-server"
    if not flink.exists():
        with tempfile.TemporaryDirectory(dir=home) as folder:
            package = f"apache-flink-libraries=={FLINK_VERSION}"
            download = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder, package]
            _download("Flink", [sys.executable, "-m", "pip", *download])
            (archive,) = Path(folder).glob("*.tar.gz")
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
            (deps,) = Path(folder).glob("*/deps")
            deps.rename(flink)
    if not jars.exists():
        partial = home / "job-server.partial"
        copy = ["dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
        pom = str(HERE / "pom.xml")
        _download("Beam's job server", ["mvn", "--quiet", "--batch-mode", "--file", pom, *copy])
        partial.rename(jars)


def _download(what: str, command: Sequence[str]) -> None:
    if code := subprocess.run(command).returncode:
        raise SystemExit(f"{what} was not to be had: {Path(command[0]).name} ended with exit status {code}")


def start(home: Path, task_managers: int) -> None:
    """Starts the cluster and waits until it takes jobs."""
    running = home / "running"
    if running.exists():
        raise SystemExit(f"{home}: a cluster runs, or was killed; stop it first")
    running.mkdir()
    conf = home / "conf"
    conf.mkdir(exist_ok=True)
    (conf / "flink-conf.yaml").write_text(_CONFIG)
    (conf / "log4j.properties").write_text(_LOG4J)
    entrypoint = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
    _launch(home, "jobmanager", _flink(home, "GET_JM_RESOURCE_PARAMS", entrypoint))
    cores = sorted(os.sched_getaffinity(0))
    for number in range(1, task_managers + 1):
        # Each gets its share of the cores, for several on one machine would each use all of them.
        share = ",".join(map(str, cores[number - 1 :: task_managers] or cores[:1]))
        address = f"127.0.0.{number}"
        launch_pool(home, number, share)
        hosts = conf / f"hosts-{number}"
        hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()}\n{address} {POOL_HOST}\n")
        launch_task_manager(home, number)
    jars = _class_path(home / "job-server")
    _launch(
        home, "jobserver",
        ["java", f"-Xmx{JOB_SERVER_MEMORY}", *_JAVA_17, "-cp", jars,
         "org.apache.beam.runners.flink.FlinkJobServerDriver", "--job-host=localhost",
         f"--flink-master=localhost:{REST_PORT}", f"--job-port={JOB_PORT}", "--artifact-port=0",
         "--expansion-port=0", f"--artifacts-dir={home}/artifacts"],
    )  # fmt: skip
    for port in (REST_PORT, JOB_PORT):
        _await(port)


def launch_task_manager(home: Path, number: int) -> None:
    """Starts the task manager `number`, from 1, whose workers come from the pool of the same number."""
    hosts = f"-Djdk.net.hosts.file={home}/conf/hosts-{number}"
    runner = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
    _launch(home, f"taskmanager-{number}", _flink(home, "GET_TM_RESOURCE_PARAMS", runner, hosts))


def launch_pool(home: Path, number: int, cores: str) -> None:
    """Starts the pool of Python workers `number`, from 1, on `cores`."""
    address = f"127.0.0.{number}:{POOL_PORT}"
    options = ["--memory", WORKER_MEMORY, "--cores", cores]
    _launch(home, f"pool-{number}", [sys.executable, HERE / "worker_pool.py", address, *options])
    _await(POOL_PORT, f"127.0.0.{number}")


def stop(home: Path) -> None:
    """Ends what `start` has started, with all that it has started in turn."""
    running = home / "running"
    for file in running.glob("*.pid"):
        # Each leads a group of its own, of which workers are members.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(file.read_text()), signal.SIGKILL)
    for folder in (running, home / "artifacts", home / "conf"):
        shutil.rmtree(folder, ignore_errors=True)


def _flink(home: Path, resources: str, program: str, *options: str) -> list[str]:
    """The command of one of Flink's processes, with the limits that Flink's own scripts ask it for."""
    conf = f"{home}/conf"
    libraries = f"{_class_path(home / 'flink' / 'lib')}:{_beam_jars(home)}"
    utils = f"{home}/flink/bin/bash-java-utils.jar:{libraries}"
    asked = ["org.apache.flink.runtime.util.bash.BashJavaUtils", resources, "--configDir", conf]
    done = subprocess.run(["java", "-cp", utils, *asked], check=True, capture_output=True, text=True)
    mark = "BASH_JAVA_UTILS_EXEC_RESULT:"
    # The JVM's limits, and the settings that say how much of them is for what.
    limits, settings = [line.partition(mark)[2] for line in done.stdout.splitlines() if mark in line]
    log = f"-Dlog4j.configurationFile={conf}/log4j.properties"
    java = ["java", *limits.split(), *_JAVA_17, log, *options, "-cp", libraries]
    return [*java, program, "--configDir", conf, *settings.split()]


def _class_path(folder: Path) -> str:
    return ":".join(map(str, sorted(folder.glob("*.jar"))))


def _beam_jars(home: Path) -> str:
    """Those of the job server's jars that Flink does not have itself."""
    jars = sorted((home / "job-server").glob("*.jar"))
    return ":".join(str(jar) for jar in jars if not jar.name.startswith(("flink-", "slf4j-")))


def _launch(home: Path, name: str, command: Sequence[object]) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (home / "running" / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip
    (home / "running" / f"{name}.pid").write_text(str(process.pid))


def _await(port: int, host: str = "localhost") -> None:
    until = time.monotonic() + _STARTED_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        if time.monotonic() > until:
            raise SystemExit(f"nothing listens on {host}:{port} after {_STARTED_SECONDS} s; see the logs")
        time.sleep(0.2)


def main() -> None:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=["install", "start", "stop"])
    parser.add_argument("home", type=Path, help="where everything lies: downloads, logs, what is running")
    parser.add_argument("--task_managers", type=int, default=2)
    arguments = parser.parse_args()
    home = arguments.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    if arguments.command == "install":
        install(home)
    elif arguments.command == "start":
        start(home, arguments.task_managers)
    else:
        stop(home)


if __name__ == "__main__":
    main()
