"""Print figures on the structure of the package, to compare before and after it is rebuilt.

    python scripts/house.py                  # the working tree
    python scripts/house.py main~3           # another revision
    python scripts/house.py main~3 --walks   # and how many files one opens to follow a value

Figures come from the syntax trees of `lit_pretrain/`. File names that occur twice leave out
__init__.py and __main__.py. Public names are those of classes and functions at the top of a module
that do not begin with an underscore, without the `main` that every verb has. An import points up if
it names a part of the package that the importer does not reach by MAY_IMPORT, the table in
`tests/test_imports.py`.

A walk is the set of files that one opens to follow a value from its source to its end:

- batch: a batch of text from the shard to the update of the weights (`fit`),
- text: a text from its source file to the shard (`prepare` with filters, PII and deduplication),
- row: a preference row from its file to the loss of DPO and the update (`posttrain`),
- export: a checkpoint to a folder for Hugging Face (`export`).

The script runs the command itself, in this process, on tiny made data under `sys.setprofile`: with
n values and then with more, that is n steps of one row each, n source files of one text each, n
pairs, n exports. A file belongs to the walk if one of its functions (or the construction of one of
its dataclasses or named tuples) is called at least once more for each further value, after the
source is first opened. That leaves out set-up, which does not grow with the values. It also leaves
out, with everything they call, methods of Lightning callbacks and loggers, parsing of the command
line (jsonargparse) and imports. A function that never sees the value itself, such as a schedule,
counts. The files are listed with the functions for which they are counted.
"""

import argparse
import ast
import contextlib
import graphlib
import importlib.util
import io
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "lit_pretrain"


# ------------------------------------------------------------------ figures of the text
def imported(file: Path, top: Path) -> Iterator[str]:
    """Yield full names of all that a file imports, in functions too: a.b of `from a import b`."""
    package = file.relative_to(top).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += [node.module] if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def reachable(tree: Path) -> dict[str, set[str]]:
    """Map every part of the package to all that it reaches by a tree's own MAY_IMPORT."""
    file = tree / "tests" / "test_imports.py"
    spec = importlib.util.spec_from_file_location("plan_of_imports", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table: Mapping[str, set[str]] = module.MAY_IMPORT
    found: dict[str, set[str]] = {}
    for part in graphlib.TopologicalSorter(table).static_order():
        below = table.get(part, set())
        found[part] = {part} | below | {far for near in below for far in found[near]}
    for part in ("cli", "__main__"):  # everything is below them
        found[part] = {part, *found}
    return found


def imports_up(tree: Path, files: Iterable[Path]) -> list[str]:
    """List imports of parts that are not below the importer."""
    below = reachable(tree)
    found = []
    for file in files:
        place = file.relative_to(tree / PACKAGE).as_posix()
        allowed = below.get(place.split("/")[0].removesuffix(".py"), set())
        for name in imported(file, tree):
            package, _, rest = name.partition(".")
            part = rest.split(".")[0]
            if package == PACKAGE and part in below and part not in allowed:
                found.append(f"{place} imports {name}")
    return found


def comment_lines(text: str) -> int:
    """Count lines that hold nothing but a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = (token for token in tokens if token.type == tokenize.COMMENT)
    return sum(not token.line[: token.start[1]].strip() for token in comments)


def twice(names: Iterable[str]) -> int:
    return sum(count > 1 for count in Counter(names).values())


def figures(tree: Path) -> dict[str, str]:
    """Make the table: what is counted, and its figure."""
    texts = {
        file: file.read_text(encoding="utf-8") for file in sorted((tree / PACKAGE).rglob("*.py"))
    }  # fmt: skip
    lines = {file: len(text.splitlines()) for file, text in texts.items()}
    full = [count for file, count in lines.items() if file.name != "__init__.py"]
    names = [file.name for file in texts if file.name not in ("__init__.py", "__main__.py")]
    top = [node for text in texts.values() for node in ast.parse(text).body]
    classes = [node.name for node in top if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in top if isinstance(node, ast.FunctionDef)]
    public = [name for name in classes if name[0] != "_"]
    callable_ = [name for name in functions if name[0] != "_" and name != "main"]
    total, text = sum(lines.values()), "\n".join(texts.values())
    comments = sum(comment_lines(text) for text in texts.values())
    up = imports_up(tree, texts)
    return {
        "source files": f"{len(texts)}",
        "lines": f"{total:,}",
        "median lines of a file": f"{statistics.median(lines.values()):g}",
        "the same without __init__.py": f"{statistics.median(full):g}",
        "files under 40 lines": f"{sum(count < 40 for count in lines.values())}",
        "file names that occur twice": f"{twice(names)}",
        "public classes that occur twice": f"{twice(public)}",
        "public functions that occur twice": f"{twice(callable_)}",
        "imports that point up": f"{len(up)}" + "".join(f"\n  {each}" for each in up),
        "dict[str, Any]": f"{text.count('dict[str, Any]')}",
        "isinstance(": f"{text.count('isinstance(')}",
        "lines over 100 columns": f"{sum(len(line) > 100 for line in text.splitlines())}",
        "lines of comment alone": f"{comments / total:.1%}",
    }


# ------------------------------------------------------------------ walks
NET = """
--model.net.n_layer 2 --model.net.width 32 --model.net.n_head 2 --model.net.max_seq_len 128
"""
TEXT = """
--data.path data --data.seq_len 64 --data.micro_batch_size 1 --data.global_batch_tokens 64
"""
RUN = """
--model.compile off --max_epochs null --log_every 1 --validate_every 0 --checkpoint_every 0
--sample_prompts [] --trainer.accelerator cpu --trainer.precision 32-true
"""
DATA = """
prepare --out data --tokenizer.vocab_size 300 --splits.validation 0.2 --splits.test 0
--chunk_tokens 65 --workers 1 --sources {"all":{"kind":"text","path":"texts"}}
"""
FIT = f"fit --config tree/configs/pretrain/quickstart.yaml {TEXT} {NET} {RUN}"
BASE = f"""
fit --config tree/configs/pretrain/llama_adamw.yaml {TEXT} {NET} {RUN} --max_steps 1 --name base
"""
PREPARE = """
prepare --filters [gopher] --pii.kinds [email] --dedup.exact true --tokenizer.vocab_size 300
--workers 1
"""
DPO = f"""
posttrain --from runs/base --config tree/configs/posttrain/dpo.yaml --data.init_args.seq_len 128
--data.init_args.global_batch_rows 1 --data.init_args.micro_batch_size 1
--data.init_args.sources.pairs.validation_path pairs2.json {RUN}
"""


class Calls:
    """Counts calls of the package's functions from when the source is opened, but not asides."""

    def __init__(self, package: Path, source: str) -> None:
        from lightning.pytorch.callbacks import Callback
        from lightning.pytorch.loggers import Logger

        self.counts: Counter[str] = Counter()
        """By `file:function:line`."""
        self.begun = False
        self._source = source
        self._watchers = (Callback, Logger)
        self._package = f"{package}/"
        self._depth_aside = 0
        self._names: dict[CodeType, str] = {}
        self._aside: dict[CodeType, bool] = {}

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take one event of `sys.addaudithook`."""
        self.begun = self.begun or (event == "open" and self._source in str(arguments[0]))

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Take one event of `sys.setprofile`."""
        if event == "return":
            self._depth_aside -= self._depth_aside > 0
        elif event == "call":
            if self._depth_aside or self._begins_aside(frame):
                self._depth_aside += 1
            elif self.begun and (name := self._name(frame)):
                self.counts[name] += 1

    def _begins_aside(self, frame: FrameType) -> bool:
        """Tell whether a callback, the parser or an import begins here."""
        code = frame.f_code
        if code not in self._aside:
            module = str(frame.f_globals.get("__name__", "")).split(".")[0]
            first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            watches = isinstance(first, self._watchers) and bool(self._name(frame))
            parses = module in ("jsonargparse", "argparse")
            self._aside[code] = watches or parses or code.co_name == "<module>"
        return self._aside[code]

    def _name(self, frame: FrameType) -> str:
        """Return `file:function:line` of a function of ours, else nothing."""
        code = frame.f_code
        if code not in self._names:
            # The code of a generated method names no file: a dataclass's has the globals of its
            # module, and a named tuple's __new__ knows its class.
            made = frame.f_locals.get("_cls")
            names = vars(sys.modules[made.__module__]) if made else frame.f_globals
            file = str(names.get("__file__", ""))
            ours = file.startswith(self._package)
            inner = code.co_name.startswith("<") and code.co_name != "<lambda>"
            name = f"{file.removeprefix(self._package)}:{code.co_name}:{code.co_firstlineno}"
            self._names[code] = name if ours and not inner else ""
        return self._names[code]


def run(tree: Path, folder: Path, commands: list[list[str]], source: str | None) -> dict[str, int]:
    """Run commands by a tree's `main`; returns its functions' calls once `source` is opened."""
    os.chdir(folder)
    sys.path.insert(0, str(tree))
    main = importlib.import_module(f"{PACKAGE}.__main__").main
    calls = Calls(tree / PACKAGE, source or "")
    sys.addaudithook(calls.hear)
    for command in commands:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            calls.begun = False
            sys.setprofile(calls if source else None)
            try:
                code = main(command)
            finally:
                sys.setprofile(None)
        if code:
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{said.getvalue()}")
    return dict(calls.counts)


def in_a_fork(*arguments: Any) -> dict[str, int]:
    """Call `run` in a process of its own, with Lightning imported and no cache filled."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(run, *arguments).result()


def texts(count: int) -> list[str]:
    """Make texts of invented words that repeat so little that no filter objects."""
    rng = random.Random(0)

    def word() -> str:
        letters = (rng.choice("bdfklmnprst") + rng.choice("aeiou") for _ in range(3))
        return "".join(letters)

    def line() -> str:
        return f"the {word()} of {word()} and {word()} that {word()}.\n"

    return ["".join(line() for _ in range(20)) + f"To ada{n}@lovelace.org." for n in range(count)]


def walk(name: str, tree: Path, folder: Path, count: int) -> dict[str, int]:
    """Count calls on the way of so many values."""
    length = ["--max_steps", str(count), "--name", f"{name}{count}"]
    if name == "batch":
        return in_a_fork(tree, folder, [[*FIT.split(), *length]], "data/train/")
    if name == "text":
        sources = {f"s{n}": {"kind": "text", "path": f"texts/{n}.txt"} for n in range(count)}
        where = ["--out", f"data{count}", "--sources", json.dumps(sources)]
        return in_a_fork(tree, folder, [[*PREPARE.split(), *where]], "texts/")
    if name == "row":
        pairs = ["--data.init_args.sources.pairs.path", f"pairs{count}.json"]
        return in_a_fork(tree, folder, [[*DPO.split(), *pairs, *length]], f"pairs{count}.json")
    exports = [f"export --to hf runs/base hf{count}-{n}".split() for n in range(count)]
    return in_a_fork(tree, folder, exports, ".ckpt")


def walks(tree: Path) -> dict[str, dict[str, list[str]]]:
    """List the files of each walk, with the functions for which they are counted."""
    importlib.import_module("lightning.pytorch.cli")  # once, for all forks
    found: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        (folder / "tree").symlink_to(tree)
        (folder / "texts").mkdir()
        for n, text in enumerate(texts(16)):
            (folder / "texts" / f"{n}.txt").write_text(text)
        for count in (2, 4, 8):
            rows = [
                {"instruction": text[:40], "chosen": text[40:100], "rejected": text[-50:]}
                for text in texts(count)
            ]  # fmt: skip
            (folder / f"pairs{count}.json").write_text(json.dumps(rows))
        in_a_fork(tree, folder, [DATA.split(), BASE.split()], None)
        for name, few, many in (("batch", 3, 6), ("text", 4, 8), ("row", 4, 8), ("export", 1, 2)):
            less, more = (walk(name, tree, folder, count) for count in (few, many))
            found[name] = {}
            for each in sorted(more):
                if more[each] - less.get(each, 0) >= many - few:
                    file, function, _ = each.split(":")
                    functions = found[name].setdefault(file, [])
                    functions += [] if function in functions else [function]
    return found


@contextlib.contextmanager
def tree_of(revision: str | None) -> Iterator[Path]:
    """Give the files of a revision, for as long as they are needed; of None, the working tree."""
    if revision is None:
        yield ROOT
        return
    git = ["git", "-C", str(ROOT), "archive", revision]
    packed = subprocess.run(git, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder)
        yield Path(folder).resolve()


def main() -> None:
    """Print the table."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("revision", nargs="?", help="of git; default: the working tree")
    parser.add_argument("--walks", action="store_true", help="also count the files of four walks")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tree_of(options.revision) as tree:
        for words, figure in figures(tree).items():
            print(f"{words:36}{figure:>8}")
        for name, files in (walks(tree) if options.walks else {}).items():
            print(f"{f'files of the walk {name}':36}{len(files):>8}")
            for file, functions in files.items():
                print(f"  {file:36} {' '.join(functions)}")


if __name__ == "__main__":
    main()
