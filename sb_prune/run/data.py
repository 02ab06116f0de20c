"""The data with which a recipe trains."""

from speechbrain import Stage
from speechbrain.dataio.dataloader import LoopedLoader
from torch.utils.data import DataLoader


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
        return next(iter(self.train if self.valid is None else self.valid))


def _loader(brain, data, stage, **options):
    if data is None or isinstance(data, (DataLoader, LoopedLoader)):
        return data
    return brain.make_dataloader(data, stage=stage, **options)
