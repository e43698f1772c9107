"""Builds that nobody waits for: the pipeline itself publishes, refuses and clears up."""

import pytest
from PIL import Image

from imgindex.cli import main
from imgindex.io.output_lock import writer_lock
from imgindex.job import graph, launch
from imgindex.job.publish import conclude

# Small, and with nothing to compare: what is tested is not the backbone.
QUICK = [
    f"--set={each}"
    for each in (
        "backbone.name=MobileNetV2", "backbone.weights=bundled", "backbone.image_size=32",
        "engine.precision=float32",
    )
]  # fmt: skip


@pytest.fixture
def arguments(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        Image.effect_noise((60, 40), 20 + 40 * number).convert("RGB").save(photos / f"{number}.png")
    return ["build", f"--input={photos}", f"--output={tmp_path}/index", *QUICK, "--no_wait_until_finish"]


def generations(tmp_path):
    return [path.name for path in (tmp_path / "index" / "generations").iterdir()]


@pytest.mark.long
def test_a_submitted_build_publishes_and_says_where(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    (name,) = generations(tmp_path)
    assert (tmp_path / "index" / "CURRENT").read_text().strip() == name
    assert name in capsys.readouterr().out


def test_a_refusal_fails_the_pipeline_and_keeps_its_failures(arguments, tmp_path, capsys):
    (tmp_path / "photos" / "bad.png").write_text("no image")
    assert main(arguments) == 4
    assert "check max_failure_rate: 1 of 5" in capsys.readouterr().err
    (name,) = generations(tmp_path)
    left = {path.name for path in (tmp_path / "index" / "generations" / name).iterdir()}
    assert left == {"failures", "outcome.json"}
    assert not (tmp_path / "index" / "CURRENT").exists()


@pytest.mark.long
def test_only_a_job_that_is_left_alone_says_that_it_goes_on(arguments, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(graph, "tell_alive", lambda output, name: told.append((output.root, name)))
    assert main(arguments) == 0
    assert set(told) == {(str(tmp_path / "index"), *generations(tmp_path))}
    told.clear()
    assert main([*arguments[:-1], "--rehash"]) == 0
    assert told == []


@pytest.mark.long
def test_it_leaves_alone_what_another_build_has_half_written(arguments, tmp_path):
    other = tmp_path / "index" / "generations" / "20260101T000000Z-00000000" / "index" / "a.ann"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"half")
    assert main(arguments) == 0
    assert other.read_bytes() == b"half"
    assert main(arguments[:-1]) == 0  # one that is waited for holds the lock, and clears up
    assert not other.exists()


def test_it_does_not_start_while_another_build_writes(arguments, tmp_path, capsys):
    with writer_lock(f"{tmp_path}/index"):
        assert main(arguments) == 3
    assert "is being written by process" in capsys.readouterr().err


@pytest.mark.long
def test_where_nothing_has_changed_nothing_stays_however_often_that_is_concluded(
    arguments, tmp_path, monkeypatch
):
    def twice(plan):
        conclude(plan)
        conclude(plan)

    monkeypatch.setattr(launch, "conclude", twice)  # as when a worker dies before it can tell that it is done
    assert main(arguments) == 0
    before = generations(tmp_path)
    assert main(arguments) == 0
    assert generations(tmp_path) == before
