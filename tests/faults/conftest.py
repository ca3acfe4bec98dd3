# SPDX-License-Identifier: Apache-2.0
"""Counts the faults that the fault suite tries: `make test-faults` writes them down.

The file that RN_JAX_FAULTS_JSON names is written at the end:
{"tried": n, "lost": 0, "kinds": {kind: {"tried": k, "lost": 0}}}. A test that fails
counts as lost under its file's KIND, or under its own name where there is none.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from forked import Server

COUNTS = pytest.StashKey()


def pytest_configure(config):
    config.stash[COUNTS] = {"tried": Counter(), "lost": Counter()}


@pytest.fixture
def faults(pytestconfig):
    """faults(kind, tried=1): so many faults of a kind have been tried and survived."""

    def count(kind: str, tried: int = 1) -> None:
        pytestconfig.stash[COUNTS]["tried"][kind] += tried

    return count


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Starts runs by forks, see `forked.Server`."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        kind = getattr(item.module, "KIND", item.originalname)
        item.config.stash[COUNTS]["tried"][kind] += 1
        item.config.stash[COUNTS]["lost"][kind] += 1
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Adds what a worker of pytest-xdist counted."""
    for name, counts in getattr(node, "workeroutput", {}).get("faults", {}).items():
        node.config.stash[COUNTS][name].update(counts)


def pytest_sessionfinish(session, exitstatus):
    counts = session.config.stash[COUNTS]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = {k: dict(v) for k, v in counts.items()}
        return
    file = os.environ.get("RN_JAX_FAULTS_JSON")
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(_summary(counts), indent=2) + "\n")


def pytest_terminal_summary(terminalreporter, config):
    summary = _summary(config.stash[COUNTS])
    if summary["tried"]:
        terminalreporter.write_line(
            f"faults: {summary['tried']} tried, {summary['lost']} lost"
        )
        for kind, count in summary["kinds"].items():
            lost = f", {count['lost']} lost" if count["lost"] else ""
            terminalreporter.write_line(f"  {kind}: {count['tried']} tried{lost}")


def _summary(counts):
    tried, lost = counts["tried"], counts["lost"]
    return {
        "tried": tried.total(),
        "lost": lost.total(),
        "kinds": {
            kind: {"tried": tried[kind], "lost": lost[kind]} for kind in sorted(tried)
        },
    }
