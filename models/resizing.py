"""How an image of any shape becomes one of the size that a backbone takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image

# stretch: to the size, whatever the image's aspect ratio. pad: as large as the size allows, in its middle, as
# `PIL.ImageOps.pad` does. crop: the largest part of the middle that has the size's aspect ratio, as
# `PIL.ImageOps.fit` does.
RESIZES = ("stretch", "pad", "crop")

INTERPOLATIONS = ("bilinear", "bicubic")

Color = tuple[int, int, int]  # red, green, blue, 0 to 255

# What most backbones were trained on has this mean, and so the backbone's preprocessing maps it to about 0.
IMAGENET_MEAN: Color = (124, 116, 104)

# Width and height, as Pillow has them.
_Sides = tuple[int, int]
_Extent = tuple[float, float]


@dataclass(frozen=True)
class Resizing:
    """What makes an image one of `size`. The filter is antialiased: Pillow's of the name `interpolation`."""

    size: tuple[int, int]  # height, width
    mode: str = "stretch"  # one of RESIZES
    interpolation: str = "bilinear"  # one of INTERPOLATIONS
    fill: Color | None = None  # of what `pad` leaves free; None with the other modes

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """From the fields of one, as JSON has them: with lists for tuples."""
        read: dict[str, Any] = {
            name: tuple(each) if isinstance(each, list) else each for name, each in fields.items()
        }
        return cls(**read)

    @classmethod
    def filled(cls, size: tuple[int, int], mode: str, fill: Color, interpolation: str = "bilinear") -> Self:
        """One that lays `fill` around what it pads. The other modes leave nothing free, and have no color."""
        return cls(size, mode, interpolation, fill if mode == "pad" else None)

    def draft(self, whole: _Sides) -> _Sides:
        """The least size at which an image of `whole` may be decoded: twice what the resizing makes of it.

        It is the same for images on their sides.
        """
        side = 2 * max(self.size)
        if self.mode == "pad":
            # The longer side alone must fill the size.
            longer = max(whole)
            return -(-side * whole[0] // longer), -(-side * whole[1] // longer)
        return side, side

    def resized(self, image: Image.Image, extent: _Extent, turned: bool) -> Image.Image:
        """The image of the size but for what `framed` adds.

        Args:
          image: as it is stored, perhaps decoded at a reduced size.
          extent: the width and height that the picture takes of it. A reduced image's last pixels may show
            places beyond the original's edges.
          turned: whether the image lies on its side, and so does what this gives.
        """
        columns, rows = self.size if turned else self.size[::-1]
        box = None  # to which a stretched image's last pixels belong whole
        if self.mode == "pad":
            columns, rows = _within(extent, (columns, rows))
            box = (0.0, 0.0, *extent)
        elif self.mode == "crop":
            box = _middle(extent, (columns, rows))
        return image.resize((columns, rows), Image.Resampling[self.interpolation.upper()], box)

    def framed(self, image: Image.Image) -> Image.Image:
        """An upright RGB image that `resized` has made, in the middle of the size."""
        height, width = self.size
        if image.size == (width, height):
            return image
        frame = Image.new("RGB", (width, height), self.fill or IMAGENET_MEAN)
        frame.paste(image, (round((width - image.width) / 2), round((height - image.height) / 2)))
        return frame


def _within(whole: _Extent, target: _Sides) -> _Sides:
    """The largest size of the aspect ratio of `whole` that has room in `target`, as of `ImageOps.contain`."""
    if whole[0] / whole[1] > target[0] / target[1]:
        return target[0], max(1, round(whole[1] / whole[0] * target[0]))
    return max(1, round(whole[0] / whole[1] * target[1])), target[1]


def _middle(whole: _Extent, target: _Sides) -> tuple[float, float, float, float]:
    """The largest box in the middle of `whole` that has the aspect ratio of `target`."""
    scale = min(whole[0] / target[0], whole[1] / target[1])
    left, top = (max(0.0, (most - side * scale) / 2) for side, most in zip(target, whole, strict=True))
    return left, top, whole[0] - left, whole[1] - top
