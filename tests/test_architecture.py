# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.md: its picture follows the imports, its walks follow the calls."""

import re
import sys
import threading

import pytest
from driver import arguments
from tiny import TINY

import rn_jax
from docs import architecture
from experiments import analyze, run

PAGE = architecture.PICTURE.with_suffix(".md").read_text("utf-8")
WALKS = {
    part.partition("\n")[0]: re.findall(r"^\d+\. `(.+?)`: `(.+?)`", part, re.MULTILINE)
    for part in PAGE.split("\n## ")[1:]
}


def test_every_module_has_a_room_that_exists():
    known = architecture.modules()
    assert all(map(architecture.room, known))
    for _, names in architecture.ROOMS.values():
        assert set(names) <= known.keys()


def test_imports_have_no_circles_and_the_library_knows_no_command():
    arrows = architecture.imports()
    assert architecture.levels(arrows)  # a circle would raise
    for title, (_, names) in architecture.ROOMS.items():
        if names[0].startswith("rn_jax"):
            for other in arrows[title]:
                assert architecture.ROOMS[other][1][0].startswith("rn_jax"), title


def test_the_picture_is_current():
    assert architecture.drawn_facts() == architecture.facts()


def test_levels_and_direct_arrows_of_a_small_graph():
    arrows = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert architecture.levels(arrows) == {"a": 0, "b": 1, "c": 2}
    assert architecture.direct(arrows) == {"a": {"b"}, "b": {"c"}, "c": set()}
    with pytest.raises(RecursionError):
        architecture.levels({"a": {"b"}, "b": {"a"}})


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Calls of the walks' functions in a training and a study, in their order.

    Each is a list of (number, function): the calls that enclose it, and itself.
    """
    folder = tmp_path_factory.mktemp("walks")
    walked = {step for walk in WALKS.values() for step in walk}
    root = f"{architecture.ROOT}/"
    found, in_thread = [], threading.local()

    def note(frame, event, _):
        code = frame.f_code
        if event in ("call", "return") and code.co_filename.startswith(root):
            call = code.co_filename.removeprefix(root), code.co_qualname
            stack = in_thread.__dict__.setdefault("stack", [])
            if event == "call" and call in walked:
                stack.append((len(found), call))
                found.append(stack.copy())
            elif event == "return" and stack and stack[-1][1] == call:
                stack.pop()

    training = arguments(
        folder / "run",
        "--config.epochs=1",
        "--config.stochastic_depth={'last_survival': 0.5}",
    )
    study = [f"--workdir={folder / 'run'}", f"--out={folder / 'out'}", "--images=16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rn_jax.models.MODELS, "tiny", TINY)
        threading.setprofile(note)
        sys.setprofile(note)
        try:
            assert run.main(training) == 0
            assert analyze.main([*study, "--study=delete_one"]) == 0
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    return found


@pytest.mark.parametrize("title", WALKS)
def test_walks_are_in_the_order_of_calls(calls, title):
    """Each step is called by the one before it, or later by a caller of that one."""
    walk = WALKS[title]
    stacks = [[call for call in stack if call[1] in walk] for stack in calls]
    reached = [[]]
    for step in walk:
        reached = [
            stack
            for stack in stacks
            if stack and stack[-1][1] == step
            if any(stack[:-1] == r[: len(stack) - 1] and stack > r for r in reached)
        ]
        assert reached, f"{step} is not called inside or after the steps before it"


def test_there_are_four_walks():
    assert len(WALKS) == 4 and all(len(walk) > 8 for walk in WALKS.values())
