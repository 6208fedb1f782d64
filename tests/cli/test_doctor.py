"""Doctor: well on this machine, and each trouble provoked for real where that is possible."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from lit_pretrain.cli import doctor
from lit_pretrain.cli.doctor import Finding, disk, machine
from lit_pretrain.cli.doctor.machine import Probe, probe

DAMAGES = ("truncated", "flipped", "missing")
SOUND = Probe(
    imported={"torch": 1.0, "lightning": 2.0, "litdata": 0.1},
    torch={
        "version": "2.13.0",
        "cuda": "13.0",
        "hip": None,
        "threads": 2,
        "mps": False,
        "precision": "bf16-mixed",
    },
)
GPU = {
    "name": "NVIDIA H200",
    "memory": 141 * 10**9,
    "free": 140 * 10**9,
    "capability": "9.0",
    "bf16": True,
    "error": None,
}


def package(folder: Path, name: str, version: str, code: str) -> None:
    """A package as pip leaves it, found before the real one of that name when its folder is on
    PYTHONPATH.
    """
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def report(stdout: str) -> dict[str, Finding]:
    """The findings of `--json` by check."""
    return {entry["check"]: Finding(**entry) for entry in json.loads(stdout)["findings"]}


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the seconds that the imports of the other process take."""
    monkeypatch.setattr(machine, "probe", lambda skip=(): SOUND)


# ------------------------------------------------------------------ as a whole


def test_well_here(run_cli, dataset, tmp_path):
    run = run_cli(
        "doctor", "--data", dataset, "--runs", tmp_path / "new" / "runs", "--verify", "--json"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = report(run.stdout)
    for name in (
        "Python",
        "torch",
        "lightning",
        "litdata",
        "torchmetrics",
        "jsonargparse",
        "tensorboard",
        "tokenizers",
        "tiktoken",
        "numpy",
    ):
        assert found[name].verdict == "ok"
        assert "required" in found[name].found
    assert {found[f"import {name}"].verdict for name in ("torch", "lightning", "litdata")} == {"ok"}
    assert found["known-bad releases"] == Finding("known-bad releases", "none")
    assert "every sha256 is right" in found["dataset tiny"].found
    assert "story, sums, code" in found["dataset tiny"].found
    assert not (tmp_path / "new").exists(), "it only looks"


def test_table_says_what_to_do_below_the_finding():
    lines = doctor.findings_table(
        [Finding("disk", "full", "trouble", "free some space"), Finding("Python", "3.11")]
    ).splitlines()
    assert lines[2].split() == ["disk", "trouble", "full"]
    assert lines[3].split() == ["→", "free", "some", "space"]
    assert lines[4].split() == ["Python", "ok", "3.11"]
    assert lines[-1] == "doctor: 1 in trouble, 0 to note, 1 ok"


def test_help_and_misspelt_option(capsys):
    for arguments, code in ((["--help"], 0), (["--verifi"], 2), (["extra"], 2)):
        with pytest.raises(SystemExit) as stop:
            doctor.main(arguments)
        assert stop.value.code == code
    said = capsys.readouterr()
    assert "--verify" in said.out
    assert "Did you mean '--verify'?" in said.err


@pytest.mark.usefixtures("no_probe")
def test_exit_code_and_table(tmp_path, dataset, capsys):
    places = ["--runs", str(tmp_path)]
    assert doctor.main(["--data", str(dataset), *places]) == 0
    assert "every size is right" in capsys.readouterr().out
    assert doctor.main(["--data", str(dataset / "tokenizer.json"), *places]) == 1
    assert "is a file, not a folder" in capsys.readouterr().out


# The packages


def test_torchvision_of_another_torch_is_recognised(run_cli, tmp_path):
    package(
        tmp_path / "site",
        "torchvision",
        "0.28.0",
        "raise RuntimeError('operator torchvision::nms does not exist')",
    )
    run = run_cli("doctor", "--json", env={"PYTHONPATH": str(tmp_path / "site")})
    assert run.returncode == 1
    broken = report(run.stdout)["import lightning"]
    assert broken.verdict == "trouble"
    assert "torchvision 0.28.0 does not match this torch" in broken.found
    assert "pip uninstall --yes torchvision" in broken.advice


def test_malicious_release_is_named_and_never_imported(run_cli, tmp_path):
    package(tmp_path / "site", "lightning", "2.6.3", f"open({str(tmp_path / 'stolen')!r}, 'w')")
    run = run_cli("doctor", "--json", env={"PYTHONPATH": str(tmp_path / "site")})
    assert run.returncode == 1
    found = report(run.stdout)
    assert "lightning 2.6.3: malicious" in found["known-bad releases"].found
    assert "replace every password" in found["known-bad releases"].advice
    assert found["lightning"].verdict == "trouble", "nor is it the required version"
    assert found["import torch"].verdict == "ok"
    assert "not tried" in found["import lightning"].found
    assert "not tried" in found["import litdata"].found
    assert not (tmp_path / "stolen").exists()


def test_import_that_kills_its_process(tmp_path, monkeypatch):
    package(tmp_path, "torch", "2.13.0", "import os; os.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = disk.imports(probe())
    assert [f.verdict for f in found] == ["trouble"] * 3
    assert "killed by signal 11" in found[0].found


def test_import_that_fails_and_death_after_the_imports(tmp_path, monkeypatch):
    package(tmp_path, "torch", "2.13.0", "")  # has no __version__, so nothing is asked of it
    package(tmp_path, "lightning", "2.6.6", "import nothing_of_that_name")
    package(tmp_path, "litdata", "0.2.76", "import atexit, os; atexit.register(os._exit, 3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe()
    assert "No module named 'nothing_of_that_name'" in disk.imports(found)[1].found
    assert found.died is not None
    assert "exit code 3" in found.died
    assert machine.devices(Probe(torch=SOUND.torch, died=found.died))[0].verdict == "trouble"


def test_versions_against_requirements(tmp_path, monkeypatch):
    package(tmp_path, "litdata", "0.2.59", "")
    package(tmp_path, "lightning", "2.6.5", "")
    monkeypatch.syspath_prepend(tmp_path)
    found = {f.check: f for f in disk.requirements()}
    assert found["litdata"] == Finding(
        "litdata", "0.2.59 (required ==0.2.76)", "trouble", disk.REINSTALL
    )
    assert found["lightning"].verdict == "trouble"
    assert "pytest" not in found, "extras are not required"
    (bad,) = disk.known_bad(disk.bad_releases())
    assert "GHSA-qqmf-gpg7-g8gw" in bad.found
    assert not any(release.hostile for release in disk.bad_releases())


@pytest.mark.parametrize(
    ("version", "what"),
    [
        ("2.6.1", "GHSA-qqmf"),
        ("2.6.2", "malicious"),
        ("2.6.3", "malicious"),
        ("2.6.3.post1", "malicious"),
        ("2.6.5", "GHSA-qqmf"),
    ]
    + [(version, None) for version in ("2.6.6", "2.7.0", "3")],
)
def test_known_bad_releases(version, what, monkeypatch):
    monkeypatch.setattr(
        disk, "installed", lambda package: version if package == "lightning" else None
    )
    found = disk.bad_releases()
    assert [what in bad.what for bad in found] == ([] if what is None else [True])


def test_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "DISTRIBUTION", "a_distribution_that_is_not_there")
    (only,) = disk.requirements()
    assert (only.verdict, "setup.sh" in only.advice) == ("trouble", True)
    package(tmp_path, "half", "1", "")
    (tmp_path / "half-1.dist-info" / "METADATA").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert disk.installed("half") is None, "the record of a killed installation"


# ------------------------------------------------------------------ machine


def test_gpu_with_a_known_peak():
    (found,) = machine.devices(Probe(torch=SOUND.torch, devices=[GPU]))
    assert found.verdict == "ok"
    for part in ("NVIDIA H200", "131.3 GiB", "capability 9.0", "bf16", "989 TFLOP/s"):
        assert part in found.found


@pytest.mark.parametrize(
    ("change", "verdict", "says"),
    [
        ({"name": "GPU of tomorrow"}, "note", "peak not known"),
        ({"free": 10**10}, "note", "9.3 free"),
        (
            {"error": "no kernel image is available for execution on the device"},
            "trouble",
            "no kernel image",
        ),
    ],
)
def test_gpu_that_is_not_as_it_should_be(change, verdict, says):
    first, second, mesh = machine.devices(
        Probe(torch=SOUND.torch, devices=[GPU, {**GPU, **change}])
    )
    assert "a mesh of dp_shard 2" in mesh.found
    assert (mesh.verdict == "note") == ("name" in change)  # of two kinds
    assert (first.check, first.verdict, second.check, second.verdict) == (
        "cuda:0",
        "ok",
        "cuda:1",
        verdict,
    )
    assert says in second.found
    assert second.advice


@pytest.mark.parametrize(
    ("gpu", "facts", "verdict"),
    [
        (False, {}, "ok"),
        (True, {}, "ok"),
        (
            False,
            {"cuda_error": "Found no NVIDIA driver"},
            "ok",
        ),  # PyPI's torch on a machine without a GPU
        (True, {"cuda_error": "The NVIDIA driver is too old"}, "trouble"),
        (True, {"cuda": None, "version": "2.13.0+cpu"}, "note"),
    ],
)
def test_torch_build_against_the_machine(gpu, facts, verdict, monkeypatch):
    monkeypatch.setattr(machine, "has_nvidia", lambda: gpu)
    (found,) = machine.torch_build(Probe(torch={**SOUND.torch, **facts}))
    assert found.verdict == verdict
    assert bool(found.advice) == (verdict != "ok")


def test_nothing_is_said_of_a_torch_that_cannot_be_asked():
    assert machine.torch_build(Probe()) == machine.devices(Probe()) == []
    assert machine.compiler(Probe()) == []
    assert [f.check for f in machine.processor(Probe())] == ["processor", "threads"]


def test_threads_against_a_container_limit(tmp_path, monkeypatch):
    file = tmp_path / "cpu.max"
    for text, cores in (("max 100000\n", None), ("150000 100000\n", 1.5), ("", None)):
        file.write_text(text)
        assert machine.cgroup_cores(file) == cores
    monkeypatch.setattr(machine, "usable_cores", lambda: 64)
    monkeypatch.setattr(machine, "cgroup_cores", lambda: 2.0)
    threads = machine.processor(Probe(torch={**SOUND.torch, "threads": 64}))[1]
    assert threads.verdict == "note"
    assert "OMP_NUM_THREADS=2" in threads.advice
    assert machine.processor(SOUND)[1].verdict == "ok"


def test_compiler():
    (found,) = machine.compiler(SOUND)
    assert found.verdict == "ok"
    (found,) = machine.compiler(
        Probe(torch={**SOUND.torch, "uncompiled": "no C++ compiler found (g++ or clang++)"})
    )
    assert (found.verdict, "no C++ compiler found" in found.found) == ("note", True)
    assert "python3-dev" in found.advice


# Folders and datasets


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    blocked = disk.folder("runs", tmp_path / "file" / "below")
    assert (blocked.verdict, "is a file, not a folder" in blocked.found) == ("trouble", True)
    if Path("/proc").is_dir():
        read_only = disk.folder("runs", Path("/proc/runs"))
        assert (read_only.verdict, "cannot be written" in read_only.found) == ("trouble", True)
    if os.geteuid() != 0:  # root writes everywhere
        tmp_path.chmod(0o500)
        assert disk.folder("runs", tmp_path / "runs").verdict == "trouble"
        tmp_path.chmod(0o700)


def test_room_on_the_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    for free, verdict in ((5 * 10**8, "trouble"), (5 * 10**9, "note"), (5 * 10**10, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(0, 0, free))
        found = disk.folder("runs", tmp_path / "runs")
        assert found.verdict == verdict
        assert bool(found.advice) == (verdict != "ok")


def test_no_dataset_yet_several_and_remote(tmp_path, dataset):
    (none,) = disk.datasets(tmp_path / "data", verify=False)
    assert (none.verdict, "lit_pretrain prepare" in none.found) == ("ok", True)
    for name in ("one", "two"):
        shutil.copytree(dataset, tmp_path / "data" / name)
    assert [f.check for f in disk.data_findings(str(tmp_path / "data"), verify=False)] == [
        "data folder",
        "dataset one",
        "dataset two",
    ]
    assert [f.check for f in disk.data_findings("s3://bucket/data", verify=False)] == [
        "cache of s3://bucket/data"
    ]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_chunk(damage, tmp_path, dataset):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    chunk = next((copy / "train" / "sums").glob("*.bin"))
    content = chunk.read_bytes()
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(
            content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1])
        )
    (quick,) = disk.datasets(copy, verify=False)
    assert quick.verdict == ("ok" if damage == "flipped" else "trouble"), (
        "sizes alone cannot show a flipped bit"
    )
    (found,) = disk.datasets(copy, verify=True)
    assert found.verdict == "trouble"
    assert str(chunk) in found.found
    assert "sha256" in found.found
    assert "run `lit_pretrain prepare` again" in found.advice


def test_damaged_manifest_and_tokenizer(tmp_path, dataset):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    spec = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**spec, "version": "2.0"}))
    (found,) = disk.datasets(copy, verify=False)
    assert (found.verdict, "is not the tokenizer that encoded the data" in found.found) == (
        "trouble",
        True,
    )
    (copy / "tokenizer.json").unlink()
    assert "cannot be read" in disk.datasets(copy, verify=False)[0].found
    (copy / "manifest.json").write_text("{")
    (found,) = disk.datasets(copy, verify=False)
    assert (found.verdict, "not JSON" in found.found, bool(found.advice)) == ("trouble", True, True)


def test_many_damaged_chunks_are_counted(tmp_path, dataset):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    for chunk in copy.glob("*/*/*.bin"):
        chunk.unlink()
    found = disk.datasets(copy, verify=False)
    assert len(found) == disk.NAMED + 1
    assert "more like these" in found[-1].found
