"""The results as a page of Markdown, for `docs/`."""

from collections.abc import Iterator
from typing import Any


def page(results: dict[str, Any]) -> str:
    """Returns the page of a run of `benchmarks.accelerator`."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: dict[str, Any]) -> Iterator[str]:
    yield f"# {results['device']}\n"
    yield (
        f"Measured by `python -m benchmarks.accelerator{' --small' if results['small'] else ''}` "
        f"in {results['seconds']:.0f} s on one device, with version {results['version']}. Flows "
        f"have {results['num_flow_steps']} steps and batches {results['batch_size']} images."
    )
    yield from _speed(results)
    yield from _agreement(results)
    yield from _training(results)
    if results["skipped"]:
        yield "\n## Not measured\n"
        yield from (f"- {what}" for what in results["skipped"])


def _speed(results: dict[str, Any]) -> Iterator[str]:
    yield "\n## Speed\n"
    peaks = (f"{name} {value / 1e12:.4g}" for name, value in results["peaks"].items())
    yield f"Peak of a matrix product, TFLOP/s: {', '.join(peaks)}.\n"
    yield "| network | precision | flow step, ms | of peak | training, ms | of peak | compiled |"
    yield "|---|---|---|---|---|---|---|"
    for row in results["speed"]:
        peak = results["peaks"].get(row["precision"])
        shares = [
            f"{row[f'{what}_flops'] / row[f'{what}_seconds'] / peak:.1%}" if peak else "-"
            for what in ("flow", "train")
        ]
        compilation = row["flow_compile_seconds"] + row["train_compile_seconds"]
        yield (
            f"| {row['network']} | {row['precision']} | {1e3 * row['flow_step_seconds']:.4g} | "
            f"{shares[0]} | {1e3 * row['train_seconds']:.4g} | {shares[1]} | {compilation:.3g} |"
        )
    if results["pytorch"]:
        yield "\nPyTorch in the same run; above 1, PyTorch takes longer:\n"
        yield "| network | precision | PyTorch | flow, PyTorch / ours | training step, the same |"
        yield "|---|---|---|---|---|"
    for row in results["pytorch"]:
        form = "torch.compile" if row["compiled"] else "eager"
        yield (
            f"| {row['network']} | {row['precision']} | {form} | {row['flow_ratio']:.3g} | "
            f"{row['train_ratio']:.3g} |"
        )


def _agreement(results: dict[str, Any]) -> Iterator[str]:
    yield "\n## Agreement with float64 on the CPU\n"
    yield "Relative errors by norm, and the largest that is accepted:\n"
    yield "| network | precision | what | error | bound | |"
    yield "|---|---|---|---|---|---|"
    for row in results["agreement"]:
        for what, error in row["errors"].items():
            verdict = "within" if error <= row["bound"] else "**outside**"
            yield (
                f"| {row['network']} | {row['precision']} | {what} | {error:.2g} | "
                f"{row['bound']:g} | {verdict} |"
            )


def _training(results: dict[str, Any]) -> Iterator[str]:
    yield "\n## Training\n"
    training = results.get("training")
    if training and "error" in training:
        yield training["error"]
    elif training:
        yield (
            f"`{results['config']}`: {training['steps']:,} training steps, loss "
            f"{training['loss']:.4g}, {training['images_per_second']:,.4g} images per second "
            f"on {results['num_devices']} device(s)."
        )
        if "picture" in training:
            yield f"\n![Samples after {training['steps']:,} training steps]({training['picture']})"
