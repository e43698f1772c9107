"""Whether this machine can build an index: every check, none of which can end the rest."""

from collections.abc import Callable, Iterator

from imgindex.commands.doctor.annoy import check_annoy
from imgindex.commands.doctor.engine import check_cache, check_engine, check_gpu
from imgindex.commands.doctor.findings import Finding
from imgindex.commands.doctor.machine import check_cores, check_formats, check_libraries, check_memory
from imgindex.commands.doctor.output import check_output
from imgindex.errors import foreseen

_MACHINE: dict[str, Callable[[], Finding]] = {
    "libraries": check_libraries,
    "annoy": check_annoy,
    "engine": check_engine,
    "gpu": check_gpu,
    "cache": check_cache,
    "formats": check_formats,
    "cores": check_cores,
    "memory": check_memory,
}


def examine(output: str | None = None) -> Iterator[Finding]:
    """Checks the machine, and the filesystem of `output`, by default that of the current directory."""
    for name, check in _MACHINE.items():
        try:
            yield check()
        except Exception as error:
            yield _failed(name, error)
    try:
        yield from check_output(output)
    except Exception as error:
        yield _failed("output", error)


def _failed(name: str, error: Exception) -> Finding:
    told = foreseen(error)
    if told is not None:
        return Finding("problem", name, str(told))
    # Of libraries that are installed by halves, above all.
    found = f"{type(error).__name__}: {error}"
    return Finding("problem", name, found, "reinstall what it names, or report it")


def describe(finding: Finding) -> str:
    """A finding in one line."""
    advice = f"; {finding.advice}" if finding.advice else ""
    return f"{finding.level:<8} {finding.check:<10} {finding.found}{advice}"
