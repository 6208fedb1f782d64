"""Run length: steps, epochs, tokens or FLOPs, of which a run is given exactly one, as optimizer steps."""

import math

from jsonargparse import Namespace

from lit_pretrain.cli.data_choice import Data
from lit_pretrain.cli.parsed import training_flops
from lit_pretrain.errors import UserError

UNITS = ("max_steps", "max_epochs", "max_tokens", "max_flops")


def resolve_length(config: Namespace, data: Data) -> None:
    """Let `max_steps` say it, and nothing else.

    Args:
        config: Parsed config; it is changed.
        data: Its data.

    Raises:
        UserError: The length is given in no unit or in several, or is not positive.
    """
    given = {name: config[name] for name in UNITS if config[name] is not None}
    if not given and data.usual_steps is not None:
        given = {"max_steps": data.usual_steps}
    if len(given) != 1:
        raise UserError(f"give exactly one of max_steps, max_epochs, max_tokens and max_flops; found {given or 'none'}")
    name, value = next(iter(given.items()))
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value} must be positive and finite")
    if name == "max_steps":
        steps = int(value)
    elif name == "max_epochs":
        steps = data.steps_of(value)
    else:
        tokens = value / training_flops(config, seq_len=data.seq_len) if name == "max_flops" else value
        steps = math.ceil(tokens / data.tokens_per_step)
    config.max_steps = steps
    config.max_epochs = config.max_tokens = config.max_flops = None
