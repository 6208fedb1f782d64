"""Write a run as a Hugging Face folder: `export --to hf RUN OUT`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Optional

from lit_pretrain.cli.verb import Verb
from lit_pretrain.errors import UserError

# HF exchange: what `lit_pretrain export` and `import` do, whole networks to Hugging Face folders
# and from them.


def export_hf(
    run: str,
    out: str,
    to: Literal["hf"] = "hf",
    checkpoint: str = "last",
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    max_shard_gb: float = 5.0,
    tolerance: Optional[float] = None,
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Write a run as a Hugging Face folder that transformers 4 and 5, vLLM, lm-eval and llama.cpp's
    converter read.

    Args:
        run: A run folder, or one of its checkpoints; an adapter is put into its base.
        out: Folder to write; it must not exist.
        to: Format.
        checkpoint: For a run folder: last or best.
        dtype: Of the weights. stored: as the checkpoint holds them.
        max_shard_gb: Largest file of weights, in GB (10⁹ bytes); more of them get an index.
        tolerance: Largest difference between logits before and after, relative to the largest
            logit. Default: 1e-4, or 0.1 where weights are rounded to 16 bits.
        accept: Fields of the contract that may differ from the record: tokenizer, template,
            vocabulary, bos_id, eos_id, stop_ids.
    """
    if checkpoint not in ("last", "best"):
        raise UserError(
            f"--checkpoint={checkpoint!r} must be last or best; a single checkpoint is named as RUN"
            " itself"
        )
    if max_shard_gb <= 0:
        raise UserError(f"--max_shard_gb={max_shard_gb} must be positive")
    if Path(out).exists():
        raise UserError(f"{out} exists already; choose another place, or remove it")
    import torch

    from lit_pretrain.checkpoint.find import resolve
    from lit_pretrain.checkpoint.hf_card import model_card
    from lit_pretrain.checkpoint.hf_export import architecture, to_config, to_tensors, write_tensors
    from lit_pretrain.checkpoint.hf_import import HF_CONFIG, is_hf_folder, read_shape
    from lit_pretrain.checkpoint.lineage import LINEAGE_FILENAME, Lineage
    from lit_pretrain.checkpoint.network import load_network, model_config
    from lit_pretrain.checkpoint.weights import (
        load_weights,
        read_metadata,
        read_weights,
        weights_identity,
    )
    from lit_pretrain.cli.exchange import (
        check_same,
        hf_logits,
        other_ids,
        probe_tokens,
        write_folder,
    )
    from lit_pretrain.cli.lineage import check_files, lineage_of, stage_record
    from lit_pretrain.data.data_record import NO_DATA
    from lit_pretrain.files import write_file
    from lit_pretrain.model.config import count_parameters
    from lit_pretrain.model.transformer import Transformer
    from lit_pretrain.report.run_folder import PROVENANCE, provenance

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
    net = load_network(path).eval()
    kind, written = architecture(net.config)
    if language.tokenizer.vocab_size > net.config.vocab_size:
        raise UserError(
            f"vocabulary: the network of {path} has {net.config.vocab_size} ids, the tokenizer"
            f" beside it {language.tokenizer.vocab_size}"
        )
    if not path.is_dir() and any(
        key.startswith("score.") for key in read_metadata(path).get("state_dict", {})
    ):
        raise UserError(
            f"{path} is a reward model: its score head has no place in a {kind} language model, and"
            " would be lost"
        )
    tokens_BT = probe_tokens(net.config)
    with torch.no_grad():
        before = net.logits(net(tokens_BT))
    del net
    stored = read_weights(str(path))
    tensors = to_tensors(written, stored, None if dtype == "stored" else getattr(torch, dtype))
    rounded = dtype in ("bfloat16", "float16") and any(
        tensor.dtype == torch.float32 for tensor in stored.values()
    )
    name = str(tensors[next(iter(tensors))].dtype).removeprefix("torch.")
    del stored
    said: list[str] = []
    tokenizer = language.tokenizer
    pad_id = tokenizer.special_tokens.get("<|pad|>")

    def fill(folder: Path) -> None:
        config = to_config(
            written, dtype=name, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=pad_id
        )
        write_file(folder / HF_CONFIG, _json(config))
        files = write_tensors(tensors, folder, max_shard_bytes=int(max_shard_gb * 1e9))
        _write_language(folder, language, length=written.max_seq_len)
        generation = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": sorted(language.stop_ids),
            "pad_token_id": pad_id,
        }
        write_file(
            folder / "generation_config.json",
            _json({**generation, "do_sample": True, "temperature": 0.8, "top_p": 0.95}),
        )
        found = hf_logits(folder, tokens_BT)
        by = "transformers" if found is not None else "lit_pretrain (transformers is not installed)"
        if found is None:
            again = Transformer(model_config(read_shape(folder))).eval()
            load_weights(again, str(folder))
            with torch.no_grad():
                found = again.logits(again(tokens_BT))
        difference = check_same(
            before,
            found,
            what=f"the run and its export read by {by}",
            tolerance=tolerance,
            rounded=rounded,
            say=said.append,
        )
        parent = lineage_of(path)
        made = provenance(verb="export", parent=str(path), started=_now())
        stage = stage_record(Path(out).name, made, NO_DATA) | {
            "weights": weights_identity(str(folder)),
            "logit_difference": difference,
        }
        stages = (stage, *parent.stages)
        write_file(folder / LINEAGE_FILENAME, Lineage(language.record(), stages).dump())
        card = model_card(
            title=Path(out).name, kind=kind, parameters=count_parameters(written).total, dtype=name,
            language=language.record(),
            bos=tokenizer.bos, adds_bos=language.adds_bos, stages=stages, measured=_measured(home),
            compared=said[0],
            versions=made["versions"],
        )  # fmt: skip
        write_file(folder / "README.md", card)
        if (other := other_ids(folder, tokenizer)) is not None:
            said.append(
                f"tokenizer: {other}; PreTrainedTokenizerFast.from_pretrained reads it as it is"
            )
        said.append(
            f"done: {out}: {kind}, {name}, {len(files)} file{'s' if len(files) > 1 else ''} of"
            " weights"
        )

    write_folder(Path(out), fill)
    for line in said:
        print(line)
    if not (home / PROVENANCE).is_file():
        print(f"{home} has no {PROVENANCE}: the card could not say where it comes from")
    return 0


def import_hf(
    folder: str,
    out: str,
    tolerance: Optional[float] = None,
    accept: list[str] = [],  # noqa: B006
) -> int:
    """Make a Hugging Face folder a run of ours, to train, generate, evaluate and export from.

    Args:
        folder: Llama, Mistral, Qwen2, Qwen3 or GPT-2, with safetensors and tokenizer.json.
        out: Folder of the run to write; it must not exist.
        tolerance: Largest difference between logits before and after, relative to the largest
            logit. Default: 1e-4.
        accept: Fields of the contract that may differ from the record of an export.
    """
    import dataclasses

    import torch

    from lit_pretrain.checkpoint.find import resolve
    from lit_pretrain.checkpoint.hf_import import is_hf_folder, read_shape, read_tensors
    from lit_pretrain.checkpoint.network import load_network, model_config
    from lit_pretrain.checkpoint.weights import load_weights, weights_identity
    from lit_pretrain.cli.exchange import check_same, hf_logits, probe_tokens, write_run
    from lit_pretrain.cli.lineage import check_files, lineage_of
    from lit_pretrain.data.data_record import NO_DATA
    from lit_pretrain.model.config import count_parameters
    from lit_pretrain.model.transformer import Transformer

    source = Path(folder)
    if not is_hf_folder(source):
        raise UserError(
            f"{folder} is not a Hugging Face folder: it holds no config.json that names a"
            " model_type"
        )
    if Path(out).exists():
        raise UserError(f"{out} exists already; choose another place, or remove it")
    fields = read_shape(source)
    shape = model_config(fields)
    language = check_files(source, accept=tuple(accept))
    if language is None:
        raise UserError(
            f"{folder} holds no tokenizer.json; save the tokenizer there with transformers"
            " (`use_fast=True`)"
        )
    if language.tokenizer.vocab_size > shape.vocab_size:
        raise UserError(
            f"vocabulary: the network of {folder} has {shape.vocab_size} ids, its tokenizer"
            f" {language.tokenizer.vocab_size}"
        )
    behind = lineage_of(source)
    recorded = behind.stages[0].get("weights")
    if (
        recorded is not None
        and "weights" not in accept
        and (found_hash := weights_identity(folder)) != recorded
    ):
        raise UserError(
            f"{folder} does not fit its record:\n  weights (sha256 of their content): expected"
            f" {recorded}, found {found_hash}\nCopy the folder again. If the weights were changed"
            " deliberately, remove its lineage.json, which speaks of others"
        )
    tokens_BT = probe_tokens(shape)
    said: list[str] = []
    expected = hf_logits(source, tokens_BT)
    by = "transformers" if expected is not None else "lit_pretrain (transformers is not installed)"
    if expected is None:
        first = Transformer(shape).eval()
        load_weights(first, folder)
        with torch.no_grad():
            expected = first.logits(first(tokens_BT))

    def check(run: Path) -> None:
        net = load_network(resolve(str(run))).eval()
        with torch.no_grad():
            found = net.logits(net(tokens_BT))
        check_same(
            expected,
            found,
            what=f"the folder read by {by} and the run",
            tolerance=tolerance,
            rounded=False,
            say=said.append,
        )

    model = {"net": fields, "init_from": None, "adapter": None}
    write_run(
        Path(out),
        config={"trainer": {"precision": "32-true"}, "data": {}, "model": model, "max_steps": 0},
        tensors=read_tensors(source),
        step=0,
        language=language,
        facts={
            "verb": "import", "parent": folder, "adapter": None,
            "parameters": dataclasses.asdict(count_parameters(shape)),
            "precision": "32-true", "data": "", "manifest_hash": "",
            "tokenizer_hash": language.tokenizer.hash,
            "template_hash": None if language.template is None else language.template.hash,
        },
        record={},
        data=NO_DATA,
        behind=behind.stages,
        check=check,
    )  # fmt: skip
    for line in [*said, f"done: {out}, {count_parameters(shape).total:,} parameters"]:
        print(line)
    return 0


def _write_language(folder: Path, language: Any, *, length: int) -> None:
    """Tokenizer and template as transformers 4 and 5 both read them: the template within the
    config and in its own file.
    """
    from lit_pretrain.files import write_file
    from lit_pretrain.tokenizer.tokenizer_files import CONFIG_FILENAME, MAP_FILENAME

    language.save(folder)
    tokenizer = language.tokenizer
    config = json.loads((folder / CONFIG_FILENAME).read_text(encoding="utf-8"))
    names = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    if "<|pad|>" in tokenizer.special_tokens:
        names["pad_token"] = "<|pad|>"
    extra = [token for token in tokenizer.special_tokens if token not in names.values()]
    config |= {**names, "additional_special_tokens": extra, "model_max_length": length}
    if language.template is not None:
        config["chat_template"] = language.template.source
    write_file(folder / CONFIG_FILENAME, _json(config))
    write_file(folder / MAP_FILENAME, _json({**names, "additional_special_tokens": extra}))


def _measured(home: Path) -> dict[str, float]:
    """The last figures of a run's validation."""
    from lit_pretrain.report.run_folder import METRICS, read_metrics

    lines: Sequence[dict[str, Any]] = read_metrics(home) if (home / METRICS).is_file() else ()
    held_out = [line for line in lines if "val/loss" in line]
    return (
        {key: value for key, value in held_out[-1].items() if key.startswith("val")}
        if held_out
        else {}
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _now() -> str:
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def main(argv: list[str]) -> int:
    """Run `lit_pretrain export RUN OUT`."""
    from lit_pretrain.cli.parser import make_parser

    parser = make_parser("export", __doc__)
    parser.add_function_arguments(export_hf, as_positional=True)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return export_hf(**options)


VERB = Verb(main, example="lit_pretrain export --to hf runs/quickstart exported/quickstart")
