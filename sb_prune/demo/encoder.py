"""A wav2vec 2.0 of any size that has learnt nothing yet."""

from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)


def write_untrained(folder, **shape):
    """Writes a wav2vec 2.0 with random weights as a Hugging Face folder.

    Arguments
    ---------
    folder : str
        What is there is overwritten.
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
