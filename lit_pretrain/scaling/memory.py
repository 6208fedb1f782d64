"""Peak memory of one device in each phase of a step, and changes that lower it.

The peak is counted from the shape, the batch and the layout of the run.

Symbols: t tokens of a micro-batch on one device, d width, k and q sizes of all key and query heads,
f feed-forward, V vocabulary, n layers, w devices over which state is sharded.

The peak is the largest of three phases: the loss (all activations and the head's), the backward
pass of a block (activations go, gradients come), and the update. Which one is largest depends on
the shape, so all three are counted. A network that answers prompts before it learns has a fourth
phase: the keys and values of the answers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lit_pretrain.model.config import (
    Checkpointing,
    ModelConfig,
    count_parameters,
    kept_within,
    products_of,
)
from lit_pretrain.roles import ROLES, Role
from lit_pretrain.step_size import largest_divisor

Sharding = Literal["none", "ddp", "fsdp"]
# The values of lit_pretrain.objective.linear_cross_entropy, repeated here because a plan does not
# import torch. A test compares them.
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
CHUNK_TOKENS = {"cpu": (256, 1024), "cuda": (1024, 16384)}
TILE_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a four-bit weight, with its share of the scales (Dettmers et al. 2023, section 3)."""


@dataclass(frozen=True)
class Answering:
    """The prompts that the network answers at once, with the defaults of `sample_completions`."""

    rows: int
    """Answers generated at once."""
    prompts: int
    """Distinct prompts among them; the network reads each once."""
    prompt_tokens: int
    """Length of the longest prompt."""
    new_tokens: int
    """Length of the longest answer."""

    def fewer(self, rows: int) -> Answering:
        """Reduce the answers at once to `rows`; the answers to a prompt stay together."""
        group = self.rows / self.prompts
        return dataclasses.replace(
            self, rows=rows, prompts=min(self.prompts, rows, math.ceil((rows - 1) / group) + 1)
        )


@dataclass(frozen=True)
class Layout:
    """How a run is laid out on its devices. The defaults are those of `fit`."""

    rows: int
    """Rows of a micro-batch on one device."""
    seq_len: int
    """Tokens of a row."""
    group: int = 1
    """Rows that one row of data becomes: two for a pair, one per answer for a prompt."""
    step_rows: int | None = None
    """Rows of data in an optimizer step over all devices; None where the step is not known. Of
    several sizes it is the step that takes the most memory.
    """
    common_rows: int | None = None
    """What the rows of all steps are a multiple of, where they have several sizes."""
    devices: int = 1
    sharding: Sharding = "none"
    """none: one device. ddp: all state on every device. fsdp: state in parts (FSDP2: blocks
    gathered one by one, the root kept).
    """
    copies: int = 1
    """Copies of the sharded network (parallel.dp_replicate)."""
    cp: int = 1
    """Devices that share the tokens of a row (parallel.cp)."""
    tp: int = 1
    """Devices that share every matrix (parallel.tp)."""
    precision: str = "bf16-mixed"
    """bf16-mixed: fp32 weights and moments, bf16 products under autocast. bf16-true: bf16
    throughout. 32-true: fp32 throughout. bf16-policy: fp32 state, gathered and computed in bf16
    (FSDP2's MixedPrecisionPolicy, as torchtitan trains).
    """
    float8: bool = False
    """The products of the blocks' matrices are in fp8."""
    compiled: bool = True
    """Compiled, a norm is one kernel and casts are shared; uncompiled, every product casts its own
    input.
    """
    fused_norm: bool = True
    """An uncompiled norm on CUDA is one kernel; on a CPU it is composed of several operations and
    keeps fp32 intermediates.
    """
    head: Literal["chunked", "plain"] = "chunked"
    """chunked: the forward pass computes the head's gradients chunk by chunk. plain: the logits of
    all tokens exist at once, in fp32 three times.
    """
    checkpointing: Checkpointing = False
    """What every block keeps beside its input: False for everything."""
    optimizer_moments: Mapping[Role, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 2))
    """Tensors that the optimizer keeps for a parameter of each role: `OptimizerRecipe.moments`."""
    moment_bytes: int | None = None
    """Bytes of a number in them; None for those of a stored weight: `OptimizerRecipe.moment_bytes`.
    """
    averaged: bool = False
    """The optimizer also keeps a moving average of what is trained."""
    accumulates: bool = False
    """A step has several micro-batches: gradients exist while the next one runs forward."""
    moments: bool = True
    """False for the first step, before the optimizer has state."""
    trainable: float = 1.0
    """Share of the parameters that train; the others have neither gradients nor moments."""
    added: int = 0
    """Trained parameters that an adapter such as LoRA adds; replicated, in fp32."""
    frozen: int = 0
    """Parameters of other networks that only run forward: a reference (DPO), a teacher."""
    quantized: int = 0
    """Parameters of the network that are stored in four bits (QLoRA) and do not train."""
    answering: Answering | None = None
    """The network answers prompts in each step, with a cache of keys and values (GRPO)."""
    device: Literal["cpu", "cuda"] = "cuda"

    @property
    def tokens(self) -> int:
        """Count the tokens of a micro-batch that attention's queries have on one device."""
        return self.rows * self.seq_len // self.cp

    @property
    def together(self) -> int:
        """Count the devices that read the same rows."""
        return self.cp * self.tp

    @property
    def micro_batches(self) -> int | None:
        """Count the micro-batches of each device in a step; None where the step is not known."""
        if self.step_rows is None:
            return None
        groups = self.devices // self.together
        return self.step_rows * self.group // (self.rows * groups)

    @property
    def divided_rows(self) -> int | None:
        """Return the rows that devices must divide; None where the step is not known."""
        return self.step_rows if self.common_rows is None else self.common_rows

    @property
    def shards(self) -> int:
        """Count the parts into which state is sharded, by FSDP and tensor parallelism together."""
        return self.devices // self.copies if self.sharding == "fsdp" else 1

    @property
    def state_bytes(self) -> int:
        """Return the bytes of a stored weight."""
        return 2 if self.precision.endswith("-true") and not self.precision.startswith("32") else 4

    @property
    def compute_bytes(self) -> int:
        """Return the bytes of an operand of a matrix product."""
        return 4 if self.precision.startswith("32") else 2

    @property
    def residual_bytes(self) -> int:
        """Return the bytes of an element of the residual stream.

        Under autocast the stream stays in fp32, because the embedding is.
        """
        return 4 if self.precision.endswith("-mixed") else self.compute_bytes

    @property
    def gathered_bytes(self) -> int:
        """Return the bytes of a weight that FSDP has gathered."""
        return self.compute_bytes if self.precision == "bf16-policy" else self.state_bytes

    @property
    def reduced_bytes(self) -> int:
        """Return the bytes of an element of a gradient on its way to other devices."""
        return self.state_bytes


class States(NamedTuple):
    """Bytes that stay on a device from step to step, and the gradients."""

    parameters: float
    gradients: float
    moments: float
    buckets: float
    """DDP's copy of the gradients."""
    reference: float
    """Weights of a reference or a teacher, which are only read."""


class Peak(NamedTuple):
    """Bytes at the peak of each phase."""

    states: States
    activations: float
    """Bytes that all blocks keep at the end of the forward pass."""
    loss: float
    backward: float
    optimizer: float
    answers: float = 0.0
    """Peak while the network answers prompts; 0 where it answers none."""

    @property
    def phases(self) -> dict[str, float]:
        """Return the bytes of each phase by its name."""
        found = {"loss": self.loss, "block backward": self.backward, "optimizer": self.optimizer}
        return found | ({"answers": self.answers} if self.answers else {})

    @property
    def bytes(self) -> float:
        """Return the peak of the step."""
        return max(self.phases.values())

    @property
    def phase(self) -> str:
        """Name the phase with the peak of the step."""
        phases = self.phases
        return max(phases, key=lambda name: phases[name])


def parameters_by_role(config: ModelConfig) -> dict[Role, int]:
    """Count the parameters of each role that the network of a shape has."""
    counts, table = count_parameters(config), config.vocab_size * config.width
    value_layers = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
    values = value_layers * config.vocab_size * config.kv_heads * config.head_size
    found: dict[Role, int] = {
        "matrix": counts.matmul - table,
        "embedding": counts.embedding - values,
        "value_embedding": values,
        "head": 0 if config.tie_embeddings else table,
        "scalar": config.n_layer if config.residual_scalars else 0,
        "embedding_scalar": config.n_layer
        * (config.residual_scalars + (config.bigram_rows is not None))
        + config.width * config.smear,
    }
    return found | {"vector": counts.total - sum(found.values())}


def states(config: ModelConfig, layout: Layout) -> States:
    """Count the bytes of weights, gradients and moments on one device."""
    counts, size, w = count_parameters(config), layout.state_bytes, layout.shards
    trained = counts.total * layout.trainable
    kept = layout.optimizer_moments
    tensors = sum(count * kept[role] for role, count in parameters_by_role(config).items())
    average = counts.total * size if layout.averaged else 0
    moments = (tensors * (layout.moment_bytes or size) + average) * layout.trainable
    added_moments = layout.added * (
        kept["adapter"] * (layout.moment_bytes or 4) + (4 if layout.averaged else 0)
    )
    added = layout.added * 4
    gradients = trained * size / w + added
    return States(
        parameters=((counts.total - layout.quantized) * size + layout.quantized * NF4_BYTES) / w
        + added,
        gradients=gradients,
        moments=moments / w + added_moments if layout.moments else 0.0,
        buckets=gradients if layout.sharding == "ddp" else 0.0,
        reference=layout.frozen * size / w,
    )


def block_activations(config: ModelConfig, layout: Layout) -> float:
    """Count the bytes that one block keeps for its backward pass, averaged over unlike layers.

    Tensor parallelism divides everything but the inputs of the projections, for which the tokens
    of all its devices are gathered.
    """
    t, d, f = layout.tokens, config.width, config.ffn_size
    q, k = config.n_head * config.head_size, config.kv_heads * config.head_size
    c, r = layout.compute_bytes, layout.residual_bytes
    # Autocast caches casts of weights, not of activations.
    per_linear = r != c and not layout.compiled
    inputs = (5 if config.gated else 4) if per_linear else 2
    # The residual at both norms, and the inputs of the projections.
    gathered = inputs * c * t * d
    kept: float = 2 * r * t * d
    # Queries, keys, values, heads, and the scores' log-sum-exp.
    # Where devices share rows, they gather the keys and values of whole rows.
    kept += c * t * (2 * q + 2 * k * layout.cp) + 4 * t * config.n_head
    # Compiled, the backward pass recomputes the activation from its input.
    kept += c * t * f * ((4 if config.gated else 3) - layout.compiled)
    kept += 2 * _norm_extra(config, layout)
    if config.qk_norm:
        kept += c * t * (q + k)
    if config.residual_scalars:
        kept += r * t * d
    if config.bigram_rows is not None:
        kept += r * t * d / config.n_layer  # one for all blocks
    if config.smear:
        kept += 2 * r * t * d / config.n_layer  # the earlier embedding, before and after its norm
    if config.value_embeddings != "none":
        layers = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
        kept += (c * t * k + c * t * config.gate_channels) * layers / config.n_layer
    if config.dropout:
        kept += 2 * t * d
    if r != c and not layout.float8:
        # Autocast's copies of the weights are saved for the backward pass, compiled or not. Weights
        # in four bits are restored again instead, and those for fp8 rounded again.
        kept += c * max(0.0, _block_parameters(config) - layout.quantized / config.n_layer)
    return float(gathered + kept / layout.tp)


def kept_for_recomputation(config: ModelConfig, layout: Layout) -> float:
    """Count the bytes that a block keeps beside its input where it computes the rest again."""
    if isinstance(layout.checkpointing, bool) or layout.checkpointing == "offload":
        return 0.0
    t, c = layout.tokens, layout.compute_bytes
    q, k = config.n_head * config.head_size, config.kv_heads * config.head_size
    kept = c * t * q + 4 * t * config.n_head  # heads, and the scores' log-sum-exp
    if not isinstance(layout.checkpointing, str):
        chosen = kept_within(config, layout.checkpointing)
        matrices = products_of(config, value_gate=False)
        outputs = sum(matrices[name][1] for name in chosen.products)
        return float((kept * chosen.attention + c * t * outputs) / layout.tp)
    if layout.checkpointing == "products":
        d, f = config.width, config.ffn_size
        sides = [q, k, k, d, f, *([f] if config.gated else []), d]
        kept += c * t * sum(sides[::2])
    return float(kept / layout.tp)


def _norm_extra(config: ModelConfig, layout: Layout) -> float:
    """Count the bytes that a norm of several operations keeps beside its input."""
    if layout.compiled or layout.fused_norm:
        return 0.0
    td = layout.tokens * config.width
    # In half precision the input in fp32 (4) and the normalised value before its gain (2); in fp32
    # the normalised value.
    return float(6 * td if layout.residual_bytes == 2 else 4 * td)


def _block_parameters(config: ModelConfig) -> float:
    return (count_parameters(config).matmul - config.vocab_size * config.width) / config.n_layer


def offloaded(config: ModelConfig, layout: Layout) -> float:
    """Count the bytes of a micro-batch that wait in the memory of the device's host."""
    if layout.checkpointing != "offload":
        return 0.0
    boundary = layout.residual_bytes * layout.tokens * config.width / layout.tp
    return config.n_layer * boundary


def peak(config: ModelConfig, layout: Layout) -> Peak:
    """Compute the peak of each phase on one device.

    What the driver, communication and fragmentation take is not included.

    The backward pass is followed block by block. While block i runs, the activations of blocks 1 to
    i exist, the gradients of the blocks above are complete, the previous gradient is being reduced
    and the next block is being gathered.
    """
    s = states(config, layout)
    t, d, f, n = layout.tokens, config.width, config.ffn_size, config.n_layer
    c, r, g, w = layout.compute_bytes, layout.residual_bytes, layout.gathered_bytes, layout.shards
    sharded = layout.sharding == "fsdp"
    tp = layout.tp
    block, boundary = block_activations(config, layout), r * t * d / tp
    on_device = 0.0 if layout.checkpointing == "offload" else boundary
    least = on_device + kept_for_recomputation(config, layout)
    activations = n * (least if layout.checkpointing else block)
    root_parameters = count_parameters(config).total - n * _block_parameters(config)
    root = root_parameters * g / tp if sharded else 0.0
    held = s.parameters + s.moments + s.buckets + s.reference
    loss = (
        held
        + (s.gradients if layout.accumulates else 0.0)
        + root
        + activations
        + _head(config, layout)
    )

    block_gradient = _block_parameters(config) * layout.state_bytes * layout.trainable
    # The head's gradient is not reduced before the embedding's, which comes last.
    head_gradient = config.vocab_size * d * g * layout.trainable / tp
    # Within a block: the upstream gradient, two gradients of feed-forward width, and a weight's
    # gradient or a weight restored from four bits.
    weight = c * d * f * (layout.trainable > 0 or layout.quantized > 0)
    within = r * t * d + (2 * c * t * f + weight) / tp
    backward = 0.0
    for i in range(n, 0, -1):
        kept = i * (least if layout.checkpointing else block) + (
            block + boundary - on_device if layout.checkpointing else 0.0
        )
        done = (
            s.gradients
            if layout.accumulates
            else (n - i) * block_gradient / w + (0.0 if sharded else head_gradient)
        )
        gathered = 0.0
        if sharded:
            blocks = _block_parameters(config) * g / tp
            gathered = (
                blocks * (2 if i > 1 else 1)
                + head_gradient
                + (block_gradient / tp if i < n else 0.0)
            )
        backward = max(backward, held + done + root + kept + gathered + within)
    return Peak(
        s,
        activations,
        loss,
        backward,
        sum(s),
        held + _answers(config, layout) if layout.answering else 0.0,
    )


def _answers(config: ModelConfig, layout: Layout) -> float:
    """Count the bytes of answering prompts.

    These are keys and values, one block while it reads the prompts, and the distributions of the
    next token.
    """
    a = layout.answering
    assert a is not None
    t, d, f, c, r = (
        a.prompts * a.prompt_tokens,
        config.width,
        config.ffn_size,
        layout.compute_bytes,
        layout.residual_bytes,
    )
    # On a CPU keys and values are stored in fp32. The cache needs a quarter more while it is
    # compacted: once half of all rows have ended, they are dropped, and the keys and then the
    # values of the others are copied. The keys and values of a prompt exist twice while they are
    # copied for each of its answers.
    slot = (
        2
        * config.n_layer
        * config.kv_heads
        * config.head_size
        * (4 if layout.device == "cpu" else c)
    )
    slots = a.rows * (a.prompt_tokens + a.new_tokens)
    cache = (
        max(1.25 * slots, slots + (a.prompts * a.prompt_tokens if a.prompts < a.rows else 0)) * slot
    )
    block = 2 * r * t * d + c * t * (d + 3 * f)
    # Logits, and in fp32: logits, probabilities, their cumulated sum, log-probabilities.
    distributions = a.rows * config.vocab_size * (c + 4 * 4)
    # Autocast casts the weights once for all tokens.
    casts = c * max(0.0, count_parameters(config).matmul - layout.quantized) if r != c else 0.0
    return cache + casts + max(block, distributions)


def _head(config: ModelConfig, layout: Layout) -> float:
    """Count the bytes of the final norm, the head and the loss."""
    t, d, v = layout.tokens, config.width, config.vocab_size // layout.tp
    c, r = layout.compute_bytes, layout.residual_bytes
    hidden = r * t * d + c * t * d + _norm_extra(config, layout)
    if layout.head == "plain":
        return float(hidden + 12 * t * v)
    chunk = chunk_tokens(t, v, c, layout.device)
    tile = min(chunk, max(1, TILE_BYTES[layout.device] // (4 * v)))
    if layout.compiled and layout.device == "cuda":
        tile = chunk
    buffers = chunk * v * c + tile * v * 4 * (1 if c == 4 else 2)
    if layout.trainable == 0:  # a frozen head has no gradient, only the cast of its weight
        return float(hidden + c * t * d + buffers + (v * d * c if r != c else 0))
    # The gradient in fp32; unless all is fp32, also the cast of the weight and a product to add.
    weight = v * d * (4 + (2 * c if r != c or c != 4 else 0))
    # When the backward pass begins, the buffers are gone and a scaled copy of the gradient exists.
    return float(hidden + c * t * d + max(buffers + weight, v * d * 8))


def chunk_tokens(
    tokens: int, vocabulary: int, itemsize: int, device: Literal["cpu", "cuda"]
) -> int:
    """Count the tokens whose logits the chunked head computes at once."""
    least, most = CHUNK_TOKENS[device]
    chunks = -(-tokens // min(most, max(least, CHUNK_BYTES[device] // (itemsize * vocabulary))))
    return max(1, -(-tokens // max(1, chunks)))


# Changes to a run that lower its peak.


def remedies(config: ModelConfig, layout: Layout, limit: float) -> list[str]:
    """List the changes that make a run fit into `limit` bytes, the smallest change first.

    The list is empty if no known change does.
    """

    def fits(**changes: Any) -> bool:
        return peak(config, dataclasses.replace(layout, **changes)).bytes <= limit

    found = []
    if layout.answering is not None:
        rows = [
            r
            for r in _powers_below(layout.answering.rows)
            if fits(answering=layout.answering.fewer(r))
        ]
        if rows:
            engine = (
                f"{{class_path: lit_pretrain.rollout.BuiltIn, init_args: {{rows: {rows[-1]}}}}}"
            )
            found.append(f"fewer answers at once (--model.rollout.engine '{engine}')")
    modes: tuple[tuple[Checkpointing, str], ...] = (("products", "sixth"), (True, "third"))
    for mode, share in modes:
        if not layout.checkpointing and fits(checkpointing=mode):
            found.append(
                f"activation checkpointing (--model.activation_checkpointing {str(mode).lower()};"
                f" about a {share} more FLOPs)"
            )
            break
    for checkpointing in dict.fromkeys((layout.checkpointing, True)):
        extra = (
            " with activation checkpointing" if checkpointing and not layout.checkpointing else ""
        )
        smaller = _powers_below(layout.rows // layout.group)
        # The tokens of a step stay the same, so a step then has several micro-batches.
        rows = [
            r
            for r in smaller
            if fits(rows=r * layout.group, checkpointing=checkpointing, accumulates=True)
        ]
        if rows and (checkpointing == layout.checkpointing or not found):
            found.append(f"--data.micro_batch_size {rows[-1]}{extra}")
    if layout.answering is not None or layout.quantized:
        return found  # FSDP refuses both
    for checkpointing in dict.fromkeys((layout.checkpointing, True)):
        extra = (
            " with activation checkpointing" if checkpointing and not layout.checkpointing else ""
        )
        counts = [2**i for i in range(1, 15) if layout.sharding != "fsdp" or 2**i > layout.devices]
        counts = [n for n in counts if n % (layout.copies * layout.together) == 0]
        if layout.divided_rows is not None:
            counts = [n for n in counts if layout.divided_rows % (n // layout.together) == 0]
        spread = {"sharding": "fsdp", "checkpointing": checkpointing}
        wide = [n for n in counts if fits(devices=n, rows=_rows_on(layout, n), **spread)]
        if wide:
            found.append(f"FSDP (--trainer.strategy fsdp) over at least {wide[0]} devices{extra}")
            break
    return found


def _rows_on(layout: Layout, devices: int) -> int:
    if layout.step_rows is None:
        return layout.rows
    groups = devices // layout.together
    return layout.group * largest_divisor(layout.step_rows // groups, layout.rows // layout.group)


def _powers_below(number: int) -> list[int]:
    return [2**i for i in range(20) if 2**i < number]
