"""Training templates: the ids and masks of TRL's, and the ids of the models' own templates."""

import datetime
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.chat.messages import Conversation
from lit_pretrain.chat.render import Rendered, Renderer
from lit_pretrain.chat.template import TEMPLATE_PRESETS, ChatTemplate, Refused, find_template
from lit_pretrain.chat.tool_calls import with_arguments
from lit_pretrain.tokenizer.tokenizer import Tokenizer
from tests.conftest import make_tokenizer

FAMILIES = {  # ours -> the names of TRL's files
    "qwen2.5": "qwen2_5", "qwen3": "qwen3", "qwen3-instruct": "qwen3_instruct_2507",
    "llama3": "llama3", "llama3.1": "llama3_1", "gemma": "gemma", "gemma3": "gemma3",
    "phi3": "phi3", "phi3.5": "phi3_5", "deepseek-r1-distill": "deepseek_r1_distill",
    "deepseek-v3": "deepseekv3", "glm4-moe": "glm4moe", "nemotron3-nano": "nemotron_3_nano",
    "qwen3.5": "qwen3_5_think", "qwen3.6": "qwen3_6", "gpt-oss": "gptoss", "cohere": "cohere",
    "gemma4": "gemma4_v5", "llama3.2": "llama3_2", "lfm2": "lfm2_v2",
    "nemotron3-super": "nemotron_3_super", "nemotron3-ultra": "nemotron_3_ultra",
}  # fmt: skip
DATE = datetime.date(2025, 12, 31)
SPECIAL = (
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>",
    "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|observation|>", "[gMASK]", "<sop>",
    "<|start|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>",
    "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>", "<|turn>", "<turn|>", "<|channel>", "<channel|>",
    "<s>", "</s>", "[INST]", "[/INST]",
)  # fmt: skip
Message = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str | None, **fields: Any) -> Message:
    return {"role": "assistant", "content": text, **fields}


def call(name: str, **arguments: Any) -> Message:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": " Be brief. "}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks up a place, é.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]
WIDE_TOOLS = [
    *TOOLS,
    {
        "type": "function",
        "function": {
            "name": "plan",
            "description": "Plans a way.",
            "parameters": {
                "type": "object",
                "properties": {
                    "mode": {"type": "string", "enum": ["foot", "rail"], "default": "foot"},
                    "days": {"type": "integer", "description": "How many.", "default": 2},
                    "fast": {"type": "boolean"},
                    "via": {"type": "array", "items": {"type": "string"}, "nullable": True},
                    "loads": {"type": "array", "items": {"type": "integer"}},
                    "any": {"type": "array"},
                    "either": {"type": ["string", "number"]},
                    "price": {"oneOf": [{"type": "number", "description": "Euros", "default": 1},
                                        {"type": "string", "nullable": True}], "default": "x"},
                    "where": {
                        "type": "object",
                        "properties": {"lat": {"type": "number"}, "name": {"type": "string"}},
                        "required": ["lat"],
                    },
                    "stops": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"at": {"type": "string"}}},
                    },
                    "free": {"type": "object"},
                    "odd": {},
                },
                "required": ["mode", "where"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "description": "Stops."}},
]  # fmt: skip
TOOL_TALK = [user("Where?"), said(None, tool_calls=[call("look", place="Rome", n=2)]),
             {"role": "tool", "content": "41.9 N"}, said("There.")]  # fmt: skip
TALKS: dict[str, tuple[list[Message], list[Message] | None]] = {
    "one turn": ([user("Hi"), said("Ho")], None),
    "blanks": ([user(" Hi\n"), said("\n Ho \n")], None),
    "system": ([SYSTEM, user("Hi"), said("Ho")], None),
    "turns": ([user("a"), said("b"), user("c"), said("d"), user("e"), said("f")], None),
    "a question last": ([user("a"), said("b"), user("c")], None),
    "thought": ([user("a"), said("b", reasoning_content="\nHm.\n")], None),
    "thought within": ([user("a"), said("<think>\nHm.\n</think>\n\nb")], None),
    "thoughts": (
        [
            user("a"),
            said("b", reasoning_content="Hm."),
            user("c"),
            said("<think>Ah</think>d"),
            user("e"),
            said("f", reasoning_content="Oh."),
        ],
        None,
    ),
    "call": (TOOL_TALK, None),
    "call with tools": (TOOL_TALK, TOOLS),
    "system and tools": ([SYSTEM, *TOOL_TALK], TOOLS),
    # The second question is the first again, so that it must be told by its place.
    "thoughts repeated": (
        [
            user("a"),
            said("b", reasoning_content="Hm."),
            user("a"),
            said("b", reasoning_content="Hm."),
            user("a"),
            said("c", reasoning_content="So."),
        ],
        None,
    ),
    "wide tools": (
        [
            user("a"),
            said(
                None,
                tool_calls=[
                    call("plan", mode="rail", fast=True, via=["é"], where={"lat": 1.5}, odd=None)
                ],
            ),
        ],
        WIDE_TOOLS,
    ),
    "calls": (
        [
            user("Where?"),
            said("Let me see.", tool_calls=[call("look", place="Rome"), call("look", place="é")]),
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            said("There.", reasoning_content="So."),
        ],
        TOOLS,
    ),
}
WITH_TOOLS = {"call", "call with tools", "system and tools", "calls", "wide tools"}
BEYOND = {
    # Its own template shows no calls that have a content, and no tools; ours refuses.
    "deepseek-r1-distill": WITH_TOOLS,
    # Ours refuses tools.
    **dict.fromkeys(("nemotron3-nano", "nemotron3-super", "nemotron3-ultra"), WITH_TOOLS),
    # It ignores calls and writes results under a role of their own.
    "llama3": WITH_TOOLS,
    "phi3": WITH_TOOLS,
    "phi3.5": WITH_TOOLS,
    "gemma": WITH_TOOLS,
    "gemma3": WITH_TOOLS,
    # Ours refuses tools.
    "gemma4": WITH_TOOLS,
    # Their own show one of two calls, or none; ours refuse.
    "gpt-oss": {"calls"},
    "cohere": {"wide tools"},
}
TRAINING = {"gemma4": "diffusion_gemma"}
"""Families whose own training template TRL no longer has, and the one that differs in nothing."""


def trl_template(name: str) -> ChatTemplate | None:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("needs trl, whose templates these are compared with")
    file = Path(spec.origin).parent / "chat_templates" / f"{name}.jinja"
    return ChatTemplate(file.read_text("utf-8"), name=name) if file.is_file() else None


def prepared(template: ChatTemplate, messages: list[Message]) -> list[Message]:
    """Messages in the form that a template takes."""
    made = []
    for message in messages:
        message = dict(message)
        if message.get("tool_calls"):
            calls = message["tool_calls"]
            message["tool_calls"] = with_arguments(calls, as_text=template.arguments_as_text)
            if message["content"] is None:
                message["content"] = template.content_beside_calls
        if "reasoning_content" in message and "thinking" in template.fields:
            message["thinking"] = message.pop("reasoning_content")
        made.append(message)
    return made


def rendered(template: ChatTemplate, talk: str, *, prompt: bool = False) -> Any:
    """Text and spans, or that the template refuses."""
    messages, tools = TALKS[talk]
    if prompt:
        messages = messages[
            : max(i for i, m in enumerate(messages) if m["role"] != "assistant") + 1
        ]
    made = prepared(template, messages)
    extra = {} if tools is None else {"tools": tools}
    try:
        return template.render(
            made, bos="<s>", eos="<|endoftext|>", generation_prompt=prompt, date=DATE, **extra
        )
    except Refused:
        return "refused"


def joined(rendering: Any) -> tuple[str, list[list[int]]]:
    """Text and spans, of which TRL's for Phi has two that touch."""
    spans: list[list[int]] = []
    for begin, end in rendering.spans:
        if spans and spans[-1][1] == begin:
            spans[-1][1] = end
        else:
            spans.append([begin, end])
    return rendering.text, spans


def compared(family: str) -> list[str]:
    return [talk for talk in TALKS if talk not in BEYOND.get(family, ())]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_and_spans_are_those_of_trl(family: str) -> None:
    ours = find_template(family, ".")
    training = trl_template(TRAINING.get(family, FAMILIES[family]) + "_training")
    original = trl_template(FAMILIES[family])
    assert original is not None
    same = 0
    for talk in compared(family):
        mine = rendered(ours, talk)
        if mine == "refused":
            assert rendered(training or original, talk) == "refused", talk
            continue
        if family == "deepseek-r1-distill" and talk.startswith("thought") and "within" not in talk:
            assert "<think>\n" in mine.text
            continue  # fields with thoughts, of which TRL's drops all
        if training is not None:
            assert joined(mine) == joined(rendered(training, talk)), talk
            assert len(mine.spans) == sum(m["role"] == "assistant" for m in TALKS[talk][0])
        reference = rendered(original, talk)
        if training is None or rendered(training, talk).text == reference.text:
            assert mine.text == reference.text, talk
            same += 1
        asked = rendered(ours, talk, prompt=True)
        if "thought" not in talk:
            assert asked.text == rendered(training or original, talk, prompt=True).text, talk
    assert same >= 2 or family in ("qwen3", "glm4-moe")


def test_qwen3_and_glm_are_the_models_own_up_to_what_they_must_add() -> None:
    """Qwen 3 keeps every thought; GLM ends with the header that is its stop."""
    for family, talks, added in (
        ("qwen3", ("one turn", "system", "thought", "thought within"), ""),
        ("glm4-moe", ("one turn", "system", "turns", "thought", "call with tools"), "<|user|>"),
    ):
        original = trl_template(FAMILIES[family])
        assert original is not None
        for talk in talks:
            mine = rendered(find_template(family, "."), talk).text
            assert mine == rendered(original, talk).text + added, (family, talk)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(*SPECIAL)


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_transformers_by_the_models_own_template(
    family: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    tokenizer.save(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    ours, original = find_template(family, "."), trl_template(FAMILIES[family])
    assert original is not None
    today = datetime.date.today().isoformat()  # transformers shows no other
    renderer = Renderer(
        tokenizer, ours, options={"date": today} if "strftime_now" in ours.variables else None
    )
    same = 0
    for talk in compared(family):
        mine, (messages, tools) = rendered(ours, talk), TALKS[talk]
        if mine == "refused" or mine.text != rendered(original, talk).text:
            continue
        row = Conversation(messages=tuple(messages), prompt=1, tools=tools)
        (found,) = renderer.render([row])
        null = any(message["content"] is None for message in messages)
        if null and family == "deepseek-v3":
            continue  # it asks whether the content is null, and transformers has dropped it
        if isinstance(found, Rendered):
            wanted = reference.apply_chat_template(
                prepared(original, messages), tools=tools, chat_template=original.source,
                tokenize=True, return_dict=True,
            )  # fmt: skip
            assert found.ids.tolist() == list(wanted["input_ids"]), talk
            same += 1
    assert same >= 2 or family == "glm4-moe"


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_those_of_transformers_with_and_without_the_line_feed(
    family: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    tokenizer.save(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    template = find_template(family, ".")
    messages = TALKS["turns"][0]
    row = Conversation(messages=tuple(messages), prompt=1)
    wanted = reference.apply_chat_template(
        messages, chat_template=template.source, return_dict=True, tokenize=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    dated = "strftime_now" in template.variables
    options = {"date": datetime.date.today().isoformat()} if dated else None
    masks = []
    for after_stop in (True, False):
        renderer = Renderer(tokenizer, template, after_stop=after_stop, options=options)
        (found,) = renderer.render([row])
        assert isinstance(found, Rendered), found
        assert found.ids.tolist() == list(wanted["input_ids"])
        masks.append(found.learned)
    assert masks[0].astype(int).tolist() == list(wanted["assistant_masks"])
    feed = (masks[0] & ~masks[1]).nonzero()[0]
    assert not (masks[1] & ~masks[0]).any()
    assert tokenizer.decode(found.ids[feed].tolist()).strip() == ""
    assert (len(feed) > 0) == family.startswith(("qwen", "gemma", "phi", "nemotron", "lfm"))


BRIEF = {"role": "system", "content": "Be brief."}
TURNS = [BRIEF, user("a"), said("b"), user(" c "), said("\n d")]
CALLED = [
    BRIEF, user("a"), said("b"), user("Where?"),
    said("See.", tool_calls=[{**call("look", place="Rome"), "id": "call00001"}]),
    {"role": "tool", "content": "41.9 N", "tool_call_id": "call00001"}, said("There."),
]  # fmt: skip
LISTED = (
    '[AVAILABLE_TOOLS][{"type": "function", "function": {"name": "look", "description": "Looks up'
    ' a place, é.", "parameters": {"type": "object", "properties": {"place": {"type":'
    ' "string"}}}}}][/AVAILABLE_TOOLS]'
)
NEWER = "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]a[/INST]b</s>[INST] c [/INST]\n d</s>"
WRITTEN: dict[str, tuple[str, str | None]] = {  # of TURNS; of CALLED, if it takes tools
    # As mistral-common 1.13 encodes them for fine-tuning.
    "mistral-v3": ("<s>[INST] a[/INST] b</s>[INST] Be brief.\n\n c [/INST] \n d</s>", None),
    "mistral-v3-tekken": ("<s>[INST]a[/INST]b</s>[INST]Be brief.\n\n c [/INST]\n d</s>", None),
    "mistral-v7-tekken": (
        NEWER,
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]a[/INST]b</s>" + LISTED
        + '[INST]Where?[/INST]See.[TOOL_CALLS][{"name": "look", "arguments": {"place": "Rome"},'
        ' "id": "call00001"}]</s>[TOOL_RESULTS]call00001[TOOL_CONTENT]41.9 N[/TOOL_RESULTS]'
        "There.</s>",
    ),
    "mistral-v11-tekken": (
        NEWER,
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]a[/INST]b</s>" + LISTED
        + '[INST]Where?[/INST]See.[TOOL_CALLS]look[CALL_ID]call00001[ARGS]{"place": "Rome"}</s>'
        "[TOOL_RESULTS]call00001[TOOL_CONTENT]41.9 N[/TOOL_RESULTS]There.</s>",
    ),
    "mistral-v13-tekken": (
        NEWER,
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT]" + LISTED + "[INST]a[/INST]b</s>[INST]Where?"
        '[/INST]See.[TOOL_CALLS]look[ARGS]{"place": "Rome"}</s>[TOOL_RESULTS]41.9 N[/TOOL_RESULTS]'
        "There.</s>",
    ),
    # As the templates in the tokenizer files of these models.
    "tulu3": ("<|system|>\nBe brief.\n<|user|>\na\n<|assistant|>\nb</s>\n<|user|>\n c \n"
              "<|assistant|>\n\n d</s>", None),
    "olmo2": ("<s><|system|>\nBe brief.\n<|user|>\na\n<|assistant|>\nb</s>\n<|user|>\n c \n"
              "<|assistant|>\n\n d</s>", None),
}  # fmt: skip


@pytest.mark.parametrize("family", WRITTEN)
def test_texts_are_those_that_are_written_out(family: str, tokenizer: Tokenizer) -> None:
    template = find_template(family, ".")
    turns, called = WRITTEN[family]
    whole = template.render(TURNS, bos="<s>", eos="</s>")
    assert whole.text == turns
    assert [whole.text[begin:end] for begin, end in whole.spans] == ["b</s>", "\n d</s>"]
    asked = template.render(TURNS[:-1], bos="<s>", eos="</s>", generation_prompt=True)
    assert turns.startswith(asked.text)
    talk = prepared(template, CALLED)
    if called is None:
        with pytest.raises(Refused):
            template.render(talk, bos="<s>", eos="</s>", tools=TOOLS)
    else:
        assert template.render(talk, bos="<s>", eos="</s>", tools=TOOLS).text == called
    (found,) = Renderer(tokenizer, template).render([Conversation(messages=tuple(TURNS), prompt=1)])
    assert isinstance(found, Rendered)
    learned = found.ids[found.learned].tolist()
    assert tokenizer.decode(learned).split() == ["b", "d"]
    assert learned.count(tokenizer.eos_id) == 2


def test_presets_are_listed_in_the_guide() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "post_training_data.md"
    table = guide.read_text(encoding="utf-8").split("| template | for |")[1].split("\n\n")[0]
    names = (line.split("|")[1] for line in table.splitlines()[2:])
    listed = {name.strip().strip("`") for cell in names for name in cell.split(",")}
    assert listed == {file.stem for file in TEMPLATE_PRESETS.glob("*.jinja")}
    assert listed == {*FAMILIES, *WRITTEN, "chatml", "plain", "qwen"}


def test_an_answer_that_ends_with_two_tokens_stops_at_either(tokenizer: Tokenizer) -> None:
    stops = Renderer(tokenizer, find_template("phi3", ".")).stop_ids
    assert stops == {tokenizer.special_tokens["<|end|>"], tokenizer.eos_id}


def test_a_template_that_shows_one_of_two_calls_refuses_both() -> None:
    """Of two calls to the same tool the name alone would tell nothing."""
    first = (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}"
        "<|assistant|>{{ m.tool_calls[0].function | tojson if m.tool_calls else m.content }}"
        "<|end|>{% endif %}{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}"
    )
    every = first.replace("m.tool_calls[0].function", "m.tool_calls")
    renderer = {
        name: Renderer(make_tokenizer(*SPECIAL), ChatTemplate(source, name=name))
        for name, source in (("first", first), ("every", every))
    }
    calls = [call("look", place="Rome"), call("look", place="Oslo")]
    for name, count, good in (("first", 1, True), ("first", 2, False), ("every", 2, True)):
        row = Conversation(
            messages=(user("Where?"), said(None, tool_calls=calls[:count])),
            prompt=1,
        )
        (found,) = renderer[name].render([row])
        assert isinstance(found, Rendered) == good
        assert good or "calls 2 tools at once, of which the template first shows one" in str(found)
