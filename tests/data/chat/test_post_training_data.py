"""Post-training data: the same rows for every split of the work, and every row once an epoch."""

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_pretrain.batch import IGNORE_INDEX, Batch
from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.chat.render import Rendered
from lit_pretrain.data.batches import PAD_ROW
from lit_pretrain.data.chat.chat_data import ChatData
from lit_pretrain.data.chat.post_training_data import PostTrainingData
from lit_pretrain.data.chat.preference_data import KTOData, PreferenceData
from lit_pretrain.data.chat.prompt_data import PromptData
from lit_pretrain.data.chat.row_source import RowSource, Task
from lit_pretrain.errors import UserError
from lit_pretrain.step_size import Division

WriteRows = Callable[..., str]
QA = [
    {"question": f"What is {i} + {i % 7}?", "answer": "ha " * (i % 9) + str(i + i % 7)}
    for i in range(120)
]
PAIRS = [
    {"prompt": f"Say {i}", "chosen": f"{i} it is", "rejected": "no " * (i % 5 + 1)}
    for i in range(40)
]
VERDICTS = [
    {"prompt": f"Say {i}", "completion": f"{i} it is", "label": i % 3 == 0} for i in range(40)
]


def attach(data: PostTrainingData, *, rank: int = 0, ranks: int = 1, step: int = 0) -> Any:
    strategy = SimpleNamespace(
        distributed_sampler_kwargs={"rank": rank, "num_replicas": ranks},
        root_device=torch.device("cpu"),
    )
    data.trainer = SimpleNamespace(strategy=strategy, global_step=step)
    return data


@pytest.fixture
def chat(write_rows: WriteRows, tokenizer_folder: Path) -> Callable[..., ChatData]:
    first, second = (
        write_rows(QA),
        write_rows(
            [
                {
                    "messages": [
                        {"role": "user", "content": f"m{i}"},
                        {"role": "assistant", "content": "ok"},
                    ]
                }
                for i in range(20)
            ],
            "more.jsonl",
        ),
    )
    sources = {"qa": RowSource(path=first, format="qa"), "talk": RowSource(path=second)}

    def make(rank: int = 0, ranks: int = 1, step: int = 0, **options: Any) -> ChatData:
        common = {
            "sources": sources,
            "tokenizer": str(tokenizer_folder),
            "seq_len": 128,
            "global_batch_rows": 8,
            "micro_batch_size": 2,
            "validation": 0.1,
        }
        made: ChatData = attach(
            ChatData(**{**common, **options}), rank=rank, ranks=ranks, step=step
        )
        return made

    return make


def together(batches: list[Any]) -> list[torch.Tensor]:
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def test_a_step_is_the_same_for_every_split_of_the_work_and_for_a_resumed_run(
    chat: Callable[..., ChatData],
) -> None:
    whole = [together(step) for step in islice(chat(micro_batch_size=8).train_dataloader(), 9)]
    assert len(whole[0][0]) == 8
    for asked, ranks, begin in ((1, 1, 0), (2, 2, 3), (1, 4, 5), (8, 2, 1)):
        micro = min(asked, 8 // ranks)  # lowered to what a rank has
        options = {"micro_batch_size": asked, "ranks": ranks, "step": begin}
        loaders = [chat(rank=r, **options).train_dataloader() for r in range(ranks)]
        for n, parts in enumerate(islice(zip(*loaders, strict=True), 9 - begin), start=begin):
            assert all(len(batch.index_B) == micro for part in parts for batch in part)
            same = together([batch for part in parts for batch in part])
            assert all(torch.equal(x, y) for x, y in zip(same, whole[n], strict=True))


def documents(batch: Batch) -> Counter[tuple[int, ...]]:
    """Every conversation of a batch as its tokens."""
    found: Counter[tuple[int, ...]] = Counter()
    for tokens, labels, doc in zip(
        batch.tokens_BT.tolist(), batch.labels_BT.tolist(), batch.doc_BT.tolist(), strict=True
    ):
        for number in set(doc):
            places = [t for t in range(len(doc)) if doc[t] == number]
            if any(labels[t] != IGNORE_INDEX for t in places):
                assert places == list(range(places[0], places[-1] + 1))
                found[tuple(tokens[t] for t in places)] += 1
    return found


def test_an_epoch_is_every_row_once(chat: Callable[..., ChatData]) -> None:
    data = chat()
    wanted = Counter(tuple(item.ids[:-1].tolist()) for item in data.encoded.items("train"))
    for epoch in range(2):
        batches = data.collate(
            [
                data.samples.train(n)
                for n in range(data.samples.order.first(epoch), data.samples.order.first(epoch + 1))
            ]
        )
        assert sum((documents(batch) for batch in batches), Counter()) == wanted
    assert data.steps_of(1) == -(-data.samples.order.first(1) // 8)
    assert data.epochs(data.steps_of(2)) >= 2


def test_held_out_rows_are_the_same_for_every_number_of_ranks(
    chat: Callable[..., ChatData],
) -> None:
    def supervised(ranks: int, micro: int) -> list[tuple[int, ...]]:
        seen, lengths = [], set()
        for rank in range(ranks):
            batches = [
                batch
                for step in chat(rank=rank, ranks=ranks, micro_batch_size=micro).val_dataloader()
                for batch in step
            ]
            lengths.add(len(batches))
            for batch in batches:
                assert len(batch.index_B) == micro
                assert (batch.labels_BT[batch.index_B == PAD_ROW] == IGNORE_INDEX).all()
                seen += list(documents(batch).elements())
        assert len(lengths) == 1
        return sorted(seen)

    held = [tuple(item.ids[:-1].tolist()) for item in chat().encoded.items("validation")]
    assert supervised(1, 1) == supervised(2, 2) == supervised(3, 1) == sorted(held)


def test_the_identity_follows_what_decides_the_numbers(chat: Callable[..., ChatData]) -> None:
    same = chat().manifest_hash
    assert (
        chat(micro_batch_size=4, seed=1).manifest_hash == same
    )  # these two are in the run's contract
    for options in (
        {"seq_len": 64},
        {"train_on": "last"},
        {"template": "qwen"},
        {"truncation": "drop"},
        {"validation": 0.2},
    ):
        assert chat(**options).manifest_hash != same
    contract = chat().contract
    assert (contract.sources, contract.seq_len, contract.batch_tokens) == (
        ("qa", "talk"),
        128,
        BatchSizes.one(1024),
    )
    assert contract.provides == {"labels"}


def test_global_batch_tokens_is_the_same_step(chat: Callable[..., ChatData]) -> None:
    a, b = chat(), chat(global_batch_rows=None, global_batch_tokens=1024)
    assert (a.rows, a.divide(2)) == (b.rows, b.divide(2)) == (8, (Division(2, 2, 2),))
    for data, name in ((a, "global_batch_rows=8"), (b, "global_batch_tokens=1024")):
        with pytest.raises(UserError, match=rf"data.{name} must be a multiple of"):
            data.divide(3)
    with pytest.raises(
        UserError, match=r"either as data\.global_batch_tokens or as data\.global_batch_rows"
    ):
        chat(global_batch_tokens=1024)


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "give either data.path"),
        ({"path": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"truncation": "middle"}, "keep_start, keep_end or drop"),
        ({"train_on": "user"}, "assistant, last, completion or all"),
        ({"validation": 0.7, "test": 0.3}, "together below 1"),
        ({"micro_batch_size": 0}, "data.micro_batch_size=0"),
        ({"packing": "wrapped"}, "best_fit or none"),
        ({"format": "qaa"}, "data.sources.rows.format='qaa' is unknown"),
        ({"format": "preference"}, "gives a preference, here a conversation is wanted"),
        ({"tokenizer": None}, "data.tokenizer is not set"),
    ],
)
def test_settings_that_cannot_be(
    options: dict[str, Any], message: str, write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    with pytest.raises(UserError, match=message):
        ChatData(
            **{
                "path": write_rows(QA[:20]),
                "format": "qa",
                "tokenizer": str(tokenizer_folder),
                "global_batch_rows": 2,
                **options,
            }
        ).setup("fit")


# ---------------------------------------------------------------------- pairs, verdicts, prompts


def check_padded(
    tokens: torch.Tensor, labels: torch.Tensor, doc: torch.Tensor, rendered: Rendered | None
) -> None:
    n = 0 if rendered is None else len(rendered.ids)
    assert (doc.tolist(), labels[max(n - 1, 0) :].unique().tolist()) == (
        [0] * n + [1] * (len(doc) - n),
        [IGNORE_INDEX],
    )
    if rendered is not None:
        assert tokens[:n].tolist() == rendered.ids.tolist()
        assert (labels[: n - 1] != IGNORE_INDEX).tolist() == rendered.learned[1:].tolist()


def test_pairs_stand_in_two_halves(write_rows: WriteRows, tokenizer_folder: Path) -> None:
    rows = [
        {**row, "margin": i, "ref_chosen_logp": -i, "ref_rejected_logp": -2 * i}
        for i, row in enumerate(PAIRS)
    ]
    data = attach(
        PreferenceData(
            path=write_rows(rows),
            format="preference",
            tokenizer=str(tokenizer_folder),
            seq_len=64,
            global_batch_rows=6,
            micro_batch_size=3,
        )
    )
    assert data.contract.provides == {"labels", "pairs", "margin", "ref_logp"}
    step = next(iter(data.train_dataloader()))
    assert [len(batch.tokens_BT) for batch in step] == [6, 6]
    for batch in step:
        for p in range(3):
            pair = data.samples.train(int(batch.index_B[p])).items[0]
            assert batch.index_B[p] == batch.index_B[p + 3]
            for b, side, ref in (
                (p, pair.chosen, pair.ref_logp[0]),
                (p + 3, pair.rejected, pair.ref_logp[1]),
            ):
                check_padded(batch.tokens_BT[b], batch.labels_BT[b], batch.doc_BT[b], side)
                assert batch.ref_logp_B[b] == ref
            assert batch.margin_P[p] == pair.margin
    assert all(len(batch.tokens_BT[0]) == 64 for batch in step)
    plain = PreferenceData(
        path=write_rows(PAIRS), format="preference", tokenizer=str(tokenizer_folder), seq_len=64
    )
    assert plain.contract.provides == {"labels", "pairs"}


def test_a_column_that_held_out_rows_lack_is_none(
    write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    """Zeros in its place would be log-probabilities that nobody computed."""
    options = {
        "format": "preference",
        "tokenizer": str(tokenizer_folder),
        "seq_len": 64,
        "validation": 0.15,
    }
    rows = [
        {**row, "margin": i, "ref_chosen_logp": -i, "ref_rejected_logp": -2 * i}
        for i, row in enumerate(PAIRS)
    ]
    whole = PreferenceData(path=write_rows(rows), **options)
    assert whole.provides >= {"margin", "ref_logp"}
    # The split is by what a row says: the same rows are held out without the columns.
    held = {item.margin for item in whole.encoded.items("validation")}
    assert held
    for row in rows:
        if row["margin"] in held:
            del row["margin"], row["ref_chosen_logp"], row["ref_rejected_logp"]
    assert PreferenceData(path=write_rows(rows), **options).provides == {"labels", "pairs"}


def test_a_validation_of_pairs_is_filled_up_with_rows_that_hold_nothing(
    write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    data = attach(
        PreferenceData(
            path=write_rows(PAIRS),
            format="preference",
            tokenizer=str(tokenizer_folder),
            seq_len=64,
            global_batch_rows=4,
            micro_batch_size=4,
            validation=0.15,
        )
    )
    held = len(data.encoded.items("validation"))
    batches = [batch for step in data.val_dataloader() for batch in step]
    index = torch.cat([batch.index_B for batch in batches])
    assert (len(index), int((index >= 0).sum())) == (-(-held // 4) * 8, 2 * held)
    for batch in batches:
        for b in (batch.index_B == PAD_ROW).nonzero().flatten().tolist():
            check_padded(batch.tokens_BT[b], batch.labels_BT[b], batch.doc_BT[b], None)


def test_mismatched_answers_are_rendered_with_their_new_prompt(
    write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    data = attach(
        KTOData(
            path=write_rows(VERDICTS),
            format="kto",
            tokenizer=str(tokenizer_folder),
            seq_len=64,
            global_batch_rows=8,
            micro_batch_size=4,
        )
    )
    assert data.contract.provides == {"labels", "verdicts"}

    def decode(ids: Any) -> str:
        return data.tokenizer.decode(ids, skip_special=False)

    for batch in next(iter(data.train_dataloader())):
        verdicts = [data.samples.train(int(n)).items[0].answer for n in batch.index_B[:4]]
        for i in range(4):
            assert bool(batch.desirable_B[i]) == verdicts[i].desirable
            for row, answer in ((i, verdicts[i]), (i + 4, verdicts[i - 1])):
                prompt, completion = (
                    verdicts[i].prompt[0]["content"],
                    answer.completion[0]["content"],
                )
                sequence = batch.tokens_BT[row][batch.doc_BT[row] == 0].tolist()
                assert decode(sequence) == (
                    f"<|im_start|>user\n{prompt}<|im_end|>\n"
                    f"<|im_start|>assistant\n{completion}<|im_end|>\n"
                )
                labels = batch.labels_BT[row]
                assert decode(labels[labels != IGNORE_INDEX].tolist()) == completion + "<|im_end|>"
    with pytest.raises(UserError, match="must be at least 2"):
        KTOData(path=write_rows(VERDICTS), format="kto", micro_batch_size=1)
    # The loss depends on the micro-batch, so it is not lowered for more devices.
    with pytest.raises(UserError, match=r"data.micro_batch_size = 4 × 4 = 16.*take 2 devices"):
        data.divide(4)


def test_prompts_carry_their_answers(tokenizer_folder: Path, write_rows: WriteRows) -> None:
    read = [{"question": f"q{i}", "answer": f"x #### {i}"} for i in range(20)]
    path = write_rows([*read, {"question": "q" * 300, "answer": "#### 1"}])
    sources = {
        "made": RowSource(task=Task(name="addition", rows=50, digits=2)),
        "gsm8k": RowSource(path=path, format="gsm8k"),
    }
    data = attach(
        PromptData(
            sources=sources, tokenizer=str(tokenizer_folder), seq_len=128, global_batch_rows=8
        )
    )
    assert data.contract.provides == {"prompts"}
    data.setup("fit")
    assert dict(data.encoded.tallies["gsm8k"].dropped) == {"prompt_too_long": 1}
    step = next(iter(data.train_dataloader()))
    assert sum(len(batch.rows) for batch in step) == 8
    for batch in step:
        assert (batch.labels_BT == IGNORE_INDEX).all()
        for b, row in enumerate(batch.rows):
            text = data.tokenizer.decode(
                batch.tokens_BT[b][batch.doc_BT[b] == 0].tolist(), skip_special=False
            )
            question = row.get("prompt", row.get("question"))
            assert text == (f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
            if "task" in row:
                a, b_ = (
                    int(word)
                    for word in (
                        row["prompt"].removeprefix("What is ").removesuffix("?").split(" + ")
                    )
                )
                assert row["answer"] == str(a + b_)
            else:
                assert row["answer"] == row["question"][1:]


def test_val_rows_limits_the_validation_alone(chat: Callable[..., ChatData]) -> None:
    def held_out(split: str, **options: Any) -> list[tuple[int, bytes]]:
        data = chat(validation=0.4, test=0.4, packing="none", **options)
        return [(sample.source, sample.items[0].ids.tobytes()) for sample in data.held_out(split)]

    whole, few = held_out("validation", val_rows=None), held_out("validation", val_rows=5)
    assert Counter(source for source, _ in few) == {0: 5, 1: 5}
    assert set(few) < set(whole)
    assert few == held_out("validation", val_rows=5)
    assert held_out("test", val_rows=5) == held_out("test", val_rows=None)


def test_template_options_reach_the_template_and_identify_the_data(
    chat: Callable[..., ChatData], tmp_path: Path
) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.role == 'assistant' %}{% generation %}{{ 'hm, ' if thinking else '' }}"
        "{{ message.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
    )
    plain = chat(template=str(template))
    thinking = chat(template=str(template), template_options={"thinking": True})
    for data, expected in ((plain, "assistant\nok"), (thinking, "assistant\nhm, ok")):
        rows = data.encoded.splits["train"][1].items
        assert all(expected in data.tokenizer.decode(row.ids.tolist()) for row in rows)
    assert plain.manifest_hash != thinking.manifest_hash


def test_rows_of_a_batch_are_told_apart(write_rows: WriteRows, tokenizer_folder: Path) -> None:
    common: dict[str, Any] = {
        "tokenizer": str(tokenizer_folder),
        "seq_len": 64,
        "global_batch_rows": 4,
        "micro_batch_size": 4,
    }

    def notes(data: PostTrainingData) -> list[str]:
        (batch,) = data.step_batches(0, 4)
        return [data.row_note(batch, row) for row in range(len(batch.index_B))]

    pairs = PreferenceData(path=write_rows(PAIRS, "p.jsonl"), format="preference", **common)
    assert notes(pairs) == ["chosen"] * 4 + ["rejected"] * 4
    verdicts = KTOData(path=write_rows(VERDICTS, "v.jsonl"), format="kto", **common)
    rows = [verdicts.samples.train(n).items[0].answer for n in range(4)]
    own = ["desirable" if row.desirable else "undesirable" for row in rows]
    assert notes(verdicts) == own + ["prompt with the answer of another row"] * 4
    sums = PromptData(sources={"sums": RowSource(task=Task(rows=40))}, group_size=2, **common)
    answers = [sums.samples.train(n).items[0].facts["answer"] for n in range(4)]
    assert notes(sums) == [f"answer {answer!r}" for answer in answers]
    talk = ChatData(path=write_rows(QA), format="qa", **common)
    assert notes(talk) == [""] * 4
