"""The command as a process: help, version, exit codes, environment, and what it imports."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import indexshare
from indexshare.cli import main
from indexshare.config.environment import Environment, read_environment

ROOT = Path(__file__).resolve().parents[3]
# Those that report take --json.
VERBS = (
    "bench",
    "complete",
    "doctor",
    "export",
    "generate",
    "info",
    "models",
    "score",
    "tokenize",
)  # those that report take --json


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "indexshare", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_as_a_process() -> None:
    result = command("info", "tiny", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["layers"] == 6
    wrong = command("info", "tinny")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: no model 'tinny'")


def test_debug_shows_the_traceback_and_bad_values_are_refused() -> None:
    assert "Traceback" in command("info", "tinny", INDEXSHARE_DEBUG="1").stderr
    refused = command("info", "tiny", INDEXSHARE_DEBUG="yes")
    assert refused.returncode == 2
    assert refused.stderr == "error: INDEXSHARE_DEBUG is 'yes'; expected 1 (on), or 0 or nothing (off)\n"


def test_the_environment_chooses_the_kernels() -> None:
    result = command("doctor", "--json", INDEXSHARE_CPU_LEVEL="base")
    report = json.loads(result.stdout)
    reasons = {row["op"]: row["reason"] for row in report["operations"]}
    assert result.returncode == 0
    assert report["compiler"] is None or reasons["select_topk"] == "C++ kernels for base"
    refused = command("info", "tiny", INDEXSHARE_CPU_LEVEL="sse")
    assert refused.returncode == 2 and refused.stderr.startswith(
        "error: INDEXSHARE_CPU_LEVEL is 'sse'; expected one of"
    )


def test_a_reader_that_leaves_early_is_no_error() -> None:
    program = f"{sys.executable} -m indexshare info glm-5.2 --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_terminal_that_cannot_show_a_character_gets_a_question_mark() -> None:
    program = "from indexshare.cli import main, output; main(['--version']); output.write('é x')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert result.stdout.endswith(b"? x")


def test_help_and_version(run: Callable[..., Any]) -> None:
    for flag in ("--version", "-V"):
        assert run(flag).out.strip() == indexshare.__version__
    for arguments in ((), ("--help",)):
        text = run(*arguments).out
        assert all(verb in text for verb in (*VERBS, "train"))
    for verb in VERBS:
        assert "--json" in run(verb, "--help").out


def test_a_shell_completes_verbs_and_options(run: Callable[..., Any], tmp_path: Path) -> None:
    for shell, words in (("zsh", "#compdef"), ("fish", "complete -c indexshare"), ("powershell", "ArgumentCompleter")):
        assert words in run("shell-completion", shell).out
    script = tmp_path / "completion.bash"
    script.write_text(run("shell-completion", "bash").out)
    for typed, expected in ((["gen"], "generate"), (["eval", "--sui"], "--suite"), (["score", "--stri"], "--stride")):
        words = " ".join(["indexshare", *typed])
        program = f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _indexshare; echo ${{COMPREPLY[@]}}"
        found = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
        assert found.stdout.split() == [expected], found.stderr
    assert "expected" in run("shell-completion", "tcsh").err or run("shell-completion", "tcsh").code == 2


def test_an_unknown_verb_is_an_error(run: Callable[..., Any]) -> None:
    result = run("inffo", "nano")
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert "info" in result.err


def test_the_command_loads_no_heavy_room() -> None:
    program = (
        "import sys, indexshare.cli; indexshare.cli.main(['info', 'tiny', '--json']); "
        "heavy = {'ops', 'cache', 'model', 'engine', 'train', 'eval', 'export', 'tokenizer'}; "
        "print(sorted(m for m in sys.modules if m == 'torch' or m.split('.')[1:2] and "
        "m.split('.')[0] == 'indexshare' and m.split('.')[1] in heavy), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stderr == "[]\n"


def test_public_names_load_on_first_use() -> None:
    assert set(indexshare.__all__) <= set(dir(indexshare))
    for name in indexshare.__all__:
        assert getattr(indexshare, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = indexshare.nonsense


@pytest.mark.parametrize(("value", "expected"), [("", False), ("0", False), ("1", True)])
def test_the_environment_is_parsed(value: str, expected: bool) -> None:
    assert read_environment({"INDEXSHARE_DEBUG": value, "PATH": "x"}) == Environment(debug=expected)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"INDEXSHARE_DEBUG": "true"}, "INDEXSHARE_DEBUG is 'true'"),
        ({"INDEXSHARE_DEBUGG": "1"}, "did you mean INDEXSHARE_DEBUG"),
        ({"INDEXSHARE_ZZZZZZZZZZZZ": "1"}, "known: INDEXSHARE_CPU_LEVEL, INDEXSHARE_DEBUG"),
        ({"INDEXSHARE_CPU_LEVEL": "sse"}, "INDEXSHARE_CPU_LEVEL is 'sse'; expected one of amx, avx512bf16"),
    ],
)
def test_a_setting_is_never_ignored_in_silence(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_environment(variables)


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    assert main(["models"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected
