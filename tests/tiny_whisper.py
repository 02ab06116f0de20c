"""A small Whisper with a tokenizer, as a Hugging Face folder."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.models.whisper.tokenization_whisper import LANGUAGES

WIDTH = 16
WORDS = 50257  # tokens before the special ones, as in all models but large-v3
SPECIAL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{language}|>" for language in LANGUAGES if language != "yue"),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
    "<|0.00|>",
]


def write_tiny_whisper(
    folder, seed=0, mels=80, english=False, merges=(), **shape
):
    """Writes a model of random weights, its preprocessor and its tokenizer.

    Text is read as bytes, of which some may be merged; what the model writes is
    made of these and of some 50,000 words. The vocabulary is as large as a real
    one, by which SpeechBrain knows how many languages there are.
    """
    tokenizer = _tokenizer(list(merges))
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    settings = {
        "vocab_size": 51864 if english else 51865,
        "num_mel_bins": mels,
        "d_model": WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "dropout": 0.0,
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": start,
        **shape,
    }
    config = transformers.WhisperConfig(**settings)
    model = transformers.WhisperForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.normal_(0, 0.2, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=mels).save_pretrained(
        folder
    )
    spelling = Path(folder, "normalizer.json")
    spelling.write_text(json.dumps({"colour": "color"}))
    generation = {
        "decoder_start_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "max_length": 24,
    }
    path = Path(folder, "generation_config.json")
    path.write_text(json.dumps(generation))


def _tokenizer(merges):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters += [one + other for one, other in merges]
    words = [f"\u0120word{chr(97 + i % 26)}{i}" for i in range(WORDS)]
    vocabulary = {
        token: i for i, token in enumerate(letters + words[len(letters) :])
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    end = SPECIAL[0]
    return transformers.WhisperTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[1],
        eos_token=end,
        unk_token=end,
        pad_token=end,
    )
