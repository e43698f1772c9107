"""What Dataflow's template launcher runs: ``imgindex build`` with the template's parameters.

The launcher gives each parameter once, as ``--name=value``. Those that the command takes several times hold
all their values, separated as in a shell: ``--set=pca.dims=64 index.trees=60``.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence

from imgindex.cli import main

# Two bundles at once in one process, so that the next one begins while the last batches of the one before are
# in the engine. What the launcher passes comes later and overrides it.
_DEFAULTS = ("--experiments=no_use_multiple_sdk_containers", "--number_of_worker_harness_threads=2")
_REPEATED = ("--set", "--force")


def build_arguments(parameters: Sequence[str]) -> Iterator[str]:
    """The arguments of ``imgindex`` for a template's parameters; an empty one was not filled in."""
    yield from ("build", "--verbose", *_DEFAULTS)
    for parameter in parameters:
        name, has_value, value = parameter.partition("=")
        if name in _REPEATED:
            yield from (f"{name}={each}" for each in shlex.split(value))
        elif value or not has_value:
            yield parameter


if __name__ == "__main__":
    sys.exit(main(list(build_arguments(sys.argv[1:]))))
