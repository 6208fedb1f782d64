"""The config of the engine: what runs the tasks. Nothing here changes the result."""

from dataclasses import dataclass, field
from typing import Literal, Optional


@dataclass(kw_only=True)
class RayConfig:
    """Engine ray."""

    address: Optional[str] = None
    """Of a running cluster, or `auto`. Default: the one that RAY_ADDRESS names, else one on this machine for the time of the run."""
    memory_gb: float = 2.0
    """Memory that a task reserves, GB."""


@dataclass(kw_only=True)
class SlurmConfig:
    """Engine slurm: every stage is a job array; this process waits for it, on a machine that has `sbatch`."""

    partition: Optional[str] = None
    """See `sinfo`."""
    time: str = "04:00:00"
    """Time limit of a task."""
    memory_gb: int = 4
    """Memory of a task, GB."""
    qos: Optional[str] = None
    """Quality of service, where the cluster has them."""
    environment: Optional[str] = None
    """Command that activates the Python environment on the nodes. Default: the directory of this Python comes first in PATH."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """More options of sbatch, e.g. `{account: mine}`."""


@dataclass(kw_only=True)
class EngineConfig:
    """What runs the tasks."""

    engine: Literal["local", "ray", "slurm"] = "local"
    """local: processes of this machine. ray, slurm: a cluster whose machines see the inputs and `out` under the same paths."""
    workers: int = 1
    """Tasks at a time."""
    ray: RayConfig = field(default_factory=RayConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
