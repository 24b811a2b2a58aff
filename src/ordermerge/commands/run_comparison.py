"""A run's comparison: its merged models with its single ones, with intervals over orders where there are curves."""

from dataclasses import replace

from ordermerge.commands.curve import leave_one_out
from ordermerge.commands.plan import Plan, model_roles
from ordermerge.eval.comparison.compare import compare_models
from ordermerge.eval.comparison.record import FILE, ComparisonReport, write_comparison
from ordermerge.run_directory import evaluation_folder


def compare_run(plan: Plan) -> ComparisonReport | None:
    """Compare a run's merged models with its single ones, and write `comparison.json`.

    Args:
        plan: The run's plan, carried out.

    Returns:
        The comparison, None of a run without merges or scores.

    Raises:
        UserError: If lm-eval's files are missing or damaged.
    """
    out, settings = evaluation_folder(plan.run_directory), plan.experiment.evaluation
    (out / FILE).unlink(missing_ok=True)
    if not plan.experiment.merges or settings is None:
        return None
    roles = replace(model_roles(plan.experiment, plan.run_directory), without=leave_one_out(plan))
    comparison = compare_models(out, roles, settings.tasks)
    write_comparison(comparison, out / FILE)
    return comparison
