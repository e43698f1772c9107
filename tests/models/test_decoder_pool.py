"""Decoders that threads share: no more than there are to be, and ended by the last that uses them."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import trapped

from imgindex.models import decoder_pool
from imgindex.models.decoder import DecoderProcess
from imgindex.models.decoder_pool import DecoderPool
from imgindex.models.preprocess import DecodeError
from imgindex.models.resizing import Resizing

SIZE = Resizing((4, 4))


class Counting(DecoderProcess):
    """Notes how many of its kind decode at once."""

    busy, most = 0, 0
    lock = threading.Lock()
    meet = threading.Barrier(3)

    def decode(self, *_: Any) -> Any:
        with Counting.lock:
            Counting.busy += 1
            Counting.most = max(Counting.most, Counting.busy)
        Counting.meet.wait(60)  # fewer at once would wait for ever
        with Counting.lock:
            Counting.busy -= 1


def test_as_many_images_are_decoded_at_once_as_there_are_decoders() -> None:
    pool = DecoderPool(3, Counting)
    with ThreadPoolExecutor(9) as threads:
        assert len(list(threads.map(lambda _: pool.decode(b"", SIZE), range(30)))) == 30
    assert Counting.most == 3


@pytest.fixture
def _traps(monkeypatch: pytest.MonkeyPatch) -> None:
    make = partial(DecoderProcess, trapped.COMMAND)
    monkeypatch.setattr(decoder_pool, "DecoderPool", partial(DecoderPool, make=make))


@pytest.mark.usefixtures("_traps")
def test_all_users_in_a_process_share_one_pool_which_the_last_one_ends(
    image_bytes: Callable[..., bytes],
) -> None:
    good, before = image_bytes(1), trapped.children(os.getpid())
    pools = [decoder_pool.acquire(2) for _ in range(5)]
    with ThreadPoolExecutor(10) as threads:
        images = list(threads.map(lambda pool: pool.decode(good, SIZE), pools * 4))
    assert len({image.pixels.tobytes() for image in images}) == 1
    assert 1 <= len(trapped.children(os.getpid()) - before) <= 2
    # One that wants more gets more; the others have them, too.
    decoder_pool.acquire(3)
    for _ in range(5):
        decoder_pool.release()
    np.testing.assert_array_equal(pools[0].decode(good, SIZE).pixels, images[0].pixels)
    decoder_pool.release()
    assert trapped.children(os.getpid()) == before


def test_a_decoder_that_died_is_replaced(image_bytes: Callable[..., bytes]) -> None:
    pool = DecoderPool(1, partial(DecoderProcess, trapped.COMMAND))
    with pytest.raises(DecodeError, match="Segmentation fault"):
        pool.decode(trapped.trap("segfault"), SIZE)
    assert pool.decode(image_bytes(1), SIZE).width == 20
    pool.close()
