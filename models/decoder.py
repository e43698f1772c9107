"""`decode` in a process of its own: an image that crashes, hangs or inflates its decoder fails alone.

The parent keeps one end of a socket, and the child has the other as its stdin. The child answers until the
parent closes its end or dies. A message is a header in JSON and a body of bytes.
"""

import contextlib
import io
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image

from imgindex.errors import WorkerError
from imgindex.models.preprocess import DEFAULT_MAX_PIXELS, DecodedImage, DecodeError, decode
from imgindex.models.resizing import Resizing

# -P: what lies in the working directory must not pass for a module.
COMMAND = (sys.executable, "-P", "-m", "imgindex.models.decoder")

# Seconds that a child may compute for one image. At the default of images.max_pixels a PNG took up to 29.
# This limit, the next one and _ORPHAN_LIMIT grow with images.max_pixels beyond its default (`_scale`).
TIME_LIMIT = 120.0

# How many times as long an image may take in all, where its child waits for a core or memory, or is stopped.
_WAITING = 2

# Seconds after which is looked whether a child that has not answered still computes.
_LOOK_EVERY = 1.0

# Bytes of data that a child may hold. At the default of images.max_pixels JPEG, PNG, GIF and TIFF take up to
# 1.4 GiB, AVIF 1.9, WebP 2.8 and JPEG 2000 3.3, besides the file, which is of 0.25 at most by default.
MEMORY_LIMIT = 4 << 30

# Bytes that an image takes at most for each of its pixels, as JPEG 2000 does; and for code that it loads.
_BYTES_A_PIXEL, _OVERHEAD = 20, 64 << 20

# Seconds for Python to start and to import what decodes; and for a process that has crashed to be gone.
_START_LIMIT = 120.0
_DEATH_LIMIT = 10.0

# Bytes of freed memory that a child keeps, and from which size on a block goes back at once. By default glibc
# gives back nearly all, and Linux clears it anew for every image: up to a quarter of the time of a small one.
_KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}

# Seconds after which a child ends itself: whoever has asked must have been killed meanwhile.
_ORPHAN_LIMIT = 300

# What a program does to itself by a fault. Others come from outside, as from Linux where memory runs out.
_FAULTS = frozenset({
    signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS,
    signal.SIGTRAP,
})  # fmt: skip

Message = tuple[dict[str, Any], bytes]

_LENGTHS = struct.Struct("<IQ")  # of the header and of the body
_MAX_HEADER = 1 << 16

# Characters that a failure is told in; some of Pillow's errors quote the file.
_MAX_MESSAGE = 1000


class Decoder(Protocol):
    """What decodes images."""

    def decode(
        self, data: bytes, resizing: Resizing, max_pixels: int, color_profile: str, truncated: str
    ) -> DecodedImage:
        """See `DecoderProcess.decode`."""


class DecoderProcess:
    """Decodes as `preprocess.decode` does, but in a child process; for one thread at a time.

    The child starts with the first image, and anew after one that it did not survive.
    """

    def __init__(self, command: Sequence[str] = COMMAND, time_limit: float = TIME_LIMIT) -> None:
        """`command` runs `serve`. It may compute for each image so many seconds as `time_limit` says, or in
        proportion more where `max_pixels` is beyond its default.
        """
        self._command = command
        self._time_limit = time_limit
        self._child: _Child | None = None

    def decode(
        self,
        data: bytes,
        resizing: Resizing,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        color_profile: str = "srgb",
        truncated: str = "fail",
    ) -> DecodedImage:
        """See `preprocess.decode`.

        Raises:
          DecodeError: for the reasons of `preprocess.decode`, and `crashed` and `timed_out`. These are the
            image's fault; `killed`, `stalled` and `no_memory` are not, as far as can be told.
          WorkerError: the child does not start.
        """
        child = self._running_child()
        seconds = self._time_limit * _scale(max_pixels)
        how = {"max_pixels": max_pixels, "color_profile": color_profile, "truncated": truncated}
        height, width = resizing.size
        try:
            answer = child.ask(({"resizing": vars(resizing), **how}, data), 3 * height * width, seconds)
            outcome = _outcome(answer, resizing.size)
        except _OutOfTimeError as error:
            self.close()
            message = f"not decoded within {seconds:g} seconds of computing"
            raise DecodeError("timed_out", message) from error
        except TimeoutError as error:
            computed = child.cpu_seconds() - child.cpu_before
            self.close()
            message = (
                f"not decoded within {_WAITING * seconds:g} seconds, in which the decoder could "
                f"compute for {computed:.1f}: the machine is too busy, or it was stopped"
            )
            raise DecodeError("stalled", message) from error
        except (OSError, EOFError) as error:
            self._child = None
            raise child.post_mortem(child.shortage(max_pixels)) from error
        except ValueError as error:
            self.close()
            raise DecodeError("crashed", f"the decoder gave no answer that can be read: {error}") from error
        except BaseException:
            self.close()  # the next image must not get this one's answer
            raise
        if isinstance(outcome, DecodeError):
            shortage = child.shortage(max_pixels)
            if outcome.reason == "out_of_memory" and shortage:
                raise DecodeError("no_memory", f"{shortage}: {outcome}")
            raise outcome
        return outcome

    def _running_child(self) -> "_Child":
        if self._child is not None and not self._child.is_running():  # it was killed between two images
            self.close()
        if self._child is None:
            try:
                self._child = _Child(self._command)
            except WorkerError:  # whatever killed it need not kill the next
                self._child = _Child(self._command)
        return self._child

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _OutOfTimeError(Exception):
    """A child has computed for too long."""


class _Child:
    """A running child and the connection to it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._connection, its_stdin = socket.socketpair()
        self._stream = self._connection.makefile("rb")
        with its_stdin, tempfile.TemporaryFile() as complaints:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=its_stdin.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    env={**os.environ, **_KEPT_MEMORY, "OPENBLAS_NUM_THREADS": "1"},
                    # Out of reach of Ctrl-C, which is for the parent to answer. In a session of its own Linux
                    # would besides give it as much of the CPU as all of the parent's threads together.
                    process_group=0,
                )
            except OSError as error:
                raise WorkerError(f"cannot start {command[0]} to decode images: {error.strerror}") from error
            its_stdin.close()
            self._connection.settimeout(_START_LIMIT)
            try:
                ready, _ = _receive(self._stream, 0)
                if not isinstance(ready, dict):
                    raise ValueError("it is not ready")
            except (OSError, EOFError, ValueError) as error:
                cause = self.cause_of_death()
                complaints.seek(0)
                lines = complaints.read().decode(errors="replace").splitlines() or [cause]
                raise WorkerError(f"the process that decodes images does not start: {lines[-1]}") from error
        # It says how much memory it gets at most, and why, before the first image can have damaged it.
        self._memory, self._why = ready.get("memory"), ready.get("why")
        self.cpu_before = 0.0  # seconds that it had computed when it was asked last

    def shortage(self, max_pixels: int) -> str:
        """Why it may get less memory than an image may take; empty where it gets all of it."""
        is_short = isinstance(self._memory, int) and self._memory < _memory_limit(max_pixels)
        return str(self._why) if is_short else ""

    def ask(self, question: Message, most: int, time_limit: float) -> Message:
        """The answer to `question`, of at most so many bytes in its body.

        Raises _OutOfTimeError where it has computed for more than `time_limit` seconds, TimeoutError where it
        has waited for too long; where it died, another OSError or EOFError; ValueError for what is no
        message.
        """
        self.cpu_before, asked = self.cpu_seconds(), time.monotonic()
        self._connection.settimeout(_WAITING * time_limit)
        _send(self._connection, question)
        answered = select.poll()
        answered.register(self._connection, select.POLLIN)
        while not answered.poll(1000 * min(_LOOK_EVERY, time_limit)):
            if self.cpu_seconds() - self.cpu_before > time_limit:
                raise _OutOfTimeError
            if time.monotonic() - asked > _WAITING * time_limit:
                raise TimeoutError
        return _receive(self._stream, most)

    def cpu_seconds(self) -> float:
        """The seconds that it has computed so far, without what Linux did for it, as to find free memory."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / os.sysconf("SC_CLK_TCK")

    def is_running(self) -> bool:
        """Whether it has not died yet."""
        return self._process.poll() is None

    def post_mortem(self, shortage: str) -> DecodeError:
        """The failure of the image over which it died, or its `shortage` of memory."""
        message = f"the decoder died: {self.cause_of_death()}"
        if -self._process.returncode > 0 and -self._process.returncode not in _FAULTS:
            return DecodeError("killed", f"{message}, from outside")
        if shortage:
            return DecodeError("no_memory", f"{shortage}: {message}")
        return DecodeError("crashed", message)

    def cause_of_death(self) -> str:
        """What ended a child that no longer answers."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_DEATH_LIMIT)
        self.kill()
        code = self._process.returncode
        return f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"

    def kill(self) -> None:
        """Ends it at once, and leaves nothing of it behind."""
        self._process.kill()
        self._process.wait()
        self._stream.close()
        self._connection.close()


def serve() -> None:
    """Decodes what comes in on stdin, a socket, until the parent is gone. The child's whole life."""
    given = resource.getrlimit(resource.RLIMIT_DATA)
    memory, why = _most_memory(given)
    _restrict()
    with (
        contextlib.suppress(EOFError, ConnectionError),
        socket.socket(fileno=0) as connection,
        connection.makefile("rb") as stream,
    ):
        _send(connection, ({"memory": memory, "why": why}, b""))  # ready
        while True:
            question = _receive(stream, sys.maxsize)
            max_pixels = question[0]["max_pixels"]
            signal.alarm(round(_ORPHAN_LIMIT * _scale(max_pixels)))
            _allow(max_pixels, given)
            _send(connection, _answer(*question))
            signal.alarm(0)


def _scale(max_pixels: int) -> float:
    """How many times as much time and memory an image may take as at the default of `max_pixels`."""
    return max(1.0, max_pixels / DEFAULT_MAX_PIXELS)


def _memory_limit(max_pixels: int) -> int:
    return int(MEMORY_LIMIT * _scale(max_pixels))


def _restrict() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        # Where memory runs out all the same, Linux should end a child, and not its parent.
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.dup2(1, 2)  # decoders warn on stderr; stdout goes nowhere


def _allow(max_pixels: int, given: tuple[int, int]) -> None:
    """Lets an image take the memory and the pixels that it may; `given` are this process's own limits."""
    limits = [limit for limit in given if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([_memory_limit(max_pixels), *limits]), given[1]))
    # Pillow refuses twice this number by itself.
    Image.MAX_IMAGE_PIXELS = max(DEFAULT_MAX_PIXELS, max_pixels) // 2 + 1


def _most_memory(given: tuple[int, int]) -> tuple[int, str]:
    """The bytes that this process can be sure of, and what keeps it from more."""
    ulimits = (*given, resource.getrlimit(resource.RLIMIT_AS)[0])
    limits = [limit for limit in ulimits if limit != resource.RLIM_INFINITY]
    # Linux refuses at once what is more than there is.
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = [
        *((limit, f"ulimit gives the decoder only {limit >> 20} MiB") for limit in limits),
        (memory, f"this machine has only {memory >> 20} MiB"),
    ]
    with contextlib.suppress(OSError):
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
            found.append((0, "this machine promises no more memory than it has (vm.overcommit_memory is 2)"))
    return min(found)


def _answer(question: dict[str, Any], data: bytes) -> Message:
    try:
        image = decode(
            data,
            Resizing.of(question["resizing"]),
            question["max_pixels"],
            question["color_profile"],
            question["truncated"],
        )
    except DecodeError as error:
        reason, message, pixels = error.reason, str(error), error.pixels
    else:
        return {"width": image.width, "height": image.height}, image.pixels.tobytes()
    # Only now is the memory free that the image took.
    if reason in ("truncated", "undecodable") and not _is_free(_OVERHEAD + _BYTES_A_PIXEL * pixels):
        reason, message = "out_of_memory", f"there is too little memory to tell what is wrong: {message}"
    return {"reason": reason, "message": message[:_MAX_MESSAGE]}, b""


def _is_free(count: int) -> bool:
    """Whether this process can get so many bytes. Most libraries call it damage when they do not."""
    try:
        mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True


def _send(connection: socket.socket, message: Message) -> None:
    header, body = message
    encoded = json.dumps(header).encode()
    connection.sendall(_LENGTHS.pack(len(encoded), len(body)) + encoded)
    connection.sendall(body)


def _receive(stream: io.BufferedReader, most: int) -> Message:
    """The next message, of at most `most` bytes in its body. Raises ValueError for what is none."""
    header, body = _LENGTHS.unpack(_read(stream, _LENGTHS.size))
    if header > _MAX_HEADER or body > most:
        raise ValueError(f"it promises {header} and {body} bytes")
    try:
        return json.loads(_read(stream, header)), _read(stream, body)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error


def _outcome(answer: Message, size: tuple[int, int]) -> DecodedImage | DecodeError:
    """What a child's answer says, whose memory its image may have damaged. Raises ValueError for none."""
    match answer:
        case {"reason": str(reason), "message": str(message), **others}, b"" if not others:
            return DecodeError(reason, message)
        case {"width": int(width), "height": int(height), **others}, pixels if not others:
            if len(pixels) == 3 * size[0] * size[1] and min(width, height) > 0 and width * height < 1 << 31:
                return DecodedImage(np.frombuffer(pixels, np.uint8).reshape(*size, 3), width, height)
    raise ValueError("it is neither an image nor a reason")


def _read(stream: io.BufferedReader, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError("the connection was closed")
    return data


if __name__ == "__main__":
    serve()
