"""What a first build that fails or is refused leaves behind: nothing but what the next build can use."""

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_engine import QuartersEngine, factory_of, registered

from imgindex.cli import main
from imgindex.errors import OutputError
from imgindex.io.output_lock import writer_lock

QUICK = ["backbone.name=MobileNetV2", "backbone.image_size=32", "engine.precision=float32", "pca.dims=2"]


@pytest.fixture
def photos(tmp_path: Path, image_bytes: Callable[..., bytes]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(image_bytes(number))
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def build(photos: Path, output: Path, weights: str, *more: str) -> int:
    values = (*QUICK, f"backbone.weights={weights}", *more)
    settings = [word for value in values for word in ("--set", value)]
    return main(["build", "--input", str(photos), "--output", str(output), *settings])


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class TestFailed:
    @pytest.fixture
    def weights(self, tmp_path: Path) -> str:
        """A file that a build looks at once it has the output's lock, and cannot use."""
        path = tmp_path / "bad.h5"
        path.write_bytes(b"no weights")
        return str(path)

    def test_the_folders_that_it_made_are_gone(self, photos: Path, weights: str, tmp_path: Path) -> None:
        assert build(photos, tmp_path / "new" / "also new" / "index", weights) == 2
        assert not (tmp_path / "new").exists()

    def test_what_was_there_stays(self, photos: Path, weights: str, tmp_path: Path) -> None:
        output = tmp_path / "index"
        (output / "store").mkdir(parents=True)  # empty, and not of a build
        for content in ([], ["mine.txt"]):
            for name in content:
                (output / name).write_text("mine")
            before = tree(output)
            assert build(photos, output, weights) == 2
            assert set(before) <= set(tree(output)) <= {*before, ".lock"}

    def test_an_engine_that_fails_leaves_nothing(self, photos: Path, tmp_path: Path) -> None:
        class Broken(QuartersEngine):
            def embed(self, pixels: np.ndarray) -> np.ndarray:
                raise RuntimeError("the device is gone")

        with registered("broken", factory_of(Broken)):
            assert build(photos, tmp_path / "index", "none", "engine.name=broken") == 3
        assert not (tmp_path / "index").exists()


def test_what_stays_of_a_refused_build_is_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "index"
    assert build(photos, output, "none") == 4
    (refused,) = (output / "generations").iterdir()
    assert sorted(path.name for path in refused.iterdir()) == ["failures", "outcome.json"]
    assert str(refused / "failures") in capsys.readouterr().err
    assert f"what was embedded stays in {output / 'store'}; the next build goes on from it" in caplog.text
    assert list((output / "store").glob("*/chunk-*"))


class TestLock:
    def test_one_that_is_deleted_is_made_again(self, tmp_path: Path) -> None:
        output = tmp_path / "index"
        with pytest.raises(ZeroDivisionError), writer_lock(str(output)):
            raise ZeroDivisionError
        assert not output.exists()
        with writer_lock(str(output)):
            assert (output / ".lock").stat().st_size

    def test_that_of_a_build_that_followed_is_left_to_it(self, tmp_path: Path) -> None:
        output = tmp_path / "new" / "index"
        first = writer_lock(str(output))
        first.__enter__()
        # Somebody deletes the output of a build that is under way, and starts another one.
        shutil.rmtree(output)
        with writer_lock(str(output)) as claim:
            error = ZeroDivisionError()
            assert not first.__exit__(ZeroDivisionError, error, None)
            claim.check()
            assert (output / ".lock").exists()

    @pytest.mark.parametrize("content", [b"mine", b"123\n"])
    def test_a_file_that_no_build_has_written_is_not_deleted(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(ZeroDivisionError), writer_lock(str(tmp_path)):
            raise ZeroDivisionError
        assert (tmp_path / ".lock").exists()

    def test_a_link_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("mine")
        (tmp_path / "index").mkdir()
        (tmp_path / "index" / ".lock").symlink_to(tmp_path / "precious")
        with pytest.raises(OutputError, match="is a link and no lock"), writer_lock(str(tmp_path / "index")):
            pass
        assert (tmp_path / "precious").read_text() == "mine"

    def test_one_that_cannot_be_written_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("imgindex.io.output_lock._overwrite", full)
        with pytest.raises(OutputError, match="No space left"), writer_lock(str(tmp_path / "new" / "index")):
            pass
        assert not (tmp_path / "new").exists()

    def test_of_writers_that_fail_all_the_time_one_at_a_time_writes(self, tmp_path: Path) -> None:
        inside: list[int] = []
        most: list[int] = []
        refused: list[str] = []

        def write(number: int) -> None:
            for _ in range(150):
                try:
                    with writer_lock(str(tmp_path / "new" / "index")):
                        inside.append(number)
                        most.append(len(inside))
                        inside.remove(number)
                        raise ZeroDivisionError
                except ZeroDivisionError:
                    pass
                except OutputError as error:
                    refused.append(str(error))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(most) == {1}
        assert all("is being written by" in message or "cannot write" in message for message in refused)
        # Of two at once none may have made the folder, which then stays.
        assert set(tree(tmp_path)) <= {"new", "new/index"}
