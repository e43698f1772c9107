"""How a build's peak memory grows with the number of images: builds of few and of many tiny ones.

The images are so small, and the backbone so quick, that what grows is what imgindex and Beam keep of each.
"""

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import Run, machine, run
from PIL import Image


def synthesize(folder: Path, images: int) -> None:
    """Writes JPEGs of noise; no two have the same bytes."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    encoded = []
    for pixels in noise:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        encoded.append(file.getvalue())
    for number in range(images):
        path = folder / f"{number // 1000:04}" / f"a-rather-long-name-as-cameras-give-{number:09}.jpg"
        path.parent.mkdir(exist_ok=True)
        # What follows a JPEG's end is ignored, so that files differ where pixels do not.
        path.write_bytes(encoded[number % len(encoded)] + number.to_bytes(8))


def build(images: int) -> Run:
    """Builds an index of so many images from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        photos, output = Path(folder) / "photos", Path(folder) / "index"
        photos.mkdir()
        synthesize(photos, images)
        done = run([
            str(Path(sys.executable).with_name("imgindex")), "build", "--input", str(photos),
            "--output", str(output), "--set", "backbone.name=MobileNetV2", "--set", "backbone.weights=none",
            "--set", "backbone.image_size=32", "--set", "publish.min_recall=0", "--set", "index.trees=1",
        ])  # fmt: skip
        name = (output / "CURRENT").read_text().strip()
        ledger = json.loads((output / "generations" / name / "manifest.json").read_bytes())["ledger"]
        if ledger["embedded"] != images:
            sys.exit(f"{images} images, but {ledger}")
        return done


def main() -> None:
    """Prints peaks and their slope."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("few", type=int, nargs="?", default=20_000)
    parser.add_argument("many", type=int, nargs="?", default=100_000)
    arguments = parser.parse_args()
    print(machine())
    peaks = []
    for images in (arguments.few, arguments.many):
        done = build(images)
        peaks.append(done.peak_mib)
        print(f"{images} images: {done.seconds:.1f} s, peak {done.peak_mib:.0f} MiB", flush=True)
    slope = (peaks[1] - peaks[0]) * 1024 / (arguments.many - arguments.few)
    print(f"{slope:.2f} KiB an image")


if __name__ == "__main__":
    main()
