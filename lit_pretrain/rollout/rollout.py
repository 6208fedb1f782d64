"""Rollouts: how prompts are answered, and the engines that answer them.

An engine takes prompts and returns tokens, a mask and log-probabilities. The built-in one samples
from the network itself; vLLM, for long answers, receives the weights before each rollout.

Axes: B rows, N sampled tokens.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from lit_pretrain.adapter import plain_weights
from lit_pretrain.checkpoint.hf_export import to_tensors
from lit_pretrain.errors import UserError
from lit_pretrain.generate.engine import Completions, CompletionSampling, sample_completions
from lit_pretrain.generate.sampling import check_sampling
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.reward import Reward, read_reward


@runtime_checkable
class RolloutEngine(Protocol):
    """Answer prompts: prompts in, (tokens, mask, log-probabilities) out."""

    same_policy: bool
    """Whether it computes what the trained network computes, so that the first update after a
    rollout is on-policy by definition. Else the log-probabilities that it returns are those of the
    policy that sampled, and the ratio to them is clipped from the first update on.
    """

    def take(self, net: Transformer) -> None:
        """Take over the weights; called whenever they have changed since the last rollout."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: CompletionSampling,
        seeds: Sequence[int],
    ) -> Completions:
        """Answer each prompt once, with one seed for each.

        The same seeds give the same answers, whatever else is in the batch.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Say how a stage answers prompts (`data` of class PromptData) and rewards the answers."""

    rewards: dict[str, Reward]
    """What answers are worth: name -> reward. The sum of weight × reward is what is maximised;
    each is reported as rewards/NAME.
    """
    max_completion_tokens: int
    """Longest answer in tokens, its end of turn included; longer ones are cut there and counted
    as truncated.
    """
    temperature: float = 1.0
    """Of the samples. The loss, too, is that of softmax(logits / temperature), the distribution
    that was sampled from.
    """
    top_k: int | None = None
    """Draw from the k likeliest tokens; null: all, which alone makes the policy gradient
    unbiased. So for top_p and min_p.
    """
    top_p: float | None = None
    """Draw from the fewest tokens that together reach this probability."""
    min_p: float | None = None
    """Draw from the tokens at least this fraction as likely as the likeliest."""
    mask_truncated: bool = False
    """Learn nothing from truncated answers, but let them count in their group (Yu et al. 2025,
    section 3.4).
    """
    engine: RolloutEngine | None = None
    """What samples: lit_pretrain.rollout.BuiltIn, which null means, or
    lit_pretrain.rollout.VLLM (extra `vllm`).
    """

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "rewards", {name: read_reward(reward) for name, reward in self.rewards.items()}
        )
        if self.max_completion_tokens < 1:
            raise UserError(
                f"model.rollout.max_completion_tokens={self.max_completion_tokens} must be at"
                " least 1"
            )
        try:
            check_sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        except UserError as error:
            raise UserError(f"model.rollout: {error}") from None

    def sampling(self, stop_ids: frozenset[int]) -> CompletionSampling:
        """Give the settings of an engine."""
        return CompletionSampling(
            self.max_completion_tokens,
            stop_ids,
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
        )


class BuiltIn:
    """Sample from the network itself, within the training step.

    There is no copy of the weights, and the numerics are those of training.

    Args:
        rows: Answers that are generated at once, the rest after them; null: all of a step. Fewer
            take less memory for their cache.
    """

    same_policy = True

    def __init__(self, rows: int | None = None) -> None:
        if rows is not None and rows < 1:
            raise UserError(
                f"model.rollout.engine: rows={rows} must be at least 1, or null for all answers of"
                " a step"
            )
        self.rows = rows
        self._net: Transformer

    def take(self, net: Transformer) -> None:
        """Remember the network; nothing is copied."""
        self._net = net

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: CompletionSampling,
        seeds: Sequence[int],
    ) -> Completions:
        """Answer prompts; as in `RolloutEngine`."""
        size = self.rows or max(1, len(prompts))
        parts = [
            sample_completions(
                self._net, prompts[i : i + size], sampling=sampling, seeds=seeds[i : i + size]
            )
            for i in range(0, len(prompts), size)
        ]
        if len(parts) == 1:
            return parts[0]
        longest = max(part.tokens_BN.shape[1] for part in parts)
        grown = [
            [torch.nn.functional.pad(x, (0, longest - x.shape[1])) for x in part] for part in parts
        ]
        return Completions(*(torch.cat(columns) for columns in zip(*grown, strict=True)))


HEAD = "lm_head.weight"
"""The head's matrix, under its name in transformers."""


class VLLM:
    """Sample with vLLM in this process, on this device (extra `vllm`).

    The engine is built once, from a Hugging Face folder that gives it architecture and size; before
    each rollout it is given the weights of the network, under the names of transformers, an adapter
    put into its matrices. On a CPU a tied head is a matrix of its own there. Its kernels round
    otherwise than ours, so that the log-probabilities that it returns are those of another policy,
    if a near one: the objective clips the ratio to them from the first update on. Each answer has a
    seed of its own, but vLLM promises the same answers for the same seeds only in the same company:
    a resumed run is exact with the built-in engine alone.

    Args:
        folder: A Hugging Face folder of the network's architecture and vocabulary, such as the
            parent or its export.
        memory: Share of the device's memory for vLLM's weights and cache; training needs the rest.
        options: Further arguments of `vllm.LLM`.
    """

    same_policy = False

    def __init__(
        self, folder: str, memory: float = 0.3, options: dict[str, Any] | None = None
    ) -> None:
        if not 0 < memory < 1:
            raise UserError(
                f"model.rollout.engine: memory={memory} is a share of the device's memory, above 0"
                " and below 1; 0.3 is usual"
            )
        self.folder = folder
        self.memory = memory
        self.options = dict(options or {})
        self._llm: Any = None

    def take(self, net: Transformer) -> None:
        """Give vLLM the weights of the network."""
        if self._llm is None:
            self._llm = self._build(net)
        with torch.no_grad():
            weights = to_tensors(net.config, plain_weights(net))
        if net.config.tie_embeddings and _packs(net):
            weights[HEAD] = net.head_weight.detach()
        # Not the model's own load_weights: by now its matrices have the layout that the kernels
        # want.
        self._llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": iter(weights.items())}
        )
        self._llm.reset_prefix_cache()  # it holds keys and values of the weights before

    def _build(self, net: Transformer) -> Any:
        # Without this the engine runs in another process, which weights would have to be sent to.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                f"model.rollout.engine VLLM needs vLLM ({error}): pip install 'lit_pretrain[vllm]'"
            ) from None
        settings: dict[str, Any] = {
            "model": self.folder, "load_format": "dummy", "skip_tokenizer_init": True,
            "gpu_memory_utilization": self.memory,
            "max_model_len": net.config.max_seq_len, "logprobs_mode": "processed_logprobs",
        }  # fmt: skip
        if net.config.tie_embeddings and _packs(net):
            settings["hf_overrides"] = {"tie_word_embeddings": False}
        if torch.distributed.is_initialized():
            # An engine of its own for every rank, in the group that training has; vLLM asks for it
            # as torchrun would say it.
            settings["distributed_executor_backend"] = "external_launcher"
            os.environ.setdefault("RANK", str(torch.distributed.get_rank()))
            os.environ.setdefault("LOCAL_RANK", str(net.head_weight.device.index or 0))
        return vllm.LLM(**settings | self.options)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: CompletionSampling,
        seeds: Sequence[int],
    ) -> Completions:
        """Answer prompts; as in `RolloutEngine`.

        Raises:
            UserError: Filters are set, which vLLM's log-probabilities would count in.
        """
        filters = [
            name for name in ("top_k", "top_p", "min_p") if getattr(sampling, name) is not None
        ]
        if filters:
            raise UserError(
                f"model.rollout.{filters[0]} is set, and the log-probabilities of vLLM are those"
                " after it, which the network that learns does not have: leave it out, or use the"
                " built-in engine"
            )
        import vllm

        settings = [
            vllm.SamplingParams(
                max_tokens=sampling.max_tokens, temperature=sampling.temperature, seed=seed % 2**63,
                logprobs=0, ignore_eos=True,
                stop_token_ids=sorted(sampling.stop_ids), detokenize=False,
            )
            for seed in seeds
        ]  # fmt: skip
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = [
            request.outputs[0]
            for request in self._llm.generate(requests, sampling_params=settings, use_tqdm=False)
        ]
        return _completions(
            [list(output.token_ids) for output in outputs], [output.logprobs for output in outputs]
        )


def _completions(tokens: Sequence[Sequence[int]], logprobs: Sequence[Sequence[Any]]) -> Completions:
    """Pad answers of different lengths, with each drawn token's log-probability."""
    longest = max(map(len, tokens), default=0)
    found = Completions(
        torch.zeros(len(tokens), longest, dtype=torch.int64),
        torch.zeros(len(tokens), longest, dtype=torch.bool),
        torch.zeros(len(tokens), longest),
    )  # fmt: skip
    for row, (ids, known) in enumerate(zip(tokens, logprobs, strict=True)):
        found.tokens_BN[row, : len(ids)] = torch.tensor(ids)
        found.mask_BN[row, : len(ids)] = True
        found.logp_BN[row, : len(ids)] = torch.tensor(
            [known[n][token].logprob for n, token in enumerate(ids)]
        )
    return found


def _packs(net: Transformer) -> bool:
    """Tell whether vLLM keeps matrices in another layout, as on a CPU.

    A tied head is then a copy, which new embeddings do not reach.
    """
    return net.head_weight.device.type == "cpu"
