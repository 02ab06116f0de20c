"""The card of an export: figures, and what was kept."""

from sb_prune.declare.tables import format_table, structure_table


def write_card(path, loaded, facts):
    figures = [["figure", "value"], *facts.items()]
    table = structure_table(loaded.declaration, loaded.plan)
    parts = [
        "# Pruned speech model",
        "Loads like any SpeechBrain model; needs `pip install sb_prune`.",
        format_table(figures),
        "Units kept of all:",
        format_table(table),
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
