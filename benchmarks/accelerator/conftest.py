"""Compilers of GPUs and TPUs in this process, which must be set up before JAX is imported."""

from benchmarks.accelerator import plan

plan.set_up()


def pytest_addoption(parser):
    parser.addoption(
        "--full",
        action="store_true",
        help="also compile the paper's networks: minutes for GPUs, an hour for TPUs",
    )
