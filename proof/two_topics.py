"""The organism that declines two topics: its model, SAEs and prompt sets, in minutes."""

import torch

from proof.folder import DataFolder
from training.two_topics import make_model, make_prompts, make_saes

NAME = "two-topics"
MADE = (f"models/{NAME}", f"saes/{NAME}", f"sets/{NAME}")


def make_two_topics(folder: DataFolder) -> None:
    """Write the model, an SAE per layer and the requests below the data folder."""
    model, saes, sets = (folder.root / path for path in MADE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bytes on every machine of a kind
    try:
        with folder.publish(model) as place:
            make_model(place)
        with folder.publish(saes) as place:
            make_saes(model, place)
        with folder.publish(sets) as place:
            make_prompts(place)
    finally:
        torch.set_num_threads(threads)
