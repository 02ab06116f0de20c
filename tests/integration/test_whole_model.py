"""Front-end, encoder and decoder: the README's block, and deployment."""

import re

import numpy
import pytest
import torch
from documents import blocks
from recipe_runs import (
    JOINT,
    JOINT_PRUNE,
    RECIPE,
    ROOT,
    options,
    run_python,
)
from speechbrain.inference.ASR import EncoderDecoderASR

from sb_prune.deploy import OnnxASR, deploy
from sb_prune.export.loading import load_export

COMPARE = """
import sys
from speechbrain.inference.ASR import EncoderDecoderASR

folder, audio = sys.argv[1:]
asr = EncoderDecoderASR.from_hparams(folder, savedir=folder + "/inference")
print("HEARD:", asr.transcribe_file(audio))
"""


def block_of_the_readme():
    """What is cut; for how long is said by a scalar of prune.yaml."""
    *_, block = blocks(ROOT / "README.md", "yaml")
    assert "front_end_structures" in block.text
    return re.sub(r"    prune_epochs: .*\n", "", block.text)


@pytest.fixture(scope="module")
def whole_yaml(tmp_path_factory):
    """prune.yaml with the README's block for what is cut."""
    text = (RECIPE / "hparams/prune.yaml").read_text()
    ours = re.search(r"^pruning: .*?\n\n", text, re.M | re.S).group()
    given = block_of_the_readme()
    keys = re.findall(r"^    (\w+):", given, re.M)
    kept = "\n".join(
        line
        for line in ours.splitlines()[1:]
        if not re.match(rf"    ({'|'.join(keys)}):", line)
    )
    path = tmp_path_factory.mktemp("whole") / "prune.yaml"
    path.write_text(text.replace(ours, f"{given}{kept}\n\n"))
    return path


@pytest.fixture(scope="module")
def prune(corpus, tmp_path_factory):
    """Function: YAML -> export of a model that is trained once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(yaml, sizes, name, **more):
        output = folder / name
        more |= {"data_folder": corpus, "output_folder": output}
        more["test_csv"] = f"[{output}/test-clean.csv]"
        run_python(RECIPE / "train.py", yaml, *options(sizes, **more))
        return output

    sizes = {**JOINT, "number_of_epochs": 1}
    dense = run("hparams/train.yaml", sizes, "dense")
    sizes = {**JOINT_PRUNE, "number_of_epochs": 2}

    def pruned(yaml, name):
        return run(yaml, sizes, name, dense_folder=dense) / "export"

    return pruned


def test_the_whole_model_is_pruned(prune, whole_yaml, corpus, tmp_path):
    export = prune(whole_yaml, "whole")
    plan = load_export(export).steps[-1].plan
    gone = {
        name.split(".")[0] + "." + name.split(".")[1]
        for name, kept in plan.keep.items()
        if not kept.all()
    }
    assert {"Transformer.encoder", "Transformer.decoder"} <= gone
    assert any(name.startswith("CNN") for name in gone)
    script = tmp_path / "load.py"
    script.write_text(COMPARE)
    audio = next(corpus.rglob("test-clean/**/*.flac"))
    done = run_python(script, export, audio, cwd=tmp_path)
    assert "HEARD:" in done.stdout


def test_it_is_deployed_with_its_features_apart(prune, corpus, tmp_path):
    """The encoder was cut; all of the decoder listens to it."""
    export = prune("hparams/prune.yaml", "encoder")
    asr = EncoderDecoderASR.from_hparams(str(export), savedir=str(tmp_path))
    folder = tmp_path / "deployed"
    deploy(export, folder, features_apart=True)
    runtime = OnnxASR(folder)
    assert (folder / "features.onnx").is_file()
    for path in sorted(corpus.rglob("test-clean/**/*.flac"))[:3]:
        wav = asr.load_audio(str(path))[None]
        words, tokens = asr.transcribe_batch(wav, torch.ones(1))
        found = runtime.transcribe_batch(wav.numpy(), numpy.ones(1, "float32"))
        assert len(tokens[0]) > 3
        assert found == (words, tokens)
