"""What a recipe tells the demo about itself, and the three runs of its demo."""

import re
from abc import ABC, abstractmethod

import ruamel.yaml
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.metric_stats import ErrorRateStats

from sb_prune.demo.runs import Run


class Demo(ABC):
    """What differs between the demos of recipes; a subclass fills it in.

    Attributes
    ----------
    script : Path
        Of the recipe; its YAMLs are in `hparams/` beside it.
    dense, pruned, inference : str
        Names of the YAMLs.
    interface : type
        The class of speechbrain.inference that loads the export.
    watched : str
        The figure of the validation set that chooses checkpoints.
    best : dict
        The same, as an argument of `Checkpointer.find_checkpoint`.
    encoder : str
        Path of what is pruned among the objects of the inference YAML.
    test_csv, text : str
        The file of the test set that the recipe writes, and its column.
    audio : str
        What `$data_root` in that file is, within the data folder.
    headings : dict
        The figures of quality -> how tables call them; the first matters.
    debug_model, debug_pruning : dict
        Overrides that make the trainings, and that of `pruned`, tiny.
    """

    interface = EncoderASR
    audio = "."
    debug_model = {}
    debug_pruning = {}

    @abstractmethod
    def prepare(self, folder, seed, debug_size):
        """Synthesises speech, and what else is needed before training.

        Arguments
        ---------
        folder : Path
            Of the demo.
        seed : int
        debug_size : bool
            Tiny, for tests.

        Returns
        -------
        dict
            Overrides of the YAMLs.
        """

    @abstractmethod
    def figures(self, output):
        """The figures of quality that a run's evaluation left.

        Arguments
        ---------
        output : Path
            Folder of the run.

        Returns
        -------
        dict
            Name, as in `headings` -> per cent.
        """

    @abstractmethod
    def score(self, answers):
        """The same figures, of texts.

        Arguments
        ---------
        answers : list of tuple of str
            (utterance, reference, what the model says) of each test file.
        """

    def yaml(self, name):
        """Path of one of the recipe's YAMLs."""
        return self.script.parent / "hparams" / name

    def yamls(self):
        """Those that decide what the demo gives."""
        return [
            self.yaml(name)
            for name in (self.dense, self.pruned, self.inference)
        ]

    def plan_runs(self, folder, common, debug_size=False):
        """The three runs: dense, pruned, and dense for as long as both.

        Arguments
        ---------
        folder : Path
            Where theirs go.
        common : dict
            Overrides of all YAMLs.
        debug_size : bool
            Tiny, for tests.

        Returns
        -------
        dict
            Name -> Run
        """
        pruning = {**common, "dense_folder": folder / "dense"}
        if debug_size:
            common = {**common, **self.debug_model}
            pruning = {**pruning, **self.debug_model, **self.debug_pruning}
        dense = {**read_yaml(self.yaml(self.dense)), **common}
        pruned = {**read_yaml(self.yaml(self.pruned)), **pruning}
        epochs = dense["number_of_epochs"], pruned["number_of_epochs"]
        longer = {
            **common,
            "number_of_epochs": sum(epochs),
            "total_steps": dense["total_steps"] * sum(epochs) // epochs[0],
        }

        def run(name, yaml, epochs, options):
            return Run(
                folder / name, self.script, yaml, epochs, self.watched, options
            )

        return {
            "dense": run("dense", self.dense, epochs[0], common),
            "pruned": run("pruned", self.pruned, epochs[1], pruning),
            "dense_longer": run(
                "dense_longer", self.dense, sum(epochs), longer
            ),
        }


class ASRDemo(Demo):
    """Demo of a recipe that is judged by its word error rate."""

    watched = "WER"
    best = {"min_key": "WER"}
    test_csv = "test-clean.csv"
    text = "wrd"
    headings = {"wer": "test WER (%)"}

    def figures(self, output):
        """The word error rate in wer_test-clean.txt."""
        text = (output / "wer_test-clean.txt").read_text("utf-8")
        return {"wer": float(re.match(r"%WER (\S+)", text)[1])}

    def score(self, answers):
        """The word error rate."""
        errors = ErrorRateStats()
        for name, reference, heard in answers:
            errors.append([name], [heard.split()], [reference.split()])
        return {"wer": errors.summarize("error_rate")}


def read_yaml(path):
    """The nodes of a HyperPyYAML file, nothing made of them.

    Arguments
    ---------
    path : Path

    Returns
    -------
    ruamel.yaml.CommentedMap
    """
    with open(path, encoding="utf-8") as file:
        return ruamel.yaml.YAML().load(file)
