# SPDX-License-Identifier: Apache-2.0
"""The report on studies: their figures and texts on one page."""

import functools
from collections.abc import Mapping, Sequence

from etils import epath

from experiments import figures, studies
from experiments.markdown import table
from experiments.studies import Results
from rn_jax.filesystem import make_folder, replace_file


def write(
    folder: epath.Path,
    names: Sequence[str],
    found: Mapping[str, Results],
    reasons: Mapping[str, Mapping[str, str | None]],
    *,
    command: str,
) -> None:
    """Draw the figure of every study, with its caption, and write report.md.

    Args:
        folder: folder of the report.
        names: names of the studies, in order.
        found: label of the network -> study -> its JSON.
        reasons: label -> study -> why it is missing, or None.
        command: command that writes the report.
    """
    make_folder(folder)
    networks = {label: next(iter(r.values())) for label, r in found.items() if r}
    lines = [f"# Studies of {', '.join(found)}", "", *_networks(networks), ""]
    lines += [*_commands(found, command), ""]
    for name in names:
        study = studies.STUDIES[name]
        lines += [f"## {study.title}", ""]
        results = {label: r[name] for label, r in found.items() if name in r}
        if results:
            drawn = {figures.as_text(label): r for label, r in results.items()}
            caption = f"{study.question} {_conditions(study, results)}"
            draw = functools.partial(study.draw, drawn)
            figures.save(draw, folder / name, title=study.title, caption=caption)
            lines += [f"![{study.title}]({name}.png)", "", caption]
        for label in found:
            if label in results:
                text = study.describe(results[label])
            else:
                reason = reasons.get(label, {}).get(name)
                text = f"Not done: {reason or 'not requested, or interrupted'}."
            lines += ["", f"**{label}.** {text}"]
        if study.compare and len(results) > 1:
            lines += ["", study.compare(results)]
        lines += [""]
    lines += [*_summary(found, networks), *_times(found)]
    replace_file(folder / "report.md", "\n".join(lines))


def _networks(networks):
    rows = [
        [
            label,
            r["model"],
            r["dataset"],
            f"{r['images']:,} of {r['test_images']:,}",
            r["gates"],
            f"{r['baseline_error_percent']:.2f}",
        ]
        for label, r in networks.items()
    ]
    head = ["network", "model", "data set", "test images", "gates", "test error (%)"]
    return table(head, rows)


def _commands(found, command):
    """Return the command of the page and those of earlier studies."""
    earlier = {r["command"] for results in found.values() for r in results.values()}
    earlier -= {command}
    lines = [f"    {command}"]
    if earlier:
        lines += ["", "Earlier studies were made with", ""]
        lines += [f"    {line}" for line in sorted(earlier)]
    return lines


def _conditions(study, results):
    """Return the data, gates and options of every network, for a figure's caption."""
    return " ".join(
        f"{label}: {r['model']} on {r['dataset']}, {r['measured_on']}; gates: "
        f"{r['gates']}{''.join(f'; {name}: {r[name]}' for name in study.uses)}."
        for label, r in results.items()
    )


def _summary(found, networks):
    """Return the table of all networks with the columns of every study."""
    if len(networks) < 2:
        return []
    columns = {
        head: (name, cell)
        for name, study in studies.STUDIES.items()
        for head, cell in study.columns.items()
    }
    rows = [
        [
            label,
            f"{network['baseline_error_percent']:.2f}",
            *(
                cell(found[label][name]) if name in found[label] else ""
                for name, cell in columns.values()
            ),
        ]
        for label, network in networks.items()
    ]
    head = ["network", "test error (%)", *columns]
    return ["## Across networks", "", *table(head, rows), ""]


def _times(found):
    """Return the table of each study's time and devices."""
    rows = [
        [label, study, f"{r['seconds']:.0f}", r["device"]]
        for label, results in found.items()
        for study, r in results.items()
    ]
    head = ["network", "study", "seconds", "devices"]
    return ["## Time", "", *table(head, rows), ""]
