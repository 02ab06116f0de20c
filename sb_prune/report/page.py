"""A page that shows a comparison: one file, which needs no network."""

import base64
import io
from pathlib import Path

import numpy
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sb_prune.report.compare import table
from sb_prune.report.pictures import draw_pareto, draw_structure
from sb_prune.support.words import marked

TEMPLATE = Path(__file__).with_name("compare.html")
SHOWN = 60  # utterances whose transcripts are shown
COSTS = (  # label, Row -> value
    ("files, MB", lambda row: row.facts["bytes"] / 1e6),
    ("encoder GMACs for 1 s", lambda row: row.facts["macs"] / 1e9),
    ("median latency, s", lambda row: numpy.median(row.seconds)),
)


def render(comparison, title):
    """Writes a comparison as HTML.

    Arguments
    ---------
    comparison : Comparison
    title : str

    Returns
    -------
    str
    """
    rows, counts = comparison.rows, [row.counts for row in comparison.rows]
    errors = numpy.sum([count[:, 0] for count in counts], axis=0)
    order = numpy.argsort(-errors, kind="stable")[:SHOWN]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(TEMPLATE.name).render(
        title=title,
        names=comparison.names,
        seconds=sum(comparison.durations),
        threads=comparison.threads,
        normaliser=comparison.normaliser,
        too_long=comparison.too_long,
        unreadable=comparison.unreadable,
        has_labels=comparison.has_labels,
        table=table(comparison),
        charts=[_chart(comparison, *axis) for axis in COSTS],
        structures=[
            (row.name, _structure(row.facts["units"]))
            for row in rows
            if row.facts["units"]
        ],
        shown=len(order),
        models=[row.name for row in rows],
        texts=[
            {
                "name": comparison.names[n],
                "said": " ".join(comparison.said[n]),
                "heard": [
                    marked(comparison.said[n], heard[n])
                    for heard in comparison.heard
                ],
            }
            for n in order
        ],
    )


def _chart(comparison, label, value):
    """SVG of errors against a cost."""
    accuracy = "WER, %"
    if not comparison.has_labels:
        accuracy = "words unlike the first model, %"
    points = {row.name: (value(row), *row.rate) for row in comparison.rows}
    file = io.StringIO()
    draw_pareto(file, points, label, accuracy)
    svg = file.getvalue()
    return Markup(svg[svg.index("<svg") :])  # noqa: S704, names are escaped


def _structure(units):
    """PNG of what was kept, in base64."""
    file = io.BytesIO()
    draw_structure(file, units)
    return base64.b64encode(file.getvalue()).decode("ascii")
