"""Say before a run what it takes: FLOPs, memory, time, money, and the loss to expect."""

import sys

from lit_pretrain.cli.command.verb import Verb


def main(argv: list[str]) -> int:
    """Run `lit_pretrain plan`."""
    from lit_pretrain.cli.plan.plan_config import describes_data, parse, plan_parser

    parser = plan_parser(__doc__ or "")
    config, optimizer = parse(parser, argv)

    import json

    from lit_pretrain.cli.plan.question import ask
    from lit_pretrain.cli.plan.show import plan_table
    from lit_pretrain.scaling.plan import make_plan

    plan = make_plan(ask(config, optimizer=optimizer, bare=not describes_data(argv)))
    if config.png is not None:
        from lit_pretrain.cli.plan.show import draw_plan

        draw_plan(plan, config.png)
    sys.stdout.write(json.dumps(plan, indent=1) + "\n" if config.json else plan_table(plan))
    return 0


VERB = Verb(main, example="lit_pretrain plan --config configs/pretrain/quickstart.yaml")
