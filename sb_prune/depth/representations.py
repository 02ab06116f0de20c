"""What every layer of a model gives for a labelled sample.

Legend of the shapes in this file
    L   layers
    T   frames
    n   points: utterances, or segments of them
    d   features
"""

import math
from collections.abc import Hashable

import numpy as np
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import if_main_process
from torch.utils.data import DataLoader
from tqdm import tqdm

from sb_prune.support.random_state import generators_untouched

UTTERANCE = "utterance"  # in place of the key of a label
ROUNDING = 1e-3  # by which the last segment may end late


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

    The recipe's own `compute_forward` runs as in validation, as far as the last
    layer, one utterance at a time: nothing is padded, nothing is decoded.

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
        Without keys: whole utterances, labels None, under the key "utterance".
    sample : int
        How many utterances to draw, and of their segments; all, where there
        are no more.
    pooling : callable
        Frames (T, d) -> (d,).
    seed : int
        Of the draws.

    Returns
    -------
    dict
        Key of a label -> (states, names): L + 1 arrays (n, d) float32, of what
        enters the first layer and what leaves each, and n labels.

    Raises
    ------
    ValueError
        If the data have no such key, an utterance has a label that is none, or
        a state is not finite.
    RuntimeError
        If the recipe does not run all layers.
    """
    if isinstance(dataset, DataLoader):
        dataset = dataset.dataset
    names = {f"label_of_{key}": key for key in labels}
    _check_keys(dataset, labels)
    drawn = np.random.default_rng(seed).permutation(len(dataset))[:sample]
    found = {key: _Reservoir(sample, seed) for key in labels or [UTTERANCE]}
    kept = dict(dataset.pipeline.output_mapping)
    with (
        dataset.output_keys_as({**kept, **names}),
        torch.no_grad(),
        generators_untouched(),
        _Listening(layers) as heard,
    ):
        brain.modules.eval()
        for index in _progress(brain, sorted(drawn.tolist())):
            item = dataset[index]
            values = {key: item.pop(name) for name, key in names.items()}
            states = heard.states_of(brain, item)
            where = f"utterance {dataset.data_ids[index]}"
            if not labels:
                found[UTTERANCE].add((None, states), pooling, where)
            for key, value in values.items():
                for segment in _segments(value, states, f"{key} of {where}"):
                    found[key].add(segment, pooling, where)
    return {key: points.stacked(key) for key, points in found.items()}


def _progress(brain, indices):
    """As SpeechBrain shows it."""
    hidden = brain.noprogressbar or not if_main_process()
    return tqdm(indices, desc="Layers", unit="utt", disable=hidden)


class _Reservoir:
    """Keeps so many of the points it gets, each with the same chance.

    Arguments
    ---------
    size : int
    seed : int
    """

    def __init__(self, size, seed):
        self._size = size
        self._seen = 0
        self._generator = np.random.default_rng(seed)
        self._kept = []

    def add(self, segment, pooling, where):
        """(label, frames of each layer) of what `where` names."""
        self._seen += 1
        place = len(self._kept)
        if place < self._size:
            self._kept.append(None)
        else:
            place = int(self._generator.integers(self._seen))
        if place < self._size:
            label, frames = segment
            self._kept[place] = label, _pooled(frames, pooling, where)

    def stacked(self, key):
        """(states, labels), as `layer_states` returns them."""
        if not self._kept:
            raise ValueError(f"labels: the sample has no segment of {key!r}")
        labels, points = zip(*self._kept)
        states = [torch.stack(layer).numpy() for layer in zip(*points)]
        return states, list(labels)


def _pooled(frames, pooling, where):
    """(d,) of each layer."""
    points = [pooling(f).float().cpu() for f in frames]
    for layer, point in enumerate(points):
        if not torch.isfinite(point).all():
            what = f"layer {layer}" if layer else "the input of layer 1"
            raise ValueError(
                f"{where}: {what} gives values that are not finite; look for "
                "them in the audio and in the weights"
            )
    return points


class _AllHeard(Exception):
    """The last layer has given what it gives; the rest need not run."""


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

    def _enter(self, module, args, kwargs):
        self._keep(0, args[0] if args else next(iter(kwargs.values())))

    def _keep(self, place, output):
        if isinstance(output, tuple):
            output = output[0]
        self._states.setdefault(place, output[0])  # the only utterance
        if len(self._states) > len(self._layers):
            raise _AllHeard

    def states_of(self, brain, item):
        """L + 1 of (T, d)."""
        self._states.clear()
        try:
            brain.compute_forward(PaddedBatch([item]), sb.Stage.VALID)
        except _AllHeard:
            return [self._states[i] for i in range(len(self._layers) + 1)]
        raise RuntimeError(
            "layers: the recipe's compute_forward did not run all of them in "
            "validation"
        )


def _segments(value, states, where):
    """(label, frames of each layer) of an utterance, or of its segments."""
    if not isinstance(value, (list, tuple)):
        return [(_label(value, where), states)]
    found = []
    for segment in value:
        label, begin, end = _checked(segment, where)
        frames = [_between(f, begin, end) for f in states]
        found.append((_label(label, where), frames))
    return found


def _checked(segment, where):
    """(label, begin, end)"""
    try:
        label, begin, end = segment
        if isinstance(segment, str) or not 0 <= begin < end <= 1 + ROUNDING:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {segment!r} is no segment (label, begin, end) with "
            "times as shares of the utterance, 0 <= begin < end <= 1"
        ) from error
    return label, begin, end


def _label(value, where):
    """What can be told apart from others."""
    is_tensor = isinstance(value, torch.Tensor)
    if is_tensor and value.numel() == 1:
        return value.item()
    if value is None or is_tensor or not isinstance(value, Hashable):
        raise ValueError(
            f"{where}: {value!r} is no label; give a string or a number, or a "
            "list of segments"
        )
    return value


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
