"""The engine that an index was built with, for its queries, wherever the file of its model lies by now."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from imgindex.errors import DamagedError, OutputError, UsageError
from imgindex.generations.manifest import Manifest
from imgindex.io import filesystem
from imgindex.io.paths import absolute
from imgindex.models.backbones import WEIGHTS_WORDS, is_file, is_preset
from imgindex.models.engines.loading import load_engine
from imgindex.models.engines.protocol import Engine, EngineChoice
from imgindex.models.hub import PRESET_CONFIG
from imgindex.models.saved_models import is_saved_model
from imgindex.runtime.resources import available_cores
from imgindex.search.queries import Recipe


def query_engine(
    output: str,
    manifest: Manifest,
    model: str | None = None,
    load: Callable[[EngineChoice, int], Engine] = load_engine,
) -> Engine:
    """Loads the engine of a generation, whose features fit the index.

    The file of the model, or of the weights, is `model` where that is given. Else it is looked for where it
    was when the index was built, then by its name in the directory of the index, in the directory beside it
    and in the current directory; one that gives other features is passed over.

    Args:
      output: the index's directory.
      manifest: of the generation.
      model: the path of a ``.keras`` model, of a ``.h5`` file of weights, or of the folder of a preset.
      load: makes the engine of a choice, on so many threads.

    Raises:
      UsageError: `model` is no file of the right kind, or cannot be used.
      OutputError: no file is found, or none that gives the features of the index.
    """
    refused: OutputError | UsageError | None = None
    recorded = _recorded(manifest)
    for choice in _with_model(recorded, absolute(model)) if model else _with_files(recorded, output):
        try:
            engine = load(choice, available_cores())
            _check(engine, choice, manifest)
        except (OutputError, UsageError) as error:
            refused = refused or error
        else:
            return engine
    what = "folder" if is_preset(recorded.name) else "file"
    raise refused or OutputError(
        f"the index needs the {what} {_file_of(recorded)}, which is not there, nor in the index's directory, "
        "beside that, or in the current directory; say where it is with --model FILE "
        "(in Python: Index.open(…, model=FILE))"
    )


def _recorded(manifest: Manifest) -> EngineChoice:
    """The engine as the manifest has it."""
    engine = manifest.engine
    return EngineChoice(
        **asdict(manifest.settings.backbone),
        engine=engine.name,
        precision=engine.precision,
        batch_size=engine.batch_size,
        color_profile=Recipe.of(manifest).color_profile,
    )


def _file_of(choice: EngineChoice) -> str | None:
    """The file, or a preset's folder, that a backbone is read from; None where imgindex or Keras has it."""
    if _is_path(choice.name):
        return choice.name
    return None if choice.weights in WEIGHTS_WORDS else choice.weights


def _from(choice: EngineChoice, file: str) -> EngineChoice:
    return replace(choice, name=file) if _is_path(choice.name) else replace(choice, weights=file)


def _is_path(name: str) -> bool:
    return is_saved_model(name) or is_preset(name)


def _is_there(recorded: EngineChoice, place: str) -> bool:
    return is_file(f"{place}/{PRESET_CONFIG}" if is_preset(recorded.name) else place)


def _with_model(recorded: EngineChoice, model: str) -> Iterator[EngineChoice]:
    if is_preset(recorded.name):
        if not _is_there(recorded, model):
            raise UsageError(
                f"the model {model} is no folder of a preset, and the index was built with {recorded.name}"
            )
        yield _from(recorded, model)
        return
    ending = ".keras" if is_saved_model(recorded.name) else ".h5"
    if not model.endswith(ending):
        raise UsageError(
            f"the model {model} cannot be that of the index, which was built with {recorded.name}: expected "
            f"a {ending} file"
        )
    if not is_file(model):
        raise UsageError(f"the model {model} does not exist")
    yield _from(recorded, model)


def _with_files(recorded: EngineChoice, output: str) -> Iterator[EngineChoice]:
    file = _file_of(recorded)
    if file is None:
        yield recorded
        return
    name, beside = Path(file).name, Path(output).parent
    places = [Path(absolute(file))]  # older manifests may have a relative path
    if filesystem.is_local(output):
        places += [Path(output) / name, beside / name, beside / file]
    places.append(Path.cwd() / name)
    for place in dict.fromkeys(map(str, places)):
        if _is_there(recorded, place):
            yield _from(recorded, place)


def _check(engine: Engine, choice: EngineChoice, manifest: Manifest) -> None:
    """Raises OutputError where `engine` does not give the features of the index."""
    if engine.spec.digest != manifest.spec.digest:
        differing = " and ".join(engine.spec.differences(asdict(manifest.spec))) or "spec"
        raise OutputError(
            f"queries would not fit the index: the {differing} of {choice.name} with weights "
            f"{choice.weights} differ from those that it was built with; bring back the file or name it with "
            "--model FILE, bring back the version of imgindex, or build the index again"
        )
    if engine.feature_dim != manifest.feature_dim:
        raise DamagedError(f"its manifest has features of {manifest.feature_dim} values")
