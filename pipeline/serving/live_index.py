"""The generation that answers: the live one, as soon as it is open and seen to work."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from imgindex.errors import ImgindexError, foreseen
from imgindex.generations.layout import Output, current_name, open_generation
from imgindex.generations.manifest import Manifest
from imgindex.io import filesystem
from imgindex.runtime.resources import available_cores
from imgindex.search.open_generation import OpenGeneration, Wanted
from imgindex.search.queries import Loaded
from imgindex.serving.engines import QueryEngines

logger = logging.getLogger(__name__)

# How often is looked which generation is live. Stores take money for each look.
_LOCAL_SECONDS, _REMOTE_SECONDS = 1.0, 10.0

# Until a generation that could not be opened is tried again: it may be mended.
_RETRY_SECONDS = 30.0

# Labels that the page offers.
_MOST_LABELS = 1000


@dataclass(frozen=True)
class Answering:
    """A generation that answers, with all that it takes. What began with it ends with it."""

    opened: OpenGeneration
    engines: QueryEngines
    report: bytes | None  # its page, where it has one
    labels: list[str]  # those of most images, in the order of the alphabet

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.opened.manifest

    @property
    def generation(self) -> str:
        """Its name."""
        return self.manifest.generation


class LiveIndex:
    """Follows the live generation of an output, in a thread of its own.

    The one before answers until the new one is open, and goes on where the new one cannot be opened.
    """

    def __init__(self, output: str, model: str | None = None) -> None:
        """Opens the live generation; `model` as for `Index.open`. Raises OutputError and UsageError."""
        self._output = Output(output)
        self._model = model
        self.output = output  # the index's directory
        self.trouble: str | None = None  # why the live generation does not answer
        self.switched: Callable[[Answering], None] = lambda _: None
        self.current = self._open(None)
        self._failed: tuple[str | None, float] = (None, 0.0)  # what could not be opened, and when
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self) -> None:
        """Begins to follow."""
        self.switched(self.current)
        self._thread = threading.Thread(target=self._watch, name="follow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the following. What is open stays so until its last answer."""
        self._stop.set()

    def _watch(self) -> None:
        seconds = _LOCAL_SECONDS if filesystem.is_local(self._output.root) else _REMOTE_SECONDS
        while not self._stop.wait(seconds):
            self.look()

    def look(self) -> None:
        """Moves to the live generation, where it is another one."""
        name = None
        try:
            name = current_name(self._output)
            if name in (None, self.current.generation):
                # Without CURRENT nothing else is live.
                self.trouble = None
                return
            failed, when = self._failed
            if name == failed and time.monotonic() - when < _RETRY_SECONDS:
                return
            found = self._open(self.current.engines)
        except Exception as error:  # whatever it is, the generation before goes on
            self._keep_on(name, error)
            return
        self.switched(found)
        self.current, self.trouble = found, None
        logger.info("generation %s answers", found.generation)

    def _keep_on(self, name: str | None, error: Exception) -> None:
        told: ImgindexError | None = foreseen(error)
        trouble = str(told or f"{type(error).__name__}: {error}")
        if trouble != self.trouble:
            logger.warning(
                "generation %s goes on to answer, for the live one cannot be opened: %s",
                self.current.generation, trouble, exc_info=None if told else error,
            )  # fmt: skip
        self.trouble = trouble
        self._failed = name, time.monotonic()

    def _open(self, engines: QueryEngines | None) -> Answering:
        def opened(manifest: Manifest) -> Answering:
            generation = OpenGeneration(self._output, manifest, False, self._model)
            loaded = engines
            if loaded is None or not loaded.fit(manifest):
                loaded = QueryEngines(self._output.root, manifest, self._model)
            if (cores := available_cores()) > 1:
                generation.use_processes(cores)
            # So that no client waits for what is made at the first search.
            generation.answers([Loaded("trial", np.ones(manifest.dims, np.float32))], Wanted(1))
            labels = sorted(label for label, _ in generation.images.labels().most_common(_MOST_LABELS))
            return Answering(generation, loaded, _report_of(self._output, manifest), labels)

        return open_generation(self._output, None, opened)


def _report_of(output: Output, manifest: Manifest) -> bytes | None:
    """The page of a generation's report. It is held, for the generation may be pruned while it answers."""
    path = filesystem.join(output.generation(manifest.generation), "report", "index.html")
    try:
        page = filesystem.read_regular(path, _MAX_REPORT_BYTES)
    except OSError:
        return None
    return page if len(page) <= _MAX_REPORT_BYTES else None


_MAX_REPORT_BYTES = 64 << 20
