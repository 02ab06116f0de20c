"""Transcribes with onnxruntime: needs neither torch nor SpeechBrain.

    pip install --no-deps .
    pip install numpy onnxruntime soundfile soxr sentencepiece tokenizers

Of `sentencepiece` and `tokenizers` a model needs one: that of its tokenizer.
"""
