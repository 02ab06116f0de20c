"""Task-agnostic compression at debug size."""

import re
import signal

import pytest
import soundfile
import torch
from recipe_runs import (
    COMPRESSION,
    KILLED,
    TINY_COMPRESSION,
    TINY_STUDENT,
    TINY_UNEQUAL,
    how_to_run,
    options,
    run_python,
)
from rounding import assert_same_but_for_rounding
from speechbrain.inference.encoders import WaveformEncoder

from sb_prune import lobes
from sb_prune.cut.modules.attention import UnequalHeads
from sb_prune.support.hashes import file_hash

TRAIN = COMPRESSION / "train.py"


@pytest.fixture(scope="module")
def compress(corpus, tiny_wav2vec2):
    """Function: runs one of the recipe's YAMLs into a folder."""

    def run(folder, yaml, script=TRAIN, **more):
        how, more = how_to_run(more)
        return run_python(
            script,
            f"hparams/{yaml}.yaml",
            *options(
                {**TINY_COMPRESSION, **more},
                data_folder=corpus,
                output_folder=folder,
                wav2vec2_hub=tiny_wav2vec2,
            ),
            cwd=COMPRESSION,
            **how,
        )

    return run


def losses(folder, which="valid loss"):
    text = (folder / "train_log.txt").read_text()
    return [float(x) for x in re.findall(rf"{which}: (\S+?),", text)]


@pytest.fixture(scope="module")
def unequal(tmp_path_factory, compress):
    """Output folder of prune_fine_grained.yaml."""
    folder = tmp_path_factory.mktemp("compression") / "unequal"
    compress(
        folder,
        "prune_fine_grained",
        target=0.3,
        new_process=True,
        **TINY_UNEQUAL,
    )
    return folder


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_export_of_fine_grained_heads(unequal, tiny_wav2vec2, tmp_path):
    export = unequal / "export"
    small = lobes.HuBERT(str(export), str(tmp_path)).eval()
    dense = lobes.HuBERT(str(tiny_wav2vec2), str(tmp_path)).eval()
    assert parameters(small) <= 0.7 * parameters(dense)
    attentions = [layer.attention for layer in small.model.encoder.layers]
    assert any(isinstance(each, UnequalHeads) for each in attentions)
    interface = WaveformEncoder.from_hparams(
        source=str(export), savedir=str(tmp_path / "hub")
    )
    wavs, lengths = torch.randn(2, 3000), torch.tensor([1.0, 0.6])
    expected = small(wavs, lengths)
    assert_same_but_for_rounding(
        interface.encode_batch(wavs, lengths), expected
    )
    names = {path.name for path in export.iterdir()}
    assert not any("distillation" in name for name in names)


@torch.no_grad()
def test_milestones_are_models_too(unequal, tiny_wav2vec2, tmp_path):
    dense = parameters(lobes.HuBERT(str(tiny_wav2vec2), str(tmp_path)))
    least = parameters(lobes.HuBERT(str(unequal / "export"), str(tmp_path)))
    sizes = []
    for share in (0.1, 0.2):
        folder = unequal / f"export_{share}"
        small = lobes.HuBERT(str(folder), str(tmp_path), freeze=False)
        sizes.append(parameters(small))
        assert least < sizes[-1] <= (1 - share) * dense
        facts = re.sub(r"[| ]+", " ", (folder / "README.md").read_text())
        assert f"milestone {share}" in facts
        difference = re.search(r"cut_max_abs_diff (\S+)", facts)[1]
        assert float(difference) <= 1e-5
        with torch.enable_grad():
            small(torch.randn(1, 3000)).square().mean().backward()
    assert sizes[0] > sizes[1]


def test_milestones_leave_the_run_alone(tmp_path, compress, unequal):
    """The same bits without them, and after a kill while one is written."""
    options = {**TINY_UNEQUAL, "target": 0.3}
    run = tmp_path / "none"
    compress(run, "prune_fine_grained", **{**options, "milestones": "[]"})
    assert weights(run / "export") == weights(unequal / "export")
    assert not list(run.glob("export_*"))

    run = tmp_path / "killed"
    killed = compress(
        run,
        "prune_fine_grained",
        script=KILLED,
        check=False,
        TRAIN=str(TRAIN),
        KILL_SAVING="export_0.2.incomplete",
        **options,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (run / "export_0.1").is_dir() and not (run / "export_0.2").exists()
    compress(run, "prune_fine_grained", **options)
    for name in ("export_0.1", "export_0.2", "export"):
        assert weights(run / name) == weights(unequal / name)


def weights(export):
    return file_hash(export / "model.safetensors")


def test_a_second_run_trains_nothing(unequal, compress):
    before = (unequal / "train_log.txt").read_text()
    compress(unequal, "prune_fine_grained", target=0.3, **TINY_UNEQUAL)
    after = (unequal / "train_log.txt").read_text()
    more = after.removeprefix(before).splitlines()
    assert [line.split(":")[0] for line in more] == ["Epoch loaded"]


def test_the_small_model_comes_closer_to_the_teacher(unequal):
    *_, just_cut, later = losses(unequal, "train loss")
    assert later < just_cut


def test_the_loss_is_the_same_masked_and_cut(tmp_path, compress):
    """Where weights stay and gates move: first masked, then cut."""
    run = tmp_path / "run"
    options = {**TINY_UNEQUAL, "milestones": "[]", "number_of_epochs": 3}
    compress(run, "prune_fine_grained", target=0.3, lr=0.0, **options)
    _, masked, cut = losses(run)
    assert masked == pytest.approx(cut, rel=1e-3)  # as they are logged


def test_dphubert_has_whole_heads(tmp_path, compress):
    compress(tmp_path / "run", "dphubert", target=0.3, **TINY_UNEQUAL)
    small = lobes.HuBERT(str(tmp_path / "run/export"), str(tmp_path))
    attentions = [layer.attention for layer in small.model.encoder.layers]
    assert not any(isinstance(each, UnequalHeads) for each in attentions)


@torch.no_grad()
def test_a_student_continues_where_its_run_was_stopped(tmp_path, compress):
    run = tmp_path / "run"
    compress(run, "armhubert", **{**TINY_STUDENT, "number_of_epochs": 1})
    compress(run, "armhubert", **TINY_STUDENT)
    epochs = re.findall(
        r"^epoch: (\d)", (run / "train_log.txt").read_text(), re.M
    )
    assert epochs == ["1", "2"]
    first, second = losses(run, "train loss")
    assert second < first
    student = lobes.HuBERT(str(run / "encoder"), str(tmp_path)).eval()
    assert student(torch.randn(1, 3000)).shape[-1] == 8
    assert not hasattr(student.model.encoder.layers[1].attention, "q_proj")


@pytest.mark.parametrize(
    "moment", [{"KILL_EPOCH": "2"}, {"KILL_SAVING": "save"}]
)
def test_a_killed_student_ends_with_the_same_bits(tmp_path, compress, moment):
    compress(tmp_path / "whole", "armhubert", **TINY_STUDENT)
    run = tmp_path / "killed"
    killed = compress(
        run,
        "armhubert",
        script=KILLED,
        check=False,
        TRAIN=str(TRAIN),
        **moment,
        **TINY_STUDENT,
    )
    assert killed.returncode == -signal.SIGKILL
    compress(run, "armhubert", **TINY_STUDENT)
    assert weights(run / "encoder") == weights(tmp_path / "whole/encoder")


@pytest.mark.parametrize("yaml", ["armhubert_s", "maskhubert", "starhubert"])
def test_the_other_students(tmp_path, compress, yaml):
    options = dict(TINY_STUDENT)
    if yaml != "armhubert_s":
        del options["reuse"]
    if yaml == "starhubert":
        del options["layers"], options["teacher_dim"]
        options["distilled_layers"] = "[1, 2]"
    compress(tmp_path / "run", yaml, **options)
    lobe = lobes.HuBERT(str(tmp_path / "run/encoder"), str(tmp_path))
    attention = lobe.model.encoder.layers[1].attention
    assert hasattr(attention, "q_proj") == (yaml != "armhubert_s")
    first, second = losses(tmp_path / "run", "train loss")
    assert second < first


def test_students_differ_in_scalars_only():
    names = ("armhubert", "armhubert_s", "maskhubert")
    lines = {
        name: (COMPRESSION / f"hparams/{name}.yaml").read_text().splitlines()
        for name in names
    }
    for name in names[1:]:
        changed = {
            re.match(r"\w*", line)[0]
            for line in set(lines[name]) ^ set(lines["armhubert"])
            if not line.startswith("#")
        }
        assert changed <= {
            "",  # channels of convolutions
            "output_folder",
            "encoder_dim",
            "intermediate_size",
            "reuse",
            "layerdrop",
        }


def test_two_processes(tmp_path, compress):
    compress(
        tmp_path / "run",
        "prune_fine_grained",
        target=0.3,
        processes=2,
        distributed_backend="gloo",
        find_unused_parameters=True,
        **TINY_UNEQUAL,
    )
    assert (tmp_path / "run/export/model.safetensors").is_file()


def test_two_processes_of_a_student(tmp_path, compress):
    run = tmp_path / "run"
    compress(
        run,
        "armhubert",
        processes=2,
        distributed_backend="gloo",
        find_unused_parameters=True,
        **TINY_STUDENT,
    )
    first, second = losses(run, "train loss")
    assert second < first
    assert lobes.HuBERT(str(run / "encoder"), str(tmp_path))


def test_bf16(tmp_path, compress):
    run = tmp_path / "run"
    compress(
        run, "prune_fine_grained", target=0.3, precision="bf16", **TINY_UNEQUAL
    )
    assert all(abs(loss) < 1e3 for loss in losses(run))
    assert (run / "export/model.safetensors").is_file()


# --------------------------------------------------------------------- data


@pytest.fixture
def prepare(tmp_path, monkeypatch, caplog):
    """Function: prepares what is in `data`; returns the rows and the log."""
    monkeypatch.syspath_prepend(COMPRESSION)
    from audio_prepare import prepare_audio

    def run(**more):
        prepare_audio(tmp_path / "data", tmp_path / "csv", ["a"], ["a"], **more)
        rows = (tmp_path / "csv/train.csv").read_text().splitlines()
        return rows[1:], caplog.text

    (tmp_path / "data/a/deep").mkdir(parents=True)
    return run


def write(path, seconds=2.0, rate=16000):
    soundfile.write(path, torch.zeros(int(seconds * rate)).numpy(), rate)


def test_what_cannot_be_used_is_counted(tmp_path, prepare):
    folder = tmp_path / "data/a"
    write(folder / "good.wav")
    write(folder / "deep/good.flac", seconds=1.5)
    write(folder / "short.wav", seconds=0.5)
    write(folder / "slow.wav", rate=8000)
    (folder / "torn.flac").write_bytes((folder / "good.wav").read_bytes()[:9])
    (folder / "notes.txt").write_text("no audio")
    rows, log = prepare()
    assert rows == [
        "a/deep/good.flac,1.5000,$data_root/a/deep/good.flac",
        "a/good.wav,2.0000,$data_root/a/good.wav",
    ]
    assert "left out 3 of 5 files" in log
    assert "'8000 Hz': 1, 'too short': 1, 'unreadable': 1" in log


def test_nothing_of_use(tmp_path, prepare):
    (tmp_path / "data/a/torn.flac").write_bytes(b"fLaC")
    with pytest.raises(ValueError, match="none of 1 files is of use"):
        prepare()


def test_no_audio_at_all(prepare):
    with pytest.raises(FileNotFoundError, match="set data_folder to"):
        prepare()


def test_prepared_once(tmp_path, prepare):
    write(tmp_path / "data/a/good.wav")
    prepare()
    write(tmp_path / "data/a/late.wav")
    assert len(prepare()[0]) == 1
    assert len(prepare(shortest=0.5)[0]) == 2
