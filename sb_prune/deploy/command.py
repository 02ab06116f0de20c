"""Deploys a speech recogniser, or transcribes with one that was deployed.

    python -m sb_prune.deploy EXPORT --output FOLDER
    python -m sb_prune.deploy transcribe FOLDER FILE [FILE ...]

The first writes ONNX graphs, which need neither torch nor SpeechBrain, and
prints how far they are from the export. Loading an export runs whatever its
`hyperparams.yaml` names: deploy only folders from people whom you trust.
"""

import argparse
import sys

from sb_prune.deploy.runtime import OnnxASR
from sb_prune.deploy.settings import DeployError


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
    except DeployError as error:
        sys.exit(f"error: {error}")


def _deploy(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m sb_prune.deploy",
        description=__doc__.splitlines()[0],
        epilog="`python -m sb_prune.deploy transcribe --help` says how to "
        "transcribe.",
    )
    parser.add_argument("export", help="a folder that from_hparams loads")
    parser.add_argument("--output", required=True, help="folder to write")
    given = parser.parse_args(arguments)
    # Only this half needs torch and SpeechBrain.
    from sb_prune.declare.tables import format_table
    from sb_prune.deploy.folder import deploy

    print(format_table(deploy(given.export, given.output)))


def _transcribe(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m sb_prune.deploy transcribe",
        description="Transcribes audio files of any length.",
    )
    parser.add_argument("folder", help="a deployed model")
    parser.add_argument("files", nargs="+", help="audio files")
    parser.add_argument("--threads", type=int, help="of onnxruntime")
    given = parser.parse_args(arguments)
    asr = OnnxASR(given.folder, given.threads)
    for file in given.files:
        print(f"{file}: {asr.transcribe_file(file)}", flush=True)
