# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's events, read back record by record."""

import struct

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments.training.events import Events


def read(folder):
    """Yield the events of all files, each between its length and checksums."""
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def scalars(folder):
    """The value of each (step, tag), the last one if there are several."""
    return {
        (event.step, value.tag): value.simple_value
        for event in read(folder)
        for value in event.summary.value
    }


def test_numbers_of_a_line_are_scalars_at_its_step(tmp_path):
    events = Events(tmp_path, step=0)
    line = {"step": 5, "epoch": 1, "kind": "epoch", "loss": 0.1, "val": None}
    events.log("epoch", line)
    assert scalars(tmp_path) == {(5, "epoch/loss"): np.float32(0.1)}  # before `close`
    events.close()


def test_a_file_begins_with_the_step_from_which_older_events_are_dropped(tmp_path):
    events = Events(tmp_path, step=5)
    events.log("step", {"step": 6, "loss": 2.0})
    events.close()
    starts = [event.session_log.status == SessionLog.START for event in read(tmp_path)]
    assert starts[-2:] == [True, False]
    assert [event.step for event in read(tmp_path)][-2:] == [5, 6]
