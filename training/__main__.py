"""`python -m training`: from nothing to the model in the wheel, one stage after the other.

Every stage leaves its result in the work folder and is skipped where that exists, so a run that was
killed goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np

from training import corpus, dataset, tokenizer
from training.shape import Shape

VOCAB_SIZE = 4096
SEED = 1
DEV_ROWS = 96
MAX_ROWS = {256: 20_000, 1024: 20_000}  # of each length, a little more than the plan needs
PACKAGED = Path(__file__).parent.parent / "src" / "starcoder" / "starcoder-pocket-q8_0.gguf"


STAGES = ("corpus", "rows", "train", "fill", "refine", "export", "measure")


def main() -> int:
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
    args = parser.parse_args()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    last = STAGES.index(args.until)

    if not (work / "corpus" / "train.jsonl").exists():
        corpus.gather(work)
    if last >= STAGES.index("rows"):
        train_rows, dev_rows, bytes_per_token = rows(work)
    if last >= STAGES.index("train"):
        from training.train import Plan, Trainer

        plan = Plan()
        trainer = Trainer(plan, work / "run", train_rows, dev_rows, bytes_per_token)
        if not trainer.run():
            return 1
        files = corpus.read_split(work, "train")
        phase = plan.phases[-1]
        unseen = train_rows[-1][phase.steps * phase.rows :]
    if last >= STAGES.index("fill"):
        from training import fill

        fill.fill(fill.Course(), work, files, unseen, tokenizer.load(work / "tokenizer.json"))
    if last >= STAGES.index("refine"):
        from training import refine

        checkpoint = refine.refine(refine.Course(), work, files, unseen)
    if last >= STAGES.index("export"):
        from training.export import export

        paths = export(checkpoint, work / "tokenizer.json", work)
        shutil.copyfile(paths["q8_0"], PACKAGED)
    if last >= STAGES.index("measure"):
        from training import card, report

        report.write(work, paths, card.MEASUREMENTS)
        card.write()
    return 0


def rows(work: Path) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Make, or find, the tokenizer and the rows.

    Returns:
        The rows to train on, of every length; those of the dev split; its bytes a token.
    """
    vocabulary, dev = work / "tokenizer.json", work / "dev.npy"
    train = {length: work / f"train-{length}.npy" for length in MAX_ROWS}
    if not all(path.exists() for path in (vocabulary, dev, *train.values())):
        files = corpus.read_split(work, "train")
        if not vocabulary.exists():
            tokenizer.train_tokenizer(files, VOCAB_SIZE, SEED).save(str(vocabulary))
        bpe = tokenizer.load(vocabulary)
        plain, functions = dataset.select(files)
        for i, (length, path) in enumerate(train.items()):
            if not path.exists():  # no document gives rows of two lengths
                share = plain[i :: len(train)], functions[i :: len(train)]
                dataset.build(*share, bpe, length, SEED, MAX_ROWS[length], path)
        held_out = corpus.read_split(work, "dev")
        dataset.build(held_out, [], bpe, Shape().n_positions, SEED, DEV_ROWS, dev, fim_rate=0.0)
    bpe = tokenizer.load(vocabulary)
    texts = [file.text for file in corpus.read_split(work, "dev")]
    n_tokens = sum(len(encoding.ids) + 1 for encoding in bpe.encode_batch_fast(texts))
    return (
        [np.load(path, mmap_mode="r") for path in train.values()],
        np.load(dev),
        sum(len(t.encode()) for t in texts) / n_tokens,
    )


if __name__ == "__main__":
    sys.exit(main())
