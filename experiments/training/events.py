# SPDX-License-Identifier: Apache-2.0
"""The lines of a run as TensorBoard's events.

Imported when a run begins: tensorboardX imports PyTorch if it is installed, which takes
seconds.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class Events:
    """Append events to a file, which is written at once.

    Unlike SummaryWriter it has no thread, which would hang once a disk is full.

    Args:
        folder: an existing folder.
        step: TensorBoard drops what interrupted runs logged at this step or later.
    """

    def __init__(self, folder: os.PathLike, step: int):
        self._writer = EventsWriter(os.path.join(folder, "events"))
        self._add(step, session_log=SessionLog(status=SessionLog.START))

    def log(self, prefix: str, line: Mapping[str, Any]) -> None:
        """Add the numbers of a line that has a "step"."""
        for field, value in line.items():
            if field not in ("step", "epoch", "kind") and value is not None:
                self._add(line["step"], summary=scalar(f"{prefix}/{field}", value))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _add(self, step, **content):
        event = Event(wall_time=time.time(), step=step, **content)
        self._writer.write_event(event)
