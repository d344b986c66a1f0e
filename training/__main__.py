"""`python -m training`: make the embedded pair and its prompt sets from nothing, about an hour on two cores."""

import shutil
from pathlib import Path

from training.language_model import LanguageModelRecipe, train_language_model
from training.tokens import train_tokenizer

BUILD = Path(__file__).parent / "build"
N_TOKENIZER_DOCUMENTS, VOCAB_SIZE, TOKENIZER_SEED = 30_000, 4096, 100


def make_model() -> None:
    """Tokenizer and language model."""
    folder = BUILD / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(N_TOKENIZER_DOCUMENTS, VOCAB_SIZE, TOKENIZER_SEED, folder)
    train_language_model(LanguageModelRecipe(), tokenizer, folder)


if __name__ == "__main__":
    make_model()
