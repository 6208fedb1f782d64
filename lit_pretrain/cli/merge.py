"""Put the adapter of a run into its base: a run of whole weights."""

from pathlib import Path
from typing import Literal, Optional

from lit_pretrain.cli.verb import Verb
from lit_pretrain.errors import UserError

# Merging: what `lit_pretrain merge` does, a run with an adapter made a run of whole weights.


_ROWS, _LENGTH = 4, 64
"""Random tokens on which the two networks are compared."""


def merge(
    run: str,
    out: str,
    checkpoint: str = "last",
    base: Optional[str] = None,
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base",
    tolerance: Optional[float] = None,
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Put the adapter of a run into its base, and write the whole network as a run.

    Args:
        run: The folder of a run with an adapter, or one of its checkpoints.
        out: Folder to write; it must not exist.
        checkpoint: For a run folder: last or best.
        base: Where the base lies, if not where it lay in training.
        dtype: Of the weights that are written. base: that of each of the base's weights. The sums
            are made in fp32 in any case.
        tolerance: Largest difference between logits, relative to the largest logit, that is
            accepted. Default: 1e-5 in float32, 0.1 in 16 bits.
        accept: Fields of the contract that may differ from the record: tokenizer, template,
            vocabulary, bos_id, eos_id, stop_ids.
    """
    if checkpoint not in ("last", "best"):
        raise UserError(
            f"--checkpoint={checkpoint!r} must be last or best; a single checkpoint is named as RUN"
            " itself"
        )
    if Path(out).exists():
        raise UserError(f"{out} exists already; choose another place, or remove it")
    import json

    import torch

    from lit_pretrain.checkpoint.contract import KEY
    from lit_pretrain.checkpoint.find import config_of, resolve
    from lit_pretrain.checkpoint.network import load_adapted
    from lit_pretrain.checkpoint.weights import read_metadata, read_score, read_weights
    from lit_pretrain.cli.exchange import write_run
    from lit_pretrain.cli.lineage import check_files, lineage_of
    from lit_pretrain.data.data_record import NO_DATA
    from lit_pretrain.report.run_folder import PROVENANCE

    path = resolve(run, which=checkpoint)
    net, record, beneath = load_adapted(path, base=base)
    length = min(_LENGTH, net.config.max_seq_len)
    tokens_BT = torch.randint(
        net.config.vocab_size, (_ROWS, length), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        beside = net.logits(net(tokens_BT))
        record.adapter.merge(net)
        dtypes = {name: tensor.dtype for name, tensor in read_weights(beneath).items()}
        if dtype != "base":
            dtypes = dict.fromkeys(dtypes, getattr(torch, dtype))
        weights = {name: tensor.to(dtypes[name]) for name, tensor in net.state_dict().items()}
        net.load_state_dict(weights)
        merged = net.logits(net(tokens_BT))
    difference, largest = (merged - beside).abs().max().item(), beside.abs().max().item()
    rounded = any(tensor.dtype != torch.float32 for tensor in weights.values())
    accepted = tolerance if tolerance is not None else 0.1 if rounded else 1e-5
    print(
        f"logits of {_ROWS} × {length} random tokens, adapter beside the base and merged: largest"
        f" difference {difference:.3g}, largest logit {largest:.3g}"
    )
    if not difference <= accepted * largest:
        raise UserError(
            f"the merged network differs by {difference / largest:.3g} of the largest logit, more"
            f" than {accepted:g}: nothing is written. Use --dtype float32, or accept it with"
            " --tolerance"
        )
    config, folder = config_of(path), path.parent.parent
    config["model"] |= {"adapter": None, "init_from": None}
    facts = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    kept = {
        key: facts[key]
        for key in ("manifest_hash", "tokenizer_hash", "data", "precision", "parameters")
    }
    write_run(
        Path(out),
        config=config,
        tensors=weights,
        step=int(read_metadata(path)[KEY]["step"]),
        language=check_files(path, accept=tuple(accept)),
        facts={
            "verb": "merge",
            "parent": str(path),
            "base": beneath,
            "base_hash": record.base_hash,
            "logit_difference": difference,
            **kept,
        },
        record={},
        score=read_score(path),
        data=NO_DATA,
        behind=lineage_of(path).stages,
    )
    print(
        f"done: {out}, whole weights"
        f" ({', '.join(sorted({str(d).removeprefix('torch.') for d in dtypes.values()}))})"
    )
    return 0


def main(argv: list[str]) -> int:
    """Run `lit_pretrain merge RUN OUT`."""
    from lit_pretrain.cli.parser import make_parser

    parser = make_parser("merge", __doc__)
    parser.add_function_arguments(merge, as_positional=True)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return merge(**options)


VERB = Verb(main, example="lit_pretrain merge runs/lora runs/merged")
