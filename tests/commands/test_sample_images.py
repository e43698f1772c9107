"""The sample images: what is written, in which formats, and the same every time."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from imgindex.commands.sample_images import IMAGES_PER_CLASS, ORIENTATION_TAG, PAINTERS, write_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("samples")
    assert write_samples(directory) == 312
    return directory


@pytest.mark.long
def test_every_class_has_its_labelled_images(samples: Path) -> None:
    files = [path for path in samples.rglob("*") if path.is_file()]
    assert len(files) == 312
    assert len(PAINTERS) >= 12
    assert Counter(path.parent.name for path in files) == dict.fromkeys(PAINTERS, IMAGES_PER_CLASS)
    for path in files:
        label, number = path.stem.rsplit("_", 1)
        assert label == path.parent.name
        assert number.isdigit()


def test_every_file_opens_and_the_formats_vary(samples: Path) -> None:
    seen = Counter()
    for path in samples.glob("*/*"):
        with Image.open(path) as image:
            image.load()
            assert all(150 <= side <= 430 for side in image.size), path
            assert image.convert("L").getextrema() != (0, 0)
            assert path.suffix == {"JPEG": ".jpg", "PNG": ".png"}[image.format or ""]
            turned = image.getexif().get(ORIENTATION_TAG) == 6
            seen[image.format, image.mode, turned] += 1
    assert set(seen) == {
        ("JPEG", "RGB", False),
        ("JPEG", "RGB", True),
        ("JPEG", "L", False),
        ("PNG", "RGB", False),
        ("PNG", "P", False),
        ("PNG", "RGBA", False),
    }
    assert seen["JPEG", "RGB", False] > 0.9 * seen.total()


def test_no_two_images_are_the_same(samples: Path) -> None:
    assert len({path.read_bytes() for path in samples.glob("*/*")}) == 312


def test_a_seed_decides_every_byte(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgindex.commands.sample_images.IMAGES_PER_CLASS", 3)
    write_samples(tmp_path / "again")
    write_samples(tmp_path / "other", seed=1)
    for path in (tmp_path / "again").glob("*/*"):
        name = path.relative_to(tmp_path / "again")
        assert path.read_bytes() == (samples / name).read_bytes()
        assert path.read_bytes() != (tmp_path / "other" / name).read_bytes()
