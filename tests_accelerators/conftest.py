"""Compilers of GPUs and TPUs in this process, which must be set up before JAX is imported."""

import os

from experiments.planning import environment

os.environ.pop("XLA_FLAGS", None)
os.environ.update(environment.without_devices())


def pytest_addoption(parser):
    parser.addoption(
        "--full",
        action="store_true",
        help="also compile the paper's networks: minutes for GPUs, an hour for TPUs",
    )


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        import programs

        full = metafunc.config.getoption("--full")
        cases = [case for case in programs.CASES if full or not case.is_full]
        metafunc.parametrize("case", cases, ids=str, scope="session")
