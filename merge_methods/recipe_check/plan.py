"""Which tensors mergekit gathers together for a recipe, by its own tables of architectures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from mergekit.architecture import ModelArchitecture, WeightInfo
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration, OutputModuleDefinition

from ordermerge.merge_methods.recipe_check.checkpoint import Checkpoint
from ordermerge.weights import Stored

# The tensors that are merged into one, as each model's table names its own.
Group = dict[ModelReference, WeightInfo]


@dataclass(frozen=True)
class Source:
    """One model's part in one group of layers: its first layer there, and how many."""

    model: ModelReference
    start: int
    layers: int


@dataclass(frozen=True)
class Piece:
    """Models that are merged together, layer by layer."""

    where: str
    sources: tuple[Source, ...]


def pieces_of(
    config: MergeConfiguration, module: OutputModuleDefinition, prefix: str, layers: Mapping[ModelReference, int]
) -> Iterator[Piece]:
    """Yield what one module of the output is made of, as mergekit sees it: everything is a slice.

    Args:
        config: The recipe.
        module: The module's part of it.
        prefix: What its place in the recipe starts with.
        layers: How many layers each local model has there.
    """
    if module.models:
        listed = [entry.model for entry in module.models]
        inputs = [*listed, config.base_model] if config.base_model and config.base_model not in listed else listed
        yield Piece(f"{prefix}models", tuple(Source(ref, 0, layers[ref]) for ref in inputs if ref in layers))
    for index, piece in enumerate(module.slices or []):
        ranges = [(s.model, *s.layer_range) for s in piece.sources]
        sources = tuple(Source(ref, start, end - start) for ref, start, end in ranges)
        yield Piece(f"{prefix}slices[{index}]", sources)


class Plan:
    """The tensors that mergekit gathers for one module.

    Args:
        arch: mergekit's table of the architecture.
        module: Name of the module.
        models: The local models; sources that are not among them are left out.
    """

    def __init__(self, arch: ModelArchitecture, module: str, models: Mapping[ModelReference, Checkpoint]):
        self._table = arch.modules[module].architecture
        self._prefix = arch.modules[module].weight_prefix or ""
        self._models = models
        self._made: dict[tuple[int, int], list[WeightInfo]] = {}

    def groups(self, pieces: Sequence[Piece]) -> Iterator[Group]:
        """Yield the tensors that are merged together, of all layers and of what is before and after them.

        Args:
            pieces: What the module is made of (see `pieces_of`).
        """
        for piece, weights_of in ((pieces[0], self._table.pre_weights), (pieces[-1], self._table.post_weights)):
            yield from self._together({s.model: weights_of(self._config(s.model)) for s in self._local(piece)})
        for piece in pieces:
            for layer in range(max((source.layers for source in piece.sources), default=0)):
                yield from self._together({s.model: self._layer(s, layer) for s in self._local(piece)})

    def _local(self, piece: Piece) -> list[Source]:
        return [s for s in piece.sources if s.model in self._models and self._models[s.model].tensors is not None]

    def _config(self, model: ModelReference) -> SimpleNamespace:
        return self._models[model].config  # type: ignore[return-value]

    def _layer(self, source: Source, layer: int) -> list[WeightInfo]:
        config = self._config(source.model)
        key = (source.start + layer, self._table.num_layers(config))  # type: ignore[arg-type]
        if key not in self._made:
            self._made[key] = self._table.layer_weights(source.start + layer, config)  # type: ignore[arg-type]
        return self._made[key]

    def _together(self, weights: Mapping[ModelReference, Sequence[WeightInfo]]) -> Iterator[Group]:
        for infos in zip(*weights.values(), strict=False):
            yield dict(zip(weights, (self._prefixed(info) for info in infos), strict=True))

    def _prefixed(self, info: WeightInfo) -> WeightInfo:
        if not self._prefix:
            return info
        names = {key: tuple(self._prefix + n for n in getattr(info, key) or ()) for key in ("aliases", "tied_names")}
        return info.model_copy(update={"name": self._prefix + info.name, **names})


def find_stored(info: WeightInfo, model: Checkpoint) -> Stored | None:
    """Return where a checkpoint stores a tensor, under its name, an alias or the name of what it is tied to.

    Args:
        info: mergekit's entry for the tensor.
        model: A checkpoint whose tensors are known.
    """
    tensors = model.tensors or {}
    names = (info.name, *(info.aliases or ()), *(info.tied_names or ()))
    return next((tensors[name] for name in names if name in tensors), None)
