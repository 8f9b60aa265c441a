"""The examples: those that need no other engine and no training run here, `examples/run` runs all of them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("onnxruntime", reason='pip install "edge-prm[cpu]"')

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(path: str) -> ModuleType:
    """Import the program of an example."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edge_prm.source import EMBEDDED
    from edge_prm_export import export

    folder = tmp_path_factory.mktemp("examples") / "prm"
    export(f"{EMBEDDED}demo", folder, recipe="fp32")
    return folder


def test_every_example_is_run_by_the_script_and_named_in_the_readme() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and (path / "README.md").exists()}
    script = (EXAMPLES / "run").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| \[(\w+)\]", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    run = re.search(r"^all=\((.*)\)$", script, re.MULTILINE)
    assert run
    assert set(run[1].split()) == named == folders | {"train_demo"}
    assert all(f"run_{name}()" in script for name in named)


def test_a_file_is_scored_and_what_is_left_out_is_counted(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, results = EXAMPLES / "score_file" / "answers.jsonl", tmp_path / "results.jsonl"
    counts = example("score_file/score_file.py").score_file(str(bundle), str(rows), str(results))
    assert counts == {"scored": 5, "left out": 2}
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [line["place"] for line in lines] == ["line 1", "line 2", "line 3", "line 3", "line 5"]
    assert [line["score"] > 0.5 for line in lines] == [True, False, True, False, True]
    assert capsys.readouterr().err.count("left out") == 2


def test_a_text_over_the_context_is_left_out_at_its_own_place(bundle: Path, tmp_path: Path) -> None:
    rows, results = tmp_path / "rows.jsonl", tmp_path / "results.jsonl"
    steps = [["2 + 3 = 5"], ["3 * 3 = 9 " * 400], ["2 + 3 = 6"]]
    rows.write_text("".join(json.dumps({"problem": "What is 2 + 3?", "steps": each}) + "\n" for each in steps))
    counts = example("score_file/score_file.py").score_file(str(bundle), str(rows), str(results))
    assert counts == {"scored": 2, "left out": 1}
    places = [json.loads(line)["place"] for line in results.read_text(encoding="utf-8").splitlines()]
    assert places == ["line 1", "line 3"]


def test_a_writer_that_makes_mistakes_is_stopped_and_goes_on_from_a_better_step(bundle: Path) -> None:
    import edge_prm

    watcher = example("watch_generator/watch_generator.py")
    written: list[list[str]] = []

    def write(steps: list[str]):  # type: ignore[no-untyped-def]
        written.append(steps)
        wrong = ["9 + 8 = 19", "19 - 8 = 11"] if len(written) == 1 else ["9 + 8 = 17", "17 - 8 = 9"]
        for index in range(len(steps), 2):
            yield wrong[index], index == 1

    with edge_prm.load(bundle) as prm:
        score = watcher.watch(prm, "Start with 9, add 8, then subtract 8. What do you get?", write)
    assert [step.text for step in score.steps] == ["9 + 8 = 17", "17 - 8 = 9"]
    assert min(score.rewards) > watcher.WEAK_BELOW
    assert written == [[]] * (1 + watcher.WAYS) + [["9 + 8 = 17"]]


def test_the_tiny_generator_writes_derivations_in_llama_cpp(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason='pip install "edge-prm[gguf]"')
    pytest.importorskip("gguf", reason='pip install "edge-prm[export]"')
    path = tmp_path / "tiny.gguf"
    example("best_of_n/tiny_generator.py").write_generator(path)
    llama = llama_cpp.Llama(str(path), n_ctx=256, seed=0, verbose=False)
    question = [{"role": "user", "content": "Start with 9, add 8, then subtract 8. What do you get?"}]
    reply = llama.create_chat_completion(question, max_tokens=32, temperature=0.0)
    steps = reply["choices"][0]["message"]["content"].split("\n\n")
    assert re.fullmatch(r"(Step 1: )?9 \+ 8 = \d+", steps[0])
    assert re.fullmatch(r"(Step 2: )?\d+ [-+*] \d+ = \d+", steps[1])


def test_the_packages_of_the_node_example_are_exact_versions_and_their_lock_names_no_registry() -> None:
    package = json.loads((EXAMPLES / "node" / "package.json").read_text(encoding="utf-8"))
    lock = json.loads((EXAMPLES / "node" / "package-lock.json").read_text(encoding="utf-8"))
    assert package["dependencies"]
    for name, version in package["dependencies"].items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
    assert not any("resolved" in entry for entry in lock["packages"].values())
