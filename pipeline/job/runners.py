"""Which of Beam's runners runs a build, and how many cores each of its workers takes."""

import atexit
import os
from typing import Any

from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
    StandardOptions,
)
from apache_beam.runners.portability.flink_runner import FlinkJarJobServer, FlinkRunner
from apache_beam.runners.portability.job_server import JobServer
from apache_beam.runners.portability.prism_runner import PrismJobServer, PrismRunner
from apache_beam.runners.runner import PipelineRunner, create_runner

from imgindex.job.worker_processes import LocalRunner
from imgindex.runtime.resources import available_cores

# Dataflow's experiment for one Python process on a machine, whose threads share what is loaded.
_ONE_PROCESS = "no_use_multiple_sdk_containers"

# Where gRPC looks, before no_proxy, for the hosts that it reaches without a proxy.
_SPARED = "no_grpc_proxy"


def new_runner(options: PipelineOptions) -> PipelineRunner:
    """The runner that `options` name; without one, and for DirectRunner, one in this process.

    Raises ValueError and ImportError where Beam has no such runner.
    """
    _reach_this_machine_directly()
    name = _name_of(options)
    if name in ("", "direct"):
        # Which of the local runners Beam chooses depends on what it can download.
        return LocalRunner()
    own = {"prism": _Prism, "flink": _Flink, "fnapi": LocalRunner}.get(name)
    return own() if own else create_runner(options.view_as(StandardOptions).runner)


def _reach_this_machine_directly() -> None:
    """Has gRPC, by which a job and its workers speak, ask no proxy for this machine's own ports."""
    spared = os.environ.get(_SPARED) or os.environ.get("no_proxy") or ""
    if "localhost" not in spared.split(","):
        os.environ[_SPARED] = ",".join(filter(None, [spared, "localhost", "127.0.0.1", "::1"]))


def worker_threads(options: PipelineOptions) -> int | None:
    """The cores of a worker: a share where a machine runs several, None for all that it finds."""
    name = _name_of(options)
    if name == "dataflow":
        # It starts a process, and so a worker, on each core of a machine.
        return None if options.view_as(DebugOptions).lookup_experiment(_ONE_PROCESS) else 1
    if int(options.view_as(PortableOptions).sdk_worker_parallelism) != 1:
        return 1  # so do others, where they are asked for several
    direct = options.view_as(DirectOptions)
    if name in ("", "direct", "fnapi") and direct.direct_running_mode == "multi_processing":
        return max(1, available_cores() // (direct.direct_num_workers or available_cores()))
    return None  # the workers of one process share one engine


def outlives(options: PipelineOptions) -> bool:
    """Whether a job goes on when the process ends that has submitted it."""
    return _name_of(options) == "dataflow" or bool(options.view_as(PortableOptions).job_endpoint)


def may_outlive(options: PipelineOptions) -> bool:
    """Whether a job may go on when the process that has submitted it is killed."""
    return outlives(options) or _name_of(options) in ("flink", "spark", "portable")


def _name_of(options: PipelineOptions) -> str:
    """The runner's name as in ``--runner=Flink``; nothing where none is given."""
    runner = options.view_as(StandardOptions).runner or ""
    return runner.rpartition(".")[2].lower().removesuffix("runner")


class _StoppedAtExit(JobServer):  # type: ignore[misc]
    """A process that takes jobs, started once and stopped with this one.

    Beam's own wrapper handles SIGINT besides, for which it must run in the main thread. A command's work does
    not; at a signal the command ends all its processes itself.
    """

    def __init__(self, server: JobServer) -> None:
        self._server = server
        self._stub: Any = None

    def start(self) -> Any:
        if self._stub is None:
            self._stub = self._server.start()
            atexit.register(self._server.stop)
        return self._stub


class _Prism(PrismRunner):  # type: ignore[misc]
    def default_job_server(self, options: PipelineOptions) -> JobServer:
        # Beam shares one with all that asks for Prism in a process, which need not have the same location.
        location = options.view_as(PrismRunnerOptions).prism_location
        return self.shared_handle.acquire(lambda: _StoppedAtExit(PrismJobServer(options)), tag=location)


class _Flink(FlinkRunner):  # type: ignore[misc]
    def default_job_server(self, options: PipelineOptions) -> JobServer:
        flink = options.view_as(FlinkRunnerOptions)
        if flink.flink_submit_uber_jar:
            return super().default_job_server(options)
        flink.flink_master = self.add_http_scheme(flink.flink_master)
        return _StoppedAtExit(FlinkJarJobServer(options))
