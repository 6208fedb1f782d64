"""Batch: the one contract that data, model, objective and stage share.

Axes: B rows of a micro-batch, T tokens of a row, P preference pairs, K tokens of a teacher.

The first five fields of every kind of batch are those of `Batch`, so that network, head and
per-source sums need not know which it is. `Batch` holds packed rows; in all others a row is one
padded sequence, laid out by these rules:

- The row holds the whole sequence s[0..n], its last token too: tokens[t] = s[t]. (A reward model
  reads its score there.)
- labels[t] = s[t + 1] where s[t + 1] belongs to the completion, the stop token included;
  IGNORE_INDEX in the prompt, at t = n and in the padding. The labels of the whole sequence (ORPO's)
  follow from tokens and doc.
- Padding is on the right. Its tokens are any valid id (the pad id), its labels IGNORE_INDEX, and
  its doc 1; the sequence has doc 0. So `doc_BT == 0` is the mask of the sequence, and attention
  never reads padding.
- A row that only fills up a batch has index -1, doc 1 and labels IGNORE_INDEX throughout; it counts
  nowhere, and neither does its pair.
- T may differ from micro-batch to micro-batch; a compiled stage makes a graph for each, so round it
  up (to `ROW_MULTIPLE`, or to seq_len).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lit_pretrain.batch_sizes import BatchSizes

IGNORE_INDEX = -100
"""The label of a position that is not supervised; the value torch's own losses ignore."""
ROW_MULTIPLE = 64
"""Padded rows are as long as a multiple of it, because a compiled step makes a graph for each
length, and because tensor parallelism divides them.
"""


class Batch(NamedTuple):
    """One micro-batch of packed rows: B rows, T tokens, all tensors on one device.

    A named tuple, so that Lightning, `pin_memory` and `torch.compile` take it apart and put it
    together without help.
    """

    tokens_BT: Tensor
    """Input token ids, int64."""
    labels_BT: Tensor
    """Target token ids, int64, already shifted: labels[t] follows tokens[t]; IGNORE_INDEX where
    unsupervised.
    """
    doc_BT: Tensor
    """Number of the document within its row (0, 1, 2, ...), int32. Attention does not cross it."""
    source_B: Tensor
    """Index of the row's source in the mixture, int64."""
    index_B: Tensor
    """Global sample number of the row in the data order, int64; -1 for a row that only pads a
    batch.
    """


class PreferenceBatch(NamedTuple):
    """P preference pairs as B = 2P padded sequences.

    Row i is the chosen answer, row i + P the rejected one to the same prompt.
    """

    tokens_BT: Tensor
    """Token ids of prompt and completion, int64."""
    labels_BT: Tensor
    """The completion, shifted as in `Batch`; IGNORE_INDEX in prompt and padding and after the
    last token.
    """
    doc_BT: Tensor
    """0 in the sequence, 1 in the padding, int32."""
    source_B: Tensor
    """Index of the row's source, int64; the same in both halves."""
    index_B: Tensor
    """Global sample number of the pair, int64, the same in both halves; -1 for a pair that only
    pads a batch.
    """
    ref_logp_B: Tensor | None = None
    """Summed log-probability of the row's labels under the reference, fp32 nats; None where the
    data holds no such column.
    """
    margin_P: Tensor | None = None
    """By how much the chosen answer is better, fp32, for a reward model with margins; None
    where the data holds no such column.
    """


class LabelledBatch(NamedTuple):
    """N completions with a verdict, for KTO, as B = 2N padded sequences.

    Row i (i < N) is prompt i with its own completion. Row i + N is prompt i with the completion of
    row i - 1 (for i = 0 of the last row that counts): the mismatched completions from which KTO
    estimates the divergence from the reference. N must be above 1.
    """

    tokens_BT: Tensor
    """Token ids of prompt and completion, int64."""
    labels_BT: Tensor
    """The completion, shifted as in `Batch`; IGNORE_INDEX in prompt and padding and after the
    last token.
    """
    doc_BT: Tensor
    """0 in the sequence, 1 in the padding, int32."""
    source_B: Tensor
    """Index of the source of the row's prompt, int64."""
    index_B: Tensor
    """Global sample number of the row's prompt, int64; -1 for a row that only pads a batch (and
    for its mismatched twin).
    """
    desirable_B: Tensor
    """Verdict on row i, bool; the second half repeats the first and is not read."""
    ref_logp_B: Tensor | None = None
    """Summed log-probability of the row's labels under the reference, fp32 nats; None where the
    data holds no such column.
    """


class StepwiseBatch(NamedTuple):
    """Answers in steps with a verdict on each, for a process reward model."""

    tokens_BT: Tensor
    """Token ids of the prompt and of the steps, each with its separator, int64."""
    labels_BT: Tensor
    """The last token of every judged step, shifted as in `Batch`; IGNORE_INDEX elsewhere."""
    doc_BT: Tensor
    """0 in the sequence, 1 in the padding, int32."""
    source_B: Tensor
    """Index of the row's source, int64."""
    index_B: Tensor
    """Global sample number of the answer, int64; -1 for a row that only pads a batch."""
    right_BT: Tensor
    """Verdict at the last token of every judged step, where its score is read and not shifted: 1
    if the step is right, 0 if it is wrong, IGNORE_INDEX elsewhere; int64.
    """


class PolicyBatch(NamedTuple):
    """B sampled completions with their advantages, for policy gradients.

    A row is one completion; a group shares its prompt.
    """

    tokens_BT: Tensor
    """Token ids of prompt and completion, int64."""
    labels_BT: Tensor
    """The sampled tokens, shifted as in `Batch`; IGNORE_INDEX where nothing was sampled and
    where nothing shall be learned.
    """
    doc_BT: Tensor
    """0 in the sequence, 1 in the padding, int32."""
    source_B: Tensor
    """Index of the source of the row's prompt, int64."""
    index_B: Tensor
    """Global sample number of the row's prompt, int64; -1 for a row that only pads a batch."""
    advantage_B: Tensor
    """How much better than its group the completion is, fp32."""
    reward_B: Tensor
    """Weighted sum of the rewards, fp32; for the metrics."""
    group_B: Tensor
    """Number of the row's group within the batch, int64, from 0; rows of a group stand in one
    micro-batch.
    """
    truncated_B: Tensor
    """Whether sampling ended at the length limit and not at a stop token, bool."""
    old_logp_BT: Tensor | None = None
    """Log-probability of each label under the policy that sampled it, 0 where ignored; None:
    on-policy, the network is that policy.
    """
    ref_logp_BT: Tensor | None = None
    """Log-probability of each label under the reference, 0 where ignored; None where it is not
    precomputed.
    """


class PromptBatch(NamedTuple):
    """P prompts for a rollout to answer, as rows padded up to where an answer begins.

    Nothing of them is supervised.
    """

    tokens_BT: Tensor
    """Token ids of the prompt, int64."""
    labels_BT: Tensor
    """IGNORE_INDEX throughout."""
    doc_BT: Tensor
    """0 in the prompt, 1 in the padding, int32."""
    source_B: Tensor
    """Index of the row's source, int64."""
    index_B: Tensor
    """Global sample number of the prompt, int64; -1 for a row that only pads a batch."""
    rows: tuple[Mapping[str, Any], ...]
    """The data row of each prompt, its checkable `answer` among it: what rewards look at. Empty
    for a row that only pads a batch.
    """


class DistillBatch(NamedTuple):
    """Packed rows, as in `Batch`, with the K likeliest tokens of a teacher at each label."""

    tokens_BT: Tensor
    """Input token ids, int64."""
    labels_BT: Tensor
    """Target token ids, int64, already shifted; IGNORE_INDEX where unsupervised."""
    doc_BT: Tensor
    """Number of the document within its row, int32."""
    source_B: Tensor
    """Index of the row's source, int64."""
    index_B: Tensor
    """Global sample number of the row, int64; -1 for a row that only pads a batch."""
    teacher_token_BTK: Tensor
    """The teacher's K likeliest tokens at each position, int64, distinct."""
    teacher_logp_BTK: Tensor
    """Their log-probabilities under the teacher's whole vocabulary, fp32."""


class Asking(NamedTuple):
    """How prompts are to be answered, and how their tokens become text."""

    group_size: int
    """Answers to each prompt."""
    updates: int
    """Optimizer steps that learn from the same answers."""
    max_prompt_tokens: int
    """No prompt is longer."""
    pad_id: int
    """What fills up rows."""
    stop_ids: frozenset[int]
    """An answer ends with one of them."""
    decode: Callable[..., str]
    """Text of token ids; with `special=True` special tokens are spelt, else left out; `before=`
    gives the ids of the prompt that they complete."""


AnyBatch = (
    Batch
    | PreferenceBatch
    | LabelledBatch
    | StepwiseBatch
    | PolicyBatch
    | PromptBatch
    | DistillBatch
)


class DataContract(NamedTuple):
    """What the data promises to a stage.

    The stage refuses a network or a parent that does not fit it.
    """

    sources: tuple[str, ...]
    """Names of the sources, in the order of `Batch.source_B`."""
    vocab_size: int
    """Number of token ids; every id is below it."""
    tokenizer_hash: str
    manifest_hash: str
    token_bytes: tuple[int, ...]
    """UTF-8 bytes that each token id stands for (0 for special tokens); bits per byte are
    computed from it.
    """
    seq_len: int
    """Inputs per row."""
    batch_tokens: BatchSizes
    """Inputs of every optimizer step, over all ranks and micro-batches."""
    provides: frozenset[str] = frozenset({"labels"})
    """What its batches hold: labels (rows to be learned as they are: Batch, DistillBatch), pairs
    (PreferenceBatch), verdicts (LabelledBatch), steps (StepwiseBatch), rollout (PolicyBatch) or
    prompts (rows to be answered); and of the optional columns ref_logp, margin and teacher. The
    stage checks it against what its objective needs, so that nobody learns rejected answers by
    cross-entropy.
    """
    asking: Asking | None = None
    """How its prompts are to be answered; None where it has none."""
