"""How fast one core decodes: thumbnails and 12-megapixel photos, at full size and as imgindex does it."""

import io
import time

import numpy as np
from measure import machine
from PIL import Image

from imgindex.models.preprocess import decode

SIZE = (224, 224)


def jpeg(width: int, height: int) -> bytes:
    """A JPEG with detail at every scale."""
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (width, height))
    for cells in (4, 32, 256):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        image = Image.blend(image, noise.resize((width, height), Image.Resampling.BICUBIC), 0.5)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def full_size(data: bytes) -> None:
    """What a plain loop does."""
    with Image.open(io.BytesIO(data)) as image:
        np.asarray(image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR))


def rate(function: object, data: bytes, seconds: float = 2.0) -> float:
    """Calls a second."""
    started, calls = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        function(data)
        calls += 1
    return calls / (time.monotonic() - started)


def main() -> None:
    """Prints a table."""
    print(machine())
    for width, height in ((300, 200), (1200, 900), (4000, 3000)):
        data = jpeg(width, height)
        plain, ours = rate(full_size, data), rate(lambda data: decode(data, SIZE), data)
        print(
            f"{width} x {height}, {len(data) / 1024:.0f} KiB: full size {plain:.1f}/s, "
            f"imgindex {ours:.1f}/s, {ours / plain:.2f} x"
        )


if __name__ == "__main__":
    main()
