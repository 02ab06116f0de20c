"""Weights of a graph in fewer bits: 8-bit integers, or 16-bit floats.

In matrix products, integer weights have a scale for each column. Activations
get one for each call, from their smallest and largest value (dynamic), or one
for all calls, from those on calibration audio (static). Weights take 7 bits of
the 8: on processors without VNNI instructions, sums of two products would
overflow otherwise.

Shapes: K inputs, N outputs, V entries of a table, d width.
"""

import numpy
import onnx
from onnx import helper, numpy_helper

LARGEST = 63  # of an integer weight
SMALLEST_TABLE = 1000  # entries, of tables that are kept as integers
SMALLEST_HALF = 1024  # numbers, of weights that are kept as float16
LARGEST_HALF = 6e4  # which float16 can hold
BESIDE = 1024  # bytes, of weights that are kept beside the graph
MOST_BYTES = 2**31  # that a file of protobuf can have


class Graph:
    """A graph whose matrix products can be made integer ones.

    Arguments
    ---------
    path : Path
        The ONNX file.
    half : bool
        Whether to keep weights that stay floats in 16 bits. What is computed
        stays float32.

    Attributes
    ----------
    ranges : dict
        Name of an activation -> its (smallest, largest) value; where there is
        none, each call finds out.
    """

    def __init__(self, path, half=False):
        self.half, self.name, self.ranges = half, path.name, {}
        model = onnx.load(path)
        weights = {w.name: w for w in model.graph.initializer}
        self._model, self._weights = model, weights
        self._transposed = {  # name -> of what weights it is the transposed
            node.output[0]: node.input[0]
            for node in model.graph.node
            if node.op_type == "Transpose" and self._rows(node.input[0])
        }

    def products(self):
        """Names of the matrix products with weights, and tables of embeddings.

        Returns
        -------
        list of str
        """
        return [node.name for node in self._nodes()]

    def watched(self):
        """The graph with the activations that its products read as outputs.

        Returns
        -------
        bytes
            Of an ONNX file; they come after its own outputs.
        list of str
            Their names.
        """
        names = dict.fromkeys(
            node.input[0] for node in self._nodes() if node.op_type == "MatMul"
        )
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        model.graph.output.extend(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in names
        )
        return self._bytes(model), list(names)

    def _nodes(self):
        for node in self._model.graph.node:
            if node.op_type == "MatMul":
                factor = node.input[1]
                if factor in self._transposed or self._rows(factor):
                    yield node
            if node.op_type == "Gather" and _axis(node) == 0:
                if self._rows(node.input[0]) >= SMALLEST_TABLE:
                    yield node

    def _rows(self, name):
        """Rows of a weight matrix; 0 if it is none."""
        weight = self._weights.get(name)
        return weight.dims[0] if weight and len(weight.dims) == 2 else 0

    def _factor(self, product):
        """(inputs, outputs) the weights of a product."""
        name = product.input[1]
        if name in self._transposed:
            weight = self._weights[self._transposed[name]]
            return numpy_helper.to_array(weight).T
        return numpy_helper.to_array(self._weights[name])

    def with_integers(self, names):
        """The graph with some of its products in integers.

        Arguments
        ---------
        names : set of str
            Of `products`.

        Returns
        -------
        bytes
            Of an ONNX file.

        Raises
        ------
        ValueError
            If there are 2 GiB of weights or more, which bytes cannot hold.
        """
        return self._bytes(self._converted(names))

    def _bytes(self, model):
        weights = self._weights.values()
        size = sum(numpy_helper.to_array(w).nbytes for w in weights)
        if size >= MOST_BYTES:
            raise ValueError(
                f"{self.name} has {size / 2**30:.1f} GiB of weights; only "
                "graphs below 2 GiB can be quantized"
            )
        return model.SerializeToString()

    def write(self, names, path):
        """Writes the graph with some of its products in integers.

        Arguments
        ---------
        names : set of str
            Of `products`.
        path : Path
            File to write; weights go to another, whose name is longer by
            `.data`.
        """
        beside = path.with_name(f"{path.name}.data")
        beside.unlink(missing_ok=True)  # else they would be added to it
        onnx.save_model(
            self._converted(names),
            path,
            save_as_external_data=True,
            location=beside.name,
            size_threshold=BESIDE,
        )

    def _converted(self, names):
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        nodes = []
        for node in self._model.graph.node:
            if node.name not in names:
                nodes.append(node)
            elif node.op_type == "MatMul":
                nodes += self._integer_product(node, graph)
            else:
                nodes += self._integer_table(node, graph)
        used = {name for node in nodes for name in node.input}
        nodes = [
            node
            for node in nodes
            if node.output[0] in used or node.output[0] not in self._transposed
        ]
        used = {name for node in nodes for name in node.input}
        del graph.node[:]
        graph.node.extend(nodes)
        kept = [w for w in graph.initializer if w.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        if self.half:
            _halve_(graph)
        return model

    def _integer_product(self, node, graph):
        x, name = node.input
        integers, scales = _integers(self._factor(node), axis=0)
        _add(graph, f"{name}_int8", integers)
        _add(graph, f"{name}_scales", scales[0])
        made, of = helper.make_node, node.name
        parts = [f"{of}_{part}" for part in ("int8", "scale", "zero")]
        rounded, scale, zero = parts  # of the activations
        first = made("DynamicQuantizeLinear", [x], parts)
        if x in self.ranges:
            for part, value in zip((scale, zero), _affine(*self.ranges[x])):
                _add(graph, part, value)
            first = made("QuantizeLinear", [x, scale, zero], [rounded])
        return [
            first,
            made("MatMulInteger", [rounded, f"{name}_int8", zero], [f"{of}_i"]),
            made("Cast", [f"{of}_i"], [f"{of}_f"], to=onnx.TensorProto.FLOAT),
            made("Mul", [scale, f"{name}_scales"], [f"{of}_scales"]),
            made("Mul", [f"{of}_f", f"{of}_scales"], node.output, name=of),
        ]

    def _integer_table(self, node, graph):
        name, places = node.input
        table = numpy_helper.to_array(self._weights[name])
        integers, scales = _integers(table, axis=1)
        _add(graph, f"{name}_table", integers)
        _add(graph, f"{name}_row_scales", scales)
        made, of = helper.make_node, node.name
        return [
            made("Gather", [f"{name}_table", places], [f"{of}_i"]),
            made("Gather", [f"{name}_row_scales", places], [f"{of}_s"]),
            made("Cast", [f"{of}_i"], [f"{of}_f"], to=onnx.TensorProto.FLOAT),
            made("Mul", [f"{of}_f", f"{of}_s"], node.output, name=of),
        ]


def _integers(weight, axis):
    """Integers, and scales over an axis, whose product is the weight."""
    scales = numpy.abs(weight).max(axis, keepdims=True) / LARGEST
    scales[scales == 0] = 1
    return numpy.rint(weight / scales).astype(numpy.int8), scales


def _affine(smallest, largest):
    """(scale, zero point) of unsigned integers that hold a range and 0."""
    smallest, largest = min(smallest, 0), max(largest, 0)
    scale = (largest - smallest) / 255 or 1
    zero = numpy.rint(-smallest / scale)
    return numpy.float32(scale), numpy.uint8(zero)


def _halve_(graph):
    """Keeps float32 weights in 16 bits, and makes them 32 again when loaded."""
    casts = []
    for weight in graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(weight)
        if array.size < SMALLEST_HALF or abs(array).max() > LARGEST_HALF:
            continue
        name, half = weight.name, f"{weight.name}_float16"
        halves = numpy_helper.from_array(array.astype(numpy.float16), half)
        weight.CopyFrom(halves)
        to = {"to": onnx.TensorProto.FLOAT}
        casts.append(helper.make_node("Cast", [half], [name], **to))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _add(graph, name, array):
    if name not in {weight.name for weight in graph.initializer}:
        array = numpy.asarray(array)
        graph.initializer.append(numpy_helper.from_array(array, name))


def _axis(node):
    return next((a.i for a in node.attribute if a.name == "axis"), 0)
