"""`gpuvigil-agent validate` with a program in the place of torch's Python: what its answer means."""

from __future__ import annotations

import json

import pytest

from gpuvigil_agent import validate
from gpuvigil_agent.config import AgentConfig, Validation

H100 = {"model": "NVIDIA H100 80GB HBM3", "tflops": 610.0, "gigabytes_per_second": 2600.0}
GPUS = [{"index": index, **H100} for index in range(8)]


def judged(folder, output, status=0, said=""):
    """The load's test with a Python that prints this and ends so; no dcgmi is asked."""
    python = folder / "python"
    (folder / "output").write_text(output)
    python.write_text(f"#!/bin/sh\ncat {folder}/output; echo '{said}' >&2; exit {status}\n")
    python.chmod(0o755)
    return validate._burn([str(python), "burn.py"], 20.0)


@pytest.mark.parametrize("said", ["", "a warning of torch"])
def test_a_node_whose_gpus_reach_their_bands_is_fit(tmp_path, said):
    test = judged(tmp_path, json.dumps({"gpus": GPUS}) + "\n", said=said)
    assert (test.passed, test.detail) == (True, "8 GPUs within their bands")


def test_a_gpu_that_is_too_slow_is_named_with_its_figures(tmp_path):
    gpus = [*GPUS[:7], GPUS[7] | {"tflops": 240.0}]
    test = judged(tmp_path, json.dumps({"gpus": gpus}) + "\n")
    assert (test.passed, test.detail) == (False, "GPU 7: 240 TFLOPS, expected at least 500")


def test_a_burn_that_fails_is_a_failed_test_with_its_words(tmp_path):
    test = judged(tmp_path, "", status=1, said="torch sees no GPU")
    assert test.passed is False and "exit status 1" in test.detail and "torch sees no GPU" in test.detail


@pytest.mark.parametrize("output", ["", "no json", "[]", '{"gpus": [{}]}', '{"gpus": []}'])
def test_an_answer_that_is_none_leaves_the_node_unknown(tmp_path, output):
    assert judged(tmp_path, output).passed is None


def test_a_program_that_is_not_there_leaves_the_node_unknown(tmp_path):
    config = AgentConfig(validation=Validation(command=[str(tmp_path / "none")]))
    test = validate._load(config)
    assert test.passed is None and "could not be started" in test.detail
