"""An export of a tiny untrained model, made in a second."""

import io
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import sentencepiece
import torch
from hyperpyyaml import load_hyperpyyaml

from sb_prune import Cut, Plan, conformer_structures, cut_
from sb_prune.declare.plan import full_plan
from sb_prune.declare.roots import root_of
from sb_prune.export.folder import export_model

RECIPE = Path(__file__).parents[2] / "recipes/LibriSpeech/ASR/transformer"
INFERENCE = RECIPE / "hparams/inference_ctc.yaml"
SIZES = {
    "n_fft": 400,
    "n_mels": 80,
    "d_model": 16,
    "nhead": 4,
    "num_encoder_layers": 3,
    "d_ffn": 32,
    "kernel_size": 5,
    "output_neurons": 12,
    "blank_index": 0,
}
LAYER = "encoder.layers"
KEEP = {
    f"{LAYER}.0.ffn_module1.units": "5 of 32: 0-3 9",
    f"{LAYER}.0.mha_layer.heads": "3 of 4: 0-1 3",
    f"{LAYER}.0.convolution_module.channels": "7 of 16: 9-15",
    f"{LAYER}.1.ffn_module2": "0 of 1:",
    f"{LAYER}.2": "0 of 1:",
}


def make_export(
    folder,
    module="Transformer",
    structures=partial(conformer_structures, only=""),  # noqa: B008
    keep=KEEP,
    train=INFERENCE,
    inference=INFERENCE,
    again=(),
):
    """Writes the export of a cut model.

    Arguments
    ---------
    folder : Path
        Must not exist.
    module : str or list of str
        What is cut.
    structures : callable or list of callable
        Module -> Declaration; a list has one for each cut.
    keep : dict
        Of a plan, what does not stay whole.
    train : Path
        YAML that the model is made from.
    inference : Path
        YAML that the export is made from.
    again : sequence of dict
        Like `keep`, of further cuts, each declared on what the last one left.

    Returns
    -------
    SimpleNamespace
        What was exported: `declaration` and `plan` of the last cut, `hparams`
        (cut).
    """
    torch.manual_seed(0)
    with open(train, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, SIZES)
    hparams["normalize"].train()(torch.randn(1, 20, 80), torch.ones(1))
    _train_tokenizer(hparams["tokenizer"])
    kept = (keep, *again)
    if callable(structures):
        structures = [structures] * len(kept)
    edits = []
    for declare, keep in zip(structures, kept, strict=True):
        declaration = declare(root_of(hparams, module))
        whole = full_plan(declaration).keep
        plan = Plan({**whole, **Plan.from_dict(keep).keep})
        cut_(declaration, plan)
        edits.append(Cut(structures=declare, plan=plan.to_dict()))
    export_model(
        folder,
        inference,
        SimpleNamespace(
            modules={}, hparams=SimpleNamespace(**{**hparams, **SIZES})
        ),
        module=module,
        edits=edits,
        facts={},
    )
    return SimpleNamespace(declaration=declaration, plan=plan, hparams=hparams)


def _train_tokenizer(tokenizer):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ONE TWO THREE", "TEN NET WENT"] * 4),
        model_writer=model,
        vocab_size=SIZES["output_neurons"],
        minloglevel=2,
    )
    tokenizer.load_from_serialized_proto(model.getvalue())
