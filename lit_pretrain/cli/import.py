"""Make a Hugging Face folder a run: `import FOLDER OUT`."""

from pathlib import Path

from lit_pretrain.cli.command.verb import Verb
from lit_pretrain.errors import UserError


def import_hf(
    folder: str,
    out: str,
    tolerance: float | None = None,
    accept: list[str] = [],  # noqa: B006  (jsonargparse shows the default; it is never changed)
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

    from lit_pretrain.checkpoint.hf_import import read_shape, read_tensors, weight_files
    from lit_pretrain.checkpoint.layout import is_hf_folder, resolve
    from lit_pretrain.checkpoint.lineage import check_files, lineage_of
    from lit_pretrain.checkpoint.network import (
        check_same_logits,
        hf_logits,
        load_network,
        logits_of,
        model_config,
        probe_tokens,
        read_hf_network,
    )
    from lit_pretrain.checkpoint.weights import weights_identity
    from lit_pretrain.checkpoint.write_run import RunContent, write_run
    from lit_pretrain.data_lineage import NO_DATA
    from lit_pretrain.model.config import count_parameters
    from lit_pretrain.report.run_folder import check_new_folder

    source = Path(folder)
    if not is_hf_folder(source):
        raise UserError(
            f"{folder} is not a Hugging Face folder: it holds no config.json that names a"
            " model_type"
        )
    check_new_folder(out)
    weight_files(source)
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
    parent = lineage_of(source)
    recorded = parent.stages[0].get("weights")
    if recorded is not None and "weights" not in accept:
        found = weights_identity(folder)
        if found != recorded:
            raise UserError(
                f"{folder} does not fit its record:\n  weights (sha256 of their content): expected"
                f" {recorded}, found {found}\nCopy the folder again. If the weights were changed"
                " deliberately, remove its lineage.json, which speaks of others"
            )
    tokens_BT = probe_tokens(shape)
    logits_BTV, reader = hf_logits(source, tokens_BT), "transformers"
    if logits_BTV is None:
        logits_BTV = logits_of(read_hf_network(source), tokens_BT)
        reader = "lit_pretrain (transformers is not installed)"
    expected_BTV, report = logits_BTV, list[str]()

    def check(run: Path) -> None:
        check_same_logits(
            expected_BTV,
            logits_of(load_network(resolve(str(run))).eval(), tokens_BT),
            what=f"the folder read by {reader} and the run",
            tolerance=1e-4 if tolerance is None else tolerance,
            mend="Accept it with --tolerance only if you know why",
            say=report.append,
        )

    counts = count_parameters(shape)
    run = RunContent(
        config={
            "trainer": {"precision": "32-true"},
            "data": {},
            "model": {"net": fields, "init_from": None, "adapter": None},
            "max_steps": 0,
        },
        tensors=read_tensors(source),
        step=0,
        language=language,
        facts={
            "verb": "import",
            "parent": folder,
            "adapter": None,
            "parameters": dataclasses.asdict(counts),
            "precision": "32-true",
            "data": "",
            "manifest_hash": "",
            "tokenizer_hash": language.tokenizer.hash,
            "template_hash": None if language.template is None else language.template.hash,
        },
        data=NO_DATA,
        parent=parent,
    )
    write_run(Path(out), run, check=check)
    print(*report, f"done: {out}, {counts.total:,} parameters", sep="\n")
    return 0


def main(argv: list[str]) -> int:
    """Run `lit_pretrain import FOLDER OUT`."""
    from lit_pretrain.cli.command.parser import run_function

    return run_function("import", __doc__, import_hf, argv, as_positional=True)


VERB = Verb(main, example="lit_pretrain import exported/quickstart runs/imported")
