"""What a refresh costs: a build, and one after 1 % of the images changed, came, went or were renamed."""

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

from measure import Run, machine
from whole_job import build


def change(photos: Path, count: int) -> None:
    """Changes, adds, removes and renames `count` files each."""
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    chosen = random.Random(0).sample(files, 4 * count)
    for path in chosen[:count]:
        path.write_bytes(path.read_bytes() + b"\0")  # other bytes, and the same picture
    for path in chosen[count : 2 * count]:
        path.with_name(f"added-{path.name}").write_bytes(path.read_bytes() + b"\0\0")
    for path in chosen[2 * count : 3 * count]:
        path.unlink()
    for path in chosen[3 * count :]:
        path.rename(path.with_name(f"renamed-{path.name}"))


def ledger(output: str) -> dict[str, int]:
    """The live generation's."""
    name = (Path(output) / "CURRENT").read_text().strip()
    manifest = json.loads((Path(output) / "generations" / name / "manifest.json").read_bytes())
    return {key: value for key, value in manifest["ledger"].items() if isinstance(value, int)}


def main() -> None:
    """Prints seconds, shares and counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="a directory of images; it is copied first")
    parser.add_argument("--backbone", default="ResNet50", choices=["ResNet50", "InceptionV3"])
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        photos, output = Path(folder) / "photos", str(Path(folder) / "index")
        shutil.copytree(arguments.photos, photos)
        count = sum(path.is_file() for path in photos.rglob("*"))

        def run(what: str) -> Run:
            done = build(photos, arguments.backbone, "auto", output)
            print(f"{what}: {done.seconds:.1f} s, peak {done.peak_mib:.0f} MiB, {ledger(output)}", flush=True)
            return done

        first = run("first build")
        change(photos, count // 400)
        second = run("refresh after 1 %")
        nothing = run("refresh after nothing")
        for what, done in (("1 %", second), ("nothing", nothing)):
            print(f"{count} images, {what} changed: {done.seconds / first.seconds:.1%} of the first build")


if __name__ == "__main__":
    main()
