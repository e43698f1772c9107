"""Every command of the README runs, and the Python examples and tables of the docs agree with the code."""

import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from imgindex.cli import main
from imgindex.config import Config, load_config
from imgindex.job.checks import CHECKS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = {path.stem: path.read_text() for path in (ROOT / "docs").glob("*.md")}

# Pages whose Python examples run in a folder with `photos` and `index`, and what the examples print.
PAGES = {
    "output": r"balloon",
    "python": r"312 of 312 images are in|^\d{8}T|\(8, 64\)",
    "search": r"lake/lake_0",
}


def blocks(language, page=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)


def examples_of_pages():
    return [
        pytest.param(example, printed, id=f"{page} {number}")
        for page, printed in PAGES.items()
        for number, example in enumerate(blocks("python", DOCS[page]))
    ]


def commands():
    lines = [line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sample_photos):
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(sample_photos, folder / "photos")
    return folder


@pytest.mark.long
def test_the_commands_run_in_their_order(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    ran = 0
    for command in commands():
        if command[0] == "make":
            continue
        assert command[0] == "imgindex"
        assert main(command[1:]) == 0, capsys.readouterr()
        ran += 1
    assert ran >= 6
    printed = capsys.readouterr().out
    assert "nothing was written" in printed
    assert "clock/clock_003.jpg" in printed
    assert (folder / "page.html").stat().st_size > 10_000


def test_make_has_the_targets_that_the_readme_names():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = {command[1] for command in commands() if command[0] == "make"}
    assert named == {"demo", "test"}
    assert named <= targets
    ci = (ROOT / ".ci" / "run").read_text()
    assert all(re.search(rf"^make .*\b{name}$", ci, re.M) for name in named)


@pytest.mark.long
def test_the_python_example_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert (folder / "index" / "CURRENT").exists(), "the commands run first, in this file's order"
    (example,) = blocks("python")
    exec(compile(example, "the README's example", "exec"), {"__name__": "__main__"})
    assert "clock/clock_003.jpg clock" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize(("example", "printed"), examples_of_pages())
def test_the_examples_of_the_docs_run(example, printed, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    exec(compile(example, "an example", "exec"), {"__name__": "__main__"})
    assert re.search(printed, capsys.readouterr().out, re.M)


def test_the_config_of_the_readme_is_one(tmp_path):
    (text,) = blocks("yaml")
    (tmp_path / "config.yaml").write_text(text)
    config = load_config(str(tmp_path / "config.yaml"))
    assert (config.backbone.name, config.pca.dims) == ("MobileNetV2", 100)


def test_the_yaml_block_is_the_defaults():
    (text,) = blocks("yaml", DOCS["config"])
    defaults = asdict(Config())
    assert (defaults.pop("input"), defaults.pop("output")) == (None, None)
    defaults["images"] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in defaults["images"].items()
    }
    assert yaml.safe_load(text) == defaults


def test_the_table_of_checks_is_that_of_the_code():
    assert re.findall(r"^\| `(\w+)` \|", DOCS["checks"], re.M) == list(CHECKS)


def test_the_layout_is_what_a_build_writes(folder):
    (layout,) = blocks("text", DOCS["output"])
    shape = {re.sub(r"(?<!\w)\d{5}(?!\w)", "N", line.split()[0]) for line in layout.splitlines()[1:]}
    for path in (folder / "index").rglob("*"):
        if path.is_file():
            name = str(path.relative_to(folder / "index"))
            name = re.sub(r"generations/[^/]+/", "", name)
            name = re.sub(r"store/\w+/chunk-\w+", "store/<spec digest>/chunk-<digest>", name)
            name = re.sub(r"(?<!\w)\d{5}(?!\w)", "N", name)
            assert name.split()[0] in shape or name in layout, path


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading).replace(" ", "-").lower() for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in DOCS)])
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", (ROOT / page).read_text()):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), anchor
