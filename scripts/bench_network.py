"""The network that benchmarks of single parts of a step are measured on, and its options."""

import argparse

import torch

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer


def network_options(
    description: str | None, *, rows: int, rows_help: str = ""
) -> argparse.Namespace:
    """Parse the shape of the network and of its input; the defaults are the quickstart's."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rows", type=int, default=rows, help=rows_help)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def make_network(options: argparse.Namespace) -> Transformer:
    """Make a network of this shape; its weights are the same every time."""
    torch.manual_seed(0)
    net = Transformer(
        ModelConfig(
            vocab_size=options.vocabulary, n_layer=options.layers, width=options.width,
            n_head=max(1, options.width // 64), max_seq_len=options.length,
        )
    )  # fmt: skip
    net.reset_parameters(torch.Generator().manual_seed(0))
    if options.compile:
        net.compile_blocks()
    return net
