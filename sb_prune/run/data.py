"""The data with which a recipe trains."""

from itertools import islice

import torch
from speechbrain import Stage
from speechbrain.dataio.dataloader import LoopedLoader
from torch.utils.data import DataLoader

from sb_prune.support.random_state import generators_seeded


class Data:
    """The arguments of a recipe's `fit` that say what to train on.

    Arguments
    ---------
    brain : Brain
        Its `make_dataloader` makes loaders of data sets.
    train, valid : DynamicItemDataset or DataLoader
        `valid` may be None.
    train_options, valid_options : dict
        Keyword arguments of the loaders.

    Attributes
    ----------
    dataset : object
        The training data as they were given.
    train, valid : DataLoader
    """

    def __init__(self, brain, train, valid, train_options, valid_options):
        self.dataset = train
        self.train = _loader(brain, train, Stage.TRAIN, **train_options)
        self.valid = _loader(
            brain, valid, Stage.VALID, ckpt_prefix=None, **valid_options
        )

    def steps_per_epoch(self, brain):
        """Number of optimizer steps; infinite if the data have no length."""
        try:
            batches = len(self.train)
        except TypeError:
            return float("inf")
        return batches // brain.grad_accumulation_factor

    def a_batch(self):
        """A batch for `compute_forward`, of the validation data if possible."""
        batches = self._batches() if self.valid is None else self.valid
        return next(iter(batches))

    def _batches(self):
        """Those of training, without counting them as trained on."""
        is_looped = isinstance(self.train, LoopedLoader)
        return self.train.loader if is_looped else self.train

    def begin_epoch_(self):
        """Lets a LoopedLoader, which counts by itself, begin an epoch anew."""
        if isinstance(self.train, LoopedLoader):
            self.train.step = 0

    def utterances(self, count, seed):
        """Single utterances of the training data, chosen at random.

        Arguments
        ---------
        count : int
            How many; fewer if the data have fewer.
        seed : int

        Returns
        -------
        list of object
            Batches of one utterance each, for `compute_forward`. If the data
            have no length, they are the first batches; if they consist of
            batches, some of these.
        """
        with generators_seeded(seed):
            try:
                order = torch.randperm(len(self.train.dataset))[:count]
            except (AttributeError, TypeError):  # no length
                return list(islice(self._batches(), count))
            items = [self.train.dataset[i] for i in order.tolist()]
            if self.train.batch_sampler is not None:
                items = [[item] for item in items]
            return [self.train.collate_fn(item) for item in items]


def _loader(brain, data, stage, **options):
    if data is None or isinstance(data, (DataLoader, LoopedLoader)):
        return data
    return brain.make_dataloader(data, stage=stage, **options)
