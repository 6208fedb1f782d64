"""Model card: the README.md of an export.

It describes the weights, how to prompt them, what was measured and what they were trained on.
"""

from collections.abc import Mapping, Sequence

from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.checkpoint.lineage import StageRecord


def model_card(
    *,
    title: str,
    kind: str,
    parameters: int,
    dtype: str,
    language: ModelTokenizer,
    stages: Sequence[StageRecord],
    measured: Mapping[str, float],
    compared: str,
    versions: Mapping[str, str],
) -> str:
    """Write the text of the card.

    Args:
        title: Name of the model.
        kind: Model type of transformers.
        parameters: Number of parameters.
        dtype: Type of the weights.
        language: Tokenizer and template.
        stages: The lineage, newest first.
        measured: Figures of the last validation, by name.
        compared: One line on the comparison of logits.
        versions: Versions of the libraries that wrote the export.
    """
    bos, template = language.tokenizer.bos, language.template
    written = f'`tokenizer("{bos}" + text)`'
    prompts = (
        f"Plain text that begins with `{bos}`, as every document of the training did: {written}."
        " transformers 5 puts it there itself if the tokenizer is loaded with"
        " `add_bos_token=True`, and so does lm-eval with that among its `--model_args`."
        if template is None
        else (
            f"Conversations by the chat template (sha256 `{template.hash[:16]}`), which"
            f" {'begins' if language.adds_bos else 'does not begin'} with `{bos}`; the tokenizer"
            " adds none."
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
        f"A {kind} network with {parameters:,} parameters in {dtype}, trained with lit_pretrain.",
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
            f" {', '.join(map(str, sorted(language.stop_ids)))}."
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


def _stage(stage: StageRecord) -> list[str]:
    when = f", {stage['started']}" if stage.get("started") else ""
    revision = f", revision `{stage['revision']}`" if stage.get("revision") else ""
    lines = [f"- **{stage['name']}**: {stage['verb']}{when}{revision}"]
    data = stage["data"]
    if data is None:
        return [*lines, "  - data: unknown"]
    if not data["sources"]:
        return lines
    lines += [f"  - data {data['where']} (`{data['hash']:.16}`)"]
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
                f" {s['tokens']:,} | `{s['sha256']:.16}` |"
            )
        lines.append("")
    else:
        for name, s in data["sources"].items():
            lines.append(
                f"  - rows {name}: {s.get('path') or 'generated'} ({s.get('format')})"
                + (f", sha256 `{s['sha256']:.16}`" if s["sha256"] else "")
            )
    if data["gate"]:
        lines += [
            f"  - decontaminated against {r['name']}: {r['documents_hit']:,} documents with a hit,"
            f" {r['action']}; {r['unchecked_items']:,} of {r['items']:,} items are too short to be"
            " searched for"
            for r in data["gate"]
        ]
    else:
        lines.append("  - not decontaminated")
    return lines
