"""The model card of an export, its README.md."""

from sb_prune.declare.tables import format_table
from sb_prune.export.lineage import size_table, unit_tables


def write_card(path, loaded, facts):
    """Writes measured figures and tables of the kept units as Markdown.

    If the model was cut more than once, its size after each cut stands there
    too.

    Arguments
    ---------
    path : Path
        File to write.
    loaded : Export
        The export, loaded again.
    facts : dict
        Name of a figure -> value.
    """
    figures = [["figure", "value"], *facts.items()]
    parts = [
        "# Pruned speech model",
        "Loads like any SpeechBrain model, where `sb_prune` is installed.",
        format_table(figures),
    ]
    if len(loaded.steps) > 1:
        sizes = size_table(loaded)
        parts += ["Size after each cut:", format_table(sizes)]
    for heading, table in unit_tables(loaded):
        parts += [f"{heading}:", format_table(table)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
