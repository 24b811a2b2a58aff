"""Which of a run's scores are those of the models that are there now, and of which the models were made anew since."""

from collections.abc import Iterable
from pathlib import Path

from ordermerge.config.schema import Experiment
from ordermerge.eval.scoring.saved import MARKERS
from ordermerge.files import fingerprint
from ordermerge.models import MERGE_MARKER
from ordermerge.run_directory import (
    BASE,
    ORDER_RECORD,
    TRUNK,
    curve_folder,
    evaluation_folder,
    model_paths,
    order_folder,
    scored_models,
)
from ordermerge.stages import Made, without_notes
from ordermerge.yaml_json import read_json

_REMEDY = "delete it, and start `ordermerge run` again"


class Current:
    """What of a run is there now.

    Args:
        experiment: The experiment.
        run: Its run directory.
    """

    def __init__(self, experiment: Experiment, run: Path):
        self._experiment, self._run = experiment, run.resolve()
        models = {name: Path(path) for name, path in model_paths(experiment, self._run).items() if name != BASE}
        self._folders = {TRUNK: order_folder(self._run, 0).with_name(TRUNK), **models}

    def outdated(self) -> list[str]:
        """Return the names of the models that were made anew, otherwise, since they were scored."""
        scores = evaluation_folder(self._run)
        return [
            name for name in scored_models(self._experiment, self._run) if not self._hold((scores / name).glob(MARKERS))
        ]

    def has_curve(self, merge: str) -> bool:
        """Return whether the curve of a merge is of models that are there now.

        Args:
            merge: Its name.
        """
        outdated = self.outdated()
        return not outdated and self._hold((curve_folder(self._run, merge) / "eval").glob(f"*/{MARKERS}"))

    def _hold(self, markers: Iterable[Path]) -> bool:
        return all(self._is_made_from_these(read_json(marker, Made, remedy=_REMEDY)) for marker in markers)

    def _is_made_from_these(self, record: Made) -> bool:
        return all(made is not None and made == self._made(name) for name, made in record.get("made_from", {}).items())

    def _made(self, name: str) -> str | None:
        """Return what tells a model that is there from another, as `Step.made`; None where it is itself outdated."""
        folder = self._folders.get(name)
        found = [folder / marker for marker in (ORDER_RECORD, MERGE_MARKER)] if folder else []
        marker = next((path for path in found if path.is_file()), None)
        if marker is None or folder is None:
            return None
        record: Made = read_json(marker, Made, remedy=_REMEDY)
        if not self._is_made_from_these(record):
            return None
        own = marker.relative_to(folder).as_posix()
        return fingerprint({file: of["sha256"] for file, of in without_notes(record).items() if file != own})
