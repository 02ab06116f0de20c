"""The model card of an export, its README.md."""

from sb_prune.declare.tables import format_table, structure_table


def write_card(path, loaded, facts):
    """Writes measured figures and a table of the kept units as Markdown.

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
    step = loaded.steps[-1]
    table = structure_table(step.declaration, step.plan)
    parts = [
        "# Pruned speech model",
        "Loads like any SpeechBrain model; needs `pip install sb_prune`.",
        format_table(figures),
        "Units kept of all:",
        format_table(table),
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
