"""The choice of a plan, on tables that are made up: against every plan there is."""

import itertools
import json
import random

import pytest

from prunekern.advice import LayerPlan, Plan
from prunekern.advice.candidates import Candidate, default_candidates, parse
from prunekern.advice.choose import STEPS, Option, choose, cost_of, gain_of, search
from prunekern.formats import FORMATS


def table(seed, layers=6, options=3):
    rng = random.Random(seed)
    return {
        f"layer{i}": [Option(rng.expovariate(10), rng.uniform(-0.01, 0.1)) for _ in range(options)]
        for i in range(layers)
    }


def best_of_all(options, budget):
    plans = itertools.product(*([None, *own] for own in options.values()))
    within = ([o for o in plan if o] for plan in plans)
    return max(sum(o.gain for o in p) for p in within if sum(o.cost for o in p) <= budget)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [0.02, 0.1, 0.5])
def test_no_plan_within_the_budget_gains_more(seed, budget):
    options = table(seed)
    picks = choose(options, budget)
    assert cost_of(picks) <= budget
    # One step of rounding a layer is all that may be lost.
    assert gain_of(picks) >= best_of_all(options, budget * (1 - len(options) / STEPS)) - 1e-12
    assert all(option.gain > 0 for option in picks.values())
    assert list(picks) == [name for name in options if name in picks]


def test_without_a_budget_only_what_costs_nothing_is_taken():
    free, dear = Option(0.0, 0.1), Option(1e-9, 0.5)
    assert choose({"a": [free, dear], "b": [dear]}, 0.0) == {"a": free}
    assert choose({"a": [Option(0.0, -0.1)]}, 1.0) == {}
    assert choose({}, 1.0) == {}


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.6, 5.0])
def test_search_keeps_the_measured_promise_and_uses_the_budget(factor):
    """Together layers cost `factor` times what they cost alone."""
    options, budget = table(3, layers=40), 0.3
    measured = []

    def measure(picks):
        measured.append(factor * cost_of(picks))
        return measured[-1]

    picks, loss = search(options, budget, measure)
    assert loss == pytest.approx(factor * cost_of(picks)) and loss <= budget
    everything = sum(max(o.gain for o in own) for own in options.values())
    assert loss > 0.8 * budget or gain_of(picks) > 0.95 * everything
    assert len(measured) <= 6


def test_search_leaves_all_dense_where_every_plan_breaks_the_promise():
    assert search(table(0), 0.1, lambda picks: 100.0) == ({}, 0.0)


def test_search_takes_all_where_pruning_costs_nothing():
    options = table(1)
    picks, loss = search(options, 0.1, lambda picks: -0.01)
    assert loss == -0.01
    assert gain_of(picks) == pytest.approx(
        sum(max(max(o.gain for o in own), 0) for own in options.values())
    )


def test_candidates_are_read_as_they_are_written():
    for candidate in default_candidates():
        assert parse([candidate.name]) == (candidate,)
    assert parse(["4:8", "62.5%", "4:8"]) == (
        Candidate("4:8", 0.5),
        Candidate("unstructured", 0.625),
    )
    for wrong in (["dense"], ["0%"], ["100%"], ["2:4", ""], []):
        with pytest.raises(ValueError, match=r"^advise: candidates must be"):
            parse(wrong)


def test_candidates_come_from_the_table_of_formats():
    stored = {kernel for candidate in default_candidates() for kernel in candidate.storages}
    assert stored == set(FORMATS)
    assert "2:4" in Candidate("1:4", 0.75).storages
    assert "2:4" not in Candidate("4:8", 0.5).storages
    assert "2:4" not in Candidate("unstructured", 0.5).storages


def plan(*layers, **changes):
    fields = {
        "model": "LlamaForCausalLM, bfloat16",
        "method": "sparsegpt",
        "quality": 0.05,
        "text": "words.txt",
        "calibration": (4, 128),
        "calibration_digest": "ab",
        "default_text": False,
        "batches": {1: 0.5, 512: 0.5},
        "speed_of": "a CPU",
        "modelled": False,
        "perplexity_dense": 10.0,
        "perplexity_predicted": 10.3,
        "perplexity_measured": 10.4,
        "speedup_predicted": {1: 1.5, 512: 1.1},
        "speedup_measured": {1: 1.4, 512: 1.05},
        "bytes_dense": 2_000_000,
        "bytes_planned": 1_000_000,
        "notes": ("a note",),
    }
    return Plan(layers=layers, **{**fields, **changes})


def layer(index, kernel="bitmask", **changes):
    times = {"seconds_dense": {1: 2e-5, 512: 1e-3}, "seconds": {1: 1e-5, 512: 1.1e-3}}
    own = {"kernel": kernel, "pattern": "unstructured", "sparsity": 0.7, "cost": 0.001}
    if kernel == "dense":
        own = {"reason": "nothing is faster"}
    return LayerPlan(f"model.layers.{index}.mlp.up_proj", (96, 64), **{**times, **own, **changes})


def test_a_plan_survives_json():
    original = plan(layer(0), layer(1, "dense"), layer(2, "2:4", pattern="2:4", sparsity=0.5))
    assert Plan.from_json(original.to_json()) == original
    assert [one.name for one in original.pruned] == [original.layers[i].name for i in (0, 2)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("layers"),
        lambda d: d.update(version=99),
        lambda d: d.update(surprise=1),
        lambda d: d["layers"][0].update(kernel="os.system"),
        lambda d: d["layers"][0].update(pattern="9:4"),
        lambda d: d["layers"][0].update(shape="ab"),
        lambda d: d.update(batches={"one": 1}),
    ],
)
def test_a_damaged_plan_is_refused(damage):
    document = json.loads(plan(layer(0)).to_json())
    damage(document)
    with pytest.raises(ValueError, match=r"^from_json: plan must be what Plan.to_json wrote"):
        Plan.from_json(json.dumps(document))
    for text in ("", "[]", "{", "3"):
        with pytest.raises(ValueError, match=r"^from_json"):
            Plan.from_json(text)


def test_a_plan_says_what_is_done_why_and_what_comes_of_it():
    text = str(plan(layer(0), layer(1), layer(2, "dense"), layer(7)))
    for said in (
        "3 of 4 layers", "at most 1.05x dense", "measured: a CPU", "words.txt", "mlp.up_proj",
        "96 x 64", "0-1, 7", "70%", "bitmask", "10 (2.00x)", "1100 (0.91x)",
        "50% less time at 1 token, slower at 512 tokens", "nothing is faster",
        "1.50x", "1.40x", "10 dense, 10.4 planned (+4.0%, allowed +5.0%)", "a note",
        "2.0 MB dense, 1.0 MB planned (0.50x)",
    ):  # fmt: skip
        assert said in text, said
    assert "modelled" not in text


def test_a_plan_for_a_chip_that_is_not_here_says_that_it_is_modelled():
    text = str(plan(layer(0), modelled=True, speed_of="H200", speedup_measured={}))
    assert "modelled, not measured: H200" in text and "No H200 was measured" in text
    assert "modelled us" in text


def test_where_nothing_pays_the_plan_says_so():
    text = str(plan(layer(0, "dense"), bytes_planned=2_000_000, speedup_measured={}))
    assert "Nothing pays here, leave it dense: nothing is faster." in text
