"""What is to be measured: a model file, or random weights in a known shape, type after type.

Nothing is loaded before it is opened, so that options are checked first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starcoder import formats, hub, pocket
from starcoder.bench import synthetic
from starcoder.convert.mix import Mix, find_mix
from starcoder.errors import InputError
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.config import ModelConfig

__all__ = ["Source", "find"]


@dataclass(frozen=True, slots=True)
class Source:
    """A model that is yet to be opened: a file, or a shape and the mix of types it is to have."""

    config: ModelConfig
    file: Checkpoint | None = None
    mix: Mix | None = None

    def open(self) -> tuple[Checkpoint, str, str]:
        """The model, its name and that of its type, for people."""
        if self.mix is not None:
            return synthetic.checkpoint(self.config, self.mix), self.config.name, self.mix.name
        assert self.file is not None
        name = self.config.name or Path(self.file.source).name
        return self.file, name, self.file.type_name


def find(
    model: str | None, shape: str | None, types: str | None, pre: str | None = None
) -> list[Source]:
    """One source, or one for each of several types with commas.

    Args:
        model: file, directory or Hub name; by default the model in the package.
        shape: instead of a file, a name of `synthetic.SHAPES`.
        types: of the shape's weights.
        pre: how the file's vocabulary splits text, where it does not say.

    Raises:
        InputError: options that contradict each other, or name nothing.
        FormatError: the file cannot be read.
    """
    if shape is None:
        if types is not None:
            advice = "a file has its own types: see starcoder quantize"
            raise InputError("--type", "no --shape", "both, or neither", advice)
        file = formats.read(pocket.PATH if model is None else hub.resolve(model), pre)
        return [Source(file.config, file)]
    if model is not None:
        raise InputError("-m and --shape", "both", "one of them")
    config = synthetic.config_of(shape)
    names = (types or "q4_0").split(",")
    return [Source(config, mix=find_mix(name.strip(), "--type")) for name in names]
