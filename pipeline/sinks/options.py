"""What the flags of an export say beside its format."""

from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class ExportOptions:
    """The flags that some formats take; None is one that is not given."""

    normalize: bool = False  # scale vectors to length 1
    faiss_index: str | None = None  # a string for FAISS's index factory
    images: int | None = None  # how many at most
    seed: int | None = None  # draws them
    since: str | None = None  # the generation that a target holds already

    def given(self) -> Iterator[str]:
        """The names of the flags that are given."""
        for field in fields(self):
            if getattr(self, field.name) is not field.default:
                yield field.name
