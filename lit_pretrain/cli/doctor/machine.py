"""Machine: what torch was built for, the devices, the processor and the compiler.

Only an import of torch can tell most of it. A broken import can take its process along, so it
happens in a process of its own, which writes down each fact as it finds it.
"""

import dataclasses
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypedDict

from lit_pretrain.cli.doctor import Finding
from lit_pretrain.scaling.flops import peak_flops

_GIB = 2**30
IMPORTS = ("torch", "lightning", "litdata")
TIMEOUT = 300
"""Seconds: enough for a first import from a slow network disk."""


class TorchFacts(TypedDict, total=False):
    """What an imported torch says of itself and of the processor."""

    version: str
    cuda: str | None
    hip: str | None
    threads: int
    capability: str
    """Vector units of the processor that torch uses."""
    mps: bool
    precision: str
    """The default of `fit`."""
    cuda_error: str
    """Why CUDA does not start; absent where it does."""
    uncompiled: str
    """Why `torch.compile` does not work on the CPU; absent where it does."""


class DeviceFacts(TypedDict, total=False):
    """A GPU; nothing but name and error where it does not answer."""

    name: str
    memory: int
    free: int
    """Bytes, as `memory`."""
    capability: str
    bf16: bool
    error: str | None
    """Of a small matrix product."""


@dataclasses.dataclass
class Probe:
    """What the other process found."""

    imported: dict[str, float] = dataclasses.field(default_factory=dict)
    """Module -> seconds its import took."""
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Module -> the exception, in one line."""
    skipped: tuple[str, ...] = ()
    """Modules that must not be imported."""
    died: str | None = None
    """How the process ended, if not well."""
    torch: TorchFacts = dataclasses.field(default_factory=TorchFacts)
    """Empty where torch could not be imported."""
    devices: list[DeviceFacts] = dataclasses.field(default_factory=list)
    """GPUs."""


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
        died: str | None = None
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
    """Return the last line that is not empty: of a traceback, the exception."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


# ------------------------------------------------------------------ findings


def torch_build(probe: Probe) -> list[Finding]:
    """Compare what torch was built for with what the machine has."""
    facts = probe.torch
    if not facts:
        return []
    kind = (
        f"CUDA {facts['cuda']}"
        if facts["cuda"]
        else f"ROCm {facts['hip']}"
        if facts["hip"]
        else "CPU only"
    )
    found = (
        f"{facts['version']}, built for {kind}; `fit` computes in"
        f" {facts.get('precision', 'an unknown precision')} by default"
    )
    gpu = has_nvidia()
    if gpu and kind == "CPU only":
        advice = (
            f"to use it, install torch {facts['version'].split('+')[0]} from an index of CUDA"
            " builds: https://pytorch.org/get-started/locally"
        )
        return [
            Finding(
                "torch build",
                f"{found}; this machine has an NVIDIA GPU that it cannot use",
                "note",
                advice,
            )
        ]
    if gpu and "cuda_error" in facts:
        advice = (
            "update the NVIDIA driver, or install a torch built for the CUDA version that"
            " `nvidia-smi` shows; check CUDA_VISIBLE_DEVICES"
        )
        return [
            Finding(
                "torch build",
                f"{found}; CUDA does not start: {facts['cuda_error']}",
                "trouble",
                advice,
            )
        ]
    return [Finding("torch build", found)]


def devices(probe: Probe) -> list[Finding]:
    """Report each GPU."""
    if not probe.torch:
        return []
    if probe.died:
        return [
            Finding(
                "devices",
                f"asking torch for them: {probe.died}",
                "trouble",
                "see `nvidia-smi`; CUDA_VISIBLE_DEVICES= leaves the GPUs out",
            )
        ]
    if not probe.devices:
        return [Finding("devices", "mps" if probe.torch.get("mps") else "the CPU alone")]
    found = [_device(index, facts) for index, facts in enumerate(probe.devices)]
    if len(found) > 1:
        found.append(_together(probe.devices))
    return found


def _together(devices: Sequence[DeviceFacts]) -> Finding:
    """Say what mesh a run over all devices of the machine has."""
    count, kinds = len(devices), {facts["name"] for facts in devices}
    mesh = (
        f"trainer.devices auto takes all {count}: a mesh of dp_shard {count} under"
        " --trainer.strategy fsdp, DDP without; `parallel` divides them otherwise"
    )
    if len(kinds) > 1:
        return Finding(
            "mesh",
            f"{mesh}; they are of {len(kinds)} kinds",
            "note",
            "every step waits for the slowest: choose like ones by CUDA_VISIBLE_DEVICES",
        )
    return Finding("mesh", mesh)


def _device(index: int, facts: DeviceFacts) -> Finding:
    check, name = f"cuda:{index}", facts["name"]
    if facts["error"]:
        return Finding(
            check,
            f"{name}: {facts['error']}",
            "trouble",
            "install a torch that is built for this device, see torch build; or hide it by"
            " CUDA_VISIBLE_DEVICES",
        )
    found = (
        f"{name}, {facts['memory'] / _GIB:.1f} GiB ({facts['free'] / _GIB:.1f} free), capability"
        f" {facts['capability']}, {'bf16' if facts['bf16'] else 'no bf16'}"
    )
    peak = peak_flops(name, "bf16")
    if peak is None:
        return Finding(
            check,
            f"{found}, peak not known",
            "note",
            "no model-FLOPs utilisation will be reported; add the device to"
            " lit_pretrain/scaling/flops.py",
        )
    found += f", peak {peak / 1e12:,.0f} TFLOP/s in bf16"
    if facts["free"] < 0.8 * facts["memory"]:
        return Finding(
            check, found, "note", "another process holds part of its memory: see `nvidia-smi`"
        )
    return Finding(check, found)


def has_nvidia() -> bool:
    """Tell whether the machine has an NVIDIA GPU, without asking torch."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def processor(probe: Probe) -> list[Finding]:
    """Report the processor, and whether torch starts more threads than it has cores."""
    name, units = platform.processor() or platform.machine(), probe.torch.get("capability")
    cores, quota = usable_cores(), cgroup_cores()
    findings = [Finding("processor", name if units is None else f"{name}, torch uses {units}")]
    threads = probe.torch.get("threads")
    found = (
        f"{cores} of {os.cpu_count()} cores usable"
        + (f", limited to the time of {quota:.1f}" if quota else "")
        + (f"; torch uses {threads} threads" if threads else "")
    )
    allowed = max(1, round(min(cores, quota or cores)))
    if threads and threads > allowed:
        findings.append(
            Finding(
                "threads",
                found,
                "note",
                f"more threads than cores slow each other down: `export OMP_NUM_THREADS={allowed}`",
            )
        )
    else:
        findings.append(Finding("threads", found))
    return findings


def usable_cores() -> int:
    """Count the cores that the scheduler gives to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_cores(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Read how much processor time a container may use, in cores; None without a limit.

    torch counts cores and does not see the limit.
    """
    try:
        quota, period = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def compiler(probe: Probe) -> list[Finding]:
    """Report whether `torch.compile` can build its code for the CPU."""
    if not probe.torch:
        return []
    why = probe.torch.get("uncompiled")
    if why is None:
        return [Finding("C++ compiler", "torch.compile can build code for the CPU")]
    found = f"{why}; training on the CPU runs uncompiled and slower"
    advice = "install a compiler and Python's headers (Debian: `apt-get install g++ python3-dev`)"
    return [Finding("C++ compiler", found, "note", advice)]


# ------------------------------------------------------------------ the other process


def _inner(out: str, names: list[str]) -> None:
    """Write one line of JSON for each fact, so that a crash loses only what follows."""
    with open(out, "w", encoding="utf-8", buffering=1) as file:

        def tell(**fact: Any) -> None:
            file.write(json.dumps(fact) + "\n")

        for name in names:
            began = time.perf_counter()
            try:
                importlib.import_module(name)
            except Exception as error:  # doctor reports what is broken, whatever it raises
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
            "capability": torch.backends.cpu.get_cpu_capability(),
            "mps": torch.backends.mps.is_available(),
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if (torch.version.cuda or torch.version.hip) and not torch.cuda.is_available():
            try:
                torch.cuda.init()
            except Exception as error:  # doctor reports what is broken, whatever it raises
                tell(torch={"cuda_error": " ".join(str(error).split())})
    tell(torch={"precision": default_precision("auto")})
    if "lightning" in sys.modules:  # which the next import needs, and which may be hostile
        from lit_pretrain.stage.origin import can_compile

        if (why := can_compile(torch.device("cpu"))) is not None:
            tell(torch={"uncompiled": why})
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        tell(devices=_ask_device(index))


def _ask_device(index: int) -> DeviceFacts:
    import torch

    found: DeviceFacts = {"name": f"cuda:{index}", "error": None}
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
    except Exception as error:  # doctor reports what is broken, whatever it raises
        found["error"] = " ".join(str(error).split())
    return found


if __name__ == "__main__":
    _inner(sys.argv[1], sys.argv[2:])
