"""Export folders: what loads, and what is refused."""

import shutil
from functools import partial

import pytest
import torch
from speechbrain.inference.ASR import EncoderASR
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from torch.utils._python_dispatch import TorchDispatchMode

from sb_prune import ParameterBudget, conformer_structures, cut_
from sb_prune.cut.edits import Cut, rebuild
from sb_prune.export.build import load_verified
from sb_prune.learn.fitting import fit_plan
from sb_prune.support.hashes import file_hash


@pytest.fixture
def export(pruned_run, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(pruned_run / "export", tmp_path / "export")


def load(folder, tmp_path):
    return EncoderASR.from_hparams(
        source=str(folder), savedir=str(tmp_path / "saved")
    )


def test_transcribes_a_file(export, corpus, tmp_path):
    audio = next(corpus.rglob("*.flac"))
    assert isinstance(load(export, tmp_path).transcribe_file(str(audio)), str)


def test_truncated_weights_are_refused(export, tmp_path):
    weights = export / "model.ckpt"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="truncated, edited or of another"):
        load(export, tmp_path)


def edit(export, old, new):
    path = export / "hyperparams.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_edited_sizes_are_refused(export, tmp_path):
    edit(export, "d_ffn: 64", "d_ffn: 60")
    with pytest.raises(ValueError, match="plan: made for another architectur"):
        load(export, tmp_path)


def test_edited_plan_is_refused(export, tmp_path):
    edit(export, "of 4: ", "of 4: 9")
    with pytest.raises(ValueError, match="plan: cannot read encoder"):
        load(export, tmp_path)


def test_weights_of_another_plan_are_refused(export, tmp_path):
    weights = export / "model.ckpt"
    state = torch.load(weights, weights_only=True)
    name = next(n for n in state if n.endswith("ffn.0.weight"))
    state[name] = state[name][1:].clone()
    old = file_hash(weights)
    torch.save(state, weights)
    edit(export, old, file_hash(weights))
    with pytest.raises(ValueError, match="does not fit the model in hyperp"):
        load(export, tmp_path)


class LargestOnCPU(TorchDispatchMode):
    """Size of the largest tensor that an operation put on the CPU."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if torch.is_tensor(out) and out.device.type == "cpu":
            self.elements = max(self.elements, out.numel())
        return out


def test_loading_allocates_no_dense_weights(tmp_path):
    factory = partial(ConformerEncoder, 2, d_model=16, d_ffn=4096, nhead=4)
    structures = partial(conformer_structures, kinds=["ffn_units"])
    dense = factory()
    declaration = structures(dense)
    groups = ParameterBudget(0.9).groups(declaration)
    plan = fit_plan(declaration, groups, torch.rand(declaration.total_units))
    cut_(declaration, plan)
    torch.save(dense.state_dict(), tmp_path / "model.ckpt")
    largest = max(p.numel() for p in dense.parameters())
    with LargestOnCPU() as watch:
        cut = Cut(structures=structures, plan=plan.to_dict())
        small = rebuild(factory, [cut])
        path = tmp_path / "model.ckpt"
        load_verified(small, path, file_hash(path))
    assert largest < 0.2 * 16 * 4096
    assert watch.elements <= max(largest, declaration.total_units)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            small.state_dict().values(), dense.state_dict().values()
        )
    )


@pytest.mark.parametrize("name", ["normalizer", "tokenizer"])
def test_edited_normalizer_or_tokenizer_is_refused(name, export, tmp_path):
    path = export / f"{name}.ckpt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{name}.ckpt is not the file that"):
        load(export, tmp_path)
