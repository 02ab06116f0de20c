"""Speech Commands at debug size: layers are chosen, left out, fine-tuned."""

import json
import re
import signal

import pytest
import soundfile
import torch
from documents import blocks
from recipe_runs import (
    ALL_SPLITS,
    COMMANDS,
    FEW_NEIGHBOURS,
    KILLED,
    TINY_COMMANDS,
    how_to_run,
    options,
    run_python,
)
from speechbrain.inference.classifiers import EncoderClassifier

from sb_prune.support.hashes import file_hash

TRAIN = COMMANDS / "train.py"
BOTH = {
    "number_of_epochs": 2,
    "prune_epochs": 1,
    "schedule_steps": 2,
    "target": 0.5,
}


@pytest.fixture(scope="module")
def train(commands_corpus, tiny_wav2vec2):
    """Function: runs one of the recipe's YAMLs into a folder."""

    def run(folder, yaml, script=TRAIN, **more):
        how, more = how_to_run(more)
        return run_python(
            script,
            f"hparams/{yaml}.yaml",
            *options(
                {**TINY_COMMANDS, **more},
                data_folder=commands_corpus,
                output_folder=folder,
                wav2vec2_hub=tiny_wav2vec2,
            ),
            cwd=COMMANDS,
            **how,
        )

    return run


@pytest.fixture(scope="module")
def shortened(tmp_path_factory, train):
    """Output folder of convexity.yaml."""
    folder = tmp_path_factory.mktemp("commands") / "run"
    train(folder, "convexity", number_of_epochs=2, new_process=True)
    return folder


def choice_of(folder):
    return json.loads((folder / "save/layers.json").read_text())


def test_the_export_says_words(shortened, commands_corpus, tmp_path):
    choice = choice_of(shortened)
    model = EncoderClassifier.from_hparams(
        source=str(shortened / "export"), savedir=str(tmp_path)
    )
    layers = model.mods.mean_var_norm.model.encoder.layers
    assert len(layers) == sum(choice["keep"]) <= 2
    file = sorted(commands_corpus.glob("yes/*.wav"))[0]
    wav = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
    scores, _, _, words = model.classify_batch(wav)
    assert scores.exp().sum() == pytest.approx(1, abs=1e-5)
    assert words[0] in {path.name for path in commands_corpus.iterdir()}


def test_the_curve_is_there(shortened):
    (curve,) = choice_of(shortened)["curves"].items()
    assert curve[0] == "word" and len(curve[1]["scores"]) == 3
    assert (shortened / "save/layers.png").is_file()


def test_it_learns(shortened):
    text = (shortened / "train_log.txt").read_text()
    first, second = map(float, re.findall(r"train loss: (\S+) ", text))
    assert second < first


def test_a_killed_run_ends_with_the_same_bits(shortened, train, tmp_path):
    killed = train(
        tmp_path,
        "convexity",
        script=KILLED,
        check=False,
        TRAIN=str(TRAIN),
        KILL_EPOCH="2",
        number_of_epochs=2,
    )
    assert killed.returncode == -signal.SIGKILL
    train(tmp_path, "convexity", number_of_epochs=2)
    hashes = {
        file_hash(folder / "export/model.safetensors")
        for folder in (tmp_path, shortened)
    }
    assert len(hashes) == 1


def test_speakers(train, tmp_path):
    """Every speaker is in every split."""
    train(tmp_path, "convexity", label="spk_id", output_neurons=5)
    for split in ("train", "valid", "test"):
        rows = (tmp_path / f"{split}.csv").read_text().splitlines()[1:]
        assert len({row.split(",")[3] for row in rows}) == 4
    assert list(choice_of(tmp_path)["curves"]) == ["spk_id"]


def test_layers_first_then_gates(train, tmp_path):
    train(tmp_path, "convexity_l0", **BOTH)
    card = (tmp_path / "export/README.md").read_text()
    assert "layers kept" in card and "cut_max_abs_diff" in card
    found = re.search(r"cut_max_abs_diff \| +(\S+)", card)
    assert float(found[1]) <= 1e-5
    model = EncoderClassifier.from_hparams(
        source=str(tmp_path / "export"), savedir=str(tmp_path / "hub")
    )
    kept = sum(choice_of(tmp_path)["keep"])
    assert len(model.mods.mean_var_norm.model.encoder.layers) == kept


@pytest.mark.parametrize(
    "recipe", ["LibriSpeech/speaker-identification", "SLURP/intents"]
)
def test_other_corpora(recipe, corpus, slurp_corpus, tiny_wav2vec2, tmp_path):
    """Who speaks, and what for."""
    slurp = recipe.startswith("SLURP")
    label = "intent" if slurp else "spk_id"
    more = {} if slurp else ALL_SPLITS

    def run(classes):
        folder = TRAIN.parents[1] / recipe
        return run_python(
            folder / "train.py",
            "hparams/convexity.yaml",
            *options(
                {**TINY_COMMANDS, "output_neurons": classes},
                **more,
                layer_pruning=FEW_NEIGHBOURS,
                data_folder=slurp_corpus if slurp else corpus,
                output_folder=tmp_path,
                wav2vec2_hub=tiny_wav2vec2,
            ),
            cwd=folder,
            check=False,
        )

    found = re.search(r"but (\d+) categories found", run(1).stdout)
    done = run(int(found[1]))
    assert not done.returncode, done.stdout[-2000:]
    assert (tmp_path / "export/model.safetensors").is_file()
    assert list(choice_of(tmp_path)["curves"]) == [label]


def test_whisper_as_the_readme_says(commands_corpus, tiny_whisper, tmp_path):
    """Its two blocks of YAML put into convexity.yaml and inference.yaml."""
    page = COMMANDS / "README.md"
    lobe, block = (block.text for block in blocks(page, "yaml"))
    structures = re.search(r"    structures: .*\n        .*\n", block)[0]
    entry = r"(?m)^wav2vec2: .*\n(    .*\n)+"
    module = "    module: wav2vec2\n"
    for name in ("convexity", "inference"):
        text = (COMMANDS / f"hparams/{name}.yaml").read_text()
        text, found = re.subn(entry, lobe, text)
        assert found == 1
        if name == "inference":
            given = "!ref <wav2vec2_folder>"
            text = text.replace(given, "wav2vec2_checkpoint")
        else:
            assert text.count(module) == 1
            text = text.replace(module, module + structures)
            given = "inference: hparams/"
            text = text.replace(given, f"inference: {tmp_path}/")
        (tmp_path / f"{name}.yaml").write_text(text)
    run_python(
        TRAIN,
        tmp_path / "convexity.yaml",
        *options(
            TINY_COMMANDS,
            data_folder=commands_corpus,
            output_folder=tmp_path / "run",
            wav2vec2_hub=tiny_whisper,
        ),
        cwd=COMMANDS,
    )
    model = EncoderClassifier.from_hparams(
        source=str(tmp_path / "run/export"), savedir=str(tmp_path / "hub")
    )
    encoder = model.mods.mean_var_norm.model.encoder
    assert len(encoder.layers) == sum(choice_of(tmp_path / "run")["keep"])
    assert model.classify_batch(torch.zeros(1, 8000))[0].isfinite().all()


def test_words_and_phonemes(corpus, alignments, tiny_wav2vec2, tmp_path):
    """Segments of aligned utterances are labels too."""
    folder = TRAIN.parents[1] / "LibriSpeech/speaker-identification"

    def run(labels, aligned):
        return run_python(
            folder / "train.py",
            "hparams/convexity.yaml",
            *options(
                {**TINY_COMMANDS, "output_neurons": 9, "number_of_epochs": 0},
                **ALL_SPLITS,
                layer_pruning=FEW_NEIGHBOURS,
                data_folder=corpus,
                alignments_folder=aligned,
                words=3,
                labels=labels,
                output_folder=tmp_path / "run",
                wav2vec2_hub=tiny_wav2vec2,
            ),
            cwd=folder,
            check=False,
        )

    (tmp_path / "none").mkdir()
    done = run("[word]", tmp_path / "none")
    assert done.returncode and ".TextGrid, and lacks" in done.stdout
    done = run("[phone, word]", alignments)
    assert not done.returncode, done.stdout[-2000:]
    curves = choice_of(tmp_path / "run")["curves"]
    assert list(curves) == ["phone", "word"]
    assert curves["phone"]["points"] > curves["word"]["points"] > 0


def test_two_processes(train, tmp_path):
    train(
        tmp_path,
        "convexity",
        processes=2,
        distributed_backend="gloo",
        find_unused_parameters=True,
    )
    assert (tmp_path / "export/model.safetensors").is_file()


@pytest.mark.parametrize(
    "more, message",
    [
        ({"output_neurons": 7}, "len(7) was called, but 11 categories found"),
        ({"label": "wrd"}, "label: 'wrd'; write word or spk_id"),
        ({"layer_pruning": "{labels: wrd}"}, "data have no key 'wrd'; write s"),
        ({"layer_pruning": "{sample: 5}"}, "neighbours: 10 of 5 points"),
        ({"layer_pruning": "{sampel: 5}"}, "sampel: LayerSettings has no such"),
    ],
)
def test_wrong_values_are_named(train, tmp_path, more, message):
    done = train(tmp_path, "convexity", check=False, **more)
    assert done.returncode and message in done.stdout
