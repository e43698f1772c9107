"""What the launcher knows of a build before it starts, as every step of its pipeline sees it."""

from collections.abc import Collection
from dataclasses import dataclass

from imgindex.config import Config
from imgindex.generations.layout import Output
from imgindex.io.output_lock import Claim
from imgindex.models.engines.protocol import EngineChoice
from imgindex.models.spec import Spec
from imgindex.records import WrittenFile


@dataclass(frozen=True)
class Previous:
    """The generation that is live when a build starts."""

    name: str
    indexed: int
    failures: str  # what `publish.digest_of_failures` gave for it
    metadata: tuple[WrittenFile, ...]  # its metadata shards, with their whole paths
    same_recipe: bool  # whether the same images would make the same index again
    basis: WrittenFile | None  # its PCA basis, with its whole path; None where this build cannot use it
    fitted_in: str  # the generation that the basis was fitted in
    fitted_images: int  # and to how many images
    damaged: tuple[str, ...] = ()  # its files, with their whole paths, that are not as they were written
    lost_basis: bool = False  # whether this build could use the basis, if it were not damaged


@dataclass(frozen=True)
class Plan:
    """A build that is about to start."""

    config: Config
    input: str
    output: Output
    generation: str  # its name
    previous: Previous | None
    spec: Spec
    feature_dim: int
    engine: EngineChoice
    threads: int | None  # a worker's; None: all its cores
    started: float  # seconds since the epoch
    prepared: float  # when the backbone was loaded
    force: Collection[str] = ()  # names of the checks that may not refuse
    claim: Claim | None = None  # on the output; None: nobody holds it while the build runs
    retry_failed: bool = False  # whether images are tried again whose bytes are known to be bad
    detached: bool = False  # whether the job may outlive the process that starts it
    rehash: bool = False  # whether every listed file is read, also where nothing says that it has changed

    @property
    def store(self) -> str:
        """Where the features are kept."""
        return self.output.store(self.spec.digest)

    @property
    def directory(self) -> str:
        """Where the generation is written."""
        return self.output.generation(self.generation)
