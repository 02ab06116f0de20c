"""What each cut of a model left of its original, the dense model.

A model that was pruned again has several cuts among its edits. The original is
the model before the first of them.
"""

from sb_prune.cut.edits import Cut, rebuild
from sb_prune.declare.cost import mac_cost, parameter_cost
from sb_prune.declare.tables import structure_table


def originals(history):
    """Declares the original by the function of each cut.

    Arguments
    ---------
    history : History

    Returns
    -------
    list of Declaration
        One for each cut, on the meta device.
    """
    first = _cuts(history)[0]
    return [_declared(history, cut, first) for cut in _cuts(history)]


def declared_alike(history):
    """Declares the model before each cut by the function of the last one.

    So all of them count the same modules, whatever each cut could remove.

    Arguments
    ---------
    history : History

    Returns
    -------
    list of Declaration
        One for each cut, on the meta device. The first is of the original.
    """
    cuts = _cuts(history)
    return [_declared(history, cuts[-1], before) for before in cuts]


def _cuts(history):
    """Positions of the cuts among the edits."""
    edits = enumerate(history.edits)
    return [position for position, edit in edits if isinstance(edit, Cut)]


def _declared(history, cut, before):
    """The model before one edit, declared by the function of a cut."""
    root = rebuild(history.factory, history.edits[:before])
    cut = history.edits[cut]
    return cut.structures(root.get_submodule(cut.module))


def size_table(export, frames=None):
    """Table of the cost of the original and of what each cut left.

    Arguments
    ---------
    export : Export
        From `load_export`.
    frames : int, optional
        Length of the utterance for which MACs are counted, at the input of the
        counted modules; by default the `usual_frames` of the declaration.

    Returns
    -------
    list of list of str
        The header, then a row for the dense model and for each cut. `gone` is
        the fraction of the dense model's cost that is removed.
    """
    models = declared_alike(export.history)
    last = export.steps[-1]
    kept = last.plan.kept_counts(last.declaration)
    frames = frames or last.declaration.usual_frames
    columns = []
    for cost in (parameter_cost, lambda model: mac_cost(model, frames)):
        costs = [cost(model).dense() for model in models]
        costs.append(float(cost(last.declaration).of_kept(kept)))
        columns.append([f"{value:,.0f}" for value in costs])
        columns.append([f"{1 - value / costs[0]:.1%}" for value in costs])
    names = ["dense", *(f"after cut {i + 1}" for i in range(len(models)))]
    header = ["model", "parameters", "gone", f"MACs of {frames} frames", "gone"]
    return [header, *map(list, zip(names, *columns))]


def unit_tables(export):
    """Tables of the units that are left after each cut, of all in the original.

    Arguments
    ---------
    export : Export
        From `load_export`.

    Returns
    -------
    list of (str, list of list of str)
        A heading and a `structure_table` for each cut.
    """
    steps = export.steps
    found = zip(steps, originals(export.history))
    return [
        (
            "Units kept of all"
            + (f", after cut {number}" if len(steps) > 1 else ""),
            structure_table(step.declaration, step.plan, original),
        )
        for number, (step, original) in enumerate(found, start=1)
    ]
