"""What cannot become a graph is named."""

import onnx
import pytest
import torch
from rounding import new_switch

from sb_prune.deploy.graphs import OPSET, Input, write_graph
from sb_prune.deploy.runtime.settings import DeployError


class Branching(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Bessel(torch.nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Failing(torch.nn.Module):
    def forward(self, x):
        raise RuntimeError("no such thing")


def write(module, path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), module)
    inputs = {"x": Input(torch.randn(3, 2), (0,))}
    write_graph(model.eval(), inputs, ["y"], path)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching(), r"1 \(Branching\) cannot be traced"),
        (Failing(), r"1 \(Failing\) cannot be traced \(no such thing\)"),
        (Bessel(), r"1 \(Bessel\) uses prims.bessel_j0.*no ONNX"),
    ],
)
def test_module_is_named(module, message, tmp_path):
    with pytest.raises(DeployError, match=message):
        write(module, tmp_path / "graph.onnx")
    assert not list(tmp_path.iterdir())


def test_no_hook_stays(tmp_path):
    linear = torch.nn.Linear(2, 2)
    write(linear, tmp_path / "graph.onnx")
    assert not linear._forward_hooks and not linear._forward_pre_hooks


def test_switches_for_tf32_may_contradict(tmp_path):
    """As after one of them was set in the same process."""
    operation, path = torch.backends.cudnn.conv, tmp_path / "graph.onnx"
    with new_switch(operation) as precision:
        write(torch.nn.ReLU(), path)
        assert path.is_file() and operation.fp32_precision == precision


class Attending(torch.nn.Module):
    def forward(self, x):
        x = torch.nn.functional.gelu(x)
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(x, x, x, is_causal=True)


def test_operators_are_few(tmp_path):
    """One for GELU; attention does not look for queries without keys."""
    path = tmp_path / "graph.onnx"
    write(Attending(), path)
    model = onnx.load(path)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Gelu") == 1 and kinds.count("Softmax") == 1
    assert not {"Erf", "IsNaN"} & {*kinds}
    assert [domain.version for domain in model.opset_import] == [OPSET]
