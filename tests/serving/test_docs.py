"""The commands and tables of docs/serve.md agree with the service."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from served_index import build
from serving_process import serving

import imgindex
from imgindex.commands.arguments import parser
from imgindex.serving.openapi import document
from imgindex.serving.settings import ServiceSettings

PAGE = (Path(__file__).parents[2] / "docs/serve.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, image_bytes: Callable[..., bytes]) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    for number in range(8):
        label = ("lake", "clock")[number % 2]
        path = folder / "photos" / label / f"{label}_{number // 2:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, kind="JPEG"))
    build(folder)
    return folder


@pytest.mark.long
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_run(photos: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 11
    with serving(photos / "index") as service:
        for command in commands:
            here = command.replace("http://127.0.0.1:8000/", service.url)
            done = subprocess.run(
                here.replace("curl ", "curl --fail-with-body --silent "),
                shell=True, cwd=photos, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, (command, done.stdout)
            if "/duplicates" in command:
                assert "groups" in json.loads(done.stdout)
            if "/search" in command:
                (result,) = json.loads(done.stdout)["results"]
                assert result["neighbors"]
    assert (photos / "thumbnail.jpg").read_bytes().startswith(b"\xff\xd8")


def test_the_example_makes_an_app(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    (example,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(example, "an example", "exec"), names)
    assert callable(names["app"])
    assert "asgi_app" in imgindex.__all__


def test_the_tables_name_what_there_is() -> None:
    described = document(ServiceSettings())
    paths = {path.replace("{uri}", "URI") for path in described["paths"]}
    assert paths <= set(re.findall(r"`(/[\w/.-]*)`", PAGE)) | {"/search"}
    schemas = described["paths"]["/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for field in schemas["properties"]:
        assert f"| `{field}` |" in PAGE
    serve = parser().parse_args(["serve", "index"])
    for name, default in vars(serve).items():
        if name.startswith("max_") and name != "max_bytes":
            written = f"{default // 10**6} million" if default >= 10**6 else f"{default:,}"
            assert re.search(rf"`--{name} N` \|.*\(default: {written}\)", PAGE), name
    for status in {status for ways in described["paths"].values() for way in ways.values()
                   for status in way["responses"]} - {"200", "202"}:  # fmt: skip
        assert f"| {status} |" in PAGE
    assert "the answer is 202" in PAGE
