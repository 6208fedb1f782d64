"""Settings of a run as a whole: where it lives, how long it goes, how often it looks around."""

from dataclasses import dataclass
from typing import Optional


@dataclass
class RunSettings:
    """Options of `fit`, `posttrain` and `finetune` that belong to the run as a whole. Every
    "every" counts optimizer steps.
    """

    name: Optional[str] = None
    """Name of the run; its folder is <runs>/<name>. Default: the verb and the time."""
    runs: str = "runs"
    """Folder that holds the run folders."""
    resume: str = "never"
    """never: a new run. auto: go on from the newest complete checkpoint of the run, or start
    it. Or the path of one checkpoint.
    """
    fork: Optional[str] = None
    """A checkpoint whose whole state (weights, optimizer, place in the data) a new run goes on
    from, with its own schedule and length.
    """
    accept: tuple[str, ...] = ()
    """Fields in which the data may deliberately differ from the parent: tokenizer, vocabulary,
    bos_id, eos_id, template.
    """
    max_steps: Optional[int] = None
    """Length of the run in optimizer steps. At most one of max_steps, max_epochs, max_tokens and
    max_flops; with none, a run takes 100 steps of prepared text, or an epoch of rows.
    """
    max_epochs: Optional[float] = None
    """Length of the run in epochs of post-training data, rounded up to whole steps."""
    max_tokens: Optional[float] = None
    """Length of the run in input tokens, rounded up to whole steps."""
    max_flops: Optional[float] = None
    """Length of the run in training FLOPs (6 per matmul parameter and token, plus attention),
    rounded up to whole steps.
    """
    forecast: Optional[str] = None
    """What loss to expect, drawn beside the validation's in TensorBoard and compared in summary.md:
    a law of your own runs, kept by `lit_pretrain scaling fit ... --out FILE`, or a published one by
    name. Default: the published `besiroglu`, where it covers the run.
    """
    allow_oom: bool = False
    """Start even if the planned peak of memory is more than the device has; else such a run is
    refused before its weights are made.
    """
    log_every: int = 10
    """Steps between two lines of metrics."""
    validate_every: int = 100
    """Steps between two validations; there is always one at the end. 0: only that one."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; there is always one at the end. 0: only that one."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the one with the best validation is kept beside them."""
    sharded_checkpoints: bool = False
    """With strategy fsdp: one checkpoint folder written by all ranks, instead of one file
    gathered on rank 0.
    """
    sample_every: int = 0
    """Steps between two text samples; there are always some at the end. 0: only those."""
    sample_prompts: tuple[str, ...] = ("", "def ", "The ")
    """Prompts of the text samples."""
    sample_tokens: int = 96
    """Longest text sample in tokens."""
    evaluate_every: int = 0
    """Steps between two evaluations of evaluate_tasks; with tasks there is always one at the
    end. 0: only that one.
    """
    evaluate_tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, names or YAML files, measured in training as
    `lit_pretrain evaluate` does; keep them light.
    """
    evaluate_include: Optional[str] = None
    """A folder of more task files."""
    evaluate_limit: Optional[int] = 100
    """Only the first so many items of each task."""
