"""Small wav2vec 2.0 encoders, made where none can be downloaded."""

from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from sb_prune.demo.corpus import synthesise_librispeech
from sb_prune.demo.recipe import read_yaml
from sb_prune.demo.runs import Run, say, train

UTTERANCES = 2700  # to train on; the schedules of the demo YAMLs expect them
# Sizes of the corpus, and overrides, that make everything tiny for tests.
DEBUG_SIZES = (24, 8, 8)
DEBUG_OPTIONS = {
    "number_of_epochs": 1,
    "total_steps": 20,
    "warmup_steps": 2,
    "cooldown_steps": 4,
    "token_type": "unigram",
    "output_neurons": 40,
}


def write_untrained(folder, **shape):
    """Writes a wav2vec 2.0 with random weights as a Hugging Face folder.

    Arguments
    ---------
    folder : str
        Path of the folder; its files are overwritten.
    shape : int, float or list
        Arguments of `transformers.Wav2Vec2Config`; its defaults are those of
        wav2vec2-base.

    Returns
    -------
    str
        The folder, the `source` of SpeechBrain's lobes.

    Example
    -------
    >>> folder = str(getfixture("tmp_path"))
    >>> source = write_untrained(
    ...     folder, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...     intermediate_size=32, conv_dim=[8] * 7, num_conv_pos_embeddings=4,
    ...     num_conv_pos_embedding_groups=2,
    ... )
    >>> model = Wav2Vec2Model.from_pretrained(source)
    >>> model.feature_extractor.conv_layers[0].conv.weight.shape
    torch.Size([8, 1, 10])
    """
    Wav2Vec2Model(Wav2Vec2Config(**shape)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def encoder_shape(width):
    """The shape of demo_encoder.yaml's encoder (width 128), at any width.

    Arguments
    ---------
    width : int
        The `hidden_size`, a multiple of 4.

    Returns
    -------
    dict
        Keyword arguments of `write_untrained`.
    """
    return {
        "conv_dim": [width // 2] * 7,
        "hidden_size": width,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
    }


def train_encoder(recipe, folder, seed=1234, debug_size=False):
    """Synthesises speech and trains a small encoder on it.

    Arguments
    ---------
    recipe : Path
        Folder of the CTC recipe, which has the YAML demo_encoder.yaml.
    folder : Path
        Where `corpus`, in the layout of LibriSpeech, and the run `encoder` go.
        What is finished there is not made again.
    seed : int
        Of the corpus and of the training.
    debug_size : bool
        Whether everything is to be tiny, for tests.

    Returns
    -------
    dict
        Overrides of the recipes' YAMLs: `data_folder` and `wav2vec2_hub`, a
        Hugging Face folder.
    """
    corpus = folder / "corpus"
    sizes = DEBUG_SIZES if debug_size else (UTTERANCES,)
    synthesise_librispeech(corpus, seed, *sizes)
    say("encoder: training a small wav2vec 2.0")
    name = "demo_encoder.yaml"
    options = {
        "data_folder": corpus,
        "seed": seed,
        **(DEBUG_OPTIONS if debug_size else {}),
    }
    epochs = {**read_yaml(recipe / "hparams" / name), **options}[
        "number_of_epochs"
    ]
    run = Run(
        folder / "encoder",
        recipe / "train_with_wav2vec.py",
        name,
        epochs,
        "WER",
        options,
        threads=2,
    )
    train([[run]])
    return {"data_folder": corpus, "wav2vec2_hub": run.folder / "encoder"}
