"""What a pushed collection says of itself: the recipe that its clients' vectors must be of."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

from imgindex.generations.layout import Output, files_of
from imgindex.generations.manifest import Manifest
from imgindex.models.ann.protocol import METRICS, Metric
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
    search: Mapping[str, int]  # in the database's own words

    @classmethod
    def of(cls, output: Output, manifest: Manifest, name: str, search: Mapping[str, int]) -> Self:
        """That of the collection `name` of a generation."""
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
            search=dict(search),
        )

    @property
    def recipe(self) -> tuple[str, str, Metric, int]:
        """What the vectors of queries must have in common with those of the collection."""
        return self.spec, self.basis, self.metric, self.dims

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
            texts = read.collection, read.generation, read.manifest, read.output, read.spec, read.basis
            numbers = read.dims, read.images, *read.search.values()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        fits = all(isinstance(each, str) for each in texts) and all(type(each) is int for each in numbers)
        return read if fits and read.metric in METRICS else None
