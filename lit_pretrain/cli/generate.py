"""Complete prompts with a trained run, streaming to the terminal."""

import sys
import time

from lit_pretrain.cli.command.load_run import Weights
from lit_pretrain.cli.command.verb import Verb

LONGEST = 256
"""Tokens of a completion, if the model has room for them."""


def generate_text(
    run: str,
    prompt: str = "",
    prompts: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
    checkpoint: str = "last",
    max_new_tokens: int | None = None,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    seed: int = 0,
    stop: list[str] = [],  # noqa: B006  (as prompts)
    device: str = "auto",
    weights: Weights = "trained",
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Complete prompts and print them as they grow.

    Args:
        run: A run folder, or one checkpoint of a run.
        prompt: What to complete. The empty prompt starts a document.
        prompts: Several to complete at once, in place of one.
        checkpoint: For a run folder: last or best.
        max_new_tokens: Longest completion in tokens. Default: 256, or as many as the model has room
            for.
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Keep only the k likeliest tokens.
        top_p: Keep only the likeliest tokens that together reach this probability.
        seed: Seed of the first prompt; the next ones count on from it.
        stop: Strings that end a completion.
        device: auto, cpu, gpu, cuda or mps.
        weights: The weights as training left them, or their moving average (model.ema_half_life).
        accept: Fields of the contract in which the run's files may differ from its record:
            tokenizer, template, vocabulary, bos_id, eos_id, stop_ids.
    """
    from lit_pretrain.cli.command.load_run import load_run

    net, tokenizer, _ = load_run(run, checkpoint, device, accept=accept, weights=weights)
    from lit_pretrain.generate.conversation import encode_prompt, stream

    began = time.perf_counter()
    asked = prompts or [prompt]
    if max_new_tokens is None:
        room = net.config.max_seq_len - max(len(encode_prompt(tokenizer, text)) for text in asked)
        max_new_tokens = max(1, min(LONGEST, room))
    texts = ["" for _ in asked]
    pieces = stream(
        net,
        tokenizer,
        asked,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
    )
    if prompts:
        for row, text in pieces:
            texts[row] += text
        for before, text in zip(asked, texts, strict=True):
            print(f"=== {before!r}\n{before}{text}")
        sys.stdout.flush()  # before the count, which goes to standard error
    else:
        print(prompt, end="", flush=True)
        try:
            for _, text in pieces:
                print(text, end="", flush=True)
        finally:
            print(flush=True)  # what comes next, be it "interrupted", begins a line
    seconds = time.perf_counter() - began
    print(f"({pieces.tokens} tokens in {seconds:.1f} s)", file=sys.stderr)
    return 0


def main(argv: list[str]) -> int:
    """Run `lit_pretrain generate`."""
    from lit_pretrain.cli.command.parser import run_function

    return run_function("generate", __doc__, generate_text, argv)


VERB = Verb(main, example="lit_pretrain generate --run runs/quickstart --prompt 'def '")
