"""The house keeps its plan: who may import whom, where Lightning and LitData appear, and what
works without torch.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "lit_pretrain"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

# Each room may import the rooms named here, and itself. Siblings are strangers: model knows nothing
# of optim, prepare and data meet in corpus, and data knows nothing of objective.
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors", "plain_data"},
    "redaction": {"errors"},
    "slurm_script": {"errors"},
    "plain_data": {"errors", "redaction"},
    "record_files": {"errors", "plain_data"},
    "hashing": {"errors"},
    "words": {"errors"},
    "class_path": {"errors"},
    "skips": {"errors"},
    "batch_sizes": {"errors", "skips"},
    "batch": {"errors", "batch_sizes"},
    "step_size": {"errors", "batch_sizes"},
    "data_lineage": set(),
    "tokenizer": {"errors", "files", "plain_data"},
    "chat": {"errors", "files", "plain_data", "tokenizer"},
    "decontaminate": {"errors", "files", "hashing", "record_files"},
    "corpus": {"errors", "files", "hashing", "batch", "tokenizer", "decontaminate"}
    | {"plain_data"},
    "prepare": {"errors", "files", "hashing", "words", "tokenizer", "decontaminate", "corpus"}
    | {"record_files", "class_path", "plain_data", "redaction"}
    | {"slurm_script"},
    "data": {
        "errors",
        "plain_data",
        "class_path",
        "files",
        "record_files",
        "hashing",
        "batch",
        "batch_sizes",
        "step_size",
        "skips",
        "tokenizer",
        "chat",
        "decontaminate",
        "corpus",
        "data_lineage",
    },
    "roles": {"errors"},
    "transfer": {"errors"},
    "update_work": set(),
    "model": {"errors", "class_path", "batch", "roles", "transfer"},
    "adapter": {"errors", "batch", "roles"},
    "objective": {"errors", "batch"},
    "optim": {"errors", "batch_sizes", "batch", "roles", "transfer", "update_work"},
    "parallel": {"errors", "model", "step_size"},
    "report": {"errors", "files", "redaction", "skips", "batch_sizes"},
    # An adapter is put into its base when it is read.
    "checkpoint": {"errors", "files", "chat", "tokenizer", "model", "adapter", "report"}
    | {"data_lineage", "plain_data", "redaction", "skips", "batch_sizes"},
    # Laws are fitted to run folders.
    "scaling": {"errors", "files", "plain_data", "step_size", "roles", "model", "report"}
    | {"batch_sizes", "update_work"},
    "generate": {"errors", "files", "batch", "model", "tokenizer", "chat"},
    # What a score is worth follows from the lineage.
    "evaluate": {
        "errors",
        "files",
        "plain_data",
        "decontaminate",
        "model",
        "chat",
        "generate",
        "checkpoint",
    }
    | {"record_files", "plain_data"},
    "reward": {"errors", "class_path"},
    # Answers become rows as the data lays them out.
    "rollout": {"errors", "batch", "model", "adapter", "checkpoint", "generate", "reward"}
    | {"chat", "data"},
    # Never data: a stage works on whatever fulfils the contract in batch.
    "stage": {
        "errors",
        "files",
        "batch",
        "roles",
        "model",
        "adapter",
        "objective",
        "optim",
        "parallel",
        "step_size",
    }
    | {"checkpoint", "rollout", "reward", "skips", "transfer"},
    # They save checkpoints, write the run folder, sample texts with the run's tokenizer, and look
    # at gradients.
    "callbacks": {"errors", "files", "batch", "tokenizer", "chat", "generate", "scaling"}
    | {"checkpoint", "skips", "batch_sizes", "report", "evaluate", "parallel", "model"}
    | {"optim", "step_size"},
    # For scripts: models and data together, as the verbs use them.
    "interface": {"errors", "files", "batch", "tokenizer", "chat", "corpus", "data", "model"}
    | {"generate", "checkpoint"},
    # Held-out documents as `interface` opens them, under networks.
    "compare": {"errors", "batch", "hashing", "tokenizer", "model", "objective", "report"}
    | {"interface"},
    # The package itself offers `load` and `open_data`, which import when they are called.
    "__init__": {"interface"},
}
EVERYTHING = {"cli", "__main__"}
LIGHTNING = (
    "stage/",
    "parallel/",
    "callbacks/",
    "data/data_module.py",
    "cli/",
)
LITDATA = ("corpus/", "prepare/")

# What has no need of torch does not wait seconds for it: the help of verbs, preparation, planning,
# reports.
TORCH_FREE = (
    "errors",
    "files",
    "plain_data",
    "record_files",
    "hashing",
    "words",
    "class_path",
    "batch_sizes",
    "step_size",
    "roles",
    "transfer",
    "optim.optimizer",
    "optim.schedule",
    "data_lineage",
    "tokenizer.*",
    "chat.*",
    "decontaminate.*",
    "corpus.chunk_cache",
    "corpus.chunk_reader",
    "corpus.chunk_writer",
    "corpus.manifest",
    "corpus.prepared",
    "data.text.order",
    "data.text.mixture",
    "data.text.stretches",
    "data.chat.encoded_rows",
    "data.chat.formats",
    "data.chat.row_reader",
    "data.chat.row_source",
    "prepare.*",
    "report.*",
    "scaling.*",
    "model.config",
    "checkpoint.resume_contract",
    "checkpoint.layout",
    "checkpoint.hf_card",
    "checkpoint.lineage",
    "evaluate.harness",
    "cli.command.arguments",
    "cli.command.parser",
    "cli.command.verb",
    "cli.doctor.*",
    "cli.inspect.views",
    "cli.runs.*",
    "cli.scaling.*",
    "cli.adapter",
    "cli.chat",
    "cli.compare.*",
    "cli.evaluate",
    "cli.export",
    "cli.generate",
    "cli.import",
    "cli.join",
    "cli.merge",
    "cli.prepare",
    "cli.serve",
    "cli.sweep.*",
    "__main__",
)


def module_of(file: Path) -> list[str]:
    """Dotted parts of a file's module, the package included."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of everything that a file imports, within functions too; `from a
    import b` gives a.b.
    """
    package = module_of(file) if file.name == "__init__.py" else module_of(file)[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += [node.module] if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def where(file: Path) -> str:
    return file.relative_to(ROOT / PACKAGE).as_posix()


def part_of(name: str) -> str:
    """lit_pretrain.data.text.order.Order -> data; the bare package (its version) -> ""."""
    parts = name.split(".")
    known = MAY_IMPORT.keys() | EVERYTHING
    return parts[1] if len(parts) > 1 and parts[1] in known else ""


def test_every_part_has_a_place_in_the_plan():
    parts = {where(file).split("/")[0].removesuffix(".py") for file in FILES}
    assert parts <= MAY_IMPORT.keys() | EVERYTHING, (
        "a new part: add it to MAY_IMPORT with what it may import"
    )


def test_the_plan_has_a_direction():
    order = list(
        graphlib.TopologicalSorter(MAY_IMPORT).static_order()
    )  # raises CycleError otherwise
    assert order.index("stage") > order.index("model") > order.index("batch")


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_import_direction(part):
    wrong = [
        f"{where(file)}:{line} imports {name}"
        for file in FILES
        if where(file).split("/")[0].removesuffix(".py") == part
        for line, name in imported(file)
        if name.split(".")[0] == PACKAGE and part_of(name) not in MAY_IMPORT[part] | {part, ""}
    ]
    assert not wrong, f"{part} may import only {sorted(MAY_IMPORT[part])}:\n" + "\n".join(wrong)


def test_the_drawing_of_the_house_is_from_the_ground_up():
    """docs/design.md lists every part after all those that it may import."""
    drawing = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    block = drawing.split(f"```\n{PACKAGE}/\n")[1].split("```")[0]
    parts = re.findall(r"^  (\w+)(?:/|\.py) ", block, re.MULTILINE)
    assert set(parts) == (MAY_IMPORT.keys() - {"__init__"}) | EVERYTHING
    place = {part: i for i, part in enumerate(parts)}
    wrong = {
        part: sorted(below for below in allowed if place[below] > place[part])
        for part, allowed in MAY_IMPORT.items()
        if part in place and any(place[below] > place[part] for below in allowed)
    }
    assert not wrong, f"these are drawn above what they import: {wrong}"


def test_scaling_reads_shapes_and_never_builds_weights():
    wrong = [
        f"{where(file)}:{line} imports {name}"
        for file in FILES
        if where(file).startswith("scaling/")
        for line, name in imported(file)
        if part_of(name) == "model" and not name.startswith(f"{PACKAGE}.model.config")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("libraries", "places"),
    [({"lightning", "lightning_fabric", "pytorch_lightning"}, LIGHTNING), ({"litdata"}, LITDATA)],
    ids=["lightning", "litdata"],
)
def test_libraries_keep_to_their_rooms(libraries, places):
    wrong = [
        f"{where(file)}:{line} imports {name}"
        for file in FILES
        if not where(file).startswith(places)
        for line, name in imported(file)
        if name.split(".")[0] in libraries
    ]
    assert not wrong, (
        f"{'/'.join(sorted(libraries))} belongs in {', '.join(places)} only:\n" + "\n".join(wrong)
    )


def test_a_name_stands_for_one_thing():
    """Files, and classes and functions at the top of a module; every verb has its own `main`."""
    places = defaultdict(list)
    for file in FILES:
        if file.name not in ("__init__.py", "__main__.py"):
            places[file.name].append(where(file))
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            named = isinstance(node, (ast.ClassDef, ast.FunctionDef))
            if named and node.name != "main" and not node.name.startswith("_"):
                places[node.name].append(where(file))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice, f"give each its own name: {twice}"


def test_the_reader_of_imports_reads_them(tmp_path, monkeypatch):
    file = tmp_path / PACKAGE / "data" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import a.b as c\nfrom . import order\nfrom ..stage import stage\ndef f():\n    from"
        " lit_pretrain import optim\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert sorted(imported(file)) == [
        (1, "a.b"),
        (2, "lit_pretrain.data.order"),
        (3, "lit_pretrain.stage.stage"),
        (5, "lit_pretrain.optim"),
    ]
    assert [part_of(name) for _, name in sorted(imported(file))][1:] == ["data", "stage", "optim"]


def test_what_needs_no_torch_imports_none():
    names = []
    for pattern in TORCH_FREE:
        if pattern.endswith(".*"):
            folder = ROOT / PACKAGE / pattern[:-2].replace(".", "/")
            names += [".".join(module_of(file)) for file in sorted(folder.rglob("*.py"))]
        else:
            names.append(f"{PACKAGE}.{pattern}")
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'lightning', 'litdata', 'transformers'} & sys.modules.keys()\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
