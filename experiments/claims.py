# SPDX-License-Identifier: Apache-2.0
"""Judge the claims of the literature by runs, studies and exact numbers.

python -m experiments.claims [--only=CLAIMS] [--workdir=DIR] [--keep=DIR] [--page=FILE]
"""

import json
import sys
from collections.abc import Mapping, Sequence

from etils import epath

from experiments import cli, figures
from experiments.analyze import analyze
from experiments.markdown import table
from experiments.papers import evidence as ev
from experiments.papers import exact
from experiments.papers.claim_table import CLAIMS, GROUPS, Claim
from experiments.reproduce import reproduce
from rn_jax.errors import unknown_name
from rn_jax.filesystem import make_folder, read_json, replace_file

_HEADER = """# Claims of the literature

Each row is a claim of a paper, or a question that follows from one, with the command
that shows it and what this project has seen.
`python -m experiments.claims --keep=results --page=docs/claims.md` collects what is
missing and writes this page from the JSON files in `results/`. Starting from scratch
takes about eight hours on two CPU cores; `--only=NAME,NAME` chooses claims. Some
networks were trained with five seeds; a claim uses three unless it says "5 seeds".

- **{holds}**: it follows from the definitions, or the runs show it.
- **{fails}**: the numbers, or all runs on this data set, contradict it. Most runs
  use `digits`, 1,437 images of 8x8 pixels; they say nothing against the paper's
  larger experiment.
- **{undecided}**: the difference is within the spread of the seeds (a t-test at
  {level:.0f} %), networks of different seeds disagree, a threshold is missed without
  showing the opposite, a network's error is too high for damage to show, or there is
  one run only.
- **{pending}**: two CPU cores suffice; its JSON is not in `results/` yet.
- **{not_run}**: it needs a GPU, a large data set or a benchmark; the command is ready.

Numbers after "±" are standard deviations over seeds; lists have one number per seed.
Sections of Veit et al. 2016 are cited from secondary sources.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.Parser(__doc__, claims).call(
        argv, interrupted="Interrupted; the same command continues."
    )


def claims(
    *,
    only: str | None = None,
    workdir: cli.Path = "runs/claims",
    keep: cli.Path | None = None,
    page: cli.Path | None = None,
    style: figures.Style = figures.DEFAULT,
    command: str = "experiments.claims.claims(...)",
) -> dict[str, ev.Seen]:
    """Collect the evidence that is missing, and write a page with a verdict per claim.

    Finished runs and studies are not repeated.

    Args:
        only: names of claims, with commas between; None: all.
        workdir: folder of the runs.
        keep: folder of the evidence; None: WORKDIR/results.
        page: file of the page; None: WORKDIR/claims.md.
        style: style and formats of the figures.
        command: the command line, which runs and studies name.

    Returns:
        What was seen, by name of the claim.

    Raises:
        InputError: a claim is unknown, or bad input that the user can correct.
    """
    chosen = list(CLAIMS) if only is None else only.split(",")
    for name in chosen:
        if name not in CLAIMS:
            raise unknown_name("claim", name, CLAIMS)
    folder = epath.Path(keep or f"{workdir}/results")
    needed = [e for name in chosen for e in CLAIMS[name].evidence]
    for evidence in dict.fromkeys(needed):
        if evidence.load(folder) is None:
            _collect(evidence, folder, epath.Path(workdir), style, command)
    file = epath.Path(page or f"{workdir}/claims.md")
    make_folder(file.parent)
    found = all_seen(folder)
    replace_file(file, cli.as_called(as_page(found), on_page=True))
    for name in chosen:
        print(f"{name}: {found[name].verdict} ({found[name].text or 'no evidence'})")
    print(f"Page: {file}")
    return {name: found[name] for name in chosen}


def _collect(evidence, folder, workdir, style, command):
    """Train, study or compute what a piece of evidence consists of."""
    if isinstance(evidence, ev.Exact):
        print(evidence.name, flush=True)
        file = folder / ev.EXACT
        found = read_json(file) if file.exists() else {}
        found[evidence.name] = exact.FUNCTIONS[evidence.name]()
        make_folder(file.parent)
        replace_file(file, json.dumps(found, indent=1) + "\n")
    elif isinstance(evidence, ev.Runs):
        _train(evidence, folder, workdir, style, command)
    elif isinstance(evidence, ev.Start):
        for seed, place in enumerate(evidence.places):
            out = workdir / place
            analyze(
                model=evidence.model,
                dataset=evidence.dataset,
                model_kwargs=dict(evidence.fields),
                studies=[evidence.study],
                seed=seed,
                out=out,
                style=style,
                command=command,
            )
            _keep(out, folder / "claims" / place, [evidence.study])
    elif isinstance(evidence, ev.Studies):
        _train(evidence.runs, folder, workdir, style, command)
        for place in evidence.places:
            run = workdir / place
            analyze(
                workdir=str(run),
                studies=evidence.names,
                images=evidence.images,
                draws=evidence.draws,
                style=style,
                command=command,
            )
            _keep(run / "analysis", folder / "claims" / place, evidence.names)


def _keep(source, target, studies):
    """Copy the results of studies."""
    make_folder(target)
    for name in studies:
        replace_file(target / f"{name}.json", (source / f"{name}.json").read_bytes())


def _train(runs, folder, workdir, style, command):
    reproduce(
        table=runs.table,
        only=",".join(runs.rows),
        seeds=runs.seeds,
        dataset=runs.dataset,
        workdir=str(workdir / runs.table),
        keep=str(folder),
        style=style,
        command=command,
        resumed_by=str(workdir),
    )


def seen(claim: Claim, folder: epath.Path) -> ev.Seen:
    """Return what the evidence in a folder shows of a claim."""
    loaded = [evidence.load(folder) for evidence in claim.evidence]
    if claim.judge is None:
        return ev.Seen("", ev.NOT_RUN)
    pairs = zip(claim.evidence, loaded, strict=True)
    missing = [evidence for evidence, found in pairs if found is None]
    if any(isinstance(evidence, ev.Benchmark) for evidence in missing):
        return ev.Seen("", ev.NOT_RUN)
    if missing:
        return ev.Seen("", ev.PENDING)
    return claim.judge(*loaded)


def all_seen(folder: epath.Path) -> dict[str, ev.Seen]:
    """Return what the evidence in a folder shows, by name of the claim."""
    return {name: seen(claim, folder) for name, claim in CLAIMS.items()}


def as_page(found: Mapping[str, ev.Seen]) -> str:
    """Return the page on what `all_seen` returned."""
    lines = [
        _HEADER.format(
            holds=ev.HOLDS,
            fails=ev.FAILS,
            undecided=ev.UNDECIDED,
            not_run=ev.NOT_RUN,
            pending=ev.PENDING,
            level=100 * ev.SIGNIFICANCE,
        )
    ]
    verdicts = [what.verdict for what in found.values()]
    counts = [
        f"{v}: {verdicts.count(v)}"
        for v in (ev.HOLDS, ev.FAILS, ev.UNDECIDED, ev.PENDING, ev.NOT_RUN)
    ]
    lines += [f"Of {len(verdicts)} claims, {', '.join(counts)}.", ""]
    for title, group in GROUPS.items():
        rows = []
        for claim in group:
            what = found[claim.name]
            verdict = f"**{what.verdict}**"
            command = f"`{_command(claim)}`"
            rows.append([claim.says, claim.source, what.text, verdict, command])
        head = ["claim", "source", "seen here", "verdict", "command"]
        lines += [f"## {title}", "", *table(head, rows), ""]
    return "\n".join(lines)


def _command(claim):
    """Return the command that shows a claim."""
    if not claim.evidence:
        return claim.command
    commands = [e.command for e in claim.evidence if isinstance(e, ev.Benchmark)]
    return (*commands, f"python -m experiments.claims --only={claim.name}")[0]


if __name__ == "__main__":
    sys.exit(main())
