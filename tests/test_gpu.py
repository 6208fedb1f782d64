"""What only a GPU can show: its kernels, its compiler, its memory, and a run that goes on there.

Marked `gpu`. With GPU_TESTS_ON=cpu those that a CPU can compute run there, to see that they would:

    GPU_TESTS_ON=cpu pytest tests/test_gpu.py -m gpu
"""

import dataclasses
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_pretrain.__main__ import main
from lit_pretrain.generate.engine import generate
from lit_pretrain.model.config import Checkpointing, ModelConfig
from lit_pretrain.model.kernels import _kernel_for, document_starts, first_visible
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.objective import linear_cross_entropy
from lit_pretrain.report.run_folder import read_metrics
from lit_pretrain.scaling.memory import Layout, peak

ON = os.environ.get("GPU_TESTS_ON", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON == "cuda" and not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]
on_gpu = pytest.mark.skipif(ON != "cuda", reason="CUDA alone has this")
NET = ModelConfig(
    vocab_size=512, n_layer=2, width=256, n_head=4, n_kv_head=2, max_seq_len=512, init_std=0.1
)


def rows(documents: bool, T: int = 512) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(0)
    tokens_BT = torch.randint(NET.vocab_size, (2, T), device=ON)
    doc_BT = torch.randint(0, 5, (2, T), device=ON).sort().values if documents else None
    return tokens_BT, doc_BT


def passed(
    config: ModelConfig, kernel: str, documents: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Hidden states and all gradients, in fp32, of one network with this kernel."""
    torch.manual_seed(1)
    net = Transformer(dataclasses.replace(config, attention=kernel)).to(ON, dtype)
    hidden_BTD = net(*rows(documents)).float()
    (hidden_BTD * torch.linspace(-1, 1, config.width, device=ON)).sum().backward()
    gradients = [p.grad.float().flatten() for p in net.parameters() if p.grad is not None]
    return hidden_BTD.detach(), torch.cat(gradients)


def apart(a: Tensor, b: Tensor) -> float:
    """Relative distance of two tensors in the Euclidean norm."""
    return float((a - b).norm() / b.norm())


# ------------------------------------------------------------------ kernels


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(
    "kernel", [pytest.param("flex", marks=on_gpu), pytest.param("varlen", marks=on_gpu), "sdpa"]
)
def test_a_kernel_is_the_plain_formula(kernel: str, window: int | None, documents: bool) -> None:
    """No further from the formula in fp32 than the formula itself is in bf16."""
    config = dataclasses.replace(
        NET, sliding_window=window, window_pattern="L" if window is None else "SL"
    )
    exact = passed(config, "matmul", documents, torch.float32)
    rounded = passed(config, "matmul", documents, torch.bfloat16)
    found = passed(config, kernel, documents, torch.bfloat16)
    for ours, plain, truth in zip(found, rounded, exact, strict=True):
        assert apart(ours, truth) < 1.5 * apart(plain, truth) + 1e-3


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("kernel", [pytest.param("flex", marks=on_gpu), "sdpa"])
def test_a_chunk_of_a_row_sees_what_it_sees_in_the_whole(kernel: str, window: int | None) -> None:
    """As a device does that shares rows: its queries stand at the end of the keys up to there."""
    tokens_BT, doc_BT = rows(documents=True)
    assert doc_BT is not None
    config = dataclasses.replace(
        NET, sliding_window=window, window_pattern="L" if window is None else "S"
    )
    torch.manual_seed(2)
    q, k, v = (torch.randn(2, 512, heads, 64, device=ON) for heads in (4, 2, 2))
    first = {window: first_visible(document_starts(doc_BT), window)}
    whole = _kernel_for("matmul", first, slice(0, 512), config, tokens_BT)(q, k, v, window)
    for begin, end in ((0, 128), (128, 256), (384, 512)):
        own = {window: first[window][:, begin:end]}
        part = _kernel_for(kernel, own, slice(begin, end), config, tokens_BT)
        found = part(q[:, begin:end], k[:, :end], v[:, :end], window)
        torch.testing.assert_close(found, whole[:, begin:end], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_head_and_loss_are_those_of_torch(precision: str) -> None:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    torch.manual_seed(3)
    hidden = torch.randn(1024, 256, device=ON, dtype=dtype, requires_grad=True)
    weight = (torch.randn(4096, 256, device=ON) * 0.05).to(dtype).requires_grad_()
    labels = torch.randint(4096, (1024,), device=ON)
    ours, _ = linear_cross_entropy(hidden, weight, labels)
    gradients = torch.autograd.grad(ours, (hidden, weight))
    double = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    plain = torch.nn.functional.cross_entropy(double[0] @ double[1].mT, labels, reduction="sum")
    expected = torch.autograd.grad(plain, double)
    bound = 1e-5 if precision == "fp32" else 1e-2
    assert ours.item() == pytest.approx(plain.item(), rel=bound)
    for a, b in zip(gradients, expected, strict=True):
        assert apart(a.double(), b) < bound


# ------------------------------------------------------------------ runs


def fit(dataset: Path, runs: Path, name: str, *options: str) -> list[float]:
    code = main([
        "fit", "--model.net.n_layer=2", "--model.net.width=128", "--model.net.n_head=2",
        "--model.net.ffn_width=256", "--model.net.max_seq_len=128", "--data.seq_len=64",
        "--data.micro_batch_size=4", "--data.global_batch_tokens=512", "--data.val_tokens=1024",
        "--log_every=1", "--validate_every=0", "--sample_prompts=[]", "--max_steps=8",
        f"--trainer.accelerator={'gpu' if ON == 'cuda' else 'cpu'}", "--trainer.devices=1",
        f"--data.path={dataset}", f"--runs={runs}", f"--name={name}", *options,
    ])  # fmt: skip
    assert code == 0
    return [m["train/loss"] for m in read_metrics(runs / name) if "train/loss" in m]


def test_precisions_and_the_compiler_learn_alike(dataset: Path, tmp_path: Path) -> None:
    plain = fit(dataset, tmp_path, "plain", "--trainer.precision=32-true", "--model.compile=off")
    assert plain[-1] < plain[0] - 0.3
    for name, options, bound in (
        ("compiled", ("--trainer.precision=32-true", "--model.compile=on"), 2e-3),
        ("bf16", ("--trainer.precision=bf16-mixed", "--model.compile=off"), 3e-2),
        ("both", ("--trainer.precision=bf16-mixed", "--model.compile=on"), 3e-2),
    ):
        losses = fit(dataset, tmp_path, name, *options)
        assert losses == pytest.approx(plain, abs=bound), name


@on_gpu
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_products_in_fp8_learn_as_those_in_bf16(recipe: str, dataset: Path, tmp_path: Path) -> None:
    """With matrices that are large enough not to be refused."""
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this device has no products in fp8")
    options = ("--trainer.precision=bf16-mixed", "--model.compile=on", "--model.net.width=2064",
               "--model.net.n_head=1", "--model.net.head_dim=128",
               "--model.net.ffn_width=4112")  # fmt: skip
    plain = fit(dataset, tmp_path, "bf16", *options)
    losses = fit(dataset, tmp_path, "fp8", *options, f"--model.float8={recipe}")
    assert losses[-1] < losses[0] - 0.3
    assert losses == pytest.approx(plain, abs=0.1)


def test_a_run_goes_on_there(dataset: Path, tmp_path: Path) -> None:
    """With a kernel whose gradients do not depend on the order of threads."""
    options = ("--model.compile=off", "--model.net.attention=matmul", "--checkpoint_every=4")
    whole = fit(dataset, tmp_path, "whole", *options)
    checkpoint = tmp_path / "whole" / "checkpoints" / "step=00000004.ckpt"
    assert checkpoint.exists()
    half = tmp_path / "half"
    for path in (tmp_path / "whole").rglob("*"):
        target = half / path.relative_to(tmp_path / "whole")
        if path.is_dir() or "00000008" in path.name or path.name in ("best.json", "summary.md"):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    resumed = fit(dataset, tmp_path, "half", *options, "--resume=auto")
    assert resumed == pytest.approx(whole, abs=0 if ON == "cpu" else 1e-6)


def test_greedy_text_is_that_of_a_cpu() -> None:
    torch.manual_seed(4)
    net = Transformer(NET)
    here, there = (
        [
            token.id
            for token in generate(net.to(device), [[5, 6, 7]], max_new_tokens=32, temperature=0)
        ]
        for device in ("cpu", ON)
    )
    assert there == here


@on_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_offload_changes_no_gradient(compiled: bool) -> None:
    found = []
    for checkpointing in (True, "offload"):
        torch.manual_seed(5)
        net = Transformer(dataclasses.replace(NET, attention="matmul")).to("cuda")
        net.checkpoint_activations(checkpointing)  # type: ignore[arg-type]  # both are
        if compiled:
            net.compile_blocks()
        net(*rows(documents=True)).sum().backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


@on_gpu
@pytest.mark.parametrize("checkpointing", [False, True, "offload"])
def test_a_step_takes_the_memory_that_is_planned(checkpointing: Checkpointing) -> None:
    """Within 5 % of the planned tensors, for a network whose tensors are most of the memory."""
    config = ModelConfig(
        vocab_size=32768, n_layer=8, width=1024, n_head=16, ffn_width=2816, max_seq_len=2048,
        attention="sdpa",
    )  # fmt: skip
    layout = Layout(
        rows=4, seq_len=2048, precision="bf16-mixed", compiled=False, checkpointing=checkpointing
    )
    net = Transformer(config).to("cuda")
    net.checkpoint_activations(checkpointing)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    tokens_BT = torch.randint(config.vocab_size, (4, 2048), device="cuda")
    for step in range(3):
        if step == 2:  # the moments exist
            torch.cuda.reset_peak_memory_stats()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            hidden_BTD = net(tokens_BT)
            loss, _ = linear_cross_entropy(
                hidden_BTD.flatten(0, 1), net.head_weight, tokens_BT.flatten()
            )
        (loss / tokens_BT.numel()).backward()
        optimizer.step()
    assert math.isfinite(float(loss))
    measured = torch.cuda.max_memory_allocated()
    assert measured == pytest.approx(peak(config, layout).bytes, rel=0.05)
