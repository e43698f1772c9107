"""Beam's local runner, with worker processes that are watched: if one ends or never starts, the job ends.

Beam by itself waits forever for such a worker. It also lets workers import what lies in the current
directory, so that a file random.py there keeps them from starting.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import grpc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    BeamFnControlServicer,
    GrpcWorkerHandler,
    WorkerHandler,
)
from google.protobuf import json_format, text_format

from imgindex.errors import WorkerError

_WATCHED = "imgindex:env:watched_process:v1"

# -P: nothing is imported from the current directory.
_COMMAND = (sys.executable, "-P", "-m", "apache_beam.runners.worker.sdk_worker_main")

# Seconds that a worker may take to connect, and to end once its job has.
_START_LIMIT, _END_LIMIT = 120, 10


class LocalRunner(FnApiRunner):  # type: ignore[misc]
    """Runs a pipeline in this process, or in processes of this machine."""

    def run_via_runner_api(self, pipeline_proto: Any, options: PipelineOptions) -> Any:
        """Runs a pipeline. Raises WorkerError where a worker's process has ended."""
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                environment.urn = _WATCHED
        _WatchedWorker.complaints.clear()
        try:
            with _broken_connections_untold():
                return super().run_via_runner_api(pipeline_proto, options)
        except Exception as error:
            if _WatchedWorker.complaints:
                raise WorkerError(_WatchedWorker.complaints[0]) from error
            raise


@contextlib.contextmanager
def _broken_connections_untold() -> Iterator[None]:
    """Keeps threads quiet that had spoken with a worker: the job says why it ended."""
    before = threading.excepthook

    def tell(thread: threading.ExceptHookArgs) -> None:
        if not issubclass(thread.exc_type, grpc.RpcError):
            before(thread)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


@WorkerHandler.register_environment(_WATCHED, bytes)
class _WatchedWorker(GrpcWorkerHandler):  # type: ignore[misc]
    """A worker's process. Once it has ended, every request to it is answered with an error."""

    complaints: ClassVar[list[str]] = []  # why workers of this process's job have ended

    def __init__(self, command: bytes, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._job_ended = threading.Event()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115, stop_worker closes it

    def start_worker(self) -> None:
        options = self.provision_info.provision_info.pipeline_options
        environment = {
            **os.environ,
            "WORKER_ID": self.worker_id,
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                self.control_api_service_descriptor()
            ),
            "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                self.logging_api_service_descriptor()
            ),
            "PIPELINE_OPTIONS": json_format.MessageToJson(options),
        }
        try:
            self._process = subprocess.Popen(
                _COMMAND, env=environment, stdout=self._output, stderr=self._output
            )
        except OSError as error:
            raise WorkerError(f"cannot start a worker process: {error.strerror}") from error
        threading.Thread(target=self._watch, name="watch_worker", daemon=True).start()

    def _watch(self) -> None:
        try:
            self._process.wait(_START_LIMIT)
        except subprocess.TimeoutExpired:
            if self.control_conn._state == BeamFnControlServicer.UNSTARTED_STATE:
                self.complaints.append(
                    f"a worker process has not connected to the build within {_START_LIMIT} seconds"
                )
                self._process.kill()
            self._process.wait()
        # Again and again, for a request may be on its way.
        while not self._job_ended.wait(0.5):
            for instruction, future in list(self.control_conn._futures_by_id.items()):
                future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=instruction, error="it ended"))

    def close(self) -> None:
        for connection in (self.control_conn, self.data_conn):
            with contextlib.suppress(grpc.RpcError):  # it broke when the worker ended
                connection.close()
        self.stop_worker()

    def stop_worker(self) -> None:
        self._job_ended.set()
        try:
            code = self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = 0
        with self._output:
            if code:
                self.complaints.append(self._complaint(code))

    def _complaint(self, code: int) -> str:
        if code == -signal.SIGKILL:
            return (
                "a worker process was killed, as Linux does where memory runs out; run fewer workers at once"
            )
        if code < 0:
            return f"a worker process ended with {signal.Signals(-code).name}"
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it says nothing")
        return f"a worker process ended with exit code {code}: {last}"
