"""Several processes on this machine, by torchrun and gloo; distributed_cases.py has the cases."""

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_cases as cases
import pytest
import torch
import torch.distributed as dist

from prunekern.distributed.shards import COLUMNS, ROWS, check_cut, part_range

HERE = Path(__file__).parent
# Of any number of processes; those of each kind that say most run always.
QUICK = (
    "ddp_on_equal_batches_is_one_process_to_the_bit",
    "fsdp2_steps_without_clipping_to_the_bit",
    "tensor_parallel_trains_as_one_process",
    "tensor_parallel_runs_fixed_weights",
    "a_cut_layer_is_whole_to_the_bit",
)
SLOW = (
    "ddp_equals_one_process",
    "fsdp2_equals_one_process",
    "fsdp2_of_fixed_weights",
    "what_can_not_be_cut_is_refused_before_anything_changes",
)

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def torchrun(processes, results, *names):
    """Runs cases one after the other; fails with the traceback of whoever failed first."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), str(HERE / "distributed_cases.py")),
        *(str(results), *names),
    ]
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    for rank in range(processes):
        path = Path(f"{results}.{rank}.json")
        assert path.exists(), f"process {rank} did not start: {run.stderr[-3000:]}"
        ended = json.loads(path.read_text())
        assert not any(ended.values()), f"process {rank}: {''.join(ended.values())}"
        assert list(ended) == list(names), f"process {rank} was ended in {names[len(ended)]}"
    assert run.returncode == 0, run.stderr[-3000:]


def test_two_processes_equal_one_and_one_loads_what_they_saved(tmp_path):
    torchrun(2, tmp_path / "two", *QUICK, f"save_parts={tmp_path}")
    for kind in ("tp-2:4", "fixed-csr"):
        cases.check_loads(cases.whole_model(kind, seed=8), kind, tmp_path)


@pytest.mark.slow
def test_four_processes_and_checkpoints_between_four_two_and_one(tmp_path):
    four, two = tmp_path / "four", tmp_path / "two"
    torchrun(4, tmp_path / "4", *QUICK, *SLOW, "two_dimensions", f"save_parts={four}")
    torchrun(2, tmp_path / "2", *SLOW, f"load_parts={four}", f"save_parts={two}")
    torchrun(4, tmp_path / "4b", f"load_parts={two}")
    for kind in cases.KINDS:
        cases.check_loads(cases.whole_model(kind, seed=8), kind, four)


def test_ranges_are_those_of_chunk():
    for size in range(1, 40):
        for parts in range(1, 9):
            try:
                check_cut("cut", "csr", (size, size), ROWS, parts)
            except ValueError as error:
                assert f"must leave each of {parts} processes some, got {size}" in str(error)
                assert len(torch.arange(size).chunk(parts)) < parts
                continue
            whole = torch.arange(size)
            chunks = [whole[slice(*part_range(size, parts, i))] for i in range(parts)]
            for ours, theirs in zip(chunks, whole.chunk(parts), strict=True):
                assert torch.equal(ours, theirs)


def test_groups_that_share_a_byte_of_metadata_stay_together():
    check_cut("cut", "2:4", (9, 64), COLUMNS, 4)
    check_cut("cut", "2:4", (9, 31), COLUMNS, 2)
    check_cut("cut", "2:4", (9, 13), COLUMNS, 1)
    check_cut("cut", "2:4", (9, 13), ROWS, 3)
    with pytest.raises(ValueError, match="cut at multiples of 8 for 2:4, got 40"):
        check_cut("cut", "2:4", (9, 40), COLUMNS, 2)
