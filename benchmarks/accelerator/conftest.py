"""Compilers of GPUs and TPUs in this process, which must be set up before JAX is imported."""

from benchmarks.accelerator import environment

environment.set_up()


def pytest_addoption(parser):
    parser.addoption(
        "--full",
        action="store_true",
        help="also compile the paper's networks: minutes for GPUs, an hour for TPUs",
    )


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        from benchmarks.accelerator import programs

        full = metafunc.config.getoption("--full")
        cases = [case for case in programs.CASES if full or not case.is_full]
        metafunc.parametrize("case", cases, ids=str, scope="session")
