"""Row formats: name the field of a row that holds each part, for known layouts and for your own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lit_pretrain.class_path import import_class_path
from lit_pretrain.errors import UserError, did_you_mean


def _same(*parts: str) -> dict[str, str]:
    """Name parts whose fields have the same names."""
    return {part: part for part in parts}


CALL = "tool_call"
"""Role of a message that is a tool call as JSON; it becomes a call of the assistant."""
_TOOL_ROLES = {
    "function_call": CALL,
    "tool_call": CALL,
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function": "tool",
    "ipython": "tool",
}
_MESSAGE_ROLES = {"developer": "system", **_TOOL_ROLES}
_SHAREGPT_ROLES = {
    **_MESSAGE_ROLES,
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
_TURNS = {"messages": "messages", "role": "role", "content": "content"}
_SHAREGPT_TURNS = {"messages": "conversations", "role": "from", "content": "value"}
_INSTRUCTION = {"prompt": "instruction", "input": "input"}
WITHIN = frozenset({"role", "content", "question", "reply", "reply_score", "reply_rank"})
"""Parts that are fields of the objects in a list, not of the row."""
REFERENCE = _same("ref_chosen_logp", "ref_rejected_logp")
"""Parts of a pair that hold log-probabilities under the reference."""


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """Names the field of a row that holds each part.

    The parts are `messages` (a list of messages, with the names of their `role` and `content`) or
    `prompt` (a text or a list of messages) with `input`; `system`, `tools` and `history`; then
    `completion`, or `chosen` and `rejected` with `margin`, or `completion` and `label`, or
    `answer`; and the columns `ref_logp`, `ref_chosen_logp` and `ref_rejected_logp`.
    """

    fields: Mapping[str, str]
    """Part -> field of the row; a dot descends into an object."""
    optional: frozenset[str] = frozenset(
        {"system", "tools", "input", "history", "margin", *REFERENCE, "ref_logp"}
    )
    """Parts that a row may lack."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Role in the file -> our role; our own names are always understood."""
    answer_after: str | None = None
    """Mark in the completion; the checkable answer is the text after its last occurrence."""
    unused: frozenset[str] = frozenset()
    """Fields that such rows have and that are passed over."""
    worked: bool = False
    """Whether the completion is a worked solution, which no reward can compare with an answer."""
    shape: Literal[
        "plain", "transcript", "tree", "segments", "text", "steps", "exchanges", "calls",
        "compared", "ranked", "rated_steps", "marked_steps",
    ] = "plain"  # fmt: skip
    """How the fields hold their parts. transcript: messages as one text with `Human:` and
    `Assistant:`. tree: replies within replies, as OpenAssistant's. segments: pieces of text that
    are learned or not. text: a document without roles. steps: an answer in steps with a label each.
    exchanges: texts by turns, or pairs of question and reply. calls: tool calls as the answer.
    compared: two answers, and a number that prefers one. ranked: answers with a rank or score each.
    rated_steps: alternatives for every step. marked_steps: a text with a mark behind every step.
    """

    def kinds(self) -> list[str]:
        """Return the kinds of rows that this format can give."""
        if self.shape in _KINDS:
            return list(_KINDS[self.shape])
        kinds = (
            ["conversation"]
            if self.fields.keys() & {"messages", "completion", "segments", "text"}
            and "label" not in self.fields
            else []
        )
        kinds += ["preference"] if {"chosen", "rejected"} <= self.fields.keys() else []
        kinds += ["verdict"] if "label" in self.fields else []
        if "prompt" in self.fields and "label" not in self.fields and not self.worked:
            kinds += ["problem"]
        return kinds if "preference" not in kinds else ["preference"]


_KINDS: Mapping[str, tuple[str, ...]] = {
    "tree": ("conversation", "preference"),
    "steps": ("verdict", "stepwise"),
    "rated_steps": ("verdict", "stepwise"),
    "marked_steps": ("verdict", "stepwise"),
    "exchanges": ("conversation",),
    "calls": ("conversation",),
    "compared": ("preference",),
    "ranked": ("preference",),
}
"""Shape -> kinds of rows, where the parts do not say it."""
ROW_FORMATS: Mapping[str, RowFormat] = {
    # OpenAI's fine-tuning files and TRL's conversational datasets.
    "messages": RowFormat(
        fields={**_TURNS, **_same("tools", "system", "functions")},
        optional=RowFormat.optional | {"functions"},
        roles=_MESSAGE_ROLES,
    ),
    "sharegpt": RowFormat(
        fields={**_SHAREGPT_TURNS, **_same("tools", "system")}, roles=_SHAREGPT_ROLES
    ),
    # OpenHermes 2.5: most of its system prompts are null.
    "openhermes": RowFormat(
        fields={**_SHAREGPT_TURNS, "system": "system_prompt"}, roles=_SHAREGPT_ROLES
    ),
    "capybara": RowFormat(
        fields={"messages": "conversation", "question": "input", "reply": "output"},
        shape="exchanges",
    ),
    "lima": RowFormat(fields={"messages": "conversations"}, shape="exchanges"),
    "xlam": RowFormat(
        fields={"prompt": "query", "calls": "answers", **_same("tools", "system")},
        optional=frozenset({"system"}),
        shape="calls",
    ),
    "alpaca": RowFormat(
        fields={**_INSTRUCTION, "completion": "output", **_same("system", "history")}
    ),
    "dolly": RowFormat(
        fields={"prompt": "instruction", "input": "context", "completion": "response"}
    ),
    "orca": RowFormat(
        fields={"prompt": "question", "completion": "response", "system": "system_prompt"}
    ),
    "prompt_completion": RowFormat(fields=_same("prompt", "completion", "system", "tools")),
    "qa": RowFormat(fields={"prompt": "question", "completion": "answer", "system": "system"}),
    "gsm8k": RowFormat(fields={"prompt": "question", "completion": "answer"}, answer_after="####"),
    "metamath": RowFormat(
        fields={"prompt": "query", "completion": "response"},
        answer_after="The answer is:",
        unused=frozenset({"original_question"}),
    ),
    # NuminaMath 1.5, Big-Math and DeepScaleR, with an answer that can be checked.
    "problem_answer": RowFormat(
        fields={"prompt": "problem", "answer": "answer"}, unused=frozenset({"solution"})
    ),
    # MATH and NuminaMath.
    "problem_solution": RowFormat(
        fields={"prompt": "problem", "completion": "solution"},
        unused=frozenset({"answer"}),
        worked=True,
    ),
    # verl's rows, such as those of DAPO.
    "verl": RowFormat(fields={"prompt": "prompt", "answer": "reward_model.ground_truth"}),
    "prompt_answer": RowFormat(fields=_same("prompt", "answer", "system", "tools")),
    # TRL's prompt-only rows, for rewards that need no answer.
    "prompt": RowFormat(fields=_same("prompt", "system", "tools")),
    "text": RowFormat(fields=_same("text"), shape="text"),
    "transcript": RowFormat(fields={"messages": "text", "system": "system"}, shape="transcript"),
    "input_output": RowFormat(fields=_same("segments"), shape="segments"),
    "oasst_tree": RowFormat(
        fields=_same("prompt"), shape="tree", unused=frozenset({"message_tree_id", "tree_state"})
    ),
    # Texts or lists of messages. Without a prompt, it is the common beginning of both answers.
    "preference": RowFormat(
        fields={**_same("prompt", "chosen", "rejected", "margin", "tools"), **REFERENCE},
        optional=frozenset({"prompt", "margin", "tools", *REFERENCE}),
    ),
    # `output` is the answer from which the two were made.
    "alpaca_preference": RowFormat(
        fields={**_INSTRUCTION, **_same("chosen", "rejected", "system"), **REFERENCE},
        unused=frozenset({"output"}),
    ),
    "orca_pairs": RowFormat(
        fields={"prompt": "question", **_same("chosen", "rejected", "system"), **REFERENCE}
    ),
    "hh": RowFormat(fields={**_same("chosen", "rejected"), **REFERENCE}, shape="transcript"),
    "openai_preference": RowFormat(
        fields={
            **_TURNS,
            "messages": "input.messages",
            "tools": "input.tools",
            "chosen": "preferred_output",
            "rejected": "non_preferred_output",
        },
        roles=_MESSAGE_ROLES,
    ),
    "sharegpt_preference": RowFormat(
        fields={
            **_SHAREGPT_TURNS,
            **_same("chosen", "rejected", "system", "tools"),
            **REFERENCE,
        },
        roles=_SHAREGPT_ROLES,
    ),
    "helpsteer3": RowFormat(
        fields={
            "prompt": "context",
            "first": "response1",
            "second": "response2",
            "preferred": "overall_preference",
        },
        unused=frozenset({"individual_preference"}),
        shape="compared",
    ),
    # Not the binarised form, which is of the format `preference`.
    "ultrafeedback": RowFormat(
        fields={
            "prompt": "instruction",
            "answers": "completions",
            "reply": "response",
            "reply_score": "overall_score",
        },
        unused=frozenset({"correct_answers", "incorrect_answers"}),
        shape="ranked",
    ),
    "nectar": RowFormat(
        fields={"prompt": "prompt", "answers": "answers", "reply": "answer", "reply_rank": "rank"},
        shape="ranked",
    ),
    "kto": RowFormat(fields=_same("prompt", "completion", "label", "system", "tools", "ref_logp")),
    "kto_messages": RowFormat(
        fields={**_TURNS, **_same("label", "system", "tools", "ref_logp")}, roles=_MESSAGE_ROLES
    ),
    "kto_sharegpt": RowFormat(
        fields={**_SHAREGPT_TURNS, **_same("label", "system", "tools", "ref_logp")},
        roles=_SHAREGPT_ROLES,
    ),
    # TRL's stepwise supervision. For KTO every step with those before it is an answer with a
    # verdict.
    "steps": RowFormat(fields=_same("prompt", "completions", "labels", "system"), shape="steps"),
    "prm800k": RowFormat(
        fields={"prompt": "question.problem", "steps": "label.steps"},
        unused=frozenset(
            {
                "question.ground_truth_solution",
                "question.ground_truth_answer",
                "question.pre_generated_steps",
                "question.pre_generated_answer",
            }
        ),
        shape="rated_steps",
    ),
    "math_shepherd": RowFormat(
        fields={"marked": "input", "verdicts": "label"}, shape="marked_steps"
    ),
}


def find_format(
    name: str,
    *,
    kind: str,
    fields: Mapping[str, str] | None,
    roles: Mapping[str, str] | None,
    setting: str,
) -> RowFormat:
    """Find a format by name and apply a user's own field and role names.

    Args:
        name: One of `ROW_FORMATS`, or the dotted path of a `RowFormat`.
        kind: conversation, preference, verdict, stepwise or problem.
        fields: Part -> field, in place of the format's own.
        roles: Role in the file -> our role, in place of the format's own.
        setting: Name of the source's setting, for messages.

    Raises:
        UserError: The name or a part is unknown, or the format gives rows of another kind.
    """
    fitting = [other for other, format in ROW_FORMATS.items() if kind in format.kinds()]
    if name in ROW_FORMATS:
        format = ROW_FORMATS[name]
    elif "." in name:
        format = load_format(name, setting)
    else:
        raise UserError(
            f"{setting}.format={name!r} is unknown.{did_you_mean(name, fitting)} For a {kind} there"
            f" are {', '.join(fitting)}, or the dotted path of a RowFormat of yours"
        )
    if kind not in format.kinds():
        raise UserError(
            f"{setting}.format={name!r} gives a {' or a '.join(format.kinds())}, here a {kind} is"
            f" wanted: {', '.join(fitting)}"
        )
    unknown = sorted((fields or {}).keys() - format.fields.keys())
    if unknown:
        raise UserError(
            f"{setting}.fields names {', '.join(unknown)}; the parts of {name!r} are"
            f" {', '.join(format.fields)}"
        )
    wrong = sorted(set((roles or {}).values()) - {"system", "user", "assistant", "tool"})
    if wrong:
        raise UserError(
            f"{setting}.roles maps to {', '.join(wrong)}; roles are system, user, assistant, tool"
        )
    return replace(
        format, fields={**format.fields, **(fields or {})}, roles={**format.roles, **(roles or {})}
    )


def load_format(path: str, setting: str) -> RowFormat:
    """Load a format of the user's own: a `RowFormat` in a module of theirs.

    Args:
        path: Its dotted path, such as my_formats.TRIPLES.
        setting: The setting, for messages.

    Raises:
        UserError: There is no such module or name, or it is no RowFormat.
    """
    found = import_class_path(path, f"{setting}.format")
    if not isinstance(found, RowFormat):
        raise UserError(
            f"{setting}.format={path!r} must name a lit_pretrain.data.chat.formats.RowFormat; found"
            f" {found!r}"
        )
    return found


def has_parts(row: Mapping[str, Any], format: RowFormat) -> bool:
    """Tell whether a row has all the fields that a format needs."""
    return all(
        name.split(".")[0] in row
        for part, name in format.fields.items()
        if part not in {*format.optional, *WITHIN}
    )
