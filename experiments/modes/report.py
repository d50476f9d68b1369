"""Mode report: writes the report of an evaluation again."""

from experiments import records, report, run
from experiments.command_line import Command
from experiments.errors import UserError
from fdrl_jax._names import nearest


def run_mode(command: Command) -> None:
    """Writes the report of the newest evaluation, or of the named one, and the run's own."""
    opened = run.open_run(command.folder, "ratio")
    newest = records.newest(opened.evaluations)
    names = sorted(path.parent.name for path in opened.evaluations.glob("*/record.json"))
    wanted = command.flags["name"] or (newest.name if newest else "")
    if wanted not in names:
        there = f"available: {', '.join(names)}" if names else "run --mode=evaluate first"
        hint = nearest(wanted, names)
        raise UserError(f"no evaluation {wanted} in {opened.evaluations}{hint}; {there}")
    own = records.of_run(opened)
    if own is not None and own.name != wanted:
        report.write(opened, own)
    print(f"report: {report.write(opened, opened.evaluations / wanted).absolute()}")
