"""The command line: exit codes, messages for people, and that nothing is published on the way to them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from fake_engine import QuartersEngine, factory_of, registered
from long_runs import some_long
from PIL import Image
from trapped import trap

from imgindex.cli import main

BUNDLED = ["--set", "backbone.name=MobileNetV2", "--set", "backbone.weights=bundled"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number, color in enumerate(("red", "green", "blue", "orange", "purple")):
        (folder / "plain").mkdir(exist_ok=True)
        image = Image.new("RGB", (80, 60), color)
        image.paste("white", (10 * number, 10, 10 * number + 20, 40))
        image.save(folder / "plain" / f"{color}.png")
    return folder


@pytest.fixture(scope="module")
def output(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("output") / "index"
    assert main(["build", "--input", str(photos), "--output", str(folder), *BUNDLED]) == 0
    return folder


def published(folder):
    return [path for path in Path(folder).rglob("*") if path.name in ("CURRENT", "manifest.json")]


def test_build_prints_a_summary(photos, tmp_path, capsys, caplog):
    assert main(["build", "--input", str(photos), "--output", str(tmp_path / "o"), *BUNDLED]) == 0
    printed = capsys.readouterr()
    assert "5 listed, 5 indexed, 0 failed" in printed.out
    assert "seconds" in printed.out
    assert "building the index" in caplog.text
    assert not list((tmp_path / "o").rglob("*.partial"))


def test_a_few_bad_files_are_listed_by_reason(photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos.rglob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    arguments = ["build", "--input", str(folder), "--output", str(tmp_path / "o"), *BUNDLED]
    assert main(arguments) == 4
    message = capsys.readouterr().err.splitlines()[-1]
    assert "max_failure_rate" in message
    assert "2 of 7" in message
    (listed,) = (tmp_path / "o").rglob("failures-*.jsonl")
    assert str(listed) in message
    assert "--set publish.max_failure_rate=0.29 or --force max_failure_rate" in message
    assert main(["inspect", str(tmp_path / "o"), "--failures"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [
        "empty.jpg: decode/empty: the file is empty",
        "text.jpg: decode/not_an_image: no image format that Pillow reads",
    ]
    assert printed[2].startswith("2 failures of the last build, which was refused, ")
    assert printed[2].endswith(str(listed.parent))
    assert main(["inspect", str(tmp_path / "o"), "--json"]) == 2
    capsys.readouterr()
    assert len(listed.read_text().splitlines()) == 2
    assert published(tmp_path) == []
    assert main([*arguments, "--set", "publish.max_failure_rate=0.29"]) == 0
    printed = capsys.readouterr().out
    assert "7 listed, 5 indexed, 2 failed" in printed
    assert "decode/not_an_image" in printed
    assert "5 from the store" in printed
    generation = (tmp_path / "o" / "CURRENT").read_text().strip()
    (failures,) = (tmp_path / "o" / "generations" / generation).rglob("failures-*.jsonl")
    rows = [json.loads(line) for line in failures.read_text().splitlines()]
    assert [(row["uri"], row["reason"]) for row in rows] == [
        ("empty.jpg", "empty"),
        ("text.jpg", "not_an_image"),
    ]
    assert main(["inspect", str(tmp_path / "o"), "--failures", "--reason", "empty", "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"generation": generation, "state": "live", **rows[0]}
    ]


@pytest.mark.long
def test_images_that_crash_their_decoder_are_listed_and_end_no_build(photos, tmp_path):
    traps = {f"a{number}.png": trap("segfault", number) for number in range(3)}  # the first of the listing
    for name, data in traps.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    for path in photos.rglob("*.png"):
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    # Every Python that is started reads traps; only decoders may, for whoever does dies.
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys; sys.path.append({str(Path(__file__).parents[1])!r}); import trapped; trapped.register()"
    )
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "o"), *BUNDLED]
    arguments += ["--set", "publish.max_failure_rate=0.5"]

    def build(*flags):
        return subprocess.run(
            [sys.executable, "-m", "imgindex", "build", *arguments, *flags],
            env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        )  # fmt: skip

    estimated = build("--dry_run")
    assert estimated.returncode == 0, estimated.stderr
    assert "images/s on 8 of them" in estimated.stdout
    built = build()
    assert built.returncode == 0, built.stderr
    assert "8 listed, 5 indexed, 3 failed" in built.stdout
    assert "decode/crashed" in built.stdout
    (listed,) = (tmp_path / "o").rglob("failures-*.jsonl")
    assert [json.loads(line) for line in listed.read_text().splitlines()] == [
        {
            "uri": name,
            "stage": "decode",
            "reason": "crashed",
            "message": "the decoder died: signal 11 (Segmentation fault)",
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for name, data in traps.items()
    ]


def test_an_engine_that_always_fails_ends_the_build(photos, tmp_path, capsys):
    class Broken(QuartersEngine):
        name = "broken"

        def embed(self, pixels):
            raise RuntimeError("the device\nis gone")

    arguments = ["build", "--input", str(photos), "--output", str(tmp_path / "o"), *BUNDLED]
    with registered("broken", factory_of(Broken)):
        assert main([*arguments, "--set", "engine.name=broken"]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        "imgindex: broken fails for every image, also for a black one: RuntimeError: the device is gone"
    )
    assert published(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["build"], 2, "--input"),
        (["build", "--input", "{photos}"], 2, "--output"),
        (["build", "--input", "{tmp}/missing", "--output", "{tmp}/o"], 3, "does not exist"),
        (["build", "--input", "{tmp}/file.jpg", "--output", "{tmp}/o"], 3, "is a file"),
        (["build", "--input", "{tmp}/empty", "--output", "{tmp}/o"], 3, "holds no images"),
        (["build", "--input", "{tmp}/*.nothing", "--output", "{tmp}/o"], 3, "holds no images"),
        (["build", "--input", "{photos}", "--output", "{photos}/o"], 2, "lies inside"),
        (["build", "--input", "{photos}", "--output", "{tmp}/file.jpg"], 3, "cannot write"),
        (["build", "--input", "{photos}", "--output", "/proc/imgindex"], 3, "cannot write"),
        (["build", "--set", "pca.dim=3"], 2, "did you mean 'pca.dims'"),
        (["build", "--set", "pcaa.dims=3"], 2, "'pcaa'; did you mean 'pca'"),
        (["build", "--set", "pca.dims=many"], 2, "expected a whole number from 1 to 65536 or a share"),
        (["build", "--set", "pca.dims"], 2, "section.key=value"),
        (["build", "--set", "index.trees=0"], 2, "index.trees is 0"),
        (["build", "--set", "backbone.name=ResNet5"], 2, "ResNet50"),
        (["build", "--set", "backbone.weights=bundled"], 2, "MobileNetV2"),
        (["build", "--set", "backbone.weights=/no/such.h5"], 2, "no such file"),
        (["build", "--config", "/no/such.yaml"], 2, "cannot be read"),
        (["build", "--ouput", "x"], 2, "did you mean --output?"),
        (["build", "--direct_num_workers", "many"], 2, "direct_num_workers"),
        (["search", "{tmp}/empty", "{tmp}/file.jpg"], 3, "holds no index"),
        (["inspect", "{tmp}/missing"], 3, "holds no index"),
        (["search", "{tmp}/missing", "a\nb\x1b[31m.png"], 3, "holds no index"),
        (["build", "--input", "{photos}", "--output", "{tmp}/o", "--runner", "Bogus"], 2, "Bogus"),
        (["demo", "{tmp}/file.jpg"], 2, "file.jpg is not empty"),
    ],
)
def test_errors_are_one_clear_message_and_publish_nothing(
    arguments, code, expected, photos, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.jpg").write_bytes(b"x")
    filled = [argument.format(photos=photos, tmp=tmp_path) for argument in arguments]
    assert main(filled) == code
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "building the index" not in line]
    assert len(lines) == 1
    assert expected in lines[0]
    assert captured.out == ""
    assert published(tmp_path) == []


def test_weights_that_do_not_fit(photos, tmp_path, capsys):
    weights = tmp_path / "other.weights.h5"
    weights.write_bytes(b"not HDF5")
    arguments = ["--set", "backbone.name=MobileNetV2", "--set", f"backbone.weights={weights}"]
    assert main(["build", "--input", str(photos), "--output", str(tmp_path / "o"), *arguments]) == 2
    assert "do not fit MobileNetV2" in capsys.readouterr().err
    assert published(tmp_path) == []


def test_nothing_but_bad_images(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_text("x")
    assert main(["build", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "o"), *BUNDLED]) == 3
    assert "none of the 1 images" in capsys.readouterr().err
    assert published(tmp_path) == []


def test_an_output_that_fails_in_mid_run(photos, tmp_path, capsys, monkeypatch):
    from imgindex.errors import OutputError
    from imgindex.features import feature_store

    def refuse(*_):
        raise OutputError("cannot write /full/chunk: No space left on device")

    monkeypatch.setattr(feature_store, "write_rows", refuse)
    assert main(["build", "--input", str(photos), "--output", str(tmp_path / "o"), *BUNDLED]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        "imgindex: cannot write /full/chunk: No space left on device"
    )
    assert published(tmp_path) == []


def test_dry_run_writes_nothing(photos, tmp_path, capsys):
    arguments = ["build", "--input", str(photos), "--output", str(tmp_path / "o"), "--dry_run", *BUNDLED]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "5 images" in printed
    assert "images/s" in printed
    assert "nothing was written" in printed
    assert not (tmp_path / "o").exists()


def test_dry_run_counts_what_the_store_holds(photos, output, capsys):
    assert main(["build", "--input", str(photos), "--output", str(output), "--dry_run", *BUNDLED]) == 0
    assert "0; 5 are in the store" in capsys.readouterr().out


def test_search_prints_a_table(photos, output, capsys):
    query = photos / "plain" / "red.png"
    assert main(["search", str(output), str(query), str(query), "-k", "3"]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert len(blocks) == 2
    lines = blocks[0].splitlines()
    assert lines[0] == str(query)
    assert lines[1].split() == ["rank", "cosine", "copies", "path"]
    assert lines[2].split() == ["1", "1.000", "0", "plain/red.png"]
    assert lines[5:] == ["known: the file's bytes are indexed as plain/red.png"]


def test_search_lists_copies_once(photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    for number in range(3):
        shutil.copy(folder / "plain" / "red.png", folder / f"red {number}.png")
    assert main(["build", "--input", str(folder), "--output", str(tmp_path / "index"), *BUNDLED]) == 0
    query = str(folder / "red 0.png")
    capsys.readouterr()
    assert main(["search", str(tmp_path / "index"), query, "-k", "4", "--json"]) == 0
    ((first, *others),) = (result["neighbors"] for result in json.loads(capsys.readouterr().out))
    assert {neighbor["sha256"] for neighbor in others} == {first["sha256"]}
    assert main(["search", str(tmp_path / "index"), query, "-k", "4", "--json", "--distinct"]) == 0
    (neighbors,) = (result["neighbors"] for result in json.loads(capsys.readouterr().out))
    assert len({neighbor["sha256"] for neighbor in neighbors}) == 4
    assert [neighbor["copies"] for neighbor in neighbors] == [3, 0, 0, 0]


def test_search_prints_json_and_writes_a_page(photos, output, tmp_path, capsys):
    query, page = photos / "plain" / "blue.png", tmp_path / "page.html"
    assert main(["search", str(output), str(query), "-k", "2", "--exact", "--json", "--html", str(page)]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["query"] == str(query)
    assert [neighbor["rank"] for neighbor in result["neighbors"]] == [1, 2]
    assert result["neighbors"][0]["uri"] == "plain/blue.png"
    assert page.read_text().count("data:image/") == 3


def test_search_for_more_than_there_is(photos, output, capsys):
    query = str(photos / "plain" / "red.png")
    for flags in ([], ["--exact"]):
        assert main(["search", str(output), query, "-k", "300000000", "--json", *flags]) == 0
        assert len(json.loads(capsys.readouterr().out)[0]["neighbors"]) == 5


def test_search_errors(photos, output, tmp_path, capsys):
    query = str(photos / "plain" / "red.png")
    assert main(["search", str(output), query, "-k", "0"]) == 2
    assert main(["search", str(output), str(tmp_path / "missing.jpg")]) == 3
    assert main(["search", str(output), __file__]) == 3
    assert main(["search", str(output), query, "--html", str(tmp_path / "no" / "page.html")]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for line, expected in zip(lines, ["k is 0", "missing.jpg", "not_an_image", "page.html"], strict=True):
        assert expected in line


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a\x1b[31m.png", "b\n.png"):
        Image.effect_noise((64, 64), 90).convert("RGB").save(folder / name)
    assert main(["build", "--input", str(folder), "--output", str(tmp_path / "o"), *BUNDLED]) == 0
    assert main(["search", str(tmp_path / "o"), str(folder / "b\n.png")]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "b\\n.png" in printed


def test_errors_cannot_steer_the_terminal_either(output, capsys):
    assert main(["search", str(output), "a\nb\x1b[31m.png"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "a\\nb\\x1b[31m.png" in line


@pytest.mark.long
def test_a_converted_model_that_cannot_be_kept(photos, tmp_path, capsys, monkeypatch):
    (tmp_path / "cache").write_text("a file in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Of a size that no other test has loaded in this process.
    size = ["--set", "backbone.image_size=40"]
    assert main(["build", "--input", str(photos), "--output", str(tmp_path / "o"), *BUNDLED, *size]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "XDG_CACHE_HOME" in line
    assert published(tmp_path) == []


def test_a_live_generation_that_is_damaged_is_noticed_before_any_work(photos, tmp_path, capsys):
    arguments = ["build", "--input", str(photos), "--output", str(tmp_path / "o"), *BUNDLED]
    assert main(arguments) == 0
    (manifest,) = (tmp_path / "o").rglob("manifest.json")
    manifest.write_text("{")
    capsys.readouterr()
    assert main(arguments) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert str(manifest) in line
    assert "delete" in line


@pytest.mark.parametrize(
    "name", some_long(["写真　2020", "a b", "item=7", "it's", "\N{FAMILY}"], "写真　2020")
)
def test_any_name_of_a_directory(name, photos, tmp_path, capsys):
    folder = tmp_path / name
    folder.mkdir()
    for path in photos.rglob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    output = tmp_path / f"{name} index"
    assert main(["build", "--input", str(folder), "--output", str(output), *BUNDLED]) == 0
    assert "5 indexed" in capsys.readouterr().out
    assert main(["search", str(output), str(folder / "red.png"), "-k", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].split() == ["1", "1.000", "0", "red.png"]


def test_a_path_below_home(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text(f"input: {photos}\noutput: ~/index\n")
    monkeypatch.chdir(tmp_path)
    assert main(["build", "--config", "c.yaml", *BUNDLED]) == 0
    assert (tmp_path / "index" / "CURRENT").exists()
    assert not (tmp_path / "~").exists()


def test_inspect(output, capsys):
    assert main(["inspect", str(output)]) == 0
    printed = capsys.readouterr().out
    assert (output / "CURRENT").read_text().strip() in printed
    assert "5 indexed" in printed


def test_the_command_as_installed(tmp_path):
    command = Path(sys.executable).with_name("imgindex")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("imgindex ")
    unknown = subprocess.run([command, "serach"], capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "Traceback" not in unknown.stderr
    module = subprocess.run([sys.executable, "-m", "imgindex", "--version"], capture_output=True, text=True)
    assert module.stdout == version


@pytest.mark.long
def test_demo(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert main(["demo", str(folder)]) == 0
    printed = capsys.readouterr().out
    commands = [line for line in printed.splitlines() if line.startswith("  /")]
    serve, *others = commands
    assert len(others) == 2
    for command in others:
        assert subprocess.run(["env", "-i", "HOME=/tmp", "sh", "-c", command], cwd=tmp_path).returncode == 0
    served = ["env", "-i", "HOME=/tmp", "sh", "-c", f"exec {serve.strip()} --port 0"]
    with subprocess.Popen(served, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert "312 images" in process.stdout.readline()
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(f"{address}healthz") as answer:
            assert answer.status == 200
        process.terminate()
    assert process.returncode == 0
    assert (tmp_path / "demo-index" / "CURRENT").exists()
    assert "312 indexed, 0 failed" in printed
    assert str((folder / "search.html").resolve()) in printed
    assert (folder / "search.html").read_text().count("data:image/") > 50
    assert main(["demo", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    (folder / "images" / "mine").mkdir()
    assert main(["demo", str(folder)]) == 2
