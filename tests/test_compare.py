import json

import pytest
import torch

import prunekern
from prunekern.compare import text, variants
from prunekern.compare.report import CompareResult
from prunekern.compare.variants import DENSE, build, variants_for


def test_comparison_from_folder_to_files(folder, tmp_path):
    result = prunekern.compare(
        folder, out=tmp_path / "out", rounds=1, dtype="float32", threads=1, report="rows"
    )
    names = [row["variant"] for row in result.rows]
    assert names == [
        "dense float32",
        "unstructured 50% stored dense float32",
        "unstructured 50% as csr float32",
        "unstructured 50% as bitmask float32",
        "unstructured 50% as torch CSR float32",
        "2:4 float32",
    ]
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["variant"] for row in document["rows"]] == names
    for row in document["rows"]:
        for key in (
            "variant", "pattern", "targets", "dtype", "sparsity", "perplexity",
            "pruned_weight_bytes", "model_weight_bytes", "peak_rss_bytes", "file_bytes",
            "prefill_tokens_per_s", "decode_tokens_per_s",
        ):  # fmt: skip
            assert key in row
        assert row["perplexity"] > 1 and row["decode_tokens_per_s"] > 0
    rows = {row["variant"]: row for row in document["rows"]}
    dense, two_four = rows["dense float32"], rows["2:4 float32"]
    assert dense["sparsity"] == 0 and two_four["sparsity"] == 0.5
    assert two_four["pruned_weight_bytes"] * 4 == dense["pruned_weight_bytes"] * 2.125
    saved = dense["pruned_weight_bytes"] - two_four["pruned_weight_bytes"]
    assert dense["model_weight_bytes"] - two_four["model_weight_bytes"] == saved
    assert abs(dense["file_bytes"] - two_four["file_bytes"] - saved) < 2000
    stored = [rows[n]["perplexity"] for n in names[1:5]]
    assert len(set(stored)) == 1 and stored[0] != two_four["perplexity"]
    assert dense["ratio_to_dense"]["decode_tokens_per_s"] == 1
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "2:4 float32" in markdown and "pruning alone gains nothing" in markdown
    page = (tmp_path / "out" / "compare.html").read_text()
    assert all(page.count(f">{name}<") >= 4 for name in names) and "src=" not in page
    assert document["sweep"] is document["sensitivity"] is None
    assert not list((tmp_path / "out").glob(".compare-*"))


def test_removed_rows_stand_beside_the_others(folder, tmp_path):
    result = prunekern.compare(
        folder, out=tmp_path / "out", rounds=1, dtype="float32", threads=1, patterns=["2:4"],
        structured=0.5, report="rows",
    )  # fmt: skip
    names = [row["variant"] for row in result.rows]
    assert names == ["dense float32", "2:4 float32", "heads removed float32",
                     "channels removed float32"]  # fmt: skip
    dense, _, heads, channels = result.rows
    # One of two groups of two heads of 16; 96 channels to 64, the nearest multiple of 32.
    gone = {"heads": 2 * (64 + 32 + 32 + 64) * 32, "channels": 2 * 3 * 64 * 32}
    for row, share in ((heads, 0.5), (channels, 1 / 3)):
        assert row["sparsity"] == pytest.approx(share)
        assert row["ratio_to_dense"]["pruned_weight_bytes"] == pytest.approx(1 - share)
        lost = dense["model_weight_bytes"] - row["model_weight_bytes"]
        assert lost == 4 * gone[row["pattern"]]
        assert row["perplexity"] > 1 and row["layer_ms"] == {}
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert "| heads removed float32 | 50% removed |" in markdown and "| - | - | - |" in markdown
    assert "with 33% of the MLPs' weights removed" in markdown
    assert "refitted on the first 16 windows" in markdown


def test_full_report_has_the_layer_against_tokens_and_the_map_of_layers(folder, tmp_path):
    result = prunekern.compare(
        folder, out=tmp_path, rounds=1, dtype="float32", threads=1, patterns=["2:4"], report="full"
    )
    document = json.loads((tmp_path / "compare.json").read_text())
    assert document == json.loads(json.dumps(result.document))
    assert document["sweep"]["shape"] == [64, 64]
    assert [line["storage"] for line in document["sweep"]["lines"]] == ["dense", "2:4"]
    layers = document["sensitivity"]["layers"]
    assert len(layers) == 14 and sum(layer["pruned"] for layer in layers) == 4
    for layer in layers:
        assert 0 < layer["error"]["2:4"] < 1 and layer["divergence"]["2:4"] > 0
    page = (tmp_path / "compare.html").read_text()
    assert "Roofline" in page and "divergence, nats/token" in page
    markdown = (tmp_path / "compare.md").read_text()
    assert "Layer of 64 x 64 against tokens" in markdown and "divergence, sum" in markdown


def test_calibration_and_evaluation_share_no_token():
    class Counter:
        def __call__(self, text, **_):
            return type("Encoding", (), {"input_ids": torch.arange(len(text))[None]})

    for length in (1700, 5000, 40_000):
        words = "x" * length
        evaluated = text.token_windows(Counter(), words, windows=2)
        calibrated = text.calibration_windows(Counter(), words, windows=2)
        assert calibrated.flatten().tolist() == list(range(calibrated.numel()))
        assert calibrated.max() < evaluated.min() and len(calibrated) == min(2, length // 512 - 2)
    with pytest.raises(ValueError, match=r"at least 1536 tokens to calibrate on what .*, got 1500"):
        text.calibration_windows(Counter(), "x" * 1500, windows=2)


def test_perplexity_is_that_of_the_model(folder, tmp_path, llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tmp_path / "text.txt"
    source.write_text("".join(chr(32 + (i * i) % 90) for i in range(1100)))
    result = prunekern.compare(
        folder, out=tmp_path, rounds=1, dtype="float32", threads=1, patterns=[], text=source,
        report="rows",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder).double()
    ids = AutoTokenizer.from_pretrained(folder)(source.read_text(), return_tensors="pt").input_ids[
        0
    ]
    windows = ids[-1024:].view(2, 512)
    with torch.no_grad():
        losses = [model(w[None], labels=w[None]).loss.item() for w in windows]
    assert result.rows[0]["perplexity"] == pytest.approx(
        torch.tensor(losses).mean().exp().item(), rel=1e-4
    )


def test_default_text_is_pythons_own():
    content = text.default_text()
    assert len(content) > 100_000 and content == text.read_text(None)


def test_rows_of_other_patterns():
    rows = variants_for(["1:4", "3:4"], 0.5, ["bfloat16"])
    assert [(r.pattern, r.storage) for r in rows] == [
        (DENSE, DENSE),
        ("1:4", DENSE), ("1:4", "bitmask"), ("1:4", "2:4"),
        ("3:4", DENSE), ("3:4", "csr"), ("3:4", "bitmask"),
    ]  # fmt: skip
    assert rows[1].sparsity == 0.75


@pytest.mark.parametrize("variant", variants_for(["unstructured", "2:4", "1:4"], 0.7, ["float32"]),
                         ids=lambda v: v.name)  # fmt: skip
def test_every_variant_computes_what_its_dense_twin_does(variant, llama):
    model, twin = llama(), llama()
    twin.load_state_dict(model.state_dict())
    names = build(model, variant, "all-linear")
    if variant.pattern != DENSE:
        sparsity = 0.7 if variant.pattern == "unstructured" else None
        prunekern.prune(twin, variant.pattern, sparsity=sparsity, targets="all-linear")
    ids = torch.randint(0, 128, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, twin(ids).logits, atol=1e-4, rtol=1e-4)
    assert len(names) == 14
    assert variants.model_bytes(model) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\)"),
        ({"structured": 1.0}, r"structured must be in \[0, 1\), got 1"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"patterns": ["2:5:3"]}, "pattern must be"),
        ({"targets": "wq"}, "must match a Linear layer, got 'wq'"),
        ({"threads": 0}, "threads and rounds must be at least 1"),
        ({"report": "long"}, "report must be one of rows, standard, full, got 'long'"),
        ({"text": "/nonexistent/file"}, "text must be a readable UTF-8 file"),
        ({"model": "./no-such-folder"}, "model must be a folder or hub name"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_written(folder, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        prunekern.compare(**{"model": folder, "out": tmp_path / "out", **arguments})
    assert not (tmp_path / "out" / "compare.json").exists()


def test_short_text_and_missing_tokenizer_are_refused(folder, tmp_path, llama):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(ValueError, match="at least 512 tokens, got 9"):
        prunekern.compare(folder, text=short, out=tmp_path / "out")
    with pytest.raises(ValueError, match="tokenizer must be given"):
        prunekern.compare(llama(), out=tmp_path / "out")


def _row(name, pattern, storage, speed, ppl, share, dtype="float32"):
    ratios = {
        "decode_tokens_per_s": speed,
        "prefill_tokens_per_s": speed,
        "pruned_weight_bytes": share,
    }
    return {
        "variant": name, "pattern": pattern, "storage": storage, "dtype": dtype, "sparsity": 0.5,
        "perplexity": ppl, "ratio_to_dense": ratios, "pruned_weight_bytes": 10 * share,
        "model_weight_bytes": 100,
    }  # fmt: skip


def test_verdict_says_what_the_numbers_say():
    rows = [
        _row("dense", "dense", "dense", 1.0, 9.9, 1.0),
        _row("u dense", "unstructured", "dense", 1.01, 20.0, 1.0),
        _row("u csr", "unstructured", "csr", 0.7, 20.0, 1.5),
        _row("u bitmask", "unstructured", "bitmask", 1.4, 20.0, 0.56),
        _row("2:4", "2:4", "2:4", 1.6, 33.0, 0.53),
    ]
    words = " ".join(CompareResult(rows, {}).verdict)
    assert "the fastest in decoding is 2:4, 1.60x dense" in words
    assert (
        "unstructured keeps more quality than 2:4" in words and "bitmask, decodes at 1.40x" in words
    )
    assert "csr saves no memory at 50% zeros: it needs 150% of dense" in words
    assert "10% of this model's weights" in words
    rows[4]["ratio_to_dense"]["decode_tokens_per_s"] = rows[3]["ratio_to_dense"][
        "decode_tokens_per_s"
    ] = 1.02
    assert "no sparse variant decodes faster than dense" in " ".join(
        CompareResult(rows, {}).verdict
    )
