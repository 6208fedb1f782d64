"""Products in fp8: the matrices of blocks whose operands torchao rounds to eight bits in training.

Weights stay what they are and keep their names, so that optimizer and checkpoints know nothing of
it. Imported where it is asked for: torchao is an optional package.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import Float8Recipe, multiples_of_16
from lit_pretrain.model.layers import Linear, linear
from lit_pretrain.model.transformer import Transformer

_level = logging.root.manager.disable
logging.disable(logging.WARNING)  # torchao names the libraries that this machine has no use for
try:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.float8_linear import Float8Linear
finally:
    logging.disable(_level)

PROJECTIONS = (
    "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj",
    "feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj",
)  # fmt: skip
"""Matrices of a block that are converted; gates, routers and what else a block of the user's has
stay as they are."""


class Float8Projection(Float8Linear):  # type: ignore[misc]  # torchao need not be installed
    """A linear layer whose products, forward and backward, are in fp8 while it is trained.

    Without a gradient it computes what the plain layer does: validation, samples and rollouts see
    the network that is saved.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if not torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))  # torchao does so on a GPU only
        *shape, width = x.shape
        rows = x.reshape(-1, width)
        # The gradient of the weight is a sum over rows, whose number must be a multiple of 16.
        missing = -len(rows) % 16
        padded = F.pad(rows, (0, 0, 0, missing)) if missing else rows
        out: Tensor = super().forward(padded)
        return out[: len(rows)].reshape(*shape, -1)


def use_float8_(net: Transformer, recipe: Float8Recipe) -> str:
    """Let the matrices of a network's blocks multiply in fp8, in place.

    Args:
        net: A network, on the meta device or not.
        recipe: How operands are scaled.

    Returns:
        A line that names what is converted, and what is not and why.

    Raises:
        UserError: No matrix can be converted.
    """
    linears = {
        name: module for name, module in net.blocks.named_modules() if isinstance(module, nn.Linear)
    }
    left = {name: why for name, module in linears.items() if (why := _why_not(name, module))}
    converted = [name for name in linears if name not in left]
    if not converted:
        raise UserError(
            f"model.float8={recipe} finds no matrix that it could convert ({_listed(left)}): set"
            " model.net.width, n_head, head_dim and ffn_width so that they are, or leave"
            " model.float8 out"
        )
    convert_to_float8_training(
        net.blocks,
        module_filter_fn=lambda module, name: name not in left,
        config=Float8LinearConfig.from_recipe_name(recipe),
    )
    for name in converted:
        net.blocks.get_submodule(name).__class__ = Float8Projection
    kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in converted))
    return (
        f"float8: {recipe} products in {len(converted)} of {len(linears)} matrices of the blocks:"
        f" {kinds}" + (f"; not in {_listed(left)}" if left else "") + "; never in embeddings and"
        " head"
    )


def _why_not(name: str, module: nn.Linear) -> str | None:
    """Return why a linear layer is not converted; None if it is."""
    size = f"{module.in_features} × {module.out_features}"
    if type(module) not in (Linear, nn.Linear) or not name.endswith(PROJECTIONS):
        return f"{size}, not a projection of attention or feed-forward"
    if not multiples_of_16(module.in_features, module.out_features):
        return f"{size}, not multiples of 16"
    return None


def _listed(left: dict[str, str]) -> str:
    kinds = dict.fromkeys(f"{name.rpartition('.')[2]} ({why})" for name, why in left.items())
    return ", ".join(kinds)
