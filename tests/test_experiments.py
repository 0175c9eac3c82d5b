"""The small experiments: the runner, its records, and the figures drawn from them."""

import copy
import json

import matplotlib as mpl
import pytest

import gptoss_lite as gl
from experiments import run, small
from gptoss_lite import experiments_data
from gptoss_lite.errors import GptOssLiteError

mpl.use("Agg")
RECORDED = experiments_data.recorded_names()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One smoke run of everything, seed 0."""
    out = tmp_path_factory.mktemp("records")
    for experiment in run.EXPERIMENTS.values():
        run.run(experiment, out, seeds=[0], smoke=True)
    return out


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def check_record(record):
    """Assert what chapters and figures rely on."""
    assert record["schema"] == small.SCHEMA
    for key in ("question", "title", "chapter", "device", "date", "made_by", "finding"):
        assert isinstance(record[key], str), key
    assert {"python", "torch", "numpy", "gptoss_lite"} == set(record["versions"])
    names = [arm["name"] for arm in record["arms"]]
    assert len(set(names)) == len(names)
    for arm in record["arms"]:
        assert arm["parameters"] >= arm["active_parameters"] > 0
        seeds = [row["seed"] for row in arm["runs"]]
        assert seeds == sorted(set(seeds))
        for row in arm["runs"]:
            assert 0 < row["best"] <= row["loss"] < 6
            assert row["curve"][-1][1] == row["loss"]
            assert row["own_loss"] > 0
        if arm["against"]:
            assert arm["against"] in names
            assert arm["expect"] in (None, "lower", "higher", "none")
            assert len(arm["differences"]) == len(arm["runs"])


@pytest.mark.parametrize("name", run.EXPERIMENTS)
def test_smoke_record(folder, name):
    record = read(folder, name)
    check_record(record)
    assert all(arm["runs"] for arm in record["arms"])
    if run.EXPERIMENTS[name].trial is None:
        assert record["corpus_sha256"].startswith("fda795ac")


def test_finished_runs_are_not_repeated(folder, monkeypatch):
    before = (folder / "E9.json").read_bytes()
    monkeypatch.setattr(run, "run_arm", lambda *_: pytest.fail("ran again"))
    run.run(run.EXPERIMENTS["E9"], folder, seeds=[0], smoke=True)
    assert (folder / "E9.json").read_bytes() == before


def test_a_stopped_experiment_goes_on(tmp_path, monkeypatch):
    calls = []
    original = run.run_arm

    def stop_at_second(experiment, arm, seed, smoke):
        calls.append(arm.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(experiment, arm, seed, smoke)

    monkeypatch.setattr(run, "run_arm", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        run.run(run.EXPERIMENTS["GQA"], tmp_path, seeds=[0], smoke=True)
    run.run(run.EXPERIMENTS["GQA"], tmp_path, seeds=[0], smoke=True)
    first, second, third, fourth = (arm.name for arm in run.EXPERIMENTS["GQA"].arms)
    assert calls == [first, second, second, third, fourth]
    check_record(read(tmp_path, "GQA"))


def test_an_arm_that_changed_is_run_again(folder, tmp_path):
    record = read(folder, "GQA")
    record["arms"][1]["changes"] = {"n_kv_heads": 4}
    small.save(record, tmp_path / "GQA.json")
    fresh = small.describe(run.EXPERIMENTS["GQA"], [0])
    runs = [len(arm["runs"]) for arm in run.with_old_runs(fresh, tmp_path / "GQA.json")["arms"]]
    assert runs == [1, 0, 1, 1]


def test_smoke_may_not_overwrite_the_records(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run", "E1", "--smoke"])
    with pytest.raises(SystemExit):
        run.main()
    assert "would overwrite the recorded results" in capsys.readouterr().err


def test_unknown_experiment(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run", "E99"])
    with pytest.raises(SystemExit):
        run.main()
    assert "unknown experiment ['E99']: choose from ['E1'" in capsys.readouterr().err


def test_pairing_and_signs():
    mine = {"runs": [{"seed": s, "loss": loss} for s, loss in ((0, 2.0), (1, 2.5), (4, 9.0))]}
    other = {"runs": [{"seed": s, "loss": loss} for s, loss in ((1, 2.25), (0, 2.5))]}
    assert small.paired(mine, other) == [-0.5, 0.25]
    assert [small.sign(d) for d in ([-1.0, -0.1], [0.1], [-0.1, 0.1])] == [
        "lower",
        "higher",
        "none",
    ]


def test_equal_parameters_are_equal():
    gelu, glu = (small.arm_config(run.EXPERIMENTS["E2"], arm) for arm in e2_arms())
    assert gl.account.parameters(glu) == pytest.approx(gl.account.parameters(gelu), rel=0.01)


def e2_arms():
    return run.EXPERIMENTS["E2"].arms[:2]


def test_gqa_control_gives_the_parameters_back():
    many, *_, control = (
        small.arm_config(run.EXPERIMENTS["GQA"], arm) for arm in run.EXPERIMENTS["GQA"].arms
    )
    assert gl.account.parameters(control) == pytest.approx(gl.account.parameters(many), rel=0.005)


def test_shapes_hold_as_many_weights_in_their_blocks():
    configs = [small.arm_config(run.EXPERIMENTS["E7"], arm) for arm in run.EXPERIMENTS["E7"].arms]
    matrices = [12 * config.n_layers * config.d_model**2 for config in configs]
    assert {150_528, 153_600} == set(matrices)
    tables = [gl.account.parameter_table(config) for config in configs]
    weights = [t["attention"] + t["ffn_weights"] for t in tables]
    assert weights == pytest.approx(matrices, rel=0.01)  # the rest are biases


def test_sink_arms_differ_in_the_softmax_alone():
    arms = run.EXPERIMENTS["E3"].arms
    assert [arm.against for arm in arms[:4]] == [None] + 3 * ["BOS, plain"]
    assert all(arm.changes in ({}, {"sinks": True}) for arm in arms)
    fixed = next(arm for arm in arms if arm.name == "BOS, off by one")
    row = small.run_arm(run.EXPERIMENTS["E3"], fixed, 0, smoke=True)
    assert row["sink"] == 0
    assert 0 < row["first_mass"] < row["row_sum"] < 1


def test_no_positions_means_that_order_does_not_matter():
    """Without positions the last token's output depends on the set before it, not the order."""
    import torch

    from experiments.e9_positions import start_without

    model = start_without(small.BASE.but(positions="learned", n_layers=1), 0, 0).eval()
    one, other = torch.tensor([[7, 8, 9, 10]]), torch.tensor([[9, 7, 8, 10]])
    torch.testing.assert_close(model(one)[:, -1], model(other)[:, -1])


# --- what is shipped -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDED)
def test_shipped_record(name):
    record = experiments_data.recorded(name)
    check_record(record)
    experiment = run.EXPERIMENTS[name]
    fresh = json.loads(json.dumps(small.describe(experiment, record["seeds"])))
    assert [arm["name"] for arm in record["arms"]] == [arm.name for arm in experiment.arms]
    assert record["base"] == fresh["base"]
    assert record["corpus_sha256"] == fresh["corpus_sha256"]
    for arm, now in zip(record["arms"], fresh["arms"], strict=True):
        assert [arm[key] for key in ("changes", "settings", "note", "parameters")] == [
            now[key] for key in ("changes", "settings", "note", "parameters")
        ]
    judged = small.judge(copy.deepcopy(record))
    assert judged == record


def test_unknown_record():
    with pytest.raises(GptOssLiteError, match="No experiment 'E99' is recorded"):
        experiments_data.recorded("E99")


def test_arm_by_name(folder):
    record = read(folder, "E9")
    assert experiments_data.arm(record, "learned")["label"] == "learned table"
    with pytest.raises(GptOssLiteError, match="E9 has no arm 'sinusoids'"):
        experiments_data.arm(record, "sinusoids")


def test_table(folder, capsys):
    experiments_data.print_table(read(folder, "E9"))
    unit, _, *lines = capsys.readouterr().out.splitlines()
    assert unit == "Loss: nats per byte on held-out text."
    labels = [arm.label for arm in run.EXPERIMENTS["E9"].arms]
    assert [line.split("  ")[0].strip() for line in lines] == labels


def test_table_names_the_arm_that_is_subtracted(capsys):
    """In E4 it is not the first arm for every row, so a reader could not guess it."""
    record = experiments_data.recorded("E4")
    experiments_data.print_table(record)
    rows = capsys.readouterr().out.splitlines()[2:]
    labels = {arm["name"]: arm["label"] for arm in record["arms"]}
    for arm, row in zip(record["arms"], rows, strict=True):
        assert row.endswith(labels[arm["against"]] if arm["against"] else f"{_last(arm):.3f}")
    dense = next(row for row in rows if row.startswith("dense"))
    assert dense.endswith("+0.154 +0.267 +0.198  32 experts of 16, top-8")


def test_table_of_another_metric_has_its_own_unit(capsys):
    experiments_data.print_table(experiments_data.recorded("E1"), metric="own_loss")
    assert "nats per byte on the text that was learned from" in capsys.readouterr().out


def _last(arm):
    return arm["runs"][-1]["loss"]


@pytest.mark.parametrize("metric", ["loss", "best", "own_loss"])
def test_differences_are_those_of_the_metric(metric):
    runs = ({"seed": 1, metric: 2.0}, {"seed": 3, metric: 2.5}), ({"seed": 3, metric: 2.25},)
    base, other = ({"name": n, "runs": r} for n, r in zip("ab", runs, strict=True))
    base["against"], other["against"] = None, "a"
    record = {"id": "X", "arms": [base, other]}
    assert experiments_data.differences(record, other, metric) == [-0.25]
    assert experiments_data.differences(record, base, metric) == []


# --- figures -------------------------------------------------------------------------------------


def with_seeds(record, seeds):
    record = copy.deepcopy(record)
    record["seeds"] = list(seeds)
    for arm in record["arms"]:
        arm["runs"] = [{**arm["runs"][0], "seed": seed} for seed in seeds]
    return record


def test_arms_draws_a_line_a_seed(folder):
    record = with_seeds(read(folder, "E1"), (0, 1, 2))
    ax = gl.viz.arms(record, live={"once, p=0": 5.0})
    assert len(ax.lines) == 4
    assert all(len(line.get_xdata()) == len(record["arms"]) for line in ax.lines[:3])
    assert ax.get_yticklabels()[0].get_text() == "one pass, p = 0"
    mpl.pyplot.close(ax.figure)


def test_arms_draws_some_arms_and_another_metric(folder):
    record = read(folder, "E1")
    ax = gl.viz.arms(record, ["again, p=0.1", "again, p=0"], metric="own_loss")
    assert list(ax.lines[0].get_ydata()) == [0, 1]
    expected = [arm["runs"][0]["own_loss"] for arm in (record["arms"][3], record["arms"][2])]
    assert list(ax.lines[0].get_xdata()) == expected
    mpl.pyplot.close(ax.figure)


def test_by_length_draws_a_line_a_run(folder):
    ax = gl.viz.by_length(with_seeds(read(folder, "E9"), (0, 1)))
    assert [len(line.get_xdata()) for line in ax.lines] == [4, 4, 4, 4, 2, 2, 4, 4, 2]
    mpl.pyplot.close(ax.figure)


# --- recorded benchmarks -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu_4_layers", "cpu_24_layers"])
def test_recorded_peers(name):
    run = experiments_data.benchmark(name)
    assert run["weights"] == "random"
    assert run["peers"].keys() == run["limits_tokens_per_s"].keys()
    assert "llama.cpp, bfloat16 dense" in run["peers"]
    assert run["peers"]["gptoss_lite"]["backends"]["apply_experts"] == ["native"]
    for peer, got in run["peers"].items():
        # the limit is of a plain read, timed at other moments of a memory that drifts
        assert 0 < got["decode_tokens_per_s"] < 1.3 * run["limits_tokens_per_s"][peer]


def test_recorded_turns():
    run = experiments_data.benchmark("decode_turns")
    assert run["weights"] == "random"
    assert len(run["turns"]) == run["settings"]["turns"]
    for turn in run["turns"]:
        assert turn.keys() == {"bandwidth_bytes_per_s", "gptoss_lite", "llama.cpp"}
        assert min(turn.values()) > 0


def test_recorded_profile_has_the_parts_that_a_step_reads():
    run = experiments_data.benchmark("profile")
    assert run["weights"] == "random"
    for seconds in run["seconds"].values():
        assert seconds.keys() == run["bytes"].keys()
        assert min(seconds.values()) > 0


def test_unknown_benchmark():
    with pytest.raises(GptOssLiteError, match="No benchmark 'gpu' is recorded"):
        experiments_data.benchmark("gpu")
