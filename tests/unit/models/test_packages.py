from pathlib import Path

import pytest
import torch

from lightrft.config import ModelConfig
from lightrft.models import describe
from lightrft.models.describe import model_folder, without_weights
from lightrft.models.lazy import empty_model
from lightrft.models.packages import cache_folder, package_model
from lightrft.testing import tiny_folder


def test_the_cache_is_the_setting_or_the_environments_or_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("LIGHTRFT_CACHE", raising=False)
    assert cache_folder("") == Path("/home/someone/.cache/lightrft")
    monkeypatch.setenv("LIGHTRFT_CACHE", "~/there")
    assert cache_folder("") == Path("/home/someone/there")
    assert cache_folder("/here") == Path("/here")


def test_a_model_that_was_converted_before_is_taken_from_the_cache(tmp_path):
    """No package of this name exists, so nothing but the cache can answer."""
    folder = tiny_folder(tmp_path / "models" / "no-such-package-of-ours")
    assert package_model("no-such-package-of-ours", tmp_path) == folder
    assert model_folder(ModelConfig(path="package:no-such-package-of-ours", cache=str(tmp_path))) == str(
        folder
    )


def test_a_package_without_a_model_in_it_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"package:pytest: expected one .gguf file in the package, found 0"):
        package_model("pytest", tmp_path)
    assert list((tmp_path / "models").iterdir()) == [], "nothing unfinished is left in the cache"


@pytest.mark.parametrize("shapes_only", [empty_model, without_weights])
def test_a_package_is_converted_with_real_tensors_also_where_only_shapes_are_wanted(
    tmp_path, monkeypatch, shapes_only
):
    folder, devices = tiny_folder(tmp_path / "m"), []

    def converting(name, cache):
        devices.append(torch.nn.Linear(1, 1).weight.device.type)
        return folder

    monkeypatch.setattr(describe, "package_model", converting)
    shapes_only(ModelConfig(path="package:some"))
    assert devices[0] == "cpu"
