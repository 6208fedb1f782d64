"""Docstrings of functions say in the imperative what the function does.

ruff keeps the third person out (D401) and asks for one summary line (D205).
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NO_VERBS = frozenset(
    """a all an and as at by each every for from how if in its no none nothing of on one only our
    that the their these this those to what when where whether which who why with""".split()
)
VERBS_THAT_END_ALIKE = ("ss", "bring", "string", "embed", "eed", "shed")
"""Ends of verbs that look like a third person, a gerund or a participle: pass, string, feed."""


@pytest.mark.parametrize("folder", ["lit_pretrain", "scripts"])
def test_functions_begin_with_a_verb(folder: str) -> None:
    wrong, count = [], 0
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = ast.get_docstring(node, clean=False)
            # A property is named and described like a value.
            if not text or any("property" in ast.unparse(each) for each in node.decorator_list):
                continue
            count += 1
            word = text.split()[0].lower().strip(".,;:")
            ends = word.endswith(("s", "ing", "ed")) and not word.endswith(VERBS_THAT_END_ALIKE)
            if word in NO_VERBS or ends:
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {word}")
    assert count > 50
    assert wrong == []
