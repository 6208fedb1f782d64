"""Machine: torch's build, the devices, the processor, its memory and the compiler."""

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Optional

from lit_pretrain.cli.doctor.finding import Finding
from lit_pretrain.cli.doctor.probe import Probe, last_line
from lit_pretrain.scaling.hardware import peak_flops

_GIB = 2**30
CPU_FEATURES = (
    # name, the flags of /proc/cpuinfo of which one suffices (x86, then Arm)
    ("AVX2", {"avx2"}),
    ("AVX-512", {"avx512f"}),
    ("AMX", {"amx_tile"}),
    ("NEON", {"asimd"}),
    ("SVE", {"sve"}),
    ("bf16", {"avx512_bf16", "amx_bf16", "bf16"}),
)
# What the code that torch.compile writes for the CPU includes.
COMPILED = """
#include <Python.h>
#include <omp.h>
#include <cmath>
extern "C" int answer() { return omp_get_max_threads() + (int)std::sqrt(4.0); }
"""


def torch_build(probe: Probe) -> list[Finding]:
    """What torch was built for, against what the machine has."""
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
    """One finding for each GPU."""
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
    return [_device(index, facts) for index, facts in enumerate(probe.devices)]


def _device(index: int, facts: dict[str, Any]) -> Finding:
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
            " lit_pretrain/scaling/hardware.py",
        )
    found += f", peak {peak / 1e12:,.0f} TFLOP/s in bf16"
    if facts["free"] < 0.8 * facts["memory"]:
        return Finding(
            check, found, "note", "another process holds part of its memory: see `nvidia-smi`"
        )
    return Finding(check, found)


def has_nvidia() -> bool:
    """Whether the machine has an NVIDIA GPU, asked without torch."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def processor(probe: Probe) -> list[Finding]:
    """The CPU: what it can multiply fast, how many of its cores are ours, and the memory."""
    features = cpu_features()
    name = cpu_field("model name") or platform.processor() or platform.machine()
    known = (
        "features not known on this system"
        if features is None
        else ", ".join(features) or "no vector units"
    )
    cores, quota = usable_cores(), cgroup_cores()
    findings = [Finding("processor", f"{name}: {known}")]
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


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> Optional[list[str]]:
    """Names of the vector and matrix units; None where the system does not list them."""
    flags = cpu_field("flags", path) or cpu_field("Features", path)
    if flags is None:
        return None
    words = set(flags.split())
    return [name for name, flags_of in CPU_FEATURES if words & flags_of]


def cpu_field(name: str, path: Path = Path("/proc/cpuinfo")) -> Optional[str]:
    """The first value of a field of /proc/cpuinfo."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == name),
        None,
    )


def usable_cores() -> int:
    """Cores that the scheduler gives to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_cores(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> Optional[float]:
    """Processor time that a container may use, in cores; None without a limit. torch counts
    cores and does not see it.
    """
    try:
        quota, period = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def compiler() -> list[Finding]:
    """Whether `torch.compile` can build its CPU code: compiles what that code includes."""
    wanted = os.environ.get("CXX")
    names = [wanted] if wanted else ["g++", "clang++"]
    cxx = next((path for path in map(shutil.which, names) if path), None)
    cost = "training on the CPU runs uncompiled and slower"
    if cxx is None:
        return [
            Finding(
                "C++ compiler",
                f"{' or '.join(names)} not found; {cost}",
                "note",
                "install one (Debian: `apt-get install g++`), or set CXX",
            )
        ]
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "answer.cpp"
        source.write_text(COMPILED, encoding="utf-8")
        include = sysconfig.get_paths()["include"]
        command = [
            cxx,
            "-shared",
            "-fPIC",
            "-fopenmp",
            f"-I{include}",
            str(source),
            "-o",
            str(source.with_suffix(".so")),
        ]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return [
                Finding(
                    "C++ compiler",
                    f"{cxx} does not run: {error}; {cost}",
                    "note",
                    "mend or replace it, or set CXX to another",
                )
            ]
    if run.returncode:
        errors = [line for line in run.stderr.splitlines() if "error" in line] or [
            last_line(run.stderr)
        ]
        if "Python.h" in run.stderr:
            advice = "install Python's headers (Debian: `apt-get install python3-dev`)"
        elif "omp" in run.stderr:
            advice = "install OpenMP for it (Debian: `apt-get install libomp-dev`), or set CXX=g++"
        else:
            advice = "mend or replace it, or set CXX to another"
        return [
            Finding(
                "C++ compiler",
                f"{cxx} cannot build what torch.compile writes: {errors[0].strip()}; {cost}",
                "note",
                advice,
            )
        ]
    return [Finding("C++ compiler", f"{cxx} builds what torch.compile writes")]
