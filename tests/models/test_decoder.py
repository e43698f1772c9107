"""Decoding in another process: the same pixels, and whatever an image does to it stays there."""

import io
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_preprocess import png
from trapped import COMMAND, children, trap

from imgindex.errors import WorkerError
from imgindex.models import decoder as decoder_module
from imgindex.models import plugins
from imgindex.models.decoder import DecoderProcess
from imgindex.models.preprocess import DEFAULT_MAX_PIXELS, DecodeError, decode
from imgindex.models.resizing import Resizing

SIZE = Resizing((10, 14))


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(COMMAND) as decoder:
        yield decoder


def child_of(decoder: DecoderProcess, good: bytes) -> int:
    """The process that a decoder has started for the image `good`."""
    before = children(os.getpid())
    decoder.decode(good, SIZE)
    (child,) = children(os.getpid()) - before
    return child


def reason(decoder: DecoderProcess, data: bytes) -> tuple[str, str]:
    with pytest.raises(DecodeError) as caught:
        decoder.decode(data, SIZE)
    return caught.value.reason, str(caught.value)


def assert_decodes(decoder: DecoderProcess, data: bytes) -> None:
    image, expected = decoder.decode(data, SIZE), decode(data, SIZE)
    np.testing.assert_array_equal(image.pixels, expected.pixels, strict=True)
    assert (image.width, image.height) == (expected.width, expected.height)


class TestDecodes:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
    def test_the_same_pixels_and_size(self, decoder, image_bytes, kind):
        assert_decodes(decoder, image_bytes(1, (31, 17), kind))

    def test_thousands_of_images_in_one_process(self, decoder, image_bytes):
        images = [image_bytes(seed, (5 + seed, 9)) for seed in range(40)]
        expected = [decode(data, SIZE).pixels for data in images]
        child = child_of(decoder, images[0])
        for number in range(3000):
            pixels = decoder.decode(images[number % 40], SIZE).pixels
            np.testing.assert_array_equal(pixels, expected[number % 40])
        assert child in children(os.getpid())

    def test_images_larger_than_what_a_socket_holds(self, decoder):
        noise = np.random.default_rng(0).integers(0, 256, (1500, 1400, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "BMP")
        image = decoder.decode(file.getvalue(), Resizing((1500, 1400)))
        np.testing.assert_array_equal(image.pixels, noise)

    def test_the_same_reasons(self, decoder, image_bytes):
        truncated = image_bytes(1, (90, 90), "JPEG")[:900]
        for data, expected in ((b"", "empty"), (b"text", "not_an_image"), (truncated, "truncated")):
            with pytest.raises(DecodeError) as caught:
                decode(data, SIZE)
            assert reason(decoder, data) == (expected, str(caught.value))

    def test_max_pixels(self, decoder, image_bytes):
        data = image_bytes(1, (30, 10))
        assert decoder.decode(data, SIZE, 300).width == 30
        with pytest.raises(DecodeError, match=r"30 x 10 .* \(299\)") as caught:
            decoder.decode(data, SIZE, 299)
        assert caught.value.reason == "too_many_pixels"


class TestMorePixelsThanByDefault:
    MORE = 2 * DEFAULT_MAX_PIXELS

    def test_a_jpeg_of_180_megapixels_takes_little_memory(self, decoder):
        """It is decoded at an eighth of its size. Four bytes for each of its pixels would be 687 MiB."""
        file = io.BytesIO()
        Image.new("L", (20_000, 9_000), 128).save(file, "JPEG", quality=30)
        assert reason(decoder, file.getvalue())[0] == "too_many_pixels"
        with DecoderProcess(limited(len(file.getvalue()) + (100 << 20))) as small:
            image = small.decode(file.getvalue(), SIZE, self.MORE)
        assert (image.width, image.height) == (20_000, 9_000)
        assert (image.pixels == 128).all()

    def test_still_more_are_refused(self, decoder, image_bytes):
        bomb = png((60_000, 60_000), 8, 2, b"")
        with pytest.raises(DecodeError, match="exceeds limit of 3579139") as caught:
            decoder.decode(bomb, SIZE, self.MORE)
        assert caught.value.reason == "too_many_pixels"
        assert_decodes(decoder, image_bytes(1))

    def test_memory_is_bounded_in_proportion(self):
        file = io.BytesIO()
        Image.new("RGB", (2500, 2000)).save(file, "PNG")
        with DecoderProcess(limited(len(file.getvalue()) + 3 * 2500 * 2000)) as decoder:
            assert reason(decoder, file.getvalue())[0] == "out_of_memory"
            assert decoder.decode(file.getvalue(), SIZE, self.MORE).width == 2500
        with DecoderProcess(COMMAND) as decoder, pytest.raises(DecodeError) as caught:
            decoder.decode(trap("memory"), SIZE, DEFAULT_MAX_PIXELS * 3 // 2)
        assert caught.value.reason == "out_of_memory"

    def test_a_limit_that_is_less_than_the_memory_for_them(self):
        with DecoderProcess(under(resource.RLIMIT_DATA, 5 << 30)) as decoder:
            with pytest.raises(DecodeError, match="ulimit gives the decoder only 5120 MiB") as caught:
                decoder.decode(trap("memory"), SIZE, self.MORE)
            assert caught.value.reason == "no_memory"
            assert reason(decoder, trap("memory"))[0] == "out_of_memory"

    def test_time_is_bounded_in_proportion(self, monkeypatch):
        monkeypatch.setattr(decoder_module, "_WAITING", 1000)
        with (
            DecoderProcess(COMMAND, time_limit=0.5) as decoder,
            pytest.raises(DecodeError, match="not decoded within 1 seconds of computing"),
        ):
            decoder.decode(trap("hang"), SIZE, self.MORE)


class TestSurvives:
    @pytest.mark.parametrize(
        ("image", "expected", "message"),
        [
            (trap("segfault"), "crashed", "signal 11 (Segmentation fault)"),
            (trap("abort"), "crashed", "signal 6 (Aborted)"),
            (trap("exit", "7"), "crashed", "exit code 7"),
            (trap("exit", "0"), "crashed", "exit code 0"),
            (trap("memory"), "out_of_memory", "MemoryError"),
        ],
    )
    def test_an_image_that_its_decoder_does_not(self, decoder, image_bytes, image, expected, message):
        good = image_bytes(1)
        for _ in range(2):
            found, said = reason(decoder, image)
            assert found == expected
            assert message in said
            assert_decodes(decoder, good)

    def test_an_image_that_makes_it_compute_for_ever(self, image_bytes, monkeypatch):
        monkeypatch.setattr(decoder_module, "_WAITING", 1000)  # others may use the cores meanwhile
        good = image_bytes(1)
        with DecoderProcess(COMMAND, time_limit=1) as decoder:
            first = child_of(decoder, good)
            assert reason(decoder, trap("hang")) == ("timed_out", "not decoded within 1 seconds of computing")
            assert first not in children(os.getpid())
            assert_decodes(decoder, good)

    def test_being_stopped_which_is_not_the_fault_of_an_image(self, image_bytes):
        good = image_bytes(1)
        with DecoderProcess(COMMAND, time_limit=1) as decoder:
            child = child_of(decoder, good)
            os.kill(child, signal.SIGSTOP)
            found, said = reason(decoder, good)
            assert found == "stalled"
            assert "not decoded within 2 seconds, in which the decoder could compute for 0.0" in said
            assert child not in children(os.getpid())
        with DecoderProcess(COMMAND) as decoder:
            assert_decodes(decoder, good)

    def test_being_killed_over_an_image(self, decoder, image_bytes, tmp_path):
        good, fifo = image_bytes(1), tmp_path / "fifo"
        child = child_of(decoder, good)
        os.mkfifo(fifo)
        with ThreadPoolExecutor() as thread:
            found = thread.submit(reason, decoder, trap("hang", fifo))
            assert fifo.read_text() == "caught"
            os.kill(child, signal.SIGKILL)
            assert found.result() == ("killed", "the decoder died: signal 9 (Killed), from outside")
        assert_decodes(decoder, good)

    def test_being_killed_between_two_images(self, decoder, image_bytes):
        good = image_bytes(1)
        child = child_of(decoder, good)
        waiting = os.pidfd_open(child)
        os.kill(child, signal.SIGKILL)
        select.select([waiting], [], [])
        os.close(waiting)
        assert_decodes(decoder, good)
        assert child not in children(os.getpid())

    def test_what_decoders_print(self, decoder, capfd):
        image = decoder.decode(trap("talk"), SIZE)
        assert (image.pixels == [255, 0, 0]).all()
        assert (image.width, image.height) == (1, 1)
        assert capfd.readouterr() == ("", "")

    def test_an_interruption_of_its_parent(self, image_bytes, tmp_path):
        # In a process of its own: one that runs tests for xdist may end by the signal.
        parent = get_context("spawn").Process(target=interrupted, args=(image_bytes(1), tmp_path / "fifo"))
        parent.start()
        parent.join()
        assert parent.exitcode == 0


def interrupted(good: bytes, fifo: Path) -> None:
    """Interrupts this process while it decodes, and checks what becomes of its decoder."""
    with DecoderProcess(COMMAND) as decoder:
        child = child_of(decoder, good)
        os.mkfifo(fifo)

        def interrupt() -> None:
            fifo.read_text()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        # What runs in the background of a script ignores the signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with ThreadPoolExecutor() as thread:
            thread.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                decoder.decode(trap("hang", fifo), SIZE)
        assert child not in children(os.getpid())
        assert_decodes(decoder, good)


def limited(spare: int) -> tuple[str, ...]:
    """The command of a child that has so many more bytes than it starts with."""
    code = (
        "import re; from pathlib import Path; from imgindex.models import decoder;"
        "held = int(re.search(r'VmData:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]);"
        f"decoder.MEMORY_LIMIT = held * 1024 + {spare}; decoder.serve()"
    )
    return (sys.executable, "-c", code)


def under(kind: int, limit: int) -> tuple[str, ...]:
    """The command of a child that has inherited a limit."""
    code = (
        f"import resource; resource.setrlimit({int(kind)}, ({limit}, {limit}));"
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r});"
        "import trapped; trapped.register();"
        "from imgindex.models.decoder import serve; serve()"
    )
    return (sys.executable, "-P", "-c", code)


class TestInherits:
    @pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
    @pytest.mark.parametrize("deed", ["memory", "segfault"])
    def test_a_limit_of_memory_which_is_not_the_fault_of_an_image(self, kind, deed, image_bytes):
        with DecoderProcess(under(kind, 2 << 30)) as decoder:
            assert_decodes(decoder, image_bytes(1))
            found, said = reason(decoder, trap(deed))
            assert found == "no_memory"
            assert "ulimit gives the decoder only 2048 MiB" in said
            assert reason(decoder, b"text")[0] == "not_an_image"

    def test_a_limit_that_is_no_less_than_its_own(self):
        with DecoderProcess(under(resource.RLIMIT_DATA, 5 << 30)) as decoder:
            assert reason(decoder, trap("memory"))[0] == "out_of_memory"
            assert reason(decoder, trap("segfault"))[0] == "crashed"

    def test_a_limit_of_computing(self, monkeypatch):
        monkeypatch.setattr(decoder_module, "_WAITING", 1000)
        with DecoderProcess(under(resource.RLIMIT_CPU, 2)) as decoder:
            found, said = reason(decoder, trap("hang"))
        assert found == "killed"
        assert "signal" in said


# In memory an RGB image takes four bytes a pixel, and TIFF's decoder a strip of three besides.
@pytest.mark.parametrize(
    ("form", "options", "bytes_a_pixel"),
    [
        ("PNG", {}, 4),
        ("BMP", {}, 4),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, 4),
        ("TIFF", {"compression": "tiff_adobe_deflate", "strip_size": 1 << 30}, 7),
    ],
)
def test_images_that_need_more_memory_than_there_is(form, options, bytes_a_pixel, image_bytes):
    file = io.BytesIO()
    Image.new("RGB", (2500, 2000)).save(file, form, **options)
    data, pixels = file.getvalue(), 2500 * 2000
    with DecoderProcess(limited(len(data) + (bytes_a_pixel - 1) * pixels)) as decoder:
        assert reason(decoder, data)[0] == "out_of_memory"
        assert_decodes(decoder, image_bytes(1))
    with DecoderProcess(limited(len(data) + (bytes_a_pixel + 3) * pixels)) as decoder:
        assert_decodes(decoder, data)


def in_formats_whose_libraries_call_it_damage(size: tuple[int, int]) -> dict[str, bytes]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).resize(size)
    plugins.register()
    found = {}
    for form, options in (
        ("JPEG", {"progressive": True}), ("JPEG2000", {}), ("WEBP", {"method": 0}), ("AVIF", {"speed": 10}),
        ("HEIF", {"quality": 50}),
    ):  # fmt: skip
        file = io.BytesIO()
        picture.save(file, form, **options)
        found[form] = file.getvalue()
    found["JXL"] = bytes(pytest.importorskip("imagecodecs").jpegxl_encode(np.asarray(picture), effort=1))
    return found


@pytest.mark.parametrize("spare", [1, *(pytest.param(mib, marks=pytest.mark.long) for mib in (8, 16))])
def test_too_little_memory_is_not_called_damage(spare):
    """The libraries for these formats give the same errors for both."""
    pytest.importorskip("pillow_heif")
    with DecoderProcess(limited(spare << 20)) as decoder:
        for form, data in in_formats_whose_libraries_call_it_damage((1200, 1000)).items():
            try:
                assert decoder.decode(data, SIZE).width == 1200, form
            except DecodeError as error:
                # Some libraries abort, which `TestInherits` is about.
                assert error.reason in ("out_of_memory", "crashed"), form  # noqa: PT017
    with DecoderProcess(COMMAND) as decoder:
        for data in in_formats_whose_libraries_call_it_damage((300, 200)).values():
            assert reason(decoder, data[: len(data) // 2])[0] != "out_of_memory"


class TestEnds:
    def test_with_its_parent_object(self, decoder, image_bytes):
        child = child_of(decoder, image_bytes(1))
        decoder.close()
        assert child not in children(os.getpid())
        decoder.close()
        assert_decodes(decoder, image_bytes(1))

    def test_with_a_parent_that_is_killed(self, image_bytes, tmp_path):
        image = tmp_path / "image.png"
        image.write_bytes(image_bytes(1))
        code = (
            "import sys, time; from pathlib import Path; from imgindex.models.decoder import DecoderProcess;"
            "from imgindex.models.resizing import Resizing; decoder = DecoderProcess();"
            "decoder.decode(Path(sys.argv[1]).read_bytes(), Resizing((8, 8)));"
            "print('ready', flush=True); time.sleep(1000)"
        )
        with subprocess.Popen([sys.executable, "-c", code, image], stdout=subprocess.PIPE) as parent:
            assert parent.stdout
            assert parent.stdout.readline() == b"ready\n"
            (child,) = children(parent.pid)
            ended = os.pidfd_open(child)
            parent.kill()
        assert select.select([ended], [], [], 60)[0], f"process {child} lives on"
        os.close(ended)

    def test_by_itself_where_it_hangs_and_nobody_is_left_to_kill_it(self):
        code = (
            "import trapped; from imgindex.models import decoder; trapped.register();"
            "decoder._ORPHAN_LIMIT = 1; decoder.serve()"
        )
        command = (
            sys.executable,
            "-c",
            f"import sys; sys.path.append({str(Path(__file__).parents[1])!r}); {code}",
        )
        with DecoderProcess(command) as decoder:
            said = "the decoder died: signal 14 (Alarm clock), from outside"
            assert reason(decoder, trap("hang")) == ("killed", said)

    def test_not_by_a_ctrl_c_that_is_for_its_parent(self, decoder, image_bytes):
        child = child_of(decoder, image_bytes(1))
        assert os.getpgid(child) != os.getpgrp()
        assert os.getsid(child) == os.getsid(0)


class TestProcess:
    def test_is_small(self, decoder, image_bytes):
        child = child_of(decoder, image_bytes(1))
        assert "Threads:\t1\n" in Path(f"/proc/{child}/status").read_text()
        code = (
            "import sys, imgindex.models.decoder;"
            "print({'apache_beam', 'tensorflow', 'keras', 'openvino', 'pyarrow', 'scipy'} & {*sys.modules})"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout == "set()\n"

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ((sys.executable, "-c", "import no_such_module"), "does not start: .*'no_such_module'"),
            ((sys.executable, "-c", ""), "does not start: exit code 0"),
            (("/no/such/program",), "cannot start /no/such/program .*: No such file"),
        ],
    )
    def test_that_does_not_start(self, command, message, image_bytes):
        before = children(os.getpid())
        with DecoderProcess(command) as decoder, pytest.raises(WorkerError, match=message):
            decoder.decode(image_bytes(1), SIZE)
        assert children(os.getpid()) == before

    def test_does_not_import_what_lies_in_the_working_directory(self, image_bytes, tmp_path, monkeypatch):
        (tmp_path / "numpy.py").write_text("raise SystemExit('wrong numpy')")
        monkeypatch.chdir(tmp_path)
        with DecoderProcess() as decoder:
            assert_decodes(decoder, image_bytes(1))
