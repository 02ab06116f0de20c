"""Deploys a speech recogniser, or transcribes with one that was deployed.

    python -m sb_prune.deploy EXPORT --output FOLDER
    python -m sb_prune.deploy transcribe FOLDER FILE [FILE ...]

The first writes ONNX graphs, which need neither torch nor SpeechBrain, and
prints how far they are from the export. Loading an export runs whatever its
`hyperparams.yaml` names: deploy only folders from people whom you trust.
"""

import argparse
import sys

from sb_prune.deploy.runtime.asr import OnnxASR
from sb_prune.deploy.runtime.settings import DeployError


def main(arguments=None):
    """Runs the command.

    Arguments
    ---------
    arguments : list of str, optional
        By default those of the command line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["transcribe"]:
            _transcribe(arguments[1:])
        else:
            _deploy(arguments)
    except (DeployError, OSError) as error:
        sys.exit(f"error: {error}")
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: {error.name} is not installed; pip install it, or all of "
            '".[deploy]"'
        )


def _deploy(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m sb_prune.deploy",
        description=__doc__.splitlines()[0],
        epilog="`python -m sb_prune.deploy transcribe --help` says how to "
        "transcribe.",
    )
    parser.add_argument("export", help="a folder that from_hparams loads")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--quantize", choices=["int8"], help="needs --audio, too"
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="keep weights that stay floats in 16 bits",
    )
    parser.add_argument(
        "--static",
        action="store_true",
        help="activations keep the scales of the calibration audio",
    )
    parser.add_argument(
        "--features_apart",
        action="store_true",
        help="features are a graph of their own, features.onnx",
    )
    parser.add_argument("--audio", help="folder of calibration audio")
    parser.add_argument(
        "--max_kl", type=float, help="nats that int8 may cost (default: 0.01)"
    )
    parser.add_argument(
        "--max_wer_loss", type=float, help="points of WER in place of that"
    )
    parser.add_argument("--labels", help="CSV manifest with wav and wrd")
    parser.add_argument("--data_folder", help="$data_root in the manifest")
    given = parser.parse_args(arguments)
    keys = ("audio", "max_kl", "labels", "max_wer_loss", "data_folder")
    values = {key: getattr(given, key) for key in (*keys, "static")}
    values = {k: v for k, v in values.items() if v not in (None, False)}
    if given.quantize and not given.audio:
        parser.error("--quantize: write --audio FOLDER, too")
    if values and not given.quantize:
        parser.error(f"--{min(values)}: write --quantize int8, too")
    if len({"max_kl", "max_wer_loss"} & values.keys()) == 2:
        parser.error("--max_kl: leave it out, or --max_wer_loss")
    # Only this half needs torch and SpeechBrain.
    from sb_prune.declare.tables import format_table
    from sb_prune.deploy.folder import Quantization, deploy

    quantization = Quantization(**values) if given.quantize else None
    options = (quantization, given.half, given.features_apart)
    print(format_table(deploy(given.export, given.output, *options)))


def _transcribe(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m sb_prune.deploy transcribe",
        description="Transcribes audio files of any length.",
    )
    parser.add_argument("folder", help="a deployed model")
    parser.add_argument("files", nargs="+", help="audio files")
    parser.add_argument("--threads", type=int, help="of onnxruntime")
    given = parser.parse_args(arguments)
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads: {given.threads}; write 1 or more")
    asr = OnnxASR(given.folder, given.threads)
    for file in given.files:
        print(f"{file}: {asr.transcribe_file(file)}", flush=True)
