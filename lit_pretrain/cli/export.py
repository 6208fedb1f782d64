"""Write a run as a Hugging Face folder: `export --to hf RUN OUT`."""

from pathlib import Path
from typing import Literal

from lit_pretrain.cli.command.load_run import Weights
from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError
from lit_pretrain.files import write_file


def export_hf(
    run: str,
    out: str,
    to: Literal["hf"] = "hf",
    checkpoint: str = "last",
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    max_shard_gb: float = 5.0,
    tolerance: float | None = None,
    weights: Weights = "trained",
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Write a run as a Hugging Face folder for transformers 4 and 5, vLLM, lm-eval and llama.cpp.

    Args:
        run: A run folder, or one of its checkpoints; an adapter is merged into its base.
        out: Folder to write; it must not exist.
        to: Format.
        checkpoint: For a run folder: last or best.
        dtype: Of the weights. stored: as the checkpoint holds them.
        max_shard_gb: Largest file of weights, in GB (10⁹ bytes); more of them get an index.
        tolerance: Largest difference between logits before and after, relative to the largest
            logit. Default: 1e-4, or 0.1 where weights are rounded to 16 bits.
        weights: The weights as training left them, or their moving average (model.ema_half_life).
        accept: Fields of the contract that may differ from the record: tokenizer, template,
            vocabulary, bos_id, eos_id, stop_ids.
    """
    from lit_pretrain.report.run_folder import check_new_folder

    if max_shard_gb <= 0:
        raise UserError(f"--max_shard_gb={max_shard_gb} must be positive")
    check_new_folder(out)
    import torch

    from lit_pretrain.checkpoint.hf_card import model_card
    from lit_pretrain.checkpoint.hf_export import (
        architecture,
        to_tensors,
        write_configs,
        write_tensors,
        write_tokenizer,
    )
    from lit_pretrain.checkpoint.layout import is_hf_folder, resolve
    from lit_pretrain.checkpoint.lineage import (
        LINEAGE_FILENAME,
        Lineage,
        check_files,
        lineage_of,
        stage_record,
    )
    from lit_pretrain.checkpoint.network import (
        check_same_logits,
        hf_logits,
        load_network,
        logits_of,
        other_ids,
        probe_tokens,
        read_hf_network,
    )
    from lit_pretrain.checkpoint.weights import read_score, read_weights, weights_identity
    from lit_pretrain.data_lineage import NO_DATA
    from lit_pretrain.model.config import count_parameters
    from lit_pretrain.report.run_folder import (
        PROVENANCE,
        last_validation,
        provenance,
        timestamp,
        write_folder,
    )

    if is_hf_folder(Path(run)):
        raise UserError(f"{run} is a Hugging Face folder already")
    path = resolve(run, which=checkpoint)
    home = path.parent.parent
    language = check_files(path, accept=tuple(accept))
    if language is None:
        raise UserError(
            f"{home} holds no tokenizer.json, without which nobody could use the export; put that"
            " of its data there"
        )
    average = weights == "average"
    net = load_network(path, average=average).eval()
    kind, shape = architecture(net.config)
    if language.tokenizer.vocab_size > net.config.vocab_size:
        raise UserError(
            f"vocabulary: the network of {path} has {net.config.vocab_size} ids, the tokenizer"
            f" beside it {language.tokenizer.vocab_size}"
        )
    if read_score(path) is not None:
        raise UserError(
            f"{path} is a reward model: its score head has no place in a {kind} language model, and"
            " would be lost"
        )
    tokens_BT = probe_tokens(net.config)
    expected_BTV = logits_of(net, tokens_BT)
    del net  # beside the tensors that follow it would double the memory
    stored = read_weights(str(path), average=average)
    tensors = to_tensors(shape, stored, None if dtype == "stored" else getattr(torch, dtype))
    rounded = dtype in ("bfloat16", "float16") and any(
        tensor.dtype == torch.float32 for tensor in stored.values()
    )
    del stored
    written_dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    report: list[str] = []

    def fill(folder: Path) -> None:
        write_configs(folder, shape, language, dtype=written_dtype)
        files = write_tensors(tensors, folder, max_shard_bytes=int(max_shard_gb * 1e9))
        write_tokenizer(folder, language, length=shape.max_seq_len)
        found_BTV, reader = hf_logits(folder, tokens_BT), "transformers"
        if found_BTV is None:
            found_BTV = logits_of(read_hf_network(folder), tokens_BT)
            reader = "lit_pretrain (transformers is not installed)"
        difference = check_same_logits(
            expected_BTV,
            found_BTV,
            what=f"the run and its export read by {reader}",
            tolerance=tolerance if tolerance is not None else 0.1 if rounded else 1e-4,
            mend=(
                "Use --dtype float32, or accept it with --tolerance"
                if rounded
                else "Accept it with --tolerance only if you know why"
            ),
            say=report.append,
        )
        recorded = provenance({"verb": "export", "parent": str(path), "started": timestamp()})
        stage = stage_record(Path(out).name, recorded, NO_DATA)
        stage["weights"] = weights_identity(str(folder))
        stage["logit_difference"] = difference
        lineage = Lineage.begin(language, stage, lineage_of(path))
        write_file(folder / LINEAGE_FILENAME, lineage.dump())
        card = model_card(
            title=Path(out).name,
            kind=kind,
            parameters=count_parameters(shape).total,
            dtype=written_dtype,
            language=language,
            stages=lineage.stages,
            # The run has measured its weights, not their average.
            measured={} if average else last_validation(home),
            compared=report[0],
            versions=recorded["versions"],
        )
        write_file(folder / "README.md", card)
        if (difference_of_ids := other_ids(folder, language.tokenizer)) is not None:
            report.append(
                f"tokenizer: {difference_of_ids}; PreTrainedTokenizerFast.from_pretrained reads it"
                " as it is"
            )
        plural = "s" if len(files) > 1 else ""
        report.append(f"done: {out}: {kind}, {written_dtype}, {len(files)} file{plural} of weights")

    write_folder(Path(out), fill)
    print(*report, sep="\n")
    if not (home / PROVENANCE).is_file():
        print(f"{home} has no {PROVENANCE}: the card could not say where it comes from")
    return 0


def main(argv: list[str]) -> int:
    """Run `lit_pretrain export RUN OUT`."""
    from lit_pretrain.cli.command.parser import run_function

    return run_function("export", __doc__, export_hf, argv, as_positional=True)


VERB = Verb(main, example="lit_pretrain export --to hf runs/quickstart exported/quickstart")
