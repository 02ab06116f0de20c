"""The README's block for the whole model: front-end, encoder and decoder."""

import re

import pytest
from documents import blocks
from recipe_runs import (
    JOINT,
    JOINT_PRUNE,
    RECIPE,
    ROOT,
    options,
    run_python,
)

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


def test_the_whole_model_is_pruned(whole_yaml, corpus, tmp_path):
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    for yaml, folder, sizes in (
        ("hparams/train.yaml", dense, {**JOINT, "number_of_epochs": 1}),
        (whole_yaml, pruned, {**JOINT_PRUNE, "number_of_epochs": 2}),
    ):
        more = {"dense_folder": dense} if folder == pruned else {}
        run_python(
            RECIPE / "train.py",
            yaml,
            *options(
                sizes,
                data_folder=corpus,
                output_folder=folder,
                test_csv=f"[{folder}/test-clean.csv]",
                **more,
            ),
        )
    export = load_export(pruned / "export")
    gone = {
        name.split(".")[0] + "." + name.split(".")[1]
        for name, kept in export.steps[-1].plan.keep.items()
        if not kept.all()
    }
    assert {"Transformer.encoder", "Transformer.decoder"} <= gone
    assert any(name.startswith("CNN") for name in gone)
    script = tmp_path / "load.py"
    script.write_text(COMPARE)
    audio = next(corpus.rglob("test-clean/**/*.flac"))
    done = run_python(script, pruned / "export", audio, cwd=tmp_path)
    assert "HEARD:" in done.stdout
