"""Coordinate check: how much a network's outputs move in a few steps, by its width and its depth.

Rates transfer where they move alike at every width and depth (Yang et al. 2022, "Tensor Programs
V", section 8). Each network makes the same steps on the same tokens; then the change of what its
parts put out on other tokens since the first weights is measured.

Axes: B rows, T tokens, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.parameter_scales import parameter_scales, transferred_shape
from lit_pretrain.model.transformer import Block, Transformer
from lit_pretrain.optim import OptimizerRecipe
from lit_pretrain.optim.transferred_groups import transfer_groups_
from lit_pretrain.roles import parameter_roles
from lit_pretrain.transfer import StepFactors, Transfer

Part = Literal["attention", "feed-forward", "stream", "logits"]
PARTS: tuple[Part, ...] = ("attention", "feed-forward", "stream", "logits")
"""What all attentions of a network add to the stream together, what all its feed-forwards add, the
stream behind the last block, and the logits.
"""
FOLLOWERS = 8
"""Tokens that may follow a token of the made text."""


@dataclass(frozen=True)
class Steps:
    """The steps that every network makes."""

    steps: int = 10
    rows: int = 8
    length: int = 64
    vocab_size: int = 1024
    seed: int = 0


def resized(config: ModelConfig, transfer: Transfer | None, width: int, depth: int) -> ModelConfig:
    """Return a network of another size, as the config's would be made larger.

    Heads keep their size and grow in number, unless the transfer says that their size differs from
    the base's (`base_head_dim`); query heads for each key and value head stay, unless it says so of
    those (`base_n_kv_head`).

    Raises:
        UserError: The width is no whole number of heads, or has heads of no whole size.
    """
    larger = transfer is not None and transfer.base_head_dim is not None
    grows = config.head_size if larger else config.n_head
    grown, left = divmod(grows * width, config.width)
    if left:
        what = (
            f"cannot be divided into {config.n_head} heads of one whole size"
            if larger
            else f"is no whole number of heads of {config.head_size} channels, as the config has"
        )
        raise UserError(
            f"a network of width {width} {what}: choose --widths and --width in multiples of"
            f" {config.width // math.gcd(config.width, grows)}"
        )
    n_head, head_dim = (config.n_head, grown) if larger else (grown, config.head_size)
    n_kv_head = config.n_kv_head
    if n_kv_head is not None and (transfer is None or transfer.base_n_kv_head is None):
        wanted = max(1, n_head * n_kv_head // config.n_head)
        n_kv_head = max(n for n in range(1, wanted + 1) if n_head % n == 0)
    return replace(
        config,
        width=width,
        n_layer=depth,
        n_head=n_head,
        n_kv_head=n_kv_head,
        head_dim=head_dim,
        ffn_width=max(1, round(config.ffn_size * width / config.width)),
    )


def made_tokens(steps: Steps) -> Tensor:
    """Draw the tokens of all steps, and of the text on which is measured, last.

    A chain with frequent and rare tokens and few followers each, so that there is something to
    learn about single tokens and about pairs.

    Returns:
        Tokens of shape (steps + 1, B, T + 1).
    """
    draw = torch.Generator().manual_seed(steps.seed)
    size = steps.vocab_size
    frequency_V = 1 / torch.arange(1, size + 1, dtype=torch.float64)  # Zipf's law
    followers = torch.multinomial(frequency_V.repeat(size, 1), FOLLOWERS, generator=draw)
    rows = (steps.steps + 1) * steps.rows
    token_R = torch.multinomial(frequency_V, rows, replacement=True, generator=draw)
    columns = [token_R]
    for _ in range(steps.length):
        choice_R = torch.randint(FOLLOWERS, (rows,), generator=draw)
        columns.append(followers[columns[-1], choice_R])
    return torch.stack(columns, dim=1).view(steps.steps + 1, steps.rows, -1)


def changes(
    config: ModelConfig,
    recipe: OptimizerRecipe,
    transfer: Transfer | None,
    steps: Steps,
    clip_norm: float | None = None,
) -> dict[Part, float]:
    """Train a network for a few steps and measure how much its parts' outputs have moved.

    Args:
        config: Its shape.
        recipe: How its weights are updated, at the peak of the rates.
        transfer: The base that its rates follow from; None for the rates as they are.
        steps: The steps.
        clip_norm: Largest global gradient norm.

    Returns:
        Root mean square of the change, by part.
    """
    shape = replace(
        config, vocab_size=steps.vocab_size, max_seq_len=max(steps.length, config.max_seq_len),
        dropout=0.0, attention="matmul",
    )  # fmt: skip
    shape = transferred_shape(shape, transfer)
    with torch.device("meta"):
        net = Transformer(shape)
    net.to_empty(device="cpu")
    net.reset_parameters(torch.Generator().manual_seed(steps.seed), transfer)
    roles, named = parameter_roles(net), list(net.named_parameters())
    optimizer = recipe.build(named, roles)
    if transfer is not None:
        scales = parameter_scales(shape, transfer, roles)
        transfer_groups_(optimizer, recipe, named, scales, StepFactors())
    *training, held_out_BT = made_tokens(steps)
    before = _outputs(net, held_out_BT[:, :-1])
    for tokens_BT in training:
        optimizer.zero_grad(set_to_none=True)
        logits_BTV = net.logits(net(tokens_BT[:, :-1]))
        F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        optimizer.step()
    after = _outputs(net, held_out_BT[:, :-1])
    return {part: float((after[part] - before[part]).square().mean().sqrt()) for part in PARTS}


@torch.no_grad()
def _outputs(net: Transformer, tokens_BT: Tensor) -> dict[Part, Tensor]:
    sums: dict[Part, list[Tensor]] = {part: [] for part in PARTS}

    def keep(part: Part) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: sums[part].append(output)

    handles = []
    for block in net.blocks:
        assert isinstance(block, Block)
        handles.append(block.attention.register_forward_hook(keep("attention")))
        handles.append(block.feed_forward.register_forward_hook(keep("feed-forward")))
    handles.append(net.blocks[-1].register_forward_hook(keep("stream")))
    sums["logits"].append(net.logits(net(tokens_BT)))
    for handle in handles:
        handle.remove()
    return {part: torch.stack(outputs).sum(dim=0) for part, outputs in sums.items()}


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Fit the exponent of a power law by least squares of the logarithms."""
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())
