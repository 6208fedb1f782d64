"""Detection: every format is found from rows of its own, and nothing is guessed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lit_pretrain.data
from lit_pretrain.data import ChatData, KTOData
from lit_pretrain.data.chat.detection import DATA_OF_KIND, detect_format
from lit_pretrain.data.chat.formats import ROW_FORMATS
from lit_pretrain.errors import UserError

HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}
USER, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
NO = {"role": "assistant", "content": "No"}
TREE = {"text": "Hi", "role": "prompter", "replies": [
    {"text": "Ho", "role": "assistant", "rank": 0}, {"text": "No", "role": "assistant", "rank": 1},
]}  # fmt: skip
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "messages": ("conversation", {"messages": [USER, SAID]}),
    "sharegpt": ("conversation", {"conversations": [HUMAN, GPT]}),
    "openhermes": ("conversation", {"conversations": [HUMAN, GPT], "system_prompt": None}),
    "capybara": ("conversation", {"conversation": [{"input": "Hi", "output": "Ho"}]}),
    "lima": ("conversation", {"conversations": ["Hi", "Ho"]}),
    "xlam": ("conversation", {"query": "Hi", "tools": "[]", "answers": '[{"name": "a"}]'}),
    "alpaca": ("conversation", {"instruction": "Hi", "input": "", "output": "Ho"}),
    "dolly": ("conversation", {"instruction": "Hi", "context": "", "response": "Ho"}),
    "orca": ("conversation", {"system_prompt": "", "question": "Hi", "response": "Ho"}),
    "prompt_completion": ("conversation", {"prompt": "Hi", "completion": "Ho"}),
    "qa": ("conversation", {"question": "Hi", "answer": "Ho"}),
    "gsm8k": ("problem", {"question": "Hi", "answer": "Ho #### 3"}),
    "metamath": ("problem", {"query": "Hi", "response": "Ho. The answer is: 3"}),
    "problem_answer": ("problem", {"problem": "Hi", "solution": "Ho, so 3.", "answer": "3"}),
    "problem_solution": ("conversation", {"problem": "Hi", "solution": "Ho, so 3."}),
    "verl": ("problem", {"prompt": [USER], "reward_model": {"ground_truth": "3"}}),
    "prompt_answer": ("problem", {"prompt": "Hi", "answer": "Ho"}),
    "prompt": ("problem", {"prompt": "Hi"}),
    "text": ("conversation", {"text": "A story of a fox."}),
    "transcript": ("conversation", {"text": "### Human: Hi\n### Assistant: Ho"}),
    "input_output": ("conversation", {"segments": [{"label": True, "text": "Ho</s>"}]}),
    "oasst_tree": ("preference", {"message_tree_id": "1", "prompt": TREE}),
    "preference": ("preference", {"prompt": "Hi", "chosen": "Ho", "rejected": "No"}),
    "alpaca_preference": (
        "preference",
        {"instruction": "Hi", "input": "", "output": "Ho", "chosen": "Ho", "rejected": "No"},
    ),
    "orca_pairs": (
        "preference",
        {"system": "", "question": "Hi", "chosen": "Ho", "rejected": "No"},
    ),
    "hh": (
        "preference",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Ho", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    ),
    "openai_preference": (
        "preference",
        {
            "input": {"messages": [USER]},
            "preferred_output": [SAID],
            "non_preferred_output": [NO],
        },
    ),
    "sharegpt_preference": (
        "preference",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "No"}},
    ),
    "helpsteer3": (
        "preference",
        {"context": [USER], "response1": "Ho", "response2": "No", "overall_preference": -1},
    ),
    "ultrafeedback": (
        "preference",
        {"instruction": "Hi", "completions": [{"response": "Ho", "overall_score": 8},
                                              {"response": "No", "overall_score": 3}]},
    ),
    "nectar": (
        "preference",
        {"prompt": "\n\nHuman: Hi\n\nAssistant: ",
         "answers": [{"answer": "Ho", "rank": 1}, {"answer": "No", "rank": 2}]},
    ),
    "kto": ("verdict", {"prompt": "Hi", "completion": "Ho", "label": True}),
    "kto_messages": ("verdict", {"messages": [USER, SAID], "label": True}),
    "kto_sharegpt": ("verdict", {"conversations": [HUMAN, GPT], "label": False}),
    "steps": ("stepwise", {"prompt": "Hi", "completions": ["a", "b"], "labels": [True, False]}),
    "prm800k": (
        "stepwise",
        {"question": {"problem": "Hi"}, "label": {"steps": [
            {"completions": [{"text": "a", "rating": 1}], "chosen_completion": 0}]}},
    ),
    "math_shepherd": (
        "stepwise", {"input": "Hi Step 1: a ки\nStep 2: b ки",
                     "label": "Hi Step 1: a +\nStep 2: b -"}
    ),
}  # fmt: skip


def detect(rows: list[dict[str, Any]], kind: str, **options: Any) -> str:
    given = {"fields": None, "roles": None, "ignore": (), "setting": "data", **options}
    return detect_format(rows, kind=kind, **given)


def test_every_format_has_rows_here() -> None:
    assert ROWS.keys() == ROW_FORMATS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_format_is_found_by_its_rows(name: str) -> None:
    kind, row = ROWS[name]
    assert detect([row, {**row, "id": "7"}], kind) == name
    assert kind in ROW_FORMATS[name].kinds()


def test_names_of_fields_are_known_before() -> None:
    rows = [{"dialogue": [USER, SAID]}]
    assert detect(rows, "conversation", fields={"messages": "dialogue"}) == "messages"
    row = {**ROWS["alpaca"][1], "remark": "Not to be read at all."}
    assert detect([row], "conversation", ignore=["remark"]) == "alpaca"
    with pytest.raises(UserError, match=r"format=auto: no format gives a conversation.*'remark'"):
        detect([row], "conversation")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": "b"}], "rows with the fields 'a'"),
        ([], "rows with the fields none"),
        ([ROWS["alpaca"][1], ROWS["qa"][1]], "'answer', 'input', 'instruction'"),
        ([{"prompt": "Hi", "completion": "Ho", "images": ["a.png"]}], "pictures, sound or film"),
    ],
)
def test_rows_that_no_format_reads(rows: list[dict[str, Any]], message: str) -> None:
    if not rows:
        assert detect(rows, "conversation") in ROW_FORMATS  # an empty file is refused by itself
        return
    with pytest.raises(UserError, match=message):
        detect(rows, "conversation")


def test_rows_of_another_kind_name_the_data_that_takes_them() -> None:
    for name, kind, takers in (
        (
            "steps",
            "conversation",
            "KTOData takes them, as steps; StepwiseData takes them, as steps",
        ),
        ("orca_pairs", "verdict", "PreferenceData takes them, as orca_pairs"),
        ("messages", "stepwise", "ChatData takes them, as messages"),
    ):
        with pytest.raises(UserError, match=f"They are rows of another kind: {takers}\\."):
            detect([ROWS[name][1]], kind)
    for data, kind in zip(DATA_OF_KIND.values(), DATA_OF_KIND, strict=True):
        assert getattr(lit_pretrain.data, data).kind == kind


def test_a_run_says_which_was_found_and_is_the_same(
    write_rows: Callable[..., str], tokenizer_folder: Path
) -> None:
    rows = [{"instruction": f"Say {i}", "context": "", "response": "Ho"} for i in range(40)]
    common: dict[str, Any] = {"path": write_rows(rows), "tokenizer": str(tokenizer_folder)}
    found, named = ChatData(format="auto", **common), ChatData(format="dolly", **common)
    assert found.exposure(1).startswith("rows: the format is dolly, by the fields of its rows\n")
    assert found.manifest_hash == named.manifest_hash
    assert found.record()["sources"]["rows"]["format"] == "dolly"


def test_one_kind_of_verdict_is_warned_of(
    write_rows: Callable[..., str], tokenizer_folder: Path
) -> None:
    def remarks(labels: list[bool]) -> list[str]:
        rows = [{"prompt": f"Say {i}", "completion": "Ho", "label": labels[i % len(labels)]}
                for i in range(30)]  # fmt: skip
        path = write_rows(rows)
        return KTOData(path=path, format="kto", tokenizer=str(tokenizer_folder)).remarks()

    assert remarks([True, False]) == []
    assert "every answer is desirable" in remarks([True])[0]
    assert "every answer is undesirable" in remarks([False])[0]


def test_the_guide_lists_every_format_and_who_takes_it() -> None:
    guide = Path(__file__).parents[3] / "docs" / "guides" / "post_training_data.md"
    table = guide.read_text(encoding="utf-8").split("## Formats")[1].split("\n\n")[2]
    classes = {name.removesuffix("Data"): kind for kind, name in DATA_OF_KIND.items()}
    listed = {}
    for line in table.splitlines()[2:]:
        names, _, takers = (cell.strip() for cell in line.strip("|").split(" | "))
        for name in names.split(", "):
            listed[name.strip("`")] = {classes[taker] for taker in takers.split(", ")}
    assert listed == {name: set(format.kinds()) for name, format in ROW_FORMATS.items()}
