"""Exchange adapters with peft: `adapter export RUN OUT`, `adapter import FOLDER OUT BASE`."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from lit_pretrain.cli.verb import Group, Verb
from lit_pretrain.errors import UserError

# PEFT exchange: what `lit_pretrain adapter` does, adapters to peft and from it.


def export_peft(
    run: str,
    out: str,
    checkpoint: str = "last",
    base: Optional[str] = None,
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
) -> int:
    """Write the adapter of a run as peft reads it: adapter_config.json and
    adapter_model.safetensors.

    Args:
        run: The folder of a run with an adapter, or one of its checkpoints.
        out: Folder to write; it must not exist.
        checkpoint: For a run folder: last or best.
        base: Name or folder of the base in Hugging Face format, which peft is to load beneath.
            Default: that of the run, if it is one.
        accept: Fields of the contract that may differ from the record: tokenizer, template,
            vocabulary, bos_id, eos_id, stop_ids.
    """
    from safetensors.torch import save_file

    from lit_pretrain.checkpoint.find import config_of, resolve
    from lit_pretrain.checkpoint.hf_import import is_hf_folder
    from lit_pretrain.checkpoint.lineage import LINEAGE_FILENAME, Lineage
    from lit_pretrain.checkpoint.network import model_config
    from lit_pretrain.checkpoint.peft_format import PEFT_CONFIG, PEFT_WEIGHTS, to_peft
    from lit_pretrain.checkpoint.weights import read_record, read_stored
    from lit_pretrain.cli.exchange import write_folder
    from lit_pretrain.cli.lineage import check_files, lineage_of, stage_record
    from lit_pretrain.data.data_record import NO_DATA
    from lit_pretrain.files import write_file
    from lit_pretrain.report.run_folder import provenance

    path = resolve(run, which=checkpoint)
    record = read_record(path)
    if record is None:
        raise UserError(f"{path} is a whole network: there is no adapter in it to export")
    if base is None and is_hf_folder(Path(record.base)):
        base = record.base
    shape = model_config(config_of(path)["model"]["net"])
    config, tensors = to_peft(shape, record.adapter, read_stored(path), base=base)
    language = check_files(path, accept=tuple(accept))

    def fill(folder: Path) -> None:
        write_file(folder / PEFT_CONFIG, json.dumps(config, indent=2) + "\n")
        save_file(tensors, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
        if language is not None:
            language.save(folder)
        made = provenance(
            verb="adapter export", parent=str(path), started=time.strftime("%Y-%m-%dT%H:%M:%S%z")
        )
        stages = (stage_record(Path(out).name, made, NO_DATA), *lineage_of(path).stages)
        write_file(
            folder / LINEAGE_FILENAME,
            Lineage({} if language is None else language.record(), stages).dump(),
        )

    write_folder(Path(out), fill)
    beneath = (
        f"; its base there: {base}" if base else "; no base is named: give peft the base's export"
    )
    quantized = (
        "; it was trained on NF4: load the base with bnb_4bit_quant_type='nf4', double quantisation"
        if record.adapter.quantize
        else ""
    )
    print(f"done: {out}, rank {config['r']}, {len(tensors)} tensors{beneath}{quantized}")
    return 0


def import_peft(folder: str, out: str, base: str, accept: list[str] = []) -> int:  # noqa: B006
    """Make an adapter of peft a run of ours, which can be generated with, measured, merged and
    started from.

    Args:
        folder: It holds adapter_config.json and adapter_model.safetensors.
        out: Folder of the run to write; it must not exist.
        base: The network that it belongs to: a run, a checkpoint or a Hugging Face folder.
        accept: Fields of the contract in which the adapter's tokenizer may differ from the base's.
    """
    import dataclasses
    import os

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from lit_pretrain.chat.model_tokenizer import check_model_tokenizer
    from lit_pretrain.checkpoint.adapted import RECORD, AdapterRecord
    from lit_pretrain.checkpoint.find import config_of
    from lit_pretrain.checkpoint.hf_import import is_hf_folder
    from lit_pretrain.checkpoint.lineage import Lineage
    from lit_pretrain.checkpoint.network import find_parent, model_config
    from lit_pretrain.checkpoint.peft_format import PEFT_CONFIG, PEFT_WEIGHTS, from_peft
    from lit_pretrain.checkpoint.weights import weights_identity
    from lit_pretrain.cli.exchange import write_run
    from lit_pretrain.cli.lineage import check_files, home_of, lineage_of
    from lit_pretrain.cli.train.resolve import adapter_cost
    from lit_pretrain.data.data_record import NO_DATA
    from lit_pretrain.model.config import count_parameters
    from lit_pretrain.report.run_folder import PROVENANCE

    source = Path(folder)
    try:
        settings: dict[str, Any] = json.loads((source / PEFT_CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(source / PEFT_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder} is not an adapter of peft, or a damaged one ({PEFT_CONFIG}, {PEFT_WEIGHTS}):"
            f" {error}"
        ) from None
    parent = find_parent(base)
    shape = model_config(parent.shape)
    adapter, ours = from_peft(shape, settings, tensors, where=folder)
    _check_fit(shape, adapter, ours, folder)
    foreign = is_hf_folder(parent.path)
    home = home_of(parent.path)
    told, own, beneath = (
        Lineage.read(source),
        check_files(source, accept=tuple(accept)),
        check_files(home, accept=tuple(accept)),
    )
    if own is not None and beneath is not None:
        expected, found = (
            {**language.record(), "template": None, "stop_ids": None} for language in (beneath, own)
        )
        check_model_tokenizer(
            expected,
            found,
            owner=f"the base {parent.path}",
            other=f"the adapter {folder}",
            accept=tuple(accept),
        )
    config: dict[str, Any] = (
        {"trainer": {"precision": "32-true"}, "data": {}, "model": {"net": parent.shape}}
        if foreign
        else config_of(parent.path)
    )
    plain = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(adapter).items()
    }
    config["model"] |= {"adapter": plain, "init_from": str(parent.path)}
    config.setdefault("max_steps", 0)
    facts = {} if foreign else json.loads((home / PROVENANCE).read_text(encoding="utf-8"))
    record = AdapterRecord(
        adapter,
        str(parent.path),
        os.path.relpath(parent.path, out),
        weights_identity(str(parent.path)),
    )
    write_run(
        Path(out),
        config=config,
        tensors=ours,
        step=0,
        language=own
        or beneath,  # an adapter may have learned conversations, of which its base knows nothing
        facts={
            "verb": "adapter import",
            "parent": str(parent.path),
            "imported": folder,
            "adapter": adapter_cost(shape, adapter).line(adapter),
            "parameters": dataclasses.asdict(count_parameters(shape)),
            **{key: facts.get(key, "") for key in ("manifest_hash", "tokenizer_hash", "data")},
            "precision": facts.get("precision", "32-true"),
        },
        record={RECORD: record.plain()},
        data=NO_DATA if told is not None else None,
        behind=lineage_of(parent.path).stages if told is None else told.stages,
    )
    print(f"done: {out}, rank {adapter.rank}, {len(ours)} tensors on {parent.path}")
    return 0


def _check_fit(shape: Any, adapter: Any, tensors: Any, folder: str) -> None:
    """Refuse tensors that are not those of the network with this adapter."""
    import torch

    from lit_pretrain.adapter import is_adapter_tensor
    from lit_pretrain.model.transformer import Transformer

    with torch.device("meta"):
        net = Transformer(shape)
        adapter.apply(net)
    wanted = {
        name: tuple(value.shape)
        for name, value in net.state_dict().items()
        if is_adapter_tensor(name)
    }
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != found:
        wrong = sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )[0]
        raise UserError(
            f"{folder} does not fit this network: {wrong} is {found.get(wrong)} instead of"
            f" {wanted.get(wrong)}"
        )


def _export(argv: list[str]) -> int:

    return _call("export", export_peft, argv)


def _import(argv: list[str]) -> int:

    return _call("import", import_peft, argv)


def _call(name: str, function: Callable[..., int], argv: list[str]) -> int:
    from lit_pretrain.cli.parser import make_parser

    parser = make_parser(f"adapter {name}", VERB.parts[name].help)
    parser.add_function_arguments(function, as_positional=True)
    options = parser.parse_args(argv).as_dict()
    options.pop("config", None)
    return function(**options)


VERB = Group(
    {
        "export": Verb(
            _export,
            example="lit_pretrain adapter export runs/lora exported/lora",
            help="Write the adapter of a run as peft reads it.",
        ),
        "import": Verb(
            _import,
            example="lit_pretrain adapter import exported/lora runs/imported runs/quickstart",
            help="Make an adapter of peft a run, to generate with, measure, merge or start from.",
        ),
    }
)
