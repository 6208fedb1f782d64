"""Origin: the weights that a stage starts from, and which of them it trains."""

from typing import Optional

import torch
from torch.distributed.device_mesh import DeviceMesh

from lit_pretrain.adapter import LoRA, freeze_
from lit_pretrain.checkpoint.network import model_config
from lit_pretrain.checkpoint.parent import find_parent
from lit_pretrain.checkpoint.weights import identity, load_weights
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.stage.frozen import Frozen


class Origin:
    """Random weights of a seed or those of a parent, with an adapter or some of them frozen.

    Args:
        config: Shape of the network.
        seed: Of what is drawn: all weights without a parent, those of the adapter, and whatever the parent lacks.
        parent: A run, a checkpoint or a Hugging Face folder.
        adapter: What is trained beside the frozen network, if anything.
        freeze: Regular expressions over names of parameters that are not trained.
    """

    def __init__(self, config: ModelConfig, *, seed: int, parent: Optional[str], adapter: Optional[LoRA], freeze: tuple[str, ...]) -> None:
        self.config = config
        self.seed = seed
        self.parent = parent
        self.adapter = adapter
        self.freeze = freeze
        self.base_hash: Optional[str] = None
        """Identity of the weights beneath the adapter, on the ranks that have filled a network."""

    def fill_base(self, net: Transformer) -> None:
        """Give a whole, unsharded network the weights that training starts from."""
        net.reset_parameters(torch.Generator().manual_seed(self.seed))
        if self.parent is not None:
            load_weights(net, self.parent)

    def fill(self, net: Transformer) -> None:
        """The same, with the adapter."""
        self.fill_base(net)
        if self.adapter is not None:
            assert self.parent is not None
            self.base_hash = identity(self.parent)
        self.adapt(net)

    def adapt(self, net: Transformer) -> None:
        """Decide what is trained."""
        if self.adapter is not None:
            self.adapter.apply(net, torch.Generator().manual_seed(self.seed))
        elif self.freeze:
            freeze_(net, self.freeze)

    def name(self) -> str:
        """What decides the weights without an adapter: those of the parent, or the seed and the shape."""
        return identity(self.parent) if self.parent is not None else f"seed {self.seed} of {self.config}"

    def frozen(self, where: Optional[str], *, mesh: Optional[DeviceMesh], device: torch.device) -> Frozen:
        """A network that is only read, from somewhere; None: of the weights that training starts from, without an adapter.

        Raises:
            UserError: It has another vocabulary.
        """
        config = self.config
        if where is not None:
            config = model_config(find_parent(where).shape)
            if config.vocab_size != self.config.vocab_size:
                raise UserError(
                    f"{where} has {config.vocab_size} token ids and the network has {self.config.vocab_size}: log-probabilities over other "
                    "vocabularies cannot be compared; use a network with the same tokenizer and model.net.vocab_size"
                )

        def fill(net: Transformer) -> None:
            if where is None:
                self.fill_base(net)
            else:
                load_weights(net, where)

        return Frozen(config, fill, mesh=mesh, device=device)
