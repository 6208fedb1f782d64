"""BaseData: the interface of every data module, which commands use without knowing its class."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning as L

from lit_pretrain.batch import Asking, DataContract
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.data_lineage import DataRecord
from lit_pretrain.skips import Skips
from lit_pretrain.step_size import Division, StepSize
from lit_pretrain.tokenizer.tokenizer import Tokenizer


class RowPart(NamedTuple):
    """A document within a row of a micro-batch."""

    begin: int
    """Its first place in the row."""
    end: int
    """The place after its last one."""
    origin: str
    """Where it comes from: file and row, as far as they are known."""


class BaseData(L.LightningDataModule, ABC):
    """Samples in an order that is a pure function of the step, so no loader state is ever saved.

    A data module yields one Lightning batch, a list of micro-batches, per optimizer step. A class
    of its own implements what is abstract here; the other members have defaults.
    """

    unit: ClassVar[str] = "rows"
    """What messages call the samples."""
    default_steps: ClassVar[int | None] = None
    """Length of a run whose config gives none."""
    default_epochs: ClassVar[float | None] = None
    """The same in epochs; without both, a run requires a length."""
    micro_batch_is_fixed: ClassVar[bool] = False
    """Whether the loss depends on the micro-batch size, so that it must never be lowered."""
    scaling_laws_apply: ClassVar[bool] = False
    """Whether published scaling laws, which are fitted to pretraining on text, can forecast the
    loss of a network that starts from random weights.
    """

    seq_len: int
    """Inputs per row, T."""
    micro_batch_size: int
    """Samples that one device processes at once."""
    devices_together: int = 1
    """Devices that read the same rows (parallel.cp × parallel.tp); set by whoever knows."""
    sequences_per_row: int = 1
    """Sequences that the network sees for each sample."""
    updates: int = 1
    """Number of consecutive optimizer steps that read the same samples."""
    skips: Skips = Skips()
    """Optimizer steps whose samples training leaves out; whole groups of `updates` steps."""

    # ------------------------------------------------------------------ identity

    @property
    @abstractmethod
    def location(self) -> str:
        """Where the data lies, for messages and records."""

    @property
    @abstractmethod
    def sources(self) -> list[str]:
        """Names of the sources, in the order of `Batch.source_B`."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the token ids."""

    @property
    @abstractmethod
    def manifest_hash(self) -> str:
        """Identity of the data: two modules with the same hash hold the same samples."""

    @property
    def template_hash(self) -> str | None:
        """Identity of the chat template; None without one."""
        return None

    @property
    def tokenizer_hash(self) -> str:
        """Identity of the tokenizer."""
        return self.tokenizer.hash

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.tokenizer.vocab_size

    @property
    @abstractmethod
    def provides(self) -> frozenset[str]:
        """What the batches hold, as `DataContract.provides` names it."""

    @property
    def asking(self) -> Asking | None:
        """How prompts are to be answered; None unless the samples are prompts."""
        return None

    @property
    def longest_prompt(self) -> int | None:
        """Most tokens of a prompt that is answered within a step; None without prompts."""
        return None

    @property
    def contract(self) -> DataContract:
        """What this data promises to a stage."""
        return DataContract(
            sources=tuple(self.sources),
            vocab_size=self.vocab_size,
            tokenizer_hash=self.tokenizer_hash,
            manifest_hash=self.manifest_hash,
            token_bytes=tuple(int(n) for n in self.tokenizer.token_bytes()),
            seq_len=self.seq_len,
            batch_tokens=self.batch_tokens,
            provides=self.provides,
            asking=self.asking,
        )

    @abstractmethod
    def record(self) -> DataRecord:
        """Return what the lineage of a run says of this data."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write to a run's folder what its network needs to read and write text."""

    def check_files(self) -> None:
        """Refuse data whose files are not on this machine, before any of them is read.

        A plan needs sizes only, so it is made for data that is still elsewhere.

        Raises:
            UserError: Names the first file that is missing.
        """

    # ------------------------------------------------------------------ size of a step and a run

    @property
    @abstractmethod
    def step_sizes(self) -> tuple[StepSize, ...]:
        """The different sizes that an optimizer step has over all devices, mostly one."""

    @property
    @abstractmethod
    def batch_tokens(self) -> BatchSizes:
        """Inputs of every optimizer step over all devices."""

    def divide(self, devices: int) -> tuple[Division, ...]:
        """Divide the steps over devices: a division for each of `step_sizes`.

        Raises:
            UserError: The samples of a step do not divide evenly.
        """
        return tuple(
            size.divide(
                devices,
                self.micro_batch_size,
                fixed=self.micro_batch_is_fixed,
                together=self.devices_together,
            )
            for size in self.step_sizes
        )

    def lower_micro_batch(self, devices: int) -> list[str]:
        """Lower the micro-batch to the largest that a step on some devices has.

        Returns:
            Why, for each size of a step that has a smaller one than was asked for.

        Raises:
            UserError: The samples of a step do not divide evenly.
        """
        asked, divisions = self.micro_batch_size, self.divide(devices)
        self.micro_batch_size = max(division.micro_batch_size for division in divisions)
        sizes = zip(self.step_sizes, divisions, strict=True)
        lowered = [size.lowered(division, asked) for size, division in sizes]
        return [said for said in lowered if said is not None]

    @property
    def batch_settings(self) -> dict[str, int | None]:
        """Settings of the batch as this module takes them, for the config that a run saves."""
        return {"micro_batch_size": self.micro_batch_size}

    @abstractmethod
    def batch_line(self, devices: int) -> str:
        """Describe the size of a step in words."""

    @abstractmethod
    def epochs(self, steps: int) -> float:
        """Return how many epochs a run of `steps` optimizer steps reads."""

    @abstractmethod
    def steps_of(self, epochs: float) -> int:
        """Return how many optimizer steps a number of epochs takes.

        Raises:
            UserError: This data has no common epoch.
        """

    @abstractmethod
    def check_length(self, steps: int) -> None:
        """Refuse a run of `steps` optimizer steps that this data cannot feed.

        Raises:
            UserError: Says what runs out.
        """

    def why_other_batches(
        self, saved: Mapping[str, Any], now: Mapping[str, Any], *, step: int
    ) -> str | None:
        """Say why a change of the batch is none of the steps after a checkpoint alone.

        Args:
            saved: The `data` config of the run of the checkpoint.
            now: The `data` config of the run that goes on from it.
            step: The optimizer step of the checkpoint.

        Returns:
            The reason; None where the steps before it have the same sizes in both.
        """
        return "rows are read in steps of one size; a schedule of the batch is for prepared text"

    def check_fork(
        self, saved: Mapping[str, Any], now: Mapping[str, Any], *, step: int, checkpoint: str
    ) -> None:
        """Refuse a fork whose settings would have read other samples before its first step.

        What both leave out is in `skips`.

        Args:
            saved: The `data` config of the run that is forked.
            now: The `data` config of the fork.
            step: The optimizer step of the checkpoint.
            checkpoint: Its path, for the message.

        Raises:
            UserError: Says which settings keep the order.
        """

    # ------------------------------------------------------------------ what users read

    @abstractmethod
    def exposure(self, steps: int) -> str:
        """Describe what a run of `steps` optimizer steps reads, as lines to print before it."""

    def remarks(self) -> list[str]:
        """Return warnings on what these rows cannot teach, to give before and after a run."""
        return []

    def unique_tokens(self, steps: int) -> int | None:
        """Count the distinct training tokens that a run reads; None if this data does not tell."""
        return None

    @abstractmethod
    def describe(self, samples: Sequence[int]) -> str:
        """Name the rows of a few samples, for a message about a step."""

    def row_parts(self, batch: Any) -> list[list[RowPart]]:
        """Return the documents in each row of a training micro-batch, padding left out.

        By default a row is one document, known by the number of its sample.
        """
        length = batch.tokens_BT.shape[1]
        return [[RowPart(0, length, f"sample {n}")] for n in batch.index_B.tolist()]

    @abstractmethod
    def step_batches(self, step: int, rows: int) -> list[Any]:
        """Return the first samples of an optimizer step, as micro-batches."""

    def row_note(self, batch: Any, row: int) -> str:
        """Say what a row of a micro-batch is among the others of its sample; empty if it is alone.

        Args:
            batch: A micro-batch of this data.
            row: Number of the row in it.
        """
        return ""

    @property
    @abstractmethod
    def tokenizer_advice(self) -> str | None:
        """What to change when the tokenizer is not the parent's; None if only other data helps."""

    # ------------------------------------------------------------------ instances

    def leave_out(self, skips: Skips) -> None:
        """Leave the samples of some optimizer steps out of the order."""
        self.skips = skips.whole(self.updates)

    def share(self, other: "BaseData") -> None:
        """Take over what another instance with the same settings has already read."""
        self.skips = other.skips
