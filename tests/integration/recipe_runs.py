"""Runs the recipes at debug size."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from fork_server import run_forked

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/LibriSpeech/ASR/transformer"
CTC = ROOT / "recipes/LibriSpeech/ASR/CTC"
SLURP = ROOT / "recipes/SLURP/direct"
PROBING = ROOT / "recipes/LibriSpeech/probing"
COMMANDS = ROOT / "recipes/Google-speech-commands"
COMPRESSION = ROOT / "recipes/LibriSpeech/self-supervised-learning/compression"
KILLED = Path(__file__).with_name("killed_train.py")  # a train.py, killed
TIMEOUT = 300  # seconds; a run takes a few

# Scalars that make demo_train.yaml and demo_prune.yaml run in seconds.
TINY = {
    "d_model": 32,
    "nhead": 4,
    "num_encoder_layers": 2,
    "d_ffn": 64,
    "output_neurons": 40,
    "max_batch_length": 12,
    "number_of_epochs": 2,
    "total_steps": 20,
    "warmup_steps": 2,
    "cooldown_steps": 4,
}
TINY_PRUNE = {
    **TINY,
    "number_of_epochs": 4,
    "prune_epochs": 2,
    "schedule_steps": 4,
}
# The same for train.yaml and prune.yaml, which have a decoder.
JOINT = {
    "d_model": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "d_ffn": 64,
    "output_neurons": 40,
    "max_batch_length": 12,
    "num_workers": 0,
    "num_buckets": 4,
    "valid_beam_size": 2,
    "test_beam_size": 2,
    "total_steps": 20,
    "warmup_steps": 2,
    "cooldown_steps": 4,
    "train_splits": "[train-clean-100]",
    "test_splits": "[test-clean]",
}
JOINT_PRUNE = {**JOINT, "prune_epochs": 1, "schedule_steps": 2}
# The same for finetune.yaml and demo_finetune.yaml of CTC,
TINY_CTC = {
    "number_of_epochs": 3,
    "freeze_wav2vec_steps": 2,
    "total_steps": 20,
    "warmup_steps": 2,
    "cooldown_steps": 4,
    "max_batch_length": 12,
    "num_buckets": 4,
    "num_workers": 0,
    "encoder_dim": 16,
    "dnn_layers": 1,
    "dnn_neurons": 32,
    "token_type": "unigram",
    "output_neurons": 40,
}
# and for demo_encoder.yaml.
TINY_ENCODER = {**TINY_CTC, "number_of_epochs": 1, "encoder_dim": 128}
# The same for finetune.yaml and demo_finetune.yaml of SLURP; enough to write
# semantics, though not those of the utterance.
TINY_SLURP = {
    "number_of_epochs": 5,
    "lr": 0.01,
    "total_steps": 1000,
    "warmup_steps": 2,
    "cooldown_steps": 4,
    "max_batch_length": 5,
    "num_buckets": 4,
    "num_workers": 0,
    "test_batch_size": 1,
    "encoder_dim": 16,
    "emb_size": 8,
    "dec_neurons": 64,
    "dec_layers": 1,
    "attn_dim": 16,
    "output_neurons": 60,
    "test_beam_size": 2,
}
# The same for the YAMLs of compression.
TINY_COMPRESSION = {
    "train_splits": "[train-clean-100]",
    "lr": 0.005,
    "total_steps": 1000,
    "warmup_steps": 2,
    "cooldown_steps": 4,
    "max_batch_length": 12,
    "num_buckets": 4,
    "num_workers": 0,
}
# The same for those that prune, and those of students; the encoder to compress
# has two layers of width 16.
TINY_UNEQUAL = {
    "encoder_dim": 16,
    "distilled_layers": "[0, [1, 2]]",
    "number_of_epochs": 4,
    "prune_epochs": 2,
    "schedule_steps": 3,
    "milestones": "[0.1, 0.2]",
}
TINY_STUDENT = {
    "teacher_dim": 16,
    "layers": 2,
    "encoder_dim": 8,
    "intermediate_size": 12,
    "reuse": "[False, True]",
    "conv": "[[4, 10, 5], [4, 3, 2], [4, 3, 2], [4, 3, 2], [4, 3, 2],"
    " [4, 2, 2], [8, 2, 2]]",
    "number_of_epochs": 2,
}
# Those of the probes, beside what a YAML alone has.
TINY_PROBE = {
    "number_of_epochs": 1,
    "max_batch_length": 20,
    "num_buckets": 4,
    "num_workers": 0,
}
# Those of Speech Commands, ten words by four voices, and <unk>.
TINY_COMMANDS = {
    "number_of_epochs": 1,
    "lr": 0.005,
    "total_steps": 1000,
    "warmup_steps": 2,
    "cooldown_steps": 4,
    "max_batch_length": 12,
    "num_buckets": 2,
    "num_workers": 0,
    "encoder_dim": 16,
    "output_neurons": 11,
}
# Those of Whisper; positions are most of what its tiny encoder has.
_ANY_WHISPER = {
    "train_splits": "[train-clean-100]",
    "test_splits": "[test-clean]",
    "context": "utterance",
    "margin": 0,
    "total_steps": 20,
    "warmup_steps": 2,
    "cooldown_steps": 4,
    "max_batch_length": 12,
    "num_buckets": 4,
    "num_workers": 0,
}
TINY_WHISPER = {
    **_ANY_WHISPER,
    "min_context": 0,
    "lr_encoder": 0.005,
    "lr_decoder": 0.005,
}
TINY_WHISPER_PRUNE = {
    **TINY_WHISPER,
    "number_of_epochs": 2,
    "prune_epochs": 1,
    "target": 0.1,
    "schedule_steps": 2,
    "full_windows": 0.5,
}
TINY_WHISPER_DISTIL = {
    **TINY_WHISPER,
    "number_of_epochs": 2,
    "kept_layers": 1,
    "max_wer": 1000,  # it hears nothing right
}
# Those of its encoder with CTC.
TINY_WHISPER_CTC = {
    **_ANY_WHISPER,
    "margin": 0.5,
    "number_of_epochs": 2,
    "freeze_whisper_steps": 2,
    "lr": 0.00001,  # the head stays random: a learning one says nothing yet
    "lr_whisper": 0.001,
    "encoder_dim": 16,
    "dnn_layers": 1,
    "dnn_neurons": 32,
    "token_type": "unigram",
    "output_neurons": 40,
}
TINY_WHISPER_CTC_PRUNE = {
    **TINY_WHISPER_CTC,
    "freeze_whisper_steps": 0,
    "prune_epochs": 1,
    "target": 0.1,
    "schedule_steps": 2,
}
# Who speaks, of eight; and what few utterances allow.
ALL_SPLITS = {"splits": "[train-clean-100, dev-clean, test-clean]"}
FEW_NEIGHBOURS = "{criterion: {neighbours: 3}}"


def run_python(
    script,
    *arguments,
    cwd=RECIPE,
    check=True,
    processes=1,
    new_process=False,
    **environment,
):
    """Runs a script of the repository; "-m" and a module is one, too.

    Arguments
    ---------
    script : path
    *arguments : object
        Of its command line.
    cwd : path
    check : bool
        Fail if the script does.
    processes : int
        More than one are started by torchrun.
    new_process : bool
        Not in a fork (see fork_server.py), but in a process of its own.
    **environment : str
        Further variables.

    Returns
    -------
    subprocess.CompletedProcess
    """
    arguments = list(map(str, [script, *arguments]))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{RECIPE}",
        **environment,
    }
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc_per_node={processes}"]
        arguments = [*launcher, *arguments]
    if new_process:
        done = _run_to_its_end(
            [sys.executable, *arguments], cwd=cwd, env=environment
        )
    else:
        done = run_forked(*arguments, cwd=cwd, timeout=TIMEOUT, env=environment)
    if check and done.returncode:
        raise AssertionError(done.stdout[-2000:] + done.stderr[-4000:])
    return done


def _run_to_its_end(command, **where):
    """Leaves no process behind, should one wait for another for ever."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **where,
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def options(values, **more):
    """--key=value arguments of train.py."""
    flags = ["--device=cpu", "--noprogressbar"]
    return flags + [
        f"--{key}" if value is True else f"--{key}={value}"
        for key, value in {**values, **more}.items()
    ]


def how_to_run(given):
    """Parts arguments into those of `run_python` and a recipe's scalars."""
    names = {"cwd", "check", "processes", "new_process"}
    how = {k: v for k, v in given.items() if k in names or k.isupper()}
    return how, {k: v for k, v in given.items() if k not in how}
