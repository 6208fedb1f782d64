"""Talk with a trained run in the terminal, or through a pipe."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lit_pretrain.cli.command.load_run import Dtype, Weights, load_renderer, load_run
from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError, warn
from lit_pretrain.files import write_file, writing

if TYPE_CHECKING:
    from lit_pretrain.generate.conversation import Talk

CHAT_HELP = """\
/reset          begin anew; the system message stays
/system TEXT    begin anew with another system message; without TEXT with none
/save FILE      write the conversation to FILE as one line of JSON, which `posttrain` reads with
                format: messages
/help           this
/quit           leave; so does the end of the input
A line that ends in \\ goes on in the next. Write a message that begins with a slash with two.
Ctrl-C stops an answer."""


class Terminal:
    """A conversation by lines: answers go to standard output, all else to standard error.

    Args:
        talk: The conversation.
    """

    def __init__(self, talk: "Talk") -> None:
        self.talk = talk
        self.asks = sys.stdin.isatty()
        self.saved: set[Path] = set()

    def run(self) -> None:
        """Read until the end."""
        if self.asks:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (gives input() a history and editing)
            self._note("/help lists the commands, /quit leaves")
        while (line := self._read()) is not None:
            try:
                if line.startswith("/") and not line.startswith("//"):
                    name, _, rest = line[1:].partition(" ")
                    if name == "quit":
                        return
                    self._command(name, rest.strip())
                elif line.strip():
                    self._turn(line[1:] if line.startswith("//") else line)
            except UserError as error:
                # In a terminal one corrects oneself; a pipe's next lines were written in the belief
                # that this one went well.
                if not self.asks:
                    raise
                print(f"error: {error}", file=sys.stderr)

    def _read(self) -> str | None:
        """Read the next message or command; None at the end of the input."""
        lines: list[str] = []
        while True:
            try:
                line = input("> " if not lines else "  ") if self.asks else input()
            except EOFError:
                if self.asks:
                    print(file=sys.stderr)
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                if not self.asks:
                    raise
                lines = []
                self._note("\n/quit leaves")
                continue
            except UnicodeDecodeError as error:
                raise UserError(f"the input is not UTF-8: {error}") from None
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _turn(self, text: str) -> None:
        before, began = self.talk.forgotten, time.perf_counter()
        answer = self.talk.say(text)
        if self.talk.forgotten > before:
            self._note(
                f"(the context is full: the first {self.talk.forgotten} messages are forgotten;"
                " /reset begins anew)"
            )
        interrupted = False
        try:
            for piece in answer:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not self.asks:
                raise
            answer.close()
            interrupted = True
        finally:
            print(flush=True)
        self.talk.heard(answer.text)
        seconds = time.perf_counter() - began
        ending = (
            "; interrupted"
            if interrupted
            else "; cut off: the limit was reached"
            if answer.finish == "length"
            else ""
        )
        self._note(
            f"({self.talk.prompt_tokens} tokens read, {self.talk.kept.reused} of them remembered;"
            f" {answer.tokens} written, in {seconds:.1f} s, {answer.tokens / seconds:,.0f} a"
            f" second{ending})"
        )

    def _command(self, name: str, rest: str) -> None:
        if name == "help":
            print(CHAT_HELP, file=sys.stderr)
        elif name == "reset":
            self.talk.reset(system=self.talk.system)
            self._note("(begun anew)")
        elif name == "system":
            before = self.talk.system
            self.talk.reset(system=rest or None)
            try:
                self.talk.check()
            except UserError:
                self.talk.reset(system=before)
                raise
            self._note("(begun anew)")
        elif name == "save":
            self._save(rest)
        else:
            raise UserError(
                f"there is no command /{name}: /help lists them. A message that begins with a slash"
                " is written with two"
            )

    def _save(self, where: str) -> None:
        if not where:
            raise UserError("/save needs the name of a file: /save talk.jsonl")
        if not self.talk.messages:
            raise UserError("nothing has been said yet, so there is nothing to save")
        path = Path(os.path.expanduser(where)).absolute()
        if path.exists() and path not in self.saved:
            raise UserError(f"{where} exists already; choose another name")
        with writing(where):
            write_file(path, json.dumps({"messages": self.talk.whole}, ensure_ascii=False) + "\n")
        self.saved.add(path)
        self._note(f"({len(self.talk.whole)} messages in {where})")

    def _note(self, text: str) -> None:
        grey = sys.stderr.isatty()
        print(f"\033[90m{text}\033[0m" if grey else text, file=sys.stderr, flush=True)


def chat(
    run: str,
    system: str | None = None,
    checkpoint: str = "last",
    template: str = "auto",
    max_new_tokens: int = 512,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    seed: int = 0,
    device: str = "auto",
    dtype: Dtype = "float32",
    weights: Weights = "trained",
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
        weights: The weights as training left them, or their moving average (model.ema_half_life).
        accept: Fields of the contract in which the run's files may differ from its record:
            tokenizer, template, vocabulary, bos_id, eos_id, stop_ids.
    """
    net, tokenizer, path = load_run(run, checkpoint, device, dtype, accept=accept, weights=weights)
    renderer, own = load_renderer(tokenizer, path.parent.parent, template)
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
    from lit_pretrain.cli.command.parser import run_function

    return run_function("chat", __doc__, chat, argv)


VERB = Verb(main, example="lit_pretrain chat --run runs/sft")
