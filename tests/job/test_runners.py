"""Which runner a build gets, and how many cores its workers take."""

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.flink_runner import FlinkRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.portability.prism_runner import PrismRunner

from imgindex.job import runners
from imgindex.job.runners import new_runner, worker_threads


@pytest.mark.parametrize(
    ("flags", "runner"),
    [
        ([], FnApiRunner),
        (["--runner=DirectRunner"], FnApiRunner),
        (["--runner=direct"], FnApiRunner),
        (["--runner=PrismRunner"], PrismRunner),
        (["--runner=apache_beam.runners.portability.prism_runner.PrismRunner"], PrismRunner),
        (["--runner=Flink"], FlinkRunner),
        (["--runner=PortableRunner"], PortableRunner),
    ],
)
def test_flags_name_the_runner(flags, runner):
    assert isinstance(new_runner(PipelineOptions(flags)), runner)


@pytest.mark.parametrize(
    ("flags", "threads"),
    [
        ([], None),
        (["--runner=PrismRunner"], None),
        (["--runner=FlinkRunner"], None),
        (["--runner=FlinkRunner", "--sdk_worker_parallelism=4"], 1),
        (["--runner=PortableRunner", "--sdk_worker_parallelism=0"], 1),
        (["--runner=Dataflow"], 1),
        (["--runner=DataflowRunner", "--experiments=no_use_multiple_sdk_containers"], None),
        (["--direct_num_workers=3"], None),
        (["--direct_num_workers=3", "--direct_running_mode=multi_processing"], 2),
        (["--direct_num_workers=0", "--direct_running_mode=multi_processing"], 1),
        (["--direct_num_workers=16", "--direct_running_mode=multi_processing"], 1),
        # It is not what Prism runs its workers by.
        (["--runner=PrismRunner", "--direct_num_workers=4", "--direct_running_mode=multi_processing"], None),
    ],
)
def test_workers_do_not_take_more_cores_than_there_are(flags, threads, monkeypatch):
    monkeypatch.setattr(runners, "available_cores", lambda: 6)
    assert worker_threads(PipelineOptions(flags)) == threads


def test_each_location_of_prism_has_its_own_server():
    # Beam's local runner looks for a Prism too, and a process keeps what it found, or did not find.
    def server(runner, *flags):
        return runner.default_job_server(PipelineOptions(list(flags)))

    found = server(PrismRunner())
    own = new_runner(PipelineOptions(["--runner=PrismRunner"]))
    first = server(own, "--prism_location=/opt/prism")
    assert first is not found
    assert server(own, "--prism_location=/opt/prism") is first
    assert server(own, "--prism_location=/usr/bin/prism") is not first
