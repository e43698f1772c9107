"""Corrects an opened image, before its pixels are loaded, where Pillow departs from the format."""

from itertools import takewhile
from typing import Any

from PIL import BmpImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from imgindex.models.repair import png_chunks
from imgindex.models.tiff_checks import check_tiff

# Where Pillow keeps XMP, from which it takes an orientation that no other decoder applies.
XMP = ("xmp", "XML:com.adobe.xmp")

_BMP_RLE = "imgindex_bmp_rle"


def mend(image: Image.Image, data: bytes) -> None:
    """Changes what `image`, opened from `data` and not loaded yet, is about to load.

    Raises:
      ValueError: its palette has no colors, or its decoder would leave pixels undefined.
    """
    for key in XMP:
        image.info.pop(key, None)
    if image.mode in ("P", "PA") and (image.palette is None or not image.palette.palette):
        raise ValueError("the file holds no palette")  # Pillow would make it black
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tiff(image, data)
        _mend_planes(image)
    if isinstance(image, PngImagePlugin.PngImageFile):
        _mend_png(image, data)
    if isinstance(image, BmpImagePlugin.BmpImageFile):
        image.tile = [
            tile._replace(codec_name=_BMP_RLE if tile.codec_name == "bmp_rle" else tile.codec_name)
            for tile in image.tile
        ]


def _mend_planes(image: TiffImagePlugin.TiffImageFile) -> None:
    """Has uncompressed planes of 16 bits read as such: Pillow takes each byte of them for a value."""
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    if bits[0] != 16 or any(tile.codec_name != "raw" for tile in image.tile):
        return
    order = "L" if image.tag_v2.prefix == b"II" else "B"
    tiles = []
    for tile in image.tile:
        match tile.args:
            case ("R" | "G" | "B" | "A" as plane, *others):
                tiles.append(tile._replace(args=(f"{plane};16{order}", *others)))
            case ("X", *_):
                raise ValueError("Pillow does not read a plane of 16 bits that is neither a color nor alpha")
            case _:
                tiles.append(tile)
    image.tile = tiles


def _mend_png(image: PngImagePlugin.PngImageFile, data: bytes) -> None:
    transparency = image.info.get("transparency")
    if transparency is None:
        return
    if image.mode == "P":
        # One that is longer than the palette is void, as libpng has it.
        before_pixels = takewhile(lambda chunk: chunk.name != b"IDAT", png_chunks(data))
        assigned = next((len(chunk.body) for chunk in before_pixels if chunk.name == b"tRNS"), 0)
        if image.palette is None or assigned > len(image.palette.palette) // 3:
            del image.info["transparency"]
    elif image.mode == "L":
        # Pillow scales samples of 2 and 4 bits to 8, but not the one that is transparent.
        scale = {"L;2": 85, "L;4": 17}.get(str(image.tile[0].args), 1) if image.tile else 1
        image.info["transparency"] = transparency * scale
    elif image.mode == "RGB" and image.tile and image.tile[0].args == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparency)


class _BmpRleDecoder(ImageFile.PyDecoder):
    """Run-length encoded BMPs of 4 and 8 bits, after Microsoft's definition.

    Pillow's own reads absolute runs of an odd number of 4-bit pixels and empty lines wrongly.
    """

    _pulls_fd = True

    def decode(self, buffer: Any) -> tuple[int, int]:
        """See `ImageFile.PyDecoder.decode`. Pixels that the runs leave out have color 0."""
        if self.fd is None:
            raise ValueError("there is no file to read")
        width, height = self.state.xsize, self.state.ysize
        pixels = bytearray(width * height)
        data = self.fd.read()
        nibbles, direction = self.args[1:]
        x, y, position = 0, 0, 0
        while y < height:
            if position + 2 > len(data):
                if y == height - 1 and x >= width:  # only the mark of the end is missing
                    break
                raise ValueError("the file is truncated")
            count, value = data[position : position + 2]
            position += 2
            if count:
                run = (
                    bytes((value >> 4, value & 15)) * (count // 2 + 1) if nibbles else bytes([value]) * count
                )
            elif value == 0:  # the end of a line
                x, y = 0, y + 1
                continue
            elif value == 1:  # the end of the picture
                break
            elif value == 2:  # a step to the right and up
                if position + 2 > len(data):
                    raise ValueError("the file is truncated")
                x, y, position = x + data[position], y + data[position + 1], position + 2
                continue
            else:  # that many pixels one by one, filled up to whole words
                count = value
                stored = (count + 1) // 2 if nibbles else count
                run = data[position : position + stored]
                if len(run) < stored:
                    raise ValueError("the file is truncated")
                position += stored + stored % 2
                if nibbles:
                    run = bytes(pixel for pair in run for pixel in (pair >> 4, pair & 15))
            kept = max(0, min(count, width - x))
            start = y * width + x
            pixels[start : start + kept] = run[:kept]
            x += count
        self.set_as_raw(bytes(pixels), "L" if self.mode == "L" else "P", (0, direction))
        return -1, 0


Image.register_decoder(_BMP_RLE, _BmpRleDecoder)
