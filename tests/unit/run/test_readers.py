"""Modules outside of `module` that read what would be cut."""

from functools import partial

import pytest
import speechbrain as sb
import torch
from speechbrain.lobes.models.wav2vec import W2VTargetQuantiser
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from sb_prune import wav2vec2_structures
from sb_prune.run.data import Data
from sb_prune.run.run import Run
from sb_prune.run.settings import PruningSettings

LISTED = ["latent_extractor", "latent_encoder"]


def begin(folder, encoder, module, **structures):
    """Begins a run on a recipe of wav2vec 2.0's pre-training."""
    quantiser = W2VTargetQuantiser(in_dim=4, out_dim=6, num_vars=4)
    modules = {**dict(encoder.items()), "target_quantiser": quantiser}
    counter = EpochCounter(2)
    saved = torch.nn.ModuleList(modules.values())
    brain = sb.Brain(
        modules,
        hparams={},
        checkpointer=Checkpointer(folder, {"model": saved, "counter": counter}),
    )
    settings = PruningSettings(
        module=module,
        structures=partial(wav2vec2_structures, **structures),
        target=0.5,
        prune_epochs=1,
        schedule_steps=9,
    )
    with pytest.raises(ValueError) as refusal:
        Run(settings).begin_(brain, counter, Data(brain, [1], None, {}, {}))
    return str(refusal.value)


def test_a_quantiser_must_be_listed(make_wav2vec2, tmp_path):
    encoder = make_wav2vec2("SpeechBrain")
    assert begin(tmp_path, encoder, LISTED) == (
        "pruning: module: target_quantiser reads the front-end's channels too; "
        "write module: [latent_extractor, latent_encoder, target_quantiser], "
        "or kinds without front_end_channels"
    )


def test_where_it_reads_nothing_that_is_cut(make_wav2vec2, tmp_path):
    """Both then get as far as the lengths of the phases."""
    encoder = make_wav2vec2("SpeechBrain")
    every = [*LISTED, "target_quantiser"]
    for module, structures in ((LISTED, {"kinds": ["heads"]}), (every, {})):
        refusal = begin(tmp_path, encoder, module, **structures)
        assert "schedule_steps: 9 is longer than the prune phase" in refusal
