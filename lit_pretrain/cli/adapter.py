"""Exchange adapters with peft: `adapter export RUN OUT`, `adapter import FOLDER OUT BASE`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.cli.command.verb import Group, Verb
from lit_pretrain.errors import UserError
from lit_pretrain.files import follow_umask, write_file

if TYPE_CHECKING:
    from torch import Tensor

    from lit_pretrain.adapter import LoRA
    from lit_pretrain.model.config import ModelConfig


def export_peft(
    run: str,
    out: str,
    checkpoint: str = "last",
    base: str | None = None,
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Write the adapter of a run for peft: adapter_config.json and adapter_model.safetensors.

    Args:
        run: The folder of a run with an adapter, or one of its checkpoints.
        out: Folder to write; it must not exist.
        checkpoint: For a run folder: last or best.
        base: Name or folder of the base in Hugging Face format, which peft is to load under the
            adapter. Default: that of the run, if it is one.
        accept: Fields of the contract that may differ from the record: tokenizer, template,
            vocabulary, bos_id, eos_id, stop_ids.
    """
    from safetensors.torch import save_file

    from lit_pretrain.adapter import FIRST_ROW, ROWS
    from lit_pretrain.checkpoint.layout import config_of, is_hf_folder, resolve
    from lit_pretrain.checkpoint.lineage import (
        LINEAGE_FILENAME,
        Lineage,
        check_files,
        lineage_of,
        stage_record,
    )
    from lit_pretrain.checkpoint.network import model_config
    from lit_pretrain.checkpoint.peft_format import PEFT_CONFIG, PEFT_WEIGHTS, to_peft
    from lit_pretrain.checkpoint.weights import read_adapter_record, read_stored
    from lit_pretrain.data_lineage import NO_DATA
    from lit_pretrain.report.run_folder import check_new_folder, provenance, timestamp, write_folder

    check_new_folder(out)
    path = resolve(run, which=checkpoint)
    record = read_adapter_record(path)
    if record is None:
        raise UserError(f"{path} is a whole network: there is no adapter in it to export")
    if base is None and is_hf_folder(Path(record.base)):
        base = record.base
    shape = model_config(config_of(path)["model"]["net"])
    stored = read_stored(path)
    config, tensors = to_peft(shape, record.adapter, stored, base=base)
    language = check_files(path, accept=tuple(accept))

    def fill(folder: Path) -> None:
        write_file(folder / PEFT_CONFIG, json.dumps(config, indent=2) + "\n")
        save_file(tensors, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
        follow_umask(folder / PEFT_WEIGHTS)
        if language is not None:
            language.save(folder)
        recorded = provenance(
            {"verb": "adapter export", "parent": str(path), "started": timestamp()}
        )
        stage = stage_record(Path(out).name, recorded, NO_DATA)
        lineage = Lineage.begin(language, stage, lineage_of(path))
        write_file(folder / LINEAGE_FILENAME, lineage.dump())

    write_folder(Path(out), fill)
    done = f"done: {out}, rank {config['r']}, {len(tensors)} tensors"
    done += (
        f"; its base there: {base}" if base else "; no base is named: give peft the base's export"
    )
    new = stored.get(f"token_embedding.{ROWS}")
    if new is not None:
        rows = int(stored[f"token_embedding.{FIRST_ROW}"]) + len(new)
        done += (
            f"; it has rows of {len(new)} new tokens: where the base has fewer than {rows} ids,"
            f" call model.resize_token_embeddings({rows}) before peft loads the adapter"
        )
    if record.adapter.quantize:
        done += (
            "; it was trained on NF4: load the base with bnb_4bit_quant_type='nf4', double"
            " quantisation"
        )
    print(done)
    return 0


def import_peft(
    folder: str,
    out: str,
    base: str,
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Make an adapter of peft a run of ours, to generate with, measure, merge and start from.

    Args:
        folder: It holds adapter_config.json and adapter_model.safetensors.
        out: Folder of the run to write; it must not exist.
        base: The network that it belongs to: a run, a checkpoint or a Hugging Face folder.
        accept: Fields of the contract in which the adapter's tokenizer may differ from the base's.
    """
    import dataclasses
    import os

    from lit_pretrain.chat.model_tokenizer import check_model_tokenizer
    from lit_pretrain.checkpoint.layout import artefact_folder, config_of, is_hf_folder
    from lit_pretrain.checkpoint.lineage import Lineage, check_files, lineage_of
    from lit_pretrain.checkpoint.network import find_parent, model_config
    from lit_pretrain.checkpoint.peft_format import from_peft, read_peft
    from lit_pretrain.checkpoint.weights import AdapterRecord, weights_identity
    from lit_pretrain.checkpoint.write_run import RunContent, write_run
    from lit_pretrain.cli.train.resolve import adapter_cost
    from lit_pretrain.data_lineage import NO_DATA
    from lit_pretrain.model.config import count_parameters
    from lit_pretrain.report.run_folder import Provenance, read_provenance

    settings, tensors = read_peft(Path(folder))
    parent = find_parent(base)
    shape = model_config(parent.shape)
    adapter, ours = from_peft(shape, settings, tensors, where=folder)
    _check_fit(shape, adapter, ours, folder)
    base_folder = artefact_folder(parent.path)
    own_lineage = Lineage.read(Path(folder))
    own_language = check_files(folder, accept=tuple(accept))
    base_language = check_files(base_folder, accept=tuple(accept))
    if own_language is not None and base_language is not None:
        # An adapter may have learned conversations, of which its base knows nothing.
        expected, found = (
            {**language.record(), "template": None, "stop_ids": None}
            for language in (base_language, own_language)
        )
        check_model_tokenizer(
            expected,
            found,
            owner=f"the base {parent.path}",
            other=f"the adapter {folder}",
            accept=tuple(accept),
        )
    facts: Provenance = {}
    config: dict[str, Any]
    if is_hf_folder(parent.path):
        model = {"net": parent.shape}
        config = {"trainer": {"precision": "32-true"}, "data": {}, "model": model}
    else:
        config, facts = config_of(parent.path), read_provenance(base_folder)
    record = AdapterRecord(
        adapter,
        str(parent.path),
        os.path.relpath(parent.path, out),
        weights_identity(str(parent.path)),
    )
    config["model"] |= {"adapter": record.stored()["adapter"], "init_from": str(parent.path)}
    config.setdefault("max_steps", 0)
    run = RunContent(
        config=config,
        tensors=ours,
        step=0,
        language=own_language or base_language,
        facts={
            "verb": "adapter import",
            "parent": str(parent.path),
            "imported": folder,
            "adapter": adapter_cost(shape, adapter).line(adapter),
            "parameters": dataclasses.asdict(count_parameters(shape)),
            "manifest_hash": facts.get("manifest_hash", ""),
            "tokenizer_hash": facts.get("tokenizer_hash", ""),
            "data": facts.get("data", ""),
            "precision": facts.get("precision", "32-true"),
        },
        adapter=record,
        data=None if own_lineage is None else NO_DATA,
        parent=lineage_of(parent.path) if own_lineage is None else own_lineage,
    )
    write_run(Path(out), run)
    print(f"done: {out}, rank {adapter.rank}, {len(ours)} tensors on {parent.path}")
    return 0


def _check_fit(
    shape: ModelConfig, adapter: LoRA, tensors: Mapping[str, Tensor], folder: str
) -> None:
    """Refuse tensors that are not those of the network with this adapter."""
    import torch

    from lit_pretrain.adapter import is_adapter_tensor
    from lit_pretrain.model.transformer import Transformer

    with torch.device("meta"):
        net = Transformer(shape)
        adapter.apply(net)
    expected = {
        name: tuple(value.shape)
        for name, value in net.state_dict().items()
        if is_adapter_tensor(name)
    }
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = [
        name
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        raise UserError(
            f"{folder} does not fit this network: {wrong[0]} is {found.get(wrong[0])} instead of"
            f" {expected.get(wrong[0])}"
        )


def _call(name: str, function: Callable[..., int], argv: list[str]) -> int:
    from lit_pretrain.cli.command.parser import run_function

    return run_function(
        f"adapter {name}", VERB.parts[name].help, function, argv, as_positional=True
    )


VERB = Group(
    {
        "export": Verb(
            lambda argv: _call("export", export_peft, argv),
            example="lit_pretrain adapter export runs/lora exported/lora",
            help="Write the adapter of a run for peft.",
        ),
        "import": Verb(
            lambda argv: _call("import", import_peft, argv),
            example="lit_pretrain adapter import exported/lora runs/imported runs/quickstart",
            help="Make an adapter of peft a run, to generate with, measure, merge or start from.",
        ),
    }
)
