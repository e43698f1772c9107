"""What a pushed collection says of itself: the recipe that its clients' vectors must be of."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

from imgindex.generations.layout import Output, files_of
from imgindex.generations.manifest import Manifest
from imgindex.models.ann.protocol import METRICS, Metric
from imgindex.sinks.databases.index_kinds import IndexKind
from imgindex.text import printable
from imgindex.uris import uri_of

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Description:
    """The recipe of a collection. It marks what imgindex has made."""

    collection: str  # the name that clients use
    generation: str
    manifest: str  # its digest
    output: str  # the uri of the index's directory, where it was pushed from
    spec: str  # the digest of the features' spec
    backbone: str
    basis: str  # SHA-256 of the PCA basis
    metric: Metric
    dims: int
    images: int
    index: str  # the kind of its index, in the database's own words
    search: Mapping[str, int]  # the settings of a search, as well

    @classmethod
    def of(cls, output: Output, manifest: Manifest, name: str, index: IndexKind) -> Self:
        """That of the collection `name` of a generation, indexed so."""
        return cls(
            collection=name,
            generation=manifest.generation,
            manifest=str(manifest.content["digest"]),
            output=uri_of(output.root),  # text, whatever the path is
            # A forged manifest may hold text there that cannot be encoded.
            spec=printable(manifest.spec.digest),
            backbone=printable(manifest.spec.backbone),
            basis=files_of(output, manifest)[manifest.basis].sha256,
            metric=manifest.metric,
            dims=manifest.dims,
            images=manifest.items,
            index=index.name,
            search=dict(index.search),
        )

    @property
    def recipe(self) -> tuple[str, str, Metric, int]:
        """What the vectors of queries must have in common with those of the collection."""
        return self.spec, self.basis, self.metric, self.dims

    def holds_what(self, other: Self) -> bool:
        """Whether its rows and its index are those of `other`."""
        return (self.manifest, self.index, self.search) == (other.manifest, other.index, other.search)

    def to_json(self) -> str:
        """JSON in ASCII, which `parse` reads."""
        return json.dumps({"imgindex": _SCHEMA_VERSION, **asdict(self)})

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """What `to_json` has written; None for anything else, which imgindex has not made."""
        try:
            content = json.loads(text or "")
            if content.pop("imgindex") != _SCHEMA_VERSION or set(content) != {f.name for f in fields(cls)}:
                return None
            read = cls(**content)
            names = read.collection, read.generation, read.output, read.index
            digests = read.manifest, read.spec, read.basis
            numbers = read.dims, read.images, *read.search.values()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        fits = all(isinstance(each, str) for each in (*names, *digests)) and all(
            type(each) is int for each in numbers
        )
        return read if fits and read.metric in METRICS else None
