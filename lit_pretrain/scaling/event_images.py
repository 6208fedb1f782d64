"""Event images: pictures into a TensorBoard run with TensorBoard's own writer, without torch."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


def write_images(folder: Path, images: Mapping[str, bytes], step: int = 0) -> None:
    """Add PNG files to a TensorBoard run.

    Args:
        folder: The run's event folder.
        images: PNG by tag.
        step: Where on TensorBoard's slider.
    """
    writer = EventFileWriter(str(folder))
    try:
        for tag, content in images.items():
            width, height, _, kind = struct.unpack(">IIBB", content[16:26])  # of the IHDR chunk
            image = Summary.Image(height=height, width=width, colorspace={0: 1, 2: 3, 6: 4}[kind], encoded_image_string=content)
            writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)])))
    finally:
        writer.close()
