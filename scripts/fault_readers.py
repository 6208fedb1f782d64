"""Formats that faults.py fuzzes: sound contents, mutations and the readers of each."""

import contextlib
import copy
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from safetensors.numpy import save

ROOT = Path(__file__).resolve().parents[1]
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1e308, float("inf"), float("nan"), "", " ", "\0", "\ud800", "${x}",
    "${oc.env:NOT_SET_ANYWHERE}", "${", "../../../x", "~", "é" * 300, "1e9", [], {}, [[]], [None],
    {"": ""}, {"class_path": "os.system", "init_args": {}}, {"class_path": 3}, "<|im_end|>", [{}],
)  # fmt: skip
PIECES = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"&a [*a]", b"{{", b"${", b"%}", b": ",
    b"\n- ", b"[" * 2000, b"!!python/object:os.system x", b"<<: *b", b"\t", b"'", b'"', b"---\n",
    b"{% for i in range(10**9) %}", b"1e999", b"\\ud800",
)  # fmt: skip


def change_value(value: Any, rng: random.Random) -> Any:
    """Change one place of a plain value: its content, kind, key or presence."""
    top = {"top": copy.deepcopy(value)}
    holder: Any = top
    key: Any = "top"
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
        holder = holder[key]
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    match rng.randrange(5):
        case 0 if holder is not top:
            del holder[key]
        case 1 if isinstance(holder, dict) and holder is not top:
            holder[str(key)[:-1] + rng.choice("sx_")] = holder.pop(key)
        case 2:
            holder[key] = [holder[key]]
        case _:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE))
    return top["top"]


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change a content at one place: a bit, a piece that is lost or doubled, or hostile bytes."""
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    b = min(b, a + 40)
    match rng.randrange(5):
        case 0 if a < len(content):
            return content[:a] + bytes([content[a] ^ 1 << rng.randrange(8)]) + content[a + 1 :]
        case 1:
            return content[:a] + content[b:]
        case 2:
            return content[:b] + content[a:]
        case 3:
            return content[:a]
        case _:
            return content[:a] + rng.choice(PIECES) + content[a:]


def change(content: bytes, rng: random.Random) -> bytes:
    """Change YAML or JSON by value or by byte."""
    if rng.random() < 0.5:
        return change_bytes(content, rng)
    changed = change_value(yaml.safe_load(content), rng)
    return json.dumps(changed).encode()  # which is YAML as well


def is_refusal(error: BaseException) -> bool:
    """Tell whether the command line shows an error as one line."""
    from lit_pretrain.chat.messages import BadRow
    from lit_pretrain.chat.template import Refused
    from lit_pretrain.errors import UserError, refusal_of_system

    if isinstance(error, MemoryError):
        return False  # a bound of ours should have come first
    return isinstance(error, UserError | BadRow | Refused) or refusal_of_system(error) is not None


class FuzzedFile(NamedTuple):
    """A format: a file of it, what changes it, and what reads it."""

    name: str
    contents: list[bytes]
    """Sound ones."""
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]
    share: float = 1.0
    """Of the inputs that others get; less where reading takes long."""


def fuzzed_files(sound: Path) -> list[FuzzedFile]:
    """List the formats of which there are sound files: our own, or those of a run and dataset."""
    from lit_pretrain.chat.template import ChatTemplate
    from lit_pretrain.checkpoint.hf_import import read_shape, read_tensors
    from lit_pretrain.checkpoint.layout import best_record
    from lit_pretrain.checkpoint.lineage import Lineage
    from lit_pretrain.checkpoint.peft_format import from_peft, read_peft
    from lit_pretrain.corpus.manifest import Manifest
    from lit_pretrain.data.chat.formats import ROW_FORMATS
    from lit_pretrain.data.chat.row_source import RowSource, RowTally, read_source
    from lit_pretrain.evaluate.harness import EvaluationRequest, load_tasks
    from lit_pretrain.model.config import ModelConfig
    from lit_pretrain.plain_data import check_references, read_text, read_yaml
    from lit_pretrain.prepare.filters.classifier import TextClassifier
    from lit_pretrain.prepare.inputs import InputFile
    from lit_pretrain.prepare.prepare_config import SourceConfig
    from lit_pretrain.prepare.read.read_source import SourceReader
    from lit_pretrain.prepare.read.reader import ReadPolicy
    from lit_pretrain.record_files import read_records
    from lit_pretrain.report.rewinds import Rewind, read_rewinds, write_rewinds
    from lit_pretrain.report.run_folder import (
        read_metrics,
        read_provenance,
        read_skips,
        write_skips,
    )
    from lit_pretrain.scaling.fitted import read_document
    from lit_pretrain.scaling.run_table import read_table
    from lit_pretrain.skips import Skips
    from lit_pretrain.tokenizer.tokenizer import Tokenizer
    from lit_pretrain.tokenizer.tokenizer_files import stated_separators

    def rows(path: Path) -> None:
        for name, format in ROW_FORMATS.items():
            for kind in format.kinds():
                try:
                    list(read_source(
                        "rows", RowSource(path=str(path), format=name), kind=kind, validation=0.1,
                        test=0.0, on_bad_row="refuse", tally=RowTally(),
                    ))  # fmt: skip
                except Exception as error:  # any but a refusal is a fault
                    if not is_refusal(error):
                        raise

    def template(path: Path) -> None:
        talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        ChatTemplate(read_text(path), name=path.name).render(talk, bos="<s>", eos="</s>")

    def tokens(path: Path) -> None:
        Tokenizer.load(path).encode("The sum of 2 + 2, é, 数\n")

    def source(kind: str) -> Callable[[Path], None]:
        def read(path: Path) -> None:
            file = InputFile(path.name, str(path), path.stat().st_size)
            for _ in SourceReader(SourceConfig(kind=kind, path=str(path)), [file], ReadPolicy()):
                pass

        return read

    def task(path: Path) -> None:
        rows = path.with_name("task_rows.jsonl")
        rows.write_text('{"q": "x", "a": "y"}\n' * 4)
        path.write_bytes(path.read_bytes().replace(b"ROWS", str(rows).encode()))
        with contextlib.redirect_stdout(io.StringIO()):
            load_tasks(EvaluationRequest(tasks=(str(path),)))

    def weights(path: Path) -> None:
        path.with_name("config.json").write_text(json.dumps(_LLAMA))
        read_tensors(path.parent)

    def adapter(path: Path) -> None:
        for name, content in ADAPTER.items():
            if name != path.name:
                path.with_name(name).write_bytes(content)
        config, tensors = read_peft(path.parent)
        shape = ModelConfig(**read_fields(_LLAMA, path.parent))
        from_peft(shape, config, tensors, where=str(path.parent))

    def read_fields(config: dict[str, Any], folder: Path) -> Any:
        folder.joinpath("config.json").write_text(json.dumps(config))
        return read_shape(folder)

    made = sound.parent / "made"
    made.mkdir(exist_ok=True)
    write_skips(made, Skips.parse("3:5"))
    write_rewinds(made, [Rewind(to=2, skips="3:5", spike=4, reason="a leap", done=True)])
    run, data = sound / "runs" / "tiny", sound / "data" / "tiny"
    configs = [path.read_bytes() for path in sorted((ROOT / "configs").rglob("*.yaml"))]
    templates = sorted((ROOT / "lit_pretrain" / "chat" / "templates").glob("*.jinja"))

    def content(path: Path) -> list[bytes]:
        return [path.read_bytes()] if path.is_file() else []

    every = [
        FuzzedFile("a.yaml", configs, change, lambda path: check_references([read_yaml(path)])),
        FuzzedFile("a.jinja", [t.read_bytes() for t in templates], change_bytes, template),
        # rows and records
        FuzzedFile("a.jsonl", [json.dumps(row).encode() for row in ROWS], change, rows),
        FuzzedFile("b.jsonl", [b'{"question": "x"}'], change, read_records),
        FuzzedFile("rows.parquet", [parquet()], change_bytes, read_records),
        FuzzedFile("rows.json", [b'[{"question": "x"}, {"question": "y"}]'], change, read_records),
        FuzzedFile("rows.jsonl.gz", [gzip.compress(b'{"question": "x"}\n' * 9)], change_bytes,
                   read_records),
        FuzzedFile("task.yaml", [TASK], change, task, share=0.05),
        # text
        FuzzedFile("a.txt", [TEXT], change_bytes, source("text")),
        FuzzedFile("a.txt.gz", [gzip.compress(TEXT)], change_bytes, source("text")),
        FuzzedFile("c.jsonl", [b'{"text": "a"}\n{"text": "b"}\n'], change_bytes, source("jsonl")),
        FuzzedFile("a.html", [PAGE], change_bytes, source("html")),
        FuzzedFile("a.warc", [WARC], change_bytes, source("warc")),
        FuzzedFile("a.parquet", [parquet()], change_bytes, source("parquet")),
        # a dataset and its tokenizer
        FuzzedFile("manifest.json", content(data / "manifest.json"), change,
                   _parent(Manifest.load)),
        FuzzedFile("tokenizer.json", content(data / "tokenizer.json"), change, tokens),
        FuzzedFile("tokenizer_config.json", [SPECIAL], change, _parent(stated_separators)),
        # what a run keeps
        FuzzedFile("lineage.json", content(run / "lineage.json"), change, _parent(Lineage.read)),
        FuzzedFile("provenance.json", content(run / "provenance.json"), change,
                   _parent(read_provenance)),
        FuzzedFile("checkpoints/best.json", content(run / "checkpoints" / "best.json"), change,
                   lambda path: best_record(path.parents[1], _not_shown)),
        FuzzedFile("metrics.jsonl", content(run / "metrics.jsonl"), change_bytes,
                   lambda path: read_metrics(path.parent, _not_shown)),
        FuzzedFile("rewinds.json", content(made / "rewinds.json"), change, _parent(read_rewinds)),
        FuzzedFile("skips.json", content(made / "skips.json"), change, _parent(read_skips)),
        # Hugging Face folders and adapters
        FuzzedFile("config.json", [json.dumps(shape).encode() for shape in SHAPES], change,
                   _parent(read_shape)),
        FuzzedFile("model.safetensors", [MODEL], change_bytes, weights),
        *(FuzzedFile(name, [content], change if name.endswith("json") else change_bytes, adapter)
          for name, content in ADAPTER.items()),
        FuzzedFile("q.safetensors", content(sound / "q.safetensors"), change_bytes,
                   TextClassifier.load),
        # laws
        FuzzedFile("runs.csv", [TABLE], change_bytes, read_table),
        FuzzedFile("fit.json", [LAW], change, read_document),
    ]  # fmt: skip
    return [file for file in every if file.contents]


def _not_shown(warning: str) -> None:
    """Take a warning of which there would be thousands."""


def _parent(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Let a reader of folders read the folder of a file."""
    return lambda path: read(path.parent)


def parquet() -> bytes:
    """Write a table of texts."""
    import pyarrow
    from pyarrow import parquet as format

    file = io.BytesIO()
    format.write_table(pyarrow.table({"text": ["a b", "c"], "meta": [{"x": 1}, None]}), file)
    return file.getvalue()


_TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
ROWS: tuple[dict[str, Any], ...] = (
    {"messages": _TALK},
    {"messages": [*_TALK[:1], {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{}"}}]}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    {"instruction": "Hi", "input": "", "output": "Ho"},
    {"instruction": "Hi", "context": "", "response": "Ho", "category": "qa"},
    {"system_prompt": "", "question": "Hi", "response": "Ho"},
    {"prompt": "Hi", "completion": "Ho", "label": True},
    {"prompt": "Hi", "chosen": "Ho", "rejected": "No"},
    {"prompt": _TALK[:1], "chosen": _TALK[1:], "rejected": _TALK[1:]},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Ho", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    {"prompt": "1 + 1 =", "answer": "2"},
    {"prompt": {"role": "prompter", "text": "Hi", "replies": [
        {"role": "assistant", "text": "Ho", "rank": 0, "replies": []}]}},
    {"prompt": "Hi", "completions": ["a", "b"], "labels": [True, False]},
    {"text": "Human: Hi\nAssistant: Ho"},
)  # fmt: skip
_LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 300, "hidden_act": "silu",
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip
SHAPES: tuple[dict[str, Any], ...] = (
    _LLAMA,
    _LLAMA | {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    _LLAMA | {"model_type": "mistral", "sliding_window": 32},
    _LLAMA | {"model_type": "qwen2", "use_sliding_window": False},
    _LLAMA | {"model_type": "qwen3", "head_dim": 16},
    {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128,
        "vocab_size": 300, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
)  # fmt: skip
MODEL = save({"model.norm.weight": np.ones(64, np.float32), "lm_head.weight": np.ones((3, 64))})
_HALF = np.ones((2, 64), np.float32)
ADAPTER = {
    "adapter_config.json": json.dumps({
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "base_model_name_or_path": "x",
    }).encode(),
    "adapter_model.safetensors": save({
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{half}.weight": matrix
        for layer in range(2)
        for half, matrix in (("A", _HALF), ("B", _HALF.T.copy()))
    }),
}  # fmt: skip
TASK = b"""
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
TEXT = "A line.\n\nSome words, and é, 数字.\n".encode() * 4
PAGE = b"<html><head><title>T</title></head><body><article><p>%s</p></article></body></html>" % TEXT
_HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + PAGE
WARC = b"""WARC/1.0\r
WARC-Type: response\r
WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000001>\r
WARC-Target-URI: http://a.example/\r
WARC-Date: 2020-01-01T00:00:00Z\r
Content-Type: application/http; msgtype=response\r
Content-Length: %d\r
\r
%s\r
\r
""" % (len(_HTTP), _HTTP)
SPECIAL = json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>"}).encode()
TABLE = b"params,tokens,loss\n1e6,2e7,4.1\n2e6,4e7,3.8\n4e6,8e7,3.5\n"
LAW = json.dumps({
    "law": "chinchilla", "params": {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28},
    "residuals": [{"residual": 0.01}], "largest_compute": 1e18, "params_counted": "total",
    "unit": "nats", "range": {"n": [1e6, 1e7], "d": [1e7, 1e8]}, "draws": None,
}).encode()  # fmt: skip
