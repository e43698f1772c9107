"""Makes an older generation the live one."""

from functools import partial

from imgindex.errors import DamagedError, OutputError, UsageError
from imgindex.generations.layout import (
    Output,
    generation_names,
    live_name,
    make_current,
    note_if_live,
    read_manifest,
)
from imgindex.generations.verify import check_generation
from imgindex.io.output_lock import writer_lock
from imgindex.runtime.signals import undone


def rollback(output: str, generation: str | None = None) -> tuple[str | None, str]:
    """Makes an older generation the live one, by default the one before; returns both names, old and new.

    The old one's is None where CURRENT is missing or damaged, which only a `generation` by name mends.

    Raises:
      UsageError: there is no such complete generation.
      OutputError: it is damaged, or another process is writing the output.
    """
    layout = Output(output)
    _live_or_none(layout, generation)  # the lock would make an output of what is none
    with writer_lock(layout.root) as claim:
        # Only now, for until now another process may have published.
        live, names = _live_or_none(layout, generation), generation_names(layout)
        # The live one's manifest, which may be what is damaged, is read only where it is needed.
        target = generation or read_manifest(layout, live).previous
        if target not in names:
            what = f"generation {target}" if generation else "generation before the live one"
            why = ", which was pruned" if target and not generation else ""
            raise UsageError(f"{output} has no {what}{why}; it has {', '.join(names)}")
        manifest = read_manifest(layout, target)
        problems = list(check_generation(layout, manifest))
        if problems:
            raise DamagedError(f"generation {target} is damaged: {problems[0]} ({len(problems)} in all)")
        with undone(partial(note_if_live, layout, target)):
            make_current(layout, target, claim.check)
    return live, target


def _live_or_none(layout: Output, generation: str | None) -> str | None:
    """The live generation's name; None where it is not known, which a `generation` by name mends."""
    try:
        return live_name(layout)
    except OutputError:
        if generation is None or not generation_names(layout):
            raise
        return None
