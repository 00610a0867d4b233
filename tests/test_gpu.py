"""Real launches of every op for GPUs; see gpu_checks.py, which also runs without pytest."""

import gpu_checks
import pytest
import torch

HAS_GPU = torch.cuda.is_available()


def _ids(value):
    return value.__name__ if callable(value) else f"{value[0]}-{value[1]}-{str(value[2])[6:]}"


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
@pytest.mark.parametrize("check", gpu_checks.CHECKS, ids=_ids)
@pytest.mark.parametrize("variant", gpu_checks.variants_here() if HAS_GPU else [], ids=_ids)
def test_on_the_gpu(variant, check):
    check(variant)


WITHOUT_GPU = set(gpu_checks.CHECKS) - set(gpu_checks.NEED_GPU)


@pytest.mark.skipif(HAS_GPU, reason="they run on the GPU")
@pytest.mark.parametrize("check", sorted(WITHOUT_GPU, key=_ids), ids=_ids)
def test_the_checks_themselves(check):
    for variant in gpu_checks.variants_here():
        if variant[:2] == ("sparse24", "avx2"):
            check(variant)
