"""How flags may be written, and the configs that `--config` knows by name."""

import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PortableOptions, WorkerOptions
from hypothesis import given
from hypothesis import strategies as st

from imgindex.cli import main
from imgindex.commands.arguments import parser, with_underscores
from imgindex.commands.build import beam_options
from imgindex.config import load_config
from imgindex.errors import UsageError
from imgindex.presets import shipped


@pytest.mark.parametrize("flag", ["--dry_run", "--retry_failed"])
def test_flags_take_hyphens(flag: str) -> None:
    known = parser().parse_args(with_underscores(["build", flag.replace("_", "-"), "--set=pca.dims=8"]))
    assert getattr(known, flag[2:])
    assert known.set == ["pca.dims=8"]


def test_flags_of_beam_take_hyphens() -> None:
    arguments = ["build", "--max-num-workers", "3", "--job-server-timeout=7"]
    _, rest = parser().parse_known_args(with_underscores(arguments))
    options = beam_options(rest)
    assert options.view_as(WorkerOptions).max_num_workers == 3
    assert options.view_as(PortableOptions).job_server_timeout == 7


@given(st.lists(st.text()))
def test_values_keep_their_hyphens(values: list[str]) -> None:
    plain = [value for value in values if not value.startswith("--")]
    given = [*plain, "--a-b=c-d", "--", "--x-y", *values]
    assert with_underscores(given) == [*plain, "--a_b=c-d", "--", "--x-y", *values]


def test_a_shipped_config_by_its_name() -> None:
    assert load_config("mobilenetv2").backbone.weights == "bundled"
    for name in shipped():
        load_config(name)


def test_a_file_comes_before_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mobilenetv2").write_text("pca: {dims: 7}")
    assert load_config("mobilenetv2").pca.dims == 7


def test_a_wrong_name_lists_the_shipped_ones() -> None:
    with pytest.raises(UsageError, match=r"mobilnet: cannot be read: No such file.* local, mobilenetv2"):
        load_config("mobilnet")


def test_help_loads_no_library() -> None:
    script = "import sys, imgindex.commands.arguments as a; a.parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"apache_beam", "argcomplete", "keras", "numpy", "yaml"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "i", "--htm", "x"], "does not know the argument '--htm'; did you mean --html?"),
        (["evaluate", "i", "--measure", "l1"], "the argument '--measure'; did you mean --measures?"),
        (["evaluate", "i", "--kk=3"], "the argument '--kk=3'; did you mean --k?"),
        (["export", "i", "d", "--format", "npy", "--normalise"], "'--normalise'; did you mean --normalize?"),
        (["search", "i", "a.jpg", "--exclude-slf"], "'--exclude_slf'; did you mean --exclude_self?"),
        (["compare", "i", "a.jpg", "b.jpg", "--jsn"], "'--jsn'; did you mean --json?"),
        (["inspect", "i", "--failure"], "'--failure'; did you mean --failures?"),
        (["verify", "i", "--qqq"], "the argument '--qqq'; see imgindex verify --help"),
        (["export", "i", "o", "--format=atlas", "--seed=x"],
         "--seed: 'x' is no whole number; see imgindex export --help"),
        (["evaluate", "i", "--k", "ten"], "-k/--k: 'ten' is no whole number; see imgindex evaluate --help"),
        (["evaluate", "i", "--json"], "argument --json: expected one argument; see imgindex evaluate --help"),
        (["verify"], "the following arguments are required: INDEX; see imgindex verify --help"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imgindex: ")
    assert line.endswith(message)


@pytest.mark.parametrize("command", [["search", "i", "a.jpg"], ["evaluate", "i"]])
@pytest.mark.parametrize("flag", ["-k", "--k"])
def test_k_has_one_name_or_the_other(command: list[str], flag: str) -> None:
    assert parser().parse_args([*command, flag, "3"]).k == 3
