"""Serve a trained run over HTTP as OpenAI's interface, on this machine unless told otherwise."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
import signal
import socket

from lit_pretrain.cli.command.load_run import Dtype, Weights, load_renderer, load_run
from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError, warn
from lit_pretrain.plain_data import read_text


def serve(
    run: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_key: str | None = None,
    api_key_file: str | None = None,
    hosts: list[str] = [],  # noqa: B006  (as accept)
    checkpoint: str = "last",
    template: str = "auto",
    max_tokens: int = 1024,
    max_body_bytes: int = 4_000_000,
    max_replies: int = 128,
    max_request_tokens: int = 65_536,
    device: str = "auto",
    dtype: Dtype = "float32",
    weights: Weights = "trained",
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Answer /v1/chat/completions, /v1/completions and /v1/models until Ctrl-C or SIGTERM.

    Args:
        run: A run folder, or one checkpoint of a run.
        host: Address to listen on. Any but this machine's own asks for an api_key.
        port: Port; 0 takes a free one.
        name: What the model is called; the run's name if not given.
        api_key: What clients must show as bearer token; only in a config file. On the command
            line every user of the machine could read it: give --api_key_file, or the environment
            variable LIT_PRETRAIN_API_KEY.
        api_key_file: File whose first line is the key.
        hosts: Further names under which clients reach a server on 127.0.0.1, such as that of a
            proxy; requests for other names are refused.
        checkpoint: For a run folder: last or best.
        template: auto takes the run's, else chatml; or a preset, a file or a folder.
        max_tokens: Longest chat answer where the client asks for no limit.
        max_body_bytes: Largest body of a request.
        max_replies: Most replies to one request: its prompts times n.
        max_request_tokens: Most tokens that one request may have written: replies times
            max_tokens.
        device: auto, cpu, gpu, cuda or mps.
        dtype: Of the arithmetic.
        weights: The weights as training left them, or their moving average (model.ema_half_life).
        accept: Fields of the contract in which the run's files may differ from its record:
            tokenizer, template, vocabulary, bos_id, eos_id, stop_ids.
    """
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"serve needs the package {package}: pip install 'lit_pretrain[serve]'")
    if not 0 <= port <= 65535:
        raise UserError(f"--port={port} must lie between 0 and 65535")
    for option, value in (
        ("max_tokens", max_tokens),
        ("max_body_bytes", max_body_bytes),
        ("max_replies", max_replies),
        ("max_request_tokens", max_request_tokens),
    ):
        if value < 1:
            raise UserError(f"--{option}={value} must be at least 1")
    api_key = find_key(api_key, api_key_file)
    if name is not None and (not name.strip() or name != name.strip() or not name.isprintable()):
        raise UserError(f"--name={name!r} is not a name; leave it out to take the run's")
    if api_key is None and not _is_loopback(host):
        raise UserError(
            f"--host={host} is open to other machines: give an --api_key_file, too, or listen"
            " on 127.0.0.1"
        )
    listener = _listen(host, port)
    try:
        net, tokenizer, path = load_run(
            run, checkpoint, device, dtype, accept=accept, weights=weights
        )
        folder = path.parent.parent
        renderer, why = None, None
        try:
            renderer, own = load_renderer(tokenizer, folder, template)
            if not own:
                warn(
                    f"{run} has no chat template, so it has learned no conversations;"
                    f" {renderer.template.name} is taken"
                )
        except UserError as error:
            if template != "auto":
                raise
            why = str(error)
            warn(f"chats will be refused, completions not: {error}")
        import uvicorn

        from lit_pretrain.cli.serve.api import Limits, make_app
        from lit_pretrain.cli.serve.writer import GRACE, Writer

        writer = Writer(net, tokenizer, renderer, no_chat=why, max_tokens=max_tokens)
        app = make_app(
            writer,
            name=name or folder.resolve().name,
            created=int(path.stat().st_mtime),
            limits=Limits(max_body_bytes, max_replies, max_request_tokens),
            api_key=api_key,
            hosts={*_LOOPBACK, *(name.lower() for name in (host, *hosts))}
            if _is_loopback(host) or hosts
            else (),
        )
        shown = f"[{host}]" if ":" in host else host
        print(
            f"serving {path} at http://{shown}:{listener.getsockname()[1]}/v1; Ctrl-C stops",
            flush=True,
        )
        logging.getLogger("asyncio").setLevel(
            logging.CRITICAL
        )  # says of every cut connection that it was cut
        # Replies end by themselves when the time is over; uvicorn's own limit, which cuts them off
        # with tracebacks, comes later.
        limit = int(GRACE) + 10
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="error",
                access_log=False,
                timeout_graceful_shutdown=limit,
                lifespan="off",
            )
        )
        writer.stopping = lambda: bool(server.should_exit)
        # uvicorn stops at these signals and then raises them once more, for handlers that were
        # there before: these.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        server.run(sockets=[listener])
        writer.close()
    finally:
        listener.close()
    print("stopped", flush=True)
    return 0


_LOOPBACK = ("localhost", "127.0.0.1", "::1")
KEY_VARIABLE = "LIT_PRETRAIN_API_KEY"


def find_key(given: str | None, file: str | None) -> str | None:
    """Find the key that clients must show: that of a config, of a file, or of the environment.

    Raises:
        UserError: It is given twice, is empty, or its file cannot be read.
    """
    if given is not None and file is not None:
        raise UserError("api_key and api_key_file are both given; keep one of them")
    if file is not None:
        where, key = file, read_text(file, "--api_key_file").partition("\n")[0].strip()
    elif given is not None:
        where, key = "api_key", given.strip()
    elif KEY_VARIABLE in os.environ:
        where, key = KEY_VARIABLE, os.environ[KEY_VARIABLE].strip()
    else:
        return None
    if not key:
        raise UserError(f"{where} holds no key, and is empty; leave it out to ask for none")
    return key


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        UserError: The address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen on port {port} of {host}: {error.strerror or error}; choose another"
            " --port or --host"
        ) from None
    return listener


def main(argv: list[str]) -> int:
    """Run `lit_pretrain serve`."""
    from lit_pretrain.cli.command.parser import run_function

    if any(arg.partition("=")[0].replace("-", "_") == "__api_key" for arg in argv):
        raise UserError(
            "--api_key: every user of this machine can read a command line; write the key into a"
            " file and give --api_key_file FILE, or set LIT_PRETRAIN_API_KEY"
        )
    return run_function("serve", __doc__, serve, argv)


VERB = Verb(main, example="lit_pretrain serve --run runs/sft")
