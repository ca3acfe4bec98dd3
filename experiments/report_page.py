# SPDX-License-Identifier: Apache-2.0
"""The page of `experiments.report`: HTML with Plotly's figures, all in one file."""

import base64
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image
from plotly import graph_objects, offline

from configs.default import Config
from experiments import figures
from experiments.config import as_json

# The style of `figures`, in the words of Plotly.
_WORDS = {"-": "solid", "--": "dash", ":": "dot"}
_DASHES = {part: _WORDS[dashes] for part, dashes in figures.PARTS.items()}
# The most classes for which a confusion matrix is drawn, and drawn with its numbers.
_DRAWN, _NUMBERED = 100, 20
_PAIRS = 10  # pairs of classes that are confused most often
_THUMBNAIL = 96  # pixels
# Heights of figures, and of an entry of a legend on a phone, in pixels.
_SHORT, _TALL, _ENTRY = 380, 720, 20

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem;
       padding: 0 1rem; color: #222; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
.table { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top;
         min-width: 5rem; max-width: 24rem; overflow-wrap: break-word; }
tr { border-bottom: 1px solid #eee; }
td { font-variant-numeric: tabular-nums; }
h1, p { overflow-wrap: anywhere; }
code, pre { font-size: 13px; }
pre { overflow-x: auto; }
.panels { display: grid; gap: 1rem;
          grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.panels > div { min-width: 0; }
.mistakes { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; }
.mistakes figure { width: 8.5rem; font-size: 13px; line-height: 1.3; }
.mistakes img { width: 96px; image-rendering: pixelated; }
.study img { max-width: 100%; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; font-size: 14px; }
  h2 { margin-top: 1.5rem; }
  th, td { padding-right: .5rem; }
}
"""


# Buttons for a linear or logarithmic axis of loss or error, above the panel.
_SCALES = ("linear", "log")
_SCALE_BUTTONS = {
    **{"type": "buttons", "direction": "right", "pad": {"b": 4}},
    **{"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},
    "buttons": [
        {"label": kind, "method": "relayout", "args": [{"yaxis.type": kind}]}
        for kind in _SCALES
    ],
}


@dataclass(frozen=True)
class Mistake:
    """A test image that the network misclassifies.

    Attributes:
        image: uint8[H, W, C].
        label, predicted: the true class and the predicted one.
        probability: probability of the predicted class.
        loss: cross-entropy in nats.
    """

    image: np.ndarray
    label: int
    predicted: int
    probability: float
    loss: float


@dataclass(frozen=True)
class Record:
    """A run as the page shows it.

    Attributes:
        label: short name in legends.
        config: the run's.
        summary: None if the run has not ended.
        epochs, timing: lines of metrics.jsonl of kind "epoch", and of timing.jsonl.
        studies: title, caption and PNG of each of its studies, in order.
        class_names: class names by label.
        survival: f[L], p_l; None for constant depth.
        opened: f[L], share of the steps in which block l was open; None for constant
            depth, or if it is unknown.
        confusion: i[K, K], number of test images by true and predicted class; None if
            it is unknown.
        mistakes: mistakes with the greatest loss first.
        unknown: why network-dependent results are missing, without final period.
        diverged: diverged.json, if the run diverged.
    """

    label: str
    config: Config
    summary: Mapping[str, Any] | None
    epochs: Sequence[Mapping[str, Any]]
    timing: Sequence[Mapping[str, Any]]
    studies: Sequence[tuple[str, str, bytes]]
    class_names: Sequence[str]
    survival: np.ndarray | None = None
    opened: np.ndarray | None = None
    confusion: np.ndarray | None = None
    mistakes: Sequence[Mistake] = ()
    unknown: str | None = None
    diverged: Mapping[str, Any] | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the run reported when it ended, finished or diverged."""
        return self.summary or self.diverged or {}


def page(records: Sequence[Record], *, command: str) -> str:
    """Return the page about runs, in this order, with the command line that made it."""
    title = f"Report of {', '.join(record.label for record in records)}"
    sections = [
        ("Results", _side_by_side(records, _result)),
        ("Configs", _configs(records)),
        ("Learning curves", _learning_curves(records)),
        ("Gates", _gates(records)),
        ("Confusions", _each(records, _confusions)),
        ("Worst mistakes", _each(records, _mistakes)),
        ("Studies", _each(records, _studies)),
        ("Time and memory", _timing(records)),
        ("Environment", _side_by_side(records, _environment)),
    ]
    body = "\n".join(f"<h2>{name}</h2>\n{content}" for name, content in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<script>{offline.get_plotlyjs()}</script>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p><code>{escape(command)}</code></p>\n{body}\n"
        "</body>\n</html>\n"
    )


# --- Tables ---------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def row(cells, tag="td"):
        inside = "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells)
        return f"<tr>{inside}</tr>"

    lines = [row(header, "th"), *map(row, rows)]
    return "\n".join(['<div class="table"><table>', *lines, "</table></div>"])


def _side_by_side(records, column):
    """Return the table with a column for each run, from the cells by row."""
    columns = [column(record) for record in records]
    names = dict.fromkeys(itertools.chain(*columns))
    rows = [[name, *(c.get(name, "-") for c in columns)] for name in names]
    return _table(["", *(record.label for record in records)], rows)


def _result(record: Record) -> dict[str, str]:
    """Return the results of a run beside the paper's."""
    config, facts = record.config, record.facts
    last = record.epochs[-1] if record.epochs else {}
    error = facts.get("test_error_percent", last.get("test_error_percent"))
    paper, published = _published(record)
    if record.summary:
        state = "finished"
    elif record.diverged:
        state = f"diverged at step {record.diverged['steps']}"
    elif last:
        state = f"not finished: at epoch {last['epoch']}"
    else:
        state = "not finished, and not tested yet"
    return {
        "run": state,
        "network": config.model,
        "data set": config.dataset,
        "parameters": _number(facts.get("params"), ",d"),
        "blocks": _number(facts.get("num_blocks"), "d"),
        "epochs": str(facts.get("epochs", last.get("epoch", 0))),
        "seed": str(config.seed),
        "command": facts.get("command") or "-",
        "test error": _number(error, ".2f", " %"),
        "published": _number(published, ".2f", f" % ({paper})"),
        "ours - published": _number(
            None if None in (error, published) else error - published, "+.2f", " points"
        ),
        "validation error, last epoch": _number(
            facts.get("val_error_percent", last.get("val_error_percent")), ".2f", " %"
        ),
        "test error at the best validation epoch": _number(
            facts.get("test_error_at_best_val_percent"), ".2f", " %"
        ),
    }


def _published(record):
    """Return the paper of a recipe, and its test error on this data set or None."""
    config = record.config
    return config.paper, config.published_error_percent.get(config.dataset)


def _number(value, form, unit=""):
    return "-" if value is None else f"{value:{form}}{unit}"


def _configs(records):
    """Return the fields in which the runs differ, or one run from the defaults."""
    columns = {record.label: _flat(as_json(record.config)) for record in records}
    if len(records) == 1:
        columns = {"default": _flat(as_json(Config())), **columns}
    names = dict.fromkeys(itertools.chain(*columns.values()))
    rows = [
        [name, *(json.dumps(c[name]) if name in c else "-" for c in columns.values())]
        for name in names
        if len({json.dumps(c.get(name)) for c in columns.values()}) > 1
    ]
    several = len(records) > 1
    what = "in which the runs differ" if several else "that differ from the default"
    table = f"<p>Fields {what}:</p>\n{_table(['', *columns], rows)}"
    if not rows:
        table = f"<p>There are no fields {what}.</p>"
    whole = "\n".join(
        f"<details><summary>All fields of {escape(r.label)}</summary>\n"
        f"<pre>{escape(json.dumps(as_json(r.config), indent=2))}</pre></details>"
        for r in records
    )
    return f"{table}\n{whole}"


def _flat(config, prefix=""):
    """Return entries of dicts as fields, as they are set on the command line."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _environment(record):
    facts = record.facts
    machine = facts.get("machine", {})
    return {
        "CPU": machine.get("cpu", "-"),
        "cores": machine.get("cores", "-"),
        "memory (GiB)": machine.get("memory_gib", "-"),
        "devices": facts.get("devices", "-"),
        "processes": facts.get("processes", "-"),
        "revision": facts.get("git_revision") or "-",
        **facts.get("versions", {}),
    }


# --- Figures --------------------------------------------------------------------------


def _drawn(figure, name, height=_SHORT):
    """Return a figure as HTML, in a div of that name, with the legend below it."""
    entries = sum(trace.name is not None for trace in figure.data)
    figure.update_layout(
        template="simple_white",
        height=height + _ENTRY * max(0, entries - 3),
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": -0.28, "yanchor": "top"},
    )
    # Without links to Plotly's servers or the button that sends a figure there.
    return figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        config={
            "displaylogo": False,
            "modeBarButtonsToRemove": ["sendChartToCloud"],
            "plotlyServerURL": "",
            "responsive": True,
        },
    )


def _panels(drawn):
    """Return figures beside each other, or below each other on a narrow screen."""
    return "\n".join(['<div class="panels">', *drawn, "</div>"])


def _count_axis(figure, title, largest):
    """Label a horizontal axis of whole numbers; up to 10, Plotly would halve them."""
    figure.update_xaxes(title=title, dtick=1 if largest <= 10 else None)


def _colour(index):
    return figures.look(index)["color"]


def _learning_curves(records):
    if not any(record.epochs for record in records):
        return "<p>No epoch has ended yet.</p>"
    quantities = {
        "loss": "loss (nats)",
        "error_percent": "error (%)",
        "learning_rate": "learning rate",
        "open_blocks": "open blocks, mean so far",
    }
    if not any("open_blocks" in r.epochs[-1] for r in records if r.epochs):
        del quantities["open_blocks"]
    return _panels(
        _drawn(_curve(records, quantity, axis), f"{quantity}_curves")
        for quantity, axis in quantities.items()
    )


def _curve(records, quantity, axis):
    """Return the figure of one quantity by epoch."""
    figure = graph_objects.Figure()
    # An epoch's line has the rate at the end of the epoch.
    shape = "vh" if quantity == "learning_rate" else "linear"
    for i, record in enumerate(records):
        for part, name, dash in _curves(quantity):
            lines = [line for line in record.epochs if name in line]
            if not lines:
                continue
            figure.add_scatter(
                x=[line["epoch"] for line in lines],
                y=[line[name] for line in lines],
                mode="lines" if len(lines) > 1 else "markers",
                name=escape(f"{record.label}: {part}" if part else record.label, False),
                showlegend=True,
                line={"color": _colour(i), "dash": dash, "shape": shape},
                hovertemplate="epoch %{x}: %{y:.4g}",
            )
    figure.update_yaxes(title=axis, rangemode="tozero")
    _count_axis(figure, "epoch", max(len(record.epochs) for record in records))
    if quantity not in ("loss", "error_percent"):
        return figure
    losses = itertools.chain(*(trace.y for trace in figure.data))
    scale = _SCALES[quantity == "loss" and figures.has_outliers(losses)]
    figure.update_yaxes(type=scale)
    menu = {**_SCALE_BUTTONS, "active": _SCALES.index(scale)}
    figure.update_layout(updatemenus=[menu])
    if quantity == "error_percent":
        for paper, published in dict.fromkeys(map(_published, records)):
            if published is not None:
                figure.add_hline(
                    published,
                    line={"color": "grey", "width": 1, "dash": "dashdot"},
                    annotation={"text": f"{paper}: {published:.2f} %"},
                )
    return figure


def _curves(quantity):
    """Return (part, name in metrics.jsonl, dashes) of a quantity's lines."""
    if quantity in ("loss", "error_percent"):
        return [(part, f"{part}_{quantity}", dash) for part, dash in _DASHES.items()]
    return [("", quantity, "solid")]


def _gates(records):
    with_gates = [(i, r) for i, r in enumerate(records) if r.survival is not None]
    if not with_gates:
        return "<p>All blocks were open in all steps.</p>"
    figure = graph_objects.Figure()
    text = ""
    for i, record in with_gates:
        blocks = list(range(1, len(record.survival) + 1))
        text += (
            f"<p>{escape(record.label)}: {record.survival.sum():.2f} of {len(blocks)} "
            "blocks are expected to be open"
        )
        if record.opened is None:
            text += f".</p>{_unknown(record)}"
        else:
            text += f"; the mean over all steps is {record.opened.sum():.2f}.</p>"
            figure.add_bar(
                x=blocks,
                y=record.opened.tolist(),
                name=f"{escape(record.label, quote=False)}: share of steps open",
                marker={"color": _colour(i), "opacity": 0.4},
            )
        figure.add_scatter(
            x=blocks,
            y=record.survival.tolist(),
            mode="lines",
            name=f"{escape(record.label, quote=False)}: survival probability "
            "<i>p<sub>l</sub></i>",
            line={"color": _colour(i)},
        )
    longest = max(len(record.survival) for _, record in with_gates)
    _count_axis(figure, "block <i>l</i>", longest)
    figure.update_yaxes(title="probability, share", range=[0, 1.05])
    return text + _drawn(figure, "gates")


def _unknown(record):
    return f"<p>Not available: {escape(record.unknown)}.</p>"


def _each(records, section):
    """Return a section's content for one run after another."""
    return "\n".join(
        f"<h3>{escape(record.label)}</h3>\n{section(record, i)}"
        for i, record in enumerate(records)
    )


def _confusions(record, index):
    if record.confusion is None:
        return _unknown(record)
    counts, names = record.confusion, record.class_names
    errors = counts - np.diag(np.diag(counts))
    text = (
        f"<p>{errors.sum():,} of {counts.sum():,} test images are misclassified: "
        f"{100 * errors.sum() / counts.sum():.2f} %.</p>"
    )
    most = np.argsort(-errors, axis=None, kind="stable")[:_PAIRS]
    pairs = [divmod(int(k), len(counts)) for k in most if errors.flat[k]]
    rows = [[names[a], names[b], errors[a, b], counts[a].sum()] for a, b in pairs]
    if rows:
        text += _table(["class", "predicted as", "errors", "class total"], rows)
    if len(counts) > _DRAWN:
        return text
    figure = graph_objects.Figure(
        graph_objects.Heatmap(
            x=names,
            y=names,
            z=errors.tolist(),  # without the correct ones, which are far more
            text=counts.tolist(),
            texttemplate="%{text}" if len(counts) <= _NUMBERED else None,
            hovertemplate="%{y} predicted as %{x}: %{text}<extra></extra>",
            colorscale=figures.COLOUR_MAP,
            colorbar=_bar_of_counts(int(errors.max())),
        )
    )
    figure.update_xaxes(title="predicted as", type="category")
    figure.update_yaxes(title="class", type="category", autorange="reversed")
    return text + _drawn(figure, f"confusion_{index}", _TALL)


def _bar_of_counts(largest):
    """Return a colour bar above the figure, with ticks at whole numbers."""
    return {
        **{"orientation": "h", "y": 1, "yanchor": "bottom", "thickness": 12},
        **{"title": {"text": "errors", "side": "top"}},
        **{"tickformat": "d", "dtick": max(1, math.ceil(largest / 5))},
    }


def _mistakes(record, index):
    if record.confusion is None:
        return _unknown(record)
    if not record.mistakes:
        wrong = record.confusion.sum() - record.confusion.trace()
        return f"<p>{wrong:,} images are misclassified; none is shown.</p>"
    shown = "\n".join(_mistake(m, record.class_names) for m in record.mistakes)
    return f'<div class="mistakes">\n{shown}\n</div>'


def _mistake(mistake: Mistake, names):
    content = io.BytesIO()
    grey = mistake.image.shape[2] == 1
    picture = Image.fromarray(mistake.image[..., 0] if grey else mistake.image)
    picture.thumbnail((2 * _THUMBNAIL, 2 * _THUMBNAIL))  # only if it is larger
    picture.save(content, "PNG")
    right, wrong = escape(names[mistake.label]), escape(names[mistake.predicted])
    return (
        f"<figure>{_image(content.getvalue(), right)}"
        f"<figcaption><b>{right}</b>, predicted as <b>{wrong}</b> "
        f"({100 * mistake.probability:.1f} %), loss {mistake.loss:.2f}</figcaption>"
        "</figure>"
    )


def _image(png: bytes, alternative: str) -> str:
    content = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{content}" alt="{alternative}">'


def _studies(record, index):
    if not record.studies:
        return (
            "<p>No studies yet. After the run, create them with python -m "
            "experiments.analyze --workdir=RUN.</p>"
        )
    return "\n".join(
        f'<figure class="study">{_image(png, escape(title))}'
        f"<figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption></figure>"
        for title, caption, png in record.studies
    )


def _timing(records):
    header = ["", "wall time", "images per second", "peak memory"]
    header += ["median step", "99th percentile of steps"]
    table = _table(header, list(map(_times, records)))
    if not any(record.timing for record in records):
        return table
    quantities = {
        "images_per_second": "images per second",
        "peak_memory_mib": "peak memory (MiB)",
    }
    drawn = []
    for name, axis in quantities.items():
        figure = graph_objects.Figure()
        for i, record in enumerate(records):
            figure.add_scatter(
                x=[line["step"] for line in record.timing],
                y=[line.get(name) for line in record.timing],
                mode="lines+markers",
                name=escape(record.label, quote=False),
                showlegend=True,
                line={"color": _colour(i)},
            )
        figure.update_yaxes(title=axis, rangemode="tozero")
        figure.update_xaxes(title="step")
        drawn.append(_drawn(figure, name))
    return f"{table}\n{_panels(drawn)}"


def _times(record):
    last = record.timing[-1] if record.timing else {}
    seconds = record.facts.get("wall_seconds", last.get("wall_seconds"))
    steps = (last.get("step_seconds_p50"), last.get("step_seconds_p99"))
    return [
        record.label,
        _number(seconds, ",.0f", " s"),
        _number(last.get("images_per_second"), ",.0f"),
        _number(last.get("peak_memory_mib"), ",.0f", " MiB"),
        *(_number(step and 1000 * step, ",.1f", " ms") for step in steps),
    ]
