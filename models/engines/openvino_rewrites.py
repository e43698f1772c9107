"""Rewrites of a converted backbone that OpenVINO's own passes leave undone, and that make it quicker.

Each is an identity of the numbers: at most, features change by the rounding of sums in another order.
"""

from typing import Any

import numpy as np
import numpy.typing as npt


def rewrite(model: Any) -> None:
    """Rewrites `model`, an ``openvino.Model`` of pixels [n, height, width, 3], in place."""
    for node in model.get_ordered_ops():
        match node.get_type_name():
            case "Concat":
                _take_channels_as_they_come(node)
            case "MaxPool":
                _pad_in_the_pooling(node)
            case "Convolution":
                _pool_after_the_convolution(node)
    model.validate_nodes_and_infer_types()


def _take_channels_as_they_come(concat: Any) -> None:
    """``conv(bgr(x) + c, w)`` becomes ``conv(x + bgr(c), bgr(w))``.

    Keras slices the pixels' channels apart and stacks them anew for weights that came from Caffe, as
    ResNet50's did: 6 % of that backbone's time.
    """
    import openvino.opset13 as opset

    slices = [found for value in concat.input_values() if (found := _channel(value.get_node()))]
    add = _only_consumer(concat)
    convolution = _only_consumer(add)
    if concat.get_attributes()["axis"] != 1 or not _is(add, "Add") or not _is(convolution, "Convolution"):
        return
    sources = [source for source, _ in slices]
    order = [channel for _, channel in slices]
    constants = [
        constant
        for node in (add, convolution)
        if (constant := _constant(node.input_value(1))) is not None and constant.shape[1:2] == (len(order),)
    ]
    if (
        len(constants) != 2
        or sorted(order) != list(range(concat.get_input_size()))
        or any(source != sources[0] for source in sources)
        or sources[0].get_partial_shape()[3] != len(order)
    ):
        return
    for node, constant in zip((add, convolution), constants, strict=True):
        node.input(1).replace_source_output(opset.constant(constant[:, np.argsort(order)]).output(0))
    add.input(0).replace_source_output(opset.transpose(sources[0], [0, 3, 1, 2]).output(0))


def _channel(node: Any) -> tuple[Any, int] | None:
    """Which channel of what [n, height, width, channels] a `node` gives as [n, 1, height, width], if any."""
    if not _is(node, "Unsqueeze") or not _is(sliced := node.input_value(0).get_node(), "StridedSlice"):
        return None
    masks = sliced.get_attributes()
    rank = sliced.input_value(0).get_partial_shape().rank
    first, end = (_constant(sliced.input_value(index)) for index in (1, 2))
    if (
        masks["ellipsis_mask"] != [1, 0]
        or masks["shrink_axis_mask"] != [0, 1]
        or first is None
        or end is None
        or end[1] != first[1] + 1
        or _constant(node.input_value(1)) != 1
        or rank != 4
    ):
        return None
    return sliced.input_value(0), int(first[1])


def _pad_in_the_pooling(pool: Any) -> None:
    """``max_pool(pad(relu(x), 0))`` becomes ``max_pool(relu(x))`` that pads: no value is below zero."""
    import openvino.opset8 as opset

    pad = pool.input_value(0).get_node()
    settings = pool.get_attributes()
    if (
        not _is(pad, "Pad")
        or not _is(pad.input_value(0).get_node(), "Relu")
        or pad.get_attributes()["pad_mode"] != "constant"
        or any(settings["pads_begin"] + settings["pads_end"])
        or any(step != 1 for step in settings["dilations"])
        or settings["rounding_type"] != "floor"
        or any(output.get_target_inputs() for output in pool.outputs()[1:])
    ):
        return
    begin, end, *value = map(_constant, pad.input_values()[1:])  # without a value it is zero
    if any(one != 0 for one in value) or begin is None or end is None or any(begin[:2]) or any(end[:2]):
        return
    # Every window must hold a value that is none of the padding.
    before, after, kernel = begin[2:].tolist(), end[2:].tolist(), settings["kernel"]
    if not all(0 <= width < side for width, side in zip(before + after, kernel + kernel, strict=True)):
        return
    padding = opset.max_pool(
        pad.input_value(0), settings["strides"], settings["dilations"], before, after, kernel, "floor"
    )
    for target in pool.output(0).get_target_inputs():
        target.replace_source_output(padding.output(0))


def _pool_after_the_convolution(convolution: Any) -> None:
    """``conv_1x1(avg_pool(x))`` becomes ``avg_pool(conv_1x1(x))`` where that leaves fewer channels to pool.

    Both are linear, and one acts on pixels and the other on channels. InceptionV3 has nine of them.
    """
    pool = convolution.input_value(0).get_node()
    if not _is(pool, "AvgPool") or _only_consumer(pool) is None:
        return
    outputs, inputs, *kernel = convolution.input_value(1).get_shape()
    settings = convolution.get_attributes()
    if (
        outputs >= inputs
        or any(side != 1 for side in [*kernel, *settings["strides"], *pool.get_attributes()["strides"]])
        or any([*settings["pads_begin"], *settings["pads_end"]])
    ):
        return
    targets = convolution.output(0).get_target_inputs()
    convolution.input(0).replace_source_output(pool.input_value(0))
    pool.input(0).replace_source_output(convolution.output(0))
    for target in targets:
        target.replace_source_output(pool.output(0))


def _is(node: Any, kind: str) -> bool:
    return node is not None and node.get_type_name() == kind


def _only_consumer(node: Any) -> Any:
    """The node that alone takes what `node`, which may be None, gives; None where there is no such."""
    targets = list(node.output(0).get_target_inputs()) if node is not None else []
    return targets[0].get_node() if len(targets) == 1 else None


def _constant(value: Any) -> npt.NDArray[Any] | None:
    node = value.get_node()
    return node.data if _is(node, "Constant") else None
