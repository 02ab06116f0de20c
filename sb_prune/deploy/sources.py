"""Loads what is to be deployed: an export, or another folder."""

from pathlib import Path

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.logger import get_logger

from sb_prune.deploy.runtime.settings import DeployError
from sb_prune.export.loading import (
    ExportError,
    NoExport,
    encoder_of,
    load_export,
    seconds_heard,
)
from sb_prune.support.disk import reason
from sb_prune.support.measure import count_macs, count_parameters, noise

logger = get_logger(__name__)

COUNTED = 10  # seconds of noise whose MACs are counted, at most


def load_source(source):
    """Loads a folder that SpeechBrain's `from_hparams` loads.

    Arguments
    ---------
    source : str
        An export of sb_prune, or another folder with a `hyperparams.yaml`.
        Loading runs whatever that names.

    Returns
    -------
    dict
        Objects of the `hyperparams.yaml`, with weights, in eval mode.
    Export or None
        What `load_export` returns, if it is an export.

    Raises
    ------
    DeployError
        If it cannot be loaded.
    """
    file = Path(source) / "hyperparams.yaml"
    if not file.is_file():
        raise DeployError(
            f"{source} has no hyperparams.yaml; name an export, or a folder "
            "that SpeechBrain's from_hparams loads"
        )
    try:
        export = load_export(source)
        return export.hparams, export
    except NoExport:
        pass
    except ExportError as error:
        raise DeployError(str(error)) from error
    try:
        with open(file, encoding="utf-8") as stream:
            hparams = load_hyperpyyaml(stream)
        pretrainer = hparams.get("pretrainer")
        if pretrainer is not None:
            pretrainer.collect_files(default_source=str(source))
            pretrainer.load_collected()
        torch.nn.ModuleDict(hparams["modules"]).eval()
    except Exception as error:  # whatever its objects raise
        raise DeployError(
            f"{source} cannot be loaded ({reason(error)}); name the export of "
            "a run, or a folder that SpeechBrain's from_hparams loads"
        ) from error
    if pretrainer is None:
        logger.warning(f"{file} names no pretrainer: nothing loads weights")
    return hparams, None


def cost_of(hparams, sample_rate):
    """What a model costs, by which models are compared.

    Arguments
    ---------
    hparams : dict
        From `load_source`.
    sample_rate : int

    Returns
    -------
    dict
        parameters; macs_per_second: of the encoder, for each second of audio.
    """
    seconds = seconds_heard(hparams, COUNTED)
    wavs = noise(seconds, sample_rate)
    return {
        "parameters": count_parameters(hparams["modules"].values()),
        "macs_per_second": count_macs(encoder_of(hparams), wavs) / seconds,
    }
