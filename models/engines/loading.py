"""Loads engines: each once in a process, for smaller batches where memory is short, and never in a fork."""

import functools
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace

from imgindex.errors import MachineError, WorkerError
from imgindex.models.engines.protocol import Engine, EngineChoice
from imgindex.models.engines.registry import engine_factory
from imgindex.models.preprocess import decoding

logger = logging.getLogger(__name__)

# A factory's method. Unlike the factory, it can always be hashed.
_Load = Callable[[EngineChoice, int], Engine]

_loading = threading.Lock()

# The process that has loaded an engine.
_loaded_by: int | None = None


def refuse_after_fork() -> None:
    """Raises MachineError in a fork of a process that had loaded an engine: the fork lacks its threads."""
    if _loaded_by not in (None, os.getpid()):
        raise MachineError(
            "this process was forked from one that had loaded a model, which cannot run in a fork; start it "
            "with multiprocessing's spawn or forkserver, or fork before the first search or build"
        )


# Choices of which a batch did not fit into this process's memory.
_too_large: set[EngineChoice] = set()


def load_engine(choice: EngineChoice, threads: int) -> Engine:
    """The chosen engine on `threads` cores; loaded once in a process.

    Where a batch does not fit into memory, it is the engine for batches of half the size, or of a quarter,
    and so on.

    Raises:
      WorkerError: not even one image fits; besides, whatever `load_backbone` raises.
      MachineError: as `refuse_after_fork`.
    """
    global _loaded_by
    refuse_after_fork()
    with _loading:  # a cache alone would let two threads load the same backbone at once
        _loaded_by = os.getpid()
        while True:
            while choice in _too_large:
                choice = replace(choice, batch_size=choice.batch_size // 2)
            try:
                return _load_once(engine_factory(choice.engine).load, choice, threads)
            except MemoryError as error:
                _reject(choice, error)


def load_smaller_engine(choice: EngineChoice, threads: int, batch_size: int) -> Engine:
    """`load_engine` after a batch of `batch_size`, a size that it chose, has not fitted into memory."""
    with _loading:
        _reject(replace(choice, batch_size=batch_size), None)
    return load_engine(choice, threads)


def _reject(choice: EngineChoice, error: MemoryError | None) -> None:
    if choice in _too_large:  # another thread found out before
        return
    if choice.batch_size == 1:
        raise WorkerError(f"{choice.engine} has too little memory for one image of {choice.name}") from error
    logger.warning(
        "%d images do not fit into memory at once: going on with batches of %d",
        choice.batch_size, choice.batch_size // 2,
    )  # fmt: skip
    _too_large.add(choice)
    _load_once.cache_clear()


@functools.lru_cache(maxsize=1)
def _load_once(load: _Load, choice: EngineChoice, threads: int) -> Engine:
    return _with_decoding(load, choice, threads)


def create_engine(choice: EngineChoice, threads: int) -> Engine:
    """A new engine, which nobody else shares. Raises what `EngineFactory.load` and `load_backbone` do."""
    return _with_decoding(engine_factory(choice.engine).load, choice, threads)


def _with_decoding(load: _Load, choice: EngineChoice, threads: int) -> Engine:
    engine = load(choice, threads)
    engine.spec = replace(engine.spec, decoding=decoding(choice.color_profile))
    return engine
