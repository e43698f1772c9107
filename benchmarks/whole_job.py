"""Whole jobs side by side: imgindex, the notebook way and Beam's stock RunInference, and the engine's limit.

Every contender starts as a new process and goes from a directory of images to an index on disk: PCA to 150
dimensions and 40 trees of Annoy. They take turns, round after round.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from measure import Run, machine, run

HERE = Path(__file__).parent


def build(photos: Path, backbone: str, precision: str, output: str) -> Run:
    """Runs imgindex."""
    return run([
        str(Path(sys.executable).with_name("imgindex")), "build", "--input", str(photos),
        "--output", output, "--set", f"backbone.name={backbone}", "--set", "backbone.weights=none",
        "--set", f"engine.precision={precision}",
        # Random weights say nothing about neighbors, so that their recall must not refuse.
        "--set", "publish.min_recall=0",
    ])  # fmt: skip


def chosen_precision(photos: Path, backbone: str) -> str:
    """What imgindex picks by itself. Converts the backbone too, which users pay for once."""
    with tempfile.TemporaryDirectory() as output:
        build(photos, backbone, "auto", output)
        name = (Path(output) / "CURRENT").read_text().strip()
        manifest = json.loads((Path(output) / "generations" / name / "manifest.json").read_bytes())
        return str(manifest["engine"]["precision"])


def contender(name: str, photos: Path, backbone: str) -> Run:
    """Runs one contender from nothing."""
    with tempfile.TemporaryDirectory() as output:
        if name.startswith("imgindex"):
            return build(photos, backbone, name.partition(" ")[2] or "auto", output)
        peer = {"notebook": "peer_notebook.py", "RunInference": "peer_run_inference.py"}[name]
        return run([sys.executable, str(HERE / peer), str(photos), output, backbone])


CONTENDERS = ("imgindex", "imgindex float32", "notebook", "RunInference")


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="a directory of images")
    parser.add_argument("--backbone", default="ResNet50", choices=["ResNet50", "InceptionV3"])
    parser.add_argument("--contenders", nargs="*", default=CONTENDERS, choices=CONTENDERS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    photos, backbone = arguments.photos, arguments.backbone
    count = sum(path.is_file() for path in photos.rglob("*"))
    precision = chosen_precision(photos, backbone)
    rates: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name in arguments.contenders:
            done = contender(name, photos, backbone)
            print(f"{name}: {done.seconds:.1f} s, peak {done.peak_mib:.0f} MiB", flush=True)
            rates.setdefault(name, []).append(count / done.seconds)
            peaks[name] = max(peaks.get(name, 0), done.peak_mib)
            if name == "imgindex":
                # Not at the end of the round: a quarter of an hour later the machine may have another speed.
                alone = run([sys.executable, str(HERE / "model_alone.py"), backbone, precision, str(count)])
                rates.setdefault("engine alone", []).append(float(alone.output.split()[-1]))
                print(f"engine alone: {rates['engine alone'][-1]:.1f} images/s", flush=True)
    print(machine())
    print(f"{backbone}, {count} images, {arguments.rounds} rounds, imgindex chose {precision}")
    print(f"{'':<16} {'images/s':>9} {'each round':>24} {'imgindex is':>12} {'peak MiB':>9}")
    own = statistics.median(rates["imgindex"])
    for name, values in rates.items():
        median = statistics.median(values)
        each = " ".join(f"{value:.1f}" for value in values)
        peak = f"{peaks[name]:.0f}" if name in peaks else ""
        print(f"{name:<16} {median:>9.1f} {each:>24} {own / median:>11.2f}x {peak:>9}")


if __name__ == "__main__":
    main()
