"""The whole benchmark on the embedded pair, for real; its parts, its views, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refused, run
from edge_prm_bench.peers import read_peers

from edge_prm.errors import InputError
from edge_prm.prm import load
from edge_prm_bench.demo import demo_pair
from edge_prm_bench.engine import Engine
from edge_prm_bench.report import html as report
from edge_prm_bench.report import tables
from edge_prm_bench.results import Options, Results
from edge_prm_bench.speed import latency
from edge_prm_bench.speed.device import Throttling, describe_device
from edge_prm_bench.suite import run_suite

for module, extra in (("onnxruntime", "cpu"), ("onnx", "export"), ("matplotlib", "bench"), ("tabulate", "bench")):
    pytest.importorskip(module, reason=f'the benchmark needs {module}: pip install "edge-prm[{extra}]"')

QUICK = ("--lengths", "64,128", "--runs", 2, "--threads", 1)


@contextmanager
def silent(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tuple[Path, ...], Options]]:
    from edge_prm_export import export

    options = Options(lengths=(64, 128), runs=2, engine=Engine(threads=1), sweep=(1,))
    with demo_pair(options, export, silent) as given:
        yield given


@pytest.fixture(scope="module")
def results(pair: tuple[tuple[Path, ...], Options]) -> Results:
    return run_suite(*pair, silent)


# the suite


def test_the_suite_on_the_demo_measures_everything(results: Results) -> None:
    assert [bundle.name for bundle in results.bundles] == ["demo-int8", "demo-int8-reduced"]
    assert len(results.quantization) == len(results.capability) == 4  # two bundles, two files
    for one in results.quantization:
        saturates = one.ours == "demo-int8"  # on processors without VNNI; the reduced range is for them
        assert 0 < one.mean.value < (0.05 if saturates else 0.01)
        assert one.mean.low <= one.mean.value <= one.mean.high
        assert one.left_out == 0
        assert one.spearman.value > (0.9 if saturates else 0.98)
    for other in results.capability:
        assert other.reference == "demo-reference fp32"
        assert 0.5 < other.spearman.value < 0.99  # another model
    at_half = [one for one in results.step_quality if not one.fitted_on]
    assert all(one.f1.value > 0.8 for one in at_half)
    assert all(one.step_auc.value > 0.93 for one in at_half)
    chosen = next(one for one in results.best_of_n if one.name == "demo-int8")
    assert chosen.n == [1, 2, 4]
    assert chosen.random[0] < chosen.chosen[-1] <= chosen.oracle[-1]


def test_speed_and_memory_are_measured(results: Results) -> None:
    speed = results.bundles[0].speed
    assert speed is not None
    assert [one.tokens for one in speed.prefill] == [64, 128]
    assert all(one.tokens_per_second == one.tokens / one.timing.best for one in speed.prefill)
    for timing in [one.timing for one in speed.prefill] + [speed.load.warm]:
        assert 0 < timing.best <= timing.p50 <= timing.p95 <= timing.worst
        assert timing.runs == 2
    assert speed.push is not None
    assert speed.push.computed_beyond_new <= 2
    assert speed.rank is not None
    assert speed.rank.computed <= speed.rank.needed + 2 * speed.rank.candidates
    assert speed.rank.needed < speed.rank.one_by_one
    assert speed.rank.faster.low <= speed.rank.faster.p50 <= speed.rank.faster.high
    assert list(speed.peak_gb) == [128]
    assert list(speed.threads_sweep) == [1]
    assert speed.energy is None or speed.energy.joules > 0
    assert results.throttling is not None
    assert results.throttling.gops_before > 1


def test_the_figures_are_those_of_the_rewards(pair: tuple[tuple[Path, ...], Options], results: Results) -> None:
    """Once more, with nothing of the suite but the data: mean difference and agreement on the first weak step."""
    (bundle, _), options = pair
    rows = [json.loads(line) for line in options.data[0].read_text().splitlines()]
    rewards = []
    for folder in (bundle, options.references[0]):
        with load(folder) as prm:
            rewards.append([prm.score(row["problem"], row["steps"]).rewards for row in rows])
    ours, theirs = (np.concatenate(each) for each in rewards)
    one = results.quantization[0]
    assert one.mean.value == pytest.approx(np.abs(ours - theirs).mean())
    assert one.p99.value == pytest.approx(np.quantile(np.abs(ours - theirs), 0.99))
    assert one.flips.value == pytest.approx(np.mean((ours >= 0.5) != (theirs >= 0.5)))
    weak = [[next((i for i, r in enumerate(row) if r < 0.5), -1) for row in side] for side in rewards]
    assert one.first_weak.value == pytest.approx(np.mean([a == b for a, b in zip(*weak, strict=True)]))


def test_json_holds_everything_and_no_nan(results: Results) -> None:
    text = json.dumps(results.as_dict(), allow_nan=False)
    facts = json.loads(text)
    assert facts["bundles"][0]["speed"]["push"]["tokens"] > 10
    assert facts["quantization"][0]["mean"]["low"] is not None
    assert facts["quantization"][0]["best"]["value"] is None  # derivations have no candidates
    assert "comparisons" not in facts


def test_the_report_needs_no_network(results: Results) -> None:
    text = report.html(results)
    body = text.replace('xmlns="http://www.w3.org/2000/svg"', "").replace("http://www.w3.org/1999/xlink", "")
    for outside in ("src=", "<link", "@import", "url(http", 'href="http'):
        assert outside not in body
    assert text.count("<svg") >= 6
    for said in ("Faithful", "Speed by length", "Size against fidelity", "Best of N on candidates.jsonl", "viewport"):
        assert said in text


def test_the_report_escapes_what_the_data_say(results: Results) -> None:
    trace = results.comparisons[0].data.traces[0]
    hostile = "<script>alert(1)</script>"
    data = results.comparisons[0].data
    changed = type(data)(hostile, (type(trace)(hostile, hostile, trace.trajectory, trace.right, trace.first_wrong), *data.traces[1:]), data.split)  # fmt: skip
    one = results.comparisons[0]
    copy = Results(results.device, 1, comparisons=[type(one)(changed, one.ours, one.reference, one.kind)])
    assert "<script>" not in report.html(copy)


def test_markdown_is_a_table_for_a_readme(results: Results) -> None:
    text = tables.markdown(results)
    assert "| demo-int8 " in text
    assert "95% of 1,000 bootstrap samples" in text
    assert "onnxruntime" in text.splitlines()[0]


def test_nothing_measured_is_no_table() -> None:
    assert tables.tables(Results(describe_device(), None)) == []
    assert "edge-prm bench" in report.html(Results(describe_device(), None))


# the command


def test_the_command_ends_with_one_json_document(pair: tuple[tuple[Path, ...], Options], tmp_path: Path) -> None:
    (bundle, other), options = pair
    given = ["--data", options.data[0], "--limit", 20, "--reference", options.references[0], *QUICK]
    files = {name: tmp_path / f"out.{name}" for name in ("json", "report", "markdown")}
    outputs = [part for name, path in files.items() for part in (f"--{name}", path)]
    result = run("bench", bundle, other, *given, *outputs)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout.splitlines()[-1])
    assert [one["name"] for one in facts["bundles"]] == ["demo-int8", "demo-int8-reduced"]
    assert facts["quantization"][0]["traces"] == 20
    assert facts == json.loads(files["json"].read_text())
    assert all(path.stat().st_size > 1000 for path in files.values())
    assert "Fidelity to full precision" in result.stdout
    assert "timing demo-int8" in result.stderr


def test_each_part_alone(pair: tuple[tuple[Path, ...], Options]) -> None:
    (bundle, _), options = pair
    for part, given, measured in (
        ("latency", QUICK, "bundles"),
        ("fidelity", ("--data", options.data[1], "--limit", 8, "--reference", options.references[1]), "capability"),
        ("quality", ("--data", options.data[0], "--limit", 30, "--fit", options.data[0]), "step_quality"),
    ):
        result = run("bench", part, bundle, *given)
        assert result.exit_code == 0, result.output
        facts = json.loads(result.stdout.splitlines()[-1])
        assert facts[measured]
        assert (facts["bundles"][0]["speed"] is not None) == (part == "latency")
        if part == "quality":
            assert facts["step_quality"][0]["fitted_on"] == "derivations.jsonl"


def test_a_reference_file_and_a_noise_floor(pair: tuple[tuple[Path, ...], Options], tmp_path: Path) -> None:
    """Two references of one checkpoint: fp32 is what a bundle is held against, the other one is the floor."""
    pytest.importorskip("torch", reason="reference files are made in torch: pip install torch transformers")
    pytest.importorskip("transformers", reason="reference files are made by transformers")
    (bundle, _), options = pair
    files = []
    for dtype in ("bf16", "fp32"):
        files.append(tmp_path / f"{dtype}.jsonl")
        made = run("bench", "reference", "demo", options.data[0], "-o", files[-1], "--dtype", dtype, "--limit", 16)
        assert made.exit_code == 0, made.output
    given = [part for path in files for part in ("--reference", path)]
    result = run("bench", "fidelity", bundle, "--data", options.data[0], *given)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout.splitlines()[-1])
    (one,), (floor,) = facts["quantization"], facts["noise_floor"]
    assert one["reference"] == floor["reference"] == "demo fp32, torch"
    assert floor["ours"] == "demo bf16, torch"
    assert one["traces"] == 16  # as many as the reference holds
    assert 0 < floor["mean"]["value"] < 0.05


def test_a_peer_stands_beside(pair: tuple[tuple[Path, ...], Options], tmp_path: Path) -> None:
    peer = tmp_path / "peer.jsonl"
    peer.write_text('{"peer": "other engine", "64": 123.4, "size_gb": 1.5, "mean": 0.0055, "p99": 0.02}\n')
    result = run("bench", "latency", pair[0][0], *QUICK, "--peer", peer)
    assert result.exit_code == 0, result.output
    assert "other engine" in result.stdout
    assert "123.4" in result.stdout


# what is refused


@pytest.mark.parametrize("text", ["", "{}", "[]", "no", '{"peer": 1}', '{"peer": "x", "512": "fast"}'])
def test_a_file_of_no_peer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "peer").write_text(text + "\n")
    with pytest.raises(InputError, match="peer"):
        read_peers([tmp_path / "peer"])


def test_wrong_input_is_one_sentence_before_any_work(pair: tuple[tuple[Path, ...], Options], tmp_path: Path) -> None:
    (bundle, _), _ = pair
    (tmp_path / "empty.jsonl").write_text("")
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"problem": "P", "steps": ["a"]}\n')
    refused(run("bench", bundle, "--data", tmp_path / "empty.jsonl"), "holds no rows")
    refused(run("bench", bundle, "--data", tmp_path / "nowhere.jsonl"), "cannot be read")
    refused(run("bench", "quality", bundle, "--data", plain, "--fit", plain), "no labels of wrong steps")
    refused(run("bench", bundle, "--data", plain, "--reference", bundle), "a reference has full precision")
    refused(run("bench", bundle, "--data", plain, "--reference", plain), "is not a reference file")
    refused(run("bench", tmp_path), "is not an edge-prm bundle")
    refused(run("bench", bundle, "--report", tmp_path / "no" / "such.html"), "there is no folder")
    assert run("bench", bundle, "--lengths", "many").exit_code == 2


def test_quality_of_rows_without_labels_is_one_sentence(pair: tuple[tuple[Path, ...], Options], tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"problem": "P", "steps": ["a"]}\n')
    refused(run("bench", "quality", pair[0][0], "--data", plain), "no labels")


def test_a_part_without_its_data_is_one_sentence(pair: tuple[tuple[Path, ...], Options]) -> None:
    refused(run("bench", "quality", pair[0][0]), "--data")


def test_a_reference_of_other_data_is_refused(pair: tuple[tuple[Path, ...], Options], tmp_path: Path) -> None:
    from edge_prm_bench.reference.file import Provenance, ReferenceWriter

    (bundle, _), options = pair
    path = tmp_path / "r.jsonl"
    ReferenceWriter(path, Provenance("x", "c", "t", "sigmoid", "fp32", "cpu", 1, "d", "0" * 64, "blank", 3)).close()
    refused(run("bench", bundle, "--data", options.data[0], "--reference", path), "was made from other data")


def test_another_tokenizer_is_refused(pair: tuple[tuple[Path, ...], Options], tmp_path: Path) -> None:
    """The same checkpoint, but tokens of another tokenizer: no difference would mean anything."""
    (bundle, _), options = pair
    reference = Path(shutil.copytree(options.references[0], tmp_path / "reference"))
    manifest = json.loads((reference / "edge_prm.json").read_text())
    manifest["files"]["tokenizer.json"]["sha256"] = "0" * 64
    (reference / "edge_prm.json").write_text(json.dumps(manifest))
    refused(run("bench", bundle, "--data", options.data[0], "--reference", reference), "another tokenizer")


def test_a_text_over_the_context_is_left_out_and_counted(
    pair: tuple[tuple[Path, ...], Options], tmp_path: Path
) -> None:
    (bundle, _), options = pair
    rows: list[dict[str, Any]] = [json.loads(line) for line in options.data[0].read_text().splitlines()[:3]]
    rows.insert(1, {"id": "long", "problem": "P", "steps": ["1 + 1 = 2 " * 2000]})
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("bench", "fidelity", bundle, "--data", path, "--reference", options.references[0])
    assert result.exit_code == 0, result.output
    one = json.loads(result.stdout.splitlines()[-1])["quantization"][0]
    assert (one["traces"], one["left_out"]) == (3, 1)


def test_two_files_of_one_name_are_kept_apart(pair: tuple[tuple[Path, ...], Options], tmp_path: Path) -> None:
    """Data limited to a part, and the threshold fitted on the whole of it and on another file of the same name."""
    (bundle, _), options = pair
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / options.data[0].name
    other.write_text("".join(options.data[0].read_text().splitlines(keepends=True)[30:90]))
    result = run("bench", "quality", bundle, "--data", options.data[0], "--data", other, "--fit", other)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])["step_quality"]
    assert [one["traces"] for one in found] == [200, 60]


# small things


def test_throttling_is_said() -> None:
    assert Throttling(800, 790, None).sentence.startswith("The device held its speed")
    assert Throttling(800, 600, None).slowed
    assert "3 thermal events" in Throttling(800, 800, 3).sentence


def test_the_device_is_described() -> None:
    device = describe_device()
    assert device.cores >= 1
    assert device.processor
    assert device.versions["python"].startswith("3.")


def test_the_work_in_a_token_is_that_of_the_published_model() -> None:
    """2.62 GOP for the 1.5B: 28 layers of 1536 x 2048, 1536 x 1536 and three of 1536 x 8960."""
    from edge_prm.manifest import Architecture

    class Manifest:
        architecture = Architecture("qwen2", 28, 1536, 12, 2, 128, 151936, 8960)

    assert latency.gop_per_token(Manifest()) == pytest.approx(2.62, abs=0.005)  # type: ignore[arg-type]
