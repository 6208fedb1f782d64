"""Nobody's run brings code of its own into a verb that only reads the run."""

import shutil
from pathlib import Path

import pytest
import yaml

from lit_pretrain.__main__ import main
from lit_pretrain.class_path import refuse_foreign_classes
from lit_pretrain.errors import UserError

EVIL = "raise SystemExit(__import__('pathlib').Path('ran').touch())\n"
OURS = (
    "lit_pretrain.optim.AdamW", "torch.optim.NAdam", "lit_pretrain.data.ChatData",
    "lit_pretrain.objective.DPO",
)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        "evil.Class", "folder.evil.Class", "os.system", "subprocess.Popen", "torch.hub.load",
        "lit_pretrain.files.shutil.rmtree", "lit_pretrain.files.shutil", "lit_pretrain.files.os",
        "lit_pretrain.nowhere.Class", "lightning.pytorch.Trainer", "torch.optim.nowhere.X",
    ],
)  # fmt: skip
def test_foreign_code(here: Path, path: str) -> None:
    for config in (
        {"model": {"optimizer": {"class_path": path}}},
        {"model": {"optimizer": path}},
        {"data": [{"reward": {"path": path}}]},
    ):
        with pytest.raises(UserError, match="give --trust"):
            refuse_foreign_classes(config, "here")
    assert not (here / "ran").exists()


def test_what_is_no_foreign_code(here: Path) -> None:
    texts = ["code.jsonl", "data/evil.py", "nowhere.Class", "folder.txt", "v1.2", "a b.c", "auto"]
    refuse_foreign_classes({"a": texts, "b": [{"class_path": path} for path in OURS]}, "here")
    with pytest.raises(UserError, match=r"b\.class_path='nowhere\.Class'"):
        refuse_foreign_classes({"b": {"class_path": "nowhere.Class"}}, "here")


READERS = {
    "validate": ["validate", "--run=RUN", "--trainer.accelerator=cpu"],
    "test": ["test", "RUN", "--trainer.accelerator=cpu"],
    "evaluate": ["evaluate", "RUN", "--device=cpu"],
    "generate": ["generate", "RUN", "--prompt=a", "--max_new_tokens=1", "--device=cpu"],
    "replay": ["replay", "RUN", "--step=1"],
    "inspect": ["inspect", "run", "RUN"],
    "export": ["export", "RUN", "out"],
    "runs": ["runs", "."],
    "finetune": ["plan", "--from=RUN"],
}


FOREIGN = ("model.optimizer", "model.objective", "data", "trainer.logger")
CASES = [
    *((verb, FOREIGN) for verb in READERS),
    *(("validate", (option,)) for option in FOREIGN),
]


@pytest.mark.parametrize(("verb", "options"), CASES)
def test_verbs_run_no_code_of_a_run(
    quickstart: Path,
    here: Path,
    verb: str,
    options: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(quickstart / "runs" / "quickstart", here / "run")
    file = here / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    for option in options:
        group, _, name = option.partition(".")
        if name:
            config[group][name] = {"class_path": "evil.Class"}
        else:
            config[group] = {"class_path": "evil.Class", "init_args": config[group]}
    file.write_text(yaml.safe_dump(config))
    command = [arg.replace("RUN", "run") for arg in READERS[verb]]
    try:
        code = main(command)
    except SystemExit as error:  # of the parser's own
        code = int(str(error.code))
    assert not (here / "ran").exists()
    if verb in ("validate", "test", "evaluate", "replay") and options != ("trainer.logger",):
        assert code == 2
        assert "give --trust" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main([*command, "--trust"])
        assert (here / "ran").exists()
