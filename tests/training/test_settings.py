"""One resolver of "a flag, else the model's minisoft.json, else the paper": the rules of sigma."""

from types import SimpleNamespace

import pytest
import torch

from minisoft.training.settings import Flags, resolve

TRAINED = {"sigma": 0.7, "gamma": 0.1, "noise": "embedding"}
SCALE = 12.5**0.5  # rms of (3, 4)


@pytest.mark.parametrize(
    "folder, flags, expected",
    [
        ({}, Flags(), 0.33 * SCALE),
        ({}, Flags(gamma=0.5), 0.5 * SCALE),
        ({}, Flags(sigma=0.2), 0.2),
        (TRAINED, Flags(), 0.7),
        (TRAINED, Flags(gamma=0.1), 0.7),
        (TRAINED, Flags(gamma=0.2), 1.4),
        (TRAINED, Flags(sigma=0.2), 0.2),
        ({"sigma": 0.66}, Flags(gamma=0.66), 1.32),  # without a word on noise and gamma
        ({**TRAINED, "noise": "hidden"}, Flags(noise="embedding"), 0.33 * SCALE),
    ],
)
def test_sigma_is_gamma_times_the_scale_that_training_had(folder, flags, expected):
    E = torch.tensor([[3.0, 4.0]])
    norm, config = torch.nn.RMSNorm(2), SimpleNamespace(hidden_size=2, vocab_size=1)
    model = SimpleNamespace(E=E, W_d=E, model=SimpleNamespace(norm=norm), config=config)
    settings = resolve(folder, flags, 128).for_model(model)
    assert settings.sigma == pytest.approx(expected)
    assert settings.kind("soft").sigma == settings.sigma
