"""Tasks of the real harness on a trained network: scored as its own model of transformers
scores our export, and in honest company.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_pretrain.__main__ import main
from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.checkpoint.layout import resolve
from lit_pretrain.checkpoint.network import load_network
from lit_pretrain.errors import UserError
from lit_pretrain.report.run_folder import read_metrics

pytest.importorskip("lm_eval", reason="needs the eval extra (lm-eval)")

from lm_eval.api.instance import Instance

from lit_pretrain.evaluate.harness import (
    EvaluationRequest,
    content_hashes,
    decontamination_status,
    load_tasks,
    run_tasks,
)
from lit_pretrain.evaluate.language_model import NetworkLM

ALL = ("fox_choice", "fox_word", "fox_text", "fox_answer")


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "hf"
    assert main(["export", str(trained), str(out)]) == 0
    return out


def language_model(run: Path, **options: Any) -> NetworkLM:
    from contextlib import nullcontext

    settings: dict[str, Any] = {
        "bos": True,
        "chat": False,
        "batch_size": 5,
        "autocast": nullcontext(),
        **options,
    }
    return NetworkLM(load_network(resolve(str(run))).eval(), ModelTokenizer.of(run), **settings)


@pytest.mark.parametrize("bos", [True, False])
def test_the_harness_s_own_model_of_transformers_agrees(
    bos: bool, trained: Path, exported: Path, tasks: Path
) -> None:
    """Every answer of every task, not their means alone."""
    pytest.importorskip("accelerate", reason="lm_eval's model of transformers needs it")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs = HFLM(
        pretrained=str(exported), dtype="float32", device="cpu", batch_size=5, add_bos_token=bos
    )
    ours = language_model(trained, bos=bos)
    names = [
        name for name in ALL if not (bos and name == "fox_text")
    ]  # it scores the bos token after the bos token; see below
    found = []
    for model in (theirs, ours):
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        result = simple_evaluate(
            model, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True
        )
        found.append(result)
    for name in names:
        for key, value in found[0]["results"][name].items():
            if isinstance(value, float):
                assert found[1]["results"][name][key] == pytest.approx(value, abs=1e-4, rel=1e-4), (
                    name,
                    key,
                )
        pairs = zip(found[0]["samples"][name], found[1]["samples"][name], strict=True)
        for expected, own in pairs:
            if name == "fox_answer":
                assert own["resps"] == expected["resps"]
            else:
                flat = [[row[0] for row in sample["resps"]] for sample in (expected, own)]
                for a, b in zip(*flat, strict=True):
                    assert (
                        b[0] == pytest.approx(a[0], abs=1e-4)
                        if isinstance(a, (tuple, list))
                        else b == pytest.approx(a, abs=1e-3)
                    )
                    assert not isinstance(a, (tuple, list)) or str(b[1]) == str(a[1])
    texts = {str(sample["resps"]) for sample in found[1]["samples"]["fox_answer"]}
    assert len(texts) > 3  # or nothing would be told apart


def test_rolling_scores_are_the_loss_of_the_text_after_bos(trained: Path) -> None:
    """In closed form, window by window, in float64; bos is a context and is not scored."""
    lm = language_model(trained)
    text = "The fox sees the owl by the hill. " * 15
    ids = lm.tok_encode(text, add_special_tokens=False)
    assert len(ids) > lm.max_length
    net = load_network(resolve(str(trained))).double().eval()
    expected, at = 0.0, 0
    sequence = [lm.prefix_token_id, *ids]
    while at < len(ids):
        end = min(at + lm.max_length, len(ids))
        begin = 0 if at == 0 else end - lm.max_length
        row = torch.tensor([sequence[begin:end]])
        with torch.no_grad():
            logp_TV = net.logits(net(row))[0].log_softmax(-1)
        wanted = torch.tensor(sequence[begin + 1 : end + 1])
        own = logp_TV.gather(1, wanted[:, None])[-(end - at) :, 0]
        expected += own.sum().item()
        at = end
    (found,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert found == pytest.approx(expected, rel=1e-6)
    assert lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("",), 0)]) == [0.0]


def test_one_token_answers_share_a_row_and_a_batch_changes_nothing(trained: Path) -> None:
    pairs = [("The fox sees the", f" {animal}") for animal in ("fox", "owl", "hen", "cat")] + [
        ("", "The"),
        ("The " * 200, "fox"),
    ]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    lm = language_model(trained, batch_size=16)
    rows: list[int] = []
    hidden = lm._hidden
    lm._hidden = lambda batch: (rows.append(len(batch)), hidden(batch))[1]
    together = lm.loglikelihood(requests, disable_tqdm=True)
    assert sum(rows) == 3
    alone = [
        language_model(trained).loglikelihood([request], disable_tqdm=True)[0]
        for request in requests
    ]
    for a, b in zip(together, alone, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-4)
        assert a[1] == b[1]
    assert len({round(score, 3) for score, _ in together}) == len(pairs)


def test_within_training_and_after_it_the_figures_are_the_same(
    trained: Path, tasks: Path, tmp_path: Path
) -> None:
    lines = {
        line["step"]: line
        for line in read_metrics(trained)
        if any(key.startswith("eval_fox") for key in line)
    }
    assert sorted(lines) == [40, 60]
    options = [f"--include={tasks}", "--limit=8", f"--report={tmp_path / 'r.json'}"]
    options += ["--tasks", "[fox_choice, fox_answer]", "--tensorboard=false"]
    assert main(["evaluate", str(trained), *options]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    for task in ("fox_choice", "fox_answer"):
        for metric, value in report["tasks"][task]["metrics"].items():
            assert lines[60][f"eval_{task}/{metric}"] == pytest.approx(value, abs=1e-9)
    losses = [line["val/loss"] for line in read_metrics(trained) if "val/loss" in line]
    assert report["held_out"]["all"]["loss"] == pytest.approx(losses[-1], rel=1e-5)


def test_the_report_says_what_was_measured_with_what(
    trained: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    capsys.readouterr()
    assert (
        main(
            [
                "evaluate",
                str(trained),
                "--tasks",
                f"[{tasks / 'choice.yaml'}]",
                "--shots=1",
                "--limit=6",
                "--bos=false",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    for text in (
        "precision", "32-true", "lm-eval 0.4", "do not begin with bos", "chat template",
        "none, not applied", "the first 6 items", "nats/token", "perplexity", "bits/byte", "story",
        "sums", "code", "undeclared:", "was never decontaminated against it",
    ):  # fmt: skip
        assert text in out, text
    (file,) = (trained / "evaluations").glob("*.json")
    report = json.loads(file.read_text())
    score = report["tasks"]["fox_choice"]
    assert (score["shots"], score["items"], score["status"]["verdict"]) == (1, 6, "undeclared")
    for values in report["held_out"].values():
        assert values["perplexity"] == pytest.approx(math.exp(values["loss"]))
    assert report["conditions"]["language"] == ModelTokenizer.of(trained).record()
    events = EventAccumulator(str(trained))
    events.Reload()
    (point,) = events.Scalars("Tasks/eval_fox_choice/acc")[-1:]
    assert point.step == 60
    assert point.value == pytest.approx(score["metrics"]["acc"])


def test_a_conversation_is_put_as_one(trained: Path, tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        language_model(trained, chat=True)
    template = (
        Path(__file__).parents[2] / "lit_pretrain" / "chat" / "templates" / "chatml.jinja"
    ).read_text()
    from lit_pretrain.chat.template import ChatTemplate

    language = ModelTokenizer(
        ModelTokenizer.of(trained).tokenizer, ChatTemplate(template, name="chatml")
    )
    request = EvaluationRequest(
        ("fox_choice", "fox_answer"), include=str(tasks), apply_chat_template=True, limit=4
    )
    loaded = load_tasks(request)
    net = load_network(resolve(str(trained)))
    net.train()
    scores = run_tasks(net, language, request, (), loaded=loaded)
    assert [score.items for score in scores] == [4, 4]
    assert all(module.training for module in net.modules())
    first = loaded["tasks"]["fox_answer"].instances[0].args[0]
    assert first.startswith("<|im_start|>user\n")
    assert first.endswith("<|im_start|>assistant\n")
    lm = NetworkLM(
        net,
        language,
        bos=False,
        chat=True,
        batch_size=1,
        autocast=torch.autocast("cpu", torch.bfloat16),
    )
    assert lm.tok_encode(first)[0] == language.tokenizer.special_tokens["<|im_start|>"]
    begun = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The fox"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False).endswith(
        "<|im_start|>assistant\nThe fox"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks=[fox_choise]"], "there is no task 'fox_choise'. Did you mean 'fox_choice'"),
        (
            ["--tasks=fox_choice, fox_choise"],
            "there is no task 'fox_choise'. Did you mean 'fox_choice'",
        ),
        (["--tasks=[missing.yaml]"], "the task file missing.yaml does not exist"),
        (["--tasks=[fox_choice]", "--batch_size=0"], "batch_size=0 must be at least 1"),
        (["--tasks=[fox_choice]", "--apply_chat_template"], "no chat template"),
        (["--held_out=false"], "nothing is to be measured"),
    ],
)
def test_mistakes(
    options: list[str], message: str, trained: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    extra = [] if "--held_out=false" in options else ["--held_out=false", f"--include={tasks}"]
    assert main(["evaluate", str(trained), *options, *extra]) == 2
    assert message in capsys.readouterr().err


def test_a_task_whose_data_is_gone(
    trained: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gone.yaml"
    file.write_text(
        (tasks / "choice.yaml")
        .read_text()
        .replace(str(tasks / "rows.jsonl"), str(tmp_path / "none.jsonl"))
    )
    assert main(["evaluate", str(trained), f"--tasks=[{file}]", "--held_out=false"]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_data_that_was_held_against_a_task_makes_it_clean(tasks: Path, tmp_path: Path) -> None:
    """The gate knows the set by its content: under another name, and in another format."""
    from lit_pretrain.corpus.manifest import Manifest
    from lit_pretrain.data.text.text_data import prepared_record
    from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig, EvaluationSet
    from lit_pretrain.prepare.pipeline import prepare
    from lit_pretrain.prepare.prepare_config import (
        PrepareConfig,
        SourceConfig,
        SplitsConfig,
        TokenizerConfig,
    )

    rows = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()]
    (tmp_path / "other.json").write_text(json.dumps(rows[::-1]))
    documents = [
        {"text": f"Number {n} of many stories, none of which is asked about. " * 9}
        for n in range(30)
    ]
    documents[3]["text"] += rows[5]["text"]
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps(document) + "\n" for document in documents)
    )
    (task,) = load_tasks(EvaluationRequest(("fox_word",), include=str(tasks)))["tasks"].values()
    found = {}
    for action in ("remove", "mark"):
        gate = DecontaminateConfig(
            against={"animals": EvaluationSet(path=str(tmp_path / "other.json"), fields=["text"])},
            action=action,
        )
        prepare(
            PrepareConfig(
                out=str(tmp_path / action),
                sources={"a": SourceConfig(kind="jsonl", path=str(tmp_path / "text.jsonl"))},
                tokenizer=TokenizerConfig(kind="train", vocab_size=280),
                splits=SplitsConfig(validation=0.2, test=0.0),
                decontaminate=gate,
                workers=1,
            )
        )
        data = prepared_record(action, Manifest.load(tmp_path / action))
        stages = [{"name": "run", "data": data}]
        found[action] = decontamination_status(content_hashes(task), stages)
    assert found["remove"].verdict == "clean"
    assert "decontaminated against it as animals" in found["remove"].reason
    assert found["mark"].verdict == "contaminated"
    (tmp_path / "rows.jsonl").write_text(
        (tasks / "rows.jsonl").read_text() + json.dumps(rows[0]) + "\n"
    )
    file = tmp_path / "longer.yaml"
    file.write_text((tasks / "word.yaml").read_text().replace(str(tasks), str(tmp_path)))
    (longer,) = load_tasks(EvaluationRequest((str(file),)))["tasks"].values()
    assert decontamination_status(content_hashes(longer), stages).verdict == "undeclared"
