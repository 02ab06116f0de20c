#!/usr/bin/env python3
"""Tells who speaks, by an encoder as deep as that needs.

The script is that of Speech Commands; data and task are the YAML's.

To run this recipe:
> python train.py hparams/convexity.yaml --wav2vec2_hub=facebook/wav2vec2-base --data_folder=/path/to/LibriSpeech
"""  # noqa: E501

import sys

from utterance_classification import main

if __name__ == "__main__":
    main(sys.argv[1:])
