"""Beam's pool of Python workers for Flink's task managers, on one address instead of on all.

A task manager numbers its workers from 1, so that two of them on one machine need a pool each, as two
machines have. Like Beam's own, it starts every worker as a process; they have this one's environment, such as
``AWS_ACCESS_KEY_ID``, its cores and its limit of memory.
"""

import argparse
import logging
import os
import resource

import grpc
from apache_beam.portability.api import beam_fn_api_pb2_grpc
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="host:port to listen on")
    parser.add_argument("--memory", type=int, required=True, help="bytes that each process may allocate")
    parser.add_argument("--cores", help="such as 0,1; all that there are where it is not given")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (arguments.memory, most))
    if arguments.cores:
        os.sched_setaffinity(0, map(int, arguments.cores.split(",")))
    server = grpc.server(shared_unbounded_instance(), options=[("grpc.so_reuseport", 0)])
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(
        BeamFnExternalWorkerPoolServicer(use_process=True), server
    )
    server.add_insecure_port(arguments.address)
    server.start()
    logging.info("listening on %s", arguments.address)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
