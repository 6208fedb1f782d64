"""Hold out: which text of each source is kept from training, decided once for all later stages."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_pretrain.corpus.chunk_writer import write_durably
from lit_pretrain.prepare.dedup.columns import save_column
from lit_pretrain.prepare.engine.task_stage import Advance
from lit_pretrain.prepare.preparation import Preparation
from lit_pretrain.prepare.prepare_config import PrepareConfig
from lit_pretrain.prepare.stages.encode import (
    Segments,
    Splitter,
    choose,
    chosen_file,
    stands,
    wished,
)
from lit_pretrain.prepare.survivors import Survivors


@dataclass(frozen=True)
class MeasureTask:
    """Measures what the hash of the documents of one part gives to each split."""

    config: PrepareConfig
    work: Path
    begins: tuple[int, ...]
    """Number of the first document of each part in the corpus."""

    def __call__(self, number: int, advance: Advance) -> dict[str, Any]:
        """Writes keys/<number>.npy: [documents, 2], the key and UTF-8 bytes of each document.

        Returns:
            Bytes by split.
        """
        splitter = Splitter(self.config.splits, self.config.seed)
        held = {"train": 0, "validation": 0, "test": 0}
        rows = array("Q")
        for document in Survivors(self.config.dedup, self.work, number, self.begins[number]):
            utf8 = document.utf8
            key = splitter.key(utf8)
            held[splitter.split(key)] += len(utf8)
            rows.extend((key, len(utf8)))
            advance(len(utf8))
        save_column(keys_file(self.work, number), np.array(rows, dtype=np.uint64).reshape(-1, 2))
        return held


def hold_out(run: Preparation) -> None:
    """Decide for every source whether the hash of its documents stands, and choose where it
    does not.
    """
    config = run.config
    task = MeasureTask(config, run.work, run.begins)
    measured = run.do("measure", "measure the splits", task, run.bytes_left())
    chosen: dict[int, Segments] = {}
    for name in run.inputs:
        parts = run.of(name)
        held = {split: sum(measured[n][split] for n in parts) for split in measured[parts[0]]}
        shares = wished(sum(held.values()), config.splits)
        if stands(held, shares):
            run.held_out[name] = {
                split: "hash" for split in ("validation", "test") if shares[split]
            }
            continue
        keys, sizes = np.concatenate([np.load(keys_file(run.work, n)) for n in parts]).T
        found, run.held_out[name] = choose(keys, sizes, config.splits, chosen)
        chosen |= found
    write_durably(chosen_file(run.work), json.dumps(chosen))


def keys_file(work: Path, number: int) -> Path:
    """Where the keys and sizes of the documents of a part lie."""
    return work / "keys" / f"{number:05d}.npy"
