"""Say before a run what it takes: FLOPs, memory, time, money, and the loss to expect."""

import sys
from dataclasses import dataclass, field
from typing import Literal

from lit_pretrain.cli.command.verb import Verb


@dataclass
class PlanSettings:
    """Options of `lit_pretrain plan` that a run's config does not have."""

    device: str | None = None
    """Kind of the devices, as the driver names it or short: H100, "NVIDIA H200", MI300X, TPU v5p.
    Default: none, so no time and no limit of memory but what is given.
    """
    devices: int | None = None
    """Number of devices. Default: trainer.devices × trainer.num_nodes where they are numbers, else
    1, or as many as a given time requires.
    """
    mfu: float | None = None
    """Share of the peak that training reaches, in (0, 1]. Default: depends on the device."""
    dtype: Literal["fp8"] | None = None
    """Number format of the matrix products. Default: fp8 with model.float8, else that of
    trainer.precision.
    """
    tokens_per_second: float | None = None
    """Measured on one device, in place of peak × mfu: `fit` prints it. The way to plan on a CPU."""
    goodput: float | None = None
    """Share of the time in which training makes progress. Default: 0.9."""
    price: float | None = None
    """Dollars per device-hour. Default: none, and the plan names no cost."""
    dollars: float | None = None
    """Dollars to spend, in place of a length."""
    days: float | None = None
    """Wall-clock time in days, in place of a length. With a length, the plan solves for the number
    of devices, or with --devices for the goodput.
    """
    hours: float | None = None
    """Wall-clock time in hours, in place of days."""
    minutes: float | None = None
    """Training time, in place of a length, for which to choose the shape: layers, width and, with
    --datasets, the vocabulary. Steps are measured on this machine unless --device names another.
    """
    datasets: list[str] = field(default_factory=list)
    """For --minutes: more datasets of the same text, prepared with other vocabularies."""
    measure: bool = False
    """For --minutes: measure steps again, and forget what earlier calls have measured here."""
    memory_gib: float | None = None
    """Memory of one device in GiB (1024³ bytes). Default: depends on the device."""
    layout: Literal["given", "auto"] = "given"
    """auto: search the sizes of `parallel`, the micro-batch and activation checkpointing for the
    fastest layout that fits, in place of what the config says of them.
    """
    machine_devices: int = 8
    """Devices in a machine, for --layout auto."""
    network_gbits: float | None = None
    """Bandwidth between machines in Gbit/s for each device, for --layout auto. Default: what
    machines with such devices usually have.
    """
    head: Literal["chunked", "plain"] = "chunked"
    """Output head: chunked, as in `fit`, or plain, which keeps the logits of all tokens."""
    stage: Literal["pretrain", "sft", "dpo", "lora", "qlora"] | None = None
    """Kind of training: dpo adds a frozen reference, lora freezes the weights, qlora also stores
    them in four bits. Default: what the config trains.
    """
    lora_rank: int = 16
    """Rank of the adapter of every matrix of the blocks, where --stage is lora or qlora."""
    unique_tokens: float | None = None
    """Distinct training tokens. Default: those of the dataset at data.path, if there is one."""
    inference_tokens: float | None = None
    """Tokens that the model will read and write in its life. The plan then names the size that is
    cheapest to train and serve at the same loss.
    """
    law: str | None = None
    """Published law by name: besiroglu, besiroglu_lad, hoffmann, kaplan or muennighoff. Or a law of
    your own runs: the file that `lit_pretrain scaling fit ... --out FILE` has written. Default:
    besiroglu where it covers the run, as in `fit`; a law that is named also extrapolates.
    """
    png: str | None = None
    """File for a picture of the plan: memory by phase, and loss along the budget."""
    json: bool = False
    """Print the plan as JSON."""


HELP = """\
Say before a run what it takes: FLOPs, memory, time, money, and the loss to expect.

All options of `lit_pretrain fit` are read as well, from --config and the command line
(`lit_pretrain fit --help` lists them), such as --max_steps, --max_tokens, --max_flops,
--data.seq_len, --data.global_batch_tokens, --data.micro_batch_size, --trainer.precision,
--trainer.strategy, --model.net.width and --from. A config of a network's shape alone, without
data.path, is planned for the network's own sequence length.
"""


def main(argv: list[str]) -> int:
    """Run `lit_pretrain plan`."""
    if "-h" in argv or "--help" in argv:  # a topic is left to the parser of all options
        _print_help()
        return 0

    import json

    from lit_pretrain.cli.plan.layouts import choose_layout
    from lit_pretrain.cli.plan.question import PlanCLI, ask
    from lit_pretrain.cli.plan.show import draw_plan, plan_table
    from lit_pretrain.files import check_output
    from lit_pretrain.scaling.plan import make_plan

    cli = PlanCLI(argv)
    _refuse_without_minutes(cli.settings)
    if cli.settings.png is not None:
        check_output(cli.settings.png, f"--png={cli.settings.png}")
    if cli.settings.minutes is not None:
        from lit_pretrain.cli.plan.shapes import propose_shape, shapes_table

        proposal = propose_shape(cli, argv)
        as_json = cli.settings.json
        sys.stdout.write(
            json.dumps(proposal, indent=1) + "\n" if as_json else shapes_table(proposal)
        )
        return 0
    question = ask(cli, bare=not cli.names_data)
    if cli.settings.layout == "auto":
        question, layouts = choose_layout(cli, question)
        plan = make_plan(question)
        plan["layouts"] = layouts
    else:
        plan = make_plan(question)
    if cli.settings.png is not None:
        draw_plan(plan, cli.settings.png)
    sys.stdout.write(json.dumps(plan, indent=1) + "\n" if cli.settings.json else plan_table(plan))
    return 0


def _refuse_without_minutes(settings: PlanSettings) -> None:
    """Refuse the options of the choice of a shape where none is asked for."""
    from lit_pretrain.errors import UserError

    given = {"datasets": bool(settings.datasets), "measure": settings.measure}
    for name, value in given.items():
        if value and settings.minutes is None:
            raise UserError(f"--{name} is for --minutes, the time for which to choose the shape")


def _print_help() -> None:
    """Print a plan's own options; the parser of `fit` would import torch to list its own."""
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("plan", HELP)
    parser.add_class_arguments(PlanSettings)
    parser.print_help()


VERB = Verb(main, example="lit_pretrain plan --config configs/pretrain/quickstart.yaml")
