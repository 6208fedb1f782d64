"""Serve: what `lit_pretrain serve` does, from options to a server that stops cleanly."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import signal
import socket
from typing import Optional

from lit_pretrain.cli.command.load_run import Dtype, load_renderer, load_run
from lit_pretrain.errors import UserError, warn


def serve(
    run: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: Optional[str] = None,
    api_key: Optional[str] = None,
    checkpoint: str = "last",
    template: str = "auto",
    max_tokens: int = 1024,
    device: str = "auto",
    dtype: Dtype = "float32",
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Answer /v1/chat/completions, /v1/completions and /v1/models until Ctrl-C or SIGTERM.

    Args:
        run: A run folder, or one checkpoint of a run.
        host: Address to listen on. Any but this machine's own asks for an api_key.
        port: Port; 0 takes a free one.
        name: What the model is called; the run's name if not given.
        api_key: What clients must show as bearer token. In a YAML file ${oc.env:NAME} keeps it off
            the command line.
        checkpoint: For a run folder: last or best.
        template: auto takes the run's, else chatml; or a preset, a file or a folder.
        max_tokens: Longest chat answer where the client asks for no limit.
        device: auto, cpu, gpu, cuda or mps.
        dtype: Of the arithmetic.
        accept: Fields of the contract in which the run's files may differ from its record:
            tokenizer, template, vocabulary, bos_id, eos_id, stop_ids.
    """
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"serve needs the package {package}: pip install 'lit_pretrain[serve]'")
    if not 0 <= port <= 65535:
        raise UserError(f"--port={port} must lie between 0 and 65535")
    if max_tokens < 1:
        raise UserError(f"--max_tokens={max_tokens} must be at least 1")
    if api_key is not None and not api_key.strip():
        raise UserError("--api_key is empty; leave it out to ask for none")
    if name is not None and (not name.strip() or name != name.strip() or not name.isprintable()):
        raise UserError(f"--name={name!r} is not a name; leave it out to take the run's")
    if api_key is None and not _is_loopback(host):
        raise UserError(
            f"--host={host} is open to other machines: give an --api_key, too, or listen on"
            " 127.0.0.1"
        )
    listener = _listen(host, port)
    try:
        net, tokenizer, path = load_run(run, checkpoint, device, dtype, accept=accept)
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

        from lit_pretrain.cli.serve.api import make_app
        from lit_pretrain.cli.serve.writer import GRACE, Writer

        writer = Writer(net, tokenizer, renderer, no_chat=why, max_tokens=max_tokens)
        app = make_app(
            writer,
            name=name or folder.resolve().name,
            created=int(path.stat().st_mtime),
            api_key=api_key,
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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket.

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
