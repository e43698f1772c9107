"""PCA of all rows of a PCollection: each bundle is summed, and sums are added in blocks and fitted."""

import functools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsList
from apache_beam.transforms.window import GlobalWindows

from imgindex.config import PcaConfig
from imgindex.models.moments import Moments, MomentsBlock
from imgindex.models.pca import Basis, fit_basis

# Rows that are added to the moments at once: for fewer, matrix products run below their speed.
_MOMENT_ROWS = 4096


@dataclass
class FitPca(beam.PTransform):  # type: ignore[misc]
    """Fits PCA to all rows of a PCollection of feature batches, L2-normalized, [n, feature_dim].

    Gives a PCollection of one `Basis`, or of none where there are no rows. Its bits do not depend on
    batches, bundles or workers.
    """

    config: PcaConfig

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, features: Any) -> Any:
        """Applies the transform."""
        blocks = (
            features
            | "SumBundles" >> beam.ParDo(_SumBundles())
            | "SumBlocks" >> beam.CombinePerKey(_sum_blocks)
            | "DropStarts" >> beam.Values()
        )
        # Not grouped by one key: Flink would make a single record of them.
        return (
            features.pipeline
            | "OnceForAll" >> beam.Create([self.config])
            | "FitBasis" >> beam.FlatMap(_fit, AsList(blocks))
        )


@beam.typehints.with_output_types(tuple[int, MomentsBlock])  # a key whose coder every runner knows
class _SumBundles(beam.DoFn):  # type: ignore[misc]
    """Sums a bundle's batches, and gives the sums in blocks, for runners limit how large a record may be."""

    def start_bundle(self) -> None:
        self._moments: Moments | None = None
        self._waiting: list[Any] = []
        self._waiting_rows = 0

    # Beam would take an array's annotation for a type that not even another array's fits.
    def process(self, batch: Any) -> None:
        self._waiting.append(batch)
        self._waiting_rows += len(batch)
        if self._waiting_rows >= _MOMENT_ROWS:
            self._add()

    def finish_bundle(self) -> Iterator[Any]:
        self._add()
        if self._moments is not None:
            for block in self._moments.blocks():
                yield GlobalWindows.windowed_value((block.start, block))

    def _add(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self._waiting, self._waiting_rows = [], 0
            self._moments = self._moments or Moments.empty(rows.shape[1])
            self._moments.add(rows)


def _sum_blocks(blocks: Iterable[MomentsBlock]) -> MomentsBlock:
    return functools.reduce(operator.add, blocks)


def _fit(config: PcaConfig, blocks: list[MomentsBlock]) -> Iterator[Basis]:
    if blocks:
        yield fit_basis(Moments.of_blocks(blocks), config.dims, config.whiten)
