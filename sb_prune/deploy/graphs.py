"""Writes a module as an ONNX graph with dynamic sizes."""

import logging
import re
import warnings
from ast import literal_eval
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sb_prune.deploy.adapters import traceable_functions
from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.support.arithmetic import exact_arithmetic
from sb_prune.support.disk import reason

OPSET = 20  # the first with an operator for GELU
SCOPES = "pkg.torch.onnx.name_scopes"  # modules that an operation is in
LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Input:
    """An input of a graph.

    Arguments
    ---------
    example : torch.Tensor
        What the module is traced with; dynamic axes have at least 2 entries.
    axes : tuple of int
        Its dynamic axes.
    """

    example: torch.Tensor
    axes: tuple


def write_graph(module, inputs, outputs, path):
    """Traces a module and writes its graph.

    Arguments
    ---------
    module : torch.nn.Module
        In eval mode. Its forward takes the inputs in this order.
    inputs : dict
        Name -> `Input`, or a list of them for an argument that is a list;
        these are called name_0, name_1, ...
    outputs : list of str
        Names of what the forward returns.
    path : Path
        File to write; weights go to another, whose name is longer by `.data`.

    Raises
    ------
    DeployError
        If something in it cannot be traced, or has no ONNX operator. It names
        the module.
    """
    arguments = [
        _mapped(given, lambda i: i.example) for given in inputs.values()
    ]
    dynamic = [_mapped(given, _dynamic) for given in inputs.values()]
    names = []
    for name, given in inputs.items():
        several = isinstance(given, list)
        count = len(given) if several else 1
        names += [f"{name}_{n}" if several else name for n in range(count)]
    # torch looks at its switches for TF32, and fails where they contradict
    with _quiet(), torch.no_grad(), exact_arithmetic(), traceable_functions():
        program = _traced(module, arguments, dynamic)
        _drop_void_squeezes_(program)
        written = _translated(program, names, outputs)
        _tidy_(written.model)
        # weights beside the graph are read where they lie, not copied first
        written.save(path, external_data=True)


def _mapped(given, function):
    if isinstance(given, list):
        return [function(one) for one in given]
    return function(given)


def _dynamic(given):
    return dict.fromkeys(given.axes, torch.export.Dim.DYNAMIC)


def _traced(module, arguments, dynamic):
    with _last_entered(module) as entered:
        try:
            return torch.export.export(
                module,
                tuple(arguments),
                dynamic_shapes=tuple(dynamic),
                strict=False,
            )
        except Exception as error:  # whatever the model's forward raises
            raise DeployError(
                f"{entered[-1] if entered else 'the model'} cannot be traced "
                f"({reason(error)}); leave it out of the model, or write an "
                "adapter in sb_prune/deploy/adapters.py"
            ) from error


@contextmanager
def _last_entered(module):
    """Context with a list of the modules that are running, by their names."""
    running, handles = [], []
    for name, child in module.named_modules():
        label = f"{name or 'model'} ({type(child).__name__})"

        def enter(child, args, label=label):
            running.append(label)

        def leave(child, args, output):
            running.pop()

        handles.append(child.register_forward_pre_hook(enter))
        handles.append(child.register_forward_hook(leave))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _drop_void_squeezes_(program):
    """Removes `squeeze` of axes that are not 1, which ONNX does not know."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.squeeze.dim:
            continue
        source, axis = node.args
        size = source.meta["val"].shape[axis]
        if isinstance(size, int) and size != 1:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    program.graph_module.recompile()


def _translated(program, names, outputs):
    try:
        return torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=outputs,
            report=False,
            verbose=False,
        )
    except Exception as error:  # torch.onnx has errors of many kinds
        blamed = _blamed(error)
        if blamed is None:
            raise
        name, operator = blamed
        raise DeployError(
            f"{_module_with(program, name)} uses {operator}, which has no "
            "ONNX operator; leave it out of the model, or write an adapter in "
            "sb_prune/deploy/adapters.py"
        ) from error


def _tidy_(model):
    """Names nodes by their modules, and drops where their code stood."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get(SCOPES)
        if scopes:
            *modules, last = [scope for scope in literal_eval(scopes) if scope]
            node.name = f"{modules[-1] if modules else 'model'}/{node.name}"
        node.metadata_props.clear()


def _blamed(error):
    """(name, operator) that an error of torch.onnx is about, or None."""
    pattern = r"translating node %(\w+) .*?\[target=(?:torch\.ops\.)?([\w.]+)\]"
    while error is not None:
        found = re.search(pattern, str(error))
        if found:
            return found.groups()
        error = error.__cause__
    return None


def _module_with(program, name):
    """Path and class of the innermost module that an operation is in.

    `torch.onnx` takes some operations apart, so names are alike only.
    """
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack and (name == node.name or f"_{name}" in f"_{node.name}"):
            path, kind = list(stack.values())[-1]
            kind = kind if isinstance(kind, str) else kind.__name__
            return f"{path or 'model'} ({kind.rpartition('.')[2]})"
    return "the model"


@contextmanager
def _quiet():
    """Context without the notes that torch makes of each graph."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
