"""The whole graph: what people see of it on a runner's page."""

import logging
import re
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.pipeline import PipelineVisitor
from apache_beam.typehints.decorators import TypeCheckError

from imgindex.config import BackboneConfig, Config, EngineConfig, PcaConfig
from imgindex.features.transforms import EmbedImages, GroupByChunk, ReadFeatures
from imgindex.job.graph import assemble
from imgindex.job.plan import Plan, Previous
from imgindex.job.prepare import make_plan
from imgindex.models.engines.protocol import EngineChoice
from imgindex.records import WrittenFile

BEFORE = Previous(
    name="20260101T000000Z-00000000",
    indexed=10,
    failures="",
    metadata=(WrittenFile("metadata-00000-of-00001.parquet", 1, ""),),
    same_recipe=True,
    basis=WrittenFile("basis.npz", 1, ""),
    fitted_in="20260101T000000Z-00000000",
    fitted_images=10,
)


@pytest.fixture(scope="module")
def first_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("assembly")
    backbone = BackboneConfig("MobileNetV2", "none", image_size=32)
    engine = EngineConfig("tensorflow", "float32", 1)
    return make_plan(Config(f"{folder}/in", f"{folder}/out", backbone, engine), None)


@pytest.mark.parametrize("refit", [None, "auto", "always", "never"])
def test_steps_have_names_in_camel_case(first_plan: Plan, refit: str | None) -> None:
    plan = first_plan
    if refit is not None:
        config = replace(plan.config, pca=PcaConfig(refit=refit))
        plan = replace(plan, previous=BEFORE, config=config)
    pipeline = beam.Pipeline()
    assemble(pipeline, plan)
    labels = own_labels(pipeline)
    assert {"ListImages", "EmbedUnits", "BuildShards", "Publish"} <= set(labels)
    for label in labels:
        assert re.fullmatch(r"([A-Z][a-z]+)+", label), label


def test_beam_has_nothing_to_warn_of(first_plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assemble(beam.Pipeline(), replace(first_plan, previous=BEFORE))
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize(
    "transform",
    [
        ReadFeatures("store"),
        EmbedImages("store", EngineChoice("MobileNetV2", "none", "avg", 32, "tensorflow", "float32", 1, 1.0)),
        GroupByChunk(),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_a_transform_refuses_a_collection_of_other_elements(transform: beam.PTransform) -> None:
    with pytest.raises(TypeCheckError, match=f"{type(transform).__name__}.*int"):
        _ = beam.Pipeline() | beam.Create([1]) | transform


def own_labels(pipeline: beam.Pipeline) -> list[str]:
    """The labels that imgindex gives: of what it applies to the pipeline, or inside of its own transforms."""
    labels = []

    class Visitor(PipelineVisitor):  # type: ignore[misc]
        def enter_composite_transform(self, node: Any) -> None:
            self.visit_transform(node)

        def visit_transform(self, node: Any) -> None:
            within = node.parent and node.parent.transform
            if node.parent and (within is None or type(within).__module__.startswith("imgindex.")):
                labels.append(node.full_label.rpartition("/")[2])

    pipeline.visit(Visitor())
    return labels
