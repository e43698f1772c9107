"""The OpenVINO engine: the exported Keras model, preprocessing included, on the CPU's own instructions."""

import contextlib
import hashlib
import os
import queue
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imgindex.errors import OutputError
from imgindex.models.backbones import BUNDLED_WEIGHTS, Backbone, load_backbone
from imgindex.models.openvino_rewrites import rewrite
from imgindex.models.preprocess import PREPROCESSING
from imgindex.models.spec import Spec
from imgindex.models.tensorflow_engine import trace
from imgindex.sealed import seal, unseal

_MODEL, _WEIGHTS, _SPEC = "model.xml", "model.bin", "spec.json"
_PARTIAL = ".partial-"
# Names what a conversion does besides what the libraries do: a change of it is a change of this name.
_CONVERSION = "rewritten-1"
# No conversion takes so long: one that is older has died.
_DEAD_SECONDS = 3600.0
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoEngine:
    """Runs a converted backbone on the CPU, one batch on each of `threads`."""

    name = "openvino"

    def __init__(self, converted: "ConvertedModel", precision: str, batch_size: int, threads: int) -> None:
        """Compiles a converted model for this CPU. Raises MemoryError."""
        self.precision = precision
        self.batch_size = batch_size
        self.spec = converted.spec
        self.image_size = converted.spec.image_size
        self.streams = threads
        with _memory_errors():
            self._compile(converted)

    def _compile(self, converted: "ConvertedModel") -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(converted.path)
        model.reshape([self.batch_size, *self.image_size, 3])
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
                # A stream per core: threads that share a batch wait for each other at every layer,
                # and all the more where decoders want the same cores.
                "NUM_STREAMS": self.streams,
                "INFERENCE_NUM_THREADS": self.streams,
            },
        )
        # OpenVINO makes its tables of types when they are first asked for. Two threads that do so at once, as
        # with their first batches, can wait for each other for ever, one of them holding Python's own lock.
        compiled.input(0).get_element_type().to_dtype()
        self.feature_dim = int(compiled.output(0).shape[1])
        self._idle: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()
        for _ in range(self.streams):
            self._idle.put(compiled.create_infer_request())

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Engine.embed`."""
        request = self._idle.get()
        try:
            with _memory_errors():
                features: npt.NDArray[np.float32] = request.infer({0: pixels}, share_inputs=True)[0]
            return features.copy()  # the request's own memory, which its next batch overwrites
        finally:
            self._idle.put(request)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Raises MemoryError where OpenVINO, whose every error is a RuntimeError, means that."""
    try:
        yield
    except RuntimeError as error:
        if re.search("Failed to allocate|bad_alloc|Cannot allocate memory|can't alloc", str(error)):
            raise MemoryError(str(error)) from error
        raise


@dataclass(frozen=True)
class ConvertedModel:
    """A backbone as OpenVINO reads it, in a file of the user's cache, with its spec beside it."""

    path: Path
    spec: Spec


def converted_model(name: str, weights: str, pooling: str, image_size: int | None) -> ConvertedModel:
    """The converted backbone from the cache; where it is not there, or damaged, converts and keeps it.

    What is in the cache needs neither Keras nor TensorFlow, which take seconds to load.

    Raises:
      OutputError: the cache cannot be written; besides, whatever `load_backbone` raises.
    """
    folder = _cache_folder() / _cache_key(name, weights, pooling, image_size)
    cached = _read(folder)
    if cached is None:
        backbone = load_backbone(name, weights, pooling, image_size)
        try:
            _convert(backbone, folder)
        except OSError as error:
            raise OutputError(
                f"cannot keep the converted model in {folder.parent}: {error.strerror or error}; make it "
                "writable, or name another cache folder with XDG_CACHE_HOME"
            ) from error
        cached = ConvertedModel(folder / _MODEL, Spec.of(backbone))
    return cached


def _read(folder: Path) -> ConvertedModel | None:
    """What `_convert` has left in `folder`; None where any byte of it is another, or missing."""
    try:
        content = unseal((folder / _SPEC).read_bytes())
        fields = content["spec"]
        spec = Spec(**{**fields, "image_size": tuple(fields["image_size"])})
        if content["files"] != _digests(folder):
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return ConvertedModel(folder / _MODEL, spec)


def _digests(folder: Path) -> dict[str, str]:
    return {name: _file_digest(folder / name) for name in (_MODEL, _WEIGHTS)}


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imgindex" / "openvino"


def _cache_key(name: str, weights: str, pooling: str, image_size: int | None) -> str:
    """Names what the conversion depends on: the files by their content, the libraries by version."""
    parts = [_CONVERSION, pooling, str(image_size), PREPROCESSING]
    parts += [version(library) for library in ("imgindex", "keras", "openvino")]
    for source in (name, str(BUNDLED_WEIGHTS) if weights == "bundled" else weights):
        path = Path(source)
        parts.append(_file_digest(path) if path.is_file() else source)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(backbone: Backbone, folder: Path) -> None:
    """Converts `backbone` to the new directory `folder`, which appears whole or not at all."""
    import openvino

    folder.parent.mkdir(parents=True, exist_ok=True)
    _delete_dead(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder.parent))
    try:
        model = openvino.convert_model(trace(backbone, None))
        rewrite(model)
        openvino.save_model(model, partial / _MODEL, compress_to_fp16=False)
        sealed = seal({"spec": asdict(Spec.of(backbone)), "files": _digests(partial)})
        (partial / _SPEC).write_bytes(sealed)
        if folder.exists() and _read(folder) is None:
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError:
        if _read(folder) is None:  # else another process was first with the same model
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _delete_dead(cache: Path) -> None:
    """Deletes what conversions have left that were killed."""
    for partial in cache.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):  # another process is quicker
            if time.time() - partial.stat().st_mtime > _DEAD_SECONDS:
                shutil.rmtree(partial)


def has_bfloat16() -> bool:
    """Whether OpenVINO finds bfloat16 instructions on this CPU."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
