"""Cut models in torch's own compilers compute what they do without."""

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
from sb_prune.architectures.parts import INSIDE_HEADS
from sb_prune.deploy.adapters import traceable, traceable_functions

TOLERANCE = 1e-4  # relative to the largest output
CASES = [  # build, whether heads are of unequal widths
    ("conformer RelPosMHAXL", False),
    ("conformer regularMHA", True),
    ("Wav2Vec2 sdpa", False),
    ("WavLM eager", True),
]
LENGTHS = (800, 1300)


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
    assert_same(torch.compile(module, backend="aot_eager"), module)


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
