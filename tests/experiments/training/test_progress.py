# SPDX-License-Identifier: Apache-2.0
"""The bar on a terminal and in a notebook."""

import io
import subprocess
import sys

from driver import ROOT
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from experiments.training import loop, progress


class Terminal(io.StringIO):
    """A terminal that keeps what is shown."""

    def isatty(self):
        return True


def test_the_bar_begins_once_the_first_steps_have_ended(monkeypatch):
    shown, now = Terminal(), [100.0]
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    bar = progress.Progress(total=44, done=4, batch_size=10, shown=True)
    assert "compiling ..." in shown.getvalue() and "4/44" not in shown.getvalue()
    now[0] += 60  # of the compiler
    bar.advance(2, 1, 0.5, 25.0)
    first = shown.getvalue().split("\r")[-1]
    assert "6/44 [00:00<?" in first and "images/s" not in first
    assert "loss 0.500, error 25.0 %" in first
    for _ in range(2):
        now[0] += 2
        bar.advance(4, 1, 0.5, 25.0)
    last = shown.getvalue().split("\r")[-1]
    assert "14/44 [00:04<00:15" in last and "20 images/s" in last  # two steps a second
    bar.close()


def test_without_a_bar_a_line_says_that_the_step_is_compiled(capsys):
    for shown in (False, True):
        bar = progress.Progress(total=44, done=4, batch_size=10, shown=shown)
        bar.advance(2, 1, 0.5, 25.0)
        bar.close()
        lines = ["Compiling the training step ..."] if shown else []
        assert capsys.readouterr().out.splitlines() == lines


# What tqdm uses of ipywidgets, and of a notebook.
NOTEBOOK = """
import sys, types
class Widget:
    def __init__(self, children=(), **settings):
        self.children = children
        self.layout = self.style = types.SimpleNamespace()
widgets = types.ModuleType("ipywidgets")
widgets.__version__ = "8"
for name in ("FloatProgress", "HBox", "HTML"):
    setattr(widgets, name, type(name, (Widget,), {}))
sys.modules["ipywidgets"] = widgets
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
import IPython, IPython.display
shown = []
IPython.display.display = shown.append
from experiments.training.progress import Progress
bar = Progress(total=44, done=4, batch_size=10, shown=True)
[box] = shown
print(box.children[2].value)
bar.advance(2, 1, 0.5, 25.0)
print(box.children[2].value)
"""


def test_a_notebook_shows_a_bar_though_it_has_no_terminal():
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    compiling, begun = done.stdout.replace("\u2007", " ").splitlines()
    assert compiling == "compiling ..."
    assert "6/44 [" in begun and "loss 0.500" in begun


def test_a_cell_that_is_stopped_shows_one_sentence(capsys):
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shell.user_ns["stopped"] = loop.StoppedError("Interrupted", "runs/a")
    shell.run_cell("raise stopped")
    said = "Interrupted; run the cell again to resume.\n"
    assert capsys.readouterr().out == said
