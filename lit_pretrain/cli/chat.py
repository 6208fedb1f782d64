"""Talk with a trained run in the terminal, or through a pipe."""

from typing import Optional

from lit_pretrain.cli.command.load_run import Dtype, load_renderer, load_run
from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError, warn


def chat(
    run: str,
    system: Optional[str] = None,
    checkpoint: str = "last",
    template: str = "auto",
    max_new_tokens: int = 512,
    temperature: float = 0.8,
    top_k: Optional[int] = None,
    top_p: Optional[float] = 0.95,
    seed: int = 0,
    device: str = "auto",
    dtype: Dtype = "float32",
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Talk with a run, a line a turn.

    Args:
        run: A run folder, or one checkpoint of a run.
        system: The system message.
        checkpoint: For a run folder: last or best.
        template: auto takes the run's, else chatml; or a preset, a file or a folder.
        max_new_tokens: Longest answer in tokens, at most half of what the model can read.
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Keep only the k likeliest tokens.
        top_p: Keep only the likeliest tokens that together reach this probability.
        seed: Seed of the first answer; the next ones count on from it.
        device: auto, cpu, gpu, cuda or mps.
        dtype: Of the arithmetic.
        accept: Fields of the contract in which the run's files may differ from its record:
            tokenizer, template, vocabulary, bos_id, eos_id, stop_ids.
    """
    net, tokenizer, path = load_run(run, checkpoint, device, dtype, accept=accept)
    renderer, own = load_renderer(tokenizer, path.parent.parent, template)
    from lit_pretrain.cli.command.terminal import Terminal
    from lit_pretrain.generate.conversation import ReplySampling, Talk
    from lit_pretrain.generate.sampling import check_sampling

    check_sampling(temperature, top_k, top_p, None)
    if max_new_tokens < 1:
        raise UserError(f"--max_new_tokens={max_new_tokens} must be at least 1")
    if not own:
        warn(
            f"{run} has no chat template, so it has learned no conversations;"
            f" {renderer.template.name} is taken"
        )
    sampling = ReplySampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    talk = Talk(net, renderer, sampling, system=system)
    talk.check()
    Terminal(talk).run()
    return 0


def main(argv: list[str]) -> int:
    """Run `lit_pretrain chat`."""
    from lit_pretrain.cli.command.parser import make_parser

    parser = make_parser("chat", __doc__)
    parser.add_function_arguments(chat)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return chat(**options)


VERB = Verb(main, example="lit_pretrain chat --run runs/sft")
