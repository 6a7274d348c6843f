"""`python -m training`: from source packages to the model in the wheel, one stage after the other.

Every stage leaves its result in the work folder, and does nothing where that exists: a run that was
killed goes on with the stage where it stopped when the same command is given again. `--tiny` makes
a toy of a hundredth of the corpus, to try the stages where there is no GPU.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from training import corpus, documents, rows, tokenizer
from training.shape import TINY, Shape

SEED = 1
EPOCHS = 5  # are drawn; a run reads nine tenths of them
STAGES = ("corpus", "rows", "train", "export", "measure")
TYPES = "q4_0", "q8_0"  # that are exported and measured; the first one ships


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run the stages up to the one asked for."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("build/training"),
        help="where results are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--until", choices=STAGES, default=STAGES[-1], help="the last stage to run (default: all)"
    )
    parser.add_argument("--tiny", action="store_true", help="a toy instead of the model")
    args = parser.parse_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    run(args.work, STAGES[: STAGES.index(args.until) + 1], args.tiny)
    return 0


def run(work: Path, stages: Sequence[str], tiny: bool) -> None:
    """Run some stages; PyTorch is imported by those that need it."""
    shape, vocabulary = TINY if tiny else Shape(), work / "tokenizer.json"
    epochs = [work / f"rows-{epoch}.npy" for epoch in range(EPOCHS)]
    dev, trained = work / "rows-dev.npz", work / "trained.pt"
    models = [work / f"starcoder-pocket-{type_}.gguf" for type_ in TYPES]
    if not (work / "corpus" / f"{corpus.SPLITS[-1]}.jsonl").exists():
        corpus.gather(work)
    if "rows" in stages and not dev.exists():
        if not vocabulary.exists():
            tokenizer.train_tokenizer(read(work, "train", tiny), shape.vocab_size, SEED).save(
                str(vocabulary)
            )
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(write_epoch, work, tiny, shape.n_positions), epochs))
        write_dev(work, tiny, shape.n_positions, dev)
    if "train" in stages and not trained.exists():
        from training.train import TOY, Plan, train

        held_out = np.load(dev)
        plan = TOY if tiny else Plan()
        train(plan, epochs, held_out["rows"], float(held_out["bytes_per_token"]), trained)
    if "export" in stages and not models[-1].exists():
        from training.export import export

        export(trained, vocabulary, models)
    if "measure" in stages and not tiny:
        from training import report

        report.report(models, work)


def read(work: Path, split: corpus.Split, tiny: bool) -> list[corpus.File]:
    """The files of a split, or, for a toy, a hundredth of them."""
    return corpus.read_split(work, split)[:: 100 if tiny else 1]


def write_epoch(work: Path, tiny: bool, context: int, path: Path) -> None:
    """Draw the rows of one epoch."""
    if not path.exists():
        number = int(path.stem.removeprefix("rows-"))
        texts = documents.select(read(work, "train", tiny), read(work, "algorithms", tiny))
        bpe = tokenizer.load(work / "tokenizer.json")
        rng = random.Random(f"{SEED}-{number}")
        drawn = rows.draw(texts, bpe, context, rows.Mix.of(number), rng)
        np.save(unfinished := path.with_suffix(".partial.npy"), drawn)
        unfinished.rename(path)


def write_dev(work: Path, tiny: bool, context: int, path: Path) -> None:
    """Make the rows of the development split, and note how many bytes a token has there."""
    texts = [file.text for file in read(work, "dev", tiny)]
    tokens = documents.plain(texts, tokenizer.load(work / "tokenizer.json"))
    bytes_per_token = sum(len(text.encode()) for text in texts) / sum(map(len, tokens))
    np.savez(path, rows=rows.running_on(tokens, context), bytes_per_token=bytes_per_token)


if __name__ == "__main__":
    sys.exit(main())
