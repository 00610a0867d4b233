"""Rivals of the benchmarks: the dense product from each that is installed, a reason of each other.

A rival that computed something else would be a rival in name only.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from rivals import RIVALS, why_absent
from rivals.rival import no_package

from prunekern.testing import random_weight

N, K, TOKENS = 192, 256, (1, 8)


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_makes_the_dense_product(name):
    reason = why_absent(name)
    if reason:
        pytest.skip(reason)
    rival = RIVALS[name]
    kernel = "2:4" if rival.storage == "2:4" else "csr"
    weight = random_weight(kernel, N, K, torch.float32, density=0.5, seed=3)
    before = weight.clone()
    for tokens in TOKENS:
        x = torch.randn(tokens, K).to(rival.device, rival.dtype)
        product = rival.build(weight.to(rival.device), tokens)
        exact = x.double() @ weight.double().t().to(x.device)
        y = product.call(x).double()
        assert y.shape == exact.shape
        error = (y - exact).norm() / exact.norm()
        assert error <= rival.error, f"{name}, {tokens} tokens: {error:.3g}"
        if product.seconds:
            assert product.seconds(x) > 0
    assert torch.equal(weight, before)
    assert product.nbytes > 0.1 * weight.numel()


def test_what_is_not_installed_is_named():
    assert "nosuchpackage" in no_package("torch", "nosuchpackage")()
    assert no_package("torch")() == ""


def test_every_rival_of_another_device_says_so():
    for rival in RIVALS.values():
        if rival.device == "cuda" and not torch.cuda.is_available():
            assert "GPU" in why_absent(rival.name) or "not installed" in why_absent(rival.name)
