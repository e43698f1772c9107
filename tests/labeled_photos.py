"""A folder of photos with labels, for tests of searches."""

from collections.abc import Callable
from pathlib import Path


def write_photos(folder: Path, image_bytes: Callable[..., bytes]) -> None:
    """Writes twelve different images, 00.png to 11.png, in turn to `a` and `b` below `folder`."""
    for number in range(12):
        path = folder / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number))
