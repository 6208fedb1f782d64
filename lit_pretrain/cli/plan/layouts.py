"""Choose the layout of a plan: search the meshes, take the best, and say why the others lose."""

from __future__ import annotations

import dataclasses

from jsonargparse import Namespace

from lit_pretrain.cli.plan.question import PlanCLI
from lit_pretrain.cli.train.auto_parallel import find_layouts
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import CHECKPOINTING
from lit_pretrain.scaling.flops import Utilization
from lit_pretrain.scaling.layout_search import LayoutCandidate, LayoutSearch
from lit_pretrain.scaling.plan import Assumption, LayoutChoice, LayoutsReport, Question
from lit_pretrain.scaling.step_time import EXPOSED, Cluster
from lit_pretrain.step_size import counted

_SHOWN = 3
"""Layouts that are shown, with what each costs."""
_PARTS = {
    "products": "matrix products", "attention": "attention", "elementwise": "element-wise work",
    "tp": "exchanging activations over tp", "cp": "gathering keys and values over cp",
    "sharding": "gathering weights and scattering gradients",
    "copies": "summing gradients over copies", "optimizer": "the update of whole matrices",
}  # fmt: skip


def choose_layout(cli: PlanCLI, question: Question) -> tuple[Question, LayoutsReport]:
    """Answer for the fastest layout that fits.

    Returns:
        The question with this layout and its speed, and what the search has found.

    Raises:
        UserError: Devices, their number or their memory are not given, the parallel sizes are, or
            nothing fits.
    """
    q, settings = question, cli.settings
    given = cli.given.get("parallel")
    if isinstance(given, Namespace) and any(value is not None for value in vars(given).values()):
        raise UserError("--layout auto chooses the sizes of `parallel`: leave them out")
    if q.device is None or q.devices is None or q.limit is None:
        raise UserError(
            "--layout auto needs the kind of the devices and their number: --device H100 --devices"
            " 512"
        )
    if q.stage != "pretrain":
        raise UserError(
            f"--layout auto knows the time of a step of pretraining; the config plans {q.stage}"
        )
    network = None if settings.network_gbits is None else settings.network_gbits * 1e9 / 8
    cluster = Cluster.of(q.device, q.dtype, machine=settings.machine_devices, network=network)
    found = find_layouts(cli.config, q.net, q.layout, cluster, devices=q.devices, limit=q.limit)
    best = found.fitting[0]
    mfu = best.mfu(q.net, _peak(q))
    replaced = ("MFU", "micro-batch", "data.micro_batch_size")
    noted = [assumption for assumption in q.assumptions if assumption.what not in replaced]
    rates = cluster.rates
    noted.append(
        Assumption(
            "time of a step",
            f"products {rates.products:.0%} and attention {rates.attention:.0%} of the peak, memory"
            f" {rates.memory / 1e12:.3g} TB/s, links {rates.link / 1e9:.3g} GB/s within"
            f" {counted(cluster.machine, 'devices')} and {rates.network * 8e-9:.3g} Gbit/s for each"
            f" beyond, {EXPOSED:.0%} of the sharding's communication not hidden",
            f"{rates.source}: python scripts/step_time.py",
        )
    )
    choice = dataclasses.replace(
        q, layout=best.layout, assumptions=tuple(noted),
        mfu=Utilization(mfu, "the layout's step") if q.tokens_per_second is None else None,
    )  # fmt: skip
    return choice, _report(found, q)


def _report(found: LayoutSearch, q: Question) -> LayoutsReport:
    best = found.fitting[0]
    return {
        "tried": found.tried,
        "best": [_choice(c, q) for c in found.fitting[:_SHOWN]],
        "slower": [
            {
                "mesh": other.axes.described,
                "relative": other.tokens_per_second / best.tokens_per_second,
                "why": _why(other, best),
            }
            for other in _examples(found.fitting[_SHOWN:])
        ],
        "too_large": [
            {"mesh": other.axes.described, "bytes": other.bytes} for other in found.too_large
        ],
    }


def _peak(q: Question) -> float:
    """Return the peak that the plan's MFU is a share of."""
    peak = None if q.device is None else q.device.peak(q.dtype)
    assert peak is not None  # else there is no cluster
    return peak


def _choice(candidate: LayoutCandidate, q: Question) -> LayoutChoice:
    layout, axes = candidate.layout, candidate.axes
    return {
        "mesh": axes.described,
        "parallel": axes._asdict(),
        "micro_batch_size": layout.rows // layout.group,
        "micro_batches": candidate.micro_batches,
        "activation_checkpointing": layout.checkpointing,
        "tokens_per_second_per_device": candidate.tokens_per_second,
        "mfu": candidate.mfu(q.net, _peak(q)),
        "bytes": candidate.bytes,
        "seconds": candidate.time._asdict(),
    }


def _examples(others: list[LayoutCandidate]) -> list[LayoutCandidate]:
    """Return the fastest of the meshes that use the same axes."""
    shown: dict[tuple[bool, ...], LayoutCandidate] = {}
    for other in others:
        shown.setdefault(tuple(size > 1 for size in other.axes), other)
    return list(shown.values())


def _why(other: LayoutCandidate, best: LayoutCandidate) -> str:
    """Name the part of a step that costs a layout most beyond what it costs the best one."""
    here, there = _seconds_per_row(other), _seconds_per_row(best)
    worst = max(here, key=lambda name: here[name] - there[name])
    modes = [CHECKPOINTING.index(each.layout.checkpointing) for each in (other, best)]
    if worst in ("products", "attention", "elementwise") and modes[0] > modes[1]:
        return "its activations only fit when more of them are computed again"
    share = here[worst] / sum(here.values())
    return f"{share:.0%} of its step goes into {_PARTS[worst]}"


def _seconds_per_row(candidate: LayoutCandidate) -> dict[str, float]:
    """Divide the seconds of each part by the rows that a device answers for."""
    layout = candidate.layout
    rows = layout.rows * candidate.micro_batches / layout.together
    return {name: seconds / rows for name, seconds in candidate.time._asdict().items()}
