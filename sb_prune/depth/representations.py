"""Hidden states of every layer of a model, for a labelled sample of the data.

Legend of the shapes in this file
    L   layers
    T   frames
    n   points: one per utterance, or per labelled segment of an utterance
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

from sb_prune.support.messages import shown
from sb_prune.support.outputs import first_tensor
from sb_prune.support.random_state import generators_untouched
from sb_prune.support.values import call_named

UTTERANCE = "utterance"  # key of the result where no labels are asked for
ROUNDING = 1e-3  # how far beyond 1 a segment may end, as times are rounded


def mean_over_time(frames):
    """Mean of the frames of an utterance or segment.

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
    """Largest value of each feature over the frames.

    Arguments
    ---------
    frames : torch.Tensor
        (T, d)

    Returns
    -------
    torch.Tensor
        (d,)
    """
    return frames.amax(0)


def layer_states(brain, layers, dataset, labels, sample, pooling, seed=0):
    """Runs a sample of the data through a model and collects hidden states.

    The recipe's own `compute_forward` runs in the validation stage, with one
    utterance at a time so that nothing is padded. It is stopped after the last
    layer, so nothing is decoded. Where a lobe pads utterances itself, as
    Whisper's does, its `speech_frames` says which frames are of the audio.

    Arguments
    ---------
    brain : Brain
    layers : list of torch.nn.Module
        The stack of layers, from the first (nearest the input) to the last.
    dataset : DynamicItemDataset
        The training data of the recipe, or a data loader of them.
    labels : list of str
        Keys of the dataset. The value of such a key is the label of the
        utterance, or a list of labelled segments (label, begin, end), with
        times as fractions of the length of the utterance. An empty list
        stands for whole utterances without labels, with the key "utterance".
    sample : int
        Number of utterances to draw, and the largest number of segments to
        keep for each key.
    pooling : callable
        Turns the frames (T, d) of an utterance or segment into a point (d,).
    seed : int
        Seed of the sampling.

    Returns
    -------
    dict
        Key -> (states, labels). `states` holds L + 1 arrays (n, d), float32:
        the input of the first layer, then the output of each layer. `labels`
        is a list of n labels, None without keys.

    Raises
    ------
    ValueError
        If the data have no such key, a label is neither a string, a number nor
        a list of segments, or a hidden state is not finite.
    RuntimeError
        If `compute_forward` does not run all the layers.
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
        _StateRecorder(layers, _padding_lobe(brain, layers)) as recorder,
    ):
        brain.modules.eval()
        for index in _progress(brain, sorted(drawn.tolist())):
            item = dataset[index]
            values = {key: item.pop(name) for name, key in names.items()}
            states = recorder.states_of(brain, item)
            where = f"utterance {dataset.data_ids[index]}"
            if not labels:
                found[UTTERANCE].add((None, states), pooling, where)
            for key, value in values.items():
                for segment in _segments(value, states, f"{key} of {where}"):
                    found[key].add(segment, pooling, where)
    return {key: points.stacked(key) for key, points in found.items()}


def _padding_lobe(brain, layers):
    """The lobe whose encoder holds the layers and pads what it hears, or None.

    Of SpeechBrain's own Whisper nobody knows which frames are of the audio.
    """
    for lobe in brain.modules.modules():
        encoder = getattr(getattr(lobe, "model", None), "encoder", None)
        if encoder is None or all(
            child is not layers[0] for child in encoder.modules()
        ):
            continue
        if hasattr(lobe, "speech_frames"):
            return lobe
        if hasattr(lobe, "pad_or_trim"):
            raise ValueError(
                f"layers: {type(lobe).__name__} hears silence behind each "
                "utterance; write !new:sb_prune.lobes.Whisper, which says "
                "where it begins"
            )
    return None


def _progress(brain, indices):
    """A progress bar, shown where SpeechBrain shows its own."""
    hidden = brain.noprogressbar or not if_main_process()
    return tqdm(indices, desc="Layers", unit="utt", disable=hidden)


class _Reservoir:
    """Reservoir sampling: keeps `size` points, all with the same probability.

    Arguments
    ---------
    size : int
        Number of points to keep.
    seed : int
        Seed of the sampling.
    """

    def __init__(self, size, seed):
        self._size = size
        self._seen = 0
        self._generator = np.random.default_rng(seed)
        self._kept = []

    def add(self, segment, pooling, where):
        """Offers an utterance or segment: (label, frames of each layer)."""
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
        """Returns (states, labels) in the layout of `layer_states`."""
        if not self._kept:
            raise ValueError(f"labels: the sample has no segment of {key!r}")
        labels, points = zip(*self._kept)
        if any(len(set(map(len, layer))) > 1 for layer in zip(*points)):
            raise ValueError(
                "pooling: gives points of different sizes; write a function "
                "over the frames, e.g. "
                "!name:sb_prune.depth.mean_over_time"
            )
        states = [torch.stack(layer).numpy() for layer in zip(*points)]
        return states, list(labels)


def _point(frames, pooling):
    """Returns what pooling makes of frames (T, d): a point (d,)."""
    point = call_named(pooling, "pooling", frames)
    if not isinstance(point, torch.Tensor) or point.dim() != 1:
        raise ValueError(
            f"pooling: {shown(pooling)} gives {shown(point)} of frames (T, d); "
            "write a function that gives (d,), e.g. "
            "!name:sb_prune.depth.mean_over_time"
        )
    return point.float().cpu()


def _pooled(frames, pooling, where):
    """Returns the point (d,) of each layer."""
    points = [_point(f, pooling) for f in frames]
    for layer, point in enumerate(points):
        if not torch.isfinite(point).all():
            what = f"layer {layer}" if layer else "the input of layer 1"
            raise ValueError(
                f"{where}: {what} gives values that are not finite; look for "
                "them in the audio and in the weights"
            )
    return points


class _LastLayerDone(Exception):
    """Ends a forward pass once the last layer has run."""


class _StateRecorder:
    """Records the input of the first of some layers and every output.

    Arguments
    ---------
    layers : list of torch.nn.Module
    lobe : torch.nn.Module, optional
        With a method `speech_frames`: samples -> frames that are of the audio.
        Its first argument are waveforms.
    """

    def __init__(self, layers, lobe=None):
        self._layers = layers
        self._lobe = lobe
        self._states = {}
        self._frames = None

    def __enter__(self):
        first = self._layers[0]
        self._handles = [
            first.register_forward_pre_hook(self._enter, with_kwargs=True)
        ]
        if self._lobe is not None:
            self._handles.append(
                self._lobe.register_forward_pre_hook(
                    self._hear, with_kwargs=True
                )
            )
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

    def _hear(self, lobe, args, kwargs):
        self._frames = lobe.speech_frames(_first(args, kwargs).shape[-1])

    def _enter(self, module, args, kwargs):
        self._keep(0, _first(args, kwargs))

    def _keep(self, place, output):
        state = first_tensor(output)[0]  # of a batch of one utterance
        # a copy, as the next layer may write into what it is given
        self._states.setdefault(place, state.clone())
        if len(self._states) > len(self._layers):
            raise _LastLayerDone

    def states_of(self, brain, item):
        """Returns L + 1 hidden states (T, d) of one utterance."""
        self._states.clear()
        try:
            brain.compute_forward(PaddedBatch([item]), sb.Stage.VALID)
        except _LastLayerDone:
            states = [self._states[i] for i in range(len(self._layers) + 1)]
            if self._frames is not None and self._frames > len(states[0]):
                raise ValueError(
                    f"of an utterance of {self._frames} frames no more than "
                    f"{len(states[0])} are heard at once; leave longer ones "
                    "out of the data"
                ) from None
            return [frames[: self._frames] for frames in states]
        raise RuntimeError(
            "layers: the recipe's compute_forward did not run all of them in "
            "validation"
        )


def _first(args, kwargs):
    """The first argument of a call, with its name or without."""
    return args[0] if args else next(iter(kwargs.values()))


def _segments(value, states, where):
    """Returns (label, frames of each layer) for each segment of an utterance.

    An utterance with a single label is one segment.
    """
    if not isinstance(value, (list, tuple)):
        return [(_label(value, where), states)]
    found = []
    for segment in value:
        label, begin, end = _checked(segment, where)
        frames = [_between(f, begin, end) for f in states]
        found.append((_label(label, where), frames))
    return found


def _checked(segment, where):
    """Returns (label, begin, end) of a segment, or refuses it."""
    try:
        label, begin, end = segment
        if isinstance(segment, str) or not 0 <= begin < end <= 1 + ROUNDING:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {shown(segment)} is no segment (label, begin, end) with "
            "times as fractions of the utterance, 0 <= begin < end <= 1"
        ) from error
    return label, begin, end


def _label(value, where):
    """Returns a label that can be compared with others, or refuses it."""
    is_tensor = isinstance(value, torch.Tensor)
    if is_tensor and value.numel() == 1:
        return value.item()
    if value is None or is_tensor or not isinstance(value, Hashable):
        raise ValueError(
            f"{where}: {shown(value)} is no label; give a string or a number, "
            "or a list of segments"
        )
    return value


def _between(frames, begin, end):
    """Returns the frames between two times, at least one."""
    first = min(int(begin * len(frames)), len(frames) - 1)
    return frames[first : max(math.ceil(end * len(frames)), first + 1)]


def _check_keys(dataset, labels):
    """Refuses labels for which the data have no key."""
    known = set(dataset.pipeline.key_to_node)
    for row in list(dataset.data.values())[:1]:
        known |= row.keys()
    for key in labels:
        if key not in known:
            raise ValueError(
                f"labels: the training data have no key {key!r}; write some "
                f"of {sorted(known)}"
            )
