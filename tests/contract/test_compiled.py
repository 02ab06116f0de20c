"""Cut models in torch's own compilers compute what they do without."""

import subprocess
import sys
import sysconfig

import pytest
import torch
from test_architectures import BUILDS
from test_deployed import HuggingFace, Samples
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    quantize_,
)
from torchao.utils import TorchAOBaseTensor

from sb_prune import cut_
from sb_prune.architectures.heads import INSIDE_HEADS
from sb_prune.deploy.adapters import traceable, traceable_functions

TOLERANCE = 1e-4  # relative to the largest output
CASES = [  # build, whether heads are of unequal widths
    ("conformer RelPosMHAXL", False),
    ("conformer regularMHA", True),
    ("Wav2Vec2 sdpa", False),
    ("WavLM eager", True),
]
LENGTHS = (800, 1300)
EXECUTORCH = ("executorch==1.2.*", "tabulate")
ITS_TORCH = "2.11."  # which that wheel was built against
ON_DEVICE = """
import sys
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

exported, inputs, outputs = sys.argv[1:]
program = to_edge_transform_and_lower(torch.export.load(exported))
program = Runtime.get().load_program(program.to_executorch().buffer)
method = program.load_method("forward")
torch.save(method.execute(torch.load(inputs))[0].clone(), outputs)
"""


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def module(request, make_model, random_plan):
    """(wavs, lens) -> states, of a model that is cut at random."""
    name, unequal = request.param
    build = BUILDS[name]
    model = build.make(make_model)
    kinds = [k for k in build.kinds if unequal or k not in INSIDE_HEADS]
    declaration = build.structures(model, kinds=kinds)
    cut_(declaration, random_plan(declaration, seed=3))
    made = HuggingFace if "family" in build.options else Samples
    return made(model).eval()


def batch(length, size=2):
    generator = torch.Generator().manual_seed(length)
    wavs = torch.randn(size, length, generator=generator)
    return wavs, torch.linspace(1, 0.6, size)


def assert_same(computed, module):
    for length in LENGTHS:
        expected = module(*batch(length))
        off = (computed(*batch(length)) - expected).abs().max()
        assert off <= TOLERANCE * expected.abs().max()


@torch.no_grad()
def test_torch_compile(module):
    torch.compiler.reset()
    assert_same(
        torch.compile(module, backend="aot_eager", fullgraph=True), module
    )


@torch.no_grad()
def test_torch_export(module):
    """One program for any length."""
    time = {1: torch.export.Dim.DYNAMIC}
    with traceable_functions():
        program = torch.export.export(
            traceable(module),
            batch(LENGTHS[0]),
            dynamic_shapes=(time, None),
            strict=False,
        )
    assert_same(program.module(), module)


@pytest.fixture(scope="module")
def executorch(tmp_path_factory):
    """Python with ExecuTorch; what its wheel pins is not for these tests."""
    if not torch.__version__.startswith(ITS_TORCH):
        pytest.skip(f"{EXECUTORCH[0]} needs torch {ITS_TORCH}*")
    folder = tmp_path_factory.mktemp("executorch")
    command = [sys.executable, "-m", "venv", "--without-pip", folder]
    subprocess.run(command, check=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    command = [*pip, "--quiet", "--no-deps", *EXECUTORCH]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"no wheel of {EXECUTORCH[0]} here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    (packages,) = folder.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "others.pth").write_text("\n".join(sorted(paths)))
    return python


@torch.no_grad()
@pytest.mark.parametrize("module", CASES[1:3], indirect=True, ids=str)
def test_executorch(module, executorch, tmp_path):
    """Its portable kernels, for one length: it plans its memory before."""
    inputs = batch(LENGTHS[0])
    with traceable_functions():
        program = torch.export.export(traceable(module), inputs, strict=False)
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save(inputs, tmp_path / "inputs.pt")
    paths = [tmp_path / f"{n}.pt" for n in ("inputs", "outputs")]
    command = [executorch, "-c", ON_DEVICE, tmp_path / "program.pt2", *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    off = (torch.load(paths[1]) - module(*inputs)).abs().max()
    assert off <= TOLERANCE * module(*inputs).abs().max()


@torch.no_grad()
def test_torchao(module):
    """Products in 8-bit integers, by a library for users of torch."""
    expected = module(*batch(LENGTHS[0]))
    quantize_(module, Int8DynamicActivationInt8WeightConfig())
    integers = [
        child
        for child in module.modules()
        if isinstance(getattr(child, "weight", None), TorchAOBaseTensor)
    ]
    assert integers
    off = (module(*batch(LENGTHS[0])) - expected).abs().max()
    assert 0 < off <= 0.1 * expected.abs().max()
