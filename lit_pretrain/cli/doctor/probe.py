"""Probe: what only an import of torch can tell, found out in a process of its own, because a
broken import can take its process along.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Optional

IMPORTS = ("torch", "lightning", "litdata")
TIMEOUT = 300
"""Seconds: enough for a first import from a slow network disk."""


@dataclasses.dataclass
class Probe:
    """What the other process found."""

    imported: dict[str, float] = dataclasses.field(default_factory=dict)
    """Module -> seconds its import took."""
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Module -> the exception, in one line."""
    skipped: tuple[str, ...] = ()
    """Modules that must not be imported."""
    died: Optional[str] = None
    """How the process ended, if not well."""
    torch: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Version, cuda, hip, threads, precision (the default of `fit`), mps; cuda_error where CUDA
    does not start.
    """
    devices: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """GPUs: name, memory, free (bytes), capability, bf16, error (of a small matrix product)."""


def probe(*, skip: Collection[str] = ()) -> Probe:
    """Import the modules in a new process and ask torch for the machine.

    Args:
        skip: Modules that must not be imported.
    """
    wanted = [name for name in IMPORTS if name not in skip]
    package_parent = str(Path(__file__).parents[3])
    # At the end: what stands on the user's path is found first, as in a run.
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), package_parent]))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.jsonl"
        command = [sys.executable, "-W", "ignore", "-m", __name__, str(out), *wanted]
        died: Optional[str] = None
        try:
            run = subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                check=False,
            )
            if run.returncode:
                how = (
                    f"killed by signal {-run.returncode}"
                    if run.returncode < 0
                    else f"exit code {run.returncode}"
                )
                died = f"Python died ({how}): {last_line(run.stderr)}"
        except subprocess.TimeoutExpired:
            died = f"no end after {TIMEOUT} s"
        lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    found = Probe(skipped=tuple(name for name in IMPORTS if name in skip), died=died)
    for line in lines:
        fact = json.loads(line)
        for field, value in fact.items():
            if field == "devices":
                found.devices.append(value)
            else:
                getattr(found, field).update(value)
    return found


def last_line(text: str) -> str:
    """The last line that is not empty: of a traceback, the exception."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _inner(out: str, names: list[str]) -> None:
    """The other process: one line of JSON for each fact, written as it is found, so that a
    crash loses only what follows.
    """
    with open(out, "w", encoding="utf-8", buffering=1) as file:

        def tell(**fact: Any) -> None:
            file.write(json.dumps(fact) + "\n")

        for name in names:
            began = time.perf_counter()
            try:
                importlib.import_module(name)
            except Exception as error:
                tell(
                    failed={
                        name: last_line(
                            "".join(traceback.format_exception_only(type(error), error))
                        )
                    }
                )
            else:
                tell(imported={name: round(time.perf_counter() - began, 2)})
        if "torch" in sys.modules and hasattr(sys.modules["torch"], "__version__"):
            _ask_torch(tell)


def _ask_torch(tell: Any) -> None:
    import torch

    from lit_pretrain.cli.train.precision import default_precision

    tell(
        torch={
            "version": str(torch.__version__),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "threads": torch.get_num_threads(),
            "mps": torch.backends.mps.is_available(),
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if (torch.version.cuda or torch.version.hip) and not torch.cuda.is_available():
            try:
                torch.cuda.init()  # type: ignore[no-untyped-call]
            except Exception as error:
                tell(torch={"cuda_error": " ".join(str(error).split())})
    tell(torch={"precision": default_precision("auto")})
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        tell(devices=_ask_device(index))


def _ask_device(index: int) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"name": f"cuda:{index}", "error": None}
    try:
        with torch.cuda.device(index):
            properties = torch.cuda.get_device_properties(index)
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            found |= {
                "name": properties.name,
                "memory": properties.total_memory,
                "free": torch.cuda.mem_get_info(index)[0],
                "capability": f"{properties.major}.{properties.minor}",
                "bf16": bf16,
            }
            # A build without kernels for this device only fails when one is launched.
            ones = torch.ones(
                64, 64, device=f"cuda:{index}", dtype=torch.bfloat16 if bf16 else torch.float32
            )
            total = (ones @ ones).float().sum().item()
            if total != 64**3:
                found["error"] = f"a 64 × 64 matrix product of ones sums to {total}, not {64**3}"
    except Exception as error:
        found["error"] = " ".join(str(error).split())
    return found


if __name__ == "__main__":
    _inner(sys.argv[1], sys.argv[2:])
