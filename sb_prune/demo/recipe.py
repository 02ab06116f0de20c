"""What a demo must know about its recipe, and which runs it trains."""

import re
from abc import ABC, abstractmethod

import ruamel.yaml
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.metric_stats import ErrorRateStats

from sb_prune.demo.runs import Run


class Demo(ABC):
    """A recipe whose dense and pruned models are compared.

    Each recipe has a subclass of its own, in its `demo.py`.

    Attributes
    ----------
    script : Path
        The recipe's training script; its YAMLs are in `hparams/` beside it.
    dense, pruned, inference : str
        Names of the YAMLs that train the dense model, prune it, and publish it.
    interface : type
        The class of speechbrain.inference that loads the export.
    watched : str
        The validation metric that chooses checkpoints, as train_log.txt calls
        it.
    best : dict
        The same metric, as the argument of `Checkpointer.find_checkpoint`.
    encoder : str
        Where the pruned encoder is among the objects of the inference YAML:
        a key, and attributes behind dots.
    test_csv, text : str
        The csv file of the test set that the recipe writes, and the column
        that holds the reference.
    audio : str
        Folder, relative to the data folder, for which `$data_root` stands in
        that file.
    headings : dict
        Test metric -> its heading in tables. The first is the most important.
    debug_model, debug_pruning : dict
        Overrides that make every run tiny, and further ones for `pruned`.
    """

    interface = EncoderASR
    audio = "."
    debug_model = {}
    debug_pruning = {}

    @abstractmethod
    def prepare(self, folder, seed, debug_size):
        """Synthesises the corpus, and makes what else training starts from.

        Arguments
        ---------
        folder : Path
            The demo's folder.
        seed : int
            The seed of the corpus.
        debug_size : bool
            Whether everything is to be tiny, for tests.

        Returns
        -------
        dict
            Overrides for all YAMLs, `data_folder` among them.
        """

    @abstractmethod
    def figures(self, output):
        """Reads the test metrics that a finished run has written.

        Arguments
        ---------
        output : Path
            The output folder of the run.

        Returns
        -------
        dict
            Metric, as in `headings` -> its value in per cent.
        """

    @abstractmethod
    def score(self, answers):
        """Computes the same metrics from texts.

        Arguments
        ---------
        answers : list of tuple of str
            (utterance, reference, hypothesis) for each test file.

        Returns
        -------
        dict
            Metric, as in `headings` -> its value in per cent.
        """

    def yaml(self, name):
        """Path of one of the recipe's YAMLs."""
        return self.script.parent / "hparams" / name

    def yamls(self):
        """Paths of the YAMLs on which the demo's results depend."""
        return [
            self.yaml(name)
            for name in (self.dense, self.pruned, self.inference)
        ]

    def plan_runs(self, folder, common, debug_size=False):
        """Plans three runs: dense, pruned, and dense for as long as both.

        Arguments
        ---------
        folder : Path
            The demo's folder; each run has an output folder in it.
        common : dict
            Overrides for all YAMLs.
        debug_size : bool
            Whether the runs are to be tiny, for tests.

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
    """The demo of a speech recogniser, judged by its word error rate."""

    watched = "WER"
    best = {"min_key": "WER"}
    test_csv = "test-clean.csv"
    text = "wrd"
    headings = {"wer": "test WER (%)"}

    def figures(self, output):
        """Reads the word error rate in wer_test-clean.txt."""
        text = (output / "wer_test-clean.txt").read_text("utf-8")
        return {"wer": float(re.match(r"%WER (\S+)", text)[1])}

    def score(self, answers):
        """Computes the word error rate."""
        errors = ErrorRateStats()
        for name, reference, heard in answers:
            errors.append([name], [heard.split()], [reference.split()])
        return {"wer": errors.summarize("error_rate")}


def read_yaml(path):
    """Reads a HyperPyYAML file without making the objects that it names.

    Arguments
    ---------
    path : Path

    Returns
    -------
    ruamel.yaml.CommentedMap
    """
    with open(path, encoding="utf-8") as file:
        return ruamel.yaml.YAML().load(file)
