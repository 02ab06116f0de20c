"""What an earlier version exported loads and computes the same."""

import shutil
from pathlib import Path

import pytest
import torch
from speechbrain.inference.ASR import EncoderASR, EncoderDecoderASR

from sb_prune import lobes
from sb_prune.export.loading import load_export

EXPORTS = sorted(
    (Path(__file__).parents[1] / "fixtures").glob("format_*/*/"),
    key=lambda folder: folder.parts[-2:],
)


@pytest.fixture(params=EXPORTS, ids=lambda f: "-".join(f.parts[-2:]))
def export(request, tmp_path):
    """A copy of the folder (nothing may change it) and its example."""
    folder = tmp_path / request.param.name
    shutil.copytree(request.param, folder)
    example = torch.load(folder / "example.pt", weights_only=True)
    return folder, example


def assert_same(found, expected):
    """To rounding: the example was computed on another machine."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_three_exports_of_format_1_are_there():
    found = {f.name for f in EXPORTS if f.parent.name == "format_1"}
    assert found == {"conformer_ctc", "encoder_decoder", "wav2vec2"}


def test_the_two_exports_of_format_2_are_there():
    found = {f.name for f in EXPORTS if f.parent.name == "format_2"}
    assert found == {"conformer_ctc", "wav2vec2"}


@torch.no_grad()
def test_it_loads_and_computes_the_same(export):
    folder, example = export
    loaded = load_export(folder)
    encoded = loaded.encoder(example["wavs"], example["lengths"])
    assert_same(encoded, example["encoded"])
    if "tokens" in example:
        lengths = torch.full((len(encoded),), encoded.shape[1])
        decoded, _ = loaded.hparams["Transformer"].decode(
            example["tokens"], encoded, lengths
        )
        assert_same(loaded.hparams["seq_lin"](decoded), example["decoded"])


@torch.no_grad()
def test_speechbrain_loads_it_by_from_hparams(export, tmp_path):
    folder, example = export
    if folder.name == "wav2vec2":
        lobe = lobes.Wav2Vec2(str(folder), str(folder), output_norm=True)
        hparams = load_export(folder).hparams
        encoded = hparams["lin"](
            lobe.eval()(example["wavs"], example["lengths"])
        )
        assert_same(encoded, example["encoded"])
        return
    loader = EncoderASR
    if folder.name == "encoder_decoder":
        loader = EncoderDecoderASR
    asr = loader.from_hparams(source=str(folder), savedir=tmp_path / "saved")
    encoded = asr.encode_batch(example["wavs"], example["lengths"])
    assert_same(encoded, example["encoded"])
