"""The complete benchmark on the embedded pair: its parts, its views, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_runs import facts_of, measure, needs, silent, write_rows
from command_line import refused, run

from edge_prm.prm import load
from edge_prm_bench.data import Data, Trace
from edge_prm_bench.demo import demo_pair
from edge_prm_bench.engine import Engine
from edge_prm_bench.reference.file import Provenance, ReferenceWriter, ScoredCheckpoint, ScoredData, TorchRun
from edge_prm_bench.report import html as report
from edge_prm_bench.report import tables
from edge_prm_bench.results import Environment, FidelityResults, Options, Results
from edge_prm_bench.speed.device import describe_device
from edge_prm_bench.suite import run_suite

needs("onnxruntime", "onnx", "matplotlib", "tabulate")

QUICK = ("--lengths", "64,128", "--runs", 2, "--threads", 1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tuple[Path, ...], Options]]:
    from edge_prm_export import export

    options = Options.of(lengths=(64, 128), runs=2, engine=Engine(threads=1), sweep=(1,))
    with demo_pair(options, export, silent) as given:
        yield given


@pytest.fixture(scope="module")
def results(pair: tuple[tuple[Path, ...], Options]) -> Results:
    return run_suite(*pair, silent)


@pytest.fixture
def bundle(pair: tuple[tuple[Path, ...], Options]) -> Path:
    return pair[0][0]


@pytest.fixture
def data(pair: tuple[tuple[Path, ...], Options]) -> Path:
    return pair[1].input.data[0]


@pytest.fixture
def full(pair: tuple[tuple[Path, ...], Options]) -> Path:
    """The demo in full precision."""
    return pair[1].input.references[0]


# the suite


def test_the_suite_on_the_demo_measures_everything(results: Results) -> None:
    assert [bundle.name for bundle in results.bundles] == ["demo-int8", "demo-int8-reduced"]
    quantization, capability = results.fidelity.quantization, results.fidelity.capability
    assert len(quantization) == len(capability) == 4  # two bundles, two files
    for row in quantization:
        saturates = row.pairing.name == "demo-int8"  # on processors without VNNI; the reduced range is for them
        mean = row.difference.mean
        assert 0 < mean.value < (0.05 if saturates else 0.01)
        assert mean.low <= mean.value <= mean.high
        assert row.pairing.skipped == 0
        assert row.agreement.spearman.value > (0.9 if saturates else 0.98)
    for other in capability:
        assert other.pairing.reference == "demo-reference fp32, onnx"
        assert 0.5 < other.agreement.spearman.value < 0.99  # another model
    at_half = [row for row in results.quality.steps if not row.threshold.fitted_on]
    assert all(row.f1.value.value > 0.8 for row in at_half)
    assert all(row.auc.value.value > 0.93 for row in at_half)
    chosen = next(row for row in results.quality.best_of_n if row.name == "demo-int8")
    assert [point.n for point in chosen.points] == [1, 2, 4]
    assert chosen.points[0].random < chosen.last.chosen.value <= chosen.last.oracle


def test_speed_and_memory_are_measured(results: Results) -> None:
    speed = results.bundles[0].speed
    assert speed is not None
    assert [row.tokens for row in speed.prefill] == [64, 128]
    assert all(row.tokens_per_second == row.tokens / row.timing.best for row in speed.prefill)
    for timing in [row.timing for row in speed.prefill] + [speed.load.warm]:
        assert 0 < timing.best <= timing.p50 <= timing.p95 <= timing.worst
        assert timing.runs == 2
    assert speed.push is not None
    assert speed.push.computed_beyond_new <= 2
    assert speed.rank is not None
    assert speed.rank.computed <= speed.rank.needed + 2 * speed.rank.candidates
    assert speed.rank.needed < speed.rank.one_by_one
    assert speed.rank.faster.low <= speed.rank.faster.p50 <= speed.rank.faster.high
    assert list(speed.peak_gb) == [128]
    assert list(speed.fixed.threads_sweep) == [1]
    assert speed.fixed.share_of_limit is not None
    assert results.environment.throttling is not None


def test_the_figures_are_those_of_the_rewards(bundle: Path, data: Path, full: Path, results: Results) -> None:
    """Computed again from the data alone: mean difference, flips, and agreement on the first weak step."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rewards = []
    for folder in (bundle, full):
        with load(folder) as prm:
            rewards.append([prm.score(row["problem"], row["steps"]).rewards for row in rows])
    ours, theirs = (np.concatenate(each) for each in rewards)
    row = results.fidelity.quantization[0]
    assert row.difference.mean.value == pytest.approx(np.abs(ours - theirs).mean())
    assert row.difference.p99.value == pytest.approx(np.quantile(np.abs(ours - theirs), 0.99))
    assert row.verdicts.flip_rate.value == pytest.approx(np.mean((ours >= 0.5) != (theirs >= 0.5)))
    weak = [[next((i for i, r in enumerate(each) if r < 0.5), -1) for each in side] for side in rewards]
    assert row.verdicts.first_weak.value == pytest.approx(np.mean([a == b for a, b in zip(*weak, strict=True)]))


# views


def test_the_report_needs_no_network(results: Results) -> None:
    text = report.html(results)
    body = text.replace('xmlns="http://www.w3.org/2000/svg"', "").replace("http://www.w3.org/1999/xlink", "")
    for outside in ("src=", "<link", "@import", "url(http", 'href="http'):
        assert outside not in body
    assert text.count("<svg") >= 6
    for said in ("Faithful", "Speed by length", "Size against fidelity", "Best of N on candidates.jsonl", "viewport"):
        assert said in text


def test_the_report_escapes_text_of_the_data(results: Results) -> None:
    hostile = "<script>alert(1)</script>"
    comparison = results.fidelity.comparisons[0]
    first, *others = comparison.data.traces
    trace = Trace(hostile, hostile, first.trajectory, first.right, first.first_wrong)
    changed = replace(comparison, data=Data(hostile, (trace, *others), comparison.data.split))
    copy = Results(results.environment, fidelity=FidelityResults(comparisons=(changed,)))
    text = report.html(copy)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_markdown_is_a_table_for_a_document(results: Results) -> None:
    text = tables.markdown(results)
    assert "| demo-int8 " in text
    assert "95% of 1,000 bootstrap samples" in text
    assert "onnxruntime" in text.splitlines()[0]


def test_nothing_measured_is_no_table() -> None:
    nothing = Results(Environment(describe_device(), 1))
    assert tables.tables(nothing) == []
    assert "edge-prm bench" in report.html(nothing)


# the command


def test_every_output_has_the_same_figures(
    pair: tuple[tuple[Path, ...], Options], data: Path, full: Path, tmp_path: Path
) -> None:
    given = ["--data", data, "--limit", 20, "--reference", full, *QUICK]
    files = {"-o": tmp_path / "out.json", "--report": tmp_path / "out.html", "--markdown": tmp_path / "out.md"}
    result = run("bench", *pair[0], *given, *(part for output in files.items() for part in output), "--json")
    assert result.exit_code == 0, result.output
    facts = facts_of(result)
    assert [row["name"] for row in facts["bundles"]] == ["demo-int8", "demo-int8-reduced"]
    assert facts["fidelity"]["quantization"][0]["pairing"]["traces"] == 20
    assert facts == json.loads(files["-o"].read_text())
    assert all(path.stat().st_size > 1000 for path in files.values())
    assert "**Fidelity to full precision**" in files["--markdown"].read_text(encoding="utf-8")
    assert "timing demo-int8" in result.stderr


def test_each_part_alone(pair: tuple[tuple[Path, ...], Options]) -> None:
    (bundle, _), options = pair
    data, references = options.input.data, options.input.references
    for part, given, group, table in (
        ("latency", QUICK, "bundles", None),
        ("fidelity", ("--data", data[1], "--limit", 8, "--reference", references[1]), "fidelity", "capability"),
        ("quality", ("--data", data[0], "--limit", 30, "--fit", data[0]), "quality", "steps"),
    ):
        facts = measure(part, bundle, *given)
        assert facts[group][table] if table else facts[group]
        assert (facts["bundles"][0]["speed"] is not None) == (part == "latency")
        if part == "quality":
            assert facts["quality"]["steps"][0]["threshold"]["fitted_on"] == "derivations.jsonl"


def test_a_reference_file_and_a_noise_floor(bundle: Path, data: Path, tmp_path: Path) -> None:
    """Two references of one checkpoint: a bundle is compared with fp32, and bf16 is the noise floor."""
    pytest.importorskip("torch", reason="reference files are made in torch: pip install torch transformers")
    pytest.importorskip("transformers", reason="reference files are made by transformers: pip install transformers")
    files = []
    for dtype in ("bf16", "fp32"):
        files.append(tmp_path / f"{dtype}.jsonl")
        written = run("bench", "reference", "demo", data, "-o", files[-1], "--dtype", dtype, "--limit", 16)
        assert written.exit_code == 0, written.output
    given = [part for path in files for part in ("--reference", path)]
    facts = measure("fidelity", bundle, "--data", data, *given)["fidelity"]
    (row,), (floor,) = facts["quantization"], facts["noise_floor"]
    assert row["pairing"]["reference"] == floor["pairing"]["reference"] == "demo fp32, torch"
    assert floor["pairing"]["name"] == "demo bf16, torch"
    assert row["pairing"]["traces"] == 16  # as many as the reference holds
    assert 0 < floor["difference"]["mean"]["value"] < 0.05


def test_a_baseline_is_a_column_of_the_table(bundle: Path, tmp_path: Path) -> None:
    peer = {"peer": "other engine", "64": 123.4, "size_gb": 1.5, "mean": 0.0055, "p99": 0.02}
    result = run("bench", "latency", bundle, *QUICK, "--peer", write_rows(tmp_path / "peer.jsonl", [peer]))
    assert result.exit_code == 0, result.output
    assert "other engine" in result.stdout
    assert "123.4" in result.stdout


# what is refused


def test_wrong_input_is_one_sentence_before_any_work(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    plain = write_rows(tmp_path / "plain.jsonl", [{"problem": "P", "steps": ["a"]}])
    refused(run("bench", bundle, "--data", tmp_path / "empty.jsonl"), "holds no rows")
    refused(run("bench", bundle, "--data", tmp_path / "nowhere.jsonl"), "cannot be read")
    refused(run("bench", "quality", bundle, "--data", plain, "--fit", plain), "no labels of wrong steps")
    refused(run("bench", "quality", bundle, "--data", plain), "no labels")
    refused(run("bench", "quality", bundle), "--data")
    refused(run("bench", bundle, "--data", plain, "--reference", bundle), "a reference has full precision")
    refused(run("bench", bundle, "--data", plain, "--reference", plain), "is not a reference file")
    refused(run("bench", tmp_path), "is not an edge-prm bundle")
    refused(run("bench", bundle, "--report", tmp_path / "no" / "such.html"), "there is no folder")
    assert run("bench", bundle, "--lengths", "many").exit_code == 2


def test_a_reference_of_other_data_is_refused(bundle: Path, data: Path, tmp_path: Path) -> None:
    provenance = Provenance(
        ScoredCheckpoint("x", "c", "t", "sigmoid"), TorchRun("fp32", "cpu", 1), ScoredData("d", "0" * 64, "blank", 3)
    )
    ReferenceWriter(tmp_path / "r.jsonl", provenance).close()
    refused(run("bench", bundle, "--data", data, "--reference", tmp_path / "r.jsonl"), "was made from other data")


def test_another_tokenizer_is_refused(bundle: Path, data: Path, full: Path, tmp_path: Path) -> None:
    """The same checkpoint with tokens of another tokenizer: a difference would mean nothing."""
    reference = Path(shutil.copytree(full, tmp_path / "reference"))
    manifest = json.loads((reference / "edge_prm.json").read_text())
    manifest["files"]["tokenizer.json"]["sha256"] = "0" * 64
    (reference / "edge_prm.json").write_text(json.dumps(manifest))
    refused(run("bench", bundle, "--data", data, "--reference", reference), "another tokenizer")


def test_a_text_over_the_context_is_skipped_and_counted(bundle: Path, data: Path, full: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [json.loads(line) for line in data.read_text().splitlines()[:3]]
    rows.insert(1, {"id": "long", "problem": "P", "steps": ["1 + 1 = 2 " * 2000]})
    facts = measure("fidelity", bundle, "--data", write_rows(tmp_path / "data.jsonl", rows), "--reference", full)
    pairing = facts["fidelity"]["quantization"][0]["pairing"]
    assert (pairing["traces"], pairing["skipped"]) == (3, 1)


def test_two_files_of_one_name_are_distinguished(bundle: Path, data: Path, tmp_path: Path) -> None:
    """The threshold is fitted on another file of the same name."""
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / data.name
    other.write_text("".join(data.read_text().splitlines(keepends=True)[30:90]))
    facts = measure("quality", bundle, "--data", data, "--data", other, "--fit", other)
    assert [row["sample"]["traces"] for row in facts["quality"]["steps"]] == [200, 60]
