"""StepTrace: a few optimizer steps under torch's profiler, as a table and as a trace."""

import os
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler
from torch.profiler import ProfilerActivity, profile, record_function, schedule

STEP = "run_training_batch"
"""Lightning's name for what a training step takes, from the batch to the updated weights."""
WARM = 4
"""Steps before the traced ones: they compile, allocate and start the profiler."""
TRACED, ROWS = 3, 10


class StepTrace(Profiler):
    """Trace some steps after the first ones; what a step computes stays the same.

    The parts of a step that Lightning names (fetching data, forward, backward, update, callbacks)
    have their names in the trace. Every rank writes a trace, and the first prints the table.

    Args:
        folder: Where the trace and the table go.
        first_step: Optimizer steps that were made before.
        total: Steps that are to be made; shorter runs are traced at their end.
        on_done: Takes the seconds that writing the trace took.
    """

    def __init__(
        self, folder: Path, first_step: int, total: int, *, on_done: Callable[[float], None]
    ) -> None:
        super().__init__()
        self.folder = folder
        self.first_step = first_step
        self.count = min(TRACED, total)
        self.skipped = max(0, min(WARM, total - self.count))
        self.on_done = on_done
        self._made = 0
        self._open: dict[str, AbstractContextManager[Any]] = {}
        self._profile: profile | None = None

    def start(self, action_name: str) -> None:
        """Begin a part of a step; before the traced steps, start the profiler."""
        warm = min(1, self.skipped)
        if action_name == STEP and self._made == self.skipped - warm:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would log its own stages
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=0, warmup=warm, active=self.count, repeat=1),
            )
            self._profile.start()
        if self._profile is not None:
            step = self.first_step + self._made + 1
            label = f"step {step}" if action_name == STEP else action_name
            self._open[action_name] = record_function(label)
            self._open[action_name].__enter__()

    def stop(self, action_name: str) -> None:
        """End a part of a step; after the last traced step, write what was found."""
        if action_name in self._open:
            self._open.pop(action_name).__exit__(None, None, None)
        if action_name != STEP:
            return
        self._made += 1
        if self._profile is not None:
            if self._made == self.skipped + self.count:
                self._finish()
            else:
                self._profile.step()

    def teardown(self, stage: str | None) -> None:
        """Write what was traced of a run that ends early."""
        if getattr(self, "_profile", None) is not None:
            self._finish()
        super().teardown(stage)

    def _finish(self) -> None:
        began = time.perf_counter()
        assert self._profile is not None
        found, self._profile = self._profile, None
        while self._open:
            self._open.popitem()[1].__exit__(None, None, None)
        traced = self._made - self.skipped
        if traced > 0 and torch.cuda.is_available():
            torch.cuda.synchronize()
        found.stop()
        if traced > 0:
            first = self.first_step + self.skipped + 1
            steps = f"steps-{first}-{first + traced - 1}"
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            self.folder.mkdir(parents=True, exist_ok=True)
            trace = self.folder / f"{steps}{f'.rank{rank}' if rank else ''}.json"
            # Never half a file under its name.
            found.export_chrome_trace(f"{trace}.writing")
            os.replace(f"{trace}.writing", trace)
            if rank == 0:
                table = costs(found.events(), first, traced)
                (self.folder / f"{steps}.txt").write_text(f"{table}\n", encoding="utf-8")
                where = f"trace: {trace}, to be opened at https://ui.perfetto.dev"
                print(table, where, sep="\n", flush=True)
        self.on_done(time.perf_counter() - began)


def costs(events: Any, first: int, count: int) -> str:
    """Tabulate the operations that took most of the time of some steps.

    Time is that of an operation itself, without those that it calls: on a GPU the time of its
    kernels, else on the CPU. What happens between steps (validation, checkpoints) does not count.

    Args:
        events: torch's events.
        first: Number of the first step.
        count: How many steps.
    """
    names = {f"step {step}" for step in range(first, first + count)}
    spans = [event.time_range for event in events if event.name in names]
    within = [
        event
        for event in events
        if event.device_type.name == "CPU"
        and any(span.start <= event.time_range.start <= span.end for span in spans)
    ]
    on_gpu = any(event.self_device_time_total > 0 for event in within)
    micros: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in within:
        if event.is_user_annotation or event.name.startswith(("step ", "ProfilerStep#", "[")):
            continue  # a name for a part of a step, and no operation
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        micros[event.name] += spent
        calls[event.name] += 1
    wall = sum(span.end - span.start for span in spans)
    dearest = sorted(micros, key=lambda name: -micros[name])[:ROWS]
    width = max(map(len, ["operation", *dearest]), default=0)
    width = min(width, 42)
    device = "GPU" if on_gpu else "CPU"
    lines = [
        f"profile of steps {first} to {first + count - 1}: {wall / count / 1e3:,.1f} ms a step,"
        f" {sum(micros.values()) / max(wall, 1e-9):.0%} of it in operations on the {device}",
        f"{'operation':{width}}  {'ms a step':>10}  {'of step':>7}  {'calls a step':>12}",
    ]
    for name in dearest:
        shown = name if len(name) <= width else f"{name[: width - 1]}…"
        lines.append(
            f"{shown:{width}}  {micros[name] / count / 1e3:>10,.2f}  {micros[name] / wall:>7.1%} "
            f" {calls[name] / count:>12,.1f}"
        )
    return "\n".join(lines)
