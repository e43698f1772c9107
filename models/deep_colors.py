"""RGB of 16 bits: Pillow keeps the upper byte of each value, in which 12 bits leave nearly nothing."""

import io
import sys
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from imgindex.models import mending
from imgindex.models.levels import named_white, rank_of_high, white_for

# How Pillow unpacks the upper bytes, and how it unpacks the lower ones in their place.
_OTHER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_RAW_MODES = {
    f"{mode};16{order}": f"{mode};16{_OTHER[order]}"
    for mode in ("RGB", "RGBX", "R", "G", "B")
    for order in "LBN"
}

# Pixels that are put together at once.
_STRIP_PIXELS = 1 << 20


def load(image: ImageFile.ImageFile, data: bytes) -> None:
    """Loads `image`, opened from `data`. RGB of 16 bits gets its white as gray does, one for all colors.

    Raises what Pillow does.
    """
    is_deep = bool(image.tile) and all(_raw_mode(tile.args) in _RAW_MODES for tile in image.tile)
    image.load()
    if not is_deep or "transparency" in image.info:
        return
    white = named_white(getattr(image, "tag_v2", {}))
    counts = np.array(image.histogram(), np.int64).reshape(3, 256).sum(axis=0)
    if white is None and white_for(_high(counts) << 8 | 255) == 65535:
        return
    with Image.open(io.BytesIO(data), formats=[str(image.format)]) as lower:
        mending.mend(lower, data)
        lower.tile = [tile._replace(args=_with_other_order(tile.args)) for tile in lower.tile]
        lower.load()
        rows = max(1, _STRIP_PIXELS // image.width)
        boxes = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]

        def values(box: tuple[int, int, int, int]) -> Any:
            upper_bytes, lower_bytes = (np.asarray(each.crop(box), np.uint16) for each in (image, lower))
            return upper_bytes << 8 | lower_bytes

        if white is None:
            counts = np.zeros(1 << 16, np.int64)
            for box in boxes:
                counts += np.bincount(values(box).ravel(), minlength=1 << 16)
            white = white_for(_high(counts))
        scaled = (np.arange(1 << 16) * (255 / white)).clip(0, 255).round().astype(np.uint8)
        for box in boxes:
            image.paste(Image.fromarray(scaled[values(box)]), box)


def _high(counts: Any) -> int:
    """The value that 99.9 % do not exceed of those that `counts` counts."""
    return int(np.searchsorted(counts.cumsum(), rank_of_high(int(counts.sum())), side="right"))


def _raw_mode(args: Any) -> str:
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _with_other_order(args: Any) -> Any:
    other = _RAW_MODES[_raw_mode(args)]
    return other if isinstance(args, str) else (other, *args[1:])
