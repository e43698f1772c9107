"""Searches the shards of a generation in processes beside this one.

An Annoy search lets go of the interpreter, but what comes before and after it does not: threads that search
wait for one another there. A process searches for whole batches of vectors.
"""

import logging
import queue
import socket
import subprocess
import sys
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np

from imgindex.errors import OutputError
from imgindex.models.ann.protocol import Float32, Items, SearchSettings
from imgindex.models.ann.shard_index import ShardIndex

logger = logging.getLogger(__name__)

# -P: what lies in the working directory must not pass for a module.
_COMMAND = (sys.executable, "-P", "-m", "imgindex.search.search_processes")


class SearchProcesses:
    """Some processes that have all shards of a generation open. Any number of threads may use them.

    Each starts when it is first asked. They end when nobody holds this object any longer, and with the
    process that started them.
    """

    def __init__(self, shards: Sequence[ShardIndex], count: int) -> None:
        """`count` is how many processes there are at most."""
        # The last one that was used is the next, so that no more start than are needed at once.
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        processes = [_Process(shards) for _ in range(count)]
        for process in processes:
            self._idle.put(process)
        weakref.finalize(self, _end, processes)

    def candidates(
        self, shard: int, vectors: Float32, k: int, settings: SearchSettings
    ) -> list[Items] | None:
        """For each of `vectors` [n, dims] what `ShardIndex.candidates` gives of a shard.

        Waits while all processes are busy. None where the process does not answer, which is logged; another
        one takes its place.
        """
        process = self._idle.get()
        try:
            return process.ask((shard, vectors, k, settings))
        except (OSError, EOFError) as error:
            process.end()
            logger.warning("a search process gave no answer (%s); this one searches instead", repr(error))
            return None
        finally:
            self._idle.put(process)


_Question = tuple[int, Float32, int, SearchSettings]


class _Process:
    """One of the processes, for one thread at a time."""

    def __init__(self, shards: Sequence[ShardIndex]) -> None:
        self._shards = shards
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def _start(self) -> Connection:
        ours, its_stdin = socket.socketpair()
        with ours, its_stdin:
            process = subprocess.Popen(
                _COMMAND,
                stdin=its_stdin.fileno(),
                stdout=subprocess.DEVNULL,
                process_group=0,  # out of reach of Ctrl-C, which is for this process to answer
            )
            connection = Connection(ours.detach())
        self._running = process, connection
        connection.send(self._shards)
        return connection

    def ask(self, question: _Question) -> list[Items]:
        """Its answer; it starts where it does not run. Raises OSError or EOFError where it dies."""
        connection = self._running[1] if self._running else self._start()
        connection.send(question)
        items, counts = connection.recv()
        return np.split(items, np.cumsum(counts)[:-1])

    def end(self) -> None:
        """Ends it, whatever it does."""
        if self._running:
            process, connection = self._running
            self._running = None
            connection.close()
            process.kill()
            process.wait()


def _end(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.end()


def _serve() -> None:
    """Answers questions until the other side closes the connection, or dies."""
    connection = Connection(sys.stdin.fileno())
    try:
        shards: Sequence[ShardIndex] = connection.recv()  # reading it opens them
        while True:
            shard, vectors, k, settings = connection.recv()
            found = [shards[shard].candidates(vector, k, settings) for vector in vectors]
            connection.send((np.concatenate(found), list(map(len, found))))
    except EOFError:
        pass  # nobody asks any more
    except OutputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    _serve()
