"""What every layer of a model gives for a labelled sample.

Legend of the shapes in this file
    L   layers
    T   frames
    n   points: utterances, or segments of them
    d   features
"""

import math

import numpy as np
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from torch.utils.data import DataLoader

from sb_prune.snapshots import generators_untouched


def mean_over_time(frames):
    """The mean of some frames.

    Arguments
    ---------
    frames : torch.Tensor
        (T, d)

    Returns
    -------
    torch.Tensor
        (d,)
    """
    return frames.mean(0)


def max_over_time(frames):
    """The largest value of each feature; arguments as `mean_over_time`."""
    return frames.amax(0)


def layer_states(brain, layers, dataset, labels, sample, pooling, seed=0):
    """Runs a sample through a model and keeps what its layers give.

    The recipe's own `compute_forward` runs, as in validation, one utterance at
    a time: nothing is padded.

    Arguments
    ---------
    brain : Brain
    layers : list of torch.nn.Module
        Bottom first.
    dataset : DynamicItemDataset
        That the recipe trains on, or its loader.
    labels : list of str
        Keys of the dataset. A value is what an utterance belongs to, or a list
        of segments (label, begin, end) with times as shares of the utterance.
    sample : int
        How many utterances to draw; all, where there are no more.
    pooling : callable
        Frames (T, d) -> (d,).
    seed : int
        Of the draw.

    Returns
    -------
    dict
        Key of a label -> (states, names): L + 1 arrays (n, d) float32, of what
        enters the first layer and what leaves each, and n labels.

    Raises
    ------
    ValueError
        If the data have no such key.
    """
    if isinstance(dataset, DataLoader):
        dataset = dataset.dataset
    names = {f"label_of_{key}": key for key in labels}
    _check_keys(dataset, labels)
    drawn = np.random.default_rng(seed).permutation(len(dataset))[:sample]
    found = {key: ([], []) for key in labels}
    kept = dict(dataset.pipeline.output_mapping)
    with (
        dataset.output_keys_as({**kept, **names}),
        torch.no_grad(),
        generators_untouched(),
        _Listening(layers) as heard,
    ):
        brain.modules.eval()
        for index in sorted(drawn.tolist()):
            item = dataset[index]
            values = {key: item.pop(name) for name, key in names.items()}
            heard.clear()
            brain.compute_forward(PaddedBatch([item]), sb.Stage.VALID)
            for key, value in values.items():
                points, said = found[key]
                for label, frames in _segments(value, heard):
                    points.append([pooling(f).float().cpu() for f in frames])
                    said.append(label)
    return {
        key: ([torch.stack(s).numpy() for s in zip(*points)], said)
        for key, (points, said) in found.items()
    }


class _Listening:
    """Keeps what enters the first of some layers and what leaves each."""

    def __init__(self, layers):
        self._layers = layers
        self._states = {}

    def __enter__(self):
        first = self._layers[0]
        self._handles = [
            first.register_forward_pre_hook(self._enter, with_kwargs=True)
        ]
        for i, layer in enumerate(self._layers, start=1):
            self._handles.append(
                layer.register_forward_hook(
                    lambda module, args, output, i=i: self._keep(i, output)
                )
            )
        return self

    def __exit__(self, *error):
        for handle in self._handles:
            handle.remove()

    def clear(self):
        """Before the next utterance."""
        self._states.clear()

    def _enter(self, module, args, kwargs):
        self._keep(0, args[0] if args else next(iter(kwargs.values())))

    def _keep(self, place, output):
        if isinstance(output, tuple):
            output = output[0]
        self._states.setdefault(place, output[0])  # the only utterance

    @property
    def states(self):
        """L + 1 of (T, d)."""
        if len(self._states) <= len(self._layers):
            raise RuntimeError(
                "layers: the recipe's compute_forward did not run all of them "
                "in validation"
            )
        return [self._states[i] for i in range(len(self._layers) + 1)]


def _segments(value, heard):
    """(label, frames of each layer) of an utterance, or of its segments."""
    states = heard.states
    if not isinstance(value, (list, tuple)):
        return [(value, states)]
    return [
        (label, [_between(frames, begin, end) for frames in states])
        for label, begin, end in value
    ]


def _between(frames, begin, end):
    """At least one frame."""
    first = min(int(begin * len(frames)), len(frames) - 1)
    return frames[first : max(math.ceil(end * len(frames)), first + 1)]


def _check_keys(dataset, labels):
    """Refuses keys that the data lack."""
    known = set(dataset.pipeline.key_to_node)
    for row in list(dataset.data.values())[:1]:
        known |= row.keys()
    for key in labels:
        if key not in known:
            raise ValueError(
                f"labels: the training data have no key {key!r}; write some "
                f"of {sorted(known)}"
            )
