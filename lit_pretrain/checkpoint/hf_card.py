"""Card: the README.md of an exported folder, which says what the weights are, how to prompt
them and all that they were made of.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Optional


def model_card(
    *,
    title: str,
    kind: str,
    parameters: int,
    dtype: str,
    language: Mapping[str, Any],
    bos: str,
    adds_bos: bool,
    stages: Sequence[Mapping[str, Any]],
    measured: Mapping[str, float],
    compared: str,
    versions: Mapping[str, str],
) -> str:
    """The text of the card.

    Args:
        title: Name of the model.
        kind: Model type of transformers.
        parameters: How many.
        dtype: Of the weights.
        language: Record of tokenizer and template.
        bos: Spelling of the token that begins a document.
        adds_bos: Whether prompts begin with it.
        stages: The lineage, newest first.
        measured: Last figures of validation, by name.
        compared: The comparison of logits, in words.
        versions: Of the libraries that wrote it.
    """
    template = language.get("template")
    written = f'`tokenizer("{bos}" + text)`'
    prompts = (
        f"Plain text that begins with `{bos}`, as every document of the training did: {written}."
        " transformers 5 puts it there itself if the tokenizer is loaded with"
        " `add_bos_token=True`, and so does lm-eval with that among its `--model_args`."
        if template is None
        else (
            f"Conversations by the chat template (sha256 `{template[:16]}`), which"
            f" {'begins' if adds_bos else 'does not begin'} with `{bos}`; the tokenizer adds none."
        )
    )
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {title}",
        "",
        f"A {kind} network with {parameters:,} parameters in {dtype}, made by lit_pretrain.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        (
            'model, tokenizer = AutoModelForCausalLM.from_pretrained("FOLDER"),'
            ' AutoTokenizer.from_pretrained("FOLDER")'
        ),
        "```",
        "",
        (
            f"Prompts: {prompts} Generation stops at the ids"
            f" {', '.join(map(str, language['stop_ids']))}."
        ),
        "",
        "## Figures",
        "",
        *(
            [f"- {name}: {value:.4f}" for name, value in measured.items()]
            or ["None were measured by the run itself."]
        ),
        f"- export: {compared}",
        "",
        "## Lineage, newest first",
        "",
    ]
    for stage in stages:
        lines += _stage(stage)
    lines += [
        "",
        "## Written by",
        "",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
    ]
    return "\n".join(lines)


def _stage(stage: Mapping[str, Any]) -> list[str]:
    when = f", {stage['started']}" if stage.get("started") else ""
    revision = f", revision `{stage['revision']}`" if stage.get("revision") else ""
    lines = [f"- **{stage['name']}**: {stage['verb']}{when}{revision}"]
    data: Optional[Mapping[str, Any]] = stage.get("data")
    if data is None:
        return [*lines, "  - data: not known"]
    if not data["sources"]:
        return lines
    lines += [f"  - data {data['where']} (`{data['hash'][:16]}`)"]
    if any("tokens" in source for source in data["sources"].values()):
        lines += [
            "",
            "    | source | kind | licence | origin | documents | tokens | sha256 |",
            "    |---|---|---|---|---|---|---|",
        ]
        for name, s in data["sources"].items():
            where = s.get("origin") or s.get("path") or "—"
            licence = s.get("licence") or "not stated"
            lines.append(
                f"    | {name} | {s['kind']} | {licence} | {where} | {s['documents']:,} |"
                f" {s['tokens']:,} | `{s['sha256'][:16]}` |"
            )
        lines.append("")
    else:
        for name, s in data["sources"].items():
            lines.append(
                f"  - rows {name}: {s.get('path') or 'made'} ({s.get('format')})"
                + (f", sha256 `{s['sha256'][:16]}`" if s["sha256"] else "")
            )
    if data["gate"]:
        lines += [
            f"  - held against {r['name']}: {r['documents_hit']:,} documents with a hit,"
            f" {r['action']}; {r['unchecked_items']:,} of {r['items']:,} items too short to be"
            " looked for"
            for r in data["gate"]
        ]
    else:
        lines.append("  - held against no evaluation set")
    return lines
