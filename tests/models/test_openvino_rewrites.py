"""Rewritten graphs: the same numbers as before, and quicker operations in them."""

from collections import Counter

import numpy as np
import openvino
import openvino.opset13 as opset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgindex.models.backbones import load_backbone
from imgindex.models.engines.openvino_rewrites import rewrite
from imgindex.models.engines.tensorflow import trace

RNG = np.random.default_rng(0)


def kinds(model: openvino.Model) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


def run(model: openvino.Model, images: np.ndarray) -> np.ndarray:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({0: images})[0].copy()


def rewritten(model: openvino.Model, images: np.ndarray) -> Counter[str]:
    """What `model` is made of after its rewrite, which must not have changed what it computes."""
    before = run(model, images)
    rewrite(model)
    after = run(model, images)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    assert np.abs(before).max() > 0
    return kinds(model)


def conv(source, outputs: int, side: int = 1, stride: int = 1, pads: int = 0):
    weights = RNG.normal(size=(outputs, source.get_output_partial_shape(0)[1].get_length(), side, side))
    return opset.convolution(source, weights.astype(np.float32), [stride] * 2, [pads] * 2, [pads] * 2, [1, 1])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("VGG16", 32),
        pytest.param("ResNet50", 64, marks=pytest.mark.long),
        pytest.param("InceptionV3", 75, marks=pytest.mark.long),
    ],
)
@pytest.mark.long
def test_backbones_with_weights_of_every_kind(name, size):
    backbone = load_backbone(name, "none", "avg", size)
    # New biases and means are zero, and new variances one, which would hide what depends on them.
    backbone.model.set_weights([
        weights + RNG.uniform(0.01, 0.1, weights.shape) * (weights.ndim == 1)
        for weights in backbone.model.get_weights()
    ])  # fmt: skip
    model = openvino.convert_model(trace(backbone, None))
    before = kinds(model)
    rewrite(model)
    after = kinds(model)
    images = RNG.integers(0, 256, (2, size, size, 3), np.uint8)
    expected = backbone.model.predict(images, verbose=0)
    assert np.abs(run(model, images) - expected).max() <= 1e-4 * np.abs(expected).max()
    if name == "InceptionV3":
        pooled = [node for node in model.get_ops() if node.get_type_name() == "AvgPool"]
        assert len(pooled) == 9
        assert all(node.input_value(0).get_node().get_type_name() != "Concat" for node in pooled)
    else:
        assert before["StridedSlice"] == 3
        assert {"StridedSlice", "Concat", "Pad"}.isdisjoint(after)


class TestChannels:
    def model(self, order, channels=3, offsets=(1, 3, 1, 1)) -> openvino.Model:
        pixels = opset.parameter([-1, 8, 8, channels], np.float32)
        slices = [
            opset.strided_slice(
                pixels, [0, channel], [0, channel + 1], [1, 1], [0, 0], [0, 0], [0, 0], [0, 1], [1, 0]
            )
            for channel in order
        ]
        stacked = opset.concat([opset.unsqueeze(one, [1]) for one in slices], 1)
        shifted = opset.add(stacked, RNG.normal(size=offsets).astype(np.float32))
        return openvino.Model([conv(shifted, 4, 3)], [pixels])

    @given(order=st.permutations(range(3)))
    @settings(max_examples=6, deadline=None)
    def test_any_order_goes_into_the_weights(self, order):
        after = rewritten(self.model(order), RNG.normal(size=(2, 8, 8, 3)).astype(np.float32))
        assert "Concat" not in after

    @pytest.mark.parametrize(
        "changes",
        [
            {"order": [0, 0, 1]},
            {"order": [2, 1, 1]},
            {"order": [2, 1, 0], "channels": 4},
            {"order": [2, 1, 0], "offsets": (1, 1, 8, 8)},
        ],
    )
    def test_what_is_no_order_of_all_stays(self, changes):
        images = RNG.normal(size=(2, 8, 8, changes.get("channels", 3))).astype(np.float32)
        after = rewritten(self.model(**changes), images)
        assert after["Concat"] == 1

    def test_channels_that_somebody_else_takes_stay(self):
        model = self.model([2, 1, 0])
        stacked = next(node for node in model.get_ops() if node.get_type_name() == "Concat")
        model.add_results([opset.result(stacked)])
        assert rewritten(model, RNG.normal(size=(2, 8, 8, 3)).astype(np.float32))["Concat"] == 1


class TestPadding:
    IMAGES = RNG.normal(size=(2, 4, 9, 9)).astype(np.float32)

    def model(self, pads=(0, 0, 1, 1), kernel=3, relu=True, value=0.0, mode="constant") -> openvino.Model:
        images = opset.parameter([-1, 4, 9, 9], np.float32)
        padded = opset.pad(
            opset.relu(images) if relu else images, list(pads), list(pads), mode, np.float32(value)
        )
        pooled = opset.max_pool(padded, [2, 2], [1, 1], [0, 0], [0, 0], [kernel] * 2)
        return openvino.Model([pooled.output(0)], [images])

    @given(pads=st.tuples(st.just(0), st.just(0), st.integers(0, 2), st.integers(0, 2)))
    @settings(max_examples=9, deadline=None)
    def test_zeros_around_what_is_not_negative(self, pads):
        assert "Pad" not in rewritten(self.model(pads), self.IMAGES)

    @pytest.mark.parametrize(
        "changes",
        [
            {"relu": False},
            {"value": 1.0},
            {"mode": "reflect"},
            {"pads": (0, 0, 2, 2), "kernel": 2},
            {"pads": (0, 1, 1, 1)},
        ],
    )
    def test_other_padding_stays(self, changes):
        # Few values are above zero, so that zeros around them show.
        assert rewritten(self.model(**changes), 0.1 * self.IMAGES - 0.2)["Pad"] == 1


class TestPooling:
    IMAGES = RNG.normal(size=(2, 8, 9, 9)).astype(np.float32)

    def model(self, outputs=3, side=1, stride=1, pads=0, pool_stride=1, exclude=True) -> openvino.Model:
        images = opset.parameter([-1, 8, 9, 9], np.float32)
        pooled = opset.avg_pool(images, [pool_stride] * 2, [1, 1], [1, 1], [3, 3], exclude)
        bias = RNG.normal(size=(1, outputs, 1, 1)).astype(np.float32)
        result = opset.relu(opset.add(conv(pooled, outputs, side, stride, pads), bias))
        return openvino.Model([result], [images])

    def is_pooled_first(self, model: openvino.Model) -> bool:
        rewritten(model, self.IMAGES)
        (pool,) = (node for node in model.get_ops() if node.get_type_name() == "AvgPool")
        return pool.input_value(0).get_node().get_type_name() == "Parameter"

    @pytest.mark.parametrize("exclude", [True, False])
    def test_fewer_channels_are_pooled(self, exclude):
        assert not self.is_pooled_first(self.model(exclude=exclude))

    @pytest.mark.parametrize(
        "changes", [{"outputs": 8}, {"side": 3}, {"stride": 2}, {"pads": 1}, {"pool_stride": 2}]
    )
    def test_other_convolutions_stay(self, changes):
        assert self.is_pooled_first(self.model(**changes))

    def test_what_somebody_else_takes_is_pooled_once(self):
        model = self.model()
        pool = next(node for node in model.get_ops() if node.get_type_name() == "AvgPool")
        model.add_results([opset.result(pool)])
        assert self.is_pooled_first(model)
