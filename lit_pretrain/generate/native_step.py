"""NativeStep: one decoding step on a CPU as one call of compiled C.

A step of a small network is some hundred short operations. In torch each costs microseconds beside
its work, and several products stay far below the bandwidth of memory; native_step.c does the whole
step at that bandwidth (docs/experiments.md). A C compiler builds it once per machine, in about two
seconds, and the library stays in the user's cache folder.

Axes: B rows, V vocabulary.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_pretrain.files import write_file
from lit_pretrain.model.attention import Attention, KVCache, Rotary
from lit_pretrain.model.layers import FeedForward, LayerNorm, Linear, RMSNorm
from lit_pretrain.model.transformer import Block, Transformer

SOURCE = Path(__file__).with_suffix(".c")
KNOWN_MODULES = frozenset(
    {
        Transformer,
        Block,
        Attention,
        FeedForward,
        Linear,
        RMSNorm,
        LayerNorm,
        Rotary,
        nn.Embedding,
        nn.Dropout,
        nn.ModuleList,
        nn.ModuleDict,
    }
)
"""Modules whose mathematics the C code repeats; a network with any other runs in torch."""
ACTIVATIONS = ("swiglu", "geglu", "gelu", "gelu_tanh", "relu2")
"""In the order of the C code's enum."""
DONE, UNKNOWN_TOKEN = 0, 2
"""What the C code returns."""
NEAR = 1 << 16
"""Bytes between two tensors that may share a large page: little else lies there."""
MOST_ROWS = 16
"""With more rows torch's products are faster, where the processor has instructions for them."""


class NativeStep:
    """Decode one token a row by compiled code, which reads the network's weights in place.

    Sums are fp32 whatever the weights are. A row gets the same logits, to the bit, alone and in a
    batch. Make it with `native_step`.
    """

    def __init__(self, model: Transformer, library: ctypes.CDLL) -> None:
        self.model = model
        self._decode = library.decode_step
        self._tensors: list[Tensor] = []  # C holds only addresses
        self._layers = (_Layer * model.config.n_layer)()
        self._network = self._describe_network()
        self._prefer_large_pages(library)
        # Zen 3, which has none for bf16: 128 rows of 6 layers × 384 take 135 ms here and 107 in
        # torch in fp32, but 144 and 503 in bf16 (docs/experiments.md).
        self._any_rows = bool(self._network.bf16) and not (
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )

    def suits(self, rows: int) -> bool:
        """Tell whether a step with so many rows is faster here than in torch."""
        return self._any_rows or rows <= MOST_ROWS

    def __call__(self, ids_B: Tensor, cache: KVCache) -> Tensor:
        """Append a token to each row.

        Args:
            ids_B: Token ids.
            cache: Keys and values of what precedes them; theirs are added.

        Returns:
            Logits of the tokens that follow, (B, V), fp32.

        Raises:
            UserError: If a token is not in the vocabulary or the cache is full.
        """
        ids_B = ids_B.contiguous()
        slots_B1 = cache.extend(1)
        positions_B = slots_B1.flatten()
        before_B1 = self.model.previous(ids_B[:, None], None, cache, slots_B1)
        pairs_B1 = self.model.pairs(ids_B[:, None], before_B1)
        keys, values = cache.keys_LBGSK, cache.values_LBGSK
        assert keys.dtype == torch.float32
        assert keys.is_contiguous()
        assert values.is_contiguous()
        # Not zeroed: C writes every logit.
        logits_BV = torch.empty(len(ids_B), self.model.config.vocab_size)
        place = _Cache(
            keys.data_ptr(), values.data_ptr(), *keys.stride()[:3], positions_B.data_ptr()
        )
        status = self._decode(
            ctypes.byref(self._network),
            ctypes.byref(place),
            ctypes.c_void_p(ids_B.data_ptr()),
            None if before_B1 is None else ctypes.c_void_p(before_B1.data_ptr()),
            None if pairs_B1 is None else ctypes.c_void_p(pairs_B1.data_ptr()),
            ctypes.c_int64(len(ids_B)),
            ctypes.c_int64(torch.get_num_threads()),
            ctypes.c_void_p(logits_BV.data_ptr()),
        )
        if status == UNKNOWN_TOKEN:
            self.model.check_tokens(ids_B[:, None])
        assert status == DONE, "no memory for a step of decoding"
        return logits_BV

    def _prefer_large_pages(self, library: ctypes.CDLL) -> None:
        """Ask for large pages under the weights, most of which lie side by side in memory."""
        stretches: list[list[int]] = []
        for begin, end in sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in self._tensors):
            if stretches and begin - stretches[-1][1] < NEAR:
                stretches[-1][1] = max(end, stretches[-1][1])
            else:
                stretches.append([begin, end])
        for begin, end in stretches:
            library.prefer_large_pages(ctypes.c_void_p(begin), ctypes.c_void_p(end))

    def _describe_network(self) -> "_Network":
        model, c = self.model, self.model.config
        embed_norm = (None, None) if model.embed_norm is None else self._norm(model.embed_norm)
        final_norm = self._norm(model.final_norm)
        for layer, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            self._layers[layer] = self._describe_layer(layer, block)
        return _Network(
            layers=ctypes.addressof(self._layers),
            token_table=self._address(model.token_embedding.weight),
            position_table=self._weight(model.position_embedding),
            bigram_table=self._weight(model.bigram_embedding),
            head=self._address(model.head_weight),
            embed_gain=embed_norm[0],
            embed_shift=embed_norm[1],
            final_gain=final_norm[0],
            final_shift=final_norm[1],
            smear=None if model.smear_D is None else self._vector(model.smear_D),
            cos=None if model.rotary is None else self._address(model.rotary.cos),
            sin=None if model.rotary is None else self._address(model.rotary.sin),
            n_layer=c.n_layer,
            width=c.width,
            n_head=c.n_head,
            kv_heads=c.kv_heads,
            head_size=c.head_size,
            ffn_size=c.ffn_size,
            vocab_size=c.vocab_size,
            value_gate_channels=c.gate_channels,
            bf16=model.token_embedding.weight.dtype == torch.bfloat16,
            layernorm=c.norm == "layernorm",
            embed_norm=c.embed_norm,
            qk_norm=c.qk_norm,
            residual_scalars=c.residual_scalars,
            activation=ACTIVATIONS.index(c.activation),
            eps=c.norm_eps,
            attn_softcap=c.attn_softcap or 0.0,
            logit_softcap=c.logit_softcap or 0.0,
            logit_scale=1.0 if c.logit_scale is None else c.logit_scale,
            value_gate_scale=2.0 if c.value_gate_scale is None else c.value_gate_scale,
        )

    def _describe_layer(self, layer: int, block: Block) -> "_Layer":
        model, attention, feed_forward = self.model, block.attention, block.feed_forward
        attention_norm, ffn_norm = self._norm(block.attention_norm), self._norm(block.ffn_norm)
        q_gain, k_gain = self._gain(attention.q_norm), self._gain(attention.k_norm)
        stream, embedding = model.residual_scale_L, model.embedding_scale_L
        bigram = model.bigram_scale_L
        value_table = (
            model.value_embeddings[str(layer)] if attention.value_gate is not None else None
        )
        return _Layer(
            q=self._weight(attention.q_proj),
            k=self._weight(attention.k_proj),
            v=self._weight(attention.v_proj),
            out=self._weight(attention.out_proj),
            gate=self._weight(feed_forward.gate_proj),
            up=self._weight(feed_forward.up_proj),
            down=self._weight(feed_forward.down_proj),
            q_bias=self._vector(attention.q_proj.bias),
            k_bias=self._vector(attention.k_proj.bias),
            v_bias=self._vector(attention.v_proj.bias),
            out_bias=self._vector(attention.out_proj.bias),
            gate_bias=None
            if feed_forward.gate_proj is None
            else self._vector(feed_forward.gate_proj.bias),
            up_bias=self._vector(feed_forward.up_proj.bias),
            down_bias=self._vector(feed_forward.down_proj.bias),
            attention_gain=attention_norm[0],
            attention_shift=attention_norm[1],
            ffn_gain=ffn_norm[0],
            ffn_shift=ffn_norm[1],
            q_gain=q_gain,
            k_gain=k_gain,
            value_table=self._weight(value_table),
            value_gate=self._weight(attention.value_gate),
            stream_scale=1.0 if stream is None else stream[layer].item(),
            embedding_scale=0.0 if embedding is None else embedding[layer].item(),
            bigram_scale=0.0 if bigram is None else bigram[layer].item(),
            window=attention.window or 0,
        )

    def _weight(self, module: nn.Module | None) -> int | None:
        return None if module is None else self._address(module.weight)  # type: ignore[arg-type]  # a module's `weight` may be anything to mypy

    def _norm(self, module: nn.Module) -> tuple[int | None, int | None]:
        assert isinstance(module, RMSNorm | LayerNorm)
        return self._vector(module.weight), self._vector(getattr(module, "bias", None))

    def _gain(self, norm: RMSNorm | None) -> int | None:
        """Return the gain of a norm of queries or keys, with the fixed scale that follows it."""
        scale = self.model.config.qk_scale
        if norm is None or scale is None:
            return None if norm is None else self._vector(norm.weight)
        gain = torch.ones(norm.size) if norm.weight is None else norm.weight.float()
        return self._address(scale * gain)

    def _vector(self, tensor: Tensor | None) -> int | None:
        return None if tensor is None else self._address(tensor.float())

    def _address(self, tensor: Tensor) -> int:
        self._tensors.append(tensor)
        return tensor.data_ptr()


def native_step(model: Transformer) -> NativeStep | None:
    """Prepare compiled decoding of a network, where it can be had.

    It can where `why_not_native` finds no reason against it and a C compiler with OpenMP is there,
    or has been.
    """
    if why_not_native(model) is not None:
        return None
    library = load_library()
    return None if library is None else NativeStep(model, library)


def why_not_native(model: Transformer) -> str | None:
    """Say what about a network, or about how it is called, the compiled step does not know.

    Returns:
        A reason, or None: it knows all of it.
    """
    weights = list(model.parameters())
    dtypes = {weight.dtype for weight in weights}
    if any(weight.device.type != "cpu" for weight in weights):
        return "the weights are not on a CPU"
    if dtypes not in ({torch.float32}, {torch.bfloat16}):
        return "the weights are not all in fp32 or all in bf16"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    for name, module in model.named_modules():
        if type(module) not in KNOWN_MODULES:
            return f"{name or 'the network'} is a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the network'} has hooks"
    if not all(type(weight.data) is Tensor and weight.is_contiguous() for weight in weights):
        return "the weights are not plain contiguous tensors"
    return None


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Load the compiled step, building it where the cache folder has none.

    Returns:
        The library; None where no C compiler with OpenMP builds it, no folder keeps it, or what
        another machine built there does not run here.
    """
    # By what torch found in this CPU, not -march=native: machines may share a home folder.
    capability = torch.backends.cpu.get_cpu_capability()
    vectors = ["-mavx2", "-mfma"] if capability in ("AVX2", "AVX512") else []
    # Without the two about mathematics, which change no result, loops over e^x are not vectors.
    options = ["-O3", *vectors, "-fno-math-errno", "-fno-trapping-math"]
    options += ["-fopenmp", "-shared", "-fPIC"]
    identity = " ".join([platform.system(), platform.machine(), *options])
    key = hashlib.sha256(SOURCE.read_bytes() + identity.encode()).hexdigest()[:16]
    path = library_folder() / f"native_step-{key}.so"
    try:
        if not path.is_file() and not _build(options, path):
            return None
        library = ctypes.CDLL(str(path))
    except OSError:  # the folder cannot be written, or the library cannot be loaded
        return None
    library.decode_step.restype = ctypes.c_int
    library.prefer_large_pages.restype = None
    return library


def library_folder() -> Path:
    """Return the user's folder in which the compiled step is kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lit_pretrain"


def _build(options: list[str], path: Path) -> bool:
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / path.name
        command = [compiler, *options, "-o", str(built), str(SOURCE), "-lm"]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return False
        write_file(path, built.read_bytes())
    return True


_pointer = ctypes.c_void_p
_size = ctypes.c_int64


class _Layer(ctypes.Structure):
    """Mirror `Layer` of the C code."""

    _fields_ = (
        *((name, _pointer) for name in ("q", "k", "v", "out", "gate", "up", "down")),
        *((f"{name}_bias", _pointer) for name in ("q", "k", "v", "out", "gate", "up", "down")),
        ("attention_gain", _pointer),
        ("attention_shift", _pointer),
        ("ffn_gain", _pointer),
        ("ffn_shift", _pointer),
        ("q_gain", _pointer),
        ("k_gain", _pointer),
        ("value_table", _pointer),
        ("value_gate", _pointer),
        ("stream_scale", ctypes.c_float),
        ("embedding_scale", ctypes.c_float),
        ("bigram_scale", ctypes.c_float),
        ("window", _size),
    )


class _Network(ctypes.Structure):
    """Mirror `Network` of the C code."""

    _fields_ = (
        ("layers", _pointer),
        ("token_table", _pointer),
        ("position_table", _pointer),
        ("head", _pointer),
        ("bigram_table", _pointer),
        ("embed_gain", _pointer),
        ("embed_shift", _pointer),
        ("final_gain", _pointer),
        ("final_shift", _pointer),
        ("smear", _pointer),
        ("cos", _pointer),
        ("sin", _pointer),
        ("n_layer", _size),
        ("width", _size),
        ("n_head", _size),
        ("kv_heads", _size),
        ("head_size", _size),
        ("ffn_size", _size),
        ("vocab_size", _size),
        ("value_gate_channels", _size),
        ("bf16", _size),
        ("layernorm", _size),
        ("embed_norm", _size),
        ("qk_norm", _size),
        ("residual_scalars", _size),
        ("activation", _size),
        ("eps", ctypes.c_float),
        ("attn_softcap", ctypes.c_float),
        ("logit_softcap", ctypes.c_float),
        ("logit_scale", ctypes.c_float),
        ("value_gate_scale", ctypes.c_float),
    )


class _Cache(ctypes.Structure):
    """Mirror `Cache` of the C code."""

    _fields_ = (
        ("keys", _pointer),
        ("values", _pointer),
        ("layer_stride", _size),
        ("row_stride", _size),
        ("head_stride", _size),
        ("positions", _pointer),
    )
