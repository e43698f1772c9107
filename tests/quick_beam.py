"""Spares the tests half of the time of a small build, and changes nothing that its pipeline does.

While Beam makes a pipeline it inspects the parameters of a few hundred methods 25,000 times, looks for the
state of a few dozen DoFns a thousand times, and parses the same flags as often. Commands that tests start in
processes of their own run Beam as it is.
"""

from types import FunctionType, MethodType
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, userstate


def remember() -> None:
    """Has Beam inspect a method and a DoFn, and parse a pipeline's flags for a class of options, once."""
    inspected, parsed = core.get_function_args_defaults, PipelineOptions.view_as
    looked_for = userstate.get_dofn_specs
    parameters: dict[FunctionType, tuple[list[str], list[Any]]] = {}
    specs: dict[type[core.DoFn], tuple[set[Any], set[Any]]] = {}
    views: dict[tuple[int, type[PipelineOptions]], PipelineOptions] = {}

    def get_function_args_defaults(function: Any) -> tuple[list[str], list[Any]]:
        if not isinstance(function, MethodType):
            return inspected(function)
        if function.__func__ not in parameters:
            parameters[function.__func__] = inspected(function)
        names, defaults = parameters[function.__func__]
        return list(names), list(defaults)

    def get_dofn_specs(dofn: core.DoFn) -> tuple[set[Any], set[Any]]:
        kind = type(dofn)
        if kind is core.CallableWrapperDoFn:  # its function decides, and each has another
            return looked_for(dofn)
        if kind not in specs:
            specs[kind] = looked_for(dofn)
        states, timers = specs[kind]
        return set(states), set(timers)

    def view_as(options: PipelineOptions, cls: type[PipelineOptions]) -> PipelineOptions:
        # All views of a pipeline's options share the dictionary of their values; a view keeps it alive.
        key = id(options._all_options), cls
        if key not in views:
            views[key] = parsed(options, cls)
        return views[key]

    core.get_function_args_defaults = get_function_args_defaults
    userstate.get_dofn_specs = get_dofn_specs
    PipelineOptions.view_as = view_as
