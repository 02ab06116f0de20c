"""Tables of what a plan keeps in every layer."""

from sb_prune.declare.cost import parameter_cost
from sb_prune.declare.structure import below

GONE = "-"  # in the cell of what was removed as a whole


def kept_units(declaration, plan, original=None):
    """Counts the kept units and all units of each kind in each layer.

    Arguments
    ---------
    declaration : Declaration
        Of the model before the cut.
    plan : Plan
        The units that stay.
    original : Declaration, optional
        Of the dense model, made by the same function, if earlier cuts came
        before this one. All units are then those of the dense model.

    Returns
    -------
    dict
        Layer (or block, see `Declaration`) -> {column -> (kept, all)}. A column
        is the name of a structure within its layer, e.g. `mha_layer.heads`. A
        structure that is the parent of others has no column: where it is
        removed, its children keep 0 units.

    Example
    -------
    >>> from speechbrain.lobes.models.transformer.Conformer import (
    ...     ConformerEncoder,
    ... )
    >>> from sb_prune import Plan, conformer_structures
    >>> declaration = conformer_structures(
    ...     ConformerEncoder(1, d_model=8, d_ffn=16, nhead=4), kinds=["heads"]
    ... )
    >>> plan = Plan.from_dict({"layers.0.mha_layer.heads": "1 of 4: 2"})
    >>> kept_units(declaration, plan)
    {'layers.0': {'mha_layer.heads': (1, 4)}}
    """
    original = original or declaration
    parents = {s.parent for s in original.structures if not original.holder(s)}
    counts = plan.kept_counts(declaration).int().tolist()
    kept = {s.name: n for s, n in zip(declaration.structures, counts)}
    table = {place: {} for place in _places(original)}
    for structure in original.structures:
        if structure.name in parents:
            continue
        layer, column = _place(original, structure.name)
        # what is not declared any more was removed by an earlier cut
        cell = (kept.get(structure.name, 0), structure.units)
        table.setdefault(layer, {})[column] = cell
    return table


def _places(declaration):
    return (*declaration.blocks, *declaration.layers)


def _place(declaration, name):
    """Splits a name into its layer and the name within the layer.

    A structure outside of all layers belongs to the row "elsewhere".
    """
    for layer in _places(declaration):
        if below(name, layer):
            return layer, name[len(layer) + 1 :] or "layer"
    return "elsewhere", name


def structure_table(declaration, plan, original=None):
    """Table of what a plan keeps: a row for each layer, and one of totals.

    Arguments
    ---------
    declaration : Declaration
        Of the model before the cut.
    plan : Plan
        The units that stay.
    original : Declaration, optional
        As for `kept_units`.

    Returns
    -------
    list of list of str
        The header, then the rows. A cell reads "kept/all", or "-" where the
        module or the whole layer is removed.

    Example
    -------
    >>> from speechbrain.lobes.models.transformer.Conformer import (
    ...     ConformerEncoder,
    ... )
    >>> from sb_prune import Plan, conformer_structures
    >>> declaration = conformer_structures(
    ...     ConformerEncoder(1, d_model=8, d_ffn=16, nhead=4), kinds=["heads"]
    ... )
    >>> plan = Plan.from_dict({"layers.0.mha_layer.heads": "1 of 4: 2"})
    >>> for row in structure_table(declaration, plan):
    ...     print(row)
    ['layer', 'mha_layer.heads', 'parameters']
    ['layers.0', '1/4', '1,220/1,472']
    ['all layers', '1/4', '1,220/1,472']
    """
    original = original or declaration
    units = kept_units(declaration, plan, original)
    columns = column_names(units)
    counts = plan.kept_counts(declaration)
    rows = [["layer", *columns, "parameters"]]
    sums = {column: (0, 0) for column in columns}
    total = (0, 0)
    for layer, cells in units.items():
        left = parameter_cost(declaration, layer).of_kept(counts)
        everything = parameter_cost(original, layer).dense()
        size = (round(float(left)), round(everything))
        shown = [_cell(cells[c]) if c in cells else "" for c in columns]
        rows.append([layer, *shown, _cell(size)])
        for column, cell in cells.items():
            sums[column] = _add(sums[column], cell)
        total = _add(total, size)
    shown = [_cell(sums[column]) for column in columns]
    return rows + [["all layers", *shown, _cell(total)]]


def column_names(units):
    """Lists the columns of what `kept_units` returns, each once, in order."""
    return list(dict.fromkeys(c for cells in units.values() for c in cells))


def _add(a, b):
    return a[0] + b[0], a[1] + b[1]


def _cell(pair):
    kept, everything = pair
    return f"{kept:,}/{everything:,}" if kept else GONE


def format_table(rows):
    """Formats rows as a Markdown table that is also readable as plain text.

    Arguments
    ---------
    rows : list of list
        The header, then the rows; cells are converted with `str`.

    Returns
    -------
    str
        The first column is left-aligned, the others are right-aligned.

    Example
    -------
    >>> print(format_table([["layer", "heads"], ["first", "3/4"]]))
    | layer | heads |
    |:------|------:|
    | first |   3/4 |
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    ruler = [
        "-" * (width + 1) + ":" if i else ":" + "-" * (width + 1)
        for i, width in enumerate(widths)
    ]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        + " |"
        for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join(ruler) + "|", *lines[1:]])
