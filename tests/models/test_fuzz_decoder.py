"""A decoder that answers with any bytes: the image that it means, or a failure; the next image is well."""

import json
import struct
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgindex.errors import WorkerError
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DecodedImage, DecodeError
from imgindex.models.resizing import Resizing

SIZE = (2, 3)  # height, width
PIXELS = bytes(range(18))

# Says that it is ready, then answers each image with the image's own bytes, and with nothing more.
ECHO = """
import socket, struct, sys
connection = socket.socket(fileno=0)
connection.sendall(bytes.fromhex(sys.argv[1]))
stream = connection.makefile("rb")
while lengths := stream.read(12):
    header, body = struct.unpack("<IQ", lengths)
    stream.read(header)
    connection.sendall(stream.read(body))
    if body < 14:
        break
"""


def message(header: Any, body: bytes = b"", excess: tuple[int, int] = (0, 0)) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<IQ", len(encoded) + excess[0], len(body) + excess[1]) + encoded + body


def echo(ready: bytes) -> DecoderProcess:
    return DecoderProcess((sys.executable, "-S", "-E", "-c", ECHO, ready.hex()), time_limit=0.5)


def answer(decoder: DecoderProcess, wire: bytes) -> DecodedImage | str:
    try:
        return decoder.decode(wire, Resizing(SIZE))
    except DecodeError as error:
        assert len(str(error)) < 500 or error.reason not in ("crashed", "timed_out")  # noqa: PT017
        return error.reason


# How much more than there is a message promises.
EXCESS = st.sampled_from([0, 0, 1, 2**16, 2**31])
LENGTHS = st.tuples(EXCESS, EXCESS | st.sampled_from([2**40, 2**63]))
SIDES = st.integers(-1, 5) | st.sampled_from([2**31, 10**30, True, None, 1.0, "1"])
HEADERS = (
    st.fixed_dictionaries({"width": SIDES, "height": SIDES}, optional={"reason": st.text(max_size=3)})
    | st.fixed_dictionaries(
        {"reason": st.text(max_size=3) | SIDES}, optional={"message": st.text(max_size=9)}
    )
    | st.lists(SIDES, max_size=2)
    | st.binary(max_size=30)
    | st.sampled_from([b"NaN", b"[" * 60_000, b"9" * 5000, b"\xff"])
)
WIRES = st.builds(message, HEADERS, st.sampled_from([PIXELS, PIXELS[1:], b""]), LENGTHS)


@pytest.fixture(scope="module")
def decoder():
    with echo(message({})) as decoder:
        yield decoder


@given(WIRES)
@settings(max_examples=40)
@example(message({"width": 4, "height": 5}, PIXELS))
@example(message({"width": 4, "height": 5}, b"", (0, 2**63)))
@example(message({}, b"", (2**31, 0)))
@example(message(b"[" * 60_000))
def test_any_answer_is_an_image_or_a_failure(decoder: DecoderProcess, wire: bytes) -> None:
    found = answer(decoder, wire)
    if isinstance(found, DecodedImage):
        header = json.loads(wire[12 : -len(PIXELS)])
        assert (found.width, found.height) == (header["width"], header["height"])
        assert found.pixels.tobytes() == PIXELS
        assert found.pixels.shape == (*SIZE, 3)
    # What is left of a bad answer is not taken for the next.
    following = answer(decoder, message({"width": 7, "height": 8}, PIXELS[::-1]))
    assert isinstance(following, DecodedImage)
    assert (following.width, following.height) == (7, 8)
    np.testing.assert_array_equal(following.pixels.ravel(), np.arange(18, dtype=np.uint8)[::-1])


@pytest.mark.long
@pytest.mark.parametrize(
    "ready", [b"\xff" * 12, message(b"{"), message(b"[" * 60_000), message({}, b"x"), b""]
)
def test_a_child_that_begins_with_something_else_does_not_start(
    ready: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgindex.models.decoder._START_LIMIT", 1.0)
    monkeypatch.setattr("imgindex.models.decoder._DEATH_LIMIT", 0.1)
    with echo(ready) as decoder, pytest.raises(WorkerError, match="does not start"):
        decoder.decode(b"", Resizing(SIZE))
