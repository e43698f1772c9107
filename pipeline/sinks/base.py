"""What a sink is: it puts a generation into a target, whose readers see all of it or nothing."""

from typing import Protocol

from imgindex.errors import AfterPublishError, OutputError
from imgindex.runtime import signals
from imgindex.sinks.source import Source


class Sink(Protocol):
    """One target: a folder of files, or a table or collection of a database.

    `transfer` calls the steps in the order in which they stand here. Only `switch` changes what readers of
    the target see. Every step raises ImgindexError where it cannot do its part.
    """

    def create(self, source: Source) -> None:
        """Writes all rows of `source` to a place in the target that no reader looks at yet."""

    def verify(self) -> None:
        """Compares what lies there with what was written. Raises OutputError where they differ."""

    def switch(self) -> None:
        """Has readers see what was created in place of what they saw before."""

    def prune(self) -> None:
        """Deletes what `switch` has replaced, and what transfers that died have left; nothing else."""

    def discard(self) -> None:
        """Deletes what was created, unless readers see it. May be called at any moment, from any thread."""


def transfer(source: Source, sink: Sink) -> None:
    """Puts the generation of `source` into `sink`. Interrupted, it leaves what readers see as it was.

    Raises:
      OutputError: the target cannot be written, or holds something else than was written to it.
      AfterPublishError: readers see the new generation, but what it replaced cannot be deleted.
    """
    with signals.undone(sink.discard):
        try:
            sink.create(source)
            sink.verify()
            with signals.switching():
                sink.switch()
        except BaseException:
            sink.discard()
            raise
    prune(source.generation, sink)


def prune(generation: str, sink: Sink) -> None:
    """Deletes what `generation`, which readers see, has replaced. Raises AfterPublishError."""
    try:
        sink.prune()
    except OutputError as error:
        raise AfterPublishError(f"generation {generation} is in place, but {error}") from error
