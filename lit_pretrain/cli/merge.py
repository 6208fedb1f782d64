"""Merge the adapter of a run into its base: a run of whole weights."""

from pathlib import Path
from typing import Literal

from lit_pretrain.cli.command.verb import Verb


def merge(
    run: str,
    out: str,
    checkpoint: str = "last",
    base: str | None = None,
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base",
    tolerance: float | None = None,
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Merge the adapter of a run into its base, and write the whole network as a run.

    Args:
        run: The folder of a run with an adapter, or one of its checkpoints.
        out: Folder to write; it must not exist.
        checkpoint: For a run folder: last or best.
        base: Where the base lies, if not where it lay in training.
        dtype: Of the written weights. base: that of each of the base's weights. The sums are
            computed in fp32 in any case.
        tolerance: Largest difference between logits to accept, relative to the largest logit.
            Default: 1e-5 in float32, 0.1 in 16 bits.
        accept: Fields of the contract that may differ from the record: tokenizer, template,
            vocabulary, bos_id, eos_id, stop_ids.
    """
    from lit_pretrain.report.run_folder import check_new_folder

    check_new_folder(out)
    import torch

    from lit_pretrain.checkpoint.layout import config_of, resolve
    from lit_pretrain.checkpoint.lineage import check_files, lineage_of
    from lit_pretrain.checkpoint.network import (
        check_same_logits,
        load_adapted,
        logits_of,
        probe_tokens,
    )
    from lit_pretrain.checkpoint.weights import read_record, read_score, read_weights
    from lit_pretrain.checkpoint.write_run import RunContent, inherited_facts, write_run
    from lit_pretrain.data_lineage import NO_DATA

    path = resolve(run, which=checkpoint)
    net, adapter, base_place = load_adapted(path, base=base)
    tokens_BT = probe_tokens(net.config)
    expected_BTV = logits_of(net, tokens_BT)
    adapter.adapter.merge(net)
    dtypes = {name: tensor.dtype for name, tensor in read_weights(base_place).items()}
    if dtype != "base":
        dtypes = dict.fromkeys(dtypes, getattr(torch, dtype))
    weights = {name: tensor.to(dtypes[name]) for name, tensor in net.state_dict().items()}
    net.load_state_dict(weights)
    rounded = any(tensor.dtype != torch.float32 for tensor in weights.values())
    difference = check_same_logits(
        expected_BTV,
        logits_of(net, tokens_BT),
        what="adapter beside the base and merged",
        tolerance=tolerance if tolerance is not None else 0.1 if rounded else 1e-5,
        mend="Use --dtype float32, or accept it with --tolerance",
    )
    config = config_of(path)
    config["model"] |= {"adapter": None, "init_from": None}
    merged = RunContent(
        config=config,
        tensors=weights,
        step=read_record(path).step,
        language=check_files(path, accept=tuple(accept)),
        facts={
            **inherited_facts(path.parent.parent),
            "verb": "merge",
            "parent": str(path),
            "base": base_place,
            "base_hash": adapter.base_hash,
            "logit_difference": difference,
        },
        data=NO_DATA,
        parent=lineage_of(path),
        score=read_score(path),
    )
    write_run(Path(out), merged)
    names = sorted({str(value).removeprefix("torch.") for value in dtypes.values()})
    print(f"done: {out}, whole weights ({', '.join(names)})")
    return 0


def main(argv: list[str]) -> int:
    """Run `lit_pretrain merge RUN OUT`."""
    from lit_pretrain.cli.command.parser import run_function

    return run_function("merge", __doc__, merge, argv, as_positional=True)


VERB = Verb(main, example="lit_pretrain merge runs/lora runs/merged")
