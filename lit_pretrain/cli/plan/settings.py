"""Settings: what a plan is asked beside the config of a run."""

from dataclasses import dataclass
from typing import Literal, Optional


@dataclass
class PlanSettings:
    """Options of `lit_pretrain plan` that a run's config does not have."""

    device: Optional[str] = None
    """Kind of the devices, as the driver names it or short: H100, "NVIDIA H200", MI300X, TPU v5p. Default: none, so no time and no limit of
    memory but what is given."""
    devices: Optional[int] = None
    """How many. Default: trainer.devices × trainer.num_nodes where they are numbers, else 1, or as many as a given time asks for."""
    mfu: Optional[float] = None
    """Share of the peak that training reaches, in (0, 1]. Default: by device, with its source."""
    tokens_per_second: Optional[float] = None
    """Measured on one device, in place of peak × mfu: `fit` prints it. The way to plan on a CPU."""
    goodput: Optional[float] = None
    """Share of the time in which training moves on. Default: 0.9."""
    price: Optional[float] = None
    """Dollars of a device for an hour. Default: none, and no money is computed."""
    dollars: Optional[float] = None
    """What may be spent, in place of a length."""
    days: Optional[float] = None
    """Wall-clock time, in place of a length; beside a length it asks for the number of devices, or with --devices for the goodput."""
    hours: Optional[float] = None
    """The same in hours."""
    memory_gib: Optional[float] = None
    """Memory of one device in GiB (1024³ bytes). Default: by device."""
    head: Literal["chunked", "plain"] = "chunked"
    """Output head: chunked is what `fit` runs; plain keeps the logits of all tokens."""
    stage: Literal["pretrain", "sft", "dpo", "lora", "qlora"] = "pretrain"
    """Kind of training: dpo adds a frozen reference, lora freezes the weights, qlora keeps them in four bits besides."""
    lora_rank: int = 16
    """Rank of the factors beside every matrix of the blocks, for lora and qlora."""
    unique_tokens: Optional[float] = None
    """Distinct training tokens. Default: those of the dataset at data.path, where there is one."""
    inference_tokens: Optional[float] = None
    """Tokens that the model will read and write in its life: what is cheapest to train and serve."""
    law: str = "besiroglu"
    """Published law by name: besiroglu, besiroglu_lad, hoffmann, kaplan or muennighoff. Or one of your own runs: the file that
    `lit_pretrain scaling fit ... --out FILE` has written."""
    png: Optional[str] = None
    """Where to draw it: memory by phase, and loss along the budget."""
