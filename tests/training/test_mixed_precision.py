"""Training in mixed precision: computed in bfloat16, kept and saved in float32."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from colored_photos import SIZE, write_colored, write_small_network

import imgindex
from imgindex.training import run


def test_a_network_that_is_trained_in_bfloat16_is_saved_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_colored(tmp_path / "photos", each=10)
    write_small_network(tmp_path / "base.keras")
    computed: list[Any] = []
    fit = keras.Model.fit

    def recorded(model: Any, *arguments: Any, **options: Any) -> Any:
        pixels = np.zeros((1, SIZE, SIZE, 3), np.float32)
        computed.append(model.get_layer("backbone")(pixels).dtype.name)
        return fit(model, *arguments, **options)

    monkeypatch.setattr(run, "uses_bfloat16", lambda: True)
    monkeypatch.setattr(keras.Model, "fit", recorded)
    output = tmp_path / "model.keras"
    result = imgindex.train(
        str(tmp_path / "photos"), str(output), method="init", base=str(tmp_path / "base.keras"), epochs=3
    )
    assert set(computed) == {"bfloat16"}
    assert result.epochs[-1].loss < result.epochs[0].loss
    model = keras.saving.load_model(output)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model(np.zeros((1, SIZE, SIZE, 3), np.float32)).dtype.name == "float32"
