"""Remedies: the changes to a run after which its planned peak fits into the memory of a device."""

from __future__ import annotations

import dataclasses
from typing import Any

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.scaling.memory import Layout, peak
from lit_pretrain.step_size import largest_divisor


def remedies(config: ModelConfig, layout: Layout, limit: float) -> list[str]:
    """What would make a run fit into `limit` bytes, the least change first; empty if nothing here does."""

    def fits(**changes: Any) -> bool:
        return peak(config, dataclasses.replace(layout, **changes)).bytes <= limit

    found = []
    if layout.answering is not None:
        rows = [r for r in _powers_below(layout.answering.rows) if fits(answering=layout.answering.fewer(r))]
        if rows:
            engine = f"{{class_path: lit_pretrain.rollout.BuiltIn, init_args: {{rows: {rows[-1]}}}}}"
            found.append(f"fewer answers at once (--model.rollout.engine '{engine}')")
    if not layout.checkpointing and fits(checkpointing=True):
        found.append("activation checkpointing (--model.activation_checkpointing true; about a third more FLOPs)")
    for checkpointing in sorted({layout.checkpointing, True}):
        extra = " with activation checkpointing" if checkpointing and not layout.checkpointing else ""
        smaller = _powers_below(layout.rows // layout.group)
        # the tokens of a step stay, so there are several micro-batches then
        rows = [r for r in smaller if fits(rows=r * layout.group, checkpointing=checkpointing, accumulates=True)]
        if rows and (checkpointing == layout.checkpointing or not found):
            found.append(f"--data.micro_batch_size {rows[-1]}{extra}")
    if layout.answering is not None or layout.quantized:
        return found  # they are refused by FSDP
    for checkpointing in sorted({layout.checkpointing, True}):
        extra = " with activation checkpointing" if checkpointing and not layout.checkpointing else ""
        counts = [2**i for i in range(1, 15) if layout.sharding != "fsdp" or 2**i > layout.devices]
        if layout.step_rows is not None:
            counts = [n for n in counts if layout.step_rows % n == 0]
        spread = {"sharding": "fsdp", "checkpointing": checkpointing}
        wide = [n for n in counts if fits(devices=n, rows=_rows_on(layout, n), **spread)]
        if wide:
            found.append(f"FSDP (--trainer.strategy fsdp) over at least {wide[0]} devices{extra}")
            break
    return found


def _rows_on(layout: Layout, devices: int) -> int:
    if layout.step_rows is None:
        return layout.rows
    return layout.group * largest_divisor(layout.step_rows // devices, layout.rows // layout.group)


def _powers_below(number: int) -> list[int]:
    return [2**i for i in range(20) if 2**i < number]
