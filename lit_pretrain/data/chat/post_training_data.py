"""PostTrainingData: the base class of data modules that render rows by a chat template.

A row is read from a file, split by its content, compared with evaluation sets and encoded once;
samples of encoded rows then follow in an order that is a pure function of the step.
"""

import dataclasses
import datetime
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import DataLoader

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.chat.messages import TrainingRow
from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.chat.render import Renderer, Truncation
from lit_pretrain.chat.template import ChatTemplate, find_template
from lit_pretrain.data.batches import (
    PAD_ROW,
    StepSampler,
    held_out_batches,
    make_loader,
    replica_of,
)
from lit_pretrain.data.chat.detection import AUTO
from lit_pretrain.data.chat.encoded_rows import (
    EncodedRows,
    RowDecontamination,
    as_decontaminate,
    read_encoded,
)
from lit_pretrain.data.chat.row_source import (
    OnBadRow,
    RowSource,
    RowTally,
    as_sources,
    check_source_files,
    check_sources,
    rows_identity,
    with_formats,
)
from lit_pretrain.data.chat.samples import FILLER, EncodedSample, RowSamples, Samples
from lit_pretrain.data.data_module import BaseData, RowPart
from lit_pretrain.data_lineage import DataRecord, SourceRecord
from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig, DecontaminationRecord
from lit_pretrain.errors import UserError
from lit_pretrain.files import canonical_hash
from lit_pretrain.skips import Skips
from lit_pretrain.step_size import StepSize
from lit_pretrain.tokenizer.tokenizer import Tokenizer

Settings = Mapping[str, str | int]
"""Settings by name."""


class PostTrainingData(BaseData):
    """Rows of several files, rendered by a chat template.

    Args:
        sources: Files of rows by name.
        path: A single file, in place of `sources`.
        format: Format of that file; auto finds it from the fields of the rows.
        fields: Part of a row -> field of that file that holds it, if it differs from the format's.
        ignore: Fields of that file, or of its messages, to leave out on purpose; a field that holds
            text and that nobody reads is refused otherwise.
        tokenizer: A tokenizer.json or a folder that holds one; null takes the parent's.
        add_tokens: Special tokens to add to the tokenizer, such as <|im_start|>; the network gets
            rows for them. The same as --tokenizer.add.
        template: A preset (chatml, qwen3, llama3.1, ...), a file or a folder; auto takes the one
            beside the tokenizer, else chatml.
        template_options: Further variables of the template, such as {enable_thinking: false};
            `date` fixes the date that a template shows.
        learn_after_stop: Learn the white space that a template puts behind the stop token within
            its generation block, too, as TRL does with its training templates.
        seq_len: Most tokens of a row.
        truncation: How to shorten a row that exceeds `seq_len`. keep_start drops its end, keep_end
            its beginning; drop leaves it out and counts it.
        global_batch_rows: Rows per optimizer step over all devices; micro-batches are accumulated
            to reach it.
        micro_batch_size: The most rows that one device processes at once; it is lowered where it
            does not divide a device's rows of a step.
        validation: Share of the rows held out for validation, by a hash of their content.
        test: Share of the rows held out for `lit_pretrain test`.
        val_rows: Held-out rows of each source used by a validation; null uses all.
        on_bad_row: What to do with a row that is a mistake. refuse stops with an error that names
            it; drop leaves it out and counts it.
        decontaminate: Evaluation sets of which no row may hold an item. Only on these sets can a
            score of the run be called clean.
        seed: Seed of the order.
    """

    default_epochs: ClassVar[float | None] = 1.0
    kind: ClassVar[str]
    """Kind of row: conversation, preference, verdict, stepwise or problem."""

    def __init__(
        self,
        sources: dict[str, RowSource] | None = None,
        path: str | None = None,
        format: str = "messages",
        fields: dict[str, str] | None = None,
        ignore: list[str] | None = None,
        tokenizer: str | None = None,
        add_tokens: list[str] | None = None,
        template: str = "auto",
        template_options: dict[str, Any] | None = None,
        learn_after_stop: bool = False,
        seq_len: int = 1024,
        truncation: Truncation = "keep_start",
        global_batch_rows: int | None = 32,
        micro_batch_size: int = 4,
        validation: float = 0.05,
        test: float = 0.0,
        val_rows: int | None = 512,
        on_bad_row: OnBadRow = "refuse",
        decontaminate: DecontaminateConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.row_sources = as_sources(
            sources, path=path, format=format, fields=fields, ignore=ignore
        )
        for name, value in (
            ("seq_len", seq_len),
            ("micro_batch_size", micro_batch_size),
            ("global_batch_rows", global_batch_rows),
        ):
            if value is not None and value < 1:
                raise UserError(f"data.{name}={value} must be at least 1")
        if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
            raise UserError(
                f"data.validation={validation} and data.test={test} are shares: not negative,"
                " together below 1"
            )
        if truncation not in ("keep_start", "keep_end", "drop"):
            raise UserError(f"data.truncation={truncation!r} must be keep_start, keep_end or drop")
        self.tokenizer_path = tokenizer
        self.add_tokens = tuple(add_tokens or ())
        self.template_name = template
        # YAML reads a date as such; the identity of the data takes text.
        self.template_options = template_options and {
            name: str(value) if isinstance(value, datetime.date) else value
            for name, value in template_options.items()
        }
        self.learn_after_stop = learn_after_stop
        self.seq_len = seq_len
        self.truncation: Truncation = truncation
        self.global_batch_rows = global_batch_rows
        self.micro_batch_size = micro_batch_size
        self.validation = validation
        self.test = test
        self.val_rows = val_rows
        self.on_bad_row: OnBadRow = on_bad_row
        self.decontaminate = as_decontaminate(decontaminate)
        self.seed = seed
        check_sources(self.row_sources)

    def check_files(self) -> None:
        """Refuse rows whose files are not on this machine."""
        check_source_files(self.row_sources)

    # ------------------------------------------------------------------ what subclasses define

    @abstractmethod
    def encode(self, rows: Sequence[TrainingRow]) -> Sequence[Any]:
        """Encode rows for `collate`; in place of one that cannot be used, return its `BadRow`."""

    def places(self, item: Any) -> int:
        """Count the tokens of a pack that an encoded row takes."""
        return 1

    @property
    def capacity(self) -> int | None:
        """Tokens of a pack; None if every row is a sample of its own."""
        return None

    @abstractmethod
    def collate(self, samples: Sequence[EncodedSample]) -> list[Any]:
        """Turn samples into micro-batches."""

    def note(self, row: TrainingRow, item: Any, tally: RowTally) -> None:
        """Count facts about a row that is used."""
        tally.noted.update(row.notes)
        tally.noted.update(self.renderer.unread_fields(row.spoken()))
        if row.tools and not self.template.shows_tools:
            tally.noted["tools_not_shown"] += 1

    def settings(self) -> Settings:
        """Return further settings that decide the numbers, for the identity of the data."""
        return {}

    # ------------------------------------------------------------------ identity

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; its absence is a user's mistake."""
        if self.tokenizer_path is None:
            raise UserError(
                "data.tokenizer is not set and there is no parent (--from) to take it from: name a"
                " tokenizer.json or its folder"
            )
        return Tokenizer.load(self.tokenizer_path).extended(self.add_tokens)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template."""
        assert self.tokenizer is not None
        return find_template(self.template_name, self.tokenizer_path or ".")

    @cached_property
    def renderer(self) -> Renderer:
        """Turns conversations into tokens."""
        if self.template.needs_date and "date" not in (self.template_options or {}):
            raise UserError(
                f"the template {self.template.name} shows the date of today, so that the same rows"
                " would be others tomorrow; fix it: data.template_options '{date: 2025-12-31}'"
            )
        return Renderer(
            self.tokenizer,
            self.template,
            options=self.template_options,
            after_stop=self.learn_after_stop,
        )

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order of `source_B`."""
        return list(self.row_sources)

    @cached_property
    def read_sources(self) -> dict[str, RowSource]:
        """The sources with the names of their formats, found from the rows for `auto`."""
        return with_formats(self.row_sources, self.kind)

    @cached_property
    def manifest_hash(self) -> str:
        """Identity of the data: content of the files, how rows are read, split and rendered."""
        return canonical_hash(
            {
                "kind": self.kind, "sources": rows_identity(self.read_sources),
                "tokenizer": self.tokenizer.hash, "template": self.template.hash,
                "options": self.template_options, "seq_len": self.seq_len,
                "truncation": self.truncation, "validation": self.validation,
                "test": self.test, "on_bad_row": self.on_bad_row, **self.settings(),
                **({"learn_after_stop": True} if self.learn_after_stop else {}),
                **({} if self.decontamination is None else {"gate": self.decontamination.identity}),
            }
        )  # fmt: skip

    @cached_property
    def decontamination(self) -> RowDecontamination | None:
        """Compares rows with evaluation sets; None if the config names no set."""
        return (
            RowDecontamination(self.decontaminate)
            if self.decontaminate is not None and self.decontaminate.against
            else None
        )

    @property
    def template_hash(self) -> str | None:
        """Identity of the chat template."""
        return self.template.hash

    @property
    def pad_id(self) -> int:
        """Token id of the padding, which is never a label."""
        return self.tokenizer.special_tokens.get("<|pad|>", self.tokenizer.eos_id)

    @property
    def rows(self) -> int:
        """Samples per optimizer step over all devices."""
        return self.step_size.rows

    @property
    def location(self) -> str:
        """Where the data lies."""
        return ", ".join(
            source.path or f"{name} (made)" for name, source in self.row_sources.items()
        )

    @property
    def batch_tokens(self) -> BatchSizes:
        """Tokens of every optimizer step over all devices; an upper bound where rows are padded."""
        return BatchSizes.one(self.rows * self.seq_len * self.sequences_per_row)

    # ------------------------------------------------------------------ rows

    @cached_property
    def encoded(self) -> EncodedRows:
        """All rows, read and encoded at the first access.

        Raises:
            UserError: A file or row is a mistake, or no training row is left.
        """
        return read_encoded(
            self.read_sources,
            kind=self.kind,
            validation=self.validation,
            test=self.test,
            on_bad_row=self.on_bad_row,
            encode=self.encode,
            note=self.note,
            decontamination=self.decontamination,
        )

    @cached_property
    def samples(self) -> RowSamples:
        """The rows as numbered samples."""
        weights = {name: source.weight for name, source in self.row_sources.items()}
        return RowSamples(
            self.encoded,
            weights=weights,
            places=self.places,
            capacity=self.capacity,
            seed=self.seed,
            skips=self.skips.over(self.updates).times(self.rows),
        )

    def held_out(self, split: str) -> list[EncodedSample]:
        """Return the samples of a held-out split.

        Raises:
            UserError: The split is empty.
        """
        samples = self.samples.held_out(
            split, limit=self.val_rows if split == "validation" else None
        )
        if not samples:
            setting = "data.validation" if split == "validation" else "data.test"
            raise UserError(
                f"no row is held out for the {split}: raise {setting} ({getattr(self, split)} of"
                f" {sum(tally.read for tally in self.encoded.tallies.values())} rows), or give a"
                " source a validation_path"
            )
        return samples

    # ------------------------------------------------------------------ size of a step and a run

    @property
    def step_size(self) -> StepSize:
        """Size of an optimizer step over all devices.

        Raises:
            UserError: The config does not state it.
        """
        if self.global_batch_rows is None:
            raise UserError("data.global_batch_rows must be set")
        return StepSize(self.global_batch_rows, unit=self.unit)

    @property
    def step_sizes(self) -> tuple[StepSize, ...]:
        """The size of all optimizer steps over all devices."""
        return (self.step_size,)

    def batch_line(self, devices: int) -> str:
        """Describe the size of a step in words."""
        division = self.divide(devices)[0].text(self.unit)
        return f"{self.rows} {self.unit} of at most {self.seq_len} tokens a step = {division}"

    def epochs(self, steps: int) -> float:
        """Return how many epochs a run of `steps` optimizer steps reads."""
        return self.samples.order.in_epochs(math.ceil(steps / self.updates) * self.rows)

    def steps_of(self, epochs: float) -> int:
        """Return how many optimizer steps a number of epochs takes; the last is filled up."""
        return math.ceil(self.samples.order.until(epochs) / self.rows) * self.updates

    def check_length(self, steps: int) -> None:
        """Refuse a run without a row to validate on; rows repeat, so any length can be fed.

        Raises:
            UserError: A row is a mistake, or none is held out.
        """
        self.held_out("validation")

    def exposure(self, steps: int) -> str:
        """Describe what a run reads, as lines to print before it."""
        lines = self.row_lines()
        lines.append(
            f"template {self.template.name} ({self.template.hash[:12]}),"
            f" {self.samples.order.first(1):,} {self.unit} an epoch"
        )
        return "\n".join(lines)

    def row_lines(self) -> list[str]:
        """Describe how the rows of each source were read, and what became of them."""
        lines = [
            f"{name}: the format is {self.read_sources[name].format}, by the fields of its rows"
            for name, source in self.row_sources.items()
            if source.format == AUTO and source.path is not None
        ]
        return lines + self.encoded.lines()

    def describe(self, samples: Sequence[int]) -> str:
        """Name file and number of the rows of a few samples."""
        found = [origin for n in samples[:16] for origin in self.samples.origins(n)]
        more = f" and {len(samples) - 16} more {self.unit}" if len(samples) > 16 else ""
        return ", ".join(found) + more

    def row_parts(self, batch: Any) -> list[list[RowPart]]:
        """Return the data rows in each row of a training micro-batch; padding belongs to none."""
        found = []
        for doc_T, n in zip(batch.doc_BT.tolist(), batch.index_B.tolist(), strict=True):
            begins = [t for t in range(len(doc_T)) if t == 0 or doc_T[t] != doc_T[t - 1]]
            ends = [*begins[1:], len(doc_T)]
            origins = self.samples.origins(n) if n >= 0 else []
            found.append([RowPart(*its) for its in zip(begins, ends, origins, strict=False)])
        return found

    def step_batches(self, step: int, rows: int) -> list[Any]:
        """Return the first samples of an optimizer step, as micro-batches."""
        first = step // self.updates * self.rows
        return self.collate(
            [self.samples.train(n) for n in range(first, first + min(rows, self.rows))]
        )

    def save(self, folder: Path) -> None:
        """Write tokenizer and template to a run's folder."""
        ModelTokenizer(self.tokenizer, self.template).save(folder)

    @property
    def tokenizer_advice(self) -> str:
        """What to change when the tokenizer is not the parent's."""
        return "Leave data.tokenizer out to take the parent's."

    def record(self) -> DataRecord:
        """Return what the lineage of a run says of this data; reads the rows if need be."""
        self.encoded  # noqa: B018  (evaluation items are counted while rows are read)
        decontamination = () if self.decontamination is None else self.decontamination.records()
        return rows_record(self.location, self.manifest_hash, self.read_sources, decontamination)

    def leave_out(self, skips: Skips) -> None:
        """Leave the samples of some optimizer steps out of the order."""
        super().leave_out(skips)
        self.__dict__.pop("samples", None)  # the length of a run may have asked for them already

    def share(self, other: BaseData) -> None:
        """Take over what another instance with the same settings has already read."""
        super().share(other)
        for name in (
            "tokenizer",
            "template",
            "renderer",
            "read_sources",
            "manifest_hash",
            "decontamination",
            "encoded",
            "samples",
        ):
            if name in other.__dict__:
                self.__dict__[name] = other.__dict__[name]

    # ------------------------------------------------------------------ loaders

    def setup(self, stage: str) -> None:
        """Read all rows, so that mistakes in them are found before the first step."""
        self.renderer  # noqa: B018  (cached: a template that does not fit is found here)
        self.encoded  # noqa: B018  (cached: so are mistakes in rows)

    def _loader(self, at: Callable[[int], EncodedSample], batches: Any) -> DataLoader[Any]:
        # No workers: the rows are in memory already, and copying them between processes costs more.
        return make_loader(Samples(at), batches, self.collate, trainer=self.trainer)

    def train_dataloader(self) -> DataLoader[Any]:
        """Yield one batch per optimizer step, from the trainer's step on, without end."""
        assert self.trainer is not None
        rank, replicas = replica_of(self.trainer)
        self.lower_micro_batch(replicas * self.devices_together)  # a run has done so already
        sampler = StepSampler(
            batch=BatchSizes.one(self.rows),
            rank=rank,
            world_size=replicas,
            first_step=self.trainer.global_step,
            updates=self.updates,
        )
        return self._loader(self.samples.train, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Yield the rows held out for validation."""
        return self._held_loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """Yield the rows held out for the test."""
        return self._held_loader("test")

    @property
    def held_out_at_once(self) -> int:
        """Number of held-out samples in a batch of one device."""
        return self.micro_batch_size

    def _held_loader(self, split: str) -> DataLoader[Any]:
        samples = self.held_out(split)
        rank, replicas = replica_of(self.trainer)
        batches = held_out_batches(
            len(samples), size=self.held_out_at_once, rank=rank, replicas=replicas
        )
        return self._loader(lambda n: samples[n] if n != PAD_ROW else FILLER, batches)


def rows_record(
    location: str,
    data_hash: str,
    sources: Mapping[str, RowSource],
    decontamination: Iterable[DecontaminationRecord],
) -> DataRecord:
    """Describe rows: their sources and the evaluation sets that they were compared with."""
    identity = rows_identity(sources)
    described: dict[str, SourceRecord] = {
        name: {
            "kind": "rows" if source.path else "made",
            "format": identity[name]["format"],
            "path": source.path,
            "sha256": identity[name]["sha256"],
        }
        for name, source in sources.items()
    }
    return {
        "where": location,
        "hash": data_hash,
        "sources": described,
        "gate": [dataclasses.asdict(record) for record in decontamination],
    }
