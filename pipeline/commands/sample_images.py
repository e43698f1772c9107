"""Sample images for `imgindex demo`: crops of two real photos and drawn scenes, by class.

The photos are the two that scikit-learn ships, so that a demo needs neither a download nor files
of its own. Everything is drawn at twice its size and reduced, which smooths the edges.
"""

import colorsys
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from sklearn.datasets import load_sample_image

Color = tuple[int, int, int]
Size = tuple[int, int]
Point = tuple[float, float]
Rng = np.random.Generator
Painter = Callable[[Rng, Size], Image.Image]

IMAGES_PER_CLASS = 24
SIDES = (200, 224, 240, 256, 288, 320)
ORIENTATION_TAG = 0x0112
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
CLOTH = (
    *((214, 64, 69), (240, 138, 36), (250, 200, 60)),
    *((38, 140, 130), (52, 104, 192), (112, 78, 160), (224, 110, 150)),
)


def write_samples(directory: Path, seed: int = 0) -> int:
    """Write labelled sample images as `directory/<class>/<class>_000.jpg` and return how many.

    The same seed gives the same bytes (on one machine with the same libraries). A few images are
    deliberately not plain RGB JPEGs: PNGs, with a palette, gray, transparent or turned by EXIF.
    """
    for number, (name, paint) in enumerate(PAINTERS.items()):
        folder = directory / name
        folder.mkdir(parents=True, exist_ok=True)
        for item in range(IMAGES_PER_CLASS):
            rng = np.random.default_rng([seed, number, item])
            width, height = (int(side) for side in rng.choice(SIDES, 2))
            # Nothing here looks right in a very flat or very tall frame.
            height = int(np.clip(height, width * 0.75, width * 1.34))
            image = _develop(rng, paint(rng, (2 * width, 2 * height)))
            _save(image, folder / f"{name}_{item:03}", number, item)
    return len(PAINTERS) * IMAGES_PER_CLASS


def _save(image: Image.Image, stem: Path, number: int, item: int) -> None:
    if item == 5:
        image.save(stem.with_suffix(".png"))
    elif item == 11 and number % 4 == 0:
        image.quantize(128).save(stem.with_suffix(".png"))
    elif item == 11 and number % 4 == 1:
        image.convert("L").save(stem.with_suffix(".jpg"), quality=88)
    elif item == 11 and number % 4 == 2:
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, *image.size), min(image.size) // 8, fill=255)
        image.putalpha(mask)
        image.save(stem.with_suffix(".png"))
    elif item == 11:
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = 6
        turned = image.transpose(Image.Transpose.ROTATE_90)
        turned.save(stem.with_suffix(".jpg"), quality=88, exif=exif)
    else:
        image.save(stem.with_suffix(".jpg"), quality=88)


def _develop(rng: Rng, image: Image.Image) -> Image.Image:
    """Reduce a painting and vary light, color and grain as a camera would."""
    image = image.reduce(2)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.12))
    image = ImageEnhance.Color(image).enhance(rng.uniform(0.8, 1.2))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.9, 1.12))
    grain = rng.normal(0, rng.uniform(1, 4), (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def _hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _mix(first: Color, second: Color, share: float) -> Color:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _shade(color: Color, light: float) -> Color:
    return _mix(BLACK, color, min(light, 1))


def _gradient(size: Size, *stops: Color) -> Image.Image:
    """Blend colors from the top edge to the bottom edge."""
    rows, places = np.linspace(0, 1, size[1]), np.linspace(0, 1, len(stops))
    column = np.stack([np.interp(rows, places, channel) for channel in zip(*stops, strict=True)], 1)
    return Image.fromarray(np.repeat(column[:, None].astype(np.uint8), size[0], axis=1))


def _noise(rng: Rng, size: Size, cells: int, octaves: int = 3) -> Image.Image:
    """Return smooth gray noise that spans 0..255."""
    # Half the resolution is enough for something smooth, and four times faster.
    half = (size[0] // 2, size[1] // 2)
    total = np.zeros((half[1], half[0]), np.float32)
    for octave in range(octaves):
        grid = rng.random((cells << octave, cells << octave), np.float32) / 2**octave
        total += np.asarray(Image.fromarray(grid).resize(half, Image.Resampling.BICUBIC))
    total -= total.min()
    gray = Image.fromarray((total * (255 / total.max())).astype(np.uint8))
    return gray.resize(size, Image.Resampling.BILINEAR)


def _textured(rng: Rng, image: Image.Image, cells: int, strength: float) -> Image.Image:
    dark = _noise(rng, image.size, cells).point(lambda value: value * strength)
    return Image.composite(Image.new("RGB", image.size), image, dark)


def _tilted(image: Image.Image, degrees: float) -> Image.Image:
    """Turn a texture and zoom in so far that no empty corner shows."""
    width, height = image.size
    box = (width // 7, height // 7, width * 6 // 7, height * 6 // 7)
    turned = image.rotate(degrees, Image.Resampling.BILINEAR)
    return turned.resize(image.size, Image.Resampling.BILINEAR, box)


def _glow(image: Image.Image, x: float, y: float, rx: float, ry: float, color: Color) -> None:
    """Paste a soft spot of light, or of shadow when the color is dark."""
    # Pillow's gradient is at 181 in the middle of its edges, where the spot has to end.
    spot = Image.radial_gradient("L").point(lambda far: 255 * max(0, 1 - far / 181) ** 1.5)
    image.paste(color, (int(x - rx), int(y - ry)), spot.resize((int(2 * rx) + 1, int(2 * ry) + 1)))


def _sky(rng: Rng, size: Size) -> Image.Image:
    hue = rng.uniform(0.53, 0.61)
    top, bottom = _hsv(hue, rng.uniform(0.35, 0.75), 0.85), _hsv(hue - 0.03, 0.12, 0.98)
    image = _gradient(size, top, bottom)
    cover = rng.uniform(110, 170)
    clouds = _noise(rng, size, 3, 4).point(lambda value: max(0, value - cover) * 3)
    image.paste(WHITE, (0, 0), clouds)
    return image


def _gores(draw: ImageDraw.ImageDraw, rng: Rng, x: float, profile: Sequence[Point], sag: float = 0) -> None:
    """Draw a round body of cloth panels; profile is (y, half width) from top to bottom."""
    first, second = rng.permutation(np.array([*CLOTH, WHITE, (252, 244, 226)]))[:2].tolist()
    seams = np.linspace(-np.pi / 2, np.pi / 2, int(rng.integers(7, 12)))
    bottom, half = profile[-1]
    for left, right in itertools.pairwise(seams):
        first, second = second, first
        steps = np.linspace(0, 1, 9)
        turns = left + (right - left) * steps
        hem = zip(x + half * np.sin(turns), bottom - sag * np.sin(np.pi * steps), strict=True)
        near = [(x + width * np.sin(left), y) for y, width in profile]
        far = [(x + width * np.sin(right), y) for y, width in reversed(profile)]
        draw.polygon([*near, *hem, *far], _shade(first, 0.5 + 0.5 * np.cos(turns[4] + 0.5)))


@functools.cache
def _load(name: str) -> Image.Image:
    return Image.fromarray(load_sample_image(name))


def _photo(name: str, box: tuple[int, int, int, int], smallest: float) -> Painter:
    """Return a painter of random crops from one region of a photo."""
    left, top, right, bottom = box

    def paint(rng: Rng, size: Size) -> Image.Image:
        centre = (left + right) / 2, (top + bottom) / 2
        image = _load(name).rotate(rng.uniform(-7, 7), Image.Resampling.BILINEAR, center=centre)
        scale = min((right - left) / size[0], (bottom - top) / size[1]) * rng.uniform(smallest, 1)
        width, height = size[0] * scale, size[1] * scale
        x, y = rng.uniform(left, right - width), rng.uniform(top, bottom - height)
        image = image.resize(size, Image.Resampling.BICUBIC, (x, y, x + width, y + height))
        image = ImageOps.autocontrast(image, cutoff=(0.2, 0.5), preserve_tone=True)
        return ImageOps.mirror(image) if rng.random() < 0.5 else image

    return paint


def _dahlia(rng: Rng, size: Size) -> Image.Image:
    image = _photo("flower.jpg", (130, 50, 480, 400), 0.55)(rng, size)
    hue, saturation, value = image.convert("HSV").split()
    shift = int(rng.integers(-45, 28))
    # Only the flower changes its color; the leaves behind it stay green.
    hue = hue.point(lambda old: (old + shift) % 256 if old < 45 or old > 230 else old)
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _balloon(rng: Rng, size: Size) -> Image.Image:
    image = _sky(rng, size)
    draw = ImageDraw.Draw(image)
    turns = np.linspace(0, 0.85 * np.pi, 34)
    for radius in sorted(rng.uniform(0.1, 0.3, rng.integers(1, 4)) * min(size)):
        x, y = rng.uniform(0.2, 0.8) * size[0], rng.uniform(0.3, 0.55) * size[1]
        ys = y - radius * np.cos(turns) * np.where(turns < np.pi / 2, 1, 1.35)
        _gores(draw, rng, x, list(zip(ys, radius * np.sin(turns) ** 0.9, strict=True)))
        mouth, half = ys[-1], radius * np.sin(turns[-1]) ** 0.9
        basket = (x - radius / 7, mouth + radius / 3, x + radius / 7, mouth + radius * 0.55)
        for side in (-1, 1):
            draw.line((x + side * half, mouth, x + side * radius / 8, basket[1]), (60, 45, 35), 3)
        draw.rounded_rectangle(basket, radius / 20, (120, 80, 45))
    return image


def _brick_wall(rng: Rng, size: Size) -> Image.Image:
    mortar = _hsv(0.09, rng.uniform(0.05, 0.2), rng.uniform(0.6, 0.9))
    image = Image.new("RGB", size, mortar)
    draw = ImageDraw.Draw(image)
    tall = int(rng.integers(30, 64))
    wide, gap = int(tall * rng.uniform(2, 2.7)), max(3, tall // 9)
    hue, saturation = rng.uniform(0, 0.07), rng.uniform(0.4, 0.7)
    for row, y in enumerate(range(0, size[1], tall)):
        for x in range(-(row % 2) * wide // 2, size[0], wide):
            color = _hsv(hue + rng.normal(0, 0.008), saturation, rng.uniform(0.5, 0.85))
            draw.rectangle((x, y, x + wide - gap, y + tall - gap), color)
    return _tilted(_textured(rng, image, 48, 0.45), rng.uniform(-8, 8))


def _candle(rng: Rng, size: Size) -> Image.Image:
    width, height = size
    image = _gradient(size, _hsv(rng.random(), 0.5, 0.16), (10, 8, 8))
    for _ in range(9):
        x, y, radius = rng.random(3) * (width, height, width / 4)
        _glow(image, x, y, radius, radius, _hsv(rng.uniform(0.02, 0.14), 0.7, 0.45))
    count, half = int(rng.integers(1, 4)), width * rng.uniform(0.05, 0.09)
    wax = _hsv(rng.choice([0.1, 0.12, 0.0]), rng.uniform(0.1, 0.75), 0.95)
    for x in width * (np.arange(1, count + 1) / (count + 1) + rng.normal(0, 0.02)):
        top = height * rng.uniform(0.45, 0.68)
        _glow(image, x, top - half, half * 6, half * 6, (225, 140, 50))
        body = _gradient((int(2 * half), int(height - top) + 1), wax, _shade(wax, 0.45))
        image.paste(body, (int(x - half), int(top)))
        draw = ImageDraw.Draw(image)
        rim = (x - half, top - half / 4, x + half, top + half / 4)
        draw.ellipse(rim, _mix(wax, (255, 230, 160), 0.6))
        draw.line((x, top, x, top - half * 0.6), (40, 25, 20), 4)
        turns = np.linspace(0, 2 * np.pi, 40)
        for scale, color in ((1, (255, 150, 30)), (0.7, (255, 215, 90)), (0.4, (255, 250, 220))):
            xs = x + np.sin(turns) * np.sin(turns / 2) * half * 0.48 * scale
            ys = top - half * (0.4 + (1 + np.cos(turns)) * scale)
            draw.polygon(list(zip(xs, ys, strict=True)), color)
    return image


def _checkerboard(rng: Rng, size: Size) -> Image.Image:
    side = int(rng.integers(44, 90))
    dark, light = (
        _shade(CLOTH[rng.integers(len(CLOTH))], rng.uniform(0, 0.6)),
        _hsv(0.11, 0.12, 0.97),
    )
    image = Image.new("RGB", size, light)
    for row, column in np.ndindex(size[1] // side + 1, size[0] // side + 1):
        if (row + column) % 2:
            image.paste(dark, (column * side, row * side, (column + 1) * side, (row + 1) * side))
    return _tilted(_textured(rng, image, 4, 0.35), rng.uniform(-45, 45))


def _clock(rng: Rng, size: Size) -> Image.Image:
    wall = _hsv(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.6, 0.95))
    image = _textured(rng, _gradient(size, wall, _shade(wall, 0.75)), 6, 0.2)
    radius = min(size) * rng.uniform(0.3, 0.44)
    x, y = size * rng.normal(0.5, 0.03, 2)
    _glow(image, x + radius / 8, y + radius / 6, radius * 1.5, radius * 1.5, _shade(wall, 0.2))
    draw = ImageDraw.Draw(image)
    rim = _shade(CLOTH[rng.integers(len(CLOTH))], rng.uniform(0.2, 1))
    face = _hsv(0.12, rng.uniform(0, 0.15), 0.98)
    for scale, color in ((1, rim), (0.95, _mix(rim, WHITE, 0.3)), (0.88, face)):
        draw.circle((x, y), radius * scale, color)

    def hand(turn: float, start: float, end: float, color: Color, thick: float) -> None:
        way = radius * np.array([np.sin(2 * np.pi * turn), -np.cos(2 * np.pi * turn)])
        draw.line([*((x, y) + way * start), *((x, y) + way * end)], color, int(radius * thick))

    font, numerals = ImageFont.load_default(radius * 0.19), rng.random() < 0.7
    for tick in range(60):
        hand(tick / 60, 0.77 if tick % 5 == 0 else 0.81, 0.84, BLACK, 0.02)
        if numerals and tick % 5 == 0:
            way = radius * 0.62 * np.exp(2j * np.pi * tick / 60)
            draw.text((x + way.imag, y - way.real), str(tick // 5 or 12), BLACK, font, "mm")
    hour = rng.uniform(0, 12)
    hand(hour / 12, -0.1, 0.45, (20, 20, 20), 0.07)
    hand(hour % 1, -0.1, 0.7, (20, 20, 20), 0.05)
    hand(rng.random(), -0.15, 0.76, (200, 40, 30), 0.02)
    draw.circle((x, y), radius / 18, (200, 40, 30))
    return image


def _honeycomb(rng: Rng, size: Size) -> Image.Image:
    hue, radius = rng.uniform(0.09, 0.13), rng.uniform(26, 54)
    image = Image.new("RGB", size, _hsv(hue, 0.6, rng.uniform(0.8, 0.98)))
    draw = ImageDraw.Draw(image)
    dark, full = rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.7)
    for row, column in np.ndindex(int(size[1] / radius / 1.5) + 2, int(size[0] / radius / 1.7) + 2):
        x, y = (column + row % 2 / 2) * radius * 1.732, row * radius * 1.5
        honey = rng.random() < full
        value = rng.uniform(0.8, 1) if honey else dark * rng.uniform(0.7, 1.2)
        color = _hsv(hue - 0.015, 0.9, value)
        draw.regular_polygon((x, y, radius * 0.86), 6, 30, _shade(color, 0.65))
        draw.regular_polygon((x, y, radius * 0.72), 6, 30, color)
        if honey:
            shine = (x - radius * 0.3, y - radius * 0.4, x, y - radius * 0.15)
            draw.ellipse(shine, _mix(color, (255, 245, 200), 0.7))
    return _tilted(_textured(rng, image, 4, 0.35), rng.uniform(-30, 30))


def _mountains(rng: Rng, size: Size) -> Image.Image:
    width, height = size
    hue = rng.choice([0.57, 0.6, 0.05, 0.92])
    haze, rock = _hsv(hue, 0.2, 0.97), _hsv(rng.uniform(0.55, 0.7), 0.35, 0.28)
    image = _gradient(size, _hsv(hue + 0.03, 0.5, 0.85), haze, haze)
    _glow(image, rng.uniform(0.1, 0.9) * width, height / 4, width / 3, width / 3, (255, 252, 230))
    rough = _noise(rng, size, 10, 4)
    y, columns = np.arange(height)[:, None], np.linspace(0, 1, width)
    for near in np.linspace(0, 1, rng.integers(3, 6)):
        tops = np.full(width, height * (0.42 + 0.4 * near))
        for octave in range(6):
            knots = rng.normal(0, height * (0.13 - 0.09 * near) / 1.8**octave, (4 << octave) + 1)
            tops += np.interp(columns, np.linspace(0, 1, len(knots)), knots)
        body = _mix(haze, rock, 0.35 + 0.65 * near)
        face = Image.new("RGB", size, body)
        face.paste(_mix(body, haze, 0.5), (0, 0), rough)
        if near == 0:
            snow = y < tops.min() + height * 0.1 + np.asarray(rough) * (height / 1200)
            face.paste((250, 251, 255), (0, 0), Image.fromarray(snow))
        image.paste(face, (0, 0), Image.fromarray(y > tops))
    return image


def _sailboat(rng: Rng, size: Size) -> Image.Image:
    width, height = size
    image = _sky(rng, size)
    horizon = int(height * rng.uniform(0.5, 0.68))
    sea = _hsv(rng.uniform(0.5, 0.6), rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.75))
    water = _gradient((width, height - horizon), _mix(sea, WHITE, 0.4), _shade(sea, 0.65))
    # A narrow slice of noise, stretched sideways, looks like waves.
    waves = _noise(rng, water.size, 24).resize(water.size, box=(0, 0, width / 6, water.height))
    water.paste(WHITE, (0, 0), waves.point(lambda value: max(0, value - 140)))
    image.paste(water, (0, horizon))
    draw = ImageDraw.Draw(image)
    for scale in sorted(rng.uniform(0.12, 0.34, rng.integers(1, 3)) * min(size)):
        x, y = rng.uniform(0.3, 0.7) * width, horizon + scale * rng.uniform(0.3, 0.6)
        # One boat length to either side, so that a negative way sails to the left.
        way = scale * rng.choice([-1, 1])
        hull = CLOTH[rng.integers(len(CLOTH))]
        cloth = WHITE if rng.random() < 0.6 else CLOTH[rng.integers(len(CLOTH))]
        jib = [(0.05, -1.8), (0.05, -0.3), (0.75, -0.2)]
        for sail, light in (([(0, -2), (0, -0.3), (-1, -0.3)], 1), (jib, 0.86)):
            mirrored = [(x + way * a, y - scale * b * 0.35) for a, b in sail]
            draw.polygon(mirrored, _mix(sea, cloth, 0.3))
            draw.polygon([(x + way * a, y + scale * b) for a, b in sail], _shade(cloth, light))
        draw.line((x, y - scale * 2.1, x, y), (70, 50, 35), max(4, int(scale / 30)))
        for low, color in ((0.12, hull), (-0.1, _mix(hull, WHITE, 0.7))):
            side = [(-1.05, -0.18), (1.25, -0.24), (0.8 if low > 0 else 1.1, low), (-0.9, low)]
            draw.polygon([(x + way * a, y + scale * b) for a, b in side], color)
    return image


def _umbrella(rng: Rng, size: Size) -> Image.Image:
    width, height = size
    image = _sky(rng, size)
    shore, beach = int(height * rng.uniform(0.5, 0.6)), int(height * rng.uniform(0.66, 0.76))
    sea = _hsv(rng.uniform(0.48, 0.57), 0.6, 0.75)
    image.paste(_gradient((width, height - shore), sea, _mix(sea, WHITE, 0.4)), (0, shore))
    sand = _gradient((width, height - beach), (238, 218, 176), (214, 184, 132))
    image.paste(_textured(rng, sand, 64, 0.25), (0, beach))
    radius = min(size) * rng.uniform(0.28, 0.4)
    x, y, foot = width * rng.uniform(0.42, 0.58), height * rng.uniform(0.42, 0.5), height * 0.88
    _glow(image, x, foot, radius * 1.2, radius * 0.24, (80, 62, 40))
    layer = Image.new("RGBA", size)
    draw = ImageDraw.Draw(layer)
    draw.line((x, y - radius * 0.78, x, foot), (235, 232, 225), int(radius / 14))
    turns = np.linspace(0.03, np.pi / 2, 16)
    profile = zip(y - radius * 0.72 * np.cos(turns), radius * np.sin(turns), strict=True)
    _gores(draw, rng, x, list(profile), radius * 0.09)
    layer = layer.rotate(rng.uniform(-14, 14), Image.Resampling.BILINEAR, center=(x, foot))
    image.paste(layer, (0, 0), layer)
    return image


PAINTERS: dict[str, Painter] = {
    "balloon": _balloon,
    "brick_wall": _brick_wall,
    "candle": _candle,
    "checkerboard": _checkerboard,
    "clock": _clock,
    "dahlia": _dahlia,
    "honeycomb": _honeycomb,
    "lake": _photo("china.jpg", (340, 120, 560, 290), 0.75),
    "mountains": _mountains,
    "pagoda": _photo("china.jpg", (45, 15, 375, 410), 0.5),
    "sailboat": _sailboat,
    "trees": _photo("china.jpg", (335, 275, 640, 427), 0.75),
    "umbrella": _umbrella,
}
